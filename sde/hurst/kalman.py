r"""Hurst index of noisy data at irregular instants, by the Kalman filter of the Markov approximation.

.. math:: y_i = x_0 + \sigma B^H_{t_i} + \varepsilon_i, \qquad \varepsilon_i \sim N(0, \tau^2),

with level :math:`x_0`, scale, noise and index unknown. Replacing :math:`B^H` by its Markov approximation
(:class:`sde.noise.MarkovFBM`) makes this a linear state-space model whose likelihood costs ``O(T K**2)``
instead of :math:`O(T^3)`. The dynamics do not depend on ``H``, only the weights of the observation do, so a
filter runs for many indices at once.

References:
    Kalman (1960), A new approach to linear filtering and prediction problems. doi:10.1115/1.3662552
    Durbin & Koopman (2012), Time Series Analysis by State Space Methods, chapter 7.
    doi:10.1093/acprof:oso/9780199641178.001.0001
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sde.hurst.estimate import Diagnostic, HurstEstimate, LikelihoodCurve, as_rows
from sde.noise.markov_fbm import MarkovFBM
from sde.noise.ou_transition import decays, noise_covariance, slope_covariance
from sde.shapes import check_shapes

__all__ = ["MarkovLikelihood", "markov_likelihood", "markov_model"]

_WORST = 0.3  # certificate above which an index is not searched
_LEVEL = 1e6  # prior variance of the level, over that of the path at its end: it is not known
_RATIOS = (0.01, 0.1, 0.3, 0.7, 1.5, 4.0)  # noise over the size of an increment: where the search starts
_LEAST, _MOST = 1e-3, 1e3  # bounds of that ratio; at the lower one there is no noise to speak of
_STENCIL = 1e-3
_NEWTON = 6
_NODES = 13  # indices at which the likelihood is profiled, and then again where it matters
_LEVELS = 3
_DEPTH = 10.0  # drop of the log-likelihood beyond which an index does not matter


def markov_likelihood(
    times: Tensor, values: Tensor, *, noise: bool = True, num_rates: int = 16
) -> HurstEstimate:
    r"""Hurst index, scale and measurement noise by maximum likelihood under the Markov approximation.

    Indices whose certificate exceeds 0.3 for the length and the steps of the data are not searched. Intervals
    are those of the likelihood ratio with the other parameters maximised over, and the standard error is half
    the width of that of one standard deviation: where the noise may be zero the estimate is not normal.

    Args:
        times: Increasing instants, shape ``(T,)``, ``T >= 16``.
        values: Data, shape ``(T,)``.
        noise: Whether the values carry independent measurement noise.
        num_rates: Ornstein--Uhlenbeck processes of the approximation, at least 5. Where noise and roughness
            compete, few rates bias the index downwards.

    Returns:
        One estimate; ``scale`` is the standard deviation at unit time, ``noise`` that of the measurements.

    Raises:
        ValueError: If shapes disagree, times do not increase, or values are constant or not finite.
        TypeError: If the values are not floating point.

    Example:
        >>> from sde.noise import NoiseStream, fbm_path
        >>> stream = NoiseStream(seed=0, start=0, stop=1)
        >>> path = fbm_path(0.3, stream, 256, dtype=torch.float64)[0]
        >>> times = torch.arange(257, dtype=torch.float64)
        >>> estimate = markov_likelihood(times, path + 0.3 * stream.normals(257, dtype=torch.float64)[0])
        >>> abs(estimate.H.item() - 0.3) < 5 * estimate.std_error.item() < 1
        True

    References:
        Durbin & Koopman (2012), section 7.3.
    """
    search = markov_model(times, values, num_rates)
    return search.with_noise() if noise else search.without_noise()


def markov_model(times: Tensor, values: Tensor, num_rates: int) -> "MarkovLikelihood":
    """The likelihood of checked data; arguments and errors as for :func:`markov_likelihood`."""
    check_shapes(times=(times, "T"), values=(values, "T"))
    values = as_rows(values, 16)[0]
    instants = times.detach().to("cpu", torch.float64)
    if not bool((instants.diff() > 0).all()):
        raise ValueError("`times` must increase strictly; got instants that do not.")
    if num_rates < 5:
        raise ValueError(f"`num_rates` must be at least 5; got {num_rates}.")
    step = float(instants.diff().median())
    model = MarkovFBM(0.5, num_rates, float(instants[-1] - instants[0]), step)
    grid = torch.linspace(0.02, 0.98, 97, dtype=torch.float64)
    good = grid[model.error(grid) <= _WORST]
    return MarkovLikelihood(model, instants, values - values[0], step, float(good[0]), float(good[-1]))


@dataclass(frozen=True, slots=True, eq=False)
class MarkovLikelihood:
    """The likelihood of noisy data under the approximation, as a function of index and noise.

    Attributes:
        model: The approximation, whose rates hold for every index.
        times: Increasing instants, shape ``(T,)``.
        values: Data, the first taken off, shape ``(T,)``.
        step: Length of a typical step.
        low: Smallest index whose certificate is good.
        high: Largest one.
    """

    model: MarkovFBM
    times: Tensor
    values: Tensor
    step: float
    low: float
    high: float

    def at(self, hurst: Tensor, ratio: Tensor) -> tuple[Tensor, Tensor]:
        """Sums of log-variances and of squared standardised innovations for each index and ratio, ``(B,)``.

        Variances are over that of the path; ``ratio`` is the noise over the size of an increment.
        """
        noise = (ratio * self.step**hurst).square()
        observe = torch.nn.functional.pad(self.model.omega(hurst), (0, self.model.K + 1))
        observe[:, -1] = 1.0
        mean, covariance = self._prior(hurst)
        log_sum, square_sum = torch.zeros_like(hurst), torch.zeros_like(hurst)
        moves, which = self._moves()
        for i, value in enumerate(self.values.tolist()):
            if i:
                self._move(mean, covariance, *moves[which[i - 1]])
            gain = (covariance @ observe[..., None])[..., 0]
            variance = (gain * observe).sum(-1) + noise
            error = value - (mean * observe).sum(-1)
            mean = mean + gain * (error / variance)[:, None]
            covariance = covariance - gain[:, :, None] * (gain / variance[:, None])[:, None, :]
            if i:  # the first value goes to the level, whose prior must not enter the likelihood
                log_sum += variance.log()
                square_sum += error.square() / variance
        return log_sum, square_sum

    def without_noise(self) -> HurstEstimate:
        """The estimate where values are exact."""

        def profiled(hurst: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
            return self._values(hurst, torch.zeros_like(hurst)), start

        return self._estimate(*self._zoom(profiled))

    def with_noise(self) -> HurstEstimate:
        """The estimate where values carry noise of unknown size."""
        return self._estimate(*self._zoom(self._best_noise))

    def _zoom(
        self, profiled: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Indices where the likelihood matters, its logarithm, and the logarithmic ratios that go with it."""
        grid = torch.linspace(self.low, self.high, _NODES, dtype=torch.float64)
        coarse = torch.tensor(_RATIOS, dtype=torch.float64)
        trials = self._values(grid.repeat_interleave(len(coarse)), coarse.repeat(len(grid)))
        ratios = coarse.log()[trials.reshape(len(grid), -1).argmax(1)]
        values, ratios = profiled(grid, ratios)
        for _ in range(_LEVELS - 1):
            near = (values > values.max() - _DEPTH).nonzero()[:, 0]
            first, last = max(int(near[0]) - 1, 0), min(int(near[-1]) + 1, len(grid) - 1)
            if last - first > 0.8 * len(grid):
                break
            finer = torch.linspace(float(grid[first]), float(grid[last]), _NODES, dtype=torch.float64)
            ratios = torch.from_numpy(np.interp(finer.numpy(), grid.numpy(), ratios.numpy()))
            grid = finer
            values, ratios = profiled(grid, ratios)
        return grid, values, ratios

    def _best_noise(self, hurst: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        """Likelihood with the best ratio for each index, by Newton's method in its logarithm."""
        low, high = math.log(_LEAST), math.log(_MOST)
        best, ratio = hurst.new_full(hurst.shape, -math.inf), start
        trial = start
        for _ in range(_NEWTON):
            points = torch.cat((trial - _STENCIL, trial, trial + _STENCIL))
            behind, here, ahead = self._values(hurst.repeat(3), points.exp()).chunk(3)
            better = here > best
            best, ratio = torch.where(better, here, best), torch.where(better, trial, ratio)
            slope, bend = (ahead - behind) / (2 * _STENCIL), (ahead - 2 * here + behind) / _STENCIL**2
            step = torch.where(bend < 0, -slope / torch.where(bend < 0, bend, -1.0), slope.sign())
            trial = (trial + step.clamp(-1, 1)).clamp(low, high)
        return best, ratio

    def _values(self, hurst: Tensor, ratio: Tensor) -> Tensor:
        """Profile log-likelihood over the scale, for each pair of index and ratio."""
        log_sum, square_sum = self.at(hurst, ratio)
        count = len(self.values) - 1
        return -0.5 * (log_sum + count * (square_sum / count).log())

    def _estimate(self, grid: Tensor, values: Tensor, ratios: Tensor) -> HurstEstimate:
        """The estimate, its scale and noise, and the figure of its likelihood."""
        curve = LikelihoodCurve.through(grid, values)
        h = curve.maximum()
        low, high = curve.interval(h, 1.0)
        error = (high - low) / 2
        ratio = torch.as_tensor(np.interp(float(h), grid.numpy(), ratios.exp().numpy()))
        ratio = torch.where(ratio > 2 * _LEAST, ratio, 0.0)
        scale = (self.at(h[None], ratio[None])[1][0] / (len(self.values) - 1)).sqrt()
        parabola = torch.exp(-0.5 * ((curve.index - h) / error) ** 2)
        labels = ("Hurst index", "profile likelihood / maximum")
        seen = (curve.log_likelihood - curve.log_likelihood.max()).exp()
        diagnostic = Diagnostic(curve.index, seen, parabola, labels, logarithmic=False)
        noise = scale * ratio * self.step**h
        return HurstEstimate(h, error, h, scale, "Markov likelihood", diagnostic, curve, noise)

    def _width(self) -> int:
        """Size of the state: the processes, their slopes, the level."""
        return 2 * self.model.K + 1

    def _prior(self, hurst: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and covariance of the state at the first instant."""
        num, size = self.model.K, self._width()
        covariance = torch.zeros(size, size, dtype=torch.float64)
        covariance[num : 2 * num, num : 2 * num] = slope_covariance(self.model.rates)
        batch = covariance.expand(len(hurst), -1, -1).clone()
        batch[:, -1, -1] = _LEVEL * self.model.T ** (2 * hurst)
        return hurst.new_zeros(len(hurst), size), batch

    def _move(self, mean: Tensor, covariance: Tensor, keep: Tensor, lose: Tensor, added: Tensor) -> None:
        """Mean and covariance after a step, in place: its matrix is diagonal in blocks."""
        num = self.model.K
        z, d = slice(0, num), slice(num, 2 * num)
        mean[:, z] = keep * mean[:, z] - lose * mean[:, d]
        covariance[:, z] = keep[:, None] * covariance[:, z] - lose[:, None] * covariance[:, d]
        covariance[:, :, z] = keep * covariance[:, :, z] - lose * covariance[:, :, d]
        covariance[:, z, z] += added

    def _moves(self) -> tuple[list[tuple[Tensor, Tensor, Tensor]], list[int]]:
        """Decays and noise of the different steps, and which step has which."""
        different, which = torch.unique(self.times.diff(), return_inverse=True)
        keep, lose = decays(self.model.rates, different)
        added = noise_covariance(self.model.rates, different)
        return list(zip(keep, lose, added, strict=True)), which.tolist()
