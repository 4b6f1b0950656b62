"""Training samples and conditions of learned samplers: checks at the border, and units."""

import torch
from torch import Tensor

from sde.noise import NoiseStream

__all__ = ["check_conditions", "check_samples", "deviations"]


def check_samples(data: Tensor, conditions: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Training data as float64 matrices on the CPU.

    Args:
        data: Samples of a random vector or field, shape ``(n, ...)``, n at least 2, finite.
        conditions: Known inputs of each sample, shape ``(n, c)``, finite, or ``None``.

    Returns:
        Data ``(n, q)`` and conditions ``(n, c)``, with ``c = 0`` for ``None``.

    Raises:
        TypeError: If one of them is not a floating-point tensor.
        ValueError: If there are fewer than two samples, the lengths differ or a value is not finite.

    Example:
        >>> rows, known = check_samples(torch.zeros(4, 3, 2))
        >>> rows.shape, known.shape
        (torch.Size([4, 6]), torch.Size([4, 0]))
    """
    for name, value in (("data", data), ("conditions", conditions)):
        if value is not None:
            _check_one(name, value)
    if data.numel() == 0 or len(data) < 2:
        raise ValueError(f"`data` must hold at least two samples; got shape {tuple(data.shape)}.")
    matrix = data.detach().cpu().flatten(1).double()
    if conditions is None:
        return matrix, matrix.new_zeros(len(matrix), 0)
    if conditions.ndim != 2 or len(conditions) != len(data):
        raise ValueError(f"`conditions` must have shape ({len(data)}, c); got {tuple(conditions.shape)}.")
    return matrix, conditions.detach().cpu().double()


def _check_one(name: str, value: Tensor) -> None:
    """Refuse what is not a finite floating-point tensor with one row per sample."""
    if not isinstance(value, Tensor) or not value.dtype.is_floating_point:
        got = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"`{name}` must be a floating-point tensor; got {got}.")
    if value.ndim < 2:
        raise ValueError(f"`{name}` must have one row per sample, shape (n, ...); got {tuple(value.shape)}.")
    if not bool(value.isfinite().all()):
        row = int((~value.flatten(1).isfinite()).any(1).nonzero()[0, 0])
        raise ValueError(f"`{name}` must be finite; row {row} is not. Remove failed samples first.")


def check_conditions(inputs: Tensor, noise: NoiseStream, condition_dim: int) -> None:
    """Refuse inputs of a generator that are not a tensor ``(len(noise), condition_dim)``."""
    if not isinstance(inputs, Tensor):
        raise TypeError(f"`inputs` must be a tensor; got {type(inputs).__name__}.")
    if tuple(inputs.shape) != (len(noise), condition_dim):
        raise ValueError(
            f"`inputs` must have shape ({len(noise)}, {condition_dim}), a row of conditions per sample of "
            f"the noise; got {tuple(inputs.shape)}."
        )


def deviations(matrix: Tensor) -> Tensor:
    """Standard deviation of each column of ``(n, q)``, 1 where a column is constant.

    Example:
        >>> deviations(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))
        tensor([1., 1.])
    """
    spread = (matrix - matrix.mean(0)).square().mean(0).sqrt()
    return torch.where(spread > 0, spread, 1.0)
