"""Noise streams: values that say where randomness lies, without holding any."""

import hashlib
import operator
from dataclasses import dataclass, field
from enum import IntEnum

import torch
from torch import Tensor

from sde.noise.backends import draw
from sde.noise.philox import MAX_CHANNELS, MAX_ELEMENTS, Address, Kind

__all__ = ["NoiseStream", "Purpose"]


class Purpose(IntEnum):
    """The table of streams: what each kind of randomness of a sample is for.

    Different purposes of one sample are independent. Two users of the same purpose in one model must part by
    channel or by :meth:`NoiseStream.fork`.
    """

    WIENER = 0  #: grid mode: element k of channel c is the increment of step k of the Wiener process c
    SPACE_TIME_AREA = 1  #: grid mode: H of step k, laid out as WIENER
    SPACE_TIME_TIME_AREA = 2  #: grid mode: K of step k, laid out as WIENER
    LEVY_AREA = 3  #: areas between channels
    TREE = 4  #: tree mode: cell = heap index of the dyadic node, lanes = W, H, K
    JUMPS = 5  #: jump times and marks
    BRIDGE = 6  #: uniforms of bridge crossings and acceptances
    INITIAL_STATE = 7  #: random initial conditions
    INPUTS = 8  #: points of the iid design
    LATENT = 9  #: latent codes of generators
    FIELD = 10  #: coefficients of random fields
    OBSERVATION = 11  #: measurement noise
    TRAINING = 12  #: mini-batches, interpolation coefficients, dropout of training loops
    RESAMPLING = 13  #: bootstrap and permutation indices
    INITIALISATION = 14  #: initial weights of networks
    USER = 15  #: whatever a user's own model needs


