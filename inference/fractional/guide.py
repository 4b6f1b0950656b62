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

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from inference.fractional.chain import GaussianChain, Observations
from sde.noise.stream import NoiseStream, Purpose

__all__ = ["GuidedPaths", "GuidedPosterior"]

Shift = Callable[[int, Tensor], Tensor]
"""Step and state ``(n, D)`` to an addition to the mean of the step's noise, ``(n, r)``."""


class GuidedPaths(NamedTuple):
    """Paths of the posterior, and how well each explains the observations."""

    states: Tensor  #: shape ``(n, N + 1, D)``
    log_weights: Tensor  #: log of prior over posterior times likelihood, shape ``(n,)``
    divergence: Tensor  #: Kullback--Leibler divergence of the steps from the prior, shape ``(n,)``


@dataclass(frozen=True, slots=True, eq=False)
class _Law:
    """The law of the noise of one step, as a function of the mean that the state has without it."""

    deviation: Tensor  #: root of P, shape ``(r, r)``
    information: Tensor  #: P
    gain: Tensor  #: P L^T, shape ``(r, D)``
    eta: Tensor  #: shape ``(B, D)``
    precision: Tensor  #: Lambda, shape ``(D, D)``

    def mean(self, moved: Tensor, series: Tensor) -> Tensor:
        """Mean of the noise, shape ``(n, r)``; ``moved`` is ``(n, D)``, ``series`` the series of each row."""
        return (self.eta[series] - moved @ self.precision) @ self.gain.mT


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
        if not 0 <= series < len(self.laws[0].eta):
            raise ValueError(f"`series` must lie in [0, {len(self.laws[0].eta)}); got {series}.")
        chain, rows = self.chain, torch.full((len(noise),), series)
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
            mean = law.mean(moved, rows)
            if shift is not None and n:
                mean = mean + shift(n - 1, states[-1])
            step = mean + drawn @ law.deviation.mT
            log_root = law.deviation.diagonal().log().sum()
            weights = weights + 0.5 * (drawn.square() - step.square()).sum(1) + log_root
            trace = law.information.diagonal().sum() - factor.shape[1]
            divergence = divergence + 0.5 * (trace + mean.square().sum(1)) - log_root
            states.append(moved + step @ factor.mT)
            if self.observations.at(n) is not None:
                seen = _one(self.observations, series)
                weights = weights + seen.log_density(n, states[-1] @ chain.rows[n])
        return GuidedPaths(torch.stack(states, 1), weights, divergence)


def _one(observations: Observations, series: int) -> Observations:
    """The observations of one series."""
    values = observations.values.reshape(-1, len(observations.steps))[series]
    return Observations(observations.steps, values, observations.deviation)


def _backwards(chain: GaussianChain, observations: Observations) -> list[_Law]:
    """The laws of the noise: of the initial state, then of every step."""
    size, series = len(chain.mean), observations.num_series
    precision, eta = chain.mean.new_zeros(size, size), chain.mean.new_zeros(series, size)
    laws: list[_Law] = []
    for n in range(chain.num_steps, -1, -1):
        seen = observations.at(n)
        if seen is not None:
            row = chain.rows[n]
            precision = precision + torch.outer(row, row) / seen[1]
            eta = eta + seen[0][:, None] * row / seen[1]
        factor = chain.start if n == 0 else chain.factors[n - 1]
        inner = torch.eye(factor.shape[1], dtype=torch.float64) + factor.mT @ precision @ factor
        root = torch.linalg.cholesky(inner)
        inverse = torch.linalg.inv(root)
        information = inverse.mT @ inverse
        # The triangular root of P, so that its determinant is at hand.
        deviation = torch.linalg.cholesky(information)
        laws.append(_Law(deviation, information, information @ factor.mT, eta, precision))
        if n:
            keep = torch.eye(size, dtype=torch.float64) - precision @ factor @ information @ factor.mT
            transition = chain.transitions[n - 1]
            eta = (eta @ keep.mT) @ transition
            precision = transition.mT @ keep @ precision @ transition
            precision = 0.5 * (precision + precision.mT)
    return laws[::-1]
