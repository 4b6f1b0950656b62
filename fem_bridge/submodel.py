"""The submodel: the zone of interest alone, driven on its interface."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from fem_bridge.assembly import Assembler, default_assembler
from fem_bridge.dynamics import CentralDifference, Integrator, simulate
from fem_bridge.problems.elastodynamics import AssembledImpact, ImpactProblem, assemble
from fem_bridge.problems.full_model import Output
from sde.noise import NoiseStream
from sde.shapes import check_shapes
from uq.model import Model

__all__ = ["Submodel"]

_BATCH = 32  # samples stepped together: bounded memory, no gain per sample beyond


@dataclass(frozen=True, eq=False)
class Submodel:
    """The zone of interest alone, driven on its interface by given or generated histories: a model.

    With the interface histories of a full run it gives that run's zone to rounding, provided that the zone
    has the same material and the steps in time are the same. With a
    :class:`~fem_bridge.boundary.BoundaryGenerator` it is the cheap simulator of Monte Carlo. The inputs are
    those of the generator.

    Attributes:
        problem: The problem.
        boundary: Model of interface histories [m]: inputs to ``(n, T, D)``.
        assembler: The finite-element code; DOLFINx where it is installed, else scikit-fem.
        output: What is returned.
        integrator: Time integration scheme.
        dtype: Dtype of the time stepping.
        device: Where the time stepping runs.

    Raises:
        ValueError: If the histories do not fit the interface.
    """

    problem: ImpactProblem
    boundary: Model
    assembler: Assembler = field(default_factory=default_assembler)
    output: Output = Output.RESPONSES
    integrator: Integrator = CentralDifference()  # noqa: RUF009 - frozen
    dtype: torch.dtype = torch.float64
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Check that the histories fit the interface."""
        expected = Output.TRACES.shape(self.assembled)
        if tuple(self.boundary.output_shape) != expected:
            raise ValueError(
                f"`boundary` must give histories of shape {expected}, instants by interface degrees of "
                f"freedom; it gives {tuple(self.boundary.output_shape)}."
            )

    @property
    def assembled(self) -> AssembledImpact:
        """Meshes and operators."""
        return assemble(self.problem, self.assembler, self.dtype, torch.device(self.device))

    @property
    def input_dim(self) -> int:
        """Number of inputs, those of the generator of histories."""
        return self.boundary.input_dim

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of one output."""
        return self.output.shape(self.assembled)

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the quantities of interest; empty where histories are returned."""
        return self.assembled.response.names if self.output is Output.RESPONSES else ()

    @property
    def output_units(self) -> tuple[str, ...]:
        """Units of the quantities of interest; empty where histories are returned."""
        return self.assembled.response.units if self.output is Output.RESPONSES else ()

    def __call__(self, inputs: Tensor, noise: NoiseStream) -> Tensor:
        """Run ``n`` samples: inputs ``(n, input_dim)`` to ``(n, *output_shape)``."""
        check_shapes(inputs=(inputs, f"{len(noise)} {self.input_dim}"))
        rows = range(0, len(noise), _BATCH)
        parts = [self._run(inputs[a : a + _BATCH], noise[a : a + _BATCH]) for a in rows]
        return torch.cat(parts) if parts else torch.zeros(0, *self.output_shape, dtype=self.dtype)

    def respond(self, traces: Tensor, modulus: Tensor | None = None) -> Tensor:
        """Quantities of interest ``(n, K)`` for interface histories ``(n, T, D)``; differentiable."""
        certain = self.assembled.zone_modulus(NoiseStream(0, 0, len(traces))) if modulus is None else modulus
        return self.assembled.response(self.drive(traces, certain))

    def drive(self, traces: Tensor, modulus: Tensor, substeps: int | Tensor = 1) -> Tensor:
        """Step the zone.

        Args:
            traces: Interface histories [m], shape ``(n, T, D)``.
            modulus: Young's moduli of the zone [Pa], shape ``(n, C_sub)``, or ``(C_sub,)`` for all.
            substeps: Steps between output instants, one number or one per sample.

        Returns:
            Displacement histories of the zone [m], shape ``(n, T, 2 N_sub)``.
        """
        parts = self.assembled
        trajectory = simulate(
            parts.zone_system,
            modulus=modulus,
            times=self.problem.times,
            integrator=self.integrator,
            motion=traces.to(parts.device, parts.dtype),
            substeps=substeps,
            check_stability=False,
        )
        return trajectory.displacement

    def _run(self, inputs: Tensor, noise: NoiseStream) -> Tensor:
        """Run a batch that fits in memory."""
        traces = self.boundary(inputs, noise)
        if self.output is Output.TRACES:
            return traces
        zone = self.drive(traces, self.assembled.zone_modulus(noise))
        return zone if self.output is Output.ZONE else self.assembled.response(zone)
