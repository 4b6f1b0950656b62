"""The stochastic Lorenz system: a latent equation trained with simulated paths and without."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from benchmarks.check import Figure, Section, at_most, reported
from inference.encoders import GRUEncoder
from inference.latent_dynamics import ControlledDynamics
from inference.latent_matching import LatentMatching, MarginalPosterior
from inference.latent_samplers import PriorSampler
from inference.latent_sde import ConstantDiffusion, LatentSDE
from inference.latent_training import LatentTraining, train_latent
from inference.likelihoods import Gaussian
from inference.sample_divergence import sample_divergence
from inference.series import Series
from inference.training import FitSettings
from sde import SDE, EulerMaruyama, NoiseStream, NoiseStructure, Purpose, solve
from sde.networks import perceptron
from sde.solvers import SRA1

__all__ = ["SECTIONS", "SLOW"]

_TIMES = torch.linspace(0, 1, 41)
_NOISE = 0.01  # deviation of the observations, in units of the data
_CHECKED = {0.25: 10, 0.5: 20, 0.75: 30, 1.0: 40}
_PUBLISHED = {  # with other estimators and networks: for orientation
    "latent SDE": (2.1, 1.8, 0.9, 1.5),
    "SDE matching": (4.3, 5.3, 3.4, 3.8),
    "neural stochastic flow": (0.8, 1.3, 0.6, 0.2),
}


def _lorenz(time: Tensor, state: Tensor) -> Tensor:
    """Drift of the Lorenz system."""
    x, y, z = state.unbind(1)
    return torch.stack((10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z), 1)


def _paths(noise: NoiseStream) -> Tensor:
    """True paths, shape ``(n, T, 3)``."""
    sde = SDE(_lorenz, lambda t, x: torch.full_like(x, 0.15), NoiseStructure.ADDITIVE)
    return solve(
        sde, noise.normals(3, purpose=Purpose.INITIAL_STATE), _TIMES, noise, substeps=10, solver=SRA1()
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Data:
    """Series for training and validation, and two samples of the truth to compare with."""

    train: Series
    validation: Series
    truth: Tensor
    again: Tensor

    @classmethod
    def draw(cls, count: int, compared: int) -> "_Data":
        """All of them with the noise of the observations, in units of the training data."""
        root = NoiseStream(0, 0, count)
        clean = _paths(root)
        centre, unit = clean.mean((0, 1)), clean.std((0, 1))

        def observed(noise: NoiseStream) -> Tensor:
            normals = noise.normals(len(_TIMES), purpose=Purpose.OBSERVATION, channels=3)
            return (_paths(noise) - centre) / unit + _NOISE * normals

        fresh = NoiseStream(0, 0, compared)
        return cls(
            Series(_TIMES, observed(root)),
            Series(_TIMES, observed(root.fork("validation")[:128])),
            observed(fresh.fork("truth")),
            observed(fresh.fork("again")),
        )


class _Products(nn.Module):
    """A drift of a dense network beside products of linear functions of the state."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = perceptron((3, 48, 48, 3), seed=1, zero_last=True)
        self.first, self.second = perceptron((3, 24), seed=4), perceptron((3, 24), seed=5)
        self.out = perceptron((27, 3), seed=6, zero_last=True)

    def forward(self, time: Tensor, state: Tensor) -> Tensor:
        """Drift, shape ``(n, 3)``."""
        products = self.first(state) * self.second(state)
        return self.dense(state) + self.out(torch.cat((products, state), -1))


def _model(*, free: bool) -> LatentSDE:
    """An equation in the coordinates of the observations, with all of it learned.

    Simulated paths train the chain of their own steps, which the prior then takes. Without simulation the
    drift is that of continuous time, which needs an accurate scheme when it is used.
    """
    return LatentSDE(
        drift=_Products(),
        diffusion=ConstantDiffusion(3, start=0.1),
        decoder=nn.Identity(),
        likelihood=Gaussian(3, deviation=0.05),
        encoder=GRUEncoder(3, seed=2),
        latent_dim=3,
        max_step=0.0051 if free else 0.0251,
        seed=0,
        width=96,
        solver=SRA1() if free else EulerMaruyama(),
    )


class _Count:
    """Rows that a network has been asked for."""

    def __init__(self, module: nn.Module) -> None:
        self.rows = 0
        self.handle = module.register_forward_hook(self)

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.rows += output.numel() // output.shape[-1]


