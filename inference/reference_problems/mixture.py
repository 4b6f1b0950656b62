r"""Mixtures of Gaussians, whose interpolants are known exactly.

A mixture of Gaussians stays one along every interpolant of independent ends: the pair of components
``(i, j)`` has mean and covariance

.. math:: m_{ij} = \alpha m^0_i + \beta m^1_j, \qquad
          C_{ij} = \alpha^2 C^0_i + \beta^2 C^1_j + \gamma^2 1,

and each moves with the velocity :math:`\dot m + \tfrac12 \dot C C^{-1} (x - m)` that carries one Gaussian to
the next, so that the velocity of the mixture is the posterior mean of these.

References:
    Albergo, Boffi & Vanden-Eijnden (2023), Stochastic interpolants, appendix A. arXiv:2303.08797
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from inference.interpolants.interpolant import Interpolant, Kind, OneSided, TwoSided
from inference.interpolants.prediction import Prediction
from sde.equation import Coefficient
from sde.noise import NoiseStream, Purpose
from sde.shapes import check_shapes

__all__ = ["Mixture", "MixtureProblem", "gaussian_flow_map", "gaussian_kl"]

_NODES, _HALVINGS = 12, 30


@dataclass(frozen=True, slots=True, eq=False)
class Mixture:
    """A mixture of Gaussians in ``d`` dimensions.

    Attributes:
        weights: Of the components, positive with sum 1, shape ``(k,)``.
        means: Shape ``(k, d)``.
        covariances: Positive definite, shape ``(k, d, d)``.

    Raises:
        ValueError: If shapes disagree, weights are no probabilities or a covariance is not positive definite.

    Example:
        >>> law = Mixture.gaussian(torch.tensor([2.0]), torch.tensor([[4.0]]))
        >>> law.log_density(torch.tensor([[2.0]])).exp() * math.sqrt(8 * math.pi)
        tensor([1.])
    """

    weights: Tensor
    means: Tensor
    covariances: Tensor

    def __post_init__(self) -> None:
        check_shapes(
            weights=(self.weights, "k"), means=(self.means, "k d"), covariances=(self.covariances, "k d d")
        )
        if not bool((self.weights > 0).all()) or not math.isclose(float(self.weights.sum()), 1, rel_tol=1e-6):
            raise ValueError(f"`weights` must be positive with sum 1; got {self.weights.tolist()}.")
        if bool(torch.linalg.cholesky_ex(self.covariances).info.any()):
            raise ValueError("`covariances` must be positive definite; got one that is not.")

    @classmethod
    def gaussian(cls, mean: Tensor, covariance: Tensor) -> Self:
        """A single Gaussian: mean ``(d,)``, covariance ``(d, d)``."""
        return cls(mean.new_ones(1), mean[None], covariance[None])

    @classmethod
    def standard(cls, dim: int, *, dtype: torch.dtype = torch.float64) -> Self:
        """The standard normal law."""
        return cls.gaussian(torch.zeros(dim, dtype=dtype), torch.eye(dim, dtype=dtype))

    @property
    def mean(self) -> Tensor:
        """Shape ``(d,)``."""
        return self.weights @ self.means

    @property
    def covariance(self) -> Tensor:
        """Shape ``(d, d)``."""
        centred = self.means - self.mean
        return torch.einsum(
            "k,kde->de", self.weights, self.covariances + centred[..., None] * centred[:, None]
        )

    def log_density(self, x: Tensor) -> Tensor:
        """Logarithm of the density at points ``(n, d)``, shape ``(n,)``."""
        factors = torch.linalg.cholesky(self.covariances)
        white = torch.linalg.solve_triangular(factors, (x[:, None] - self.means)[..., None], upper=False)
        log_det = factors.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        constant = 0.5 * x.shape[1] * math.log(2 * math.pi)
        parts = self.weights.log() - log_det - constant - 0.5 * white[..., 0].square().sum(-1)
        return parts.logsumexp(-1)

    def observed(self, matrix: Tensor, value: Tensor, covariance: Tensor) -> Self:
        """The law given ``matrix @ x + normal noise = value``: again a mixture.

        Args:
            matrix: Shape ``(q, d)``.
            value: Shape ``(q,)``.
            covariance: Of the noise, positive definite, shape ``(q, q)``.

        Returns:
            The posterior.

        Raises:
            ValueError: If shapes disagree.

        Example:
            >>> one = torch.ones(1, 1, dtype=torch.float64)
            >>> law = Mixture.standard(1).observed(one, 3 * one[0], 0.5 * one)
            >>> law.means, law.covariances
            (tensor([[2.]], dtype=torch.float64), tensor([[[0.3333]]], dtype=torch.float64))
        """
        check_shapes(
            matrix=(matrix, "q d"),
            value=(value, "q"),
            covariance=(covariance, "q q"),
            means=(self.means, "k d"),
        )
        spread = matrix @ self.covariances @ matrix.T + covariance
        seen = type(self)(self.weights, self.means @ matrix.T, spread)
        gains = torch.linalg.solve(spread, matrix @ self.covariances).mT
        means = self.means + (gains @ (value - seen.means)[..., None])[..., 0]
        parts = [
            type(self)(seen.weights[:1] * 0 + 1, m[None], c[None])
            for m, c in zip(seen.means, spread, strict=True)
        ]
        evidence = torch.stack([part.log_density(value[None])[0] for part in parts])
        weights = (self.weights.log() + evidence).softmax(0)
        left = self.covariances - gains @ matrix @ self.covariances
        return type(self)(weights, means, 0.5 * (left + left.mT))

    def sample(self, noise: NoiseStream, *, purpose: Purpose = Purpose.USER) -> Tensor:
        """One point for each sample of a stream, shape ``(n, d)``."""
        uniform = noise.fork("component").uniforms(1, purpose=purpose, dtype=torch.float64)[:, 0]
        ends = self.weights.double().cumsum(0)
        component = torch.searchsorted(ends / ends[-1], uniform).to(self.means.device)
        normal = noise.fork("point").normals(
            self.means.shape[1], purpose=purpose, dtype=self.means.dtype, device=self.means.device
        )
        factors = torch.linalg.cholesky(self.covariances)[component]
        return self.means[component] + (factors @ normal[..., None])[..., 0]


class _Pairs(NamedTuple):
    """The Gaussian components of an interpolant at ``r`` times, and their rates; ``r`` is 1 or ``n``."""

    alpha: Tensor  # weight of the base, (r, 1)
    beta: Tensor  # weight of the target, (r, 1)
    means: Tensor  # (r, k, d)
    covariances: Tensor  # (r, k, d, d)
    means_rate: Tensor  # (r, k, d)
    half_covariances_rate: Tensor  # (r, k, d, d)


@dataclass(frozen=True, slots=True, eq=False)
class MixtureProblem:
    """An interpolant between mixtures with independent ends, and its exact fields.

    Attributes:
        interpolant: The path. A one-sided path starts at the standard normal law and a mirror at the target,
            whatever ``base`` is.
        base: Law at time 0.
        target: Law at time 1.

    Example:
        >>> base = Mixture.standard(1)
        >>> target = Mixture.gaussian(base.means[0] + 3, base.covariances[0])
        >>> problem = MixtureProblem(OneSided(), base, target)
        >>> problem.field(Kind.VELOCITY)(torch.tensor(0.0), torch.tensor([[1.0]], dtype=torch.float64))
        tensor([[2.]], dtype=torch.float64)
    """

    interpolant: Interpolant
    base: Mixture
    target: Mixture

    def law(self, t: Tensor) -> Mixture:
        """The law at a time ``t``, 0-d."""
        pairs = self._pairs(t)
        return Mixture(self._ends()[2], pairs.means[0], pairs.covariances[0])

    def field(self, kind: Kind) -> Coefficient:
        """The exact field of a kind: a function of time, 0-d or ``(n, 1)``, and points ``(n, d)``."""
        return {
            Kind.VELOCITY: self._velocity,
            Kind.SCORE: self._score,
            Kind.NOISE: self._noise,
            Kind.TARGET: self._target,
            Kind.BASE: self._base,
            Kind.TRANSPORT: self._transport,
            Kind.DRIFT: self._drift,
            Kind.ROTATION: self._rotation,
        }[kind]

    def prediction(self, *kinds: Kind) -> Prediction:
        """Exact networks of the given kinds; the velocity and, for two-sided paths, the score by default."""
        chosen = kinds or (Kind.VELOCITY, Kind.SCORE)[: self.interpolant.num_fields]
        return Prediction(self.interpolant, {kind: self.field(kind) for kind in chosen})

    def loss_floor(self, kind: Kind) -> float:
        r"""The least value of the loss of a kind, between Gaussians.

        .. math:: -\tfrac12 \int_0^1 E |f(t, x_t)|^2\, \mathrm dt
                  = -\tfrac12 \int_0^1 |f(t, m_t)|^2 + \mathrm{tr}(J_t C_t J_t^\top)\, \mathrm dt

        with the slope J of the field, by quadrature that halves its step towards the ends.

        Raises:
            ValueError: If base or target is a mixture of several.

        Example:
            >>> base = Mixture.standard(1)
            >>> shifted = Mixture.gaussian(base.means[0] + 3, base.covariances[0])
            >>> problem = MixtureProblem(OneSided(), base, shifted)
            >>> round(problem.loss_floor(Kind.TARGET), 6)  # -(9 + 1/2) / 2
            -4.75
        """
        if len(self.base.weights) > 1 or len(self.target.weights) > 1:
            raise ValueError("`base` and `target` must be Gaussians; got a mixture of several.")
        field, unit, total = self.field(kind), torch.eye(self.target.means.shape[1]), 0.0
        for instant, weight in zip(*_quadrature(), strict=True):
            t = torch.as_tensor(instant).to(self.target.means)
            law = self.law(t)
            at_mean = field(t, law.means)
            slope = field(t, law.means + unit.to(law.means)) - at_mean  # row j: the change along axis j
            mean_square = at_mean.square().sum() + (slope * (law.covariances[0] @ slope)).sum()
            total += weight * float(mean_square)
        return -0.5 * total

    def _velocity(self, t: Tensor, x: Tensor) -> Tensor:
        responsibility, pulled, pairs = self._posterior(t, x)
        moved = pairs.means_rate + _apply(pairs.half_covariances_rate, pulled)
        return (responsibility[..., None] * moved).sum(1)

    def _score(self, t: Tensor, x: Tensor) -> Tensor:
        responsibility, pulled, _ = self._posterior(t, x)
        return -(responsibility[..., None] * pulled).sum(1)

    def _noise(self, t: Tensor, x: Tensor) -> Tensor:
        return -self.interpolant.variance(t)[0].sqrt() * self._score(t, x)

    def _target(self, t: Tensor, x: Tensor) -> Tensor:
        responsibility, pulled, pairs = self._posterior(t, x)
        _, target, _ = self._ends()
        return (
            responsibility[..., None] * (target[0] + pairs.beta[..., None] * _apply(target[1][None], pulled))
        ).sum(1)

    def _base(self, t: Tensor, x: Tensor) -> Tensor:
        responsibility, pulled, pairs = self._posterior(t, x)
        base, _, _ = self._ends()
        return (
            responsibility[..., None] * (base[0] + pairs.alpha[..., None] * _apply(base[1][None], pulled))
        ).sum(1)

    def _transport(self, t: Tensor, x: Tensor) -> Tensor:
        return self._velocity(t, x) + self.interpolant.variance(t)[1] * self._score(t, x)

    def _drift(self, t: Tensor, x: Tensor) -> Tensor:
        if not isinstance(self.interpolant, TwoSided):
            raise ValueError(f"`kind` must be one of {type(self.interpolant).__name__}'s; got drift.")
        return self._velocity(t, x) + self.interpolant.leaving(t) * self._score(t, x)

    def _rotation(self, t: Tensor, x: Tensor) -> Tensor:
        beta, alpha = self._pairs(t).beta, self.interpolant.variance(t)[0].sqrt()
        return beta * self._noise(t, x) - alpha * self._target(t, x)

    def _ends(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], Tensor]:
        """Means and covariances of base and target, and weights, of every pair of components."""
        target = self.target
        if not isinstance(self.interpolant, TwoSided):  # no base beside the Gaussian part
            zeros = torch.zeros_like(target.means), torch.zeros_like(target.covariances)
            return zeros, (target.means, target.covariances), target.weights
        base, many, few = self.base, len(self.target.weights), len(self.base.weights)
        first = base.means.repeat_interleave(many, 0), base.covariances.repeat_interleave(many, 0)
        second = target.means.repeat(few, 1), target.covariances.repeat(few, 1, 1)
        return first, second, torch.outer(base.weights, target.weights).flatten()

    def _weights(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        r"""Alpha, beta, their rates, and alpha times its rate, at times ``(r, 1)``."""
        path = self.interpolant
        if isinstance(path, TwoSided):
            return (
                *path.schedule.coefficients(t),
                *path.schedule.derivatives(t),
                path.schedule.base_variance(t)[1],
            )
        zero, one = torch.zeros_like(t), torch.ones_like(t)
        if isinstance(path, OneSided):
            return zero, path.schedule.coefficients(t)[1], zero, path.schedule.derivatives(t)[1], zero
        return zero, one, zero, zero, zero

    def _pairs(self, t: Tensor) -> _Pairs:
        """The components at a time."""
        t = t.reshape(-1, 1).to(self.target.means)
        alpha, beta, alpha_rate, beta_rate, alpha_half = self._weights(t)
        square, half_rate = self.interpolant.variance(t)
        (mean0, cov0), (mean1, cov1), _ = self._ends()
        unit = torch.eye(mean1.shape[1], dtype=t.dtype, device=t.device)
        return _Pairs(
            alpha,
            beta,
            alpha[..., None] * mean0 + beta[..., None] * mean1,
            _matrix(alpha**2) * cov0 + _matrix(beta**2) * cov1 + _matrix(square) * unit,
            alpha_rate[..., None] * mean0 + beta_rate[..., None] * mean1,
            _matrix(alpha_half) * cov0 + _matrix(beta * beta_rate) * cov1 + _matrix(half_rate) * unit,
        )

    def _posterior(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor, _Pairs]:
        """Probabilities of the components ``(n, k)``, and points from their means in units ``(n, k, d)``."""
        pairs = self._pairs(t)
        centred = x[:, None] - pairs.means
        factors = torch.linalg.cholesky(pairs.covariances)
        pulled = _apply(torch.cholesky_inverse(factors), centred)
        log_det = 2 * factors.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        log_weights = self._ends()[2].log() - 0.5 * (log_det + (centred * pulled).sum(-1))
        return log_weights.softmax(-1), pulled, pairs


def gaussian_flow_map(problem: MixtureProblem) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    r"""The flow map of an interpolant between two Gaussians in one dimension.

    .. math:: X_{s,t}(x) = m_t + \sqrt{C_t / C_s}\,(x - m_s)

    Args:
        problem: Between single Gaussians of dimension 1.

    Returns:
        A function of times s and t, each 0-d or ``(n, 1)``, and points ``(n, 1)`` at s.

    Raises:
        ValueError: If a law is a mixture of several or of more dimensions.

    Example:
        >>> one = torch.ones(1, dtype=torch.float64)
        >>> ends = Mixture.gaussian(-one, one[None] / 2), Mixture.gaussian(2 * one, 2 * one[None])
        >>> jump = gaussian_flow_map(MixtureProblem(TwoSided(), *ends))
        >>> jump(torch.tensor(0.2), torch.tensor(0.9), 0.7 * one[None])
        tensor([[3.6250]], dtype=torch.float64)
    """
    if max(len(problem.base.weights), len(problem.target.weights), problem.target.means.shape[1]) > 1:
        raise ValueError(
            "`problem` must be between Gaussians in one dimension; got mixtures or more dimensions."
        )

    def jump(s: Tensor, t: Tensor, x: Tensor) -> Tensor:
        (first, start), (second, end) = (
            (pairs.means[:, 0], pairs.covariances[:, 0, 0])
            for pairs in (problem._pairs(s), problem._pairs(t))
        )
        return second + (end / start).sqrt() * (x - first)

    return jump


def gaussian_kl(first: Mixture, second: Mixture) -> Tensor:
    r""":math:`\mathrm{KL}(	ext{first} \,\|\, 	ext{second})` of two Gaussians, 0-d, in nats.

    Raises:
        ValueError: If one is a mixture of several.

    Example:
        >>> law = Mixture.standard(2)
        >>> gaussian_kl(law, Mixture.gaussian(law.means[0] + 1, law.covariances[0])).item()
        1.0
    """
    if len(first.weights) > 1 or len(second.weights) > 1:
        raise ValueError("`first` and `second` must be Gaussians; got a mixture of several.")
    mean = second.means[0] - first.means[0]
    factor = torch.linalg.cholesky(second.covariances[0])
    ratio = torch.cholesky_solve(first.covariances[0], factor)
    pulled = torch.cholesky_solve(mean[:, None], factor)[:, 0]
    return 0.5 * (ratio.trace() - len(mean) + mean @ pulled - torch.linalg.slogdet(ratio).logabsdet)


def _quadrature() -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights on [0, 1]: Gauss--Legendre on intervals that halve towards both ends."""
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    half = np.concatenate(([0.0], 0.5 ** np.arange(_HALVINGS, 0, -1.0)))
    edges = np.concatenate((half, 1 - half[-2::-1]))
    sizes = np.diff(edges)[:, None]
    return (edges[:-1, None] + sizes * (nodes + 1) / 2).ravel(), (sizes * weights / 2).ravel()


def _matrix(scalar: Tensor) -> Tensor:
    """Times ``(r, 1)`` in front of matrices of components."""
    return scalar[..., None, None]


def _apply(matrices: Tensor, vectors: Tensor) -> Tensor:
    """Matrices ``(r, k, d, d)`` times vectors ``(n, k, d)``, with ``r`` 1 or ``n``."""
    if len(matrices) == 1:  # one product for all points
        return torch.einsum("kde,nke->nkd", matrices[0], vectors)
    return (matrices @ vectors[..., None])[..., 0]
