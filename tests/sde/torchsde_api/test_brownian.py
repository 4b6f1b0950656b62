"""Brownian motions that are called with the ends of an interval."""

import itertools

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from sde import NoiseStream
from sde import torchsde_api as torchsde
from sde.noise.increments import GivenIncrements
from sde.torchsde_api.expansion import CellPath
from sde.torchsde_api.settings import LEVY_AREA_APPROXIMATIONS
from tests.sde.torchsde_api.models import BATCH, F64, STATE, Model, state
from tests.statistics import assert_mean


@pytest.mark.parametrize("dt", [None, 0.0625])
def test_interval_is_a_brownian_motion(dt: float | None) -> None:
    n = 65_536
    bm = torchsde.BrownianInterval(size=(n,), entropy=1, dt=dt, levy_area_approximation="space-time")
    for ta, tb in ((0.0, 1.0), (0.07, 0.3), (0.3, 0.3 + 1e-4), (0.5, 0.5625)):
        wiener, integral = (part.double() for part in bm(ta, tb, return_U=True))
        step = tb - ta
        area = integral / step - 0.5 * wiener
        assert stats.kstest((wiener / step**0.5).numpy(), "norm").pvalue > 1e-6
        assert stats.kstest((area * (12 / step) ** 0.5).numpy(), "norm").pvalue > 1e-6
        assert_mean(wiener * area / step, 0.0, bias=0.02)
    one, two, three = bm(0.1, 0.2), bm(0.2, 0.35), bm(0.35, 0.9)
    for a, b in ((one, two), (one, three), (two, three)):
        assert_mean(a * b, 0.0, bias=0.02)


def test_expansion_has_the_covariance_of_a_brownian_motion() -> None:
    """The normals of the expansion are counted one by one: their weights give the exact covariance."""
    times, depth = [0.0, 0.1, 0.3, 0.55, 0.62, 0.9, 1.0], 24
    size = 2 + 2 * depth * len(times)

    class Unit:
        """Draws a basis vector for each address."""

        def __init__(self) -> None:
            self.nodes: dict[int, int] = {}

        def select_ids(self, ids: Tensor) -> "Unit":
            self.ids = ids.tolist()
            return self

        def normals(self, count: int, **options: object) -> Tensor:
            drawn = torch.zeros(len(self.ids), count, size)
            for row, node in enumerate(self.ids):
                first = 2 + 2 * self.nodes.setdefault(node, len(self.nodes))
                drawn[row, 0, first] = drawn[row, 1, first + 1] = 1.0
            return drawn

    ends = torch.zeros(2, 1, 1, size, dtype=F64)
    ends[0, ..., 0], ends[1, ..., 1] = 1.0, (1 / 12) ** 0.5
    path = CellPath(GivenIncrements(ends[0], ends[1]), 1.0, Unit(), resolution=2.0**-depth)
    wiener, area = path.increments(times, torch.zeros((), dtype=F64), areas=True)
    steps = torch.tensor(np.diff(times))
    for weights, variance in ((wiener[:, 0], steps), (area[:, 0], steps / 12)):
        torch.testing.assert_close(weights @ weights.mT, torch.diag(variance), rtol=0.0, atol=1e-7)
    torch.testing.assert_close(
        wiener[:, 0] @ area[:, 0].mT, torch.zeros(6, 6, dtype=F64), rtol=0.0, atol=1e-7
    )


