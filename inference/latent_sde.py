r"""Latent stochastic differential equations: neural dynamics behind noisy, irregular, incomplete series.

.. math::

    \mathrm dX = f_\theta(t, X)\,\mathrm dt + g_\theta(t, X)\,\mathrm dB, \qquad
    X_{t_0} = m_0 + s_0 \varepsilon, \qquad o_i \sim p_\theta(\cdot \mid X_{t_i}, c)

with Brownian motion ``B = W``, or a Markov approximation of fractional Brownian motion. The posterior moves
the noise of the prior and shares its diffusion: the divergence is always finite.

* With additive fractional noise, steps are exact in the noise, and the posterior is guided by Gaussian
  pseudo-observations, with a network on top (:mod:`inference.fractional.latent`).
* Else a scheme integrates the equation, and the posterior is a learned control
  (:mod:`inference.latent_dynamics`).

After the last observation the posterior is the prior: forecasts follow the prior from where the observations
have led. With fractional noise of type I the infinite past is inferred like the initial state.

A model may hold content ``c``: standard normals that do not move, which the decoder sees beside the state,
such as the look of the things that move in a video. Paths carry them behind ``X``.

References:
    Li, Wong, Chen & Duvenaud (2020), Scalable gradients for stochastic differential equations, section 5.
    arXiv:2001.01328
    Daems, Opper, Crevecoeur & Birdal (2024), Variational inference for SDEs driven by fractional noise,
    sections 4 and 5. arXiv:2310.12975
"""

from typing import cast

import torch
from torch import Tensor, nn

from inference.elbo import Bound, bound
from inference.encoders import Encoder, GRUEncoder
from inference.fractional.latent import GuidedDynamics
from inference.latent_coefficients import ConstantDiffusion, DiagonalDiffusion, LinearDrift, NeuralDrift
from inference.latent_dynamics import ControlledDynamics, Drive, LatentDynamics, Posterior
from inference.latent_noise import LatentNoise
from inference.likelihoods import Gaussian, Likelihood
from inference.series import Series
from sde import EulerMaruyama, NoiseStream, NoiseStructure, Purpose, Solver
from sde.gradients import Backprop, Gradient
from sde.networks import perceptron

__all__ = [
    "ConstantDiffusion",
    "DiagonalDiffusion",
    "LatentSDE",
    "LinearDrift",
    "NeuralDrift",
    "Posterior",
    "latent_sde",
]

_DEFAULT_GRADIENT = Backprop()


