"""The CPU kernel of central difference: compiled once with the system compiler, called through ctypes."""

import ctypes
import functools
from pathlib import Path

import torch
from torch import Tensor

from fem_bridge.dynamics.batch import Batch
from fem_bridge.dynamics.loads import SeparableLoad
from fem_bridge.dynamics.system import ElasticSystem
from sde.native import Library, compile_and_load

__all__ = ["can_run", "load", "run"]

_SOURCE = Path(__file__).with_name("central_difference.cpp")
_FLAGS = ("-ffp-contract=off",)
_VECTOR_BYTES = 32  # lanes of a block: as in the source


@functools.cache
def load() -> Library:
    """The kernel, compiled if the cache lacks it; once in a process. Nothing is raised."""
    return compile_and_load(_SOURCE, flags=_FLAGS)


def can_run(batch: Batch) -> bool:
    """Whether the kernel covers a batch: on the CPU, without gradients, and with a separable load or none."""
    covered = batch.load is None or isinstance(batch.load, SeparableLoad)
    return (
        covered
        and batch.system.device.type == "cpu"
        and not batch.needs_gradient
        and load().handle is not None
    )


def run(batch: Batch) -> Tensor:
    """Integrate by central difference: observed displacements, shape ``(T, o, n)``.

    Raises:
        RuntimeError: If the kernel could not be compiled.
    """
    handle = load().handle
    if handle is None:
        raise RuntimeError(f"The kernel of central difference is missing: {load().reason}.")
    system, n = batch.system, batch.num_samples
    lanes = 1 if n == 1 else _VECTOR_BYTES // system.lumped_mass.element_size()
    width = -(-n // lanes) * lanes
    loaded, spatial, amplitude = _load_tables(batch, width)
    history = system.lumped_mass.new_empty(0) if batch.history is None else _fill(batch.history, width)
    shared = batch.modulus.ndim == 1
    moduli = batch.modulus.detach().to(system.lumped_mass)
    frames = system.lumped_mass.new_empty(batch.num_intervals + 1, len(batch.observe), width)
    frames[0, :, :n] = batch.displacement[batch.observe]
    state = [_blocks(_fill(column, width), lanes) for column in (batch.displacement, batch.velocity)]
    arrays = [
        system.element_table,
        _elasticity(system),
        moduli.contiguous() if shared else _blocks(_fill(moduli.T, width), lanes),
        batch.dt * system.inverse_mass,
        *(spatial, amplitude, history),
        *(*state, torch.zeros_like(state[0]), frames),
    ]
    driven = system.driven if batch.history is not None else system.driven[:0]
    tables = [table.to(torch.int32).contiguous() for table in (_nodes(batch), loaded, driven, batch.observe)]
    addresses = (ctypes.c_void_p * 11)(*(array.data_ptr() for array in arrays))
    table_addresses = (ctypes.c_void_p * 4)(*(table.data_ptr() for table in tables))
    for first, last in _pieces(batch):
        counts = (len(loaded), len(driven), len(batch.observe), len(amplitude))
        sizes = (system.num_dofs, system.num_cells, width, first * batch.substeps, last * batch.substeps)
        status = handle.sdeuq_central_difference(
            (ctypes.c_int64 * 10)(*sizes, batch.substeps, *counts),
            table_addresses,
            addresses,
            ctypes.c_int64(lanes),
            ctypes.c_double(batch.dt),
            int(shared),
            int(system.dtype == torch.float32),
            min(torch.get_num_threads(), width // lanes),
        )
        if status:
            raise RuntimeError(f"The kernel of central difference has no blocks of {lanes} samples.")
        if batch.tick is not None:
            batch.tick(last - first)
    return frames[:, :, :n]


def _pieces(batch: Batch) -> list[tuple[int, int]]:
    """Ranges of intervals, one call each: all of them, or about twenty where progress is shown in between."""
    length = batch.num_intervals if batch.tick is None else max(1, batch.num_intervals // 20)
    return [(k, min(k + length, batch.num_intervals)) for k in range(0, batch.num_intervals, length)]


def _nodes(batch: Batch) -> Tensor:
    """Nodes of the cells, shape ``(C, 3)``."""
    return torch.tensor(batch.system.operators.mesh.cells)


def _elasticity(system: ElasticSystem) -> Tensor:
    """The constants of elasticity: axial, lateral, shear."""
    matrix = system.operators.elasticity
    return torch.tensor([matrix[0, 0], matrix[0, 1], matrix[2, 2]], dtype=system.dtype)


def _load_tables(batch: Batch, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Loaded degrees of freedom, their forces, and the pulse at each step until it ends."""
    like = batch.system.lumped_mass
    if not isinstance(batch.load, SeparableLoad):
        return torch.empty(0, dtype=torch.int64), like.new_empty(0), like.new_empty(0)
    spatial = batch.load.spatial.detach().to(like)
    rows = torch.nonzero((spatial != 0).any(0))[:, 0]
    steps = torch.arange(batch.num_intervals * batch.substeps, dtype=torch.float64)
    amplitude = batch.load.pulse.table(batch.start + steps * batch.dt).detach().to(like)
    acting = torch.nonzero((amplitude != 0).any(1))
    length = int(acting[-1]) + 1 if len(acting) else 0
    return rows, _fill(spatial[:, rows].T, width), _fill(amplitude[:length], width)


def _fill(columns: Tensor, width: int) -> Tensor:
    """Columns repeated from the last one up to a width, contiguous."""
    missing = width - columns.shape[-1]
    last = columns[..., -1:].expand(*columns.shape[:-1], missing)
    return torch.cat([columns, last], -1).detach().contiguous()


def _blocks(columns: Tensor, lanes: int) -> Tensor:
    """A copy of ``(rows, width)`` as ``(blocks, rows, lanes)``."""
    rows, width = columns.shape
    return columns.reshape(rows, width // lanes, lanes).permute(1, 0, 2).contiguous().clone()
