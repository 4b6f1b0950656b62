"""Which implementation computes the noise, and why."""

import functools
import importlib.util
import logging
import os
from dataclasses import dataclass

import torch
from torch import Tensor

from sde.noise import cpp, philox
from sde.noise.philox import Address, Kind

__all__ = ["Backend", "backend", "draw", "fill"]

_LOGGER = logging.getLogger(__name__)
_CHOICES = ("auto", "reference")


@dataclass(frozen=True, slots=True)
class Backend:
    """An implementation of the counter generator.

    Attributes:
        name: ``"cpp"``, ``"triton"`` or ``"reference"``.
        reason: How it came to be chosen.
    """

    name: str
    reason: str


def backend(device: torch.device | str = "cpu") -> Backend:
    """The implementation that computes noise on a device, and why it was chosen.

    Words and uniforms are the same for all of them, normals agree to a few units in the last place. The
    environment variable ``SDEUQ_NOISE=reference`` chooses the plain PyTorch one everywhere; it is read once.

    Args:
        device: Where the numbers are computed.

    Returns:
        The name of the implementation and the reason.

    Raises:
        ValueError: If ``SDEUQ_NOISE`` is neither ``auto`` nor ``reference``.

    Example:
        >>> backend("meta").name
        'reference'
    """
    return _backend(torch.device(device).type)


@functools.cache
def _backend(device_type: str) -> Backend:
    """The backend of a type of device; falling back to the slow one is logged once, from here."""
    choice = os.environ.get("SDEUQ_NOISE", "auto")
    if choice not in _CHOICES:
        raise ValueError(f"`SDEUQ_NOISE` must be one of {', '.join(_CHOICES)}; got {choice!r}.")
    if choice == "reference":
        return Backend("reference", "SDEUQ_NOISE=reference")
    if device_type == "cpu":
        library = cpp.load()
        if library.handle is not None:
            return Backend("cpp", library.reason)
        reason = library.reason
    elif device_type == "cuda":
        if importlib.util.find_spec("triton") is not None:
            return Backend("triton", "triton is installed")
        reason = "triton is not installed"
    else:
        reason = f"there is no kernel for {device_type} devices"
    _LOGGER.warning("Noise is computed by the slow PyTorch reference: %s.", reason)
    return Backend("reference", reason)


def draw(
    kind: Kind,
    address: Address,
    dtype: torch.dtype,
    device: torch.device | str,
    *,
    elements_first: bool = True,
) -> Tensor:
    """A box of noise in a new tensor, also under transforms of ``torch.func``, for which it is a constant.

    Args:
        kind: What is made of the words.
        address: The box.
        dtype: Type of the numbers.
        device: Where they are computed.
        elements_first: Order of the axes in memory and in the result: elements, samples, channels; else
            samples, elements, channels.

    Returns:
        Shape ``(count, n, channels)``, or ``(n, count, channels)``.
    """
    leading = (address.count, address.num_samples) if elements_first else (address.num_samples, address.count)
    with torch._C._DisableFuncTorch():  # kernels write to memory, which wrapped tensors do not have
        out = torch.empty((*leading, address.channels), dtype=dtype, device=device)
        fill(kind, address, out.transpose(0, 1) if elements_first else out)
    return out


def fill(kind: Kind, address: Address, out: Tensor) -> None:
    """Write a box of noise to ``out`` where it lies; see :func:`sde.noise.philox.fill`."""
    name = _backend(out.device.type).name
    if name == "cpp":
        cpp.fill(kind, address, out)
    elif name == "triton":
        from sde.noise import triton_kernel  # imports triton, which is optional

        triton_kernel.fill(kind, address, out)
    else:
        philox.fill(kind, address, out)
