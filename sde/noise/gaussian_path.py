r"""Gaussian paths on any instants, free and given observations, by Cholesky factors.

For whatever the circulant embedding of :mod:`sde.noise.circulant` cannot do: irregular instants, type II and
multifractional noise, and paths conditioned on noisy values. The cost is cubic in the number of instants,
once, and quadratic for each path.

References:
    Rasmussen & Williams (2006), Gaussian Processes for Machine Learning, equations 2.22 to 2.24.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sde.noise.stream import NoiseStream, Purpose
from sde.shapes import check_shapes

__all__ = ["Conditional", "condition", "durbin_levinson", "gaussian_path", "hosking", "low_rank_factors"]

_TRUNCATION = 1e-13  # eigenvalues of the correlation matrix that are left out, relative to the largest
_KNOWN = 1e-12  # conditional variances, relative to the largest, that are zero but for rounding


def gaussian_path(
    covariance: Tensor,
    noise: NoiseStream,
    *,
    channels: int | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Samples of a Gaussian vector of mean zero: the Cholesky factor times normals.

    Instants of variance zero, such as the start of a path, stay at zero. Value ``j`` depends on the first
    ``j + 1`` normals only, so a longer grid continues the same path.

    Args:
        covariance: Shape ``(T, T)``, float64, positive definite where the variance is not zero.
        noise: Source of the normals, forked with the tag ``"cholesky"``.
        channels: Number of independent paths of each sample; ``None`` is one without a channel axis.
        dtype: ``torch.float32`` or ``torch.float64``; ``None`` is torch's default dtype.
        device: Where the sample is computed.

    Returns:
        Shape ``(n, T)`` or ``(n, T, channels)``.

    Raises:
        ValueError: If the matrix is not square or not positive definite.

    Example:
        >>> from sde.noise.fractional import riemann_liouville_covariance
        >>> t = torch.tensor([0.0, 0.1, 0.15, 1.0])
        >>> gaussian_path(riemann_liouville_covariance(0.2, t, t), NoiseStream(0, 0, 5)).shape
        torch.Size([5, 4])
    """
    dtype = torch.get_default_dtype() if dtype is None else dtype
    factor = _factor(covariance).to(device, dtype)
    normals = noise.fork("cholesky").normals(
        len(factor), purpose=Purpose.WIENER, channels=channels or 1, dtype=dtype, device=device
    )
    paths = factor @ normals
    return paths[..., 0] if channels is None else paths


@dataclass(frozen=True, slots=True, eq=False)
class Conditional:
    """The law of a Gaussian vector given observations.

    Attributes:
        gain: Observations to conditional mean, shape ``(T, m)``.
        covariance: Conditional covariance, shape ``(T, T)``.
    """

    gain: Tensor
    covariance: Tensor

    def mean(self, observations: Tensor) -> Tensor:
        """Conditional mean ``(..., T)`` given values ``(..., m)``."""
        return observations.to(self.gain) @ self.gain.mT

    def sample(self, observations: Tensor, noise: NoiseStream, *, dtype: torch.dtype | None = None) -> Tensor:
        """Paths given observations, shape ``(n, T)``; values that were observed exactly are met.

        Args:
            observations: Observed values, shape ``(m,)`` or, one row per sample, ``(n, m)``.
            noise: Source of the normals, forked with the tag ``"conditional"``.
            dtype: As for :func:`gaussian_path`.
        """
        variance = self.covariance.diagonal()
        free = (variance > _KNOWN * variance.max()).to(self.covariance)
        factor = low_rank_factors(free[:, None] * self.covariance * free)
        normals = noise.fork("conditional").normals(
            factor.shape[1], purpose=Purpose.WIENER, dtype=torch.float64, device=factor.device
        )
        paths = self.mean(observations) + normals @ factor.mT
        return paths.to(torch.get_default_dtype() if dtype is None else dtype)


def condition(prior: Tensor, cross: Tensor, observed: Tensor) -> Conditional:
    """Condition a Gaussian vector on correlated observations, all of mean zero.

    Args:
        prior: Covariance of the vector, shape ``(T, T)``.
        cross: Covariance of the vector with the observations, shape ``(T, m)``.
        observed: Covariance of the observations, measurement noise included, shape ``(m, m)``.

    Returns:
        The conditional law.

    Raises:
        ValueError: If shapes disagree or ``observed`` is not positive definite.

    Example:
        >>> from sde.noise.fractional import fbm_covariance
        >>> t, seen = torch.linspace(0, 1, 5), torch.tensor([1.0])
        >>> bridge = condition(*(fbm_covariance(0.7, *pair) for pair in ((t, t), (t, seen), (seen, seen))))
        >>> bridge.mean(torch.tensor([2.0]))[[0, -1]].tolist()
        [0.0, 2.0]
    """
    check_shapes(prior=(prior, "T T"), cross=(cross, "T m"), observed=(observed, "m m"))
    factor = _cholesky("observed", observed.double())
    white = torch.linalg.solve_triangular(factor, cross.double().mT, upper=False)
    gain = torch.linalg.solve_triangular(factor.mT, white, upper=True).mT
    return Conditional(gain, prior.double() - white.mT @ white)


