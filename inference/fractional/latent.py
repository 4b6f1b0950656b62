r"""Latent equations with additive fractional noise: exact transitions, and a posterior that is guided.

The prior steps through

.. math::

    Z' = e^{-\gamma h} Z - \tfrac{1 - e^{-\gamma h}}{\gamma} D + L e, \qquad
    X' = X + h f_\theta(t, X) + s\,(\omega' \cdot Z' - \omega \cdot Z), \qquad e \sim \mathcal N(0, I),

for each component of its own: what the noise does within a step is exact, whatever its rates, and the drift
is split off. :math:`\omega' \ne \omega` where the Hurst index depends on time. The factor ``L`` does not
depend on the index, the scale or the drift, so that gradients reach all of them through the weights.

The posterior is the same chain with moved noise. Given sites (:mod:`inference.latent_sites`) and a linear
drift :math:`a - \theta x` in place of :math:`f_\theta`, the information that later sites hold about the state
is a quadratic form, by Riccati's recursion backwards (:mod:`inference.fractional.guide`). Forwards

.. math:: e \sim \mathcal N\bigl(P L^{\mathsf T}(\eta - \Lambda \bar z) + \sqrt h\,r_\phi,\; P\bigr)

with the mean :math:`\bar z` of the next state under the *true* drift, and a network :math:`r_\phi` that
starts at zero. The ratio of prior and posterior densities is that of the discrete chains, so that bounds are
true bounds for any network; where the drift is linear (:class:`inference.latent_coefficients.LinearDrift`)
and the sites are the data, every path returns the evidence. The initial state and the infinite past are part
of the chain: they are inferred, and their divergence is in the bound.

References:
    Daems, Opper, Crevecoeur & Birdal (2025), Efficient training of neural SDEs using stochastic optimal
    control. arXiv:2505.17150
    Whitaker, Golightly, Boys & Sherlock (2017), for guided proposals. doi:10.1007/s11222-016-9660-3
    Roeder, Wu & Duvenaud (2017), Sticking the landing, for the gradient of the network. arXiv:1703.09194
"""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from inference.fractional.guide import Law, Seen, guide
from inference.fractional.steps import ExactSteps, State, exact_steps, from_groups, in_groups
from inference.girsanov import PathMeasure
from inference.latent_coefficients import LinearDrift
from inference.latent_dynamics import Drive, LatentDynamics, Posterior
from inference.latent_noise import LatentNoise
from inference.latent_sites import LearnedSites, SiteMap, Sites
from inference.series import Series
from sde import NoiseStream, NoiseStructure, Purpose
from sde.grid import make_grid
from sde.networks import perceptron

__all__ = ["GuidedDynamics"]


