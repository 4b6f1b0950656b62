"""Increments that are right in law only, for schemes of weak order 2: three values instead of normals."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sde.noise.backends import draw
from sde.noise.increments import Areas, Increment
from sde.noise.levy_area import num_pairs
from sde.noise.philox import Kind
from sde.noise.stream import NoiseStream, Purpose
from sde.shapes import check_shapes

__all__ = ["ThreePointIncrements"]


@dataclass(frozen=True, slots=True, eq=False)
class ThreePointIncrements:
    r"""Three-point increments and two-point signs.

    .. math::

        P(\hat W = \pm\sqrt{3 h}) = \tfrac16, \qquad P(\hat W = 0) = \tfrac23, \qquad
        P(V_{ij} = \pm 1) = \tfrac12 \ (i < j), \qquad V_{ji} = -V_{ij}, \qquad V_{ii} = -1

    They have the moments of the Wiener increments that a scheme of weak order 2 needs. There is no path that
    step sizes could share.

    Args:
        noise: Source of the uniforms.
        step_sizes: Lengths of the steps, shape ``(num_steps,)``.
        channels: Number of independent Wiener processes, at least 1.
        dtype: Type of the increments.
        device: Where they are computed.

    References:
        Kloeden & Platen (1992), section 14.2, equation 8. doi:10.1007/978-3-662-12616-5
    """

    noise: NoiseStream
    step_sizes: Tensor
    channels: int
    dtype: torch.dtype = torch.float32
    device: torch.device | str = "cpu"

    def __post_init__(self) -> None:
        check_shapes(step_sizes=(self.step_sizes, "num_steps"))
        self.noise.address(Purpose.WIENER, 0, len(self.step_sizes), self.channels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(num_steps, n, channels)``."""
        return len(self.step_sizes), len(self.noise), self.channels

    def chunk(self, first: int, count: int, areas: Areas = Areas.NONE) -> Increment:
        """Increments of steps ``first .. first + count - 1``.

        Raises:
            ValueError: If areas are asked for: there is no path that has them.
        """
        if areas:
            raise ValueError(f"`areas` must be none for three-point increments; got {areas}.")
        steps = self.step_sizes[first : first + count].to(self.device, self.dtype)[:, None, None]
        uniforms = self._uniforms(Purpose.WIENER, first, len(steps), self.channels)
        wiener = (3 * steps).sqrt() * ((uniforms > 5 / 6).to(self.dtype) - (uniforms < 1 / 6).to(self.dtype))
        return Increment(wiener, signs=self._signs(first, len(steps)))

    def _signs(self, first: int, count: int) -> Tensor:
        """The matrices V, shape ``(count, n, channels, channels)``."""
        m = self.channels
        signs = torch.zeros((count, len(self.noise), m, m), dtype=self.dtype, device=self.device)
        if m > 1:
            i, j = torch.triu_indices(m, m, 1, device=self.device)
            uniforms = self._uniforms(Purpose.LEVY_AREA, first, count, num_pairs(m))
            signs[..., i, j] = 2 * (uniforms < 0.5).to(self.dtype) - 1
        return signs - signs.mT - torch.eye(m, dtype=self.dtype, device=self.device)

    def _uniforms(self, purpose: Purpose, first: int, count: int, channels: int) -> Tensor:
        """Uniforms of a purpose, shape ``(count, n, channels)``."""
        return draw(
            Kind.UNIFORMS, self.noise.address(purpose, first, count, channels), self.dtype, self.device
        )
