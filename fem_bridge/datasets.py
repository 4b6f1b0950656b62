"""Ensembles of full-model runs on disk: inputs, traces, responses, units, provenance and splits."""

import hashlib
import json
import os
import platform
import zipfile
from collections.abc import Iterator
from concurrent.futures import Executor, as_completed
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from sde.noise import NoiseStream
from sde.progress import Progress

__all__ = ["Ensemble", "EnsembleSource", "Split", "build_ensemble"]

_MANIFEST = "ensemble.json"
_FORMAT = "sdeuq ensemble 1"


class EnsembleSource(Protocol):
    """What an ensemble is computed from: a picklable, deterministic model with named records.

    Row ``i`` of everything it returns depends only on sample ``noise.start + i``.
    """

    def draw(self, noise: NoiseStream) -> Tensor:
        """Random inputs of the samples, shape ``(n, input_dim)``."""
        ...

    def record(self, inputs: Tensor, noise: NoiseStream) -> dict[str, Tensor]:
        """Run the samples and return named arrays, sample axis first."""
        ...

    def describe(self) -> dict[str, object]:
        """All that the numbers depend on, and the names and units of the records, as JSON values."""
        ...


@dataclass(frozen=True, slots=True)
class Split:
    """Which samples train, which choose, which judge: disjoint ranges of indices, fixed with the ensemble.

    Example:
        >>> Split(train=range(0, 800), test=range(800, 1200))
        Split(train=range(0, 800), validation=range(0, 0), test=range(800, 1200))
    """

    train: range
    validation: range = range(0)
    test: range = range(0)

    def __post_init__(self) -> None:
        """Refuse ranges that overlap or have a step."""
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        for name, part in parts.items():
            if part.step != 1:
                raise ValueError(f"`{name}` must be a range with step 1; got {part}.")
        filled = sorted((p.start, p.stop, name) for name, p in parts.items() if len(p))
        for (_, stop, left), (start, _, right) in pairwise(filled):
            if start < stop:
                raise ValueError(f"`{right}` must not overlap `{left}`; both hold sample {start}.")

    def to_json(self) -> dict[str, list[int]]:
        """The ranges as lists ``[start, stop]``."""
        return {
            name: [p.start, p.stop]
            for name, p in (("train", self.train), ("validation", self.validation), ("test", self.test))
        }

    @classmethod
    def from_json(cls, record: dict[str, list[int]]) -> "Split":
        """The inverse of :meth:`to_json`."""
        return cls(**{name: range(*bounds) for name, bounds in record.items()})


