"""Samplers of three to ten evaluations: fixed ones, learned ones, and flows made straight.

The target has three Gaussian modes in the plane, and the fields are exact. The error is the root-mean-square
distance, over 4000 base points that were not learned from, to where a fine solve carries them: all these
paths have the same flow, whatever their schedule. Beside it stands the sliced Wasserstein-2 distance to the
target, with that of the fine solve as its floor.

References:
    Frankel, Chen, Li, Koh, Ratliff & Oh (2025), S4S. arXiv:2502.17423
    Liu, Gong & Liu (2023), Flow straight and fast. arXiv:2209.03003
"""

import math
import time
from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.check import Figure, Section, at_most, main, reported
from inference import FitSettings, fit
from inference.interpolants import (
    Diffusion,
    Interpolant,
    Kind,
    Matching,
    OneSided,
    Prediction,
)
from inference.interpolants.field_network import FieldNetwork
from inference.reference_problems import Mixture, MixtureProblem
from inference.samplers import (
    DPMSolver,
    LearnedSolver,
    ProbabilityFlow,
    Sampler,
    fit_solver,
    log_snr_times,
    reflow,
)
from sde.noise import NoiseStream
from sde.solvers import EulerMaruyama

__all__ = ["SECTIONS", "three_modes"]

_F64 = torch.float64
_NO_NOISE = NoiseStream(0, 0, 0)
_SEEN, _FRESH, _LAST = 700, 4000, 1 - 1e-3


def three_modes(path: Interpolant, stretch: float = 1.0) -> MixtureProblem:
    """The problem, with its means stretched."""
    means = stretch * torch.tensor([[2.0, 0.0], [-1.0, 1.5], [-1.0, -2.0]], dtype=_F64)
    spreads = torch.tensor([0.3, 0.5, 0.4], dtype=_F64)
    covariances = spreads[:, None, None] ** 2 * torch.eye(2, dtype=_F64)
    target = Mixture(torch.tensor([0.5, 0.3, 0.2], dtype=_F64), means, covariances)
    return MixtureProblem(path, Mixture.standard(2), target)


class _Case:
    """A target, its exact prediction, and where a fine solve carries base points."""

    def __init__(self, stretch: float, seed: int, count: int) -> None:
        problem = three_modes(OneSided(Diffusion()), stretch)
        self.prediction = problem.prediction(Kind.TARGET)
        starts = NoiseStream(seed, 0, count).normals(2, dtype=_F64)
        fine = log_snr_times(Diffusion(), 400, first=0.0, last=_LAST)
        self.starts, self.ends = starts, DPMSolver(3)(self.prediction, starts, fine, _NO_NOISE)
        self.target = problem.target.sample(NoiseStream(seed + 1, 0, count))

    def error(self, points: Tensor) -> float:
        """Distance from the fine solve."""
        return (points - self.ends).square().sum(1).mean().sqrt().item()

    def of(self, sampler: Sampler, grid: Tensor) -> float:
        """The error of a sampler."""
        return self.error(sampler(self.prediction, self.starts, grid, _NO_NOISE))

    def sliced(self, points: Tensor) -> float:
        """Sliced Wasserstein-2 distance to a sample of the target, over 64 directions."""
        angles = math.pi * torch.arange(64, dtype=_F64) / 64
        lines = torch.stack((angles.cos(), angles.sin()))
        gaps = (points @ lines).sort(0).values - (self.target @ lines).sort(0).values
        return gaps.square().mean().sqrt().item()

    def best(self, steps: int) -> tuple[float, str, Tensor]:
        """The least error of DPM-Solver over three orders and three grids: error, name, and points."""
        found = []
        for name, grid in _grids(steps).items():
            for order in (1, 2, 3):
                points = DPMSolver(order)(self.prediction, self.starts, grid, _NO_NOISE)
                found.append((self.error(points), f"{order}M on equal steps of {name}", points))
        return min(found, key=lambda row: row[0])


def _grids(steps: int) -> dict[str, Tensor]:
    """Grids that are customary: equal steps of the log ratio, of its power and of time."""
    times, share = log_snr_times(Diffusion(), steps, first=0.0, last=_LAST), torch.linspace(0, 1, steps + 1)
    share = share.double()
    roots = (
        -Diffusion().log_snr(times[[0, -1]]) / 7
    ).exp()  # of the ratio of noise to signal, to the power 1/7
    power = Diffusion().time(-7 * (roots[0] + share * (roots[1] - roots[0])).log())
    return {"log ratio": times, "ratio^(1/7)": power, "time": share * _LAST}


