r"""Schemes for underdamped Langevin dynamics that solve friction and noise exactly.

With :math:`a(s) = (1 - e^{-\gamma s}) / \gamma`, velocity and position without force at the end of a step are

.. math::

    e^{-\gamma h} v + \rho \int e^{-\gamma (h - s)}\,\mathrm dW_s, \qquad
    x + a(h)\,v + \rho \int a(h - s)\,\mathrm dW_s, \qquad \rho = \sqrt{2 \gamma u}.

The integrals are taken of the path's projection on W, H and K, which leaves out :math:`O((\gamma h)^3)` of
the noise of a step; their coefficients come from Gauss--Legendre quadrature, which knows no cancellation for
small steps.

References:
    Foster, Lyons & Oberhauser (2021), The shifted ODE method for underdamped Langevin MCMC. arXiv:2101.03446
    Jelincic, Foster & Kidger (2024), section 4. arXiv:2405.06464
"""

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sde.equation import Calculus, NoiseStructure
from sde.langevin import Langevin
from sde.noise.increments import Areas, Increment, Law
from sde.solvers.interface import Orders, orders

__all__ = ["ALIGN", "BAOAB", "QUICSORT", "UBU", "LangevinState", "ShOULD"]


class LangevinState(NamedTuple):
    """What a scheme carries: positions, velocities, and the gradient there if the scheme starts from it."""

    x: Tensor
    v: Tensor
    gradient: Tensor | None


class _LangevinScheme:
    """Base of the schemes of this file."""

    __slots__ = ()
    equation: ClassVar[type] = Langevin
    calculus: ClassVar[Calculus] = Calculus.ITO
    areas: ClassVar[Areas] = Areas.SPACE_TIME_TIME
    law: ClassVar[Law] = Law.NORMAL
    first_same_as_last: ClassVar[bool] = True

    def start(self, sde: Langevin, time: Tensor, state: Tensor) -> LangevinState:
        """Positions, velocities and, where it is used, the gradient."""
        x, v = state.unbind(1)
        return LangevinState(x, v, sde.gradient(x) if self.first_same_as_last else None)

    def read(self, carry: LangevinState) -> Tensor:
        """The state ``(n, 2, *shape)``."""
        return torch.stack((carry.x, carry.v), 1)


@functools.cache
def _nodes(count: int = 16) -> tuple[list[float], list[float]]:
    """Nodes and weights of Gauss and Legendre on [0, 1]."""
    nodes, weights = np.polynomial.legendre.leggauss(count)
    return (0.5 * (nodes + 1)).tolist(), (0.5 * weights).tolist()


def _relax(friction: float, span: Tensor) -> Tensor:
    """``a(s) = (1 - exp(-friction s)) / friction``."""
    return -torch.expm1(-friction * span) / friction


