"""Interpolants between a base and a target, and the loss that learns their velocity."""

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from inference.interpolants.schedule import Linear, Schedule
from sde.shapes import check_shapes

__all__ = ["Interpolant", "velocity_loss"]

Velocity = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Interpolant:
    r"""The path from a base point to a target point, linear in both.

    .. math:: x_t = \alpha(t)\, x_0 + \beta(t)\, x_1, \qquad
              \dot x_t = \dot\alpha(t)\, x_0 + \dot\beta(t)\, x_1

    Attributes:
        schedule: The coefficients.

    Example:
        >>> import torch
        >>> base, target = torch.tensor([[0.0, 4.0]]), torch.tensor([[4.0, 0.0]])
        >>> Interpolant().point(torch.tensor([[0.25]]), base, target)
        tensor([[1., 3.]])

    References:
        Albergo, Boffi & Vanden-Eijnden (2023), Stochastic interpolants, section 4. arXiv:2303.08797
    """

    schedule: Schedule = field(default_factory=Linear)

    def point(self, t: Tensor, base: Tensor, target: Tensor) -> Tensor:
        """Points at times ``t`` (shape ``(n, 1)``) between base and target (shape ``(n, d)``)."""
        alpha, beta = self.schedule.coefficients(t)
        return alpha * base + beta * target

    def velocity(self, t: Tensor, base: Tensor, target: Tensor) -> Tensor:
        """Time derivative of :meth:`point`."""
        alpha, beta = self.schedule.derivatives(t)
        return alpha * base + beta * target


def velocity_loss(
    velocity: Velocity, interpolant: Interpolant, base: Tensor, target: Tensor, t: Tensor, conditions: Tensor
) -> Tensor:
    r"""Conditional flow-matching loss, whose minimiser carries the base to the target.

    .. math:: L(v) = E\,\lVert v(x_t, t, c) - \dot x_t \rVert^2, \qquad
              v^*(x, t, c) = E[\dot x_t \mid x_t = x, c]

    Args:
        velocity: Maps points ``(n, d)``, times ``(n, 1)`` and conditions ``(n, c)`` to velocities ``(n, d)``.
        interpolant: The paths.
        base: Samples of the base, shape ``(n, d)``.
        target: Samples of the target, shape ``(n, d)``.
        t: Times, shape ``(n, 1)``, in [0, 1].
        conditions: Known inputs of the target samples, shape ``(n, c)``; ``c`` may be 0.

    Returns:
        The mean over samples and components, a scalar.

    Raises:
        ValueError: If shapes disagree.

    Example:
        >>> import torch
        >>> one = torch.ones(4, 2)
        >>> still = lambda x, t, c: torch.zeros_like(x)
        >>> velocity_loss(still, Interpolant(), 0 * one, 3 * one, 0.5 * one[:, :1], one[:, :0]).item()
        9.0

    References:
        Lipman et al. (2023), Flow matching for generative modeling, section 3.2. arXiv:2210.02747
    """
    check_shapes(base=(base, "n d"), target=(target, "n d"), t=(t, "n 1"), conditions=(conditions, "n c"))
    moving = interpolant.velocity(t, base, target)
    return (velocity(interpolant.point(t, base, target), t, conditions) - moving).square().mean()
