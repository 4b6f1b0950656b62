"""Results of Monte Carlo runs."""

import hashlib
import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from uq.moments import Moments, student_quantile
from uq.quantiles import Quantile, quantile

__all__ = ["MonteCarloResult"]


@dataclass(frozen=True, slots=True)
class MonteCarloResult:
    """Samples of a run in the order of their ids, and what they say about the mean.

    Attributes:
        outputs: Outputs of samples ``0 .. n - 1``, shape ``(n, *output_shape)``.
        inputs: Physical inputs, shape ``(n, d)``, float64.
        failed: Ids of the samples with an output that is not finite, int64; they are in no statistic.
        moments: Moments of the samples that did not fail.
        replication_means: Means of the independent replications, shape ``(R, *output_shape)``; ``R = 0``
            without.
        independent: Whether the samples are independent.
        confidence: Probability of the intervals.
        converged: Whether the tolerance was met; true where none was asked.
        evaluated: Samples evaluated by this call; the others came from the store.
        seconds: Wall time of this call [s].
        seed: Seed of the noise.
        input_names: Names of the inputs.
        input_units: Units of the inputs.
    """

    outputs: Tensor = field(repr=False)
    inputs: Tensor = field(repr=False)
    failed: Tensor
    moments: Moments = field(repr=False)
    replication_means: Tensor = field(repr=False)
    independent: bool
    confidence: float
    converged: bool
    evaluated: int
    seconds: float
    seed: int
    input_names: tuple[str, ...] = ()
    input_units: tuple[str, ...] = ()

    @property
    def num_samples(self) -> int:
        """Number of samples, the failed ones included."""
        return len(self.outputs)

    @property
    def num_failed(self) -> int:
        """Number of failed samples."""
        return len(self.failed)

    @property
    def valid(self) -> Tensor:
        """Outputs of the samples that did not fail, shape ``(n - num_failed, *output_shape)``."""
        keep = torch.ones(self.num_samples, dtype=torch.bool)
        keep[self.failed] = False
        return self.outputs[keep]

    @property
    def mean(self) -> Tensor:
        """Estimate of the mean; the average of the means of the replications where there are any."""
        return self.replication_means.mean(0) if len(self.replication_means) else self.moments.mean

    @property
    def std(self) -> Tensor:
        """Estimate of the standard deviation of the output."""
        return self.moments.std

    @property
    def std_error(self) -> Tensor:
        """Standard error of the mean.

        Raises:
            ValueError: If the samples are neither independent nor replicated.
        """
        error, _ = error_of_mean(self.moments, self.replication_means, self.independent)
        return error

    @property
    def half_width(self) -> Tensor:
        """Half the width of the confidence interval of the mean."""
        error, degrees = error_of_mean(self.moments, self.replication_means, self.independent)
        return student_quantile(self.confidence, degrees) * error

    @property
    def confidence_interval(self) -> tuple[Tensor, Tensor]:
        """Lower and upper end of the confidence interval of the mean, by Student's law."""
        return self.mean - self.half_width, self.mean + self.half_width

    def quantile(self, probability: float, component: tuple[int, ...] = ()) -> Quantile:
        """Quantile of a component of the output, with an interval that holds for independent samples.

        Args:
            probability: In (0, 1).
            component: Index into the output shape.

        Returns:
            Estimate and interval; an infinite interval where the samples are not independent.
        """
        estimate = quantile(self.valid[(slice(None), *component)], probability, confidence=self.confidence)
        if self.independent:
            return estimate
        return Quantile(probability, estimate.value, -math.inf, math.inf, self.confidence)

    def digest(self) -> str:
        """SHA-256 of the outputs in the order of the samples: equal for runs that are equal bit for bit."""
        array = self.outputs.numpy()
        # All NaN look the same here, whatever bits they have.
        canonical = torch.where(
            self.outputs.isnan(), torch.full_like(self.outputs, math.nan), self.outputs
        ).numpy()
        little = canonical.astype(array.dtype.newbyteorder("<"))
        head = f"{little.dtype.str} {little.shape}".encode()
        return hashlib.sha256(head + little.tobytes()).hexdigest()


def error_of_mean(moments: Moments, replication_means: Tensor, independent: bool) -> tuple[Tensor, int]:
    """Standard error of the mean and its degrees of freedom.

    Raises:
        ValueError: If the samples are neither independent nor replicated.
    """
    count = len(replication_means)
    if count:
        return replication_means.std(0) / math.sqrt(count), count - 1
    if not independent:
        raise ValueError(
            "The points of this design are not independent: their spread does not give the error of the "
            "mean. Use `replications=16`, or the design Iid."
        )
    return moments.std_error, moments.count - 1
