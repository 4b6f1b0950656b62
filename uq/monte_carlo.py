"""Monte Carlo runs: to a number of samples or to a tolerance, anywhere, and again after a crash."""

import time
from collections.abc import Generator, Iterator
from concurrent.futures import Executor
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from sde.noise import NoiseStream
from sde.progress import Progress
from uq.designs import Design, Iid, replicate
from uq.execution import Batch, Task, evaluate_ranges, process_pool
from uq.fingerprint import fingerprint
from uq.inputs import Inputs
from uq.model import Model
from uq.moments import student_quantile
from uq.reading import Failures, OrderedReader, Tolerance
from uq.results import MonteCarloResult
from uq.storage import RunStore, RunWriter, Status

__all__ = ["monte_carlo"]


def monte_carlo(
    model: Model,
    inputs: Inputs | None = None,
    *,
    seed: int,
    num_samples: int | None = None,
    tolerance: Tolerance | None = None,
    design: Design | None = None,
    replications: int = 1,
    batch_size: int = 256,
    workers: int | None = None,
    executor: Executor | None = None,
    threads: int = 1,
    store: RunStore | Path | str | None = None,
    failures: Failures = Failures.RAISE,
    confidence: float = 0.95,
    progress: bool = True,
) -> MonteCarloResult:
    r"""Estimate the mean output of a model, :math:`\mathrm{E}\, y(x, \text{noise})`.

    Sample ``i`` is computed from point ``i`` of the design and sample ``i`` of the noise of ``seed``. Results
    are read strictly in the order of the ids, so batches, workers and restarts change neither the samples nor
    when a tolerance stops the run. (For models whose rows agree bit for bit in batches of any size. Linear
    algebra over a batch may round differently in another batch size: keep ``batch_size`` and ``threads`` to
    repeat such runs to the bit.)

    Args:
        model: What to evaluate.
        inputs: Joint law of its inputs; left out where ``model.input_dim`` is 0.
        seed: Seed of the noise, and of the default design.
        num_samples: Number of samples. Give this or ``tolerance``.
        tolerance: Rule that stops the run.
        design: Points of the unit cube; :class:`~uq.designs.Iid` of ``seed`` where not given.
        replications: Independent randomisations of the design, dealt in turn; their spread gives the error of
            designs whose points are not independent. 1 is the design as it is.
        batch_size: Samples per call of the model; a call of 0.2 s or more keeps workers busy.
        workers: Evaluate in this many new processes. Scripts then need ``if __name__ == "__main__":``.
        executor: Evaluate on this one instead: a kept :func:`~uq.execution.process_pool`, Dask's
            ``client.get_executor()``, ``mpi4py.futures.MPIPoolExecutor()``, or any other of the standard
            interface. Without it and without ``workers``, evaluation is in this process.
        threads: Threads of torch in each evaluation.
        store: Where to keep the samples. A run that was stopped, or killed, goes on from there.
        failures: What to do about samples with an output that is not finite.
        confidence: Probability of the interval of the mean, in (0, 1).
        progress: Show a progress bar.

    Returns:
        Samples, moments and errors.

    Raises:
        ValueError: If arguments are out of range or disagree, or ``store`` holds another run.
        RuntimeError: If samples fail and ``failures`` is ``RAISE``, the model raises, or a worker dies.
        TypeError: If an argument is of the wrong kind, or the model cannot be sent to other processes.

    Warns:
        RuntimeWarning: If the tolerance is not met after its ``max_samples``.

    Example:
        >>> from torch.distributions import Normal
        >>> from uq.inputs import Input
        >>> from uq.model import FunctionModel
        >>> model = FunctionModel(lambda x: 2 * x[:, 0], input_dim=1)
        >>> inputs = Inputs([Input("x", Normal(1.0, 0.5))])
        >>> result = monte_carlo(model, inputs, seed=0, num_samples=500, progress=False)
        >>> low, high = result.confidence_interval
        >>> bool(low < 2 < high), result.num_samples
        (True, 500)
    """
    limit = tolerance.max_samples if num_samples is None and tolerance is not None else num_samples or 0
    sizes = {"num_samples": limit, "batch_size": batch_size, "threads": threads, "replications": replications}
    _check(model, inputs, num_samples, tolerance, workers, executor, sizes)
    student_quantile(confidence, 1)
    if limit % replications:
        raise ValueError(f"`num_samples` must be a multiple of the {replications} replications; got {limit}.")
    began = time.perf_counter()
    design = _design(inputs, design, seed, replications)
    task = Task(model, inputs, design, seed, threads, torch.get_default_dtype())
    reader = OrderedReader(limit, tolerance, failures, confidence, design)
    places: AbstractContextManager[Executor | None] = (
        nullcontext(executor) if workers is None else process_pool(workers)
    )
    with (
        _writer(store, task, num_samples) as writer,
        Progress(num_samples, "Monte Carlo", unit="sample", show=progress) as bar,
        places as place,
    ):
        evaluated = _run(task, reader, writer, place, batch_size, bar)
        if writer is not None and num_samples is None:
            writer.trim()
    return reader.result(seed, inputs, evaluated, time.perf_counter() - began)


