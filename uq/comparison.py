"""The table that judges a generator: metrics against test samples, beside train-against-test floors."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from sde.noise import NoiseStream
from sde.shapes import check_shapes
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

__all__ = ["Comparison", "Score", "compare", "compare_quantities"]


@dataclass(frozen=True, slots=True)
class Score:
    """One row of a comparison.

    Attributes:
        metric: Name of the metric.
        value: Generated against test samples.
        floor: Training against test samples: what the best generator can hope for.
        lower: Lower end of the confidence interval of ``value``; NaN where the metric has none.
        upper: Upper end of the confidence interval of ``value``; NaN where the metric has none.
        p_value: Permutation p-value of one common law; NaN where it was not asked for.
    """

    metric: str
    value: float
    floor: float
    lower: float = math.nan
    upper: float = math.nan
    p_value: float = math.nan


@dataclass(frozen=True, slots=True)
class Comparison:
    """Scores of a generator, with the sample sizes they rest on.

    Attributes:
        scores: Rows of the table.
        num_generated: Number of generated samples.
        num_train: Number of training samples.
        num_test: Number of test samples.

    Example:
        >>> comparison = Comparison((Score("energy distance", 0.5, 0.25),), 100, 200, 100)
        >>> comparison["energy distance"].floor
        0.25
        >>> Comparison.from_json(comparison.to_json())["energy distance"].value
        0.5
    """

    scores: tuple[Score, ...]
    num_generated: int
    num_train: int
    num_test: int

    def __getitem__(self, metric: str) -> Score:
        """The score named ``metric``."""
        for score in self.scores:
            if score.metric == metric:
                return score
        raise KeyError(
            f"`metric` must be one of {', '.join(score.metric for score in self.scores)}; got {metric}."
        )

    def __add__(self, other: "Comparison") -> "Comparison":
        """Rows of two comparisons of the same samples, say of fields and of quantities of interest."""
        sizes = (self.num_generated, self.num_train, self.num_test)
        others = (other.num_generated, other.num_train, other.num_test)
        if sizes != others:
            raise ValueError(f"Comparisons are joined for equal sample sizes; got {sizes} and {others}.")
        return Comparison(self.scores + other.scores, *sizes)

    def mean(self, prefix: str) -> Score:
        """Mean value and floor of the scores whose name starts with ``prefix``, as one score."""
        chosen = [score for score in self.scores if score.metric.startswith(prefix)]
        if not chosen:
            raise KeyError(f"`prefix` must start the name of a score; got {prefix}.")
        value, floor = (sum(getattr(s, name) for s in chosen) / len(chosen) for name in ("value", "floor"))
        return Score(f"mean {prefix.strip()}", value, floor)

    def table(self) -> str:
        """The scores as a Markdown table."""
        lines = [
            "| metric | value | floor (train against test) | interval | p-value |",
            "|---|---|---|---|---|",
        ]
        for score in self.scores:
            interval = "" if math.isnan(score.lower) else f"{score.lower:.3f} to {score.upper:.3f}"
            p_value = "" if math.isnan(score.p_value) else f"{score.p_value:.3f}"
            lines.append(
                f"| {score.metric} | {score.value:.4g} | {score.floor:.4g} | {interval} | {p_value} |"
            )
        sizes = f"{self.num_generated} generated, {self.num_train} training and {self.num_test} test samples."
        return "\n".join([*lines, "", sizes])

    def to_json(self) -> str:
        """The comparison as JSON text; what a row has not is written as null."""
        content = asdict(self)
        for row in content["scores"]:
            row.update(
                {key: None for key, item in row.items() if isinstance(item, float) and math.isnan(item)}
            )
        return json.dumps(content, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "Comparison":
        """The comparison that :meth:`to_json` wrote."""
        content = json.loads(text)
        known = ({key: item for key, item in row.items() if item is not None} for row in content["scores"])
        sizes = (content[name] for name in ("num_generated", "num_train", "num_test"))
        return cls(tuple(Score(**row) for row in known), *sizes)


def compare(
    generated: Tensor,
    train: Tensor,
    test: Tensor,
    noise: NoiseStream,
    *,
    num_directions: int = 500,
    num_permutations: int = 0,
) -> Comparison:
    """Compare generated fields or traces with held-out ones, as points of a space.

    Rows: sliced W1, energy distance, MMD (bandwidth: median distance of the test samples), total standard
    deviation (root of the summed variances, over that of the test samples) and median distance to the nearest
    training sample (its floor is that of the test samples: a value well below betrays memorised data, well
    above missed regions).

    The floors of the distances depend on the sizes: compare generators on the same number of samples, best
    that of the training set.

    Args:
        generated: Generated samples, shape ``(n, d)``.
        train: Samples that the generator was trained on, shape ``(m, d)``.
        test: Held-out samples of the true law, shape ``(k, d)``.
        noise: Seed of directions and permutations; its range of samples is not used.
        num_directions: Directions of the sliced distance, at least 1.
        num_permutations: Permutations of the p-values of energy distance and MMD; 0 for none.

    Returns:
        The scores.

    Raises:
        ValueError: If shapes disagree, samples are too few or not finite, or a count is negative.
        TypeError: If a sample is not a tensor.

    Example:
        >>> noise = NoiseStream(seed=0, start=0, stop=300)
        >>> samples = noise.normals(4)
        >>> scores = compare(samples[:100], samples[100:200], samples[200:], noise.fork("compare"))
        >>> [score.metric for score in scores.scores][:3]
        ['sliced W1', 'energy distance', 'MMD']
    """
    check_shapes(generated=(generated, "n d"), train=(train, "m d"), test=(test, "k d"))
    if num_directions < 1 or num_permutations < 0:
        raise ValueError(
            f"`num_directions` must be at least 1 and `num_permutations` at least 0; "
            f"got {num_directions} and {num_permutations}."
        )
    directions = NoiseStream(noise.seed, 0, num_directions).fork("directions")
    permutations = NoiseStream(noise.seed, 0, num_permutations).fork("permutations")
    bandwidth = median_bandwidth(test)

    def score(name: str, metric: Callable[[Tensor, Tensor], float], *, permute: bool) -> Score:
        tested = permute and num_permutations > 0
        p_value = permutation_p_value(metric, generated, test, permutations) if tested else math.nan
        return Score(name, metric(generated, test), metric(train, test), p_value=p_value)

    def total_std(samples: Tensor, reference: Tensor) -> float:
        sums = (float(part.to(torch.float64).var(0).sum()) for part in (samples, reference))
        return math.sqrt(next(sums) / next(sums))

    def nearest(queries: Tensor) -> float:
        return float(nearest_distances(queries, train).median())

    return Comparison(
        (
            score("sliced W1", lambda x, y: sliced_wasserstein(x, y, directions), permute=False),
            score("energy distance", energy_distance, permute=True),
            score("MMD", lambda x, y: mmd(x, y, bandwidth=bandwidth), permute=True),
            score("total standard deviation ratio", total_std, permute=False),
            Score("nearest training sample", nearest(generated), nearest(test)),
        ),
        len(generated),
        len(train),
        len(test),
    )


def compare_quantities(
    generated: Tensor, train: Tensor, test: Tensor, names: Sequence[str], *, confidence: float = 0.95
) -> Comparison:
    """Compare scalar quantities of interest one by one: W1 over sigma, and standard deviations.

    Rows ``"W1/sigma <name>"`` and ``"std ratio <name>"``; the latter with its confidence interval. ``sigma``
    is the standard deviation of the test samples.

    Args:
        generated: Quantities of generated samples, shape ``(n, q)``.
        train: Quantities of training samples, shape ``(m, q)``.
        test: Quantities of held-out samples, shape ``(k, q)``.
        names: Names of the ``q`` quantities.
        confidence: Level of the intervals, in (0, 1).

    Returns:
        The scores; ``comparison.mean("W1/sigma")`` is the mean over quantities.

    Raises:
        ValueError: If shapes disagree, samples are too few or not finite, or a test quantity is constant.
        TypeError: If a sample is not a tensor.

    Example:
        >>> samples = NoiseStream(seed=0, start=0, stop=300).normals(2)
        >>> scores = compare_quantities(samples[:100], samples[100:200], samples[200:], ["peak", "rms"])
        >>> [score.metric for score in scores.scores]
        ['W1/sigma peak', 'W1/sigma rms', 'std ratio peak', 'std ratio rms']
    """
    q = len(names)
    check_shapes(generated=(generated, f"n {q}"), train=(train, f"m {q}"), test=(test, f"k {q}"))
    ratios = [std_ratio(generated[:, j], test[:, j], confidence=confidence) for j in range(len(names))]
    floors = [std_ratio(train[:, j], test[:, j]).value for j in range(len(names))]
    sigma = test.to(torch.float64).std(0)
    values, limits = (wasserstein_1d(sample, test) / sigma for sample in (generated, train))
    distances = [Score(f"W1/sigma {names[j]}", float(values[j]), float(limits[j])) for j in range(len(names))]
    spreads = [
        Score(f"std ratio {name}", ratio.value, floor, ratio.lower, ratio.upper)
        for name, ratio, floor in zip(names, ratios, floors, strict=True)
    ]
    return Comparison((*distances, *spreads), len(generated), len(train), len(test))
