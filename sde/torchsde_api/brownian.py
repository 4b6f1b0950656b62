r"""Brownian motions that answer for any interval, in any order of queries.

A path on an interval of length :math:`T` is written in the basis that bisection with increments and
space-time areas leads to (:func:`sde.noise.bridge.halve` without its third moment):

.. math::

    W(s) = x W_T + 6 x (1 - x) H_T
         + \sum_{\text{cells} \ni s} \sqrt{h} \left(\psi_0(y) Z_0 + \psi_1(y) Z_1\right)

over the dyadic cells that hold :math:`s`, with their lengths :math:`h` and the position :math:`y` of
:math:`s` in them. A cell to the left of :math:`s` contributes neither to :math:`W(s)` nor to its integral, so
that one draw from the addresses of some thirty cells gives both, and nothing is stored.

References:
    Foster, Lyons & Oberhauser (2020), section 4. doi:10.1137/19M1261912
    Jelincic, Foster & Kidger (2024). arXiv:2405.06464
"""

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sde.noise.levy_area import LevyLaw, levy_area, num_pairs
from sde.noise.stream import NoiseStream, Purpose
from sde.torchsde_api.settings import LEVY_AREA_APPROXIMATIONS

__all__ = [
    "BaseBrownian",
    "BrownianInterval",
    "BrownianPath",
    "BrownianTree",
    "ReverseBrownian",
    "brownian_interval_like",
    "random_entropy",
]

_DEPTH = 30  # halvings: a cell is far below any step, and inside it the path is its conditional mean
_ROUNDING = 1e-6  # relative; float32 times miss the ends by less
_NORMALS_AT_ONCE = 1 << 20

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


