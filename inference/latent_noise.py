r"""Fractional noise of a latent equation, with a Hurst index that is learned between bounds.

.. math:: H = H_{\min} + (H_{\max} - H_{\min})\,\mathrm{sigmoid}(\rho)

The Markov approximation has unit variance at time 1 whatever the index, so that index and size of the noise
are not confounded more than they must be.

The index is what maximises the evidence *bound*. A control that is held over steps leaves a gap that grows as
noise gets rougher, which draws the index of rough noise towards 1/2 (one run, 128 paths of exact noise seen
with deviation 0.1 at 33 instants, 2 steps between them: 0.68 for a true 0.7, but 0.52 for 0.3). Where the
model is linear and Gaussian, maximise :func:`inference.fractional.log_evidence` instead.
"""

import math

import torch
from torch import Tensor, nn

from sde.noise.gaussian_path import low_rank_factors
from sde.noise.markov_fbm import MarkovFBM
from sde.noise.markov_weights import Kind
from sde.noise.ou_transition import slope_covariance

__all__ = ["FractionalNoise"]


class FractionalNoise(nn.Module):
    r"""Markov-approximate fractional Brownian motion whose Hurst index is a parameter.

    Args:
        hurst: Index at the start, between the bounds.
        horizon: Length of the interval on which the approximation is best.
        step: Length of the solver's steps; the fastest rate is ``1 / step``, which explicit schemes resolve.
        num_rates: Number of Ornstein--Uhlenbeck processes for each latent component.
        kind: ``"I"``: infinite past, which the posterior infers. ``"II"``: no past.
        learned: Train the index.
        bounds: Between which it is learned.

    Raises:
        ValueError: If the index lies outside the bounds, these outside (0, 1), or a size is out of range.

    Example:
        >>> noise = FractionalNoise(0.7, horizon=1.0, step=0.01)
        >>> round(float(noise.hurst.detach()), 6)
        0.7
    """

    def __init__(
        self,
        hurst: float = 0.5,
        *,
        horizon: float,
        step: float,
        num_rates: int = 5,
        kind: Kind = "I",
        learned: bool = True,
        bounds: tuple[float, float] = (0.02, 0.98),
    ) -> None:
        super().__init__()
        low, high = bounds
        if not 0 < low < hurst < high < 1:
            raise ValueError(f"`hurst` must lie between `bounds` in (0, 1); got {hurst} and {bounds}.")
        self.kind: Kind = kind
        self.bounds, self.num_rates = bounds, num_rates
        self.horizon, self.step = horizon, step
        share = (hurst - low) / (high - low)
        start = torch.tensor(math.log(share / (1 - share)), dtype=torch.float64)
        self.raw = nn.Parameter(start, learned)
        self.model()  # refuses what it cannot take

    @property
    def hurst(self) -> Tensor:
        """Hurst index, 0-d float64, differentiable."""
        low, high = self.bounds
        return low + (high - low) * self.raw.sigmoid()

    def model(self) -> MarkovFBM:
        """The approximation with the present index."""
        # The automatic grid ends at 4 / dt.
        return MarkovFBM(self.hurst, self.num_rates, self.horizon, 4 * self.step, self.kind)

    def past_factor(self) -> Tensor:
        """Factor of the covariance of the slopes that hold the past, float64, shape ``(K, r)``."""
        rates = self.model().rates
        if self.kind == "II":
            return rates.new_zeros((0, 0))
        return low_rank_factors(slope_covariance(rates))
