r"""Guided paths whose law is the exact posterior: every path returns the evidence.

Backwards, the information :math:`(\Lambda, \eta)` that later observations hold about the state,

.. math::

    P = (I + L^{\mathsf T} \Lambda L)^{-1}, \qquad G = I - \Lambda L P L^{\mathsf T}, \qquad
    \eta_n = \Phi^{\mathsf T} G \eta, \qquad \Lambda_n = \Phi^{\mathsf T} G \Lambda \Phi,

where an observation adds :math:`h h^{\mathsf T} / \sigma^2` and :math:`h o / \sigma^2`. Forwards, the noise
of a step has the law :math:`\mathcal N(P L^{\mathsf T} (\eta - \Lambda \Phi z), P)`. No step is too large,
and noise of low rank does no harm: the guide moves the noise, never the state.

References:
    Daems, Opper, Crevecoeur & Birdal (2025), Efficient training of neural SDEs using stochastic optimal
    control. arXiv:2505.17150
    Whitaker, Golightly, Boys & Sherlock (2017), for guided proposals. doi:10.1007/s11222-016-9660-3
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor

from inference.fractional.chain import GaussianChain, Observations
from sde.noise.stream import NoiseStream, Purpose

__all__ = ["GuidedPaths", "GuidedPosterior", "Law", "Seen", "guide"]

Shift = Callable[[int, Tensor], Tensor]
"""Step and state ``(n, D)`` to an addition to the mean of the step's noise, ``(n, r)``."""


class GuidedPaths(NamedTuple):
    """Paths of the posterior, and how well each explains the observations."""

    states: Tensor  #: shape ``(n, N + 1, D)``
    log_weights: Tensor  #: log of prior over posterior times likelihood, shape ``(n,)``
    divergence: Tensor  #: Kullback--Leibler divergence of the steps from the prior, shape ``(n,)``


@dataclass(frozen=True, slots=True, eq=False)
class Law:
    """The law of the noise of one step, given the mean that the state has without it."""

    root: Tensor  #: Cholesky factor of the inverse of P, shape ``(..., r, r)``
    inverse: Tensor  #: of the root
    push: Tensor  #: P L^T eta, shape ``(B, ..., r)``
    pull: Tensor  #: P L^T Lambda, shape ``(..., r, D)``
    eta: Tensor  #: what is known of the state at the end of the step, linear part, shape ``(B, ..., D)``
    precision: Tensor  #: and quadratic part, Lambda, shape ``(..., D, D)``

    def shaken(self, normals: Tensor) -> Tensor:
        """Noise of covariance P of standard normals ``(..., r)``."""
        return normals @ self.inverse

    @property
    def log_root(self) -> Tensor:
        """Half the log determinant of P, shape ``(...)``."""
        return self.inverse.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    def divergence(self, mean: Tensor) -> Tensor:
        """Divergence of the noise from standard normals given means ``(..., Q, r)``, shape ``(..., Q)``."""
        spread = self.inverse.square().sum((-2, -1)) - mean.shape[-1] - 2 * self.log_root
        return 0.5 * (spread[..., None] + mean.square().sum(-1))


class Seen(NamedTuple):
    """What is known of a linear function of the state at an instant."""

    row: Tensor  #: the function, shape ``(D,)``
    values: Tensor  #: shape ``(B, ...)``
    precisions: Tensor  #: inverse variances, shape ``(...)`` or what broadcasts against the values


def guide(
    start: Tensor, transitions: Tensor, factors: Tensor, seen: Mapping[int, Seen], offsets: Tensor
) -> list[Law]:
    """The laws of the noise of chains, given observations: of the initial state, then of every step.

    Args:
        start: Factors of the covariance of the initial state, shape ``(..., D, r0)``.
        transitions: Of the means, shape ``(N, ..., D, D)``.
        factors: Of the covariances of the steps, shape ``(N, ..., D, r)``.
        seen: What was observed, by the number of the instant.
        offsets: What the means gain in a step, shape ``(N, ..., D)``.

    Returns:
        ``N + 1`` laws, differentiable.
    """
    size, steps = start.shape[-2], len(transitions)
    series = max((len(part.values) for part in seen.values()), default=1)
    precision, eta = start.new_zeros(size, size), start.new_zeros(series, *start.shape[:-2], size)
    laws: list[Law] = []
    for n in range(steps, -1, -1):
        if n in seen:
            row, values, weight = seen[n]
            precision = precision + weight[..., None, None] * torch.outer(row, row)
            eta = eta + (weight * values)[..., None] * row
        factor = start if n == 0 else factors[n - 1]
        spread = precision @ factor
        inner = torch.eye(factor.shape[-1]).to(factor) + factor.mT @ spread
        root = torch.linalg.cholesky(inner)
        inverse = torch.linalg.solve_triangular(root, torch.eye(factor.shape[-1]).to(root), upper=False)
        gain = inverse.mT @ (inverse @ factor.mT)
        pull = gain @ precision
        laws.append(Law(root, inverse, _times(gain, eta), pull, eta, precision))
        if n:
            transition = transitions[n - 1]
            eta = eta - (precision @ offsets[n - 1][..., None])[..., 0]
            eta = _times(transition.mT, eta - _times(spread, _times(gain, eta)))
            precision = transition.mT @ (precision - spread @ pull) @ transition
            precision = 0.5 * (precision + precision.mT)
    return laws[::-1]


