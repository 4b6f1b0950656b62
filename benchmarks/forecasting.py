"""Forecasts from known states, pairs that are kept or lost, scores, couplings and certificates."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.check import Figure, Section, at_least, at_most, reported, within
from inference import FitSettings, fit
from inference.divergences import certificate, kl_divergence
from inference.forecasting import Forecaster, ForecastSettings, train_forecaster
from inference.interpolants import (
    Fading,
    Kind,
    Matching,
    OneSided,
    OptimalTransport,
    Prediction,
    Quadratic,
    TwoSided,
    VelocityNetwork,
    coupled,
)
from inference.interpolants.couplings import Pairs
from inference.likelihood import LogDensity
from inference.reference_problems import CoupledGaussian, Mixture, MixtureProblem, PointGaussian
from inference.samplers import (
    ProbabilityFlow,
    diffusion_equation,
    leaving_diffusivity,
    leaving_times,
    optimal_diffusivity,
)
from inference.samplers.flows import Diffusivity
from inference.scores import RankHistogram, coverage, crps, gaussian_crps, spread_skill
from sde.noise import GivenIncrements, NoiseStream
from sde.solve import solve
from sde.solvers import Heun

__all__ = ["SECTIONS"]

_F64 = torch.float64
_PATH = TwoSided(Quadratic(), Fading())
_CHOICES: dict[str, Diffusivity] = {
    "Foellmer": optimal_diffusivity(_PATH),
    "own": leaving_diffusivity(_PATH),
    "0.3 of own noise": leaving_diffusivity(_PATH, 0.09),
    "flow": 0.0,
}


def _gaussian(mean: float, variance: float) -> Mixture:
    return Mixture.gaussian(torch.tensor([mean], dtype=_F64), torch.tensor([[variance]], dtype=_F64))


def _pairs(path: TwoSided) -> CoupledGaussian:
    """N(-1, 1/2) and N(2, 2) with a correlation of 0.6."""
    joint = torch.tensor([[0.5, 0.6], [0.6, 2.0]], dtype=_F64)
    means = torch.tensor([[-1.0], [2.0]], dtype=_F64)
    return CoupledGaussian(path, means[0], means[1], joint)


def from_a_point(smoke: bool) -> Iterator[Figure]:
    """Forecasts of N(1.2, 0.3) from 1.5 for several diffusivities, exact for the scheme, and their score."""
    for steps, tolerance in ((40, 0.003), (100 if smoke else 400, 0.002)):
        for name, eps in _CHOICES.items():
            mean, variance = _moments(eps, leaving_times(steps))
            yield at_most(f"mean of a forecast, {name}, {steps} steps: error", abs(mean - 1.2), 0.012)
            yield at_most(
                f"variance of a forecast, {name}, {steps} steps: error", abs(variance - 0.3), tolerance
            )
    point = torch.tensor([[1.5]], dtype=_F64)
    exact = PointGaussian(_PATH, point, 0.8 * point, torch.tensor([[0.3]], dtype=_F64))
    t, x = torch.tensor(0.37, dtype=_F64), torch.tensor([[0.9]], dtype=_F64)
    score = exact.prediction(Kind.DRIFT).to(Kind.SCORE)(t, x).item()
    yield at_most("score from the drift at 0.37 and 0.9: error", abs(score - 1.3725485296), 1e-9)


def _moments(eps: Diffusivity, times: Tensor) -> tuple[float, float]:
    """Mean and variance of the scheme's forecast, from its response to each increment."""
    steps = len(times) - 1
    start = torch.full((steps + 2, 1), 1.5, dtype=_F64)
    exact = PointGaussian(_PATH, start, 0.8 * start, torch.tensor([[0.3]], dtype=_F64))
    prediction, normal = exact.prediction(Kind.DRIFT), torch.zeros_like(start)
    normal[-1] = 1.0
    first = _PATH.point(times[0], start, prediction.to(Kind.TARGET)(times[0], start), normal)
    wiener = torch.zeros(steps + 2, steps, 1, dtype=_F64)
    wiener[torch.arange(steps), torch.arange(steps), 0] = times.diff().sqrt()
    equation = diffusion_equation(prediction, eps)
    ends = solve(equation, first, times, GivenIncrements(wiener), solver=Heun())[:, -1, 0]
    return ends[-2].item(), (ends - ends[-2]).square().sum().item()


