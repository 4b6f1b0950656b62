"""Training of latent equations: every number is a function of data, seed and settings."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar, cast

import torch
from torch import Tensor, nn

from inference.processes import OneProcess, Processes
from inference.series import Series
from inference.training import FitSettings, fit
from sde.checkpoint import digest
from sde.noise import NoiseStream, Purpose

__all__ = ["EvidenceBound", "Evidential", "LatentTraining", "train_latent"]

_ALONE = OneProcess()
_VALIDATION_PATHS = 8  # enough that the noise of the validation is small beside the spread of the series


class EvidenceBound(Protocol):
    """Lower bounds of the log evidence, whatever comes with them."""

    @property
    def elbo(self) -> Tensor:
        """Shape ``(B,)``, differentiable."""
        ...


class Evidential(Protocol):
    """A module that bounds the evidence of series."""

    def elbo(
        self, series: Series, noise: NoiseStream, *, paths: int, kl_weight: float = 1.0
    ) -> EvidenceBound:
        """Bounds of ``B`` series from ``B * paths`` samples."""
        ...


Trained = TypeVar("Trained", bound=nn.Module)


@dataclass(frozen=True, slots=True)
class LatentTraining:
    """How a latent equation is trained.

    Attributes:
        batch: Series in a step; each epoch shuffles them and leaves out what does not fill a batch.
        paths: Posterior paths of each.
        annealing: Iterations over which the weight of the divergences rises from 0 to 1.
        fit: The optimisation.
    """

    batch: int = 32
    paths: int = 1
    annealing: int = 0
    fit: FitSettings = field(default_factory=lambda: FitSettings(iterations=1000, rate=3e-3, clip=10.0))

    def __post_init__(self) -> None:
        """Refuse sizes out of range."""
        for name, low in (("batch", 1), ("paths", 1), ("annealing", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise ValueError(f"`{name}` must be a whole number of at least {low}; got {value!r}.")

    def kl_weight(self, iteration: int) -> float:
        """Weight of the divergences.

        Example:
            >>> [LatentTraining(annealing=4).kl_weight(i) for i in (0, 2, 4, 9)]
            [0.0, 0.5, 1.0, 1.0]
        """
        return min(1.0, iteration / self.annealing) if self.annealing else 1.0


def train_latent(
    model: Trained,
    series: Series,
    *,
    seed: int,
    settings: LatentTraining | None = None,
    validation: Series | None = None,
    checkpoint: str | Path | None = None,
    log: str | Path | None = None,
    tensorboard: str | Path | None = None,
    processes: Processes = _ALONE,
    progress: bool = True,
) -> tuple[Trained, dict[str, list[float]]]:
    """Maximise the evidence bound of series over model and posterior.

    Args:
        model: What is trained, in place: an :class:`inference.latent_sde.LatentSDE`, an
            :class:`inference.latent_matching.LatentMatching`, or another :class:`Evidential` module. Its
            initial weights are its own.
        series: Training data.
        seed: Seed of batches and paths.
        settings: Batches, annealing and optimisation.
        validation: Series whose bound decides which weights are returned, and when to stop; ``None`` takes
            the last weights.
        checkpoint: File that holds the state of the training; where it exists and is of this training,
            training goes on from it to the same numbers, and a finished one returns at once.
        log: CSV file of the history.
        tensorboard: Folder to which TensorBoard's events go.
        processes: Those that share the batches, as for :func:`inference.training.fit`; the samples of a
            batch are the same for any number of them. Model and series belong on their device.
        progress: Show a bar.

    Returns:
        The moving average of the model, frozen, and the history: ``iteration``, ``loss`` (negative bound of a
        series), ``seconds`` and, with ``validation``, that of the bound.

    Raises:
        ValueError: If a batch is larger than the data or no multiple of the processes, or the checkpoint is
            unreadable or another training's.
        RuntimeError: If the loss stops being finite.

    Example:
        >>> from inference.latent_sde import latent_sde
        >>> series = Series(torch.linspace(0, 1, 5), torch.zeros(8, 5, 2))
        >>> settings = LatentTraining(batch=4, fit=FitSettings(iterations=3))
        >>> model = latent_sde(2, 2, max_step=0.25, seed=0, width=8)
        >>> model, history = train_latent(model, series, seed=0, settings=settings, progress=False)
        >>> history["iteration"]
        [3]
    """
    settings = LatentTraining() if settings is None else settings
    if settings.batch > len(series):
        raise ValueError(f"`batch` must be at most the {len(series)} series; got {settings.batch}.")
    batches = _batches(seed, len(series), settings.batch)
    root = NoiseStream(seed, 0, 1)
    each = settings.batch * settings.paths
    rows = processes.share.of(settings.batch)

    def loss(current: nn.Module, iteration: int) -> Tensor:
        noise = NoiseStream(root.fork("paths").seed, iteration * each, (iteration + 1) * each)
        bounds = cast(Evidential, current).elbo(
            series.select(batches(iteration)[rows]),
            noise[rows.start * settings.paths : rows.stop * settings.paths],
            paths=settings.paths,
            kl_weight=settings.kl_weight(iteration),
        )
        return -bounds.elbo.mean()

    def validate(current: nn.Module) -> Tensor:
        held = cast(Series, validation)
        noise = NoiseStream(root.fork("validation").seed, 0, len(held) * _VALIDATION_PATHS)
        return -cast(Evidential, current).elbo(held, noise, paths=_VALIDATION_PATHS).elbo.mean()

    identity = {name: value for name, value in asdict(settings).items() if name != "fit"}
    identity |= {
        "seed": seed,
        "data": digest(series.times, series.values),
        "start": digest(*model.parameters()),
    }
    identity |= {"validation": digest(None if validation is None else validation.values)}
    average, history = fit(
        model,
        loss,
        settings=settings.fit,
        identity=identity,
        validate=None if validation is None else validate,
        checkpoint=checkpoint,
        log=log,
        tensorboard=tensorboard,
        processes=processes,
        progress=progress,
        label="latent equation",
    )
    return cast(Trained, average), history


def _batches(seed: int, count: int, batch: int) -> Callable[[int], Tensor]:
    """Rows of the batch of an iteration: each epoch is a permutation of its own."""

    def rows(iteration: int) -> Tensor:
        epoch, position = divmod(iteration, count // batch)
        stream = NoiseStream(seed, epoch, epoch + 1).fork("batches")
        order = stream.uniforms(count, purpose=Purpose.TRAINING, dtype=torch.float64)[0].argsort(stable=True)
        return order[position * batch : (position + 1) * batch]

    return rows
