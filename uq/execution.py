"""Evaluation of ranges of samples, here or on the workers of any executor."""

import hashlib
import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from sde.noise import NoiseStream
from uq.designs import Design
from uq.inputs import Inputs
from uq.model import Model

__all__ = ["Batch", "Task", "evaluate_ranges", "process_pool"]

_SMALL = 65_536  # bytes: a task below this travels with every range
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_TASKS: OrderedDict[str, "Task"] = OrderedDict()  # tasks that this worker has unpacked, newest last
_TASKS_KEPT = 4
_Result = TypeVar("_Result")
_TASKS_LOCK = threading.Lock()


@dataclass(frozen=True, slots=True)
class Batch:
    """The samples ``start .. stop - 1``, evaluated.

    Attributes:
        start: First sample id.
        stop: One past the last sample id.
        inputs: Physical inputs, shape ``(stop - start, d)``, float64.
        outputs: Outputs, shape ``(stop - start, *output_shape)``.
        seconds: Time that the evaluation took [s].
    """

    start: int
    stop: int
    inputs: np.ndarray
    outputs: np.ndarray
    seconds: float


@dataclass(frozen=True, slots=True)
class Task:
    """What a worker needs to evaluate any range of samples of a run.

    Attributes:
        model: The model.
        inputs: Joint law of its inputs; ``None`` for a model driven by noise alone.
        design: Points of the unit cube; ``None`` together with ``inputs``.
        seed: Seed of the noise.
        threads: Threads of torch during an evaluation. Sums over many threads are rounded in another order:
            results are equal bit for bit for equal numbers of threads.
        dtype: Default dtype of torch during an evaluation.
    """

    model: Model
    inputs: Inputs | None
    design: Design | None
    seed: int
    threads: int
    dtype: torch.dtype

    def evaluate(self, start: int, stop: int) -> Batch:
        """Evaluate samples ``start .. stop - 1``.

        Raises:
            RuntimeError: If the model raises.
            ValueError: If the model returns another shape than it promises.
            TypeError: If it returns something else than real numbers.
        """
        began = time.perf_counter()
        inputs = torch.empty(stop - start, 0, dtype=torch.float64)
        if self.inputs is not None and self.design is not None:
            inputs = self.inputs.transform(self.design.points(start, stop))
        with _settings(self.threads, self.dtype), torch.no_grad():
            try:
                outputs = self.model(inputs, NoiseStream(self.seed, start, stop))
            except Exception as error:
                raise RuntimeError(
                    f"The model raised {type(error).__name__} on samples {start} to {stop - 1}: {error}"
                ) from error
        values = _checked(outputs, (stop - start, *self.model.output_shape))
        return Batch(start, stop, inputs.numpy(), values, time.perf_counter() - began)


def evaluate_ranges(
    task: Task,
    ranges: Iterable[tuple[int, int]],
    executor: Executor | None = None,
    in_flight: int | None = None,
) -> Iterator[Batch]:
    """Evaluate ranges of samples and yield them as they are done, in any order.

    The task is sent to each worker about once: small ones travel with each range, large ones where a worker
    asks for them. Closing the iterator cancels what has not begun.

    Args:
        task: What to evaluate.
        ranges: Pairs ``(start, stop)``, taken one by one as workers become free.
        executor: Where to evaluate; in this process, in order, where not given.
        in_flight: Most ranges handed out at once; twice the number of workers where not given and known, else
            32.

    Yields:
        The batches.

    Raises:
        TypeError: If the task cannot be pickled.
        RuntimeError: If a worker dies, or the model raises.
    """
    if executor is None:
        for start, stop in ranges:
            yield task.evaluate(start, stop)
        return
    payload = _pack(task)
    token = hashlib.sha256(payload).hexdigest()
    first = payload if len(payload) <= _SMALL else None
    limit = in_flight or 2 * (_workers(executor) or 16)
    waiting = iter(ranges)
    pending: dict[Future[Batch | None], tuple[int, int]] = {}
    try:
        while True:
            while len(pending) < limit and (piece := next(waiting, None)) is not None:
                pending[executor.submit(_evaluate, token, first, *piece)] = piece
            if not pending:
                return
            done, _ = wait(pending, return_when=FIRST_COMPLETED)
            for future in sorted(done, key=lambda item: pending[item]):
                piece = pending.pop(future)
                batch = _outcome(future)
                if batch is None:
                    pending[executor.submit(_evaluate, token, payload, *piece)] = piece
                else:
                    yield batch
    finally:
        for future in pending:
            future.cancel()


