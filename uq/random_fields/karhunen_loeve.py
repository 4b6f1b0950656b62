"""Karhunen-Loeve expansion of a Gaussian random field on the points or cells of a mesh."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum

import numpy as np
import torch
from scipy import linalg
from scipy.sparse import linalg as sparse_linalg
from torch import Tensor

from sde.networks import evaluate_in_blocks
from sde.noise import NoiseStream, Purpose
from sde.shapes import check_shapes
from uq.random_fields.covariance import Covariance

__all__ = ["Coefficients", "KarhunenLoeve"]

DENSE_POINTS = 1500  # up to here the dense eigensolver is quicker than Lanczos for any number of modes
LOW_RANK = 400  # most columns of the factor of a smooth covariance
STORED_POINTS = (
    12_000  # up to here the covariance matrix is stored (1.2 GB); beyond, recomputed in blocks of rows
)
BLOCK_ENTRIES = 2**24


class Coefficients(Enum):
    """Where the coefficients of a random field come from."""

    NOISE = "noise"  #: addressed standard normals: the field has no inputs
    INPUTS = "inputs"  #: the model's inputs, standard normal: for designs, sensitivity indices and inversion


@dataclass(frozen=True, slots=True, eq=False)
class KarhunenLoeve:
    r"""Truncated Karhunen-Loeve expansion of a centred Gaussian random field: a model.

    .. math:: g(x) = \sum_{j=1}^{k} \sqrt{\lambda_j}\,\varphi_j(x)\,\xi_j, \qquad
        \int C(x, y)\,\varphi_j(y)\,\mathrm{d}y = \lambda_j \varphi_j(x), \qquad \xi_j \sim \mathcal{N}(0, 1)
        \text{ independent}.

    Build it with :meth:`from_covariance`. As a model, sample ``i`` takes its coefficients from
    ``noise.normals(k, purpose=Purpose.FIELD)`` or from row ``i`` of the inputs. Two fields of one model must
    be given forked streams, ``noise.fork("density")``.

    Attributes:
        modes: :math:`\sqrt{\lambda_j}\,\varphi_j` at the points, shape ``(points, k)``.
        eigenvalues: :math:`\lambda_j`, decreasing, shape ``(k,)`` [unit of the field squared times measure].
        energy: Share of the integrated variance that the ``k`` modes hold, in (0, 1].
        coefficients: Whether coefficients are noise or inputs.
    """

    modes: Tensor
    eigenvalues: Tensor
    energy: float
    coefficients: Coefficients

    @classmethod
    def from_covariance(
        cls,
        covariance: Covariance,
        points: Tensor,
        weights: Tensor,
        *,
        coefficients: Coefficients,
        num_modes: int | None = None,
        energy: float | None = None,
        restore_variance: bool = False,
    ) -> "KarhunenLoeve":
        r"""Solve the eigenproblem of a covariance by the Nystroem method.

        .. math:: W^{1/2} C W^{1/2} v = \lambda v, \qquad \varphi = W^{-1/2} v, \qquad W = \mathrm{diag}(w).

        The eigenvalues of the midpoint rule converge with order 2. The solver is dense up to 1500 points and
        Lanczos beyond, with the covariance recomputed in blocks of rows beyond 12 000. Signs of the modes are
        fixed; modes of a repeated eigenvalue are defined up to a rotation.

        Args:
            covariance: Covariance of the field.
            points: Mesh points, or midpoints of cells, shape ``(points, dim)``.
            weights: Quadrature weights: cell areas or lumped mass, positive, shape ``(points,)``.
            coefficients: Whether coefficients are noise or inputs.
            num_modes: Number of modes, 1 to the number of points; give this or ``energy``.
            energy: Keep the fewest modes that hold this share of the integrated variance, in (0, 1).
            restore_variance: Scale the truncated field at each point to the full variance there.

        Returns:
            The expansion, in float64 on the CPU.

        Raises:
            ValueError: If shapes disagree, a number is out of range, or not exactly one truncation is given.
            TypeError: If ``coefficients`` is not a :class:`Coefficients`.
            RuntimeError: If the eigensolver fails or the covariance is not positive semi-definite.

        Example:
            >>> from uq.random_fields import SquaredExponential
            >>> points = torch.linspace(0, 1, 50, dtype=torch.float64).unsqueeze(-1)
            >>> field = KarhunenLoeve.from_covariance(
            ...     SquaredExponential(0.3), points, torch.full((50,), 0.02), coefficients=Coefficients.NOISE,
            ...     num_modes=5)
            >>> field(torch.zeros(8, 0), NoiseStream(seed=0, start=0, stop=8)).shape
            torch.Size([8, 50])

        References:
            Betz, Papaioannou & Straub (2014), section 3. doi:10.1016/j.cma.2013.12.010
        """
        _check_arguments(points, weights, coefficients, num_modes, energy)
        points, weights = points.detach().to("cpu", torch.float64), weights.detach().to("cpu", torch.float64)
        total = covariance.variance * float(weights.sum())
        values, vectors = _eigenpairs(covariance, points, weights.sqrt(), num_modes, energy, total)
        modes = vectors * values.sqrt() / weights.sqrt().unsqueeze(-1)
        if restore_variance:
            modes = modes * (covariance.variance / modes.square().sum(-1, keepdim=True)).sqrt()
        return cls(modes, values, min(1.0, float(values.sum()) / total), coefficients)

    @property
    def num_modes(self) -> int:
        """Number of modes ``k``."""
        return self.modes.shape[-1]

    @property
    def input_dim(self) -> int:
        """Number of inputs: ``k`` where coefficients are inputs, else 0."""
        return self.num_modes if self.coefficients is Coefficients.INPUTS else 0

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of one field: ``(points,)``."""
        return (self.modes.shape[0],)

    @property
    def variance(self) -> Tensor:
        """Variance of the truncated field at the points, shape ``(points,)``."""
        return self.modes.square().sum(-1)

    def to(self, device: torch.device | str, dtype: torch.dtype) -> "KarhunenLoeve":
        """The same field computed on ``device`` in ``dtype``."""
        return replace(
            self, modes=self.modes.to(device, dtype), eigenvalues=self.eigenvalues.to(device, dtype)
        )

    def field(self, coefficients: Tensor) -> Tensor:
        """Fields of given coefficients, differentiable in them.

        Args:
            coefficients: Values of the standard normal coefficients, shape ``(n, k)``.

        Returns:
            Shape ``(n, points)``, in the dtype and on the device of the modes.

        Raises:
            ValueError: If the shape is wrong.
        """
        check_shapes(coefficients=(coefficients, f"n {self.num_modes}"))
        return coefficients.to(self.modes) @ self.modes.mT

    def __call__(self, inputs: Tensor, noise: NoiseStream) -> Tensor:
        """Fields of samples: inputs ``(n, input_dim)`` to ``(n, points)``."""
        check_shapes(inputs=(inputs, f"{len(noise)} {self.input_dim}"))
        dtype, device = self.modes.dtype, self.modes.device
        values = inputs
        if self.coefficients is Coefficients.NOISE:
            values = noise.normals(self.num_modes, purpose=Purpose.FIELD, dtype=dtype, device=device)
        return evaluate_in_blocks(self.field, noise, values.to(device, dtype))


