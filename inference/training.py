"""One loop for models with a single objective: deterministic, watched, resumable."""

import copy
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

import torch
from torch import Tensor, nn

from inference.decay import CosineDecay, Decay
from inference.precision import Precision
from inference.processes import OneProcess, Processes
from inference.training_log import History, TrainingLog
from sde.checkpoint import Scalar, load_checkpoint, save_checkpoint
from sde.networks import ema_decay, update_average
from sde.progress import Progress

__all__ = ["FitSettings", "fit"]

Loss = Callable[[nn.Module, int], Tensor]

_KIND = "fit"
_ALONE = OneProcess()


@dataclass(frozen=True, slots=True)
class FitSettings:
    """How an objective is minimised: Adam, a decay of the rate and a moving average of the weights.

    Attributes:
        iterations: Number of steps.
        rate: Learning rate at the start.
        decay: How it falls.
        warmup: Iterations over which the rate rises linearly to that course.
        clip: Norm to which longer gradients are cut.
        average: Limit of the decay of the moving average of the weights; 0 keeps the last weights.
        patience: Rows of the history without a better validation after which training stops; 0 goes on.
        log_every: Iterations between rows of the history.
        checkpoint_every: Iterations between checkpoints.
        precision: In which dtype the loss is computed; the validation is in full precision.
    """

    iterations: int = 10000
    rate: float = 1e-3
    decay: Decay = field(default_factory=CosineDecay)
    warmup: int = 0
    clip: float = math.inf
    average: float = 0.999
    patience: int = 0
    log_every: int = 100
    checkpoint_every: int = 1000
    precision: Precision = Precision.FULL

    def __post_init__(self) -> None:
        """Refuse values that cannot be trained with."""
        lowest = {"iterations": 0, "warmup": 0, "patience": 0, "log_every": 1, "checkpoint_every": 1}
        for name, low in lowest.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise ValueError(f"`{name}` must be a whole number of at least {low}; got {value!r}.")
        if not (math.isfinite(self.rate) and self.rate > 0):
            raise ValueError(f"`rate` must be positive; got {self.rate}.")
        if not self.clip > 0:
            raise ValueError(f"`clip` must be positive; got {self.clip}.")
        if not 0 <= self.average < 1:
            raise ValueError(f"`average` must lie in [0, 1); got {self.average}.")

    def rate_factor(self, iteration: int) -> float:
        """The rate over its largest: decay times warm-up."""
        warm = min(1.0, (iteration + 1) / max(1, self.warmup))
        return warm * self.decay.factor(iteration / max(1, self.iterations))

    def identity(self) -> dict[str, Scalar]:
        """All of it as scalars, for a checkpoint."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: v if isinstance(v, int | float) else repr(v) for name, v in values.items()}


def fit(
    model: nn.Module,
    loss: Loss,
    *,
    settings: FitSettings,
    identity: Mapping[str, Scalar],
    validate: Callable[[nn.Module], Tensor] | None = None,
    checkpoint: str | Path | None = None,
    log: str | Path | None = None,
    tensorboard: str | Path | None = None,
    processes: Processes = _ALONE,
    progress: bool = True,
    label: str = "training",
) -> tuple[nn.Module, History]:
    r"""Minimise an objective over the parameters of a model.

    The loss is a function of the model and of the iteration, from which it takes its mini-batch and its
    noise: nothing else is random, so a resumed run gives the same weights bit for bit on the same machine
    with the same number of threads.

    Several processes minimise the mean of their losses. A loss that takes its process's
    :attr:`~inference.processes.Processes.share` of the rows of the batch of one process gives the same
    curve with any number of them, to rounding, also where a run is resumed by another number; one that does
    not is computed as a whole by each.

    Args:
        model: What is trained, in place.
        loss: Maps the model and the iteration to a scalar.
        settings: The optimisation.
        identity: Whatever else decides the numbers (seed, digest of the data, sizes); a checkpoint of another
            identity is refused.
        validate: Maps the moving average of the model to a scalar, the lower the better, and draws nothing
            that changes from call to call. It is asked at every row of the history, and the average at its
            lowest is returned.
        checkpoint: File that holds the state; where it exists training goes on from it.
        log: CSV file of the history, written at every row.
        tensorboard: Folder to which TensorBoard's events go.
        processes: Those that share the training: :class:`inference.processes.Torchrun`, or this one alone.
        progress: Show a bar.
        label: Name of the bar.

    Returns:
        The moving average of the model, frozen, and the history: lists ``iteration``, ``loss`` (mean since
        the row before), ``seconds`` and, with ``validate``, ``validation``.

    Raises:
        ValueError: If the checkpoint is unreadable or another run's.
        RuntimeError: If the loss stops being finite.
        ImportError: If TensorBoard is asked for and not installed.
    """
    run = _Fit(model, loss, settings, validate, processes)
    leads = processes.share.rank == 0
    identity = settings.identity() | dict(identity)
    if checkpoint is not None:
        state = _resumed(checkpoint, identity, processes)
        if state is not None:
            run.load(state)
    logs = TrainingLog(log, tensorboard) if leads else TrainingLog()
    with Progress(settings.iterations, label, start=run.iteration, show=progress and leads) as bar:
        while not run.finished:
            rows = len(run.history["loss"])
            run.step()
            bar.update(1, f"loss {run.history['loss'][-1]:.4f}" if run.history["loss"] else "")
            if len(run.history["loss"]) > rows:
                logs.write(run.history)
            if checkpoint is not None and (run.finished or run.iteration % settings.checkpoint_every == 0):
                state = run.state()
                if leads:
                    save_checkpoint(checkpoint, _KIND, identity, state)
    logs.close()
    return run.result().eval().requires_grad_(False), run.history


def _resumed(
    checkpoint: str | Path, identity: Mapping[str, Scalar], processes: Processes
) -> dict[str, object] | None:
    """The state in a checkpoint, which the first process reads; every process raises its refusal."""
    found: dict[str, object] | ValueError | None = None
    if processes.share.rank == 0:
        try:
            found = load_checkpoint(checkpoint, _KIND, identity)
        except ValueError as error:
            found = error
    found = processes.broadcast(found)
    if isinstance(found, ValueError):
        raise found
    return found


class _Objective(nn.Module):
    """The loss as a module of the iteration alone: what is wrapped for several processes."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, iteration: int) -> Tensor:
        """The loss."""
        return self.loss(self.model, iteration)


