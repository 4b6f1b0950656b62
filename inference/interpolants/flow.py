r"""Samplers by conditional flow matching: the base is carried to the data along a learned velocity.

.. math:: \dot x_t = v_\theta(x_t, t, c), \qquad x_0 \sim N(0, I), \qquad x_1 \approx \text{data}

References:
    Lipman, Chen, Ben-Hamu, Nickel & Le (2023), Flow matching for generative modeling. arXiv:2210.02747
    Albergo, Boffi & Vanden-Eijnden (2023), Stochastic interpolants. arXiv:2303.08797
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from inference.interpolants.draws import Draws
from inference.interpolants.interpolant import Kind, OneSided
from inference.interpolants.losses import matching_loss
from inference.processes import OneProcess, Processes
from inference.training import FitSettings, fit
from inference.training_log import History
from sde.checkpoint import digest
from sde.networks import evaluate_in_blocks, perceptron
from sde.noise import NoiseStream, Purpose
from sde.samples import check_conditions, check_samples, deviations

__all__ = ["FlowSampler", "FlowSettings", "VelocityNetwork", "train_flow"]

_ALONE = OneProcess()


@dataclass(frozen=True, slots=True)
class FlowSettings:
    """How a flow is built and trained.

    Attributes:
        batch: Samples per step, at least 1.
        width: Width of the hidden layers, at least 1.
        depth: Number of hidden layers, at least 1.
        steps: Midpoint steps of the sampler, at least 1.
        fit: The optimisation.
    """

    batch: int = 256
    width: int = 128
    depth: int = 3
    steps: int = 40
    fit: FitSettings = field(default_factory=FitSettings)

    def __post_init__(self) -> None:
        """Refuse sizes below 1."""
        for name in ("batch", "width", "depth", "steps"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"`{name}` must be a whole number of at least 1; got {value!r}.")


class VelocityNetwork(nn.Module):
    """A dense network of the point, the conditions and features of the time.

    The features are ``t`` and ``cos``, ``sin`` of its first four multiples of pi, and where frequencies are
    given the ``cos`` and ``sin`` of each coordinate at each of them. Targets with sharp edges in few
    dimensions want these: a dense network of the bare coordinates learns fine detail last.

    Args:
        dim: Dimension of the points, at least 1.
        condition_dim: Number of conditions, at least 0.
        width: Width of the hidden layers, at least 1.
        depth: Number of hidden layers, at least 1.
        point_frequencies: Angular frequencies of features of the coordinates, per unit of the points.
        seed: Seed of the initial weights.
        dtype: Floating dtype.
        device: Where the weights live.

    Example:
        >>> network = VelocityNetwork(2, seed=0)
        >>> network(torch.zeros(5, 2), torch.zeros(5, 1), torch.zeros(5, 0)).shape
        torch.Size([5, 2])

    References:
        Tancik et al. (2020), Fourier features let networks learn high frequency functions in low dimensional
        domains, section 5. arXiv:2006.10739
    """

    frequencies: Tensor
    point_frequencies: Tensor

    def __init__(
        self,
        dim: int,
        condition_dim: int = 0,
        *,
        width: int = 128,
        depth: int = 3,
        point_frequencies: Sequence[float] = (),
        seed: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        """Draw the initial weights."""
        super().__init__()
        frequencies = math.pi * torch.arange(1, 5, dtype=dtype, device=device)
        self.register_buffer("frequencies", frequencies, persistent=False)
        scales = torch.tensor(list(point_frequencies), dtype=dtype, device=device)
        self.register_buffer("point_frequencies", scales, persistent=False)
        inputs = dim * (1 + 2 * len(scales)) + condition_dim + 1 + 2 * len(frequencies)
        sizes = (inputs, *[width] * depth, dim)
        self.layers = perceptron(sizes, seed=seed, dtype=dtype, device=device)

    def forward(self, points: Tensor, t: Tensor, conditions: Tensor) -> Tensor:
        """Velocities ``(n, d)`` at points ``(n, d)``, times ``(n, 1)`` and conditions ``(n, c)``."""
        angles = t * self.frequencies
        features = [points, conditions, t, angles.cos(), angles.sin()]
        if len(self.point_frequencies):
            waves = (points[:, :, None] * self.point_frequencies).flatten(1)
            features += [waves.cos(), waves.sin()]
        return self.layers(torch.cat(features, 1))


class FlowSampler(nn.Module):
    """A random vector or field sampled by integrating a velocity with midpoint steps.

    It satisfies the protocol of models: a deterministic map of conditions and latent codes, whose row for a
    sample is the same bits in every batch on one machine.

    Args:
        velocity: Maps points, times and conditions to velocities, in standardised units.
        mean: Mean of the data, shape ``(q,)``.
        scale: Unit of each component, shape ``(q,)``.
        condition_mean: Mean of the conditions, shape ``(c,)``.
        condition_scale: Unit of each condition, shape ``(c,)``.
        output_shape: Shape of one sample, of size ``q``.
        steps: Number of midpoint steps, at least 1; two evaluations of the velocity each.

    Example:
        >>> still = lambda points, t, conditions: torch.zeros_like(points)
        >>> one, none = torch.ones(3), torch.ones(0)
        >>> sampler = FlowSampler(still, 5 * one, 0 * one, none, none, output_shape=(3,))
        >>> sampler(torch.zeros(1, 0), NoiseStream(seed=0, start=0, stop=1))
        tensor([[5., 5., 5.]])
    """

    mean: Tensor
    scale: Tensor
    condition_mean: Tensor
    condition_scale: Tensor

    def __init__(
        self,
        velocity: Callable[[Tensor, Tensor, Tensor], Tensor],
        mean: Tensor,
        scale: Tensor,
        condition_mean: Tensor,
        condition_scale: Tensor,
        *,
        output_shape: tuple[int, ...],
        steps: int = 40,
    ) -> None:
        """Keep the velocity and the units."""
        super().__init__()
        if steps < 1:
            raise ValueError(f"`steps` must be at least 1; got {steps}.")
        if mean.numel() != math.prod(output_shape):
            raise ValueError(
                f"`output_shape` must have the {mean.numel()} components of `mean`; got {output_shape}."
            )
        self.velocity, self.steps, self.output_shape = velocity, steps, tuple(output_shape)
        for name, value in (
            ("mean", mean),
            ("scale", scale),
            ("condition_mean", condition_mean),
            ("condition_scale", condition_scale),
        ):
            self.register_buffer(name, value.detach().clone())

    @property
    def input_dim(self) -> int:
        """Number of conditions."""
        return len(self.condition_mean)

    @property
    def latent_dim(self) -> int:
        """Dimension of the base."""
        return len(self.mean)

    def transform(self, latent: Tensor, conditions: Tensor) -> Tensor:
        """The map of latent codes ``(n, q)`` and conditions ``(n, c)`` to flat samples ``(n, q)``."""
        known = (conditions - self.condition_mean) / self.condition_scale
        points, dt = latent, 1 / self.steps
        for step in range(self.steps):
            t = latent.new_full((len(latent), 1), step * dt)
            middle = points + 0.5 * dt * self.velocity(points, t, known)
            points = points + dt * self.velocity(middle, t + 0.5 * dt, known)
        return self.mean + self.scale * points

    def forward(self, inputs: Tensor, noise: NoiseStream) -> Tensor:
        """Generate: conditions ``(n, c)`` to samples ``(n, *output_shape)``, by the noise's latent codes."""
        check_conditions(inputs, noise, self.input_dim)
        mean = self.mean
        latent = noise.normals(self.latent_dim, purpose=Purpose.LATENT, dtype=mean.dtype, device=mean.device)
        return evaluate_in_blocks(self.transform, noise, latent, inputs.to(mean)).unflatten(
            1, self.output_shape
        )


