"""Explicit two-stage schemes for Stratonovich equations."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from sde.equation import SDE, Calculus, NoiseStructure
from sde.noise.increments import Increment
from sde.solvers.interface import OneStep, Orders, orders

__all__ = ["EulerHeun", "Heun", "Midpoint", "Ralston"]

_ORDERS = orders(
    none=(2.0, 2.0),
    diagonal=(1.0, 1.0),
    scalar=(1.0, 1.0),
    additive=(1.0, 2.0),
    commutative=(1.0, 1.0),
    general=(0.5, 1.0),
)


def _advance(sde: SDE, time: Tensor, state: Tensor, dt: Tensor, wiener: Tensor) -> Tensor:
    """Drift times step plus diffusion times increment, ``(n, *shape)``."""
    return sde.drift(time, state) * dt + sde.product(sde.diffusion(time, state), wiener)


@dataclass(frozen=True, slots=True)
class Heun(OneStep):
    r"""Trapezoidal predictor--corrector for Stratonovich equations.

    .. math::

        \hat X &= X_k + f(t_k, X_k)\,h + g(t_k, X_k)\,\Delta W_k \\
        X_{k+1} &= X_k + \tfrac12\bigl(f(t_k, X_k) + f(t_{k+1}, \hat X)\bigr)\,h
                 + \tfrac12\bigl(g(t_k, X_k) + g(t_{k+1}, \hat X)\bigr)\,\Delta W_k

    Strong order 1 for commutative noise (diagonal, scalar and additive noise are), 1/2 otherwise; weak order
    1, and 2 for additive noise. The difference of the two stages estimates the error.

    Example:
        >>> Heun().orders[NoiseStructure.DIAGONAL].strong
        1.0

    References:
        Ruemelin (1982), section 3. doi:10.1137/0719041
        Kloeden & Platen (1992), sections 11.1 and 15.1. doi:10.1007/978-3-662-12616-5
    """

    calculus: ClassVar[Calculus] = Calculus.STRATONOVICH
    orders: ClassVar[Mapping[NoiseStructure, Orders]] = _ORDERS

    def step(self, sde: SDE, time: Tensor, state: Tensor, dt: Tensor, increment: Increment) -> Tensor:
        """The state at ``time + dt``, shape ``(n, *shape)``."""
        return self.step_with_error(sde, time, state, dt, increment)[0]

    def step_with_error(
        self, sde: SDE, time: Tensor, state: Tensor, dt: Tensor, increment: Increment
    ) -> tuple[Tensor, Tensor]:
        """The state at ``time + dt`` and half the difference of the stages."""
        first = _advance(sde, time, state, dt, increment.wiener)
        second = _advance(sde, time + dt, state + first, dt, increment.wiener)
        return state + 0.5 * (first + second), 0.5 * (second - first)


@dataclass(frozen=True, slots=True)
class EulerHeun(OneStep):
    r"""Euler in the drift, Heun in the diffusion, for Stratonovich equations.

    .. math:: X_{k+1} = X_k + f(t_k, X_k)\,h + \tfrac12\bigl(g(t_k, X_k)
              + g(t_{k+1}, X_k + g(t_k, X_k)\,\Delta W_k)\bigr)\,\Delta W_k

    One evaluation of the drift in a step; orders as :class:`Heun`, but deterministic order 1.

    References:
        Kloeden & Platen (1992), section 11.1. doi:10.1007/978-3-662-12616-5
    """

    calculus: ClassVar[Calculus] = Calculus.STRATONOVICH
    orders: ClassVar[Mapping[NoiseStructure, Orders]] = orders(
        none=(1.0, 1.0),
        diagonal=(1.0, 1.0),
        scalar=(1.0, 1.0),
        additive=(1.0, 1.0),
        commutative=(1.0, 1.0),
        general=(0.5, 1.0),
    )

    def step(self, sde: SDE, time: Tensor, state: Tensor, dt: Tensor, increment: Increment) -> Tensor:
        """The state at ``time + dt``, shape ``(n, *shape)``."""
        first = sde.product(sde.diffusion(time, state), increment.wiener)
        second = sde.product(sde.diffusion(time + dt, state + first), increment.wiener)
        return state + sde.drift(time, state) * dt + 0.5 * (first + second)


@dataclass(frozen=True, slots=True)
class Midpoint(OneStep):
    r"""Explicit midpoint scheme for Stratonovich equations.

    .. math:: \hat X = X_k + \tfrac12\bigl(f\,h + g\,\Delta W_k\bigr), \qquad
              X_{k+1} = X_k + f(t_k + \tfrac h2, \hat X)\,h + g(t_k + \tfrac h2, \hat X)\,\Delta W_k

    Orders as :class:`Heun`.

    References:
        Kloeden & Platen (1992), section 11.1. doi:10.1007/978-3-662-12616-5
    """

    calculus: ClassVar[Calculus] = Calculus.STRATONOVICH
    orders: ClassVar[Mapping[NoiseStructure, Orders]] = _ORDERS

    def step(self, sde: SDE, time: Tensor, state: Tensor, dt: Tensor, increment: Increment) -> Tensor:
        """The state at ``time + dt``, shape ``(n, *shape)``."""
        middle = state + 0.5 * _advance(sde, time, state, dt, increment.wiener)
        return state + _advance(sde, time + 0.5 * dt, middle, dt, increment.wiener)


@dataclass(frozen=True, slots=True)
class Ralston(OneStep):
    r"""Ralston's scheme for Stratonovich equations: stages at 0 and 2/3, weights 1/4 and 3/4.

    Orders as :class:`Heun`, with the smallest bound on the error among two-stage schemes.

    References:
        Ralston (1962), equation 3.3. doi:10.1090/S0025-5718-1962-0150954-0
    """

    calculus: ClassVar[Calculus] = Calculus.STRATONOVICH
    orders: ClassVar[Mapping[NoiseStructure, Orders]] = _ORDERS

    def step(self, sde: SDE, time: Tensor, state: Tensor, dt: Tensor, increment: Increment) -> Tensor:
        """The state at ``time + dt``, shape ``(n, *shape)``."""
        first = _advance(sde, time, state, dt, increment.wiener)
        second = _advance(sde, time + 2 / 3 * dt, state + 2 / 3 * first, dt, increment.wiener)
        return state + 0.25 * first + 0.75 * second
