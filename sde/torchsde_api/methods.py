"""Which scheme a name stands for, and which it may be paired with."""

from collections.abc import Mapping

from sde.equation import Calculus, NoiseStructure
from sde.solvers import (
    SRA1,
    SRIW2,
    EulerHeun,
    EulerMaruyama,
    Heun,
    LogODE,
    Midpoint,
    Milstein,
    MilsteinStratonovich,
    ReversibleHeun,
    RungeKuttaMilstein,
    Solver,
)
from sde.torchsde_api.objects import Problem
from sde.torchsde_api.settings import LEVY_AREA_APPROXIMATIONS, METHOD_OPTIONS, METHODS

__all__ = [
    "PRODUCT_METHODS",
    "adjoint_method_of",
    "check_levy_area",
    "levy_area_of",
    "method_of",
    "solver_of",
]

PRODUCT_METHODS = (METHODS.euler, METHODS.midpoint, METHODS.heun, METHODS.euler_heun)
"""Methods that need no more of the diffusion than its products with increments."""

_CALCULUS = {
    METHODS.euler: (Calculus.ITO,),
    METHODS.srk: (Calculus.ITO,),
    METHODS.milstein: (Calculus.ITO, Calculus.STRATONOVICH),
}
_NO_GENERAL = (METHODS.srk, METHODS.milstein)
_BY_NAME: dict[str, Solver] = {
    METHODS.euler: EulerMaruyama(),
    METHODS.midpoint: Midpoint(),
    METHODS.heun: Heun(),
    METHODS.euler_heun: EulerHeun(),
    METHODS.reversible_heun: ReversibleHeun(),
}
_AREAS = [str(name) for name in ("space-time", "davie", "foster")]


def method_of(problem: Problem, method: str | None) -> str:
    """The method asked for or, without one, the usual one.

    Raises:
        ValueError: If there is no such method.
    """
    if method is None:
        if problem.calculus is Calculus.STRATONOVICH:
            return METHODS.midpoint
        return METHODS.euler if problem.structure is NoiseStructure.GENERAL else METHODS.srk
    if method not in METHODS:
        raise ValueError(f"`method` must be one of {METHODS}; got {method!r}.")
    return method


def solver_of(problem: Problem, method: str, options: Mapping[str, object] | None = None) -> Solver:
    """The scheme of a method for an equation.

    Args:
        problem: The equation.
        method: Name of the method.
        options: ``grad_free`` takes Milstein's scheme without derivatives; in a Stratonovich equation, where
            that scheme loses its order, Euler--Heun.

    Raises:
        ValueError: If the method does not integrate the equation.
    """
    structure, calculus = problem.structure, problem.calculus
    allowed = _CALCULUS.get(METHODS(method), (Calculus.STRATONOVICH,))
    if method == METHODS.adjoint_reversible_heun:
        raise ValueError("`method` must not be 'adjoint_reversible_heun', which is an adjoint method.")
    if calculus not in allowed:
        names = " and ".join(c.value for c in allowed)
        raise ValueError(
            f"`method` must integrate {calculus.value} equations; {method!r} integrates {names}."
        )
    if structure is NoiseStructure.GENERAL and method in _NO_GENERAL:
        raise ValueError(f"`method` must integrate general noise; got {method!r}.")
    if method in _BY_NAME:
        return _BY_NAME[method]
    if method == METHODS.srk:
        return SRA1() if structure is NoiseStructure.ADDITIVE else SRIW2()
    if method == METHODS.log_ode_midpoint:
        matrix = structure in (NoiseStructure.ADDITIVE, NoiseStructure.GENERAL)
        return LogODE() if matrix else Midpoint()  # a single process, or none that meet, have no bracket
    free = bool((options or {}).get(METHOD_OPTIONS.grad_free, False))
    if not free or structure is NoiseStructure.ADDITIVE:
        return Milstein() if calculus is Calculus.ITO else MilsteinStratonovich()
    return RungeKuttaMilstein() if calculus is Calculus.ITO else EulerHeun()


def levy_area_of(method: str) -> str:
    """What a Brownian motion that is made for a method approximates."""
    if method == METHODS.srk:
        return LEVY_AREA_APPROXIMATIONS.space_time
    return (
        LEVY_AREA_APPROXIMATIONS.foster
        if method == METHODS.log_ode_midpoint
        else LEVY_AREA_APPROXIMATIONS.none
    )


def check_levy_area(method: str, given: str) -> None:
    """Raise if a Brownian motion knows too little for a method.

    Raises:
        ValueError: If it does.
    """
    needed = {METHODS.srk: _AREAS, METHODS.log_ode_midpoint: _AREAS[1:]}.get(METHODS(method))
    if needed is not None and given not in needed:
        raise ValueError(
            f"`bm` must approximate Levy areas by one of {needed} for {method!r}; got {given!r}. "
            "Pass it as levy_area_approximation."
        )


def adjoint_method_of(problem: Problem, method: str, adjoint_method: str | None) -> str:
    """The adjoint method asked for or, without one, the usual one; checked.

    Raises:
        ValueError: If it is unknown or does not integrate the adjoint equation.
    """
    ito, diagonal = problem.calculus is Calculus.ITO, problem.structure is NoiseStructure.DIAGONAL
    if adjoint_method is None:
        if method == METHODS.reversible_heun:
            return METHODS.adjoint_reversible_heun
        if not ito:
            return METHODS.midpoint
        return METHODS.milstein if diagonal else METHODS.euler
    if adjoint_method not in METHODS:
        raise ValueError(f"`adjoint_method` must be one of {METHODS}; got {adjoint_method!r}.")
    if adjoint_method == METHODS.adjoint_reversible_heun:
        if method != METHODS.reversible_heun:
            raise ValueError(
                f"`adjoint_method` must not be {adjoint_method!r} unless `method` is 'reversible_heun'."
            )
        return adjoint_method
    if adjoint_method in (METHODS.srk, METHODS.log_ode_midpoint):
        raise ValueError(f"`adjoint_method` must not need the whole diffusion; got {adjoint_method!r}.")
    if problem.calculus not in _CALCULUS.get(METHODS(adjoint_method), (Calculus.STRATONOVICH,)):
        raise ValueError(
            f"`adjoint_method` must integrate {problem.calculus.value} equations; got {adjoint_method!r}."
        )
    if adjoint_method == METHODS.milstein and not diagonal:
        raise ValueError("`adjoint_method` must not be 'milstein' unless the noise is diagonal.")
    return adjoint_method
