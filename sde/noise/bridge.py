r"""Pieces of a Wiener path: how the increments and areas of an interval split into those of its parts.

On an interval of length :math:`h`, with :math:`x \in [0, 1]` the position in it, a path is seen through

.. math::

    W = \int \mathrm{d}W, \qquad
    H = \int \bigl(\tfrac12 - x\bigr)\,\mathrm{d}W, \qquad
    K = \int \tfrac12\bigl(x^2 - x + \tfrac16\bigr)\,\mathrm{d}W,

the increment, the space-time and the space-time-time Levy area: independent, centred and normal, of variances
:math:`h`, :math:`h/12` and :math:`h/720`. They are the first three coefficients of the path in Legendre
polynomials, so that merging two intervals is a linear map and splitting one is its Gaussian conditioning.

References:
    Foster, Lyons & Oberhauser (2020), An optimal polynomial approximation of Brownian motion, section 2.
    doi:10.1137/19M1261912
    Jelincic, Foster & Kidger (2024), Single-seed generation of Brownian paths and integrals for adaptive and
    high order SDE solvers. arXiv:2405.06464
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Piece", "halve", "merge", "split"]


class Piece(NamedTuple):
    """A Wiener path on an interval; all three have the same shape and the unit of the path."""

    wiener: Tensor  #: increment W
    space_time: Tensor  #: space-time Levy area H
    space_time_time: Tensor  #: space-time-time Levy area K


def merge(left: Piece, right: Piece, share: float = 0.5) -> Piece:
    """The piece of an interval from those of its two parts.

    Args:
        left: The first part.
        right: The second part.
        share: Length of the first part over that of the whole, in (0, 1).

    Returns:
        The whole.

    Example:
        >>> one, none = torch.ones(1), torch.zeros(1)
        >>> merge(Piece(one, none, none), Piece(one, none, none)).wiener
        tensor([2.])
    """
    p, q = share, 1 - share
    return Piece(
        left.wiener + right.wiener,
        p * left.space_time + q * right.space_time + 0.5 * (q * left.wiener - p * right.wiener),
        p * p * left.space_time_time
        + q * q * right.space_time_time
        + (0.5 * p * q) * (left.space_time - right.space_time)
        + (q - p) / 12 * (q * left.wiener - p * right.wiener),
    )


def halve(
    whole: Piece, length: Tensor | float, normals: tuple[Tensor, Tensor, Tensor]
) -> tuple[Piece, Piece]:
    """Both halves of an interval given the whole, by three standard normals.

    Args:
        whole: The piece to refine.
        length: Length of the whole interval, positive; a tensor must broadcast with the piece.
        normals: Independent standard normals of the piece's shape.

    Returns:
        The first and the second half. Merged, they are ``whole`` to rounding.

    References:
        Jelincic, Foster & Kidger (2024), theorem 3.7. arXiv:2405.06464
    """
    root = length**0.5
    bend = 1.5 * whole.space_time + (0.25 * root) * normals[0]
    tilt = 3.75 * whole.space_time_time + (root / 768**0.5) * normals[1]
    mean_area = 0.25 * whole.space_time - (0.125 * root) * normals[0]
    mean_curve = 0.125 * whole.space_time_time - (0.5 / 768**0.5 * root) * normals[1]
    curve = (root / 2880**0.5) * normals[2]
    half = 0.5 * whole.wiener
    return (
        Piece(half + bend, mean_area + tilt, mean_curve + curve),
        Piece(half - bend, mean_area - tilt, mean_curve - curve),
    )


def split(
    whole: Piece, length: float, share: float, normals: tuple[Tensor, Tensor, Tensor]
) -> tuple[Piece, Piece]:
    """Two unequal parts of an interval given the whole, by three standard normals.

    Args:
        whole: The piece to refine.
        length: Length of the whole interval, positive.
        share: Length of the first part over that of the whole, in (0, 1).
        normals: Independent standard normals of the piece's shape.

    Returns:
        The first and the second part. Merged with the same ``share``, they are ``whole`` to rounding.

    Raises:
        ValueError: If ``share`` does not lie in (0, 1).
    """
    if not 0 < share < 1:
        raise ValueError(f"`share` must lie in (0, 1); got {share}.")
    weights, factor = _conditional(share)
    root = math.sqrt(length)

    def part(i: int) -> Tensor:
        a, b, c = (weights[i][j] * whole[j] + root * factor[i][j] * normals[j] for j in range(3))
        return a + b + c

    left = Piece(part(0), part(1), part(2))
    p, q = share, 1 - share
    wiener = whole.wiener - left.wiener
    area = (whole.space_time - p * left.space_time - 0.5 * (q * left.wiener - p * wiener)) / q
    curve = whole.space_time_time - p * p * left.space_time_time - 0.5 * p * q * (left.space_time - area)
    curve = (curve - (q - p) / 12 * (q * left.wiener - p * wiener)) / (q * q)
    return left, Piece(wiener, area, curve)


_VARIANCES = (1.0, 1 / 12, 1 / 720)  # of W, H and K on a unit interval


def _conditional(share: float) -> tuple[list[list[float]], list[list[float]]]:
    """Law of the first part given the whole of unit length: regression matrix, factor of the covariance."""
    p, q = share, 1 - share
    whole = torch.tensor(_VARIANCES, dtype=torch.float64)
    part = p * whole
    coefficients = torch.tensor(  # the first part's share in `merge`
        [[1.0, 0.0, 0.0], [0.5 * q, p, 0.0], [(q - p) * q / 12, 0.5 * p * q, p * p]], dtype=torch.float64
    )
    weights = part[:, None] * coefficients.T / whole
    covariance = part.diag() - weights @ coefficients * part
    return weights.tolist(), torch.linalg.cholesky(covariance).tolist()
