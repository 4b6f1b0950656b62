"""Run stores: resume, refuse, survive; and the models' fingerprints."""

import functools
import os
import subprocess
import sys
import warnings
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Normal

from benchmarks.engine import ROOT, kill_and_resume
from uq import Failures, FunctionModel, Input, Inputs, RunStore, Sobol, Tolerance, monte_carlo
from uq.execution import Batch
from uq.fingerprint import fingerprint
from uq.storage import Status

pytest.importorskip("zarr", reason="needs the extra io")
xarray = pytest.importorskip("xarray", reason="needs the extra io")

INPUTS = Inputs([Input("load", Normal(5.0, 2.0), "kN"), Input("width", Normal(1.0, 0.1), "m")])


def stress(x):
    return torch.stack([x[:, 0] / x[:, 1], x[:, 0] * x[:, 1]], -1)


@dataclass(frozen=True)
class Named(FunctionModel):
    """A model with names and units of its outputs."""

    output_names: tuple[str, ...] = ("stress", "moment")
    output_units: tuple[str, ...] = ("kPa", "kN m")


MODEL = Named(stress, 2, (2,))
go = partial(monte_carlo, MODEL, INPUTS, progress=False, batch_size=40)


def test_store_opens_in_xarray_with_names_units_and_no_warning(tmp_path):
    result = go(seed=3, num_samples=100, store=tmp_path / "run.zarr")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = xarray.open_zarr(tmp_path / "run.zarr", chunks=None)
        assert xarray.open_zarr(tmp_path / "run.zarr", consolidated=False, chunks=None).sizes == data.sizes
    assert dict(data.sizes) == {"sample": 100, "output": 2, "input": 2}
    assert data["sample"].values.tolist() == list(range(100))
    assert data["input"].values.tolist() == ["load", "width"]
    assert data["output"].values.tolist() == ["stress", "moment"]
    assert data["inputs"].attrs["units"] == "kN, m"
    assert data["outputs"].attrs["units"] == "kPa, kN m"
    assert data.attrs["seed"] == "3"
    assert np.array_equal(data["outputs"].values, result.outputs.numpy())
    assert (data["status"].values == Status.DONE).all()


@pytest.mark.parametrize("first", [40, 55, 100, 130])
def test_run_goes_on_from_the_store_and_evaluates_the_rest_only(tmp_path, first):
    begun = go(seed=3, num_samples=first, store=tmp_path / "run.zarr")
    result = go(seed=3, num_samples=130, store=tmp_path / "run.zarr")
    again = go(seed=3, num_samples=130, store=tmp_path / "run.zarr", batch_size=17)
    assert (begun.evaluated, result.evaluated, again.evaluated) == (first, 130 - first, 0)
    assert result.digest() == again.digest() == go(seed=3, num_samples=130).digest()
    assert torch.equal(result.inputs, go(seed=3, num_samples=130).inputs)


def test_holes_are_filled(tmp_path):
    go(seed=3, num_samples=200, store=tmp_path / "run.zarr")
    import zarr

    status = zarr.open_group(tmp_path / "run.zarr", mode="r+")["status"]
    status[50:90] = Status.MISSING
    status[199:] = Status.MISSING
    result = go(seed=3, num_samples=200, store=tmp_path / "run.zarr")
    assert result.evaluated == 41
    assert result.digest() == go(seed=3, num_samples=200).digest()


def test_run_to_a_tolerance_leaves_no_unused_end(tmp_path):
    result = go(seed=3, tolerance=Tolerance(relative=0.05), store=tmp_path / "run.zarr")
    data = RunStore(tmp_path / "run.zarr").dataset()
    assert data.sizes["sample"] >= result.num_samples
    assert (data["status"].values == Status.DONE).all()
    assert go(seed=3, tolerance=Tolerance(relative=0.05), store=tmp_path / "run.zarr").evaluated == 0


def test_model_without_inputs_is_stored(tmp_path):
    from benchmarks.engine import StandardNormal

    run = partial(monte_carlo, StandardNormal(), seed=1, store=tmp_path / "run.zarr", progress=False)
    assert run(num_samples=50).digest() == run(num_samples=50).digest()
    assert set(RunStore(tmp_path / "run.zarr").dataset().data_vars) == {"outputs", "status"}


