"""One training as a program of its own, to be started, killed and started again."""

import argparse
import hashlib
from collections.abc import Callable

import torch
from torch import Tensor, nn

from inference.interpolants import FlowSettings, train_flow
from inference.training import FitSettings
from sde.noise import NoiseStream
from uq.training import WassersteinSettings, train_wasserstein

__all__ = ["TRAININGS", "weights_digest"]


def _rows() -> Tensor:
    """Points on a noisy ring."""
    normals = NoiseStream(seed=1, start=0, stop=512).normals(4)
    return normals[:, :2] / normals[:, :2].norm(dim=1, keepdim=True) + 0.1 * normals[:, 2:]


def _wasserstein(seed: int, checkpoint: str) -> nn.Module:
    settings = WassersteinSettings(iterations=400, batch=64, width=32, checkpoint_every=5)
    return train_wasserstein(_rows(), seed=seed, settings=settings, checkpoint=checkpoint, progress=False)[0]


def _flow(seed: int, checkpoint: str) -> nn.Module:
    settings = FlowSettings(batch=64, width=32, fit=FitSettings(iterations=8000, checkpoint_every=100))
    return train_flow(_rows(), seed=seed, settings=settings, checkpoint=checkpoint, progress=False)[0]


TRAININGS: dict[str, Callable[[int, str], nn.Module]] = {"WGAN-GP": _wasserstein, "flow matching": _flow}
"""Trainings by name: a seed and a checkpoint to the trained sampler."""


def weights_digest(module: nn.Module) -> str:
    """SHA-256 of all weights, in hexadecimal."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def main() -> None:
    """Train as the command line says, and print the digest of the weights."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--training", choices=TRAININGS, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint", required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("ready", flush=True)
    print(
        f"digest {weights_digest(TRAININGS[options.training](options.seed, options.checkpoint))}", flush=True
    )


if __name__ == "__main__":
    main()
