"""Training of the Wasserstein generator with a gradient penalty: deterministic, watched, resumable.

Mini-batches, latent codes and interpolation coefficients are addressed by the iteration (purpose
``TRAINING``, tags ``rows``, ``latent`` and ``mix``), initial weights by the seed (``INITIALISATION``, tags
``generator`` and ``critic``). Training is therefore a function of data, seed and settings: killed and resumed
from its checkpoint, it gives the same weights bit for bit on the same machine with the same number of
threads.
"""

import copy
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sde.checkpoint import digest, load_checkpoint, save_checkpoint
from sde.networks import ema_decay, perceptron, update_average
from sde.noise import NoiseStream, Purpose
from sde.progress import Progress
from sde.samples import check_samples, deviations
from uq.baselines import PodGaussian
from uq.generator import WassersteinGenerator, gradient_penalty

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["WassersteinSettings", "plot_training", "train_wasserstein"]

History = dict[str, list[float]]

_COLUMNS = ("iteration", "critic_gap", "gradient_norm", "critic_loss", "generator_loss", "seconds")
_AHEAD = 8  # iterations whose noise is drawn in one call; it changes the speed, not the numbers


@dataclass(frozen=True, slots=True)
class WassersteinSettings:
    """How a Wasserstein generator is built and trained.

    Attributes:
        iterations: Generator steps.
        batch: Samples per step.
        critic_steps: Critic steps per generator step.
        penalty: Weight of the gradient penalty.
        generator_rate: Learning rate of the generator at the start.
        critic_rate: Learning rate of the critic at the start.
        final_rate: Both rates fall along a cosine to this fraction.
        momentum: First Adam coefficient.
        second_moment: Second Adam coefficient.
        width: Width of the generator's hidden layers.
        depth: Number of the generator's hidden layers.
        critic_width: Width of the critic's hidden layers.
        critic_depth: Number of the critic's hidden layers.
        extra_latent: Latent codes beyond those of the POD-Gaussian.
        average: Limit of the decay of the moving average of the generator's weights.
        calibrate: Give the trained generator the mean and covariance of the data
            (:meth:`uq.generator.WassersteinGenerator.calibrate`).
        log_every: Iterations between rows of the history.
        checkpoint_every: Iterations between checkpoints.
    """

    iterations: int = 2000
    batch: int = 256
    critic_steps: int = 5
    penalty: float = 10.0
    generator_rate: float = 3e-4
    critic_rate: float = 3e-4
    final_rate: float = 0.1
    momentum: float = 0.0
    second_moment: float = 0.9
    width: int = 128
    depth: int = 2
    critic_width: int = 128
    critic_depth: int = 3
    extra_latent: int = 0
    average: float = 0.995
    calibrate: bool = True
    log_every: int = 20
    checkpoint_every: int = 200

    def __post_init__(self) -> None:
        """Refuse values that cannot be trained with."""
        for name, value in asdict(self).items():
            if name == "calibrate":
                continue
            whole = isinstance(WassersteinSettings.__dataclass_fields__[name].default, int)
            low = (
                0
                if name in ("extra_latent", "momentum", "second_moment", "average", "iterations", "penalty")
                else 1
            )
            if whole and (isinstance(value, bool) or not isinstance(value, int) or value < low):
                raise ValueError(f"`{name}` must be a whole number of at least {low}; got {value!r}.")
            if not whole and not (math.isfinite(value) and (value > 0 or (low == 0 and value == 0))):
                raise ValueError(f"`{name}` must be a positive number; got {value!r}.")
        for name in ("momentum", "second_moment", "average"):
            if getattr(self, name) >= 1:
                raise ValueError(f"`{name}` must be below 1; got {getattr(self, name)}.")

    def rate_factor(self, iteration: int) -> float:
        """Cosine decay of the learning rates, 1 at the start and ``final_rate`` at the end."""
        wave = 0.5 * (1 + math.cos(math.pi * iteration / max(1, self.iterations)))
        return self.final_rate + (1 - self.final_rate) * wave


