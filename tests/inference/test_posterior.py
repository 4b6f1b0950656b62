"""Conditioning on observations: exact where it is claimed to be, and biased where it is said to be."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from inference.interpolants import Kind, Linear, OneSided, Prediction, Trigonometric, TwoSided
from inference.reference_problems import Mixture, MixtureProblem
from inference.samplers import ProbabilityDiffusion, ProbabilityFlow, optimal_diffusivity
from inference.samplers.posterior import (
    MatchedSpread,
    NoSpread,
    Observation,
    Spread,
    TweedieSpread,
    classified,
    observed,
)
from sde.noise import NoiseStream
from tests.names import label
from tests.statistics import assert_mean

F64 = torch.float64
GRID = torch.linspace(0, 1, 101, dtype=F64)
MATRIX = torch.tensor([[1.0, 0.5]], dtype=F64)
VALUE, NOISE = torch.tensor([1.2], dtype=F64), torch.tensor([[0.3]], dtype=F64)
SEEN = Observation(lambda x: x @ MATRIX.T, VALUE, NOISE)


def one_mode() -> Mixture:
    mean = torch.tensor([0.5, -1.0], dtype=F64)
    return Mixture.gaussian(mean, torch.tensor([[0.4, -0.3], [-0.3, 1.5]], dtype=F64))


def three_modes() -> Mixture:
    means = torch.tensor([[2.0, 0.0], [-1.0, 1.5], [-1.0, -2.0]], dtype=F64)
    spreads = torch.tensor([0.3, 0.5, 0.4], dtype=F64)
    weights = torch.tensor([0.5, 0.3, 0.2], dtype=F64)
    return Mixture(weights, means, spreads[:, None, None] ** 2 * torch.eye(2, dtype=F64))


def problem(target: Mixture, schedule: Linear | Trigonometric | None = None) -> MixtureProblem:
    return MixtureProblem(OneSided(schedule or Linear()), Mixture.standard(2), target)


def exact_gradient(before: MixtureProblem, after: MixtureProblem) -> Callable[[Tensor, Tensor], Tensor]:
    """Of log p(y | x_t): by Bayes' formula the log-ratio of the two laws at t, differentiated."""

    def gradient(t: Tensor, x: Tensor) -> Tensor:
        points = x.detach().requires_grad_()
        with torch.enable_grad():
            ratio = after.law(t).log_density(points) - before.law(t).log_density(points)
            return torch.autograd.grad(ratio.sum(), points)[0]

    return gradient


def test_posterior_of_a_mixture_is_that_of_weighted_samples() -> None:
    """By importance: a million draws of the prior with the likelihood as weight, in effect some thousands."""
    law, draws = (
        three_modes().observed(MATRIX, VALUE, NOISE),
        three_modes().sample(NoiseStream(0, 0, 200_000)),
    )
    weights = (-0.5 * (draws @ MATRIX.T - VALUE).square() / NOISE[0]).softmax(0)
    found = (weights * draws).sum(0)
    error = (weights * (draws - found)).square().sum(0).sqrt()
    assert ((found - law.mean).abs() / error).max() < 5
    centred = draws - found
    spread = (weights[..., None] * centred[..., None] * centred[:, None]).sum(0)
    torch.testing.assert_close(spread, law.covariance, rtol=0.05, atol=0.02)


