r"""Hurst index from the variations of a path: how the mean square of differences grows with their lag.

For fractional Brownian motion with :math:`\mathrm{E}(X_{t+h} - X_t)^2 = \sigma^2 h^{2H}`, the mean square
:math:`V_\ell` of differences of any order over ``l`` steps is proportional to :math:`\ell^{2H}`, so half
the slope of :math:`\log V_\ell` against :math:`\log \ell` estimates ``H``.

Standard errors are exact to first order: the covariance of the :math:`V_\ell` of Gaussian differences is the
sum of their squared autocovariances, evaluated at the estimate for the length of the path at hand, and the
slope is linear in their logarithms.

References:
    Istas & Lang (1997), Quadratic variations and estimation of the local Holder index of a Gaussian process.
    doi:10.1016/S0246-0203(97)80099-4
    Coeurjolly (2001), Estimating the parameters of a fractional Brownian motion by discrete variations of its
    sample paths, section 3. doi:10.1023/A:1017507306245
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sde.hurst.estimate import Diagnostic, HurstEstimate, as_rows

__all__ = ["LocalHurst", "local_index", "quadratic_variations", "variogram"]

_FIRST, _SECOND = (1.0, -1.0), (1.0, -2.0, 1.0)
_DEGREE = 20  # of the standard error in the index: 1e-5 of it
_MARGIN = 0.01  # the covariances are evaluated at indices that stay this far from 0 and 1


def quadratic_variations(path: Tensor, lags: Sequence[int] = (1, 2)) -> HurstEstimate:
    r"""Hurst index by the quadratic variations of second differences.

    .. math:: V_\ell = \frac{1}{N_\ell} \sum_i (X_{i + 2\ell} - 2 X_{i + \ell} + X_i)^2

    Asymptotically normal for every ``H``; blind to linear trends.

    Args:
        path: Values at equal steps, shape ``(..., T)``.
        lags: At least two different lags, in steps; 1 and 2 is the classical choice.

    Returns:
        Estimates of shape ``(...)``.

    Raises:
        ValueError: If the path is too short, constant or not finite, or the lags are not increasing.
        TypeError: If the path is not floating point.

    Example:
        >>> from sde.noise import NoiseStream, fbm_path
        >>> path = fbm_path(0.3, NoiseStream(seed=0, start=0, stop=1), 10_000, dtype=torch.float64)
        >>> estimate = quadratic_variations(path[0])
        >>> abs(estimate.H.item() - 0.3) < 5 * estimate.std_error.item() < 0.1
        True

    References:
        Istas & Lang (1997). doi:10.1016/S0246-0203(97)80099-4
    """
    return _slope(path, lags, _SECOND, "quadratic variations")


def variogram(path: Tensor, lags: Sequence[int] = tuple(range(1, 11))) -> HurstEstimate:
    r"""Hurst index by the variogram, the mean square of first differences.

    .. math:: V_\ell = \frac{1}{N_\ell} \sum_i (X_{i + \ell} - X_i)^2

    More precise than second differences for ``H < 3/4``. For larger ``H`` it converges slowly, to a law that
    is not normal, and is biased downwards: prefer :func:`quadratic_variations` or :func:`whittle`.

    Args:
        path: Values at equal steps, shape ``(..., T)``.
        lags: Increasing lags, in steps.

    Returns:
        Estimates of shape ``(...)``.

    Raises:
        ValueError: As for :func:`quadratic_variations`.
        TypeError: As for :func:`quadratic_variations`.

    References:
        Coeurjolly (2001), section 3. doi:10.1023/A:1017507306245
    """
    return _slope(path, lags, _FIRST, "variogram")


@dataclass(frozen=True, slots=True, eq=False)
class LocalHurst:
    """Hurst index along a path.

    Attributes:
        position: Index of the middle value of each window, shape ``(w,)``.
        H: Estimates, shape ``(..., w)``.
        std_error: Standard errors, as if the index were constant in the window, shape ``(..., w)``.
    """

    position: Tensor
    H: Tensor
    std_error: Tensor


def local_index(path: Tensor, window: int, *, stride: int = 1, lags: Sequence[int] = (1, 2)) -> LocalHurst:
    """Local Hurst index of a multifractional path, by quadratic variations in a moving window.

    Args:
        path: Values at equal steps, shape ``(..., T)``.
        window: Values in a window, at least 16 and at most ``T``. A longer window has less noise and blurs
            more.
        stride: Steps between windows, at least 1.
        lags: As for :func:`quadratic_variations`.

    Returns:
        Estimates for each window.

    Raises:
        ValueError: As for :func:`quadratic_variations`, or if the window is out of range.
        TypeError: As for :func:`quadratic_variations`.

    Example:
        >>> from sde.noise import NoiseStream, fbm_path
        >>> path = fbm_path(0.3, NoiseStream(seed=0, start=0, stop=2), 1000, dtype=torch.float64)
        >>> local_index(path, 200, stride=100).H.shape
        torch.Size([2, 9])

    References:
        Benassi, Cohen & Istas (1998), Identifying the multifractional function of a Gaussian process.
        doi:10.1016/S0167-7152(98)00078-9
    """
    if not 16 <= window <= path.shape[-1]:
        raise ValueError(f"`window` must lie in [16, {path.shape[-1]}]; got {window}.")
    if stride < 1:
        raise ValueError(f"`stride` must be at least 1; got {stride}.")
    windows = path.unfold(-1, window, stride)
    estimate = quadratic_variations(windows, lags)
    position = torch.arange(windows.shape[-2]) * stride + window // 2
    return LocalHurst(position, estimate.H, estimate.std_error)


def _slope(path: Tensor, lags: Sequence[int], taps: tuple[float, ...], method: str) -> HurstEstimate:
    """Half the least-squares slope of the logarithm of the variations, with its standard error."""
    steps = torch.tensor(lags)
    if len(steps) < 2 or steps[0] < 1 or not bool((steps.diff() > 0).all()):
        raise ValueError(f"`lags` must be at least two increasing numbers of steps; got {tuple(lags)}.")
    rows = as_rows(path, 2 * (len(taps) - 1) * int(steps[-1]) + 2)
    variations = torch.stack([_differences(rows, taps, lag).square().mean(-1) for lag in lags], -1)
    x = steps.double().log()
    weights = (x - x.mean()) / (x - x.mean()).square().sum()
    h = (variations.log() @ weights) / 2
    index = h.clamp(_MARGIN, 1 - _MARGIN)
    error = _slope_error(index, taps, lags, rows.shape[-1], weights)
    # The constant of the fit, divided by the variance of a difference at unit scale.
    level = (variations.log() - 2 * h[:, None] * x).mean(-1)
    scale = torch.exp(level / 2) / _covariance(index[:, None], taps, 1, 1, torch.zeros(1)).sqrt()[:, 0]
    fitted = torch.exp(level[:, None] + 2 * h[:, None] * x)
    shape = path.shape[:-1]
    diagnostic = Diagnostic(
        steps.double(),
        variations.reshape(*shape, -1),
        fitted.reshape(*shape, -1),
        ("lag [steps]", "mean square of differences"),
    )
    h = h.reshape(shape)
    return HurstEstimate(h, error.reshape(shape), h, scale.reshape(shape), method, diagnostic)


def _slope_error(
    hurst: Tensor, taps: tuple[float, ...], lags: Sequence[int], length: int, weights: Tensor
) -> Tensor:
    """Standard errors of half the slope, interpolated between indices where they are computed."""

    def at(nodes: np.ndarray) -> np.ndarray:
        spread = _relative_covariance(torch.from_numpy(nodes), taps, lags, length)
        return (torch.einsum("l,nlm,m->n", weights, spread, weights).log() / 2).numpy()

    curve = np.polynomial.Chebyshev.interpolate(at, _DEGREE, domain=[_MARGIN, 1 - _MARGIN])
    return torch.from_numpy(np.exp(curve(hurst.numpy()))) / 2


def _differences(rows: Tensor, taps: tuple[float, ...], lag: int) -> Tensor:
    """The filtered rows ``sum_p a_p x[i + p * lag]``."""
    count = rows.shape[-1] - (len(taps) - 1) * lag
    parts = [a * rows[:, p * lag : p * lag + count] for p, a in enumerate(taps)]
    return torch.stack(parts).sum(0)


def _relative_covariance(hurst: Tensor, taps: tuple[float, ...], lags: Sequence[int], length: int) -> Tensor:
    """Covariance of the logarithms of the variations, to first order, shape ``(n, l, l)``."""
    order = len(taps) - 1
    out = hurst.new_zeros(len(hurst), len(lags), len(lags))
    own = [_covariance(hurst[:, None], taps, lag, lag, hurst.new_zeros(1))[:, 0] for lag in lags]
    for a, first in enumerate(lags):
        for b, second in enumerate(lags[: a + 1]):
            n, m = length - order * first, length - order * second
            gap = torch.arange(-(n - 1), m, dtype=torch.float64)  # position in the second minus the first
            pairs = torch.minimum(torch.minimum(gap + n, m - gap), torch.tensor(float(min(n, m))))
            cross = _covariance(hurst[:, None], taps, first, second, gap)
            out[:, a, b] = out[:, b, a] = 2 * (cross.square() @ pairs) / (n * m * own[a] * own[b])
    return out


def _covariance(hurst: Tensor, taps: tuple[float, ...], first: int, second: int, gap: Tensor) -> Tensor:
    """Covariance of differences of unit fBM, ``gap`` steps apart, shape ``(n, g)``."""
    total = hurst.new_zeros(len(hurst), len(gap))
    for p, a in enumerate(taps):
        for q, b in enumerate(taps):
            distance = (gap + q * second - p * first).abs()
            safe = torch.where(distance > 0, distance, 1.0)
            total = total - a * b / 2 * torch.where(distance > 0, safe ** (2 * hurst), 0.0)
    return total