class BrownianInterval(BaseBrownian):
    r"""A Brownian motion on ``[t0, t1]`` that depends on ``entropy``, ``size`` and ``dtype`` only.

    Neither the order nor the instants of queries change it. Instants that leave the interval by rounding are
    put on its ends; with a warning where they leave it by more.

    Args:
        t0: Start.
        t1: End, above ``t0``.
        size: Shape of the increments; the last axis holds the channels. Taken from ``W`` or ``H`` if missing.
        dtype: float32 or float64; torch's default if neither it nor ``W`` or ``H`` is given.
        device: Where the increments are computed.
        entropy: Seed, at least 0; ``None`` draws one.
        dt: Kept for compatibility: no hint is needed.
        tol: Resolution in time; 0 resolves ``2**-30`` of the interval.
        pool_size: Kept for compatibility.
        cache_size: Instants that are remembered, so that consecutive steps share their ends; ``None`` keeps
            all.
        halfway_tree: Kept for compatibility: the order of queries never matters.
        levy_area_approximation: ``"none"``, ``"space-time"``, ``"davie"`` or ``"foster"``. The Levy areas of
            the last two have the variance :math:`h^2/4` of the true ones; those of different intervals are
            independent given the increments.
        W: Increment over the whole interval, drawn if missing.
        H: Space-time area over the whole interval, likewise.

    Raises:
        ValueError: If the interval is empty, shapes, types or devices disagree, or a name is unknown.

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
        if levy_area_approximation not in LEVY_AREA_APPROXIMATIONS:
            raise ValueError(
                f"`levy_area_approximation` must be one of {LEVY_AREA_APPROXIMATIONS}; "
                f"got {levy_area_approximation!r}."
            )
        self._start, self._end, self.tol = float(t0), float(t1), float(tol)
        if not self._start < self._end:
            raise ValueError(f"`t0` must lie below `t1`; got {self._start} and {self._end}.")
        if self.tol < 0:
            raise ValueError(f"`tol` must be at least 0; got {self.tol}.")
        self._shape, self._dtype, self._device = _layout(size, dtype, device, {"W": W, "H": H})
        self.entropy = random_entropy() if entropy is None else int(entropy)
        self.dt = None if dt is None else float(dt)
        self.pool_size, self.cache_size, self.halfway_tree = pool_size, cache_size, halfway_tree
        self._levy = str(levy_area_approximation)
        self._noise = NoiseStream(self.entropy % 2**64, 0, 1).fork("Brownian interval")
        span = self._end - self._start
        self._depth = _DEPTH if self.tol == 0 else min(_DEPTH, max(1, math.ceil(math.log2(span / self.tol))))
        self._root = self._whole(W, H)
        self._instants: dict[float, Tensor] = {}

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
        wiener, integral = (part[0] for part in self.pieces((left, right)))
        levy = None
        if return_A and self._levy in (LEVY_AREA_APPROXIMATIONS.davie, LEVY_AREA_APPROXIMATIONS.foster):
            levy = self._levy_area(left, right, wiener, integral)
        area = None if self._levy == LEVY_AREA_APPROXIMATIONS.none else integral
        extra = (*((area,) if return_U else ()), *((levy,) if return_A else ()))
        return (wiener, *extra) if extra else wiener

    def __repr__(self) -> str:
        return (
            f"BrownianInterval(t0={self._start:g}, t1={self._end:g}, size={self.shape}, dtype={self.dtype}, "
            f"device={self.device!s}, entropy={self.entropy}, tol={self.tol:g}, "
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

    def pieces(self, edges: Sequence[float]) -> tuple[Tensor, Tensor]:
        """Increments and integrals U between consecutive instants, each ``(len(edges) - 1, *shape)``."""
        edges = [self._inside(edge) for edge in edges]
        points = self._values(edges)
        starts = points[:-1]
        steps = torch.tensor(np.diff(edges), dtype=torch.float64, device=self._device)[:, None]
        wiener = points[1:, 0] - starts[:, 0]
        integral = points[1:, 1] - starts[:, 1] - steps * starts[:, 0]
        shape = (len(edges) - 1, *self._shape)
        return wiener.to(self._dtype).view(shape), integral.to(self._dtype).view(shape)

    def _inside(self, instant: float) -> float:
        """The instant, or the end of the interval that it passes."""
        slack = _ROUNDING * (self._end - self._start + abs(self._start))
        if not self._start - slack <= instant <= self._end + slack:
            warnings.warn(
                f"Queries must lie in [{self._start:g}, {self._end:g}]; got {instant:g}, which is clipped.",
                stacklevel=3,
            )
        return min(max(instant, self._start), self._end)

    def _values(self, instants: Sequence[float]) -> Tensor:
        """The path and its integral at instants, float64, ``(len(instants), 2, elements)``."""
        missing = [t for t in dict.fromkeys(instants) if t not in self._instants]
        found = dict(zip(missing, self._expand(missing).unbind(), strict=True)) if missing else {}
        values = torch.stack([found[t] if t in found else self._instants[t] for t in instants])
        self._instants |= found
        if self.cache_size is not None:
            for old in list(self._instants)[: -self.cache_size or None]:
                del self._instants[old]
        return values

    def _expand(self, instants: Sequence[float]) -> Tensor:
        """The expansion at instants that are not remembered, ``(len(instants), 2, elements)``."""
        span = self._end - self._start
        position = np.clip((np.asarray(instants) - self._start) / span, 0.0, 1.0)
        bump, integral = position * (1 - position), position**2 / 2 - position**3 / 3
        root = np.stack((position, 6 * bump, span * position**2 / 2, 6 * span * integral), 1).reshape(
            -1, 2, 2
        )
        values = self._tensor(root) @ self._root
        count = max(1, _NORMALS_AT_ONCE // (2 * self._depth * max(1, math.prod(self._shape))))
        for first in range(0, len(position), count):
            rows = slice(first, first + count)
            values[rows] += self._cells(position[rows], span)
        return values

    def _cells(self, position: np.ndarray, span: float) -> Tensor:
        """What the cells that hold some positions add there, ``(len(position), 2, elements)``."""
        levels = np.arange(self._depth)
        scaled = position[:, None] * 2.0**levels
        cell = np.minimum(np.floor(scaled), 2.0**levels - 1)
        within = scaled - cell
        deep = int(((within > 0) & (within < 1)).any(0).sum())  # a dyadic instant ends the descent
        if not deep:
            return self._root.new_zeros(())
        weights = _basis(within[:, :deep], span / 2.0 ** levels[:deep])
        nodes = torch.from_numpy((2.0 ** levels[:deep] + cell[:, :deep]).astype(np.int64)).flatten()
        normals = self._normals(nodes).view(len(position), 2 * deep, -1)
        return self._tensor(weights) @ normals.double()

    def _normals(self, nodes: Tensor) -> Tensor:
        """Two normals of nodes for every element, ``(len(nodes), 2, elements)``."""
        elements = max(1, math.prod(self._shape))
        return self._noise.select_ids(nodes).normals(
            2, purpose=Purpose.TREE, channels=elements, dtype=self._dtype, device=self._device
        )

    def _whole(self, wiener: Tensor | None, area: Tensor | None) -> Tensor:
        """Increment and area of the whole interval, float64, ``(2, elements)``."""
        span = self._end - self._start
        scale = self._tensor(np.array([[span**0.5], [(span / 12) ** 0.5]]))
        root = scale * self._normals(torch.zeros(1, dtype=torch.int64))[0]
        for row, given in enumerate((wiener, area)):
            if given is not None:
                root = root.clone()
                root[row] = given.detach().flatten()
        return root

    def _tensor(self, values: np.ndarray) -> Tensor:
        """Coefficients on the device."""
        return torch.from_numpy(values).to(self._device)

    def _levy_area(self, left: float, right: float, wiener: Tensor, integral: Tensor) -> Tensor:
        """Levy area given increment and integral; its normals belong to the interval."""
        step = right - left
        if len(self._shape) < 2 or step == 0:
            channels = self._shape[-1:] if len(self._shape) > 1 else ()
            return wiener.new_zeros((*self._shape, *channels))
        pairs = num_pairs(self._shape[-1])
        if not pairs:
            return wiener.new_zeros((*self._shape, 1))
        samples = math.prod(self._shape[:-1])
        noise = self._noise.fork(f"{left.hex()} {right.hex()}")
        normals = NoiseStream(noise.seed, 0, samples).normals(
            1, purpose=Purpose.LEVY_AREA, channels=pairs, dtype=self._dtype, device=self._device
        )
        law = LevyLaw.DAVIE if self._levy == LEVY_AREA_APPROXIMATIONS.davie else LevyLaw.FOSTER
        length = torch.tensor(step, dtype=self._dtype, device=self._device)
        area = integral / step - 0.5 * wiener
        return levy_area(wiener, area, length, normals.view(*self._shape[:-1], pairs), law)


def _basis(y: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Values and integrals at ``y`` in [0, 1] of the two functions of a cell: ``(points, 2, 2 * levels)``."""
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


