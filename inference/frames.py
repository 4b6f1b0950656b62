r"""Networks of videos: an encoder that looks at every frame, and a decoder that puts sprites in places.

Frames are rows of pixels, ``p = height * width``, so that a video is a :class:`inference.series.Series` like
any other: frames may come at irregular instants, and a frame or a pixel may be missing.

.. math::

    \text{frame}(X, c) = 1 - \prod_j \bigl(1 - \text{sprite}(c_j) \text{ moved to } \text{place}_j(X)\bigr)

The places come from the state and change; the looks come from the content of
:class:`inference.latent_sde.LatentSDE`, which stays.

References:
    Jaderberg, Simonyan, Zisserman & Kavukcuoglu (2015), Spatial transformer networks. arXiv:1506.02025
    Eslami et al. (2016), Attend, infer, repeat. arXiv:1603.08575
    Finn et al. (2016), Deep spatial autoencoders for visuomotor learning, section 5, for features that are
    places. arXiv:1509.06113
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from inference.encoders import GRUEncoder, initialise
from inference.series import Series
from sde.networks import perceptron
from sde.noise import NoiseStream

__all__ = ["FrameEncoder", "SpriteDecoder", "interpolation"]

_SHARPNESS = 4.0  # of the maps at the start, by trial: they point somewhere before anything is learned


def interpolation(start: Tensor, size: int, part: int) -> Tensor:
    """Matrices that put ``part`` pixels among ``size``, linearly between whole pixels; transposed, they crop.

    Args:
        start: Where the first pixel of the part goes, of any shape [pixels].
        size: Pixels of the whole.
        part: Pixels of the part.

    Returns:
        Shape ``(*start.shape, size, part)``.

    Example:
        >>> interpolation(torch.tensor(1.0), 3, 1).mT
        tensor([[0., 1., 0.]])
        >>> interpolation(torch.tensor(0.25), 3, 1).mT
        tensor([[0.7500, 0.2500, 0.0000]])
    """
    rows = torch.arange(size, device=start.device)[:, None]
    gap = rows - torch.arange(part, device=start.device) - start[..., None, None]
    return (1 - gap.abs()).clamp(min=0)


class FrameEncoder(nn.Module):
    """Convolutions of every frame, and a recurrent network that reads the frames backwards.

    In each frame a few maps say where to look. The features of an instant are the places where they look,
    from -1 to 1, and what is there; what the recurrent network says of this and later frames; and the mean
    over all frames of what they show.

    Args:
        shape: Height and width of the frames, at least 4 [pixels].
        recurrent_dim: Features of the recurrent network.
        channels: Of the convolutions.
        maps: Places that are looked at in each frame.
        glimpse: Height and width of what is seen in detail around each of them [pixels].
        seed: Seed of the initial weights.
        dtype: Floating dtype.

    Raises:
        ValueError: If the frames are too small.

    Example:
        >>> encoder = FrameEncoder((16, 16), 20, channels=8, maps=3, seed=0)
        >>> encoder(Series(torch.tensor([0.0, 0.1, 0.5]), torch.zeros(4, 3, 256))).shape
        torch.Size([4, 3, 128])
    """

    def __init__(
        self,
        shape: tuple[int, int],
        recurrent_dim: int = 32,
        *,
        channels: int = 24,
        maps: int = 4,
        glimpse: int = 10,
        seed: int,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        if min(shape) < 4:
            raise ValueError(f"`shape` must be at least 4 by 4 pixels; got {shape}.")
        self.shape = shape
        seeds = NoiseStream(seed, 0, 1)
        self.patches = _convolution(2, channels, 6, stride=4, seed=seeds.fork("patches").seed, dtype=dtype)
        self.around = _convolution(
            channels, channels, 3, stride=1, seed=seeds.fork("around").seed, dtype=dtype
        )
        self.attention = _convolution(
            channels, maps, 1, stride=1, seed=seeds.fork("attention").seed, dtype=dtype
        )
        with torch.no_grad():
            self.attention.weight.mul_(_SHARPNESS)
        self.glimpse = glimpse
        self.details = perceptron(
            (glimpse**2, channels), seed=seeds.fork("details").seed, activation=nn.SiLU(), dtype=dtype
        )
        seen = maps * (2 + 2 * channels)
        self.recurrent = GRUEncoder(seen, recurrent_dim, seed=seeds.fork("recurrent").seed, dtype=dtype)
        self.context_dim = 2 * seen + recurrent_dim

    def forward(self, series: Series) -> Tensor:
        """Features, shape ``(B, T, c)``."""
        pixels = torch.stack((series.filled, series.mask.to(series.values)), 2)
        seen = self.look(pixels.flatten(0, 1).unflatten(2, self.shape)).unflatten(0, pixels.shape[:2])
        later = self.recurrent(Series(series.times, seen))
        whole = seen.mean(1, keepdim=True).expand_as(seen)
        return torch.cat((seen, later, whole), 2)

    def look(self, frames: Tensor) -> Tensor:
        """What single frames show, from pixels and mask ``(n, 2, height, width)``: shape ``(n, s)``."""
        features = nn.functional.silu(self.patches(frames))
        features = features + nn.functional.silu(self.around(features))
        weights = self.attention(features).flatten(2).softmax(2)  # (n, maps, pixels)
        height, width = features.shape[2:]
        rows = torch.linspace(-1, 1, height).to(features)[:, None].expand(height, width)
        columns = torch.linspace(-1, 1, width).to(features).expand(height, width)
        fields = torch.cat(
            (torch.stack((rows, columns)).flatten(1).expand(len(frames), -1, -1), features.flatten(2)), 1
        )
        looked = torch.einsum("nmp,ncp->nmc", weights, fields)
        details = nn.functional.silu(self.details(self._crop(frames[:, :1], looked[..., :2]).flatten(2)))
        return torch.cat((looked, details), 2).flatten(1)

    def _crop(self, frames: Tensor, places: Tensor) -> Tensor:
        """Squares of frames ``(n, 1, height, width)`` around places ``(n, maps, 2)``."""
        middle, half = 0.5 * (1 + places), 0.5 * (self.glimpse - 1)
        rows, columns = (
            interpolation(middle[..., axis] * (self.shape[axis] - 1) - half, self.shape[axis], self.glimpse)
            for axis in (0, 1)
        )
        return rows.mT @ frames @ columns


def _convolution(
    fan_in: int, fan_out: int, size: int, *, stride: int, seed: int, dtype: torch.dtype
) -> nn.Conv2d:
    """A convolution with uniform weights that keep the size of what they read."""
    layer = nn.utils.skip_init(
        nn.Conv2d,
        fan_in,
        fan_out,
        kernel_size=size,
        stride=stride,
        padding=(size - stride + 1) // 2,
        dtype=dtype,
        device="cpu",
    )
    initialise(layer, seed, (3 / (fan_in * size**2)) ** 0.5)
    return cast(nn.Conv2d, layer)


class SpriteDecoder(nn.Module):
    """Frames of objects that each have a look, made of their content, and a place, a linear map of the state.

    A place of 0 is the middle of the frame, -1 and 1 are where a sprite touches a wall. Between whole pixels
    sprites are interpolated linearly. Brightness is between 0 and 1; where sprites overlap, what is dark in
    both stays dark.

    Args:
        state_dim: Number of components of the state, at least two for each object.
        shape: Height and width of the frames [pixels].
        sprite: Height and width of a sprite [pixels].
        brightness: Largest brightness of each object, in (0, 1]; where they differ they tell objects apart.
        look_dim: Components of the content for each object.
        width: Width of the hidden layer.
        seed: Seed of the initial weights.
        dtype: Floating dtype.

    Raises:
        ValueError: If the state has too few components, a brightness is out of range, or a sprite is larger
            than the frame.

    Example:
        >>> decoder = SpriteDecoder(4, (16, 16), 8, brightness=(1.0, 0.6), look_dim=3, seed=0)
        >>> decoder(torch.zeros(5, 7, 10)).shape
        torch.Size([5, 7, 256])
    """

    def __init__(
        self,
        state_dim: int,
        shape: tuple[int, int],
        sprite: int,
        *,
        brightness: Sequence[float],
        look_dim: int,
        width: int = 64,
        seed: int,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        objects = len(brightness)
        if not all(0 < value <= 1 for value in brightness):
            raise ValueError(f"`brightness` must lie in (0, 1]; got {tuple(brightness)}.")
        if state_dim < 2 * objects:
            raise ValueError(
                f"`state_dim` must be at least 2 for each object; got {state_dim} for {objects}."
            )
        if not 0 < sprite <= min(shape):
            raise ValueError(f"`sprite` must fit into frames of {shape}; got {sprite}.")
        self.shape, self.sprite, self.objects, self.look_dim = shape, sprite, objects, look_dim
        self.state_dim = state_dim
        self.where = nn.Parameter(torch.eye(2 * objects, state_dim, dtype=dtype))
        sizes = (look_dim, width, width, sprite**2)
        self.look = perceptron(sizes, seed=seed, dtype=dtype, zero_last=True)  # grey squares at first
        scale = torch.tensor(tuple(brightness), dtype=dtype)[:, None, None]
        self.brightness: Tensor
        self.register_buffer("brightness", scale, persistent=False)

    @property
    def content_dim(self) -> int:
        """Number of components of the content."""
        return self.objects * self.look_dim

    def forward(self, states: Tensor) -> Tensor:
        """Brightness of pixels, shape ``(..., height * width)``, from states and content ``(..., d + c)``."""
        state, content = states.split((self.state_dim, self.content_dim), -1)
        looks = self.look(content.unflatten(-1, (self.objects, self.look_dim))).sigmoid()
        looks = self.brightness * looks.unflatten(-1, (self.sprite, self.sprite))
        places = (state @ self.where.mT).unflatten(-1, (self.objects, 2))
        corners = 0.5 * (1 + places)
        rows, columns = (
            interpolation(
                corners[..., axis] * (self.shape[axis] - self.sprite), self.shape[axis], self.sprite
            )
            for axis in (0, 1)
        )
        moved = rows @ looks @ columns.mT  # (..., objects, height, width)
        return 1 - (1 - moved).prod(-3).flatten(-2)
