r"""Stochastic differential equations in Pyro programs: laws of paths, and path-space terms as sites.

* :class:`EulerPaths` is the law of a path seen at every step, as a Pyro distribution: priors over drift
  parameters, diffusions and Hurst indices are written in Pyro and fitted by SVI or NUTS.
* :class:`ObservedChain` is the law of noisy values of a linear equation, the path integrated out exactly:
  of fractional noise, too, for priors over its Hurst index.
* :func:`controlled_paths` is a path that is not seen: the posterior is given by a control, and
  :math:`\log \mathrm dP / \mathrm dQ` of :mod:`inference.girsanov` becomes a factor of the program.

Within a Pyro program randomness is Pyro's: sampling takes a seed from torch's generator, which
``pyro.set_rng_seed`` sets, and from there on numbers are addressed as everywhere. Densities draw nothing.

References:
    Bingham et al. (2019), Pyro: deep universal probabilistic programming. arXiv:1810.09538
    Li, Wong, Chen & Duvenaud (2020), section 5. arXiv:2001.01328
"""

import math
from collections.abc import Sequence

import pyro
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from inference.fractional import GaussianChain, Observations, log_evidence
from inference.girsanov import PathMeasure, solve_controlled
from sde import SDE, EulerMaruyama, NoiseStream, NoiseStructure, Purpose, Solver, check_shapes, solve
from sde.equation import Coefficient

__all__ = ["EulerPaths", "ObservedChain", "controlled_paths", "fresh_noise"]

_OWN = (NoiseStructure.DIAGONAL, NoiseStructure.ADDITIVE)
_DEFAULT_SOLVER = EulerMaruyama()


def fresh_noise(count: int) -> NoiseStream:
    """A noise stream of ``count`` samples whose seed Pyro's generator draws.

    Example:
        >>> with torch.random.fork_rng():
        ...     len(fresh_noise(5))
        5
    """
    return NoiseStream(int(torch.randint(2**62, ())), 0, count)


class EulerPaths(TorchDistribution):
    r"""The law of Euler--Maruyama paths that start at given states.

    .. math:: \log p(x) = \sum_k \log \mathcal N\bigl(x_{k+1};\; x_k + f h_k,\; g^2 h_k\bigr)

    Args:
        sde: Ito equation with diagonal noise, or additive noise without ``noise_dim``; its coefficients may
            close over sites of the program.
        initial: States at ``times[0]``, shape ``(n, d)``; the batch of the distribution is ``n``.
        times: Strictly increasing instants, shape ``(T,)``: one step between each two.

    Raises:
        ValueError: If the noise has another structure, or a shape is wrong.

    Example:
        >>> ou = SDE(lambda t, x: -x, lambda t, x: torch.ones_like(x))
        >>> law = EulerPaths(ou, torch.zeros(3, 1), torch.tensor([0.0, 1.0]))
        >>> law.log_prob(torch.zeros(3, 2, 1))
        tensor([-0.9189, -0.9189, -0.9189])
    """

    # The base class types these as properties, and its subclasses set them as here.
    arg_constraints = {}  # pyright: ignore  # noqa: RUF012
    support = constraints.independent(constraints.real, 2)  # pyright: ignore

    def __init__(self, sde: SDE, initial: Tensor, times: Tensor) -> None:
        if sde.structure not in _OWN or sde.noise_dim is not None:
            raise ValueError(
                f"`sde` must have a Wiener process for each component; got {sde.structure.value} noise."
            )
        check_shapes(initial=(initial, "n d"), times=(times, "T"))
        self.sde, self.initial, self.times = sde, initial, times
        super().__init__(initial.shape[:1], torch.Size((len(times), initial.shape[1])), validate_args=False)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw paths, shape ``(*sample_shape, n, T, d)``."""
        copies = math.prod(sample_shape)
        with torch.no_grad():
            drawn = [
                solve(self.sde, self.initial, self.times, fresh_noise(len(self.initial)))
                for _ in range(copies)
            ]
        return torch.stack(drawn).reshape(*sample_shape, *drawn[0].shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of paths ``(n, T, d)`` given their first states, shape ``(n,)``."""
        check_shapes(value=(value, f"{len(self.initial)} {len(self.times)} {self.initial.shape[1]}"))
        total = value.new_zeros(len(value))
        for k, dt in enumerate(self.times.diff()):
            state, time = value[:, k], self.times[k]
            mean = state + self.sde.drift(time, state) * dt
            deviation = self.sde.diffusion(time, state) * dt.sqrt()
            gap = (value[:, k + 1] - mean) / deviation
            each = -0.5 * gap.square() - deviation.log() - 0.5 * math.log(2 * math.pi)
            total = total + each.expand_as(state).sum(1)
        return total


