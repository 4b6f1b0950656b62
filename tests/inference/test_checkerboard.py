"""The checkerboard: where its points are, its density with and without noise, and errors of samples."""

import math

import pytest
import torch
from scipy.stats import chi2
from torch import Tensor

from inference.checkerboard import Checkerboard
from sde import NoiseStream


def _statistic(board: Checkerboard, points: Tensor) -> float:
    """Pearson's statistic of counts in the quarters of the dark cells."""
    half = board.side / 2
    bins = ((points + 2 * board.side) / half).floor().long()
    dark = (bins[:, 0] // 2 + bins[:, 1] // 2) % 2 == 0
    kept = bins[dark & (bins >= 0).all(1) & (bins < 8).all(1)]
    counts = torch.bincount(kept[:, 0] * 8 + kept[:, 1], minlength=64).double()
    expected = len(points) / 32
    grid = torch.arange(8)
    inside = ((grid[:, None] // 2 + grid // 2) % 2 == 0).flatten()
    return ((counts[inside] - expected) ** 2 / expected).sum().item()


def test_points_are_uniform_on_the_dark_cells() -> None:
    board = Checkerboard(0.7)
    points = board.sample(NoiseStream(0, 0, 20_000))
    assert board.contains(points).all()
    limit = chi2.isf(1e-6, 31)
    assert _statistic(board, points) < limit
    assert _statistic(board, points + 0.02) > limit  # a shift of 3 % of a cell is seen


def test_density_is_uniform_and_none_between() -> None:
    board = Checkerboard(0.5)
    points = torch.tensor([[-0.75, -0.75], [-0.75, -0.25], [3.0, 3.0]])
    assert board.log_density(points).tolist() == [pytest.approx(-math.log(2)), -math.inf, -math.inf]


def test_density_with_noise_is_the_integral_against_its_kernel() -> None:
    board, blur = Checkerboard(), 0.4
    line = (torch.arange(800, dtype=torch.float64) + 0.5) / 100 - 4  # no cell edge within a square
    grid = torch.cartesian_prod(line, line)
    density = board.log_density(grid).exp()
    for point in torch.tensor([[-3.0, -3.0], [-2.1, -1.9], [1.0, 2.5], [4.2, 4.3]], dtype=torch.float64):
        kernel = (-(grid - point).square().sum(1) / (2 * blur**2)).exp() / (2 * math.pi * blur**2)
        found = board.log_density(point[None], blur=blur).exp().item()
        assert found == pytest.approx((density * kernel).sum().item() * 1e-4, rel=1e-3)


def test_errors_are_those_of_the_kernel_density() -> None:
    """Bins of a tenth of the deviation move points by 3 % of it: 0.0015 after a mean over 700."""
    board, blur = Checkerboard(), 0.3
    points, held = (
        board.sample(NoiseStream(seed, 0, count)).double() for seed, count in ((0, 20_000), (1, 50))
    )
    kernel = (-torch.cdist(held, points).square() / (2 * blur**2)).exp().mean(1) / (2 * math.pi * blur**2)
    expected = (board.log_density(held, blur=blur) - kernel.log()).abs()
    torch.testing.assert_close(board.errors(points, held, blur=blur), expected, rtol=0, atol=0.01)


def test_errors_fall_with_the_sample_and_see_a_wrong_law() -> None:
    board = Checkerboard()
    held = board.sample(NoiseStream(2, 0, 2000))
    small, large = (board.errors(board.sample(NoiseStream(3, 0, n)), held).mean() for n in (2500, 40_000))
    assert small / large == pytest.approx(4, rel=0.35)  # one over the root of the number
    uniform = 8 * NoiseStream(4, 0, 40_000).uniforms(2) - 4
    assert board.errors(uniform, held).mean() > 3 * large
    assert board.errors(torch.full((10, 2), 9.0), held).isfinite().all()


@pytest.mark.parametrize("side", [0.0, -1.0, math.inf])
def test_board_refuses_cells_without_extent(side: float) -> None:
    with pytest.raises(ValueError, match="`side` must be positive; got"):
        Checkerboard(side)
