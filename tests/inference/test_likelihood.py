"""Log-densities against closed forms, quadrature and their own error bars."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from inference.interpolants import BrownianBridge, Kind, OneSided, Prediction, Trigonometric, TwoSided
from inference.likelihood import (
    LogDensity,
    cross_entropy,
    diffusion_log_density,
    divergence,
    flow_log_density,
    reversal_log_density,
    sampler_log_density,
)
from inference.reference_problems import Mixture, MixtureProblem
from sde.noise import NoiseStream

F64 = torch.float64
ONE = torch.tensor([[1.0]], dtype=F64)
TIMES = torch.linspace(0, 1, 101, dtype=F64)


def gaussian(mean: float, variance: float) -> Mixture:
    return Mixture.gaussian(torch.tensor([mean], dtype=F64), torch.tensor([[variance]], dtype=F64))


G1 = MixtureProblem(TwoSided(), gaussian(-1, 0.5), gaussian(2, 2))
LOG_RHO = -1.5155121235  # of N(2, 2) at 1


def plane(amplitude: float) -> MixtureProblem:
    """Gaussians in the plane whose covariances do not commute."""
    first = torch.tensor([[2.0, 0.6], [0.6, 0.5]], dtype=F64)
    second = torch.tensor([[0.4, -0.3], [-0.3, 1.5]], dtype=F64)
    mean = torch.tensor([0.5, -1.0], dtype=F64)
    path = TwoSided(amplitude=BrownianBridge(amplitude))
    return MixtureProblem(path, Mixture.gaussian(0 * mean, first), Mixture.gaussian(mean, second))


def test_divergence_is_the_trace_of_the_jacobian() -> None:
    exact, x = plane(1.0), torch.tensor(np.random.default_rng(0).standard_normal((5, 2)))
    velocity, t = exact.field(Kind.VELOCITY), torch.tensor(0.4, dtype=F64)
    value, found = divergence(velocity, t, x)
    torch.testing.assert_close(value, velocity(t, x), rtol=1e-14, atol=0)
    for row in range(5):
        jacobian = torch.func.jacrev(lambda y: velocity(t, y[None])[0])(x[row])
        torch.testing.assert_close(found[0, row], jacobian.trace(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("amplitude", [0.5, 1.0, 2.0])
def test_flow_gives_the_density_of_the_target(amplitude: float) -> None:
    """The same for every gamma: log N((1, 1); (.5, -1), C1) = -4.0257145937."""
    exact = plane(amplitude)
    values = [
        flow_log_density(
            exact.prediction(),
            torch.ones(1, 2, dtype=F64),
            exact.base.log_density,
            torch.linspace(0, 1, k + 1),
        ).value.item()
        for k in (100, 200)
    ]
    assert abs((4 * values[1] - values[0]) / 3 + 4.0257145937) < 1e-6


def test_flow_density_has_the_gradient_of_the_target() -> None:
    exact = MixtureProblem(OneSided(Trigonometric()), Mixture.standard(1), gaussian(2, 0.49))
    point = torch.tensor([[1.3]], dtype=F64, requires_grad=True)
    flow_log_density(exact.prediction(), point, exact.base.log_density, TIMES).value.sum().backward()
    assert point.grad is not None
    assert abs(point.grad.item() - 0.7 / 0.49) < 1e-3


@pytest.mark.parametrize("num_probes", [0, 3])
def test_flow_density_has_the_gradient_of_its_network(num_probes: int) -> None:
    """Against differences, with the same probes on both sides."""
    scale = torch.tensor([0.7, -0.3], dtype=F64, requires_grad=True)
    points, noise = torch.ones(4, 2, dtype=F64), NoiseStream(3, 0, 4)

    def value(numbers: Tensor) -> Tensor:
        field = Prediction(
            OneSided(), {Kind.VELOCITY: lambda t, x: (x * numbers).tanh() + x.flip(1) ** 2 / 9}
        )
        normal = Mixture.standard(2).log_density
        times = torch.linspace(0, 1, 9, dtype=F64)
        found = flow_log_density(field, points, normal, times, noise=noise, num_probes=num_probes)
        return found.value.mean()

    (gradient,) = torch.autograd.grad(value(scale), scale)
    for k in range(2):
        step = torch.zeros(2, dtype=F64)
        step[k] = 1e-5
        difference = (value(scale.detach() + step) - value(scale.detach() - step)) / 2e-5
        assert gradient[k].item() == pytest.approx(difference.item(), rel=1e-6)


def hutchinson(num_probes: int, seeds: int) -> LogDensity:
    exact = plane(1.0)
    points = torch.ones(seeds, 2, dtype=F64)
    return flow_log_density(
        exact.prediction(),
        points,
        exact.base.log_density,
        torch.linspace(0, 1, 41, dtype=F64),
        noise=NoiseStream(1, 0, seeds),
        num_probes=num_probes,
    )


def test_probes_have_the_spread_of_the_closed_form() -> None:
    """Deviation 1.0130 of one Rademacher probe, from the off-diagonal of the integrated Jacobian."""
    spread = hutchinson(1, 4000).value.std().item()
    assert abs(spread / 1.0130020953 - 1) < 0.05
    assert hutchinson(1, 2).standard_error.isnan().all()
    wide, narrow = hutchinson(4, 1000).value.std(), hutchinson(16, 1000).value.std()
    assert 1.7 < wide / narrow < 2.3


def test_intervals_of_probes_cover() -> None:
    """95% intervals by Student's law over 32 probes cover 92% to 98% of the time (400 cases)."""
    found = hutchinson(32, 400)
    covered = ((found.value + 4.0257145937).abs() < 2.04 * found.standard_error).double().mean()
    assert 0.92 <= covered <= 0.98


