"""The page of the main job: pictures, tables and words made from its outcome."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from torch import Tensor

from examples.submodel_uq import Outcome, compression_errors
from fem_bridge.dynamics import CentralDifference, simulate, substeps_for
from sde import NoiseStream
from uq import EmpiricalCDF, Report, plot_training

__all__ = ["overview", "write_report"]

_COLOURS = {
    "WGAN-GP": "C3",
    "flow matching": "C0",
    "POD-Gaussian": "C2",
    "conditional Gaussian": "C8",
    "bootstrap": "C7",
}
_FULL = "black"
_SNAPSHOT = 1.6  # instant of the picture [s]: the wave is in the zone
_SHOWN = 60  # histories drawn in a panel


def write_report(outcome: Outcome, summary: dict[str, object]) -> Path:
    """Write ``report.html`` (with the Markdown beside it) into the study's folder and return its path."""
    study = outcome.study
    report = Report(
        "Uncertainty quantification of a submodel driven by a WGAN-GP",
        f"Impact on a plane-strain body of random material, {summary['problem']} setting; assembled by "
        f"{study.assembler.name}; seed {study.seed}",
    )
    report.text(_abstract(outcome))
    report.figure(
        overview(outcome),
        "Left: the full model at one instant, displacements enlarged, with the zone of interest in red. "
        "Middle: displacement histories of one interface degree of freedom, from held-out full runs and "
        "from the WGAN-GP. Right: distribution of one quantity of interest; grey, the 95 % band of the "
        "held-out full model.",
    )
    _problem(report, outcome)
    _histories(report, outcome)
    _quantities(report, outcome)
    _metrics(report, outcome)
    _costs(report, outcome)
    report.heading("What the generator misses")
    report.text(_shortfalls(outcome))
    return report.write(study.folder / "report.html")


def overview(outcome: Outcome) -> Figure:
    """The result in one picture: zone, boundary histories, distribution of a quantity of interest."""
    figure = Figure(figsize=(13, 3.6), layout="constrained")
    body, history, law = figure.subplots(1, 3, width_ratios=(1.25, 1, 1))
    _draw_snapshot(body, outcome)
    test = outcome.runs.load("traces", outcome.runs.split.test)
    node = _middle_of_interface(outcome)
    times = outcome.study.problem.times
    _draw_histories(history, times, test[:_SHOWN, :, node], _FULL, "full model")
    _draw_histories(
        history, times, _generated(outcome, "WGAN-GP")[:, :, node], _COLOURS["WGAN-GP"], "WGAN-GP"
    )
    history.set(xlabel="time [s]", ylabel="$u_x$ on the interface [m]")
    history.legend(frameon=False, loc="upper left")
    _draw_law(law, outcome, 0)
    law.legend(frameon=False, fontsize=8, loc="lower right")
    return figure


def _abstract(outcome: Outcome) -> str:
    """The result in a paragraph."""
    comparisons, costs = outcome.comparisons, outcome.costs
    scores = {name: comparison.mean("W1/sigma").value for name, comparison in comparisons.items()}
    floor = comparisons["WGAN-GP"].mean("W1/sigma").floor
    result = outcome.monte_carlo["WGAN-GP"]
    error = float((100 * result.std_error / result.mean.abs()).max())
    return (
        f"A WGAN-GP trained on {outcome.study.num_train} full-model runs generates the displacement of the "
        f"interface; {result.num_samples} submodel runs driven by it know every mean quantity of interest "
        f"with a standard error of at most **{error:.2f} %**. Against {outcome.study.num_test} held-out "
        "full-model runs, the mean of W1/sigma over the quantities of interest is "
        f"**{scores['WGAN-GP']:.3f}** for the WGAN-GP, {scores['flow matching']:.3f} for flow matching, "
        f"{scores['POD-Gaussian']:.3f} for the POD-Gaussian and {scores['bootstrap']:.3f} for the "
        f"bootstrap; training against held-out runs gives {floor:.3f}. One submodel sample takes "
        f"{1e3 * costs.submodel_sample:.1f} ms and one full-model sample {1e3 * costs.full_sample:.1f} ms."
    )


