r"""Wasserstein generator against an exact law: a linear problem whose traces and responses are Gaussian.

A plane-strain square is clamped on three sides; on the fourth, ``y = 1``, the vertical displacement is

.. math:: u_y(s, 1) = \sum_{k=1}^{6} a_k \sin(k \pi s), \qquad a_k \sim \mathcal{N}(0, k^{-2}).

The trace on the interface of a zone of interest, and the quantities of interest in it, are linear in ``a``:
with the matrices ``M`` of the finite-element solution their laws are exactly
:math:`\mathcal{N}(0, M \Sigma M^T)`. A generator trained on snapshots of the trace drives the submodel, and
what comes out is compared with the exact law. The figures have to fail for an untrained generator, one that
emits the mean, and one that replays a single snapshot. With ``|a_k| - E|a_k|`` in place of ``a_k`` the law is
not Gaussian, and the generator has to beat the Gaussian fit.

The library's generator starts as the Gaussian fit of the data (:mod:`uq.generator`); the untrained control is
therefore a plain network of the same size with random weights, without that start.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist

import numpy as np
import torch
from scipy.sparse import csr_matrix
from scipy.sparse.linalg import splu
from torch import Tensor

from benchmarks.check import Figure, Section, at_least, at_most, main, reported, within
from fem_bridge.assembly import Mesh, default_assembler, rectangle
from fem_bridge.zones import Zone, cut_zone
from sde.networks import perceptron
from sde.noise import NoiseStream, Purpose
from uq.baselines import PodGaussian
from uq.generator import WassersteinGenerator
from uq.metrics import sliced_wasserstein
from uq.training import WassersteinSettings, train_wasserstein

__all__ = ["SECTIONS", "LinearProblem", "absolute_law", "gaussian_law", "negative_controls", "solve_problem"]

TERMS = 6
SNAPSHOTS = 2000
QUANTITIES = ("u_y at the centre", "u_x off the centre", "mean strain yy")


@dataclass(frozen=True, slots=True, eq=False)
class LinearProblem:
    """The matrices of a linear problem, from six coefficients to traces and quantities of interest.

    Attributes:
        trace: Coefficients to interface displacements, shape ``(D, 6)``.
        response: Interface displacements to quantities of interest, by the submodel, shape ``(q, D)``.
        full_response: Coefficients to quantities of interest, by the full model, shape ``(q, 6)``.
        assembler: Name of the finite-element assembler.
    """

    trace: Tensor
    response: Tensor
    full_response: Tensor
    assembler: str

    def coefficients(self, noise: NoiseStream, *, absolute: bool) -> Tensor:
        """Random coefficients of the outer data, of mean 0, shape ``(n, 6)``."""
        normals = noise.normals(TERMS, purpose=Purpose.INPUTS, dtype=torch.float64)
        values = normals.abs() - math.sqrt(2 / math.pi) if absolute else normals
        return values / torch.arange(1, TERMS + 1)

    def traces(self, noise: NoiseStream, *, absolute: bool) -> Tensor:
        """Traces of the full model, shape ``(n, D)``."""
        return self.coefficients(noise, absolute=absolute) @ self.trace.mT

    def quantity_deviations(self) -> Tensor:
        """Exact standard deviations of the quantities of interest under the Gaussian law, shape ``(q,)``."""
        scaled = self.full_response / torch.arange(1, TERMS + 1)
        return scaled.square().sum(-1).sqrt()


@cache
def solve_problem(divisions: int) -> LinearProblem:
    """Assemble and solve the problem on ``divisions**2`` squares, a multiple of 10."""
    mesh, assembler = rectangle((0, 0), (1, 1), divisions=(divisions, divisions)), default_assembler()
    zone = cut_zone(mesh, (0.3, 0.4), (0.7, 0.8))
    stiffness, _ = _stiffness(mesh)
    border = np.unique(np.concatenate([mesh.boundary_nodes(name) for name in mesh.boundaries]))
    top = mesh.boundary_nodes("top")
    terms = np.arange(1, TERMS + 1)
    driven = np.zeros((mesh.num_dofs, TERMS))
    driven[2 * top + 1] = np.sin(np.pi * mesh.points[top, :1] * terms)
    full = _solve(stiffness, driven, Mesh.dofs(border))
    zone_stiffness, zone_strain = _stiffness(zone.mesh)
    unit = np.zeros((zone.mesh.num_dofs, len(zone.interface_dofs)))
    unit[zone.interface_dofs, np.arange(len(zone.interface_dofs))] = 1
    inner = _solve(zone_stiffness, unit, zone.interface_dofs)
    functionals = _functionals(zone, zone_strain)
    in_zone = full[zone.parent_dofs]
    return LinearProblem(
        trace=torch.from_numpy(in_zone[zone.interface_dofs]),
        response=torch.from_numpy(functionals @ inner),
        full_response=torch.from_numpy(functionals @ in_zone),
        assembler=assembler.name,
    )


def _stiffness(mesh: Mesh) -> tuple[csr_matrix, csr_matrix]:
    """Stiffness of unit modulus, and the strain operator."""
    operators = default_assembler().elastic(mesh, poisson=0.3, density=1.0)
    return operators.stiffness(np.ones(mesh.num_cells)), operators.strain


def _solve(stiffness: csr_matrix, prescribed: np.ndarray, fixed: np.ndarray) -> np.ndarray:
    """Static displacements under prescribed values at the fixed degrees of freedom, one column per case."""
    free = np.setdiff1d(np.arange(len(prescribed)), fixed)
    result = prescribed.copy()
    result[free] = splu(stiffness[free][:, free].tocsc()).solve(
        -stiffness[free][:, fixed] @ prescribed[fixed]
    )
    return result


def _functionals(zone: Zone, strain: csr_matrix) -> np.ndarray:
    """Quantities of interest as rows over the zone's displacements."""
    mesh = zone.mesh
    rows = np.zeros((len(QUANTITIES), mesh.num_dofs))
    rows[0, 2 * mesh.nearest_node((0.5, 0.6)) + 1] = 1
    rows[1, 2 * mesh.nearest_node((0.4, 0.7))] = 1
    rows[2] = (mesh.areas / mesh.areas.sum()) @ strain.toarray()[1::3]
    return rows


