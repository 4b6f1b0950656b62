"""Fields made from Gaussian fields: windows and the lognormal transform."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sde.noise import NoiseStream
from sde.shapes import check_shapes

__all__ = ["GaussianField", "Lognormal", "Windowed", "box_window"]


class GaussianField(Protocol):
    """A model of centred (nearly) Gaussian fields that knows its variance at each point."""

    @property
    def input_dim(self) -> int:
        """Number of inputs."""
        ...

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of one field: ``(points,)``."""
        ...

    @property
    def variance(self) -> Tensor:
        """Variance at the points, shape ``(points,)``."""
        ...

    def __call__(self, inputs: Tensor, noise: NoiseStream) -> Tensor:
        """Fields of samples: inputs ``(n, input_dim)`` to ``(n, points)``."""
        ...


def box_window(points: Tensor, lower: Sequence[float], upper: Sequence[float], width: float) -> Tensor:
    r"""Smooth window: 0 in a box, 1 at a distance ``width`` from it and beyond.

    .. math:: w = s^2 (3 - 2 s), \qquad s = \min(1, \mathrm{dist}(x, \text{box}) / \text{width}).

    Args:
        points: Shape ``(points, dim)``.
        lower: Smallest coordinates of the box, ``dim`` numbers.
        upper: Largest coordinates of the box, ``dim`` numbers, at least ``lower``.
        width: Width of the transition [unit of the coordinates]; positive.

    Returns:
        Window in [0, 1], shape ``(points,)``.

    Raises:
        ValueError: If shapes disagree, the box is empty or the width is not positive.

    Example:
        >>> points = torch.tensor([[0.5, 0.5], [1.1, 0.5], [1.3, 0.5]])
        >>> box_window(points, (0.0, 0.0), (1.0, 1.0), 0.2)
        tensor([0.0000, 0.5000, 1.0000])
    """
    low, high = (
        torch.tensor(tuple(corner), dtype=points.dtype, device=points.device) for corner in (lower, upper)
    )
    check_shapes(points=(points, "points dim"), lower=(low, "dim"), upper=(high, "dim"))
    if not (low <= high).all():
        raise ValueError(
            f"`lower` must be at most `upper` on each axis; got {tuple(lower)} and {tuple(upper)}."
        )
    if not width > 0:
        raise ValueError(f"`width` must be positive; got {width}.")
    distance = (points - points.clamp(low, high)).norm(dim=-1)
    step = (distance / width).clamp(max=1.0)
    return step.square() * (3 - 2 * step)


@dataclass(frozen=True, slots=True, eq=False)
class Windowed:
    """A Gaussian field times a deterministic window: still Gaussian, no longer stationary.

    Args:
        gaussian: The field.
        window: Factor at each point, shape ``(points,)``; see :func:`box_window`.

    Raises:
        ValueError: If the window does not fit the field or is not finite.

    Example:
        >>> from uq.random_fields import RandomFourierFeatures, SquaredExponential
        >>> points = torch.tensor([[0.0], [1.0]])
        >>> gaussian = RandomFourierFeatures(SquaredExponential(0.3), points, num_features=10)
        >>> field = Windowed(gaussian, torch.tensor([0.0, 1.0]))
        >>> field.variance
        tensor([0., 1.])
    """

    gaussian: GaussianField
    window: Tensor

    def __post_init__(self) -> None:
        check_shapes(window=(self.window, " ".join(map(str, self.gaussian.output_shape))))
        if not torch.isfinite(self.window).all():
            raise ValueError("`window` must be finite; got NaN or infinity.")

    @property
    def input_dim(self) -> int:
        """Number of inputs of the Gaussian field."""
        return self.gaussian.input_dim

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of one field: ``(points,)``."""
        return self.gaussian.output_shape

    @property
    def variance(self) -> Tensor:
        """Variance at the points, shape ``(points,)``."""
        variance = self.gaussian.variance
        return variance * self.window.to(variance).square()

    def transform(self, values: Tensor) -> Tensor:
        """Windowed values of Gaussian values, shape ``(n, points)``."""
        return values * self.window.to(values)

    def __call__(self, inputs: Tensor, noise: NoiseStream) -> Tensor:
        """Fields of samples: inputs ``(n, input_dim)`` to ``(n, points)``."""
        return self.transform(self.gaussian(inputs, noise))


@dataclass(frozen=True, slots=True, eq=False)
class Lognormal:
    r"""Lognormal field of prescribed mean and coefficient of variation, over a Gaussian field.

    .. math:: E(x) = m \exp\bigl(s\,g(x) - \tfrac12 s^2\,\mathrm{Var}\,g(x)\bigr), \qquad
        s^2 = \log(1 + \mathrm{cov}^2).

    The mean is ``mean`` everywhere, whatever the window or the truncation of ``g``. The coefficient of
    variation is :math:`\sqrt{\exp(s^2\,\mathrm{Var}\,g) - 1}`: ``cov`` where ``g`` has variance 1, and 0
    where a window is 0.

    Args:
        gaussian: Centred Gaussian field; of unit variance away from windows.
        mean: Mean of the field, positive.
        cov: Coefficient of variation (standard deviation over mean), positive.

    Raises:
        ValueError: If ``mean`` or ``cov`` is not positive and finite.

    Example:
        >>> from uq.random_fields import RandomFourierFeatures, SquaredExponential
        >>> gaussian = RandomFourierFeatures(SquaredExponential(0.3), torch.zeros(50, 2), 100)
        >>> modulus = Lognormal(gaussian, mean=210e9, cov=0.2)
        >>> bool((modulus(torch.zeros(8, 0), NoiseStream(0, 0, 8)) > 0).all())
        True

    References:
        Grigoriu (1995), section 3.1.1.
    """

    gaussian: GaussianField
    mean: float
    cov: float

    def __post_init__(self) -> None:
        for name in ("mean", "cov"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"`{name}` must be positive and finite; got {value}.")

    @property
    def input_dim(self) -> int:
        """Number of inputs of the Gaussian field."""
        return self.gaussian.input_dim

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of one field: ``(points,)``."""
        return self.gaussian.output_shape

    def transform(self, values: Tensor) -> Tensor:
        """Lognormal values of Gaussian values, shape ``(n, points)``, differentiable in them."""
        check_shapes(values=(values, f"n {' '.join(map(str, self.output_shape))}"))
        square = math.log1p(self.cov**2)
        return self.mean * torch.exp(
            math.sqrt(square) * values - 0.5 * square * self.gaussian.variance.to(values)
        )

    def __call__(self, inputs: Tensor, noise: NoiseStream) -> Tensor:
        """Fields of samples: inputs ``(n, input_dim)`` to ``(n, points)``."""
        return self.transform(self.gaussian(inputs, noise))
