r"""Exact simulation of stationary Gaussian sequences by circulant embedding.

The covariance matrix of ``n`` consecutive values is the corner of a circulant matrix of size ``2 n``, whose
first row is the autocovariance at lags ``0, 1, ..., n, n - 1, ..., 1`` and whose eigenvalues are its Fourier
transform. Where they are all positive, as they are for fractional Gaussian noise of every Hurst index, one
FFT of weighted normals is an exact sample, in ``O(n log n)``.

The middle of the row must hold the autocovariance at lag ``n``. A zero there, as in some implementations,
makes eigenvalues negative for Hurst indices near 1.

References:
    Davies & Harte (1987), Tests for Hurst effect, appendix. doi:10.1093/biomet/74.1.95
    Wood & Chan (1994), Simulation of stationary Gaussian processes in [0, 1]^d.
    doi:10.1080/10618600.1994.10474655
    Craigmile (2003), theorem 1 (the eigenvalues for fGn). doi:10.1111/1467-9892.00318
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from sde.noise.fractional import check_hurst, fgn_autocovariance
from sde.noise.stream import NoiseStream, Purpose
from sde.shapes import check_shapes

__all__ = ["StationarySampler", "circulant_spectrum", "fbm_path", "fgn", "fgn_sampler"]

_CHUNK_BYTES = 1 << 26  # normals held at once: 64 MiB


def fgn(
    hurst: float | Tensor,
    noise: NoiseStream,
    num_steps: int,
    *,
    dt: float = 1.0,
    channels: int | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    r"""Fractional Gaussian noise: exact increments of fractional Brownian motion over equal steps.

    Valid for every Hurst index and any number of steps; the law is exact to rounding. The spectrum is
    computed in float64 whatever the dtype of the sample. Sample ``i`` depends on the seed, ``i`` and
    ``num_steps`` only. Differentiable in a tensor ``hurst``.

    Args:
        hurst: Hurst index in (0, 1).
        noise: Source of the normals, forked with the tag ``"circulant"``.
        num_steps: Number of increments, at least 1.
        dt: Length of a step, in the time unit of the path.
        channels: Number of independent noises; ``None`` is one without a channel axis.
        dtype: ``torch.float32`` or ``torch.float64``; ``None`` is torch's default dtype.
        device: Where the sample is computed.

    Returns:
        Increments of variance ``dt**(2 * hurst)``, shape ``(n, num_steps)`` or ``(n, num_steps, channels)``.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> noise = NoiseStream(seed=0, start=0, stop=4)
        >>> fgn(0.7, noise, 100).shape
        torch.Size([4, 100])
        >>> increments = fgn(0.7, noise, 100, dt=0.01, channels=2, dtype=torch.float64)
        >>> torch.equal(fgn(0.7, noise[1:3], 100, dt=0.01, channels=2, dtype=torch.float64), increments[1:3])
        True

    References:
        Davies & Harte (1987), appendix. doi:10.1093/biomet/74.1.95
    """
    sampler = fgn_sampler(hurst, num_steps, dt=dt)
    return sampler.draw(noise, channels=channels, dtype=dtype, device=device)


def fgn_sampler(hurst: float | Tensor, num_steps: int, *, dt: float = 1.0) -> "StationarySampler":
    """The sampler behind :func:`fgn`, for drawing many times from one spectrum; arguments as there.

    Example:
        >>> sampler = fgn_sampler(0.7, 100)
        >>> noise = NoiseStream(seed=0, start=0, stop=4)
        >>> torch.equal(sampler.draw(noise), fgn(0.7, noise, 100))
        True
    """
    _check_steps(num_steps, dt)
    return StationarySampler(fgn_autocovariance(hurst, num_steps + 1) * dt ** (2 * check_hurst(hurst)))


def fbm_path(
    hurst: float | Tensor,
    noise: NoiseStream,
    num_steps: int,
    *,
    dt: float = 1.0,
    channels: int | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Fractional Brownian motion at ``0, dt, ..., num_steps * dt``: the sums of :func:`fgn`, from zero.

    Arguments, law and errors are those of :func:`fgn`.

    Returns:
        Shape ``(n, num_steps + 1)`` or ``(n, num_steps + 1, channels)``; the first value is 0.

    Example:
        >>> fbm_path(0.3, NoiseStream(seed=0, start=0, stop=4), 8)[:, 0].tolist()
        [0.0, 0.0, 0.0, 0.0]
    """
    increments = fgn(hurst, noise, num_steps, dt=dt, channels=channels, dtype=dtype, device=device)
    return torch.cat((torch.zeros_like(increments[:, :1]), increments.cumsum(1)), 1)


