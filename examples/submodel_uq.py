# %% [markdown]
# # Uncertainty quantification of a submodel driven by a WGAN-GP
#
# A structure $\Omega$ of random material is hit by a random impact; only a small **zone of interest**
# $Z \subset \Omega$ matters. Given the displacement $g(t)$ on the interface $\Gamma$ between zone and rest,
# the zone
# alone reproduces the full model to rounding,
#
# $$ M_Z \ddot u + K_Z u = 0 \ \text{in } Z, \qquad u = g \ \text{on } \Gamma, $$
#
# so the randomness of everything outside reaches the zone through the law of $g$ alone. The job:
#
# 1. run the **full model** (assembled by FEniCS) for a training and a held-out set of samples;
# 2. compress the interface histories and train a **WGAN-GP** on them: a sampler $g = G(z, \theta)$ of random
# boundary
#    conditions given the load $\theta$, whose law is known; beside it a flow-matching sampler, Gaussians and
# a
#    bootstrap of the same coefficients;
# 3. run **Monte Carlo on the submodel** driven by each sampler, to a stated standard error;
# 4. judge everything against the held-out full-model runs, which no sampler has seen.
#
# Each step writes what it computes under the output folder and picks up what it finds there: a killed job
# continues
# to the same numbers.

# %%
"""Main job: full finite-element runs, generators of boundary conditions, Monte Carlo, a report."""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor

from fem_bridge import (
    Assembler,
    BoundaryGenerator,
    Ensemble,
    FullModel,
    ImpactProblem,
    Split,
    Submodel,
    TraceCompression,
    TraceErrors,
    WassersteinFit,
    build_ensemble,
    default_assembler,
    train_boundary_generator,
)
from inference.interpolants import FlowSettings, train_flow
from inference.training import FitSettings
from sde import NoiseStream
from uq import (
    Bootstrap,
    Comparison,
    Model,
    MonteCarloResult,
    PodGaussian,
    Tolerance,
    WassersteinSettings,
    compare,
    compare_quantities,
    monte_carlo,
    process_pool,
)


