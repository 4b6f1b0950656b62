"""Square-root processes: sign, moments, orders, prices, refusals."""

import math

import pytest
import torch
from torch import Tensor

from sde import CIR, SDE, Heston, NoiseStream, solve
from sde.noise import GivenIncrements, WienerIncrements
from sde.solvers import (
    EulerMaruyama,
    FullTruncationEuler,
    HestonQuadraticExponential,
    ImplicitSquareRoot,
    QuadraticExponential,
    Solver,
)
from tests.statistics import assert_mean

_UNIT = torch.tensor([0.0, 1.0], dtype=torch.float64)
CALM = CIR(rate=2.0, level=0.09, volatility=0.3)  # Feller number 4
WILD = CIR(rate=1.5768, level=0.0398, volatility=0.5751)  # Feller number 0.38
HESTON = Heston(WILD, correlation=-0.5711)
_SCHEMES = (FullTruncationEuler(), ImplicitSquareRoot(), QuadraticExponential())


def _initial(n: int, *values: float) -> Tensor:
    return torch.tensor([values], dtype=torch.float64).expand(n, -1)


def test_moments_of_cir_have_their_values() -> None:
    start = torch.tensor(0.04, dtype=torch.float64)
    assert float(CALM.mean(start, 1.0)) == pytest.approx(0.0832332358, abs=5e-11)
    assert float(CALM.variance(start, 1.0)) == pytest.approx(0.0017246166, abs=5e-11)
    # They solve the equations of the moments: m' = k (l - m), v' = -2 k v + s**2 m.
    time = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    mean, variance = WILD.mean(start, time), WILD.variance(start, time)
    (mean_slope,) = torch.autograd.grad(mean, time, retain_graph=True)
    (variance_slope,) = torch.autograd.grad(variance, time)
    k, level, s = (float(p) for p in (WILD.rate, WILD.level, WILD.volatility))
    m, v = float(mean.detach()), float(variance.detach())
    assert float(mean_slope) == pytest.approx(k * (level - m), rel=1e-12)
    assert float(variance_slope) == pytest.approx(-2 * k * v + s * s * m, rel=1e-12)


@pytest.mark.parametrize("solver", _SCHEMES)
def test_cir_stays_positive_with_its_moments(solver: Solver) -> None:
    n = 50_000
    x = solve(CALM, _initial(n, 0.04), _UNIT, NoiseStream(1, 0, n), solver=solver, substeps=512)[:, -1, 0]
    assert bool((x >= 0).all())
    # The weak errors at this step, measured on shared paths, are below a third of a standard error.
    assert_mean(x, 0.0832332358, bias=2e-3)
    assert_mean((x - 0.0832332358).square(), 0.0017246166, bias=2e-4)


@pytest.mark.parametrize("cir", [CALM, WILD])
@pytest.mark.parametrize("steps", [1, 3])
def test_quadratic_exponential_has_exact_mean_and_variance_for_any_step(cir: CIR, steps: int) -> None:
    n, start = 400_000, 0.02
    x = solve(
        cir,
        _initial(n, start),
        _UNIT,
        NoiseStream(2, 0, n),
        solver=QuadraticExponential(),
        substeps=steps,
    )[:, -1, 0]
    first = torch.tensor(start, dtype=torch.float64)
    mean, variance = float(cir.mean(first, 1.0)), float(cir.variance(first, 1.0))
    assert bool((x >= 0).all())
    assert_mean(x, mean, bias=0.05 * math.sqrt(variance))
    assert_mean((x - mean).square(), variance, bias=0.2 * variance)


def _slope(sde: CIR | Heston, solver: Solver, start: tuple[float, ...], reference: Solver) -> float:
    """Slope of log root mean square error against log step, on shared paths."""
    paths, levels, finest = 1000, (4, 5, 6, 7, 8), 12
    sizes = torch.full((2**finest,), 2.0**-finest, dtype=torch.float64)
    fine = WienerIncrements(NoiseStream(3, 0, paths), sizes, len(start), dtype=torch.float64)

    def end(scheme: Solver, level: int) -> Tensor:
        noise = fine.coarsen(2 ** (finest - level)) if level < finest else fine
        return solve(sde, _initial(paths, *start), _UNIT, noise, solver=scheme, substeps=2**level)[:, -1]

    truth = end(reference, finest)
    logs = torch.stack([(end(solver, k) - truth).square().sum(1).mean().log2() / 2 for k in levels])
    x = -torch.tensor(levels, dtype=torch.float64)
    return float((x - x.mean()) @ logs / (x - x.mean()).square().sum())


@pytest.mark.parametrize(
    ("solver", "order"),
    [(FullTruncationEuler(), 0.5), (ImplicitSquareRoot(), 1.0), (QuadraticExponential(), 1.0)],
)
def test_scheme_has_its_strong_order_where_zero_is_far(solver: Solver, order: float) -> None:
    # Each reference is another scheme's, so that a common limit is tested too.
    reference = QuadraticExponential() if solver == ImplicitSquareRoot() else ImplicitSquareRoot()
    assert abs(_slope(CALM, solver, (0.09,), reference) - order) < 0.1


