# %% [markdown]
# # Digits on request: a conditional flow with guidance
#
# Images of handwritten digits, eight pixels by eight, are a law in 64 dimensions, and 1400 of them are all
# that is known of it. A network learns the velocity $b(t, x, c)$ of straight paths from normal noise to
# images of the class $c$; one time in eight the class is hidden from it, so that the same network knows the
# velocity $b(t, x)$ of all images. Guidance pushes the one away from the other,
#
# $$ b_w = b(t, x) + w\,\bigl(b(t, x, c) - b(t, x)\bigr), $$
#
# and gives clearer digits of less variety. Two questions are asked of what is generated. Does a classifier
# that has seen real digits alone read what was asked for? And are the images new: are they as far from the
# digits that were learned from as real digits are that were held back?

# %%
"""Handwritten digits of a given class, with classifier-free guidance."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, cast

import torch
from matplotlib.figure import Figure, SubFigure
from torch import Tensor, nn

from inference.interpolants import Kind, OneSided, Prediction, VelocityNetwork, matching_loss
from inference.samplers import ProbabilityFlow, guided
from inference.training import FitSettings, fit
from sde import NoiseStream, Purpose
from sde.checkpoint import digest
from sde.equation import Coefficient

PATH, TIMES = OneSided(), torch.linspace(0, 1, 41)
BATCH, HIDDEN = 256, 1 / 8  # images of an iteration; share of them whose class is hidden
WEIGHTS = (0.0, 1.0, 2.0, 3.0, 5.0)
CLASSES = torch.eye(10)


class Digits(NamedTuple):
    """Images with pixels in [-1, 1], shape ``(n, 64)``, and their classes ``(n,)``."""

    images: Tensor
    labels: Tensor

    def part(self, rows: Tensor | slice) -> "Digits":
        """Some of them."""
        return Digits(self.images[rows], self.labels[rows])


def load(seed: int) -> tuple[Digits, Digits]:
    """1400 digits to learn from and 397 that are held back, in an order drawn from the seed."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        message = "The digits need scikit-learn. Install it with: pip install 'sdeuq[data]'."
        raise ImportError(message) from error
    pixels, labels = load_digits(return_X_y=True)
    order = NoiseStream(seed, 0, len(pixels)).fork("split").uniforms(1, dtype=torch.float64)[:, 0].argsort()
    every = Digits(torch.tensor(pixels).float() / 8 - 1, torch.tensor(labels).long()).part(order)
    return every.part(slice(0, 1400)), every.part(slice(1400, None))


# %% [markdown]
# A hidden class is a row of zeros in place of a unit vector.


# %%
def given(network: nn.Module, known: Tensor) -> Coefficient:
    """The velocity given classes: rows for each image, or one for all."""
    return lambda t, x: network(x, t.expand(len(x), 1), known.expand(len(x), -1))


def learn(data: Digits, iterations: int, seed: int, checkpoint: Path) -> nn.Module:
    """The velocity of images, given classes or not."""

    def loss(model: nn.Module, iteration: int) -> Tensor:
        noise = NoiseStream(seed, iteration * BATCH, (iteration + 1) * BATCH)
        row, hide, t = noise.uniforms(3, purpose=Purpose.TRAINING).unbind(1)
        chosen = data.part((row * len(data.labels)).long())
        base = noise.fork("base").normals(64, purpose=Purpose.TRAINING)
        known = torch.where(hide[:, None] < HIDDEN, 0.0, CLASSES[chosen.labels])
        ends = {"base": base, "target": chosen.images, "latent": base}
        field = given(model, known)
        return matching_loss(field, Kind.VELOCITY, PATH, t[:, None], **ends, antithetic=False).mean()

    network, _ = fit(
        VelocityNetwork(64, 10, width=256, depth=3, seed=seed),
        loss,
        settings=FitSettings(iterations, rate=2e-3),
        identity={"seed": seed, "data": digest(data.images, data.labels.float())},
        checkpoint=checkpoint,
        label="digits",
    )
    return network


def generate(network: nn.Module, labels: Tensor, weight: float, noise: NoiseStream) -> Tensor:
    """Images of the classes, one for each sample of the stream."""
    asked, hidden = (
        Prediction(PATH, {Kind.VELOCITY: given(network, known)})
        for known in (CLASSES[labels], torch.zeros(1, 10))
    )
    images = ProbabilityFlow()(guided(asked, hidden, weight), noise.normals(64), TIMES, noise)
    return images.clamp(-1, 1)


# %%
def accuracy(data: Digits, images: Tensor, labels: Tensor) -> float:
    """Share of images whose class a vote of the three nearest real digits finds."""
    nearest = torch.cdist(images, data.images).topk(3, largest=False).indices
    votes = CLASSES[data.labels[nearest]].sum(1) + 1e-3 * CLASSES[data.labels[nearest[:, 0]]]
    return (votes.argmax(1) == labels).float().mean().item()


