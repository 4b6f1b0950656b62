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
# Every estimator of the library is applied to both, and one that models the noise. None is more than a
# description at lags of days to weeks: over months the volatility returns to its mean, as the variograms
# show.

# %%
"""Hurst index of the log-volatility of the S&P 500 and of the VIX, with and without a model of the noise."""

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
    dfa,
    markov_likelihood,
    maximum_likelihood,
    quadratic_variations,
    rescaled_range,
    variogram,
    whittle,
)

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
        "Markov likelihood\nwith noise": markov_likelihood(times, path),
    }


def draw_variogram(axes: Axes, path: Tensor, name: str, noisy: HurstEstimate) -> None:
    """Mean squares of differences against their lag, and the law with noise that was fitted."""
    lags = np.unique(np.geomspace(1, 250, 25).astype(int))
    seen = [float((path[lag:] - path[:-lag]).square().mean()) for lag in lags]
    h, scale, noise = (float(part) for part in (noisy.H, noisy.scale, noisy.noise))  # pyright: ignore
    axes.plot(lags, seen, "o", color=COLOURS[name], markersize=4, label=name)
    fitted = scale**2 * lags ** (2 * h) + 2 * noise**2
    axes.plot(lags, fitted, color=COLOURS[name], linewidth=1.5, label=f"noise + fBM, H = {h:.2f}")


def plot(series: dict[str, Tensor], found: dict[str, dict[str, HurstEstimate]]) -> Figure:
    """The variograms, and every estimate with its 95 % interval."""
    figure = Figure(figsize=(9.6, 4.0), layout="constrained")
    left, right = figure.subplots(1, 2)
    names = list(next(iter(found.values())))
    for offset, (name, path) in zip((0.12, -0.12), series.items(), strict=True):
        draw_variogram(left, path, name, found[name][names[-1]])
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
        For each series and estimator: the index and the ends of its 95 % interval.
    """
    series = load()
    found = {name: estimates(path) for name, path in series.items()}
    folder.mkdir(parents=True, exist_ok=True)
    plot(series, found).savefig(folder / "figure.png", dpi=150)
    return {
        name: {method.replace("\n", " "): numbers(e) for method, e in methods.items()}
        for name, methods in found.items()
    }


if __name__ == "__main__":
    for name, methods in main().items():
        print(name)
        for method, (h, low, high) in methods.items():
            print(f"  {method:<30} {h:.3f}  [{low:.3f}, {high:.3f}]")