def test_heston_scheme_has_strong_order_one_half() -> None:
    calm, scheme = Heston(CALM, correlation=-0.6, interest=0.03), HestonQuadraticExponential()
    assert abs(_slope(calm, scheme, (0.0, 0.09), scheme) - 0.5) < 0.1


def test_heston_scheme_has_the_limit_of_the_equation() -> None:
    n, steps = 500, 4096
    calm = Heston(CALM, correlation=-0.6, interest=0.03)
    sizes = torch.full((steps,), 1 / steps, dtype=torch.float64)
    noise = WienerIncrements(NoiseStream(4, 0, n), sizes, 2, dtype=torch.float64)
    start = _initial(n, 0.0, 0.09)
    special = solve(calm, start, _UNIT, noise, solver=HestonQuadraticExponential(), substeps=steps)
    general = solve(calm.as_sde(), start, _UNIT, noise, solver=EulerMaruyama(), substeps=steps)
    assert (special - general)[:, -1].square().mean().sqrt() < 5e-3  # of 0.3, and of order 1/2 in the step


def test_call_prices_of_heston_have_their_values() -> None:
    maturities = torch.tensor([1.0, 10.0], dtype=torch.float64)
    prices = HESTON.call(spot=100.0, variance=0.0175, strike=100.0, maturity=maturities)
    assert prices.tolist() == pytest.approx([5.785155434, 22.318945791], abs=5e-10)


@pytest.mark.parametrize("volatility", [1e-4, 1e-2])
def test_call_price_becomes_that_of_black_and_scholes_for_steady_variance(volatility: float) -> None:
    heston = Heston(CIR(2.0, 0.04, volatility), correlation=0.0, interest=0.05)
    strikes = torch.tensor([60.0, 110.0, 200.0], dtype=torch.float64)
    upper = ((100 / strikes).log() + (0.05 + 0.02) * 2) / math.sqrt(0.08)
    expected = 100 * torch.special.ndtr(upper) - strikes * math.exp(-0.1) * torch.special.ndtr(
        upper - math.sqrt(0.08)
    )
    found = heston.call(spot=100.0, variance=0.04, strike=strikes, maturity=2.0)
    # The variance of the integrated variance enters: a share of the squared volatility, and rounding.
    torch.testing.assert_close(found, expected, rtol=0, atol=10 * volatility**2 + 1e-6)


def test_call_price_has_its_gradient() -> None:
    spot = torch.tensor([80.0, 100.0, 120.0], dtype=torch.float64, requires_grad=True)
    volatility = torch.tensor(0.5751, dtype=torch.float64, requires_grad=True)

    def prices(size: Tensor) -> Tensor:
        heston = Heston(CIR(1.5768, 0.0398, size), correlation=-0.5711)
        return heston.call(spot=spot, variance=0.0175, strike=100.0, maturity=1.0)

    torch.autograd.gradcheck(lambda s: prices(s).sum(), volatility)
    (delta,) = torch.autograd.grad(prices(volatility).sum(), spot)
    assert bool(((delta > 0) & (delta < 1) & (delta.diff(append=torch.ones(1).double()) > 0)).all())


@pytest.mark.parametrize("correlation", [-0.5711, 0.0, 0.5])
@pytest.mark.parametrize("steps", [2, 16])
def test_discounted_price_is_a_martingale_for_any_step(correlation: float, steps: int) -> None:
    n, heston = 200_000, Heston(WILD, correlation, interest=0.05)
    end = solve(
        heston,
        _initial(n, 0.0, 0.0175),
        _UNIT,
        NoiseStream(5, 0, n),
        solver=HestonQuadraticExponential(),
        substeps=steps,
    )[:, -1]
    assert end.isfinite().all()
    assert bool((end[:, 1] >= 0).all())
    assert_mean(end[:, 0].exp(), math.exp(0.05), bias=0.01)


def test_heston_has_its_means_and_its_price_where_the_feller_number_is_small() -> None:
    n, steps = 200_000, 32
    end = solve(
        HESTON,
        _initial(n, math.log(100), 0.0175),
        _UNIT,
        NoiseStream(6, 0, n),
        solver=HestonQuadraticExponential(),
        substeps=steps,
    )[:, -1]
    assert_mean(end, HESTON.mean(_initial(1, math.log(100), 0.0175), 1.0)[0], bias=5e-3)
    # The price itself takes the noise out of the payoff; the rest of the weak error is below 0.01.
    payoff = (end[:, 0].exp() - 100).clamp(min=0) - 0.6 * (end[:, 0].exp() - 100)
    assert_mean(payoff, 5.785155434, bias=0.15)


