"""What `sdeint` takes and refuses."""

import itertools
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sde import torchsde_api as torchsde
from sde.torchsde_api.settings import LEVY_AREA_APPROXIMATIONS, METHODS, NOISE_TYPES, SDE_TYPES
from tests.sde.torchsde_api.models import BATCH, STATE, TIMES, Duck, Model, allowed, motion, state


@pytest.mark.parametrize("noise_type", ["diagonal", "scalar", "additive", "general"])
@pytest.mark.parametrize("sde_type", ["ito", "stratonovich"])
def test_every_pairing_runs_or_raises_value_error(sde_type: str, noise_type: str) -> None:
    model = Model(sde_type, noise_type)
    motions: list[str | None] = [None, "duck", "none", "space-time", "davie", "foster"]
    for method, kind, adaptive, logqp in itertools.product(
        METHODS.all(), motions, (False, True), (False, True)
    ):
        channels = model.channels + (logqp and noise_type == "diagonal")
        bm = None
        if kind is not None:
            bm = Duck((BATCH, channels)) if kind == "duck" else motion(model, kind, logqp=logqp)
        options = {
            "method": method,
            "dt": 0.1,
            "rtol": 1.0,
            "atol": 1.0,
            "adaptive": adaptive,
            "dt_min": 0.05,
        }

        def run() -> Tensor | tuple[Tensor, Tensor]:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                return torchsde.sdeint(model, state(), TIMES, bm=bm, logqp=logqp, **options)  # noqa: B023

        levy = "none" if kind == "duck" else kind
        if not allowed(sde_type, noise_type, method, levy):
            with pytest.raises(ValueError, match=r"^`(method|bm)` must"):
                run()
            continue
        result = run()
        states, *entropy = result if logqp else (result,)
        assert states.shape == (3, BATCH, STATE)
        assert [part.shape for part in entropy] == [(2, BATCH)] * logqp
        assert states.isfinite().all()


@pytest.mark.parametrize(
    ("sde_type", "noise_type", "method"),
    [
        ("ito", "diagonal", "srk"),
        ("ito", "scalar", "srk"),
        ("ito", "additive", "srk"),
        ("ito", "general", "euler"),
        *[("stratonovich", noise, "midpoint") for noise in ("diagonal", "scalar", "additive", "general")],
    ],
)
def test_default_method_is_that_of_torchsde(sde_type: str, noise_type: str, method: str) -> None:
    model = Model(sde_type, noise_type)
    runs = [
        torchsde.sdeint(model, state(), TIMES, bm=motion(model), dt=0.1, method=name)
        for name in (None, method)
    ]
    assert torch.equal(*runs)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y0": torch.ones(3)}, "`y0` must be a tensor of shape"),
        ({"y0": [[1.0]]}, "`y0` must be a tensor of shape"),
        ({"ts": [0.0, 0.0]}, "`ts` must increase strictly"),
        ({"ts": "01"}, "`ts` must be a 1-D tensor"),
        ({"ts": torch.tensor([0.0, 1.0], requires_grad=True)}, "`ts` must not require a gradient"),
        ({"dt": torch.tensor(0.1, requires_grad=True)}, "`dt` must not require a gradient"),
        ({"dt": 0.0}, "`dt` must be positive"),
        ({"method": "magic"}, "`method` must be one of"),
        ({"bm": Duck((5, 3))}, "`bm` must have batch size 4"),
        ({"bm": Duck((4, 2))}, "`y0` must have noise size 2"),
    ],
)
def test_wrong_arguments_raise_value_error(changes: dict, message: str) -> None:
    arguments = {"sde": Model("ito", "diagonal"), "y0": state(), "ts": TIMES, "dt": 0.1} | changes
    with pytest.raises(ValueError, match=message):
        torchsde.sdeint(**arguments)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"noise_type": "white"}, "`noise_type` must be one of"),
        ({"sde_type": "backward"}, "`sde_type` must be one of"),
        ({"f": lambda t, y: y[:, :2]}, "`f` must have state size 3"),
        ({"f": lambda t, y: y[:2]}, "`f` must have batch size 4"),
        ({"g": lambda t, y: y.unsqueeze(-1)}, "`g` must be of shape"),
        (
            {"g": lambda t, y: y.unsqueeze(-1).expand(4, 3, 2), "noise_type": "scalar"},
            "one noise channel where its noise is scalar; got 2",
        ),
    ],
)
def test_wrong_equations_raise_value_error(attributes: dict, message: str) -> None:
    model = Model("ito", "diagonal")
    for name, value in attributes.items():
        setattr(model, name, value)
    with pytest.raises(ValueError, match=message):
        torchsde.sdeint(model, state(), TIMES, dt=0.1)


def test_missing_attributes_raise() -> None:
    class Empty:
        noise_type, sde_type = "diagonal", "ito"

    with pytest.raises(ValueError, match="must have the attribute noise_type"):
        torchsde.sdeint(object(), state(), TIMES)
    with pytest.raises(ValueError, match="must have a drift"):
        torchsde.sdeint(Empty(), state(), TIMES)
    with pytest.raises(AttributeError, match="f, g and h"):
        torchsde.sdeint(Empty(), state(), TIMES, logqp=True)


