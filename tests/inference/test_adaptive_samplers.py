"""Adaptive samplers: errors that fall with the tolerance, steps of each sample by itself, dense output."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from inference.interpolants import Diffusion, Kind, OneSided, Prediction
from inference.reference_problems import Mixture, MixtureProblem
from inference.samplers import DPMSolver
from inference.samplers.adaptive import AdaptiveDPMSolver, AdaptiveFlow
from sde.noise import NoiseStream

F64 = torch.float64
ENDS = torch.tensor([0.0, 1 - 1e-3], dtype=F64)


def three_modes() -> MixtureProblem:
    means = torch.tensor([[2.0, 0.0], [-1.0, 1.5], [-1.0, -2.0]], dtype=F64)
    spreads = torch.tensor([0.3, 0.5, 0.4], dtype=F64)
    covariances = spreads[:, None, None] ** 2 * torch.eye(2, dtype=F64)
    target = Mixture(torch.tensor([0.5, 0.3, 0.2], dtype=F64), means, covariances)
    return MixtureProblem(OneSided(Diffusion()), Mixture.standard(2), target)


@pytest.fixture(scope="module")
def problem() -> tuple[Prediction, Tensor, Tensor]:
    """Prediction, starts and where the flow carries them, by another code."""
    exact, start = three_modes(), NoiseStream(0, 0, 24).normals(2, dtype=F64)
    velocity = exact.field(Kind.VELOCITY)

    def rate(t: float, x: np.ndarray) -> np.ndarray:
        return velocity(torch.tensor(t, dtype=F64), torch.tensor(x).view(-1, 2)).numpy().ravel()

    ends = solve_ivp(rate, ENDS.tolist(), start.numpy().ravel(), method="DOP853", rtol=1e-11, atol=1e-11)
    return exact.prediction(), start, torch.tensor(ends.y[:, -1]).view(-1, 2)


@pytest.mark.parametrize("form", [Kind.TARGET, Kind.NOISE])
@pytest.mark.parametrize("order", [2, 3])
def test_error_falls_with_the_tolerance(
    problem: tuple[Prediction, Tensor, Tensor], order: int, form: Kind
) -> None:
    """The local error of order p is the tolerance, and the global one falls like tol^((p - 1) / p)."""
    prediction, start, end = problem
    errors, evaluations = [], []
    for share in (1.0, 0.1, 0.01):
        method = AdaptiveDPMSolver(order, form, atol=0.0078 * share, rtol=0.05 * share)
        found = method.run(prediction, start, ENDS)
        errors.append((found.points - end).norm(dim=1).median().item())
        evaluations.append(found.evaluations)
    rate = ((order - 1) / order) * np.log(100)
    assert np.log(errors[0] / errors[2]) > 0.8 * rate
    assert errors[0] < 0.1
    assert evaluations[0] < evaluations[1] < evaluations[2]
    assert evaluations[0] % order == 0


def test_sample_does_not_depend_on_its_neighbours(problem: tuple[Prediction, Tensor, Tensor]) -> None:
    prediction, start, _ = problem
    method, noise = AdaptiveDPMSolver(), NoiseStream(0, 0, 24)
    alone = torch.cat([method(prediction, row[None], ENDS, noise) for row in start[:4]])
    torch.testing.assert_close(method(prediction, start, ENDS, noise)[:4], alone, rtol=1e-10, atol=1e-10)
    together = AdaptiveDPMSolver(together=True).run(prediction, start, ENDS)
    assert together.accepted.unique().numel() == 1  # one grid for all
    assert (together.points[:4] - alone).abs().max() > 1e-6


def test_kept_steps_are_those_of_the_fixed_method(problem: tuple[Prediction, Tensor, Tensor]) -> None:
    """With tolerances that accept everything: the first step is 0.05, each next one five times as long."""
    prediction, start, _ = problem
    log_snr = Diffusion().log_snr(ENDS)
    places = [log_snr[0].item()]
    for step in (0.05, 0.25, 1.25, 6.25):
        places.append(min(places[-1] + step, log_snr[1].item()))
    while places[-1] < log_snr[1].item():
        places.append(log_snr[1].item())
    times = Diffusion().time(torch.tensor(places, dtype=F64))
    found = AdaptiveDPMSolver(atol=1e9).run(prediction, start, ENDS)
    assert found.rejected.sum() == 0
    fixed = DPMSolver(3, multistep=False)(prediction, start, times, NoiseStream(0, 0, 24))
    torch.testing.assert_close(found.points, fixed, rtol=1e-8, atol=1e-8)


def test_noise_to_data_and_back(problem: tuple[Prediction, Tensor, Tensor]) -> None:
    prediction, start, end = problem
    method = AdaptiveFlow(1e-8, 1e-8)
    there = method(prediction, start, ENDS, NoiseStream(0, 0, 24))
    torch.testing.assert_close(there, end, rtol=0, atol=1e-5)
    back = method(prediction, there, ENDS.flip(0), NoiseStream(0, 0, 24))
    torch.testing.assert_close(back, start, rtol=0, atol=1e-4)


def test_dense_output_is_the_solution_at_all_times() -> None:
    """On exp(3 t), whose error falls by 10^(4/5) or more for each decade of the tolerance."""
    growth = Prediction(OneSided(), {Kind.VELOCITY: lambda t, x: 3 * x})
    times, start = torch.linspace(0, 1, 33, dtype=F64), torch.ones(2, 1, dtype=F64)
    errors, steps = [], []
    for tol in (1e-4, 1e-6, 1e-8, 1e-10):
        found = AdaptiveFlow(tol, tol).trajectory(growth, start, times)
        errors.append((found.points[0, :, 0] - (3 * times).exp()).abs().max().item())
        steps.append(found.accepted[0].item())
    slope = np.polyfit(range(4), np.log10(errors), 1)[0]
    assert slope < -2 * 0.75
    assert errors[-1] < 1e-7
    few = AdaptiveFlow(1e-6, 1e-6).trajectory(growth, start, times[[0, -1]])
    assert few.accepted[0] == steps[1]  # the steps do not know where points are wanted


def test_dense_output_is_that_of_another_code() -> None:
    """Shampine's interpolant, as SciPy has it: the same tableau for the same slopes."""
    from scipy.integrate import RK45

    from inference.samplers.adaptive import _DENSE, _ERROR, _MATRIX

    np.testing.assert_allclose(np.array(_DENSE), RK45.P, rtol=0, atol=1e-14)
    np.testing.assert_allclose(-np.array(_ERROR), RK45.E, rtol=0, atol=1e-14)
    np.testing.assert_allclose(np.array(_MATRIX[-1]), RK45.B, rtol=0, atol=1e-14)


