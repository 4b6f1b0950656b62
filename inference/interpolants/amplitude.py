r"""Amplitudes of the latent variable: how much noise an interpolant carries on its way.

An amplitude :math:`\gamma(t)` vanishes at 0 and 1. What it states is :math:`\gamma^2` and
:math:`\gamma \dot\gamma`: gamma's own derivative is infinite at the ends of the one that matters most.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Amplitude", "BrownianBridge", "Fading", "Parabola", "Sigmoids", "SineSquared"]


class Amplitude(ABC):
    """The amplitude of the latent variable of an interpolant."""

    @abstractmethod
    def variance(self, t: Tensor) -> tuple[Tensor, Tensor]:
        r""":math:`\gamma^2` and :math:`\gamma \dot\gamma` at times ``t``, finite on [0, 1]."""


def _check_positive(name: str, value: float) -> None:
    """Raise unless a number is positive and finite."""
    if not 0 < value < math.inf:
        raise ValueError(f"`{name}` must be positive; got {value}.")


@dataclass(frozen=True, slots=True)
class BrownianBridge(Amplitude):
    r""":math:`\gamma = \sqrt{a\, t (1 - t)}`, the deviation of a Brownian bridge.

    The only common choice whose velocity sees the scores of both ends. ``a = 2`` keeps a unit covariance
    along straight lines between laws that have one.

    Attributes:
        scale: ``a``, positive.

    Example:
        >>> BrownianBridge(2.0).variance(torch.tensor(0.0))
        (tensor(0.), tensor(1.))

    References:
        Albergo, Boffi & Vanden-Eijnden (2023), Stochastic interpolants, section 3.1. arXiv:2303.08797
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        _check_positive("scale", self.scale)

    def variance(self, t: Tensor) -> tuple[Tensor, Tensor]:
        r""":math:`\gamma^2` and :math:`\gamma \dot\gamma`."""
        return self.scale * t * (1 - t), self.scale * (0.5 - t)


@dataclass(frozen=True, slots=True)
class Fading(Amplitude):
    r""":math:`\gamma = c\, (1 - t) \sqrt t`, for interpolants that leave a point as Wiener paths.

    Attributes:
        scale: ``c``, positive.

    References:
        Chen, Goldstein, Hua, Albergo, Boffi & Vanden-Eijnden (2024), section 3. arXiv:2403.13724
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        _check_positive("scale", self.scale)

    def variance(self, t: Tensor) -> tuple[Tensor, Tensor]:
        r""":math:`\gamma^2` and :math:`\gamma \dot\gamma`."""
        square, back = self.scale**2, 1 - t
        return square * t * back**2, square * back * (1 - 3 * t) / 2


@dataclass(frozen=True, slots=True)
class Parabola(Amplitude):
    r""":math:`\gamma = t (1 - t)`.

    References:
        Albergo, Boffi & Vanden-Eijnden (2023), Stochastic interpolants, table 8. arXiv:2303.08797
    """

    def variance(self, t: Tensor) -> tuple[Tensor, Tensor]:
        r""":math:`\gamma^2` and :math:`\gamma \dot\gamma`."""
        gamma = t * (1 - t)
        return gamma**2, gamma * (1 - 2 * t)


@dataclass(frozen=True, slots=True)
class SineSquared(Amplitude):
    r""":math:`\gamma = \sin^2(\pi t)`.

    References:
        Albergo, Boffi & Vanden-Eijnden (2023), Stochastic interpolants, equation 4.11. arXiv:2303.08797
    """

    def variance(self, t: Tensor) -> tuple[Tensor, Tensor]:
        r""":math:`\gamma^2` and :math:`\gamma \dot\gamma`."""
        gamma = (math.pi * t).sin() ** 2
        return gamma**2, gamma * math.pi * (2 * math.pi * t).sin()


@dataclass(frozen=True, slots=True)
class Sigmoids(Amplitude):
    r"""A plateau between two logistic steps.

    .. math:: \gamma = \sigma\bigl(f(t - \tfrac12) + 1\bigr) - \sigma\bigl(f(t - \tfrac12) - 1\bigr)
              - \sigma(1 - \tfrac f2) + \sigma(-1 - \tfrac f2)

    Attributes:
        steepness: ``f``, positive.

    References:
        Albergo, Boffi & Vanden-Eijnden (2023), Stochastic interpolants, table 8. arXiv:2303.08797
    """

    steepness: float = 10.0

    def __post_init__(self) -> None:
        _check_positive("steepness", self.steepness)

    def variance(self, t: Tensor) -> tuple[Tensor, Tensor]:
        r""":math:`\gamma^2` and :math:`\gamma \dot\gamma`."""
        argument, half = self.steepness * (t - 0.5), torch.as_tensor(self.steepness / 2).to(t)
        up, down = (argument + 1).sigmoid(), (argument - 1).sigmoid()
        gamma = up - down - (1 - half).sigmoid() + (-1 - half).sigmoid()
        return gamma**2, gamma * self.steepness * (up * (1 - up) - down * (1 - down))