def test_failed_samples_are_kept_and_raised_again(tmp_path):
    model = FunctionModel(lambda x: (x[:, 0] - 7).sqrt(), input_dim=2)
    run = partial(
        monte_carlo, model, INPUTS, seed=1, num_samples=50, store=tmp_path / "r.zarr", progress=False
    )
    with pytest.raises(RuntimeError, match="samples failed"):
        run()
    with pytest.raises(RuntimeError, match="samples failed"):
        run()
    result = run(failures=Failures.OMIT)
    assert result.evaluated == 0
    assert 0 < result.num_failed < 50


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"seed": 4}, "another seed: 3, not 4"),
        ({"design": Sobol(2, 3)}, "another design"),
        ({"inputs": Inputs([Input("load", Normal(5.0, 2.5), "kN"), INPUTS.inputs[1]])}, "another inputs"),
        ({"model": Named(torch.Tensor.sin, 2, (2,))}, "another model_fingerprint"),
        ({"model": FunctionModel(stress, 2, (2,))}, "another model: Named, not FunctionModel"),
    ],
)
def test_store_refuses_another_run(tmp_path, changed, words):
    same = {"model": MODEL, "inputs": INPUTS, "seed": 3, "num_samples": 50, "progress": False}
    monte_carlo(**same, store=tmp_path / "run.zarr")
    with pytest.raises(ValueError, match=words):
        monte_carlo(**(same | changed), store=tmp_path / "run.zarr")


def test_store_refuses_outputs_of_another_kind(tmp_path):
    with RunStore(tmp_path / "run.zarr").writer({"seed": "1"}) as writer:
        writer.write(Batch(0, 4, np.zeros((4, 1)), np.zeros((4, 2)), 0.0))
        with pytest.raises(ValueError, match=r"`model` must return what the store holds"):
            writer.write(Batch(4, 8, np.zeros((4, 1)), np.zeros((4, 3)), 0.0))


def test_store_is_written_by_one_process_at_a_time(tmp_path):
    store = RunStore(tmp_path / "run.zarr")
    code = f"from uq import RunStore\nwith RunStore({str(store.path)!r}).writer({{}}):\n    pass\n"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with store.writer({}):
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
        )
    assert f"is being written by process {os.getpid()} on" in done.stderr
    with store.writer({}):
        pass  # the lock ends with the context


def _cut_chunk(path):
    chunk = path / "outputs" / "c" / "1" / "0"
    chunk.write_bytes(chunk.read_bytes()[:-5])


def _flip_chunk(path):
    chunk = path / "outputs" / "c" / "1" / "0"
    content = bytearray(chunk.read_bytes())
    content[len(content) // 2] ^= 0x10
    chunk.write_bytes(bytes(content))


@pytest.mark.parametrize(
    "damage",
    [
        _cut_chunk,
        _flip_chunk,
        lambda path: (path / "outputs" / "c" / "1" / "0").unlink(),
        lambda path: (path / "zarr.json").write_text("{"),
        lambda path: (path / "zarr.json").unlink(),
        lambda path: (path / "status" / "c" / "0").write_bytes(b"no chunk"),
    ],
    ids=["cut chunk", "flipped bit", "lost chunk", "cut metadata", "lost metadata", "bad status"],
)
def test_damaged_store_is_said_in_one_sentence(tmp_path, damage):
    go(seed=3, num_samples=120, store=tmp_path / "run.zarr")
    damage(tmp_path / "run.zarr")
    with pytest.raises(RuntimeError, match=r"is damaged or not a run store: .* Restore it from a copy"):
        go(seed=3, num_samples=120, store=tmp_path / "run.zarr")


def test_absent_store_is_said():
    with pytest.raises(FileNotFoundError, match="which does not exist"):
        RunStore("nowhere.zarr").dataset()


def test_killed_run_resumes_to_the_same_digest(tmp_path):
    report = kill_and_resume(tmp_path, kills=2, samples=600)
    assert report.same
    assert (report.kills, report.reevaluated, report.lost, report.orphans) == (2, 0, 0, 0)


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "kills"), [("serial", 10), ("pool", 5)])
def test_run_killed_many_times_resumes_to_the_same_digest(tmp_path, engine, kills):
    report = kill_and_resume(tmp_path, kills=kills, engine=engine)
    assert report.same
    assert (report.kills, report.reevaluated, report.lost, report.orphans) == (kills, 0, 0, 0)


def test_fingerprints_tell_models_apart_and_repeat():
    first, second = nn.Module(), nn.Module()
    first.register_buffer("weight", torch.zeros(2, 2))
    second.register_buffer("weight", torch.ones(2, 2))
    partials = [functools.partial(stress, scale=k) for k in (1, 1, 2)]
    assert fingerprint(first) == fingerprint(first) != fingerprint(second)
    assert fingerprint(partials[0]) == fingerprint(partials[1]) != fingerprint(partials[2])
    assert fingerprint(FunctionModel(stress, 2)) != fingerprint(FunctionModel(stress, 3))
