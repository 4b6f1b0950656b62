"""The full model of an impact problem: a model, and the source of an ensemble of runs."""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from enum import Enum

import torch
from torch import Tensor

from fem_bridge.assembly import Assembler, default_assembler
from fem_bridge.dynamics import CentralDifference, Integrator, simulate, substeps_for
from fem_bridge.problems.elastodynamics import AssembledImpact, ImpactProblem, assemble
from sde.noise import NoiseStream
from sde.shapes import check_shapes
from uq.inputs import Inputs

__all__ = ["FullModel", "ImpactRuns", "Output"]

_BATCH = 32  # samples stepped together: measured fastest per sample, and a bounded memory


class Output(Enum):
    """What a model of the impact returns for a sample."""

    RESPONSES = "responses"  #: the quantities of interest, shape ``(K,)``
    TRACES = "traces"  #: interface histories [m], shape ``(T, D)``
    ZONE = "zone"  #: displacement histories of the zone [m], shape ``(T, 2 N_sub)``

    def shape(self, assembled: AssembledImpact) -> tuple[int, ...]:
        """Shape of one output."""
        if self is Output.RESPONSES:
            return (len(assembled.response.names),)
        zone = assembled.zone
        dofs = len(zone.interface_dofs) if self is Output.TRACES else zone.mesh.num_dofs
        return (assembled.problem.num_steps + 1, dofs)


@dataclass(frozen=True, slots=True, eq=False)
class ImpactRuns:
    """Full-model runs of a batch.

    Attributes:
        zone: Displacement histories of the zone [m], shape ``(n, T, 2 N_sub)``.
        traces: Those of the interface, shape ``(n, T, D)``.
        responses: Quantities of interest, shape ``(n, K)``.
        substeps: Steps taken between output instants, shape ``(n,)``.
    """

    zone: Tensor
    traces: Tensor
    responses: Tensor
    substeps: Tensor


@dataclass(frozen=True)
class FullModel:
    """The full finite-element model of an impact problem: a model, and the source of an ensemble.

    Inputs are the place [m], amplitude [Pa] and duration [s] of the impact; the material is noise (purpose
    ``FIELD``). An explicit integrator takes as many steps between output instants as each sample's material
    needs to be stable. It pickles as its fields: workers assemble once each.

    Attributes:
        problem: The problem.
        assembler: The finite-element code; DOLFINx where it is installed, else scikit-fem.
        output: What is returned.
        integrator: Time integration scheme.
        dtype: Dtype of the time stepping.
        device: Where the time stepping runs.

    Example:
        >>> from fem_bridge.assembly.skfem import SkfemAssembler
        >>> problem = ImpactProblem(divisions=(20, 10), num_steps=8, correlation_length=1.0)
        >>> model, noise = FullModel(problem, SkfemAssembler()), NoiseStream(seed=0, start=0, stop=2)
        >>> model(problem.draw(noise), noise).shape
        torch.Size([2, 4])
    """

    problem: ImpactProblem
    assembler: Assembler = field(default_factory=default_assembler)
    output: Output = Output.RESPONSES
    integrator: Integrator = CentralDifference()  # noqa: RUF009 - frozen
    dtype: torch.dtype = torch.float64
    device: str = "cpu"

    @property
    def assembled(self) -> AssembledImpact:
        """Meshes, operators and the random field."""
        return assemble(self.problem, self.assembler, self.dtype, torch.device(self.device))

    @property
    def inputs(self) -> Inputs:
        """The random inputs: names, laws and units."""
        return self.problem.inputs

    @property
    def input_dim(self) -> int:
        """Number of inputs."""
        return 3

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

    @property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that tell this model from others."""
        record = json.dumps([self.describe(), self.output.value], sort_keys=True)
        return hashlib.sha256(record.encode()).hexdigest()[:12]

    def __call__(self, inputs: Tensor, noise: NoiseStream) -> Tensor:
        """Run ``n`` samples: inputs ``(n, 3)`` to ``(n, *output_shape)``; a diverged sample is NaN."""
        return getattr(self.run(inputs, noise), self.output.value)

    def run(self, inputs: Tensor, noise: NoiseStream, modulus: Tensor | None = None) -> ImpactRuns:
        """Run ``n`` samples and return all that is observed.

        Args:
            inputs: Place [m], amplitude [Pa] and duration [s] of each impact, shape ``(n, 3)``.
            noise: The samples.
            modulus: Young's moduli [Pa], shape ``(n, C)``, in place of those that the noise says.

        Returns:
            Histories, quantities of interest and sub-step counts.

        Raises:
            ValueError: If a shape is wrong, an input is not finite or a duration is not positive.
        """
        check_shapes(inputs=(inputs, f"{len(noise)} 3"))
        if not bool(inputs.isfinite().all()):
            row = int((~inputs.isfinite()).any(1).nonzero()[0, 0])
            raise ValueError(f"`inputs` must be finite; row {row} is {inputs[row].tolist()}.")
        moduli = self.assembled.modulus(noise) if modulus is None else modulus
        rows = [slice(first, first + _BATCH) for first in range(0, len(inputs), _BATCH)]
        parts = [self._run(inputs[part], moduli[part]) for part in rows]
        if not parts:
            shapes = (Output.ZONE, Output.TRACES, Output.RESPONSES)
            empty = (torch.zeros(0, *kind.shape(self.assembled), dtype=self.dtype) for kind in shapes)
            return ImpactRuns(*empty, substeps=torch.zeros(0, dtype=torch.int64))
        names = ("zone", "traces", "responses", "substeps")
        return ImpactRuns(*(torch.cat([getattr(part, name) for part in parts]) for name in names))

    def _run(self, inputs: Tensor, modulus: Tensor) -> ImpactRuns:
        """Run a batch that fits in memory."""
        parts = self.assembled
        substeps = torch.ones(len(inputs), dtype=torch.int64)
        if self.integrator.explicit:
            substeps = substeps_for(parts.system, modulus, self.problem.time_step)
        trajectory = simulate(
            parts.system,
            modulus=modulus,
            times=self.problem.times,
            integrator=self.integrator,
            load=parts.load(inputs),
            substeps=substeps,
            observe=torch.from_numpy(parts.zone.parent_dofs),
            check_stability=False,
        )
        zone = trajectory.displacement
        traces = zone[:, :, torch.from_numpy(parts.zone.interface_dofs).to(zone.device)]
        return ImpactRuns(zone, traces, parts.response(zone), substeps)

    def draw(self, noise: NoiseStream) -> Tensor:
        """Random inputs of samples, shape ``(n, 3)``."""
        return self.problem.draw(noise)

    def record(self, inputs: Tensor, noise: NoiseStream) -> dict[str, Tensor]:
        """Runs for an ensemble: traces (float32), responses and sub-step counts."""
        runs = self.run(inputs, noise)
        return {"traces": runs.traces.float(), "responses": runs.responses, "substeps": runs.substeps.int()}

    def describe(self) -> dict[str, object]:
        """Problem, assembler, and the names and units of the records."""
        response, inputs = self.assembled.response, self.inputs
        return {
            "problem": asdict(self.problem),
            "assembler": self.assembler.name,
            "integrator": type(self.integrator).__name__,
            "dtype": str(self.dtype),
            "inputs": dict(zip(inputs.names, inputs.units, strict=True)),
            "traces": {"unit": "m", "dofs": "2 * interface node + component"},
            "responses": dict(zip(response.names, response.units, strict=True)),
        }
