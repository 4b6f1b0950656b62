"""Encoder and decoder of videos, and content that stays while the state moves."""

import math
from typing import Literal, cast

import pytest
import torch
from torch import Tensor, nn

from inference.elbo import gaussian_divergence
from inference.frames import FrameEncoder, SpriteDecoder
from inference.latent_noise import FractionalNoise
from inference.latent_samplers import PosteriorSampler, PriorSampler, predict
from inference.latent_sde import ConstantDiffusion, LatentSDE, NeuralDrift
from inference.likelihoods import Gaussian
from inference.series import Series
from sde import NoiseStream
from tests.statistics import assert_mean

_F64 = torch.float64
_SHAPE = (16, 12)
_TIMES = torch.tensor([0.0, 0.1, 0.2, 0.45], dtype=_F64)


def _frames(count: int) -> Series:
    pixels = NoiseStream(5, 0, count).uniforms(4 * math.prod(_SHAPE), dtype=_F64)
    return Series(_TIMES, pixels.view(count, 4, -1))


def _decoder(*brightness: float) -> SpriteDecoder:
    decoder = SpriteDecoder(
        2 * len(brightness), _SHAPE, 6, brightness=brightness, look_dim=3, width=8, seed=0, dtype=_F64
    )
    with torch.no_grad():  # looks start grey
        last = list(decoder.look.parameters())[-2]
        last.copy_(NoiseStream(8, 0, 1).normals(last.numel(), dtype=_F64).view_as(last))
    return decoder


def _model(noise: FractionalNoise | None = None, *, disturbed: bool = True) -> LatentSDE:
    decoder = _decoder(1.0, 0.6)
    model = LatentSDE(
        drift=NeuralDrift(4, width=8, seed=0, dtype=_F64),
        diffusion=ConstantDiffusion(4, dtype=_F64),
        decoder=decoder,
        likelihood=Gaussian(math.prod(_SHAPE), deviation=0.1, learned=False, dtype=_F64),
        encoder=FrameEncoder(_SHAPE, 8, channels=4, maps=2, seed=0, dtype=_F64),
        latent_dim=4,
        content_dim=decoder.content_dim,
        max_step=0.1,
        seed=0,
        width=8,
        noise=noise,
    )
    if disturbed:
        with torch.no_grad():
            for index, parameter in enumerate(model.parameters()):
                jitter = NoiseStream(9, index, index + 1).normals(parameter.numel(), dtype=_F64)
                parameter.add_(0.1 * jitter.view(parameter.shape).to(parameter))
    return model


def test_weights_are_a_function_of_the_seed() -> None:
    for make in (
        lambda seed: FrameEncoder(_SHAPE, 8, seed=seed),
        lambda seed: SpriteDecoder(4, _SHAPE, 6, brightness=(1.0, 0.6), look_dim=3, seed=seed),
    ):
        one, same, other = (make(seed).state_dict() for seed in (1, 1, 2))
        assert all(torch.equal(one[name], same[name]) for name in one)
        assert any(not torch.equal(one[name], other[name]) for name in one)


def test_a_video_is_encoded_alone() -> None:
    encoder, videos = FrameEncoder(_SHAPE, 8, seed=0, dtype=_F64), _frames(5)
    whole = encoder(videos)
    assert whole.shape == (5, 4, encoder.context_dim)
    torch.testing.assert_close(encoder(videos.select(slice(2, 4))), whole[2:4])


def test_missing_pixels_are_not_dark_ones_and_instants_matter() -> None:
    encoder, videos = FrameEncoder(_SHAPE, 8, seed=0, dtype=_F64), _frames(2)
    holes = []
    for hole in (torch.nan, 0.0):
        values = videos.values.clone()
        values[:, 2] = hole
        holes.append(encoder(Series(_TIMES, values)))
        assert holes[-1].isfinite().all()
    assert (holes[0] - holes[1])[:, 2].abs().max() > 1e-3
    stretched = encoder(Series(_TIMES**2, videos.values))
    assert (stretched - encoder(videos))[:, 1:].abs().max() > 1e-4