def test_hint_of_the_step_makes_another_path_that_no_query_changes() -> None:
    def motion(dt: float | None) -> torchsde.BrownianInterval:
        options = {"levy_area_approximation": "space-time", "dtype": F64}
        return torchsde.BrownianInterval(size=(5, 2), entropy=7, dt=dt, **options)

    bm, fine = motion(0.1), [0.1 * k / 4 for k in range(41)]
    assert not torch.equal(bm(0.0, 0.1), motion(None)(0.0, 0.1))
    whole = bm(fine[2], fine[38], return_U=True)
    wiener, area = bm.pieces(fine, areas=True)
    single = [motion(0.1)(left, right, return_U=True) for left, right in itertools.pairwise(fine)]
    torch.testing.assert_close(wiener, torch.stack([one[0] for one in single]), rtol=1e-12, atol=1e-14)
    integral = 0.025 * (0.5 * wiener + area)
    torch.testing.assert_close(integral, torch.stack([one[1] for one in single]), rtol=1e-11, atol=1e-14)
    torch.testing.assert_close(bm(fine[2], fine[38]), wiener[2:38].sum(0), rtol=1e-12, atol=1e-14)
    before = wiener[2:38].cumsum(0) - wiener[2:38]
    torch.testing.assert_close(whole[1], (integral[2:38] + 0.025 * before).sum(0), rtol=1e-10, atol=1e-12)
    assert all(torch.equal(*pair) for pair in zip(bm(fine[2], fine[38], return_U=True), whole, strict=True))


def test_first_solve_gives_the_step_where_that_may_matter() -> None:
    model = Model("ito", "diagonal")

    def motion(**options: object) -> torchsde.BrownianInterval:
        return torchsde.BrownianInterval(size=(BATCH, STATE), dtype=F64, entropy=3, **options)

    def solve(bm: torchsde.BaseBrownian) -> torchsde.BaseBrownian:
        torchsde.sdeint(model, state(), [0.0, 1.0], bm=bm, dt=0.25, method="euler")
        return bm

    asked = motion()
    before = asked(0.0, 0.3)
    tree = {"halfway_tree": True, "tol": 1e-8}
    for one, other in (
        (solve(motion()), motion(dt=0.25)),
        (solve(asked), motion()),
        (solve(motion(**tree)), motion(**tree)),
    ):
        assert torch.equal(one(0.0, 0.3), other(0.0, 0.3))
    assert torch.equal(asked(0.0, 0.3), before)
    base = motion()
    torchsde.sdeint(model, state(), [-1.0, 0.0], bm=torchsde.ReverseBrownian(base), dt=0.25, method="euler")
    assert torch.equal(base(0.0, 0.3), motion(dt=0.25)(0.0, 0.3))
    one, other = (torchsde.BrownianTree(0.0, torch.zeros(BATCH, STATE), entropy=3) for _ in range(2))
    assert torch.equal(solve(one)(0.0, 0.3), other(0.0, 0.3))
    assert not torch.equal(solve(motion())(0.0, 0.3), before)


def test_motions_of_other_classes_may_be_reversed() -> None:
    class Straight:
        levy_area_approximation, shape = "none", (BATCH, STATE)

        def __call__(self, ta: float, tb: float, return_U: bool = False, return_A: bool = False) -> Tensor:
            return torch.full(self.shape, tb - ta, dtype=F64)

    model = Model("ito", "diagonal")
    model.f, model.g = lambda t, y: torch.zeros_like(y), lambda t, y: torch.ones_like(y)
    bm = torchsde.ReverseBrownian(Straight())
    states = torchsde.sdeint(model, state(), [-1.0, 0.0], bm=bm, dt=0.25, method="euler")
    assert torch.equal(states[1], state() + 1)


def test_rows_do_not_depend_on_the_number_of_rows() -> None:
    few, many = (torchsde.BrownianInterval(size=(n, 2), entropy=3, dtype=F64) for n in (3, 300))
    torch.testing.assert_close(few(0.1, 0.7), many(0.1, 0.7)[:3], rtol=1e-13, atol=0.0)


def test_seed_without_entropy_is_numpys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(np.random, "randint", np.random.RandomState(3).randint)
    bm = torchsde.BrownianInterval(size=(2,))
    assert bm.entropy == np.random.RandomState(3).randint(0, 2**31 - 1)


