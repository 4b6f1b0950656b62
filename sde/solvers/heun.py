"""The stochastic Heun scheme."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from sde.equation import SDE, Calculus, NoiseStructure
from sde.noise.increments import Increment
from sde.solvers.interface import OneStep, Orders, orders

__all__ = ["Heun"]


@dataclass(frozen=True, slots=True)
class Heun(OneStep):
    r"""Trapezoidal predictor--corrector for Stratonovich equations.

    .. math::

        \hat X &= X_k + f(t_k, X_k)\,h + g(t_k, X_k)\,\Delta W_k \\
        X_{k+1} &= X_k + \tfrac12\bigl(f(t_k, X_k) + f(t_{k+1}, \hat X)\bigr)\,h
                 + \tfrac12\bigl(g(t_k, X_k) + g(t_{k+1}, \hat X)\bigr)\,\Delta W_k

    Strong order 1 for commutative noise (diagonal, scalar and additive noise are), 1/2 otherwise; weak order
    1, and 2 for additive noise.

    Example:
        >>> Heun().orders[NoiseStructure.DIAGONAL].strong
        1.0

    References:
        Ruemelin (1982), section 3. doi:10.1137/0719041
        Kloeden & Platen (1992), sections 11.1 and 15.1. doi:10.1007/978-3-662-12616-5
    """

    calculus: ClassVar[Calculus] = Calculus.STRATONOVICH
    orders: ClassVar[Mapping[NoiseStructure, Orders]] = orders(
        none=(2.0, 2.0),
        diagonal=(1.0, 1.0),
        scalar=(1.0, 1.0),
        additive=(1.0, 2.0),
        commutative=(1.0, 1.0),
        general=(0.5, 1.0),
    )

    def step(self, sde: SDE, time: Tensor, state: Tensor, dt: Tensor, increment: Increment) -> Tensor:
        """The state at ``time + dt``, shape ``(n, *shape)``."""
        end = time + dt
        drift, diffusion = sde.drift(time, state), sde.diffusion(time, state)
        predicted = state + drift * dt + sde.product(diffusion, increment.wiener)
        mean_drift = 0.5 * (drift + sde.drift(end, predicted))
        mean_diffusion = 0.5 * (diffusion + sde.diffusion(end, predicted))
        return state + mean_drift * dt + sde.product(mean_diffusion, increment.wiener)
