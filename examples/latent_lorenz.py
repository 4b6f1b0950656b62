# %% [markdown]
# # A latent equation learns the stochastic Lorenz system
#
# Three components are seen with noise, and three values in ten are missing. The dynamics behind them,
#
# $$ \mathrm dX = f(X)\,\mathrm dt + \alpha\,\mathrm dW, \qquad
#    f = \bigl(10\,(y - x),\; x\,(28 - z) - y,\; x y - \tfrac83 z\bigr), $$
#
# are not told to the model. It learns a drift, a diffusion and a decoder, and beside them a posterior: a
# control that steers the noise so that paths meet the observations. What is maximised is a lower bound of the
# evidence,
#
# $$ \log p(o) \ge \mathbb E\Bigl[\sum_i \log p(o_i \mid X_{t_i}) - \tfrac12 \int |u|^2\,\mathrm dt\Bigr]
#    - \mathrm{KL}. $$
#
# Then it fills what is missing, and forecasts the last quarter of series that it has not seen. Both are good
# after a minute. Paths of the learned prior are not yet: that takes many more epochs.

# %%
"""A latent stochastic differential equation of the Lorenz system: imputation and forecast with intervals."""

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from inference.latent_samplers import Prediction, PriorSampler, predict
from inference.latent_sde import LatentSDE, latent_sde
from inference.latent_training import LatentTraining, train_latent
from inference.series import Series
from inference.training import FitSettings
from sde import SDE, NoiseStream, NoiseStructure, Purpose, solve

TIMES = torch.linspace(0, 1, 41)
SEEN = 31  # instants that a forecast is made from
NOISE, MISSING = 0.05, 0.3  # deviation of the observations, in units of the data; share that is missing


def lorenz(time: Tensor, state: Tensor) -> Tensor:
    """Drift of the Lorenz system."""
    x, y, z = state.unbind(1)
    return torch.stack((10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z), 1)


def paths(noise: NoiseStream) -> Tensor:
    """True paths, each component divided by its deviation, shape ``(n, T, 3)``."""
    sde = SDE(lorenz, lambda t, x: torch.full_like(x, 0.15), NoiseStructure.ADDITIVE)
    start = noise.normals(3, purpose=Purpose.INITIAL_STATE)
    states = solve(sde, start, TIMES, noise, substeps=10)
    return (states - torch.tensor([0.0, 0.0, 11.0])) / torch.tensor([7.4, 8.8, 9.3])


def observe(truth: Tensor, noise: NoiseStream) -> Series:
    """The paths with noise, and NaN for what is missing."""
    where = {"purpose": Purpose.OBSERVATION, "channels": 3}
    values = truth + NOISE * noise.normals(len(TIMES), **where)
    missing = noise.fork("missing").uniforms(len(TIMES), **where) < MISSING
    return Series(TIMES, torch.where(missing, torch.nan, values))


# %% [markdown]
# The posterior of a series that ends early follows the learned equation from there: that is a forecast.


