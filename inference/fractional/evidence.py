"""The exact evidence of noisy observations of a linear Gaussian chain, by Kalman's filter."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from inference.fractional.chain import GaussianChain, Observations

__all__ = ["Smoothed", "log_evidence", "smoothed"]


class Smoothed(NamedTuple):
    """The process at every instant, given all observations."""

    log_evidence: Tensor  #: shape ``(B,)``
    mean: Tensor  #: shape ``(B, N + 1)``
    variance: Tensor  #: shape ``(N + 1,)``, shared by the series


def log_evidence(chain: GaussianChain, observations: Observations) -> Tensor:
    r"""Log density of the observations, :math:`\log p(o)`, with the whole process integrated out.

    Args:
        chain: The process.
        observations: At some of its instants; irregular ones, too.

    Returns:
        One number for each series, shape ``(B,)``, float64; differentiable in what the chain depends on.

    Raises:
        ValueError: If an observation lies behind the last instant.

    Example:
        >>> from sde.noise import MarkovFBM
        >>> from inference.fractional.chain import fractional_chain
        >>> model = MarkovFBM(0.5, K=5, type="II", grid="paper", normalize="kernel")
        >>> chain = fractional_chain(model, torch.linspace(0, 1, 11))
        >>> seen = Observations([10], torch.tensor([0.7]), 0.1)
        >>> round(float(log_evidence(chain, seen)), 6)
        -1.166487

    References:
        Kalman (1960). doi:10.1115/1.3662552
        Sarkka & Solin (2019), Applied Stochastic Differential Equations, chapter 10.
        doi:10.1017/9781108186735
    """
    return _forwards(chain, observations)[0]


def smoothed(chain: GaussianChain, observations: Observations) -> Smoothed:
    """The process given all observations: evidence, and mean and variance at every instant.

    Backwards by Bryson and Frazier's recursion, which inverts no covariance: those of the steps have low
    rank.

    Args:
        chain: The process.
        observations: At some of its instants.

    Returns:
        Moments, float64, differentiable.

    Raises:
        ValueError: If an observation lies behind the last instant.

    References:
        Bierman (1977), Factorization Methods for Discrete Sequential Estimation, section X.5.
    """
    total, states = _forwards(chain, observations)
    size = len(chain.mean)
    pull, precision = torch.zeros_like(states[-1].mean), chain.mean.new_zeros(size, size)
    means, variances = [], []
    for n in range(chain.num_steps, -1, -1):
        (mean, covariance, seen), row = states[n], chain.rows[n]
        if seen is not None:
            gap, gain, variance = seen
            keep = torch.eye(size, dtype=torch.float64) - torch.outer(gain / variance, row)
            pull = pull @ keep - torch.outer(gap, row) / variance
            precision = keep.mT @ precision @ keep + torch.outer(row, row) / variance
        spread = covariance @ row
        means.append(mean @ row - pull @ spread)
        variances.append(row @ spread - spread @ precision @ spread)
        if n:
            transition = chain.transitions[n - 1]
            pull, precision = pull @ transition, transition.mT @ precision @ transition
    return Smoothed(total, torch.stack(means[::-1], 1), torch.stack(variances[::-1]))


class _Predicted(NamedTuple):
    """A state before what is observed there."""

    mean: Tensor  #: shape ``(B, D)``
    covariance: Tensor  #: shape ``(D, D)``
    seen: tuple[Tensor, Tensor, Tensor] | None  #: gap ``(B,)``, gain ``(D,)`` and variance of an observation


def _forwards(chain: GaussianChain, observations: Observations) -> tuple[Tensor, list[_Predicted]]:
    """Kalman's filter: log evidence, and the predictions."""
    if max(observations.steps) > chain.num_steps:
        raise ValueError(
            f"`observations` must lie at the instants 0 to {chain.num_steps} of the chain; "
            f"got {max(observations.steps)}."
        )
    mean = chain.mean.expand(observations.num_series, -1)
    covariance = chain.start @ chain.start.mT
    total, states = chain.mean.new_zeros(observations.num_series), []
    for n in range(chain.num_steps + 1):
        if n:
            transition = chain.transitions[n - 1]
            mean = mean @ transition.mT
            covariance = transition @ covariance @ transition.mT + chain.covariances[n - 1]
        before, seen = (mean, covariance), observations.at(n)
        update = None
        if seen is not None:
            row = chain.rows[n]
            gain, gap = covariance @ row, seen[0] - mean @ row
            variance = row @ gain + seen[1]
            total = total - 0.5 * (gap.square() / variance + torch.log(2 * math.pi * variance))
            mean = mean + gap[:, None] * (gain / variance)
            covariance = covariance - torch.outer(gain, gain) / variance
            update = gap, gain, variance
        states.append(_Predicted(*before, update))
    return total, states
