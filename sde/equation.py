"""Stochastic differential equations: drift, diffusion, and what the noise looks like."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Protocol

from torch import Tensor, nn

__all__ = ["SDE", "Calculus", "Coefficient", "Equation", "NoiseStructure", "ode"]

Coefficient = Callable[[Tensor, Tensor], Tensor]
"""Drift or diffusion: time (0-d) and state ``(n, *shape)`` to a tensor. Parameters live in its closure."""


class Calculus(Enum):
    """How the stochastic integral is meant."""

    ITO = "Ito"
    STRATONOVICH = "Stratonovich"


class NoiseStructure(Enum):
    """How the Wiener processes enter the equation; states have the shape ``(n, *shape)``."""

    NONE = "no"  #: an ordinary differential equation
    DIAGONAL = "diagonal"  #: one process per component, which its diffusion alone depends on; ``(n, *shape)``
    SCALAR = "scalar"  #: one process for all components; diffusion ``(n, *shape)``
    ADDITIVE = (
        "additive"  #: independent of the state; ``(n, *shape)``, or ``(n, *shape, m)`` with ``noise_dim=m``
    )
    COMMUTATIVE = (
        "commutative"  #: ``m`` processes whose vector fields commute; ``(n, *shape, m)`` with ``noise_dim=m``
    )
    GENERAL = "general"  #: ``m`` processes; diffusion ``(n, *shape, m)`` with ``noise_dim=m``


_MATRIX = (NoiseStructure.COMMUTATIVE, NoiseStructure.GENERAL)


class Equation(Protocol):
    """What can be solved: an :class:`SDE`, or an equation of a special form with solvers of its own."""

    @property
    def structure(self) -> NoiseStructure:
        """How the Wiener processes enter."""
        ...

    @property
    def calculus(self) -> Calculus:
        """In which calculus the equation is written."""
        ...

    @property
    def parameters(self) -> tuple[Tensor, ...] | None:
        """What gradients that do not keep the graph differentiate with respect to."""
        ...

    def channels(self, state_shape: tuple[int, ...], /) -> int:
        """Number of Wiener processes for a state of this shape, without the axis of samples."""
        ...

    def arrange(self, increments: Tensor, state_shape: tuple[int, ...], /) -> Tensor:
        """Increments ``(..., channels)`` in the shape that the solvers of this equation take."""
        ...

    def checked(self) -> "Equation":
        """The same equation, with functions that check what they return, for a first step."""
        ...


@dataclass(frozen=True, slots=True)
class SDE:
    r"""A stochastic differential equation.

    .. math:: \mathrm{d}X_t = f(t, X_t)\,\mathrm{d}t + g(t, X_t)\,\mathrm{d}W_t

    Row ``i`` of drift and diffusion may depend on row ``i`` of the state only: samples are independent. Both
    may return one row, of leading size 1, that holds for every sample, where they ignore the state.

    The structure is a promise of the caller; :func:`sde.checks.check_structure` tests it at a state.

    Args:
        drift: ``f``; time, a 0-d tensor, and state ``(n, *shape)`` to ``(n, *shape)``.
        diffusion: ``g``; shape ``(n, *shape)`` or ``(n, *shape, m)``, by ``structure``.
        structure: How the Wiener processes enter.
        calculus: In which calculus the equation is written; for additive noise there is no difference.
        noise_dim: Number ``m`` of Wiener processes where the diffusion is a matrix; ``None`` otherwise.
        parameters: What the equation is differentiated with respect to by gradients that do not keep the
            graph (reversible and adjoint); ``None`` takes the parameters of drift and diffusion where they
            are modules.

    Raises:
        ValueError: If ``noise_dim`` does not fit ``structure``.
        TypeError: If drift or diffusion cannot be called, or an enum is something else.

    Example:
        >>> ou = SDE(drift=lambda t, x: -x, diffusion=lambda t, x: torch.ones_like(x))
        >>> ou.structure.value, ou.channels((3,))
        ('diagonal', 3)

    References:
        Kloeden & Platen (1992), sections 4.5 and 4.9. doi:10.1007/978-3-662-12616-5
    """

    drift: Coefficient
    diffusion: Coefficient
    structure: NoiseStructure = NoiseStructure.DIAGONAL
    calculus: Calculus = Calculus.ITO
    noise_dim: int | None = None
    parameters: tuple[Tensor, ...] | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("drift", "diffusion"):
            if not callable(getattr(self, name)):
                raise TypeError(f"`{name}` must be callable; got {type(getattr(self, name)).__name__}.")
        for name, enum in (("structure", NoiseStructure), ("calculus", Calculus)):
            if not isinstance(getattr(self, name), enum):
                raise TypeError(f"`{name}` must be a {enum.__name__}; got {getattr(self, name)!r}.")
        if self.structure in _MATRIX and self.noise_dim is None:
            raise ValueError(f"`noise_dim` must be given for {self.structure.value} noise; got None.")
        if self.structure not in (*_MATRIX, NoiseStructure.ADDITIVE) and self.noise_dim is not None:
            raise ValueError(
                f"`noise_dim` must be None for {self.structure.value} noise; got {self.noise_dim}."
            )
        if self.noise_dim is not None and (not isinstance(self.noise_dim, int) or self.noise_dim < 1):
            raise ValueError(f"`noise_dim` must be an integer of at least 1; got {self.noise_dim}.")
        if self.parameters is None:
            modules = [part for part in (self.drift, self.diffusion) if isinstance(part, nn.Module)]
            found = {id(p): p for module in modules for p in module.parameters()}
            object.__setattr__(self, "parameters", tuple(found.values()))

    def channels(self, state_shape: tuple[int, ...]) -> int:
        """Number of Wiener processes for a state of this shape, without the axis of samples."""
        if self.noise_dim is not None:
            return self.noise_dim
        if self.structure is NoiseStructure.NONE:
            return 0
        return 1 if self.structure is NoiseStructure.SCALAR else math.prod(state_shape)

    def arrange(self, increments: Tensor, state_shape: tuple[int, ...]) -> Tensor:
        """Increments ``(..., channels)`` in the shape that :meth:`product` takes."""
        if self.structure is NoiseStructure.NONE or self.noise_dim is not None or len(state_shape) == 1:
            return increments
        if self.structure is NoiseStructure.SCALAR:
            return increments.unflatten(-1, (1,) * len(state_shape))
        return increments.unflatten(-1, state_shape)

    def product(self, diffusion: Tensor, increment: Tensor) -> Tensor:
        """Diffusion times an increment or area of the Wiener processes: ``(n, *shape)``."""
        if self.structure is NoiseStructure.NONE:
            return diffusion
        if self.noise_dim is None:
            return diffusion * increment
        if diffusion.dim() > 3:
            increment = increment.unflatten(-1, (*(1,) * (diffusion.dim() - 3), -1))
        if len(diffusion) == 1 and diffusion.dim() == 3:  # one matrix for all samples: one product
            return increment @ diffusion[0].mT
        return (diffusion @ increment.unsqueeze(-1)).squeeze(-1)

    def checked(self) -> "SDE":
        """The same equation with drift and diffusion that check what they return, for a first step."""
        axes = () if self.noise_dim is None else (self.noise_dim,)
        diffusion = self.diffusion
        if self.structure is not NoiseStructure.NONE:
            diffusion = _checked("diffusion", diffusion, axes)
        return replace(self, drift=_checked("drift", self.drift, ()), diffusion=diffusion)


def ode(drift: Coefficient, parameters: tuple[Tensor, ...] | None = None) -> SDE:
    r"""An ordinary differential equation :math:`\dot X = f(t, X)`, for the same solvers.

    Every scheme of this package becomes its deterministic counterpart where the diffusion is zero.

    Args:
        drift: ``f``; time and state ``(n, *shape)`` to ``(n, *shape)``.
        parameters: As for :class:`SDE`.

    Returns:
        The equation, of structure :attr:`NoiseStructure.NONE`.

    Example:
        >>> ode(lambda t, x: -x).channels((3,))
        0
    """
    return SDE(drift, _no_diffusion, NoiseStructure.NONE, parameters=parameters)


def _no_diffusion(time: Tensor, state: Tensor) -> Tensor:
    """Zero."""
    return state.new_zeros(())


def _checked(name: str, coefficient: Coefficient, axes: tuple[int, ...]) -> Coefficient:
    """A coefficient that raises a clear error where its value does not fit the state."""

    def call(time: Tensor, state: Tensor) -> Tensor:
        value = coefficient(time, state)
        if not isinstance(value, Tensor):
            raise TypeError(f"`{name}` must return a tensor; got {type(value).__name__}.")
        expected = (*state.shape, *axes)
        if tuple(value.shape) not in (expected, (1, *expected[1:])):
            raise ValueError(f"`{name}` must return shape {expected}; got {tuple(value.shape)}.")
        if value.dtype != state.dtype or value.device != state.device:
            raise ValueError(
                f"`{name}` must return {state.dtype} on {state.device} like the state; "
                f"got {value.dtype} on {value.device}."
            )
        return value

    return call