def test_diffusion_density_agrees_within_its_error() -> None:
    found = diffusion_log_density(
        G1.prediction(), ONE, G1.base.log_density, TIMES, NoiseStream(2, 0, 1), eps=1.0, num_paths=40_000
    )
    assert found.standard_error < 0.015
    assert abs(found.value - LOG_RHO) < 5 * found.standard_error
    assert 4e3 < found.effective_samples < 4e4
    assert found.bound < found.value - 1  # Jensen's bound is of no use here


def test_jensen_gap_is_the_closed_form() -> None:
    """exp(2 E) - 1 - E in the mean over the target, with E the integral of eps over the variance."""
    n, eps = 20_000, 0.25
    exact = eps * 1.2091995762
    points = G1.target.sample(NoiseStream(3, 0, n))
    found = diffusion_log_density(
        G1.prediction(), points, G1.base.log_density, TIMES, NoiseStream(4, 0, n), eps=eps, num_paths=1
    )
    gap = G1.target.log_density(points) - found.bound
    assert abs(gap.mean() - (math.exp(2 * exact) - 1 - exact)) < 5 * gap.std() / math.sqrt(n)
    assert gap.std() / math.sqrt(n) < 0.02


def test_martingale_takes_the_variance_away() -> None:
    """Deviations of a path at 50, 200 and 800 steps halve; without the martingale they stay at 1.4."""
    spreads = []
    for steps in (50, 200, 800):
        found = reversal_log_density(
            G1.prediction(),
            ONE,
            G1.base.log_density,
            torch.linspace(0, 1, steps + 1, dtype=F64),
            NoiseStream(5, 0, 1),
            eps=1.0,
            num_paths=1500,
        )
        spreads.append(found.standard_error.item() * math.sqrt(1500))
        assert abs(found.value.item() - LOG_RHO) < 0.6 / steps**0.5
    np.testing.assert_allclose(spreads, [0.263, 0.131, 0.065], rtol=0.1)


