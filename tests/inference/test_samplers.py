"""Samplers against closed forms, exact moments, measured orders and each other."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from inference.interpolants import (
    BrownianBridge,
    Diffusion,
    Fading,
    Kind,
    Linear,
    Mirror,
    OneSided,
    Prediction,
    Quadratic,
    Trigonometric,
    TwoSided,
    VariancePreserving,
)
from inference.reference_problems import Mixture, MixtureProblem
from inference.samplers import (
    BDIA,
    DPMSolver,
    ProbabilityDiffusion,
    ProbabilityFlow,
    Sampler,
    StochasticDPMSolver,
    capped_diffusivity,
    diffusion_equation,
    geometric_times,
    leave_point,
    log_snr_times,
    optimal_diffusivity,
)
from inference.samplers.dpm_solver import _phi
from sde.noise import GivenIncrements, NoiseStream
from sde.solve import solve
from sde.solvers import EulerMaruyama, Heun, Solver
from tests.names import label
from tests.statistics import assert_mean

F64 = torch.float64
GRID = torch.linspace(0, 1, 41, dtype=F64)


def gaussian(mean: float, variance: float) -> Mixture:
    return Mixture.gaussian(torch.tensor([mean], dtype=F64), torch.tensor([[variance]], dtype=F64))


def two_gaussians() -> MixtureProblem:
    """N(-1, 1/2) to N(2, 2) along a straight line with gamma^2 = t (1 - t)."""
    return MixtureProblem(TwoSided(), gaussian(-1, 0.5), gaussian(2, 2))


def three_modes(path: OneSided) -> MixtureProblem:
    means = torch.tensor([[2.0, 0.0], [-1.0, 1.5], [-1.0, -2.0]], dtype=F64)
    spreads = torch.tensor([0.3, 0.5, 0.4], dtype=F64)
    covariances = spreads[:, None, None] ** 2 * torch.eye(2, dtype=F64)
    target = Mixture(torch.tensor([0.5, 0.3, 0.2], dtype=F64), means, covariances)
    return MixtureProblem(path, Mixture.standard(2), target)


DETERMINISTIC: list[Sampler] = [
    ProbabilityFlow(),
    ProbabilityFlow(EulerMaruyama()),
    *(DPMSolver(k, form, m) for k in (1, 2, 3) for form in (Kind.TARGET, Kind.NOISE) for m in (True, False)),
    BDIA(),
    BDIA(0.5),
]
STOCHASTIC: list[Sampler] = [
    ProbabilityDiffusion(0.3),
    ProbabilityDiffusion(0.3, EulerMaruyama()),
    ProbabilityDiffusion(lambda t: t * (1 - t)),
    ProbabilityDiffusion(optimal_diffusivity(OneSided())),
    StochasticDPMSolver(1),
    StochasticDPMSolver(2),
]


@pytest.mark.parametrize("sampler", [*DETERMINISTIC, *STOCHASTIC], ids=label)
@pytest.mark.parametrize(
    "kind", [k for k in Kind if k not in (Kind.BASE, Kind.TRANSPORT, Kind.DRIFT)], ids=lambda k: k.value
)
def test_any_kind_serves_any_sampler(sampler: Sampler, kind: Kind) -> None:
    """The points do not depend on what the network predicts, and their rows not on the batch."""
    exact, noise = three_modes(OneSided()), NoiseStream(1, 0, 20)
    times = torch.linspace(0.05, 0.95, 10, dtype=F64)
    initial = noise.normals(2, dtype=F64)
    found = sampler(exact.prediction(kind), initial, times, noise)
    expected = sampler(exact.prediction(Kind.SCORE), initial, times, noise)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    part = sampler(exact.prediction(kind), initial[7:12], times, noise[7:12])
    torch.testing.assert_close(part, found[7:12], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    "sampler",
    [ProbabilityFlow(), BDIA(), StochasticDPMSolver()]
    + [s for s in DETERMINISTIC if isinstance(s, DPMSolver) and s.order > 1],
    ids=label,
)
def test_samplers_reach_both_ends_of_time(sampler: Sampler) -> None:
    """From the normal base at 0 to the target at 1: mean and variance of a Gaussian, to 6 errors."""
    exact = MixtureProblem(OneSided(), Mixture.standard(1), gaussian(2, 0.49))
    noise, n = NoiseStream(2, 0, 20_000), 20_000
    times = torch.cat(
        (
            torch.zeros(1, dtype=F64),
            log_snr_times(Linear(), 60, first=0.005, last=0.995),
            torch.ones(1, dtype=F64),
        )
    )
    points = sampler(exact.prediction(Kind.TARGET), noise.normals(1, dtype=F64), times, noise)
    assert len(points) == n
    assert_mean(points, 2.0, bias=0.07)
    assert abs((points - 2).square().mean() - 0.49) < 0.49 * 6 * math.sqrt(2 / n)


def moments(eps: float, steps: int, solver: Solver) -> tuple[float, float]:
    """Exact variance at time 1 and correlation of the ends of a linear scheme, from its response."""
    equation = diffusion_equation(two_gaussians().prediction(), eps)
    wiener = torch.zeros(steps + 2, steps, 1, dtype=F64)
    wiener[torch.arange(steps), torch.arange(steps), 0] = 1.0
    start = torch.zeros(steps + 2, 1, dtype=F64)
    start[steps] = 1.0
    times = torch.linspace(0, 1, steps + 1, dtype=F64)
    ends = solve(equation, start, times, GivenIncrements(wiener), solver=solver)[:, -1, 0]
    response, carried = ends[:steps] - ends[-1], ends[steps] - ends[-1]
    variance = carried**2 * 0.5 + response.square().sum() / steps
    return variance.item(), (carried * math.sqrt(0.5) / variance.sqrt()).item()


@pytest.mark.parametrize(
    ("solver", "order", "largest"), [(Heun(), 2.0, 1e-3), (EulerMaruyama(), 1.0, 6e-2)], ids=str
)
def test_diffusion_has_the_weak_order_of_its_solver(solver: Solver, order: float, largest: float) -> None:
    errors = [abs(moments(1.0, steps, solver)[0] - 2) for steps in (20, 30, 45, 70, 100)]
    assert errors[0] < largest
    slope = -np.polyfit(np.log([20, 30, 45, 70, 100]), np.log(errors), 1)[0]
    assert abs(slope - order) < 0.1


@pytest.mark.parametrize(("eps", "expected"), [(0.5, 0.5462930159), (1.0, 0.2984360592), (2.0, 0.0890640814)])
def test_diffusivity_decides_the_correlation_of_the_ends(eps: float, expected: float) -> None:
    """exp of minus the integral of eps over the variance."""
    assert abs(moments(eps, 400, Heun())[1] - expected) < 1e-4


def test_diffusion_keeps_the_law_in_both_directions() -> None:
    exact, n = two_gaussians(), 60_000
    noise = NoiseStream(3, 0, n)
    start, end = exact.base.sample(noise), exact.target.sample(noise.fork("target"))
    sampler, prediction = ProbabilityDiffusion(lambda t: 0.3 + t), exact.prediction()
    forward = sampler(prediction, start, torch.linspace(0, 1, 51, dtype=F64), noise)
    backward = sampler(prediction, end, torch.linspace(1, 0, 51, dtype=F64), noise)
    assert_mean(torch.cat((forward, (forward - 2) ** 2), 1), torch.tensor([2.0, 2.0]), bias=0.15)
    assert_mean(torch.cat((backward, (backward + 1) ** 2), 1), torch.tensor([-1.0, 0.5]), bias=0.06)


@pytest.mark.parametrize("solver", [Heun(), EulerMaruyama()], ids=str)
def test_diffusion_without_diffusivity_is_the_flow_to_the_bit(solver: Solver) -> None:
    exact, noise = two_gaussians(), NoiseStream(4, 0, 50)
    start = exact.base.sample(noise)
    still = ProbabilityDiffusion(0.0, solver)(exact.prediction(), start, GRID, noise)
    assert torch.equal(still, ProbabilityFlow(solver)(exact.prediction(), start, GRID, noise))


@pytest.mark.parametrize(
    "path", [TwoSided(), TwoSided(Trigonometric()), TwoSided(amplitude=BrownianBridge(2.0))], ids=repr
)
def test_flow_of_gaussians_is_the_affine_map_and_returns(path: TwoSided) -> None:
    exact = MixtureProblem(path, gaussian(-1, 0.5), gaussian(2, 2))
    start = torch.tensor([[-2.0], [-1.0], [0.5]], dtype=F64)
    there = ProbabilityFlow()(
        exact.prediction(), start, torch.linspace(0, 1, 401, dtype=F64), NoiseStream(0, 0, 3)
    )
    torch.testing.assert_close(there, 2 + 2 * (start + 1), rtol=0, atol=2e-4)
    back = ProbabilityFlow()(
        exact.prediction(), there, torch.linspace(1, 0, 401, dtype=F64), NoiseStream(0, 0, 3)
    )
    torch.testing.assert_close(back, start, rtol=0, atol=2e-4)


# Columns of the map that C0 = [[2, .6], [.6, .5]] is carried to C1 = [[.4, -.3], [-.3, 1.5]] by.
MAPS = [
    (1.0, [[0.54967024, -0.49672906], [-0.59399670, 2.16081188]]),
    (2.0, [[0.55017840, -0.50179207], [-0.58940872, 2.16009783]]),
]


@pytest.mark.parametrize(("scale", "expected"), MAPS)
def test_flow_between_gaussians_that_do_not_commute(scale: float, expected: list[list[float]]) -> None:
    """It carries one covariance to the other, depends on gamma and is not the optimal transport map."""
    first = torch.tensor([[2.0, 0.6], [0.6, 0.5]], dtype=F64)
    second = torch.tensor([[0.4, -0.3], [-0.3, 1.5]], dtype=F64)
    zero = torch.zeros(2, dtype=F64)
    exact = MixtureProblem(
        TwoSided(amplitude=BrownianBridge(scale)),
        Mixture.gaussian(zero, first),
        Mixture.gaussian(zero, second),
    )
    sampler = ProbabilityFlow(Heun())
    grids = [torch.linspace(0, 1, k + 1, dtype=F64) for k in (300, 600)]
    coarse, fine = (
        sampler(exact.prediction(), torch.eye(2, dtype=F64), grid, NoiseStream(0, 0, 2)) for grid in grids
    )
    matrix = ((4 * fine - coarse) / 3).T
    torch.testing.assert_close(matrix, torch.tensor(expected, dtype=F64), rtol=0, atol=5e-7)
    torch.testing.assert_close(matrix @ first @ matrix.T, second, rtol=0, atol=5e-7)
    assert abs(torch.linalg.det(matrix) - 0.8926785536) < 5e-7
    root = torch.linalg.cholesky(first)
    inner = torch.linalg.eigh(root.T @ second @ root)
    optimal = torch.linalg.solve(
        root.T, inner.eigenvectors @ inner.eigenvalues.sqrt().diag() @ inner.eigenvectors.T
    ) @ torch.linalg.inv(root)
    assert (matrix - optimal).norm() > 0.04


def toy() -> tuple[Prediction, Tensor, Tensor]:
    """Diffusion schedule and three modes: prediction, 32 base points and where the flow carries them."""
    exact = three_modes(OneSided(Diffusion()))
    start = NoiseStream(5, 0, 32).normals(2, dtype=F64)
    velocity = exact.field(Kind.VELOCITY)

    def rate(t: float, x: np.ndarray) -> np.ndarray:
        return velocity(torch.tensor(t, dtype=F64), torch.tensor(x).view(-1, 2)).numpy().ravel()

    end = solve_ivp(rate, (0.0, 1 - 1e-3), start.numpy().ravel(), method="DOP853", rtol=1e-11, atol=1e-11)
    return exact.prediction(Kind.NOISE), start, torch.tensor(end.y[:, -1]).view(-1, 2)


TOY = toy()


def toy_errors(sampler: Sampler, sizes: tuple[int, ...]) -> list[float]:
    """Median errors over the points: those near a boundary of basins would spoil a mean."""
    prediction, start, end = TOY
    errors = []
    for steps in sizes:
        times = log_snr_times(Diffusion(), steps, first=0.0, last=1 - 1e-3)
        found = sampler(prediction, start, times, NoiseStream(0, 0, 32))
        errors.append((found - end).norm(dim=1).median().item())
    return errors


ORDERS = [
    *(
        (DPMSolver(k, form, m), k)
        for k in (1, 2, 3)
        for form in (Kind.TARGET, Kind.NOISE)
        for m in (True, False)
    ),
    (BDIA(1.0), 2),
    (BDIA(0.5), 1),
    (BDIA(0.0), 1),
]


@pytest.mark.parametrize(("sampler", "order"), ORDERS, ids=label)
def test_exponential_integrators_have_their_order(sampler: Sampler, order: int) -> None:
    stages = sampler.order if isinstance(sampler, DPMSolver) and not sampler.multistep else 1
    sizes = (40, 80, 120) if stages > 1 else (80, 160, 320)
    errors = toy_errors(sampler, sizes)
    slope = -np.polyfit(np.log(sizes), np.log(errors), 1)[0]
    assert order - 0.2 < slope < order + (0.45 if order == 3 else 0.2), errors


def test_published_third_order_multistep_is_of_order_two() -> None:
    errors = toy_errors(DPMSolver(3, legacy=True), (80, 320))
    assert 1.8 < math.log(errors[0] / errors[1]) / math.log(4) < 2.2
    assert toy_errors(DPMSolver(3), (320,))[0] < 3e-6 < 1e-5 < errors[1]


def test_data_form_of_order_one_is_ddim() -> None:
    exact, x = three_modes(OneSided()), torch.tensor([[0.3, -0.4]], dtype=F64)
    prediction, ends = exact.prediction(Kind.NOISE), torch.tensor([0.3, 0.5], dtype=F64)
    noise = exact.field(Kind.NOISE)(ends[0], x)
    target = (x - 0.7 * noise) / 0.3
    for form in (Kind.TARGET, Kind.NOISE):
        found = DPMSolver(1, form)(prediction, x, ends, NoiseStream(0, 0, 1))
        torch.testing.assert_close(found, 0.5 * target + 0.5 * noise, rtol=1e-12, atol=1e-12)


def test_phi_functions_satisfy_their_recursion_and_meet_at_the_switch() -> None:
    for k in (1, 2, 3):
        exact = [
            math.fsum(y**j / math.factorial(j + k) for j in range(60))
            for y in (-2.0, -0.1001, 0.0999, 1e-9, 3.0)
        ]
        found = [_phi(k, torch.tensor(y, dtype=F64)).item() for y in (-2.0, -0.1001, 0.0999, 1e-9, 3.0)]
        np.testing.assert_allclose(found, exact, rtol=1e-12)


@pytest.mark.parametrize(
    ("weight", "steps", "tolerance"),
    [(1.0, 10, 1e-12), (1.0, 100, 1e-12), (0.9, 100, 1e-6), (0.5, 10, 1e-10)],
)
def test_bdia_returns(weight: float, steps: int, tolerance: float) -> None:
    prediction, start, _ = TOY
    times = log_snr_times(Diffusion(), steps, first=0.0, last=1 - 1e-3)
    method = BDIA(weight)
    back = method.invert(prediction, method.pair(prediction, start, times), times)
    assert (back - start).abs().max() < tolerance


def test_bdia_returns_in_single_precision() -> None:
    exact, start, _ = TOY
    network = exact.networks[Kind.NOISE]
    prediction = Prediction(
        exact.interpolant, {Kind.NOISE: lambda t, x: network(t.double(), x.double()).float()}
    )
    for steps in (10, 50, 100):
        times = log_snr_times(Diffusion(), steps, first=0.0, last=1 - 1e-3)
        back = BDIA().invert(prediction, BDIA().pair(prediction, start.float(), times), times)
        assert back.dtype == torch.float32
        assert (back - start).abs().max() < 1e-4


def test_ddim_steps_backward_do_not_return() -> None:
    prediction, start, _ = TOY
    times = log_snr_times(Diffusion(), 50, first=0.0, last=1 - 1e-3)
    there = DPMSolver(1)(prediction, start, times, NoiseStream(0, 0, 32))
    back = DPMSolver(1)(prediction, there, times.flip(0), NoiseStream(0, 0, 32))
    assert (back - start).square().mean().sqrt() > 0.05


def forecast_moments(
    eps: Callable[[Tensor], Tensor], times: Tensor, solver: Solver, *, start_late: bool = True
) -> tuple[float, float]:
    """Mean and variance of a forecast of N(0.8 x0, 0.3) from x0 = 1.5, exact for the linear scheme.

    The last two paths are the one without noise and the one with a unit of the first normal.
    """
    steps = len(times) - 1
    path = TwoSided(Quadratic(), Fading())
    exact = MixtureProblem(path, gaussian(1.5, 1e-14), gaussian(1.2, 0.3))
    start = torch.full((steps + 2, 1), 1.5, dtype=F64)
    prediction = Prediction.from_start(path, start, Kind.VELOCITY, exact.field(Kind.VELOCITY))
    first = start
    if start_late:
        still = path.point(times[0], start, prediction.to(Kind.TARGET)(times[0], start), 0 * start)
        normal = torch.zeros_like(start)
        normal[-1] = 1.0
        first = still + path.variance(times[0])[0].sqrt() * normal
    wiener = torch.zeros(steps + 2, steps, 1, dtype=F64)
    wiener[torch.arange(steps), torch.arange(steps), 0] = times.diff().sqrt()
    equation = diffusion_equation(prediction, eps)
    ends = solve(equation, first, times, GivenIncrements(wiener), solver=solver)[:, -1, 0]
    return ends[-2].item(), (ends - ends[-2]).square().sum().item()


FORECASTS: list[tuple[str, Callable[[Tensor], Tensor]]] = [
    ("own", lambda t: 0.5 * (1 - t) ** 2),
    ("Foellmer", lambda t: 0.5 * (1 - t) * (3 - t)),
    ("small", lambda t: 0.5 * (0.3 * (1 - t)) ** 2),
]


@pytest.mark.parametrize(("name", "eps"), FORECASTS, ids=lambda v: v if isinstance(v, str) else "")
def test_forecast_from_a_point_has_the_conditional_law_for_any_diffusivity(
    name: str, eps: Callable[[Tensor], Tensor]
) -> None:
    mean, variance = forecast_moments(eps, geometric_times(400), Heun())
    assert abs(mean - 1.2) < 0.002
    assert abs(variance - 0.3) < 0.002


def test_equal_steps_do_not_converge_for_a_small_diffusivity_from_a_point() -> None:
    """0.347 and 0.341 for a variance of 0.3, with 400 and 1600 steps from the exact law of the first."""
    for steps, expected in ((400, 0.347), (1600, 0.341)):
        times = torch.linspace(0, 1, steps + 1, dtype=F64)[1:]
        assert abs(forecast_moments(FORECASTS[2][1], times, EulerMaruyama())[1] - expected) < 0.002


def test_leaving_the_point_at_once_loses_variance() -> None:
    """The equation has many solutions from the point itself, and a solver finds another one."""
    times = torch.cat((torch.zeros(1, dtype=F64), geometric_times(400)))
    assert forecast_moments(FORECASTS[2][1], times, Heun(), start_late=False)[1] < 0.2


def test_points_that_were_left_have_the_law_of_the_path() -> None:
    path, n = TwoSided(Quadratic(), Fading(2.0)), 50_000
    start, noise = torch.full((n, 1), 1.5, dtype=F64), NoiseStream(7, 0, n)
    prediction = Prediction.from_start(path, start, Kind.TARGET, lambda t, x: 0.8 * start)
    points = leave_point(prediction, start, torch.tensor(0.01), noise)
    assert_mean(points, 0.99 * 1.5 + 1e-4 * 1.2, bias=0.02)
    assert abs(points.var() / (4 * 0.01 * 0.99**2) - 1) < 6 * math.sqrt(2 / n)


def test_optimal_diffusivity_of_a_path_from_a_point_is_that_of_foellmer() -> None:
    """(1 - t)(3 - t) c^2 / 2 for beta = t^2, and (1 - t^2) c^2 / 2 for beta = t."""
    t = torch.linspace(0.05, 0.95, 7, dtype=F64)
    late = optimal_diffusivity(TwoSided(Quadratic(), Fading(1.5)))(t)
    torch.testing.assert_close(late, 1.125 * (1 - t) * (3 - t), rtol=1e-13, atol=0)
    straight = optimal_diffusivity(TwoSided(Linear(), Fading(1.5)))(t)
    torch.testing.assert_close(straight, 1.125 * (1 - t**2), rtol=1e-13, atol=0)


def test_score_of_a_path_from_a_point_follows_from_its_drift() -> None:
    """At s = 0.37 and x = 0.9 it is 1.3725485296, and the published identity holds."""
    path, x, t = (
        TwoSided(Quadratic(), Fading()),
        torch.tensor([[0.9]], dtype=F64),
        torch.tensor(0.37, dtype=F64),
    )
    exact = MixtureProblem(path, gaussian(1.5, 1e-15), gaussian(1.2, 0.3))
    prediction = Prediction.from_start(path, 0 * x + 1.5, Kind.VELOCITY, exact.field(Kind.VELOCITY))
    score = prediction.to(Kind.SCORE)(t, x)
    s = t.item()
    drift = prediction.combine({Kind.VELOCITY: 1.0, Kind.SCORE: 0.5 * (1 - s) ** 2}, t, x)
    beta, beta_rate, sigma = s**2, 2 * s, 1 - s
    published = (beta * drift - beta_rate * x - (-beta - beta_rate * sigma) * 1.5) / (
        s * sigma * (beta_rate * sigma + beta)
    )
    torch.testing.assert_close(score, published, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(score, exact.field(Kind.SCORE)(t, x), rtol=1e-10, atol=0)
    assert abs(score.item() - 1.3725485296) < 1e-9


def test_mirror_diffusion_keeps_its_law_and_forgets_its_start() -> None:
    exact, n = MixtureProblem(Mirror(BrownianBridge(10.0)), gaussian(0, 1), gaussian(2, 2)), 20_000
    noise = NoiseStream(6, 0, n)
    start = exact.target.sample(noise)
    sampler = ProbabilityDiffusion(10.0)
    points = sampler(
        exact.prediction(Kind.NOISE), start, torch.linspace(1e-3, 1 - 1e-3, 201, dtype=F64), noise
    )
    assert_mean(torch.cat((points, (points - 2) ** 2), 1), torch.tensor([2.0, 2.0]), bias=0.3)
    assert abs(torch.corrcoef(torch.cat((start, points), 1).T)[0, 1]) < 0.1


def test_grids_have_exact_ends() -> None:
    times = log_snr_times(VariancePreserving(), 7, first=0.01, last=0.9)
    assert times[0] == 0.01
    assert times[-1] == 0.9
    steps = VariancePreserving().log_snr(times).diff()
    torch.testing.assert_close(steps, steps.mean().expand(7), rtol=1e-12, atol=0)
    assert geometric_times(5)[[0, -1]].tolist() == [pytest.approx(1e-4, rel=1e-12), 1]


ONE = torch.zeros(1, 1, dtype=F64)
PREDICTION = Prediction(OneSided(), {Kind.TARGET: lambda t, x: x})
STREAM = NoiseStream(0, 0, 1)
BAD: list[tuple[Callable[[], object], str]] = [
    (lambda: DPMSolver(4), r"`order` must be 1, 2 or 3; got 4"),
    (lambda: DPMSolver(2, Kind.SCORE), r"`form` must be Kind.TARGET or Kind.NOISE"),
    (lambda: DPMSolver()(PREDICTION, ONE, GRID.flip(0), STREAM), r"`times` must begin below 1; got 1.0"),
    (
        lambda: DPMSolver()(two_gaussians().prediction(), ONE, GRID, STREAM),
        r"DPMSolver integrates OneSided .*; got TwoSided",
    ),
    (lambda: StochasticDPMSolver(3), r"`order` must be 1 or 2; got 3"),
    (
        lambda: StochasticDPMSolver()(PREDICTION, ONE, GRID.flip(0), STREAM),
        r"`times` must increase for StochasticDPMSolver",
    ),
    (lambda: BDIA(1.5), r"`weight` must lie in \[0, 1\]; got 1.5"),
    (
        lambda: BDIA(0.5).invert(PREDICTION, (ONE, ONE), torch.linspace(0, 0.9, 51)),
        r"`weight` must not amplify rounding .* loses a relative 0.1",
    ),
    (lambda: BDIA(0.0).invert(PREDICTION, (ONE, ONE), GRID), r"`weight` must not amplify rounding"),
    (
        lambda: ProbabilityFlow()(PREDICTION, ONE, torch.tensor([0.5, 0.2, 0.3]), STREAM),
        r"`times` must increase or decrease strictly",
    ),
    (
        lambda: ProbabilityFlow()(PREDICTION, ONE, torch.tensor([0.5, 1.2]), STREAM),
        r"`times` must lie in \[0, 1\]",
    ),
    (lambda: diffusion_equation(PREDICTION, -1.0), r"`eps` must be at least 0; got -1.0"),
    (lambda: log_snr_times(Linear(), 0), r"`num_steps` must be at least 1; got 0"),
    (lambda: log_snr_times(Linear(), 3, first=0.0), r"`first` and `last` must have a finite, growing"),
    (lambda: geometric_times(3, first=1.0), r"`first` must lie in \(0, 1\); got 1.0"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_samplers_refuse(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_capped_diffusivity_is_followed_where_a_constant_one_is_not() -> None:
    """To a law far sharper than a step: the pull at the end is a thousand times what 50 steps can follow."""
    sharp = Mixture.gaussian(
        torch.ones(1, dtype=torch.float64), torch.full((1, 1), 1e-6, dtype=torch.float64)
    )
    exact = MixtureProblem(OneSided(), Mixture.standard(1), sharp)
    noise, times = NoiseStream(3, 0, 500), torch.linspace(0, 1, 51, dtype=torch.float64)
    start = noise.normals(1, dtype=torch.float64)
    ends = [
        ProbabilityDiffusion(eps)(exact.prediction(), start, times, noise)
        for eps in (capped_diffusivity(OneSided(), 1.0, 0.02), 1.0)
    ]
    assert (ends[0] - 1).abs().max() < 0.2  # ten deviations of the path one step before its end
    assert not (ends[1] - 1).abs().max() < 10


def test_capped_diffusivity_refuses_a_step_without_length() -> None:
    with pytest.raises(ValueError, match="`step` must be positive; got 0"):
        capped_diffusivity(OneSided(), 1.0, 0.0)
