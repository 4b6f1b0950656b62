"""One loop for models with a single objective: deterministic, watched, resumable."""

import copy
import csv
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from sde.checkpoint import Scalar, load_checkpoint, save_checkpoint
from sde.networks import ema_decay, update_average
from sde.progress import Progress

__all__ = ["FitSettings", "fit"]

History = dict[str, list[float]]

_KIND = "fit"


@dataclass(frozen=True, slots=True)
class FitSettings:
    """How an objective is minimised: Adam, a cosine decay of the rate and a moving average of the weights.

    Attributes:
        iterations: Number of steps.
        rate: Learning rate at the start.
        final_rate: The rate falls along a cosine to this fraction.
        warmup: Iterations over which the rate rises linearly to that cosine.
        clip: Norm to which longer gradients are cut.
        average: Limit of the decay of the moving average of the weights; 0 keeps the last weights.
        patience: Rows of the history without a better validation after which training stops; 0 goes on.
        log_every: Iterations between rows of the history.
        checkpoint_every: Iterations between checkpoints.
    """

    iterations: int = 10000
    rate: float = 1e-3
    final_rate: float = 0.01
    warmup: int = 0
    clip: float = math.inf
    average: float = 0.999
    patience: int = 0
    log_every: int = 100
    checkpoint_every: int = 1000

    def __post_init__(self) -> None:
        """Refuse values that cannot be trained with."""
        lowest = {"iterations": 0, "warmup": 0, "patience": 0, "log_every": 1, "checkpoint_every": 1}
        for name, low in lowest.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise ValueError(f"`{name}` must be a whole number of at least {low}; got {value!r}.")
        if not (math.isfinite(self.rate) and self.rate > 0 and 0 < self.final_rate <= 1):
            raise ValueError(
                f"`rate` must be positive and `final_rate` lie in (0, 1]; got {self.rate}, {self.final_rate}."
            )
        if not self.clip > 0:
            raise ValueError(f"`clip` must be positive; got {self.clip}.")
        if not 0 <= self.average < 1:
            raise ValueError(f"`average` must lie in [0, 1); got {self.average}.")

    def rate_factor(self, iteration: int) -> float:
        """The rate over its largest: a cosine from 1 to ``final_rate``, times the warm-up."""
        wave = 0.5 * (1 + math.cos(math.pi * iteration / max(1, self.iterations)))
        warm = min(1.0, (iteration + 1) / max(1, self.warmup))
        return warm * (self.final_rate + (1 - self.final_rate) * wave)


def fit(
    model: nn.Module,
    loss: Callable[[nn.Module, int], Tensor],
    *,
    settings: FitSettings,
    identity: Mapping[str, Scalar],
    validate: Callable[[nn.Module], Tensor] | None = None,
    checkpoint: str | Path | None = None,
    log: str | Path | None = None,
    progress: bool = True,
    label: str = "training",
) -> tuple[nn.Module, History]:
    r"""Minimise an objective over the parameters of a model.

    The loss is a function of the model and of the iteration, from which it takes its mini-batch and its
    noise: nothing else is random, so a resumed run gives the same weights bit for bit on the same machine
    with the same number of threads.

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
        progress: Show a bar.
        label: Name of the bar.

    Returns:
        The moving average of the model, frozen, and the history: lists ``iteration``, ``loss`` (mean since
        the row before), ``seconds`` and, with ``validate``, ``validation``.

    Raises:
        ValueError: If the checkpoint is unreadable or another run's.
        RuntimeError: If the loss stops being finite.
    """
    run = _Fit(model, settings, validate)
    identity = asdict(settings) | dict(identity)
    if checkpoint is not None:
        state = load_checkpoint(checkpoint, _KIND, identity, device=next(model.parameters()).device)
        if state is not None:
            run.load(state)
    with Progress(settings.iterations, label, start=run.iteration, show=progress) as bar:
        while not run.finished:
            rows = len(run.history["loss"])
            run.step(loss)
            bar.update(1, f"loss {run.history['loss'][-1]:.4f}" if run.history["loss"] else "")
            if log is not None and len(run.history["loss"]) > rows:
                _write_csv(Path(log), run.history)
            if checkpoint is not None and (run.finished or run.iteration % settings.checkpoint_every == 0):
                save_checkpoint(checkpoint, _KIND, identity, run.state())
    return run.result().eval().requires_grad_(False), run.history


def _write_csv(path: Path, history: History) -> None:
    """The history as a table, a row for each entry; a resumed run writes what was there before, too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(history)
        table.writerows(zip(*history.values(), strict=True))


class _Fit:
    """The state of a training: model, average, optimiser, iteration, history and the best average so far."""

    def __init__(
        self, model: nn.Module, settings: FitSettings, validate: Callable[[nn.Module], Tensor] | None
    ) -> None:
        self.model, self.settings, self.validate = model, settings, validate
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

    def step(self, loss: Callable[[nn.Module, int], Tensor]) -> None:
        """One step of Adam."""
        began, settings = time.perf_counter(), self.settings
        self.adam.param_groups[0]["lr"] = settings.rate * settings.rate_factor(self.iteration)
        value = loss(self.model, self.iteration)
        self.adam.zero_grad()
        value.backward()
        if settings.clip < math.inf:
            nn.utils.clip_grad_norm_(self.model.parameters(), settings.clip)
        self.adam.step()
        update_average(self.average, self.model, ema_decay(self.iteration, settings.average))
        self.iteration += 1
        self.rows += 1
        self.total = self.total + value.detach().cpu()
        self.seconds += time.perf_counter() - began
        if self.iteration % settings.log_every == 0 or self.iteration == settings.iterations:
            self._log()

    def _log(self) -> None:
        """Append a row to the history; a loss that is not finite ends the training."""
        mean = float(self.total) / self.rows
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
        self.history["validation"].append(float(validate(self.average)))
        if self._stale == 0:
            self.best = {name: value.clone() for name, value in self.average.state_dict().items()}

    def state(self) -> dict[str, object]:
        """Everything that the next step depends on."""
        return {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "adam": self.adam.state_dict(),
            "history": self.history,
            "best": self.best,
            "progress": (self.iteration, self.seconds, self.total, self.rows),
        }

    def load(self, state: dict) -> None:
        """Go back to a state."""
        for name in ("model", "average", "adam"):
            getattr(self, name).load_state_dict(state[name])
        self.history, self.best = state["history"], state["best"]
        self.iteration, self.seconds, total, self.rows = state["progress"]
        self.total = total.cpu()
