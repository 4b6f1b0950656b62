r"""Schemes in increments and space-time Levy areas for Stratonovich equations, of high order and small error.

References:
    Foster, dos Reis & Strange (2024), High order splitting methods for SDEs satisfying a commutativity
    condition. doi:10.1137/23M155147X, arXiv:2210.17543
    Foster & Jelincic (2024), On the convergence of adaptive approximations for stochastic differential
    equations, definition 1.6. arXiv:2311.14201
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from sde.equation import SDE, Calculus, NoiseStructure
from sde.noise.increments import Areas, Increment
from sde.solvers.interface import OneStep, Orders, orders

__all__ = ["GeneralShARK", "SPaRK", "ShARK", "ShiftedEuler", "SlowRK"]

Row = tuple[float, ...]


class _AreaScheme(OneStep):
    """Base of the schemes of this file."""

    __slots__ = ()
    calculus: ClassVar[Calculus] = Calculus.STRATONOVICH
    areas: ClassVar[Areas] = Areas.SPACE_TIME


def _noise(increment: Increment) -> tuple[Tensor, Tensor]:
    """Increment and space-time area."""
    assert increment.space_time is not None  # the solvers ask for it
    return increment.wiener, increment.space_time


@dataclass(frozen=True, slots=True)
class ShiftedEuler(_AreaScheme):
    r"""Euler with a shifted drift, for additive noise: order 1 with a smaller error than Euler's.

    .. math:: X_{k+1} = X_k + f\bigl(t, X_k + g(\tfrac12 W + H)\bigr)\,h + g\,W

    References:
        Foster, dos Reis & Strange (2024), equation 5.8. arXiv:2210.17543
    """

    orders: ClassVar[Mapping[NoiseStructure, Orders]] = orders(none=(1.0, 1.0), additive=(1.0, 1.0))

    def step(self, sde: SDE, time: Tensor, state: Tensor, dt: Tensor, increment: Increment) -> Tensor:
        """The state at ``time + dt``, shape ``(n, *shape)``."""
        wiener, area = _noise(increment)
        diffusion = sde.diffusion(time, state)
        shifted = state + sde.product(diffusion, 0.5 * wiener + area)
        return state + sde.drift(time, shifted) * dt + sde.product(diffusion, wiener)


@dataclass(frozen=True, slots=True)
class ShARK(_AreaScheme):
    r"""Shifted additive-noise Runge--Kutta: strong order 3/2 with a small error.

    .. math::

        z_1 &= X + g H, \qquad z_2 = X + \tfrac56 f(z_1) h + g \bigl(\tfrac56 W + H\bigr) \\
        X_{k+1} &= X + \bigl(\tfrac25 f(z_1) + \tfrac35 f(z_2)\bigr) h + g W
                 + \bigl(g(t + h) - g(t)\bigr)\bigl(\tfrac12 W - H\bigr)

    References:
        Foster, dos Reis & Strange (2024), equation 6.1. arXiv:2210.17543
    """

    orders: ClassVar[Mapping[NoiseStructure, Orders]] = orders(none=(2.0, 2.0), additive=(1.5, 2.0))

    def step(self, sde: SDE, time: Tensor, state: Tensor, dt: Tensor, increment: Increment) -> Tensor:
        """The state at ``time + dt``, shape ``(n, *shape)``."""
        return self.step_with_error(sde, time, state, dt, increment)[0]

    def step_with_error(
        self, sde: SDE, time: Tensor, state: Tensor, dt: Tensor, increment: Increment
    ) -> tuple[Tensor, Tensor]:
        """The state at ``time + dt``, and the difference of the drifts of the stages."""
        wiener, area = _noise(increment)
        start, end = sde.diffusion(time, state), sde.diffusion(time + dt, state)
        first = sde.drift(time, state + sde.product(start, area)) * dt
        stage = state + 5 / 6 * first + sde.product(start, 5 / 6 * wiener + area)
        second = sde.drift(time + 5 / 6 * dt, stage) * dt
        noise = sde.product(start, wiener) + sde.product(end - start, 0.5 * wiener - area)
        return state + 0.4 * first + 0.6 * second + noise, 0.6 * (second - first)


@dataclass(frozen=True, slots=True)
class TableauArea:
    r"""Coefficients of a scheme with one set of stages for drift and diffusion.

    .. math::

        z_i &= X + \sum_j a_{ij} f_j h + a^W_{ij} g_j W + a^H_{ij} g_j H \\
        X_{k+1} &= X + \sum_i b_i f_i h + b^W_i g_i W + b^H_i g_i H
    """

    c: Row
    drift: tuple[Row, ...]
    wiener: tuple[Row, ...]
    area: tuple[Row, ...]
    weights: tuple[Row, Row, Row]  #: of drift, increment and area
    errors: tuple[Row, Row, Row]  #: of the estimate of the error


class _TableScheme(_AreaScheme):
    """A scheme by its table that estimates its error; stages without weight are not evaluated."""

    __slots__ = ()
    tableau: ClassVar[TableauArea]

    def step(self, sde: SDE, time: Tensor, state: Tensor, dt: Tensor, increment: Increment) -> Tensor:
        """The state at ``time + dt``, shape ``(n, *shape)``."""
        return _sum(state, self.tableau.weights, self._parts(sde, time, state, dt, increment))

    def step_with_error(
        self, sde: SDE, time: Tensor, state: Tensor, dt: Tensor, increment: Increment
    ) -> tuple[Tensor, Tensor]:
        """The state at ``time + dt`` and the estimate of the error by the table."""
        parts = self._parts(sde, time, state, dt, increment)
        return _sum(state, self.tableau.weights, parts), _sum(0 * state, self.tableau.errors, parts)

    def _parts(
        self, sde: SDE, time: Tensor, state: Tensor, dt: Tensor, increment: Increment
    ) -> tuple[list[Tensor | None], list[Tensor | None], list[Tensor | None]]:
        """Drift times step, diffusion times increment and times area, of every stage that needs them."""
        table, (wiener, area) = self.tableau, _noise(increment)
        drifts: list[Tensor | None] = []
        noises: list[Tensor | None] = []
        areas: list[Tensor | None] = []
        for i, c in enumerate(table.c):
            rows = (table.drift[i], table.wiener[i], table.area[i])
            stage = _sum(state, rows, (drifts, noises, areas))
            at = time + c * dt
            drifts.append(sde.drift(at, stage) * dt if _weighs(i, table.drift, table.weights[0]) else None)
            needs_wiener = _weighs(i, table.wiener, table.weights[1])
            needs_area = _weighs(i, table.area, table.weights[2])
            diffusion = sde.diffusion(at, stage) if needs_wiener or needs_area else None
            noises.append(sde.product(diffusion, wiener) if needs_wiener and diffusion is not None else None)
            areas.append(sde.product(diffusion, area) if needs_area and diffusion is not None else None)
        return drifts, noises, areas


def _weighs(index: int, rows: tuple[Row, ...], weights: Row) -> bool:
    """Whether a stage has a weight in a later stage or in the result."""
    return bool(weights[index]) or any(len(row) > index and row[index] for row in rows)


def _sum(base: Tensor, rows: tuple[Row, ...], parts: tuple[list[Tensor | None], ...]) -> Tensor:
    """Base plus all parts times their coefficients."""
    for row, kind in zip(rows, parts, strict=True):
        for coefficient, part in zip(row, kind, strict=False):
            if coefficient and part is not None:
                base = base + coefficient * part
    return base


@dataclass(frozen=True, slots=True)
class GeneralShARK(_TableScheme):
    """:class:`ShARK` for noise of any structure: order 3/2 for additive, 1 for commutative noise, else 1/2.

    References:
        Foster, dos Reis & Strange (2024), section 6. arXiv:2210.17543
    """

    orders: ClassVar[Mapping[NoiseStructure, Orders]] = orders(
        none=(2.0, 2.0),
        additive=(1.5, 2.0),
        diagonal=(1.0, 1.0),
        scalar=(1.0, 1.0),
        commutative=(1.0, 1.0),
        general=(0.5, 1.0),
    )
    tableau: ClassVar[TableauArea] = TableauArea(
        c=(0, 0, 5 / 6),
        drift=((), (), (0, 5 / 6)),
        wiener=((), (), (0, 5 / 6)),
        area=((), (1,), (1,)),
        weights=((0, 0.4, 0.6), (0, 0.4, 0.6), (0, 1.2, -1.2)),
        errors=((0, -0.6, 0.6), (0, -0.6, 0.6), (0, 1.2, -1.2)),
    )


_X1, _X2 = (3 - math.sqrt(3)) / 6, math.sqrt(3) / 3


@dataclass(frozen=True, slots=True)
class SPaRK(_TableScheme):
    """Splitting path Runge--Kutta: the scheme of choice for adaptive steps with noise of any structure.

    Order 3/2 for additive, 1 for commutative noise, else 1/2.

    References:
        Foster & Jelincic (2024), definition 1.6. arXiv:2311.14201
    """

    orders: ClassVar[Mapping[NoiseStructure, Orders]] = orders(
        none=(2.0, 2.0),
        additive=(1.5, 2.0),
        diagonal=(1.0, 1.0),
        scalar=(1.0, 1.0),
        commutative=(1.0, 1.0),
        general=(0.5, 1.0),
    )
    tableau: ClassVar[TableauArea] = TableauArea(
        c=(0, 0.5, 1),
        drift=((), (0.5,), (0, 1)),
        wiener=((), (0.5,), (0, 1)),
        area=((), (math.sqrt(3),), ()),
        weights=((_X1, _X2, _X1), (_X1, _X2, _X1), (1, 0, -1)),
        errors=((_X1 - 0.5, _X2, _X1 - 0.5), (_X1 - 0.5, _X2, _X1 - 0.5), (1, 0, -1)),
    )


@dataclass(frozen=True, slots=True)
class SlowRK(_TableScheme):
    r"""Strong order 3/2 for commutative noise, in two drifts and five diffusions.

    The error is estimated by the difference from :math:`X + f(z_1)\,h + g(z_4)\,W`, a scheme of order 1 on
    the same stages.

    References:
        Foster, dos Reis & Strange (2024), equation 6.2. arXiv:2210.17543
    """

    orders: ClassVar[Mapping[NoiseStructure, Orders]] = orders(
        none=(2.0, 2.0), additive=(1.5, 2.0), diagonal=(1.5, 2.0), scalar=(1.5, 2.0), commutative=(1.5, 2.0)
    )
    tableau: ClassVar[TableauArea] = TableauArea(
        c=(0, 0.5, 0.5, 0.5, 0.5, 0.75, 1),
        drift=((), (0.5,), (0.5,), (0.5,), (0.5,), (0.75,), (1,)),
        wiener=((), (), (0, 0.5), (0, 0, 0.5), (0, 0, 0, 1), (0, 0, 0, 0.75), (0, 0, 0.5)),
        area=((), (), (), (), (), (0, 0, 0, 1.5), ()),
        weights=(
            (1 / 3, 0, 0, 0, 0, 2 / 3, 0),
            (0, 1 / 6, 1 / 3, 1 / 3, 1 / 6, 0, 0),
            (0, 0, 0, 2, 0, 0, -2),
        ),
        errors=(
            (-2 / 3, 0, 0, 0, 0, 2 / 3, 0),
            (0, 1 / 6, 1 / 3, -2 / 3, 1 / 6, 0, 0),
            (0, 0, 0, 2, 0, 0, -2),
        ),
    )
