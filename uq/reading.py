"""Reading of samples in the order of their ids: statistics, failures, and when to stop."""

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

import numpy as np
import torch
from torch import Tensor

from uq.designs import Design, Replicated
from uq.execution import Batch
from uq.inputs import Inputs
from uq.moments import Moments, student_quantile
from uq.results import MonteCarloResult, error_of_mean

__all__ = ["Failures", "OrderedReader", "Tolerance"]

_GROWTH = 1.05  # ratio of the numbers of samples at which a tolerance is looked at


class Failures(Enum):
    """What to do about samples with an output that is not finite."""

    RAISE = "raise"  #: stop with an error that names them
    OMIT = "omit"  #: leave them out of the statistics, and report their ids


@dataclass(frozen=True, slots=True)
class Tolerance:
    r"""Stop when each component of the mean is known well enough.

    .. math:: h \le \max(\text{absolute}, \text{relative} \cdot |\text{mean}|),

    ``h`` the half width of the confidence interval. The rule is looked at after ``min_samples`` samples and
    then each time their number has grown by 5 % (doubled, for replicated designs), whatever the batches and
    the workers: the number of samples is a function of the seed. Stopping on an estimated variance costs a
    little coverage: about 0.94 instead of 0.95 with the default ``min_samples``. Rare large values that have
    not been seen yet stop it too early.

    Attributes:
        absolute: In the unit of the output; at least 0.
        relative: Fraction of the absolute mean; at least 0. One of the two must be positive.
        min_samples: Samples before the first look, at least 2.
        max_samples: Samples after which to give up.

    Raises:
        ValueError: If a value is out of range.

    References:
        Chow & Robbins (1965). doi:10.1214/aoms/1177700156
    """

    absolute: float = 0.0
    relative: float = 0.0
    min_samples: int = 100
    max_samples: int = 1_000_000

    def __post_init__(self) -> None:
        """Check the fields."""
        if not (self.absolute >= 0 and self.relative >= 0 and self.absolute + self.relative > 0):
            raise ValueError(
                "`absolute` and `relative` must be at least 0 and one positive; got "
                f"{self.absolute} and {self.relative}."
            )
        if not 2 <= self.min_samples <= self.max_samples:
            raise ValueError(
                "`min_samples` and `max_samples` must satisfy 2 <= min_samples <= max_samples; got "
                f"{self.min_samples} and {self.max_samples}."
            )

    def excess(self, mean: Tensor, half_width: Tensor) -> float:
        """Largest ratio of a half width to its limit: at most 1 where the tolerance is met."""
        limit = torch.clamp(self.relative * mean.abs(), min=self.absolute)
        ratio = torch.where(half_width == 0, torch.zeros_like(limit), half_width / limit)
        return float(ratio.max()) if ratio.numel() else 0.0


