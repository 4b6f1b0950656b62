r"""Hurst index from fluctuations in windows: detrended fluctuation analysis and the rescaled range.

Both regress the logarithm of a fluctuation on that of the window. The slopes are biased at any length that is
met in practice, and their errors have no usable theory, so both are calibrated: the same estimator is applied
to exact fractional Gaussian noise of the same length over a range of ``H``, and the mean and the standard
deviation of its slopes, as smooth functions of ``H``, turn the slope that was seen into an estimate without
bias and a standard error.

References:
    Peng et al. (1994), Mosaic organization of DNA nucleotides. doi:10.1103/PhysRevE.49.1685
    Hurst (1951), Long-term storage capacity of reservoirs. doi:10.1061/TACEAT.0006518
    Anis & Lloyd (1976), The expected value of the adjusted rescaled Hurst range of independent normal
    summands. doi:10.1093/biomet/63.1.111
    Weron (2002), Estimating long-range dependence: finite sample properties and confidence intervals,
    section 2. doi:10.1016/S0378-4371(02)00961-5
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from sde.hurst.estimate import Diagnostic, HurstEstimate, Response, as_rows
from sde.noise.circulant import fbm_path
from sde.noise.stream import NoiseStream

__all__ = ["anis_lloyd", "dfa", "rescaled_range"]

_NODES = np.linspace(0.02, 0.98, 17)  # indices at which an estimator is calibrated
_CALIBRATION = NoiseStream(0, 0, 400)
_SMOOTH = (6, 5)  # degrees of the polynomials for the mean and the logarithm of the standard deviation
_DENSE = np.linspace(0.001, 0.999, 1997)

Slopes = Callable[[Tensor], tuple[Tensor, Diagnostic]]
"""Paths ``(n, T)`` to raw slopes ``(n,)`` and the diagnostic."""


def dfa(
    path: Tensor, *, windows: Sequence[int] | None = None, calibration: NoiseStream = _CALIBRATION
) -> HurstEstimate:
    r"""Hurst index by detrended fluctuation analysis of order 1, calibrated.

    The path is cut into windows, a line is fitted in each, and the root mean square :math:`F(s)` of what
    remains grows as :math:`s^H` with the length ``s``. Blind to linear trends of the path.

    Args:
        path: Values at equal steps, shape ``(..., T)``: for the analysis of a noise, its sums.
        windows: Increasing lengths of windows, in steps, at least 4; by default 20 from 8 to a quarter of
            the path, spread evenly in the logarithm.
        calibration: The samples of exact noise on which bias and error are found; the cost grows with their
            number and the length of the path.

    Returns:
        Estimates of shape ``(...)``; ``raw`` has the slopes themselves.

    Raises:
        ValueError: If the path is too short, constant or not finite, or the windows do not fit.
        TypeError: If the path is not floating point.

    References:
        Peng et al. (1994). doi:10.1103/PhysRevE.49.1685
    """
    rows = as_rows(path, 65)
    sizes = _windows(windows, rows.shape[-1] - 1)
    return _calibrated(path, rows, lambda paths: _dfa(paths, sizes), calibration, "DFA")


def rescaled_range(
    path: Tensor, *, windows: Sequence[int] | None = None, calibration: NoiseStream = _CALIBRATION
) -> HurstEstimate:
    r"""Hurst index by the rescaled range (R/S) with the correction of Anis and Lloyd, calibrated.

    In each window of ``s`` increments, the range of their centred sums over their standard deviation. The
    slope of :math:`\log (R/S)_s - \log \mathrm{E}_{1/2} (R/S)_s + \tfrac12 \log s` is right for independent
    normal increments; calibration makes it right for the others.

    Args:
        path: Values at equal steps, shape ``(..., T)``.
        windows: Increasing lengths of windows, in steps, at least 4; by default 20 from 8 to a quarter of
            the path, spread evenly in the logarithm.
        calibration: As for :func:`dfa`.

    Returns:
        Estimates of shape ``(...)``; ``raw`` has the slopes with the correction of Anis and Lloyd alone.

    Raises:
        ValueError: As for :func:`dfa`.
        TypeError: As for :func:`dfa`.

    References:
        Anis & Lloyd (1976). doi:10.1093/biomet/63.1.111
    """
    rows = as_rows(path, 65)
    sizes = _windows(windows, rows.shape[-1] - 1)
    return _calibrated(path, rows, lambda paths: _rescaled(paths, sizes), calibration, "R/S")


def anis_lloyd(size: int) -> float:
    r"""Expected rescaled range of ``size`` independent normal increments.

    .. math::

        \frac{\Gamma((s - 1) / 2)}{\sqrt{\pi}\, \Gamma(s / 2)} \sum_{i=1}^{s-1} \sqrt{\frac{s - i}{i}}

    Example:
        >>> round(anis_lloyd(2), 12)
        1.0
    """
    i = torch.arange(1, size, dtype=torch.float64)
    halves = torch.tensor([(size - 1) / 2, size / 2], dtype=torch.float64).lgamma()
    return float(torch.exp(halves[0] - halves[1]) / torch.pi**0.5 * torch.sqrt((size - i) / i).sum())


def _windows(windows: Sequence[int] | None, steps: int) -> list[int]:
    """Lengths of windows, given or by default."""
    if windows is None:
        sizes = np.unique(np.geomspace(8, steps // 4, 20).astype(int)).tolist()
    else:
        sizes = [int(size) for size in windows]
    increasing = all(a < b for a, b in pairwise(sizes))
    if len(sizes) < 2 or not increasing or sizes[0] < 4 or sizes[-1] > steps:
        raise ValueError(
            f"`windows` must be at least two increasing numbers in [4, {steps}]; got {tuple(sizes)}."
        )
    return sizes


def _dfa(paths: Tensor, sizes: Sequence[int]) -> tuple[Tensor, Diagnostic]:
    """Slopes of the detrended fluctuations."""
    profile = paths[:, 1:]
    fluctuations = []
    for size in sizes:
        parts = profile.unfold(-1, size, size)
        line = torch.linspace(-1, 1, size, dtype=torch.float64)
        line = line / line.norm()
        square = parts.square().sum(-1) - size * parts.mean(-1).square() - (parts @ line).square()
        fluctuations.append((square.clamp(min=0).mean(-1) / size).sqrt())
    return _fit(torch.stack(fluctuations, -1), torch.tensor(sizes), "fluctuation")


def _rescaled(paths: Tensor, sizes: Sequence[int]) -> tuple[Tensor, Diagnostic]:
    """Slopes of the rescaled range, corrected."""
    increments = paths.diff(dim=-1)
    ratios = []
    for size in sizes:
        parts = increments.unfold(-1, size, size)
        centred = (parts - parts.mean(-1, keepdim=True)).cumsum(-1)
        # The sum starts at zero, which counts for the range.
        spread = centred.amax(-1).clamp(min=0) - centred.amin(-1).clamp(max=0)
        ratios.append((spread / parts.std(-1, correction=0)).mean(-1) * size**0.5 / anis_lloyd(size))
    return _fit(torch.stack(ratios, -1), torch.tensor(sizes), "rescaled range, corrected")


def _fit(values: Tensor, sizes: Tensor, label: str) -> tuple[Tensor, Diagnostic]:
    """Least-squares slope in logarithms."""
    x, y = sizes.double().log(), values.log()
    centred = x - x.mean()
    slope = y @ centred / centred.square().sum()
    fitted = torch.exp(y.mean(-1, keepdim=True) + slope[:, None] * centred)
    return slope, Diagnostic(sizes.double(), values, fitted, ("window [steps]", label))


def _calibrated(
    path: Tensor, rows: Tensor, slopes: Slopes, calibration: NoiseStream, method: str
) -> HurstEstimate:
    """The slopes, with bias removed and errors found on exact noise of the same length."""
    raw, seen = slopes(rows)
    response, shape = _response(slopes, rows.shape[-1] - 1, calibration), path.shape[:-1]
    raw = raw.reshape(shape)
    h = response.invert(raw, 0.0)
    diagnostic = Diagnostic(
        seen.abscissa, seen.seen.reshape(*shape, -1), seen.fitted.reshape(*shape, -1), seen.labels
    )
    return HurstEstimate(h, response.std_error(h), raw, None, method, diagnostic, response)


def _response(slopes: Slopes, steps: int, calibration: NoiseStream) -> Response:
    """Mean and standard deviation of the slopes of exact noise, smoothed over the index."""
    drawn = [slopes(fbm_path(h, calibration, steps, dtype=torch.float64))[0] for h in _NODES]
    means, spreads = (np.array([float(part) for part in parts]) for parts in zip(
        *((slope.mean(), slope.std().log()) for slope in drawn), strict=True
    ))  # fmt: skip
    mean = np.polynomial.Polynomial.fit(_NODES, means, _SMOOTH[0])
    spread = np.polynomial.Polynomial.fit(_NODES, spreads, _SMOOTH[1])
    return Response(_DENSE, mean(_DENSE), np.exp(spread(_DENSE)))
