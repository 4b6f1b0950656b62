r"""Levy areas between Wiener processes: sampled given increment and space-time area, and chained.

.. math:: A_{ij} = \tfrac12 \int_0^h \bigl(W_i\,\mathrm{d}W_j - W_j\,\mathrm{d}W_i\bigr)

of variance :math:`h^2/4`, kurtosis 5 and characteristic function :math:`1/\cosh(\lambda h/2)`. Given W and
H its mean is :math:`H_i W_j - W_i H_j` and its variance :math:`h^2/20 + (h/5)(H_i^2 + H_j^2)`; its exact law
has no simple sampler, so a normal of these moments takes its place.
"""

from enum import Enum

import torch
from torch import Tensor

__all__ = ["LevyLaw", "chain", "levy_area", "num_pairs"]


class LevyLaw(Enum):
    """How the part of a Levy area that W and H leave open is drawn.

    Both have the mean and the variance of the true law given W, and are normal given W and H. Foster's has
    the true variance given H as well: kurtosis 4.92 against 5, where Davie's has 4.33.

    References:
        Davie (2014), KMT theory applied to approximations of SDE. doi:10.1007/978-3-319-11292-3_7
        Foster (2020), Numerical approximations for stochastic differential equations, chapter 7. DPhil thesis
    """

    DAVIE = "Davie"
    FOSTER = "Foster"


def num_pairs(channels: int) -> int:
    """Number of areas between ``channels`` processes."""
    return channels * (channels - 1) // 2


def levy_area(
    wiener: Tensor, space_time: Tensor, step: Tensor, normals: Tensor, law: LevyLaw = LevyLaw.FOSTER
) -> Tensor:
    """Levy areas of a step.

    Args:
        wiener: Increments W, shape ``(..., channels)``.
        space_time: Space-time areas H, of the same shape.
        step: Length of the step, broadcastable with ``(...)`` and a last axis of 1.
        normals: Standard normals, one for each pair ``i < j`` in the order (0, 1), (0, 2), ..., (1, 2), ...,
            shape ``(..., pairs)``.
        law: Davie's or Foster's.

    Returns:
        Antisymmetric matrices, shape ``(..., channels, channels)``.

    References:
        Foster (2020), chapter 7; the moments given W and H are derived there. DPhil thesis, Oxford
    """
    channels = wiener.shape[-1]
    i, j = torch.triu_indices(channels, channels, 1, device=wiener.device)
    mean = space_time[..., i] * wiener[..., j] - wiener[..., i] * space_time[..., j]
    if law is LevyLaw.FOSTER:
        squares = space_time[..., i].square() + space_time[..., j].square()
        deviation = (step * step / 20 + step / 5 * squares).sqrt()
    else:
        deviation = step / 12**0.5
    areas = wiener.new_zeros((*wiener.shape, channels))
    areas[..., i, j] = mean + deviation * normals
    return areas - areas.mT


def chain(left: Tensor, left_wiener: Tensor, right: Tensor, right_wiener: Tensor) -> Tensor:
    """Levy area of two consecutive steps (Chen's relation).

    Args:
        left: Area of the first step, shape ``(..., channels, channels)``.
        left_wiener: Increment of the first step, shape ``(..., channels)``.
        right: Area of the second step.
        right_wiener: Increment of the second step.

    Returns:
        Area of both together.
    """
    outer = left_wiener.unsqueeze(-1) * right_wiener.unsqueeze(-2)
    return left + right + 0.5 * (outer - outer.mT)
