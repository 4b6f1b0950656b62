r"""Brownian paths that can be read at any instant, in any order, without storing anything.

Time is cut into equal cells of length :math:`h`. The increment and the space-time area of a cell are drawn;
inside, at the position :math:`x \in [0, 1]`, the path is written in the basis that bisection leads to
(:func:`sde.noise.bridge.halve` without its third moment),

.. math::

    W(x) = x W + 6 x (1 - x) H
         + \sum_{\text{parts} \ni x} \sqrt{\ell} \left(\psi_0(y) Z_0 + \psi_1(y) Z_1\right)

over the dyadic parts of the cell that hold :math:`x`, with their lengths :math:`\ell` and the position
:math:`y` of :math:`x` in them. A part to the left of :math:`x` contributes neither to :math:`W(x)` nor to its
integral, so that one draw from the addresses of some thirty parts gives both, and none is needed where cells
meet.

References:
    Foster, Lyons & Oberhauser (2020), section 4. doi:10.1137/19M1261912
    Jelincic, Foster & Kidger (2024). arXiv:2405.06464
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from sde.noise.increments import Areas, Increments
from sde.noise.stream import NoiseStream, Purpose

__all__ = ["CellPath"]

_DEPTH = 30  # halvings: a part is then far below any step, and inside it the path is its conditional mean
_ROUNDING = 1e-9  # of a cell: instants that are computed in another way than its ends are still its ends
_NUMBERS_AT_ONCE = 1 << 18


@dataclass(frozen=True, slots=True, eq=False)
class CellPath:
    """A Brownian path over consecutive cells; times are counted from its start.

    Attributes:
        cells: Increments and space-time areas of the cells, ``(count, n, channels)``.
        length: Of a cell.
        noise: Where the normals inside the cells are drawn from.
        resolution: Time below which the path is its conditional mean; 0 for ``2**-30`` of a cell.
    """

    cells: Increments
    length: float
    noise: NoiseStream
    resolution: float = 0.0

    def increments(
        self, times: Sequence[float], like: Tensor, *, areas: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Increments between consecutive times, and space-time areas if asked for.

        Args:
            times: At least two, in order.
            like: A tensor of the type and on the device of the answer.
            areas: Whether areas are asked for.

        Returns:
            Each ``(len(times) - 1, n, channels)``.
        """
        position, count = self._positions(times), len(times) - 1
        if (position == np.rint(position)).all() and (np.diff(position) == 1).all():
            whole = self.cells.chunk(int(position[0]), count, Areas.SPACE_TIME if areas else Areas.NONE)
            return whole.wiener, whole.space_time
        numbers = np.clip(np.floor(position), 0, self.cells.shape[0] - 1).astype(np.int64)
        within = np.clip(position - numbers, 0.0, 1.0)
        values = self._inside(numbers, within, like)
        steps = torch.from_numpy(np.diff(times)).to(like.device)[:, None]
        wiener, integral = (values[1:] - values[:-1]).unbind(1)
        integral = integral - steps * values[:-1, 0]
        if numbers[0] != numbers[-1]:
            before, total = self._between(numbers, like.device)
            wiener = wiener + before
            integral = integral + total + steps.new_tensor(within[1:, None] * self.length) * before
        area = torch.where(steps > 0, integral / steps - 0.5 * wiener, 0.0)
        shape = (count, *self.cells.shape[1:])
        return wiener.to(like).view(shape), area.to(like).view(shape) if areas else None

    def _positions(self, times: Sequence[float]) -> np.ndarray:
        """Times in units of cells; those of ends are exact."""
        position = np.asarray(times, dtype=np.float64) / self.length
        nearest = np.rint(position)
        return np.where(np.abs(position - nearest) < _ROUNDING, nearest, position)

    def _between(self, numbers: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor]:
        """From the start of each cell to that of the next one listed: increments, and their integrals."""
        sums = [self._sum(int(first), int(last), device) for first, last in pairwise(numbers)]
        return torch.stack([pair[0] for pair in sums]), torch.stack([pair[1] for pair in sums])

    def _sum(self, first: int, last: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Increment over cells ``first .. last - 1``, and the integral of the path from its value there."""
        elements = math.prod(self.cells.shape[1:])
        total = torch.zeros((2, elements), dtype=torch.float64, device=device)
        wiener, integral = total
        block = max(1, _NUMBERS_AT_ONCE // max(1, elements))
        for begin in range(first, last, block):
            parts = self.cells.chunk(begin, min(block, last - begin), Areas.SPACE_TIME)
            assert parts.space_time is not None  # it was asked for
            steps, areas = (part.flatten(1).double() for part in (parts.wiener, parts.space_time))
            starts = wiener + steps.cumsum(0) - steps
            integral = integral + self.length * (starts + 0.5 * steps + areas).sum(0)
            wiener = wiener + steps.sum(0)
        return wiener, integral

    def _inside(self, numbers: np.ndarray, within: np.ndarray, like: Tensor) -> Tensor:
        """The path and its integral since the start of the cell, float64, ``(len(numbers), 2, elements)``."""
        elements = max(1, math.prod(self.cells.shape[1:]))
        values = torch.zeros((len(numbers), 2, elements), dtype=torch.float64, device=like.device)
        inner = np.flatnonzero(within)
        block = max(1, _NUMBERS_AT_ONCE // (2 * _DEPTH * elements))
        for first in range(0, len(inner), block):
            rows = inner[first : first + block]
            values[torch.from_numpy(rows)] = self._expand(numbers[rows], within[rows], elements, like)
        return values

    def _expand(self, numbers: np.ndarray, within: np.ndarray, elements: int, like: Tensor) -> Tensor:
        """The expansion at positions in some cells."""
        values = torch.from_numpy(_polynomials(within, self.length)).to(like.device) @ self._ends(numbers)
        part, place = self._descend(within)
        deep = part.shape[1]
        block = max(1, _NUMBERS_AT_ONCE // (2 * elements * len(numbers)))
        for first in range(0, deep, block):  # what is held at once stays in the cache
            level = np.arange(first, min(first + block, deep))
            nodes = (2.0**level + part[:, level]).astype(np.int64) + (numbers[:, None] << (_DEPTH + 1))
            normals = self.noise.select_ids(torch.from_numpy(nodes).flatten()).normals(
                2, purpose=Purpose.TREE, channels=elements, dtype=like.dtype, device=like.device
            )
            weights = torch.from_numpy(_halving(place[:, level], self.length / 2.0**level)).to(like.device)
            values += weights @ normals.view(len(numbers), 2 * len(level), elements).double()
        return values

    def _ends(self, numbers: np.ndarray) -> Tensor:
        """Increments and areas of cells, float64, ``(len(numbers), 2, elements)``."""
        cells, rows = np.unique(numbers, return_inverse=True)
        drawn = [self.cells.chunk(int(cell), 1, Areas.SPACE_TIME) for cell in cells]
        ends = [torch.cat((one.wiener, one.space_time)) for one in drawn if one.space_time is not None]
        return torch.stack(ends).flatten(2).double()[torch.from_numpy(rows)]

    def _descend(self, within: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The dyadic parts that hold some positions, and the positions in them, level by level."""
        depth = _DEPTH
        if self.resolution > 0:
            depth = min(_DEPTH, max(1, math.ceil(math.log2(self.length / self.resolution))))
        scales = 2.0 ** np.arange(depth)
        scaled = within[:, None] * scales
        part = np.minimum(np.floor(scaled), scales - 1)
        place = scaled - part
        deep = int(((place > 0) & (place < 1)).any(0).sum())  # a dyadic position ends the descent
        return part[:, :deep], place[:, :deep]


def _polynomials(x: np.ndarray, length: float) -> np.ndarray:
    """Values and integrals at ``x`` in [0, 1] of the functions of W and H: ``(points, 2, 2)``."""
    values = (x, 6 * x * (1 - x))
    integrals = (length * x**2 / 2, length * (3 * x**2 - 2 * x**3))
    return np.stack((*values, *integrals), 1).reshape(-1, 2, 2)


def _halving(y: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Values and integrals at ``y`` in [0, 1] of the functions of parts: ``(points, 2, 2 * levels)``."""
    left = y < 0.5
    u = np.where(left, 2 * y, 2 * y - 1)
    bump, area = u * (1 - u), u**2 / 2 - u**3 / 3
    value = (
        np.where(left, u, 1 - u) / 4 - 0.75 * bump,
        np.where(left, bump, -bump) * (0.75**0.5),
    )
    integral = (
        np.where(left, u**2, 2 * u - u**2) / 16 - 0.375 * area,
        np.where(left, area, 1 / 6 - area) * (3 / 48**0.5),
    )
    root = np.sqrt(lengths)
    rows = (np.stack(value, -1) * root[:, None], np.stack(integral, -1) * (lengths * root)[:, None])
    return np.stack(rows, 1).reshape(len(y), 2, -1)
