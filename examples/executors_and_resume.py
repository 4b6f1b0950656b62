# %% [markdown]
# # One run: here, on a process pool, on Dask, and killed halfway
#
# Sample $i$ of a run is a function of the seed and of $i$ alone. So it does not matter who computes it, in
# which order, or when: a run may be spread over processes or machines, and what a killed run has
# committed to its store needs not be computed again. The results are equal **bit for bit**, which one hash
# (`result.digest()`) shows.
#
# The model is the range of a ball with air drag, thrown with uncertain speed $v$, angle $\alpha$ and drag
# coefficient $c$ per unit mass,
#
# $$ \ddot x = -c\,|v|\,\dot x, \qquad \ddot y = -9.81 - c\,|v|\,\dot y, $$
#
# in a plain Python loop: one case at a time, as many engineering codes are.

# %%
"""The same Monte Carlo run on several executors, and after `kill -9`."""

import argparse
import importlib.util
import math
import shutil
import subprocess
import sys
import time
from pathlib import Path

from matplotlib.figure import Figure
from scipy import stats

from uq import Input, Inputs, MonteCarloResult, RowModel, RunStore, monte_carlo, process_pool

ROOT = Path(__file__).parent.parent
INPUTS = Inputs(
    [
        Input("speed", stats.norm(30.0, 1.5), "m/s"),
        Input("angle", stats.uniform(0.7, 0.2), "rad"),
        Input("drag", stats.lognorm(0.3, scale=0.005), "1/m"),
    ]
)


def thrown_range(speed: float, angle: float, drag: float) -> float:
    """Range [m] of a throw, by the midpoint rule with steps of 1 ms."""
    x, y, u, v, dt = 0.0, 0.0, speed * math.cos(angle), speed * math.sin(angle), 1e-3
    while y >= 0.0:
        pull = drag * math.hypot(u, v)
        um, vm = u - 0.5 * dt * pull * u, v - 0.5 * dt * (9.81 + pull * v)
        pull = drag * math.hypot(um, vm)
        x, y = x + dt * um, y + dt * vm
        u, v = u - dt * pull * um, v - dt * (9.81 + pull * vm)
    return x


MODEL = RowModel(thrown_range, input_dim=3)

# %% [markdown]
# Where a run is computed is one argument. Any executor of the standard interface will do: `process_pool`,
# Dask's `client.get_executor()`, `MPIPoolExecutor()` under `mpiexec -n 4 python -m mpi4py.futures`.


# %%
def run(engine: str, samples: int, store: Path | None = None) -> MonteCarloResult:
    """The run on ``serial``, ``processes`` or ``dask``."""
    settings = {"seed": 7, "num_samples": samples, "batch_size": 25, "store": store, "progress": False}
    if engine == "processes":
        with process_pool(2) as pool:
            return monte_carlo(MODEL, INPUTS, executor=pool, **settings)
    if engine == "dask":
        from distributed import Client

        with Client(n_workers=2, threads_per_worker=1, dashboard_address=None) as client:
            return monte_carlo(MODEL, INPUTS, executor=client.get_executor(), **settings)
    return monte_carlo(MODEL, INPUTS, **settings)


# %% [markdown]
# To be killed, the run is started as a program of its own. The store can be read while it is being written.


# %%
def committed(store: RunStore) -> int:
    """Number of samples that a reader finds in a store."""
    return int((store.dataset()["status"] > 0).sum()) if store.exists else 0


def watch(store: RunStore, samples: int, kill_at: int, began: float) -> list[tuple[float, int]]:
    """Start the run as a program, note how it gets on, and kill it at ``kill_at`` committed samples."""
    command = [sys.executable, "-m", "examples.executors_and_resume", "--child", str(store.path)]
    process = subprocess.Popen([*command, "--samples", str(samples)], cwd=ROOT)
    seen: list[tuple[float, int]] = []
    while process.poll() is None:
        seen.append((time.perf_counter() - began, committed(store)))
        if seen[-1][1] >= kill_at:
            process.kill()  # SIGKILL: nothing can be tidied up
            process.wait()
        time.sleep(0.1)
    return [*seen, (time.perf_counter() - began, committed(store))]


def plot(parts: list[list[tuple[float, int]]], samples: int) -> Figure:
    """Committed samples against time, over a kill and a new start."""
    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    axes = figure.subplots()
    for part, color, words in zip(
        parts, ("#c77b30", "#1f5f8b"), ("first start", "second start"), strict=True
    ):
        axes.step(*zip(*part, strict=True), where="post", color=color, label=words)
    axes.axvline(parts[0][-1][0], color="#1b2733", linestyle=":", linewidth=1)
    axes.annotate("kill -9", parts[0][-1], xytext=(6, -14), textcoords="offset points")
    axes.axhline(samples, color="#8a97a3", linewidth=0.8)
    axes.set(
        xlabel="time [s] (each start takes a few to import torch)",
        ylabel="samples in the store",
        ylim=(0, None),
    )
    axes.legend(frameon=False, loc="center left")
    return figure


# %%
def main(folder: Path = Path("out/executors_and_resume"), samples: int = 800) -> dict[str, object]:
    """Run everywhere, be killed and resume; print a table, draw, and return what must be equal.

    Args:
        folder: Where the figure and the store go; a store from before is removed.
        samples: Number of samples; each takes about 2 ms.

    Returns:
        ``digests`` and ``seconds`` by engine, ``mean`` [m], ``std_error`` [m], ``committed_at_kill``, and
        ``resumed_evaluations`` of a last call that finds everything done.
    """
    folder.mkdir(parents=True, exist_ok=True)
    store = RunStore(folder / "run.zarr")
    shutil.rmtree(store.path, ignore_errors=True)
    engines = ["serial", "processes"] + (["dask"] if importlib.util.find_spec("distributed") else [])
    results = {engine: run(engine, samples) for engine in engines}
    run("serial", 25, folder / "warm.zarr")  # load what stores need, so that the clock shows the run alone
    committed(RunStore(folder / "warm.zarr"))
    began = time.perf_counter()
    parts = [watch(store, samples, kill_at, began) for kill_at in (samples // 2, samples + 1)]
    results["killed and resumed"] = run("serial", samples, store.path)
    for engine, result in results.items():
        print(f"{engine:<20}{float(result.mean):.6f} m   {result.digest()[:16]}   {result.seconds:6.2f} s")
    plot(parts, samples).savefig(folder / "figure.png", dpi=150)
    return {
        "digests": {engine: result.digest() for engine, result in results.items()},
        "seconds": {engine: result.seconds for engine, result in results.items()},
        "mean": float(results["serial"].mean),
        "std_error": float(results["serial"].std_error),
        "committed_at_kill": parts[0][-1][1],
        "resumed_evaluations": results["killed and resumed"].evaluated,
    }


if __name__ == "__main__":
    # A store knows the model's function by its module: take it from there, not from this program.
    from examples.executors_and_resume import main, run

    parser = argparse.ArgumentParser()
    parser.add_argument("--samples", type=int, default=800)
    parser.add_argument("--child", type=Path, help="only run, with this store")
    options = parser.parse_args()
    if options.child is not None:
        run("serial", options.samples, options.child)
    else:
        main(samples=options.samples)
