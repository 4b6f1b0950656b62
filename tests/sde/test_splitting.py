"""Splitting: exact parts, strong and weak orders, invariant law, refusals."""

import math

import pytest
import torch
from torch import Tensor

from sde import SDE, NoiseStream, NoiseStructure, Split, solve
from sde.noise import GivenIncrements, WienerIncrements
from sde.solvers import SRIW1, EulerMaruyama, LieTrotter, SlowRK, Solver, Strang
from tests.statistics import assert_mean

_LEVELS, _FINEST = (3, 4, 5, 6, 7), 11
_UNIT = torch.tensor([0.0, 1.0], dtype=torch.float64)


def _cubic(t: Tensor, x: Tensor, h: Tensor) -> Tensor:
    """Flow of ``-x**3``."""
    return x / (1 + 2 * h * x * x).sqrt()


def _ornstein(rate: float, size: float) -> Split:
    """Cubic flow beside an Ornstein--Uhlenbeck process of any rate; a negative one makes a double well."""

    def noise(t: Tensor, x: Tensor, h: Tensor, w: Tensor) -> Tensor:
        return (-rate * h).exp() * x + size * (-torch.expm1(-2 * rate * h) / (2 * rate * h)).sqrt() * w

    return Split((_cubic,), noise)


LANDAU = Split((_cubic,), lambda t, x, h, w: x * w.exp())  # (x / 2 - x**3) dt + x dW
DOUBLE_WELL = _ornstein(-1.0, 0.5)


def _ends(sde: Split, solver: Solver, level: int, fine: WienerIncrements, start: float) -> Tensor:
    """States at time 1 after steps ``2**-level`` on the paths of ``fine``."""
    initial = torch.full((fine.shape[1], 1), start, dtype=torch.float64)
    noise = fine.coarsen(fine.shape[0] >> level)
    return solve(sde, initial, _UNIT, noise, solver=solver, substeps=2**level)[:, -1]


def _fine(paths: int, level: int = _FINEST) -> WienerIncrements:
    sizes = torch.full((2**level,), 2.0**-level, dtype=torch.float64)
    return WienerIncrements(NoiseStream(4, 0, paths), sizes, 1, dtype=torch.float64)


def _slope(errors: Tensor) -> float:
    """Slope of log error against log step."""
    x = -torch.tensor(_LEVELS, dtype=torch.float64)
    return float((x - x.mean()) @ errors.log2() / (x - x.mean()).square().sum())


@pytest.mark.parametrize("solver", [LieTrotter(), Strang()])
def test_ginzburg_landau_has_strong_order_one(solver: Solver) -> None:
    fine = _fine(2000)
    sde = SDE(lambda t, x: 0.5 * x - x**3, lambda t, x: x)
    initial = torch.full((2000, 1), 0.5, dtype=torch.float64)
    truth = solve(sde, initial, _UNIT, fine, solver=SRIW1(), substeps=2**_FINEST)[:, -1]
    errors = [(_ends(LANDAU, solver, k, fine, 0.5) - truth).square().mean().sqrt() for k in _LEVELS]
    assert abs(_slope(torch.stack(errors)) - 1.0) < 0.1


@pytest.mark.parametrize("solver", [LieTrotter(), Strang()])
def test_double_well_has_strong_order_one(solver: Solver) -> None:
    fine = _fine(1000)
    size, one = 0.5, torch.ones(1, 1, dtype=torch.float64)
    sde = SDE(lambda t, x: x - x**3, lambda t, x: size * one, NoiseStructure.ADDITIVE)
    initial = torch.full((1000, 1), 0.5, dtype=torch.float64)
    truth = solve(sde, initial, _UNIT, fine, solver=SlowRK(), substeps=2**_FINEST)[:, -1]
    errors = [(_ends(DOUBLE_WELL, solver, k, fine, 0.5) - truth).square().mean().sqrt() for k in _LEVELS]
    assert abs(_slope(torch.stack(errors)) - 1.0) < 0.1


def _enumerated_mean(solver: Solver, steps: int) -> float:
    """Mean of ``x**2`` at time 1/2 over all leaves of three-point increments, which match five moments."""
    points = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64) * math.sqrt(3 * 0.5 / steps)
    weights = torch.tensor([1 / 6, 2 / 3, 1 / 6], dtype=torch.float64)
    grid = torch.cartesian_prod(*[torch.arange(3)] * steps).reshape(-1, steps)
    noise = GivenIncrements(points[grid].unsqueeze(-1))
    initial = torch.full((len(grid), 1), 0.6, dtype=torch.float64)
    end = solve(DOUBLE_WELL, initial, 0.5 * _UNIT, noise, solver=solver, substeps=steps)[:, -1, 0]
    return float((weights[grid].prod(1) * end.square()).sum())


