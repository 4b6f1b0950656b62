r"""Exact joint transitions of Ornstein--Uhlenbeck processes that share one Brownian motion.

The processes :math:`\mathrm{d}Y_k = -\gamma_k Y_k\,\mathrm{d}t + \mathrm{d}W` are carried as differences
:math:`Z_k = Y_k - Y_k(0)` and slopes :math:`D_k = \gamma_k Y_k(0)`, so that

.. math:: \mathrm{d}Z_k = -(\gamma_k Z_k + D_k)\,\mathrm{d}t + \mathrm{d}W, \qquad Z_k(0) = 0,

and no large stationary values cancel where a rate is small; a rate of zero gives :math:`Z = W`, ``D = 0``.
Over a step ``h``

.. math::

    Z_k' = e^{-\gamma_k h} Z_k - \frac{1 - e^{-\gamma_k h}}{\gamma_k} D_k + \xi_k, \qquad
    \mathrm{Cov}(\xi_i, \xi_j) = \frac{1 - e^{-(\gamma_i + \gamma_j) h}}{\gamma_i + \gamma_j}.

The covariance of the noise has low numerical rank: a dozen rates need about six normals a step.
"""

import torch
from torch import Tensor

__all__ = ["decays", "noise_covariance", "slope_covariance"]


def decays(rates: Tensor, spans: Tensor) -> tuple[Tensor, Tensor]:
    """Factors of ``Z`` and of ``-D`` after times ``spans``, each of shape ``(..., K)``."""
    exponents = rates * spans[..., None]
    safe = torch.where(rates > 0, rates, 1.0)
    return torch.exp(-exponents), torch.where(rates > 0, -torch.expm1(-exponents) / safe, spans[..., None])


def noise_covariance(rates: Tensor, spans: Tensor) -> Tensor:
    """Covariance of what the Brownian motion adds during ``spans``, shape ``(..., K, K)``."""
    total = rates[:, None] + rates
    safe = torch.where(total > 0, total, 1.0)
    spans = spans[..., None, None]
    return torch.where(total > 0, -torch.expm1(-total * spans) / safe, spans)


def slope_covariance(rates: Tensor) -> Tensor:
    """Covariance of the slopes ``D`` of stationary processes, shape ``(K, K)``."""
    total = rates[:, None] + rates
    return rates[:, None] * rates / torch.where(total > 0, total, 1.0)
