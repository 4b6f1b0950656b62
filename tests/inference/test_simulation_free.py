"""Simulation-free inference: matched marginals, and posteriors from pseudo-observations."""

import math

import pytest
import torch
from torch import Tensor

from inference.elbo import gaussian_divergence
from inference.fractional import (
    ConjugatePosterior,
    GaussianChain,
    GuidedPosterior,
    Observations,
    fractional_chain,
    log_evidence,
)
from inference.girsanov import solve_measure
from inference.matching import marginal_drift, matching_divergence, sample_marginals
from sde import SDE, NoiseStream, NoiseStructure
from sde.noise import MarkovFBM
from tests.statistics import assert_mean

_F64 = torch.float64


def _marginals(t: Tensor) -> tuple[Tensor, Tensor]:
    """A curve of Gaussian laws in the plane."""
    mean = torch.stack((t.sin(), t * t), -1)
    return mean, torch.stack((0.5 + 0.2 * t, (0.3 + 0.1 * t.cos())), -1)


def test_drift_of_matching_is_that_of_the_amortised_reparametrisation() -> None:
    times = torch.tensor([0.1, 0.4, 0.9], dtype=_F64)
    states = NoiseStream(0, 0, 50).normals(3, channels=2, dtype=_F64)
    g = torch.tensor([0.7, 0.4], dtype=_F64)
    drift, mean, deviation = marginal_drift(_marginals, g, times, states)
    # Course and Nair: a = (g^2 / s^2 - d log s^2 / dt) / 2, drift a (m - z) + m'.
    velocity = torch.stack((times.cos(), 2 * times), -1)
    log_slope = 2 * torch.stack((0.2 / deviation[:, 0], -0.1 * times.sin() / deviation[:, 1]), -1)
    a = 0.5 * ((g / deviation) ** 2 - log_slope)
    assert (drift - (a * (mean - states) + velocity)).abs().max() < 1e-12
    # SDE matching: the velocity of mean + deviation * eps at fixed eps, and half g^2 times the score.
    eps = (states - mean) / deviation
    flow = velocity + 0.5 * log_slope * deviation * eps
    assert (drift - (flow - 0.5 * g**2 * eps / deviation)).abs().max() < 1e-12


def test_matched_equation_has_the_marginals() -> None:
    n, g = 50_000, 0.6
    posterior = SDE(
        lambda t, x: marginal_drift(_marginals, torch.tensor(g, dtype=_F64), t.view(1), x.unsqueeze(1))[0][
            :, 0
        ],
        lambda t, x: torch.full_like(x, g),
    )
    prior = SDE(lambda t, x: -x, posterior.diffusion)
    noise, zero = NoiseStream(1, 0, n), torch.zeros(1, dtype=_F64)
    start = sample_marginals(_marginals, zero, noise)[:, 0]
    times = torch.linspace(0, 1, 101, dtype=_F64)
    done = solve_measure(prior, posterior, start, times[[0, 100]], noise.fork("paths"), substeps=100)
    mean, deviation = _marginals(times[-1:])
    end = done.paths[:, -1]
    assert_mean(end, mean[0], bias=0.05)
    assert_mean((end - mean[0]).square(), deviation[0] ** 2, bias=0.05)
    # The divergence without simulation is that of the simulated paths, up to their step.
    free = matching_divergence(prior, _marginals, 0.0, 1.0, NoiseStream(3, 0, n), instants=64)
    simulated = done.divergence[:, -1]
    gap = float(free.divergence.mean() - simulated.mean())
    error = math.hypot(float(free.divergence.std()), float(simulated.std())) / math.sqrt(n)
    assert abs(gap) < 5 * error + 0.01 * float(simulated.mean())


def test_divergence_vanishes_for_the_marginals_of_the_prior_and_only_there() -> None:
    prior = SDE(lambda t, x: -x, lambda t, x: torch.ones_like(x), NoiseStructure.ADDITIVE)

    def own(t: Tensor) -> tuple[Tensor, Tensor]:
        t = t.unsqueeze(-1)
        return 2 * (-t).exp(), (0.5 + 0.3 * (-2 * t).exp()).sqrt()

    same = matching_divergence(prior, own, 0.0, 2.0, NoiseStream(0, 0, 200))
    assert same.divergence.abs().max() < 1e-9
    assert same.times.shape == (16,)
    other = matching_divergence(prior, lambda t: (own(t)[0] + t[:, None], own(t)[1]), 0.0, 2.0,
                                NoiseStream(0, 0, 200))  # fmt: skip
    # u = 1 + t: half its square integrated over [0, 2] is 13 / 3; the instants are stratified.
    assert abs(float(other.divergence.mean()) - 13 / 3) < 0.2
    matrix = SDE(prior.drift, lambda t, x: torch.ones_like(x)[..., None], NoiseStructure.GENERAL, noise_dim=1)
    with pytest.raises(ValueError, match="`prior` must have noise of one process per component"):
        matching_divergence(matrix, own, 0.0, 1.0, NoiseStream(0, 0, 2))


