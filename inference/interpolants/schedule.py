"""Schedules of interpolants: how the base fades out and the target fades in.

Time runs from 0 (base, noise) to 1 (target, data) everywhere in this package.
"""

import math
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["Linear", "Schedule", "Trigonometric"]


class Schedule(Protocol):
    r"""Coefficients of :math:`x_t = \alpha(t)\, x_0 + \beta(t)\, x_1`, with their derivatives.

    Boundary values: :math:`\alpha(0) = \beta(1) = 1` and :math:`\alpha(1) = \beta(0) = 0`.
    """

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Alpha and beta at times ``t``."""
        ...

    def derivatives(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Time derivatives of alpha and beta at times ``t``."""
        ...


class Linear:
    r"""Straight lines: :math:`\alpha = 1 - t`, :math:`\beta = t`.

    Example:
        >>> alpha, beta = Linear().coefficients(torch.tensor(0.25))
        >>> alpha.item(), beta.item()
        (0.75, 0.25)

    References:
        Lipman et al. (2023), Flow matching for generative modeling, section 4.1. arXiv:2210.02747
    """

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Alpha and beta at times ``t``."""
        return 1 - t, t

    def derivatives(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Time derivatives of alpha and beta at times ``t``."""
        return -torch.ones_like(t), torch.ones_like(t)


class Trigonometric:
    r"""Quarter circles: :math:`\alpha = \cos(\pi t/2)`, :math:`\beta = \sin(\pi t/2)`; keeps a unit variance.

    Example:
        >>> alpha, beta = Trigonometric().coefficients(torch.tensor(0.0))
        >>> alpha.item(), beta.item()
        (1.0, 0.0)

    References:
        Albergo, Boffi & Vanden-Eijnden (2023), Stochastic interpolants, section 4.2. arXiv:2303.08797
    """

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Alpha and beta at times ``t``."""
        angle = (math.pi / 2) * t
        return angle.cos(), angle.sin()

    def derivatives(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Time derivatives of alpha and beta at times ``t``."""
        angle = (math.pi / 2) * t
        return -(math.pi / 2) * angle.sin(), (math.pi / 2) * angle.cos()
