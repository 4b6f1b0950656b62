r"""Fractional noise of a latent equation, with a Hurst index that is learned between bounds.

.. math:: H = H_{\min} + (H_{\max} - H_{\min})\,\mathrm{sigmoid}(\rho)

with a number :math:`\rho`, or a function of time (:class:`MultifractionalNoise`). The Markov approximation
has unit variance at time 1 whatever the index, so that index and size of the noise are not confounded more
than they must be.

The index is what maximises the evidence *bound*. With additive noise the posterior of a latent equation is
guided through exact transitions (:mod:`inference.fractional.latent`) and the bound is tight where the model
is linear and Gaussian. With a diffusion that depends on the state it is a control that is held over steps,
whose gap grows as noise gets rougher, which draws the index of rough noise towards 1/2.
"""

import math
from typing import Protocol

import torch
from torch import Tensor, nn

from sde.noise.gaussian_path import low_rank_factors
from sde.noise.markov_fbm import MarkovFBM
from sde.noise.markov_weights import Kind
from sde.noise.ou_transition import slope_covariance

__all__ = ["FractionalNoise", "LatentNoise", "MultifractionalNoise", "SplineIndex"]


class LatentNoise(Protocol):
    """Markov-approximate fractional noise: Ornstein--Uhlenbeck processes and their weights.

    Attributes:
        kind: ``"I"`` or ``"II"``.
        num_rates: Number ``K`` of processes.
    """

    kind: Kind
    num_rates: int

    def model(self) -> MarkovFBM:
        """The approximation with the present index."""
        ...

    def weights(self, times: Tensor) -> Tensor:
        """Weights of the processes at instants ``(T,)``, float64, shape ``(T, K)``, differentiable."""
        ...

    def past_factor(self) -> Tensor:
        """Factor of the covariance of the slopes that hold the past, float64, shape ``(K, r)``."""
        ...


