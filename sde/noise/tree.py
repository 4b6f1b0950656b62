"""Tree mode: Wiener paths that depend on seed and sample only, whatever the steps that look at them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import torch
from torch import Tensor

from sde.noise.backends import draw
from sde.noise.bridge import Piece, halve, merge, split
from sde.noise.increments import Areas, Increment
from sde.noise.levy_area import LevyLaw, levy_area, num_pairs
from sde.noise.philox import Kind
from sde.noise.stream import NoiseStream, Purpose
from sde.shapes import check_shapes

__all__ = ["BrownianTree", "TreeIncrements"]

Normals = tuple[Tensor, Tensor, Tensor]

_MAX_DEPTH = 31  # heap indices are 32-bit cells


@dataclass(frozen=True, slots=True, eq=False)
class BrownianTree:
    r"""A Wiener path on ``[start, stop]``, refined by halving: nested under every choice of steps.

    The interval is node 1 of a heap; node ``i`` has the halves ``2 i`` and ``2 i + 1``, and the three normals
    of its cell in the table of streams say how (W, H, K) of the interval splits into those of its halves.
    Coarse and fine solves, rejected and accepted steps, solvers that need areas and solvers that do not: all
    see the same path. A step of a dyadic grid costs one cell of the counter generator.

    Args:
        noise: The samples, of purpose :attr:`Purpose.TREE`.
        start: Left end, in the time unit of the equation.
        stop: Right end.
        depth: Halvings down to the resolution ``(stop - start) / 2**depth``, at most 31. Instants that are
            not dyadic are reached by one unequal split of a cell of this size.

    Raises:
        ValueError: If the interval is empty or not finite, or the depth out of range.

    Example:
        >>> tree = BrownianTree(NoiseStream(seed=3, start=0, stop=4), 0.0, 1.0)
        >>> coarse = tree.steps(torch.tensor([0.0, 0.5, 1.0]), channels=2, dtype=torch.float64).chunk(0, 2)
        >>> fine = tree.steps(torch.linspace(0, 1, 9), channels=2, dtype=torch.float64).chunk(0, 8)
        >>> torch.allclose(fine.wiener.unflatten(0, (2, 4)).sum(1), coarse.wiener)
        True

    References:
        Jelincic, Foster & Kidger (2024), Single-seed generation of Brownian paths and integrals for adaptive
        and high order SDE solvers. arXiv:2405.06464
    """

    noise: NoiseStream
    start: float = 0.0
    stop: float = 1.0
    depth: int = 24

    def __post_init__(self) -> None:
        if not -float("inf") < self.start < self.stop < float("inf"):
            raise ValueError(f"`start` must lie below `stop`, both finite; got {self.start} and {self.stop}.")
        if (
            isinstance(self.depth, bool)
            or not isinstance(self.depth, int)
            or not 1 <= self.depth <= _MAX_DEPTH
        ):
            raise ValueError(f"`depth` must be an integer in [1, {_MAX_DEPTH}]; got {self.depth!r}.")

    @property
    def span(self) -> float:
        """Length of the interval."""
        return self.stop - self.start

    def steps(
        self,
        instants: Tensor,
        channels: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        levy_law: LevyLaw = LevyLaw.FOSTER,
    ) -> "TreeIncrements":
        """The increments between consecutive instants.

        Args:
            instants: Increasing, within the interval, shape ``(num_steps + 1,)``.
            channels: Number of independent Wiener processes, at least 1.
            dtype: Type of the increments.
            device: Where they are computed.
            levy_law: How Levy areas between channels are drawn.

        Returns:
            Increments for :func:`sde.solve`.

        Raises:
            ValueError: If the instants do not increase or leave the interval.
        """
        return TreeIncrements(self, _positions(self, instants), channels, dtype, device, levy_law)

    def cells(
        self,
        level: int,
        first: int,
        count: int,
        channels: int,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> Piece:
        """Cells ``first .. first + count - 1`` of the ``2**level`` of a level, ``(count, n, channels)``."""
        if level == 0:
            return self._root(channels, dtype, device)
        parent, last = first // 2, (first + count - 1) // 2
        whole = self.cells(level - 1, parent, last - parent + 1, channels, dtype, device)
        normals = self.normals((1 << (level - 1)) + parent, last - parent + 1, channels, dtype, device)
        halves = halve(whole, self.span / 2 ** (level - 1), normals)
        offset = first - 2 * parent
        return Piece(
            *(
                torch.stack(pair, 1).flatten(0, 1)[offset : offset + count]
                for pair in zip(*halves, strict=True)
            )
        )

    def _root(self, channels: int, dtype: torch.dtype, device: torch.device | str) -> Piece:
        """The piece of the whole interval, from cell 0."""
        z = self.normals(0, 1, channels, dtype, device)
        return Piece(
            *(part * (self.span / parts) ** 0.5 for part, parts in zip(z, (1, 12, 720), strict=True))
        )

    def normals(
        self, node: int, count: int, channels: int, dtype: torch.dtype, device: torch.device | str
    ) -> Normals:
        """The three normals of nodes ``node .. node + count - 1``, each ``(count, n, channels)``."""
        if channels == 0:
            return _nothing((count, len(self.noise), 0), dtype, device)
        address = self.noise.address(Purpose.TREE, 4 * node, 4 * count, channels)
        lanes = draw(Kind.NORMALS, address, dtype, device).unflatten(0, (count, 4))
        return lanes[:, 0], lanes[:, 1], lanes[:, 2]

    def normals_at(
        self,
        nodes: Tensor,
        channels: int,
        dtype: torch.dtype,
        device: torch.device | str,
        *,
        purpose: Purpose = Purpose.TREE,
    ) -> Normals:
        """The three normals of a node of each sample's own, ``nodes`` of shape ``(n,)``: each ``(n, c)``."""
        if channels == 0:
            return _nothing((len(nodes), 0), dtype, device)
        address = replace(self.noise.address(purpose, 0, 4, channels), cells=nodes)
        lanes = draw(Kind.NORMALS, address, dtype, device)
        return lanes[0], lanes[1], lanes[2]


