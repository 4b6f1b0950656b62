"""Evaluation of ranges on executors that finish in any order, that break, or that do not start."""

import os
import pickle
from collections.abc import Generator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass

import pytest
import torch

from benchmarks.engine import StandardNormal
from sde.noise import NoiseStream
from uq import Tolerance, monte_carlo, process_pool
from uq.execution import Task, evaluate_ranges

TASK = Task(StandardNormal(), None, None, seed=5, threads=1, dtype=torch.float32)


class Reversing(Executor):
    """Runs nothing until eight calls have come in, then the newest first; keeps what it was asked for."""

    def __init__(self):
        self.waiting, self.finished, self.asked = [], [], 0
        self._max_workers = 4  # the engine keeps twice this number in flight

    def submit(self, function, /, *arguments, **options):
        future = Future()
        self.asked += 1
        self.waiting.append((future, function, arguments, options))
        if len(self.waiting) == 8:
            self.flush()
        return future

    def flush(self):
        while self.waiting:
            future, function, arguments, options = self.waiting.pop()
            future.set_result(function(*arguments, **options))
            self.finished.append(arguments[-2])


def test_reversing_executor_finishes_out_of_order():
    place = Reversing()
    done = list(evaluate_ranges(TASK, [(k, k + 10) for k in range(0, 80, 10)], place))
    assert place.finished == list(range(70, -1, -10))
    assert sorted(batch.start for batch in done) == list(range(0, 80, 10))
    for batch in done:
        expected = NoiseStream(5, batch.start, batch.stop).normals(1, dtype=torch.float64)[:, 0]
        assert torch.equal(torch.from_numpy(batch.outputs), expected)


def test_tolerance_stops_in_the_order_of_the_ids_whatever_finishes_first():
    rule = Tolerance(absolute=0.1, max_samples=2400)
    reference = monte_carlo(StandardNormal(), seed=5, tolerance=rule, progress=False)

    class Draining(Reversing):
        """As above, in blocks of four, so that no call waits for ever."""

        def submit(self, function, /, *arguments, **options):
            future = super().submit(function, *arguments, **options)
            if self.asked % 4 == 0:
                self.flush()
            return future

    for size in (30, 100):
        place = Draining()
        place._max_workers = 2
        try:
            result = monte_carlo(
                StandardNormal(), seed=5, tolerance=rule, batch_size=size, executor=place, progress=False
            )
        finally:
            place.flush()
        assert result.digest() == reference.digest()
        assert torch.equal(result.mean, reference.mean)
        assert place.finished != sorted(place.finished)


def test_in_flight_ranges_are_limited():
    place = Reversing()
    taken = []

    def ranges():
        for k in range(0, 1000, 10):
            taken.append(k)
            yield k, k + 10

    batches = evaluate_ranges(TASK, ranges(), place)
    assert isinstance(batches, Generator)
    next(batches)
    batches.close()
    assert len(taken) == place.asked == 8


@dataclass(frozen=True)
class Weighted:
    """A model that is larger than what travels with every range."""

    weight: torch.Tensor
    input_dim: int = 0
    output_shape: tuple[int, ...] = ()

    def __call__(self, inputs, noise):
        return noise.normals(1, dtype=torch.float64)[:, 0] * self.weight[-1]


def test_large_task_is_sent_to_a_worker_that_asks_for_it():
    task = Task(
        Weighted(torch.arange(1.0, 20_001).double()), None, None, seed=5, threads=1, dtype=torch.float32
    )
    assert len(pickle.dumps(task)) > 65_536
    with ThreadPoolExecutor(2) as pool:
        found = {batch.start: batch for batch in evaluate_ranges(task, [(0, 5), (5, 10)], pool)}
    for start in (0, 5):
        assert (found[start].outputs == task.evaluate(start, start + 5).outputs).all()


def test_process_pool_restores_the_environment_and_refuses_no_workers():
    before = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    with process_pool(1) as pool:
        assert {name: os.environ.get(name) for name in before} == before
        assert pool.submit(os.getenv, "MKL_NUM_THREADS").result() == "1"
        assert pool.submit(torch.get_num_threads).result() == 1
    with pytest.raises(ValueError, match="`workers` must be at least 1; got 0"), process_pool(0):
        pass


@dataclass(frozen=True)
class Dying:
    """Ends the process that evaluates it."""

    input_dim: int = 0
    output_shape: tuple[int, ...] = ()

    def __call__(self, inputs, noise):
        os._exit(3)


def test_worker_that_dies_is_said_in_one_sentence():
    with process_pool(1) as pool, pytest.raises(RuntimeError, match="A worker process died"):
        monte_carlo(Dying(), seed=1, num_samples=10, executor=pool, progress=False)