def test_a_bright_spot_is_found_where_it_is() -> None:
    # Attention that grows with the brightness of a cell points at the spot.
    encoder = FrameEncoder((24, 24), 8, channels=1, maps=1, seed=0, dtype=_F64)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.zero_()
        encoder.patches.weight[:, 0] = 1.0
        encoder.attention.weight.fill_(20.0)
    frame = torch.zeros(1, 2, 24, 24, dtype=_F64)
    frame[0, 0, 2, 21] = 1.0  # up and to the right
    row, column = encoder.look(frame)[0, :2].tolist()
    # The other 35 cells share exp(-20 silu(1)) of the weight each.
    off = 2 * 35 * math.exp(-20 / (1 + math.exp(-1)))
    assert row == pytest.approx(-1, abs=off)
    assert column == pytest.approx(1, abs=off)


def _draw(decoder: SpriteDecoder, places: list[float], content: Tensor) -> Tensor:
    states = torch.cat((torch.tensor(places, dtype=_F64), content))
    return decoder(states[None])[0].view(*_SHAPE).detach()


def test_sprites_go_where_the_state_says() -> None:
    decoder, content = _decoder(0.8), NoiseStream(1, 0, 1).normals(3, dtype=_F64)[0]
    corner = _draw(decoder, [-1.0, -1.0], content)
    look = corner[:6, :6]
    assert not corner[6:].any()
    assert not corner[:, 6:].any()
    assert look.min() > 0
    assert look.max() < 0.8
    # There are 10 rows and 6 columns of room: 0.2 of place is a row.
    lower = _draw(decoder, [-0.8, 1.0], content)
    torch.testing.assert_close(lower[1:7, 6:], look)
    between = _draw(decoder, [-0.9, 1.0], content)
    torch.testing.assert_close(between[1:6, 6:], 0.5 * (look[1:] + look[:-1]))


def test_looks_start_grey_at_half_of_the_brightness() -> None:
    decoder = SpriteDecoder(2, _SHAPE, 6, brightness=(0.6,), look_dim=3, seed=0, dtype=_F64)
    frame = decoder(torch.tensor([-1.0, -1.0, 2.0, 0.5, -1.0], dtype=_F64)).detach().view(_SHAPE)
    torch.testing.assert_close(frame[:6, :6], torch.full((6, 6), 0.3, dtype=_F64))


def test_sprites_overlap_by_what_each_leaves_dark() -> None:
    content = NoiseStream(1, 0, 1).normals(6, dtype=_F64)[0]
    first = _draw(_decoder(1.0), [0.0, 0.0], content[:3])
    second = _draw(_decoder(0.6), [0.0, 0.0], content[3:])
    together = _draw(_decoder(1.0, 0.6), [0.0] * 4, content)
    torch.testing.assert_close(together, 1 - (1 - first) * (1 - second))


def test_gradients_reach_places_and_looks() -> None:
    decoder = _decoder(1.0, 0.6)
    states = NoiseStream(1, 0, 3).normals(10, dtype=_F64).requires_grad_()
    decoder(0.3 * states).square().sum().backward()
    assert states.grad is not None
    assert (states.grad.abs().sum(0) > 0).all()


def test_content_stays_while_the_state_moves() -> None:
    model, videos = _model(), _frames(2)
    paths = model.posterior(videos, NoiseStream(0, 0, 6), paths=3).measure.paths
    moving, content = paths[..., : model.latent_dim], paths[..., model.latent_dim :]
    assert content.shape == (6, 4, 6)
    assert torch.equal(content, content[:, :1].expand_as(content))
    assert (moving.diff(dim=1).abs() > 0).all()
    assert (content[0] - content[1]).abs().min() > 1e-6  # drawn for each path


