r"""Leaving a point: the start of samplers of two-sided paths whose base point is known.

Near the start the score is that of a Wiener process from the point and grows like the inverse of the time. A
diffusivity smaller than the path's own then leaves the law of the first instants to chance: a multiple of
:math:`t^{1 - \epsilon/\epsilon_0}` may be added to the variance and solves the same equation. So a sampler
starts a little later, from the law of the path itself, and lengthens its steps geometrically.

References:
    Chen, Goldstein, Hua, Albergo, Boffi & Vanden-Eijnden (2024), Probabilistic forecasting with stochastic
    interpolants and Foellmer processes, sections 2 and 3. arXiv:2403.13724
"""

from torch import Tensor

from inference.interpolants.interpolant import Kind
from inference.interpolants.prediction import Prediction
from sde.noise import NoiseStream, Purpose

__all__ = ["leave_point"]


def leave_point(prediction: Prediction, start: Tensor, time: Tensor, noise: NoiseStream) -> Tensor:
    r"""Points of a path a short time after it left known ones.

    .. math:: x_h = \alpha(h)\, x_0 + \beta(h)\, E[x_1 | x_0] + \gamma(h)\, z

    which lacks the spread of the target, of order :math:`\beta(h)`.

    Args:
        prediction: From :meth:`Prediction.from_start`.
        start: The points, shape ``(n, *shape)``.
        time: ``h``, 0-d, small; the first of the sampler's times.
        noise: One sample for each point.

    Returns:
        Points at that time, shape ``(n, *shape)``.

    Example:
        >>> import torch
        >>> from inference.interpolants import TwoSided
        >>> start = torch.zeros(4, 2)
        >>> still = Prediction.from_start(TwoSided(), start, Kind.TARGET, lambda t, x: 0 * x)
        >>> leave_point(still, start, torch.tensor(1e-4), NoiseStream(0, 0, 4)).shape
        torch.Size([4, 2])
    """
    path, time = prediction.interpolant, time.to(start)
    target = prediction.to(Kind.TARGET)(time, start)
    latent = noise.normals(
        start[0].numel(), purpose=Purpose.INITIAL_STATE, dtype=start.dtype, device=start.device
    )
    return path.point(time, start, target, latent.view_as(start))
