"""The posterior of a drift given noisy series: its conditional laws, and the coverage of its band."""

import math

import pytest
import torch
from torch import Tensor

from examples import double_well
from inference.drift_posterior import (
    DriftDraws,
    HiddenPaths,
    conditional_paths,
    drift_law,
    radial_features,
    sample_drift,
)
from inference.girsanov import solve_measure
from sde import SDE, NoiseStream, Purpose
from tests.statistics import assert_mean

_F64 = torch.float64


def test_log_density_of_a_path_has_its_maximum_at_the_mean_and_the_precision_as_curvature() -> None:
    times = torch.tensor([0.0, 0.1, 0.3, 0.6], dtype=_F64)
    paths = NoiseStream(0, 0, 10).normals(4, dtype=_F64).view(2, 5, 4)
    features = radial_features(torch.linspace(-1, 1, 3), 0.7)
    sigma = torch.tensor([0.5, 0.8], dtype=_F64)
    mean, root = drift_law(paths, times, features, sigma, 2.0)

    def log_density(c: Tensor) -> Tensor:
        """Of the Euler chains of the second data set, and of the prior."""
        gap = paths[1].diff(dim=-1) - (features(paths[1, :, :-1]) @ c) * times.diff()
        return -0.5 * (gap.square() / times.diff()).sum() / sigma[1] ** 2 - c.square().sum() / 8

    slope = torch.func.grad(log_density)(mean[1])
    torch.testing.assert_close(slope, torch.zeros(3, dtype=_F64), rtol=0, atol=1e-10)
    curvature = torch.func.hessian(log_density)(mean[1])
    torch.testing.assert_close(curvature, -root[1] @ root[1].mT)


def test_density_of_a_path_is_that_of_girsanov() -> None:
    features = radial_features(torch.linspace(-1, 1, 3), 0.7)
    one = lambda t, x: torch.full_like(x, 0.5)  # noqa: E731
    weights = torch.tensor([1.0, -0.5, 0.3], dtype=_F64)
    walk = SDE(lambda t, x: 0 * x, one)
    pushed = SDE(lambda t, x: features(x) @ weights, one)
    times = torch.linspace(0, 1, 21, dtype=_F64)
    done = solve_measure(walk, pushed, torch.zeros(4, 1, dtype=_F64), times, NoiseStream(1, 0, 4))
    paths = done.paths[..., 0][None]
    mean, root = drift_law(paths, times, features, torch.tensor([0.5], dtype=_F64), 1e9)
    precision = root[0] @ root[0].mT
    quadratic = weights @ precision @ mean[0] - 0.5 * weights @ precision @ weights
    torch.testing.assert_close(-done.log_ratio[:, -1].sum(), quadratic)


def _exact(problem: HiddenPaths, rate: float, sigma: float) -> tuple[Tensor, Tensor]:
    """Mean and covariance of an Euler chain that reverts, given the first series, by Gaussian regression."""
    size = len(problem.times)
    root = torch.zeros(size, size, dtype=_F64)
    root[0, 0] = problem.initial_deviation
    for n, dt in enumerate(problem.times.diff().tolist()):
        root[n + 1] = (1 - rate * dt) * root[n]
        root[n + 1, n + 1] = sigma * math.sqrt(dt)
    prior = root @ root.mT
    cross = prior[:, problem.steps]
    inner = cross[problem.steps] + problem.deviation**2 * torch.eye(len(problem.steps), dtype=_F64)
    gain = cross @ torch.linalg.inv(inner)
    return gain @ problem.values[0, 0], prior - gain @ cross.mT


@pytest.mark.parametrize("particles", [2, 12])
def test_sweeps_leave_the_law_of_the_paths_as_it_is(particles: int) -> None:
    n = 4000
    times = torch.tensor([0.0, 0.1, 0.25, 0.4, 0.5, 0.7], dtype=_F64)
    steps, seen = torch.tensor([0, 2, 5]), torch.tensor([0.6, -0.3, 0.4], dtype=_F64)
    problem = HiddenPaths(times, steps, seen.expand(1, n, 3), 0.3)
    mean, covariance = _exact(problem, 1.5, 0.8)
    root = torch.linalg.cholesky(covariance)
    paths = (mean + NoiseStream(2, 0, n).normals(6, dtype=_F64) @ root.mT)[None]
    sigma = torch.tensor([0.8], dtype=_F64)
    first = paths
    for k in range(5):
        noise = NoiseStream(3 + k, 0, n)
        paths = conditional_paths(problem, lambda x: -1.5 * x, sigma, paths, noise, particles=particles)
    # They start from the exact law, so they must have it after any number of sweeps, and have moved.
    assert_mean(paths[0], mean, bias=0.1)
    assert_mean((paths[0] - mean).square(), covariance.diagonal(), bias=0.1)
    assert_mean((paths[0, :, 1] - mean[1]) * (paths[0, :, 3] - mean[3]), covariance[1, 3], bias=0.1)
    assert float((paths == first).double().mean()) < 0.5


