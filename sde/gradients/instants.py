"""What a backward pass that keeps no graph collects for the instants of a solve."""

import torch
from torch import Tensor

from sde.march import Plan
from sde.noise.brownian import WienerIncrements
from sde.noise.weak import ThreePointIncrements

__all__ = ["InstantBars"]

_SCALED = WienerIncrements | ThreePointIncrements


class InstantBars:
    r"""Cotangents of the starts and the lengths of the steps, which become those of ``times``.

    In grid mode an increment is the root of its step times a number that does not depend on the grid, so the
    move of a step has the derivative

    .. math:: \partial_h (f h + g W) = f + \frac{g W}{2 h}.

    Increments of a tree, or that the caller gave, do not move with the grid.

    Args:
        plan: The solve. Nothing is collected unless its ``times`` require a gradient.
    """

    def __init__(self, plan: Plan) -> None:
        self.grid, self.wanted = plan.grid, plan.grid.times.requires_grad
        self.scaled = isinstance(plan.increments, _SCALED)
        self.starts = torch.zeros(plan.num_steps, dtype=torch.float64, device=plan.starts.device)
        self.sizes = torch.zeros_like(self.starts)

    def time(self, time: Tensor) -> Tensor:
        """A time to evaluate at: a leaf of the graph where its cotangent is wanted."""
        return time.detach().requires_grad_() if self.wanted else time

    def add_length(self, number: int, dt: Tensor, cotangent: Tensor, drift: Tensor, noise: Tensor) -> None:
        """The part of a step's length in its move, of drift ``f`` and noise ``g W``."""
        if self.wanted:
            slope = drift + noise / (2 * dt) if self.scaled else drift
            self.sizes[number] += (cotangent * slope).sum()

    def add_time(self, number: int, bar: Tensor | None, *, end: bool) -> None:
        """The cotangent of the time at the start or the end of a step."""
        if self.wanted and bar is not None:
            self.starts[number] += bar
            if end:
                self.sizes[number] += bar

    def of_times(self) -> Tensor | None:
        """The cotangent of ``times``, or None where it is not wanted."""
        if not self.wanted:
            return None
        with torch.enable_grad():
            times = self.grid.times.detach().requires_grad_()
            starts, sizes = type(self.grid)(times, self.grid.counts).steps()
            return torch.autograd.grad((starts * self.starts + sizes * self.sizes).sum(), times)[0]