def train_flow(
    data: Tensor,
    *,
    conditions: Tensor | None = None,
    seed: int,
    settings: FlowSettings | None = None,
    interpolant: OneSided | None = None,
    checkpoint: str | Path | None = None,
    processes: Processes = _ALONE,
    progress: bool = True,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> tuple[FlowSampler, History]:
    """Train a sampler of a random vector or field by conditional flow matching.

    Each component is standardised; base and data are paired independently. Mini-batches, base points and
    times are addressed by the iteration: training is a function of data, seed and settings, and resumes bit
    for bit.

    Args:
        data: Samples, shape ``(n, *output_shape)``, n at least 2.
        conditions: Known inputs of each sample, shape ``(n, c)``; ``None`` trains an unconditional sampler.
        seed: Seed of everything random.
        settings: Network sizes, sampler steps and optimisation.
        interpolant: Paths from base to data; ``None`` is the straight line.
        checkpoint: File that holds the state of the training; where it exists and is of this training,
            training goes on from it, and a finished one returns at once.
        processes: Those that share the batches, as for :func:`inference.training.fit`; ``device`` is theirs.
        progress: Show a bar.
        dtype: Dtype of the network.
        device: Where to train.

    Returns:
        The sampler (moving average of the weights, frozen) and the history: lists ``iteration``, ``loss`` and
        ``seconds``.

    Raises:
        ValueError: If data or conditions are unfit, or the checkpoint is unreadable or another training's.
        TypeError: If data or conditions are not floating-point tensors.
        RuntimeError: If the loss stops being finite.

    Example:
        >>> rows = NoiseStream(seed=0, start=0, stop=64).normals(2)
        >>> settings = FlowSettings(batch=16, fit=FitSettings(iterations=2))
        >>> sampler, history = train_flow(rows, seed=0, settings=settings, progress=False)
        >>> sampler(torch.zeros(5, 0), NoiseStream(seed=1, start=0, stop=5)).shape
        torch.Size([5, 2])

    References:
        Lipman et al. (2023), Flow matching for generative modeling. arXiv:2210.02747
    """
    settings = FlowSettings() if settings is None else settings
    interpolant = OneSided() if interpolant is None else interpolant
    matrix, known = check_samples(data, conditions)
    columns = (matrix.mean(0), deviations(matrix), known.mean(0), deviations(known))
    units = [part.to(device=device, dtype=dtype) for part in columns]
    target = (matrix.to(units[0]) - units[0]) / units[1]
    given = (known.to(units[0]) - units[2]) / units[3]
    draw = Draws(seed, settings.batch, target.shape, dtype, torch.device(device))
    share = processes.share.of(settings.batch)

    def loss(velocity: nn.Module, iteration: int) -> Tensor:
        rows, base, t = (part[share] for part in draw(iteration))
        return matching_loss(
            lambda t, points: velocity(points, t, given[rows]),
            Kind.VELOCITY,
            interpolant,
            t,
            base=base,
            target=target[rows],
            latent=base,
            antithetic=False,
        ).mean()

    network = VelocityNetwork(
        target.shape[1],
        given.shape[1],
        width=settings.width,
        depth=settings.depth,
        seed=NoiseStream(seed, 0, 1).fork("velocity").seed,
        dtype=dtype,
        device=device,
    )
    identity = {name: value for name, value in asdict(settings).items() if name not in ("fit", "steps")}
    identity |= {"seed": seed, "data": digest(data, conditions), "dtype": str(dtype)}
    identity |= {"schedule": repr(interpolant.schedule)}
    velocity, history = fit(
        network,
        loss,
        settings=settings.fit,
        identity=identity,
        checkpoint=checkpoint,
        processes=processes,
        progress=progress,
        label="flow matching",
    )
    return FlowSampler(
        velocity, *units, output_shape=tuple(data.shape[1:]), steps=settings.steps
    ).eval(), history
