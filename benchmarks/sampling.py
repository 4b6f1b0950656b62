"""Flow maps, gradients through samplers, adaptive samplers and posteriors."""

import math
import os
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import torch
from scipy.integrate import solve_ivp
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from benchmarks.check import Figure, Section, at_least, at_most, main, reported
from inference import FitSettings, fit
from inference.interpolants import (
    Diffusion,
    Kind,
    Matching,
    OneSided,
    Prediction,
    TwoSided,
    independent,
)
from inference.interpolants.field_network import FieldNetwork
from inference.interpolants.times import StartTimes, UniformTimes
from inference.reference_problems import Mixture, MixtureProblem, gaussian_flow_map
from inference.samplers import (
    DPMSolver,
    ProbabilityFlow,
    Sampler,
    log_snr_times,
    reflow,
)
from inference.samplers.adaptive import AdaptiveDPMSolver, AdaptiveFlow
from inference.samplers.flow_map import (
    Eulerian,
    FlowMapLoss,
    FlowMapNetwork,
    FlowMapObjective,
    FlowMapSampler,
    Lagrangian,
    MeanFlow,
    Semigroup,
)
from inference.samplers.posterior import MatchedSpread, NoSpread, Observation, TweedieSpread, observed
from inference.samplers.rescaled import RescaledFlow
from sde.gradients import Adjoint, Backprop, Checkpointed, Gradient, Symplectic
from sde.networks import perceptron
from sde.noise import NoiseStream
from sde.solvers import EulerMaruyama

__all__ = ["SECTIONS", "SLOW"]

_F64 = torch.float64
_NO_NOISE = NoiseStream(0, 0, 0)


def _line(variance: float, mean: float = 0.0) -> Mixture:
    return Mixture.gaussian(torch.tensor([mean], dtype=_F64), torch.tensor([[variance]], dtype=_F64))


def _three_modes(path: OneSided) -> MixtureProblem:
    means = torch.tensor([[2.0, 0.0], [-1.0, 1.5], [-1.0, -2.0]], dtype=_F64)
    spreads = torch.tensor([0.3, 0.5, 0.4], dtype=_F64)
    covariances = spreads[:, None, None] ** 2 * torch.eye(2, dtype=_F64)
    target = Mixture(torch.tensor([0.5, 0.3, 0.2], dtype=_F64), means, covariances)
    return MixtureProblem(path, Mixture.standard(2), target)


def flow_map_forms(_: bool) -> Iterator[Figure]:
    """The closed form of a flow map, and the four objectives at it."""
    exact = MixtureProblem(TwoSided(), _line(0.5, -1.0), _line(2.0, 2.0))
    jump = gaussian_flow_map(exact)
    s, u, t = (torch.tensor(v, dtype=_F64) for v in (0.2, 0.5, 0.9))
    x = torch.tensor([[0.7]], dtype=_F64)
    yield at_most("flow map of Gaussians: error at the reference", abs(jump(s, t, x).item() - 3.625), 1e-12)
    yield at_most("composed of two", abs(jump(u, t, jump(s, u, x)).item() - 3.625), 1e-12)
    network, velocity = _Exact(exact), exact.field(Kind.VELOCITY)
    points = NoiseStream(0, 0, 100).normals(1, dtype=_F64)
    early, late = NoiseStream(1, 0, 100).uniforms(2, dtype=_F64).sort(1).values.split(1, 1)
    for objective in _OBJECTIVES:
        worst = objective(network, velocity, early, late, points).max().item()  # type: ignore[arg-type]
        yield at_most(f"{type(objective).__name__}: loss of the exact map", worst, 1e-20)


_OBJECTIVES: tuple[FlowMapObjective, ...] = (Lagrangian(), Eulerian(), Semigroup(), MeanFlow())


class _Exact(nn.Module):
    """The exact map between Gaussians in the form of a network."""

    def __init__(self, problem: MixtureProblem) -> None:
        super().__init__()
        self.jump, self.velocity = gaussian_flow_map(problem), problem.field(Kind.VELOCITY)

    def forward(self, s: Tensor, t: Tensor, x: Tensor) -> Tensor:
        return self.jump(s, t, x)

    def mean_velocity(self, s: Tensor, t: Tensor, x: Tensor) -> Tensor:
        return self.velocity(s, x) if torch.equal(s, t) else (self.jump(s, t, x) - x) / (t - s)


