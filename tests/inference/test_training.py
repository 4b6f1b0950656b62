"""The training loop: schedules, clipping, validation, logs, and resuming to the same bits."""

import csv
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from inference.decay import CosineDecay, ExponentialDecay, NoDecay, StepDecay
from inference.interpolants import Kind, Matching, OneSided, independent
from inference.latent_sde import LatentSDE, latent_sde
from inference.latent_training import LatentTraining, train_latent
from inference.precision import Precision
from inference.processes import OneProcess, Share, Torchrun
from inference.reference_problems import Mixture
from inference.series import Series
from inference.training import FitSettings, fit
from sde import NoiseStream
from tests.inference import two_processes
from tests.names import label

_LAW = Mixture.standard(1)
_TIMES = torch.tensor([0.0, 0.2, 0.3, 0.7, 1.0])


class _Point(nn.Module):
    """A model with one parameter."""

    def __init__(self, start: float = 0.0) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.tensor(start))


def _far(model: nn.Module, iteration: int) -> Tensor:
    return 1000 * (model.x - 5).square()


def test_rate_warms_up_and_falls() -> None:
    settings = FitSettings(iterations=100, warmup=10, decay=CosineDecay(0.1))
    factors = [settings.rate_factor(i) for i in range(101)]
    assert factors[0] == pytest.approx(0.1)
    assert max(factors) == factors[9]
    assert factors[100] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("decay", "middle", "end"),
    [
        (NoDecay(), 1.0, 1.0),
        (CosineDecay(0.2), 0.6, 0.2),
        (ExponentialDecay(0.01), 0.1, 0.01),
        (StepDecay((0.5, 0.75), 0.5), 0.5, 0.25),
    ],
    ids=lambda value: label(value),
)
def test_decay_of_the_rate(decay, middle: float, end: float) -> None:
    assert decay.factor(0.0) == 1.0
    assert decay.factor(0.5) == pytest.approx(middle)
    assert decay.factor(1.0) == pytest.approx(end)


def test_decay_is_part_of_the_identity(tmp_path: Path) -> None:
    settings = FitSettings(iterations=2, decay=StepDecay((0.5,)))
    where = {"identity": {}, "checkpoint": tmp_path / "point.pt", "progress": False}
    fit(_Point(), _far, settings=settings, **where)
    for other in (replace(settings, decay=NoDecay()), replace(settings, precision=Precision.BFLOAT16)):
        with pytest.raises(ValueError, match="`checkpoint` must belong to this run"):
            fit(_Point(), _far, settings=other, **where)


def test_gradients_are_clipped() -> None:
    moved = []
    for clip in (1e-12, math.inf):  # below the epsilon of Adam
        model = _Point()
        settings = FitSettings(iterations=3, rate=0.1, clip=clip)
        fit(model, _far, settings=settings, identity={}, progress=False)
        moved.append(float(model.x.detach()))
    assert moved[0] < 1e-3
    assert moved[1] > 0.15


def test_lowest_validation_is_returned_and_stops_the_training(tmp_path: Path) -> None:
    settings = FitSettings(500, rate=0.1, average=0.0, log_every=5, patience=4, decay=NoDecay())
    steps: list[int] = []

    def loss(model: nn.Module, iteration: int) -> Tensor:
        steps.append(iteration)
        return (model.x - 5).square()

    def run() -> tuple[nn.Module, dict[str, list[float]]]:
        where = {"checkpoint": tmp_path / "point.pt", "progress": False}
        validate = lambda model: (model.x - 2).abs()  # noqa: E731
        return fit(_Point(), loss, settings=settings, identity={}, validate=validate, **where)

    best, history = run()
    again, _ = run()  # a run that has stopped returns at once, with the same weights
    assert torch.equal(best.x, again.x)
    assert steps == list(range(len(steps)))
    lowest = min(history["validation"])
    assert abs(float(best.x) - 2) == pytest.approx(lowest)
    assert history["validation"].index(lowest) == len(history["validation"]) - 5
    assert history["iteration"][-1] < 500


def test_log_is_a_table_of_the_history(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "log.csv"
    settings = FitSettings(iterations=10, log_every=4)
    _, history = fit(_Point(), _far, settings=settings, identity={}, log=path, progress=False)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["iteration"]) for row in rows] == [4, 8, 10]
    assert [float(row["loss"]) for row in rows] == history["loss"]


