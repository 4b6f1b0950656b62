# %% [markdown]
# # The drift of a double well, with an uncertainty band that can be trusted
#
# A particle hops between two wells, and is seen with noise at instants that are not equally spaced:
#
# $$ \mathrm dX = (X - X^3)\,\mathrm dt + \sigma\,\mathrm dW, \qquad o_i = X_{t_i} + \varepsilon_i. $$
#
# The deviation of the measurements is known; the drift and the size of the noise are not. The drift is a sum
# of bumps, $b(x) = \sum_j c_j \varphi_j(x)$, wide enough for any smooth function between -2.8 and 2.8 and
# not told that the truth is a cubic. By Girsanov's theorem the log density of a path is quadratic in $c$, so
# given the path the coefficients are normal. The path is hidden, and is drawn along with them: particle Gibbs
# sampling, whose draws have the posterior as their law. Nothing is approximated but time, by steps of 0.03.
#
# So the band means what it says: at each state it holds the drift with probability 0.9. Over repeated data
# sets it holds the true drift at nine in ten of the states that the particle visits, which a band of
# retrained networks with approximate posteriors does not.

# %%
"""A drift learned from noisy series of a double well: its posterior, and how often the band is right."""

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from inference.drift_posterior import DriftDraws, HiddenPaths, radial_features, sample_drift
from sde import SDE, NoiseStream, NoiseStructure, Purpose, solve

SIGMA, NOISE, START = 0.7, 0.3, 0.7
NUM_TIMES, LENGTH, STEP = 20, 3.0, 0.03
GRID = torch.linspace(-2.2, 2.2, 111, dtype=torch.float64)
FEATURES = radial_features(torch.linspace(-2.8, 2.8, 15), 0.5)
PRIOR = 6.0  # deviation of a coefficient: drifts of about 9 anywhere


def drift(time: Tensor, state: Tensor) -> Tensor:
    """True drift."""
    return state - state**3


def observed(seed: int, sets: int, series: int) -> tuple[HiddenPaths, Tensor]:
    """Noisy series at irregular instants on a grid of short steps, and the true states there."""
    shared = NoiseStream(seed, 0, 1).fork("instants")
    gaps = shared.uniforms(NUM_TIMES - 1, dtype=torch.float64)[0] + 0.2
    gaps = gaps * (LENGTH / gaps.sum())
    counts = (gaps / STEP).ceil().long()
    times = torch.cat((torch.zeros(1), (gaps / counts).repeat_interleave(counts).cumsum(0)))
    steps = torch.cat((torch.zeros(1, dtype=torch.long), counts.cumsum(0)))
    noise = NoiseStream(seed, 0, sets * series)
    start = START * noise.normals(1, purpose=Purpose.INITIAL_STATE, dtype=torch.float64)
    sde = SDE(drift, lambda t, x: torch.full_like(x, SIGMA), NoiseStructure.ADDITIVE)
    truth = solve(sde, start, times[steps], noise, max_step=0.005)[..., 0]
    values = truth + NOISE * noise.normals(NUM_TIMES, purpose=Purpose.OBSERVATION, dtype=torch.float64)
    shape = (sets, series, NUM_TIMES)
    return HiddenPaths(times, steps, values.view(shape), NOISE, START), truth.view(shape)


# %% [markdown]
# The band is one of quantiles at each state. It is judged where the particle was: at all true states of a
# data set at once, so a state counts as often as it was visited.


# %%
def covered(draws: DriftDraws, truth: Tensor) -> Tensor:
    """The share of visited states where the band holds the true drift, for each data set, shape ``(R,)``."""
    low, _, high = draws.band(FEATURES(GRID))
    inside = (low < drift(GRID, GRID)) & (drift(GRID, GRID) < high)
    place = torch.bucketize(truth.flatten(1), 0.5 * (GRID[1:] + GRID[:-1]))
    return inside.gather(1, place).double().mean(1)


