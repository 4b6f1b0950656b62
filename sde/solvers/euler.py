"""Euler schemes that are explicit in drift and diffusion."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sde.equation import SDE, Calculus, NoiseStructure
from sde.noise.increments import Increment
from sde.solvers.interface import OneStep, Orders, orders

__all__ = ["EulerMaruyama", "TamedEuler"]

_ORDERS = orders(
    none=(1.0, 1.0),
    diagonal=(0.5, 1.0),
    scalar=(0.5, 1.0),
    additive=(1.0, 1.0),
    commutative=(0.5, 1.0),
    general=(0.5, 1.0),
)


@dataclass(frozen=True, slots=True)
class EulerMaruyama(OneStep):
    r"""Explicit Euler for Ito equations.

    .. math:: X_{k+1} = X_k + f(t_k, X_k)\,h + g(t_k, X_k)\,\Delta W_k

    Strong order 1/2, and 1 for additive noise; weak order 1. Coefficients must grow at most linearly: with a
    superlinear drift the moments of the scheme diverge.

    Example:
        >>> EulerMaruyama().orders[NoiseStructure.DIAGONAL]
        Orders(strong=0.5, weak=1.0)

    References:
        Kloeden & Platen (1992), sections 10.2 and 14.1. doi:10.1007/978-3-662-12616-5
        Hutzenthaler, Jentzen & Kloeden (2011), theorem 1. doi:10.1098/rspa.2010.0348
    """

    calculus: ClassVar[Calculus] = Calculus.ITO
    orders: ClassVar[Mapping[NoiseStructure, Orders]] = _ORDERS

    def step(self, sde: SDE, time: Tensor, state: Tensor, dt: Tensor, increment: Increment) -> Tensor:
        """The state at ``time + dt``, shape ``(n, *shape)``."""
        noise = sde.product(sde.diffusion(time, state), increment.wiener)
        return state + sde.drift(time, state) * dt + noise


@dataclass(frozen=True, slots=True)
class TamedEuler(OneStep):
    r"""Explicit Euler for Ito equations, the drift of a step bounded by one.

    .. math:: X_{k+1} = X_k + \frac{f(t_k, X_k)\,h}{1 + h\,|f(t_k, X_k)|} + g(t_k, X_k)\,\Delta W_k

    with the Euclidean norm of the state of one sample. Orders as :class:`EulerMaruyama`, and they hold for
    drifts of polynomial growth that are one-sided Lipschitz continuous; the diffusion must be Lipschitz.

    References:
        Hutzenthaler, Jentzen & Kloeden (2012), equation 4 and theorem 1.1. doi:10.1214/11-AAP803
    """

    calculus: ClassVar[Calculus] = Calculus.ITO
    orders: ClassVar[Mapping[NoiseStructure, Orders]] = _ORDERS

    def step(self, sde: SDE, time: Tensor, state: Tensor, dt: Tensor, increment: Increment) -> Tensor:
        """The state at ``time + dt``, shape ``(n, *shape)``."""
        noise = sde.product(sde.diffusion(time, state), increment.wiener)
        drift = sde.drift(time, state) * dt
        norm = torch.linalg.vector_norm(drift, dim=tuple(range(1, drift.dim())), keepdim=True)
        return state + drift / (1 + norm) + noise
