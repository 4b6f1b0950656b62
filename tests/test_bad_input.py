"""One table of wrong calls: each is refused by its own exception, in one or two short sentences."""

# ruff: noqa: E501 - one row, one line

import math
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Uniform

from fem_bridge.assembly import ElasticOperators, Mesh, load_operators, rectangle
from fem_bridge.datasets import Ensemble, Split
from fem_bridge.dynamics import CentralDifference, ElasticSystem, GeneralizedAlpha, Newmark, simulate
from fem_bridge.traces import TimeCompression
from fem_bridge.zones import cut_zone
from inference.interpolants import FlowSettings, train_flow
from inference.training import FitSettings
from sde import SDE, NoiseStream, solve
from sde.checkpoint import load_checkpoint, save_checkpoint
from sde.equation import Calculus
from sde.solvers import EulerMaruyama
from uq.baselines import Bootstrap, PodGaussian
from uq.comparison import compare
from uq.designs import Halton, Iid, LatinHypercube, Sobol
from uq.inputs import Input, Inputs
from uq.metrics import energy_distance
from uq.monte_carlo import monte_carlo
from uq.random_fields import Coefficients, KarhunenLoeve, Lognormal, SquaredExponential
from uq.training import WassersteinSettings, train_wasserstein

Call = Callable[[Path], object]

NOISE, TIMES = NoiseStream(0, 0, 4), torch.linspace(0, 1, 5)
STATES, ROWS = torch.zeros(4, 2), NOISE.normals(2)
POINTS = torch.linspace(0, 1, 10, dtype=torch.float64).unsqueeze(-1)
WEIGHTS = torch.full((10,), 0.1, dtype=torch.float64)
MESH = rectangle((0, 0), (1, 1), divisions=(2, 2))
UNIT = Inputs([Input("a", Uniform(0.0, 1.0))])


def ones(t: Tensor, x: Tensor) -> Tensor:
    return torch.ones_like(x)


def decay(t: Tensor, x: Tensor) -> Tensor:
    return -x


LINEAR = SDE(decay, ones)


@dataclass(frozen=True)
class Function:
    """A model of one input and a scalar output, by a function of the inputs."""

    function: Callable[[Tensor], object]
    input_dim: int = 1
    output_shape: tuple[int, ...] = ()

    def __call__(self, inputs: Tensor, noise: NoiseStream) -> Tensor:
        return self.function(inputs)  # pyright: ignore[reportReturnType]


def first(inputs: Tensor) -> Tensor:
    return inputs[:, 0]


def run(function: Callable[[Tensor], object] = first, **options: object) -> object:
    """A small Monte Carlo run."""
    arguments = {"seed": 0, "num_samples": 20, "progress": False} | options
    inputs = arguments.pop("inputs", UNIT)
    return monte_carlo(Function(function), inputs, **arguments)  # pyright: ignore


def expand(**changes: object) -> KarhunenLoeve:
    """A small Karhunen-Loeve expansion."""
    arguments = {"points": POINTS, "weights": WEIGHTS, "coefficients": Coefficients.NOISE, "num_modes": 3}
    return KarhunenLoeve.from_covariance(SquaredExponential(0.3), **(arguments | changes))  # pyright: ignore


def pair(correlation: list[list[float]]) -> Inputs:
    """Two uniform inputs with a correlation."""
    return Inputs([Input("a", Uniform(0.0, 1.0)), Input("b", Uniform(0.0, 1.0))], torch.tensor(correlation))


def operators(poisson: float = 0.3, density: float = 1.0) -> ElasticOperators:
    """Operators of the small mesh, by scikit-fem."""
    skfem = pytest.importorskip("fem_bridge.assembly.skfem")
    pytest.importorskip("skfem")
    return skfem.SkfemAssembler().elastic(MESH, poisson=poisson, density=density)


def step_too_far() -> object:
    """Central difference far beyond its critical time step."""
    system = ElasticSystem.from_operators(operators(), fixed=("left",))
    times = torch.linspace(0, 50, 11, dtype=torch.float64)
    modulus = torch.ones(1, MESH.num_cells, dtype=torch.float64)
    return simulate(system, modulus=modulus, times=times, integrator=CentralDifference())  # pyright: ignore


