"""Couplings and the training of fields."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from inference import FitSettings, fit
from inference.interpolants import (
    Entropic,
    Kind,
    Matching,
    OneSided,
    OptimalTransport,
    Prediction,
    TwoSided,
    coupled,
    dependent,
    independent,
    paired,
)
from inference.interpolants.times import LogitNormalTimes, TimeLaw, UniformTimes
from inference.reference_problems import Mixture, MixtureProblem
from inference.samplers import ProbabilityDiffusion, ProbabilityFlow
from sde.networks import perceptron
from sde.noise import NoiseStream

F64 = torch.float64


def gaussian(mean: float, variance: float) -> Mixture:
    return Mixture.gaussian(torch.tensor([mean], dtype=F64), torch.tensor([[variance]], dtype=F64))


class Field(nn.Module):
    """A small network of time, point and, where given, the base point."""

    def __init__(self, inputs: int, seed: int = 0) -> None:
        super().__init__()
        self.layers = perceptron((inputs, 48, 48, 1), seed=seed, dtype=F64)

    def forward(self, t: Tensor, x: Tensor, *given: Tensor) -> Tensor:
        return self.layers(torch.cat((t.expand_as(x[:, :1]), x, *given), 1))


def test_optimal_assignment_is_optimal_and_uses_every_row() -> None:
    base, target = torch.tensor(np.random.default_rng(0).standard_normal((2, 32, 3)))
    rows = OptimalTransport()(base, target, NoiseStream(0, 0, 32))
    assert rows.sort().values.tolist() == list(range(32))
    cost = torch.cdist(base, target).square()
    best = cost[linear_sum_assignment(cost.numpy())].sum()
    assert cost[torch.arange(32), rows].sum() == pytest.approx(best.item(), rel=1e-14)


def test_entropic_plan_has_its_marginals_and_limits() -> None:
    base, target = torch.tensor(np.random.default_rng(1).standard_normal((2, 24, 2)))
    plan = Entropic(0.5).plan(base, target)
    torch.testing.assert_close(plan.sum(0), torch.full((24,), 1 / 24, dtype=F64), rtol=0, atol=1e-9)
    torch.testing.assert_close(plan.sum(1), torch.full((24,), 1 / 24, dtype=F64), rtol=1e-3, atol=0)
    flat = Entropic(1e6).plan(base, target)
    torch.testing.assert_close(flat, torch.full_like(flat, 1 / 24**2), rtol=1e-4, atol=0)
    cost = torch.cdist(base, target).square()
    best = cost[torch.arange(24), OptimalTransport()(base, target, NoiseStream(0, 0, 24))].mean()
    sharp = (Entropic(1e-2, iterations=3000).plan(base, target) * cost).sum()
    assert 0 < sharp - best < 1e-2 * math.log(24)  # the entropy is at most that of the independent plan


def test_entropic_pairs_have_the_correlation_of_the_bridge() -> None:
    """N(0, 1/2) to N(0, 2) with eps = 1/2: the covariance of the ends is -eps + sqrt(eps^2 + C0 C1)."""
    noise = NoiseStream(2, 0, 1000)
    source = independent(gaussian(0, 0.5).sample, gaussian(0, 2).sample)
    base, target = coupled(source, Entropic(2.0, iterations=100))(noise)  # 2 sigma^2 with sigma^2 = 2 eps
    assert abs((base * target).mean() - (-0.5 + math.sqrt(1.25))) < 0.2
    assert abs((base * base).mean() - 0.5) < 0.15


def test_entropic_plan_is_the_sinkhorn_iteration_in_logarithms() -> None:
    """Against the plain iteration, written here, on points of another number than the base."""
    rng = np.random.default_rng(2)
    base, target = torch.tensor(rng.standard_normal((12, 2))), torch.tensor(rng.standard_normal((17, 2)))
    kernel = (-torch.cdist(base, target).square() / 0.7).exp()
    left, right = torch.ones(12, dtype=F64), torch.ones(17, dtype=F64)
    for _ in range(2000):
        left = 1 / (12 * (kernel @ right))
        right = 1 / (17 * (kernel.T @ left))
    plan = Entropic(0.7, iterations=2000).plan(base, target)
    torch.testing.assert_close(plan, left[:, None] * kernel * right, rtol=0, atol=1e-9)


def test_optimal_assignment_is_that_of_a_linear_programme() -> None:
    ot = pytest.importorskip("ot", reason="needs the extra ot")
    base, target = torch.tensor(np.random.default_rng(3).standard_normal((2, 40, 2)))
    cost, mass = torch.cdist(base, target).square().numpy(), np.full(40, 1 / 40)
    rows = OptimalTransport()(base, target, NoiseStream(0, 0, 40))
    assert cost[np.arange(40), rows.numpy()].mean() == pytest.approx(ot.emd2(mass, mass, cost), rel=1e-12)


def labelled(noise: NoiseStream) -> tuple[Tensor, Tensor, Tensor]:
    """A normal base, and targets N(2 c, 1/4) of two labels c."""
    label = (noise.fork("label").uniforms(1, dtype=F64) - 0.5).sign()
    target = 2 * label + 0.5 * noise.fork("target").normals(1, dtype=F64)
    return noise.fork("base").normals(1, dtype=F64), target, label


@pytest.mark.parametrize("weight", [0.0, 100.0, math.inf])
def test_coupling_that_sees_the_condition_leaves_the_base_alone(weight: float) -> None:
    """Of the plain one the base points of a label have a mean of 0.8; a sampler is given those of mean 0."""
    source, n = coupled(labelled, OptimalTransport(), condition_weight=weight), 8192
    draws = [source(NoiseStream(5, k, k + 128)) for k in range(0, n, 128)]
    base, target, label = (torch.cat(column) for column in zip(*draws, strict=True))
    assert ((target - 2 * label).abs() < 3).all()  # labels are those of their targets
    mean = (base * label).mean()
    if weight:
        assert abs(mean) < 5 / math.sqrt(n)
        assert abs((base**2).mean() - 1) < 5 * math.sqrt(2 / n)
    else:
        assert mean > 0.7
    # Within a label the monotone map costs 2^2 + (1 - 1/2)^2, and independent pairs 2^2 + 1 + 1/4.
    cost = (base - target).square().mean()
    assert abs(cost - 4.25) < 0.15 if weight else cost < 3


def test_labels_couple_within_and_near_conditions_stay_near() -> None:
    base, target, label = labelled(NoiseStream(6, 0, 64))
    rows = coupled(lambda s: (base, target, label), OptimalTransport(), condition_weight=math.inf)
    for value in (-1.0, 1.0):
        here = (label == value)[:, 0]
        found = rows(NoiseStream(6, 0, 64))
        assert torch.equal(found[2], label)
        expected = target[here][
            OptimalTransport()(base[here], target[here], NoiseStream(0, 0, int(here.sum())))
        ]
        assert torch.equal(found[1][here], expected)
    number = NoiseStream(7, 0, 256).uniforms(1, dtype=F64)
    gaps = [
        (
            coupled(lambda s: (base.repeat(4, 1), number, number), OptimalTransport(), condition_weight=w)(
                NoiseStream(7, 0, 256)
            )[2]
            - number
        )
        .abs()
        .mean()
        for w in (0.0, 10.0, 1000.0)
    ]
    assert gaps[0] > 2 * gaps[1] > 4 * gaps[2]


def test_conditions_reach_the_network_in_order() -> None:
    """A field of the condition alone: the loss of the exact one is lower by the spread of the means."""
    loss = Matching(TwoSided(), Kind.TARGET, labelled, batch=4096, seed=8)
    plain = loss(lambda t, x, c: 0 * x + 2 * c, 0)
    assert abs(plain - (-2.0)) < 0.2
    with_base = Matching(TwoSided(), Kind.TARGET, labelled, batch=64, seed=8, given_base=True)
    assert with_base(lambda t, x, base, c: 0 * base + 2 * c, 0).isfinite()


def test_base_made_from_the_target_is_undone() -> None:
    """Masked: the network that is given the base finds what was kept, and guesses the mean of the rest."""
    mask = torch.tensor([1.0, 0.0], dtype=F64)
    source = dependent(
        lambda s: s.normals(2, dtype=F64), lambda target, s: target * mask + 0.1 * s.normals(2, dtype=F64)
    )
    base, target = source(NoiseStream(9, 0, 1000))
    assert abs(((base - target * mask) / 0.1).var() - 1) < 5 * math.sqrt(2 / 2000)
    assert torch.equal(source(NoiseStream(9, 10, 20))[0], base[10:20])
    rows = torch.arange(30, dtype=F64)[:, None]
    pairs = independent(lambda s: s.normals(1, dtype=F64), paired(rows, 2 * rows, 3 * rows))
    drawn = pairs(NoiseStream(10, 0, 50))
    assert torch.equal(torch.cat(drawn[2:], 1), drawn[1] * torch.tensor([[2.0, 3.0]]))


@pytest.mark.parametrize("times", [LogitNormalTimes(0.0, 1.5), UniformTimes()], ids=repr)
def test_law_of_the_times_changes_neither_loss_nor_floor(times: TimeLaw) -> None:
    problem = MixtureProblem(TwoSided(), gaussian(-1, 0.5), gaussian(2, 2))
    pairs = independent(problem.base.sample, problem.target.sample)
    loss = Matching(TwoSided(), Kind.NOISE, pairs, batch=8, seed=11, times=times)
    losses = loss.losses(problem.field(Kind.NOISE), NoiseStream(11, 0, 50_000))
    assert abs(losses.mean() - problem.loss_floor(Kind.NOISE)) < 5 * losses.std() / math.sqrt(50_000)
    weighted = Matching(
        TwoSided(), Kind.NOISE, pairs, batch=8, seed=11, times=times, weight=lambda t: 0 * t + 3
    ).losses(problem.field(Kind.NOISE), NoiseStream(11, 0, 100))
    torch.testing.assert_close(weighted, 3 * losses[:100], rtol=1e-12, atol=1e-12)


def test_paired_rows_stay_together_and_do_not_depend_on_the_batch() -> None:
    rows = torch.arange(50, dtype=F64)[:, None]
    base, target = paired(rows, rows**2)(NoiseStream(3, 0, 200))
    assert torch.equal(base**2, target)
    assert len(base.unique()) > 40
    assert torch.equal(paired(rows, rows**2)(NoiseStream(3, 50, 60))[0], base[50:60])


@pytest.mark.parametrize("kind", [Kind.VELOCITY, Kind.NOISE], ids=lambda k: k.value)
def test_trained_field_reaches_its_floor_and_no_further(kind: Kind) -> None:
    """N(-1, 1/2) to N(2, 2): floors by quadrature, -4.79655 and -0.09925."""
    floor = {Kind.VELOCITY: -4.7965501589, Kind.NOISE: -0.0992489895}[kind]
    pairs = independent(gaussian(-1, 0.5).sample, gaussian(2, 2).sample)
    loss = Matching(TwoSided(), kind, pairs, batch=512, seed=0)
    settings = FitSettings(iterations=500, rate=5e-3, average=0.99)
    network, _ = fit(Field(2), loss, settings=settings, identity={}, progress=False)
    exact = MixtureProblem(TwoSided(), gaussian(-1, 0.5), gaussian(2, 2))
    fresh = NoiseStream(99, 0, 200_000)
    excess = loss.losses(network, fresh) - loss.losses(exact.field(kind), fresh)
    error = excess.std().item() / math.sqrt(len(excess))
    assert -5 * error < excess.mean() < 0.02 + 5 * error
    assert abs(loss.losses(network, fresh).mean() - floor) < 0.1


def test_pairs_are_kept_only_where_the_network_is_given_the_base() -> None:
    """Ends of correlation 0.6, with the velocity in closed form."""
    eps, noise = 1.0, NoiseStream(4, 0, 20_000)
    start = -1 + math.sqrt(0.5) * noise.fork("base").normals(1, dtype=F64)

    # Given the base, the law between is that of a path from a point to N(2 + 1.2 (x0 + 1), 2 * 0.64).
    def velocity(t: Tensor, x: Tensor) -> Tensor:
        mean, variance = 2 + 1.2 * (start + 1), 1.28
        covariance = t**2 * variance + t * (1 - t)
        pull = (x - (1 - t) * start - t * mean) / covariance
        return mean - start + (t * variance + 0.5 - t) * pull

    prediction = Prediction.from_start(TwoSided(), start, Kind.VELOCITY, velocity)
    grid = torch.cat((torch.zeros(1, dtype=F64), torch.logspace(-4, 0, 120, dtype=F64)))[1:]
    first = start + 1e-4 * (3 + 1.2 * (start + 1)) + 1e-2 * noise.fork("first").normals(1, dtype=F64)
    ends = ProbabilityDiffusion(eps)(prediction, first, grid, noise)
    kept = torch.corrcoef(torch.cat((start, ends), 1).T)[0, 1]
    assert abs(kept - 0.6) < 6 * (1 - 0.36) / math.sqrt(20_000)
    # Without it the laws are the same, and the correlation of the ends is that of the dynamics.
    together = torch.tensor([[0.5, 0.6], [0.6, 2.0]], dtype=F64)

    def moments(t: Tensor) -> tuple[Tensor, Tensor]:
        back = 1 - t
        variance = back**2 * together[0, 0] + 2 * t * back * together[0, 1] + t**2 * together[1, 1] + t * back
        half_rate = -back * together[0, 0] + (1 - 2 * t) * together[0, 1] + t * together[1, 1] + 0.5 - t
        return variance, half_rate

    plain = Prediction(
        TwoSided(),
        {
            Kind.VELOCITY: lambda t, x: 3 + moments(t)[1] / moments(t)[0] * (x + 1 - 3 * t),
            Kind.SCORE: lambda t, x: -(x + 1 - 3 * t) / moments(t)[0],
        },
    )
    ends = ProbabilityDiffusion(eps)(plain, start, torch.linspace(0, 1, 81, dtype=F64), noise)
    lost = torch.corrcoef(torch.cat((start, ends), 1).T)[0, 1]
    assert abs(lost - 0.379863) < 6 * (1 - 0.14) / math.sqrt(20_000)
    assert abs(ends.var() - 2) < 6 * 2 * math.sqrt(2 / 20_000)


def test_training_given_the_base_learns_a_deterministic_pair() -> None:
    """The target is a function of the base: from the point, the flow of the trained network finds it."""
    rows = torch.linspace(-1, 1, 200, dtype=F64)[:, None]
    loss = Matching(
        OneSided(), Kind.TARGET, lambda s: _with_normal(paired(rows, rows**2), s), batch=128, seed=0
    )
    network, history = fit(
        Field(2), loss, settings=FitSettings(iterations=100, rate=5e-3), identity={}, progress=False
    )
    assert history["loss"][-1] < 0
    both = Matching(TwoSided(), Kind.VELOCITY, paired(rows, rows**2), batch=128, seed=0, given_base=True)
    network, _ = fit(
        Field(3),
        both,
        settings=FitSettings(iterations=500, rate=5e-3, average=0.98),
        identity={},
        progress=False,
    )
    start = torch.tensor([[-0.8], [0.1], [0.6]], dtype=F64)
    prediction = Prediction.from_start(TwoSided(), start, Kind.VELOCITY, lambda t, x: network(t, x, start))
    found = ProbabilityFlow()(prediction, start, torch.linspace(0, 1, 21, dtype=F64), NoiseStream(0, 0, 3))
    assert (found - start**2).abs().max() < 0.15


def _with_normal(pairs, noise: NoiseStream) -> tuple[Tensor, Tensor]:
    """Pairs with a standard normal base."""
    return noise.fork("normal").normals(1, dtype=F64), pairs(noise)[1]


def test_training_is_addressed() -> None:
    pairs = independent(gaussian(-1, 0.5).sample, gaussian(2, 2).sample)
    loss = Matching(TwoSided(), Kind.SCORE, pairs, batch=16, seed=1)
    model = Field(2)
    whole = loss.losses(model, NoiseStream(1, 0, 32))
    torch.testing.assert_close(loss(model, 1), whole[16:].mean(), rtol=1e-12, atol=0)


def test_couplings_refuse() -> None:
    with pytest.raises(ValueError, match=r"`regularisation` must be positive; got 0"):
        Entropic(0.0)
    with pytest.raises(ValueError, match=r"`batch` must be at least 1; got 0"):
        Matching(TwoSided(), Kind.SCORE, paired(torch.ones(2, 1), torch.ones(2, 1)), batch=0, seed=0)
    with pytest.raises(ValueError, match=r"`condition_weight` must be at least 0; got -1"):
        coupled(labelled, OptimalTransport(), condition_weight=-1)
    with pytest.raises(ValueError, match="`pairs` must give conditions"):
        coupled(lambda s: labelled(s)[:2], OptimalTransport(), condition_weight=1)(NoiseStream(0, 0, 4))
    with pytest.raises(ValueError, match=r"`target` must have shape \(n, d\) with n=2, d=1; got \(3, 1\)"):
        paired(torch.ones(2, 1), torch.ones(3, 1))
