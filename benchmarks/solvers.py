"""Solvers of stochastic differential equations: every figure beside its bar."""

import math
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks import adaptive, gradients, processes, strong_order, weak_order
from benchmarks.check import Figure, Section, at_most, main, reported, within
from sde import SDE, NoiseStream, solve
from sde.noise import Areas, CoarseIncrements, LevyLaw, WienerIncrements
from sde.solvers import SRIW1, EulerMaruyama

__all__ = ["SECTIONS"]


def levy_areas(smoke: bool) -> Iterator[Figure]:
    """Moments of sampled Levy areas, of one interval and composed of eight."""
    n = 100_000 if smoke else 4_000_000
    for law in LevyLaw:
        for pieces in (1, 8):
            sizes = torch.full((pieces,), 1 / pieces, dtype=torch.float64)
            batches = range(0, n, 250_000)
            areas = torch.cat(
                [_areas(NoiseStream(3, at, min(at + 250_000, n)), sizes, law) for at in batches]
            )
            name, slack = f"Levy area, {law.value}, {pieces} pieces", math.sqrt(40) if smoke else 1.0
            low, high = 0.25 - 0.002 * slack, 0.25 + 0.002 * slack
            yield within(f"{name}: variance over squared step", float(areas.var()), low, high)
            low, high = 0.8868 - 0.002 * slack, 0.8868 + 0.002 * slack
            cosine = float(areas.cos().mean())
            kurtosis = float((areas**4).mean() / areas.var() ** 2)
            if law is LevyLaw.FOSTER:
                yield within(f"{name}: E cos", cosine, low, high)
                yield within(f"{name}: kurtosis", kurtosis, 5 - 0.15 * slack, 5 + 0.15 * slack)
            else:
                yield reported(f"{name}: E cos", cosine)
                yield reported(f"{name}: kurtosis", kurtosis)


def _areas(noise: NoiseStream, sizes: Tensor, law: LevyLaw) -> Tensor:
    """Levy areas between two processes over the unit interval, shape ``(n,)``."""
    drawn = WienerIncrements(noise, sizes, 2, dtype=torch.float64, levy_law=law)
    levy = CoarseIncrements(drawn, len(sizes)).chunk(0, 1, Areas.LEVY).levy
    assert levy is not None  # asked for
    return levy[0, :, 0, 1]


def overhead(smoke: bool) -> Iterator[Figure]:
    """Time of a step against a bare loop of the same scheme that draws its noise with torch.randn."""
    sde = SDE(lambda t, x: 0.1 * x, lambda t, x: 0.2 * x)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for paths, steps, limit in ((64, 1000, 3.0), (65536, 100, 1.3)):
            start = torch.ones(paths, 1)
            times, noise = torch.tensor([0.0, 1.0]), NoiseStream(0, 0, paths)
            for solver in (EulerMaruyama(), SRIW1()):
                seconds = _seconds(
                    lambda: solve(sde, start, times, noise, solver=solver, substeps=steps),  # noqa: B023
                    3 if smoke else 9,
                )
                name = f"time per step, {type(solver).__name__}, {paths} paths"
                yield reported(f"{name} [us]", 1e6 * seconds / steps)
                if isinstance(solver, EulerMaruyama):
                    bare = _seconds(lambda: _bare_euler(start, steps), 3 if smoke else 9)  # noqa: B023
                    yield at_most(f"{name}, over a bare loop", seconds / bare, limit)
    finally:
        torch.set_num_threads(threads)


def _bare_euler(state: Tensor, steps: int) -> Tensor:
    """Euler--Maruyama for geometric Brownian motion, written out."""
    dt = 1 / steps
    noise = torch.randn(steps, *state.shape) * math.sqrt(dt)
    for k in range(steps):
        state = state + 0.1 * state * dt + 0.2 * state * noise[k]
    return state


def _seconds(call: Callable[[], object], repeats: int) -> float:
    """The shortest time of a call."""
    call()
    best = math.inf
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - began)
    return best


SECTIONS: list[Section] = [
    overhead,
    *strong_order.SECTIONS,
    *weak_order.SECTIONS,
    levy_areas,
    *gradients.SECTIONS,
    *processes.SECTIONS,
    *adaptive.SECTIONS,
]

if __name__ == "__main__":
    raise SystemExit(main("solvers", SECTIONS))