def written(path: Path, content: bytes) -> Path:
    """A file of given bytes."""
    path.write_bytes(content)
    return path


def corrupt_store(folder: Path) -> Path:
    """A run store whose metadata is cut off."""
    (folder / "run.zarr").mkdir()
    written(folder / "run.zarr" / "zarr.json", b"{")
    return folder / "run.zarr"


def foreign_checkpoint(folder: Path) -> Path:
    """A checkpoint of another run."""
    save_checkpoint(folder / "other.pt", "training", {"seed": 1}, {})
    return folder / "other.pt"


V, T, R, F = ValueError, TypeError, RuntimeError, FileNotFoundError
NAN = math.nan
TABLE: dict[str, tuple[Call, type[Exception], str]] = {
    # Noise
    "seed is no integer": (lambda _: NoiseStream(1.5, 0, 1), T, "`seed` must be an integer; got float"),  # pyright: ignore
    "seed is negative": (lambda _: NoiseStream(-1, 0, 1), V, r"`seed` must lie in .*; got -1"),
    "range runs backwards": (lambda _: NoiseStream(0, 3, 1), V, "`start` and `stop` must .*; got 3 and 1"),
    "stream sliced with a step": (lambda _: NOISE[::2], V, "sliced with step 1; got 2"),
    "half precision noise": (lambda _: NOISE.normals(2, dtype=torch.float16), V, "got torch.float16"),
    "negative count of normals": (lambda _: NOISE.normals(-1), V, "got 0 and -1"),
    # Equations and solve
    "drift is no function": (lambda _: SDE("a", ones), T, "`drift` must be callable; got str"),  # pyright: ignore
    "calculus by name": (lambda _: SDE(decay, ones, calculus="ito"), T, "`calculus` must be a Calculus; got 'ito'"),  # pyright: ignore
    "more noise than states": (lambda _: solve(LINEAR, STATES[:3], TIMES, NOISE), V, "`noise` must hold .*3; got 4"),
    "times stand still": (
        lambda _: solve(LINEAR, STATES, torch.tensor([0.0, 0.5, 0.5]), NOISE), V, r"times\[2\] = 0.5 after",
    ),
    "no times": (lambda _: solve(LINEAR, STATES, TIMES[:0], NOISE), V, "at least 2 instants; got 0"),
    "no substeps": (lambda _: solve(LINEAR, STATES, TIMES, NOISE, substeps=0), V, "`substeps` must be .*; got 0"),
    "integer state": (lambda _: solve(LINEAR, STATES.long(), TIMES, NOISE), T, "`initial` must .*; got torch.int64"),
    "state is NaN": (lambda _: solve(LINEAR, STATES * NAN, TIMES, NOISE), V, "`initial` must be finite; got"),
    "wrong calculus": (
        lambda _: solve(SDE(decay, ones, calculus=Calculus.STRATONOVICH), STATES, TIMES, NOISE, solver=EulerMaruyama()),
        V, "got EulerMaruyama, which integrates Ito ones. Convert the equation with to_ito",
    ),
    "drift of another shape": (
        lambda _: solve(SDE(lambda t, x: x[:, :1], ones), STATES, TIMES, NOISE), V, r"got \(4, 1\)",
    ),
    "paths diverge": (
        lambda _: solve(SDE(lambda t, x: x**3, ones), STATES + 1000, TIMES, NOISE), R, "4 of 4 paths diverged",
    ),
    # Inputs and designs
    "no inputs": (lambda _: Inputs([]), V, "at least one input; got none"),
    "two inputs of one name": (lambda _: Inputs([*UNIT.inputs] * 2), V, "different names; got a more than once"),
    "number for a distribution": (lambda _: Input("a", 3.0), T, "`distribution` must .*; got float"),  # pyright: ignore
    "correlation not positive definite": (
        lambda _: pair([[1.0, 2.0], [2.0, 1.0]]), V, "must be positive definite; got a smallest eigenvalue of -1",
    ),
    "correlation of another shape": (lambda _: pair([[1.0]]), V, r"must have shape \(2, 2\); got \(1, 1\)"),
    "design without dimensions": (lambda _: Sobol(0, 0), V, "`dimension` must be at least 1; got 0"),
    "design of too many dimensions": (lambda _: Sobol(30_000, 0), V, "at most 21201; got 30000"),
    "Latin hypercube index out of range": (lambda _: LatinHypercube(2, 10, 0).points(5, 11), V, "at most 10.*; got 11"),
    "negative design index": (lambda _: Iid(2, 0).points(-1, 3), V, "got -1 and 3"),
    "design range runs backwards": (lambda _: Halton(2, 0).points(3, 1), V, "got 3 and 1"),
    # Monte Carlo and files
    "model returns another shape": (lambda _: run(lambda x: x), V, r"must return shape \(20,\); got \(20, 1\)"),
    "model returns a list": (lambda _: run(lambda x: [1]), T, "`model` must return a tensor; got list"),
    "model returns NaN": (lambda _: run(lambda x: x[:, 0] * NAN, num_samples=3), R, "3 samples failed"),
    "negative number of samples": (lambda _: run(num_samples=-1), V, "`num_samples` must be at least 1; got -1"),
    "no number of samples": (lambda _: run(num_samples=None), V, "must be given, and not both; got neither"),
    "batch of nothing": (lambda _: run(batch_size=0), V, "`batch_size` must be at least 1; got 0"),
    "confidence of two": (lambda _: run(confidence=2.0), V, r"must lie in \(0, 1\); got 2.0"),
    "model without its inputs": (lambda _: run(inputs=None), V, "`inputs` must have dimension 1.*; got no inputs"),
    "design of another dimension": (lambda _: run(design=Sobol(3, 0)), V, "`design` must have dimension 1.*; got 3"),
    "design too small": (lambda _: run(design=LatinHypercube(1, 10, 0)), V, "at most 10.*; got 20"),
    "corrupt store": (lambda d: run(store=corrupt_store(d)), R, "is damaged or not a run store"),
    "corrupt checkpoint": (
        lambda d: load_checkpoint(written(d / "c.pt", b"xx"), "training", {}), V, "`checkpoint` must be a file",
    ),
    "checkpoint of another run": (
        lambda d: load_checkpoint(foreign_checkpoint(d), "training", {"seed": 2}), V, "seed = 1, not 2",
    ),
    "checkpoint of another kind": (
        lambda d: load_checkpoint(foreign_checkpoint(d), "fit", {"seed": 1}), V, "is of a training",
    ),
    # Fields, metrics and generators
    "length of zero": (lambda _: SquaredExponential(0.0), V, "`lengths` must be positive and finite; got 0.0"),
    "more modes than points": (lambda _: expand(num_modes=11), V, r"must lie in \[1, 10\].*; got 11"),
    "negative weights": (lambda _: expand(weights=-WEIGHTS), V, "`weights` must be positive"),
    "coefficients by name": (lambda _: expand(coefficients="noise"), T, "`coefficients` must be .*; got str"),
    "negative mean": (lambda _: Lognormal(expand(), mean=-1.0, cov=0.1), V, "`mean` must be positive .*; got -1.0"),
    "samples are NaN": (lambda _: energy_distance(ROWS, ROWS * NAN), V, "`y` must be finite; got NaN"),
    "samples of another dimension": (lambda _: compare(ROWS, ROWS, ROWS[:, :1], NOISE), V, "`test` must have shape"),
    "one training sample": (lambda _: train_wasserstein(ROWS[:1], seed=0), V, "at least two samples; got"),
    "integer training data": (lambda _: train_wasserstein(ROWS.long(), seed=0), T, "got torch.int64"),
    "fewer conditions than data": (
        lambda _: train_wasserstein(ROWS, conditions=ROWS[:2], seed=0), V, r"`conditions` must .*; got \(2, 2\)",
    ),
    "mini-batch of nothing": (lambda _: WassersteinSettings(batch=0), V, "`batch` must be .*; got 0"),
    "generator asked for other samples": (lambda _: PodGaussian(ROWS)(torch.zeros(3, 0), NOISE), V, r"got \(3, 0\)"),
    "too many neighbours": (lambda _: Bootstrap(ROWS, ROWS, neighbours=9), V, r"must lie in \[1, 4\].*; got 9"),
    "flow on NaN": (lambda _: train_flow(ROWS * NAN, seed=0), V, "`data` must be finite; row 0 is not"),
    "negative iterations": (lambda _: FitSettings(iterations=-1), V, "`iterations` must be .*; got -1"),
    "network without width": (lambda _: FlowSettings(width=0), V, "`width` must be .*; got 0"),
    # Finite elements
    "mesh without cells": (lambda _: rectangle((0, 0), (1, 1), divisions=(0, 2)), V, r"got \(0, 2\)"),
    "unknown boundary": (lambda _: MESH.boundary_nodes("north"), V, "got 'north'. It has: bottom, left"),
    "flat triangle": (lambda _: Mesh([[0, 0], [1, 0], [2, 0]], [[0, 1, 2]]), V, "positive area; got 1 without"),
    "node that does not exist": (lambda _: Mesh([[0, 0], [1, 0], [0, 1]], [[0, 1, 5]]), V, "from 0 to 2; got 0 to 5"),
    "part without cells": (lambda _: MESH.restrict(np.zeros(16, bool)), V, "at least one cell; got none"),
    "zone beside the mesh": (lambda _: cut_zone(MESH, (5, 5), (6, 6)), V, "the box holds no cell"),
    "incompressible": (lambda _: operators(poisson=0.5), V, r"`poisson` must lie in \(-1, 0.5\); got 0.5"),
    "weightless": (lambda _: operators(density=0.0), V, "`density` must be positive; got 0.0"),
    "negative modulus": (lambda _: operators().stiffness(-np.ones(16)), V, "got -1.0 at cell 0"),
    "modulus of too few cells": (lambda _: operators().stiffness(np.ones(3)), V, r"one per cell; got \(3,\)"),
    "unstable time step": (lambda _: step_too_far(), V, "`substeps`|`times`"),
    "unstable Newmark": (lambda _: Newmark(beta=-1.0), V, "`beta` and `gamma` must .*; got -1.0 and 0.5"),
    "dissipation out of range": (lambda _: GeneralizedAlpha(2.0), V, r"`rho_inf` must lie in \[0, 1\]; got 2.0"),
    "stride of zero": (lambda _: TimeCompression(TIMES, 0), V, "`stride` must be at least 1; got 0"),
    "splits overlap": (
        lambda _: Split(train=range(5), test=range(3, 6)), V, "`test` must not overlap `train`; both hold sample 3",
    ),
    "no ensemble": (lambda d: Ensemble.open(d / "none"), F, "`folder` must hold an ensemble"),
    "operators from another file": (
        lambda d: load_operators(written(d / "o.npz", b"xx")), V, "`path` must be a file of operators",
    ),
}  # fmt: skip


