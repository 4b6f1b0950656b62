"""Schroedinger bridges: closed forms, the game between path and drift, and entropic couplings."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from inference import FitSettings, fit
from inference.bridges import (
    BridgeSettings,
    GaussianBridge,
    LearnedPath,
    MaxMin,
    coupled_samples,
    train_bridge,
)
from inference.interpolants import Entropic, independent
from inference.interpolants.field_network import FieldNetwork
from inference.reference_problems import Mixture, gaussian_kl
from inference.samplers import ProbabilityDiffusion, ProbabilityFlow
from sde.noise import NoiseStream
from tests.statistics import assert_mean

F64 = torch.float64
GRID = torch.linspace(0, 1, 101, dtype=F64)


def line(variance: float, mean: float = 0.0) -> Mixture:
    return Mixture.gaussian(torch.tensor([mean], dtype=F64), torch.tensor([[variance]], dtype=F64))


def plane(eps: float = 0.3) -> GaussianBridge:
    """Covariances that do not commute."""
    first = Mixture.gaussian(torch.zeros(2, dtype=F64), torch.tensor([[2.0, 0.6], [0.6, 0.5]], dtype=F64))
    second = Mixture.gaussian(
        torch.tensor([0.5, -1.0], dtype=F64), torch.tensor([[0.4, -0.3], [-0.3, 1.5]], dtype=F64)
    )
    return GaussianBridge(first, second, eps)


@pytest.mark.parametrize(
    ("eps", "cross", "middle", "action"),
    [(0.5, 0.618034, 1.184017, 0.051997), (0.1, None, 1.127494, 0.371362), (2.0, None, 1.743034, 1.029817)],
)
def test_line_has_its_reference_numbers(
    eps: float, cross: float | None, middle: float, action: float
) -> None:
    bridge = GaussianBridge(line(0.5), line(2.0), eps)
    assert bridge.cross_covariance.item() == pytest.approx(-eps + math.sqrt(eps**2 + 1), abs=1e-12)
    if cross is not None:
        assert bridge.cross_covariance.item() == pytest.approx(cross, abs=1e-6)
    assert bridge.law(torch.tensor(0.5)).covariance.item() == pytest.approx(middle, abs=1e-6)
    assert bridge.action.item() == pytest.approx(action, abs=1e-6)


@pytest.mark.parametrize(("eps", "expected"), [(0.5, 0.202253), (0.1, 0.712894), (2.0, 1.049833)])
def test_independent_ends_have_more_action(eps: float, expected: float) -> None:
    """Of the diffusion with the laws of independent ends, by quadrature."""
    t = torch.linspace(0, 1, 20_001, dtype=F64)
    variance = 0.5 * (1 - t) ** 2 + 2 * t**2 + 2 * eps * t * (1 - t)
    half_rate = -0.5 * (1 - t) + 2 * t + eps * (1 - 2 * t)
    action = torch.trapezoid((half_rate - eps) ** 2 / variance, t).item()
    assert action == pytest.approx(expected, abs=1e-6)
    assert action > GaussianBridge(line(0.5), line(2.0), eps).action


def test_coupling_is_that_of_sinkhorn_iterations_of_densities() -> None:
    """The plan of two Gaussians by quadrature on a grid, cost |x - y|^2 and regularisation 4 eps."""
    eps, grid = 0.4, torch.linspace(-9, 9, 500, dtype=F64)
    first, second = line(0.5), line(2.0)
    masses = [(law.log_density(grid[:, None]) + math.log(18 / 499)).exp() for law in (first, second)]
    kernel = (-((grid[:, None] - grid) ** 2) / (4 * eps)).exp()
    left, right = torch.ones_like(grid), torch.ones_like(grid)
    for _ in range(200):
        left = masses[0] / (kernel @ right)
        right = masses[1] / (kernel.T @ left)
    plan = left[:, None] * kernel * right
    found = (plan * grid[:, None] * grid).sum().item()
    assert found == pytest.approx(GaussianBridge(first, second, eps).cross_covariance.item(), abs=1e-6)


def test_bridge_of_matrices_is_a_gradient_field_that_solves_the_equation_of_its_potential() -> None:
    """u = A (x - m) + dm/dt with symmetric A and dA/dt = -A^2: Hamilton, Jacobi and Bellman's equation."""
    bridge, eye = plane(), torch.eye(2, dtype=F64)

    def matrix(t: float) -> Tensor:
        at = torch.tensor(t, dtype=F64)
        return (bridge.drift(at, eye) - bridge.drift(at, 0 * eye)).T

    for t in (0.0, 0.3, 0.8, 1.0):
        torch.testing.assert_close(matrix(t), matrix(t).T, rtol=0, atol=1e-12)
        torch.testing.assert_close(
            torch.linalg.inv(matrix(t)), torch.linalg.inv(matrix(0.0)) + t * eye, rtol=1e-9, atol=1e-9
        )


