r"""Encoders of time series: what the observations that are still to come say, at each of their instants.

An encoder maps a :class:`inference.series.Series` to features ``(B, T, c)``; row ``i`` is what a posterior
uses on the way to instant ``i``. What is missing enters as zero beside its mask, and the spans between
instants enter as logarithms, so instants may be irregular.

References:
    Li, Wong, Chen & Duvenaud (2020), Scalable gradients for stochastic differential equations, section 5 and
    appendix 9. arXiv:2001.01328
    Bai, Kolter & Koltun (2018), for temporal convolutions. arXiv:1803.01271
"""

from typing import Protocol

import torch
from torch import Tensor, nn

from inference.series import Series
from sde.noise import NoiseStream, Purpose

__all__ = ["Encoder", "GRUEncoder", "TemporalConvolution", "initialise"]


class Encoder(Protocol):
    """Features of a series at its instants.

    Attributes:
        context_dim: Number ``c`` of features.
    """

    context_dim: int

    def __call__(self, series: Series, /) -> Tensor:
        """Features, shape ``(B, T, c)``."""
        ...


class GRUEncoder(nn.Module):
    """A gated recurrent network that reads the series backwards: row ``i`` knows instants ``i`` to the last.

    Args:
        observed_dim: Number ``p`` of observed components.
        context_dim: Number of features.
        seed: Seed of the initial weights.
        dtype: Floating dtype.

    Example:
        >>> encoder = GRUEncoder(2, 8, seed=0)
        >>> encoder(Series(torch.tensor([0.0, 0.1, 0.5]), torch.ones(4, 3, 2))).shape
        torch.Size([4, 3, 8])
    """

    def __init__(
        self, observed_dim: int, context_dim: int = 32, *, seed: int, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        self.context_dim = context_dim
        cell = nn.GRU(2 * observed_dim + 1, context_dim, batch_first=True, dtype=dtype, device="meta")
        self.cell = cell.to_empty(device="cpu")
        initialise(self.cell, seed, 1 / context_dim**0.5)

    def forward(self, series: Series) -> Tensor:
        """Features, shape ``(B, T, c)``."""
        return self.cell(_columns(series).flip(1))[0].flip(1)


class TemporalConvolution(nn.Module):
    """Residual convolutions along time, dilated 1, 2, 4, ...: row ``i`` knows what is around instant ``i``.

    Args:
        observed_dim: Number ``p`` of observed components.
        context_dim: Number of features.
        layers: Number of convolutions of width 3; the last but ``k`` sees ``2**(layers - k)`` instants away.
        seed: Seed of the initial weights.
        dtype: Floating dtype.

    Example:
        >>> encoder = TemporalConvolution(2, 8, layers=3, seed=0)
        >>> encoder(Series(torch.tensor([0.0, 0.1, 0.5]), torch.ones(4, 3, 2))).shape
        torch.Size([4, 3, 8])
    """

    def __init__(
        self,
        observed_dim: int,
        context_dim: int = 32,
        *,
        layers: int = 4,
        seed: int,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.context_dim = context_dim
        widths = [2 * observed_dim + 1] + [context_dim] * layers
        self.layers = nn.ModuleList()
        for index in range(layers):
            layer = nn.utils.skip_init(
                nn.Conv1d,
                widths[index],
                context_dim,
                kernel_size=3,
                padding=2**index,
                dilation=2**index,
                dtype=dtype,
                device="cpu",
            )
            initialise(
                layer, NoiseStream(seed, 0, 1).fork(f"layer {index}").seed, (3 * widths[index]) ** -0.5
            )
            self.layers.append(layer)

    def forward(self, series: Series) -> Tensor:
        """Features, shape ``(B, T, c)``."""
        features = _columns(series).mT
        for index, layer in enumerate(self.layers):
            new = nn.functional.silu(layer(features))
            features = new if index == 0 else features + new
        return features.mT


def _columns(series: Series) -> Tensor:
    """Values, mask and logarithm of the span before each instant, shape ``(B, T, 2 p + 1)``."""
    spans = series.times.diff().log()
    spans = torch.cat((spans[:1], spans)).to(series.values)
    shared = spans[None, :, None].expand(len(series), -1, 1)
    return torch.cat((series.filled, series.mask.to(series.values), shared), 2)


@torch.no_grad()
def initialise(module: nn.Module, seed: int, bound: float) -> None:
    """Fill a layer's parameters with uniforms on ``(-bound, bound)``; parameter ``k`` reads sample ``k``.

    Args:
        module: The layer, changed in place.
        seed: Seed of the uniforms.
        bound: The largest absolute value.

    Example:
        >>> layer = nn.utils.skip_init(nn.Linear, 4, 3)
        >>> initialise(layer, 0, 0.5)
        >>> bool((layer.weight.abs() < 0.5).all())
        True
    """
    for index, parameter in enumerate(module.parameters()):
        stream = NoiseStream(seed, index, index + 1)
        uniforms = stream.uniforms(parameter.numel(), purpose=Purpose.INITIALISATION, dtype=torch.float64)
        parameter.copy_(bound * (2 * uniforms.view_as(parameter) - 1))
