"""Schroedinger bridges: closed forms, the max-min game, and bridges that are trained on samples."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from benchmarks.check import Figure, Section, at_most, main, reported
from inference import FitSettings, fit
from inference.bridges import (
    BridgeSettings,
    GaussianBridge,
    LearnedPath,
    MaxMin,
    coupled_samples,
    train_bridge,
)
from inference.interpolants import Entropic, FieldNetwork, independent
from inference.reference_problems import Mixture
from inference.samplers import ProbabilityDiffusion
from sde import SDE, solve
from sde.noise import NoiseStream

__all__ = ["SECTIONS", "SLOW"]

_F64 = torch.float64

#: Diffusivity; variance at 1/2 and action between N(0, 1/2) and N(0, 2); action of independent ends.
_LINE = (
    (0.5, 1.184017, 0.051997, 0.202253),
    (0.1, 1.127494, 0.371362, 0.712894),
    (2.0, 1.743034, 1.029817, 1.049833),
)


def _line(variance: float, mean: float = 0.0) -> Mixture:
    return Mixture.gaussian(torch.tensor([mean], dtype=_F64), torch.tensor([[variance]], dtype=_F64))


def gaussian_bridges(_: bool) -> Iterator[Figure]:
    """The closed form against reference numbers, and against the equation of its potential in the plane."""
    for eps, middle, action, separate in _LINE:
        bridge = GaussianBridge(_line(0.5), _line(2.0), eps)
        error = abs(bridge.law(torch.tensor(0.5)).covariance.item() - middle)
        yield at_most(f"bridge, eps = {eps:g}: error of the variance at 1/2", error, 1e-6, f"{middle}")
        yield at_most(f"bridge, eps = {eps:g}: error of the action", abs(bridge.action.item() - action), 1e-6)
        t = torch.linspace(0, 1, 20_001, dtype=_F64)
        variance = 0.5 * (1 - t) ** 2 + 2 * t**2 + 2 * eps * t * (1 - t)
        half_rate = -0.5 * (1 - t) + 2 * t + eps * (1 - 2 * t)
        found = torch.trapezoid((half_rate - eps) ** 2 / variance, t).item()
        yield at_most(f"independent ends, eps = {eps:g}: error of the action", abs(found - separate), 1e-6)
    first = Mixture.gaussian(torch.zeros(2).double(), torch.tensor([[2.0, 0.6], [0.6, 0.5]], dtype=_F64))
    second = Mixture.gaussian(torch.ones(2).double(), torch.tensor([[0.4, -0.3], [-0.3, 1.5]], dtype=_F64))
    bridge, eye = GaussianBridge(first, second, 0.3), torch.eye(2, dtype=_F64)

    def slope(t: float) -> Tensor:
        at = torch.tensor(t, dtype=_F64)
        return (bridge.drift(at, eye) - bridge.drift(at, 0 * eye)).T

    gap = max(
        (torch.linalg.inv(slope(t)) - torch.linalg.inv(slope(0.0)) - t * eye).abs().max().item()
        for t in (0.3, 1.0)
    )
    yield at_most("drift in the plane: error of Hamilton-Jacobi-Bellman's equation", gap, 1e-9)


def game(smoke: bool) -> Iterator[Figure]:
    """The max-min solver on the line: excess action and error of the variance of what it finds."""
    for eps, _, action, _ in _LINE[1:2] if smoke else _LINE:
        path, count = LearnedPath(eps, degree=2), 300 if smoke else 3000
        players = nn.ModuleDict(
            {"path": path, "drift": FieldNetwork(1, width=32, depth=2, seed=0, dtype=_F64)}
        )
        loss = MaxMin(independent(_line(0.5).sample, _line(2.0).sample), batch=512, seed=0)
        settings = FitSettings(iterations=count, rate=5e-3, average=0.995)
        trained, _ = fit(players, loss, settings=settings, identity={}, progress=False)
        found, error = _of_path(trained.get_submodule("path"), eps)
        yield at_most(
            f"max-min, eps = {eps:g}: excess of the action", found / action - 1, 0.01, f"{found:.6f}"
        )
        yield at_most(f"max-min, eps = {eps:g}: largest relative error of the variance", error, 0.01)


def _of_path(path: nn.Module, eps: float) -> tuple[float, float]:
    """Action of a path between N(0, 1/2) and N(0, 2), and its error of the variance."""
    t = torch.linspace(0, 1, 401, dtype=_F64)[:, None]
    one, zero = torch.ones_like(t), torch.zeros_like(t)
    base, target = path(t, one, zero), path(t, zero, one)
    variance = 0.5 * base.centre**2 + 2 * target.centre**2 + base.variance
    half_rate = 0.5 * base.centre * base.rate + 2 * target.centre * target.rate + base.half_rate
    action = torch.trapezoid(((half_rate - eps) ** 2 / variance)[:, 0], t[:, 0]).item()
    bridge = GaussianBridge(_line(0.5), _line(2.0), eps)
    exact = torch.stack([bridge.law(s).covariance[0, 0] for s in t[:, 0]])
    return action, (variance[:, 0] / exact - 1).abs().max().item()


def entropic_bridges(smoke: bool) -> Iterator[Figure]:
    """The coupling of large batches, and a bridge that is trained on it, on the line at eps = 1/2."""
    count, size = (2000, 500) if smoke else (32_000, 2000)
    base, target = (_line(c).sample(NoiseStream(k, 0, count)) for k, c in ((1, 0.5), (2, 2.0)))
    exact = GaussianBridge(_line(0.5), _line(2.0), 0.5)
    first, second = coupled_samples(base, target, Entropic(2.0, 40), size=size, seed=0)
    cross = (first * second).mean().item()
    detail = f"batches of {size}, sampling error {math.sqrt(1.38 / count) / 0.618:.4f}"
    yield at_most(
        "entropic coupling: relative error of the covariance of the ends",
        abs(cross / 0.618034 - 1),
        0.03,
        detail,
    )
    middle = 0.25 * (first.var() + second.var()).item() + 0.5 * cross + 0.25
    yield at_most(
        "entropic coupling: relative error of the variance at 1/2", abs(middle / 1.184017 - 1), 0.03
    )
    settings = BridgeSettings(
        batch=256,
        width=48,
        coupled=size,
        rounds=40,
        fit=FitSettings(iterations=100 if smoke else 2000, rate=5e-3, average=0.995),
    )
    few = 2000 if smoke else 8000
    bridge, _ = train_bridge(base[:few], target[:few], eps=0.5, seed=0, settings=settings, progress=False)
    noise, half = NoiseStream(3, 0, 20_000), torch.linspace(0, 0.5, 51, dtype=_F64)
    start, sampler = _line(0.5).sample(noise), ProbabilityDiffusion(0.5)
    found = sampler(bridge, start, half, noise).var().item()
    yield at_most("trained bridge: relative error of the variance at 1/2", abs(found / 1.184017 - 1), 0.03)
    ends = sampler(bridge, start, torch.linspace(0, 1, 101, dtype=_F64), noise)
    yield reported("trained bridge: variance at 1", ends.var().item(), "2 is exact")
    cross = ((start - start.mean()) * (ends - ends.mean())).mean().item()
    yield reported(
        "trained bridge: covariance of the ends", cross, f"{exact.cross_covariance.item():.4f} is exact"
    )


def bridge_of_models(smoke: bool) -> Iterator[Figure]:
    """Between two stochastic equations: an Ornstein-Uhlenbeck process and a double well, both at time 4."""
    count = 1000 if smoke else 6000
    grid = torch.linspace(0, 4, 81, dtype=_F64)
    linear = SDE(lambda t, x: -x, lambda t, x: torch.ones_like(x))
    well = SDE(lambda t, x: 2 * x * (1 - x**2), lambda t, x: 0.8 * torch.ones_like(x))
    samples = []
    for k, model in enumerate((linear, well)):
        noise = NoiseStream(10 + k, 0, 2 * count)
        samples.append(solve(model, noise.normals(1, dtype=_F64), grid, noise)[:, -1])
    (base, fresh), (target, held) = (part.split(count) for part in samples)
    settings = BridgeSettings(
        batch=256,
        coupled=2000,
        rounds=60,
        fit=FitSettings(iterations=100 if smoke else 2500, rate=4e-3, average=0.995),
    )
    bridge, _ = train_bridge(base, target, eps=0.25, seed=0, settings=settings, progress=False)
    noise, times = NoiseStream(12, 0, count), torch.linspace(0, 1, 101, dtype=_F64)
    sampler, floor = ProbabilityDiffusion(0.25), 1.36 * math.sqrt(2 / count)
    there = sampler(bridge, fresh, times, noise)
    back = sampler(bridge, held, times.flip(0), noise)
    detail = f"5% limit of two samples {floor:.3f}"
    yield reported("forward, to the double well: Kolmogorov's distance", _kolmogorov(there, held), detail)
    yield reported("backward, to the linear process: Kolmogorov's distance", _kolmogorov(back, fresh), detail)
    yield reported("without the bridge: distance of the two models", _kolmogorov(fresh, held))


def _kolmogorov(one: Tensor, other: Tensor) -> float:
    """Largest difference of two empirical distribution functions."""
    one, other = one.flatten().sort().values, other.flatten().sort().values
    at = torch.cat((one, other))
    gap = torch.searchsorted(one, at, right=True) / len(one) - torch.searchsorted(
        other, at, right=True
    ) / len(other)
    return gap.abs().max().item()


SECTIONS: list[Section] = [gaussian_bridges]

SLOW: list[Section] = [game, entropic_bridges, bridge_of_models]

if __name__ == "__main__":
    raise SystemExit(main("bridges", SECTIONS, SLOW))
