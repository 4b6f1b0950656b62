"""Estimators of the Hurst index: bias, standard error and coverage on exact paths; closed forms; errors."""

import math

import pytest
import torch

from sde import NoiseStream
from sde.hurst import (
    dfa,
    fgn_spectral_density,
    local_index,
    markov_likelihood,
    maximum_likelihood,
    quadratic_variations,
    rescaled_range,
    variogram,
    whittle,
)
from sde.hurst.fluctuations import anis_lloyd
from sde.hurst.kalman import MarkovLikelihood
from sde.hurst.profile import Profile, indices
from sde.noise import (
    MarkovFBM,
    fbm_covariance,
    fbm_path,
    fgn_autocovariance,
    gaussian_path,
    multifractional_covariance,
)

ALL = [quadratic_variations, variogram, dfa, rescaled_range, whittle, maximum_likelihood]
QUANTILE = 4.9  # two-sided false alarm of 1e-6


def noise_like(count):
    return NoiseStream(9, 0, 1).normals(count)[0]


def paths(hurst, count, steps=400, seed=1):
    return fbm_path(hurst, NoiseStream(seed, 0, count), steps, dtype=torch.float64)


@pytest.mark.parametrize("hurst", [0.2, 0.8])
@pytest.mark.parametrize("estimator", ALL)
def test_estimates_scatter_about_the_index_as_their_standard_errors_say(estimator, hurst):
    estimate = estimator(paths(hurst, 500))
    standard = (estimate.H - hurst) / estimate.std_error
    # The first-order theory may leave a bias of 0.3 errors and be wrong by 6 % about them; the rest is the
    # scatter of the mean and of the deviation over 500 repetitions.
    assert abs(float(standard.mean())) < 0.3 + QUANTILE / math.sqrt(500)
    assert float(standard.std()) == pytest.approx(1, abs=0.06 + QUANTILE / math.sqrt(1000))


@pytest.mark.slow
@pytest.mark.parametrize("hurst", [0.1, 0.3, 0.5, 0.7, 0.9])
@pytest.mark.parametrize("estimator", ALL)
def test_intervals_cover_the_index(estimator, hurst):
    repetitions = 2000
    drawn = paths(hurst, repetitions, steps=1024, seed=3)
    low, high = (
        torch.cat(ends)
        for ends in zip(*(estimator(part).interval() for part in drawn.split(500)), strict=True)
    )
    covered = float(((low <= hurst) & (hurst <= high)).double().mean())
    noise = QUANTILE * math.sqrt(0.95 * 0.05 / repetitions)
    assert 0.93 - noise < covered < 0.97 + noise


@pytest.mark.parametrize("estimator", ALL)
def test_estimates_of_several_paths_are_those_of_each(estimator):
    drawn = paths(0.6, 3, steps=300)
    together = estimator(drawn)
    assert together.H.shape == together.std_error.shape == (3,)
    alone = estimator(drawn[1])
    assert alone.H.shape == ()
    torch.testing.assert_close(alone.H, together.H[1], rtol=0, atol=1e-8)
    torch.testing.assert_close(alone.std_error, together.std_error[1], rtol=1e-6, atol=0)
    assert "0." in repr(alone)


@pytest.mark.parametrize("estimator", ALL)
def test_estimates_do_not_depend_on_scale_and_level(estimator):
    path = paths(0.4, 1, steps=300)[0]
    torch.testing.assert_close(estimator(7 + 1e3 * path).H, estimator(path).H, rtol=0, atol=1e-7)


@pytest.mark.parametrize("estimator", [quadratic_variations, variogram, whittle, maximum_likelihood])
def test_scale_is_recovered(estimator):
    estimate = estimator(3 * paths(0.3, 200))
    assert float(estimate.scale.mean()) == pytest.approx(3, rel=0.02)


def test_quadratic_variations_ignore_a_trend():
    path = paths(0.3, 1)[0]
    trend = 5 * torch.linspace(0, 1, len(path), dtype=torch.float64)
    torch.testing.assert_close(
        quadratic_variations(path + trend).H, quadratic_variations(path).H, rtol=0, atol=1e-9
    )


@pytest.mark.parametrize("hurst", [0.1, 0.5, 0.9])
def test_spectral_density_has_the_autocovariance_as_its_fourier_series(hurst):
    # Midpoints in the variable u with frequency pi u**p, which tames the pole at zero.
    power, count = 12, 200_000
    u = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    frequencies, weight = math.pi * u**power, math.pi * power * u ** (power - 1) / count
    values = 2 * fgn_spectral_density(hurst, frequencies.clamp(min=1e-60)) * weight
    for lag, expected in enumerate(fgn_autocovariance(hurst, 4).tolist()):
        assert float((values * torch.cos(lag * frequencies)).sum()) == pytest.approx(expected, abs=1e-8)


