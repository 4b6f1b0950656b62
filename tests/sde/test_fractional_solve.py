"""Equations driven by fractional noise: closed solutions, orders, readings, levels, the augmented state."""

import pytest
import torch

from sde import SDE, Calculus, EulerMaruyama, Heun, NoiseStream, NoiseStructure, ode, solve
from sde.fractional import augmented, augmented_state, fractional_increments, solve_fractional
from sde.noise import CoarseIncrements, MarkovFBM, fbm_path, fou_autocovariance
from tests.statistics import assert_mean

GEOMETRIC = SDE(lambda t, x: 0 * x, lambda t, x: x, calculus=Calculus.STRATONOVICH)
OU = SDE(lambda t, x: -2 * x, lambda t, x: torch.ones_like(x), NoiseStructure.ADDITIVE)


def error(hurst, steps, solver, samples=400):
    """Root mean square error at time 1 against the exact solution on the same path."""
    fine = 4096
    noise = NoiseStream(1, 0, samples)
    increments = fractional_increments(
        hurst, noise, torch.linspace(0, 1, fine + 1, dtype=torch.float64), 1, dtype=torch.float64
    )
    exact = torch.exp(increments.wiener.sum(1))
    times = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    sde = SDE(GEOMETRIC.drift, GEOMETRIC.diffusion, calculus=solver.calculus)
    driven = CoarseIncrements(increments, fine // steps)
    ends = solve(sde, torch.ones(samples, 1, dtype=torch.float64), times, driven, solver=solver)[:, -1]
    return float((ends - exact).square().mean().sqrt())


def slope(hurst, solver, steps):
    x = torch.tensor(steps, dtype=torch.float64).log()
    y = torch.tensor([error(hurst, step, solver) for step in steps], dtype=torch.float64).log()
    return -float(((x - x.mean()) * y).sum() / (x - x.mean()).square().sum())


@pytest.mark.parametrize("hurst", [0.65, 0.75])
def test_euler_has_order_two_h_minus_one(hurst):
    order = slope(hurst, EulerMaruyama(), (64, 128, 256, 512, 1024))
    assert order == pytest.approx(2 * hurst - 1, abs=0.1)


def test_heun_has_order_three_h_minus_a_half_for_rough_noise():
    # Third-order terms of the increments add up like independent ones (Neuenkirch & Nourdin 2007).
    order = slope(0.4, Heun(), (128, 256, 512, 1024, 2048))
    assert order == pytest.approx(3 * 0.4 - 0.5, abs=0.15)


def test_ito_sums_diverge_for_rough_noise():
    assert error(0.4, 1024, EulerMaruyama()) > 1.2 * error(0.4, 64, EulerMaruyama()) > 1


@pytest.mark.parametrize("hurst", [0.2, 0.8])
@pytest.mark.parametrize("markov", [False, True])
def test_fractional_ornstein_uhlenbeck_reaches_its_stationary_variance(hurst, markov):
    law = MarkovFBM(hurst, K=16, T=4.0, dt=1 / 64) if markov else hurst
    times = torch.linspace(0, 4, 257, dtype=torch.float64)
    noise, initial = NoiseStream(2, 0, 8000), torch.zeros(8000, 1, dtype=torch.float64)
    ends = solve_fractional(OU, initial, times, noise, law, solver=Heun())[:, -1, 0]
    expected = float(fou_autocovariance(hurst, torch.zeros(1), rate=2.0))
    # The errors of scheme and approximation are below 2 %.
    assert_mean(ends.square()[:, None] / expected, 1.0, bias=0.2)


def test_exact_and_given_noise_agree():
    noise = NoiseStream(3, 0, 5)
    times, initial = torch.linspace(0, 1, 65, dtype=torch.float64), torch.ones(5, 1, dtype=torch.float64)
    paths = solve_fractional(GEOMETRIC, initial, times, noise, 0.7, solver=Heun())
    driver = fbm_path(0.7, noise, 64, dt=1 / 64, dtype=torch.float64)
    torch.testing.assert_close(paths[..., 0], torch.exp(driver), rtol=0.01, atol=0)


@pytest.mark.parametrize("markov", [False, True])
def test_solution_is_differentiable_in_the_hurst_index(markov):
    noise, times = NoiseStream(8, 0, 2), torch.linspace(0, 1, 17, dtype=torch.float64)
    index = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)

    def end(hurst):
        law = MarkovFBM(hurst, 6, dt=0.05) if markov else hurst
        initial = torch.ones(2, 1, dtype=torch.float64)
        return solve_fractional(GEOMETRIC, initial, times, noise, law, solver=Heun())[:, -1]

    assert torch.autograd.gradcheck(end, index)


