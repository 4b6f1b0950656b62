"""Fixed-step solves: orders on shared noise, closed forms, invariance, refusals."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sde import SDE, Calculus, EulerMaruyama, Heun, NoiseStream, NoiseStructure, ode, solve
from sde.ensemble import Ensemble
from sde.noise.brownian import WienerIncrements
from tests.statistics import assert_mean

_LEVELS = (3, 4, 5, 6, 7)  # steps 2**-level
_PATHS = 4000

# dX = -p^2 sin X cos^3 X dt + p cos^2 X dW has the solution arctan(p W + tan X0) (Ito); in Stratonovich form
# the drift vanishes.
_ARCTAN_ITO = SDE(
    drift=lambda t, x: -(x.sin()) * x.cos() ** 3, diffusion=lambda t, x: x.cos() ** 2, calculus=Calculus.ITO
)
_ARCTAN_STRATONOVICH = SDE(
    drift=lambda t, x: torch.zeros_like(x),
    diffusion=lambda t, x: x.cos() ** 2,
    calculus=Calculus.STRATONOVICH,
)
# dX = (b / sqrt(1 + t) - X / (2 (1 + t))) dt + a b / sqrt(1 + t) dW, with a = 1/2, b = 6/5
_ADDITIVE = SDE(
    drift=lambda t, x: 1.2 / (1 + t).sqrt() - x / (2 * (1 + t)),
    diffusion=lambda t, x: (0.6 / (1 + t).sqrt()).expand_as(x),
    structure=NoiseStructure.ADDITIVE,
)


def _increments(seed: int) -> WienerIncrements:
    steps = torch.full((2 ** _LEVELS[-1],), 2.0 ** -_LEVELS[-1], dtype=torch.float64)
    return WienerIncrements(NoiseStream(seed, 0, _PATHS), steps, 1, dtype=torch.float64)


def _slope(sde: SDE, solver: EulerMaruyama | Heun, exact: Callable[[Tensor], Tensor]) -> tuple[float, float]:
    """Slope of log root mean square error at time 1 against log step, and its standard error."""
    fine = _increments(seed=8)
    wiener = fine.chunk(0, 2 ** _LEVELS[-1]).wiener.sum(0)
    squares = []
    for level in _LEVELS:
        times = torch.linspace(0, 1, 2**level + 1, dtype=torch.float64)
        driving = fine.coarsen(2 ** (_LEVELS[-1] - level)) if level < _LEVELS[-1] else fine
        paths = solve(sde, torch.ones(_PATHS, 1, dtype=torch.float64), times, driving, solver=solver)
        squares.append((paths[:, -1] - exact(wiener)).square().flatten())
    logs = torch.stack([square.mean().log2() / 2 for square in squares])
    x = -torch.tensor(_LEVELS, dtype=torch.float64)
    weights = (x - x.mean()) / (x - x.mean()).square().sum()
    # delta method over the paths, which all step sizes share
    influence = sum(w * s / (2 * math.log(2) * s.mean()) for w, s in zip(weights, squares, strict=True))
    return float((weights * logs).sum()), float(torch.as_tensor(influence).std() / math.sqrt(_PATHS))


@pytest.mark.parametrize(
    ("sde", "solver", "exact", "order"),
    [
        pytest.param(
            _ARCTAN_ITO, EulerMaruyama(), lambda w: (w + math.tan(1)).atan(), 0.5, id="Euler, diagonal"
        ),
        pytest.param(
            _ADDITIVE,
            EulerMaruyama(),
            lambda w: (1 + 1.2 * (1 + 0.5 * w)) / 2**0.5,
            1.0,
            id="Euler, additive",
        ),
        pytest.param(
            _ARCTAN_STRATONOVICH, Heun(), lambda w: (w + math.tan(1)).atan(), 1.0, id="Heun, diagonal"
        ),
    ],
)
def test_solver_has_its_strong_order(
    sde: SDE, solver: EulerMaruyama | Heun, exact: Callable[[Tensor], Tensor], order: float
) -> None:
    slope, error = _slope(sde, solver, exact)
    assert error < 0.05
    assert abs(slope - order) < 0.1, slope
    assert solver.orders[sde.structure].strong == order


def test_wrong_calculus_would_show_in_the_limit() -> None:
    wrong = SDE(_ARCTAN_STRATONOVICH.drift, _ARCTAN_STRATONOVICH.diffusion)  # the same numbers, read as Ito
    slope, _ = _slope(wrong, EulerMaruyama(), lambda w: (w + math.tan(1)).atan())
    assert slope < 0.2


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
            lambda: solve(_ARCTAN_ITO, _START, _TIMES, _NOISE, solver=Heun()),
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
