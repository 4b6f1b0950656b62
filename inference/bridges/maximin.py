r"""The Schroedinger bridge by a game between a path and a drift, without simulation.

For an interpolant :math:`x_t = I(t, x_0, x_1) + \gamma z` the drift that minimises

.. math:: \int_0^1 E \Bigl[\tfrac12 |u|^2 - \bigl(\partial_t I + (\dot\gamma - \epsilon / \gamma) z\bigr)
          \cdot u\Bigr] \mathrm dt

is that of a diffusion with diffusivity :math:`\epsilon` and the laws of the interpolant, and the minimum is
minus half its action. The bridge has the least action of all laws between the ends: it is the maximum over
the interpolants of the minimum over the drifts. Both sides are learned at once, the path uphill and the drift
downhill, by gradients at samples.

References:
    Albergo, Boffi & Vanden-Eijnden (2023), Stochastic interpolants, section 3.4 and equation 3.39.
    arXiv:2303.08797
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from inference.interpolants.couplings import Pairs
from sde.noise import NoiseStream, Purpose

__all__ = ["LearnedPath", "MaxMin", "PathPoint"]


class PathPoint(NamedTuple):
    """A path at some times: its parts at samples, each ``(n, d)`` or ``(n, 1)``."""

    centre: Tensor  #: I
    rate: Tensor  #: its derivative in time
    variance: Tensor  #: gamma squared
    half_rate: Tensor  #: gamma times its derivative


class LearnedPath(nn.Module):
    r"""An interpolant between coupled points, with the right ends whatever its parameters are.

    .. math:: I = (1 - t)(1 + t\, p_\alpha)\, x_0 + t\, (1 + (1 - t)\, p_\beta)\, x_1
              + t (1 - t)\, N(t, x_0, x_1), \qquad \gamma^2 = 2 \epsilon t (1 - t)\, e^{p_\gamma}

    with polynomials p of the time, which start at zero, and a network N. It begins as the Brownian bridge.

    Args:
        eps: Diffusivity of the bridge, positive.
        degree: Degree of the polynomials, at least 0.
        displacement: Maps rows ``(t, x_0, x_1)``, shape ``(n, 1 + 2 d)``, to ``(n, d)``; ``None`` is no
            network, which is enough between Gaussians in one dimension.
        pace: Factor of the polynomials, and so of the speed at which an optimiser such as Adam moves them:
            below 1, for the drift must follow the path.
        dtype: Floating dtype of the polynomials.

    Raises:
        ValueError: If ``eps`` or ``pace`` is not positive or ``degree`` negative.

    Example:
        >>> path, t = LearnedPath(0.5), torch.tensor([[0.5]], dtype=torch.float64)
        >>> path(t, 0 * t, 0 * t + 2).variance
        tensor([[0.2500]], dtype=torch.float64, grad_fn=<MulBackward0>)
    """

    def __init__(
        self,
        eps: float,
        *,
        degree: int = 4,
        displacement: nn.Module | None = None,
        pace: float = 0.3,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        """Start as the Brownian bridge."""
        super().__init__()
        for name, value in (("eps", eps), ("pace", pace)):
            if not 0 < value < math.inf:
                raise ValueError(f"`{name}` must be positive; got {value}.")
        if degree < 0:
            raise ValueError(f"`degree` must be at least 0; got {degree}.")
        self.eps, self.pace, self.displacement = eps, pace, displacement
        self.coefficients = nn.Parameter(torch.zeros(3, degree + 1, dtype=dtype))

    def forward(self, t: Tensor, base: Tensor, target: Tensor) -> PathPoint:
        """The path at times ``(n, 1)`` between points ``(n, d)``."""
        (alpha, alpha_rate), (beta, beta_rate), (log_gamma, log_rate) = self._polynomials(t)
        first, second = (1 - t) * (1 + t * alpha), t * (1 + (1 - t) * beta)
        first_rate = -(1 + t * alpha) + (1 - t) * (alpha + t * alpha_rate)
        second_rate = 1 + (1 - t) * beta + t * ((1 - t) * beta_rate - beta)
        centre, rate = first * base + second * target, first_rate * base + second_rate * target
        if self.displacement is not None:
            value, slope = self._displaced(t, base, target)
            centre, rate = centre + t * (1 - t) * value, rate + (1 - 2 * t) * value + t * (1 - t) * slope
        scale = self.eps * log_gamma.exp()
        half_rate = scale * (1 - 2 * t) + scale * t * (1 - t) * log_rate
        return PathPoint(centre, rate, 2 * t * (1 - t) * scale, half_rate)

    def _polynomials(self, t: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Values and derivatives of the three polynomials of ``2 t - 1``, each ``(n, 1)``."""
        place, values, slopes = 2 * t - 1, [torch.ones_like(t)], [torch.zeros_like(t)]
        for k in range(1, self.coefficients.shape[1]):
            slopes.append(2 * k * values[-1])
            values.append(values[-1] * place)
        value, slope = torch.cat(values, 1), torch.cat(slopes, 1)
        return [
            ((value @ c)[:, None], (slope @ c)[:, None]) for c in (self.pace * self.coefficients).unbind()
        ]

    def _displaced(self, t: Tensor, base: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """The network and its derivative in time."""
        network = self.displacement
        assert network is not None
        return torch.func.jvp(
            lambda at: network(torch.cat((at, base, target), 1)), (t,), (torch.ones_like(t),)
        )[:2]


@dataclass(frozen=True, slots=True)
class MaxMin:
    """The game as a loss for :func:`inference.fit`: its model holds the modules ``path`` and ``drift``.

    The gradient of the parameters of the path is reversed, so that one optimiser plays both sides. Sample
    ``i`` of iteration ``k`` is sample ``k * batch + i`` of the seed.

    Attributes:
        pairs: Source of base and target points; independent pairs will do.
        batch: Samples of an iteration, at least 1.
        seed: Seed of everything random.

    Raises:
        ValueError: If the batch is empty.

    Example:
        >>> from inference.interpolants import independent
        >>> from inference.reference_problems import Mixture
        >>> from inference.interpolants.field_network import FieldNetwork
        >>> law, drift = Mixture.standard(1), FieldNetwork(1, seed=0, dtype=torch.float64)
        >>> game = nn.ModuleDict({"path": LearnedPath(0.5), "drift": drift})
        >>> MaxMin(independent(law.sample, law.sample), batch=8, seed=0)(game, 0).shape
        torch.Size([])

    References:
        Albergo, Boffi & Vanden-Eijnden (2023), equation 3.39. arXiv:2303.08797
    """

    pairs: Pairs
    batch: int
    seed: int

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ValueError(f"`batch` must be at least 1; got {self.batch}.")

    def __call__(self, model: nn.Module, iteration: int) -> Tensor:
        """The mean of the objective over an iteration, 0-d."""
        noise = NoiseStream(self.seed, iteration * self.batch, (iteration + 1) * self.batch)
        path, drift = model.get_submodule("path"), model.get_submodule("drift")
        uphill = {name: 2 * p.detach() - p for name, p in path.named_parameters()}
        return self.losses(
            lambda *ends: torch.func.functional_call(path, uphill, ends), drift, _eps(path), noise
        ).mean()

    def losses(
        self,
        path: Callable[[Tensor, Tensor, Tensor], PathPoint],
        drift: Callable[[Tensor, Tensor], Tensor],
        eps: float,
        noise: NoiseStream,
    ) -> Tensor:
        """The objective at the samples of a stream, shape ``(n,)``; its mean is minus half the action."""
        base, target = self.pairs(noise)
        like = {"purpose": Purpose.TRAINING, "dtype": base.dtype, "device": base.device}
        latent = noise.fork("latent").normals(base.shape[1], **like)
        margin = torch.finfo(base.dtype).eps ** 0.5
        t = noise.fork("time").uniforms(1, **like).clamp(margin, 1 - margin)
        centre, rate, variance, half_rate = path(t, base, target)
        gamma = variance.sqrt()
        plus, minus = drift(t, centre + gamma * latent), drift(t, centre - gamma * latent)
        even = 0.25 * (plus**2 + minus**2) - 0.5 * (plus + minus) * rate
        odd = 0.5 * (half_rate - eps) / gamma * latent * (plus - minus)
        return (even - odd).sum(1)


def _eps(path: nn.Module) -> float:
    """The diffusivity of a path."""
    if not isinstance(path, LearnedPath):
        raise TypeError(f"`path` of the model must be a LearnedPath; got {type(path).__name__}.")
    return path.eps
