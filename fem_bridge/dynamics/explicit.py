"""Explicit time integration."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fem_bridge.dynamics.system import ElasticSystem

__all__ = ["CentralDifference"]


@dataclass(frozen=True, slots=True)
class CentralDifference:
    r"""Central difference with the lumped mass: explicit, second order, conserves a discrete energy.

    .. math:: M_L (u_{k+1} - 2 u_k + u_{k-1}) / \Delta t^2 = f(t_k) - K u_k

    Stable for :math:`\Delta t < 2 / \omega_{\max}`. It is stepped in half-step velocities, which loses least to rounding.

    References:
        Hughes (2000), The Finite Element Method, section 9.3. ISBN 978-0-486-41181-1
    """

    conditional: ClassVar[bool] = True

    def stepper(
        self,
        system: ElasticSystem,
        modulus: Tensor,
        dt: float,
        force: Callable[[float], Tensor | None],
        motion: Callable[[int], Tensor | None],
    ) -> "CentralDifferenceStepper":
        """A stepper for a batch; ``force(t)`` and ``motion(step)`` give ``(D, n)`` and ``(m, n)``."""
        return CentralDifferenceStepper(system, dt, system.stiffness_action(modulus), force, motion)


@dataclass(slots=True)
class CentralDifferenceStepper:
    """One step at a time; the state is the displacement and the velocity half a step later."""

    system: ElasticSystem
    dt: float
    action: Callable[[Tensor], Tensor]
    force: Callable[[float], Tensor | None]
    motion: Callable[[int], Tensor | None]

    def start(self, displacement: Tensor, velocity: Tensor, time: float) -> tuple[Tensor, Tensor]:
        """State at the first instant, from displacements and velocities of shape ``(D, n)``."""
        return displacement, velocity + (self.dt / 2) * self._acceleration(displacement, time)

    def step(self, state: tuple[Tensor, Tensor], index: int, time: float) -> tuple[Tensor, Tensor]:
        """State at step ``index``, which is the instant ``time``."""
        displacement, velocity = state
        displacement = displacement + self.dt * velocity
        prescribed = self.motion(index)
        if prescribed is not None:
            displacement = displacement.index_copy(0, self.system.driven, prescribed)
        return displacement, velocity + self.dt * self._acceleration(displacement, time)

    def _acceleration(self, displacement: Tensor, time: float) -> Tensor:
        """Accelerations, zero where the motion is prescribed."""
        load = self.force(time)
        internal = self.action(displacement)
        net = -internal if load is None else load - internal
        return self.system.inverse_mass[:, None] * net