def test_tensorboard_shows_each_row_once_after_a_kill(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    where = {"identity": {}, "checkpoint": tmp_path / "point.pt", "progress": False}
    settings = FitSettings(iterations=10, log_every=2, checkpoint_every=5)

    def failing(model: nn.Module, iteration: int) -> Tensor:
        if iteration == 9:  # rows 6 and 8 are written, the checkpoint is of 5
            raise KeyboardInterrupt
        return _far(model, iteration)

    with pytest.raises(KeyboardInterrupt):
        fit(_Point(), failing, settings=settings, tensorboard=tmp_path / "events", **where)
    _, history = fit(_Point(), _far, settings=settings, tensorboard=tmp_path / "events", **where)
    events = accumulator.EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == history["iteration"] == [2, 4, 6, 8, 10]
    assert [event.value for event in events.Scalars("loss")] == pytest.approx(history["loss"], rel=1e-6)


def series(count: int = 12) -> Series:
    """Noisy sines with a third of the values missing."""
    noise = NoiseStream(7, 0, count)
    values = torch.sin(3 * _TIMES + noise.normals(1))[..., None] + 0.1 * noise.normals(5, channels=1, first=4)
    return Series(_TIMES, torch.where(noise.fork("mask").uniforms(5, channels=1) < 1 / 3, torch.nan, values))


def model() -> LatentSDE:
    """A small latent equation."""
    return latent_sde(1, 2, max_step=0.2, seed=3, width=8)


SMALL = LatentTraining(
    batch=4,
    paths=2,
    annealing=6,
    fit=FitSettings(iterations=12, log_every=3, checkpoint_every=5, clip=1.0, warmup=3, patience=50),
)
LONG = replace(SMALL, fit=replace(SMALL.fit, iterations=90, checkpoint_every=7))


RUN = {"seed": 0, "settings": LONG, "validation": series(3), "progress": False}


def state_of(path: Path) -> dict:
    """What a checkpoint holds."""
    return torch.load(path, weights_only=True)["state"]


def same(one: object, other: object) -> bool:
    """Whether two nested states have the same bits, but for the seconds."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one if k != "seconds")
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return one == other


def test_latent_training_killed_and_resumed_gives_the_same_numbers(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole.pt", tmp_path / "broken.pt"
    code = f"from {__name__} import *; train_latent(model(), series(), checkpoint={str(broken)!r}, **RUN)"
    process = subprocess.Popen([sys.executable, "-c", code])
    while not broken.exists():
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 0 < state_of(broken)["progress"][0] < 90
    for path in (whole, broken):
        train_latent(model(), series(), checkpoint=path, **RUN)
    one, other = state_of(whole), state_of(broken)
    one["progress"], other["progress"] = one["progress"][::2], other["progress"][::2]  # not the seconds
    assert same(one, other)
    assert len(one["history"]["validation"]) == 30


def test_latent_training_depends_on_seed_and_refuses_another_run(tmp_path: Path) -> None:
    path = tmp_path / "latent.pt"
    first, history = train_latent(model(), series(), seed=0, settings=SMALL, checkpoint=path, progress=False)
    again, _ = train_latent(model(), series(), seed=0, settings=SMALL, progress=False)
    other, _ = train_latent(model(), series(), seed=1, settings=SMALL, progress=False)
    assert same(dict(first.state_dict()), dict(again.state_dict()))
    assert not same(dict(first.state_dict()), dict(other.state_dict()))
    assert history["iteration"] == [3, 6, 9, 12]
    with pytest.raises(ValueError, match=r"`checkpoint` must belong to this run; .* has seed = 0, not 1"):
        train_latent(model(), series(), seed=1, settings=SMALL, checkpoint=path, progress=False)
    more = replace(SMALL, paths=3)
    with pytest.raises(ValueError, match=r"has paths = 2, not 3"):
        train_latent(model(), series(), seed=0, settings=more, checkpoint=path, progress=False)


class _Products(nn.Module):
    """A linear layer that remembers the dtypes of its outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.utils.skip_init(nn.Linear, 1, 1)
        nn.init.constant_(self.layer.weight, 0.3)
        nn.init.constant_(self.layer.bias, 0.1)
        self.seen: set[torch.dtype] = set()

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        self.seen.add(y.dtype)
        return y


@pytest.mark.parametrize("precision", list(Precision), ids=lambda p: p.value)
def test_precision_is_that_of_products_and_resumes_to_the_same_bits(precision, tmp_path: Path) -> None:
    dtype = {Precision.FULL: torch.float32, Precision.BFLOAT16: torch.bfloat16}.get(precision, torch.float16)
    settings = FitSettings(200, rate=0.05, clip=1.0, checkpoint_every=70, average=0.9, precision=precision)
    stopped = tmp_path / "stopped.pt"

    def loss(model: nn.Module, iteration: int, stop: int = 1000) -> Tensor:
        if iteration == stop:
            raise KeyboardInterrupt
        x = NoiseStream(0, 32 * iteration, 32 * (iteration + 1)).normals(1)
        return (model(x).float() - 2 * x + 1).square().mean()

    def run(loss, path: Path) -> tuple[nn.Module, dict[str, list[float]]]:
        return fit(_Products(), loss, settings=settings, identity={}, checkpoint=path, progress=False)

    with pytest.raises(KeyboardInterrupt):
        run(lambda model, k: loss(model, k, 100), stopped)
    found, history = run(loss, stopped)
    whole, other = run(loss, tmp_path / "whole.pt")
    assert history["loss"] == other["loss"]
    assert same(dict(found.state_dict()), dict(whole.state_dict()))
    assert dtype in whole.seen or not whole.seen
    assert all(p.dtype == torch.float32 for p in found.parameters())
    # The least loss is zero; products rounded to 8 bits leave their square, (2 / 2^8)^2, at most.
    assert history["loss"][-1] < history["loss"][0] / 100
    assert float(found.layer.weight) == pytest.approx(2, abs=0.05)


def test_latent_equation_trains_in_mixed_precision() -> None:
    curves = {}
    for precision in (Precision.FULL, Precision.BFLOAT16):
        settings = replace(SMALL, fit=replace(SMALL.fit, precision=precision))
        trained, history = train_latent(model(), series(), seed=0, settings=settings, progress=False)
        assert {p.dtype for p in trained.parameters()} == {torch.float32}
        curves[precision] = torch.tensor(history["loss"])
    one, other = curves.values()
    assert not torch.equal(one, other)
    torch.testing.assert_close(one, other, rtol=0.02, atol=0)  # some units of 2^-8


def test_shares_of_a_batch_are_the_batch() -> None:
    loss = Matching(OneSided(), Kind.VELOCITY, independent(_LAW.sample, _LAW.sample), batch=12, seed=0)
    field = lambda t, x: t * x  # noqa: E731
    whole = loss(field, 3)
    parts = [replace(loss, share=Share(rank, 3))(field, 3) for rank in range(3)]
    torch.testing.assert_close(torch.stack(parts).mean(), whole, rtol=1e-12, atol=0)
    assert (parts[0] - whole).abs() > 1e-3
    with pytest.raises(ValueError, match="`batch` must be a multiple of the 5 processes; got 12"):
        replace(loss, share=Share(0, 5))


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """Same samples, so the same curves to rounding; written once; resumed to the same bits."""
    pytest.importorskip("lightning_fabric", reason="needs the extra `train`")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", two_processes.__name__, str(tmp_path)]
    subprocess.run(command, check=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"})
    first, second = (torch.load(tmp_path / f"numbers_{rank}.pt") for rank in (0, 1))
    own = two_processes.numbers(OneProcess(), tmp_path / "own")
    for name, curve in own.items():
        # Rounding of float64 grows over 12 steps; other samples would differ in the first digits.
        torch.testing.assert_close(first[name], curve, rtol=1e-9, atol=1e-12)
        assert torch.equal(first[name], second[name])
    wrong = torch.tensor(two_processes.matching(OneProcess(), Share(0, 2)), dtype=torch.float64)
    assert (wrong - own["matching"]).abs().max() > 1e-3
    assert torch.equal(first["resumed"], first["latent"])
    for found in (first, second):
        assert "has iterations = 12, not 13" in found["refusals"][0]
        assert found["refusals"][1] == "`batch` must be a multiple of the 2 processes; got 7."
    with (tmp_path / "log.csv").open(newline="") as file:
        assert [float(row["loss"]) for row in csv.DictReader(file)] == first["latent"].tolist()
    # Another number of processes may go on with the run.
    assert two_processes.latent(OneProcess(), tmp_path)["loss"] == first["latent"].tolist()


def test_torchrun_needs_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    with pytest.raises(RuntimeError, match="`Torchrun` must be made in a process of torchrun"):
        Torchrun()


def _with_tensorboard() -> None:
    settings = FitSettings(iterations=1)
    fit(_Point(), _far, settings=settings, identity={}, tensorboard="nowhere", progress=False)


@pytest.mark.parametrize(
    ("package", "call"), [("lightning_fabric", Torchrun), ("torch.utils.tensorboard", _with_tensorboard)],
    ids=["lightning_fabric", "tensorboard"],
)  # fmt: skip
def test_absent_package_is_named_with_its_extra(package, call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE"):
        monkeypatch.setenv(name, "1")
    with pytest.raises(ImportError, match=r"pip install 'sdeuq\[train\]'"):
        call()


def test_epochs_use_every_series_once() -> None:
    seen: list[Tensor] = []
    network, data = model(), series()
    original = Series.select

    class _Watched(Series):
        __slots__ = ()

        def select(self, rows: Tensor | slice) -> Series:
            seen.append(rows if isinstance(rows, Tensor) else torch.arange(len(self))[rows])
            return original(self, rows)

    watched = _Watched(data.times, data.values)
    train_latent(network, watched, seed=0, settings=replace(SMALL, fit=FitSettings(6)), progress=False)
    epochs = torch.cat(seen).view(2, 12)
    assert torch.equal(epochs.sort(1).values, torch.arange(12).expand(2, 12))
    assert not torch.equal(epochs[0], epochs[1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: FitSettings(clip=0.0), "`clip` must be positive; got 0.0"),
        (lambda: FitSettings(patience=-1), "`patience` must be a whole number of at least 0; got -1"),
        (lambda: CosineDecay(0.0), r"`final` must lie in \(0, 1\]; got 0.0"),
        (lambda: StepDecay((0.5, 0.5)), r"`at` must increase between 0 and 1; got \(0.5, 0.5\)"),
        (lambda: Share(2, 2), r"`rank` must lie in \[0, `size`\); got 2 and 2"),
        (lambda: LatentTraining(batch=0), "`batch` must be a whole number of at least 1; got 0"),
        (
            lambda: train_latent(
                model(), series(), seed=0, settings=LatentTraining(batch=13), progress=False
            ),
            "`batch` must be at most the 12 series; got 13",
        ),
    ],
)
def test_training_refuses(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
