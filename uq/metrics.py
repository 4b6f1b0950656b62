r"""Distances between samples of two laws, for judging generators.

A number of a metric says little alone: :func:`uq.comparison.compare` gives each beside its floor, the same
metric between training and test samples. The exact Wasserstein distance in the full space is left out on
purpose: in many dimensions it prefers samples that vary too little (an under-dispersed generator scores below
its floor).

Samples are rows. All computations are in float64, in blocks of bounded memory.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

from sde.noise import NoiseStream, Purpose

__all__ = [
    "Ratio",
    "energy_distance",
    "median_bandwidth",
    "mmd",
    "nearest_distances",
    "permutation_p_value",
    "sliced_wasserstein",
    "std_ratio",
    "wasserstein_1d",
]

BLOCK_ENTRIES = 2**22  # distances held at a time: 32 MB
DIRECT_DIMENSION = 64  # up to here distances are summed from differences, beyond from products
MEDIAN_POINTS = 1000  # points that the median heuristic looks at


@dataclass(frozen=True, slots=True)
class Ratio:
    """A ratio with its confidence interval.

    Attributes:
        value: Point estimate.
        lower: Lower end of the interval.
        upper: Upper end of the interval.
    """

    value: float
    lower: float
    upper: float


def _rows(name: str, samples: Tensor, least: int = 1) -> Tensor:
    """Samples as finite float64 rows ``(n, d)``."""
    if not isinstance(samples, Tensor):
        raise TypeError(f"`{name}` must be a tensor; got {type(samples).__name__}.")
    if samples.ndim not in (1, 2) or not samples.is_floating_point():
        raise ValueError(
            f"`{name}` must hold floats of shape (n,) or (n, d); got {samples.dtype} {tuple(samples.shape)}."
        )
    if samples.numel() == 0 or len(samples) < least:
        raise ValueError(f"`{name}` must hold at least {least} sample(s); got shape {tuple(samples.shape)}.")
    if not torch.isfinite(samples).all():
        bad = int((~torch.isfinite(samples.reshape(len(samples), -1))).any(-1).sum())
        raise ValueError(f"`{name}` must be finite; got NaN or infinity in {bad} of {len(samples)} samples.")
    return samples.detach().to(torch.float64).reshape(len(samples), -1)


def _pair(x: Tensor, y: Tensor, least: int = 1) -> tuple[Tensor, Tensor]:
    """Two checked samples of the same dimension on the same device."""
    x, y = _rows("x", x, least), _rows("y", y, least)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"`x` and `y` must have the same dimension; got {x.shape[1]} and {y.shape[1]}.")
    return x, y.to(x.device)


def _sorted_distance(x: Tensor, y: Tensor, order: int) -> Tensor:
    """Column-wise W_p^p of sorted samples: the integral of the gap of the quantile functions, exactly."""
    n, m = len(x), len(y)
    if n == m:
        return (x - y).abs().pow(order).mean(0)
    # Breaks of the two quantile functions on the common grid of step 1/(n m): integers, so no rounding.
    breaks = torch.cat([torch.arange(1, n + 1) * m, torch.arange(1, m + 1) * n]).unique()
    widths = torch.diff(breaks, prepend=torch.zeros(1, dtype=torch.int64)).to(x) / (n * m)
    left = breaks - 1
    gaps = (x[(left // m).to(x.device)] - y[(left // n).to(x.device)]).abs().pow(order)
    return (widths.unsqueeze(-1) * gaps).sum(0)


def wasserstein_1d(x: Tensor, y: Tensor, *, order: int = 1) -> Tensor:
    r"""Wasserstein distance of scalar quantities, column by column, exact for the two empirical laws.

    .. math:: W_p = \Bigl(\int_0^1 |F_x^{-1}(u) - F_y^{-1}(u)|^p \,\mathrm{d}u\Bigr)^{1/p}.

    Args:
        x: Samples, shape ``(n,)`` or ``(n, d)``.
        y: Samples, shape ``(m,)`` or ``(m, d)``; ``m`` may differ from ``n``.
        order: Order ``p``, at least 1.

    Returns:
        Distances of the columns, shape ``(d,)``, or a scalar for one-axis samples; float64.

    Raises:
        ValueError: If shapes disagree, a sample is empty or not finite, or ``order`` is below 1.
        TypeError: If a sample is not a tensor.

    Example:
        >>> wasserstein_1d(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 1.0, 2.0]))
        tensor(0.5000, dtype=torch.float64)

    References:
        Peyre & Cuturi (2019), remark 2.30. doi:10.1561/2200000073
    """
    if order < 1:
        raise ValueError(f"`order` must be at least 1; got {order}.")
    columns_x, columns_y = _pair(x, y)
    distance = _sorted_distance(columns_x.sort(0).values, columns_y.sort(0).values, order) ** (1 / order)
    return distance if x.ndim == 2 else distance[0]


def sliced_wasserstein(x: Tensor, y: Tensor, directions: NoiseStream, *, order: int = 1) -> float:
    r"""Sliced Wasserstein distance: one-dimensional distances over random directions.

    .. math:: SW_p = \Bigl(\mathbb{E}_\theta\, W_p^p(\theta\cdot x, \theta\cdot y)\Bigr)^{1/p},
        \qquad \theta \text{ uniform on the sphere}.

    Args:
        x: Samples, shape ``(n, d)``.
        y: Samples, shape ``(m, d)``.
        directions: Direction ``j`` is sample ``j`` of this stream: the same stream gives the same directions.
        order: Order ``p``, at least 1.

    Returns:
        The distance, in the unit of the samples.

    Raises:
        ValueError: If shapes disagree, a sample is empty or not finite, ``order`` is below 1, or the stream
            is empty.
        TypeError: If a sample is not a tensor.

    Example:
        >>> x = torch.eye(2, dtype=torch.float64)
        >>> sliced_wasserstein(x, x, NoiseStream(seed=0, start=0, stop=100))
        0.0

    References:
        Bonneel, Rabin, Peyre & Pfister (2015). doi:10.1007/s10851-014-0506-3
    """
    x, y = _pair(x, y)
    if order < 1:
        raise ValueError(f"`order` must be at least 1; got {order}.")
    if len(directions) == 0:
        raise ValueError("`directions` must hold at least one sample; got an empty stream.")
    total = 0.0
    block = max(1, BLOCK_ENTRIES // (len(x) + len(y)))
    for first in range(0, len(directions), block):
        part = directions[first : first + block]
        vectors = part.normals(x.shape[1], purpose=Purpose.RESAMPLING, dtype=torch.float64, device=x.device)
        vectors = (vectors / vectors.norm(dim=-1, keepdim=True)).mT
        total += float(
            _sorted_distance((x @ vectors).sort(0).values, (y @ vectors).sort(0).values, order).sum()
        )
    return (total / len(directions)) ** (1 / order)


def _distance_blocks(x: Tensor, y: Tensor) -> Iterator[Tensor]:
    """Distances of blocks of rows of ``x`` to all of ``y``, by differences where that is cheap."""
    centre = y.mean(0)
    x, y = x - centre, y - centre
    rows = max(1, BLOCK_ENTRIES // len(y))
    direct = x.shape[1] <= DIRECT_DIMENSION
    mode = "donot_use_mm_for_euclid_dist" if direct else "use_mm_for_euclid_dist_if_necessary"
    for first in range(0, len(x), rows):
        yield torch.cdist(x[first : first + rows], y, compute_mode=mode)


def _mean_over_pairs(x: Tensor, y: Tensor, kernel: Callable[[Tensor], Tensor]) -> float:
    """Mean of ``kernel(distances)`` over all pairs, by blocks of rows."""
    return sum(float(kernel(block).sum()) for block in _distance_blocks(x, y)) / (len(x) * len(y))


def energy_distance(x: Tensor, y: Tensor) -> float:
    r"""Energy distance of two samples (the squared form, over all pairs).

    .. math:: D^2 = 2\,\mathbb{E}|X - Y| - \mathbb{E}|X - X'| - \mathbb{E}|Y - Y'| \ge 0.

    The means run over all pairs, equal ones included, so that the result is never negative and has a positive
    mean, of order ``1/n + 1/m``, for two samples of one law.

    Args:
        x: Samples, shape ``(n, d)`` or ``(n,)``.
        y: Samples, shape ``(m, d)`` or ``(m,)``.

    Returns:
        The energy distance, in the unit of the samples.

    Raises:
        ValueError: If shapes disagree or a sample is empty or not finite.
        TypeError: If a sample is not a tensor.

    Example:
        >>> energy_distance(torch.zeros(2, 1), torch.ones(3, 1))
        2.0

    References:
        Szekely & Rizzo (2013). doi:10.1016/j.jspi.2013.03.018
    """
    x, y = _pair(x, y)
    between, within_x, within_y = (_mean_over_pairs(a, b, torch.abs) for a, b in ((x, y), (x, x), (y, y)))
    return max(0.0, 2 * between - within_x - within_y)


def median_bandwidth(reference: Tensor) -> float:
    """Median distance between different reference samples (the median heuristic), over at most 1000 of them.

    Args:
        reference: Samples, shape ``(n, d)`` or ``(n,)``, at least two, not all equal.

    Returns:
        The bandwidth, in the unit of the samples.

    Raises:
        ValueError: If samples are too few, not finite, or at least half of them equal.
        TypeError: If the sample is not a tensor.

    Example:
        >>> median_bandwidth(torch.tensor([0.0, 1.0, 3.0]))
        2.0

    References:
        Gretton et al. (2012), section 8. https://jmlr.org/papers/v13/gretton12a.html
    """
    rows = _rows("reference", reference, 2)
    rows = rows[:: math.ceil(len(rows) / MEDIAN_POINTS)]
    bandwidth = float(torch.nn.functional.pdist(rows).median())
    if bandwidth == 0:
        raise ValueError("`reference` must hold different samples; got a median distance of 0.")
    return bandwidth


def mmd(x: Tensor, y: Tensor, *, bandwidth: float) -> float:
    r"""Maximum mean discrepancy of two samples under a Gaussian kernel (the biased form, never negative).

    .. math:: \mathrm{MMD}^2 = \mathbb{E}k(X, X') + \mathbb{E}k(Y, Y') - 2\,\mathbb{E}k(X, Y),
        \qquad k = \exp(-|x - y|^2 / 2h^2).

    Args:
        x: Samples, shape ``(n, d)`` or ``(n,)``.
        y: Samples, shape ``(m, d)`` or ``(m,)``.
        bandwidth: Bandwidth ``h``, positive, in the unit of the samples; see :func:`median_bandwidth`. Take
            one value for all comparisons against one reference.

    Returns:
        The discrepancy, not squared, in [0, sqrt(2)].

    Raises:
        ValueError: If shapes disagree, a sample is empty or not finite, or ``bandwidth`` is not positive.
        TypeError: If a sample is not a tensor.

    Example:
        >>> mmd(torch.zeros(2, 1), torch.zeros(3, 1), bandwidth=1.0)
        0.0

    References:
        Gretton et al. (2012), equation 5. https://jmlr.org/papers/v13/gretton12a.html
    """
    x, y = _pair(x, y)
    if not (math.isfinite(bandwidth) and bandwidth > 0):
        raise ValueError(f"`bandwidth` must be positive and finite; got {bandwidth}.")

    def kernel(distances: Tensor) -> Tensor:
        return torch.exp(-0.5 * (distances / bandwidth) ** 2)

    between, within_x, within_y = (_mean_over_pairs(a, b, kernel) for a, b in ((x, y), (x, x), (y, y)))
    return math.sqrt(max(0.0, within_x + within_y - 2 * between))


def std_ratio(x: Tensor, reference: Tensor, *, confidence: float = 0.95) -> Ratio:
    r"""Ratio of the standard deviations of a scalar quantity, with an asymptotic confidence interval.

    .. math:: \log\frac{s_x}{s_y} \pm z \sqrt{\frac{\kappa_x - 1}{4n} + \frac{\kappa_y - 1}{4m}},

    where :math:`\kappa` are the sample kurtoses: no normality is assumed, but for heavy tails
    the kurtosis, and so the interval, comes out small on few samples.

    Args:
        x: Samples, shape ``(n,)``, at least 2.
        reference: Samples of the reference, shape ``(m,)``, at least 2, not all equal.
        confidence: Level of the interval, in (0, 1).

    Returns:
        The ratio ``std(x) / std(reference)`` and its interval.

    Raises:
        ValueError: If a sample is too small, not finite, of another shape, or the reference is constant.
        TypeError: If a sample is not a tensor.

    Example:
        >>> std_ratio(torch.tensor([0.0, 2.0]), torch.tensor([0.0, 1.0])).value
        2.0
    """
    x, y = _pair(x, reference, 2)
    if x.shape[1] != 1:
        raise ValueError(f"`x` must be scalar samples of shape (n,); got {x.shape[1]} columns.")
    if not 0 < confidence < 1:
        raise ValueError(f"`confidence` must lie in (0, 1); got {confidence}.")
    spread, unit = float(x.std()), float(y.std())
    if unit == 0:
        raise ValueError("`reference` must not be constant; got a standard deviation of 0.")
    if spread == 0:
        return Ratio(0.0, 0.0, 0.0)
    quantile = NormalDist().inv_cdf(0.5 + confidence / 2)
    error = quantile * math.sqrt(sum((_kurtosis(sample) - 1) / (4 * len(sample)) for sample in (x, y)))
    ratio = spread / unit
    return Ratio(ratio, ratio * math.exp(-error), ratio * math.exp(error))


def _kurtosis(samples: Tensor) -> float:
    centred = samples - samples.mean()
    return float((centred**4).mean() / (centred**2).mean() ** 2)


def nearest_distances(queries: Tensor, samples: Tensor) -> Tensor:
    """Euclidean distance of each query to its nearest sample: small ones betray memorised training data.

    A replayed sample has distance 0, up to 1e-7 of the spread of the samples beyond 64 dimensions.

    Args:
        queries: Shape ``(n, d)`` or ``(n,)``.
        samples: Shape ``(m, d)`` or ``(m,)``.

    Returns:
        Shape ``(n,)``, float64.

    Raises:
        ValueError: If shapes disagree or a sample is empty or not finite.
        TypeError: If a sample is not a tensor.

    Example:
        >>> nearest_distances(torch.tensor([0.0, 3.0]), torch.tensor([1.0, 5.0]))
        tensor([1., 2.], dtype=torch.float64)
    """
    x, y = _pair(queries, samples)
    return torch.cat([block.amin(-1) for block in _distance_blocks(x, y)])


def permutation_p_value(
    metric: Callable[[Tensor, Tensor], float], x: Tensor, y: Tensor, permutations: NoiseStream
) -> float:
    r"""Exact p-value of a two-sample metric under the hypothesis that both samples have one law.

    .. math:: p = \frac{1 + \#\{b : T_b \ge T\}}{1 + B},

    where the :math:`T_b` are the metric after random relabelling of the pooled samples. It costs ``B``
    evaluations.

    Args:
        metric: Function of two samples, large for different laws.
        x: Samples, shape ``(n, d)`` or ``(n,)``.
        y: Samples, shape ``(m, d)`` or ``(m,)``.
        permutations: Permutation ``b`` is sample ``b`` of this stream; its length is ``B``, at least 1.

    Returns:
        The p-value, in ``[1 / (1 + B), 1]``.

    Raises:
        ValueError: If shapes disagree, a sample is empty or not finite, or the stream is empty.
        TypeError: If a sample is not a tensor.

    Example:
        >>> x = torch.linspace(0, 1, 20)
        >>> permutation_p_value(energy_distance, x, x + 5, NoiseStream(seed=0, start=0, stop=99))
        0.01

    References:
        Davison & Hinkley (1997), section 4.3. doi:10.1017/CBO9780511802843
    """
    x, y = _pair(x, y)
    if len(permutations) == 0:
        raise ValueError("`permutations` must hold at least one sample; got an empty stream.")
    pooled, observed, exceeding = torch.cat([x, y]), metric(x, y), 0
    for index in range(len(permutations)):
        keys = permutations[index : index + 1].uniforms(
            len(pooled), purpose=Purpose.RESAMPLING, dtype=torch.float64
        )
        shuffled = pooled[keys[0].argsort(stable=True).to(pooled.device)]
        # Rounding depends on the order of the sum: a tie must count.
        exceeding += metric(shuffled[: len(x)], shuffled[len(x) :]) >= observed * (1 - 1e-12)
    return (1 + exceeding) / (1 + len(permutations))
