"""Scores of ensembles against closed forms, laws of ranks and what they must tell apart."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.stats import kstest, norm
from torch import Tensor

from inference.scores import (
    RankHistogram,
    coverage,
    crps,
    energy_distance,
    energy_score,
    gaussian_crps,
    spread_skill,
)
from sde.noise import NoiseStream
from tests.statistics import assert_mean

F64 = torch.float64


def calibrated(
    n: int, members: int, *, spread: float = 1.0, bias: float = 0.0, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Members and observations about a centre of their own; calibrated with the defaults."""
    normals = NoiseStream(seed, 0, n).normals(members + 2, dtype=F64)
    centre = 3 * normals[:, :1]
    return centre + bias + spread * normals[:, 2:], (centre + normals[:, 1:2])[:, 0]


def test_gaussian_crps_is_the_integral() -> None:
    grid = np.linspace(-40, 40, 400_001)
    for mean, deviation, observed in ((0.0, 1.0, 0.3), (1.2, 0.4, -0.5), (-3.0, 2.5, 4.0)):
        step = (norm.cdf(grid, mean, deviation) - (grid >= observed)) ** 2
        found = gaussian_crps(*(torch.tensor(v, dtype=F64) for v in (mean, deviation, observed)))
        assert abs(found.item() - step.sum() * (grid[1] - grid[0])) < 1e-3


def test_fair_crps_is_unbiased_for_few_members_and_the_other_is_not() -> None:
    """The mean over ensembles of 3 from N(0, 1) against an observation at 0.7; the bias is E|X - X'| / 2m."""
    n = 200_000
    ensemble = NoiseStream(1, 0, n).normals(3, dtype=F64)
    observed = torch.full((n,), 0.7, dtype=F64)
    exact = gaussian_crps(*(torch.tensor(v, dtype=F64) for v in (0.0, 1.0, 0.7))).item()
    assert_mean(crps(ensemble, observed), exact, bias=0.02)
    assert_mean(crps(ensemble, observed, fair=False), exact + 2 / math.sqrt(math.pi) / 6, bias=0.02)


def test_crps_is_that_of_all_pairs_and_the_energy_score_in_one_dimension() -> None:
    rng = np.random.default_rng(2)
    ensemble, observed = (
        torch.tensor(rng.standard_normal((5, 7, 2))),
        torch.tensor(rng.standard_normal((5, 2))),
    )
    near = (ensemble - observed[:, None]).abs().mean(1)
    pairs = (ensemble[:, :, None] - ensemble[:, None]).abs().sum((1, 2))
    torch.testing.assert_close(crps(ensemble, observed), near - pairs / (2 * 7 * 6), rtol=1e-12, atol=1e-14)
    for fair in (True, False):
        torch.testing.assert_close(
            energy_score(ensemble[..., :1], observed[:, :1], fair=fair),
            crps(ensemble[..., 0], observed[:, 0], fair=fair),
            rtol=1e-12,
            atol=1e-14,
        )


def test_crps_of_a_perfect_ensemble_is_the_expected_one() -> None:
    """For N(0, 1) against its own draws the mean is 1 / sqrt(pi), and any other law scores worse."""
    ensemble, observed = calibrated(100_000, 9)
    assert_mean(crps(ensemble, observed), 1 / math.sqrt(math.pi), bias=0.02)
    for spread, bias in ((0.7, 0.0), (1.4, 0.0), (1.0, 0.4)):
        worse, _ = calibrated(100_000, 9, spread=spread, bias=bias)
        gap = crps(worse, observed) - crps(ensemble, observed)
        assert gap.mean() > 6 * gap.std() / math.sqrt(len(gap))


def test_energy_distance_is_the_mean_excess_of_the_energy_score() -> None:
    n, shift = 40_000, torch.tensor([0.8, 0.0], dtype=F64)
    normals = NoiseStream(3, 0, n).normals(26, dtype=F64).view(n, 13, 2)
    truth, right, wrong = normals[:, 0], normals[:, 1:7], normals[:, 7:] + shift
    distance = energy_distance(wrong, right)
    excess = energy_score(wrong, truth) - energy_score(right, truth)
    assert_mean(distance - excess, 0.0, bias=0.06)
    assert distance.mean() > 0.05
    assert_mean(energy_distance(normals[:, 7:], right), 0.0, bias=0.03)


@pytest.mark.parametrize("fair", [True, False])
def test_energy_score_prefers_the_right_dependence(fair: bool) -> None:
    """Marginals alone do not tell: the correlation of the truth is found by the score."""
    n, m, r = 20_000, 10, 0.9
    normals = NoiseStream(4, 0, n).normals(2 * (m + 1), dtype=F64).view(n, m + 1, 2)
    turned = torch.stack((normals[..., 0], r * normals[..., 0] + math.sqrt(1 - r * r) * normals[..., 1]), -1)
    gap = energy_score(normals[:, 1:], turned[:, 0], fair=fair) - energy_score(
        turned[:, 1:], turned[:, 0], fair=fair
    )
    assert gap.mean() > 6 * gap.std() / math.sqrt(n)


