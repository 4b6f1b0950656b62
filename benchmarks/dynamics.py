"""Time stepping against exact answers and a SciPy loop: waves, orders, energy, gradients, cost."""

import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import eigh
from scipy.sparse import csr_matrix
from torch import Tensor

from benchmarks.check import Figure, at_least, at_most, main, reported, within
from fem_bridge.assembly import Assembler, ElasticOperators, Mesh, default_assembler, rectangle
from fem_bridge.assembly.skfem import SkfemAssembler
from fem_bridge.dynamics import (
    CentralDifference,
    ElasticSystem,
    GeneralizedAlpha,
    Integrator,
    Newmark,
    SeparableLoad,
    SineSquaredPulse,
    simulate,
)
from sde.noise import NoiseStream

POISSON, DENSITY = 0.3, 1.0
SPEED = math.sqrt((1 - POISSON) / ((1 + POISSON) * (1 - 2 * POISSON)) / DENSITY)  # of plane P-waves, E = 1


def assemblers() -> list[Assembler]:
    """DOLFINx where it is installed, and scikit-fem."""
    first = default_assembler()
    return [first] if isinstance(first, SkfemAssembler) else [first, SkfemAssembler()]


def relative(first: NDArray | csr_matrix, second: NDArray | csr_matrix) -> float:
    """Largest difference of two arrays over the largest entry."""
    difference, scale = float(abs(first - second).max()), float(abs(second).max())
    return difference / scale if scale else difference


def random_modulus(samples: int, cells: int, *, spread: float = 0.3, seed: int = 5) -> Tensor:
    """Lognormal moduli, independent from cell to cell: rougher than any field."""
    return (spread * NoiseStream(seed, 0, samples).normals(cells, dtype=torch.float64)).exp()


def operators(smoke: bool) -> Iterator[Figure]:
    """Operators of DOLFINx and scikit-fem, and each one's K(E) against the code's own form."""
    mesh = rectangle((0.0, 0.0), (2.0, 1.0), divisions=(12, 6) if smoke else (60, 30))
    modulus = random_modulus(1, mesh.num_cells)[0].numpy()
    delivered = [assembler.elastic(mesh, poisson=POISSON, density=1.7) for assembler in assemblers()]
    for assembler, ours in zip(assemblers(), delivered, strict=True):
        own = assembler.stiffness(mesh, modulus, poisson=POISSON)
        yield at_most(
            f"{assembler.name}: K(E) from operators against its own form",
            relative(ours.stiffness(modulus), own),
            1e-13,
        )
    if len(delivered) == 1:
        yield reported("DOLFINx against scikit-fem", "not run", "DOLFINx is not installed")
        return
    for name, error in operator_differences(delivered[0], delivered[1], modulus).items():
        yield at_most(f"DOLFINx against scikit-fem: {name}", error, 1e-13)


def operator_differences(
    first: ElasticOperators, second: ElasticOperators, modulus: NDArray[np.float64]
) -> dict[str, float]:
    """Relative differences of all operators."""
    names = ("strain", "areas", "consistent_mass", "lumped_mass")
    errors = {name: relative(getattr(first, name), getattr(second, name)) for name in names}
    errors["stiffness"] = relative(first.stiffness(modulus), second.stiffness(modulus))
    return errors | {
        f"mass of boundary {name}": relative(matrix, second.boundary_mass[name])
        for name, matrix in first.boundary_mass.items()
    }


def plane_stress(operators: ElasticOperators) -> ElasticOperators:
    """The same operators with the elasticity of plane stress: a mistake that the wave must show."""
    ratio = operators.poisson
    matrix = np.array([[1, ratio, 0], [ratio, 1, 0], [0, 0, (1 - ratio) / 2]]) / (1 - ratio**2)
    return replace(operators, elasticity=matrix)


