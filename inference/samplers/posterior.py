r"""Conditioning a learned law on an observation: by a classifier of noisy points, or by an operator.

If y is a function of the target and of independent noise then, with :math:`p(y | x_t)` its probability given
a point of the path,

.. math:: s_y(t, x) = s(t, x) + \nabla_x \log p(y | x_t = x)

is the score of the path that ends in the posterior. The base of a one-sided path does not change, and one
field determines the others, so that the flow and every diffusion of the posterior follow: this is exact.
Their velocity is :math:`b + (\alpha^2 \dot\beta / \beta - \alpha \dot\alpha)\, \nabla \log p(y | x_t)`, and
where the diffusivity is :func:`~inference.samplers.optimal_diffusivity` the drift changes by
:math:`2 \epsilon \nabla \log p(y | x_t)`, Doob's transform.

What has to be approximated is :math:`p(y | x_t) = E[p(y | x_1) | x_t]`. Given the point, the target has the
mean that the network predicts, and a covariance that each of these takes otherwise:

* :class:`NoSpread`: zero. Posterior samples are too narrow, and biased towards the data.
* :class:`MatchedSpread`: that of a standard normal target, :math:`\alpha^2 / (\alpha^2 + \beta^2)`.
* :class:`TweedieSpread`: :math:`(\alpha^2 / \beta) \nabla_x E[x_1 | x]`, its covariance indeed. Exact for
  Gaussian targets and linear operators; otherwise the law of the target given the point is taken to be
  normal.

References:
    Chung, Kim, Mccann, Klasky & Ye (2023), Diffusion posterior sampling for general noisy inverse problems,
    section 3. arXiv:2209.14687
    Song, Vahdat, Mardani & Kautz (2023), Pseudoinverse-guided diffusion models for inverse problems.
    openreview:9_gsMA8MRKQ
    Boys, Girolami, Pidstrigach, Reich, Mosca & Akyildiz (2024), Tweedie moment projected diffusions for
    inverse problems, section 3. arXiv:2310.06721
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from inference.interpolants.interpolant import Kind
from inference.interpolants.prediction import Prediction
from inference.interpolants.schedule import Schedule
from inference.samplers.interface import one_sided_schedule
from sde.equation import Coefficient

__all__ = [
    "MatchedSpread",
    "NoSpread",
    "Observation",
    "Spread",
    "TweedieSpread",
    "classified",
    "observed",
]


@dataclass(frozen=True, slots=True, eq=False)
class Observation:
    """A vector that was seen: the operator of a point, and normal noise.

    Attributes:
        operator: Maps points ``(n, d)`` to ``(n, q)``, row by row, differentiable.
        value: What was seen, shape ``(q,)``.
        covariance: Of the noise, positive definite, shape ``(q, q)``.

    Raises:
        ValueError: If shapes disagree or the covariance is not positive definite.

    Example:
        >>> seen = Observation(lambda x: x[:, :1], torch.ones(1), torch.eye(1))
        >>> seen.value.shape
        torch.Size([1])
    """

    operator: Callable[[Tensor], Tensor]
    value: Tensor
    covariance: Tensor

    def __post_init__(self) -> None:
        if self.value.dim() != 1 or self.covariance.shape != (len(self.value), len(self.value)):
            raise ValueError(
                f"`covariance` must have shape (q, q) for a `value` of shape (q,); got "
                f"{tuple(self.covariance.shape)} and {tuple(self.value.shape)}."
            )
        if bool(torch.linalg.cholesky_ex(self.covariance).info):
            raise ValueError("`covariance` must be positive definite; got one that is not.")


class Spread(Protocol):
    """What is taken for the covariance of the target given a point of the path."""

    def __call__(
        self, schedule: Schedule, target: Callable[[Tensor], Tensor], t: Tensor, x: Tensor, /
    ) -> Tensor:
        """Covariances at a time, 0-d or ``(n, 1)``, and points ``(n, d)``, shape ``(n, d, d)``."""
        ...


@dataclass(frozen=True, slots=True)
class NoSpread:
    """The target is where the network predicts it: no covariance.

    References:
        Chung, Kim, Mccann, Klasky & Ye (2023), equation 11. arXiv:2209.14687
    """

    def __call__(
        self, schedule: Schedule, target: Callable[[Tensor], Tensor], t: Tensor, x: Tensor
    ) -> Tensor:
        """Zeros, shape ``(n, d, d)``."""
        return x.new_zeros(len(x), x.shape[1], x.shape[1])


@dataclass(frozen=True, slots=True)
class MatchedSpread:
    """The covariance of a target that is normal with a variance.

    Attributes:
        variance: Of the target, positive.

    References:
        Song, Vahdat, Mardani & Kautz (2023), section 3.1. openreview:9_gsMA8MRKQ
    """

    variance: float = 1.0

    def __call__(
        self, schedule: Schedule, target: Callable[[Tensor], Tensor], t: Tensor, x: Tensor
    ) -> Tensor:
        """Multiples of the unit matrix, shape ``(n, d, d)``."""
        alpha, beta = (part.to(x).expand(len(x), 1) for part in schedule.coefficients(t))
        size = self.variance * alpha**2 / (alpha**2 + self.variance * beta**2)
        return size[..., None] * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)


@dataclass(frozen=True, slots=True)
class TweedieSpread:
    """The covariance of the target given the point, from the derivative of the network.

    It takes as many derivatives as there are dimensions. Between separate modes it is the spread of the
    modes, and a normal law of that width is a poor likelihood: on three modes the posterior samples can be
    farther off than those of :class:`MatchedSpread`.

    References:
        Boys, Girolami, Pidstrigach, Reich, Mosca & Akyildiz (2024), proposition 2.1. arXiv:2310.06721
    """

    def __call__(
        self, schedule: Schedule, target: Callable[[Tensor], Tensor], t: Tensor, x: Tensor
    ) -> Tensor:
        """Symmetric matrices, shape ``(n, d, d)``."""
        alpha, beta = (part.to(x).expand(len(x), 1) for part in schedule.coefficients(t))
        jacobian = _jacobian(target, x)
        return (alpha**2 / beta)[..., None] * 0.5 * (jacobian + jacobian.mT)


def classified(
    prediction: Prediction, gradient: Callable[[Tensor, Tensor], Tensor], weight: float = 1.0
) -> Prediction:
    r"""The prediction of the law given what a classifier of points of the path has seen.

    Args:
        prediction: Of a one-sided interpolant.
        gradient: :math:`\nabla_x \log p(y | x_t = x)`, of time and points ``(n, d)``, shape ``(n, d)``: that
            of a classifier, or exact.
        weight: Factor of the gradient. 1 is the posterior; larger ones are sharper, and no law's.

    Returns:
        A prediction of the same kinds, for any sampler.

    Raises:
        ValueError: If the interpolant is not one-sided.

    Example:
        >>> from inference.interpolants import OneSided
        >>> still = Prediction(OneSided(), {Kind.SCORE: lambda t, x: -x})
        >>> up = classified(still, lambda t, x: 1 + 0 * x, weight=2.0)
        >>> up.to(Kind.SCORE)(torch.tensor(0.5), torch.zeros(1, 1))
        tensor([[2.]])

    References:
        Dhariwal & Nichol (2021), Diffusion models beat GANs on image synthesis, section 4. arXiv:2105.05233
    """
    one_sided_schedule(prediction, "classified")
    path = prediction.interpolant
    one, none = (
        Prediction(path, {Kind.SCORE: lambda t, x, value=value: torch.full_like(x, value)})
        for value in (1, 0)
    )

    def shifted(kind: Kind) -> Coefficient:
        def field(t: Tensor, x: Tensor) -> Tensor:
            factor = one.to(kind)(t, x) - none.to(kind)(t, x)  # a kind is linear in the score
            return prediction.to(kind)(t, x) + weight * factor * gradient(t, x)

        return field

    return Prediction(path, {kind: shifted(kind) for kind in prediction.networks})


def observed(prediction: Prediction, observation: Observation, spread: Spread | None = None) -> Prediction:
    r"""The prediction of the posterior law given an observation of the target.

    .. math:: p(y | x_t = x) \approx N\bigl(y;\ A(\mu),\ A' V A'^T + R\bigr), \qquad \mu = E[x_1 | x_t = x]

    with the derivative of the operator :math:`A'` at :math:`\mu`; the covariance is held fixed in the
    gradient.

    Args:
        prediction: Of a one-sided interpolant, differentiable in the points.
        observation: What was seen.
        spread: The covariance V of the target given the point; ``None`` is :class:`TweedieSpread`.

    Returns:
        A prediction of the same kinds, for any sampler. Exact where target and operator are Gaussian and
        linear and the spread is Tweedie's; otherwise an approximation, whose bias no sampler removes.

    Raises:
        ValueError: If the interpolant is not one-sided.

    Example:
        >>> from inference.interpolants import OneSided
        >>> to_zero = Prediction(OneSided(), {Kind.TARGET: lambda t, x: t * x / ((1 - t) ** 2 + t**2)})
        >>> seen = Observation(lambda x: x, torch.ones(1), torch.eye(1))  # a standard normal target
        >>> observed(to_zero, seen).to(Kind.TARGET)(torch.tensor(0.5), torch.zeros(1, 1))
        tensor([[0.3333]])

    References:
        Boys, Girolami, Pidstrigach, Reich, Mosca & Akyildiz (2024), section 3. arXiv:2310.06721
    """
    spread = TweedieSpread() if spread is None else spread
    schedule, network = one_sided_schedule(prediction, "observed"), prediction.to(Kind.TARGET)

    def gradient(t: Tensor, x: Tensor) -> Tensor:
        margin = torch.finfo(x.dtype).eps ** (1 / 3)  # the end points are limits, as in Prediction
        t = t.clamp(margin, 1 - margin)
        with torch.enable_grad():
            points = x.detach().requires_grad_()
            mean = network(t, points)
            seen = observation.operator(mean)
        slope = _jacobian(observation.operator, mean.detach())
        covariance = spread(schedule, lambda y: network(t, y), t, x.detach())
        total = slope @ covariance @ slope.mT + observation.covariance.to(x)
        pull = torch.linalg.solve(total, (observation.value.to(x) - seen.detach())[..., None])[..., 0]
        return torch.autograd.grad((seen * pull).sum(), points)[0]

    return classified(prediction, gradient)


def _jacobian(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Derivatives of a function that acts row by row, shape ``(n, q, d)``."""
    columns = []
    for axis in torch.eye(x.shape[1], dtype=x.dtype, device=x.device):
        columns.append(torch.func.jvp(function, (x,), (axis.expand_as(x).contiguous(),))[1].detach())
    return torch.stack(columns, -1)
