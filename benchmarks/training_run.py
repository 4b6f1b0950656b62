"""One training as a program of its own, to be started, killed and started again."""

import argparse
import hashlib
from collections.abc import Callable

import torch
from torch import Tensor, nn

from inference.interpolants import FlowSettings, train_flow
from inference.latent_sde import latent_sde
from inference.latent_training import LatentTraining, train_latent
from inference.series import Series
from inference.training import FitSettings
from sde.noise import NoiseStream
from uq.training import WassersteinSettings, train_wasserstein

__all__ = ["TRAININGS", "run_digest"]

Trained = tuple[nn.Module, dict[str, list[float]]]


def _rows() -> Tensor:
    """Points on a noisy ring."""
    normals = NoiseStream(seed=1, start=0, stop=512).normals(4)
    return normals[:, :2] / normals[:, :2].norm(dim=1, keepdim=True) + 0.1 * normals[:, 2:]


def _wasserstein(seed: int, checkpoint: str) -> Trained:
    settings = WassersteinSettings(iterations=400, batch=64, width=32, checkpoint_every=5)
    return train_wasserstein(_rows(), seed=seed, settings=settings, checkpoint=checkpoint, progress=False)


def _flow(seed: int, checkpoint: str) -> Trained:
    settings = FlowSettings(batch=64, width=32, fit=FitSettings(iterations=8000, checkpoint_every=100))
    return train_flow(_rows(), seed=seed, settings=settings, checkpoint=checkpoint, progress=False)


def _latent(seed: int, checkpoint: str) -> Trained:
    times = torch.linspace(0, 1, 9)
    normals = NoiseStream(seed=1, start=0, stop=64).normals(10)
    values = (5 * times + normals[:, :1]).sin() + 0.1 * normals[:, 1:]
    settings = LatentTraining(
        batch=16, annealing=100, fit=FitSettings(iterations=400, log_every=1, checkpoint_every=5)
    )
    return train_latent(
        latent_sde(1, 2, max_step=0.125, seed=seed, width=16),
        Series(times, values[..., None]),
        seed=seed,
        settings=settings,
        checkpoint=checkpoint,
        progress=False,
    )


TRAININGS: dict[str, Callable[[int, str], Trained]] = {
    "WGAN-GP": _wasserstein,
    "flow matching": _flow,
    "latent SDE": _latent,
}
"""Trainings by name: a seed and a checkpoint to what was trained, and its history."""


def run_digest(module: nn.Module, history: dict[str, list[float]]) -> str:
    """Hash of all weights and of every row of the history, but for the seconds, to the last bit."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    for name, column in sorted(history.items()):
        if name != "seconds":
            digest.update(f"{name} {[float(value).hex() for value in column]}".encode())
    return digest.hexdigest()


def main() -> None:
    """Train as the command line says, and print the digest of weights and history."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--training", choices=TRAININGS, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint", required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("ready", flush=True)
    print(f"digest {run_digest(*TRAININGS[options.training](options.seed, options.checkpoint))}", flush=True)


if __name__ == "__main__":
    main()
