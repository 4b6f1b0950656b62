"""Derivatives of expectations: closed forms, both estimators, jumps that are found."""

import math
from statistics import NormalDist

import pytest
import torch
from scipy.stats import t as student
from torch import Tensor
from torch.distributions import MultivariateNormal

from sde import SDE, Estimator, NoiseStream, NoiseStructure, gradient_of_expectation
from sde.gradients.likelihood_ratio import walk_with_log_density
from sde.sensitivities import ExpectationGradient
from sde.solve import make_plan
from sde.solvers import EulerMaruyama, Milstein

_F64 = torch.float64
_ONE_STEP = torch.tensor([0.0, 1.0], dtype=_F64)
_MU, _SIGMA, _STRIKE = 0.05, 0.2, 1.0
_BATCHES = 64
_LIMIT = student.ppf(1 - 1e-6 / 2, _BATCHES - 1)  # standard errors come from the spread of the batches
_NORMAL = NormalDist()


def _leaf(*values: float) -> Tensor:
    return torch.tensor(values, dtype=_F64, requires_grad=True)


def _assert_gradient(found: ExpectationGradient, k: int, exact: list[float], resolution: float) -> None:
    """Within the limit of a false alarm of 1e-6, with errors that resolve a given deviation."""
    gradient, error = found.gradients[k], found.gradient_errors[k]
    assert 2 * _LIMIT * error.max() < resolution
    assert ((gradient - torch.tensor(exact, dtype=_F64)).abs() < _LIMIT * error).all()


def _logarithm(mu: Tensor, sigma: Tensor) -> SDE:
    """Geometric motion in logarithms, in which Euler is exact."""
    return SDE(
        lambda t, x: (mu - sigma**2 / 2).expand_as(x),
        lambda t, x: sigma.expand_as(x),
        NoiseStructure.ADDITIVE,
    )


def _digital(paths: Tensor) -> Tensor:
    return (paths[:, -1, 0] > math.log(_STRIKE)).to(paths)


@pytest.mark.parametrize("steps", [1, 4])
def test_digital_payoff_has_its_derivatives(steps: int) -> None:
    start, mu, sigma = _leaf(1.0), _leaf(_MU), _leaf(_SIGMA)
    times = torch.linspace(0, 1, steps + 1, dtype=_F64)
    found = gradient_of_expectation(
        _logarithm(mu, sigma),
        start.log(),
        times,
        NoiseStream(1, 0, 200_000),
        _digital,
        [start, mu, sigma],
        estimator=Estimator.LIKELIHOOD_RATIO,
        batches=_BATCHES,
    )
    d2 = (_MU - _SIGMA**2 / 2) / _SIGMA
    density = _NORMAL.pdf(d2)
    assert abs(float(found.value) - _NORMAL.cdf(d2)) < _LIMIT * float(found.value_error)
    _assert_gradient(found, 0, [density / _SIGMA], resolution=0.3)
    _assert_gradient(found, 1, [density / _SIGMA], resolution=0.3)
    _assert_gradient(found, 2, [-density * (_MU / _SIGMA**2 + 0.5)], resolution=0.3)


@pytest.mark.parametrize("estimator", list(Estimator))
def test_call_payoff_has_its_derivatives_by_both_estimators(estimator: Estimator) -> None:
    start, sigma = _leaf(1.0), _leaf(_SIGMA)
    found = gradient_of_expectation(
        _logarithm(torch.tensor([_MU], dtype=_F64), sigma),
        start.log(),
        _ONE_STEP,
        NoiseStream(2, 0, 200_000),
        lambda paths: (paths[:, -1, 0].exp() - _STRIKE).clamp(min=0),
        [start, sigma],
        estimator=estimator,
        batches=_BATCHES,
    )
    d1 = (_MU + _SIGMA**2 / 2) / _SIGMA
    _assert_gradient(found, 0, [math.exp(_MU) * _NORMAL.cdf(d1)], resolution=0.05)
    _assert_gradient(found, 1, [math.exp(_MU) * _NORMAL.pdf(d1)], resolution=0.1)


def test_likelihood_ratio_agrees_with_paths_for_matrix_noise() -> None:
    theta = _leaf(0.4, 0.7)

    def diffusion(t: Tensor, x: Tensor) -> Tensor:
        first = torch.stack((theta[0] + 0.1 * x[:, 1].sin(), 0.2 * x[:, 0].cos()), 1)
        second = torch.stack((torch.zeros_like(x[:, 0]), 0.5 + 0.1 * theta[1] * x[:, 0].cos()), 1)
        return torch.stack((first, second), -1)

    sde = SDE(lambda t, x: -theta[1] * x, diffusion, NoiseStructure.GENERAL, noise_dim=2)
    start = _leaf(1.0, -0.5)
    found = [
        gradient_of_expectation(
            sde,
            start,
            torch.linspace(0, 1, 5, dtype=_F64),
            NoiseStream(3, 0, 100_000),
            lambda paths: paths[:, -1].square().sum(1),
            [theta, start],
            estimator=estimator,
            batches=_BATCHES,
        )
        for estimator in Estimator
    ]
    for k in range(2):
        gap = found[0].gradients[k] - found[1].gradients[k]
        errors = [each.gradient_errors[k] for each in found]
        assert (gap.abs() < _LIMIT * (errors[0] ** 2 + errors[1] ** 2).sqrt()).all()
        assert errors[1].max() < 0.1
    assert abs(float(found[0].value - found[1].value)) < 1e-9  # the same paths


