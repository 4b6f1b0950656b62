r"""Linear Gaussian chains: what a linear equation is between the instants where it is looked at, exactly.

.. math:: z_0 = m + L_0 e_0, \qquad z_{n+1} = \Phi_n z_n + L_n e_n, \qquad
          o_i = h_{n_i} \cdot z_{n_i} + \varepsilon_i

with standard normal :math:`e`. Equations driven by the Markov approximation of fractional Brownian motion are
such chains: many rates, one Wiener process, hence factors :math:`L_n` of low rank.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from sde.noise.gaussian_path import low_rank_factors
from sde.noise.markov_fbm import MarkovFBM
from sde.noise.ou_transition import slope_covariance
from sde.shapes import check_shapes

__all__ = ["GaussianChain", "Observations", "fractional_chain", "linear_transition"]

_BATCH = 64  # steps of different lengths whose transitions are computed at once


@dataclass(frozen=True, slots=True, eq=False)
class GaussianChain:
    """A linear Gaussian process at some instants.

    Attributes:
        times: Instants, shape ``(N + 1,)``.
        mean: Mean at the first, shape ``(D,)``.
        start: Factor of the covariance there, shape ``(D, r0)``.
        transitions: Of the means, shape ``(N, D, D)``.
        covariances: Of the noise of the steps, shape ``(N, D, D)``.
        factors: Of these, shape ``(N, D, r)``; without a gradient, since factors are not unique.
        rows: What is observed of the states, the process itself, shape ``(N + 1, D)``.
    """

    times: Tensor
    mean: Tensor
    start: Tensor
    transitions: Tensor
    covariances: Tensor
    factors: Tensor
    rows: Tensor

    def __post_init__(self) -> None:
        check_shapes(
            mean=(self.mean, "D"),
            start=(self.start, "D r0"),
            transitions=(self.transitions, "N D D"),
            covariances=(self.covariances, "N D D"),
            factors=(self.factors, "N D r"),
            rows=(self.rows, f"{len(self.transitions) + 1} D"),
        )

    @property
    def num_steps(self) -> int:
        """Number of steps."""
        return len(self.transitions)

    def process(self, states: Tensor) -> Tensor:
        """The process, shape ``(..., N + 1)``, of states at all instants, ``(..., N + 1, D)``."""
        return (states * self.rows).sum(-1)


@dataclass(frozen=True, slots=True, eq=False)
class Observations:
    """Noisy observations of the process at some of the instants.

    Args:
        steps: Numbers of the instants, increasing, shape ``(M,)``.
        values: What was observed, one series or several at the same instants, shape ``(M,)`` or ``(B, M)``.
        deviation: Standard deviation of the noise, positive: one, or one for each instant, shape ``(M,)``.

    Raises:
        ValueError: If a shape is wrong, the steps do not increase, or a deviation is not positive.
    """

    steps: Sequence[int]
    values: Tensor
    deviation: float | Tensor

    def __post_init__(self) -> None:
        steps = list(self.steps)
        if not steps or any(a >= b for a, b in pairwise(steps)) or steps[0] < 0:
            raise ValueError(f"`steps` must be increasing numbers of at least 0; got {steps}.")
        if self.values.dim() not in (1, 2) or self.values.shape[-1] != len(steps):
            raise ValueError(
                f"`values` must have shape (M) or (B, M) with M = {len(steps)}; "
                f"got {tuple(self.values.shape)}."
            )
        deviation = torch.as_tensor(self.deviation).detach()
        if tuple(deviation.shape) not in ((), (len(steps),)):
            raise ValueError(
                f"`deviation` must have shape () or ({len(steps)},); got {tuple(deviation.shape)}."
            )
        if not bool((deviation > 0).all()):
            raise ValueError(f"`deviation` must be positive; got {self.deviation}.")

    @property
    def num_series(self) -> int:
        """Number of series."""
        return self.values.reshape(-1, len(self.steps)).shape[0]

    def at(self, step: int) -> tuple[Tensor, Tensor] | None:
        """The values ``(B,)`` that were observed at an instant and their variance, if any."""
        steps = list(self.steps)
        if step not in steps:
            return None
        place = steps.index(step)
        variance = torch.as_tensor(self.deviation, dtype=torch.float64).square().expand(len(steps))
        return self.values.double().reshape(-1, len(steps))[:, place], variance[place]

    def log_density(self, step: int, process: Tensor) -> Tensor:
        """Log density of what was observed at an instant, given the process there, of its shape."""
        seen = self.at(step)
        if seen is None:
            return torch.zeros_like(process)
        values, variance = seen
        return -0.5 * ((values - process).square() / variance + torch.log(2 * math.pi * variance))


def linear_transition(matrix: Tensor, noise: Tensor, span: Tensor) -> tuple[Tensor, Tensor]:
    r"""Transition and covariance of :math:`\mathrm dz = F z\,\mathrm dt + G\,\mathrm dW` over a span.

    .. math:: \Phi = e^{F h}, \qquad Q = \int_0^h e^{F s} G G^{\mathsf T} e^{F^{\mathsf T} s}\,\mathrm ds

    by quadrature over a short span and doubling: exact to rounding, however stiff ``F``; differentiable.

    Args:
        matrix: ``F``, float64, shape ``(D, D)``.
        noise: ``G``, shape ``(D, m)``.
        span: ``h``, of any shape ``(...)``.

    Returns:
        Both, shape ``(..., D, D)``.

    Example:
        >>> one = torch.eye(1, dtype=torch.float64)
        >>> decay, covariance = linear_transition(-one, one, torch.tensor(1.0))
        >>> torch.allclose(covariance, (1 - torch.exp(torch.tensor([[-2.0]]).double())) / 2)
        True
    """
    norm = float((torch.linalg.matrix_norm(matrix.detach(), 1) * span.detach().max()).double())
    doublings = max(0, math.ceil(math.log2(norm))) if norm > 1 else 0
    short = span.double()[..., None, None] / 2**doublings
    nodes, weights = np.polynomial.legendre.leggauss(10)
    shape = (-1, *(1 for _ in short.shape))
    y, w = (torch.from_numpy(part).to(matrix).view(shape) for part in (0.5 * (nodes + 1), 0.5 * weights))
    spread = torch.linalg.matrix_exp(matrix * (short * y)) @ noise
    covariance = short * (w * (spread @ spread.mT)).sum(0)
    transition = torch.linalg.matrix_exp(matrix * short)
    for _ in range(doublings):
        covariance = covariance + transition @ covariance @ transition.mT
        transition = transition @ transition
    return transition, covariance


def fractional_chain(
    model: MarkovFBM,
    times: Tensor,
    *,
    reversion: float | Tensor = 0.0,
    scale: float | Tensor = 1.0,
    initial: float = 0.0,
    initial_deviation: float = 0.0,
) -> GaussianChain:
    r"""The process :math:`\mathrm dX = -\theta X\,\mathrm dt + s\,\mathrm d\hat B^H` at some instants.

    The state is ``X``, the differences ``Z`` of the Ornstein--Uhlenbeck processes, and (type I) their slopes
    ``D``, which hold the infinite past. Where the Hurst index depends on time, the process is
    :math:`X_t = X_0 + s \sum_k \omega_k(H(t)) Z_k(t)`, multifractional Brownian motion.

    Args:
        model: The noise, which starts at the first instant; may carry a gradient in its index.
        times: Increasing instants, shape ``(N + 1,)``.
        reversion: Rate :math:`\theta`, one over time; 0 is fractional Brownian motion, and the only value
            where the index depends on time.
        scale: ``s``.
        initial: Mean of ``X`` at the first instant.
        initial_deviation: Its standard deviation.

    Returns:
        The chain, float64.

    Raises:
        ValueError: If the instants do not increase, or a multifractional process is to revert.

    Example:
        >>> chain = fractional_chain(MarkovFBM(0.7, K=5, grid="paper"), torch.linspace(0, 1, 11))
        >>> chain.transitions.shape
        torch.Size([10, 11, 11])
    """
    times = times.double()
    if len(times) < 2 or not bool((times.diff() > 0).all()):
        raise ValueError(f"`times` must be at least 2 increasing instants; got {len(times)} that are not.")
    reversion, scale = (torch.as_tensor(part, dtype=torch.float64) for part in (reversion, scale))
    if callable(model.H) and bool(reversion != 0):
        raise ValueError(f"`reversion` must be 0 where the index depends on time; got {float(reversion)}.")
    rows = _rows(model, times, scale)
    omega = rows.new_zeros(len(model.rates)) if callable(model.H) else scale * model.omega()
    matrix, noise = _system(model, reversion, omega)
    size, count = len(matrix), len(model.rates)
    start = torch.zeros((size, 1 + (count if model.type == "I" else 0)), dtype=torch.float64)
    start[0, 0] = initial_deviation
    if model.type == "I":
        factor = low_rank_factors(slope_covariance(model.rates))
        start[1 + count :, 1 : 1 + factor.shape[1]] = factor
    steps = _steps(matrix, noise, times.diff())
    unit = torch.zeros(size, dtype=torch.float64)
    unit[0] = 1
    return GaussianChain(times, initial * unit, start, *steps, rows)


def _rows(model: MarkovFBM, times: Tensor, scale: Tensor) -> Tensor:
    """The process as a function of the state: its first component, or its start and the weighted ``Z``."""
    count = len(model.rates)
    weights = times.new_zeros((len(times), count))
    if callable(model.H):
        weights = scale * model.omega(model.H(times))
    past = weights.new_zeros((len(times), count if model.type == "I" else 0))
    return torch.cat((torch.ones_like(times)[:, None], weights, past), 1)


def _system(model: MarkovFBM, reversion: Tensor, omega: Tensor) -> tuple[Tensor, Tensor]:
    """The linear equation of ``(X, Z)`` or ``(X, Z, D)``, with the weights of the noise of ``X``."""
    rates = model.rates
    count = len(rates)
    size = 1 + count * (2 if model.type == "I" else 1)
    z, d = slice(1, 1 + count), slice(1 + count, size)
    rows = torch.zeros((size, size), dtype=torch.float64)
    rows[z, z] = -torch.diag(rates)
    pull = -omega * rates
    if model.type == "I":
        rows[z, d] = -torch.eye(count, dtype=torch.float64)
        pull = torch.cat((pull, -omega))
    first = torch.cat((-reversion.reshape(1), pull))
    matrix = torch.cat((first[None], rows[1:]))
    noise = torch.cat((omega.sum().reshape(1), torch.ones(count, dtype=torch.float64)))
    noise = torch.cat((noise, noise.new_zeros(size - len(noise))))
    return matrix, noise[:, None]


def _steps(matrix: Tensor, noise: Tensor, spans: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Transitions, covariances and factors of all steps; those of equal length are computed once."""
    keys = [float(f"{float(span):.12g}") for span in spans]
    lengths = sorted(set(keys))
    parts = [
        linear_transition(matrix, noise, torch.tensor(lengths[k : k + _BATCH], dtype=torch.float64))
        for k in range(0, len(lengths), _BATCH)
    ]
    place = {length: k for k, length in enumerate(lengths)}
    rows = [place[key] for key in keys]
    transitions, covariances = (torch.cat([part[k] for part in parts])[rows] for k in (0, 1))
    return transitions, covariances, low_rank_factors(covariances.detach())
