"""The linear problem with an exact law: its matrices, its controls, and (slowly) its figures."""

import pytest
import torch

pytest.importorskip("skfem", reason="needs an assembler")

from benchmarks.check import Section
from benchmarks.linear_trace import (
    absolute_law,
    gaussian_law,
    negative_controls,
    solve_problem,
)
from sde.noise import NoiseStream
from tests.statistics import assert_mean
from uq.baselines import PodGaussian
from uq.generator import WassersteinGenerator


def test_submodel_equals_the_full_model() -> None:
    problem = solve_problem(10)
    gap = (problem.response @ problem.trace - problem.full_response).abs().max()
    assert gap <= 1e-12 * problem.full_response.abs().max()


def test_quantities_have_their_exact_deviations() -> None:
    problem = solve_problem(10)
    for absolute in (False, True):
        traces = problem.traces(NoiseStream(0, 0, 100_000), absolute=absolute)
        responses = traces @ problem.response.mT / problem.quantity_deviations()
        assert_mean(responses, 0.0, bias=0.04)
        if not absolute:
            assert_mean(responses**2, 1.0, bias=0.05)


def test_controls_miss_checks_and_exact_samples_pass_them() -> None:
    assert all(figure.passed for figure in negative_controls(smoke=False))


def test_figures_are_made_in_small_size() -> None:
    figures = [*gaussian_law(smoke=True), *absolute_law(smoke=True)]
    assert figures[0].passed
    assert len({figure.name for figure in figures}) >= 15


@pytest.mark.slow
@pytest.mark.parametrize("section", [gaussian_law, absolute_law])
def test_generator_reaches_the_exact_law(section: Section) -> None:
    missed = [figure for figure in section(False) if not figure.passed]
    assert not missed


def test_calibration_leaves_the_heavy_component_alone() -> None:
    data = NoiseStream(0, 0, 500).normals(2)

    def calibrated(weights: torch.Tensor | None) -> torch.Tensor:
        generator = WassersteinGenerator(PodGaussian(data), torch.ones(2), width=32, seed=0)
        last = generator.network[-1]
        assert isinstance(last, torch.nn.Linear)
        with torch.no_grad():  # a second component left wrong, and correlated with the first
            last.weight[1] = 3 * NoiseStream(1, 0, 1).normals(32)[0]
        generator.calibrate(data, weights=weights, seed=0)
        return (generator.recolour[0] - torch.tensor([1.0, 0.0])).abs()

    assert calibrated(None).max() > 0.1
    heavy = calibrated(torch.tensor([1.0, 0.001]))
    assert heavy[0] < 0.1
    assert heavy[1] < 1e-3
