"""The exact evidence of noisy observations of a linear Gaussian chain, by Kalman's filter."""

import math

import torch
from torch import Tensor

from inference.fractional.chain import GaussianChain, Observations

__all__ = ["filtered", "log_evidence"]


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
    return filtered(chain, observations)[0]


def filtered(chain: GaussianChain, observations: Observations) -> tuple[Tensor, Tensor, Tensor]:
    """Log evidence, and mean and variance of the process given the observations up to each instant.

    Returns:
        Shapes ``(B,)``, ``(B, N + 1)`` and ``(N + 1,)``; the variance is shared by the series.
    """
    if max(observations.steps) > chain.num_steps:
        raise ValueError(
            f"`observations` must lie at the instants 0 to {chain.num_steps} of the chain; "
            f"got {max(observations.steps)}."
        )
    series = observations.values.reshape(-1, len(observations.steps)).shape[0]
    mean, covariance = chain.mean.expand(series, -1), chain.start @ chain.start.mT
    total, row = chain.mean.new_zeros(series), chain.row
    means, variances = [], []
    for n in range(chain.num_steps + 1):
        if n:
            transition = chain.transitions[n - 1]
            mean = mean @ transition.mT
            covariance = transition @ covariance @ transition.mT + chain.covariances[n - 1]
        values = observations.at(n)
        if values is not None:
            gain = covariance @ row
            variance = row @ gain + observations.variance
            gap = values - mean @ row
            total = total - 0.5 * (gap.square() / variance + torch.log(2 * math.pi * variance))
            mean = mean + gap[:, None] * (gain / variance)
            covariance = covariance - torch.outer(gain, gain) / variance
        means.append(mean @ row)
        variances.append(row @ covariance @ row)
    return total, torch.stack(means, 1), torch.stack(variances)
