"""Metrics of generators and the table that compares them."""

import json
import math
import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import spatial, stats
from torch import Tensor

from sde.noise import NoiseStream
from uq import metrics
from uq.comparison import Comparison, Score, compare, compare_quantities
from uq.metrics import (
    energy_distance,
    median_bandwidth,
    mmd,
    nearest_distances,
    permutation_p_value,
    sliced_wasserstein,
    std_ratio,
    wasserstein_1d,
)

DIRECTIONS = NoiseStream(0, 0, 200)


def normals(seed: int, count: int, dim: int = 3) -> Tensor:
    return NoiseStream(seed, 0, count).normals(dim, dtype=torch.float64)


@pytest.mark.parametrize(("n", "m"), [(50, 50), (50, 73), (1, 9), (60, 40)])
def test_wasserstein_agrees_with_scipy(n: int, m: int) -> None:
    x, y = normals(1, n), 2 * normals(2, m) + 1
    expected = [stats.wasserstein_distance(x[:, j].numpy(), y[:, j].numpy()) for j in range(3)]
    np.testing.assert_allclose(wasserstein_1d(x, y).numpy(), expected, rtol=1e-12)


def test_wasserstein_of_unequal_sizes_equals_that_of_repeated_samples() -> None:
    x, y = normals(1, 6), normals(2, 4)
    repeated = wasserstein_1d(x.repeat_interleave(2, 0), y.repeat_interleave(3, 0), order=2)
    torch.testing.assert_close(wasserstein_1d(x, y, order=2), repeated, rtol=1e-12, atol=0)


def test_wasserstein_of_a_shift_is_the_shift() -> None:
    x = normals(1, 40, 1)[:, 0]
    for order in (1, 2, 3):
        distance = wasserstein_1d(x, x + 0.75, order=order)
        torch.testing.assert_close(distance, torch.tensor(0.75, dtype=torch.float64), rtol=1e-12, atol=0)


def test_sliced_wasserstein_of_a_shift_has_its_closed_form() -> None:
    x = normals(1, 50)
    directions = NoiseStream(4, 0, 20_000)
    # Each projection moves by theta . shift, whose square has mean |shift|^2 / dim.
    assert sliced_wasserstein(x, x + 2.0, directions, order=2) == pytest.approx(2.0, rel=0.05)
    # On the sphere in 3 dimensions |theta_1| has mean 1/2.
    shift = torch.tensor([3.0, 0.0, 0.0], dtype=torch.float64)
    assert sliced_wasserstein(x, x + shift, directions) == pytest.approx(1.5, rel=0.05)


def test_sliced_wasserstein_does_not_depend_on_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = normals(1, 50), normals(2, 60)
    whole = sliced_wasserstein(x, y, DIRECTIONS)
    monkeypatch.setattr(metrics, "BLOCK_ENTRIES", 700)
    assert sliced_wasserstein(x, y, DIRECTIONS) == pytest.approx(whole, rel=1e-12)


def test_sliced_wasserstein_is_invariant_under_rotation_of_samples_and_directions() -> None:
    x, y = normals(1, 50, 2), normals(2, 60, 2) * torch.tensor([1.0, 3.0])
    flip = torch.tensor([1.0, -1.0], dtype=torch.float64)  # a reflection: directions stay uniform
    many = NoiseStream(3, 0, 20_000)
    first, second = sliced_wasserstein(x, y, many), sliced_wasserstein(x * flip, y * flip, many)
    assert first == pytest.approx(second, rel=0.03)


def test_energy_distance_agrees_with_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = normals(1, 40, 1), normals(2, 55, 1) + 1
    expected = stats.energy_distance(x[:, 0].numpy(), y[:, 0].numpy()) ** 2
    assert energy_distance(x, y) == pytest.approx(expected, rel=1e-12)
    monkeypatch.setattr(metrics, "BLOCK_ENTRIES", 100)
    assert energy_distance(x, y) == pytest.approx(expected, rel=1e-12)


def test_energy_distance_in_the_plane_agrees_with_all_pairs() -> None:
    x, y = normals(1, 30, 2).numpy(), normals(2, 20, 2).numpy() + 1
    means = [spatial.distance.cdist(a, b).mean() for a, b in ((x, y), (x, x), (y, y))]
    distance = energy_distance(torch.from_numpy(x), torch.from_numpy(y))
    assert distance == pytest.approx(2 * means[0] - means[1] - means[2], rel=1e-12)


def test_mmd_agrees_with_all_pairs() -> None:
    x, y = normals(1, 30, 2).numpy(), normals(2, 20, 2).numpy() + 1
    kernels = [
        np.exp(-0.5 * spatial.distance.cdist(a, b, "sqeuclidean") / 4).mean()
        for a, b in ((x, x), (y, y), (x, y))
    ]
    value = mmd(torch.from_numpy(x), torch.from_numpy(y), bandwidth=2.0)
    assert value**2 == pytest.approx(kernels[0] + kernels[1] - 2 * kernels[2], rel=1e-11)


