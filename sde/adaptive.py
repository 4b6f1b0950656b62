"""Adaptive steps: every path has its own, cut from the nested cells of its tree."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sde.equation import SDE
from sde.heuristics import local_error, stiffness
from sde.march import arranged
from sde.noise.bridge import Piece, halve
from sde.noise.increments import Areas, Increment
from sde.noise.levy_area import LevyLaw, levy_area, num_pairs
from sde.noise.stream import Purpose
from sde.noise.tree import BrownianTree
from sde.progress import Progress
from sde.shapes import check_shapes
from sde.solve import check_state
from sde.solvers.interface import EmbeddedSolver, check_pairing

__all__ = ["AdaptiveSolution", "Control", "solve_adaptive"]

_ASK_EVERY = 32  # rounds between looks at whether all paths are done: each look waits for the device


@dataclass(frozen=True, slots=True)
class Control:
    r"""Proportional-integral control of the steps of a path.

    The error of a step is the root mean square over the components of the estimate over
    ``atol + rtol * max(|X_k|, |X_{k+1}|)``; steps with an error above 1 are rejected. With weights i and p,
    the next step is the last times ``safety * error**(-(i + p) / order) * previous**(p / order)``, within
    ``shrink`` and ``grow``.

    Attributes:
        rtol: Relative tolerance, at least 0.
        atol: Absolute tolerance, at least 0; not both 0.
        order: Order of the error estimate in the step: 3/2 for most estimates of schemes of order 1.
        integral: Weight of the last error.
        proportional: Weight of its change; 0.1 and 0.3 are advised for noise.
        safety: Factor below 1.
        shrink: Smallest factor.
        grow: Largest factor.
        first: First step as a share of the interval.

    References:
        Burrage, Herdiana & Burrage (2004), Adaptive stepsize based on control theory for stochastic
        differential equations. doi:10.1016/j.cam.2004.01.027
    """

    rtol: float = 1e-3
    atol: float = 1e-4
    order: float = 1.5
    integral: float = 0.3
    proportional: float = 0.1
    safety: float = 0.9
    shrink: float = 0.2
    grow: float = 5.0
    first: float = 0.01

    def __post_init__(self) -> None:
        if min(self.rtol, self.atol) < 0 or self.rtol + self.atol <= 0:
            raise ValueError(
                f"`rtol` and `atol` must be at least 0 and not both 0; got {self.rtol} and {self.atol}."
            )
        if not (0 < self.shrink < 1 <= self.grow and 0 < self.safety <= 1 and 0 < self.first <= 1):
            raise ValueError(
                "`shrink`, `safety` and `first` must lie in (0, 1] and `grow` be at least 1; got "
                f"{self.shrink}, {self.safety}, {self.first} and {self.grow}."
            )

    def error(self, estimate: Tensor, old: Tensor, new: Tensor) -> Tensor:
        """Error of a step in units of the tolerance, shape ``(n,)``; infinite where it is not finite."""
        scale = self.atol + self.rtol * torch.maximum(old.abs(), new.abs())
        error = (estimate / scale).flatten(1).square().mean(1).sqrt()
        return torch.where(error.isfinite() & new.flatten(1).isfinite().all(1), error, torch.inf)

    def factor(self, error: Tensor, previous: Tensor) -> Tensor:
        """Factor of the next step, shape ``(n,)``."""
        error = error.clamp(min=1e-10)
        power = error ** (-(self.integral + self.proportional) / self.order)
        return (self.safety * power * previous ** (self.proportional / self.order)).clamp(
            self.shrink, self.grow
        )


@dataclass(frozen=True, slots=True)
class AdaptiveSolution:
    """What an adaptive solve returns.

    Attributes:
        states: States at the instants, shape ``(n, T, *shape)``.
        accepted: Steps accepted on each path, shape ``(n,)``.
        rejected: Steps rejected on each path.
        error: Accumulated error estimates of the accepted steps, shape ``(n,)``; see :mod:`sde.heuristics`.
        stiffness: Accumulated stiffness estimates, likewise; ``None`` unless asked for.
        halted: Paths that reached the smallest cell or the limit of rounds; their later states are NaN.
    """

    states: Tensor
    accepted: Tensor
    rejected: Tensor
    error: Tensor
    stiffness: Tensor | None
    halted: Tensor


def solve_adaptive(
    sde: SDE,
    initial: Tensor,
    times: Tensor,
    tree: BrownianTree,
    *,
    solver: EmbeddedSolver,
    control: Control | None = None,
    max_rounds: int = 1_000_000,
    estimate_stiffness: bool = False,
    progress: bool = False,
) -> AdaptiveSolution:
    r"""Integrate an SDE with steps that every path chooses for itself.

    Steps are cells of the path's tree: a rejected step is halved, and its noise with it, so that the path
    that is followed does not depend on the errors. This is the setting in which adaptive steps are proved to
    converge for noise that does not commute, given a scheme that uses the space-time Levy area. Saved
    instants are ends of cells: ``times`` must cut the tree's interval into a power of two of equal parts.

    Rows are independent: a path is the same bits in every batch on one machine. States and accumulated
    estimates are differentiable; the choice of the steps is not differentiated.

    Args:
        sde: The equation.
        initial: State at ``times[0]``, shape ``(n, *shape)``.
        times: Equidistant instants from start to stop of the tree, ``2**k + 1`` of them.
        tree: The paths.
        solver: A one-step method with an error estimate, such as :class:`sde.solvers.SPaRK`.
        control: Tolerances and control.
        max_rounds: Steps tried on a path, at most.
        estimate_stiffness: Accumulate the stiffness too, for two more evaluations of the drift in a step.
        progress: Show a bar, of saved instants that the slowest path has passed.

    Returns:
        States, and the numbers of steps.

    Raises:
        ValueError: If shapes disagree, ``times`` does not fit the tree, or the solver has no error estimate
            or cannot integrate the equation.

    Example:
        >>> from sde.noise import NoiseStream
        >>> from sde.solvers import SPaRK
        >>> from sde.equation import Calculus
        >>> sde = SDE(lambda t, x: -x, lambda t, x: 0.1 * x, calculus=Calculus.STRATONOVICH)
        >>> tree = BrownianTree(NoiseStream(0, 0, 4), 0.0, 1.0)
        >>> solve_adaptive(sde, torch.ones(4, 2), torch.linspace(0, 1, 5), tree, solver=SPaRK()).states.shape
        torch.Size([4, 5, 2])

    References:
        Foster & Jelincic (2024), On the convergence of adaptive approximations for stochastic differential
        equations. arXiv:2311.14201
    """
    check_pairing(solver, sde)
    check_state(initial, values=True)
    if not hasattr(solver, "step_with_error"):
        raise ValueError(f"`solver` must estimate its error; got {type(solver).__name__}, which does not.")
    if len(tree.noise) != len(initial):
        raise ValueError(f"`tree` must hold {len(initial)} samples, one per state; got {len(tree.noise)}.")
    walk = _Walk(sde, initial, _instant_level(times, tree), tree, solver, control or Control())
    walk.stiffness = initial.new_zeros(len(initial)) if estimate_stiffness else None
    rounds = 0
    with Progress(len(times) - 1, "adaptive solve", unit="instant", show=progress) as bar:
        while rounds < max_rounds:
            for _ in range(min(_ASK_EVERY, max_rounds - rounds)):
                walk.round()
                rounds += 1
            passed = walk.passed()
            bar.update(max(0, passed - walk.shown))
            walk.shown = max(walk.shown, passed)
            if walk.finished():
                break
    return walk.solution()


def _instant_level(times: Tensor, tree: BrownianTree) -> int:
    """Level of the cells between the instants."""
    check_shapes(times=(times, "T"))
    parts = len(times) - 1
    expected = torch.linspace(tree.start, tree.stop, max(2, parts + 1), dtype=torch.float64)
    fits = parts >= 1 and parts & (parts - 1) == 0
    if not fits or not torch.allclose(times.detach().double().cpu(), expected, rtol=0, atol=1e-6 * tree.span):
        raise ValueError(
            f"`times` must be 2**k + 1 equidistant instants from {tree.start:g} to {tree.stop:g}, the ends "
            f"of the tree; got {parts + 1} from {float(times[0]):g} to {float(times[-1]):g}."
        )
    return parts.bit_length() - 1


class _Walk:
    """All paths on their way through their trees.

    A path stands at the left end of a cell ``(level, index)`` whose noise is known. The right halves of the
    cells above it that are still to come lie on a stack, one for each level: after a step the path goes on
    with the deepest of them, which is the largest aligned cell that begins there.
    """

    def __init__(
        self,
        sde: SDE,
        initial: Tensor,
        instant_level: int,
        tree: BrownianTree,
        solver: EmbeddedSolver,
        control: Control,
    ) -> None:
        self.sde, self.tree, self.solver, self.control = sde, tree, solver, control
        self.instant_level, self.shape = instant_level, tuple(initial.shape[1:])
        n, channels, device = len(initial), sde.channels(self.shape), initial.device
        self.channels, self.dtype, self.device = channels, initial.dtype, device
        self.rows = torch.arange(n, device=device)
        root = tree.cells(0, 0, 1, channels, initial.dtype, device)
        self.noise = torch.stack([part[0] for part in root], 1)  # W, H, K: (n, 3, channels)
        self.stack = self.noise.new_zeros((n, tree.depth + 1, 3, channels))
        self.waiting = torch.zeros((n, tree.depth + 1), dtype=torch.bool, device=device)
        self.level = torch.zeros(n, dtype=torch.int64, device=device)
        self.index = torch.zeros_like(self.level)
        self.wish = torch.full((n,), control.first * tree.span, dtype=torch.float64, device=device)
        self.previous = torch.ones(n, dtype=torch.float64, device=device)
        self.carry = solver.start(sde.checked(), initial.new_tensor(tree.start), initial)
        self.states = initial.new_full((n, 2**instant_level + 1, *self.shape), torch.nan)
        self.states[:, 0] = initial
        self.done = torch.zeros(n, dtype=torch.bool, device=device)
        self.halted, self.shown = torch.zeros_like(self.done), 0
        self.accepted, self.rejected = torch.zeros_like(self.level), torch.zeros_like(self.level)
        self.error, self.stiffness = initial.new_zeros(n), None

    def round(self) -> None:
        """Every path that is not done halves its cell once, or tries a step over it."""
        active = ~self.done
        length = self.tree.span * 2.0 ** (-self.level.double())
        wide = (length > self.wish) | (self.level < self.instant_level)
        deepest = self.level >= self.tree.depth
        self.halted = self.halted | (active & deepest & (length > 2 * self.wish))
        self.done = self.done | self.halted
        split = active & wide & ~deepest
        self._halve(split)
        self._try(active & ~split & ~self.halted, length)

    def _halve(self, split: Tensor) -> None:
        """Put the right halves of some cells on the stack and enter the left ones."""
        node = (2.0 ** self.level.double()).long() + self.index
        normals = self.tree.normals_at(node, self.channels, self.dtype, self.device)
        length = (self.tree.span * 2.0 ** (-self.level.double())).to(self.dtype).view(-1, 1)
        whole = Piece(*self.noise.unbind(1))
        left, right = (torch.stack(half, 1) for half in halve(whole, length, normals))
        below = (self.level + 1).clamp(max=self.tree.depth)
        held = self.stack[self.rows, below]
        mask = split.view(-1, 1, 1)
        self.stack[self.rows, below] = torch.where(mask, right, held)
        self.waiting[self.rows, below] = self.waiting[self.rows, below] | split
        self.noise = torch.where(mask, left, self.noise)
        self.index = torch.where(split, 2 * self.index, self.index)
        self.level = torch.where(split, self.level + 1, self.level)

    def _try(self, trying: Tensor, length: Tensor) -> None:
        """Try a step over the cell, accept it or ask for a smaller one."""
        sde, control, ones = self.sde, self.control, (1,) * len(self.shape)
        dt = length.to(self.dtype).view(-1, *ones)
        start = self.tree.start + self.index.double() * length
        old = self.solver.read(self.carry)
        moved, estimate = self.solver.step_with_error(
            sde, start.to(self.dtype).view(-1, *ones), self.carry, dt, self._increment(length)
        )
        new = self.solver.read(moved)
        error = control.error(estimate.detach(), old.detach(), new.detach()).double()
        good = trying & (error <= 1)
        bad = trying & ~good
        factor = control.factor(error, self.previous)
        factor = torch.where(bad, factor.clamp(max=0.5), factor)
        self.wish = torch.where(trying, length * factor, self.wish)
        self.previous = torch.where(good, error.clamp(min=1e-4), self.previous)
        self._accumulate(good, (start + length).to(self.dtype), length.to(self.dtype), estimate, new)
        self.carry = _choose(good, moved, self.carry)
        self.accepted, self.rejected = self.accepted + good, self.rejected + bad
        self._leave(good, new)

    def _accumulate(self, good: Tensor, end: Tensor, length: Tensor, estimate: Tensor, new: Tensor) -> None:
        """Add the estimates of the accepted steps."""
        self.error = torch.where(good, self.error + length * local_error(estimate), self.error)
        if self.stiffness is not None:
            end = end.view(-1, *(1,) * len(self.shape))
            rate = stiffness(self.sde, end, self.solver.read(self.carry), new)
            self.stiffness = torch.where(good, self.stiffness + length * rate, self.stiffness)

    def _leave(self, good: Tensor, new: Tensor) -> None:
        """Leave the cells that were accepted: save instants, and go on with the next cell."""
        shift = (self.tree.depth - self.level).clamp(min=0)
        finest = (self.index + 1) << shift  # the path's place, in the finest cells
        per_instant = 1 << (self.tree.depth - self.instant_level)
        instant = finest // per_instant
        due = good & (finest % per_instant == 0)
        kept = self.states[self.rows, instant]
        self.states[self.rows, instant] = torch.where(due.view(-1, *(1,) * len(self.shape)), new, kept)
        self.done = self.done | (good & (finest == 1 << self.tree.depth))
        levels = torch.arange(self.tree.depth + 1, device=self.device)
        top = torch.where(self.waiting, levels, -1).amax(1)
        go = good & (top >= 0)
        at = top.clamp(min=0)
        self.noise = torch.where(go.view(-1, 1, 1), self.stack[self.rows, at], self.noise)
        self.waiting[self.rows, at] = self.waiting[self.rows, at] & ~go
        self.index = torch.where(go, finest >> (self.tree.depth - at), self.index)
        self.level = torch.where(go, top, self.level)

    def _increment(self, length: Tensor) -> Increment:
        """The noise of the cells, arranged for the equation."""
        wiener, area, curve = self.noise.unbind(1)
        areas, levy = self.solver.areas, None
        if Areas.LEVY in areas and self.channels > 1:
            normals = self._levy_normals()
            levy = levy_area(wiener, area, length.to(self.dtype).view(-1, 1), normals, LevyLaw.FOSTER)
        return arranged(self.sde, Increment(wiener, area, curve, levy), self.shape)

    def _levy_normals(self) -> Tensor:
        """Normals of the Levy areas of the cells, by the cell's node."""
        node = (2.0 ** self.level.double()).long() + self.index
        pairs = num_pairs(self.channels)
        return self.tree.normals_at(node, pairs, self.dtype, self.device, purpose=Purpose.LEVY_AREA)[0]

    def passed(self) -> int:
        """Instants that the slowest path has passed."""
        place = self.index * 2.0 ** (self.instant_level - self.level.double())
        return int(torch.where(self.done, 2**self.instant_level, place).min())

    def finished(self) -> bool:
        """Whether all paths are done."""
        return bool(self.done.all())

    def solution(self) -> AdaptiveSolution:
        """States and statistics."""
        halted = self.halted | ~self.done
        return AdaptiveSolution(self.states, self.accepted, self.rejected, self.error, self.stiffness, halted)


def _choose(mask: Tensor, one: object, other: object) -> object:
    """What is carried: the one where the mask holds, else the other."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.where(mask.view(-1, *(1,) * (one.dim() - 1)), one, other)
    if one is None:
        return None
    return type(one)(*(_choose(mask, a, b) for a, b in zip(one, other, strict=True)))  # type: ignore[arg-type]
