"""Weak schemes, by enumeration of all three-point increments."""

import math

import pytest
import torch

from benchmarks.weak_order import REFERENCES, asinh_error, moment_error
from sde import SDE, BrownianTree, NoiseStream, solve
from sde.noise.weak import ThreePointIncrements
from sde.solvers import DRI1, PlatenWeak2, Solver
from tests.statistics import assert_mean


@pytest.mark.parametrize(("solver", "references"), REFERENCES)
def test_error_is_the_reference_to_three_digits(solver: Solver, references: dict[int, float]) -> None:
    for steps in (2, 4, 6):
        assert abs(asinh_error(solver, steps) / references[steps] - 1) < 1e-3


@pytest.mark.parametrize("solver", [PlatenWeak2(), DRI1()])
def test_one_step_has_order_three_unless_the_two_point_variable_is_wrong(solver: Solver) -> None:
    right, wrong = (
        math.log2(
            moment_error(solver, 0.025, sign=0.025**power) / moment_error(solver, 0.0125, sign=0.0125**power)
        )
        for power in (0, -0.5)
    )
    assert abs(right - 3) < 0.1
    assert wrong < 1.1


def test_three_point_increments_have_their_moments_in_every_batch() -> None:
    sizes = torch.full((4,), 0.25, dtype=torch.float64)
    drawn = ThreePointIncrements(NoiseStream(2, 0, 100_000), sizes, 2, dtype=torch.float64).chunk(0, 4)
    for power, moment in ((1, 0.0), (2, 0.25), (4, 3 * 0.25**2)):
        assert_mean(drawn.wiener[1, :, 0] ** power, moment, bias=0.02)
    assert drawn.signs is not None
    assert torch.equal(drawn.signs[..., 0, 1], -drawn.signs[..., 1, 0])
    assert_mean(drawn.signs[2, :, 0, 1], 0.0, bias=0.04)
    part = ThreePointIncrements(NoiseStream(2, 10, 15), sizes, 2, dtype=torch.float64).chunk(1, 2)
    assert torch.equal(part.wiener, drawn.wiener[1:3, 10:15])


def test_solve_draws_three_point_increments_for_a_weak_scheme() -> None:
    growth = SDE(lambda t, x: 0.1 * x, lambda t, x: 0.2 * x)
    times, start = torch.linspace(0, 1, 5, dtype=torch.float64), torch.ones(50_000, 1, dtype=torch.float64)
    end = solve(growth, start, times, NoiseStream(4, 0, 50_000), solver=PlatenWeak2())[:, -1, 0]
    assert_mean(end, math.exp(0.1), bias=0.01)
    with pytest.raises(ValueError, match="`noise` must be a NoiseStream or increments for a weak solver"):
        solve(growth, start, times, BrownianTree(NoiseStream(4, 0, 50_000)), solver=PlatenWeak2())
