"""Fractional linear Gaussian models: evidence, exact posteriors and bounds against reference values."""

import math

import pytest
import torch
from torch import Tensor

from inference.fractional import (
    GaussianChain,
    GuidedPosterior,
    Observations,
    fractional_chain,
    held_control,
    linear_transition,
    log_evidence,
    smoothed,
)
from sde import NoiseStream
from sde.noise import MarkovFBM
from tests.statistics import assert_mean

_F64 = torch.float64
_EVIDENCE = {  # one observation 0.7 at time 1, by Hurst index, then by deviation
    0.2: {0.1: -1.279873, 0.5: -1.331966},
    0.5: {0.1: -1.166487, 0.5: -1.226509},
    0.8: {0.1: -1.109830, 0.5: -1.170123},
}
_BOUNDS = {  # of the best held control, for 100 and 400 steps
    (0.2, 0.5): (-1.416276, -1.351830),
    (0.5, 0.5): (-1.234573, -1.228513),
    (0.8, 0.5): (-1.175342, -1.171418),
    (0.2, 0.1): (-6.948155, -2.591702),
    (0.5, 0.1): (-1.452617, -1.230957),
    (0.8, 0.1): (-1.183199, -1.127693),
}


def _model(hurst: float | Tensor) -> MarkovFBM:
    return MarkovFBM(hurst, K=5, type="II", grid="paper", normalize="kernel")


def _chain(hurst: float | Tensor, steps: int) -> GaussianChain:
    return fractional_chain(_model(hurst), torch.linspace(0, 1, steps + 1, dtype=_F64))


def _at_end(steps: int, deviation: float) -> Observations:
    return Observations([steps], torch.tensor([0.7], dtype=_F64), deviation)


@pytest.mark.parametrize("hurst", list(_EVIDENCE))
@pytest.mark.parametrize("deviation", [0.1, 0.5])
def test_evidence_and_bounds_have_their_reference_values(hurst: float, deviation: float) -> None:
    for steps, bound in zip((100, 400), _BOUNDS[hurst, deviation], strict=True):
        chain, seen = _chain(hurst, steps), _at_end(steps, deviation)
        assert abs(float(log_evidence(chain, seen)) - _EVIDENCE[hurst][deviation]) < 1e-6
        assert abs(float(held_control(chain, _model(hurst), seen).bound) - bound) < 1e-5


@pytest.mark.parametrize("hurst", [0.2, 0.5, 0.8])
def test_bound_of_the_held_control_closes_with_the_step(hurst: float) -> None:
    gaps = []
    for steps in (200, 800):
        chain, seen = _chain(hurst, steps), _at_end(steps, 0.5)
        gaps.append(float(log_evidence(chain, seen) - held_control(chain, _model(hurst), seen).bound))
    assert 3.6 < gaps[0] / gaps[1] < 4.4


@pytest.mark.parametrize(("hurst", "evidence"), [(0.2, -2.12964233), (0.5, -1.42207213), (0.8, -0.91783339)])
def test_every_path_of_the_exact_posterior_returns_the_evidence(hurst: float, evidence: float) -> None:
    chain = _chain(hurst, 10)
    seen = Observations([5, 10], torch.tensor([0.4, 0.7], dtype=_F64), 0.1)
    assert abs(float(log_evidence(chain, seen)) - evidence) < 2e-8
    paths = GuidedPosterior(chain, seen).sample(NoiseStream(3, 0, 400))
    assert (paths.log_weights - evidence).abs().max() < 3e-8
    assert paths.log_weights.std() < 1e-10
    # The bound is the likelihood of the observations less the divergence, and it is tight.
    likelihood = sum(seen.log_density(n, chain.process(paths.states)[:, n]) for n in (5, 10))
    assert_mean(likelihood - paths.divergence, evidence, bias=1.0)


