r"""Dynamics of latent equations: the law of their paths, and what a posterior makes of it.

:class:`LatentDynamics` is what a :class:`inference.latent_sde.LatentSDE` needs of them.
:class:`ControlledDynamics` integrates the equation with a scheme of :mod:`sde`; its posterior moves the
Wiener process by a learned control,

.. math:: \mathrm dW \to \mathrm dW + u_\phi(t, Z, c)\,\mathrm dt, \qquad
          \varepsilon \sim \mathcal N(\mu_\phi(c), \sigma_\phi(c)^2),

where ``Z`` is the state with the processes that make up fractional noise (:func:`sde.fractional.augmented`)
and :math:`\varepsilon` are the normals of the initial state. The control starts at zero, where the posterior
is the prior. :class:`inference.fractional.latent.GuidedDynamics` is the other implementation.

References:
    Li, Wong, Chen & Duvenaud (2020), section 5. arXiv:2001.01328
    Daems, Opper, Crevecoeur & Birdal (2024), sections 4 and 5. arXiv:2310.12975
"""

from abc import ABC, abstractmethod
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from inference.girsanov import PathMeasure, solve_controlled
from inference.latent_noise import LatentNoise
from inference.series import Series
from sde import SDE, NoiseStream, NoiseStructure, Solver
from sde.equation import Coefficient
from sde.fractional import augmented
from sde.gradients import Gradient
from sde.grid import make_grid
from sde.networks import perceptron
from sde.noise.brownian import WienerIncrements
from sde.noise.increments import GivenIncrements
from sde.solve import solve

__all__ = ["ControlledDynamics", "Drive", "LatentDynamics", "Posterior"]

Drive = NoiseStream | tuple[Tensor, ...]
"""What drives paths: samples, or what :meth:`LatentDynamics.draw` made of them."""


class Posterior(NamedTuple):
    """Posterior paths; those of a series follow one another."""

    measure: PathMeasure  #: of ``X`` at the instants
    initial_log_ratio: Tensor  #: log of prior over posterior of the initial state, shape ``(n,)``


