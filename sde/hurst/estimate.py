"""What an estimator of the Hurst index returns, and its diagnostic figure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.interpolate import CubicSpline
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Diagnostic", "HurstEstimate", "LikelihoodCurve", "Response", "as_rows"]


@dataclass(frozen=True, slots=True, eq=False)
class Diagnostic:
    """What the estimator saw, and what it fitted to it.

    Attributes:
        abscissa: Shape ``(p,)``.
        seen: Shape ``(..., p)``.
        fitted: Shape ``(..., p)``.
        labels: Of the two axes.
        logarithmic: Whether the axes are.
    """

    abscissa: Tensor
    seen: Tensor
    fitted: Tensor
    labels: tuple[str, str]
    logarithmic: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class Response:
    """Mean and standard deviation of a slope as functions of the index.

    Attributes:
        index: Increasing indices, shape ``(m,)``.
        mean: Of the slope, shape ``(m,)``.
        deviation: Of the slope, shape ``(m,)``.
    """

    index: np.ndarray
    mean: np.ndarray
    deviation: np.ndarray

    def invert(self, slope: Tensor, quantile: float) -> Tensor:
        """The index under which a slope lies ``quantile`` standard deviations above its mean."""
        reached = np.maximum.accumulate(self.mean + quantile * self.deviation)
        index = np.interp(slope.numpy(), reached, self.index, left=0.0, right=1.0)
        return torch.as_tensor(index)

    def interval(self, slope: Tensor, quantile: float) -> tuple[Tensor, Tensor]:
        """Indices under which the slope is within ``quantile`` standard deviations of its mean."""
        return self.invert(slope, quantile), self.invert(slope, -quantile)

    def std_error(self, index: Tensor) -> Tensor:
        """Standard error of the inverted slope, to first order."""
        gradient = np.maximum(np.gradient(self.mean, self.index), 0.05)
        return torch.as_tensor(np.interp(index.numpy(), self.index, self.deviation / gradient))


@dataclass(frozen=True, slots=True, eq=False)
class LikelihoodCurve:
    """A profile log-likelihood as a function of the index.

    Attributes:
        index: Increasing indices, shape ``(m,)``.
        log_likelihood: Shape ``(m,)``.
    """

    index: Tensor
    log_likelihood: Tensor

    @classmethod
    def through(cls, index: Tensor, values: Tensor) -> "LikelihoodCurve":
        """The cubic spline through a few values, on a fine grid."""
        fine = np.linspace(float(index[0]), float(index[-1]), 2001)
        spline = CubicSpline(index.numpy(), values.numpy())
        return cls(torch.from_numpy(fine), torch.from_numpy(spline(fine)))

    def maximum(self) -> Tensor:
        """The index of the largest likelihood."""
        return self.index[self.log_likelihood.argmax()]

    def interval(self, estimate: Tensor, quantile: float) -> tuple[Tensor, Tensor]:
        """Indices whose likelihood ratio is within the ``quantile`` of the normal law (Wilks)."""
        inside = self.log_likelihood >= self.log_likelihood.max() - quantile**2 / 2
        kept = self.index[inside]
        return kept.min(), kept.max()


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class HurstEstimate:
    """An estimate of the Hurst index, with its standard error.

    Attributes:
        H: Estimates, float64, shape ``(...)``: one for each path. A slope may leave (0, 1), which says that
            the path is not fractional Brownian motion.
        std_error: Standard errors, likewise.
        raw: Slopes before bias correction; the same as ``H`` where there is none.
        scale: Estimated standard deviation of the increments over one step (over unit time for methods that
            take ``dt``), where the method gives it.
        method: Name of the estimator.
        diagnostic: For the figure.
        response: Where intervals come from, if not from the standard error: how slopes depend on the index,
            for methods that are calibrated, or the likelihood as a function of it.
        noise: Estimated standard deviation of the measurement noise, where the method has one.
    """

    H: Tensor
    std_error: Tensor
    raw: Tensor
    scale: Tensor | None
    method: str
    diagnostic: Diagnostic
    response: Response | LikelihoodCurve | None = None
    noise: Tensor | None = None

    def __repr__(self) -> str:
        if self.H.dim():
            return f"HurstEstimate({self.method}, {tuple(self.H.shape)} paths)"
        return f"HurstEstimate({self.method}: {float(self.H):.3f} +- {float(self.std_error):.3f})"

    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """Confidence interval for ``H``, by the normal law or by the likelihood ratio.

        Args:
            level: Probability that the interval covers the true index, in (0, 1).

        Returns:
            Lower and upper ends in [0, 1], each of shape ``(...)``.

        Raises:
            ValueError: If ``level`` is out of range.
        """
        if not 0 < level < 1:
            raise ValueError(f"`level` must lie in (0, 1); got {level}.")
        quantile = NormalDist().inv_cdf(0.5 + level / 2)
        if self.response is not None:
            return self.response.interval(self.raw, quantile)
        half = quantile * self.std_error
        return (self.H - half).clamp(0, 1), (self.H + half).clamp(0, 1)

    def plot(self, row: int | Sequence[int] = ()) -> "Figure":
        """The diagnostic figure of one path: what the estimator saw and the line it fitted.

        Args:
            row: Which path, where there are several.

        Returns:
            A figure without a window.

        Raises:
            ImportError: If matplotlib is missing.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError("Figures need matplotlib: pip install 'sdeuq[plot]'.") from error
        index = (row,) if isinstance(row, int) else tuple(row)
        index = index or (0,) * self.H.dim()
        what, figure = self.diagnostic, Figure(figsize=(5.2, 3.8), layout="constrained")
        axes = figure.subplots()
        x = what.abscissa.numpy(force=True)
        many = len(x) > 100  # a periodogram, not a handful of scales
        axes.plot(
            x, what.seen[index].numpy(force=True), "." if many else "o", color="#8a97a3", label="data",
            markersize=2 if many else 5,
        )  # fmt: skip
        axes.plot(x, what.fitted[index].numpy(force=True), color="#1f5f8b", linewidth=2, label="fit")
        h, (low, high) = float(self.H[index]), (float(end[index]) for end in self.interval())
        if what.logarithmic:
            axes.set(xscale="log", yscale="log")
        else:  # a likelihood: a few intervals around its maximum
            axes.set(xlim=(max(0.0, 3 * low - 2 * h), min(1.0, 3 * high - 2 * h)))
        axes.set(xlabel=what.labels[0], ylabel=what.labels[1])
        axes.set_title(f"{self.method}: H = {h:.3f}, 95 % interval [{low:.3f}, {high:.3f}]", fontsize=10)
        axes.legend(frameon=False)
        return figure


def as_rows(path: Tensor, least: int) -> Tensor:
    """Paths as float64 rows ``(n, T)``, checked.

    Raises:
        ValueError: If there are fewer than ``least`` values, or one is not finite, or a path is constant.
        TypeError: If the path is not a floating-point tensor.
    """
    if not isinstance(path, Tensor) or not path.is_floating_point():
        given = path.dtype if isinstance(path, Tensor) else type(path).__name__
        raise TypeError(f"`path` must be a floating-point tensor; got {given}.")
    if not path.dim() or path.shape[-1] < least:
        raise ValueError(f"`path` must hold at least {least} values; got shape {tuple(path.shape)}.")
    if not bool(path.isfinite().all()):
        raise ValueError("`path` must be finite; got NaN or infinite values.")
    rows = path.detach().to("cpu", torch.float64).reshape(math.prod(path.shape[:-1]), path.shape[-1])
    if bool((rows == rows[:, :1]).all(1).any()):
        raise ValueError("`path` must vary; got a constant path.")
    return rows
