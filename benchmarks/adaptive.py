"""Work and precision of adaptive steps beside fixed steps, on the same paths.

Work is the number of steps tried on a path, each of the same cost. The reference is the fixed scheme on the
same trees with much smaller steps, which both kinds of steps approach. Each tolerance is compared with the
number of fixed steps that reaches its error, interpolated between powers of two.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.check import Figure, Section, at_most, main, reported
from sde import SDE, BrownianTree, Calculus, Control, NoiseStream, NoiseStructure, solve, solve_adaptive
from sde.solvers import EmbeddedSolver, ShARK, SPaRK

__all__ = ["SECTIONS"]

_F64 = torch.float64
_PARTS = 64


@dataclass(frozen=True, slots=True)
class Problem:
    """An equation whose time scales differ along the path.

    Attributes:
        sde: The equation.
        initial: Initial state of every sample.
        stop: End of the interval, which starts at 0.
        solver: Of both kinds of steps.
        levels: Fixed steps ``stop * 2**-level``.
        reference: Level of the reference.
        tolerances: Of the adaptive steps.
    """

    sde: SDE
    initial: tuple[float, ...]
    stop: float
    solver: EmbeddedSolver
    levels: range
    reference: int
    tolerances: tuple[float, ...]


def _relaxation(t: Tensor, x: Tensor) -> Tensor:
    """Van der Pol's oscillator in Lienard's form: jumps of duration 1/200 between slow branches."""
    v, w = x.unbind(1)
    return torch.stack((200 * (v - v**3 / 3 - w), v), 1)


STIFF = Problem(
    SDE(
        _relaxation,
        lambda t, x: torch.tensor([[0.0, 0.2]], dtype=x.dtype).expand_as(x),
        NoiseStructure.ADDITIVE,
    ),
    (-2.0, 0.0),
    4.0,
    ShARK(),
    range(9, 16),
    17,
    (3e-2, 1e-2, 3e-3, 1e-3),
)


def _burst(t: Tensor) -> Tensor:
    """A rate that rises from 1 to 300 during a twentieth of the interval."""
    return 1 + 300 * torch.exp(-(((t - 0.4) / 0.03) ** 2))


MULTI_SCALE = Problem(
    SDE(
        lambda t, x: _burst(t) * (1 - x),
        lambda t, x: 0.1 * _burst(t).sqrt() * x.sin(),
        calculus=Calculus.STRATONOVICH,
    ),
    (0.0,),
    1.0,
    SPaRK(),
    range(7, 14),
    16,
    (3e-2, 1e-2, 3e-3, 1e-3),
)


def stiff(smoke: bool) -> Iterator[Figure]:
    """A relaxation oscillator: two time scales, when depends on the path."""
    yield from _figures("stiff", STIFF, smoke)


def multi_scale(smoke: bool) -> Iterator[Figure]:
    """A burst of fast dynamics and strong noise in a slow equation."""
    yield from _figures("multi-scale", MULTI_SCALE, smoke)


def _figures(name: str, problem: Problem, smoke: bool) -> Iterator[Figure]:
    """Errors and work of both kinds of steps."""
    n = 50 if smoke else 200
    tree = BrownianTree(NoiseStream(5, 0, n), 0.0, problem.stop)
    truth = _fixed(problem, tree, problem.reference - (2 if smoke else 0))
    errors = {}
    for level in problem.levels:
        errors[level] = _rms(_fixed(problem, tree, level) - truth)
        yield reported(f"{name}: error of {2**level} fixed steps", errors[level])
    for tolerance in problem.tolerances:
        found = solve_adaptive(
            problem.sde,
            _start(problem, n),
            _times(problem),
            tree,
            solver=problem.solver,
            control=Control(rtol=tolerance, atol=tolerance),
        )
        error, tried = _rms(found.states - truth), (found.accepted + found.rejected).double()
        equal = _steps_for(errors, error)
        detail = f"error {error:.3g}, {tried.mean():.0f} tried, {found.rejected.double().mean():.0f} rejected"
        label = f"{name}: steps at tolerance {tolerance:g} over fixed steps"
        yield at_most(label, float(tried.mean()) / equal, 0.75, detail)


def _start(problem: Problem, n: int) -> Tensor:
    """Initial states."""
    return torch.tensor(problem.initial, dtype=_F64).expand(n, -1)


def _times(problem: Problem) -> Tensor:
    """Instants at which errors are looked at."""
    return torch.linspace(0, problem.stop, _PARTS + 1, dtype=_F64)


def _fixed(problem: Problem, tree: BrownianTree, level: int) -> Tensor:
    """States at the instants with ``2**level`` equal steps."""
    start = _start(problem, len(tree.noise))
    with torch.no_grad():
        return solve(
            problem.sde,
            start,
            _times(problem),
            tree,
            solver=problem.solver,
            substeps=2**level // _PARTS,
            allow_diverged=True,
        )


def _rms(gap: Tensor) -> float:
    """Root mean square over paths and instants of a distance; infinite where a path diverged."""
    error = float(gap.square().sum(2).mean().sqrt())
    return error if math.isfinite(error) else math.inf


def _steps_for(errors: dict[int, float], error: float) -> float:
    """Number of fixed steps with an error: on the line through the points around it in logarithms."""
    levels = sorted(errors)
    above = [k for k in levels if errors[k] > error]
    low = min(max(above, default=levels[0]), levels[-2])
    a, b = errors[low], errors[low + 1]
    if not math.isfinite(a):  # no fixed step of this size gets through: the next one is the cheapest
        return 2.0 ** (low + 1)
    return 2 ** (low + math.log(a / error) / math.log(a / b))


SECTIONS: list[Section] = [stiff, multi_scale]

if __name__ == "__main__":
    raise SystemExit(main("adaptive", SECTIONS))
