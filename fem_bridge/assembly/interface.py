"""What an assembler delivers: the operators of plane-strain elasticity as arrays."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_matrix

from fem_bridge.assembly.mesh import Mesh

__all__ = [
    "Assembler",
    "ElasticOperators",
    "default_assembler",
    "load_operators",
    "plane_strain_elasticity",
    "save_operators",
]


@dataclass(frozen=True, eq=False, slots=True)
class ElasticOperators:
    r"""Operators of plane-strain elasticity with one Young's modulus per cell, for linear displacements.

    .. math:: K(E) = S^T \, \mathrm{diag}(a_c E_c) \otimes D \, S

    with the strain operator ``S``, the areas ``a_c`` and the elasticity matrix ``D`` of unit modulus: linear
    in the moduli, so a sample of a random medium needs no assembly.

    Attributes:
        mesh: The mesh; degree of freedom ``2 * node + component``.
        strain: Nodal displacements [m] to strains (xx, yy, engineering xy) of each cell, shape ``(3C, 2N)``.
        elasticity: Strains to stresses for a modulus of 1 Pa, shape ``(3, 3)``.
        areas: Areas of the cells [m^2], shape ``(C,)``.
        consistent_mass: Mass matrix [kg/m], shape ``(2N, 2N)``.
        lumped_mass: Mass by the quadrature at the vertices [kg/m], shape ``(2N,)``.
        boundary_mass: Boundary name to the matrix that takes nodal tractions [Pa] to nodal forces [N/m],
            shape ``(2N, 2N)``.
        poisson: Poisson's ratio.
        density: Mass per volume [kg/m^3].
        assembler: Name of the assembler.
    """

    mesh: Mesh
    strain: csr_matrix
    elasticity: NDArray[np.float64]
    areas: NDArray[np.float64]
    consistent_mass: csr_matrix
    lumped_mass: NDArray[np.float64]
    boundary_mass: Mapping[str, csr_matrix]
    poisson: float
    density: float
    assembler: str

    def stiffness(self, modulus: ArrayLike) -> csr_matrix:
        """Stiffness matrix [Pa] for Young's moduli [Pa] of the cells, shape ``(C,)``."""
        values = check_modulus(modulus, self.mesh)
        blocks = (values * self.areas)[:, None, None] * self.elasticity
        cells = np.arange(3 * len(values)).reshape(-1, 3)
        rows, columns = np.repeat(cells, 3, axis=1).ravel(), np.tile(cells, (1, 3)).ravel()
        weight = csr_matrix((blocks.ravel(), (rows, columns)))
        return canonical(self.strain.T @ weight @ self.strain)


@runtime_checkable
class Assembler(Protocol):
    """A finite-element code that turns a mesh into arrays."""

    @property
    def name(self) -> str:
        """Name and version of the code."""
        ...

    def elastic(self, mesh: Mesh, *, poisson: float, density: float) -> ElasticOperators:
        """Operators of plane-strain elasticity with the given Poisson's ratio and density [kg/m^3]."""
        ...

    def stiffness(self, mesh: Mesh, modulus: ArrayLike, *, poisson: float) -> csr_matrix:
        """Stiffness matrix by the code's own quadrature, to check :class:`ElasticOperators` against."""
        ...

    def scalar_mass(self, mesh: Mesh) -> csr_matrix:
        """Mass matrix [m^2] of a scalar field of degree 1 and unit density, shape ``(N, N)``."""
        ...


def default_assembler() -> Assembler:
    """The DOLFINx assembler where DOLFINx can be imported, else scikit-fem's.

    Raises:
        ImportError: If neither is installed.
    """
    try:
        return importlib.import_module("fem_bridge.assembly.dolfinx").DolfinxAssembler()
    except ImportError:
        return importlib.import_module("fem_bridge.assembly.skfem").SkfemAssembler()


def plane_strain_elasticity(poisson: float) -> NDArray[np.float64]:
    r"""Strains (xx, yy, engineering xy) to stresses in plane strain for a modulus of 1.

    Args:
        poisson: Poisson's ratio, in (-1, 0.5).

    Returns:
        Matrix of shape ``(3, 3)``.

    Raises:
        ValueError: If Poisson's ratio is out of range.

    Example:
        >>> plane_strain_elasticity(0.0)
        array([[1. , 0. , 0. ],
               [0. , 1. , 0. ],
               [0. , 0. , 0.5]])
    """
    check_poisson(poisson)
    lame = poisson / ((1 + poisson) * (1 - 2 * poisson))
    shear = 1 / (2 * (1 + poisson))
    return np.array([[lame + 2 * shear, lame, 0.0], [lame, lame + 2 * shear, 0.0], [0.0, 0.0, shear]])


