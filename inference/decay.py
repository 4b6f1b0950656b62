"""How a learning rate falls in the course of a training."""

import math
from bisect import bisect_right
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

__all__ = ["CosineDecay", "Decay", "ExponentialDecay", "NoDecay", "StepDecay"]


class Decay(Protocol):
    """A course of the learning rate: a value, whose ``repr`` says all of it."""

    def factor(self, share: float, /) -> float:
        """The rate over that at the start, after a share in [0, 1] of the iterations."""
        ...


@dataclass(frozen=True, slots=True)
class NoDecay:
    """The rate stays.

    Example:
        >>> NoDecay().factor(0.7)
        1.0
    """

    def factor(self, share: float) -> float:
        """1."""
        return 1.0


@dataclass(frozen=True, slots=True)
class CosineDecay:
    r"""Half a wave: :math:`f + (1 - f)\,\tfrac12 (1 + \cos \pi s)` after the share ``s``.

    Attributes:
        final: Fraction ``f`` of the rate at the end, in (0, 1].

    Raises:
        ValueError: If the fraction lies outside.

    Example:
        >>> CosineDecay(0.5).factor(0.0), CosineDecay(0.5).factor(1.0)
        (1.0, 0.5)

    References:
        Loshchilov & Hutter (2017), SGDR, section 3. arXiv:1608.03983
    """

    final: float = 0.01

    def __post_init__(self) -> None:
        _check_fraction("final", self.final)

    def factor(self, share: float) -> float:
        """The rate over that at the start."""
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * share))


@dataclass(frozen=True, slots=True)
class ExponentialDecay:
    """The same factor in every iteration: ``final**s`` after the share ``s``.

    Attributes:
        final: Fraction of the rate at the end, in (0, 1].

    Raises:
        ValueError: If the fraction lies outside.

    Example:
        >>> ExponentialDecay(0.25).factor(0.5)
        0.5
    """

    final: float = 0.01

    def __post_init__(self) -> None:
        _check_fraction("final", self.final)

    def factor(self, share: float) -> float:
        """The rate over that at the start."""
        return self.final**share


@dataclass(frozen=True, slots=True)
class StepDecay:
    """The rate is cut at some instants.

    Attributes:
        at: Shares of the iterations, increasing in (0, 1).
        cut: Factor of each cut, in (0, 1].

    Raises:
        ValueError: If the shares do not increase or a value lies outside.

    Example:
        >>> [StepDecay((0.5, 0.8), cut=0.5).factor(share) for share in (0.2, 0.5, 0.9)]
        [1.0, 0.5, 0.25]
    """

    at: tuple[float, ...]
    cut: float = 0.1

    def __post_init__(self) -> None:
        _check_fraction("cut", self.cut)
        edges = (0.0, *self.at, 1.0)
        if any(not low < high for low, high in pairwise(edges)):
            raise ValueError(f"`at` must increase between 0 and 1; got {self.at}.")

    def factor(self, share: float) -> float:
        """The rate over that at the start."""
        return self.cut ** bisect_right(self.at, share)


def _check_fraction(name: str, value: float) -> None:
    """Raise unless a value lies in (0, 1]."""
    if not 0 < value <= 1:
        raise ValueError(f"`{name}` must lie in (0, 1]; got {value}.")