def test_ranks_of_a_calibrated_ensemble_are_flat_and_their_p_values_uniform() -> None:
    """400 sets of 500 cases; the law of Pearson's statistic at 25 cases a rank is near its limit."""
    ensemble, observed = calibrated(200_000, 19)
    noise = NoiseStream(5, 0, 200_000)
    values = [
        RankHistogram.of(ensemble[k : k + 500], observed[k : k + 500], noise[k : k + 500]).p_value
        for k in range(0, 200_000, 500)
    ]
    assert kstest(values, "uniform").pvalue > 1e-6


@pytest.mark.parametrize(("spread", "bias"), [(0.8, 0.0), (1.3, 0.0), (1.0, 0.3)])
def test_ranks_of_an_ensemble_that_is_not_calibrated_are_not_flat(spread: float, bias: float) -> None:
    ensemble, observed = calibrated(5000, 19, spread=spread, bias=bias)
    histogram = RankHistogram.of(ensemble, observed, NoiseStream(5, 0, 5000))
    assert histogram.p_value < 1e-6
    outer = (histogram.counts[0] + histogram.counts[-1]) / 5000
    assert (outer > 0.1) == (spread < 1 or bias > 0)


def test_ties_are_broken_by_chance_that_has_an_address() -> None:
    """Of three values: ranks are flat, and those of a case do not depend on the others."""
    n = 60_000
    values = (3 * NoiseStream(6, 0, n).uniforms(8, dtype=F64)).floor()
    ensemble, observed, noise = values[:, 1:], values[:, 0], NoiseStream(7, 0, n)
    whole = RankHistogram.of(ensemble, observed, noise)
    assert whole.p_value > 1e-6
    parts = [RankHistogram.of(ensemble[s], observed[s], noise[s]) for s in (slice(0, 70), slice(70, n))]
    assert torch.equal((parts[0] + parts[1]).counts, whole.counts)
    assert torch.equal(whole.merged(4).counts, whole.counts.view(4, 2).sum(1))


@pytest.mark.parametrize("level", [0.5, 0.8, 0.9])
def test_coverage_is_the_level_that_the_members_can_say(level: float) -> None:
    n = 20_000
    ensemble, observed = calibrated(n, 24, seed=8)
    found = coverage(ensemble, observed, level, NoiseStream(8, 0, n))
    assert abs(found.level - level) <= 1 / 25
    assert abs(found.share - found.level) < 5 * found.standard_error
    assert found.standard_error == pytest.approx(math.sqrt(found.level * (1 - found.level) / n))
    narrow, _ = calibrated(n, 24, spread=0.8, seed=8)
    assert (
        coverage(narrow, observed, level, NoiseStream(8, 0, n)).share < found.share - 5 * found.standard_error
    )


def test_spread_matches_skill_for_a_calibrated_ensemble_of_any_size() -> None:
    """95% intervals of the ratio hold 1 in 92% to 98% of 2000 sets of 100 cases, with five members each."""
    ensemble, observed = calibrated(200_000, 5, seed=9)
    sets = [spread_skill(ensemble[k : k + 100], observed[k : k + 100]) for k in range(0, 200_000, 100)]
    held = np.mean([abs(found.ratio - 1) < 1.98 * found.standard_error for found in sets])
    assert 0.92 <= held <= 0.98
    whole = spread_skill(ensemble, observed)
    assert abs(whole.ratio - 1) < 5 * whole.standard_error
    assert whole.skill == pytest.approx(math.sqrt(1.2), rel=0.03)
    wide, _ = calibrated(200_000, 5, spread=1.3, seed=9)
    assert spread_skill(wide, observed).ratio > 1.1


MEMBERS, TRUTH, NOISE = torch.zeros(3, 5), torch.zeros(3), NoiseStream(0, 0, 3)
BAD: list[tuple[Callable[[], object], str]] = [
    (lambda: crps(MEMBERS, torch.zeros(4)), r"`ensemble` must have shape \(n, m, \*shape\) for `observed`"),
    (lambda: crps(MEMBERS[:, :1], TRUTH), r"`ensemble` must have at least 2 members; got 1"),
    (lambda: energy_score(MEMBERS, TRUTH), r"`ensemble` must have shape \(n, m, d\)"),
    (lambda: energy_distance(torch.zeros(2, 1, 3), torch.zeros(2, 4, 3)), r"must have at least 2 members"),
    (lambda: RankHistogram.of(MEMBERS, TRUTH, NOISE[:2]), r"`noise` must hold one sample per case, 3; got 2"),
    (lambda: RankHistogram.of(MEMBERS * math.nan, TRUTH, NOISE), r"must hold no NaN"),
    (lambda: RankHistogram(torch.ones(6)).merged(4), r"`bins` must divide the number of ranks, 6; got 4"),
    (lambda: RankHistogram(torch.ones(6)) + RankHistogram(torch.ones(5)), r"can be added"),
    (lambda: coverage(MEMBERS, TRUTH, 1.0, NOISE), r"`level` must lie in \(0, 1\); got 1.0"),
    (lambda: coverage(MEMBERS, TRUTH, 0.99, NOISE), r"`level` must leave a member on either side"),
    (lambda: spread_skill(MEMBERS, TRUTH[:2]), r"`observed` must have shape \(n\) with n=3"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_scores_refuse(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