class LatentDynamics(nn.Module, ABC):
    """The law of the paths of a latent equation, and its posterior.

    Args:
        drift: Prior drift, a module of time and state ``(n, d)``.
        diffusion: Shared diffusion, a module with an attribute ``structure``.
        noise: Fractional noise; ``None`` is Brownian motion.
        latent_dim: Number ``d`` of components of ``X``.
        max_step: Length that no step exceeds.
        dtype: Floating dtype of the states that the networks see.

    Raises:
        ValueError: If ``max_step`` is not positive.
    """

    past: Tensor  #: factor of the infinite past, float64, shape ``(K, r)``; empty where there is none

    def __init__(
        self,
        drift: nn.Module,
        diffusion: nn.Module,
        noise: LatentNoise | None,
        *,
        latent_dim: int,
        max_step: float,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        if not max_step > 0:
            raise ValueError(f"`max_step` must be positive; got {max_step}.")
        self.drift, self.diffusion, self.noise = drift, diffusion, noise
        self.latent_dim, self.max_step, self.dtype = latent_dim, max_step, dtype
        self.initial_mean = nn.Parameter(torch.zeros(latent_dim, dtype=dtype))
        self.initial_log_deviation = nn.Parameter(torch.zeros(latent_dim, dtype=dtype))
        factor = torch.zeros(0, 0) if noise is None else noise.past_factor()
        self.register_buffer("past", factor.double(), persistent=False)

    @property
    def code_dim(self) -> int:
        """Number of standard normals that an initial state is made of: own ones, then those of the past."""
        return self.latent_dim * (1 + self.past.shape[-1])

    @abstractmethod
    def draw(self, noise: NoiseStream, times: Tensor) -> tuple[Tensor, ...]:
        """What drives paths over ``times``, row ``i`` from sample ``i``: tensors ``(n, ...)``."""

    @abstractmethod
    def prior(self, code: Tensor, times: Tensor, drive: Drive) -> Tensor:
        """Paths of the prior at ``times``, shape ``(n, T, d)``, from initial normals ``(n, code_dim)``."""

    @abstractmethod
    def posterior(
        self, context: Tensor, series: Series, normals: Tensor, drive: Drive, times: Tensor
    ) -> Posterior:
        """Paths at ``times`` given ``B`` series with features ``(B, T, c)``: ``n / B`` of each.

        ``times`` start with the first instant of the series and hold all others before their last.
        """


class ControlledDynamics(LatentDynamics):
    """An equation that a scheme integrates, with a learned control as posterior.

    Args:
        drift: As for :class:`LatentDynamics`.
        diffusion: As there.
        noise: As there, with an index that does not depend on time.
        latent_dim: As there.
        context_dim: Number of features.
        max_step: As there.
        solver: Scheme, which decides the calculus of the equation.
        gradient: How solves are differentiated.
        seed: Seed of the initial weights.
        width: Width of the hidden layers of the control.
        dtype: As there.

    Raises:
        ValueError: If the steps are too long for the rates of the noise, or a combination makes no sense.
    """

    def __init__(
        self,
        drift: nn.Module,
        diffusion: nn.Module,
        noise: LatentNoise | None,
        *,
        latent_dim: int,
        context_dim: int,
        max_step: float,
        solver: Solver,
        gradient: Gradient,
        seed: int,
        width: int,
        dtype: torch.dtype,
    ) -> None:
        super().__init__(drift, diffusion, noise, latent_dim=latent_dim, max_step=max_step, dtype=dtype)
        _check_steps(noise, max_step)
        self.solver, self.gradient = solver, gradient
        seeds = NoiseStream(seed, 0, 1)
        sizes = (self.state_dim + context_dim + 1, width, width, latent_dim)
        self.control = perceptron(sizes, seed=seeds.fork("control").seed, dtype=dtype, zero_last=True)
        self.recognition = perceptron(
            (context_dim, width, 2 * self.code_dim),
            seed=seeds.fork("recognition").seed,
            dtype=dtype,
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
        slopes = past.unflatten(1, (self.latent_dim, -1)) @ self.past.to(past).mT
        return torch.cat((start, memory, slopes.flatten(1)), 1)

    def recognise(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the posterior's initial normals, from features ``(n, T, c)``."""
        mean, raw = self.recognition(context[:, 0]).to(self.dtype).chunk(2, 1)
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

    def draw(self, noise: NoiseStream, times: Tensor) -> tuple[Tensor, ...]:
        """Wiener increments, and the areas that the scheme needs."""
        steps = make_grid(times, max_step=self.max_step).steps()[1]
        device = self.initial_mean.device
        drawn = WienerIncrements(noise, steps, self.latent_dim, self.dtype, device)
        parts = drawn.chunk(0, len(steps), self.solver.areas)
        return tuple(part.transpose(0, 1) for part in parts if part is not None)

    def prior(self, code: Tensor, times: Tensor, drive: Drive) -> Tensor:
        """Paths of the prior, shape ``(n, T, d)``."""
        states = solve(
            self.equation(),
            self.initial_state(code),
            times,
            drive if isinstance(drive, NoiseStream) else GivenIncrements(*drive),
            solver=self.solver,
            max_step=self.max_step,
            allow_diverged=True,
        )
        return states[..., : self.latent_dim]

    def posterior(
        self, context: Tensor, series: Series, normals: Tensor, drive: Drive, times: Tensor
    ) -> Posterior:
        """Paths of the controlled equation."""
        context = context.repeat_interleave(len(normals) // len(context), 0)
        mean, deviation = self.recognise(context)
        code = mean + deviation * normals
        ratio = (0.5 * (normals.square() - code.square()) + deviation.log()).sum(1)
        measure = solve_controlled(
            self.equation(),
            self.controlled(context, series.times),
            self.initial_state(code),
            times,
            drive if isinstance(drive, NoiseStream) else GivenIncrements(*drive),
            solver=self.solver,
            max_step=self.max_step,
            gradient=self.gradient,
        )
        return Posterior(measure._replace(paths=measure.paths[..., : self.latent_dim]), ratio)


def _check_steps(noise: LatentNoise | None, max_step: float) -> None:
    """Raise if explicit steps would be unstable."""
    if noise is None:
        return
    fastest = float(noise.model().rates[-1])
    if fastest * max_step > 1.5:
        raise ValueError(
            f"`max_step` must be at most {1.5 / fastest:g} for the rates of `noise`, which explicit schemes "
            f"must resolve; got {max_step}. Give the noise a `step` of 4 times it."
        )
