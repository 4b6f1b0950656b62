"""The DOLFINx assembler: the only file that imports FEniCS.

Written for DOLFINx 0.5.2 to 0.11 by looking at what the installed release offers, never at its number. Only
0.5.2 (Debian 12) has been run; the branches for later releases follow their sources.
"""

# DOLFINx comes without types
# pyright: reportAttributeAccessIssue=false, reportOperatorIssue=false

import inspect
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_matrix

from fem_bridge.assembly.interface import (
    ElasticOperators,
    canonical,
    check_density,
    check_modulus,
    check_poisson,
    plane_strain_elasticity,
)
from fem_bridge.assembly.mesh import Mesh

__all__ = ["DolfinxAssembler", "mesh_from_dolfinx"]

_VERTEX_RULE = {"quadrature_rule": "vertex", "quadrature_degree": 1}


@dataclass(frozen=True, slots=True)
class DolfinxAssembler:
    """Assembles with DOLFINx and PETSc, in this process alone (``MPI.COMM_SELF``).

    Raises:
        ImportError: If DOLFINx is not installed.

    Example:
        >>> from fem_bridge.assembly.mesh import rectangle
        >>> mesh = rectangle((0, 0), (2, 1), divisions=(4, 2))
        >>> DolfinxAssembler().elastic(mesh, poisson=0.3, density=1.0).strain.shape  # doctest: +SKIP
        (96, 46)

    References:
        Baratta et al. (2023). doi:10.5281/zenodo.10447666
    """

    def __post_init__(self) -> None:
        _fenics()

    @property
    def name(self) -> str:
        """Name and version of DOLFINx."""
        return f"DOLFINx {_fenics().dolfinx.__version__}"

    def elastic(self, mesh: Mesh, *, poisson: float, density: float) -> ElasticOperators:
        """Operators of plane-strain elasticity with the given Poisson's ratio and density [kg/m^3]."""
        check_poisson(poisson)
        check_density(density)
        ufl, grid = _fenics().ufl, _Grid.of(mesh)
        space, vector_dofs = grid.vector_space()
        u, v = ufl.TrialFunction(space), ufl.TestFunction(space)
        mass = grid.constant(density) * ufl.inner(u, v)
        lumped = _assemble(mass * ufl.dx(metadata=_VERTEX_RULE), vector_dofs, vector_dofs)
        return ElasticOperators(
            mesh=mesh,
            strain=grid.strain(space, vector_dofs),
            elasticity=plane_strain_elasticity(poisson),
            areas=grid.areas(),
            consistent_mass=_assemble(mass * ufl.dx, vector_dofs, vector_dofs),
            lumped_mass=np.asarray(lumped.diagonal(), dtype=np.float64),
            boundary_mass=grid.boundary_mass(space, vector_dofs),
            poisson=float(poisson),
            density=float(density),
            assembler=self.name,
        )

    def stiffness(self, mesh: Mesh, modulus: ArrayLike, *, poisson: float) -> csr_matrix:
        """Stiffness matrix [Pa] for Young's moduli [Pa] of the cells, shape ``(C,)``, by the form itself."""
        check_poisson(poisson)
        values = check_modulus(modulus, mesh)
        ufl, grid = _fenics().ufl, _Grid.of(mesh)
        space, dofs = grid.vector_space()
        young = grid.cell_function(values)
        ratio = grid.constant(poisson)
        first, second = young * ratio / ((1 + ratio) * (1 - 2 * ratio)), young / (2 * (1 + ratio))
        u, v = ufl.TrialFunction(space), ufl.TestFunction(space)
        strain_u, strain_v = ufl.sym(ufl.grad(u)), ufl.sym(ufl.grad(v))
        stress = first * ufl.tr(strain_u) * ufl.Identity(2) + 2 * second * strain_u
        return _assemble(ufl.inner(stress, strain_v) * ufl.dx, dofs, dofs)

    def scalar_mass(self, mesh: Mesh) -> csr_matrix:
        """Mass matrix [m^2] of a scalar field of degree 1 and unit density, shape ``(N, N)``."""
        ufl, grid = _fenics().ufl, _Grid.of(mesh)
        space, dofs = grid.scalar_space()
        u, v = ufl.TrialFunction(space), ufl.TestFunction(space)
        return _assemble(u * v * ufl.dx, dofs, dofs)


