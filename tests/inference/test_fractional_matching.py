"""Simulation-free bounds with fractional noise and a drift that is not linear."""

import functools
import math

import pytest
import torch
from torch import Tensor

from inference.elbo import bound
from inference.fractional import Observations, log_evidence
from inference.fractional import matching as module
from inference.fractional.linear_equation import LinearEquation, memory_kernel
from inference.fractional.matching import MatchedPosterior
from sde import NoiseStream
from sde.noise import MarkovFBM

_F64 = torch.float64
_QUANTILE = 4.9  # two-sided, false alarm 1e-6


def _posterior(hurst: float, kind: str = "I", dim: int = 1) -> MatchedPosterior:
    model = MarkovFBM(hurst, K=5, grid="paper", type=kind)
    linear = LinearEquation(model, reversion=0.5, scale=0.9, initial_deviation=1.0)
    values = torch.tensor([[1.0, 0.8, -0.3], [0.2, -0.4, 0.5]], dtype=_F64)
    pseudo = Observations([0, 2, 4], values, torch.tensor([0.3, 0.4, 0.2], dtype=_F64))
    return MatchedPosterior(linear, linear.chain(torch.linspace(0, 1, 5, dtype=_F64)), pseudo, dim=dim)


def _well(time: Tensor, x: Tensor) -> Tensor:
    return 3 * (x - x**3) + time


def _swirl(time: Tensor, x: Tensor) -> Tensor:
    """A drift that couples two components."""
    a, b = x.unbind(-1)
    return torch.stack((a - a**3 - b, torch.sin(2 * a) + 0 * b), -1)


def test_nothing_is_added_where_the_prior_is_the_linear_equation() -> None:
    posterior = _posterior(0.3)
    seen = posterior.pseudo

    def likelihood(x: Tensor) -> Tensor:
        spread = torch.as_tensor(seen.deviation)
        return -0.5 * ((seen.values - x) / spread) ** 2 - (spread * math.sqrt(2 * math.pi)).log()

    found = posterior.bound(lambda t, x: -0.5 * x, likelihood, NoiseStream(0, 0, 4))
    assert torch.equal(found, posterior.conjugate.bound(likelihood))
    torch.testing.assert_close(found, log_evidence(posterior.chain, seen))


@pytest.mark.parametrize("kind", ["I", "II"])
@pytest.mark.parametrize("hurst", [0.3, 0.5, 0.7])
def test_kernel_recovers_the_wiener_process(hurst: float, kind: str) -> None:
    model = MarkovFBM(hurst, K=4, grid="paper", type=kind)
    omega, rates = model.omega(), model.rates
    # A smooth move u = cos(3 t) of the Wiener process moves the path by this drift, in closed form:
    # the memory is int_0^t exp(-rate (t - r)) cos(3 r) dr.
    nodes = torch.linspace(0, 1, 4001, dtype=_F64)
    growth = rates * torch.cos(3 * nodes[:, None]) + 3 * torch.sin(3 * nodes[:, None])
    memory = (growth - rates * torch.exp(-rates * nodes[:, None])) / (rates**2 + 9)
    gap = omega.sum() * torch.cos(3 * nodes) - memory @ (omega * rates)
    kernel, primitive = memory_kernel(model, nodes)
    found = (gap[-1] + torch.trapezoid(kernel.flip(0) * gap, nodes)) / omega.sum()
    torch.testing.assert_close(found, torch.cos(3 * nodes[-1]), rtol=0, atol=1e-5)
    integral = 1 + torch.trapezoid(kernel, nodes)
    torch.testing.assert_close(primitive[-1], integral, rtol=0, atol=1e-5)


@functools.cache
def _simulated(hurst: float, kind: str, dim: int, steps: int) -> tuple[float, float]:
    """Divergence of simulated paths, and its standard error."""
    drift = _swirl if dim == 2 else _well
    paths = _posterior(hurst, kind, dim).simulate(drift, NoiseStream(1, 0, 4000), steps=steps)
    divergence = paths.measure.divergence[:, -1] - paths.initial_log_ratio
    return float(divergence.mean()), float(divergence.std()) / math.sqrt(4000)


def _gap(hurst: float, kind: str, steps: int, dim: int = 1, rounds: int = 30) -> tuple[float, float, float]:
    """Divergence without simulation less that of simulated paths, its standard error, and what is allowed.

    The weak error of Euler's scheme for rates up to 20: a step of 1/200 moves the memory by 10 per cent, and
    half of that is the scheme's error.
    """
    posterior = _posterior(hurst, kind, dim)
    drift = _swirl if dim == 2 else _well
    free = torch.stack(
        [posterior.divergence(drift, NoiseStream(2 + k, 0, 1000), instants=24).mean() for k in range(rounds)]
    )
    mean, error = _simulated(hurst, kind, dim, steps)
    total = math.hypot(error, float(free.std()) / math.sqrt(rounds))
    allowed = 10 / steps * float(posterior.conjugate.divergence().view(-1, dim).sum(1).mean())
    return float(free.mean()) - mean, total, allowed


def _agrees(gap: float, error: float, allowed: float) -> None:
    assert _QUANTILE * error < 0.3, "too few paths to see what memory does"
    assert abs(gap) < _QUANTILE * error + allowed


def test_divergence_is_that_of_simulated_paths() -> None:
    _agrees(*_gap(0.7, "II", steps=200))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["I", "II"])
