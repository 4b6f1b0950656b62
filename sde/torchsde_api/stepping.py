"""Steps of equal length and steps by error control, and the states between them."""

import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sde.equation import SDE
from sde.noise.increments import Increment
from sde.solvers.interface import Carry, Solver
from sde.torchsde_api.noise import Brownian, QueriedIncrements, joined

__all__ = ["Accepted", "ErrorControl", "Output", "accepted_steps", "locate", "sample", "uniform_edges"]

_SMALLEST_ERROR = 1e-7


def uniform_edges(times: Tensor, dt: float) -> tuple[float, ...]:
    """Ends of steps of length ``dt`` from the first to the last instant; the last step may be shorter.

    Instants are ``t0 + k dt`` with integers ``k``, so no rounding adds up, and what rounding of the instants
    leaves over is no step.

    Raises:
        ValueError: If ``dt`` is not positive.
    """
    if not 0 < dt < math.inf:
        raise ValueError(f"`dt` must be positive; got {dt}.")
    start, stop = float(times[0]), float(times[-1])
    count = max(1, math.ceil((stop - start) / dt - _slack(times) / dt))
    return (*(start + k * dt for k in range(count)), stop)


def _slack(times: Tensor) -> float:
    """What the rounding of instants may amount to."""
    return 4 * torch.finfo(times.dtype).eps * float(times.abs().max())


class Output(NamedTuple):
    """A state between two ends of steps."""

    left: int  #: number of the end before it
    right: int  #: and of the end after it, or the same
    share: float  #: of the state at the right one


def locate(times: Tensor, edges: Sequence[float]) -> list[Output]:
    """Where the instants lie among the ends of steps; an end that is met to rounding is taken."""
    slack, outputs, k = _slack(times), [], 0
    for time in times.tolist():
        while edges[k] < time - slack and k + 1 < len(edges):
            k += 1
        if k == 0 or edges[k] - time <= slack:
            outputs.append(Output(k, k, 1.0))
        else:
            outputs.append(Output(k - 1, k, (time - edges[k - 1]) / (edges[k] - edges[k - 1])))
    return outputs


@dataclass(frozen=True, slots=True)
class ErrorControl:
    """Step sizes from the difference of a step and its two halves, by a proportional-integral rule.

    One step size is shared by the batch; the norm of the error is its root mean square.

    Attributes:
        rtol: Relative tolerance.
        atol: Absolute tolerance.
        smallest: Steps of this size are accepted whatever their error.
    """

    rtol: float
    atol: float
    smallest: float

    def error(self, whole: Tensor, halves: Tensor) -> float:
        """The scaled difference; at most 1 is good.

        Raises:
            RuntimeError: If it is not a number.
        """
        scale = (self.rtol * torch.maximum(whole.abs(), halves.abs()) + self.atol).clamp_min(_SMALLEST_ERROR)
        error = float(((whole - halves) / scale).square().mean().sqrt())
        if math.isnan(error):
            raise RuntimeError("The error estimate is not a number. Raise the tolerances or tame the drift.")
        return max(error, _SMALLEST_ERROR)

    @staticmethod
    def resize(error: float, previous: float | None) -> tuple[float, float | None]:
        """The factor for the step size, and the ratio to remember.

        A rejected step shrinks by at most 5; an accepted one grows by at most 1.4, with a damping by the
        ratio of the step before.
        """
        ratio = 0.9 / error
        if error > 1:
            return min(1.4, max(0.2, ratio ** (1 / 1.5))), ratio if previous is None else previous
        damping = 1.0 if previous is None else (ratio / previous) ** 0.13
        return min(1.4, max(1.0, ratio ** (1 / 4.5) * damping)), ratio


class Accepted(NamedTuple):
    """A step that was accepted, taken as two halves."""

    start: float
    middle: float
    stop: float
    carry: Carry


def accepted_steps(
    sde: SDE, solver: Solver, bm: Brownian, carry: Carry, times: Tensor, dt: float, control: ErrorControl
) -> Iterator[Accepted]:
    """The accepted steps from the first to the last instant.

    Args:
        sde: The equation.
        solver: The scheme.
        bm: The Brownian motion.
        carry: What the scheme carries at the first instant.
        times: The instants.
        dt: First step.
        control: The rule.

    Yields:
        The steps.
    """
    now, stop, slack = float(times[0]), float(times[-1]), _slack(times)
    size, previous, like = dt, None, times.new_zeros(())

    def step(carry: Carry, left: float, right: float, increment: Increment) -> Carry:
        size = solver.read(carry).new_tensor(right - left)
        return solver.step(sde, like + left, carry, size, increment)

    while now < stop:
        after = now + size if now + size < stop - slack else stop  # rounding leaves no last step
        middle = 0.5 * (now + after)
        first, second = QueriedIncrements(bm, (now, middle, after), like).chunk(0, 2, solver.areas).steps()
        with torch.no_grad():
            whole = solver.read(step(carry, now, after, joined(first, second)))
        halves = step(step(carry, now, middle, first), middle, after, second)
        error = control.error(whole, solver.read(halves).detach())
        factor, previous = control.resize(error, previous)
        size = size * factor
        if size < control.smallest:
            warnings.warn("The smallest allowed step of the adaptive solve was reached.", stacklevel=2)
            size, previous = control.smallest, None
        if error <= 1 or size <= control.smallest:
            yield Accepted(now, middle, after, halves)
            now, carry = after, halves


def sample(times: Tensor, initial: Tensor, steps: Iterable[tuple[float, float, Tensor]]) -> Tensor:
    """States at the instants, ``(T, n, d)``, from those at the ends of steps, linear in between.

    Args:
        times: The instants.
        initial: State at the first.
        steps: Start and end of each step, and the state at its end.
    """
    slack, wanted, states, left = _slack(times), times.tolist(), [initial], initial
    for start, stop, state in steps:
        while len(states) < len(wanted) and wanted[len(states)] <= stop + slack:
            share = (wanted[len(states)] - start) / (stop - start)
            at_end = stop - wanted[len(states)] <= slack
            states.append(state if at_end else torch.lerp(left, state, share))
        left = state
    return torch.stack(states)
