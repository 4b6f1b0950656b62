"""Schemes for equations of special form: exponential, splitting, and square-root processes.

Strong orders are measured as in :mod:`benchmarks.strong_order`, on paths that all step sizes share. Calls in
Heston's model are estimated by multilevel Monte Carlo and compared with the Fourier integral.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.check import Figure, at_most, equal, main, reported, within
from benchmarks.strong_order import LEVELS, slope
from sde import CIR, SDE, Heston, NoiseStream, NoiseStructure, Semilinear, Split, solve
from sde.equation import Equation
from sde.noise import CoarseIncrements, GivenIncrements, WienerIncrements
from sde.solvers import (
    SRIW1,
    ExponentialEuler,
    ExponentialSRA1,
    FullTruncationEuler,
    HestonQuadraticExponential,
    ImplicitSquareRoot,
    LieTrotter,
    QuadraticExponential,
    SlowRK,
    Solver,
    SPaRK,
    Strang,
)

__all__ = ["SECTIONS"]

_UNIT = torch.tensor([0.0, 1.0], dtype=torch.float64)
_FINEST = 12  # level of the references


@dataclass(frozen=True, slots=True)
class _Problem:
    """An equation on the unit interval, and a scheme that gives its solution at a fine step.

    Attributes:
        name: As it is printed.
        sde: The equation.
        initial: Initial state of every sample.
        general: The equation that the reference solves: the same, or the same process in general form.
        reference: A scheme that is none of those measured on this problem, where there is one.
    """

    name: str
    sde: Equation
    initial: tuple[float, ...]
    general: Equation
    reference: Solver


def _semilinear(name: str, linear: list, rest: SDE, reference: Solver) -> _Problem:
    """A linear part beside an equation in the plane."""
    sde = Semilinear(torch.tensor(linear, dtype=torch.float64), rest)
    return _Problem(name, sde, (0.5, 0.2), sde.as_sde(), reference)


_SINE = SDE(
    lambda t, x: (2 * x).sin(), lambda t, x: (1 / (1 + 0.2 * t).sqrt()).expand_as(x), NoiseStructure.ADDITIVE
)
_WHITE = SDE(lambda t, x: 0 * x, lambda t, x: torch.full_like(x, 0.6), NoiseStructure.ADDITIVE)
_ARCTAN = SDE(lambda t, x: -0.25 * x.sin() * x.cos() ** 3, lambda t, x: 0.5 * x.cos() ** 2)
_FULL = [[0.5, -1.0], [0.4, 0.9]]
SINES = (
    _semilinear("sine, A diagonal", [0.5, 2.0], _SINE, SPaRK()),
    _semilinear("sine, A symmetric", [[1.0, -0.5], [-0.5, 1.5]], _SINE, SPaRK()),
    _semilinear("sine, A full", _FULL, _SINE, SPaRK()),
)
LINEAR = _semilinear("linear, A full", _FULL, _WHITE, SPaRK())
ARCTAN = _semilinear("arctan, A diagonal", [0.05, 0.05], _ARCTAN, SRIW1())


def _cubic(t: Tensor, x: Tensor, h: Tensor) -> Tensor:
    """Flow of ``-x**3``."""
    return x / (1 + 2 * h * x * x).sqrt()


def _grow(t: Tensor, x: Tensor, h: Tensor, w: Tensor) -> Tensor:
    """Solution in law of ``x dt + dW / 2``."""
    return h.exp() * x + 0.5 * (torch.expm1(2 * h) / (2 * h)).sqrt() * w


_TURN = torch.tensor([[0.0, -2.0], [1.5, -1.0]], dtype=torch.float64)
_SIZES = torch.tensor([0.2, 0.4], dtype=torch.float64)


def _excite(t: Tensor, x: Tensor, h: Tensor) -> Tensor:
    """Flow of ``2 (v - v**3)`` in the first component, and of the drift 0.3 in the second."""
    v, u = x.unbind(1)
    return torch.stack((v / (v * v + (1 - v * v) * (-4 * h).exp()).sqrt(), u + 0.3 * h), 1)


def _recover(t: Tensor, x: Tensor, h: Tensor, w: Tensor) -> Tensor:
    """Linear part and noise, the noise at the middle of the step."""
    middle = torch.linalg.matrix_exp(0.5 * h * _TURN)
    return (x @ middle.mT + _SIZES * w) @ middle.mT


LANDAU = _Problem(
    "Ginzburg-Landau",
    Split((_cubic,), lambda t, x, h, w: x * w.exp()),
    (0.5,),
    SDE(lambda t, x: 0.5 * x - x**3, lambda t, x: x),
    SRIW1(),
)
DOUBLE_WELL = _Problem(
    "double well",
    Split((_cubic,), _grow),
    (0.5,),
    SDE(lambda t, x: x - x**3, lambda t, x: torch.full_like(x, 0.5), NoiseStructure.ADDITIVE),
    SlowRK(),
)
FITZHUGH = _Problem(
    "FitzHugh-Nagumo",
    Split((_excite,), _recover),
    (0.5, 0.1),
    SDE(
        lambda t, x: (
            x @ _TURN.mT + torch.stack((2 * (x[:, 0] - x[:, 0] ** 3), 0.3 + torch.zeros_like(x[:, 1])), 1)
        ),
        lambda t, x: _SIZES.expand_as(x),
        NoiseStructure.ADDITIVE,
    ),
    SlowRK(),
)

CALM = CIR(rate=2.0, level=0.09, volatility=0.3)
SLOW = CIR(rate=0.5, level=0.09, volatility=0.15)
WILD = CIR(rate=1.5768, level=0.0398, volatility=0.5751)
HESTON = Heston(WILD, correlation=-0.5711)
# The same Feller number as above; with slow reversion the drift does not hide the order of the noise.
_ALFONSI = _Problem("CIR, Feller 4", SLOW, (0.09,), SLOW, ImplicitSquareRoot())
_ANDERSEN = _Problem("CIR, Feller 4", SLOW, (0.09,), SLOW, QuadraticExponential())
_SLOW_HESTON = Heston(SLOW, correlation=-0.6)
_PRICE = _Problem("Heston, Feller 4", _SLOW_HESTON, (0.0, 0.09), _SLOW_HESTON, HestonQuadraticExponential())

CASES = (
    *((ExponentialEuler(), problem, 1.0) for problem in (*SINES, LINEAR)),
    (ExponentialEuler(), ARCTAN, 0.5),
    *((ExponentialSRA1(), problem, 1.5) for problem in SINES),
    (ExponentialSRA1(), LINEAR, 2.0),
    *((solver, p, 1.0) for solver in (LieTrotter(), Strang()) for p in (LANDAU, DOUBLE_WELL, FITZHUGH)),
    (FullTruncationEuler(), _ALFONSI, 0.5),
    (ImplicitSquareRoot(), _ANDERSEN, 1.0),
    (QuadraticExponential(), _ALFONSI, 1.0),
    (HestonQuadraticExponential(), _PRICE, 0.5),
)


def _end(problem: _Problem, sde: Equation, solver: Solver, level: int, paths: int) -> Tensor:
    """States at time 1 after steps ``2**-level``."""
    sizes = torch.full((2**_FINEST,), 2.0**-_FINEST, dtype=torch.float64)
    channels = sde.channels((len(problem.initial),))
    fine = WienerIncrements(NoiseStream(3, 0, paths), sizes, channels, dtype=torch.float64)
    noise = fine if level == _FINEST else fine.coarsen(2 ** (_FINEST - level))
    initial = torch.tensor([problem.initial], dtype=torch.float64).expand(paths, -1)
    return solve(sde, initial, _UNIT, noise, solver=solver, substeps=2**level)[:, -1]


def special_strong_orders(smoke: bool) -> Iterator[Figure]:
    """Slopes of the root mean square errors on shared paths."""
    paths, truths = 200 if smoke else 1000, {}
    for solver, problem, expected in CASES:
        key = (problem.name, type(problem.reference))
        if key not in truths:
            truths[key] = _end(problem, problem.general, problem.reference, _FINEST, paths)
        ends = [_end(problem, problem.sde, solver, level, paths) for level in LEVELS]
        measured = slope(torch.stack([(end - truths[key]).square().sum(1) for end in ends]))
        slack = 0.1 if expected < 1.5 else 0.2
        detail = f"+- {measured.error:.3f}; error {measured.constant:.3g} at step 1/128"
        name = f"strong order, {type(solver).__name__}, {problem.name}"
        yield within(name, measured.value, expected - slack, expected + slack, detail)


def splitting_weak_orders(smoke: bool) -> Iterator[Figure]:
    """Orders of the mean of ``x**2`` in the double well, over all leaves of three-point increments."""
    steps = (2, 4, 8) if smoke else (3, 6, 12)
    for solver, order in ((LieTrotter(), 1.0), (Strang(), 2.0)):
        means = [_enumerated_mean(solver, count) for count in steps]
        measured = math.log2((means[1] - means[0]) / (means[2] - means[1]))
        name = f"weak order, {type(solver).__name__}, double well"
        yield within(name, measured, order - 0.2, order + 0.2, f"steps {steps}")


def _enumerated_mean(solver: Solver, steps: int) -> float:
    """The mean at time 1/2, without sampling."""
    points = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64) * math.sqrt(3 * 0.5 / steps)
    weights = torch.tensor([1 / 6, 2 / 3, 1 / 6], dtype=torch.float64)
    leaves = torch.cartesian_prod(*[torch.arange(3)] * steps).reshape(-1, steps)
    noise = GivenIncrements(points[leaves].unsqueeze(-1))
    initial = torch.full((len(leaves), 1), 0.6, dtype=torch.float64)
    end = solve(DOUBLE_WELL.sde, initial, 0.5 * _UNIT, noise, solver=solver, substeps=steps)[:, -1, 0]
    return float((weights[leaves].prod(1) * end.square()).sum())


def stiffness(smoke: bool) -> Iterator[Figure]:
    """Variance of a stiff Ornstein--Uhlenbeck process, of single components and of a chain."""
    n, steps = 20_000 if smoke else 200_000, 20
    for rate, step in ((50.0, 0.1), (1e6, 0.1)):
        for solver in (ExponentialEuler(), ExponentialSRA1()):
            rest = SDE(lambda t, x: 0 * x, lambda t, x: torch.ones_like(x), NoiseStructure.ADDITIVE)
            sde = Semilinear(torch.tensor(rate, dtype=torch.float64), rest)
            initial, times = torch.full((n, 1), 5.0, dtype=torch.float64), steps * step * _UNIT
            x = solve(sde, initial, times, NoiseStream(1, 0, n), solver=solver, substeps=steps)[:, -1]
            error = (2 * rate * float(x.square().mean()) - 1) * math.sqrt(n / 2)
            name = f"{type(solver).__name__}, A = {rate:g}, h = {step:g}: error of the variance"
            yield at_most(f"{name} [s.e.]", abs(error), 3.0)
    d, rate = 20, 1e4
    chain = rate * (2 * torch.eye(d) - torch.eye(d).roll(1, 0).tril() - torch.eye(d).roll(-1, 0).triu())
    for solver in (ExponentialEuler(), ExponentialSRA1()):
        sde = Semilinear(chain.double(), _WHITE)
        initial = torch.ones(n // 10, d, dtype=torch.float64)
        x = solve(sde, initial, 2 * _UNIT, NoiseStream(2, 0, len(initial)), solver=solver, substeps=20)[:, -1]
        exact = 0.36 * torch.linalg.inv(2 * chain.double()).diagonal()
        error = ((x.square().mean(0) / exact - 1) * math.sqrt(len(x) / 2)).abs().max()
        name = f"{type(solver).__name__}, chain of {d}, norm of A h {4 * rate * 0.1:g}: variances"
        yield at_most(f"{name} [s.e.]", float(error), 4.1, "largest of 20")  # 4.1: exceeded once in 1000


def square_root_moments(smoke: bool) -> Iterator[Figure]:
    """Moments and signs of the process of Cox, Ingersoll and Ross, and of Heston's variance."""
    n = 10_000 if smoke else 100_000
    start = torch.tensor(0.04, dtype=torch.float64)
    mean, variance = float(CALM.mean(start, 1.0)), float(CALM.variance(start, 1.0))
    for what, found, known in (("mean", mean, 0.0832332358), ("variance", variance, 0.0017246166)):
        detail = f"{found:.10f}, reference {known:.10f}"
        yield at_most(f"CIR: closed form of the {what}, error", abs(found - known), 5e-11, detail)
    for solver in (FullTruncationEuler(), ImplicitSquareRoot(), QuadraticExponential()):
        name, initial = f"CIR, {type(solver).__name__}", start.expand(n, 1)
        paths = solve(CALM, initial, _UNIT, NoiseStream(1, 0, n), solver=solver, substeps=512)
        x = paths[:, -1, 0]
        squares = (x - mean).square()
        for what, values, exact in (("mean", x, mean), ("variance", squares, variance)):
            error = float(values.mean() - exact) / float(values.std()) * math.sqrt(n)
            detail = f"{float(values.mean()):.7f}, {n} paths, 512 steps"
            yield at_most(f"{name}: error of the {what} [s.e.]", abs(error), 3.0, detail)
    times = torch.linspace(0, 1, 257, dtype=torch.float64)
    few = n // 10
    for sde, solver, first in (
        (CALM, FullTruncationEuler(), (0.04,)),
        (CALM, ImplicitSquareRoot(), (0.04,)),
        (WILD, FullTruncationEuler(), (0.0175,)),
        (WILD, QuadraticExponential(), (0.0175,)),
        (HESTON, HestonQuadraticExponential(), (0.0, 0.0175)),
    ):
        initial = torch.tensor([first], dtype=torch.float64).expand(few, -1)
        paths = solve(sde, initial, times, NoiseStream(4, 0, few), solver=solver)
        bad = int((paths[..., -1] < 0).sum()) + int((~paths.isfinite()).sum())
        feller = float((sde.variance if isinstance(sde, Heston) else sde).feller)
        name = f"{type(solver).__name__}, Feller {feller:.3g}"
        yield equal(f"{name}: values that are negative or not finite", bad, 0, f"of {paths[..., -1].numel()}")


