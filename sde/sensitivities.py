r"""Derivatives of expectations, with their standard errors.

Two estimators of :math:`\nabla_\theta\,\mathbb E[\varphi(X)]`. The *pathwise* one differentiates the paths at
fixed noise, :math:`\nabla \varphi(X^\theta)`: it has a small variance, and is wrong where :math:`\varphi`
jumps. The *likelihood ratio* differentiates the density of the paths, :math:`\varphi(X)\,\nabla \log
p_\theta(X)`: it asks nothing of :math:`\varphi`, and its variance grows with the number of steps.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from sde.equation import SDE
from sde.gradients.likelihood_ratio import walk_with_log_density
from sde.march import Plan
from sde.noise.stream import NoiseStream
from sde.solve import make_plan, solve
from sde.solvers.euler import EulerMaruyama
from sde.solvers.interface import Solver

__all__ = ["Estimator", "ExpectationGradient", "gradient_of_expectation"]

_DEFAULT_SOLVER = EulerMaruyama()
_BISECTIONS = 40


class Estimator(Enum):
    """How an expectation is differentiated."""

    PATHWISE = "pathwise"  #: for functionals that are continuous along the paths
    LIKELIHOOD_RATIO = "likelihood ratio"  #: for any functional; Euler--Maruyama, noise in all directions


class ExpectationGradient(NamedTuple):
    """An expectation and its derivatives, with standard errors."""

    value: Tensor  #: the expectation, 0-d
    value_error: Tensor  #: its standard error
    gradients: tuple[Tensor, ...]  #: one for each tensor, of its shape
    gradient_errors: tuple[Tensor, ...]  #: their standard errors, component by component


@dataclass(frozen=True, slots=True)
class _Task:
    """What is differentiated."""

    sde: SDE
    times: Tensor
    functional: Callable[[Tensor], Tensor]
    solver: Solver
    substeps: int
    max_step: float | None

    def plan(self, initial: Tensor, noise: NoiseStream) -> Plan:
        """The steps of a batch."""
        return make_plan(self.sde, initial, self.times, noise, self.solver, self.substeps, self.max_step)

    def evaluate(self, paths: Tensor) -> Tensor:
        """Values of the functional, shape ``(n,)``."""
        values = self.functional(paths)
        if tuple(values.shape) != (len(paths),):
            raise ValueError(
                f"`functional` must return one value per path, {(len(paths),)}; got {tuple(values.shape)}."
            )
        return values.to(paths.dtype)


def gradient_of_expectation(
    sde: SDE,
    initial: Tensor,
    times: Tensor,
    noise: NoiseStream,
    functional: Callable[[Tensor], Tensor],
    wrt: Sequence[Tensor],
    *,
    estimator: Estimator = Estimator.PATHWISE,
    solver: Solver = _DEFAULT_SOLVER,
    substeps: int = 1,
    max_step: float | None = None,
    batches: int = 32,
) -> ExpectationGradient:
    r"""Estimate :math:`\mathbb E[\varphi(X)]` and its derivatives with respect to some tensors.

    The pathwise estimator is refused for a functional that is found to jump: for one whose values carry no
    gradient (an indicator), and for one that jumps by bisection between pairs of sampled paths.

    Standard errors come from the spread between batches of samples.

    Args:
        sde: The equation; its functions close over the tensors of ``wrt``.
        initial: State at ``times[0]``, one for all samples, shape ``shape``.
        times: Strictly increasing instants, shape ``(T,)``.
        noise: The samples.
        functional: Paths ``(n, T, *shape)`` to values ``(n,)``.
        wrt: Tensors that require a gradient: parameters of the equation, or ``initial``.
        estimator: How to differentiate.
        solver: One-step method; the likelihood ratio needs Euler--Maruyama.
        substeps: Steps between instants.
        max_step: Instead of ``substeps``: the length that no step exceeds.
        batches: Batches of samples, at least 2.

    Returns:
        Value and derivatives, with standard errors.

    Raises:
        ValueError: If the estimator cannot be used, with the one to use instead, or an argument is wrong.

    Example:
        >>> rate = torch.tensor(0.5, requires_grad=True)
        >>> growth = SDE(lambda t, x: rate * x, lambda t, x: 0.2 * x)
        >>> noise, times = NoiseStream(0, 0, 4096), torch.linspace(0, 1, 9)
        >>> digital = lambda paths: (paths[:, -1, 0] > 1.5).float()
        >>> found = gradient_of_expectation(growth, torch.ones(1), times, noise, digital, [rate],
        ...                                 estimator=Estimator.LIKELIHOOD_RATIO)
        >>> bool(found.gradients[0] > 0)
        True

    References:
        Glasserman (2003), sections 7.2 and 7.3. doi:10.1007/978-0-387-21617-1
        L'Ecuyer (1990), A unified view of the IPA, SF, and LR gradient estimation techniques.
        doi:10.1287/mnsc.36.11.1364
    """
    _check(wrt, noise, batches)
    task = _Task(sde, times, functional, solver, substeps, max_step)
    edges = [len(noise) * k // batches for k in range(batches + 1)]
    if estimator is Estimator.PATHWISE:
        _refuse_jumps(task, initial, noise[: max(2, edges[1])])
    values, gradients = [], []
    for first, last in pairwise(edges):
        part = noise[first:last]
        start = initial.expand(len(part), *initial.shape)
        if estimator is Estimator.PATHWISE:
            value, surrogate = _pathwise(task, start, part)
        else:
            value, surrogate = _likelihood_ratio(task, start, part)
        # What `initial` is computed from is shared by the batches.
        bars = torch.autograd.grad(surrogate, wrt, allow_unused=True, retain_graph=True)
        values.append(value)
        gradients.append([torch.zeros_like(p) if b is None else b for p, b in zip(wrt, bars, strict=True)])
    weights = torch.tensor([b - a for a, b in pairwise(edges)], dtype=torch.float64)
    value, value_error = _mean_of_batches(values, weights)
    means = [_mean_of_batches(list(parts), weights) for parts in zip(*gradients, strict=True)]
    return ExpectationGradient(value, value_error, tuple(m[0] for m in means), tuple(m[1] for m in means))


def _check(wrt: Sequence[Tensor], noise: NoiseStream, batches: int) -> None:
    """Raise unless there is something to differentiate and enough samples to say how well."""
    if not wrt or not all(isinstance(p, Tensor) and p.requires_grad for p in wrt):
        raise ValueError("`wrt` must hold tensors that require a gradient; call requires_grad_() on them.")
    if isinstance(batches, bool) or not isinstance(batches, int) or batches < 2:
        raise ValueError(f"`batches` must be an integer of at least 2; got {batches!r}.")
    if len(noise) < 2 * batches:
        raise ValueError(f"`noise` must hold 2 samples for each batch, {2 * batches}; got {len(noise)}.")


def _pathwise(task: _Task, initial: Tensor, noise: NoiseStream) -> tuple[Tensor, Tensor]:
    """Mean of a batch, and what is differentiated."""
    paths = solve(
        task.sde,
        initial,
        task.times,
        noise,
        solver=task.solver,
        substeps=task.substeps,
        max_step=task.max_step,
    )
    values = task.evaluate(paths)
    if not values.requires_grad:
        raise ValueError(
            "`functional` must be differentiable for the pathwise estimator; its values do not depend on the "
            "paths by differentiable operations. For an indicator use Estimator.LIKELIHOOD_RATIO."
        )
    mean = values.mean()
    return mean.detach(), mean


def _likelihood_ratio(task: _Task, initial: Tensor, noise: NoiseStream) -> tuple[Tensor, Tensor]:
    """Mean of a batch, and what is differentiated."""
    paths, log_density = walk_with_log_density(task.plan(initial, noise), initial)
    values = task.evaluate(paths)
    constants, n = values.detach(), len(values)
    # The mean of the others is independent of a sample's score: it takes variance away and adds no bias.
    others = (constants.sum() - constants) / (n - 1)
    surrogate = ((constants - others) * log_density).mean()
    if values.requires_grad:  # the functional itself depends on the tensors
        surrogate = surrogate + values.mean()
    return constants.mean(), surrogate


def _mean_of_batches(values: list[Tensor], weights: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over all samples and its standard error, from the means of batches."""
    stacked = torch.stack(values)
    shares = (weights / weights.sum()).to(stacked).view(-1, *(1,) * (stacked.dim() - 1))
    mean = (shares * stacked).sum(0)
    error = ((stacked - mean).square().mean(0) / (len(values) - 1)).sqrt()
    return mean, error


