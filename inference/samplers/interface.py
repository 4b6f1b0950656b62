"""What a sampler is: a map from points at the first of some times to points at the last."""

from typing import Protocol

from torch import Tensor

from inference.interpolants.interpolant import OneSided
from inference.interpolants.prediction import Prediction
from inference.interpolants.schedule import Schedule
from sde.noise import NoiseStream, Purpose

__all__ = ["Sampler", "check_times", "coordinates", "one_sided_schedule", "wiener_normals"]


class Sampler(Protocol):
    """A method that follows an interpolant in time, forward or backward."""

    def __call__(
        self, prediction: Prediction, initial: Tensor, times: Tensor, noise: NoiseStream, /
    ) -> Tensor:
        """Follow the law of an interpolant.

        Args:
            prediction: What is known of the interpolant.
            initial: Points at ``times[0]``, shape ``(n, *shape)``.
            times: Instants in [0, 1] that the method steps between, increasing from base to target or
                decreasing from target to base, shape ``(T,)``.
            noise: One sample for each row; not read by deterministic samplers.

        Returns:
            Points at ``times[-1]``, shape ``(n, *shape)``.

        Raises:
            ValueError: If the times are no such grid or the sampler cannot use the interpolant.
        """
        ...


def check_times(times: Tensor) -> bool:
    """Whether a grid of times increases.

    Raises:
        ValueError: If it neither increases nor decreases strictly, or leaves [0, 1].
    """
    gaps = times.diff()
    increasing = bool((gaps > 0).all())
    if times.dim() != 1 or len(times) < 2 or not (increasing or bool((gaps < 0).all())):
        raise ValueError(f"`times` must increase or decrease strictly, at least two; got {times.tolist()}.")
    if not bool(((times >= 0) & (times <= 1)).all()):
        raise ValueError(f"`times` must lie in [0, 1]; got {times.tolist()}.")
    return increasing


def one_sided_schedule(prediction: Prediction, sampler: str) -> Schedule:
    """The schedule of a one-sided interpolant.

    Raises:
        ValueError: If the interpolant is another.
    """
    path = prediction.interpolant
    if not isinstance(path, OneSided):
        raise ValueError(f"{sampler} integrates OneSided interpolants; got {type(path).__name__}.")
    return path.schedule


def coordinates(schedule: Schedule, times: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Signal beta, deviation alpha of the noise and log signal-to-noise ratio at times, each ``(T,)``."""
    deviation, signal = schedule.coefficients(times)
    return signal, deviation, schedule.log_snr(times)


def wiener_normals(noise: NoiseStream, step: int, like: Tensor) -> Tensor:
    """The standard normals of a step, in the shape of the points."""
    size = like[0].numel()
    drawn = noise.normals(
        1, purpose=Purpose.WIENER, channels=size, first=step, dtype=like.dtype, device=like.device
    )
    return drawn[:, 0].reshape(like.shape)