@pytest.mark.parametrize(("solver", "order"), [(LieTrotter(), 1.0), (Strang(), 2.0)])
def test_scheme_has_its_weak_order(solver: Solver, order: float) -> None:
    # Without sampling; the differences of means at doubled numbers of steps fall by 2**order.
    means = [_enumerated_mean(solver, steps) for steps in (3, 6, 12)]
    ratio = (means[1] - means[0]) / (means[2] - means[1])
    assert abs(math.log2(ratio) - order) < 0.2


@pytest.mark.parametrize("solver", [LieTrotter(), Strang()])
def test_parts_that_commute_are_solved_exactly(solver: Solver) -> None:
    decay = Split((lambda t, x, h: x * (-h).exp(),), lambda t, x, h, w: x * (0.5 * w - 0.125 * h).exp())
    fine = _fine(50, 4)
    wiener = fine.coarsen(16).chunk(0, 1).wiener[0]
    exact = 2 * (0.5 * wiener - 1.125).exp()
    torch.testing.assert_close(_ends(decay, solver, 0, fine, 2.0), exact)
    torch.testing.assert_close(_ends(decay, solver, 4, fine, 2.0), exact)


def test_flows_that_depend_on_time_are_asked_at_their_start() -> None:
    drive = Split((lambda t, x, h: x + h * t + 0.5 * h * h,), lambda t, x, h, w: x)  # of dx = t dt
    for solver in (LieTrotter(), Strang()):
        end = _ends(drive, solver, 3, _fine(3, 3), 0.0)
        torch.testing.assert_close(end, torch.full_like(end, 0.5))


def test_large_steps_keep_sign_and_size() -> None:
    end = _ends(LANDAU, Strang(), 0, _fine(1000, 3), 100.0)
    assert bool((end > 0).all())
    assert float(end.max()) < 5
    sde = SDE(lambda t, x: 0.5 * x - x**3, lambda t, x: x)
    initial = torch.full((1000, 1), 100.0, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="diverged"):  # where Euler explodes
        solve(sde, initial, _UNIT, _fine(1000, 3), solver=EulerMaruyama(), substeps=8)


def test_double_well_has_its_invariant_moments() -> None:
    n, half, steps = 20_000, 8.0, 100
    start = NoiseStream(8, 0, n).normals(1, dtype=torch.float64)
    times = torch.tensor([0.0, half], dtype=torch.float64)
    end = solve(_ornstein(-1.0, 1.0), start, times, NoiseStream(9, 0, n), solver=Strang(), substeps=steps)[
        :, -1, 0
    ]
    # Reference values by quadrature of exp(x**2 - x**4 / 2); the step adds less than 0.005.
    assert_mean(end**2, 0.8934649696, bias=0.07)
    assert_mean(end**4, 1.3934649696, bias=0.25)


def test_several_processes_and_gradients() -> None:
    strength = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    mix = torch.tensor([[0.3, 0.1, 0.0], [0.0, 0.2, 0.4]], dtype=torch.float64)
    sde = Split((lambda t, x, h: x * (-strength * h).exp(),), lambda t, x, h, w: x + w @ mix.T, noise_dim=3)
    start = torch.ones(6, 2, dtype=torch.float64)
    noise = NoiseStream(1, 0, 6)

    def mean() -> Tensor:
        return solve(sde, start, _UNIT, noise, solver=Strang(), substeps=8)[:, -1].square().mean()

    (slope,) = torch.autograd.grad(mean(), strength)
    with torch.no_grad():
        strength += 1e-6
        above = mean()
        strength -= 2e-6
        below = mean()
    assert float(slope) == pytest.approx(float(above - below) / 2e-6, rel=1e-6)


def test_bad_input_is_refused() -> None:
    times, noise = torch.linspace(0, 1, 3), NoiseStream(0, 0, 2)
    with pytest.raises(ValueError, match="`flows` must hold at least one flow"):
        Split((), lambda t, x, h, w: x)
    with pytest.raises(TypeError, match="`noise_flow` must be callable; got int"):
        Split((_cubic,), 3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`noise_dim` must be an integer of at least 1; got 0"):
        Split((_cubic,), lambda t, x, h, w: x, noise_dim=0)
    wrong = Split((lambda t, x, h: x.squeeze(),), lambda t, x, h, w: x)
    with pytest.raises(ValueError, match=r"`flows` must return torch.float32 of shape \(2, 1\); got"):
        solve(wrong, torch.ones(2, 1), times, noise, solver=Strang())
    with pytest.raises(ValueError, match="`solver` must integrate a Split equation; got EulerMaruyama"):
        solve(LANDAU, torch.ones(2, 1), times, noise)
