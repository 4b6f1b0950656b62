"""A linear problem with exact evidence, and posteriors of it that are trained with and without simulation."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from inference.elbo import bound, gaussian_divergence
from inference.girsanov import solve_measure
from inference.matching import Marginals, marginal_drift, matching_divergence
from sde import SDE, NoiseStream, NoiseStructure, Purpose
from sde.gradients import Backprop

__all__ = ["OU", "KernelPosterior", "LongCurve", "simulated", "simulation_free", "trained"]

_F64 = torch.float64
_LOG_TWO_PI = math.log(2 * math.pi)


def _posterior(prior: SDE, marginals: Marginals, starts: Tensor) -> SDE:
    """The equation with unit diffusion and given marginals, whose drift is asked at the starts of steps.

    The drift is linear in the state: two values at every instant, all in one batch, give it.
    """
    later = starts + 1e-9  # behind an observation, where a step starts from it
    one = torch.ones(1, dtype=_F64)
    means, deviations = marginals(later)
    centre = marginal_drift(marginals, one, later, means)[0]
    slope = (marginal_drift(marginals, one, later, means + deviations)[0] - centre) / deviations
    step = float(starts[1] - starts[0])
    rows = list(zip(centre.unbind(), slope.unbind(), means.unbind(), strict=True))

    def drift(t: Tensor, x: Tensor) -> Tensor:
        base, rate, mean = rows[round(float(t) / step)]
        return base + rate * (x - mean)

    return SDE(drift, prior.diffusion, prior.structure, prior.calculus)


class KernelPosterior(nn.Module):
    """Gaussian regression with the kernel of an Ornstein--Uhlenbeck process on learned pseudo-observations.

    Rate and initial variance of the kernel, pseudo-observations and their deviations are learned: those of
    the problem itself give the exact posterior.
    """

    def __init__(self, times: Tensor) -> None:
        super().__init__()
        self.instants = times
        self.raw = nn.Parameter(torch.tensor([0.5, 1.0], dtype=_F64).log())  # rate, initial variance
        self.values = nn.Parameter(torch.zeros_like(times))
        self.raw_deviations = nn.Parameter(torch.zeros_like(times))

    def kernel(self, s: Tensor, t: Tensor) -> Tensor:
        """Covariance of the process with unit diffusion."""
        rate, variance = self.raw.exp()
        spread = (-rate * (s - t).abs()).exp()
        return spread / (2 * rate) + (variance - 1 / (2 * rate)) * (-rate * (s + t)).exp()

    def marginals(self) -> Marginals:
        """Means and standard deviations at instants ``(k,)``, each ``(k, 1)``."""
        gram = self.kernel(self.instants[:, None], self.instants)
        inverse = torch.linalg.inv(gram + (2 * self.raw_deviations).exp().diag())
        weights = inverse @ self.values

        def at(t: Tensor) -> tuple[Tensor, Tensor]:
            cross = self.kernel(t[:, None], self.instants)
            variance = self.kernel(t, t) - ((cross @ inverse) * cross).sum(1)
            return (cross @ weights)[:, None], variance.sqrt()[:, None]

        return at


class Ends(NamedTuple):
    """Parts of a bound that belong to single instants."""

    likelihood: Tensor  #: expected log density of the observations
    divergence: Tensor  #: of the initial laws


@dataclass(frozen=True, slots=True, eq=False)
class OU:
    """An Ornstein--Uhlenbeck process of unit diffusion, observed with noise.

    Attributes:
        times: Instants of the observations, shape ``(T,)``, the last at 1.
        values: Observations, shape ``(T,)``.
        rate: Of the drift.
        deviation: Of the observations.
        initial: Standard deviation at time 0.
    """

    times: Tensor
    values: Tensor
    rate: float = 1.5
    deviation: float = 0.4
    initial: float = 0.7

    @classmethod
    def drawn(cls) -> "OU":
        """Five observations, drawn from the process."""
        times = torch.arange(1, 6, dtype=_F64) / 5
        blank = cls(times, torch.zeros_like(times))
        factor = torch.linalg.cholesky(blank.covariance())
        return cls(times, factor @ NoiseStream(3, 0, 1).normals(5, dtype=_F64)[0])

    def covariance(self) -> Tensor:
        """Of the observations."""
        s, t = self.times[:, None], self.times
        spread, decay = (-self.rate * (s - t).abs()).exp(), (-self.rate * (s + t)).exp()
        inner = spread / (2 * self.rate) + (self.initial**2 - 1 / (2 * self.rate)) * decay
        return inner + self.deviation**2 * torch.eye(len(t), dtype=_F64)

    def log_evidence(self) -> float:
        """Log density of the observations."""
        law = torch.distributions.MultivariateNormal(torch.zeros_like(self.times), self.covariance())
        return float(law.log_prob(self.values))

    def prior(self) -> SDE:
        """The equation."""
        return SDE(lambda t, x: -self.rate * x, lambda t, x: torch.ones_like(x), NoiseStructure.ADDITIVE)

    def start(self) -> KernelPosterior:
        """The posterior before training."""
        return KernelPosterior(self.times)

    def log_density(self, states: Tensor) -> Tensor:
        """Of the observations given states at their instants, ``(n, T)`` to ``(n,)``."""
        gaps = (self.values - states) / self.deviation
        return (-0.5 * gaps.square() - math.log(self.deviation) - 0.5 * _LOG_TWO_PI).sum(-1)

    def ends(self, marginals: Marginals) -> Ends:
        """The parts of the bound at the observations and at the start, in closed form."""
        mean, deviation = (part[:, 0] for part in marginals(self.times))
        likelihood = self.log_density(mean) - 0.5 * (deviation / self.deviation).square().sum()
        mean, deviation = (part[0] for part in marginals(self.times[:1] * 0))
        scale = torch.full_like(mean, self.initial)
        return Ends(likelihood, gaussian_divergence(mean, deviation, 0 * mean, scale))

    @torch.no_grad()
    def bound(self, posterior: KernelPosterior) -> float:
        """The bound in continuous time, by Gauss--Legendre quadrature between the observations."""
        marginals = posterior.marginals()
        nodes, weights = (torch.tensor(part) for part in _legendre(40))
        edges = torch.cat((self.times[:1] * 0, self.times))
        spans = edges.diff()[:, None]
        times = (edges[:-1, None] + 0.5 * spans * (nodes + 1)).flatten()
        means, deviations = marginals(times)
        one = torch.ones(1, dtype=_F64)
        centre = marginal_drift(marginals, one, times, means)[0] + self.rate * means
        above = marginal_drift(marginals, one, times, means + deviations)[0]
        slope = above + self.rate * (means + deviations) - centre  # the gap is linear in the state
        squares = (centre.square() + slope.square())[:, 0].view(len(spans), -1)
        ends = self.ends(marginals)
        return float(ends.likelihood - ends.divergence - 0.5 * (0.5 * spans * weights * squares).sum())


def _legendre(count: int) -> tuple[list[float], list[float]]:
    """Nodes and weights on [-1, 1]."""
    from numpy.polynomial.legendre import leggauss

    nodes, weights = leggauss(count)
    return nodes.tolist(), weights.tolist()


Loss = Callable[[OU, KernelPosterior, NoiseStream], Tensor]


def simulation_free(problem: OU, posterior: KernelPosterior, noise: NoiseStream) -> Tensor:
    """The negative bound without a simulated path."""
    marginals = posterior.marginals()
    ends = problem.ends(marginals)
    terms = matching_divergence(problem.prior(), marginals, 0.0, 1.0, noise)
    return ends.divergence + terms.divergence.mean() - ends.likelihood


def simulated(problem: OU, posterior: KernelPosterior, noise: NoiseStream) -> Tensor:
    """The negative bound along Euler paths of the same posterior."""
    marginals, prior = posterior.marginals(), problem.prior()
    zero = problem.times[:1] * 0
    mean, deviation = marginals(zero)
    start = mean + deviation * noise.normals(1, purpose=Purpose.INITIAL_STATE, dtype=_F64)
    measure = solve_measure(
        prior,
        _posterior(prior, marginals, torch.arange(100, dtype=_F64) / 100),
        start,
        torch.cat((zero, problem.times)),
        noise,
        substeps=20,
        gradient=Backprop(),
    )
    likelihood = problem.log_density(measure.paths[:, 1:, 0])
    return problem.ends(marginals).divergence - bound(measure, likelihood).elbo.mean()


def trained(problem: OU, loss: Loss, iterations: int) -> tuple[KernelPosterior, float]:
    """A posterior trained by a loss, and how long that took."""
    posterior, began = problem.start(), time.perf_counter()
    adam = torch.optim.Adam(posterior.parameters(), lr=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, iterations)
    for k in range(iterations):
        adam.zero_grad()
        loss(problem, posterior, NoiseStream(11, 64 * k, 64 * (k + 1))).backward()
        adam.step()
        schedule.step()
    return posterior, time.perf_counter() - began


class LongCurve(nn.Module):
    """A posterior of a long series by cubic pieces between its observations, ten steps apart.

    Args:
        steps: Number of steps of length 0.01 that a simulation takes.
    """

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps, self.length = steps, 0.01 * steps
        knots = steps // 10 + 1
        self.numbers = nn.Parameter(0.1 * NoiseStream(1, 0, knots).normals(4, dtype=_F64))
        self.values = NoiseStream(2, 0, knots).normals(1, dtype=_F64)[:, 0]
        self.prior = SDE(lambda t, x: -x, lambda t, x: torch.ones_like(x), NoiseStructure.ADDITIVE)

    def marginals(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Hermite's cubics of means and of logarithms of deviations, each ``(k, 1)``."""
        scaled = 10 * t
        left = scaled.detach().long().clamp(0, len(self.numbers) - 2)
        s = (scaled - left)[:, None]
        (here, slope), (there, next_slope) = (self.numbers[left + k].view(-1, 2, 2).unbind(1) for k in (0, 1))
        flat, rise = (1 + 2 * s) * (1 - s) ** 2, s * (1 - s) ** 2
        value = flat * here + (1 - flat) * there + rise * slope + s**2 * (s - 1) * next_slope
        return value[:, :1], value[:, 1:].exp()

    def free(self, noise: NoiseStream) -> Tensor:
        """The loss at 16 random instants and 16 random observations: unbiased."""
        terms = matching_divergence(self.prior, self.marginals, 0.0, self.length, noise)
        picks = noise.fork("observations")[:1].uniforms(16, dtype=_F64)[0]
        rows = (picks * len(self.values)).long()
        mean, deviation = self.marginals(rows / 10)
        gaps = (self.values[rows] - mean[:, 0]).square() + deviation[:, 0].square()
        return terms.divergence.mean() + 0.5 * gaps.mean() * len(self.values)

    def simulated(self, noise: NoiseStream) -> Tensor:
        """The loss along paths."""
        mean, deviation = self.marginals(torch.zeros(1, dtype=_F64))
        start = mean + deviation * noise.normals(1, purpose=Purpose.INITIAL_STATE, dtype=_F64)
        times = torch.arange(len(self.values), dtype=_F64) / 10
        done = solve_measure(
            self.prior,
            _posterior(self.prior, self.marginals, torch.arange(self.steps, dtype=_F64) / 100),
            start,
            times,
            noise,
            substeps=10,
            gradient=Backprop(),
        )
        return (done.divergence[:, -1] + 0.5 * (self.values - done.paths[..., 0]).square().sum(1)).mean()
