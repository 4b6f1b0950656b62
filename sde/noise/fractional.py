r"""Laws of fractional noise: covariances of fractional Brownian motion and of what derives from it.

Fractional Brownian motion (fBM) :math:`B^H` with Hurst index :math:`H \in (0, 1)` is the Gaussian process
with stationary increments and :math:`\mathrm{Var}\, B^H_t = t^{2H}`. Its increments over equal steps are
fractional Gaussian noise (fGn). Type II, also called Riemann--Liouville, starts its history at time zero:
it has the same variance here, but increments that are not stationary.

Every function is computed in float64 by a form without cancellation. The autocovariance of fGn is

.. math::

    \gamma(k) = k^{2H} \bigl[\operatorname{expm1}(H \ell_k)
        + 2 e^{H \ell_k} \sinh^2(H \operatorname{artanh}(1/k))\bigr], \qquad \ell_k = \log(1 - k^{-2}),

which is the second difference :math:`\tfrac12(|k+1|^{2H} - 2 k^{2H} + |k-1|^{2H})` with the terms of order
:math:`k^{2H}` cancelled on paper; the difference itself loses all digits of float32 at :math:`k = 10^4`.

References:
    Mandelbrot & Van Ness (1968), definition 2.1. doi:10.1137/1010093
    Ayache, Cohen & Levy Vehel (2000), The covariance structure of multifractional Brownian motion,
    proposition 4. doi:10.1109/ICASSP.2000.860233
    Cheridito, Kawaguchi & Maejima (2003), Fractional Ornstein--Uhlenbeck processes, theorem 2.3.
    doi:10.1214/EJP.v8-125
"""

import math

import numpy as np
import torch
from scipy import special
from torch import Tensor

from sde.shapes import check_shapes

__all__ = [
    "check_hurst",
    "fbm_covariance",
    "fgn_autocovariance",
    "fou_autocovariance",
    "multifractional_covariance",
    "riemann_liouville_covariance",
]


def fgn_autocovariance(hurst: float | Tensor, count: int) -> Tensor:
    r"""Autocovariance of fractional Gaussian noise of unit steps at lags ``0 .. count - 1``.

    .. math:: \gamma(k) = \tfrac12 \bigl(|k+1|^{2H} - 2|k|^{2H} + |k-1|^{2H}\bigr)

    Steps of length ``dt`` have ``dt**(2 * hurst)`` times this. Absolute errors are a few units in the last
    place of :math:`k^{2H-2}` at every lag.

    Args:
        hurst: Hurst index in (0, 1); the result is differentiable in a tensor ``()``.
        count: Number of lags, at least 1.

    Returns:
        Float64, shape ``(count,)``; the first is 1.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> [round(value, 12) for value in fgn_autocovariance(0.75, 3).tolist()]
        [1.0, 0.414213562373, 0.269649086607]
    """
    h = check_hurst(hurst)
    if count < 1:
        raise ValueError(f"`count` must be at least 1; got {count}.")
    k = torch.arange(2, max(count, 2), dtype=torch.float64, device=h.device)
    log_ratio = torch.log1p(-1 / k**2)
    half = torch.sinh(h * torch.atanh(1 / k)) ** 2
    far = k ** (2 * h) * (torch.expm1(h * log_ratio) + 2 * torch.exp(h * log_ratio) * half)
    near = torch.stack((torch.ones_like(h), torch.expm1((2 * h - 1) * math.log(2))))
    return torch.cat((near, far))[:count]


def fbm_covariance(hurst: float | Tensor, s: Tensor, t: Tensor) -> Tensor:
    r"""Covariance of fractional Brownian motion, type I, of unit variance at time 1.

    .. math:: \mathrm{E}\, B^H_s B^H_t = \tfrac12 \bigl(s^{2H} + t^{2H} - |t - s|^{2H}\bigr)

    Args:
        hurst: Hurst index in (0, 1); the result is differentiable in a tensor ``()``.
        s: Instants, at least 0, shape ``(m,)``.
        t: Instants, at least 0, shape ``(T,)``.

    Returns:
        Float64, shape ``(m, T)``.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> fbm_covariance(0.5, torch.tensor([1.0, 2.0]), torch.tensor([3.0])).flatten().tolist()
        [1.0, 2.0]
    """
    h, s, t = check_hurst(hurst), _instants("s", s)[:, None], _instants("t", t)
    return 0.5 * (_power(s, 2 * h) + _power(t, 2 * h) - _power((t - s).abs(), 2 * h))


