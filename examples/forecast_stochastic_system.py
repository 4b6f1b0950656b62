# %% [markdown]
# # Forecasts of a stochastic system, and whether to believe them
#
# The Lorenz equations with noise,
#
# $$ \mathrm dX = f(X)\,\mathrm dt + \sigma\,\mathrm dW, \qquad
#    f(x) = \bigl(10 (x_2 - x_1),\; x_1 (28 - x_3) - x_2,\; x_1 x_2 - \tfrac83 x_3\bigr), $$
#
# are seen at instants a lag apart. A network learns, from pairs of states alone, the law of the state a lag
# after a known one: a path $x_s = (1 - s) x_0 + s^2 x_1 + (1 - s) \sqrt s\, z$ leads from the present state
# to the future one, and the network is its drift. How much noise the sampler uses is chosen after training.
#
# A forecast that says how uncertain it is can be wrong in two ways: it can be vague, and it can be wrong
# about its own uncertainty. The continuous ranked probability score (CRPS) counts both. Its bounds are known
# here: climatology (draw any state) from above and the equation itself, solved with fresh noise, from below.
# Ranks and coverage show the second kind of error alone. Longer forecasts are made lag by lag.

# %%
"""A learned forecaster of the noisy Lorenz system beside climatology, persistence and the equation itself."""

import argparse
import math
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from inference.forecasting import Forecaster, ForecastSettings, train_forecaster
from inference.samplers import leaving_diffusivity
from inference.scores import RankHistogram, coverage, crps, energy_distance, energy_score, spread_skill
from inference.training import FitSettings
from sde import SDE, Heun, NoiseStream, NoiseStructure, Purpose, solve

SIGMA, LAG, SPIN_UP = 3.0, 0.4, 6.0
LEADS, MEMBERS = 5, 39
LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
COLOURS = {"climatology": "#8a97a3", "persistence": "#d9a441", "learned": "#1f5f8b", "equation": "#1b2733"}


def drift(time: Tensor, state: Tensor) -> Tensor:
    """The vector field of Lorenz."""
    x, y, z = state.unbind(-1)
    return torch.stack((10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z), -1)


LORENZ = SDE(drift, lambda t, x: torch.full_like(x, SIGMA), NoiseStructure.ADDITIVE)


def future(start: Tensor, noise: NoiseStream, lags: int = 1) -> Tensor:
    """States at lags 0 to ``lags`` from ``(n, 3)`` states by the equation, ``(n, lags + 1, 3)``."""
    return solve(LORENZ, start, LAG * torch.arange(lags + 1.0), noise, solver=Heun(), max_step=0.01)


def on_attractor(noise: NoiseStream) -> Tensor:
    """A state of each sample after the start is forgotten, shape ``(n, 3)``."""
    start = 5 * noise.normals(3, purpose=Purpose.INITIAL_STATE) + torch.tensor([0.0, 0.0, 25.0])
    return solve(
        LORENZ, start, torch.tensor([0.0, SPIN_UP]), noise.fork("spin-up"), solver=Heun(), max_step=0.01
    )[:, -1]


# %% [markdown]
# Verification: every case is a state that training has not seen, with one true future. The members of an
# ensemble are samples of the model, so a case of the learned forecaster and one of the equation differ in
# nothing else.


# %%
def ensembles(forecaster: Forecaster, start: Tensor, states: Tensor, seed: int) -> dict[str, Tensor]:
    """Ensembles of each method, shape ``(n, members, lags, 3)``; persistence has one member."""
    n = len(start)
    many = start.repeat_interleave(MEMBERS, 0)
    noise = NoiseStream(seed, 0, len(many))
    rows = (noise.fork("climatology").uniforms(LEADS) * len(states)).long()
    drawn = {
        "climatology": states[rows],
        "learned": forecaster.rollout(many, LEADS, noise.fork("learned"))[:, 1:],
        "equation": future(many, noise.fork("equation"), LEADS)[:, 1:],
    }
    drawn = {name: values.unflatten(0, (n, MEMBERS)) for name, values in drawn.items()}
    return drawn | {"persistence": start[:, None, None].expand(-1, 1, LEADS, -1)}


