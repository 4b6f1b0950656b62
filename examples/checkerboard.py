# %% [markdown]
# # A checkerboard: the flow and the diffusions of one interpolant
#
# Points of a normal law are carried to a checkerboard along
# $x_t = (1 - t)\,x_0 + t\,x_1 + \sqrt{t (1 - t)}\,z$. From the velocity $b$ and the score $s$ of its laws
# follow, for every diffusivity $\epsilon$,
#
# $$ \mathrm dX = (b + \epsilon s)\,\mathrm dt + \sqrt{2\epsilon}\,\mathrm dW, $$
#
# all with the same laws: if the fields are exact. Learned ones are not. The flow ($\epsilon = 0$) keeps what
# is wrong with them; the diffusions forget it on the way, and the divergence of what they generate is bounded
# by the errors of the fields, that of the flow is not.
#
# The score may be learned as such or from the denoiser $\eta = \mathbb E[z \mid x_t]$ as
# $s = -\eta / \gamma$. What is compared is the mean of $|\log \rho - \log \hat\rho|$ over the board, both
# blurred with the same normal kernel, with that of a sample of the board itself as its floor.
#
# At this size the diffusion with the learned score is nearer to the board than the flow; that with the
# denoiser is as near as the flow.

# %%
"""A checkerboard by a flow and by diffusions, with the score learned in two ways."""

import argparse
import math
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from inference.checkerboard import Checkerboard
from inference.interpolants import (
    Kind,
    Matching,
    Prediction,
    TwoSided,
    independent,
)
from inference.interpolants.field_network import FieldNetwork
from inference.likelihood import flow_log_density
from inference.samplers import ProbabilityDiffusion, ProbabilityFlow, capped_diffusivity
from inference.training import FitSettings, fit
from sde import NoiseStream, Purpose
from sde.equation import Coefficient

BOARD, PATH = Checkerboard(), TwoSided()
DIFFUSIVITIES, STEPS = (0.0, 0.5, 1.0, 2.5), 50
TIMES = torch.linspace(0, 1, STEPS + 1)


def normals(noise: NoiseStream) -> Tensor:
    """Points of the base."""
    return noise.normals(2, purpose=Purpose.TRAINING)


def learn(kind: Kind, iterations: int, seed: int, folder: Path) -> Coefficient:
    """A field of the interpolant, from antithetic pairs."""
    loss = Matching(PATH, kind, independent(normals, BOARD.sample), batch=256, seed=seed)
    network, _ = fit(
        FieldNetwork(2, width=128, depth=3, point_frequencies=(0.5, 1.0, 2.0, 4.0), seed=seed),
        loss,
        settings=FitSettings(iterations, rate=4e-3),
        identity={"seed": seed, "kind": kind.value},
        checkpoint=folder / f"{kind.value}.pt",
        label=kind.value,
    )
    return network


# %% [markdown]
# The diffusivity is chosen after training. It is cut where the steps could not follow the score.


# %%
def sample(prediction: Prediction, eps: float, noise: NoiseStream) -> Tensor:
    """Points of the flow or of a diffusion."""
    sampler = ProbabilityDiffusion(capped_diffusivity(PATH, eps, 1 / STEPS)) if eps else ProbabilityFlow()
    return sampler(prediction, normals(noise), TIMES, noise)


def log_density(prediction: Prediction, points: Tensor) -> Tensor:
    """Log-densities of what the flow generates."""
    base = lambda x: -0.5 * x.square().sum(-1) - math.log(2 * math.pi)  # noqa: E731
    return flow_log_density(prediction, points, base, TIMES).value


