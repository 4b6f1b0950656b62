"""Schedules, amplitudes, interpolants, predictions and losses against closed forms."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from inference.interpolants import (
    Amplitude,
    BrownianBridge,
    Diffusion,
    EncodingDecoding,
    Fading,
    Interpolant,
    Kind,
    Linear,
    Mirror,
    Normalised,
    OneSided,
    Parabola,
    Prediction,
    Quadratic,
    Schedule,
    Sigmoids,
    SineSquared,
    Trigonometric,
    TwoSided,
    VariancePreserving,
    kl_bound,
    matching_loss,
    reschedule,
)
from inference.reference_problems import Mixture, MixtureProblem, gaussian_kl
from sde.noise import NoiseStream
from tests.names import label
from tests.statistics import assert_mean

F64 = torch.float64
SCHEDULES = [
    Linear(),
    Quadratic(),
    Trigonometric(),
    VariancePreserving(),
    Normalised(),
    Normalised(BrownianBridge(2.0)),
    EncodingDecoding(),
]
AMPLITUDES = [BrownianBridge(), BrownianBridge(2.0), Fading(1.5), Parabola(), SineSquared(), Sigmoids()]


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=F64)


def gaussian(mean: float, variance: float) -> Mixture:
    return Mixture.gaussian(torch.tensor([mean], dtype=F64), torch.tensor([[variance]], dtype=F64))


def problem(path: Interpolant) -> MixtureProblem:
    return MixtureProblem(path, gaussian(-1, 0.5), gaussian(2, 2))


def mixtures(path: Interpolant, seed: int) -> MixtureProblem:
    """Two mixtures in the plane."""
    rng = np.random.default_rng(seed)

    def law(k: int) -> Mixture:
        factors = rng.standard_normal((k, 2, 2))
        covariances = factors @ factors.transpose(0, 2, 1) / 2 + 0.3 * np.eye(2)
        parts = rng.dirichlet(np.full(k, 3.0)), 2 * rng.standard_normal((k, 2)), covariances
        return Mixture(*(torch.tensor(part) for part in parts))

    return MixtureProblem(path, law(2), law(3))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_schedule_starts_at_the_base_and_ends_at_the_target(schedule: Schedule) -> None:
    ends = torch.tensor([0.0, 1.0], dtype=F64)
    alpha, beta = schedule.coefficients(ends)
    torch.testing.assert_close(alpha, torch.tensor([1.0, 0.0], dtype=F64), rtol=0, atol=1e-15)
    torch.testing.assert_close(beta, torch.tensor([0.0, 1.0], dtype=F64), rtol=0, atol=1e-15)


@pytest.mark.parametrize("schedule", [*SCHEDULES, Diffusion()], ids=repr)
def test_schedule_has_the_derivatives_of_its_coefficients(schedule: Schedule) -> None:
    t = torch.tensor(np.random.default_rng(0).uniform(0.02, 0.98, 9))
    slope = lambda f: torch.func.vmap(torch.func.grad(f))(t)  # noqa: E731
    for which in (0, 1):
        exact = slope(lambda s, k=which: schedule.coefficients(s)[k])
        torch.testing.assert_close(schedule.derivatives(t)[which], exact, rtol=1e-12, atol=1e-13)
    square, half_rate = schedule.base_variance(t)
    torch.testing.assert_close(square, schedule.coefficients(t)[0] ** 2, rtol=1e-12, atol=1e-14)
    exact = slope(lambda s: 0.5 * schedule.base_variance(s)[0])
    torch.testing.assert_close(half_rate, exact, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("schedule", [*SCHEDULES[:-1], Diffusion()], ids=repr)
def test_time_is_the_inverse_of_the_log_signal_to_noise_ratio(schedule: Schedule) -> None:
    t = torch.tensor(np.random.default_rng(1).uniform(0.01, 0.99, 9))
    torch.testing.assert_close(schedule.time(schedule.log_snr(t)), t, rtol=1e-12, atol=1e-13)
    alpha, beta = schedule.coefficients(t)
    torch.testing.assert_close(schedule.log_snr(t), (beta / alpha).log(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("schedule", [Trigonometric(), VariancePreserving()], ids=repr)
def test_variance_preserving_schedules_keep_a_unit_variance(schedule: Schedule) -> None:
    alpha, beta = schedule.coefficients(torch.linspace(0, 1, 9, dtype=F64))
    torch.testing.assert_close(alpha**2 + beta**2, torch.ones(9, dtype=F64), rtol=0, atol=1e-15)


def test_normalised_schedule_leaves_room_for_the_latent_variable() -> None:
    t = torch.linspace(0, 1, 9, dtype=F64)
    alpha, beta = Normalised(BrownianBridge(2.0)).coefficients(t)
    whole = alpha**2 + beta**2 + BrownianBridge(2.0).variance(t)[0]
    torch.testing.assert_close(whole, torch.ones(9, dtype=F64), rtol=0, atol=1e-15)


@pytest.mark.parametrize("amplitude", AMPLITUDES, ids=repr)
def test_amplitude_vanishes_at_the_ends_and_has_its_derivative(amplitude: Amplitude) -> None:
    ends = amplitude.variance(torch.tensor([0.0, 1.0], dtype=F64))
    assert ends[0].abs().max() < 1e-15
    assert ends[1].isfinite().all()
    t = torch.tensor(np.random.default_rng(2).uniform(0.02, 0.98, 9))
    slope = torch.func.vmap(torch.func.grad(lambda s: 0.5 * amplitude.variance(s)[0]))(t)
    torch.testing.assert_close(amplitude.variance(t)[1], slope, rtol=1e-12, atol=1e-14)
    assert (amplitude.variance(t)[0] > 0).all()


@pytest.mark.parametrize("path", [OneSided(Trigonometric()), Mirror(), TwoSided()], ids=repr)
def test_velocity_of_a_path_is_the_derivative_of_its_point(path: Interpolant) -> None:
    base, target, latent = torch.tensor(np.random.default_rng(0).standard_normal((3, 5, 3)))
    t, step = torch.full((5, 1), 0.3, dtype=F64), 1e-6
    ahead, behind = (path.point(t + sign * step, base, target, latent) for sign in (1, -1))
    slope = (ahead - behind) / (2 * step)
    torch.testing.assert_close(path.velocity(t, base, target, latent), slope, rtol=0, atol=1e-9)


# b, s and E[z|x] of N(-1, 1/2) to N(2, 2), or from N(0, 1) or itself to N(2, 2), at t = 0.3 and x = 0.7.
REFERENCE = [
    (TwoSided(), 0.3, (3.5669291339, -1.2598425197, 0.5773323710)),
    (TwoSided(amplitude=BrownianBridge(2.0)), 0.3, (3.6153846154, -0.9467455621, 0.6135612496)),
    (TwoSided(Trigonometric()), 0.3, (4.2850958944, -0.6701840867, 0.3071169307)),
    (TwoSided(Normalised()), 0.3, (3.7560252993, -0.8065034430, 0.3695863076)),
    (TwoSided(EncodingDecoding(), SineSquared()), 0.3, (6.0712581908, -2.1421216085, 1.4020367948)),
    (TwoSided(EncodingDecoding(), SineSquared()), 0.7, (5.9771373538, -0.0135165005, 0.0088466644)),
    (OneSided(), 0.3, (1.9850746269, -0.1492537313, 0.1044776119)),
    (OneSided(Trigonometric()), 0.3, (2.6896111773, 0.1724398706, -0.1536450497)),
    (OneSided(VariancePreserving()), 0.3, (2.0275229358, -0.0917431193, 0.0875173579)),
    (Mirror(), 0.3, (-0.1176470588, 0.5882352941, -0.5882352941 * math.sqrt(0.21))),
]


@pytest.mark.parametrize(("path", "t", "expected"), REFERENCE, ids=label)
def test_fields_of_gaussians_have_the_reference_values(
    path: Interpolant, t: float, expected: tuple[float, ...]
) -> None:
    exact, x = problem(path), torch.tensor([[0.7]], dtype=F64)
    for kind, value in zip((Kind.VELOCITY, Kind.SCORE, Kind.NOISE), expected, strict=True):
        assert abs(exact.field(kind)(number(t), x).item() - value) < 1e-9
        assert abs(exact.prediction().to(kind)(number(t), x).item() - value) < 1e-9


@pytest.mark.parametrize("path", [TwoSided(), OneSided(VariancePreserving()), Mirror()], ids=repr)
def test_fields_of_mixtures_satisfy_their_equations(path: Interpolant) -> None:
    """The score is the gradient of the log density, the velocity solves the continuity equation."""
    exact, x = mixtures(path, 3), torch.tensor(np.random.default_rng(4).standard_normal((6, 2)) * 2)
    log_density = lambda t, y: exact.law(t).log_density(y[None])[0]  # noqa: E731
    velocity = exact.field(Kind.VELOCITY)
    for time in np.random.default_rng(5).uniform(0.05, 0.95, 3):
        t = number(time)
        for point in x:
            score = exact.field(Kind.SCORE)(t, point[None])[0]
            torch.testing.assert_close(
                score, torch.func.grad(log_density, 1)(t, point), rtol=1e-10, atol=1e-10
            )
            rate = torch.func.grad(log_density)(t, point)
            jacobian = torch.func.jacrev(lambda y, s=t: velocity(s, y[None])[0])(point)
            residual = rate + jacobian.trace() + velocity(t, point[None])[0] @ score
            assert abs(residual) < 1e-8 * (1 + abs(rate))


ONE_NETWORK = [
    OneSided(),
    OneSided(Trigonometric()),
    OneSided(VariancePreserving()),
    OneSided(Diffusion()),
    Mirror(BrownianBridge(10.0)),
]


@pytest.mark.parametrize("path", ONE_NETWORK, ids=repr)
@pytest.mark.parametrize("given", list(Kind), ids=lambda k: k.value)
def test_one_network_gives_every_kind(path: Interpolant, given: Kind) -> None:
    kinds = list(path.rows(number(0.5)))
    if given not in kinds:
        pytest.skip("this path has no such kind")
    exact, rng = mixtures(path, 6), np.random.default_rng(7)
    x, t = torch.tensor(rng.standard_normal((8, 2))), torch.tensor(rng.uniform(0.1, 0.9, (8, 1)))
    for kind in kinds:
        found = exact.prediction(given).to(kind)(t, x)
        torch.testing.assert_close(found, exact.field(kind)(t, x), rtol=1e-9, atol=1e-9)
        for end in (0.0, 1.0):
            assert exact.prediction(given).to(kind)(number(end), x).isfinite().all()


TWO_KINDS = [
    (Kind.VELOCITY, Kind.SCORE),
    (Kind.VELOCITY, Kind.NOISE),
    (Kind.TRANSPORT, Kind.NOISE),
    (Kind.BASE, Kind.TARGET),
    (Kind.TARGET, Kind.SCORE),
    (Kind.VELOCITY, Kind.TARGET),
    (Kind.DRIFT, Kind.BASE),
]


@pytest.mark.parametrize("path", [TwoSided(), TwoSided(Trigonometric(), Parabola())], ids=repr)
@pytest.mark.parametrize("given", TWO_KINDS, ids=lambda pair: "+".join(k.value for k in pair))
def test_two_networks_give_every_kind_of_a_two_sided_path(
    path: Interpolant, given: tuple[Kind, Kind]
) -> None:
    exact, rng = mixtures(path, 8), np.random.default_rng(9)
    x, t = torch.tensor(rng.standard_normal((8, 2))), torch.tensor(rng.uniform(0.1, 0.9, (8, 1)))
    for kind in path.rows(number(0.5)):
        found = exact.prediction(*given).to(kind)(t, x)
        torch.testing.assert_close(found, exact.field(kind)(t, x), rtol=1e-8, atol=1e-8)
        for end in (0.0, 1.0):
            assert exact.prediction(*given).to(kind)(number(end), x).isfinite().all()


def test_limits_at_the_ends_are_those_of_the_exact_fields() -> None:
    """E[x_1] at time 0 from the velocity, and the score at time 1 from it, by way of the margin."""
    exact, x = mixtures(OneSided(), 10), torch.tensor([[0.4, -0.2], [1.0, 0.5]], dtype=F64)
    prediction = exact.prediction(Kind.VELOCITY)
    start = prediction.to(Kind.TARGET)(number(0.0), x)
    torch.testing.assert_close(start, exact.target.mean.expand(2, 2), rtol=0, atol=1e-4)
    end = prediction.to(Kind.SCORE)(number(1.0), x)
    torch.testing.assert_close(end, exact.field(Kind.SCORE)(number(1.0), x), rtol=0, atol=1e-4)


@pytest.mark.parametrize("schedule", [Trigonometric(), VariancePreserving(), Diffusion()], ids=repr)
def test_networks_serve_another_schedule_without_training(schedule: Schedule) -> None:
    """Trained on one schedule and used on another: the exact fields of the other."""
    rng = np.random.default_rng(13)
    x = torch.tensor(rng.standard_normal((6, 2)))
    for source, wanted in ((Linear(), schedule), (schedule, Linear())):
        changed = reschedule(mixtures(OneSided(source), 14).prediction(Kind.NOISE), wanted)
        exact = mixtures(OneSided(wanted), 14)
        for kind in (Kind.VELOCITY, Kind.SCORE):
            t = torch.tensor(rng.uniform(0.2, 0.8, (6, 1)))
            torch.testing.assert_close(changed.to(kind)(t, x), exact.field(kind)(t, x), rtol=1e-8, atol=1e-8)
        for end in (0.0, 1.0):
            assert changed.to(Kind.VELOCITY)(number(end), x).isfinite().all()


def test_encoding_decoding_forgets_the_base() -> None:
    path = TwoSided(EncodingDecoding(), SineSquared())
    exact, x = mixtures(path, 11), torch.tensor([[0.4, -0.2]], dtype=F64)
    prediction = exact.prediction()
    late = prediction.to(Kind.TARGET)(number(0.7), x)
    torch.testing.assert_close(late, exact.field(Kind.TARGET)(number(0.7), x), rtol=1e-9, atol=1e-9)
    assert prediction.to(Kind.BASE)(number(0.7), x).isnan().all()


def test_a_known_start_takes_the_place_of_a_network() -> None:
    """From a point the law is one-sided in disguise: its target follows from the velocity alone."""
    path, start = TwoSided(amplitude=BrownianBridge(2.0)), torch.tensor([[1.5]], dtype=F64)
    law = MixtureProblem(path, gaussian(1.5, 1e-12), gaussian(2, 2))
    prediction = Prediction.from_start(path, start, Kind.VELOCITY, law.field(Kind.VELOCITY))
    for kind in (Kind.SCORE, Kind.TARGET, Kind.NOISE, Kind.TRANSPORT):
        found = prediction.to(kind)(number(0.4), torch.tensor([[0.3]], dtype=F64))
        exact = law.field(kind)(number(0.4), torch.tensor([[0.3]], dtype=F64))
        torch.testing.assert_close(found, exact, rtol=1e-9, atol=1e-9)


BAD: list[tuple[Callable[[], object], str]] = [
    (lambda: Prediction(OneSided(), {}), r"`networks` must hold 1 independent kinds; got \[\]"),
    (
        lambda: Prediction(OneSided(), {Kind.BASE: lambda t, x: x}),
        r"`networks` must predict kinds of OneSided",
    ),
    (lambda: Prediction(TwoSided(), {Kind.VELOCITY: lambda t, x: x}), r"`networks` must hold 2 independent"),
    (
        lambda: Prediction(TwoSided(), {Kind.NOISE: lambda t, x: x, Kind.SCORE: lambda t, x: x}),
        r"`networks` must hold 2 independent kinds; got \['noise', 'score'\]",
    ),
    (
        lambda: Prediction(Mirror(), {Kind.NOISE: lambda t, x: x}).to(Kind.BASE)(
            torch.tensor(0.5), torch.ones(1, 1)
        ),
        r"`kind` must be one of Mirror's; got base",
    ),
    (
        lambda: reschedule(problem(TwoSided()).prediction(), Linear()),
        r"`prediction` must be of a OneSided interpolant; got TwoSided",
    ),
    (lambda: BrownianBridge(0.0), r"`scale` must be positive; got 0.0"),
    (lambda: Diffusion(2.0, 1.0), r"`slow` must lie in \(0, fast\]"),
    (lambda: kl_bound(-1, 0, 1), r"`excess_velocity` and `excess_score` must be at least 0"),
    (
        lambda: Mixture(torch.tensor([0.5]), torch.zeros(1, 1), torch.ones(1, 1, 1)),
        r"`weights` must be positive with sum 1",
    ),
    (
        lambda: matching_loss(
            lambda t, x: x,
            Kind.SCORE,
            OneSided(),
            torch.zeros(4, 1),
            base=torch.ones(4, 2),
            target=torch.ones(4, 3),
            latent=torch.ones(4, 2),
        ),
        r"`target` must have shape \(n, d\) with n=4, d=2; got \(4, 3\)",
    ),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_interpolants_refuse(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


FLOORS = [
    (Kind.VELOCITY, -4.7965501589),
    (Kind.TRANSPORT, -4.8972777381),
    (Kind.SCORE, -0.6045997881),
    (Kind.NOISE, -0.0992489895),
]


@pytest.mark.parametrize(("kind", "floor"), FLOORS, ids=lambda v: str(v))
def test_exact_field_reaches_the_floor_of_its_loss(kind: Kind, floor: float) -> None:
    exact, n = problem(TwoSided()), 200_000
    noise = NoiseStream(3, 0, n)
    base, target = exact.base.sample(noise.fork("base")), exact.target.sample(noise.fork("target"))
    latent, t = noise.normals(1, dtype=F64), noise.fork("time").uniforms(1, dtype=F64)
    losses = matching_loss(
        exact.field(kind), kind, exact.interpolant, t, base=base, target=target, latent=latent
    )
    assert_mean(losses, floor, bias=0.3)
    worse = matching_loss(
        lambda t, x: exact.field(kind)(t, x) + 0.3,
        kind,
        exact.interpolant,
        t,
        base=base,
        target=target,
        latent=latent,
    )
    assert_mean(worse - losses, 0.045, bias=0.03)  # half the mean square of the error


def test_antithetic_pair_bounds_the_variance_of_the_score_loss() -> None:
    exact, n = problem(TwoSided()), 20_000
    noise = NoiseStream(4, 0, n)
    base, target = exact.base.sample(noise.fork("base")), exact.target.sample(noise.fork("target"))
    latent, spread = noise.normals(1, dtype=F64), {}
    for time in (1e-4, 1e-6):
        for antithetic in (True, False):
            t = torch.full((n, 1), time, dtype=F64)
            losses = matching_loss(
                exact.field(Kind.SCORE),
                Kind.SCORE,
                exact.interpolant,
                t,
                base=base,
                target=target,
                latent=latent,
                antithetic=antithetic,
            )
            spread[time, antithetic] = losses.var().item()
    assert spread[1e-6, True] < 1.2 * spread[1e-4, True] < 15
    assert spread[1e-6, False] > 50 * spread[1e-4, False] > 50 * 1e4


@pytest.mark.parametrize("kind", [Kind.VELOCITY, Kind.SCORE, Kind.NOISE])
@pytest.mark.parametrize("end", [0.0, 1.0])
def test_losses_are_finite_at_the_ends(kind: Kind, end: float) -> None:
    exact, noise = problem(TwoSided()), NoiseStream(5, 0, 50)
    base, target, latent = (noise.fork(name).normals(1, dtype=F64) for name in ("base", "target", "latent"))
    t = torch.full((50, 1), end, dtype=F64)
    losses = matching_loss(
        exact.field(kind), kind, exact.interpolant, t, base=base, target=target, latent=latent
    )
    assert losses.isfinite().all()


@pytest.mark.parametrize("eps", [0.25, 1.0, 4.0])
def test_kl_bound_dominates_where_the_printed_one_fails(eps: float) -> None:
    """Unit variance throughout, velocity off by 1 and score by 1/eps: the divergence is known."""
    velocity_error, score_error = 1.0, 1 / eps
    divergence = 0.5 * ((velocity_error + eps * score_error) * (1 - math.exp(-eps)) / eps) ** 2
    bound = kl_bound(velocity_error**2 / 2, score_error**2 / 2, eps)
    assert bound >= divergence
    if eps == 1.0:
        assert bound / 2 < divergence


def test_gaussian_kl_is_the_closed_form_of_one_dimension() -> None:
    expected = 0.5 * (0.5 / 2 + 9 / 2 - 1 + math.log(2 / 0.5))
    assert abs(gaussian_kl(gaussian(-1, 0.5), gaussian(2, 2)).item() - expected) < 1e-14


def test_mixture_samples_follow_their_law() -> None:
    law = mixtures(TwoSided(), 12).target
    points = law.sample(NoiseStream(6, 0, 100_000))
    assert_mean(points, law.mean, bias=0.15)
    centred = points - law.mean
    assert_mean((centred[:, :, None] * centred[:, None]).flatten(1), law.covariance.flatten(), bias=0.5)
    assert torch.equal(law.sample(NoiseStream(6, 10, 20)), points[10:20])
