"""Wiener increments on a grid of time steps, drawn a chunk of steps at a time."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sde.noise.backends import fill
from sde.noise.philox import Kind
from sde.noise.stream import NoiseStream, Purpose
from sde.shapes import check_shapes

__all__ = ["CoarseIncrements", "GivenIncrements", "Increments", "WienerIncrements"]


class Increments(Protocol):
    """The increments that drive a solve: of one Wiener path per sample, step by step.

    Attributes:
        shape: ``(num_steps, n, channels)``.
    """

    @property
    def shape(self) -> tuple[int, int, int]:
        """Steps, samples and channels."""
        ...

    def chunk(self, first: int, count: int) -> Tensor:
        """Increments of steps ``first .. first + count - 1``, shape ``(count, n, channels)``."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class WienerIncrements:
    r"""Grid mode: the increment of step ``k`` is :math:`\sqrt{h_k}\,Z_k`, with element ``k`` of the stream.

    Any chunk costs one call of the noise kernel, and chunks of any length give the same numbers. The path
    depends on the grid: another number of steps is another path. :meth:`coarsen` gives the same path on a
    coarser grid.

    Args:
        noise: Source of the normals, of purpose :attr:`Purpose.WIENER`.
        step_sizes: Lengths of the steps, at least 0, shape ``(num_steps,)``; floating point, best float64.
        channels: Number of independent Wiener processes, at least 1.
        dtype: Type of the increments.
        device: Where they are computed.

    Raises:
        ValueError: If a shape, a size, or the sign of a step is wrong.

    Example:
        >>> noise = NoiseStream(seed=1, start=0, stop=6)
        >>> path = WienerIncrements(noise, torch.full((8,), 0.125), channels=2, dtype=torch.float64)
        >>> path.shape, path.chunk(0, 4).shape
        ((8, 6, 2), torch.Size([4, 6, 2]))
        >>> torch.equal(path.coarsen(4).chunk(1, 1)[0], path.chunk(4, 4).sum(0))
        True

    References:
        Kloeden & Platen (1992), section 2.4. doi:10.1007/978-3-662-12616-5
    """

    noise: NoiseStream
    step_sizes: Tensor
    channels: int
    dtype: torch.dtype = torch.float32
    device: torch.device | str = "cpu"

    def __post_init__(self) -> None:
        check_shapes(step_sizes=(self.step_sizes, "num_steps"))
        if not self.step_sizes.is_floating_point():
            raise TypeError(f"`step_sizes` must be floating point; got {self.step_sizes.dtype}.")
        if not bool((self.step_sizes >= 0).all()):  # NaN fails the comparison too
            raise ValueError(f"`step_sizes` must be at least 0; got {self.step_sizes.min().item()}.")
        if self.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"`dtype` must be torch.float32 or torch.float64; got {self.dtype}.")
        self.noise.address(Purpose.WIENER, 0, len(self.step_sizes), self.channels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(num_steps, n, channels)``."""
        return len(self.step_sizes), len(self.noise), self.channels

    def chunk(self, first: int, count: int) -> Tensor:
        """Increments of steps ``first .. first + count - 1``, shape ``(count, n, channels)``."""
        scales = self.step_sizes[first : first + count].sqrt().to(self.device, self.dtype)
        normals = torch.empty((len(scales), *self.shape[1:]), dtype=self.dtype, device=self.device)
        address = self.noise.address(Purpose.WIENER, first, len(scales), self.channels)
        fill(Kind.NORMALS, address, normals.transpose(0, 1))
        # In place where nothing is differentiated: the increments are then the only memory touched.
        return (
            normals * scales[:, None, None] if scales.requires_grad else normals.mul_(scales[:, None, None])
        )

    def coarsen(self, factor: int) -> "CoarseIncrements":
        """The same paths on a grid of ``factor`` times longer steps."""
        return CoarseIncrements(self, factor)


@dataclass(frozen=True, slots=True, eq=False)
class CoarseIncrements:
    """Sums of ``factor`` consecutive increments: the same paths seen on a coarser grid.

    Args:
        fine: Increments on the fine grid.
        factor: Fine steps per coarse step; it must divide their number.

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

    def chunk(self, first: int, count: int) -> Tensor:
        """Increments of coarse steps ``first .. first + count - 1``, shape ``(count, n, channels)``."""
        fine = self.fine.chunk(first * self.factor, count * self.factor)
        return fine.unflatten(0, (-1, self.factor)).sum(1)


@dataclass(frozen=True, slots=True, eq=False)
class GivenIncrements:
    """Increments that the caller supplies.

    Args:
        values: Shape ``(n, num_steps, channels)``.

    Raises:
        ValueError: If ``values`` has another number of axes or is not finite.
    """

    values: Tensor

    def __post_init__(self) -> None:
        check_shapes(values=(self.values, "n num_steps channels"))
        if not bool(self.values.isfinite().all()):
            raise ValueError("`values` must be finite; got NaN or infinite increments.")

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(num_steps, n, channels)``."""
        samples, num_steps, channels = self.values.shape
        return num_steps, samples, channels

    def chunk(self, first: int, count: int) -> Tensor:
        """Increments of steps ``first .. first + count - 1``, shape ``(count, n, channels)``."""
        return self.values[:, first : first + count].transpose(0, 1)