def test_unexpected_arguments_warn() -> None:
    model = Model("ito", "diagonal")
    for way in (torchsde.sdeint, torchsde.sdeint_adjoint):
        with pytest.warns(UserWarning, match="ignores unexpected arguments: adjoint_magic"):
            way(model, state(), TIMES, dt=0.1, adjoint_magic=1)


def test_base_classes_and_names() -> None:
    assert torchsde.SDEIto("diagonal").sde_type == "ito"
    assert torchsde.SDEStratonovich("general").sde_type == "stratonovich"
    with pytest.raises(ValueError, match="`noise_type` must be one of"):
        torchsde.SDEIto("white")
    with pytest.raises(ValueError, match="`sde_type` must be one of"):
        torchsde.BaseSDE(noise_type="scalar", sde_type="other")
    assert "srk" in METHODS
    assert "magic" not in METHODS
    assert METHODS.log_ode_midpoint == "log_ode"
    assert NOISE_TYPES.all() == ["additive", "diagonal", "general", "scalar"]
    assert str(SDE_TYPES) == "['ito', 'stratonovich']"
    assert LEVY_AREA_APPROXIMATIONS.space_time == "space-time"


# Ways to give an equation


def _product(model: Model) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    if model.noise_type == "diagonal":
        return lambda t, y, v: model.g(t, y) * v
    return lambda t, y, v: torch.bmm(model.g(t, y), v.unsqueeze(-1)).squeeze(-1)


@pytest.mark.parametrize("noise_type", ["diagonal", "scalar", "additive", "general"])
@pytest.mark.parametrize(("sde_type", "method"), [("ito", "euler"), ("stratonovich", "midpoint"),
                                                  ("stratonovich", "reversible_heun")])  # fmt: skip
def test_six_ways_to_give_an_equation_agree_to_the_bit(sde_type: str, noise_type: str, method: str) -> None:
    model = Model(sde_type, noise_type)
    product = _product(model)
    parts = {
        "f": model.f,
        "g": model.g,
        "g_prod": product,
        "f_and_g": lambda t, y: (model.f(t, y), model.g(t, y)),
        "f_and_g_prod": lambda t, y, v: (model.f(t, y), product(t, y, v)),
    }
    ways = [
        ("f", "g"),
        ("f_and_g",),
        ("f", "g_prod"),
        ("f_and_g_prod",),
        ("f", "g", "f_and_g", "g_prod"),
        tuple(parts),
    ]
    results = []
    for way in ways:
        holder = type("Holder", (), {"sde_type": sde_type, "noise_type": noise_type})()
        for name in way:
            setattr(holder, name, parts[name])
        bm = motion(model)
        results.append(torchsde.sdeint(holder, state(), TIMES, bm=bm, dt=0.1, method=method))
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_joint_method_is_called_once_a_step() -> None:
    model, calls = Model("stratonovich", "general"), []

    class Joint:
        noise_type, sde_type = "general", "stratonovich"

        def f_and_g(self, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            calls.append(float(t))
            return model.f(t, y), model.g(t, y)

    torchsde.sdeint(Joint(), state(), [0.0, 1.0], dt=0.1, method="reversible_heun")
    assert len(calls) == 1 + 1 + 10  # the check of shapes, the start, and the steps


@pytest.mark.parametrize("logqp", [False, True])
def test_methods_may_have_other_names(logqp: bool) -> None:
    model = Model("ito", "diagonal")
    holder = type("Holder", (), {"sde_type": "ito", "noise_type": "diagonal"})()
    holder.foo, holder.bar, holder.baz = model.f, model.g, model.h
    names = {"drift": "foo", "diffusion": "bar", "prior_drift": "baz"}
    arguments = {"bm": motion(model, logqp=logqp), "dt": 0.1, "logqp": logqp}
    renamed = torchsde.sdeint(holder, state(), TIMES, names=names, **arguments)
    plain = torchsde.sdeint(model, state(), TIMES, **arguments)
    for one, other in zip(renamed, plain, strict=True):
        assert torch.equal(one, other)
    prior = torchsde.sdeint(model, state(), TIMES, bm=motion(model), dt=0.1, names={"drift": "h"})
    assert not torch.equal(prior, plain[0] if logqp else plain)


@pytest.mark.parametrize(("noise_type", "drifts", "diffusions"), [("diagonal", 3, 4), ("additive", 2, 2)])
@pytest.mark.parametrize("together", [False, True])
def test_runge_kutta_steps_evaluate_nothing_twice(
    noise_type: str, drifts: int, diffusions: int, together: bool
) -> None:
    model, calls = Model("ito", noise_type), {"f": 0, "g": 0}

    class Counted:
        sde_type = "ito"

        def __init__(self) -> None:
            self.noise_type = noise_type
            if together:
                self.f_and_g = lambda t, y: (model.f(t, y), model.g(t, y))

        def f(self, t: Tensor, y: Tensor) -> Tensor:
            calls["f"] += 1
            return model.f(t, y)

        def g(self, t: Tensor, y: Tensor) -> Tensor:
            calls["g"] += 1
            return model.g(t, y)

    torchsde.sdeint(Counted(), state(), [0.0, 1.0], dt=0.1, method="srk")
    assert calls == {"f": 1 + 10 * drifts, "g": 1 + 10 * diffusions}  # one is the check of shapes
