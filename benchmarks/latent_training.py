"""Training of latent equations: killed and resumed, beside torchsde, without simulation, in 16 bits."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import import_module
from statistics import median
from typing import cast

import torch
from torch import Tensor, nn

from benchmarks.check import Figure, Section, at_least, at_most, reported
from benchmarks.linear_inference import OU, LongCurve, simulated, simulation_free, trained
from benchmarks.training import killed
from inference.elbo import gaussian_divergence
from inference.latent_dynamics import ControlledDynamics
from inference.latent_sde import LatentSDE, latent_sde
from inference.precision import Precision
from inference.series import Series
from inference.training import FitSettings, fit
from sde import SDE, NoiseStream, NoiseStructure, Purpose, solve
from sde.gradients import Backprop, Checkpointed

__all__ = ["SECTIONS", "SLOW"]

original = import_module("torchsde")  # a module of this package has its name

_STEPS = 40
_TIMES = torch.linspace(0, 1, _STEPS + 1)
_BATCH = 32

Objective = Callable[[LatentSDE, Series, NoiseStream], Tensor]
"""Model, a batch of series and one sample for each, to the negative bound of a series."""


def killed_latent_training(smoke: bool) -> Iterator[Figure]:
    """A latent equation whose training is killed at random times."""
    yield from killed("latent SDE", 2 if smoke else 6)


def _lorenz(time: Tensor, state: Tensor) -> Tensor:
    x, y, z = state.unbind(1)
    return torch.stack((10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z), 1)


def _data(noise: NoiseStream) -> Series:
    """The stochastic Lorenz system in standard units, observed with noise of 0.05 at 41 instants."""
    sde = SDE(_lorenz, lambda t, x: torch.full_like(x, 0.15), NoiseStructure.ADDITIVE)
    states = solve(sde, noise.normals(3, purpose=Purpose.INITIAL_STATE), _TIMES, noise, substeps=10)
    values = (states - torch.tensor([0.0, 0.0, 11.0])) / torch.tensor([7.4, 8.8, 9.3])
    return Series(
        _TIMES,
        values + 0.05 * noise.normals(len(_TIMES), purpose=Purpose.OBSERVATION, channels=3),
    )


def _model(seed: int) -> LatentSDE:
    return latent_sde(3, 4, max_step=1 / _STEPS, seed=seed, width=64)


def _own(model: LatentSDE, series: Series, noise: NoiseStream) -> Tensor:
    """The bound of this library."""
    return -model.elbo(series, noise).elbo.mean()


def _dynamics(model: LatentSDE) -> ControlledDynamics:
    """What a model without fractional noise is made of."""
    return cast(ControlledDynamics, model.dynamics)


class _AsTorchsde(nn.Module):
    """The equations of a latent model with torchsde's names: posterior ``f``, prior ``h``, shared ``g``."""

    noise_type, sde_type = "diagonal", "ito"

    def __init__(self, model: LatentSDE, context: Tensor, times: Tensor) -> None:
        super().__init__()
        self.model, self.control = model, _dynamics(model).controlled(context, times)
        self.held: tuple[Tensor, Tensor, Tensor] | None = None

    def _shared(self, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Prior drift and diffusion, once for the three that ask at the same state."""
        if self.held is None or self.held[0] is not y:
            self.held = (y, self.model.drift(t, y), self.model.diffusion(t, y).expand_as(y))
        return self.held[1:]

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        """Posterior drift."""
        drift, diffusion = self._shared(t, y)
        return drift + diffusion * self.control(t, y)

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        """Diffusion."""
        return self._shared(t, y)[1]

    def h(self, t: Tensor, y: Tensor) -> Tensor:
        """Prior drift."""
        return self._shared(t, y)[0]


class _EachAlone(_AsTorchsde):
    """The same without the memory, whose graph the adjoint would run through twice."""

    def _shared(self, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return self.model.drift(t, y), self.model.diffusion(t, y).expand_as(y)


def _torchsde(model: LatentSDE, series: Series, noise: NoiseStream, *, adjoint: bool = False) -> Tensor:
    """The bound by torchsde's route for latent equations."""
    context = model.encoder(series)
    mean, deviation = _dynamics(model).recognise(context)
    start = _dynamics(model).initial_state(mean + deviation * model.codes(noise))
    size = (len(start), start.shape[1] + 1)  # a channel more, for the divergence
    entropy = noise.fork(str(noise.start)).seed
    bm = original.BrownianInterval(0.0, 1.0, size, entropy=entropy, dt=1 / _STEPS)
    options = {"bm": bm, "method": "euler", "dt": 1 / _STEPS, "logqp": True}
    if adjoint:
        equation = _EachAlone(model, context, series.times)
        options |= {"adjoint_params": (context, *model.parameters())}
        states, ratios = original.sdeint_adjoint(equation, start, series.times, **options)
    else:
        equation = _AsTorchsde(model, context, series.times)
        states, ratios = original.sdeint(equation, start, series.times, **options)
    divergence = gaussian_divergence(mean, deviation, torch.zeros_like(mean), torch.ones_like(mean))
    return -(model.log_likelihood(states.transpose(0, 1), series) - ratios.sum(0) - divergence).mean()


def _adjoint(model: LatentSDE, series: Series, noise: NoiseStream) -> Tensor:
    return _torchsde(model, series, noise, adjoint=True)


def _train(objective: Objective, data: Series, settings: FitSettings, seed: int) -> tuple[LatentSDE, float]:
    """Train a fresh model; the same weights, batches and settings whatever the objective; seconds a step."""

    def loss(model: nn.Module, iteration: int) -> Tensor:
        noise = NoiseStream(seed, iteration * _BATCH, (iteration + 1) * _BATCH)
        rows = (noise.fork("rows").uniforms(1)[:, 0] * len(data)).long()
        assert isinstance(model, LatentSDE)  # what is handed to fit below
        return objective(model, data.select(rows), noise)

    model, history = fit(_model(seed), loss, settings=settings, identity={}, progress=False)
    assert isinstance(model, LatentSDE)  # its average
    return model, history["seconds"][-1] / settings.iterations


def _bound(model: LatentSDE, data: Series) -> float:
    """The bound of a series, by the same evaluator for every model."""
    paths = 16
    noise = NoiseStream(99, 0, paths * len(data))
    with torch.no_grad():
        return float(model.elbo(data, noise, paths=paths).elbo.mean())


def beside_torchsde(smoke: bool) -> Iterator[Figure]:
    """The stochastic Lorenz system: bounds after the same training, and the time of a training step."""
    seeds, iterations = (2, 10) if smoke else (4, 250)
    settings = FitSettings(iterations, rate=5e-3, clip=100.0, average=0.98)
    data, test = _data(NoiseStream(0, 0, 256)), _data(NoiseStream(1, 0, 128))
    found: dict[str, list[tuple[float, float]]] = {"this library": [], "torchsde": []}
    objectives = {"this library": _own, "torchsde": _torchsde}
    for seed in range(seeds):
        for name, objective in objectives.items():
            model, seconds = _train(objective, data, settings, seed)
            found[name].append((_bound(model, test), seconds))
    for name, rows in found.items():
        bounds = torch.tensor([row[0] for row in rows])
        detail = f"{bounds.std():.3g} between {seeds} seeds; {iterations} iterations of {_BATCH} series"
        yield reported(f"{name}: bound of a test series [nat]", float(bounds.mean()), detail)
    gaps = torch.tensor([own[0] - other[0] for own, other in zip(*found.values(), strict=True)])
    error = float(gaps.std()) / math.sqrt(seeds)
    detail = f"standard error over seeds {error:.3g}"
    yield at_least("bound less that of torchsde [nat]", float(gaps.mean()), -3 * error, detail)
    yield from _step_times(data, 3 if smoke else 21)


def _step_times(data: Series, repetitions: int) -> Iterator[Figure]:
    """Medians of the time of a loss and its gradient; the runs alternate."""
    model, batch = _model(0), data.select(slice(_BATCH))
    checkpointed = _model(0)
    _dynamics(model).gradient, _dynamics(checkpointed).gradient = Backprop(), Checkpointed()
    ways: dict[str, Callable[[NoiseStream], Tensor]] = {
        "this library": lambda noise: _own(model, batch, noise),
        "this library, checkpointed": lambda noise: _own(checkpointed, batch, noise),
        "torchsde": lambda noise: _torchsde(model, batch, noise),
        "torchsde, adjoint": lambda noise: _adjoint(model, batch, noise),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for k in range(repetitions):
        for name, way in ways.items():
            seconds[name].append(_seconds(lambda way=way, k=k: way(NoiseStream(k, 0, _BATCH)).backward()))
    middle = {name: median(values[1:]) for name, values in seconds.items()}
    for name, value in middle.items():
        detail = f"{_STEPS} steps, {_BATCH} paths, median of {repetitions - 1}"
        yield reported(f"{name}: loss and gradient [ms]", 1e3 * value, detail)
    ratio = middle["torchsde"] / middle["this library"]
    yield reported("time of torchsde over that of this library", ratio)


def _seconds(call: Callable[[], object]) -> float:
    """Wall time of a call."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def linear_evidence(smoke: bool) -> Iterator[Figure]:
    """An Ornstein--Uhlenbeck process seen with noise: both trainings of one family, and the exact evidence.

    The family of posteriors holds the exact one. Its bounds are computed by quadrature, in continuous time.
    """
    problem, iterations = OU.drawn(), 20 if smoke else 300
    exact = problem.log_evidence()
    yield reported("exact log evidence [nat]", exact, f"{len(problem.times)} observations")
    before = problem.bound(problem.start())
    yield at_least("gap before training [nat]", exact - before, 0.5, "or there is nothing to learn")
    for name, loss in (("simulation-free", simulation_free), ("simulated, 100 steps", simulated)):
        posterior, seconds = trained(problem, loss, iterations)
        gap = exact - problem.bound(posterior)
        detail = f"{iterations} iterations in {seconds:.0f} s"
        yield at_most(f"{name}: gap to the evidence [nat]", gap, 0.05, detail)
        yield at_least(f"{name}: the same, not above it", gap, -1e-6)


def time_of_a_step(smoke: bool) -> Iterator[Figure]:
    """Longer and longer series, observed every tenth step: time of a loss and its gradient."""
    counts = (100, 300) if smoke else (100, 1000, 10_000)
    free: dict[int, list[float]] = {count: [] for count in counts}
    curves = {count: LongCurve(count) for count in counts}
    for repetition in range(41):
        for count, curve in curves.items():
            noise = NoiseStream(repetition, 0, 32)
            free[count].append(_seconds(lambda curve=curve, noise=noise: curve.free(noise).backward()))
    medians = {count: median(values[1:]) for count, values in free.items()}
    classic = {count: _classic(curve, 1 if count > 1000 else 3) for count, curve in curves.items()}
    for count in counts:
        detail = "32 samples at 16 instants, median of 40"
        yield reported(f"{count} steps: simulation-free [ms]", 1e3 * medians[count], detail)
        yield reported(f"{count} steps: simulated [ms]", 1e3 * classic[count], "32 paths")
    low, high = counts[0], counts[-1]
    label = f"time at {high} over that at {low} steps"
    yield at_most(f"simulation-free: {label}", medians[high] / medians[low], 1.25)
    yield reported(f"simulated: {label}", classic[high] / classic[low])


def _classic(curve: LongCurve, runs: int) -> float:
    """Median time of a simulated loss and its gradient."""
    noise = NoiseStream(0, 0, 32)
    return median(_seconds(lambda: curve.simulated(noise).backward()) for _ in range(runs))


def mixed_precision(smoke: bool) -> Iterator[Figure]:
    """The same training with products in bfloat16 on the CPU."""
    data, test = _data(NoiseStream(0, 0, 256)), _data(NoiseStream(1, 0, 128))
    settings = FitSettings(5 if smoke else 200, rate=5e-3, clip=100.0, average=0.98)
    found = {}
    for precision in (Precision.FULL, Precision.BFLOAT16):
        model, seconds = _train(_own, data, replace(settings, precision=precision), 0)
        found[precision] = _bound(model, test)
        yield reported(
            f"{precision.value}: bound of a test series [nat]",
            found[precision],
            f"{settings.iterations} iterations, {1e3 * seconds:.0f} ms each",
        )
    start = _bound(_model(0), test)
    gained = [value - start for value in found.values()]
    yield reported("bfloat16: share of the gain of full precision", gained[1] / gained[0])


SECTIONS: list[Section] = [killed_latent_training, linear_evidence, time_of_a_step, mixed_precision]
SLOW: list[Section] = [beside_torchsde]