def test_sweeps_forget_where_they_began() -> None:
    n = 4000
    times = torch.tensor([0.0, 0.1, 0.25, 0.4, 0.5, 0.7], dtype=_F64)
    steps, seen = torch.tensor([0, 2, 5]), torch.tensor([0.6, -0.3, 0.4], dtype=_F64)
    problem = HiddenPaths(times, steps, seen.expand(1, n, 3), 0.3)
    mean, _ = _exact(problem, 1.5, 0.8)
    paths, sigma = torch.full((1, n, 6), 3.0, dtype=_F64), torch.tensor([0.8], dtype=_F64)
    for k in range(30):
        paths = conditional_paths(problem, lambda x: -1.5 * x, sigma, paths, NoiseStream(50 + k, 0, n))
    assert_mean(paths[0], mean, bias=0.1)


def test_parameters_are_found() -> None:
    """An Ornstein--Uhlenbeck process, whose rate is the only coefficient."""
    n, times = 200, torch.linspace(0, 3, 31, dtype=_F64)
    noise = NoiseStream(4, 0, n)
    normals = noise.normals(31, dtype=_F64)
    path = [normals[:, 0]]
    for k in range(30):
        path.append(0.9 * path[-1] + 0.7 * math.sqrt(0.1) * normals[:, k + 1])
    truth = torch.stack(path, 1)
    steps = torch.arange(0, 31, 2)
    errors = noise.normals(16, purpose=Purpose.OBSERVATION, dtype=_F64)
    problem = HiddenPaths(times, steps, (truth[:, steps] + 0.2 * errors)[None], 0.2)
    draws = sample_drift(
        problem, lambda x: x[..., None], deviation=5.0, seed=5, sweeps=150, burn=50, progress=False
    )
    rates, sigma = draws.coefficients[:, 0, 0], draws.sigma[:, 0]
    assert abs(float(rates.mean()) + 1) < 4.9 * float(rates.std())
    assert abs(float(sigma.mean()) - 0.7) < 4.9 * float(sigma.std())
    assert float(rates.std()) < 0.15
    assert float(sigma.std()) < 0.03
    # As sure as if the paths had been seen, or less.
    _, root = drift_law(truth[None], times, lambda x: x[..., None], torch.tensor([0.7], dtype=_F64), 5.0)
    assert float(rates.std()) > 0.9 / float(root[0, 0, 0])


def test_band_holds_its_share_of_the_draws() -> None:
    draws = DriftDraws(torch.linspace(0, 1, 101, dtype=_F64).view(101, 1, 1), torch.ones(101, 1))
    low, median, high = draws.band(torch.ones(3, 1, dtype=_F64))
    for found, exact in ((low, 0.05), (median, 0.5), (high, 0.95)):
        torch.testing.assert_close(found, torch.full((1, 3), exact, dtype=_F64))


@pytest.mark.slow
def test_band_of_the_double_well_holds_the_drift_where_the_particle_was() -> None:
    problem, truth = double_well.observed(seed=7, sets=24, series=64)
    draws = sample_drift(
        problem, double_well.FEATURES, deviation=double_well.PRIOR, seed=8, sweeps=300, burn=100, particles=12
    )
    covered = double_well.covered(draws, truth)
    error = float(covered.std()) / math.sqrt(len(covered))
    assert 4.9 * error < 0.2, "too few data sets"
    assert abs(float(covered.mean()) - 0.9) < 4.9 * error
    # A band of half the width is refuted by the same data sets.
    centre = draws.coefficients.mean(0)
    narrow = DriftDraws(centre + 0.4 * (draws.coefficients - centre), draws.sigma)
    too_sure = double_well.covered(narrow, truth)
    assert 0.9 - float(too_sure.mean()) > 4.9 * float(too_sure.std()) / math.sqrt(len(too_sure))


def test_wrong_use_is_refused() -> None:
    times, values = torch.linspace(0, 1, 5), torch.zeros(1, 3, 2)
    with pytest.raises(ValueError, match="`times` must increase"):
        HiddenPaths(times.flip(0), torch.tensor([0, 4]), values, 0.1)
    with pytest.raises(ValueError, match="`steps` must be increasing"):
        HiddenPaths(times, torch.tensor([0, 5]), values, 0.1)
    with pytest.raises(ValueError, match="must be positive"):
        HiddenPaths(times, torch.tensor([0, 4]), values, 0.0)
    problem = HiddenPaths(times, torch.tensor([0, 4]), values, 0.1)
    with pytest.raises(ValueError, match="`particles` must be at least 2"):
        conditional_paths(
            problem, lambda x: x, torch.ones(1), problem.first_guess(), NoiseStream(0, 0, 3), particles=1
        )
    with pytest.raises(ValueError, match="`deviation` must be positive"):
        sample_drift(problem, lambda x: x[..., None], deviation=0.0, seed=0)
