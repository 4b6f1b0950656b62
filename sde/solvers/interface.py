"""What a solver is: one step of a numerical scheme, and what it promises."""

from collections.abc import Mapping
from typing import ClassVar, NamedTuple, Protocol

from torch import Tensor

from sde.equation import SDE, Calculus, NoiseStructure

__all__ = ["Increment", "Orders", "Solver", "check_pairing"]


class Increment(NamedTuple):
    """What the driving noise did during one step."""

    wiener: Tensor  #: increment of the Wiener processes, shape ``(n, channels)``


class Orders(NamedTuple):
    """Orders of convergence in the step size."""

    strong: float  #: of the root mean square error of the path
    weak: float  #: of the error of expectations of smooth functions


class Solver(Protocol):
    """One step of a scheme, as a pure function of time, state, step and increment, in torch operations.

    Attributes:
        calculus: Of the equations that the scheme integrates; additive noise is the same in both.
        orders: Orders of convergence for each noise structure that the scheme can integrate.
    """

    calculus: ClassVar[Calculus]
    orders: ClassVar[Mapping[NoiseStructure, Orders]]

    def step(self, sde: SDE, time: Tensor, state: Tensor, dt: Tensor, increment: Increment) -> Tensor:
        """The state at ``time + dt``, shape ``(n, d)``; ``time`` and ``dt`` are 0-d tensors."""
        ...


def check_pairing(solver: Solver, sde: SDE) -> None:
    """Raise if a solver cannot integrate an equation.

    Raises:
        ValueError: If the noise structure is not among the solver's, or the calculus is the other one.
    """
    name = type(solver).__name__
    if sde.structure not in solver.orders:
        known = ", ".join(structure.value for structure in solver.orders)
        raise ValueError(
            f"`solver` must integrate {sde.structure.value} noise; got {name}, which integrates {known}."
        )
    if sde.calculus is not solver.calculus and sde.structure is not NoiseStructure.ADDITIVE:
        remedy = "EulerMaruyama()" if sde.calculus is Calculus.ITO else "Heun()"
        raise ValueError(
            f"`solver` must integrate {sde.calculus.value} equations; got {name}, which integrates "
            f"{solver.calculus.value} ones. Use {remedy}, or write the equation in the other calculus."
        )
