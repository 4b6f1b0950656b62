"""Gradients of `sdeint_adjoint`."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sde import torchsde_api as torchsde
from tests.sde.torchsde_api.models import F64, STATE, TIMES, Model, motion, state


def _gradients(way: Callable[..., Tensor], model: Model, **options: object) -> Tensor:
    initial = state(requires_grad=True)
    bm = motion(model, "foster")
    states = way(model, initial, [0.0, 0.5, 1.0], bm=bm, **options)
    bars = torch.autograd.grad(
        (states * states.sin()).sum(), (initial, *model.parameters()), allow_unused=True
    )
    inputs = (initial, *model.parameters())
    return torch.cat(
        [
            torch.zeros_like(p).flatten() if b is None else b.flatten()
            for b, p in zip(bars, inputs, strict=True)
        ]
    )


@pytest.mark.parametrize("noise_type", ["diagonal", "scalar", "additive", "general"])
@pytest.mark.parametrize("sde_type", ["ito", "stratonovich"])
def test_adjoint_gradient_is_close_to_that_of_the_graph(sde_type: str, noise_type: str) -> None:
    model = Model(sde_type, noise_type)
    one, other = (_gradients(way, model, dt=2**-6) for way in (torchsde.sdeint, torchsde.sdeint_adjoint))
    assert (one - other).norm() < 1e-2 * one.norm()


@pytest.mark.parametrize("noise_type", ["diagonal", "scalar", "additive", "general"])
@pytest.mark.parametrize("dt", [2**-3, 0.15])
def test_reversible_gradient_is_that_of_the_graph(noise_type: str, dt: float) -> None:
    model = Model("stratonovich", noise_type)
    ways = (torchsde.sdeint, torchsde.sdeint_adjoint)
    one, other = (_gradients(way, model, dt=dt, method="reversible_heun") for way in ways)
    assert (one - other).norm() < 1e-12 * one.norm()


def test_adjoint_solve_is_that_without() -> None:
    for sde_type, method in (("ito", "srk"), ("stratonovich", "reversible_heun"), ("stratonovich", "heun")):
        model = Model(sde_type, "diagonal")
        for options in ({"dt": 0.07}, {"dt": 0.1, "adaptive": True, "rtol": 1e-2, "atol": 1e-2}):
            one, other = (
                way(model, state(), TIMES, bm=motion(model), method=method, **options)
                for way in (torchsde.sdeint, torchsde.sdeint_adjoint)
            )
            torch.testing.assert_close(one, other, rtol=1e-12, atol=0.0)


def test_adjoint_gradient_of_adaptive_steps_and_relative_entropy() -> None:
    model = Model("stratonovich", "diagonal")
    options = {"adaptive": True, "rtol": 1e-3, "atol": 1e-3, "dt": 0.1}
    one, other = (_gradients(way, model, **options) for way in (torchsde.sdeint, torchsde.sdeint_adjoint))
    assert (one - other).norm() < 2e-2 * one.norm()
    bars = []
    for way in (torchsde.sdeint, torchsde.sdeint_adjoint):
        _, entropy = way(model, state(), TIMES, bm=motion(model, logqp=True), dt=2**-7, logqp=True)
        bars.append(torch.cat(torch.autograd.grad(entropy.sum(), (model.b,))))
    assert (bars[0] - bars[1]).norm() < 1e-2 * bars[0].norm()


def test_adjoint_params_may_be_any_tensors() -> None:
    context = torch.full((STATE,), 0.3, dtype=F64, requires_grad=True)
    other = torch.ones((), dtype=F64, requires_grad=True)
    bars = []
    for way in (torchsde.sdeint, torchsde.sdeint_adjoint):
        derived = context.exp()  # not a leaf
        holder = type("Holder", (), {"sde_type": "stratonovich", "noise_type": "diagonal"})()
        holder.f, holder.g = lambda t, y, c=derived: -c * y * other, lambda t, y: 0.1 * y.cos()
        options = {"adjoint_params": (derived,)} if way is torchsde.sdeint_adjoint else {}
        bm = motion(Model("stratonovich", "diagonal"))
        states = way(holder, state(), TIMES, bm=bm, dt=2**-7, **options)
        bars.append(torch.autograd.grad(states.sum(), (context, other), allow_unused=True))
    torch.testing.assert_close(bars[0][0], bars[1][0], rtol=1e-2, atol=0.0)
    assert bars[1][1] is None  # it was not named


def test_adjoint_errors() -> None:
    holder = type("Holder", (), {"sde_type": "ito", "noise_type": "diagonal"})()
    holder.f, holder.g = lambda t, y: -y, lambda t, y: torch.ones_like(y)
    with pytest.raises(ValueError, match="`adjoint_params` must be given"):
        torchsde.sdeint_adjoint(holder, state(), TIMES)
    assert torchsde.sdeint_adjoint(holder, state(), TIMES, adjoint_params=(), dt=0.1).shape == (3, 4, 3)
    for sde_type, noise_type, name in (
        ("ito", "diagonal", "midpoint"),
        ("ito", "diagonal", "srk"),
        ("ito", "general", "milstein"),
        ("stratonovich", "diagonal", "euler"),
        ("stratonovich", "diagonal", "adjoint_reversible_heun"),
        ("stratonovich", "diagonal", "magic"),
    ):
        with pytest.raises(ValueError, match="`adjoint_method` must"):
            torchsde.sdeint_adjoint(Model(sde_type, noise_type), state(), TIMES, dt=0.1, adjoint_method=name)
    with pytest.raises(ValueError, match="`adjoint_rtol` must not require a gradient"):
        torchsde.sdeint_adjoint(
            Model("ito", "scalar"), state(), TIMES, adjoint_rtol=torch.ones((), requires_grad=True)
        )
    model = Model("stratonovich", "diagonal")
    with pytest.warns(UserWarning, match="without 'adjoint_reversible_heun'"):
        torchsde.sdeint_adjoint(
            model, state(), TIMES, dt=0.1, method="reversible_heun", adjoint_method="midpoint"
        )
    states, extra = torchsde.sdeint_adjoint(
        model, state(), TIMES, dt=0.1, method="reversible_heun", extra=True
    )
    assert len(extra) == 3
    assert states.requires_grad


@pytest.mark.parametrize(("sde_type", "method"), [("ito", "srk"), ("stratonovich", "midpoint")])
def test_adjoint_gradient_is_that_of_differences(sde_type: str, method: str) -> None:
    model, change = Model(sde_type, "diagonal"), 1e-5

    def loss() -> Tensor:
        bm = motion(model)
        return torchsde.sdeint_adjoint(model, state(), [0.0, 0.5], bm=bm, dt=2**-8, method=method)[-1].sum()

    (gradient,) = torch.autograd.grad(loss(), (model.b,))
    with torch.no_grad():
        model.b[0] += change
        above = loss()
        model.b[0] -= 2 * change
        below = loss()
    difference = (above - below) / (2 * change)
    torch.testing.assert_close(gradient[0], difference, rtol=2e-3, atol=0.0)


@pytest.mark.parametrize("method", ["midpoint", "reversible_heun"])
def test_second_derivatives_of_the_adjoint_are_refused(method: str) -> None:
    model, initial = Model("stratonovich", "diagonal"), state(requires_grad=True)
    states = torchsde.sdeint_adjoint(model, initial, TIMES, bm=motion(model), dt=0.1, method=method)
    (gradient,) = torch.autograd.grad(states.square().sum(), (initial,), create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("sde_type", ["ito", "stratonovich"])
def test_constant_coefficients_leave_the_gradient_as_it_is(sde_type: str) -> None:
    model = Model(sde_type, "diagonal")
    model.f = model.g = lambda t, y: torch.full_like(y, 0.1)  # type: ignore[method-assign]
    initial = state(requires_grad=True)
    states = torchsde.sdeint_adjoint(model, initial, TIMES, bm=motion(model), dt=0.1)
    bars = torch.autograd.grad(states[-1].sum(), (initial, model.b))
    assert torch.equal(bars[0], torch.ones_like(initial))
    assert torch.equal(bars[1], torch.zeros_like(model.b))
