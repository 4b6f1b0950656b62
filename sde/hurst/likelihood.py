r"""Hurst index by likelihood: Whittle's in the frequency domain, and the exact one.

The increments of fractional Brownian motion are stationary with a known spectral density and a Toeplitz
covariance. Whittle's estimator costs one FFT and loses nothing for long paths; the exact one is for short
paths, costs :math:`O(T^2)`, and takes a known scale.

References:
    Whittle (1953), Estimation and information in stationary time series. doi:10.1007/BF02590998
    Fox & Taqqu (1986), Large-sample properties of parameter estimates for strongly dependent stationary
    Gaussian time series. doi:10.1214/aos/1176349936
    Beran (1994), Statistics for Long-Memory Processes, chapters 5 and 6. doi:10.1201/9780203738481
"""

import math

import numpy as np
import torch
from scipy import special
from torch import Tensor

from sde.hurst.estimate import Diagnostic, HurstEstimate, as_rows
from sde.hurst.profile import Profile, indices
from sde.noise.fractional import check_hurst, fgn_autocovariance
from sde.noise.gaussian_path import durbin_levinson

__all__ = ["fgn_spectral_density", "maximum_likelihood", "whittle"]


def fgn_spectral_density(hurst: float | Tensor, frequencies: Tensor) -> Tensor:
    r"""Spectral density of fractional Gaussian noise of unit variance and unit steps.

    .. math::

        f(\lambda) = \frac{\Gamma(2H + 1) \sin(\pi H)}{\pi} (1 - \cos\lambda)
            \sum_{j=-\infty}^{\infty} |\lambda + 2 \pi j|^{-2H - 1},

    the sum being two Hurwitz zeta functions; its integral over :math:`[-\pi, \pi]` is 1.

    Args:
        hurst: Hurst indices in (0, 1), shape ``(...)``.
        frequencies: Angular frequencies in (0, pi], shape ``(m,)``.

    Returns:
        Float64, shape ``(..., m)``.

    Raises:
        ValueError: If an index or a frequency is out of range.

    Example:
        >>> white = fgn_spectral_density(0.5, torch.tensor([0.1, 3.0]))
        >>> torch.allclose(white, torch.full((2,), 0.5 / torch.pi).double())
        True

    References:
        Sinai (1976), Self-similar probability distributions. doi:10.1137/1121007
    """
    h = check_hurst(hurst).detach().numpy(force=True)[..., None]
    x = frequencies.double().numpy(force=True)
    if not ((x > 0) & (x <= np.pi + 1e-12)).all():
        raise ValueError("`frequencies` must lie in (0, pi]; got others.")
    s, turn = 2 * h + 1, x / (2 * np.pi)
    sums = (special.zeta(s, turn) + special.zeta(s, 1 - turn)) * (2 * np.pi) ** -s
    # 2 sin(x/2)**2 keeps the digits of 1 - cos(x) at low frequencies.
    density = special.gamma(s) * np.sin(np.pi * h) / np.pi * 2 * np.sin(x / 2) ** 2 * sums
    return torch.from_numpy(density)


def whittle(path: Tensor) -> HurstEstimate:
    r"""Hurst index by Whittle's likelihood of the increments, scale estimated.

    .. math::

        \hat H = \arg\min_H \Bigl[ \log \Bigl( \frac1m \sum_j \frac{I(\lambda_j)}{f_H(\lambda_j)} \Bigr)
            + \frac1m \sum_j \log f_H(\lambda_j) \Bigr]

    over the Fourier frequencies in :math:`(0, \pi)`. Efficient for long paths; blind to a constant drift,
    because frequency zero is left out. The standard error is that of the information at the estimate.

    Args:
        path: Values at equal steps, shape ``(..., T)`` with ``T >= 32``.

    Returns:
        Estimates of shape ``(...)``.

    Raises:
        ValueError: If the path is too short, constant or not finite.
        TypeError: If the path is not floating point.

    Example:
        >>> from sde.noise import NoiseStream, fbm_path
        >>> path = fbm_path(0.8, NoiseStream(seed=0, start=0, stop=1), 10_000, dtype=torch.float64)
        >>> estimate = whittle(path[0])
        >>> abs(estimate.H.item() - 0.8) < 5 * estimate.std_error.item() < 0.05
        True

    References:
        Beran (1994), section 6.1. doi:10.1201/9780203738481
    """
    increments = as_rows(path, 32).diff(dim=-1)
    count = increments.shape[-1]
    num = (count - 1) // 2
    periodogram = torch.fft.rfft(increments).abs().square()[:, 1 : num + 1] / (2 * math.pi * count)
    frequencies = 2 * math.pi * torch.arange(1, num + 1, dtype=torch.float64) / count
    density = fgn_spectral_density(indices(), frequencies)
    level = periodogram @ (1 / density).mT / num
    # Whittle's likelihood is that of 2 m independent normals.
    h, _ = Profile.of(2 * density.log().sum(-1), 2 * num * level, 2 * num).maximum()
    fitted = fgn_spectral_density(h, frequencies)
    scale = (periodogram / fitted).mean(-1).sqrt()
    shape = path.shape[:-1]
    diagnostic = Diagnostic(
        frequencies,
        periodogram.reshape(*shape, -1),
        (scale[:, None] ** 2 * fitted).reshape(*shape, -1),
        ("angular frequency [1/step]", "periodogram"),
    )
    h, error = h.reshape(shape), _whittle_error(h, frequencies).reshape(shape)
    return HurstEstimate(h, error, h, scale.reshape(shape), "Whittle", diagnostic)


