r"""Flow maps: networks that jump along the flow, from any time to any other, in one evaluation.

The map :math:`X_{s,t}` carries a point of the flow of a velocity b at time s to time t. With the form

.. math:: X_{s,t}(x) = x + (t - s)\, v_{s,t}(x), \qquad v_{t,t}(x) = b(t, x),

each of these holds for the true map only, and is an objective that vanishes there:

* :class:`Lagrangian`: :math:`\partial_t X_{s,t}(x) = b(t, X_{s,t}(x))`,
* :class:`Eulerian`: :math:`\partial_s X_{s,t}(x) + \nabla X_{s,t}(x)\, b(s, x) = 0`,
* :class:`Semigroup`: :math:`X_{u,t} \circ X_{s,u} = X_{s,t}`, with :math:`v_{t,t} = b`,
* :class:`MeanFlow`: :math:`v_{s,t} = b + (t - s)(\partial_s + b \cdot \nabla)\, v_{s,t}`, the Eulerian
  equation with a right-hand side that is held fixed; it is linear in b outside of it, so that the velocity of
  the path of a sample may stand for b and nothing has to be known before.

References:
    Boffi, Albergo & Vanden-Eijnden (2025), Flow map matching with stochastic interpolants, sections 3 and 4.
    arXiv:2406.07507
    Geng, Deng, Bai, Kolter & He (2025), Mean flows for one-step generative modeling, section 4.
    arXiv:2505.13447
    Lai, Song, Kim, Mitsufuji & Ermon (2025), The principles of diffusion models. arXiv:2510.21890
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from inference.interpolants.couplings import Pairs
from inference.interpolants.interpolant import Interpolant, OneSided
from inference.interpolants.prediction import Prediction
from inference.samplers.interface import check_times
from sde.equation import Coefficient
from sde.networks import perceptron
from sde.noise import NoiseStream, Purpose

__all__ = [
    "Eulerian",
    "FlowMap",
    "FlowMapLoss",
    "FlowMapNetwork",
    "FlowMapObjective",
    "FlowMapSampler",
    "Lagrangian",
    "MeanFlow",
    "Semigroup",
]

FlowMap = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Times s and t, each ``(n, 1)`` or 0-d, and points ``(n, d)`` at s to points ``(n, d)`` at t."""


