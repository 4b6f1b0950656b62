"""The checkerboard: a law with edges and gaps whose density is known, to test samplers on."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.ndimage import gaussian_filter, map_coordinates
from torch import Tensor

from sde.noise import NoiseStream, Purpose

__all__ = ["Checkerboard"]


@dataclass(frozen=True, slots=True)
class Checkerboard:
    r"""The uniform law on the eight dark cells of a board of four by four, in the plane.

    Its density is known, and so is that of its points with normal noise of a deviation h, which is positive
    everywhere: with the same noise a sample of a model can be compared with it without the bias of a kernel
    estimate.

    Attributes:
        side: Of a cell, positive; the board is centred.

    Raises:
        ValueError: If the side is not positive.

    Example:
        >>> board = Checkerboard()
        >>> round(board.log_density(torch.tensor([[-3.0, -3.0]])).exp().item() * 32, 6)
        1.0
        >>> bool(board.contains(torch.tensor([[-3.0, -1.0]])))
        False

    References:
        Albergo, Boffi & Vanden-Eijnden (2023), Stochastic interpolants, section 7.1. arXiv:2303.08797
    """

    side: float = 2.0

    def __post_init__(self) -> None:
        if not 0 < self.side < math.inf:
            raise ValueError(f"`side` must be positive; got {self.side}.")

    def contains(self, x: Tensor) -> Tensor:
        """Whether points ``(n, 2)`` lie in a dark cell, shape ``(n,)``."""
        cell = (x / self.side + 2).floor()
        return ((cell >= 0) & (cell < 4)).all(1) & (cell.sum(1) % 2 == 0)

    def log_density(self, x: Tensor, *, blur: float = 0.0) -> Tensor:
        """Logarithm of the density at points ``(n, 2)``, with noise of deviation ``blur``, shape ``(n,)``."""
        area = 8 * self.side**2
        if blur == 0:
            outside = torch.full_like(x[:, 0], -math.inf)
            return torch.where(self.contains(x), -math.log(area), outside)
        edges = self.side * torch.arange(-2, 3, dtype=x.dtype, device=x.device)
        below = torch.special.ndtr((x[:, :, None] - edges) / blur)
        column, row = (below[:, :, :-1] - below[:, :, 1:]).unbind(1)
        cells = torch.arange(4, device=x.device)
        dark = ((cells[:, None] + cells) % 2 == 0).to(x)
        return torch.einsum("ni,nj,ij->n", column, row, dark).log() - math.log(area)

    def sample(self, noise: NoiseStream, *, purpose: Purpose = Purpose.USER) -> Tensor:
        """One point for each sample of a stream, shape ``(n, 2)``, in single precision."""
        first, choice, second = noise.uniforms(3, purpose=purpose).unbind(1)
        column = (4 * first).floor()
        row = 2 * (2 * choice).floor() + column % 2
        return self.side * torch.stack((4 * first - 2, row + second - 2), 1)

    def errors(self, points: Tensor, held: Tensor, *, blur: float = 0.15) -> Tensor:
        r"""How far the law of a sample is from this one: differences of blurred log-densities.

        .. math:: |\log \rho^h(x) - \log \hat\rho^h(x)|, \qquad
                  \hat\rho^h = \frac1n \sum_i N(\cdot\,; x_i, h^2)

        with a density of at least that of one point at its centre, so that the result is finite.

        Args:
            points: The sample, shape ``(n, 2)``.
            held: Where the densities are compared, shape ``(m, 2)``, such as a sample of this law.
            blur: ``h``, positive; a tenth of the side of a cell or less keeps the cells apart.

        Returns:
            The differences, float64, shape ``(m,)``.

        Example:
            >>> board = Checkerboard()
            >>> sample, other = (board.sample(NoiseStream(seed, 0, 5000)) for seed in (0, 1))
            >>> board.errors(sample, other).mean() < 0.3 < board.errors(sample + 2, other).mean()
            tensor(True)
        """
        held, edge = held.double().cpu(), 3 * self.side
        bins = math.ceil(2 * edge / (blur / 10))  # ten to a deviation
        width = 2 * edge / bins
        counts, _, _ = np.histogram2d(*points.double().cpu().numpy().T, bins=bins, range=[(-edge, edge)] * 2)
        found = gaussian_filter(counts, blur / width, mode="constant", truncate=6) / (len(points) * width**2)
        at = torch.from_numpy(map_coordinates(found, (held.numpy().T + edge) / width - 0.5, order=1))
        lowest = 1 / (2 * math.pi * blur**2 * len(points))
        return (self.log_density(held, blur=blur) - at.clamp(min=lowest).log()).abs()