def mesh_from_dolfinx(
    mesh: object, facet_tags: object | None = None, *, names: Mapping[int, str] | None = None
) -> Mesh:
    """Take a mesh of straight triangles out of DOLFINx (from gmsh, XDMF or a generator of its own).

    Args:
        mesh: A ``dolfinx.mesh.Mesh`` of triangles held by one process; a third coordinate is dropped.
        facet_tags: ``dolfinx.mesh.MeshTags`` of facets; ``None`` gives a mesh without named boundaries.
        names: Name of each tag value; a tag without one is named by its number.

    Returns:
        The mesh, with the nodes and cells numbered as DOLFINx numbers its geometry and cells.

    Raises:
        ValueError: If the cells are not straight triangles.
    """
    geometry, topology = mesh.geometry, mesh.topology
    nodes = _geometry_nodes(mesh)
    if nodes.shape[1] != 3:
        raise ValueError(f"`mesh` must consist of straight triangles; got cells of {nodes.shape[1]} nodes.")
    boundaries: dict[str, NDArray[np.int64]] = {}
    if facet_tags is not None:
        vertices = _facet_nodes(mesh, nodes)
        for tag in np.unique(facet_tags.values).tolist():
            boundaries[(names or {}).get(tag, str(tag))] = vertices[facet_tags.find(tag)]
    used = topology.index_map(2).size_local
    return Mesh(geometry.x[:, :2], nodes[:used], boundaries)


