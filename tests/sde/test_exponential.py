"""Exponential schemes: operators, orders, exactness on linear problems, stability, refusals."""

import math

import pytest
import torch
from scipy import linalg
from torch import Tensor

from sde import SDE, Backprop, Checkpointed, NoiseStream, NoiseStructure, Semilinear, ode, solve
from sde.noise import BrownianTree, GivenIncrements, WienerIncrements
from sde.solvers import SRA1, SRIW1, EulerMaruyama, ExponentialEuler, ExponentialSRA1, Solver, SPaRK
from tests.statistics import assert_mean

_LEVELS, _FINEST = (3, 4, 5, 6, 7), 10
_SCHEMES = (ExponentialEuler(), ExponentialSRA1())
_PATHS = 1000
_UNIT = torch.tensor([0.0, 1.0], dtype=torch.float64)


def _matrix(*rows: tuple[float, ...]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


LINEAR_PARTS = {
    "number": torch.tensor(0.8, dtype=torch.float64),
    "diagonal": torch.tensor([0.5, 2.0], dtype=torch.float64),
    "symmetric": _matrix((1.0, -0.5), (-0.5, 1.5)),
    "full": _matrix((0.5, -1.0), (0.4, 0.9)),
    "defective": _matrix((1.0, 2.0), (0.0, 1.0)),
}
_STEEP = {
    "stiff": 40 * _matrix((2.0, -1.0, 0.0), (-1.0, 2.0, -1.0), (0.0, -1.0, 2.0)),
    "oscillator": _matrix((0.0, -1.0), (100.0, 0.5)),
}
NOISE = SDE(lambda t, x: 0 * x, lambda t, x: torch.full_like(x, 0.6), NoiseStructure.ADDITIVE)
SINE = SDE(
    lambda t, x: (2 * x).sin(), lambda t, x: (1 / (1 + 0.2 * t).sqrt()).expand_as(x), NoiseStructure.ADDITIVE
)
ARCTAN = SDE(lambda t, x: -0.25 * x.sin() * x.cos() ** 3, lambda t, x: 0.5 * x.cos() ** 2)


@pytest.mark.parametrize("name", ["full", "defective", *_STEEP])
def test_matrix_integrals_agree_with_scipy(name: str) -> None:
    linear, span = (LINEAR_PARTS | _STEEP)[name], torch.tensor(0.3, dtype=torch.float64)
    a, eye = (linear * span).numpy(), torch.eye(len(linear), dtype=torch.float64).numpy()
    decay = linalg.expm(-a)
    mean = linalg.solve(a, eye - decay)
    energy = linalg.solve_continuous_lyapunov(a, eye - decay @ decay.T)
    expected = decay, mean, linalg.solve(a, mean - decay), energy
    for found, value in zip(Semilinear(linear, NOISE).flow(span), expected, strict=True):
        scale = float(torch.from_numpy(value).abs().max())
        torch.testing.assert_close(found, torch.from_numpy(value), rtol=0, atol=1e-12 * scale)


def test_diagonal_and_matrix_integrals_agree() -> None:
    # Doubling a span k times loses about k bits of the smallest entries.
    diagonal, span = torch.logspace(-9, 4, 14, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64)
    one = Semilinear(diagonal, NOISE).flow(span)
    other = Semilinear(torch.diag(diagonal), NOISE).flow(span)
    for found, expected in zip(other, one, strict=True):
        torch.testing.assert_close(found, torch.diag(expected), rtol=1e-10, atol=1e-300)


def _ends(sde: Semilinear, solver: Solver, level: int) -> Tensor:
    """States at time 1 after steps ``2**-level``, on paths that all levels share."""
    sizes = torch.full((2**_FINEST,), 2.0**-_FINEST, dtype=torch.float64)
    fine = WienerIncrements(NoiseStream(3, 0, _PATHS), sizes, 2, dtype=torch.float64)
    initial = torch.tensor([[0.5, 0.2]], dtype=torch.float64).expand(_PATHS, 2)
    equation = sde if solver.equation is Semilinear else sde.as_sde()
    noise = fine.coarsen(2 ** (_FINEST - level)) if level < _FINEST else fine
    return solve(equation, initial, _UNIT, noise, solver=solver, substeps=2**level)[:, -1]


def _slope(sde: Semilinear, solver: Solver, reference: Solver) -> float:
    """Slope of log root mean square error against log step, the reference by a general scheme."""
    truth = _ends(sde, reference, _FINEST)
    errors = [(_ends(sde, solver, level) - truth).square().sum(1).mean().sqrt() for level in _LEVELS]
    x = -torch.tensor(_LEVELS, dtype=torch.float64)
    return float((x - x.mean()) @ torch.stack(errors).log2() / (x - x.mean()).square().sum())


@pytest.mark.parametrize("name", LINEAR_PARTS)
def test_euler_has_strong_order_one_with_additive_noise(name: str) -> None:
    assert abs(_slope(Semilinear(LINEAR_PARTS[name], SINE), ExponentialEuler(), SPaRK()) - 1.0) < 0.1


@pytest.mark.parametrize("name", LINEAR_PARTS)
def test_sra1_has_strong_order_three_halves(name: str) -> None:
    assert abs(_slope(Semilinear(LINEAR_PARTS[name], SINE), ExponentialSRA1(), SPaRK()) - 1.5) < 0.2


def test_sra1_has_strong_order_two_for_linear_equations() -> None:
    assert abs(_slope(Semilinear(LINEAR_PARTS["full"], NOISE), ExponentialSRA1(), SPaRK()) - 2.0) < 0.2


def test_euler_has_strong_order_one_half_with_multiplicative_noise() -> None:
    linear = torch.tensor(0.05, dtype=torch.float64)  # so small that the noise has the largest error
    assert abs(_slope(Semilinear(linear, ARCTAN), ExponentialEuler(), SRIW1()) - 0.5) < 0.1


@pytest.mark.parametrize("solver", _SCHEMES)
def test_linear_ordinary_equations_are_exact_for_any_step(solver: Solver) -> None:
    linear, rest = LINEAR_PARTS["full"], ode(lambda t, x: 0 * x + 0.3)
    start = torch.tensor([[1.0, -2.0]], dtype=torch.float64)
    end = solve(Semilinear(linear, rest), start, 5 * _UNIT, None, solver=solver)[:, -1]
    decay = torch.linalg.matrix_exp(-5 * linear)
    fixed = torch.linalg.solve(linear, torch.full((2,), 0.3, dtype=torch.float64))
    torch.testing.assert_close(end[0], fixed + decay @ (start[0] - fixed), rtol=1e-12, atol=1e-13)


def _two_fields(t: Tensor, x: Tensor) -> Tensor:
    """Two vector fields that do not commute."""
    return torch.stack((torch.stack((0.5 + 0 * x[:, 0], x[:, 0].sin()), 1), 0.3 * x), -1)


@pytest.mark.parametrize("linear", [torch.zeros(2), torch.zeros(2, 2)])
@pytest.mark.parametrize(
    ("rest", "special", "general"),
    [
        (ARCTAN, ExponentialEuler(), EulerMaruyama()),
        (SDE(ARCTAN.drift, ARCTAN.diffusion, NoiseStructure.SCALAR), ExponentialEuler(), EulerMaruyama()),
        (
            SDE(ARCTAN.drift, _two_fields, NoiseStructure.GENERAL, noise_dim=2),
            ExponentialEuler(),
            EulerMaruyama(),
        ),
        (SINE, ExponentialEuler(), EulerMaruyama()),
        (SINE, ExponentialSRA1(), SRA1()),
    ],
)
def test_schemes_without_a_linear_part_are_the_general_ones(
    linear: Tensor, rest: SDE, special: Solver, general: Solver
) -> None:
    start, noise = torch.tensor([[0.5, 0.2]], dtype=torch.float64).expand(4, 2), NoiseStream(6, 0, 4)
    one = solve(Semilinear(linear, rest), start, _UNIT, noise, solver=special, substeps=8)
    other = solve(rest, start, _UNIT, noise, solver=general, substeps=8)
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)


