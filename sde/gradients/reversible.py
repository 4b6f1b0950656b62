"""Gradients in constant memory: the states are reconstructed by undoing the steps."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sde.equation import SDE
from sde.gradients.instants import InstantBars
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
    :class:`Backprop` to rounding, with respect to the initial state, the instants and the parameters of
    the equation.

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
        return _ReversibleSolve.apply(plan, report, initial, plan.grid.times, *trainable(plan))  # type: ignore[return-value]


class _Use(NamedTuple):
    """A step in which coefficients are used."""

    number: int
    dt: Tensor
    increment: Increment
    cotangent: Tensor  #: of the move that they make


class _Context(Protocol):
    """What is kept for the backward pass."""

    plan: Plan
    ends: tuple[Tensor, Tensor]
    parameters: tuple[Tensor, ...]


class _ReversibleSolve(torch.autograd.Function):
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
        ctx.plan, ctx.ends, ctx.parameters = plan, (carry.y, carry.z), parameters
        return stack(initial, saved)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: _Context, cotangents: Tensor
    ) -> tuple[Tensor | None, ...]:
        back = _Backward(ctx.plan, ctx.ends, ctx.parameters)
        back.run(cotangents)
        return None, None, back.y_bar + back.z_bar, back.instants.of_times(), *back.parameter_bars


class _Backward:
    """The backward pass: state and cotangents, from the end to the start."""

    def __init__(self, plan: Plan, ends: tuple[Tensor, Tensor], parameters: tuple[Tensor, ...]) -> None:
        assert isinstance(plan.sde, SDE)  # checked before
        y, z = ends
        self.plan, self.sde, self.y, self.parameters = plan, plan.sde, y, parameters
        self.y_bar, self.z_bar = torch.zeros_like(y), torch.zeros_like(y)
        self.parameter_bars = [torch.zeros_like(p) for p in parameters]
        self.instants = InstantBars(plan)
        self.later: _Use | None = None  # of the present coefficients in the next step
        self.place = (plan.num_steps - 1, True)  # step at whose start, or end, the coefficients are
        self._evaluate(plan.starts[-1] + plan.sizes[-1], z)

    def run(self, cotangents: Tensor) -> None:
        """Undo all steps."""
        plan = self.plan
        for first in reversed(range(0, plan.num_steps, plan.chunk)):
            noise = list(plan.noise(first, min(plan.chunk, plan.num_steps - first)))
            for k in reversed(range(len(noise))):
                number = first + k
                if number + 1 in plan.grid.saves:
                    self.y_bar = self.y_bar + cotangents[:, plan.grid.saves[number + 1]]
                self._undo(number, noise[k])
        self._collect(None)
        self.y_bar = self.y_bar + cotangents[:, 0]

    def _evaluate(self, time: Tensor, z: Tensor) -> None:
        """Drift and diffusion at an auxiliary state, with their graph."""
        with torch.enable_grad():
            self.z, self.time = z.detach().requires_grad_(), self.instants.time(time)
            self.drift = self.sde.drift(self.time, self.z)
            self.diffusion = self.sde.diffusion(self.time, self.z)

    def _move(self, dt: Tensor, increment: Increment) -> Tensor:
        """Drift times step plus diffusion times increment."""
        return self.drift * dt + self.sde.product(self.diffusion, increment.wiener)

    def _undo(self, number: int, increment: Increment) -> None:
        """One step back, for the state and for the cotangents."""
        time, dt = self.plan.starts[number].detach(), self.plan.sizes[number].detach()
        self._collect(_Use(number, dt, increment, 0.5 * self.y_bar))
        with torch.no_grad():
            move = self._move(dt, increment)
            z = 2 * self.y - self.z - move
        self._evaluate(time, z)
        self.place = (number, False)
        with torch.no_grad():
            self.y = self.y - 0.5 * (move + self._move(dt, increment))
        self.later = _Use(number, dt, increment, 0.5 * self.y_bar + self.z_bar)
        self.y_bar, self.z_bar = self.y_bar + 2 * self.z_bar, -self.z_bar

    def _collect(self, earlier: "_Use | None") -> None:
        """Carry the cotangents of the moves of the present coefficients to state, parameters and instants."""
        uses = [use for use in (earlier, self.later) if use is not None]
        for number, dt, increment, cotangent in uses:
            noise = self.sde.product(self.diffusion.detach(), increment.wiener)
            self.instants.add_length(number, dt, cotangent, self.drift.detach(), noise)
        with torch.enable_grad():
            total = torch.stack(
                [(cotangent * self._move(dt, inc)).sum() for _, dt, inc, cotangent in uses]
            ).sum()
        if not total.requires_grad:
            return
        times = (self.time,) if self.instants.wanted else ()
        bars = torch.autograd.grad(total, (self.z, *self.parameters, *times), allow_unused=True)
        if bars[0] is not None:
            self.z_bar = self.z_bar + bars[0]
        if times:
            self.instants.add_time(self.place[0], bars[-1], end=self.place[1])
        for i, bar in enumerate(bars[1 : 1 + len(self.parameters)]):
            if bar is not None:
                self.parameter_bars[i] = self.parameter_bars[i] + bar
