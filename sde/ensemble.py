"""Ensembles of SDE paths as a model: inputs and noise to a quantity of interest."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sde.equation import SDE
from sde.grid import make_grid
from sde.noise.stream import NoiseStream
from sde.shapes import check_shapes
from sde.solve import solve
from sde.solvers.euler import EulerMaruyama
from sde.solvers.interface import Solver

__all__ = ["Ensemble"]


@dataclass(frozen=True, slots=True, eq=False)
class Ensemble:
    """An SDE with its solver, grid and quantity of interest: a map from inputs and noise to outputs.

    Row ``i`` of the outputs depends only on row ``i`` of the inputs and on sample ``i`` of the noise,
    whatever the batch. A path that diverges is a row of NaN. Pickles when its functions do (module-level
    functions, not lambdas).

    Args:
        sde: The equation, or a function that makes it of the inputs ``(n, input_dim)``.
        initial: State at ``times[0]``: one for all samples, shape ``shape``, or a function of inputs
            and noise that returns ``(n, *shape)``; it draws with :attr:`Purpose.INITIAL_STATE`.
        times: Strictly increasing instants, shape ``(T,)``.
        qoi: Quantity of interest of paths ``(n, T, *shape)``, shape ``(n, *output_shape)``.
        input_dim: Number of scalar inputs.
        output_shape: Shape of one output.
        solver: One-step method.
        substeps: Equal steps between consecutive ``times``.

    Raises:
        ValueError: If the times, the substeps or a size are out of range.
        TypeError: If a field is of the wrong type.

    Example:
        >>> ou = SDE(drift=lambda t, x: -x, diffusion=lambda t, x: torch.ones_like(x))
        >>> model = Ensemble(ou, torch.zeros(1), torch.linspace(0, 1, 11), qoi=lambda paths: paths[:, -1, 0])
        >>> model(torch.empty(5, 0), NoiseStream(seed=0, start=0, stop=5)).shape
        torch.Size([5])
    """

    sde: SDE | Callable[[Tensor], SDE]
    initial: Tensor | Callable[[Tensor, NoiseStream], Tensor]
    times: Tensor
    qoi: Callable[[Tensor], Tensor]
    input_dim: int = 0
    output_shape: tuple[int, ...] = ()
    solver: Solver = field(default_factory=EulerMaruyama)
    substeps: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.sde, SDE) and not callable(self.sde):
            raise TypeError(
                f"`sde` must be an SDE or a function of the inputs; got {type(self.sde).__name__}."
            )
        if not callable(self.qoi):
            raise TypeError(f"`qoi` must be callable; got {type(self.qoi).__name__}.")
        if isinstance(self.initial, Tensor):
            if self.initial.dim() < 1:
                raise ValueError("`initial` must have at least one axis; got a scalar.")
        elif not callable(self.initial):
            raise TypeError(f"`initial` must be a tensor or callable; got {type(self.initial).__name__}.")
        if not isinstance(self.input_dim, int) or self.input_dim < 0:
            raise ValueError(f"`input_dim` must be an integer of at least 0; got {self.input_dim}.")
        make_grid(self.times, self.substeps)

    def __call__(self, inputs: Tensor, noise: NoiseStream) -> Tensor:
        """Outputs of ``n = len(noise)`` samples.

        Args:
            inputs: Shape ``(n, input_dim)``.
            noise: The samples' randomness.

        Returns:
            Shape ``(n, *output_shape)``.

        Raises:
            ValueError: If a shape is wrong.
        """
        outputs, diverged = self._evaluate(inputs, noise)
        blank = torch.full_like(outputs, float("nan"))
        return torch.where(diverged.view(-1, *(1,) * len(self.output_shape)), blank, outputs)

    def paths(self, inputs: Tensor, noise: NoiseStream) -> Tensor:
        """States at ``times``, shape ``(n, T, *shape)``; a path that diverged is not finite from there on."""
        check_shapes(inputs=(inputs, f"n {self.input_dim}"))
        if len(inputs) != len(noise):
            raise ValueError(
                f"`inputs` must have one row per sample of `noise`, {len(noise)}; got {len(inputs)}."
            )
        equation = self.sde if isinstance(self.sde, SDE) else self.sde(inputs)
        if isinstance(self.initial, Tensor):
            initial = self.initial.expand(len(noise), *self.initial.shape)
        else:
            initial = self.initial(inputs, noise)
        return solve(
            equation,
            initial,
            self.times,
            noise,
            solver=self.solver,
            substeps=self.substeps,
            allow_diverged=True,
        )

    def _evaluate(self, inputs: Tensor, noise: NoiseStream) -> tuple[Tensor, Tensor]:
        """Outputs, and which samples diverged."""
        paths = self.paths(inputs, noise)
        outputs = self.qoi(paths)
        expected = (len(noise), *self.output_shape)
        if tuple(outputs.shape) != expected:
            raise ValueError(f"`qoi` must return shape {expected}; got {tuple(outputs.shape)}.")
        return outputs, ~paths.detach()[:, -1].flatten(1).isfinite().all(1)
