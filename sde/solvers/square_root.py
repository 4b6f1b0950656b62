r"""Schemes that keep square-root processes at or above zero.

Which to take, by the Feller number :math:`2\kappa\theta/\sigma^2`: :class:`ImplicitSquareRoot` where it is
above 3, and a path is wanted; :class:`QuadraticExponential` everywhere else, since its first two moments are
exact for any step; :class:`FullTruncationEuler` as the simplest that is never wrong in the limit.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from sde.equation import Calculus, NoiseStructure
from sde.noise.increments import Increment
from sde.solvers.interface import OneStep, Orders, orders
from sde.square_root import CIR, Heston, root

__all__ = ["FullTruncationEuler", "HestonQuadraticExponential", "ImplicitSquareRoot", "QuadraticExponential"]


def _check_sign(values: Tensor) -> None:
    """Raise unless all values are at least 0."""
    if bool((values < 0).any()):
        raise ValueError(
            f"`initial` must be at least 0 where it is a square-root process; got {values.min()}."
        )


class _SquareRootScheme(OneStep):
    """Base of the schemes for CIR equations."""

    __slots__ = ()
    equation: ClassVar[type] = CIR
    calculus: ClassVar[Calculus] = Calculus.ITO

    def start(self, sde: CIR, time: Tensor, state: Tensor) -> Tensor:
        """The state, which must not be negative."""
        _check_sign(state)
        return state


@dataclass(frozen=True, slots=True)
class FullTruncationEuler(_SquareRootScheme):
    r"""Euler with the positive part of the state in drift and diffusion.

    .. math::

        \tilde X_{k+1} = \tilde X_k + \kappa\,(\theta - X_k)\,h + \sigma \sqrt{X_k}\,\Delta W_k,
        \qquad X_k = \max(\tilde X_k, 0)

    It carries :math:`\tilde X`, which may be negative, and shows :math:`X`. Strongly convergent for every
    Feller number; order 1/2 where it is large.

    References:
        Lord, Koekkoek & van Dijk (2010), A comparison of biased simulation schemes for stochastic volatility
        models, equation 12. doi:10.1080/14697680802392496
    """

    orders: ClassVar[Mapping[NoiseStructure, Orders]] = orders(diagonal=(0.5, 1.0))

    def step(self, sde: CIR, time: Tensor, carry: Tensor, dt: Tensor, increment: Increment) -> Tensor:
        """The auxiliary state at ``time + dt``, shape ``(n, *shape)``."""
        drift = sde.rate * (sde.level - carry.clamp(min=0))
        return carry + drift * dt + sde.volatility * root(carry) * increment.wiener

    def read(self, carry: Tensor) -> Tensor:
        """The state: the positive part."""
        return carry.clamp(min=0)


@dataclass(frozen=True, slots=True)
class ImplicitSquareRoot(_SquareRootScheme):
    r"""Drift-implicit Euler for the square root of the state, which is always positive.

    .. math::

        Y_{k+1} = Y_k + \Bigl(\frac{4\kappa\theta - \sigma^2}{8\,Y_{k+1}} - \frac\kappa2\,Y_{k+1}\Bigr) h
                  + \frac\sigma2\,\Delta W_k, \qquad X_k = Y_k^2

    the positive root of a quadratic equation. It exists for :math:`4\kappa\theta > \sigma^2`, a Feller number
    above 1/2; the strong order is 1/2 for a Feller number above 1 and 1 for one above 3.

    References:
        Alfonsi (2005), On the discretization schemes for the CIR (and Bessel squared) processes, section 3.
        doi:10.1515/156939605777438569
        Dereich, Neuenkirch & Szpruch (2012), theorem 1.1. doi:10.1098/rspa.2011.0505
        Alfonsi (2013), Strong order one convergence of a drift implicit Euler scheme: application to the CIR
        process, section 3. doi:10.1016/j.spl.2012.10.034
    """

    orders: ClassVar[Mapping[NoiseStructure, Orders]] = orders(diagonal=(1.0, 1.0))

    def start(self, sde: CIR, time: Tensor, state: Tensor) -> Tensor:
        """The root of the state."""
        _check_sign(state)
        if not bool((torch.as_tensor(sde.feller) > 0.5).all()):
            raise ValueError(
                "`sde` must satisfy 4 * rate * level > volatility**2 for ImplicitSquareRoot; got a Feller "
                f"number, 2 * rate * level / volatility**2, of {sde.feller}. Use QuadraticExponential()."
            )
        return state.sqrt()

    def step(self, sde: CIR, time: Tensor, carry: Tensor, dt: Tensor, increment: Increment) -> Tensor:
        """The root of the state at ``time + dt``, shape ``(n, *shape)``."""
        slope = 1 + 0.5 * sde.rate * dt
        source = (sde.rate * sde.level - 0.25 * sde.volatility**2) / 2 * dt / slope
        half = (carry + 0.5 * sde.volatility * increment.wiener) / (2 * slope)
        size = (half.square() + source).sqrt()
        # The second form is the first without the difference of like numbers.
        return torch.where(half >= 0, half + size, source / (size + half.abs()))

    def read(self, carry: Tensor) -> Tensor:
        """The state: the square."""
        return carry.square()


class _StepLaw(NamedTuple):
    """Andersen's approximation of the law of a square-root process after a step."""

    quadratic: Tensor  #: where it is ``scale * (shift + Z)**2``; elsewhere exponential with an atom at 0
    scale: Tensor
    shift: Tensor
    atom: Tensor  #: probability of 0
    rate: Tensor  #: of the exponential part

    def draw(self, normal: Tensor) -> Tensor:
        """A value, increasing in a standard normal: the exponential part by the inverse of its law."""
        square = self.scale * (self.shift + normal).square()
        tail = torch.log1p(-self.atom) - torch.special.log_ndtr(-normal)
        return torch.where(self.quadratic, square, (tail / self.rate).clamp(min=0))

    def log_moment(self, power: Tensor) -> tuple[Tensor, Tensor]:
        """Logarithm of the mean of ``exp(power * value)``, and where that mean is finite."""
        room = torch.where(self.quadratic, 1 - 2 * power * self.scale, 1 - power / self.rate)
        finite = room > 0
        room = torch.where(finite, room, 1.0)
        square = power * self.scale * self.shift.square() / room - 0.5 * room.log()
        return torch.where(self.quadratic, square, (self.atom + (1 - self.atom) / room).log()), finite


