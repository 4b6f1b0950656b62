r"""Scores of probabilistic forecasts: how good an ensemble is, and whether its spread is to be believed.

An ensemble holds ``m`` equally likely members for each of ``n`` cases, and each case has one observation.
The scores of single cases are returned, so that their mean has a standard error and two forecasters of the
same cases can be compared case by case. :func:`crps` and :func:`energy_score` are proper: the law that the
observations come from has the least mean. Ranks, coverage and spread tell in what way a forecast errs.

Standard errors take the cases as independent. Cases that follow each other in a series are not: take them
further apart than the series remembers.

References:
    Gneiting & Raftery (2007), Strictly proper scoring rules, prediction, and estimation, sections 4.2 and
    4.3. doi:10.1198/016214506000001437
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from scipy.stats import chi2
from torch import Tensor

from sde.noise import NoiseStream, Purpose
from sde.shapes import check_shapes

__all__ = [
    "Coverage",
    "RankHistogram",
    "SpreadSkill",
    "coverage",
    "crps",
    "energy_distance",
    "energy_score",
    "gaussian_crps",
    "spread_skill",
]


def crps(ensemble: Tensor, observed: Tensor, *, fair: bool = True) -> Tensor:
    r"""Continuous ranked probability score of each case and component.

    .. math:: \frac1m \sum_i |x_i - y| - \frac{1}{2 m (m - 1)} \sum_{i,j} |x_i - x_j|

    which estimates :math:`\int (F(x) - 1_{x \ge y})^2\, \mathrm dx` of the law that the members are drawn
    from, without bias from their number.

    Args:
        ensemble: Members, shape ``(n, m, *shape)``, at least 2 for the fair score.
        observed: Shape ``(n, *shape)``.
        fair: Score the law behind the members; else with ``m`` for ``m - 1``, the ensemble as it stands.

    Returns:
        Scores in the unit of the observations, shape ``(n, *shape)``; the less the better.

    Raises:
        ValueError: If shapes disagree or there are too few members.

    Example:
        >>> crps(torch.tensor([[0.0, 1.0]]), torch.tensor([0.5]))
        tensor([0.])
        >>> crps(torch.tensor([[0.0, 1.0]]), torch.tensor([0.5]), fair=False)
        tensor([0.2500])

    References:
        Ferro (2014), Fair scores for ensemble forecasts. doi:10.1002/qj.2270
    """
    members = _check(ensemble, observed, 2 if fair else 1)
    near = (ensemble - observed[:, None]).abs().mean(1)
    # The sum over pairs from the sorted members: member k is above k others and below m - 1 - k.
    rank = torch.arange(members, dtype=ensemble.dtype, device=ensemble.device)
    weights = (2 * rank - (members - 1)).view(-1, *[1] * (ensemble.dim() - 2))
    pairs = (weights * ensemble.sort(1).values).sum(1)
    return near - pairs / (members * (members - 1 if fair else members))


def gaussian_crps(mean: Tensor, deviation: Tensor, observed: Tensor) -> Tensor:
    r"""Continuous ranked probability score of a normal forecast.

    .. math:: \sigma \Bigl[ u\, (2 \Phi(u) - 1) + 2 \varphi(u) - \pi^{-1/2} \Bigr],
              \qquad u = (y - \mu) / \sigma

    Args:
        mean: Any shape that broadcasts.
        deviation: Positive.
        observed: Likewise.

    Returns:
        Scores in the unit of the observations.

    Example:
        >>> zero, one = torch.zeros(1), torch.ones(1)
        >>> round(gaussian_crps(zero, one, zero).item(), 4)  # (sqrt(2) - 1) / sqrt(pi)
        0.2337

    References:
        Gneiting, Raftery, Westveld & Goldman (2005), section 2. doi:10.1175/MWR2904.1
    """
    u = (observed - mean) / deviation
    density = (-0.5 * u**2).exp() / math.sqrt(2 * math.pi)
    return deviation * (u * torch.erf(u / math.sqrt(2)) + 2 * density - 1 / math.sqrt(math.pi))


def energy_score(ensemble: Tensor, observed: Tensor, *, fair: bool = True) -> Tensor:
    r"""Energy score of each case: the continuous ranked probability score of vectors.

    .. math:: \frac1m \sum_i |x_i - y| - \frac{1}{2 m (m - 1)} \sum_{i,j} |x_i - x_j|

    Args:
        ensemble: Members, shape ``(n, m, d)``, at least 2 for the fair score. Components of different units
            should be divided by one first.
        observed: Shape ``(n, d)``.
        fair: As for :func:`crps`.

    Returns:
        Scores, shape ``(n,)``; the less the better.

    Raises:
        ValueError: If shapes disagree or there are too few members.

    Example:
        >>> members = torch.tensor([[[3.0, 0.0], [0.0, 4.0]]])
        >>> energy_score(members, torch.zeros(1, 2))  # (3 + 4) / 2 - 5 / 2
        tensor([1.])
    """
    check_shapes(ensemble=(ensemble, "n m d"), observed=(observed, "n d"))
    members = _check(ensemble, observed, 2 if fair else 1)
    near = (ensemble - observed[:, None]).norm(dim=2).mean(1)
    pairs = _distances(ensemble, ensemble).sum((1, 2))
    return near - pairs / (2 * members * (members - 1 if fair else members))


def energy_distance(first: Tensor, second: Tensor) -> Tensor:
    r"""How much worse the energy score of one ensemble must be on average, where the other has the true law.

    .. math:: E|X - Y| - \tfrac12 E|X - X'| - \tfrac12 E|Y - Y'|

    estimated without bias, so that it may be negative: at least 0 in the mean, and 0 for equal laws alone. No
    observations are needed, whose chance would hide small differences. It is half of what is elsewhere called
    by this name.

    Args:
        first: Members, shape ``(n, m, d)``, at least 2.
        second: Members of the other, shape ``(n, k, d)``, at least 2.

    Returns:
        Distances, shape ``(n,)``.

    Raises:
        ValueError: If shapes disagree or there are too few members.

    Example:
        >>> energy_distance(torch.zeros(1, 2, 1), torch.ones(1, 3, 1))
        tensor([1.])

    References:
        Szekely & Rizzo (2013), Energy statistics. doi:10.1016/j.jspi.2013.03.018
    """
    check_shapes(first=(first, "n m d"), second=(second, "n k d"))
    if min(first.shape[1], second.shape[1]) < 2:
        raise ValueError(
            f"`first` and `second` must have at least 2 members; got {first.shape[1]} and {second.shape[1]}."
        )
    cross = _distances(first, second).mean((1, 2))
    within = [_distances(x, x).sum((1, 2)) / (x.shape[1] * (x.shape[1] - 1)) for x in (first, second)]
    return cross - 0.5 * (within[0] + within[1])


@dataclass(frozen=True, slots=True, eq=False)
class RankHistogram:
    """How often the observation has each rank among the members; ``a + b`` counts both sets of cases.

    Flat where members and observation are drawn from one law. A valley tells of too little spread, a hill of
    too much, a slope of a bias. Ties are broken by chance, so that discrete laws are flat, too.

    Attributes:
        counts: Cases of rank 0 to m, int64, shape ``(m + 1,)``.

    Example:
        >>> members, noise = torch.tensor([[0.0, 2.0], [0.0, 2.0]]), NoiseStream(0, 0, 2)
        >>> RankHistogram.of(members, torch.tensor([1.0, 5.0]), noise).counts
        tensor([0, 1, 1])

    References:
        Hamill (2001), Interpretation of rank histograms.
        doi:10.1175/1520-0493(2001)129<0550:IORHFV>2.0.CO;2
    """

    counts: Tensor

    @classmethod
    def of(cls, ensemble: Tensor, observed: Tensor, noise: NoiseStream) -> "RankHistogram":
        """Count the ranks of scalar observations.

        Args:
            ensemble: Members, shape ``(n, m)``.
            observed: Shape ``(n,)``.
            noise: One sample for each case, by which ties are broken.

        Raises:
            ValueError: If shapes disagree or a number is NaN.
        """
        ranks = _ranks(ensemble, observed, noise)
        return cls(torch.bincount(ranks, minlength=ensemble.shape[1] + 1))

    def __add__(self, other: "RankHistogram") -> "RankHistogram":
        """The counts of both sets of cases, of ensembles of one size."""
        if len(self.counts) != len(other.counts):
            raise ValueError("Rank histograms can be added where the number of members is one; got two.")
        return RankHistogram(self.counts + other.counts)

    @property
    def p_value(self) -> float:
        """Chance that a calibrated ensemble is as uneven or more: Pearson's test, from 5 cases a rank up."""
        expected = float(self.counts.sum()) / len(self.counts)
        statistic = float((self.counts.double() - expected).square().sum()) / expected
        return float(chi2.sf(statistic, len(self.counts) - 1))

    def merged(self, bins: int) -> "RankHistogram":
        """Neighbouring ranks counted together, where there are many ranks for the cases.

        Raises:
            ValueError: If the number of ranks is no multiple of ``bins``.
        """
        if bins < 1 or len(self.counts) % bins:
            raise ValueError(f"`bins` must divide the number of ranks, {len(self.counts)}; got {bins}.")
        return RankHistogram(self.counts.view(bins, -1).sum(1))


