"""Drifts and diffusions of latent equations, as modules of time and state ``(n, d)``."""

import torch
from torch import Tensor, nn

from sde import NoiseStream, NoiseStructure, Purpose
from sde.networks import perceptron

__all__ = ["ConstantDiffusion", "DiagonalDiffusion", "LinearDrift", "NeuralDrift"]


class NeuralDrift(nn.Module):
    """A dense network of the state: dynamics that do not depend on time.

    Args:
        dim: Number of components of the state.
        width: Width of the two hidden layers.
        seed: Seed of the initial weights.
        dtype: Floating dtype.

    Example:
        >>> NeuralDrift(3, seed=0)(torch.zeros(()), torch.zeros(5, 3)).shape
        torch.Size([5, 3])
    """

    def __init__(self, dim: int, *, width: int = 64, seed: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.layers = perceptron((dim, width, width, dim), seed=seed, dtype=dtype)

    def forward(self, time: Tensor, state: Tensor) -> Tensor:
        """Drift, shape ``(n, d)``, in the dtype of the state also where autocast lowers the layers'."""
        return self.layers(state).to(state.dtype)


class LinearDrift(nn.Module):
    r"""A learned linear drift of each component, :math:`a - \theta x`.

    Args:
        dim: Number of components of the state.
        rate: Value of :math:`\theta` at the start, one over time.
        offset: Value of ``a`` at the start.
        learned: Train both.
        dtype: Floating dtype.

    Example:
        >>> LinearDrift(3, rate=2.0)(torch.zeros(()), torch.ones(5, 3)).detach()[0]
        tensor([-2., -2., -2.])
    """

    def __init__(
        self,
        dim: int,
        *,
        rate: float = 0.0,
        offset: float = 0.0,
        learned: bool = True,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.full((dim,), rate, dtype=dtype), learned)
        self.offset = nn.Parameter(torch.full((dim,), offset, dtype=dtype), learned)

    def forward(self, time: Tensor, state: Tensor) -> Tensor:
        """Drift, shape ``(n, d)``."""
        return self.offset - self.rate * state


class ConstantDiffusion(nn.Module):
    """A learned constant for each component: additive noise.

    Args:
        dim: Number of components of the state.
        start: Value at the start, positive.
        learned: Train it.
        dtype: Floating dtype.
    """

    structure = NoiseStructure.ADDITIVE

    def __init__(
        self, dim: int, *, start: float = 0.5, learned: bool = True, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        self.logarithm = nn.Parameter(torch.full((dim,), start, dtype=dtype).log(), learned)

    def forward(self, time: Tensor, state: Tensor) -> Tensor:
        """Diffusion, shape ``(1, d)``."""
        return self.logarithm.exp()[None]


class DiagonalDiffusion(nn.Module):
    """A small network for each component, of that component alone, with values between bounds.

    Args:
        dim: Number of components of the state.
        width: Width of the hidden layer of each.
        bounds: Between which the diffusion lies, positive.
        seed: Seed of the initial weights.
        dtype: Floating dtype.

    Example:
        >>> DiagonalDiffusion(3, seed=0)(torch.zeros(()), torch.zeros(5, 3)).shape
        torch.Size([5, 3])
    """

    structure = NoiseStructure.DIAGONAL

    def __init__(
        self,
        dim: int,
        *,
        width: int = 16,
        bounds: tuple[float, float] = (0.01, 2.0),
        seed: int,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.bounds = bounds
        draws = NoiseStream(seed, 0, dim).normals(
            3 * width, purpose=Purpose.INITIALISATION, dtype=torch.float64
        )
        inward, bias, outward = draws.to(dtype).view(dim, 3, width).unbind(1)
        self.inward, self.bias = nn.Parameter(inward), nn.Parameter(bias)
        self.outward = nn.Parameter(outward / width**0.5)

    def forward(self, time: Tensor, state: Tensor) -> Tensor:
        """Diffusion, shape ``(n, d)``."""
        hidden = nn.functional.silu(state[..., None] * self.inward + self.bias)
        low, high = self.bounds
        return low + (high - low) * (hidden * self.outward).sum(-1).sigmoid()
