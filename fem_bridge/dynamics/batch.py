"""What an integrator integrates: samples that share their steps, and the march through time."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from fem_bridge.dynamics.loads import Load
from fem_bridge.dynamics.system import ElasticSystem

__all__ = ["Batch", "Integrator", "State", "Stepper", "march"]

State = tuple[Tensor, ...]
"""Displacement first, then what else the scheme carries; each of shape ``(D, n)``."""


@dataclass(frozen=True, eq=False, slots=True)
class Batch:
    """Samples that share their steps. Columns are samples.

    Attributes:
        system: The system.
        modulus: Young's moduli [Pa], shape ``(n, C)`` or ``(C,)``.
        start: First instant [s].
        dt: Step [s].
        num_intervals: Number of intervals between output instants.
        substeps: Steps per interval.
        load: Nodal forces, or none.
        history: Prescribed displacements [m] at every step, shape ``(steps + 1, m, n)``, or none.
        observe: Observed degrees of freedom, shape ``(o,)``.
        displacement: Initial displacements [m], shape ``(D, n)``.
        velocity: Initial velocities [m/s], shape ``(D, n)``.
        tick: Called with the number of intervals that were completed since the last call, if anyone wants to
            know.
    """

    system: ElasticSystem
    modulus: Tensor
    start: float
    dt: float
    num_intervals: int
    substeps: int
    load: Load | None
    history: Tensor | None
    observe: Tensor
    displacement: Tensor
    velocity: Tensor
    tick: Callable[[int], None] | None

    @property
    def num_samples(self) -> int:
        """Number of samples."""
        return self.displacement.shape[1]

    def time(self, step: float) -> float:
        """Instant of a step, or between two."""
        return self.start + step * self.dt

    def force(self, time: float) -> Tensor | None:
        """Nodal forces [N/m], shape ``(D, n)``."""
        return None if self.load is None else self.load.force(time).to(self.system.lumped_mass).T

    @property
    def needs_gradient(self) -> bool:
        """Whether autograd has to follow the steps."""
        if not torch.is_grad_enabled():
            return False
        tensors = (self.modulus, self.history, self.displacement, self.velocity, self.force(self.time(0.5)))
        return any(tensor is not None and tensor.requires_grad for tensor in tensors)


class Stepper(Protocol):
    """A scheme prepared for a batch."""

    def start(self) -> State:
        """State at the first instant."""
        ...

    def step(self, state: State, index: int) -> State:
        """State at step ``index``, from that of the step before."""
        ...


@runtime_checkable
class Integrator(Protocol):
    """A time integration scheme.

    Implementations: :class:`CentralDifference`, :class:`Newmark`, :class:`GeneralizedAlpha`.
    """

    explicit: ClassVar[bool]
    """Whether the scheme is stable only below a critical step."""

    def run(self, batch: Batch) -> Tensor:
        """Observed displacements at the output instants, shape ``(T, o, n)``."""
        ...


def march(batch: Batch, stepper: Stepper) -> Tensor:
    """Take all steps and keep the observed rows at the output instants: shape ``(T, o, n)``."""
    state = stepper.start()
    frames = [state[0][batch.observe]]
    for interval in range(batch.num_intervals):
        for index in range(interval * batch.substeps, (interval + 1) * batch.substeps):
            state = stepper.step(state, index + 1)
        frames.append(state[0][batch.observe])
        if batch.tick is not None:
            batch.tick(1)
    return torch.stack(frames)
