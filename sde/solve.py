"""The time loop on a fixed grid."""

from dataclasses import replace

import torch
from torch import Tensor

from sde.equation import Equation
from sde.gradients.backprop import Checkpointed, Gradient
from sde.grid import make_grid
from sde.march import Plan
from sde.noise.brownian import WienerIncrements
from sde.noise.increments import GivenIncrements, Increments, Law
from sde.noise.stream import NoiseStream
from sde.noise.tree import BrownianTree
from sde.noise.weak import ThreePointIncrements
from sde.progress import Progress
from sde.solvers.euler import EulerMaruyama
from sde.solvers.interface import Solver, check_pairing

__all__ = ["Equation", "Noise", "check_state", "make_plan", "solve", "solve_end"]

Noise = NoiseStream | BrownianTree | Increments | None
"""What drives a solve: samples in grid mode or in tree mode, or the increments themselves."""

_DEFAULT_SOLVER, _DEFAULT_GRADIENT = EulerMaruyama(), Checkpointed()


def solve(
    sde: Equation,
    initial: Tensor,
    times: Tensor,
    noise: Noise,
    *,
    solver: Solver = _DEFAULT_SOLVER,
    substeps: int = 1,
    max_step: float | None = None,
    gradient: Gradient = _DEFAULT_GRADIENT,
    progress: bool = False,
    allow_diverged: bool = False,
) -> Tensor:
    r"""Integrate an SDE over a grid of times.

    .. math:: \mathrm{d}X_t = f(t, X_t)\,\mathrm{d}t + g(t, X_t)\,\mathrm{d}W_t, \qquad X_{t_0} = x_0.

    The path of sample ``i`` depends only on the seed, ``i`` and, in grid mode, the grid: batches of any size
    agree. Time is ``times[j] + k * dt`` with integer ``k``, never a running sum. Only the states at ``times``
    are kept. Gradients with respect to ``initial``, ``times`` and all that drift and diffusion close over
    flow by autograd.

    Args:
        sde: Drift and diffusion, and the calculus they are written in; or an equation with
            solvers of its own, such as :class:`sde.Langevin`.
        initial: State at ``times[0]``, shape ``(n, *shape)`` with any shape, such as ``(n, d)``; float32 or
            float64; its dtype and device are the solve's.
        times: Strictly increasing instants, shape ``(T,)`` with ``T >= 2``, in the time unit of ``sde``.
        noise: A :class:`NoiseStream` of ``n`` samples, for paths drawn on this grid; a
            :class:`sde.noise.BrownianTree` of ``n`` samples, for paths that are the same on every grid; or
            the increments, one for each step. ``None`` for an ordinary differential equation.
        solver: One-step method; it must integrate ``sde.calculus`` and ``sde.structure``.
        substeps: Equal steps taken between consecutive ``times``; at least 1.
        max_step: Instead of ``substeps``: the length that no step exceeds. Each interval between ``times`` is
            cut into as few equal steps as that takes, so that what is saved does not say how to step.
        gradient: How the solve is differentiated.
        progress: Show a bar.
        allow_diverged: Return paths that left the range of floating-point numbers as infinities and NaN, and
            skip the checks of values, which transforms such as ``torch.func.vmap`` cannot trace.

    Returns:
        States at ``times``, shape ``(n, T, *shape)``; the first is ``initial``.

    Raises:
        ValueError: If shapes disagree, ``times`` does not increase, ``initial`` is not finite, or ``solver``
            cannot integrate ``sde``.
        TypeError: If a tensor is not floating point or ``noise`` is no source of noise.
        RuntimeError: If a path diverged and ``allow_diverged`` is false.

    Example:
        >>> from sde import SDE
        >>> ou = SDE(drift=lambda t, x: -x, diffusion=lambda t, x: torch.ones_like(x))
        >>> noise = NoiseStream(seed=0, start=0, stop=8)
        >>> solve(ou, torch.zeros(8, 2), torch.linspace(0, 1, 5), noise).shape
        torch.Size([8, 5, 2])

    References:
        Kloeden & Platen (1992), section 10.2. doi:10.1007/978-3-662-12616-5
    """
    plan = make_plan(sde, initial, times, noise, solver, substeps, max_step, check_values=not allow_diverged)
    with Progress(plan.num_steps, "solve", unit="step", show=progress) as bar:
        paths = gradient.run(plan, initial.contiguous(), bar.update)
    if not allow_diverged:
        _check_finite(paths, times, noise)
    return paths