def wave(
    assembler: Assembler,
    divisions: int,
    change: Callable[[ElasticOperators], ElasticOperators] = lambda operators: operators,
) -> tuple[float, float]:
    """Plane P-wave in a strip that cannot bulge, driven at its end: relative L2 error and error of its speed.

    The strip is two squares high and long enough that the wave does not reach its far end; d'Alembert's
    solution is ``g(t - x / c)``.
    """
    side, duration, end = 2.0 / divisions, 0.5, 1.2
    mesh = rectangle((0.0, 0.0), (2.0, 2 * side), divisions=(divisions, 2))
    left = 2 * mesh.boundary_nodes("left")
    walls = 2 * np.union1d(mesh.boundary_nodes("top"), mesh.boundary_nodes("bottom")) + 1
    fixed = np.union1d(walls, mesh.dofs(mesh.boundary_nodes("right")))
    system = ElasticSystem.from_operators(
        change(assembler.elastic(mesh, poisson=POISSON, density=DENSITY)), fixed=fixed, driven=left
    )
    times = torch.linspace(0, end, 5 * divisions // 2 + 1, dtype=torch.float64)
    pulse = lambda t: np.where((t > 0) & (t < duration), np.sin(np.pi * t / duration), 0.0) ** 4  # noqa: E731
    motion = torch.tensor(pulse(times.numpy()))[None, :, None].expand(1, -1, len(left))
    modulus = torch.ones(mesh.num_cells, dtype=torch.float64)
    result = simulate(system, modulus=modulus, times=times, integrator=CentralDifference(), motion=motion)
    x, found = mesh.points[:, 0], result.displacement[0, -1, 0::2].numpy()
    weight = system.operators.lumped_mass[0::2]
    exact = pulse(end - x / SPEED)
    error = math.sqrt((weight * (found - exact) ** 2).sum() / (weight * exact**2).sum())
    speed = SPEED
    for _ in range(5):  # Gauss-Newton for the speed that fits best
        shape = pulse(end - x / speed)
        slope = (pulse(end - x / (speed + 1e-6)) - pulse(end - x / (speed - 1e-6))) / 2e-6
        speed += (weight * slope * (found - shape)).sum() / (weight * slope**2).sum()
    return error, speed / SPEED - 1


def orders(errors: list[float]) -> list[float]:
    """Orders of convergence between sizes that halve."""
    return [math.log2(a / b) for a, b in pairwise(errors)]


def plane_wave(smoke: bool) -> Iterator[Figure]:
    """Check 2: order of the plane wave and error of its speed."""
    sizes = [20, 40, 80] if smoke else [40, 80, 160, 320]
    for assembler in assemblers():
        errors, speeds = zip(*(wave(assembler, n) for n in sizes), strict=True)
        for n, error, speed in zip(sizes, errors, speeds, strict=True):
            yield reported(f"{assembler.name}: n = {n}: L2 error", error, f"speed error {speed:.1e}")
        for n, order in zip(sizes[1:], orders(list(errors)), strict=True):
            bar = within if n >= 160 else lambda name, value, low, high: reported(name, value)
            yield bar(f"{assembler.name}: L2 order from n = {n // 2} to {n}", order, 1.9, 2.1)
        wrong = abs(wave(assembler, 80, plane_stress)[1])
        yield at_least(f"{assembler.name}: control, plane stress: speed error", wrong, 5e-2)
        if sizes[-1] == 320:
            yield at_most(f"{assembler.name}: speed error at n = 320", abs(speeds[-1]), 3e-4)


@dataclass(frozen=True, slots=True)
class CosinePulse:
    """cos(rate t) for every sample."""

    rate: float
    samples: int = 1

    def __call__(self, time: float) -> Tensor:
        """Values at ``time``, shape ``(n,)``."""
        return torch.full((self.samples,), math.cos(self.rate * time), dtype=torch.float64)

    def table(self, times: Tensor) -> Tensor:
        """Values at instants of shape ``(T,)``, shape ``(T, n)``."""
        return torch.cos(self.rate * times)[:, None].expand(-1, self.samples)

    def select(self, samples: Tensor) -> "CosinePulse":
        """The pulses of some samples."""
        return CosinePulse(self.rate, len(samples))


_QUADRATURE = np.array(  # degree 4, 6 points; Dunavant (1985): barycentric coordinates and weight
    [
        [a, b, c, w]
        for p, w in ((0.445948490915965, 0.223381589678011), (0.091576213509771, 0.109951743655322))
        for a, b, c in ((p, p, 1 - 2 * p), (p, 1 - 2 * p, p), (1 - 2 * p, p, p))
    ]
)


def manufactured(assembler: Assembler, integrator: Integrator, divisions: int) -> tuple[float, float]:
    """L2 and H1 errors for (1, 1/2) sin(pi x) sin(pi y) cos(3 t) on the unit square, up to time 1.

    Each is the largest of twenty instants: at a single one, the oscillation of the error blurs its order.
    """
    mesh = rectangle((0.0, 0.0), (1.0, 1.0), divisions=(divisions, divisions))
    delivered = assembler.elastic(mesh, poisson=POISSON, density=DENSITY)
    system = ElasticSystem.from_operators(delivered, fixed=("left", "right", "bottom", "top"))
    sx, sy = np.sin(np.pi * mesh.points).T
    cx, cy = np.cos(np.pi * mesh.points).T
    axial, lateral, shear = delivered.elasticity[[0, 0, 2], [0, 1, 2]]
    a, b = 1.0, 0.5
    stress_x = np.pi**2 * ((axial + shear) * a * sx * sy - (lateral + shear) * b * cx * cy)
    stress_y = np.pi**2 * ((axial + shear) * b * sx * sy - (lateral + shear) * a * cx * cy)
    body = np.stack([stress_x - 9 * DENSITY * a * sx * sy, stress_y - 9 * DENSITY * b * sx * sy], 1).ravel()
    start = np.stack([a * sx * sy, b * sx * sy], 1).ravel()
    force = torch.tensor(delivered.consistent_mass @ body / DENSITY)
    result = simulate(
        system,
        modulus=torch.ones(mesh.num_cells, dtype=torch.float64),
        times=torch.linspace(0, 1, 6 * divisions + 1, dtype=torch.float64),
        integrator=integrator,
        load=SeparableLoad(force[None], CosinePulse(3.0)),
        displacement=torch.tensor(start)[None],
    )
    instants = [round(6 * divisions * k / 20) for k in range(1, 21)]
    errors = [
        _field_errors(
            mesh, result.displacement[0, k].numpy().reshape(-1, 2), math.cos(3 * float(result.times[k]))
        )
        for k in instants
    ]
    return max(l2 for l2, _ in errors), max(h1 for _, h1 in errors)


def _field_errors(mesh: Mesh, found: NDArray[np.float64], amplitude: float) -> tuple[float, float]:
    """L2 and H1-seminorm errors of nodal displacements against the manufactured solution."""
    x, u = mesh.points[mesh.cells], found[mesh.cells]
    edges = np.stack([x[:, 1] - x[:, 0], x[:, 2] - x[:, 0]], 1)
    rises = np.stack([u[:, 1] - u[:, 0], u[:, 2] - u[:, 0]], 1)
    gradient = np.linalg.solve(edges, rises)  # (C, axis, component)
    square, slope = 0.0, 0.0
    for *corner, weight in _QUADRATURE:
        point = np.einsum("k,ckd->cd", corner, x)
        (sx, sy), (cx, cy) = np.sin(np.pi * point).T, np.cos(np.pi * point).T
        shape = np.array([1.0, 0.5]) * amplitude
        value = (sx * sy)[:, None] * shape
        exact = np.pi * np.stack([cx * sy, sx * cy], 1)[:, :, None] * shape
        here = np.einsum("k,ckd->cd", corner, u)
        square += weight * (mesh.areas * ((here - value) ** 2).sum(1)).sum()
        slope += weight * (mesh.areas * ((gradient - exact) ** 2).sum((1, 2))).sum()
    return math.sqrt(square), math.sqrt(slope)


SCHEMES: tuple[Integrator, ...] = (CentralDifference(), Newmark(), GeneralizedAlpha(0.8))


def space_orders(smoke: bool) -> Iterator[Figure]:
    """Check 3, space: a manufactured solution."""
    sizes = [8, 16, 32] if smoke else [10, 20, 40, 80]
    for assembler in assemblers():
        for scheme in SCHEMES:
            errors = [manufactured(assembler, scheme, n) for n in sizes]
            for n, l2, h1 in zip(
                sizes[1:], *(orders(list(e)) for e in zip(*errors, strict=True)), strict=True
            ):
                name = f"{assembler.name}, {type(scheme).__name__}, n = {n // 2} to {n}"
                yield within(f"{name}: L2 order", l2, 1.8, 2.2)
                yield within(f"{name}: H1 order", h1, 0.9, 1.1)


@dataclass(frozen=True, slots=True)
class Mode:
    """An eigenmode of a small clamped body, for the masses of a scheme."""

    system: ElasticSystem
    modulus: Tensor
    frequency: float
    shape: Tensor

    @staticmethod
    def of(assembler: Assembler, scheme: Integrator, number: int = 4) -> "Mode":
        """Mode ``number`` of a plate with random moduli, by a dense eigensolver."""
        mesh = rectangle((0.0, 0.0), (2.0, 1.0), divisions=(10, 5))
        delivered = assembler.elastic(mesh, poisson=POISSON, density=DENSITY)
        system = ElasticSystem.from_operators(delivered, fixed=("right",))
        modulus = random_modulus(1, mesh.num_cells)[0]
        free = system.free.numpy()
        mass = np.diag(delivered.lumped_mass) if scheme.explicit else delivered.consistent_mass.toarray()
        stiffness = delivered.stiffness(modulus.numpy()).toarray()
        values, vectors = eigh(stiffness[np.ix_(free, free)], mass[np.ix_(free, free)])
        shape = np.zeros(system.num_dofs)
        shape[free] = vectors[:, number] / abs(vectors[:, number]).max()
        return Mode(system, modulus, math.sqrt(values[number]), torch.tensor(shape))

    def amplitude(self, scheme: Integrator, steps: int, periods: float) -> NDArray[np.float64]:
        """Amplitude of the mode at all steps, starting at 1 from rest, and of the remainder as a check."""
        times = torch.linspace(0, periods * 2 * math.pi / self.frequency, steps + 1, dtype=torch.float64)
        result = simulate(
            self.system, modulus=self.modulus, times=times, integrator=scheme, displacement=self.shape[None]
        )
        size = (self.shape**2).sum()
        amplitude = (result.displacement[0] * self.shape).sum(-1) / size
        rest = (result.displacement[0] - amplitude[:, None] * self.shape).abs().max()
        return np.append(amplitude.numpy(), float(rest))


def own_amplitude(scheme: Integrator, frequency: float, dt: float, steps: int) -> NDArray[np.float64]:
    """Amplitude of a mode of unit start by the scheme's own dispersion relation."""
    k, half = np.arange(steps + 1), frequency * dt / 2
    if isinstance(scheme, CentralDifference):
        return np.cos(2 * math.asin(half) * k)
    if isinstance(scheme, Newmark):
        return np.cos(2 * math.atan(half) * k)
    return _alpha_amplitude(scheme, frequency, dt, steps)


def _alpha_amplitude(scheme: Integrator, frequency: float, dt: float, steps: int) -> NDArray[np.float64]:
    """Generalised-alpha by the amplification matrix of (u, v dt, a dt^2); Chung & Hulbert (1993), (10)."""
    if not isinstance(scheme, GeneralizedAlpha):
        raise TypeError(f"`scheme` must be GeneralizedAlpha; got {scheme!r}.")
    rho, square = scheme.rho_inf, (frequency * dt) ** 2
    am, af = (2 * rho - 1) / (rho + 1), rho / (rho + 1)
    gamma, beta = 0.5 - am + af, (1 - am + af) ** 2 / 4
    left = np.array([[1, 0, -beta], [0, 1, -gamma], [(1 - af) * square, 0, 1 - am]])
    right = np.array([[1, 1, 0.5 - beta], [0, 1, 1 - gamma], [-af * square, 0, -am]])
    values, vectors = np.linalg.eig(np.linalg.solve(left, right))
    weights = np.linalg.solve(vectors, np.array([1.0, 0.0, -square], dtype=complex))
    return ((vectors[0] * weights) * values ** np.arange(steps + 1)[:, None]).sum(1).real


def time_orders(smoke: bool) -> Iterator[Figure]:
    """Check 3, time: an eigenmode against the scheme's own dispersion and against the cosine."""
    counts = [100, 200] if smoke else [100, 200, 400, 800]
    for assembler in assemblers():
        for scheme in SCHEMES:
            mode, name = Mode.of(assembler, scheme), f"{assembler.name}, {type(scheme).__name__}"
            own, exact = mode_errors(mode, scheme, counts)
            yield at_most(f"{name}: mode against its own dispersion", max(own), 1e-11)
            yield at_least(f"{name}: control, mode against the cosine", max(exact), 1e-7)
            for n, order in zip(counts[1:], orders(exact), strict=True):
                yield within(f"{name}: order in time, {n // 2} to {n} steps", order, 1.98, 2.02)


def mode_errors(mode: Mode, scheme: Integrator, counts: list[int]) -> tuple[list[float], list[float]]:
    """Errors over 1.3 periods against the scheme's own dispersion, and at the end against the cosine."""
    own, exact = [], []
    for steps in counts:
        *found, rest = mode.amplitude(scheme, steps, 1.3)
        dt = 1.3 * 2 * math.pi / mode.frequency / steps
        own.append(max(float(abs(found - own_amplitude(scheme, mode.frequency, dt, steps)).max()), rest))
        exact.append(abs(found[-1] - math.cos(1.3 * 2 * math.pi)))
    return own, exact


def energy_history(
    assembler: Assembler, fraction: float, steps: int, divisions: int = 20
) -> NDArray[np.float64]:
    """Discrete energy of free central difference at a fraction of the critical step, over its first value."""
    mesh = rectangle((0.0, 0.0), (2.0, 1.0), divisions=(divisions, divisions // 2))
    delivered = assembler.elastic(mesh, poisson=POISSON, density=DENSITY)
    system = ElasticSystem.from_operators(delivered, fixed=("right",))
    modulus = random_modulus(1, mesh.num_cells)[0]
    critical = float(system.critical_step(modulus, iterations=150))
    times = fraction * critical * torch.arange(steps + 1, dtype=torch.float64)
    start = NoiseStream(6, 0, 1).normals(system.num_dofs, dtype=torch.float64) * (system.inverse_mass > 0)
    result = simulate(
        system,
        modulus=modulus,
        times=times,
        integrator=CentralDifference(),
        displacement=start,
        check_stability=False,
    )
    u = result.displacement[0].numpy()
    velocity = np.diff(u, axis=0) / (fraction * critical)
    force = (delivered.stiffness(modulus.numpy()) @ u[1:].T).T
    energy = ((velocity**2 * delivered.lumped_mass).sum(1) + (u[:-1] * force).sum(1)) / 2
    return energy / energy[0]


def growth(assembler: Assembler, fraction: float, steps: int = 500) -> float:
    """Largest displacement over the first, at a fraction of the critical step."""
    mesh = rectangle((0.0, 0.0), (2.0, 1.0), divisions=(20, 10))
    system = ElasticSystem.from_operators(
        assembler.elastic(mesh, poisson=POISSON, density=DENSITY), fixed=("right",)
    )
    modulus = random_modulus(1, mesh.num_cells)[0]
    times = fraction * float(system.critical_step(modulus, iterations=150)) * torch.arange(steps + 1).double()
    start = NoiseStream(6, 0, 1).normals(system.num_dofs, dtype=torch.float64) * (system.inverse_mass > 0)
    run = simulate(
        system,
        modulus=modulus,
        times=times,
        integrator=CentralDifference(),
        displacement=start,
        check_stability=False,
    )
    return float(run.displacement.abs().max() / start.abs().max())


def energy(smoke: bool) -> Iterator[Figure]:
    """Check 4: conservation below the critical step, blow-up above it."""
    steps = 1000 if smoke else 5000
    for assembler in assemblers():
        drift = abs(energy_history(assembler, 0.9, steps) - 1).max()
        yield at_most(
            f"{assembler.name}: energy drift, {steps} steps at 0.9 of the critical step", drift, 1e-12
        )
        yield at_least(
            f"{assembler.name}: control, growth in 500 steps at 1.01", growth(assembler, 1.01), 1e6
        )
        yield at_most(f"{assembler.name}: growth in 500 steps at 0.999", growth(assembler, 0.999), 1e3)


def gradient_error(integrator: Integrator, steps: int = 400, samples: int = 2) -> dict[str, float]:
    """Directional derivatives by autograd through all steps against fourth-order differences, relative."""
    mesh = rectangle((0.0, 0.0), (2.0, 1.0), divisions=(8, 4))
    delivered = SkfemAssembler().elastic(mesh, poisson=POISSON, density=DENSITY)
    system = ElasticSystem.from_operators(
        delivered, fixed=("right",), driven=mesh.dofs(mesh.boundary_nodes("bottom"))[:-2]
    )
    times = torch.linspace(0, 8, steps + 1, dtype=torch.float64)
    noise = NoiseStream(9, 0, samples)
    draw = lambda count, tag: noise.fork(tag).normals(count, dtype=torch.float64)  # noqa: E731
    point = {
        "modulus": (0.2 * draw(mesh.num_cells, "modulus")).exp(),
        "load": 0.01 * draw(system.num_dofs, "load"),
        "motion": 0.01 * torch.sin(2 * times)[:, None] ** 2 * draw(len(system.driven), "motion")[:, None, :],
    }
    duration = torch.full((samples,), 2.0, dtype=torch.float64)

    def objective(values: dict[str, Tensor]) -> Tensor:
        result = simulate(
            system,
            modulus=values["modulus"],
            times=times,
            integrator=integrator,
            load=SeparableLoad(values["load"], SineSquaredPulse(duration)),
            motion=values["motion"],
        )
        return (result.displacement**2).sum((1, 2)).sqrt().sum()

    errors = {}
    for name, value in point.items():
        direction = draw(value[0].numel(), f"direction {name}").reshape(value.shape) * value.abs().mean()
        leaf = value.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(objective(point | {name: leaf}), leaf)
        slope = float((gradient * direction).sum())
        with torch.no_grad():
            at = {k: float(objective(point | {name: value + k * 1e-3 * direction})) for k in (-2, -1, 1, 2)}
        difference = (at[-2] - 8 * at[-1] + 8 * at[1] - at[2]) / (12 * 1e-3)
        errors[name] = abs(slope - difference) / abs(difference)
    return errors


def gradients(smoke: bool) -> Iterator[Figure]:
    """Gradients through 400 steps against finite differences."""
    for scheme in SCHEMES:
        for name, error in gradient_error(scheme, 100 if smoke else 400).items():
            yield at_most(f"{type(scheme).__name__}: gradient in {name} against differences", error, 1e-7)


def scipy_loop(
    stiffness: csr_matrix,
    system: ElasticSystem,
    steps: int,
    dt: float,
    force: NDArray,
    pulse: NDArray,
    motion: NDArray | None,
) -> NDArray[np.float64]:
    """Central difference of one sample with SciPy: displacements at all steps."""
    kick, driven = dt * system.inverse_mass.numpy(), system.driven.numpy()
    u, v = np.zeros(system.num_dofs), np.zeros(system.num_dofs)
    out = np.empty((steps + 1, system.num_dofs))
    for k in range(steps + 1):
        if motion is not None:
            u[driven] = motion[k]
        out[k] = u
        net = stiffness @ u
        if pulse[k]:
            net -= pulse[k] * force
        net *= kick if k else kick / 2
        v -= net
        u += dt * v
    return out


@dataclass(frozen=True, eq=False, slots=True)
class Race:
    """One problem for both: the plate with random moduli, or its zone with one modulus and driven edges."""

    system: ElasticSystem
    modulus: Tensor
    force: Tensor
    motion: Tensor | None
    times: Tensor

    @staticmethod
    def full(samples: int, divisions: int, steps: int) -> "Race":
        """Impact on a plate with its own moduli in each sample."""
        mesh = rectangle((0.0, 0.0), (2.0, 1.0), divisions=(divisions, divisions // 2))
        delivered = default_assembler().elastic(mesh, poisson=POISSON, density=DENSITY)
        system = ElasticSystem.from_operators(delivered, fixed=("right",))
        traction = np.zeros((mesh.num_nodes, 2))
        traction[:, 0] = np.exp(-(((mesh.points[:, 1] - 0.5) / 0.15) ** 2))
        force = torch.tensor(delivered.boundary_mass["left"] @ traction.ravel()).expand(samples, -1)
        times = torch.linspace(0, 6.25e-3 * steps * 60 / divisions, steps + 1, dtype=torch.float64)
        return Race(system, random_modulus(samples, mesh.num_cells, spread=0.2), force, None, times)

    @staticmethod
    def zone(samples: int, divisions: int, steps: int) -> "Race":
        """The zone [1, 1.6] x [0.5, 1] of that plate, nominal, driven on three sides."""
        whole = rectangle((0.0, 0.0), (2.0, 1.0), divisions=(divisions, divisions // 2))
        x, y = whole.centroids.T
        part = whole.restrict((x > 1.0) & (x < 1.6) & (y > 0.5))
        px, py = part.mesh.points.T
        edge = np.flatnonzero((abs(px - 1.0) < 1e-9) | (abs(px - 1.6) < 1e-9) | (abs(py - 0.5) < 1e-9))
        delivered = default_assembler().elastic(part.mesh, poisson=POISSON, density=DENSITY)
        system = ElasticSystem.from_operators(delivered, driven=part.mesh.dofs(edge))
        times = torch.linspace(0, 6.25e-3 * steps * 60 / divisions, steps + 1, dtype=torch.float64)
        rates = 1 + NoiseStream(3, 0, samples).uniforms(len(system.driven), dtype=torch.float64)
        motion = 0.01 * torch.sin(rates[:, None, :] * times[:, None]) ** 2
        force = torch.zeros(samples, system.num_dofs, dtype=torch.float64)
        return Race(system, torch.ones(part.mesh.num_cells, dtype=torch.float64), force, motion, times)

    def torch(self, *, compiled: bool = True, observe: Tensor | None = None) -> Tensor:
        """The batch by this library."""
        duration = torch.full((len(self.force),), 0.45, dtype=torch.float64)
        return simulate(
            self.system,
            modulus=self.modulus,
            times=self.times,
            integrator=CentralDifference(compiled),
            load=SeparableLoad(self.force, SineSquaredPulse(duration)) if self.motion is None else None,
            motion=self.motion,
            observe=observe,
        ).displacement

    def scipy(self, sample: int) -> Callable[[], NDArray[np.float64]]:
        """One sample by SciPy, its matrix assembled beforehand."""
        row = self.modulus if self.modulus.ndim == 1 else self.modulus[sample]
        stiffness = self.system.operators.stiffness(row.numpy())
        pulse = np.zeros(len(self.times))
        if self.motion is None:
            pulse = SineSquaredPulse(torch.tensor([0.45], dtype=torch.float64))
            pulse = np.array([float(pulse(float(t))) for t in self.times])
        motion = None if self.motion is None else self.motion[sample].numpy().copy()
        dt = float(self.times[-1]) / (len(self.times) - 1)
        force = self.force[sample].numpy()
        return lambda: scipy_loop(stiffness, self.system, len(self.times) - 1, dt, force, pulse, motion)


def _median(run: Callable[[], object], repeats: int) -> float:
    """Median seconds of a call, after one to warm up."""
    run()
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return sorted(seconds)[repeats // 2]


def speed(smoke: bool) -> Iterator[Figure]:
    """Agreement with a SciPy loop, and how many times less a sample costs, in one run."""
    divisions, steps = (20, 100) if smoke else (60, 400)
    threads = torch.get_num_threads()
    for name, make in (("full model", Race.full), ("zone", Race.zone)):
        race = make(3, divisions, steps)
        exact = race.scipy(1)()
        for compiled in (True, False):
            error = relative(race.torch(compiled=compiled)[1].numpy(), exact)
            yield at_most(
                f"{name}: {'kernel' if compiled else 'torch'} against SciPy, error / max u", error, 1e-12
            )
        for batch in (1, 8) if smoke else (1, 8, 32, 128):
            yield from _ratios(name, make(batch, divisions, steps), batch, threads)
        race = make(8, divisions, steps)
        with torch.no_grad():
            plain = _median(lambda r=race: r.torch(compiled=False), 1) / 8
        ratio = _seconds_of_scipy(race) / plain
        yield reported(f"{name}, batch 8: SciPy / torch operations without the kernel", ratio)


def _seconds_of_scipy(race: Race) -> float:
    """Seconds per sample of the SciPy loop."""
    loops = [race.scipy(sample) for sample in range(min(len(race.force), 3))]
    return _median(lambda: [loop() for loop in loops], 3) / len(loops)


def _ratios(name: str, race: Race, batch: int, threads: int) -> Iterator[Figure]:
    """Seconds per sample of SciPy, on its one thread, over those of this library on one thread and on two."""
    probe = torch.arange(6)
    with torch.no_grad():
        for count in range(1, min(2, os.cpu_count() or 1) + 1):
            torch.set_num_threads(count)
            try:
                reference = _seconds_of_scipy(race)
                kernel = _median(lambda: race.torch(observe=probe), 5 if batch < 32 else 3) / batch
            finally:
                torch.set_num_threads(threads)
            detail = f"{1e3 * kernel:.2f} ms per sample; SciPy {1e3 * reference:.1f} ms"
            label = f"{name}, batch {batch}, {count} thread{'s' * (count > 1)}"
            bar = at_least if batch > 1 else lambda name, value, limit, detail: reported(name, value, detail)
            yield bar(f"{label}: SciPy / ours", reference / kernel, 1.0, detail)


SECTIONS = [operators, plane_wave, space_orders, time_orders, energy, gradients, speed]

if __name__ == "__main__":
    raise SystemExit(main("dynamics", SECTIONS))