def _chain() -> GaussianChain:
    times = torch.tensor([0.0, 0.2, 0.35, 0.8, 1.0], dtype=_F64)
    return fractional_chain(MarkovFBM(0.7, K=8, dt=0.05), times, scale=1.3, initial_deviation=0.4)


def test_gaussian_likelihood_gives_the_evidence() -> None:
    values = torch.tensor([[0.2, 0.5, -0.1, 0.9], [0.0, -0.4, 0.3, 0.1]], dtype=_F64)
    seen = Observations([0, 1, 3, 4], values, torch.tensor([0.2, 0.3, 0.2, 0.5], dtype=_F64))

    def likelihood(x: Tensor) -> Tensor:
        spread = torch.as_tensor(seen.deviation)
        return -0.5 * ((values - x) / spread) ** 2 - (spread * math.sqrt(2 * math.pi)).log()

    chain = _chain()
    torch.testing.assert_close(ConjugatePosterior(chain, seen).bound(likelihood), log_evidence(chain, seen))
    poor = Observations(seen.steps, values + 0.3, torch.as_tensor(seen.deviation) * 2)
    worse = ConjugatePosterior(chain, poor).bound(likelihood)
    assert (worse < log_evidence(chain, seen) - 0.01).all()


def test_divergence_is_that_of_gaussian_laws() -> None:
    chain = _chain()
    pseudo = Observations([4], torch.tensor([0.8], dtype=_F64), 0.3)
    posterior = ConjugatePosterior(chain, pseudo)
    free = ConjugatePosterior(chain, Observations([4], torch.tensor([0.0], dtype=_F64), 1e6))
    # One observed instant: the divergence of the path is that of the law at this instant.
    exact = gaussian_divergence(
        posterior.mean[0], posterior.deviation, torch.zeros(1, dtype=_F64), free.deviation
    )
    torch.testing.assert_close(posterior.divergence()[0], exact, rtol=1e-6, atol=1e-8)
    paths = GuidedPosterior(chain, pseudo).sample(NoiseStream(2, 0, 50_000))
    assert_mean(paths.divergence, float(exact), bias=0.5)


def test_learned_pseudo_observations_approach_the_evidence_of_counts() -> None:
    chain = _chain()
    steps, counts = [0, 1, 2, 3, 4], torch.tensor([1.0, 3.0, 2.0, 5.0, 7.0], dtype=_F64)

    def likelihood(x: Tensor) -> Tensor:  # counts with the intensity exp(1 + X)
        return counts * (1 + x) - (1 + x).exp() - torch.lgamma(counts + 1)

    values = torch.zeros(5, dtype=_F64, requires_grad=True)
    spread = torch.zeros(5, dtype=_F64, requires_grad=True)
    optimiser = torch.optim.Adam([values, spread], lr=0.1)
    bound = torch.zeros(1)
    for _ in range(120):
        optimiser.zero_grad()
        posterior = ConjugatePosterior(chain, Observations(steps, values, spread.exp()))
        bound = posterior.bound(likelihood)
        (-bound.sum()).backward()
        optimiser.step()
    with torch.no_grad():
        posterior = ConjugatePosterior(chain, Observations(steps, values.detach(), spread.detach().exp()))
        evidence = posterior.weighted_bound(likelihood, NoiseStream(4, 0, 20_000))
        prior = ConjugatePosterior(chain, Observations(steps, torch.zeros(5, dtype=_F64), 1e3))
        crude = prior.weighted_bound(likelihood, NoiseStream(5, 0, 20_000))
    assert float(bound.detach()) < float(evidence)
    assert float(evidence) - float(bound.detach()) < 0.05
    assert abs(float(evidence - crude)) < 0.1  # paths of the prior, weighted, find the same evidence
