"""Semilinear equations: a linear drift that is solved exactly, and the rest."""

import math
from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sde.equation import SDE, Calculus, NoiseStructure

__all__ = ["LinearFlow", "Semilinear", "apply"]


class LinearFlow(NamedTuple):
    r"""Integrals of :math:`e^{-A s}` over a span ``h``, as fractions of the span; float64.

    For a diagonal ``A`` they have its shape, for a matrix they are matrices; :math:`y = s/h` in [0, 1].
    """

    decay: Tensor  #: :math:`e^{-A h}`
    mean: Tensor  #: :math:`\varphi_1 = \int e^{-A h y}\,\mathrm dy`
    moment: Tensor  #: :math:`\int y\,e^{-A h y}\,\mathrm dy`, which is :math:`\varphi_1 - \varphi_2`
    energy: (
        Tensor  #: :math:`\int e^{-A h y} e^{-A^T h y}\,\mathrm dy`, the covariance of white noise that decays
    )


@dataclass(frozen=True, slots=True, eq=False)
class Semilinear:
    r"""A linear drift beside an equation.

    .. math:: \mathrm dX = (-A X + f(t, X))\,\mathrm dt + g(t, X)\,\mathrm dW

    Exponential schemes solve the linear part exactly, so it sets no bound on the step, whatever its size.
    ``A`` acts on the last axis of the state.

    Args:
        linear: ``A``: a diagonal, shape ``()`` or ``(d,)``, or a matrix, shape ``(d, d)``; one over time. It
            may have a gradient.
        rest: The equation of ``f`` and ``g``, in the sense of Ito or with additive noise.

    Raises:
        ValueError: If ``linear`` has another shape or is not finite.
        TypeError: If an argument is of another type.

    Example:
        >>> cubic = SDE(lambda t, x: x - x**3, lambda t, x: torch.ones_like(x), NoiseStructure.ADDITIVE)
        >>> stiff = Semilinear(torch.tensor([1.0, 1e6]), cubic)
        >>> stiff.channels((2,))
        2

    References:
        Lord, Powell & Shardlow (2014), An introduction to computational stochastic PDEs, section 10.6.
        doi:10.1017/CBO9781139017329
    """

    linear: Tensor
    rest: SDE

    def __post_init__(self) -> None:
        if not isinstance(self.linear, Tensor) or not self.linear.is_floating_point():
            given = self.linear.dtype if isinstance(self.linear, Tensor) else type(self.linear).__name__
            raise TypeError(f"`linear` must be a floating-point tensor; got {given}.")
        if not isinstance(self.rest, SDE):
            raise TypeError(f"`rest` must be an SDE; got {type(self.rest).__name__}.")
        shape = tuple(self.linear.shape)
        if len(shape) > 2 or (len(shape) == 2 and shape[0] != shape[1]):
            raise ValueError(f"`linear` must have shape (), (d) or (d, d); got {shape}.")
        if not bool(self.linear.isfinite().all()):
            raise ValueError("`linear` must be finite; got NaN or infinite values.")

    @property
    def structure(self) -> NoiseStructure:
        """How the Wiener processes enter."""
        return self.rest.structure

    @property
    def calculus(self) -> Calculus:
        """In which calculus the equation is written."""
        return self.rest.calculus

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """The linear part and the parameters of the rest."""
        return (self.linear, *(self.rest.parameters or ()))

    def channels(self, state_shape: tuple[int, ...]) -> int:
        """Number of Wiener processes for a state of this shape, without the axis of samples."""
        if self.linear.dim() and self.linear.shape[-1] != state_shape[-1]:
            raise ValueError(
                f"`linear` must act on the last axis of the state, of size {state_shape[-1]}; got shape "
                f"{tuple(self.linear.shape)}."
            )
        return self.rest.channels(state_shape)

    def arrange(self, increments: Tensor, state_shape: tuple[int, ...]) -> Tensor:
        """Increments ``(..., channels)`` in the shape that the product with the diffusion takes."""
        return self.rest.arrange(increments, state_shape)

    def checked(self) -> "Semilinear":
        """The same equation with drift and diffusion that check what they return, for a first step."""
        return replace(self, rest=self.rest.checked())

    def as_sde(self) -> SDE:
        """The same process for solvers of general equations."""

        def drift(time: Tensor, state: Tensor) -> Tensor:
            return self.rest.drift(time, state) - apply(self.linear.to(state), state)

        return replace(self.rest, drift=drift, parameters=self.parameters)

    def flow(self, span: Tensor) -> LinearFlow:
        """Integrals of the linear part over a span, a 0-d tensor."""
        linear = self.linear.double() * span.double()
        return _matrix_flow(linear) if linear.dim() == 2 else _diagonal_flow(linear)


def apply(operator: Tensor, state: Tensor) -> Tensor:
    """A diagonal or a matrix applied to the last axis of a state."""
    return state @ operator.mT if operator.dim() == 2 else operator * state


def _diagonal_flow(linear: Tensor) -> LinearFlow:
    """Elementwise, for ``A h``."""
    mean, moment = _phi(linear)
    return LinearFlow((-linear).exp(), mean, moment, _phi(2 * linear)[0])


def _phi(a: Tensor) -> tuple[Tensor, Tensor]:
    """Integrals of ``exp(-a y)`` and ``y exp(-a y)`` over [0, 1]: by quadrature near 0, else closed."""
    small = a.abs() < 1
    near, far = torch.where(small, a, 0.0), torch.where(small, 1.0, a)
    y, weights = (part.to(a.device).view(-1, *(1,) * a.dim()) for part in _nodes())
    values = weights * (-near * y).exp()
    mean = -torch.expm1(-far) / far
    moment = (mean - (-far).exp()) / far
    return torch.where(small, values.sum(0), mean), torch.where(small, (y * values).sum(0), moment)


def _matrix_flow(linear: Tensor) -> LinearFlow:
    """For a matrix ``A h``: quadrature over a span where it is small, doubled up to the whole."""
    norm = float(torch.linalg.matrix_norm(linear.detach(), 1))
    doublings = max(0, math.ceil(math.log2(norm))) if norm > 1 else 0
    small = linear / 2**doublings
    y, weights = (part.to(linear.device)[:, None, None] for part in _nodes())
    values = torch.linalg.matrix_exp(-small * y)
    mean, moment = (weights * values).sum(0), (weights * y * values).sum(0)
    energy = (weights * (values @ values.mT)).sum(0)
    decay = torch.linalg.matrix_exp(-small)
    for _ in range(doublings):
        moment = 0.25 * (moment + decay @ (mean + moment))
        mean = 0.5 * (mean + decay @ mean)
        energy = 0.5 * (energy + decay @ energy @ decay.mT)
        decay = decay @ decay
    return LinearFlow(decay, mean, moment, energy)


@cache
def _nodes() -> tuple[Tensor, Tensor]:
    """Nodes and weights of Gauss and Legendre on [0, 1], exact to rounding for ``exp(-2 y)``."""
    nodes, weights = np.polynomial.legendre.leggauss(10)
    return torch.from_numpy(0.5 * (nodes + 1)), torch.from_numpy(0.5 * weights)