def euler_density(points: np.ndarray, eps: float, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Density of the sampler by Chapman--Kolmogorov quadrature on a grid, and that of the target."""
    exact = modes()
    grid = torch.linspace(-9, 9, 901, dtype=F64)
    density, h = exact.base.log_density(grid[:, None]).exp(), 1 / steps
    for k in range(steps):
        t = torch.tensor(k * h, dtype=F64)
        drift = exact.prediction().combine({Kind.VELOCITY: 1.0, Kind.SCORE: eps}, t, grid[:, None])[:, 0]
        moved, ends = grid + h * drift, grid if k + 1 < steps else torch.tensor(points)
        kernel = torch.exp(-((ends[:, None] - moved) ** 2) / (4 * eps * h)) / math.sqrt(4 * math.pi * eps * h)
        density = kernel @ density * float(grid[1] - grid[0])
    return density.log().numpy(), exact.target.log_density(torch.tensor(points)[:, None]).numpy()


def modes() -> MixtureProblem:
    means = torch.tensor([[-2.0], [1.5]], dtype=F64)
    covariances = torch.tensor([[[0.25]], [[0.64]]], dtype=F64)
    target = Mixture(torch.tensor([0.6, 0.4], dtype=F64), means, covariances)
    return MixtureProblem(TwoSided(), Mixture.standard(1), target)


def test_sampler_density_is_that_of_the_steps_not_of_the_target() -> None:
    points = np.array([-2.0, 0.0, 1.5, 4.0, *np.random.default_rng(6).uniform(-3, 3, 1)])
    quadrature, target = euler_density(points, 0.5, 25)
    np.testing.assert_allclose(quadrature[:4], [-0.77703, -3.17570, -1.63208, -6.61580], atol=2e-5)
    exact = modes()
    found = sampler_log_density(
        exact.prediction(),
        torch.tensor(points)[:, None],
        exact.base.log_density,
        torch.linspace(0, 1, 26, dtype=F64),
        NoiseStream(7, 0, 5),
        eps=0.5,
        num_paths=12_000,
    )
    gap = (found.value.numpy() - quadrature) / found.standard_error.numpy()
    assert np.abs(gap).max() < 5
    assert found.standard_error.max() < 0.01
    assert np.abs(quadrature - target)[:4].min() > 0.015
    assert (found.bound < found.value).all()


def test_sampler_density_with_a_diffusivity_of_time() -> None:
    """Weights of mean one against the proposal: the density integrates to one over a fine grid of points."""
    exact, grid = modes(), torch.linspace(-6, 6, 121, dtype=F64)
    found = sampler_log_density(
        exact.prediction(),
        grid[:, None],
        exact.base.log_density,
        torch.linspace(0, 1, 11, dtype=F64),
        NoiseStream(8, 0, 121),
        eps=lambda t: 0.2 + t,
        num_paths=2000,
    )
    assert abs(found.value.exp().sum() * 0.1 - 1) < 0.01


def test_estimates_do_not_depend_on_the_batch() -> None:
    points, noise = G1.target.sample(NoiseStream(9, 0, 6)), NoiseStream(9, 0, 6)
    coarse = torch.linspace(0, 1, 6, dtype=F64)
    for estimate in (diffusion_log_density, reversal_log_density, sampler_log_density):
        whole = estimate(G1.prediction(), points, G1.base.log_density, coarse, noise, eps=0.3, num_paths=7)
        part = estimate(
            G1.prediction(), points[2:4], G1.base.log_density, coarse, noise[2:4], eps=0.3, num_paths=7
        )
        torch.testing.assert_close(part.value, whole.value[2:4], rtol=1e-12, atol=1e-12)


def test_cross_entropy_parts_its_errors() -> None:
    value = torch.tensor([-1.0, -3.0, -1.0, -3.0], dtype=F64)
    found = cross_entropy(LogDensity(value, torch.full_like(value, 0.2), value, value))
    assert found == (2.0, pytest.approx(math.sqrt(4 / 3) / 2), pytest.approx(0.1))


SHIFT = Prediction(OneSided(), {Kind.VELOCITY: lambda t, x: 3 + 0 * x})
BAD: list[tuple[Callable[[], object], str]] = [
    (
        lambda: flow_log_density(SHIFT, ONE, G1.base.log_density, TIMES.flip(0)),
        r"`times` must increase, with the points at the last one",
    ),
    (
        lambda: flow_log_density(SHIFT, ONE, G1.base.log_density, TIMES, num_probes=2),
        r"`noise` must be given with probes",
    ),
    (
        lambda: flow_log_density(SHIFT, ONE[0], G1.base.log_density, TIMES),
        r"`points` must have shape \(n, d\); got \(1,\)",
    ),
    (
        lambda: reversal_log_density(
            SHIFT, ONE, G1.base.log_density, TIMES, NoiseStream(0, 0, 2), eps=1.0, num_paths=1
        ),
        r"`noise` must hold one sample per point, 1; got 2",
    ),
    (
        lambda: sampler_log_density(
            SHIFT, ONE, G1.base.log_density, TIMES, NoiseStream(0, 0, 1), eps=1.0, num_paths=0
        ),
        r"`num_paths` must be at least 1; got 0",
    ),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_likelihoods_refuse(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_normal_target_is_never_far() -> None:
    """Random Gaussians drawn from a seed: the flow's density is theirs."""
    rng = np.random.default_rng(10)
    for _ in range(3):
        factor, mean = rng.standard_normal((2, 2)), torch.tensor(rng.standard_normal(2))
        covariance = torch.tensor(factor @ factor.T + 0.3 * np.eye(2))
        exact = MixtureProblem(OneSided(), Mixture.standard(2), Mixture.gaussian(mean, covariance))
        points: Tensor = torch.tensor(rng.standard_normal((4, 2)))
        found = flow_log_density(exact.prediction(), points, exact.base.log_density, TIMES).value
        torch.testing.assert_close(found, exact.target.log_density(points), rtol=0, atol=5e-3)
