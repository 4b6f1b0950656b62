"""Gradients of a solve by autograd: with the whole graph, or with segments that are computed again."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sde.march import Plan, stack, tensors
from sde.solvers.interface import Carry

__all__ = ["Backprop", "Checkpointed", "Gradient"]


class Gradient(Protocol):
    """How a solve runs, and with it how it is differentiated."""

    def run(self, plan: Plan, initial: Tensor, report: Callable[[int], None]) -> Tensor:
        """States at the instants, ``(n, T, *shape)``; ``report`` is told how many steps were taken."""
        ...


@dataclass(frozen=True, slots=True)
class Backprop:
    """Keep the graph of every step: the fastest backward pass, memory proportional to the number of steps.

    It works for every scheme, under every transform of ``torch.func`` and for derivatives of any order.
    """

    def run(self, plan: Plan, initial: Tensor, report: Callable[[int], None]) -> Tensor:
        """States at the instants, shape ``(n, T, *shape)``."""
        carry = plan.start(initial)
        return stack(plan.solver.read(carry), _keep_graph(plan, carry, 0, report))


def _keep_graph(plan: Plan, carry: Carry, start: int, report: Callable[[int], None]) -> list[Tensor]:
    """Take the steps from ``start`` to the end; the states at the instants among their ends."""
    saved: list[Tensor] = []
    for first in range(start, plan.num_steps, plan.chunk):
        count = min(plan.chunk, plan.num_steps - first)
        carry, states = plan.advance(carry, first, count)
        saved += states
        report(count)
    return saved


@dataclass(frozen=True, slots=True)
class Checkpointed:
    r"""Keep the state at the ends of segments and compute each segment again when it is differentiated.

    The increments are drawn again from their addresses, so no state of a generator is stored, and the
    gradient is that of :class:`Backprop` to the bit. With segments of :math:`\sqrt N` of the ``N`` steps the
    memory for tensors is :math:`O(\sqrt N)`, for one more forward pass; the empty nodes of the graph, some
    kilobytes for each step, remain. Without a gradient to compute, and under
    transforms of ``torch.func``, it runs as :class:`Backprop`.

    Attributes:
        segment: Steps in a segment; ``None`` takes the root of their number.

    References:
        Chen, Xu, Zhang & Guestrin (2016), Training deep nets with sublinear memory cost. arXiv:1604.06174
    """

    segment: int | None = None

    def __post_init__(self) -> None:
        if self.segment is not None and (not isinstance(self.segment, int) or self.segment < 1):
            raise ValueError(f"`segment` must be an integer of at least 1; got {self.segment!r}.")

    def run(self, plan: Plan, initial: Tensor, report: Callable[[int], None]) -> Tensor:
        """States at the instants, shape ``(n, T, *shape)``."""
        segment = math.isqrt(plan.num_steps) if self.segment is None else self.segment
        begin = plan.start(initial)
        first_state = plan.solver.read(begin)
        carry, saved = plan.advance(begin, 0, 1)  # shows whether there is a gradient
        report(1)
        if torch._C._are_functorch_transforms_active() or not any(
            part.requires_grad for part in tensors(carry)
        ):
            return stack(first_state, saved + _keep_graph(plan, carry, 1, report))
        for first in range(1, plan.num_steps, segment):
            count = min(segment, plan.num_steps - first)
            carry, states = checkpoint(
                plan.advance, carry, first, count, use_reentrant=False, preserve_rng_state=False
            )
            saved += states
            report(count)
        return stack(first_state, saved)