_SPOT, _COARSEST, _PILOT = 100.0, 8, 20_000


def heston_prices(smoke: bool) -> Iterator[Figure]:
    """Calls at the money where the Feller number is 0.38: the integral, and multilevel Monte Carlo."""
    for maturity, price, share, error, bar in (
        (1.0, 5.785155434, 0.4, 0.003, 0.01),
        (10.0, 22.318945791, 0.6, 0.03, 0.1),
    ):
        found = float(HESTON.call(spot=_SPOT, variance=0.0175, strike=_SPOT, maturity=maturity))
        name = f"Heston call, maturity {maturity:g}"
        detail = f"{found:.9f}, reference {price:.9f}"
        yield at_most(f"{name}: integral, error", abs(found - price), 5e-10, detail)
        tolerance = 10 * error if smoke else error
        estimate, spread, counts = _multilevel(maturity, share, tolerance)
        steps = _COARSEST * 2 ** (len(counts) - 1)
        detail = f"s.e. {spread:.2g}; up to {steps} steps; paths {counts}"
        slack = bar * tolerance / error
        detail = f"{estimate:.5f}; {detail}"
        yield at_most(f"{name}: multilevel, error", abs(estimate - price), slack, detail)
        yield reported(f"{name}: multilevel, error [s.e.]", (estimate - price) / spread)