@pytest.mark.parametrize("kind", ["Brownian", "I"])
def test_divergence_of_the_content_is_that_of_its_law(kind: Literal["Brownian", "I"]) -> None:
    noise = FractionalNoise(0.7, horizon=0.5, step=0.1, num_rates=3) if kind == "I" else None
    model, videos, n = _model(noise), _frames(1), 10_000
    features, normals = model.encoder(videos), model.codes(NoiseStream(3, 0, n))
    content = cast(nn.Module, model.content)
    with torch.no_grad():
        mean, raw = content(features[:, 0]).chunk(2, 1)
        found = model.posterior_given(features, videos, normals, NoiseStream(3, 0, n), _TIMES)
        own = normals[:, : model.dynamics.code_dim]
        moving = model.dynamics.posterior(features, videos, own, NoiseStream(3, 0, n), _TIMES)
    exact = gaussian_divergence(mean, raw.exp(), torch.zeros_like(mean), torch.ones_like(mean))
    assert mean.shape == (1, 6)
    assert exact > 0.01
    assert_mean(moving.initial_log_ratio - found.initial_log_ratio, float(exact), bias=0.1)


@pytest.mark.parametrize("kind", ["Brownian", "I", "II"])
def test_samplers_of_videos_are_addressed(kind: str) -> None:
    noise = None
    if kind != "Brownian":
        noise = FractionalNoise(0.7, horizon=0.5, step=0.1, num_rates=3, kind=kind)  # pyright: ignore
    model, stream = _model(noise), NoiseStream(4, 0, 70)
    for sampler in (
        PriorSampler(model, _TIMES, math.prod(_SHAPE)),
        PosteriorSampler(model, _frames(1), _TIMES),
    ):
        whole = sampler(torch.zeros(70, 0), stream)
        assert whole.shape == (70, 4, math.prod(_SHAPE))
        assert torch.equal(sampler(torch.zeros(10, 0), stream[60:]), whole[60:])
    found = predict(model, _frames(2), torch.tensor([0.3, 0.6], dtype=_F64), NoiseStream(0, 0, 8), paths=4)
    assert found.mean.shape == (2, 2, math.prod(_SHAPE))


def test_a_still_square_is_learned() -> None:
    square = torch.zeros(4, *_SHAPE, dtype=_F64)
    square[:, 5:11, 3:9] = 0.9
    videos = Series(_TIMES, square.flatten(1)[None])
    model = _model(disturbed=False)
    adam = torch.optim.Adam(model.parameters(), lr=2e-2)
    loss = torch.zeros(())
    for step in range(40):
        loss = -model.elbo(videos, NoiseStream(0, 4 * step, 4 * step + 4), paths=4).elbo.mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
    # Beside a model that knows the frames, the best constant frame loses the variance of the pixels.
    known = square.numel() * math.log(0.1 * math.sqrt(2 * math.pi))
    constant = 0.5 * square.numel() * float(square.var(correction=0)) / 0.1**2
    assert loss.item() - known < constant / 4


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="`state_dim` must be at least 2 for each object; got 3 for 2"):
        SpriteDecoder(3, _SHAPE, 6, brightness=(1.0, 0.6), look_dim=3, seed=0)
    with pytest.raises(ValueError, match=r"`brightness` must lie in \(0, 1\]; got \(1.0, 1.5\)"):
        SpriteDecoder(4, _SHAPE, 6, brightness=(1.0, 1.5), look_dim=3, seed=0)
    with pytest.raises(ValueError, match=r"`sprite` must fit into frames of \(16, 12\); got 13"):
        SpriteDecoder(4, _SHAPE, 13, brightness=(1.0, 0.6), look_dim=3, seed=0)
    with pytest.raises(ValueError, match="`shape` must be at least 4 by 4"):
        FrameEncoder((3, 12), seed=0)
    with pytest.raises(ValueError, match="`content_dim` must be at least 0; got -1"):
        LatentSDE(
            drift=NeuralDrift(4, seed=0),
            diffusion=ConstantDiffusion(4),
            decoder=SpriteDecoder(4, _SHAPE, 6, brightness=(1.0, 0.6), look_dim=3, seed=0),
            likelihood=Gaussian(192),
            encoder=FrameEncoder(_SHAPE, seed=0),
            latent_dim=4,
            content_dim=-1,
            max_step=0.05,
            seed=0,
        )
