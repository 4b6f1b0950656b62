r"""Latent equations trained without simulation: an amortised posterior of Gaussian marginals.

.. math::

    \log p(o) \ge \sum_i \mathbb E_{q_{t_i}} \log p(o_i \mid X_{t_i})
    - \mathrm{KL}(q_{t_0} \,\|\, p_{t_0})
    - \tfrac12 \int \mathbb E_{q_t}\,\Bigl|\frac{f_q - f_\theta}{g_\theta}\Bigr|^2\,\mathrm dt

with marginals :math:`q_t` of a curve :math:`\mu(t) + M(t)\,\varepsilon` that an encoder draws through the
instants of a series, and the drift :math:`f_q` that has them (:mod:`inference.matching`). All terms are
expectations under one marginal at a time: they are estimated without a bias, all at once, at random instants.
A step of the training costs the same whatever the number of steps that a solver would take.

The bound is that of the equation in continuous time. Prior, decoder and likelihood are those of a
:class:`inference.latent_sde.LatentSDE`, and after training they are used as they are there.

References:
    Bartosh, Vetrov & Naesseth (2025), SDE matching. arXiv:2502.02472
    Course & Nair (2023), arXiv:2312.10550
"""

from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from inference.encoders import Encoder, TemporalConvolution
from inference.latent_dynamics import ControlledDynamics
from inference.latent_samplers import Prediction, summarise
from inference.latent_sde import LatentSDE
from inference.likelihoods import Likelihood
from inference.matching import Marginals, matching_divergence, sample_marginals
from inference.series import Series
from sde import Calculus, NoiseStream, Purpose, solve
from sde.networks import perceptron

__all__ = ["GaussianCurve", "LatentMatching", "MarginalPosterior", "MatchingBound"]


@dataclass(frozen=True, slots=True, eq=False)
class GaussianCurve:
    """Gaussian marginals along time: cubic pieces between knots, where their slopes may jump.

    They jump where the posterior of an equation does: at observations. The factor ``M = L D U`` has unit
    triangles ``L`` and ``U`` and a positive diagonal ``D``, whose logarithm is the diagonal of the numbers:
    it is invertible whatever these are.

    Attributes:
        knots: Increasing instants, at least 2, shape ``(T,)``.
        means: At the knots, shape ``(B, T, d)``.
        shapes: Numbers of the factors at the knots, shape ``(B, T, d)`` for ``M = D``, else
            ``(B, T, d, d)``.
        tangents: Departures, left and right of each knot, from the slopes of differences; times the length of
            the piece; shape ``(2, B, T, c)`` with ``c`` the numbers of a mean and of its factor.
    """

    knots: Tensor
    means: Tensor
    shapes: Tensor
    tangents: Tensor

    def __call__(self, times: Tensor) -> tuple[Tensor, Tensor]:
        """Means ``(B, k, d)``, and deviations ``(B, k, d)`` or factors ``(B, k, d, d)``."""
        dim = self.means.shape[-1]
        numbers = self._interpolate(times.to(self.means))
        mean, shape = numbers[..., :dim], numbers[..., dim:]
        if self.shapes.ndim == self.means.ndim:
            return mean, shape.exp()
        return mean, _factor(shape.unflatten(-1, (dim, dim)))

    def _interpolate(self, times: Tensor) -> Tensor:
        """Cubic Hermite pieces through mean and factor, shape ``(B, k, c)``."""
        knots = self.knots.to(self.means)
        values = torch.cat((self.means, self.shapes.flatten(2)), 2)
        slopes = torch.gradient(values, spacing=(knots,), dim=1)[0]
        piece = torch.searchsorted(knots, times.detach(), right=True).clamp(1, len(knots) - 1)
        span = (knots[piece] - knots[piece - 1])[:, None]
        s = (times - knots[piece - 1])[:, None] / span
        left, right = values[:, piece - 1], values[:, piece]
        out = span * slopes[:, piece - 1] + self.tangents[1][:, piece - 1]
        into = span * slopes[:, piece] + self.tangents[0][:, piece]
        rest = 1 - s
        bend = s * rest * (rest * (out - right + left) - s * (into - right + left))
        return left + s * (right - left) + bend

    def repeat(self, count: int) -> "GaussianCurve":
        """Each series ``count`` times."""
        return GaussianCurve(
            self.knots,
            self.means.repeat_interleave(count, 0),
            self.shapes.repeat_interleave(count, 0),
            self.tangents.repeat_interleave(count, 1),
        )


def _factor(numbers: Tensor) -> Tensor:
    """Matrices ``L D U`` from the numbers of their triangles and the logarithms of their diagonals."""
    unit = torch.eye(numbers.shape[-1], dtype=numbers.dtype, device=numbers.device)
    diagonal = numbers.diagonal(dim1=-2, dim2=-1).exp()
    return (numbers.tril(-1) + unit) @ (diagonal[..., None] * (numbers.triu(1) + unit))


