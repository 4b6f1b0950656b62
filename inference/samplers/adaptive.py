r"""Samplers that choose their steps: DPM-Solver with a pair, and the probability flow with dense output.

Every sample has steps of its own, so that its point does not depend on its neighbours. A step is accepted
where the root mean square over the components of the difference of the pair, in units of
``max(atol, rtol * max(|x_k|, |x_{k+1}|))``, is at most 1.

References:
    Lu, Zhou, Bao, Chen, Li & Zhu (2022), DPM-Solver, appendix C. arXiv:2206.00927
    Dormand & Prince (1980), A family of embedded Runge--Kutta formulae. doi:10.1016/0771-050X(80)90013-3
    Shampine (1986), Some practical Runge--Kutta formulas. doi:10.1090/S0025-5718-1986-0815836-3
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from inference.interpolants.interpolant import Kind
from inference.interpolants.prediction import Prediction
from inference.samplers.dpm_solver import DPMSolver, Node, between, predict
from inference.samplers.interface import check_times, one_sided_schedule
from sde.noise import NoiseStream

__all__ = ["AdaptiveDPMSolver", "AdaptiveFlow", "AdaptivePoints"]

_SAFETY, _SHRINK, _GROW = 0.9, 0.2, 5.0


class AdaptivePoints(NamedTuple):
    """What an adaptive sampler returns."""

    points: Tensor  #: ``(n, *shape)`` at the end, or ``(n, T, *shape)`` at all times
    accepted: Tensor  #: steps of each sample, ``(n,)``
    rejected: Tensor  #: steps that were tried in vain, ``(n,)``
    evaluations: int  #: of the prediction, each for all samples that were still on their way


@dataclass(frozen=True, slots=True)
class AdaptiveDPMSolver:
    """Sampling by single-step DPM-Solver with steps in the log signal-to-noise ratio chosen by tolerance.

    The pair has orders ``order - 1`` and ``order`` and shares its ``order`` evaluations; the point of the
    higher order is kept. Only the first and the last of ``times`` are read, where the ratio must be finite.

    Attributes:
        order: 2 or 3: of the higher method.
        form: ``Kind.TARGET`` or ``Kind.NOISE``.
        atol: Absolute tolerance, at least 0; the default suits data of unit size.
        rtol: Relative tolerance, at least 0; not both 0.
        together: One step for the whole batch, by its largest error, as published; else one for each sample.
        max_tries: Steps tried on a sample, at most.

    Raises:
        ValueError: If order, form or tolerances are out of range.

    Example:
        >>> from inference.interpolants import OneSided
        >>> path = Prediction(OneSided(), {Kind.TARGET: lambda t, x: torch.ones_like(x)})
        >>> times, noise = torch.tensor([0.1, 0.9]), NoiseStream(seed=0, start=0, stop=3)
        >>> AdaptiveDPMSolver()(path, torch.zeros(3, 1), times, noise).flatten().round(decimals=4)
        tensor([0.8889, 0.8889, 0.8889])

    References:
        Lu, Zhou, Bao, Chen, Li & Zhu (2022), DPM-Solver, algorithms 3 and 4. arXiv:2206.00927
    """

    order: int = 3
    form: Kind = Kind.TARGET
    atol: float = 0.0078
    rtol: float = 0.05
    together: bool = False
    max_tries: int = 10_000

    def __post_init__(self) -> None:
        if self.order not in (2, 3):
            raise ValueError(f"`order` must be 2 or 3; got {self.order}.")
        DPMSolver(self.order, self.form)  # which checks the form
        _check_tolerances(self.atol, self.rtol)

    def __call__(self, prediction: Prediction, initial: Tensor, times: Tensor, noise: NoiseStream) -> Tensor:
        """Points at ``times[-1]`` from those at ``times[0]``; arguments as :class:`Sampler`."""
        return self.run(prediction, initial, times).points

    def run(self, prediction: Prediction, initial: Tensor, times: Tensor) -> AdaptivePoints:
        """Points at ``times[-1]`` with the numbers of steps and evaluations.

        Raises:
            ValueError: If the interpolant is not one-sided or the ratio is infinite at an end.
            RuntimeError: If a sample takes too many steps.
        """
        check_times(times)
        schedule = one_sided_schedule(prediction, "AdaptiveDPMSolver")
        ends = schedule.log_snr(times[[0, -1]].double().to(initial.device))
        if not bool(ends.isfinite().all()):
            raise ValueError(
                "`times` must begin and end where the signal-to-noise ratio is finite; got "
                f"{float(times[0]):g} and {float(times[-1]):g}. Stop a little earlier."
            )

        def attempt(place: Tensor, step: Tensor, x: Tensor) -> _Try:
            source, end = (_node(prediction, log_snr) for log_snr in (place, place + step))
            low, high = self._pair(prediction, source, end, x)
            return _Try(high, high - low, torch.empty(0))

        walk = _Walk(attempt, self.order, self.order, self.atol, self.rtol, together=self.together)
        return walk.run(initial, ends[0], ends[1], 0.05 / float((ends[1] - ends[0]).abs()), self.max_tries)

    def _pair(self, prediction: Prediction, source: Node, end: Node, x: Tensor) -> tuple[Tensor, Tensor]:
        """The points of the lower and of the higher order."""
        solver = DPMSolver(self.order, self.form, multistep=False)
        value = predict(prediction, self.form, source, x)
        share = 1 / self.order
        first = between(prediction, source, end, share)
        change = predict(prediction, self.form, first, solver.advance(source, first, x, [value])) - value
        if self.order == 2:
            return solver.advance(source, end, x, [value]), solver.advance(source, end, x, [value + change])
        second = between(prediction, source, end, 2 / 3)
        there = solver.advance(source, second, x, [value, 2 * change])
        low = solver.advance(source, end, x, [value + 1.5 * change])  # over twice the share of the stage
        change = predict(prediction, self.form, second, there) - value
        return low, solver.advance(source, end, x, [value, 1.5 * change])


@dataclass(frozen=True, slots=True)
class AdaptiveFlow:
    """Sampling by the probability flow with the pair of Dormand and Prince, of order 5, and dense output.

    As a sampler it gives the points at the last of ``times``; :meth:`trajectory` gives them at all, by an
    interpolant of order 4 of the steps, which do not depend on where the points are wanted.

    Attributes:
        atol: Absolute tolerance, at least 0.
        rtol: Relative tolerance, at least 0; not both 0.
        max_tries: Steps tried on a sample, at most.

    Raises:
        ValueError: If the tolerances are out of range.

    Example:
        >>> from inference.interpolants import OneSided
        >>> turn = Prediction(OneSided(), {Kind.VELOCITY: lambda t, x: 2 * t + 0 * x})
        >>> times = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
        >>> AdaptiveFlow().trajectory(turn, torch.zeros(1, 1).double(), times).points.flatten()
        tensor([0.0000, 0.2500, 1.0000], dtype=torch.float64)

    References:
        Hairer, Norsett & Wanner (1993), Solving ordinary differential equations I, sections II.4 to II.6.
        doi:10.1007/978-3-540-78862-1
    """

    atol: float = 1e-6
    rtol: float = 1e-6
    max_tries: int = 10_000

    def __post_init__(self) -> None:
        _check_tolerances(self.atol, self.rtol)

    def __call__(self, prediction: Prediction, initial: Tensor, times: Tensor, noise: NoiseStream) -> Tensor:
        """Points at ``times[-1]`` from those at ``times[0]``; arguments as :class:`Sampler`."""
        return self.trajectory(prediction, initial, times[[0, -1]]).points[:, -1]

    def trajectory(self, prediction: Prediction, initial: Tensor, times: Tensor) -> AdaptivePoints:
        """Points at all ``times``, which increase or decrease within [0, 1], shape ``(n, T, *shape)``.

        Raises:
            ValueError: If the times are no grid.
            RuntimeError: If a sample takes too many steps.
        """
        check_times(times)
        velocity = prediction.to(Kind.VELOCITY)

        def attempt(place: Tensor, step: Tensor, x: Tensor) -> _Try:
            slopes: list[Tensor] = []
            for node, row in zip(_NODES, _MATRIX, strict=True):
                moved = sum((w * k for w, k in zip(row, slopes, strict=True) if w), torch.zeros_like(x))
                slopes.append(velocity((place + node * step).to(x), x + step.to(x) * moved))
            stacked = torch.stack(slopes, -1)
            error = step.to(x) * (stacked @ x.new_tensor(_ERROR))
            high = x + step.to(x) * (stacked[..., :-1] @ x.new_tensor(_MATRIX[-1]))
            return _Try(high, error, step.to(x)[..., None] * (stacked @ x.new_tensor(_DENSE)))

        walk = _Walk(attempt, len(_NODES), 5, self.atol, self.rtol, together=False)
        instants = times.double().to(initial.device)
        return walk.run(initial, instants[0], instants[-1], 0.01, self.max_tries, instants)


class _Try(NamedTuple):
    """A step: its end, the estimate of its error and the powers of the dense output, ``(n, *shape, 4)``."""

    end: Tensor
    error: Tensor
    powers: Tensor


@dataclass(frozen=True, slots=True)
class _Walk:
    """Samples on their way from one place to another, each with steps of its own."""

    attempt: Callable[[Tensor, Tensor, Tensor], _Try]
    stages: int
    order: int
    atol: float
    rtol: float
    together: bool

    def run(
        self,
        x: Tensor,
        start: Tensor,
        stop: Tensor,
        share: float,
        max_tries: int,
        instants: Tensor | None = None,
    ) -> AdaptivePoints:
        """Walk to the end, trying first a share of the way."""
        ones = (len(x),) + (1,) * (x.dim() - 1)
        place, done = start.expand(ones).clone(), torch.zeros(len(x), dtype=torch.bool, device=x.device)
        step = (share * (stop - start)).expand(ones).clone()
        accepted, rejected = (torch.zeros(len(x), dtype=torch.int64, device=x.device) for _ in range(2))
        path = None if instants is None else x[:, None].repeat_interleave(len(instants), 1)
        evaluations = 0
        for _ in range(max_tries):
            if bool(done.all()):
                break
            rows = (~done).nonzero()[:, 0]  # the others have arrived
            here, old = place[rows], x[rows]
            last = (stop - here).abs() <= step[rows].abs() * (1 + 1e-9)
            size = torch.where(last, stop - here, step[rows])
            tried = self.attempt(here, size, old)
            evaluations += self.stages
            error = self._error(tried, old)
            good = (error <= 1).flatten()
            if path is not None and instants is not None:
                filled = _fill(path[rows], old, tried.powers, (instants - here.flatten(1)) / size.flatten(1))
                path = path.index_copy(0, rows[good], filled[good])
            x = x.index_copy(0, rows[good], tried.end[good])
            place[rows[good]] = torch.where(last, stop, here + size)[good]
            done[rows] = good & last.flatten()
            accepted[rows] += good
            rejected[rows] += ~good
            factor = (_SAFETY * error.clamp(min=1e-10) ** (-1 / self.order)).clamp(_SHRINK, _GROW)
            step[rows] = size * factor.double()
        else:
            row = int((~done).nonzero()[0])
            raise RuntimeError(
                f"Sample {row} took {max_tries} steps and stands at {float(place[row].flatten()[0]):g}. "
                "Take larger tolerances or more steps."
            )
        return AdaptivePoints(x if path is None else path, accepted, rejected, evaluations)

    def _error(self, tried: _Try, old: Tensor) -> Tensor:
        """Error in units of the tolerance, shape ``(n, 1, ...)``; infinite where it is not finite."""
        scale = (self.rtol * torch.maximum(old.abs(), tried.end.abs())).clamp(min=self.atol).detach()
        error = (tried.error.detach() / scale.clamp(min=1e-300)).flatten(1).square().mean(1).sqrt()
        error = torch.where(error.isfinite(), error, torch.inf)
        if self.together:
            error = error.max().expand_as(error)
        return error.view(-1, *(1,) * (old.dim() - 1))


def _fill(path: Tensor, old: Tensor, powers: Tensor, share: Tensor) -> Tensor:
    """Put the dense output at the instants within a step, at its share ``(n, T)``, into the path."""
    inside = (share > 0) & (share <= 1 + 1e-9)
    share = torch.where(inside, share, 0.0).to(old)
    ones = (1,) * (old.dim() - 1)
    value = sum(
        (share.view(*share.shape, *ones) ** (k + 1) * powers[..., k][:, None] for k in range(4)), old[:, None]
    )
    return torch.where(inside.view(*inside.shape, *ones), value, path)


def _node(prediction: Prediction, log_snr: Tensor) -> Node:
    """The schedule where the log signal-to-noise ratio has given values."""
    schedule = one_sided_schedule(prediction, "AdaptiveDPMSolver")
    time = schedule.time(log_snr)
    deviation, signal = schedule.coefficients(time)
    return Node(time, signal, deviation, log_snr)


def _check_tolerances(atol: float, rtol: float) -> None:
    """Refuse tolerances that no step could meet."""
    if min(atol, rtol) < 0 or not 0 < atol + rtol < math.inf:
        raise ValueError(f"`rtol` and `atol` must be at least 0 and not both 0; got {rtol} and {atol}.")


_NODES = (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
_MATRIX = (
    (),
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)
_DENSE = (  # of each slope in the powers 1 to 4 of the share of a step
    (1.0, -8048581381 / 2820520608, 8663915743 / 2820520608, -12715105075 / 11282082432),
    (0.0, 0.0, 0.0, 0.0),
    (0.0, 131558114200 / 32700410799, -68118460800 / 10900136933, 87487479700 / 32700410799),
    (0.0, -1754552775 / 470086768, 14199869525 / 1410260304, -10690763975 / 1880347072),
    (0.0, 127303824393 / 49829197408, -318862633887 / 49829197408, 701980252875 / 199316789632),
    (0.0, -282668133 / 205662961, 2019193451 / 616988883, -1453857185 / 822651844),
    (0.0, 40617522 / 29380423, -110615467 / 29380423, 69997945 / 29380423),
)
