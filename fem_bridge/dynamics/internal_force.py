"""Internal forces of linear triangles as sparse products with gradients, and bounds on their spectrum."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from torch import Tensor

from fem_bridge.assembly.interface import ElasticOperators, canonical
from sde.noise import NoiseStream, Purpose

__all__ = [
    "ConstantProduct",
    "SampledForce",
    "element_eigenvalues",
    "element_strains",
    "element_table",
    "largest_eigenvalue",
    "sparse_tensor",
    "start_vector",
    "stiffness_factor",
]


class ConstantProduct(torch.autograd.Function):
    """``A x`` for a constant symmetric sparse matrix and ``x`` of shape ``(D, n)``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: Tensor) -> Tensor:  # noqa: ANN401
        """The product."""
        ctx.matrix = matrix
        return matrix @ x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        """The product with the same matrix."""
        return ctx.matrix @ grads[0].contiguous(), None


class SampledForce(torch.autograd.Function):
    """``B^T (E o (B u))`` with one column of moduli per sample, or one for all; ``u`` of shape ``(D, n)``."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        u: Tensor,
        modulus: Tensor,
        factor: Tensor,
        transposed: Tensor,
    ) -> Tensor:
        """Internal forces."""
        ctx.save_for_backward(u, modulus)
        ctx.factors = factor, transposed
        return transposed @ _weigh(factor @ u, modulus)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None, None]:  # noqa: ANN401
        """Gradients: the force of the adjoint, and products of strains with adjoint strains."""
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


def stiffness_factor(operators: ElasticOperators) -> csr_matrix:
    """``B`` with ``K(E) = B^T diag(E) B``, shape ``(3C, D)``: three rows per cell share its modulus."""
    root = np.linalg.cholesky(operators.elasticity).T
    blocks = np.sqrt(operators.areas)[:, None, None] * root
    cells = np.arange(3 * len(blocks)).reshape(-1, 3)
    rows, columns = np.repeat(cells, 3, axis=1).ravel(), np.tile(cells, (1, 3)).ravel()
    return canonical(csr_matrix(csr_matrix((blocks.ravel(), (rows, columns))) @ operators.strain))


def element_strains(operators: ElasticOperators) -> NDArray[np.float64]:
    """Strain operator of each cell over the degrees of freedom of its three nodes, shape ``(C, 3, 6)``."""
    cells = operators.mesh.cells
    dofs = (2 * cells[:, :, None] + np.arange(2)).reshape(len(cells), 1, 6)
    rows = 3 * np.arange(len(cells))[:, None, None] + np.arange(3)[:, None]
    shape = (len(cells), 3, 6)
    rows, columns = np.broadcast_to(rows, shape).ravel(), np.broadcast_to(dofs, shape).ravel()
    return np.asarray(operators.strain[rows, columns]).reshape(shape)


def element_eigenvalues(operators: ElasticOperators, strains: NDArray[np.float64]) -> NDArray[np.float64]:
    """Largest eigenvalue of each cell on its own for a modulus of 1, shape ``(C,)``."""
    root = np.linalg.cholesky(operators.elasticity).T @ strains
    return np.asarray(
        np.linalg.eigvalsh(root @ root.transpose(0, 2, 1))[:, -1] * 3 / operators.density, dtype=np.float64
    )


def element_table(operators: ElasticOperators, strains: NDArray[np.float64]) -> NDArray[np.float64]:
    """Gradients of the second and third shape function and area of each cell, shape ``(C, 5)``."""
    gradients = (strains[:, 0, 2], strains[:, 1, 3], strains[:, 0, 4], strains[:, 1, 5])
    return np.stack([*gradients, operators.areas], 1)


def largest_eigenvalue(apply: Callable[[Tensor], Tensor], start: Tensor, *, iterations: int) -> Tensor:
    """Upper estimate of the largest eigenvalue of ``n`` symmetric operators, by Lanczos iteration.

    The largest Ritz value plus its residual: the residual bounds the distance to an eigenvalue, and the
    start has components along all of them.

    Args:
        apply: The operators, on columns of shape ``(D, n)``.
        start: Start vectors, shape ``(D, n)``; rows of zeros stay out.
        iterations: Steps of the iteration.

    Returns:
        Estimates, shape ``(n,)``.
    """
    current = start / start.norm(dim=0)
    previous, beta = torch.zeros_like(current), torch.zeros_like(current[0])
    diagonal, beside = [], []
    for _ in range(iterations):
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


def start_vector(num_dofs: int, like: Tensor) -> Tensor:
    """The same random vector for everyone, shape ``(D, 1)``."""
    noise = NoiseStream(0, 0, 1).fork("critical step")
    return noise.normals(num_dofs, purpose=Purpose.USER, dtype=torch.float64).T.to(like)


def sparse_tensor(matrix: csr_matrix, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """A constant sparse matrix in torch, with 32-bit indices as the fast products want them."""
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
