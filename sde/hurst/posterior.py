r"""Posterior of the Hurst index of noisy data, with scale and noise level integrated out.

For the model of :mod:`sde.hurst.kalman` with priors

.. math:: H \sim p(H), \qquad p(\sigma) \propto 1 / \sigma, \qquad
          \log \frac{\tau}{\sigma h^H} \sim \mathcal U(\log 10^{-3}, \log 10^{3}),

where ``h`` is the step, the scale is integrated in closed form and the logarithm of the noise by quadrature:
along a grid that is turned with the ridge on which index and noise trade places.

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
_COARSE, _FINE, _ACROSS = 7, 15, 9
_REACH = 4.5  # standard deviations on either side
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
        The posterior, within five standard errors of the estimate.

    Raises:
        ValueError: As for :func:`sde.hurst.markov_likelihood`, or if the estimate is without noise.

    Example:
        >>> from sde.hurst import markov_likelihood
        >>> from sde.noise import NoiseStream, fbm_path
        >>> stream = NoiseStream(seed=0, start=0, stop=1)
        >>> path = fbm_path(0.3, stream, 128, dtype=torch.float64)[0]
        >>> values = path + 0.3 * stream.normals(129, dtype=torch.float64)[0]
        >>> times = torch.arange(129, dtype=torch.float64)
        >>> found = markov_posterior(times, values, markov_likelihood(times, values))
        >>> bool(found.interval()[0] < found.mean < found.interval()[1])
        True
    """
    if estimate.noise is None or estimate.scale is None:
        raise ValueError("`estimate` must hold a scale and a noise level; got none.")
    likelihood = markov_model(times, values, num_rates)
    h, error = float(estimate.H), float(estimate.std_error)
    size = float(estimate.scale) * likelihood.step**h
    ratio = min(max(math.log(max(float(estimate.noise), 1e-300) / size), _LEAST + 1), _MOST - 1)
    centre, spread = torch.tensor([h, ratio], dtype=torch.float64), torch.diag(torch.tensor([error, 1.0]))
    centre, spread = _ridge(likelihood, centre, spread.double())
    along = torch.linspace(-_REACH, _REACH, _FINE, dtype=torch.float64)
    across = torch.linspace(-_REACH, _REACH, _ACROSS, dtype=torch.float64)
    logs = _log_posterior(likelihood, _places(centre, spread, along, across)).view(_FINE, _ACROSS)
    curve = _interpolated(along, logs.logsumexp(1))
    index = centre[0] + spread[0, 0] * curve[0]
    if log_prior is not None:
        curve[1] += log_prior(index)
    valid = (index > likelihood.low) & (index < likelihood.high)
    density = torch.where(valid, (curve[1] - curve[1].max()).exp(), 0.0)
    return HurstPosterior(index, density / torch.trapezoid(density, index))


def _places(centre: Tensor, spread: Tensor, along: Tensor, across: Tensor) -> Tensor:
    """Index and logarithm of the noise on a grid of whitened coordinates, shape ``(a * b, 2)``."""
    return centre + torch.cartesian_prod(along, across) @ spread.mT


def _log_posterior(likelihood: MarkovLikelihood, places: Tensor) -> Tensor:
    """Logarithm of the likelihood with the scale integrated out and of the prior of the noise."""
    hurst, noise = places[:, 0].clamp(likelihood.low, likelihood.high), places[:, 1].clamp(_LEAST, _MOST)
    log_sum, square_sum = likelihood.at(hurst, noise.exp())
    count = len(likelihood.values) - 1
    inside = (places[:, 1] >= _LEAST) & (places[:, 1] <= _MOST)
    return torch.where(inside, -0.5 * (log_sum + count * square_sum.log()), -math.inf)


def _ridge(likelihood: MarkovLikelihood, centre: Tensor, spread: Tensor) -> tuple[Tensor, Tensor]:
    """Centre and lower factor of the covariance of the posterior, by a weighted fit of moments."""
    nodes = torch.linspace(-3.0, 3.0, _COARSE, dtype=torch.float64)
    for _ in range(2):
        places = _places(centre, spread, nodes, nodes)
        logs = _log_posterior(likelihood, places)
        weights = (logs - logs.max()).exp()
        weights = weights / weights.sum()
        centre = weights @ places
        gaps = places - centre
        # A grid that is too coarse sees no spread: never narrow a coordinate by more than its spacing.
        least = torch.diag((nodes[1] - nodes[0]) * 0.4 * spread.diagonal()).square()
        spread = torch.linalg.cholesky((gaps * weights[:, None]).mT @ gaps + least)
    return centre, spread


def _interpolated(nodes: Tensor, values: Tensor) -> Tensor:
    """A cubic through logarithms on equally spaced nodes, shape ``(2, m)``: places and values."""
    fine = torch.linspace(float(nodes[0]), float(nodes[-1]), _POINTS, dtype=torch.float64)
    kept = values.isfinite()
    spline = CubicSpline(nodes[kept].numpy(), values[kept].numpy())
    return torch.stack((fine, torch.from_numpy(spline(fine.numpy()))))
