"""The Markov approximation of fractional Brownian motion: weights, certificate, law and addressing."""

import pytest
import torch

from sde import NoiseStream
from sde.noise import MarkovFBM, fbm_covariance, riemann_liouville_covariance
from sde.noise.gaussian_path import low_rank_factors
from sde.noise.markov_grid import automatic_rates, paper_rates
from sde.noise.markov_weights import cross_moments, gram, relative_error, weights
from sde.noise.ou_transition import noise_covariance, slope_covariance
from tests.statistics import assert_mean

mpmath = pytest.importorskip("mpmath", reason="needs mpmath")

# 50 digits of mpmath, horizon 1, geometric grid on [1/20, 20]: weights and relative error
GOLDEN = [
    ("I", 0.3, 0.01692762575, [0.71150877544, 0.498851550496, 1.2706286632]),
    ("I", 0.7, 0.1223552655, [1.35233303577, -0.697774805717, -0.318854712187]),
    (
        "I",
        0.3,
        0.01659808463,
        [0.804407690506, -0.111518979269, 0.48741450975, 0.084505755395, 1.18733240436],
    ),
    (
        "I",
        0.7,
        0.09786292574,
        [2.26196624578, -1.42063606079, 0.0197880067353, -0.310697813139, -0.177009420887],
    ),
    ("II", 0.3, 0.008446952857, [0.672719519452, 0.563484901009, 1.22886303391]),
    ("II", 0.7, 0.000149159106, [1.46045476888, -0.791053206175, -0.308352236458]),
    (
        "II",
        0.3,
        0.007761810678,
        [28.1741218048, -38.351106558, 13.2624729608, -2.29150608289, 1.77234642995],
    ),
    (
        "II",
        0.7,
        0.0001341208945,
        [-0.934840807622, 3.26804960848, -1.77131087112, 0.115631402058, -0.315467837114],
    ),
]
# Relative Frobenius error of the covariance of the paper's grid on 100 instants, H = 0.1 .. 0.9
PAPER_ERRORS = (0.275, 0.0667, 0.0152, 0.00521, 0.0120, 0.0381, 0.102, 0.244, 0.521)
# Relative mean-square errors that the automatic grid must reach, T / dt = 1000
AUTOMATIC_ERRORS = {
    ("I", 12): (0.11, 0.010, 8.2e-4, 7.1e-5, 0, 5.0e-5, 1.9e-4, 8.8e-4, 0.026),
    ("II", 8): (0.084, 6.3e-3, 3.8e-4, 1.3e-5, 0, 4.8e-7, 7e-7, 6.8e-7, 5.1e-7),
}
INDICES = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
TYPES = ["I", "II"]


def exact_covariance(kind, hurst, t):
    return fbm_covariance(hurst, t, t) if kind == "I" else riemann_liouville_covariance(hurst, t, t)


def exact_cross_moment(kind, alpha, x):
    """The closed forms, to 80 digits."""
    with mpmath.workdps(80):
        x = mpmath.mpf(x)
        if kind == "I":
            upper = mpmath.gammainc(alpha, x, regularized=True)
            tail = (mpmath.e**-x - mpmath.e**x * upper) * x ** (-alpha - 1)
            return float(2 * x**-alpha - 1 / (x * mpmath.gamma(alpha + 1)) + tail)
        lower = [mpmath.gammainc(a, 0, x, regularized=True) for a in (alpha, alpha + 1)]
        return float(x**-alpha * lower[0] - alpha * x ** (-alpha - 1) * lower[1])


@pytest.mark.parametrize(("kind", "hurst", "error", "omega"), GOLDEN)
def test_weights_and_error_are_the_golden_ones(kind, hurst, error, omega):
    model = MarkovFBM(hurst, len(omega), type=kind, normalize="kernel", grid="paper")
    expected = torch.tensor(omega, dtype=torch.float64)
    torch.testing.assert_close(model.omega(), expected, rtol=1e-8, atol=0)
    assert model.error().item() == pytest.approx(error, abs=1e-9)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("hurst", [0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.98])