@dataclass(frozen=True, slots=True, eq=False)
class NoiseStream:
    """The randomness of samples ``start .. stop - 1`` of a seed: a value, not a generator.

    Sample ``i`` of a seed is the same number whatever the batch it is asked in, the order, the device, the
    number
    of workers or the restart: numbers are computed from their address by a counter generator
    (:mod:`sde.noise.philox`), and nothing is consumed by asking.

    Args:
        seed: Integer in ``[0, 2**64)``.
        start: Id of the first sample, at least 0.
        stop: One past the id of the last sample, at most ``2**63 - 1``.
        ids: Ids of the samples where they are not consecutive; made by :meth:`select_ids`, not by hand.

    Raises:
        ValueError: If the seed or the range is out of bounds.
        TypeError: If one of them is not an integer.

    Example:
        >>> noise = NoiseStream(seed=7, start=0, stop=1000)
        >>> noise.normals(3).shape
        torch.Size([1000, 3])
        >>> torch.equal(noise[10:20].normals(3), noise.normals(3)[10:20])
        True

    References:
        Salmon et al. (2011). doi:10.1145/2063384.2063405
    """

    seed: int
    start: int
    stop: int
    ids: Tensor | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        for name in ("seed", "start", "stop"):
            object.__setattr__(self, name, _integer(name, getattr(self, name)))
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"`seed` must lie in [0, 2**64); got {self.seed}.")
        if not 0 <= self.start <= self.stop < 2**63:
            raise ValueError(
                f"`start` and `stop` must satisfy 0 <= start <= stop < 2**63; got {self.start} and "
                f"{self.stop}."
            )

    def __len__(self) -> int:
        return self.stop - self.start if self.ids is None else len(self.ids)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, NoiseStream):
            return NotImplemented
        if (self.seed, len(self)) != (other.seed, len(other)):
            return False
        if self.ids is None and other.ids is None:
            return self.start == other.start
        return torch.equal(self.sample_ids(), other.sample_ids())

    def __hash__(self) -> int:
        return hash((self.seed, len(self)))

    def __getitem__(self, rows: slice) -> "NoiseStream":
        """The samples at positions ``rows`` (a slice with step 1) of this stream."""
        if not isinstance(rows, slice):
            raise TypeError(
                f"A noise stream is indexed by a slice; got {type(rows).__name__}. Use `select` for other "
                "choices."
            )
        first, last, step = rows.indices(len(self))
        if step != 1:
            raise ValueError(
                f"A noise stream is sliced with step 1; got {step}. Use `select` for other choices."
            )
        last = max(first, last)
        if self.ids is not None:
            return self.select_ids(self.ids[first:last])
        return NoiseStream(self.seed, self.start + first, self.start + last)

    def sample_ids(self) -> Tensor:
        """Global ids of the samples, int64, shape ``(n,)``."""
        return torch.arange(self.start, self.stop) if self.ids is None else self.ids

    def select(self, positions: Tensor) -> "NoiseStream":
        """The samples at ``positions``, int64 in ``[0, n)``, shape ``(k,)``, in that order."""
        positions = _index_tensor("positions", positions)
        if positions.numel() and not 0 <= int(positions.min()) <= int(positions.max()) < len(self):
            raise ValueError(
                f"`positions` must lie in [0, {len(self)}); got {int(positions.min())} to "
                f"{int(positions.max())}."
            )
        return self.select_ids(positions + self.start if self.ids is None else self.ids[positions])

    def select_ids(self, ids: Tensor) -> "NoiseStream":
        """The samples with global ``ids`` (int64, at least 0, shape ``(k,)``) of this seed, in that order."""
        ids = _index_tensor("ids", ids)
        if not ids.numel():
            return NoiseStream(self.seed, self.start, self.start)
        lowest, highest = int(ids.min()), int(ids.max())
        if lowest < 0:
            raise ValueError(f"`ids` must be at least 0; got {lowest}.")
        return NoiseStream(self.seed, lowest, highest + 1, ids)

    def fork(self, tag: str) -> "NoiseStream":
        """An independent stream over the same samples: the same tag gives the same stream."""
        if not isinstance(tag, str):
            raise TypeError(f"`tag` must be a string; got {type(tag).__name__}.")
        digest = hashlib.blake2b(tag.encode(), digest_size=8, key=self.seed.to_bytes(8, "little"))
        return NoiseStream(int.from_bytes(digest.digest(), "little"), self.start, self.stop, self.ids)

    def normals(
        self,
        count: int,
        *,
        purpose: Purpose = Purpose.USER,
        channels: int | None = None,
        first: int = 0,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Standard normals: elements ``first .. first + count - 1`` of each sample's sequence.

        Args:
            count: Number of elements, at least 0.
            purpose: Row of the table of streams.
            channels: Number of parallel sequences, at least 1; ``None`` is channel 0 without a channel axis.
            first: Index of the first element, at least 0; ``first + count`` is at most ``2**34``.
            dtype: ``torch.float32`` or ``torch.float64``; ``None`` is torch's default dtype.
            device: Where the numbers are computed.

        Returns:
            Shape ``(n, count)``, or ``(n, count, channels)`` where ``channels`` is given.

        Raises:
            ValueError: If a size is out of range, the purpose is not in the table, or the dtype is neither
                float32 nor float64.
            TypeError: If a size is not an integer.
        """
        return self._draw(Kind.NORMALS, count, purpose, channels, first, _real(dtype), device)

    def uniforms(
        self,
        count: int,
        *,
        purpose: Purpose = Purpose.USER,
        channels: int | None = None,
        first: int = 0,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Uniforms in the open interval (0, 1); arguments, shapes and errors as :meth:`normals`."""
        return self._draw(Kind.UNIFORMS, count, purpose, channels, first, _real(dtype), device)

    def words(
        self,
        count: int,
        *,
        purpose: Purpose = Purpose.USER,
        channels: int | None = None,
        first: int = 0,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """32-bit words, as int64 in ``[0, 2**32)``; arguments, shapes and errors as :meth:`normals`.

        Example:
            >>> [f"{word:08x}" for word in NoiseStream(0, 0, 1).words(4, purpose=Purpose.WIENER)[0].tolist()]
            ['6627e8d5', 'e169c58d', 'bc57ac4c', '9b00dbd8']
        """
        return self._draw(Kind.WORDS, count, purpose, channels, first, torch.int64, device)

    def address(self, purpose: Purpose, first: int, count: int, channels: int) -> Address:
        """The box of elements ``first .. first + count - 1`` of ``channels`` sequences, checked.

        Raises:
            ValueError: If a size is out of range or the purpose is not in the table.
            TypeError: If a size is not an integer.
        """
        first, count, channels = (
            _integer("first", first),
            _integer("count", count),
            _integer("channels", channels),
        )
        if count < 0 or first < 0 or first + count > MAX_ELEMENTS:
            raise ValueError(
                f"`first` and `count` must be at least 0 with first + count <= 2**34; got {first} and "
                f"{count}."
            )
        if not 1 <= channels <= MAX_CHANNELS:
            raise ValueError(f"`channels` must lie in [1, 2**27]; got {channels}.")
        try:
            row = Purpose(purpose)
        except ValueError:
            raise ValueError(f"`purpose` must be a row of the table `Purpose`; got {purpose!r}.") from None
        return Address(self.seed, self.start, len(self), int(row), first, count, channels, 0, self.ids)

    def _draw(
        self,
        kind: Kind,
        count: int,
        purpose: Purpose,
        channels: int | None,
        first: int,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> Tensor:
        """Allocate the numbers and fill them."""
        address = self.address(purpose, first, count, 1 if channels is None else channels)
        out = draw(kind, address, dtype, device, elements_first=False)
        return out[..., 0] if channels is None else out


def _integer(name: str, value: object) -> int:
    """A Python integer; NumPy's integers are taken too, booleans and floats are not."""
    if isinstance(value, bool) or not hasattr(value, "__index__") or isinstance(value, Tensor):
        raise TypeError(f"`{name}` must be an integer; got {type(value).__name__}.")
    return operator.index(value)  # type: ignore[arg-type]


def _index_tensor(name: str, value: Tensor) -> Tensor:
    """A contiguous int64 vector on the CPU."""
    if not isinstance(value, Tensor) or value.dtype != torch.int64:
        given = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"`{name}` must be a tensor of dtype torch.int64; got {given}.")
    if value.dim() != 1:
        raise ValueError(f"`{name}` must have shape (k); got {tuple(value.shape)}.")
    return value.detach().cpu().contiguous()


def _real(dtype: torch.dtype | None) -> torch.dtype:
    """The dtype of numbers, torch's default where none is given."""
    dtype = torch.get_default_dtype() if dtype is None else dtype
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"`dtype` must be torch.float32 or torch.float64; got {dtype}.")
    return dtype
