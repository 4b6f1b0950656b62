"""Gradients of solves: all ways agree, with finite differences too, in the memory that they promise."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sde import SDE, Calculus, NoiseStream, NoiseStructure, solve
from sde.gradients import Adjoint, Backprop, Checkpointed, Gradient, Reversible
from sde.noise import GivenIncrements
from sde.solvers import EulerMaruyama, Heun, LogODE, Midpoint, ReversibleHeun, Solver
from tests.statistics import assert_mean

_F64 = torch.float64
_TIMES = torch.linspace(0, 1, 5, dtype=_F64)


class _Field(nn.Module):
    """A small field with two parameters; ``shape`` is that of its value for one sample."""

    def __init__(self, seed: int, structure: NoiseStructure | None = None) -> None:
        super().__init__()
        start = NoiseStream(seed, 0, 1).normals(3, dtype=_F64)[0]
        self.a, self.b = nn.Parameter(0.5 * start[:2]), nn.Parameter(0.3 + 0.1 * start[2])
        self.structure = structure

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        base = self.a * (self.b * x + t).sin()
        if self.structure is NoiseStructure.ADDITIVE:
            return (self.a.cos() + self.b * t).expand_as(x)
        if self.structure is NoiseStructure.GENERAL:
            return torch.stack((base, self.b * x.flip(-1).cos(), 0.1 * x), -1)
        return base


def _equation(structure: NoiseStructure, calculus: Calculus = Calculus.STRATONOVICH) -> SDE:
    noise_dim = 3 if structure is NoiseStructure.GENERAL else None
    return SDE(_Field(1), _Field(2, structure), structure, calculus, noise_dim)


def _gradients(sde: SDE, gradient: Gradient, solver: Solver, substeps: int = 10) -> Tensor:
    initial = torch.ones(8, 2, dtype=_F64, requires_grad=True)
    paths = solve(
        sde, initial, _TIMES, NoiseStream(0, 0, 8), solver=solver, substeps=substeps, gradient=gradient
    )
    bars = torch.autograd.grad((paths * paths.sin()).sum(), (initial, *sde.parameters), allow_unused=True)
    return torch.cat([bar.flatten() for bar in bars])


_STRUCTURES = [
    NoiseStructure.DIAGONAL,
    NoiseStructure.SCALAR,
    NoiseStructure.ADDITIVE,
    NoiseStructure.GENERAL,
]


@pytest.mark.parametrize("structure", _STRUCTURES)
@pytest.mark.parametrize("gradient", [Checkpointed(), Checkpointed(7)])
def test_checkpointed_gradient_is_that_of_the_graph(structure: NoiseStructure, gradient: Gradient) -> None:
    sde = _equation(structure)
    assert torch.equal(_gradients(sde, gradient, Heun()), _gradients(sde, Backprop(), Heun()))


@pytest.mark.parametrize("structure", _STRUCTURES)
def test_reversible_gradient_is_that_of_the_graph_to_rounding(structure: NoiseStructure) -> None:
    sde = _equation(structure)
    one, other = (_gradients(sde, way, ReversibleHeun(), 50) for way in (Reversible(), Backprop()))
    assert (one - other).norm() < 1e-12 * other.norm()


@pytest.mark.parametrize("structure", _STRUCTURES)
@pytest.mark.parametrize("solver", [Heun(), EulerMaruyama()])
def test_adjoint_converges_to_the_gradient(structure: NoiseStructure, solver: Solver) -> None:
    if structure is NoiseStructure.GENERAL and isinstance(solver, EulerMaruyama):
        solver = Midpoint()
    sde = _equation(structure, solver.calculus)
    errors = []
    for substeps in (8, 128):
        exact = _gradients(sde, Backprop(), solver, substeps)
        errors.append(float((_gradients(sde, Adjoint(), solver, substeps) - exact).norm() / exact.norm()))
    assert errors[1] < 0.02
    assert errors[1] < 0.7 * errors[0]


@pytest.mark.parametrize("structure", _STRUCTURES)
@pytest.mark.parametrize("gradient", [Backprop(), Checkpointed(), Reversible()])
def test_gradient_agrees_with_finite_differences(structure: NoiseStructure, gradient: Gradient) -> None:
    sde, noise = _equation(structure), NoiseStream(0, 0, 3)
    names = [*dict(sde.drift.named_parameters()), *dict(sde.diffusion.named_parameters())]
    assert len(names) == 4

    def end(initial: Tensor, *parameters: Tensor) -> Tensor:
        for target, value in zip(sde.parameters, parameters, strict=True):
            target.data = value.detach()
        paths = solve(sde, initial, _TIMES, noise, solver=ReversibleHeun(), gradient=gradient)
        # the parameters of the modules stand for the arguments, with the same gradient
        return paths[:, -1] + sum((0 * value).sum() for value in parameters)

    initial = torch.ones(3, 2, dtype=_F64, requires_grad=True)
    bars = torch.autograd.grad(end(initial, *sde.parameters).sum(), (initial, *sde.parameters))
    values = [initial.detach(), *(p.detach().clone() for p in sde.parameters)]
    for k, bar in enumerate(bars):
        direction = NoiseStream(5, k, k + 1).normals(values[k].numel(), dtype=_F64).view_as(values[k])
        ends = []
        for sign in (1, -1):
            moved = list(values)
            moved[k] = values[k] + sign * 1e-5 * direction
            ends.append(end(*moved).sum().item())
        for target, value in zip(sde.parameters, values[1:], strict=True):
            target.data = value
        difference = (ends[0] - ends[1]) / 2e-5
        assert abs(difference - float((bar * direction).sum())) < 1e-7 * max(1, abs(difference))


def test_times_have_a_gradient() -> None:
    sde, noise = _equation(NoiseStructure.DIAGONAL, Calculus.ITO), NoiseStream(0, 0, 4)

    def end(times: Tensor) -> Tensor:
        return solve(sde, torch.ones(4, 2, dtype=_F64), times, noise)[:, -1].sum()

    assert torch.autograd.gradcheck(end, _TIMES.clone().requires_grad_(), eps=1e-6, atol=1e-7, rtol=1e-6)


def _slope_in_time(sde: SDE, gradient: Gradient, substeps: int = 20) -> Tensor:
    """Gradient with respect to unevenly spaced instants."""
    times = torch.tensor([0.0, 0.2, 0.7, 1.0], dtype=_F64, requires_grad=True)
    start, noise = torch.ones(8, 2, dtype=_F64), NoiseStream(0, 0, 8)
    paths = solve(sde, start, times, noise, solver=ReversibleHeun(), substeps=substeps, gradient=gradient)
    return torch.autograd.grad((paths * paths.sin()).sum(), times)[0]


@pytest.mark.parametrize("structure", _STRUCTURES)
def test_gradient_of_the_instants_is_that_of_the_graph(structure: NoiseStructure) -> None:
    sde = _equation(structure)
    exact = _slope_in_time(sde, Backprop())
    assert exact.norm() > 1
    for way in (Checkpointed(), Reversible()):
        assert (_slope_in_time(sde, way) - exact).norm() < 1e-12 * exact.norm()
    errors = []
    for substeps in (20, 320):
        exact = _slope_in_time(sde, Backprop(), substeps)
        errors.append(float((_slope_in_time(sde, Adjoint(), substeps) - exact).norm() / exact.norm()))
    assert errors[1] < 0.02
    assert errors[1] < 0.7 * errors[0]


def test_instants_of_given_increments_move_the_grid_alone() -> None:
    sde, wiener = _equation(NoiseStructure.DIAGONAL), NoiseStream(4, 0, 3).normals(4, channels=2, dtype=_F64)

    def end(times: Tensor, gradient: Gradient) -> Tensor:
        given = GivenIncrements(0.5 * wiener)
        return solve(sde, torch.ones(3, 2, dtype=_F64), times, given, solver=ReversibleHeun(),
                     gradient=gradient)[:, -1].sum()  # fmt: skip

    times = _TIMES.clone().requires_grad_()
    exact = torch.autograd.grad(end(times, Backprop()), times)[0]
    torch.testing.assert_close(torch.autograd.grad(end(times, Reversible()), times)[0], exact)
    assert torch.autograd.gradcheck(lambda t: end(t, Reversible()), times, eps=1e-6, atol=1e-7, rtol=1e-6)


def test_forward_mode_and_per_sample_gradients_work() -> None:
    noise, start = NoiseStream(0, 0, 5), torch.ones(5, 2, dtype=_F64)

    def end(theta: Tensor, solver: Solver) -> Tensor:
        sde = SDE(lambda t, x: -theta * x, lambda t, x: 0.3 * x.cos(), calculus=solver.calculus)
        return solve(sde, start, _TIMES, noise, solver=solver, allow_diverged=True)[:, -1].sum()

    theta, one = torch.tensor(0.7, dtype=_F64), torch.ones((), dtype=_F64)
    for solver in (EulerMaruyama(), Heun()):
        forward = torch.func.jvp(lambda th: end(th, solver), (theta,), (one,))[1]  # noqa: B023
        backward = torch.func.grad(end)(theta, solver)
        torch.testing.assert_close(forward, backward)


def test_pathwise_derivatives_of_geometric_motion_have_their_expectations() -> None:
    n = 50_000
    theta = torch.tensor([0.1, 0.2], dtype=_F64)
    noise, start = NoiseStream(3, 0, n), torch.ones(n, 1, dtype=_F64)

    def end(theta: Tensor) -> Tensor:
        sde = SDE(lambda t, x: theta[0] * x, lambda t, x: theta[1] * x)
        return solve(sde, start, _TIMES, noise, substeps=16, allow_diverged=True)[:, -1, 0]

    slopes = torch.func.jacfwd(end)(theta)
    assert_mean(slopes[:, 0], float(torch.tensor(0.1, dtype=_F64).exp()), bias=0.02)
    assert_mean(slopes[:, 1], 0.0, bias=0.06)


_MEMORY = """
import sys, torch
from sde import SDE, Calculus, NoiseStream, solve
from sde.gradients import Backprop, Checkpointed, Reversible
from sde.solvers import ReversibleHeun
way, steps = sys.argv[1], int(sys.argv[2])
net = torch.nn.Linear(64, 64)
sde = SDE(lambda t, x: net(x).tanh(), lambda t, x: 0.1 * torch.ones_like(x),
          calculus=Calculus.STRATONOVICH, parameters=tuple(net.parameters()))
