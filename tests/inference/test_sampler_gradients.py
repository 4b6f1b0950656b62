"""Gradients through samplers: the rescaled flow, its continuous adjoint and its exact discrete one."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from inference.interpolants import Diffusion, Kind, OneSided, Prediction, TwoSided
from inference.reference_problems import Mixture, MixtureProblem
from inference.samplers import log_snr_times
from inference.samplers.rescaled import RescaledFlow
from sde.equation import SDE, ode
from sde.gradients import Adjoint, Backprop, Checkpointed, Gradient, Symplectic
from sde.networks import perceptron
from sde.noise import NoiseStream
from sde.solve import solve
from sde.solvers import Heun
from sde.solvers.classical import RungeKutta4
from tests.names import label

F64 = torch.float64


class Problem:
    """A small network of the noise, given a condition, and the gradient of a functional of its sampler."""

    def __init__(self) -> None:
        self.layers = perceptron((4, 16, 2), seed=0, activation=nn.Tanh(), dtype=F64)
        with torch.no_grad():
            for name, parameter in self.layers.named_parameters():
                parameter.div_(
                    6**0.5 if name.endswith("weight") else 1
                )  # uniform on +-1 / sqrt(k), as is common
        self.condition = torch.tensor([0.3], dtype=F64, requires_grad=True)
        self.start = NoiseStream(1, 0, 6).normals(2, dtype=F64).requires_grad_()
        self.inputs = (self.start, self.condition, *self.layers.parameters())
        self.prediction = Prediction(OneSided(Diffusion()), {Kind.NOISE: self.network})

    def network(self, t: Tensor, x: Tensor) -> Tensor:
        return self.layers(torch.cat((t.expand(len(x), 1), x, self.condition.expand(len(x), 1)), 1))

    def gradient(self, way: Gradient, steps: int) -> Tensor:
        """Of the mean of a functional of the ends, in all inputs, flat."""
        times = log_snr_times(Diffusion(), steps, first=0.0, last=1 - 1e-3)
        sampler = RescaledFlow(gradient=way, parameters=self.inputs[1:])
        ends = sampler(self.prediction, self.start, times, NoiseStream(0, 0, 6))
        bars = torch.autograd.grad((ends.sin() + ends**2).sum(), self.inputs)
        assert all(bar.abs().max() > 0 for bar in bars)
        return torch.cat([bar.flatten() for bar in bars])


def test_adjoint_has_the_order_of_the_scheme() -> None:
    problem, sizes = Problem(), (10, 20, 40, 80, 160)
    errors = []
    for steps in sizes:
        exact = problem.gradient(Backprop(), steps)
        errors.append(((problem.gradient(Adjoint(), steps) - exact).norm() / exact.norm()).item())
    assert -np.polyfit(np.log(sizes), np.log(errors), 1)[0] >= 3.7
    assert errors[2] < 1e-6


@pytest.mark.parametrize("way", [Symplectic(), Checkpointed(), Checkpointed(3)], ids=label)
@pytest.mark.parametrize("steps", [1, 2, 7, 40])
def test_discrete_gradients_are_those_of_the_whole_graph(way: Gradient, steps: int) -> None:
    problem = Problem()
    exact, found = problem.gradient(Backprop(), steps), problem.gradient(way, steps)
    assert (found - exact).norm() < 1e-12 * exact.norm()


def test_symplectic_gradient_of_all_instants_and_their_times() -> None:
    theta = torch.tensor([0.7, 0.2], dtype=F64, requires_grad=True)
    start = NoiseStream(2, 0, 3).normals(2, dtype=F64).requires_grad_()
    times = torch.tensor([0.0, 0.3, 0.5, 1.4], dtype=F64, requires_grad=True)
    equation = ode(lambda t, x: theta[0] * x.sin() + theta[1] * t**2, (theta,))

    def bars(way: Gradient) -> tuple[Tensor, ...]:
        paths = solve(equation, start, times, None, solver=RungeKutta4(), substeps=3, gradient=way)
        return torch.autograd.grad((paths * paths.detach().cos()).sum(), (start, theta, times))

    for exact, found in zip(bars(Backprop()), bars(Symplectic()), strict=True):
        torch.testing.assert_close(found, exact, rtol=1e-12, atol=1e-13)


def _saved(way: Gradient, steps: int) -> int:
    """Bytes that the graph holds between the two passes, of distinct storages."""
    problem, held = Problem(), {}

    def pack(tensor: Tensor) -> Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor  # kept alive, so that addresses are distinct
        return tensor

    times = log_snr_times(Diffusion(), steps, first=0.0, last=1 - 1e-3)
    sampler = RescaledFlow(gradient=way, parameters=problem.inputs[1:])
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        sampler(problem.prediction, problem.start, times, NoiseStream(0, 0, 6))
    return sum(tensor.untyped_storage().nbytes() for tensor in held.values())


def test_memory_of_the_adjoint_does_not_grow_with_the_steps() -> None:
    assert _saved(Adjoint(), 160) == _saved(Adjoint(), 10)
    assert _saved(Backprop(), 160) > 10 * _saved(Backprop(), 10)
    # The symplectic adjoint holds a state for each step: 6 points of 2 numbers, and nothing of the network.
    assert _saved(Symplectic(), 160) - _saved(Symplectic(), 10) == 150 * 6 * 2 * 8


def test_rescaled_flow_has_order_four_and_the_ends_of_the_flow() -> None:
    """N(0, 1) to N(2, 1/4) by the schedule of a diffusion, which the flow maps affinely."""
    law = Mixture.gaussian(torch.tensor([2.0], dtype=F64), torch.tensor([[0.25]], dtype=F64))
    exact = MixtureProblem(OneSided(Diffusion()), Mixture.standard(1), law)
    start, first, last = torch.linspace(-2, 2, 9, dtype=F64)[:, None], 0.0, 1 - 1e-3
    begin, end = (exact.law(torch.tensor(t, dtype=F64)) for t in (first, last))
    there = end.mean + (end.covariance / begin.covariance).sqrt() * (start - begin.mean)
    errors = []
    for steps in (20, 40, 80):
        times = log_snr_times(Diffusion(), steps, first=first, last=last)
        ends = RescaledFlow()(exact.prediction(), start, times, NoiseStream(0, 0, 9))
        errors.append((ends - there).abs().max().item())
    back = RescaledFlow()(exact.prediction(), ends, times.flip(0), NoiseStream(0, 0, 9))
    assert -np.polyfit(np.log((20, 40, 80)), np.log(errors), 1)[0] == pytest.approx(4, abs=0.3)
    torch.testing.assert_close(back, start, rtol=0, atol=1e-4)


def test_order_of_the_classical_scheme() -> None:
    equation, start = ode(lambda t, x: x * t.cos()), torch.ones(1, 1, dtype=F64)
    errors = []
    for steps in (8, 16, 32, 64, 128):
        grid = torch.tensor([0.0, 2.0], dtype=F64)
        end = solve(equation, start, grid, None, solver=RungeKutta4(), substeps=steps)[0, -1, 0]
        errors.append(abs(end.item() - np.exp(np.sin(2.0))))
    assert -np.polyfit(np.log((8, 16, 32, 64, 128)), np.log(errors), 1)[0] == pytest.approx(4, abs=0.1)


TIMES = log_snr_times(Diffusion(), 4, first=0.0, last=1 - 1e-3)
NOISE = NoiseStream(0, 0, 6)


@pytest.mark.parametrize("way", [Adjoint(), Symplectic()], ids=label)
def test_tensors_that_are_not_named_are_refused(way: Gradient) -> None:
    problem, sampler = Problem(), RescaledFlow(gradient=way)
    with pytest.raises(ValueError, match=r"`parameters` of the equation must name all tensors"):
        sampler(problem.prediction, problem.start, TIMES, NOISE)


def test_schemes_and_equations_that_do_not_fit_are_refused() -> None:
    start, still = torch.ones(6, 2, dtype=F64), ode(lambda t, x: -x)
    with pytest.raises(ValueError, match=r"Symplectic\(\) needs an equation without noise"):
        solve(still, start, TIMES, None, solver=Heun(), gradient=Symplectic())
    noisy = SDE(lambda t, x: -x, lambda t, x: x)
    with pytest.raises(ValueError, match=r"`solver` must integrate diagonal noise; got RungeKutta4"):
        solve(noisy, start, TIMES, NOISE, solver=RungeKutta4())


def test_paths_and_times_that_do_not_fit_are_refused() -> None:
    start = torch.ones(6, 2, dtype=F64)
    two = Prediction(TwoSided(), {Kind.VELOCITY: lambda t, x: x, Kind.SCORE: lambda t, x: x})
    with pytest.raises(ValueError, match=r"RescaledFlow integrates OneSided interpolants; got TwoSided"):
        RescaledFlow()(two, start, TIMES, NOISE)
    plain = Prediction(OneSided(), {Kind.NOISE: lambda t, x: x})
    with pytest.raises(ValueError, match=r"`times` must stay where the target has a weight; got 0"):
        RescaledFlow()(plain, start, torch.tensor([0.0, 1.0]), NOISE)