def solve_end(
    sde: Equation,
    initial: Tensor,
    times: Tensor,
    noise: Noise,
    *,
    solver: Solver = _DEFAULT_SOLVER,
    gradient: Gradient = _DEFAULT_GRADIENT,
) -> Tensor:
    """The state at the last instant alone, with a step between each two: nothing in between is kept.

    Args:
        sde: As for :func:`solve`.
        initial: State at ``times[0]``, shape ``(n, *shape)``.
        times: Ends of the steps, strictly increasing, shape ``(T,)``.
        noise: As for :func:`solve`.
        solver: One-step method.
        gradient: How the solve is differentiated.

    Returns:
        The state at ``times[-1]``, shape ``(n, *shape)``.

    Raises:
        ValueError: As :func:`solve`.
        TypeError: As :func:`solve`.
        RuntimeError: If a path diverged.

    Example:
        >>> from sde.equation import ode
        >>> solve_end(ode(lambda t, x: 2 * t + 0 * x), torch.zeros(1, 1), torch.tensor([0.0, 1.0, 3.0]), None)
        tensor([[4.]])
    """
    plan = make_plan(sde, initial, times, noise, solver)
    plan = replace(plan, grid=plan.grid.ends())
    paths = gradient.run(plan, initial.contiguous(), lambda steps: None)
    _check_finite(paths, times[[0, -1]], noise)
    return paths[:, -1]


def make_plan(
    sde: Equation,
    initial: Tensor,
    times: Tensor,
    noise: Noise,
    solver: Solver,
    substeps: int = 1,
    max_step: float | None = None,
    *,
    check_values: bool = True,
) -> Plan:
    """Check the arguments of a solve and lay out its steps; arguments and errors are those of `solve`."""
    check_pairing(solver, sde)
    check_state(initial, values=check_values)
    grid = make_grid(times, substeps, max_step)
    starts, sizes = grid.steps()
    edges = torch.cat((starts, times[-1:].to(starts)))
    increments = _increments(sde, initial, noise, edges, sizes, solver.law)
    shape = tuple(initial.shape[1:])
    return Plan(sde, solver, increments, grid, starts.to(initial), sizes.to(initial), shape)


def _increments(
    sde: Equation, initial: Tensor, noise: Noise, edges: Tensor, sizes: Tensor, law: Law
) -> Increments:
    """The increments of the solve, checked against its shapes."""
    samples, channels = len(initial), sde.channels(tuple(initial.shape[1:]))
    if channels == 0:
        none = initial.new_zeros((samples, len(sizes), 0))
        return GivenIncrements(none, none, none, initial.new_zeros((samples, len(sizes), 0, 0)))
    if law is Law.THREE_POINT and isinstance(noise, BrownianTree):
        raise ValueError("`noise` must be a NoiseStream or increments for a weak solver; got a BrownianTree.")
    if isinstance(noise, NoiseStream | BrownianTree):
        stream = noise if isinstance(noise, NoiseStream) else noise.noise
        if len(stream) != samples:
            raise ValueError(
                f"`noise` must hold one sample per row of `initial`, {samples}; got {len(stream)}."
            )
        if isinstance(noise, NoiseStream):
            kind = WienerIncrements if law is Law.NORMAL else ThreePointIncrements
            return kind(noise, sizes, channels, initial.dtype, initial.device)
        return noise.steps(edges, channels, dtype=initial.dtype, device=initial.device)
    if noise is None or not hasattr(noise, "chunk"):
        raise TypeError(
            f"`noise` must be a NoiseStream, a BrownianTree or increments; got {type(noise).__name__}."
        )
    expected = (len(sizes), samples, channels)
    if noise.shape != expected:
        raise ValueError(
            f"`noise` must hold increments of (steps, samples, channels) = {expected}; got {noise.shape}."
        )
    return noise


def check_state(initial: Tensor, *, values: bool) -> None:
    """Raise unless the initial state is a finite floating-point tensor ``(n, *shape)``."""
    if not isinstance(initial, Tensor) or initial.dtype not in (torch.float32, torch.float64):
        given = initial.dtype if isinstance(initial, Tensor) else type(initial).__name__
        raise TypeError(f"`initial` must be a tensor of dtype float32 or float64; got {given}.")
    if initial.dim() < 2:
        raise ValueError(f"`initial` must have shape (n, ...), such as (n, d); got {tuple(initial.shape)}.")
    if values and not bool(initial.isfinite().all()):
        row = int((~initial.isfinite()).flatten(1).any(1).nonzero()[0])
        raise ValueError(f"`initial` must be finite; got NaN or infinite values in row {row}.")


def _check_finite(paths: Tensor, times: Tensor, noise: Noise) -> None:
    """Raise with the first sample that diverged; the last state tells, since NaN and infinity do not heal."""
    diverged = ~paths.detach()[:, -1].flatten(1).isfinite().all(1)
    if not bool(diverged.any()):
        return
    row = int(diverged.nonzero()[0])
    stream = noise.noise if isinstance(noise, BrownianTree) else noise
    sample = int(stream.sample_ids()[row]) if isinstance(stream, NoiseStream) else row
    bad = int((~paths.detach()[row].flatten(1).isfinite().all(1)).nonzero()[0])
    raise RuntimeError(
        f"{int(diverged.sum())} of {len(paths)} paths diverged, the first sample {sample} "
        f"before time {float(times[bad]):g}. Take more substeps, or pass allow_diverged=True to keep them."
    )