def plot(samples: dict[str, Tensor], density: Tensor, errors: dict[str, list[float]], floor: float) -> Figure:
    """Histograms of the samples, the density of the flow, and errors by diffusivity."""
    figure = Figure(figsize=(10.2, 7), layout="constrained")
    axes = figure.subplots(2, 3)
    style = {"cmap": "Blues", "vmin": 0, "vmax": 1.6 / 32}
    for axis, (name, points) in zip(axes.flat, samples.items(), strict=False):
        axis.hist2d(*points.T.numpy(), bins=90, range=[(-4.5, 4.5)] * 2, density=True, **style)
        axis.set_title(name, fontsize=10)
    image = axes[1, 1].imshow(density.T, origin="lower", extent=(-4.5, 4.5, -4.5, 4.5), **style)
    axes[1, 1].set_title("flow: its density by its divergence", fontsize=10)
    figure.colorbar(image, ax=axes[:, :2], label="density", location="bottom", shrink=0.5, aspect=40)
    for axis in axes.flat[:5]:
        axis.set(aspect="equal", xticks=(-4, 0, 4), yticks=(-4, 0, 4))
    for (name, values), colour in zip(errors.items(), ("#1f5f8b", "#b5562b"), strict=True):
        axes[1, 2].plot(DIFFUSIVITIES, values, "o-", color=colour, label=name)
    axes[1, 2].axhline(floor, color="#1b2733", linestyle=":", label="sample of the board")
    axes[1, 2].set(xlabel="diffusivity", ylabel="mean error of the log-density [nats]")
    axes[1, 2].set_ylim(bottom=0)
    axes[1, 2].legend(frameon=False, fontsize=9)
    return figure


def main(
    folder: Path = Path("out/checkerboard"), iterations: int = 3000, seed: int = 0, points: int = 10_000
) -> dict[str, float]:
    """Learn three fields, sample, compare, draw.

    Args:
        folder: Where the figure and the checkpoints go; a run that was killed goes on.
        iterations: Steps of each training.
        seed: Of weights, mini-batches and samples.
        points: Number of points of each sample.

    Returns:
        Errors of log-densities: ``floor`` of a sample of the board, ``flow``, and the least of the diffusions
        with the ``denoiser`` and with the ``score``; ``flow_outside`` and ``denoiser_outside``: shares of
        points in no dark cell at diffusivity 0 and at the largest; ``gap``: cross-entropy of the flow above
        the entropy of the board, in nats, with its standard error ``gap_error``.
    """
    fields = {kind: learn(kind, iterations, seed, folder) for kind in (Kind.VELOCITY, Kind.NOISE, Kind.SCORE)}
    noise = NoiseStream(seed, 0, points).fork("samples")
    held = BOARD.sample(noise.fork("held"))
    denoiser, score = (
        Prediction(PATH, {Kind.VELOCITY: fields[Kind.VELOCITY], kind: fields[kind]})
        for kind in (Kind.NOISE, Kind.SCORE)
    )
    flow = sample(denoiser, 0.0, noise)
    found = {
        name: [flow, *(sample(prediction, eps, noise) for eps in DIFFUSIVITIES[1:])]
        for name, prediction in (("denoiser", denoiser), ("score", score))
    }
    errors = {name: [BOARD.errors(x, held).mean().item() for x in rows] for name, rows in found.items()}
    own = BOARD.sample(noise.fork("own"))
    floor = BOARD.errors(own, held).mean().item()
    line = torch.linspace(-4.5, 4.5, 60)
    density = log_density(denoiser, torch.cartesian_prod(line, line)).exp().view(60, 60)
    last = f"diffusivity {DIFFUSIVITIES[-1]:g}"
    samples = {
        "the board": own,
        "flow": flow,
        f"diffusion, denoiser, {last}": found["denoiser"][-1],
        f"diffusion, score, {last}": found["score"][-1],
    }
    plot(samples, density, errors, floor).savefig(folder / "figure.png", dpi=120)
    gaps = BOARD.log_density(held[:1000]) - log_density(denoiser, held[:1000])
    return {
        "floor": floor,
        "flow": errors["denoiser"][0],
        "denoiser": min(errors["denoiser"][1:]),
        "score": min(errors["score"][1:]),
        "flow_outside": 1 - BOARD.contains(flow).float().mean().item(),
        "denoiser_outside": 1 - BOARD.contains(found["denoiser"][-1]).float().mean().item(),
        "gap": gaps.mean().item(),
        "gap_error": gaps.std().item() / math.sqrt(len(gaps)),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--iterations", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out/checkerboard"))
    options = parser.parse_args()
    print(main(options.out, options.iterations, options.seed))
