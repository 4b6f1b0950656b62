"""Tamed and implicit Euler: superlinear drifts, stiffness, gradients."""

import math

import pytest
import torch
from torch import Tensor

from sde import SDE, NoiseStream, NoiseStructure, solve
from sde.noise import WienerIncrements
from sde.solvers import EulerMaruyama, Solver, TamedEuler, ThetaEuler

_F64 = torch.float64
_LANDAU = SDE(lambda t, x: 0.5 * x - x**3, lambda t, x: x)


def _exact(fine: Tensor, dt: float, initial: float) -> Tensor:
    """Solution of the Ginzburg--Landau equation at the end of a fine path ``(steps, n, 1)``."""
    path = torch.cat((torch.zeros_like(fine[:1]), fine.cumsum(0)))
    square = (2 * path).exp()
    integral = dt * (0.5 * (square[1:] + square[:-1])).sum(0)
    return initial * path[-1].exp() / (1 + 2 * initial**2 * integral).sqrt()


@pytest.mark.parametrize("solver", [TamedEuler(), ThetaEuler(), ThetaEuler(0.5)])
def test_scheme_converges_on_ginzburg_landau(solver: Solver) -> None:
    n, finest, levels = 2000, 12, (4, 5, 6, 7, 8)
    sizes = torch.full((2**finest,), 2.0**-finest, dtype=_F64)
    fine = WienerIncrements(NoiseStream(3, 0, n), sizes, 1, dtype=_F64)
    exact = _exact(fine.chunk(0, 2**finest).wiener, 2.0**-finest, 1.0)
    logs = []
    for level in levels:
        times = torch.linspace(0, 1, 2**level + 1, dtype=_F64)
        end = solve(
            _LANDAU, torch.ones(n, 1, dtype=_F64), times, fine.coarsen(2 ** (finest - level)), solver=solver
        )
        logs.append((end[:, -1] - exact).square().mean().log2() / 2)
    x = -torch.tensor(levels, dtype=_F64)
    slope = float((x - x.mean()) @ torch.stack(logs) / (x - x.mean()).square().sum())
    assert abs(slope - 0.5) < 0.15


def test_only_explicit_euler_diverges_from_afar() -> None:
    times, noise = torch.linspace(0, 5, 161), NoiseStream(0, 0, 100)
    start = torch.full((100, 1), 20.0, dtype=_F64)
    with pytest.raises(RuntimeError, match="paths diverged"):
        solve(_LANDAU, start, times, noise, solver=EulerMaruyama())
    for solver in (TamedEuler(), ThetaEuler(iterations=12)):
        assert solve(_LANDAU, start, times, noise, solver=solver)[:, -1].abs().max() < 10


def test_implicit_step_solves_its_equation_for_coupled_states_of_any_shape() -> None:
    sde = SDE(lambda t, x: -(x**3) + x.flip(-1).sin(), lambda t, x: 0.1 * torch.ones_like(x))
    start, times, noise = (
        torch.ones(5, 2, 3, dtype=_F64),
        torch.tensor([0.0, 0.5], dtype=_F64),
        NoiseStream(1, 0, 5),
    )
    end = solve(sde, start, times, noise, solver=ThetaEuler(0.7, iterations=8))[:, -1]
    wiener = WienerIncrements(noise, times.diff(), 6, dtype=_F64).chunk(0, 1).wiener[0].view(5, 2, 3)
    right = start + 0.5 * (0.3 * sde.drift(times[0], start) + 0.7 * sde.drift(times[1], end)) + 0.1 * wiener
    torch.testing.assert_close(end, right, rtol=0, atol=1e-13)


def test_implicit_scheme_is_stable_where_the_explicit_one_is_not() -> None:
    stiff = SDE(lambda t, x: -500 * (x - 1), lambda t, x: torch.ones_like(x), NoiseStructure.ADDITIVE)
    start, times, noise = torch.zeros(50, 1), torch.linspace(0, 1, 21), NoiseStream(0, 0, 50)
    assert (solve(stiff, start, times, noise, solver=ThetaEuler())[:, -1] - 1).abs().max() < 0.5
    assert solve(stiff, start, times, noise, allow_diverged=True)[:, -1].abs().max() > 1e6


def test_gradient_through_newton_is_that_of_the_solution() -> None:
    noise, times = NoiseStream(1, 0, 4), torch.linspace(0, 1, 9, dtype=_F64)

    def end(theta: Tensor) -> Tensor:
        sde = SDE(lambda t, x: -theta[0] * x**3, lambda t, x: theta[1] * x)
        return solve(sde, torch.ones(4, 1, dtype=_F64), times, noise, solver=ThetaEuler(iterations=10))[
            :, -1
        ].sum()

    theta = torch.tensor([2.0, 0.4], dtype=_F64, requires_grad=True)
    assert torch.autograd.gradcheck(end, theta, eps=1e-6, atol=1e-8, rtol=1e-7)


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`theta` must lie in \[0, 1\]"):
        ThetaEuler(math.nan)
    with pytest.raises(ValueError, match="`iterations` must be an integer"):
        ThetaEuler(iterations=0)