def _problem(report: Report, outcome: Outcome) -> None:
    """Section: what is computed."""
    study, runs = outcome.study, outcome.runs
    problem, assembled = study.problem, study.full_model.assembled
    compression = outcome.boundaries["WGAN-GP"].compression
    report.heading("Problem")
    report.text(
        "A rectangle clamped on the right is hit on the left by a pulse of random place, amplitude and "
        "duration. Young's modulus is a lognormal field, certain in the zone. Given the same interface "
        "displacement, zone material and time steps, the submodel equals the restricted full model to "
        "rounding: what remains to be learned is the law of the interface histories."
    )
    mesh, zone = assembled.zone.parent, assembled.zone
    rows = [
        ["cells of the full model / of the zone", f"{mesh.num_cells} / {zone.mesh.num_cells}"],
        ["degrees of freedom, full / zone / interface",
         f"{mesh.num_dofs} / {zone.mesh.num_dofs} / {len(zone.interface_dofs)}"],
        ["output instants and interval [s]", f"{problem.num_steps + 1}, {problem.time_step:g}"],
        ["full-model runs, training / held-out", f"{study.num_train} / {study.num_test}"],
        ["runs with more than one sub-step", int((runs.load("substeps") > 1).sum())],
        ["stored instants, modes kept", f"{len(compression.time.kept)}, {compression.num_modes}"],
    ]  # fmt: skip
    report.table(["what", "value"], rows, "The job.")
    names, units = problem.inputs.names, problem.inputs.units
    report.table(
        ["input", "mean", "standard deviation"],
        [
            [f"{name} [{unit}]", column.mean(), column.std()]
            for name, unit, column in zip(names, units, runs.inputs.T, strict=True)
        ],
        "Random inputs of the full-model runs.",
    )  # fmt: skip


def _histories(report: Report, outcome: Outcome) -> None:
    """Section: boundary histories, real and generated."""
    report.heading("Boundary histories")
    test = outcome.runs.load("traces", outcome.runs.split.test)
    samples = {"full model, held out": test[:_SHOWN]}
    samples |= {n: _generated(outcome, n) for n in ("WGAN-GP", "flow matching", "POD-Gaussian")}
    points = outcome.study.full_model.assembled.zone.points
    nodes = _three_nodes(points)
    figure = Figure(figsize=(12, 7), layout="constrained")
    axes = figure.subplots(3, 4, sharex=True, sharey="row")
    for row, node in zip(axes, nodes, strict=True):
        for panel, (name, traces) in zip(row, samples.items(), strict=True):
            colour = _COLOURS.get(name, _FULL)
            _draw_histories(panel, outcome.study.problem.times, traces[:, :, 2 * node], colour, name)
            if row is axes[0]:
                panel.set_title(name)
        x, y = points[node]
        row[0].set_ylabel(f"$u_x$ at ({x:.2f}, {y:.2f}) [m]")
    for panel in axes[-1]:
        panel.set_xlabel("time [s]")
    report.figure(
        figure,
        f"{_SHOWN} histories of the horizontal displacement at three interface nodes; thick, their mean.",
    )
    errors = compression_errors(outcome.runs, outcome.boundaries["WGAN-GP"])
    report.text(
        "On held-out histories the compression loses, in the relative L2 norm, "
        f"{100 * errors.time:.3f} % by storing every {outcome.study.stride}th instant and "
        f"{100 * errors.modes:.1f} % by keeping {outcome.study.num_modes} modes; {100 * errors.total:.1f} "
        f"% in all, {100 * errors.median:.1f} % for the median history. This part no generator can win "
        "back."
    )
    report.figure(plot_training(outcome.history), "Training of the WGAN-GP: critic gap and gradient norm.")


def _quantities(report: Report, outcome: Outcome) -> None:
    """Section: distributions and means of the quantities of interest."""
    report.heading("Quantities of interest")
    names = outcome.study.full_model.output_names
    figure = Figure(figsize=(11, 7.2), layout="constrained")
    for i, panel in enumerate(figure.subplots(2, 2).flat):
        _draw_law(panel, outcome, i)
    figure.axes[0].legend(frameon=False, loc="lower right")
    report.figure(
        figure,
        "Distribution functions. Grey: 95 % band (Dvoretzky-Kiefer-Wolfowitz) of the held-out full-model "
        "runs.",
    )
    truth = outcome.runs.load("responses", outcome.runs.split.test)
    error = truth.std(0) / len(truth) ** 0.5
    full = [f"{m:.4f} +- {1.96 * e:.4f}" for m, e in zip(truth.mean(0), error, strict=True)]
    rows = [["full model, held out", len(truth), *full]]
    for name, result in outcome.monte_carlo.items():
        means = zip(result.mean, result.half_width, strict=True)
        rows.append([name, result.num_samples, *(f"{m:.4f} +- {h:.4f}" for m, h in means)])
    report.table(
        ["simulator", "samples", *(f"{n} [m]" for n in names)], rows,
        "Means with 95 % confidence intervals. The intervals hold sampling error only, not that of the "
        "generator.",
    )  # fmt: skip


