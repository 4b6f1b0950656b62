"""Girsanov weights and evidence bounds: closed forms, unbiased weights, infinite where they must be."""

import math

import pytest
import torch
from torch import Tensor

from inference.elbo import bound, effective_sample_size, gaussian_divergence
from inference.girsanov import PathMeasure, control, solve_controlled, solve_measure
from sde import SDE, Calculus, NoiseStream, NoiseStructure
from sde.solvers import EulerMaruyama, Heun
from tests.statistics import assert_mean

_F64 = torch.float64
_TIMES = torch.linspace(0, 1, 11, dtype=_F64)


def _one(t: Tensor, x: Tensor) -> Tensor:
    return torch.ones_like(x)


_WALK = SDE(lambda t, x: 0 * x, _one)


@pytest.mark.parametrize("structure", list(NoiseStructure)[1:])
def test_weights_turn_the_posterior_into_the_prior(structure: NoiseStructure) -> None:
    n = 100_000
    matrix = structure in (NoiseStructure.COMMUTATIVE, NoiseStructure.GENERAL)

    def diffusion(t: Tensor, x: Tensor) -> Tensor:
        if structure is NoiseStructure.ADDITIVE:
            return (0.5 + 0.2 * t).expand_as(x)
        base = 0.6 + 0.2 * x.cos()
        return torch.stack((base, 0.3 * torch.ones_like(x)), -1) if matrix else base

    def pushed(t: Tensor, x: Tensor) -> Tensor:  # within the range of every structure
        g = diffusion(t, x)
        return -x + (g.sum(-1) if matrix else g) * 0.4

    noise_dim = 2 if matrix else None
    prior = SDE(lambda t, x: -x, diffusion, structure, noise_dim=noise_dim)
    posterior = SDE(pushed, diffusion, structure, noise_dim=noise_dim)
    start, noise = torch.full((n, 1), 0.5, dtype=_F64), NoiseStream(1, 0, n)
    moved = solve_measure(prior, posterior, start, _TIMES, noise)
    weights = moved.log_ratio[:, -1].exp()
    assert_mean(weights, 1.0, bias=0.05)
    plain = solve_measure(prior, prior, start, _TIMES, NoiseStream(2, 0, n))
    assert not plain.divergence.any()
    both = torch.cat((moved.paths[:, -1, 0] * weights - plain.paths[:, -1, 0], weights - 1))
    assert_mean(both[:n], 0.0, bias=0.05)
    if not matrix:  # where the control is unique: it is 0.4
        exact = torch.full((n,), 0.08, dtype=_F64)
        torch.testing.assert_close(moved.divergence[:, -1], exact, rtol=1e-9, atol=0)


def test_divergence_is_infinite_where_noise_does_not_reach() -> None:
    half = SDE(lambda t, x: 0 * x, lambda t, x: torch.tensor([1.0, 0.0], dtype=_F64).expand_as(x))
    pushed = SDE(lambda t, x: torch.ones_like(x), half.diffusion)
    start, noise = torch.zeros(3, 2, dtype=_F64), NoiseStream(0, 0, 3)
    assert solve_measure(half, pushed, start, _TIMES, noise).divergence[:, -1].isinf().all()
    allowed = SDE(lambda t, x: torch.tensor([1.0, 0.0], dtype=_F64).expand_as(x), half.diffusion)
    assert solve_measure(half, allowed, start, _TIMES, noise).divergence[:, -1].isfinite().all()
    column = SDE(lambda t, x: 0 * x, lambda t, x: torch.ones_like(x)[..., None], NoiseStructure.GENERAL,
                 noise_dim=1)  # fmt: skip
    aside = SDE(lambda t, x: torch.tensor([1.0, -1.0], dtype=_F64).expand_as(x), column.diffusion,
                NoiseStructure.GENERAL, noise_dim=1)  # fmt: skip
    assert control(column, aside, _TIMES[0], start).isinf().all()
    lost = solve_measure(column, aside, start, _TIMES, noise)
    assert lost.divergence[:, -1].isinf().all()
    assert lost.unreached.all()
    with pytest.raises(ValueError, match="where noise reaches; it does elsewhere on 3 of 3 paths"):
        bound(lost, torch.zeros(3, dtype=_F64))


def _bridge(deviation: float, value: float) -> SDE:
    """Brownian motion on [0, 1] given a noisy observation at 1."""
    return SDE(lambda t, x: (value - x) / (1 - t + deviation**2), _one)


