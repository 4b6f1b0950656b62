"""Ensembles on disk: content, resumption, refusals."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fem_bridge.datasets import Ensemble, Split, build_ensemble
from sde.noise import NoiseStream


@dataclass(frozen=True)
class _Toy:
    """A source whose records are cheap functions of the sample's noise."""

    scale: float = 1.0
    delay: float = 0.0

    def draw(self, noise: NoiseStream) -> Tensor:
        return noise.uniforms(3, dtype=torch.float64)

    def record(self, inputs: Tensor, noise: NoiseStream) -> dict[str, Tensor]:
        time.sleep(self.delay)
        traces = self.scale * inputs[:, None, :2] * torch.arange(1.0, 6.0)[:, None]
        return {"traces": traces.float(), "responses": inputs.sum(1, keepdim=True)}

    def describe(self) -> dict[str, object]:
        return {"problem": {"name": "toy", "scale": self.scale}}


def _build(folder: Path, **changes: object) -> Ensemble:
    settings = {"num_samples": 20, "seed": 3, "batch": 8, "progress": False} | changes
    return build_ensemble(settings.pop("source", _Toy()), folder, **settings)


def test_ensemble_holds_what_the_source_records(tmp_path: Path) -> None:
    ensemble = _build(tmp_path, split=Split(train=range(0, 12), test=range(12, 20)))
    inputs = _Toy().draw(NoiseStream(3, 0, 20))
    assert len(ensemble) == 20
    assert torch.equal(ensemble.inputs, inputs)
    assert torch.equal(ensemble.load("traces"), _Toy().record(inputs, NoiseStream(3, 0, 20))["traces"])
    assert torch.equal(ensemble.load("traces", range(5, 18)), ensemble.load("traces")[5:18])
    assert Ensemble.open(tmp_path).split.test == range(12, 20)
    assert ensemble.load("inputs", range(4, 4)).shape == (0, 3)


def test_ensemble_grows_and_shrinks_without_changing_samples(tmp_path: Path) -> None:
    small = _build(tmp_path / "grown", num_samples=11, split=Split(range(11)))
    first = small.inputs
    grown = _build(tmp_path / "grown", split=Split(range(11)))
    whole = _build(tmp_path / "whole", split=Split(range(11)))
    assert torch.equal(grown.inputs[:11], first)
    assert grown.fingerprint() == whole.fingerprint()
    assert len(_build(tmp_path / "grown", num_samples=11, split=Split(range(11)))) == 20


def test_ensemble_is_the_same_through_a_process_pool(tmp_path: Path) -> None:
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as executor:
        pooled = _build(tmp_path / "pool", executor=executor)
    assert pooled.fingerprint() == _build(tmp_path / "serial").fingerprint()


def test_ensemble_resumes_after_kill_with_identical_content(tmp_path: Path) -> None:
    script = (
        "from tests.fem_bridge.test_datasets import _build, _Toy; from pathlib import Path; import sys;"
        "_build(Path(sys.argv[1]), source=_Toy(delay=0.2), num_samples=80)"
    )
    killed = tmp_path / "killed"
    process = subprocess.Popen([sys.executable, "-c", script, str(killed)])
    deadline = time.monotonic() + 60
    while len(list(killed.glob("runs-*"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    (killed / "partial-1-runs-00000072-00000080.npz").write_bytes(b"half a fi")
    before = len(Ensemble.open(killed))
    assert 0 < before < 80
    resumed = _build(killed, num_samples=80, split=Split(range(80)))
    assert resumed.fingerprint() == _build(tmp_path / "whole", num_samples=80).fingerprint()
    assert not list(killed.glob("partial-*"))


def test_failed_samples_are_listed(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Failing(_Toy):
        def record(self, inputs: Tensor, noise: NoiseStream) -> dict[str, Tensor]:
            records = super().record(inputs, noise)
            records["responses"][noise.start == 8] = torch.nan
            return records

    assert _build(tmp_path, source=Failing()).failed.tolist() == list(range(8, 16))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": _Toy(scale=2.0)}, r"differs in source.problem.scale \(1.0 there, 2.0 asked\)"),
        ({"seed": 4}, r"differs in seed \(3 there, 4 asked\)"),
        ({"batch": 4}, "differs in batch"),
        ({"split": Split(range(5))}, "differs in split.train"),
        ({"num_samples": 0}, "`num_samples` and `batch` must be at least 1; got 0 and 8"),
        ({"split": Split(range(30))}, "`split` must stay below num_samples = 20; it reaches 30"),
    ],
)
def test_build_refuses_another_ensemble(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    _build(tmp_path)
    with pytest.raises(ValueError, match=message):
        _build(tmp_path, **changes)


def test_bad_splits_and_reads_are_refused(tmp_path: Path) -> None:
    ensemble = _build(tmp_path)
    with pytest.raises(ValueError, match="`test` must not overlap `train`; both hold sample 5"):
        Split(train=range(0, 8), test=range(5, 9))
    with pytest.raises(ValueError, match="`train` must be a range with step 1"):
        Split(train=range(0, 8, 2))
    with pytest.raises(KeyError, match="`name` must be one of inputs, responses, traces; got stress"):
        ensemble.load("stress")
    with pytest.raises(ValueError, match=r"`samples` must lie in range\(0, 20\)"):
        ensemble.load("inputs", range(10, 30))


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    ensemble = _build(tmp_path)
    (tmp_path / "runs-00000008-00000016.npz").write_bytes(b"not a zip file")
    with pytest.raises(ValueError, match=r"runs-00000008-00000016.npz is damaged .* Delete it"):
        ensemble.load("inputs")
    (tmp_path / "ensemble.json").write_text("{")
    with pytest.raises(ValueError, match="is not a manifest of one"):
        Ensemble.open(tmp_path)
    with pytest.raises(FileNotFoundError, match="Build it with build_ensemble"):
        Ensemble.open(tmp_path / "elsewhere")
