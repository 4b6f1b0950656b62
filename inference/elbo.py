r"""Evidence lower bounds of observations along paths.

.. math::

    \log p(o) \ge \mathbb E_Q \Bigl[\sum_i \log p(o_i \mid X_{t_i}) - \tfrac12 \int |u|^2\,\mathrm dt\Bigr]
    - \mathrm{KL}(q(X_0) \,\|\, p(X_0))

and, with K paths for each series, the importance-weighted bound
:math:`\mathbb E \log \frac1K \sum_k w_k \le \log p(o)`, tighter with K.

References:
    Burda, Grosse & Salakhutdinov (2016), Importance weighted autoencoders. arXiv:1509.00519
    Roeder, Wu & Duvenaud (2017), Sticking the landing. arXiv:1703.09194
    Li, Wong, Chen & Duvenaud (2020), section 5. arXiv:2001.01328
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from inference.girsanov import PathMeasure

__all__ = ["Bound", "bound", "effective_sample_size", "gaussian_divergence"]


class Bound(NamedTuple):
    """Lower bounds of the log evidence of every series, and how good the paths are."""

    elbo: Tensor  #: mean over the paths, shape ``(B,)``
    elbo_error: Tensor  #: its standard error; NaN for one path
    weighted: Tensor  #: importance-weighted bound, shape ``(B,)``
    effective_sample_size: Tensor  #: of the paths of each series, in [1, K], shape ``(B,)``


def bound(
    measure: PathMeasure,
    log_likelihood: Tensor,
    *,
    initial_log_ratio: Tensor | None = None,
    paths_per_series: int | None = None,
    low_variance: bool = True,
) -> Bound:
    """Bounds from the paths of :func:`inference.girsanov.solve_measure`.

    Args:
        measure: Paths; those of a series follow one another.
        log_likelihood: Log density of a path's observations, shape ``(n,)``.
        initial_log_ratio: Log of prior over posterior of the initial state of each path, shape ``(n,)``.
        paths_per_series: Paths ``K`` of each series; ``None``: all belong to one.
        low_variance: Keep the martingale in the mean: its mean is zero, and near the true posterior it
            cancels the spread of the rest. ``False`` leaves it out. The spread of *gradients* vanishes there,
            too, where the paths were solved with ``frozen``.

    Returns:
        Bounds for ``B = n / K`` series, differentiable.

    Raises:
        ValueError: If the paths are not a multiple of ``paths_per_series``, shapes disagree, or the posterior
            left the range of the noise, so that the bound is minus infinity.

    Example:
        >>> from sde import SDE, NoiseStream
        >>> from inference.girsanov import solve_measure
        >>> walk = SDE(lambda t, x: 0 * x, lambda t, x: torch.ones_like(x))
        >>> start, times = torch.zeros(64, 1), torch.linspace(0, 1, 5)
        >>> paths = solve_measure(walk, walk, start, times, NoiseStream(0, 0, 64))
        >>> bound(paths, -0.5 * paths.paths[:, -1, 0] ** 2).elbo.shape
        torch.Size([1])
    """
    n = len(log_likelihood)
    if tuple(log_likelihood.shape) != tuple(measure.divergence.shape[:1]):
        raise ValueError(
            f"`log_likelihood` must have shape {tuple(measure.divergence.shape[:1])}; "
            f"got {tuple(log_likelihood.shape)}."
        )
    if unreached := int(measure.unreached.sum()):
        raise ValueError(
            f"`measure` must be of a posterior whose drift differs from the prior's only where noise "
            f"reaches; it does elsewhere on {unreached} of {n} paths, whose divergence is infinite. Give "
            "the posterior by its control: solve_controlled."
        )
    each = n if paths_per_series is None else paths_per_series
    if each < 1 or n % each:
        raise ValueError(f"`paths_per_series` must divide the number of paths, {n}; got {each}.")
    start = torch.zeros_like(log_likelihood) if initial_log_ratio is None else initial_log_ratio
    log_weights = (log_likelihood + start + measure.log_ratio[:, -1]).view(-1, each)
    terms = log_weights
    if not low_variance:
        terms = (log_likelihood + start - measure.divergence[:, -1]).view(-1, each)
    error = terms.std(1) / math.sqrt(each) if each > 1 else torch.full_like(terms[:, 0], math.nan)
    weighted = log_weights.logsumexp(1) - math.log(each)
    return Bound(terms.mean(1), error, weighted, effective_sample_size(log_weights))


def effective_sample_size(log_weights: Tensor) -> Tensor:
    r"""Effective number of paths, :math:`(\sum w)^2 / \sum w^2`, shape ``(B, K)`` to ``(B,)``."""
    return (2 * log_weights.logsumexp(-1) - (2 * log_weights).logsumexp(-1)).exp()


def gaussian_divergence(
    mean: Tensor, deviation: Tensor, prior_mean: Tensor, prior_deviation: Tensor
) -> Tensor:
    """Divergence of diagonal normal laws, summed over the last axis.

    Example:
        >>> one, zero = torch.ones(1), torch.zeros(1)
        >>> gaussian_divergence(one, one, zero, one)
        tensor(0.5000)
    """
    ratio, gap = deviation / prior_deviation, (mean - prior_mean) / prior_deviation
    return (0.5 * (ratio.square() + gap.square() - 1) - ratio.log()).sum(-1)
