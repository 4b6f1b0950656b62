"""Simulate a batch of samples on a common grid of output instants, with sub-steps of each sample's own."""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.interpolate import CubicSpline
from torch import Tensor

from fem_bridge.dynamics.batch import Batch, Integrator
from fem_bridge.dynamics.loads import Load
from fem_bridge.dynamics.system import ElasticSystem
from sde.progress import Progress

__all__ = ["Trajectory", "simulate", "substeps_for"]


@dataclass(frozen=True, eq=False, slots=True)
class Trajectory:
    """Displacements at the output instants.

    Attributes:
        times: Output instants [s], shape ``(T,)``.
        displacement: Displacements [m] of the observed degrees of freedom, shape ``(n, T, len(observe))``;
            the rows of a sample that diverged are NaN.
        observe: The observed degrees of freedom.
        substeps: Steps taken between output instants, shape ``(n,)``.
    """

    times: Tensor
    displacement: Tensor
    observe: Tensor
    substeps: Tensor

    @property
    def failed(self) -> Tensor:
        """Whether each sample diverged, shape ``(n,)``."""
        return self.displacement.detach()[:, -1].isnan().any(-1)


def substeps_for(system: ElasticSystem, modulus: Tensor, dt: float, *, safety: float = 0.9) -> Tensor:
    """Fewest equal steps within ``dt`` that keep central difference stable.

    The free bound :meth:`ElasticSystem.safe_step` decides where it can, and the critical step where it
    cannot.

    Args:
        system: The system.
        modulus: Young's moduli [Pa], shape ``(n, C)`` or ``(C,)``.
        dt: Interval between output instants [s].
        safety: Largest step as a fraction of the critical one, in (0, 1].

    Returns:
        Counts, int64, shape ``(n,)``, with ``n = 1`` for shared moduli.

    Raises:
        ValueError: If the moduli, ``dt`` or ``safety`` are out of range.
    """
    if not 0 < dt < math.inf:
        raise ValueError(f"`dt` must be positive; got {dt}.")
    if not 0 < safety <= 1:
        raise ValueError(f"`safety` must lie in (0, 1]; got {safety}.")
    counts = torch.ceil(dt / (safety * system.safe_step(modulus).double())).long().cpu()
    unsure = torch.nonzero(counts > 1)[:, 0]
    if len(unsure):
        rows = modulus if modulus.ndim == 1 else modulus[unsure.to(modulus.device)]
        counts[unsure] = torch.ceil(dt / (safety * system.critical_step(rows).double())).long().cpu()
    return counts


def simulate(
    system: ElasticSystem,
    *,
    modulus: Tensor,
    times: Tensor,
    integrator: Integrator,
    load: Load | None = None,
    motion: Tensor | None = None,
    substeps: int | Tensor = 1,
    observe: Tensor | None = None,
    displacement: Tensor | None = None,
    velocity: Tensor | None = None,
    check_stability: bool = True,
    progress: bool = False,
) -> Trajectory:
    """Integrate a batch of samples in time.

    Differentiable in the moduli, the load, the motion and the initial state. A sample depends on its own
    rows only. An explicit scheme above its critical step is refused before any arithmetic.

    Args:
        system: The system, on the device and in the dtype of the computation.
        modulus: Young's moduli [Pa], shape ``(n, C)``, or ``(C,)`` for all samples.
        times: Output instants [s], increasing by equal intervals, shape ``(T,)`` with ``T >= 2``.
        integrator: :class:`CentralDifference`, :class:`Newmark` or :class:`GeneralizedAlpha`.
        load: Nodal forces.
        motion: Displacements [m] of the driven degrees of freedom at the output instants, shape
            ``(n, T, len(driven))``; between them cubic splines. Required where the system has driven ones.
        substeps: Equal steps taken between output instants, for all samples or per sample, shape ``(n,)``.
        observe: Degrees of freedom to return, shape ``(o,)``; ``None`` returns all.
        displacement: Initial displacements [m], shape ``(n, D)``; ``None`` is zero. Fixed ones keep theirs.
        velocity: Initial velocities [m/s], shape ``(n, D)``; ``None`` is zero. Ignored where the motion is
            prescribed.
        check_stability: Refuse steps above the critical one.
        progress: Show a bar.

    Returns:
        Displacements at the output instants; the rows of samples that diverged are NaN.

    Raises:
        TypeError: If the integrator is none.
        ValueError: If shapes disagree, values are not finite or positive, ``times`` is not uniform, motion
            is given without driven degrees of freedom or missing with them, or a step is unstable.

    Example:
        >>> from fem_bridge.assembly import rectangle
        >>> from fem_bridge.assembly.skfem import SkfemAssembler
        >>> from fem_bridge.dynamics import CentralDifference
        >>> mesh = rectangle((0, 0), (2, 1), divisions=(4, 2))
        >>> operators = SkfemAssembler().elastic(mesh, poisson=0.3, density=1.0)
        >>> system = ElasticSystem.from_operators(operators, fixed=("right",))
        >>> times = torch.linspace(0, 1, 21, dtype=torch.float64)
        >>> still = simulate(system, modulus=torch.ones(3, 32), times=times, integrator=CentralDifference())
        >>> still.displacement.shape, float(still.displacement.abs().max())
        (torch.Size([3, 21, 46]), 0.0)
    """
    if not isinstance(integrator, Integrator):
        raise TypeError(
            f"`integrator` must be an integrator such as CentralDifference(); got {integrator!r}."
        )
    system.check_modulus(modulus)
    interval = _interval(times)
    n = _num_samples(system, modulus, load, motion, displacement, velocity)
    _check_motion(system, motion, len(times))
    counts = _counts(substeps, n)
    shown = _observed(observe, system)
    if check_stability and integrator.explicit:
        _check_stability(system, modulus, interval, counts)
    pieces, order = [], []
    groups = torch.unique(counts).tolist()
    with Progress((len(times) - 1) * len(groups), "time steps", show=progress) as bar:
        for count in groups:
            rows = torch.nonzero(counts == count)[:, 0]
            batch = Batch(
                system=system,
                modulus=modulus if modulus.ndim == 1 else _rows(modulus, rows),
                start=float(times[0]),
                dt=interval / count,
                num_intervals=len(times) - 1,
                substeps=count,
                load=load if load is None or len(rows) == n else load.select(rows),
                history=None
                if motion is None
                else _history(_rows(motion, rows).to(system.lumped_mass), count),
                observe=shown.to(system.device),
                displacement=_initial(displacement, rows, system),
                velocity=_initial(velocity, rows, system),
                tick=bar.update if progress else None,
            )
            pieces.append(integrator.run(_constrain(batch)))
            order.append(rows)
    merged = pieces[0] if len(pieces) == 1 else torch.cat(pieces, -1)[..., torch.argsort(torch.cat(order))]
    return Trajectory(times, _mark_failures(merged.permute(2, 0, 1)), shown, counts)