def test_mmd_of_far_points_is_its_largest_value() -> None:
    assert mmd(torch.zeros(3, 1), torch.full((2, 1), 100.0), bandwidth=1.0) == pytest.approx(math.sqrt(2))


def test_median_bandwidth_is_the_median_distance() -> None:
    x = normals(1, 101, 2)
    expected = np.median(spatial.distance.pdist(x.numpy()))
    assert median_bandwidth(x) == pytest.approx(expected, rel=1e-3)
    assert median_bandwidth(x.repeat(50, 1)) == pytest.approx(expected, rel=0.1)


def test_nearest_distances_agree_with_a_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = normals(1, 70), normals(2, 90)
    expected = torch.from_numpy(spatial.KDTree(y.numpy()).query(x.numpy())[0])
    torch.testing.assert_close(nearest_distances(x, y), expected, rtol=1e-7, atol=0)
    monkeypatch.setattr(metrics, "BLOCK_ENTRIES", 200)
    torch.testing.assert_close(nearest_distances(x, y), expected, rtol=1e-7, atol=0)


def test_nearest_distances_of_replayed_samples_vanish() -> None:
    x = normals(1, 100, 20) + 1000
    assert nearest_distances(x[::3], x).max() == 0
    many = normals(1, 100, 200)
    assert nearest_distances(many[::3], many).max() < 1e-6


@pytest.mark.parametrize("law", ["normal", "lognormal"])
def test_std_ratio_interval_covers_the_true_ratio(law: str) -> None:
    repetitions, covered = 1000, 0
    draws = NoiseStream(21, 0, repetitions).normals(600, dtype=torch.float64)
    draws = torch.exp(0.4 * draws) if law == "lognormal" else draws
    for row in draws:
        ratio = std_ratio(1.5 * row[:300], row[300:])
        covered += ratio.lower <= 1.5 <= ratio.upper
    # 4.9 standard errors of a coverage over 1000 repetitions (false alarm 1e-6), and a margin for the bias of
    # the sample kurtosis at 300 samples.
    error = 4.9 * math.sqrt(0.95 * 0.05 / repetitions)
    assert 0.95 - error - (0.015 if law == "lognormal" else 0.005) <= covered / repetitions <= 0.95 + error


def test_std_ratio_sees_shrunk_samples() -> None:
    x = normals(1, 2000, 1)[:, 0]
    ratio = std_ratio(0.85 * x, normals(2, 2000, 1)[:, 0])
    assert ratio.upper < 0.95
    assert std_ratio(torch.ones(5), x).value == 0.0


def test_permutation_p_value_is_uniform_for_one_law() -> None:
    values = [
        permutation_p_value(
            energy_distance, normals(2 * k, 12), normals(2 * k + 1, 15), NoiseStream(k, 0, 19)
        )
        for k in range(300)
    ]
    counts = np.bincount(np.rint(np.array(values) * 20).astype(int), minlength=21)[1:]
    assert stats.chisquare(counts).pvalue > 1e-6


def test_permutation_p_value_sees_another_law() -> None:
    p_value = permutation_p_value(
        energy_distance, normals(1, 100), 1.6 * normals(2, 100), NoiseStream(3, 0, 199)
    )
    assert p_value == 1 / 200


def test_comparison_of_one_law_stays_at_its_floor() -> None:
    samples = normals(7, 900, 4)
    noise = NoiseStream(1, 0, 1)
    comparison = compare(samples[:300], samples[300:600], samples[600:], noise, num_permutations=99)
    for name in ("sliced W1", "energy distance", "MMD"):
        score = comparison[name]
        assert score.value < 2 * score.floor, name
    assert comparison["energy distance"].p_value > 0.01
    assert comparison["nearest training sample"].value == pytest.approx(
        comparison["nearest training sample"].floor, rel=0.2
    )
    assert math.isnan(comparison["sliced W1"].p_value)


@pytest.mark.parametrize("fault", ["shrunk", "mean", "replay", "memorised"])
def test_comparison_shows_bad_generators(fault: str) -> None:
    samples = normals(7, 900, 4)
    train, test = samples[300:600], samples[600:]
    generated = {
        "shrunk": 0.6 * samples[:300],
        "mean": torch.zeros(300, 4, dtype=torch.float64),
        "replay": train[:1].expand(300, 4),
        "memorised": train,
    }[fault]
    comparison = compare(generated, train, test, NoiseStream(1, 0, 1), num_permutations=99)
    if fault == "memorised":
        nearest = comparison["nearest training sample"]
        assert nearest.value < 0.01 * nearest.floor
        return
    assert comparison["energy distance"].p_value == 0.01
    assert comparison["sliced W1"].value > 2 * comparison["sliced W1"].floor
    assert comparison["total standard deviation ratio"].value < 0.7