def _covariance(linear: Tensor, solver: Solver, span: float) -> Tensor:
    """Covariance after one step of white noise, from the columns of its map of W and H."""
    d = linear.shape[-1]
    eye, none = torch.eye(d, dtype=torch.float64), torch.zeros(d, d, dtype=torch.float64)
    wiener, area = torch.cat((eye, none)) * math.sqrt(span), torch.cat((none, eye)) * math.sqrt(span / 12)
    noise = GivenIncrements(wiener.unsqueeze(1), area.unsqueeze(1))
    rest = SDE(lambda t, x: 0 * x, lambda t, x: torch.ones_like(x), NoiseStructure.ADDITIVE)
    start, times = torch.zeros(2 * d, d, dtype=torch.float64), span * _UNIT
    columns = solve(Semilinear(linear, rest), start, times, noise, solver=solver)[:, -1]
    return columns.T @ columns


@pytest.mark.parametrize("solver", _SCHEMES)
@pytest.mark.parametrize("span", [0.01, 0.3, 3.0])
@pytest.mark.parametrize("name", ["full", "defective", *_STEEP])
def test_noise_has_its_covariance_for_any_step(solver: Solver, span: float, name: str) -> None:
    linear = (LINEAR_PARTS | _STEEP)[name]
    flow = Semilinear(linear, NOISE).flow(torch.tensor(span, dtype=torch.float64))
    found, expected = _covariance(linear, solver, span), span * flow.energy
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9 * float(expected.abs().max()))