def _check_arguments(
    points: Tensor, weights: Tensor, coefficients: Coefficients, num_modes: int | None, energy: float | None
) -> None:
    if not isinstance(coefficients, Coefficients):
        kind = type(coefficients).__name__
        raise TypeError(f"`coefficients` must be Coefficients.NOISE or Coefficients.INPUTS; got {kind}.")
    size = check_shapes(points=(points, "points dim"), weights=(weights, "points"))["points"]
    if size == 0:
        raise ValueError("`points` must hold at least one point; got none.")
    if not torch.isfinite(points).all():
        raise ValueError("`points` must be finite; got NaN or infinity.")
    if not (torch.isfinite(weights) & (weights > 0)).all():
        raise ValueError(
            f"`weights` must be positive and finite; got a smallest weight of {float(weights.min())}."
        )
    if (num_modes is None) == (energy is None):
        raise ValueError(f"Give one of `num_modes` and `energy`; got {num_modes} and {energy}.")
    if num_modes is not None and not 1 <= num_modes <= size:
        raise ValueError(f"`num_modes` must lie in [1, {size}], the number of points; got {num_modes}.")
    if energy is not None and not 0 < energy < 1:
        raise ValueError(f"`energy` must lie in (0, 1); got {energy}.")


def _eigenpairs(
    covariance: Covariance,
    points: Tensor,
    root: Tensor,
    num_modes: int | None,
    energy: float | None,
    total: float,
) -> tuple[Tensor, Tensor]:
    """Largest eigenpairs of the weighted covariance, cut by number or energy, with signs fixed."""
    size, share = len(points), 1.0 if energy is None else energy
    start = NoiseStream(seed=0, start=0, stop=1).normals(size, purpose=Purpose.FIELD, dtype=torch.float64)[0]
    if size <= DENSE_POINTS:
        values, vectors = linalg.eigh(_block(covariance, points, points, root, root).numpy())
        values, vectors = values[::-1], vectors[:, ::-1]
    elif (factor := _pivoted_cholesky(covariance, points, root, num_modes or 1)) is not None:
        vectors, singular, _ = linalg.svd(factor, full_matrices=False)
        values = singular**2
    else:
        operator = _CovarianceOperator(covariance, points, root)
        operator = operator.stored() if size <= STORED_POINTS else operator
        count = num_modes if num_modes is not None else 32
        values, vectors = _lanczos(operator, count, start)
        while num_modes is None and values.sum() < share * total:
            count = 2 * count
            if count > size // 2:
                raise RuntimeError(f"`energy` {share} needs more than {size // 4} of {size} modes. Lower it.")
            values, vectors = _lanczos(operator, count, start)
    if num_modes is None:
        num_modes = min(size, int(np.searchsorted(np.cumsum(values), share * total)) + 1)
    values, vectors = values[:num_modes], vectors[:, :num_modes]
    if values[-1] < -1e-10 * values[0]:
        raise RuntimeError(
            f"The covariance must be positive semi-definite; got an eigenvalue of {values[-1]:.3g}."
        )
    values, vectors = torch.from_numpy(values.copy()).clamp(min=0), torch.from_numpy(vectors.copy())
    return values, vectors * torch.where(start @ vectors < 0, -1.0, 1.0)


