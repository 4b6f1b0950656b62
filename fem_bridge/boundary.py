"""Random boundary conditions of a zone of interest, learned from the traces of full-model runs."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from fem_bridge.traces import TraceCompression
from sde.networks import evaluate_in_blocks
from sde.noise import NoiseStream
from sde.shapes import check_shapes
from uq.model import Model
from uq.training import WassersteinSettings, train_wasserstein

__all__ = ["BoundaryGenerator", "Fit", "WassersteinFit", "train_boundary_generator"]

Fit = Callable[[Tensor, Tensor | None], Model]
"""Fits a generator: whitened coefficients ``(n, q)`` and conditions ``(n, c)`` or ``None`` to a model."""

_BLOCK = 16  # histories decoded at a time: few enough to fit in the cache, many enough for the matrix product


@dataclass(frozen=True, slots=True, eq=False)
class BoundaryGenerator:
    """Random interface histories: a model.

    A generator of whitened mode coefficients, then the linear decoder of a :class:`TraceCompression`.
    The error against the full model has two parts, to be reported apart: that of the compression, which
    :meth:`TraceCompression.errors` measures, and that of the law of the coefficients.

    Attributes:
        compression: The decoder.
        generator: Model of the coefficients: conditions ``(n, c)`` to ``(n, q)``.
        dtype: Dtype of the histories.
        amplitude: Index of the condition that histories are proportional to, which the generator is then
            not given: it generates histories of unit amplitude. Exact for a linear structure that starts at
            rest and the amplitude of its load; ``None`` where there is no such condition.

    Raises:
        ValueError: If the generator does not give one coefficient per mode, or ``amplitude`` is no index.

    Example:
        >>> from uq.baselines import PodGaussian
        >>> traces = NoiseStream(0, 0, 30).normals(9 * 4, dtype=torch.float64).unflatten(1, (9, 4))
        >>> times = torch.linspace(0, 1, 9, dtype=torch.float64)
        >>> compression = TraceCompression.fit(traces, times, stride=2, num_modes=5)
        >>> boundary = train_boundary_generator(compression, traces, PodGaussian)
        >>> boundary(torch.zeros(7, 0), NoiseStream(seed=1, start=0, stop=7)).shape
        torch.Size([7, 9, 4])
    """

    compression: TraceCompression
    generator: Model
    dtype: torch.dtype = torch.float64
    amplitude: int | None = None

    def __post_init__(self) -> None:
        """Check that decoder and generator fit."""
        if self.amplitude is not None and not 0 <= self.amplitude < self.input_dim:
            raise ValueError(
                f"`amplitude` must be the index of one of {self.input_dim} conditions; got {self.amplitude}."
            )
        if tuple(self.generator.output_shape) != (self.compression.num_modes,):
            raise ValueError(
                f"`generator` must give {self.compression.num_modes} coefficients, one per mode; "
                f"it gives {tuple(self.generator.output_shape)}."
            )

    @property
    def input_dim(self) -> int:
        """Number of conditions."""
        return self.generator.input_dim + (self.amplitude is not None)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Instants and interface degrees of freedom ``(T, D)``."""
        return (len(self.compression.time.times), self.compression.mean.shape[-1])

    def __call__(self, inputs: Tensor, noise: NoiseStream) -> Tensor:
        """Histories ``(n, T, D)`` for conditions ``(n, input_dim)``."""
        coefficients = self.coefficients(inputs, noise).to(self.dtype)
        histories = evaluate_in_blocks(self.compression.decode, noise, coefficients, block=_BLOCK)
        if self.amplitude is None:
            return histories
        return histories * inputs[:, self.amplitude].to(histories)[:, None, None]

    def coefficients(self, inputs: Tensor, noise: NoiseStream) -> Tensor:
        """Whitened coefficients ``(n, q)`` of the histories, at unit amplitude."""
        check_shapes(inputs=(inputs, f"{len(noise)} {self.input_dim}"))
        return self.generator(_others(inputs, self.amplitude), noise)

    def unit(self, traces: Tensor, inputs: Tensor) -> Tensor:
        """Histories ``(n, T, D)`` of full-model runs, brought to unit amplitude where there is one."""
        return _unit(traces, inputs, self.amplitude)


