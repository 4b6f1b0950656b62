r"""Path measures of two equations with the same diffusion: divergence and weights, by Girsanov's theorem.

For :math:`\mathrm dX = f_q\,\mathrm dt + g\,\mathrm dW` under Q and the drift :math:`f_p` under P, with a
control :math:`u` that solves :math:`g u = f_q - f_p`,

.. math::

    \mathrm{KL}(Q \,\|\, P) = \mathbb E_Q \tfrac12 \int |u|^2\,\mathrm dt, \qquad
    \log \frac{\mathrm dP}{\mathrm dQ} = -\int u \cdot \mathrm dW - \tfrac12 \int |u|^2\,\mathrm dt .

Where no such control exists, because the drifts differ in a direction that the noise does not reach, the
divergence is infinite, and that is what is returned (:func:`solve_measure`); a bound of such paths is refused
with the reason (:func:`inference.elbo.bound`). A posterior that is given by its
control has a finite divergence by construction (:func:`solve_controlled`).

References:
    Oksendal (2003), theorem 8.6.6. doi:10.1007/978-3-642-14394-6
    Archambeau, Opper, Shen, Cornford & Shawe-Taylor (2007), Variational inference for diffusion processes.
    Roeder, Wu & Duvenaud (2017), Sticking the landing. arXiv:1703.09194
"""

from typing import NamedTuple

import torch
from torch import Tensor

from sde import SDE, NoiseStructure
from sde.equation import Coefficient
from sde.gradients import Checkpointed, Gradient
from sde.integrals import solve_with_integrals
from sde.noise import Areas, Increment
from sde.noise.increments import Law
from sde.solve import Noise
from sde.solvers import EulerMaruyama, Solver
from sde.solvers.interface import Carry

__all__ = ["PathMeasure", "control", "solve_controlled", "solve_measure"]

_OUT_OF_RANGE = 1e-4  # relative size of a drift difference that noise does not reach: far above rounding
_DEFAULT_SOLVER, _DEFAULT_GRADIENT = EulerMaruyama(), Checkpointed()


class PathMeasure(NamedTuple):
    """Paths of the posterior equation and how they weigh under the prior, up to every instant."""

    paths: Tensor  #: states, shape ``(n, T, *shape)``
    divergence: Tensor  #: :math:`\\tfrac12 \\int |u|^2 dt`, shape ``(n, T)``
    martingale: Tensor  #: :math:`\\int u \\cdot dW`, shape ``(n, T)``

    @property
    def unreached(self) -> Tensor:
        """Whether the posterior drift left the range of the noise along a path, shape ``(n,)``."""
        finite = self.paths[:, -1].flatten(1).isfinite().all(1)
        return self.divergence[:, -1].isinf() & finite

    @property
    def log_ratio(self) -> Tensor:
        """Logarithm of prior over posterior of each path, shape ``(n, T)``."""
        return -self.divergence - self.martingale


def control(prior: SDE, posterior: SDE, time: Tensor, state: Tensor) -> Tensor:
    """The control ``u`` with ``g u`` the posterior drift less the prior drift.

    Args:
        prior: Equation whose drift is subtracted.
        posterior: Equation with the same diffusion, whose diffusion is evaluated.
        time: 0-d.
        state: Shape ``(n, *shape)``.

    Returns:
        Shape ``(n, channels)``; infinite in rows where there is none.

    Example:
        >>> walk = SDE(lambda t, x: 0 * x, lambda t, x: 2 * torch.ones_like(x))
        >>> pulled = SDE(lambda t, x: -x, lambda t, x: 2 * torch.ones_like(x))
        >>> control(walk, pulled, torch.zeros(()), torch.ones(1, 3))
        tensor([[-0.5000, -0.5000, -0.5000]])
    """
    gap = (posterior.drift(time, state) - prior.drift(time, state)).flatten(1)
    diffusion = posterior.diffusion(time, state)
    if posterior.noise_dim is None and posterior.structure is not NoiseStructure.SCALAR:
        return _divided(gap, diffusion.expand_as(state).flatten(1))
    matrix = diffusion.unsqueeze(-1) if posterior.noise_dim is None else diffusion
    matrix = matrix.expand(len(state), *matrix.shape[1:]).flatten(1, -2)
    return _solved(gap, matrix)