@dataclass(frozen=True, slots=True)
class Study:
    """What the job computes.

    Attributes:
        problem: Geometry, material, impact and quantities of interest.
        assembler: The finite-element code.
        folder: Where everything is written.
        seed: Seed of the full runs; training and Monte Carlo fork theirs from it.
        num_train: Full-model runs that train the generators.
        num_test: Full-model runs that judge them.
        num_modes: Modes kept of the interface histories.
        stride: Output instants per stored instant of a history.
        conditional: Give the learned generators the load parameters as conditions. Their law is known, so a
            conditional generator only has to learn how histories follow from loads and material.
        half_width: Relative half width of the 95 % interval of each mean at which Monte Carlo stops.
        wasserstein: Networks and optimisation of the WGAN-GP.
        flow: Network and optimisation of flow matching.
        device: Where networks are trained and the submodel is stepped.
    """

    problem: ImpactProblem
    assembler: Assembler
    folder: Path
    seed: int = 0
    num_train: int = 800
    num_test: int = 400
    num_modes: int = 40
    stride: int = 4
    conditional: bool = True
    half_width: float = 0.01
    wasserstein: WassersteinSettings = field(default_factory=lambda: WassersteinSettings(batch=128))
    flow: FlowSettings = field(
        default_factory=lambda: FlowSettings(
            width=64, fit=FitSettings(iterations=4000, rate=3e-3, average=0.995)
        )
    )
    device: str = "cpu"

    @property
    def full_model(self) -> FullModel:
        """The full model."""
        return FullModel(self.problem, self.assembler, device=self.device)

    def noise_seed(self, purpose: str) -> int:
        """A seed of its own for each part of the job."""
        return NoiseStream(self.seed, 0, 1).fork(purpose).seed


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds that the parts of the job take on this machine, measured in one process.

    Attributes:
        full_sample: One full-model run, in a batch.
        submodel_sample: One generated history and one submodel run, in a batch.
        training: Training of each generator.
        num_train: Full-model runs that training needs.
    """

    full_sample: float
    submodel_sample: float
    training: dict[str, float]
    num_train: int

    @property
    def offline(self) -> float:
        """Full-model runs for training [s]."""
        return self.num_train * self.full_sample

    def break_even(self, name: str) -> float:
        """Number of Monte Carlo samples from which the submodel is the cheaper way."""
        saved = self.full_sample - self.submodel_sample
        return (self.offline + self.training[name]) / saved if saved > 0 else float("inf")


@dataclass(frozen=True, slots=True)
class Outcome:
    """Everything that the report shows.

    Attributes:
        study: What was computed.
        runs: The full-model runs.
        boundaries: The generators of interface histories, by name.
        monte_carlo: The Monte Carlo run of each.
        comparisons: The scores of each against the held-out runs.
        costs: What it took.
        history: Diagnostics of the WGAN-GP's training.
    """

    study: Study
    runs: Ensemble
    boundaries: dict[str, BoundaryGenerator]
    monte_carlo: dict[str, MonteCarloResult]
    comparisons: dict[str, Comparison]
    costs: Costs
    history: dict[str, list[float]]


# %% [markdown]
# ## 1. Full-model runs


# %%
def full_runs(study: Study, executor: Executor | None) -> Ensemble:
    """Run the full model for the training and the held-out samples, or go on with the runs that are there."""
    total = study.num_train + study.num_test
    split = Split(train=range(study.num_train), test=range(study.num_train, total))
    runs = build_ensemble(
        study.full_model,
        study.folder / "full_runs",
        num_samples=total,
        seed=study.seed,
        split=split,
        executor=executor,
    )
    if len(runs.failed):
        raise RuntimeError(f"Full-model runs {runs.failed.tolist()} diverged. Refine the time step.")
    return runs


# %% [markdown]
# ## 2. Generators of boundary conditions
#
# All draw whitened coefficients of modes; they differ in the law that they learn. The structure is linear
# and at rest before the impact, so histories are proportional to the impact's amplitude $A$, whose law is
# known: conditional generators learn histories of unit amplitude, given place and duration. The WGAN-GP's
# critic sees each coefficient in proportion to its mode's energy.


# %%
def fit_generators(
    study: Study, runs: Ensemble
) -> tuple[dict[str, BoundaryGenerator], dict[str, float], dict[str, list[float]]]:
    """Fit the generators to the training histories; also returns training times [s] and diagnostics."""
    traces, loads = (runs.load(name, runs.split.train) for name in ("traces", "inputs"))
    amplitude = study.problem.inputs.names.index("A")
    whole, unit = (
        TraceCompression.fit(t, study.problem.times, stride=study.stride, num_modes=study.num_modes)
        for t in (traces, traces / loads[:, amplitude, None, None])
    )
    wasserstein = WassersteinFit(
        study.noise_seed("wasserstein"),
        study.wasserstein,
        weights=(unit if study.conditional else whole).scales,
        checkpoint=study.folder / "wasserstein.pt",
    )
    flow_history: dict[str, list[float]] = {}

    def flow(coefficients: Tensor, conditions: Tensor | None = None) -> Model:
        sampler, history = train_flow(
            coefficients,
            conditions=conditions,
            seed=study.noise_seed("flow"),
            settings=study.flow,
            checkpoint=study.folder / "flow.pt",
            device=study.device,
        )
        flow_history.update(history)
        return sampler

    known = loads if study.conditional else None
    fits: dict[str, tuple[Callable[[Tensor, Tensor | None], Model], Tensor | None]] = {
        "WGAN-GP": (wasserstein, known),
        "flow matching": (flow, known),
        "POD-Gaussian": (PodGaussian, None),
        "conditional Gaussian": (PodGaussian, loads),
        "bootstrap": (Bootstrap, None),
    }
    boundaries = {
        name: train_boundary_generator(
            whole if conditions is None else unit,
            traces,
            fit,
            conditions=conditions,
            amplitude=None if conditions is None else amplitude,
            device=study.device,
        )
        for name, (fit, conditions) in fits.items()
    }
    seconds = {"WGAN-GP": wasserstein.history["seconds"][-1], "flow matching": flow_history["seconds"][-1]}
    return boundaries, {name: seconds.get(name, 0.0) for name in fits}, wasserstein.history


# %% [markdown]
# ## 3. Monte Carlo on the submodel
#
# The submodel is a deterministic map from addressed noise to quantities of interest; sample $i$ of a
# generator is the
# same history whatever the batch, the number of workers or the restart.


# %%
def submodel_monte_carlo(
    study: Study, name: str, boundary: BoundaryGenerator, executor: Executor | None
) -> MonteCarloResult:
    """Draw histories and run the submodel until every mean is known to the stated relative half width."""
    return monte_carlo(
        Submodel(study.problem, boundary, study.assembler, device=study.device),
        study.problem.inputs if boundary.input_dim else None,
        seed=study.noise_seed(name),
        tolerance=Tolerance(relative=study.half_width, min_samples=study.num_train, max_samples=20_000),
        batch_size=128,
        executor=executor,
        store=study.folder / "monte_carlo" / name.replace(" ", "_"),
    )


# %% [markdown]
# ## 4. Judgement
#
# Scores on as many generated samples as there are training samples, beside the floor: training against
# held-out runs.


# %%
def judge(study: Study, runs: Ensemble, boundary: BoundaryGenerator, result: MonteCarloResult) -> Comparison:
    """Compare a generator with the held-out full-model runs: quantities of interest, then coefficients."""
    train, test = runs.split.train, runs.split.test
    names = list(study.full_model.output_names)
    quantities = compare_quantities(
        result.outputs[: study.num_train], runs.load("responses", train), runs.load("responses", test), names
    )
    drawn = NoiseStream(result.seed, 0, study.num_train)
    loads = result.inputs[: study.num_train].to(study.device)
    generated = boundary.coefficients(loads, drawn).cpu()
    shown, held_out = (encode(runs, boundary, part) for part in (train, test))
    noise = NoiseStream(study.noise_seed("metrics"), 0, 1)
    return quantities + compare(generated.float(), shown, held_out, noise)


def encode(runs: Ensemble, boundary: BoundaryGenerator, part: range) -> Tensor:
    """Coefficients of full-model runs in the modes of a generator."""
    traces, loads = runs.load("traces", part), runs.load("inputs", part)
    return boundary.compression.encode(boundary.unit(traces, loads))


def compression_errors(runs: Ensemble, boundary: BoundaryGenerator) -> TraceErrors:
    """What the compression of a generator loses of the held-out histories."""
    part = runs.split.test
    return boundary.compression.errors(boundary.unit(runs.load("traces", part), runs.load("inputs", part)))


def measure_costs(study: Study, boundary: BoundaryGenerator, training: dict[str, float]) -> Costs:
    """Time a batch of full-model runs and one of generated submodel runs, side by side."""
    noise, full = NoiseStream(study.noise_seed("timing"), 0, 32), study.full_model
    submodel = Submodel(study.problem, boundary, study.assembler, device=study.device)
    many, seconds = NoiseStream(noise.seed, 0, 128), {}
    for name, model, stream in (("full", full, noise), ("sub", submodel, many)):
        x = full.draw(stream)[:, : model.input_dim]
        model(x[:2], stream[:2])  # assemble and compile outside the clock
        began = time.perf_counter()
        model(x, stream)
        seconds[name] = (time.perf_counter() - began) / len(stream)
    return Costs(seconds["full"], seconds["sub"], training, study.num_train)


# %%
def run(study: Study, executor: Executor | None = None) -> Outcome:
    """The whole job without the report."""
    study.folder.mkdir(parents=True, exist_ok=True)
    runs = full_runs(study, executor)
    boundaries, training, history = fit_generators(study, runs)
    results = {name: submodel_monte_carlo(study, name, b, executor) for name, b in boundaries.items()}
    comparisons = {name: judge(study, runs, boundaries[name], results[name]) for name in boundaries}
    costs = measure_costs(study, boundaries["WGAN-GP"], training)
    return Outcome(study, runs, boundaries, results, comparisons, costs, history)


def summarise(outcome: Outcome) -> dict[str, object]:
    """The numbers of ``summary.json``; ``docs/main_job.md`` says what each key holds."""
    study, costs = outcome.study, outcome.costs
    quantities = {name: c.mean("W1/sigma") for name, c in outcome.comparisons.items()}
    error = {name: float((100 * r.std_error / r.mean.abs()).max()) for name, r in outcome.monte_carlo.items()}
    return {
        "assembler": study.assembler.name,
        "problem": "hard"
        if study.problem == ImpactProblem.hard(divisions=study.problem.divisions)
        else "easy",
        "conditional": study.conditional,
        "seed": study.seed,
        "samples": {
            "full_train": study.num_train,
            "full_test": study.num_test,
            "submodel": {name: r.num_samples for name, r in outcome.monte_carlo.items()},
        },
        "interface_dofs": outcome.boundaries["WGAN-GP"].output_shape[1],
        "compression_error": compression_errors(outcome.runs, outcome.boundaries["WGAN-GP"]).total,
        "w1_over_sigma": {name: score.value for name, score in quantities.items()}
        | {"floor": quantities["WGAN-GP"].floor},
        "std_ratio": {name: c.mean("std ratio").value for name, c in outcome.comparisons.items()},
        "std_error_percent": error,
        "seconds_per_sample_full": costs.full_sample,
        "seconds_per_sample_submodel": costs.submodel_sample,
        "seconds_training": costs.training,
        "break_even_samples": {name: costs.break_even(name) for name in costs.training},
        "digest": {name: r.digest() for name, r in outcome.monte_carlo.items()},
    }


# %% [markdown]
# ## Command line


# %%
def main(arguments: Sequence[str] | None = None) -> dict[str, object]:
    """Run the job from the command line, write the report, and return the summary."""
    from examples.submodel_uq_report import write_report

    options = _parse(arguments)
    study = _study(options)
    print(f"Assembler: {study.assembler.name}. Output: {study.folder}/", flush=True)
    with _executor(options) as executor:
        outcome = run(study, executor)
    summary = summarise(outcome)
    partial = study.folder / "summary.json.partial"
    partial.write_text(json.dumps(summary, indent=1) + "\n")
    partial.replace(study.folder / "summary.json")
    page = write_report(outcome, summary)
    print(f"Report: {page}")
    return summary


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Options of the job."""
    parser = argparse.ArgumentParser(prog="python -m examples.submodel_uq", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="small sizes: under two minutes, poor generators"
    )
    parser.add_argument("--hard", action="store_true", help="short pulses and a rough medium")
    parser.add_argument("--unconditional", action="store_true", help="do not give the load to the generators")
    parser.add_argument("--train", type=int, help="full-model runs for training")
    parser.add_argument("--test", type=int, help="held-out full-model runs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--executor", choices=["none", "processes", "dask", "mpi"], default="processes")
    parser.add_argument("--workers", type=int, default=2, help="processes of the executor")
    parser.add_argument("--assembler", choices=["auto", "dolfinx", "scikit-fem"], default="auto")
    parser.add_argument("--out", type=Path, default=Path("out/submodel_uq"))
    return parser.parse_args(arguments)


