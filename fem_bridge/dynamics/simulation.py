"""Simulate a batch of samples on a common grid of output instants, with sub-steps of each sample's own."""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.interpolate import CubicSpline
from torch import Tensor

from fem_bridge.dynamics.explicit import CentralDifference
from fem_bridge.dynamics.loads import Load
from fem_bridge.dynamics.system import ElasticSystem

__all__ = ["Trajectory", "simulate", "substeps_for"]


@dataclass(frozen=True, eq=False, slots=True)
class Trajectory:
    """Displacements at the output instants.

    Attributes:
        times: Output instants [s], shape ``(T,)``.
        displacement: Displacements [m] of the observed degrees of freedom, shape ``(n, T, len(observe))``; the rows
            of a sample that diverged are NaN.
        observe: The observed degrees of freedom.
        substeps: Steps taken between output instants, shape ``(n,)``.
    """

    times: Tensor
    displacement: Tensor
    observe: Tensor
    substeps: Tensor


def substeps_for(system: ElasticSystem, modulus: Tensor, dt: float, *, safety: float = 0.9) -> Tensor:
    """Fewest equal steps within ``dt`` that keep central difference stable.

    Args:
        system: The system.
        modulus: Young's moduli [Pa], shape ``(n, C)`` or ``(C,)``.
        dt: Interval between output instants [s].
        safety: Largest step as a fraction of the critical one, in (0, 1).

    Returns:
        Counts, int64, shape ``(n,)``, with ``n = 1`` for shared moduli.

    Raises:
        ValueError: If ``dt`` or ``safety`` is out of range.
    """
    if not dt > 0:
        raise ValueError(f"`dt` must be positive; got {dt}.")
    if not 0 < safety < 1:
        raise ValueError(f"`safety` must lie in (0, 1); got {safety}.")
    return torch.ceil(dt / (safety * system.critical_step(modulus))).long().clamp_min(1).cpu()


def simulate(
    system: ElasticSystem,
    *,
    modulus: Tensor,
    times: Tensor,
    integrator: CentralDifference,
    load: Load | None = None,
    motion: Tensor | None = None,
    substeps: int | Tensor = 1,
    observe: Tensor | None = None,
    displacement: Tensor | None = None,
    velocity: Tensor | None = None,
    check_stability: bool = True,
    progress: bool = False,
) -> Trajectory:
    """Integrate a batch of samples in time (see the package)."""
    dt = float(times[1] - times[0])
    n = _batch_size(modulus, load, motion, displacement, velocity)
    counts = torch.as_tensor(substeps, dtype=torch.int64).expand(n)
    shown = torch.arange(system.num_dofs) if observe is None else torch.as_tensor(observe, dtype=torch.int64)
    if check_stability:
        critical = system.critical_step(modulus).cpu().expand(n)
        bad = torch.nonzero(dt / counts > critical)
        if len(bad):
            i = int(bad[0])
            raise ValueError(
                f"`times` with `substeps` must give stable steps; got {dt / int(counts[i]):.4g} s for sample {i}, whose "
                f"critical step is {float(critical[i]):.4g} s. Use substeps=substeps_for(system, modulus, {dt:.4g})."
            )
    pieces, order = [], []
    for count in torch.unique(counts).tolist():
        rows = torch.nonzero(counts == count)[:, 0]
        pieces.append(
            _run(
                system,
                modulus if modulus.ndim == 1 else modulus[rows.to(modulus.device)],
                times,
                integrator,
                load if load is None or len(rows) == n else load.select(rows),
                motion if motion is None else motion[rows.to(motion.device)],
                int(count),
                shown,
                _initial(displacement, rows, system),
                _initial(velocity, rows, system),
            )
        )
        order.append(rows)
    result = torch.cat(pieces)[torch.argsort(torch.cat(order)).to(system.device)]
    diverged = ~result.detach().isfinite().all(-1).all(-1)
    if bool(diverged.any()):
        result = result.masked_fill(diverged[:, None, None], torch.nan)
    return Trajectory(times, result, shown, counts.clone())


def _batch_size(modulus: Tensor, load: Load | None, *others: Tensor | None) -> int:
    """Number of samples, which all arguments must agree on."""
    sizes = {"modulus": len(modulus)} if modulus.ndim == 2 else {}
    if load is not None:
        sizes["load"] = len(load)
    for name, value in zip(("motion", "displacement", "velocity"), others, strict=True):
        if value is not None:
            sizes[name] = len(value)
    if len(set(sizes.values())) > 1:
        raise ValueError(f"All arguments must have one number of samples; got {sizes}.")
    return next(iter(sizes.values()), 1)


def _initial(field: Tensor | None, rows: Tensor, system: ElasticSystem) -> Tensor:
    """Initial field of some samples, shape ``(D, k)``."""
    if field is None:
        return torch.zeros(system.num_dofs, len(rows), dtype=system.dtype, device=system.device)
    return field.to(system.lumped_mass)[rows.to(system.device)].T.contiguous()


def _run(
    system: ElasticSystem,
    modulus: Tensor,
    times: Tensor,
    integrator: CentralDifference,
    load: Load | None,
    motion: Tensor | None,
    substeps: int,
    observe: Tensor,
    displacement: Tensor,
    velocity: Tensor,
) -> Tensor:
    """Integrate samples that share their number of sub-steps: shape ``(k, T, len(observe))``."""
    instants = times.double().cpu().numpy()
    dt = float(instants[1] - instants[0]) / substeps
    history = None if motion is None else _histories(motion.to(system.lumped_mass), substeps)
    stepper = integrator.stepper(
        system,
        modulus,
        dt,
        (lambda t: None) if load is None else (lambda t: load.force(t).to(system.lumped_mass).T),
        (lambda k: None) if history is None else (lambda k: history[k]),
    )
    if history is not None:
        displacement = displacement.index_copy(0, system.driven, history[0])
    state = stepper.start(displacement, velocity, float(instants[0]))
    shown = observe.to(system.device)
    frames = [state[0][shown]]
    for interval in range(len(instants) - 1):
        for sub in range(1, substeps + 1):
            index = interval * substeps + sub
            state = stepper.step(state, index, float(instants[0]) + index * dt)
        frames.append(state[0][shown])
    return torch.stack(frames).permute(2, 0, 1)


def _histories(motion: Tensor, substeps: int) -> Tensor:
    """Prescribed displacements at every step, shape ``(steps + 1, m, k)``: cubic splines between output instants."""
    frames = motion.permute(1, 2, 0)
    if substeps == 1:
        return frames.contiguous()
    knots = np.arange(frames.shape[0])
    fine = np.arange((len(knots) - 1) * substeps + 1) / substeps
    weights = torch.from_numpy(CubicSpline(knots, np.eye(len(knots)))(fine)).to(frames)
    return torch.tensordot(weights, frames, dims=1)
