"""Training of the Wasserstein generator: what it learns, that it is deterministic and survives a kill."""

import math
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from sde import NoiseStream
from sde.checkpoint import save_checkpoint
from uq.metrics import wasserstein_1d
from uq.training import WassersteinSettings, plot_training, train_wasserstein

SMALL = WassersteinSettings(
    iterations=12,
    batch=16,
    critic_steps=2,
    width=8,
    critic_width=8,
    critic_depth=2,
    log_every=4,
    checkpoint_every=5,
)


def rows(n: int = 40) -> torch.Tensor:
    return torch.tensor(np.random.default_rng(0).standard_normal((n, 3)))


def bimodal(n: int, seed: int) -> torch.Tensor:
    """Two clusters in the plane."""
    rng = np.random.default_rng(seed)
    sign = rng.choice([-1.0, 1.0], n)
    return torch.tensor(np.stack([sign + 0.1 * rng.standard_normal(n), rng.standard_normal(n)], 1))


def rings(n: int, seed: int) -> torch.Tensor:
    """Eight narrow clusters on a circle."""
    rng = np.random.default_rng(seed)
    angle = 2 * math.pi * rng.integers(0, 8, n) / 8
    circle = 2 * np.stack([np.cos(angle), np.sin(angle)], 1)
    return torch.tensor((circle + 0.02 * rng.standard_normal((n, 2))) / math.sqrt(2))


def state_of(path: Path) -> dict:
    return torch.load(path, weights_only=True)["state"]