def _metrics(report: Report, outcome: Outcome) -> None:
    """Section: the metric table."""
    report.heading("Metrics")
    names = list(outcome.comparisons)
    first = outcome.comparisons[names[0]]
    rows = [
        [score.metric, *(outcome.comparisons[name][score.metric].value for name in names), score.floor]
        for score in first.scores
    ]
    mean = [outcome.comparisons[name].mean("W1/sigma") for name in names]
    rows.insert(0, ["**mean W1/sigma**", *(score.value for score in mean), mean[0].floor])
    report.table(
        ["metric", *names, "floor"], rows,
        f"Against {first.num_test} held-out runs, {first.num_generated} generated samples each. Floor: the "
        f"{first.num_train} training runs against the held-out ones. W1/sigma: Wasserstein distance over "
        "the standard deviation of the held-out runs; the rows below the quantities are of the whitened "
        "coefficients. The bootstrap replays training runs (nearest training sample 0): it is no "
        "generator, and a strong baseline.",
    )  # fmt: skip


def _costs(report: Report, outcome: Outcome) -> None:
    """Section: what it costs, and from when it pays."""
    costs, zone = outcome.costs, outcome.study.full_model.assembled.zone
    report.heading("Costs")
    rows = [
        [name, f"{costs.offline:.1f}", f"{costs.training[name]:.1f}", f"{1e3 * costs.submodel_sample:.2f}",
         f"{1e3 * costs.full_sample:.2f}", f"{costs.break_even(name):.0f}"]
        for name in costs.training
    ]  # fmt: skip
    columns = ["generator", "full runs for training [s]", "training [s]", "submodel sample [ms]",
               "full sample [ms]", "break-even [samples]"]  # fmt: skip
    report.table(
        columns, rows,
        "Seconds of this machine in one process, both models in batches. Break-even: the number of Monte "
        "Carlo samples from which full runs for training, training and submodel runs together cost less "
        "than full runs alone. Held-out runs are a cost of the check, not counted.",
    )  # fmt: skip
    report.text(
        f"One submodel sample costs {costs.full_sample / costs.submodel_sample:.1f} times less than a full "
        f"one: the zone holds {100 * zone.mesh.num_cells / zone.parent.num_cells:.0f} % of the cells. The "
        "gain of a submodel grows with the full model; the gain here is modest and is meant to be "
        "checkable in minutes."
    )


def _shortfalls(outcome: Outcome) -> str:
    """Plain words on where the generators are wrong, from the numbers."""
    truth = outcome.runs.load("responses", outcome.runs.split.test)
    names = outcome.study.full_model.output_names
    lines = []
    for name in ("WGAN-GP", "flow matching"):
        comparison, outputs = outcome.comparisons[name], outcome.monte_carlo[name].outputs
        spreads = {q: comparison[f"std ratio {q}"] for q in names}
        worst = max(spreads, key=lambda q: abs(spreads[q].value - 1))
        score = spreads[worst]
        sure = "beyond" if score.lower > 1 or score.upper < 1 else "within"
        high = [
            float((outputs[:, i] > truth[:, i].quantile(0.95)).double().mean()) for i in range(len(names))
        ]
        tail = int(np.argmax([abs(p - 0.05) for p in high]))
        error = 0.05 * 0.95 / len(truth)
        lines.append(
            f"- **{name}**: the standard deviation that is furthest off is that of {worst}, "
            f"{100 * (score.value - 1):+.0f} % (95 % interval {100 * (score.lower - 1):+.0f} to "
            f"{100 * (score.upper - 1):+.0f} %: {sure} sampling error). The tail that is furthest off is "
            f"that of {names[tail]}: {100 * high[tail]:.1f} % of the generated samples exceed the held-out "
            "95 % quantile, which 5 % should (the held-out quantile alone is uncertain by "
            f"{100 * error**0.5:.1f} points)."
        )
    mean = {n: c.mean("W1/sigma") for n, c in outcome.comparisons.items()}
    better = mean["flow matching"].value < mean["WGAN-GP"].value
    lines.append(
        f"- **Which to use**: {'flow matching' if better else 'the WGAN-GP'} is nearer to the held-out "
        "runs here. Tails beyond the training runs are extrapolation for every generator: do not read "
        "rare-event probabilities off them."
    )
    return "\n".join(lines)


