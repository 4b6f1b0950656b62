"""Paths: tree mode, bridges, Levy areas, correlation; calculus conversion and structure checks."""

import pytest
import torch
from torch import Tensor

from sde import (
    SDE,
    BrownianTree,
    Calculus,
    NoiseStream,
    NoiseStructure,
    check_structure,
    solve,
    to_ito,
    to_stratonovich,
)
from sde.noise import Areas, CoarseIncrements, CorrelatedIncrements, LevyLaw, WienerIncrements
from sde.noise.bridge import Piece, halve, merge, split
from sde.noise.levy_area import chain
from sde.solvers import SRA1, EulerMaruyama, Heun
from tests.statistics import assert_mean

_ALL = Areas.SPACE_TIME | Areas.SPACE_TIME_TIME | Areas.LEVY
_F64 = torch.float64


def _grid(steps: int, stop: float = 1.0) -> Tensor:
    return torch.linspace(0, stop, steps + 1, dtype=_F64)


def test_tree_is_nested_in_all_areas_and_chunks() -> None:
    tree = BrownianTree(NoiseStream(3, 0, 5), 0.0, 2.0)
    fine = tree.steps(_grid(64, 2.0), 3, dtype=_F64)
    joined = CoarseIncrements(fine, 16).chunk(0, 4, _ALL)
    coarse = tree.steps(_grid(4, 2.0), 3, dtype=_F64).chunk(0, 4, _ALL)
    for part in ("wiener", "space_time", "space_time_time"):
        torch.testing.assert_close(getattr(joined, part), getattr(coarse, part), rtol=0, atol=1e-14)
    whole = fine.chunk(0, 64, _ALL)
    for length in (1, 5, 32):
        starts = range(0, 64, length)
        parts = [fine.chunk(first, min(length, 64 - first), _ALL) for first in starts]
        for k in range(4):
            assert torch.equal(torch.cat([part[k] for part in parts]), whole[k])


def test_tree_does_not_depend_on_batch_or_order_of_samples() -> None:
    noise = NoiseStream(3, 0, 40)
    whole = BrownianTree(noise).steps(_grid(8), 2, dtype=_F64).chunk(0, 8).wiener
    part = BrownianTree(noise[7:9]).steps(_grid(8), 2, dtype=_F64).chunk(0, 8).wiener
    assert torch.equal(part, whole[:, 7:9])
    order = torch.tensor([30, 2, 11])
    chosen = BrownianTree(noise.select(order)).steps(_grid(8), 2, dtype=_F64).chunk(0, 8).wiener
    assert torch.equal(chosen, whole[:, order])


def test_tree_at_instants_that_are_not_dyadic_is_the_same_path() -> None:
    tree = BrownianTree(NoiseStream(3, 0, 6))
    few = torch.tensor([0.1, 0.3, 0.5, 0.9], dtype=_F64)
    many = torch.tensor([0.1, 0.2, 0.3, 0.37, 0.5, 0.51, 0.9], dtype=_F64)
    one, other = (tree.steps(at, 2, dtype=_F64).chunk(0, len(at) - 1, Areas.SPACE_TIME) for at in (few, many))
    groups = [other.wiener[0:2].sum(0), other.wiener[2:4].sum(0), other.wiener[4:6].sum(0)]
    torch.testing.assert_close(torch.stack(groups), one.wiener, rtol=0, atol=1e-13)
    halves = tree.steps(_grid(2), 2, dtype=_F64).chunk(0, 2).wiener
    ends = tree.steps(torch.tensor([0.0, 0.3, 0.5, 1.0], dtype=_F64), 2, dtype=_F64).chunk(0, 3).wiener
    torch.testing.assert_close(torch.stack((ends[:2].sum(0), ends[2])), halves, rtol=0, atol=1e-13)


