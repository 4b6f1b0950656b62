"""Quantiles and distribution functions of samples, with confidence that assumes no law."""

import math
from dataclasses import dataclass

import torch
from scipy.stats import binom
from torch import Tensor

__all__ = ["EmpiricalCDF", "Quantile", "quantile"]


@dataclass(frozen=True, slots=True)
class Quantile:
    """A quantile and its confidence interval.

    Attributes:
        probability: Where the quantile was asked.
        value: Estimate.
        low: Lower end of the interval; minus infinity where the samples are too few to bound it.
        high: Upper end; plus infinity where they are too few.
        confidence: Least probability that the interval holds the true quantile.
    """

    probability: float
    value: float
    low: float
    high: float
    confidence: float


def quantile(samples: Tensor, probability: float, *, confidence: float = 0.95) -> Quantile:
    r"""Quantile of independent samples, with an interval between two order statistics.

    The number of samples below the true quantile is binomial whatever the continuous law, so
    :math:`[x_{(l)}, x_{(u)}]` with :math:`l = B^{-1}(\alpha/2)` and :math:`u = B^{-1}(1 - \alpha/2) + 1`,
    ``B`` the binomial CDF of ``n`` trials of probability ``p``, holds the quantile with probability at least
    :math:`1 - \alpha`.

    Args:
        samples: Independent samples, shape ``(n,)``, ``n`` at least 1, without NaN.
        probability: In (0, 1).
        confidence: In (0, 1).

    Returns:
        Estimate (linear between order statistics) and interval.

    Raises:
        ValueError: If an argument is out of range, or the samples are empty or hold NaN.

    Example:
        >>> estimate = quantile(torch.arange(100.0), 0.5)
        >>> estimate.value, estimate.low, estimate.high
        (49.5, 39.0, 60.0)

    References:
        David & Nagaraja (2003), section 7.1. doi:10.1002/0471722162
    """
    ordered = _ordered(samples)
    for name, value in (("probability", probability), ("confidence", confidence)):
        if not 0 < value < 1:
            raise ValueError(f"`{name}` must lie in (0, 1); got {value}.")
    n, tail = len(ordered), (1 - confidence) / 2
    lower = int(binom.ppf(tail, n, probability))
    upper = int(binom.ppf(1 - tail, n, probability)) + 1
    place = (n - 1) * probability
    below, above = ordered[math.floor(place)].item(), ordered[math.ceil(place)].item()
    return Quantile(
        probability,
        below + (place - math.floor(place)) * (above - below),
        ordered[lower - 1].item() if lower >= 1 else -math.inf,
        ordered[upper - 1].item() if upper <= n else math.inf,
        confidence,
    )


@dataclass(frozen=True, slots=True)
class EmpiricalCDF:
    """Distribution function of independent samples.

    Attributes:
        ordered: The samples in increasing order, float64, shape ``(n,)``. Build with :meth:`of`.

    Example:
        >>> cdf = EmpiricalCDF.of(torch.tensor([3.0, 1.0, 2.0, 4.0]))
        >>> cdf(torch.tensor([0.0, 2.0, 2.5, 9.0]))
        tensor([0.0000, 0.5000, 0.5000, 1.0000], dtype=torch.float64)

    References:
        Massart (1990), for the constant of the band. doi:10.1214/aop/1176990746
    """

    ordered: Tensor

    @classmethod
    def of(cls, samples: Tensor) -> "EmpiricalCDF":
        """The distribution function of samples ``(n,)``, without NaN.

        Raises:
            ValueError: If the samples are empty, not one-dimensional, or hold NaN.
        """
        return cls(_ordered(samples))

    def __call__(self, x: Tensor) -> Tensor:
        """Fraction of the samples at or below each ``x``; same shape, float64."""
        below = torch.searchsorted(self.ordered, x.double().contiguous(), right=True)
        return below.double() / len(self.ordered)

    def half_width(self, confidence: float = 0.95) -> float:
        r"""Half width :math:`\sqrt{\log(2/\alpha) / 2n}` of the Dvoretzky--Kiefer--Wolfowitz band.

        Raises:
            ValueError: If ``confidence`` is not in (0, 1).
        """
        if not 0 < confidence < 1:
            raise ValueError(f"`confidence` must lie in (0, 1); got {confidence}.")
        return math.sqrt(math.log(2 / (1 - confidence)) / (2 * len(self.ordered)))

    def band(self, x: Tensor, confidence: float = 0.95) -> tuple[Tensor, Tensor]:
        """Lower and upper limit at each ``x``: the true CDF lies between them everywhere at once."""
        width, centre = self.half_width(confidence), self(x)
        return (centre - width).clamp(min=0), (centre + width).clamp(max=1)


def _ordered(samples: Tensor) -> Tensor:
    """Sorted float64 samples, checked."""
    if samples.ndim != 1:
        raise ValueError(
            f"`samples` must have shape (n,); got {tuple(samples.shape)}. Take one component at a time."
        )
    if len(samples) == 0:
        raise ValueError("`samples` must hold at least one sample; got none.")
    values = samples.detach().to("cpu", torch.float64)
    if bool(values.isnan().any()):
        raise ValueError(f"`samples` must hold no NaN; got {int(values.isnan().sum())} of {len(values)}.")
    return values.sort().values