def _divided(gap: Tensor, diffusion: Tensor) -> Tensor:
    """The control of noise that reaches every component by itself."""
    still = diffusion == 0
    value = gap / torch.where(still, 1.0, diffusion)
    return torch.where(still, torch.where(gap == 0, 0.0, torch.inf), value)


def _solved(gap: Tensor, matrix: Tensor) -> Tensor:
    """The smallest control of noise through a matrix ``(n, d, m)``, infinite where there is none."""
    inverse = torch.linalg.pinv(matrix)
    value = (inverse @ gap.unsqueeze(-1)).squeeze(-1)
    left = gap - (matrix @ value.unsqueeze(-1)).squeeze(-1)
    outside = left.detach().abs().amax(1) > _OUT_OF_RANGE * gap.detach().abs().amax(1)
    return torch.where(outside.unsqueeze(1), torch.inf, value)


def solve_measure(
    prior: SDE,
    posterior: SDE,
    initial: Tensor,
    times: Tensor,
    noise: Noise,
    *,
    solver: Solver = _DEFAULT_SOLVER,
    substeps: int = 1,
    max_step: float | None = None,
    gradient: Gradient = _DEFAULT_GRADIENT,
    frozen: SDE | None = None,
) -> PathMeasure:
    r"""Integrate the posterior equation, and with it the divergence and the martingale of its paths.

    Both integrals are left sums over the steps. With Euler--Maruyama that makes ``log_ratio`` the exact
    logarithm of the ratio of the densities of the two Euler chains, so bounds from it are true bounds.

    Args:
        prior: Equation P.
        posterior: Equation Q: the same calculus, structure and diffusion, another drift.
        initial: State at ``times[0]``, shape ``(n, *shape)``.
        times: Strictly increasing instants, shape ``(T,)``.
        noise: As for :func:`sde.solve`.
        solver: One-step method.
        substeps: Steps between instants.
        max_step: Instead of ``substeps``: the length that no step exceeds.
        gradient: How the solve is differentiated, with a graph.
        frozen: The posterior with its parameters detached, from which the martingale is then taken: values
            stay the same, and gradients of the mean of ``log_ratio`` lose the score of the posterior, whose
            mean is zero ("sticking the landing"). At the true posterior their variance vanishes.

    Returns:
        Paths and integrals, differentiable.

    Raises:
        ValueError: If the equations differ in calculus or structure, or as :func:`sde.solve`.

    Example:
        >>> from sde import NoiseStream
        >>> one = lambda t, x: torch.ones_like(x)
        >>> prior, posterior = SDE(lambda t, x: 0 * x, one), SDE(lambda t, x: 0.5 + 0 * x, one)
        >>> times, noise = torch.linspace(0, 1, 5), NoiseStream(0, 0, 10)
        >>> solve_measure(prior, posterior, torch.zeros(10, 1), times, noise).divergence[0]
        tensor([0.0000, 0.0312, 0.0625, 0.0938, 0.1250])
    """
    for name in ("calculus", "structure", "noise_dim"):
        one, other = getattr(prior, name), getattr(posterior, name)
        if one != other:
            raise ValueError(f"`posterior` must have the {name} of `prior`, {one}; got {other}.")
    if posterior.structure is NoiseStructure.NONE:
        raise ValueError("`posterior` must have noise: without it two different drifts share no path.")

    def advance(
        sde: SDE, time: Tensor, carry: Carry, dt: Tensor, increment: Increment
    ) -> tuple[Carry, tuple[Tensor, ...]]:
        u = control(prior, sde, time, solver.read(carry))
        still = u if frozen is None else control(prior, frozen, time, solver.read(carry))
        # Infinite controls must not meet a zero increment.
        moved = torch.where(still.isinf(), 0.0, still * increment.wiener.flatten(1))
        gains = 0.5 * dt * u.square().sum(1), moved.sum(1)
        return solver.step(sde, time, carry, dt, increment), gains

    paths, integrals = solve_with_integrals(
        posterior,
        initial,
        times,
        noise,
        advance,
        2,
        solver=solver,
        substeps=substeps,
        max_step=max_step,
        gradient=gradient,
        allow_diverged=True,
    )
    return PathMeasure(paths, *integrals)


