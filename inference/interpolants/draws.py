"""Addressed mini-batches: what an iteration draws, without a generator that has a state."""

import torch
from torch import Tensor

from sde.noise import NoiseStream, Purpose

__all__ = ["Draws"]

_AHEAD = 16  # iterations whose noise is drawn in one call; it changes the speed, not the numbers


class Draws:
    """The randomness of each iteration of a training on rows: mini-batch, normals and times.

    Args:
        seed: Of everything drawn.
        batch: Rows of an iteration.
        shape: Number of rows of the data and dimension of the normals.
        dtype: Floating dtype of normals and times.
        device: Where they are drawn.

    Example:
        >>> rows, normals, times = Draws(0, 8, (100, 3), torch.float32, torch.device("cpu"))(5)
        >>> rows.shape, normals.shape, times.shape
        (torch.Size([8]), torch.Size([8, 3]), torch.Size([8, 1]))
    """

    def __init__(
        self, seed: int, batch: int, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
    ) -> None:
        self.seed, self.batch, self.dtype, self.device = seed, batch, dtype, device
        self.num_rows, self.dim = shape
        self.held: tuple[int, Tensor, Tensor, Tensor] | None = None

    def __call__(self, iteration: int) -> tuple[Tensor, Tensor, Tensor]:
        """Rows ``(batch,)``, normals ``(batch, dim)`` and times ``(batch, 1)``."""
        group, position = divmod(iteration, _AHEAD)
        if self.held is None or self.held[0] != group:
            self.held = (group, *self._draw(NoiseStream(self.seed, group * _AHEAD, (group + 1) * _AHEAD)))
        _, rows, normals, t = self.held
        return rows[position], normals[position], t[position]

    def _draw(self, noise: NoiseStream) -> tuple[Tensor, Tensor, Tensor]:
        """The draws of a group of iterations, which are the samples of the stream."""
        where = {"purpose": Purpose.TRAINING, "device": self.device}
        uniforms = noise.fork("rows").uniforms(self.batch, dtype=torch.float64, **where)
        normals = noise.fork("base").normals(self.batch * self.dim, dtype=self.dtype, **where)
        t = noise.fork("time").uniforms(self.batch, dtype=self.dtype, **where)
        return (uniforms * self.num_rows).long(), normals.view(_AHEAD, self.batch, self.dim), t.unsqueeze(2)
