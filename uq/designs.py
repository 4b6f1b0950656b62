"""Designs: points of the unit cube addressed by index, so that any part of a design can be asked alone."""

import inspect
import threading
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from scipy.stats import qmc
from torch import Tensor

from sde.noise import NoiseStream, Purpose

__all__ = ["Design", "Halton", "Iid", "LatinHypercube", "Replicated", "Sobol", "replicate"]

_SOBOL_BITS = 30  # The fast path of scipy's generator; its fast_forward fails above 32 bits.
_ENGINE_LOCK = threading.Lock()


@runtime_checkable
class Design(Protocol):
    r"""Points of :math:`(0,1)^d` addressed by index.

    ``points(a, c)`` is ``points(a, b)`` followed by ``points(b, c)``, bit for bit: a design is a pure
    function of its fields, and no coordinate is exactly 0 or 1.

    Attributes:
        dimension: Number of coordinates ``d``.
        independent: Whether the points are independent, so that the spread of the outputs gives the error of
            their mean. Where they are not, errors come from replications (:func:`replicate`).
    """

    @property
    def dimension(self) -> int:
        """Number of coordinates."""
        ...

    @property
    def independent(self) -> bool:
        """Whether the points are independent."""
        ...

    def points(self, start: int, stop: int) -> Tensor:
        """Points ``start .. stop - 1``, shape ``(stop - start, d)``, float64."""
        ...


@dataclass(frozen=True, slots=True)
class Iid:
    """Independent uniform points.

    Attributes:
        dimension: Number of coordinates, at least 1.
        seed: Integer in ``[0, 2**64)``.

    Example:
        >>> design = Iid(dimension=3, seed=0)
        >>> torch.equal(design.points(0, 100)[90:], design.points(90, 100))
        True
    """

    dimension: int
    seed: int

    def __post_init__(self) -> None:
        """Check the fields."""
        _check_fields(self.dimension, self.seed)

    @property
    def independent(self) -> bool:
        """Whether the points are independent: they are."""
        return True

    def points(self, start: int, stop: int) -> Tensor:
        """Points ``start .. stop - 1``, shape ``(stop - start, d)``, float64."""
        _check_range(start, stop)
        noise = NoiseStream(self.seed, start, stop)
        return noise.uniforms(self.dimension, purpose=Purpose.INPUTS, dtype=torch.float64)


@dataclass(frozen=True, slots=True)
class LatinHypercube:
    """Latin hypercube of a fixed size: each of the ``size`` slices of each axis holds one point.

    The variance of a mean is at most ``n / (n - 1)`` times that of independent points, and the additive part
    of the model is integrated far better. The points are exchangeable but not independent.

    Attributes:
        dimension: Number of coordinates, at least 1.
        size: Number of points, at least 1.
        seed: Integer in ``[0, 2**64)``.

    Example:
        >>> points = LatinHypercube(dimension=2, size=5, seed=1).points(0, 5)
        >>> (points * 5).floor().sort(dim=0).values[:, 0]
        tensor([0., 1., 2., 3., 4.], dtype=torch.float64)

    References:
        McKay, Beckman & Conover (1979). doi:10.1080/00401706.1979.10489755
        Owen (1997), for the bound. doi:10.1137/S0036142994277468
    """

    dimension: int
    size: int
    seed: int

    def __post_init__(self) -> None:
        """Check the fields."""
        _check_fields(self.dimension, self.seed)
        if self.size < 1:
            raise ValueError(f"`size` must be at least 1; got {self.size}.")

    @property
    def independent(self) -> bool:
        """Whether the points are independent: they are not."""
        return False

    def points(self, start: int, stop: int) -> Tensor:
        """Points ``start .. stop - 1`` of at most ``size``, shape ``(stop - start, d)``, float64."""
        _check_range(start, stop)
        if stop > self.size:
            raise ValueError(
                f"`stop` must be at most {self.size}, the size of the Latin hypercube; got {stop}."
            )
        within = Iid(self.dimension, self.seed).points(start, stop)
        slices = _latin_slices(self.dimension, self.size, self.seed)[start:stop]
        # A slice number plus a place in the slice can round up to `size`.
        return ((slices + within) / self.size).clamp(max=1 - 2**-53)


