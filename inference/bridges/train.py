r"""The Schroedinger bridge between two sets of samples, by the entropic coupling and two regressions.

The ends of the bridge are coupled by the entropic plan of cost :math:`|x_0 - x_1|^2` and regularisation
:math:`4 \epsilon`, and between them it is a Brownian bridge: an interpolant
:math:`(1 - t)\, x_0 + t\, x_1 + \sqrt{2 \epsilon t (1 - t)}\, z` whose velocity and score are learned without
simulation. Their combination :math:`b + \epsilon s` is the drift of the bridge and :math:`b - \epsilon s`
that of the process run backward, so that any two samples will do: those of two stochastic equations as well.

The plan is that of finite batches, whose bias falls with their size.

References:
    Tong, Malkin, Fatras, Atanackovic, Zhang, Huguet, Wolf & Bengio (2024), Simulation-free Schroedinger
    bridges via score and flow matching, section 3. arXiv:2307.03672
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from inference.interpolants.amplitude import BrownianBridge
from inference.interpolants.couplings import Coupling, Entropic, paired
from inference.interpolants.field_network import FieldNetwork
from inference.interpolants.interpolant import Kind, TwoSided
from inference.interpolants.matching import Matching
from inference.interpolants.prediction import Prediction
from inference.training import FitSettings, fit
from sde.checkpoint import digest
from sde.equation import Coefficient
from sde.noise import NoiseStream, Purpose
from sde.samples import check_samples

__all__ = ["BridgeSettings", "coupled_samples", "train_bridge"]

History = dict[str, list[float]]


@dataclass(frozen=True, slots=True)
class BridgeSettings:
    """How a bridge is trained.

    Attributes:
        batch: Samples of an iteration, at least 1.
        width: Width of the hidden layers of both networks, at least 1.
        depth: Number of hidden layers, at least 1.
        coupled: Samples that are coupled at once, at least 1; the larger, the less biased.
        rounds: Sinkhorn iterations, at least 1.
        fit: The optimisation.
    """

    batch: int = 256
    width: int = 64
    depth: int = 2
    coupled: int = 1024
    rounds: int = 100
    fit: FitSettings = field(default_factory=FitSettings)

    def __post_init__(self) -> None:
        """Refuse sizes below 1."""
        for name in ("batch", "width", "depth", "coupled", "rounds"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"`{name}` must be a whole number of at least 1; got {value!r}.")


def coupled_samples(
    base: Tensor, target: Tensor, coupling: Coupling, *, size: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Rows of two data sets paired by a coupling of random parts of them.

    Args:
        base: Shape ``(n, d)``.
        target: Shape ``(m, d)``.
        coupling: Pairs the rows of a part.
        size: Rows of a part; the remainder of the shorter set is a part of its own.
        seed: Seed of the parts and of the coupling.

    Returns:
        Base points and the target points that go with them, each ``(min(n, m), d)``.

    Raises:
        ValueError: If the size is below 1.

    Example:
        >>> from inference.interpolants import OptimalTransport
        >>> column = torch.arange(4.0)[:, None]
        >>> first, second = coupled_samples(column, column + 9, OptimalTransport(), size=4, seed=0)
        >>> (second - first).flatten()
        tensor([9., 9., 9., 9.])
    """
    if size < 1:
        raise ValueError(f"`size` must be at least 1; got {size}.")
    noise = NoiseStream(seed, 0, min(len(base), len(target)))
    base, target = (_shuffled(part, seed, name) for part, name in ((base, "base"), (target, "target")))
    firsts, seconds = [], []
    for start in range(0, len(noise), size):
        part = noise[start : min(start + size, len(noise))]
        here, there = base[start : start + len(part)], target[start : start + len(part)]
        firsts.append(here)
        seconds.append(there[coupling(here, there, part)])
    return torch.cat(firsts), torch.cat(seconds)