def test_gradients_pass_through_the_accepted_steps() -> None:
    factor = torch.tensor(0.7, dtype=F64, requires_grad=True)
    path = Prediction(OneSided(), {Kind.VELOCITY: lambda t, x: factor * x})
    ones = torch.ones(1, 1, dtype=F64)
    end = AdaptiveFlow(1e-9, 1e-9)(path, ones, torch.tensor([0.0, 1.0], dtype=F64), NoiseStream(0, 0, 1))
    (gradient,) = torch.autograd.grad(end.sum(), factor)
    assert gradient.item() == pytest.approx(np.exp(0.7), rel=1e-6)


BAD: list[tuple[Callable[[], object], str]] = [
    (lambda: AdaptiveDPMSolver(1), r"`order` must be 2 or 3; got 1"),
    (lambda: AdaptiveDPMSolver(form=Kind.SCORE), r"`form` must be Kind.TARGET or Kind.NOISE"),
    (lambda: AdaptiveFlow(0.0, 0.0), r"`rtol` and `atol` must be at least 0 and not both 0"),
    (
        lambda: AdaptiveDPMSolver().run(
            three_modes().prediction(), torch.zeros(1, 2), torch.tensor([0.0, 1.0])
        ),
        r"`times` must begin and end where the signal-to-noise ratio is finite",
    ),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_refuse(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_walk_without_an_end_is_told_of() -> None:
    start = torch.zeros(2, 2, dtype=F64)
    with pytest.raises(RuntimeError, match=r"Sample 0 took 2 steps and stands at"):
        AdaptiveDPMSolver(max_tries=2).run(three_modes().prediction(), start, ENDS)