def _refuse_jumps(task: _Task, initial: Tensor, noise: NoiseStream) -> None:
    """Raise if the functional jumps somewhere between pairs of sampled paths.

    On the segment between two paths an interval over which the functional changes is halved again and again,
    always into the half that holds more of the change. A continuous functional loses its change, one that
    jumps keeps it.
    """
    with torch.no_grad():
        paths = solve(
            task.sde,
            initial.expand(len(noise), *initial.shape),
            task.times,
            noise,
            solver=task.solver,
            substeps=task.substeps,
            max_step=task.max_step,
        ).double()
        low, high = paths, paths.roll(1, 0)
        at_low, at_high = task.evaluate(low), task.evaluate(high)
        change = (at_high - at_low).abs()
        for _ in range(_BISECTIONS):
            middle = 0.5 * (low + high)
            at_middle = task.evaluate(middle)
            first = (at_middle - at_low).abs() > (at_high - at_middle).abs()
            mask = first.view(-1, *(1,) * (low.dim() - 1))
            low, high = torch.where(mask, low, middle), torch.where(mask, middle, high)
            at_low, at_high = torch.where(first, at_low, at_middle), torch.where(first, at_middle, at_high)
    left = (at_high - at_low).abs()
    scale = change.max()
    if bool((left > 1e-3 * scale).any()) and float(scale) > 0:
        raise ValueError(
            f"`functional` must be continuous for the pathwise estimator, whose derivative misses jumps; it "
            f"jumps by {float(left.max()):.3g} between two paths. Use Estimator.LIKELIHOOD_RATIO."
        )
