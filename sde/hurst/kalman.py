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
from dataclasses import dataclass

import torch
from torch import Tensor

from sde.hurst.estimate import Diagnostic, HurstEstimate, as_rows
from sde.hurst.profile import Profile, indices
from sde.noise.markov_fbm import MarkovFBM
from sde.noise.ou_transition import decays, noise_covariance, slope_covariance
from sde.shapes import check_shapes

__all__ = ["markov_likelihood"]

_WORST = 0.3  # certificate above which an index is not searched
_LEVEL = 1e6  # prior variance of the level, over that of the path at its end: it is not known
_RATIOS = (0.03, 0.08, 0.2, 0.5, 1.2, 3.0)  # noise over the size of an increment: where the search starts
_LEAST = 1e-3  # ratio below which there is no noise to speak of
_STENCIL = 1e-3
_STEPS = 40


def markov_likelihood(
    times: Tensor, values: Tensor, *, noise: bool = True, num_rates: int = 16
) -> HurstEstimate:
    r"""Hurst index, scale and measurement noise by maximum likelihood under the Markov approximation.

    Indices whose certificate exceeds 0.3 for the length and the steps of the data are not searched. The
    standard error is from the observed information, the other parameters being estimated; it is not to be
    trusted where the noise is estimated as zero.

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
    search = _Likelihood(model, instants, values - values[0], step, float(good[0]), float(good[-1]))
    return search.with_noise() if noise else search.without_noise()


@dataclass(frozen=True, slots=True, eq=False)
class _Likelihood:
    """The likelihood of data under the approximation, scale maximised over."""

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
                forward, added = moves[which[i - 1]]
                mean = mean @ forward.mT
                covariance = forward @ covariance @ forward.mT + added
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
        nodes = indices()
        log_sum, square_sum = self.at(nodes, torch.zeros_like(nodes))
        profile = Profile.of(log_sum, square_sum[None], len(self.values) - 1)
        h, error = (part[0] for part in profile.maximum(self.low, self.high))
        grid = torch.linspace(self.low, self.high, 81, dtype=torch.float64)
        seen = profile.log_likelihood(grid)[0]
        return self._estimate(h, h.new_zeros(()), error, grid, seen)

    def with_noise(self) -> HurstEstimate:
        """The estimate where values carry noise: a coarse grid, then Newton's method on differences."""
        ratios = torch.tensor(_RATIOS, dtype=torch.float64)
        points = torch.cartesian_prod(torch.linspace(self.low, self.high, 7).double(), ratios.log())
        start = points[self._values(points).argmax()]
        point, hessian = self._climb(start)
        # No information about the noise where there is none: the index is then alone.
        alone = bool(point[1] <= math.log(_LEAST) + 1e-9) or bool(torch.linalg.eigvalsh(hessian)[-1] >= 0)
        variance = -1 / hessian[0, 0] if alone else torch.linalg.inv(-hessian)[0, 0]
        error = variance.clamp(min=0).sqrt()
        grid = torch.linspace(self.low, self.high, 41, dtype=torch.float64)
        # Along the ridge: the noise that goes best with each index.
        slope = 0.0 if alone else float(-hessian[0, 1] / hessian[1, 1])
        ridge = (point[1] + slope * (grid - point[0])).clamp(min=math.log(_LEAST))
        seen = self._values(torch.stack((grid, ridge), 1))
        return self._estimate(point[0], point[1].exp(), error, grid, seen)

    def _climb(self, point: Tensor) -> tuple[Tensor, Tensor]:
        """Maximiser in (index, log ratio), and the second derivatives there."""
        floor = torch.tensor([self.low, math.log(_LEAST)], dtype=torch.float64)
        ceiling = torch.tensor([self.high, math.log(1e3)], dtype=torch.float64)
        reach = torch.tensor([0.1, 1.0], dtype=torch.float64)
        value, gradient, hessian = self._expansion(point)
        for _ in range(_STEPS):
            curved = hessian - torch.diag((hessian.abs().sum(1)).clamp(min=1e-6)) * 1e-6
            down = bool(torch.linalg.eigvalsh(curved)[-1] < 0)
            step = -torch.linalg.solve(curved, gradient) if down else gradient / gradient.abs().max() * reach
            step = step / (step.abs() / reach).max().clamp(min=1)
            trial = (point + step).clamp(floor, ceiling)
            found = self._expansion(trial)
            if found[0] < value - 1e-9:
                reach = reach / 4
                continue
            moved = float((trial - point).abs().max())
            point, (value, gradient, hessian) = trial, found
            if moved < 1e-5:
                break
        return point, hessian

    def _expansion(self, point: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Value, gradient and second derivatives by differences, nine filters at once."""
        offsets = torch.cartesian_prod(*(torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64),) * 2) * _STENCIL
        v = self._values(point + offsets).reshape(3, 3)
        gradient = torch.stack((v[2, 1] - v[0, 1], v[1, 2] - v[1, 0])) / (2 * _STENCIL)
        cross = (v[2, 2] - v[2, 0] - v[0, 2] + v[0, 0]) / 4
        own = (v[2, 1] + v[0, 1] - 2 * v[1, 1], v[1, 2] + v[1, 0] - 2 * v[1, 1])
        hessian = torch.stack((own[0], cross, cross, own[1])).reshape(2, 2) / _STENCIL**2
        return v[1, 1], gradient, hessian

    def _values(self, points: Tensor) -> Tensor:
        """Profile log-likelihood at points (index, log ratio), shape ``(B, 2)``."""
        log_sum, square_sum = self.at(points[:, 0], points[:, 1].exp())
        count = len(self.values) - 1
        return -0.5 * (log_sum + count * (square_sum / count).log())

    def _estimate(self, h: Tensor, ratio: Tensor, error: Tensor, grid: Tensor, seen: Tensor) -> HurstEstimate:
        """The estimate, its scale and noise, and the figure of its likelihood."""
        scale = (self.at(h[None], ratio[None])[1][0] / (len(self.values) - 1)).sqrt()
        parabola = torch.exp(-0.5 * ((grid - h) / error) ** 2)
        labels = ("Hurst index", "profile likelihood / maximum")
        diagnostic = Diagnostic(grid, (seen - seen.max()).exp(), parabola, labels, logarithmic=False)
        noise = scale * ratio * self.step**h
        return HurstEstimate(h, error, h, scale, "Markov likelihood", diagnostic, noise=noise)

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

    def _moves(self) -> tuple[list[tuple[Tensor, Tensor]], list[int]]:
        """Transition and noise of the different steps, and which step has which."""
        different, which = torch.unique(self.times.diff(), return_inverse=True)
        num, size = self.model.K, self._width()
        keep, lose = decays(self.model.rates, different)
        forward = torch.eye(size, dtype=torch.float64).expand(len(different), -1, -1).clone()
        forward[:, :num, :num] = torch.diag_embed(keep)
        forward[:, :num, num : 2 * num] = -torch.diag_embed(lose)
        added = torch.zeros_like(forward)
        added[:, :num, :num] = noise_covariance(self.model.rates, different)
        return list(zip(forward, added, strict=True)), which.tolist()