def trained_flow_maps(smoke: bool) -> Iterator[Figure]:
    """Few jumps of maps that are distilled from the velocity of three modes, or trained on samples alone."""
    exact, iterations = _three_modes(OneSided()), 50 if smoke else 4000
    few = _Few(exact, 200 if smoke else 1500)
    yield reported("two samples of the target: distance", few.floor, f"W2 of {len(few.start)} points")
    yield from few.figures("Heun's method", ProbabilityFlow(), halved=True)
    pairs = independent(exact.base.sample, exact.target.sample)
    ways = ((Lagrangian(), True), (Semigroup(), True), (MeanFlow(), True), (MeanFlow(), False))
    for objective, distilled in ways:
        velocity = exact.field(Kind.VELOCITY) if distilled else None
        loss = FlowMapLoss(objective, OneSided(), pairs, 256, 0, velocity=velocity)
        network = FlowMapNetwork(2, width=96, depth=3, seed=0, dtype=_F64)
        settings = FitSettings(iterations=iterations, rate=2e-3, average=0.998)
        trained, _ = fit(network, loss, settings=settings, identity={}, progress=False)
        name = f"{type(objective).__name__}, {'distilled' if distilled else 'from samples'}"
        yield from few.figures(name, FlowMapSampler(trained))  # type: ignore[arg-type]


