"""The CPU kernel: ``philox.cpp``, compiled once with the system compiler and called through a C interface."""

import ctypes
import functools
from pathlib import Path

import torch
from torch import Tensor

from sde.native import Library, compile_and_load
from sde.noise.philox import Address, Kind

__all__ = ["fill", "load", "philox4x32"]

_SOURCE = Path(__file__).with_name("philox.cpp")
_FLAGS = ("-fno-math-errno", "-fno-trapping-math")
_SERIAL_CELLS = 8192  # below this a thread's start costs more than its share of the work
_KNOWN_ANSWER = (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)  # Philox4x32-10 of zeros; Random123


@functools.cache
def load() -> Library:
    """The kernel, compiled if the cache lacks it; once in a process. Nothing is raised."""
    return compile_and_load(_SOURCE, flags=_FLAGS, prepare=_prepare)


def fill(kind: Kind, address: Address, out: Tensor) -> None:
    """Write a box of noise to the CPU tensor ``out``; see :func:`sde.noise.philox.fill`.

    Raises:
        RuntimeError: If the kernel could not be compiled.
    """
    library = load()
    if library.handle is None:
        raise RuntimeError(f"The C++ noise kernel is missing: {library.reason}.")
    ids = None if address.ids is None else address.ids.to("cpu", torch.int64).contiguous()
    cells = None if address.cells is None else address.cells.to("cpu", torch.int64).contiguous()
    work = address.num_samples * address.channels * (address.count // 4 + 1)
    library.handle.sdeuq_fill(
        int(kind),
        int(out.dtype == torch.float64),
        address.seed,
        address.start,
        None if ids is None else ids.data_ptr(),
        None if cells is None else cells.data_ptr(),
        address.num_samples,
        address.purpose,
        address.first,
        address.count,
        address.first_channel,
        address.channels,
        out.data_ptr(),
        *out.stride(),
        torch.get_num_threads() if work > _SERIAL_CELLS else 1,
    )


def philox4x32(counter: tuple[int, int, int, int], key: tuple[int, int], rounds: int = 10) -> tuple[int, ...]:
    """One block of the kernel's generator, 7 or 10 rounds, for comparison with published answers."""
    library = load()
    if library.handle is None:
        raise RuntimeError(f"The C++ noise kernel is missing: {library.reason}.")
    return _block(library.handle, counter, key, rounds)


def _block(
    handle: ctypes.CDLL, counter: tuple[int, int, int, int], key: tuple[int, int], rounds: int
) -> tuple[int, ...]:
    """``philox4x32`` of a loaded library."""
    out = (ctypes.c_uint32 * 4)()
    handle.sdeuq_philox((ctypes.c_uint32 * 4)(*counter), (ctypes.c_uint32 * 2)(*key), rounds, out)
    return tuple(out)


def _prepare(handle: ctypes.CDLL) -> None:
    """Declare the functions of a compiled kernel and try it on a known answer."""
    int32, int64, pointer = ctypes.c_int32, ctypes.c_int64, ctypes.c_void_p
    handle.sdeuq_fill.restype = None
    handle.sdeuq_fill.argtypes = [
        *(int32, int32, ctypes.c_uint64, int64),  # kind, wide, seed, start
        *(pointer, pointer, int64),  # ids, cells, num_samples
        *(ctypes.c_uint32, int64, int64, int64, int64),  # purpose, first, count, first_channel, channels
        *(pointer, int64, int64, int64, int32),  # out, its strides, threads
    ]
    handle.sdeuq_philox.restype = None
    handle.sdeuq_philox.argtypes = [pointer, pointer, int32, pointer]
    if _block(handle, (0, 0, 0, 0), (0, 0), 10) != _KNOWN_ANSWER:
        raise RuntimeError("the compiled kernel fails Philox's known answer")