def test_quantities_are_compared_one_by_one() -> None:
    samples = normals(7, 900, 2) * torch.tensor([1.0, 100.0])
    comparison = compare_quantities(
        samples[:300] * torch.tensor([0.5, 1.0]), samples[300:600], samples[600:], ["peak", "rms"]
    )
    assert comparison["W1/sigma peak"].value > 4 * comparison["W1/sigma rms"].value
    assert comparison["std ratio peak"].upper < 0.7 < comparison["std ratio rms"].lower
    mean = comparison.mean("W1/sigma")
    assert mean.value == pytest.approx(sum(comparison[f"W1/sigma {n}"].value for n in ("peak", "rms")) / 2)


def test_comparison_is_readable_and_survives_json_and_pickle() -> None:
    samples = normals(7, 90, 2)
    comparison = compare(samples[:30], samples[30:60], samples[60:], NoiseStream(1, 0, 1), num_directions=10)
    comparison = comparison + compare_quantities(samples[:30], samples[30:60], samples[60:], ["a", "b"])
    assert json.loads(comparison.to_json())["num_train"] == 30
    assert Comparison.from_json(comparison.to_json()).to_json() == comparison.to_json()
    assert pickle.loads(pickle.dumps(comparison)).to_json() == comparison.to_json()
    lines = comparison.table().splitlines()
    assert len(lines) == 2 + len(comparison.scores) + 2
    assert all(line.count("|") == 6 for line in lines[:-2])
    assert lines[-1] == "30 generated, 30 training and 30 test samples."


X, NAN = torch.zeros(4, 2), torch.full((4, 2), math.nan)
GOOD = NoiseStream(0, 0, 4).normals(2)
EMPTY = DIRECTIONS[:0]
BAD_CALLS: list[tuple[Callable[[], object], type[Exception], str]] = [
    (lambda: wasserstein_1d(1.0, X), TypeError, "`x` must be a tensor; got float"),  # pyright: ignore
    (lambda: wasserstein_1d(X, X[:, :1]), ValueError, "same dimension; got 2 and 1"),
    (lambda: wasserstein_1d(X, NAN), ValueError, "`y` must be finite; got NaN or infinity in 4 of 4"),
    (lambda: wasserstein_1d(X[:0], X), ValueError, "`x` must hold at least 1 sample"),
    (lambda: wasserstein_1d(X.long(), X), ValueError, "`x` must hold floats of shape"),
    (lambda: wasserstein_1d(X, X, order=0), ValueError, "`order` must be at least 1; got 0"),
    (lambda: sliced_wasserstein(X, X, EMPTY), ValueError, "`directions` must hold at least one"),
    (lambda: sliced_wasserstein(X, X, DIRECTIONS, order=0), ValueError, "`order` must be at least 1"),
    (lambda: energy_distance(X[None], X), ValueError, r"`x` must hold floats of .* \(1, 4, 2\)"),
    (lambda: mmd(X, X, bandwidth=0.0), ValueError, "`bandwidth` must be positive and finite; got 0.0"),
    (lambda: median_bandwidth(X), ValueError, "`reference` must hold different samples"),
    (lambda: std_ratio(X[:, 0], X[:, 0]), ValueError, "`reference` must not be constant"),
    (lambda: std_ratio(X, X), ValueError, "`x` must be scalar samples"),
    (lambda: std_ratio(X[:, 0], X[:, 0], confidence=1.0), ValueError, "`confidence` must lie in"),
    (lambda: std_ratio(GOOD[:1, 0], GOOD[:, 0]), ValueError, "`x` must hold at least 2 sample"),
    (lambda: permutation_p_value(energy_distance, X, X, EMPTY), ValueError, "`permutations` must hold"),
    (lambda: compare(GOOD, GOOD, GOOD[:, :1], DIRECTIONS), ValueError, "`test` must have shape"),
    (lambda: compare(GOOD, GOOD, GOOD, DIRECTIONS, num_directions=0), ValueError, "`num_directions` must be"),
    (lambda: compare(NAN, GOOD, GOOD, DIRECTIONS), ValueError, "must be finite"),
    (lambda: compare_quantities(GOOD, GOOD, GOOD, ["a"]), ValueError, "`generated` must have shape"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD_CALLS, ids=[row[2][:40] for row in BAD_CALLS])
def test_bad_call_is_refused_in_one_sentence(
    call: Callable[[], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call()


def test_unknown_score_is_refused_with_the_known_ones() -> None:
    comparison = Comparison((Score("MMD", 1.0, 0.5),), 2, 2, 2)
    with pytest.raises(KeyError, match="must be one of MMD; got W3"):
        comparison["W3"]
    with pytest.raises(KeyError, match="must start the name of a score"):
        comparison.mean("W1")
    with pytest.raises(ValueError, match="joined for equal sample sizes"):
        _ = comparison + Comparison((), 3, 2, 2)
