"""The steps of a solve: what every driver and every gradient goes through."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from sde.equation import Equation
from sde.grid import Grid
from sde.noise.increments import Areas, Increment, Increments
from sde.solvers.interface import Carry, Solver

__all__ = ["Plan", "Step", "arranged", "stack", "tensors"]

_CHUNK_ELEMENTS = 1 << 19  # numbers held at once: a few megabytes, one kernel call for each kind


class Step(NamedTuple):
    """One step that has been taken."""

    number: int  #: of the step, from 0
    time: Tensor  #: at its start, 0-d
    dt: Tensor  #: its length, 0-d
    increment: Increment  #: of the noise, arranged as :meth:`SDE.product` takes it
    carry: Carry  #: what the solver carries, at its end


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """A solve that is checked and ready to run.

    Attributes:
        sde: The equation.
        solver: The scheme.
        increments: The noise.
        grid: The instants that are saved and the steps between them.
        starts: Start of every step, in the dtype of the state, shape ``(num_steps,)``.
        sizes: Length of every step, likewise.
        state_shape: Shape of the state of one sample.
    """

    sde: Equation
    solver: Solver
    increments: Increments
    grid: Grid
    starts: Tensor
    sizes: Tensor
    state_shape: tuple[int, ...]

    @property
    def num_steps(self) -> int:
        """Number of steps."""
        return len(self.sizes)

    @property
    def chunk(self) -> int:
        """Steps whose increments are held at once."""
        _, samples, channels = self.increments.shape
        kinds = 1 + bool(self.solver.areas) + (Areas.SPACE_TIME_TIME in self.solver.areas)
        size = samples * channels * (kinds + channels * (Areas.LEVY in self.solver.areas))
        return max(4, _CHUNK_ELEMENTS // max(1, size) // 4 * 4)

    def start(self, initial: Tensor) -> Carry:
        """What is carried into the first step."""
        return self.solver.start(self.sde.checked(), self.starts[0], initial)

    def noise(self, first: int, count: int) -> Iterator[Increment]:
        """The increments of steps ``first .. first + count - 1``, arranged for the equation."""
        drawn = self.increments.chunk(first, count, self.solver.areas)
        return arranged(self.sde, drawn, self.state_shape).steps()

    def march(
        self, carry: Carry, first: int, count: int, amend: Callable[[Step, Carry], Carry] | None = None
    ) -> Iterator[Step]:
        """Take steps ``first .. first + count - 1`` from what is carried into the first of them.

        Args:
            carry: What is carried into the first step.
            first: Its number.
            count: How many steps are taken.
            amend: What becomes of a step: the step and what was carried into it, to what is carried on.
        """
        step, sde = self.solver.step, self.sde.checked() if first == 0 else self.sde
        for begin in range(first, first + count, self.chunk):
            end = min(begin + self.chunk, first + count)
            starts, sizes = self.starts[begin:end].unbind(), self.sizes[begin:end].unbind()
            increments = self.noise(begin, end - begin)
            for k, time, dt, increment in zip(range(begin, end), starts, sizes, increments, strict=True):
                taken = Step(k, time, dt, increment, step(sde, time, carry, dt, increment))
                if amend is not None:
                    taken = taken._replace(carry=amend(taken, carry))
                carry, sde = taken.carry, self.sde  # the first step has checked the shapes
                yield taken

    def advance(self, carry: Carry, first: int, count: int) -> tuple[Carry, list[Tensor]]:
        """Take steps and keep the states at the instants among their ends."""
        saved = []
        for step in self.march(carry, first, count):
            carry = step.carry
            if step.number + 1 in self.grid.saves:
                saved.append(self.solver.read(carry))
        return carry, saved

    def with_sde(self, sde: Equation) -> "Plan":
        """The same solve of another equation of the same structure."""
        return replace(self, sde=sde)


def arranged(sde: Equation, increment: Increment, state_shape: tuple[int, ...]) -> Increment:
    """An increment of channels in the shapes that the solvers of an equation take."""
    wiener, area, curve, levy, signs = increment
    return Increment(
        sde.arrange(wiener, state_shape),
        None if area is None else sde.arrange(area, state_shape),
        None if curve is None else sde.arrange(curve, state_shape),
        levy,
        signs,
    )


def tensors(carry: Carry) -> list[Tensor]:
    """The tensors in what a solver carries."""
    if carry is None or isinstance(carry, Tensor):
        return [] if carry is None else [carry]
    return [tensor for part in carry for tensor in tensors(part)]


def stack(initial: Tensor, saved: list[Tensor]) -> Tensor:
    """States at the saved instants, shape ``(n, T, *shape)``."""
    return torch.stack([initial, *saved], dim=1)
