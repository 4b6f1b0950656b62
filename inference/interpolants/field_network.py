"""A dense network as a field of time and point, which is what predictions are made of."""

from torch import Tensor

from inference.interpolants.flow import VelocityNetwork

__all__ = ["FieldNetwork"]


class FieldNetwork(VelocityNetwork):
    """A :class:`VelocityNetwork` without conditions, called with the time first.

    Its arguments are those of :class:`VelocityNetwork`.

    Example:
        >>> import torch
        >>> FieldNetwork(2, seed=0)(torch.tensor(0.5), torch.zeros(5, 2)).shape
        torch.Size([5, 2])
    """

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, t: Tensor, points: Tensor
    ) -> Tensor:
        """Values ``(n, d)`` at times, 0-d or ``(n, 1)``, and points ``(n, d)``."""
        return super().forward(points, t.expand(len(points), 1), points[:, :0])