def _nothing(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str) -> Normals:
    """The normals of an equation without noise."""
    none = torch.empty(shape, dtype=dtype, device=device)
    return none, none, none


@dataclass(frozen=True, slots=True, eq=False)
class TreeIncrements:
    """The increments of a :class:`BrownianTree` over a grid of steps; made by :meth:`BrownianTree.steps`.

    Attributes:
        tree: The paths.
        positions: Ends of the steps as shares of the interval, in [0, 1], float64.
        channels: Number of Wiener processes.
        dtype: Type of the increments.
        device: Where they are computed.
        levy_law: How Levy areas are drawn.
    """

    tree: BrownianTree
    positions: tuple[float, ...]
    channels: int
    dtype: torch.dtype
    device: torch.device | str
    levy_law: LevyLaw
    level: int | None = field(init=False)  # of the cells that are the steps, where the grid is dyadic

    def __post_init__(self) -> None:
        self.tree.noise.address(Purpose.TREE, 0, 4, self.channels)
        if self.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"`dtype` must be torch.float32 or torch.float64; got {self.dtype}.")
        object.__setattr__(self, "level", _dyadic_level(self.positions, self.tree.depth))

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(num_steps, n, channels)``."""
        return len(self.positions) - 1, len(self.tree.noise), self.channels

    def chunk(self, first: int, count: int, areas: Areas = Areas.NONE) -> Increment:
        """Increments of steps ``first .. first + count - 1``, each ``(count, n, channels)``."""
        wiener, area, curve = self._pieces(first, count)
        levy = self._levy(first, wiener, area) if Areas.LEVY in areas else None
        return Increment(
            wiener, area if areas else None, curve if Areas.SPACE_TIME_TIME in areas else None, levy
        )

    def _pieces(self, first: int, count: int) -> Piece:
        """Pieces of the steps of a chunk."""
        where = (self.channels, self.dtype, self.device)
        if self.level is not None:
            start = round(self.positions[0] * 2**self.level) + first
            return self.tree.cells(self.level, start, count, *where)
        ends = self.positions[first : first + count + 1]
        root = Piece(*(part[0] for part in self.tree.cells(0, 0, 1, *where)))
        pieces = _Cutter(self.tree, where).cut(1, 0.0, 1.0, [p for p in ends if 0 < p < 1], root)
        pieces = pieces[1:] if ends[0] > 0 else pieces
        pieces = pieces[:-1] if ends[-1] < 1 else pieces
        return Piece(*(torch.stack(parts) for parts in zip(*pieces, strict=True)))

    def _levy(self, first: int, wiener: Tensor, area: Tensor) -> Tensor:
        """Levy areas given W and H; their own normals belong to the step, not to the tree."""
        pairs = num_pairs(self.channels)
        if not pairs:
            return wiener.new_zeros((*wiener.shape, 1))
        edges = torch.tensor(self.positions[first : first + len(wiener) + 1], dtype=torch.float64)
        steps = (edges.diff() * self.tree.span).to(wiener)[:, None, None]
        element = (
            first
            if self.level is None
            else (1 << self.level) + round(self.positions[0] * 2**self.level) + first
        )
        address = self.tree.noise.address(Purpose.LEVY_AREA, element, len(wiener), pairs)
        normals = draw(Kind.NORMALS, address, self.dtype, self.device)
        return levy_area(wiener, area, steps, normals, self.levy_law)


@dataclass(frozen=True, slots=True, eq=False)
class _Cutter:
    """The cutting of a path at instants that need not be dyadic."""

    tree: BrownianTree
    where: tuple[int, torch.dtype, torch.device | str]

    def cut(self, node: int, left: float, right: float, inside: Sequence[float], whole: Piece) -> list[Piece]:
        """The pieces of a node's interval ``[left, right]`` between its ends and the cuts inside it."""
        if not inside:
            return [whole]
        one, two, three = (part[0] for part in self.tree.normals(node, 1, *self.where))
        if node >> self.tree.depth:  # a cell at the resolution
            return self._cut_cell(left, right, inside, whole, (one, two, three))
        middle = 0.5 * (left + right)
        first, second = halve(whole, self.tree.span * (right - left), (one, two, three))
        before, after = [p for p in inside if p < middle], [p for p in inside if p > middle]
        lefts = self.cut(2 * node, left, middle, before, first)
        rights = self.cut(2 * node + 1, middle, right, after, second)
        if len(before) + len(after) < len(inside):  # the middle is a cut
            return lefts + rights
        begin, end = before[-1] if before else left, after[0] if after else right
        return [*lefts[:-1], merge(lefts[-1], rights[0], (middle - begin) / (end - begin)), *rights[1:]]

    def _cut_cell(
        self,
        left: float,
        right: float,
        inside: Sequence[float],
        whole: Piece,
        normals: Normals,
    ) -> list[Piece]:
        """One unequal split at the first cut; further cuts of the same cell divide the rest evenly."""
        length = self.tree.span * (right - left)
        first, rest = split(whole, length, (inside[0] - left) / (right - left), normals)
        ends = torch.tensor([*inside, right], dtype=torch.float64)
        shares = (ends.diff() / (right - inside[0])).tolist()
        return [
            first,
            *(
                Piece(p * rest.wiener, p**0.5 * rest.space_time, p**0.5 * rest.space_time_time)
                for p in shares
            ),
        ]


