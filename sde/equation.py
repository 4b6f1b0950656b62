"""Stochastic differential equations: drift, diffusion, and what the noise looks like."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum

from torch import Tensor

__all__ = ["SDE", "Calculus", "Coefficient", "NoiseStructure"]

Coefficient = Callable[[Tensor, Tensor], Tensor]
"""Drift or diffusion: time (0-d tensor) and state ``(n, d)`` to a tensor. Parameters live in its closure."""


class Calculus(Enum):
    """How the stochastic integral is meant."""

    ITO = "Ito"
    STRATONOVICH = "Stratonovich"


class NoiseStructure(Enum):
    """How the Wiener processes enter the equation."""

    DIAGONAL = "diagonal"  #: one Wiener process per component; diffusion ``(n, d)``
    SCALAR = "scalar"  #: one Wiener process for all components; diffusion ``(n, d)``
    ADDITIVE = (
        "additive"  #: independent of the state; diffusion ``(n, d)``, or ``(n, d, m)`` with ``noise_dim=m``
    )
    GENERAL = "general"  #: ``m`` Wiener processes; diffusion ``(n, d, m)`` with ``noise_dim=m``


@dataclass(frozen=True, slots=True)
class SDE:
    r"""A stochastic differential equation.

    .. math:: \mathrm{d}X_t = f(t, X_t)\,\mathrm{d}t + g(t, X_t)\,\mathrm{d}W_t

    Row ``i`` of drift and diffusion may depend on row ``i`` of the state only: samples are independent. Both
    may return one row, ``(1, d)`` or ``(1, d, m)``, that holds for every sample, where they ignore the
    state.

    Args:
        drift: ``f``; time, a 0-d tensor, and state ``(n, d)`` to ``(n, d)``.
        diffusion: ``g``; shape ``(n, d)`` or ``(n, d, m)``, by ``structure``.
        structure: How the Wiener processes enter.
        calculus: In which calculus the equation is written; for additive noise there is no difference.
        noise_dim: Number ``m`` of Wiener processes where the diffusion is a matrix; ``None`` otherwise.

    Raises:
        ValueError: If ``noise_dim`` does not fit ``structure``.
        TypeError: If drift or diffusion cannot be called, or an enum is something else.

    Example:
        >>> ou = SDE(drift=lambda t, x: -x, diffusion=lambda t, x: torch.ones_like(x))
        >>> ou.structure.value, ou.channels(3)
        ('diagonal', 3)

    References:
        Kloeden & Platen (1992), sections 4.5 and 4.9. doi:10.1007/978-3-662-12616-5
    """

    drift: Coefficient
    diffusion: Coefficient
    structure: NoiseStructure = NoiseStructure.DIAGONAL
    calculus: Calculus = Calculus.ITO
    noise_dim: int | None = None

    def __post_init__(self) -> None:
        for name in ("drift", "diffusion"):
            if not callable(getattr(self, name)):
                raise TypeError(f"`{name}` must be callable; got {type(getattr(self, name)).__name__}.")
        for name, enum in (("structure", NoiseStructure), ("calculus", Calculus)):
            if not isinstance(getattr(self, name), enum):
                raise TypeError(f"`{name}` must be a {enum.__name__}; got {getattr(self, name)!r}.")
        if self.structure is NoiseStructure.GENERAL and self.noise_dim is None:
            raise ValueError("`noise_dim` must be given for general noise; got None.")
        if self.structure in (NoiseStructure.DIAGONAL, NoiseStructure.SCALAR) and self.noise_dim is not None:
            raise ValueError(
                f"`noise_dim` must be None for {self.structure.value} noise; got {self.noise_dim}."
            )
        if self.noise_dim is not None and (not isinstance(self.noise_dim, int) or self.noise_dim < 1):
            raise ValueError(f"`noise_dim` must be an integer of at least 1; got {self.noise_dim}.")

    def channels(self, state_dim: int) -> int:
        """Number of Wiener processes for a state of ``state_dim`` components."""
        if self.noise_dim is not None:
            return self.noise_dim
        return 1 if self.structure is NoiseStructure.SCALAR else state_dim

    def product(self, diffusion: Tensor, increment: Tensor) -> Tensor:
        """Diffusion ``(n, d)`` or ``(n, d, m)`` times Wiener increment ``(n, channels)``: ``(n, d)``."""
        if self.noise_dim is None:
            return diffusion * increment
        return (diffusion @ increment.unsqueeze(-1)).squeeze(-1)

    def checked(self) -> "SDE":
        """The same equation with drift and diffusion that check what they return, for a first step."""
        axes = () if self.noise_dim is None else (self.noise_dim,)
        return replace(
            self,
            drift=_checked("drift", self.drift, ()),
            diffusion=_checked("diffusion", self.diffusion, axes),
        )


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
