"""Gradients of solves: all ways of one solve, their memory, and derivatives of expectations."""

import math
import os
import subprocess
import sys
from collections.abc import Iterator
from statistics import NormalDist

import torch
from torch import Tensor

from benchmarks.check import Figure, Section, at_most, main, reported, within
from sde import SDE, Calculus, Estimator, NoiseStream, NoiseStructure, gradient_of_expectation, solve
from sde.gradients import Adjoint, Backprop, Checkpointed, Gradient, Reversible
from sde.solvers import Heun, ReversibleHeun, Solver

__all__ = ["SECTIONS"]

_F64 = torch.float64


def gradients(smoke: bool) -> Iterator[Figure]:
    """Gradients of one solve by all ways, relative to that of the whole graph."""
    steps = 100 if smoke else 1000
    theta = torch.tensor([0.7, 0.4], dtype=_F64, requires_grad=True)
    sde = SDE(
        lambda t, x: -theta[0] * x.sin(),
        lambda t, x: theta[1] * x.cos(),
        calculus=Calculus.STRATONOVICH,
        parameters=(theta,),
    )

    def gradient(way: Gradient, solver: Solver) -> dict[str, Tensor]:
        start = torch.ones(64, 2, dtype=_F64, requires_grad=True)
        times = torch.linspace(0, 1, 3, dtype=_F64, requires_grad=True)
        noise = NoiseStream(1, 0, 64)
        paths = solve(sde, start, times, noise, solver=solver, substeps=steps // 2, gradient=way)
        bars = torch.autograd.grad(paths.square().sum(), (theta, start, times))
        return dict(zip(("parameters", "initial state", "times"), bars, strict=True))

    def figures(way: Gradient, solver: Solver, limit: float) -> Iterator[Figure]:
        exact, found = gradient(Backprop(), solver), gradient(way, solver)
        for name, bar in exact.items():
            error = float((found[name] - bar).norm() / bar.norm())
            yield at_most(
                f"gradient, {type(way).__name__}, {name}: relative difference", error, limit, f"{steps} steps"
            )

    yield from figures(Checkpointed(), ReversibleHeun(), 1e-12)
    yield from figures(Reversible(), ReversibleHeun(), 1e-10)
    yield from figures(Adjoint(), Heun(), 2.0 / steps)


_MEMORY = """
import sys, torch
from sde import SDE, Calculus, NoiseStream, solve
from sde.gradients import Backprop, Checkpointed, Reversible
from sde.solvers import ReversibleHeun
way, steps = sys.argv[1], int(sys.argv[2])
net = torch.nn.Linear(32, 32)
sde = SDE(lambda t, x: net(x).tanh(), lambda t, x: 0.1 * torch.ones_like(x),
          calculus=Calculus.STRATONOVICH, parameters=tuple(net.parameters()))
ways = {"Backprop": Backprop(), "Checkpointed": Checkpointed(), "Reversible": Reversible()}
def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
def run(count):
    x = torch.ones(256, 32, requires_grad=True)
    solve(sde, x, torch.tensor([0.0, 1.0]), NoiseStream(0, 0, 256), solver=ReversibleHeun(), substeps=count,
          gradient=ways[way]).sum().backward()
run(8)
before = peak()
run(steps)
print(before, peak())
"""


def memory(smoke: bool) -> Iterator[Figure]:
    """Peak memory of a process that differentiates a solve, for a number of steps and 16 times as many."""
    if not os.path.exists("/proc/self/status"):
        yield reported("peak memory", "not measured: /proc is missing")
        return
    few = 100 if smoke else 1000
    peaks, growth = {}, {}
    for way in ("Reversible", "Checkpointed", "Backprop"):
        for steps in (few, 16 * few) if way != "Backprop" else (few,):
            before, peaks[way, steps] = _peak(way, steps)
            growth[way, steps] = peaks[way, steps] - before
            yield reported(f"{way}, {steps} steps: growth of the peak memory [MiB]", growth[way, steps])
    ratio = peaks["Reversible", 16 * few] / peaks["Reversible", few]
    yield at_most(f"Reversible: peak memory at {16 * few} over {few} steps", ratio, 1.05)
    ratio = growth["Checkpointed", 16 * few] / (16 * growth["Backprop", few])
    yield at_most(f"Checkpointed: growth at {16 * few} steps over that of the graph", ratio, 0.25)


def _peak(way: str, steps: int) -> tuple[float, float]:
    """Peak memory [MiB] before and after a differentiated solve."""
    # Without this the C library keeps freed blocks of this size, and the peak says nothing.
    allocator = {"MALLOC_MMAP_THRESHOLD_": "16384", "MALLOC_TRIM_THRESHOLD_": "16384"}
    run = subprocess.run(
        [sys.executable, "-c", _MEMORY, way, str(steps)],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | allocator | {"OMP_NUM_THREADS": "1"},
    )
    before, after = (float(value) / 1024 for value in run.stdout.split())
    return before, after


def digital(smoke: bool) -> Iterator[Figure]:
    """Derivatives of the probability that geometric motion ends above 1, by the likelihood ratio."""
    n = 64_000 if smoke else 2_000_000
    start, mu, sigma = (torch.tensor([v], dtype=_F64, requires_grad=True) for v in (1.0, 0.05, 0.2))
    logarithm = SDE(
        lambda t, x: (mu - sigma**2 / 2).expand_as(x),
        lambda t, x: sigma.expand_as(x),
        NoiseStructure.ADDITIVE,
    )
    arguments = (start.log(), torch.tensor([0.0, 1.0], dtype=_F64), NoiseStream(4, 0, n))
    found = gradient_of_expectation(
        logarithm,
        *arguments,
        lambda paths: (paths[:, -1, 0] > 0).to(paths),
        [start, mu, sigma],
        estimator=Estimator.LIKELIHOOD_RATIO,
        batches=64,
    )
    d2 = (0.05 - 0.02) / 0.2
    density = NormalDist().pdf(d2)
    exact = {"X0": density / 0.2, "mu": density / 0.2, "sigma": -density * (0.05 / 0.04 + 0.5)}
    for k, (name, value) in enumerate(exact.items()):
        width = 3 * float(found.gradient_errors[k])
        yield within(
            f"digital payoff, derivative by {name}",
            float(found.gradients[k]),
            value - width,
            value + width,
            f"exact {value:.5f}, three standard errors",
        )
    try:
        gradient_of_expectation(logarithm, *arguments, lambda paths: (paths[:, -1, 0] > 0).to(paths), [sigma])
        refused = math.nan
    except ValueError:
        refused = 0.0
    yield at_most("digital payoff, pathwise: accepted", refused, 0)


SECTIONS: list[Section] = [gradients, memory, digital]

if __name__ == "__main__":
    raise SystemExit(main("gradients", SECTIONS))