def test_correction_falls_back_where_its_moment_is_infinite() -> None:
    heston = Heston(CIR(0.5, 0.04, 1.0), correlation=0.9)
    start, times = _initial(1000, 0.0, 0.04), 10 * _UNIT
    end = solve(heston, start, times, NoiseStream(7, 0, 1000), solver=HestonQuadraticExponential())
    assert end.isfinite().all()


@pytest.mark.parametrize("solver", [FullTruncationEuler(), QuadraticExponential()])
def test_zero_is_left_again(solver: Solver) -> None:
    n = 10_000
    paths = solve(WILD, _initial(n, 0.0), _UNIT, NoiseStream(8, 0, n), solver=solver, substeps=64)
    assert bool((paths >= 0).all())
    assert_mean(paths[:, -1, 0], float(WILD.mean(torch.zeros(()).double(), 1.0)), bias=0.012)


def test_extreme_increments_keep_the_sign() -> None:
    for scheme in _SCHEMES:
        for size in (-30.0, 30.0):
            noise = GivenIncrements(torch.full((2, 3, 1), size))
            paths = solve(CALM, torch.full((2, 1), 1e-6), torch.linspace(0, 1, 4), noise, solver=scheme)
            assert bool((paths >= 0).all()), (scheme, size)


@pytest.mark.parametrize("solver", _SCHEMES)
@pytest.mark.parametrize("name", ["rate", "level", "volatility"])
def test_gradients_of_cir_agree_with_finite_differences(solver: Solver, name: str) -> None:
    values = {"rate": 2.0, "level": 0.09, "volatility": 0.3}

    def loss(value: Tensor) -> Tensor:
        cir = CIR(**(values | {name: value}))
        end = solve(cir, _initial(20, 0.04), _UNIT, NoiseStream(1, 0, 20), solver=solver, substeps=16)
        return end[:, -1].square().sum()

    _check_gradient(loss, torch.tensor(values[name], dtype=torch.float64))


def test_gradients_of_heston_agree_with_finite_differences() -> None:
    def loss(value: Tensor) -> Tensor:
        # Some variances are zero after a step: their roots must not spoil the gradient of the others.
        heston = Heston(CIR(1.5768, 0.0398, value), correlation=-0.5711)
        scheme = HestonQuadraticExponential()
        end = solve(
            heston, _initial(40, 0.0, 0.0175), _UNIT, NoiseStream(1, 0, 40), solver=scheme, substeps=8
        )
        return end[:, -1].square().sum()

    _check_gradient(loss, torch.tensor(0.5751, dtype=torch.float64))


def _check_gradient(loss, value: Tensor) -> None:
    value.requires_grad_()
    (slope,) = torch.autograd.grad(loss(value), value)
    with torch.no_grad():
        change = float(loss(value + 1e-7) - loss(value - 1e-7)) / 2e-7
    assert float(slope) == pytest.approx(change, rel=1e-5)


def test_fields_of_prices_are_prices_side_by_side() -> None:
    n, noise = 3, NoiseStream(1, 0, 3)
    start = torch.tensor([0.1, 0.02]).view(1, 2, 1).expand(n, 2, 4)
    field = solve(HESTON, start, torch.linspace(0, 1, 3), noise, solver=HestonQuadraticExponential())
    assert field.shape == (n, 3, 2, 4)
    assert field.isfinite().all()


def test_bad_input_is_refused() -> None:
    times, noise, start = torch.linspace(0, 1, 3), NoiseStream(0, 0, 2), torch.full((2, 1), 0.1)
    for name in ("rate", "level", "volatility"):
        with pytest.raises(ValueError, match=f"`{name}` must be positive and finite; got 0"):
            CIR(**({"rate": 1.0, "level": 1.0, "volatility": 1.0} | {name: 0.0}))
    with pytest.raises(ValueError, match=r"`correlation` must lie in \(-1, 1\); got 1.0"):
        Heston(CALM, correlation=1.0)
    with pytest.raises(TypeError, match="`variance` must be a CIR equation; got float"):
        Heston(0.3, correlation=0.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"must integrate a CIR equation; got EulerMaruyama.*as_sde\(\)"):
        solve(CALM, start, times, noise)
    with pytest.raises(ValueError, match="`solver` must integrate a SDE equation; got QuadraticExponential"):
        solve(SDE(lambda t, x: x, lambda t, x: x), start, times, noise, solver=QuadraticExponential())
    with pytest.raises(ValueError, match=r"`sde` must satisfy 4 \* rate \* level > volatility\*\*2"):
        solve(WILD, start, times, noise, solver=ImplicitSquareRoot())
    with pytest.raises(ValueError, match="`initial` must be at least 0"):
        solve(CALM, -start, times, noise, solver=QuadraticExponential())
    with pytest.raises(ValueError, match=r"`initial` must have shape \(n, 2, ...\)"):
        solve(HESTON, start, times, noise, solver=HestonQuadraticExponential())
    with pytest.raises(ValueError, match="`strike` must be positive and finite; got -1"):
        HESTON.call(spot=1.0, variance=0.1, strike=-1.0, maturity=1.0)
