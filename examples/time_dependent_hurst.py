# %% [markdown]
# # A Hurst index that changes with time
#
# The roughness of a process need not stay the same. Multifractional Brownian motion of Riemann--Liouville's
# type,
#
# $$ B_t = \sqrt{2 H_t} \int_0^t (t - u)^{H_t - 1/2}\,\mathrm dW_u, $$
#
# looks near $t$ like fractional Brownian motion of index $H_t$. We observe paths of it with noise and learn
# the whole function $H_t$ at once: a spline inside a latent equation
#
# $$ X_t = X_0 + s \sum_k \omega_k(H_t)\,Y_k(t), \qquad o_i = X_{t_i} + \sigma \varepsilon_i, $$
#
# whose weights $\omega_k$ follow the index. The posterior is guided through exact transitions, so that the
# bound that is maximised *is* the evidence: spline, scale $s$ and noise $\sigma$ are found by its gradient.
#
# The data come from the exact covariance by Cholesky's factor. They know nothing of the Markov approximation.

# %%
"""The index of multifractional Brownian motion as a function of time, learned by an evidence bound."""

import argparse
import math
from pathlib import Path
from typing import cast

import torch
from matplotlib.figure import Figure
from scipy import special
from torch import Tensor, nn

from inference import FitSettings, LatentSDE, LatentTraining, Series, train_latent
from inference.encoders import GRUEncoder
from inference.latent_noise import MultifractionalNoise, SplineIndex
from inference.latent_sde import ConstantDiffusion, LinearDrift
from inference.latent_sites import DirectSites
from inference.likelihoods import Gaussian
from sde import NoiseStream, Purpose
from sde.hurst import local_index
from sde.noise import gaussian_path

STEPS, SERIES, NOISE = 64, 256, 0.05
TIMES = torch.linspace(0, 1, STEPS + 1, dtype=torch.float64)


def truth(times: Tensor) -> Tensor:
    """The index: rough at first, smooth later."""
    return 0.5 - 0.25 * (2 * math.pi * times).sin()


# %% [markdown]
# For $s \le t$ the covariance is
# $\sqrt{4 H_s H_t}\, s^{a + 1} t^b / (a + 1)\; {}_2F_1(-b, 1; a + 2; s/t)$ with $a = H_s - 1/2$ and
# $b = H_t - 1/2$.


# %%
def covariance(times: Tensor, index: Tensor) -> Tensor:
    """Exact covariance of Riemann--Liouville multifractional Brownian motion, shape ``(T, T)``."""
    earlier = times[:, None] <= times
    s, t = torch.minimum(times[:, None], times), torch.maximum(times[:, None], times)
    hs, ht = (torch.where(earlier, *pair) for pair in ((index[:, None], index), (index, index[:, None])))
    a, b = hs - 0.5, ht - 0.5
    ratio = torch.where(t > 0, s / torch.where(t > 0, t, 1.0), 0.0)
    shape = torch.from_numpy(special.hyp2f1(-b.numpy(), 1.0, (a + 2).numpy(), ratio.numpy()))
    powers = torch.where(s > 0, s ** (a + 1) * t**b, 0.0)
    return (4 * hs * ht).sqrt() * powers / (a + 1) * shape


def observe(seed: int, count: int) -> Series:
    """Exact paths with noise."""
    stream = NoiseStream(seed, 0, count)
    paths = gaussian_path(covariance(TIMES, truth(TIMES)), stream, dtype=torch.float64)
    drawn = stream.normals(len(TIMES), purpose=Purpose.OBSERVATION, dtype=torch.float64)
    return Series(TIMES, (paths + NOISE * drawn)[..., None])


# %% [markdown]
# The state is observed as it is: the data themselves are the sites that guide the posterior.


# %%
def build(seed: int) -> tuple[LatentSDE, MultifractionalNoise]:
    """A latent equation without a drift, whose index starts as 1/2 at all times."""
    index = SplineIndex(0.0, 1.0, pieces=5)
    noise = MultifractionalNoise(index, horizon=1.0, step=1 / (8 * STEPS), num_rates=10, kind="II")
    likelihood = Gaussian(1, deviation=0.2, dtype=torch.float64)
    model = LatentSDE(
        drift=LinearDrift(1, learned=False, dtype=torch.float64),
        diffusion=ConstantDiffusion(1, start=0.7, dtype=torch.float64),
        decoder=nn.Identity(),
        likelihood=likelihood,
        encoder=GRUEncoder(1, 1, seed=seed, dtype=torch.float64),
        latent_dim=1,
        max_step=1 / STEPS,
        seed=seed,
        width=0,
        noise=noise,
        sites=DirectSites(likelihood),
    )
    return model, noise


