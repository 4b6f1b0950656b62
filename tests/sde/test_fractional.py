"""Exact fractional noise: laws against mpmath and quadrature, samples against laws, addressing."""

import math

import pytest
import torch

from sde import NoiseStream
from sde.noise.circulant import StationarySampler, circulant_spectrum, fbm_path, fgn
from sde.noise.fractional import (
    fbm_covariance,
    fgn_autocovariance,
    fou_autocovariance,
    multifractional_covariance,
    riemann_liouville_covariance,
)
from sde.noise.fractional_ou import fou_path
from sde.noise.gaussian_path import condition, durbin_levinson, gaussian_path, hosking
from tests.statistics import assert_mean

mpmath = pytest.importorskip("mpmath", reason="needs mpmath")

HURSTS = (0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.98)


def difference(hurst, lag):
    """Autocovariance of fGn to 60 digits."""
    with mpmath.workdps(60):
        two_h, k = 2 * mpmath.mpf(hurst), mpmath.mpf(lag)
        return float((abs(k + 1) ** two_h - 2 * k**two_h + abs(k - 1) ** two_h) / 2)


@pytest.mark.parametrize("hurst", HURSTS)
def test_autocovariance_is_exact_at_every_lag(hurst):
    values = fgn_autocovariance(hurst, 1_000_001)
    for lag in (0, 1, 2, 3, 10, 999, 100_000, 1_000_000):
        expected = difference(hurst, lag)
        assert abs(values[lag].item() - expected) <= 4e-15 * max(lag, 1) ** (2 * hurst - 2)


def test_autocovariance_is_differentiable_twice():
    hurst = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda h: fgn_autocovariance(h, 12), hurst)
    weights = torch.linspace(1, 2, 12, dtype=torch.float64)
    assert torch.autograd.gradgradcheck(lambda h: fgn_autocovariance(h, 12), hurst, weights)
    t = torch.linspace(0, 2, 5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda h: fbm_covariance(h, t, t), hurst)


@pytest.mark.parametrize("hurst", HURSTS)
@pytest.mark.parametrize("count", [1, 2, 3, 64, 1024, 65536])
def test_circulant_eigenvalues_are_positive(hurst, count):
    autocovariance = fgn_autocovariance(hurst, count + 1)
    half = torch.cat((autocovariance, autocovariance[1:-1].flip(0)))
    assert torch.fft.rfft(half).real.min() > 0


def test_circulant_samples_have_the_law_of_the_noise():
    # White the samples with the inverse Cholesky factor: independent standard normals if the law is right.
    for hurst in (0.1, 0.7, 0.95):
        row = fgn_autocovariance(hurst, 8)
        lags = (torch.arange(8)[:, None] - torch.arange(8)).abs()
        factor = torch.linalg.cholesky(row[lags] * 0.25 ** (2 * hurst))
        samples = fgn(hurst, NoiseStream(1, 0, 40_000), 8, dt=0.25, dtype=torch.float64)
        white = torch.linalg.solve_triangular(factor, samples.mT, upper=False).mT
        products = white[:, :, None] * white[:, None, :]
        assert_mean(products.flatten(1), torch.eye(8, dtype=torch.float64).flatten(), bias=0.1)


@pytest.mark.parametrize(("hurst", "bias"), [(0.3, 0.02), (0.7, 0.02), (0.9, 0.2)])
def test_float32_noise_has_unit_variance_and_its_lag_one_correlation(hurst, bias):
    # The mean square over a path of H = 0.9 scatters by 0.2; that of the differences does not.
    values = fgn(hurst, NoiseStream(3, 0, 200), 65536, dtype=torch.float32).double()
    assert_mean(values.square().mean(1), 1.0, bias=bias)
    expected = 2 ** (2 * hurst - 1) - 1
    assert_mean((values[:, 1:] * values[:, :-1]).mean(1), expected, bias=bias)
    assert_mean(values.diff(dim=1).square().mean(1), 2 - 2 * expected, bias=0.02)


def test_float32_noise_is_the_float64_noise_rounded():
    noise = NoiseStream(5, 0, 3)
    single, double = (fgn(0.9, noise, 4096, dtype=dtype) for dtype in (torch.float32, torch.float64))
    torch.testing.assert_close(single.double(), double, rtol=0, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_of_a_sample_does_not_depend_on_the_batch(dtype, monkeypatch):
    noise = NoiseStream(2, 0, 37)
    whole = fgn(0.3, noise, 257, channels=2, dtype=dtype)
    parts = [fgn(0.3, noise[a:b], 257, channels=2, dtype=dtype) for a, b in ((0, 1), (1, 20), (20, 37))]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=0)
    monkeypatch.setattr("sde.noise.circulant._CHUNK_BYTES", 1 << 14)
    assert torch.equal(fgn(0.3, noise, 257, channels=2, dtype=dtype), whole)
    order = torch.randperm(37, generator=torch.Generator().manual_seed(0))
    assert torch.equal(fgn(0.3, noise.select(order), 257, channels=2, dtype=dtype), whole[order])