class ObservedChain(TorchDistribution):
    """The law of noisy values of a linear Gaussian chain, by Kalman's filter.

    Args:
        chain: The process; :func:`inference.fractional.fractional_chain` makes one of fractional noise, whose
            index, reversion and scale may be sites of the program.
        steps: Numbers of the observed instants, increasing, ``M`` of them.
        deviation: Standard deviation of the noise of the observations, positive, 0-d or ``(M,)``.
        series: Number of independent series, the batch of the distribution.

    Raises:
        ValueError: If an instant lies outside the chain, or as :class:`inference.fractional.Observations`.

    Example:
        >>> from inference.fractional import fractional_chain
        >>> from sde.noise import MarkovFBM
        >>> chain = fractional_chain(MarkovFBM(0.5), torch.linspace(0, 1, 3))
        >>> law = ObservedChain(chain, [1, 2], 0.5, series=4)
        >>> law.batch_shape, law.event_shape, law.log_prob(torch.zeros(4, 2)).shape
        (torch.Size([4]), torch.Size([2]), torch.Size([4]))
    """

    arg_constraints = {}  # pyright: ignore  # noqa: RUF012
    support = constraints.independent(constraints.real, 1)  # pyright: ignore

    def __init__(
        self, chain: GaussianChain, steps: Sequence[int], deviation: float | Tensor, *, series: int = 1
    ) -> None:
        zeros = chain.mean.new_zeros(series, len(steps))
        Observations(steps, zeros, deviation)  # says what is wrong before anything is drawn
        if max(steps) > chain.num_steps:
            raise ValueError(f"`steps` must lie in [0, {chain.num_steps}]; got {max(steps)}.")
        self.chain, self.steps, self.deviation = chain, list(steps), deviation
        super().__init__(torch.Size((series,)), torch.Size((len(self.steps),)), validate_args=False)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw values, shape ``(*sample_shape, series, M)``."""
        count = math.prod(sample_shape) * self.batch_shape[0]
        noise, chain = fresh_noise(count), self.chain
        with torch.no_grad():
            rank = chain.factors.shape[2]
            normals = noise.normals(chain.num_steps, channels=rank, dtype=torch.float64)
            start = noise.normals(chain.start.shape[1], purpose=Purpose.INITIAL_STATE, dtype=torch.float64)
            states = [chain.mean + start @ chain.start.mT]
            for n, factor in enumerate(chain.factors):
                states.append(states[-1] @ chain.transitions[n].mT + normals[:, n] @ factor.mT)
            seen = chain.process(torch.stack(states, 1))[:, self.steps]
            spread = torch.as_tensor(self.deviation).double()
            errors = noise.normals(len(self.steps), purpose=Purpose.OBSERVATION, dtype=torch.float64)
        return (seen + spread * errors).reshape(*sample_shape, *self.batch_shape, len(self.steps))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log evidence of values ``(series, M)``, shape ``(series,)``; differentiable in the chain."""
        check_shapes(value=(value, f"{self.batch_shape[0]} {len(self.steps)}"))
        return log_evidence(self.chain, Observations(self.steps, value, self.deviation))


def controlled_paths(
    name: str,
    prior: SDE,
    control: Coefficient,
    initial: Tensor,
    times: Tensor,
    *,
    solver: Solver = _DEFAULT_SOLVER,
    max_step: float | None = None,
) -> PathMeasure:
    """Paths of a posterior that a control gives, with their log ratio of prior over posterior as a factor.

    The expected log density of a program that contains it, less that of its guide, is the path-space evidence
    bound: ``Trace_ELBO`` fits the control (``pyro.module`` or ``pyro.param``) with everything else.

    Args:
        name: Site ``name`` holds the paths, deterministic; ``name_log_ratio`` is the factor, of shape
            ``(n,)``.
        prior: Equation of the prior; its coefficients may close over sites.
        control: As for :func:`inference.girsanov.solve_controlled`.
        initial: States at ``times[0]``, shape ``(n, d)``.
        times: Strictly increasing instants, shape ``(T,)``.
        solver: One-step method.
        max_step: Length that no step exceeds; ``None`` steps from instant to instant.

    Returns:
        Paths and integrals.

    Raises:
        ValueError: As :func:`inference.girsanov.solve_controlled`.
    """
    measure = solve_controlled(
        prior, control, initial, times, fresh_noise(len(initial)), solver=solver, max_step=max_step
    )
    pyro.deterministic(name, measure.paths, event_dim=2)
    pyro.factor(f"{name}_log_ratio", measure.log_ratio[:, -1])
    return measure
