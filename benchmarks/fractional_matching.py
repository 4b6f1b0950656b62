"""Training without simulation where the noise is fractional: evidence, variance, cost, a nonlinear drift."""

import copy
import math
import time
from collections.abc import Callable, Iterator
from statistics import median

import torch
from torch import Tensor, nn

from benchmarks.check import Figure, Section, at_least, at_most, main, reported, within
from inference.fractional import (
    GuidedPosterior,
    LinearEquation,
    MatchedPosterior,
    Observations,
    fractional_chain,
    log_evidence,
)
from inference.girsanov import solve_controlled
from sde import SDE, Heun, NoiseStream, NoiseStructure, Purpose
from sde.fractional import augmented, augmented_state, solve_fractional
from sde.networks import perceptron
from sde.noise import MarkovFBM

__all__ = ["SECTIONS", "SLOW"]

_F64 = torch.float64
_TIMES = torch.linspace(0, 2, 21, dtype=_F64)
_SEEN = 0.2  # deviation of the measurements


class FreePosterior(nn.Module):
    """A drift, and pseudo-observations of every series that are learned with it."""

    def __init__(self, linear: LinearEquation, values: Tensor, drift: nn.Module) -> None:
        super().__init__()
        self.linear, self.chain, self.drift = linear, linear.chain(_TIMES), drift
        self.values = nn.Parameter(values.clone())
        self.log_deviation = nn.Parameter(torch.full((len(_TIMES),), math.log(_SEEN), dtype=_F64))

    def posterior(self) -> MatchedPosterior:
        """The posterior of all series."""
        pseudo = Observations(range(len(_TIMES)), self.values, self.log_deviation.exp())
        return MatchedPosterior(self.linear, self.chain, pseudo)

    def bound(self, data: Tensor, noise: NoiseStream, instants: int = 16) -> Tensor:
        """Estimates for the series."""

        def likelihood(x: Tensor) -> Tensor:
            return -0.5 * ((data - x) / _SEEN) ** 2 - math.log(_SEEN * math.sqrt(2 * math.pi))

        return self.posterior().bound(lambda t, x: self.drift(x), likelihood, noise, instants=instants)


