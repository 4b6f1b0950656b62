# %% [markdown]
# # How rough is volatility?
#
# Gatheral, Jaisson and Rosenbaum (2018) found that the logarithm of realised volatility looks like fractional
# Brownian motion with a Hurst index near 0.1, much rougher than the Brownian motion of classical models:
#
# $$ \log \sigma_t = \log \sigma_0 + \nu B^H_t. $$
#
# Volatility is not observed. What is, is a proxy: here the range-based estimate of Garman and Klass (1980)
# from the daily open, high, low and close of the S&P 500, 1999 to 2018. The logarithm of such a proxy is the
# log-volatility *plus noise*, and noise looks rough: it drags every estimate towards zero (Fukasawa,
# Takabatake and Westphal, 2022). A second series is the VIX, the volatility that options imply for the next
# thirty days: far less noise, but an average over a month, which looks smooth.
#
# Every estimator of the library is applied to both, and one that models the noise. For the latter model the
# *posterior* of the index is computed as well, with a uniform prior, and the scale and the size of the noise
# integrated out. None is more than a description at lags of days to weeks: over months the volatility returns
# to its mean, as the variograms show.

# %%
"""Hurst index of the log-volatility of the S&P 500 and of the VIX, with and without a model of the noise."""

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from sde import NoiseStream
from sde.hurst import (
    HurstEstimate,
    HurstPosterior,
    dfa,
    markov_likelihood,
    markov_posterior,
    maximum_likelihood,
    quadratic_variations,
    rescaled_range,
    variogram,
    whittle,
)

NOISY = "Markov likelihood\nwith noise"
COLOURS = {"S&P 500, range": "#1f5f8b", "VIX": "#b5562b"}


# %% [markdown]
# The data come with the package `arch` (`pip install "sdeuq[data]"`).


# %%
def load() -> dict[str, Tensor]:
    """Daily log-volatility by name, shape ``(T,)`` each."""
    from arch.data import sp500, vix

    prices, implied = sp500.load(), vix.load()
    opened, high, low, closed = (np.log(prices[name].to_numpy()) for name in ("Open", "High", "Low", "Close"))
    # Garman & Klass (1980), equation 20: variance of a day from its range.
    variance = 0.5 * (high - low) ** 2 - (2 * math.log(2) - 1) * (closed - opened) ** 2
    variance = variance[variance > 0]
    return {
        "S&P 500, range": torch.from_numpy(0.5 * np.log(variance)),
        "VIX": torch.from_numpy(np.log(implied["vix"].dropna().to_numpy())),
    }


# %%
def estimates(path: Tensor) -> dict[str, HurstEstimate]:
    """The index by every estimator; the last takes out measurement noise."""
    times, few = torch.arange(len(path), dtype=torch.float64), NoiseStream(0, 0, 100)
    return {
        "quadratic variations": quadratic_variations(path),
        "variogram": variogram(path),
        "DFA": dfa(path, calibration=few),
        "R/S": rescaled_range(path, calibration=few),
        "Whittle": whittle(path),
        "maximum likelihood": maximum_likelihood(path),
        NOISY: markov_likelihood(times, path),
    }


# %% [markdown]
# The likelihood is that of a Kalman filter of the Markov approximation, for many indices and noise levels at
# once; the scale is integrated in closed form.


# %%
def posterior(path: Tensor, estimate: HurstEstimate) -> HurstPosterior:
    """The posterior of the index, with measurement noise."""
    return markov_posterior(torch.arange(len(path), dtype=torch.float64), path, estimate)


def draw_variogram(axes: Axes, path: Tensor, name: str, noisy: HurstEstimate) -> None:
    """Mean squares of differences against their lag, and the law with noise that was fitted."""
    lags = np.unique(np.geomspace(1, 250, 25).astype(int))
    seen = [float((path[lag:] - path[:-lag]).square().mean()) for lag in lags]
    h, scale, noise = (float(part) for part in (noisy.H, noisy.scale, noisy.noise))  # pyright: ignore
    axes.plot(lags, seen, "o", color=COLOURS[name], markersize=4, label=name)
    fitted = scale**2 * lags ** (2 * h) + 2 * noise**2
    axes.plot(lags, fitted, color=COLOURS[name], linewidth=1.5, label=f"noise + fBM, H = {h:.2f}")


