r"""Rectified flows: paths made straight by pairing each base point with where the flow carries it.

The flow of independent pairs is not straight, so that a step of Euler's method from the base carries every
point to the mean of the target. Learning again from the pairs of points and their images
(:func:`reflow`, :class:`inference.interpolants.Matching`) keeps the laws at the ends and straightens the
paths; where the flow is straight one step is exact.

References:
    Liu, Gong & Liu (2023), Flow straight and fast, sections 2 and 3. arXiv:2209.03003
"""

from torch import Tensor

from inference.interpolants.couplings import Pairs, paired
from inference.interpolants.interpolant import Kind
from inference.interpolants.prediction import Prediction
from inference.samplers.flows import ProbabilityFlow, flow_equation
from inference.samplers.interface import check_times
from sde.noise import NoiseStream
from sde.solve import solve
from sde.solvers import Heun

__all__ = ["reflow", "straightness"]

_HEUN = Heun()


def reflow(
    prediction: Prediction, start: Tensor, times: Tensor, sampler: ProbabilityFlow | None = None
) -> Pairs:
    """A source of pairs of base points and their images under the flow.

    Args:
        prediction: What is known of the interpolant.
        start: Base points, shape ``(n, d)``.
        times: From 0 to 1, increasing, shape ``(T,)``.
        sampler: How the flow is followed; ``None`` is Heun's method.

    Returns:
        Pairs to learn from again, drawn among these with replacement.

    Raises:
        ValueError: If the times are no grid.

    Example:
        >>> import torch
        >>> from inference.interpolants import OneSided
        >>> shift = Prediction(OneSided(), {Kind.VELOCITY: lambda t, x: 3 + 0 * x})
        >>> base, target = reflow(shift, torch.zeros(5, 1), torch.linspace(0, 1, 3))(NoiseStream(0, 0, 2))
        >>> target - base
        tensor([[3.],
                [3.]])
    """
    sampler = ProbabilityFlow() if sampler is None else sampler
    return paired(start, sampler(prediction, start, times, NoiseStream(0, 0, len(start))))


def straightness(prediction: Prediction, start: Tensor, times: Tensor) -> Tensor:
    r"""Mean squared distance of the velocity along a flow from that of the straight line between its ends.

    .. math:: S = \int_0^1 E\, |(Z_1 - Z_0) - b(t, Z_t)|^2\, \mathrm dt

    by the trapezoidal rule; zero where one Euler step is exact.

    Args:
        prediction: What is known of the interpolant.
        start: Base points, shape ``(n, d)``.
        times: From 0 to 1, increasing, shape ``(T,)``.

    Returns:
        The straightness, 0-d.

    Raises:
        ValueError: If the times are no grid, or decrease.

    Example:
        >>> import torch
        >>> from inference.interpolants import OneSided
        >>> turn = Prediction(OneSided(), {Kind.VELOCITY: lambda t, x: 2 * t + 0 * x})
        >>> round(straightness(turn, torch.zeros(1, 1), torch.linspace(0, 1, 101)).item(), 3)
        0.333
    """
    if not check_times(times):
        raise ValueError("`times` must increase; got decreasing times.")
    times = times.to(start)
    path = solve(flow_equation(prediction), start, times, None, solver=_HEUN)
    chord, velocity = path[:, -1] - path[:, 0], prediction.to(Kind.VELOCITY)
    gaps = [
        (chord - velocity(t, points)).flatten(1).square().sum(1).mean()
        for t, points in zip(times.unbind(), path.unbind(1), strict=True)
    ]
    halves = [0.5 * dt * (gaps[k] + gaps[k + 1]) for k, dt in enumerate(times.diff().unbind())]
    return sum(halves, start.new_zeros(()))
