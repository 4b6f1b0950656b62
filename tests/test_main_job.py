"""The main job, end to end at a small size."""

import json
from pathlib import Path

import pytest

from examples.submodel_uq import main

_SIZE = ["--quick", "--train", "48", "--test", "32", "--executor", "none"]
_KEYS = {
    "assembler",
    "samples",
    "w1_over_sigma",
    "std_error_percent",
    "seconds_per_sample_full",
    "seconds_per_sample_submodel",
    "interface_dofs",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output of one run of the job."""
    path = tmp_path_factory.mktemp("submodel_uq")
    main([*_SIZE, "--out", str(path)])
    return path


def test_summary_holds_the_documented_keys(folder: Path) -> None:
    summary = json.loads((folder / "summary.json").read_text())
    documented = (Path(__file__).parents[1] / "docs" / "main_job.md").read_text()
    assert set(summary) >= _KEYS
    assert all(f"`{key}`" in documented for key in summary)
    assert summary["interface_dofs"] == 98
    assert summary["samples"]["full_train"] == 48
    assert set(summary["w1_over_sigma"]) == {*summary["std_error_percent"], "floor"}
    assert max(summary["std_error_percent"].values()) < 3.1 / 1.96  # the tolerance of --quick


def test_report_stands_alone(folder: Path) -> None:
    page = (folder / "report.html").read_text()
    assert page.count("<img") == page.count("data:image/png;base64") == 4
    assert "http" not in page
    for heading in ("Boundary histories", "Quantities of interest", "Costs", "What the generator misses"):
        assert f">{heading}</h2>" in page


def test_job_resumes_to_the_same_numbers(folder: Path) -> None:
    first = json.loads((folder / "summary.json").read_text())
    shard = sorted((folder / "full_runs").glob("runs-*.npz"))[-1]
    shard.unlink()
    again = main([*_SIZE, "--out", str(folder)])
    assert again["digest"] == first["digest"]
    assert again["w1_over_sigma"] == first["w1_over_sigma"]
