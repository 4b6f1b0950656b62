r"""The Schroedinger bridge between two Gaussians, in closed form.

Among all laws of paths with ends :math:`\rho_0, \rho_1` the bridge is nearest, in relative entropy, to the
Wiener process :math:`\sqrt{2\epsilon}\, W`. Given its ends it is a Brownian bridge, and the pair of its ends
is the entropic coupling for the cost :math:`|x_0 - x_1|^2` with regularisation :math:`4 \epsilon`. Between
Gaussians that coupling is Gaussian, with

.. math:: K = \mathrm{Cov}(x_0, x_1)
          = C_0^{1/2} \bigl(C_0^{1/2} C_1 C_0^{1/2} + \epsilon^2\bigr)^{1/2} C_0^{-1/2} - \epsilon ,

so that :math:`x_t = (1 - t)\, x_0 + t\, x_1 + \sqrt{2 \epsilon t (1 - t)}\, z` is Gaussian with covariance

.. math:: C_t = (1 - t)^2 C_0 + t^2 C_1 + t (1 - t) (K + K^T) + 2 \epsilon t (1 - t).

References:
    Bunne, Hsieh, Cuturi & Krause (2023), The Schroedinger bridge between Gaussian measures has a closed form,
    theorem 3. arXiv:2202.05722
    Janati, Muzellec, Peyre & Cuturi (2020), Entropic optimal transport between unbalanced Gaussian measures
    has a closed form, theorem 1. arXiv:2006.02572
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from inference.interpolants.amplitude import BrownianBridge
from inference.interpolants.interpolant import Kind, TwoSided
from inference.interpolants.prediction import Prediction
from inference.reference_problems import Mixture

__all__ = ["GaussianBridge"]


@dataclass(frozen=True, slots=True, eq=False)
class GaussianBridge:
    r"""The Schroedinger bridge between two Gaussians for the reference :math:`\sqrt{2 \epsilon}\, W`.

    Attributes:
        first: Law at time 0, one Gaussian in ``d`` dimensions.
        second: Law at time 1, likewise.
        eps: Diffusivity of the reference, positive, in squared units of the points.
        cross_covariance: Of the ends, rows for time 0 and columns for time 1, shape ``(d, d)``.

    Raises:
        ValueError: If a law is a mixture of several, the dimensions differ or ``eps`` is not positive.

    Example:
        >>> law = Mixture.standard(1)
        >>> wide = Mixture.gaussian(law.means[0], 4 * law.covariances[0])
        >>> bridge = GaussianBridge(law, wide, eps=1.5)  # K = -1.5 + sqrt(1.5^2 + 4)
        >>> bridge.cross_covariance
        tensor([[1.]], dtype=torch.float64)

    References:
        Bunne, Hsieh, Cuturi & Krause (2023), theorem 3. arXiv:2202.05722
    """

    first: Mixture
    second: Mixture
    eps: float
    cross_covariance: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if len(self.first.weights) > 1 or len(self.second.weights) > 1:
            raise ValueError("`first` and `second` must be Gaussians; got a mixture of several.")
        dims = self.first.means.shape[1], self.second.means.shape[1]
        if dims[0] != dims[1]:
            raise ValueError(f"`second` must have the {dims[0]} dimensions of `first`; got {dims[1]}.")
        if not 0 < self.eps < math.inf:
            raise ValueError(f"`eps` must be positive; got {self.eps}.")
        root, inverse_root = _roots(self.first.covariances[0])
        inner = root @ self.second.covariances[0] @ root + self.eps**2 * self._unit
        cross = root @ _roots(inner)[0] @ inverse_root - self.eps * self._unit
        object.__setattr__(self, "cross_covariance", cross)

    def law(self, t: Tensor) -> Mixture:
        """The law at a time in [0, 1], 0-d."""
        return Mixture.gaussian(self._mean(t), self._covariance(t))

    def drift(self, t: Tensor, x: Tensor) -> Tensor:
        r"""Drift u of the bridge, a diffusion from time 0.

        .. math:: \mathrm dX = u\,\mathrm dt + \sqrt{2\epsilon}\,\mathrm dW, \qquad
                  u(t, x) = m_1 - m_0 + A_t (x - m_t), \qquad \dot A = -A^2

        Args:
            t: Time in [0, 1], 0-d.
            x: Points, shape ``(n, d)``.

        Returns:
            Shape ``(n, d)``; a gradient field, finite at both ends.
        """
        return self._field(t, x, -2 * self.eps * t)

    def backward_drift(self, t: Tensor, x: Tensor) -> Tensor:
        """Drift of the same process run from time 1, in the time t: the forward drift less 2 eps scores."""
        return self._field(t, x, 2 * self.eps * (1 - t))

    def velocity(self, t: Tensor, x: Tensor) -> Tensor:
        """Velocity of the probability flow, shape ``(n, d)``: the mean of the two drifts."""
        return self._field(t, x, self.eps * (1 - 2 * t))

    def score(self, t: Tensor, x: Tensor) -> Tensor:
        """Gradient of the log-density, shape ``(n, d)``."""
        return -torch.linalg.solve(self._covariance(t), (x - self._mean(t)).T).T

    @property
    def action(self) -> Tensor:
        r""":math:`\int_0^1 E |u|^2\, \mathrm dt`, 0-d: four eps times the divergence from the Wiener process.

        .. math:: E |x_1 - x_0|^2 - 2 \epsilon d - 2 \epsilon \log\det \frac{C_1 - K^T C_0^{-1} K}{2 \epsilon}
        """
        cross, first, second = self.cross_covariance, self.first.covariances[0], self.second.covariances[0]
        moved = (self.second.means[0] - self.first.means[0]).square().sum()
        moved = moved + (first + second - 2 * cross).trace()
        left = (second - cross.T @ torch.linalg.solve(first, cross)) / (2 * self.eps)
        return moved - 2 * self.eps * (len(first) + torch.linalg.slogdet(left).logabsdet)

    def prediction(self) -> Prediction:
        """Velocity and score, for any sampler; a diffusion of diffusivity ``eps`` is the bridge itself."""
        path = TwoSided(amplitude=BrownianBridge(2 * self.eps))
        return Prediction(path, {Kind.VELOCITY: self.velocity, Kind.SCORE: self.score})

    @property
    def _unit(self) -> Tensor:
        """The unit matrix."""
        like = self.first.covariances
        return torch.eye(like.shape[1], dtype=like.dtype, device=like.device)

    def _mean(self, t: Tensor) -> Tensor:
        """Mean at a time, shape ``(d,)``."""
        return torch.lerp(self.first.means[0], self.second.means[0], t.to(self.first.means))

    def _covariance(self, t: Tensor) -> Tensor:
        """Covariance at a time, shape ``(d, d)``."""
        t, cross = t.to(self.first.means), self.cross_covariance
        ends = (1 - t) ** 2 * self.first.covariances[0] + t**2 * self.second.covariances[0]
        return ends + t * (1 - t) * (cross + cross.T + 2 * self.eps * self._unit)

    def _field(self, t: Tensor, x: Tensor, latent: Tensor) -> Tensor:
        """Rate of the mean, and of the part about it, whose latent variable contributes ``latent``."""
        t, cross = t.to(self.first.means), self.cross_covariance
        rate = t * self.second.covariances[0] - (1 - t) * self.first.covariances[0]
        rate = rate + (1 - t) * cross.T - t * cross + latent.to(t) * self._unit
        pulled = torch.linalg.solve(self._covariance(t), (x - self._mean(t)).T)
        return self.second.means[0] - self.first.means[0] + (rate @ pulled).T


def _roots(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric square root of a positive definite matrix, and its inverse."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.sqrt()) @ vectors.T, (vectors / values.sqrt()) @ vectors.T
