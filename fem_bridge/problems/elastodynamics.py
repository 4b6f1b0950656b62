"""Impact on a plane-strain rectangle of random Young's modulus, with a zone of interest."""

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.distributions import LogNormal, Uniform

from fem_bridge.assembly import Assembler, ElasticOperators, Mesh, rectangle
from fem_bridge.dynamics import ElasticSystem, SeparableLoad, SineSquaredPulse
from fem_bridge.traces import TraceSpace
from fem_bridge.zones import Zone, ZoneResponse, cut_zone
from sde.noise import NoiseStream, Purpose
from uq.inputs import Input, Inputs
from uq.random_fields import Coefficients, KarhunenLoeve, Lognormal, SquaredExponential, Windowed, box_window

__all__ = ["AssembledImpact", "ImpactProblem", "assemble"]


@dataclass(frozen=True, slots=True)
class ImpactProblem:
    r"""Impact on the left side of a rectangle clamped on the right, with a zone of interest at the free top.

    The traction on the left side acts along x,

    .. math:: A \exp\bigl(-((y - y_0) / w)^2\bigr) \sin^2(\pi t / T_0), \quad 0 \le t \le T_0,

    with random place :math:`y_0` (uniform), amplitude :math:`A` (lognormal of median ``amplitude``) and
    duration :math:`T_0` (uniform). Young's modulus is a lognormal field of squared-exponential correlation; a
    smooth window makes it certain in the zone (width 0 leaves it random everywhere). With a certain zone,
    interface histories carry all the randomness that reaches it; without, they depend on the zone's own
    material, and a generator of histories alone is wrong by as much as two materials differ.

    Attributes:
        divisions: Squares along each axis; each is cut into four triangles.
        size: Sides of the rectangle [m].
        zone_lower: Least corner of the zone [m].
        zone_upper: Greatest corner of the zone [m].
        modulus: Mean of Young's modulus [Pa].
        modulus_cov: Coefficient of variation of Young's modulus.
        correlation_length: Correlation length of its logarithm [m].
        window_width: Distance over which the modulus becomes random outside the zone [m]; 0 for no window.
        field_energy: Share of the field's variance that its modes hold.
        poisson: Poisson's ratio.
        density: Mass per volume [kg/m^3].
        load_place: Bounds of the place ``y_0`` [m].
        load_width: Width ``w`` of the traction [m].
        load_duration: Bounds of the duration ``T_0`` [s].
        amplitude: Median of the amplitude ``A`` [Pa].
        amplitude_spread: Standard deviation of the logarithm of the amplitude.
        time_step: Interval between output instants [s].
        num_steps: Number of intervals.
        points: Where peak displacements are asked for [m].

    Example:
        >>> ImpactProblem.easy().times[[0, 1, -1]]
        tensor([0.0000, 0.0063, 2.5000], dtype=torch.float64)
        >>> ImpactProblem.hard(divisions=(120, 60)).load_width
        0.08
    """

    divisions: tuple[int, int] = (60, 30)
    size: tuple[float, float] = (2.0, 1.0)
    zone_lower: tuple[float, float] = (1.0, 0.5)
    zone_upper: tuple[float, float] = (1.6, 1.0)
    modulus: float = 1.0
    modulus_cov: float = 0.2
    correlation_length: float = 0.5
    window_width: float = 0.2
    field_energy: float = 0.999
    poisson: float = 0.3
    density: float = 1.0
    load_place: tuple[float, float] = (0.2, 0.8)
    load_width: float = 0.15
    load_duration: tuple[float, float] = (0.35, 0.55)
    amplitude: float = 1.0
    amplitude_spread: float = 0.2
    time_step: float = 6.25e-3
    num_steps: int = 400
    points: tuple[tuple[float, float], ...] = ((1.1, 0.6), (1.3, 0.8), (1.5, 1.0))

    @classmethod
    def easy(cls, *, divisions: tuple[int, int] = (60, 30)) -> "ImpactProblem":
        """Long pulses on a wide patch, a smooth and moderately random medium."""
        return cls(divisions=divisions)

    @classmethod
    def hard(cls, *, divisions: tuple[int, int] = (60, 30)) -> "ImpactProblem":
        """Short pulses on a narrow patch, a rough and more random medium."""
        return cls(
            divisions=divisions,
            modulus_cov=0.3,
            correlation_length=0.25,
            load_width=0.08,
            load_duration=(0.1, 0.25),
        )

    @property
    def times(self) -> Tensor:
        """Output instants [s], shape ``(num_steps + 1,)``, float64."""
        return torch.arange(self.num_steps + 1, dtype=torch.float64) * self.time_step

    @property
    def inputs(self) -> Inputs:
        """Random place, amplitude and duration of the impact."""
        place, duration = (_bounds(pair) for pair in (self.load_place, self.load_duration))
        spread = torch.tensor(self.amplitude_spread, dtype=torch.float64)
        amplitude = LogNormal(torch.tensor(self.amplitude, dtype=torch.float64).log(), spread)
        return Inputs(
            [
                Input("y0", Uniform(*place), "m"),
                Input("A", amplitude, "Pa"),
                Input("T0", Uniform(*duration), "s"),
            ]
        )

    def draw(self, noise: NoiseStream) -> Tensor:
        """Random inputs of samples, shape ``(n, 3)``, float64: those of the iid design of the same seed."""
        return self.inputs.transform(noise.uniforms(3, purpose=Purpose.INPUTS, dtype=torch.float64))

    def mesh(self) -> Mesh:
        """The mesh of the whole rectangle."""
        return rectangle((0.0, 0.0), self.size, divisions=self.divisions)