class LatentSDE(nn.Module):
    """A latent equation, its decoder, and the amortised posterior of its paths.

    Made by :func:`latent_sde`, or of parts of one's own.

    Args:
        drift: Prior drift, a module of time and state ``(n, d)``.
        diffusion: Shared diffusion ``(n, d)``, a module with an attribute ``structure``: additive or
            diagonal.
        decoder: Module of states, and content behind them, ``(..., d + content_dim)`` to the likelihood's
            numbers ``(..., p)``.
        likelihood: Law of the observations, a module.
        encoder: Module of a :class:`Series` to features ``(B, T, c)``.
        latent_dim: Number of components of ``X``.
        max_step: Length that no step exceeds.
        seed: Seed of the initial weights of the posterior.
        width: Width of its hidden layers; 0 leaves the network of a guided posterior out.
        content_dim: Number of components of the content, at least 0.
        noise: Fractional noise; ``None`` is Brownian motion.
        sites: Pseudo-observations that guide the posterior with additive fractional noise, a module of
            features and series (:mod:`inference.latent_sites`); ``None`` is a network of the features.
        solver: Scheme that integrates the equation under a learned control. It decides the calculus:
            Stratonovich, e.g. :class:`sde.Heun`, where fractional noise meets a diffusion that depends on the
            state. ``None``: exact steps and a guided posterior with additive fractional noise, and
            Euler--Maruyama's scheme else.
        gradient: How solves of a scheme are differentiated.

    Raises:
        ValueError: If the steps are too long for the rates of the noise, or a combination makes no sense.
    """

    def __init__(
        self,
        *,
        drift: nn.Module,
        diffusion: nn.Module,
        decoder: nn.Module,
        likelihood: nn.Module,
        encoder: nn.Module,
        latent_dim: int,
        max_step: float,
        seed: int,
        width: int = 64,
        content_dim: int = 0,
        noise: LatentNoise | None = None,
        sites: nn.Module | None = None,
        solver: Solver | None = None,
        gradient: Gradient = _DEFAULT_GRADIENT,
    ) -> None:
        super().__init__()
        if content_dim < 0:
            raise ValueError(f"`content_dim` must be at least 0; got {content_dim}.")
        self.decoder, self.encoder, self.likelihood = decoder, encoder, likelihood
        parts = (encoder, decoder, likelihood, drift, diffusion)
        kind = next(parameter for part in parts for parameter in part.parameters()).dtype
        context_dim = cast(Encoder, encoder).context_dim
        self.latent_dim, self.content_dim = latent_dim, content_dim
        shared = {"latent_dim": latent_dim, "context_dim": context_dim, "max_step": max_step}
        shared |= {"seed": seed, "width": width, "dtype": kind}
        self.dynamics: LatentDynamics
        if noise is not None and solver is None and diffusion.structure is NoiseStructure.ADDITIVE:
            self.dynamics = GuidedDynamics(drift, diffusion, noise, sites=sites, **shared)
        elif sites is not None:
            raise ValueError("`sites` must be None where the posterior is a control; got some.")
        else:
            scheme = EulerMaruyama() if solver is None else solver
            self.dynamics = ControlledDynamics(
                drift, diffusion, noise, solver=scheme, gradient=gradient, **shared
            )
        self.content: nn.Module | None = None
        if content_dim:
            sizes = (context_dim, max(1, width), 2 * content_dim)
            content_seed = NoiseStream(seed, 0, 1).fork("content").seed
            self.content = perceptron(sizes, seed=content_seed, dtype=kind, zero_last=True)

    @property
    def drift(self) -> nn.Module:
        """Prior drift."""
        return self.dynamics.drift

    @property
    def diffusion(self) -> nn.Module:
        """Diffusion, shared by prior and posterior."""
        return self.dynamics.diffusion

    @property
    def noise(self) -> LatentNoise | None:
        """Fractional noise, if any."""
        return self.dynamics.noise

    @property
    def max_step(self) -> float:
        """Length that no step exceeds."""
        return self.dynamics.max_step

    @property
    def code_dim(self) -> int:
        """Number of standard normals that an initial state and the content are made of."""
        return self.dynamics.code_dim + self.content_dim

    def codes(self, noise: NoiseStream) -> Tensor:
        """The standard normals of initial states and content of samples, shape ``(n, code_dim)``."""
        like = self.dynamics.initial_mean
        return noise.normals(
            self.code_dim, purpose=Purpose.INITIAL_STATE, dtype=like.dtype, device=like.device
        )

    def prior(self, code: Tensor, times: Tensor, drive: Drive) -> Tensor:
        """Paths of the prior with the content, shape ``(n, T, d + content_dim)``.

        Args:
            code: Standard normals, shape ``(n, code_dim)``.
            times: Increasing instants, at least 2, shape ``(T,)``; the process starts at the first.
            drive: ``n`` samples, or what the dynamics drew of them for ``times``.
        """
        own = self.dynamics.code_dim
        return _with_content(self.dynamics.prior(code[:, :own], times, drive), code[:, own:])

    def posterior(
        self, series: Series, noise: NoiseStream, *, paths: int = 1, times: Tensor | None = None
    ) -> Posterior:
        """Draw paths of the posterior of every series.

        Args:
            series: ``B`` series.
            noise: ``B * paths`` samples: normals of the initial states, and of the steps.
            paths: Paths of each series, at least 1.
            times: Instants to return, from the first of the series on; ``None``: those of the series.

        Returns:
            ``n = B * paths`` paths ``(n, T, d + content_dim)``.

        Raises:
            ValueError: If ``noise`` holds another number of samples, or ``times`` starts elsewhere.
        """
        if paths < 1 or len(noise) != len(series) * paths:
            raise ValueError(
                f"`noise` must hold `paths` samples for each of {len(series)} series; got {len(noise)} for "
                f"{paths} paths."
            )
        observed = series.times if times is None else series.times.to(times)
        times = observed if times is None else times
        if float(times[0]) != float(observed[0]):
            raise ValueError(f"`times` must start at {float(observed[0])}; got {float(times[0])}.")
        grid = torch.cat((times, observed[observed < times[-1]])).unique()
        found = self.posterior_given(self.encoder(series), series, self.codes(noise), noise, grid)
        index = torch.searchsorted(grid, times)
        return found._replace(measure=found.measure._make(part[:, index] for part in found.measure))

    def posterior_given(
        self, context: Tensor, series: Series, normals: Tensor, drive: Drive, times: Tensor
    ) -> Posterior:
        """Paths of ``B`` series from their features ``(B, T, c)``, initial normals and driving noise.

        ``times`` start with the first instant of the series and hold all others before their last;
        ``normals`` have ``n`` rows, ``n / B`` for each series.
        """
        own = self.dynamics.code_dim
        found = self.dynamics.posterior(context, series, normals[:, :own], drive, times)
        if self.content is None:
            return found
        features = context[:, 0].repeat_interleave(len(normals) // len(context), 0)
        mean, raw = self.content(features).to(normals.dtype).chunk(2, 1)
        content = mean + raw.exp() * normals[:, own:]
        ratio = (0.5 * (normals[:, own:].square() - content.square()) + raw).sum(1)
        measure = found.measure._replace(paths=_with_content(found.measure.paths, content))
        return Posterior(measure, found.initial_log_ratio + ratio)

    def decode(self, states: Tensor) -> Tensor:
        """The likelihood's numbers ``(..., p)`` of states ``(..., d + content_dim)``."""
        return self.decoder(states)

    def log_likelihood(self, states: Tensor, series: Series) -> Tensor:
        """Log density of what was observed given paths ``(n, T, d + content_dim)``, shape ``(n,)``."""
        paths = len(states) // max(1, len(series))
        each = cast(Likelihood, self.likelihood).log_density(
            self.decode(states), series.filled.repeat_interleave(paths, 0)
        )
        return torch.where(series.mask.repeat_interleave(paths, 0), each, 0.0).sum((1, 2))

    def elbo(self, series: Series, noise: NoiseStream, *, paths: int = 1, kl_weight: float = 1.0) -> Bound:
        """Lower bounds of the log evidence of every series.

        They are bounds for the chain that the steps make of the prior equation: no error of the step lifts
        them above the evidence.

        Args:
            series: ``B`` series.
            noise: ``B * paths`` samples.
            paths: Paths of each series, at least 1.
            kl_weight: Factor of the divergences, below 1 while a training warms up; only 1 gives a bound.

        Returns:
            Bounds, differentiable, shape ``(B,)``.

        Raises:
            ValueError: As :meth:`posterior`.
        """
        measure, ratio = self.posterior(series, noise, paths=paths)
        weighted = measure._replace(
            divergence=kl_weight * measure.divergence, martingale=kl_weight * measure.martingale
        )
        return bound(
            weighted,
            self.log_likelihood(measure.paths, series),
            initial_log_ratio=kl_weight * ratio,
            paths_per_series=paths,
        )


def _with_content(paths: Tensor, content: Tensor) -> Tensor:
    """Paths ``(n, T, d)`` with content ``(n, c)`` behind them at every instant."""
    return torch.cat((paths, content[:, None].expand(-1, paths.shape[1], -1)), 2)


def latent_sde(
    observed_dim: int,
    latent_dim: int,
    *,
    max_step: float,
    seed: int,
    width: int = 64,
    content_dim: int = 0,
    encoder: nn.Module | None = None,
    diffusion: nn.Module | None = None,
    likelihood: nn.Module | None = None,
    noise: LatentNoise | None = None,
    solver: Solver | None = None,
    dtype: torch.dtype = torch.float32,
) -> LatentSDE:
    """A latent equation with dense networks for drift and decoder.

    Args:
        observed_dim: Number ``p`` of observed components.
        latent_dim: Number ``d`` of latent components.
        max_step: Length that no step of the solver exceeds.
        seed: Seed of all initial weights.
        width: Width of the hidden layers.
        content_dim: Number of components that do not move.
        encoder: ``None`` is a :class:`GRUEncoder` of 32 features.
        diffusion: ``None`` is a learned constant for each component.
        likelihood: ``None`` is :class:`Gaussian` with a learned deviation.
        noise: Fractional noise; ``None`` is Brownian motion.
        solver: As for :class:`LatentSDE`.
        dtype: Floating dtype, which series must have.

    Returns:
        The model, with a posterior that is the prior.

    Raises:
        ValueError: As :class:`LatentSDE`.

    Example:
        >>> model = latent_sde(2, 3, max_step=0.1, seed=0)
        >>> series = Series(torch.tensor([0.0, 0.3, 1.0]), torch.zeros(4, 3, 2))
        >>> model.elbo(series, NoiseStream(0, 0, 20), paths=5).elbo.shape
        torch.Size([4])
    """
    seeds = NoiseStream(seed, 0, 1)

    def seed_of(name: str) -> int:
        return seeds.fork(name).seed

    return LatentSDE(
        drift=NeuralDrift(latent_dim, width=width, seed=seed_of("drift"), dtype=dtype),
        diffusion=ConstantDiffusion(latent_dim, dtype=dtype) if diffusion is None else diffusion,
        decoder=perceptron(
            (latent_dim + content_dim, width, observed_dim), seed=seed_of("decoder"), dtype=dtype
        ),
        likelihood=Gaussian(observed_dim, dtype=dtype) if likelihood is None else likelihood,
        encoder=GRUEncoder(observed_dim, seed=seed_of("encoder"), dtype=dtype)
        if encoder is None
        else encoder,
        latent_dim=latent_dim,
        max_step=max_step,
        seed=seed,
        width=width,
        content_dim=content_dim,
        noise=noise,
        solver=solver,
    )