@dataclass(frozen=True, slots=True)
class Samples:
    """What is judged: traces of a generator, and the exact ones beside them.

    Attributes:
        problem: The matrices.
        generated: Generated traces, shape ``(n, D)``.
        exact: Independent exact traces, shape ``(m, D)``.
        untrained: Traces of the untrained plain network, shape ``(n, D)``.
    """

    problem: LinearProblem
    generated: Tensor
    exact: Tensor
    untrained: Tensor

    def distance(self, traces: Tensor) -> float:
        """Sliced W2 of traces to the exact ones, over 200 directions."""
        directions = NoiseStream(seed=17, start=0, stop=200)
        return sliced_wasserstein(traces, self.exact, directions, order=2)

    def figures(self) -> Iterator[Figure]:
        """Errors of the quantities of interest against their exact Gaussian law, and of the traces."""
        responses = self.generated @ self.problem.response.mT
        for index, name in enumerate(QUANTITIES):
            values, sigma = responses[:, index], float(self.problem.quantity_deviations()[index])
            yield at_most(f"mean of {name}, error in sigma", abs(float(values.mean())) / sigma, 0.1)
            yield at_most(
                f"standard deviation of {name}, relative", abs(float(values.std()) / sigma - 1), 0.1
            )
            for level in (0.05, 0.95):
                exact = NormalDist().inv_cdf(level)
                error = abs(float(values.quantile(level)) / sigma - exact)
                yield at_most(f"quantile {level} of {name}, error in sigma", error, 0.15)
        ratio = self.distance(self.generated) / self.distance(self.untrained)
        yield at_most("sliced W2 of traces over that of the untrained generator", ratio, 0.15)


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """A generator trained on snapshots of the trace, through their POD coefficients.

    Attributes:
        generator: The Wasserstein generator of whitened POD coefficients.
        gaussian: The Gaussian fit of the same coefficients.
        mean: Mean trace, shape ``(D,)``.
        modes: POD modes times their standard deviations, shape ``(D, r)``.
        gradient_norm: Mean gradient norm of the critic over the last fifth of the training.
        seconds: Time of the training.
    """

    generator: WassersteinGenerator
    gaussian: PodGaussian
    mean: Tensor
    modes: Tensor
    gradient_norm: float
    seconds: float

    def traces(self, model: WassersteinGenerator | PodGaussian, count: int) -> Tensor:
        """Traces by a model of coefficients, shape ``(count, D)``."""
        coefficients = model(torch.zeros(count, 0), NoiseStream(seed=23, start=0, stop=count))
        return self.mean + coefficients.to(torch.float64) @ self.modes.mT


