r"""PFGM++: diffusion models whose noise has heavy tails, between Poisson flows and Gaussian diffusion.

Data are perturbed by the kernel :math:`p_r(x | y) \propto (|x - y|^2 + r^2)^{-(N + D)/2}` in N dimensions,
with :math:`r = \sigma \sqrt D`. That is the multivariate Student law with D degrees of freedom and scale
:math:`\sigma`: :math:`x = y + \sigma z / \sqrt{\chi^2_D / D}`. The denoiser :math:`E[y | x]` is trained by
the squared error, as with Gaussian noise, and gives the flow

.. math:: \frac{\mathrm dx}{\mathrm d\sigma} = \frac{x - E[y | x]}{\sigma} .

As D grows the noise becomes Gaussian, and everything with it at the rate 1/D.

References:
    Xu, Liu, Tian, Tong, Tegmark & Jaakkola (2023), PFGM++: unlocking the potential of physics-inspired
    generative models, sections 3 and 4. arXiv:2302.04265
    Karras, Aittala, Aila & Laine (2022), Elucidating the design space of diffusion-based generative models,
    section 3. arXiv:2206.00364
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from scipy.special import gammaincinv
from torch import Tensor

from sde.equation import ode
from sde.noise import NoiseStream, Purpose
from sde.shapes import check_shapes
from sde.solve import solve
from sde.solvers import Heun, Solver

__all__ = ["Denoiser", "StudentNoise", "denoising_flow"]

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""Noise level, 0-d, and points ``(n, d)`` to denoised points ``(n, d)``."""

_HEUN = Heun()


@dataclass(frozen=True, slots=True)
class StudentNoise:
    """The noise of PFGM++.

    Attributes:
        degrees: D, the degrees of freedom, positive; infinity is Gaussian noise.

    Raises:
        ValueError: If ``degrees`` is not positive.
    """

    degrees: float

    def __post_init__(self) -> None:
        if not self.degrees > 0:
            raise ValueError(f"`degrees` must be positive; got {self.degrees}.")

    def sample(
        self,
        noise: NoiseStream,
        dim: int,
        *,
        purpose: Purpose = Purpose.TRAINING,
        dtype: torch.dtype = torch.float64,
    ) -> Tensor:
        """Noise of scale 1 for each sample, shape ``(n, dim)``; its variance is ``D / (D - 2)``.

        The normals do not depend on the degrees of freedom, and the radial factor is monotone in one uniform.

        Example:
            >>> StudentNoise(8.0).sample(NoiseStream(0, 0, 3), 2).shape
            torch.Size([3, 2])
        """
        normals = noise.fork("direction").normals(dim, purpose=purpose, dtype=dtype)
        if math.isinf(self.degrees):
            return normals
        uniform = noise.fork("radius").uniforms(1, purpose=purpose, dtype=torch.float64)
        ratio = gammaincinv(self.degrees / 2, uniform.numpy()) / (self.degrees / 2)  # chi-squared over D
        return normals / torch.from_numpy(ratio).sqrt().to(dtype)

    def denoiser(self, points: Tensor) -> Denoiser:
        """The exact denoiser of the empirical law of ``points``, shape ``(m, d)``."""
        check_shapes(points=(points, "m d"))

        def denoise(sigma: Tensor, x: Tensor) -> Tensor:
            squares = torch.cdist(x, points).square() / sigma**2
            if math.isinf(self.degrees):
                logs = -0.5 * squares
            else:
                logs = -0.5 * (points.shape[1] + self.degrees) * torch.log1p(squares / self.degrees)
            return logs.softmax(1) @ points

        return denoise


def denoising_flow(denoiser: Denoiser, initial: Tensor, sigmas: Tensor, *, solver: Solver = _HEUN) -> Tensor:
    """Follow the flow of a denoiser from the first noise level to the last.

    Args:
        denoiser: Trained or exact.
        initial: Points at the first level, such as the first level times :meth:`StudentNoise.sample`, shape
            ``(n, d)``.
        sigmas: Decreasing, positive noise levels, shape ``(T,)``.
        solver: One-step method.

    Returns:
        Points at the last level, shape ``(n, d)``.

    Raises:
        ValueError: If the levels do not decrease or are not positive.

    Example:
        >>> centre = lambda sigma, x: torch.zeros_like(x)
        >>> denoising_flow(centre, torch.ones(1, 2), torch.tensor([2.0, 1.0, 0.5]), solver=Heun()).shape
        torch.Size([1, 2])
    """
    if sigmas.dim() != 1 or len(sigmas) < 2 or not bool((sigmas.diff() < 0).all() and sigmas[-1] > 0):
        raise ValueError(f"`sigmas` must decrease and be positive; got {sigmas.tolist()}.")
    equation = ode(lambda t, x: (x - denoiser(-t, x)) / t)
    return solve(equation, initial, -sigmas.to(initial), None, solver=solver)[:, -1]
