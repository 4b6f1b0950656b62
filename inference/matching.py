r"""Simulation-free variational inference: Gaussian marginals in closed form instead of simulated paths.

A posterior with the marginals :math:`\mathcal N(\mu(t), \sigma^2(t))` and the diffusion g of the prior has
the drift

.. math:: f_q(t, z) = \dot\mu + \Bigl(\frac{\dot\sigma}{\sigma} - \frac{g^2}{2 \sigma^2}\Bigr) (z - \mu),

the velocity of the marginals and half the squared diffusion times their score. Its divergence from the prior

.. math:: \tfrac12 \int \mathbb E\,\Bigl|\frac{f_q - f_p}{g}\Bigr|^2\,\mathrm dt

is estimated at random instants: one batch of evaluations of the prior drift, whatever the length of the
series. SDE matching and the amortised reparametrisation of Course and Nair are both this drift.

References:
    Bartosh, Vetrov & Naesseth (2025), SDE matching. arXiv:2502.02472
    Course & Nair (2023), Amortized reparametrization: efficient and scalable variational inference for latent
    SDEs. arXiv:2312.10550
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import jvp

from sde import SDE, NoiseStream, NoiseStructure, Purpose

__all__ = ["Marginals", "MatchingTerms", "marginal_drift", "matching_divergence", "sample_marginals"]

Marginals = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Instants ``(k,)`` to means and standard deviations, each ``(k, d)`` or ``(B, k, d)``; differentiable."""

_STRUCTURES = (NoiseStructure.DIAGONAL, NoiseStructure.ADDITIVE)


class MatchingTerms(NamedTuple):
    """An estimate of the divergence and where it was looked at."""

    divergence: Tensor  #: shape ``(n,)``, unbiased
    times: Tensor  #: shape ``(k,)``
    states: Tensor  #: shape ``(n, k, d)``


def marginal_drift(
    marginals: Marginals, diffusion: Tensor, times: Tensor, states: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Drift of the equation that has given marginals and a diffusion that does not depend on the state.

    Args:
        marginals: Means and standard deviations.
        diffusion: ``g`` at the instants, broadcastable with the states.
        times: Instants, shape ``(k,)``.
        states: Shape ``(..., k, d)``.

    Returns:
        Drift, of the shape of the states; means and standard deviations at the instants.

    Example:
        >>> walk = lambda t: (0 * t[:, None], t[:, None].sqrt())  # the marginals of Brownian motion
        >>> times, states = torch.tensor([0.5, 1.0]), torch.randn(2, 1, generator=torch.Generator())
        >>> bool(marginal_drift(walk, torch.ones(1), times, states)[0].abs().max() < 1e-6)
        True
    """
    values, slopes = jvp(marginals, (times,), (torch.ones_like(times),))[:2]
    (mean, deviation), (velocity, growth) = values, slopes
    rate = growth / deviation - 0.5 * (diffusion / deviation).square()
    return velocity + rate * (states - mean), mean, deviation


def sample_marginals(marginals: Marginals, times: Tensor, noise: NoiseStream) -> Tensor:
    """States of independent samples at every instant, shape ``(n, k, d)``.

    Args:
        marginals: Means and standard deviations, ``(k, d)``, or ``(n, k, d)`` with one row for each sample.
        times: Instants, shape ``(k,)``.
        noise: ``n`` samples, of purpose :attr:`Purpose.LATENT`.
    """
    mean, deviation = marginals(times)
    normals = noise.normals(
        len(times), purpose=Purpose.LATENT, channels=mean.shape[-1], dtype=mean.dtype, device=mean.device
    )
    return mean + deviation * normals


def matching_divergence(
    prior: SDE, marginals: Marginals, start: float, stop: float, noise: NoiseStream, *, instants: int = 16
) -> MatchingTerms:
    """Estimate the divergence of a posterior with given marginals from a prior, without simulating either.

    Instants are stratified: one in each of ``instants`` equal parts of the interval, the same for all samples
    of a seed.

    Args:
        prior: Equation of diagonal or additive noise without a matrix, in the sense of Ito. Its diffusion
            may depend on time, not on the state.
        marginals: Means and standard deviations of the posterior.
        start: Start of the interval.
        stop: Its end.
        noise: ``n`` samples.
        instants: Number of instants.

    Returns:
        Estimates and where they were taken.

    Raises:
        ValueError: If the noise has another structure or the interval is empty.

    Example:
        >>> prior = SDE(lambda t, x: -x, lambda t, x: torch.ones_like(x))
        >>> own = lambda t: (0 * t[:, None], ((1 - torch.exp(-2 * t[:, None])) / 2).sqrt())
        >>> found = matching_divergence(prior, own, 0.1, 1.0, NoiseStream(0, 0, 10))
        >>> bool(found.divergence.abs().max() < 1e-9)
        True
    """
    if prior.structure not in _STRUCTURES or prior.noise_dim is not None:
        raise ValueError(
            f"`prior` must have noise of one process per component; got {prior.structure.value} noise."
        )
    if not start < stop or instants < 1:
        raise ValueError(
            f"`start` must lie below `stop` and `instants` be at least 1; got {start}, {stop}, {instants}."
        )
    shared = NoiseStream(noise.seed, 0, 1).fork("matching instants")
    uniforms = shared.uniforms(instants, purpose=Purpose.TRAINING, first=noise.start * instants)[0]
    times = start + (stop - start) * (torch.arange(instants) + uniforms) / instants
    states = sample_marginals(marginals, times, noise)
    times = times.to(states)
    gaps = []
    drift, _, _ = marginal_drift(marginals, _diffusions(prior, times, states), times, states)
    for k, time in enumerate(times):
        diffusion = prior.diffusion(time, states[:, k])
        gaps.append((drift[:, k] - prior.drift(time, states[:, k])) / diffusion)
    squares = torch.stack(gaps, 1).square().sum(-1)
    return MatchingTerms(0.5 * (stop - start) * squares.mean(1), times, states)


def _diffusions(prior: SDE, times: Tensor, states: Tensor) -> Tensor:
    """The diffusion at every instant, shape ``(k, d)``; it does not depend on the state."""
    rows = [prior.diffusion(time, states[:1, k]).expand_as(states[:1, k])[0] for k, time in enumerate(times)]
    return torch.stack(rows)