def maximum_likelihood(path: Tensor, *, dt: float = 1.0, scale: float | None = None) -> HurstEstimate:
    r"""Hurst index by the exact Gaussian likelihood of the increments.

    .. math::

        \ell(H) = -\tfrac12 \log\det R_H - \tfrac{T}{2} \log \bigl(x^T R_H^{-1} x / T\bigr)

    with the Toeplitz correlation matrix :math:`R_H` of ``T`` increments, by the Durbin--Levinson recursion
    in :math:`O(T^2)`; or with the scale known, which tells much more about ``H`` where ``dt`` is small. The
    increments have mean zero: take out a drift first.

    Args:
        path: Values at equal steps, shape ``(..., T)`` with ``T >= 8``.
        dt: Length of a step, the unit of time being that of ``scale``.
        scale: Known size of the path at time 1, so that the increments have variance ``scale**2 *
            dt**(2 * H)``; estimated where it is ``None``.

    Returns:
        Estimates of shape ``(...)``; the standard error is from the observed information.

    Raises:
        ValueError: If the path is too short, constant or not finite, or ``dt`` or ``scale`` not positive.
        TypeError: If the path is not floating point.

    Example:
        >>> from sde.noise import NoiseStream, fbm_path
        >>> path = fbm_path(0.2, NoiseStream(seed=0, start=0, stop=1), 500, dtype=torch.float64)
        >>> estimate = maximum_likelihood(path[0])
        >>> abs(estimate.H.item() - 0.2) < 5 * estimate.std_error.item() < 0.2
        True

    References:
        Beran (1994), section 5.3. doi:10.1201/9780203738481
    """
    for name, value in (("dt", dt), ("scale", 1.0 if scale is None else scale)):
        if not 0 < value < math.inf:
            raise ValueError(f"`{name}` must be positive and finite; got {value}.")
    increments = as_rows(path, 8).diff(dim=-1)
    count = increments.shape[-1]
    squares, log_det = _innovations(increments)
    variance = torch.ones(()) if scale is None else scale**2 * dt ** (2 * indices())
    profile = Profile.of(
        log_det + count * variance.log(), squares / variance, count if scale is None else None
    )
    h, error = profile.maximum()
    shape, grid = path.shape[:-1], torch.linspace(0.02, 0.98, 769, dtype=torch.float64)
    seen = profile.log_likelihood(grid)
    top = seen.amax(-1, keepdim=True)
    parabola = -0.5 * ((grid - h[:, None]) / error[:, None]) ** 2
    diagnostic = Diagnostic(
        grid,
        (seen - top).exp().reshape(*shape, -1),
        parabola.exp().reshape(*shape, -1),
        ("Hurst index", "profile likelihood / maximum"),
        logarithmic=False,
    )
    found = torch.full_like(h, 1.0 if scale is None else scale)
    if scale is None:
        found = _scale_at(h, increments) / dt**h
    h, error = h.reshape(shape), error.reshape(shape)
    return HurstEstimate(h, error, h, found.reshape(shape), "maximum likelihood", diagnostic)


def _innovations(increments: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of squared standardised prediction errors ``(n, 49)``, and log-determinants ``(49,)``."""
    rows = torch.stack([fgn_autocovariance(h, increments.shape[-1]) for h in indices()])
    squares, log_det = increments.new_zeros(len(increments), len(rows)), increments.new_zeros(len(rows))
    backward = increments.flip(-1)
    for k, (weights, variance) in enumerate(durbin_levinson(rows)):
        # Values k - 1, ..., 0 are the last k of the reversed rows.
        past = backward[:, increments.shape[-1] - k :]
        squares += (increments[:, k, None] - past @ weights.mT).square() / variance
        log_det += variance.log()
    return squares, log_det


def _scale_at(hurst: Tensor, increments: Tensor) -> Tensor:
    """Root mean square of the standardised prediction errors, each row at its own index."""
    rows = torch.stack([fgn_autocovariance(h, increments.shape[-1]) for h in hurst])
    backward, squares = increments.flip(-1), torch.zeros_like(hurst)
    for k, (weights, variance) in enumerate(durbin_levinson(rows)):
        past = backward[:, increments.shape[-1] - k :]
        squares += (increments[:, k] - (past * weights).sum(-1)).square() / variance
    return (squares / increments.shape[-1]).sqrt()


def _whittle_error(hurst: Tensor, frequencies: Tensor) -> Tensor:
    """Standard errors of Whittle's estimator with the scale estimated, from the information."""
    step = 1e-4
    centre = hurst.clamp(2 * step, 1 - 2 * step)
    ahead, behind = (fgn_spectral_density(centre + s, frequencies).log() for s in (step, -step))
    slope = (ahead - behind) / (2 * step)
    return (slope - slope.mean(-1, keepdim=True)).square().sum(-1).rsqrt()
