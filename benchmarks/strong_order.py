"""Strong order and error constants of the solvers, on paths that all step sizes share.

Every solver runs with the same Wiener paths and areas at every step size, coarsened from one fine grid. The
reference is the solution as a function of the path where the problem has one, else one good scheme for all
solvers at an eighth of the finest step, so that a solver with the wrong limit shows. The slope of the root
mean square error against the step is the strong order; its standard error comes from the paths by the delta
method.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from benchmarks.check import Figure, main, reported, within
from sde.calculus import to_ito, to_stratonovich
from sde.equation import SDE, Calculus, Coefficient, NoiseStructure
from sde.langevin import Langevin
from sde.noise import NoiseStream, WienerIncrements
from sde.solve import solve
from sde.solvers import (
    ALIGN,
    BAOAB,
    QUICSORT,
    SOSRA,
    SOSRI,
    SRA1,
    SRA2,
    SRA3,
    SRIW1,
    SRIW2,
    UBU,
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
    ShOULD,
    SlowRK,
    Solver,
    SPaRK,
    TamedEuler,
    ThetaEuler,
)

__all__ = [
    "ADDITIVE",
    "ARCTAN",
    "CASES",
    "CONSTANTS",
    "GENERAL",
    "LEVELS",
    "SECTIONS",
    "SINE",
    "Case",
    "Problem",
    "Slope",
    "errors",
    "slope",
]

LEVELS = (3, 4, 5, 6, 7)  # steps 2**-level
_REFERENCE = 10  # level of the reference where there is no exact solution


@dataclass(frozen=True, slots=True)
class Problem:
    """An equation on the unit interval.

    Attributes:
        name: As it is printed.
        sde: The equation.
        initial: Initial state of every sample, nested in its shape.
        exact: Solution at time 1 from the path there, where it is known.
        reference: What stands in for it elsewhere, at an eighth of the finest step.
        other_drift: Drift in the other calculus, where it is worth sparing the derivatives.
    """

    name: str
    sde: SDE | Langevin
    initial: tuple
    exact: Callable[[Tensor], Tensor] | None = None
    reference: Solver | None = None
    other_drift: Coefficient | None = None

    def in_calculus(self, calculus: Calculus) -> SDE | Langevin:
        """The equation in the calculus of a solver."""
        if isinstance(self.sde, Langevin):
            return self.sde
        if self.other_drift and self.sde.calculus is not calculus:
            return replace(self.sde, drift=self.other_drift, calculus=calculus)
        return to_ito(self.sde) if calculus is Calculus.ITO else to_stratonovich(self.sde)


# Without drift in Stratonovich form; with this noise and start, the errors at the steps that are measured
# follow their leading terms.
ARCTAN = Problem(
    "arctan",
    SDE(lambda t, x: -0.25 * x.sin() * x.cos() ** 3, lambda t, x: 0.5 * x.cos() ** 2),
    (0.7,),
    lambda w: (0.5 * w + math.tan(0.7)).atan(),
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


def _linear(growth: float, turn: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Growth and rotation of the plane."""
    return lambda t, x: growth * x + turn * torch.stack((-x[:, 1], x[:, 0]), 1)


SPIRAL = Problem(
    "spiral",
    SDE(_linear(-0.5, 1.0), _linear(0.4, 0.5), NoiseStructure.SCALAR, Calculus.STRATONOVICH),
    (1.0, 0.0),
    lambda w: (
        torch.exp(-0.5 + 0.4 * w) * torch.cat(((1 + 0.5 * w[:, :1]).cos(), (1 + 0.5 * w[:, :1]).sin()), 1)
    ),
    other_drift=_linear(-0.5 - 0.045, 1.0 + 0.2),  # half the square of 0.4 + 0.5 i
)


def _rotations(t: Tensor, x: Tensor) -> Tensor:
    """Two commuting linear vector fields: growth and rotation, of sizes 1/2 and 1/3."""
    return torch.stack((_linear(0.5, 0)(t, x), _linear(0, 1 / 3)(t, x)), -1)


ROTATIONS = Problem(
    "rotations",
    SDE(lambda t, x: 0 * x, _rotations, NoiseStructure.COMMUTATIVE, Calculus.STRATONOVICH, noise_dim=2),
    (1.0, 0.0),
    lambda w: torch.exp(0.5 * w[:, :1]) * torch.stack(((w[:, 1] / 3).cos(), (w[:, 1] / 3).sin()), 1),
    other_drift=_linear((1 / 4 - 1 / 9) / 2, 0.0),
)
SINE = Problem(
    "sine",
    SDE(lambda t, x: x.sin(), lambda t, x: torch.ones_like(x), NoiseStructure.ADDITIVE),
    (0.5,),
    reference=SPaRK(),
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
    reference=SlowRK(),
)


def _twisted(t: Tensor, x: Tensor) -> Tensor:
    """Two vector fields that do not commute: a shear and a bounded twist."""
    one = torch.stack((torch.full_like(x[:, 0], 0.6), 0.5 * x[:, 0].sin()), 1)
    return torch.stack((one, torch.stack((0.5 * x[:, 1].cos(), torch.full_like(x[:, 0], 0.4)), 1)), -1)


GENERAL = Problem(
    "general",
    SDE(lambda t, x: -0.2 * x, _twisted, NoiseStructure.GENERAL, Calculus.STRATONOVICH, noise_dim=2),
    (0.3, 0.5),
    reference=LogODE(),
    other_drift=lambda t, x: torch.stack(
        (-0.2 * x[:, 0] - 0.1 * x[:, 1].sin(), -0.2 * x[:, 1] + 0.15 * x[:, 0].cos()), 1
    ),
)