def check_message(message: str, folder: Path) -> None:
    """One or two short sentences that end with a period, paths not counted."""
    text = message.replace(str(folder), "FOLDER")
    assert "\n" not in text
    assert len(text) <= 240, f"{len(text)} characters"
    assert re.search(r"\.$|pip install '[^']+'$", text), text  # a command to copy ends without a period
    assert len(re.findall(r"[.?!](?= [A-Z])", text)) <= 2, text


@pytest.mark.parametrize("name", TABLE)
def test_wrong_call_is_refused_clearly(name: str, tmp_path: Path) -> None:
    call, error, pattern = TABLE[name]
    with pytest.raises(error, match=pattern) as caught:
        call(tmp_path)
    check_message(str(caught.value), tmp_path)


def plot() -> object:
    from uq.training import plot_training

    return plot_training({name: [1.0] for name in ("iteration", "critic_gap", "gradient_norm")})


def operators_without_check() -> object:
    from fem_bridge.assembly.skfem import SkfemAssembler

    return SkfemAssembler()


MISSING: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "matplotlib": ("matplotlib.figure", lambda _: plot(), "plot"),
    "skfem": ("skfem", lambda _: operators_without_check(), "fem"),
    "zarr": ("zarr", lambda d: run(store=d / "run.zarr"), "io"),
}


@pytest.mark.parametrize("package", MISSING)
def test_missing_package_names_its_extra(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, call, extra = MISSING[package]
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"pip install 'sdeuq\[{extra}\]'") as caught:
        call(tmp_path)
    check_message(str(caught.value), tmp_path)


def test_table_is_long_enough() -> None:
    assert len(TABLE) + len(MISSING) >= 40
