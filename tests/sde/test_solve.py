"""Fixed-step solves: orders on shared noise, closed forms, invariance, refusals."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sde import SDE, EulerMaruyama, Heun, NoiseStream, NoiseStructure, ode, solve
from sde.ensemble import Ensemble
from sde.grid import make_grid
from sde.noise import BrownianTree
from sde.noise.brownian import WienerIncrements
from tests.statistics import assert_mean

# dX = (b / sqrt(1 + t) - X / (2 (1 + t))) dt + a b / sqrt(1 + t) dW, with a = 1/2, b = 6/5
_ADDITIVE = SDE(
    drift=lambda t, x: 1.2 / (1 + t).sqrt() - x / (2 * (1 + t)),
    diffusion=lambda t, x: (0.6 / (1 + t).sqrt()).expand_as(x),
    structure=NoiseStructure.ADDITIVE,
)


def test_wrong_calculus_would_show_in_the_limit() -> None:
    drift, diffusion = (lambda t, x: torch.zeros_like(x)), (lambda t, x: x.cos() ** 2)
    fine = WienerIncrements(NoiseStream(8, 0, 4000), torch.full((128,), 1 / 128, dtype=torch.float64), 1,
                            dtype=torch.float64)  # fmt: skip
    # arctan(W + tan 1) solves the equation that is read in Stratonovich's sense.
    exact = (fine.chunk(0, 128).wiener.sum(0) + math.tan(1)).atan()

    def error(solver: EulerMaruyama | Heun) -> float:
        sde = SDE(drift, diffusion, calculus=solver.calculus)
        times = torch.linspace(0, 1, 129, dtype=torch.float64)
        paths = solve(sde, torch.ones(4000, 1, dtype=torch.float64), times, fine, solver=solver)
        return float((paths[:, -1] - exact).square().mean().sqrt())

    assert error(Heun()) < 0.01
    assert error(EulerMaruyama()) > 0.1


def test_ornstein_uhlenbeck_has_its_discrete_moments() -> None:
    sde = SDE(drift=lambda t, x: -2 * (x - 0.5), diffusion=lambda t, x: torch.full_like(x, 0.3))
    steps, n = 50, 100_000
    paths = solve(sde, torch.ones(n, 1), torch.linspace(0, 1, steps + 1), NoiseStream(4, 0, n))
    factor = 1 - 2 / steps
    mean = 0.5 + 0.5 * factor**steps
    variance = 0.09 / steps * (1 - factor ** (2 * steps)) / (1 - factor**2)
    assert_mean(paths[:, -1].double(), mean, bias=0.005)
    assert_mean((paths[:, -1].double() - mean) ** 2, variance, bias=0.001)


def test_geometric_motion_has_its_discrete_mean() -> None:
    sde = SDE(drift=lambda t, x: 0.1 * x, diffusion=lambda t, x: 0.2 * x)
    n, steps = 100_000, 20
    paths = solve(sde, torch.ones(n, 1), torch.linspace(0, 1, steps + 1), NoiseStream(6, 0, n))
    assert_mean(paths[:, -1].double(), (1 + 0.1 / steps) ** steps, bias=0.01)
    square = (1 + 0.2 / steps + 0.01 / steps**2 + 0.04 / steps) ** steps
    assert_mean(paths[:, -1].double() ** 2, square, bias=0.03)


@pytest.mark.parametrize("solver", [EulerMaruyama(), Heun()])
def test_path_is_the_same_in_every_batch_and_for_every_choice_of_saved_times(
    solver: EulerMaruyama | Heun,
) -> None:
    noise, times = NoiseStream(1, 100, 164), torch.linspace(0, 1, 9)
    whole = solve(_ADDITIVE, torch.ones(64, 3), times, noise, solver=solver, substeps=2)
    part = solve(_ADDITIVE, torch.ones(7, 3), times, noise[20:27], solver=solver, substeps=2)
    assert torch.equal(part, whole[20:27])
    coarse = solve(_ADDITIVE, torch.ones(64, 3), times[::4], noise, solver=solver, substeps=8)
    torch.testing.assert_close(coarse, whole[:, ::4], rtol=1e-5, atol=1e-6)


def test_gradients_agree_with_finite_differences() -> None:
    noise, times = NoiseStream(1, 0, 16), torch.linspace(0, 1, 21, dtype=torch.float64)

    def loss(theta: Tensor) -> Tensor:
        sde = SDE(lambda t, x: -theta[0] * x, lambda t, x: theta[1] * x.cos())
        return solve(sde, torch.ones(16, 2, dtype=torch.float64), times, noise)[:, -1].square().mean()

    theta = torch.tensor([0.7, 0.4], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(loss, theta, eps=1e-6, atol=1e-8, rtol=1e-7)


def test_ensemble_is_a_model_whose_rows_do_not_depend_on_the_batch() -> None:
    model = Ensemble(
        lambda inputs: SDE(lambda t, x: -inputs * x, lambda t, x: torch.ones_like(x)),
        torch.ones(1),
        torch.linspace(0, 1, 11),
        qoi=lambda paths: paths[:, -1, 0],
        input_dim=1,
    )
    noise = NoiseStream(3, 0, 40)
    inputs = noise.uniforms(1)
    whole = model(inputs, noise)
    assert whole.shape == (40,)
    assert torch.equal(model(inputs[10:13], noise[10:13]), whole[10:13])


_NOISE, _TIMES, _START = NoiseStream(0, 0, 4), torch.linspace(0, 1, 3), torch.ones(4, 2)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: solve(SDE(lambda t, x: -x, lambda t, x: x), _START, _TIMES, _NOISE, solver=Heun()),
            ValueError,
            r"`solver` must integrate Ito equations; got Heun",
        ),
        (lambda: solve(_ADDITIVE, _START, _TIMES.flip(0), _NOISE), ValueError, "`times` must increase"),
        (lambda: solve(_ADDITIVE, _START[:3], _TIMES, _NOISE), ValueError, "`initial`|samples"),
        (lambda: solve(_ADDITIVE, _START, _TIMES, _NOISE, substeps=0), ValueError, "`substeps`"),
        (lambda: solve(_ADDITIVE, _START * math.nan, _TIMES, _NOISE), ValueError, "`initial` must be finite"),
        (lambda: solve(_ADDITIVE, _START.long(), _TIMES, _NOISE), TypeError, "`initial`"),
        (
            lambda: solve(SDE(lambda t, x: x[:, :1], torch.add), _START, _TIMES, _NOISE),
            ValueError,
            r"`drift` must",
        ),
        (
            lambda: solve(
                SDE(lambda t, x: 1e30 * x**3, lambda t, x: torch.ones_like(x)), _START, _TIMES, _NOISE
            ),
            RuntimeError,
            "diverged",
        ),
    ],
)
def test_wrong_call_is_refused(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("solver", [EulerMaruyama(), Heun()])
def test_ordinary_equation_is_solved_without_noise(solver: EulerMaruyama | Heun) -> None:
    start, times = torch.ones(3, 2, 2, dtype=torch.float64), torch.linspace(0, 1, 257, dtype=torch.float64)
    end = solve(ode(lambda t, x: -x), start, times, None, solver=solver)[:, -1]
    torch.testing.assert_close(end, start * math.exp(-1), rtol=5e-3, atol=0)


def test_saved_instants_do_not_say_how_to_step() -> None:
    sde, start = SDE(lambda t, x: -x, lambda t, x: 0.5 * x), torch.ones(4, 1, dtype=torch.float64)
    tree = BrownianTree(NoiseStream(3, 0, 4), 0.0, 1.0)

    def end(times: list[float], max_step: float) -> Tensor:
        grid = torch.tensor(times, dtype=torch.float64)
        return solve(sde, start, grid, tree, max_step=max_step)[:, -1]

    # 1/2 and 1 are ends of steps of 1/8 already; an instant between the ends cuts one step more.
    torch.testing.assert_close(end([0.0, 0.5, 1.0], 0.125), end([0.0, 1.0], 0.125))
    assert not torch.allclose(end([0.0, 0.45, 1.0], 0.125), end([0.0, 1.0], 0.125))


def test_longest_step_is_kept() -> None:
    grid = make_grid(torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64), max_step=0.1)
    assert grid.counts == (3, 7)
    starts, sizes = grid.steps()
    torch.testing.assert_close(sizes, torch.full((10,), 0.1, dtype=torch.float64))
    torch.testing.assert_close(starts, torch.arange(10, dtype=torch.float64) / 10)
    with pytest.raises(ValueError, match="`max_step` must be positive"):
        make_grid(torch.tensor([0.0, 1.0]), max_step=0.0)
    with pytest.raises(ValueError, match="`substeps` must be left out"):
        make_grid(torch.tensor([0.0, 1.0]), 2, 0.1)
