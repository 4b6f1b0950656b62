"""The time loop."""

from collections.abc import Callable

import torch
from torch import Tensor

from sde.equation import SDE
from sde.noise.brownian import Increments, WienerIncrements
from sde.noise.stream import NoiseStream
from sde.shapes import check_shapes
from sde.solvers.euler import EulerMaruyama
from sde.solvers.interface import Increment, Solver, check_pairing

__all__ = ["Progress", "solve", "time_grid"]

Progress = Callable[[int, int], None]
"""Called with the number of steps taken and the number of all steps, now and then and at the end."""

_CHUNK_ELEMENTS = 1 << 19  # increments held at once: a few megabytes, one kernel call
_DEFAULT_SOLVER = EulerMaruyama()


def solve(
    sde: SDE,
    initial: Tensor,
    times: Tensor,
    noise: NoiseStream | Increments,
    *,
    solver: Solver = _DEFAULT_SOLVER,
    substeps: int = 1,
    progress: Progress | None = None,
    allow_diverged: bool = False,
) -> Tensor:
    r"""Integrate an SDE over a grid of times.

    .. math:: \mathrm{d}X_t = f(t, X_t)\,\mathrm{d}t + g(t, X_t)\,\mathrm{d}W_t, \qquad X_{t_0} = x_0.

    The path of sample ``i`` depends only on ``noise.seed``, ``i`` and the grid: batches of any size agree.
    Time is ``times[j] + k * dt`` with integer ``k``, never a running sum. Only the states at ``times`` are
    kept. Gradients
    with respect to ``initial``, ``times`` and all that drift and diffusion close over flow by autograd.

    Args:
        sde: Drift and diffusion, and the calculus they are written in.
        initial: State at ``times[0]``, shape ``(n, d)``, float32 or float64; its dtype and device are the
            solve's.
        times: Strictly increasing instants, shape ``(T,)`` with ``T >= 2``, in the time unit of ``sde``.
        noise: Source of the Wiener increments, with ``n`` samples; or the increments themselves, one for
            each step.
        solver: One-step method; it must integrate ``sde.calculus`` and ``sde.structure``.
        substeps: Equal steps taken between consecutive ``times``; at least 1.
        progress: Called with (steps taken, all steps) after every chunk of steps.
        allow_diverged: Return paths that left the range of floating-point numbers as infinities and NaN, and
            skip the checks of values, which transforms such as ``torch.func.vmap`` cannot trace.

    Returns:
        States at ``times``, shape ``(n, T, d)``; the first is ``initial``.

    Raises:
        ValueError: If shapes disagree, ``times`` does not increase, ``initial`` is not finite, or ``solver``
            cannot integrate ``sde``.
        TypeError: If a tensor is not floating point or ``noise`` is no source of noise.
        RuntimeError: If a path diverged and ``allow_diverged`` is false.

    Example:
        >>> ou = SDE(drift=lambda t, x: -x, diffusion=lambda t, x: torch.ones_like(x))
        >>> noise = NoiseStream(seed=0, start=0, stop=8)
        >>> solve(ou, torch.zeros(8, 2), torch.linspace(0, 1, 5), noise).shape
        torch.Size([8, 5, 2])

    References:
        Kloeden & Platen (1992), section 10.2. doi:10.1007/978-3-662-12616-5
    """
    check_pairing(solver, sde)
    _check_state(initial, values=not allow_diverged)
    instants, dts = time_grid(times, substeps)
    increments = _increments(sde, initial, noise, dts)
    paths = _loop(sde, initial, instants, dts, increments, solver, substeps, progress)
    if not allow_diverged:
        _check_finite(paths, times, noise)
    return paths


