"""Absorbing and reflecting boundaries against closed forms that hold for any step."""

import math
from statistics import NormalDist

import pytest
import torch
from torch import Tensor

from sde import (
    SDE,
    Boundary,
    NoiseStream,
    NoiseStructure,
    first_passage,
    solve,
    solve_absorbed,
    solve_reflected,
)
from sde.solvers import Milstein, ReversibleHeun
from tests.statistics import assert_mean

_F64 = torch.float64
_PHI = NormalDist().cdf


def _walk(drift: float) -> SDE:
    return SDE(lambda t, x: drift + 0 * x, lambda t, x: torch.ones_like(x), NoiseStructure.ADDITIVE)


def _start(n: int, value: float) -> Tensor:
    return torch.full((n, 1), value, dtype=_F64)


def test_absorption_is_first_passage() -> None:
    n, times = 100_000, torch.linspace(0, 1, 6, dtype=_F64)
    done = solve_absorbed(_walk(0.5), _start(n, 0.0), times, NoiseStream(1, 0, n), Boundary(upper=1.0))
    exact = _PHI(-0.5) + math.e * _PHI(-1.5)
    assert_mean((done.times <= 1.0).double(), exact, bias=0.02)
    assert bool((done.states[:, -1, 0][done.times.isfinite()] == 1.0).all())
    # What lives on has the law that the reflection principle gives: E[X; alive].
    alive = done.times.isinf()
    assert (done.states[:, -1, 0][alive] < 1.0).all()
    # X is a martingale after its drift is taken away, and stopping keeps it one.
    stopped = done.states[:, -1, 0] - 0.5 * done.times.clamp(max=1.0)
    assert_mean(stopped, 0.0, bias=0.05)


def test_absorbed_path_stays_and_follows_the_free_path_before() -> None:
    times = torch.linspace(0, 1, 65, dtype=_F64)
    sde = SDE(lambda t, x: -x, lambda t, x: 0.5 + 0 * x)
    start, noise = torch.tensor([[0.8, 0.0]], dtype=_F64).repeat(200, 1), NoiseStream(2, 0, 200)
    done = solve_absorbed(sde, start, times, noise, Boundary(lower=0.3, upper=1.2), solver=Milstein())
    free = solve(sde, start, times, noise, solver=Milstein())
    before = times < done.times.unsqueeze(1)
    assert torch.equal(done.states[before], free[before])
    after = ~before
    assert 0.3 < after[:, -1].double().mean() < 1.0
    last = done.states[:, -1:].expand_as(done.states)
    assert torch.equal(done.states[after], last[after])
    ends = done.states[after[:, -1], -1, 0]
    assert set(ends.tolist()) == {0.3, 1.2}


def test_two_ends_have_their_share() -> None:
    n, times = 100_000, torch.linspace(0, 20, 401, dtype=_F64)  # after 20 units all have ended
    done = solve_absorbed(_walk(0.0), _start(n, 0.25), times[:], NoiseStream(3, 0, n), Boundary(0.0, 1.0))
    assert done.times.isfinite().all()
    assert_mean(done.states[:, -1, 0], 0.25, bias=0.02)  # the chance of the upper end
    assert_mean(done.times, 0.25 * 0.75, bias=0.01)  # the mean exit time x (1 - x)


@pytest.mark.parametrize("steps", [1, 4])
def test_reflected_brownian_motion_has_its_law_for_any_step(steps: int) -> None:
    n, times = 200_000, torch.linspace(0, 1, steps + 1, dtype=_F64)
    done = solve_reflected(_walk(0.0), _start(n, 0.0), times, NoiseStream(4, 0, n), Boundary(lower=0.0))
    end, push = done.states[:, -1, 0], done.lower_push[:, -1]
    # Both the reflected path and its local time are distributed as |N(0, 1)|, and E[X L] = 1/2 by Levy.
    moments = torch.stack((end, end**2, push, push**2, end * push), 1)
    exact = torch.tensor([math.sqrt(2 / math.pi), 1.0, math.sqrt(2 / math.pi), 1.0, 0.5], dtype=_F64)
    assert_mean(moments, exact, bias=0.04)
    assert not done.upper_push.any()


def test_reflection_at_two_ends_has_its_invariant_law() -> None:
    n, times = 100_000, torch.linspace(0, 3, 301, dtype=_F64)
    noise = NoiseStream(5, 0, n)
    done = solve_reflected(
        _walk(1.0), _start(n, 0.5), times[[0, 300]], noise, Boundary(0.0, 1.0), substeps=300
    )
    end = done.states[:, -1, 0]
    assert end.min() >= 0
    assert end.max() <= 1
    # Invariant density 2 exp(2 x) / (e^2 - 1), reached to e^-17: mean (e^2 + 1) / (2 (e^2 - 1)).
    assert_mean(end, (math.e**2 + 1) / (2 * (math.e**2 - 1)), bias=0.01)


def test_looking_at_the_ends_alone_reflects_too_little() -> None:
    n, times = 100_000, torch.linspace(0, 1, 11, dtype=_F64)
    boundary = Boundary(lower=0.0, bridge=False)
    done = solve_reflected(_walk(0.0), _start(n, 0.0), times, NoiseStream(4, 0, n), boundary)
    assert float(done.lower_push[:, -1].mean()) < math.sqrt(2 / math.pi) - 0.1
    assert (done.states >= 0).all()


def test_boundaries_are_the_same_in_every_batch_and_differentiable() -> None:
    times, noise = torch.linspace(0, 1, 9, dtype=_F64), NoiseStream(6, 0, 300)
    start = torch.full((300, 1), 0.2, dtype=_F64)
    for solve_with in (solve_absorbed, solve_reflected):
        whole = solve_with(_walk(-0.3), start, times, noise, Boundary(lower=0.0))
        part = solve_with(_walk(-0.3), start[:7], times, noise[100:107], Boundary(lower=0.0))
        assert torch.equal(part.states, whole.states[100:107])

    def end(value: Tensor) -> Tensor:
        few = NoiseStream(6, 0, 5)
        return solve_reflected(_walk(-0.3), value, times, few, Boundary(lower=0.0)).states[:, -1]

    assert torch.autograd.gradcheck(end, start[:5].clone().requires_grad_())


def test_passage_of_a_path_that_starts_on_the_level_is_the_start() -> None:
    times, noise = torch.linspace(2, 3, 5, dtype=_F64), NoiseStream(0, 0, 3)
    assert (first_passage(_walk(0.0), _start(3, 1.0), times, noise, level=1.0).times == 2.0).all()
    done = solve_absorbed(_walk(0.0), _start(3, 1.0), times, noise, Boundary(lower=1.0))
    assert (done.times == 2.0).all()
    assert (done.states == 1.0).all()


def test_wrong_boundaries_are_refused() -> None:
    times, noise, start = torch.linspace(0, 1, 3), NoiseStream(0, 0, 2), torch.zeros(2, 1)
    with pytest.raises(ValueError, match="`lower` or `upper` must be given"):
        Boundary()
    with pytest.raises(ValueError, match="`lower` must lie below `upper`"):
        Boundary(1.0, 1.0)
    with pytest.raises(ValueError, match=r"`initial` must lie within the boundary, lower end 0\.5; got 0"):
        solve_reflected(_walk(0.0), start, times, noise, Boundary(lower=0.5))
    with pytest.raises(ValueError, match="`solver` must carry the state alone"):
        solve_absorbed(_walk(0.0), start, times, noise, Boundary(lower=-1.0), solver=ReversibleHeun())
