"""Zones of interest: the part of a mesh, its interface with the rest, and what is asked of it."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fem_bridge.assembly import Mesh, SubMesh
from sde.shapes import check_shapes

__all__ = ["Zone", "ZoneResponse", "cut_zone", "interface_nodes"]

_INSTANTS = 8


@dataclass(frozen=True, eq=False, slots=True)
class Zone:
    """A zone of interest of a mesh and its interface.

    A submodel on the zone equals the restricted full model to rounding if its interface follows the full
    model's displacement, the zone has the full model's material, and the steps in time are the same.

    Attributes:
        parent: The whole mesh.
        sub: The zone as a mesh of its own, with the nodes and cells of the parent.
        interface: Nodes of the zone (its own numbers) where it touches the rest, ascending, shape ``(P,)``.
    """

    parent: Mesh
    sub: SubMesh
    interface: NDArray[np.int64]

    @property
    def mesh(self) -> Mesh:
        """The mesh of the zone."""
        return self.sub.mesh

    @property
    def interface_dofs(self) -> NDArray[np.int64]:
        """Driven degrees of freedom in the numbers of the zone, shape ``(2P,)``."""
        return Mesh.dofs(self.interface)

    @property
    def parent_dofs(self) -> NDArray[np.int64]:
        """Degree of freedom of the parent for each one of the zone, shape ``(2 N_sub,)``."""
        return self.sub.dofs

    @property
    def points(self) -> NDArray[np.float64]:
        """Coordinates of the interface nodes [m], shape ``(P, 2)``."""
        return self.mesh.points[self.interface]


def interface_nodes(mesh: Mesh, cells: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Nodes whose star of cells leaves a set of cells: those that belong to cells of both kinds.

    A node on a free edge of the whole mesh is not one of them unless cells outside the set meet there.

    Args:
        mesh: The whole mesh.
        cells: Whether each cell is in the set, shape ``(C,)``.

    Returns:
        Nodes of ``mesh``, ascending.

    Raises:
        ValueError: If the mask does not fit the mesh.

    Example:
        >>> from fem_bridge.assembly.mesh import rectangle
        >>> mesh = rectangle((0, 0), (2, 1), divisions=(2, 1))
        >>> mesh.points[interface_nodes(mesh, mesh.centroids[:, 0] > 1)].tolist()
        [[1.0, 0.0], [1.0, 1.0]]
    """
    mask = np.asarray(cells)
    if mask.shape != (mesh.num_cells,) or mask.dtype != bool:
        raise ValueError(
            f"`cells` must be {mesh.num_cells} booleans; got {mask.dtype} of shape {mask.shape}."
        )
    return np.intersect1d(mesh.cells[mask], mesh.cells[~mask])


def cut_zone(mesh: Mesh, lower: Sequence[float], upper: Sequence[float]) -> Zone:
    """Cut out the cells whose centroids lie in a box.

    Args:
        mesh: The whole mesh.
        lower: Least coordinates of the box [m].
        upper: Greatest coordinates of the box [m].

    Returns:
        The zone.

    Raises:
        ValueError: If the box holds no cell, or all of them.

    Example:
        >>> from fem_bridge.assembly.mesh import rectangle
        >>> zone = cut_zone(rectangle((0, 0), (2, 1), divisions=(60, 30)), (1.0, 0.5), (1.6, 1.0))
        >>> zone.mesh.num_cells, zone.mesh.num_dofs, len(zone.interface_dofs)
        (1080, 1148, 98)
    """
    low, high = np.asarray(lower, dtype=np.float64), np.asarray(upper, dtype=np.float64)
    if low.shape != (2,) or high.shape != (2,) or not np.all(low < high):
        raise ValueError(
            f"`upper` must exceed `lower` along both axes; got {tuple(upper)} and {tuple(lower)}."
        )
    inside = np.all((mesh.centroids > low) & (mesh.centroids < high), axis=1)
    if not inside.any() or inside.all():
        kind = "all cells" if inside.all() else "no cell"
        raise ValueError(
            f"`lower` and `upper` must hold some cells and leave some; the box holds {kind}. "
            "Move or resize it."
        )
    sub = mesh.restrict(inside)
    interface = np.searchsorted(sub.nodes, interface_nodes(mesh, inside))
    return Zone(mesh, sub, interface)


