"""Solves with the effective matrix of implicit schemes, factored once and differentiable in the moduli."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.sparse import csc_matrix
from scipy.sparse.linalg import SuperLU, splu
from torch import Tensor

from fem_bridge.dynamics.system import ElasticSystem

__all__ = ["EffectiveSolver"]


@dataclass(frozen=True, eq=False, slots=True)
class EffectiveSolver:
    r"""The inverse of :math:`A(E) = c_M M + c_K K(E)` on the free degrees of freedom, with zeros elsewhere.

    On the CPU by a sparse factorisation, on a GPU by a dense one: of one matrix for moduli that the batch
    shares, of one per sample otherwise.

    Attributes:
        system: The system.
        columns: Moduli with a column per sample, or one column for all, shape ``(C, n)`` or ``(C, 1)``.
        stiffness: The factor :math:`c_K`.
        apply: The inverse on free rows, ``(F, n)`` to ``(F, n)``.
    """

    system: ElasticSystem
    columns: Tensor
    stiffness: float
    apply: Callable[[Tensor], Tensor]

    @staticmethod
    def of(system: ElasticSystem, modulus: Tensor, *, mass: float, stiffness: float) -> "EffectiveSolver":
        """Factor the matrices for moduli of shape ``(n, C)`` or ``(C,)``."""
        free = system.free.cpu().numpy()
        inertia = mass * system.operators.consistent_mass
        rows = modulus.detach().cpu().double().reshape(-1, system.num_cells)
        matrices = (
            csc_matrix((inertia + stiffness * system.operators.stiffness(row.numpy()))[free][:, free])
            for row in (rows if stiffness else rows[:1])
        )
        if system.device.type == "cpu":
            apply = _sparse_inverse([_factor(matrix) for matrix in matrices])
        else:
            dense = torch.stack([torch.from_numpy(matrix.toarray()) for matrix in matrices])
            apply = _dense_inverse(torch.linalg.cholesky(dense.to(system.device)).to(system.dtype))
        columns = modulus.to(system.lumped_mass).reshape(-1, system.num_cells).T
        return EffectiveSolver(system, columns, stiffness, apply)

    def solve(self, right: Tensor) -> Tensor:
        """Solve for columns of shape ``(D, n)``; rows that are not free are ignored, and 0 in the result."""
        return _Solve.apply(right, self.columns, self)  # pyright: ignore[reportReturnType]

    def solve_free(self, right: Tensor) -> Tensor:
        """:meth:`solve` outside autograd."""
        free = self.system.free
        return torch.zeros_like(right).index_copy(0, free, self.apply(right[free]))


class _Solve(torch.autograd.Function):
    """``x = A(E)^-1 b`` with ``A`` symmetric: the adjoint is a solve with the same factors."""

    @staticmethod
    def forward(ctx: Any, right: Tensor, columns: Tensor, solver: EffectiveSolver) -> Tensor:  # noqa: ANN401
        solution = solver.solve_free(right)
        ctx.solver = solver
        ctx.save_for_backward(solution, columns)
        return solution

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None]:  # noqa: ANN401
        (solution, columns), solver = ctx.saved_tensors, ctx.solver
        adjoint = solver.solve_free(grads[0].contiguous())
        grad_columns = None
        if ctx.needs_input_grad[1] and solver.stiffness:
            factor = solver.system.factor
            product = ((factor @ adjoint) * (factor @ solution)).view(len(columns), 3, -1).sum(1)
            product = product if columns.shape[1] > 1 else product.sum(1, keepdim=True)
            grad_columns = -solver.stiffness * product
        return adjoint, grad_columns, None


def _factor(matrix: csc_matrix) -> SuperLU:
    """Sparse factors of a symmetric positive definite matrix, by diagonal pivots in a symmetric ordering."""
    return splu(matrix, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})


def _sparse_inverse(factors: list[SuperLU]) -> Callable[[Tensor], Tensor]:
    """Solves with one matrix for all columns, or one per column."""

    def apply(right: Tensor) -> Tensor:
        columns = right.detach().double().numpy()
        if len(factors) == 1:
            solution = factors[0].solve(columns)
        else:
            solution = np.stack(
                [lu.solve(column) for lu, column in zip(factors, columns.T.copy(), strict=True)], 1
            )
        return torch.from_numpy(np.ascontiguousarray(solution)).to(right.dtype)

    return apply


def _dense_inverse(factors: Tensor) -> Callable[[Tensor], Tensor]:
    """Solves with dense Cholesky factors, shape ``(1 or n, F, F)``."""

    def apply(right: Tensor) -> Tensor:
        if len(factors) == 1:
            return torch.cholesky_solve(right, factors[0])
        return torch.cholesky_solve(right.T[..., None], factors)[..., 0].T

    return apply
