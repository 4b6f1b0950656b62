r"""Linear stochastic differential equations, whose forecasts are known exactly.

.. math:: \mathrm dX = (A X + a)\, \mathrm dt + B\, \mathrm dW

From a point the law at any lag is Gaussian, with a mean that is affine in the point. So likelihoods of
series, divergences between two equations at a lag, and every field of an interpolant between the states at
two instants are in closed form.

References:
    Saerkkae & Solin (2019), Applied stochastic differential equations, sections 6.1 and 6.2.
    doi:10.1017/9781108186735
    Van Loan (1978), Computing integrals involving the matrix exponential. doi:10.1109/TAC.1978.1101743
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from inference.interpolants.interpolant import TwoSided
from inference.reference_problems.coupled import CoupledGaussian, PointGaussian
from inference.reference_problems.mixture import Mixture, gaussian_kl
from sde.equation import SDE, NoiseStructure
from sde.shapes import check_shapes

__all__ = ["LinearProcess", "Transition"]


class Transition(NamedTuple):
    """The law at a lag from a point: ``N(matrix @ x + shift, covariance)``."""

    matrix: Tensor  #: shape ``(d, d)``
    shift: Tensor  #: shape ``(d,)``
    covariance: Tensor  #: shape ``(d, d)``


@dataclass(frozen=True, slots=True, eq=False)
class LinearProcess:
    r"""A linear equation with additive noise.

    Attributes:
        matrix: ``A``, float64, shape ``(d, d)``, in 1 / (unit of time).
        shift: ``a``, shape ``(d,)``.
        noise: ``B``, shape ``(d, m)``.

    Raises:
        ValueError: If shapes disagree.

    Example:
        >>> one = torch.ones(1, 1, dtype=torch.float64)
        >>> process = LinearProcess(-one, one[0], one)
        >>> process.transition(0.5).matrix.log()
        tensor([[-0.5000]], dtype=torch.float64)
        >>> process.stationary().covariance
        tensor([[0.5000]], dtype=torch.float64)
    """

    matrix: Tensor
    shift: Tensor
    noise: Tensor

    def __post_init__(self) -> None:
        check_shapes(matrix=(self.matrix, "d d"), shift=(self.shift, "d"), noise=(self.noise, "d m"))

    def equation(self) -> SDE:
        """The equation, for any driver of :mod:`sde`."""
        return SDE(
            lambda t, x: x @ self.matrix.to(x).T + self.shift.to(x),
            lambda t, x: self.noise.to(x).expand(len(x), *self.noise.shape),
            NoiseStructure.ADDITIVE,
            noise_dim=self.noise.shape[1],
        )

    def transition(self, lag: float) -> Transition:
        """The law at a lag, by exponentials of block matrices.

        Raises:
            ValueError: If the lag is not positive.
        """
        if not lag > 0:
            raise ValueError(f"`lag` must be positive; got {lag}.")
        halvings = max(0, math.ceil(math.log2(max(1e-9, lag * float(self.matrix.norm())))))
        found = self._short(lag / 2**halvings)  # exponentials of large matrices lose the covariance
        for _ in range(halvings):
            step, shift, spread = found
            found = Transition(step @ step, step @ shift + shift, step @ spread @ step.T + spread)
        return found

    def _short(self, lag: float) -> Transition:
        """The law at a lag that is no longer than the fastest motion."""
        d, a = len(self.shift), self.matrix
        spread = self.noise @ self.noise.T
        block = torch.cat((torch.cat((-a, spread), 1), torch.cat((torch.zeros_like(a), a.T), 1)))
        grown = torch.linalg.matrix_exp(lag * block)
        step = grown[d:, d:].T
        covariance = step @ grown[:d, d:]
        affine = torch.cat((torch.cat((a, self.shift[:, None]), 1), a.new_zeros(1, d + 1)))
        shift = torch.linalg.matrix_exp(lag * affine)[:d, d]
        return Transition(step, shift, (covariance + covariance.T) / 2)

    def stationary(self) -> Mixture:
        """The law that does not change in time.

        Raises:
            ValueError: If an eigenvalue of the matrix has no negative real part.
        """
        if not bool((torch.linalg.eigvals(self.matrix).real < 0).all()):
            raise ValueError("`matrix` must have eigenvalues of negative real part; got another.")
        d, unit = len(self.shift), torch.eye(len(self.shift), dtype=self.matrix.dtype)
        lyapunov = torch.kron(self.matrix, unit) + torch.kron(unit, self.matrix)
        spread = self.noise @ self.noise.T
        covariance = torch.linalg.solve(lyapunov, -spread.flatten()).view(d, d)
        return Mixture.gaussian(-torch.linalg.solve(self.matrix, self.shift), (covariance + covariance.T) / 2)

    def after(self, law: Mixture, lag: float) -> Mixture:
        """The law at a lag after a law that is a mixture of Gaussians."""
        step, shift, spread = self.transition(lag)
        return Mixture(law.weights, law.means @ step.T + shift, step @ law.covariances @ step.T + spread)

    def log_density(self, start: Tensor, end: Tensor, lag: float) -> Tensor:
        """Log-density of states ``end`` a lag after ``start``, each ``(n, d)``; shape ``(n,)``."""
        check_shapes(start=(start, "n d"), end=(end, "n d"))
        step, shift, spread = self.transition(lag)
        return Mixture.gaussian(torch.zeros_like(shift), spread).log_density(end - start @ step.T - shift)

    def divergence(self, other: "LinearProcess", start: Tensor, lag: float) -> Tensor:
        r"""KL divergence of the other's forecasts from this one's, for each of ``(n, d)`` starts, in nats."""
        laws = []
        for process in (self, other):
            step, shift, spread = process.transition(lag)
            laws.append([Mixture.gaussian(point @ step.T + shift, spread) for point in start])
        return torch.stack([gaussian_kl(mine, theirs) for mine, theirs in zip(*laws, strict=True)])

    def forecast(self, start: Tensor, lag: float, interpolant: TwoSided) -> PointGaussian:
        """The path from known states ``(n, d)`` to those at a lag."""
        step, shift, spread = self.transition(lag)
        return PointGaussian(interpolant, start, start @ step.T + shift, spread)

    def between(self, law: Mixture, lag: float, interpolant: TwoSided) -> CoupledGaussian:
        """The path between the states at two instants, the first of a Gaussian law.

        Raises:
            ValueError: If the law is a mixture of several.
        """
        if len(law.weights) > 1:
            raise ValueError("`law` must be Gaussian; got a mixture of several.")
        step, shift, spread = self.transition(lag)
        mean, first = law.means[0], law.covariances[0]
        cross = first @ step.T
        last = step @ cross + spread
        joint = torch.cat((torch.cat((first, cross), 1), torch.cat((cross.T, last), 1)))
        return CoupledGaussian(interpolant, mean, step @ mean + shift, joint)
