r"""Interpolants between a base and a target law: the path of a point, and what can be known of it.

Every interpolant is a straight combination with a Gaussian part,

.. math:: x_t = I(t, x_0, x_1) + c(t)\, z, \qquad z \sim N(0, 1) \text{ independent of } x_1,

with time 0 at the base and 1 at the target. The conditional means of its parts given :math:`x_t = x`, the
velocity of the flow and the score of the law are all linear in a few of them. An interpolant states each as a
row of coefficients in the basis (mean of the base, mean of the target, score), so that
:class:`~inference.interpolants.Prediction` passes from any one to any other by solving for a combination of
rows. In this basis no coefficient is infinite at the ends.

References:
    Albergo, Boffi & Vanden-Eijnden (2023), Stochastic interpolants, sections 2 to 4. arXiv:2303.08797
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

import torch
from torch import Tensor

from inference.interpolants.amplitude import Amplitude, BrownianBridge
from inference.interpolants.schedule import Linear, Schedule

__all__ = ["Interpolant", "Kind", "Mirror", "OneSided", "TwoSided"]


class Kind(Enum):
    r"""What a network may predict, as a function of time and point."""

    VELOCITY = "velocity"  #: :math:`b = E[\dot x_t | x]`, of the probability-flow equation
    SCORE = "score"  #: :math:`s = \nabla \log \rho_t`
    NOISE = "noise"  #: :math:`E[z | x]`, with this sign: the score is minus it over the amplitude
    TARGET = "target"  #: :math:`E[x_1 | x]`, the denoised point
    BASE = "base"  #: :math:`E[x_0 | x]`, of two-sided interpolants
    TRANSPORT = "transport"  #: :math:`E[\partial_t I | x]`, the velocity without the latent variable
    DRIFT = "drift"  #: of the diffusion that leaves a point as the path does; see :meth:`TwoSided.leaving`
    ROTATION = "rotation"  #: :math:`\beta E[z | x] - \alpha E[x_1 | x]`, called v-prediction elsewhere


class Interpolant(ABC):
    """A path from a base point to a target point with a Gaussian part."""

    __slots__ = ()

    @abstractmethod
    def centre(self, t: Tensor, base: Tensor, target: Tensor) -> Tensor:
        """``I``: points ``(n, *shape)`` at times ``t`` that broadcast with them."""

    @abstractmethod
    def centre_rate(self, t: Tensor, base: Tensor, target: Tensor) -> Tensor:
        """Time derivative of :meth:`centre`."""

    @abstractmethod
    def variance(self, t: Tensor) -> tuple[Tensor, Tensor]:
        r""":math:`c^2` and :math:`c \dot c` at times ``t``, finite on [0, 1]."""

    @abstractmethod
    def rows(self, t: Tensor) -> Mapping[Kind, Tensor]:
        """Coefficients of each kind in the basis of unknown fields, shape ``(*t.shape, k)``."""

    @abstractmethod
    def relation(self, t: Tensor) -> Tensor:
        """Coefficients of the point itself in the same basis, shape ``(*t.shape, k)``."""

    @property
    def num_fields(self) -> int:
        """Number of networks that determine all fields: one less than the size of the basis."""
        return self.relation(torch.zeros((), dtype=torch.float64)).shape[-1] - 1

    def point(self, t: Tensor, base: Tensor, target: Tensor, latent: Tensor) -> Tensor:
        """Points at times ``t`` (shape ``(n, 1)``) between base and target with a normal ``latent``."""
        return self.centre(t, base, target) + self.variance(t)[0].sqrt() * latent

    def velocity(self, t: Tensor, base: Tensor, target: Tensor, latent: Tensor) -> Tensor:
        """Time derivative of :meth:`point`; infinite or NaN at the ends where the amplitude meets zero."""
        square, half_rate = self.variance(t)
        return self.centre_rate(t, base, target) + half_rate / square.sqrt() * latent


@dataclass(frozen=True, slots=True)
class OneSided(Interpolant):
    r"""From a standard normal base, which is itself the Gaussian part.

    .. math:: x_t = \alpha(t)\, z + \beta(t)\, x_1

    One network determines every field. The base argument of the methods is not read.

    Attributes:
        schedule: The coefficients.

    Example:
        >>> latent, target = torch.tensor([[0.0, 4.0]]), torch.tensor([[4.0, 0.0]])
        >>> OneSided().point(torch.tensor([[0.25]]), latent, target, latent)
        tensor([[1., 3.]])

    References:
        Albergo, Boffi & Vanden-Eijnden (2023), Stochastic interpolants, section 3.2. arXiv:2303.08797
    """

    schedule: Schedule = field(default_factory=Linear)

    def centre(self, t: Tensor, base: Tensor, target: Tensor) -> Tensor:
        """Beta times the target."""
        return self.schedule.coefficients(t)[1] * target

    def centre_rate(self, t: Tensor, base: Tensor, target: Tensor) -> Tensor:
        """Derivative of beta times the target."""
        return self.schedule.derivatives(t)[1] * target

    def variance(self, t: Tensor) -> tuple[Tensor, Tensor]:
        r""":math:`\alpha^2` and :math:`\alpha \dot\alpha`."""
        return self.schedule.base_variance(t)

    def rows(self, t: Tensor) -> Mapping[Kind, Tensor]:
        """Coefficients in the basis (target, score)."""
        (alpha, beta), beta_rate = self.schedule.coefficients(t), self.schedule.derivatives(t)[1]
        zero, one = torch.zeros_like(t), torch.ones_like(t)
        return {
            Kind.VELOCITY: _row(beta_rate, -self.variance(t)[1]),
            Kind.SCORE: _row(zero, one),
            Kind.NOISE: _row(zero, -alpha),
            Kind.TARGET: _row(one, zero),
            Kind.ROTATION: _row(-alpha, -alpha * beta),
        }

    def relation(self, t: Tensor) -> Tensor:
        """The point is beta times the target minus alpha squared times the score."""
        return _row(self.schedule.coefficients(t)[1], -self.variance(t)[0])


@dataclass(frozen=True, slots=True)
class Mirror(Interpolant):
    r"""From a law to itself through noise.

    .. math:: x_t = x_1 + \gamma(t)\, z

    One network determines every field. The base argument of the methods is not read.

    Attributes:
        amplitude: Gamma.

    References:
        Albergo, Boffi & Vanden-Eijnden (2023), Stochastic interpolants, section 3.3. arXiv:2303.08797
    """

    amplitude: Amplitude = field(default_factory=BrownianBridge)

    def centre(self, t: Tensor, base: Tensor, target: Tensor) -> Tensor:
        """The target."""
        return target

    def centre_rate(self, t: Tensor, base: Tensor, target: Tensor) -> Tensor:
        """Zero."""
        return torch.zeros_like(target)

    def variance(self, t: Tensor) -> tuple[Tensor, Tensor]:
        r""":math:`\gamma^2` and :math:`\gamma \dot\gamma`."""
        return self.amplitude.variance(t)

    def rows(self, t: Tensor) -> Mapping[Kind, Tensor]:
        """Coefficients in the basis (target, score)."""
        square, half_rate = self.variance(t)
        zero, one = torch.zeros_like(t), torch.ones_like(t)
        return {
            Kind.VELOCITY: _row(zero, -half_rate),
            Kind.SCORE: _row(zero, one),
            Kind.NOISE: _row(zero, -square.sqrt()),
            Kind.TARGET: _row(one, zero),
        }

    def relation(self, t: Tensor) -> Tensor:
        """The point is the target minus gamma squared times the score."""
        return _row(torch.ones_like(t), -self.variance(t)[0])


@dataclass(frozen=True, slots=True)
class TwoSided(Interpolant):
    r"""Between any two laws, coupled in any way, with a latent variable on the way.

    .. math:: x_t = \alpha(t)\, x_0 + \beta(t)\, x_1 + \gamma(t)\, z

    Two networks determine every field. Where each sample starts at a point that is known (a forecast, a
    conditional sampler), that point is the mean of the base and one network does; see
    :meth:`inference.interpolants.Prediction.from_start`.

    Attributes:
        schedule: Alpha and beta.
        amplitude: Gamma.

    References:
        Albergo, Boffi & Vanden-Eijnden (2023), Stochastic interpolants, section 4. arXiv:2303.08797
    """

    schedule: Schedule = field(default_factory=Linear)
    amplitude: Amplitude = field(default_factory=BrownianBridge)

    def centre(self, t: Tensor, base: Tensor, target: Tensor) -> Tensor:
        """Alpha times the base plus beta times the target."""
        alpha, beta = self.schedule.coefficients(t)
        return alpha * base + beta * target

    def centre_rate(self, t: Tensor, base: Tensor, target: Tensor) -> Tensor:
        """Time derivative of :meth:`centre`."""
        alpha, beta = self.schedule.derivatives(t)
        return alpha * base + beta * target

    def variance(self, t: Tensor) -> tuple[Tensor, Tensor]:
        r""":math:`\gamma^2` and :math:`\gamma \dot\gamma`."""
        return self.amplitude.variance(t)

    def leaving(self, t: Tensor) -> Tensor:
        r""":math:`\gamma^2 / 2t`, the diffusivity whose Wiener process leaves a point as the path does.

        The drift that goes with it is finite at 0 where gamma is :math:`\sigma(t) \sqrt t`, which the
        velocity is not: it is what a network of a path from known points should learn.

        References:
            Chen, Goldstein, Hua, Albergo, Boffi & Vanden-Eijnden (2024), section 2. arXiv:2403.13724
        """
        inside = t.clamp(min=torch.finfo(t.dtype).eps)
        return self.variance(inside)[0] / (2 * inside)

    def rows(self, t: Tensor) -> Mapping[Kind, Tensor]:
        """Coefficients in the basis (base, target, score)."""
        alpha_rate, beta_rate = self.schedule.derivatives(t)
        square, half_rate = self.variance(t)
        zero, one = torch.zeros_like(t), torch.ones_like(t)
        return {
            Kind.VELOCITY: _row(alpha_rate, beta_rate, -half_rate),
            Kind.SCORE: _row(zero, zero, one),
            Kind.NOISE: _row(zero, zero, -square.sqrt()),
            Kind.TARGET: _row(zero, one, zero),
            Kind.BASE: _row(one, zero, zero),
            Kind.TRANSPORT: _row(alpha_rate, beta_rate, zero),
            Kind.DRIFT: _row(alpha_rate, beta_rate, self.leaving(t) - half_rate),
        }

    def relation(self, t: Tensor) -> Tensor:
        """Alpha times base plus beta times target minus gamma squared times the score."""
        return _row(*self.schedule.coefficients(t), -self.variance(t)[0])


def _row(*coefficients: Tensor) -> Tensor:
    """Coefficients along a last axis."""
    return torch.stack(coefficients, -1)