def pairs_lost(smoke: bool) -> Iterator[Figure]:
    """Correlation of the ends of the diffusion that is not given the base, for pairs of correlation 0.6."""
    exact, steps = _pairs(TwoSided()), 100 if smoke else 400
    for eps, expected in ((0.0, 1.0), (0.5, 0.616330), (1.0, 0.379863)):
        wiener = torch.zeros(steps + 2, steps, 1, dtype=_F64)
        wiener[torch.arange(steps), torch.arange(steps), 0] = 1.0
        start = torch.zeros(steps + 2, 1, dtype=_F64)
        start[steps] = 1.0
        equation = diffusion_equation(exact.prediction(), eps)
        times = torch.linspace(0, 1, steps + 1, dtype=_F64)
        ends = solve(equation, start, times, GivenIncrements(wiener), solver=Heun())[:, -1, 0]
        response, carried = ends[:steps] - ends[-1], ends[steps] - ends[-1]
        variance = carried**2 * 0.5 + response.square().sum() / steps
        found = (carried * math.sqrt(0.5) / variance.sqrt()).item()
        yield at_most(f"correlation at eps = {eps:g}: error", abs(found - expected), 1e-3, f"{expected}")


def pairs_kept(smoke: bool) -> Iterator[Figure]:
    """A trained forecaster of the same pairs: correlation for any diffusivity, and its calibration."""
    pairs, n = _pairs(_PATH), 10_000 if smoke else 100_000
    settings = ForecastSettings(
        batch=1024, width=48, depth=2, fit=FitSettings(200 if smoke else 2500, rate=5e-3, average=0.995)
    )
    base, target = pairs.sample(NoiseStream(7, 0, 100_000))
    model, _ = train_forecaster(base, target, seed=7, settings=settings, progress=False)
    start, _ = pairs.sample(NoiseStream(8, 0, n))
    for name, eps in _CHOICES.items():
        ends = model.with_diffusivity(eps)(start, NoiseStream(9, 0, n)).double()
        found = torch.corrcoef(torch.cat((start, ends), 1).T)[0, 1].item()
        yield within(f"correlation of the pairs, {name}", found, 0.59, 0.61, "0.6")
    yield from _calibration(model, pairs, 1000 if smoke else 4000)


def _calibration(model: Forecaster, pairs: CoupledGaussian, cases: int) -> Iterator[Figure]:
    """Ranks, coverage, spread and score of the trained forecaster."""
    start, truth = pairs.sample(NoiseStream(10, 0, cases))
    noise = NoiseStream(11, 0, cases)
    members = model.ensemble(start, 19, NoiseStream(12, 0, 19 * cases)).double()[:, :, 0]
    p_value = RankHistogram.of(members, truth[:, 0], noise).p_value
    yield at_least("ranks of the trained forecaster: p-value", p_value, 0.01, f"{cases} cases, 20 ranks")
    for level in (0.5, 0.9):
        found = coverage(members, truth[:, 0], level, noise)
        gap = abs(found.share - found.level) / found.standard_error
        yield at_most(f"coverage of {level:.0%} intervals: gap in errors", gap, 3.5, f"{found.share:.3f}")
    ratio = spread_skill(members, truth[:, 0])
    yield at_most("spread over error: gap from 1 in errors", abs(ratio.ratio - 1) / ratio.standard_error, 3.5)
    law = pairs.given(start)
    best = gaussian_crps(law.mean, law.covariance.diagonal().sqrt(), truth)[:, 0]
    excess = 100 * (crps(members, truth[:, 0]).mean() - best.mean()) / best.mean()
    yield at_most("CRPS above that of the exact law, %", excess.item(), 2)


def conditional_couplings(smoke: bool) -> Iterator[Figure]:
    """Two labels: what a coupling does to the base points of each, and to the law that is learned."""
    iterations = 100 if smoke else 800
    for name, weight in (("plain", 0.0), ("of equal labels", math.inf)):
        source = coupled(_labelled, OptimalTransport(), condition_weight=weight)
        draws = [source(NoiseStream(5, k, k + 128)) for k in range(0, 1280 if smoke else 12_800, 128)]
        base, _, label = (torch.cat(column) for column in zip(*draws, strict=True))
        shift, error = (base * label).mean().item(), math.sqrt(1 / len(base))
        deviation = _learned_deviation(source, iterations)
        if weight:
            yield at_most(f"base points of a label, {name}: mean in errors", abs(shift) / error, 4)
            yield at_most(f"deviation of a label's law, {name}: error", abs(deviation - 0.5), 0.05, "0.5")
        else:
            yield at_least(f"base points of a label, {name}: mean", shift, 0.5, "0 for a sampler")
            yield reported(f"deviation of a label's law, {name}: error", abs(deviation - 0.5), "0.5")