@dataclass(frozen=True, slots=True)
class Sobol:
    """Sobol' sequence with a random linear scramble and digital shift.

    The first ``2**k`` points are a digital net: keep numbers of points that are powers of two. Errors of
    means of smooth models fall nearly as ``1 / n``, and each point is uniform, so means are unbiased. At most
    ``2**30`` points.

    Attributes:
        dimension: Number of coordinates, at most 21201.
        seed: Integer in ``[0, 2**64)``; it fixes the scramble.

    Example:
        >>> points = Sobol(dimension=2, seed=1).points(0, 8)
        >>> (points * 8).floor().sort(dim=0).values[:, 1]
        tensor([0., 1., 2., 3., 4., 5., 6., 7.], dtype=torch.float64)

    References:
        Sobol' (1967). doi:10.1016/0041-5553(67)90144-9
        Matousek (1998), for the scramble. doi:10.1006/jcom.1998.0489
    """

    dimension: int
    seed: int

    def __post_init__(self) -> None:
        """Check the fields."""
        _check_fields(self.dimension, self.seed)
        if self.dimension > qmc.Sobol.MAXDIM:
            raise ValueError(f"`dimension` must be at most {qmc.Sobol.MAXDIM}; got {self.dimension}.")

    @property
    def independent(self) -> bool:
        """Whether the points are independent: they are not."""
        return False

    def points(self, start: int, stop: int) -> Tensor:
        """Points ``start .. stop - 1``, shape ``(stop - start, d)``, float64."""
        _check_range(start, stop)
        if stop > 2**_SOBOL_BITS:
            raise ValueError(f"`stop` must be at most 2**{_SOBOL_BITS}; got {stop}.")
        if stop == start:
            return torch.empty(0, self.dimension, dtype=torch.float64)
        with _ENGINE_LOCK:
            engine = _engine(qmc.Sobol, self.dimension, self.seed)
            lattice = _advance(engine, start, stop)
        # Coordinates are multiples of 2**-30 and may be 0: take the middle of their cells.
        return torch.from_numpy(lattice + 0.5**_SOBOL_BITS / 2)


@dataclass(frozen=True, slots=True)
class Halton:
    """Halton sequence with randomly permuted digits.

    Any number of points is as good as another. In more than about ten dimensions prefer :class:`Sobol`.

    Attributes:
        dimension: Number of coordinates, at least 1.
        seed: Integer in ``[0, 2**64)``; it fixes the permutations.

    Example:
        >>> Halton(dimension=2, seed=1).points(1000, 1010).shape
        torch.Size([10, 2])

    References:
        Halton (1960). doi:10.1007/BF01386213
        Owen (2017), for the permutations. arXiv:1706.02808
    """

    dimension: int
    seed: int

    def __post_init__(self) -> None:
        """Check the fields."""
        _check_fields(self.dimension, self.seed)

    @property
    def independent(self) -> bool:
        """Whether the points are independent: they are not."""
        return False

    def points(self, start: int, stop: int) -> Tensor:
        """Points ``start .. stop - 1``, shape ``(stop - start, d)``, float64."""
        _check_range(start, stop)
        if stop == start:
            return torch.empty(0, self.dimension, dtype=torch.float64)
        with _ENGINE_LOCK:
            engine = _engine(qmc.Halton, self.dimension, self.seed)
            # Each point is computed from its number alone: no need to generate those before it.
            engine.num_generated = start
            points = engine.random(stop - start)
        return torch.from_numpy(np.clip(points, 2.0**-53, 1 - 2.0**-53))


