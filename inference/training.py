"""One loop for models with a single objective: deterministic, watched, resumable."""

import copy
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
        average: Limit of the decay of the moving average of the weights; 0 keeps the last weights.
        log_every: Iterations between rows of the history.
        checkpoint_every: Iterations between checkpoints.
    """

    iterations: int = 10000
    rate: float = 1e-3
    final_rate: float = 0.01
    average: float = 0.999
    log_every: int = 100
    checkpoint_every: int = 1000

    def __post_init__(self) -> None:
        """Refuse values that cannot be trained with."""
        for name, low in (("iterations", 0), ("log_every", 1), ("checkpoint_every", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise ValueError(f"`{name}` must be a whole number of at least {low}; got {value!r}.")
        if not (math.isfinite(self.rate) and self.rate > 0 and 0 < self.final_rate <= 1):
            raise ValueError(
                f"`rate` must be positive and `final_rate` lie in (0, 1]; got {self.rate}, {self.final_rate}."
            )
        if not 0 <= self.average < 1:
            raise ValueError(f"`average` must lie in [0, 1); got {self.average}.")

    def rate_factor(self, iteration: int) -> float:
        """Cosine decay of the learning rate, 1 at the start and ``final_rate`` at the end."""
        wave = 0.5 * (1 + math.cos(math.pi * iteration / max(1, self.iterations)))
        return self.final_rate + (1 - self.final_rate) * wave


def fit(
    model: nn.Module,
    loss: Callable[[nn.Module, int], Tensor],
    *,
    settings: FitSettings,
    identity: Mapping[str, Scalar],
    checkpoint: str | Path | None = None,
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
        checkpoint: File that holds the state; where it exists training goes on from it.
        progress: Show a bar.
        label: Name of the bar.

    Returns:
        The moving average of the model, frozen, and the history: lists ``iteration``, ``loss`` (mean since
        the row before) and ``seconds``.

    Raises:
        ValueError: If the checkpoint is unreadable or another run's.
        RuntimeError: If the loss stops being finite.
    """
    run = _Fit(model, settings)
    identity = asdict(settings) | dict(identity)
    if checkpoint is not None:
        state = load_checkpoint(checkpoint, _KIND, identity, device=next(model.parameters()).device)
        if state is not None:
            run.load(state)
    with Progress(settings.iterations, label, start=run.iteration, show=progress) as bar:
        while run.iteration < settings.iterations:
            run.step(loss)
            bar.update(1, f"loss {run.history['loss'][-1]:.4f}" if run.history["loss"] else "")
            finished = run.iteration == settings.iterations
            if checkpoint is not None and (finished or run.iteration % settings.checkpoint_every == 0):
                save_checkpoint(checkpoint, _KIND, identity, run.state())
    return run.average.eval().requires_grad_(False), run.history


class _Fit:
    """The state of a training: model, average, optimiser, iteration and history."""

    def __init__(self, model: nn.Module, settings: FitSettings) -> None:
        self.model, self.settings = model, settings
        self.average = copy.deepcopy(model)
        self.adam = torch.optim.Adam(model.parameters(), lr=settings.rate, fused=True)
        self.history: History = {"iteration": [], "loss": [], "seconds": []}
        self.iteration, self.seconds = 0, 0.0
        self.total = torch.zeros(())  # sum of the losses since the last row of the history
        self.rows = 0

    def step(self, loss: Callable[[nn.Module, int], Tensor]) -> None:
        """One step of Adam."""
        began, settings = time.perf_counter(), self.settings
        self.adam.param_groups[0]["lr"] = settings.rate * settings.rate_factor(self.iteration)
        value = loss(self.model, self.iteration)
        self.adam.zero_grad()
        value.backward()
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

    def state(self) -> dict[str, object]:
        """Everything that the next step depends on."""
        return {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "adam": self.adam.state_dict(),
            "history": self.history,
            "progress": (self.iteration, self.seconds, self.total, self.rows),
        }

    def load(self, state: dict) -> None:
        """Go back to a state."""
        for name in ("model", "average", "adam"):
            getattr(self, name).load_state_dict(state[name])
        self.history = state["history"]
        self.iteration, self.seconds, total, self.rows = state["progress"]
        self.total = total.cpu()