@dataclass(frozen=True, slots=True)
class Ensemble:
    """Runs of a full model on disk, read lazily.

    Attributes:
        folder: Where the shards lie.
        manifest: Provenance: description of the source, seed, batch, split, versions.

    Example:
        >>> ensemble = Ensemble.open("out/runs")  # doctest: +SKIP
        >>> ensemble.load("traces", ensemble.split.train).shape  # doctest: +SKIP
        torch.Size([800, 401, 98])
    """

    folder: Path
    manifest: dict[str, object]

    @classmethod
    def open(cls, folder: Path | str) -> "Ensemble":
        """Open an ensemble that :func:`build_ensemble` wrote.

        Raises:
            FileNotFoundError: If the folder holds no ensemble.
            ValueError: If its manifest is not one of ours.
        """
        path = Path(folder) / _MANIFEST
        if not path.exists():
            raise FileNotFoundError(
                f"`folder` must hold an ensemble; {folder} has no {_MANIFEST}. "
                "Build it with build_ensemble()."
            )
        try:
            manifest = json.loads(path.read_text())
        except ValueError:
            manifest = None
        if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT:
            raise ValueError(f"`folder` must hold an ensemble; {path} is not a manifest of one.")
        return cls(Path(folder), manifest)

    @property
    def split(self) -> Split:
        """The fixed split into training, validation and test samples."""
        return Split.from_json(self.manifest["split"])  # type: ignore[arg-type]

    @property
    def description(self) -> dict[str, object]:
        """The description of the source: problem, assembler, names, units."""
        return self.manifest["source"]  # type: ignore[return-value]

    def __len__(self) -> int:
        """Number of samples on disk, counted from 0 without a gap."""
        end = 0
        for start, stop, _ in _shards(self.folder):
            if start > end:
                break
            end = max(end, stop)
        return end

    def load(self, name: str, samples: range | None = None) -> Tensor:
        """Read a record, e.g. ``"inputs"``, ``"traces"``, ``"responses"``.

        Args:
            name: Name of the record.
            samples: Sample indices; ``None`` is all of them.

        Returns:
            The rows, sample axis first.

        Raises:
            KeyError: If there is no such record.
            ValueError: If samples are missing or a shard is damaged.
        """
        wanted = range(len(self)) if samples is None else samples
        if not 0 <= wanted.start <= wanted.stop <= len(self):
            raise ValueError(f"`samples` must lie in range(0, {len(self)}); got {wanted}.")
        parts = []
        for start, stop, path in _shards(self.folder):
            first, last = max(start, wanted.start), min(stop, wanted.stop)
            if first < last or not len(wanted):
                parts.append(_read_shard(path, name)[max(0, first - start) : max(0, last - start)])
        return torch.from_numpy(np.concatenate(parts))

    @property
    def inputs(self) -> Tensor:
        """Inputs of all samples, shape ``(n, input_dim)``."""
        return self.load("inputs")

    @property
    def failed(self) -> Tensor:
        """Indices of samples whose responses are not finite."""
        return (~self.load("responses").flatten(1).isfinite().all(1)).nonzero()[:, 0]

    def fingerprint(self) -> str:
        """SHA-256 of all records in sample order: two ensembles with the same content have the same one."""
        digest = hashlib.sha256()
        for _, _, path in _shards(self.folder):
            with np.load(path, allow_pickle=False) as shard:
                for name in sorted(shard.files):
                    digest.update(name.encode() + np.ascontiguousarray(shard[name]).tobytes())
        return digest.hexdigest()


def build_ensemble(
    source: EnsembleSource,
    folder: Path | str,
    *,
    num_samples: int,
    seed: int,
    split: Split | None = None,
    batch: int = 32,
    executor: Executor | None = None,
    progress: bool = True,
) -> Ensemble:
    """Run a full model for many samples and keep the records, resuming what an earlier call left.

    Batches are aligned to multiples of ``batch`` and each becomes one file, moved in place when complete: a
    run that was killed at any time continues to the same content. More samples may be asked for later.

    Args:
        source: The model, e.g. :class:`fem_bridge.problems.FullModel`; an executor needs it to pickle.
        folder: Where the ensemble lies or shall lie.
        num_samples: Number of samples, at least 1.
        seed: Seed of inputs and noise.
        split: Ranges of training, validation and test samples; ``None`` trains on all.
        batch: Samples per file and per task.
        executor: Any :class:`concurrent.futures.Executor`; ``None`` runs here.
        progress: Show a progress bar on standard error.

    Returns:
        The ensemble, with all samples on disk.

    Raises:
        ValueError: If a number is out of range, or the folder holds another ensemble.
    """
    if num_samples < 1 or batch < 1:
        raise ValueError(f"`num_samples` and `batch` must be at least 1; got {num_samples} and {batch}.")
    split = Split(range(num_samples)) if split is None else split
    highest = max(split.train.stop, split.validation.stop, split.test.stop)
    if highest > num_samples:
        raise ValueError(f"`split` must stay below num_samples = {num_samples}; it reaches {highest}.")
    folder = Path(folder)
    _agree_on_manifest(folder, source, seed, batch, split)
    _remove_leftovers(folder)
    present = {start: stop for start, stop, _ in _shards(folder)}
    missing = [(a, b) for a, b in _batches(num_samples, batch) if present.get(a, 0) < b]
    done = num_samples - sum(b - a for a, b in missing)
    with Progress(num_samples, "full runs", start=done, show=progress) as bar:
        for count in _run_batches(source, folder, seed, missing, executor):
            bar.update(count)
    _remove_short_shards(folder)
    return Ensemble.open(folder)