class FlowMapNetwork(nn.Module):
    r"""A flow map :math:`x + (t - s)\, v_{s,t}(x)` with a dense network v.

    The features of the times are s, t - s, and cosine and sine of the first two multiples of pi of s and of
    t.

    Args:
        dim: Dimension of the points, at least 1.
        width: Width of the hidden layers, at least 1.
        depth: Number of hidden layers, at least 1.
        seed: Seed of the initial weights.
        dtype: Floating dtype.

    Example:
        >>> network, x = FlowMapNetwork(2, seed=0), torch.zeros(5, 2)
        >>> network(torch.tensor(0.3), torch.tensor(0.3), x).abs().max().item()
        0.0
    """

    frequencies: Tensor

    def __init__(
        self,
        dim: int,
        *,
        width: int = 128,
        depth: int = 3,
        seed: int,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Draw the initial weights."""
        super().__init__()
        frequencies = math.pi * torch.arange(1, 3, dtype=dtype)
        self.register_buffer("frequencies", frequencies, persistent=False)
        sizes = (dim + 2 + 4 * len(frequencies), *[width] * depth, dim)
        self.layers = perceptron(sizes, seed=seed, dtype=dtype)

    def forward(self, s: Tensor, t: Tensor, x: Tensor) -> Tensor:
        """Points ``(n, d)`` carried from times s to times t."""
        return x + (t - s) * self.mean_velocity(s, t, x)

    def mean_velocity(self, s: Tensor, t: Tensor, x: Tensor) -> Tensor:
        """The mean velocity on the way from s to t, ``(n, d)``; with ``s = t`` the velocity itself."""
        s, t = s.expand(len(x), 1), t.expand(len(x), 1)
        first, second = s * self.frequencies, t * self.frequencies
        waves = (first.cos(), first.sin(), second.cos(), second.sin())
        return self.layers(torch.cat((x, s, t - s, *waves), 1))


class FlowMapObjective(Protocol):
    """A loss that vanishes for the true map of a velocity."""

    def __call__(
        self, network: FlowMapNetwork, velocity: Coefficient, s: Tensor, t: Tensor, x: Tensor, /
    ) -> Tensor:
        """The loss at times s < t, each ``(n, 1)``, and points ``(n, d)`` at s, shape ``(n,)``."""
        ...


@dataclass(frozen=True, slots=True)
class Lagrangian:
    r""":math:`|\partial_t X_{s,t}(x) - b(t, X_{s,t}(x))|^2`: the map follows a known velocity.

    Example:
        >>> class Shift(nn.Module):
        ...     def forward(self, s, t, x):
        ...         return x + 3 * (t - s)
        >>> one = torch.ones(2, 1)
        >>> Lagrangian()(Shift(), lambda t, x: 3 + 0 * x, 0.2 * one, 0.8 * one, one)
        tensor([0., 0.])

    References:
        Boffi, Albergo & Vanden-Eijnden (2025), proposition 3.2. arXiv:2406.07507
    """

    def __call__(
        self, network: FlowMapNetwork, velocity: Coefficient, s: Tensor, t: Tensor, x: Tensor
    ) -> Tensor:
        """The loss of each sample."""
        end, rate = torch.func.jvp(lambda at: network(s, at, x), (t,), (torch.ones_like(t),))[:2]
        return (rate - velocity(t, end)).square().sum(1)


@dataclass(frozen=True, slots=True)
class Eulerian:
    r""":math:`|\partial_s X_{s,t}(x) + \nabla X_{s,t}(x)\, b(s, x)|^2`: the end does not change on the way.

    References:
        Boffi, Albergo & Vanden-Eijnden (2025), proposition 3.4. arXiv:2406.07507
    """

    def __call__(
        self, network: FlowMapNetwork, velocity: Coefficient, s: Tensor, t: Tensor, x: Tensor
    ) -> Tensor:
        """The loss of each sample."""
        tangents = torch.ones_like(s), velocity(s, x).detach()
        _, change = torch.func.jvp(lambda at, point: network(at, t, point), (s, x), tangents)[:2]
        return change.square().sum(1)


@dataclass(frozen=True, slots=True)
class Semigroup:
    r"""One jump against two, and the velocity of the shortest jumps.

    .. math:: \frac{|X_{s,t}(x) - X_{u,t}(X_{s,u}(x))|^2}{(t - s)^2} + |v_{s,s}(x) - b(s, x)|^2,
              \qquad u = \tfrac{s + t}2

    with the two jumps held fixed: they teach the one.

    References:
        Boffi, Albergo & Vanden-Eijnden (2025), section 3.3. arXiv:2406.07507
    """

    def __call__(
        self, network: FlowMapNetwork, velocity: Coefficient, s: Tensor, t: Tensor, x: Tensor
    ) -> Tensor:
        """The loss of each sample."""
        middle = 0.5 * (s + t)
        with torch.no_grad():
            ahead = network(middle, t, network(s, middle, x))
        jump = ((network(s, t, x) - ahead) / (t - s)).square().sum(1)
        return jump + (network.mean_velocity(s, s, x) - velocity(s, x)).square().sum(1)


@dataclass(frozen=True, slots=True)
class MeanFlow:
    r""":math:`|v_{s,t} - [b + (t - s)(\partial_s + b \cdot \nabla)\, v_{s,t}]|^2`, the bracket held fixed.

    The only one of these that may be given the velocity of the path of each sample instead of its mean.

    References:
        Geng, Deng, Bai, Kolter & He (2025), equations 9 to 11. arXiv:2505.13447
    """

    def __call__(
        self, network: FlowMapNetwork, velocity: Coefficient, s: Tensor, t: Tensor, x: Tensor
    ) -> Tensor:
        """The loss of each sample."""
        rate = velocity(s, x).detach()
        value, change = torch.func.jvp(
            lambda at, point: network.mean_velocity(at, t, point), (s, x), (torch.ones_like(s), rate)
        )[:2]
        return (value - (rate + (t - s) * change).detach()).square().sum(1)


@dataclass(frozen=True, slots=True)
class FlowMapLoss:
    """The loss of a flow map over addressed mini-batches, for :func:`inference.fit`.

    Sample ``i`` of iteration ``k`` is sample ``k * batch + i`` of the seed. Points lie on the interpolant at
    the earlier of two uniform times, which for a share of the samples are the same.

    Attributes:
        objective: What is minimised.
        interpolant: The path whose flow is learned.
        pairs: Source of base and target points. Of a one-sided path the base must be standard normal.
        batch: Samples of an iteration, at least 1.
        seed: Seed of everything random.
        velocity: What the map is distilled from; ``None`` trains without, by :class:`MeanFlow` on the
            velocity of each path.
        instant: Share of the samples with equal times, in [0, 1]; :class:`MeanFlow` without a velocity needs
            some.

    Raises:
        ValueError: If a size is out of range, or another objective has no velocity.

    Example:
        >>> from inference.interpolants import TwoSided, independent
        >>> from inference.reference_problems import Mixture
        >>> law = Mixture.standard(2)
        >>> pairs = independent(law.sample, law.sample)
        >>> loss = FlowMapLoss(MeanFlow(), TwoSided(), pairs, batch=8, seed=0)
        >>> loss(FlowMapNetwork(2, seed=0, dtype=torch.float64), 0).shape
        torch.Size([])
    """

    objective: FlowMapObjective
    interpolant: Interpolant
    pairs: Pairs
    batch: int
    seed: int
    velocity: Coefficient | None = None
    instant: float = 0.25

    def __post_init__(self) -> None:
        if self.batch < 1 or not 0 <= self.instant <= 1:
            raise ValueError(
                f"`batch` must be at least 1 and `instant` in [0, 1]; got {self.batch} and {self.instant}."
            )
        if self.velocity is None and not isinstance(self.objective, MeanFlow):
            raise ValueError(
                f"`velocity` must be given for {type(self.objective).__name__}; got None. Use MeanFlow()."
            )

    def __call__(self, network: nn.Module, iteration: int) -> Tensor:
        """The mean loss of an iteration, 0-d."""
        noise = NoiseStream(self.seed, iteration * self.batch, (iteration + 1) * self.batch)
        return self.losses(cast(FlowMapNetwork, network), noise).mean()

    def losses(self, network: FlowMapNetwork, noise: NoiseStream) -> Tensor:
        """The losses of the samples of a stream, shape ``(n,)``."""
        base, target = self.pairs(noise)
        like = {"purpose": Purpose.TRAINING, "dtype": base.dtype, "device": base.device}
        latent = noise.fork("latent").normals(base[0].numel(), **like)
        latent = base if isinstance(self.interpolant, OneSided) else latent
        draws = noise.fork("times").uniforms(3, **like)
        s, t = draws[:, :2].sort(1).values.split(1, 1)
        margin = torch.finfo(base.dtype).eps ** 0.5
        s = s.clamp(margin, 1 - 2 * margin)
        t = torch.maximum(t, s + margin)
        if isinstance(self.objective, MeanFlow):
            t = torch.where(draws[:, 2:] < self.instant, s, t)
        x = self.interpolant.point(s, base, target, latent)
        if self.velocity is not None:
            return self.objective(network, self.velocity, s, t, x)
        rate = self.interpolant.velocity(s, base, target, latent)
        return self.objective(network, lambda at, points: rate, s, t, x)


@dataclass(frozen=True, slots=True, eq=False)
class FlowMapSampler:
    """Sampling by jumps of a flow map between consecutive times: one time step is one evaluation.

    Attributes:
        flow_map: The map; it is what is followed, and the prediction is not read.

    Example:
        >>> from inference.interpolants import Kind
        >>> path = Prediction(OneSided(), {Kind.VELOCITY: lambda t, x: 3 + 0 * x})
        >>> jumps, noise = FlowMapSampler(lambda s, t, x: x + 3 * (t - s)), NoiseStream(0, 0, 1)
        >>> jumps(path, torch.zeros(1, 2), torch.tensor([0.0, 1.0]), noise)
        tensor([[3., 3.]])
    """

    flow_map: FlowMap

    def __call__(self, prediction: Prediction, initial: Tensor, times: Tensor, noise: NoiseStream) -> Tensor:
        """Points at ``times[-1]`` from those at ``times[0]``; arguments as :class:`Sampler`."""
        check_times(times)
        x = initial
        for s, t in pairwise(times.to(initial).unbind()):
            x = self.flow_map(s, t, x)
        return x