@dataclass(frozen=True, slots=True)
class _Grid:
    """A DOLFINx mesh made from ours, and its numbering in terms of ours."""

    grid: object
    ours: Mesh
    nodes: NDArray[np.int64]  # our node for each of their geometry nodes
    cells: NDArray[np.int64]  # our cell for each of theirs

    @staticmethod
    def of(mesh: Mesh) -> "_Grid":
        """Build the DOLFINx mesh and read off the permutations."""
        grid = _create_mesh(mesh)
        nodes = np.asarray(grid.geometry.input_global_indices, dtype=np.int64)
        cells = np.asarray(grid.topology.original_cell_index, dtype=np.int64)
        return _Grid(grid, mesh, nodes, cells)

    def scalar_space(self) -> tuple[object, NDArray[np.int64]]:
        """Linear scalar fields, and our node for each of their degrees of freedom."""
        space = _space(self.grid, "Lagrange", 1, ())
        dofs = np.empty(self.ours.num_nodes, dtype=np.int64)
        dofs[_dof_table(space, len(self.cells))] = self.nodes[_geometry_nodes(self.grid)]
        return space, dofs

    def vector_space(self) -> tuple[object, NDArray[np.int64]]:
        """Linear displacement fields, and our degree of freedom for each of theirs."""
        space = _space(self.grid, "Lagrange", 1, (2,))
        blocks = np.empty(self.ours.num_nodes, dtype=np.int64)
        blocks[_dof_table(space, len(self.cells))] = self.nodes[_geometry_nodes(self.grid)]
        return space, Mesh.dofs(blocks)

    def cell_function(self, values: NDArray[np.float64]) -> object:
        """A function that is constant in each cell, from values in our order of cells."""
        function = _fenics().fem.Function(_space(self.grid, "DG", 0, ()))
        table = _dof_table(function.function_space, len(self.cells))
        function.x.array[table[:, 0]] = values[self.cells]
        return function

    def constant(self, value: float) -> object:
        """A number that is data of the form, so that another value needs no new compilation."""
        fenics = _fenics()
        return fenics.fem.Constant(self.grid, fenics.scalar(value))

    def areas(self) -> NDArray[np.float64]:
        """Areas of our cells, by quadrature."""
        ufl = _fenics().ufl
        space = _space(self.grid, "DG", 0, ())
        cell = np.empty(len(self.cells), dtype=np.int64)
        cell[_dof_table(space, len(self.cells))[:, 0]] = self.cells
        u, v = ufl.TrialFunction(space), ufl.TestFunction(space)
        return np.asarray(_assemble(u * v * ufl.dx, cell, cell).diagonal(), dtype=np.float64)

    def strain(self, space: object, dofs: NDArray[np.int64]) -> csr_matrix:
        """Strain operator: the form with test functions that are constant in each cell, over the areas."""
        ufl = _fenics().ufl
        stresses = _space(self.grid, "DG", 0, (3,))
        blocks = np.empty(len(self.cells), dtype=np.int64)
        blocks[_dof_table(stresses, len(self.cells))[:, 0]] = self.cells
        rows = (3 * blocks[:, None] + np.arange(3)).reshape(-1)
        u, tau = ufl.TrialFunction(space), ufl.TestFunction(stresses)
        strain = ufl.sym(ufl.grad(u))
        engineering = ufl.as_vector([strain[0, 0], strain[1, 1], strain[0, 1] + strain[1, 0]])
        integrated = _assemble(ufl.inner(engineering, tau) * ufl.dx, rows, dofs)
        scale = np.repeat(1 / self.areas(), 3)
        return canonical(csr_matrix(integrated.multiply(scale[:, None])))

    def boundary_mass(self, space: object, dofs: NDArray[np.int64]) -> dict[str, csr_matrix]:
        """Mass matrices of the named boundaries."""
        ufl = _fenics().ufl
        names = [name for name in self.ours.boundaries if len(self.ours.facets(name))]
        tags = self._facet_tags(names)
        ds = ufl.Measure("ds", domain=_domain(self.grid), subdomain_data=tags)
        u, v = ufl.TrialFunction(space), ufl.TestFunction(space)
        empty = {name: csr_matrix((2 * self.ours.num_nodes,) * 2) for name in self.ours.boundaries}
        return empty | {
            name: _assemble(ufl.inner(u, v) * ds(k + 1), dofs, dofs) for k, name in enumerate(names)
        }

    def _facet_tags(self, names: list[str]) -> object:
        """Facets of the boundaries, tagged 1, 2, ... in the order of ``names``."""
        pairs = self.nodes[_facet_nodes(self.grid, _geometry_nodes(self.grid))]
        key = _edge_keys(pairs, self.ours.num_nodes)
        order = np.argsort(key)
        found = [
            order[np.searchsorted(key, _edge_keys(self.ours.facets(name), self.ours.num_nodes), sorter=order)]
            for name in names
        ]
        facets = np.concatenate([*found, np.empty(0, dtype=np.int64)]).astype(np.int32)
        tags = np.concatenate(
            [np.full(len(f), k + 1, dtype=np.int32) for k, f in enumerate(found)] or [facets]
        )
        ranked = np.argsort(facets)
        return _fenics().mesh.meshtags(self.grid, 1, facets[ranked], tags[ranked])


def _fenics() -> SimpleNamespace:
    """The FEniCS modules, or how to get them."""
    try:
        import basix  # noqa: F401
        import dolfinx
        import dolfinx.fem.petsc
        import ufl
        from mpi4py import MPI
        from petsc4py import PETSc
    except ImportError as error:
        raise ImportError(
            "This assembler needs DOLFINx, which is not on PyPI: apt install python3-dolfinx, or "
            "conda install -c conda-forge fenics-dolfinx. SkfemAssembler() only needs pip install "
            "'sdeuq[fem]'."
        ) from error
    return SimpleNamespace(
        dolfinx=dolfinx,
        fem=dolfinx.fem,
        mesh=dolfinx.mesh,
        ufl=ufl,
        comm=MPI.COMM_SELF,
        scalar=PETSc.ScalarType,
    )


