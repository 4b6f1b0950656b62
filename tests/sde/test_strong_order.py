"""Strong schemes: measured orders and error constants, on problems with known solutions."""

import pytest

from benchmarks.strong_order import ADDITIVE, ARCTAN, CASES, CONSTANTS, SINE, Case, Problem, errors, slope
from sde import solvers
from sde.equation import SDE
from sde.langevin import Langevin
from sde.noise.increments import Law
from sde.solvers import Solver


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_solver_has_its_strong_order(case: Case) -> None:
    measured = slope(errors(case.problem, case.solver, paths=case.paths))
    assert measured.error < 0.05
    assert abs(measured.value - case.expected) <= case.slack, measured


@pytest.mark.parametrize(("solver", "problem", "reference", "width"), CONSTANTS)
def test_solver_has_its_error_constant(
    solver: Solver, problem: Problem, reference: float, width: float
) -> None:
    assert abs(slope(errors(problem, solver, paths=10000)).constant / reference - 1) < width


def test_order_is_declared_as_measured_and_no_higher_where_a_problem_is_special() -> None:
    for case in CASES:
        declared = case.solver.orders[case.problem.sde.structure].strong
        special = case.problem in (ADDITIVE, ARCTAN) and case.expected == 2.0  # linear drift; none
        assert declared == (1.5 if special else case.expected), case.name


def test_linear_drift_shows_order_two_and_nonlinear_drift_three_halves() -> None:
    shown = {
        problem.name: {
            type(case.solver) for case in CASES if (case.problem, case.expected) == (problem, order)
        }
        for problem, order in ((ADDITIVE, 2.0), (SINE, 1.5))
    }
    assert shown["additive"] == shown["sine"]
    assert len(shown["sine"]) == 8


def test_every_strong_scheme_is_measured() -> None:
    strong = {
        kind
        for kind in vars(solvers).values()
        if getattr(kind, "equation", None) in (SDE, Langevin)
        and kind is not solvers.OneStep
        and kind.law is Law.NORMAL
    }
    assert strong == {type(case.solver) for case in CASES}
