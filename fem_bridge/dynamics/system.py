"""The assembled system in torch: internal forces, masses, constraints and critical time steps of a batch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fem_bridge.assembly.interface import ElasticOperators
from fem_bridge.dynamics.internal_force import (
    ConstantProduct,
    SampledForce,
    element_eigenvalues,
    element_strains,
    element_table,
    largest_eigenvalue,
    sparse_tensor,
    start_vector,
    stiffness_factor,
)

__all__ = ["DofChoice", "ElasticSystem"]

DofChoice = Sequence[str] | Sequence[int] | NDArray[np.int64] | Tensor


@dataclass(frozen=True, eq=False, slots=True)
class ElasticSystem:
    r"""A linear elastic body with fixed and driven degrees of freedom, on one device.

    .. math:: M \ddot u + K(E) \, u = f(t), \qquad u = u_0 \text{ if fixed}, \quad u = g(t) \text{ if driven}.

    With the factor ``B`` of :math:`K(E) = B^T \mathrm{diag}(E) B`, whose three rows of a cell share its
    Young's modulus, the internal forces of a batch are two products with constant sparse matrices: nothing
    is assembled for a sample. Build it by :meth:`from_operators`.

    Attributes:
        operators: What the assembler delivered.
        fixed: Degrees of freedom held at rest, ascending, shape ``(f,)``.
        driven: Degrees of freedom with prescribed motion, in the caller's order, shape ``(m,)``.
        lumped_mass: Lumped mass [kg/m], shape ``(D,)``.
        inverse_mass: Its inverse, zero where the motion is prescribed, shape ``(D,)``.
        factor: ``B``, sparse, shape ``(3C, D)``.
        factor_transposed: Its transpose, sparse, shape ``(D, 3C)``.
        element_eigenvalues: Largest eigenvalue of each cell for a modulus of 1 [1/(Pa s^2)], shape ``(C,)``.
        element_table: Gradients of two shape functions and area of each cell, shape ``(C, 5)``.

    References:
        Hughes (2000), The Finite Element Method, chapter 9. ISBN 978-0-486-41181-1
    """

    operators: ElasticOperators
    fixed: Tensor
    driven: Tensor
    lumped_mass: Tensor
    inverse_mass: Tensor
    factor: Tensor
    factor_transposed: Tensor
    element_eigenvalues: Tensor
    element_table: Tensor

    @staticmethod
    def from_operators(
        operators: ElasticOperators,
        *,
        fixed: DofChoice = (),
        driven: DofChoice = (),
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ) -> "ElasticSystem":
        """Move assembled operators to torch.

        Args:
            operators: What an assembler delivered.
            fixed: Degrees of freedom held at rest: names of boundaries (both components) or numbers.
            driven: Degrees of freedom with prescribed motion, likewise; none of them fixed.
            dtype: ``torch.float32`` or ``torch.float64``.
            device: Where the time stepping runs.

        Returns:
            The system.

        Raises:
            TypeError: If the dtype is neither, or degrees of freedom are not names or integers.
            ValueError: If a boundary or a degree of freedom does not exist, one is both fixed and driven, or
                none is left free.

        Example:
            >>> from fem_bridge.assembly import rectangle
            >>> from fem_bridge.assembly.skfem import SkfemAssembler
            >>> mesh = rectangle((0, 0), (2, 1), divisions=(4, 2))
            >>> operators = SkfemAssembler().elastic(mesh, poisson=0.3, density=1.0)
            >>> ElasticSystem.from_operators(operators, fixed=("right",)).fixed
            tensor([24, 25, 26, 27, 28, 29])
        """
        if dtype not in (torch.float32, torch.float64):
            raise TypeError(f"`dtype` must be torch.float32 or torch.float64; got {dtype}.")
        held = np.unique(_dof_ids("fixed", fixed, operators))
        moved = _dof_ids("driven", driven, operators)
        _check_constraints(held, moved, operators.mesh.num_dofs)
        factor, strains = stiffness_factor(operators), element_strains(operators)
        inverse = 1 / operators.lumped_mass
        inverse[np.concatenate([held, moved])] = 0
        return ElasticSystem(
            operators,
            torch.tensor(held, device=device),
            torch.tensor(moved, device=device),
            torch.tensor(operators.lumped_mass, dtype=dtype, device=device),
            torch.tensor(inverse, dtype=dtype, device=device),
            sparse_tensor(factor, dtype, device),
            sparse_tensor(factor.T.tocsr(), dtype, device),
            torch.tensor(element_eigenvalues(operators, strains), dtype=dtype, device=device),
            torch.tensor(element_table(operators, strains), dtype=dtype, device=device),
        )

    @property
    def num_dofs(self) -> int:
        """Number of degrees of freedom, fixed and driven ones included."""
        return self.operators.mesh.num_dofs

    @property
    def num_cells(self) -> int:
        """Number of cells."""
        return self.operators.mesh.num_cells

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the state."""
        return self.lumped_mass.dtype

    @property
    def device(self) -> torch.device:
        """Device of the state."""
        return self.lumped_mass.device

    @property
    def free(self) -> Tensor:
        """Degrees of freedom that are neither fixed nor driven, ascending."""
        return torch.nonzero(self.inverse_mass)[:, 0]

    def internal_force(self, displacement: Tensor, modulus: Tensor) -> Tensor:
        """Internal forces :math:`K(E) u`, differentiable in both arguments.

        Args:
            displacement: Displacements [m], shape ``(n, D)``.
            modulus: Young's moduli [Pa], shape ``(n, C)``, or ``(C,)`` for all samples.

        Returns:
            Forces [N/m], shape ``(n, D)``.

        Raises:
            ValueError: If a shape is wrong.
        """
        self.check_modulus(modulus)
        if displacement.ndim != 2 or displacement.shape[1] != self.num_dofs:
            raise ValueError(
                f"`displacement` must have shape (n, {self.num_dofs}); got {tuple(displacement.shape)}."
            )
        return self.stiffness_action(modulus)(displacement.to(self.lumped_mass).T.contiguous()).T

    def energy(self, displacement: Tensor, velocity: Tensor, modulus: Tensor) -> Tensor:
        """Strain energy plus kinetic energy with the lumped mass [J/m]: shapes ``(n, D)`` to ``(n,)``."""
        strain = (displacement * self.internal_force(displacement, modulus)).sum(-1)
        return (strain + (velocity**2 * self.lumped_mass).sum(-1)) / 2

    def stiffness_action(self, modulus: Tensor) -> Callable[[Tensor], Tensor]:
        """The map from displacements to internal forces, both of shape ``(D, n)``."""
        if modulus.ndim == 1 and not modulus.requires_grad:
            stiffness = self.operators.stiffness(modulus.cpu().double().numpy())
            matrix = sparse_tensor(stiffness, self.dtype, self.device)
            return lambda u: ConstantProduct.apply(u, matrix)  # pyright: ignore[reportReturnType]
        columns = modulus.to(self.lumped_mass).reshape(-1, self.num_cells).T.contiguous()
        factors = self.factor, self.factor_transposed
        return lambda u: SampledForce.apply(u, columns, *factors)  # pyright: ignore[reportReturnType]

    def check_modulus(self, modulus: Tensor) -> None:
        """Refuse moduli of a wrong shape, or that are not positive and finite."""
        if modulus.ndim not in (1, 2) or modulus.shape[-1] != self.num_cells:
            raise ValueError(
                f"`modulus` must have shape (n, {self.num_cells}) or ({self.num_cells},); "
                f"got {tuple(modulus.shape)}."
            )
        bad = ~((modulus > 0) & modulus.isfinite())
        if bool(bad.any()):
            index = torch.nonzero(bad)[0].tolist()
            value = float(modulus[tuple(index)].detach())
            raise ValueError(f"`modulus` must be positive and finite; got {value} at index {index}.")

    def safe_step(self, modulus: Tensor) -> Tensor:
        r"""A lower bound of the critical step that costs nothing, :math:`2 / \max_c \omega_c` over the cells.

        The largest frequency of the body is at most that of its stiffest cell on its own (Hughes, section
        9.1); in a regular mesh the bound is a fifth below the critical step, in a rough medium up to a half.

        Args:
            modulus: Young's moduli [Pa], shape ``(n, C)`` or ``(C,)``.

        Returns:
            Steps [s], shape ``(n,)``, with ``n = 1`` for shared moduli.

        Raises:
            ValueError: If the moduli are out of range.
        """
        self.check_modulus(modulus)
        with torch.no_grad():
            rows = modulus.to(self.lumped_mass).reshape(-1, self.num_cells)
            return 2 / (rows * self.element_eigenvalues).amax(1).sqrt()

    def critical_step(self, modulus: Tensor, *, iterations: int = 60) -> Tensor:
        r"""Largest stable step of central difference, :math:`2 / \omega_{\max}`, by Lanczos iteration.

        The estimate of the largest eigenvalue is its Ritz value plus the residual, so the step errs to the
        safe
        side: by less than 1e-6 of itself in homogeneous and random media alike at the default.

        Args:
            modulus: Young's moduli [Pa], shape ``(n, C)`` or ``(C,)``.
            iterations: Lanczos steps.

        Returns:
            Critical steps [s], shape ``(n,)``, with ``n = 1`` for shared moduli.

        Raises:
            ValueError: If the moduli are out of range.
        """
        self.check_modulus(modulus)
        with torch.no_grad():
            action, root = self.stiffness_action(modulus.detach()), self.inverse_mass.sqrt()[:, None]
            columns = 1 if modulus.ndim == 1 else len(modulus)
            start = start_vector(self.num_dofs, self.lumped_mass) * (root > 0)
            eigenvalue = largest_eigenvalue(
                lambda x: root * action(root * x),
                start.expand(-1, columns),
                iterations=min(iterations, len(self.free)),
            )
            return torch.maximum(2 / eigenvalue.sqrt(), self.safe_step(modulus))


