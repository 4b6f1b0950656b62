r"""The counter generator: Philox4x32-10 and its maps from words to uniforms and normals, in plain PyTorch.

This file is the definition. The C++ and Triton kernels must return the same 32-bit words, the same uniforms
and, to a few units in the last place, the same normals.

**Address.** One block of four words belongs to

.. code-block:: text

    counter = (sample id, low 32 bits; sample id, high 32 bits; cell; stream)
    key     = (seed, low 32 bits; seed, high 32 bits)
    stream  = purpose + 16 * channel            (bit 31 set: the low-order words of float64)

so every ``(seed, sample, purpose, channel)`` owns an endless sequence with random access, whose element
``i`` is lane ``i % 4`` of cell ``i // 4``.

**Two precisions, one number.** float32 uses the word ``w`` of the address; float64 appends the word ``v`` of
the same address with bit 31 of the stream set. The float64 number is therefore a refinement of the float32
one: a path in single precision is the double-precision path, rounded.

References:
    Salmon, Moraes, Dror & Shaw (2011), Parallel random numbers: as easy as 1, 2, 3.
    doi:10.1145/2063384.2063405
    Box & Muller (1958), A note on the generation of random normal deviates. doi:10.1214/aoms/1177706645
"""

import math
from dataclasses import dataclass, replace
from enum import IntEnum

import torch
from torch import Tensor

__all__ = [
    "MAX_CHANNELS",
    "MAX_ELEMENTS",
    "Address",
    "Kind",
    "fill",
    "normals",
    "philox4x32",
    "uniforms",
    "words",
]

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)  # Salmon et al. (2011), table 2
_WEYL = (0x9E3779B9, 0xBB67AE85)  # golden ratio and sqrt(3) - 1, as 32-bit fractions
_LOW_ORDER = 1 << 31  # stream bit of the words that extend float32 numbers to float64
MAX_CHANNELS = 1 << 27  #: channels per purpose: bits 4 to 30 of the stream word
MAX_ELEMENTS = 1 << 34  #: elements per sequence: four for each 32-bit cell
_CELLS_AT_ONCE = 1 << 18  # bounds the memory of the reference: about 100 bytes per cell in float32


class Kind(IntEnum):
    """What is made of the words of an address."""

    WORDS = 0  #: the 32-bit words themselves, as int64
    UNIFORMS = 1
    NORMALS = 2
    LOW_WORDS = 3  #: the words that extend float32 numbers to float64, as int64


@dataclass(frozen=True, slots=True)
class Address:
    """A box of the noise: which samples, which elements of their sequences, which channels.

    Attributes:
        seed: Key of the generator, in ``[0, 2**64)``.
        start: Id of the first sample.
        num_samples: How many consecutive samples.
        purpose: Row of the table of streams, in ``[0, 16)``.
        first: First element of each sequence.
        count: How many consecutive elements.
        channels: How many channels, from ``first_channel`` on.
        first_channel: The first of the channels.
        ids: Sample ids, shape ``(num_samples,)`` int64, where they are not consecutive; ``start`` is then
            unused.
        cells: First cell of each sample, shape ``(num_samples,)`` int64, where they differ: the elements are
            then counted from there.
    """

    seed: int
    start: int
    num_samples: int
    purpose: int
    first: int
    count: int
    channels: int
    first_channel: int = 0
    ids: Tensor | None = None
    cells: Tensor | None = None


