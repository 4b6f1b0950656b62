"""Strong order and error constants of the solvers, on paths that all step sizes share.

Every solver runs with the same Wiener paths and areas at every step size, coarsened from one fine grid. The
reference is the solution as a function of the path where the problem has one, else the solver itself at an
eighth of the finest step. The slope of the root mean square error against the step is the strong order; its
standard error comes from the paths by the delta method.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.check import Figure, main, reported, within
from sde.calculus import to_ito, to_stratonovich
from sde.equation import SDE, Calculus, NoiseStructure
from sde.noise import NoiseStream, WienerIncrements
from sde.solve import solve
from sde.solvers import (
    SOSRA,
    SOSRI,
    SRA1,
    SRA2,
    SRA3,
    SRIW1,
    SRIW2,
    EulerHeun,
    EulerMaruyama,
    GeneralShARK,
    Heun,
    LogODE,
    Midpoint,
    Milstein,
    MilsteinLevy,
    MilsteinStratonovich,
    Ralston,
    ReversibleHeun,
    RungeKuttaMilstein,
    ShARK,
    ShiftedEuler,
    SlowRK,
    Solver,
    SPaRK,
)

__all__ = ["CASES", "CONSTANTS", "SECTIONS", "Case", "Problem", "Slope", "errors", "slope"]

LEVELS = (3, 4, 5, 6, 7)  # steps 2**-level
_REFERENCE = 10  # level of the reference where there is no exact solution


@dataclass(frozen=True, slots=True)
class Problem:
    """An equation on the unit interval.

    Attributes:
        name: As it is printed.
        sde: The equation.
        initial: Initial state of every sample.
        exact: Solution at time 1 from the path there, where it is known.
    """

    name: str
    sde: SDE
    initial: tuple[float, ...]
    exact: Callable[[Tensor], Tensor] | None = None

    def in_calculus(self, calculus: Calculus) -> SDE:
        """The equation in the calculus of a solver."""
        return to_ito(self.sde) if calculus is Calculus.ITO else to_stratonovich(self.sde)


ARCTAN = Problem(
    "arctan",
    SDE(lambda t, x: -x.sin() * x.cos() ** 3, lambda t, x: x.cos() ** 2),
    (1.0,),
    lambda w: (w + math.tan(1)).atan(),
)
ADDITIVE = Problem(
    "additive",
    SDE(
        lambda t, x: 1.2 / (1 + t).sqrt() - x / (2 * (1 + t)),
        lambda t, x: (0.6 / (1 + t).sqrt()).expand_as(x),
        NoiseStructure.ADDITIVE,
    ),
    (1.0,),
    lambda w: (1 + 1.2 * (1 + 0.5 * w)) / math.sqrt(2),
)
GEOMETRIC = Problem(
    "geometric",
    SDE(lambda t, x: 1.5 * x, lambda t, x: 0.6 * x),
    (0.5,),
    lambda w: 0.5 * torch.exp(1.5 - 0.18 + 0.6 * w),
)


def _rotations(t: Tensor, x: Tensor) -> Tensor:
    """Two commuting linear vector fields: growth and rotation, of sizes 1/2 and 1/3."""
    turned = torch.stack((-x[:, 1], x[:, 0]), 1)
    return torch.stack((0.5 * x, turned / 3), -1)


ROTATIONS = Problem(
    "rotations",
    SDE(lambda t, x: 0 * x, _rotations, NoiseStructure.COMMUTATIVE, Calculus.STRATONOVICH, noise_dim=2),
    (1.0, 0.0),
    lambda w: torch.exp(0.5 * w[:, :1]) * torch.stack(((w[:, 1] / 3).cos(), (w[:, 1] / 3).sin()), 1),
)
SINE = Problem(
    "sine",
    SDE(lambda t, x: x.sin(), lambda t, x: torch.ones_like(x), NoiseStructure.ADDITIVE),
    (0.5,),
)


def _separate(t: Tensor, x: Tensor) -> Tensor:
    """Two vector fields of one component each."""
    return torch.diag_embed(0.4 * torch.stack((x[:, 0].cos(), 1 + 0.5 * x[:, 1].sin()), 1))


COMMUTATIVE = Problem(
    "commutative",
    SDE(
        lambda t, x: torch.stack((x[:, 1].sin(), x[:, 0].cos() - x[:, 1]), 1),
        _separate,
        NoiseStructure.COMMUTATIVE,
        Calculus.STRATONOVICH,
        noise_dim=2,
    ),
    (0.3, 0.5),
)


def _twisted(t: Tensor, x: Tensor) -> Tensor:
    """Two vector fields that do not commute: a shear and a bounded twist."""
    one = torch.stack((torch.full_like(x[:, 0], 0.6), 0.5 * x[:, 0].sin()), 1)
    return torch.stack((one, torch.stack((0.5 * x[:, 1].cos(), torch.full_like(x[:, 0], 0.4)), 1)), -1)


GENERAL = Problem(
    "general",
    SDE(lambda t, x: -0.2 * x, _twisted, NoiseStructure.GENERAL, Calculus.STRATONOVICH, noise_dim=2),
    (0.3, 0.5),
)


@dataclass(frozen=True, slots=True)
class Slope:
    """A measured strong order.

    Attributes:
        value: Slope of log error against log step.
        error: Its standard error.
        constant: Root mean square error at the finest step.
    """

    value: float
    error: float
    constant: float


def errors(problem: Problem, solver: Solver, *, paths: int = 3000, seed: int = 8) -> Tensor:
    """Squared errors at time 1 for every step size, shape ``(levels, paths)``."""
    sde = problem.in_calculus(solver.calculus)
    dim, finest = len(problem.initial), LEVELS[-1] if problem.exact else _REFERENCE
    steps = torch.full((2**finest,), 2.0**-finest, dtype=torch.float64)
    channels = sde.channels((dim,))
    fine = WienerIncrements(NoiseStream(seed, 0, paths), steps, channels, dtype=torch.float64)
    initial = torch.tensor(problem.initial, dtype=torch.float64).expand(paths, -1)

    def end(level: int) -> Tensor:
        times = torch.linspace(0, 1, 2**level + 1, dtype=torch.float64)
        driving = fine.coarsen(2 ** (finest - level)) if level < finest else fine
        with torch.no_grad():
            return solve(sde, initial, times, driving, solver=solver)[:, -1]

    wiener = fine.coarsen(2**finest).chunk(0, 1).wiener[0]
    exact = problem.exact(wiener) if problem.exact else end(_REFERENCE)
    return torch.stack([(end(level) - exact).square().sum(1) for level in LEVELS])


def slope(squares: Tensor) -> Slope:
    """Slope of the logarithm of the root mean square error against that of the step."""
    logs = squares.mean(1).log2() / 2
    x = -torch.tensor(LEVELS, dtype=torch.float64)
    weights = (x - x.mean()) / (x - x.mean()).square().sum()
    influence = (weights / (2 * math.log(2) * squares.mean(1))) @ squares
    error = influence.std() / math.sqrt(squares.shape[1])
    return Slope(float(weights @ logs), float(error), float(squares[-1].mean().sqrt()))


@dataclass(frozen=True, slots=True)
class Case:
    """A solver on a problem, and the slope that is expected there.

    Attributes:
        solver: The scheme.
        problem: The problem.
        expected: The order, of theory, on this problem; more than the scheme's where the problem is special.
    """

    solver: Solver
    problem: Problem
    expected: float

    @property
    def name(self) -> str:
        """Solver and problem."""
        return f"{type(self.solver).__name__}, {self.problem.name}"

    @property
    def slack(self) -> float:
        """How far the slope may lie from theory."""
        return 0.1 if self.expected < 1.5 else 0.2


CASES = (
    Case(EulerMaruyama(), ARCTAN, 0.5),
    Case(EulerMaruyama(), ADDITIVE, 1.0),
    *(Case(s, ARCTAN, 1.0) for s in (Milstein(), RungeKuttaMilstein(), MilsteinStratonovich())),
    *(Case(s, ARCTAN, 1.5) for s in (SRIW1(), SRIW2(), SOSRI())),
    *(Case(s, ARCTAN, 1.0) for s in (Heun(), EulerHeun(), Midpoint(), Ralston())),
    *(Case(s, ARCTAN, 1.0) for s in (GeneralShARK(), SPaRK())),
    *(Case(s, SINE, 1.0) for s in (EulerMaruyama(), ShiftedEuler(), Heun(), ReversibleHeun())),
    *(Case(s, SINE, 1.5) for s in (SRA1(), SRA2(), SRA3(), SOSRA(), ShARK(), SPaRK(), GeneralShARK())),
    *(Case(s, ROTATIONS, 1.0) for s in (Milstein(), MilsteinStratonovich(), Heun(), SPaRK(), LogODE())),
    *(Case(s, COMMUTATIVE, 1.0) for s in (Milstein(), Heun(), GeneralShARK(), LogODE())),
    Case(SlowRK(), COMMUTATIVE, 1.5),
    *(Case(s, GENERAL, 0.5) for s in (EulerMaruyama(), Heun(), Midpoint(), SPaRK(), ReversibleHeun())),
    *(Case(s, GENERAL, 1.0) for s in (MilsteinLevy(), LogODE())),
)

CONSTANTS = (
    (EulerMaruyama(), ADDITIVE, 1.22e-3, 0.06),
    (SRA1(), ADDITIVE, 2.18e-6, 0.06),
    (ShARK(), ADDITIVE, 3.94e-7, 0.06),
    (SRIW1(), GEOMETRIC, 8.9e-4, 0.15),
    (RungeKuttaMilstein(), GEOMETRIC, 4.1e-2, 0.15),
    (Heun(), GEOMETRIC, 7.5e-3, 0.15),
    (SlowRK(), GEOMETRIC, 1.64e-4, 0.15),
)
"""Root mean square errors at step 1/128 and the relative width of the bar."""


def strong_orders(smoke: bool) -> Iterator[Figure]:
    """Slopes of every solver."""
    for case in CASES:
        measured = slope(errors(case.problem, case.solver, paths=500 if smoke else 4000))
        detail = f"+- {measured.error:.3f}; error {measured.constant:.3g} at step 1/128"
        low, high = case.expected - case.slack, case.expected + case.slack
        yield within(f"strong order, {case.name}", measured.value, low, high, detail)


def error_constants(smoke: bool) -> Iterator[Figure]:
    """Errors at step 1/128 beside reference values."""
    for solver, problem, reference, width in CONSTANTS:
        error = slope(errors(problem, solver, paths=500 if smoke else 20000)).constant
        name = f"error at step 1/128, {type(solver).__name__}, {problem.name}"
        if smoke:
            yield reported(name, error)
        else:
            yield within(name, error, reference * (1 - width), reference * (1 + width))


SECTIONS = [strong_orders, error_constants]

if __name__ == "__main__":
    raise SystemExit(main("strong_order", SECTIONS))
