"""Square-root processes: Cox, Ingersoll and Ross, and the stochastic volatility of Heston.

Their diffusion vanishes at zero with an infinite slope, so general schemes leave the domain and lose their
orders; :mod:`sde.solvers.square_root` has schemes that do not.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sde.equation import SDE, Calculus, NoiseStructure

__all__ = ["CIR", "Heston", "root"]

_STEP = 1 / 16  # of the Fourier integral: its error is exp(-pi / _STEP)


def root(x: Tensor) -> Tensor:
    """Square root of the positive part, with derivative zero where ``x <= 0``."""
    positive = x > 0
    return torch.where(positive, torch.where(positive, x, 1.0).sqrt(), 0.0)


@dataclass(frozen=True, slots=True, eq=False)
class CIR:
    r"""The square-root diffusion of Cox, Ingersoll and Ross, in each component of the state.

    .. math:: \mathrm dX = \kappa\,(\theta - X)\,\mathrm dt + \sigma \sqrt X\,\mathrm dW

    It stays at or above zero, and above zero if the *Feller number* :math:`2\kappa\theta/\sigma^2` is at
    least 1.

    Args:
        rate: Rate of reversion :math:`\kappa`, positive, one over time.
        level: Level :math:`\theta` to which it reverts, positive.
        volatility: :math:`\sigma`, positive.

    Each may be a tensor that broadcasts against the state, with a gradient.

    Raises:
        ValueError: If a constant is not positive and finite.

    Example:
        >>> cir = CIR(rate=2.0, level=0.09, volatility=0.3)
        >>> round(float(cir.feller), 12)
        4.0
        >>> cir.mean(torch.tensor([0.04], dtype=torch.float64), 1.0)
        tensor([0.0832], dtype=torch.float64)

    References:
        Cox, Ingersoll & Ross (1985), A theory of the term structure of interest rates, equations 17 to 19.
        doi:10.2307/1911242
    """

    rate: float | Tensor
    level: float | Tensor
    volatility: float | Tensor
    structure: NoiseStructure = field(default=NoiseStructure.DIAGONAL, init=False, repr=False)
    calculus: Calculus = field(default=Calculus.ITO, init=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("rate", "level", "volatility"):
            value = getattr(self, name)
            given = torch.as_tensor(value)
            if not bool(((given > 0) & given.isfinite()).all()):
                raise ValueError(f"`{name}` must be positive and finite; got {value}.")

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """The constants that are tensors."""
        return tuple(p for p in (self.rate, self.level, self.volatility) if isinstance(p, Tensor))

    @property
    def feller(self) -> float | Tensor:
        """Feller number, ``2 * rate * level / volatility**2``."""
        return 2 * self.rate * self.level / self.volatility**2

    def channels(self, state_shape: tuple[int, ...]) -> int:
        """One Wiener process for each component."""
        return math.prod(state_shape)

    def arrange(self, increments: Tensor, state_shape: tuple[int, ...]) -> Tensor:
        """Increments ``(..., channels)`` in the shape of the state."""
        return increments.unflatten(-1, state_shape)

    def checked(self) -> "CIR":
        """The equation itself: it holds no functions of the caller's."""
        return self

    def mean(self, initial: Tensor, time: float | Tensor) -> Tensor:
        """Mean a time after the state ``initial``, in its shape."""
        decay = self._decay(initial, time)
        return initial * decay + self.level * (1 - decay)

    def variance(self, initial: Tensor, time: float | Tensor) -> Tensor:
        """Variance a time after the state ``initial``, in its shape."""
        decay = self._decay(initial, time)
        scale = self.volatility**2 / self.rate * (1 - decay)
        return scale * (initial * decay + 0.5 * self.level * (1 - decay))

    def _decay(self, initial: Tensor, time: float | Tensor) -> Tensor:
        """``exp(-rate * time)``."""
        return torch.as_tensor(-self.rate * time, dtype=initial.dtype, device=initial.device).exp()

    def as_sde(self) -> SDE:
        """The same process for solvers of general equations, with the root of the positive part."""
        return SDE(
            lambda time, x: self.rate * (self.level - x),
            lambda time, x: self.volatility * root(x),
            parameters=self.parameters,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Heston:
    r"""Heston's model: a price whose variance is a square-root diffusion.

    .. math::

        \mathrm d\log S &= (r - v / 2)\,\mathrm dt
            + \sqrt v\,\bigl(\sqrt{1 - \rho^2}\,\mathrm dW^1 + \rho\,\mathrm dW^2\bigr), \\
        \mathrm dv &= \kappa\,(\theta - v)\,\mathrm dt + \sigma \sqrt v\,\mathrm dW^2

    The state has the shape ``(n, 2, *shape)``: logarithms of prices, then variances.

    Args:
        variance: The equation of ``v``.
        correlation: :math:`\rho`, of the increments of log-price and variance, in (-1, 1).
        interest: Growth rate ``r`` of the mean price, at which payoffs are discounted; one over time.

    Raises:
        ValueError: If the correlation is out of range or the interest not finite.

    Example:
        >>> heston = Heston(CIR(1.5768, 0.0398, 0.5751), correlation=-0.5711)
        >>> price = heston.call(spot=100.0, variance=0.0175, strike=100.0, maturity=1.0)
        >>> round(float(price), 6)
        5.785155

    References:
        Heston (1993), A closed-form solution for options with stochastic volatility with applications to bond
        and currency options. doi:10.1093/rfs/6.2.327
    """

    variance: CIR
    correlation: float | Tensor
    interest: float | Tensor = 0.0
    structure: NoiseStructure = field(default=NoiseStructure.GENERAL, init=False, repr=False)
    calculus: Calculus = field(default=Calculus.ITO, init=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.variance, CIR):
            raise TypeError(f"`variance` must be a CIR equation; got {type(self.variance).__name__}.")
        if not bool((torch.as_tensor(self.correlation).abs() < 1).all()):
            raise ValueError(f"`correlation` must lie in (-1, 1); got {self.correlation}.")
        if not bool(torch.as_tensor(self.interest).isfinite().all()):
            raise ValueError(f"`interest` must be finite; got {self.interest}.")

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """The constants that are tensors."""
        own = tuple(p for p in (self.correlation, self.interest) if isinstance(p, Tensor))
        return self.variance.parameters + own

    def channels(self, state_shape: tuple[int, ...]) -> int:
        """Two Wiener processes for each price: its own, then that of its variance."""
        if state_shape[0] != 2:
            raise ValueError(
                f"`initial` must have shape (n, 2, ...), log-prices and variances; got (n, "
                f"{', '.join(map(str, state_shape))})."
            )
        return math.prod(state_shape)

    def arrange(self, increments: Tensor, state_shape: tuple[int, ...]) -> Tensor:
        """Increments ``(..., channels)`` in the shape of the state."""
        return increments.unflatten(-1, state_shape)

    def checked(self) -> "Heston":
        """The equation itself: it holds no functions of the caller's."""
        return self

    def mean(self, initial: Tensor, time: float | Tensor) -> Tensor:
        """Means of log-price and variance a time after the state ``initial``, in its shape."""
        log_price, variance = initial.unbind(1)
        cir = self.variance
        later = cir.mean(variance, time)
        integral = cir.level * time + (variance - later) / cir.rate  # of the mean variance
        return torch.stack((log_price + self.interest * time - 0.5 * integral, later), 1)

    def as_sde(self) -> SDE:
        """The same process for solvers of general equations, of states ``(n, 2)``."""
        cir = self.variance

        def drift(time: Tensor, state: Tensor) -> Tensor:
            v = state[:, 1]
            return torch.stack((self.interest - 0.5 * v, cir.rate * (cir.level - v)), 1)

        def diffusion(time: Tensor, state: Tensor) -> Tensor:
            size = root(state[:, 1])
            own = (1 - self.correlation**2) ** 0.5 * size
            price = torch.stack((own, self.correlation * size), 1)
            return torch.stack((price, torch.stack((0 * size, cir.volatility * size), 1)), 1)

        return SDE(drift, diffusion, NoiseStructure.GENERAL, noise_dim=2, parameters=self.parameters)

    def call(
        self,
        *,
        spot: float | Tensor,
        variance: float | Tensor,
        strike: float | Tensor,
        maturity: float | Tensor,
    ) -> Tensor:
        r"""Prices of European calls, by a Fourier integral.

        .. math::

            C = e^{-rT} \Bigl(F - \frac{\sqrt{F K}}{\pi} \int_0^\infty
                \Re \frac{e^{i u \log(F / K)}\,\varphi(u - i/2)}{u^2 + 1/4}\,\mathrm du\Bigr)

        where :math:`F = e^{rT} S` is the forward price and :math:`\varphi` the characteristic
        function of :math:`\log(S_T / F)`. The integrand is analytic about the real axis as far as
        :math:`|\Im u| < 1/2`, so the trapezoidal rule with step 1/16 is exact to rounding. Gradients flow to
        the arguments and to the constants of the equation, which must be numbers or 0-d tensors.

        Args:
            spot: Price at time zero, positive.
            variance: Variance at time zero, at least 0.
            strike: Strike ``K``, positive.
            maturity: Time ``T`` to maturity, positive.

        Returns:
            The prices, float64, in the shape to which the arguments broadcast: to about 1e-12 of the spot,
            and to fewer digits for volatilities of the variance below 0.01.

        Raises:
            ValueError: If an argument is out of range.

        References:
            Lewis (2001), A simple option formula for general jump-diffusion and other exponential Levy
            processes, section 2. doi:10.2139/ssrn.282110
        """
        given = {"spot": spot, "variance": variance, "strike": strike, "maturity": maturity}
        values = {name: torch.as_tensor(value, dtype=torch.float64) for name, value in given.items()}
        for name, value in values.items():
            if not bool((((value > 0) | ((value == 0) & (name == "variance"))) & value.isfinite()).all()):
                bound = "at least 0" if name == "variance" else "positive"
                raise ValueError(f"`{name}` must be {bound} and finite; got {given[name]}.")
        s, v, k, t = (value.unsqueeze(-1) for value in values.values())
        growth = (self.interest * t).exp()
        forward = growth * s
        u = self._frequencies(v.detach(), t.detach())
        turned = (1j * u * (forward / k).log()).exp() * self._characteristic(u - 0.5j, v, t)
        integrand = turned.real / (u * u + 0.25)
        area = _STEP * (integrand.sum(-1, keepdim=True) - 0.5 * integrand[..., :1])
        return ((forward - (forward * k).sqrt() / math.pi * area) / growth).squeeze(-1)

    def _frequencies(self, variance: Tensor, time: Tensor) -> Tensor:
        """Nodes of the trapezoidal rule, up to where the integrand is below rounding."""
        end = torch.tensor([64.0], dtype=torch.float64, device=variance.device)
        with torch.no_grad():
            size = self._characteristic(end - 0.5j, variance, time).abs()
            while end < 2**16 and bool((size > 1e-17 * end**2).any()):
                end = 2 * end
                size = self._characteristic(end - 0.5j, variance, time).abs()
        return _STEP * torch.arange(int(end / _STEP), dtype=torch.float64, device=variance.device)

    def _characteristic(self, u: Tensor, variance: Tensor, time: Tensor) -> Tensor:
        """Characteristic function of ``log(S_T / F)``, in the form that stays on one branch.

        Albrecher, Mayer, Schoutens & Tistaert (2007), The little Heston trap, Wilmott Magazine.
        """
        cir, power = self.variance, 1j * u + u * u
        slope = cir.rate - 1j * self.correlation * cir.volatility * u
        d = (slope * slope + cir.volatility**2 * power).sqrt()
        pull = -power / (slope + d)  # (slope - d) / volatility**2 without the difference
        g, decay = cir.volatility**2 * pull / (slope + d), (-d * time).exp()
        growth = pull * time - 2 / cir.volatility**2 * ((1 - g * decay) / (1 - g)).log()
        loading = pull * (1 - decay) / (1 - g * decay)
        return (cir.rate * cir.level * growth + variance * loading).exp()