def _constrain(batch: Batch) -> Batch:
    """Put the prescribed displacements and velocities into the initial state."""
    system = batch.system
    still = torch.cat([system.fixed, system.driven])
    velocity = batch.velocity.index_fill(0, still, 0.0)
    if batch.history is None:
        return replace(batch, velocity=velocity)
    return replace(
        batch,
        velocity=velocity,
        displacement=batch.displacement.index_copy(0, system.driven, batch.history[0]),
    )


def _mark_failures(result: Tensor) -> Tensor:
    """NaN in all of a sample that has a value which is not finite."""
    finite = result.detach().isfinite().flatten(1).all(1)
    return result if bool(finite.all()) else result.masked_fill(~finite[:, None, None], torch.nan)


def _interval(times: Tensor) -> float:
    """The interval of a uniform grid."""
    if times.ndim != 1 or len(times) < 2:
        raise ValueError(f"`times` must hold at least 2 instants; got shape {tuple(times.shape)}.")
    steps = times.double().diff()
    interval = float(times[-1].double() - times[0].double()) / (len(times) - 1)
    if not (bool(times.isfinite().all()) and interval > 0):
        raise ValueError("`times` must be finite and increase; got instants that do not.")
    # single-precision instants carry a rounding of 6e-8 of their size
    slack = 1e-6 * interval + 2e-7 * float(times.abs().max()) * (times.dtype != torch.float64)
    worst = int((steps - interval).abs().argmax())
    if abs(float(steps[worst]) - interval) > slack:
        raise ValueError(
            f"`times` must increase by equal intervals; got {float(steps[worst]):.6g} s after "
            f"instant {worst} and {interval:.6g} s on average."
        )
    return interval


def _num_samples(
    system: ElasticSystem,
    modulus: Tensor,
    load: Load | None,
    motion: Tensor | None,
    displacement: Tensor | None,
    velocity: Tensor | None,
) -> int:
    """Number of samples, which all arguments must agree on."""
    sizes = {"modulus": len(modulus)} if modulus.ndim == 2 else {}
    if load is not None:
        sizes["load"] = len(load)
        width = load.force(0.0).shape[-1]
        if width != system.num_dofs:
            raise ValueError(
                f"`load` must give forces of shape (n, {system.num_dofs}); got {width} per sample."
            )
    for name, value in (("displacement", displacement), ("velocity", velocity)):
        if value is not None and (value.ndim != 2 or value.shape[1] != system.num_dofs):
            raise ValueError(f"`{name}` must have shape (n, {system.num_dofs}); got {tuple(value.shape)}.")
    for name, value in (("motion", motion), ("displacement", displacement), ("velocity", velocity)):
        if value is not None:
            sizes[name] = len(value)
            if not bool(value.isfinite().all()):
                raise ValueError(
                    f"`{name}` must be finite; got {int((~value.isfinite()).sum())} values that are not."
                )
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{name}: {size}" for name, size in sizes.items())
        raise ValueError(f"All arguments must have the same number of samples; got {listed}.")
    n = next(iter(sizes.values()), 1)
    if n < 1:
        raise ValueError("There must be at least one sample; got none.")
    return n


