"""The increments of a Brownian motion over the steps of a solve."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, cast

import torch
from torch import Tensor

from sde.noise.bridge import Piece, merge
from sde.noise.brownian import WienerIncrements
from sde.noise.increments import Areas, Increment, Increments
from sde.noise.levy_area import chain
from sde.noise.stream import NoiseStream
from sde.torchsde_api.brownian import Answer, BaseBrownian, BrownianInterval, random_entropy

__all__ = ["Brownian", "QueriedIncrements", "increments_between", "joined"]


_Pair = tuple[Tensor, Tensor]


class Brownian(Protocol):
    """What a solver needs of a Brownian motion, which need not derive from any class."""

    @property
    def shape(self) -> Sequence[int]:
        """``(batch, channels)``."""
        ...

    @property
    def levy_area_approximation(self) -> str:
        """What it knows beside the increments."""
        ...

    def __call__(self, ta: Tensor, tb: Tensor, /) -> Answer:
        """The increment over ``[ta, tb]``; with ``return_U`` and ``return_A`` the areas too."""
        ...


def _query(bm: Brownian, left: float, right: float, areas: Areas, like: Tensor) -> Increment:
    """The increment of a motion over an interval, with the areas that a scheme asks for."""
    ends: list[float] | list[Tensor] = [left, right]
    if not isinstance(bm, BaseBrownian):  # others may compute with them
        ends = [torch.tensor(end, dtype=like.dtype, device=like.device) for end in (left, right)]
    if Areas.LEVY in areas:
        wiener, levy = cast(_Pair, bm(*ends, return_A=True))  # type: ignore[call-arg]
        return Increment(wiener, levy=levy)
    if areas:
        wiener, integral = cast(_Pair, bm(*ends, return_U=True))  # type: ignore[call-arg]
        return Increment(wiener, integral / (right - left) - 0.5 * wiener)
    return Increment(bm(*ends))  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True, eq=False)
class QueriedIncrements:
    """The increments of a Brownian motion between instants.

    Attributes:
        bm: The motion.
        edges: Ends of the steps.
        like: A 0-d tensor of the type and on the device that other motions are asked in.
    """

    bm: Brownian
    edges: tuple[float, ...]
    like: Tensor

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(num_steps, n, channels)``."""
        return len(self.edges) - 1, self.bm.shape[0], self.bm.shape[1]

    def chunk(self, first: int, count: int, areas: Areas = Areas.NONE) -> Increment:
        """Increments of steps ``first .. first + count - 1``, with a leading axis of steps."""
        edges = self.edges[first : first + count + 1]
        bm = self.bm
        if isinstance(bm, BrownianInterval) and Areas.LEVY not in areas:  # all at once
            return Increment(*bm.pieces(edges, areas=bool(areas)))
        parts = [_query(bm, a, b, areas, self.like) for a, b in pairwise(edges)]
        wiener = torch.stack([part.wiener for part in parts])
        area, levy = _stack([part.space_time for part in parts]), _stack([part.levy for part in parts])
        return Increment(wiener, area, levy=levy)


def joined(first: Increment, second: Increment) -> Increment:
    """The increment of two consecutive steps of one length together."""
    levy = None
    if first.levy is not None and second.levy is not None:
        levy = chain(first.levy, first.wiener, second.levy, second.wiener)
    if first.space_time is None or second.space_time is None:
        return Increment(first.wiener + second.wiener, levy=levy)
    none = torch.zeros_like(first.wiener)
    whole = merge(Piece(first.wiener, first.space_time, none), Piece(second.wiener, second.space_time, none))
    return Increment(whole.wiener, whole.space_time, levy=levy)


def _stack(parts: list[Tensor | None]) -> Tensor | None:
    """Parts of all steps, or ``None`` where they have none."""
    present = [part for part in parts if part is not None]
    return torch.stack(present) if present else None


def increments_between(
    bm: Brownian | None, edges: Sequence[float], like: Tensor, channels: int
) -> Increments:
    """Increments over steps: of the given motion, or drawn on the grid of steps where there is none.

    Args:
        bm: The motion.
        edges: Ends of the steps.
        like: State, for batch size, type and device.
        channels: Number of processes.

    Returns:
        The increments.
    """
    if isinstance(bm, BaseBrownian):
        bm.expect(edges[1] - edges[0])
    if bm is not None:
        return QueriedIncrements(bm, tuple(edges), like.new_zeros(()))
    steps = torch.tensor(edges, dtype=torch.float64).diff()
    noise = NoiseStream(random_entropy(), 0, len(like))
    return WienerIncrements(noise, steps, channels, like.dtype, like.device)