def test_first_channel_differs_from_the_second_and_equals_the_lone_one():
    noise = NoiseStream(2, 0, 3)
    both = fgn(0.3, noise, 16, channels=2)
    assert torch.equal(both[..., 0], fgn(0.3, noise, 16))
    assert not torch.equal(both[..., 0], both[..., 1])


def test_path_is_differentiable_in_the_hurst_index():
    hurst = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda h: fbm_path(h, NoiseStream(0, 0, 2), 8, dt=0.1, dtype=torch.float64), hurst
    )


def test_no_samples_give_an_empty_tensor():
    assert fgn(0.3, NoiseStream(0, 4, 4), 8, channels=2).shape == (0, 8, 2)


def test_hosking_gives_the_values_of_the_cholesky_factor():
    noise, count = NoiseStream(4, 0, 6), 60
    row = fgn_autocovariance(0.8, count)
    matrix = row[(torch.arange(count)[:, None] - torch.arange(count)).abs()]
    online = torch.stack(list(hosking(row, noise)), 1)
    torch.testing.assert_close(online, gaussian_path(matrix, noise, dtype=torch.float64), rtol=0, atol=1e-12)


def test_prediction_variances_multiply_to_the_determinant():
    row = fgn_autocovariance(0.2, 40)
    matrix = row[(torch.arange(40)[:, None] - torch.arange(40)).abs()]
    product = sum(math.log(variance.item()) for _, variance in durbin_levinson(row))
    assert product == pytest.approx(torch.logdet(matrix).item(), rel=1e-12)


@pytest.mark.parametrize("hurst", [0.2, 0.5, 0.8])
def test_riemann_liouville_covariance_is_the_integral_of_its_kernel(hurst):
    alpha, s, t = hurst + 0.5, 0.3, 1.7
    # Substitution removes the singularity at u = s.
    integral = mpmath.quad(
        lambda v: (t - s + v ** (1 / alpha)) ** (alpha - 1) / alpha, [0, s**alpha], method="tanh-sinh"
    )
    cross = riemann_liouville_covariance(hurst, *(torch.tensor([at], dtype=torch.float64) for at in (s, t)))
    assert cross.item() == pytest.approx(2 * hurst * float(integral), rel=1e-10)


def test_type_two_paths_start_at_zero_and_have_the_variance_of_their_law():
    t = torch.tensor([0.0, 0.25, 0.3, 1.0], dtype=torch.float64)
    paths = gaussian_path(
        riemann_liouville_covariance(0.2, t, t), NoiseStream(0, 0, 20_000), dtype=torch.float64
    )
    assert torch.equal(paths[:, 0], torch.zeros(20_000, dtype=torch.float64))
    assert_mean(paths[:, 1:].square() / t[1:] ** 0.4, 1.0, bias=0.15)


def test_conditional_paths_meet_exact_observations_and_have_the_law_of_the_bridge():
    t = torch.linspace(0, 2, 9, dtype=torch.float64)
    seen = torch.tensor([1.0, 2.0], dtype=torch.float64)
    noise_free = condition(
        fbm_covariance(0.7, t, t), fbm_covariance(0.7, t, seen), fbm_covariance(0.7, seen, seen)
    )
    mean = noise_free.mean(torch.tensor([0.4, -1.0]))
    torch.testing.assert_close(mean[[0, 4, 8]], torch.tensor([0.0, 0.4, -1.0]).double(), rtol=0, atol=1e-12)
    paths = noise_free.sample(torch.tensor([0.4, -1.0]), NoiseStream(0, 0, 50), dtype=torch.float64)
    torch.testing.assert_close(paths[:, [0, 4, 8]], mean[[0, 4, 8]].expand(50, 3), rtol=0, atol=1e-9)
    # One observation of standard error 0.1 at t = 2: the formula of the scalar case.
    end = seen[1:]
    observed = fbm_covariance(0.7, end, end) + 0.01
    law = condition(fbm_covariance(0.7, t, t), fbm_covariance(0.7, t, end), observed)
    for index, time in ((2, 0.5), (4, 1.0), (6, 1.5)):
        cross = 0.5 * (time**1.4 + 2**1.4 - (2 - time) ** 1.4)
        expected = time**1.4 - cross**2 / (2**1.4 + 0.01)
        assert law.covariance[index, index].item() == pytest.approx(expected, rel=1e-12)
    samples = law.sample(torch.tensor([0.5]), NoiseStream(0, 0, 20_000), dtype=torch.float64)
    assert_mean(samples[:, 1:], law.mean(torch.tensor([0.5]))[1:], bias=0.08)


