r"""Simulation-free inference with fractional noise and a prior whose drift is not linear.

The prior is :math:`\mathrm dX = b(t, X)\,\mathrm dt + s\,\mathrm d\hat B^H`; its noise, seen as that of
``X`` and the ``K`` processes that make :math:`\hat B^H`, has rank one, so a posterior with free Gaussian
marginals of this state is singular to the prior. Here the posterior ``Q`` is the law of ``X`` in a *linear*
equation given pseudo-observations (:class:`ConjugatePosterior`), and the Wiener process that the prior needs
for the same path is recovered from the path. With the mismatch
:math:`\delta(t) = -\theta X_t - b(t, X_t)` of the drifts it is moved, against that of the linear equation, by

.. math::

    \Delta u(t) = \frac{1}{s \bar\omega}
    \Bigl[\delta(t) + \int_0^t \kappa(t - r)\,\delta(r)\,\mathrm dr\Bigr], \qquad
    \kappa(\tau) = c^{\mathsf T} e^{(1 c^{\mathsf T} - \Gamma) \tau} 1, \quad
    c_k = \omega_k \gamma_k / \bar\omega,

the inverse of the fractional kernel: the noise remembers, so the past of the mismatch counts, too. With the
control :math:`u_{\mathrm{lin}} = G^{\mathsf T}(\eta - \Lambda Z)` of the linear equation,

.. math::

    \mathrm{KL}(Q \,\|\, P) = \mathrm{KL}(Q \,\|\, \mathrm{linear})
    + \mathbb E_Q \int u_{\mathrm{lin}} \Delta u + \tfrac12 (\Delta u)^2\,\mathrm dt .

The first term is known in closed form and vanishes from the noise of the estimate, and so does all of it
where the prior is linear. The second is estimated without bias at random instants, each with two independent
random lags for the memory: one batch of evaluations of the drift. Between these instants and those of the
pseudo-observations transitions are exact. There is no time step.

References:
    Bartosh, Vetrov & Naesseth (2025), SDE matching. arXiv:2502.02472
    Daems, Opper, Crevecoeur & Birdal (2024), section 4. arXiv:2310.12975
    Samko, Kilbas & Marichev (1993), Fractional Integrals and Derivatives, section 13, for the inverse kernel
    in the form of differences.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from inference.fractional.chain import GaussianChain, Observations
from inference.fractional.conjugate import ConjugatePosterior, LogLikelihood
from inference.fractional.guide import GuidedPosterior
from inference.fractional.linear_equation import LinearEquation, memory_kernel
from inference.girsanov import PathMeasure, solve_controlled
from sde.equation import SDE, NoiseStructure
from sde.fractional import augmented
from sde.noise.stream import NoiseStream, Purpose

__all__ = ["BatchedDrift", "MatchedPosterior", "SimulatedPaths"]

BatchedDrift = Callable[[Tensor, Tensor], Tensor]
"""Instants ``(m, 1)`` and states ``(m, d)`` to drifts ``(m, d)``."""

# Steps of the additive recurrence of the plane that is spread best (Roberts), from the plastic number.
_RECURRENCE = (0.7548776662466927, 0.5698402909980532)


class SimulatedPaths(NamedTuple):
    """Simulated paths of the posterior: what the estimates without simulation are to be compared with."""

    measure: PathMeasure  #: paths of ``X`` and the rest of the state, and their weights
    initial_log_ratio: Tensor  #: log of prior over posterior of the initial state, shape ``(n,)``


class MatchedPosterior:
    """A linear equation given pseudo-observations, as posterior of a prior with any drift.

    Args:
        linear: The linear equation.
        chain: ``linear.chain(times)`` at the start and the pseudo-observed instants, which do not change
            during training. The more of them, the closer the posterior can come to a prior that is far from
            linear; they need not be those of the data.
        pseudo: Values and deviations at the instants: tensors that are learned, or outputs of an encoder.
            The ``d`` components of a series follow one another as rows.
        dim: Number of components ``d``, each with noise of its own.

    Raises:
        ValueError: If the rows are not a multiple of ``dim``.

    Example:
        >>> from sde.noise import MarkovFBM
        >>> linear = LinearEquation(MarkovFBM(0.3, K=5, grid="paper"), initial_deviation=1.0)
        >>> chain = linear.chain(torch.linspace(0, 1, 5))
        >>> pseudo = Observations([0, 2, 4], torch.tensor([[1.0, 0.8, 1.1]]), 0.3)
        >>> posterior = MatchedPosterior(linear, chain, pseudo)
        >>> well = lambda t, x: x - x**3
        >>> posterior.correction(well, NoiseStream(seed=0, start=0, stop=8)).shape
        torch.Size([8])
        >>> own = posterior.correction(lambda t, x: 0 * x, NoiseStream(seed=0, start=0, stop=8))
        >>> bool((own == 0).all())
        True
    """

    def __init__(
        self, linear: LinearEquation, chain: GaussianChain, pseudo: Observations, *, dim: int = 1
    ) -> None:
        if dim < 1 or pseudo.num_series % dim:
            raise ValueError(
                f"`dim` must divide the number of rows of the pseudo-observations, {pseudo.num_series}; "
                f"got {dim}."
            )
        self.linear, self.chain, self.pseudo, self.dim = linear, chain, pseudo, dim
        self.conjugate = ConjugatePosterior(chain, pseudo)

    @property
    def num_series(self) -> int:
        """Number of series."""
        return self.pseudo.num_series // self.dim

    def correction(self, drift: BatchedDrift, noise: NoiseStream, *, instants: int = 16) -> Tensor:
        """What a prior with this drift adds to the divergence from the linear equation, without bias.

        Args:
            drift: Of the prior; called once, with ``3 * instants`` states of every path.
            noise: ``n`` paths, a multiple of the number of series; those of a series follow one another.
                The instants are the same for all paths of a seed and a start.
            instants: Number of random instants, at least 1.

        Returns:
            Estimates, shape ``(n,)``, float64; differentiable in the drift and the pseudo-observations.

        Raises:
            ValueError: If the numbers do not fit.
        """
        if instants < 1:
            raise ValueError(f"`instants` must be at least 1; got {instants}.")
        rows = self._rows(noise)
        start, stop = float(self.chain.times[0]), float(self.chain.times[-1])
        times, lags = _random_instants(start, stop, noise, instants)
        looked = torch.cat((times[None], times - lags))  # now, and twice before
        states, control, place = self._walk(looked.flatten(), noise, rows)
        x = states[place, :, 0].view(3 * instants, len(noise), self.dim)
        when = looked.view(-1, 1, 1).expand(-1, len(noise), 1)
        moved = drift(when.reshape(-1, 1).to(x), x.reshape(-1, self.dim)).view_as(x)
        gap = (-self.linear.reversion * x - moved).unflatten(0, (3, instants))
        push = self._control_of(gap, lags, times - start)
        u = control(place[:instants]).view(instants, len(noise), self.dim)
        density = u * push.mean(0) + 0.5 * push[0] * push[1]
        return (stop - start) * density.sum(2).mean(0)

    def divergence(self, drift: BatchedDrift, noise: NoiseStream, *, instants: int = 16) -> Tensor:
        """Unbiased estimates of the divergence from the prior, one for each series, shape ``(B,)``.

        Args:
            drift: As for :meth:`correction`, and so the others.
            noise: Paths over which the estimates of a series are averaged.
            instants: Number of random instants.
        """
        known = self.conjugate.divergence().view(-1, self.dim).sum(1)
        added = self.correction(drift, noise, instants=instants)
        return known + added.view(self.num_series, -1).mean(1)

    def bound(
        self, drift: BatchedDrift, log_likelihood: LogLikelihood, noise: NoiseStream, *, instants: int = 16
    ) -> Tensor:
        """Unbiased estimates of the evidence lower bound, one for each series, shape ``(B,)``.

        Args:
            drift: As for :meth:`correction`.
            log_likelihood: As for :class:`ConjugatePosterior`: at the pseudo-observed instants, a row for
                each component.
            noise: As for :meth:`divergence`.
            instants: Number of random instants.
        """
        expected = self.conjugate.expected(log_likelihood).view(-1, self.dim).sum(1)
        return expected - self.divergence(drift, noise, instants=instants)

    def simulate(self, drift: BatchedDrift, noise: NoiseStream, *, steps: int) -> SimulatedPaths:
        """Simulate the posterior in steps, with the weights of its paths: a check, and a way to the evidence.

        :func:`inference.elbo.bound` makes bounds of it. The steps are those of Euler's scheme: short against
        the rates of the noise, and against how fast exact observations pull, or the paths explode.

        Args:
            drift: As for :meth:`correction`.
            noise: As for :meth:`correction`.
            steps: Number of equal steps; those that hold a pseudo-observed instant are cut in two.

        Returns:
            Paths at all instants ``linspace(start, stop, steps + 1)`` and the pseudo-observed ones.
        """
        rows, times = self._rows(noise), self.chain.times
        even = torch.linspace(float(times[0]), float(times[-1]), steps + 1, dtype=torch.float64)
        chain, pseudo, _ = self._merged(even)
        guide = GuidedPosterior(chain, pseudo)
        law = guide.laws[0]
        drawn = noise.normals(
            chain.start.shape[1] * self.dim, purpose=Purpose.INITIAL_STATE, dtype=torch.float64
        ).view(len(rows), -1)
        step = law.push[rows] - chain.mean @ law.pull.mT + law.shaken(drawn)
        ratio = 0.5 * (drawn.square() - step.square()).sum(1) + law.log_root
        system = _Simulated(self, drift, guide, chain, pseudo, rows)
        start = system.pack(chain.mean + step @ chain.start.mT)
        measure = solve_controlled(system.prior(), system.control, start, chain.times, noise)
        return SimulatedPaths(measure, ratio.view(-1, self.dim).sum(1))

    def _rows(self, noise: NoiseStream) -> Tensor:
        """The row of the pseudo-observations of every component of every path, shape ``(n d,)``."""
        each, rest = divmod(len(noise), self.num_series)
        if rest or not each:
            raise ValueError(
                f"`noise` must hold a multiple of {self.num_series} paths, one or more for each series; "
                f"got {len(noise)}."
            )
        series = torch.arange(self.num_series).repeat_interleave(each)
        return (series[:, None] * self.dim + torch.arange(self.dim)).flatten()

    def _merged(self, instants: Tensor) -> tuple[GaussianChain, Observations, Tensor]:
        """The chain with more instants, the pseudo-observations there, and the numbers of the new ones."""
        times, place = torch.unique(torch.cat((self.chain.times, instants)), return_inverse=True)
        count = len(self.chain.times)
        steps = place[:count][list(self.pseudo.steps)].tolist()
        pseudo = Observations(steps, self.pseudo.values, self.pseudo.deviation)
        return self.linear.chain(times), pseudo, place[count:]

    def _walk(
        self, instants: Tensor, noise: NoiseStream, rows: Tensor
    ) -> tuple[Tensor, Callable[[Tensor], Tensor], Tensor]:
        """States ``(N, n d, D)`` of the posterior, its control at some, and where the instants are."""
        chain, pseudo, place = self._merged(instants)
        laws = GuidedPosterior(chain, pseudo).laws
        rank = max(chain.start.shape[1], chain.factors.shape[2])
        normals = noise.normals(len(laws), channels=rank * self.dim, dtype=torch.float64)
        normals = normals.unflatten(2, (self.dim, rank)).transpose(1, 2).flatten(0, 1)
        states: list[Tensor] = []
        for n, law in enumerate(laws):
            factor = chain.factors[n - 1] if n else chain.start
            moved = states[-1] @ chain.transitions[n - 1].mT if n else chain.mean.expand(len(rows), -1)
            step = law.push[rows] - moved @ law.pull.mT + law.shaken(normals[:, n, : factor.shape[1]])
            states.append(moved + step @ factor.mT)
        path = torch.stack(states)

        def control(where: Tensor) -> Tensor:
            """Of the Wiener process of the linear equation, shape ``(k, n d)``."""
            eta = torch.stack([laws[n].eta for n in where.tolist()])[:, rows]
            precision = torch.stack([laws[n].precision for n in where.tolist()])
            return (eta - path[where] @ precision) @ self.linear.push

        return path, control, place

    def _control_of(self, gap: Tensor, lags: Tensor, spans: Tensor) -> Tensor:
        """Two independent estimates of the control of a mismatch, shape ``(2, k, n, d)``.

        The memory is an integral of differences from the present: near the present, where the kernel is
        large, they are small. A lag ``span v^2`` with ``v`` uniform takes up the rest of the singularity.
        """
        kernel, _ = memory_kernel(self.linear.model, lags)
        primitive = memory_kernel(self.linear.model, spans)[1]
        weights = (kernel * 2 * (spans * lags).sqrt())[..., None, None]
        now = gap[0]
        return (primitive[:, None, None] * now + weights * (gap[1:] - now)) / self.linear.strength


def _random_instants(start: float, stop: float, noise: NoiseStream, count: int) -> tuple[Tensor, Tensor]:
    """Stratified instants ``(k,)`` and two independent lags of each, ``(2, k)``: a shifted point set."""
    shared = NoiseStream(noise.seed, 0, 1).fork("matching instants")
    shift = shared.uniforms(3, purpose=Purpose.TRAINING, first=3 * noise.start, dtype=torch.float64)[0]
    number = torch.arange(count, dtype=torch.float64)
    times = start + (stop - start) * (number + shift[0]) / count
    turns = torch.tensor(_RECURRENCE, dtype=torch.float64)[:, None] * number
    places = (shift[1:, None] + turns) % 1
    return times, (times - start) * places.square()


class _Simulated:
    """The posterior as a controlled prior: state ``X``, noise of the prior, noise of the linear equation."""

    def __init__(
        self,
        posterior: MatchedPosterior,
        drift: BatchedDrift,
        guide: GuidedPosterior,
        chain: GaussianChain,
        pseudo: Observations,
        rows: Tensor,
    ) -> None:
        self.linear, self.dim, self.rows = posterior.linear, posterior.dim, rows
        self.drift, self.guide, self.chain, self.pseudo = drift, guide, chain, pseudo
        scale = self.linear.scale
        nonlinear = SDE(
            lambda t, x: drift(t.expand(len(x), 1), x),
            lambda t, x: torch.full_like(x, scale),
            NoiseStructure.ADDITIVE,
        )
        self.augmented = augmented(nonlinear, self.linear.model, self.dim)
        self.count = self.dim * len(self.linear.model.rates)

    def pack(self, states: Tensor) -> Tensor:
        """States ``(n d, D)`` of the chain at the start, where both noises are 0, as states of the solve."""
        states = states.unflatten(0, (-1, self.dim))
        zeros = states.new_zeros(len(states), self.count)
        past = states[..., 1 + len(self.linear.model.rates) :].flatten(1)
        return torch.cat((states[..., 0], zeros, past, zeros), 1)

    def prior(self) -> SDE:
        """Prior equation; the noise of the linear one is a functional of its path."""

        def drift(time: Tensor, state: Tensor) -> Tensor:
            main, shadow = state[:, : -self.count], state[:, -self.count :]
            rates = self.linear.model.rates.repeat(self.dim)
            lost = self._missing(time, state).repeat_interleave(len(self.linear.model.rates), 1)
            change = -rates * shadow - lost
            if self.linear.model.type == "I":
                change = change - main[:, -self.count :]
            return torch.cat((self.augmented.drift(time, main), change), 1)

        def diffusion(time: Tensor, state: Tensor) -> Tensor:
            matrix = self.augmented.diffusion(time, state[:, : -self.count])
            eye = torch.eye(self.dim, dtype=matrix.dtype)
            shared = eye.repeat_interleave(len(self.linear.model.rates), 0)
            return torch.cat((matrix, shared.expand(len(state), -1, -1)), 1)

        return SDE(drift, diffusion, NoiseStructure.ADDITIVE, self.augmented.calculus, self.dim)

    def _missing(self, time: Tensor, state: Tensor) -> Tensor:
        """Control that the mismatch of the drifts asks for, shape ``(n, d)``."""
        omega, rates = self.linear.model.omega(), self.linear.model.rates
        x = state[:, : self.dim]
        own = state[:, self.dim : self.dim + self.count]
        memory = (own - state[:, -self.count :]).unflatten(1, (self.dim, -1)) @ (omega * rates)
        gap = -self.linear.reversion * x - self.drift(time.expand(len(x), 1), x)
        return (gap + self.linear.scale * memory) / self.linear.strength

    def control(self, time: Tensor, state: Tensor) -> Tensor:
        """Of the prior's Wiener processes, shape ``(n, d)``."""
        n = int((self.chain.times - time).abs().argmin())
        law, seen = self.guide.laws[n], self.pseudo.at(n)
        eta, precision = law.eta[self.rows], law.precision
        if seen is not None:  # what is observed at the start of a step does not pull any more
            row = self.chain.rows[n]
            eta = eta - seen[0][self.rows, None] * row / seen[1]
            precision = precision - torch.outer(row, row) / seen[1]
        x, shadow = state[:, : self.dim, None], state[:, -self.count :].unflatten(1, (self.dim, -1))
        parts = [x, shadow]
        if self.linear.model.type == "I":
            parts.append(state[:, self.dim + self.count : -self.count].unflatten(1, (self.dim, -1)))
        chain_state = torch.cat(parts, 2).flatten(0, 1)
        u = ((eta - chain_state @ precision) @ self.linear.push).view(-1, self.dim)
        return u + self._missing(time, state)
