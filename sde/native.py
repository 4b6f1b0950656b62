"""C++ kernels: compiled once with the system compiler, kept in a cache by content, loaded through ctypes."""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Library", "cache_directory", "compile_and_load"]

_FLAGS = ("-std=c++17", "-O3", "-fPIC", "-shared")
_VARIANTS = (("-march=native", "-fopenmp"), ("-march=native",), ("-fopenmp",), ())  # best first
_COMPILE_SECONDS = 120


@dataclass(frozen=True, slots=True)
class Library:
    """The outcome of loading a kernel.

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


def compile_and_load(
    source: Path, *, flags: tuple[str, ...] = (), prepare: Callable[[ctypes.CDLL], None] | None = None
) -> Library:
    """Compile a kernel if the cache lacks it, and load it.

    Flags of the processor and of OpenMP are tried together, one by one and left away. The name of the
    compiled file is a digest of the source, the flags, the compiler's version and the processor, and the file
    is put in place atomically, so that processes which compile at the same time do no harm.

    Args:
        source: The C++ file.
        flags: Flags of this kernel beside those of all kernels.
        prepare: Declares the functions of the loaded library and tries it; what it raises counts as a failure
            to compile.

    Returns:
        The library, or the reason why there is none. Nothing is raised.

    Example:
        >>> library = compile_and_load(Path("missing.cpp"))
        >>> library.handle is None
        True
    """
    candidates = (os.environ.get("CXX"), "c++", "g++", "clang++")
    compiler = next((found for name in candidates if name and (found := shutil.which(name))), None)
    if compiler is None:
        return Library(None, "no C++ compiler was found (looked for $CXX, c++, g++ and clang++)")
    failures = []
    for variant in _VARIANTS:
        command = (compiler, *_FLAGS, *flags, *variant)
        try:
            handle = ctypes.CDLL(str(_compiled(source, command)))
            if prepare is not None:
                prepare(handle)
        except (OSError, RuntimeError, subprocess.SubprocessError) as error:
            failures.append(f"{' '.join(variant) or 'plain'}: {error}")
        else:
            return Library(handle, f"compiled by {' '.join(command)}")
    return Library(None, "the C++ kernel did not compile; " + "; ".join(failures))


def _compiled(source: Path, command: tuple[str, ...]) -> Path:
    """The kernel compiled by ``command``: from the cache, or compiled into it."""
    version = subprocess.run(
        [command[0], "--version"], capture_output=True, check=True, timeout=_COMPILE_SECONDS
    )
    digest = hashlib.blake2b(digest_size=16)
    for part in (source.read_bytes(), " ".join(command).encode(), version.stdout, _processor().encode()):
        digest.update(len(part).to_bytes(8, "little") + part)
    path = cache_directory() / f"{source.stem}-{digest.hexdigest()}.so"
    if path.exists():
        return path
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _compile(source, command, path)
    except PermissionError:  # a cache that cannot be written: compile for this process only
        path = Path(tempfile.mkdtemp(prefix="sdeuq-")) / path.name
        _compile(source, command, path)
    return path


def _compile(source: Path, command: tuple[str, ...], path: Path) -> None:
    """Compile to a temporary file beside ``path``, then move it into place in one step."""
    descriptor, temporary = tempfile.mkstemp(suffix=".so", dir=path.parent)
    os.close(descriptor)
    try:
        call = [*command, str(source), "-o", temporary]
        made = subprocess.run(call, capture_output=True, text=True, timeout=_COMPILE_SECONDS)
        if made.returncode:
            lines = made.stderr.strip().splitlines() or [f"{command[0]} returned {made.returncode}"]
            raise RuntimeError(next((line for line in lines if "error" in line), lines[0]))
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
