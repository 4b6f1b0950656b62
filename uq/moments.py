"""Central moments that can be merged, and confidence intervals of means."""

import math
from dataclasses import dataclass

import torch
from scipy.special import stdtrit
from torch import Tensor

__all__ = ["Moments", "student_quantile"]


def student_quantile(confidence: float, degrees: float) -> float:
    """Two-sided quantile of Student's law: an interval of this many standard errors either side.

    Args:
        confidence: Probability of the interval, in (0, 1).
        degrees: Degrees of freedom, positive.

    Returns:
        The quantile; infinite where ``degrees`` is 0.

    Raises:
        ValueError: If ``confidence`` is not in (0, 1).

    Example:
        >>> round(student_quantile(0.95, 1e9), 4)
        1.96
    """
    if not 0 < confidence < 1:
        raise ValueError(f"`confidence` must lie in (0, 1); got {confidence}.")
    return float(stdtrit(degrees, (1 + confidence) / 2)) if degrees > 0 else math.inf


@dataclass(frozen=True, slots=True)
class Moments:
    r"""Count, mean and central sums of vector-valued samples.

    .. math:: M_k = \sum_i (x_i - \bar x)^k, \qquad k = 2, 3, 4

    ``a + b`` is the moments of the union of the two sets of samples, by exact merging formulas: no difference
    of large numbers is taken, so samples with a mean far larger than their spread lose nothing. The sum of
    many parts depends on the order to rounding only; add in the order of the samples to get the same bits
    each time.

    Attributes:
        count: Number of samples.
        mean: Shape of one sample, float64.
        m2: Sum of squared deviations.
        m3: Sum of cubed deviations.
        m4: Sum of fourth powers of deviations.

    Example:
        >>> x = torch.tensor([1.0, 2.0, 4.0, 7.0])
        >>> both = Moments.of(x[:1]) + Moments.of(x[1:])
        >>> both.count, both.mean.item(), both.variance.item()
        (4, 3.5, 7.0)

    References:
        Pebay (2008), SAND2008-6212. doi:10.2172/1028931
        Chan, Golub & LeVeque (1983). doi:10.1080/00031305.1983.10483115
    """

    count: int
    mean: Tensor
    m2: Tensor
    m3: Tensor
    m4: Tensor

    @classmethod
    def empty(cls, shape: tuple[int, ...] = ()) -> "Moments":
        """The moments of no samples of a shape: the neutral element of addition."""
        zero = torch.zeros(shape, dtype=torch.float64)
        return cls(0, zero, zero, zero, zero)

    @classmethod
    def of(cls, samples: Tensor) -> "Moments":
        """The moments of samples ``(n, *shape)``; computed in float64, in two passes.

        Raises:
            ValueError: If there is no sample axis.
            TypeError: If the samples are complex.
        """
        if samples.ndim == 0:
            raise ValueError("`samples` must have shape (n, ...); got a scalar.")
        if samples.is_complex():
            raise TypeError("`samples` must be real; got a complex tensor. Stack real and imaginary parts.")
        if len(samples) == 0:
            return cls.empty(tuple(samples.shape[1:]))
        values = samples.detach().to("cpu", torch.float64)
        mean = values.mean(0)
        # A second pass takes the rounding error of the first out of the mean.
        mean = mean + (values - mean).mean(0)
        centred = values - mean
        squares = centred.square()
        return cls(len(values), mean, squares.sum(0), (squares * centred).sum(0), squares.square().sum(0))

    def __add__(self, other: "Moments") -> "Moments":
        """The moments of both sets of samples."""
        if self.mean.shape != other.mean.shape:
            raise ValueError(
                f"Moments of one shape can be added; got {tuple(self.mean.shape)} and "
                f"{tuple(other.mean.shape)}."
            )
        if not self.count or not other.count:
            return self if self.count else other
        n, a, b = self.count + other.count, self.count, other.count
        gap = other.mean - self.mean
        # Pebay (2008), equations 2.1 to 2.4 with B = other.
        step = gap / n
        m2 = self.m2 + other.m2 + a * b * gap * step
        m3 = self.m3 + other.m3 + a * b * (a - b) * gap * step**2 + 3 * step * (a * other.m2 - b * self.m2)
        m4 = (
            self.m4
            + other.m4
            + a * b * (a * a - a * b + b * b) * gap * step**3
            + 6 * step**2 * (a * a * other.m2 + b * b * self.m2)
            + 4 * step * (a * other.m3 - b * self.m3)
        )
        return Moments(n, self.mean + b * step, m2, m3, m4)

    @property
    def variance(self) -> Tensor:
        """Unbiased variance; NaN below 2 samples."""
        return self.m2 / (self.count - 1) if self.count > 1 else torch.full_like(self.mean, math.nan)

    @property
    def std(self) -> Tensor:
        """Square root of the unbiased variance."""
        return self.variance.sqrt()

    @property
    def skewness(self) -> Tensor:
        r"""Third standardised moment :math:`\sqrt n\, M_3 / M_2^{3/2}`; NaN for constant samples."""
        return math.sqrt(self.count) * self.m3 / self.m2**1.5

    @property
    def kurtosis(self) -> Tensor:
        r"""Fourth standardised moment :math:`n M_4 / M_2^2`, 3 for a normal law; NaN for constant samples."""
        return self.count * self.m4 / self.m2**2

    @property
    def std_error(self) -> Tensor:
        """Standard error of the mean, for independent samples; NaN below 2 samples."""
        return self.std / math.sqrt(self.count) if self.count else self.std

    @property
    def variance_std_error(self) -> Tensor:
        """Standard error of the variance, for independent samples; NaN below 2 samples."""
        n = self.count
        if n < 2:
            return torch.full_like(self.mean, math.nan)
        excess = self.m4 / n - self.variance**2 * (n - 3) / (n - 1)
        return (excess.clamp(min=0) / n).sqrt()

    def confidence_interval(self, confidence: float = 0.95) -> tuple[Tensor, Tensor]:
        """Interval of the mean by Student's law: exact for normal samples, approximate for many others.

        Below its nominal probability for few samples of a skewed law: 0.90 instead of 0.95 for 50 samples of
        a standard lognormal.

        Args:
            confidence: Probability that the interval holds the mean, in (0, 1).

        Returns:
            Lower and upper end, each with the shape of one sample.

        Raises:
            ValueError: If ``confidence`` is not in (0, 1).
        """
        half = student_quantile(confidence, self.count - 1) * self.std_error
        return self.mean - half, self.mean + half
