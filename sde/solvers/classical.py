"""Explicit Runge--Kutta schemes for ordinary differential equations, and their tableaux."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from torch import Tensor

from sde.equation import SDE, Calculus, NoiseStructure
from sde.noise.increments import Increment
from sde.solvers.interface import OneStep, Orders, orders

__all__ = ["RungeKutta4", "Tableau"]


class Tableau(NamedTuple):
    """An explicit Runge--Kutta scheme of ``s`` stages."""

    nodes: tuple[float, ...]  #: where the stages stand in the step
    matrix: tuple[tuple[float, ...], ...]  #: weight of each earlier stage in a stage; row i has i entries
    weights: tuple[float, ...]  #: of the stages in the step


@dataclass(frozen=True, slots=True)
class RungeKutta4(OneStep):
    """The classical scheme of order 4, for equations without noise.

    Example:
        >>> RungeKutta4().orders[NoiseStructure.NONE].strong
        4.0

    References:
        Hairer, Norsett & Wanner (1993), Solving ordinary differential equations I, section II.1.
        doi:10.1007/978-3-540-78862-1
    """

    calculus: ClassVar[Calculus] = Calculus.ITO
    orders: ClassVar[Mapping[NoiseStructure, Orders]] = orders(none=(4.0, 4.0))
    tableau: ClassVar[Tableau] = Tableau(
        (0.0, 0.5, 0.5, 1.0), ((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6)
    )

    def step(self, sde: SDE, time: Tensor, state: Tensor, dt: Tensor, increment: Increment) -> Tensor:
        """The state at ``time + dt``, shape ``(n, *shape)``."""
        slopes: list[Tensor] = []
        for node, row in zip(self.tableau.nodes, self.tableau.matrix, strict=True):
            stage = state
            for weight, slope in zip(row, slopes, strict=True):
                stage = stage + weight * dt * slope if weight else stage
            slopes.append(sde.drift(time + node * dt, stage))
        for weight, slope in zip(self.tableau.weights, slopes, strict=True):
            state = state + weight * dt * slope
        return state
