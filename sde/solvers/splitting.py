r"""Splitting: parts of an equation that have exact solutions, composed.

A composition keeps what all of its parts keep: positivity, bounds, moments under a drift that grows faster
than linearly. Its error comes from parts that do not commute. The path in a step is known by its increment
alone, so the strong order is 1; the symmetric composition has weak order 2.

References:
    McLachlan & Quispel (2002), section 5. doi:10.1017/S0962492902000053
    Buckwar, Samson, Tamborrino & Tubikanec (2022), A splitting method for SDEs with locally Lipschitz drift:
    illustration on the FitzHugh-Nagumo model, section 4. doi:10.1016/j.apnum.2022.04.018
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from sde.equation import Calculus, NoiseStructure
from sde.noise.increments import Increment
from sde.solvers.interface import OneStep, Orders, orders
from sde.split import Split

__all__ = ["LieTrotter", "Strang"]


@dataclass(frozen=True, slots=True)
class LieTrotter(OneStep):
    r"""One part after the other: the deterministic flows in their order, then the noise.

    .. math:: X_{k+1} = \psi_h^{\Delta W} \circ \varphi^{(r)}_h \circ \dots \circ \varphi^{(1)}_h (X_k)

    Strong order 1, weak order 1.
    """

    equation: ClassVar[type] = Split
    calculus: ClassVar[Calculus] = Calculus.ITO
    orders: ClassVar[Mapping[NoiseStructure, Orders]] = orders(diagonal=(1.0, 1.0), commutative=(1.0, 1.0))

    def step(self, sde: Split, time: Tensor, state: Tensor, dt: Tensor, increment: Increment) -> Tensor:
        """The state at ``time + dt``, shape ``(n, *shape)``."""
        for flow in sde.flows:
            state = flow(time, state, dt)
        return sde.noise_flow(time, state, dt, increment.wiener)


@dataclass(frozen=True, slots=True)
class Strang(OneStep):
    r"""Half a step of each deterministic flow, the noise, and the other halves in reverse.

    .. math:: X_{k+1} = \varphi^{(1)}_{h/2} \circ \dots \circ \varphi^{(r)}_{h/2} \circ \psi_h^{\Delta W}
              \circ \varphi^{(r)}_{h/2} \circ \dots \circ \varphi^{(1)}_{h/2} (X_k)

    Strong order 1, weak order 2.

    Example:
        >>> import torch
        >>> from sde import NoiseStream, Split, solve
        >>> cubic = lambda t, x, h: x / (1 + 2 * h * x**2).sqrt()  # of -x**3
        >>> noise = lambda t, x, h, w: x * w.exp()  # of x / 2 dt + x dW: the Ginzburg--Landau equation
        >>> times, start = torch.tensor([0.0, 1.0]), torch.ones(5, 1)
        >>> path = solve(Split((cubic,), noise), start, times, NoiseStream(0, 0, 5), solver=Strang())
        >>> bool((path > 0).all())
        True

    References:
        Strang (1968), On the construction and comparison of difference schemes. doi:10.1137/0705041
    """

    equation: ClassVar[type] = Split
    calculus: ClassVar[Calculus] = Calculus.ITO
    orders: ClassVar[Mapping[NoiseStructure, Orders]] = orders(diagonal=(1.0, 2.0), commutative=(1.0, 2.0))

    def step(self, sde: Split, time: Tensor, state: Tensor, dt: Tensor, increment: Increment) -> Tensor:
        """The state at ``time + dt``, shape ``(n, *shape)``."""
        half = 0.5 * dt
        for flow in sde.flows:
            state = flow(time, state, half)
        state = sde.noise_flow(time, state, dt, increment.wiener)
        for flow in reversed(sde.flows):
            state = flow(time + half, state, half)
        return state
