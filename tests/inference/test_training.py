"""The training loop: schedules, clipping, validation, logs, and resuming to the same bits."""

import csv
import math
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from inference.latent_sde import LatentSDE, latent_sde
from inference.latent_training import LatentTraining, train_latent
from inference.series import Series
from inference.training import FitSettings, fit
from sde import NoiseStream

_TIMES = torch.tensor([0.0, 0.2, 0.3, 0.7, 1.0])


class _Point(nn.Module):
    """A model with one parameter."""

    def __init__(self, start: float = 0.0) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.tensor(start))


def _far(model: nn.Module, iteration: int) -> Tensor:
    return 1000 * (model.x - 5).square()


def test_rate_warms_up_and_falls() -> None:
    settings = FitSettings(iterations=100, warmup=10, final_rate=0.1)
    factors = [settings.rate_factor(i) for i in range(101)]
    assert factors[0] == pytest.approx(0.1)
    assert max(factors) == factors[9]
    assert factors[100] == pytest.approx(0.1)


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
    settings = FitSettings(iterations=500, rate=0.1, average=0.0, log_every=5, patience=4, final_rate=1.0)
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
