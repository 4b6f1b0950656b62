r"""Sites: Gaussian pseudo-observations that stand for what was observed of a latent equation.

A guided posterior (:mod:`inference.fractional.latent`) is the prior given :math:`\tilde o_i = X_{t_i} +
\tilde\sigma_i \varepsilon`. Where the likelihood of an instant is Gaussian in the state itself, the data are
the best sites; else a network makes them of features. Where nothing was observed there are none.

References:
    Khan & Lin (2017), Conjugate-computation variational inference. arXiv:1703.04265
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from inference.likelihoods import Gaussian
from inference.series import Series
from sde.networks import perceptron

__all__ = ["DirectSites", "LearnedSites", "SiteMap", "Sites"]


class Sites(NamedTuple):
    """Pseudo-observations at the instants of ``B`` series."""

    values: Tensor  #: float64, shape ``(B, T, d)``
    precisions: Tensor  #: inverse variances, float64, shape ``(B, T, d)``, or ``(1, T, d)`` where shared


class SiteMap(Protocol):
    """What makes sites of features and series."""

    def __call__(self, context: Tensor, series: Series, /) -> Sites:
        """Sites of features ``(B, T, c)`` of ``B`` series."""
        ...


class LearnedSites(nn.Module):
    """A network of the features of each instant.

    Args:
        context_dim: Number ``c`` of features.
        latent_dim: Number ``d`` of latent components.
        width: Width of the hidden layer.
        seed: Seed of the initial weights.
        dtype: Floating dtype.

    Example:
        >>> series = Series(torch.tensor([0.0, 1.0]), torch.tensor([[[1.0], [torch.nan]]]))
        >>> LearnedSites(3, 1, seed=0)(torch.zeros(1, 2, 3), series).precisions[0, :, 0].tolist()
        [1.0, 0.0]
    """

    def __init__(
        self,
        context_dim: int,
        latent_dim: int,
        *,
        width: int = 64,
        seed: int,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.layers = perceptron((context_dim, width, 2 * latent_dim), seed=seed, dtype=dtype, zero_last=True)

    def forward(self, context: Tensor, series: Series) -> Sites:
        """Sites, at the start of unit precision about zero."""
        values, raw = self.layers(context).double().chunk(2, -1)
        seen = series.mask.any(2, keepdim=True)
        # Larger precisions than this pin the state beyond what float64 can weigh.
        return Sites(values, seen * raw.clamp(max=20.0).exp())


class DirectSites(nn.Module):
    """The data themselves, of a state that is observed with Gaussian noise.

    Args:
        likelihood: The noise.

    Example:
        >>> series = Series(torch.tensor([0.0, 1.0]), torch.tensor([[[1.0], [torch.nan]]]))
        >>> DirectSites(Gaussian(1, deviation=0.5))(torch.zeros(1, 2, 0), series).values[0, :, 0].tolist()
        [1.0, 0.0]
    """

    def __init__(self, likelihood: Gaussian) -> None:
        super().__init__()
        self.likelihood = likelihood

    def forward(self, context: Tensor, series: Series) -> Sites:
        """Sites; precisions are shared where nothing is missing."""
        precision = (-2 * self.likelihood.log_deviation.double()).exp()
        mask = series.mask[:1] if bool(series.mask.all()) else series.mask
        return Sites(series.filled.double(), mask * precision)