def _block(covariance: Covariance, x: Tensor, y: Tensor, x_root: Tensor, y_root: Tensor) -> Tensor:
    return covariance(x, y) * x_root.unsqueeze(-1) * y_root


def _pivoted_cholesky(covariance: Covariance, points: Tensor, root: Tensor, least: int) -> np.ndarray | None:
    """A factor ``L`` with ``L @ L.T`` equal to the weighted covariance up to 1e-13 of its trace, or ``None``.

    Smooth covariances have low rank: a few hundred columns then replace the matrix. ``None`` where more than
    ``LOW_RANK`` columns are needed, or fewer than ``least`` suffice.

    References:
        Harbrecht, Peters & Schneider (2012), algorithm 1. doi:10.1016/j.apnum.2011.10.001
    """
    size = len(points)
    factor = np.empty((size, LOW_RANK))
    remaining = (covariance.variance * root.square()).numpy().copy()
    enough = 1e-13 * remaining.sum()
    for rank in range(LOW_RANK):
        if remaining.clip(0).sum() <= enough:
            return factor[:, :rank] if rank >= least else None
        pivot = int(remaining.argmax())
        row = _block(covariance, points[pivot : pivot + 1], points, root[pivot : pivot + 1], root)[0].numpy()
        column = (row - factor[:, :rank] @ factor[pivot, :rank]) / np.sqrt(remaining[pivot])
        factor[:, rank] = column
        remaining -= column**2
    return None


class _CovarianceOperator(sparse_linalg.LinearOperator):
    """The weighted covariance, recomputed in blocks of rows at each product."""

    def __init__(self, covariance: Covariance, points: Tensor, root: Tensor) -> None:
        super().__init__(np.dtype(np.float64), (len(points), len(points)))
        self.covariance, self.points, self.root = covariance, points, root

    def blocks(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Slices of rows and the rows."""
        size = len(self.points)
        rows = max(1, BLOCK_ENTRIES // size)
        for first in range(0, size, rows):
            part = slice(first, first + rows)
            block = _block(self.covariance, self.points[part], self.points, self.root[part], self.root)
            yield part, block.numpy()

    def _matvec(self, x: np.ndarray) -> np.ndarray:
        return np.concatenate([block @ x for _, block in self.blocks()])

    def stored(self) -> np.ndarray:
        """The whole matrix."""
        matrix = np.empty(self.shape)
        for part, block in self.blocks():
            matrix[part] = block
        return matrix


def _lanczos(
    operator: sparse_linalg.LinearOperator | np.ndarray, count: int, start: Tensor
) -> tuple[np.ndarray, np.ndarray]:
    """Largest eigenpairs, decreasing, from a generic fixed start (a constant one misses odd modes)."""
    if count > len(start) // 2:
        raise ValueError(f"`num_modes` must be at most half of {len(start)} points; got {count}.")
    try:
        values, vectors = sparse_linalg.eigsh(operator, k=count, which="LA", v0=start.numpy())
    except sparse_linalg.ArpackError as error:
        raise RuntimeError(f"The eigensolver failed for {count} modes: {error}.") from error
    order = np.argsort(values)[::-1]
    return values[order], vectors[:, order]