HARMONIC, DOUBLE_WELL = (
    Problem(name, Langevin(gradient, friction=1.3), ((0.5,), (0.2,)), reference=QUICSORT())
    for name, gradient in (("harmonic", lambda x: x), ("double well", lambda x: x**3 - x))
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
    truth = _truth(problem, paths, seed)
    return torch.stack(
        [(_end(problem, solver, k, paths, seed) - truth).square().flatten(1).sum(1) for k in LEVELS]
    )


def _end(problem: Problem, solver: Solver, level: int, paths: int, seed: int) -> Tensor:
    """States at time 1 after steps ``2**-level``."""
    fine, sde = _fine(problem, paths, seed), problem.in_calculus(solver.calculus)
    times = torch.linspace(0, 1, 2**level + 1, dtype=torch.float64)
    initial = torch.tensor(problem.initial, dtype=torch.float64)
    initial = initial.expand(paths, *initial.shape)
    with torch.no_grad():
        return solve(sde, initial, times, fine.coarsen(fine.shape[0] >> level), solver=solver)[:, -1]


def _fine(problem: Problem, paths: int, seed: int) -> WienerIncrements:
    """The paths on the finest grid that is needed."""
    count = 2 ** (LEVELS[-1] if problem.exact else _REFERENCE)
    steps = torch.full((count,), 1 / count, dtype=torch.float64)
    channels = problem.sde.channels(tuple(torch.tensor(problem.initial).shape))
    return WienerIncrements(NoiseStream(seed, 0, paths), steps, channels, dtype=torch.float64)


@lru_cache(maxsize=4)
def _truth(problem: Problem, paths: int, seed: int) -> Tensor:
    """What every solver should give at time 1."""
    if problem.exact is None:
        assert problem.reference is not None  # one or the other
        return _end(problem, problem.reference, _REFERENCE, paths, seed)
    fine = _fine(problem, paths, seed)
    return problem.exact(fine.coarsen(fine.shape[0]).chunk(0, 1).wiener[0])


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
        paths: How many the slope takes; more where rare paths have large errors.
    """

    solver: Solver
    problem: Problem
    expected: float
    paths: int = 2000

    @property
    def name(self) -> str:
        """Solver and problem."""
        return f"{type(self.solver).__name__}, {self.problem.name}"

    @property
    def slack(self) -> float:
        """How far the slope may lie from theory."""
        return 0.1 if self.expected < 1.5 else 0.2


_EXPLICIT = (Heun(), EulerHeun(), Midpoint(), Ralston(), ReversibleHeun())
_MILSTEIN = (Milstein(), MilsteinStratonovich(), RungeKuttaMilstein())
_SRI = (SRIW1(), SRIW2(), SOSRI())
_SRA = (SRA1(), SRA2(), SRA3(), SOSRA())
_AREA = (SPaRK(), GeneralShARK())

CASES = (
    Case(EulerMaruyama(), ARCTAN, 0.5),
    *(Case(s, ARCTAN, 1.0) for s in (*_MILSTEIN, *_EXPLICIT, *_AREA)),
    *(Case(s, ARCTAN, 1.5, paths=8000) for s in _SRI),
    Case(SlowRK(), ARCTAN, 2.0, paths=8000),  # without drift it is the classical scheme of order 4 in W
    *(Case(s, SPIRAL, 1.0) for s in (*_MILSTEIN, *_EXPLICIT, *_AREA)),
    *(Case(s, SPIRAL, 1.5) for s in _SRI),
    Case(EulerMaruyama(), ADDITIVE, 1.0),
    Case(ShiftedEuler(), ADDITIVE, 1.0),
    *(Case(s, ADDITIVE, 2.0) for s in (*_SRA, ShARK(), *_AREA, SlowRK())),  # the drift is linear
    *(Case(s, SINE, 1.0) for s in (EulerMaruyama(), ShiftedEuler(), Milstein(), *_EXPLICIT, LogODE())),
    *(Case(s, SINE, 1.5) for s in (*_SRA, ShARK(), *_AREA, SlowRK())),
    *(Case(s, ROTATIONS, 1.0) for s in (*_MILSTEIN[:2], *_EXPLICIT, *_AREA, LogODE())),
    *(Case(s, COMMUTATIVE, 1.0) for s in (Heun(), ReversibleHeun(), *_AREA)),
    Case(SlowRK(), COMMUTATIVE, 1.5),
    *(Case(s, GENERAL, 0.5) for s in (EulerMaruyama(), *_EXPLICIT, *_AREA)),
    *(Case(s, GENERAL, 1.0) for s in (MilsteinLevy(), LogODE())),
    *(Case(s, ARCTAN, 0.5) for s in (TamedEuler(), ThetaEuler())),
    *(Case(s, SINE, 1.0) for s in (TamedEuler(), ThetaEuler())),
    *(
        Case(s, problem, order)
        for problem in (HARMONIC, DOUBLE_WELL)
        for s, order in ((BAOAB(), 1.0), (UBU(), 2.0), (ALIGN(), 2.0), (ShOULD(), 3.0), (QUICSORT(), 3.0))
    ),
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
        measured = slope(errors(case.problem, case.solver, paths=500 if smoke else case.paths))
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
