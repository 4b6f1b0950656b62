"""Shape checks at the public border."""

from torch import Tensor

__all__ = ["check_shapes"]


def check_shapes(**tensors: tuple[Tensor, str]) -> dict[str, int]:
    """Match each tensor with its axes and return the sizes of the named axes.

    An axis is a name, which must have the same size wherever it appears, or a number, which is the size
    itself.

    Args:
        **tensors: ``name=(tensor, "axis axis ...")``.

    Returns:
        The size of every axis, by name.

    Raises:
        ValueError: If a tensor has another number of axes, or an axis two sizes.

    Example:
        >>> import torch
        >>> check_shapes(x=(torch.zeros(4, 3), "n d"), w=(torch.zeros(4, 2), "n m"))
        {'n': 4, 'd': 3, 'm': 2}
    """
    sizes: dict[str, int] = {}
    for name, (tensor, spec) in tensors.items():
        axes, shape = spec.split(), tuple(tensor.shape)
        numbers = {axis: int(axis) for axis in axes if axis.isdigit()}
        known = sizes | numbers
        if len(axes) != len(shape) or any(
            known.setdefault(axis, size) != size for axis, size in zip(axes, shape, strict=True)
        ):
            given = ", ".join(f"{axis}={sizes[axis]}" for axis in axes if axis in sizes)
            expected = f"({', '.join(axes)})" + (f" with {given}" if given else "")
            raise ValueError(f"`{name}` must have shape {expected}; got {shape}.")
        sizes.update({axis: size for axis, size in zip(axes, shape, strict=True) if axis not in numbers})
    return sizes
