"""Stationary covariance functions with anisotropic correlation lengths, and their spectral measures."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from scipy import special
from torch import Tensor

from sde.noise import NoiseStream, Purpose

__all__ = ["Covariance", "Exponential", "Matern", "SquaredExponential"]


class Covariance(Protocol):
    r"""A stationary covariance :math:`C(x - y)` with :math:`C(0) = \text{variance}`.

    Attributes:
        variance: Variance at a point, positive.
        lengths: Correlation lengths, one for all axes or one per axis, positive [unit of the coordinates].
    """

    @property
    def variance(self) -> float:
        """Variance at a point."""
        ...

    @property
    def lengths(self) -> float | tuple[float, ...]:
        """Correlation length of all axes, or one per axis."""
        ...

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Covariances between points ``x (n, dim)`` and ``y (m, dim)``: ``(n, m)``, in float64 on the CPU."""
        ...

    def frequencies(self, count: int, dim: int, noise: NoiseStream) -> Tensor:
        """Angular frequencies drawn from the spectral measure: ``(len(noise), count, dim)`` in float64."""
        ...


def _positive(name: str, value: float) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"`{name}` must be a number; got {type(value).__name__}.")
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"`{name}` must be positive and finite; got {value}.")
    return float(value)


def _lengths(value: float | Sequence[float]) -> tuple[float, ...]:
    """Correlation lengths as a non-empty tuple."""
    values = (value,) if isinstance(value, int | float) else tuple(value)
    if not values:
        raise ValueError("`lengths` must hold at least one correlation length; got none.")
    return tuple(_positive("lengths", item) for item in values)


def _scales(lengths: float | tuple[float, ...], dim: int) -> Tensor:
    """Correlation length of each of the ``dim`` axes."""
    lengths = _lengths(lengths)
    if len(lengths) not in (1, dim):
        raise ValueError(
            f"`lengths` must hold 1 or {dim} values for points in {dim} dimensions; got {len(lengths)}."
        )
    return torch.tensor(lengths, dtype=torch.float64).expand(dim)


def _distances(x: Tensor, y: Tensor, lengths: float | tuple[float, ...]) -> Tensor:
    """Distances in correlation lengths, by differences: exact zeros on the diagonal."""
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(
            f"Points must have shapes (n, dim) and (m, dim); got {tuple(x.shape)} and {tuple(y.shape)}."
        )
    scales = _scales(lengths, x.shape[1])
    x, y = (points.detach().to("cpu", torch.float64) / scales for points in (x, y))
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def _gaussian_frequencies(
    lengths: float | tuple[float, ...], count: int, dim: int, noise: NoiseStream
) -> Tensor:
    """Normals with standard deviation ``1 / length`` on each axis."""
    normals = noise.normals(count, purpose=Purpose.FIELD, channels=dim, dtype=torch.float64)
    return normals / _scales(lengths, dim)