class GuidedDynamics(LatentDynamics):
    """Exact steps of additive fractional noise, and a guided posterior with a learned residual.

    Args:
        drift: As for :class:`inference.latent_dynamics.LatentDynamics`; a :class:`LinearDrift` guides itself,
            for any other a linear one is learned.
        diffusion: As there; additive.
        noise: As there, constant or multifractional.
        latent_dim: As there.
        context_dim: Number of features.
        max_step: As there; steps need only resolve the drift.
        sites: Module of features and series to sites; ``None`` is a network of the features.
        seed: Seed of the initial weights.
        width: Width of the hidden layers; 0 leaves the residual out, which has nothing to add where the drift
            is linear and the sites are the data.
        dtype: As there.

    Raises:
        ValueError: If the diffusion is not additive.
    """

    def __init__(
        self,
        drift: nn.Module,
        diffusion: nn.Module,
        noise: LatentNoise,
        *,
        latent_dim: int,
        context_dim: int,
        max_step: float,
        sites: nn.Module | None = None,
        seed: int,
        width: int,
        dtype: torch.dtype,
    ) -> None:
        super().__init__(drift, diffusion, noise, latent_dim=latent_dim, max_step=max_step, dtype=dtype)
        if diffusion.structure is not NoiseStructure.ADDITIVE:
            raise ValueError(f"`diffusion` must be additive to be guided; got {diffusion.structure}.")
        self.num_rates = noise.num_rates
        seeds = {
            name: NoiseStream(seed, 0, 1).fork(name).seed for name in ("sites", "control", "recognition")
        }
        if sites is None:
            sites = LearnedSites(context_dim, latent_dim, width=width, seed=seeds["sites"], dtype=dtype)
        self.sites = sites
        #: How the start depends on the normals of the past: a stationary process does.
        self.initial_past = nn.Parameter(torch.zeros(latent_dim, self.past.shape[-1], dtype=dtype))
        self.surrogate = drift if isinstance(drift, LinearDrift) else LinearDrift(latent_dim, dtype=dtype)
        self.residual = self.recognition = None
        if width:
            sizes = (3 * latent_dim + context_dim + 1, width, width, latent_dim * noise.num_rates)
            self.residual = perceptron(sizes, seed=seeds["control"], dtype=dtype, zero_last=True)
            sizes = (context_dim, width, self.code_dim)
            self.recognition = perceptron(sizes, seed=seeds["recognition"], dtype=dtype, zero_last=True)

    def draw(self, noise: NoiseStream, times: Tensor) -> tuple[Tensor, ...]:
        """Standard normals of the steps, shape ``(n, N, d K)``; noise of lower rank takes fewer."""
        count = make_grid(times, max_step=self.max_step).num_steps
        channels = self.latent_dim * self.num_rates
        device = self.initial_mean.device
        return (
            noise.normals(
                count, purpose=Purpose.WIENER, channels=channels, dtype=torch.float64, device=device
            ),
        )

    def prior(self, code: Tensor, times: Tensor, drive: Drive) -> Tensor:
        """Paths of the prior, shape ``(n, T, d)``."""
        steps = self._steps(times)
        normals = self._normals(drive, times)
        state = self._start(in_groups(self._split(code.double()), 1))
        paths = [from_groups(state.x)]
        for n in range(steps.count):
            moved = steps.moved(n, state, self._drift(steps.starts[n], state.x))
            state = steps.shaken(n, moved, in_groups(normals[:, n], 1)[..., : steps.factors.shape[2]])
            paths.append(from_groups(state.x))
        return torch.stack([paths[k] for k in steps.saves], 1).to(self.dtype)

    def posterior(
        self, context: Tensor, series: Series, normals: Tensor, drive: Drive, times: Tensor
    ) -> Posterior:
        """Paths of the guided chain."""
        steps = self._steps(times)
        laws, groups = self._laws(context, series, times)
        run = _Run(self, steps, laws, context, series.times.to(steps.starts), groups)
        return run(self._split(normals.double()), self._normals(drive, times))

    def _laws(self, context: Tensor, series: Series, times: Tensor) -> tuple[list[Law], int]:
        """The laws of the noise up to the last observed instant, and the number of groups."""
        sites: Sites = cast(SiteMap, self.sites)(context, series)
        observed = series.times.to(times)
        # Sites behind the last of the instants matter, those instants behind the last site do not.
        whole = torch.cat((times[times <= observed[-1]], observed[observed > times[-1]]))
        chain = self._steps(whole)
        unit = torch.zeros(1 + chain.decay.shape[1] + chain.slope.shape[1], dtype=torch.float64)
        unit[0] = 1
        unit = unit.to(chain.starts.device)
        ends = dict(zip(whole.tolist(), chain.saves, strict=True))
        seen = {
            ends[instant]: Seen(unit, sites.values[:, k], sites.precisions[:, k])
            for k, instant in enumerate(observed.tolist())
        }
        linear = chain.linear(self.surrogate.rate.double(), self.surrogate.offset.double())
        return guide(self._start_factor(), *linear[:2], seen, linear[2]), len(sites.precisions)

    def _steps(self, times: Tensor) -> ExactSteps:
        """The steps of a grid."""
        noise, state = cast(LatentNoise, self.noise), self.initial_mean[None]
        return exact_steps(times, noise, self.diffusion, state, max_step=self.max_step)

    def _split(self, code: Tensor) -> Tensor:
        """Initial normals ``(n, code_dim)`` by component, shape ``(n, d, 1 + r)``: own, then of the past."""
        own, past = code[:, : self.latent_dim, None], code[:, self.latent_dim :]
        return torch.cat((own, past.reshape(len(code), self.latent_dim, self.past.shape[-1])), 2)

    def _start_factor(self) -> Tensor:
        """Factor of the initial state ``(X, Z, D)``, shape ``(d, D, 1 + r)``."""
        own = self.initial_log_deviation.double().exp()[:, None]
        first = torch.cat((own, self.initial_past.double()), 1)[:, None]
        past = torch.nn.functional.pad(self.past, (1, 0, self.num_rates, 0))
        return torch.cat((first, past.expand(self.latent_dim, -1, -1)), 1)

    def _start(self, normals: Tensor) -> State:
        """Initial states of normals ``(G, d, Q, 1 + r)``."""
        vector = normals @ self._start_factor().mT
        x = self.initial_mean.double()[:, None] + vector[..., 0]
        return State(x, vector[..., 1 : 1 + self.num_rates], vector[..., 1 + self.num_rates :])

    def _drift(self, time: Tensor, x: Tensor) -> Tensor:
        """The prior drift of rows ``(G, d, Q)``."""
        drift = self.drift(time.to(self.dtype), from_groups(x).to(self.dtype))
        return in_groups(drift.double(), len(x))

    def _normals(self, drive: Drive, times: Tensor) -> Tensor:
        """Standard normals of the steps, shape ``(n, N, d, K)``."""
        drawn = self.draw(drive, times) if isinstance(drive, NoiseStream) else drive
        return drawn[0].unflatten(2, (self.latent_dim, -1))


