"""Divergences and certificates against closed forms."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from torch import Tensor

from inference.divergences import bound_difference, certificate, kl_divergence
from inference.interpolants import BrownianBridge, Kind, OneSided, Prediction, TwoSided
from inference.interpolants.times import LogitNormalTimes, UniformTimes
from inference.likelihood import LogDensity, sampler_log_density
from inference.reference_problems import Mixture, MixtureProblem, gaussian_kl
from sde.noise import NoiseStream

F64 = torch.float64


def gaussian(mean: float, variance: float) -> Mixture:
    return Mixture.gaussian(torch.tensor([mean], dtype=F64), torch.tensor([[variance]], dtype=F64))


def known(values: Tensor) -> LogDensity:
    return LogDensity(values, 0 * values, 0 * values + 1, values)


def test_control_variate_makes_every_term_positive_and_keeps_the_mean() -> None:
    """N(0, 1) from N(0.1, 1.05^2); with the sign as printed neither holds."""
    first, second, n = gaussian(0, 1), gaussian(0.1, 1.05**2), 20_000
    points = first.sample(NoiseStream(0, 0, n))
    target, model = first.log_density(points), second.log_density(points)
    plain, better = (kl_divergence(target, known(model), controlled=flag) for flag in (False, True))
    exact = gaussian_kl(first, second).item()
    for found in (plain, better):
        assert abs(found.value - exact) < 5 * found.data_error
    assert better.data_error < 0.2 * plain.data_error
    ratio = model - target
    assert (torch.expm1(ratio) - ratio >= 0).all()
    printed = -ratio - torch.expm1(ratio)
    assert (printed < 0).any()
    assert printed.std() > 1.5 * plain.data_error * math.sqrt(n)


def test_estimates_pass_on_their_errors() -> None:
    value = torch.tensor([-1.0, -2.0, -1.5, -1.2], dtype=F64)
    noisy = LogDensity(value, torch.full_like(value, 0.1), value, value)
    assert kl_divergence(value, noisy).estimate_error == 0  # the control variate cancels it to first order
    assert kl_divergence(value, noisy, controlled=False).estimate_error == pytest.approx(0.05)


def family(delta: float, kappa: float) -> tuple[MixtureProblem, Prediction]:
    """Unit variance at all times, a velocity that is off by delta and a score by kappa."""
    problem = MixtureProblem(TwoSided(amplitude=BrownianBridge(2.0)), gaussian(0, 1), gaussian(1, 1))
    wrong = {
        Kind.VELOCITY: lambda t, x: problem.field(Kind.VELOCITY)(t, x) + delta,
        Kind.SCORE: lambda t, x: problem.field(Kind.SCORE)(t, x) + kappa,
    }
    return problem, Prediction(problem.interpolant, wrong)


@pytest.mark.parametrize("eps", [0.25, 1.0, 4.0])
def test_certificate_is_the_closed_form_and_dominates_the_divergence(eps: float) -> None:
    """(delta + eps kappa)^2 / 4 eps, where the exact divergence of the end is known."""
    problem, model = family(1.0, 1 / eps)
    noise = NoiseStream(1, 0, 500)
    ends = {"base": problem.base.sample(noise), "target": problem.target.sample(noise.fork("target"))}
    found = certificate(model, problem.prediction(), eps, noise=noise, **ends)
    assert found.bound == pytest.approx((1 + eps / eps) ** 2 / (4 * eps), rel=1e-9)
    assert found.standard_error < 1e-9
    exact = 0.5 * ((1 + eps * (1 / eps)) * (1 - math.exp(-eps)) / eps) ** 2
    assert found.bound >= exact


@pytest.mark.parametrize("times", [UniformTimes(), LogitNormalTimes(0.3, 1.5)], ids=repr)
def test_certificate_with_a_diffusivity_and_times_of_choice(times: UniformTimes | LogitNormalTimes) -> None:
    """An error of the velocity that grows with x and t, against quadrature."""
    problem = MixtureProblem(TwoSided(), gaussian(-1, 0.5), gaussian(2, 2))
    velocity = problem.field(Kind.VELOCITY)
    wrong = {Kind.VELOCITY: lambda t, x: velocity(t, x) + t * x, Kind.SCORE: problem.field(Kind.SCORE)}
    n = 100_000
    noise = NoiseStream(2, 0, n)
    ends = {"base": problem.base.sample(noise), "target": problem.target.sample(noise.fork("target"))}

    def eps(t: Tensor | float) -> Tensor | float:
        return 0.5 + t

    found = certificate(
        Prediction(problem.interpolant, wrong), problem.prediction(), eps, noise=noise, times=times, **ends
    )
    exact = quad(lambda t: t**2 * ((3 * t - 1) ** 2 + 0.5 + 1.5 * t**2) / (4 * eps(t)), 0, 1)[0]
    assert abs(found.bound - exact) < 5 * found.standard_error
    assert found.standard_error < 0.02 * exact


def test_difference_of_bounds_needs_no_exact_fields() -> None:
    problem, far = family(0.8, 0.0)
    _, near = family(0.3, 0.0)
    n = 200_000
    noise = NoiseStream(3, 0, n)
    ends = {"base": problem.base.sample(noise), "target": problem.target.sample(noise.fork("target"))}
    times = UniformTimes(0.02, 0.98)  # where the sample value of the score is not large
    found = bound_difference(far, near, 1.0, noise=noise, times=times, **ends)
    assert abs(found.bound - 0.96 * (0.8**2 - 0.3**2) / 4) < 5 * found.standard_error
    assert found.standard_error < 0.01
    assert bound_difference(near, near, 1.0, noise=noise, times=times, **ends) == (0, 0)


def test_divergence_of_a_sampler_from_its_own_densities() -> None:
    """Two modes and 25 Euler steps: 0.00288 in the reference, found by importance-sampled densities."""
    means = torch.tensor([[-2.0], [1.5]], dtype=F64)
    covariances = torch.tensor([[[0.25]], [[0.64]]], dtype=F64)
    target = Mixture(torch.tensor([0.6, 0.4], dtype=F64), means, covariances)
    problem = MixtureProblem(TwoSided(), Mixture.standard(1), target)
    n = 400
    points = target.sample(NoiseStream(4, 0, n))
    density = sampler_log_density(
        problem.prediction(),
        points,
        problem.base.log_density,
        torch.linspace(0, 1, 26, dtype=F64),
        NoiseStream(5, 0, n),
        eps=0.5,
        num_paths=100,
    )
    found = kl_divergence(target.log_density(points), density)
    # The control variate squares the noise of the estimates: half their variance is added.
    noise = 0.5 * density.standard_error.square().mean().item()
    assert abs(found.value - noise - 0.00288) < 5 * math.hypot(found.data_error, found.estimate_error) + 2e-4


def test_divergences_refuse() -> None:
    _, model = family(1.0, 0.0)
    law = Mixture.standard(1)
    other = MixtureProblem(OneSided(), law, law).prediction()
    rows = torch.zeros(3, 1, dtype=F64)
    arguments = {"base": rows, "target": rows, "noise": NoiseStream(0, 0, 3)}
    bad: list[tuple[Callable[[], object], str]] = [
        (lambda: certificate(model, other, 1.0, **arguments), "`exact` must be of TwoSided"),
        (lambda: bound_difference(model, other, 1.0, **arguments), "`second` must be of TwoSided"),
        (
            lambda: certificate(model, model, 1.0, **(arguments | {"noise": NoiseStream(0, 0, 2)})),
            "`noise` must hold one sample per pair, 3; got 2",
        ),
        (lambda: kl_divergence(rows[:, 0], known(rows[:2, 0])), r"`model` must have shape \(n\) with n=3"),
    ]
    for call, message in bad:
        with pytest.raises(ValueError, match=message):
            call()


def test_weights_of_times_keep_the_integral() -> None:
    """The mean of f(T) / p(T) is the integral of f, for every law of T."""
    uniform = torch.tensor((np.arange(200_000) + 0.5) / 200_000)
    for law in (UniformTimes(), LogitNormalTimes(), LogitNormalTimes(-0.5, 1.5)):
        t = law.times(uniform)
        assert ((t > 0) & (t < 1)).all()
        found = ((t * (1 - t)) ** 2 / law.density(t)).mean().item()
        assert found == pytest.approx(1 / 30, rel=1e-4)
    part = UniformTimes(0.2, 0.7)
    t = part.times(uniform)
    assert (t**2 / part.density(t)).mean().item() == pytest.approx((0.7**3 - 0.2**3) / 3, rel=1e-6)
    for bad in (lambda: UniformTimes(0.5, 0.5), lambda: LogitNormalTimes(0.0, 0.0)):
        with pytest.raises(ValueError, match="must"):
            bad()
