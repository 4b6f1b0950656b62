"""In which dtype a training computes."""

from contextlib import AbstractContextManager, nullcontext
from enum import Enum

import torch

__all__ = ["Precision"]


class Precision(Enum):
    """Dtype of the matrix products of a training; weights, sums and the optimiser keep that of the model.

    Mixed precision is torch's autocast of the loss: float32 operands of dense layers and convolutions are
    rounded to 16 bits. It pays for large networks on devices with units for it; elsewhere it is slower.
    float64 models are left as they are.

    Example:
        >>> with Precision.BFLOAT16.autocast(torch.device("cpu")):
        ...     (torch.ones(2, 2) @ torch.ones(2, 2)).dtype
        torch.bfloat16
    """

    FULL = "full"  #: as the model is
    BFLOAT16 = "bfloat16"  #: 8 bits of significand, the range of float32
    FLOAT16 = "float16"  #: 11 bits, a small range: the loss is scaled so that gradients fit

    def autocast(self, device: torch.device) -> AbstractContextManager[object]:
        """A context in which the loss is computed."""
        if self is Precision.FULL:
            return nullcontext()
        return torch.autocast(device.type, dtype=getattr(torch, self.value))

    def scaler(self, device: torch.device) -> torch.amp.GradScaler:
        """The scale of the loss; of 1 but for float16."""
        return torch.amp.GradScaler(device.type, enabled=self is Precision.FLOAT16)
