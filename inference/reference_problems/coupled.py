r"""Gaussian ends that depend on each other, seen without and with the base point.

A velocity that is a function of time and point carries the law at time 0 to that at time 1, and loses the
pairs; a velocity that is given the base point keeps them. Both are known here.

References:
    Albergo, Goldstein, Boffi, Ranganath & Vanden-Eijnden (2024), Stochastic interpolants with data-dependent
    couplings. arXiv:2310.03725
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from inference.interpolants.interpolant import Kind, TwoSided
from inference.interpolants.prediction import Prediction
from inference.reference_problems.mixture import Mixture
from sde.equation import Coefficient
from sde.noise import NoiseStream
from sde.shapes import check_shapes

__all__ = ["CoupledGaussian", "PointGaussian"]


@dataclass(frozen=True, slots=True, eq=False)
class PointGaussian:
    r"""A path from known points to a Gaussian whose mean depends on the point.

    .. math:: x_t = \alpha x_0 + \beta x_1 + \gamma z, \qquad x_1 \sim N(m(x_0), C)

    Attributes:
        interpolant: The path.
        start: The points, shape ``(n, d)``.
        mean: Of the target, shape ``(n, d)``.
        covariance: Of the target, positive semi-definite, shape ``(d, d)``.

    Raises:
        ValueError: If shapes disagree.

    Example:
        >>> start = torch.tensor([[1.5]], dtype=torch.float64)
        >>> problem = PointGaussian(TwoSided(), start, 0.8 * start, torch.tensor([[0.3]]).double())
        >>> problem.field(Kind.TARGET)(torch.tensor(0.0), start)
        tensor([[1.2000]], dtype=torch.float64)
    """

    interpolant: TwoSided
    start: Tensor
    mean: Tensor
    covariance: Tensor

    def __post_init__(self) -> None:
        check_shapes(start=(self.start, "n d"), mean=(self.mean, "n d"), covariance=(self.covariance, "d d"))

    def moments(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Means ``(n, d)`` and covariance ``(d, d)`` at a time, 0-d."""
        t = t.to(self.start)
        alpha, beta = self.interpolant.schedule.coefficients(t)
        unit = torch.eye(len(self.covariance), dtype=self.start.dtype, device=self.start.device)
        covariance = beta**2 * self.covariance + self.interpolant.variance(t)[0] * unit
        return alpha * self.start + beta * self.mean, covariance

    def field(self, kind: Kind) -> Coefficient:
        """The exact field of a kind, of times 0-d in (0, 1) and of one point for each start.

        Raises:
            ValueError: If the interpolant has no such kind.
        """
        _check_kind(self.interpolant, kind)
        return lambda t, x: self._fields(t.to(x), x)[kind]()

    def prediction(self, kind: Kind = Kind.DRIFT) -> Prediction:
        """An exact network of a kind, beside the known starts; samplers begin at a positive time."""
        return Prediction.from_start(self.interpolant, self.start, kind, self.field(kind))

    def _fields(self, t: Tensor, x: Tensor) -> dict[Kind, Callable[[], Tensor]]:
        """Every field at a time."""
        path = self.interpolant
        mean, covariance = self.moments(t)
        pulled = torch.linalg.solve(_regular(covariance), (x - mean).T).T
        target = self.mean + path.schedule.coefficients(t)[1] * pulled @ self.covariance
        return _combined(path, t, self.start.expand_as(x), target, -pulled)


