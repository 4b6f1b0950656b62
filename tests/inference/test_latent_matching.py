"""Simulation-free training: its bound against quadrature and exact evidence, its states, its refusals."""

import math
from itertools import pairwise
from typing import cast

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, kl_divergence
from torch.func import jvp

from inference.encoders import GRUEncoder
from inference.fractional.chain import linear_transition
from inference.girsanov import solve_measure
from inference.latent_matching import GaussianCurve, LatentMatching, MarginalPosterior
from inference.latent_noise import FractionalNoise
from inference.latent_samplers import PriorSampler
from inference.latent_sde import ConstantDiffusion, DiagonalDiffusion, LatentSDE, latent_sde
from inference.latent_training import LatentTraining, train_latent
from inference.likelihoods import Gaussian
from inference.matching import marginal_drift, matching_divergence, sample_marginals
from inference.sample_divergence import sample_divergence
from inference.series import Series
from inference.training import FitSettings
from sde import SDE, Heun, NoiseStream, NoiseStructure
from tests.statistics import assert_mean

_F64 = torch.float64
_MATRIX = torch.tensor([[-0.5, 2.0], [-1.5, -0.2]], dtype=_F64)  # turns: its posterior is not diagonal
_DIFFUSION, _DEVIATION = 0.6, 0.3
_TIMES = torch.tensor([0.0, 0.1, 0.25, 0.6, 0.7, 1.0], dtype=_F64)