class AssembledImpact:
    """An impact problem with all that does not depend on the sample: meshes, operators, the random field.

    Each part is made when it is first asked for. Use :func:`assemble`, which keeps the last few.

    Args:
        problem: The problem.
        assembler: The finite-element code.
        dtype: Dtype of the time stepping.
        device: Where the time stepping runs.
    """

    def __init__(
        self, problem: ImpactProblem, assembler: Assembler, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.problem, self.assembler, self.dtype, self.device = problem, assembler, dtype, device

    @cached_property
    def zone(self) -> Zone:
        """The zone of interest, its interface, and the whole mesh as its parent."""
        return cut_zone(self.problem.mesh(), self.problem.zone_lower, self.problem.zone_upper)

    @cached_property
    def operators(self) -> ElasticOperators:
        """Operators of the whole mesh."""
        return self._elastic(self.zone.parent)

    @cached_property
    def zone_operators(self) -> ElasticOperators:
        """Operators of the zone, assembled on its own mesh."""
        return self._elastic(self.zone.mesh)

    @cached_property
    def system(self) -> ElasticSystem:
        """The full model: clamped on the right."""
        return ElasticSystem.from_operators(
            self.operators, fixed=("right",), dtype=self.dtype, device=self.device
        )

    @cached_property
    def zone_system(self) -> ElasticSystem:
        """The submodel: driven on the interface."""
        return ElasticSystem.from_operators(
            self.zone_operators, driven=self.zone.interface_dofs, dtype=self.dtype, device=self.device
        )

    @cached_property
    def modulus_field(self) -> Lognormal:
        """The random Young's modulus of the cells, on the device of the stepping in float64."""
        problem, mesh = self.problem, self.zone.parent
        centroids = torch.from_numpy(mesh.centroids)
        gaussian = KarhunenLoeve.from_covariance(
            SquaredExponential(problem.correlation_length),
            centroids,
            torch.from_numpy(mesh.areas),
            coefficients=Coefficients.NOISE,
            energy=problem.field_energy,
            restore_variance=True,
        )
        field: KarhunenLoeve | Windowed = gaussian.to(self.device, torch.float64)
        if problem.window_width > 0:
            window = box_window(centroids, problem.zone_lower, problem.zone_upper, problem.window_width)
            field = Windowed(field, window.to(self.device))
        return Lognormal(field, problem.modulus, problem.modulus_cov)

    @cached_property
    def response(self) -> ZoneResponse:
        """The quantities of interest of the zone."""
        return ZoneResponse(self.zone.mesh, self.problem.points)

    @property
    def trace_space(self) -> TraceSpace:
        """Where and when the interface histories live."""
        return TraceSpace(self.problem.times, torch.from_numpy(self.zone.points.copy()), unit="m")

    def modulus(self, noise: NoiseStream) -> Tensor:
        """Young's moduli of the whole mesh, shape ``(n, C)``."""
        field, nothing = self.modulus_field, torch.zeros(len(noise), 0, device=self.device)
        return field(nothing, noise).to(self.dtype)

    def zone_modulus(self, noise: NoiseStream) -> Tensor:
        """Young's moduli of the zone: ``(C_sub,)`` where they are certain, else ``(n, C_sub)``."""
        if self.problem.window_width > 0:
            cells = self.zone.mesh.num_cells
            return torch.full((cells,), self.problem.modulus, dtype=self.dtype, device=self.device)
        return self.modulus(noise)[:, torch.from_numpy(self.zone.sub.cells).to(self.device)]

    def load(self, inputs: Tensor) -> SeparableLoad:
        """The impact for inputs ``(n, 3)``."""
        place, amplitude, duration = inputs.to(self.device, torch.float64).unbind(1)
        mesh, problem = self.zone.parent, self.problem
        nodes = torch.from_numpy(mesh.boundary_nodes("left"))
        height = torch.from_numpy(mesh.points[nodes.numpy(), 1].copy()).to(self.device)
        bump = torch.exp(-(((height - place[:, None]) / problem.load_width) ** 2))  # (n, B)
        along_x = self.operators.boundary_mass["left"][0::2, 0::2][nodes.numpy()][:, nodes.numpy()]
        weights = torch.from_numpy(np.asarray(along_x.todense())).to(self.device)
        nodal = (bump[:, None, :] * weights).sum(-1) * amplitude[:, None]
        spatial = torch.zeros(len(inputs), mesh.num_dofs, dtype=torch.float64, device=self.device)
        spatial[:, 2 * nodes.to(self.device)] = nodal
        return SeparableLoad(spatial.to(self.dtype), SineSquaredPulse(duration.to(self.dtype)))

    def _elastic(self, mesh: Mesh) -> ElasticOperators:
        return self.assembler.elastic(mesh, poisson=self.problem.poisson, density=self.problem.density)


@lru_cache(maxsize=4)
def assemble(
    problem: ImpactProblem,
    assembler: Assembler,
    dtype: torch.dtype = torch.float64,
    device: torch.device = torch.device("cpu"),
) -> AssembledImpact:
    """The assembled problem; the last four are kept, so that every model of a problem shares one."""
    return AssembledImpact(problem, assembler, dtype, device)


def _bounds(pair: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """Bounds as float64 tensors."""
    return torch.tensor(pair[0], dtype=torch.float64), torch.tensor(pair[1], dtype=torch.float64)
