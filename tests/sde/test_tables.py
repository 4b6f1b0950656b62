"""Runge--Kutta tables: the algebraic conditions of their orders, and the evaluations that a step takes."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from sde import SDE, NoiseStream, NoiseStructure, solve, solvers
from sde.solvers import SOSRA, SOSRI, SRA1, SRA2, SRA3, SRIW1, SRIW2, GeneralShARK, SlowRK, SPaRK
from sde.solvers.foster import TableauArea
from sde.solvers.runge_kutta import TableauSRA, TableauSRI

Tableau = TableauSRA | TableauSRI | TableauArea
Table = tuple["float | Table", ...]


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


def _area_conditions(table: TableauArea) -> Tensor:
    r"""Residuals of the conditions of order 3/2 for additive and 1 for commutative noise.

    Derived by comparing the Taylor expansions in h, W and H of scheme and solution: the drift sees
    :math:`\tfrac1h \int W_s ds = W/2 + H`, whose path has :math:`\tfrac1h \int E W_s^2 ds = h/2`, a diffusion
    that drifts :math:`\tfrac1h \int s dW_s = W/2 - H`, and the noise itself :math:`\int W dW = W^2/2`.
    """
    size = len(table.c)
    drift, wiener, area = (_matrix(rows, size).sum(1) for rows in (table.drift, table.wiener, table.area))
    c, f, w, h, *errors = (
        torch.tensor(row, dtype=torch.float64) for row in (table.c, *table.weights, *table.errors)
    )
    pairs = [
        *((weights.sum(), target) for weights, target in zip((f, w, h), (1, 1, 0), strict=True)),
        *((weights @ c, target) for weights, target in zip((f, w, h), (0.5, 0.5, -1), strict=True)),
        (f @ wiener, 0.5),
        (f @ area, 1),
        (f @ (wiener**2 + area**2 / 12), 0.5),
        (w @ wiener, 0.5),
        (w @ area + h @ wiener, 0),
        (h @ area, 0),
        *((weights.sum(), 0) for weights in errors),
        ((drift - c).abs().max(), 0),
    ]
    return torch.stack([value - target for value, target in pairs])


_TABLES = [
    *(pytest.param(kind.tableau, _sra_conditions, id=kind.__name__) for kind in (SRA1, SRA2, SRA3, SOSRA)),
    *(pytest.param(kind.tableau, _sri_conditions, id=kind.__name__) for kind in (SRIW1, SRIW2, SOSRI)),
    *(
        pytest.param(kind.tableau, _area_conditions, id=kind.__name__)
        for kind in (GeneralShARK, SPaRK, SlowRK)
    ),
]


def _flipped(value: Table) -> Iterator[Table]:
    """A row or a matrix with the sign of each of its numbers wrong, one at a time."""
    for k, part in enumerate(value):
        variants = _flipped(part) if isinstance(part, tuple) else [-part] if part else []
        for variant in variants:
            yield (*value[:k], variant, *value[k + 1 :])


@pytest.mark.parametrize(("table", "conditions"), _TABLES)
def test_table_meets_its_order_conditions(table: Tableau, conditions: Callable[..., Tensor]) -> None:
    assert conditions(table).abs().max() < 1e-12


@pytest.mark.parametrize(("table", "conditions"), _TABLES)
def test_table_with_one_wrong_sign_does_not(table: Tableau, conditions: Callable[..., Tensor]) -> None:
    fields = {field.name: getattr(table, field.name) for field in dataclasses.fields(table)}
    wrong = [(name, variant) for name, value in fields.items() for variant in _flipped(value)]
    assert len(wrong) >= 9
    for name, variant in wrong:
        assert conditions(dataclasses.replace(table, **{name: variant})).abs().max() > 1e-3, (name, variant)


@pytest.mark.parametrize(
    ("name", "structure", "drifts", "diffusions"),
    [
        ("Heun", NoiseStructure.DIAGONAL, 2, 2),
        ("EulerHeun", NoiseStructure.DIAGONAL, 1, 2),
        ("Midpoint", NoiseStructure.DIAGONAL, 2, 2),
        ("Ralston", NoiseStructure.DIAGONAL, 2, 2),
        ("RungeKuttaMilstein", NoiseStructure.DIAGONAL, 1, 2),
        ("SRA1", NoiseStructure.ADDITIVE, 2, 2),
        ("SRA2", NoiseStructure.ADDITIVE, 2, 2),
        ("SRA3", NoiseStructure.ADDITIVE, 3, 2),
        ("SOSRA", NoiseStructure.ADDITIVE, 3, 3),
        ("SRIW1", NoiseStructure.DIAGONAL, 2, 4),
        ("SRIW2", NoiseStructure.DIAGONAL, 3, 4),
        ("SOSRI", NoiseStructure.DIAGONAL, 4, 4),
        ("ShiftedEuler", NoiseStructure.ADDITIVE, 1, 1),
        ("ShARK", NoiseStructure.ADDITIVE, 2, 2),
        ("GeneralShARK", NoiseStructure.DIAGONAL, 2, 3),
        ("SPaRK", NoiseStructure.DIAGONAL, 3, 3),
        ("SlowRK", NoiseStructure.DIAGONAL, 2, 5),
    ],
)
def test_step_evaluates_only_the_stages_that_it_needs(
    name: str, structure: NoiseStructure, drifts: int, diffusions: int
) -> None:
    calls = Counter()

    def counted(kind: str, value: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
        def call(t: Tensor, x: Tensor) -> Tensor:
            calls[kind] += 1
            return value(x)

        return call

    scheme = getattr(solvers, name)
    sde = SDE(counted("f", torch.neg), counted("g", torch.ones_like), structure, scheme.calculus)
    solve(sde, torch.ones(2, 1), torch.linspace(0, 1, 5), NoiseStream(0, 0, 2), solver=scheme())
    assert calls == {"f": 4 * drifts, "g": 4 * diffusions}
