"""Stationary Gaussian random fields by spectral sampling."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sde.networks import evaluate_in_blocks
from sde.noise import NoiseStream, Purpose
from sde.shapes import check_shapes
from uq.random_fields.covariance import Covariance
from uq.random_fields.karhunen_loeve import Coefficients

__all__ = ["FixedFourierFeatures", "RandomFourierFeatures"]

BLOCK_ENTRIES = 2**24


def _check_points(points: Tensor, num_features: int) -> None:
    check_shapes(points=(points, "points dim"))
    if not points.is_floating_point() or not torch.isfinite(points).all():
        raise ValueError("`points` must be finite floating-point numbers; got integers, NaN or infinity.")
    if isinstance(num_features, bool) or not isinstance(num_features, int):
        raise TypeError(f"`num_features` must be an integer; got {type(num_features).__name__}.")
    if num_features < 1:
        raise ValueError(f"`num_features` must be at least 1; got {num_features}.")


@dataclass(frozen=True, slots=True, eq=False)
class RandomFourierFeatures:
    r"""A stationary random field by spectral sampling with frequencies drawn anew for each sample: a model.

    .. math:: g_i(x) = \sigma \sqrt{\tfrac{2}{m}} \sum_{j=1}^{m} \cos(\omega_{ij}\cdot x + b_{ij}), \qquad
        \omega_{ij} \sim \hat C, \quad b_{ij} \sim \mathcal{U}(0, 2\pi).

    Frequencies and phases are both noise, so mean and covariance are exact and stationary for any number of
    features, at any points, without an eigenproblem. The field is Gaussian only in the limit: its kurtosis at
    a point is ``3 - 1.5 / num_features``. For coefficients as inputs use :class:`FixedFourierFeatures`.

    Args:
        covariance: Covariance of the field.
        points: Where the field is wanted, shape ``(points, dim)``, in the dtype and on the device of the
            output.
        num_features: Number of cosines ``m``, at least 1; 100 or more for nearly Gaussian values.

    Raises:
        ValueError: If shapes or numbers are out of range.
        TypeError: If ``num_features`` is not an integer.

    Example:
        >>> from uq.random_fields import SquaredExponential
        >>> points = torch.linspace(0, 1, 50).unsqueeze(-1)
        >>> field = RandomFourierFeatures(SquaredExponential(0.3), points, num_features=100)
        >>> field(torch.zeros(8, 0), NoiseStream(seed=0, start=0, stop=8)).shape
        torch.Size([8, 50])
        >>> field.kurtosis
        2.985

    References:
        Shinozuka & Deodatis (1991). doi:10.1115/1.3119501
        Rahimi & Recht (2007), algorithm 1.
    """

    covariance: Covariance
    points: Tensor
    num_features: int

    def __post_init__(self) -> None:
        _check_points(self.points, self.num_features)

    @property
    def input_dim(self) -> int:
        """Number of inputs: 0, the field is driven by noise alone."""
        return 0

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of one field: ``(points,)``."""
        return (len(self.points),)

    @property
    def variance(self) -> Tensor:
        """Variance at the points, shape ``(points,)``."""
        return torch.full_like(self.points[:, 0], self.covariance.variance)

    @property
    def kurtosis(self) -> float:
        """Kurtosis at a point: 3 for a Gaussian."""
        return 3 - 1.5 / self.num_features

    def to(self, device: torch.device | str, dtype: torch.dtype) -> "RandomFourierFeatures":
        """The same field computed on ``device`` in ``dtype``."""
        return replace(self, points=self.points.to(device, dtype))

    def __call__(self, inputs: Tensor, noise: NoiseStream) -> Tensor:
        """Fields of samples: inputs ``(n, 0)`` to ``(n, points)``."""
        check_shapes(inputs=(inputs, f"{len(noise)} 0"))
        rows = max(1, BLOCK_ENTRIES // (self.num_features * max(1, len(self.points))))
        parts = [self._rows(noise[first : first + rows]) for first in range(0, len(noise), rows)]
        return torch.cat(parts) if parts else self.points.new_empty(0, len(self.points))

    def _rows(self, noise: NoiseStream) -> Tensor:
        frequencies = self.covariance.frequencies(self.num_features, self.points.shape[1], noise).to(
            self.points
        )
        uniforms = noise.fork("fourier-phases").uniforms(
            self.num_features, purpose=Purpose.FIELD, dtype=self.points.dtype, device=self.points.device
        )
        phases = (2 * math.pi * uniforms).unsqueeze(1)
        for axis in range(self.points.shape[1]):  # by axis: no product whose rounding depends on the batch
            phases = phases + frequencies[..., axis].unsqueeze(1) * self.points[:, axis].unsqueeze(-1)
        return math.sqrt(2 * self.covariance.variance / self.num_features) * torch.cos(phases).sum(-1)


@dataclass(frozen=True, slots=True, eq=False)
class FixedFourierFeatures:
    r"""A Gaussian random field on frequencies drawn once from a seed: a model.

    .. math:: g(x) = \frac{\sigma}{\sqrt m} \sum_{j=1}^{m}
        \bigl(\xi_j \cos(\omega_j\cdot x) + \xi_{m+j} \sin(\omega_j\cdot x)\bigr), \qquad
        \xi_j \sim \mathcal{N}(0, 1).

    Exactly Gaussian and stationary with the exact variance; its covariance is
    :math:`\sigma^2 m^{-1} \sum_j \cos(\omega_j\cdot(x - y))`, which is off the wanted one by
    :math:`O(m^{-1/2})`, the same error in all samples. Coefficients are noise or inputs.

    Args:
        covariance: Covariance that the frequencies sample.
        points: Where the field is wanted, shape ``(points, dim)``, in the dtype and on the device of the
            output.
        num_features: Number of frequencies ``m``, at least 1; the field has ``2 m`` coefficients.
        seed: Seed of the frequencies, in ``[0, 2**64)``.
        coefficients: Whether coefficients are noise or inputs.

    Raises:
        ValueError: If shapes or numbers are out of range.
        TypeError: If ``num_features`` or ``seed`` is not an integer.

    Example:
        >>> from uq.random_fields import Coefficients, Exponential
        >>> field = FixedFourierFeatures(
        ...     Exponential(0.3), torch.zeros(50, 2), 20, seed=0, coefficients=Coefficients.INPUTS)
        >>> field.input_dim
        40

    References:
        Rahimi & Recht (2007), algorithm 1.
    """

    covariance: Covariance
    points: Tensor
    num_features: int
    seed: int
    coefficients: Coefficients

    def __post_init__(self) -> None:
        _check_points(self.points, self.num_features)
        NoiseStream(self.seed, 0, 1)
        if not isinstance(self.coefficients, Coefficients):
            kind = type(self.coefficients).__name__
            raise TypeError(f"`coefficients` must be Coefficients.NOISE or Coefficients.INPUTS; got {kind}.")

    @property
    def input_dim(self) -> int:
        """Number of inputs: ``2 m`` where coefficients are inputs, else 0."""
        return 2 * self.num_features if self.coefficients is Coefficients.INPUTS else 0

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of one field: ``(points,)``."""
        return (len(self.points),)

    @property
    def variance(self) -> Tensor:
        """Variance at the points, shape ``(points,)``."""
        return torch.full_like(self.points[:, 0], self.covariance.variance)

    def to(self, device: torch.device | str, dtype: torch.dtype) -> "FixedFourierFeatures":
        """The same field computed on ``device`` in ``dtype``."""
        return replace(self, points=self.points.to(device, dtype))

    def field(self, coefficients: Tensor) -> Tensor:
        """Fields of given coefficients ``(n, 2 m)``: shape ``(n, points)``, differentiable in them."""
        check_shapes(coefficients=(coefficients, f"n {2 * self.num_features}"))
        features = self._features()
        return coefficients.to(features) @ features.mT

    def _features(self) -> Tensor:
        """The field of each coefficient, shape ``(points, 2 m)``."""
        stream = NoiseStream(self.seed, 0, 1)
        frequencies = self.covariance.frequencies(self.num_features, self.points.shape[1], stream)[0]
        phases = self.points @ frequencies.to(self.points).mT
        scale = math.sqrt(self.covariance.variance / self.num_features)
        return torch.cat([phases.cos(), phases.sin()], -1) * scale

    def __call__(self, inputs: Tensor, noise: NoiseStream) -> Tensor:
        """Fields of samples: inputs ``(n, input_dim)`` to ``(n, points)``."""
        check_shapes(inputs=(inputs, f"{len(noise)} {self.input_dim}"))
        features, values = self._features(), inputs
        if self.coefficients is Coefficients.NOISE:
            kind = {"dtype": features.dtype, "device": features.device}
            values = noise.normals(2 * self.num_features, purpose=Purpose.FIELD, **kind)
        return evaluate_in_blocks(lambda rows: rows @ features.mT, noise, values.to(features))
