"""Observed time series: shared instants, regular or not, and values of which any may be missing."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sde.shapes import check_shapes

__all__ = ["Series"]


@dataclass(frozen=True, slots=True, eq=False)
class Series:
    """Observations of several series at some instants; NaN is what was not observed.

    Args:
        times: Strictly increasing instants, at least 2, shape ``(T,)``. The process starts at the first.
        values: Observations, shape ``(B, T, p)``, in the dtype that they are modelled in.

    Raises:
        ValueError: If the shapes disagree, the instants do not increase, or a value is infinite.
        TypeError: If one of them is not floating point.

    Example:
        >>> values = torch.tensor([[[1.0], [torch.nan], [3.0]]])
        >>> series = Series(torch.tensor([0.0, 0.5, 2.0]), values)
        >>> series.mask[0, :, 0].tolist(), series.filled[0, :, 0].tolist()
        ([True, False, True], [1.0, 0.0, 3.0])
    """

    times: Tensor
    values: Tensor

    def __post_init__(self) -> None:
        check_shapes(times=(self.times, "T"), values=(self.values, "B T p"))
        for name in ("times", "values"):
            if not getattr(self, name).is_floating_point():
                raise TypeError(f"`{name}` must be floating point; got {getattr(self, name).dtype}.")
        if len(self.times) < 2 or not bool((self.times.diff() > 0).all()):
            raise ValueError(f"`times` must be at least 2 increasing instants; got {self.times.tolist()}.")
        if bool(self.values.isinf().any()):
            raise ValueError("`values` must be finite, or NaN where nothing was observed; got infinite ones.")

    @classmethod
    def join(cls, times: Sequence[Tensor], values: Sequence[Tensor]) -> "Series":
        """Put series with instants of their own on the instants of all.

        Args:
            times: Increasing instants of each series, shapes ``(T_b,)``.
            values: Observations of each series, shapes ``(T_b, p)``.

        Returns:
            One row for each series; NaN at the instants of the others.

        Raises:
            ValueError: If there are no series, or as many instants as values in none.

        Example:
            >>> own = [torch.tensor([0.0, 1.0]), torch.tensor([0.5])]
            >>> Series.join(own, [torch.ones(2, 1), torch.zeros(1, 1)]).values[..., 0].tolist()
            [[1.0, nan, 1.0], [nan, 0.0, nan]]
        """
        if not values or len(times) != len(values):
            raise ValueError(
                f"`times` and `values` must hold the same number of series, at least one; got {len(times)} "
                f"and {len(values)}."
            )
        union = torch.cat(list(times)).unique()
        whole = values[0].new_full((len(values), len(union), values[0].shape[-1]), torch.nan)
        for row, (instants, seen) in enumerate(zip(times, values, strict=True)):
            check_shapes(times=(instants, "T"), values=(seen, f"T {whole.shape[2]}"))
            whole[row, torch.searchsorted(union, instants)] = seen
        return cls(union, whole)

    def __len__(self) -> int:
        return len(self.values)

    @property
    def mask(self) -> Tensor:
        """What was observed, bool, shape ``(B, T, p)``."""
        return ~self.values.isnan()

    @property
    def filled(self) -> Tensor:
        """The values, with zeros for what is missing."""
        return self.values.nan_to_num(nan=0.0)

    def interpolated(self) -> Tensor:
        """The values, with what is missing on the line between its observed neighbours.

        Before the first and after the last observation of a component they are constant, and zero where
        there is none.

        Returns:
            Shape ``(B, T, p)``.

        Example:
            >>> values = torch.tensor([[[1.0], [torch.nan], [4.0], [torch.nan]]])
            >>> Series(torch.tensor([0.0, 1.0, 3.0, 4.0]), values).interpolated()[0, :, 0].tolist()
            [1.0, 2.0, 4.0, 4.0]
        """
        mask, count = self.mask, len(self.times)
        rows = torch.arange(count, device=mask.device)[:, None].expand(mask.shape)
        before = rows.where(mask, -1).cummax(1).values
        after = rows.where(mask, count).flip(1).cummin(1).values.flip(1)
        low = before.where(before >= 0, after).clamp(max=count - 1)
        high = after.where(after < count, before).clamp(min=0)
        times = self.times.to(self.values)
        share = ((times[:, None] - times[low]) / (times[high] - times[low])).nan_to_num(0.0, 0.0, 0.0)
        return torch.lerp(self.filled.gather(1, low), self.filled.gather(1, high), share)

    def select(self, rows: Tensor | slice) -> "Series":
        """Some of the series, by their numbers."""
        return Series(self.times, self.values[rows])