def test_noise_agrees_with_the_covariances_of_the_path() -> None:
    # Cov(xi, W) and Cov(xi, H) of the Ornstein--Uhlenbeck process, for a step where scaling changes nothing.
    a, h = 0.8, 1e-2
    decay = math.exp(-a * h)
    with_w, with_h = (1 - decay) / a, 0.5 * (1 - decay) / a - 1 / a + (1 - decay) / (a * a * h)
    noise = GivenIncrements(*torch.eye(2, dtype=torch.float64)[:, :, None, None].unbind(0))
    rest = SDE(lambda t, x: 0 * x, lambda t, x: torch.ones_like(x), NoiseStructure.ADDITIVE)
    sde = Semilinear(torch.tensor(a, dtype=torch.float64), rest)
    start = torch.zeros(2, 1, dtype=torch.float64)
    gain = solve(sde, start, h * _UNIT, noise, solver=ExponentialSRA1())[:, -1, 0]
    # What the projection leaves out is a share (a h)**4 / 720 of the variance.
    assert float(gain[0]) * h == pytest.approx(with_w, rel=1e-10)
    assert float(gain[1]) * h / 12 == pytest.approx(with_h, rel=1e-8)


_STEPS = 60
_STIFF = pytest.mark.parametrize(("rate", "span"), [(50.0, 0.1), (1e6, 0.1), (1e6, 1e-7)])


@pytest.mark.parametrize("solver", _SCHEMES)
@_STIFF
def test_ornstein_uhlenbeck_is_exact_in_law_for_any_step(solver: Solver, rate: float, span: float) -> None:
    n, end = 20_000, _STEPS * span
    rest = SDE(lambda t, x: 0 * x, lambda t, x: torch.ones_like(x), NoiseStructure.ADDITIVE)
    sde = Semilinear(torch.tensor([rate], dtype=torch.float64), rest)
    start = torch.full((n, 1), 5.0, dtype=torch.float64)
    x = solve(sde, start, end * _UNIT, NoiseStream(2, 0, n), solver=solver, substeps=_STEPS)[:, -1, 0]
    standard = (x - 5.0 * math.exp(-rate * end)) / math.sqrt(-math.expm1(-2 * rate * end) / (2 * rate))
    assert_mean(standard, 0.0, bias=0.1)
    assert_mean(standard.square(), 1.0, bias=0.12)


@pytest.mark.parametrize("solver", _SCHEMES)
@_STIFF
def test_stiff_nonlinear_equations_are_stable(solver: Solver, rate: float, span: float) -> None:
    sde = Semilinear(torch.tensor([rate], dtype=torch.float64), SINE)
    start, times = torch.full((100, 1), 5.0, dtype=torch.float64), _STEPS * span * _UNIT
    x = solve(sde, start, times, NoiseStream(2, 0, 100), solver=solver, substeps=_STEPS)[:, -1]
    size = 5.0 * math.exp(-rate * span * _STEPS) + 1 / rate + 6 / math.sqrt(2 * rate)
    assert float(x.abs().max()) < size


def test_mean_square_decays_with_multiplicative_noise_for_any_step() -> None:
    a, b, h, n = 2.0, 1.9, 4.0, 20_000  # the solution decays, since b**2 < 2 a
    rest = SDE(lambda t, x: 0 * x, lambda t, x: b * x)
    sde = Semilinear(torch.tensor(a, dtype=torch.float64), rest)
    start = torch.ones(n, 1, dtype=torch.float64)
    end = solve(sde, start, h * _UNIT, NoiseStream(3, 0, n), solver=ExponentialEuler())[:, -1, 0]
    decay = math.exp(-2 * a * h)
    assert_mean(end.square(), decay + b * b * (1 - decay) / (2 * a), bias=0.1)