def hosking(
    autocovariance: Tensor,
    noise: NoiseStream,
    *,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> Iterator[Tensor]:
    """A stationary Gaussian sequence, one value at a time, by the Durbin--Levinson recursion.

    For use online, where values are wanted as they are drawn; value ``k`` costs ``O(k)`` a sample. The values
    are those of :func:`gaussian_path` with the Toeplitz matrix of the autocovariance.

    Args:
        autocovariance: At lags ``0 .. num - 1``, shape ``(num,)``.
        noise: Source of the normals, forked with the tag ``"cholesky"``.
        dtype: Type of the values.
        device: Where they are computed.

    Yields:
        The next value of every sample, shape ``(n,)``.

    Raises:
        ValueError: If the autocovariance is not a positive definite vector.

    Example:
        >>> from sde.noise.fractional import fgn_autocovariance
        >>> values = hosking(fgn_autocovariance(0.8, 100), NoiseStream(seed=0, start=0, stop=3))
        >>> next(values).shape
        torch.Size([3])

    References:
        Hosking (1984), Modeling persistence in hydrological time series using fractional differencing,
        section 3. doi:10.1029/WR020i012p01898
    """
    check_shapes(autocovariance=(autocovariance, "lags"))
    stream = noise.fork("cholesky")
    past = torch.zeros(len(noise), len(autocovariance), dtype=dtype, device=device)
    for k, (weights, variance) in enumerate(durbin_levinson(autocovariance)):
        normal = stream.normals(1, purpose=Purpose.WIENER, first=k, dtype=dtype, device=device)[:, 0]
        # The newest value comes first in the weights.
        past[:, k] = past[:, :k].flip(1) @ weights.to(past) + normal * variance.to(past).sqrt()
        yield past[:, k].clone()


def durbin_levinson(autocovariance: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Weights and variance of the best linear prediction of each value from all before it.

    Args:
        autocovariance: At lags ``0 .. num - 1``, shape ``(..., num)``: one recursion for each row.

    Yields:
        For value ``k``: weights of values ``k - 1, ..., 0``, shape ``(..., k)``, and the variance of the
        error, shape ``(...)``.

    Raises:
        ValueError: If an autocovariance is not positive definite.

    References:
        Brockwell & Davis (1991), Time Series: Theory and Methods, proposition 5.2.1.
    """
    row = autocovariance.double().cpu()
    weights, variance = row[..., :0], row[..., 0]
    for k in range(row.shape[-1]):
        if k:
            # Lags k - 1, ..., 1 meet the weights of values k - 1, ..., 0 in reverse.
            partial = (row[..., k] - (weights * row[..., 1:k].flip(-1)).sum(-1)) / variance
            reflected = weights - partial[..., None] * weights.flip(-1)
            weights = torch.cat((reflected, partial[..., None]), -1)
            variance = variance * (1 - partial) * (1 + partial)
        if not bool((variance > 0).all()):
            raise ValueError(f"`autocovariance` must be positive definite; lag {k} is not.")
        yield weights, variance


def low_rank_factors(covariance: Tensor) -> Tensor:
    """Factors ``L`` with ``L L^T`` the covariance, shape ``(..., K, r)``: leading directions first.

    The rank ``r`` is the largest that any of the matrices needs. Rows are scaled to correlations first, since
    the variances may differ by many orders of magnitude.
    """
    scale = covariance.diagonal(dim1=-2, dim2=-1).sqrt()[..., None]
    inverse = torch.where(scale > 0, 1 / torch.where(scale > 0, scale, 1.0), 0.0)
    values, vectors = torch.linalg.eigh(inverse * covariance * inverse.mT)
    values, vectors = values.flip(-1).clamp(min=0), vectors.flip(-1)
    kept = int((values > _TRUNCATION * values[..., :1]).sum(-1).max())
    return (scale * vectors * values[..., None, :].sqrt())[..., :kept]


def _factor(covariance: Tensor) -> Tensor:
    """Lower Cholesky factor, with zero rows where the variance is zero."""
    check_shapes(covariance=(covariance, "T T"))
    matrix = covariance.double()
    alive = matrix.diagonal() > 0
    factor = torch.zeros_like(matrix)
    index = alive.nonzero()[:, 0]
    factor[index[:, None], index] = _cholesky("covariance", matrix[index[:, None], index])
    return factor


def _cholesky(name: str, matrix: Tensor) -> Tensor:
    """Lower Cholesky factor, or an error that names the matrix."""
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if int(failed):
        raise ValueError(f"`{name}` must be positive definite; its minor of size {int(failed)} is not.")
    return factor