def _labelled(noise: NoiseStream) -> tuple[Tensor, Tensor, Tensor]:
    """A normal base, and targets N(2 c, 1/4) of two labels c."""
    label = (noise.fork("label").uniforms(1, dtype=_F64) - 0.5).sign()
    target = 2 * label + 0.5 * noise.fork("target").normals(1, dtype=_F64)
    return noise.fork("base").normals(1, dtype=_F64), target, label


def _learned_deviation(source: Pairs, iterations: int) -> float:
    """Deviation of what a flow trained on a source of labelled pairs draws for the label 1."""
    loss = Matching(OneSided(), Kind.VELOCITY, source, batch=128, seed=0, antithetic=False)
    network = VelocityNetwork(1, 1, width=48, depth=2, seed=0, dtype=_F64)
    settings = FitSettings(iterations=iterations, rate=5e-3, average=0.99)
    trained, _ = fit(
        network,
        lambda model, k: loss(lambda t, x, c: model(x, t.expand(len(x), 1), c), k),
        settings=settings,
        identity={},
        progress=False,
    )
    start = NoiseStream(1, 0, 20_000).normals(1, dtype=_F64)
    one = torch.ones_like(start)
    field = Prediction(OneSided(), {Kind.VELOCITY: lambda t, x: trained(x, t.expand(len(x), 1), one)})
    with torch.no_grad():
        ends = ProbabilityFlow()(
            field, start, torch.linspace(0, 1, 21, dtype=_F64), NoiseStream(0, 0, 20_000)
        )
    return (ends - 2).square().mean().sqrt().item()


def certificates(smoke: bool) -> Iterator[Figure]:
    """Bounds from Girsanov's theorem over exact divergences, floors of losses, and the control variate."""
    problem = MixtureProblem(TwoSided(), _gaussian(-1, 0.5), _gaussian(2, 2))
    for kind, floor in (
        (Kind.VELOCITY, -4.7965501589),
        (Kind.TRANSPORT, -4.8972777381),
        (Kind.SCORE, -0.6045997881),
        (Kind.NOISE, -0.0992489895),
    ):
        yield at_most(f"floor of the {kind.value} loss: error", abs(problem.loss_floor(kind) - floor), 1e-9)
    noise = NoiseStream(1, 0, 10_000 if smoke else 100_000)
    base, target = problem.base.sample(noise), problem.target.sample(noise.fork("target"))
    for eps in (0.25, 1.0, 4.0):
        wrong = _shifted(problem, 0.3)
        found = certificate(wrong, problem.prediction(), eps, base=base, target=target, noise=noise)
        exact = _divergence_of_shift(problem, 0.3, eps)
        yield at_least(f"certificate over the divergence, eps = {eps:g}", found.bound / exact, 1)
    first, second = _gaussian(0, 1), _gaussian(0.1, 1.1)
    points = first.sample(NoiseStream(2, 0, 10_000))
    target, model = first.log_density(points), second.log_density(points)
    known = LogDensity(model, 0 * model, 0 * model + 1, model)
    plain, better = (kl_divergence(target, known, controlled=flag) for flag in (False, True))
    yield at_most(
        "error of a divergence with its control variate over without",
        better.data_error / plain.data_error,
        0.3,
    )


def _shifted(problem: MixtureProblem, delta: float) -> Prediction:
    """A velocity that is off by a constant."""
    velocity = problem.field(Kind.VELOCITY)
    networks = {Kind.VELOCITY: lambda t, x: velocity(t, x) + delta, Kind.SCORE: problem.field(Kind.SCORE)}
    return Prediction(problem.interpolant, networks)


def _divergence_of_shift(problem: MixtureProblem, delta: float, eps: float) -> float:
    """Exact divergence at time 1: the shift moves the mean, by the linear response of the drift."""
    steps = 400
    times = torch.linspace(0, 1, steps + 1, dtype=_F64)
    drift = diffusion_equation(_shifted(problem, delta), eps).drift
    mean = problem.base.means.clone()
    for k in range(steps):  # Heun without noise: the mean of a linear equation
        h = times[k + 1] - times[k]
        there = mean + h * drift(times[k], mean)
        mean = mean + h / 2 * (drift(times[k], mean) + drift(times[k + 1], there))
    variance = problem.target.covariances[0, 0, 0]
    return float((mean - problem.target.means).square().sum() / (2 * variance))


SECTIONS: list[Section] = [from_a_point, pairs_lost, pairs_kept, conditional_couplings, certificates]