def test_multifractional_covariance_is_that_of_fbm_where_the_index_is_constant_and_positive_otherwise():
    t = torch.linspace(0.01, 1, 60, dtype=torch.float64)
    hurst = 0.2 + 0.6 * t
    matrix = multifractional_covariance(hurst, hurst, t, t)
    torch.testing.assert_close(matrix.diagonal(), t ** (2 * hurst), rtol=1e-12, atol=0)
    assert torch.linalg.eigvalsh(matrix).min() > 0
    constant = torch.full_like(t, 0.3)
    torch.testing.assert_close(
        multifractional_covariance(constant, constant, t, t),
        fbm_covariance(0.3, t, t),
        rtol=1e-12,
        atol=1e-14,
    )


@pytest.mark.parametrize("hurst", [0.2, 0.5, 0.8])
def test_fractional_ornstein_uhlenbeck_covariance_solves_its_equation(hurst):
    lags = torch.tensor([0.0, 0.3, 2.0, 39.9, 40.1, 200.0], dtype=torch.float64)
    values = fou_autocovariance(hurst, lags, rate=1.0, scale=1.5)
    with mpmath.workdps(200):
        for lag, value in zip(lags.tolist(), values.tolist(), strict=True):
            x, a = mpmath.mpf(lag), mpmath.mpf(2 * hurst + 1)
            inner = mpmath.e**-x * mpmath.gamma(a) + x**a / a * mpmath.hyp1f1(1, a + 1, -x)
            inner += mpmath.e**x * mpmath.gammainc(a, x)
            expected = 2.25 * (inner / 2 - x ** (2 * mpmath.mpf(hurst))) / 2
            # The closed form loses eps * lag**2.
            assert abs(value - float(expected)) <= 1e-13 * max(1.0, lag ** (2 * hurst))
    if hurst == 0.5:
        torch.testing.assert_close(values, 1.125 * torch.exp(-lags), rtol=0, atol=1e-13)


@pytest.mark.parametrize("hurst", [0.1, 0.7, 0.9])
def test_short_windows_of_a_long_memory_are_sampled_exactly(hurst):
    # The window of 0.8 is short beside the memory of 1: its own embedding fails for H > 1/2.
    row = fou_autocovariance(hurst, torch.arange(9).double() * 0.1)
    factor = torch.linalg.cholesky(row[(torch.arange(9)[:, None] - torch.arange(9)).abs()])
    paths = fou_path(hurst, NoiseStream(0, 0, 20_000), 8, dt=0.1, dtype=torch.float64)
    white = torch.linalg.solve_triangular(factor, paths.mT, upper=False).mT
    products = white[:, :, None] * white[:, None, :]
    assert_mean(products.flatten(1), torch.eye(9, dtype=torch.float64).flatten(), bias=0.12)


def test_fractional_ornstein_uhlenbeck_is_sampled_exactly():
    lags = torch.arange(33, dtype=torch.float64) * 0.1
    row = fou_autocovariance(0.3, lags, rate=2.0)
    samples = StationarySampler(row).draw(NoiseStream(0, 0, 30_000), dtype=torch.float64)
    assert_mean(samples[:, [0]] * samples[:, [0, 1, 5, 31]], row[[0, 1, 5, 31]], bias=0.03)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fgn(1.0, NoiseStream(0, 0, 1), 4), r"`hurst` must lie in \(0, 1\); got 1.0"),
        (lambda: fgn(0.3, NoiseStream(0, 0, 1), 0), "`num_steps` must be at least 1; got 0"),
        (lambda: fgn(0.3, NoiseStream(0, 0, 1), 4, dt=0.0), "`dt` must be positive and finite; got 0.0"),
        (lambda: circulant_spectrum(torch.tensor([1.0, 0.9, 0.0])), "non-negative circulant embedding"),
        (lambda: fbm_covariance(0.3, torch.tensor([-1.0]), torch.ones(1)), "`s` must be at least 0; got -1"),
        (
            lambda: gaussian_path(torch.ones(2, 2), NoiseStream(0, 0, 1)),
            "`covariance` must be positive definite",
        ),
        (lambda: list(durbin_levinson(torch.ones(3))), "`autocovariance` must be positive definite"),
        (
            lambda: fou_autocovariance(0.3, torch.ones(1), rate=0.0),
            "`rate` must be positive and finite; got 0",
        ),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
