"""The Monte Carlo engine: coverage, the sequential rule, one digest everywhere, kill and resume."""

import importlib.util
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Uniform

from benchmarks.check import Figure, Section, at_most, equal, main, reported, within
from benchmarks.engine_run import run
from sde.noise import NoiseStream, Purpose
from uq import FunctionModel, Iid, Input, Inputs, Sobol, Tolerance, monte_carlo
from uq.moments import Moments
from uq.storage import RunStore, Status

__all__ = ["SECTIONS", "KillReport", "StandardNormal", "interval_coverage", "kill_and_resume", "mpi_digest"]

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True, slots=True)
class StandardNormal:
    """One standard normal per sample."""

    input_dim: int = 0
    output_shape: tuple[int, ...] = ()

    def __call__(self, inputs: Tensor, noise: NoiseStream) -> Tensor:
        """The first normal of each sample."""
        return noise.normals(1, dtype=torch.float64)[:, 0]


def interval_coverage(samples: Tensor, expected: float) -> float:
    """Fraction of the 95 % intervals, one per column of samples ``(n, repetitions)``, that hold the mean."""
    low, high = Moments.of(samples).confidence_interval(0.95)
    return float(((low <= expected) & (expected <= high)).double().mean())


def coverage(smoke: bool) -> Iterator[Figure]:
    """Intervals of means over repetitions, with the lognormal law as the control that must fall short."""
    repetitions = 1000 if smoke else 4000
    slack = 0.0 if not smoke else 0.01
    normals = NoiseStream(seed=1, start=0, stop=repetitions).normals(200, dtype=torch.float64).T
    detail = f"{repetitions} repetitions"
    yield within(
        "coverage, normal, N = 200", interval_coverage(normals, 0.0), 0.94 - slack, 0.96 + slack, detail
    )
    short = NoiseStream(seed=2, start=0, stop=repetitions).normals(50, dtype=torch.float64).T
    lognormal = interval_coverage(short.exp(), math.exp(0.5))
    yield within(
        "coverage, lognormal, N = 50: the known deficit", lognormal, 0.88 - slack, 0.92 + slack, detail
    )


def sequential_rule(smoke: bool) -> Iterator[Figure]:
    """Runs to a half width of 0.1 for a standard normal: the formula asks for 384 samples."""
    repetitions = 300 if smoke else 2000
    rule = Tolerance(absolute=0.1, min_samples=100)
    hits, sizes = 0, []
    for seed in range(repetitions):
        result = monte_carlo(StandardNormal(), seed=seed, tolerance=rule, batch_size=512, progress=False)
        hits += bool((result.mean.abs() <= result.half_width).item())
        sizes.append(result.num_samples)
    mean, detail = float(np.mean(sizes)), f"{repetitions} runs"
    yield within("sequential rule: coverage", hits / repetitions, 0.92, 0.96, detail)
    yield within(
        "sequential rule: mean number of samples / 384", mean / 384, 0.9, 1.1, f"mean N = {mean:.1f}"
    )


def _ishigami(x: Tensor) -> Tensor:
    """Ishigami's function with a = 7, b = 0.1; its mean over the cube is 3.5."""
    return x[:, 0].sin() + 7 * x[:, 1].sin() ** 2 + 0.1 * x[:, 2] ** 4 * x[:, 0].sin()


def replicated_sobol(smoke: bool) -> Iterator[Figure]:
    """Intervals from 16 replications of Sobol' points, and their gain over independent points."""
    repetitions, count = (60 if smoke else 400), 16 * 64
    inputs = Inputs([Input(name, Uniform(-math.pi, math.pi)) for name in ("x1", "x2", "x3")])
    model = FunctionModel(_ishigami, input_dim=3)
    errors, iid, hits = [], [], 0
    for seed in range(repetitions):
        settings = {"seed": seed, "num_samples": count, "batch_size": count, "progress": False}
        result = monte_carlo(model, inputs, design=Sobol(3, seed), replications=16, **settings)
        low, high = result.confidence_interval
        hits += bool(low <= 3.5 <= high)
        errors.append(float(result.mean) - 3.5)
        iid.append(float(monte_carlo(model, inputs, design=Iid(3, seed), **settings).mean) - 3.5)
    share = 4 * math.sqrt(0.95 * 0.05 / repetitions)
    detail = f"{repetitions} runs of 16 x 64 points"
    yield within("replicated Sobol': coverage", hits / repetitions, 0.95 - share, 0.95 + share, detail)
    gain = float(np.square(iid).mean() / np.square(errors).mean())
    yield reported("replicated Sobol': variance of independent points / variance", gain, detail)


def mpi_digest() -> str:
    """Digest of the run on three ranks of MPI; a reason in brackets where it cannot be run."""
    if shutil.which("mpiexec") is None or importlib.util.find_spec("mpi4py") is None:
        return "(mpi4py or mpiexec is missing)"
    command = ["mpiexec", "-n", "3", "--oversubscribe", "--allow-run-as-root", sys.executable]
    command += ["-m", "mpi4py.futures", "-m", "benchmarks.engine_run", "--engine", "mpi"]
    done = subprocess.run(
        command, cwd=ROOT, env=_environment(), capture_output=True, text=True, timeout=300, check=False
    )
    return _digest_line(done.stdout) or f"(mpiexec failed: {done.stderr.strip()[-300:]})"


