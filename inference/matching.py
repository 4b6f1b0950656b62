r"""Simulation-free variational inference: Gaussian marginals in closed form instead of simulated paths.

A posterior with the marginals of :math:`\mu(t) + M(t)\,\varepsilon`, normal :math:`\varepsilon`, and the
diagonal diffusion g of the prior has the drift

.. math:: f_q(t, z) = \dot\mu + \dot M \varepsilon - \tfrac12\,g^2 M^{-\top} \varepsilon
    + \tfrac12\,\partial_z g^2, \qquad \varepsilon = M^{-1} (z - \mu),

the velocity of the marginals, half the squared diffusion times their score, and what a diffusion that depends
on the state adds. With independent components, :math:`M = \mathrm{diag}(\sigma)`, it is
:math:`\dot\mu + (\dot\sigma / \sigma - g^2 / 2 \sigma^2)(z - \mu)`. A full M is more than a covariance: the
marginals of M and of M R are the same for every rotation R, but where R moves their drifts differ, and
those of all M are all linear ones. The divergence from the prior

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
from torch.func import jvp, vmap

from sde import SDE, Calculus, NoiseStream, NoiseStructure, Purpose
from sde.equation import Coefficient

__all__ = ["Marginals", "MatchingTerms", "marginal_drift", "matching_divergence", "sample_marginals"]

Marginals = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Instants ``(k,)`` to means ``(k, d)`` or ``(B, k, d)``, and to standard deviations of that shape or factors
``M`` with an axis more, ``(..., k, d, d)``; differentiable."""

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
        marginals: Means, and standard deviations or factors.
        diffusion: ``g`` at the instants, broadcastable with the states.
        times: Instants, shape ``(k,)``.
        states: Shape ``(..., k, d)``.

    Returns:
        Drift, of the shape of the states; means, and standard deviations or factors, at the instants.

    Example:
        >>> walk = lambda t: (0 * t[:, None], t[:, None].sqrt())  # the marginals of Brownian motion
        >>> times, states = torch.tensor([0.5, 1.0]), torch.randn(2, 1, generator=torch.Generator())
        >>> bool(marginal_drift(walk, torch.ones(1), times, states)[0].abs().max() < 1e-6)
        True
    """
    values, slopes = jvp(marginals, (times,), (torch.ones_like(times),))[:2]
    (mean, factor), (velocity, growth) = values, slopes
    if factor.ndim == mean.ndim:
        rate = growth / factor - 0.5 * (diffusion / factor).square()
        return velocity + rate * (states - mean), mean, factor
    inverse = torch.linalg.inv(factor)
    normals = inverse @ (states - mean)[..., None]
    score = -(inverse.mT @ normals)[..., 0]
    return velocity + (growth @ normals)[..., 0] + 0.5 * diffusion.square() * score, mean, factor


def sample_marginals(marginals: Marginals, times: Tensor, noise: NoiseStream) -> Tensor:
    """States of independent samples at every instant, shape ``(n, k, d)``.

    Args:
        marginals: Means, and standard deviations or factors; with one row for each sample, or without rows.
        times: Instants, shape ``(k,)``.
        noise: ``n`` samples, of purpose :attr:`Purpose.LATENT`.
    """
    mean, factor = marginals(times)
    normals = noise.normals(
        len(times), purpose=Purpose.LATENT, channels=mean.shape[-1], dtype=mean.dtype, device=mean.device
    )
    if factor.ndim == mean.ndim:
        return mean + factor * normals
    return mean + (factor @ normals[..., None])[..., 0]


def matching_divergence(
    prior: SDE, marginals: Marginals, start: float, stop: float, noise: NoiseStream, *, instants: int = 16
) -> MatchingTerms:
    """Estimate the divergence of a posterior with given marginals from a prior, without simulating either.

    Instants are stratified: one in each of ``instants`` equal parts of the interval, the same for all samples
    of a seed. The prior's coefficients are evaluated at all of them at once, by :func:`torch.func.vmap`: they
    must not branch on the values of time or state.

    Args:
        prior: Equation of diagonal or additive noise without a matrix, in the sense of Ito.
        marginals: Means, and standard deviations or factors, of the posterior.
        start: Start of the interval.
        stop: Its end.
        noise: ``n`` samples.
        instants: Number of instants.

    Returns:
        Estimates and where they were taken.

    Raises:
        ValueError: If the noise has another structure, the calculus is not that of Ito, or the interval is
            empty.

    Example:
        >>> prior = SDE(lambda t, x: -x, lambda t, x: torch.ones_like(x))
        >>> own = lambda t: (0 * t[:, None], ((1 - torch.exp(-2 * t[:, None])) / 2).sqrt())
        >>> found = matching_divergence(prior, own, 0.1, 1.0, NoiseStream(0, 0, 10))
        >>> bool(found.divergence.abs().max() < 1e-9)
        True
    """
    _check(prior)
    if not start < stop or instants < 1:
        raise ValueError(
            f"`start` must lie below `stop` and `instants` be at least 1; got {start}, {stop}, {instants}."
        )
    shared = NoiseStream(noise.seed, 0, 1).fork("matching instants")
    uniforms = shared.uniforms(instants, purpose=Purpose.TRAINING, first=noise.start * instants)[0]
    times = start + (stop - start) * (torch.arange(instants) + uniforms) / instants
    states = sample_marginals(marginals, times, noise)
    times = times.to(states)
    diffusion, spread = _diffusion(prior, times, states)
    drift = marginal_drift(marginals, diffusion, times, states)[0] + spread
    gaps = (drift - _at_all(prior.drift, times, states)) / diffusion
    return MatchingTerms(0.5 * (stop - start) * gaps.square().sum(-1).mean(1), times, states)


def _check(prior: SDE) -> None:
    """Refuse equations for which the drift of the posterior is another."""
    if prior.structure not in _STRUCTURES or prior.noise_dim is not None:
        raise ValueError(
            f"`prior` must have noise of one process per component; got {prior.structure.value} noise."
        )
    if prior.calculus is not Calculus.ITO:
        raise ValueError("`prior` must be an equation in the sense of Ito; got Stratonovich. Use to_ito().")


def _at_all(coefficient: Coefficient, times: Tensor, states: Tensor) -> Tensor:
    """A drift or diffusion at states ``(n, k, d)`` of instants ``(k,)``, in one batch."""
    return vmap(coefficient, in_dims=(0, 1), out_dims=1)(times, states)


def _diffusion(prior: SDE, times: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
    """The diffusion g, and half the derivative of its square, where the state decides it."""
    if prior.structure is NoiseStructure.ADDITIVE:
        return _at_all(prior.diffusion, times, states), torch.zeros((), dtype=states.dtype)
    values, slopes = jvp(lambda z: _at_all(prior.diffusion, times, z), (states,), (torch.ones_like(states),))[
        :2
    ]  # each component of g depends on the same component of the state alone
    return values, values * slopes