class _Few:
    """Distances of samplers of few evaluations from the flow and from the target."""

    def __init__(self, exact: MixtureProblem, count: int) -> None:
        noise = NoiseStream(77, 0, count)
        self.exact, self.start = exact, noise.normals(2, dtype=_F64)
        self.prediction = exact.prediction()
        self.ends = AdaptiveFlow(1e-8, 1e-8)(
            self.prediction, self.start, torch.tensor([0.0, 1.0], dtype=_F64), noise
        )
        self.law = exact.target.sample(NoiseStream(78, 0, count))
        self.floor = self.distance(exact.target.sample(NoiseStream(79, 0, count)))

    def distance(self, points: Tensor) -> float:
        """W2 to a sample of the target, exactly."""
        cost = torch.cdist(points, self.law).square().numpy()
        return math.sqrt(cost[linear_sum_assignment(cost)].mean())

    def figures(
        self, name: str, sampler: Sampler, prediction: Prediction | None = None, *, halved: bool = False
    ) -> Iterator[Figure]:
        """At 1, 2 and 4 evaluations; ``halved`` where a step takes two."""
        for count in (2, 4) if halved else (1, 2, 4):
            times = torch.linspace(0, 1, count // (1 + halved) + 1, dtype=_F64)
            with torch.no_grad():
                found = sampler(prediction or self.prediction, self.start, times, _NO_NOISE)
            error = (found - self.ends).norm(dim=1).median().item()
            detail = f"median distance from the flow {error:.3f}"
            yield reported(f"{name}: W2 at {count} evaluations", self.distance(found), detail)


def distilled_flows(smoke: bool) -> Iterator[Figure]:
    """One and two Euler steps of flows distilled from pairs of the exact flow of three modes."""
    exact, iterations = _three_modes(OneSided()), 50 if smoke else 4000
    few = _Few(exact, 200 if smoke else 1500)
    start = NoiseStream(5, 0, 500 if smoke else 20_000).normals(2, dtype=_F64)
    pairs = reflow(exact.prediction(), start, torch.linspace(0, 1, 101, dtype=_F64))
    yield from few.figures("independent pairs, Euler", ProbabilityFlow(EulerMaruyama()))
    laws = (
        (UniformTimes(), "reflow"),
        (StartTimes(1), "distilled, 1 step"),
        (StartTimes(2), "distilled, 2 steps"),
    )
    for times, name in laws:
        loss = Matching(OneSided(), Kind.VELOCITY, pairs, 256, 0, antithetic=False, times=times)
        network = FieldNetwork(2, width=96, depth=3, seed=0, dtype=_F64)
        settings = FitSettings(iterations=iterations, rate=2e-3, average=0.998)
        trained, _ = fit(network, loss, settings=settings, identity={}, progress=False)
        flow = Prediction(OneSided(), {Kind.VELOCITY: trained})
        yield from few.figures(name, ProbabilityFlow(EulerMaruyama()), flow)


def sampler_gradients(smoke: bool) -> Iterator[Figure]:
    """The adjoints of the rescaled flow against the graph of the whole solve."""
    sizes, errors = (10, 20, 40, 80) if smoke else (10, 20, 40, 80, 160), []
    exact = {steps: _gradient(Backprop(), steps) for steps in sizes}
    for steps in sizes:
        errors.append(_relative(_gradient(Adjoint(), steps), exact[steps]))
    slope = -float(np.polyfit(np.log(sizes), np.log(errors), 1)[0])
    yield at_least("adjoint against the whole graph: slope in the steps", slope, 3.7)
    yield at_most("adjoint: relative difference at 40 steps", errors[2], 1e-6)
    for way in (Symplectic(), Checkpointed()):
        worst = max(_relative(_gradient(way, steps), exact[steps]) for steps in sizes)
        yield at_most(f"{type(way).__name__}: largest relative difference", worst, 1e-12)
    large = [_relative(_gradient(Adjoint(), 40, gain=6**0.5), _gradient(Backprop(), 40, gain=6**0.5))]
    yield reported("adjoint, initial weights larger by the root of 6, 40 steps", large[0])


def _relative(found: Tensor, exact: Tensor) -> float:
    return ((found - exact).norm() / exact.norm()).item()


def _gradient(way: Gradient, steps: int, gain: float = 1.0) -> Tensor:
    """Of a functional of the ends, in starts and parameters of a small network with customary weights."""
    layers = perceptron((3, 16, 2), seed=0, activation=nn.Tanh(), dtype=_F64)
    with torch.no_grad():
        for name, parameter in layers.named_parameters():
            parameter.mul_(gain / 6**0.5 if name.endswith("weight") else 1)
    start, weights = NoiseStream(1, 0, 6).normals(2, dtype=_F64).requires_grad_(), tuple(layers.parameters())
    noise = lambda t, x: layers(torch.cat((t.expand(len(x), 1), x), 1))  # noqa: E731
    prediction = Prediction(OneSided(Diffusion()), {Kind.NOISE: noise})
    times = log_snr_times(Diffusion(), steps, first=0.0, last=1 - 1e-3)
    ends = RescaledFlow(gradient=way, parameters=weights)(prediction, start, times, _NO_NOISE)
    bars = torch.autograd.grad((ends.sin() + ends**2).sum(), (start, *weights))
    return torch.cat([bar.flatten() for bar in bars])


_MEMORY = """
import sys, torch
from inference.interpolants import Diffusion, Kind, OneSided, Prediction
from inference.samplers import log_snr_times
from inference.samplers.rescaled import RescaledFlow
from sde.gradients import Adjoint, Backprop, Checkpointed, Symplectic
from sde.networks import perceptron
from sde.noise import NoiseStream
way = {w.__name__: w for w in (Adjoint, Backprop, Checkpointed, Symplectic)}[sys.argv[1]]()
net = perceptron((9, 64, 64, 8), seed=0)
field = lambda t, x: net(torch.cat((t.expand(len(x), 1), x), 1))
prediction = Prediction(OneSided(Diffusion()), {Kind.NOISE: field})
sampler = RescaledFlow(gradient=way, parameters=tuple(net.parameters()))
def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
def run(steps):
    x = NoiseStream(0, 0, 1024).normals(8, dtype=torch.float32).requires_grad_()
    times = log_snr_times(Diffusion(), steps, first=0.0, last=1 - 1e-3)
    sampler(prediction, x, times, NoiseStream(0, 0, 0)).square().mean().backward()
run(4)
before = peak()
run(int(sys.argv[2]))
print(before, peak())
"""


def gradient_memory(smoke: bool) -> Iterator[Figure]:
    """Growth of the peak memory of a process that differentiates a sampler, for two numbers of steps."""
    if not os.path.exists("/proc/self/status"):
        yield reported("peak memory", "not measured: /proc is missing")
        return
    few, many = (8, 32) if smoke else (25, 400)
    growth = {}
    for way in ("Backprop", "Checkpointed", "Symplectic", "Adjoint"):
        for steps in (few, many) if way != "Backprop" else (few,):
            growth[way, steps] = _growth(way, steps)
            yield reported(f"{way}, {steps} steps: growth of the peak memory [MiB]", growth[way, steps])
    yield at_most(
        f"Adjoint: growth at {many} steps over that of the graph at {few}",
        growth["Adjoint", many] / growth["Backprop", few],
        0.05,
    )


def _growth(way: str, steps: int) -> float:
    """Growth of the peak memory [MiB] by a differentiated sampler."""
    allocator = {"MALLOC_MMAP_THRESHOLD_": "16384", "MALLOC_TRIM_THRESHOLD_": "16384", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", _MEMORY, way, str(steps)]
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | allocator)
    before, after = (float(value) / 1024 for value in run.stdout.split())
    return after - before


def adaptive_samplers(smoke: bool) -> Iterator[Figure]:
    """Adaptive DPM-Solver on three modes: error and evaluations by tolerance, beside fixed steps."""
    exact = _three_modes(OneSided(Diffusion()))
    start, ends = NoiseStream(5, 0, 64).normals(2, dtype=_F64), torch.tensor([0.0, 1 - 1e-3], dtype=_F64)
    velocity = exact.field(Kind.VELOCITY)

    def rate(t: float, x: np.ndarray) -> np.ndarray:
        return velocity(torch.tensor(t, dtype=_F64), torch.tensor(x).view(-1, 2)).numpy().ravel()

    fine = solve_ivp(rate, ends.tolist(), start.numpy().ravel(), method="DOP853", rtol=1e-11, atol=1e-11)
    truth, prediction = torch.tensor(fine.y[:, -1]).view(-1, 2), exact.prediction()
    for order in (2, 3):
        errors = []
        for share in (1.0, 0.1, 0.01):
            method = AdaptiveDPMSolver(order, atol=0.0078 * share, rtol=0.05 * share)
            found = method.run(prediction, start, ends)
            errors.append((found.points - truth).norm(dim=1).median().item())
            tries = (found.accepted + found.rejected).double().mean().item()
            times = log_snr_times(Diffusion(), round(tries), first=0.0, last=1 - 1e-3)
            fixed = DPMSolver(order, multistep=False)(prediction, start, times, _NO_NOISE)
            plain = (fixed - truth).norm(dim=1).median().item()
            detail = (
                f"{order * tries:.0f} evaluations for a sample; as many on equal steps err by {plain:.1e}"
            )
            yield reported(f"adaptive order {order}, tolerance times {share:g}: error", errors[-1], detail)
        limit = 0.01 ** ((order - 1) / order * 0.8)
        yield at_most(
            f"adaptive order {order}: fall of the error over two decades", errors[2] / errors[0], limit
        )
    together = AdaptiveDPMSolver(together=True).run(prediction, start, ends)
    error = (together.points - truth).norm(dim=1).median().item()
    yield reported(
        "one grid for the batch, published tolerance: error", error, f"{together.evaluations} evaluations"
    )
    for tolerance in (1e-4, 1e-7):
        found = AdaptiveFlow(tolerance, tolerance).trajectory(prediction, start, ends)
        error = (found.points[:, -1] - truth).norm(dim=1).max().item()
        detail = f"{found.evaluations} evaluations"
        yield at_most(
            f"Dormand-Prince, tolerance {tolerance:g}: largest error", error, 300 * tolerance, detail
        )


def posteriors(_: bool) -> Iterator[Figure]:
    """Bias of posterior samplers by what they take for the covariance of the target given the point."""
    mean = torch.tensor([0.5, -1.0], dtype=_F64)
    target = Mixture.gaussian(mean, torch.tensor([[0.4, -0.3], [-0.3, 1.5]], dtype=_F64))
    matrix = torch.tensor([[1.0, 0.5]], dtype=_F64)
    value, noise = torch.tensor([1.2], dtype=_F64), torch.tensor([[0.3]], dtype=_F64)
    law = target.observed(matrix, value, noise)
    prediction = MixtureProblem(OneSided(), Mixture.standard(2), target).prediction()
    points = torch.cat((torch.zeros(1, 2, dtype=_F64), torch.eye(2, dtype=_F64)))
    seen, grid = Observation(lambda x: x @ matrix.T, value, noise), torch.linspace(0, 1, 201, dtype=_F64)
    for spread in (TweedieSpread(), MatchedSpread(), NoSpread()):
        ends = ProbabilityFlow()(observed(prediction, seen, spread), points, grid, _NO_NOISE)
        slope = (ends[1:] - ends[0]).T
        ratio = (matrix @ slope @ slope.T @ matrix.T / (matrix @ law.covariance @ matrix.T)).item()
        shift = (matrix @ (ends[0] - law.mean)).item()
        name = type(spread).__name__
        if isinstance(spread, TweedieSpread):
            yield at_most("TweedieSpread, Gaussian target: error of the posterior mean", abs(shift), 2e-3)
            yield at_most("TweedieSpread, Gaussian target: error of the variance ratio", abs(ratio - 1), 2e-3)
        else:
            yield reported(f"{name}, Gaussian target: bias of what was observed", shift)
            yield reported(f"{name}, Gaussian target: variance over that of the posterior", ratio)
    exact = _three_modes(OneSided())
    law = exact.target.observed(matrix, value, noise)
    start, truth = NoiseStream(1, 0, 1000).normals(2, dtype=_F64), law.sample(NoiseStream(2, 0, 1000))

    def distance(points: Tensor) -> float:
        cost = torch.cdist(points, truth).square().numpy()
        return math.sqrt(cost[linear_sum_assignment(cost)].mean())

    yield reported("posterior of three modes, two samples: W2", distance(law.sample(NoiseStream(3, 0, 1000))))
    for spread in (TweedieSpread(), MatchedSpread(), NoSpread()):
        ends = ProbabilityFlow()(observed(exact.prediction(), seen, spread), start, grid[::2], _NO_NOISE)
        yield reported(f"{type(spread).__name__}, three modes: W2 to the posterior", distance(ends))


SECTIONS: list[Section] = [
    flow_map_forms,
    sampler_gradients,
    gradient_memory,
    adaptive_samplers,
    posteriors,
]

SLOW: list[Section] = [trained_flow_maps, distilled_flows]

if __name__ == "__main__":
    raise SystemExit(main("sampling", SECTIONS, SLOW))