def test_posterior_has_the_moments_of_gaussian_regression() -> None:
    steps, hurst = 8, 0.3
    chain = fractional_chain(
        MarkovFBM(hurst, T=1.0, dt=0.1), torch.linspace(0, 1, steps + 1, dtype=_F64), initial_deviation=0.5
    )
    seen = Observations([0, 3, 8], torch.tensor([0.5, -0.2, 0.9], dtype=_F64), 0.2)
    covariance = _covariance(chain)
    index = torch.tensor(list(seen.steps))
    noisy = covariance[index][:, index] + 0.04 * torch.eye(3, dtype=_F64)
    gain = torch.linalg.solve(noisy, covariance[index]).mT
    mean = gain @ seen.values
    remaining = covariance - gain @ covariance[index]
    exact = torch.distributions.MultivariateNormal(torch.zeros(3, dtype=_F64), noisy).log_prob(seen.values)
    found = smoothed(chain, seen)
    torch.testing.assert_close(found.log_evidence[0], exact)
    torch.testing.assert_close(found.mean[0], mean)
    torch.testing.assert_close(found.variance, remaining.diagonal())
    paths = GuidedPosterior(chain, seen).sample(NoiseStream(1, 0, 100_000))
    process = chain.process(paths.states)
    assert_mean(process, mean, bias=0.03)
    gaps = process - mean
    assert_mean(gaps.unsqueeze(2) * gaps.unsqueeze(1), remaining, bias=0.03)


def _covariance(chain: GaussianChain) -> Tensor:
    """Covariance of the process at the instants, by propagating every source of randomness."""
    responses = [chain.start]
    for transition, factor in zip(chain.transitions, chain.factors, strict=True):
        responses.append(torch.cat((transition @ responses[-1], factor), 1))
    width = responses[-1].shape[1]
    padded = [torch.nn.functional.pad(r, (0, width - r.shape[1])) for r in responses]
    rows = [row @ response for row, response in zip(chain.rows, padded, strict=True)]
    matrix = torch.stack(rows)
    return matrix @ matrix.mT


def test_chain_has_the_covariance_of_the_noise() -> None:
    for kind in ("I", "II"):
        model = MarkovFBM(0.7, K=6, type=kind, dt=0.01)
        times = torch.tensor([0.0, 0.1, 0.15, 0.4, 1.0], dtype=_F64)
        covariance = _covariance(fractional_chain(model, times, scale=1.5))
        torch.testing.assert_close(covariance, 2.25 * model.covariance(times, times), rtol=1e-6, atol=1e-9)


def test_multifractional_chain_has_the_covariance_of_the_noise() -> None:
    for kind in ("I", "II"):
        model = MarkovFBM(lambda t: 0.3 + 0.4 * t, K=6, type=kind, dt=0.01)
        times = torch.tensor([0.0, 0.1, 0.15, 0.4, 1.0], dtype=_F64)
        chain = fractional_chain(model, times, scale=1.5)
        exact = 2.25 * model.covariance(times, times)
        torch.testing.assert_close(_covariance(chain), exact, rtol=1e-6, atol=1e-9)
    seen = Observations([2, 4], torch.tensor([0.3, -0.2], dtype=_F64), 0.2)
    noisy = exact[[2, 4]][:, [2, 4]] + 0.04 * torch.eye(2, dtype=_F64)
    normal = torch.distributions.MultivariateNormal(torch.zeros(2, dtype=_F64), noisy)
    evidence = log_evidence(chain, seen)
    torch.testing.assert_close(evidence[0], normal.log_prob(seen.values))
    paths = GuidedPosterior(chain, seen).sample(NoiseStream(0, 0, 50))
    assert (paths.log_weights - evidence).abs().max() < 1e-9
    with pytest.raises(ValueError, match="`reversion` must be 0 where the index depends on time"):
        fractional_chain(model, times, reversion=1.0)


def test_fractional_ornstein_uhlenbeck_reverts() -> None:
    # H = 1/2 with the automatic grid is Brownian motion: the Ornstein--Uhlenbeck process in closed form.
    times = torch.linspace(0, 2, 9, dtype=_F64)
    chain = fractional_chain(MarkovFBM(0.5, T=2.0), times, reversion=1.5, scale=0.4, initial_deviation=0.3)
    s, t = times[:, None], times[None, :]
    exact = 0.09 * (-1.5 * (s + t)).exp() + 0.16 / 3 * ((-1.5 * (s - t).abs()).exp() - (-1.5 * (s + t)).exp())
    torch.testing.assert_close(_covariance(chain), exact, rtol=1e-6, atol=1e-8)


