"""Generators of boundary conditions against full-model runs that they have not seen.

The bars are on the mean over quantities of interest of W1/sigma, relative to the POD-Gaussian, and on
standard deviations. Every seed makes new training runs and new training; the generated and the held-out
samples are many, so that what is judged is the law that was learned and not the luck of the draw: 6000
samples of the full model against 6000 others score 0.02. The floor is what the training runs themselves
leave open.
"""

import tempfile
from collections.abc import Iterator
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from benchmarks.check import Figure, at_least, at_most, main, reported
from examples.submodel_uq import Study, compression_errors, encode, fit_generators, full_runs
from fem_bridge.assembly import default_assembler
from fem_bridge.boundary import BoundaryGenerator
from fem_bridge.problems import ImpactProblem
from fem_bridge.submodel import Submodel
from inference.training import FitSettings
from sde import NoiseStream
from uq.comparison import Comparison, compare_quantities
from uq.execution import process_pool
from uq.metrics import nearest_distances, sliced_wasserstein
from uq.monte_carlo import monte_carlo

__all__ = ["SECTIONS", "easy_setting", "hard_setting", "unconditional"]

_SEEDS = (11, 12, 13)
_HELD_OUT_SEED = 10
_GENERATED = 6000


def easy_setting(smoke: bool) -> Iterator[Figure]:
    """Three seeds of the easy setting, with the shrunk samples that must fail."""
    held_out = None
    for seed in _SEEDS[:1] if smoke else _SEEDS:
        with tempfile.TemporaryDirectory() as folder, process_pool(2) as pool:
            study = _study(ImpactProblem.easy(), seed, Path(folder), smoke)
            held_out = _held_out(study, pool) if held_out is None else held_out
            judged = _Judged(study, held_out, pool)
        scores = {name: comparison.mean("W1/sigma").value for name, comparison in judged.comparisons.items()}
        floor = judged.comparisons["WGAN-GP"].mean("W1/sigma").floor
        gaussian, at = scores["POD-Gaussian"], f"seed {seed}"
        yield reported(f"mean W1/sigma, floor, {at}", floor, "training against held-out runs")
        for name in ("POD-Gaussian", "conditional Gaussian", "bootstrap"):
            yield reported(f"mean W1/sigma, {name}, {at}", scores[name])
        for name, share, spread in (("WGAN-GP", 0.75, 0.15), ("flow matching", 0.5, 0.05)):
            detail = f"{scores[name]:.4f} against {gaussian:.4f}"
            yield at_most(
                f"W1/sigma over that of POD-Gaussian, {name}, {at}", scores[name] / gaussian, share, detail
            )
            yield at_most(f"largest error of a standard deviation, {name}, {at}", judged.spread(name), spread)
            yield at_least(
                f"nearest-neighbour distance over that of held-out runs, {name}, {at}",
                judged.nearest[name],
                0.9,
            )
            yield reported(f"sliced W1 of the coefficients, {name}, {at}", judged.sliced[name])
            shrunk = judged.shrunk(name)
            missed = (shrunk.mean("W1/sigma").value / gaussian > share) + (_spread(shrunk) > spread)
            yield at_least(f"bars that {name} misses when shrunk by 0.85, of 2, {at}", missed, 1)


def hard_setting(smoke: bool) -> Iterator[Figure]:
    """One seed of the hard setting: reported, without bars."""
    with tempfile.TemporaryDirectory() as folder, process_pool(2) as pool:
        study = _study(ImpactProblem.hard(), _SEEDS[0], Path(folder), smoke)
        study = study if smoke else replace(study, num_modes=80)
        judged = _Judged(study, _held_out(study, pool), pool)
    yield from _table(judged, "hard")


def unconditional(smoke: bool) -> Iterator[Figure]:
    """One seed of the easy setting with generators that do not know the load: reported, without bars."""
    with tempfile.TemporaryDirectory() as folder, process_pool(2) as pool:
        study = replace(_study(ImpactProblem.easy(), _SEEDS[0], Path(folder), smoke), conditional=False)
        judged = _Judged(study, _held_out(study, pool), pool)
    yield from _table(judged, "unconditional")


