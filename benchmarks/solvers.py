"""Solvers of stochastic differential equations: every figure beside its bar."""

import math
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks import adaptive, gradients, processes, special_schemes, strong_order, weak_order
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
            for solver, bare in ((EulerMaruyama(), _bare_euler), (SRIW1(), _bare_sriw1)):
                ours, theirs = _seconds(
                    lambda: solve(sde, start, times, noise, solver=solver, substeps=steps),  # noqa: B023
                    lambda: bare(start, steps),  # noqa: B023
                    repeats=3 if smoke else 15,
                )
                name = f"time per step, {type(solver).__name__}, {paths} paths"
                yield reported(f"{name} [us]", 1e6 * ours / steps)
                yield at_most(f"{name}, over a bare loop", ours / theirs, limit)
    finally:
        torch.set_num_threads(threads)


def _bare_euler(state: Tensor, steps: int) -> Tensor:
    """Euler--Maruyama for geometric Brownian motion, written out."""
    dt = 1 / steps
    noise = torch.randn(steps, *state.shape) * math.sqrt(dt)
    for k in range(steps):
        state = state + 0.1 * state * dt + 0.2 * state * noise[k]
    return state


def _bare_sriw1(state: Tensor, steps: int) -> Tensor:
    """SRIW1 for geometric Brownian motion, written out."""
    dt, root = 1 / steps, math.sqrt(1 / steps)
    wiener = torch.randn(steps, *state.shape) * root
    average = 0.5 * wiener + torch.randn(steps, *state.shape) * (root / math.sqrt(12))
    for k in range(steps):
        w, a = wiener[k], average[k]
        square = w * w
        i11, i111 = (square - dt) / (2 * root), w * (square - 3 * dt) / (6 * dt)
        f1, g1 = 0.1 * state * dt, 0.2 * state
        f2 = 0.1 * (state + 0.75 * f1 + 1.5 * g1 * a) * dt
        g2 = 0.2 * (state + 0.25 * f1 + 0.5 * root * g1)
        g3 = 0.2 * (state + f1 - root * g1)
        g4 = 0.2 * (state + 0.25 * f1 + root * (3 * g2 - 5 * g1 + 0.5 * g3))
        state = state + f1 / 3 + 2 / 3 * f2 + g1 * (2 * (a - i111) - w - i11) + i111 * g4
        state = state + g2 * (4 / 3 * (w + i11 - a) + 5 / 3 * i111) + g3 * ((2 * (w - a - i111) - i11) / 3)
    return state


def _seconds(
    ours: Callable[[], object], theirs: Callable[[], object], *, repeats: int
) -> tuple[float, float]:
    """The shortest times of two calls, measured in turn."""
    best = [math.inf, math.inf]
    for _ in range(repeats + 1):
        for k, call in enumerate((ours, theirs)):
            began = time.perf_counter()
            call()
            best[k] = min(best[k], time.perf_counter() - began)
    return best[0], best[1]


SECTIONS: list[Section] = [
    overhead,
    *strong_order.SECTIONS,
    *weak_order.SECTIONS,
    levy_areas,
    *gradients.SECTIONS,
    *processes.SECTIONS,
    *special_schemes.SECTIONS,
    *adaptive.SECTIONS,
]

if __name__ == "__main__":
    raise SystemExit(main("solvers", SECTIONS))