def _times(matrix: Tensor, vectors: Tensor) -> Tensor:
    """Matrices ``(..., m, D)``, shared by all series or one for each, times vectors ``(B, ..., D)``."""
    own = matrix.dim() > vectors.dim()
    if own and len(matrix) == len(vectors):
        return (matrix @ vectors[..., None])[..., 0]
    shared = matrix[0] if own else matrix
    return (vectors.movedim(0, -2) @ shared.mT).movedim(-2, 0)  # one product for all series


class GuidedPosterior:
    """The law of a linear Gaussian chain given noisy observations, as a chain with moved noise.

    Args:
        chain: The prior.
        observations: Of one series or several at the same instants.

    Example:
        >>> from sde.noise import MarkovFBM
        >>> from inference.fractional.chain import fractional_chain
        >>> model = MarkovFBM(0.5, K=5, type="II", grid="paper", normalize="kernel")
        >>> chain = fractional_chain(model, torch.linspace(0, 1, 11))
        >>> posterior = GuidedPosterior(chain, Observations([10], torch.tensor([0.7]), 0.1))
        >>> paths = posterior.sample(NoiseStream(seed=0, start=0, stop=100))
        >>> bool((paths.log_weights + 1.166487).abs().max() < 1e-5)
        True
    """

    def __init__(self, chain: GaussianChain, observations: Observations) -> None:
        self.chain, self.observations = chain, observations
        self.laws = _backwards(chain, observations)

    def sample(self, noise: NoiseStream, *, series: int = 0, shift: Shift | None = None) -> GuidedPaths:
        """Draw paths given one of the series.

        Args:
            noise: ``n`` samples; the noise of the steps has the purpose of the Wiener increments.
            series: Which series.
            shift: What a learned posterior adds to the means of the noise, where the model is only nearly
                linear and Gaussian; ``None`` is the exact posterior.

        Returns:
            Paths; without ``shift`` every log weight is the log evidence, to rounding.

        Raises:
            ValueError: If there is no such series.
        """
        if not 0 <= series < self.observations.num_series:
            raise ValueError(f"`series` must lie in [0, {self.observations.num_series}); got {series}.")
        chain = self.chain
        rank = max(chain.start.shape[1], chain.factors.shape[2])
        normals = noise.normals(
            chain.num_steps + 1, purpose=Purpose.WIENER, channels=rank, dtype=torch.float64
        )
        weights = divergence = normals.new_zeros(len(noise))
        states: list[Tensor] = []
        for n, law in enumerate(self.laws):
            factor = chain.start if n == 0 else chain.factors[n - 1]
            moved = chain.mean.expand(len(noise), -1) if n == 0 else states[-1] @ chain.transitions[n - 1].mT
            drawn = normals[:, n, : factor.shape[1]]
            mean = law.push[series] - moved @ law.pull.mT
            if shift is not None and n:
                mean = mean + shift(n - 1, states[-1])
            step = mean + law.shaken(drawn)
            weights = weights + 0.5 * (drawn.square() - step.square()).sum(1) + law.log_root
            divergence = divergence + law.divergence(mean)
            states.append(moved + step @ factor.mT)
            if self.observations.at(n) is not None:
                seen = _one(self.observations, series)
                weights = weights + seen.log_density(n, states[-1] @ chain.rows[n])
        return GuidedPaths(torch.stack(states, 1), weights, divergence)


def _one(observations: Observations, series: int) -> Observations:
    """The observations of one series."""
    values = observations.values.reshape(-1, len(observations.steps))[series]
    return Observations(observations.steps, values, observations.deviation)


def _backwards(chain: GaussianChain, observations: Observations) -> list[Law]:
    """The laws of the noise of a chain."""
    seen = {}
    for n in observations.steps:
        values, variance = cast("tuple[Tensor, Tensor]", observations.at(n))
        seen[n] = Seen(chain.rows[n], values, 1 / variance)
    offsets = chain.mean.new_zeros(chain.num_steps, len(chain.mean))
    return guide(chain.start, chain.transitions, chain.factors, seen, offsets)