# %%
def forecast(model: LatentSDE, series: Series, noise: NoiseStream) -> Prediction:
    """Predict all instants from the first ones."""
    seen = Series(TIMES[:SEEN], series.values[:, :SEEN])
    return predict(model, seen, TIMES, noise, paths=len(noise) // len(series))


def plot(truth: Tensor, series: Series, guess: Prediction, prior: Tensor, history: dict) -> Figure:
    """Forecasts of two series, paths of the learned equation beside true ones, and the training."""
    figure = Figure(figsize=(11, 6.4), layout="constrained")
    grid = figure.add_gridspec(2, 3)
    t = TIMES.numpy()
    for row in range(2):
        axes = figure.add_subplot(grid[row, 0])
        for k, (name, colour) in enumerate(zip("xyz", ("#1f5f8b", "#b5562b", "#5a7d2a"), strict=True)):
            axes.fill_between(
                t, guess.lower[row, :, k], guess.upper[row, :, k], color=colour, alpha=0.2, lw=0
            )
            axes.plot(t, truth[row, :, k], color=colour, linewidth=1.2, label=name)
            axes.plot(t[:SEEN], series.values[row, :SEEN, k], ".", color=colour, markersize=4)
        axes.axvline(t[SEEN - 1], color="#1b2733", linewidth=0.8, linestyle=":")
        axes.set(xlabel="time", ylabel="standardised", title="truth, observations, 90 % interval")
        axes.legend(frameon=False, ncol=3, fontsize=8)
    for row, (name, values) in enumerate((("true paths", truth), ("learned prior", prior))):
        axes = figure.add_subplot(grid[row, 1], projection="3d")
        for path in values[:40]:
            axes.plot(*path.T.numpy(), linewidth=0.5, color="#1f5f8b", alpha=0.6)
        axes.set_title(name)
        axes.set(xlim=(-3, 3), ylim=(-3, 3), zlim=(-2, 4))
    axes = figure.add_subplot(grid[:, 2])
    axes.plot(history["iteration"], history["loss"], color="#8a97a3", label="training")
    axes.plot(history["iteration"], history["validation"], color="#1f5f8b", label="validation")
    axes.set(xlabel="iteration", ylabel="negative bound per series", yscale="symlog")
    axes.legend(frameon=False)
    return figure


def main(folder: Path = Path("out/latent_lorenz"), epochs: int = 80, seed: int = 0) -> dict[str, float]:
    """Train, impute, forecast, draw.

    Args:
        folder: Where the figure, the log and the checkpoint go; a run that was killed goes on.
        epochs: Passes over the data, 8 steps each.
        seed: Of data, weights and paths.

    Returns:
        ``bound_before`` and ``bound``: of a test series; ``imputation_error`` and ``forecast_error``:
        root-mean-square errors of means, in standard deviations of the data; ``last_value_error``: that of
        repeating the last value seen; ``forecast_coverage``: share of the hidden values in their 90 %
        intervals; ``prior_gap``: largest difference of mean and deviation of the learned prior from the
        truth at the last instant.
    """
    root = NoiseStream(seed, 0, 256)
    train = observe(paths(root), root)
    held = root.fork("test")[:64]
    truth = paths(held)
    test = observe(truth, held)
    model = latent_sde(3, 4, max_step=0.025, seed=seed, width=64)
    before = model.elbo(test, NoiseStream(seed, 0, 64)).elbo.mean().item()
    steps = 8 * epochs
    settings = LatentTraining(
        batch=32,
        annealing=steps // 4,
        fit=FitSettings(steps, rate=5e-3, clip=100.0, average=0.99, log_every=max(1, steps // 40)),
    )
    model, history = train_latent(
        model,
        train,
        seed=seed,
        settings=settings,
        validation=observe(paths(root.fork("validation")[:32]), root.fork("validation")[:32]),
        checkpoint=folder / "checkpoint.pt",
        log=folder / "log.csv",
    )
    filled = predict(model, test, TIMES, NoiseStream(seed, 0, 64 * 50), paths=50)
    guess = forecast(model, test, NoiseStream(seed, 0, 64 * 100))
    prior = PriorSampler(model, TIMES, 3)(torch.zeros(2000, 0), NoiseStream(seed, 0, 2000))
    plot(truth, test, guess, prior, history).savefig(folder / "figure.png", dpi=120)
    later = slice(SEEN, None)
    hidden = truth[:, later] + NOISE * held.fork("later").normals(len(TIMES) - SEEN, channels=3)
    inside = (hidden > guess.lower[:, later]) & (hidden < guess.upper[:, later])
    other = paths(root.fork("more"))[:, -1]
    gaps = (prior[:, -1].mean(0) - other.mean(0), prior[:, -1].std(0) - other.std(0))
    return {
        "bound_before": before,
        "bound": model.elbo(test, NoiseStream(seed, 0, 64)).elbo.mean().item(),
        "imputation_error": (filled.mean - truth)[~test.mask].square().mean().sqrt().item(),
        "forecast_error": (guess.mean - truth)[:, later].square().mean().sqrt().item(),
        "last_value_error": (truth[:, SEEN - 1 : SEEN] - truth)[:, later].square().mean().sqrt().item(),
        "forecast_coverage": inside.float().mean().item(),
        "prior_gap": torch.cat(gaps).abs().max().item(),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=80)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out/latent_lorenz"))
    options = parser.parse_args()
    print(main(options.out, options.epochs, options.seed))