def test_likelihood_is_maximal_where_the_dense_gaussian_one_is():
    path = paths(0.7, 1, steps=100)[0]
    increments = path.diff()
    lags = (torch.arange(100)[:, None] - torch.arange(100)).abs()

    def dense(hurst, scale=None):
        matrix = fgn_autocovariance(hurst, 100)[lags]
        square = float(increments @ torch.linalg.solve(matrix, increments))
        log_det = float(torch.logdet(matrix))
        if scale is None:
            return -0.5 * (log_det + 100 * math.log(square / 100))
        return -0.5 * (log_det + 100 * math.log(scale**2) + square / scale**2)

    for scale in (None, 1.1):
        estimate = maximum_likelihood(path, scale=scale)
        h, error = estimate.H.item(), estimate.std_error.item()
        step = 1e-4
        ahead, here, behind = (dense(h + d, scale) for d in (step, 0, -step))
        assert abs(ahead - behind) / (2 * step) * error < 1e-4
        assert (-(ahead - 2 * here + behind) / step**2) ** -0.5 == pytest.approx(error, rel=1e-3)


def test_known_scale_makes_the_likelihood_sharper():
    drawn = paths(0.3, 20, steps=256)
    free, known = maximum_likelihood(drawn), maximum_likelihood(drawn / 256**0.3, dt=1 / 256, scale=1.0)
    # The size of the increments alone tells the index: the information about it grows with log(dt)**2.
    assert (known.std_error < free.std_error / 3).all()
    assert float(((known.H - 0.3) / known.std_error).square().mean()) < 1 + QUANTILE * math.sqrt(2 / 20)