class OrderedReader:
    """Reads samples in the order of their ids, keeps the statistics, and says when to stop.

    Args:
        limit: Most samples to read, at least 1.
        tolerance: Rule that stops earlier.
        failures: What to do about samples with an output that is not finite.
        confidence: Probability of the intervals.
        design: Design of the run; it says how errors are found.
    """

    def __init__(
        self,
        limit: int,
        tolerance: Tolerance | None,
        failures: Failures,
        confidence: float,
        design: Design | None,
    ) -> None:
        """Begin with sample 0."""
        self.limit, self.tolerance, self.failures, self.confidence = limit, tolerance, failures, confidence
        self.replications = len(design.designs) if isinstance(design, Replicated) else 0
        self.independent = design is None or design.independent
        self.next = 0
        self.used = 0
        self.finished = limit == 0
        self.converged = tolerance is None
        self.note = ""
        self._looks = _looks(tolerance.min_samples if tolerance else 100, limit, self.replications)
        self._look = next(self._looks, limit)
        self._parts: list[Moments] = []
        self._inputs: list[np.ndarray] = []
        self._outputs: list[np.ndarray] = []
        self._failed: list[np.ndarray] = []
        self._unread = np.empty(0)

    def accept(self, batch: Batch) -> None:
        """Read the batch that begins at ``next``."""
        finite = np.isfinite(batch.outputs).reshape(len(batch.outputs), -1).all(1)
        failed = batch.start + np.flatnonzero(~finite)
        if len(failed) and self.failures is Failures.RAISE:
            raise RuntimeError(_failure_message(failed))
        self._inputs.append(batch.inputs)
        self._outputs.append(batch.outputs)
        self._failed.append(failed)
        self._unread = (
            batch.outputs if self.next == self.used else np.concatenate([self._unread, batch.outputs])
        )
        self.next = batch.stop
        while self._look <= self.next and not self.finished:
            self._advance()

    def _advance(self) -> None:
        """Take the samples up to the next look into the moments, and look."""
        rows = self._unread[: self._look - self.used]
        self._unread = self._unread[self._look - self.used :]
        for r in range(self.replications or 1):
            part = (
                rows[(r - self.used) % self.replications :: self.replications] if self.replications else rows
            )
            valid = np.isfinite(part).reshape(len(part), -1).all(1)
            moments = Moments.of(torch.from_numpy(part[valid]))
            if len(self._parts) <= r:
                self._parts.append(moments)
            else:
                self._parts[r] = self._parts[r] + moments
        self.used = self._look
        if self.tolerance is not None:
            self._check_tolerance(self.tolerance)
        self.finished = self.finished or self.used >= self.limit
        self._look = next(self._looks, self.limit)

    def _check_tolerance(self, tolerance: Tolerance) -> None:
        """Whether each component of the mean is known well enough."""
        means = self._replication_means()
        moments = self._parts[0]
        error, degrees = error_of_mean(moments, means, self.independent)
        mean = means.mean(0) if len(means) else moments.mean
        excess = tolerance.excess(mean, student_quantile(self.confidence, degrees) * error)
        self.note = f"error / tolerance = {excess:.3g}"
        # NaN (fewer than two valid samples) is not small enough.
        self.converged = excess <= 1
        self.finished = self.converged

    def _replication_means(self) -> Tensor:
        """Means of the replications, shape ``(R, *output_shape)``; none where not replicated."""
        if not self.replications:
            return torch.empty(0, dtype=torch.float64)
        return torch.stack([part.mean for part in self._parts])

    def result(self, seed: int, inputs: Inputs | None, evaluated: int, seconds: float) -> MonteCarloResult:
        """The samples that were used, and their statistics."""
        if not self.converged and self.tolerance is not None:
            warnings.warn(
                f"The tolerance was not met after {self.used} samples ({self.note}). Raise `max_samples`, or "
                "reduce the variance.",
                RuntimeWarning,
                stacklevel=3,
            )
        failed = np.concatenate(self._failed)
        return MonteCarloResult(
            outputs=torch.from_numpy(np.concatenate(self._outputs)[: self.used]),
            inputs=torch.from_numpy(np.concatenate(self._inputs)[: self.used]),
            failed=torch.from_numpy(failed[failed < self.used]),
            moments=sum(self._parts[1:], self._parts[0]),
            replication_means=self._replication_means(),
            independent=self.independent,
            confidence=self.confidence,
            converged=self.converged,
            evaluated=evaluated,
            seconds=seconds,
            seed=seed,
            input_names=inputs.names if inputs else (),
            input_units=inputs.units if inputs else (),
        )


def _looks(first: int, limit: int, replications: int) -> Iterator[int]:
    """Numbers of samples at which statistics are brought up to date: a function of the arguments alone."""
    count = first
    if replications:
        # Powers of two per replication: the numbers for which digital nets are balanced.
        count = replications * 2 ** max(0, math.ceil(math.log2(first / replications)))
    while count < limit:
        yield count
        count = 2 * count if replications else max(count + 1, math.ceil(count * _GROWTH))
    yield limit


def _failure_message(failed: np.ndarray) -> str:
    """Which samples failed, and what can be done."""
    names = ", ".join(map(str, failed[:10])) + (", ..." if len(failed) > 10 else "")
    return (
        f"{len(failed)} samples failed (an output is NaN or infinite): {names}. Evaluate them alone with "
        "NoiseStream(seed, id, id + 1) to see why, or pass `failures=Failures.OMIT` to leave them out."
    )