def executors(smoke: bool) -> Iterator[Figure]:
    """The digest of one run on every engine."""
    serial = run("serial")
    yield reported("samples of the run, and failed among them", f"{serial.num_samples}, {serial.num_failed}")
    digest = serial.digest()
    yield equal("process pool: same digest as serial", run("pool").digest() == digest, True, digest[:16])
    if importlib.util.find_spec("distributed") is None:
        yield reported("Dask", "not installed")
    else:
        yield equal("Dask, 2 processes: same digest as serial", run("dask").digest() == digest, True)
    mpi = mpi_digest()
    if mpi.startswith("(mpi4py"):
        yield reported("MPI", mpi)
    else:
        yield equal("MPI, 3 ranks: same digest as serial", mpi == digest, True, mpi if mpi[0] == "(" else "")


@dataclass(frozen=True, slots=True)
class KillReport:
    """What came of a run that was killed again and again.

    Attributes:
        kills: Times that ``kill -9`` met a running process.
        reevaluated: Evaluations of samples that were committed before: must be 0.
        lost: Samples that are missing at the end: must be 0.
        repeated: Evaluations beyond one per sample: those under way at a kill.
        orphans: Workers that lived on ten seconds after their parent was killed: must be 0.
        same: Whether the digest is that of an uninterrupted run.
    """

    kills: int
    reevaluated: int
    lost: int
    repeated: int
    orphans: int
    same: bool


def kill_and_resume(folder: Path, *, kills: int, engine: str = "serial", samples: int = 2400) -> KillReport:
    """Run the probe in a process of its own, kill it at random times, and start it again until it ends.

    Args:
        folder: Where the store and the logs go.
        kills: How many times to kill; each time falls uniformly within the first 0.3 s of evaluation.
        engine: ``serial`` or ``pool``.
        samples: Number of samples; they take about 2.5 s in all.

    Returns:
        The count of everything that must not happen.
    """
    store, delays = (
        folder / "run.zarr",
        NoiseStream(3, 0, kills).uniforms(1, purpose=Purpose.USER)[:, 0].tolist(),
    )
    committed, workers = np.zeros(samples, dtype=bool), set()
    evaluated, counts = np.zeros(samples, dtype=int), {"kills": 0, "reevaluated": 0}
    output = ""
    for attempt in range(kills + 1):
        log = folder / f"log-{attempt}"
        process = _start(engine, samples, log, store)
        if attempt < kills and _wait_for(log, process):
            time.sleep(0.3 * delays[attempt])
        if attempt < kills and process.poll() is None:
            process.kill()
            counts["kills"] += 1
        output = process.communicate(timeout=300)[0]
        calls = (
            [tuple(map(int, line.split())) for line in log.read_text().splitlines()] if log.exists() else []
        )
        for worker, start, stop in calls:
            workers.add(worker)
            evaluated[start:stop] += 1
            counts["reevaluated"] += int(committed[start:stop].sum())
        committed = _committed(store, samples)
    expected = run("serial", samples=samples).digest()
    return KillReport(
        kills=counts["kills"],
        reevaluated=counts["reevaluated"],
        lost=int((~committed).sum()),
        repeated=int((evaluated - 1).clip(min=0).sum()),
        orphans=_alive(workers),
        same=_digest_line(output) == expected,
    )


def killed_and_resumed(smoke: bool) -> Iterator[Figure]:
    """``kill -9`` at random times, serial and with a pool of workers."""
    for engine, kills in (("serial", 3 if smoke else 10), ("pool", 2 if smoke else 5)):
        with tempfile.TemporaryDirectory() as folder:
            report = kill_and_resume(Path(folder), kills=kills, engine=engine)
        yield equal(f"{engine}: kills that met a running process", report.kills, kills)
        yield equal(f"{engine}: digest of an uninterrupted run", report.same, True)
        yield equal(f"{engine}: committed samples evaluated again", report.reevaluated, 0)
        yield equal(f"{engine}: samples lost", report.lost, 0)
        yield at_most(
            f"{engine}: evaluations lost per kill",
            report.repeated / kills,
            20 * (1 if engine == "serial" else 6),
        )
        yield equal(f"{engine}: workers that outlived their parent", report.orphans, 0)


def _start(engine: str, samples: int, log: Path, store: Path) -> subprocess.Popen[str]:
    """The probe as a process, evaluating 1000 samples per second."""
    command = [sys.executable, "-m", "benchmarks.engine_run", "--engine", engine, "--samples", str(samples)]
    command += ["--log", str(log), "--store", str(store), "--pause", "0.02"]
    return subprocess.Popen(command, cwd=ROOT, env=_environment(), stdout=subprocess.PIPE, text=True)


def _wait_for(log: Path, process: subprocess.Popen[str]) -> bool:
    """Wait for the first evaluation; false where the process ended before."""
    while not log.exists():
        if process.poll() is not None:
            return False
        time.sleep(0.005)
    return True


def _committed(store: Path, samples: int) -> np.ndarray:
    """Which samples a reader finds in the store."""
    known = np.zeros(samples, dtype=bool)
    if store.exists():
        status = RunStore(store).dataset()["status"].to_numpy()
        known[: len(status)] = status != Status.MISSING
    return known


def _alive(processes: set[int]) -> int:
    """How many of the processes still run after at most ten seconds."""
    deadline = time.monotonic() + 10
    while (left := sum(_running(process) for process in processes)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


def _running(process: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


def _environment() -> dict[str, str]:
    """Environment of the programs: this checkout, one thread."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def _digest_line(output: str) -> str:
    """The digest that a program printed, empty where it did not."""
    found = [line.split()[1] for line in output.splitlines() if line.startswith("digest ")]
    return found[-1] if found else ""


SECTIONS: list[Section] = [coverage, sequential_rule, replicated_sobol, executors, killed_and_resumed]

if __name__ == "__main__":
    raise SystemExit(main("engine", SECTIONS))
