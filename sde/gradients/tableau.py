r"""Backward passes of ordinary differential equations by the Runge--Kutta scheme that integrated them.

Two equations have the same look. The *continuous* adjoint integrates

.. math:: \dot a = -a\, \partial_x f, \qquad \dot{\bar\theta} = -a\, \partial_\theta f

and the state itself backwards by the same scheme: the gradient of the exact flow up to errors of its order.
The *symplectic* adjoint is the derivative of the numbers that the scheme returned: from the state at the
start of a step the stages are made again, and their cotangents

.. math:: \bar k_i = h b_i \lambda_{n+1} + h \sum_{j > i} a_{ji} \bar X_j, \qquad
          \bar X_i = \bar k_i\, \partial_x f(X_i), \qquad \lambda_n = \lambda_{n+1} + \sum_i \bar X_i

taken from the last stage to the first. Either way the graph of one evaluation of f is alive at a time.

References:
    Matsubara, Miyatake & Yaguchi (2021), Symplectic adjoint method for exact gradient of neural ODE with
    minimal memory, section 4. arXiv:2102.09750
    Sanz-Serna (2016), Symplectic Runge--Kutta schemes for adjoint equations, section 3. doi:10.1137/151002769
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sde.equation import SDE, NoiseStructure
from sde.gradients.instants import InstantBars
from sde.gradients.parameters import check_parameters, trainable
from sde.march import Plan, stack
from sde.solvers.classical import Tableau

__all__ = ["Symplectic", "adjoint_step", "has_tableau"]


@dataclass(frozen=True, slots=True)
class Symplectic:
    """Differentiate the numbers of an explicit Runge--Kutta solve, one evaluation of the drift at a time.

    The states at the starts of the steps are kept and the stages made again, so the gradient is that of
    :class:`Backprop` to rounding. Beside those states its memory is that of one evaluation of the drift with
    its graph, whatever the numbers of steps and stages. For equations without noise and solvers with a
    tableau, such as :class:`sde.solvers.RungeKutta4`.

    Attributes:
        allow_missing: Whether the drift may use tensors that the equation does not name among its parameters;
            they get no gradient.

    References:
        Matsubara, Miyatake & Yaguchi (2021), section 4. arXiv:2102.09750
    """

    allow_missing: bool = False

    def run(self, plan: Plan, initial: Tensor, report: Callable[[int], None]) -> Tensor:
        """States at the instants, shape ``(n, T, *shape)``.

        Raises:
            ValueError: If the equation has noise or does not name its parameters, or the solver no tableau.
        """
        if not has_tableau(plan):
            raise ValueError(
                f"Symplectic() needs an equation without noise and a solver with a tableau, such as "
                f"RungeKutta4(); got {type(plan.solver).__name__}."
            )
        assert isinstance(plan.sde, SDE)  # the solver integrates nothing else
        if not self.allow_missing:
            check_parameters(plan, initial, (plan.sde.drift,))
        return _SymplecticSolve.apply(plan, report, initial, plan.grid.times, *trainable(plan))  # type: ignore[return-value]


class _Context(Protocol):
    """What is kept for the backward pass."""

    plan: Plan
    parameters: tuple[Tensor, ...]
    saved_tensors: tuple[Tensor, ...]

    def save_for_backward(self, *saved: Tensor) -> None: ...


class _SymplecticSolve(torch.autograd.Function):
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
        states = [initial]
        for step in plan.march(plan.start(initial), 0, plan.num_steps):
            states.append(plan.solver.read(step.carry))
            report(1)
        ctx.plan, ctx.parameters = plan, parameters
        ctx.save_for_backward(*states[:-1])
        return stack(initial, [states[number] for number in plan.grid.saves])

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: _Context, cotangents: Tensor
    ) -> tuple[Tensor | None, ...]:
        plan, instants = ctx.plan, InstantBars(ctx.plan)
        adjoint = torch.zeros_like(cotangents[:, 0])
        bars = [torch.zeros_like(parameter) for parameter in ctx.parameters]
        for number in reversed(range(plan.num_steps)):
            if instant := plan.grid.saves.get(number + 1):
                adjoint = adjoint + cotangents[:, instant]
            adjoint, changes = _step_back(
                plan, number, ctx.saved_tensors[number], adjoint, instants, ctx.parameters
            )
            bars = [bar + change for bar, change in zip(bars, changes, strict=True)]
        return None, None, adjoint + cotangents[:, 0], instants.of_times(), *bars


def has_tableau(plan: Plan) -> bool:
    """Whether a solve is of an equation without noise by an explicit Runge--Kutta scheme."""
    return plan.sde.structure is NoiseStructure.NONE and isinstance(_tableau(plan), Tableau)


def adjoint_step(
    plan: Plan, number: int, state: Tensor, adjoint: Tensor, parameters: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """A step back of the continuous adjoint: state, adjoint, and changes of the parameters' cotangents."""
    tableau, time, dt = _tableau(plan), plan.starts[number].detach(), plan.sizes[number].detach()
    pulls: list[_Pull] = []
    for node, row in zip(tableau.nodes, tableau.matrix, strict=True):
        here, there = state, adjoint
        for weight, pull in zip(row, pulls, strict=True):
            here, there = here - weight * dt * pull.slope, there + weight * dt * pull.state
        pulls.append(_pull(plan, time + (1 - node) * dt, here, there, parameters, timed=False))
    changes = [torch.zeros_like(parameter) for parameter in parameters]
    for weight, pull in zip(tableau.weights, pulls, strict=True):
        state, adjoint = state - weight * dt * pull.slope, adjoint + weight * dt * pull.state
        changes = [a + weight * dt * b for a, b in zip(changes, pull.parameters, strict=True)]
    return state, adjoint, changes


