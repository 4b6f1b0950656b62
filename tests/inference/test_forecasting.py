"""Forecasters against exact conditional laws, and as models."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from inference import FitSettings
from inference.forecasting import Forecaster, ForecastSettings, train_forecaster
from inference.interpolants import (
    BrownianBridge,
    Fading,
    Kind,
    Linear,
    Parabola,
    Quadratic,
    TwoSided,
)
from inference.reference_problems import CoupledGaussian, LinearProcess, Mixture
from inference.samplers import (
    ProbabilityDiffusion,
    ProbabilityFlow,
    Sampler,
    geometric_times,
    leave_point,
    leaving_diffusivity,
    optimal_diffusivity,
)
from inference.scores import crps, gaussian_crps
from sde.noise import NoiseStream
from sde.solvers import EulerMaruyama
from tests.statistics import assert_mean

F64 = torch.float64
PATH = TwoSided(Quadratic(), Fading())
QUICK = ForecastSettings(
    batch=8, width=8, depth=1, steps=4, fit=FitSettings(iterations=3, checkpoint_every=1)
)


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=F64)


class Exact(nn.Module):
    """The drift to N(0.8 x0 + shift c, 0.3), for states alone or with a condition."""

    def __init__(self, path: TwoSided = PATH, shift: float = 0.0) -> None:
        super().__init__()
        self.path, self.shift = path, shift

    def forward(self, x: Tensor, t: Tensor, known: Tensor) -> Tensor:
        start, mean = known[:, :1], 0.8 * known[:, :1] + self.shift * known[:, 1:].sum(1, keepdim=True)
        alpha, beta = self.path.schedule.coefficients(t)
        rates, (square, half_rate) = self.path.schedule.derivatives(t), self.path.variance(t)
        pulled = (x - alpha * start - beta * mean) / (0.3 * beta**2 + square)
        moved = rates[0] * start + rates[1] * (mean + 0.3 * beta * pulled)
        return moved - (self.path.leaving(t) - half_rate) * pulled


def exact(diffusivity: object = None, *, path: TwoSided = PATH, steps: int = 40) -> Forecaster:
    zero, one = torch.zeros(1, dtype=F64), torch.ones(1, dtype=F64)
    return Forecaster(Exact(path), path, zero, one, diffusivity=diffusivity, steps=steps)


@pytest.mark.parametrize("path", [PATH, TwoSided(Linear(), BrownianBridge(2.0))], ids=repr)
def test_drift_of_leaving_is_finite_at_the_start_and_gives_every_field(path: TwoSided) -> None:
    rng = np.random.default_rng(0)
    pairs = CoupledGaussian(path, *torch.tensor(rng.standard_normal((2, 2))), torch.eye(4, dtype=F64))
    start, x = torch.tensor(rng.standard_normal((2, 6, 2)))
    point, prediction = pairs.given(start), pairs.given(start).prediction(Kind.DRIFT)
    for kind in path.rows(number(0.5)):
        for t in rng.uniform(0.05, 0.95, 3):
            found = prediction.to(kind)(number(t), x)
            torch.testing.assert_close(found, point.field(kind)(number(t), x), rtol=1e-9, atol=1e-9)
    assert prediction.to(Kind.DRIFT)(number(1e-9), start).isfinite().all()
    near, size = 1e-6, 1e-3  # a point at the distance that the path has at this time
    assert point.field(Kind.DRIFT)(number(near), start + size).abs().max() < 10
    assert point.field(Kind.VELOCITY)(number(near), start + size).abs().max() > 100


def test_amplitude_that_does_not_grow_like_a_root_leaves_at_no_speed() -> None:
    assert TwoSided(Linear(), Parabola()).leaving(number(0.0)) < 1e-15
    assert PATH.leaving(number(0.0)).item() == pytest.approx(0.5, abs=1e-12)


SERVED = [Kind.DRIFT, Kind.VELOCITY, Kind.SCORE, Kind.NOISE, Kind.TARGET, Kind.TRANSPORT]
SAMPLERS: list[Sampler] = [
    ProbabilityFlow(),
    ProbabilityFlow(EulerMaruyama()),
    ProbabilityDiffusion(optimal_diffusivity(PATH)),
    ProbabilityDiffusion(leaving_diffusivity(PATH)),
    ProbabilityDiffusion(leaving_diffusivity(PATH, 0.3), EulerMaruyama()),
]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("kind", SERVED, ids=lambda k: k.value)
def test_any_kind_of_a_path_from_a_point_serves_any_sampler(sampler: Sampler, kind: Kind) -> None:
    """Forecasts do not depend on what the network predicts, nor the rows on the batch."""
    noise, times = NoiseStream(1, 0, 20), geometric_times(12, first=0.01)[:-1]
    start = noise.fork("start").normals(2, dtype=F64)
    pairs = CoupledGaussian(
        PATH, torch.zeros(2, dtype=F64), torch.ones(2, dtype=F64), torch.eye(4, dtype=F64)
    )

    def drawn(kind: Kind, rows: slice = slice(None)) -> Tensor:
        prediction = pairs.given(start[rows]).prediction(kind)
        first = leave_point(prediction, start[rows], times[0], noise[rows])
        return sampler(prediction, first, times, noise[rows])

    torch.testing.assert_close(drawn(kind), drawn(Kind.SCORE), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(drawn(kind, slice(7, 12)), drawn(kind)[7:12], rtol=1e-11, atol=1e-11)


def moments(forecaster: Forecaster, n: int = 20_000) -> tuple[Tensor, Tensor]:
    """Forecasts from 1.5, and their squared distance from 1.2."""
    ends = forecaster(torch.full((n, 1), 1.5, dtype=F64), NoiseStream(2, 0, n))
    return ends, (ends - 1.2) ** 2


CHOICES: list[tuple[str, object]] = [
    ("Foellmer", None),
    ("own", leaving_diffusivity(PATH)),
    ("0.09 of own", leaving_diffusivity(PATH, 0.09)),  # g = 0.3 (1 - s)
    ("flow", 0.0),
]


@pytest.mark.parametrize(("name", "diffusivity"), CHOICES, ids=lambda v: v if isinstance(v, str) else "")
def test_forecasts_have_the_conditional_law_for_any_diffusivity(name: str, diffusivity: object) -> None:
    """N(0.8 x0, 0.3) from 1.5."""
    ends, squares = moments(exact(diffusivity))
    assert_mean(torch.cat((ends, squares), 1), torch.tensor([1.2, 0.3], dtype=F64), bias=0.06)


def test_forecaster_is_a_model_whose_rows_do_not_depend_on_the_batch() -> None:
    zero, one = torch.zeros(1, dtype=F64), torch.ones(1, dtype=F64)
    model = Forecaster(Exact(shift=0.5), PATH, zero, one, condition_mean=zero, condition_scale=one)
    assert (model.input_dim, model.output_shape) == (2, (1,))
    noise = NoiseStream(3, 0, 300)
    inputs = noise.normals(2, dtype=F64)
    whole = model(inputs, noise)
    for rows in (slice(0, 1), slice(17, 290)):
        assert torch.equal(model(inputs[rows], noise[rows]), whole[rows])
    order = torch.tensor([5, 250, 5])
    assert torch.equal(model(inputs[order], noise.select(order)), whole[order])
    members = model.ensemble(inputs[:3], 4, noise[:12])
    assert members.shape == (3, 4, 1)
    assert torch.equal(members[1], model(inputs[1:2].expand(4, 2), noise[4:8]))


def test_conditions_are_inputs() -> None:
    zero, one = torch.zeros(1, dtype=F64), torch.ones(1, dtype=F64)
    model = Forecaster(Exact(shift=0.5), PATH, zero, one, condition_mean=one, condition_scale=2 * one)
    inputs = torch.tensor([[1.5, 5.0]], dtype=F64).expand(20_000, 2)
    assert_mean(model(inputs, NoiseStream(4, 0, 20_000)), 0.8 * 1.5 + 0.5 * 2.0, bias=0.05)


def test_several_lags_have_the_law_of_the_chain() -> None:
    """x_k+1 = 0.8 x_k + N(0, 0.3): means and variances of three lags, and lags of their own noise."""
    n = 10_000
    start = torch.full((n, 1), 1.5, dtype=F64)
    paths = exact().rollout(start, 3, NoiseStream(5, 0, n))
    assert paths.shape == (n, 4, 1)
    assert torch.equal(paths[:, 0], start)
    for lag in (1, 2, 3):
        mean = 0.8**lag * 1.5
        variance = 0.3 * sum(0.64**k for k in range(lag))
        assert_mean((paths[:, lag] - mean), 0.0, bias=0.1)
        assert_mean((paths[:, lag] - mean) ** 2, variance, bias=0.15)
    steps = paths[:, 1:, 0] - 0.8 * paths[:, :-1, 0]
    assert_mean(steps[:, :2] * steps[:, 1:], 0.0, bias=0.05)
    assert torch.equal(exact().rollout(start[:9], 3, NoiseStream(5, 0, n)[:9]), paths[:9])


def test_path_and_units_of_choice() -> None:
    """Another path, and states in other units: the same law in them."""
    path = TwoSided(Linear(), BrownianBridge(2.0))
    model = Forecaster(
        Exact(path), path, torch.tensor([10.0], dtype=F64), torch.tensor([4.0], dtype=F64), steps=160
    )
    ends = model(torch.full((10_000, 1), 16.0, dtype=F64), NoiseStream(6, 0, 10_000))  # 1.5 in these units
    found = torch.cat(((ends - 10) / 4, ((ends - 10) / 4 - 1.2) ** 2), 1)
    assert_mean(found, torch.tensor([1.2, 0.3], dtype=F64), bias=0.1)


@pytest.mark.slow
def test_trained_forecaster_keeps_the_pairs_for_any_diffusivity() -> None:
    """Ends of correlation 0.6: within 0.01, and scores near those of the exact conditional law."""
    joint = torch.tensor([[0.5, 0.6], [0.6, 2.0]], dtype=F64)
    pairs = CoupledGaussian(PATH, number(-1)[None], number(2)[None], joint)
    base, target = pairs.sample(NoiseStream(7, 0, 100_000))
    settings = ForecastSettings(
        batch=1024, width=48, depth=2, fit=FitSettings(2500, rate=5e-3, average=0.995)
    )
    model, _ = train_forecaster(base, target, seed=7, settings=settings, progress=False)
    n = 40_000
    start, truth = pairs.sample(NoiseStream(8, 0, n))
    for _, diffusivity in CHOICES:
        ends = model.with_diffusivity(diffusivity)(start, NoiseStream(9, 0, n)).double()
        assert abs(torch.corrcoef(torch.cat((start, ends), 1).T)[0, 1] - 0.6) < 0.01 + 5 * 0.64 / math.sqrt(n)
    few = slice(0, 4000)
    ensemble = model.ensemble(start[few], 10, NoiseStream(10, 0, 40_000)).double()
    excess = crps(ensemble, truth[few]) - gaussian_crps(
        pairs.given(start[few]).mean, number(1.28).sqrt(), truth[few]
    )
    assert excess.mean() < 0.01 * math.sqrt(1.28) + 5 * excess.std() / math.sqrt(4000)


def test_training_learns_the_law_of_a_linear_equation() -> None:
    """A short training on an Ornstein--Uhlenbeck process at a lag: mean and spread of the forecast."""
    one = torch.ones(1, 1, dtype=F64)
    process = LinearProcess(-one, 0 * one[0], one)
    law = Mixture.gaussian(torch.zeros(1, dtype=F64), one / 2)
    pairs = process.between(law, 0.5, PATH)
    base, target = pairs.sample(NoiseStream(11, 0, 20_000))
    settings = ForecastSettings(batch=256, width=32, depth=2, fit=FitSettings(500, rate=1e-2, average=0.98))
    model, history = train_forecaster(base, target, seed=11, settings=settings, progress=False)
    assert history["loss"][-1] < history["loss"][0]
    step, _, spread = process.transition(0.5)
    ends = model(torch.full((20_000, 1), 0.7), NoiseStream(12, 0, 20_000)).double()
    assert abs(ends.mean() - 0.7 * step.item()) < 0.1 * math.sqrt(spread.item()) + 0.02
    assert abs(ends.std() / math.sqrt(spread.item()) - 1) < 0.1


def test_training_is_addressed_and_resumes(tmp_path: Path) -> None:
    rows = NoiseStream(13, 0, 40).normals(2)
    known = NoiseStream(14, 0, 40).normals(1)
    arguments = {"conditions": known, "seed": 1, "settings": QUICK, "progress": False}
    first, _ = train_forecaster(rows, rows.flip(1), checkpoint=tmp_path / "a.pt", **arguments)
    again, _ = train_forecaster(rows, rows.flip(1), checkpoint=tmp_path / "a.pt", **arguments)
    whole, _ = train_forecaster(rows, rows.flip(1), **arguments)
    for other in (again, whole):
        for name, value in first.state_dict().items():
            assert torch.equal(value, other.state_dict()[name])
    with pytest.raises(ValueError, match="seed"):
        train_forecaster(rows, rows, checkpoint=tmp_path / "a.pt", **(arguments | {"seed": 2}))
    assert first(torch.cat((rows, known), 1)[:5], NoiseStream(0, 0, 5)).dtype == torch.float32


ROWS, ONE = torch.zeros(4, 2), torch.ones(2)
STILL = Forecaster(lambda x, t, known: 0 * x, PATH, 0 * ONE, ONE)
BAD: list[tuple[Callable[[], object], str]] = [
    (lambda: train_forecaster(ROWS, ROWS[:3], seed=0), r"`present` and `future` must have one shape"),
    (lambda: ForecastSettings(steps=0), r"`steps` must be a whole number of at least 1; got 0"),
    (
        lambda: Forecaster(STILL.drift, PATH, ONE, ONE[:1]),
        r"`scale` and `condition_scale` must have the sizes",
    ),
    (lambda: STILL(ROWS, NoiseStream(0, 0, 3)), r"`inputs` must have shape \(3, 2\)"),
    (
        lambda: STILL.ensemble(ROWS, 3, NoiseStream(0, 0, 11)),
        r"`noise` must hold members \* n samples, 3 \* 4",
    ),
    (lambda: STILL.rollout(ROWS, 0, NoiseStream(0, 0, 4)), r"`lags` must be at least 1; got 0"),
    (lambda: leaving_diffusivity(PATH, -1.0), r"`share` must be at least 0; got -1"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_forecasters_refuse(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