def train_wasserstein(
    data: Tensor,
    *,
    conditions: Tensor | None = None,
    weights: Tensor | None = None,
    seed: int,
    settings: WassersteinSettings | None = None,
    checkpoint: str | Path | None = None,
    progress: bool = True,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> tuple[WassersteinGenerator, History]:
    r"""Train a Wasserstein generator with a gradient penalty on samples of a random vector or field.

    .. math:: \min_G \max_D \; E\,D(y, c) - E\,D(G(z, c), c)
              - \lambda\, E\bigl(\lVert\nabla D\rVert - 1\bigr)^2

    The critic sees standardised components times their weights. The critic gap (the difference of the two
    means) is a training signal, not an estimate of the Wasserstein distance; a gradient norm near 1 says that
    the penalty holds. With few samples the generator tends to be under-dispersed: compare standard deviations
    with held-out data.

    Args:
        data: Samples, shape ``(n, *output_shape)``, n at least 2.
        conditions: Known inputs of each sample, shape ``(n, c)``; ``None`` trains an unconditional generator.
        weights: Weight of each component in the critic's metric, shape ``(q,)``, positive; only ratios
            matter. For whitened modes their physical amplitudes are the natural choice; ``None`` gives all
            components weight 1.
        seed: Seed of everything random.
        settings: Network sizes and optimisation.
        checkpoint: File that holds the state of the training; where it exists and is of this training,
            training goes on from it, and a finished one returns at once.
        progress: Show a bar.
        dtype: Dtype of the networks.
        device: Where to train.

    Returns:
        The generator (moving average of the weights, frozen) and the history: lists ``iteration``,
        ``critic_gap``, ``gradient_norm``, ``critic_loss``, ``generator_loss`` and ``seconds`` of equal
        length.

    Raises:
        ValueError: If data or conditions are unfit, or the checkpoint is unreadable or another training's.
        TypeError: If data or conditions are not floating-point tensors.
        RuntimeError: If a loss stops being finite.

    Example:
        >>> rows = NoiseStream(seed=0, start=0, stop=64).normals(2)
        >>> settings = WassersteinSettings(iterations=2, batch=16)
        >>> generator, history = train_wasserstein(rows, seed=0, settings=settings, progress=False)
        >>> generator(torch.zeros(5, 0), NoiseStream(seed=1, start=0, stop=5)).shape
        torch.Size([5, 2])

    References:
        Gulrajani et al. (2017), algorithm 1. arXiv:1704.00028
    """
    settings = WassersteinSettings() if settings is None else settings
    run = _Training(data, conditions, weights, seed, settings, dtype, torch.device(device))
    identity = asdict(settings) | {
        "seed": seed,
        "data": digest(data, conditions, weights),
        "dtype": str(dtype),
    }
    if checkpoint is not None:
        state = load_checkpoint(checkpoint, _KIND, identity, device=device)
        if state is not None:
            run.load(state)
    with Progress(settings.iterations, "WGAN-GP", start=run.iteration, show=progress) as bar:
        while run.iteration < settings.iterations:
            run.step()
            bar.update(1, f"gap {run.history['critic_gap'][-1]:.3f}" if run.history["critic_gap"] else "")
            finished = run.iteration == settings.iterations
            if checkpoint is not None and (finished or run.iteration % settings.checkpoint_every == 0):
                save_checkpoint(checkpoint, _KIND, identity, run.state())
    generator = run.average.eval().requires_grad_(False)
    if settings.calibrate:
        generator.calibrate(data, conditions, weights=weights, seed=seed)
    return generator, run.history


_KIND = "Wasserstein training"


class _Training:
    """The state of a training: networks, optimisers, iteration and history."""

    def __init__(
        self,
        data: Tensor,
        conditions: Tensor | None,
        weights: Tensor | None,
        seed: int,
        settings: WassersteinSettings,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        matrix, known = check_samples(data, conditions)
        base = PodGaussian(data, conditions, dtype=dtype, device=device)
        scale, condition_scale = deviations(matrix), deviations(known)
        self.settings, self.seed = settings, seed
        self.generator = WassersteinGenerator(
            base, scale, condition_scale, width=settings.width, depth=settings.depth,
            extra_latent=settings.extra_latent, seed=NoiseStream(seed, 0, 1).fork("generator").seed,
        )  # fmt: skip
        self.average = copy.deepcopy(self.generator)
        self.weights = _relative(weights, matrix.shape[1]).to(device=device, dtype=dtype)
        sizes = (matrix.shape[1] + known.shape[1], *[settings.critic_width] * settings.critic_depth, 1)
        critic_seed = NoiseStream(seed, 0, 1).fork("critic").seed
        self.critic = perceptron(
            sizes, seed=critic_seed, activation=nn.LeakyReLU(0.2), dtype=dtype, device=device
        )
        self.generator_adam = self._adam(self.generator, settings.generator_rate)
        self.critic_adam = self._adam(self.critic, settings.critic_rate)
        self.known = known.to(device=device, dtype=dtype)
        self.real = self._seen(matrix.to(device=device, dtype=dtype), self.known)
        self.draw = _Draws(seed, settings, len(matrix), self.generator.latent_dim, dtype, device)
        self.iteration = 0
        self.history: History = {name: [] for name in _COLUMNS}
        self.seconds = 0.0

    def _adam(self, network: nn.Module, rate: float) -> torch.optim.Adam:
        """The optimiser of a network; fused, for its speed on small networks."""
        betas = (self.settings.momentum, self.settings.second_moment)
        return torch.optim.Adam(network.parameters(), lr=rate, betas=betas, fused=True)

    def _seen(self, flat: Tensor, conditions: Tensor) -> Tensor:
        """What the critic sees of samples: standardised components, then standardised conditions."""
        base, generator = self.generator.base, self.generator
        known = (conditions - base.condition_mean) / generator.condition_scale
        return torch.cat(((flat - base.mean) * (self.weights / generator.scale), known), 1)

    def step(self) -> None:
        """One generator step and the critic steps before it."""
        began, settings = time.perf_counter(), self.settings
        factor = settings.rate_factor(self.iteration)
        self.generator_adam.param_groups[0]["lr"] = settings.generator_rate * factor
        self.critic_adam.param_groups[0]["lr"] = settings.critic_rate * factor
        rows, latent, mix = self.draw(self.iteration)
        with torch.no_grad():
            known = self.known[rows.flatten()]
            fake = self._seen(self.generator.transform(latent.flatten(0, 1), known), known).unflatten(
                0, rows.shape
            )
        measured = [
            self._critic_step(self.real[rows[k]], fake[k], mix[k]) for k in range(settings.critic_steps)
        ]
        generator_loss = self._generator_step(latent[-1], self.known[rows[-1]])
        update_average(self.average, self.generator, ema_decay(self.iteration, settings.average))
        self.iteration += 1
        self.seconds += time.perf_counter() - began
        if self.iteration % settings.log_every == 0 or self.iteration == settings.iterations:
            self._log(*measured[-1], generator_loss)

    def _critic_step(self, real: Tensor, fake: Tensor, mix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Move the critic to separate real from fake; returns the gap, the gradient norm and the loss."""
        value = self.critic(torch.cat((real, fake)))
        gap = value[: len(real)].mean() - value[len(real) :].mean()
        penalty, norm = gradient_penalty(self.critic, real, fake, mix)
        loss = self.settings.penalty * penalty - gap
        self.critic_adam.zero_grad()
        loss.backward()
        self.critic_adam.step()
        return gap.detach(), norm, loss.detach()

    def _generator_step(self, latent: Tensor, conditions: Tensor) -> Tensor:
        """Move the generator to raise the critic's mean; returns the loss."""
        self.critic.requires_grad_(False)
        loss = -self.critic(self._seen(self.generator.transform(latent, conditions), conditions)).mean()
        self.critic.requires_grad_(True)
        self.generator_adam.zero_grad()
        loss.backward()
        self.generator_adam.step()
        return loss.detach()

    def _log(self, gap: Tensor, norm: Tensor, critic_loss: Tensor, generator_loss: Tensor) -> None:
        """Append a row to the history; a loss that is not finite ends the training."""
        row = (
            self.iteration,
            float(gap),
            float(norm),
            float(critic_loss),
            float(generator_loss),
            self.seconds,
        )
        if not all(map(math.isfinite, row)):
            raise RuntimeError(
                f"Wasserstein training diverged before iteration {self.iteration}: critic loss "
                f"{float(critic_loss)}, generator loss {float(generator_loss)}. Lower the learning rates."
            )
        for name, value in zip(_COLUMNS, row, strict=True):
            self.history[name].append(value)

    def state(self) -> dict[str, object]:
        """Everything that the next step depends on."""
        parts = {name: getattr(self, name).state_dict() for name in _STATEFUL}
        return parts | {"iteration": self.iteration, "history": self.history, "seconds": self.seconds}

    def load(self, state: dict) -> None:
        """Go back to a state."""
        for name in _STATEFUL:
            getattr(self, name).load_state_dict(state[name])
        self.iteration, self.history, self.seconds = state["iteration"], state["history"], state["seconds"]


_STATEFUL = ("generator", "average", "critic", "generator_adam", "critic_adam")


def _relative(weights: Tensor | None, size: int) -> Tensor:
    """Weights of the components with a mean square of 1."""
    if weights is None:
        return torch.ones(size, dtype=torch.float64)
    if weights.shape != (size,) or not bool(((weights > 0) & weights.isfinite()).all()):
        raise ValueError(
            f"`weights` must be {size} positive numbers; got shape {tuple(weights.shape)}, {weights}."
        )
    values = weights.detach().cpu().double()
    return values / values.square().mean().sqrt()


class _Draws:
    """The randomness of each iteration: mini-batch rows, latent codes and interpolation coefficients."""

    def __init__(
        self,
        seed: int,
        settings: WassersteinSettings,
        num_rows: int,
        latent_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.seed, self.steps, self.batch = seed, settings.critic_steps, settings.batch
        self.num_rows, self.latent_dim, self.dtype, self.device = num_rows, latent_dim, dtype, device
        self.held: tuple[int, Tensor, Tensor, Tensor] | None = None

    def __call__(self, iteration: int) -> tuple[Tensor, Tensor, Tensor]:
        """Rows ``(steps + 1, batch)``, latent codes with one axis more and mix ``(steps, batch, 1)``."""
        group, position = divmod(iteration, _AHEAD)
        if self.held is None or self.held[0] != group:
            self.held = (group, *self._draw(NoiseStream(self.seed, group * _AHEAD, (group + 1) * _AHEAD)))
        _, rows, latent, mix = self.held
        return rows[position], latent[position], mix[position]

    def _draw(self, noise: NoiseStream) -> tuple[Tensor, Tensor, Tensor]:
        """The draws of a group of iterations, which are the samples of the stream."""
        count, steps = (self.steps + 1) * self.batch, self.steps + 1
        uniforms = _of(noise.fork("rows").uniforms, count, torch.float64, self.device)
        latent = _of(noise.fork("latent").normals, count * self.latent_dim, self.dtype, self.device)
        mix = _of(noise.fork("mix").uniforms, self.steps * self.batch, self.dtype, self.device)
        rows = (uniforms * self.num_rows).long().view(_AHEAD, steps, self.batch)
        return rows, latent.view(_AHEAD, steps, self.batch, -1), mix.view(_AHEAD, self.steps, self.batch, 1)


def _of(kind: Callable[..., Tensor], count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Numbers of the training purpose."""
    return kind(count, purpose=Purpose.TRAINING, dtype=dtype, device=device)


def plot_training(history: History) -> "Figure":
    """Curves of a Wasserstein training: critic gap and gradient norm against the iteration.

    Args:
        history: What :func:`train_wasserstein` returned.

    Returns:
        The figure; the caller shows or saves it.

    Raises:
        ImportError: If matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("`plot_training` needs matplotlib. pip install 'sdeuq[plot]'") from error
    figure = Figure(figsize=(8, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(history["iteration"], history["critic_gap"])
    left.set(xlabel="generator step", ylabel="critic gap")
    right.plot(history["iteration"], history["gradient_norm"])
    right.axhline(1.0, color="grey", linewidth=0.8)
    right.set(xlabel="generator step", ylabel="mean gradient norm of the critic")
    return figure