def test_bound_of_the_true_posterior_approaches_the_evidence() -> None:
    n, deviation, value = 4000, 0.5, 0.7
    evidence = -0.5 * (value**2 / 1.25 + math.log(2 * math.pi * 1.25))
    spreads, gaps = [], []
    for substeps in (5, 20, 80):
        done = solve_measure(
            _WALK, _bridge(deviation, value), torch.zeros(n, 1, dtype=_F64), _TIMES, NoiseStream(3, 0, n),
            substeps=substeps,
        )  # fmt: skip
        end = done.paths[:, -1, 0]
        likelihood = -0.5 * (((value - end) / deviation) ** 2 + math.log(2 * math.pi * deviation**2))
        found = bound(done, likelihood)
        gaps.append(evidence - float(found.elbo))
        spreads.append(float((likelihood + done.log_ratio[:, -1]).std()))
        assert float(found.elbo) < evidence + 5 * float(found.elbo_error)
        assert abs(float(found.weighted) - evidence) < 0.02
        assert found.effective_sample_size > 0.9 * n
        noisy = bound(done, likelihood, low_variance=False)
        assert float(noisy.elbo_error) > 2 * float(found.elbo_error)
    # Without an error of the step the weight of every path is the evidence: the spread falls by 2 for 4.
    assert 1.7 < spreads[0] / spreads[1] < 2.9
    assert 1.7 < spreads[1] / spreads[2] < 2.9


def test_more_paths_of_a_poor_posterior_tighten_the_weighted_bound() -> None:
    n = 8192
    evidence = -0.5 * (0.49 / 1.25 + math.log(2 * math.pi * 1.25))
    done = solve_measure(_WALK, _WALK, torch.zeros(n, 1, dtype=_F64), _TIMES, NoiseStream(5, 0, n))
    likelihood = -0.5 * (((0.7 - done.paths[:, -1, 0]) / 0.5) ** 2 + math.log(2 * math.pi * 0.25))
    bounds = [float(bound(done, likelihood, paths_per_series=k).weighted.mean()) for k in (1, 8, 64)]
    assert bounds[0] < bounds[1] < bounds[2] < evidence + 0.02
    assert evidence - bounds[2] < 0.05


def test_training_a_control_closes_the_bound() -> None:
    theta = torch.zeros(2, dtype=_F64, requires_grad=True)
    posterior = SDE(lambda t, x: theta[0] + theta[1] * x, _one, parameters=(theta,))
    optimiser = torch.optim.Adam([theta], lr=0.05)
    evidence = -0.5 * (0.49 / 1.25 + math.log(2 * math.pi * 1.25))
    found = None
    for step in range(60):
        noise, start = NoiseStream(6, 256 * step, 256 * step + 256), torch.zeros(256, 1, dtype=_F64)
        done = solve_measure(_WALK, posterior, start, _TIMES, noise, substeps=2)
        likelihood = -0.5 * (((0.7 - done.paths[:, -1, 0]) / 0.5) ** 2 + math.log(2 * math.pi * 0.25))
        found = bound(done, likelihood)
        optimiser.zero_grad()
        (-found.elbo.mean()).backward()
        optimiser.step()
    assert found is not None
    assert evidence - 0.25 < float(found.elbo.detach()) < evidence + 0.1
    assert theta[1] < -0.3  # it has learned to pull back


def _gradients(n: int, substeps: int, controlled: bool, frozen: bool) -> Tensor:
    """Gradient of the bound of every path in two parameters of the true posterior, shape ``(n, 2)``."""
    theta = torch.ones(n, 2, dtype=_F64, requires_grad=True)  # a copy for each path

    def pull(weights: Tensor):
        return lambda t, x: weights[:, :1] * (0.7 - weights[:, 1:] * x) / (1.25 - t)

    def equation(weights: Tensor) -> SDE:
        return SDE(pull(weights), _one, parameters=(weights,))

    start, noise, fixed = torch.zeros(n, 1, dtype=_F64), NoiseStream(8, 0, n), theta.detach()
    done: PathMeasure
    if controlled:
        still = pull(fixed) if frozen else None
        done = solve_controlled(_WALK, pull(theta), start, _TIMES, noise, substeps=substeps, frozen=still)
    else:
        law = equation(fixed) if frozen else None
        done = solve_measure(_WALK, equation(theta), start, _TIMES, noise, substeps=substeps, frozen=law)
    likelihood = -0.5 * ((0.7 - done.paths[:, -1, 0]) / 0.5) ** 2
    return torch.autograd.grad((likelihood + done.log_ratio[:, -1]).sum(), theta)[0]


