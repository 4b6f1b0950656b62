"""The linear problem with an exact law: its matrices, its controls, and (slowly) its figures."""

import pytest

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
    missed = [figure for figure in section(smoke=False) if not figure.passed]
    assert not missed
