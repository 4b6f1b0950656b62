"""The scikit-fem assembler: installs with pip, and is the independent oracle of the DOLFINx one."""

from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from types import ModuleType
from typing import Any

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

__all__ = ["SkfemAssembler"]


@dataclass(frozen=True, slots=True)
class SkfemAssembler:
    """Assembles with scikit-fem (>= 10).

    Raises:
        ImportError: If scikit-fem is not installed.

    Example:
        >>> from fem_bridge.assembly.mesh import rectangle
        >>> mesh = rectangle((0, 0), (2, 1), divisions=(4, 2))
        >>> operators = SkfemAssembler().elastic(mesh, poisson=0.3, density=1.0)
        >>> operators.strain.shape, round(float(operators.lumped_mass.sum()), 12)
        ((96, 46), 4.0)

    References:
        Gustafsson & McBain (2020). doi:10.21105/joss.02369
    """

    def __post_init__(self) -> None:
        _skfem()

    @property
    def name(self) -> str:
        """Name and version of scikit-fem."""
        return f"scikit-fem {version('scikit-fem')}"

    def elastic(self, mesh: Mesh, *, poisson: float, density: float) -> ElasticOperators:
        """Operators of plane-strain elasticity with the given Poisson's ratio and density [kg/m^3]."""
        check_poisson(poisson)
        check_density(density)
        vectors = _vector_element()
        return ElasticOperators(
            mesh=mesh,
            strain=_strain(mesh),
            elasticity=plane_strain_elasticity(poisson),
            areas=_areas(mesh),
            consistent_mass=_mass(mesh, vectors, density),
            lumped_mass=np.repeat(_vertex_mass(mesh), 2) * density,
            boundary_mass={name: _boundary_mass(mesh, name) for name in mesh.boundaries},
            poisson=float(poisson),
            density=float(density),
            assembler=self.name,
        )

    def stiffness(self, mesh: Mesh, modulus: ArrayLike, *, poisson: float) -> csr_matrix:
        """Stiffness matrix [Pa] for moduli [Pa] of the cells, shape ``(C,)``, by scikit-fem's quadrature."""
        skfem, elasticity = _skfem(), import_module("skfem.models.elasticity")
        values = check_modulus(modulus, mesh)
        first, second = elasticity.lame_parameters(1.0, poisson)
        form = elasticity.linear_elasticity(first, second)
        basis = skfem.CellBasis(_mesh(mesh), _vector_element())
        scaled = skfem.BilinearForm(lambda u, v, w: w["modulus"] * form.form(u, v, w))
        return canonical(
            scaled.assemble(basis, modulus=basis.with_element(skfem.ElementTriP0()).interpolate(values))
        )

    def scalar_mass(self, mesh: Mesh) -> csr_matrix:
        """Mass matrix [m^2] of a scalar field of degree 1 and unit density, shape ``(N, N)``."""
        return _mass(mesh, _skfem().ElementTriP1(), 1.0)


def _skfem() -> ModuleType:
    """The scikit-fem module, or how to get it."""
    try:
        return import_module("skfem")
    except ImportError as error:
        raise ImportError("This assembler needs scikit-fem: pip install 'sdeuq[fem]'.") from error


def _mesh(mesh: Mesh) -> object:
    """Our mesh as scikit-fem's, with the same numbering of nodes and cells."""
    return _skfem().MeshTri(mesh.points.T.copy(), mesh.cells.T.copy(), sort_t=False)


def _vector_element() -> object:
    """Linear displacements: degree of freedom ``2 * node + component`` in scikit-fem too."""
    skfem = _skfem()
    return skfem.ElementVector(skfem.ElementTriP1())


def _strain(mesh: Mesh) -> csr_matrix:
    """Strain operator: gradients of the shape functions as scikit-fem evaluates them."""
    basis = _skfem().CellBasis(_mesh(mesh), _skfem().ElementTriP1(), intorder=1)
    gradients = np.stack([basis.basis[k][0].grad[:, :, 0] for k in range(3)])  # (node, axis, C)
    dx, dy = gradients[:, 0].T, gradients[:, 1].T
    cell = 3 * np.arange(mesh.num_cells)[:, None]
    x, y = 2 * mesh.cells, 2 * mesh.cells + 1
    entries = ((cell, x, dx), (cell + 1, y, dy), (cell + 2, x, dy), (cell + 2, y, dx))
    rows = np.concatenate([np.broadcast_to(row, x.shape).ravel() for row, _, _ in entries])
    columns = np.concatenate([column.ravel() for _, column, _ in entries])
    values = np.concatenate([value.ravel() for _, _, value in entries])
    return canonical(csr_matrix((values, (rows, columns)), shape=(3 * mesh.num_cells, mesh.num_dofs)))


def _areas(mesh: Mesh) -> NDArray[np.float64]:
    """Areas by quadrature."""
    return _skfem().CellBasis(_mesh(mesh), _skfem().ElementTriP0(), intorder=1).dx.sum(1)


def _mass(mesh: Mesh, element: object, density: float) -> csr_matrix:
    """Consistent mass matrix of an element."""
    skfem = _skfem()
    basis = skfem.CellBasis(_mesh(mesh), element, intorder=2)
    form = skfem.BilinearForm(lambda u, v, w: density * (u * v if np.ndim(u) == 2 else (u * v).sum(0)))
    return canonical(form.assemble(basis))


def _vertex_mass(mesh: Mesh) -> NDArray[np.float64]:
    """Diagonal of the mass matrix by the quadrature at the vertices, for one component."""
    skfem = _skfem()
    corners, weights = np.array([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]), np.full(3, 1 / 6)
    basis = skfem.CellBasis(_mesh(mesh), skfem.ElementTriP1(), quadrature=(corners, weights))
    return skfem.BilinearForm(lambda u, v, w: u * v).assemble(basis).diagonal()


def _boundary_mass(mesh: Mesh, name: str) -> csr_matrix:
    """Mass matrix of a boundary, of vector fields."""
    skfem = _skfem()
    grid: Any = _mesh(mesh)
    wanted = np.sort(mesh.facets(name), axis=1)
    if not len(wanted):
        return csr_matrix((mesh.num_dofs, mesh.num_dofs))
    lookup = {tuple(pair): index for index, pair in enumerate(np.sort(grid.facets, axis=0).T.tolist())}
    facets = np.array([lookup[tuple(pair)] for pair in wanted.tolist()])
    basis = skfem.FacetBasis(grid, _vector_element(), facets=facets, intorder=2)
    return canonical(skfem.BilinearForm(lambda u, v, w: (u * v).sum(0)).assemble(basis))
