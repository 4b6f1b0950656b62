r"""A checkerboard from the standard normal law: flows and diffusions, interpolants, and other libraries.

The target is uniform on eight cells of side 2 in :math:`[-4, 4]^2`. The error of a sample is

.. math:: E_{x \sim \rho_1}\, |\log \rho_1^h(x) - \log \hat\rho^h(x)|, \qquad h = 0.15,

its mean and variance, with :math:`\rho^h` a density blurred by a normal kernel of deviation h: exactly for
the target, so that no bias of a kernel estimate enters, and for the model that of 20 000 points. What is left
for a sample of the target itself is the floor. Flows also have their cross-entropy gap
:math:`E_{\rho_1} \log(\rho_1 / \hat\rho)`, the divergence of the target from the model, from their own
density.

Every network has the same layers and sees the same number of points: 512 in an iteration, as 256 antithetic
pairs where a loss needs pairs. A two-sided interpolant has two networks, hence twice the training. A constant
diffusivity is cut to what a step can follow, the variance of the path's Gaussian part over the step.

References:
    Albergo, Boffi & Vanden-Eijnden (2023), Stochastic interpolants, section 7.1. arXiv:2303.08797
    Tong et al. (2024), Improving and generalizing flow-based generative models with minibatch optimal
    transport. arXiv:2302.00482
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from benchmarks.check import Figure, Section, main, reported
from inference import FitSettings, fit
from inference.checkerboard import Checkerboard
from inference.interpolants import (
    Interpolant,
    Kind,
    Matching,
    OneSided,
    Parabola,
    Prediction,
    SineSquared,
    TwoSided,
    independent,
)
from inference.interpolants.field_network import FieldNetwork
from inference.likelihood import flow_log_density
from inference.samplers import ProbabilityDiffusion, ProbabilityFlow, capped_diffusivity
from sde.equation import Coefficient
from sde.noise import NoiseStream, Purpose

__all__ = ["SLOW"]

_BOARD = Checkerboard()

_ITERATIONS, _BATCH, _STEPS, _POINTS = 4000, 512, 50, 20_000
_EPS = (0.0, 0.5, 1.0, 2.5)
_PATHS: dict[str, Interpolant] = {
    "one-sided": OneSided(),
    "gamma = sqrt(t (1 - t))": TwoSided(),
    "gamma = t (1 - t)": TwoSided(amplitude=Parabola()),
    "gamma = sin^2(pi t)": TwoSided(amplitude=SineSquared()),
}


def checkerboard(smoke: bool) -> Iterator[Figure]:
    """Log-density errors by interpolant and diffusivity."""
    sizes = _sizes(smoke)
    yield reported(
        "target's own sample: log-density error", *_error(_BOARD.sample(NoiseStream(8, 0, sizes.points)))
    )
    for name, path in _PATHS.items():
        kinds = (Kind.VELOCITY, Kind.NOISE)[: path.num_fields]
        fields, seconds = {}, 0.0
        for kind in kinds:
            pairs = independent(_normals, _BOARD.sample)
            paired_points = path.num_fields > 1
            loss = Matching(
                path, kind, pairs, batch=_BATCH // (1 + paired_points), seed=0, antithetic=paired_points
            )
            fields[kind], spent = _train(loss, sizes.iterations)
            seconds += spent
        yield from _rows(name, Prediction(path, fields), sizes, seconds, _EPS)


def checkerboard_elsewhere(smoke: bool) -> Iterator[Figure]:
    """The same network and number of points with flow matching written out, and with torchcfm."""
    sizes = _sizes(smoke)
    for name, loss in _others():
        if isinstance(loss, str):
            yield reported(f"{name}: log-density error", "skipped", loss)
            continue
        field, seconds = _train(loss, sizes.iterations)
        yield from _rows(name, Prediction(OneSided(), {Kind.VELOCITY: field}), sizes, seconds, (0.0,))


@dataclass(frozen=True, slots=True)
class _Sizes:
    iterations: int
    points: int  # that are generated
    held: int  # that the density of the flow is taken at


def _sizes(smoke: bool) -> _Sizes:
    """Small ones for a smoke test."""
    return _Sizes(30, 1000, 100) if smoke else _Sizes(_ITERATIONS, _POINTS, 1000)


Loss = Callable[[Coefficient, int], Tensor]


def _train(loss: Loss, iterations: int) -> tuple[Coefficient, float]:
    """A field with the layers that all have, and the seconds of processor time."""
    network = FieldNetwork(2, width=128, depth=3, point_frequencies=(0.5, 1.0, 2.0, 4.0), seed=0)
    began = time.process_time()
    trained, _ = fit(
        network,
        loss,
        settings=FitSettings(iterations, rate=4e-3),
        identity={},
        progress=False,
    )
    return trained, time.process_time() - began


def _rows(
    name: str, prediction: Prediction, sizes: _Sizes, seconds: float, diffusivities: tuple[float, ...]
) -> Iterator[Figure]:
    """Errors of the flow and of diffusions."""
    noise, times = NoiseStream(9, 0, sizes.points), torch.linspace(0, 1, _STEPS + 1)
    for eps in diffusivities:
        rate = capped_diffusivity(prediction.interpolant, eps, 1 / _STEPS)
        sampler = ProbabilityDiffusion(rate) if eps else ProbabilityFlow()
        began = time.process_time()
        points = sampler(prediction, _normals(noise), times, noise)
        error, detail = _error(points)
        spent = f"trained in {seconds:.0f} s, sampled in {time.process_time() - began:.0f} s"
        yield reported(f"{name}, eps = {eps:g}: log-density error", error, f"{detail}; {spent}")
    held = _BOARD.sample(NoiseStream(10, 0, sizes.held))
    base = lambda x: -0.5 * x.square().sum(-1) - math.log(2 * math.pi)  # noqa: E731
    gaps = -math.log(32) - flow_log_density(prediction, held, base, times).value
    error = gaps.std().item() / math.sqrt(len(gaps))
    yield reported(f"{name}, flow: cross-entropy gap", gaps.mean().item(), f"standard error {error:.3f} nats")


def _normals(noise: NoiseStream) -> Tensor:
    """Points of the base."""
    return noise.normals(2, purpose=Purpose.TRAINING)


def _others() -> Iterator[tuple[str, Loss | str]]:
    """Losses of other codes: plain flow matching written out, and torchcfm's matchers."""

    def plain(field: Coefficient, iteration: int) -> Tensor:
        noise = NoiseStream(0, iteration * _BATCH, (iteration + 1) * _BATCH)
        start, end = _normals(noise.fork("base")), _BOARD.sample(noise.fork("target"))
        t = noise.fork("time").uniforms(1, purpose=Purpose.TRAINING)
        return (field(t, (1 - t) * start + t * end) - (end - start)).square().sum(1).mean()

    yield "plain flow matching", plain
    try:
        from torchcfm import conditional_flow_matching as cfm
    except ImportError:
        yield "torchcfm", "torchcfm is not installed"
        return
    matchers = {
        "torchcfm, independent": cfm.ConditionalFlowMatcher(sigma=0.0),
        "torchcfm, exact optimal transport": cfm.ExactOptimalTransportConditionalFlowMatcher(sigma=0.0),
        "torchcfm, Schroedinger bridge": cfm.SchrodingerBridgeConditionalFlowMatcher(
            sigma=0.5, ot_method="exact"
        ),
    }
    for name, matcher in matchers.items():
        yield name, _external(matcher)


