"""The reversible Heun scheme, whose steps can be undone exactly."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from torch import Tensor

from sde.equation import SDE, Calculus, NoiseStructure
from sde.noise.increments import Areas, Increment, Law
from sde.solvers.interface import Orders, orders

__all__ = ["ReversibleHeun", "ReversibleState"]


class ReversibleState(NamedTuple):
    """What the scheme carries: state, auxiliary state, and the coefficients there."""

    y: Tensor  #: state, shape ``(n, *shape)``
    z: Tensor  #: auxiliary state, of the same shape
    drift: Tensor  #: at ``z``
    diffusion: Tensor  #: at ``z``


@dataclass(frozen=True, slots=True)
class ReversibleHeun:
    r"""Reversible Heun for Stratonovich equations: one evaluation a step, algebraically reversible.

    .. math::

        z_{k+1} &= 2 y_k - z_k + f_k h + g_k W, \qquad f_{k+1}, g_{k+1} = f, g(t_{k+1}, z_{k+1}) \\
        y_{k+1} &= y_k + \tfrac12 (f_k + f_{k+1}) h + \tfrac12 (g_k + g_{k+1}) W

    Strong order 1 for commutative noise (diagonal, scalar and additive noise are), 1/2 otherwise: the two
    states differ by the square root of the step, with a sign that alternates, so that what this adds over two
    steps cancels. Proved for additive and for general noise, measured for the others. It is stable for small
    steps only: its region of stability is an interval of the imaginary axis.

    References:
        Kidger, Foster, Li & Lyons (2021), Efficient and accurate gradients for neural SDEs, section 3.
        arXiv:2105.13493
    """

    calculus: ClassVar[Calculus] = Calculus.STRATONOVICH
    areas: ClassVar[Areas] = Areas.NONE
    law: ClassVar[Law] = Law.NORMAL
    equation: ClassVar[type] = SDE
    orders: ClassVar[Mapping[NoiseStructure, Orders]] = orders(
        none=(2.0, 2.0),
        diagonal=(1.0, 1.0),
        scalar=(1.0, 1.0),
        additive=(1.0, 1.0),
        commutative=(1.0, 1.0),
        general=(0.5, 1.0),
    )

    def start(self, sde: SDE, time: Tensor, state: Tensor) -> ReversibleState:
        """Both states equal, and the coefficients there."""
        return ReversibleState(state, state, sde.drift(time, state), sde.diffusion(time, state))

    def read(self, carry: ReversibleState) -> Tensor:
        """The state."""
        return carry.y

    def step(
        self, sde: SDE, time: Tensor, carry: ReversibleState, dt: Tensor, increment: Increment
    ) -> ReversibleState:
        """What is carried to ``time + dt``."""
        return self.step_with_error(sde, time, carry, dt, increment)[0]

    def step_with_error(
        self, sde: SDE, time: Tensor, carry: ReversibleState, dt: Tensor, increment: Increment
    ) -> tuple[ReversibleState, Tensor]:
        """What is carried to ``time + dt``, and half the change of the coefficients over the step."""
        y, z, drift, diffusion = carry
        wiener = increment.wiener
        move = drift * dt + sde.product(diffusion, wiener)
        z = 2 * y - z + move
        new_drift, new_diffusion = sde.drift(time + dt, z), sde.diffusion(time + dt, z)
        new_move = new_drift * dt + sde.product(new_diffusion, wiener)
        y = y + 0.5 * (move + new_move)
        return ReversibleState(y, z, new_drift, new_diffusion), 0.5 * (new_move - move)

    def reverse(
        self, sde: SDE, time: Tensor, carry: ReversibleState, dt: Tensor, increment: Increment
    ) -> ReversibleState:
        """What was carried at ``time``, from what is carried at ``time + dt``: :meth:`step` undone."""
        y, z, drift, diffusion = carry
        wiener = increment.wiener
        move = drift * dt + sde.product(diffusion, wiener)
        z = 2 * y - z - move
        old_drift, old_diffusion = sde.drift(time, z), sde.diffusion(time, z)
        y = y - 0.5 * (move + old_drift * dt + sde.product(old_diffusion, wiener))
        return ReversibleState(y, z, old_drift, old_diffusion)
