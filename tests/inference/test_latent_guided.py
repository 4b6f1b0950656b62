"""Guided posteriors of latent equations with fractional noise: exact evidence, true bounds, gradients."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from inference.encoders import GRUEncoder
from inference.fractional import Observations, fractional_chain, log_evidence, smoothed
from inference.fractional.latent import GuidedDynamics
from inference.latent_noise import FractionalNoise, LatentNoise, MultifractionalNoise, SplineIndex
from inference.latent_samplers import PriorSampler, predict
from inference.latent_sde import ConstantDiffusion, LatentSDE, LinearDrift, latent_sde
from inference.latent_sites import DirectSites, LearnedSites
from inference.latent_training import LatentTraining, train_latent
from inference.likelihoods import Gaussian
from inference.series import Series
from inference.training import FitSettings
from sde import Heun, NoiseStream
from sde.noise import MarkovFBM
from tests.statistics import assert_mean

_F64 = torch.float64
_TIMES = torch.tensor([0.0, 0.1, 0.25, 0.6, 0.7, 1.0], dtype=_F64)
_VALUES = torch.tensor([[0.3, 0.5, -0.1, 0.2, 0.4, 0.7], [0.1, -0.4, 0.0, 0.6, 0.9, 0.8]], dtype=_F64)
_DEVIATION, _SCALE, _START = 0.3, 0.8, (0.2, 0.6)


def _constant(kind: str, hurst: float = 0.35) -> FractionalNoise:
    return FractionalNoise(hurst, horizon=1.0, step=0.05, num_rates=5, kind=kind)  # type: ignore[arg-type]


def _varying(kind: str) -> MultifractionalNoise:
    index = SplineIndex(0.0, 1.0, pieces=3)
    with torch.no_grad():
        index.coefficients.copy_(torch.linspace(-1.0, 1.0, 6))
    return MultifractionalNoise(index, horizon=1.0, step=0.05, num_rates=5, kind=kind)  # type: ignore[arg-type]


_NOISES: dict[str, Callable[[], LatentNoise]] = {
    "type I": lambda: _constant("I"),
    "type II": lambda: _constant("II"),
    "multifractional, type I": lambda: _varying("I"),
    "multifractional, type II": lambda: _varying("II"),
}


def _model(
    noise: LatentNoise, drift: nn.Module | None = None, dim: int = 1, direct: bool = True
) -> LatentSDE:
    """The state itself, observed with noise."""
    likelihood = Gaussian(dim, deviation=_DEVIATION, learned=False, dtype=_F64)
    model = LatentSDE(
        drift=LinearDrift(dim, learned=False, dtype=_F64) if drift is None else drift,
        diffusion=ConstantDiffusion(dim, start=_SCALE, dtype=_F64),
        decoder=nn.Identity(),
        likelihood=likelihood,
        encoder=GRUEncoder(dim, 6, seed=0, dtype=_F64),
        latent_dim=dim,
        max_step=0.1,
        seed=0,
        width=16,
        noise=noise,
        sites=DirectSites(likelihood) if direct else None,
    )
    with torch.no_grad():
        model.dynamics.initial_mean.fill_(_START[0])
        model.dynamics.initial_log_deviation.fill_(math.log(_START[1]))
    return model


def _guided(model: LatentSDE) -> GuidedDynamics:
    assert isinstance(model.dynamics, GuidedDynamics)
    return model.dynamics


@torch.no_grad()
def _disturb(model: LatentSDE, size: float) -> LatentSDE:
    """Move the posterior away from the guide."""
    dynamics = _guided(model)
    for k, part in enumerate((dynamics.residual, dynamics.recognition)):
        assert part is not None
        for j, parameter in enumerate(part[-1].parameters()):
            drawn = NoiseStream(9, 2 * k + j, 2 * k + j + 1).normals(parameter.numel(), dtype=parameter.dtype)
            parameter.copy_(size * drawn.view_as(parameter))
    return model


def _evidence(noise: MarkovFBM, observed: list[int], values: Tensor) -> Tensor:
    """Exact log evidence of series without a drift, of a chain with one exact step between instants."""
    chain = fractional_chain(noise, _TIMES, scale=_SCALE, initial=_START[0], initial_deviation=_START[1])
    return log_evidence(chain, Observations(observed, values[:, observed], _DEVIATION))


def _series(observed: list[int], values: Tensor) -> Series:
    """Series with NaN for what was not observed, one component each."""
    held = torch.full((len(values), len(_TIMES), 1), torch.nan, dtype=_F64)
    held[:, observed, 0] = values[:, observed]
    return Series(_TIMES, held)


def _log_weights(model: LatentSDE, series: Series, noise: NoiseStream) -> Tensor:
    """Of all paths, series by series."""
    measure, ratio = model.posterior(series, noise, paths=len(noise) // len(series))
    return model.log_likelihood(measure.paths, series) + ratio + measure.log_ratio[:, -1]


@pytest.mark.parametrize("name", list(_NOISES))
@pytest.mark.parametrize("observed", [[0, 1, 2, 3, 4, 5], [1, 4]], ids=["all", "two"])
@torch.no_grad()
def test_every_path_returns_the_exact_evidence(name: str, observed: list[int]) -> None:
    noise = _NOISES[name]()
    model = _model(noise)
    found = _log_weights(model, _series(observed, _VALUES), NoiseStream(1, 0, 20)).view(2, 10)
    exact = _evidence(noise.model(), observed, _VALUES)
    assert (found - exact[:, None]).abs().max() < 1e-8


@torch.no_grad()
def test_the_divergence_of_the_inferred_past_is_part_of_the_bound() -> None:
    model = _model(_constant("I", 0.8))
    series = _series([0, 1, 2, 3, 4, 5], _VALUES)
    measure, _ = model.posterior(series, NoiseStream(1, 0, 20), paths=10)
    without = model.log_likelihood(measure.paths, series) + measure.log_ratio[:, -1]
    assert without.view(2, 10).std(1).min() > 1e-2
    code = _guided(model)
    assert code.code_dim == 1 + code.past.shape[1] > 2  # the start, and the normals of the past


@torch.no_grad()
def test_components_are_independent_and_linear_drifts_guide_themselves() -> None:
    drift = LinearDrift(2, rate=1.5, offset=0.4, dtype=_F64)
    model = _model(_constant("I"), drift, dim=2)
    values = _VALUES.mT[None].clone()
    values[0, 2, 1] = torch.nan
    both = _log_weights(model, Series(_TIMES, values), NoiseStream(3, 0, 8))
    assert both.std() < 1e-9
    total = torch.zeros((), dtype=_F64)
    for k in range(2):
        one = _model(_constant("I"), LinearDrift(1, rate=1.5, offset=0.4, dtype=_F64))
        total = total + _log_weights(one, Series(_TIMES, values[..., k : k + 1]), NoiseStream(4, 0, 1))[0]
    assert (both - total).abs().max() < 1e-8


@pytest.mark.parametrize("name", ["type I", "type II"])
def test_gradient_in_index_and_scale_is_that_of_the_evidence(name: str) -> None:
    noise = _NOISES[name]()
    assert isinstance(noise, FractionalNoise)
    model, observed = _model(noise), [0, 2, 3, 5]
    bound = model.elbo(_series(observed, _VALUES), NoiseStream(1, 0, 2)).elbo.sum()
    found = torch.autograd.grad(bound, [noise.raw])[0]
    slope = float(torch.autograd.grad(noise.hurst, noise.raw)[0])
    h = float(noise.hurst.detach())
    ends = [
        float(_evidence(MarkovFBM(at, 5, 1.0, 0.05, noise.kind), observed, _VALUES).sum())
        for at in (h + 1e-5, h - 1e-5)
    ]
    assert float(found) / slope == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-5, abs=1e-6)


def test_the_residual_has_no_gradient_at_the_exact_posterior() -> None:
    model = _model(_constant("I"))
    bound = model.elbo(_series([0, 2, 5], _VALUES), NoiseStream(1, 0, 6), paths=3).elbo.sum()
    network = _guided(model).residual
    assert network is not None
    residual = list(network[-1].parameters())
    found = torch.autograd.grad(bound, residual)
    assert max(float(part.abs().max()) for part in found) < 1e-10
    moved = _disturb(model, 0.3).elbo(_series([0, 2, 5], _VALUES), NoiseStream(1, 0, 6), paths=3).elbo.sum()
    assert max(float(part.abs().max()) for part in torch.autograd.grad(moved, residual)) > 1e-2


@pytest.mark.parametrize("name", ["type I", "multifractional, type II"])
@torch.no_grad()
def test_a_moved_posterior_bounds_the_evidence_and_weighs_right(name: str) -> None:
    noise, observed, paths = _NOISES[name](), [1, 4, 5], 40_000
    model, series = _disturb(_model(noise), 0.1), _series(observed, _VALUES[:1])
    exact = _evidence(noise.model(), observed, _VALUES[:1])
    weights = (_log_weights(model, series, NoiseStream(1, 0, paths)) - exact).exp()
    found = model.elbo(series, NoiseStream(2, 0, paths), paths=paths)
    assert weights.std() > 0.1
    assert_mean(weights, 1.0, bias=0.1)
    assert float(found.elbo) < float(exact) - 5 * float(found.elbo_error)


class _Wells(nn.Module):
    """A drift that no line resembles."""

    def forward(self, time: Tensor, state: Tensor) -> Tensor:
        return 3 * (3 * state).sin()


@pytest.mark.parametrize("direct", [True, False], ids=["data", "network"])
@torch.no_grad()
def test_bounds_are_true_for_a_nonlinear_drift(direct: bool) -> None:
    model, series = _model(_constant("I", 0.4), _Wells(), direct=direct), _series([1, 5], _VALUES[:1])
    code, count = model.codes(NoiseStream(5, 0, 200_000)), 200_000
    free = model.prior(code, _TIMES, NoiseStream(5, 0, count))
    likelihood = model.log_likelihood(free, Series(_TIMES, series.values.expand(count, -1, -1))).exp()
    evidence, error = float(likelihood.mean()), float(likelihood.std()) / math.sqrt(count)
    assert error < 0.01 * evidence
    weights = _log_weights(model, series, NoiseStream(6, 0, 20_000)).exp() / evidence
    assert weights.std() > 1e-3  # no longer exact
    # Both estimates are uncertain: five standard errors of their difference.
    spread = float(weights.std()) / math.sqrt(len(weights))
    assert spread < 0.02
    assert abs(float(weights.mean()) - 1) < 5 * math.hypot(spread, error / evidence)
    found = model.elbo(series, NoiseStream(7, 0, 20_000), paths=20_000)
    assert float(found.elbo) < math.log(evidence) + 5 * error / evidence


@torch.no_grad()
def test_prior_paths_have_the_covariance_of_the_noise_at_any_step() -> None:
    noise, count = _varying("I"), 50_000
    model = _model(noise)
    model.dynamics.initial_log_deviation.fill_(-40.0)
    paths = model.prior(model.codes(NoiseStream(2, 0, count)), _TIMES, NoiseStream(2, 0, count))[..., 0]
    exact = _SCALE**2 * noise.model().covariance(_TIMES, _TIMES)
    gaps = paths - _START[0]
    assert_mean(gaps[:, 1:, None] * gaps[:, None, 1:], exact[1:, 1:], bias=0.05)


@torch.no_grad()
def test_learned_sites_are_where_something_was_observed() -> None:
    series = _series([1, 4], _VALUES)
    sites = LearnedSites(6, 2, seed=0, dtype=_F64)(torch.ones(2, 6, 6, dtype=_F64), series)
    assert (sites.precisions[0] > 0).all(1).tolist() == [False, True, False, False, True, False]
    # Unseen instants change nothing, whatever the encoder says of them.
    model = _model(_constant("II"), direct=False)
    assert float(_log_weights(model, _series([], _VALUES), NoiseStream(0, 0, 2)).abs().max()) == 0.0


@torch.no_grad()
def test_a_forecast_follows_the_prior() -> None:
    model, series = _disturb(_model(_constant("I")), 0.2), _series([0, 1, 5], _VALUES[:1])
    times = torch.tensor([0.0, 0.33, 1.0, 1.2, 2.0], dtype=_F64)
    measure = model.posterior(series, NoiseStream(0, 0, 6), paths=6, times=times).measure
    assert measure.paths.shape == (6, 5, 1)
    assert (measure.divergence[:, 1:3].diff(dim=1) > 0).all()
    assert torch.equal(measure.divergence[:, 2], measure.divergence[:, 4])
    # What comes later is known on the way.
    early = model.posterior(series, NoiseStream(0, 0, 6), paths=6, times=times[:2]).measure
    torch.testing.assert_close(early.paths, measure.paths[:, :2])


@torch.no_grad()
def test_predictions_are_those_of_gaussian_regression() -> None:
    noise, count = _constant("I", 0.7), 40_000
    model, series = _model(noise), _series([0, 2, 3], _VALUES[:1])
    times = torch.tensor([0.4, 1.0, 1.5], dtype=_F64)
    grid = torch.cat((_TIMES, times)).unique()
    chain = fractional_chain(
        noise.model(), grid, scale=_SCALE, initial=_START[0], initial_deviation=_START[1]
    )
    steps = torch.searchsorted(grid, _TIMES[[0, 2, 3]]).tolist()
    exact = smoothed(chain, Observations(steps, _VALUES[:1, [0, 2, 3]], _DEVIATION))
    index = torch.searchsorted(grid, times)
    found = predict(model, series, times, NoiseStream(8, 0, count), paths=count)
    deviation = (exact.variance[index] + _DEVIATION**2).sqrt()
    # False alarm 1e-6: 5 standard errors of a mean, and of a quantile of 5 %, 2.1 deviations over sqrt(n).
    bound = 5 * deviation / math.sqrt(count)
    assert ((found.mean[0, :, 0] - exact.mean[0, index]).abs() < bound).all()
    upper = exact.mean[0, index] + 1.6449 * deviation
    assert ((found.upper[0, :, 0] - upper).abs() < 2.2 * bound).all()


def test_training_learns_networks_and_index() -> None:
    noise = _constant("I", 0.5)
    model = latent_sde(2, 2, max_step=0.1, seed=0, width=8, noise=noise, content_dim=1)
    values = NoiseStream(5, 0, 8).normals(6, channels=2)
    settings = LatentTraining(batch=4, paths=2, fit=FitSettings(iterations=6, rate=1e-2, log_every=3))
    before = float(noise.hurst.detach())
    trained, history = train_latent(model, Series(_TIMES, values), seed=0, settings=settings, progress=False)
    assert history["iteration"] == [3, 6]
    assert abs(float(noise.hurst.detach()) - before) > 1e-4
    with torch.no_grad():
        sampler = PriorSampler(trained, _TIMES, 2)
        assert sampler(torch.zeros(3, 0), NoiseStream(0, 0, 3)).shape == (3, 6, 2)


def test_a_series_is_guided_alone() -> None:
    # Three series of two components, each with precisions of its own, under a linear drift with an offset.
    noise = FractionalNoise(0.7, horizon=1.0, step=0.1, num_rates=3)
    model = latent_sde(2, 2, max_step=0.1, seed=0, width=8, noise=noise, dtype=_F64)
    with torch.no_grad():
        for index, parameter in enumerate(model.parameters()):
            jitter = NoiseStream(9, index, index + 1).normals(parameter.numel(), dtype=_F64)
            parameter.add_(0.2 * jitter.view(parameter.shape).to(parameter))
        values = NoiseStream(5, 0, 3).normals(6, channels=2, dtype=_F64)
        stream = NoiseStream(1, 0, 6)
        whole = model.posterior(Series(_TIMES, values), stream, paths=2)
        part = model.posterior(Series(_TIMES, values[1:2]), stream[2:4], paths=2)
    assert _guided(model).surrogate.offset.abs().min() > 0
    torch.testing.assert_close(whole.measure.paths[2:4], part.measure.paths)
    torch.testing.assert_close(whole.measure.log_ratio[2:4], part.measure.log_ratio)


def test_content_is_inferred_with_the_state() -> None:
    model = latent_sde(1, 1, max_step=0.1, seed=0, width=8, noise=_constant("II"), content_dim=3, dtype=_F64)
    measure, ratio = model.posterior(_series([0, 3], _VALUES), NoiseStream(0, 0, 4), paths=2)
    assert measure.paths.shape == (4, 6, 4)
    assert torch.equal(measure.paths[:, 0, 1:], measure.paths[:, 5, 1:])
    assert ratio.shape == (4,)


def test_spline_index_is_smooth_and_bounded() -> None:
    index = SplineIndex(0.0, 2.0, pieces=4)
    with torch.no_grad():
        index.coefficients.copy_(torch.tensor([3.0, -2.0, 5.0, 0.0, 1.0, -4.0, 2.0]))
    # Not at the knots themselves, where autograd takes the derivative of an absolute value at zero.
    times = torch.linspace(0.0003, 1.9993, 2000, dtype=_F64, requires_grad=True)
    values = index(times)
    slope = torch.autograd.grad(values.sum(), times, create_graph=True)[0]
    bend = torch.autograd.grad(slope.sum(), times)[0]
    assert bend.diff().abs().max() < 0.3  # continuous: jumps of the third derivative times the spacing
    noise = MultifractionalNoise(index, horizon=2.0, step=0.1, bounds=(0.2, 0.6))
    found = noise.hurst(times).detach()
    assert 0.2 < float(found.min()) < float(found.max()) < 0.6


def _brownian(**settings: Any) -> LatentSDE:
    """A model without fractional noise."""
    return LatentSDE(
        drift=LinearDrift(1),
        diffusion=ConstantDiffusion(1),
        decoder=nn.Identity(),
        likelihood=Gaussian(1),
        encoder=GRUEncoder(1, 2, seed=0),
        latent_dim=1,
        max_step=0.1,
        seed=0,
        **settings,
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SplineIndex(1.0, 1.0), "`stop` must be later"),
        (lambda: SplineIndex(0.0, 1.0, pieces=0), "`pieces` must be at least 1"),
        (lambda: _brownian(content_dim=-1), "`content_dim` must be at least 0"),
        (
            lambda: latent_sde(1, 1, max_step=0.1, seed=0, noise=_varying("I"), solver=Heun()),
            "`max_step` must be at most|`H` must be given",
        ),
        (
            lambda: _brownian(sites=DirectSites(Gaussian(1))),
            "`sites` must be None",
        ),
    ],
)
def test_wrong_use_is_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