def _external(matcher) -> Loss:  # noqa: ANN001
    """Its points, its velocities, and the squared error."""

    def loss(field: Coefficient, iteration: int) -> Tensor:
        noise = NoiseStream(0, iteration * _BATCH, (iteration + 1) * _BATCH)
        start, end = _normals(noise.fork("base")), _BOARD.sample(noise.fork("target"))
        with torch.random.fork_rng(devices=[]):  # it draws from the global generators of torch and NumPy
            torch.manual_seed(iteration)
            np.random.seed(iteration)  # noqa: NPY002
            t, points, velocities = matcher.sample_location_and_conditional_flow(start, end)
        return (field(t[:, None], points) - velocities).square().sum(1).mean()

    return loss


def _error(points: Tensor) -> tuple[float, str]:
    """Mean of the error, and its variance and the share of points outside the board's cells."""
    errors = _BOARD.errors(points, _BOARD.sample(NoiseStream(7, 0, 20_000)))
    outside = 1 - _BOARD.contains(points).float().mean().item()
    return errors.mean().item(), f"variance {errors.var().item():.3g}; {outside:.3f} outside"


SLOW: list[Section] = [checkerboard, checkerboard_elsewhere]  # run by --slow

if __name__ == "__main__":
    raise SystemExit(main("checkerboard", SLOW))