class MarginalPosterior(nn.Module):
    """Gaussian marginals of latent paths given series: knots at their instants, set by an encoder.

    The means start at the observations, those missing interpolated, and the factors at multiples of one.

    Args:
        observed_dim: Number ``p`` of observed components.
        latent_dim: Number ``d`` of latent components.
        seed: Seed of the initial weights.
        encoder: Module of a :class:`Series` to features ``(B, T, c)``; ``None`` is a
            :class:`TemporalConvolution`. Rows should know what is on both sides of their instants.
        width: Width of the hidden layer between features and knots.
        deviation: Standard deviation of the marginals at the start, positive.
        correlated: Full factors; ``False`` makes the components independent, for states of many components.
        dtype: Floating dtype, which series must have.

    Raises:
        ValueError: If the deviation is not positive.

    Example:
        >>> posterior = MarginalPosterior(2, 3, seed=0)
        >>> curve = posterior(Series(torch.tensor([0.0, 0.3, 1.0]), torch.zeros(4, 3, 2)))
        >>> [tuple(part.shape) for part in curve(torch.tensor([0.1, 0.9]))]
        [(4, 2, 3), (4, 2, 3, 3)]
    """

    def __init__(
        self,
        observed_dim: int,
        latent_dim: int,
        *,
        seed: int,
        encoder: nn.Module | None = None,
        width: int = 64,
        deviation: float = 0.1,
        correlated: bool = True,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        if not deviation > 0:
            raise ValueError(f"`deviation` must be positive; got {deviation}.")
        seeds = NoiseStream(seed, 0, 1)
        if encoder is None:
            encoder = TemporalConvolution(observed_dim, seed=seeds.fork("encoder").seed, dtype=dtype)
        self.encoder, self.latent_dim, self.correlated = encoder, latent_dim, correlated
        features = cast(Encoder, encoder).context_dim + 2 * observed_dim
        self.numbers = latent_dim * (1 + (latent_dim if correlated else 1))
        self.head = perceptron(
            (features, width, 3 * self.numbers), seed=seeds.fork("head").seed, dtype=dtype, zero_last=True
        )
        self.skip = nn.Parameter(torch.eye(observed_dim, latent_dim, dtype=dtype))
        start = torch.full((latent_dim,), deviation, dtype=dtype).log()
        self.start = nn.Parameter(start.diag() if correlated else start, requires_grad=False)

    def forward(self, series: Series) -> GaussianCurve:
        """The marginals of each of ``B`` series."""
        seen = series.interpolated()
        features = torch.cat((self.encoder(series), seen, series.mask.to(seen)), 2)
        knots, left, right = self.head(features).split(self.numbers, 2)
        means = knots[..., : self.latent_dim] + seen @ self.skip
        shapes = knots[..., self.latent_dim :].unflatten(2, self.start.shape) + self.start
        return GaussianCurve(series.times, means, shapes, torch.stack((left, right)))


class MatchingBound(NamedTuple):
    """Estimates of the lower bound of the log evidence of every series, and of its parts."""

    elbo: Tensor  #: without a bias, shape ``(B,)``
    log_likelihood: Tensor  #: of the observations, shape ``(B,)``
    initial_divergence: Tensor  #: of the first marginal from the prior, exact, shape ``(B,)``
    divergence: Tensor  #: of the paths, given the initial states, shape ``(B,)``


class LatentMatching(nn.Module):
    """The simulation-free objective of a latent equation, for :func:`inference.latent_training.train_latent`.

    Args:
        model: The latent equation, with Brownian motion. Its control, recognition and encoder have no part in
            this objective; the rest is trained.
        posterior: Marginals of its paths.
        instants: Instants at which the drifts are compared in one estimate.
        observations: Instants at which the likelihood is evaluated in one estimate, drawn with replacement;
            ``None`` is all.

    Raises:
        ValueError: If the model has fractional noise, whose marginals of noise and state are not all of one
            equation, something else beside the state, or a solver in the sense of Stratonovich; or if sizes
            disagree.

    Example:
        >>> from inference.latent_sde import latent_sde
        >>> matched = LatentMatching(latent_sde(2, 3, max_step=0.1, seed=0), MarginalPosterior(2, 3, seed=0))
        >>> series = Series(torch.tensor([0.0, 0.3, 1.0]), torch.zeros(4, 3, 2))
        >>> matched.elbo(series, NoiseStream(0, 0, 4)).elbo.shape
        torch.Size([4])
    """

    def __init__(
        self,
        model: LatentSDE,
        posterior: MarginalPosterior,
        *,
        instants: int = 32,
        observations: int | None = None,
    ) -> None:
        super().__init__()
        dynamics = model.dynamics
        if model.noise is not None or model.content_dim or not isinstance(dynamics, ControlledDynamics):
            raise ValueError("`model` must have Brownian noise and nothing beside its state.")
        if dynamics.solver.calculus is not Calculus.ITO:
            raise ValueError("`model` must have a solver in the sense of Ito; got Stratonovich.")
        if model.latent_dim != posterior.latent_dim:
            raise ValueError(
                f"`posterior` must have the {model.latent_dim} components of `model`; "
                f"got {posterior.latent_dim}."
            )
        for name, value in (("instants", instants), ("observations", observations)):
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1; got {value}.")
        self.model, self.posterior = model, posterior
        self.instants, self.observations = instants, observations

    @property
    def _dynamics(self) -> ControlledDynamics:
        """Equation and initial law."""
        return cast(ControlledDynamics, self.model.dynamics)

    def elbo(
        self, series: Series, noise: NoiseStream, *, paths: int = 1, kl_weight: float = 1.0
    ) -> MatchingBound:
        """Estimate the bound of every series.

        Args:
            series: ``B`` series.
            noise: ``B * paths`` samples.
            paths: Samples of each marginal, at least 1.
            kl_weight: Factor of the divergences, below 1 while a training warms up; only 1 gives a bound.

        Returns:
            Estimates, differentiable; the samples of a series share their instants.

        Raises:
            ValueError: If ``noise`` holds another number of samples.
        """
        if paths < 1 or len(noise) != len(series) * paths:
            raise ValueError(
                f"`noise` must hold `paths` samples for each of {len(series)} series; got {len(noise)} for "
                f"{paths} paths."
            )
        curve = self.posterior(series)
        many = curve.repeat(paths)
        start, stop = float(series.times[0]), float(series.times[-1])
        path = matching_divergence(
            self._dynamics.equation(), many, start, stop, noise, instants=self.instants
        ).divergence
        likelihood = self._likelihood(many, series, noise, paths)
        initial = self._initial_divergence(curve, series.times[:1])
        likelihood, path = likelihood.view(-1, paths).mean(1), path.view(-1, paths).mean(1)
        return MatchingBound(likelihood - kl_weight * (initial + path), likelihood, initial, path)

    def _likelihood(self, curve: Marginals, series: Series, noise: NoiseStream, paths: int) -> Tensor:
        """Log density of the observations, from all instants or from some, shape ``(n,)``."""
        count = len(series.times)
        chosen = torch.arange(count)
        if self.observations is not None:
            shared = NoiseStream(noise.seed, 0, 1).fork("matching observations")
            first = noise.start * self.observations
            uniforms = shared.uniforms(self.observations, purpose=Purpose.TRAINING, first=first)[0]
            chosen = (count * uniforms).long().clamp(max=count - 1)
        states = sample_marginals(curve, series.times[chosen], noise.fork("matching observations"))
        law = cast(Likelihood, self.model.likelihood)
        values, mask = series.filled[:, chosen], series.mask[:, chosen]
        each = law.log_density(self.model.decode(states), values.repeat_interleave(paths, 0))
        total = torch.where(mask.repeat_interleave(paths, 0), each, 0.0).sum((1, 2))
        return total * (count / len(chosen))

    def _initial_divergence(self, curve: Marginals, time: Tensor) -> Tensor:
        """Of normal laws, shape ``(B,)``."""
        mean, factor = (part[:, 0] for part in curve(time))
        matrix = factor if self.posterior.correlated else factor.diag_embed()
        scale = self._dynamics.initial_log_deviation
        ratio = matrix / scale.exp()[:, None]
        gap = (mean - self._dynamics.initial_mean) / scale.exp()
        squares = ratio.square().sum((1, 2)) + gap.square().sum(1) - self.model.latent_dim
        return 0.5 * squares - torch.linalg.slogdet(ratio)[1]

    @torch.no_grad()
    def states(self, series: Series, times: Tensor, noise: NoiseStream, *, paths: int = 1) -> Tensor:
        """States given series: of the marginals up to the last instant seen, then along the prior equation.

        Args:
            series: ``B`` series.
            times: Increasing instants, none before the first of the series, shape ``(T,)``.
            noise: ``B * paths`` samples.
            paths: Samples of each series.

        Returns:
            Those of a series follow one another, shape ``(B * paths, T, d)``; different instants up to the
            last one seen are independent, as no path links them.

        Raises:
            ValueError: If an instant lies before the series.
        """
        start, stop = float(series.times[0]), float(series.times[-1])
        if float(times[0]) < start:
            raise ValueError(f"`times` must not lie before {start}; got {float(times[0])}.")
        curve = self.posterior(series).repeat(paths)
        within, beyond = times[times <= stop], times[times > stop]
        known = sample_marginals(curve, torch.cat((within, series.times[-1:].to(times))), noise)
        if not len(beyond):
            return known[:, :-1]
        later = solve(
            self._dynamics.equation(),
            known[:, -1],
            torch.cat((series.times[-1:].to(times), beyond)),
            noise,
            solver=self._dynamics.solver,
            max_step=self.model.max_step,
            allow_diverged=True,
        )
        return torch.cat((known[:, :-1], later[:, 1:]), 1)

    def predict(
        self, series: Series, times: Tensor, noise: NoiseStream, *, paths: int = 100, coverage: float = 0.9
    ) -> Prediction:
        """Impute and forecast as :func:`inference.latent_samplers.predict` does, from the marginals."""
        states = self.states(series, times, noise, paths=paths)
        return summarise(self.model, states, noise, paths=paths, coverage=coverage)