def _positions(tree: BrownianTree, instants: Tensor) -> tuple[float, ...]:
    """Instants as increasing shares of the interval; ends that miss it by rounding are put on it."""
    check_shapes(instants=(instants, "num_instants"))
    shares = ((instants.detach().double() - tree.start) / tree.span).tolist()
    slack = 1e-6
    if len(shares) < 2 or not all(a < b for a, b in pairwise(shares)):
        raise ValueError(f"`instants` must increase and be at least 2; got {instants.tolist()[:5]}.")
    if shares[0] < -slack or shares[-1] > 1 + slack:
        raise ValueError(
            f"`instants` must lie in [{tree.start:g}, {tree.stop:g}], the interval of the tree; "
            f"got {float(instants[0]):g} to {float(instants[-1]):g}."
        )
    return (max(0.0, shares[0]), *shares[1:-1], min(1.0, shares[-1]))


def _dyadic_level(positions: Sequence[float], depth: int) -> int | None:
    """The level whose cells are the steps, to the rounding of float32 instants, or None."""
    level = round(-math.log2(positions[1] - positions[0]))
    if not 0 <= level <= depth:
        return None
    first = round(positions[0] * 2**level)
    tolerance = 1e-3 / 2**level
    aligned = all(abs(p - (first + k) / 2**level) < tolerance for k, p in enumerate(positions))
    return level if aligned else None