@dataclass(frozen=True, slots=True)
class SquaredExponential:
    r"""Squared-exponential (Gaussian) covariance: infinitely smooth fields.

    .. math:: C(x, y) = \sigma^2 \exp(-r^2 / 2), \qquad r^2 = \sum_i (x_i - y_i)^2 / \ell_i^2.

    Its spectral measure is :math:`\omega_i \sim \mathcal{N}(0, \ell_i^{-2})`. Some codes write
    :math:`\exp(-r^2)`: their length is :math:`\sqrt 2\,\ell`.

    Args:
        lengths: Correlation length of all axes, or one per axis [unit of the coordinates]; positive.
        variance: Variance :math:`\sigma^2` at a point; positive.

    Raises:
        ValueError: If a length or the variance is not positive and finite.
        TypeError: If one of them is not a number.

    Example:
        >>> SquaredExponential(1.0)(torch.zeros(1, 1), torch.tensor([[0.0], [2.0]]))
        tensor([[1.0000, 0.1353]], dtype=torch.float64)

    References:
        Rasmussen & Williams (2006), section 4.2.
    """

    lengths: float | tuple[float, ...]
    variance: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "lengths", _lengths(self.lengths))
        object.__setattr__(self, "variance", _positive("variance", self.variance))

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Covariances between points ``x (n, dim)`` and ``y (m, dim)``: shape ``(n, m)``."""
        return self.variance * torch.exp(-0.5 * _distances(x, y, self.lengths) ** 2)

    def frequencies(self, count: int, dim: int, noise: NoiseStream) -> Tensor:
        """Normal angular frequencies of standard deviation ``1 / length``: shape ``(n, count, dim)``."""
        return _gaussian_frequencies(self.lengths, count, dim, noise)


@dataclass(frozen=True, slots=True)
class Matern:
    r"""Matern covariance: fields with :math:`\lceil\nu\rceil - 1` derivatives in mean square.

    .. math:: C(x, y) = \sigma^2\,\frac{2^{1-\nu}}{\Gamma(\nu)}\,z^\nu K_\nu(z),
        \qquad z = \sqrt{2\nu}\,r, \quad r^2 = \sum_i (x_i - y_i)^2 / \ell_i^2.

    Its spectral measure is a multivariate Student law: normal frequencies of standard deviation
    :math:`1/\ell_i` times :math:`\sqrt{2\nu/\chi^2_{2\nu}}`, one :math:`\chi^2` for all axes.

    Args:
        lengths: Correlation length of all axes, or one per axis [unit of the coordinates]; positive.
        smoothness: :math:`\nu` in (0, 50]; 0.5 is :class:`Exponential`, the limit squared-exponential.
        variance: Variance :math:`\sigma^2` at a point; positive.

    Raises:
        ValueError: If a length, the smoothness or the variance is out of range.
        TypeError: If one of them is not a number.

    Example:
        >>> Matern(1.0, smoothness=1.5)(torch.zeros(1, 1), torch.tensor([[0.0], [1.0]]))
        tensor([[1.0000, 0.4834]], dtype=torch.float64)

    References:
        Stein (1999), section 2.7; Rasmussen & Williams (2006), section 4.2.
    """

    lengths: float | tuple[float, ...]
    smoothness: float
    variance: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "lengths", _lengths(self.lengths))
        object.__setattr__(self, "smoothness", _positive("smoothness", self.smoothness))
        object.__setattr__(self, "variance", _positive("variance", self.variance))
        if self.smoothness > 50:
            raise ValueError(
                f"`smoothness` must be at most 50; got {self.smoothness}. Use SquaredExponential()."
            )

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Covariances between points ``x (n, dim)`` and ``y (m, dim)``: shape ``(n, m)``."""
        argument = math.sqrt(2 * self.smoothness) * _distances(x, y, self.lengths)
        bessel = torch.from_numpy(special.kv(self.smoothness, argument.numpy()))
        log_scale = (1 - self.smoothness) * math.log(2) - special.gammaln(self.smoothness)
        values = torch.exp(log_scale + self.smoothness * argument.log() + bessel.log())
        # K_nu overflows only where the correlation is 1 to 3e-12 (smoothness at most 50), and at 0.
        return self.variance * torch.where(torch.isinf(bessel), 1.0, values)

    def frequencies(self, count: int, dim: int, noise: NoiseStream) -> Tensor:
        """Multivariate Student angular frequencies: shape ``(n, count, dim)``."""
        uniforms = noise.fork("matern-scales").uniforms(count, purpose=Purpose.FIELD, dtype=torch.float64)
        gamma = torch.from_numpy(special.gammaincinv(self.smoothness, uniforms.numpy()))  # half a chi-square
        normals = _gaussian_frequencies(self.lengths, count, dim, noise)
        return normals * (self.smoothness / gamma).sqrt().unsqueeze(-1)


@dataclass(frozen=True, slots=True)
class Exponential:
    r"""Exponential covariance: continuous fields without derivatives.

    .. math:: C(x, y) = \sigma^2 \exp(-r), \qquad r^2 = \sum_i (x_i - y_i)^2 / \ell_i^2.

    The Matern covariance of smoothness 1/2; its spectral measure is a multivariate Cauchy law.

    Args:
        lengths: Correlation length of all axes, or one per axis [unit of the coordinates]; positive.
        variance: Variance :math:`\sigma^2` at a point; positive.

    Raises:
        ValueError: If a length or the variance is not positive and finite.
        TypeError: If one of them is not a number.

    Example:
        >>> Exponential((1.0, 2.0))(torch.zeros(1, 2), torch.tensor([[0.0, 2.0]]))
        tensor([[0.3679]], dtype=torch.float64)

    References:
        Ghanem & Spanos (1991), section 2.3.3. doi:10.1007/978-1-4612-3094-6
    """

    lengths: float | tuple[float, ...]
    variance: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "lengths", _lengths(self.lengths))
        object.__setattr__(self, "variance", _positive("variance", self.variance))

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Covariances between points ``x (n, dim)`` and ``y (m, dim)``: shape ``(n, m)``."""
        return self.variance * torch.exp(-_distances(x, y, self.lengths))

    def frequencies(self, count: int, dim: int, noise: NoiseStream) -> Tensor:
        """Multivariate Cauchy angular frequencies: shape ``(n, count, dim)``."""
        return Matern(self.lengths, 0.5, self.variance).frequencies(count, dim, noise)