def test_profile_finds_maximum_and_curvature():
    # A form 1000 exp(-20 H) with log-determinant 30 H: the maximum and its curvature are elementary.
    grid = indices()
    forms = (torch.tensor([10.0, 1e3, 1e5]).double()[:, None]) * torch.exp(-20 * grid)
    h, error = Profile.of(30 * grid, forms).maximum()
    expected = torch.tensor([10.0, 1e3, 1e5]).double().mul(20 / 30).log() / 20
    torch.testing.assert_close(h, expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(error, torch.full((3,), 300**-0.5).double(), rtol=1e-6, atol=0)
    # With the scale free, the parabola log(form) = 40 (H - centre)**2 + constant.
    centres = torch.tensor([0.2, 0.85]).double()
    h, error = Profile.of(0 * grid, torch.exp(40 * (grid - centres[:, None]) ** 2), 100).maximum()
    torch.testing.assert_close(h, centres, rtol=0, atol=1e-9)
    torch.testing.assert_close(error, torch.full((2,), 4000**-0.5).double(), rtol=1e-6, atol=0)


def test_anis_lloyd_is_the_mean_rescaled_range_of_white_noise():
    size, count = 12, 200_000
    x = NoiseStream(5, 0, count).normals(size, dtype=torch.float64)
    sums = (x - x.mean(1, keepdim=True)).cumsum(1)
    ratio = (sums.amax(1).clamp(min=0) - sums.amin(1).clamp(max=0)) / x.std(1, correction=0)
    assert abs(float(ratio.mean()) - anis_lloyd(size)) < QUANTILE * float(ratio.std()) / math.sqrt(count)


def test_raw_slopes_are_biased_and_calibration_removes_it():
    for estimator in (dfa, rescaled_range):
        estimate = estimator(paths(0.1, 400, steps=512))
        assert float(estimate.raw.mean()) > 0.115
        assert abs(float(estimate.H.mean()) - 0.1) < 0.01


def test_local_index_follows_an_index_that_grows():
    t = torch.linspace(0.001, 1, 1500, dtype=torch.float64)
    hurst = 0.2 + 0.6 * t
    path = gaussian_path(
        multifractional_covariance(hurst, hurst, t, t), NoiseStream(2, 0, 20), dtype=torch.float64
    )
    local = local_index(path, 250, stride=125, lags=(1, 2, 3))
    truth = hurst[local.position]
    error = local.std_error.mean(0) / math.sqrt(20)
    # The index changes by 0.1 in a window, which biases a little.
    assert ((local.H.mean(0) - truth).abs() < QUANTILE * error + 0.02).all()


def irregular(count, hurst, noise, seed):
    """Exact fBM plus noise at irregular instants."""
    stream = NoiseStream(seed, 0, 1)
    gaps = 0.5 + stream.uniforms(count - 1, dtype=torch.float64)[0]
    times = torch.cat((torch.zeros(1, dtype=torch.float64), gaps.cumsum(0)))
    path = gaussian_path(fbm_covariance(hurst, times, times), stream, dtype=torch.float64)[0]
    return times, 5 + 2 * path + noise * stream.normals(count, dtype=torch.float64)[0]


def test_filter_gives_the_dense_likelihood_of_the_approximation():
    times, values = irregular(50, 0.4, 0.3, seed=1)
    model = MarkovFBM(0.5, 8, T=float(times[-1]), dt=1.0)
    hurst, ratio = torch.tensor([0.1, 0.4, 0.8]).double(), torch.tensor([0.0, 0.3, 2.0]).double()
    search = MarkovLikelihood(model, times, values - values[0], 1.0, 0.05, 0.95)
    log_sum, square_sum = search.at(hurst, ratio)
    steps = values.diff()
    for k, (h, r) in enumerate(zip(hurst.tolist(), ratio.tolist(), strict=True)):
        full = MarkovFBM(h, 8, T=model.T, dt=1.0).covariance(times, times) + r**2 * torch.eye(50)
        # Differences take out the level; their covariance has the determinant and form that are left.
        dense = full.diff(dim=0).diff(dim=1)
        form = float(steps @ torch.linalg.solve(dense, steps))
        assert float(square_sum[k]) == pytest.approx(form, rel=1e-3)
        # A diffuse level has the likelihood of the differences, up to a constant that is the same for all.
        gap = float(log_sum[k] - torch.logdet(dense))
        assert gap == pytest.approx(0.0, abs=1e-3)


@pytest.mark.parametrize("hurst", [0.3, 0.7])
def test_markov_likelihood_finds_index_scale_and_noise_of_irregular_data(hurst):
    times, values = irregular(250, hurst, 1.0, seed=2)
    estimate = markov_likelihood(times, values, num_rates=8)
    assert abs(float(estimate.H) - hurst) < QUANTILE * float(estimate.std_error) < 0.5
    # Scale and noise compete, but the mean square of a difference over unit time is theirs together; its
    # relative error is about 0.1.
    total = estimate.scale.square() + 2 * estimate.noise.square()
    assert float(total) == pytest.approx(6, rel=0.1 * QUANTILE)
    assert "Markov" in estimate.plot().axes[0].get_title()


def test_markov_likelihood_without_noise_is_close_to_the_exact_one():
    path = paths(0.6, 1, steps=200)[0]
    exact = maximum_likelihood(path)
    markov = markov_likelihood(torch.arange(201).double(), path, noise=False)
    assert abs(float(markov.H - exact.H)) < 0.2 * float(exact.std_error)
    assert float(markov.std_error) == pytest.approx(float(exact.std_error), rel=0.1)


@pytest.mark.slow
def test_intervals_of_the_markov_likelihood_cover_the_index():
    repetitions, hurst, steps = 1000, 0.6, 120
    noise = NoiseStream(6, 0, repetitions)
    drawn = fbm_path(hurst, noise, steps, dtype=torch.float64)
    drawn = drawn + 0.5 * noise.normals(steps + 1, dtype=torch.float64)
    times = torch.arange(steps + 1).double()
    ends = [markov_likelihood(times, path, num_rates=8).interval() for path in drawn]
    covered = sum(float(low) <= hurst <= float(high) for low, high in ends) / repetitions
    slack = QUANTILE * math.sqrt(0.95 * 0.05 / repetitions)
    assert 0.93 - slack < covered < 0.97 + slack


@pytest.mark.parametrize("estimator", ALL)
def test_diagnostic_figure_is_drawn(estimator, tmp_path):
    pytest.importorskip("matplotlib", reason="needs the extra plot")
    estimate = estimator(paths(0.3, 2, steps=300))
    figure = estimate.plot(1)
    assert f"H = {estimate.H[1]:.3f}" in figure.axes[0].get_title()
    figure.savefig(tmp_path / "figure.png")


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: whittle(torch.zeros(100)), ValueError, "`path` must vary; got a constant path"),
        (lambda: whittle(torch.arange(100)), TypeError, "`path` must be a floating-point tensor"),
        (
            lambda: whittle(noise_like(8)),
            ValueError,
            r"`path` must hold at least 32 values; got shape \(8,\)",
        ),
        (lambda: whittle(torch.full((100,), math.nan)), ValueError, "`path` must be finite"),
        (lambda: variogram(noise_like(99), [2, 1]), ValueError, "`lags` must be at least two increasing"),
        (lambda: dfa(noise_like(99), windows=[3, 9]), ValueError, r"`windows` must be .* in \[4, 98\]"),
        (lambda: maximum_likelihood(noise_like(99), scale=0.0), ValueError, "`scale` must be positive"),
        (
            lambda: markov_likelihood(torch.zeros(20), noise_like(20)),
            ValueError,
            "`times` must increase strictly",
        ),
        (lambda: local_index(noise_like(99), 8), ValueError, r"`window` must lie in \[16, 99\]; got 8"),
        (
            lambda: quadratic_variations(paths(0.3, 1)).interval(1.0),
            ValueError,
            r"`level` must lie in \(0, 1\)",
        ),
        (
            lambda: fgn_spectral_density(0.3, torch.zeros(1)),
            ValueError,
            r"`frequencies` must lie in \(0, pi\]",
        ),
    ],
)
def test_bad_input_is_refused(call, kind, message):
    with pytest.raises(kind, match=message):
        call()
