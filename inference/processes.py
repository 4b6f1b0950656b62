"""The processes that share a training, one for each device, and what each of them computes."""

import os
from dataclasses import dataclass
from typing import Protocol, TypeVar, cast

import torch
from torch import Tensor, nn

__all__ = ["OneProcess", "Processes", "Share", "Torchrun"]

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Share:
    """The part of every batch that one of several processes computes.

    Because every sample has its address, the shares of the processes are together the very batch of one.

    Attributes:
        rank: Number of the process, from 0.
        size: Number of processes.

    Raises:
        ValueError: If there is no such process.

    Example:
        >>> Share(1, 4).of(12)
        slice(3, 6, None)
    """

    rank: int = 0
    size: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.size:
            raise ValueError(f"`rank` must lie in [0, `size`); got {self.rank} and {self.size}.")

    def of(self, count: int) -> slice:
        """The rows of this process among those of a batch.

        Args:
            count: Rows of the batch; a multiple of the processes, so that the mean over the processes of a
                mean over rows is the mean over all rows.

        Raises:
            ValueError: If it is none.
        """
        if count % self.size:
            raise ValueError(f"`batch` must be a multiple of the {self.size} processes; got {count}.")
        each = count // self.size
        return slice(self.rank * each, (self.rank + 1) * each)


class Processes(Protocol):
    """The processes of a training, as one of them sees them."""

    @property
    def share(self) -> Share:
        """What this process computes; that of rank 0 writes files and shows the bar."""
        ...

    def prepare(self, objective: nn.Module, /) -> nn.Module:
        """The objective as a module whose backward pass leaves the mean gradient in every process."""
        ...

    def mean(self, value: Tensor, /) -> Tensor:
        """The mean over the processes, the same bits in all."""
        ...

    def broadcast(self, value: _T, /) -> _T:
        """What the process of rank 0 has."""
        ...


@dataclass(frozen=True, slots=True)
class OneProcess:
    """No other process.

    Example:
        >>> OneProcess().share.of(8)
        slice(0, 8, None)
    """

    share: Share = Share()

    def prepare(self, objective: nn.Module) -> nn.Module:
        """The objective itself."""
        return objective

    def mean(self, value: Tensor) -> Tensor:
        """The value itself."""
        return value

    def broadcast(self, value: _T) -> _T:
        """The value itself."""
        return value


class Torchrun:
    """The processes that ``torchrun`` started, by Lightning Fabric: one for each GPU, or on CPUs.

    Models and data belong on :attr:`device`. Make it once in a program, and hand it to every training.

    Args:
        accelerator: Name of a kind of device in Lightning Fabric; ``"auto"`` takes GPUs where there are some.

    Raises:
        RuntimeError: If ``torchrun`` did not start this process.
        ImportError: If Lightning Fabric is not installed.

    Example:
        A program for ``torchrun --nproc-per-node 4``::

            processes = Torchrun()
            model.to(processes.device)
            train_latent(model, series, seed=0, processes=processes)

    References:
        Li et al. (2020), PyTorch distributed: experiences on accelerating data parallel training.
        arXiv:2006.15704
    """

    def __init__(self, *, accelerator: str = "auto") -> None:
        if "LOCAL_WORLD_SIZE" not in os.environ:
            raise RuntimeError(
                "`Torchrun` must be made in a process of torchrun. Start the program with "
                "`torchrun --nproc-per-node N ...`, or take OneProcess()."
            )
        try:
            from lightning_fabric import Fabric
        except ImportError as error:
            raise ImportError(
                "Several processes need Lightning Fabric. Install it with pip install 'sdeuq[train]'."
            ) from error
        local, total = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
        self._fabric = Fabric(
            accelerator=accelerator, strategy="ddp", devices=local, num_nodes=total // local
        )
        self._fabric.launch()

    @property
    def share(self) -> Share:
        """What this process computes."""
        return Share(self._fabric.global_rank, self._fabric.world_size)

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        return self._fabric.device

    def prepare(self, objective: nn.Module) -> nn.Module:
        """The objective in the wrapper that averages gradients; every parameter must take part in it."""
        return self._fabric.setup_module(objective)

    def mean(self, value: Tensor) -> Tensor:
        """The mean over the processes."""
        return cast(Tensor, self._fabric.all_reduce(value.to(self.device), reduce_op="mean")).to(value.device)

    def broadcast(self, value: _T) -> _T:
        """What the process of rank 0 has."""
        return self._fabric.broadcast(value)