def _study(options: argparse.Namespace) -> Study:
    """The study that the options ask for."""
    setting = ImpactProblem.hard if options.hard else ImpactProblem.easy
    study = Study(
        setting(),
        _assembler(options.assembler),
        options.out,
        seed=options.seed,
        num_modes=80 if options.hard else 40,
        conditional=not options.unconditional,
        device=options.device,
    )
    if options.quick:
        study = replace(
            study,
            num_train=160,
            num_test=80,
            num_modes=20,
            half_width=0.03,
            wasserstein=replace(study.wasserstein, iterations=200),
            flow=replace(study.flow, fit=replace(study.flow.fit, iterations=1500)),
        )
    train, test = options.train or study.num_train, options.test or study.num_test
    return replace(study, num_train=train, num_test=test)


def _assembler(name: str) -> Assembler:
    """The assembler of a name."""
    if name == "dolfinx":
        from fem_bridge.assembly.dolfinx import DolfinxAssembler

        return DolfinxAssembler()
    if name == "scikit-fem":
        from fem_bridge.assembly.skfem import SkfemAssembler

        return SkfemAssembler()
    return default_assembler()


def _executor(options: argparse.Namespace) -> AbstractContextManager[Executor | None]:
    """The executor of a name: spawned processes, a local Dask cluster, or the MPI processes there are."""
    if options.executor == "none" or options.device != "cpu":
        return nullcontext(None)
    if options.executor == "processes":
        return process_pool(options.workers)
    if options.executor == "dask":
        from distributed import Client

        return Client(n_workers=options.workers, threads_per_worker=1, dashboard_address=None).get_executor()
    from mpi4py.futures import MPIPoolExecutor

    return MPIPoolExecutor()


if __name__ == "__main__":
    main()