class _Derived(BaseBrownian):
    """A Brownian motion made of another."""

    def __init__(self, base: BaseBrownian) -> None:
        self._base = base

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._base!r})"

    @property
    def dtype(self) -> torch.dtype:
        """Type of the increments."""
        return self._base.dtype

    @property
    def device(self) -> torch.device:
        """Where the increments are computed."""
        return self._base.device

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the increments."""
        return self._base.shape

    @property
    def levy_area_approximation(self) -> str:
        """What is known beside the increments."""
        return self._base.levy_area_approximation


class ReverseBrownian(_Derived):
    """A Brownian motion seen in reversed time: its increment over ``[-tb, -ta]``, not negated.

    Args:
        base_brownian: The motion.
    """

    def __init__(self, base_brownian: BaseBrownian) -> None:
        super().__init__(base_brownian)
        self.base_brownian = base_brownian

    def __call__(
        self, ta: Scalar, tb: Scalar | None = None, return_U: bool = False, return_A: bool = False
    ) -> Answer:
        """The answer of the base for ``[-tb, -ta]``.

        Raises:
            ValueError: If ``tb`` is missing.
        """
        if tb is None:
            raise ValueError("`tb` must be given for a reversed Brownian motion; got None.")
        return self.base_brownian(-tb, -ta, return_U=return_U, return_A=return_A)


class _FromState(_Derived):
    """A Brownian motion that starts from a state, which queries at one instant add."""

    def __init__(self, base: BrownianInterval, w0: Tensor) -> None:
        super().__init__(base)
        self._w0 = w0

    def __call__(
        self, t: Scalar, tb: Scalar | None = None, return_U: bool = False, return_A: bool = False
    ) -> Answer:
        """The state at ``t``, or what :class:`BrownianInterval` answers for ``[t, tb]``."""
        answer = self._base(t, tb, return_U=return_U, return_A=return_A)
        return answer + self._w0 if tb is None and isinstance(answer, Tensor) else answer


class BrownianPath(_FromState):
    """A Brownian motion on ``[t0, t0 + 1]`` that remembers every value.

    Args:
        t0: Start.
        w0: State there.
        window_size: Kept for compatibility.
    """

    def __init__(self, t0: Scalar, w0: Tensor, window_size: int = 8) -> None:
        layout = {"size": w0.shape, "dtype": w0.dtype, "device": w0.device}
        super().__init__(BrownianInterval(t0, t0 + 1, cache_size=None, **layout), w0)


class BrownianTree(_FromState):
    """A Brownian motion on ``[t0, t1]``, resolved to a tolerance.

    Args:
        t0: Start.
        w0: State there.
        t1: End; ``t0 + 1`` if missing.
        w1: State there, drawn if missing.
        entropy: Seed; ``None`` draws one.
        tol: Resolution in time.
        pool_size: Kept for compatibility.
        cache_depth: Kept for compatibility.
        safety: Kept for compatibility.
    """

    def __init__(
        self,
        t0: Scalar,
        w0: Tensor,
        t1: Scalar | None = None,
        w1: Tensor | None = None,
        entropy: int | None = None,
        tol: float = 1e-6,
        pool_size: int = 24,
        cache_depth: int = 9,
        safety: float | None = None,
    ) -> None:
        layout = {"size": w0.shape, "dtype": w0.dtype, "device": w0.device}
        base = BrownianInterval(
            t0,
            t0 + 1 if t1 is None else t1,
            entropy=entropy,
            tol=tol,
            W=None if w1 is None else w1 - w0,
            **layout,
        )
        super().__init__(base, w0)


def brownian_interval_like(
    y: Tensor,
    t0: Scalar = 0.0,
    t1: Scalar = 1.0,
    size: Sequence[int] | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    **kwargs: object,
) -> BrownianInterval:
    """A :class:`BrownianInterval` of the shape, type and device of a tensor, where these are not given.

    Args:
        y: The tensor.
        t0: Start.
        t1: End.
        size: Shape of the increments.
        dtype: Type of the increments.
        device: Where they are computed.
        **kwargs: Of :class:`BrownianInterval`.

    Returns:
        The Brownian motion.
    """
    size = tuple(y.shape) if size is None else size
    dtype, device = dtype or y.dtype, y.device if device is None else device
    return BrownianInterval(t0, t1, size, dtype, device, **kwargs)  # type: ignore[arg-type]
