"""The continuous adjoint: an equation for the gradient, integrated backwards along the same path."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sde.calculus import to_stratonovich
from sde.equation import SDE
from sde.gradients.instants import InstantBars
from sde.gradients.parameters import check_parameters, trainable
from sde.gradients.tableau import adjoint_step, has_tableau
from sde.march import Plan, Step, stack

__all__ = ["Adjoint"]


@dataclass(frozen=True, slots=True)
class Adjoint:
    r"""Differentiate a solve by integrating the adjoint equation backwards, in constant memory.

    .. math::

        \mathrm da = -a\,\partial_x f\,\mathrm dt - a\,\partial_x g \circ \mathrm dW, \qquad
        \mathrm d\bar\theta = -a\,\partial_\theta f\,\mathrm dt - a\,\partial_\theta g \circ \mathrm dW

    beside the state, from the end to the start, by Heun's scheme in Stratonovich form and with the noise of
    the forward pass; equations without noise that a Runge--Kutta scheme with a tableau integrated, by that
    scheme (unless gradients of the instants are asked for). The result is the gradient of the exact solution
    up to both discretisations, not of the numbers that the forward pass returned. The state is restored at
    the instants that were saved.

    Attributes:
        allow_missing: Whether drift and diffusion may use tensors that the equation does not name among its
            parameters; they get no gradient.

    References:
        Li, Wong, Chen & Duvenaud (2020), Scalable gradients for stochastic differential equations, section 3.
        arXiv:2001.01328
    """

    allow_missing: bool = False

    def run(self, plan: Plan, initial: Tensor, report: Callable[[int], None]) -> Tensor:
        """States at the instants, shape ``(n, T, *shape)``.

        Raises:
            ValueError: If the equation does not name its parameters or is no SDE.
        """
        if not isinstance(plan.sde, SDE):
            raise ValueError(f"`sde` must be an SDE for this gradient; got {type(plan.sde).__name__}.")
        if not self.allow_missing:
            check_parameters(plan, initial, (plan.sde.drift, plan.sde.diffusion))
        return _AdjointSolve.apply(plan, report, initial, plan.grid.times, *trainable(plan))  # type: ignore[return-value]


class _Context(Protocol):
    """What is kept for the backward pass."""

    plan: Plan
    parameters: tuple[Tensor, ...]
    saved_tensors: tuple[Tensor, ...]

    def save_for_backward(self, *saved: Tensor) -> None: ...


class _AdjointSolve(torch.autograd.Function):
    """The solve as one node of the graph."""

    @staticmethod
    def forward(
        ctx: _Context,
        plan: Plan,
        report: Callable[[int], None],
        initial: Tensor,
        times: Tensor,
        *parameters: Tensor,
    ) -> Tensor:
        carry, saved = plan.start(initial), []
        for first in range(0, plan.num_steps, plan.chunk):
            count = min(plan.chunk, plan.num_steps - first)
            carry, states = plan.advance(carry, first, count)
            saved += states
            report(count)
        paths = stack(initial, saved)
        assert isinstance(plan.sde, SDE)  # checked before
        ctx.plan, ctx.parameters = plan, parameters
        ctx.save_for_backward(paths)
        return paths

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: _Context, cotangents: Tensor
    ) -> tuple[Tensor | None, ...]:
        (paths,) = ctx.saved_tensors
        plan, parameters = ctx.plan, ctx.parameters
        adjoint, bars = torch.zeros_like(paths[:, 0]), [torch.zeros_like(p) for p in parameters]
        state, instants = paths[:, -1], InstantBars(plan)
        assert isinstance(plan.sde, SDE)  # checked before
        by_tableau = has_tableau(plan) and not instants.wanted
        sde = plan.sde if by_tableau else to_stratonovich(plan.sde)
        for first in reversed(range(0, plan.num_steps, plan.chunk)):
            noise = list(plan.noise(first, min(plan.chunk, plan.num_steps - first)))
            for k in reversed(range(len(noise))):
                number = first + k
                if instant := plan.grid.saves.get(number + 1):
                    state, adjoint = paths[:, instant], adjoint + cotangents[:, instant]
                if by_tableau:
                    state, adjoint, changes = adjoint_step(plan, number, state, adjoint, parameters)
                else:
                    ends = Step(
                        number, plan.starts[number].detach(), plan.sizes[number].detach(), noise[k], state
                    )
                    state, adjoint, changes = _step_back(sde, parameters, adjoint, ends, instants)
                bars = [bar + change for bar, change in zip(bars, changes, strict=True)]
        return None, None, adjoint + cotangents[:, 0], instants.of_times(), *bars


def _step_back(
    sde: SDE, parameters: tuple[Tensor, ...], adjoint: Tensor, step: Step, instants: InstantBars
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """One step of Heun backwards, for state, adjoint and the cotangents of parameters and instants."""
    number, time, dt, increment, state = step

    def slopes(x: Tensor, a: Tensor, *, end: bool) -> tuple[Tensor, Tensor, list[Tensor]]:
        with torch.enable_grad():
            x, at = x.detach().requires_grad_(), instants.time(time + dt if end else time)
            drift, noise = sde.drift(at, x), sde.product(sde.diffusion(at, x), increment.wiener)
            move = drift * dt + noise
            inputs = (x, *parameters, *((at,) if instants.wanted else ()))
            constant = not move.requires_grad  # in the state, the instants and the parameters
            grads = (
                (None,) * len(inputs)
                if constant
                else torch.autograd.grad((a * move).sum(), inputs, allow_unused=True)
            )
        if instants.wanted:
            instants.add_length(number, dt, 0.5 * a, drift.detach(), noise.detach())
            bar = grads[-1]
            instants.add_time(number, None if bar is None else 0.5 * bar, end=end)
        bars = [torch.zeros_like(p) if g is None else g for g, p in zip(grads, inputs, strict=True)]
        return move.detach(), bars[0], bars[1 : 1 + len(parameters)]

    move, pull, bars = slopes(state, adjoint, end=True)
    other_move, other_pull, other_bars = slopes(state - move, adjoint + pull, end=False)
    mean = [0.5 * (one + other) for one, other in zip(bars, other_bars, strict=True)]
    return state - 0.5 * (move + other_move), adjoint + 0.5 * (pull + other_pull), mean