def _run_batches(
    source: EnsembleSource, folder: Path, seed: int, ranges: list[tuple[int, int]], executor: Executor | None
) -> Iterator[int]:
    """Compute the missing shards and yield the number of samples in each as it lands."""
    if executor is None:
        for start, stop in ranges:
            yield _write_shard(source, folder, seed, start, stop)
        return
    tasks = [executor.submit(_write_shard, source, folder, seed, start, stop) for start, stop in ranges]
    try:
        for task in as_completed(tasks):
            yield task.result()
    finally:
        for task in tasks:
            task.cancel()


def _write_shard(source: EnsembleSource, folder: Path, seed: int, start: int, stop: int) -> int:
    """Run one batch and move its file in place; runs in a worker."""
    noise = NoiseStream(seed=seed, start=start, stop=stop)
    inputs = source.draw(noise)
    with torch.no_grad():
        records = {"inputs": inputs, **source.record(inputs, noise)}
    arrays = {name: value.detach().cpu().numpy() for name, value in records.items()}
    final = _shard_path(folder, start, stop)
    partial = final.with_name(f"partial-{os.getpid()}-{final.name}")
    with partial.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
        file.flush()
        os.fsync(file.fileno())
    partial.replace(final)
    return stop - start


def _agree_on_manifest(folder: Path, source: EnsembleSource, seed: int, batch: int, split: Split) -> None:
    """Write the manifest, or compare with the one that is there."""
    asked = {
        "format": _FORMAT,
        "source": json.loads(json.dumps(source.describe())),
        "seed": seed,
        "batch": batch,
        "split": split.to_json(),
    }
    path = folder / _MANIFEST
    if path.exists():
        found = Ensemble.open(folder).manifest
        differing = sorted(_differences(found, asked))
        if differing:
            raise ValueError(
                f"`folder` must hold runs of the same ensemble; {folder} differs in {', '.join(differing)}. "
                "Use another folder, or the settings it was built with."
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    versions = {"python": platform.python_version(), "torch": str(torch.__version__), "numpy": np.__version__}
    partial = path.with_name(f"partial-{os.getpid()}-{_MANIFEST}")
    partial.write_text(json.dumps({**asked, "versions": versions}, indent=1) + "\n")
    partial.replace(path)


def _differences(found: dict[str, object], asked: dict[str, object], prefix: str = "") -> Iterator[str]:
    """Dotted names of the entries of ``asked`` that ``found`` has otherwise, with both values."""
    for name, value in asked.items():
        other = found.get(name)
        if isinstance(value, dict) and isinstance(other, dict):
            yield from _differences(other, value, f"{prefix}{name}.")
        elif value != other:
            yield f"{prefix}{name} ({other} there, {value} asked)"


def _batches(num_samples: int, batch: int) -> list[tuple[int, int]]:
    """Ranges of samples, aligned to multiples of ``batch``."""
    return [(a, min(a + batch, num_samples)) for a in range(0, num_samples, batch)]


def _shard_path(folder: Path, start: int, stop: int) -> Path:
    """File of the samples ``start .. stop - 1``."""
    return folder / f"runs-{start:08d}-{stop:08d}.npz"


def _shards(folder: Path) -> list[tuple[int, int, Path]]:
    """The shards in order: first sample, one past the last, file."""
    found = []
    for path in folder.glob("runs-*-*.npz"):
        start, stop = path.stem.split("-")[1:]
        found.append((int(start), int(stop), path))
    return sorted(found)


def _remove_leftovers(folder: Path) -> None:
    """Delete files that a killed run of this folder had not completed."""
    for path in folder.glob("partial-*"):
        path.unlink(missing_ok=True)


def _remove_short_shards(folder: Path) -> None:
    """Delete a shard that ended early, as fewer samples were asked for then, once the whole one is there."""
    longest: dict[str, Path] = {}
    for path in sorted(folder.glob("runs-*-*.npz")):
        start = path.stem.split("-")[1]
        if start in longest:
            longest[start].unlink()
        longest[start] = path


def _read_shard(path: Path, name: str) -> np.ndarray:
    """One record of a shard."""
    try:
        with np.load(path, allow_pickle=False) as shard:
            if name not in shard.files:
                raise KeyError(f"`name` must be one of {', '.join(sorted(shard.files))}; got {name}.")
            return shard[name]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is damaged ({error}). Delete it and build the ensemble again.") from error