def train_bridge(
    base: Tensor,
    target: Tensor,
    *,
    eps: float,
    seed: int,
    settings: BridgeSettings | None = None,
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> tuple[Prediction, History]:
    r"""Learn the Schroedinger bridge between two laws that are known by samples.

    Args:
        base: Samples at time 0, shape ``(n, d)``.
        target: Samples at time 1, shape ``(m, d)``.
        eps: Diffusivity of the reference :math:`\sqrt{2 \epsilon}\, W`, positive, in squared units of the
            samples.
        seed: Seed of everything random.
        settings: Sizes and optimisation.
        checkpoint: File that holds the state of the training.
        progress: Show a bar.

    Returns:
        Velocity and score, as a prediction in double precision:
        :class:`inference.samplers.ProbabilityDiffusion` with this ``eps`` follows the bridge in either
        direction. And the history of the training.

    Raises:
        ValueError: If samples or ``eps`` are unfit, or the checkpoint is another training's.
        TypeError: If samples are not floating-point tensors.
        RuntimeError: If the loss stops being finite.

    Example:
        >>> from inference.training import FitSettings
        >>> rows = NoiseStream(seed=0, start=0, stop=64).normals(2)
        >>> small = BridgeSettings(batch=8, coupled=32, fit=FitSettings(iterations=2))
        >>> bridge, _ = train_bridge(rows, rows + 1, eps=0.5, seed=0, settings=small, progress=False)
        >>> bridge.to(Kind.SCORE)(torch.tensor(0.5).double(), torch.zeros(3, 2).double()).shape
        torch.Size([3, 2])

    References:
        Tong, Malkin, Fatras, Atanackovic, Zhang, Huguet, Wolf & Bengio (2024), section 3. arXiv:2307.03672
    """
    settings = BridgeSettings() if settings is None else settings
    (first, _), (second, _) = check_samples(base), check_samples(target)
    path = TwoSided(amplitude=BrownianBridge(2 * eps))  # which checks eps
    # One unit for all components, so that the reference is a Wiener process in it too.
    mean = 0.5 * (first.mean(0) + second.mean(0))
    unit = torch.cat((first - mean, second - mean)).square().mean().sqrt().clamp(min=1e-300)
    scaled = float(eps / unit**2)
    pairs = coupled_samples(
        (first - mean) / unit,
        (second - mean) / unit,
        Entropic(4 * scaled, settings.rounds),
        size=settings.coupled,
        seed=seed,
    )
    losses = {
        kind: Matching(
            TwoSided(amplitude=BrownianBridge(2 * scaled)), kind, paired(*pairs), settings.batch, seed
        )
        for kind in (Kind.VELOCITY, Kind.SCORE)
    }

    def loss(model: nn.Module, iteration: int) -> Tensor:
        parts = [of(model.get_submodule(kind.value), iteration) for kind, of in losses.items()]
        return parts[0] + parts[1]

    sizes = {"width": settings.width, "depth": settings.depth, "dtype": torch.float64}
    networks = nn.ModuleDict(
        {
            kind.value: FieldNetwork(
                first.shape[1], seed=NoiseStream(seed, 0, 1).fork(kind.value).seed, **sizes
            )
            for kind in losses
        }
    )
    identity = {name: value for name, value in asdict(settings).items() if name != "fit"}
    identity |= {"seed": seed, "eps": eps, "base": digest(base, None), "target": digest(target, None)}
    trained, history = fit(
        networks,
        loss,
        settings=settings.fit,
        identity=identity,
        checkpoint=checkpoint,
        progress=progress,
        label="Schroedinger bridge",
    )
    velocity, score = (
        _rescaled(trained.get_submodule(kind.value), mean, unit, factor)
        for kind, factor in ((Kind.VELOCITY, unit), (Kind.SCORE, 1 / unit))
    )
    return Prediction(path, {Kind.VELOCITY: velocity, Kind.SCORE: score}), history


def _shuffled(rows: Tensor, seed: int, name: str) -> Tensor:
    """The rows in a random order."""
    keys = (
        NoiseStream(seed, 0, len(rows))
        .fork(f"order of {name}")
        .uniforms(1, purpose=Purpose.TRAINING, dtype=torch.float64)
    )
    return rows[keys[:, 0].argsort().to(rows.device)]


def _rescaled(network: nn.Module, mean: Tensor, unit: Tensor, factor: Tensor) -> Coefficient:
    """A field in the units of the samples."""
    return lambda t, x: factor * network(t, (x - mean) / unit)
