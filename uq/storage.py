"""Runs on disk: samples that survive a crash, in Zarr, opened by xarray."""

import json
import os
import platform
import shutil
import socket
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from uq.execution import Batch

if TYPE_CHECKING:
    import xarray
    import zarr

__all__ = ["RunStore", "RunWriter", "Status"]

_FORMAT = 1
_MISSING = (
    "Run stores need zarr and xarray, which are not installed. Install them with: pip install 'sdeuq[io]'"
)


class Status:
    """What is known of a sample: the values of the array ``status``."""

    MISSING = 0  #: not evaluated, or not committed
    DONE = 1  #: evaluated
    FAILED = 2  #: evaluated, and an output is not finite


@dataclass(frozen=True, slots=True)
class RunStore:
    """A run on disk: one Zarr group, appended to by one process at a time, read by any.

    Arrays, over the dimension ``sample``: ``outputs``, ``inputs`` and ``status`` (:class:`Status`). A batch
    is committed when its status is written, after its data, by the replacement of one file: killed at any
    moment, a process leaves every sample either committed or missing. What is missing is what remains to be
    done. Attributes record the seed, the design, the inputs, the model and the versions; a run that differs
    in one of them is refused.

    Attributes:
        path: Folder of the group, by custom ``<name>.zarr``; made with the first batch.

    Example:
        >>> store = RunStore(Path("deflection.zarr"))
        >>> store.exists
        False
    """

    path: Path

    def __post_init__(self) -> None:
        """Accept a string as path."""
        object.__setattr__(self, "path", Path(self.path))

    @property
    def exists(self) -> bool:
        """Whether a run was begun here."""
        return self.path.exists()

    def dataset(self) -> "xarray.Dataset":
        """The run as an xarray dataset, with names and units; arrays are read when used.

        Raises:
            FileNotFoundError: If no run was begun here.
            RuntimeError: If the store is damaged.
            ImportError: If xarray or zarr is missing.
        """
        try:
            import xarray
            import zarr  # noqa: F401  (xarray would report its absence less plainly)
        except ImportError:
            raise ImportError(_MISSING) from None
        if not self.exists:
            raise FileNotFoundError(f"`path` must be a run store; got '{self.path}', which does not exist.")
        # xarray adds a warning filter of its own; it goes again with the context.
        with _damage_reported(self.path), warnings.catch_warnings():
            return xarray.open_zarr(self.path, consolidated=True, chunks=None)

    @contextmanager
    def writer(self, description: Mapping[str, str], **labels: Any) -> Iterator["RunWriter"]:  # noqa: ANN401
        """Open the run to go on with it; no other process can until the context ends.

        Args:
            description: What decides the samples: seed, design, inputs, model.
            **labels: Forwarded to :class:`RunWriter`.

        Yields:
            The writer.

        Raises:
            ValueError: If the store holds another run.
            RuntimeError: If another process writes to it, or it is damaged.
            ImportError: If zarr is missing.
        """
        try:
            import zarr  # noqa: F401
        except ImportError:
            raise ImportError(_MISSING) from None
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(self.path):
            yield RunWriter(self.path, description, **labels)


