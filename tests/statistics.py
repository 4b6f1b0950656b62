"""Calibrated statistical assertions: a stated false-alarm rate and a stated power."""

import math
from statistics import NormalDist

from torch import Tensor


def assert_mean(samples: Tensor, expected: Tensor | float, *, bias: float, false_alarm: float = 1e-6) -> None:
    """Fail if the true mean differs from ``expected``, or if a bias of ``bias`` could go unnoticed."""
    quantile = NormalDist().inv_cdf(1 - false_alarm / (2 * max(1, samples[0].numel())))
    error = samples.std(0) / math.sqrt(len(samples))
    assert 2 * quantile * error.max() < bias, f"{len(samples)} samples cannot resolve a bias of {bias}"
    gap = ((samples.mean(0) - expected).abs() / error).max()
    assert gap < quantile, f"mean off by {gap:.1f} standard errors (limit {quantile:.1f})"