@contextmanager
def process_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """A pool of spawned processes with one thread each, which end when this process does, however it ends.

    Starting one costs a second or two (each worker imports torch): keep it for several runs by giving it to
    them as ``executor``. A script that uses it needs the guard ``if __name__ == "__main__":``.

    Args:
        workers: Number of processes, at least 1.

    Yields:
        The executor.

    Raises:
        ValueError: If ``workers`` is below 1.
    """
    if workers < 1:
        raise ValueError(f"`workers` must be at least 1; got {workers}.")
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)
    before = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    try:
        # Libraries read these once, when they load: the workers must find them in their environment.
        os.environ.update(dict.fromkeys(_THREAD_VARIABLES, "1"))
        started = [pool.submit(os.getpid) for _ in range(workers)]
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
    try:
        for future in started:
            _outcome(future)
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _settings(threads: int, dtype: torch.dtype) -> Iterator[None]:
    """Threads and default dtype of torch for a while."""
    before = torch.get_num_threads(), torch.get_default_dtype()
    if before != (threads, dtype):
        torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        if before != (threads, dtype):
            torch.set_num_threads(before[0])
            torch.set_default_dtype(before[1])


def _checked(outputs: object, shape: tuple[int, ...]) -> np.ndarray:
    """Outputs of a model as an array of its own, after checking what they are."""
    if not isinstance(outputs, Tensor):
        raise TypeError(f"`model` must return a tensor; got {type(outputs).__name__}.")
    if tuple(outputs.shape) != shape:
        raise ValueError(f"`model` must return shape {shape}; got {tuple(outputs.shape)}.")
    if outputs.is_complex():
        raise TypeError("`model` must return real numbers; got complex ones. Stack real and imaginary parts.")
    if outputs.dtype not in (torch.float32, torch.float64):
        outputs = outputs.to(torch.float32 if outputs.is_floating_point() else torch.float64)
    return outputs.detach().cpu().numpy().copy()


def _pack(task: Task) -> bytes:
    """The task as bytes; cloudpickle, where installed, also takes what a script or notebook defines."""
    try:
        import cloudpickle

        return cloudpickle.dumps(task)
    except Exception:  # any class may fail in its own way: the standard pickle has the last word
        pass
    try:
        return pickle.dumps(task)
    except Exception as error:
        raise TypeError(
            f"`model` must be picklable to run in other processes; got {type(task.model).__name__}: {error}. "
            "Define it and its parts at the top level of a module."
        ) from error


def _unpack(payload: bytes) -> Task:
    """The task of :func:`_pack`, on a worker."""
    try:
        return pickle.loads(payload)
    except Exception as error:
        raise RuntimeError(
            f"A worker could not load the model ({error}). Define it in a module that workers can import, or "
            "install cloudpickle."
        ) from error


def _workers(executor: Executor) -> int | None:
    """Number of workers of an executor, where it tells."""
    for name in ("_max_workers", "num_workers"):
        count = getattr(executor, name, None)
        if isinstance(count, int) and count > 0:
            return count
    client = getattr(executor, "_client", None)
    cores = client.ncores() if hasattr(client, "ncores") else {}  # type: ignore[union-attr]
    return sum(cores.values()) or None


def _evaluate(token: str, payload: bytes | None, start: int, stop: int) -> Batch | None:
    """On a worker: evaluate a range, or return ``None`` to ask for the task."""
    with _TASKS_LOCK:
        task = _TASKS.get(token)
        if task is None:
            if payload is None:
                return None
            task = _TASKS[token] = _unpack(payload)
            while len(_TASKS) > _TASKS_KEPT:
                _TASKS.popitem(last=False)
    return task.evaluate(start, stop)


def _outcome(future: Future[_Result]) -> _Result:
    """Result of a future, with a sentence for a pool that broke."""
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise RuntimeError(
            "A worker process died: it was killed, ran out of memory, or could not start because the script "
            'lacks the guard `if __name__ == "__main__":`. A run with a store goes on when started again.'
        ) from error


def _start_worker() -> None:
    """In a new worker: one thread; leave Ctrl-C to the parent, and do not outlive it."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Wait for the parent's end. Without this, workers of a killed parent wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
