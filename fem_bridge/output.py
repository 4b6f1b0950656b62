"""Files for ParaView: meshes and displacement histories as VTK XML, written without any dependency."""

import base64
import struct
from collections.abc import Mapping
from pathlib import Path
from xml.sax.saxutils import quoteattr

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from fem_bridge.assembly import Mesh

__all__ = ["write_series", "write_vtu"]

_TRIANGLE = 5  # VTK's number of the linear triangle
_TYPES = {"float64": "Float64", "int64": "Int64", "uint8": "UInt8"}


def write_vtu(
    path: Path | str,
    mesh: Mesh,
    *,
    point_data: Mapping[str, ArrayLike] | None = None,
    cell_data: Mapping[str, ArrayLike] | None = None,
) -> Path:
    """Write a mesh with fields as a VTK XML file (``.vtu``) that ParaView opens.

    Args:
        path: The file; its folder is made where missing.
        mesh: The mesh.
        point_data: Name to nodal values: scalars ``(N,)``, or vectors ``(N, 2)`` or ``(2 N,)``.
        cell_data: Name to values of the cells, shape ``(C,)`` or ``(C, 2)``.

    Returns:
        The path.

    Raises:
        ValueError: If a field does not fit the mesh.

    Example:
        >>> import tempfile
        >>> mesh = Mesh([[0, 0], [1, 0], [0, 1]], [[0, 1, 2]])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_vtu(f"{folder}/one.vtu", mesh, cell_data={"modulus": [210e9]}).name
        'one.vtu'

    References:
        VTK file formats, section XML. https://docs.vtk.org/en/latest/vtk_file_formats/vtkxml_file_format.html
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    points = _three(mesh.points)
    ends = 3 * np.arange(1, mesh.num_cells + 1, dtype=np.int64)
    kinds = np.full(mesh.num_cells, _TRIANGLE, dtype=np.uint8)
    nodal = [_array(name, _field(name, v, mesh.num_nodes)) for name, v in (point_data or {}).items()]
    cellwise = [_array(name, _field(name, v, mesh.num_cells)) for name, v in (cell_data or {}).items()]
    lines = [
        '<?xml version="1.0"?>',
        '<VTKFile type="UnstructuredGrid" version="1.0" byte_order="LittleEndian" header_type="UInt64">',
        f'<UnstructuredGrid><Piece NumberOfPoints="{mesh.num_nodes}" NumberOfCells="{mesh.num_cells}">',
        "<Points>",
        _array("points", points),
        "</Points>",
        "<Cells>",
        _array("connectivity", np.ascontiguousarray(mesh.cells).reshape(-1)),
        _array("offsets", ends),
        _array("types", kinds),
        "</Cells>",
        "<PointData>",
        *nodal,
        "</PointData>",
        "<CellData>",
        *cellwise,
        "</CellData>",
        "</Piece></UnstructuredGrid>",
        "</VTKFile>",
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


def write_series(
    folder: Path | str, mesh: Mesh, displacement: Tensor, times: Tensor, *, name: str = "displacement"
) -> Path:
    """Write one displacement history as a time series: a ``.pvd`` file and one ``.vtu`` per instant.

    Args:
        folder: Where the files go.
        mesh: The mesh.
        displacement: Displacements [m] of one sample, shape ``(T, 2 N)``.
        times: Instants [s], shape ``(T,)``.
        name: Name of the field and of the ``.pvd`` file.

    Returns:
        The ``.pvd`` file; open it in ParaView, and use the filter *Warp By Vector* for the deformed mesh.

    Raises:
        ValueError: If the history does not fit mesh and instants.
    """
    if tuple(displacement.shape) != (len(times), mesh.num_dofs):
        raise ValueError(
            f"`displacement` must have shape ({len(times)}, {mesh.num_dofs}), instants by degrees of "
            f"freedom; got {tuple(displacement.shape)}."
        )
    folder = Path(folder)
    entries = []
    for step, (time, row) in enumerate(zip(times.tolist(), displacement.detach().cpu(), strict=True)):
        file = write_vtu(folder / f"{name}-{step:05d}.vtu", mesh, point_data={name: row.double().numpy()})
        entries.append(f'<DataSet timestep="{time:.12g}" file={quoteattr(file.name)}/>')
    index = folder / f"{name}.pvd"
    head = '<?xml version="1.0"?>\n<VTKFile type="Collection" version="1.0"><Collection>'
    index.write_text("\n".join([head, *entries, "</Collection></VTKFile>"]) + "\n")
    return index


def _field(name: str, values: ArrayLike, count: int) -> NDArray:
    """A field of ``count`` scalars or vectors in three dimensions, float64."""
    array = np.asarray(values, dtype=np.float64)
    if array.shape == (2 * count,):
        array = array.reshape(count, 2)
    if array.shape not in ((count,), (count, 2)):
        raise ValueError(f"`{name}` must have shape ({count},) or ({count}, 2); got {array.shape}.")
    return array if array.ndim == 1 else _three(array)


def _three(vectors: NDArray) -> NDArray:
    """Plane vectors with a third component 0."""
    return np.concatenate((vectors, np.zeros((len(vectors), 1))), axis=1)


def _array(name: str, values: NDArray) -> str:
    """A DataArray element with its bytes, little-endian, in base64 after their count."""
    data = np.ascontiguousarray(values).astype(values.dtype.newbyteorder("<")).tobytes()
    text = base64.b64encode(struct.pack("<Q", len(data)) + data).decode()
    components = values.shape[1] if values.ndim == 2 else 1
    kind = _TYPES[values.dtype.name]
    return (
        f'<DataArray type="{kind}" Name={quoteattr(name)} NumberOfComponents="{components}" '
        f'format="binary">{text}</DataArray>'
    )
