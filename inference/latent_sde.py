r"""Latent stochastic differential equations: neural dynamics behind noisy, irregular, incomplete series.

.. math::

    \text{prior} \quad & \mathrm dX = f_\theta(t, X)\,\mathrm dt + g_\theta(t, X)\,\mathrm dB, \qquad
        X_{t_0} = m_0 + s_0 \varepsilon, \qquad o_i \sim p_\theta(\cdot \mid X_{t_i}) \\
    \text{posterior} \quad & \mathrm dW \to \mathrm dW + u_\phi(t, Z, c)\,\mathrm dt, \qquad
        \varepsilon \sim \mathcal N(\mu_\phi(c), \sigma_\phi(c)^2)

with Brownian motion ``B = W``, or a Markov approximation of fractional Brownian motion. Then ``Z`` is ``X``
with the processes that make up the noise (:func:`sde.fractional.augmented`); else it is ``X``. Both laws
share the diffusion, and the control ``u`` acts through the noise alone: the divergence is always finite.
The control starts at zero, where the posterior is the prior. After the last observation it is zero for good:
forecasts follow the prior from where the observations have led.

With fractional noise of type I the normals of the infinite past belong to :math:`\varepsilon`: the past is
inferred like the initial state.

References:
    Li, Wong, Chen & Duvenaud (2020), Scalable gradients for stochastic differential equations, section 5.
    arXiv:2001.01328
    Daems, Opper, Crevecoeur & Birdal (2024), Variational inference for SDEs driven by fractional noise,
    sections 4 and 5. arXiv:2310.12975
"""

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from inference.elbo import Bound, bound
from inference.encoders import Encoder, GRUEncoder
from inference.girsanov import PathMeasure, solve_controlled
from inference.latent_noise import FractionalNoise
from inference.likelihoods import Gaussian, Likelihood
from inference.series import Series
from sde import SDE, EulerMaruyama, NoiseStream, NoiseStructure, Purpose, Solver
from sde.equation import Coefficient
from sde.fractional import augmented
from sde.gradients import Backprop, Gradient
from sde.networks import perceptron
from sde.solve import Noise

__all__ = ["ConstantDiffusion", "DiagonalDiffusion", "LatentSDE", "NeuralDrift", "Posterior", "latent_sde"]

_DEFAULT_SOLVER, _DEFAULT_GRADIENT = EulerMaruyama(), Backprop()