@contextmanager
def _compiling() -> Iterator[None]:
    """Keep to itself what the form compiler of old releases says of NumPy and of the files it leaves open."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", ResourceWarning)
        yield


def _domain(grid: object) -> object:
    """The UFL domain of a mesh: the mesh itself before release 0.7."""
    return grid.ufl_domain()


def _create_mesh(mesh: Mesh) -> object:
    """A DOLFINx mesh with our nodes and cells, in an order of its own."""
    fenics = _fenics()
    create = fenics.mesh.create_mesh
    cells = np.asarray(mesh.cells)
    if hasattr(fenics.ufl, "VectorElement"):
        element = fenics.ufl.VectorElement("Lagrange", fenics.ufl.triangle, 1)
    else:
        import basix.ufl

        element = basix.ufl.element("Lagrange", "triangle", 1, shape=(2,))
    domain = fenics.ufl.Mesh(element)
    order = [name for name in inspect.signature(create).parameters if name in ("x", "e", "domain")]
    values = {"x": np.array(mesh.points), "e": domain, "domain": domain}
    with _compiling():
        return create(fenics.comm, cells, *(values[name] for name in order))


def _space(grid: object, family: str, degree: int, shape: tuple[int, ...]) -> object:
    """A function space; ``shape`` is that of the field's values."""
    fem = _fenics().fem
    with _compiling():
        if hasattr(fem, "functionspace"):
            return fem.functionspace(grid, (family, degree, shape) if shape else (family, degree))
        if shape:
            return fem.VectorFunctionSpace(grid, (family, degree), dim=shape[0])
        return fem.FunctionSpace(grid, (family, degree))


def _dof_table(space: object, num_cells: int) -> NDArray[np.int64]:
    """Blocks of degrees of freedom of the cells, shape ``(C, k)``."""
    dofmap = space.dofmap
    return np.stack([dofmap.cell_dofs(cell) for cell in range(num_cells)]).astype(np.int64)


def _geometry_nodes(grid: object) -> NDArray[np.int64]:
    """Geometry nodes of the cells, shape ``(C, 3)``; releases keep them in three ways."""
    geometry = grid.geometry
    table = (
        geometry.dofmaps[0]
        if hasattr(geometry, "dofmaps") and not callable(geometry.dofmaps)
        else geometry.dofmap
    )
    if hasattr(table, "array"):
        return np.asarray(table.array, dtype=np.int64).reshape(table.num_nodes, -1)
    return np.asarray(table, dtype=np.int64)


def _facet_nodes(grid: object, nodes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Geometry nodes of the facets, shape ``(F, 2)``."""
    topology = grid.topology
    topology.create_connectivity(1, 0)
    topology.create_connectivity(2, 0)
    vertices = np.asarray(topology.connectivity(2, 0).array, dtype=np.int64).reshape(-1, 3)
    node_of_vertex = np.empty(vertices.max() + 1, dtype=np.int64)
    node_of_vertex[vertices] = nodes[: len(vertices)]
    return node_of_vertex[np.asarray(topology.connectivity(1, 0).array).reshape(-1, 2)]


def _edge_keys(pairs: NDArray[np.int64], num_nodes: int) -> NDArray[np.int64]:
    """One number per edge, whatever its orientation."""
    return pairs.min(1) * num_nodes + pairs.max(1)


def _assemble(form: object, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> csr_matrix:
    """Assemble through PETSc and renumber: ``rows[i]`` and ``columns[j]`` are ours for their i and j."""
    fem: ModuleType = _fenics().fem
    with _compiling():
        compiled = fem.form(form)
    matrix = fem.petsc.assemble_matrix(compiled)
    matrix.assemble()
    indptr, indices, data = matrix.getValuesCSR()
    shape = matrix.getSize()
    matrix.destroy()
    theirs = csr_matrix((np.real(data), indices, indptr), shape=shape).tocoo()
    return canonical(csr_matrix((theirs.data, (rows[theirs.row], columns[theirs.col])), shape=shape))
