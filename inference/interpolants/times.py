r"""Laws of the times at which a loss is sampled.

The loss is an integral over time. Its value at times of density p is divided by p, so that the integral and
its minimiser stay what they are, and the variance of the estimate changes: most where the integrand is
largest.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["LogitNormalTimes", "StartTimes", "TimeLaw", "UniformTimes"]


class TimeLaw(Protocol):
    """A law on [0, 1] with a density."""

    def times(self, uniform: Tensor) -> Tensor:
        """Times of given uniforms in (0, 1), of the same shape: the quantile function."""
        ...

    def density(self, t: Tensor) -> Tensor:
        """The density at times, of the same shape."""
        ...


@dataclass(frozen=True, slots=True)
class UniformTimes:
    """Times that are uniform between two ends: the loss is the integral between them.

    Attributes:
        first: At least 0.
        last: Above ``first``, at most 1.

    Raises:
        ValueError: If they are no such interval.

    Example:
        >>> UniformTimes(0.5, 1.0).density(torch.tensor(0.7))
        tensor(2.)
    """

    first: float = 0.0
    last: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.first < self.last <= 1:
            raise ValueError(
                f"`first` and `last` must satisfy 0 <= first < last <= 1; got {self.first}, {self.last}."
            )

    def times(self, uniform: Tensor) -> Tensor:
        """The quantile function."""
        return self.first + (self.last - self.first) * uniform

    def density(self, t: Tensor) -> Tensor:
        """One over the length."""
        return torch.full_like(t, 1 / (self.last - self.first))


@dataclass(frozen=True, slots=True)
class LogitNormalTimes:
    r"""Times whose logit is normal: more in the middle, or about the logistic function of the mean.

    .. math:: p(t) = \frac{1}{s\, t (1 - t)}\, \varphi\Bigl( \frac{\log (t / (1 - t)) - m}{s} \Bigr)

    The density vanishes at the ends, where the weighted loss has a large variance unless the integrand
    vanishes, too: a deviation of 1.4 or more is near the uniform law.

    Attributes:
        mean: ``m``.
        deviation: ``s``, positive.

    Raises:
        ValueError: If the deviation is not positive.

    Example:
        >>> LogitNormalTimes().times(torch.tensor(0.5))
        tensor(0.5000)

    References:
        Esser et al. (2024), Scaling rectified flow transformers, section 3.1. arXiv:2403.03206
    """

    mean: float = 0.0
    deviation: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.deviation < math.inf:
            raise ValueError(f"`deviation` must be positive; got {self.deviation}.")

    def times(self, uniform: Tensor) -> Tensor:
        """The quantile function."""
        return (self.mean + self.deviation * torch.special.ndtri(uniform)).sigmoid()

    def density(self, t: Tensor) -> Tensor:
        """The density, above 0 within (0, 1)."""
        u = (t.logit() - self.mean) / self.deviation
        return (-0.5 * u**2).exp() / (math.sqrt(2 * math.pi) * self.deviation * t * (1 - t))


@dataclass(frozen=True, slots=True)
class StartTimes:
    """The starts of equal Euler steps, 0, 1/k, ..., equally often: the loss is the mean over them.

    On pairs that a flow has made this distils the flow into a sampler of ``k`` evaluations.

    Attributes:
        count: Number ``k`` of steps, at least 1.

    Raises:
        ValueError: If it is below 1.

    Example:
        >>> StartTimes(4).times(torch.tensor([0.1, 0.6, 0.9]))
        tensor([0.0000, 0.5000, 0.7500])

    References:
        Liu, Gong & Liu (2023), Flow straight and fast, section 2.2 on distillation. arXiv:2209.03003
    """

    count: int

    def __post_init__(self) -> None:
        if isinstance(self.count, bool) or not isinstance(self.count, int) or self.count < 1:
            raise ValueError(f"`count` must be a whole number of at least 1; got {self.count!r}.")

    def times(self, uniform: Tensor) -> Tensor:
        """The quantile function."""
        return (uniform * self.count).floor() / self.count

    def density(self, t: Tensor) -> Tensor:
        """One: the density in the law that has these times equally often."""
        return torch.ones_like(t)