def peak():  # the kernel's resource usage would count the parent's memory
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
def run(count):
    x = torch.ones(512, 64, requires_grad=True)
    times = torch.tensor([0.0, 1.0])
    ways = {"graph": Backprop(), "checkpoint": Checkpointed(), "reversible": Reversible()}
    paths = solve(sde, x, times, NoiseStream(0, 0, 512), solver=ReversibleHeun(), substeps=count,
                  gradient=ways[way])
    paths.sum().backward()
run(8)
before = peak()
run(steps)
print(peak() - before)
"""


def _growth(way: str, steps: int) -> float:
    """Growth of the peak memory [MiB] of a process that differentiates a solve."""
    # Without this the C library keeps freed blocks of this size, and the peak says nothing.
    allocator = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    run = subprocess.run(
        [sys.executable, "-c", _MEMORY, way, str(steps)],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | allocator,
    )
    return float(run.stdout) / 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_memory_grows_as_promised() -> None:
    graph = _growth("graph", 1200)  # steps of 512 x 64 floats: 128 KiB for each tensor that is kept
    assert graph > 200
    assert _growth("checkpoint", 1200) < 0.25 * graph
    assert _growth("reversible", 1200) < 0.05 * graph


def test_gradients_refuse_what_they_cannot_do() -> None:
    hidden = torch.ones((), dtype=_F64, requires_grad=True)
    sde = SDE(lambda t, x: hidden * x, lambda t, x: x, calculus=Calculus.STRATONOVICH)
    start, noise = torch.ones(2, 1, dtype=_F64), NoiseStream(0, 0, 2)
    for way in (Reversible(), Adjoint()):
        with pytest.raises(ValueError, match="`parameters` of the equation must name all tensors"):
            solve(sde, start, _TIMES, noise, solver=ReversibleHeun(), gradient=way)
    with pytest.raises(ValueError, match=r"`solver` must be ReversibleHeun\(\)"):
        solve(_equation(NoiseStructure.GENERAL), torch.ones(2, 2, dtype=_F64), _TIMES, noise, solver=LogODE(),
              gradient=Reversible())  # fmt: skip
    with pytest.raises(ValueError, match="`segment` must be an integer"):
        Checkpointed(0)
