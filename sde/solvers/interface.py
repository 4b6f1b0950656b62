"""What a solver is: one step of a numerical scheme, and what it promises."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, Protocol

from torch import Tensor

from sde.equation import SDE, Calculus, NoiseStructure
from sde.equation import Equation as AnyEquation
from sde.noise.increments import Areas, Increment, Law

__all__ = ["EmbeddedSolver", "OneStep", "Orders", "Solver", "check_pairing", "orders"]

Equation = Any
"""What a solver integrates: an :class:`sde.SDE`, or the type that its attribute ``equation`` names."""
Carry = Any
"""What a scheme takes from step to step: the state, or a tuple of tensors that holds it."""


class Orders(NamedTuple):
    """Orders of convergence in the step size."""

    strong: float  #: of the root mean square error of the path; NaN where the scheme is weak only
    weak: float  #: of the error of expectations of smooth functions


def orders(**by_structure: tuple[float, float]) -> Mapping[NoiseStructure, Orders]:
    """Table of (strong, weak) orders by the names of noise structures; ``none``: the deterministic order."""
    return MappingProxyType(
        {NoiseStructure[name.upper()]: Orders(*pair) for name, pair in by_structure.items()}
    )


class Solver(Protocol):
    """One step of a scheme, as a pure function of time, state, step and increment, in torch operations.

    Most schemes step from state to state and derive from :class:`OneStep`; others carry more.

    Attributes:
        calculus: Of the equations that the scheme integrates; additive noise is the same in both.
        orders: Orders of convergence for each noise structure that the scheme can integrate.
        areas: What the scheme needs of the path beside its increments.
        law: The law of the increments that it is made for.
        equation: The type of equation that it integrates.
    """

    calculus: ClassVar[Calculus]
    orders: ClassVar[Mapping[NoiseStructure, Orders]]
    areas: ClassVar[Areas]
    law: ClassVar[Law]
    equation: ClassVar[type]

    def start(self, sde: Equation, time: Tensor, state: Tensor, /) -> Carry:
        """What is carried into the first step."""
        ...

    def step(self, sde: Equation, time: Tensor, carry: Carry, dt: Tensor, increment: Increment, /) -> Carry:
        """What is carried to ``time + dt``; ``time`` and ``dt`` are 0-d, or ``(n, 1, ...)`` per sample."""
        ...

    def read(self, carry: Carry, /) -> Tensor:
        """The state ``(n, *shape)`` in what is carried."""
        ...


class EmbeddedSolver(Solver, Protocol):
    """A solver that estimates the error of its steps."""

    def step_with_error(
        self, sde: Equation, time: Tensor, carry: Carry, dt: Tensor, increment: Increment, /
    ) -> tuple[Carry, Tensor]:
        """As :meth:`step`, with an estimate of the local error, shape ``(n, *shape)``."""
        ...


class OneStep:
    """Base of the schemes that carry the state alone."""

    __slots__ = ()
    areas: ClassVar[Areas] = Areas.NONE
    law: ClassVar[Law] = Law.NORMAL
    equation: ClassVar[type] = SDE

    def start(self, sde: Equation, time: Tensor, state: Tensor) -> Tensor:
        """The state."""
        return state

    def read(self, carry: Tensor) -> Tensor:
        """The state."""
        return carry


def check_pairing(solver: Solver, sde: AnyEquation) -> None:
    """Raise if a solver cannot integrate an equation.

    Raises:
        ValueError: If the equation is of another type, the noise structure is not among the solver's, or the
            calculus is the other one.
    """
    name = type(solver).__name__
    if not isinstance(sde, solver.equation):
        remedy = " Use as_sde()." if solver.equation is SDE and hasattr(sde, "as_sde") else ""
        raise ValueError(
            f"`solver` must integrate a {type(sde).__name__} equation; got {name}, which integrates "
            f"a {solver.equation.__name__}.{remedy}"
        )
    if sde.structure not in solver.orders:
        known = ", ".join(structure.value for structure in solver.orders)
        raise ValueError(
            f"`solver` must integrate {sde.structure.value} noise; got {name}, which integrates {known}."
        )
    same = sde.structure in (NoiseStructure.ADDITIVE, NoiseStructure.NONE)
    if sde.calculus is not solver.calculus and not same:
        raise ValueError(
            f"`solver` must integrate {sde.calculus.value} equations; got {name}, which integrates "
            f"{solver.calculus.value} ones. Convert the equation with "
            f"to_{'ito' if solver.calculus is Calculus.ITO else 'stratonovich'}(sde)."
        )
