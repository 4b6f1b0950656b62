# %% [markdown]
# # Bridges of fractional noise, for nine Hurst indices
#
# Fractional Brownian motion $B^H$ is observed once, with noise: $o = B^H_2 + \varepsilon$, $\varepsilon \sim
# \mathcal N(0, 0.1^2)$. How uncertain is the path in between? For the process itself the answer is Gaussian
# regression with the covariance $\tfrac12 (s^{2H} + t^{2H} - |t - s|^{2H})$.
#
# A Markov approximation $\hat B = \sum_k \omega_k Y_k$ makes it a chain: its posterior is exact by a filter
# and its paths are drawn by moving the noise: every path has the evidence as its weight. Whether its answer
# is right depends on the rates of the $Y_k$ alone. The five rates of the published method miss it away from
# $H \approx 0.4$; the automatic grid does not.

# %%
"""Bridges of fractional Brownian motion: exact, and by two Markov approximations."""

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from inference.fractional import GuidedPosterior, Observations, fractional_chain, log_evidence, smoothed
from sde import NoiseStream
from sde.noise import MarkovFBM

INDICES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
DEVIATION, VALUE, STOP = 0.1, 0.0, 2.0
TIMES = torch.linspace(0, STOP, 41, dtype=torch.float64)
SEEN = Observations([len(TIMES) - 1], torch.tensor([VALUE], dtype=torch.float64), DEVIATION)


def automatic(hurst: float) -> MarkovFBM:
    """The library's rates, for this interval and its steps."""
    return MarkovFBM(hurst, T=STOP, dt=0.01)


def published(hurst: float) -> MarkovFBM:
    """Five rates between 1/20 and 20, with weights for the horizon 6, as in the paper."""
    return MarkovFBM(hurst, K=5, T=6.0, grid="paper")


# %%
def exact(hurst: float) -> tuple[Tensor, Tensor]:
    """Standard deviations of the bridge, and the log evidence, of the process itself."""
    s, t = TIMES[:, None], TIMES[None, :]
    covariance = 0.5 * (s ** (2 * hurst) + t ** (2 * hurst) - (s - t).abs() ** (2 * hurst))
    variance = covariance[-1, -1] + DEVIATION**2
    remaining = covariance.diagonal() - covariance[:, -1] ** 2 / variance
    evidence = torch.distributions.Normal(0.0, variance.sqrt()).log_prob(torch.tensor(VALUE).double())
    return remaining.clamp(min=0).sqrt(), evidence


def plot(bands: dict[float, dict[str, Tensor]], paths: dict[float, Tensor]) -> Figure:
    """One panel for each index: standard deviations, and some paths of the posterior."""
    figure = Figure(figsize=(9.6, 7.2), layout="constrained")
    axes = figure.subplots(3, 3, sharex=True).flat
    for axis, hurst in zip(axes, INDICES, strict=True):
        t = TIMES.numpy()
        axis.plot(t, paths[hurst].T.numpy(), color="#8a97a3", linewidth=0.6, alpha=0.6)
        band = bands[hurst]
        styles = (
            ("exact", {"color": "#1b2733", "linewidth": 2.2, "label": "exact"}),
            ("automatic", {"color": "#3fa7d6", "linewidth": 1.4, "label": "12 rates, automatic"}),
            ("published", {"color": "#d1495b", "linestyle": "--", "label": "5 rates, published"}),
        )
        for name, style in styles:
            axis.plot(t, band[name], **style)
            axis.plot(t, -band[name], **(style | {"label": None}))
        axis.set_title(f"H = {hurst}", fontsize=10)
    for axis in figure.axes[6:]:
        axis.set_xlabel("time")
    for axis in figure.axes[::3]:
        axis.set_ylabel("± standard deviation")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False)
    return figure


def main(folder: Path = Path("out/fractional_bridge")) -> dict[str, float]:
    """Compute the bridges, draw, compare.

    Args:
        folder: Where the figure goes.

    Returns:
        ``automatic`` and ``published``: the largest relative errors of the standard deviation at time 1 over
        the indices 0.2 to 0.8; ``evidence``: the largest error of the log evidence with the automatic grid
        there; ``spread``: the largest standard deviation of the path log-weights.
    """
    bands, paths = {}, {}
    numbers: dict[str, float] = {"automatic": 0.0, "published": 0.0, "evidence": 0.0, "spread": 0.0}
    middle = len(TIMES) // 2
    for hurst in INDICES:
        deviation, evidence = exact(hurst)
        bands[hurst] = {"exact": deviation}
        for name, make in (("automatic", automatic), ("published", published)):
            found = smoothed(fractional_chain(make(hurst), TIMES), SEEN)
            bands[hurst][name] = found.variance.clamp(min=0).sqrt()
            if 0.2 <= hurst <= 0.8:
                error = abs(float(bands[hurst][name][middle] / deviation[middle]) - 1)
                numbers[name] = max(numbers[name], error)
        chain = fractional_chain(automatic(hurst), TIMES)
        drawn = GuidedPosterior(chain, SEEN).sample(NoiseStream(seed=1, start=0, stop=12))
        paths[hurst] = chain.process(drawn.states)
        numbers["spread"] = max(numbers["spread"], float(drawn.log_weights.std()))
        if 0.2 <= hurst <= 0.8:
            gap = abs(float(log_evidence(chain, SEEN)) - float(evidence))
            numbers["evidence"] = max(numbers["evidence"], gap)
    folder.mkdir(parents=True, exist_ok=True)
    plot(bands, paths).savefig(folder / "figure.png", dpi=150)
    return numbers


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/fractional_bridge"))
    print(main(parser.parse_args().out))
