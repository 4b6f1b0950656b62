"""Against torchsde: time of a step beside its strong error, its slow case, and its Levy areas.

Both libraries get a Brownian motion with the step as a hint, their best setting, made anew in every run. All
take the same schemes. Their runs alternate, so that a change in the load of the machine meets all of them.
"""

import time
from collections.abc import Callable, Iterator
from importlib import metadata
from itertools import pairwise
from statistics import median

import torch
import torchsde as original
from torch import Tensor

from benchmarks.check import Figure, Section, at_least, main, reported, within
from sde import NoiseStream, solve
from sde import torchsde_api as shim
from sde.adapters import from_object
from sde.noise import WienerIncrements
from sde.solvers import SRIW2, EulerMaruyama, Solver

__all__ = ["SECTIONS"]

SOLVERS: dict[str, Solver] = {"euler": EulerMaruyama(), "srk": SRIW2()}
DIM = 3

Run = tuple[Tensor, Callable[[], Tensor]]
"""State at time 1, and what gives the Wiener path there."""


class Growth:
    """Geometric Brownian motions with a closed form."""

    noise_type, sde_type = "diagonal", "ito"
    rate, volatility = 0.3, 0.5

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        """Drift."""
        return self.rate * y

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        """Diffusion."""
        return self.volatility * y

    def exact(self, time: float, wiener: Tensor) -> Tensor:
        """The solution that starts from one."""
        return ((self.rate - 0.5 * self.volatility**2) * time + self.volatility * wiener).exp()


def through_library(library: object, paths: int, steps: int, method: str, seed: int) -> Run:
    """A solve to time 1 by a library with the convention of torchsde."""
    bm = library.BrownianInterval(  # type: ignore[attr-defined]
        0.0, 1.0, (paths, DIM), entropy=seed, dt=1 / steps, levy_area_approximation="space-time"
    )
    options = {"bm": bm, "dt": 1 / steps, "method": method}
    states = library.sdeint(Growth(), torch.ones(paths, DIM), [0.0, 1.0], **options)  # type: ignore[attr-defined]
    return states[-1], lambda: bm(0.0, 1.0)


def through_solve(paths: int, steps: int, method: str, seed: int) -> Run:
    """A solve to time 1 by :func:`sde.solve`."""
    noise, times, sde = NoiseStream(seed, 0, paths), torch.tensor([0.0, 1.0]), from_object(Growth())
    start = torch.ones(paths, DIM)
    states = solve(sde, start, times, noise, solver=SOLVERS[method], substeps=steps, allow_diverged=True)
    path = WienerIncrements(noise, torch.full((steps,), 1 / steps), DIM)
    return states[:, -1], lambda: path.chunk(0, steps).wiener.sum(0)


def ways() -> dict[str, Callable[[int, int, str, int], Run]]:
    """The three that are compared."""
    return {
        "torchsde": lambda *run: through_library(original, *run),
        "torchsde_api": lambda *run: through_library(shim, *run),
        "solve": through_solve,
    }


def steps(smoke: bool) -> Iterator[Figure]:
    """Time of a step by batch size, and the strong error of the same runs."""
    sizes = (
        {32: (100, 15), 64: (100, 15), 4096: (50, 7)}
        if smoke
        else {32: (100, 41), 64: (100, 41), 65_536: (20, 9)}
    )
    for method in SOLVERS:
        for paths, (count, repeats) in sizes.items():
            seconds = timings(paths, count, method, repeats)
            for name, runs in seconds.items():
                spread = f"{paths} x {DIM}, fastest {1e6 * min(runs) / count:.0f} us, median of {repeats}"
                yield reported(f"{method}, {name}: step [us]", 1e6 * median(runs) / count, spread)
            theirs = seconds["torchsde"]
            for name in ("torchsde_api", "solve"):
                ratio = median(one / other for one, other in zip(theirs, seconds[name], strict=True))
                yield at_least(f"{method}: time of torchsde over {name}", ratio, 1.0, f"{paths} x {DIM}")
        yield from strong_errors(method, 4096 if smoke else 65_536)


