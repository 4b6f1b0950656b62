"""Samplers by flow matching: contract, accuracy of the integration, what is learned, resuming."""

import math
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from inference import FitSettings, fit
from inference.interpolants import (
    FlowSampler,
    FlowSettings,
    OneSided,
    Trigonometric,
    VelocityNetwork,
    train_flow,
)
from sde import NoiseStream
from uq.metrics import wasserstein_1d
from uq.model import Model

SMALL = FlowSettings(
    batch=16, width=8, depth=2, steps=3, fit=FitSettings(iterations=12, log_every=4, checkpoint_every=5)
)


def rows(n: int = 40) -> Tensor:
    return torch.tensor(np.random.default_rng(0).standard_normal((n, 3)))


def bimodal(n: int, seed: int) -> Tensor:
    """Two clusters in the plane."""
    rng = np.random.default_rng(seed)
    sign = rng.choice([-1.0, 1.0], n)
    return torch.tensor(np.stack([sign + 0.1 * rng.standard_normal(n), rng.standard_normal(n)], 1))


def same(a: object, b: object) -> bool:
    """Equal to the bit, times of the clock apart."""
    if isinstance(a, Tensor):
        return torch.equal(a, b)  # type: ignore[arg-type]
    if isinstance(a, dict):
        return all(same(a[key], b[key]) for key in a if key not in ("seconds", "progress"))  # type: ignore[index]
    if isinstance(a, list | tuple):
        return all(same(x, y) for x, y in zip(a, b, strict=True))  # type: ignore[arg-type]
    return a == b


def state_of(path: Path) -> dict:
    return torch.load(path, weights_only=True)["state"]


def gaussian_velocity(points: Tensor, t: Tensor, conditions: Tensor) -> Tensor:
    """Exact velocity of the straight interpolant from N(0, 1) to N(2, 1/4)."""
    alpha, beta, mean, deviation = 1 - t, t, 2.0, 0.5
    variance = alpha**2 + (beta * deviation) ** 2
    return mean + (beta * deviation**2 - alpha) / variance * (points - beta * mean)


def exact_sampler(steps: int) -> FlowSampler:
    one, none = torch.ones(1, dtype=torch.float64), torch.ones(0, dtype=torch.float64)
    return FlowSampler(gaussian_velocity, 0 * one, one, none, none, output_shape=(1,), steps=steps)


@pytest.mark.parametrize("num_conditions", [0, 2])
def test_sampler_is_a_model_whose_rows_do_not_depend_on_the_batch(num_conditions: int) -> None:
    known = torch.tensor(np.random.default_rng(3).uniform(size=(300, 2)))[:, :num_conditions]
    sampler, _ = train_flow(
        rows(), conditions=known[:40] if num_conditions else None, seed=0, settings=SMALL, progress=False
    )
    assert isinstance(sampler, Model)
    assert sampler.input_dim == num_conditions
    noise = NoiseStream(7, 0, 300)
    whole = sampler(known, noise)
    for start, stop in ((0, 1), (17, 18), (60, 70), (5, 299)):
        assert torch.equal(sampler(known[start:stop], noise[start:stop]), whole[start:stop])
    order = torch.tensor(np.random.default_rng(2).permutation(300)[:40])
    assert torch.equal(sampler(known[order], noise.select(order)), whole[order])
    assert torch.equal(pickle.loads(pickle.dumps(sampler))(known, noise), whole)


def test_sampler_gives_fields_in_their_shape() -> None:
    sampler, _ = train_flow(rows().reshape(20, 2, 3), seed=0, settings=SMALL, progress=False)
    assert sampler(torch.zeros(4, 0), NoiseStream(0, 0, 4)).shape == (4, 2, 3)


def test_sampler_carries_gaussian_to_gaussian() -> None:
    """The exact flow is the affine map x -> 2 + x / 2."""
    latent = torch.linspace(-3, 3, 13, dtype=torch.float64)[:, None]
    made = exact_sampler(40).transform(latent, latent[:, :0])
    torch.testing.assert_close(made, 2 + latent / 2, rtol=0, atol=1e-5)


def test_sampler_has_order_two() -> None:
    one, none = torch.ones(1, dtype=torch.float64), torch.ones(0, dtype=torch.float64)
    errors = []
    for steps in (40, 80, 160, 320, 640):
        sampler = FlowSampler(
            lambda x, t, c: (1 + t) * x, 0 * one, one, none, none, output_shape=(1,), steps=steps
        )
        errors.append(abs(sampler.transform(one[None], none[None]).item() - math.exp(1.5)))
    orders = [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]
    assert all(abs(order - 2) < 0.1 for order in orders)


def test_flow_beats_the_gaussian_on_two_clusters() -> None:
    settings = FlowSettings(
        batch=128, width=64, steps=20, fit=FitSettings(iterations=800, rate=3e-3, average=0.99)
    )
    sampler, history = train_flow(bimodal(1000, 0), seed=0, settings=settings, progress=False)
    made = sampler(torch.zeros(2000, 0), NoiseStream(9, 0, 2000))[:, 0].double()
    held_out = bimodal(2000, 1)[:, 0]
    normal = NoiseStream(9, 0, 2000).normals(1, dtype=torch.float64)[:, 0]
    assert wasserstein_1d(made, held_out) < 0.4 * wasserstein_1d(normal, held_out)
    assert history["loss"][-1] < history["loss"][0]