def plot(draws: DriftDraws, truth: Tensor, problem: HiddenPaths) -> Figure:
    """The band of the drift and where the data are, the potential, and some of the series."""
    figure = Figure(figsize=(11.4, 3.8), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.25, 1, 1))
    x, blue, grey, dark = GRID.numpy(), "#1f5f8b", "#8a97a3", "#1b2733"
    low, mid, high = draws.band(FEATURES(GRID))[:, 0]
    left.fill_between(x, low, high, color=blue, alpha=0.25, lw=0, label="90 % band")
    left.plot(x, mid, color=blue, linewidth=1.8, label="posterior median")
    left.plot(x, drift(GRID, GRID), color=dark, linestyle="--", linewidth=1.2, label="truth, $x - x^3$")
    left.set(xlabel="state $x$", ylabel="drift $b(x)$", xlim=(-2.2, 2.2), ylim=(-5, 5))
    weights = left.twinx()
    weights.hist(
        truth[0].flatten().numpy(), bins=55, range=(-2.2, 2.2), color=grey, alpha=0.4, label="visited states"
    )
    weights.set(yticks=[], ylim=(0, 4 * weights.get_ylim()[1]))
    handles = [*left.get_legend_handles_labels()[0], *weights.get_legend_handles_labels()[0]]
    left.legend(handles, [h.get_label() for h in handles], frameon=False, loc="upper right", fontsize=8)
    slopes = torch.einsum("sk,mk->sm", draws.coefficients[:, 0], FEATURES(GRID))
    potentials = -torch.cumulative_trapezoid(slopes, GRID, dim=1)
    potentials = potentials - potentials[:, len(GRID) // 2 - 1, None]
    low, mid, high = potentials.quantile(torch.tensor([0.05, 0.5, 0.95]).to(GRID), dim=0)
    middle.fill_between(x[1:], low, high, color=blue, alpha=0.25, lw=0)
    middle.plot(x[1:], mid, color=blue, linewidth=1.8)
    middle.plot(x, GRID**4 / 4 - GRID**2 / 2, color=dark, linestyle="--", linewidth=1.2)
    middle.set(xlabel="state $x$", ylabel="potential, 0 at $x = 0$", xlim=(-2.2, 2.2), ylim=(-0.8, 2.5))
    seen = problem.times[problem.steps].numpy()
    for row in range(3):
        (line,) = right.plot(seen, truth[0, row], linewidth=0.8, alpha=0.7)
        right.plot(seen, problem.values[0, row], ".", color=line.get_color())
    right.set(xlabel="time", ylabel="states (lines), observations (dots)")
    return figure


def main(
    folder: Path = Path("out/double_well"), series: int = 128, sweeps: int = 500, sets: int = 1, seed: int = 0
) -> dict[str, float]:
    """Sample the posterior, compare with the truth, draw.

    Args:
        folder: Where the figure goes.
        series: Series of a data set.
        sweeps: Draws that are kept; a fifth as many are drawn before.
        sets: Data sets over which the coverage is averaged; the figure shows the first.
        seed: Of data and draws.

    Returns:
        Over the visited states: ``drift_error``, the root-mean-square error of the median drift;
        ``zero_error``, that of a drift of zero; ``covered``, the share whose true drift lies in the band of
        90 %, and ``covered_error``, its standard error over the data sets. ``widening``: width of the band
        at +-2.2 over that at the wells; ``sigma``: median, to be compared with 0.7, and ``sigma_deviation``.
    """
    problem, truth = observed(seed, sets, series)
    draws = sample_drift(
        problem, FEATURES, deviation=PRIOR, seed=seed + 1, sweeps=sweeps, burn=sweeps // 5, particles=12
    )
    folder.mkdir(parents=True, exist_ok=True)
    plot(draws, truth, problem).savefig(folder / "figure.png", dpi=130)
    states = truth[0].flatten()
    found, exact = draws.band(FEATURES(states))[1, 0], drift(states, states)
    low, _, high = draws.band(FEATURES(GRID))[:, 0]
    wells = (GRID.abs() - 1).abs() < 0.1
    share = covered(draws, truth)
    return {
        "drift_error": (found - exact).square().mean().sqrt().item(),
        "zero_error": exact.square().mean().sqrt().item(),
        "covered": share.mean().item(),
        "covered_error": (share.std() / sets**0.5).item() if sets > 1 else float("nan"),
        "widening": (0.5 * (high - low)[[0, -1]].sum() / (high - low)[wells].mean()).item(),
        "sigma": draws.sigma[:, 0].median().item(),
        "sigma_deviation": draws.sigma[:, 0].std().item(),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--series", type=int, default=128)
    parser.add_argument("--sweeps", type=int, default=500)
    parser.add_argument("--sets", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out/double_well"))
    options = parser.parse_args()
    print(main(options.out, options.series, options.sweeps, options.sets, options.seed))