def riemann_liouville_covariance(hurst: float, s: Tensor, t: Tensor) -> Tensor:
    r"""Covariance of Riemann--Liouville (type II) fractional Brownian motion, of unit variance at time 1.

    .. math::

        \mathrm{E}\, B_s B_t = \frac{2H}{\alpha}\, m^{\alpha} M^{\alpha - 1}\,
            {}_2F_1\bigl(1 - \alpha, 1; 1 + \alpha; m / M\bigr), \qquad \alpha = H + \tfrac12,

    with ``m`` and ``M`` the smaller and the larger instant.

    Args:
        hurst: Hurst index in (0, 1).
        s: Instants, at least 0, shape ``(m,)``.
        t: Instants, at least 0, shape ``(T,)``.

    Returns:
        Float64, shape ``(m, T)``.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> once, twice = torch.ones(1), torch.full((1,), 2.0)
        >>> round(riemann_liouville_covariance(0.3, twice, twice).item() / 2**0.6, 12)
        1.0
    """
    h = float(check_hurst(hurst))
    alpha = h + 0.5
    low = torch.minimum(_instants("s", s)[:, None], _instants("t", t)).numpy(force=True)
    high = torch.maximum(_instants("s", s)[:, None], _instants("t", t)).numpy(force=True)
    ratio = np.divide(low, high, out=np.zeros_like(low), where=high > 0)
    shape = ratio**alpha * special.hyp2f1(1 - alpha, 1, 1 + alpha, ratio)
    return torch.from_numpy(2 * h / alpha * high ** (2 * h) * shape).to(s.device)


def multifractional_covariance(hurst_s: Tensor, hurst_t: Tensor, s: Tensor, t: Tensor) -> Tensor:
    r"""Covariance of harmonisable multifractional Brownian motion, whose Hurst index depends on time.

    .. math::

        \mathrm{E}\, B_s B_t = D(H_s, H_t) \bigl(s^{h} + t^{h} - |t - s|^{h}\bigr), \qquad h = H_s + H_t,
        \qquad
        D(x, y) = \frac{\sqrt{\Gamma(2x+1)\, \Gamma(2y+1) \sin(\pi x) \sin(\pi y)}}
            {2\, \Gamma(x+y+1) \sin(\pi (x+y) / 2)}

    The variance is :math:`t^{2 H_t}`, and near ``t`` the path is as rough as fBM with index :math:`H_t`.

    Args:
        hurst_s: Hurst indices at ``s``, in (0, 1), shape ``(m,)``.
        hurst_t: Hurst indices at ``t``, in (0, 1), shape ``(T,)``.
        s: Instants, at least 0, shape ``(m,)``.
        t: Instants, at least 0, shape ``(T,)``.

    Returns:
        Float64, shape ``(m, T)``.

    Raises:
        ValueError: If an argument is out of range or shapes disagree.

    Example:
        >>> t = torch.tensor([1.0, 2.0, 3.0])
        >>> h = torch.full((3,), 0.3)
        >>> torch.allclose(multifractional_covariance(h, h, t, t), fbm_covariance(0.3, t, t))
        True
    """
    check_shapes(hurst_s=(hurst_s, "m"), s=(s, "m"), hurst_t=(hurst_t, "T"), t=(t, "T"))
    x, y = check_hurst(hurst_s)[:, None], check_hurst(hurst_t)
    first, second = _instants("s", s)[:, None], _instants("t", t)
    total = x + y
    log_gammas = (torch.lgamma(2 * x + 1) + torch.lgamma(2 * y + 1)) / 2 - torch.lgamma(total + 1)
    sines = torch.sqrt(torch.sin(math.pi * x) * torch.sin(math.pi * y)) / torch.sin(math.pi * total / 2)
    powers = _power(first, total) + _power(second, total) - _power((second - first).abs(), total)
    return 0.5 * torch.exp(log_gammas) * sines * powers


