"""Jump-diffusions: equations driven by Wiener processes and by jumps."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sde.equation import SDE
from sde.grid import Grid, make_grid
from sde.march import arranged
from sde.noise.brownian import WienerIncrements
from sde.noise.increments import Law
from sde.noise.jumps import CompoundPoisson, Jumps
from sde.noise.stream import NoiseStream, Purpose
from sde.progress import Progress
from sde.solve import check_state
from sde.solvers.euler import EulerMaruyama
from sde.solvers.interface import OneStep, Solver, check_pairing

__all__ = ["JumpDiffusion", "JumpPaths", "solve_jumps"]

_BLOCK = 1 << 22  # numbers in the states of a block of samples
_DEFAULT_SOLVER = EulerMaruyama()


@dataclass(frozen=True, slots=True)
class JumpDiffusion:
    r"""An SDE whose state jumps at the times of a Poisson process.

    .. math:: \mathrm dX_t = f(t, X_t)\,\mathrm dt + g(t, X_t)\,\mathrm dW_t
              + \int c(t, X_{t-}, z)\,N(\mathrm dt, \mathrm dz)

    The jumps are not compensated: a martingale needs the compensator in the drift.

    Args:
        sde: Drift and diffusion.
        jumps: Candidates for jumps, and their marks.
        size: ``c``: time, shape ``(n, 1, ...)``, state before the jump ``(n, *shape)`` and marks ``(n, ...)``
            to the change of the state, ``(n, *shape)``.
        intensity: Where the rate depends on time and state: time and state before the jump to the rate,
            shape ``(n,)``, at most ``jumps.rate``. A candidate is a jump with probability
            ``intensity / jumps.rate``.

    Raises:
        TypeError: If ``size`` or ``intensity`` cannot be called.

    Example:
        >>> merton = JumpDiffusion(
        ...     SDE(lambda t, x: 0.05 * x, lambda t, x: 0.2 * x),
        ...     CompoundPoisson(rate=0.5, mark=lambda z: -0.1 + 0.15 * z[..., 0]),
        ...     size=lambda t, x, mark: x * torch.expm1(mark).unsqueeze(-1),
        ... )
        >>> noise = NoiseStream(seed=0, start=0, stop=8)
        >>> solve_jumps(merton, torch.ones(8, 1), torch.linspace(0, 1, 5), noise).states.shape
        torch.Size([8, 5, 1])

    References:
        Cont & Tankov (2004), chapter 14. doi:10.1201/9780203485217
        Lewis & Shedler (1979), for the intensity. doi:10.1002/nav.3800260304
    """

    sde: SDE
    jumps: CompoundPoisson
    size: Callable[[Tensor, Tensor, Tensor], Tensor]
    intensity: Callable[[Tensor, Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        if not callable(self.size):
            raise TypeError(f"`size` must be callable; got {type(self.size).__name__}.")
        if self.intensity is not None and not callable(self.intensity):
            raise TypeError(f"`intensity` must be callable; got {type(self.intensity).__name__}.")


@dataclass(frozen=True, slots=True)
class JumpPaths:
    """What a solve of a jump-diffusion returns.

    Attributes:
        states: States at the instants, after jumps at that time, shape ``(n, T, *shape)``.
        jumps: The candidates.
        accepted: Which of them were jumps, shape ``(n, jumps)``.
    """

    states: Tensor
    jumps: Jumps
    accepted: Tensor


def solve_jumps(
    equation: JumpDiffusion,
    initial: Tensor,
    times: Tensor,
    noise: NoiseStream,
    *,
    solver: Solver = _DEFAULT_SOLVER,
    substeps: int = 1,
    max_step: float | None = None,
    progress: bool = False,
) -> JumpPaths:
    r"""Integrate a jump-diffusion with steps that end at the jumps.

    The steps of a sample are those of the grid, cut at its own jump times. No jump falls inside a step, so
    the scheme keeps the strong order that it has without jumps. All samples take their steps side by side:
    the cost is that of the grid plus one step for each jump of the sample that has most.

    A sample is the same in every batch. Gradients flow to the initial state and to what the functions close
    over; not through the rate of the jumps, whose number is discrete.

    Args:
        equation: The jump-diffusion.
        initial: State at ``times[0]``, shape ``(n, *shape)``.
        times: Strictly increasing instants, shape ``(T,)``.
        noise: The samples: Wiener increments on the steps of the sample, and jumps.
        solver: One-step method that carries the state alone.
        substeps: Steps between instants, before they are cut.
        max_step: Instead of ``substeps``: the length that no step exceeds.
        progress: Show a bar.

    Returns:
        States and jumps.

    Raises:
        ValueError: If a shape is wrong, the solver cannot integrate the equation, or an intensity exceeds the
            rate of its candidates.

    References:
        Platen & Bruti-Liberati (2010), Numerical Solution of SDEs with Jumps in Finance, chapter 8.
        doi:10.1007/978-3-642-13694-8
    """
    if not isinstance(solver, OneStep):
        raise ValueError(
            f"`solver` must carry the state alone, since jumps change it; got {type(solver).__name__}."
        )
    check_pairing(solver, equation.sde)
    check_state(initial, values=True)
    initial = initial.contiguous()
    if solver.law is not Law.NORMAL:
        raise ValueError(f"`solver` must take normal increments; got {type(solver).__name__}.")
    if len(noise) != len(initial):
        raise ValueError(
            f"`noise` must hold one sample per row of `initial`, {len(initial)}; got {len(noise)}."
        )
    grid = make_grid(times, substeps, max_step)
    ends = float(times[0]), float(times[-1])
    jumps = equation.jumps.draw(noise, *ends, dtype=initial.dtype, device=initial.device)
    width = grid.num_steps + jumps.times.shape[1]
    rows = max(1, _BLOCK // (width * max(1, initial[0].numel())))
    states, accepted = [], []
    with Progress(len(initial), "solve with jumps", unit="path", show=progress) as bar:
        for first in range(0, len(initial), rows):
            part = slice(first, min(first + rows, len(initial)))
            candidates = Jumps(*(value[part] for value in jumps))
            block = _Block(equation, grid, candidates, noise[part], solver)
            taken = block.run(initial[part])
            states.append(taken[0])
            accepted.append(taken[1])
            bar.update(len(candidates.times))
    return JumpPaths(torch.cat(states), jumps, torch.cat(accepted))


class _Block:
    """Samples that are integrated side by side, each on its own steps."""

    def __init__(
        self, equation: JumpDiffusion, grid: Grid, jumps: Jumps, noise: NoiseStream, solver: Solver
    ) -> None:
        self.equation, self.jumps, self.noise, self.solver = equation, jumps, noise, solver
        starts, _ = grid.steps()
        begin, end = starts[:1], grid.times[-1:].to(starts)
        edges = torch.cat((starts[1:], end)).to(jumps.times.device)
        every = torch.cat((edges.expand(len(noise), -1), jumps.times.clamp(max=float(end))), 1)
        # Jumps that a sample has not sort behind its last step, which is of length 0 for them.
        ordered, order = every.sort(dim=1, stable=True)
        self.starts = torch.cat((begin.to(ordered).expand(len(noise), 1), ordered[:, :-1]), 1)
        self.sizes = ordered - self.starts
        number = order - len(edges)  # of the jump that ends a step, negative at the ends of the grid's steps
        self.candidate = number.clamp(min=0)
        self.jumping = (number >= 0) & jumps.times.isfinite().gather(1, self.candidate)
        self.rows = torch.arange(len(noise), device=order.device)
        self.uniforms = noise.fork("thinning").uniforms(
            jumps.times.shape[1], purpose=Purpose.JUMPS, dtype=torch.float64, device=order.device
        )
        reached = torch.tensor([0, *grid.saves], device=order.device) - 1
        self.instants = order.argsort(1)[:, reached[1:]] + 1  # where the saved states are among all
        self.typical = float(end - begin) / len(edges)

    def run(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """States at the instants, and which candidates were jumps."""
        sde, solver, shape = self.equation.sde, self.solver, tuple(state.shape[1:])
        drawn = WienerIncrements(
            self.noise, self.sizes.T, sde.channels(shape), dtype=state.dtype, device=state.device
        ).chunk(0, self.sizes.shape[1], solver.areas)
        ones, checked = (1,) * len(shape), sde.checked()
        accepted = torch.zeros(self.jumps.times.shape, dtype=torch.bool, device=state.device)
        states = [state]
        for k, increment in enumerate(arranged(sde, drawn, shape).steps()):
            size = self.sizes[:, k].view(-1, *ones)
            # A step that a sample does not have is taken with a usual length, and forgotten.
            dt = torch.where(size > 0, size, self.typical).to(state)
            time = self.starts[:, k].view(-1, *ones)
            moved = solver.step(checked if k == 0 else sde, time.to(state), state, dt, increment)
            state = torch.where(size > 0, moved, state)
            state, jumped = self._jump(k, (time + size).to(state), state)
            accepted[self.rows, self.candidate[:, k]] |= jumped
            states.append(state)
        kept = torch.stack(states, 1)
        return torch.cat((kept[:, :1], kept[self.rows.unsqueeze(1), self.instants]), 1), accepted

    def _jump(self, k: int, time: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """The state after the jump, if any, at the end of a step, and which samples jumped."""
        jumping = self.jumping[:, k]
        if self.equation.intensity is not None:
            jumping = jumping & self._accepts(k, time, state)
        change = self.equation.size(time, state, self.jumps.marks[self.rows, self.candidate[:, k]])
        if change.shape != state.shape:
            raise ValueError(f"`size` must return shape {tuple(state.shape)}; got {tuple(change.shape)}.")
        mask = jumping.view(-1, *(1,) * (state.dim() - 1))
        return torch.where(mask, state + change, state), jumping

    def _accepts(self, k: int, time: Tensor, state: Tensor) -> Tensor:
        """Which candidates at the ends of the samples' steps are jumps, by the intensity."""
        assert self.equation.intensity is not None  # asked before
        share = self.equation.intensity(time, state.detach()) / self.equation.jumps.rate
        if tuple(share.shape) != (len(state),):
            raise ValueError(f"`intensity` must return shape {(len(state),)}; got {tuple(share.shape)}.")
        worst = float(torch.where(self.jumping[:, k], share, 0.0).max())
        if not worst <= 1 + 1e-6:
            raise ValueError(
                f"`intensity` must not exceed the rate of `jumps`, {self.equation.jumps.rate:g}; "
                f"got {worst * self.equation.jumps.rate:g}."
            )
        return self.uniforms[self.rows, self.candidate[:, k]] < share