@dataclass(frozen=True, slots=True, eq=False)
class CoupledGaussian:
    """Jointly Gaussian base and target along a two-sided path.

    Attributes:
        interpolant: The path.
        base: Mean at time 0, shape ``(d,)``.
        target: Mean at time 1, shape ``(d,)``.
        covariance: Of base and target together, positive definite, shape ``(2 d, 2 d)``.

    Raises:
        ValueError: If shapes disagree or the covariance is not positive definite.

    Example:
        >>> zero, joint = torch.zeros(1).double(), torch.tensor([[1.0, 0.6], [0.6, 1.0]]).double()
        >>> problem = CoupledGaussian(TwoSided(), zero, zero, joint)
        >>> mean, variance = problem.moments(torch.tensor(0.5))
        >>> variance  # (1 + 1 + 2 * 0.6) / 4 and the latent 1 / 4
        tensor([[1.0500]], dtype=torch.float64)
    """

    interpolant: TwoSided
    base: Tensor
    target: Tensor
    covariance: Tensor
    _joint: Mixture = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_shapes(base=(self.base, "d"), target=(self.target, "d"))
        size = 2 * len(self.base)
        if tuple(self.covariance.shape) != (size, size):
            raise ValueError(
                f"`covariance` must have shape ({size}, {size}); got {tuple(self.covariance.shape)}."
            )
        joint = Mixture.gaussian(torch.cat((self.base, self.target)), self.covariance)
        object.__setattr__(self, "_joint", joint)

    def sample(self, noise: NoiseStream) -> tuple[Tensor, Tensor]:
        """Pairs of base and target, each ``(n, d)``: a source for training."""
        base, target = self._joint.sample(noise).chunk(2, 1)
        return base, target

    def moments(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Mean ``(d,)`` and covariance ``(d, d)`` at a time, 0-d."""
        t = t.to(self.base)
        alpha, beta = self.interpolant.schedule.coefficients(t)
        first, cross, last = self._blocks()
        unit = torch.eye(len(first), dtype=first.dtype, device=first.device)
        spread = alpha**2 * first + beta**2 * last + alpha * beta * (cross + cross.T)
        mean = alpha * self.base + beta * self.target
        return mean, spread + self.interpolant.variance(t)[0] * unit

    def field(self, kind: Kind) -> Coefficient:
        """The exact field of a kind that is not given the base, of times 0-d and points ``(n, d)``.

        Raises:
            ValueError: If the interpolant has no such kind.
        """
        _check_kind(self.interpolant, kind)
        return lambda t, x: self._fields(t.to(x), x)[kind]()

    def prediction(self, *kinds: Kind) -> Prediction:
        """Exact networks of the given kinds, velocity and score by default: they forget the pairs."""
        chosen = kinds or (Kind.VELOCITY, Kind.SCORE)
        return Prediction(self.interpolant, {kind: self.field(kind) for kind in chosen})

    def given(self, start: Tensor) -> PointGaussian:
        """The paths from known base points, shape ``(n, d)``: their samplers keep the pairs."""
        first, cross, last = self._blocks()
        gain = torch.linalg.solve(first, cross).T  # (d, d): of the target on the base
        mean = self.target + (start - self.base) @ gain.T
        return PointGaussian(self.interpolant, start, mean, last - gain @ cross)

    def _blocks(self) -> tuple[Tensor, Tensor, Tensor]:
        """Covariances of the base, of base and target, and of the target."""
        d = len(self.base)
        return self.covariance[:d, :d], self.covariance[:d, d:], self.covariance[d:, d:]

    def _fields(self, t: Tensor, x: Tensor) -> dict[Kind, Callable[[], Tensor]]:
        """Every field at a time."""
        alpha, beta = self.interpolant.schedule.coefficients(t)
        first, cross, last = self._blocks()
        mean, covariance = self.moments(t)
        pulled = torch.linalg.solve(covariance, (x - mean).T).T
        base = self.base + pulled @ (alpha * first + beta * cross.T)
        target = self.target + pulled @ (alpha * cross + beta * last)
        return _combined(self.interpolant, t, base, target, -pulled)


def _combined(
    path: TwoSided, t: Tensor, base: Tensor, target: Tensor, score: Tensor
) -> dict[Kind, Callable[[], Tensor]]:
    """Every field from the three of the basis."""
    rates = path.schedule.derivatives(t)
    square, half_rate = path.variance(t)
    moved = rates[0] * base + rates[1] * target
    return {
        Kind.BASE: lambda: base,
        Kind.TARGET: lambda: target,
        Kind.SCORE: lambda: score,
        Kind.NOISE: lambda: -square.sqrt() * score,
        Kind.TRANSPORT: lambda: moved,
        Kind.VELOCITY: lambda: moved - half_rate * score,
        Kind.DRIFT: lambda: moved + (path.leaving(t) - half_rate) * score,
    }


def _regular(covariance: Tensor) -> Tensor:
    """A covariance that can be inverted, where a path has not left its point yet."""
    floor = torch.finfo(covariance.dtype).tiny ** 0.5
    return covariance + floor * torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)


def _check_kind(path: TwoSided, kind: Kind) -> None:
    """Refuse kinds that the path does not have."""
    if kind not in path.rows(torch.tensor(0.5, dtype=torch.float64)):
        raise ValueError(f"`kind` must be one of {type(path).__name__}'s; got {kind.value}.")