class NeuralDrift(nn.Module):
    """A dense network of the state: dynamics that do not depend on time.

    Args:
        dim: Number of components of the state.
        width: Width of the two hidden layers.
        seed: Seed of the initial weights.
        dtype: Floating dtype.

    Example:
        >>> NeuralDrift(3, seed=0)(torch.zeros(()), torch.zeros(5, 3)).shape
        torch.Size([5, 3])
    """

    def __init__(self, dim: int, *, width: int = 64, seed: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.layers = perceptron((dim, width, width, dim), seed=seed, dtype=dtype)

    def forward(self, time: Tensor, state: Tensor) -> Tensor:
        """Drift, shape ``(n, d)``, in the dtype of the state also where autocast lowers the layers'."""
        return self.layers(state).to(state.dtype)


class ConstantDiffusion(nn.Module):
    """A learned constant for each component: additive noise.

    Args:
        dim: Number of components of the state.
        start: Value at the start, positive.
        learned: Train it.
        dtype: Floating dtype.
    """

    structure = NoiseStructure.ADDITIVE

    def __init__(
        self, dim: int, *, start: float = 0.5, learned: bool = True, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        self.logarithm = nn.Parameter(torch.full((dim,), start, dtype=dtype).log(), learned)

    def forward(self, time: Tensor, state: Tensor) -> Tensor:
        """Diffusion, shape ``(1, d)``."""
        return self.logarithm.exp()[None]


class DiagonalDiffusion(nn.Module):
    """A small network for each component, of that component alone, with values between bounds.

    Args:
        dim: Number of components of the state.
        width: Width of the hidden layer of each.
        bounds: Between which the diffusion lies, positive.
        seed: Seed of the initial weights.
        dtype: Floating dtype.

    Example:
        >>> DiagonalDiffusion(3, seed=0)(torch.zeros(()), torch.zeros(5, 3)).shape
        torch.Size([5, 3])
    """

    structure = NoiseStructure.DIAGONAL

    def __init__(
        self,
        dim: int,
        *,
        width: int = 16,
        bounds: tuple[float, float] = (0.01, 2.0),
        seed: int,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.bounds = bounds
        draws = NoiseStream(seed, 0, dim).normals(
            3 * width, purpose=Purpose.INITIALISATION, dtype=torch.float64
        )
        inward, bias, outward = draws.to(dtype).view(dim, 3, width).unbind(1)
        self.inward, self.bias = nn.Parameter(inward), nn.Parameter(bias)
        self.outward = nn.Parameter(outward / width**0.5)

    def forward(self, time: Tensor, state: Tensor) -> Tensor:
        """Diffusion, shape ``(n, d)``."""
        hidden = nn.functional.silu(state[..., None] * self.inward + self.bias)
        low, high = self.bounds
        return low + (high - low) * (hidden * self.outward).sum(-1).sigmoid()


class Posterior(NamedTuple):
    """Posterior paths; those of a series follow one another."""

    measure: PathMeasure  #: of ``Z`` at the instants
    initial_log_ratio: Tensor  #: log of prior over posterior of the initial state, shape ``(n,)``


class LatentSDE(nn.Module):
    """A latent equation, its decoder, and the amortised posterior of its paths.

    Made by :func:`latent_sde`, or of parts of one's own.

    Args:
        drift: Prior drift, a module of time and state ``(n, d)``.
        diffusion: Shared diffusion ``(n, d)``, a module with an attribute ``structure``: additive or
            diagonal.
        decoder: Module of states ``(..., d)`` to the likelihood's numbers ``(..., p)``.
        likelihood: Law of the observations, a module.
        encoder: Module of a :class:`Series` to features ``(B, T, c)``.
        latent_dim: Number of components of ``X``.
        max_step: Length that no step of the solver exceeds.
        seed: Seed of the initial weights of control and recognition.
        width: Width of the hidden layers of the control.
        noise: Fractional noise; ``None`` is Brownian motion.
        solver: Scheme, which decides the calculus of the equation: Stratonovich, e.g. :class:`sde.Heun`,
            where fractional noise meets a diffusion that depends on the state.
        gradient: How solves are differentiated.

    Raises:
        ValueError: If the steps are too long for the rates of the noise, or a combination makes no sense.
    """

    past: Tensor  #: factor of the infinite past, shape ``(K, r)``; empty where there is none

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
        noise: FractionalNoise | None = None,
        solver: Solver = _DEFAULT_SOLVER,
        gradient: Gradient = _DEFAULT_GRADIENT,
    ) -> None:
        super().__init__()
        self.drift, self.diffusion, self.decoder, self.encoder = drift, diffusion, decoder, encoder
        self.likelihood, self.noise = likelihood, noise
        self.latent_dim, self.max_step, self.solver, self.gradient = latent_dim, max_step, solver, gradient
        kind = next(encoder.parameters()).dtype
        self.initial_mean = nn.Parameter(torch.zeros(latent_dim, dtype=kind))
        self.initial_log_deviation = nn.Parameter(torch.zeros(latent_dim, dtype=kind))
        factor = torch.zeros(0, 0) if noise is None else noise.past_factor()
        self.register_buffer("past", factor.to(kind), persistent=False)
        _check_steps(noise, max_step)
        context = cast(Encoder, encoder).context_dim
        seeds = NoiseStream(seed, 0, 1)
        sizes = (self.state_dim + context + 1, width, width, latent_dim)
        self.control = perceptron(sizes, seed=seeds.fork("control").seed, dtype=kind, zero_last=True)
        self.recognition = perceptron(
            (context, width, 2 * self.code_dim),
            seed=seeds.fork("recognition").seed,
            dtype=kind,
            zero_last=True,
        )
        self.equation()  # refuses what does not fit

    @property
    def state_dim(self) -> int:
        """Number of components of ``Z``."""
        if self.noise is None:
            return self.latent_dim
        blocks = 2 if self.noise.kind == "I" else 1
        return self.latent_dim * (1 + blocks * self.noise.num_rates)

    @property
    def code_dim(self) -> int:
        """Number of standard normals that an initial state is made of."""
        return self.latent_dim * (1 + self.past.shape[-1])

    def equation(self) -> SDE:
        """The prior equation of ``Z``."""
        structure = cast(NoiseStructure, self.diffusion.structure)
        sde = SDE(self.drift, self.diffusion, structure, self.solver.calculus)
        return sde if self.noise is None else augmented(sde, self.noise.model(), self.latent_dim)

    def initial_state(self, code: Tensor) -> Tensor:
        """The state ``Z`` at the start, shape ``(n, state_dim)``, of standard normals ``(n, code_dim)``."""
        own, past = code[:, : self.latent_dim], code[:, self.latent_dim :]
        start = self.initial_mean + self.initial_log_deviation.exp() * own
        if self.noise is None:
            return start
        memory = start.new_zeros(len(start), self.latent_dim * self.noise.num_rates)
        if self.noise.kind == "II":
            return torch.cat((start, memory), 1)
        slopes = past.unflatten(1, (self.latent_dim, -1)) @ self.past.mT
        return torch.cat((start, memory, slopes.flatten(1)), 1)

    def recognise(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the posterior's initial normals, from features ``(n, T, c)``."""
        mean, raw = self.recognition(context[:, 0]).to(self.initial_mean.dtype).chunk(2, 1)
        return mean, raw.exp()

    def controlled(self, context: Tensor, times: Tensor) -> Coefficient:
        """The control given features ``(n, T, c)`` at instants ``(T,)``: zero from the last of them on."""

        def control(time: Tensor, state: Tensor) -> Tensor:
            instants = times.to(time)
            coming = int(torch.searchsorted(instants, time, right=True))
            if coming == len(instants):
                return state.new_zeros(len(state), self.latent_dim)
            span = (instants[coming] - time).expand(len(state), 1)
            features = torch.cat((state, context[:, coming].to(state.dtype), span), 1)
            return self.control(features).to(state.dtype)  # autocast lowers it

        return control

    def posterior(
        self, series: Series, noise: NoiseStream, *, paths: int = 1, times: Tensor | None = None
    ) -> Posterior:
        """Draw paths of the posterior of every series.

        Args:
            series: ``B`` series.
            noise: ``B * paths`` samples: normals of the initial states, and Wiener increments.
            paths: Paths of each series, at least 1.
            times: Instants to return, from the first of the series on; ``None``: those of the series.

        Returns:
            ``n = B * paths`` paths.

        Raises:
            ValueError: If ``noise`` holds another number of samples, or ``times`` starts elsewhere.
        """
        if paths < 1 or len(noise) != len(series) * paths:
            raise ValueError(
                f"`noise` must hold `paths` samples for each of {len(series)} series; got {len(noise)} for "
                f"{paths} paths."
            )
        normals = self.codes(noise)
        context = self.encoder(series).repeat_interleave(paths, 0)
        return self.posterior_given(context, series.times, normals, noise, times=times)

    def codes(self, noise: NoiseStream) -> Tensor:
        """The standard normals of the initial states of samples, shape ``(n, code_dim)``."""
        like = self.initial_mean
        return noise.normals(
            self.code_dim, purpose=Purpose.INITIAL_STATE, dtype=like.dtype, device=like.device
        )

    def posterior_given(
        self, context: Tensor, observed: Tensor, normals: Tensor, noise: Noise, *, times: Tensor | None = None
    ) -> Posterior:
        """Paths from features ``(n, T, c)`` at instants ``observed``, initial normals and driving noise."""
        times = observed if times is None else times
        if float(times[0]) != float(observed[0]):
            raise ValueError(f"`times` must start at {float(observed[0])}; got {float(times[0])}.")
        mean, deviation = self.recognise(context)
        code = mean + deviation * normals
        ratio = (0.5 * (normals.square() - code.square()) + deviation.log()).sum(1)
        measure = solve_controlled(
            self.equation(),
            self.controlled(context, observed),
            self.initial_state(code),
            times,
            noise,
            solver=self.solver,
            max_step=self.max_step,
            gradient=self.gradient,
        )
        return Posterior(measure, ratio)

    def decode(self, states: Tensor) -> Tensor:
        """The likelihood's numbers ``(..., p)`` of states ``(..., state_dim)``."""
        return self.decoder(states[..., : self.latent_dim])

    def log_likelihood(self, states: Tensor, series: Series) -> Tensor:
        """Log density of what was observed given paths ``(n, T, state_dim)``, shape ``(n,)``."""
        paths = len(states) // max(1, len(series))
        each = cast(Likelihood, self.likelihood).log_density(
            self.decode(states), series.filled.repeat_interleave(paths, 0)
        )
        return torch.where(series.mask.repeat_interleave(paths, 0), each, 0.0).sum((1, 2))

    def elbo(self, series: Series, noise: NoiseStream, *, paths: int = 1, kl_weight: float = 1.0) -> Bound:
        """Lower bounds of the log evidence of every series.

        They are bounds for the chain that the solver makes of the prior equation: no error of the step
        lifts them above the evidence.

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


def _check_steps(noise: FractionalNoise | None, max_step: float) -> None:
    """Raise if explicit steps would be unstable."""
    if not max_step > 0:
        raise ValueError(f"`max_step` must be positive; got {max_step}.")
    if noise is not None and float(noise.model().rates[-1]) * max_step > 1.5:
        raise ValueError(
            f"`max_step` must be at most {1.5 / float(noise.model().rates[-1]):g} for the rates of `noise`; "
            f"got {max_step}. Give the noise the solver's `step`."
        )


def latent_sde(
    observed_dim: int,
    latent_dim: int,
    *,
    max_step: float,
    seed: int,
    width: int = 64,
    encoder: nn.Module | None = None,
    diffusion: nn.Module | None = None,
    likelihood: nn.Module | None = None,
    noise: FractionalNoise | None = None,
    solver: Solver = _DEFAULT_SOLVER,
    dtype: torch.dtype = torch.float32,
) -> LatentSDE:
    """A latent equation with dense networks for drift and decoder.

    Args:
        observed_dim: Number ``p`` of observed components.
        latent_dim: Number ``d`` of latent components.
        max_step: Length that no step of the solver exceeds.
        seed: Seed of all initial weights.
        width: Width of the hidden layers.
        encoder: ``None`` is a :class:`GRUEncoder` of 32 features.
        diffusion: ``None`` is a learned constant for each component.
        likelihood: ``None`` is :class:`Gaussian` with a learned deviation.
        noise: Fractional noise; ``None`` is Brownian motion.
        solver: Scheme.
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
        decoder=perceptron((latent_dim, width, observed_dim), seed=seed_of("decoder"), dtype=dtype),
        likelihood=Gaussian(observed_dim, dtype=dtype) if likelihood is None else likelihood,
        encoder=GRUEncoder(observed_dim, seed=seed_of("encoder"), dtype=dtype)
        if encoder is None
        else encoder,
        latent_dim=latent_dim,
        max_step=max_step,
        seed=seed,
        width=width,
        noise=noise,
        solver=solver,
    )
