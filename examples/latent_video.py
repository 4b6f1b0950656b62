# %% [markdown]
# # Latent video: does noise with memory foresee better?
#
# Two handwritten digits, one brighter than the other, cross a frame and bounce off its walls, each time with
# a random new velocity. Behind the pixels the model has four numbers that move, a place for each of two
# sprites, and content that stays, the look of the sprites:
#
# $$ \mathrm dX = f_\theta(X)\,\mathrm dt + g_\theta\,\mathrm dB^H, \qquad
#    \text{frame}_i = \text{decoder}_\theta(X_{t_i}, c) + 0.1\,\varepsilon_i. $$
#
# The state has no velocities. Brownian motion ($H = 1/2$) forgets where it came from, so that a digit that
# moves steadily surprises it at every frame. Fractional Brownian motion with $H > 1/2$ persists: its past, a
# few Ornstein--Uhlenbeck processes in the Markov approximation, acts as a velocity. The index is learned. (A
# Brownian model with velocities as further components of the state could do the same; here both models have
# the same networks, the same posterior and the same budget, and only the noise differs.)
#
# That sprites move, how many there are and how bright each can be is built into the decoder; where they are
# and what they look like is learned from pixels alone.
#
# Both are trained on the evidence bound, and asked to reconstruct videos of digits that they have not seen,
# and to predict frames 10 to 24 from the first ten. PSNR is $-10 \log_{10}$ of the mean square error, in dB;
# the brightness of a pixel lies between 0 and 1.
#
# After 250 steps sprites follow the brighter digit, and the next two frames are foreseen better than by a
# guess without a model. But sprites are blobs and not yet digits, later frames are
# foreseen worse than by the mean frame, the bounds of the two noises differ no more than those of seeds, and
# the priors have not learned the walls.

# %%
"""Latent video: stochastic moving digits, Brownian motion against fractional noise with a learned index."""

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, cast

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from torch import Tensor

from examples.moving_digits import MovingDigits
from inference.frames import FrameEncoder, SpriteDecoder
from inference.latent_noise import FractionalNoise
from inference.latent_sde import ConstantDiffusion, LatentSDE, NeuralDrift
from inference.latent_training import LatentTraining, train_latent
from inference.likelihoods import Gaussian
from inference.series import Series
from inference.training import FitSettings
from sde import NoiseStream

SIZE, DIGIT, FRAMES, SEEN = 24, 10, 25, 10
STEP = 0.1  # time from frame to frame, and length of a step of the solver
TIMES = STEP * torch.arange(FRAMES)
DEVIATION = 0.1  # of a pixel
NOISES = ("Brownian", "fractional")
COLOURS = {"Brownian": "#b5562b", "fractional": "#1f5f8b"}


class Scores(NamedTuple):
    """What a trained model reaches on held-out videos."""

    bound: float  #: mean evidence bound of a video [nat]
    reconstruction: float  #: PSNR of the posterior mean given all frames [dB]
    prediction: float  #: PSNR of the posterior mean of the later frames given the first ones [dB]
    hurst: float  #: Hurst index of the noise


# %% [markdown]
# The encoder looks at each frame through convolutions, then reads the features backwards in time. The decoder
# draws a sprite for each object and moves it to its place.


# %%
def video_model(noise: str, seed: int, width: int = 64) -> LatentSDE:
    """The model, before training; the noise is all that differs."""
    seeds = NoiseStream(seed, 0, 1)
    decoder = SpriteDecoder(
        4,
        (SIZE, SIZE),
        DIGIT,
        brightness=MovingDigits().brightness,
        look_dim=8,
        width=width,
        seed=seeds.fork("decoder").seed,
    )
    span = STEP * FRAMES
    laws = {
        # One process of rate 0: Brownian motion itself, with the posterior of the fractional model.
        "Brownian": FractionalNoise(0.5, horizon=span, step=STEP, num_rates=1, learned=False),
        "fractional": FractionalNoise(0.7, horizon=span, step=STEP),
    }
    return LatentSDE(
        drift=NeuralDrift(4, width=width, seed=seeds.fork("drift").seed),
        diffusion=ConstantDiffusion(4, start=0.5),
        decoder=decoder,
        likelihood=Gaussian(SIZE**2, deviation=DEVIATION, learned=False),
        encoder=FrameEncoder((SIZE, SIZE), seed=seeds.fork("encoder").seed),
        latent_dim=4,
        content_dim=decoder.content_dim,
        max_step=1.001 * STEP,  # one step a frame
        seed=seed,
        width=width,
        noise=laws[noise],
    )


