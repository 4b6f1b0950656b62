# %% [markdown]
# # From a coarse simulation to what a fine one would have found
#
# A bar of two mixed materials is stretched. Its stiffness $a(x)$ jumps at random between a soft and a stiff
# value, over a tenth of its length. The displacement solves
#
# $$ (a\,u')' = f, \qquad u(0) = 0,\quad u(1) = 1, $$
#
# on 16 cells, or cheaply on 4, each with the mean stiffness of the fine cells within. The coarse strain is
# wrong in two ways. It lacks what is finer than its cells, so that the largest strain, at which the bar
# breaks, is far too small; and what it lacks is not a function of what it knows: many fine fields belong to
# one coarse field.
#
# So the answer is a law. Both simulations run on the same stiffness, which couples their strains; a path
# leads from the coarse strain to the fine one through noise, and a network that is given the coarse strain
# learns the law of the fine one. It is compared with a linear regression that has the right covariance of
# what is left.

# %%
"""A bridge between two simulators, learned from runs of both on the same random fields."""

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from inference.forecasting import Forecaster, ForecastSettings, train_forecaster
from inference.scores import Coverage, RankHistogram, coverage, crps
from inference.training import FitSettings
from sde import NoiseStream, Purpose

FINE, COARSE, LENGTH, LOAD = 16, 4, 0.15, 0.5
RATIO = FINE // COARSE
MEMBERS = 39
COLOURS = {"coarse": "#d9a441", "fine": "#1b2733", "regression": "#8a97a3", "bridge": "#1f5f8b"}


def stiffness(noise: NoiseStream) -> Tensor:
    """Stiffness of the fine cells, shape ``(n, 16)``, between 0.37 and 2.7."""
    x = (torch.arange(FINE, dtype=torch.float64) + 0.5) / FINE
    covariance = (-(x[:, None] - x).abs() / LENGTH).exp()
    normals = noise.normals(FINE, purpose=Purpose.FIELD, dtype=torch.float64)
    return (normals @ torch.linalg.cholesky(covariance).T).tanh().exp()


def strain(modulus: Tensor) -> Tensor:
    """Strain of each cell of bars of given stiffness, shape ``(n, cells)``: the finite-volume solution.

    The stress is a constant plus the load to the left, and the constant is that of the elongation.
    """
    cells = modulus.shape[1]
    load = LOAD * (torch.arange(cells, dtype=modulus.dtype) + 0.5) / cells
    constant = (1 - (load / modulus).mean(1, keepdim=True)) / (1 / modulus).mean(1, keepdim=True)
    return (constant + load) / modulus


def both(noise: NoiseStream) -> tuple[Tensor, Tensor]:
    """Strains of both simulators on the same fields, each on the fine cells, shape ``(n, 16)``."""
    modulus = stiffness(noise)
    coarse = strain(modulus.unflatten(1, (COARSE, RATIO)).mean(2))
    return coarse.repeat_interleave(RATIO, 1), strain(modulus)


# %% [markdown]
# Strains are positive, and bridge and regression work with their logarithms. Both know the law of the strain
# in all places together, so that they can be asked for its maximum. The bridge has that law nearly right, in
# the mean and in its tail, where the regression is far too heavy. Given one coarse field it is still a little
# too sure: intervals of the largest strain hold the truth less often than they say.


# %%
def regression(coarse: Tensor, fine: Tensor, given: Tensor, noise: NoiseStream) -> Tensor:
    """Draws from the Gaussian law whose mean is linear in the coarse strain, fitted to pairs."""
    columns = torch.cat((coarse[:, ::RATIO].log(), torch.ones_like(coarse[:, :1])), 1)
    weights = torch.linalg.lstsq(columns, fine.log()).solution
    left = fine.log() - columns @ weights
    factor = torch.linalg.cholesky(left.T @ left / len(left) + 1e-9 * torch.eye(FINE, dtype=fine.dtype))
    known = torch.cat((given[:, ::RATIO].log(), torch.ones_like(given[:, :1])), 1)
    return (known @ weights + noise.normals(FINE, dtype=torch.float64) @ factor.T).exp()


def spectrum(values: Tensor) -> Tensor:
    """Mean power of each wavenumber, over all but the last axis."""
    waves = torch.fft.rfft(values, norm="forward").abs().square()
    return waves.flatten(0, -2).mean(0)[1:]


