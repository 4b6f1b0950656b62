"""One run of the Monte Carlo engine as a program of its own, to be started, killed and started again."""

import argparse
import os
import time
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from scipy import stats
from torch import Tensor

from sde.noise import NoiseStream
from uq import Failures, Input, Inputs, Sobol, monte_carlo, process_pool
from uq.results import MonteCarloResult

__all__ = ["INPUTS", "Probe", "executor", "run"]

INPUTS = Inputs(
    [Input("load", stats.gamma(4.0, scale=2.5), "kN"), Input("modulus", stats.lognorm(0.2), "GPa")],
    correlation=torch.tensor([[1.0, 0.4], [0.4, 1.0]]),
)


@dataclass(frozen=True, slots=True)
class Probe:
    """A model of inputs and noise, some samples of which fail, that keeps a log of what it evaluated.

    Attributes:
        log: File to which each call appends ``process start stop``; none where empty.
        pause: Time that a call takes [s].
    """

    log: str = ""
    pause: float = 0.0
    input_dim: int = 2
    output_shape: tuple[int, ...] = (3,)
    fingerprint: str = "probe"  # log and pause change nothing in the samples

    def __call__(self, inputs: Tensor, noise: NoiseStream) -> Tensor:
        """Three elementwise functions of the inputs and of two normals."""
        if self.log:
            # One write of a short line to a file opened for appending is not interleaved with others.
            with open(self.log, "a") as file:
                file.write(f"{os.getpid()} {noise.start} {noise.stop}\n")
        time.sleep(self.pause)
        normals = noise.normals(2, dtype=torch.float64)
        load, modulus = inputs.unbind(-1)
        outputs = torch.stack([load / modulus, load * normals[:, 0], (modulus + normals[:, 1]).sin()], dim=-1)
        outputs[normals[:, 0] > 2.5] = torch.nan
        return outputs


@contextmanager
def executor(engine: str) -> Iterator[Executor | None]:
    """An executor with two workers, or three ranks of MPI where the program was started on them."""
    if engine == "dask":
        from distributed import Client, LocalCluster

        with (
            LocalCluster(
                n_workers=2,
                threads_per_worker=1,
                processes=True,
                dashboard_address=None,  # pyright: ignore[reportArgumentType]
            ) as cluster,
            Client(cluster) as client,
        ):
            yield client.get_executor()
    elif engine == "mpi":
        from mpi4py.futures import MPIPoolExecutor

        with MPIPoolExecutor() as pool:
            yield pool
    else:
        with process_pool(2) if engine == "pool" else nullcontext(None) as pool:
            yield pool


def run(
    engine: str, *, samples: int = 600, log: str = "", pause: float = 0.0, store: str | None = None
) -> MonteCarloResult:
    """The same run on one of the engines ``serial``, ``pool``, ``dask`` and ``mpi``."""
    with executor(engine) as place:
        return monte_carlo(
            Probe(log, pause),
            INPUTS,
            seed=11,
            num_samples=samples,
            design=Sobol(2, seed=5),
            replications=4,
            batch_size=20,
            executor=place,
            store=store,
            failures=Failures.OMIT,
            progress=False,
        )


def main() -> None:
    """Run as the command line says, and print the digest."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--engine", choices=["serial", "pool", "dask", "mpi"], default="serial")
    parser.add_argument("--samples", type=int, default=600)
    parser.add_argument("--log", default="")
    parser.add_argument("--pause", type=float, default=0.0)
    parser.add_argument("--store")
    options = parser.parse_args()
    result = run(
        options.engine, samples=options.samples, log=options.log, pause=options.pause, store=options.store
    )
    print(f"digest {result.digest()}", flush=True)


if __name__ == "__main__":
    main()