def draw_posterior(axes: Axes, law: HurstPosterior, name: str, noisy: HurstEstimate) -> None:
    """The posterior density, its 95 % credible interval, and the confidence interval below."""
    colour = COLOURS[name]
    index, density = law.index.numpy(), law.density.numpy()
    axes.plot(index, density, color=colour, linewidth=1.6, label=name)
    low, high = (float(end) for end in law.interval())
    inside = (index >= low) & (index <= high)
    axes.fill_between(index[inside], density[inside], color=colour, alpha=0.25, linewidth=0)
    low, high = (float(end) for end in noisy.interval())
    level = -0.05 * float(law.density.max())
    axes.plot([low, high], [level, level], color=colour, linewidth=2)
    axes.plot(float(noisy.H), level, "o", color=colour, markersize=4)


def plot(
    series: dict[str, Tensor],
    found: dict[str, dict[str, HurstEstimate]],
    laws: dict[str, HurstPosterior],
) -> Figure:
    """The variograms, every estimate with its 95 % interval, and the posteriors."""
    figure = Figure(figsize=(13.5, 4.0), layout="constrained")
    left, right, last = figure.subplots(1, 3)
    names = list(next(iter(found.values())))
    for offset, (name, path) in zip((0.12, -0.12), series.items(), strict=True):
        draw_variogram(left, path, name, found[name][NOISY])
        draw_posterior(last, laws[name], name, found[name][NOISY])
        for row, estimate in enumerate(found[name].values()):
            low, high = (float(end) for end in estimate.interval())
            y = len(names) - row + offset
            right.plot([low, high], [y, y], color=COLOURS[name], linewidth=2)
            right.plot(float(estimate.H), y, "o", color=COLOURS[name], markersize=5)
    left.set(xscale="log", yscale="log", xlabel="lag [days]", ylabel="mean square of differences")
    left.legend(frameon=False, fontsize=8)
    right.axvline(0.5, color="#8a97a3", linewidth=0.8, linestyle="--")
    right.set_yticks(range(len(names), 0, -1), names)
    right.set(xlabel="Hurst index, 95 % intervals", xlim=(0, 0.62))
    last.set(xlabel="Hurst index, model with noise", ylabel="posterior density")
    last.set_title("95 % credible (shaded), confidence (bars)", fontsize=10)
    last.legend(frameon=False, fontsize=8)
    return figure


def numbers(estimate: HurstEstimate) -> tuple[float, float, float]:
    """The index and the ends of its 95 % interval."""
    low, high = estimate.interval()
    return float(estimate.H), float(low), float(high)


def main(folder: Path = Path("out/rough_volatility")) -> dict[str, dict[str, tuple[float, float, float]]]:
    """Estimate the index of both series by every method, and draw.

    Args:
        folder: Where the figure goes.

    Returns:
        For each series and estimator: the index and the ends of its 95 % interval; ``posterior with noise``:
        posterior mean and the ends of the 95 % credible interval.
    """
    series = load()
    found = {name: estimates(path) for name, path in series.items()}
    laws = {name: posterior(path, found[name][NOISY]) for name, path in series.items()}
    folder.mkdir(parents=True, exist_ok=True)
    plot(series, found, laws).savefig(folder / "figure.png", dpi=150)
    table = {
        name: {method.replace("\n", " "): numbers(e) for method, e in methods.items()}
        for name, methods in found.items()
    }
    for name, law in laws.items():
        low, high = law.interval()
        table[name]["posterior with noise"] = float(law.mean), float(low), float(high)
    return table


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/rough_volatility"))
    for name, methods in main(parser.parse_args().out).items():
        print(name)
        for method, (h, low, high) in methods.items():
            print(f"  {method:<30} {h:.3f}  [{low:.3f}, {high:.3f}]")