def timings(paths: int, count: int, method: str, repeats: int) -> dict[str, list[float]]:
    """Seconds of whole solves, of all ways in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in ways()}
    with torch.no_grad():
        for repeat in range(repeats + 1):
            for name, way in ways().items():
                began = time.perf_counter()
                way(paths, count, method, repeat)
                seconds[name].append(time.perf_counter() - began)
    return {name: runs[1:] for name, runs in seconds.items()}  # the first one warms up


def strong_errors(method: str, paths: int) -> Iterator[Figure]:
    """Root mean square error at time 1 with 20 steps, of each way."""
    errors = {}
    with torch.no_grad():
        for name, way in ways().items():
            state, wiener = way(paths, 20, method, 1)
            errors[name] = float((state - Growth().exact(1.0, wiener())).square().mean().sqrt())
            yield reported(f"{method}, {name}: strong error", errors[name], f"{paths} paths, 20 steps")
    for name in ("torchsde_api", "solve"):
        yield within(
            f"{method}: error of {name} over that of torchsde", errors[name] / errors["torchsde"], 0, 1.1
        )


def slow_case(smoke: bool) -> Iterator[Figure]:
    """Hundred Euler steps without a hint, where rounding leaves torchsde a tiny last one."""
    seconds = {}
    for name, library in (("torchsde", original), ("torchsde_api", shim)):
        began = time.perf_counter()
        with torch.no_grad():
            library.sdeint(Growth(), torch.ones(32, DIM), [0.0, 1.0], dt=0.01, method="euler")
        seconds[name] = time.perf_counter() - began
        yield reported(
            f"euler, {name}: 100 steps of 0.01 over [0, 1] [s]", seconds[name], f"32 x {DIM}, no `bm`"
        )
    ratio = seconds["torchsde"] / seconds["torchsde_api"]
    yield at_least("time of torchsde over torchsde_api", ratio, 1.0, "google-research/torchsde issue 109")


def unhinted(smoke: bool) -> Iterator[Figure]:
    """A motion without a hint: Euler steps, and queries that no solve has prepared."""
    for paths, repeats in ((32, 21), (4096 if smoke else 65_536, 3)):
        milliseconds: dict[str, list[float]] = {"torchsde": [], "torchsde_api": []}
        for _ in range(repeats):
            for name, library in (("torchsde", original), ("torchsde_api", shim)):
                bm = library.BrownianInterval(0.0, 10.0, (paths, DIM), entropy=1)
                began = time.perf_counter()
                with torch.no_grad():
                    library.sdeint(
                        Growth(), torch.ones(paths, DIM), [0.0, 10.0], bm=bm, dt=0.1, method="euler"
                    )
                milliseconds[name].append(10 * (time.perf_counter() - began))
        for name, each in milliseconds.items():
            yield reported(f"euler, {name}: step without a hint [ms]", median(each), f"{paths} x {DIM}")
        ratio = median(milliseconds["torchsde"]) / median(milliseconds["torchsde_api"])
        yield at_least("euler: time of torchsde over torchsde_api", ratio, 1.0, f"{paths} x {DIM}, no hint")
        for name, library in (("torchsde", original), ("torchsde_api", shim)):
            bm = library.BrownianInterval(0.0, 10.0, (paths, DIM), entropy=1)
            began = time.perf_counter()
            for left, right in pairwise(3.7 + 0.1 * k for k in range(21)):
                bm(left, right)
            each = 50 * (time.perf_counter() - began)
            yield reported(f"{name}: query without a hint [ms]", each, f"{paths} x {DIM}")


def levy_areas(smoke: bool) -> Iterator[Figure]:
    """Variance of the Levy area of an interval over its squared length; 1/4 is right."""
    paths = 20_000 if smoke else 400_000
    for law in ("davie", "foster"):
        for name, library in (("torchsde", original), ("torchsde_api", shim)):
            bm = library.BrownianInterval(0.0, 1.0, (paths, 2), entropy=2, levy_area_approximation=law)
            variance = float(bm(0.0, 1.0, return_A=True)[1][:, 0, 1].var())
            label = f"Levy area, {law}, {name}: variance over squared step"
            if library is original:
                yield reported(label, variance, f"{paths} samples")
            else:
                slack = 0.025 if smoke else 0.005
                yield within(label, variance, 0.25 - slack, 0.25 + slack, f"{paths} samples")


class Network(torch.nn.Module):
    """A neural equation with diagonal noise."""

    noise_type = "diagonal"

    def __init__(self, sde_type: str) -> None:
        super().__init__()
        self.sde_type = sde_type
        self.drift, self.diffusion = (torch.nn.Linear(DIM, DIM) for _ in range(2))

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        """Drift."""
        return self.drift(y)

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        """Diffusion."""
        return 0.1 * self.diffusion(y).sigmoid()


def gradients(smoke: bool) -> Iterator[Figure]:
    """Forward and backward pass of `sdeint_adjoint`, 100 steps of 64 paths."""
    repeats = 2 if smoke else 5
    cases = [("ito", "euler"), ("ito", "milstein"), ("ito", "srk")]
    for sde_type, method in [*cases, ("stratonovich", "midpoint"), ("stratonovich", "reversible_heun")]:
        model, seconds = Network(sde_type), {"torchsde": [], "torchsde_api": []}
        for _ in range(repeats + 1):  # the first one warms up
            for name, library in (("torchsde", original), ("torchsde_api", shim)):
                bm = library.BrownianInterval(
                    0.0, 1.0, (64, DIM), entropy=1, dt=0.01, levy_area_approximation="space-time"
                )
                start, marks = torch.ones(64, DIM, requires_grad=True), [time.perf_counter()]
                states = library.sdeint_adjoint(model, start, [0.0, 1.0], bm=bm, dt=0.01, method=method)
                marks.append(time.perf_counter())
                states[-1].sum().backward()
                marks.append(time.perf_counter())
                seconds[name].append([right - left for left, right in pairwise(marks)])
        for k, direction in enumerate(("forward", "backward")):
            theirs, ours = (median(run[k] for run in runs[1:]) for runs in seconds.values())
            detail = f"{1e3 * theirs:.0f} ms over {1e3 * ours:.0f} ms"
            yield reported(f"{sde_type}, {method}, {direction}: ratio of times", theirs / ours, detail)


def versions(smoke: bool) -> Iterator[Figure]:
    """What is compared."""
    yield reported("torchsde", metadata.version("torchsde"))


SECTIONS: list[Section] = [versions, steps, gradients, slow_case, unhinted, levy_areas]

if __name__ == "__main__":
    raise SystemExit(main("torchsde", SECTIONS))