_SWITCH = 1.5  # squared coefficient of variation between the two forms: Andersen (2008), section 3.2.3


def _step_law(cir: CIR, state: Tensor, dt: Tensor) -> _StepLaw:
    """The law with the exact mean and variance after a step."""
    mean = cir.mean(state, dt)
    spread = cir.variance(state, dt) / mean.square()
    # Each form gets numbers that suit it everywhere, so that no gradient passes through a NaN.
    low, high = spread.clamp(max=_SWITCH), spread.clamp(min=_SWITCH)
    twice = 2 / low
    square = twice - 1 + (twice * (twice - 1)).sqrt()
    atom = (high - 1) / (high + 1)
    return _StepLaw(spread <= _SWITCH, mean / (1 + square), square.sqrt(), atom, (1 - atom) / mean)


@dataclass(frozen=True, slots=True)
class QuadraticExponential(_SquareRootScheme):
    r"""Andersen's quadratic-exponential scheme, for any Feller number: exact mean and variance for any step.

    A step takes the law with the exact conditional mean and variance among :math:`a (b + Z)^2`, far from
    zero, and an exponential law with an atom at zero, near it. The normal is :math:`Z = \Delta W / \sqrt h`
    and the uniform of the exponential law :math:`\Phi(Z)`, so the path is a function of the Wiener path. Far
    from zero that agrees with Milstein's scheme to its order; where paths reach zero the strong order falls,
    to 0.4 as measured at a Feller number of 0.38, and the moments stay exact.

    References:
        Andersen (2008), Simple and efficient simulation of the Heston stochastic volatility model, section
        3.2. doi:10.21314/JCF.2008.189
    """

    orders: ClassVar[Mapping[NoiseStructure, Orders]] = orders(diagonal=(1.0, 1.0))

    def step(self, sde: CIR, time: Tensor, carry: Tensor, dt: Tensor, increment: Increment) -> Tensor:
        """The state at ``time + dt``, shape ``(n, *shape)``."""
        return _step_law(sde, carry, dt).draw(increment.wiener / dt.sqrt())


@dataclass(frozen=True, slots=True)
class HestonQuadraticExponential(OneStep):
    r"""Andersen's scheme for Heston's model, for any Feller number.

    The variance as by :class:`QuadraticExponential`; in the log-price, the integral of the variance over a
    step by the trapezoidal rule, and that of :math:`\sqrt v\,\mathrm dW^2` by the equation of the variance:

    .. math::

        \log S_{k+1} = \log S_k + r h + K_0 + K_1 v_k + K_2 v_{k+1}
            + \sqrt{\tfrac h2 (1 - \rho^2)(v_k + v_{k+1})}\;\Delta W^1_k / \sqrt h

    with :math:`K_{1,2} = \tfrac h2 (\kappa\rho/\sigma - \tfrac12) \mp \rho/\sigma`. :math:`K_0` makes the
    discounted price a martingale for any step, where the moment that this takes is finite: always for
    :math:`\rho \le 0`. Elsewhere it is :math:`-\kappa\theta\rho h/\sigma`.

    References:
        Andersen (2008), equation 33 and propositions 7 to 9. doi:10.21314/JCF.2008.189
    """

    equation: ClassVar[type] = Heston
    calculus: ClassVar[Calculus] = Calculus.ITO
    orders: ClassVar[Mapping[NoiseStructure, Orders]] = orders(general=(0.5, 1.0))

    def start(self, sde: Heston, time: Tensor, state: Tensor) -> Tensor:
        """The state, whose variances must not be negative."""
        _check_sign(state[:, 1])
        return state

    def step(self, sde: Heston, time: Tensor, carry: Tensor, dt: Tensor, increment: Increment) -> Tensor:
        """The state at ``time + dt``, shape ``(n, 2, *shape)``."""
        log_price, before = carry.unbind(1)
        own, shared = increment.wiener.unbind(1)
        cir, loading = sde.variance, sde.correlation / sde.variance.volatility
        law = _step_law(cir, before, dt)
        after = law.draw(shared / dt.sqrt())
        slope = 0.5 * dt * (cir.rate * loading - 0.5)
        free = 0.5 * (1 - sde.correlation**2)
        first, second = slope - loading, slope + loading
        moment, finite = law.log_moment(second + 0.5 * free * dt)
        corrected = -moment - (first + 0.5 * free * dt) * before
        constant = torch.where(finite, corrected, -loading * cir.rate * cir.level * dt)
        noise = root(free * (before + after)) * own
        moved = log_price + sde.interest * dt + constant + first * before + second * after + noise
        return torch.stack((moved, after), 1)
