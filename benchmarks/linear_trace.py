r"""Wasserstein generator against an exact law: a linear problem whose traces and responses are Gaussian.

A plane-strain square is clamped on three sides; on the fourth, ``y = 1``, the vertical displacement is

.. math:: u_y(s, 1) = \sum_{k=1}^{6} a_k \sin(k \pi s), \qquad a_k \sim \mathcal{N}(0, k^{-2}).

The trace on the interface of a zone of interest, and the quantities of interest in it, are linear in ``a``: with the
matrices ``M`` of the finite-element solution their laws are exactly :math:`\mathcal{N}(0, M \Sigma M^T)`. A generator
trained on snapshots of the trace drives the submodel, and what comes out is compared with the exact law. The figures
have to fail for an untrained generator, one that emits the mean, and one that replays a single snapshot. With
``|a_k| - E|a_k|`` in place of ``a_k`` the law is not Gaussian, and the generator has to beat the Gaussian fit.

The library's generator starts as the Gaussian fit of the data (:mod:`uq.generator`); the untrained control is
therefore a plain network of the same size with random weights, without that start.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist

import numpy as np
import torch
from scipy.sparse import csr_matrix
from scipy.sparse.linalg import splu
from torch import Tensor

from benchmarks.check import Figure, Section, at_least, at_most, main, reported, within
from fem_bridge.assembly import Mesh, default_assembler, rectangle
from fem_bridge.zones import Zone, cut_zone
from sde.networks import perceptron
from sde.noise import NoiseStream, Purpose
from uq.baselines import PodGaussian
from uq.generator import WassersteinGenerator
from uq.metrics import sliced_wasserstein, wasserstein_1d
from uq.training import WassersteinSettings, train_wasserstein

__all__ = ["SECTIONS", "LinearProblem", "absolute_law", "gaussian_law", "negative_controls", "solve_problem"]

TERMS = 6
SNAPSHOTS = 2000
QUANTITIES = ("u_y at the centre", "u_x off the centre", "mean strain yy")


@dataclass(frozen=True, slots=True, eq=False)
class LinearProblem:
    """The matrices of a linear problem, from six coefficients to traces and quantities of interest.

    Attributes:
        trace: Coefficients to interface displacements, shape ``(D, 6)``.
        response: Interface displacements to quantities of interest, by the submodel, shape ``(q, D)``.
        full_response: Coefficients to quantities of interest, by the full model, shape ``(q, 6)``.
        assembler: Name of the finite-element assembler.
    """

    trace: Tensor
    response: Tensor
    full_response: Tensor
    assembler: str

    def coefficients(self, noise: NoiseStream, *, absolute: bool) -> Tensor:
        """Random coefficients of the outer data, of mean 0, shape ``(n, 6)``."""
        normals = noise.normals(TERMS, purpose=Purpose.INPUTS, dtype=torch.float64)
        values = normals.abs() - math.sqrt(2 / math.pi) if absolute else normals
        return values / torch.arange(1, TERMS + 1)

    def traces(self, noise: NoiseStream, *, absolute: bool) -> Tensor:
        """Traces of the full model, shape ``(n, D)``."""
        return self.coefficients(noise, absolute=absolute) @ self.trace.mT

    def quantity_deviations(self) -> Tensor:
        """Exact standard deviations of the quantities of interest under the Gaussian law, shape ``(q,)``."""
        scaled = self.full_response / torch.arange(1, TERMS + 1)
        return scaled.square().sum(-1).sqrt()


@cache
def solve_problem(divisions: int) -> LinearProblem:
    """Assemble and solve the problem on ``divisions**2`` squares, a multiple of 10."""
    mesh, assembler = rectangle((0, 0), (1, 1), divisions=(divisions, divisions)), default_assembler()
    zone = cut_zone(mesh, (0.3, 0.4), (0.7, 0.8))
    stiffness, _ = _stiffness(mesh)
    border = np.unique(np.concatenate([mesh.boundary_nodes(name) for name in mesh.boundaries]))
    top = mesh.boundary_nodes("top")
    terms = np.arange(1, TERMS + 1)
    driven = np.zeros((mesh.num_dofs, TERMS))
    driven[2 * top + 1] = np.sin(np.pi * mesh.points[top, :1] * terms)
    full = _solve(stiffness, driven, Mesh.dofs(border))
    zone_stiffness, zone_strain = _stiffness(zone.mesh)
    unit = np.zeros((zone.mesh.num_dofs, len(zone.interface_dofs)))
    unit[zone.interface_dofs, np.arange(len(zone.interface_dofs))] = 1
    inner = _solve(zone_stiffness, unit, zone.interface_dofs)
    functionals = _functionals(zone, zone_strain)
    in_zone = full[zone.parent_dofs]
    return LinearProblem(
        trace=torch.from_numpy(in_zone[zone.interface_dofs]),
        response=torch.from_numpy(functionals @ inner),
        full_response=torch.from_numpy(functionals @ in_zone),
        assembler=assembler.name,
    )


def _stiffness(mesh: Mesh) -> tuple[csr_matrix, csr_matrix]:
    """Stiffness of unit modulus, and the strain operator."""
    operators = default_assembler().elastic(mesh, poisson=0.3, density=1.0)
    return operators.stiffness(np.ones(mesh.num_cells)), operators.strain


def _solve(stiffness: csr_matrix, prescribed: np.ndarray, fixed: np.ndarray) -> np.ndarray:
    """Static displacements under prescribed values at the fixed degrees of freedom, one column per case."""
    free = np.setdiff1d(np.arange(stiffness.shape[0]), fixed)
    result = prescribed.copy()
    result[free] = splu(stiffness[free][:, free].tocsc()).solve(-stiffness[free][:, fixed] @ prescribed[fixed])
    return result


def _functionals(zone: Zone, strain: csr_matrix) -> np.ndarray:
    """Quantities of interest as rows over the zone's displacements."""
    mesh = zone.mesh
    rows = np.zeros((len(QUANTITIES), mesh.num_dofs))
    rows[0, 2 * mesh.nearest_node((0.5, 0.6)) + 1] = 1
    rows[1, 2 * mesh.nearest_node((0.4, 0.7))] = 1
    rows[2] = mesh.areas / mesh.areas.sum() @ strain[1::3]
    return rows
