"""Jump times and marks of Poisson processes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sde.noise.stream import NoiseStream, Purpose

__all__ = ["CompoundPoisson", "Jumps"]

_FIRST_DRAW, _MOST = 8, 1 << 24  # jumps asked for at first, and at most


class Jumps(NamedTuple):
    """The jumps of every sample in an interval, in order of time."""

    times: Tensor  #: float64, shape ``(n, jumps)``; infinite where a sample has fewer
    marks: Tensor  #: shape ``(n, jumps, ...)``; those of infinite times mean nothing

    @property
    def counts(self) -> Tensor:
        """Number of jumps of each sample, shape ``(n,)``."""
        return self.times.isfinite().sum(1)


def _identity(normals: Tensor) -> Tensor:
    """A mark that is a normal, without its axis."""
    return normals[..., 0]


@dataclass(frozen=True, slots=True)
class CompoundPoisson:
    r"""A Poisson process whose jumps carry independent marks.

    The gaps between jumps are :math:`-\log(U_j) / \lambda`, with element ``j`` of the sample's uniforms, and
    the mark of jump ``j`` is a function of element ``j`` of its normals: times and marks depend on seed and
    sample only, whatever the grid, the batch or the end of the interval.

    Args:
        rate: Expected number of jumps in a unit of time, :math:`\lambda`; positive.
        mark: Marks as a function of standard normals ``(n, jumps, mark_dim)``, shape ``(n, jumps, ...)``; the
            normal itself by default. Uniforms are ``torch.special.ndtr`` of the normals.
        mark_dim: Normals for each mark.

    Raises:
        ValueError: If the rate is not positive and finite, or ``mark_dim`` below 1.
        TypeError: If ``mark`` cannot be called.

    Example:
        >>> process = CompoundPoisson(rate=3.0, mark=lambda z: -0.1 + 0.15 * z[..., 0])
        >>> jumps = process.draw(NoiseStream(seed=0, start=0, stop=1000), 0.0, 2.0)
        >>> jumps.times.shape == jumps.marks.shape
        True

    References:
        Cont & Tankov (2004), Financial Modelling with Jump Processes, sections 2.5 and 3.2.
        doi:10.1201/9780203485217
    """

    rate: float
    mark: Callable[[Tensor], Tensor] = _identity
    mark_dim: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.rate < float("inf"):
            raise ValueError(f"`rate` must be positive and finite; got {self.rate}.")
        if not callable(self.mark):
            raise TypeError(f"`mark` must be callable; got {type(self.mark).__name__}.")
        if isinstance(self.mark_dim, bool) or not isinstance(self.mark_dim, int) or self.mark_dim < 1:
            raise ValueError(f"`mark_dim` must be an integer of at least 1; got {self.mark_dim!r}.")

    def draw(
        self,
        noise: NoiseStream,
        start: float,
        stop: float,
        *,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ) -> Jumps:
        """The jumps in ``(start, stop]``, of a process that starts at ``start``.

        Args:
            noise: The samples; jumps are drawn with :attr:`Purpose.JUMPS`.
            start: Start of the interval.
            stop: Its end.
            dtype: Type of the marks.
            device: Where the numbers are computed.

        Returns:
            Times and marks, with one column for each jump of the sample that has most, and one at least.

        Raises:
            ValueError: If the interval is empty, or so long that it holds millions of jumps.
        """
        if not -float("inf") < start < stop < float("inf"):
            raise ValueError(f"`start` must lie below `stop`, both finite; got {start} and {stop}.")
        times = self._times(noise, start, stop, device)
        width = max(1, int(times.isfinite().sum(1).max())) if len(times) else 1
        normals = noise.fork("marks").normals(
            width, purpose=Purpose.JUMPS, channels=self.mark_dim, dtype=dtype, device=device
        )
        marks = self.mark(normals)
        if tuple(marks.shape[:2]) != (len(noise), width):
            raise ValueError(
                f"`mark` must return shape (n, jumps, ...) = {(len(noise), width)}; got {tuple(marks.shape)}."
            )
        return Jumps(times[:, :width], marks)

    def _times(self, noise: NoiseStream, start: float, stop: float, device: torch.device | str) -> Tensor:
        """Times of jumps, infinite beyond the interval; enough of them for every sample."""
        count = _FIRST_DRAW
        while count <= _MOST:
            uniforms = noise.uniforms(count, purpose=Purpose.JUMPS, dtype=torch.float64, device=device)
            times = start - uniforms.log().cumsum(1) / self.rate
            if not len(times) or bool((times[:, -1] > stop).all()):
                return times.masked_fill(times > stop, torch.inf)
            count *= 2
        raise ValueError(
            f"`rate` times the interval must stay below {_MOST // 2} jumps; "
            f"got {self.rate * (stop - start):g}."
        )