def videos(noise: NoiseStream, *, held_out: bool = False) -> Series:
    """Videos as series of pixels."""
    return Series(TIMES, MovingDigits(SIZE, DIGIT, held_out=held_out)(noise, FRAMES).flatten(2))


@torch.no_grad()
def decoded(model: LatentSDE, series: Series, noise: NoiseStream) -> Tensor:
    """Frames of posterior paths at all instants, without the noise of pixels, shape ``(B, paths, T, p)``."""
    paths = len(noise) // len(series)
    states = model.posterior(series, noise, paths=paths, times=TIMES).measure.paths
    return model.decode(states).unflatten(0, (-1, paths))


@torch.no_grad()
def generated(model: LatentSDE, noise: NoiseStream) -> Tensor:
    """Frames of paths of the prior, shape ``(n, T, p)``."""
    return model.decode(model.prior(model.codes(noise), TIMES, noise))


def first(series: Series) -> Series:
    """The frames that a prediction is made from."""
    return Series(series.times[:SEEN], series.values[:, :SEEN])


def psnr(guess: Tensor, truth: Tensor, over: tuple[int, ...] = (1, 2)) -> Tensor:
    """Peak signal-to-noise ratio over some axes [dB]."""
    return -10 * (guess - truth).square().mean(over).log10()


def score(model: LatentSDE, test: Series, paths: int = 10) -> Scores:
    """Bound and ratios on held-out videos."""
    noise = NoiseStream(7, 0, paths * len(test))
    truth, later = test.values, slice(SEEN, None)
    with torch.no_grad():
        bound = model.elbo(test, noise, paths=paths).elbo.mean()
    whole = decoded(model, test, noise).mean(1)
    guess = decoded(model, first(test), noise).mean(1)
    return Scores(
        bound.item(),
        psnr(whole, truth).mean().item(),
        psnr(guess[:, later], truth[:, later]).mean().item(),
        cast(FractionalNoise, model.noise).hurst.item(),
    )


def baselines(train: Series, test: Series) -> dict[str, float]:
    """Ratios of two guesses that need no model: the mean frame, and the last frame seen."""
    truth, mean = test.values, train.values.mean((0, 1)).expand_as(test.values)
    last, later = truth[:, SEEN - 1 : SEEN].expand_as(truth), slice(SEEN, None)
    return {
        "mean_frame_reconstruction": psnr(mean, truth).mean().item(),
        "mean_frame_prediction": psnr(mean[:, later], truth[:, later]).mean().item(),
        "last_frame_prediction": psnr(last[:, later], truth[:, later]).mean().item(),
    }


# %% [markdown]
# Rows of the picture: a held-out video; its reconstructions; single predictions (the frame of a prediction
# turns blue where the model stops seeing); and videos that the learned priors make up.


# %%
def strip(axes: Axes, name: str, video: Tensor, seen: int = FRAMES) -> None:
    """Every second frame of a video, side by side; frames from ``seen`` on in a blue border."""
    shown = range(0, FRAMES, 2)
    for column, k in enumerate(shown):
        left = column * (SIZE + 2)
        axes.imshow(
            video[k].view(SIZE, SIZE).numpy(), "gray", vmin=0, vmax=1, extent=(left, left + SIZE, 0, SIZE)
        )
        if k >= seen:
            box = [left, left + SIZE, left + SIZE, left, left], [0, 0, SIZE, SIZE, 0]
            axes.plot(*box, color="#4a90d9", linewidth=1.5)
    axes.set(xlim=(-1, len(shown) * (SIZE + 2) - 1), ylim=(-1, SIZE + 1), xticks=[], yticks=[])
    axes.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
    axes.spines[:].set_visible(False)


def draw_frames(figure: SubFigure, models: dict[str, LatentSDE], test: Series, row: int) -> None:
    """True, reconstructed, predicted and generated frames."""
    video = test.select(slice(row, row + 1))
    strips: list[tuple[str, Tensor, int]] = [("truth", video.values[0], FRAMES)]
    for name, model in models.items():
        strips.append((f"{name}: reconstructed", decoded(model, video, NoiseStream(1, 0, 1))[0, 0], FRAMES))
    for name, model in models.items():
        for k in range(2):
            guess = decoded(model, first(video), NoiseStream(1, k, k + 1))[0, 0]
            strips.append((f"{name}: predicted", guess, SEEN))
    for name, model in models.items():
        made = generated(model, NoiseStream(2, 0, 2))
        strips += [(f"{name}: generated", each, FRAMES) for each in made]
    rows = figure.subplots(len(strips), 1)
    for axes, (name, frames, seen) in zip(rows, strips, strict=True):
        strip(axes, name, frames, seen)