def test_bridge_is_stationary_among_couplings() -> None:
    """E|x0 - x1|^2 - 2 eps log det of the conditional covariance is least at the coupling of the bridge."""
    bridge = plane()
    first, second = bridge.first.covariances[0], bridge.second.covariances[0]
    cross = bridge.cross_covariance.clone().requires_grad_()
    left = second - cross.T @ torch.linalg.solve(first, cross)
    value = -2 * cross.trace() - 2 * bridge.eps * torch.linalg.slogdet(left).logabsdet
    (gradient,) = torch.autograd.grad(value, cross)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-12)


def test_laws_velocity_and_score_agree_with_the_action_and_each_other() -> None:
    bridge, x = plane(), NoiseStream(0, 0, 5).normals(2, dtype=F64)
    t = torch.tensor(0.37, dtype=F64)
    drift, back = bridge.drift(t, x), bridge.backward_drift(t, x)
    torch.testing.assert_close(drift - back, 2 * bridge.eps * bridge.score(t, x), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(0.5 * (drift + back), bridge.velocity(t, x), rtol=1e-11, atol=1e-11)
    instants = torch.linspace(0, 1, 401, dtype=F64)
    eye, powers = torch.eye(2, dtype=F64), []
    for s in instants:
        zero = bridge.drift(s, bridge.law(s).mean[None])[0]
        matrix = (bridge.drift(s, eye) - bridge.drift(s, 0 * eye)).T
        powers.append(zero.square().sum() + (matrix @ bridge.law(s).covariance @ matrix.T).trace())
    action = torch.trapezoid(torch.stack(powers), instants)
    torch.testing.assert_close(action, bridge.action, rtol=1e-4, atol=0)


def test_flow_of_the_prediction_carries_one_law_to_the_other() -> None:
    bridge, eye = plane(), torch.eye(2, dtype=F64)
    points = torch.cat((0 * eye[:1], eye))
    ends = ProbabilityFlow()(
        bridge.prediction(), points, torch.linspace(0, 1, 401, dtype=F64), NoiseStream(0, 0, 3)
    )
    matrix = (ends[1:] - ends[0]).T
    carried = Mixture.gaussian(ends[0], matrix @ bridge.first.covariance @ matrix.T)
    assert gaussian_kl(carried, bridge.second).item() < 1e-8


def test_diffusion_of_the_prediction_has_the_coupling_of_the_bridge() -> None:
    """By sampling: the mean of x0 x1 is the cross-covariance; at half the diffusivity it is another."""
    bridge, count = GaussianBridge(line(0.5), line(2.0), 0.5), 100_000
    noise = NoiseStream(3, 0, count)
    start = bridge.first.sample(noise)
    ends = ProbabilityDiffusion(0.5)(bridge.prediction(), start, GRID[::2], noise)
    assert_mean(start * ends, bridge.cross_covariance.item(), bias=0.05)
    other = ProbabilityDiffusion(0.25)(bridge.prediction(), start, GRID[::2], noise)
    assert (start * other).mean() - bridge.cross_covariance.item() > 0.05


def test_game_finds_the_bridge_on_the_line() -> None:
    """Least action within 1 %: the excess is of second order in the error of the path."""
    bridge = GaussianBridge(line(0.5), line(2.0), 0.1)
    game = MaxMin(independent(bridge.first.sample, bridge.second.sample), batch=256, seed=0)
    players = nn.ModuleDict(
        {
            "path": LearnedPath(0.1, degree=2),
            "drift": FieldNetwork(1, width=32, depth=2, seed=0, dtype=F64),
        }
    )
    settings = FitSettings(iterations=1000, rate=1e-2, average=0.99)
    trained, _ = fit(players, game, settings=settings, identity={}, progress=False)
    t = torch.linspace(0, 1, 401, dtype=F64)[:, None]
    one, zero = torch.ones_like(t), torch.zeros_like(t)
    base, target = trained.get_submodule("path")(t, one, zero), trained.get_submodule("path")(t, zero, one)
    variance = 0.5 * base.centre**2 + 2 * target.centre**2 + base.variance
    half_rate = 0.5 * base.centre * base.rate + 2 * target.centre * target.rate + base.half_rate
    action = torch.trapezoid(((half_rate - 0.1) ** 2 / variance)[:, 0], t[:, 0]).item()
    exact = bridge.action.item()
    assert exact - 1e-4 < action < 1.01 * exact  # and 0.7129 where it began


def test_learned_path_has_the_right_ends_and_rates() -> None:
    path = LearnedPath(0.3, displacement=_Mix())
    with torch.no_grad():
        path.coefficients += NoiseStream(1, 0, 3).normals(5, dtype=F64)
    base, target = NoiseStream(2, 0, 4).normals(2, dtype=F64), NoiseStream(3, 0, 4).normals(2, dtype=F64)
    ones = torch.ones(4, 1, dtype=F64)
    torch.testing.assert_close(path(0 * ones, base, target).centre, base)
    torch.testing.assert_close(path(ones, base, target).centre, target)
    ahead, here, behind = (path((0.4 + h) * ones, base, target) for h in (1e-6, 0.0, -1e-6))
    torch.testing.assert_close((ahead.centre - behind.centre) / 2e-6, here.rate, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(
        (ahead.variance - behind.variance) / 4e-6, here.half_rate, rtol=1e-8, atol=1e-8
    )


class _Mix(nn.Module):
    """A displacement of rows (t, x0, x1) in the plane."""

    def forward(self, rows: Tensor) -> Tensor:
        return rows[:, :1] ** 2 * rows[:, 1:3] + (rows[:, :1] * rows[:, 3:5]).sin()


def test_coupled_parts_have_the_coupling_of_the_bridge() -> None:
    """Cross-covariance of drawn pairs, against the closed form of what was sampled."""
    base, target = (
        NoiseStream(4, 0, 2048).normals(1, dtype=F64) * 0.5**0.5,
        2**0.5 * NoiseStream(5, 0, 2048).normals(1, dtype=F64),
    )
    first, second = coupled_samples(base, target, Entropic(2.0, 60), size=512, seed=0)
    assert torch.equal(first.sort(0).values, base.sort(0).values)
    bridge = GaussianBridge(line(base.var().item()), line(target.var().item()), 0.5)
    # Given its base point the target has variance 1.24, so that the mean of 2048 products errs by 0.017.
    error = math.sqrt(0.5 * 1.236 / 2048)
    assert abs((first * second).mean().item() - bridge.cross_covariance.item()) < 5 * error


@pytest.mark.slow
def test_trained_bridge_joins_two_laws_forward_and_backward() -> None:
    count = 4096
    base, target = line(0.5).sample(NoiseStream(6, 0, count)), line(2.0, 1.0).sample(NoiseStream(7, 0, count))
    settings = BridgeSettings(
        batch=256, width=48, coupled=2048, fit=FitSettings(iterations=1500, rate=5e-3, average=0.99)
    )
    bridge, _ = train_bridge(base, target, eps=0.5, seed=0, settings=settings, progress=False)
    noise, sampler = NoiseStream(8, 0, 20_000), ProbabilityDiffusion(0.5)
    start = line(0.5).sample(noise)
    ends = sampler(bridge, start, GRID, noise)
    # Training errors come on top of those of the sets of samples, which are 0.02 for means and variances.
    assert abs(ends.mean().item() - 1) < 0.1
    assert ends.var().item() == pytest.approx(2.0, rel=0.1)
    cross = ((start - start.mean()) * (ends - ends.mean())).mean().item()
    assert cross == pytest.approx(0.618034, rel=0.1)
    back = sampler(bridge, line(2.0, 1.0).sample(noise), GRID.flip(0), noise)
    assert abs(back.mean().item()) < 0.1
    assert back.var().item() == pytest.approx(0.5, rel=0.1)


BAD: list[tuple[Callable[[], object], str]] = [
    (lambda: GaussianBridge(line(1), line(1), 0.0), r"`eps` must be positive; got 0.0"),
    (
        lambda: GaussianBridge(line(1), plane().first, 1.0),
        r"`second` must have the 1 dimensions of `first`; got 2",
    ),
    (lambda: LearnedPath(-1.0), r"`eps` must be positive; got -1.0"),
    (lambda: MaxMin(independent(line(1).sample, line(1).sample), 0, 0), r"`batch` must be at least 1; got 0"),
    (
        lambda: coupled_samples(torch.ones(2, 1), torch.ones(2, 1), Entropic(1.0), size=0, seed=0),
        "`size` must be",
    ),
    (lambda: BridgeSettings(coupled=0), r"`coupled` must be a whole number of at least 1; got 0"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_refuse(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_bridge_of_drawn_gaussians_joins_them() -> None:
    """At random Gaussians of dimension 3, the law of the bridge joins what it was given."""
    rng = np.random.default_rng(0)
    matrices = [torch.tensor(a @ a.T + 0.2 * np.eye(3)) for a in rng.standard_normal((2, 3, 3))]
    means = torch.tensor(rng.standard_normal((2, 3)))
    first, second = (Mixture.gaussian(m, c) for m, c in zip(means, matrices, strict=True))
    bridge = GaussianBridge(first, second, 0.7)
    for t, law in ((0.0, first), (1.0, second)):
        found = bridge.law(torch.tensor(t))
        torch.testing.assert_close(found.covariance, law.covariance, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(found.mean, law.mean, rtol=1e-12, atol=1e-12)
