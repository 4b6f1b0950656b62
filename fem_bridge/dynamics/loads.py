"""Loads: nodal forces as functions of time, for a batch of samples."""

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

__all__ = ["Load", "Pulse", "SeparableLoad", "SineSquaredPulse"]


@runtime_checkable
class Pulse(Protocol):
    """A function of time per sample."""

    def __call__(self, time: float) -> Tensor:
        """Values at ``time`` [s], shape ``(n,)``."""
        ...

    def table(self, times: Tensor) -> Tensor:
        """Values at instants of shape ``(T,)``, shape ``(T, n)``."""
        ...

    def select(self, samples: Tensor) -> "Pulse":
        """The pulses of some samples (int64, shape ``(k,)``), in that order."""
        ...


@runtime_checkable
class Load(Protocol):
    """Nodal forces as a function of time, for ``n`` samples."""

    def __len__(self) -> int:
        """Number of samples."""
        ...

    def force(self, time: float) -> Tensor:
        """Nodal forces [N/m] at ``time`` [s], shape ``(n, D)``."""
        ...

    def select(self, samples: Tensor) -> "Load":
        """The loads of some samples (int64, shape ``(k,)``), in that order."""
        ...


@dataclass(frozen=True, eq=False, slots=True)
class SineSquaredPulse:
    r"""A smooth pulse, :math:`\sin^2(\pi t / T)` for :math:`0 \le t \le T` and 0 elsewhere.

    Attributes:
        duration: Length ``T`` of the pulse of each sample [s], positive, shape ``(n,)``.

    Raises:
        ValueError: If a duration is not positive.

    Example:
        >>> SineSquaredPulse(torch.tensor([1.0, 0.25]))(0.5)
        tensor([1., 0.])
    """

    duration: Tensor

    def __post_init__(self) -> None:
        if self.duration.ndim != 1 or not bool((self.duration > 0).all()):
            shape, values = tuple(self.duration.shape), self.duration.detach().flatten().tolist()
            raise ValueError(
                f"`duration` must be positive, one per sample; got shape {shape}, "
                f"least {min(values, default=None)}."
            )

    def __call__(self, time: float) -> Tensor:
        """Values at ``time`` [s], shape ``(n,)``."""
        return self._of(time / self.duration)

    def table(self, times: Tensor) -> Tensor:
        """Values at instants of shape ``(T,)``, shape ``(T, n)``."""
        return self._of(times.to(self.duration)[:, None] / self.duration)

    @staticmethod
    def _of(phase: Tensor) -> Tensor:
        """The pulse over the fraction of its duration, exactly 0 outside."""
        inside = (phase > 0) & (phase < 1)
        return torch.where(inside, torch.sin(math.pi * phase), torch.zeros_like(phase)) ** 2

    def select(self, samples: Tensor) -> "SineSquaredPulse":
        """The pulses of some samples (int64, shape ``(k,)``), in that order."""
        return SineSquaredPulse(self.duration[samples])


@dataclass(frozen=True, eq=False, slots=True)
class SeparableLoad:
    r"""A pattern in space times a function of time.

    .. math:: f_i(t) = \mathrm{pulse}_i(t) \, \mathrm{spatial}_i

    Attributes:
        spatial: Nodal forces [N/m] of each sample for a pulse of 1, shape ``(n, D)``.
        pulse: Function of time of each sample.

    Raises:
        ValueError: If the spatial pattern is not finite or not of shape ``(n, D)``.

    Example:
        >>> load = SeparableLoad(torch.ones(2, 4), SineSquaredPulse(torch.tensor([1.0, 2.0])))
        >>> load.force(1.0)
        tensor([[0., 0., 0., 0.],
                [1., 1., 1., 1.]])
    """

    spatial: Tensor
    pulse: Pulse

    def __post_init__(self) -> None:
        if self.spatial.ndim != 2:
            raise ValueError(f"`spatial` must have shape (n, D); got {tuple(self.spatial.shape)}.")
        if not bool(self.spatial.isfinite().all()):
            raise ValueError(
                f"`spatial` must be finite; got {int((~self.spatial.isfinite()).sum())} values that are not."
            )

    def __len__(self) -> int:
        return len(self.spatial)

    def force(self, time: float) -> Tensor:
        """Nodal forces [N/m] at ``time`` [s], shape ``(n, D)``."""
        return self.pulse(time)[:, None] * self.spatial

    def select(self, samples: Tensor) -> "SeparableLoad":
        """The loads of some samples (int64, shape ``(k,)``), in that order."""
        return SeparableLoad(self.spatial[samples], self.pulse.select(samples))