class ZoneResponse:
    r"""Quantities of interest of a zone: peak displacement at points, and the root mean square.

    .. math:: q_p = \max_j |u(x_p, t_j)|, \qquad
        q_\mathrm{rms} = \Bigl(\frac1T \sum_j \frac{1}{|Z|} \int_Z |u(x, t_j)|^2\,\mathrm{d}x\Bigr)^{1/2},

    with the integral by the quadrature at the vertices. Peaks are over the stored instants.

    Args:
        mesh: Mesh of the zone.
        points: Points of the peaks [m], shape ``(P, 2)``, in the mesh.

    Raises:
        ValueError: If a point lies outside the mesh.

    Example:
        >>> from fem_bridge.assembly.mesh import rectangle
        >>> response = ZoneResponse(rectangle((0, 0), (1, 1), divisions=(2, 2)), [[0.25, 0.5]])
        >>> response.names
        ('peak |u| at (0.25, 0.5)', 'rms |u|')
        >>> response(torch.full((1, 5, 26), 3.0)).mul(0.5**0.5).round(decimals=4)
        tensor([[3., 3.]])
    """

    def __init__(self, mesh: Mesh, points: Sequence[Sequence[float]]) -> None:
        located = [_locate(mesh, point) for point in points]
        self.points = tuple((float(x), float(y)) for x, y in points)
        self.nodes = torch.from_numpy(np.stack([nodes for nodes, _ in located]))  # (P, 3)
        self.shapes = torch.from_numpy(np.stack([values for _, values in located]))  # (P, 3)
        shares = np.zeros(mesh.num_nodes)
        np.add.at(shares, mesh.cells, mesh.areas[:, None] / 3)
        self.shares = torch.from_numpy(shares / shares.sum())

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the quantities."""
        return (*(f"peak |u| at ({x:g}, {y:g})" for x, y in self.points), "rms |u|")

    @property
    def units(self) -> tuple[str, ...]:
        """Units of the quantities."""
        return ("m",) * (len(self.points) + 1)

    def __call__(self, displacement: Tensor) -> Tensor:
        """Quantities ``(n, P + 1)`` of displacement histories ``(n, T, 2 N)``; differentiable."""
        check_shapes(displacement=(displacement, f"n T {2 * len(self.shares)}"))
        shapes = self.shapes.to(displacement)
        dofs = 2 * self.nodes.to(displacement.device)[..., None] + torch.arange(2, device=displacement.device)
        at_points = (displacement[:, :, dofs] * shapes[..., None]).sum(-2)  # (n, T, P, 2)
        peaks = at_points.square().sum(-1).amax(1).sqrt()
        weights = self.shares.to(displacement).repeat_interleave(2) / displacement.shape[1]
        # A few instants at a time stay in the cache: measured six times as fast as all of them at once.
        parts = displacement.split(_INSTANTS, dim=1)
        # Rows are copied together before they are summed, so that a sample has the same bits in every batch.
        rows = ((part.square() * weights).flatten(1).contiguous().sum(1) for part in parts)
        square = functools.reduce(torch.add, rows)
        return torch.cat((peaks, square.sqrt()[:, None]), dim=1)


def _locate(mesh: Mesh, point: Sequence[float]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The nodes of a cell that holds a point, and the values of their shape functions there."""
    target = np.asarray(point, dtype=np.float64)
    corners = mesh.points[mesh.cells]  # (C, 3, 2)
    edges = np.stack((corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=-1)
    second_third = np.linalg.solve(edges, (target - corners[:, 0])[..., None])[..., 0]
    shapes = np.concatenate((1 - second_third.sum(1, keepdims=True), second_third), axis=1)
    cell = int(shapes.min(1).argmax())
    if not shapes[cell].min() > -1e-9:
        raise ValueError(f"`points` must lie in the mesh; got {tuple(target.tolist())}.")
    return mesh.cells[cell], shapes[cell]
