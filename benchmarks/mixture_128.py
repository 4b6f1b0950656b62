r"""A mixture in 128 dimensions: which fields are learned, and how they are sampled.

From the standard normal law to five Gaussians with means :math:`m_i \sim N(0, 7.5^2)` and covariances
:math:`W_i^T W_i / d + 1`, along straight lines with :math:`\gamma = \sqrt{t(1 - t)}`. The divergence is

.. math:: \mathrm{KL}(f \,\|\, g), \qquad f, g \text{ kernel densities (Scott's bandwidth) of two coordinates}

of 5000 points of the target and of the model, by points drawn from f itself and the integrand
:math:`\log(f/g) + g/f - 1`, which has the same mean as the logarithm and is never negative. Its floor is that
of other samples of the target.

References:
    Albergo, Boffi & Vanden-Eijnden (2023), Stochastic interpolants, section 7.2. arXiv:2303.08797
"""

import time
from collections.abc import Iterator
from itertools import product

import numpy as np
import torch
from scipy.stats import gaussian_kde
from torch import Tensor, nn

from benchmarks.check import Figure, Section, main, reported
from inference import FitSettings, fit
from inference.interpolants import Kind, Matching, Prediction, TwoSided
from inference.interpolants.field_network import FieldNetwork
from inference.reference_problems import Mixture, MixtureProblem
from inference.samplers import ProbabilityDiffusion, ProbabilityFlow, capped_diffusivity
from sde.equation import Coefficient
from sde.noise import NoiseStream, Purpose

__all__ = ["SECTIONS", "SLOW"]

_DIM, _MODES, _SPREAD = 128, 5, 7.5
_PATH = TwoSided()
_POINTS, _POOL = 5000, 50_000
_EPS = (0.0, 0.5, 1.0, 2.5)
_ITERATIONS = 2500


def law(dtype: torch.dtype = torch.float32) -> Mixture:
    """The target."""
    noise = NoiseStream(1, 0, _MODES)
    means = _SPREAD * noise.normals(_DIM, dtype=torch.float64)
    factors = noise.fork("factors").normals(_DIM * _DIM, dtype=torch.float64).view(_MODES, _DIM, _DIM)
    covariances = factors.transpose(1, 2) @ factors / _DIM + torch.eye(_DIM, dtype=torch.float64)
    weights = torch.full((_MODES,), 1 / _MODES, dtype=torch.float64)
    return Mixture(weights.to(dtype), means.to(dtype), covariances.to(dtype))


def mixture_128_exact(smoke: bool) -> Iterator[Figure]:
    """The floor, and samplers with the exact fields."""
    target, count = law(), 500 if smoke else _POINTS
    measure = _Divergence(target, count)
    spread = f"{min(measure.floors):.4f} to {max(measure.floors):.4f} over 4 samples of the target"
    yield reported("divergence, floor", measure.floor, spread)
    exact = MixtureProblem(_PATH, Mixture.standard(_DIM, dtype=torch.float32), target).prediction()
    for eps in (0.0, 1.0):
        points, seconds = _sample(exact, eps, count, 10 if smoke else 100)
        yield _row("exact fields", eps, points, seconds, measure)


def mixture_128(smoke: bool) -> Iterator[Figure]:
    """Learned velocity or transport, with learned score or denoiser, by flow and diffusions."""
    target, count = law(), 500 if smoke else _POINTS
    measure = _Divergence(target, count)
    fields: dict[Kind, Coefficient] = {}
    for kind in (Kind.VELOCITY, Kind.TRANSPORT, Kind.NOISE, Kind.SCORE):
        fields[kind], seconds = _train(kind, target, 20 if smoke else _ITERATIONS)
        yield reported(
            f"{kind.value}: excess of its loss over the floor", *_excess(kind, fields[kind], target, seconds)
        )
    for first, second in product((Kind.VELOCITY, Kind.TRANSPORT), (Kind.NOISE, Kind.SCORE)):
        prediction = Prediction(_PATH, {first: fields[first], second: fields[second]})
        for eps in _EPS:
            points, seconds = _sample(prediction, eps, count, 10 if smoke else 100)
            yield _row(f"{first.value} and {second.value}", eps, points, seconds, measure)