def draw_numbers(figure: SubFigure, runs: dict[str, "Run"], train: Series, test: Series) -> None:
    """Training, and how the predictions of single frames fade."""
    left, right = figure.subplots(1, 2)
    mean = train.values.mean((0, 1)).expand_as(test.values)
    last = test.values[:, SEEN - 1 : SEEN].expand_as(test.values)
    numbers = range(SEEN, FRAMES)
    for name, run in runs.items():
        left.plot(
            run.history["iteration"], [-x / 1e3 for x in run.history["loss"]], color=COLOURS[name], label=name
        )
        guess = decoded(run.model, first(test), NoiseStream(7, 0, 10 * len(test))).mean(1)
        right.plot(numbers, psnr(guess, test.values, (2,)).mean(0)[SEEN:], color=COLOURS[name], label=name)
    for name, guess, style in (("last frame seen", last, ":"), ("mean frame", mean, "--")):
        values = psnr(guess, test.values, (2,)).mean(0)[SEEN:]
        right.plot(numbers, values, color="#8a97a3", linestyle=style, label=name)
    left.set(xlabel="iteration", ylabel="training bound [1000 nat]")
    right.set(xlabel="number of the frame", ylabel="PSNR of the prediction [dB]")
    for axes in (left, right):
        axes.legend(frameon=False)


class Run(NamedTuple):
    """A trained model and how it got there."""

    model: LatentSDE
    history: dict[str, list[float]]
    scores: Scores


def train_one(
    folder: Path, noise: str, seed: int, train: Series, test: Series, iterations: int, batch: int
) -> Run:
    """Train a model, or read it where it is trained already, and score it."""
    settings = LatentTraining(
        batch=batch,
        annealing=iterations // 5,
        fit=FitSettings(
            iterations,
            rate=6e-3,
            warmup=20,
            clip=200.0,
            average=0.99,
            log_every=max(1, iterations // 40),
            checkpoint_every=50,
        ),
    )
    here = folder / f"{noise}-{seed}"
    model, history = train_latent(
        video_model(noise, seed),
        train,
        seed=seed,
        settings=settings,
        checkpoint=here / "checkpoint.pt",
        log=here / "log.csv",
    )
    return Run(model, history, score(model, test))


def main(
    folder: Path = Path("out/latent_video"),
    iterations: int = 600,
    seeds: int = 3,
    *,
    train_videos: int = 2000,
    test_videos: int = 64,
    batch: int = 16,
) -> dict[str, float]:
    """Train both models from several seeds, score them, draw those of the first seed.

    Args:
        folder: Where the figure, the logs and the checkpoints go; a run that was killed goes on.
        iterations: Steps of each training.
        seeds: Trainings of each model; their weights, batches and paths differ, the data do not.
        train_videos: Videos to train on.
        test_videos: Held-out videos, of digits that training has not shown.
        batch: Videos in a step.

    Returns:
        For each noise ``brownian`` and ``fractional``: ``_bound`` of a held-out video, ``_reconstruction``,
        ``_prediction`` and ``_hurst`` as in :class:`Scores`, means over the seeds, and ``_sd`` of each (NaN
        for one seed); the ratios of the baselines; and ``bound_before`` training.
    """
    train = videos(NoiseStream(0, 0, train_videos))
    test = videos(NoiseStream(0, 0, test_videos).fork("test"), held_out=True)
    with torch.no_grad():
        before = video_model("Brownian", 0).elbo(test, NoiseStream(0, 0, len(test))).elbo.mean().item()
    found: dict[str, float] = {"bound_before": before} | baselines(train, test)
    shown: dict[str, Run] = {}
    for noise in NOISES:
        runs = [train_one(folder, noise, seed, train, test, iterations, batch) for seed in range(seeds)]
        shown[noise] = runs[0]
        for name in Scores._fields:
            values = [cast(float, getattr(run.scores, name)) for run in runs]
            found[f"{noise.lower()}_{name}"] = statistics.mean(values)
            found[f"{noise.lower()}_{name}_sd"] = (
                statistics.stdev(values) if len(values) > 1 else float("nan")
            )
    figure = Figure(figsize=(11, 9.5), layout="constrained")
    upper, lower = cast(Sequence[SubFigure], figure.subfigures(2, 1, height_ratios=(2.6, 1)))
    draw_frames(upper, {name: run.model for name, run in shown.items()}, test, row=0)
    draw_numbers(lower, shown, train, test)
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "figure.png", dpi=120)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--iterations", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("out/latent_video"))
    options = parser.parse_args()
    for name, value in main(options.out, options.iterations, options.seeds).items():
        print(f"{name:<32} {value:.4g}")