def _trained(model: FreePosterior, data: Tensor, iterations: int, rate: float = 0.02) -> FreePosterior:
    """The model after steps of Adam; weights are averaged over the last half."""
    optimiser = torch.optim.Adam(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, iterations)
    for k in range(iterations):
        optimiser.zero_grad()
        paths = len(data) * max(1, 64 // len(data))
        noise = NoiseStream(11, paths * k, paths * (k + 1))
        (-model.bound(data, noise).mean()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimiser.step()
        schedule.step()
    return copy.deepcopy(model).requires_grad_(False)


def _assessed(model: FreePosterior, data: Tensor, rounds: int) -> tuple[float, float]:
    """Mean bound of a series, and the standard error of its estimate."""
    with torch.no_grad():
        found = torch.stack(
            [model.bound(data, NoiseStream(12 + k, 0, 40 * len(data)), 64).mean() for k in range(rounds)]
        )
    return float(found.mean()), float(found.std()) / math.sqrt(rounds)


class _Decay(nn.Module):
    """A linear drift."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """The drift."""
        return -self.rate * x


def linear_prior(smoke: bool) -> Iterator[Figure]:
    """A reverting prior, whose evidence is known, and posteriors built on its own equation and on another."""
    iterations = 20 if smoke else 100
    for hurst in (0.3, 0.7):
        model = MarkovFBM(hurst, K=8, T=2.0, dt=0.05)
        chain = fractional_chain(model, _TIMES, reversion=1.5, scale=0.7, initial_deviation=1.0)
        data = _prior_paths(hurst, 8) + _SEEN * NoiseStream(4, 0, 8).normals(len(_TIMES), dtype=_F64)
        evidence = float(log_evidence(chain, Observations(range(len(_TIMES)), data, _SEEN)).mean())
        own = LinearEquation(model, reversion=1.5, scale=0.7, initial_deviation=1.0)
        exact, _ = _assessed(FreePosterior(own, data, _Decay(1.5)), data, 2)
        yield at_most(f"H = {hurst}: linear prior, gap of a series [nat]", abs(evidence - exact), 1e-9)
        other = LinearEquation(model, reversion=0.5, scale=0.7, initial_deviation=1.0)
        found = _trained(FreePosterior(other, data, _Decay(1.5)), data, iterations)
        mean, error = _assessed(found, data, 4 if smoke else 10)
        yield at_most(f"H = {hurst}: bound above the evidence, standard errors", (mean - evidence) / error, 4)
        detail = f"evidence {evidence:.3f}, bound {mean:.3f} +- {error:.3f}"
        yield reported(
            f"H = {hurst}: the same, posterior of an equation that reverts less", evidence - mean, detail
        )


def _prior_paths(hurst: float, count: int) -> Tensor:
    """Paths of the reverting process with exact fractional noise at the instants, shape ``(n, T)``."""
    return _exact_paths(hurst, count, lambda t, x: -1.5 * x)


def _exact_paths(hurst: float, count: int, drift: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Paths of an equation with exact fractional noise, which no Markov approximation made."""
    sde = SDE(drift, lambda t, x: torch.full_like(x, 0.7), NoiseStructure.ADDITIVE)
    noise = NoiseStream(3, 0, count)
    start = noise.normals(1, purpose=Purpose.INITIAL_STATE, dtype=_F64)
    return solve_fractional(sde, start, _TIMES, noise, hurst, solver=Heun(), substeps=50)[..., 0]


def variance(smoke: bool) -> Iterator[Figure]:
    """Spread of estimates: the divergence of the linear part in closed form, or sampled with the rest."""
    rounds = 10 if smoke else 60
    for hurst in (0.3, 0.7):
        linear = LinearEquation(MarkovFBM(hurst, K=8, T=2.0, dt=0.05), scale=0.7, initial_deviation=1.0)
        data = _exact_paths(hurst, 8, _well)
        pseudo = Observations(range(len(_TIMES)), data, _SEEN)
        posterior = MatchedPosterior(linear, linear.chain(_TIMES), pseudo)
        split, whole = [], []
        for k in range(rounds):
            noise = NoiseStream(20 + k, 0, 8)
            split.append(posterior.correction(_well, noise).mean())
            whole.append(split[-1] + _sampled_square(posterior, noise))
        spreads = [float(torch.stack(part).std()) for part in (split, whole)]
        yield reported(f"H = {hurst}: spread of estimates, linear part in closed form [nat]", spreads[0])
        yield reported(f"H = {hurst}: spread with all of it sampled [nat]", spreads[1])


def _sampled_square(posterior: MatchedPosterior, noise: NoiseStream) -> Tensor:
    """Half the squared control of the linear equation at random instants, times the length."""
    instants, length = 16, float(_TIMES[-1])
    shift = noise.fork("square").uniforms(1, dtype=_F64)[0]
    looked = length * (torch.arange(instants, dtype=_F64) + shift) / instants
    times, place = torch.unique(torch.cat((_TIMES, looked)), return_inverse=True)
    chain = posterior.linear.chain(times)
    seen = Observations(place[: len(_TIMES)].tolist(), posterior.pseudo.values, posterior.pseudo.deviation)
    guide = GuidedPosterior(chain, seen)
    total = torch.zeros((), dtype=_F64)
    for series in range(posterior.num_series):
        states = guide.sample(noise[series : series + 1], series=series).states[0]
        for n in place[len(_TIMES) :].tolist():
            law = guide.laws[n]
            u = (law.eta[series] - states[n] @ law.precision) @ posterior.linear.push
            total = total + 0.5 * u.square() * length / instants
    return total / posterior.num_series


def _well(time: Tensor, x: Tensor) -> Tensor:
    """Drift of the double well."""
    return 2 * (x - x**3)


def cost(smoke: bool) -> Iterator[Figure]:
    """Seconds for a gradient: without simulation, and through Euler paths of a controlled prior."""
    counts = (100, 1000) if smoke else (100, 1000, 10_000)
    repeats, free = 2 if smoke else 7, {}
    for steps in counts:
        model = MarkovFBM(0.3, T=2.0, dt=2.0 / steps)  # the noise resolves the step
        data = _exact_paths(0.3, 32, _well)
        linear = LinearEquation(model, scale=0.7, initial_deviation=1.0)
        matched = FreePosterior(linear, data, perceptron((1, 32, 1), seed=1, dtype=_F64))
        free[steps] = _seconds(
            lambda k, m=matched, d=data: -m.bound(d, NoiseStream(k, 0, 32)).mean(), repeats
        )
        yield reported(f"without simulation, {steps} time steps [s]", free[steps], "32 series, 16 instants")
        simulated = _Simulated(model, steps)
        spent = _seconds(lambda k, s=simulated, d=data: s.loss(d, k), 0 if steps > 1000 else 2)
        yield reported(f"simulated, {steps} time steps [s]", spent, "32 series, Euler, network control")
    growth = free[counts[-1]] / free[counts[0]]
    yield at_most(f"without simulation, {counts[-1]} over {counts[0]} time steps", growth, 1.5)


def _seconds(loss: Callable[[int], Tensor], repeats: int) -> float:
    """Median time of a loss and its gradient, after one to warm up; with no repeats, of that one."""
    spent = []
    for k in range(repeats + 1):
        began = time.perf_counter()
        loss(k).backward()
        spent.append(time.perf_counter() - began)
    return median(spent[1:] or spent)


class _Simulated(nn.Module):
    """The classic way: Euler steps of the prior with a network as control."""

    def __init__(self, model: MarkovFBM, steps: int) -> None:
        super().__init__()
        self.model, self.steps = model, steps
        self.drift = perceptron((1, 32, 1), seed=1, dtype=_F64)
        size = 2 + 2 * len(model.rates) + len(_TIMES)
        self.field = perceptron((size, 64, 1), seed=2, dtype=_F64, zero_last=True)

    def loss(self, data: Tensor, seed: int) -> Tensor:
        """Negative bound."""
        noise = NoiseStream(seed, 0, len(data))
        walk = SDE(lambda t, x: self.drift(x), lambda t, x: torch.full_like(x, 0.7), NoiseStructure.ADDITIVE)
        prior = augmented(walk, self.model, dim=1)
        start = augmented_state(self.model, data[:, :1], noise, channels=1)

        def control(t: Tensor, z: Tensor) -> Tensor:
            return self.field(torch.cat((z, t.expand(len(z), 1), data), 1))

        done = solve_controlled(
            prior, control, start, _TIMES, noise, substeps=max(1, self.steps // (len(_TIMES) - 1))
        )
        misfit = 0.5 * ((data - done.paths[..., 0]) / _SEEN).square().sum(1)
        return (misfit + done.divergence[:, -1]).mean()


def nonlinear_drift(smoke: bool) -> Iterator[Figure]:
    """A network learns the drift of a double well from noisy paths with exact fractional noise."""
    count, iterations = (16, 10) if smoke else (96, 400)
    for hurst in (0.3, 0.7):
        truth = _exact_paths(hurst, count, _well)
        data = truth + _SEEN * NoiseStream(4, 0, count).normals(len(_TIMES), dtype=_F64)
        linear = LinearEquation(MarkovFBM(hurst, K=8, T=2.0, dt=0.05), scale=0.7, initial_deviation=1.0)
        start = FreePosterior(linear, data, perceptron((1, 32, 1), seed=1, dtype=_F64, zero_last=True))
        began = time.perf_counter()
        found = _trained(start, data, iterations)
        seconds = time.perf_counter() - began
        bound, error = _assessed(found, data, 2 if smoke else 10)
        best = max(_linear_evidence(hurst, data, rate) for rate in (0.0, 0.25, 0.5, 1.0, 2.0))
        label = f"H = {hurst}: bound over the evidence of the best linear drift, a series [nat]"
        detail = f"bound {bound:.3f} +- {error:.3f}, {seconds:.0f} s of training"
        yield at_least(label, bound - best, 0.0, detail)
        x = truth.flatten()[:, None]
        exact = _well(x, x)
        wrong = float((found.drift(x) - exact).square().mean().sqrt() / exact.square().mean().sqrt())
        yield reported(f"H = {hurst}: error of the drift over that of no drift", wrong)
        yield from _evidence(hurst, found, data, 400 if smoke else 4000)


def _linear_evidence(hurst: float, data: Tensor, rate: float) -> float:
    """Mean log evidence of a series under a reverting drift."""
    model = MarkovFBM(hurst, K=8, T=2.0, dt=0.05)
    chain = fractional_chain(model, _TIMES, reversion=rate, scale=0.7, initial_deviation=1.0)
    return float(log_evidence(chain, Observations(range(len(_TIMES)), data, _SEEN)).mean())


def _evidence(hurst: float, found: FreePosterior, data: Tensor, paths: int) -> Iterator[Figure]:
    """Bound of two series beside an importance-weighted estimate of their evidence from simulated paths."""
    few = data[:2]
    pseudo = Observations(range(len(_TIMES)), found.values[:2], found.log_deviation.exp())
    posterior = MatchedPosterior(found.linear, found.chain, pseudo)

    def likelihood(x: Tensor) -> Tensor:
        return -0.5 * ((few - x) / _SEEN) ** 2 - math.log(_SEEN * math.sqrt(2 * math.pi))

    with torch.no_grad():
        rounds = torch.stack(
            [
                posterior.bound(lambda t, x: found.drift(x), likelihood, NoiseStream(40 + k, 0, 200))
                for k in range(10)
            ]
        )
        done = posterior.simulate(lambda t, x: found.drift(x), NoiseStream(9, 0, 2 * paths), steps=2000)
        even = torch.linspace(0, 2, 2001, dtype=_F64)
        times = torch.unique(torch.cat((_TIMES, even)))
        place = torch.searchsorted(times, _TIMES)
        x = done.measure.paths[:, place, 0].view(2, paths, -1)
        seen = -0.5 * ((few[:, None] - x) / _SEEN) ** 2 - math.log(_SEEN * math.sqrt(2 * math.pi))
        weights = (seen.sum(2).flatten() + done.initial_log_ratio + done.measure.log_ratio[:, -1]).view(2, -1)
    top = weights.amax(1, keepdim=True)
    relative = (weights - top).exp()
    evidence = relative.mean(1).log() + top[:, 0]
    error = torch.hypot(
        relative.std(1) / relative.mean(1) / math.sqrt(paths), rounds.std(0) / math.sqrt(len(rounds))
    )
    over = float(((rounds.mean(0) - evidence) / error).max())
    gap = ", ".join(f"{float(g):.2f}" for g in evidence - rounds.mean(0))
    yield within(f"H = {hurst}: bound above weighted evidence, standard errors", over, -1e9, 4, f"gaps {gap}")


SECTIONS: list[Section] = [linear_prior, variance]

SLOW: list[Section] = [cost, nonlinear_drift]

if __name__ == "__main__":
    raise SystemExit(main("fractional_matching", SECTIONS, SLOW))