def _train(name: str, data: _Data, iterations: int, batch: int) -> Iterator[Figure | LatentSDE]:
    """Train in one of the two ways; figures of its cost, and the equation at last."""
    free = name == "simulation-free"
    core = _model(free=free)
    trained: nn.Module = core
    at_once = 1  # instants of one call, which a hook under vmap does not see
    if free:
        at_once = 16
        trained = LatentMatching(core, MarginalPosterior(3, 3, seed=3, deviation=0.05), instants=at_once)
    noise = NoiseStream(1, 0, batch)
    counts = [_Count(core.drift), _Count(cast(ControlledDynamics, core.dynamics).control)]
    trained.elbo(data.train.select(slice(0, batch)), noise)  # type: ignore[operator]
    for count in counts:
        count.handle.remove()
    settings = LatentTraining(
        batch=batch,
        fit=FitSettings(iterations, rate=1e-2, clip=100.0, average=0.99, log_every=max(1, iterations // 10)),
    )
    done, history = train_latent(
        trained, data.train, seed=0, settings=settings, validation=data.validation, progress=False
    )
    detail = f"{iterations} steps of {batch} series"
    rows = [at_once * count.rows / batch for count in counts]
    yield reported(
        f"{name}: drift evaluations per series and step", rows[0], f"and {rows[1]:g} of the control"
    )
    yield reported(f"{name}: drift evaluations in all [million]", rows[0] * batch * iterations / 1e6, detail)
    yield reported(f"{name}: time of training [s]", history["seconds"][-1], detail)
    yield reported(f"{name}: validated bound of a series [nat]", -min(history["validation"]), "own kind")
    core = cast(LatentMatching, done).model if free else cast(LatentSDE, done)
    g = (core.diffusion(torch.zeros(()), torch.zeros(1, 3))[0]).tolist()
    yield reported(f"{name}: diffusion", max(g), "largest of three; true ones 0.010 to 0.017")
    yield core


def _divergences(samples: Tensor, data: _Data) -> list[float]:
    """The larger of the divergences in the two directions, at each of the four instants."""
    return [
        max(
            sample_divergence(data.truth[:, k], samples[:, k]),
            sample_divergence(samples[:, k], data.truth[:, k]),
        )
        for k in _CHECKED.values()
    ]


def _compare(data: _Data, iterations: dict[str, int], batch: int, limit: float) -> Iterator[Figure]:
    """Both ways of training on the same data, and the divergences of what they generate."""
    detail = f"5th neighbours of {len(data.truth)} samples, noise of observations in both, larger direction"
    for time, value in zip(_CHECKED, _divergences(data.again, data), strict=True):
        yield reported(f"floor: truth against truth, t = {time:g}: divergence [nat]", value, detail)
    for name, values in _PUBLISHED.items():
        for time, value in zip(_CHECKED, values, strict=True):
            yield reported(f"published: {name}, t = {time:g}: divergence", value, "another estimator")
    last = []
    for name, count in iterations.items():
        for found in _train(name, data, count, batch):
            if isinstance(found, Figure):
                yield found
                continue
            sampler = PriorSampler(found, _TIMES, 3)
            samples = sampler(torch.zeros(len(data.truth), 0), NoiseStream(9, 0, len(data.truth)))
            values = _divergences(samples, data)
            for time, value in zip(_CHECKED, values, strict=True):
                yield reported(f"{name}: t = {time:g}: divergence [nat]", value)
            last.append(values[-1])
    yield at_most("the better of the two: t = 1: divergence [nat]", min(last), limit)


def lorenz_learns(smoke: bool) -> Iterator[Figure]:
    """A minute of training; an untrained equation is further from the truth."""
    data = _Data.draw(256, 1000)
    start = PriorSampler(_model(free=False), _TIMES, 3)(torch.zeros(1000, 0), NoiseStream(9, 0, 1000))
    untrained = _divergences(start, data)[-1]
    yield reported("untrained: t = 1: divergence [nat]", untrained)
    counts = {"classic": 10, "simulation-free": 30} if smoke else {"classic": 100, "simulation-free": 250}
    yield from _compare(data, counts, 32, untrained)


def stochastic_lorenz(smoke: bool) -> Iterator[Figure]:
    """1024 series as in the literature; some ten minutes on one core."""
    data = _Data.draw(256 if smoke else 1024, 1000 if smoke else 5000)
    counts = {"classic": 10, "simulation-free": 10} if smoke else {"classic": 1500, "simulation-free": 1500}
    yield from _compare(data, counts, 32, math.inf if smoke else 1.5)


SECTIONS: list[Section] = [lorenz_learns]

SLOW: list[Section] = [stochastic_lorenz]