def mean_scores(drawn: dict[str, Tensor], truth: Tensor, unit: Tensor) -> dict[str, Tensor]:
    """Mean CRPS of each method and lag over cases and components, in deviations of the climate."""
    return {
        name: (crps(members, truth, fair=members.shape[1] > 1) / unit).mean((0, 2))
        for name, members in drawn.items()
    }


def choices(forecaster: Forecaster) -> dict[str, Forecaster]:
    """The same network with several diffusivities."""
    path = forecaster.interpolant
    return {
        "flow": forecaster.with_diffusivity(0.0),
        "0.3 of own": forecaster.with_diffusivity(leaving_diffusivity(path, 0.3)),
        "own": forecaster.with_diffusivity(leaving_diffusivity(path)),
        "Föllmer": forecaster,
    }


# %%
def draw_law(axis: Axes, forecaster: Forecaster, start: Tensor, seed: int) -> None:
    """The forecast from one state, by the network and by the equation."""
    many, noise = start.expand(4000, 3), NoiseStream(seed, 0, 4000)
    bins = torch.linspace(-20, 20, 61).tolist()
    ends = {"learned": forecaster(many, noise), "equation": future(many, noise)[:, -1]}
    learned, equation = (ends[name][:, 0].numpy() for name in ("learned", "equation"))
    axis.hist(learned, bins, density=True, color=COLOURS["learned"], alpha=0.45, label="learned")
    axis.hist(equation, bins, density=True, color=COLOURS["equation"], histtype="step", label="equation")
    state = ", ".join(f"{value:.1f}" for value in start.tolist())
    axis.set(xlabel=f"$x_1$, a lag of {LAG:g} after $({state})$", ylabel="density")
    axis.legend(frameon=False, fontsize=8)


def plot(
    forecaster: Forecaster,
    scores: dict[str, Tensor],
    ranks: dict[str, Tensor],
    covered: dict[str, list[float]],
    chosen: dict[str, tuple[float, float, float]],
    widest: Tensor,
    seed: int,
) -> Figure:
    """A forecast, the scores by lead time, ranks, coverage, and the choice of the diffusivity."""
    figure = Figure(figsize=(11, 6.4), layout="constrained")
    (law, lead, rank), (cover, energy, spread) = figure.subplots(2, 3)
    draw_law(law, forecaster, widest, seed)
    times = LAG * torch.arange(1, LEADS + 1)
    for name, values in scores.items():
        style = {"color": COLOURS[name], "linestyle": "--" if name == "equation" else "-"}
        lead.plot(times, values, marker="o", markersize=3, label=name, **style)
    lead.set(xlabel="lead time", ylabel="CRPS / deviation of the climate", ylim=(0, None))
    lead.legend(frameon=False, fontsize=8)
    for name, counts in ranks.items():
        rank.stairs(counts / counts.sum() * len(counts), color=COLOURS[name], label=name)
    rank.axhline(1, color="#8a97a3", linewidth=0.8, linestyle=":")
    rank.set(xlabel="rank of the truth, in eighths", ylabel="frequency / expected", ylim=(0, 2))
    rank.legend(frameon=False, fontsize=8)
    cover.plot((0, 1), (0, 1), color="#8a97a3", linewidth=0.8, linestyle=":")
    for name, shares in covered.items():
        cover.plot(LEVELS, shares, marker="o", markersize=3, color=COLOURS[name], label=name)
    cover.set(xlabel="level of the central interval", ylabel="share of truths within")
    cover.legend(frameon=False, fontsize=8)
    names, place = list(chosen), range(len(chosen))
    energy.bar(
        place, [chosen[n][0] for n in names], yerr=[2 * chosen[n][1] for n in names], color=COLOURS["learned"]
    )
    energy.set(ylabel="energy score above the equation's, %")
    spread.bar(place, [chosen[n][2] for n in names], color=COLOURS["learned"])
    spread.axhline(1, color=COLOURS["equation"], linewidth=0.8)
    spread.set(ylabel="spread / error of the mean")
    for axis in (energy, spread):
        axis.set_xticks(place, names)
        axis.set_xlabel("diffusivity of the sampler")
    return figure


