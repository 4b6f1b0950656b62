"""First passage: when a path first crosses a level, between the steps too."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sde.equation import SDE, NoiseStructure
from sde.march import Step
from sde.noise.stream import NoiseStream, Purpose
from sde.solve import make_plan
from sde.solvers.euler import EulerMaruyama
from sde.solvers.interface import Solver

__all__ = ["Crossing", "FirstPassage", "Level", "check_one_process", "first_passage", "step_variance"]

_DEFAULT_SOLVER = EulerMaruyama()


@dataclass(frozen=True, slots=True)
class FirstPassage:
    """When paths first crossed a level.

    Attributes:
        times: Time of the first crossing, shape ``(n,)``; infinite for paths that did not cross.
        final: State at the last instant of the paths that did not cross, NaN of the others, ``(n, d)``.
    """

    times: Tensor
    final: Tensor

    @property
    def probability(self) -> float:
        """Share of the paths that crossed."""
        return float(self.times.isfinite().double().mean())


def first_passage(
    sde: SDE,
    initial: Tensor,
    times: Tensor,
    noise: NoiseStream,
    *,
    level: float,
    component: int = 0,
    bridge: bool = True,
    solver: Solver = _DEFAULT_SOLVER,
    substeps: int = 1,
    max_step: float | None = None,
) -> FirstPassage:
    r"""First times at which a component of the state crosses a level, from either side.

    Between the ends of a step the component is taken as a Brownian bridge with the diffusion :math:`\sigma`
    at the step's start. From distance a to distance b on the same side it crosses with probability
    :math:`\exp(-2 a b / (\sigma^2 h))`, and when it does, at time :math:`h s / (1 + s)` with s inverse
    Gaussian of mean :math:`a / |b|` and shape :math:`a^2 / (\sigma^2 h)`. For constant drift and diffusion
    the law of the passage time is exact for any step; looking at the ends alone misses crossings with an
    error of order 1/2.

    Args:
        sde: The equation, of diagonal, scalar or additive noise without matrix.
        initial: State at ``times[0]``, shape ``(n, d)``.
        times: Instants, of which the first and the last bound the search.
        noise: The samples; crossings are drawn with :attr:`Purpose.BRIDGE`.
        level: What is crossed.
        component: Of the state.
        bridge: Look between the ends of steps; ``False`` looks at the ends alone.
        solver: One-step method.
        substeps: Steps between instants.
        max_step: Instead of ``substeps``: the length that no step exceeds.

    Returns:
        Times of passage and final states.

    Raises:
        ValueError: If the noise has a matrix, or as :func:`sde.solve` does.

    Example:
        >>> walk = SDE(lambda t, x: 0.5 + 0 * x, lambda t, x: torch.ones_like(x))
        >>> noise, times = NoiseStream(0, 0, 1000), torch.linspace(0, 1, 11)
        >>> first_passage(walk, torch.zeros(1000, 1), times, noise, level=1.0).times.shape
        torch.Size([1000])

    References:
        Gobet (2000), Weak approximation of killed diffusion using Euler schemes.
        doi:10.1016/S0304-4149(99)00109-X
        Michael, Schucany & Haas (1976), Generating random variates using transformations with multiple roots.
        doi:10.2307/2683801
    """
    check_one_process(sde)
    plan = make_plan(sde, initial, times, noise, solver, substeps, max_step)
    barrier = Level(level, component, noise, bridge=bridge)
    state, carry = initial, plan.start(initial)
    passage = initial.new_full((len(initial),), torch.inf)
    passage = torch.where(initial[:, component] == level, times[0].to(initial), passage)
    for step in plan.march(carry, 0, plan.num_steps):
        new = solver.read(step.carry)
        crossing = barrier.look(sde, step, state, new)
        first = crossing.crossed & passage.isinf()
        passage = torch.where(first, step.time + step.dt * crossing.share, passage)
        state = new
    return FirstPassage(passage, torch.where(passage.isinf().unsqueeze(1), state, torch.nan))


def check_one_process(sde: SDE) -> None:
    """Raise unless every component has one Wiener process of its own.

    Raises:
        ValueError: If it is no SDE, the noise has a matrix or there is none.
    """
    if not isinstance(sde, SDE):
        raise ValueError(f"`sde` must be an SDE; got {type(sde).__name__}. Take its as_sde().")
    if sde.noise_dim is not None or sde.structure is NoiseStructure.NONE:
        raise ValueError(
            f"`sde` must have noise of one process per component; got {sde.structure.value} noise."
        )


class Crossing(NamedTuple):
    """Which samples crossed a level during a step, and when."""

    crossed: Tensor  #: bool, shape ``(n,)``
    share: Tensor  #: of the step that had passed then, in [0, 1]


@dataclass(frozen=True, slots=True)
class Level:
    """A level that a component of the state may cross.

    Attributes:
        value: The level.
        component: Of the state.
        noise: Decides on the crossings between the ends of steps; two levels of one solve need two forks.
        bridge: Look between the ends of steps.
    """

    value: float
    component: int
    noise: NoiseStream
    bridge: bool = True

    def look(self, sde: SDE, step: Step, old: Tensor, new: Tensor) -> Crossing:
        """What happened between two states, each of shape ``(n, d)``."""
        a, b = self.value - old[:, self.component], self.value - new[:, self.component]
        crossed = a * b <= 0
        if not self.bridge:
            return Crossing(crossed, step.dt.new_ones(()))
        variance = step_variance(sde, step, old, self.component)
        uniform, other = self.noise.uniforms(
            2, purpose=Purpose.BRIDGE, first=4 * step.number, dtype=a.dtype, device=a.device
        ).unbind(1)
        crossed = crossed | (uniform < (-2 * a * b / variance).exp())
        normal = self.noise.fork("bridge").normals(
            1, purpose=Purpose.BRIDGE, first=step.number, dtype=a.dtype, device=a.device
        )[:, 0]
        s = _inverse_gaussian(a.abs() / b.abs(), a * a / variance, normal, other)
        return Crossing(crossed, s / (1 + s))


def step_variance(sde: SDE, step: Step, state: Tensor, component: int) -> Tensor:
    """Variance of a component's noise over a step from a state, shape ``(n,)``."""
    diffusion = sde.diffusion(step.time, state).expand_as(state)
    return diffusion[:, component].square() * step.dt


def _inverse_gaussian(mean: Tensor, shape: Tensor, normal: Tensor, uniform: Tensor) -> Tensor:
    """Inverse Gaussian variates by the transformation with two roots."""
    y = mean * normal * normal
    # The smaller root, without the cancellation of the textbook form.
    small = mean * 2 * shape / (2 * shape + y + (y * y + 4 * shape * y).sqrt())
    return torch.where(uniform <= mean / (mean + small), small, mean * mean / small)
