r"""The posterior of a drift given noisy series, with the paths between the observations integrated out.

For :math:`\mathrm dX = \sum_j c_j \varphi_j(X)\,\mathrm dt + \sigma\,\mathrm dW` Girsanov's density of a path
is the exponential of a quadratic form of the coefficients,

.. math::

    \log \frac{\mathrm dP_c}{\mathrm dP_0}(x) = \frac{1}{\sigma^2} \Bigl[ \int c \cdot \varphi(x)\,\mathrm dx
    - \tfrac12 \int (c \cdot \varphi(x))^2\,\mathrm dt \Bigr],

so that under a normal prior they are normal given a path, and exactly so for the Euler chain of the path. The
path itself is hidden. Gibbs sampling alternates: coefficients given paths; the size of the noise given both;
paths given both and the observations, by a particle filter that is made to keep the last path
(conditional SMC with ancestor sampling), which leaves their exact law invariant with any number of particles.
The draws that it yields are those of the posterior: nothing is approximated but time, by steps.

References:
    Andrieu, Doucet & Holenstein (2010), Particle Markov chain Monte Carlo methods.
    doi:10.1111/j.1467-9868.2009.00736.x
    Lindsten, Jordan & Schon (2014), Particle Gibbs with ancestor sampling. jmlr.org/papers/v15
    Roberts & Stramer (2001), On inference for partially observed nonlinear diffusion models using the
    Metropolis-Hastings algorithm, on why steps must not be too short. doi:10.1093/biomet/88.3.603
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sde import NoiseStream, Purpose, check_shapes
from sde.progress import Progress

__all__ = ["DriftDraws", "HiddenPaths", "conditional_paths", "drift_law", "radial_features", "sample_drift"]

Features = Callable[[Tensor], Tensor]
"""States ``(...)`` to features ``(..., k)``."""


def radial_features(centres: Tensor, width: float) -> Features:
    r"""Bumps :math:`\exp(-(x - m_j)^2 / 2 w^2)` of a width around centres.

    Example:
        >>> radial_features(torch.linspace(-1, 1, 3), 0.5)(torch.zeros(2, 4)).shape
        torch.Size([2, 4, 3])
    """
    return lambda x: torch.exp(-0.5 * ((x[..., None] - centres.to(x)) / width).square())


@dataclass(frozen=True, slots=True, eq=False)
class HiddenPaths:
    """Scalar series seen with noise at some of the instants of a grid.

    Attributes:
        times: Increasing instants, the steps of Euler's scheme, shape ``(N + 1,)``.
        steps: Numbers of the observed ones, increasing, shape ``(M,)``.
        values: What was observed, shape ``(R, B, M)``: ``R`` data sets of ``B`` series.
        deviation: Standard deviation of the observations, positive.
        initial_deviation: Standard deviation of the state at the first instant, whose mean is 0.

    Raises:
        ValueError: If a shape is wrong, an instant or a deviation out of range.
    """

    times: Tensor
    steps: Tensor
    values: Tensor
    deviation: float
    initial_deviation: float = 1.0

    def __post_init__(self) -> None:
        check_shapes(times=(self.times, "N"), steps=(self.steps, "M"), values=(self.values, "R B M"))
        if not bool((self.times.diff() > 0).all()):
            raise ValueError("`times` must increase; got instants that do not.")
        numbers = self.steps.tolist()
        if numbers != sorted(set(numbers)) or not 0 <= numbers[0] <= numbers[-1] < len(self.times):
            raise ValueError(f"`steps` must be increasing and lie in [0, {len(self.times)}); got {numbers}.")
        if not (self.deviation > 0 and self.initial_deviation > 0):
            raise ValueError(
                f"`deviation` and `initial_deviation` must be positive; got {self.deviation}, "
                f"{self.initial_deviation}."
            )

    def first_guess(self) -> Tensor:
        """Paths through the observations, linear between them, shape ``(R, B, N + 1)``."""
        seen = self.times[self.steps]
        after = torch.searchsorted(seen, self.times).clamp(1, len(seen) - 1)
        share = ((self.times - seen[after - 1]) / (seen[after] - seen[after - 1])).clamp(0, 1)
        low, high = self.values[..., after - 1], self.values[..., after]
        return low + share.to(low) * (high - low)


def drift_law(
    paths: Tensor, times: Tensor, features: Features, sigma: Tensor, deviation: float
) -> tuple[Tensor, Tensor]:
    """The law of the coefficients given paths: mean, and the Cholesky factor of the precision.

    Args:
        paths: Shape ``(R, B, N + 1)``.
        times: Shape ``(N + 1,)``.
        features: ``k`` functions of the state.
        sigma: Size of the noise, shape ``(R,)``.
        deviation: Prior standard deviation of the coefficients, whose mean is 0.

    Returns:
        Mean ``(R, k)`` and lower factor ``(R, k, k)``.

    Example:
        >>> path = torch.tensor([[[0.0, 1.0, 3.0]]])
        >>> one = lambda x: torch.ones_like(x)[..., None]  # a constant drift: precision 2 + 1, sum 3
        >>> mean, _ = drift_law(path, torch.tensor([0.0, 1.0, 2.0]), one, torch.ones(1), 1.0)
        >>> torch.allclose(mean, torch.ones(1, 1))
        True
    """
    phi = features(paths[..., :-1]).flatten(1, 2)
    spans = times.diff().to(paths).expand(paths.shape[1], -1).flatten()
    precision = phi.mT @ (phi * spans[:, None]) / sigma.square()[:, None, None]
    eye = torch.eye(phi.shape[-1], dtype=phi.dtype)
    root = torch.linalg.cholesky(precision + eye / deviation**2)
    total = phi.mT @ paths.diff(dim=-1).flatten(1, 2)[..., None] / sigma.square()[:, None, None]
    return torch.cholesky_solve(total, root)[..., 0], root


def conditional_paths(
    problem: HiddenPaths,
    drift: Callable[[Tensor], Tensor],
    sigma: Tensor,
    kept: Tensor,
    noise: NoiseStream,
    *,
    particles: int = 16,
) -> Tensor:
    """Paths given the observations: one sweep of conditional SMC with ancestor sampling.

    Args:
        problem: Observations.
        drift: States ``(R, B, P)`` to drifts.
        sigma: Size of the noise, shape ``(R,)``.
        kept: Paths of the sweep before, shape ``(R, B, N + 1)``.
        noise: One sample for each of the ``R B`` series.
        particles: Number of particles ``P``, at least 2.

    Returns:
        Paths of the next sweep, shape ``(R, B, N + 1)``.

    Raises:
        ValueError: If there are fewer than 2 particles, or samples and series differ in number.
    """
    shape = kept.shape[:2]
    if particles < 2 or len(noise) != shape.numel():
        raise ValueError(
            f"`particles` must be at least 2 and `noise` hold {shape.numel()} samples; got {particles} and "
            f"{len(noise)}."
        )
    count, dtype = len(problem.times), kept.dtype
    normals = noise.normals(count, channels=particles, dtype=dtype).view(*shape, count, particles)
    seen = {n: k for k, n in enumerate(problem.steps.tolist())}
    uniforms = noise.uniforms(
        len(seen) + 1, purpose=Purpose.RESAMPLING, channels=particles, dtype=dtype
    ).view(*shape, len(seen) + 1, particles)
    size = sigma.to(kept)[:, None, None]
    state = problem.initial_deviation * normals[..., 0, :]
    state[..., -1] = kept[..., 0]
    states, ancestors = [state], []
    own = torch.arange(particles).expand_as(state)
    for n, dt in enumerate(problem.times.diff().tolist()):
        mean, spread = state + dt * drift(state), size * math.sqrt(dt)
        parents = own
        if n in seen:
            weights = _log_likelihood(problem, seen[n], state)
            reference = weights - 0.5 * ((kept[..., n + 1, None] - mean) / spread).square()
            drawn = uniforms[..., seen[n], :]
            parents = _chosen(weights, drawn[..., :-1])
            parents = torch.cat((parents, _chosen(reference, drawn[..., -1:])), -1)
        state = mean.gather(-1, parents) + spread * normals[..., n + 1, :]
        state[..., -1] = kept[..., n + 1]
        states.append(state)
        ancestors.append(parents)
    final = torch.zeros_like(state)
    if count - 1 in seen:
        final = _log_likelihood(problem, seen[count - 1], state)
    return _traced(states, ancestors, _chosen(final, uniforms[..., -1, :1]))


def _log_likelihood(problem: HiddenPaths, place: int, state: Tensor) -> Tensor:
    """Log density of an observation at every particle, but for a constant."""
    return -0.5 * ((problem.values[..., place, None].to(state) - state) / problem.deviation).square()


def _chosen(log_weights: Tensor, uniforms: Tensor) -> Tensor:
    """Numbers of particles drawn in proportion to their weights, of the shape of the uniforms."""
    total = log_weights.softmax(-1).cumsum(-1)
    return torch.searchsorted(total, uniforms.contiguous()).clamp(max=log_weights.shape[-1] - 1)


def _traced(states: list[Tensor], ancestors: list[Tensor], last: Tensor) -> Tensor:
    """The path that ends in a particle."""
    path = [states[-1].gather(-1, last)]
    for state, parents in zip(states[-2::-1], ancestors[::-1], strict=True):
        last = parents.gather(-1, last)
        path.append(state.gather(-1, last))
    return torch.cat(path[::-1], -1)


class DriftDraws(NamedTuple):
    """Draws of the posterior, one after the other in the Markov chain."""

    coefficients: Tensor  #: shape ``(S, R, k)``
    sigma: Tensor  #: size of the noise, shape ``(S, R)``

    def band(self, features: Tensor, level: float = 0.9) -> Tensor:
        """Quantiles of the drift at states with given features ``(m, k)``: lower, median, upper.

        Returns:
            Shape ``(3, R, m)``; each state has its own interval of probability ``level``.
        """
        drifts = torch.einsum("srk,mk->srm", self.coefficients, features.to(self.coefficients))
        tail = 0.5 * (1 - level)
        return drifts.quantile(torch.tensor([tail, 0.5, 1 - tail]).to(drifts), dim=0)


def sample_drift(
    problem: HiddenPaths,
    features: Features,
    *,
    deviation: float,
    seed: int,
    sweeps: int = 500,
    burn: int = 100,
    particles: int = 16,
    progress: bool = True,
) -> DriftDraws:
    r"""Draw drifts and sizes of the noise from their posterior.

    The prior of the coefficients is normal, that of :math:`\sigma^2` proportional to :math:`1 / \sigma^2`.
    Sigma moves slowly from draw to draw, the slower the more steps lie between observations: its own spread
    takes many hundred sweeps. Where few noisy series hardly tell a quick return from little noise, wide
    priors pull both upwards.

    Args:
        problem: Observations of one or more data sets, each with a posterior of its own.
        features: Functions of the state that span the drifts.
        deviation: Prior standard deviation of the coefficients, positive.
        seed: Seed of the chain.
        sweeps: Draws that are kept, at least 1.
        burn: Draws before them that are not.
        particles: As for :func:`conditional_paths`.
        progress: Show a bar.

    Returns:
        The draws.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> values = torch.tensor([[[0.0, 0.5], [0.0, -0.5]]])
        >>> problem = HiddenPaths(torch.linspace(0, 1, 11), torch.tensor([0, 10]), values, 0.1)
        >>> bumps = radial_features(torch.linspace(-1, 1, 3), 0.5)
        >>> draws = sample_drift(problem, bumps, deviation=1.0, seed=0, sweeps=5, burn=2, progress=False)
        >>> draws.coefficients.shape, draws.sigma.shape
        (torch.Size([5, 1, 3]), torch.Size([5, 1]))
    """
    if not deviation > 0 or sweeps < 1 or burn < 0:
        raise ValueError(
            f"`deviation` must be positive, `sweeps` at least 1 and `burn` at least 0; got {deviation}, "
            f"{sweeps}, {burn}."
        )
    paths = problem.first_guess()
    spans, sets = problem.times.diff().to(paths), len(paths)
    sigma = (paths.diff(dim=-1).square().sum((1, 2)) / (spans.sum() * paths.shape[1])).sqrt()
    found: list[tuple[Tensor, Tensor]] = []
    with Progress(burn + sweeps, "posterior of the drift", show=progress) as bar:
        for sweep in range(burn + sweeps):
            root_noise = NoiseStream(seed, 0, 1).fork(f"sweep {sweep}")
            mean, root = drift_law(paths, problem.times, features, sigma, deviation)
            normal = root_noise.normals(sets, channels=mean.shape[1], dtype=paths.dtype)[0]
            step = torch.linalg.solve_triangular(root.mT, normal[..., None], upper=True)[..., 0]
            coefficients = mean + step
            sigma = _noise_size(paths, spans, features, coefficients, root_noise)
            weights = coefficients[:, None, :, None]
            paths = conditional_paths(
                problem,
                lambda x, w=weights: (features(x) @ w)[..., 0],
                sigma,
                paths,
                NoiseStream(root_noise.seed, 0, paths.shape[:2].numel()).fork("paths"),
                particles=particles,
            )
            if sweep >= burn:
                found.append((coefficients, sigma))
            bar.update(1, f"sigma {float(sigma.mean()):.3f}")
    return DriftDraws(torch.stack([c for c, _ in found]), torch.stack([s for _, s in found]))


def _noise_size(
    paths: Tensor, spans: Tensor, features: Features, coefficients: Tensor, noise: NoiseStream
) -> Tensor:
    """A draw of the size of the noise given paths and drift, shape ``(R,)``."""
    drifts = (features(paths[..., :-1]) @ coefficients[:, None, :, None])[..., 0]
    total = ((paths.diff(dim=-1) - drifts * spans).square() / spans).sum((1, 2))
    count = paths.shape[1] * len(spans)
    # Wilson and Hilferty's cube: for so many degrees of freedom exact to 1e-4 of the spread.
    normal = noise.normals(len(paths), purpose=Purpose.LATENT, dtype=paths.dtype)[0]
    chi_squared = count * (1 - 2 / (9 * count) + normal * math.sqrt(2 / (9 * count))) ** 3
    return (total / chi_squared).sqrt()
