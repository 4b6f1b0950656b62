"""Implicit time integration: Newmark and generalised-alpha with the consistent mass."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fem_bridge.dynamics.batch import Batch, State, march
from fem_bridge.dynamics.effective import EffectiveSolver
from fem_bridge.dynamics.internal_force import ConstantProduct, sparse_tensor

__all__ = ["GeneralizedAlpha", "Newmark"]


@dataclass(frozen=True, slots=True)
class Newmark:
    r"""Newmark's method with the consistent mass; the default is average acceleration, without damping.

    .. math::
        M a_{k+1} + K u_{k+1} &= f(t_{k+1}) \\
        u_{k+1} &= u_k + \Delta t\, v_k + \Delta t^2 \left[ (1/2 - \beta) a_k + \beta a_{k+1} \right] \\
        v_{k+1} &= v_k + \Delta t \left[ (1 - \gamma) a_k + \gamma a_{k+1} \right]

    Stable at any step for :math:`2 \beta \ge \gamma \ge 1/2`, second order for :math:`\gamma = 1/2`. The
    effective matrix is factored once for moduli shared by the batch, and once per sample otherwise.
    Prescribed motion starts without acceleration, and its later accelerations follow from the formula above:
    a part of a body driven by the histories of the whole repeats the whole.

    Attributes:
        beta: Weight of the new acceleration in the displacement, positive.
        gamma: Weight of the new acceleration in the velocity, at least 1/2.

    Raises:
        ValueError: If the scheme is not unconditionally stable.

    References:
        Newmark (1959). doi:10.1061/JMCEA3.0000098; Hughes (2000), section 9.1. ISBN 978-0-486-41181-1
    """

    beta: float = 0.25
    gamma: float = 0.5
    explicit: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 2 * self.beta >= self.gamma >= 0.5:
            raise ValueError(
                f"`beta` and `gamma` must satisfy 2 beta >= gamma >= 1/2; got {self.beta} and {self.gamma}."
            )

    def run(self, batch: Batch) -> Tensor:
        """Observed displacements at the output instants, shape ``(T, o, n)``."""
        return march(batch, _AlphaStepper.of(batch, _Weights(self.beta, self.gamma, 0.0, 0.0)))


@dataclass(frozen=True, slots=True)
class GeneralizedAlpha:
    r"""The generalised-alpha method with the consistent mass: second order, damps high frequencies only.

    .. math:: M a_{k+1-\alpha_m} + K u_{k+1-\alpha_f} = f(t_{k+1-\alpha_f}), \qquad
        \alpha_m = \frac{2 \rho - 1}{\rho + 1}, \quad \alpha_f = \frac{\rho}{\rho + 1}

    with Newmark's formulas for :math:`\gamma = 1/2 - \alpha_m + \alpha_f` and
    :math:`\beta = (1 - \alpha_m + \alpha_f)^2/4`. Stable at any step. Prescribed motion is treated as by
    :class:`Newmark`.

    Attributes:
        rho_inf: Spectral radius at infinite frequency, in [0, 1]: 1 does not damp, 0 does most.

    Raises:
        ValueError: If the radius is out of range.

    References:
        Chung & Hulbert (1993). doi:10.1115/1.2900803
    """

    rho_inf: float = 0.8
    explicit: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 <= self.rho_inf <= 1:
            raise ValueError(f"`rho_inf` must lie in [0, 1]; got {self.rho_inf}.")

    def run(self, batch: Batch) -> Tensor:
        """Observed displacements at the output instants, shape ``(T, o, n)``."""
        mass = (2 * self.rho_inf - 1) / (self.rho_inf + 1)
        force = self.rho_inf / (self.rho_inf + 1)
        shift = 1 - mass + force
        return march(batch, _AlphaStepper.of(batch, _Weights(shift**2 / 4, shift - 0.5, mass, force)))


@dataclass(frozen=True, slots=True)
class _Weights:
    """Parameters of the family; Newmark is the member without shifts."""

    beta: float
    gamma: float
    mass_shift: float
    force_shift: float


@dataclass(frozen=True, eq=False, slots=True)
class _AlphaStepper:
    """The family in terms of accelerations; its state is displacement, velocity and acceleration."""

    batch: Batch
    weights: _Weights
    stiffness: Callable[[Tensor], Tensor]
    mass: Callable[[Tensor], Tensor]
    solver: EffectiveSolver
    mass_solver: EffectiveSolver
    still: Tensor

    @staticmethod
    def of(batch: Batch, weights: _Weights) -> "_AlphaStepper":
        """Factor the matrices of a batch."""
        system = batch.system
        mass = sparse_tensor(system.operators.consistent_mass, system.dtype, system.device)
        scale = (1 - weights.force_shift) * weights.beta * batch.dt**2
        return _AlphaStepper(
            batch,
            weights,
            system.stiffness_action(batch.modulus),
            lambda x: ConstantProduct.apply(x, mass),  # pyright: ignore[reportReturnType]
            EffectiveSolver.of(system, batch.modulus, mass=1 - weights.mass_shift, stiffness=scale),
            EffectiveSolver.of(system, batch.modulus, mass=1.0, stiffness=0.0),
            torch.cat([system.fixed, system.driven]),
        )

    def start(self) -> State:
        """The initial state with the acceleration that the equation of motion gives."""
        displacement, load = self.batch.displacement, self.batch.force(self.batch.time(0))
        force = -self.stiffness(displacement)
        net = force if load is None else load + force
        return displacement, self.batch.velocity, self.mass_solver.solve(net)

    def step(self, state: State, index: int) -> State:
        """Predict, prescribe, solve for the free accelerations, correct."""
        displacement, velocity, old = state
        w, dt, system = self.weights, self.batch.dt, self.batch.system
        predictor = displacement + dt * velocity + (dt**2 * (0.5 - w.beta)) * old
        prescribed = torch.zeros_like(old)
        if self.batch.history is not None:
            change = self.batch.history[index] - predictor[system.driven]
            prescribed = prescribed.index_copy(0, system.driven, change / (w.beta * dt**2))
        known = predictor + (w.beta * dt**2) * prescribed
        mixed = (1 - w.force_shift) * known + w.force_shift * displacement
        inertia = (1 - w.mass_shift) * prescribed + w.mass_shift * old
        load = self.batch.force(self.batch.time(index - w.force_shift))
        internal = self.stiffness(mixed) + self.mass(inertia)
        new = prescribed + self.solver.solve(-internal if load is None else load - internal)
        corrected = velocity + dt * ((1 - w.gamma) * old + w.gamma * new)
        return predictor + (w.beta * dt**2) * new, corrected, new