def plot(series: Series, curves: dict[str, Tensor], history: dict[str, list[float]]) -> Figure:
    """Paths that were observed, the index against time, and the training."""
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=(1, 1.3, 0.8))
    t = TIMES.numpy()
    for k, colour in enumerate(("#1f5f8b", "#b5562b", "#5a7d2a")):
        left.plot(t, series.values[k, :, 0].numpy() + 1.5 * k, color=colour, linewidth=0.9)
    left.set(xlabel="time", yticks=[], title="three of the observed paths")
    middle.plot(t, curves["truth"].numpy(), color="#1b2733", linewidth=2.2, label="truth")
    middle.plot(t, curves["learned"].numpy(), color="#3fa7d6", linewidth=1.6, label="learned")
    middle.plot(t, 0 * t + 0.5, color="#8a97a3", linewidth=0.8, linestyle=":", label="start")
    place, local = curves["local times"].numpy(), curves["local"].numpy()
    middle.plot(place, local, "x", color="#b5562b", markersize=4, label="moving quadratic variations")
    middle.set(xlabel="time", ylabel="Hurst index", ylim=(0, 1), title="index as a function of time")
    middle.legend(frameon=False, fontsize=8)
    right.plot(history["iteration"], history["loss"], color="#1f5f8b")
    right.set(xlabel="iteration", ylabel="negative log evidence per series", title="training")
    return figure


def main(
    folder: Path = Path("out/time_dependent_hurst"), epochs: int = 100, seed: int = 0
) -> dict[str, float]:
    """Learn the index, draw, compare.

    Args:
        folder: Where the figure, the log and the checkpoint go; a run that was killed goes on.
        epochs: Steps of the training, each over all series.
        seed: Of data and weights.

    Returns:
        ``mean_error`` and ``largest_error``: of the learned index, the first and last twentieth of the time
        left out; ``constant_error``: mean error of the best constant; ``local_error``: that of moving
        quadratic variations, which know nothing of the noise; ``scale`` and ``noise``: learned ones, of true
        1 and 0.05; ``loss_before`` and ``loss``: negative log evidence of a series.
    """
    series = observe(seed, SERIES)
    model, noise = build(seed)
    rows = NoiseStream(seed, 0, SERIES)
    with torch.no_grad():
        before = -model.elbo(series, rows).elbo.mean().item()
    settings = LatentTraining(
        batch=SERIES, fit=FitSettings(epochs, rate=0.1, average=0.0, log_every=max(1, epochs // 40))
    )
    model, history = train_latent(
        model,
        series,
        seed=seed,
        settings=settings,
        checkpoint=folder / "checkpoint.pt",
        log=folder / "log.csv",
    )
    noise = cast(MultifractionalNoise, model.noise)
    with torch.no_grad():
        learned = noise.hurst(TIMES)
        after = -model.elbo(series, rows).elbo.mean().item()
        scale = model.diffusion(TIMES[0], torch.zeros(1, 1, dtype=torch.float64)).item()
    local = local_index(series.values[..., 0], window=16, stride=2)
    middle = local.position
    found = local.H.nanmean(0)
    curves = {"truth": truth(TIMES), "learned": learned, "local times": TIMES[middle], "local": found}
    plot(series, curves, history).savefig(folder / "figure.png", dpi=130)
    inner = (TIMES >= 0.05) & (TIMES <= 0.95)
    gaps = (learned - truth(TIMES)).abs()[inner]
    best = truth(TIMES)[inner]
    return {
        "mean_error": gaps.mean().item(),
        "largest_error": gaps.max().item(),
        "constant_error": (best - best.median()).abs().mean().item(),
        "local_error": (found - truth(TIMES[middle])).abs().mean().item(),
        "scale": scale,
        "noise": cast(Gaussian, model.likelihood).deviation.item(),
        "loss_before": before,
        "loss": after,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out/time_dependent_hurst"))
    options = parser.parse_args()
    print(main(options.out, options.epochs, options.seed))