def test_cross_moments_are_exact_at_every_rate(kind, hurst):
    x = torch.logspace(-12, 6, 37, dtype=torch.float64)
    values = cross_moments(torch.tensor(hurst, dtype=torch.float64), x, kind)
    alpha = mpmath.mpf(hurst) + mpmath.mpf(1) / 2
    expected = [exact_cross_moment(kind, alpha, rate) for rate in x.tolist()]
    torch.testing.assert_close(values, torch.tensor(expected, dtype=torch.float64), rtol=1e-11, atol=0)


@pytest.mark.parametrize("kind", TYPES)
def test_rate_zero_is_the_limit_of_small_rates(kind):
    x = torch.tensor([0.0, 1e-13], dtype=torch.float64)
    hurst = torch.tensor(0.3, dtype=torch.float64)
    moments, matrix = cross_moments(hurst, x, kind), gram(x, kind)
    assert moments[0].item() == pytest.approx(moments[1].item(), rel=1e-10)
    torch.testing.assert_close(matrix, torch.full((2, 2), 0.5).double(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("hurst", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_weights_are_differentiable_twice(kind, hurst):
    index = torch.tensor(hurst, dtype=torch.float64, requires_grad=True)
    x = torch.cat((torch.zeros(1).double(), paper_rates(4)))
    assert torch.autograd.gradcheck(lambda h: weights(h, x, kind), index)
    probe = torch.linspace(1, 2, 5, dtype=torch.float64)
    assert torch.autograd.gradgradcheck(lambda h: weights(h, x, kind), index, probe, atol=1e-4)


def test_derivative_of_the_weights_is_the_golden_one():
    index = torch.tensor(0.3, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda h: weights(h, paper_rates(5), "I"), index)
    expected = torch.tensor([2.15033, -0.64413, -2.27841, 0.24545, -10.05386], dtype=torch.float64)
    torch.testing.assert_close(jacobian, expected, rtol=0, atol=1e-5)


def test_many_rates_give_finite_weights_and_the_right_error():
    x = torch.logspace(-4, 4, 20, dtype=torch.float64)
    hurst = torch.tensor(0.3, dtype=torch.float64)
    omega = weights(hurst, x, "I")
    assert omega.abs().max() < 1e3
    assert relative_error(hurst, x, omega, "I").item() == pytest.approx(3.5e-4, rel=0.05)


def test_paper_grid_has_the_covariance_errors_of_the_paper():
    t = torch.linspace(0, 1, 101, dtype=torch.float64)[1:]
    for hurst, expected in zip(INDICES.tolist(), PAPER_ERRORS, strict=True):
        exact = fbm_covariance(hurst, t, t)
        gap = MarkovFBM(hurst, 5, grid="paper").covariance(t, t) - exact
        assert (gap.norm() / exact.norm()).item() == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(("kind", "num"), AUTOMATIC_ERRORS)
def test_automatic_grid_keeps_its_promise(kind, num):
    model = MarkovFBM(0.5, num, type=kind)
    errors = model.error(INDICES)
    assert (errors <= 1.1 * torch.tensor(AUTOMATIC_ERRORS[kind, num]) + 1e-12).all()
    # Brownian motion is exact.
    assert errors[4] < 1e-12


@pytest.mark.parametrize("kind", TYPES)
def test_covariance_of_the_default_is_close_to_fractional_brownian_motion(kind):
    t = torch.tensor([0.0, 1e-3, 0.1, 0.11, 0.5, 1.0], dtype=torch.float64)
    for hurst in (0.3, 0.7):
        gap = MarkovFBM(hurst, type=kind).covariance(t, t) - exact_covariance(kind, hurst, t)
        assert gap.abs().max() < 5e-3
    half = MarkovFBM(0.5, type=kind).covariance(t, t)
    # A relative mean-square error below 1e-12 bounds covariances to twice its root.
    torch.testing.assert_close(half, torch.minimum(t[:, None], t), rtol=0, atol=2e-6)


@pytest.mark.parametrize("kind", TYPES)
def test_sampler_has_the_covariance_of_the_approximation(kind):
    times = torch.tensor([0.0, 0.01, 0.3, 0.35, 0.351, 1.0, 1.5], dtype=torch.float64)
    model = MarkovFBM(0.3, type=kind)
    factor = torch.linalg.cholesky(model.covariance(times[1:], times[1:]))
    paths = model.path(NoiseStream(1, 0, 40_000), times, dtype=torch.float64)
    assert torch.equal(paths[:, 0], torch.zeros(40_000).double())
    white = torch.linalg.solve_triangular(factor, paths[:, 1:].mT, upper=False).mT
    products = white[:, :, None] * white[:, None, :]
    assert_mean(products.flatten(1), torch.eye(6, dtype=torch.float64).flatten(), bias=0.1)


def test_running_sampler_keeps_the_covariance_over_many_steps():
    times = torch.linspace(0, 1, 101, dtype=torch.float64)
    for hurst in (0.2, 0.8):
        model = MarkovFBM(hurst, K=12)
        paths = model.path(NoiseStream(2, 0, 20_000), times, dtype=torch.float32).double()
        kept = torch.tensor([10, 50, 77, 100])
        exact = model.covariance(times[kept], times[kept])
        assert_mean((paths[:, kept, None] * paths[:, None, kept]).flatten(1), exact.flatten(), bias=0.12)


def test_increments_sum_to_the_path_and_are_nested():
    model, noise = MarkovFBM(0.7), NoiseStream(3, 0, 5)
    times = torch.linspace(0, 2, 129, dtype=torch.float64)
    path = model.path(noise, times, channels=2, dtype=torch.float64)
    increments = model.increments(noise, times, channels=2, dtype=torch.float64)
    assert increments.shape == (5, 128, 2)
    torch.testing.assert_close(increments.cumsum(1), path[:, 1:], rtol=0, atol=1e-11)
    single = model.increments(noise, times, channels=2, dtype=torch.float32)
    torch.testing.assert_close(single.double(), increments, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", TYPES)
def test_stream_gives_the_values_of_the_path(kind):
    model, noise = MarkovFBM(0.3, type=kind), NoiseStream(4, 0, 6)
    times = torch.tensor([0.5, 0.6, 0.9, 1.7, 1.8], dtype=torch.float64)
    online = torch.stack(list(model.stream(noise, times, dtype=torch.float64)), 1)
    torch.testing.assert_close(online, model.path(noise, times, dtype=torch.float64), rtol=0, atol=1e-11)


def test_path_of_a_sample_does_not_depend_on_the_batch(monkeypatch):
    model, noise = MarkovFBM(0.3), NoiseStream(5, 0, 33)
    times = torch.linspace(0, 1, 70, dtype=torch.float64)
    whole = model.path(noise, times, channels=2, dtype=torch.float64)
    parts = [model.path(noise[a:b], times, channels=2, dtype=torch.float64) for a, b in ((0, 1), (1, 33))]
    # The normals are the same; matrix products of other sizes may round otherwise.
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-12)
    monkeypatch.setattr("sde.noise.markov_sampler._CHUNK_BYTES", 1 << 14)
    torch.testing.assert_close(
        model.path(noise, times, channels=2, dtype=torch.float64), whole, rtol=0, atol=1e-12
    )


def test_longer_grid_continues_the_path():
    model, noise = MarkovFBM(0.3), NoiseStream(5, 0, 3)
    times = torch.linspace(0, 1, 65, dtype=torch.float64)
    short, long = (model.path(noise, t, dtype=torch.float64) for t in (times[:40], times))
    torch.testing.assert_close(long[:, :40], short, rtol=0, atol=1e-12)


def test_path_is_differentiable_in_the_hurst_index():
    noise, times = NoiseStream(0, 0, 2), torch.linspace(0, 1, 6, dtype=torch.float64)
    index = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)

    def path(hurst):
        return MarkovFBM(hurst, 6, dt=0.01).path(noise, times, dtype=torch.float64)

    assert torch.autograd.gradcheck(path, index)
    assert torch.autograd.gradcheck(lambda h: MarkovFBM(h, 6, dt=0.01).covariance(times, times), index)


@pytest.mark.parametrize("kind", TYPES)
def test_index_may_depend_on_time(kind):
    def hurst(t):
        return 0.3 + 0.4 * t

    times = torch.tensor([0.1, 0.3, 0.35, 0.8, 1.0], dtype=torch.float64)
    model = MarkovFBM(hurst, K=16, type=kind)
    assert "H(t)" in repr(model)
    matrix = model.covariance(times, times)
    torch.testing.assert_close(matrix.diagonal(), times ** (2 * hurst(times)), rtol=0.01, atol=0)
    factor = torch.linalg.cholesky(matrix)
    paths = model.path(NoiseStream(6, 0, 40_000), times, dtype=torch.float64)
    white = torch.linalg.solve_triangular(factor, paths.mT, upper=False).mT
    products = white[:, :, None] * white[:, None, :]
    assert_mean(products.flatten(1), torch.eye(5, dtype=torch.float64).flatten(), bias=0.1)


def test_path_is_differentiable_in_an_index_that_depends_on_time():
    noise, times = NoiseStream(0, 0, 2), torch.linspace(0, 1, 6, dtype=torch.float64)
    slope = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)

    def path(a):
        return MarkovFBM(lambda t: 0.3 + a * t, 6, dt=0.01).path(noise, times, dtype=torch.float64)

    assert torch.autograd.gradcheck(path, slope)


def test_constant_function_of_time_is_the_constant_index():
    noise, times = NoiseStream(7, 0, 4), torch.linspace(0, 1, 80, dtype=torch.float64)
    constant = MarkovFBM(0.3).path(noise, times, dtype=torch.float64)
    function = MarkovFBM(lambda t: torch.full_like(t, 0.3)).path(noise, times, dtype=torch.float64)
    # The weights of one index and of many agree to rounding times their condition.
    torch.testing.assert_close(function, constant, rtol=0, atol=1e-8)


def test_horizon_only_scales_time():
    # B(c t) has the law of c**H B(t), and so have the approximations.
    t = torch.tensor([0.2, 1.0], dtype=torch.float64)
    one = MarkovFBM(0.3, T=1.0, dt=1e-3).covariance(t, t)
    ten = MarkovFBM(0.3, T=10.0, dt=1e-2).covariance(10 * t, 10 * t)
    torch.testing.assert_close(ten, 10**0.6 * one, rtol=1e-9, atol=0)


def test_factors_reproduce_covariances_with_few_columns():
    rates = automatic_rates(12, 1.0, 1e-3, "I")
    for matrix in (
        noise_covariance(rates, torch.tensor([1e-4, 1e-3, 0.5]).double()),
        slope_covariance(rates),
    ):
        factor = low_rank_factors(matrix)
        scale = matrix.diagonal(dim1=-2, dim2=-1).sqrt()
        gap = factor @ factor.mT - matrix
        bound = 1e-11 * scale[..., :, None] * scale[..., None, :]
        assert (gap.abs() <= bound).all()
    assert low_rank_factors(noise_covariance(rates, torch.tensor(1e-3).double())).shape[-1] <= 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"H": 0.0}, r"`H` must lie in \(0, 1\); got 0.0"),
        ({"H": 0.3, "K": 0}, "`K` must be an integer of at least 1; got 0"),
        ({"H": 0.3, "dt": 2.0}, "`dt` and `T` must satisfy 0 < dt <= T; got 2.0 and 1.0"),
        ({"H": 0.3, "type": "III"}, "`type` must be 'I' or 'II'; got 'III'"),
        ({"H": 0.3, "normalize": "no"}, "`normalize` must be 'unit' or 'kernel'; got 'no'"),
        ({"H": 0.3, "grid": "fine"}, "`grid` must be 'auto', 'paper' or a tensor of rates; got 'fine'"),
        ({"H": 0.3, "K": 2, "grid": torch.tensor([1.0, 0.5])}, "`grid` must hold 2 increasing rates"),
    ],
)
def test_bad_models_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        MarkovFBM(**arguments)


def test_bad_times_are_refused():
    model, noise = MarkovFBM(0.3), NoiseStream(0, 0, 1)
    with pytest.raises(ValueError, match="`times` must increase strictly and be at least 0"):
        model.path(noise, torch.tensor([0.0, 0.0]))
    with pytest.raises(ValueError, match=r"`times` must start at 0 for increments; got 0\.5"):
        model.increments(noise, torch.tensor([0.5, 1.0]))
    with pytest.raises(ValueError, match="`H` must be given where the index depends on time"):
        MarkovFBM(lambda t: 0 * t + 0.3).omega()