@pytest.mark.parametrize("hurst", [0.3, 0.7])
def test_divergence_is_that_of_simulated_paths_with_short_steps(hurst: float, kind: str) -> None:
    _agrees(*_gap(hurst, kind, steps=1600, rounds=60))


@pytest.mark.slow
def test_divergence_of_coupled_components_is_that_of_simulated_paths() -> None:
    assert _posterior(0.7, dim=2).num_series == 1
    _agrees(*_gap(0.7, "I", steps=200, dim=2))


def test_divergence_without_the_memory_of_the_noise_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(model: MarkovFBM, lags: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(lags), torch.ones_like(lags)

    monkeypatch.setattr(module, "memory_kernel", forgetful)
    gap, error, allowed = _gap(0.7, "II", steps=200, rounds=10)
    assert abs(gap) > 2 * (_QUANTILE * error + allowed)


def test_number_of_instants_does_not_move_the_mean() -> None:
    posterior = _posterior(0.3)
    few, many = (
        torch.stack(
            [
                posterior.correction(_well, NoiseStream(50 + k, 0, 200), instants=count).mean()
                for k in range(rounds)
            ]
        )
        for count, rounds in ((2, 150), (24, 20))
    )
    error = math.hypot(float(few.std()) / math.sqrt(150), float(many.std()) / math.sqrt(20))
    assert abs(float(few.mean() - many.mean())) < _QUANTILE * error
    assert _QUANTILE * error < 0.5 * float(many.mean())


def test_bound_does_not_exceed_the_evidence() -> None:
    posterior = _posterior(0.7)
    data = torch.tensor([[0.9, 0.7, -0.1], [0.1, -0.6, 0.6]], dtype=_F64)

    def likelihood(x: Tensor) -> Tensor:
        return -0.5 * ((data - x) / 0.3) ** 2 - math.log(0.3 * math.sqrt(2 * math.pi))

    with torch.no_grad():
        rounds = [posterior.bound(_well, likelihood, NoiseStream(80 + k, 0, 1000)) for k in range(15)]
        paths = posterior.simulate(_well, NoiseStream(7, 0, 4000), steps=200)
        seen = [
            int((paths_times(posterior, 200) - t).abs().argmin()) for t in posterior.chain.times[[0, 2, 4]]
        ]
        x = paths.measure.paths[:, seen, 0].view(2, -1, 3)
        terms = (-0.5 * ((data[:, None] - x) / 0.3) ** 2 - math.log(0.3 * math.sqrt(2 * math.pi))).sum(-1)
        found = bound(
            paths.measure, terms.flatten(), initial_log_ratio=paths.initial_log_ratio, paths_per_series=2000
        )
    free = torch.stack(rounds)
    error = torch.hypot(free.std(0) / math.sqrt(15), found.elbo_error)
    assert (free.mean(0) < found.weighted + _QUANTILE * error).all()
    assert ((free.mean(0) - found.elbo).abs() < _QUANTILE * error + 0.1).all()
    assert (found.effective_sample_size > 20).all()


def paths_times(posterior: MatchedPosterior, steps: int) -> Tensor:
    """Instants of the simulated paths."""
    even = torch.linspace(0, 1, steps + 1, dtype=_F64)
    return torch.unique(torch.cat((posterior.chain.times, even)))


def test_gradients_reach_drift_and_pseudo_observations() -> None:
    linear = LinearEquation(MarkovFBM(0.3, K=5, grid="paper"), initial_deviation=1.0)
    values = torch.tensor([[0.5, -0.5]], dtype=_F64, requires_grad=True)
    spread = torch.tensor([0.3, 0.4], dtype=_F64, requires_grad=True)
    slope = torch.tensor(0.7, dtype=_F64, requires_grad=True)
    chain = linear.chain(torch.tensor([0.0, 0.5, 1.0], dtype=_F64))
    noise = NoiseStream(3, 0, 6)

    def loss(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        posterior = MatchedPosterior(linear, chain, Observations([1, 2], a, b))
        return posterior.divergence(lambda t, x: c * torch.sin(x), noise, instants=3)

    assert torch.autograd.gradcheck(loss, (values, spread, slope))


def test_same_paths_whatever_the_seed_of_others() -> None:
    posterior = _posterior(0.3)
    once = posterior.correction(_well, NoiseStream(4, 0, 6))
    assert torch.equal(once, posterior.correction(_well, NoiseStream(4, 0, 6)))
    assert not torch.equal(once, posterior.correction(_well, NoiseStream(5, 0, 6)))


def test_wrong_use_is_refused() -> None:
    with pytest.raises(ValueError, match="`model` must have a Hurst index that is constant"):
        LinearEquation(MarkovFBM(torch.tensor(0.3, requires_grad=True)))
    with pytest.raises(ValueError, match="`scale` must not be 0"):
        LinearEquation(MarkovFBM(0.3), scale=0.0)
    with pytest.raises(ValueError, match="`model` must have weights whose sum"):
        LinearEquation(MarkovFBM(0.9, T=1.0, dt=1e-4))
    posterior = _posterior(0.3)
    with pytest.raises(ValueError, match="`noise` must hold a multiple of 2 paths"):
        posterior.correction(_well, NoiseStream(0, 0, 3))
    with pytest.raises(ValueError, match="`instants` must be at least 1"):
        posterior.correction(_well, NoiseStream(0, 0, 2), instants=0)
    with pytest.raises(ValueError, match="`dim` must divide"):
        MatchedPosterior(posterior.linear, posterior.chain, posterior.pseudo, dim=3)