def fou_autocovariance(hurst: float, lags: Tensor, *, rate: float = 1.0, scale: float = 1.0) -> Tensor:
    r"""Autocovariance of the stationary fractional Ornstein--Uhlenbeck process.

    .. math::

        \mathrm{d}X = -\theta X\,\mathrm{d}t + \sigma\,\mathrm{d}B^H, \qquad
        \mathrm{Cov}(X_0, X_t) = \frac{\sigma^2}{2} \Bigl[ \frac{\theta}{2} \int_{-\infty}^{\infty}
            e^{-\theta |t - u|} |u|^{2H}\,\mathrm{d}u - t^{2H} \Bigr],

    with the integral in closed form, and its asymptotic series for :math:`\theta t > 40`.

    Args:
        hurst: Hurst index in (0, 1).
        lags: Times ``t`` apart, at least 0, any shape.
        rate: The rate :math:`\theta`, positive.
        scale: The size :math:`\sigma` of the noise, positive.

    Returns:
        Float64, of the shape of ``lags``.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> markov = fou_autocovariance(0.5, torch.tensor([0.0, 2.0]))
        >>> torch.allclose(markov, torch.tensor([0.0, -2.0]).double().exp() / 2)
        True
    """
    h = float(check_hurst(hurst))
    for name, value in (("rate", rate), ("scale", scale)):
        if not 0 < value < math.inf:
            raise ValueError(f"`{name}` must be positive and finite; got {value}.")
    x = rate * lags.double().numpy(force=True)
    if not (x >= 0).all():
        raise ValueError(f"`lags` must be at least 0; got {float(lags.min())}.")
    unit = np.where(x > _FAR, _fou_far(h, np.maximum(x, _FAR)), _fou_near(h, np.minimum(x, _FAR)))
    return torch.from_numpy(scale**2 * rate ** (-2 * h) * unit).to(lags.device)


_FAR = 40.0  # the closed form loses eps * x**2 to cancellation; the series is exact from here on


def _fou_near(h: float, x: np.ndarray) -> np.ndarray:
    """The closed form, for rate 1 and scale 1."""
    a = 2 * h + 1
    behind = math.gamma(a) * np.exp(-x)
    between = x**a / a * special.hyp1f1(1, a + 1, -x)
    beyond = np.exp(x) * math.gamma(a) * special.gammaincc(a, x)
    return 0.5 * (0.5 * (behind + between + beyond) - x ** (2 * h))


def _fou_far(h: float, x: np.ndarray) -> np.ndarray:
    """The asymptotic series, in even derivatives of ``x**(2 h)``."""
    total, term = np.zeros_like(x), x ** (2 * h)
    for k in range(1, 13):
        term = term * (2 * h - 2 * k + 2) * (2 * h - 2 * k + 1) / x**2
        total = total + term
    return 0.5 * total


def check_hurst(hurst: float | Tensor, name: str = "hurst") -> Tensor:
    """Hurst indices as float64, checked to lie in (0, 1); differentiable where a tensor is given."""
    h = torch.as_tensor(hurst, dtype=torch.float64)
    if not bool(((h > 0) & (h < 1)).all()):
        raise ValueError(f"`{name}` must lie in (0, 1); got {h.tolist()}.")
    return h


def _instants(name: str, instants: Tensor) -> Tensor:
    """Instants in float64, checked to be a vector without negative elements."""
    check_shapes(**{name: (instants, "T")})
    if not bool((instants >= 0).all()):
        raise ValueError(f"`{name}` must be at least 0; got {float(instants.min())}.")
    return instants.double()


def _power(base: Tensor, exponent: Tensor) -> Tensor:
    """``base**exponent`` with a gradient in the exponent that is zero, not NaN, at base 0."""
    safe = torch.where(base > 0, base, 1.0)
    return torch.where(base > 0, safe**exponent, 0.0)