def test_interval_bridges_given_ends() -> None:
    n = 65_536
    ends = {name: torch.full((n,), value, dtype=F64) for name, value in (("W", 1.5), ("H", -0.3))}
    bm = torchsde.BrownianInterval(entropy=1, levy_area_approximation="space-time", **ends)
    torch.testing.assert_close(bm(0, 1, return_U=True), (ends["W"], 0.5 * ends["W"] + ends["H"]))
    # W(s) has mean s W + 6 s (1 - s) H and variance s (1 - s) - 3 s^2 (1 - s)^2 given both ends.
    s = 0.3
    bump = s * (1 - s)
    scaled = (bm(0, s) - s * 1.5 + 6 * bump * 0.3) / (bump - 3 * bump**2) ** 0.5
    assert stats.kstest(scaled.numpy(), "norm").pvalue > 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_interval_is_additive(dtype: torch.dtype) -> None:
    bm = torchsde.BrownianInterval(size=(64, 3), entropy=2, dtype=dtype, levy_area_approximation="foster")
    times = sorted(NoiseStream(3, 0, 1).uniforms(30)[0].tolist())
    for ta, tb, tc in zip(times, times[1:], times[2:], strict=False):
        (w1, u1), (w2, u2), (w, u) = (bm(*ends, return_U=True) for ends in ((ta, tb), (tb, tc), (ta, tc)))
        torch.testing.assert_close(w1 + w2, w, rtol=0.0, atol=1e-6)
        torch.testing.assert_close(u1 + u2 + (tc - tb) * w1, u, rtol=0.0, atol=1e-6)


