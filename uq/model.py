"""The protocol of models: deterministic maps from inputs and addressed noise to outputs."""

from typing import Protocol, runtime_checkable

from torch import Tensor

from sde.noise import NoiseStream

__all__ = ["Model"]


@runtime_checkable
class Model(Protocol):
    r"""A deterministic map :math:`y_i = \mathrm{model}(x_i, \text{noise of sample } i)`, evaluated in batches.

    Row ``i`` of the output depends only on row ``i`` of the inputs and on sample ``noise.start + i``: batches of any
    size, in any order, on any worker, give the same rows. A failed sample is a row of NaN.

    Attributes:
        input_dim: Number of scalar inputs, 0 for a model driven by noise alone.
        output_shape: Shape of one output, ``()`` for a scalar quantity of interest.
    """

    @property
    def input_dim(self) -> int: ...

    @property
    def output_shape(self) -> tuple[int, ...]: ...

    def __call__(self, inputs: Tensor, noise: NoiseStream) -> Tensor:
        """Evaluate ``n = len(noise)`` samples: inputs ``(n, input_dim)`` to outputs ``(n, *output_shape)``."""
        ...
