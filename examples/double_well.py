# %% [markdown]
# # The drift of a double well, with an uncertainty band
#
# A particle hops between two wells, and is seen with noise at instants that are not equally spaced:
#
# $$ \mathrm dX = (X - X^3)\,\mathrm dt + \sigma\,\mathrm dW, \qquad o_i = X_{t_i} + \varepsilon_i. $$
#
# The deviation of the measurements is known. A network learns the drift, and a number the size of the noise
# that moves the particle, from the evidence bound of the observations.
# How far is the drift to be trusted? Series are resampled with replacement and the model trained again from
# other weights: where the members of this ensemble agree, the data say what the drift is; beyond the wells,
# where little was seen, they part. The band shows what chance in data and training does. It does not show the
# bias that is left because the posterior is an approximation: drift and noise are learned a little too small,
# and the band holds the true drift at only about half of the visited states, and at none far outside.

# %%
"""A drift learned from noisy series of a double well, with the band of a bootstrap ensemble."""

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from inference.encoders import GRUEncoder
from inference.latent_sde import ConstantDiffusion, LatentSDE, NeuralDrift
from inference.latent_training import LatentTraining, train_latent
from inference.likelihoods import Gaussian
from inference.series import Series
from inference.training import FitSettings
from sde import SDE, NoiseStream, NoiseStructure, Purpose, solve

SIGMA, NOISE = 0.7, 0.3
NUM_SERIES, NUM_TIMES, LENGTH = 256, 20, 3.0
GRID = torch.linspace(-2.2, 2.2, 111)


def drift(time: Tensor, state: Tensor) -> Tensor:
    """True drift."""
    return state - state**3


def observed(noise: NoiseStream) -> tuple[Series, Tensor]:
    """Noisy series at irregular instants, and the true paths there, shape ``(n, T, 1)``."""
    gaps = NoiseStream(noise.seed, 0, 1).fork("instants").uniforms(NUM_TIMES - 1)[0] + 0.2
    times = torch.cat((torch.zeros(1), gaps.cumsum(0) * (LENGTH / gaps.sum())))
    sde = SDE(drift, lambda t, x: torch.full_like(x, SIGMA), NoiseStructure.ADDITIVE)
    start = noise.normals(1, purpose=Purpose.INITIAL_STATE)
    truth = solve(sde, start, times, noise, max_step=0.01)
    values = truth + NOISE * noise.normals(NUM_TIMES, purpose=Purpose.OBSERVATION, channels=1)
    return Series(times, values), truth


# %% [markdown]
# The latent state is what is observed, so the decoder is the identity and the drift can be read off.


# %%
def member(series: Series, seed: int, iterations: int, folder: Path) -> LatentSDE:
    """Train a model on resampled series."""
    uniforms = NoiseStream(seed, 0, 1).fork("resampling").uniforms(len(series), purpose=Purpose.RESAMPLING)
    model = LatentSDE(
        drift=NeuralDrift(1, width=32, seed=seed),
        diffusion=ConstantDiffusion(1, start=1.0),
        decoder=nn.Identity(),
        likelihood=Gaussian(1, deviation=NOISE, learned=False),
        encoder=GRUEncoder(1, 32, seed=seed),
        latent_dim=1,
        max_step=0.05,
        seed=seed,
        width=64,
    )
    settings = LatentTraining(
        batch=32,
        annealing=iterations // 4,
        fit=FitSettings(iterations, rate=1e-2, clip=100.0, average=0.98, log_every=max(1, iterations // 20)),
    )
    model, _ = train_latent(
        model,
        series.select((uniforms[0] * len(series)).long()),
        seed=seed,
        settings=settings,
        checkpoint=folder / f"member_{seed}.pt",
        log=folder / f"member_{seed}.csv",
    )
    return model


def plot(drifts: Tensor, truth: Tensor, series: Series) -> Figure:
    """The band of the drift, and some of the series."""
    figure = Figure(figsize=(9.6, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    mean, spread = drifts.mean(0), drifts.std(0)
    x = GRID.numpy()
    left.fill_between(
        x, mean - 2 * spread, mean + 2 * spread, color="#1f5f8b", alpha=0.25, lw=0, label="± 2 deviations"
    )
    left.plot(x, mean, color="#1f5f8b", linewidth=1.8, label="learned drift")
    left.plot(x, drift(GRID, GRID), color="#1b2733", linestyle="--", linewidth=1.2, label="truth")
    left.set(xlabel="$x$", ylabel="drift", ylim=(-4, 4))
    weights = left.twinx()
    weights.hist(truth.flatten().numpy(), bins=60, range=(-2.2, 2.2), color="#8a97a3", alpha=0.4)
    weights.set(yticks=[], ylim=(0, 2500))
    left.legend(frameon=False, loc="lower left", fontsize=8)
    for row in range(3):
        (line,) = right.plot(series.times, truth[row, :, 0], linewidth=0.8, alpha=0.7)
        right.plot(series.times, series.values[row, :, 0], ".", color=line.get_color())
    right.set(xlabel="time", ylabel="$X_t$ and observations")
    return figure


def main(
    folder: Path = Path("out/double_well"), epochs: int = 50, members: int = 4, seed: int = 0
) -> dict[str, float]:
    """Train the ensemble, compare with the truth, draw.

    Args:
        folder: Where the figure, logs and checkpoints go; a run that was killed goes on.
        epochs: Passes over the data, 8 steps each.
        members: Size of the ensemble, at least 2.
        seed: Of data; members have the seeds that follow.

    Returns:
        Over the visited states, but for the outermost tenth: ``drift_error``, the root-mean-square error of
        the mean drift; ``zero_error``, that of a drift of zero; ``covered``, the share whose true drift lies
        in the band, far below that of an honest interval. ``widening``: width of the band at +-2.2 over that
        at the wells; ``sigma``: learned, to be compared with 0.7.
    """
    series, truth = observed(NoiseStream(seed, 0, NUM_SERIES))
    models = [member(series, seed + 1 + k, 8 * epochs, folder) for k in range(members)]
    with torch.no_grad():
        drifts = torch.stack([model.drift(GRID[0], GRID[:, None])[:, 0] for model in models])
        states = truth[truth.abs() < truth.abs().flatten().quantile(0.9)][:, None]
        found = torch.stack([model.drift(states[0, 0], states)[:, 0] for model in models])
        sigma = torch.stack([model.diffusion(states[0, 0], states)[0, 0] for model in models])
    folder.mkdir(parents=True, exist_ok=True)
    plot(drifts, truth, series).savefig(folder / "figure.png", dpi=130)
    exact = drift(states, states)[:, 0]
    spread = drifts.std(0)
    wells = (GRID.abs() - 1).abs() < 0.1
    return {
        "drift_error": (found.mean(0) - exact).square().mean().sqrt().item(),
        "zero_error": exact.square().mean().sqrt().item(),
        "covered": ((found.mean(0) - exact).abs() < 2 * found.std(0)).float().mean().item(),
        "widening": (0.5 * (spread[0] + spread[-1]) / spread[wells].mean()).item(),
        "sigma": sigma.mean().item(),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--members", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out/double_well"))
    options = parser.parse_args()
    print(main(options.out, options.epochs, options.members, options.seed))