@pytest.mark.parametrize("controlled", [True, False])
def test_spread_of_frozen_gradients_vanishes_at_the_true_posterior(controlled: bool) -> None:
    n = 2000
    live = _gradients(n, 4, controlled, frozen=False)
    coarse, fine = (_gradients(n, substeps, controlled, frozen=True) for substeps in (4, 16))
    # What is left is the error of the step, of strong order one half or better: at least 2 for 4 steps.
    assert (coarse.std(0) / fine.std(0) > 1.7).all()
    assert (fine.std(0) < 0.2 * live.std(0)).all()
    # The score that is left out has mean zero: the means agree.
    assert_mean(live - coarse, 0.0, bias=0.5)


def test_initial_law_of_the_posterior_is_weighed() -> None:
    n, value = 20_000, 0.7  # X(0) is standard normal, X(1) is seen with deviation 0.5
    evidence = -0.5 * (value**2 / 2.25 + math.log(2 * math.pi * 2.25))
    normals = NoiseStream(9, 0, n).normals(1, dtype=_F64)
    mean, deviation = value / 2.25, math.sqrt(1 - 1 / 2.25)
    start = mean + deviation * normals
    ratio = (-0.5 * start.square() + 0.5 * normals.square() + math.log(deviation))[:, 0]
    done = solve_measure(_WALK, _bridge(0.5, value), start, _TIMES, NoiseStream(10, 0, n), substeps=20)
    likelihood = -0.5 * (((value - done.paths[:, -1, 0]) / 0.5) ** 2 + math.log(2 * math.pi * 0.25))
    found = bound(done, likelihood, initial_log_ratio=ratio)
    assert abs(float(found.weighted) - evidence) < 0.02
    assert evidence - 0.05 < float(found.elbo) < evidence + 5 * float(found.elbo_error)
    exact = gaussian_divergence(*(torch.tensor([v], dtype=_F64) for v in (mean, deviation, 0.0, 1.0)))
    assert_mean(-ratio, float(exact), bias=0.05)
    assert float(bound(done, likelihood).elbo) > evidence + 0.1  # left out, the bound is none


def test_other_calculus_and_helpers() -> None:
    g = lambda t, x: 0.3 * x  # noqa: E731
    prior = SDE(lambda t, x: -x, g, calculus=Calculus.STRATONOVICH)
    posterior = SDE(lambda t, x: -x + 0.3 * x, g, calculus=Calculus.STRATONOVICH)
    done = solve_measure(
        prior, posterior, torch.ones(5, 2, dtype=_F64), _TIMES, NoiseStream(0, 0, 5), solver=Heun()
    )
    torch.testing.assert_close(done.divergence[:, -1], torch.ones(5, dtype=_F64))
    assert float(effective_sample_size(torch.zeros(1, 9))) == pytest.approx(9)
    assert float(effective_sample_size(torch.tensor([[0.0, -1e9]]))) == pytest.approx(1)
    normal = torch.distributions.Normal
    mean, deviation = torch.tensor([0.3]), torch.tensor([0.5])
    exact = torch.distributions.kl_divergence(normal(mean, deviation), normal(0.0, 2.0))
    found = gaussian_divergence(mean, deviation, torch.zeros(1), 2 * torch.ones(1))
    torch.testing.assert_close(found, exact[0])


def test_wrong_use_is_refused() -> None:
    start, noise = torch.zeros(4, 1, dtype=_F64), NoiseStream(0, 0, 4)
    other = SDE(_WALK.drift, _WALK.diffusion, calculus=Calculus.STRATONOVICH)
    with pytest.raises(ValueError, match="`posterior` must have the calculus of `prior`"):
        solve_measure(_WALK, other, start, _TIMES, noise)
    done = solve_measure(_WALK, _WALK, start, _TIMES, noise, solver=EulerMaruyama())
    with pytest.raises(ValueError, match="`paths_per_series` must divide"):
        bound(done, torch.zeros(4), paths_per_series=3)
    with pytest.raises(ValueError, match="`log_likelihood` must have shape"):
        bound(done, torch.zeros(3))
