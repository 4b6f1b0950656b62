"""Integrals along the paths of a solve, carried beside the state and differentiated with it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from sde.equation import Calculus, Equation, NoiseStructure
from sde.gradients.backprop import Checkpointed, Gradient
from sde.noise.increments import Areas, Increment, Law
from sde.solve import Noise, solve
from sde.solvers.interface import Carry, Orders, Solver, check_pairing

__all__ = ["Advance", "solve_with_integrals"]

Advance = Callable[[Any, Tensor, Carry, Tensor, Increment], tuple[Carry, tuple[Tensor, ...]]]
"""A step, as :meth:`sde.solvers.Solver.step`: what is carried on, and what each integral gains, ``(n,)``."""

_DEFAULT_GRADIENT = Checkpointed()


def solve_with_integrals(
    sde: Equation,
    initial: Tensor,
    times: Tensor,
    noise: Noise,
    advance: Advance,
    num_integrals: int,
    *,
    solver: Solver,
    substeps: int = 1,
    max_step: float | None = None,
    gradient: Gradient = _DEFAULT_GRADIENT,
    allow_diverged: bool = False,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Solve, and add up what the steps give beside the state.

    Args:
        sde: The equation.
        initial: State at ``times[0]``, shape ``(n, *shape)``.
        times: Strictly increasing instants, shape ``(T,)``.
        noise: As for :func:`sde.solve`.
        advance: Takes a step of ``solver``, and says what it adds to the integrals.
        num_integrals: How many there are.
        solver: One-step method.
        substeps: Steps between instants.
        max_step: Instead of ``substeps``: the length that no step exceeds.
        gradient: How the solve is differentiated, with a graph: :class:`Checkpointed` or :class:`Backprop`.
        allow_diverged: As for :func:`sde.solve`.

    Returns:
        States at the instants, shape ``(n, T, *shape)``, and each integral up to them, shape ``(n, T)``.

    Raises:
        ValueError: As :func:`sde.solve`.

    Example:
        >>> from sde import ode
        >>> from sde.solvers import Heun
        >>> heun = Heun()
        >>> def action(sde, time, state, dt, increment):
        ...     return heun.step(sde, time, state, dt, increment), (dt * state.square().sum(1),)
        >>> still, times = ode(lambda t, x: 0 * x), torch.linspace(0, 1, 3)
        >>> solve_with_integrals(still, 2 * torch.ones(1, 1), times, None, action, 1, solver=heun)[1]
        (tensor([[0., 2., 4.]]),)
    """
    check_pairing(solver, sde)  # here, where the solver still has its name
    flat = solve(
        sde,
        initial,
        times,
        noise,
        solver=cast(Solver, _Integrating(solver, advance, num_integrals)),  # attributes are the solver's own
        substeps=substeps,
        max_step=max_step,
        gradient=gradient,
        allow_diverged=allow_diverged,
    )
    size = flat.shape[2] - num_integrals
    return flat[:, :, :size].unflatten(2, initial.shape[1:]), flat[:, :, size:].unbind(2)


class _Carry(NamedTuple):
    """What the solver carries, and the integrals so far."""

    inner: Carry
    integrals: tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class _Integrating:
    """A solver that reads integrals behind the components of the state."""

    inner: Solver
    advance: Advance
    num_integrals: int

    @property
    def calculus(self) -> Calculus:
        return self.inner.calculus

    @property
    def orders(self) -> Mapping[NoiseStructure, Orders]:
        return self.inner.orders

    @property
    def areas(self) -> Areas:
        return self.inner.areas

    @property
    def law(self) -> Law:
        return self.inner.law

    @property
    def equation(self) -> type:
        return self.inner.equation

    def start(self, sde: Equation, time: Tensor, state: Tensor) -> _Carry:
        """Nothing is integrated yet."""
        none = state.new_zeros(len(state))
        return _Carry(self.inner.start(sde, time, state), (none,) * self.num_integrals)

    def step(self, sde: Equation, time: Tensor, carry: _Carry, dt: Tensor, increment: Increment) -> _Carry:
        """A step of the solver, and what it adds."""
        inner, gains = self.advance(sde, time, carry.inner, dt, increment)
        return _Carry(inner, tuple(a + b for a, b in zip(carry.integrals, gains, strict=True)))

    def read(self, carry: _Carry) -> Tensor:
        """State and integrals, shape ``(n, components + integrals)``."""
        return torch.cat((self.inner.read(carry.inner).flatten(1), torch.stack(carry.integrals, 1)), 1)
