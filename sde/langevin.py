"""Underdamped Langevin dynamics."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from sde.equation import SDE, Calculus, NoiseStructure

__all__ = ["Langevin"]


@dataclass(frozen=True, slots=True)
class Langevin:
    r"""Underdamped Langevin dynamics of positions and velocities.

    .. math::

        \mathrm dx = v\,\mathrm dt, \qquad
        \mathrm dv = -\gamma v\,\mathrm dt - u \nabla U(x)\,\mathrm dt + \sqrt{2 \gamma u}\,\mathrm dW

    whose invariant law has the density :math:`\exp(-U(x) - |v|^2 / (2 u))`. The state has the shape
    ``(n, 2, *shape)``: positions, then velocities.

    Args:
        gradient: Gradient of the potential ``U``: positions ``(n, *shape)`` to ``(n, *shape)``.
        friction: The friction :math:`\gamma`, positive, one over time.
        inverse_mass: The factor ``u``, positive: temperature over mass.
        parameters: As for :class:`sde.SDE`.

    Raises:
        ValueError: If a constant is not positive.
        TypeError: If ``gradient`` cannot be called.

    Example:
        >>> harmonic = Langevin(lambda x: x, friction=1.0)
        >>> harmonic.channels((2, 3))
        3

    References:
        Pavliotis (2014), Stochastic Processes and Applications, chapter 6. doi:10.1007/978-1-4939-1323-7
    """

    gradient: Callable[[Tensor], Tensor]
    friction: float = 1.0
    inverse_mass: float = 1.0
    parameters: tuple[Tensor, ...] | None = field(default=None, compare=False, repr=False)
    structure: NoiseStructure = field(default=NoiseStructure.ADDITIVE, init=False, repr=False)
    calculus: Calculus = field(default=Calculus.ITO, init=False, repr=False)

    def __post_init__(self) -> None:
        if not callable(self.gradient):
            raise TypeError(f"`gradient` must be callable; got {type(self.gradient).__name__}.")
        for name in ("friction", "inverse_mass"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"`{name}` must be positive and finite; got {getattr(self, name)}.")
        if self.parameters is None:
            found = tuple(self.gradient.parameters()) if isinstance(self.gradient, nn.Module) else ()
            object.__setattr__(self, "parameters", found)

    @property
    def noise_size(self) -> float:
        """Size of the noise in the velocities, ``sqrt(2 * friction * inverse_mass)``."""
        return math.sqrt(2 * self.friction * self.inverse_mass)

    def channels(self, state_shape: tuple[int, ...]) -> int:
        """One Wiener process for each component of the velocity."""
        if state_shape[0] != 2:
            raise ValueError(
                f"`initial` must have shape (n, 2, ...), positions and velocities; got (n, "
                f"{', '.join(map(str, state_shape))})."
            )
        return math.prod(state_shape[1:])

    def arrange(self, increments: Tensor, state_shape: tuple[int, ...]) -> Tensor:
        """Increments ``(..., channels)`` in the shape of the velocities."""
        return increments.unflatten(-1, state_shape[1:])

    def checked(self) -> "Langevin":
        """The same equation with a gradient that checks what it returns."""

        def gradient(x: Tensor) -> Tensor:
            value = self.gradient(x)
            if not isinstance(value, Tensor) or value.shape != x.shape or value.dtype != x.dtype:
                given = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(f"`gradient` must return {x.dtype} of shape {tuple(x.shape)}; got {given}.")
            return value

        return replace(self, gradient=gradient)

    def as_sde(self) -> SDE:
        """The same process for solvers of general equations: additive noise, state ``(n, 2, d)``.

        Its diffusion is a matrix with one column for each velocity, of states ``(n, 2, d)``.
        """

        def drift(time: Tensor, state: Tensor) -> Tensor:
            x, v = state.unbind(1)
            return torch.stack((v, -self.friction * v - self.inverse_mass * self.gradient(x)), 1)

        def diffusion(time: Tensor, state: Tensor) -> Tensor:
            size = torch.tensor([0.0, self.noise_size], dtype=state.dtype, device=state.device)
            return size[:, None].expand(state.shape)

        # One process per component of the state; those of the positions have no effect.
        return SDE(drift, diffusion, NoiseStructure.ADDITIVE, parameters=self.parameters)