def _run(
    task: Task,
    reader: OrderedReader,
    writer: RunWriter | None,
    place: Executor | None,
    size: int,
    bar: Progress,
) -> int:
    """Feed the reader until it is finished; return the number of samples evaluated."""
    status = writer.status.copy() if writer is not None else np.zeros(0, dtype=np.uint8)
    missing = ((start, stop) for start, stop, stored in _pieces(status, reader.limit, size) if not stored)
    batches = evaluate_ranges(task, missing, place)
    held: dict[int, Batch] = {}
    evaluated = 0
    try:
        for start, stop, stored in _pieces(status, reader.limit, size):
            if stored and writer is not None:
                batch = writer.read(start, stop)
            else:
                while start not in held:
                    done = next(batches)
                    evaluated += done.stop - done.start
                    if writer is not None:
                        writer.write(done)
                    held[done.start] = done
                batch = held.pop(start)
            reader.accept(batch)
            bar.update(stop - start, reader.note)
            if reader.finished:
                break
    finally:
        if isinstance(batches, Generator):
            batches.close()
    return evaluated


def _pieces(status: np.ndarray, limit: int, size: int) -> Iterator[tuple[int, int, bool]]:
    """Cut ``0 .. limit`` into batches, and those where stored and missing samples meet."""
    for first in range(0, limit, size):
        last = min(first + size, limit)
        known = np.zeros(last - first, dtype=bool)
        part = status[first:last] != Status.MISSING
        known[: len(part)] = part
        cuts = [0, *(np.flatnonzero(known[1:] != known[:-1]) + 1), len(known)]
        for a, b in pairwise(cuts):
            yield first + int(a), first + int(b), bool(known[a])


def _check(
    model: Model,
    inputs: Inputs | None,
    num_samples: int | None,
    tolerance: Tolerance | None,
    workers: int | None,
    executor: Executor | None,
    sizes: dict[str, int],
) -> None:
    """Check the arguments of :func:`monte_carlo` that other objects do not check."""
    if not isinstance(model, Model):
        raise TypeError(
            f"`model` must have input_dim, output_shape and be callable; got {type(model).__name__}."
        )
    if (num_samples is None) == (tolerance is None):
        raise ValueError(
            "`num_samples` or `tolerance` must be given, and not both; got "
            + ("neither." if tolerance is None else "both.")
        )
    if workers is not None and executor is not None:
        raise ValueError("`workers` and `executor` must not both be given; got both.")
    if executor is not None and not callable(getattr(executor, "submit", None)):
        raise TypeError(f"`executor` must have the method submit; got {type(executor).__name__}.")
    for name, value in sizes.items():
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"`{name}` must be an integer; got {type(value).__name__}.")
        if value < 1:
            raise ValueError(f"`{name}` must be at least 1; got {value}.")
    dimension = 0 if inputs is None else inputs.dimension
    if dimension != model.input_dim:
        given = f"{dimension} inputs" if dimension else "no inputs"
        raise ValueError(
            f"`inputs` must have dimension {model.input_dim}, as the model's input_dim; got {given}."
        )


def _design(inputs: Inputs | None, design: Design | None, seed: int, replications: int) -> Design | None:
    """The design of a run, replicated where asked."""
    NoiseStream(seed, 0, 0)
    if inputs is None:
        if design is not None or replications > 1:
            raise ValueError("`design` and `replications` are for models with inputs; got a model without.")
        return None
    design = Iid(inputs.dimension, seed) if design is None else design
    if design.dimension != inputs.dimension:
        raise ValueError(
            f"`design` must have dimension {inputs.dimension}, as the inputs; got {design.dimension}."
        )
    return replicate(design, replications) if replications > 1 else design


def _writer(
    store: RunStore | Path | str | None, task: Task, num_samples: int | None
) -> AbstractContextManager[RunWriter | None]:
    """The open store of a run, or nothing."""
    if store is None:
        return nullcontext(None)
    model = task.model
    description = {
        "seed": str(task.seed),
        "design": repr(task.design),
        "inputs": repr(task.inputs),
        "model": type(model).__qualname__,
        "model_fingerprint": fingerprint(model),
        "model_shape": f"{model.input_dim} -> {tuple(model.output_shape)}",
    }
    names, units = getattr(model, "output_names", None), getattr(model, "output_units", None)
    attributes = {"names": list(names)} if names else {}
    attributes |= {"units": ", ".join(units)} if units else {}
    return (store if isinstance(store, RunStore) else RunStore(Path(store))).writer(
        description,
        input_names=task.inputs.names if task.inputs else (),
        input_units=task.inputs.units if task.inputs else (),
        output_attributes=attributes,
        planned=num_samples or 0,
    )
