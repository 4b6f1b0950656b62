r"""The flow and the diffusions that share the laws of an interpolant, through the solvers of :mod:`sde`.

With velocity b and score s, and any diffusivity :math:`\epsilon(t) \ge 0`,

.. math::

    \mathrm dX &= \bigl(b + \epsilon s\bigr)\,\mathrm dt + \sqrt{2\epsilon}\,\mathrm dW
        && \text{forward, from the base,} \\
    \mathrm dX &= -\bigl(b - \epsilon s\bigr)\,\mathrm d\tau + \sqrt{2\epsilon}\,\mathrm dW
        && \text{in } \tau = -t \text{, from the target.}

All have the law of the interpolant at every time; their joint laws of two times differ. The diffusivity is
chosen after training. The noise is additive, so :class:`sde.Heun`, whose predictor holds the noise, has weak
order 2 at two evaluations of each network; adding the noise first and then stepping by Heun has order 1.

References:
    Albergo, Boffi & Vanden-Eijnden (2023), Stochastic interpolants, corollary 2.3. arXiv:2303.08797
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from inference.interpolants.interpolant import Interpolant, Kind, OneSided, TwoSided
from inference.interpolants.prediction import Prediction
from inference.samplers.interface import check_times
from sde.equation import SDE, NoiseStructure, ode
from sde.noise import NoiseStream
from sde.solve import solve_end
from sde.solvers import Heun, Solver

__all__ = [
    "Diffusivity",
    "ProbabilityDiffusion",
    "ProbabilityFlow",
    "capped_diffusivity",
    "diffusion_equation",
    "diffusivity_at",
    "flow_equation",
    "leaving_diffusivity",
    "optimal_diffusivity",
]

Diffusivity = float | Callable[[Tensor], Tensor]
"""A number of at least 0, or a function of time, 0-d, that gives one."""

_HEUN = Heun()


def flow_equation(prediction: Prediction, *, backward: bool = False) -> SDE:
    """The probability-flow equation, for any driver of :mod:`sde`.

    Args:
        prediction: What is known of the interpolant.
        backward: Run from target to base, in the time :math:`-t`, which increases from -1 to 0.

    Returns:
        An ordinary differential equation for states ``(n, *shape)``.

    Example:
        >>> from inference.interpolants import OneSided
        >>> still = Prediction(OneSided(), {Kind.VELOCITY: lambda t, x: 0 * x})
        >>> flow_equation(still).structure.value
        'no'
    """
    velocity = prediction.to(Kind.VELOCITY)
    return ode((lambda t, x: -velocity(-t, x)) if backward else velocity)


def diffusion_equation(prediction: Prediction, eps: Diffusivity, *, backward: bool = False) -> SDE:
    """The diffusion with the laws of the interpolant and a diffusivity of choice.

    Args:
        prediction: What is known of the interpolant.
        eps: Diffusivity; it must vanish fast enough where the score is infinite or badly known.
        backward: Run from target to base, in the time :math:`-t`, which increases from -1 to 0.

    Returns:
        An equation with additive noise for states ``(n, *shape)``.

    Raises:
        ValueError: If ``eps`` is a negative number.
    """
    if not callable(eps) and not 0 <= eps < math.inf:
        raise ValueError(f"`eps` must be at least 0; got {eps}.")
    sign = -1.0 if backward else 1.0

    def drift(t: Tensor, x: Tensor) -> Tensor:
        weights = {Kind.VELOCITY: sign, Kind.SCORE: diffusivity_at(eps, sign * t)}
        return prediction.combine(weights, sign * t, x)

    def diffusion(t: Tensor, x: Tensor) -> Tensor:
        return (2 * diffusivity_at(eps, sign * t)).sqrt().to(x).expand(1, *x.shape[1:])

    return SDE(drift, diffusion, NoiseStructure.ADDITIVE)


def optimal_diffusivity(path: OneSided | TwoSided) -> Callable[[Tensor], Tensor]:
    r"""The diffusivity that bounds the path divergence best where one network gives velocity and score.

    .. math:: \epsilon^*(t) = c^2 \dot\beta / \beta - c \dot c

    with c the amplitude of the Gaussian part: alpha of a one-sided path, gamma of a two-sided path from known
    points. With an error of the predicted noise the integrand of the bound is
    :math:`(c \dot\beta/\beta - \dot c + \epsilon/c)^2 / 4\epsilon`, least at this value. For paths from a
    point it makes the diffusion a Foellmer process. It may be infinite at 0: start at a positive time there.

    Args:
        path: One-sided, or two-sided where each sample starts at a known point.

    Returns:
        A function of time.

    Example:
        >>> from inference.interpolants import VariancePreserving
        >>> reversed_process = OneSided(VariancePreserving())
        >>> optimal_diffusivity(reversed_process)(torch.tensor(0.5))  # 1 / t
        tensor(2.)

    References:
        Albergo, Boffi & Vanden-Eijnden (2023), Stochastic interpolants, section 2.4. arXiv:2303.08797
        Chen, Goldstein, Hua, Albergo, Boffi & Vanden-Eijnden (2024), Probabilistic forecasting with
        stochastic interpolants and Foellmer processes, section 3. arXiv:2403.13724
    """

    def eps(t: Tensor) -> Tensor:
        square, half_rate = path.variance(t)
        beta, rate = path.schedule.coefficients(t)[1], path.schedule.derivatives(t)[1]
        return square * rate / beta - half_rate

    return eps


def leaving_diffusivity(path: TwoSided, share: float = 1.0) -> Callable[[Tensor], Tensor]:
    r"""The diffusivity of the path itself where it leaves a point, or a share of it.

    .. math:: \epsilon(t) = \text{share}\; \gamma^2 / 2t

    With the whole, the drift is :attr:`Kind.DRIFT`, and no score is needed. With less, a sampler must start
    by :func:`leave_point` on a geometric grid.

    Args:
        path: A two-sided path whose starts are known.
        share: At least 0; 0 is the flow.

    Returns:
        A function of time.

    Raises:
        ValueError: If the share is negative.

    Example:
        >>> from inference.interpolants import Fading, Quadratic
        >>> leaving_diffusivity(TwoSided(Quadratic(), Fading()))(torch.tensor(0.0))  # (1 - t)^2 / 2
        tensor(0.5000)
    """
    if not 0 <= share < math.inf:
        raise ValueError(f"`share` must be at least 0; got {share}.")
    return lambda t: share * path.leaving(t)


def capped_diffusivity(path: Interpolant, eps: Diffusivity, step: float) -> Callable[[Tensor], Tensor]:
    r"""A diffusivity that explicit steps can follow where the score of a path is steep.

    .. math:: \epsilon_h(t) = \min\bigl(\epsilon(t),\; c^2(t) / h\bigr)

    with c the amplitude of the Gaussian part. Where the law of the path is sharper than c, the drift pulls to
    it at the rate :math:`\epsilon / c^2`, and a step h is stable up to twice the inverse of that. The laws at
    all times are those of the path whatever the diffusivity, so that the cut costs no accuracy of the fields.

    Args:
        path: The interpolant.
        eps: The diffusivity wanted.
        step: ``h``, the largest step, positive.

    Returns:
        A function of time; with it no score is needed where the amplitude vanishes.

    Raises:
        ValueError: If the step is not positive.

    Example:
        >>> from inference.interpolants import OneSided
        >>> eps = capped_diffusivity(OneSided(), 1.0, step=0.01)
        >>> [round(float(eps(torch.tensor(t))), 4) for t in (0.5, 0.95, 1.0)]
        [1.0, 0.25, 0.0]
    """
    if not step > 0:
        raise ValueError(f"`step` must be positive; got {step}.")

    def capped(t: Tensor) -> Tensor:
        return torch.minimum(diffusivity_at(eps, t), path.variance(t)[0] / step)

    return capped


@dataclass(frozen=True, slots=True)
class ProbabilityFlow:
    """Sampling by the probability-flow equation.

    Attributes:
        solver: One-step method; order 2 at two evaluations of each network by default.

    Example:
        >>> from inference.interpolants import OneSided
        >>> shift = Prediction(OneSided(), {Kind.VELOCITY: lambda t, x: 3 + 0 * x})
        >>> times, noise = torch.linspace(0, 1, 5), NoiseStream(seed=0, start=0, stop=1)
        >>> ProbabilityFlow()(shift, torch.zeros(1, 2), times, noise)
        tensor([[3., 3.]])
    """

    solver: Solver = _HEUN

    def __call__(self, prediction: Prediction, initial: Tensor, times: Tensor, noise: NoiseStream) -> Tensor:
        """Points at ``times[-1]`` from those at ``times[0]``; arguments as :class:`Sampler`."""
        increasing = check_times(times)
        equation = flow_equation(prediction, backward=not increasing)
        return _last(equation, initial, times if increasing else -times, None, self.solver)


@dataclass(frozen=True, slots=True)
class ProbabilityDiffusion:
    """Sampling by a diffusion with the laws of the interpolant.

    Attributes:
        eps: Diffusivity; with 0 the points are those of :class:`ProbabilityFlow`.
        solver: One-step method for additive noise; weak order 2 by default.

    Example:
        >>> from inference.interpolants import OneSided
        >>> path = Prediction(OneSided(), {Kind.TARGET: lambda t, x: torch.ones_like(x)})
        >>> times, noise = torch.linspace(0.1, 0.9, 5), NoiseStream(seed=0, start=0, stop=3)
        >>> ProbabilityDiffusion(0.1)(path, torch.zeros(3, 2), times, noise).shape
        torch.Size([3, 2])
    """

    eps: Diffusivity
    solver: Solver = _HEUN

    def __call__(self, prediction: Prediction, initial: Tensor, times: Tensor, noise: NoiseStream) -> Tensor:
        """Points at ``times[-1]`` from those at ``times[0]``; arguments as :class:`Sampler`."""
        increasing = check_times(times)
        equation = diffusion_equation(prediction, self.eps, backward=not increasing)
        return _last(equation, initial, times if increasing else -times, noise, self.solver)


def diffusivity_at(eps: Diffusivity, t: Tensor) -> Tensor:
    """The diffusivity at a time, 0-d."""
    return torch.as_tensor(eps(t) if callable(eps) else eps, dtype=t.dtype, device=t.device)


def _last(equation: SDE, initial: Tensor, times: Tensor, noise: NoiseStream | None, solver: Solver) -> Tensor:
    """The end of a solve that keeps no state between."""
    return solve_end(equation, initial, times.to(initial), noise, solver=solver)
