"""The loss of a field over addressed mini-batches, for :func:`inference.fit`."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from inference.interpolants.couplings import Pairs
from inference.interpolants.interpolant import Interpolant, Kind, OneSided
from inference.interpolants.losses import matching_loss
from inference.interpolants.times import TimeLaw, UniformTimes
from inference.processes import Share
from sde.noise import NoiseStream, Purpose

__all__ = ["Matching"]


@dataclass(frozen=True, slots=True)
class Matching:
    """A loss that :func:`inference.fit` minimises: of the model and of the iteration.

    Sample ``i`` of iteration ``k`` is sample ``k * batch + i`` of the seed: pairs, latent variables and times
    are functions of it.

    Attributes:
        interpolant: The path.
        kind: What the network predicts.
        pairs: Source of base and target points. Of a one-sided path the base must be standard normal. What is
            known of each target besides is given to the network after time and point.
        batch: Samples of an iteration, at least 1.
        seed: Seed of everything random.
        antithetic: Evaluate the network at both points of a pair of latent variables.
        given_base: Call the network with the base point as third argument: the pairs are then kept.
        share: Part of the samples that is computed here, where several processes share a training.
        times: Law of the times; values are divided by its density.
        weight: A positive function of times ``(n, 1)`` that multiplies the integrand; the minimiser stays
            what it is.

    Raises:
        ValueError: If the batch is empty or no multiple of the processes.

    Example:
        >>> from inference.interpolants import TwoSided, independent
        >>> from inference.reference_problems import Mixture
        >>> law = Mixture.standard(2)
        >>> loss = Matching(TwoSided(), Kind.VELOCITY, independent(law.sample, law.sample), batch=8, seed=0)
        >>> loss(lambda t, x: 0 * x, 0).abs().item()
        0.0
    """

    interpolant: Interpolant
    kind: Kind
    pairs: Pairs
    batch: int
    seed: int
    antithetic: bool = True
    given_base: bool = False
    share: Share = field(default_factory=Share)
    times: TimeLaw = field(default_factory=UniformTimes)
    weight: Callable[[Tensor], Tensor] = torch.ones_like

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ValueError(f"`batch` must be at least 1; got {self.batch}.")
        self.share.of(self.batch)  # refuses what it cannot divide

    def __call__(self, model: Callable[..., Tensor], iteration: int) -> Tensor:
        """The mean loss of an iteration, or of this process's share of it, 0-d."""
        noise = NoiseStream(self.seed, iteration * self.batch, (iteration + 1) * self.batch)
        return self.losses(model, noise[self.share.of(self.batch)]).mean()

    def losses(self, model: Callable[..., Tensor], noise: NoiseStream) -> Tensor:
        """The losses of the samples of a stream, shape ``(n,)``: for an estimate with a standard error."""
        base, target, *known = self.pairs(noise)
        seen = (base, *known) if self.given_base else known
        like = {"purpose": Purpose.TRAINING, "dtype": base.dtype, "device": base.device}
        latent = noise.fork("latent").normals(base[0].numel(), **like)
        t = self.times.times(noise.fork("time").uniforms(1, **like))
        losses = matching_loss(
            lambda s, x: model(s, x, *seen),
            self.kind,
            self.interpolant,
            t,
            base=base,
            target=target,
            latent=base if isinstance(self.interpolant, OneSided) else latent,
            antithetic=self.antithetic,
        )
        return losses * (self.weight(t) / self.times.density(t))[:, 0]
