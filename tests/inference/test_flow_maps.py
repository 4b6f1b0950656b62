"""Flow maps, distilled flows and generators, against the closed form of one dimension."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from inference import FitSettings, fit
from inference.interpolants import Kind, Matching, OneSided, Prediction, TwoSided, independent, paired
from inference.interpolants.field_network import FieldNetwork
from inference.interpolants.times import StartTimes
from inference.reference_problems import Mixture, MixtureProblem, gaussian_flow_map
from inference.samplers import ProbabilityFlow
from inference.samplers.flow_map import (
    Eulerian,
    FlowMapLoss,
    FlowMapNetwork,
    FlowMapObjective,
    FlowMapSampler,
    Lagrangian,
    MeanFlow,
    Semigroup,
)
from inference.samplers.generator import Generator
from sde.noise import NoiseStream
from sde.solvers import EulerMaruyama
from tests.names import label

F64 = torch.float64
OBJECTIVES: list[FlowMapObjective] = [Lagrangian(), Eulerian(), Semigroup(), MeanFlow()]


def gaussian(mean: float, variance: float) -> Mixture:
    return Mixture.gaussian(torch.tensor([mean], dtype=F64), torch.tensor([[variance]], dtype=F64))


def two_gaussians() -> MixtureProblem:
    """N(-1, 1/2) to N(2, 2), gamma^2 = t (1 - t): variance 0.5 + 1.5 t^2, mean -1 + 3 t."""
    return MixtureProblem(TwoSided(), gaussian(-1, 0.5), gaussian(2, 2))


class Exact(nn.Module):
    """The exact map in the form of a network."""

    def __init__(self, problem: MixtureProblem, *, wrong: float = 0.0) -> None:
        super().__init__()
        self.jump, self.problem, self.wrong = gaussian_flow_map(problem), problem, wrong

    def forward(self, s: Tensor, t: Tensor, x: Tensor) -> Tensor:
        return self.jump(s, t, x) + self.wrong * (t - s) * x

    def mean_velocity(self, s: Tensor, t: Tensor, x: Tensor) -> Tensor:
        if torch.equal(s, t):
            return self.problem.field(Kind.VELOCITY)(s, x) + self.wrong * x
        return (self(s, t, x) - x) / (t - s)


def test_closed_form_has_its_reference_value_and_composes() -> None:
    jump, x = gaussian_flow_map(two_gaussians()), torch.tensor([[0.7]], dtype=F64)
    s, u, t = (torch.tensor(v, dtype=F64) for v in (0.2, 0.5, 0.9))
    assert jump(s, t, x).item() == pytest.approx(3.625, abs=1e-12)
    torch.testing.assert_close(jump(u, t, jump(s, u, x)), jump(s, t, x), rtol=1e-13, atol=0)
    torch.testing.assert_close(jump(t, s, jump(s, t, x)), x, rtol=1e-13, atol=0)


def test_closed_form_is_the_flow() -> None:
    exact, x = two_gaussians(), torch.tensor([[0.7], [-3.0]], dtype=F64)
    times = torch.linspace(0.2, 0.9, 401, dtype=F64)
    ends = ProbabilityFlow()(exact.prediction(), x, times, NoiseStream(0, 0, 2))
    torch.testing.assert_close(gaussian_flow_map(exact)(times[0], times[-1], x), ends, rtol=0, atol=1e-5)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=label)
def test_objectives_vanish_at_the_exact_map_only(objective: FlowMapObjective) -> None:
    exact, x = two_gaussians(), NoiseStream(0, 0, 50).normals(1, dtype=F64)
    draws = NoiseStream(1, 0, 50).uniforms(2, dtype=F64).sort(1).values
    s, t = draws.split(1, 1)
    velocity = exact.field(Kind.VELOCITY)
    assert objective(Exact(exact), velocity, s, t, x).max() < 1e-20  # type: ignore[arg-type]
    assert objective(Exact(exact, wrong=0.1), velocity, s, t, x).mean() > 1e-4  # type: ignore[arg-type]


def test_mean_flow_without_velocity_has_the_gradient_of_the_one_with_it() -> None:
    """In expectation: at the exact map, whose gradient is zero, and by the spread of its samples."""
    exact = two_gaussians()
    pairs = independent(exact.base.sample, exact.target.sample)
    network = FlowMapNetwork(1, width=8, depth=1, seed=0, dtype=F64)
    parameter, count = next(network.parameters()), 60_000
    loss = {
        known: FlowMapLoss(MeanFlow(), TwoSided(), pairs, count, 0, velocity=velocity)
        for known, velocity in ((True, exact.field(Kind.VELOCITY)), (False, None))
    }
    gradients = {known: [] for known in loss}
    for known, of in loss.items():
        losses = of.losses(network, NoiseStream(5, 0, count)).view(30, -1).mean(1)
        for part in losses.unbind():
            (gradient,) = torch.autograd.grad(part, parameter, retain_graph=True)
            gradients[known].append(gradient.flatten())
    gap = torch.stack(gradients[True]) - torch.stack(gradients[False])
    error = gap.std(0) / 30**0.5
    # 24 numbers, Student's law with 29 degrees of freedom: 8.1 standard errors at 1e-6 in all.
    assert (gap.mean(0).abs() / error).max() < 8.1
    assert error.max() < 0.2 * torch.stack(gradients[True]).mean(0).abs().max()


def test_one_jump_of_a_trained_map_beats_a_step_of_the_flow() -> None:
    """On the line from N(0, 1) to N(2, 0.49), whose map is 2 + 0.7 x."""
    exact = MixtureProblem(OneSided(), Mixture.standard(1), gaussian(2, 0.49))
    pairs = independent(exact.base.sample, exact.target.sample)
    loss = FlowMapLoss(MeanFlow(), OneSided(), pairs, 128, 0)
    network = FlowMapNetwork(1, width=32, depth=2, seed=0, dtype=F64)
    settings = FitSettings(iterations=300, rate=5e-3, average=0.98)
    trained, _ = fit(network, loss, settings=settings, identity={}, progress=False)
    model = Generator(FlowMapSampler(trained), exact.prediction(), torch.tensor([0.0, 1.0], dtype=F64), (1,))
    noise = NoiseStream(9, 0, 500)
    samples = model(torch.zeros(500, 0, dtype=F64), noise)
    again = model(torch.zeros(20, 0, dtype=F64), noise[100:120])
    torch.testing.assert_close(again, samples[100:120], rtol=1e-12, atol=1e-12)
    start = torch.linspace(-2, 2, 41, dtype=F64)[:, None]
    ends = FlowMapSampler(trained)(exact.prediction(), start, model.times, noise)
    one_step = ProbabilityFlow(EulerMaruyama())(exact.prediction(), start, model.times, noise)
    error, plain = ((found - 2 - 0.7 * start).square().mean().sqrt() for found in (ends, one_step))
    assert plain.item() == pytest.approx(0.7 * start.square().mean().sqrt().item(), rel=1e-6)  # to the mean
    assert error < 0.5 * plain


@pytest.mark.parametrize("jumps", [1, 2])
def test_distilled_flow_takes_so_many_euler_steps(jumps: int) -> None:
    """Pairs of the exact map 2 + 0.7 x, regressed at the starts of the steps alone."""
    base = NoiseStream(3, 0, 2000).normals(1, dtype=F64)
    loss = Matching(
        OneSided(),
        Kind.VELOCITY,
        paired(base, 2 + 0.7 * base),
        128,
        0,
        antithetic=False,
        times=StartTimes(jumps),
    )
    network = FieldNetwork(1, width=32, depth=2, seed=0, dtype=F64)
    trained, _ = fit(
        network,
        loss,
        settings=FitSettings(iterations=300, rate=5e-3, average=0.98),
        identity={},
        progress=False,
    )
    start = torch.linspace(-2, 2, 41, dtype=F64)[:, None]
    times = torch.linspace(0, 1, jumps + 1, dtype=F64)
    flow = Prediction(OneSided(), {Kind.VELOCITY: trained})
    ends = ProbabilityFlow(EulerMaruyama())(flow, start, times, NoiseStream(0, 0, 41))
    assert (ends - 2 - 0.7 * start).square().mean().sqrt() < 0.03


def test_times_of_distillation_are_those_of_the_steps() -> None:
    seen: list[Tensor] = []

    def field(t: Tensor, x: Tensor) -> Tensor:
        seen.append(t)
        return 0 * x

    law = Mixture.standard(1)
    Matching(TwoSided(), Kind.VELOCITY, independent(law.sample, law.sample), 200, 0, times=StartTimes(4))(
        field, 0
    )
    assert seen[0].unique().mul(4).round(decimals=6).tolist() == [0, 1, 2, 3]


BAD: list[tuple[Callable[[], object], str]] = [
    (
        lambda: gaussian_flow_map(MixtureProblem(OneSided(), Mixture.standard(2), Mixture.standard(2))),
        r"`problem` must be between Gaussians in one dimension",
    ),
    (
        lambda: FlowMapLoss(Lagrangian(), OneSided(), paired(torch.ones(2, 1), torch.ones(2, 1)), 4, 0),
        r"`velocity` must be given for Lagrangian; got None",
    ),
    (
        lambda: FlowMapLoss(MeanFlow(), OneSided(), paired(torch.ones(2, 1), torch.ones(2, 1)), 0, 0),
        r"`batch` must be at least 1",
    ),
    (
        lambda: Generator(ProbabilityFlow(), two_gaussians().prediction(), torch.tensor([1.0, 0.0]), (1,)),
        r"`times` must increase from base to target",
    ),
    (
        lambda: StartTimes(0),
        r"`count` must be a whole number of at least 1; got 0",
    ),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_refuse(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
