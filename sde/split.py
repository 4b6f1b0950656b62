"""Equations that fall into parts with known solutions."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from sde.equation import Calculus, NoiseStructure

__all__ = ["Flow", "NoiseFlow", "Split"]

Flow = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Solution of a deterministic part: time at the start, state ``(n, *shape)`` and span to the state there."""
NoiseFlow = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""Solution of the stochastic part: time, state, span and increment of the Wiener processes to the state."""


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    r"""An equation as the sum of parts that are solved one at a time.

    .. math::

        \mathrm dX = \sum_{i \ge 1} f_i(t, X)\,\mathrm dt
            + \bigl(f_0(t, X)\,\mathrm dt + g(t, X)\,\mathrm dW\bigr)

    The caller gives the flow of each :math:`\dot X = f_i(t, X)`, and that of the part in brackets as a
    function of the increment: geometric Brownian motion, an Ornstein--Uhlenbeck process. Where the solution
    depends on more of the path than its increment, a flow that is exact in law serves: for Ornstein and
    Uhlenbeck :math:`e^{-a h} x + \sqrt{(1 - e^{-2ah}) / (2ah)}\,\sigma\,\Delta W`.

    Args:
        flows: Of the deterministic parts, in the order in which they are taken; at least one.
        noise_flow: Of the part with noise.
        noise_dim: Number ``m`` of Wiener processes; increments then have the shape ``(n, m)``. ``None``: one
            process for each component of the state, and increments of its shape.
        parameters: As for :class:`sde.SDE`.

    Raises:
        ValueError: If there is no flow, or ``noise_dim`` is below 1.
        TypeError: If a flow cannot be called.

    Example:
        >>> cubic = lambda t, x, h: x / (1 + 2 * h * x**2).sqrt()  # of -x**3
        >>> geometric = lambda t, x, h, w: x * w.exp()  # of x / 2 dt + x dW
        >>> Split((cubic,), geometric).channels((3,))
        3

    References:
        McLachlan & Quispel (2002), Splitting methods. doi:10.1017/S0962492902000053
    """

    flows: tuple[Flow, ...]
    noise_flow: NoiseFlow
    noise_dim: int | None = None
    parameters: tuple[Tensor, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "flows", tuple(self.flows))
        if not self.flows:
            raise ValueError("`flows` must hold at least one flow; got none.")
        for name, flow in (*(("flows", flow) for flow in self.flows), ("noise_flow", self.noise_flow)):
            if not callable(flow):
                raise TypeError(f"`{name}` must be callable; got {type(flow).__name__}.")
        if self.noise_dim is not None and (not isinstance(self.noise_dim, int) or self.noise_dim < 1):
            raise ValueError(f"`noise_dim` must be an integer of at least 1; got {self.noise_dim}.")

    @property
    def structure(self) -> NoiseStructure:
        """Diagonal, or commutative: only such noise has a flow that depends on the increment alone."""
        return NoiseStructure.DIAGONAL if self.noise_dim is None else NoiseStructure.COMMUTATIVE

    @property
    def calculus(self) -> Calculus:
        """That of Ito by name; the noise flow has its correction in it."""
        return Calculus.ITO

    def channels(self, state_shape: tuple[int, ...]) -> int:
        """Number of Wiener processes for a state of this shape, without the axis of samples."""
        return math.prod(state_shape) if self.noise_dim is None else self.noise_dim

    def arrange(self, increments: Tensor, state_shape: tuple[int, ...]) -> Tensor:
        """Increments ``(..., channels)`` in the shape that the noise flow takes."""
        return increments if self.noise_dim is not None else increments.unflatten(-1, state_shape)

    def checked(self) -> "Split":
        """The same equation with flows that check what they return, for a first step."""

        def noise_flow(time: Tensor, state: Tensor, span: Tensor, increment: Tensor) -> Tensor:
            return _check("noise_flow", self.noise_flow(time, state, span, increment), state)

        return replace(self, flows=tuple(map(_checked, self.flows)), noise_flow=noise_flow)


def _checked(flow: Flow) -> Flow:
    """A flow that raises where its value does not fit the state."""
    return lambda time, state, span: _check("flows", flow(time, state, span), state)


def _check(name: str, value: Tensor, state: Tensor) -> Tensor:
    """The value of a flow, if it is like the state."""
    if not isinstance(value, Tensor) or value.shape != state.shape or value.dtype != state.dtype:
        given = f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value)
        raise ValueError(f"`{name}` must return {state.dtype} of shape {tuple(state.shape)}; got {given}.")
    return value