def copied(images: Tensor, seen: Tensor, held: Tensor) -> float:
    """Share of images nearer to a digit that was learned from than to one held back, of equal numbers."""
    distances = [torch.cdist(images, digits).amin(1) for digits in (seen[: len(held)], held)]
    return (distances[0] < distances[1]).float().mean().item()


def spread(images: Tensor, labels: Tensor) -> float:
    """Root-mean-square distance of an image from the mean of its class."""
    gaps = [images[labels == k] - images[labels == k].mean(0) for k in range(10)]
    return torch.cat(gaps).square().sum(1).mean().sqrt().item()


def plot(real: Digits, made: dict[float, Tensor], labels: Tensor, numbers: dict[str, list[float]]) -> Figure:
    """Real digits above generated ones, and accuracy and variety by the weight of the guidance."""
    figure = Figure(figsize=(11.5, 5), layout="constrained")
    left, right = cast(Sequence[SubFigure], figure.subfigures(1, 2, width_ratios=(1.7, 1)))
    blocks = {"real": real, "w = 1": Digits(made[1.0], labels), "w = 3": Digits(made[3.0], labels)}
    for axis, (name, data) in zip(left.subplots(3, 1), blocks.items(), strict=True):
        columns = [data.images[data.labels == k][:3].view(3, 8, 8) for k in range(10)]
        framed = [nn.functional.pad(column, (1, 1, 1, 1), value=-1.0) for column in columns]
        sheet = torch.cat([column.reshape(30, 10) for column in framed], 1)
        axis.imshow(sheet, cmap="gray_r", vmin=-1, vmax=1)
        axis.set(xticks=[], yticks=[], ylabel=name)
    axes = right.subplots(2, 1, sharex=True)
    for axis, name in zip(axes, ("accuracy", "spread"), strict=True):
        axis.plot(WEIGHTS, numbers[name], "o-", color="#1f5f8b", label="generated")
        axis.axhline(numbers[f"real {name}"][0], color="#b5562b", linestyle="--", label="held-back digits")
        axis.set_ylim(0, 1.15 * max(*numbers[name], *numbers[f"real {name}"]))
        axis.legend(frameon=False, fontsize=9)
    axes[0].set_ylabel("share read as asked")
    axes[1].set(ylabel="deviation within a class", xlabel="weight of the guidance")
    return figure


def main(
    folder: Path = Path("out/digits_interpolant"), iterations: int = 4000, seed: int = 0, images: int = 1000
) -> dict[str, float]:
    """Train, generate, judge, draw.

    Args:
        folder: Where the figure and the checkpoint go; a run that was killed goes on.
        iterations: Steps of the training.
        seed: Of the split, weights, mini-batches and images.
        images: Number of images generated with each weight.

    Returns:
        Shares that a classifier by real digits reads as asked: ``real`` of those held back, ``plain`` of
        images without guidance, ``guided`` with weight 3, ``unconditional`` with weight 0; ``copied``: share
        of plain images nearer to a digit learned from than to one held back, one half where nothing is
        copied; ``distance_ratio``: median distance of a plain image from the nearest digit learned from, over
        that of a held-back digit; ``spread`` and ``guided_spread``: deviations within a class over that of
        the held-back digits.
    """
    data, held = load(seed)
    network = learn(data, iterations, seed, folder / "checkpoint.pt")
    labels = torch.arange(images) % 10
    made = {w: generate(network, labels, w, NoiseStream(seed, 0, images).fork("images")) for w in WEIGHTS}
    numbers = {
        "accuracy": [accuracy(data, made[w], labels) for w in WEIGHTS],
        "real accuracy": [accuracy(data, *held)],
        "spread": [spread(made[w], labels) for w in WEIGHTS],
        "real spread": [spread(*held)],
    }
    plot(held, made, labels, numbers).savefig(folder / "figure.png", dpi=120)
    distances = [torch.cdist(x, data.images).amin(1).median() for x in (made[1.0], held.images)]
    shares, spreads = (dict(zip(WEIGHTS, numbers[name], strict=True)) for name in ("accuracy", "spread"))
    return {
        "real": numbers["real accuracy"][0],
        "plain": shares[1.0],
        "guided": shares[3.0],
        "unconditional": shares[0.0],
        "copied": copied(made[1.0], data.images, held.images),
        "distance_ratio": (distances[0] / distances[1]).item(),
        "spread": spreads[1.0] / numbers["real spread"][0],
        "guided_spread": spreads[3.0] / numbers["real spread"][0],
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--iterations", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out/digits_interpolant"))
    options = parser.parse_args()
    print(main(options.out, options.iterations, options.seed))
