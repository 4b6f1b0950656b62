"""The steps of `sdeint`, and what it returns."""

import itertools

import pytest
import torch
from torch import Tensor

from sde import torchsde_api as torchsde
from tests.sde.torchsde_api.models import BATCH, F64, STATE, TIMES, Model, motion, state


class _Line:
    """Drift only, which counts its calls."""

    noise_type, sde_type = "diagonal", "ito"

    def __init__(self) -> None:
        self.times: list[float] = []

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        self.times.append(float(t))
        return y

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        return torch.zeros_like(y)


def test_steps_do_not_accumulate_rounding() -> None:
    line = _Line()
    ts = torch.tensor([0.0, 100.0])
    torchsde.sdeint(line, torch.zeros(1, 1), ts, dt=0.1, method="euler")
    assert len(line.times) == 1 + 1000
    assert line.times[1:] == [float(torch.tensor(k * 0.1)) for k in range(1000)]


def test_states_between_steps_are_interpolated() -> None:
    states = torchsde.sdeint(
        _Line(), torch.ones(1, 1, dtype=F64), [0.0, 0.15, 0.2, 0.25], dt=0.1, method="euler"
    )
    expected = torch.tensor(
        [1.0, 0.5 * (1.1 + 1.21), 1.21, 1.21 + 0.121], dtype=F64
    )  # the last step is halved
    expected[3] = 1.21 * 1.05
    torch.testing.assert_close(states[:, 0, 0], expected, rtol=1e-14, atol=0.0)


@pytest.mark.parametrize("ts", [[0.0, 0.5], (0, 1), torch.tensor([0.0, 0.5, 1.0])])
def test_times_may_be_sequences(ts: list | tuple | Tensor) -> None:
    model = Model("ito", "general")
    for way in (torchsde.sdeint, torchsde.sdeint_adjoint):
        assert way(model, state(), ts, dt=0.1).shape == (len(ts), BATCH, STATE)
    assert torch.equal(torchsde.sdeint(model, state(), [0.0]), state().unsqueeze(0))


def test_adaptive_steps_meet_a_tolerance() -> None:
    exact = torch.tensor([1.0], dtype=F64).exp()
    errors = []
    for tolerance in (1e-2, 1e-4):
        states = torchsde.sdeint(_Line(), torch.ones(1, 1, dtype=F64), [0.0, 1.0], dt=0.1, method="srk",
                                 adaptive=True, rtol=tolerance, atol=tolerance)  # fmt: skip
        errors.append(float((states[-1] - exact).abs()))
    assert errors[1] < errors[0] < 1e-2


def test_adaptive_steps_see_one_path() -> None:
    model = Model("stratonovich", "diagonal")
    bm = motion(model)
    fine = torchsde.sdeint(model, state(), TIMES, bm=bm, dt=1e-3)
    runs = [
        torchsde.sdeint(model, state(), TIMES, bm=bm, dt=0.1, adaptive=True, rtol=r, atol=r)
        for r in (1e-1, 1e-4)
    ]
    errors = [float((run[-1] - fine[-1]).detach().norm()) for run in runs]
    assert errors[1] < errors[0] < 0.05


def test_adaptive_warnings() -> None:
    model = Model("ito", "diagonal")
    with pytest.warns(UserWarning, match="may miss the solution"):
        torchsde.sdeint(model, state(), TIMES, dt=0.1, method="euler", adaptive=True, rtol=1.0, atol=1.0)
    with pytest.warns(UserWarning, match="smallest allowed step"):
        torchsde.sdeint(model, state(), TIMES, dt=0.1, adaptive=True, rtol=0.0, atol=1e-9, dt_min=0.05)
    nan = _Line()
    nan.f = lambda t, y: y * torch.nan  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="not a number"):
        torchsde.sdeint(nan, state(), TIMES, dt=0.1, method="srk", adaptive=True)


def test_additive_euler_may_be_adaptive_without_a_warning() -> None:
    model = Model("ito", "additive")
    torchsde.sdeint(model, state(), TIMES, dt=0.1, method="euler", adaptive=True, rtol=1.0, atol=1.0)


def test_milstein_without_derivatives_is_close_to_milstein() -> None:
    for sde_type, noise_type in itertools.product(
        ("ito", "stratonovich"), ("diagonal", "scalar", "additive")
    ):
        model = Model(sde_type, noise_type)
        one, other = (
            torchsde.sdeint(model, state(), TIMES, bm=motion(model), dt=1e-2, method="milstein",
                            options={"grad_free": free})
            for free in (False, True)
        )  # fmt: skip
        assert float((one - other).detach().abs().max()) < 5e-3


def test_relative_entropy_of_constants() -> None:
    for noise_type, matrix in (
        ("diagonal", 2 * torch.ones(4, 3)),
        ("general", 2 * torch.eye(3).expand(4, 3, 3)),
    ):
        holder = type("Holder", (), {"sde_type": "ito", "noise_type": noise_type})()
        holder.f, holder.h = lambda t, y: torch.ones_like(y), lambda t, y: torch.zeros_like(y)
        holder.g = lambda t, y, matrix=matrix: matrix.to(y)
        states, entropy = torchsde.sdeint(holder, state(), TIMES, dt=0.05, logqp=True)
        expected = 0.5 * 3 * 0.25 * torch.tensor(TIMES, dtype=F64).diff()
        torch.testing.assert_close(entropy, expected[:, None].expand(2, 4))
        assert states.shape == (3, 4, 3)


@pytest.mark.parametrize("noise_type", ["diagonal", "scalar", "additive", "general"])
def test_extra_state_continues_a_solve(noise_type: str) -> None:
    model = Model("stratonovich", noise_type)
    bm, options = motion(model), {"dt": 0.125, "method": "reversible_heun", "extra": True}
    whole, end = torchsde.sdeint(model, state(), [0.0, 0.5, 1.0], bm=bm, **options)
    first, carried = torchsde.sdeint(model, state(), [0.0, 0.5], bm=bm, **options)
    assert [part.shape for part in carried][1] == model.g(torch.zeros(()), state()).shape
    options["extra_solver_state"] = carried
    second, other = torchsde.sdeint(model, first[-1], [0.5, 1.0], bm=bm, **options)
    torch.testing.assert_close(second[-1], whole[-1], rtol=1e-13, atol=0.0)
    for one, two in zip(end, other, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-14)
    assert torchsde.sdeint(model, state(), TIMES, dt=0.1, extra=True)[1] == ()


@pytest.mark.parametrize("noise_type", ["diagonal", "scalar", "additive", "general"])
def test_reversible_heun_runs_back_to_its_start(noise_type: str) -> None:
    model = Model("stratonovich", noise_type)
    bm = motion(model)
    options = {"dt": 0.01, "method": "reversible_heun", "extra": True}
    states, (drift, diffusion, auxiliary) = torchsde.sdeint(model, state(), [0.0, 1.0], bm=bm, **options)
    back = type("Back", (), {"sde_type": "stratonovich", "noise_type": noise_type})()
    back.f, back.g = lambda t, y: -model.f(-t, y), lambda t, y: -model.g(-t, y)
    returned, _ = torchsde.sdeint(
        back, states[-1], [-1.0, 0.0], bm=torchsde.ReverseBrownian(bm),
        extra_solver_state=(-drift, -diffusion, auxiliary), **options,
    )  # fmt: skip
    torch.testing.assert_close(returned[-1], state(), rtol=1e-10, atol=0.0)
