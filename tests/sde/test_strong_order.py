"""Strong schemes: measured orders, order conditions of the tables, any state shape, exact reversal."""

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from benchmarks.strong_order import CASES, CONSTANTS, Case, Problem, errors, slope
from sde import SDE, Calculus, NoiseStream, NoiseStructure, solve, solvers
from sde.march import Plan
from sde.noise import WienerIncrements
from sde.solvers import SOSRA, SOSRI, SRA1, SRA2, SRA3, SRIW1, SRIW2, ReversibleHeun, Solver
from sde.solvers.runge_kutta import TableauSRA, TableauSRI


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_solver_has_its_strong_order(case: Case) -> None:
    measured = slope(errors(case.problem, case.solver, paths=1000))
    assert abs(measured.value - case.expected) <= case.slack, measured


@pytest.mark.slow
@pytest.mark.parametrize(("solver", "problem", "reference", "width"), CONSTANTS)
def test_solver_has_its_error_constant(
    solver: Solver, problem: Problem, reference: float, width: float
) -> None:
    assert abs(slope(errors(problem, solver, paths=20000)).constant / reference - 1) < width


def test_order_is_declared_as_measured() -> None:
    for case in CASES:
        declared = case.solver.orders[case.problem.sde.structure].strong
        special = case.problem.name == "additive" and declared == 1.5  # linear drift: shows 2
        assert case.expected == (2.0 if special else declared), case.name


def _matrix(rows: tuple[tuple[float, ...], ...], size: int) -> Tensor:
    """A strictly lower triangular matrix."""
    full = [list(row) + [0.0] * (size - len(row)) for row in rows]
    return torch.tensor(full, dtype=torch.float64)


def _sra_conditions(table: TableauSRA) -> Tensor:
    """Residuals of Roessler's conditions of order 3/2 for additive noise (2010, theorem 5.1)."""
    size = len(table.alpha)
    a, b = _matrix(table.a, size), _matrix(table.b, size)
    alpha, beta1, beta2, c0, c1 = (
        torch.tensor(row, dtype=torch.float64)
        for row in (table.alpha, table.beta1, table.beta2, table.c0, table.c1)
    )
    noise = b.sum(1)
    return torch.stack(
        [
            alpha.sum() - 1,
            beta1.sum() - 1,
            beta2.sum(),
            alpha @ noise - 1,
            alpha @ a.sum(1) - 0.5,
            alpha @ noise**2 - 1.5,
            beta1 @ c1 - 1,
            beta2 @ c1 + 1,
            (a.sum(1) - c0).abs().max(),
        ]
    )


def _sri_conditions(table: TableauSRI) -> Tensor:
    """Residuals of Roessler's conditions of order 3/2 for diagonal noise (2010, theorem 6.1)."""
    size = len(table.alpha)
    a0, b0, a1, b1 = (_matrix(rows, size) for rows in (table.a0, table.b0, table.a1, table.b1))
    rows = (table.beta1, table.beta2, table.beta3, table.beta4)
    beta1, _, beta3, _ = betas = [torch.tensor(row, dtype=torch.float64) for row in rows]
    alpha = torch.tensor(table.alpha, dtype=torch.float64)
    drift, noise, once, twice = a1.sum(1), b1.sum(1), b0.sum(1), b1 @ b1.sum(1)
    pairs = [
        *((beta.sum(), target) for beta, target in zip(betas, (1, 0, 0, 0), strict=True)),
        *((beta @ noise, target) for beta, target in zip(betas, (0, 1, 0, 0), strict=True)),
        *((beta @ drift, target) for beta, target in zip(betas, (1, 0, -1, 0), strict=True)),
        *((beta @ noise**2, target) for beta, target in zip(betas, (1, 0, -1, 2), strict=True)),
        *((beta @ twice, target) for beta, target in zip(betas, (0, 0, 0, 1), strict=True)),
        (alpha.sum(), 1),
        (alpha @ a0.sum(1), 0.5),
        (alpha @ once, 1),
        (alpha @ once**2, 1.5),
        (0.5 * beta1 @ (a1 @ once) + beta3 @ (a1 @ once) / 3, 0),
        ((a0.sum(1) - torch.tensor(table.c0, dtype=torch.float64)).abs().max(), 0),
        ((drift - torch.tensor(table.c1, dtype=torch.float64)).abs().max(), 0),
    ]
    return torch.stack([value - target for value, target in pairs])


@pytest.mark.parametrize(
    ("table", "conditions"),
    [
        *((solver.tableau, _sra_conditions) for solver in (SRA1, SRA2, SRA3, SOSRA)),
        *((solver.tableau, _sri_conditions) for solver in (SRIW1, SRIW2, SOSRI)),
    ],
)
def test_table_meets_its_order_conditions_and_none_with_a_wrong_sign_does(
    table: TableauSRA | TableauSRI, conditions: Callable[..., Tensor]
) -> None:
    residuals = conditions(table)
    assert residuals.abs().max() < 1e-12, residuals
    for field in dataclasses.fields(table):
        if field.name.startswith(("alpha", "beta")):
            wrong = tuple(-weight for weight in getattr(table, field.name))
            assert conditions(dataclasses.replace(table, **{field.name: wrong})).abs().max() > 0.1


_SHAPED = [
    solver
    for name in solvers.__all__
    if isinstance(solver := getattr(solvers, name), type)
    and hasattr(solver, "step")
    and NoiseStructure.DIAGONAL in getattr(solver, "orders", {})
]


@pytest.mark.parametrize("solver", _SHAPED, ids=lambda solver: solver.__name__)
def test_state_of_any_shape_gives_the_path_of_the_flat_state(solver: type) -> None:
    sde = SDE(lambda t, x: -x, lambda t, x: 0.3 * x.cos(), calculus=solver.calculus)
    times, noise = torch.linspace(0, 1, 5), NoiseStream(3, 0, 6)
    flat = solve(sde, torch.ones(6, 6), times, noise, solver=solver())
    shaped = solve(sde, torch.ones(6, 2, 3), times, noise, solver=solver())
    assert torch.equal(shaped.flatten(2), flat)
    scalar = SDE(sde.drift, sde.diffusion, NoiseStructure.SCALAR, solver.calculus)
    assert solve(scalar, torch.ones(6, 2, 3), times, noise, solver=solver()).shape == (6, 5, 2, 3)


def test_reversible_steps_are_undone_to_rounding() -> None:
    sde = SDE(lambda t, x: (1 - x).tanh(), lambda t, x: 0.3 * x.cos(), calculus=Calculus.STRATONOVICH)
    scheme, steps = ReversibleHeun(), 2000
    dt = torch.tensor(1 / steps, dtype=torch.float64)
    sizes = torch.full((steps,), 1 / steps, dtype=torch.float64)
    increments = WienerIncrements(NoiseStream(5, 0, 16), sizes, 2, dtype=torch.float64)
    starts = torch.arange(steps, dtype=torch.float64) / steps
    plan = Plan(sde, scheme, increments, starts, 1, starts, sizes, (2,))
    first = last = plan.start(torch.ones(16, 2, dtype=torch.float64))
    for step in plan.march(first, 0, steps):
        last = step.carry
    noise = list(plan.noise(0, steps))
    for k in reversed(range(steps)):
        last = scheme.reverse(sde, starts[k], last, dt, noise[k])
    assert (last.y - first.y).abs().max() < 1e-13
    assert (last.z - first.z).abs().max() < 1e-13