def _project(
    kernel: Callable[[Tensor], Tensor], dt: Tensor, share: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Coefficients of W, H and K in the integral of a kernel over the first ``share`` of a step.

    The kernel maps positions in the step, in [0, 1], to values; the path's modes are 1, 1/2 - x and
    (x^2 - x + 1/6) / 2, of squared norms 1, 1/12 and 1/720.
    """
    nodes, weights = (torch.tensor(part, dtype=dt.dtype, device=dt.device) for part in _nodes())
    x = share * nodes.view(-1, *(1,) * dt.dim())
    values = share * weights.view(-1, *(1,) * dt.dim()) * kernel(x)
    return (
        values.sum(0),
        12 * (values * (0.5 - x)).sum(0),
        360 * (values * (x * x - x + 1 / 6)).sum(0),
    )


def _position_noise(friction: float, dt: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Coefficients of W, H and K in the integral of ``a(h - s)`` over a step."""
    return _project(lambda x: _relax(friction, dt * (1 - x)), dt)


def _areas(increment: Increment) -> tuple[Tensor, Tensor, Tensor]:
    """W, H and K; a scheme that does not ask for K does not use it."""
    wiener, area, curve = increment[:3]
    assert area is not None  # the schemes ask for it
    return wiener, area, area if curve is None else curve


@dataclass(frozen=True, slots=True)
class BAOAB(_LangevinScheme):
    r"""Kick, drift, friction and noise, drift, kick: weak order 2, and a small error of the invariant law.

    One gradient in a step. The noise of the middle stage has its exact law; strong order 1.

    References:
        Leimkuhler & Matthews (2013), Rational construction of stochastic numerical methods for molecular
        sampling. doi:10.1093/amrx/abs010
    """

    orders: ClassVar[Mapping[NoiseStructure, Orders]] = orders(additive=(1.0, 2.0))

    def step(
        self, sde: Langevin, time: Tensor, carry: LangevinState, dt: Tensor, increment: Increment
    ) -> LangevinState:
        """What is carried to ``time + dt``."""
        x, v, gradient = carry
        assert gradient is not None  # it starts from the gradient
        wiener, area, curve = _areas(increment)
        rate, kick = sde.friction, 0.5 * dt * sde.inverse_mass
        c, d, e = _project(lambda s: (-rate * dt * (1 - s)).exp(), dt)
        variance = -torch.expm1(-2 * rate * dt) / (2 * rate)
        scale = (
            variance / (dt * (c * c + d * d / 12 + e * e / 720))
        ).sqrt()  # what the projection leaves out
        noise = (sde.noise_size * scale) * (c * wiener + d * area + e * curve)
        v = v - kick * gradient
        x = x + 0.5 * dt * v
        v = (-rate * dt).exp() * v + noise
        x = x + 0.5 * dt * v
        gradient = sde.gradient(x)
        return LangevinState(x, v - kick * gradient, gradient)


@dataclass(frozen=True, slots=True)
class UBU(_LangevinScheme):
    r"""Half a step without force, a kick, half a step without force: strong order 2 with one gradient.

    References:
        Sanz-Serna & Zygalakis (2021), Wasserstein distance estimates for the distributions of numerical
        approximations to ergodic stochastic differential equations, section 7. JMLR 22(242)
    """

    orders: ClassVar[Mapping[NoiseStructure, Orders]] = orders(additive=(2.0, 2.0))
    first_same_as_last: ClassVar[bool] = False

    def step(
        self, sde: Langevin, time: Tensor, carry: LangevinState, dt: Tensor, increment: Increment
    ) -> LangevinState:
        """What is carried to ``time + dt``."""
        x, v, _ = carry
        wiener, area, curve = _areas(increment)
        rate, rho = sde.friction, sde.noise_size
        c, d, e = _project(lambda s: _relax(rate, dt * (0.5 - s)), dt, 0.5)
        half, whole = _relax(rate, 0.5 * dt), _relax(rate, dt)
        middle = x + half * v + rho * (c * wiener + d * area + e * curve)
        kick = (dt * sde.inverse_mass) * sde.gradient(middle)
        b, p, q = _position_noise(rate, dt)
        bend = p * area + q * curve
        x = x + whole * v + rho * (b * wiener + bend) - half * kick
        noise = rho * (whole / dt * wiener - rate * bend)
        v = (-rate * dt).exp() * v + noise - (-0.5 * rate * dt).exp() * kick
        return LangevinState(x, v, None)


@dataclass(frozen=True, slots=True)
class ALIGN(_LangevinScheme):
    r"""Adaptive Langevin by interpolated gradients and noise: strong order 2, one gradient in a step.

    References:
        Foster, Lyons & Oberhauser (2021), definition 4.2, modified. arXiv:2101.03446
    """

    areas: ClassVar[Areas] = Areas.SPACE_TIME
    orders: ClassVar[Mapping[NoiseStructure, Orders]] = orders(additive=(2.0, 2.0))

    def step(
        self, sde: Langevin, time: Tensor, carry: LangevinState, dt: Tensor, increment: Increment
    ) -> LangevinState:
        """What is carried to ``time + dt``."""
        return self.step_with_error(sde, time, carry, dt, increment)[0]

    def step_with_error(
        self, sde: Langevin, time: Tensor, carry: LangevinState, dt: Tensor, increment: Increment
    ) -> tuple[LangevinState, Tensor]:
        """What is carried to ``time + dt``, and the effect on the state of the change of the gradient."""
        x, v, first = carry
        assert first is not None  # it starts from the gradient
        wiener, area, _ = _areas(increment)
        rate, rho, u = sde.friction, sde.noise_size, sde.inverse_mass
        whole = _relax(rate, dt)
        b, p, _ = _position_noise(rate, dt)
        x = x + whole * v - (u * dt * b) * first + rho * (b * wiener + p * area)
        second = sde.gradient(x)
        noise = rho * (whole / dt * wiener - (rate * p) * area)
        v = (-rate * dt).exp() * v - u * ((whole - b) * first + b * second) + noise
        error = (-u * b) * (second - first)
        return LangevinState(x, v, second), torch.stack((torch.zeros_like(error), error), 1)


@dataclass(frozen=True, slots=True)
class ShOULD(_LangevinScheme):
    r"""Shifted-ODE Runge--Kutta: strong order 3 with two gradients in a step.

    References:
        Foster, Lyons & Oberhauser (2021), definition 7.1. arXiv:2101.03446
    """

    orders: ClassVar[Mapping[NoiseStructure, Orders]] = orders(additive=(3.0, 3.0))

    def step(
        self, sde: Langevin, time: Tensor, carry: LangevinState, dt: Tensor, increment: Increment
    ) -> LangevinState:
        """What is carried to ``time + dt``."""
        x, v, first = carry
        assert first is not None  # it starts from the gradient
        wiener, area, curve = _areas(increment)
        rate, rho, force = sde.friction, sde.noise_size, sde.inverse_mass * dt
        whole, half = _relax(rate, dt), _relax(rate, 0.5 * dt)
        b, p, q = _position_noise(rate, dt)
        bend = p * area + q * curve
        shifted = v + rho * (area + 6 * curve)
        push = rho * (wiener - 12 * curve) - force * first
        second = sde.gradient(x + half * shifted + _ramp(rate, dt, 0.5) * push)
        x = x + whole * v - (force * b) * (first / 3 + 2 / 3 * second) + rho * (b * wiener + bend)
        third = sde.gradient(x)
        decay, mid = (-rate * dt).exp(), (-0.5 * rate * dt).exp()
        pull = force * (decay / 6 * first + 2 / 3 * mid * second + third / 6)
        v = decay * v - pull + rho * (whole / dt * wiener - rate * bend)
        return LangevinState(x, v, third)


@dataclass(frozen=True, slots=True)
class QUICSORT(_LangevinScheme):
    r"""Quadrature-inspired contractive shifted-ODE Runge--Kutta: strong order 3 with two gradients.

    References:
        Jelincic, Foster & Kidger (2024), definition of QUICSORT. arXiv:2405.06464
    """

    orders: ClassVar[Mapping[NoiseStructure, Orders]] = orders(additive=(3.0, 3.0))
    first_same_as_last: ClassVar[bool] = False

    def step(
        self, sde: Langevin, time: Tensor, carry: LangevinState, dt: Tensor, increment: Increment
    ) -> LangevinState:
        """What is carried to ``time + dt``."""
        x, v, _ = carry
        wiener, area, curve = _areas(increment)
        rate, rho, force = sde.friction, sde.noise_size, sde.inverse_mass * dt
        low, high = (3 - math.sqrt(3)) / 6, (3 + math.sqrt(3)) / 6
        shifted, push = v + rho * (area + 6 * curve), rho * (wiener - 12 * curve)
        to_low, to_high, whole = (_relax(rate, share * dt) for share in (low, high, 1.0))
        first = force * sde.gradient(x + to_low * shifted + _ramp(rate, dt, low) * push)
        stage = x + to_high * shifted + _ramp(rate, dt, high) * push - _relax(rate, dt / 3) * first
        second = force * sde.gradient(stage)
        decays = [(-rate * share * dt).exp() for share in (low, high, 1.0)]
        x = x + whole * shifted + _ramp(rate, dt, 1.0) * push - 0.5 * (to_high * first + to_low * second)
        v = decays[2] * shifted - 0.5 * (decays[1] * first + decays[0] * second)
        return LangevinState(x, v + whole / dt * push - rho * (area - 6 * curve), None)


def _ramp(friction: float, dt: Tensor, share: float) -> Tensor:
    """Integral of ``a(s)`` over the first ``share`` of a step, over the step."""
    return _project(lambda x: _relax(friction, dt * x), dt, share)[0]
