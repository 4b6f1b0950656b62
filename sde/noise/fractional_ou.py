r"""Exact paths of the stationary fractional Ornstein--Uhlenbeck process.

.. math:: \mathrm{d}X = -\theta X\,\mathrm{d}t + \sigma\,\mathrm{d}B^H

A circulant embedding of a window that is short beside the memory :math:`1 / \theta` has negative eigenvalues
where ``H > 1/2``; the window is doubled until it has none, as Wood and Chan propose, and cut afterwards. No
scheme is involved: the law is exact at any step.

References:
    Cheridito, Kawaguchi & Maejima (2003), section 2. doi:10.1214/EJP.v8-125
    Wood & Chan (1994), section 3. doi:10.1080/10618600.1994.10474655
"""

import torch
from torch import Tensor

from sde.noise.circulant import StationarySampler
from sde.noise.fractional import fou_autocovariance
from sde.noise.stream import NoiseStream

__all__ = ["fou_path", "fou_sampler"]

_MOST = 1 << 22  # lags beyond which no longer window is tried


def fou_path(
    hurst: float,
    noise: NoiseStream,
    num_steps: int,
    *,
    dt: float,
    rate: float = 1.0,
    scale: float = 1.0,
    channels: int | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Stationary fractional Ornstein--Uhlenbeck paths at ``0, dt, ..., num_steps * dt``.

    Args:
        hurst: Hurst index in (0, 1).
        noise: Source of the normals, forked with the tag ``"circulant"``.
        num_steps: Number of steps, at least 1.
        dt: Length of a step.
        rate: Rate of mean reversion, positive, one over time.
        scale: Size of the noise, positive.
        channels: Number of independent processes; ``None`` is one without a channel axis.
        dtype: ``torch.float32`` or ``torch.float64``; ``None`` is torch's default dtype.
        device: Where the paths are computed.

    Returns:
        Shape ``(n, num_steps + 1)`` or ``(n, num_steps + 1, channels)``.

    Raises:
        ValueError: If an argument is out of range, or the memory is too long for the largest window.

    Example:
        >>> noise = NoiseStream(seed=0, start=0, stop=4)
        >>> fou_path(0.7, noise, 100, dt=0.01).shape
        torch.Size([4, 101])
    """
    sampler = fou_sampler(hurst, num_steps, dt=dt, rate=rate, scale=scale)
    return sampler.draw(noise, channels=channels, dtype=dtype, device=device)[:, : num_steps + 1]


def fou_sampler(
    hurst: float, num_steps: int, *, dt: float, rate: float = 1.0, scale: float = 1.0
) -> StationarySampler:
    """The sampler behind :func:`fou_path`, of at least ``num_steps + 1`` values; arguments as there.

    Example:
        >>> fou_sampler(0.3, 100, dt=0.01).num
        101
    """
    if num_steps < 1:
        raise ValueError(f"`num_steps` must be at least 1; got {num_steps}.")
    if not 0 < dt < float("inf"):
        raise ValueError(f"`dt` must be positive and finite; got {dt}.")
    fou_autocovariance(hurst, torch.zeros(1), rate=rate, scale=scale)  # checks the arguments
    count = num_steps + 1
    while True:
        lags = torch.arange(count + 1, dtype=torch.float64) * dt
        try:
            return StationarySampler(fou_autocovariance(hurst, lags, rate=rate, scale=scale))
        except ValueError:
            if 2 * count > _MOST:
                raise
        count *= 2