def check_poisson(poisson: float) -> None:
    """Refuse a Poisson's ratio out of (-1, 0.5)."""
    if not -1 < poisson < 0.5:
        raise ValueError(f"`poisson` must lie in (-1, 0.5); got {poisson}.")


def check_density(density: float) -> None:
    """Refuse a density that is not positive and finite."""
    if not 0 < density < np.inf:
        raise ValueError(f"`density` must be positive; got {density}.")


def check_modulus(modulus: ArrayLike, mesh: Mesh) -> NDArray[np.float64]:
    """Moduli of the cells as float64, or a ValueError."""
    values = np.asarray(modulus, dtype=np.float64)
    if values.shape != (mesh.num_cells,):
        raise ValueError(f"`modulus` must have shape ({mesh.num_cells},), one per cell; got {values.shape}.")
    bad = np.flatnonzero(~((values > 0) & (values < np.inf)))
    if bad.size:
        raise ValueError(f"`modulus` must be positive and finite; got {values[bad[0]]} at cell {bad[0]}.")
    return values


def canonical(matrix: csr_matrix) -> csr_matrix:
    """The same matrix as a CSR matrix with sorted, summed entries and no stored zeros."""
    result = csr_matrix(matrix, dtype=np.float64)
    result.sum_duplicates()
    result.eliminate_zeros()
    result.sort_indices()
    return result


def save_operators(operators: ElasticOperators, path: str | Path) -> None:
    """Write operators to an ``.npz`` file that :func:`load_operators` reads without the assembler."""
    arrays: dict[str, NDArray] = {
        "points": operators.mesh.points,
        "cells": operators.mesh.cells,
        "elasticity": operators.elasticity,
        "areas": operators.areas,
        "lumped_mass": operators.lumped_mass,
        "poisson": np.array(operators.poisson),
        "density": np.array(operators.density),
        "assembler": np.array(operators.assembler),
        **_pack("strain", operators.strain),
        **_pack("consistent_mass", operators.consistent_mass),
    }
    for name, facets in operators.mesh.boundaries.items():
        arrays[f"facets/{name}"] = facets
        arrays |= _pack(f"boundary_mass/{name}", operators.boundary_mass[name])
    with Path(path).open("wb") as file:
        np.savez_compressed(file, **arrays)  # pyright: ignore[reportArgumentType]


def load_operators(path: str | Path) -> ElasticOperators:
    """Read the operators that :func:`save_operators` wrote.

    Raises:
        ValueError: If the file holds something else or is damaged.
    """
    try:
        with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return _unpack_operators(dict(arrays))
    except FileNotFoundError:
        raise
    except Exception as error:
        raise ValueError(
            f"`path` must be a file of operators; got '{path}', which does not read: {error}."
        ) from error


def _pack(name: str, matrix: csr_matrix) -> dict[str, NDArray]:
    """The arrays of a sparse matrix, under its name."""
    return {
        f"{name}.data": matrix.data,
        f"{name}.indices": matrix.indices,
        f"{name}.indptr": matrix.indptr,
        f"{name}.shape": np.array(matrix.shape),
    }


def _unpack(name: str, arrays: Mapping[str, NDArray]) -> csr_matrix:
    """The sparse matrix that :func:`_pack` took apart."""
    parts = tuple(arrays[f"{name}.{part}"] for part in ("data", "indices", "indptr"))
    rows, columns = arrays[f"{name}.shape"].tolist()
    return csr_matrix(parts, shape=(rows, columns))


def _unpack_operators(arrays: Mapping[str, NDArray]) -> ElasticOperators:
    """Operators from the arrays of a file."""
    names = [key.removeprefix("facets/") for key in arrays if key.startswith("facets/")]
    mesh = Mesh(arrays["points"], arrays["cells"], {name: arrays[f"facets/{name}"] for name in names})
    return ElasticOperators(
        mesh=mesh,
        strain=_unpack("strain", arrays),
        elasticity=arrays["elasticity"],
        areas=arrays["areas"],
        consistent_mass=_unpack("consistent_mass", arrays),
        lumped_mass=arrays["lumped_mass"],
        boundary_mass={name: _unpack(f"boundary_mass/{name}", arrays) for name in names},
        poisson=float(arrays["poisson"]),
        density=float(arrays["density"]),
        assembler=str(arrays["assembler"]),
    )
