r"""Posterior of the Hurst index of noisy data, with scale and noise level integrated out.

For the model of :mod:`sde.hurst.kalman` with priors

.. math:: H \sim p(H), \qquad p(\sigma) \propto 1 / \sigma, \qquad
          \log \frac{\tau}{\sigma h^H} \sim \mathcal U(\log 10^{-3}, \log 10^{3}),

where ``h`` is the step, the scale is integrated in closed form and the logarithm of the noise by quadrature
over a window that closes in on where it matters, for each index on its own: index and noise trade places
along a ridge.

References:
    Gelman et al. (2013), Bayesian Data Analysis, sections 3.2 and 10.2.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from scipy.interpolate import CubicSpline
from torch import Tensor

from sde.hurst.estimate import HurstEstimate
from sde.hurst.kalman import MarkovLikelihood, markov_model

__all__ = ["HurstPosterior", "markov_posterior"]

_LEAST, _MOST = math.log(1e-3), math.log(1e3)  # of the logarithm of the noise over the size of an increment
_INDICES, _NOISES, _ROUNDS = 17, 12, 3  # nodes, and how often the window of the noise closes in
_REACH = 5.0  # standard errors on either side of the estimate
_DEPTH = 14.0  # drop of the logarithm beyond which a noise level does not matter
_POINTS = 2001  # of the density


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class HurstPosterior:
    """The posterior of a Hurst index.

    Attributes:
        index: Indices, increasing, float64, shape ``(m,)``.
        density: Posterior density there; its integral is 1.
    """

    index: Tensor
    density: Tensor

    def __repr__(self) -> str:
        low, high = (float(end) for end in self.interval())
        return f"HurstPosterior({float(self.mean):.3f}, 95 % in [{low:.3f}, {high:.3f}])"

    @property
    def mean(self) -> Tensor:
        """Posterior mean."""
        return torch.trapezoid(self.index * self.density, self.index)

    @property
    def deviation(self) -> Tensor:
        """Posterior standard deviation."""
        return torch.trapezoid((self.index - self.mean).square() * self.density, self.index).sqrt()

    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """Central credible interval.

        Args:
            level: Posterior probability of the interval, in (0, 1).

        Returns:
            Lower and upper end.

        Raises:
            ValueError: If ``level`` is out of range.
        """
        if not 0 < level < 1:
            raise ValueError(f"`level` must lie in (0, 1); got {level}.")
        below = torch.cumulative_trapezoid(self.density, self.index)
        below = torch.cat((below.new_zeros(1), below)) / below[-1]
        places = torch.searchsorted(below, below.new_tensor([(1 - level) / 2, (1 + level) / 2]))
        low, high = self.index[places.clamp(max=len(self.index) - 1)]
        return low, high


def markov_posterior(
    times: Tensor,
    values: Tensor,
    estimate: HurstEstimate,
    *,
    log_prior: Callable[[Tensor], Tensor] | None = None,
    num_rates: int = 16,
) -> HurstPosterior:
    r"""Posterior of the Hurst index of data with measurement noise of unknown size.

    Args:
        times: Increasing instants, shape ``(T,)``, ``T >= 16``.
        values: Data, shape ``(T,)``.
        estimate: What :func:`sde.hurst.markov_likelihood` found with noise: where to look.
        log_prior: Indices ``(m,)`` to the logarithm of their prior density, up to a constant; ``None`` is
            uniform.
        num_rates: As for :func:`sde.hurst.markov_likelihood`.

    Returns:
        The posterior, within five standard errors of the estimate and where the approximation is good.

    Raises:
        ValueError: As for :func:`sde.hurst.markov_likelihood`, or if the estimate is without noise.

    Example:
        >>> from sde.hurst import markov_likelihood
        >>> from sde.noise import NoiseStream, fbm_path
        >>> stream = NoiseStream(seed=0, start=0, stop=1)
        >>> path = fbm_path(0.3, stream, 32, dtype=torch.float64)[0]
        >>> values = path + 0.3 * stream.normals(33, dtype=torch.float64)[0]
        >>> times = torch.arange(33, dtype=torch.float64)
        >>> estimate = markov_likelihood(times, values, num_rates=5)
        >>> found = markov_posterior(times, values, estimate, num_rates=5)
        >>> bool(found.interval()[0] < found.mean < found.interval()[1])
        True
    """
    if estimate.noise is None or estimate.scale is None:
        raise ValueError("`estimate` must hold a scale and a noise level; got none.")
    likelihood = markov_model(times, values, num_rates)
    reach = _REACH * float(estimate.std_error)
    low, high = (
        max(float(estimate.H) - reach, likelihood.low),
        min(float(estimate.H) + reach, likelihood.high),
    )
    nodes = torch.linspace(low, high, _INDICES, dtype=torch.float64)
    index, curve = _interpolated(nodes, _marginal(likelihood, nodes))
    if log_prior is not None:
        curve = curve + log_prior(index)
    density = (curve - curve.max()).exp()
    return HurstPosterior(index, density / torch.trapezoid(density, index))


def _marginal(likelihood: MarkovLikelihood, hurst: Tensor) -> Tensor:
    """Logarithm of the likelihood of indices ``(m,)``, with scale and noise integrated out."""
    low, high = torch.full_like(hurst, _LEAST), torch.full_like(hurst, _MOST)
    shares = torch.linspace(0, 1, _NOISES, dtype=torch.float64)
    count = len(likelihood.values) - 1

    def profile(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        places = low[:, None] + (high - low)[:, None] * shares
        log_sum, square_sum = likelihood.at(hurst.repeat_interleave(_NOISES), places.exp().flatten())
        return places, -0.5 * (log_sum + count * square_sum.log()).view_as(places)

    places, logs = profile(low, high)
    for _ in range(_ROUNDS - 1):  # nearer and nearer to where the likelihood matters
        matter = logs > logs.max(1, keepdim=True).values - _DEPTH
        rank = torch.arange(_NOISES)
        first = torch.where(matter, rank, _NOISES).min(1).values - 1
        last = torch.where(matter, rank, -1).max(1).values + 1
        edges = torch.stack((first, last), 1).clamp(0, _NOISES - 1)
        places, logs = profile(*places.gather(1, edges).unbind(1))
    top = logs.max(1, keepdim=True).values
    return top[:, 0] + torch.trapezoid((logs - top).exp(), places).log()


def _interpolated(nodes: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Places between equally spaced nodes, and a cubic through the values there."""
    fine = torch.linspace(float(nodes[0]), float(nodes[-1]), _POINTS, dtype=torch.float64)
    return fine, torch.from_numpy(CubicSpline(nodes.numpy(), values.numpy())(fine.numpy()))
