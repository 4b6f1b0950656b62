"""Equations from objects."""

import pytest
import torch

from sde import SDE, Calculus, NoiseStream, NoiseStructure, solve
from sde.adapters import from_object
from sde.solvers import Heun
from tests.sde.torchsde_api.models import BATCH, F64, NOISE, Model, state


@pytest.mark.parametrize("noise_type", ["diagonal", "scalar", "additive", "general"])
def test_object_is_the_equation_that_it_holds(noise_type: str) -> None:
    model, structure = Model("stratonovich", noise_type), NoiseStructure(noise_type)
    noise_dim = NOISE if noise_type in ("additive", "general") else None
    diffusion = (lambda t, y: model.g(t, y)[..., 0]) if noise_type == "scalar" else model.g
    equation = SDE(model.f, diffusion, structure, Calculus.STRATONOVICH, noise_dim)
    times, noise = torch.linspace(0, 1, 9, dtype=F64), NoiseStream(0, 0, BATCH)
    one, other = (
        solve(sde, state(), times, noise, solver=Heun()) for sde in (from_object(model, state()), equation)
    )
    torch.testing.assert_close(one, other, rtol=1e-13, atol=0.0)
    assert len(from_object(model, state()).parameters) == 3


def test_object_errors() -> None:
    with pytest.raises(ValueError, match="`state` must be given for general noise"):
        from_object(Model("ito", "general"))
    with pytest.raises(ValueError, match="must have methods for drift and diffusion"):
        from_object(type("Holder", (), {"sde_type": "ito", "noise_type": "diagonal"})())
    wrong = Model("ito", "general")
    wrong.g = lambda t, y: y  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=r"`g` must return shape \(n, d, m\)"):
        from_object(wrong, state())