class _Scaled(nn.Module):
    """A network in units of the interpolant: its points have deviation near one at every time."""

    def __init__(self, kind: Kind) -> None:
        super().__init__()
        self.network = FieldNetwork(_DIM, width=256, depth=3, seed=0)
        self.unit = _SPREAD if kind in (Kind.VELOCITY, Kind.TRANSPORT) else 1.0

    def forward(self, t: Tensor, points: Tensor) -> Tensor:
        """As :class:`FieldNetwork`."""
        size = (1 - t + (_SPREAD * t) ** 2 + t).sqrt()
        return self.unit * self.network(t, points / size)


def _train(kind: Kind, target: Mixture, iterations: int) -> tuple[Coefficient, float]:
    """A field learned from a pool of points, and the seconds of processor time."""
    pool = target.sample(NoiseStream(2, 0, _POOL))

    def pairs(noise: NoiseStream) -> tuple[Tensor, Tensor]:
        uniforms = noise.fork("rows").uniforms(1, purpose=Purpose.TRAINING, dtype=torch.float64)[:, 0]
        return noise.fork("base").normals(_DIM, purpose=Purpose.TRAINING), pool[(uniforms * _POOL).long()]

    loss = Matching(_PATH, kind, pairs, batch=256, seed=0)
    began = time.process_time()
    network, _ = fit(
        _Scaled(kind),
        loss,
        settings=FitSettings(iterations, rate=2e-3),
        identity={},
        progress=False,
    )
    return network, time.process_time() - began


def _excess(kind: Kind, field: Coefficient, target: Mixture, seconds: float) -> tuple[float, str]:
    """Loss above that of the exact field at the same fresh points, and its standard error."""
    exact = MixtureProblem(_PATH, Mixture.standard(_DIM, dtype=torch.float32), target)
    pairs = lambda noise: (noise.fork("base").normals(_DIM), target.sample(noise))  # noqa: E731
    loss, fresh = Matching(_PATH, kind, pairs, batch=1, seed=0), NoiseStream(99, 0, 1000)
    excess = loss.losses(field, fresh) - loss.losses(exact.field(kind), fresh)
    error = excess.std().item() / len(excess) ** 0.5
    return excess.mean().item(), f"standard error {error:.1e}; trained in {seconds:.0f} s"


def _sample(prediction: Prediction, eps: float, count: int, steps: int) -> tuple[Tensor, float]:
    """Points of the flow, or of a diffusion, and the seconds of processor time."""
    noise = NoiseStream(11, 0, count)
    times = torch.linspace(0, 1, steps + 1) ** 1.5  # the modes are chosen early
    rate = capped_diffusivity(_PATH, eps, float(times.diff().max()))
    sampler = ProbabilityDiffusion(rate) if eps else ProbabilityFlow()
    began = time.process_time()
    with torch.no_grad():
        points = sampler(prediction, noise.normals(_DIM), times, noise)
    return points, time.process_time() - began


def _row(name: str, eps: float, points: Tensor, seconds: float, measure: "_Divergence") -> Figure:
    """The divergence of a sample, and how often it visits each mode."""
    share = torch.bincount(torch.cdist(points, measure.target.means).argmin(1), minlength=_MODES) / len(
        points
    )
    gap = (share - 1 / _MODES).abs().max().item()
    detail = f"floor {measure.floor:.4f}; worst frequency of a mode off by {gap:.3f}; {seconds:.0f} s"
    return reported(f"{name}, eps = {eps:g}: divergence", measure(points), detail)


class _Divergence:
    """The divergence of a sample from a sample of the target, by kernel densities of two coordinates."""

    def __init__(self, target: Mixture, count: int) -> None:
        self.target = target
        first = target.sample(NoiseStream(5, 0, count))[:, :2].double().numpy()
        self.density = gaussian_kde(first.T)
        kernel = NoiseStream(6, 0, count).normals(2, dtype=torch.float64).numpy()
        self.points = (first + kernel @ np.linalg.cholesky(self.density.covariance).T).T
        self.values = self.density(self.points)
        self.floors = [self(target.sample(NoiseStream(20 + k, 0, count))) for k in range(4)]
        self.floor = float(np.mean(self.floors))

    def __call__(self, points: Tensor) -> float:
        ratio = gaussian_kde(points[:, :2].double().numpy().T)(self.points) / self.values
        return float(np.mean(ratio - 1 - np.log(np.maximum(ratio, 1e-300))))


SECTIONS: list[Section] = [mixture_128_exact]

SLOW: list[Section] = [mixture_128]  # run by --slow

if __name__ == "__main__":
    raise SystemExit(main("mixture_128", SECTIONS, SLOW))
