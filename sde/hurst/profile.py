r"""Maximisation of Gaussian likelihoods that are smooth functions of the Hurst index alone.

The likelihood is computed at a few dozen indices that are the same for all paths, where the costly part is
shared, and interpolated: the log-determinant and the logarithm of the quadratic form, which are of moderate
size where the likelihood itself spans many orders of magnitude. In the variable :math:`\theta = \log(H / (1 -
H))` their nearest singularities are at :math:`\pm i \pi`, so Chebyshev interpolation on ``[-4.6, 4.6]`` with
49 nodes is exact to 13 digits. Maximum and curvature come from the polynomials.

References:
    Trefethen (2013), Approximation Theory and Approximation Practice, theorem 8.2.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.polynomial import chebyshev
from torch import Tensor

__all__ = ["Profile", "indices"]

_REACH = math.log(0.99 / 0.01)  # indices from 0.01 to 0.99
_NUM = 49
_NUM_SEARCH = 1601


def indices() -> Tensor:
    """The indices at which a likelihood is to be computed, float64, shape ``(49,)``."""
    return torch.from_numpy(_index(chebyshev.chebpts1(_NUM)))


@dataclass(frozen=True, slots=True, eq=False)
class Profile:
    r"""Log-likelihoods as functions of ``H``, scale known or maximised over.

    .. math::

        \ell(H) = -\tfrac12 (\log\det R_H + x^T R_H^{-1} x), \qquad
        \ell(H) = -\tfrac12 \bigl(\log\det R_H + n \log (x^T R_H^{-1} x / n)\bigr)

    Attributes:
        log_det: Chebyshev coefficients of the log-determinant, shape ``(49, 1)``.
        log_form: Of the logarithm of the quadratic forms, shape ``(49, paths)``.
        count: Number ``n`` of values where the scale is maximised over, else ``None``.
    """

    log_det: np.ndarray
    log_form: np.ndarray
    count: int | None

    @classmethod
    def of(cls, log_det: Tensor, forms: Tensor, count: int | None = None) -> "Profile":
        """Interpolate log-determinants ``(49,)`` and quadratic forms ``(paths, 49)`` at :func:`indices`."""
        matrix = chebyshev.chebvander(chebyshev.chebpts1(_NUM), _NUM - 1)
        first = np.linalg.solve(matrix, log_det[:, None].numpy())
        return cls(first, np.linalg.solve(matrix, forms.log().mT.numpy()), count)

    def maximum(self, low: float = 0.01, high: float = 0.99) -> tuple[Tensor, Tensor]:
        """Maximisers in ``[low, high]``, and one over the root of the curvature there, each ``(paths,)``."""
        first, last = (math.log(h / (1 - h)) / _REACH for h in (low, high))
        search = np.linspace(first, last, _NUM_SEARCH)
        u = search[np.argmax(self._value(search), axis=-1)]
        for _ in range(5):  # the grid is fine enough for Newton's method to converge from its best point
            slope, bend = self._derivatives(u)
            step = np.where(bend < 0, -slope / np.where(bend < 0, bend, -1.0), 0.0)
            u = np.clip(u + np.clip(step, -0.002, 0.002), first, last)
        h, bend = _index(u), self._derivatives(u)[1]
        # dH / du = REACH H (1 - H); the slope vanishes at an inner maximum.
        curvature = np.maximum(-bend, 1e-300) / (_REACH * h * (1 - h)) ** 2
        return torch.from_numpy(h), torch.from_numpy(curvature**-0.5)

    def log_likelihood(self, hurst: Tensor) -> Tensor:
        """The log-likelihoods at indices ``(m,)`` in [0.01, 0.99], up to a constant, shape ``(paths, m)``."""
        return torch.from_numpy(self._value(np.log(hurst.numpy() / (1 - hurst.numpy())) / _REACH))

    def _value(self, u: np.ndarray) -> np.ndarray:
        """Log-likelihoods at points ``(m,)`` of [-1, 1], shape ``(paths, m)``."""
        log_det, form = (chebyshev.chebval(u, part) for part in (self.log_det, self.log_form))
        return -0.5 * (log_det + (np.exp(form) if self.count is None else self.count * form))

    def _derivatives(self, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """First and second derivative of each path's log-likelihood at its own point ``(paths,)``."""
        det_1, det_2 = (chebyshev.chebval(u, chebyshev.chebder(self.log_det[:, 0], k)) for k in (1, 2))
        form, form_1, form_2 = (
            chebyshev.chebval(u, chebyshev.chebder(self.log_form, k), tensor=False) for k in (0, 1, 2)
        )
        if self.count is None:
            size = np.exp(form)
            return -0.5 * (det_1 + size * form_1), -0.5 * (det_2 + size * (form_1**2 + form_2))
        return -0.5 * (det_1 + self.count * form_1), -0.5 * (det_2 + self.count * form_2)


def _index(u: np.ndarray) -> np.ndarray:
    """The Hurst index at a point of [-1, 1]."""
    return 1 / (1 + np.exp(-_REACH * u))
