"""Explicit time integration."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fem_bridge.dynamics import kernel
from fem_bridge.dynamics.batch import Batch, State, march

__all__ = ["CentralDifference"]


@dataclass(frozen=True, slots=True)
class CentralDifference:
    r"""Central difference with the lumped mass: explicit, second order, conserves a discrete energy.

    .. math:: M_L \, (u_{k+1} - 2 u_k + u_{k-1}) / \Delta t^2 = f(t_k) - K u_k

    Stable for :math:`\Delta t < 2 / \omega_{\max}` (:meth:`ElasticSystem.critical_step`). It is stepped
    through velocities at half steps, which loses least to rounding. On the CPU without gradients a compiled
    kernel takes the steps where a C++ compiler was found; otherwise torch does. Both agree to rounding.

    Attributes:
        compiled: Whether the kernel may be used.

    References:
        Hughes (2000), The Finite Element Method, section 9.3. ISBN 978-0-486-41181-1
    """

    compiled: bool = True
    explicit: ClassVar[bool] = True

    def run(self, batch: Batch) -> Tensor:
        """Observed displacements at the output instants, shape ``(T, o, n)``."""
        if self.compiled and kernel.can_run(batch):
            return kernel.run(batch)
        return march(batch, _Leapfrog(batch, batch.system.stiffness_action(batch.modulus)))


@dataclass(frozen=True, eq=False, slots=True)
class _Leapfrog:
    """The scheme in torch; its state is the displacement and the velocity half a step later."""

    batch: Batch
    action: Callable[[Tensor], Tensor]

    def start(self) -> State:
        """Displacement at the first instant and velocity half a step later."""
        return self.batch.displacement, self._kick(
            self.batch.displacement, self.batch.velocity, 0, self.batch.dt / 2
        )

    def step(self, state: State, index: int) -> State:
        """Drift by the velocity, prescribe the motion, and kick by the forces."""
        displacement, velocity = state
        displacement = displacement + self.batch.dt * velocity
        if self.batch.history is not None:
            displacement = displacement.index_copy(0, self.batch.system.driven, self.batch.history[index])
        return displacement, self._kick(displacement, velocity, index, self.batch.dt)

    def _kick(self, displacement: Tensor, velocity: Tensor, index: int, duration: float) -> Tensor:
        """Velocity after a duration of the forces at step ``index``."""
        force, load = self.action(displacement), self.batch.force(self.batch.time(index))
        net = force if load is None else force - load
        return velocity - (duration * self.batch.system.inverse_mass)[:, None] * net
