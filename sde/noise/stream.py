"""Noise streams: values that say where randomness lies, without holding any."""

import hashlib
from dataclasses import dataclass, field
from enum import IntEnum

import torch
from torch import Tensor

from sde.noise import philox
from sde.noise.philox import Address

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


@dataclass(frozen=True, slots=True)
class NoiseStream:
    """The randomness of samples ``start .. stop - 1`` of a seed: a value, not a generator.

    Sample ``i`` of a seed is the same number whatever the batch it is asked in, the order, the device, the number
    of workers or the restart: numbers are computed from their address by a counter generator
    (:mod:`sde.noise.philox`), and nothing is consumed by asking.

    Args:
        seed: Integer in ``[0, 2**64)``.
        start: Id of the first sample, at least 0.
        stop: One past the id of the last sample, at most ``2**63``.

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
    ids: Tensor | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("seed", "start", "stop"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"`{name}` must be an integer; got {type(value).__name__}.")
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"`seed` must lie in [0, 2**64); got {self.seed}.")
        if not 0 <= self.start <= self.stop <= 2**63:
            raise ValueError(f"`start` and `stop` must satisfy 0 <= start <= stop; got {self.start} and {self.stop}.")

    def __len__(self) -> int:
        return self.stop - self.start if self.ids is None else len(self.ids)

    def __getitem__(self, rows: slice) -> "NoiseStream":
        """The samples at positions ``rows`` (a slice with step 1) of this stream."""
        first, last, step = rows.indices(len(self))
        if step != 1:
            raise ValueError(f"A noise stream is sliced with step 1; got {step}. Use `select` for other choices.")
        last = max(first, last)
        if self.ids is not None:
            return self.select_ids(self.ids[first:last])
        return NoiseStream(self.seed, self.start + first, self.start + last)

    def select(self, positions: Tensor) -> "NoiseStream":
        """The samples at ``positions`` (int64, shape ``(k,)``), in that order."""
        base = torch.arange(self.start, self.stop) if self.ids is None else self.ids
        return self.select_ids(base[positions.cpu()])

    def select_ids(self, ids: Tensor) -> "NoiseStream":
        """The samples with global ``ids`` (int64, shape ``(k,)``) of this seed, in that order."""
        return NoiseStream(self.seed, int(ids.min()) if len(ids) else 0, int(ids.max()) + 1 if len(ids) else 0, ids)

    def fork(self, tag: str) -> "NoiseStream":
        """An independent stream over the same samples, named by ``tag``: the same tag gives the same stream."""
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
            count: Number of elements.
            purpose: Row of the table of streams.
            channels: Number of parallel sequences; ``None`` is channel 0 without a channel axis.
            first: Index of the first element.
            dtype: ``torch.float32`` or ``torch.float64``; ``None`` is torch's default dtype.
            device: Where the numbers are computed.

        Returns:
            Shape ``(n, count)``, or ``(n, count, channels)`` where ``channels`` is given.

        Raises:
            ValueError: If a size is out of range or the dtype is neither float32 nor float64.
        """
        return self._draw(philox.normals, count, purpose, channels, first, dtype, device)

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
        """Uniforms in the open interval (0, 1); arguments and shapes as :meth:`normals`."""
        return self._draw(philox.uniforms, count, purpose, channels, first, dtype, device)

    def _draw(self, kind, count, purpose, channels, first, dtype, device) -> Tensor:  # noqa: ANN001
        dtype = torch.get_default_dtype() if dtype is None else dtype
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"`dtype` must be torch.float32 or torch.float64; got {dtype}.")
        address = Address(
            self.seed, self.start, len(self), int(purpose), first, count, 1 if channels is None else channels, 0, self.ids
        )
        numbers = kind(address, dtype, torch.device(device))
        return numbers[..., 0] if channels is None else numbers