@pytest.mark.parametrize("matrix", [False, True])
def test_log_density_is_that_of_the_normal_steps(matrix: bool) -> None:
    theta = _leaf(0.4)

    def diffusion(t: Tensor, x: Tensor) -> Tensor:
        own = theta * (1.5 + x.sin())
        return torch.diag_embed(own) + 0.1 * x[:, :, None] if matrix else own

    structure, processes = (NoiseStructure.GENERAL, 2) if matrix else (NoiseStructure.DIAGONAL, None)
    sde = SDE(lambda t, x: -theta * x, diffusion, structure, noise_dim=processes)
    start, times = torch.tensor([[1.0, -0.5], [0.2, 2.0]], dtype=_F64), torch.linspace(0, 1, 3, dtype=_F64)
    plan = make_plan(sde, start, times, NoiseStream(4, 0, 2), EulerMaruyama(), 1, None)
    states, found = walk_with_log_density(plan, start)
    total = torch.zeros(2, dtype=_F64)
    for k in range(2):
        old, factor = states[:, k], diffusion(times[k], states[:, k])
        factor = factor if matrix else torch.diag_embed(factor)
        law = MultivariateNormal(old - 0.5 * theta * old, 0.5 * factor @ factor.mT)
        total = total + law.log_prob(states[:, k + 1])
    # The additive constant is left away, so what is compared is the score of each path.
    for mine, exact in zip(found, total, strict=True):
        scores = [torch.autograd.grad(each, theta, retain_graph=True)[0] for each in (mine, exact)]
        torch.testing.assert_close(*scores)


def test_constant_functional_has_no_derivative_at_all() -> None:
    # The mean of the others cancels it sample by sample, in batches of two as in any.
    mu, sigma = _leaf(_MU), _leaf(_SIGMA)
    found = gradient_of_expectation(
        _logarithm(mu, sigma),
        torch.zeros(1, dtype=_F64),
        _ONE_STEP,
        NoiseStream(5, 0, 64),
        lambda paths: torch.full((len(paths),), 3.0, dtype=_F64),
        [mu, sigma],
        estimator=Estimator.LIKELIHOOD_RATIO,
        batches=32,
    )
    assert float(found.value) == 3.0
    assert not any(each.any() for each in found.gradients)


@pytest.mark.parametrize(
    ("functional", "message"),
    [
        (_digital, "`functional` must be continuous for the pathwise estimator"),
        (lambda paths: paths[:, -1, 0] * (paths[:, -1, 0] > 0.3), "it jumps by 0.3 between two paths"),
        (lambda paths: paths[:, -1, 0].round(), "Use Estimator.LIKELIHOOD_RATIO"),
        (lambda paths: paths[:, -1, 0].detach(), "`functional` must be differentiable for the pathwise"),
        (lambda paths: paths[:, -1], "`functional` must return one value per path"),
    ],
)
def test_functional_that_the_paths_cannot_differentiate_is_refused(functional, message: str) -> None:
    sigma = _leaf(_SIGMA)
    sde = _logarithm(torch.tensor([_MU], dtype=_F64), sigma)
    with pytest.raises(ValueError, match=message):
        gradient_of_expectation(
            sde, torch.zeros(1, dtype=_F64), _ONE_STEP, NoiseStream(0, 0, 3200), functional, [sigma]
        )


@pytest.mark.parametrize(
    "functional",
    [
        lambda paths: paths[:, -1, 0].abs(),  # a kink
        lambda paths: paths[:, :, 0].amax(1),
        lambda paths: (50 * paths[:, -1, 0]).sigmoid(),  # steep, but continuous
        lambda paths: paths[:, -1, 0].abs().sqrt(),
    ],
)
def test_continuous_functional_is_accepted(functional) -> None:
    sigma = _leaf(_SIGMA)
    sde = _logarithm(torch.tensor([_MU], dtype=_F64), sigma)
    found = gradient_of_expectation(
        sde, torch.zeros(1, dtype=_F64), _ONE_STEP, NoiseStream(0, 0, 3200), functional, [sigma]
    )
    assert found.gradients[0].isfinite().all()
    assert (found.gradient_errors[0] > 0).all()


def test_wrong_use_is_refused() -> None:
    sigma, start, noise = _leaf(_SIGMA), torch.zeros(1, dtype=_F64), NoiseStream(0, 0, 128)
    sde = _logarithm(torch.tensor([_MU], dtype=_F64), sigma)
    ratio = {"estimator": Estimator.LIKELIHOOD_RATIO}
    with pytest.raises(ValueError, match=r"`solver` must be EulerMaruyama\(\) for the likelihood ratio"):
        gradient_of_expectation(sde, start, _ONE_STEP, noise, _digital, [sigma], solver=Milstein(), **ratio)
    scalar = SDE(lambda t, x: x, lambda t, x: sigma * x, NoiseStructure.SCALAR)
    with pytest.raises(ValueError, match="`sde` must have noise in all 2 directions"):
        gradient_of_expectation(
            scalar, torch.ones(2, dtype=_F64), _ONE_STEP, noise, _digital, [sigma], **ratio
        )
    with pytest.raises(ValueError, match="`wrt` must hold tensors that require a gradient"):
        gradient_of_expectation(sde, start, _ONE_STEP, noise, _digital, [start])
    with pytest.raises(ValueError, match="`noise` must hold 2 samples for each batch, 64; got 10"):
        gradient_of_expectation(sde, start, _ONE_STEP, noise[:10], _digital, [sigma])
