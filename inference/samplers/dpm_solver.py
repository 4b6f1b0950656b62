r"""DPM-Solver: exponential integrators in the logarithm of the signal-to-noise ratio.

With signal a and deviation :math:`\sigma` of the noise (beta and alpha of a one-sided interpolant) and
:math:`\lambda = \log(a / \sigma)`, the probability flow is, for the predicted target and the predicted noise,

.. math::

    x_t &= \frac{\sigma_t}{\sigma_s} x_s + a_t \int_{\lambda_s}^{\lambda_t}
           e^{-(\lambda_t - \lambda)}\, \hat x_1\, \mathrm d\lambda, \\
    x_t &= \frac{a_t}{a_s} x_s - \sigma_t \int_{\lambda_s}^{\lambda_t}
           e^{\lambda_t - \lambda}\, \hat z\, \mathrm d\lambda .

Both are the exponential Adams or Runge--Kutta method for the linear part :math:`\mp 1`: with
:math:`\varphi_k(y) = \int_0^1 e^{(1-\theta) y}\, \theta^{k-1} / (k-1)!\, \mathrm d\theta` and
:math:`y = \mp h`, a step is :math:`r\, x_s + c\, h\, (\varphi_1 m + \varphi_2 h m' + \varphi_3 h^2 m'')` with
the derivatives of the polynomial through the last predictions.

The third-order multistep method as published takes half the second derivative of that polynomial and is of
order 2; ``legacy`` reproduces it.

References:
    Lu, Zhou, Bao, Chen, Li & Zhu (2022), DPM-Solver, section 3. arXiv:2206.00927
    Lu, Zhou, Bao, Chen, Li & Zhu (2022), DPM-Solver++, section 4. arXiv:2211.01095
    Hochbruck & Ostermann (2010), Exponential integrators, sections 2.2 and 2.5.
    doi:10.1017/S0962492910000048
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from inference.interpolants.interpolant import Kind
from inference.interpolants.prediction import Prediction
from inference.samplers.interface import check_times, coordinates, one_sided_schedule, wiener_normals
from sde.noise import NoiseStream

__all__ = ["DPMSolver", "StochasticDPMSolver", "ddim_step"]

_SERIES = 0.1  # below this the functions phi lose digits, and a series of 10 terms has an error of 1e-17
_TERMS = 10


class Node(NamedTuple):
    """The schedule at a time, each 0-d, or ``(n, 1, ...)`` where each sample has its own."""

    time: Tensor
    signal: Tensor
    deviation: Tensor
    log_snr: Tensor


def nodes(prediction: Prediction, times: Tensor, sampler: str) -> list[Node]:
    """The schedule at each time, in double precision."""
    check_times(times)
    times = times.double().cpu()
    parts = (times, *coordinates(one_sided_schedule(prediction, sampler), times))
    return [Node(*(part[k] for part in parts)) for k in range(len(times))]


def ddim_step(source: Node, end: Node, x: Tensor, target: Tensor) -> Tensor:
    """One step with a constant target, which is finite at both ends of time but not from the target."""
    ratio = end.deviation / source.deviation
    return ratio.to(x) * x + (end.signal - ratio * source.signal).to(x) * target


@dataclass(frozen=True, slots=True)
class DPMSolver:
    """Sampling by DPM-Solver (from the noise) or DPM-Solver++ (from the target).

    Steps that begin or end where the signal-to-noise ratio is 0 or infinite are of order 1, which is exact at
    the target.

    Attributes:
        order: 1, 2 or 3; order 1 is DDIM.
        form: The prediction that is held constant or interpolated: ``Kind.TARGET`` or ``Kind.NOISE``.
        multistep: Take past predictions and one evaluation for a step, with the first steps of lower order;
            else ``order`` evaluations within each step.
        legacy: The published third-order multistep method, which is of order 2.

    Raises:
        ValueError: If order or form is another.

    Example:
        >>> from inference.interpolants import OneSided
        >>> path = Prediction(OneSided(), {Kind.TARGET: lambda t, x: torch.ones_like(x)})
        >>> times, noise = torch.linspace(0, 1, 5), NoiseStream(seed=0, start=0, stop=3)
        >>> DPMSolver(3)(path, torch.zeros(3, 1), times, noise).flatten()
        tensor([1., 1., 1.])
    """

    order: int = 2
    form: Kind = Kind.TARGET
    multistep: bool = True
    legacy: bool = False

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3):
            raise ValueError(f"`order` must be 1, 2 or 3; got {self.order}.")
        if self.form not in (Kind.TARGET, Kind.NOISE):
            raise ValueError(f"`form` must be Kind.TARGET or Kind.NOISE; got {self.form}.")

    def __call__(self, prediction: Prediction, initial: Tensor, times: Tensor, noise: NoiseStream) -> Tensor:
        """Points at ``times[-1]`` from those at ``times[0]``; arguments as :class:`Sampler`.

        Raises:
            ValueError: If the interpolant is not one-sided or ``times`` begin at 1.
        """
        grid = nodes(prediction, times, "DPMSolver")
        _check_start(grid)
        x, past = initial, []
        for source, end in pairwise(grid):
            if not bool((end.log_snr - source.log_snr).isfinite()):
                x, past = ddim_step(source, end, x, predict(prediction, Kind.TARGET, source, x)), []
            elif self.multistep:
                value = predict(prediction, self.form, source, x)
                past = [(source.log_snr, value), *past[: self.order - 1]]
                x = self._multistep(source, end, x, past)
            else:
                x = self._singlestep(prediction, source, end, x)
        return x

    def _multistep(self, source: Node, end: Node, x: Tensor, past: list[tuple[Tensor, Tensor]]) -> Tensor:
        """A step from the predictions at this and earlier nodes, latest first."""
        h = end.log_snr - source.log_snr
        gaps = [now[0] - earlier[0] for now, earlier in pairwise(past)]
        slopes = [
            (now[1] - earlier[1]) / gap.to(x)
            for (now, earlier), gap in zip(pairwise(past), gaps, strict=True)
        ]
        derivatives = [past[0][1], *slopes[:1]]
        if len(slopes) == 2:
            second = 2 * (slopes[0] - slopes[1]) / (gaps[0] + gaps[1]).to(x)
            derivatives = [past[0][1], slopes[0] + 0.5 * gaps[0].to(x) * second]
            derivatives.append(0.5 * second if self.legacy else second)
        return self.advance(source, end, x, [d * (h**k).to(x) for k, d in enumerate(derivatives)])

    def _singlestep(self, prediction: Prediction, source: Node, end: Node, x: Tensor) -> Tensor:
        """A step with its own stages: at one half, or at one and two thirds of it."""
        value = predict(prediction, self.form, source, x)
        if self.order == 1:
            return self.advance(source, end, x, [value])
        first = between(prediction, source, end, 1 / self.order)
        change = predict(prediction, self.form, first, self.advance(source, first, x, [value])) - value
        if self.order == 2:
            return self.advance(source, end, x, [value + change])
        second = between(prediction, source, end, 2 / 3)
        there = self.advance(source, second, x, [value, 2 * change])  # two thirds over one third
        change = predict(prediction, self.form, second, there) - value
        return self.advance(source, end, x, [value, 1.5 * change])

    def advance(self, source: Node, end: Node, x: Tensor, taylor: list[Tensor]) -> Tensor:
        """The exact step for a prediction with the derivatives ``taylor``, in units of the step."""
        h, data = end.log_snr - source.log_snr, self.form is Kind.TARGET
        ratio = end.deviation / source.deviation if data else end.signal / source.signal
        scale = h * (end.signal if data else -end.deviation)
        weights = [scale * _phi(k + 1, -h if data else h) for k in range(len(taylor))]
        return ratio.to(x) * x + sum(w.to(x) * d for w, d in zip(weights, taylor, strict=True))


@dataclass(frozen=True, slots=True)
class StochasticDPMSolver:
    r"""Multistep DPM-Solver++ for the diffusion whose noise is that of the reversed process.

    .. math:: x_t = \frac{\sigma_t}{\sigma_s} e^{-h} x_s + a_t (1 - e^{-2h}) \hat x
              + \sigma_t \sqrt{1 - e^{-2h}}\, \xi

    with the target at the middle of the step extrapolated from the last two predictions. Forward only.

    Attributes:
        order: 1 or 2: of the error that is left without noise.

    Raises:
        ValueError: If the order is another.

    References:
        Lu, Zhou, Bao, Chen, Li & Zhu (2022), DPM-Solver++, section 5. arXiv:2211.01095
    """

    order: int = 2

    def __post_init__(self) -> None:
        if self.order not in (1, 2):
            raise ValueError(f"`order` must be 1 or 2; got {self.order}.")

    def __call__(self, prediction: Prediction, initial: Tensor, times: Tensor, noise: NoiseStream) -> Tensor:
        """Points at ``times[-1]`` from those at ``times[0]``; arguments as :class:`Sampler`.

        Raises:
            ValueError: If the interpolant is not one-sided or ``times`` decrease.
        """
        grid = nodes(prediction, times, "StochasticDPMSolver")
        if not check_times(times):
            raise ValueError("`times` must increase for StochasticDPMSolver; got decreasing ones.")
        x, last, last_gap = initial, None, None
        for step, (source, end) in enumerate(pairwise(grid)):
            value, h = predict(prediction, Kind.TARGET, source, x), end.log_snr - source.log_snr
            middle = value
            finite = bool(h.isfinite())
            if self.order == 2 and finite and last is not None and last_gap is not None:
                middle = value + (0.5 * h / last_gap).to(x) * (value - last)
            lost = -torch.expm1(-2 * h)
            xi = wiener_normals(noise, step, x)
            kept = (end.deviation / source.deviation) * torch.exp(-h)
            x = kept.to(x) * x + (end.signal * lost).to(x) * middle + (end.deviation * lost.sqrt()).to(x) * xi
            last, last_gap = (value, h) if finite else (None, None)
        return x


def predict(prediction: Prediction, kind: Kind, node: Node, x: Tensor) -> Tensor:
    """A field at a node."""
    return prediction.combine({kind: 1.0}, node.time.to(x), x)


def between(prediction: Prediction, source: Node, end: Node, share: float) -> Node:
    """The node at a share of the step in the log signal-to-noise ratio."""
    schedule = one_sided_schedule(prediction, "DPMSolver")
    log_snr = source.log_snr + share * (end.log_snr - source.log_snr)
    time = schedule.time(log_snr)
    deviation, signal = schedule.coefficients(time)
    return Node(time, signal, deviation, log_snr)


def _check_start(grid: list[Node]) -> None:
    """Refuse to leave the target: without noise there is no way to tell where a point came from."""
    if not bool(grid[0].deviation > 0):
        raise ValueError(f"`times` must begin below 1; got {float(grid[0].time)}.")


def _phi(k: int, y: Tensor) -> Tensor:
    """The function phi of exponential integrators, of order ``k`` from 1 to 3, elementwise."""
    small = y.abs() < _SERIES
    near, far = torch.where(small, y, 0.0), torch.where(small, 1.0, y)
    series, term = torch.zeros_like(y), torch.ones_like(y) / math.factorial(k)
    for j in range(_TERMS):
        series, term = series + term, term * near / (k + 1 + j)
    value = torch.expm1(far) / far
    for j in range(1, k):
        value = (value - 1 / math.factorial(j)) / far
    return torch.where(small, series, value)