class RunWriter:
    """The writing end of a :class:`RunStore`; get one from :meth:`RunStore.writer`.

    Args:
        path: Folder of the group.
        description: What decides the samples.
        input_names: Names of the inputs.
        input_units: Units of the inputs.
        output_attributes: Attributes of the array ``outputs``, such as ``units``.
        planned: Number of samples of the run where it is known: the arrays get this length at once.
    """

    def __init__(
        self,
        path: Path,
        description: Mapping[str, str],
        *,
        input_names: tuple[str, ...] = (),
        input_units: tuple[str, ...] = (),
        output_attributes: Mapping[str, Any] | None = None,
        planned: int = 0,
    ) -> None:
        """Open the store where it exists, and compare the descriptions."""
        self.path = path
        self._description = dict(description)
        self._names, self._units, self._planned = input_names, input_units, planned
        self._output_attributes = dict(output_attributes or {})
        self._group: zarr.Group | None = None
        self._arrays: dict[str, zarr.Array[Any]] = {}
        for leftover in path.parent.glob(f"{path.name}.*.partial"):
            shutil.rmtree(leftover, ignore_errors=True)
        self.status = np.zeros(0, dtype=np.uint8)
        if path.exists():
            self._open()
            with _damage_reported(path):
                self.status = np.asarray(self._array("status")[:], dtype=np.uint8)
                self._compare()

    def read(self, start: int, stop: int) -> Batch:
        """Committed samples ``start .. stop - 1``.

        Raises:
            RuntimeError: If they cannot be read, or are not what their status says.
        """
        with _damage_reported(self.path):
            outputs = np.asarray(self._array("outputs")[start:stop])
            inputs = (
                np.asarray(self._array("inputs")[start:stop])
                if self._has_inputs
                else np.empty((stop - start, 0))
            )
            finite = np.isfinite(outputs).reshape(stop - start, -1).all(1)
            if not np.array_equal(finite, self.status[start:stop] == Status.DONE):
                raise ValueError(f"samples {start} to {stop - 1} are not what their status says")
        return Batch(start, stop, inputs, outputs, 0.0)

    def write(self, batch: Batch) -> None:
        """Commit a batch: data first, then status.

        Raises:
            ValueError: If the outputs have another shape or dtype than those stored.
        """
        if self._group is None:
            self._create(batch)
        if batch.stop > len(self.status):
            self._grow(batch.stop)
        outputs = self._array("outputs")
        if outputs.dtype != batch.outputs.dtype or outputs.shape[1:] != batch.outputs.shape[1:]:
            raise ValueError(
                f"`model` must return what the store holds, {outputs.dtype} of shape {outputs.shape[1:]}; "
                f"got {batch.outputs.dtype} of shape {batch.outputs.shape[1:]}."
            )
        rows = slice(batch.start, batch.stop)
        outputs[rows] = batch.outputs
        if self._has_inputs:
            self._array("inputs")[rows] = batch.inputs
        finite = np.isfinite(batch.outputs).reshape(len(batch.outputs), -1).all(1)
        self.status[rows] = np.where(finite, Status.DONE, Status.FAILED)
        self._array("status")[rows] = self.status[rows]

    def trim(self) -> None:
        """Drop the unused end of the arrays, after a run that did not know its length."""
        used = np.flatnonzero(self.status)
        size = int(used[-1]) + 1 if len(used) else 0
        if self._group is not None and size < len(self.status):
            self._resize(size)
            self.status = self.status[:size]

    @property
    def _has_inputs(self) -> bool:
        """Whether the model has inputs, and the store an array of them."""
        return "inputs" in self._arrays

    def _array(self, name: str) -> "zarr.Array[Any]":
        """One array of the group."""
        if name not in self._arrays:
            raise KeyError(f"the array '{name}' is missing")
        return self._arrays[name]

    def _open(self) -> None:
        """Open the group for reading and writing, by its consolidated metadata."""
        import zarr

        with _damage_reported(self.path):
            group = zarr.open_group(self.path, mode="r+", use_consolidated=True)
            # Kept: asked again, the group would give arrays of the lengths that it saw when it was opened.
            self._group, self._arrays = group, dict(group.arrays())

    def _compare(self) -> None:
        """Refuse a run that would give other samples than those stored."""
        attributes = self._group.attrs.asdict() if self._group is not None else {}
        if attributes.get("sdeuq_format") != _FORMAT:
            raise ValueError(f"its format is {attributes.get('sdeuq_format')}, not {_FORMAT}")
        for key, value in self._description.items():
            if attributes.get(key) != value:
                raise _OtherRunError(
                    f"The run store '{self.path}' holds a run with another {key}: {attributes.get(key)}, not "
                    f"{value}. Choose another path, or repeat the arguments of the first run."
                )

    def _create(self, batch: Batch) -> None:
        """Make the group beside its place and move it there, so that it appears complete."""
        import zarr

        partial = self.path.with_name(f"{self.path.name}.{os.getpid()}.partial")
        group = zarr.create_group(partial, attributes={**self._description, **_provenance()})
        width, shape = batch.inputs.shape[1], batch.outputs.shape[1:]
        rows = max(1, batch.stop - batch.start)
        axes = tuple(f"output_{k}" if len(shape) > 1 else "output" for k in range(len(shape)))
        _add(group, "outputs", (rows, *shape), batch.outputs.dtype, axes, self._output_attributes)
        if width:
            units = {"units": ", ".join(unit or "1" for unit in self._units)} if self._units else {}
            _add(group, "inputs", (rows, width), batch.inputs.dtype, ("input",), units)
            _add_labels(group, "input", self._names or tuple(f"x{j}" for j in range(width)))
        if len(shape) == 1 and "names" in self._output_attributes:
            _add_labels(group, "output", self._output_attributes["names"])
        flags = {"flag_values": [0, 1, 2], "flag_meanings": "missing done failed"}
        _add(group, "status", (rows,), np.dtype(np.uint8), (), flags)
        _add(group, "sample", (65_536,), np.dtype(np.int64), (), {"long_name": "sample id"})
        _consolidate(partial)
        os.rename(partial, self.path)
        self._open()

    def _grow(self, size: int) -> None:
        """Lengthen the arrays so that ``size`` samples fit."""
        old = len(self.status)
        # By halves where the length is not known: metadata per batch would cost more than the batch.
        new = max(size, self._planned, old + old // 2 if not self._planned else 0)
        self._resize(new)
        self.status = np.concatenate([self.status, np.zeros(new - old, dtype=np.uint8)])

    def _resize(self, size: int) -> None:
        """Change the length. Readers see it when the consolidated metadata are replaced, all at once."""
        old = len(self.status)
        for name in ("outputs", "inputs", "status", "sample"):
            if name != "inputs" or self._has_inputs:
                array = self._array(name)
                array.resize((size, *array.shape[1:]))
        if size > old:
            self._array("sample")[old:size] = np.arange(old, size)
        _consolidate(self.path)


class _OtherRunError(ValueError):
    """The store holds another run: the message is for the user as it is."""


def _add(
    group: "zarr.Group",
    name: str,
    chunk: tuple[int, ...],
    dtype: np.dtype[Any],
    axes: tuple[str, ...],
    attributes: Mapping[str, Any],
) -> None:
    """An empty array over samples, whose chunks carry checksums."""
    from zarr.codecs import ZstdCodec

    group.create_array(
        name,
        shape=(0, *chunk[1:]),
        chunks=tuple(max(1, size) for size in chunk),
        dtype=dtype,
        fill_value=np.nan if dtype.kind == "f" else 0,
        dimension_names=("sample", *axes),
        attributes=dict(attributes),
        compressors=[ZstdCodec(level=1, checksum=True)],
    )


def _add_labels(group: "zarr.Group", name: str, labels: Sequence[str]) -> None:
    """A coordinate of names."""
    array = group.create_array(name, shape=(len(labels),), dtype=str, dimension_names=(name,))
    array[:] = np.array(list(labels), dtype=object)


def _consolidate(path: Path) -> None:
    """Copy the metadata of the arrays into those of the group, in one atomic step.

    ``zarr.consolidate_metadata`` writes the same, with a warning that other languages may not read it yet.
    """
    root = path / "zarr.json"
    content = json.loads(root.read_text())
    members = sorted(item for item in path.iterdir() if (item / "zarr.json").exists())
    parts = {item.name: json.loads((item / "zarr.json").read_text()) for item in members}
    content["consolidated_metadata"] = {"kind": "inline", "must_understand": False, "metadata": parts}
    partial = path / f"zarr.json.{os.getpid()}.partial"
    partial.write_text(json.dumps(content, indent=1))
    os.replace(partial, root)


def _provenance() -> dict[str, Any]:
    """Versions and date."""
    versions = {name: metadata.version(name) for name in ("torch", "numpy", "scipy", "zarr")}
    return {
        "sdeuq_format": _FORMAT,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), **versions},
    }


@contextmanager
def _damage_reported(path: Path) -> Iterator[None]:
    """Turn whatever zarr raises on a damaged store into one sentence."""
    try:
        yield
    except _OtherRunError:
        raise
    except Exception as error:
        raise RuntimeError(
            f"The run store '{path}' is damaged or not a run store: {type(error).__name__}: {error}. "
            "Restore it from a copy, or choose another path."
        ) from error


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep other writers out. The lock is the kernel's: it ends with the process, however that ends."""
    try:
        import fcntl
    except ImportError:
        raise RuntimeError(
            "Run stores need the file locks of Linux or macOS, which this system lacks."
        ) from None
    file = path.with_name(f"{path.name}.lock")
    with file.open("a+") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError(
                f"The run store '{path}' is being written by {_owner(handle)}. Wait for it to end, or "
                "choose another path."
            ) from None
        handle.seek(0)
        handle.truncate()
        handle.write(f"process {os.getpid()} on {socket.gethostname()}")
        handle.flush()
        yield


def _owner(handle: IO[str]) -> str:
    """Who holds a lock, by the words in its file."""
    handle.seek(0)
    return handle.read().strip() or "another process"
