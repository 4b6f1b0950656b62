"""The score of a path: how the probability of the Euler path changes with the parameters."""

import torch
from torch import Tensor

from sde.equation import SDE, NoiseStructure
from sde.march import Plan
from sde.solvers.euler import EulerMaruyama

__all__ = ["walk_with_log_density"]


def walk_with_log_density(plan: Plan, initial: Tensor) -> tuple[Tensor, Tensor]:
    r"""Walk a plan of Euler--Maruyama steps; the states, and the logarithm of their density.

    .. math:: \log p = \sum_k \log \mathcal N\bigl(X_{k+1};\ X_k + f(t_k, X_k) h,\ g g^{\mathsf T} h\bigr)

    The states are constants; the density keeps the graph to what drift, diffusion and ``initial`` depend on.
    Its gradient is the score of the path, of mean zero.

    Args:
        plan: Steps of :class:`EulerMaruyama` for an equation whose noise reaches every component.
        initial: State at the first instant, shape ``(n, *shape)``.

    Returns:
        States at the instants, detached, shape ``(n, T, *shape)``, and log densities, shape ``(n,)``.

    Raises:
        ValueError: If the solver is another, or the noise does not reach every component.

    References:
        Glasserman (2003), Monte Carlo Methods in Financial Engineering, section 7.3.
        doi:10.1007/978-0-387-21617-1
    """
    sde = _check(plan, initial)
    state, start = initial.detach(), initial
    total, saved = initial.new_zeros(len(initial)), [state]
    for step in plan.march(state, 0, plan.num_steps):
        new = step.carry.detach()
        total = total + _log_density(sde, step.time, start, step.dt, new)
        state = start = new
        if step.number + 1 in plan.grid.saves:
            saved.append(state)
    return torch.stack(saved, 1), total


def _check(plan: Plan, initial: Tensor) -> SDE:
    """The equation, if its Euler steps have a density."""
    sde, size = plan.sde, initial[0].numel()
    if not isinstance(plan.solver, EulerMaruyama):
        raise ValueError(
            f"`solver` must be EulerMaruyama() for the likelihood ratio; got {type(plan.solver).__name__}."
        )
    assert isinstance(sde, SDE)  # the solver integrates nothing else
    scalar = sde.structure is NoiseStructure.SCALAR and size > 1
    if scalar or (sde.noise_dim is not None and sde.noise_dim < size):
        processes = 1 if scalar else sde.noise_dim
        raise ValueError(
            f"`sde` must have noise in all {size} directions of the state for the likelihood ratio; "
            f"got {processes} processes."
        )
    return sde


def _log_density(sde: SDE, time: Tensor, old: Tensor, dt: Tensor, new: Tensor) -> Tensor:
    """Log density of an Euler step from ``old`` to ``new``, each ``(n, *shape)``; shape ``(n,)``.

    The additive constant is left away.
    """
    residual = (new - old - sde.drift(time, old) * dt).flatten(1)
    diffusion = sde.diffusion(time, old)
    if sde.noise_dim is None:
        scale = diffusion.expand_as(new).flatten(1)
        squares = (residual / scale).square().sum(1) / dt
        return -0.5 * squares - scale.abs().log().sum(1)
    matrix = diffusion.flatten(1, -2)
    factor = torch.linalg.cholesky(matrix @ matrix.mT)
    white = torch.linalg.solve_triangular(
        factor.expand(len(residual), -1, -1), residual.unsqueeze(-1), upper=False
    )
    squares = white.square().sum((1, 2)) / dt
    return -0.5 * squares - factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