def _multilevel(maturity: float, share: float, error: float) -> tuple[float, float, list[int]]:
    """Estimate of the price to a standard error, its standard error, and the paths of each level.

    Giles (2008), Multilevel Monte Carlo path simulation. doi:10.1287/opre.1070.0496
    """
    levels = range(6)  # 8 to 256 steps
    pilots = [_differences(maturity, share, level, NoiseStream(50 + level, 0, _PILOT)) for level in levels]
    spreads = [float(pilot.std()) for pilot in pilots]
    costs = [_COARSEST * 2**level * (1.5 if level else 1.0) for level in levels]
    total = sum(spread * math.sqrt(cost) for spread, cost in zip(spreads, costs, strict=True))
    estimate = variance = 0.0
    counts = []
    for level, spread, cost in zip(levels, spreads, costs, strict=True):
        count = max(_PILOT, math.ceil(total * spread / math.sqrt(cost) / error**2))
        samples = torch.cat(
            [
                _differences(
                    maturity, share, level, NoiseStream(50 + level, at, min(at + 100_000, _PILOT + count))
                )
                for at in range(_PILOT, _PILOT + count, 100_000)
            ]
        )
        estimate, variance = estimate + float(samples.mean()), variance + float(samples.var()) / count
        counts.append(count)
    return estimate, math.sqrt(variance), counts