def _study(problem: ImpactProblem, seed: int, folder: Path, smoke: bool) -> Study:
    """The study of the main job."""
    study = Study(problem, default_assembler(), folder, seed=seed)
    if not smoke:
        return study
    small = replace(
        study, num_train=64, num_test=64, num_modes=8, flow=replace(study.flow, fit=FitSettings(20))
    )
    return replace(small, wasserstein=replace(study.wasserstein, iterations=10))


def _held_out(study: Study, pool: Executor) -> Tensor:
    """Quantities of interest of full-model runs that no study has seen."""
    result = monte_carlo(
        study.full_model,
        study.problem.inputs,
        seed=_HELD_OUT_SEED,
        num_samples=_count(study),
        batch_size=32,
        executor=pool,
        progress=False,
    )
    return result.outputs


def _count(study: Study) -> int:
    """Generated and held-out samples: as many as for the bars, but for a smoke test."""
    return _GENERATED if study.num_train >= 800 else 64


class _Judged:
    """Generators of a study and their scores."""

    def __init__(self, study: Study, held_out: Tensor, pool: Executor) -> None:
        self.study = study
        runs = full_runs(study, pool)
        self.boundaries, _, _ = fit_generators(study, runs)
        self.compression = compression_errors(runs, self.boundaries["WGAN-GP"])
        self.train, self.held_out = runs.load("responses", runs.split.train), held_out
        self.outputs: dict[str, Tensor] = {}
        self.comparisons: dict[str, Comparison] = {}
        self.nearest: dict[str, float] = {}
        self.sliced: dict[str, float] = {}
        for name, boundary in self.boundaries.items():
            self.outputs[name], generated = self._sample(name, boundary, pool)
            self.comparisons[name] = compare_quantities(
                self.outputs[name], self.train, held_out, study.full_model.output_names
            )
            known, unseen = (encode(runs, boundary, part) for part in (runs.split.train, runs.split.test))
            distances = [nearest_distances(x, known).median() for x in (generated, unseen)]
            self.nearest[name] = float(distances[0] / distances[1])
            directions = NoiseStream(study.noise_seed("directions"), 0, 500)
            self.sliced[name] = sliced_wasserstein(generated, unseen, directions)

    def _sample(self, name: str, boundary: BoundaryGenerator, pool: Executor) -> tuple[Tensor, Tensor]:
        """Quantities of interest and coefficients of generated samples."""
        study, count = self.study, _count(self.study)
        result = monte_carlo(
            Submodel(study.problem, boundary, study.assembler),
            study.problem.inputs if boundary.input_dim else None,
            seed=study.noise_seed(name),
            num_samples=count,
            batch_size=128,
            executor=pool,
            progress=False,
        )
        few = slice(0, study.num_test)
        coefficients = boundary.coefficients(result.inputs[few], NoiseStream(result.seed, 0, count)[few])
        return result.outputs, coefficients.float()

    def spread(self, name: str) -> float:
        """Largest relative error of a standard deviation over the quantities of interest."""
        return _spread(self.comparisons[name])

    def shrunk(self, name: str) -> Comparison:
        """The scores of quantities of interest that are shrunk towards their mean by 0.85."""
        outputs, mean = self.outputs[name], self.outputs[name].mean(0)
        shrunk = mean + 0.85 * (outputs - mean)
        return compare_quantities(shrunk, self.train, self.held_out, self.study.full_model.output_names)


def _spread(comparison: Comparison) -> float:
    """Largest relative error of a standard deviation."""
    return max(abs(score.value - 1) for score in comparison.scores if score.metric.startswith("std ratio"))


def _table(judged: _Judged, setting: str) -> Iterator[Figure]:
    """All scores of a study, without bars."""
    floor = judged.comparisons["WGAN-GP"].mean("W1/sigma").floor
    yield reported(f"mean W1/sigma, floor, {setting}", floor)
    yield reported(f"relative error of the compression, {setting}", judged.compression.total)
    for name, comparison in judged.comparisons.items():
        yield reported(
            f"mean W1/sigma, {name}, {setting}",
            comparison.mean("W1/sigma").value,
            f"largest error of a standard deviation {100 * judged.spread(name):.1f} %",
        )


SECTIONS = [easy_setting, hard_setting, unconditional]

if __name__ == "__main__":
    raise SystemExit(main("generators", SECTIONS))