def train(problem: LinearProblem, *, absolute: bool, seed: int, snapshots: int, iterations: int) -> Trained:
    """Train on snapshots; their POD is exact, because the traces have six degrees of freedom."""
    data = problem.traces(NoiseStream(seed, 0, snapshots).fork("snapshots"), absolute=absolute)
    mean = data.mean(0)
    _, singular, directions = torch.linalg.svd(data - mean, full_matrices=False)
    rank = int((singular > 1e-9 * singular[0]).sum())
    deviations = singular[:rank] / math.sqrt(snapshots - 1)
    coefficients = ((data - mean) @ directions[:rank].mT / deviations).float()
    generator, history = train_wasserstein(
        coefficients,
        weights=deviations.float(),
        seed=seed,
        settings=WassersteinSettings(iterations=iterations),
        progress=False,
    )
    norms = history["gradient_norm"]
    last = norms[-max(1, len(norms) // 5) :]
    return Trained(
        generator, PodGaussian(coefficients), mean, directions[:rank].mT * deviations,
        sum(last) / len(last), history["seconds"][-1],
    )  # fmt: skip


def untrained(problem: LinearProblem, count: int) -> Tensor:
    """Traces of a plain network with random weights, in units of the standard deviations of the traces."""
    latent = NoiseStream(seed=29, start=0, stop=count).normals(
        TERMS, purpose=Purpose.LATENT, dtype=torch.float64
    )
    network = perceptron((TERMS, 128, 128, len(problem.trace)), seed=31, dtype=torch.float64)
    scaled = problem.trace / torch.arange(1, TERMS + 1)
    return network(latent).detach() * scaled.square().sum(-1).sqrt()


def _sizes(smoke: bool) -> tuple[int, int, int, int]:
    """Divisions of the mesh, snapshots, iterations and evaluation samples."""
    return (10, 500, 100, 2000) if smoke else (20, SNAPSHOTS, 1500, 20_000)


def gaussian_law(smoke: bool = False) -> Iterator[Figure]:
    """Train on a law that is exactly Gaussian and compare with it."""
    divisions, snapshots, iterations, count = _sizes(smoke)
    problem = solve_problem(divisions)
    gap = (problem.response @ problem.trace - problem.full_response).abs().max()
    detail = f"{problem.assembler}, {len(problem.trace)} interface degrees of freedom"
    relative = float(gap / problem.full_response.abs().max())
    yield at_most("submodel against full model, quantities of interest, relative", relative, 1e-12, detail)
    trained = train(problem, absolute=False, seed=1, snapshots=snapshots, iterations=iterations)
    exact = problem.traces(NoiseStream(3, 0, count).fork("exact"), absolute=False)
    plain = untrained(problem, count)
    samples = Samples(problem, trained.traces(trained.generator, count), exact, plain)
    yield from samples.figures()
    yield within("mean gradient norm of the critic", trained.gradient_norm, 0.9, 1.1)
    yield reported("training [s]", trained.seconds, f"{iterations} steps, {snapshots} snapshots")
    floor = problem.traces(NoiseStream(1, 0, snapshots).fork("snapshots"), absolute=False)
    yield reported("sliced W2 of the snapshots (floor)", samples.distance(floor))
    yield reported("sliced W2 of the generator", samples.distance(samples.generated))
    trained.generator.calibrated = False  # what the training alone reaches
    raw = Samples(problem, trained.traces(trained.generator, count), exact, plain)
    yield reported("sliced W2 of the generator without calibration", raw.distance(raw.generated))
    missed = [figure.name for figure in raw.figures() if not figure.passed]
    yield reported("checks missed without calibration", len(missed), "; ".join(missed))


def negative_controls(smoke: bool = False) -> Iterator[Figure]:
    """The same checks on generators that learned nothing: each has to miss some."""
    divisions, _, _, count = _sizes(smoke)
    problem = solve_problem(divisions)
    exact = problem.traces(NoiseStream(3, 0, count).fork("exact"), absolute=False)
    plain = untrained(problem, count)
    snapshot = problem.traces(NoiseStream(1, 0, 1).fork("snapshots"), absolute=False)
    controls = {
        "untrained": plain,
        "emitting the mean": torch.zeros_like(plain),
        "replaying one snapshot": snapshot.expand(count, -1),
        "exact samples": problem.traces(NoiseStream(5, 0, count).fork("exact"), absolute=False),
    }
    for name, traces in controls.items():
        figures = list(Samples(problem, traces, exact, plain).figures())
        missed = sum(not figure.passed for figure in figures)
        if name == "exact samples":
            yield at_most(f"checks missed by {name}", missed, 0, f"of {len(figures)}")
        else:
            yield at_least(f"checks missed by a generator {name}", missed, 1, f"of {len(figures)}")


def absolute_law(smoke: bool = False) -> Iterator[Figure]:
    """Train on a law that is not Gaussian: the generator has to beat the Gaussian fit."""
    divisions, snapshots, iterations, count = _sizes(smoke)
    problem = solve_problem(divisions)
    trained = train(problem, absolute=True, seed=2, snapshots=snapshots, iterations=iterations)
    repeats = 2 if smoke else 10
    ratios, distances = [], [math.nan, math.nan]
    for repeat in range(repeats):
        exact = problem.traces(NoiseStream(100 + repeat, 0, count).fork("exact"), absolute=True)
        samples = Samples(problem, exact, exact, exact)
        distances = [
            samples.distance(trained.traces(model, count)) for model in (trained.generator, trained.gaussian)
        ]
        ratios.append(distances[0] / distances[1])
    mean, error = float(np.mean(ratios)), float(np.std(ratios, ddof=1) / math.sqrt(repeats))
    yield reported("training [s]", trained.seconds, f"{iterations} steps, {snapshots} snapshots")
    yield reported("sliced W2 of the generator", distances[0], "last exact sample")
    yield reported("sliced W2 of the Gaussian fit", distances[1], "last exact sample")
    detail = f"{mean:.3f} with standard error {error:.3f} over {repeats} exact samples"
    yield at_most(
        "sliced W2 over that of the Gaussian fit, plus 5 standard errors", mean + 5 * error, 1, detail
    )


SECTIONS: list[Section] = [gaussian_law, negative_controls, absolute_law]

if __name__ == "__main__":
    raise SystemExit(main("linear_trace", SECTIONS))
