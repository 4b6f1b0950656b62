"""The assembled system in torch: internal forces, masses, constraints and critical time steps of a batch."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import block_diag, csr_matrix
from torch import Tensor

from fem_bridge.assembly.interface import ElasticOperators, canonical
from sde.noise import NoiseStream, Purpose

__all__ = ["DofChoice", "ElasticSystem"]

DofChoice = Sequence[str] | Sequence[int] | NDArray[np.int64] | Tensor


@dataclass(frozen=True, eq=False, slots=True)
class ElasticSystem:
    r"""A linear elastic body with fixed and driven degrees of freedom, on one device.

    .. math:: M \ddot u + K(E) \, u = f(t), \qquad u = 0 \text{ if fixed}, \quad u = g(t) \text{ if driven}.

    With the factor ``B`` of :math:`K(E) = B^T \mathrm{diag}(E) B` (one Young's modulus on the three rows of each
    cell), internal forces of a batch are two products with constant sparse matrices.

    Attributes:
        operators: What the assembler delivered.
        fixed: Degrees of freedom held at rest, ascending, shape ``(f,)``.
        driven: Degrees of freedom with prescribed motion, in the caller's order, shape ``(m,)``.
        lumped_mass: Lumped mass [kg/m], shape ``(D,)``.
        factor: ``B``, sparse, shape ``(3C, D)``.
        factor_transposed: Its transpose, sparse, shape ``(D, 3C)``.
    """

    operators: ElasticOperators
    fixed: Tensor
    driven: Tensor
    lumped_mass: Tensor
    factor: Tensor
    factor_transposed: Tensor

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
            ValueError: If a boundary or a degree of freedom does not exist, or one is both fixed and driven.
        """
        if dtype not in (torch.float32, torch.float64):
            raise TypeError(f"`dtype` must be torch.float32 or torch.float64; got {dtype}.")
        held = np.unique(_dof_ids("fixed", fixed, operators))
        moved = _dof_ids("driven", driven, operators)
        _check_disjoint(held, moved)
        factor = _stiffness_factor(operators)
        return ElasticSystem(
            operators,
            torch.tensor(held, device=device),
            torch.tensor(moved, device=device),
            torch.tensor(operators.lumped_mass, dtype=dtype, device=device),
            _sparse(factor, dtype, device),
            _sparse(csr_matrix(factor.T), dtype, device),
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
    def inverse_mass(self) -> Tensor:
        """Inverse of the lumped mass, zero where the motion is prescribed, shape ``(D,)``."""
        inverse = 1 / self.lumped_mass
        inverse[self.fixed] = 0
        inverse[self.driven] = 0
        return inverse

    def internal_force(self, displacement: Tensor, modulus: Tensor) -> Tensor:
        """Internal forces :math:`K(E) u`.

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
        return self.stiffness_action(modulus)(displacement.T.contiguous()).T

    def stiffness_action(self, modulus: Tensor) -> Callable[[Tensor], Tensor]:
        """The map from displacements to internal forces, both of shape ``(D, n)``."""
        if modulus.ndim == 1 and not modulus.requires_grad:
            values = modulus.detach().cpu().double().numpy()
            matrix = _sparse(self.operators.stiffness(values), self.dtype, self.device)
            return lambda u: _SharedForce.apply(u, matrix)  # pyright: ignore[reportReturnType]
        columns = modulus.to(self.factor).reshape(-1, self.num_cells).T.contiguous()
        return lambda u: _SampledForce.apply(u, columns, self.factor, self.factor_transposed)  # pyright: ignore[reportReturnType]

    def check_modulus(self, modulus: Tensor) -> None:
        """Refuse moduli of a wrong shape or that are not positive and finite."""
        if modulus.ndim not in (1, 2) or modulus.shape[-1] != self.num_cells:
            raise ValueError(
                f"`modulus` must have shape (n, {self.num_cells}) or ({self.num_cells},); got {tuple(modulus.shape)}."
            )
        bad = ~((modulus > 0) & modulus.isfinite())
        if bool(bad.any()):
            index = torch.nonzero(bad)[0].tolist()
            raise ValueError(
                f"`modulus` must be positive and finite; got {float(modulus[tuple(index)])} at index {index}."
            )

    def critical_step(self, modulus: Tensor, *, iterations: int = 60) -> Tensor:
        r"""Largest stable step of central difference, :math:`2 / \omega_{\max}`, by Lanczos iteration.

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
            shared = modulus.detach()
            action, n = self.stiffness_action(shared), 1 if shared.ndim == 1 else len(shared)
            root = self.inverse_mass.sqrt()[:, None]
            eigenvalue = _largest_eigenvalue(lambda x: root * action(root * x), root > 0, n, iterations)
            return 2 / eigenvalue.sqrt()


def _largest_eigenvalue(apply: Callable[[Tensor], Tensor], free: Tensor, n: int, iterations: int) -> Tensor:
    """Largest eigenvalue of ``n`` symmetric operators on the free rows, by Lanczos without reorthogonalisation."""
    start = NoiseStream(0, 0, 1).normals(len(free), purpose=Purpose.USER, dtype=torch.float64).to(free.device)
    size = min(iterations, int(free.sum()))
    current = (start.T * free).expand(-1, n)
    current = current / current.norm(dim=0)
    previous, beta = torch.zeros_like(current), torch.zeros(n, dtype=current.dtype, device=current.device)
    diagonal, beside = [], []
    for _ in range(size):
        product = apply(current) - beta * previous
        alpha = (current * product).sum(0)
        product = product - alpha * current
        beta = product.norm(dim=0)
        diagonal.append(alpha)
        beside.append(beta)
        previous, current = current, product / beta.clamp_min(torch.finfo(beta.dtype).tiny)
    main, off = torch.stack(diagonal, 1), torch.stack(beside, 1)
    tridiagonal = (
        torch.diag_embed(main) + torch.diag_embed(off[:, :-1], 1) + torch.diag_embed(off[:, :-1], -1)
    )
    values, vectors = torch.linalg.eigh(tridiagonal)
    return values[:, -1] + (off[:, -1] * vectors[:, -1, -1]).abs()


class _SharedForce(torch.autograd.Function):
    """``K u`` for a constant symmetric sparse matrix."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, matrix: Tensor) -> Tensor:  # noqa: ANN401
        ctx.matrix = matrix
        return matrix @ u

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        return ctx.matrix @ grads[0], None


class _SampledForce(torch.autograd.Function):
    """``B^T (E o (B u))`` with one column of moduli per sample, or one for all."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, modulus: Tensor, factor: Tensor, transposed: Tensor) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(u, modulus)
        ctx.factors = factor, transposed
        return transposed @ _weigh(factor @ u, modulus)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:  # noqa: ANN401
        u, modulus = ctx.saved_tensors
        factor, transposed = ctx.factors
        adjoint = factor @ grads[0].contiguous()
        grad_modulus = None
        if ctx.needs_input_grad[1]:
            product = ((factor @ u) * adjoint).view(len(modulus), 3, -1).sum(1)
            grad_modulus = product if modulus.shape[1] > 1 else product.sum(1, keepdim=True)
        return transposed @ _weigh(adjoint, modulus), grad_modulus, None, None


def _weigh(rows: Tensor, modulus: Tensor) -> Tensor:
    """Multiply the three rows of each cell by its modulus, in place."""
    rows.view(len(modulus), 3, -1).mul_(modulus[:, None, :])
    return rows


def _stiffness_factor(operators: ElasticOperators) -> csr_matrix:
    """``B`` with ``K(E) = B^T diag(E) B``: root of area times the transposed Cholesky factor, times strains."""
    cholesky = np.linalg.cholesky(operators.elasticity).T
    blocks = block_diag([cholesky * root for root in np.sqrt(operators.areas)], format="csr")
    return canonical(csr_matrix(blocks @ operators.strain))


def _sparse(matrix: csr_matrix, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """A constant sparse matrix in torch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch calls its CSR format a beta on first use
        return torch.sparse_csr_tensor(
            torch.from_numpy(matrix.indptr.astype(np.int32)),
            torch.from_numpy(matrix.indices.astype(np.int32)),
            torch.from_numpy(matrix.data).to(dtype),
            size=matrix.shape,
            device=device,
            check_invariants=False,
        )


def _dof_ids(argument: str, choice: DofChoice, operators: ElasticOperators) -> NDArray[np.int64]:
    """Numbers of the chosen degrees of freedom, in the caller's order."""
    if isinstance(choice, str):
        raise TypeError(
            f"`{argument}` must be a sequence of boundary names or numbers; got '{choice}'. Use ('{choice}',)."
        )
    items = choice.tolist() if isinstance(choice, Tensor | np.ndarray) else list(choice)
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


def _check_disjoint(fixed: NDArray[np.int64], driven: NDArray[np.int64]) -> None:
    """Refuse a degree of freedom that is driven twice, or driven and fixed."""
    if len(np.unique(driven)) != len(driven):
        raise ValueError("`driven` must name each degree of freedom once; got one of them twice.")
    both = np.intersect1d(fixed, driven)
    if both.size:
        raise ValueError(f"`driven` must not be fixed as well; got degree of freedom {both[0]} in both.")