@dataclass(frozen=True, slots=True)
class WassersteinFit:
    """Fit of a WGAN-GP to whitened coefficients, for :func:`train_boundary_generator`.

    Attributes:
        seed: Seed of everything random in the training.
        settings: Network sizes and optimisation.
        weights: Weight of each coefficient in the critic's metric, shape ``(q,)``. The ``scales`` of the
            compression make distances those of the histories, so that the critic looks at the modes that
            carry the motion; ``None`` gives all modes the same weight.
        checkpoint: File to resume from, or ``None``.
        progress: Show a bar.
        history: Filled with the training's diagnostics.
    """

    seed: int
    settings: WassersteinSettings = field(default_factory=WassersteinSettings)
    weights: Tensor | None = field(default=None, compare=False)
    checkpoint: Path | str | None = None
    progress: bool = True
    history: dict[str, list[float]] = field(default_factory=dict, compare=False)

    def __call__(self, coefficients: Tensor, conditions: Tensor | None = None) -> Model:
        """Train on coefficients ``(n, q)`` and conditions ``(n, c)``."""
        generator, history = train_wasserstein(
            coefficients,
            conditions=conditions,
            weights=self.weights,
            seed=self.seed,
            settings=self.settings,
            checkpoint=self.checkpoint,
            progress=self.progress,
            device=coefficients.device,
        )
        self.history.update(history)
        return generator


def train_boundary_generator(
    compression: TraceCompression,
    traces: Tensor,
    fit: Fit,
    *,
    conditions: Tensor | None = None,
    amplitude: int | None = None,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> BoundaryGenerator:
    """Fit a generator to the compressed interface histories of full-model runs.

    A conditional generator needs the law of its conditions only when it is used: where the law of the load is
    known, it reaches the histories exactly, and the training runs only have to show how histories follow from
    loads. An unconditional one can be no better than the sample of loads it was trained on.

    Args:
        compression: What turns histories into coefficients and back; with ``amplitude``, fitted to histories
            of unit amplitude.
        traces: Interface histories of full-model runs, shape ``(n, T, D)``.
        fit: What fits the law of the coefficients: :class:`WassersteinFit`, ``PodGaussian``, ``Bootstrap``,
            or any callable with their signature.
        conditions: Load parameters of the runs, shape ``(n, c)``, for a conditional generator; ``None`` for
            one that draws from the law of all runs.
        amplitude: Index of the condition that histories are proportional to; see :class:`BoundaryGenerator`.
        dtype: Dtype of the generated histories.
        device: Where to train.

    Returns:
        The generator of histories.

    Raises:
        ValueError: If shapes disagree, or there is an amplitude and no conditions.
    """
    if conditions is None:
        if amplitude is not None:
            raise ValueError(f"`amplitude` must be None without conditions; got {amplitude}.")
        coefficients, known = compression.encode(traces), None
    else:
        check_shapes(traces=(traces, "n T D"), conditions=(conditions, "n c"))
        coefficients = compression.encode(_unit(traces, conditions, amplitude))
        known = _others(conditions, amplitude).float().to(device)
    return BoundaryGenerator(compression, fit(coefficients.float().to(device), known), dtype, amplitude)


def _unit(traces: Tensor, conditions: Tensor, amplitude: int | None) -> Tensor:
    """Histories over their amplitude."""
    if amplitude is None:
        return traces
    size = conditions[:, amplitude].to(traces)
    if not bool((size != 0).all()):
        raise ValueError("`conditions` must hold amplitudes other than 0; got 0 in some rows.")
    return traces / size[:, None, None]


def _others(conditions: Tensor, amplitude: int | None) -> Tensor:
    """The conditions other than the amplitude."""
    if amplitude is None:
        return conditions
    return torch.cat((conditions[:, :amplitude], conditions[:, amplitude + 1 :]), 1)
