"""Wiener increments on a grid of time steps, drawn a chunk of steps at a time."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sde.noise.backends import draw
from sde.noise.increments import Areas, CoarseIncrements, Increment
from sde.noise.levy_area import LevyLaw, levy_area, num_pairs
from sde.noise.philox import Kind
from sde.noise.stream import NoiseStream, Purpose
from sde.shapes import check_shapes

__all__ = ["WienerIncrements"]


@dataclass(frozen=True, slots=True, eq=False)
class WienerIncrements:
    r"""Grid mode: the increment of step ``k`` is :math:`\sqrt{h_k}\,Z_k`, with element ``k`` of the stream.

    Any chunk costs one call of the noise kernel, and chunks of any length give the same numbers. The path
    depends on the grid: another number of steps is another path. :meth:`coarsen` gives the same path on a
    coarser grid, :class:`sde.noise.BrownianTree` paths that do not depend on the grid.

    Areas are drawn from streams of their own, so asking for them does not change the increments.

    Args:
        noise: Source of the normals, of purpose :attr:`Purpose.WIENER`.
        step_sizes: Lengths of the steps, at least 0, shape ``(num_steps,)``, or ``(num_steps, n)`` where
            every sample has its own; floating point, best float64.
        channels: Number of independent Wiener processes, at least 1.
        dtype: Type of the increments.
        device: Where they are computed.
        levy_law: How Levy areas between channels are drawn.

    Raises:
        ValueError: If a shape, a size, or the sign of a step is wrong.

    Example:
        >>> noise = NoiseStream(seed=1, start=0, stop=6)
        >>> path = WienerIncrements(noise, torch.full((8,), 0.125), channels=2, dtype=torch.float64)
        >>> path.shape, path.chunk(0, 4).wiener.shape
        ((8, 6, 2), torch.Size([4, 6, 2]))
        >>> coarse = path.coarsen(4).chunk(1, 1).wiener[0]
        >>> torch.equal(coarse, path.chunk(4, 4).wiener.sum(0))
        True

    References:
        Kloeden & Platen (1992), section 2.4. doi:10.1007/978-3-662-12616-5
    """

    noise: NoiseStream
    step_sizes: Tensor
    channels: int
    dtype: torch.dtype = torch.float32
    device: torch.device | str = "cpu"
    levy_law: LevyLaw = LevyLaw.FOSTER

    def __post_init__(self) -> None:
        own = self.step_sizes.dim() == 2
        check_shapes(step_sizes=(self.step_sizes, f"num_steps {len(self.noise)}" if own else "num_steps"))
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

    def chunk(self, first: int, count: int, areas: Areas = Areas.NONE) -> Increment:
        """Increments of steps ``first .. first + count - 1``, each ``(count, n, channels)``."""
        steps = self.step_sizes[first : first + count].to(self.device, self.dtype).unsqueeze(-1)
        steps = steps.unsqueeze(1) if steps.dim() == 2 else steps  # (count, 1 or n, 1)
        wiener = self._normals(Purpose.WIENER, first, steps.sqrt())
        if not areas:
            return Increment(wiener)
        area = self._normals(Purpose.SPACE_TIME_AREA, first, (steps / 12).sqrt())
        curve = levy = None
        if Areas.SPACE_TIME_TIME in areas:
            curve = self._normals(Purpose.SPACE_TIME_TIME_AREA, first, (steps / 720).sqrt())
        if Areas.LEVY in areas:
            levy = self._levy(first, steps, wiener, area)
        return Increment(wiener, area, curve, levy)

    def _normals(self, purpose: Purpose, first: int, scales: Tensor, channels: int | None = None) -> Tensor:
        """Scaled normals of a purpose, shape ``(count, n, channels)``."""
        channels = self.channels if channels is None else channels
        address = self.noise.address(purpose, first, len(scales), channels)
        out = draw(Kind.NORMALS, address, self.dtype, self.device)
        # In place where nothing is differentiated: the increments are then the only memory touched.
        transformed = torch._C._are_functorch_transforms_active()
        return out * scales if scales.requires_grad or transformed else out.mul_(scales)

    def _levy(self, first: int, steps: Tensor, wiener: Tensor, area: Tensor) -> Tensor:
        """Levy areas, zero for a single process."""
        pairs = num_pairs(self.channels)
        if not pairs:
            return wiener.new_zeros((*wiener.shape, 1))
        normals = self._normals(Purpose.LEVY_AREA, first, torch.ones_like(steps), pairs)
        return levy_area(wiener, area, steps, normals, self.levy_law)

    def coarsen(self, factor: int) -> CoarseIncrements:
        """The same paths on a grid of ``factor`` times longer steps."""
        return CoarseIncrements(self, factor)
