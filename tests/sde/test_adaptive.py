"""Adaptive steps on nested trees: the right limit, fewer steps where it pays, refusals."""

import pytest
import torch
from torch import Tensor

from sde import (
    SDE,
    BrownianTree,
    Calculus,
    NoiseStream,
    NoiseStructure,
    solve,
    solve_adaptive,
    to_stratonovich,
)
from sde.adaptive import Control
from sde.solvers import EulerMaruyama, Heun, ReversibleHeun, ShARK, SPaRK

_F64 = torch.float64
_GROWTH = to_stratonovich(SDE(lambda t, x: 1.5 * x, lambda t, x: 0.6 * x))


def _times(parts: int) -> Tensor:
    return torch.linspace(0, 1, parts + 1, dtype=_F64)


def _rms(error: Tensor) -> float:
    return float(error.square().mean().sqrt())


def test_error_follows_the_tolerance() -> None:
    n = 200
    tree, start = BrownianTree(NoiseStream(4, 0, n)), torch.full((n, 1), 0.5, dtype=_F64)
    wiener = tree.steps(_times(1), 1, dtype=_F64).chunk(0, 1).wiener[0]
    exact = 0.5 * torch.exp(1.32 + 0.6 * wiener)
    errors, steps = [], []
    for tolerance in (1e-2, 1e-3, 1e-4):
        control = Control(rtol=tolerance, atol=tolerance)
        found = solve_adaptive(_GROWTH, start, _times(4), tree, solver=SPaRK(), control=control)
        assert not bool(found.halted.any())
        errors.append(_rms(found.states[:, -1] - exact))
        steps.append(float(found.accepted.double().mean()))
        assert float(found.rejected.double().mean()) < 0.2 * steps[-1]
    assert errors[2] < 0.5 * errors[1] < 0.5 * errors[0]
    assert errors[2] < 0.01
    assert steps[0] < steps[1] < steps[2]


def test_path_does_not_depend_on_the_batch() -> None:
    tree = BrownianTree(NoiseStream(4, 0, 40))
    whole = solve_adaptive(_GROWTH, torch.ones(40, 1, dtype=_F64), _times(4), tree, solver=SPaRK())
    part = BrownianTree(NoiseStream(4, 0, 40)[7:12])
    few = solve_adaptive(_GROWTH, torch.ones(5, 1, dtype=_F64), _times(4), part, solver=SPaRK())
    assert torch.equal(few.states, whole.states[7:12])
    assert torch.equal(few.accepted, whole.accepted[7:12])


def _twisted(t: Tensor, x: Tensor) -> Tensor:
    """Two vector fields that do not commute."""
    one = torch.stack((torch.full_like(x[:, 0], 0.6), 0.5 * x[:, 0].sin()), 1)
    return torch.stack((one, torch.stack((0.5 * x[:, 1].cos(), torch.full_like(x[:, 0], 0.4)), 1)), -1)


def test_limit_is_right_for_noise_that_does_not_commute() -> None:
    sde = SDE(lambda t, x: -x, _twisted, NoiseStructure.GENERAL, Calculus.STRATONOVICH, noise_dim=2)
    n = 200
    tree, start = BrownianTree(NoiseStream(3, 0, n)), torch.full((n, 2), 0.4, dtype=_F64)
    reference = solve(sde, start, _times(8192), tree, solver=Heun())[:, -1]
    errors = []
    for tolerance in (1e-2, 1e-3, 1e-4):
        control = Control(rtol=tolerance, atol=tolerance, order=1.0)
        found = solve_adaptive(sde, start, _times(1), tree, solver=SPaRK(), control=control)
        errors.append(_rms(found.states[:, -1] - reference))
    assert errors[2] < 0.03
    assert errors[2] < 0.5 * errors[0]


def test_adaptive_steps_pay_where_time_scales_differ() -> None:
    # A burst of stiffness around t = 1/2: rate 2 elsewhere, 400 there.
    rate = lambda t: 2 + 400 * torch.exp(-(((t - 0.5) / 0.01) ** 2))  # noqa: E731
    sde = SDE(
        lambda t, x: -rate(t) * (x - t.cos()),
        lambda t, x: 0.2 * torch.ones_like(x),
        NoiseStructure.ADDITIVE,
        Calculus.STRATONOVICH,
    )
    n = 100
    tree, start = BrownianTree(NoiseStream(6, 0, n)), torch.zeros(n, 1, dtype=_F64)
    reference = solve(sde, start, _times(2**14), tree, solver=ShARK())[:, -1]
    found = solve_adaptive(sde, start, _times(1), tree, solver=ShARK(), control=Control(rtol=1e-3, atol=1e-3))
    error, steps = (
        _rms(found.states[:, -1] - reference),
        float((found.accepted + found.rejected).double().mean()),
    )
    level = int(torch.tensor(steps).log2().ceil())
    fixed = _rms(solve(sde, start, _times(2**level), tree, solver=ShARK())[:, -1] - reference)
    assert error < 0.5 * fixed, (error, fixed, steps)


def test_schemes_that_carry_more_than_the_state_work() -> None:
    tree, start = BrownianTree(NoiseStream(6, 0, 20)), torch.ones(20, 2, dtype=_F64)
    found = solve_adaptive(
        _GROWTH, start, _times(2), tree, solver=ReversibleHeun(), control=Control(1e-2, 1e-2)
    )
    reference = solve(_GROWTH, start, _times(4096), tree, solver=Heun())[:, -1]
    assert _rms(found.states[:, -1] - reference) < 0.05 * _rms(reference)


def test_path_that_cannot_meet_the_tolerance_is_reported() -> None:
    tree = BrownianTree(NoiseStream(6, 0, 3), depth=4)
    found = solve_adaptive(
        _GROWTH, torch.ones(3, 1, dtype=_F64), _times(1), tree, solver=SPaRK(), control=Control(1e-9, 1e-9)
    )
    assert bool(found.halted.all())
    assert bool(found.states[:, -1].isnan().all())


def test_wrong_calls_are_refused() -> None:
    tree, start = BrownianTree(NoiseStream(0, 0, 2)), torch.ones(2, 1, dtype=_F64)
    with pytest.raises(ValueError, match="`solver` must estimate its error; got EulerMaruyama"):
        solve_adaptive(SDE(lambda t, x: x, lambda t, x: x), start, _times(2), tree, solver=EulerMaruyama())
    with pytest.raises(ValueError, match=r"`times` must be 2\*\*k \+ 1 equidistant instants"):
        solve_adaptive(_GROWTH, start, _times(3), tree, solver=SPaRK())
    with pytest.raises(ValueError, match="`tree` must hold 2 samples"):
        solve_adaptive(_GROWTH, start, _times(2), BrownianTree(NoiseStream(0, 0, 3)), solver=SPaRK())
    with pytest.raises(ValueError, match="`rtol` and `atol` must be at least 0"):
        Control(rtol=0, atol=0)