def test_levels_share_one_path():
    noise, times = NoiseStream(4, 0, 6), torch.linspace(0, 1, 65, dtype=torch.float64)
    for law in (0.3, MarkovFBM(0.3)):
        fine = fractional_increments(law, noise, times, 2, dtype=torch.float64)
        coarse = CoarseIncrements(fine, 4).chunk(0, 16).wiener
        torch.testing.assert_close(coarse.sum(0), fine.wiener.sum(1), rtol=0, atol=1e-12)


def test_noise_starts_with_the_solve():
    noise = NoiseStream(4, 0, 6)
    early, late = (torch.linspace(a, a + 1, 33, dtype=torch.float64) for a in (0, 7))
    for law in (0.3, MarkovFBM(0.3, type="II")):
        first, second = (fractional_increments(law, noise, t, 1, dtype=torch.float64) for t in (early, late))
        torch.testing.assert_close(first.wiener, second.wiener, rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", ["I", "II"])
def test_augmented_equation_has_the_law_of_the_approximation(kind):
    rates = torch.tensor([0.0, 0.5, 3.0, 10.0], dtype=torch.float64)
    model = MarkovFBM(0.3, 4, type=kind, grid=rates)
    sde = SDE(lambda t, x: 0 * x, lambda t, x: torch.ones_like(x), NoiseStructure.ADDITIVE)
    noise = NoiseStream(5, 0, 10_000)
    state = augmented_state(model, torch.zeros(10_000, 1, dtype=torch.float64), noise, channels=1)
    times = torch.tensor([0.0, 0.4, 1.0], dtype=torch.float64)
    paths = solve(augmented(sde, model, 1), state, times, noise, substeps=100)[:, 1:, 0]
    exact = model.covariance(times[1:], times[1:])
    # Euler's weak error is of the order of step times rate, a few per cent.
    products = (paths[:, :, None] * paths[:, None, :]).flatten(1) / exact.flatten()
    assert_mean(products, 1.0, bias=0.25)


def test_augmented_noise_of_every_structure_is_that_of_the_equation():
    model = MarkovFBM(0.4, 3, grid="paper")
    times = torch.linspace(0, 1, 201, dtype=torch.float64)
    noise, initial = NoiseStream(6, 0, 4), torch.ones(4, 2, dtype=torch.float64)
    laws = {
        NoiseStructure.DIAGONAL: (lambda t, x: x, None),
        NoiseStructure.COMMUTATIVE: (lambda t, x: torch.diag_embed(x), 2),
    }
    ends = []
    for structure, (diffusion, noise_dim) in laws.items():
        sde = SDE(lambda t, x: -x, diffusion, structure, Calculus.STRATONOVICH, noise_dim)
        state = augmented_state(model, initial, noise, channels=2)
        assert state.shape == (4, 2 + 2 * 2 * 3)
        ends.append(solve(augmented(sde, model, 2), state, times, noise, solver=Heun())[:, -1])
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-12, atol=1e-12)
    # The geometric equation is solved by the exponential of its driver, which the augmented state carries.
    driver = (ends[0][:, 2:8].unflatten(1, (2, 3)) * model.omega()).sum(-1)
    torch.testing.assert_close(ends[0][:, :2], torch.exp(driver - 1), rtol=0.05, atol=0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda sde, x, t, n: (SDE(sde.drift, sde.diffusion), x, t, n, 0.4), "`sde` must be Stratonovich"),
        (lambda sde, x, t, n: (sde, x, t, n, 0.3), "`law` must have H > 1/3 unless the noise is additive"),
        (lambda sde, x, t, n: (ode(sde.drift), x, t, n, 0.4), "`sde` must have noise"),
        (
            lambda sde, x, t, n: (
                SDE(sde.drift, lambda t, x: x[..., None], NoiseStructure.GENERAL, sde.calculus, 1),
                x, t, n, 0.4,
            ),
            "`sde` must have commuting noise for H <= 1/2",
        ),
        (lambda sde, x, t, n: (sde, x, t**2, n, 0.7), "`times` must have equal steps for exact"),
    ],
)  # fmt: skip
def test_unreadable_equations_are_refused(call, message):
    arguments = call(GEOMETRIC, torch.ones(2, 1), torch.linspace(0, 1, 9), NoiseStream(0, 0, 2))
    with pytest.raises(ValueError, match=message):
        solve_fractional(*arguments, solver=Heun())


def test_young_integral_takes_either_calculus():
    noise, times = NoiseStream(7, 0, 3), torch.linspace(0, 1, 257, dtype=torch.float64)
    initial = torch.ones(3, 1, dtype=torch.float64)
    ito = SDE(GEOMETRIC.drift, GEOMETRIC.diffusion)
    first = solve_fractional(ito, initial, times, noise, 0.9, solver=Heun())[:, -1]
    second = solve_fractional(GEOMETRIC, initial, times, noise, 0.9, solver=EulerMaruyama())[:, -1]
    torch.testing.assert_close(first, second, rtol=0.05, atol=0)