def _differences(maturity: float, share: float, level: int, noise: NoiseStream) -> Tensor:
    """Payoff of a level less that of the one below on the same paths, shape ``(n,)``."""
    steps = _COARSEST * 2**level
    sizes = torch.full((steps,), maturity / steps, dtype=torch.float64)
    fine = WienerIncrements(noise, sizes, 2, dtype=torch.float64)
    payoff = _payoff(maturity, share, fine)
    return payoff - _payoff(maturity, share, CoarseIncrements(fine, 2)) if level else payoff


def _payoff(maturity: float, share: float, noise: WienerIncrements | CoarseIncrements) -> Tensor:
    """Payoff at maturity, less a share of the gain, whose mean is zero on every grid."""
    steps, paths, _ = noise.shape
    initial = torch.tensor([[0.0, 0.0175]], dtype=torch.float64).expand(paths, 2)
    end = solve(
        HESTON, initial, maturity * _UNIT, noise, solver=HestonQuadraticExponential(), substeps=steps
    )[:, -1, 0]
    gain = _SPOT * torch.expm1(end)
    return gain.clamp(min=0) - share * gain


SECTIONS = [special_strong_orders, splitting_weak_orders, stiffness, square_root_moments, heston_prices]

if __name__ == "__main__":
    raise SystemExit(main("special_schemes", SECTIONS))
