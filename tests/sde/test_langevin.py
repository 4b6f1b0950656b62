"""Underdamped Langevin dynamics: the invariant law, the same paths as general solvers, refusals."""

import math

import pytest
import torch

from sde import SDE, Heun, Langevin, NoiseStream, solve
from sde.noise import Areas, GivenIncrements, WienerIncrements
from sde.solvers import ALIGN, BAOAB, QUICSORT, UBU, ShOULD, Solver
from tests.statistics import assert_mean

_DOUBLE_WELL = Langevin(lambda x: x**3 - x, friction=1.3)


@pytest.mark.parametrize("solver", [BAOAB(), UBU(), ALIGN(), ShOULD(), QUICSORT()])
def test_harmonic_motion_keeps_its_invariant_law(solver: Solver) -> None:
    n, u = 20_000, 0.5
    noise = NoiseStream(6, 0, n)
    start = noise.normals(2, dtype=torch.float64).unsqueeze(-1) * math.sqrt(u)
    sde = Langevin(lambda x: x / u, friction=1.0, inverse_mass=u)  # density exp(-x^2 / (2 u)) of x
    end = solve(sde, start, torch.linspace(0, 5, 101, dtype=torch.float64), noise, solver=solver)[:, -1]
    for part in (0, 1):
        assert_mean(end[:, part, 0] ** 2, u, bias=0.06)
    assert_mean(end[:, 0, 0] * end[:, 1, 0], 0.0, bias=0.05)


def test_state_may_have_any_shape() -> None:
    sde = Langevin(lambda x: x)
    start, times = torch.ones(4, 2, 3, 2), torch.linspace(0, 1, 3)
    shaped = solve(sde, start, times, NoiseStream(0, 0, 4), solver=UBU())
    flat = solve(sde, start.flatten(2), times, NoiseStream(0, 0, 4), solver=UBU())
    torch.testing.assert_close(shaped.flatten(3), flat)


def test_general_solver_agrees_on_the_same_path() -> None:
    n, steps = 200, 512
    times, sizes = torch.linspace(0, 1, steps + 1, dtype=torch.float64), torch.full((steps,), 1 / steps)
    sde, start = _DOUBLE_WELL, torch.zeros(n, 2, 1, dtype=torch.float64)
    drawn = WienerIncrements(NoiseStream(1, 0, n), sizes.double(), 2, dtype=torch.float64)
    general = solve(sde.as_sde(), start, times, drawn, solver=Heun())
    wiener, area, curve = (
        part[..., 1:].transpose(0, 1) for part in drawn.chunk(0, steps, Areas.SPACE_TIME_TIME)[:3]
    )
    special = solve(sde, start, times, GivenIncrements(wiener, area, curve), solver=UBU())
    assert (general - special).abs().max() < 0.02


def test_wrong_pairings_are_refused() -> None:
    start, times, noise = torch.zeros(3, 2, 1), torch.linspace(0, 1, 3), NoiseStream(0, 0, 3)
    with pytest.raises(ValueError, match="`solver` must integrate a Langevin equation; got EulerMaruyama"):
        solve(Langevin(lambda x: x), start, times, noise)
    with pytest.raises(ValueError, match="`solver` must integrate a SDE equation; got UBU"):
        solve(SDE(lambda t, x: x, lambda t, x: x), start, times, noise, solver=UBU())
    with pytest.raises(ValueError, match=r"`initial` must have shape \(n, 2, ...\)"):
        solve(Langevin(lambda x: x), torch.zeros(3, 1, 1), times, noise, solver=UBU())
    with pytest.raises(ValueError, match="`friction` must be positive"):
        Langevin(lambda x: x, friction=0.0)
    with pytest.raises(ValueError, match="`gradient` must return"):
        solve(Langevin(lambda x: x[:, :0]), start, times, noise, solver=BAOAB())