def same(a: object, b: object) -> bool:
    """Equal to the bit, seconds apart."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)  # type: ignore[arg-type]
    if isinstance(a, dict):
        return all(same(a[key], b[key]) for key in a if key != "seconds")  # type: ignore[index]
    if isinstance(a, list | tuple):
        return all(same(x, y) for x, y in zip(a, b, strict=True))  # type: ignore[arg-type]
    return a == b


def test_training_beats_the_gaussian_on_two_clusters() -> None:
    settings = WassersteinSettings(
        iterations=250, batch=128, penalty=1.0, momentum=0.5, width=64, critic_width=64, critic_depth=2,
        generator_rate=1e-3, critic_rate=1e-3, calibrate=False,
    )  # fmt: skip
    generator, history = train_wasserstein(bimodal(1000, 0), seed=0, settings=settings, progress=False)
    noise, none = NoiseStream(9, 0, 2000), torch.zeros(2000, 0)
    held_out = bimodal(2000, 1)
    learned = wasserstein_1d(generator(none, noise)[:, 0].double(), held_out[:, 0])
    gaussian = wasserstein_1d(generator.base(none, noise)[:, 0].double(), held_out[:, 0])
    assert learned < 0.5 * gaussian
    assert abs(history["gradient_norm"][-1] - 1) < 0.5


def exact_w1(a: torch.Tensor, b: torch.Tensor) -> float:
    """Wasserstein distance of two equally large samples, by optimal assignment."""
    cost = torch.cdist(a.double(), b.double()).numpy()
    return float(cost[linear_sum_assignment(cost)].mean())


@pytest.mark.slow
def test_training_halves_the_distance_of_the_gaussian_to_eight_clusters() -> None:
    settings = WassersteinSettings(
        iterations=600, batch=128, penalty=0.1, momentum=0.5, generator_rate=1e-3, critic_rate=1e-3,
        critic_depth=2, calibrate=False,
    )  # fmt: skip
    generator, _ = train_wasserstein(rings(2000, 0), seed=0, settings=settings, progress=False)
    noise, none, held_out = NoiseStream(9, 0, 1000), torch.zeros(1000, 0), rings(1000, 1)
    assert exact_w1(generator(none, noise), held_out) < 0.5 * exact_w1(generator.base(none, noise), held_out)


def test_conditional_training_learns_a_shift_of_the_mean() -> None:
    known = torch.tensor(np.random.default_rng(1).uniform(-1, 1, (600, 1)))
    # The mean is a parabola of the condition, which the linear regression of the base cannot follow.
    data = torch.cat((known**2, 0 * known), 1) + 0.1 * torch.tensor(
        np.random.default_rng(2).standard_normal((600, 2))
    )
    settings = WassersteinSettings(
        iterations=250, batch=128, penalty=1.0, momentum=0.5, width=64, critic_width=64, critic_depth=2,
        generator_rate=1e-3, critic_rate=1e-3,
    )  # fmt: skip
    generator, _ = train_wasserstein(data, conditions=known, seed=0, settings=settings, progress=False)
    noise = NoiseStream(9, 0, 1000)
    means = [generator(torch.full((1000, 1), c), noise)[:, 0].mean().item() for c in (-0.8, 0.0, 0.8)]
    base = [generator.base(torch.full((1000, 1), c), noise)[:, 0].mean().item() for c in (-0.8, 0.0, 0.8)]
    exact = (0.64, 0.0, 0.64)
    assert max(abs(m - e) for m, e in zip(means, exact, strict=True)) < 0.15
    assert max(abs(m - e) for m, e in zip(base, exact, strict=True)) > 0.25


def test_untrained_generator_is_the_pod_gaussian() -> None:
    settings = replace(SMALL, iterations=0, calibrate=False)
    generator, history = train_wasserstein(rows(), seed=0, settings=settings, progress=False)
    noise = NoiseStream(1, 0, 50)
    assert torch.equal(generator(torch.zeros(50, 0), noise), generator.base(torch.zeros(50, 0), noise))
    assert history["iteration"] == []


def test_training_is_a_function_of_data_seed_and_settings() -> None:
    first, history = train_wasserstein(rows(), seed=0, settings=SMALL, progress=False)
    again, _ = train_wasserstein(rows(), seed=0, settings=SMALL, progress=False)
    other, _ = train_wasserstein(rows(), seed=1, settings=SMALL, progress=False)
    assert same(first.state_dict(), again.state_dict())
    assert not same(first.state_dict(), other.state_dict())
    assert history["iteration"] == [4, 8, 12]
    assert len({len(column) for column in history.values()}) == 1


def test_weights_change_what_the_critic_looks_at() -> None:
    plain, _ = train_wasserstein(rows(), seed=0, settings=SMALL, progress=False)
    equal, _ = train_wasserstein(
        rows(), weights=torch.full((3,), 7.0), seed=0, settings=SMALL, progress=False
    )
    uneven, _ = train_wasserstein(
        rows(), weights=torch.tensor([3.0, 1, 1]), seed=0, settings=SMALL, progress=False
    )
    assert same(plain.state_dict(), equal.state_dict())
    assert not same(plain.state_dict(), uneven.state_dict())


def test_trained_generator_is_frozen() -> None:
    generator, _ = train_wasserstein(rows(), seed=0, settings=SMALL, progress=False)
    assert not any(p.requires_grad for p in generator.parameters())


LONG = replace(SMALL, iterations=300, checkpoint_every=7)


def test_training_killed_and_resumed_gives_the_same_weights(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole.pt", tmp_path / "broken.pt"
    call = f"train_wasserstein(rows(), seed=0, settings=LONG, checkpoint={str(broken)!r}, progress=False)"
    script = f"from {__name__} import LONG, rows, train_wasserstein; {call}"
    process = subprocess.Popen([sys.executable, "-c", script])
    while not broken.exists():
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 0 < state_of(broken)["iteration"] < 300
    for path in (whole, broken):
        train_wasserstein(rows(), seed=0, settings=LONG, checkpoint=path, progress=False)
    assert same(state_of(whole), state_of(broken))


def test_finished_training_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "gan.pt"
    first, _ = train_wasserstein(rows(), seed=0, settings=SMALL, checkpoint=path, progress=False)
    stamp = path.stat().st_mtime_ns
    again, history = train_wasserstein(rows(), seed=0, settings=SMALL, checkpoint=path, progress=False)
    assert path.stat().st_mtime_ns == stamp
    assert history["iteration"] == [4, 8, 12]
    noise = NoiseStream(1, 0, 50)
    assert torch.equal(first(torch.zeros(50, 0), noise), again(torch.zeros(50, 0), noise))


def written(path: Path, **changes: object) -> Path:
    """A checkpoint of the small training, trained with other arguments."""
    arguments = {"seed": 0, "settings": SMALL, "data": rows()} | changes
    train_wasserstein(arguments.pop("data"), checkpoint=path, progress=False, **arguments)  # type: ignore[arg-type]
    return path


def other_kind(path: Path) -> Path:
    save_checkpoint(path, "fit", {"seed": 0}, {})
    return path


def cut_short(path: Path) -> Path:
    written(path).write_bytes(path.read_bytes()[:1000])
    return path


def some_text(path: Path) -> Path:
    path.write_text("not a checkpoint")
    return path


def some_tensor(path: Path) -> Path:
    torch.save(torch.zeros(3), path)
    return path


UNFIT = [
    (lambda p: written(p, seed=1), r"must belong to this run; .* has seed = 1, not 0"),
    (lambda p: written(p, settings=replace(SMALL, penalty=1.0)), r"has penalty = 1.0, not 10.0"),
    (lambda p: written(p, data=rows(41)), r"has data = '\w{16}', not '\w{16}'"),
    (other_kind, r"must be of a Wasserstein training; .* is of a fit"),
    (cut_short, r"cannot be read"),
    (some_text, r"cannot be read"),
    (some_tensor, r"holds something else"),
]


@pytest.mark.parametrize(("make", "message"), UNFIT)
def test_training_refuses_a_checkpoint(make: Callable[[Path], Path], message: str, tmp_path: Path) -> None:
    path = make(tmp_path / "gan.pt")
    with pytest.raises(ValueError, match=f"`checkpoint` .*{message}"):
        train_wasserstein(rows(), seed=0, settings=SMALL, checkpoint=path, progress=False)


BAD_SETTINGS = [
    ({"iterations": -1}, r"`iterations` must be a whole number of at least 0; got -1"),
    ({"batch": 0}, r"`batch` must be a whole number of at least 1; got 0"),
    ({"batch": 2.5}, r"`batch` must be a whole number"),
    ({"critic_steps": True}, r"`critic_steps` must be a whole number"),
    ({"generator_rate": 0.0}, r"`generator_rate` must be a positive number; got 0.0"),
    ({"critic_rate": math.nan}, r"`critic_rate` must be a positive number; got nan"),
    ({"penalty": -1.0}, r"`penalty` must be a positive number; got -1.0"),
    ({"momentum": 1.0}, r"`momentum` must be below 1; got 1.0"),
    ({"average": 1.5}, r"`average` must be below 1; got 1.5"),
]


@pytest.mark.parametrize(("change", "message"), BAD_SETTINGS)
def test_settings_refuse(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WassersteinSettings(**change)


def test_training_refuses_weights_that_are_not_positive() -> None:
    with pytest.raises(ValueError, match=r"`weights` must be 3 positive numbers"):
        train_wasserstein(rows(), weights=torch.tensor([1.0, 0, 1]), seed=0, settings=SMALL, progress=False)


def test_training_that_diverges_says_so() -> None:
    settings = replace(SMALL, generator_rate=1e30, critic_rate=1e30)
    with pytest.raises(RuntimeError, match=r"diverged before iteration 4.*Lower the learning rates"):
        train_wasserstein(rows(), seed=0, settings=settings, progress=False)


def test_plot_training_shows_gap_and_gradient_norm() -> None:
    pytest.importorskip("matplotlib")
    _, history = train_wasserstein(rows(), seed=0, settings=SMALL, progress=False)
    left, right = plot_training(history).axes
    assert left.lines[0].get_ydata().tolist() == history["critic_gap"]
    assert right.lines[0].get_ydata().tolist() == history["gradient_norm"]