def test_evidence_of_several_series_and_its_gradient_in_the_hurst_index() -> None:
    times = torch.tensor([0.0, 0.05, 0.3, 0.32, 0.7, 1.0], dtype=_F64)
    values = NoiseStream(2, 0, 3).normals(4, dtype=_F64)

    def evidence(hurst: Tensor, scale: Tensor, deviation: Tensor) -> Tensor:
        chain = fractional_chain(MarkovFBM(hurst, K=6, dt=0.05), times, scale=scale)
        return log_evidence(chain, Observations([1, 2, 4, 5], values, deviation))

    leaves = [torch.tensor(v, dtype=_F64, requires_grad=True) for v in (0.35, 1.2, 0.3)]
    whole = evidence(*leaves)
    assert whole.shape == (3,)
    one = fractional_chain(MarkovFBM(0.35, K=6, dt=0.05), times, scale=1.2)
    torch.testing.assert_close(whole[1:2], log_evidence(one, Observations([1, 2, 4, 5], values[1], 0.3)))
    bars = torch.autograd.grad(whole.sum(), leaves)
    for k, bar in enumerate(bars):
        ends = []
        for sign in (1, -1):
            moved = [leaf.detach().clone() for leaf in leaves]
            moved[k] += sign * 1e-5
            ends.append(float(evidence(*moved).sum()))
        assert abs((ends[0] - ends[1]) / 2e-5 - float(bar)) < 1e-4 * max(1.0, abs(float(bar)))


def test_shifted_posterior_still_weighs_right() -> None:
    chain, seen = _chain(0.5, 10), _at_end(10, 0.3)
    posterior = GuidedPosterior(chain, seen)
    shifted = posterior.sample(NoiseStream(4, 0, 50_000), shift=lambda n, z: 0.1 + 0.05 * z[:, :4].sin())
    evidence = float(log_evidence(chain, seen))
    weights = (shifted.log_weights - evidence).exp()
    assert weights.std() > 0.1  # no longer exact, path by path
    assert_mean(weights, 1.0, bias=0.05)
    assert float(shifted.log_weights.mean()) < evidence


def test_transition_of_a_stiff_equation_is_exact() -> None:
    matrix = torch.tensor([[-1e4, 0.0], [1.0, -0.5]], dtype=_F64)
    decay, covariance = linear_transition(matrix, torch.eye(2, dtype=_F64), torch.tensor(3.0))
    assert abs(float(covariance[0, 0]) * 2e4 - 1) < 1e-12
    assert abs(float(decay[1, 1]) - math.exp(-1.5)) < 1e-11
    stationary = matrix @ covariance + covariance @ matrix.mT + torch.eye(2, dtype=_F64)
    left = decay @ decay.mT  # of the equation for the covariance, by its derivative
    torch.testing.assert_close(stationary, left, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Observations([3, 2], torch.zeros(2), 0.1), "`steps` must be increasing"),
        (lambda: Observations([1, 2], torch.zeros(3), 0.1), "`values` must have shape"),
        (lambda: Observations([1], torch.zeros(1), 0.0), "`deviation` must be positive"),
        (lambda: fractional_chain(_model(0.5), torch.tensor([0.0, 0.0])), "`times` must be"),
        (lambda: log_evidence(_chain(0.5, 2), _at_end(3, 0.1)), "`observations` must lie at the instants"),
        (
            lambda: held_control(
                fractional_chain(_model(0.5), torch.tensor([0.0, 0.1, 1.0])), _model(0.5), _at_end(2, 0.1)
            ),
            "`chain` must have equal steps",
        ),
        (
            lambda: GuidedPosterior(_chain(0.5, 2), _at_end(2, 0.1)).sample(NoiseStream(0, 0, 2), series=1),
            "`series` must lie in",
        ),
    ],
)
def test_wrong_use_is_refused(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
