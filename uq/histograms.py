"""Histograms with fixed edges, which can be merged."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

__all__ = ["Histogram", "histogram_edges"]


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts of samples between fixed edges; ``a + b`` counts both sets of samples.

    A sample at an inner edge counts above it; one at the last edge counts in the last bin.

    Attributes:
        edges: Strictly increasing edges, shape ``(k + 1,)``, float64.
        counts: Samples in each bin, shape ``(k,)``, int64.
        below: Samples under the first edge.
        above: Samples over the last edge.

    Example:
        >>> edges = torch.tensor([0.0, 1.0, 2.0])
        >>> first, second = torch.tensor([0.5, 1.5]), torch.tensor([2.0, 9.0])
        >>> (Histogram.of(first, edges) + Histogram.of(second, edges)).counts
        tensor([1, 2])
    """

    edges: Tensor
    counts: Tensor
    below: int
    above: int

    @classmethod
    def of(cls, samples: Tensor, edges: Tensor) -> "Histogram":
        """Count samples ``(n,)``, without NaN, between ``edges`` ``(k + 1,)``.

        Raises:
            ValueError: If the edges do not increase or the samples hold NaN.
        """
        edges = edges.detach().to("cpu", torch.float64).contiguous()
        if edges.ndim != 1 or len(edges) < 2 or not bool((edges.diff() > 0).all()):
            raise ValueError(f"`edges` must be at least 2 strictly increasing numbers; got {edges.tolist()}.")
        values = samples.detach().to("cpu", torch.float64).reshape(-1).contiguous()
        if bool(values.isnan().any()):
            raise ValueError(f"`samples` must hold no NaN; got {int(values.isnan().sum())} of {len(values)}.")
        place = torch.searchsorted(edges, values, right=True)
        place[values == edges[-1]] -= 1
        all_counts = torch.bincount(place, minlength=len(edges) + 1)
        return cls(edges, all_counts[1:-1], int(all_counts[0]), int(all_counts[-1]))

    def __add__(self, other: "Histogram") -> "Histogram":
        """The counts of both sets of samples; the edges must be the same."""
        if not torch.equal(self.edges, other.edges):
            raise ValueError("Histograms can be added where their edges are equal; got different edges.")
        return Histogram(
            self.edges, self.counts + other.counts, self.below + other.below, self.above + other.above
        )

    @property
    def total(self) -> int:
        """Number of samples, those outside the edges included."""
        return int(self.counts.sum()) + self.below + self.above

    @property
    def density(self) -> Tensor:
        """Estimate of the probability density in each bin, in 1 / (unit of the edges)."""
        return self.counts / (self.edges.diff() * max(self.total, 1))

    @property
    def density_std_error(self) -> Tensor:
        """Standard error of :attr:`density`, for independent samples."""
        share = self.counts.double() / max(self.total, 1)
        return (share * (1 - share) / max(self.total, 1)).sqrt() / self.edges.diff()


def histogram_edges(samples: Tensor, *, most: int = 200) -> Tensor:
    """Edges of bins of equal width by the rule of Freedman and Diaconis.

    Args:
        samples: Pilot samples, shape ``(n,)``, finite, at least 1.
        most: Largest number of bins.

    Returns:
        Edges from the smallest to the largest sample, float64.

    Raises:
        ValueError: If there is no sample or one is not finite.

    References:
        Freedman & Diaconis (1981). doi:10.1007/BF01025868
    """
    values = samples.detach().to("cpu", torch.float64).reshape(-1)
    if len(values) == 0 or not bool(values.isfinite().all()):
        raise ValueError("`samples` must be finite and hold at least one; got none, NaN or infinity.")
    edges = (
        np.histogram_bin_edges(values.numpy(), bins="fd")
        if len(values) > 1
        else np.histogram(values.numpy())[1]
    )
    if len(edges) - 1 > most:
        edges = np.linspace(edges[0], edges[-1], most + 1)
    return torch.from_numpy(edges)
