"""Checkpoints of long computations: written whole or not at all, read safely, refused to another run.

A checkpoint holds what kind of run wrote it, the identity of that run (its settings, its seed, the digest of
its data) and its state. Resuming asks with the same identity and gets the state; any difference is an error
that names it, so that two runs can never be mixed.
"""

import hashlib
import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["digest", "load_checkpoint", "save_checkpoint"]

_FORMAT = 1

Scalar = str | int | float | bool
State = Mapping[str, object]


def digest(*tensors: Tensor | None) -> str:
    """Sixteen hexadecimal digits that name the bytes, shapes and dtypes of tensors (``None`` is allowed).

    Example:
        >>> row, column = torch.zeros(1, 2), torch.zeros(2, 1)
        >>> digest(row) == digest(row.clone()), digest(row) == digest(column)
        (True, False)
    """
    total = hashlib.sha256()
    for tensor in tensors:
        if tensor is None:
            total.update(b"none")
            continue
        values = tensor.detach().cpu().contiguous()
        total.update(f"{values.dtype}{tuple(values.shape)}".encode())
        total.update(values.flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()[:16]


def save_checkpoint(path: str | Path, kind: str, identity: Mapping[str, Scalar], state: State) -> None:
    """Write a checkpoint atomically: a reader, or a restart after a kill, sees the old file or the new one.

    Args:
        path: Where to write; missing folders are made.
        kind: What kind of run this is, e.g. ``"Wasserstein training"``.
        identity: Everything that decides the numbers of the run, as scalars by name.
        state: Nested dictionaries, lists and tuples of tensors and scalars, as ``state_dict()`` returns them.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    content = {"format": _FORMAT, "kind": kind, "identity": dict(identity), "state": dict(state)}
    try:
        with temporary.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load_checkpoint(
    path: str | Path,
    kind: str,
    identity: Mapping[str, Scalar],
    *,
    device: torch.device | str = "cpu",
) -> dict[str, object] | None:
    """The state that :func:`save_checkpoint` wrote, or ``None`` where there is no file yet.

    Args:
        path: The file.
        kind: Kind of run that asks.
        identity: Identity of the run that asks.
        device: Where the tensors of the state go.

    Returns:
        The state.

    Raises:
        ValueError: If the file is not a readable checkpoint, or belongs to a run of another kind or identity.
    """
    path = Path(path)
    if not path.exists():
        return None
    content = _read(path, device)
    if content["kind"] != kind:
        raise ValueError(
            f"`checkpoint` must be of a {kind}; {path} is of a {content['kind']}. Choose another path."
        )
    found = content["identity"]
    for name in [*identity, *(key for key in found if key not in identity)]:
        if identity.get(name) != found.get(name):
            raise ValueError(
                f"`checkpoint` must belong to this run; {path} has {name} = {found.get(name)!r}, "
                f"not {identity.get(name)!r}. Delete it or choose another path."
            )
    return content["state"]


def _read(path: Path, device: torch.device | str) -> dict:
    """The content of a checkpoint file, with its layout checked."""
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except (RuntimeError, EOFError, OSError, ValueError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        reason = str(error).strip().split("\n")[0][:120]
        raise ValueError(
            f"`checkpoint` must be a file written by a training run; {path} cannot be read ({reason}). "
            "Delete it or choose another path."
        ) from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise ValueError(
            f"`checkpoint` must be a file written by a training run; {path} holds something else. "
            "Choose another path."
        )
    return content