def _dof_ids(argument: str, choice: DofChoice, operators: ElasticOperators) -> NDArray[np.int64]:
    """Numbers of the chosen degrees of freedom, in the caller's order."""
    if isinstance(choice, str):
        raise TypeError(f"`{argument}` must be a sequence; got the string '{choice}'. Use ('{choice}',).")
    items: list[object] = np.asarray(choice).tolist() if isinstance(choice, Tensor) else list(choice)
    mesh = operators.mesh
    if items and all(isinstance(item, str) for item in items):
        return np.unique(np.concatenate([mesh.dofs(mesh.boundary_nodes(str(item))) for item in items]))
    if not all(isinstance(item, int | np.integer) and not isinstance(item, bool) for item in items):
        raise TypeError(f"`{argument}` must hold boundary names or integers; got {items[:3]}.")
    ids = np.array(items, dtype=np.int64)
    if ids.size and (ids.min() < 0 or ids.max() >= mesh.num_dofs):
        raise ValueError(
            f"`{argument}` must lie from 0 to {mesh.num_dofs - 1}; got {ids.min()} to {ids.max()}."
        )
    return ids


def _check_constraints(fixed: NDArray[np.int64], driven: NDArray[np.int64], num_dofs: int) -> None:
    """Refuse a degree of freedom that is driven twice, or driven and fixed, and a body without free ones."""
    if len(np.unique(driven)) != len(driven):
        values, counts = np.unique(driven, return_counts=True)
        raise ValueError(
            f"`driven` must name each degree of freedom once; got {values[counts > 1][0]} again."
        )
    both = np.intersect1d(fixed, driven)
    if both.size:
        raise ValueError(f"`driven` must not be fixed as well; got degree of freedom {both[0]} in both.")
    if len(fixed) + len(driven) == num_dofs:
        raise ValueError(f"`fixed` and `driven` must leave a degree of freedom free; got all {num_dofs}.")
