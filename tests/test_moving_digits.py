"""The videos of the example are addressed, and move as they say."""

import pytest
import torch

pytest.importorskip("sklearn", reason="needs the extra data")

from examples.moving_digits import MovingDigits, digits
from sde import NoiseStream


def test_a_video_does_not_depend_on_the_batch() -> None:
    make = MovingDigits()
    whole = make(NoiseStream(3, 0, 6))
    assert whole.shape == (6, 25, 24, 24)
    assert 0 <= whole.min() < whole.max() <= 1
    assert torch.equal(make(NoiseStream(3, 2, 4)), whole[2:4])
    assert not torch.equal(make(NoiseStream(4, 0, 6)), whole)


def test_held_out_digits_are_others() -> None:
    seen, held = digits(8), digits(8, held_out=True)
    assert len(seen) == 1500
    assert len(held) == 297
    assert torch.cdist(held.flatten(1), seen.flatten(1)).min() > 0


def test_digits_stay_inside_and_keep_their_velocity_between_bounces() -> None:
    make = MovingDigits(speeds=(0.5, 2.0))
    places = make.places(NoiseStream(1, 0, 200), 25)
    assert places.min() >= 0
    assert places.max() <= 14
    steps = places.diff(dim=1)
    assert steps.abs().max() <= 2
    # Far from the walls no bounce can have happened.
    inner = ((places[:, 1:-1] > 2) & (places[:, 1:-1] < 12)).all(-1)
    change = steps.diff(dim=1).abs().amax(-1)
    assert inner.float().mean() > 0.2
    assert change[inner].max() < 1e-5
    assert change[~inner].max() > 1


def test_overlap_takes_the_brighter_pixel() -> None:
    noise, make = NoiseStream(2, 0, 20), MovingDigits()
    video = make(noise)
    frame = make.places(noise)[:, 0]
    apart = (frame[:, 0] - frame[:, 1]).abs().amax(-1) > 11
    alone = digits(10).flatten(1).sum(1)
    assert apart.any()
    # Interpolation keeps the light of a digit; of two that do not touch, nothing is lost.
    light = video[:, 0].sum((1, 2))
    assert light[apart].min() > 1.6 * alone.min() * (1 - 1e-5)
    assert light.max() < 1.6 * alone.max()