def philox4x32(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int], rounds: int = 10
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Encrypt counters: four int64 tensors that hold 32-bit words in, four out (the shapes broadcast).

    Example:
        >>> zero = torch.zeros((), dtype=torch.int64)
        >>> [f"{int(w):08x}" for w in philox4x32((zero, zero, zero, zero), (0, 0))]
        ['6627e8d5', 'e169c58d', 'bc57ac4c', '9b00dbd8']

    References:
        Salmon et al. (2011), section 2.3. doi:10.1145/2063384.2063405
    """
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(rounds):
        # The int64 product of two 32-bit words wraps; both halves taken below are exact all the same.
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1 = ((product1 >> 32) & _MASK) ^ c1 ^ k0, product1 & _MASK
        c2, c3 = ((product0 >> 32) & _MASK) ^ c3 ^ k1, product0 & _MASK
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def words(address: Address, device: torch.device, *, low_order: bool = False) -> Tensor:
    """32-bit words of an address, as int64, shape ``(num_samples, cells, 4, channels)``.

    The cells are those that the elements ``first .. first + count - 1`` touch, whole.
    """
    ids = address.ids
    if ids is None:
        ids = torch.arange(address.start, address.start + address.num_samples, device=device)
    ids = ids.to(device)[:, None, None]
    last = address.first + address.count
    cells = torch.arange(address.first // 4, -(-last // 4), device=device)[None, :, None]
    if address.cells is not None:
        cells = cells + address.cells.to(device)[:, None, None]
    channels = torch.arange(address.first_channel, address.first_channel + address.channels, device=device)
    stream = address.purpose + 16 * channels + (_LOW_ORDER if low_order else 0)
    lanes = philox4x32(
        (ids & _MASK, (ids >> 32) & _MASK, cells, stream[None, None, :]),
        (address.seed & _MASK, address.seed >> 32),
    )
    return torch.stack(lanes, dim=2)


def uniforms(address: Address, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Uniforms in the open interval (0, 1), shape ``(num_samples, count, channels)``.

    float32 keeps 23 bits of ``w`` and float64 52 bits of ``(w, v)``, each plus one half: exact on every
    device, symmetric about 1/2, never 0 or 1.
    """
    high = words(address, device)
    if dtype == torch.float32:
        numbers = ((high >> 9).to(dtype) + 0.5) * 2.0**-23
    else:
        low = words(address, device, low_order=True)
        numbers = (((high << 20) | (low >> 12)).to(dtype) + 0.5) * 2.0**-52
    return _trim(numbers, address)


def normals(address: Address, dtype: torch.dtype, device: torch.device) -> Tensor:
    r"""Standard normals by Box--Muller, shape ``(num_samples, count, channels)``.

    Lanes pair as (0, 1) and (2, 3): with ``u`` from the first and ``t`` from the second,
    ``sqrt(-2 log u) * (cos 2 pi t, sin 2 pi t)``. All 32 (float64: 53) bits reach ``u``, so the largest
    value is
    6.8 (8.7) standard deviations; the angle is reduced on the integers, so small sines lose nothing.
    """
    high = words(address, device)
    if dtype == torch.float32:
        width, integers = 32, high
    else:
        width, integers = 53, (high << 21) | (words(address, device, low_order=True) >> 11)
    radius_uniform = integers[:, :, 0::2].to(dtype) * 2.0**-width + 2.0 ** -(width + 1)
    radius = torch.sqrt(-2.0 * torch.log(radius_uniform))
    cosine, sine = _turn(integers[:, :, 1::2], width, dtype)
    pair = torch.stack((radius * cosine, radius * sine), dim=3)  # (n, cells, 2, 2, channels)
    return _trim(pair.flatten(2, 3), address)


def _turn(integers: Tensor, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosine and sine of ``2 pi integers / 2**width``; the reduction to an eighth of a turn is exact."""
    quadrant = (integers + (1 << (width - 3))) >> (width - 2)
    rest = integers - (quadrant << (width - 2))
    angle = rest.to(dtype) * (2.0 * math.pi * 2.0**-width)
    cosine, sine = torch.cos(angle), torch.sin(angle)
    odd = (quadrant & 1) == 1
    turned_cosine, turned_sine = torch.where(odd, sine, cosine), torch.where(odd, cosine, sine)
    return (
        torch.where(((quadrant + 1) & 2) == 2, -turned_cosine, turned_cosine),
        torch.where((quadrant & 2) == 2, -turned_sine, turned_sine),
    )


def fill(kind: Kind, address: Address, out: Tensor) -> None:
    """Write a box of noise to ``out``, shape ``(num_samples, count, channels)``; any strides, any device.

    Words need int64, uniforms and normals float32 or float64. Every implementation has a function of this
    form.
    """
    cells = (address.count // 4 + 2) * address.channels
    rows = max(1, _CELLS_AT_ONCE // cells)
    for begin in range(0, address.num_samples, rows):
        end = min(begin + rows, address.num_samples)
        ids = None if address.ids is None else address.ids[begin:end]
        own = None if address.cells is None else address.cells[begin:end]
        part = replace(address, start=address.start + begin, num_samples=end - begin, ids=ids, cells=own)
        if kind == Kind.NORMALS:
            numbers = normals(part, out.dtype, out.device)
        elif kind == Kind.UNIFORMS:
            numbers = uniforms(part, out.dtype, out.device)
        else:
            numbers = _trim(words(part, out.device, low_order=kind == Kind.LOW_WORDS), part)
        out[begin:end] = numbers


def _trim(blocks: Tensor, address: Address) -> Tensor:
    """Whole cells ``(n, cells, 4, channels)`` to the elements asked for, ``(n, count, channels)``."""
    offset = address.first % 4
    return blocks.flatten(1, 2)[:, offset : offset + address.count]
