"""Gradients in constant memory: the states are reconstructed by undoing the steps."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sde.equation import SDE
from sde.gradients.parameters import check_parameters, trainable
from sde.march import Plan, stack
from sde.noise.increments import Increment
from sde.solvers.reversible import ReversibleHeun

__all__ = ["Reversible"]


@dataclass(frozen=True, slots=True)
class Reversible:
    r"""Differentiate a solve by :class:`ReversibleHeun` in memory that does not grow with its steps.

    The backward pass undoes the steps, which is exact up to rounding, and draws their noise again. One
    evaluation of drift and diffusion and one of their derivatives in a step. The gradient is that of
    :class:`Backprop` to rounding, with respect to the initial state and the parameters of the equation.

    Attributes:
        allow_missing: Whether drift and diffusion may use tensors that the equation does not name among its
            parameters; they get no gradient.

    References:
        Kidger, Foster, Li & Lyons (2021), Efficient and accurate gradients for neural SDEs, algorithm 2.
        arXiv:2105.13493
    """

    allow_missing: bool = False

    def run(self, plan: Plan, initial: Tensor, report: Callable[[int], None]) -> Tensor:
        """States at the instants, shape ``(n, T, *shape)``.

        Raises:
            ValueError: If the solver is another, or the equation does not name its parameters.
        """
        if not isinstance(plan.solver, ReversibleHeun):
            raise ValueError(
                f"`solver` must be ReversibleHeun() for this gradient; got {type(plan.solver).__name__}."
            )
        assert isinstance(plan.sde, SDE)  # the solver integrates nothing else
        if not self.allow_missing:
            check_parameters(plan, initial, (plan.sde.drift, plan.sde.diffusion))
        return _ReversibleSolve.apply(plan, report, initial, *trainable(plan))  # type: ignore[return-value]


class _Context(Protocol):
    """What is kept for the backward pass."""

    plan: Plan
    ends: tuple[Tensor, Tensor]
    parameters: tuple[Tensor, ...]


class _ReversibleSolve(torch.autograd.Function):
    """The solve as one node of the graph."""

    @staticmethod
    def forward(
        ctx: _Context, plan: Plan, report: Callable[[int], None], initial: Tensor, *parameters: Tensor
    ) -> Tensor:
        carry, saved = plan.start(initial), []
        for first in range(0, plan.num_steps, plan.chunk):
            count = min(plan.chunk, plan.num_steps - first)
            carry, states = plan.advance(carry, first, count)
            saved += states
            report(count)
        ctx.plan, ctx.ends, ctx.parameters = plan, (carry.y, carry.z), parameters
        return stack(initial, saved)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: _Context, cotangents: Tensor
    ) -> tuple[Tensor | None, ...]:
        back = _Backward(ctx.plan, ctx.ends, ctx.parameters)
        back.run(cotangents)
        return None, None, back.y_bar + back.z_bar, *back.parameter_bars


class _Backward:
    """The backward pass: state and cotangents, from the end to the start."""

    def __init__(self, plan: Plan, ends: tuple[Tensor, Tensor], parameters: tuple[Tensor, ...]) -> None:
        assert isinstance(plan.sde, SDE)  # checked before
        y, z = ends
        self.plan, self.sde, self.y, self.parameters = plan, plan.sde, y, parameters
        self.y_bar, self.z_bar = torch.zeros_like(y), torch.zeros_like(y)
        self.parameter_bars = [torch.zeros_like(p) for p in parameters]
        # Step, noise and cotangent of the move that the present coefficients make in the next step.
        self.later: tuple[Tensor, Increment, Tensor] | None = None
        end = plan.starts[-1] + plan.sizes[-1]
        self._evaluate(end, z)

    def run(self, cotangents: Tensor) -> None:
        """Undo all steps."""
        plan = self.plan
        for first in reversed(range(0, plan.num_steps, plan.chunk)):
            noise = list(plan.noise(first, min(plan.chunk, plan.num_steps - first)))
            for k in reversed(range(len(noise))):
                number = first + k
                if (number + 1) % plan.substeps == 0:
                    self.y_bar = self.y_bar + cotangents[:, (number + 1) // plan.substeps]
                self._undo(plan.starts[number], plan.sizes[number], noise[k])
        self._collect(None)
        self.y_bar = self.y_bar + cotangents[:, 0]

    def _evaluate(self, time: Tensor, z: Tensor) -> None:
        """Drift and diffusion at an auxiliary state, with their graph."""
        with torch.enable_grad():
            self.z = z.detach().requires_grad_()
            self.drift, self.diffusion = (
                self.sde.drift(time, self.z),
                self.sde.diffusion(time, self.z),
            )

    def _move(self, dt: Tensor, increment: Increment) -> Tensor:
        """Drift times step plus diffusion times increment."""
        return self.drift * dt + self.sde.product(self.diffusion, increment.wiener)

    def _undo(self, time: Tensor, dt: Tensor, increment: Increment) -> None:
        """One step back, for the state and for the cotangents."""
        self._collect((dt, increment, 0.5 * self.y_bar))
        with torch.no_grad():
            move = self._move(dt, increment)
            z = 2 * self.y - self.z - move
        self._evaluate(time, z)
        with torch.no_grad():
            self.y = self.y - 0.5 * (move + self._move(dt, increment))
        self.later = (dt, increment, 0.5 * self.y_bar + self.z_bar)
        self.y_bar, self.z_bar = self.y_bar + 2 * self.z_bar, -self.z_bar

    def _collect(self, earlier: tuple[Tensor, Increment, Tensor] | None) -> None:
        """Carry the cotangents of the moves that the present coefficients make to state and parameters."""
        uses = [use for use in (earlier, self.later) if use is not None]
        with torch.enable_grad():
            total = torch.stack(
                [(cotangent * self._move(dt, inc)).sum() for dt, inc, cotangent in uses]
            ).sum()
        if not total.requires_grad:
            return
        bars = torch.autograd.grad(total, (self.z, *self.parameters), allow_unused=True)
        if bars[0] is not None:
            self.z_bar = self.z_bar + bars[0]
        for i, bar in enumerate(bars[1:]):
            if bar is not None:
                self.parameter_bars[i] = self.parameter_bars[i] + bar
