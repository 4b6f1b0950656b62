"""What `test_training` starts under torchrun: trainings that it compares with those of one process."""

import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from inference.decay import NoDecay
from inference.interpolants import FlowSettings, Kind, Matching, OneSided, independent, train_flow
from inference.latent_sde import latent_sde
from inference.latent_training import LatentTraining, train_latent
from inference.processes import Processes, Share, Torchrun
from inference.reference_problems import Mixture
from inference.series import Series
from inference.training import FitSettings, fit
from sde import NoiseStream
from sde.networks import perceptron

__all__ = ["latent", "matching", "numbers"]

_SETTINGS = FitSettings(iterations=12, log_every=3, checkpoint_every=5, clip=1.0, warmup=3, decay=NoDecay())


class _Field(nn.Module):
    """A small network of the point."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = perceptron((1, 4, 1), seed=0, dtype=torch.float64)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.layers(x)


def latent(processes: Processes, folder: Path, settings: FitSettings = _SETTINGS) -> dict[str, list[float]]:
    """History of a latent equation, validated, logged and resumed."""
    normals = NoiseStream(2, 0, 12).normals(5, channels=1, dtype=torch.float64)
    series = Series(torch.tensor([0.0, 0.2, 0.3, 0.7, 1.0]), normals.cumsum(1))
    model = latent_sde(1, 2, max_step=0.2, seed=3, width=8, dtype=torch.float64)
    return train_latent(
        model,
        series,
        seed=0,
        settings=LatentTraining(batch=4, paths=2, annealing=6, fit=settings),
        validation=series.select(slice(3)),
        checkpoint=folder / "latent.pt",
        log=folder / "log.csv",
        processes=processes,
        progress=False,
    )[1]


def matching(processes: Processes, share: Share) -> list[float]:
    """Losses of a field of an interpolant."""
    sample = Mixture.standard(1).sample
    loss = Matching(OneSided(), Kind.VELOCITY, independent(sample, sample), batch=8, seed=0, share=share)
    _, history = fit(_Field(), loss, settings=_SETTINGS, identity={}, processes=processes, progress=False)
    return history["loss"]


def numbers(processes: Processes, folder: Path) -> dict[str, Tensor]:
    """Curves of a latent equation, a flow and an interpolant."""
    history = latent(processes, folder)
    rows = NoiseStream(1, 0, 40).normals(3, dtype=torch.float64)
    settings = FlowSettings(batch=16, width=8, depth=2, fit=_SETTINGS)
    flow = train_flow(
        rows, seed=0, settings=settings, processes=processes, progress=False, dtype=torch.float64
    )[1]
    curves = {"latent": history["loss"], "validation": history["validation"], "flow": flow["loss"]}
    curves |= {"matching": matching(processes, processes.share)}
    return {name: torch.tensor(curve, dtype=torch.float64) for name, curve in curves.items()}


class _Interrupted(RuntimeError):
    """Stands for a failure of the machine."""


class _Failing(Torchrun):
    """Processes of which one fails at the second row of the history, after a checkpoint."""

    calls = 0

    def mean(self, value: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == 5:  # loss and validation of two rows before
            raise _Interrupted
        return super().mean(value)


def main(folder: Path) -> None:
    """Write the numbers of this process."""
    processes = Torchrun(accelerator="cpu")
    found = numbers(processes, folder)
    (folder / "half").mkdir(exist_ok=True)
    for how in (_Failing(accelerator="cpu"), processes):
        try:
            found["resumed"] = torch.tensor(latent(how, folder / "half")["loss"], dtype=torch.float64)
        except _Interrupted:
            if not (folder / "half" / "latent.pt").exists() and how.share.rank == 0:
                raise
    refusals = []
    for refused in (
        lambda: latent(processes, folder, replace(_SETTINGS, iterations=13)),
        lambda: processes.share.of(7),
    ):
        try:
            refused()
        except ValueError as error:
            refusals.append(str(error))
    torch.save(found | {"refusals": refusals}, folder / f"numbers_{processes.share.rank}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