class FractionalNoise(nn.Module):
    r"""Markov-approximate fractional Brownian motion whose Hurst index is a parameter.

    Args:
        hurst: Index at the start, between the bounds.
        horizon: Length of the interval on which the approximation is best.
        step: Length of the shortest steps whose noise matters; the fastest rate is ``4 / step``.
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
        self.kind: Kind = kind
        self.bounds, self.num_rates = bounds, num_rates
        self.horizon, self.step = horizon, step
        self.raw = nn.Parameter(torch.tensor(_raw(hurst, bounds), dtype=torch.float64), learned)
        self.model()  # refuses what it cannot take

    @property
    def hurst(self) -> Tensor:
        """Hurst index, 0-d float64, differentiable."""
        return _between(self.raw.double(), self.bounds)

    def model(self) -> MarkovFBM:
        """The approximation with the present index."""
        return MarkovFBM(self.hurst, self.num_rates, self.horizon, self.step, self.kind)

    def weights(self, times: Tensor) -> Tensor:
        """Weights of the processes at instants ``(T,)``, shape ``(T, K)``: the same at all."""
        return self.model().omega().expand(len(times), -1)

    def past_factor(self) -> Tensor:
        """Factor of the covariance of the slopes that hold the past, float64, shape ``(K, r)``."""
        return _past_factor(self.model())


class SplineIndex(nn.Module):
    r"""A learned smooth function of time: a cubic spline with equally spaced knots.

    .. math:: \rho(t) = \sum_k c_k\, \beta\bigl((t - t_0) / \delta - k\bigr)

    with the cubic B-spline :math:`\beta`; twice continuously differentiable, and constant where all
    coefficients are equal.

    Args:
        start: First instant.
        stop: Last instant, later.
        pieces: Number of polynomial pieces, at least 1.
        value: Of the function at the start of the training.

    Raises:
        ValueError: If the interval is empty or ``pieces`` is below 1.

    Example:
        >>> SplineIndex(0.0, 1.0, value=0.3)(torch.tensor([0.0, 0.4, 1.0])).detach()
        tensor([0.3000, 0.3000, 0.3000], dtype=torch.float64)

    References:
        de Boor (1978), A Practical Guide to Splines, chapter IX.
    """

    def __init__(self, start: float, stop: float, *, pieces: int = 4, value: float = 0.0) -> None:
        super().__init__()
        if not start < stop:
            raise ValueError(f"`stop` must be later than `start`; got {start} and {stop}.")
        if pieces < 1:
            raise ValueError(f"`pieces` must be at least 1; got {pieces}.")
        self.start, self.width = start, (stop - start) / pieces
        self.coefficients = nn.Parameter(torch.full((pieces + 3,), value, dtype=torch.float64))

    def forward(self, times: Tensor) -> Tensor:
        """The function at instants ``(T,)``, float64."""
        centres = torch.arange(-1, len(self.coefficients) - 1, dtype=torch.float64, device=times.device)
        gaps = ((times.double()[:, None] - self.start) / self.width - centres).abs()
        inner = 2 / 3 - gaps.square() + gaps**3 / 2
        outer = (2 - gaps).clamp(min=0) ** 3 / 6
        return torch.where(gaps < 1, inner, outer) @ self.coefficients


class MultifractionalNoise(nn.Module):
    r"""Markov-approximate multifractional Brownian motion whose index is a learned function of time.

    .. math:: \hat B_t = \sum_k \omega_k(H(t)) \bigl(Y_k(t) - Y_k(0)\bigr)

    The noise starts at the first instant of a series.

    Args:
        index: Module of instants ``(T,)`` to numbers ``(T,)``, of which a sigmoid makes the index: a
            :class:`SplineIndex` or a network.
        horizon: As for :class:`FractionalNoise`.
        step: As there.
        num_rates: As there.
        kind: As there.
        bounds: Between which the index is learned.

    Raises:
        ValueError: If the bounds lie outside (0, 1), or a size is out of range.

    Example:
        >>> noise = MultifractionalNoise(SplineIndex(0.0, 1.0), horizon=1.0, step=0.01)
        >>> noise.hurst(torch.tensor([0.2, 0.9])).detach()
        tensor([0.5000, 0.5000], dtype=torch.float64)

    References:
        Peltier & Levy Vehel (1995), Multifractional Brownian motion. INRIA RR-2645
        Daems, Opper, Crevecoeur & Birdal (2024), section 3. arXiv:2310.12975
    """

    def __init__(
        self,
        index: nn.Module,
        *,
        horizon: float,
        step: float,
        num_rates: int = 5,
        kind: Kind = "I",
        bounds: tuple[float, float] = (0.02, 0.98),
    ) -> None:
        super().__init__()
        _raw(0.5 * sum(bounds), bounds)
        self.kind: Kind = kind
        self.index = index
        self.bounds, self.num_rates = bounds, num_rates
        self.horizon, self.step = horizon, step
        self.model()

    def hurst(self, times: Tensor) -> Tensor:
        """Hurst indices at instants ``(T,)``, float64, differentiable."""
        return _between(self.index(times).double(), self.bounds)

    def model(self) -> MarkovFBM:
        """The approximation with the present index."""
        return MarkovFBM(self.hurst, self.num_rates, self.horizon, self.step, self.kind)

    def weights(self, times: Tensor) -> Tensor:
        """Weights of the processes at instants ``(T,)``, shape ``(T, K)``."""
        return self.model().omega(self.hurst(times))

    def past_factor(self) -> Tensor:
        """Factor of the covariance of the slopes that hold the past, float64, shape ``(K, r)``."""
        return _past_factor(self.model())


def _between(raw: Tensor, bounds: tuple[float, float]) -> Tensor:
    """The index of what is learned."""
    low, high = bounds
    return low + (high - low) * raw.sigmoid()


def _raw(hurst: float, bounds: tuple[float, float]) -> float:
    """What is learned, of an index."""
    low, high = bounds
    if not 0 < low < hurst < high < 1:
        raise ValueError(f"`hurst` must lie between `bounds` in (0, 1); got {hurst} and {bounds}.")
    share = (hurst - low) / (high - low)
    return math.log(share / (1 - share))


def _past_factor(model: MarkovFBM) -> Tensor:
    """Factor of the covariance of the slopes; empty without a past."""
    if model.type == "II":
        return model.rates.new_zeros((0, 0))
    return low_rank_factors(slope_covariance(model.rates))