def time_grid(times: Tensor, substeps: int) -> tuple[Tensor, Tensor]:
    """Start and length of every step, float64, each of shape ``((T - 1) * substeps,)``.

    Args:
        times: Strictly increasing instants, shape ``(T,)`` with ``T >= 2``.
        substeps: Equal steps between consecutive instants, at least 1.

    Returns:
        The instants at which steps start, and the steps.

    Raises:
        ValueError: If ``times`` is too short, not finite or not increasing, or ``substeps`` is below 1.
        TypeError: If ``times`` is not floating point or ``substeps`` not an integer.

    Example:
        >>> time_grid(torch.tensor([0.0, 1.0, 3.0]), 2)[0].tolist()
        [0.0, 0.5, 1.0, 2.0]
    """
    if isinstance(substeps, bool) or not isinstance(substeps, int):
        raise TypeError(f"`substeps` must be an integer; got {type(substeps).__name__}.")
    if substeps < 1:
        raise ValueError(f"`substeps` must be at least 1; got {substeps}.")
    if not isinstance(times, Tensor) or not times.is_floating_point():
        given = times.dtype if isinstance(times, Tensor) else type(times).__name__
        raise TypeError(f"`times` must be a floating-point tensor; got {given}.")
    check_shapes(times=(times, "T"))
    if len(times) < 2:
        raise ValueError(f"`times` must hold at least 2 instants; got {len(times)}.")
    values = times.tolist()
    for j in range(1, len(values)):
        if not values[j - 1] < values[j] < float("inf") or values[0] == -float("inf"):
            raise ValueError(
                f"`times` must increase strictly and be finite; "
                f"got times[{j}] = {values[j]:g} after times[{j - 1}] = {values[j - 1]:g}."
            )
    times = times.double()
    fractions = torch.arange(substeps, dtype=torch.float64, device=times.device) / substeps
    spans = times.diff()
    instants = times[:-1, None] + spans[:, None] * fractions
    return instants.flatten(), (spans / substeps).repeat_interleave(substeps)


def _loop(
    sde: SDE,
    initial: Tensor,
    instants: Tensor,
    dts: Tensor,
    increments: Increments,
    solver: Solver,
    substeps: int,
    progress: Progress | None,
) -> Tensor:
    """Take all steps and stack the states at the save times."""
    num_steps, samples, channels = increments.shape
    chunk = max(4, _CHUNK_ELEMENTS // max(1, samples * channels) // 4 * 4)
    starts = instants.to(initial).unbind()
    steps = dts.to(initial).unbind()
    state, saved, equation = initial, [initial], sde.checked()
    for first in range(0, num_steps, chunk):
        count = min(chunk, num_steps - first)
        wiener = increments.chunk(first, count)
        for k, increment in enumerate(wiener.unbind(), first):
            state = solver.step(equation, starts[k], state, steps[k], Increment(increment))
            equation = sde  # the first step has checked the shapes
            if (k + 1) % substeps == 0:
                saved.append(state)
        if progress is not None:
            progress(first + count, num_steps)
    return torch.stack(saved, dim=1)


def _increments(sde: SDE, initial: Tensor, noise: NoiseStream | Increments, dts: Tensor) -> Increments:
    """The increments of the solve, checked against its shapes."""
    samples, state_dim = initial.shape
    channels = sde.channels(state_dim)
    if isinstance(noise, NoiseStream):
        if len(noise) != samples:
            raise ValueError(
                f"`noise` must hold one sample per row of `initial`, {samples}; got {len(noise)}."
            )
        return WienerIncrements(noise, dts, channels, initial.dtype, initial.device)
    if not hasattr(noise, "chunk"):
        raise TypeError(f"`noise` must be a NoiseStream or increments; got {type(noise).__name__}.")
    expected = (len(dts), samples, channels)
    if noise.shape != expected:
        raise ValueError(
            f"`noise` must hold increments of (steps, samples, channels) = {expected}; got {noise.shape}."
        )
    return noise


def _check_state(initial: Tensor, *, values: bool) -> None:
    """Raise unless the initial state is a finite floating-point tensor ``(n, d)``."""
    if not isinstance(initial, Tensor) or initial.dtype not in (torch.float32, torch.float64):
        given = initial.dtype if isinstance(initial, Tensor) else type(initial).__name__
        raise TypeError(f"`initial` must be a tensor of dtype float32 or float64; got {given}.")
    check_shapes(initial=(initial, "n d"))
    if values and not bool(initial.isfinite().all()):
        row = int((~initial.isfinite()).any(1).nonzero()[0])
        raise ValueError(f"`initial` must be finite; got {initial[row].tolist()} in row {row}.")


def _check_finite(paths: Tensor, times: Tensor, noise: NoiseStream | Increments) -> None:
    """Raise with the first sample that diverged; the last state tells, since NaN and infinity do not heal."""
    diverged = ~paths.detach()[:, -1].isfinite().all(-1)
    if not bool(diverged.any()):
        return
    row = int(diverged.nonzero()[0])
    sample = int(noise.sample_ids()[row]) if isinstance(noise, NoiseStream) else row
    bad = int((~paths.detach()[row].isfinite().all(-1)).nonzero()[0])
    raise RuntimeError(
        f"{int(diverged.sum())} of {len(paths)} paths diverged, the first sample {sample} "
        f"before time {float(times[bad]):g}. Take more substeps, or pass allow_diverged=True to keep them."
    )
