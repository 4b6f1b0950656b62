"""A Monte Carlo result for a reader: table, histogram, convergence."""

import math
from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from uq.histograms import Histogram, histogram_edges
from uq.moments import Moments, student_quantile
from uq.report import Report, format_number
from uq.results import MonteCarloResult, error_of_mean

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot_convergence", "plot_histogram", "summarise", "summary_table"]

_INK, _ACCENT = "#1b2733", "#1f5f8b"
_PROBABILITIES = (0.05, 0.5, 0.95)


def summary_table(
    result: MonteCarloResult, names: Sequence[str] = (), units: Sequence[str] = ()
) -> tuple[list[str], list[list[object]]]:
    """Columns and rows of mean, errors, spread and quantiles of each component of the output.

    Args:
        result: The run.
        names: Names of the components in order; ``y0, y1, ...`` where not given.
        units: Units of the components in order.

    Returns:
        What :meth:`uq.report.Report.table` takes.

    Raises:
        ValueError: If there are names or units for another number of components.
    """
    size = math.prod(result.outputs.shape[1:])
    labels = _labels(size, names, units)
    percent = f"{100 * result.confidence:g} %"
    columns = ["output", "mean", "standard error", f"{percent} interval", "standard deviation"]
    columns += [f"{100 * p:g} % quantile" for p in _PROBABILITIES]
    known = bool(len(result.replication_means)) or result.independent
    rows: list[list[object]] = []
    for j, index in enumerate(_indices(result.outputs.shape[1:])):
        interval, error = "-", "-"
        if known:
            low, high = (end[index].item() for end in result.confidence_interval)
            interval = f"[{format_number(low, 5)}, {format_number(high, 5)}]"
            error = result.std_error[index].item()
        quantiles = [result.quantile(p, index).value if result.moments.count else "-" for p in _PROBABILITIES]
        rows.append(
            [labels[j], result.mean[index].item(), error, interval, result.std[index].item(), *quantiles]
        )
    return columns, rows


def plot_histogram(
    result: MonteCarloResult, component: tuple[int, ...] = (), label: str = "output"
) -> "Figure":
    """Density of a component of the output, with the mean.

    Args:
        result: The run.
        component: Index into the output shape.
        label: Name and unit, for the axis.

    Returns:
        A matplotlib figure.

    Raises:
        ImportError: If matplotlib is missing.
    """
    figure = _figure()
    axes = figure.subplots()
    samples = result.valid[(slice(None), *component)].double()
    histogram = Histogram.of(samples, histogram_edges(samples, most=80))
    axes.stairs(histogram.density.numpy(), histogram.edges.numpy(), fill=True, color=_ACCENT, alpha=0.35)
    axes.axvline(result.mean[component].item(), color=_INK, linewidth=1.2, label="mean")
    axes.set(xlabel=label, ylabel="probability density", ylim=(0, None))
    axes.legend(frameon=False)
    return figure


def plot_convergence(
    result: MonteCarloResult, component: tuple[int, ...] = (), label: str = "mean"
) -> "Figure":
    """Running mean of a component against the number of samples, with the band of its confidence interval.

    Args:
        result: The run; the band is drawn where its samples are independent or replicated.
        component: Index into the output shape.
        label: Name and unit, for the axis.

    Returns:
        A matplotlib figure.

    Raises:
        ImportError: If matplotlib is missing.
    """
    figure = _figure()
    axes = figure.subplots()
    counts, means, widths = _running(result, component)
    axes.plot(counts, means, color=_ACCENT)
    if widths is not None:
        axes.fill_between(
            counts,
            [m - w for m, w in zip(means, widths, strict=True)],
            [m + w for m, w in zip(means, widths, strict=True)],
            color=_ACCENT,
            alpha=0.2,
            linewidth=0,
            label=f"{100 * result.confidence:g} % interval",
        )
        axes.legend(frameon=False)
    axes.set(xscale="log", xlabel="samples", ylabel=label)
    return figure


def summarise(
    report: Report, result: MonteCarloResult, names: Sequence[str] = (), units: Sequence[str] = ()
) -> None:
    """Add a run to a report: its size and cost, the table, and two figures of the first component.

    Args:
        report: The report to add to.
        result: The run.
        names: Names of the components of the output.
        units: Units of the components of the output.

    Raises:
        ValueError: If there are names or units for another number of components.
        ImportError: If matplotlib is missing.
    """
    columns, rows = summary_table(result, names, units)
    lost = f" {result.num_failed} of them failed and are in no statistic." if result.num_failed else ""
    missed = "" if result.converged else " **The tolerance was not met.**"
    report.text(
        f"{format_number(result.num_samples)} samples, seed {result.seed}, {result.evaluated} of them "
        "evaluated "
        f"in {format_number(result.seconds, 3)} s by the last call.{lost}{missed}"
    )
    report.table(columns, rows, "Estimates of the outputs.")
    first = _indices(result.outputs.shape[1:])[0]
    label = str(rows[0][0])
    if result.moments.count > 1:
        report.figure(plot_histogram(result, first, label), f"Distribution of {label}.")
        report.figure(plot_convergence(result, first, f"mean of {label}"), f"Running mean of {label}.")


def _running(
    result: MonteCarloResult, component: tuple[int, ...]
) -> tuple[list[int], list[float], list[float] | None]:
    """Numbers of samples, means up to them, and half widths, at 60 places evenly spread in the logarithm."""
    values = result.outputs[(slice(None), *component)].double()
    groups = len(result.replication_means) or 1
    # From 20 samples per group on: the band of the first few would hide all the rest.
    first = groups * max(2, min(20, len(values) // (10 * groups)))
    steps = torch.logspace(math.log10(first), math.log10(max(len(values), first)), 60, dtype=torch.float64)
    counts = sorted({min(int(step) // groups * groups, len(values)) for step in steps.tolist()})
    known = groups > 1 or result.independent
    means, widths = [], []
    for count in counts:
        parts = [_finite(values[r:count:groups]) for r in range(groups)]
        moments = [Moments.of(part) for part in parts]
        replications = torch.stack([m.mean for m in moments]) if groups > 1 else torch.empty(0)
        means.append(replications.mean().item() if groups > 1 else moments[0].mean.item())
        if known:
            error, degrees = error_of_mean(moments[0], replications, result.independent)
            widths.append(student_quantile(result.confidence, degrees) * error.item())
    return counts, means, widths if known else None


def _finite(values: Tensor) -> Tensor:
    """The values that are numbers."""
    return values[values.isfinite()]


def _labels(size: int, names: Sequence[str], units: Sequence[str]) -> list[str]:
    """Names with units in brackets."""
    for what, given in (("names", names), ("units", units)):
        if given and len(given) != size:
            raise ValueError(f"`{what}` must hold {size}, one per component of the output; got {len(given)}.")
    plain = list(names) or [f"y{j}" if size > 1 else "y" for j in range(size)]
    return [
        f"{name} [{unit}]" if unit else name for name, unit in zip(plain, units or [""] * size, strict=True)
    ]


def _indices(shape: torch.Size) -> list[tuple[int, ...]]:
    """Indices of the components of an output, in order."""
    return list(product(*map(range, shape)))


def _figure() -> "Figure":
    """An empty figure that touches none of matplotlib's global state."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError(
            "Figures need matplotlib, which is not installed. Install it with: pip install 'sdeuq[plot]'"
        ) from None
    return Figure(figsize=(6.4, 3.6), layout="constrained")
