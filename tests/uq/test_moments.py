"""Moments, quantiles, distribution functions and histograms."""

import math

import pytest
import torch
from scipy import stats

from benchmarks.engine import interval_coverage
from sde.noise import NoiseStream
from uq.histograms import Histogram, histogram_edges
from uq.moments import Moments
from uq.quantiles import EmpiricalCDF, quantile

SAMPLES = NoiseStream(seed=3, start=0, stop=1000).normals(2, dtype=torch.float64).exp()


def test_moments_agree_with_scipy():
    moments, array = Moments.of(SAMPLES), SAMPLES.numpy()
    expected = (array.mean(0), array.var(0, ddof=1), stats.skew(array), stats.kurtosis(array, fisher=False))
    found = (moments.mean, moments.variance, moments.skewness, moments.kurtosis)
    for value, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(value, torch.from_numpy(reference), rtol=1e-12, atol=0)
    torch.testing.assert_close(moments.std_error, SAMPLES.std(0) / math.sqrt(1000), rtol=1e-12, atol=0)


@pytest.mark.parametrize("cuts", [[1], [500], [1, 2, 3, 999], [100, 400, 401]])
def test_merged_moments_are_those_of_the_whole(cuts):
    parts = SAMPLES.tensor_split(cuts)
    merged = sum((Moments.of(part) for part in parts), Moments.empty((2,)))
    whole = Moments.of(SAMPLES)
    assert merged.count == whole.count
    for name in ("mean", "m2", "m3", "m4"):
        # Rounding of sums of 1000 terms of one sign or nearly so: 1000 units in the last place.
        torch.testing.assert_close(getattr(merged, name), getattr(whole, name), rtol=1000 * 2.2e-16, atol=0)


def test_moments_survive_a_mean_far_larger_than_the_spread():
    shifted = Moments.of(SAMPLES[:500] + 1e9) + Moments.of(SAMPLES[500:] + 1e9)
    # E[x^2] - E[x]^2 would lose every digit here; what is left is the rounding of the shifted samples.
    torch.testing.assert_close(shifted.variance, SAMPLES.var(0), rtol=1e-6, atol=0)


def test_moments_of_few_samples():
    assert Moments.of(torch.zeros(0, 2)).count == 0
    assert bool(Moments.of(torch.ones(1)).variance.isnan())
    low, high = Moments.of(torch.ones(5)).confidence_interval()
    assert (low.item(), high.item()) == (1.0, 1.0)


def test_standard_error_of_the_variance_is_that_of_repetitions():
    normals = NoiseStream(seed=5, start=0, stop=4000).normals(50, dtype=torch.float64).T
    moments = Moments.of(normals)
    assert float(moments.variance_std_error.mean() / moments.variance.std()) == pytest.approx(1, abs=0.08)


def test_intervals_cover_the_mean_and_the_lognormal_control_falls_short():
    normals = NoiseStream(seed=1, start=0, stop=4000).normals(200, dtype=torch.float64).T
    assert 0.94 <= interval_coverage(normals, 0.0) <= 0.96
    few = NoiseStream(seed=2, start=0, stop=4000).normals(50, dtype=torch.float64).T
    assert 0.88 <= interval_coverage(few.exp(), math.exp(0.5)) <= 0.92


def test_quantile_intervals_cover():
    samples = NoiseStream(seed=6, start=0, stop=2000).normals(60, dtype=torch.float64).exp()
    estimates = [quantile(row, 0.9) for row in samples]
    truth = math.exp(stats.norm.ppf(0.9))
    share = sum(e.low <= truth <= e.high for e in estimates) / len(estimates)
    # At least 0.95, short by at most 4.9 standard errors of 2000 repetitions.
    assert 0.95 - 4.9 * math.sqrt(0.95 * 0.05 / 2000) <= share < 1


def test_quantile_of_few_samples_has_an_open_end():
    estimate = quantile(torch.arange(10.0), 0.99)
    assert estimate.high == math.inf
    assert math.isfinite(estimate.low)


def test_band_of_the_distribution_function_covers_everywhere():
    samples = NoiseStream(seed=7, start=0, stop=1000).uniforms(80, dtype=torch.float64)
    hits = 0
    for row in samples:
        cdf = EmpiricalCDF.of(row)
        # The supremum over x is reached at the samples, from the left or from the right.
        right = (cdf(cdf.ordered) - cdf.ordered).abs().max()
        left = (cdf(cdf.ordered) - 1 / len(row) - cdf.ordered).abs().max()
        hits += float(torch.maximum(right, left)) <= cdf.half_width()
    assert 0.95 - 4.9 * math.sqrt(0.95 * 0.05 / 1000) <= hits / 1000 < 1
    low, high = cdf.band(torch.tensor([-1.0, 0.5, 2.0]))
    assert bool((low <= high).all())
    assert low[0] == 0
    assert high[2] == 1


def test_histograms_merge_and_count_everything():
    edges = torch.linspace(0, 5, 11)
    column = SAMPLES[:, 0]
    whole = Histogram.of(column, edges)
    merged = Histogram.of(column[:300], edges) + Histogram.of(column[300:], edges)
    assert torch.equal(whole.counts, merged.counts)
    assert whole.total == merged.total == 1000
    assert float((whole.density * edges.double().diff()).sum()) + whole.above / 1000 == pytest.approx(1)
    assert torch.equal(whole.counts, torch.histogram(column.float(), edges).hist.long())
    assert Histogram.of(column, histogram_edges(column)).above == 0


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Moments.of(torch.tensor(1.0)), r"must have shape \(n, ...\)"),
        (lambda: Moments.of(torch.ones(3)) + Moments.of(torch.ones(3, 2)), "one shape can be added"),
        (lambda: Moments.of(torch.ones(3)).confidence_interval(1.0), r"`confidence` must lie in \(0, 1\)"),
        (lambda: quantile(torch.ones(3), 0.0), r"`probability` must lie in \(0, 1\)"),
        (lambda: quantile(torch.ones(0), 0.5), "at least one sample; got none"),
        (lambda: quantile(torch.tensor([1.0, math.nan]), 0.5), "no NaN; got 1 of 2"),
        (lambda: quantile(torch.ones(3, 2), 0.5), "one component at a time"),
        (lambda: EmpiricalCDF.of(torch.ones(3)).half_width(0.0), "`confidence`"),
        (lambda: Histogram.of(torch.ones(3), torch.tensor([1.0, 1.0])), "strictly increasing"),
        (lambda: Histogram.of(torch.tensor([math.nan]), torch.tensor([0.0, 1.0])), "no NaN"),
        (lambda: histogram_edges(torch.tensor([math.inf])), "must be finite"),
    ],
)
def test_statistics_refuse_bad_arguments(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_moments_refuse_complex_samples():
    with pytest.raises(TypeError, match="must be real"):
        Moments.of(torch.ones(3, dtype=torch.complex64))