@dataclass(frozen=True, slots=True)
class Replicated:
    """Independent designs dealt in turn: point ``i`` is point ``i // R`` of design ``i % R``.

    The means over the ``R`` designs are independent, and their spread gives the error of the overall mean
    (randomised quasi-Monte Carlo). Made by :func:`replicate`.

    Attributes:
        designs: At least 2 designs of one dimension.
    """

    designs: tuple[Design, ...]

    def __post_init__(self) -> None:
        """Check the fields."""
        if len(self.designs) < 2:
            raise ValueError(f"`designs` must hold at least 2 designs; got {len(self.designs)}.")
        if len({design.dimension for design in self.designs}) > 1:
            raise ValueError(
                "`designs` must have one dimension; got " + str([d.dimension for d in self.designs])
            )

    @property
    def independent(self) -> bool:
        """Whether the points are independent: they are not."""
        return False

    @property
    def dimension(self) -> int:
        """Number of coordinates."""
        return self.designs[0].dimension

    def points(self, start: int, stop: int) -> Tensor:
        """Points ``start .. stop - 1``, shape ``(stop - start, d)``, float64."""
        _check_range(start, stop)
        points = torch.empty(stop - start, self.dimension, dtype=torch.float64)
        count = len(self.designs)
        for r, design in enumerate(self.designs):
            first, last = -((r - start) // count), -((r - stop) // count)
            points[(r - start) % count :: count] = design.points(first, last)
        return points


def replicate(design: Design, count: int) -> Replicated:
    """Independent randomisations of a design, dealt in turn.

    Args:
        design: A design with a ``seed``; the seeds of the replications are derived from it.
        count: Number of replications, at least 2; 8 to 32 is usual.

    Returns:
        The replicated design.

    Raises:
        ValueError: If ``count`` is below 2.
        TypeError: If the design has no seed to derive others from.

    Example:
        >>> design = replicate(Sobol(dimension=2, seed=0), 4)
        >>> design.points(0, 16).shape
        torch.Size([16, 2])

    References:
        L'Ecuyer & Lemieux (2002), section 4. doi:10.1007/0-306-48102-2_20
    """
    if count < 2:
        raise ValueError(f"`count` must be at least 2; got {count}.")
    if not isinstance(design, Iid | LatinHypercube | Sobol | Halton):
        raise TypeError(
            f"`design` must be Iid, LatinHypercube, Sobol or Halton; got {type(design).__name__}."
        )
    base = NoiseStream(design.seed, 0, 0)
    return Replicated(tuple(replace(design, seed=base.fork(f"replication {r}").seed) for r in range(count)))


def _check_fields(dimension: int, seed: int) -> None:
    """Check what all designs share."""
    if isinstance(dimension, bool) or not isinstance(dimension, int):
        raise TypeError(f"`dimension` must be an integer; got {type(dimension).__name__}.")
    if dimension < 1:
        raise ValueError(f"`dimension` must be at least 1; got {dimension}.")
    NoiseStream(seed, 0, 0)


def _check_range(start: int, stop: int) -> None:
    """Check a range of indices."""
    if not 0 <= start <= stop:
        raise ValueError(f"`start` and `stop` must satisfy 0 <= start <= stop; got {start} and {stop}.")


@lru_cache(maxsize=4)
def _latin_slices(dimension: int, size: int, seed: int) -> Tensor:
    """A random permutation of ``0 .. size - 1`` per column: the order of addressed uniforms."""
    noise = NoiseStream(seed, 0, size).fork("latin hypercube slices")
    order = noise.uniforms(dimension, purpose=Purpose.INPUTS, dtype=torch.float64)
    return order.argsort(dim=0, stable=True)


@lru_cache(maxsize=64)
def _engine(kind: type[qmc.QMCEngine], dimension: int, seed: int) -> qmc.QMCEngine:
    """A scrambled generator: setting one up costs more than a batch of points."""
    generator = np.random.default_rng(seed)
    # scipy renamed the argument in 1.15.
    name = "rng" if "rng" in inspect.signature(kind).parameters else "seed"
    settings: dict[str, Any] = {name: generator}
    return kind(dimension, **settings)


def _advance(engine: qmc.QMCEngine, start: int, stop: int) -> np.ndarray:
    """Points ``start .. stop - 1`` of a sequence, going back to its beginning only where needed."""
    if engine.num_generated > start:
        engine.reset()
    parts = []
    if engine.num_generated == 0:
        # The first point alone: scipy warns about first blocks whose size is not a power of two.
        first = engine.random(1)
        parts = [first] if start == 0 else []
    ahead = max(start, 1) - engine.num_generated
    if ahead > 0:
        engine.fast_forward(ahead)
    if stop > engine.num_generated:
        parts.append(engine.random(stop - engine.num_generated))
    return np.concatenate(parts)
