"""The protocol of models: deterministic maps from inputs and addressed noise to outputs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from sde.noise import NoiseStream

__all__ = ["FunctionModel", "Model", "RowModel"]


@runtime_checkable
class Model(Protocol):
    r"""A deterministic map from inputs and addressed noise to outputs, evaluated in batches.

    .. math:: y_i = \mathrm{model}(x_i, \text{noise of sample } i)

    Row ``i`` of the output depends only on row ``i`` of the inputs and on sample ``noise.start + i``: batches
    of any size, in any order, on any worker, give the same rows. A failed sample is a row of NaN.

    A model may also have ``output_names`` and ``output_units`` (sequences of strings, one per component) and
    a string ``fingerprint`` that tells it from other models of its class; run stores record them.

    Attributes:
        input_dim: Number of scalar inputs, 0 for a model driven by noise alone.
        output_shape: Shape of one output, ``()`` for a scalar quantity of interest.
    """

    @property
    def input_dim(self) -> int:
        """Number of scalar inputs."""
        ...

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of one output."""
        ...

    def __call__(self, inputs: Tensor, noise: NoiseStream) -> Tensor:
        """Map inputs ``(n, input_dim)`` and ``n = len(noise)`` samples to outputs ``(n, *output_shape)``."""
        ...


@dataclass(frozen=True, slots=True)
class FunctionModel:
    """A function of a batch of inputs, without noise, as a :class:`Model`.

    Attributes:
        function: Maps inputs ``(n, input_dim)``, float64, to outputs ``(n, *output_shape)``. To run in other
            processes it must be defined at the top level of a module.
        input_dim: Number of scalar inputs, at least 1.
        output_shape: Shape of one output.

    Example:
        >>> model = FunctionModel(lambda x: x.prod(-1), input_dim=2)
        >>> model(torch.tensor([[2.0, 3.0]]), NoiseStream(0, 0, 1))
        tensor([6.])
    """

    function: Callable[[Tensor], Tensor]
    input_dim: int
    output_shape: tuple[int, ...] = ()

    def __call__(self, inputs: Tensor, noise: NoiseStream) -> Tensor:
        """Evaluate the function on the batch."""
        return self.function(inputs)


@dataclass(frozen=True, slots=True)
class RowModel:
    """A function of the inputs of one sample, without noise, as a :class:`Model`: a loop over the rows.

    For codes that run one case at a time. The function says that a sample failed by returning NaN; an
    exception stops the run, as it may be a mistake in the function.

    Attributes:
        function: Maps the ``input_dim`` numbers of one sample, given as separate floats, to a number or an
            array of shape ``output_shape``. To run in other processes it must be defined at the top level of
            a module.
        input_dim: Number of scalar inputs, at least 1.
        output_shape: Shape of one output.

    Example:
        >>> model = RowModel(lambda load, area: load / area, input_dim=2)
        >>> model(torch.tensor([[6.0, 3.0], [1.0, 4.0]]), NoiseStream(0, 0, 2))
        tensor([2.0000, 0.2500], dtype=torch.float64)
    """

    function: Callable[..., object]
    input_dim: int
    output_shape: tuple[int, ...] = ()

    def __call__(self, inputs: Tensor, noise: NoiseStream) -> Tensor:
        """Evaluate the function row by row."""
        outputs = torch.empty((len(inputs), *self.output_shape), dtype=torch.float64)
        for i, row in enumerate(inputs.tolist()):
            value = torch.as_tensor(self.function(*row), dtype=torch.float64)
            if value.shape != self.output_shape:
                raise ValueError(
                    f"`function` must return shape {self.output_shape}; got {tuple(value.shape)} for row {i}."
                )
            outputs[i] = value
        return outputs