class Coverage(NamedTuple):
    """How often central intervals of an ensemble hold the observation."""

    level: float  #: of a calibrated ensemble: the multiple of 2 / (m + 1) next to what was asked
    share: float  #: of the cases
    standard_error: float  #: of the share, for independent cases of a calibrated ensemble


def coverage(ensemble: Tensor, observed: Tensor, level: float, noise: NoiseStream) -> Coverage:
    r"""Coverage of central intervals between two members of the ordered ensemble.

    Between the members of rank j and m + 1 - j a calibrated observation lies with a probability of exactly
    :math:`1 - 2j / (m + 1)`, whatever the law.

    Args:
        ensemble: Members, shape ``(n, m)``.
        observed: Shape ``(n,)``.
        level: Probability wanted, in (0, 1).
        noise: One sample for each case, by which ties are broken.

    Returns:
        The level of the intervals that were taken, the share of cases within, and its standard error.

    Raises:
        ValueError: If shapes disagree, the level is outside or the members are too few for it.

    Example:
        >>> members = torch.arange(1.0, 20.0).expand(2, 19)
        >>> coverage(members, torch.tensor([10.0, 30.0]), 0.9, NoiseStream(0, 0, 2))[:2]
        (0.9, 0.5)
    """
    ranks, members = _ranks(ensemble, observed, noise), ensemble.shape[1]
    if not 0 < level < 1:
        raise ValueError(f"`level` must lie in (0, 1); got {level}.")
    outside = round((members + 1) * (1 - level) / 2)
    if not 1 <= outside <= members // 2:
        raise ValueError(
            f"`level` must leave a member on either side; got {level} for {members} members. "
            "Take more members."
        )
    attained = 1 - 2 * outside / (members + 1)
    within = (ranks >= outside) & (ranks <= members - outside)
    error = math.sqrt(attained * (1 - attained) / len(observed))
    return Coverage(attained, float(within.double().mean()), error)