class _Pull(NamedTuple):
    """An evaluation of the drift, and a cotangent pulled back through it."""

    slope: Tensor
    state: Tensor
    time: Tensor | None
    parameters: list[Tensor]


def _tableau(plan: Plan) -> Tableau:
    """The tableau of the solver, where it has one."""
    return getattr(plan.solver, "tableau", None)  # type: ignore[return-value]


def _pull(
    plan: Plan, time: Tensor, state: Tensor, cotangent: Tensor, parameters: tuple[Tensor, ...], *, timed: bool
) -> _Pull:
    """Evaluate the drift and pull a cotangent back to state, time and parameters."""
    assert isinstance(plan.sde, SDE)
    with torch.enable_grad():
        x, at = state.detach().requires_grad_(), time.detach().requires_grad_(timed)
        slope = plan.sde.drift(at, x)
        inputs = (x, *parameters, *((at,) if timed else ()))
        constant = not slope.requires_grad
        pulled = (
            (None,) * len(inputs)
            if constant
            else torch.autograd.grad(slope, inputs, cotangent.expand_as(slope), allow_unused=True)
        )
    bars = [torch.zeros_like(p) if g is None else g for g, p in zip(pulled, inputs, strict=True)]
    return _Pull(slope.detach(), bars[0], bars[-1] if timed else None, bars[1 : 1 + len(parameters)])


def _step_back(
    plan: Plan,
    number: int,
    state: Tensor,
    adjoint: Tensor,
    instants: InstantBars,
    parameters: tuple[Tensor, ...],
) -> tuple[Tensor, list[Tensor]]:
    """The cotangent of the state at the start of a step, and changes of those of the parameters."""
    tableau, time, dt = _tableau(plan), plan.starts[number].detach(), plan.sizes[number].detach()
    assert isinstance(plan.sde, SDE)
    stages, slopes = [], []
    for node, row in zip(tableau.nodes, tableau.matrix, strict=True):
        stages.append(sum((w * dt * k for w, k in zip(row, slopes, strict=True)), state))
        slopes.append(plan.sde.drift(time + node * dt, stages[-1]).expand_as(state))
    if instants.wanted:
        step = sum((w * k for w, k in zip(tableau.weights, slopes, strict=True)), 0 * state)
        instants.add_length(number, dt, adjoint, step, 0 * step)
    changes = [torch.zeros_like(parameter) for parameter in parameters]
    towards = [weight * dt * adjoint for weight in tableau.weights]  # the cotangents of the slopes
    for i in reversed(range(len(stages))):
        moment = time + tableau.nodes[i] * dt
        pull = _pull(plan, moment, stages[i], towards[i], parameters, timed=instants.wanted)
        adjoint = adjoint + pull.state
        changes = [a + b for a, b in zip(changes, pull.parameters, strict=True)]
        for j, weight in enumerate(tableau.matrix[i]):
            towards[j] = towards[j] + weight * dt * pull.state
        if instants.wanted:
            inner = sum((w * k for w, k in zip(tableau.matrix[i], slopes, strict=False)), 0 * state)
            instants.add_length(number, dt, pull.state, inner, 0 * inner)
            instants.add_time(number, pull.time, end=False)
            assert pull.time is not None
            instants.sizes[number] += tableau.nodes[i] * pull.time
    return adjoint, changes
