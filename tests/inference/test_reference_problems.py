"""Reference problems against quadrature, samples, other closed forms and their own equations."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad, solve_ivp
from scipy.linalg import expm
from torch import Tensor

from inference.interpolants import (
    BrownianBridge,
    Fading,
    Interpolant,
    Kind,
    Linear,
    Mirror,
    OneSided,
    Quadratic,
    Trigonometric,
    TwoSided,
    matching_loss,
)
from inference.reference_problems import CoupledGaussian, LinearProcess, Mixture, MixtureProblem, gaussian_kl
from inference.samplers import diffusion_equation
from sde.noise import GivenIncrements, NoiseStream
from sde.solve import solve
from sde.solvers import Heun
from tests.statistics import assert_mean

F64 = torch.float64


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=F64)


def gaussian(mean: float, variance: float) -> Mixture:
    return Mixture.gaussian(torch.tensor([mean], dtype=F64), torch.tensor([[variance]], dtype=F64))


def random_covariance(rng: np.random.Generator, d: int) -> Tensor:
    factor = rng.standard_normal((d, d))
    return torch.tensor(factor @ factor.T + 0.3 * np.eye(d))


def pairs_of_one_dimension(r: float = 0.6) -> CoupledGaussian:
    """N(-1, 1/2) and N(2, 2) with a correlation."""
    joint = torch.tensor([[0.5, r], [r, 2.0]], dtype=F64)
    return CoupledGaussian(TwoSided(), torch.tensor([-1.0], dtype=F64), torch.tensor([2.0], dtype=F64), joint)


def drawn_pairs(seed: int, path: TwoSided | None = None, d: int = 2) -> CoupledGaussian:
    rng = np.random.default_rng(seed)
    means = torch.tensor(rng.standard_normal((2, d)))
    return CoupledGaussian(path or TwoSided(), means[0], means[1], random_covariance(rng, 2 * d))


def process(seed: int, d: int = 2) -> LinearProcess:
    rng = np.random.default_rng(seed)
    matrix = torch.tensor(rng.standard_normal((d, d)) - 2.5 * np.eye(d))
    return LinearProcess(
        matrix, torch.tensor(rng.standard_normal(d)), torch.tensor(rng.standard_normal((d, d)))
    )


FLOORS = [
    (Kind.VELOCITY, -4.7965501589),
    (Kind.TRANSPORT, -4.8972777381),
    (Kind.SCORE, -0.6045997881),
    (Kind.NOISE, -0.0992489895),
]


@pytest.mark.parametrize(("kind", "floor"), FLOORS, ids=str)
def test_floors_of_losses_are_the_reference_values(kind: Kind, floor: float) -> None:
    """N(-1, 1/2) to N(2, 2), gamma^2 = t (1 - t)."""
    assert abs(MixtureProblem(TwoSided(), gaussian(-1, 0.5), gaussian(2, 2)).loss_floor(kind) - floor) < 1e-9


@pytest.mark.parametrize(
    "path", [OneSided(Trigonometric()), TwoSided(Linear(), Fading()), Mirror()], ids=repr
)
def test_floors_of_drawn_gaussians_are_the_mean_losses_of_their_fields(path: Interpolant) -> None:
    rng, n = np.random.default_rng(1), 8000
    base = Mixture.standard(2)
    if isinstance(path, TwoSided):
        base = Mixture.gaussian(torch.tensor(rng.standard_normal(2)), random_covariance(rng, 2))
    exact = MixtureProblem(path, base, Mixture.gaussian(base.means[0] + 1, random_covariance(rng, 2)))
    noise = NoiseStream(1, 0, n)
    first, last = exact.base.sample(noise.fork("base")), exact.target.sample(noise.fork("target"))
    latent, t = noise.normals(2, dtype=F64), noise.fork("time").uniforms(1, dtype=F64)
    ends = {"base": first, "target": last, "latent": first if isinstance(path, OneSided) else latent}
    for kind in (Kind.VELOCITY, Kind.NOISE, Kind.TARGET):
        losses = matching_loss(exact.field(kind), kind, path, t, **ends)
        assert_mean(losses, exact.loss_floor(kind), bias=1.0)


def test_floor_of_a_mixture_is_refused() -> None:
    many = Mixture(torch.ones(2) / 2, torch.zeros(2, 1), torch.ones(2, 1, 1))
    with pytest.raises(ValueError, match="must be Gaussians; got a mixture"):
        MixtureProblem(TwoSided(), many, many).loss_floor(Kind.SCORE)


@pytest.mark.parametrize("kind", [k for k in Kind if k is not Kind.ROTATION], ids=lambda k: k.value)
def test_fields_without_correlation_are_those_of_independent_ends(kind: Kind) -> None:
    rng = np.random.default_rng(2)
    first, last = random_covariance(rng, 2), random_covariance(rng, 2)
    means = torch.tensor(rng.standard_normal((2, 2)))
    free = CoupledGaussian(TwoSided(), means[0], means[1], torch.block_diag(first, last))
    known = MixtureProblem(TwoSided(), Mixture.gaussian(means[0], first), Mixture.gaussian(means[1], last))
    t, x = number(0.37), torch.tensor(rng.standard_normal((5, 2)))
    torch.testing.assert_close(free.field(kind)(t, x), known.field(kind)(t, x), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("given_start", [False, True])
@pytest.mark.parametrize("kind", [k for k in Kind if k not in (Kind.ROTATION,)], ids=lambda k: k.value)
def test_fields_of_pairs_minimise_their_losses(kind: Kind, given_start: bool) -> None:
    """Of all affine changes of the field none lowers the loss: the gradient is zero within its error."""
    if kind is Kind.BASE and given_start:
        pytest.skip("the base is known")
    exact, n = drawn_pairs(3), 40_000
    noise = NoiseStream(3, 0, n)
    base, target = exact.sample(noise)
    field = (exact.given(base) if given_start else exact).field(kind)
    latent = noise.fork("latent").normals(2, dtype=F64)
    t = torch.full((n, 1), 0.37, dtype=F64)
    weights = torch.zeros(n, 3, 2, dtype=F64, requires_grad=True)

    def changed(s: Tensor, x: Tensor) -> Tensor:
        seen = torch.stack((torch.ones_like(x[:, 0]), x[:, 0], base[:, 1] if given_start else x[:, 1]), 1)
        return field(number(0.37), x) + (seen[..., None] * weights).sum(1)

    losses = matching_loss(changed, kind, exact.interpolant, t, base=base, target=target, latent=latent)
    (slopes,) = torch.autograd.grad(losses.sum(), weights)
    assert_mean(slopes.flatten(1), 0.0, bias=1.0)


def test_given_the_base_the_law_at_the_end_is_conditional() -> None:
    """Mean and covariance of the target given the base, from the density of both over that of the base."""
    exact, start = drawn_pairs(4), torch.tensor([[0.3, -0.7]], dtype=F64)
    point = exact.given(start)
    joint = Mixture.gaussian(torch.cat((exact.base, exact.target)), exact.covariance)
    marginal = Mixture.gaussian(exact.base, exact.covariance[:2, :2])
    conditional = Mixture.gaussian(point.mean[0], point.covariance)
    x = torch.tensor(np.random.default_rng(5).standard_normal((6, 2)))
    expected = joint.log_density(torch.cat((start.expand(6, 2), x), 1)) - marginal.log_density(start)
    torch.testing.assert_close(conditional.log_density(x), expected, rtol=1e-11, atol=1e-11)


def moments(exact: CoupledGaussian, eps: float, steps: int = 400) -> tuple[float, float]:
    """Variance at time 1 and correlation of the ends of the unconditional diffusion, from its response."""
    wiener = torch.zeros(steps + 2, steps, 1, dtype=F64)
    wiener[torch.arange(steps), torch.arange(steps), 0] = 1.0
    start = torch.zeros(steps + 2, 1, dtype=F64)
    start[steps] = 1.0
    times, equation = torch.linspace(0, 1, steps + 1, dtype=F64), diffusion_equation(exact.prediction(), eps)
    ends = solve(equation, start, times, GivenIncrements(wiener), solver=Heun())[:, -1, 0]
    response, carried = ends[:steps] - ends[-1], ends[steps] - ends[-1]
    variance = carried**2 * 0.5 + response.square().sum() / steps
    return variance.item(), (carried * math.sqrt(0.5) / variance.sqrt()).item()


@pytest.mark.parametrize(("eps", "listed"), [(0.0, 1.0), (0.5, 0.616330), (1.0, 0.379863)])
def test_unconditional_diffusion_has_a_correlation_of_its_own(eps: float, listed: float) -> None:
    """exp of minus the integral of eps over the variance, whatever the pairs; the law at 1 is right."""
    exact = pairs_of_one_dimension()
    rate = quad(lambda t: eps / exact.moments(number(t))[1].item(), 0, 1)[0]
    variance, correlation = moments(exact, eps)
    assert abs(math.exp(-rate) - listed) < 1e-6
    assert abs(correlation - listed) < 1e-4
    assert abs(variance - 2) < 1e-3


@pytest.mark.parametrize("seed", [6, 7])
def test_transition_is_the_solution_of_the_moment_equations(seed: int) -> None:
    linear, lag = process(seed), 0.7
    a, shift, b = (part.numpy() for part in (linear.matrix, linear.shift, linear.noise))
    found = linear.transition(lag)
    np.testing.assert_allclose(found.matrix.numpy(), expm(lag * a), rtol=1e-12)

    def rate(_: float, state: np.ndarray) -> np.ndarray:
        covariance = state[2:].reshape(2, 2)
        return np.concatenate((a @ state[:2] + shift, (a @ covariance + covariance @ a.T + b @ b.T).ravel()))

    end = solve_ivp(rate, (0, lag), np.zeros(6), rtol=1e-11, atol=1e-12).y[:, -1]
    np.testing.assert_allclose(found.shift.numpy(), end[:2], rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(found.covariance.numpy().ravel(), end[2:], rtol=1e-8, atol=1e-10)


def test_stationary_law_stays_and_is_reached() -> None:
    linear = process(8)
    law = linear.stationary()
    after = linear.after(law, 0.4)
    torch.testing.assert_close(after.means, law.means, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(after.covariances, law.covariances, rtol=1e-11, atol=1e-12)
    far = linear.after(Mixture.standard(2), 40.0)
    torch.testing.assert_close(far.covariances, law.covariances, rtol=1e-9, atol=1e-10)
    with pytest.raises(ValueError, match="negative real part"):
        LinearProcess(torch.eye(1), torch.zeros(1), torch.eye(1)).stationary()


def test_paths_of_the_equation_have_the_transition() -> None:
    linear, n, lag = process(9), 20_000, 0.5
    start = torch.tensor([[0.5, -1.0]], dtype=F64).expand(n, 2)
    times = torch.linspace(0, lag, 2, dtype=F64)
    ends = solve(linear.equation(), start, times, NoiseStream(9, 0, n), solver=Heun(), substeps=40)[:, -1]
    law = linear.after(Mixture.gaussian(start[0], 1e-14 * torch.eye(2, dtype=F64)), lag)
    assert_mean(ends, law.mean, bias=0.3)
    centred = ends - law.mean
    products = (centred[:, :, None] * centred[:, None]).flatten(1)
    assert_mean(products, law.covariance.flatten(), bias=0.6)


def test_divergence_of_forecasts_is_the_mean_log_ratio_of_densities() -> None:
    first, second, n = process(10), process(11), 100_000
    start = torch.tensor([[0.5, -1.0]], dtype=F64)
    point = first.forecast(start, 0.5, TwoSided())
    ends = Mixture.gaussian(point.mean[0], point.covariance).sample(NoiseStream(10, 0, n))
    many = start.expand(n, 2)
    ratio = first.log_density(many, ends, 0.5) - second.log_density(many, ends, 0.5)
    expected = first.divergence(second, start, 0.5)
    assert expected.item() > 0.05
    assert_mean(ratio[:, None], expected, bias=0.2 * expected.item() + 0.05)


def test_path_between_instants_is_that_of_the_forecast_given_the_state() -> None:
    linear, path = process(12), TwoSided(Quadratic(), Fading())
    law, start = linear.stationary(), torch.tensor([[0.2, 0.9], [-1.0, 0.4]], dtype=F64)
    pairs, points = linear.between(law, 0.6, path), linear.forecast(start, 0.6, path)
    torch.testing.assert_close(pairs.given(start).mean, points.mean, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(pairs.given(start).covariance, points.covariance, rtol=1e-9, atol=1e-12)
    t = number(0.8)
    for kind in (Kind.DRIFT, Kind.SCORE):
        found = points.prediction().to(kind)(t, start + 0.3)
        torch.testing.assert_close(found, points.field(kind)(t, start + 0.3), rtol=1e-9, atol=1e-9)
    ends = [Mixture.gaussian(*linear.between(law, 0.6, path).moments(number(s))) for s in (0.0, 1.0)]
    assert all(abs(gaussian_kl(end, law)) < 1e-10 for end in ends)


def test_pairs_refuse() -> None:
    zero = torch.zeros(1)
    with pytest.raises(ValueError, match=r"`covariance` must have shape \(2, 2\); got \(3, 3\)"):
        CoupledGaussian(TwoSided(), zero, zero, torch.eye(3))
    with pytest.raises(ValueError, match="`covariances` must be positive definite"):
        CoupledGaussian(TwoSided(), zero, zero, torch.ones(2, 2))
    with pytest.raises(ValueError, match="`kind` must be one of TwoSided's; got rotation"):
        CoupledGaussian(TwoSided(), zero, zero, torch.eye(2)).field(Kind.ROTATION)
    law = Mixture.standard(1)
    drift = MixtureProblem(Mirror(BrownianBridge()), law, law).field(Kind.DRIFT)
    with pytest.raises(ValueError, match="`kind` must be one of Mirror's; got drift"):
        drift(number(0.5), torch.zeros(1, 1))
    with pytest.raises(ValueError, match="`lag` must be positive; got 0"):
        LinearProcess(-torch.eye(1), zero, torch.eye(1)).transition(0)
