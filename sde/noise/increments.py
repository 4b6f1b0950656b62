"""What the driving noise did during a step, and where a solve gets it from."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, Flag, auto
from itertools import repeat
from typing import NamedTuple, Protocol

from torch import Tensor

from sde.noise.bridge import Piece, merge
from sde.noise.levy_area import chain
from sde.shapes import check_shapes

__all__ = [
    "Areas",
    "CoarseIncrements",
    "CorrelatedIncrements",
    "GivenIncrements",
    "Increment",
    "Increments",
    "Law",
]


class Areas(Flag):
    """What a scheme needs to know of the path beside its increments."""

    NONE = 0
    SPACE_TIME = auto()  #: H, shape as the increment
    SPACE_TIME_TIME = auto()  #: K, shape as the increment; H comes with it
    LEVY = auto()  #: A between channels, shape ``(n, channels, channels)``; H comes with it


class Law(Enum):
    """The law of the increments that a scheme is made for."""

    NORMAL = "normal"  #: those of a Wiener path
    THREE_POINT = "three-point"  #: right in law to the order that weak schemes need


class Increment(NamedTuple):
    """What the driving noise did during one step, or, with a leading axis of steps, during several.

    The areas are ``None`` where the scheme did not ask for them.
    """

    wiener: Tensor  #: increment W of the Wiener processes, shape ``(n, channels)``
    space_time: Tensor | None = None  #: space-time Levy area H, shape ``(n, channels)``
    space_time_time: Tensor | None = None  #: space-time-time Levy area K, shape ``(n, channels)``
    levy: Tensor | None = None  #: Levy area A, antisymmetric, shape ``(n, channels, channels)``
    signs: Tensor | None = None  #: two-point variables of three-point increments, as the Levy area

    def steps(self) -> Iterator["Increment"]:
        """The increments of single steps, of one that holds several."""
        parts = [repeat(None) if part is None else part.unbind() for part in self]
        return map(Increment, *parts)


class Increments(Protocol):
    """The increments that drive a solve: of one Wiener path per sample, step by step.

    Attributes:
        shape: ``(num_steps, n, channels)``.
    """

    @property
    def shape(self) -> tuple[int, int, int]:
        """Steps, samples and channels."""
        ...

    def chunk(self, first: int, count: int, areas: Areas = Areas.NONE) -> Increment:
        """Increments of steps ``first .. first + count - 1``, with a leading axis of steps."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class CoarseIncrements:
    """``factor`` consecutive steps at a time, joined: the same paths seen on a coarser grid of equal steps.

    Args:
        fine: Increments on the fine grid; the steps that are joined must have equal lengths.
        factor: Fine steps per coarse step, a power of 2 where areas are asked for; it must divide their
            number.

    Raises:
        ValueError: If ``factor`` is below 1 or does not divide the number of fine steps.
    """

    fine: Increments
    factor: int

    def __post_init__(self) -> None:
        num_steps = self.fine.shape[0]
        if self.factor < 1 or num_steps % self.factor:
            raise ValueError(f"`factor` must divide the number of steps, {num_steps}; got {self.factor}.")

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(num_steps, n, channels)`` of the coarse grid."""
        num_steps, samples, channels = self.fine.shape
        return num_steps // self.factor, samples, channels

    def chunk(self, first: int, count: int, areas: Areas = Areas.NONE) -> Increment:
        """Increments of coarse steps ``first .. first + count - 1``.

        Raises:
            ValueError: If areas are asked for and ``factor`` is no power of 2.
        """
        if areas is Areas.NONE:
            fine = self.fine.chunk(first * self.factor, count * self.factor)
            return Increment(fine.wiener.unflatten(0, (-1, self.factor)).sum(1))
        if self.factor & (self.factor - 1):
            raise ValueError(f"`factor` must be a power of 2 for areas; got {self.factor}.")
        # K of the whole needs K of the parts, and the Levy area their increments.
        joined = self.fine.chunk(first * self.factor, count * self.factor, areas)
        for _ in range(self.factor.bit_length() - 1):
            joined = _join_pairs(joined)
        return joined


def _join_pairs(fine: Increment) -> Increment:
    """Join steps 0 and 1, 2 and 3, and so on."""
    whole, wiener, levy = merge(_piece(fine, 0), _piece(fine, 1)), fine.wiener, fine.levy
    return Increment(
        whole.wiener,
        whole.space_time,
        None if fine.space_time_time is None else whole.space_time_time,
        None if levy is None else chain(levy[0::2], wiener[0::2], levy[1::2], wiener[1::2]),
    )


def _piece(fine: Increment, parity: int) -> Piece:
    """Every other step; a K that is missing is zero, since it reaches neither W nor H of the whole."""
    wiener, area, curve = fine[:3]
    none = wiener.new_zeros(())
    return Piece(
        wiener[parity::2],
        none if area is None else area[parity::2],
        none if curve is None else curve[parity::2],
    )


@dataclass(frozen=True, slots=True, eq=False)
class GivenIncrements:
    """Increments that the caller supplies.

    Args:
        wiener: Increments W, shape ``(n, num_steps, channels)``.
        space_time: H, of the same shape, for schemes that need it.
        space_time_time: K, of the same shape.
        levy: A, shape ``(n, num_steps, channels, channels)``.
        signs: Two-point variables, of the same shape, for schemes driven by three-point increments.

    Raises:
        ValueError: If a shape is wrong or a value not finite; on use, if a scheme needs an area that was not
            given.
    """

    wiener: Tensor
    space_time: Tensor | None = None
    space_time_time: Tensor | None = None
    levy: Tensor | None = None
    signs: Tensor | None = None

    def __post_init__(self) -> None:
        shape = "n num_steps channels"
        names = (*_AREA_NAMES.values(), "signs")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        matrices = ("levy", "signs")
        specs = {
            name: (value, f"{shape} channels" if name in matrices else shape) for name, value in given.items()
        }
        check_shapes(wiener=(self.wiener, shape), **specs)
        for name, value in (("wiener", self.wiener), *given.items()):
            if not bool(value.isfinite().all()):
                raise ValueError(f"`{name}` must be finite; got NaN or infinite values.")

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(num_steps, n, channels)``."""
        samples, num_steps, channels = self.wiener.shape
        return num_steps, samples, channels

    def chunk(self, first: int, count: int, areas: Areas = Areas.NONE) -> Increment:
        """Increments of steps ``first .. first + count - 1``."""
        parts = {"wiener": self.wiener} | ({} if self.signs is None else {"signs": self.signs})
        for area, name in _AREA_NAMES.items():
            if area in areas or (area is Areas.SPACE_TIME and areas):
                if getattr(self, name) is None:
                    raise ValueError(f"`{name}` must be given with the increments for this solver; got None.")
                parts[name] = getattr(self, name)
        return Increment(
            **{name: part[:, first : first + count].transpose(0, 1) for name, part in parts.items()}
        )