@dataclass(frozen=True, slots=True, eq=False)
class StationarySampler:
    """Exact sampler of a stationary Gaussian sequence of mean zero; the spectrum is computed once.

    Args:
        autocovariance: At lags ``0 .. num``, shape ``(num + 1,)``, float64: one lag more than values.

    Raises:
        ValueError: If the circulant embedding has negative eigenvalues; more lags may help.

    Example:
        >>> decay = torch.exp(-torch.arange(9, dtype=torch.float64))
        >>> StationarySampler(decay).draw(NoiseStream(seed=0, start=0, stop=5)).shape
        torch.Size([5, 8])
    """

    autocovariance: Tensor
    weights: Tensor = field(init=False)  #: of the normals of each frequency, float64, ``(num + 1,)``

    def __post_init__(self) -> None:
        spectrum = circulant_spectrum(self.autocovariance)
        # Re and Im of an inner frequency have half the weight each; the two ends are real.
        ends = torch.ones_like(spectrum)
        ends[0] = ends[-1] = 2**0.5
        object.__setattr__(self, "weights", torch.sqrt(spectrum * (len(spectrum) - 1)) * ends)

    @property
    def num(self) -> int:
        """Number of values in a sequence."""
        return len(self.weights) - 1

    def draw(
        self,
        noise: NoiseStream,
        *,
        channels: int | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Samples, computed in parts that bound the memory beyond the result.

        Args:
            noise: Source of the normals, forked with the tag ``"circulant"``.
            channels: Number of independent sequences; ``None`` is one without a channel axis.
            dtype: ``torch.float32`` or ``torch.float64``; ``None`` is torch's default dtype.
            device: Where the sample is computed.

        Returns:
            Shape ``(n, num)`` or ``(n, num, channels)``.
        """
        dtype = torch.get_default_dtype() if dtype is None else dtype
        stream, weights = noise.fork("circulant"), self.weights.to(device, dtype)
        at_once = max(1, _CHUNK_BYTES // (16 * (self.num + 1) * (channels or 1)))
        values = torch.cat(
            [
                _transform(weights, stream[first : first + at_once], channels or 1)
                for first in range(0, max(1, len(stream)), at_once)
            ]
        )
        return values[:, 0] if channels is None else values.mT


def circulant_spectrum(autocovariance: Tensor) -> Tensor:
    """Eigenvalues of the circulant embedding, checked to be non-negative.

    Args:
        autocovariance: At lags ``0 .. num``, shape ``(num + 1,)`` with ``num >= 1``.

    Returns:
        Float64, shape ``(num + 1,)``; those between the ends count twice.

    Raises:
        ValueError: If an eigenvalue is negative beyond rounding.

    Example:
        >>> circulant_spectrum(torch.tensor([1.0, 0.0, 0.0])).tolist()
        [1.0, 1.0, 1.0]
    """
    check_shapes(autocovariance=(autocovariance, "lags"))
    if len(autocovariance) < 2:
        raise ValueError(f"`autocovariance` must hold at least 2 lags; got {len(autocovariance)}.")
    half = autocovariance.double()
    spectrum = torch.fft.rfft(torch.cat((half, half[1:-1].flip(0)))).real
    values = spectrum.detach()
    lowest = float(values.min())
    if not lowest >= -1e-12 * float(values.max()):
        raise ValueError(
            f"`autocovariance` must have a non-negative circulant embedding; its smallest eigenvalue is "
            f"{lowest:g}. Take more lags, or sample with `gaussian_path`."
        )
    return spectrum.clamp(min=0)


def _transform(weights: Tensor, stream: NoiseStream, channels: int) -> Tensor:
    """Normals, weighted, transformed, and the first half kept; shape ``(n, channels, num)``."""
    num = len(weights) - 1
    normals = stream.normals(
        2 * (num + 1),
        purpose=Purpose.WIENER,
        channels=channels,
        dtype=weights.dtype,
        device=weights.device,
    )
    normals = normals.mT.unflatten(-1, (num + 1, 2)).contiguous()
    if not len(stream):  # which the FFT refuses
        return normals.new_empty((0, channels, num))
    return torch.fft.irfft(torch.view_as_complex(normals) * weights, n=2 * num)[..., :num]


def _check_steps(num_steps: int, dt: float) -> None:
    """Raise unless there is at least one step, of positive length."""
    if num_steps < 1:
        raise ValueError(f"`num_steps` must be at least 1; got {num_steps}.")
    if not 0 < dt < float("inf"):
        raise ValueError(f"`dt` must be positive and finite; got {dt}.")