def test_states_of_any_shape_and_noise_matrices() -> None:
    linear, times, noise = (
        LINEAR_PARTS["full"],
        torch.linspace(0, 1, 5, dtype=torch.float64),
        NoiseStream(0, 0, 3),
    )
    start = torch.arange(12.0, dtype=torch.float64).reshape(3, 2, 2)
    mix = torch.tensor([[[0.6, 0.0, 0.1], [0.0, 0.6, 0.2]]], dtype=torch.float64)
    rest = SDE(lambda t, x: 0 * x, lambda t, x: mix, NoiseStructure.ADDITIVE, noise_dim=3)
    for solver in _SCHEMES:
        shaped = solve(Semilinear(linear, NOISE), start, times, noise, solver=solver)
        assert shaped.shape == (3, 5, 2, 2)
        flat = solve(Semilinear(linear, rest), start[:, 0], times, noise, solver=solver)
        assert flat.shape == (3, 5, 2)
        assert flat.isfinite().all()


def test_unequal_steps_give_the_operators_of_each() -> None:
    sde, start = Semilinear(LINEAR_PARTS["diagonal"], NOISE), torch.ones(4, 2, dtype=torch.float64)
    tree = BrownianTree(NoiseStream(5, 0, 4))
    whole = torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64)
    path = solve(sde, start, whole, tree, solver=ExponentialEuler())
    last = solve(sde, path[:, 1], whole[1:], tree, solver=ExponentialEuler())
    torch.testing.assert_close(path[:, 2], last[:, 1], rtol=0, atol=0)


@pytest.mark.parametrize("solver", _SCHEMES)
@pytest.mark.parametrize("name", ["diagonal", "symmetric", "full", "isotropic"])
def test_gradients_agree_with_finite_differences(solver: Solver, name: str) -> None:
    linear = (LINEAR_PARTS | {"isotropic": 1.2 * torch.eye(2, dtype=torch.float64)})[name].clone()
    start, noise = torch.tensor([[0.7, 0.2]], dtype=torch.float64).expand(5, 2), NoiseStream(1, 0, 5)

    def loss(part: Tensor, gradient: Backprop | Checkpointed = Checkpointed()) -> Tensor:
        sde = Semilinear(part, SINE)
        end = solve(sde, start, _UNIT, noise, solver=solver, substeps=8, gradient=gradient)[:, -1]
        return end.square().sum()

    linear.requires_grad_()
    (slope,) = torch.autograd.grad(loss(linear), linear)
    torch.testing.assert_close(slope, torch.autograd.grad(loss(linear, Backprop()), linear)[0])
    direction = torch.arange(1.0, 1.0 + linear.numel(), dtype=torch.float64).reshape(linear.shape)
    with torch.no_grad():
        change = (loss(linear + 1e-6 * direction) - loss(linear - 1e-6 * direction)) / 2e-6
    assert float((slope * direction).sum()) == pytest.approx(float(change), rel=1e-6)


def test_bad_input_is_refused() -> None:
    with pytest.raises(TypeError, match="`linear` must be a floating-point tensor; got float"):
        Semilinear(1.0, NOISE)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"`linear` must have shape \(\), \(d\) or \(d, d\); got \(2, 3\)"):
        Semilinear(torch.ones(2, 3), NOISE)
    with pytest.raises(ValueError, match="`linear` must be finite"):
        Semilinear(torch.tensor(math.nan), NOISE)
    with pytest.raises(TypeError, match="`rest` must be an SDE"):
        Semilinear(torch.ones(2), lambda t, x: x)  # type: ignore[arg-type]
    times, noise, start = torch.linspace(0, 1, 3), NoiseStream(0, 0, 2), torch.ones(2, 3)
    with pytest.raises(ValueError, match="`linear` must act on the last axis of the state, of size 3"):
        solve(Semilinear(torch.ones(2), NOISE), start, times, noise, solver=ExponentialEuler())
    with pytest.raises(ValueError, match="`solver` must integrate a Semilinear equation; got EulerMaruyama"):
        solve(Semilinear(torch.ones(3), NOISE), start, times, noise, solver=EulerMaruyama())
    with pytest.raises(ValueError, match="`solver` must integrate diagonal noise; got ExponentialSRA1"):
        solve(Semilinear(torch.ones(3), ARCTAN), start, times, noise, solver=ExponentialSRA1())
