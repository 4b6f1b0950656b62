"""Fingerprints of models: whether a model is the one that began a run."""

import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["fingerprint"]


def fingerprint(model: object) -> str:
    """A short text that tells a model from others, and is the same in every process.

    A string attribute ``fingerprint`` of the model is taken as it is. Otherwise it is a hash of the class and
    of what can be compared: fields of dataclasses, weights of modules, numbers, texts, tensors and arrays,
    names of functions, and so on inward. Of other objects only the class counts: such a model may change
    without notice.

    Args:
        model: The model.

    Returns:
        Sixteen hexadecimal digits, or the model's own text.

    Example:
        >>> from uq.model import FunctionModel
        >>> a, b = FunctionModel(torch.sum, input_dim=2), FunctionModel(torch.sum, input_dim=3)
        >>> fingerprint(a) == fingerprint(b)
        False
    """
    own = getattr(model, "fingerprint", None)
    if isinstance(own, str):
        return own
    digest = hashlib.sha256()
    for part in _parts(model, 0):
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()[:16]


def _parts(value: object, depth: int) -> Iterator[bytes]:
    """The comparable content of an object, as a sequence of byte strings."""
    yield _name(type(value)).encode()
    if isinstance(
        value, bool | int | float | complex | str | bytes | PurePath | Enum | torch.dtype | torch.device
    ):
        yield repr(value).encode()
    elif isinstance(value, Tensor | np.ndarray):
        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else value
        yield f"{array.dtype} {array.shape}".encode()
        yield repr(array.tolist()).encode() if array.dtype.hasobject else array.tobytes()
    elif isinstance(value, functools.partial):
        yield from _items([value.func, value.args, value.keywords], depth)
    elif isinstance(value, nn.Module):
        yield from _items(value.state_dict(), depth)
    elif is_dataclass(value) and not isinstance(value, type):
        yield from _items({field.name: getattr(value, field.name) for field in fields(value)}, depth)
    elif isinstance(value, Mapping | Sequence):
        yield from _items(value, depth)
    elif callable(value) and hasattr(value, "__qualname__"):
        yield _name(value).encode()


def _items(values: Mapping[Any, object] | Sequence[object], depth: int) -> Iterator[bytes]:
    """The content of a collection; nothing beyond eight levels."""
    if depth > 8:
        return
    pairs = values.items() if isinstance(values, Mapping) else enumerate(values)
    for key, item in pairs:
        yield repr(key).encode()
        yield from _parts(item, depth + 1)


def _name(value: object) -> str:
    """Module and name. A script is `__main__` or `__mp_main__` by the way it was started: leave those out."""
    module = getattr(value, "__module__", "") or ""
    return f"{'' if module in ('__main__', '__mp_main__') else module}.{getattr(value, '__qualname__', '')}"
