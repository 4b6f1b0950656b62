"""Guidance, and gradients through samplers."""

import pytest
import torch
from torch import Tensor

from inference.interpolants import Kind, OneSided, Prediction, Trigonometric
from inference.reference_problems import Mixture, MixtureProblem
from inference.samplers import (
    DPMSolver,
    ProbabilityDiffusion,
    ProbabilityFlow,
    Sampler,
    flow_equation,
    guided,
)
from sde.gradients import Backprop
from sde.networks import perceptron
from sde.noise import NoiseStream
from sde.solve import solve
from sde.solvers import Heun
from tests.names import label

F64 = torch.float64
GRID = torch.linspace(0, 1, 201, dtype=F64)


def gaussian(mean: float, variance: float) -> Prediction:
    law = Mixture.gaussian(torch.tensor([mean], dtype=F64), torch.tensor([[variance]], dtype=F64))
    return MixtureProblem(OneSided(), Mixture.standard(1), law).prediction()


@pytest.mark.parametrize("kind", [Kind.VELOCITY, Kind.SCORE, Kind.TARGET])
def test_guidance_is_the_same_mixture_for_every_kind(kind: Kind) -> None:
    t, x = torch.tensor(0.4, dtype=F64), torch.tensor([[0.3], [-1.0]], dtype=F64)
    first, second = gaussian(2, 0.25), gaussian(0, 1)
    expected = second.to(kind)(t, x) + 2.5 * (first.to(kind)(t, x) - second.to(kind)(t, x))
    torch.testing.assert_close(guided(first, second, 2.5).to(kind)(t, x), expected, rtol=1e-10, atol=1e-10)


def test_guidance_does_not_sample_the_tilted_law() -> None:
    """N(2, 1/4) against N(0, 1), weight 2: the tilt has mean 16/7 and variance 1/7, the samples do not."""
    start = torch.tensor([[-1.0], [0.0], [1.0]], dtype=F64)
    flow = ProbabilityFlow()
    same = flow(guided(gaussian(2, 0.25), gaussian(0, 1), 1.0), start, GRID, NoiseStream(0, 0, 3))
    torch.testing.assert_close(same, 2 + 0.5 * start, rtol=0, atol=1e-4)
    ends = flow(guided(gaussian(2, 0.25), gaussian(0, 1), 2.0), start, GRID, NoiseStream(0, 0, 3))
    mean, deviation = ends[1].item(), (ends[2] - ends[0]).item() / 2
    assert mean > 2
    assert deviation < 0.5
    assert max(abs(mean - 16 / 7), abs(deviation**2 - 1 / 7)) > 0.05


def test_guidance_refuses_another_interpolant() -> None:
    other = Prediction(OneSided(Trigonometric()), {Kind.TARGET: lambda t, x: x})
    with pytest.raises(ValueError, match=r"`unconditional` must predict OneSided\(schedule=Linear"):
        guided(gaussian(0, 1), other, 2.0)


def network_and_prediction() -> tuple[torch.nn.Sequential, Prediction]:
    layers = perceptron((3, 16, 2), seed=0, dtype=F64)
    field = lambda t, x: layers(torch.cat((t.expand(len(x), 1), x), 1))  # noqa: E731
    return layers, Prediction(OneSided(), {Kind.TARGET: field})


SAMPLERS: list[Sampler] = [
    ProbabilityFlow(),
    ProbabilityDiffusion(0.2),
    DPMSolver(3),
    DPMSolver(2, Kind.NOISE, False),
]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=label)
def test_gradient_through_a_sampler_is_that_of_differences(sampler: Sampler) -> None:
    layers, prediction = network_and_prediction()
    noise, times = NoiseStream(1, 0, 6), torch.linspace(0.05, 0.9, 9, dtype=F64)
    start, weight = noise.normals(2, dtype=F64), next(layers.parameters())

    def objective() -> Tensor:
        return sampler(prediction, start, times, noise).square().mean()

    (gradient,) = torch.autograd.grad(objective(), weight)
    direction = NoiseStream(2, 0, len(weight)).normals(weight.shape[1], dtype=F64)
    with torch.no_grad():
        weight += 1e-5 * direction
        ahead = objective()
        weight -= 2e-5 * direction
        behind = objective()
    slope = ((ahead - behind) / 2e-5).item()
    assert (gradient * direction).sum().item() == pytest.approx(slope, rel=1e-7)


def test_checkpointed_gradient_is_that_of_the_whole_graph() -> None:
    layers, prediction = network_and_prediction()
    start = NoiseStream(3, 0, 6).normals(2, dtype=F64)
    parameters = tuple(layers.parameters())
    flow = flow_equation(prediction)
    grid = torch.linspace(0, 0.9, 33, dtype=F64)
    whole = solve(flow, start, grid, None, solver=Heun(), gradient=Backprop())[:, -1].square().sum()
    thrifty = ProbabilityFlow()(prediction, start, grid, NoiseStream(3, 0, 6)).square().sum()
    for a, b in zip(
        torch.autograd.grad(whole, parameters), torch.autograd.grad(thrifty, parameters), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