def _check_motion(system: ElasticSystem, motion: Tensor | None, num_times: int) -> None:
    """Refuse motion of a wrong shape, missing, or without effect."""
    driven = len(system.driven)
    if motion is None and driven:
        raise ValueError(
            f"`motion` must be given: the system has {driven} driven degrees of freedom; got None."
        )
    if motion is not None and not driven:
        raise ValueError(
            "`motion` must be None: the system has no driven degrees of freedom. Name them when it is built."
        )
    if motion is not None and (motion.ndim != 3 or motion.shape[1:] != (num_times, driven)):
        raise ValueError(f"`motion` must have shape (n, {num_times}, {driven}); got {tuple(motion.shape)}.")


def _counts(substeps: int | Tensor, n: int) -> Tensor:
    """Sub-steps of each sample."""
    counts = torch.as_tensor(substeps).cpu()
    if counts.dtype.is_floating_point or counts.dtype == torch.bool:
        raise TypeError(f"`substeps` must be integers; got {counts.dtype}.")
    if counts.ndim > 1 or (counts.ndim == 1 and len(counts) not in (1, n)):
        raise ValueError(f"`substeps` must be one integer or have shape ({n},); got {tuple(counts.shape)}.")
    if int(counts.min()) < 1:
        raise ValueError(f"`substeps` must be at least 1; got {int(counts.min())}.")
    return counts.long().expand(n).clone()


def _observed(observe: Tensor | None, system: ElasticSystem) -> Tensor:
    """Observed degrees of freedom."""
    if observe is None:
        return torch.arange(system.num_dofs)
    shown = torch.as_tensor(observe).cpu()
    if shown.ndim != 1 or shown.dtype.is_floating_point or shown.dtype == torch.bool:
        raise TypeError(
            f"`observe` must be a list of integers; got {shown.dtype} of shape {tuple(shown.shape)}."
        )
    if len(shown) and not 0 <= int(shown.min()) <= int(shown.max()) < system.num_dofs:
        raise ValueError(
            f"`observe` must lie from 0 to {system.num_dofs - 1}; "
            f"got {int(shown.min())} to {int(shown.max())}."
        )
    return shown.long()


def _check_stability(system: ElasticSystem, modulus: Tensor, interval: float, counts: Tensor) -> None:
    """Refuse steps above the critical one; the free bound clears most samples."""
    steps = interval / counts.double()
    unsure = torch.nonzero(steps >= system.safe_step(modulus).double().cpu())[:, 0]
    if not len(unsure):
        return
    critical = system.critical_step(modulus if modulus.ndim == 1 else _rows(modulus, unsure)).double().cpu()
    bad = torch.nonzero(steps[unsure] >= critical)[:, 0]
    if len(bad):
        sample, limit = int(unsure[bad[0]]), float(critical.expand(len(unsure))[bad[0]])
        step = float(steps[sample])
        raise ValueError(
            f"`times` with `substeps` must give steps below the critical one; got {step:.4g} s for "
            f"sample {sample}, whose critical step is {limit:.4g} s. "
            f"Use substeps=substeps_for(system, modulus, {interval:.4g})."
        )


def _rows(values: Tensor, rows: Tensor) -> Tensor:
    """Rows of some samples, on the device of the values."""
    return values if len(rows) == len(values) else values[rows.to(values.device)]


def _initial(field: Tensor | None, rows: Tensor, system: ElasticSystem) -> Tensor:
    """Initial field of some samples, shape ``(D, k)``."""
    if field is None:
        return system.lumped_mass.new_zeros(system.num_dofs, len(rows))
    return _rows(field, rows).to(system.lumped_mass).T.contiguous()


def _history(motion: Tensor, substeps: int) -> Tensor:
    """Prescribed displacements at every step, shape ``(steps + 1, m, k)``, by cubic splines."""
    frames = motion.permute(1, 2, 0)
    if substeps == 1:
        return frames.contiguous()
    knots = np.arange(len(frames))
    fine = np.arange((len(knots) - 1) * substeps + 1) / substeps
    weights = torch.from_numpy(CubicSpline(knots, np.eye(len(knots)))(fine)).to(frames)
    return torch.tensordot(weights, frames, dims=1)
