r"""The probability flow in coordinates in which it is not stiff, and gradients through it.

With signal a and deviation :math:`\sigma` of a one-sided interpolant let :math:`y = x / a` and
:math:`\rho = \sigma / a`. Then the flow is the predicted noise alone,

.. math:: \frac{\mathrm dy}{\mathrm d\rho} = \hat z\bigl(t(\rho), a\, y\bigr),

without the linear part of the velocity, and any scheme and any gradient of :mod:`sde` applies:
:class:`sde.gradients.Adjoint` integrates the adjoint equation backwards in memory that does not grow with the
steps, :class:`sde.gradients.Symplectic` differentiates the numbers themselves, one evaluation of the network
at a time, and :class:`sde.gradients.Checkpointed` works for all schemes.

References:
    Pan, Liew, Tan, Feng & Yan (2024), AdjointDPM: adjoint sensitivity method for gradient backpropagation of
    diffusion probabilistic models, section 4. arXiv:2307.10711
"""

from dataclasses import dataclass

from torch import Tensor

from inference.interpolants.interpolant import Kind
from inference.interpolants.prediction import Prediction
from inference.interpolants.schedule import Schedule
from inference.samplers.interface import check_times, one_sided_schedule
from sde.equation import SDE, ode
from sde.gradients import Checkpointed, Gradient
from sde.noise import NoiseStream
from sde.solve import solve_end
from sde.solvers import Solver
from sde.solvers.classical import RungeKutta4

__all__ = ["RescaledFlow", "rescaled_equation"]

_RK4, _CHECKPOINTED = RungeKutta4(), Checkpointed()


def rescaled_equation(
    prediction: Prediction, *, backward: bool = False, parameters: tuple[Tensor, ...] | None = None
) -> SDE:
    r"""The flow of :math:`y = x / a` in the time :math:`-\rho`, which increases towards the target.

    Args:
        prediction: What is known of a one-sided interpolant.
        backward: Run towards the base, in the time :math:`\rho`.
        parameters: What :class:`sde.gradients.Adjoint` and its like differentiate with respect to.

    Returns:
        An ordinary differential equation for states ``(n, *shape)``.

    Raises:
        ValueError: If the interpolant is not one-sided.
    """
    schedule = one_sided_schedule(prediction, "RescaledFlow")
    sign = 1.0 if backward else -1.0

    def rate(time: Tensor, y: Tensor) -> Tensor:
        t = schedule.time(-(sign * time.double()).log()).to(y)
        signal = schedule.coefficients(t)[1]
        return sign * prediction.combine({Kind.NOISE: 1.0}, t, signal * y)

    return ode(rate, parameters)


@dataclass(frozen=True, slots=True, eq=False)
class RescaledFlow:
    """Sampling by the probability flow in the coordinates of :func:`rescaled_equation`.

    The noise that follows from another prediction is a quotient whose both parts vanish at the target. Within
    ``eps**(1 / 3)`` of it, of the dtype, such noise is not accurate: let ``times`` end before, or predict
    noise.

    Attributes:
        solver: One-step method; the classical one of order 4 by default.
        gradient: How the sampler is differentiated, with respect to its initial points and all else.
        parameters: Tensors beside the initial points that gradients which keep no graph differentiate with
            respect to: parameters of the networks, conditions.

    Example:
        >>> import torch
        >>> from inference.interpolants import OneSided
        >>> path = Prediction(OneSided(), {Kind.TARGET: lambda t, x: torch.ones_like(x)})
        >>> times, noise = torch.linspace(0.1, 0.991, 5), NoiseStream(seed=0, start=0, stop=1)
        >>> RescaledFlow()(path, torch.zeros(1, 1), times, noise).round(decimals=4)
        tensor([[0.9900]])

    References:
        Pan, Liew, Tan, Feng & Yan (2024), section 4. arXiv:2307.10711
    """

    solver: Solver = _RK4
    gradient: Gradient = _CHECKPOINTED
    parameters: tuple[Tensor, ...] | None = None

    def __call__(self, prediction: Prediction, initial: Tensor, times: Tensor, noise: NoiseStream) -> Tensor:
        """Points at ``times[-1]`` from those at ``times[0]``; arguments as :class:`Sampler`.

        Raises:
            ValueError: If the interpolant is not one-sided or has no signal at an end of ``times``.
        """
        increasing = check_times(times)
        schedule = one_sided_schedule(prediction, "RescaledFlow")
        signals, ratio = _coordinates(schedule, times.double().to(initial.device))
        first, last = signals[[0, -1]].to(initial).unbind()
        equation = rescaled_equation(prediction, backward=not increasing, parameters=self.parameters)
        scaled = solve_end(
            equation,
            initial / first,
            -ratio if increasing else ratio,
            None,
            solver=self.solver,
            gradient=self.gradient,
        )
        return last * scaled


def _coordinates(schedule: Schedule, times: Tensor) -> tuple[Tensor, Tensor]:
    """Signal, and ratio of noise to signal, at times."""
    deviation, signal = schedule.coefficients(times)
    if not bool((signal > 0).all()):
        raise ValueError(
            f"`times` must stay where the target has a weight; got {float(times.min()):g}. Begin later."
        )
    return signal, deviation / signal
