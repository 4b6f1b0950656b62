"""Brownian motions that are called with the ends of an interval."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from math import ceil, prod

import numpy as np
import torch
from torch import Tensor

from sde.noise.brownian import WienerIncrements
from sde.noise.increments import Areas, GivenIncrements
from sde.noise.levy_area import LevyLaw, levy_area, num_pairs
from sde.noise.stream import NoiseStream, Purpose
from sde.torchsde_api.expansion import CellPath
from sde.torchsde_api.settings import LEVY_AREA_APPROXIMATIONS

__all__ = ["Answer", "BaseBrownian", "BrownianInterval", "Scalar", "random_entropy"]

_ROUNDING = 1e-6  # relative; float32 times miss the ends by less

Scalar = float | Tensor
Answer = Tensor | tuple[Tensor | None, ...]


def random_entropy() -> int:
    """A seed for a Brownian motion that was given none, from NumPy's global generator.

    Scripts that fix their seeds do it by `numpy.random.seed`, so this is the one place that reads it.
    """
    return int(np.random.randint(0, 2**31 - 1))  # noqa: NPY002


class BaseBrownian(ABC):
    """What a solver reads of a Brownian motion."""

    @abstractmethod
    def __call__(
        self, ta: Scalar, tb: Scalar | None = None, return_U: bool = False, return_A: bool = False
    ) -> Answer:
        """The increment over ``[ta, tb]``, with the integral U and the Levy area A on request."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """Type of the increments."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the increments are computed."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Shape of the increments."""

    @property
    @abstractmethod
    def levy_area_approximation(self) -> str:
        """What is known beside the increments."""

    def size(self) -> tuple[int, ...]:
        """Shape of the increments."""
        return self.shape

    def expect(self, dt: float) -> None:  # noqa: B027 - motions of users need not know of it
        """Be told the step of a solve before it asks; most motions have no use for it."""


class BrownianInterval(BaseBrownian):
    r"""A Brownian motion on ``[t0, t1]``; see :mod:`sde.torchsde_api.expansion`.

    It depends on ``entropy``, ``dtype`` and ``dt`` only: neither the order nor the instants of queries change
    it, nor does the number of rows. Instants that leave the interval by rounding are put on its ends; with a
    warning where they leave it by more.

    Args:
        t0: Start.
        t1: End, above ``t0``.
        size: Shape of the increments; the last axis holds the channels. Taken from ``W`` or ``H`` if missing.
        dtype: float32 or float64; torch's default if neither it nor ``W`` or ``H`` is given.
        device: Where the increments are computed.
        entropy: Seed; ``None`` draws one.
        dt: Step of the solver: a query between ``t0 + k dt`` and ``t0 + (k + 1) dt`` then costs one draw in
            place of some sixty. If missing, the first solve by equal steps sets it, unless the motion was
            asked before. Without effect where ``W`` or ``H`` is given.
        tol: Resolution in time; 0 resolves ``2**-30`` of ``dt``, or of the interval without it.
        pool_size: Kept for compatibility.
        cache_size: Kept for compatibility: nothing is stored.
        halfway_tree: No solve sets ``dt``, so that nothing but ``entropy`` matters; ``tol`` must be positive.
        levy_area_approximation: ``"none"``, ``"space-time"``, ``"davie"`` or ``"foster"``. The Levy areas of
            the last two have the variance :math:`h^2/4` of the true ones; those of different intervals are
            independent given the increments.
        W: Increment over the whole interval, drawn if missing.
        H: Space-time area over the whole interval, likewise.

    Raises:
        ValueError: If the interval is empty, shapes, types or devices disagree, a name is unknown, or ``tol``
            and ``dt`` do not go with ``halfway_tree``.

    Example:
        >>> bm = BrownianInterval(0.0, 1.0, size=(4, 1), entropy=5)
        >>> torch.allclose(bm(0.0, 0.3) + bm(0.3, 1.0), bm(0.0, 1.0), atol=1e-6)
        True
    """

    def __init__(
        self,
        t0: Scalar = 0.0,
        t1: Scalar = 1.0,
        size: Sequence[int] | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        entropy: int | None = None,
        dt: Scalar | None = None,
        tol: Scalar = 0.0,
        pool_size: int = 8,
        cache_size: int | None = 45,
        halfway_tree: bool = False,
        levy_area_approximation: str = LEVY_AREA_APPROXIMATIONS.none,
        W: Tensor | None = None,
        H: Tensor | None = None,
    ) -> None:
        self.dt = None if dt is None else _scalar("dt", dt)
        self._start, self._end, self.tol = _scalar("t0", t0), _scalar("t1", t1), float(tol)
        self.pool_size, self.cache_size, self.halfway_tree = pool_size, cache_size, halfway_tree
        self._levy = str(levy_area_approximation)
        self._check()
        self._shape, self._dtype, self._device = _layout(size, dtype, device, {"W": W, "H": H})
        self.entropy = random_entropy() if entropy is None else int(entropy)
        channels = self._shape[-1] if len(self._shape) > 1 else 1
        self._noise = NoiseStream(self.entropy % 2**64, 0, prod(self._shape) // max(1, channels))
        self._ends, self._channels = (W, H), channels
        self._path: CellPath | None = None  # made when it is first asked for

    def __call__(
        self, ta: Scalar, tb: Scalar | None = None, return_U: bool = False, return_A: bool = False
    ) -> Answer:
        """The increment ``W(tb) - W(ta)``, or ``W(ta) - W(t0)``, with U and A on request.

        U is the integral of ``W(s) - W(ta)``, and ``None`` where only increments are approximated, as is A
        where no Levy area is.

        Raises:
            RuntimeError: If ``ta`` lies above ``tb``.
        """
        left, right = (self._start, float(ta)) if tb is None else (float(ta), float(tb))
        left, right = self._inside(left), self._inside(right)
        if left > right:
            raise RuntimeError(f"`ta` must not exceed `tb`; got {left:g} and {right:g}.")
        knows_area = self._levy != LEVY_AREA_APPROXIMATIONS.none
        pieces = self.pieces((left, right), areas=knows_area and (return_U or return_A))
        wiener, area = (None if part is None else part[0] for part in pieces)
        assert wiener is not None  # increments are always there
        extra: list[Tensor | None] = []
        if return_U:
            extra.append(None if area is None else (right - left) * (0.5 * wiener + area))
        if return_A:
            extra.append(None if area is None else self._levy_area(left, right, wiener, area))
        return (wiener, *extra) if extra else wiener

    def __repr__(self) -> str:
        return (
            f"BrownianInterval(t0={self._start:g}, t1={self._end:g}, size={self.shape}, dtype={self.dtype}, "
            f"device={self.device!s}, entropy={self.entropy}, dt={self.dt}, tol={self.tol:g}, "
            f"levy_area_approximation={self._levy!r})"
        )

    @property
    def dtype(self) -> torch.dtype:
        """Type of the increments."""
        return self._dtype

    @property
    def device(self) -> torch.device:
        """Where the increments are computed."""
        return self._device

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the increments."""
        return self._shape

    @property
    def levy_area_approximation(self) -> str:
        """What is known beside the increments."""
        return self._levy

    def pieces(self, edges: Sequence[float], *, areas: bool) -> tuple[Tensor, Tensor | None]:
        """Increments between consecutive instants, and space-time areas H if asked for.

        Args:
            edges: The instants, in order.
            areas: Whether areas are asked for.

        Returns:
            Each ``(len(edges) - 1, *shape)``.
        """
        if self._path is None:
            self._path = self._cells(self._channels, *self._ends)
        times = [self._inside(edge) - self._start for edge in edges]
        like = torch.empty((), dtype=self._dtype, device=self._device)
        wiener, area = self._path.increments(times, like, areas=areas)
        shape = (len(edges) - 1, *self._shape)
        return wiener.view(shape), None if area is None else area.view(shape)

    def expect(self, dt: float) -> None:
        """Take the step of a solve, unless there is one, the motion was asked before, or none may matter."""
        if self.dt is None and self._path is None and not self.halfway_tree:
            self.dt = dt

    def _check(self) -> None:
        """Raise if an argument is wrong by itself."""
        if self._levy not in LEVY_AREA_APPROXIMATIONS:
            raise ValueError(
                f"`levy_area_approximation` must be one of {LEVY_AREA_APPROXIMATIONS}; got {self._levy!r}."
            )
        if not self._start < self._end:
            raise ValueError(f"`t0` must lie below `t1`; got {self._start} and {self._end}.")
        if self.dt is not None and not self.dt > 0:
            raise ValueError(f"`dt` must be positive; got {self.dt}.")
        if not self.tol >= 0 or (self.halfway_tree and self.tol == 0):
            raise ValueError(f"`tol` must be at least 0, positive with `halfway_tree`; got {self.tol}.")
        if self.halfway_tree and self.dt is not None:
            raise ValueError(f"`dt` must be None with `halfway_tree`; got {self.dt}.")

    def _cells(self, channels: int, wiener: Tensor | None, area: Tensor | None) -> CellPath:
        """The path: in cells of one step where it is known and the ends are free."""
        span = self._end - self._start
        inside = NoiseStream(self._noise.seed, 0, 1).fork("inside cells")
        length = span if self.dt is None or wiener is not None or area is not None else min(self.dt, span)
        sizes = torch.full((ceil(span / length - _ROUNDING),), length, dtype=torch.float64)
        cells = WienerIncrements(self._noise, sizes, channels, self._dtype, self._device)
        if length < span:
            return CellPath(cells, length, inside, self.tol)
        drawn = cells.chunk(0, 1, Areas.SPACE_TIME)
        ends = [
            (own if given is None else given.detach().reshape(own.shape)).transpose(0, 1)
            for own, given in ((drawn.wiener, wiener), (drawn.space_time, area))
            if own is not None
        ]
        return CellPath(GivenIncrements(*ends), length, inside, self.tol)

    def _inside(self, instant: float) -> float:
        """The instant, or the end of the interval that it passes."""
        slack = _ROUNDING * (self._end - self._start + abs(self._start))
        if not self._start - slack <= instant <= self._end + slack:
            warnings.warn(
                f"Queries must lie in [{self._start:g}, {self._end:g}]; got {instant:g}, which is clipped.",
                stacklevel=3,
            )
        return min(max(instant, self._start), self._end)

    def _levy_area(self, left: float, right: float, wiener: Tensor, area: Tensor) -> Tensor | None:
        """Levy area given increment and area; its normals belong to the interval."""
        if self._levy == LEVY_AREA_APPROXIMATIONS.space_time:
            return None
        if len(self._shape) < 2:  # without an axis of channels every element is a batch of its own
            return torch.zeros_like(wiener)
        pairs, step = num_pairs(self._shape[-1]), right - left
        if not pairs or step == 0:
            return wiener.new_zeros((*self._shape, self._shape[-1]))
        normals = self._noise.fork(f"{left.hex()} {right.hex()}").normals(
            1, purpose=Purpose.LEVY_AREA, channels=pairs, dtype=self._dtype, device=self._device
        )
        law = LevyLaw.DAVIE if self._levy == LEVY_AREA_APPROXIMATIONS.davie else LevyLaw.FOSTER
        length = torch.tensor(step, dtype=self._dtype, device=self._device)
        return levy_area(wiener, area, length, normals.view(*self._shape[:-1], pairs), law)