_AREA_NAMES = {
    Areas.SPACE_TIME: "space_time",
    Areas.SPACE_TIME_TIME: "space_time_time",
    Areas.LEVY: "levy",
}


@dataclass(frozen=True, slots=True, eq=False)
class CorrelatedIncrements:
    r"""Correlated Wiener processes: ``W = L V`` with independent ``V``.

    Args:
        independent: Increments of ``k`` independent processes.
        factor: ``L``, shape ``(channels, k)``; the covariance per unit time is ``L L^T``. A Cholesky factor
            of a correlation matrix, or a tall matrix for noise of low rank.

    Raises:
        ValueError: If the sizes disagree.

    Example:
        >>> import torch
        >>> from sde.noise import NoiseStream, WienerIncrements
        >>> base = WienerIncrements(NoiseStream(0, 0, 5), torch.full((8,), 0.125), channels=2)
        >>> factor = torch.tensor([[1.0, 0.0], [-0.6, 0.8]])
        >>> CorrelatedIncrements(base, factor).chunk(0, 8).wiener.shape
        torch.Size([8, 5, 2])
    """

    independent: Increments
    factor: Tensor

    def __post_init__(self) -> None:
        check_shapes(factor=(self.factor, f"channels {self.independent.shape[2]}"))

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(num_steps, n, channels)``."""
        num_steps, samples, _ = self.independent.shape
        return num_steps, samples, len(self.factor)

    def chunk(self, first: int, count: int, areas: Areas = Areas.NONE) -> Increment:
        """Increments of steps ``first .. first + count - 1``; every area is mapped with them."""
        wiener, area, curve, levy, _ = self.independent.chunk(first, count, areas)
        factor = self.factor.to(wiener)
        return Increment(
            wiener @ factor.T,
            None if area is None else area @ factor.T,
            None if curve is None else curve @ factor.T,
            None if levy is None else factor @ levy @ factor.T,
        )
