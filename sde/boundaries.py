"""Paths that are absorbed or reflected where a component of the state meets a boundary."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sde.equation import SDE
from sde.events import Level, check_one_process, step_variance
from sde.march import Plan, Step
from sde.noise.stream import NoiseStream, Purpose
from sde.solve import make_plan
from sde.solvers.euler import EulerMaruyama
from sde.solvers.interface import OneStep, Solver

__all__ = ["AbsorbedPaths", "Boundary", "ReflectedPaths", "solve_absorbed", "solve_reflected"]

_DEFAULT_SOLVER = EulerMaruyama()


@dataclass(frozen=True, slots=True)
class Boundary:
    """Where a component of the state ends: below, above or on both sides.

    Attributes:
        lower: The lower end, or ``None``.
        upper: The upper end, or ``None``.
        component: Of the state.
        bridge: Look between the ends of steps too; ``False`` looks at the ends alone.

    Raises:
        ValueError: If there is no end, or the lower one is not below the upper one.

    Example:
        >>> Boundary(lower=0.0)
        Boundary(lower=0.0, upper=None, component=0, bridge=True)
    """

    lower: float | None = None
    upper: float | None = None
    component: int = 0
    bridge: bool = True

    def __post_init__(self) -> None:
        if self.lower is None and self.upper is None:
            raise ValueError("`lower` or `upper` must be given; got neither.")
        if self.lower is not None and self.upper is not None and not self.lower < self.upper:
            raise ValueError(f"`lower` must lie below `upper`; got {self.lower} and {self.upper}.")

    def ends(self) -> list[tuple[str, float, float]]:
        """Name, place and inward direction of each end."""
        found = (("lower", self.lower, 1.0), ("upper", self.upper, -1.0))
        return [(name, place, inward) for name, place, inward in found if place is not None]

    def check_inside(self, initial: Tensor) -> None:
        """Raise unless states ``(n, d)`` lie within the boundary.

        Raises:
            ValueError: If one lies outside.
        """
        values = initial[:, self.component]
        for name, place, inward in self.ends():
            outside = inward * (values - place) < 0
            if bool(outside.any()):
                row = int(outside.nonzero()[0])
                raise ValueError(
                    f"`initial` must lie within the boundary, {name} end {place:g}; "
                    f"got {float(values[row]):g} in row {row}."
                )


@dataclass(frozen=True, slots=True)
class AbsorbedPaths:
    """What a solve with an absorbing boundary returns.

    Attributes:
        states: States at the instants, shape ``(n, T, d)``; those of absorbed paths stay where they ended.
        times: Times of absorption, shape ``(n,)``; infinite for paths that live on.
    """

    states: Tensor
    times: Tensor


@dataclass(frozen=True, slots=True)
class ReflectedPaths:
    """What a solve with a reflecting boundary returns.

    Attributes:
        states: States at the instants, shape ``(n, T, d)``.
        lower_push: Accumulated push of the lower end, its local time, shape ``(n, T)``.
        upper_push: That of the upper end.
    """

    states: Tensor
    lower_push: Tensor
    upper_push: Tensor


def solve_absorbed(
    sde: SDE,
    initial: Tensor,
    times: Tensor,
    noise: NoiseStream,
    boundary: Boundary,
    *,
    solver: Solver = _DEFAULT_SOLVER,
    substeps: int = 1,
    max_step: float | None = None,
) -> AbsorbedPaths:
    """Integrate an equation whose paths end where a component first meets a boundary.

    Crossings between the ends of steps are found as by :func:`sde.first_passage`, exactly in law for constant
    coefficients and one end. With two ends each is looked at by itself and the earlier crossing counts, which
    is right where a step rarely reaches from one end to the other.

    Args:
        sde: The equation, of diagonal, scalar or additive noise without matrix.
        initial: State at ``times[0]`` within the boundary, shape ``(n, d)``.
        times: Strictly increasing instants, shape ``(T,)``.
        noise: The samples; crossings are drawn with :attr:`Purpose.BRIDGE`.
        boundary: Where paths end.
        solver: One-step method that carries the state alone.
        substeps: Steps between instants.
        max_step: Instead of ``substeps``: the length that no step exceeds.

    Returns:
        States and times of absorption.

    Raises:
        ValueError: If the noise has a matrix, a path starts outside, or as :func:`sde.solve` does.

    Example:
        >>> walk = SDE(lambda t, x: 0 * x, lambda t, x: torch.ones_like(x))
        >>> start, times = torch.ones(1000, 1), torch.linspace(0, 1, 11)
        >>> done = solve_absorbed(walk, start, times, NoiseStream(0, 0, 1000), Boundary(lower=0.0))
        >>> bool((done.states[:, -1, 0][done.times <= 1.0] == 0).all())
        True

    References:
        Gobet (2000). doi:10.1016/S0304-4149(99)00109-X
    """
    plan = _plan(sde, initial, times, noise, boundary, solver, substeps, max_step)
    levels = [
        Level(place, boundary.component, noise.fork(f"absorbed, {name}"), boundary.bridge)
        for name, place, _ in boundary.ends()
    ]
    passage = initial.new_full((len(initial),), torch.inf)
    for level in levels:
        ended = initial[:, boundary.component] == level.value
        passage = torch.where(ended, times[0].to(initial), passage)

    def amend(step: Step, old: Tensor) -> Tensor:
        nonlocal passage
        alive, new = passage.isinf(), step.carry
        share, place = torch.full_like(passage, torch.inf), torch.zeros_like(passage)
        for level in levels:
            crossed, when = level.look(sde, step, old, step.carry)
            sooner = crossed & (when < share)
            share, place = torch.where(sooner, when, share), torch.where(sooner, level.value, place)
        ended = alive & share.isfinite()
        passage = torch.where(ended, step.time + step.dt * share, passage)
        at_end = old + share.clamp(max=1.0).unsqueeze(1) * (new - old)
        at_end = _with_component(at_end, boundary.component, place)
        new = torch.where(ended.unsqueeze(1), at_end, new)
        return torch.where(alive.unsqueeze(1), new, old)

    saved = [
        step.carry
        for step in plan.march(plan.start(initial), 0, plan.num_steps, amend)
        if step.number + 1 in plan.grid.saves
    ]
    return AbsorbedPaths(torch.stack([initial, *saved], 1), passage)


def solve_reflected(
    sde: SDE,
    initial: Tensor,
    times: Tensor,
    noise: NoiseStream,
    boundary: Boundary,
    *,
    solver: Solver = _DEFAULT_SOLVER,
    substeps: int = 1,
    max_step: float | None = None,
) -> ReflectedPaths:
    r"""Integrate an equation whose paths are pushed back where a component meets a boundary.

    .. math:: \mathrm dX = f\,\mathrm dt + g\,\mathrm dW + \mathrm dL - \mathrm dU

    with pushes L and U that grow only at the ends. A step from :math:`X_k` to :math:`Y` that ignores the
    boundary has a minimum
    :math:`m = \tfrac12 (X_k + Y - \sqrt{(Y - X_k)^2 - 2 \sigma^2 h \log V})` on the way, with V uniform, and
    is pushed by :math:`\max(0, \text{lower} - m)`. For constant coefficients and one end, states and pushes
    have the right law for any step. With two ends a step is pushed by each in turn.

    Args:
        sde: The equation, of diagonal, scalar or additive noise without matrix.
        initial: State at ``times[0]`` within the boundary, shape ``(n, d)``.
        times: Strictly increasing instants, shape ``(T,)``.
        noise: The samples; minima are drawn with :attr:`Purpose.BRIDGE`.
        boundary: Where paths are reflected.
        solver: One-step method that carries the state alone.
        substeps: Steps between instants.
        max_step: Instead of ``substeps``: the length that no step exceeds.

    Returns:
        States and accumulated pushes.

    Raises:
        ValueError: If the noise has a matrix, a path starts outside, or as :func:`sde.solve` does.

    Example:
        >>> walk = SDE(lambda t, x: -x, lambda t, x: torch.ones_like(x))
        >>> start, times = torch.ones(1000, 1), torch.linspace(0, 1, 11)
        >>> done = solve_reflected(walk, start, times, NoiseStream(0, 0, 1000), Boundary(lower=0.0))
        >>> bool((done.states >= 0).all())
        True

    References:
        Lepingle (1995), Euler scheme for reflected stochastic differential equations.
        doi:10.1016/0378-4754(93)E0051-6
    """
    plan = _plan(sde, initial, times, noise, boundary, solver, substeps, max_step)
    pushes = {name: initial.new_zeros(len(initial)) for name in ("lower", "upper")}
    forks = {name: noise.fork(f"reflected, {name}") for name in pushes}

    def amend(step: Step, old: Tensor) -> Tensor:
        component, new = boundary.component, step.carry
        variance = step_variance(sde, step, old, component) if boundary.bridge else None
        value = new[:, component]
        for name, place, inward in boundary.ends():
            reach = inward * (value - place)
            if variance is not None:
                uniform = forks[name].uniforms(
                    1, purpose=Purpose.BRIDGE, first=step.number, dtype=value.dtype, device=value.device
                )[:, 0]
                reach = _minimum(inward * (old[:, component] - place), reach, variance, uniform)
            push = (-reach).clamp(min=0)
            pushes[name] = pushes[name] + push
            value = value + inward * push
        value = value.clamp(boundary.lower, boundary.upper)  # a push may reach the other end
        return _with_component(new, component, value)

    states, lower, upper = [initial], [pushes["lower"]], [pushes["upper"]]
    for step in plan.march(plan.start(initial), 0, plan.num_steps, amend):
        if step.number + 1 in plan.grid.saves:
            states.append(step.carry)
            lower.append(pushes["lower"])
            upper.append(pushes["upper"])
    return ReflectedPaths(torch.stack(states, 1), torch.stack(lower, 1), torch.stack(upper, 1))


def _plan(
    sde: SDE,
    initial: Tensor,
    times: Tensor,
    noise: NoiseStream,
    boundary: Boundary,
    solver: Solver,
    substeps: int,
    max_step: float | None,
) -> Plan:
    """The steps without the boundary, all arguments checked."""
    check_one_process(sde)
    if not isinstance(solver, OneStep):
        raise ValueError(
            f"`solver` must carry the state alone, since the boundary changes it; "
            f"got {type(solver).__name__}."
        )
    plan = make_plan(sde, initial, times, noise, solver, substeps, max_step)
    boundary.check_inside(initial)
    return plan


def _minimum(start: Tensor, end: Tensor, variance: Tensor, uniform: Tensor) -> Tensor:
    """Minimum of a Brownian bridge of a variance over its duration."""
    spread = (end - start).square() - 2 * variance * uniform.log()
    # A path without noise has no spread beyond its ends; the root is then differentiated at a square.
    return 0.5 * (start + end - spread.clamp(min=torch.finfo(spread.dtype).tiny).sqrt())


def _with_component(state: Tensor, component: int, value: Tensor) -> Tensor:
    """States ``(n, d)`` with a component replaced."""
    columns = list(state.unbind(1))
    columns[component] = value
    return torch.stack(columns, 1)
