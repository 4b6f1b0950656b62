r"""What a solver knows about the difficulty of an equation, as a differentiable quantity.

Adding them to a loss teaches a drift that is cheap to integrate:

.. math::

    R_E = \sum_k h_k\,|E_k|, \qquad
    R_S = \sum_k h_k\,\frac{|f(t_{k+1}, X_{k+1}) - f(t_{k+1}, X_k)|}{|X_{k+1} - X_k|}

with the solver's estimate :math:`E_k` of the local error and root mean squares over the components. The first
is small where steps are accurate, the second estimates how fast the drift contracts or expands along the
path. Both carry the step as a weight, so that they converge to integrals over time as steps shrink.

References:
    Pal, Ma, Shah & Rackauckas (2021), Opening the Blackbox: accelerating neural differential equations by
    regularizing internal solver heuristics, section 3. PMLR 139:8325, arXiv:2105.03918
"""

from typing import NamedTuple

import torch
from torch import Tensor

from sde.equation import SDE
from sde.gradients.backprop import Checkpointed, Gradient
from sde.integrals import solve_with_integrals
from sde.noise.increments import Increment
from sde.solve import Noise
from sde.solvers.interface import Carry, EmbeddedSolver

__all__ = ["Heuristics", "local_error", "solve_with_heuristics", "stiffness"]

_DEFAULT_GRADIENT = Checkpointed()


class Heuristics(NamedTuple):
    """States, and what has been accumulated since the first instant."""

    paths: Tensor  #: states at the instants, shape ``(n, T, *shape)``
    error: Tensor  #: error estimates, shape ``(n, T)``
    stiffness: Tensor  #: stiffness estimates, shape ``(n, T)``


def solve_with_heuristics(
    sde: SDE,
    initial: Tensor,
    times: Tensor,
    noise: Noise,
    *,
    solver: EmbeddedSolver,
    substeps: int = 1,
    max_step: float | None = None,
    gradient: Gradient = _DEFAULT_GRADIENT,
) -> Heuristics:
    """Solve, and accumulate the error and stiffness estimates of the steps, for regularisation.

    Args:
        sde: The equation, an ordinary one too.
        initial: State at ``times[0]``, shape ``(n, *shape)``.
        times: Strictly increasing instants, shape ``(T,)``.
        noise: As for :func:`sde.solve`.
        solver: One-step method with an error estimate.
        substeps: Steps between instants.
        max_step: Instead of ``substeps``: the length that no step exceeds.
        gradient: How the solve is differentiated, with a graph: :class:`Checkpointed` or :class:`Backprop`.

    Returns:
        States and accumulated estimates, all differentiable. A step costs two more evaluations of the drift.

    Raises:
        ValueError: If the solver has no error estimate, or as :func:`sde.solve` does.

    Example:
        >>> from sde import NoiseStream, ode
        >>> from sde.solvers import Heun
        >>> slow, fast = (ode(lambda t, x: -rate * x) for rate in (1.0, 10.0))
        >>> start, times = torch.ones(1, 2), torch.linspace(0, 1, 101)
        >>> solve_with_heuristics(fast, start, times, None, solver=Heun()).stiffness[0, -1].round()
        tensor(10.)

    References:
        Pal, Ma, Shah & Rackauckas (2021), section 3. arXiv:2105.03918
    """
    if not hasattr(solver, "step_with_error"):
        raise ValueError(f"`solver` must estimate its error; got {type(solver).__name__}, which does not.")
    if not isinstance(sde, SDE):
        raise ValueError(f"`sde` must be an SDE, whose drift is looked at; got {type(sde).__name__}.")

    def advance(
        sde: SDE, time: Tensor, carry: Carry, dt: Tensor, increment: Increment
    ) -> tuple[Carry, tuple[Tensor, ...]]:
        moved, estimate = solver.step_with_error(sde, time, carry, dt, increment)
        rate = stiffness(sde, time + dt, solver.read(carry), solver.read(moved))
        return moved, (dt * local_error(estimate), dt * rate)

    paths, (error, stiff) = solve_with_integrals(
        sde,
        initial,
        times,
        noise,
        advance,
        2,
        solver=solver,
        substeps=substeps,
        max_step=max_step,
        gradient=gradient,
    )
    return Heuristics(paths, error, stiff)


def local_error(estimate: Tensor) -> Tensor:
    """Root mean square of an error estimate over the components of each sample, shape ``(n,)``."""
    return _size(estimate)


def stiffness(sde: SDE, time: Tensor, old: Tensor, new: Tensor) -> Tensor:
    """Change of the drift over the change of the state between two states at a time, shape ``(n,)``."""
    change = sde.drift(time, new) - sde.drift(time, old)
    return _size(change) / _size(new - old)


def _size(value: Tensor) -> Tensor:
    """Root mean square over the components, differentiable at zero."""
    tiny = torch.finfo(value.dtype).tiny
    return (value.flatten(1).square().mean(1) + tiny).sqrt()