def plot(coarse: Tensor, fine: Tensor, drawn: dict[str, Tensor], ranks: dict[str, RankHistogram]) -> Figure:
    """One bar, the law of a strain, spectra, the largest strain, its ranks, and scores along the bar."""
    figure = Figure(figsize=(11, 6.4), layout="constrained")
    (one, law, power), (peak, rank, score) = figure.subplots(2, 3)
    x = torch.arange(FINE + 1) / FINE
    for member in drawn["bridge"][0, :3]:
        one.stairs(member, x, color=COLOURS["bridge"], linewidth=0.8, alpha=0.7)
    one.stairs(fine[0], x, color=COLOURS["fine"], linewidth=1.4, label="fine")
    one.stairs(coarse[0], x, color=COLOURS["coarse"], linewidth=2, label="coarse")
    one.plot([], [], color=COLOURS["bridge"], linewidth=0.8, label="bridge, three draws")
    one.set(xlabel="place along the bar", ylabel="strain")
    strains = {"coarse": coarse, "fine": fine, **drawn}
    bins = torch.linspace(0, 3.5, 36).tolist()
    for name, values in strains.items():
        style = {"color": COLOURS[name], "histtype": "step", "label": name}
        law.hist(values.flatten(), bins, density=True, **style)
        power.semilogy(range(1, FINE // 2 + 1), spectrum(values), color=COLOURS[name], label=name)
        peak.hist(values.amax(-1).flatten(), torch.linspace(0, 5, 51).tolist(), density=True, **style)
    law.set(xlabel="strain of a cell", ylabel="density", ylim=(0, 1.6))
    peak.set(xlabel="largest strain", ylabel="density")
    power.set(xlabel="waves along the bar", ylabel="power of the strain", ylim=(1e-3, 0.2))
    for name, histogram in ranks.items():
        counts = histogram.merged(8).counts
        rank.stairs(counts / counts.sum() * 8, color=COLOURS[name], label=name)
    rank.axhline(1, color="#8a97a3", linewidth=0.8, linestyle=":")
    rank.set(
        xlabel="rank of the true largest strain, in eighths", ylabel="frequency / expected", ylim=(0, None)
    )
    places = (x[1:] + x[:-1]) / 2
    score.plot(places, (coarse - fine).abs().mean(0), color=COLOURS["coarse"], label="coarse")
    for name, members in drawn.items():
        score.plot(places, crps(members, fine).mean(0), color=COLOURS[name], label=name)
    score.set(xlabel="place along the bar", ylabel="CRPS of the strain", ylim=(0, None))
    for axis in (one, law, power, peak, rank, score):
        axis.legend(frameon=False, fontsize=8)
    return figure


# %%
def learned(coarse: Tensor, fine: Tensor, seed: int, epochs: int, folder: Path) -> Forecaster:
    """The bridge, from pairs of strains."""
    settings = ForecastSettings(batch=512, width=192, steps=25, fit=FitSettings(160 * epochs, rate=2e-3))
    return train_forecaster(
        coarse.log(), fine.log(), seed=seed, settings=settings, checkpoint=folder / "bridge.pt"
    )[0]


def main(
    folder: Path = Path("out/coarse_to_fine"), epochs: int = 40, cases: int = 480, seed: int = 0
) -> dict[str, float]:
    """Run both simulators, learn the bridge, verify it on fields that it has not seen, draw.

    Args:
        folder: Where the figure and the checkpoint go; a run that was killed goes on.
        epochs: Passes over the 81920 pairs, 160 iterations each.
        cases: Fields to verify with.
        seed: Of everything random.

    Returns:
        ``coarse``, ``regression``, ``bridge``: mean CRPS of the strain (of one field: its absolute error).
        ``power_coarse``, ``power_regression``, ``power_bridge``: power above the coarse cells' wavenumber
        over that of the fine strain. ``peak_fine`` and ``peak_coarse``, ``peak_regression``, ``peak_bridge``:
        mean largest strain. ``coverage_bridge``, ``coverage_regression``: of intervals of level 0.8 of the
        largest strain, with ``coverage_error``.
    """
    coarse, fine = both(NoiseStream(seed, 0, 81_920))
    bridge = learned(coarse, fine, seed, epochs, folder)
    fresh = NoiseStream(seed + 1, 0, cases)
    given, truth = both(fresh)
    many, noise = given.repeat_interleave(MEMBERS, 0), NoiseStream(seed + 2, 0, cases * MEMBERS)
    drawn = {
        "regression": regression(coarse, fine, many, noise),
        "bridge": bridge(many.log(), noise).double().exp(),
    }
    drawn = {name: values.unflatten(0, (cases, MEMBERS)) for name, values in drawn.items()}
    peaks = {name: members.amax(2) for name, members in drawn.items()}
    ranks = {name: RankHistogram.of(members, truth.amax(1), fresh) for name, members in peaks.items()}
    folder.mkdir(parents=True, exist_ok=True)
    plot(given, truth, drawn, ranks).savefig(folder / "figure.png", dpi=130)
    covered: dict[str, Coverage] = {
        name: coverage(members, truth.amax(1), 0.8, fresh) for name, members in peaks.items()
    }
    high = slice(COARSE // 2, None)
    reference = spectrum(truth)[high].sum()
    numbers = {"coarse": float((given - truth).abs().mean()), "peak_fine": float(truth.amax(1).mean())}
    for name, values in {"coarse": given, **drawn}.items():
        numbers[f"power_{name}"] = float(spectrum(values)[high].sum() / reference)
        numbers[f"peak_{name}"] = float(values.amax(-1).mean())
    for name, members in drawn.items():
        numbers[name] = float(crps(members, truth).mean())
        numbers[f"coverage_{name}"] = covered[name].share
    return numbers | {"coverage_error": covered["bridge"].standard_error}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--cases", type=int, default=480)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out/coarse_to_fine"))
    options = parser.parse_args()
    print(main(options.out, options.epochs, options.cases, options.seed))