class _Fit:
    """The state of a training: model, average, optimiser, iteration, history and the best average so far."""

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        settings: FitSettings,
        validate: Callable[[nn.Module], Tensor] | None,
        processes: Processes,
    ) -> None:
        self.model, self.settings, self.validate, self.processes = model, settings, validate, processes
        self.objective = processes.prepare(_Objective(model, loss))
        self.device = next(model.parameters()).device
        self.scaler = settings.precision.scaler(self.device)
        self.average = copy.deepcopy(model)
        self.adam = torch.optim.Adam(model.parameters(), lr=settings.rate, fused=True)
        self.history: History = {"iteration": [], "loss": [], "seconds": []}
        self.iteration, self.seconds = 0, 0.0
        self.total = torch.zeros(())  # sum of the losses since the last row of the history
        self.rows = 0
        self.best: dict[str, Tensor] = {}  # weights of the average at the lowest validation
        if validate is not None:
            self.history["validation"] = []

    @property
    def finished(self) -> bool:
        """Whether all iterations are done, or the validation has stopped falling."""
        return self.iteration >= self.settings.iterations or 0 < self.settings.patience <= self._stale

    @property
    def _stale(self) -> int:
        """Rows since the lowest validation."""
        values = self.history.get("validation", [])
        return len(values) - 1 - values.index(min(values)) if values else 0

    def result(self) -> nn.Module:
        """The average at its best, or the last."""
        if self.best:
            self.average.load_state_dict(self.best)
        return self.average

    def step(self) -> None:
        """One step of Adam."""
        began, settings = time.perf_counter(), self.settings
        self.adam.param_groups[0]["lr"] = settings.rate * settings.rate_factor(self.iteration)
        with settings.precision.autocast(self.device):
            value = self.objective(self.iteration)
        self.adam.zero_grad()
        self.scaler.scale(value).backward()
        if settings.clip < math.inf:
            self.scaler.unscale_(self.adam)
            nn.utils.clip_grad_norm_(self.model.parameters(), settings.clip)
        self.scaler.step(self.adam)
        self.scaler.update()
        update_average(self.average, self.model, ema_decay(self.iteration, settings.average))
        self.iteration += 1
        self.rows += 1
        self.total = self.total + value.detach().cpu()
        self.seconds += time.perf_counter() - began
        if self.iteration % settings.log_every == 0 or self.iteration == settings.iterations:
            self._log()

    def _log(self) -> None:
        """Append a row to the history; a loss that is not finite ends the training."""
        mean = float(self.processes.mean(self.total)) / self.rows
        if not math.isfinite(mean):
            raise RuntimeError(
                f"Training diverged before iteration {self.iteration}: loss {mean}. Lower the learning rate."
            )
        for name, value in (("iteration", self.iteration), ("loss", mean), ("seconds", self.seconds)):
            self.history[name].append(value)
        self.total, self.rows = torch.zeros(()), 0
        if self.validate is not None:
            self._check(self.validate)

    @torch.no_grad()
    def _check(self, validate: Callable[[nn.Module], Tensor]) -> None:
        """Validate the average, and keep it where it is the best so far."""
        value = torch.as_tensor(validate(self.average))
        self.history["validation"].append(float(self.processes.mean(value)))
        if self._stale == 0:
            self.best = {name: value.clone() for name, value in self.average.state_dict().items()}

    def state(self) -> dict[str, object]:
        """Everything that the next step depends on, the same in every process: all of them must ask."""
        self.total = self.processes.mean(self.total)
        return {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "adam": self.adam.state_dict(),
            "scaler": self.scaler.state_dict(),
            "history": self.history,
            "best": self.best,
            "progress": (self.iteration, self.seconds, self.total, self.rows),
        }

    def load(self, state: dict) -> None:
        """Go back to a state."""
        for name in ("model", "average", "adam", "scaler"):
            getattr(self, name).load_state_dict(state[name])
        self.history, self.best = state["history"], state["best"]
        self.iteration, self.seconds, total, self.rows = state["progress"]
        self.total = total.cpu()