class SpreadSkill(NamedTuple):
    """Spread of an ensemble beside the error of its mean."""

    spread: float  #: root of the mean variance of the members, times (m + 1) / m
    skill: float  #: root-mean-square error of the mean of the members
    ratio: float  #: spread over skill: 1 where the forecast is calibrated, less where it is too sure
    standard_error: float  #: of the ratio, for independent cases


def spread_skill(ensemble: Tensor, observed: Tensor) -> SpreadSkill:
    """Whether the spread is as large as the error that it should foretell.

    Args:
        ensemble: Members, shape ``(n, m)``, at least 2.
        observed: Shape ``(n,)``, at least 2.

    Returns:
        Spread, skill, their ratio and its standard error.

    Raises:
        ValueError: If shapes disagree or there are too few members.

    Example:
        >>> spread_skill(torch.tensor([[-1.0, 1.0], [-1.0, 1.0]]), torch.tensor([1.0, -1.0])).skill
        1.0

    References:
        Fortin, Abaza, Anctil & Turcotte (2014), Why should ensemble spread match the RMSE of the ensemble
        mean? doi:10.1175/JHM-D-14-0008.1
    """
    check_shapes(ensemble=(ensemble, "n m"), observed=(observed, "n"))
    members = _check(ensemble, observed, 2)
    variance = ensemble.double().var(1) * (members + 1) / members
    square = (ensemble.double().mean(1) - observed).square()
    spread, skill = math.sqrt(variance.mean()), math.sqrt(square.mean())
    ratio = spread / skill
    # By linearisation: the logarithm of the ratio is half the difference of two logarithms of means.
    parts = 0.5 * (variance / variance.mean() - square / square.mean())
    return SpreadSkill(spread, skill, ratio, ratio * float(parts.std()) / math.sqrt(len(parts)))


def _distances(first: Tensor, second: Tensor) -> Tensor:
    """Distances of members; from differences, since inner products lose those of near members."""
    return torch.cdist(first, second, compute_mode="donot_use_mm_for_euclid_dist")


def _ranks(ensemble: Tensor, observed: Tensor, noise: NoiseStream) -> Tensor:
    """Number of members below each observation, with ties broken by chance, int64 ``(n,)``."""
    check_shapes(ensemble=(ensemble, "n m"), observed=(observed, "n"))
    _check(ensemble, observed, 1)
    if len(noise) != len(observed):
        raise ValueError(f"`noise` must hold one sample per case, {len(observed)}; got {len(noise)}.")
    if bool(ensemble.isnan().any()) or bool(observed.isnan().any()):
        raise ValueError("`ensemble` and `observed` must hold no NaN; got some.")
    below = (ensemble < observed[:, None]).sum(1)
    ties = (ensemble == observed[:, None]).sum(1)
    uniform = noise.fork("ties").uniforms(
        1, purpose=Purpose.RESAMPLING, dtype=torch.float64, device=ensemble.device
    )[:, 0]
    return below + (uniform * (ties + 1)).long()


def _check(ensemble: Tensor, observed: Tensor, least: int) -> int:
    """The number of members, where the shapes fit."""
    fits = ensemble.dim() >= 2 and (len(ensemble), *ensemble.shape[2:]) == tuple(observed.shape)
    if not fits:
        raise ValueError(
            f"`ensemble` must have shape (n, m, *shape) for `observed` of (n, *shape), "
            f"{tuple(observed.shape)}; got {tuple(ensemble.shape)}."
        )
    if ensemble.shape[1] < least:
        raise ValueError(f"`ensemble` must have at least {least} members; got {ensemble.shape[1]}.")
    return ensemble.shape[1]
