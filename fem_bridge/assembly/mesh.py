"""Triangle meshes with named boundaries, as arrays."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Mesh", "SubMesh", "rectangle"]


@dataclass(frozen=True, eq=False)
class Mesh:
    """A conforming mesh of straight triangles in the plane, and the facets of its named boundaries.

    Degrees of freedom of a vector field of degree 1 are numbered ``2 * node + component``.

    Args:
        points: Coordinates of the nodes [m], float64, shape ``(N, 2)``.
        cells: Nodes of each triangle, int64, shape ``(C, 3)``, in either orientation.
        boundaries: Name to node pairs of its facets, int64, shape ``(F, 2)``; each pair is an edge of one
            cell.

    Raises:
        TypeError: If cells or facets are not integers.
        ValueError: If a shape is wrong, a coordinate is not finite, a node does not exist, a cell has no
            area or a facet is no edge on the border of the mesh.

    Example:
        >>> mesh = Mesh([[0, 0], [1, 0], [0, 1]], [[0, 1, 2]], {"bottom": [[0, 1]]})
        >>> mesh.areas, mesh.boundary_nodes("bottom")
        (array([0.5]), array([0, 1]))
    """

    points: NDArray[np.float64]
    cells: NDArray[np.int64]
    boundaries: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)

    def __init__(
        self, points: ArrayLike, cells: ArrayLike, boundaries: Mapping[str, ArrayLike] | None = None
    ) -> None:
        object.__setattr__(self, "points", _frozen(_coordinates(points)))
        object.__setattr__(self, "cells", _frozen(_node_table("cells", cells, 3, len(self.points))))
        facets = {
            name: _frozen(_node_table(f"boundaries['{name}']", pairs, 2, len(self.points)))
            for name, pairs in (boundaries or {}).items()
        }
        object.__setattr__(self, "boundaries", MappingProxyType(facets))
        self._check_areas()
        for name in facets:
            self.facet_cells(name)

    def _check_areas(self) -> None:
        flat = np.flatnonzero(self.areas <= 1e-14 * self.areas.max(initial=0.0))
        if flat.size:
            raise ValueError(
                f"`cells` must be triangles of positive area; got {flat.size} without, first cell {flat[0]}."
            )

    @property
    def num_nodes(self) -> int:
        """Number of nodes."""
        return len(self.points)

    @property
    def num_cells(self) -> int:
        """Number of triangles."""
        return len(self.cells)

    @property
    def num_dofs(self) -> int:
        """Number of degrees of freedom of a vector field: two per node."""
        return 2 * len(self.points)

    @property
    def areas(self) -> NDArray[np.float64]:
        """Areas of the cells [m^2], shape ``(C,)``."""
        x = self.points[self.cells]
        first, second = x[:, 1] - x[:, 0], x[:, 2] - x[:, 0]
        return 0.5 * np.abs(first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0])

    @property
    def centroids(self) -> NDArray[np.float64]:
        """Centroids of the cells [m], shape ``(C, 2)``."""
        return self.points[self.cells].mean(1)

    def facets(self, name: str) -> NDArray[np.int64]:
        """Node pairs of the facets of a boundary, shape ``(F, 2)``; ValueError if there is none."""
        if name not in self.boundaries:
            known = ", ".join(sorted(self.boundaries)) or "none"
            raise ValueError(f"`name` must be a boundary of the mesh; got '{name}'. It has: {known}.")
        return self.boundaries[name]

    def facet_cells(self, name: str) -> NDArray[np.int64]:
        """The one cell that each facet of a boundary belongs to, shape ``(F,)``."""
        facets = self.facets(name)
        edges = np.sort(self.cells[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2), axis=1)
        keys = edges[:, 0] * self.num_nodes + edges[:, 1]
        wanted = np.sort(facets, axis=1)
        wanted_keys = wanted[:, 0] * self.num_nodes + wanted[:, 1]
        order = np.argsort(keys, kind="stable")
        first = np.searchsorted(keys, wanted_keys, sorter=order)
        last = np.searchsorted(keys, wanted_keys, sorter=order, side="right")
        bad = np.flatnonzero(last - first != 1)
        if bad.size:
            raise ValueError(
                f"`boundaries['{name}']` must hold edges of exactly one cell; got {facets[bad[0]].tolist()}, "
                f"an edge of {last[bad[0]] - first[bad[0]]} cells."
            )
        return order[first] // 3

    def boundary_nodes(self, name: str) -> NDArray[np.int64]:
        """Nodes of a boundary in ascending order, shape ``(B,)``; ValueError if there is no such boundary."""
        return np.unique(self.facets(name))

    def nearest_node(self, point: ArrayLike) -> int:
        """The node nearest to ``point`` [m], shape ``(2,)``; of several, the one of lowest number."""
        target = np.asarray(point, dtype=np.float64)
        if target.shape != (2,) or not np.isfinite(target).all():
            raise ValueError(f"`point` must be two finite coordinates; got {point!r}.")
        return int(np.argmin(((self.points - target) ** 2).sum(1)))

    @staticmethod
    def dofs(nodes: ArrayLike) -> NDArray[np.int64]:
        """Degrees of freedom of nodes, both components of a node together: shape ``(k,)`` to ``(2k,)``."""
        ids = np.asarray(nodes, dtype=np.int64).reshape(-1)
        return (2 * ids[:, None] + np.arange(2)).reshape(-1)

    def restrict(self, cells: ArrayLike) -> "SubMesh":
        """Keep some cells, their nodes, and the facets of named boundaries that belong to them.

        Args:
            cells: A boolean per cell, shape ``(C,)``, or ids of cells.

        Returns:
            The submesh, with nodes and cells in the order of this mesh.

        Raises:
            ValueError: If no cell is kept or an id does not exist.

        Example:
            >>> mesh = rectangle((0, 0), (2, 1), divisions=(2, 1))
            >>> zone = mesh.restrict(mesh.centroids[:, 0] > 1)
            >>> zone.mesh.num_cells, {name: len(f) for name, f in zone.mesh.boundaries.items()}
            (4, {'left': 0, 'right': 1, 'bottom': 1, 'top': 1})
        """
        kept = _cell_ids(cells, self.num_cells)
        nodes = np.unique(self.cells[kept])
        local = np.full(self.num_nodes, -1, dtype=np.int64)
        local[nodes] = np.arange(len(nodes))
        inside = np.zeros(self.num_cells, dtype=bool)
        inside[kept] = True
        facets = {
            name: local[pairs[inside[self.facet_cells(name)]]] for name, pairs in self.boundaries.items()
        }
        return SubMesh(Mesh(self.points[nodes], local[self.cells[kept]], facets), nodes, kept)


@dataclass(frozen=True, eq=False, slots=True)
class SubMesh:
    """Part of a mesh and where it comes from.

    Attributes:
        mesh: The part, a mesh of its own.
        nodes: Node of the parent for each node of the part, ascending, shape ``(N_sub,)``.
        cells: Cell of the parent for each cell of the part, ascending, shape ``(C_sub,)``.
    """

    mesh: Mesh
    nodes: NDArray[np.int64]
    cells: NDArray[np.int64]

    @property
    def dofs(self) -> NDArray[np.int64]:
        """Degree of freedom of the parent for each one of the part, shape ``(2 N_sub,)``."""
        return Mesh.dofs(self.nodes)


def rectangle(lower: tuple[float, float], upper: tuple[float, float], *, divisions: tuple[int, int]) -> Mesh:
    """Mesh a rectangle by squares that are each cut into four triangles by their diagonals.

    Args:
        lower: Corner of least coordinates [m].
        upper: Corner of greatest coordinates [m].
        divisions: Number of squares along each axis, at least 1.

    Returns:
        Mesh of ``4 * nx * ny`` cells with the boundaries ``left``, ``right``, ``bottom`` and ``top``.

    Raises:
        ValueError: If a side has no length or a number of divisions is below 1.

    Example:
        >>> mesh = rectangle((0, 0), (2, 1), divisions=(60, 30))
        >>> mesh.num_cells, mesh.num_dofs
        (7200, 7382)
    """
    nx, ny = (int(count) for count in divisions)
    if nx < 1 or ny < 1 or (nx, ny) != tuple(divisions):
        raise ValueError(f"`divisions` must be two integers of at least 1; got {tuple(divisions)}.")
    if not (lower[0] < upper[0] and lower[1] < upper[1]):
        raise ValueError(
            f"`upper` must exceed `lower` along both axes; got {tuple(upper)} and {tuple(lower)}."
        )
    x, y = np.linspace(lower[0], upper[0], nx + 1), np.linspace(lower[1], upper[1], ny + 1)
    corners = np.stack(np.meshgrid(x, y, indexing="ij"), -1).reshape(-1, 2)
    centres = np.stack(np.meshgrid((x[1:] + x[:-1]) / 2, (y[1:] + y[:-1]) / 2, indexing="ij"), -1).reshape(
        -1, 2
    )
    corner = np.arange((nx + 1) * (ny + 1)).reshape(nx + 1, ny + 1)
    centre = len(corners) + np.arange(nx * ny).reshape(nx, ny)
    ring = (corner[:-1, :-1], corner[1:, :-1], corner[1:, 1:], corner[:-1, 1:])
    triangles = [np.stack([ring[k], ring[(k + 1) % 4], centre], -1) for k in range(4)]
    boundaries = {"left": corner[0], "right": corner[-1], "bottom": corner[:, 0], "top": corner[:, -1]}
    return Mesh(
        np.concatenate([corners, centres]),
        np.stack(triangles, 2).reshape(-1, 3),
        {name: np.stack([line[:-1], line[1:]], 1) for name, line in boundaries.items()},
    )


def _frozen(array: NDArray) -> NDArray:
    """The same array, read-only."""
    array.setflags(write=False)
    return array


def _coordinates(points: ArrayLike) -> NDArray[np.float64]:
    """A checked copy of the coordinates of nodes."""
    array = np.array(points, dtype=np.float64)
    if array.ndim != 2 or array.shape[1] != 2 or not len(array):
        raise ValueError(f"`points` must have shape (N, 2) with N >= 1; got {array.shape}.")
    if not np.isfinite(array).all():
        node = np.flatnonzero(~np.isfinite(array).all(1))[0]
        raise ValueError(f"`points` must be finite; got {array[node].tolist()} at node {node}.")
    return array


def _node_table(name: str, table: ArrayLike, width: int, num_nodes: int) -> NDArray[np.int64]:
    """A checked copy of rows of ``width`` node numbers."""
    array = np.array(table)
    if array.size == 0 and width == 2:
        return np.empty((0, 2), dtype=np.int64)
    if array.ndim != 2 or array.shape[1] != width or not len(array):
        raise ValueError(
            f"`{name}` must have shape (rows, {width}) with at least one row; got {array.shape}."
        )
    if not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"`{name}` must hold integers; got {array.dtype}.")
    if array.min() < 0 or array.max() >= num_nodes:
        raise ValueError(
            f"`{name}` must hold node numbers from 0 to {num_nodes - 1}; got {array.min()} to {array.max()}."
        )
    return array.astype(np.int64)


def _cell_ids(cells: ArrayLike, num_cells: int) -> NDArray[np.int64]:
    """Ascending ids of the cells chosen by a mask or by ids."""
    chosen = np.asarray(cells)
    if chosen.dtype == bool:
        if chosen.shape != (num_cells,):
            raise ValueError(f"`cells` as a mask must have shape ({num_cells},); got {chosen.shape}.")
        chosen = np.flatnonzero(chosen)
    if chosen.size == 0:
        raise ValueError("`cells` must keep at least one cell; got none.")
    if not np.issubdtype(chosen.dtype, np.integer):
        raise TypeError(f"`cells` must be booleans or integers; got {chosen.dtype}.")
    if chosen.min() < 0 or chosen.max() >= num_cells:
        raise ValueError(f"`cells` must lie from 0 to {num_cells - 1}; got {chosen.min()} to {chosen.max()}.")
    return np.unique(chosen.astype(np.int64))
