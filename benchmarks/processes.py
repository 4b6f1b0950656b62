"""Passage times, jumps and superlinear drifts against closed forms."""

import math
from collections.abc import Iterator
from statistics import NormalDist

import torch
from torch import Tensor

from benchmarks.check import Figure, Section, at_least, at_most, main, reported, within
from sde import (
    SDE,
    Boundary,
    JumpDiffusion,
    NoiseStream,
    NoiseStructure,
    first_passage,
    solve,
    solve_jumps,
    solve_reflected,
)
from sde.noise import CompoundPoisson, WienerIncrements
from sde.solvers import EulerMaruyama, Milstein, Solver, TamedEuler, ThetaEuler

__all__ = ["SECTIONS"]

_F64 = torch.float64


def passage(smoke: bool) -> Iterator[Figure]:
    """First passage of Brownian motion with drift 1/2 over 1 before time 1."""
    n = 100_000 if smoke else 4_000_000
    walk = SDE(lambda t, x: 0.5 + 0 * x, lambda t, x: torch.ones_like(x), NoiseStructure.ADDITIVE)
    normal = NormalDist().cdf
    exact = normal(-0.5) + math.e * normal(-1.5)
    times = torch.linspace(0, 1, 11, dtype=torch.float64)
    slack = 0.006 if smoke else 0.001
    for bridge in (True, False):
        hits = 0.0
        for at in range(0, n, 500_000):
            noise = NoiseStream(2, at, min(at + 500_000, n))
            start = torch.zeros(len(noise), 1, dtype=torch.float64)
            hits += (
                len(noise) * first_passage(walk, start, times, noise, level=1.0, bridge=bridge).probability
            )
        if bridge:
            yield within("first passage, h = 0.1, with bridges", hits / n, exact - slack, exact + slack)
        else:
            yield reported(
                "first passage, h = 0.1, looking at the ends alone", hits / n, f"exact {exact:.5f}"
            )


def reflection(smoke: bool) -> Iterator[Figure]:
    """Brownian motion reflected at 0 from 0: the path and its local time are distributed as |N(0, 1)|."""
    n = 50_000 if smoke else 1_000_000
    walk = SDE(lambda t, x: 0 * x, lambda t, x: torch.ones_like(x), NoiseStructure.ADDITIVE)
    start, times = torch.zeros(n, 1, dtype=_F64), torch.linspace(0, 1, 11, dtype=_F64)
    exact = math.sqrt(2 / math.pi)
    for bridge in (True, False):
        done = solve_reflected(walk, start, times, NoiseStream(6, 0, n), Boundary(lower=0.0, bridge=bridge))
        for name, values in (("state", done.states[:, -1, 0]), ("local time", done.lower_push[:, -1])):
            mean, width = float(values.mean()), 3 * float(values.std()) / math.sqrt(n)
            label = f"reflection, h = 0.1, mean {name}"
            if bridge:
                yield within(label, mean, exact - width, exact + width, "three standard errors")
            else:
                yield reported(f"{label}, looking at the ends alone", mean, f"exact {exact:.5f}")


def jumps(smoke: bool) -> Iterator[Figure]:
    """Merton's model: moments of the logarithm, and the mean of the price."""
    n = 50_000 if smoke else 1_000_000
    mu, sigma, rate, mean, spread = 0.05, 0.2, 0.5, -0.1, 0.15
    compensator = rate * math.expm1(mean + spread**2 / 2)
    merton = JumpDiffusion(
        SDE(lambda t, x: (mu - compensator) * x, lambda t, x: sigma * x),
        CompoundPoisson(rate, mark=lambda z: mean + spread * z[..., 0]),
        size=lambda t, x, mark: x * torch.expm1(mark).unsqueeze(-1),
    )
    times, start = torch.linspace(0, 1, 129, dtype=_F64)[[0, 128]], torch.ones(n, 1, dtype=_F64)
    done = solve_jumps(merton, start, times, NoiseStream(7, 0, n), solver=Milstein(), substeps=128)
    price = done.states[:, -1, 0]
    logs = price.log()
    figures = {
        "mean of the logarithm": (logs, 0.0224628432),
        "variance of the logarithm": ((logs - 0.0224628432).square(), 0.05625),
        "mean": (price, math.exp(mu)),
    }
    for name, (values, exact) in figures.items():
        width = 3 * float(values.std()) / math.sqrt(n)
        detail = f"exact {exact:.8g}, three standard errors"
        yield within(f"Merton, {name}", float(values.mean()), exact - width, exact + width, detail)


def superlinear(smoke: bool) -> Iterator[Figure]:
    """Ginzburg and Landau's equation, whose drift grows with the cube: who converges and who diverges."""
    n = 1000 if smoke else 5000
    sde = SDE(lambda t, x: 0.5 * x - x**3, lambda t, x: x)
    fine = WienerIncrements(NoiseStream(9, 0, n), torch.full((2**13,), 2.0**-13, dtype=_F64), 1, dtype=_F64)
    exact = _landau(fine, 2.0)
    for solver in (TamedEuler(), ThetaEuler()):
        ends = [_end(sde, solver, fine, level, 2.0) for level in range(5, 10)]
        errors = [float((end - exact).square().mean().sqrt()) for end in ends]
        x = torch.arange(5, dtype=_F64) - 2
        logs = torch.tensor(errors, dtype=_F64).log2()
        slope = -float((x * logs).sum() / (x * x).sum())
        name = f"Ginzburg-Landau, {type(solver).__name__}: strong order"
        yield at_least(name, slope, 0.4, f"error {errors[-1]:.3g} at step 1/512, theory 1/2")
    far = _end(sde, EulerMaruyama(), fine, 4, 30.0)
    name = "Ginzburg-Landau from 30, EulerMaruyama: share of paths that diverge"
    yield at_least(name, _share(far), 0.5, "step 1/16")
    for solver in (TamedEuler(), ThetaEuler(iterations=12)):
        far = _end(sde, solver, fine, 4, 30.0)
        name = f"Ginzburg-Landau from 30, {type(solver).__name__}: share of paths that diverge"
        yield at_most(name, _share(far), 0)


def _share(end: Tensor) -> float:
    """Share of the paths that left all bounds."""
    return float((~(end.abs() < 1e6)).double().mean())


def _end(sde: SDE, solver: Solver, fine: WienerIncrements, level: int, start: float) -> Tensor:
    """States at time 1 after steps ``2**-level``."""
    initial = torch.full((fine.shape[1], 1), start, dtype=_F64)
    driving = fine.coarsen(fine.shape[0] >> level)
    times = torch.linspace(0, 1, 2**level + 1, dtype=_F64)
    with torch.no_grad():
        return solve(sde, initial, times, driving, solver=solver, allow_diverged=True)[:, -1, 0]


def _landau(fine: WienerIncrements, start: float) -> Tensor:
    """The solution at time 1, from the path."""
    count = fine.shape[0]
    wiener = fine.chunk(0, count).wiener[..., 0]
    path = torch.cat((torch.zeros_like(wiener[:1]), wiener.cumsum(0)))
    weights = torch.exp(2 * path)
    integral = (0.5 * (weights[1:] + weights[:-1])).sum(0) / count
    return start * path[-1].exp() / (1 + 2 * start**2 * integral).sqrt()


SECTIONS: list[Section] = [passage, reflection, jumps, superlinear]

if __name__ == "__main__":
    raise SystemExit(main("processes", SECTIONS))
