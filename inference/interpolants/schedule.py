"""Schedules of interpolants: how the base fades out and the target fades in.

Time runs from 0 (base, noise) to 1 (target, data) everywhere in this package. A schedule states alpha, beta
and their derivatives, and alpha squared with half its derivative: where alpha meets zero like a square root
its derivative is infinite, and these are not.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor

from inference.interpolants.amplitude import Amplitude, BrownianBridge

__all__ = [
    "Diffusion",
    "EncodingDecoding",
    "Linear",
    "Normalised",
    "Quadratic",
    "Schedule",
    "Trigonometric",
    "VariancePreserving",
]

_BISECTIONS = 60  # halves the interval [0, 1] below the spacing of doubles near one


class Schedule(ABC):
    r"""Coefficients of :math:`x_t = \alpha(t)\, x_0 + \beta(t)\, x_1`, with their derivatives.

    Boundary values: :math:`\alpha(0) = \beta(1) = 1` and :math:`\alpha(1) = \beta(0) = 0`.
    """

    @abstractmethod
    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Alpha and beta at times ``t``."""

    @abstractmethod
    def derivatives(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Time derivatives of alpha and beta at times ``t``."""

    def base_variance(self, t: Tensor) -> tuple[Tensor, Tensor]:
        r""":math:`\alpha^2` and :math:`\alpha \dot\alpha` at times ``t``, finite on [0, 1]."""
        alpha, rate = self.coefficients(t)[0], self.derivatives(t)[0]
        return alpha**2, alpha * rate

    def log_snr(self, t: Tensor) -> Tensor:
        r""":math:`\lambda = \log(\beta / \alpha)` at times ``t``; minus infinity at 0, infinity at 1."""
        alpha, beta = self.coefficients(t)
        return beta.log() - alpha.log()

    def time(self, log_snr: Tensor) -> Tensor:
        """The inverse of :meth:`log_snr`, by bisection; for schedules whose ratio grows with time."""
        low, high = torch.zeros_like(log_snr), torch.ones_like(log_snr)
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            below = self.log_snr(middle) < log_snr
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2


@dataclass(frozen=True, slots=True)
class Linear(Schedule):
    r"""Straight lines: :math:`\alpha = 1 - t`, :math:`\beta = t`.

    Example:
        >>> alpha, beta = Linear().coefficients(torch.tensor(0.25))
        >>> alpha.item(), beta.item()
        (0.75, 0.25)

    References:
        Lipman et al. (2023), Flow matching for generative modeling, section 4.1. arXiv:2210.02747
    """

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Alpha and beta at times ``t``."""
        return 1 - t, t

    def derivatives(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Time derivatives of alpha and beta at times ``t``."""
        return -torch.ones_like(t), torch.ones_like(t)

    def time(self, log_snr: Tensor) -> Tensor:
        """The inverse of :meth:`log_snr`: the logistic function."""
        return log_snr.sigmoid()


@dataclass(frozen=True, slots=True)
class Quadratic(Schedule):
    r""":math:`\alpha = 1 - t`, :math:`\beta = t^2`: the target enters late, as forecasts from a point want.

    References:
        Chen, Goldstein, Hua, Albergo, Boffi & Vanden-Eijnden (2024), Probabilistic forecasting with
        stochastic interpolants and Foellmer processes, section 3. arXiv:2403.13724
    """

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Alpha and beta at times ``t``."""
        return 1 - t, t**2

    def derivatives(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Time derivatives of alpha and beta at times ``t``."""
        return -torch.ones_like(t), 2 * t


@dataclass(frozen=True, slots=True)
class Trigonometric(Schedule):
    r"""Quarter circles: :math:`\alpha = \cos(\pi t/2)`, :math:`\beta = \sin(\pi t/2)`; keeps a unit variance.

    Example:
        >>> alpha, beta = Trigonometric().coefficients(torch.tensor(0.0))
        >>> alpha.item(), beta.item()
        (1.0, 0.0)

    References:
        Albergo, Boffi & Vanden-Eijnden (2023), Stochastic interpolants, section 4.2. arXiv:2303.08797
    """

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Alpha and beta at times ``t``."""
        angle = (math.pi / 2) * t
        return ((math.pi / 2) * (1 - t)).sin(), angle.sin()  # the sine of 1 - t is exactly zero at 1

    def derivatives(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Time derivatives of alpha and beta at times ``t``."""
        angle = (math.pi / 2) * t
        return -(math.pi / 2) * angle.sin(), (math.pi / 2) * angle.cos()

    def time(self, log_snr: Tensor) -> Tensor:
        """The inverse of :meth:`log_snr`: an arc tangent."""
        return (2 / math.pi) * log_snr.exp().atan()


@dataclass(frozen=True, slots=True)
class VariancePreserving(Schedule):
    r""":math:`\alpha = \sqrt{1 - t^2}`, :math:`\beta = t`: an Ornstein--Uhlenbeck process.

    Its time is :math:`e^{-\tau}` of the process. The derivative of alpha is infinite at 1, the velocity of
    an interpolant with this schedule is not.

    Example:
        >>> VariancePreserving().base_variance(torch.tensor(1.0))
        (tensor(0.), tensor(-1.))

    References:
        Albergo, Boffi & Vanden-Eijnden (2023), Stochastic interpolants, table 8. arXiv:2303.08797
    """

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Alpha and beta at times ``t``."""
        return ((1 - t) * (1 + t)).sqrt(), t

    def derivatives(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Time derivatives of alpha and beta at times ``t``."""
        return -t / self.coefficients(t)[0], torch.ones_like(t)

    def base_variance(self, t: Tensor) -> tuple[Tensor, Tensor]:
        r""":math:`1 - t^2` and :math:`-t`."""
        return (1 - t) * (1 + t), -t

    def time(self, log_snr: Tensor) -> Tensor:
        """The inverse of :meth:`log_snr`."""
        return (2 * log_snr).sigmoid().sqrt()


@dataclass(frozen=True, slots=True)
class Diffusion(Schedule):
    r"""The variance-preserving diffusion with a rate that is linear in its time :math:`\tau = 1 - t`.

    .. math:: \log\beta = -\tfrac14 \tau^2 (b_1 - b_0) - \tfrac12 \tau b_0, \qquad \alpha = \sqrt{1 - \beta^2}

    It does not quite begin at the base: beta at 0 is 0.0066 with the rates that are customary.

    Attributes:
        slow: ``b_0``, the rate at the target, positive.
        fast: ``b_1``, the rate at the base, at least ``slow``.

    References:
        Song, Sohl-Dickstein, Kingma, Kumar, Ermon & Poole (2021), Score-based generative modeling through
        stochastic differential equations, appendix C. arXiv:2011.13456
    """

    slow: float = 0.1
    fast: float = 20.0

    def __post_init__(self) -> None:
        if not 0 < self.slow <= self.fast < math.inf:
            raise ValueError(f"`slow` must lie in (0, fast]; got {self.slow}, with fast = {self.fast}.")

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Alpha and beta at times ``t``."""
        log_beta = self._log_beta(t)
        return (-(2 * log_beta).expm1()).sqrt(), log_beta.exp()

    def derivatives(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Time derivatives of alpha and beta at times ``t``."""
        alpha, beta = self.coefficients(t)
        rate = self._rate(t)
        return -(beta**2) * rate / alpha, beta * rate

    def base_variance(self, t: Tensor) -> tuple[Tensor, Tensor]:
        r""":math:`1 - \beta^2` and :math:`-\beta \dot\beta`."""
        log_beta = self._log_beta(t)
        return -(2 * log_beta).expm1(), -(2 * log_beta).exp() * self._rate(t)

    def log_snr(self, t: Tensor) -> Tensor:
        r""":math:`\lambda = \log(\beta / \alpha)` at times ``t``."""
        log_beta = self._log_beta(t)
        return log_beta - 0.5 * (-(2 * log_beta).expm1()).log()

    def time(self, log_snr: Tensor) -> Tensor:
        """The inverse of :meth:`log_snr`: the root of a quadratic, in the form that does not cancel."""
        twice = -2 * torch.nn.functional.logsigmoid(2 * log_snr)  # -4 log beta
        root = (self.slow**2 + (self.fast - self.slow) * twice).sqrt()
        return 1 - twice / (self.slow + root)

    def _log_beta(self, t: Tensor) -> Tensor:
        back = 1 - t
        return -(back**2) * (self.fast - self.slow) / 4 - back * self.slow / 2

    def _rate(self, t: Tensor) -> Tensor:
        """Time derivative of the logarithm of beta."""
        return (1 - t) * (self.fast - self.slow) / 2 + self.slow / 2


@dataclass(frozen=True, slots=True)
class Normalised(Schedule):
    r"""Quarter circles that leave room for a latent variable, so that the three squares add to one.

    .. math:: \alpha = \sqrt{1 - \gamma^2} \cos(\pi t/2), \qquad \beta = \sqrt{1 - \gamma^2} \sin(\pi t/2)

    Attributes:
        amplitude: The gamma of the interpolant, below 1 on [0, 1].

    References:
        Albergo, Boffi & Vanden-Eijnden (2023), Stochastic interpolants, equation 4.10. arXiv:2303.08797
    """

    amplitude: Amplitude = field(default_factory=BrownianBridge)

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Alpha and beta at times ``t``."""
        alpha, beta = Trigonometric().coefficients(t)
        room = (1 - self.amplitude.variance(t)[0]).sqrt()
        return room * alpha, room * beta

    def derivatives(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Time derivatives of alpha and beta at times ``t``."""
        (alpha, beta), (alpha_rate, beta_rate) = (
            Trigonometric().coefficients(t),
            Trigonometric().derivatives(t),
        )
        square, half_rate = self.amplitude.variance(t)
        room = (1 - square).sqrt()
        return room * alpha_rate - half_rate / room * alpha, room * beta_rate - half_rate / room * beta


@dataclass(frozen=True, slots=True)
class EncodingDecoding(Schedule):
    r"""The base fades out until time 1/2, and then the target fades in; in between all is latent.

    .. math:: \alpha = \cos^2(\pi t)\, 1_{t < 1/2}, \qquad \beta = \cos^2(\pi t)\, 1_{t \ge 1/2}

    For interpolants with a latent variable of amplitude :class:`~inference.interpolants.SineSquared`.

    References:
        Albergo, Boffi & Vanden-Eijnden (2023), Stochastic interpolants, equation 4.11. arXiv:2303.08797
    """

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Alpha and beta at times ``t``."""
        wave, zero = (math.pi * t).cos() ** 2, torch.zeros_like(t)
        return torch.where(t < 0.5, wave, zero), torch.where(t < 0.5, zero, wave)

    def derivatives(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Time derivatives of alpha and beta at times ``t``."""
        slope, zero = -math.pi * (2 * math.pi * t).sin(), torch.zeros_like(t)
        return torch.where(t < 0.5, slope, zero), torch.where(t < 0.5, zero, slope)