@dataclass(frozen=True, slots=True, eq=False)
class _Run:
    """One pass along the guided chain: of all rows, series by series."""

    model: GuidedDynamics
    steps: ExactSteps
    laws: list[Law]
    context: Tensor  #: shape ``(B, T, c)``
    observed: Tensor  #: shape ``(T,)``
    groups: int

    def __call__(self, code: Tensor, normals: Tensor) -> Posterior:
        """Paths of initial normals ``(n, d, 1 + r)`` and normals of the steps ``(n, N, d, K)``."""
        paths, steps = len(code) // len(self.context), self.steps
        state, divergence, ratio = self._start(code, paths)
        initial = ratio
        states, divergences, ratios = [state.x], [divergence.new_zeros(len(code))], [0 * ratio]
        for n in range(steps.count):
            drawn = in_groups(normals[:, n], self.groups)[..., : steps.factors.shape[2]]
            state, divergence, ratio = self._step(n, state, drawn, paths)
            states.append(state.x)
            divergences.append(divergences[-1] + divergence)
            ratios.append(ratios[-1] + ratio)
        kept = torch.stack([from_groups(states[k]) for k in steps.saves], 1).to(self.model.dtype)
        total, weights = (torch.stack([part[k] for k in steps.saves], 1) for part in (divergences, ratios))
        return Posterior(PathMeasure(kept, total, -weights - total), initial)

    def _start(self, code: Tensor, paths: int) -> tuple[State, Tensor, Tensor]:
        """Initial states, their divergence and their log ratio."""
        model, drawn, shift = self.model, in_groups(code, self.groups), None
        if model.recognition is not None:
            raw = model.recognition(self._features(0, paths)).double()
            shift = in_groups(model._split(raw), self.groups)
        still = model._start(torch.zeros_like(drawn))
        guided = self._mean(0, still.vector(), drawn.shape[2])
        noise, divergence, ratio = self._shaken(0, guided, drawn, shift)
        return model._start(noise), divergence, ratio

    def _step(self, n: int, state: State, drawn: Tensor, paths: int) -> tuple[State, Tensor, Tensor]:
        """Next states, the divergence of the step and its log ratio."""
        model, steps, time = self.model, self.steps, self.steps.starts[n]
        drift = model._drift(time, state.x)
        moved = steps.moved(n, state, drift)
        coming = int(torch.searchsorted(self.observed, time, right=True))
        if coming == len(self.observed):
            zero = drawn.new_zeros(drawn.shape[0] * drawn.shape[2])
            return steps.shaken(n, moved, drawn), zero, zero
        guided, shift = self._mean(n + 1, moved.vector(), drawn.shape[2]), None
        if model.residual is not None:
            memory = moved.x - state.x - steps.sizes[n] * drift
            seen = torch.cat([from_groups(part) for part in (state.x, memory, steps.push(n, guided))], 1)
            seen = seen.to(model.dtype)
            span = (self.observed[coming] - time).to(seen).expand(len(seen), 1)
            raw = model.residual(torch.cat((seen, self._features(coming, paths), span), 1)).double()
            # A constant control over a step moves its normals by the root of its length.
            shift = steps.sizes[n].sqrt() * in_groups(raw.unflatten(1, (model.latent_dim, -1)), self.groups)
            shift = shift[..., : drawn.shape[3]]
        noise, divergence, ratio = self._shaken(n + 1, guided, drawn, shift)
        return steps.shaken(n, moved, noise), divergence, ratio

    def _mean(self, n: int, vector: Tensor, rows: int) -> Tensor:
        """Mean of the noise without the network, shape ``(G, d, Q, r)``."""
        law = self.laws[n]
        each = self.groups * rows // len(law.push)
        return in_groups(law.push.repeat_interleave(each, 0), self.groups) - vector @ law.pull.mT

    def _shaken(
        self, n: int, guided: Tensor, drawn: Tensor, shift: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The noise of a step, its divergence from standard normals, and its log ratio."""
        law, residue = self.laws[n], drawn
        mean = guided if shift is None else guided + shift
        noise = mean + law.shaken(drawn)
        if shift is not None:
            # The density of the posterior is not differentiated in the network's parameters: that part of
            # the gradient has mean zero, and without it the rest vanishes at the true posterior.
            residue = drawn + (shift - shift.detach()) @ law.root
        ratio = 0.5 * (residue.square() - noise.square()).sum(-1) + law.log_root[..., None]
        divergence = law.divergence(mean)
        return noise, from_groups(divergence).sum(1), from_groups(ratio).sum(1)

    def _features(self, instant: int, paths: int) -> Tensor:
        """Features of an instant for all rows, shape ``(n, c)``."""
        return self.context[:, instant].repeat_interleave(paths, 0)
