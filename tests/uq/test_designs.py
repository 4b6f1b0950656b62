"""Designs: addressed by index, inside the open cube, balanced, independent replications."""

import pytest
import torch
from scipy.stats import qmc

from tests.statistics import assert_mean
from uq.designs import Design, Halton, Iid, LatinHypercube, Sobol, replicate

DESIGNS = [
    Iid(3, 1),
    LatinHypercube(3, 500, 1),
    Sobol(3, 1),
    Halton(3, 1),
    replicate(Sobol(3, 1), 4),
    replicate(LatinHypercube(3, 125, 1), 4),
]
NAMES = ["iid", "lhs", "sobol", "halton", "replicated-sobol", "replicated-lhs"]


@pytest.mark.parametrize("design", DESIGNS, ids=NAMES)
def test_design_is_addressed_by_index(design):
    whole = design.points(0, 500)
    assert isinstance(design, Design)
    assert whole.shape == (500, design.dimension)
    assert whole.dtype == torch.float64
    for start, stop in [(130, 131), (0, 1), (499, 500), (1, 2), (7, 300), (64, 128), (0, 500), (20, 20)]:
        assert torch.equal(design.points(start, stop), whole[start:stop])


@pytest.mark.parametrize("design", DESIGNS, ids=NAMES)
def test_design_stays_inside_the_open_cube_and_is_uniform(design):
    points = design.points(0, 500)
    assert bool(((points > 0) & (points < 1)).all())
    assert_mean(points, 0.5, bias=0.2)


@pytest.mark.parametrize("kind", [Iid, Sobol, Halton])
def test_design_depends_on_its_seed(kind):
    assert not torch.equal(kind(2, 1).points(0, 8), kind(2, 2).points(0, 8))
    assert torch.equal(kind(2, 2**64 - 1).points(0, 8), kind(2, 2**64 - 1).points(0, 8))


def test_sobol_prefixes_are_nets_and_its_discrepancy_is_low():
    points = Sobol(2, 5).points(0, 64)
    for axis in range(2):
        assert (points[:, axis] * 64).floor().unique().numel() == 64
    quasi, independent = qmc.discrepancy(points.numpy()), qmc.discrepancy(Iid(2, 5).points(0, 64).numpy())
    assert quasi < independent / 5


def test_latin_hypercube_fills_each_slice_once():
    points = LatinHypercube(4, 37, 3).points(0, 37)
    assert torch.equal(
        (points * 37).floor().sort(0).values, torch.arange(37.0).double().unsqueeze(1).expand(37, 4)
    )


def test_replications_are_distinct_and_dealt_in_turn():
    design = replicate(Halton(2, 9), 3)
    whole = design.points(0, 30)
    for r, part in enumerate(design.designs):
        assert torch.equal(whole[r::3], part.points(0, 10))
    assert len({part.seed for part in design.designs} | {9}) == 4


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: Iid(0, 1), ValueError, "`dimension` must be at least 1"),
        (lambda: Iid(2.0, 1), TypeError, "`dimension` must be an integer"),
        (lambda: Sobol(2, -1), ValueError, "`seed` must lie in"),
        (lambda: Sobol(30_000, 1), ValueError, "`dimension` must be at most 21201"),
        (lambda: Sobol(2, 1).points(5, 3), ValueError, "0 <= start <= stop"),
        (lambda: Sobol(2, 1).points(0, 2**30 + 1), ValueError, r"at most 2\*\*30"),
        (lambda: LatinHypercube(2, 10, 1).points(0, 11), ValueError, "at most 10, the size"),
        (lambda: LatinHypercube(2, 0, 1), ValueError, "`size` must be at least 1"),
        (lambda: replicate(Sobol(2, 1), 1), ValueError, "`count` must be at least 2"),
        (lambda: replicate(replicate(Sobol(2, 1), 2), 2), TypeError, "must be Iid, LatinHypercube, Sobol"),
    ],
)
def test_designs_refuse_bad_arguments(call, error, words):
    with pytest.raises(error, match=words):
        call()
