r"""Weights of the Markov approximation of fractional Brownian motion, stable and differentiable in H.

Fractional Brownian motion is an integral of Ornstein--Uhlenbeck processes over their rates. The Markov
approximation replaces it by a sum over ``K`` rates,

.. math::

    \hat B_t = \sum_k \omega_k Y_k(t), \qquad \mathrm{d}Y_k = -\gamma_k Y_k\,\mathrm{d}t + \mathrm{d}W,

all driven by the same ``W``; for type I the :math:`Y_k` are stationary and :math:`Y_k(0)` is subtracted. The
weights minimise :math:`\int_0^T \mathrm{E}(B_t - \hat B_t)^2\,\mathrm{d}t = \omega^T A \omega - 2 b^T \omega
+ c`, so :math:`A \omega = b`. With :math:`x = \gamma T` and :math:`\alpha = H + 1/2`, on ``[0, 1]``,

.. math::

    A^{II}_{ij} &= \varphi(x_i + x_j), \qquad
    A^{I}_{ij} = \frac{x_i \varphi(x_i) + x_j \varphi(x_j)}{x_i + x_j}, \qquad
    \varphi(s) = \frac{s - 1 + e^{-s}}{s^2}, \\
    b^{II}(x) &= e^{-x} \sum_{n \ge 0} \frac{(n + 1)\, x^n}{\Gamma(\alpha + n + 2)}
        = x^{-\alpha} - \alpha x^{-\alpha - 1} + O(e^{-x}), \\
    b^{I}(x) &= \sum_{n \ge 0} \frac{x^n}{\Gamma(\alpha + n + 2)}
        - 2 x^{2 - \alpha} \sum_{m \ge 0} \frac{x^{2m}}{(2m + 3)!} \\
        &= 2 x^{-\alpha} - \frac{1}{x\,\Gamma(\alpha + 1)}
        + \bigl(e^{-x} - e^x Q(\alpha, x)\bigr) x^{-\alpha - 1}.

The closed form of :math:`b^I` has lost all digits at :math:`x = 10^{-6}`; the series is used below 3 and the
closed form above, where :math:`e^x Q(\alpha, x)` is an integral for Gauss--Laguerre quadrature. A rate of
zero is legal: its process is the Brownian motion itself, and makes :math:`H = 1/2` exact.

References:
    Daems, Opper, Crevecoeur & Birdal (2024), Variational inference for SDEs driven by fractional noise,
    proposition 5. arXiv:2310.12975
    Harms & Stefanovits (2019), Affine representations of fractional processes. doi:10.1016/j.spa.2018.04.010
"""

import math
from functools import cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor

__all__ = ["Kind", "cross_moments", "gram", "kernel_variance", "relative_error", "squared_norm", "weights"]

Kind = Literal["I", "II"]
"""Type of fractional Brownian motion: with an infinite past, or with none."""

_TRUNCATION = 1e-10  # eigenvalues of the equilibrated Gram matrix, relative to the largest
_FAR_TYPE_II = 40.0  # the neglected terms are below exp(-40)
_FAR_TYPE_I = 3.0
_TERMS_TYPE_II = 220
_TERMS_TYPE_I = 60


def weights(hurst: Tensor, x: Tensor, kind: Kind) -> Tensor:
    """Optimal weights on ``[0, 1]`` for the kernel ``u**(H - 1/2) / Gamma(H + 1/2)``.

    The Gram matrix is scaled to unit diagonal, and directions whose eigenvalue is below 1e-10 of the largest
    are left out: they change the error in its last digits and the weights by orders of magnitude.

    Args:
        hurst: In (0, 1), float64, shape ``(...)``; the result is differentiable in it any number of times.
        x: Rates times horizon, at least 0, float64, shape ``(K,)``.
        kind: Type of fractional Brownian motion.

    Returns:
        Shape ``(..., K)``; for a horizon ``T``, times ``T**(hurst - 1/2)``.
    """
    return cross_moments(hurst, x, kind) @ _inverse(gram(x, kind))


def relative_error(hurst: Tensor, x: Tensor, omega: Tensor, kind: Kind) -> Tensor:
    """Integrated mean-square error of weights, over that of the process itself; shape ``(...)``."""
    b, c = cross_moments(hurst, x, kind), squared_norm(hurst, kind)
    # (w A - b) is the residual of the normal equations: the form is exact for any weights.
    excess = ((omega @ gram(x, kind) - b) * omega).sum(-1) - (b * omega).sum(-1)
    return (1 + excess / c).clamp(min=0)


def kernel_variance(hurst: Tensor, kind: Kind) -> Tensor:
    r"""Variance at time 1 of the process with the kernel ``u**(H - 1/2) / Gamma(H + 1/2)``.

    :math:`1 / (\Gamma(2H + 1) \sin \pi H)` for type I, :math:`1 / (2 H\, \Gamma(H + 1/2)^2)` for type II.
    """
    if kind == "I":
        return torch.exp(-torch.lgamma(2 * hurst + 1)) / torch.sin(math.pi * hurst)
    return torch.exp(-2 * torch.lgamma(hurst + 0.5)) / (2 * hurst)


