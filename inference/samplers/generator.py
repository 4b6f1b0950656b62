"""Any sampler from a standard normal base, as a model of the library: inputs and noise to outputs."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from inference.interpolants.prediction import Prediction
from inference.samplers.interface import Sampler, check_times
from sde.noise import NoiseStream, Purpose
from sde.samples import check_conditions

__all__ = ["Generator"]


@dataclass(frozen=True, slots=True, eq=False)
class Generator:
    """A sampler with its prediction and times: a map of noise to samples, for Monte Carlo runs.

    It satisfies the protocol of models. Sample ``i`` depends only on sample ``i`` of the noise, to the
    rounding of the networks, as long as the sampler treats rows by themselves.

    Attributes:
        sampler: The method.
        prediction: What is known of the interpolant, which begins at the standard normal law.
        times: From base to target, increasing, in the dtype of the points, shape ``(T,)``.
        output_shape: Shape of a sample.

    Raises:
        ValueError: If the times are no grid or decrease.

    Example:
        >>> import torch
        >>> from inference.interpolants import Kind, OneSided
        >>> from inference.samplers import ProbabilityFlow
        >>> shift = Prediction(OneSided(), {Kind.VELOCITY: lambda t, x: 3 + 0 * x})
        >>> model = Generator(ProbabilityFlow(), shift, torch.linspace(0, 1, 3), (2,))
        >>> model(torch.zeros(5, 0), NoiseStream(seed=0, start=0, stop=5)).shape
        torch.Size([5, 2])
    """

    sampler: Sampler
    prediction: Prediction
    times: Tensor
    output_shape: tuple[int, ...]
    input_dim: ClassVar[int] = 0

    def __post_init__(self) -> None:
        if not check_times(self.times):
            raise ValueError("`times` must increase from base to target; got decreasing ones.")

    def __call__(self, inputs: Tensor, noise: NoiseStream) -> Tensor:
        """Samples ``(n, *output_shape)`` for empty inputs ``(n, 0)``."""
        check_conditions(inputs, noise, self.input_dim)
        size = 1
        for axis in self.output_shape:
            size *= axis
        like = {"dtype": self.times.dtype, "device": self.times.device}
        latent = noise.normals(size, purpose=Purpose.LATENT, **like).view(len(noise), *self.output_shape)
        return self.sampler(self.prediction, latent, self.times, noise)