def _learn(steps: int, *, learn_times: bool) -> LearnedSolver:
    """A solver learned on points that are in no test."""
    seen = _Case(1.0, 90, _SEEN)
    times = _grids(steps)["log ratio"]
    return fit_solver(seen.prediction, seen.starts, seen.ends, times, learn_times=learn_times)


def five_evaluations(smoke: bool) -> Iterator[Figure]:
    """Learned solvers of five evaluations: starts they have not seen, from two seeds, and another target."""
    count = 1000 if smoke else _FRESH
    cases = {
        "": _Case(1.0, 9, count),
        ", another seed": _Case(1.0, 1009, count),
        ", means moved by a tenth": _Case(1.1, 9, count),
    }
    for learn_times, limit, name in ((False, 0.18, "coefficients"), (True, 0.09, "coefficients and times")):
        solver = _learn(5, learn_times=learn_times)
        for where, case in cases.items():
            best, label, _ = case.best(5)
            error, detail = case.of(solver, solver.times), f"best DPM-Solver {best:.3f}: {label}"
            if case is not cases[", means moved by a tenth"]:
                yield at_most(f"5 evaluations, learned {name}{where}: error", error, limit, detail)
            share = 0.8 if "moved" in where else 0.25 if learn_times else 0.5
            yield at_most(f"the same{where}: over the best fixed", error / best, share, f"error {error:.3f}")


def few_evaluations(smoke: bool) -> Iterator[Figure]:
    """Errors and sliced distances by number of evaluations: fixed, learned, rectified once and twice."""
    case = _Case(1.0, 9, 1000 if smoke else _FRESH)
    yield reported("fine solve: sliced distance", case.sliced(case.ends), "the floor of those below")
    began = time.process_time()
    rectified = {
        "1-rectified flow": three_modes(OneSided()).prediction(),
        "2-rectified flow": _rectified(30 if smoke else 4000),
    }
    yield reported("2-rectified flow: training", time.process_time() - began, "s of processor time")
    for steps in (3, 5) if smoke else (3, 4, 5, 6, 8, 10):
        error, label, points = case.best(steps)
        yield _row(steps, "best DPM-Solver", error, case.sliced(points), label)
        for learn_times, name in ((False, "coefficients"), (True, "coefficients and times")):
            began = time.process_time()
            solver = _learn(steps, learn_times=learn_times)
            spent = f"learned in {time.process_time() - began:.0f} s"
            points = solver(case.prediction, case.starts, solver.times, _NO_NOISE)
            yield _row(steps, f"learned {name}", case.error(points), case.sliced(points), spent)
        for name, prediction in rectified.items():
            times = torch.linspace(0, 1, steps + 1, dtype=_F64)
            points = ProbabilityFlow(EulerMaruyama())(prediction, case.starts, times, _NO_NOISE)
            yield _row(steps, f"{name}, Euler", case.error(points), case.sliced(points), "")


def _row(steps: int, name: str, error: float, sliced: float, detail: str) -> Figure:
    """A line of the table."""
    words = f"sliced distance {sliced:.3f}" + (f"; {detail}" if detail else "")
    return reported(f"{steps} evaluations, {name}: error", error, words)


def _rectified(iterations: int) -> Prediction:
    """A flow learned from the pairs of the exact one."""
    start = NoiseStream(91, 0, 20_000).normals(2, dtype=_F64)
    pairs = reflow(three_modes(OneSided()).prediction(), start, torch.linspace(0, 1, 51, dtype=_F64))
    loss = Matching(
        OneSided(),
        Kind.VELOCITY,
        lambda noise: tuple(points.float() for points in pairs(noise)),
        batch=512,
        seed=0,
        antithetic=False,
    )
    network, _ = fit(
        FieldNetwork(2, width=128, depth=3, seed=0),
        loss,
        settings=FitSettings(iterations, rate=2e-3),
        identity={},
        progress=False,
    )
    return Prediction(OneSided(), {Kind.VELOCITY: network.double()})


SECTIONS: list[Section] = [five_evaluations, few_evaluations]


if __name__ == "__main__":
    raise SystemExit(main("few_steps", SECTIONS))