def _scalar(name: str, value: Scalar) -> float:
    """A number, or the value of a 0-d tensor."""
    if (isinstance(value, Tensor) and value.dim() == 0) or isinstance(value, float | int | np.number):
        return float(value)
    raise ValueError(f"`{name}` must be a number or a 0-d tensor; got {value!r}.")


def _layout(
    size: Sequence[int] | None,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
    given: dict[str, Tensor | None],
) -> tuple[tuple[int, ...], torch.dtype, torch.device]:
    """Shape, type and device, which all that is given must agree on."""
    tensors = {name: value for name, value in given.items() if value is not None}
    for name, value in tensors.items():
        if not isinstance(value, Tensor) or not value.is_floating_point():
            raise ValueError(f"`{name}` must be a floating-point tensor; got {value!r}.")
    shapes = [] if size is None else [tuple(size)]
    shapes += [tuple(t.shape) for t in tensors.values()]
    if not shapes:
        raise ValueError("`size` must be given where neither `W` nor `H` is; got None.")
    dtypes = ([] if dtype is None else [dtype]) + [t.dtype for t in tensors.values()]
    devices = [] if device is None else [torch.device(device)]
    devices += [t.device for t in tensors.values()]
    for name, values in (("size", shapes), ("dtype", dtypes), ("device", devices)):
        if len(set(values)) > 1:
            raise ValueError(f"`{name}` must agree with that of `W` and `H`; got {values}.")
    return (
        shapes[0],
        dtypes[0] if dtypes else torch.get_default_dtype(),
        devices[0] if devices else torch.device("cpu"),
    )