def test_conditional_flow_learns_a_shift_of_the_mean() -> None:
    known = torch.tensor(np.random.default_rng(1).uniform(-1, 1, (600, 1)))
    data = known**2 + 0.1 * torch.tensor(np.random.default_rng(2).standard_normal((600, 1)))
    settings = FlowSettings(
        batch=128, width=64, steps=20, fit=FitSettings(iterations=800, rate=3e-3, average=0.99)
    )
    sampler, _ = train_flow(data, conditions=known, seed=0, settings=settings, progress=False)
    for value in (-0.8, 0.0, 0.8):
        made = sampler(torch.full((1000, 1), value), NoiseStream(9, 0, 1000))
        assert abs(made.mean().item() - value**2) < 0.08


def test_training_is_a_function_of_data_seed_and_settings() -> None:
    first, history = train_flow(rows(), seed=0, settings=SMALL, progress=False)
    again, _ = train_flow(rows(), seed=0, settings=SMALL, progress=False)
    other, _ = train_flow(rows(), seed=1, settings=SMALL, progress=False)
    assert same(first.state_dict(), again.state_dict())
    assert not same(first.state_dict(), other.state_dict())
    assert history["iteration"] == [4, 8, 12]


LONG = replace(SMALL, fit=FitSettings(iterations=600, log_every=4, checkpoint_every=7))


def test_training_killed_and_resumed_gives_the_same_weights(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole.pt", tmp_path / "broken.pt"
    call = f"train_flow(rows(), seed=0, settings=LONG, checkpoint={str(broken)!r}, progress=False)"
    process = subprocess.Popen(
        [sys.executable, "-c", f"from {__name__} import LONG, rows, train_flow; {call}"]
    )
    while not broken.exists():
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 0 < state_of(broken)["progress"][0] < 600
    for path in (whole, broken):
        train_flow(rows(), seed=0, settings=LONG, checkpoint=path, progress=False)
    assert same(state_of(whole), state_of(broken))


def test_checkpoint_of_another_training_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "flow.pt"
    train_flow(rows(), seed=0, settings=SMALL, checkpoint=path, progress=False)
    with pytest.raises(ValueError, match=r"`checkpoint` must belong to this run; .* has seed = 0, not 1"):
        train_flow(rows(), seed=1, settings=SMALL, checkpoint=path, progress=False)
    with pytest.raises(ValueError, match=r"has schedule = 'Linear\(\)', not 'Trigonometric\(\)'"):
        train_flow(
            rows(),
            seed=0,
            settings=SMALL,
            interpolant=OneSided(Trigonometric()),
            checkpoint=path,
            progress=False,
        )
    with pytest.raises(ValueError, match=r"has width = 8, not 9"):
        train_flow(rows(), seed=0, settings=replace(SMALL, width=9), checkpoint=path, progress=False)


def test_fit_minimises_a_quadratic() -> None:
    model = VelocityNetwork(1, width=4, depth=1, seed=0)
    settings = FitSettings(iterations=400, rate=5e-2, average=0.9)

    def loss(network: nn.Module, iteration: int) -> Tensor:
        return sum(((p - 1) ** 2).sum() for p in network.parameters())  # type: ignore[return-value]

    fitted, history = fit(model, loss, settings=settings, identity={}, progress=False)
    assert all((p - 1).abs().max() < 0.05 for p in fitted.parameters())
    assert history["loss"][-1] < 0.1 * history["loss"][0]


def nan_row() -> Tensor:
    data = rows(5)
    data[3, 1] = torch.nan
    return data


def sample(inputs: object) -> object:
    return exact_sampler(2)(inputs, NoiseStream(0, 0, 4))


def test_network_reads_waves_of_its_points() -> None:
    """Blind to the bare coordinate, it cannot tell apart points that differ by the period of its wave."""
    network = VelocityNetwork(1, width=4, depth=1, point_frequencies=(2.0,), seed=0, dtype=torch.float64)
    with torch.no_grad():
        network.layers[0].weight[:, 0] = 0
    points = torch.tensor([[0.3], [0.3 + math.pi], [0.5]], dtype=torch.float64)
    t = torch.zeros_like(points)
    values = network(points, t, points[:, :0])
    torch.testing.assert_close(values[0], values[1])
    assert (values[0] - values[2]).abs().item() > 1e-3


BAD: list[tuple[Callable[[], object], type[Exception], str]] = [
    (lambda: train_flow(torch.ones(1, 3), seed=0, progress=False), ValueError, r"at least two samples"),
    (
        lambda: train_flow(nan_row(), seed=0, progress=False),
        ValueError,
        r"`data` must be finite; row 3 is not",
    ),
    (
        lambda: train_flow(rows(5), conditions=torch.ones(4, 1), seed=0, progress=False),
        ValueError,
        r"`conditions` must have shape \(5, c\); got \(4, 1\)",
    ),
    (lambda: sample(torch.zeros(4, 1)), ValueError, r"`inputs` must have shape \(4, 0\)"),
    (lambda: sample([0.0]), TypeError, r"`inputs` must be a tensor; got list"),
    (lambda: exact_sampler(0), ValueError, r"`steps` must be at least 1; got 0"),
    (lambda: FlowSettings(batch=0), ValueError, r"`batch` must be a whole number of at least 1; got 0"),
    (
        lambda: FitSettings(iterations=-1),
        ValueError,
        r"`iterations` must be a whole number of at least 0; got -1",
    ),
    (lambda: FitSettings(rate=0.0), ValueError, r"`rate` must be positive"),
    (lambda: FitSettings(average=1.0), ValueError, r"`average` must lie in \[0, 1\); got 1.0"),
    (
        lambda: train_flow(
            rows(), seed=0, settings=replace(SMALL, fit=FitSettings(iterations=50, rate=1e30)), progress=False
        ),
        RuntimeError,
        r"diverged before iteration 50: loss .*Lower the learning rate",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_flow_refuses(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
