"""Plots of meshes, displacements and interface histories, with matplotlib."""

from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fem_bridge.assembly import Mesh
from fem_bridge.zones import Zone

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_deformed", "plot_histories", "plot_snapshots", "plot_zone"]

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")  # Okabe and Ito: distinct for all readers


def plot_zone(zone: Zone, *, modulus: Tensor | None = None) -> "Figure":
    """Draw the whole mesh, the zone of interest and its interface, over the material if it is given.

    Args:
        zone: The zone.
        modulus: Young's moduli of the cells of the whole mesh [Pa], shape ``(C,)``.

    Returns:
        The figure.
    """
    figure, axes = _pyplot().subplots(figsize=(8, 4.4), layout="constrained")
    mesh, sub = zone.parent, zone.mesh
    if modulus is not None:
        drawn = axes.tripcolor(*mesh.points.T, mesh.cells, facecolors=modulus.cpu().numpy(), cmap="cividis")
        figure.colorbar(drawn, ax=axes, label="Young's modulus [Pa]", shrink=0.8)
    axes.triplot(*mesh.points.T, mesh.cells, color="0.55", linewidth=0.25)
    axes.triplot(*sub.points.T, sub.cells, color=_COLOURS[0], linewidth=0.5)
    axes.plot(*zone.points.T, ".", color=_COLOURS[1], markersize=5, label="interface nodes")
    axes.plot([], [], color=_COLOURS[0], label="zone of interest")
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return _finish(figure, axes)


def plot_deformed(mesh: Mesh, displacement: Tensor, *, scale: float | None = None) -> "Figure":
    """Draw a deformed mesh coloured by the displacement.

    Args:
        mesh: The mesh.
        displacement: Displacements [m], shape ``(2 N,)``.
        scale: Factor of the drawn displacement; ``None`` makes the largest a twelfth of the height.

    Returns:
        The figure.
    """
    figure, axes = _pyplot().subplots(figsize=(8, 4), layout="constrained")
    nodal = displacement.detach().cpu().double().numpy().reshape(-1, 2)
    size = np.linalg.norm(nodal, axis=1)
    enlarged = float(np.ptp(mesh.points[:, 1]) / 12 / max(size.max(), 1e-300)) if scale is None else scale
    _coloured(figure, [axes], mesh, nodal[None], enlarged)
    axes.set_title(f"displacement drawn {enlarged:.3g} times", fontsize=10)
    return _finish(figure, axes)


def plot_snapshots(mesh: Mesh, displacement: Tensor, times: Tensor, *, steps: Sequence[int]) -> "Figure":
    """Draw the displacement at several instants, one below the other, on one colour scale.

    Args:
        mesh: The mesh.
        displacement: Displacements [m] of one sample, shape ``(T, 2 N)``.
        times: Instants [s], shape ``(T,)``.
        steps: Indices of the instants to draw.

    Returns:
        The figure.
    """
    figure, grid = _pyplot().subplots(
        len(steps), 1, figsize=(5.5, 2.4 * len(steps)), layout="constrained", squeeze=False, sharex=True
    )
    nodal = displacement[list(steps)].detach().cpu().double().numpy().reshape(len(steps), -1, 2)
    _coloured(figure, list(grid[:, 0]), mesh, nodal, 0.0)
    for axes, step in zip(grid[:, 0], steps, strict=True):
        axes.set_title(f"t = {float(times[step]):.3g} s", fontsize=10)
        _finish(figure, axes)
    for axes in grid[:-1, 0]:
        axes.set_xlabel("")
    return figure


def plot_histories(histories: Mapping[str, Tensor], times: Tensor, *, dof: int, count: int = 20) -> "Figure":
    """Draw histories of one interface degree of freedom: samples, mean, and the band of 5 to 95 %.

    Args:
        histories: Name, e.g. ``"full model"``, to histories [m], shape ``(n, T, D)``.
        times: Instants [s], shape ``(T,)``.
        dof: The degree of freedom.
        count: Number of samples drawn of each.

    Returns:
        The figure, one panel per name, on one scale.
    """
    figure, grid = _pyplot().subplots(
        1, len(histories), figsize=(3.4 * len(histories), 3), layout="constrained", sharey=True, squeeze=False
    )
    instants = times.cpu().numpy()
    for axes, (name, values) in zip(grid[0], histories.items(), strict=True):
        series = values[:, :, dof].detach().cpu().double()
        low, high = torch.quantile(series, torch.tensor([0.05, 0.95], dtype=torch.float64), dim=0).numpy()
        axes.fill_between(instants, low, high, color=_COLOURS[0], alpha=0.25, linewidth=0, label="5 to 95 %")
        axes.plot(instants, series[:count].T.numpy(), color="0.4", linewidth=0.5, alpha=0.6)
        axes.plot(instants, series.mean(0).numpy(), color=_COLOURS[1], linewidth=1.8, label="mean")
        axes.plot([], [], color="0.4", linewidth=0.8, label="samples")
        axes.set(title=name, xlabel="time [s]", xlim=(instants[0], instants[-1]))
    grid[0, 0].set_ylabel("displacement [m]")
    grid[0, 0].legend(frameon=False, fontsize=8)
    return figure


def _coloured(
    figure: "Figure", panels: Sequence["Axes"], mesh: Mesh, nodal: np.ndarray, scale: float
) -> None:
    """Colour each panel by the displacement, with one colour bar."""
    sizes = np.linalg.norm(nodal, axis=2)
    from matplotlib.tri import Triangulation

    top = max(float(sizes.max()), 1e-300)
    drawn = []
    for axes, field, size in zip(panels, nodal, sizes, strict=True):
        x, y = (mesh.points + scale * field).T
        cells = Triangulation(x, y, mesh.cells)
        drawn.append(axes.tripcolor(cells, size, shading="gouraud", cmap="viridis", vmin=0.0, vmax=top))
    figure.colorbar(drawn[0], ax=list(panels), label="|u| [m]", shrink=0.8)


def _finish(figure: "Figure", axes: "Axes") -> "Figure":
    """Equal axes with labels."""
    axes.set(aspect="equal", xlabel="x [m]", ylabel="y [m]")
    return figure


def _pyplot() -> ModuleType:
    """Matplotlib, or how to get it."""
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError("Plots need matplotlib: pip install 'sdeuq[plot]'.") from error
    return pyplot
