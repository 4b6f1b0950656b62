"""Schedules, interpolants and the flow-matching loss."""

import numpy as np
import pytest
import torch

from inference.interpolants import Interpolant, Linear, Schedule, Trigonometric, velocity_loss

SCHEDULES = [Linear(), Trigonometric()]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_schedule_starts_at_the_base_and_ends_at_the_target(schedule: Schedule) -> None:
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    alpha, beta = schedule.coefficients(ends)
    torch.testing.assert_close(alpha, torch.tensor([1.0, 0.0], dtype=torch.float64), rtol=0, atol=1e-15)
    torch.testing.assert_close(beta, torch.tensor([0.0, 1.0], dtype=torch.float64), rtol=0, atol=1e-15)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_schedule_has_the_derivatives_of_its_coefficients(schedule: Schedule) -> None:
    t = torch.linspace(0.05, 0.95, 7, dtype=torch.float64)
    for which in (0, 1):
        exact = torch.func.vmap(torch.func.grad(lambda s, k=which: schedule.coefficients(s)[k]))(t)
        torch.testing.assert_close(schedule.derivatives(t)[which], exact, rtol=1e-13, atol=1e-14)


def test_trigonometric_schedule_keeps_a_unit_variance() -> None:
    alpha, beta = Trigonometric().coefficients(torch.linspace(0, 1, 9, dtype=torch.float64))
    torch.testing.assert_close(alpha**2 + beta**2, torch.ones(9, dtype=torch.float64), rtol=0, atol=1e-15)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_interpolant_velocity_is_the_derivative_of_its_point(schedule: Schedule) -> None:
    rng = np.random.default_rng(0)
    base, target = torch.tensor(rng.standard_normal((2, 5, 3)))
    path, t, step = Interpolant(schedule), torch.full((5, 1), 0.3, dtype=torch.float64), 1e-6
    slope = (path.point(t + step, base, target) - path.point(t - step, base, target)) / (2 * step)
    torch.testing.assert_close(path.velocity(t, base, target), slope, rtol=0, atol=1e-9)


def test_velocity_loss_is_least_at_the_conditional_mean() -> None:
    rng = np.random.default_rng(1)
    base = torch.tensor(rng.standard_normal((20000, 1)))
    target = base + 2.0  # coupled, so that the velocity is 2 everywhere and the loss can reach 0
    t = torch.tensor(rng.uniform(size=(20000, 1)))
    none = base[:, :0]
    assert (
        velocity_loss(lambda x, t, c: torch.full_like(x, 2.0), Interpolant(), base, target, t, none) < 1e-28
    )
    off = velocity_loss(lambda x, t, c: torch.full_like(x, 2.5), Interpolant(), base, target, t, none)
    torch.testing.assert_close(off.item(), 0.25, rtol=1e-12, atol=0)


def test_velocity_loss_refuses_shapes_that_disagree() -> None:
    one = torch.ones(4, 2)
    with pytest.raises(ValueError, match=r"`target` must have shape \(n, d\) with n=4, d=2; got \(4, 3\)"):
        velocity_loss(lambda x, t, c: x, Interpolant(), one, torch.ones(4, 3), one[:, :1], one[:, :0])