@pytest.mark.parametrize("schedule", [Linear(), Trigonometric()], ids=label)
@pytest.mark.parametrize("given", [Kind.VELOCITY, Kind.SCORE, Kind.TARGET, Kind.NOISE])
def test_exact_classifier_gives_every_field_of_the_posterior(
    given: Kind, schedule: Linear | Trigonometric
) -> None:
    before, x = problem(three_modes(), schedule), NoiseStream(1, 0, 6).normals(2, dtype=F64)
    after = problem(three_modes().observed(MATRIX, VALUE, NOISE), schedule)
    guided = classified(before.prediction(given), exact_gradient(before, after))
    for t in (torch.tensor(v, dtype=F64) for v in (0.1, 0.6, 0.95)):
        for kind in (Kind.VELOCITY, Kind.SCORE, Kind.TARGET):
            torch.testing.assert_close(guided.to(kind)(t, x), after.field(kind)(t, x), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("t", [0.0, 0.2, 0.7, 1.0])
def test_linear_observation_of_a_gaussian_is_exact(t: float) -> None:
    before, after = problem(one_mode()), problem(one_mode().observed(MATRIX, VALUE, NOISE))
    time, x = torch.tensor(t, dtype=F64), NoiseStream(2, 0, 6).normals(2, dtype=F64)
    for kind in (Kind.VELOCITY, Kind.TARGET):
        found = observed(before.prediction(kind), SEEN).to(kind)(time, x)
        # At the ends the fields are taken a cube root of the rounding unit inside, 6e-6.
        torch.testing.assert_close(found, after.field(kind)(time, x), rtol=1e-4, atol=1e-4)


def test_drift_changes_by_doobs_transform_at_the_optimal_diffusivity() -> None:
    before, after = problem(one_mode()), problem(one_mode().observed(MATRIX, VALUE, NOISE))
    t, x = torch.tensor(0.4, dtype=F64), NoiseStream(3, 0, 6).normals(2, dtype=F64)
    eps = optimal_diffusivity(OneSided())(t)
    weights = {Kind.VELOCITY: 1.0, Kind.SCORE: eps}
    change = observed(before.prediction(), SEEN).combine(weights, t, x) - before.prediction().combine(
        weights, t, x
    )
    torch.testing.assert_close(change, 2 * eps * exact_gradient(before, after)(t, x), rtol=1e-8, atol=1e-8)


def moments(prediction: Prediction) -> tuple[Tensor, Tensor]:
    """Mean and covariance that the flow gives a field that is affine in the points: exact up to steps."""
    points = torch.cat((torch.zeros(1, 2, dtype=F64), torch.eye(2, dtype=F64)))
    ends = ProbabilityFlow()(prediction, points, GRID, NoiseStream(0, 0, 3))
    matrix = (ends[1:] - ends[0]).T
    return ends[0], matrix @ matrix.T


def test_flow_of_a_gaussian_posterior_has_its_moments() -> None:
    law = one_mode().observed(MATRIX, VALUE, NOISE)
    mean, covariance = moments(observed(problem(one_mode()).prediction(), SEEN))
    torch.testing.assert_close(mean, law.mean, rtol=0, atol=4e-3)
    torch.testing.assert_close(covariance, law.covariance, rtol=0, atol=4e-3)


@pytest.mark.parametrize("spread", [NoSpread(), MatchedSpread(0.5)], ids=label)
def test_other_spreads_are_biased(spread: Spread) -> None:
    """The variance along the observation is too small without a spread, and off with a wrong one."""
    law = one_mode().observed(MATRIX, VALUE, NOISE)
    mean, covariance = moments(observed(problem(one_mode()).prediction(), SEEN, spread))
    bias = (MATRIX @ (covariance - law.covariance) @ MATRIX.T).item() / (
        MATRIX @ law.covariance @ MATRIX.T
    ).item()
    assert abs(bias) > 0.05
    if isinstance(spread, NoSpread):
        assert bias < -0.2
        assert (MATRIX @ mean - VALUE).abs() < (MATRIX @ law.mean - VALUE).abs()  # drawn to the data


def test_matched_spread_is_exact_for_the_target_that_it_names() -> None:
    eye = torch.eye(2, dtype=F64)
    target = Mixture.gaussian(torch.tensor([0.5, -1.0], dtype=F64), 0.7 * eye)
    t, x = torch.tensor(0.4, dtype=F64), NoiseStream(4, 0, 5).normals(2, dtype=F64)
    known = problem(target).prediction()
    torch.testing.assert_close(
        observed(known, SEEN, MatchedSpread(0.7)).to(Kind.SCORE)(t, x),
        observed(known, SEEN, TweedieSpread()).to(Kind.SCORE)(t, x),
        rtol=1e-9,
        atol=1e-9,
    )


def test_diffusion_of_the_exact_posterior_of_a_mixture_samples_it() -> None:
    before, law = problem(three_modes()), three_modes().observed(MATRIX, VALUE, NOISE)
    noise, count = NoiseStream(5, 0, 10_000), 10_000
    start = noise.normals(2, dtype=F64)
    guided = classified(before.prediction(), exact_gradient(before, problem(law)))
    ends = ProbabilityDiffusion(lambda t: 0.2 * (1 - t))(guided, start, GRID[::2], noise)
    assert len(ends) == count
    # The scheme of order 2 on 50 steps errs by less than 0.01, a tenth of what is asked.
    assert_mean(ends, law.mean, bias=0.2)


def test_nonlinear_operator_is_linearised_where_the_target_is_predicted() -> None:
    """At t near 1, where the target is known, the pull is that of the likelihood at the point."""
    known = problem(one_mode()).prediction(Kind.TARGET)
    square = Observation(lambda x: x.square().sum(1, keepdim=True), VALUE, NOISE)
    x, t = NoiseStream(6, 0, 4).normals(2, dtype=F64), torch.tensor(1 - 1e-4, dtype=F64)
    pull = observed(known, square).to(Kind.SCORE)(t, x) - known.to(Kind.SCORE)(t, x)
    likelihood = 2 * x * (VALUE - x.square().sum(1, keepdim=True)) / NOISE[0]
    torch.testing.assert_close(pull, likelihood, rtol=0.01, atol=0.01)


BAD: list[tuple[Callable[[], object], str]] = [
    (lambda: Observation(lambda x: x, VALUE, torch.eye(2)), r"`covariance` must have shape \(q, q\)"),
    (lambda: Observation(lambda x: x, VALUE, -NOISE), r"`covariance` must be positive definite"),
    (
        lambda: classified(
            Prediction(TwoSided(), {Kind.VELOCITY: lambda t, x: x, Kind.SCORE: lambda t, x: x}),
            lambda t, x: x,
        ),
        r"classified integrates OneSided interpolants; got TwoSided",
    ),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_refuse(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
