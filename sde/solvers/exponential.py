r"""Exponential schemes for semilinear equations: the linear part is exact, however stiff.

The noise of a step, :math:`\xi = \int e^{-A (h - s)} g\,\mathrm dW_s`, is taken of the path's projection on
what the scheme knows of it, W, or W and H:

.. math::

    \hat\xi = C_0\,g W + C_1\,g H, \qquad C_0 = \int_0^1 e^{-A h y}\,\mathrm dy, \quad
    C_1 = 12 \int_0^1 \bigl(y - \tfrac12\bigr) e^{-A h y}\,\mathrm dy,

its conditional mean. Where :math:`A h` is large that misses most of the variance, which comes from the end of
the step. So it is multiplied by :math:`Q^{1/2} P^{-1/2}`, where :math:`h Q` is the covariance of :math:`\xi`
for :math:`g = I` and :math:`h P` that of :math:`\hat\xi`. The result is a function of the path and has the
law of :math:`\xi` where ``A`` is diagonal and each component has its own noise, or ``g`` is a multiple of the
identity. In mean square the change is at most what the projection left out (Powers and Stormer), so the
strong order is that of the projection.

The operators are computed in float64 and carried from step to step while the steps are equal.

References:
    Hochbruck & Ostermann (2010), Exponential integrators, section 2. doi:10.1017/S0962492910000048
    Lord, Powell & Shardlow (2014), section 10.6. doi:10.1017/CBO9781139017329
    Powers & Stormer (1970), lemma 4.1. doi:10.1007/BF01645492
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sde.equation import Calculus, NoiseStructure
from sde.noise.increments import Areas, Increment, Law
from sde.semilinear import LinearFlow, Semilinear, apply
from sde.solvers.interface import Orders, orders

__all__ = ["ExponentialEuler", "ExponentialSRA1"]

Operators = tuple[Tensor, ...]

_EQUAL = 1e-11  # relative difference of steps that are equal but for the rounding of the grid


class _ExponentialScheme:
    """Base of the schemes of this file, which carry the state, the last step and its operators."""

    __slots__ = ()
    equation: ClassVar[type] = Semilinear
    calculus: ClassVar[Calculus] = Calculus.ITO
    law: ClassVar[Law] = Law.NORMAL

    def start(self, sde: Semilinear, time: Tensor, state: Tensor) -> tuple[Tensor, ...]:
        """The state."""
        return (state,)

    def read(self, carry: tuple[Tensor, ...]) -> Tensor:
        """The state ``(n, *shape)``."""
        return carry[0]


@dataclass(frozen=True, slots=True)
class ExponentialEuler(_ExponentialScheme):
    r"""Exponential Euler: the linear equation that is left when ``f`` and ``g`` are frozen, solved exactly.

    .. math:: X_{k+1} = e^{-A h} X_k + h\,\varphi_1(-A h)\,f(t_k, X_k) + Q^{1/2}\,g(t_k, X_k)\,\Delta W_k,
              \qquad Q = \int_0^1 e^{-A h y} e^{-A^T h y}\,\mathrm dy

    with the symmetric root, turned towards :math:`\varphi_1` where that is not symmetric positive. Strong
    order 1/2, and 1 for additive noise; weak order 1. For the equation :math:`\mathrm dX = -a X\,\mathrm dt +
    b X\,\mathrm dW` the mean square decays where that of the solution does, for every step.

    Example:
        >>> from sde import SDE, NoiseStream, Semilinear, solve
        >>> noise = SDE(lambda t, x: 0 * x, lambda t, x: torch.ones_like(x), NoiseStructure.ADDITIVE)
        >>> stiff = Semilinear(torch.tensor(1e6), noise)
        >>> times, start = torch.tensor([0.0, 0.1]), torch.full((4, 1), 3.0)
        >>> path = solve(stiff, start, times, NoiseStream(0, 0, 4), solver=ExponentialEuler())
        >>> bool((path[:, -1].abs() < 0.01).all())
        True

    References:
        Jentzen & Kloeden (2009), Overcoming the order barrier in the numerical approximation of stochastic
        partial differential equations with additive space-time noise, equation 16. doi:10.1098/rspa.2008.0325
    """

    areas: ClassVar[Areas] = Areas.NONE
    orders: ClassVar[Mapping[NoiseStructure, Orders]] = orders(
        none=(1.0, 1.0),
        diagonal=(0.5, 1.0),
        scalar=(0.5, 1.0),
        additive=(1.0, 1.0),
        commutative=(0.5, 1.0),
        general=(0.5, 1.0),
    )

    def step(
        self, sde: Semilinear, time: Tensor, carry: tuple[Tensor, ...], dt: Tensor, increment: Increment
    ) -> tuple[Tensor, ...]:
        """What is carried to ``time + dt``."""
        state, rest, operators = carry[0], sde.rest, _operators(_euler_operators, sde, carry, dt)
        decay, response, spread = operators
        noise = rest.product(rest.diffusion(time, state), increment.wiener).expand_as(state)
        moved = apply(decay, state) + apply(response, rest.drift(time, state)) + apply(spread, noise)
        return (moved, dt, *operators)


@dataclass(frozen=True, slots=True)
class ExponentialSRA1(_ExponentialScheme):
    r"""Exponential counterpart of :class:`sde.solvers.SRA1`, for additive noise: strong order 3/2.

    .. math::

        U &= e^{-\frac34 A h} X_k + \tfrac34 h\,\varphi_1(-\tfrac34 A h)\,f(t_k, X_k)
            + \tfrac32 \varphi_1(-\tfrac34 A h)\,g\,(\tfrac12 W + H), \\
        X_{k+1} &= e^{-A h} X_k + h\,(\varphi_1 - \tfrac43 \varphi_2)\,f(t_k, X_k)
            + \tfrac43 h\,\varphi_2\,f(t_k + \tfrac34 h, U) + \xi

    with the functions of :math:`-A h` where nothing is said, and :math:`\xi` the noise of the step of
    :mod:`sde.solvers.exponential`, a diffusion that changes with time taken linear in the step; in the stage
    it is that of the end. Two evaluations of drift and of diffusion; strong order 2 where ``f`` is linear.
    For :math:`A = 0` it is SRA1.
    """

    areas: ClassVar[Areas] = Areas.SPACE_TIME
    orders: ClassVar[Mapping[NoiseStructure, Orders]] = orders(none=(2.0, 2.0), additive=(1.5, 2.0))

    def step(
        self, sde: Semilinear, time: Tensor, carry: tuple[Tensor, ...], dt: Tensor, increment: Increment
    ) -> tuple[Tensor, ...]:
        """What is carried to ``time + dt``."""
        state, rest, operators = carry[0], sde.rest, _operators(_sra1_operators, sde, carry, dt)
        part, push, decay, early, late, spread, bend = operators
        wiener, area = increment.wiener, increment.space_time
        assert area is not None  # the scheme asks for it
        before, after = rest.diffusion(time, state), rest.diffusion(time + dt, state)
        first = rest.drift(time, state)
        shift = 0.75 * dt * first + 1.5 * rest.product(after, 0.5 * wiener + area)
        stage = apply(part, state) + apply(push, shift)
        second = rest.drift(time + 0.75 * dt, stage)
        noise = rest.product(before, 0.5 * wiener + area) + rest.product(after, 0.5 * wiener - area)
        moved = apply(decay, state) + apply(early, first) + apply(late, second)
        moved = moved + apply(spread, noise.expand_as(state))
        moved = moved + apply(bend, rest.product(before, area).expand_as(state))
        return (moved, dt, *operators)


def _operators(
    compute: Callable[[Semilinear, Tensor], Operators],
    sde: Semilinear,
    carry: tuple[Tensor, ...],
    dt: Tensor,
) -> Operators:
    """Those that are carried, or those of a step of another size, in the type of the state."""
    state, *known = carry
    if known and not dt.requires_grad and bool((known[0] - dt).abs() <= _EQUAL * dt):
        return tuple(known[1:])
    return tuple(part.to(state) for part in compute(sde, dt))


def _euler_operators(sde: Semilinear, dt: Tensor) -> Operators:
    """Of the state, the drift and the noise."""
    flow = sde.flow(dt)
    return flow.decay, flow.mean * dt, *_noise(flow, (flow.mean,))


def _sra1_operators(sde: Semilinear, dt: Tensor) -> Operators:
    """Of state and drift in the stage; of state, both drifts, W and H in the step."""
    flow, stage = sde.flow(dt), sde.flow(0.75 * dt)
    late = (4 / 3) * dt * (flow.mean - flow.moment)
    noise = _noise(flow, (flow.mean, 12 * flow.moment - 6 * flow.mean))
    return stage.decay, stage.mean, flow.decay, dt * flow.mean - late, late, *noise


def _noise(flow: LinearFlow, projection: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Operators of W, and of H if the projection has it, scaled to the covariance of the exact noise."""
    norms = (1.0, 1 / 12)[: len(projection)]  # squared norms of the path's modes over a unit step
    pairs = list(zip(norms, projection, strict=True))
    if flow.energy.dim() < 2:
        captured = torch.stack([norm * c * c for norm, c in pairs]).sum(0)
        scale = (flow.energy / captured).sqrt()
        return tuple(scale * c for c in projection)
    captured = torch.stack([norm * c @ c.mT for norm, c in pairs]).sum(0)
    scale = torch.linalg.solve(_symmetric_root(captured), _symmetric_root(flow.energy), left=False)
    return tuple(scale @ c for c in projection)


def _symmetric_root(matrix: Tensor) -> Tensor:
    """Square root of a symmetric positive matrix, with its first derivative for any eigenvalues.

    The derivative solves ``S dS + dS S = dM``, which is diagonal in the basis of the eigenvectors; theirs
    does not exist where eigenvalues coincide.
    """
    values, vectors = torch.linalg.eigh(matrix.detach())
    roots = values.clamp(min=torch.finfo(values.dtype).tiny).sqrt()
    change = vectors.mT @ (matrix - matrix.detach()) @ vectors / (roots[:, None] + roots)
    return vectors @ (torch.diag(roots) + change) @ vectors.mT