def _generated(outcome: Outcome, name: str) -> Tensor:
    """Histories of a generator: those of the first samples of its Monte Carlo run."""
    noise = NoiseStream(outcome.monte_carlo[name].seed, 0, _SHOWN)
    return outcome.boundaries[name](outcome.monte_carlo[name].inputs[:_SHOWN], noise).cpu()


def _middle_of_interface(outcome: Outcome) -> int:
    """Horizontal degree of freedom of the interface node half way up the left side of the zone."""
    points, problem = outcome.study.full_model.assembled.zone.points, outcome.study.problem
    middle = np.array([problem.zone_lower[0], 0.5 * (problem.zone_lower[1] + problem.zone_upper[1])])
    return 2 * int(np.linalg.norm(points - middle, axis=1).argmin())


def _three_nodes(points: np.ndarray) -> Sequence[int]:
    """One node on each side of the interface."""
    low, high = points.min(0), points.max(0)
    targets = (
        [low[0], 0.5 * (low + high)[1]],
        [0.5 * (low + high)[0], low[1]],
        [high[0], 0.5 * (low + high)[1]],
    )
    return [int(np.linalg.norm(points - np.array(target), axis=1).argmin()) for target in targets]


def _draw_histories(panel: Axes, times: Tensor, values: Tensor, colour: str, label: str) -> None:
    """Thin lines for samples ``(n, T)``, a thick one for their mean."""
    panel.plot(times, values.T, color=colour, linewidth=0.4, alpha=0.35)
    panel.plot(times, values.mean(0), color=colour, linewidth=2, label=label)


def _draw_law(panel: Axes, outcome: Outcome, index: int) -> None:
    """Distribution functions of a quantity of interest, with the band of the full model."""
    truth = outcome.runs.load("responses", outcome.runs.split.test)[:, index].double()
    outputs = {name: result.outputs[:, index].double() for name, result in outcome.monte_carlo.items()}
    low = min(float(truth.min()), *(float(values.quantile(0.001)) for values in outputs.values()))
    high = max(float(truth.max()), *(float(values.quantile(0.999)) for values in outputs.values()))
    grid = torch.linspace(low, high, 400, dtype=torch.float64)
    law = EmpiricalCDF.of(truth)
    panel.fill_between(grid, *law.band(grid), color="0.85", label="full model, 95 % band")
    panel.plot(grid, law(grid), color=_FULL, linewidth=2, label="full model, held out")
    for name, values in outputs.items():
        panel.plot(grid, EmpiricalCDF.of(values)(grid), color=_COLOURS[name], linewidth=1.3, label=name)
    panel.set(xlabel=f"{outcome.study.full_model.output_names[index]} [m]", ylabel="probability", ylim=(0, 1))


def _draw_snapshot(panel: Axes, outcome: Outcome) -> None:
    """The deformed full model of the first held-out sample, coloured by displacement; interface in red."""
    study = outcome.study
    parts, first = study.full_model.assembled, outcome.runs.split.test.start
    noise = NoiseStream(study.seed, first, first + 1)
    modulus, mesh = parts.modulus(noise), parts.zone.parent
    count = round(_SNAPSHOT / study.problem.time_step)
    trajectory = simulate(
        parts.system,
        modulus=modulus,
        times=study.problem.times[: count + 1],
        integrator=CentralDifference(),
        load=parts.load(study.problem.draw(noise)),
        substeps=substeps_for(parts.system, modulus, study.problem.time_step),
    )
    moved = trajectory.displacement[0, -1].cpu().numpy().reshape(-1, 2)
    size = np.linalg.norm(moved, axis=1)
    shape = mesh.points + moved * 0.08 / size.max()
    cells = PolyCollection(
        list(shape[mesh.cells]), array=size[mesh.cells].mean(1), cmap="viridis", edgecolors="face"
    )
    cells.set_linewidth(0.1)
    panel.add_collection(cells)
    edge = shape[parts.zone.sub.nodes[parts.zone.interface]]
    panel.plot(*edge.T, ".", color="red", markersize=3)
    panel.set(xlabel="x [m]", ylabel="y [m]", title=f"|u| [m] at t = {_SNAPSHOT:g} s; red: interface")
    panel.autoscale()
    panel.set_aspect("equal")
    panel.figure.colorbar(cells, ax=panel, shrink=0.6, pad=0.02)