@pytest.mark.parametrize("instants", [[0.0, 0.25, 0.5, 0.75, 1.0], [0.1, 0.3, 1.0]])
def test_tree_increments_have_their_variances(instants: list[float]) -> None:
    times = torch.tensor(instants, dtype=_F64)
    drawn = BrownianTree(NoiseStream(1, 0, 50_000)).steps(times, 1, dtype=_F64).chunk(0, len(times) - 1, _ALL)
    for k, step in enumerate(times.diff().tolist()):
        for part, share in ((drawn.wiener, 1), (drawn.space_time, 12), (drawn.space_time_time, 720)):
            assert_mean(part[k, :, 0] ** 2 * share / step, 1.0, bias=0.07)
        assert_mean(drawn.wiener[k, :, 0] * drawn.space_time[k, :, 0] / step, 0.0, bias=0.05)


@pytest.mark.parametrize("share", [0.5, 0.3, 1e-3])
def test_split_parts_are_independent_pieces_that_merge_to_the_whole(share: float) -> None:
    z, h = NoiseStream(4, 0, 200_000).normals(6, dtype=_F64).T, 0.7
    whole = Piece(h**0.5 * z[0], (h / 12) ** 0.5 * z[1], (h / 720) ** 0.5 * z[2])
    normals = (z[3], z[4], z[5])
    left, right = halve(whole, h, normals) if share == 0.5 else split(whole, h, share, normals)
    for part, exact in zip(merge(left, right, share), whole, strict=True):
        torch.testing.assert_close(part, exact, rtol=0, atol=1e-13)
    norms = torch.tensor([1, 12, 720], dtype=_F64)
    scales = torch.cat((norms / (share * h), norms / ((1 - share) * h))).sqrt()
    scaled = torch.stack([*left, *right]) * scales[:, None]
    for i in range(6):
        for j in range(i + 1):
            assert_mean(scaled[i] * scaled[j], float(i == j), bias=0.04)


@pytest.mark.parametrize("law", LevyLaw)
@pytest.mark.parametrize("pieces", [1, 8])
def test_levy_area_has_its_law(law: LevyLaw, pieces: int) -> None:
    n = 200_000
    sizes = torch.full((pieces,), 1 / pieces, dtype=_F64)
    drawn = WienerIncrements(NoiseStream(5, 0, n), sizes, 2, dtype=_F64, levy_law=law)
    whole = CoarseIncrements(drawn, pieces).chunk(0, 1, _ALL)
    area = whole.levy[0, :, 0, 1]
    assert torch.equal(whole.levy.mT, -whole.levy)
    assert_mean(area**2, 0.25, bias=0.012)
    if law is LevyLaw.FOSTER:
        assert_mean(area.cos(), 0.88681888, bias=0.006)
        # 4.92 times the squared variance for one interval, by the moments above; 5 for the true law
        assert_mean(area**4, 0.3075 if pieces == 1 else 0.3125, bias=0.06)
    wiener, bend = whole.wiener[0], whole.space_time[0]
    mean = bend[:, 0] * wiener[:, 1] - wiener[:, 0] * bend[:, 1]
    assert_mean((area - mean) * mean, 0.0, bias=0.005)
    assert_mean((area - mean) ** 2, 0.05 + 0.2 * 2 / 12, bias=0.005)
    if law is LevyLaw.FOSTER or pieces == 8:  # the variance given H: 1/20 + |H|^2 / 5, E |H|^4 = 8/144
        squares = bend.square().sum(1)
        assert_mean((area - mean) ** 2 * squares, 0.05 / 6 + 0.2 * 8 / 144, bias=0.002)


def test_chain_of_levy_areas_is_that_of_the_polygon() -> None:
    w = NoiseStream(6, 0, 3).normals(4, dtype=_F64).view(3, 2, 2)
    none = torch.zeros(3, 2, 2, dtype=_F64)
    area = chain(none, w[:, 0], none, w[:, 1])[:, 0, 1]
    torch.testing.assert_close(area, 0.5 * (w[:, 0, 0] * w[:, 1, 1] - w[:, 0, 1] * w[:, 1, 0]))


