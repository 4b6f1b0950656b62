r"""Log-densities of what an interpolant's samplers generate, each with its standard error.

* :func:`flow_log_density`: of the probability flow, by its divergence, exact or by random probes.
* :func:`diffusion_log_density`: of the forward diffusion solved exactly, by a Feynman--Kac average. It asks
  for no relation between velocity and score; its weights vary widely unless the diffusivity is small.
* :func:`reversal_log_density`: along the reversed diffusion, with the martingale that makes the average
  nearly free of variance. It asks that the score be that of the model: its spread measures how far it is
  from that.
* :func:`sampler_log_density`: of the Euler--Maruyama sampler itself, at any step, by importance sampling in
  path space. Its weights are unbiased for the density, and the mean of their logarithms is a lower bound.

References:
    Albergo, Boffi & Vanden-Eijnden (2023), Stochastic interpolants, section 2.5. arXiv:2303.08797
    Grathwohl, Chen, Bettencourt, Sutskever & Duvenaud (2019), FFJORD, section 3. arXiv:1810.01367
    Burda, Grosse & Salakhutdinov (2016), Importance weighted autoencoders, section 3. arXiv:1509.00519
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from inference.interpolants.interpolant import Kind
from inference.interpolants.prediction import Prediction
from inference.samplers.flows import Diffusivity, diffusivity_at
from inference.samplers.interface import check_times
from sde.equation import SDE, Coefficient, NoiseStructure, ode
from sde.gradients import Backprop
from sde.noise import NoiseStream, Purpose, WienerIncrements
from sde.shapes import check_shapes
from sde.solve import solve
from sde.solvers import Heun, Solver

__all__ = [
    "CrossEntropy",
    "LogDensity",
    "cross_entropy",
    "diffusion_log_density",
    "divergence",
    "flow_log_density",
    "reversal_log_density",
    "sampler_log_density",
]

_HEUN = Heun()
_PLAIN = Backprop()  # checkpointing cannot be traced through the derivatives of the divergence

Density = Callable[[Tensor], Tensor]
"""Logarithm of the density of the base: points ``(n, d)`` to ``(n,)``."""


class LogDensity(NamedTuple):
    """Estimates at ``n`` points, in nats."""

    value: Tensor  #: shape ``(n,)``
    standard_error: Tensor  #: of the value, over probes or paths; 0 where exact, NaN for a single draw
    effective_samples: Tensor  #: of the weights, at most the number of draws
    bound: Tensor  #: mean logarithm of the weights: a lower bound on the expectation of the value


class CrossEntropy(NamedTuple):
    """Minus the mean log-density of a model over data, with what is uncertain about it."""

    value: float  #: in nats
    data_error: float  #: standard error for want of data
    estimate_error: float  #: standard error for want of probes or paths


def cross_entropy(density: LogDensity) -> CrossEntropy:
    """Average log-densities over data points.

    Example:
        >>> ones = torch.ones(4)
        >>> cross_entropy(LogDensity(torch.tensor([-1.0, -2.0, -1.0, -2.0]), 0.2 * ones, ones, ones)).value
        1.5
    """
    n = len(density.value)
    return CrossEntropy(
        -float(density.value.mean()),
        float(density.value.std()) / math.sqrt(n),
        float(density.standard_error.square().mean().sqrt()) / math.sqrt(n),
    )


def divergence(
    field: Coefficient, t: Tensor, x: Tensor, probes: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    r"""A field and its divergence, by one evaluation and backward passes.

    Args:
        field: Function of time and points ``(n, d)``, row by row.
        t: Time, 0-d.
        x: Points, shape ``(n, d)``.
        probes: Vectors z with :math:`E z z^T = 1`, shape ``(K, n, d)``; ``None`` is exact, by ``d`` passes.

    Returns:
        The field ``(n, d)``; and the divergence ``(1, n)``, or :math:`z^T (\nabla f) z` for each probe
        ``(K, n)``.

    Example:
        >>> value, exact = divergence(lambda t, x: x**2, torch.tensor(0.0), torch.tensor([[1.0, 3.0]]))
        >>> exact
        tensor([[8.]])
    """
    linear = torch.func.vjp(lambda y: field(t, y), x)
    value, pull = linear[0], linear[1]
    if probes is not None:
        return value, (torch.func.vmap(lambda z: pull(z)[0])(probes) * probes).sum(-1)
    units = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)[:, None].expand(-1, *x.shape)
    rows = torch.func.vmap(lambda z: pull(z)[0])(units)  # (d, n, d): row i of the Jacobian
    return value, rows.diagonal(dim1=0, dim2=2).sum(-1)[None]


def flow_log_density(
    prediction: Prediction,
    points: Tensor,
    base_log_density: Density,
    times: Tensor,
    *,
    noise: NoiseStream | None = None,
    num_probes: int = 0,
    solver: Solver = _HEUN,
) -> LogDensity:
    r"""Log-density of the probability flow, by transport along it.

    .. math:: \log \hat\rho_1(x) = \log \rho_0(X_0) - \int_0^1 \nabla \cdot b(t, X_t)\, \mathrm dt,
              \qquad X_1 = x .

    Gradients with respect to points and networks flow by autograd.

    Args:
        prediction: What is known of the interpolant.
        points: Where, at the last of ``times``, shape ``(n, d)``.
        base_log_density: At the first of ``times``.
        times: Increasing steps, shape ``(T,)``.
        noise: One sample for each point, where probes are asked for.
        num_probes: Rademacher probes for each point, the same through the solve; 0 is exact, at a cost of
            ``d`` backward passes for a stage.
        solver: One-step method.

    Returns:
        The estimates; without probes the standard error is 0.

    Raises:
        ValueError: If times decrease, shapes disagree, or there are probes but no noise.

    Example:
        >>> from inference.interpolants import OneSided
        >>> shift = Prediction(OneSided(), {Kind.VELOCITY: lambda t, x: 3 + 0 * x})
        >>> log_normal = lambda x: -0.5 * (x**2).sum(-1)
        >>> point, times = torch.tensor([[5.0]]), torch.linspace(0, 1, 3)
        >>> flow_log_density(shift, point, log_normal, times).value
        tensor([-2.])
    """
    _check(points, times, noise, 1)
    dim, probes = points.shape[1], None
    if num_probes:
        if noise is None:
            raise ValueError("`noise` must be given with probes; got None.")
        drawn = noise.fork("probes").uniforms(
            num_probes, channels=dim, purpose=Purpose.USER, dtype=points.dtype, device=points.device
        )
        probes = (drawn.transpose(0, 1) - 0.5).sign()

    def drift(t: Tensor, state: Tensor) -> Tensor:
        velocity, spread = divergence(prediction.to(Kind.VELOCITY), -t, state[:, :dim], probes)
        return torch.cat((-velocity, spread.T), 1)

    start = torch.cat((points, points.new_zeros(len(points), max(1, num_probes))), 1)
    end = solve(ode(drift), start, _reversed(times, points), None, solver=solver, gradient=_PLAIN)[:, -1]
    logs = base_log_density(end[:, :dim])[:, None] - end[:, dim:]
    value = logs.mean(1)
    error = _error_of_mean(logs) if num_probes else torch.zeros_like(value)
    return LogDensity(value, error, torch.full_like(value, max(1, num_probes)), value)


def diffusion_log_density(
    prediction: Prediction,
    points: Tensor,
    base_log_density: Density,
    times: Tensor,
    noise: NoiseStream,
    *,
    eps: Diffusivity,
    num_paths: int,
    solver: Solver = _HEUN,
) -> LogDensity:
    r"""Log-density of the forward diffusion, by the Feynman--Kac formula.

    .. math:: \hat\rho_1(x) = E\, e^{-\int \nabla\cdot b_F\, \mathrm dt} \rho_0(Y_0), \qquad
              \mathrm dY = b_F\, \mathrm dt + \sqrt{2\epsilon}\, \mathrm dW \text{ back from } Y_1 = x,

    with :math:`b_F = b + \epsilon s`, the drift of the forward equation. No more than the fields is asked of
    the model. The bound is Jensen's, which is loose at customary diffusivities.

    Args:
        prediction: What is known of the interpolant.
        points: Where, at the last of ``times``, shape ``(n, d)``.
        base_log_density: At the first of ``times``.
        times: Increasing steps, shape ``(T,)``.
        noise: One sample for each point, with channels for each path.
        eps: Diffusivity of the model.
        num_paths: Paths from each point.
        solver: One-step method for additive noise.

    Returns:
        The estimates, with errors of first order in the variance of the weights.

    Raises:
        ValueError: If times decrease or shapes disagree.
    """
    _check(points, times, noise, num_paths)
    dim = points.shape[1]

    def forward(t: Tensor, x: Tensor) -> Tensor:
        return prediction.combine({Kind.VELOCITY: 1.0, Kind.SCORE: diffusivity_at(eps, t)}, t, x)

    def drift(t: Tensor, state: Tensor) -> Tensor:
        value, spread = divergence(forward, -t, state[..., :dim].reshape(-1, dim))
        return torch.cat((-value, spread.T), 1).reshape(state.shape)

    mask = torch.cat((points.new_ones(dim), points.new_zeros(1)))

    def diffusion(t: Tensor, state: Tensor) -> Tensor:
        return ((2 * diffusivity_at(eps, -t)).sqrt() * mask).expand(1, *state.shape[1:])

    start = torch.cat((points, points.new_zeros(len(points), 1)), 1)[:, None].expand(-1, num_paths, -1)
    equation = SDE(drift, diffusion, NoiseStructure.ADDITIVE)
    end = solve(equation, start, _reversed(times, points), noise, solver=solver, gradient=_PLAIN)[:, -1]
    return _weighted(_base(base_log_density, end[..., :dim]) - end[..., dim])


def reversal_log_density(
    prediction: Prediction,
    points: Tensor,
    base_log_density: Density,
    times: Tensor,
    noise: NoiseStream,
    *,
    eps: Diffusivity,
    num_paths: int,
) -> LogDensity:
    r"""Log-density along the reversed diffusion, each path an estimate on its own.

    .. math:: \log \rho_1(x) = \log \rho_0(X_0) - \int (\nabla\cdot b_F + \epsilon |s|^2)\, \mathrm dt
              - \int \sqrt{2\epsilon}\, s \cdot \mathrm dW

    along :math:`X_1 = x`, run back by Euler--Maruyama with the drift :math:`b - \epsilon s`; the increments
    are those of the reversed time. Where the score is exact every path gives the same value, but for an error
    of the steps whose deviation is of order 1/2 in the step.

    Args:
        prediction: What is known of the interpolant.
        points: Where, at the last of ``times``, shape ``(n, d)``.
        base_log_density: At the first of ``times``.
        times: Increasing steps, shape ``(T,)``.
        noise: One sample for each point, with channels for each path.
        eps: Diffusivity.
        num_paths: Paths from each point; their spread is that of the standard error.

    Returns:
        The mean over paths; the effective number is that of the paths.

    Raises:
        ValueError: If times decrease or shapes disagree.
    """
    _check(points, times, noise, num_paths)
    total = points.new_zeros(len(points), num_paths)
    x = points
    for step in _reversal(prediction, points, times, noise, eps, num_paths):
        t, later, score = step.later, step.x_later, step.score

        def forward(s: Tensor, y: Tensor) -> Tensor:
            return prediction.combine({Kind.VELOCITY: 1.0, Kind.SCORE: diffusivity_at(eps, s)}, s, y)

        spread = divergence(forward, t, later.flatten(0, 1))[1].view_as(total)
        rate = diffusivity_at(eps, t)
        martingale = (2 * rate).sqrt() * (score * step.wiener).sum(-1)
        total = total - step.dt * (spread + rate * score.square().sum(-1)) - martingale
        x = step.x_earlier
    logs = _base(base_log_density, x) + total
    value = logs.mean(1)
    count = torch.full_like(value, num_paths)
    return LogDensity(value, _error_of_mean(logs), count, value)


def sampler_log_density(
    prediction: Prediction,
    points: Tensor,
    base_log_density: Density,
    times: Tensor,
    noise: NoiseStream,
    *,
    eps: Diffusivity,
    num_paths: int,
) -> LogDensity:
    r"""Log-density of the Euler--Maruyama sampler of the forward diffusion on a grid of times.

    Paths are proposed from each point by the reversed sampler, and weighted by

    .. math:: w = \rho_0(x_0) \prod_k \frac{N(x_{k+1};\, x_k + h\, b_F(t_k, x_k),\, 2\epsilon_k h)}
              {N(x_k;\, x_{k+1} - h\, b_B(t_{k+1}, x_{k+1}),\, 2\epsilon_{k+1} h)},

    whose mean is the density of the sampler: of the numbers that it generates at these steps, not of the law
    that it approximates. The diffusivity must be positive at all times.

    Args:
        prediction: What is known of the interpolant.
        points: Where, at the last of ``times``, shape ``(n, d)``.
        base_log_density: Of what the sampler starts from, at the first of ``times``.
        times: The steps of the sampler, increasing, shape ``(T,)``.
        noise: One sample for each point, with channels for each path.
        eps: Diffusivity of the sampler.
        num_paths: Paths from each point.

    Returns:
        The estimates; the bound is the path-space evidence lower bound.

    Raises:
        ValueError: If times decrease or shapes disagree.
    """
    _check(points, times, noise, num_paths)
    total, x = points.new_zeros(len(points), num_paths), points
    for step in _reversal(prediction, points, times, noise, eps, num_paths):
        x, t, dt = step.x_earlier, step.earlier, step.dt
        rate = diffusivity_at(eps, t)
        weights = {Kind.VELOCITY: 1.0, Kind.SCORE: rate}
        drift = prediction.combine(weights, t, x.flatten(0, 1)).view_as(x)
        proposed = _log_normal(step.wiener, dt)
        there = _log_normal((step.x_later - x - dt * drift) / (2 * rate).sqrt(), dt)
        # Densities of the points themselves: each standard increment is scaled by its own diffusivity.
        scale = 0.5 * points.shape[1] * torch.log(diffusivity_at(eps, step.later) / rate)
        total = total + there - proposed + scale
    return _weighted(_base(base_log_density, x) + total)


class _Step(NamedTuple):
    """A step of the reversed diffusion; points have shape ``(n, num_paths, d)``."""

    later: Tensor
    earlier: Tensor
    dt: Tensor
    x_later: Tensor
    x_earlier: Tensor
    score: Tensor  # at the later time
    wiener: Tensor


def _reversal(
    prediction: Prediction, points: Tensor, times: Tensor, noise: NoiseStream, eps: Diffusivity, paths: int
) -> Iterator[_Step]:
    """Euler--Maruyama steps from the last time to the first."""
    back = times.flip(0).to(points)
    sizes = -back.diff()
    shape = (len(points), paths, points.shape[1])
    increments = WienerIncrements(noise, sizes, paths * points.shape[1], points.dtype, points.device)
    x = points[:, None].expand(shape)
    for k in range(len(sizes)):
        flat, rate = x.flatten(0, 1), diffusivity_at(eps, back[k])
        score = prediction.combine({Kind.SCORE: 1.0}, back[k], flat).view(shape)
        velocity = prediction.combine({Kind.VELOCITY: 1.0}, back[k], flat).view(shape)
        wiener = increments.chunk(k, 1).wiener[0].view(shape)
        moved = x - sizes[k] * (velocity - rate * score) + (2 * rate).sqrt() * wiener
        yield _Step(back[k], back[k + 1], sizes[k], x, moved, score, wiener)
        x = moved


def _log_normal(increment: Tensor, dt: Tensor) -> Tensor:
    """Log-density of Wiener increments over a step, up to a constant of step and dimension."""
    return -0.5 * increment.square().sum(-1) / dt


def _base(log_density: Density, x: Tensor) -> Tensor:
    """Log-densities of points ``(n, num_paths, d)``."""
    return log_density(x.flatten(0, 1)).view(x.shape[:2])


def _weighted(logs: Tensor) -> LogDensity:
    """The logarithm of the mean of weights, given their logarithms ``(n, num_paths)``."""
    count = logs.shape[1]
    value = logs.logsumexp(1) - math.log(count)
    weights = (logs - value[:, None]).exp()  # of mean one
    effective = count**2 / weights.square().sum(1)
    return LogDensity(value, _error_of_mean(weights), effective, logs.mean(1))


def _error_of_mean(draws: Tensor) -> Tensor:
    """Standard error of the mean over the last axis, NaN for a single draw."""
    count = draws.shape[1]
    if count == 1:
        return torch.full_like(draws[:, 0], torch.nan)
    return draws.std(1) / math.sqrt(count)


def _reversed(times: Tensor, like: Tensor) -> Tensor:
    """The grid of the reversed time ``-t``."""
    return -times.flip(0).to(like)


def _check(points: Tensor, times: Tensor, noise: NoiseStream | None, num_paths: int) -> None:
    """Refuse points, grids and streams that do not fit."""
    check_shapes(points=(points, "n d"))
    if not check_times(times):
        raise ValueError("`times` must increase, with the points at the last one; got decreasing times.")
    if noise is not None and len(noise) != len(points):
        raise ValueError(f"`noise` must hold one sample per point, {len(points)}; got {len(noise)}.")
    if num_paths < 1:
        raise ValueError(f"`num_paths` must be at least 1; got {num_paths}.")
