"""The CPU kernel: ``philox.cpp``, compiled once with the system compiler and called through a C interface."""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sde.noise.philox import Address, Kind

__all__ = ["Library", "cache_directory", "fill", "load", "philox4x32"]

_SOURCE = Path(__file__).with_name("philox.cpp")
_FLAGS = ("-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared")
_VARIANTS = (("-march=native", "-fopenmp"), ("-march=native",), ("-fopenmp",), ())  # best first
_COMPILE_SECONDS = 120
_SERIAL_CELLS = 8192  # below this a thread's start costs more than its share of the work
_KNOWN_ANSWER = (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)  # Philox4x32-10 of zeros; Random123


@dataclass(frozen=True, slots=True)
class Library:
    """The outcome of loading the kernel.

    Attributes:
        handle: The loaded library, ``None`` where there is none.
        reason: How it was compiled, or why it could not be.
    """

    handle: ctypes.CDLL | None
    reason: str


def cache_directory() -> Path:
    """Folder of compiled kernels: ``$SDEUQ_CACHE``, else ``sdeuq`` in the user's cache folder."""
    if given := os.environ.get("SDEUQ_CACHE"):
        return Path(given)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "sdeuq"


@functools.cache
def load() -> Library:
    """Compile the kernel if the cache lacks it, and load it; once in a process.

    The file's name is a digest of the source, the flags, the compiler's version and the processor, and it is
    put in place atomically, so that processes which compile at the same time do no harm.

    Returns:
        The library, or the reason why there is none. Nothing is raised.
    """
    compiler = _compiler()
    if compiler is None:
        return Library(None, "no C++ compiler was found (looked for $CXX, c++, g++ and clang++)")
    failures = []
    for variant in _VARIANTS:
        command = (compiler, *_FLAGS, *variant)
        try:
            handle = _open(_compiled(command))
        except (OSError, RuntimeError, subprocess.SubprocessError) as error:
            failures.append(f"{' '.join(variant) or 'plain'}: {error}")
        else:
            return Library(handle, f"compiled by {' '.join(command)}")
    return Library(None, "the C++ kernel did not compile; " + "; ".join(failures))


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


def _open(path: Path) -> ctypes.CDLL:
    """Load a compiled kernel, declare its functions and try it on a known answer."""
    handle = ctypes.CDLL(str(path))
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
    return handle


def _compiler() -> str | None:
    """Path of the system's C++ compiler."""
    candidates = (os.environ.get("CXX"), "c++", "g++", "clang++")
    return next((found for name in candidates if name and (found := shutil.which(name))), None)


def _compiled(command: tuple[str, ...]) -> Path:
    """The kernel compiled by ``command``: from the cache, or compiled into it."""
    source = _SOURCE.read_bytes()
    version = subprocess.run(
        [command[0], "--version"], capture_output=True, check=True, timeout=_COMPILE_SECONDS
    )
    digest = hashlib.blake2b(digest_size=16)
    for part in (source, " ".join(command).encode(), version.stdout, _processor().encode()):
        digest.update(len(part).to_bytes(8, "little") + part)
    name = f"noise-{digest.hexdigest()}.so"
    path = cache_directory() / name
    if path.exists():
        return path
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _compile(command, path)
    except PermissionError:  # a cache that cannot be written: compile for this process only
        path = Path(tempfile.mkdtemp(prefix="sdeuq-")) / name
        _compile(command, path)
    return path


def _compile(command: tuple[str, ...], path: Path) -> None:
    """Compile to a temporary file beside ``path``, then move it into place in one step."""
    descriptor, temporary = tempfile.mkstemp(suffix=".so", dir=path.parent)
    os.close(descriptor)
    try:
        made = subprocess.run(
            [*command, str(_SOURCE), "-o", temporary],
            capture_output=True,
            text=True,
            timeout=_COMPILE_SECONDS,
        )
        if made.returncode:
            lines = made.stderr.strip().splitlines()
            raise RuntimeError(lines[0] if lines else f"{command[0]} returned {made.returncode}")
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _processor() -> str:
    """What ``-march=native`` depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    kept = {
        line.split(":")[0].strip(): line
        for line in lines
        if line.startswith(("model name", "flags", "Features"))
    }
    return platform.machine() + " ".join(kept.values())
