r"""Maximisation of likelihoods that are smooth functions of the Hurst index alone.

A profile log-likelihood is computed at a few dozen indices that are the same for all paths, where the costly
part is shared, and interpolated. In the variable :math:`\theta = \log(H / (1 - H))` its nearest singularities
are at :math:`\pm i \pi`, so Chebyshev interpolation on ``[-4.6, 4.6]`` with 49 nodes is exact to 13 digits,
and maximum and curvature come from the polynomial.

References:
    Trefethen (2013), Approximation Theory and Approximation Practice, theorem 8.2.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.polynomial import chebyshev
from torch import Tensor

__all__ = ["Profile", "indices"]

_REACH = float(np.log(0.99 / 0.01))  # indices from 0.01 to 0.99
_NUM = 49
_SEARCH = np.linspace(-1, 1, 1601)


def indices() -> Tensor:
    """The indices at which a likelihood is to be computed, float64, shape ``(49,)``."""
    return torch.from_numpy(_index(chebyshev.chebpts1(_NUM)))


@dataclass(frozen=True, slots=True, eq=False)
class Profile:
    """Maximum of a profile log-likelihood.

    Attributes:
        H: The maximiser, shape ``(n,)``.
        std_error: One over the root of the curvature at the maximum, shape ``(n,)``.
        coefficients: Of the Chebyshev interpolant, shape ``(49, n)``.
    """

    H: Tensor
    std_error: Tensor
    coefficients: np.ndarray

    @classmethod
    def of(cls, values: Tensor) -> "Profile":
        """The maximum of the log-likelihoods whose values at :func:`indices` are given, shape ``(n, 49)``."""
        points = chebyshev.chebpts1(_NUM)
        coefficients = np.linalg.solve(chebyshev.chebvander(points, _NUM - 1), values.numpy().T)
        first, second = chebyshev.chebder(coefficients), chebyshev.chebder(coefficients, 2)
        u = _SEARCH[np.argmax(chebyshev.chebval(_SEARCH, coefficients), axis=-1)]
        for _ in range(4):  # the grid is fine enough for Newton's method to converge from its best point
            slope, bend = (_at(u, part) for part in (first, second))
            step = np.where(bend < 0, -slope / np.where(bend < 0, bend, -1.0), 0.0)
            u = np.clip(u + np.clip(step, -0.002, 0.002), -1, 1)
        h = _index(u)
        # dH / du = REACH H (1 - H); the slope vanishes at an inner maximum.
        curvature = np.maximum(-_at(u, second), 1e-300) / (_REACH * h * (1 - h)) ** 2
        return cls(torch.from_numpy(h), torch.from_numpy(curvature**-0.5), coefficients)

    def log_likelihood(self, hurst: Tensor) -> Tensor:
        """The interpolant at indices ``(m,)`` in [0.01, 0.99], shape ``(n, m)``."""
        u = np.log(hurst.numpy() / (1 - hurst.numpy())) / _REACH
        return torch.from_numpy(chebyshev.chebval(u, self.coefficients))


def _index(u: np.ndarray) -> np.ndarray:
    """The Hurst index at a point of [-1, 1]."""
    return 1 / (1 + np.exp(-_REACH * u))


def _at(u: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
    """Each polynomial at its own point."""
    return chebyshev.chebval(u, coefficients, tensor=False)