class _Rotation(nn.Module):
    """A linear drift, and the network calls that it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, time: Tensor, state: Tensor) -> Tensor:
        self.calls += 1
        return state @ _MATRIX.mT


def _model() -> LatentSDE:
    return LatentSDE(
        drift=_Rotation(),
        diffusion=ConstantDiffusion(2, start=_DIFFUSION, learned=False, dtype=_F64),
        decoder=nn.Identity(),
        likelihood=Gaussian(2, deviation=_DEVIATION, learned=False, dtype=_F64),
        encoder=GRUEncoder(2, 8, seed=0, dtype=_F64),
        latent_dim=2,
        max_step=0.05,
        seed=0,
    )


def _series() -> Series:
    values = 0.3 * NoiseStream(5, 0, 2).normals(12, dtype=_F64).view(2, 6, 2)
    values[0, 2, 1], values[1, 4] = torch.nan, torch.nan
    return Series(_TIMES, values)


@torch.no_grad()
def _matching(correlated: bool, *, size: float = 0.3, observations: int | None = None) -> LatentMatching:
    """The objective with a posterior that is far from its start."""
    posterior = MarginalPosterior(2, 2, seed=1, deviation=0.3, correlated=correlated, dtype=_F64)
    for k, parameter in enumerate(cast(nn.Module, posterior.head[-1]).parameters()):
        drawn = NoiseStream(9, k, k + 1).normals(parameter.numel(), dtype=_F64)
        parameter.copy_(size * drawn.view_as(parameter) / (8 if k == 0 else 1))
    return LatentMatching(_model(), posterior, instants=8, observations=observations)


@torch.no_grad()
def _evidence(series: Series) -> Tensor:
    """Exact log evidence of the equation in continuous time: what was observed is jointly normal."""
    covariance = torch.zeros(12, 12, dtype=_F64)
    covariance[:2, :2] = torch.eye(2, dtype=_F64)
    for k in range(1, 6):
        step, noise = linear_transition(
            _MATRIX, _DIFFUSION * torch.eye(2, dtype=_F64), _TIMES[k] - _TIMES[k - 1]
        )
        row = slice(2 * k, 2 * k + 2)
        covariance[row, : 2 * k] = step @ covariance[2 * k - 2 : 2 * k, : 2 * k]
        covariance[: 2 * k, row] = covariance[row, : 2 * k].mT
        covariance[row, row] = step @ covariance[2 * k - 2 : 2 * k, 2 * k - 2 : 2 * k] @ step.mT + noise
    covariance = covariance + _DEVIATION**2 * torch.eye(12, dtype=_F64)
    found = []
    for values, mask in zip(series.values.flatten(1), series.mask.flatten(1), strict=True):
        law = MultivariateNormal(torch.zeros(int(mask.sum()), dtype=_F64), covariance[mask][:, mask])
        found.append(law.log_prob(values[mask]))
    return torch.stack(found)


def _matrix_curve(curve: GaussianCurve, times: Tensor) -> tuple[Tensor, Tensor]:
    mean, factor = curve(times)
    return mean, factor if factor.ndim == 4 else factor.diag_embed()


def _exact_bound(matching: LatentMatching, series: Series) -> Tensor:
    likelihood, initial, path = _exact_parts(matching, series)
    return likelihood - initial - path


@torch.no_grad()
def _exact_parts(matching: LatentMatching, series: Series) -> tuple[Tensor, Tensor, Tensor]:
    """Likelihood and divergences by Gauss--Legendre quadrature, with expectations in closed form."""
    curve = matching.posterior(series)
    knots, weights = torch.tensor(_LEGENDRE, dtype=_F64).T
    mean, factor = _matrix_curve(curve, _TIMES)
    law = MultivariateNormal(mean[:, 0], factor[:, 0] @ factor[:, 0].mT)
    prior = MultivariateNormal(torch.zeros(2, dtype=_F64), torch.eye(2, dtype=_F64))
    variance = factor.square().sum(-1)
    each = -0.5 * ((series.filled - mean).square() + variance) / _DEVIATION**2
    each = each - math.log(_DEVIATION * math.sqrt(2 * math.pi))
    likelihood = torch.where(series.mask, each, 0.0).sum((1, 2))
    path = torch.zeros(len(series), dtype=_F64)
    for low, high in pairwise(_TIMES):
        t = low + (high - low) * (1 + knots) / 2
        (m, matrix), (velocity, growth) = jvp(lambda u: _matrix_curve(curve, u), (t,), (torch.ones_like(t),))[
            :2
        ]
        level = velocity - m @ _MATRIX.mT
        slope = growth - 0.5 * _DIFFUSION**2 * torch.linalg.inv(matrix).mT - _MATRIX @ matrix
        squares = (level.square().sum(-1) + slope.square().sum((-2, -1))) / _DIFFUSION**2
        path = path + 0.5 * (high - low) / 2 * (squares * weights).sum(-1)
    return likelihood, kl_divergence(law, prior), path


_LEGENDRE = [  # nodes and weights of ten points on [-1, 1]
    (sign * node, weight)
    for sign in (-1, 1)
    for node, weight in (
        (0.1488743389816312, 0.2955242247147529),
        (0.4333953941292472, 0.2692667193099963),
        (0.6794095682990244, 0.2190863625159820),
        (0.8650633666889845, 0.1494513491505806),
        (0.9739065285171717, 0.0666713443086881),
    )
]


@pytest.mark.parametrize(("correlated", "observations"), [(True, 1), (False, None)])
def test_estimates_have_no_bias(correlated: bool, observations: int | None) -> None:
    matching, series = _matching(correlated, size=0.05, observations=observations), _series()
    calls, paths = 200, 20
    with torch.no_grad():
        noises = [NoiseStream(2, 40 * k, 40 * k + 40) for k in range(calls)]
        drawn = [matching.elbo(series, noise, paths=paths) for noise in noises]
    likelihood, initial, path = _exact_parts(matching, series)
    # Without the weight of a single observation 5 of 6 parts of the likelihood would be missing.
    assert_mean(torch.stack([part.log_likelihood for part in drawn]) / likelihood, 1.0, bias=0.8)
    assert_mean(torch.stack([part.divergence for part in drawn]) / path, 1.0, bias=0.4)
    torch.testing.assert_close(drawn[0].initial_divergence, initial)
    whole = drawn[0].log_likelihood - drawn[0].initial_divergence - drawn[0].divergence
    torch.testing.assert_close(drawn[0].elbo, whole)


@pytest.mark.parametrize("correlated", [True, False])
@pytest.mark.parametrize("size", [0.0, 0.1, 0.3])
def test_bound_is_below_the_exact_evidence(correlated: bool, size: float) -> None:
    assert (_exact_bound(_matching(correlated, size=size), _series()) < _evidence(_series()) - 0.05).all()


def _gaps(correlated: bool) -> tuple[Tensor, Tensor]:
    """What the evidence exceeds the bound by, before and after training of the posterior alone."""
    matching, series = _matching(correlated, size=0.0), _series()
    before = _evidence(series) - _exact_bound(matching, series)
    matching.model.requires_grad_(False)
    settings = LatentTraining(batch=2, paths=8, fit=FitSettings(iterations=500, rate=2e-2, average=0.95))
    done, _ = train_latent(matching, series, seed=0, settings=settings, progress=False)
    return before, _evidence(series) - _exact_bound(done, series)


@pytest.mark.slow
def test_training_closes_the_bound_where_components_may_be_correlated() -> None:
    before, after = _gaps(correlated=True)
    apart = _gaps(correlated=False)[1]
    assert (after > 0).all()
    assert (after < 0.1 * before).all()
    assert (apart > after).all()


def test_cost_of_an_estimate_does_not_depend_on_the_steps_of_the_solver() -> None:
    series, counts = _series(), []
    for max_step in (0.05, 0.0005):
        matching = _matching(correlated=True)
        matching.model.dynamics.max_step = max_step
        matching.elbo(series, NoiseStream(0, 0, 2))
        counts.append(cast(_Rotation, matching.model.drift).calls)
    assert counts == [1, 1]


def test_a_diffusion_of_the_state_keeps_the_marginals_and_its_divergence() -> None:
    n = 20_000

    def marginals(t: Tensor) -> tuple[Tensor, Tensor]:
        mean = torch.stack((t.sin(), 0.5 * t * t), -1)
        rows = torch.stack((0.5 + 0.2 * t, 0 * t, 0.2 * t, 0.4 + 0 * t), -1)
        return mean, rows.unflatten(-1, (2, 2))

    def diffusion(t: Tensor, z: Tensor) -> Tensor:
        return 0.5 + 0.3 * z.sin()

    def drift(t: Tensor, z: Tensor) -> Tensor:
        g = diffusion(t, z)
        found = marginal_drift(marginals, g[:, None], t.view(1), z[:, None])[0][:, 0]
        return found + g * 0.3 * z.cos()  # half the derivative of the squared diffusion

    prior = SDE(lambda t, z: -z, diffusion, NoiseStructure.DIAGONAL)
    posterior = SDE(drift, diffusion, NoiseStructure.DIAGONAL)
    zero = torch.zeros(1, dtype=_F64)
    start = sample_marginals(marginals, zero, NoiseStream(1, 0, n))[:, 0]
    times = torch.tensor([0.0, 1.0], dtype=_F64)
    done = solve_measure(prior, posterior, start, times, NoiseStream(2, 0, n), substeps=100)
    mean, factor = (part[0] for part in marginals(times[1:]))
    end = done.paths[:, -1] - mean
    assert_mean(end, 0.0, bias=0.1)  # without half the derivative it would be off by more
    assert_mean(end[:, :, None] * end[:, None], factor @ factor.mT, bias=0.1)
    free = matching_divergence(prior, marginals, 0.0, 1.0, NoiseStream(3, 0, n), instants=64)
    simulated = done.divergence[:, -1]
    error = math.hypot(float(free.divergence.std()), float(simulated.std())) / math.sqrt(n)
    gap = abs(float(free.divergence.mean() - simulated.mean()))
    assert gap < 5 * error + 0.01 * float(simulated.mean())  # steps of 0.01
    # Without that derivative the divergence is another one.
    still = SDE(prior.drift, diffusion, NoiseStructure.ADDITIVE)
    other = matching_divergence(still, marginals, 0.0, 1.0, NoiseStream(3, 0, n), instants=64)
    assert abs(float(other.divergence.mean() - simulated.mean())) > 3 * gap + 0.02


def test_curve_passes_through_its_knots_and_bends_where_told() -> None:
    means = NoiseStream(0, 0, 3).normals(12, dtype=_F64).view(3, 6, 2)
    shapes = torch.zeros(3, 6, 2, dtype=_F64)
    tangents = torch.zeros(2, 3, 6, 4, dtype=_F64)
    tangents[0, :, 2, 0] = 0.3  # on the left of the third knot
    curve = GaussianCurve(_TIMES, means, shapes, tangents)
    assert torch.allclose(curve(_TIMES)[0], means, atol=1e-12)
    near = 1e-6
    around = torch.stack((_TIMES[2] - near, _TIMES[2] - near / 2, _TIMES[2] + near / 2, _TIMES[2] + near))
    mean = curve(around)[0]
    jump = ((mean[:, 1] - mean[:, 0]) - (mean[:, 3] - mean[:, 2])) / (near / 2)
    torch.testing.assert_close(jump[:, 0], torch.full((3,), 0.3 / 0.15, dtype=_F64), rtol=1e-3, atol=0)
    assert jump[:, 1].abs().max() < 1e-3
    # Cubic pieces through a parabola at equal steps are the parabola, inside.
    knots = torch.linspace(0, 1, 6, dtype=_F64)
    bowl = (knots**2)[None, :, None].expand(1, 6, 1)
    flat = GaussianCurve(knots, bowl, 0 * bowl, torch.zeros(2, 1, 6, 2, dtype=_F64))
    inside = torch.tensor([0.27, 0.5, 0.71], dtype=_F64)
    torch.testing.assert_close(flat(inside)[0][0, :, 0], inside**2)


def test_states_follow_the_marginals_then_the_prior() -> None:
    matching, series = _matching(correlated=True), _series()
    matching.model.dynamics.max_step, n = 0.005, 8000
    times = torch.tensor([0.3, 1.0, 1.5], dtype=_F64)
    states = matching.states(series.select(slice(0, 1)), times, NoiseStream(3, 0, n), paths=n)
    with torch.no_grad():
        mean, _ = matching.posterior(series.select(slice(0, 1)))(times[:2])
    assert_mean(states[:, :2], mean[0], bias=0.2)
    step = torch.linalg.matrix_exp(0.5 * _MATRIX)
    assert_mean(states[:, 2], step @ mean[0, 1], bias=0.2)  # Euler's error is a tenth of this test's
    guess = matching.predict(series, times, NoiseStream(3, 0, 100), paths=50)
    assert guess.mean.shape == (2, 3, 2)
    assert (guess.lower < guess.mean).all()
    assert (guess.mean < guess.upper).all()


def test_trained_equation_serves_the_samplers() -> None:
    model = latent_sde(2, 3, max_step=0.1, seed=0, diffusion=DiagonalDiffusion(3, seed=1))
    matching = LatentMatching(model, MarginalPosterior(2, 3, seed=0), instants=8)
    values = NoiseStream(0, 0, 8).normals(12).view(8, 6, 2)
    series = Series(_TIMES, values)
    settings = LatentTraining(batch=4, fit=FitSettings(iterations=3))
    done, history = train_latent(matching, series, seed=0, settings=settings, progress=False)
    assert history["iteration"] == [3]
    assert not torch.equal(
        done.model.drift.layers[0].weight, latent_sde(2, 3, max_step=0.1, seed=0).drift.layers[0].weight
    )
    drawn = PriorSampler(done.model, _TIMES, 2)(torch.zeros(5, 0), NoiseStream(0, 0, 5))
    assert drawn.shape == (5, 6, 2)


def test_missing_values_leave_gradients_finite() -> None:
    matching = LatentMatching(latent_sde(2, 3, max_step=0.1, seed=0), MarginalPosterior(2, 3, seed=0))
    values = NoiseStream(5, 0, 4).normals(12).view(4, 6, 2)
    values[0], values[1, 2:, 0] = torch.nan, torch.nan
    (-matching.elbo(Series(_TIMES, values), NoiseStream(0, 0, 4)).elbo.mean()).backward()
    grads = [p.grad for p in matching.parameters() if p.grad is not None]
    assert len(grads) > 10
    assert all(bool(grad.isfinite().all()) for grad in grads)


def test_matching_refuses_what_it_cannot_train() -> None:
    posterior = MarginalPosterior(2, 3, seed=0)
    noise = FractionalNoise(0.7, horizon=1.0, step=0.05)
    with pytest.raises(ValueError, match="`model` must have Brownian noise"):
        LatentMatching(latent_sde(2, 3, max_step=0.05, seed=0, noise=noise), posterior)
    with pytest.raises(ValueError, match="`model` must have a solver in the sense of Ito"):
        LatentMatching(latent_sde(2, 3, max_step=0.1, seed=0, solver=Heun()), posterior)
    with pytest.raises(ValueError, match="`posterior` must have the 2 components of `model`; got 3"):
        LatentMatching(latent_sde(2, 2, max_step=0.1, seed=0), posterior)
    with pytest.raises(ValueError, match="`instants` must be at least 1; got 0"):
        LatentMatching(latent_sde(2, 3, max_step=0.1, seed=0), posterior, instants=0)
    with pytest.raises(ValueError, match="`deviation` must be positive; got 0"):
        MarginalPosterior(2, 3, seed=0, deviation=0)
    matching = LatentMatching(latent_sde(2, 3, max_step=0.1, seed=0), posterior)
    series = Series(_TIMES, torch.zeros(4, 6, 2))
    with pytest.raises(ValueError, match="`noise` must hold `paths` samples for each of 4 series; got 5"):
        matching.elbo(series, NoiseStream(0, 0, 5))
    with pytest.raises(ValueError, match="`times` must not lie before 0"):
        matching.states(series, torch.tensor([-1.0, 0.5]), NoiseStream(0, 0, 4))
    twisted = latent_sde(2, 3, max_step=0.1, seed=0, solver=Heun()).dynamics.equation()
    with pytest.raises(ValueError, match="`prior` must be an equation in the sense of Ito"):
        matching_divergence(twisted, lambda t: (t[:, None], 1 + t[:, None]), 0, 1, NoiseStream(0, 0, 2))


@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (1.0, 1.0), (0.0, 2.0), (0.5, 1.5)])
def test_sample_divergence_of_normal_laws(shift: float, scale: float) -> None:
    exact = 3 * (math.log(scale) + (1 + shift**2) / (2 * scale**2) - 0.5)
    found = torch.tensor(
        [
            sample_divergence(
                NoiseStream(k, 0, 4000).normals(3, dtype=_F64),
                shift + scale * NoiseStream(k, 4000, 8000).normals(3, dtype=_F64),
            )
            for k in range(12)
        ]
    )
    # Finite samples: distances to neighbours are about 0.1, across which the densities vary in the tails.
    bias = 0.02 + 0.1 * exact
    error = float(found.std()) / math.sqrt(len(found))
    assert abs(float(found.mean()) - exact) < bias + 5 * error
    assert error < 0.02


def test_sample_divergence_refuses_what_has_no_density() -> None:
    x = NoiseStream(0, 0, 20).normals(2)
    with pytest.raises(ValueError, match="got 20 of 20 and 20"):
        sample_divergence(x, x + 1, neighbours=20)
    with pytest.raises(ValueError, match="more than 5 samples coincide"):
        sample_divergence(torch.zeros(20, 2), x)
    with pytest.raises(ValueError, match="`y` must be finite; got 1 values"):
        sample_divergence(x, torch.cat((x, torch.tensor([[0.0, torch.inf]]))))
