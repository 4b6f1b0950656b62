"""Videos of moving digits: every bounce off a wall draws a new velocity, so that what follows is uncertain.

The digits are those of scikit-learn, which ship with the package; the dynamics follow Denton and Fergus
(2018), Stochastic video generation with a learned prior, section 4.1. arXiv:1802.07687
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from inference.frames import interpolation
from sde import NoiseStream, Purpose

__all__ = ["MovingDigits", "digits"]

_HELD_OUT = 297  # images that only held-out videos show
_DRAWS = 4  # uniforms of a digit at an instant: a speed along each side, for a wall on each


def digits(size: int, *, held_out: bool = False) -> Tensor:
    """Images of handwritten digits, between 0 and 1, shape ``(k, size, size)``.

    Args:
        size: Pixels along a side; the images of 8 by 8 are enlarged, linearly between pixels.
        held_out: The last 297 images instead of the first 1500.

    Returns:
        The images.

    Raises:
        ImportError: If scikit-learn is missing.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("Digits need scikit-learn: pip install 'sdeuq[data]'.") from error
    images = torch.from_numpy(load_digits().images).float() / 16  # pyright: ignore
    part = images[-_HELD_OUT:] if held_out else images[:-_HELD_OUT]
    large = nn.functional.interpolate(part[:, None], (size, size), mode="bilinear", align_corners=False)
    return large[:, 0]


@dataclass(frozen=True, slots=True)
class MovingDigits:
    """Digits that cross a square frame and bounce off its walls with random new velocities.

    Attributes:
        size: Pixels along a side of the frame.
        digit: Pixels along a side of a digit.
        brightness: Of each digit, in (0, 1]; it tells them apart.
        speeds: Least and largest speed along a side after a bounce [pixels a frame].
        held_out: Show the digits that are held out.
    """

    size: int = 24
    digit: int = 10
    brightness: tuple[float, ...] = (1.0, 0.6)
    speeds: tuple[float, float] = (0.5, 1.5)
    held_out: bool = False

    @property
    def objects(self) -> int:
        """Number of digits."""
        return len(self.brightness)

    def __call__(self, noise: NoiseStream, frames: int = 25) -> Tensor:
        """Videos with values between 0 and 1, shape ``(n, frames, size, size)``.

        Row ``i`` is a function of the seed and of sample ``i`` alone.
        """
        images = digits(self.digit, held_out=self.held_out)
        chosen = noise.fork("digits").uniforms(self.objects, purpose=Purpose.USER, dtype=torch.float32)
        shown = images[(chosen * len(images)).long().clamp(max=len(images) - 1)]  # (n, objects, s, s)
        corners = self.places(noise, frames)
        shown = shown * torch.tensor(self.brightness)[:, None, None]
        rows, columns = (interpolation(corners[..., k], self.size, self.digit) for k in (0, 1))
        return torch.einsum("ntors,nosu,ntocu->ntorc", rows, shown, columns).amax(2)

    def places(self, noise: NoiseStream, frames: int = 25) -> Tensor:
        """Upper left corners of the digits [pixels], shape ``(n, frames, objects, 2)``."""
        room, shape = float(self.size - self.digit), (-1, self.objects, 2)
        draws = noise.fork("motion").uniforms(
            frames + 1, purpose=Purpose.USER, channels=_DRAWS * self.objects, dtype=torch.float32
        )
        draws = draws.unflatten(2, (self.objects, _DRAWS))
        place, velocity = room * draws[:, frames, :, :2], self._speed(draws[:, frames, :, 2:])
        path = [place]
        for k in range(1, frames):
            place = place + velocity
            low, high = place < 0, place > room
            away = low.float() - high.float()
            fresh, along = draws[:, k, :, :2], self._speed(draws[:, k, :, 2:])
            least, largest = self.speeds
            bounced = away * (least + (largest - least) * fresh)
            hit = (low | high).any(2, keepdim=True)
            velocity = torch.where(low | high, bounced, torch.where(hit, along, velocity))
            place = torch.where(low, -place, torch.where(high, 2 * room - place, place))
            path.append(place)
        return torch.stack(path, 1).view(len(noise), frames, *shape[1:])

    def _speed(self, uniforms: Tensor) -> Tensor:
        """Velocities of either sign."""
        least, largest = self.speeds
        signed = 2 * uniforms - 1
        return signed.sign() * (least + (largest - least) * signed.abs())
