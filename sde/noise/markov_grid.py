r"""Rates of the Markov approximation of fractional Brownian motion.

The rates decide how good the approximation is; the weights only make the best of them. Beyond the largest
rate the path is a Brownian motion, which costs an error of the order :math:`\gamma_{\max}^{-2H}`; what is
slower than the smallest is forgotten, which costs type I an error of :math:`\gamma_{\min}^{2 - 2H}`.

References:
    Daems, Opper, Crevecoeur & Birdal (2024), section 5 (the geometric grid). arXiv:2310.12975
    Bayer & Breneis (2023), Markovian approximations of stochastic Volterra equations with the fractional
    kernel, theorem 2.1. doi:10.1080/14697688.2022.2139193
"""

import math

import torch
from torch import Tensor

from sde.noise.markov_weights import Kind

__all__ = ["automatic_rates", "paper_rates"]

# Tuned once on the variogram at lags of dt to T over H = 0.1 .. 0.9 and T / dt = 1e2 .. 1e5.
_GAP = {"I": math.log10(4e9) / 10, "II": math.log10(8e4) / 6}  # decades between neighbours
_FASTEST = 4.0  # times 1 / dt: the largest rate that the steps resolve
_EXCESS = 4096.0  # factor by which nodes that are left over may raise the largest rate
_SLOWEST = {"I": 1e-6, "II": 0.05}  # times 1 / T: type II has no past to remember


def automatic_rates(num_rates: int, horizon: float, dt: float, kind: Kind) -> Tensor:
    """Rates for every Hurst index at once: zero, and a geometric sequence about a decade apart.

    The sequence reaches up to ``4 / dt``. With the nodes that are left it first remembers longer, down to
    ``1e-6 / horizon`` (type II: ``0.05 / horizon``), then resolves finer than ``dt``.

    Args:
        num_rates: Number of rates, zero included; at least 1.
        horizon: Length of the time interval.
        dt: Length of a typical step, at most ``horizon``.
        kind: Type of fractional Brownian motion.

    Returns:
        Increasing, float64, shape ``(num_rates,)``.

    Example:
        >>> [f"{rate:.3g}" for rate in automatic_rates(12, 1.0, 1e-3, "I")[[0, 1, -1]].tolist()]
        ['0', '1e-06', '4e+03']
    """
    zero = torch.zeros(1, dtype=torch.float64)
    if num_rates == 1:
        return zero
    top, reach = math.log10(_FASTEST * horizon / dt), _GAP[kind] * max(1, num_rates - 2)
    low = -min(-math.log10(_SLOWEST[kind]), max(0.0, reach - top))
    high = min(max(top, low + reach), top + math.log10(_EXCESS))
    if num_rates == 2:
        low = high
    return torch.cat((zero, torch.logspace(low, high, num_rates - 1, dtype=torch.float64) / horizon))


def paper_rates(num_rates: int, largest: float = 20.0) -> Tensor:
    """Geometric rates from ``1 / largest`` to ``largest``, as Daems et al. (2024) choose them; one rate is 1.

    Example:
        >>> [round(rate, 12) for rate in paper_rates(3).tolist()]
        [0.05, 1.0, 20.0]
    """
    reach = math.log10(largest) if num_rates > 1 else 0.0
    return torch.logspace(-reach, reach, num_rates, dtype=torch.float64)