def test_interval_depends_on_entropy_and_not_on_queries() -> None:
    def motion(entropy: int) -> torchsde.BrownianInterval:
        return torchsde.BrownianInterval(size=(5, 2), entropy=entropy, levy_area_approximation="foster")

    ends = [(0.1, 0.2), (0.0, 0.9), (0.15, 0.151), (0.2, 0.7), (1 / 3, 2 / 3)] * 2
    one, two = motion(7), motion(7)
    first = [one(*e, return_U=True, return_A=True) for e in ends]
    second = [two(*e, return_U=True, return_A=True) for e in reversed(ends)][::-1]
    for a, b in zip(first, second, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert torch.equal(first[0][0], first[5][0])
    assert not torch.equal(motion(8)(0.1, 0.2), first[0][0])


def test_intervals_without_entropy_differ() -> None:
    one, two = (torchsde.BrownianInterval(size=(5,)) for _ in range(2))
    assert one.entropy != two.entropy
    assert not torch.equal(one(0, 1), two(0, 1))


@pytest.mark.parametrize("size", [(), (4,), (4, 3), (2, 4, 3)])
def test_interval_answers_have_shapes(size: tuple[int, ...]) -> None:
    matrix = (*size, size[-1]) if len(size) > 1 else size
    for levy in LEVY_AREA_APPROXIMATIONS.all():
        bm = torchsde.BrownianInterval(0.0, 2.0, size=size, levy_area_approximation=levy)
        assert bm(0.5, 1.0).shape == bm(0.5).shape == bm.shape == bm.size() == size
        wiener, integral, area = bm(0.5, 1.0, return_U=True, return_A=True)
        assert wiener.shape == size
        assert integral is None if levy == "none" else integral.shape == size
        assert area is None if levy in ("none", "space-time") else area.shape == matrix
        assert bm(0.5, 0.5).abs().max() == 0


@pytest.mark.parametrize("levy", ["davie", "foster"])
def test_levy_area_has_the_variance_of_the_true_one(levy: str) -> None:
    bm = torchsde.BrownianInterval(size=(100_000, 2), entropy=4, dt=0.5, levy_area_approximation=levy)
    _, area = bm(0.0, 0.5, return_A=True)
    assert torch.equal(area, -area.mT)
    assert_mean(area[:, 0, 1] ** 2 / 0.5**2, 0.25, bias=0.02)


def test_interval_properties_and_errors() -> None:
    bm = torchsde.BrownianInterval(
        0, 1, (3, 2), entropy=5, tol=1e-3, pool_size=4, cache_size=None, halfway_tree=True
    )
    assert (bm.entropy, bm.dt, bm.tol, bm.cache_size, bm.halfway_tree) == (5, None, 1e-3, None, True)
    assert (bm.dtype, bm.device) == (torch.float32, torch.device("cpu"))
    assert "entropy=5" in repr(bm)
    for arguments, message in (
        ({}, "`size` must be given"),
        ({"size": (2,), "W": torch.ones(3)}, "`size` must agree"),
        ({"dtype": F64, "W": torch.ones(3)}, "`dtype` must agree"),
        ({"W": torch.ones(3, dtype=torch.int64)}, "`W` must be a floating-point tensor"),
        ({"size": (2,), "t0": 1.0}, "`t0` must lie below"),
        ({"size": (2,), "t0": "0"}, "`t0` must be a number"),
        ({"size": (2,), "dt": 0.0}, "`dt` must be positive"),
        ({"size": (2,), "tol": -1.0}, "`tol` must be at least 0"),
        ({"size": (2,), "halfway_tree": True}, "`tol` must be at least 0, positive with `halfway_tree`"),
        ({"size": (2,), "halfway_tree": True, "tol": 0.1, "dt": 0.1}, "`dt` must be None with"),
        ({"size": (2,), "levy_area_approximation": "exact"}, "`levy_area_approximation` must be one of"),
    ):
        with pytest.raises(ValueError, match=message):
            torchsde.BrownianInterval(**arguments)
    with pytest.raises(RuntimeError, match="`ta` must not exceed `tb`"):
        bm(0.5, 0.2)
    with pytest.warns(UserWarning, match=r"Queries must lie in \[0, 1\]"):
        assert torch.equal(bm(0.0, 1.5), bm(0.0, 1.0))
    assert torch.equal(bm(torch.tensor(-1e-8), torch.tensor(1.0 + 1e-7)), bm(0.0, 1.0))  # rounding


def test_derived_motions() -> None:
    bm = torchsde.BrownianInterval(size=(4, 2), entropy=1, levy_area_approximation="space-time")
    back = torchsde.ReverseBrownian(bm)
    assert torch.equal(back(-0.7, -0.2), bm(0.2, 0.7))
    assert (back.shape, back.dtype, back.levy_area_approximation) == (bm.shape, bm.dtype, "space-time")
    start = torch.ones(4, 2)
    for motion in (
        torchsde.BrownianPath(0.0, start, window_size=3),
        torchsde.BrownianTree(0.0, start, entropy=3),
    ):
        assert torch.equal(motion(0.0), start)
        torch.testing.assert_close(motion(0.7) - motion(0.2), motion(0.2, 0.7), rtol=0.0, atol=1e-6)
        assert motion.levy_area_approximation == "none"
    tree = torchsde.BrownianTree(0.0, start, t1=2.0, w1=3 * start, entropy=3)
    torch.testing.assert_close(tree(2.0), 3 * start)
    like = torchsde.brownian_interval_like(start.double(), t1=3.0, entropy=1, size=(4, 5))
    assert (like.shape, like.dtype) == ((4, 5), F64)


def test_a_solve_asks_what_the_motion_answers() -> None:
    """Euler with unit diffusion adds up the increments."""
    holder = type("Holder", (), {"sde_type": "ito", "noise_type": "diagonal"})()
    holder.f, holder.g = lambda t, y: torch.zeros_like(y), lambda t, y: torch.ones_like(y)
    for bm in (
        torchsde.BrownianInterval(size=(4, 3), entropy=1, dtype=F64),
        torchsde.BrownianPath(0.0, torch.zeros(4, 3, dtype=F64)),
        torchsde.BrownianTree(0.0, torch.zeros(4, 3, dtype=F64), entropy=1, tol=1e-9),
    ):
        states = torchsde.sdeint(holder, state(), [0.0, 0.3, 1.0], bm=bm, dt=0.1, method="euler")
        torch.testing.assert_close(states[1:] - 1, torch.stack([bm(0.0, 0.3), bm(0.0, 1.0)]))