def squared_norm(hurst: Tensor, kind: Kind) -> Tensor:
    """Integral ``c`` of the variance over ``[0, 1]``."""
    return kernel_variance(hurst, kind) / (2 * hurst + 1)


def gram(x: Tensor, kind: Kind) -> Tensor:
    """Matrix ``A`` of integrated products of the Ornstein--Uhlenbeck processes, shape ``(K, K)``."""
    total = x[:, None] + x
    if kind == "II":
        return _phi(total)
    own = x * _phi(x)
    positive = torch.where(total > 0, total, 1.0)
    return torch.where(total > 0, (own[:, None] + own) / positive, 0.5)


def cross_moments(hurst: Tensor, x: Tensor, kind: Kind) -> Tensor:
    """Vector ``b`` of integrated products with the fractional Brownian motion, shape ``(..., K)``."""
    alpha = (hurst + 0.5)[..., None]
    near, far, border = (
        (_type_i_series, _type_i_closed, _FAR_TYPE_I)
        if kind == "I"
        else (_type_ii_series, _type_ii_far, _FAR_TYPE_II)
    )
    # Either form is evaluated where it is stable, so that no infinity reaches the gradient.
    return torch.where(x < border, near(alpha, x.clamp(max=border)), far(alpha, x.clamp(min=border)))


def _type_ii_series(alpha: Tensor, x: Tensor) -> Tensor:
    """The series of positive terms, in logarithms."""
    n = torch.arange(_TERMS_TYPE_II, dtype=x.dtype, device=x.device)
    log_x = x.clamp(min=1e-300).log()[:, None]
    logs = n * log_x + torch.log1p(n) - torch.lgamma(alpha[..., None] + n + 2)
    return torch.exp(logs - x[:, None]).sum(-1)


def _type_ii_far(alpha: Tensor, x: Tensor) -> Tensor:
    """The closed form without the incomplete gamma functions, which are 1 to exp(-x)."""
    return x**-alpha - alpha * x ** (-alpha - 1)


def _type_i_series(alpha: Tensor, x: Tensor) -> Tensor:
    """The two power series."""
    n = torch.arange(_TERMS_TYPE_I, dtype=x.dtype, device=x.device)
    first = (x[:, None] ** n * torch.exp(-torch.lgamma(alpha[..., None] + n + 2))).sum(-1)
    m = n[: _TERMS_TYPE_I // 2]
    second = (x[:, None] ** (2 * m) * torch.exp(-torch.lgamma(2 * m + 4))).sum(-1)
    return first - 2 * x.clamp(min=1e-300) ** (2 - alpha) * second


def _type_i_closed(alpha: Tensor, x: Tensor) -> Tensor:
    """The closed form."""
    tail = torch.exp(-x) - _scaled_gamma(alpha, x)
    return 2 * x**-alpha - torch.exp(-torch.lgamma(alpha + 1)) / x + tail * x ** (-alpha - 1)


def _scaled_gamma(alpha: Tensor, x: Tensor) -> Tensor:
    r"""The upper incomplete gamma function :math:`e^x Q(\alpha, x)`, for x at least 3."""
    nodes, masses = (torch.from_numpy(part).to(x) for part in _laguerre())
    integral = ((1 + nodes / x[:, None]) ** (alpha[..., None] - 1) * masses).sum(-1)
    return x ** (alpha - 1) * torch.exp(-torch.lgamma(alpha)) * integral


@cache
def _laguerre() -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of Gauss--Laguerre quadrature, which reach 1e-12 for x at least 3."""
    return np.polynomial.laguerre.laggauss(80)


def _phi(s: Tensor) -> Tensor:
    """``(s - 1 + exp(-s)) / s**2`` for s at least 0, by its series below 1/2."""
    near, far = s.clamp(max=0.5), s.clamp(min=0.5)
    total = torch.zeros_like(s)
    for n in range(15, -1, -1):  # 0.5**16 / 18! is below the last digit
        total = 1 / math.factorial(n + 2) - near * total
    # The alternating series, nested: each pass multiplies what follows by -s.
    return torch.where(s < 0.5, total, (far + torch.expm1(-far)) / far**2)


def _inverse(matrix: Tensor) -> Tensor:
    """Inverse of a Gram matrix, equilibrated and truncated."""
    scale = matrix.diagonal().rsqrt()
    values, vectors = torch.linalg.eigh(scale[:, None] * matrix * scale)
    kept = values > _TRUNCATION * values[-1]
    inverse = torch.where(kept, 1 / torch.where(kept, values, 1.0), 0.0)
    return scale[:, None] * (vectors * inverse) @ vectors.mT * scale
