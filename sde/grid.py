"""The grid of a solve: the instants whose states are kept, and the steps between them."""

import math
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from sde.shapes import check_shapes

__all__ = ["Grid", "make_grid"]


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """Instants, and how many equal steps are taken between them.

    Attributes:
        times: Instants whose states are kept, shape ``(T,)``.
        counts: Number of steps between consecutive instants.
        saves: The instant that is reached with a number of steps, by that number.
    """

    times: Tensor
    counts: tuple[int, ...]
    saves: dict[int, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        ends, total = {}, 0
        for instant, count in enumerate(self.counts, 1):
            total += count
            ends[total] = instant
        object.__setattr__(self, "saves", ends)

    @property
    def num_steps(self) -> int:
        """Number of steps."""
        return sum(self.counts)

    def ends(self) -> "Grid":
        """The same steps, of which only the first and the last state are kept."""
        grid = Grid(self.times, self.counts)
        object.__setattr__(grid, "saves", {self.num_steps: 1})
        return grid

    def steps(self) -> tuple[Tensor, Tensor]:
        """Start and length of every step, float64, each of shape ``(num_steps,)``.

        Starts are ``times[j] + k * dt`` with integer ``k``, never a running sum. Gradients flow to ``times``.
        """
        times = self.times.double()
        counts = torch.tensor(self.counts, device=times.device)
        left = torch.repeat_interleave(torch.arange(len(counts), device=times.device), counts)
        number = torch.arange(len(left), device=times.device) - (counts.cumsum(0) - counts)[left]
        spans = times.diff()[left]
        return times[left] + spans * (number.double() / counts[left]), spans / counts[left]


def make_grid(times: Tensor, substeps: int = 1, max_step: float | None = None) -> Grid:
    """A grid, with its arguments checked.

    Args:
        times: Strictly increasing instants, shape ``(T,)`` with ``T >= 2``.
        substeps: Equal steps between consecutive instants, at least 1.
        max_step: Instead of ``substeps``: the length that no step exceeds; each interval is cut into as few
            equal steps as that takes.

    Returns:
        The grid.

    Raises:
        ValueError: If ``times`` is too short, not finite or not increasing, ``substeps`` is below 1,
            ``max_step`` is not positive, or both are given.
        TypeError: If ``times`` is not floating point or ``substeps`` not an integer.

    Example:
        >>> make_grid(torch.tensor([0.0, 1.0, 3.0]), substeps=2).steps()[0].tolist()
        [0.0, 0.5, 1.0, 2.0]
        >>> make_grid(torch.tensor([0.0, 0.1, 1.0]), max_step=0.5).counts
        (1, 2)
    """
    if isinstance(substeps, bool) or not isinstance(substeps, int):
        raise TypeError(f"`substeps` must be an integer; got {type(substeps).__name__}.")
    if substeps < 1:
        raise ValueError(f"`substeps` must be at least 1; got {substeps}.")
    values = _checked_times(times)
    if max_step is None:
        return Grid(times, (substeps,) * (len(values) - 1))
    if substeps != 1:
        raise ValueError(f"`substeps` must be left out where `max_step` is given; got {substeps}.")
    if not 0 < max_step < math.inf:
        raise ValueError(f"`max_step` must be positive and finite; got {max_step}.")
    # An interval that misses a whole number of steps by rounding is not cut once more.
    spans = (right - left for left, right in pairwise(values))
    return Grid(times, tuple(max(1, math.ceil(span / max_step * (1 - 1e-6))) for span in spans))


def _checked_times(times: Tensor) -> list[float]:
    """The instants as numbers."""
    if not isinstance(times, Tensor) or not times.is_floating_point():
        given = times.dtype if isinstance(times, Tensor) else type(times).__name__
        raise TypeError(f"`times` must be a floating-point tensor; got {given}.")
    check_shapes(times=(times, "T"))
    if len(times) < 2:
        raise ValueError(f"`times` must hold at least 2 instants; got {len(times)}.")
    values = times.tolist()
    for j in range(1, len(values)):
        if not values[j - 1] < values[j] < math.inf or values[0] == -math.inf:
            raise ValueError(
                f"`times` must increase strictly and be finite; "
                f"got times[{j}] = {values[j]:g} after times[{j - 1}] = {values[j - 1]:g}."
            )
    return values