def compare(
    forecaster: Forecaster, start: Tensor, truth: Tensor, reference: Tensor, unit: Tensor, seed: int
) -> dict[str, tuple[float, float, float]]:
    """For each diffusivity: energy score above the equation's in %, its standard error, spread over error.

    The excess is the distance of the two ensembles: the truths, whose chance would hide it, are not needed.
    """
    many = start.repeat_interleave(MEMBERS, 0)
    least = energy_score(reference / unit, truth / unit).mean()
    found = {}
    for name, model in choices(forecaster).items():
        members = model(many, NoiseStream(seed, 0, len(many))).unflatten(0, (len(start), MEMBERS))
        excess = energy_distance(members / unit, reference / unit) / least
        ratio = spread_skill(members[..., 0], truth[:, 0]).ratio
        error = float(excess.std()) / math.sqrt(len(excess))
        found[name] = (100 * float(excess.mean()), 100 * error, ratio)
    return found


# %%
def main(
    folder: Path = Path("out/forecast_stochastic_system"), epochs: int = 60, cases: int = 640, seed: int = 0
) -> dict[str, float]:
    """Simulate, train, verify, draw.

    Args:
        folder: Where the figure and the checkpoint go; a run that was killed goes on.
        epochs: Passes over the 40960 pairs, 80 iterations each.
        cases: States to forecast from, each with one true future.
        seed: Of everything random.

    Returns:
        ``learned``, ``equation``, ``climatology``, ``persistence``: mean CRPS at one lag in deviations of the
        climate, and ``learned_last``, ``equation_last``, ``climatology_last`` after five. ``excess``: energy
        score above the equation's at one lag in %, with ``excess_error``. ``p_value``: of the flatness of the
        ranks at one lag; ``persistence`` has no spread. ``coverage``: of the intervals of level 0.8, with
        ``coverage_error``.
        ``ratio``: spread over error of the mean.
    """
    series = future(on_attractor(NoiseStream(seed, 0, 512)), NoiseStream(seed, 0, 512).fork("series"), 80)
    states, unit = series.flatten(0, 1), series.flatten(0, 1).std(0)
    settings = ForecastSettings(batch=512, width=128, fit=FitSettings(80 * epochs, rate=2e-3))
    forecaster, _ = train_forecaster(
        series[:, :-1].flatten(0, 1),
        series[:, 1:].flatten(0, 1),
        seed=seed,
        settings=settings,
        checkpoint=folder / "forecaster.pt",
    )
    fresh = NoiseStream(seed + 1, 0, cases)
    start = on_attractor(fresh)
    truth = future(start, fresh.fork("truth"), LEADS)[:, 1:]
    drawn = ensembles(forecaster, start, states, seed + 2)
    scores = mean_scores(drawn, truth, unit)
    ranked = {
        name: RankHistogram.of(drawn[name][:, :, 0, 0], truth[:, 0, 0], fresh)
        for name in ("learned", "equation")
    }
    covered = {
        name: [coverage(drawn[name][:, :, 0, 0], truth[:, 0, 0], level, fresh) for level in LEVELS]
        for name in ("learned", "equation")
    }
    chosen = compare(forecaster, start, truth[:, 0], drawn["equation"][:, :, 0], unit, seed + 3)
    eighths = {name: histogram.merged(8).counts for name, histogram in ranked.items()}
    shares = {name: [c.share for c in row] for name, row in covered.items()}
    widest = start[drawn["equation"][:, :, 0, 0].var(1).argmax()]  # the case that may go either way
    folder.mkdir(parents=True, exist_ok=True)
    plot(forecaster, scores, eighths, shares, chosen, widest, seed).savefig(folder / "figure.png", dpi=130)
    numbers = {name: values[0].item() for name, values in scores.items()}
    numbers |= {f"{name}_last": scores[name][-1].item() for name in ("learned", "equation", "climatology")}
    numbers |= {"excess": chosen["Föllmer"][0], "excess_error": chosen["Föllmer"][1]}
    numbers |= {"p_value": ranked["learned"].merged(8).p_value, "ratio": chosen["Föllmer"][2]}
    numbers |= {f"excess, {name}": value[0] for name, value in chosen.items()}
    at = LEVELS.index(0.8)
    return numbers | {
        "coverage": covered["learned"][at].share,
        "coverage_error": covered["learned"][at].standard_error,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--cases", type=int, default=640)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out/forecast_stochastic_system"))
    options = parser.parse_args()
    print(main(options.out, options.epochs, options.cases, options.seed))