def test_correlated_increments_have_their_covariance_and_areas() -> None:
    factor = torch.tensor([[1.0, 0.0], [-0.6, 0.8]], dtype=_F64)
    base = WienerIncrements(NoiseStream(7, 0, 100_000), torch.ones(1, dtype=_F64), 2, dtype=_F64)
    drawn = CorrelatedIncrements(base, factor).chunk(0, 1, _ALL)
    assert_mean(drawn.wiener[0, :, 0] * drawn.wiener[0, :, 1], -0.6, bias=0.04)
    plain = base.chunk(0, 1, _ALL)
    torch.testing.assert_close(drawn.levy[0, :, 0, 1], 0.8 * plain.levy[0, :, 0, 1])  # the determinant


def test_solvers_see_one_path_in_tree_mode() -> None:
    sde = SDE(lambda t, x: -x, lambda t, x: torch.ones_like(x), NoiseStructure.ADDITIVE)
    tree, start = BrownianTree(NoiseStream(8, 0, 50)), torch.zeros(50, 1, dtype=_F64)
    fine = solve(sde, start, _grid(1024), tree, solver=SRA1())[:, -1]
    for solver in (EulerMaruyama(), SRA1()):
        coarse = solve(sde, start, _grid(64), tree, solver=solver)[:, -1]
        assert (coarse - fine).abs().max() < 0.05


def test_calculi_agree_and_conversion_is_undone() -> None:
    rotation = SDE(
        lambda t, x: -x,
        lambda t, x: torch.stack((x.sin(), 0.3 * x.flip(-1)), -1),
        NoiseStructure.GENERAL,
        noise_dim=2,
    )
    back = to_ito(to_stratonovich(rotation))
    at, x = torch.zeros((), dtype=_F64), NoiseStream(0, 0, 4).normals(2, dtype=_F64)
    torch.testing.assert_close(back.drift(at, x), rotation.drift(at, x))
    growth = SDE(lambda t, x: 0 * x, lambda t, x: x)
    torch.testing.assert_close(to_stratonovich(growth).drift(at, x), -0.5 * x)
    assert to_ito(growth) is growth
    times, noise = _grid(512), NoiseStream(2, 0, 500)
    one = solve(growth, torch.ones(500, 1, dtype=_F64), times, noise)
    other = solve(to_stratonovich(growth), torch.ones(500, 1, dtype=_F64), times, noise, solver=Heun())
    assert (one - other)[:, -1].square().mean().sqrt() < 0.1
    assert to_stratonovich(growth).calculus is Calculus.STRATONOVICH


@pytest.mark.parametrize(
    ("structure", "diffusion", "noise_dim"),
    [
        (NoiseStructure.ADDITIVE, lambda t, x: 1 + 0.1 * x, None),
        (NoiseStructure.DIAGONAL, lambda t, x: x.flip(-1), None),
        (
            NoiseStructure.COMMUTATIVE,
            lambda t, x: torch.stack((torch.stack((x[:, 1], 0 * x[:, 0]), 1), torch.ones_like(x)), -1),
            2,
        ),
    ],
)
def test_broken_promise_about_the_noise_is_found(
    structure: NoiseStructure, diffusion: object, noise_dim: int | None
) -> None:
    x, at = torch.ones(3, 2), torch.zeros(())
    with pytest.raises(ValueError, match=f"`sde` must have {structure.value} noise, as it says"):
        check_structure(SDE(lambda t, x: x, diffusion, structure, noise_dim=noise_dim), at, x)
    check_structure(SDE(lambda t, x: x, lambda t, x: torch.ones_like(x), NoiseStructure.ADDITIVE), at, x)
    check_structure(SDE(lambda t, x: x, lambda t, x: x.sin()), at, x)


def test_tree_refuses_what_it_cannot_do() -> None:
    noise = NoiseStream(0, 0, 2)
    with pytest.raises(ValueError, match="`start` must lie below `stop`"):
        BrownianTree(noise, 1.0, 1.0)
    with pytest.raises(ValueError, match="`depth` must be an integer"):
        BrownianTree(noise, depth=40)
    with pytest.raises(ValueError, match=r"`instants` must lie in \[0, 1\]"):
        BrownianTree(noise).steps(_grid(4, 2.0), 1)
    with pytest.raises(ValueError, match="`instants` must increase"):
        BrownianTree(noise).steps(torch.tensor([0.0, 0.5, 0.5]), 1)