def solve_controlled(
    prior: SDE,
    control: Coefficient,
    initial: Tensor,
    times: Tensor,
    noise: Noise,
    *,
    solver: Solver = _DEFAULT_SOLVER,
    substeps: int = 1,
    max_step: float | None = None,
    gradient: Gradient = _DEFAULT_GRADIENT,
    frozen: Coefficient | None = None,
) -> PathMeasure:
    r"""Integrate the equation whose Wiener process a control moves, and the integrals of its paths.

    .. math:: \mathrm dX = f\,\mathrm dt + g\,(\mathrm dW + u\,\mathrm dt)

    The control is held over each step, so the scheme is that of the prior with increments
    :math:`\Delta W + u h`. That makes ``log_ratio`` the exact logarithm of the ratio of the densities of the
    two chains, whatever the scheme, and bounds from it true bounds for the scheme. A step costs one
    evaluation of the control and one step of the prior.

    Args:
        prior: Equation P.
        control: ``u``; time, 0-d, and state ``(n, *shape)`` to ``(n, channels)``.
        initial: State at ``times[0]``, shape ``(n, *shape)``.
        times: Strictly increasing instants, shape ``(T,)``.
        noise: As for :func:`sde.solve`.
        solver: One-step method that needs no Levy areas between channels.
        substeps: Steps between instants.
        max_step: Instead of ``substeps``: the length that no step exceeds.
        gradient: How the solve is differentiated, with a graph.
        frozen: The control with its parameters detached, as for :func:`solve_measure`; for a network ``net``,
            ``torch.func.functional_call(net, {k: p.detach() for k, p in net.named_parameters()}, z)``.

    Returns:
        Paths and integrals, differentiable.

    Raises:
        ValueError: If the prior has no noise, the scheme needs Levy areas or three-point increments, or as
            :func:`sde.solve`.

    Example:
        >>> from sde import NoiseStream
        >>> walk = SDE(lambda t, x: 0 * x, lambda t, x: 2 * torch.ones_like(x))
        >>> times, noise = torch.linspace(0, 1, 5), NoiseStream(0, 0, 10)
        >>> pushed = solve_controlled(walk, lambda t, x: 0.5 + 0 * x, torch.zeros(10, 1), times, noise)
        >>> pushed.divergence[0]
        tensor([0.0000, 0.0312, 0.0625, 0.0938, 0.1250])
    """
    if prior.structure is NoiseStructure.NONE:
        raise ValueError("`prior` must have noise: without it there is nothing to control.")
    if Areas.LEVY in solver.areas or solver.law is not Law.NORMAL:
        raise ValueError(
            f"`solver` must need Wiener increments, and no Levy areas between them; got "
            f"{type(solver).__name__}."
        )

    def advance(
        sde: SDE, time: Tensor, carry: Carry, dt: Tensor, increment: Increment
    ) -> tuple[Carry, tuple[Tensor, ...]]:
        state, wiener = solver.read(carry), increment.wiener
        u = control(time, state)
        still = u if frozen is None else frozen(time, state)
        # A constant velocity leaves the space-time areas as they are.
        moved = increment._replace(wiener=wiener + (u * dt).view_as(wiener))
        gains = 0.5 * dt * u.square().sum(1), (still * wiener.flatten(1)).sum(1)
        return solver.step(sde, time, carry, dt, moved), gains

    paths, integrals = solve_with_integrals(
        prior,
        initial,
        times,
        noise,
        advance,
        2,
        solver=solver,
        substeps=substeps,
        max_step=max_step,
        gradient=gradient,
        allow_diverged=True,
    )
    return PathMeasure(paths, *integrals)
