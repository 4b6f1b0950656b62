"""Rectified flows, PFGM++ with its Gaussian limit, and learned solvers."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from inference.interpolants import Diffusion, Kind, OneSided, Prediction
from inference.reference_problems import Mixture, MixtureProblem
from inference.samplers import (
    DPMSolver,
    ProbabilityFlow,
    StudentNoise,
    denoising_flow,
    fit_solver,
    log_snr_times,
    reflow,
    straightness,
)
from sde.noise import NoiseStream
from sde.solvers import EulerMaruyama
from tests.statistics import assert_mean

F64 = torch.float64
GRID = torch.linspace(0, 1, 101, dtype=F64)


def three_modes() -> MixtureProblem:
    means = torch.tensor([[2.0, 0.0], [-1.0, 1.5], [-1.0, -2.0]], dtype=F64)
    spreads = torch.tensor([0.3, 0.5, 0.4], dtype=F64)
    covariances = spreads[:, None, None] ** 2 * torch.eye(2, dtype=F64)
    target = Mixture(torch.tensor([0.5, 0.3, 0.2], dtype=F64), means, covariances)
    return MixtureProblem(OneSided(), Mixture.standard(2), target)


def test_one_euler_step_of_independent_pairs_is_the_mean() -> None:
    """So its distance from the target is the root of the trace of the covariance, 2.00661."""
    exact, start = three_modes(), NoiseStream(0, 0, 100).normals(2, dtype=F64)
    step = ProbabilityFlow(EulerMaruyama())(exact.prediction(), start, GRID[[0, -1]], NoiseStream(0, 0, 100))
    torch.testing.assert_close(step, exact.target.mean.expand(100, 2), rtol=0, atol=1e-12)
    assert exact.target.covariance.trace().sqrt().item() == pytest.approx(2.00661, abs=1e-5)


def test_flow_of_independent_pairs_is_not_straight() -> None:
    start = NoiseStream(1, 0, 4000).normals(2, dtype=F64)
    assert straightness(three_modes().prediction(), start, GRID).item() == pytest.approx(1.36, abs=0.15)


def test_reflow_of_a_monotone_map_is_straight_and_keeps_the_map() -> None:
    """N(0, 1) to N(2, 0.49): the images are 2 + 0.7 z, whose straight lines never cross."""
    law = Mixture.gaussian(torch.tensor([2.0], dtype=F64), torch.tensor([[0.49]], dtype=F64))
    exact = MixtureProblem(OneSided(), Mixture.standard(1), law)
    start = NoiseStream(2, 0, 500).normals(1, dtype=F64)
    base, target = reflow(exact.prediction(), start, GRID)(NoiseStream(3, 0, 200))
    torch.testing.assert_close(target, 2 + 0.7 * base, rtol=0, atol=1e-3)
    again = Prediction(OneSided(), {Kind.VELOCITY: lambda t, x: 2 - 0.3 * (x - 2 * t) / (1 - 0.3 * t)})
    assert straightness(exact.prediction(), start, GRID) > 0.05
    assert straightness(again, start, GRID) < 1e-12
    one = ProbabilityFlow(EulerMaruyama())(again, base, GRID[[0, -1]], NoiseStream(3, 0, 200))
    torch.testing.assert_close(one, target, rtol=0, atol=1e-3)


@pytest.mark.parametrize(("degrees", "expected"), [(8.0, 2.6666667), (128.0, 2.0317460)])
def test_squared_radius_has_its_mean(degrees: float, expected: float) -> None:
    """N D / (D - 2) in two dimensions."""
    noise = StudentNoise(degrees).sample(NoiseStream(4, 0, 300_000), 2)
    assert_mean(noise.square().sum(1, keepdim=True), expected, bias=0.1)


def test_denoiser_is_the_posterior_mean_of_the_kernel() -> None:
    rng, degrees, sigma = np.random.default_rng(5), 3.0, 0.7
    points, x = torch.tensor(rng.standard_normal((6, 2))), torch.tensor(rng.standard_normal((4, 2)))
    weights = (torch.cdist(x, points) ** 2 + sigma**2 * degrees) ** (-(2 + degrees) / 2)
    expected = weights @ points / weights.sum(1, keepdim=True)
    found = StudentNoise(degrees).denoiser(points)(torch.tensor(sigma, dtype=F64), x)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_heavy_tails_approach_the_gaussian_at_the_rate_of_one_over_the_degrees() -> None:
    """Of the denoiser at one level, and of whole trajectories from matched starts."""
    points = 2 * NoiseStream(6, 0, 50).normals(2, dtype=F64)
    x = points.repeat(4, 1) + NoiseStream(7, 0, 200).normals(2, dtype=F64)
    noise = NoiseStream(8, 0, 200)
    sigmas = torch.logspace(math.log10(80), math.log10(0.8), 60, dtype=F64)
    limit, sizes = StudentNoise(math.inf), (128, 1024, 8192, 65536)
    local, ends = [], []
    gaussian = denoising_flow(limit.denoiser(points), 80 * limit.sample(noise, 2), sigmas)
    for degrees in sizes:
        law = StudentNoise(float(degrees))
        one = torch.ones((), dtype=F64)
        local.append((law.denoiser(points)(one, x) - limit.denoiser(points)(one, x)).square().mean().sqrt())
        # The same quantile of the radius: of the Student law in place of that of the normal one.
        start = limit.sample(noise, 2)
        radius = start.norm(dim=1, keepdim=True)
        tail = torch.exp(-0.5 * radius**2)  # P(R > radius) in two dimensions
        matched = (degrees * torch.expm1(-2 / degrees * tail.log())).sqrt()
        heavy = denoising_flow(law.denoiser(points), 80 * start * matched / radius, sigmas)
        ends.append((heavy - gaussian).square().mean().sqrt())
    for errors in (local, ends):
        slope = np.polyfit(np.log(sizes), np.log([e.item() for e in errors]), 1)[0]
        assert abs(slope + 1) < 0.03


BAD: list[tuple[Callable[[], object], str]] = [
    (lambda: StudentNoise(0.0), r"`degrees` must be positive; got 0.0"),
    (
        lambda: denoising_flow(lambda s, x: x, torch.ones(1, 1), torch.tensor([1.0, 2.0])),
        r"`sigmas` must decrease and be positive",
    ),
    (
        lambda: straightness(three_modes().prediction(), torch.ones(1, 2), GRID.flip(0)),
        r"`times` must increase; got decreasing times",
    ),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_refuse(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def learning_problem(start: int, stop: int, shift: float = 1.0) -> tuple[Prediction, Tensor, Tensor]:
    """Three modes by the diffusion schedule: prediction, starts and ends by 400 steps of order 3."""
    exact = three_modes()
    target = Mixture(exact.target.weights, shift * exact.target.means, exact.target.covariances)
    law = MixtureProblem(OneSided(Diffusion()), exact.base, target)
    noise = NoiseStream(9, start, stop)
    starts = noise.normals(2, dtype=F64)
    times = log_snr_times(Diffusion(), 400, first=0.0, last=1 - 1e-3)
    return (
        law.prediction(Kind.TARGET),
        starts,
        DPMSolver(3)(law.prediction(Kind.TARGET), starts, times, noise),
    )


def distance(found: Tensor, expected: Tensor) -> float:
    return (found - expected).square().sum(1).mean().sqrt().item()


def test_learned_solver_errs_less_than_classical_ones_at_the_same_five_times() -> None:
    """On starts, and then on modes, that it has not seen."""
    times = log_snr_times(Diffusion(), 5, first=0.0, last=1 - 1e-3)
    prediction, starts, ends = learning_problem(0, 700)
    _, fresh, expected = learning_problem(10_000, 13_000)
    shifted, moved, there = learning_problem(20_000, 23_000, shift=1.1)
    classical = min(
        distance(DPMSolver(k, multistep=True)(prediction, fresh, times, NoiseStream(0, 0, 3000)), expected)
        for k in (1, 2, 3)
    )
    plain = min(
        distance(DPMSolver(k, multistep=True)(shifted, moved, times, NoiseStream(0, 0, 3000)), there)
        for k in (1, 2, 3)
    )
    for learn_times, share in ((False, 0.5), (True, 0.25)):
        solver = fit_solver(prediction, starts, ends, times, learn_times=learn_times)
        found = solver(prediction, fresh, solver.times, NoiseStream(0, 0, 3000))
        assert distance(found, expected) < share * classical
        there_too = solver(shifted, moved, solver.times, NoiseStream(0, 0, 3000))
        assert distance(there_too, there) < 0.8 * plain
