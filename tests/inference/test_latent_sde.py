"""Latent equations: bounds against the exact evidence, missing values, irregular instants, refusals."""

import math

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from inference.encoders import GRUEncoder, TemporalConvolution
from inference.fractional import GaussianChain, Observations, log_evidence
from inference.fractional.latent import GuidedDynamics
from inference.girsanov import solve_controlled
from inference.latent_dynamics import ControlledDynamics
from inference.latent_noise import FractionalNoise
from inference.latent_samplers import PosteriorSampler, PriorSampler, predict
from inference.latent_sde import ConstantDiffusion, DiagonalDiffusion, LatentSDE, latent_sde
from inference.likelihoods import Bernoulli, Gaussian, Poisson
from inference.series import Series
from sde import SDE, EulerMaruyama, Heun, NoiseStream, NoiseStructure, Solver
from sde.grid import make_grid
from sde.solvers import SRA1, MilsteinLevy
from tests.statistics import assert_mean
from uq import Model

_F64 = torch.float64
_TIMES = torch.tensor([0.0, 0.1, 0.25, 0.6, 0.7, 1.0], dtype=_F64)
_VALUES = torch.tensor([0.3, 0.5, -0.1, 0.2, 0.4, 0.7], dtype=_F64)


class _Reversion(nn.Module):
    """A linear drift."""

    def forward(self, time: Tensor, state: Tensor) -> Tensor:
        return -0.7 * state


def _noise(kind: str) -> FractionalNoise | None:
    if kind == "Brownian":
        return None
    # Explicit steps of 0.05 resolve its rates.
    return FractionalNoise(0.7, horizon=1.0, step=0.2, num_rates=4, kind=kind)  # type: ignore[arg-type]


def _linear(kind: str, *, seed: int = 0) -> LatentSDE:
    """A linear Gaussian model, whose evidence is known, with a control as posterior."""
    return LatentSDE(
        drift=_Reversion(),
        diffusion=ConstantDiffusion(1, start=0.8, learned=False, dtype=_F64),
        decoder=nn.Identity(),
        likelihood=Gaussian(1, deviation=0.4, learned=False, dtype=_F64),
        encoder=GRUEncoder(1, 8, seed=seed, dtype=_F64),
        latent_dim=1,
        max_step=0.05,
        seed=seed,
        width=16,
        noise=_noise(kind),
        solver=EulerMaruyama(),
    )


def _networks(model: LatentSDE) -> tuple[nn.Sequential, nn.Sequential]:
    """What a posterior starts with at zero."""
    dynamics = model.dynamics
    if isinstance(dynamics, GuidedDynamics):
        assert dynamics.residual is not None
        assert dynamics.recognition is not None
        return dynamics.residual, dynamics.recognition
    assert isinstance(dynamics, ControlledDynamics)
    return dynamics.control, dynamics.recognition


@torch.no_grad()
def _disturb(model: LatentSDE, size: float = 0.1) -> LatentSDE:
    """Move the posterior away from the prior."""
    for k, part in enumerate(_networks(model)):
        for j, parameter in enumerate(part[-1].parameters()):
            drawn = NoiseStream(9, 2 * k + j, 2 * k + j + 1).normals(parameter.numel(), dtype=parameter.dtype)
            parameter.copy_(size * drawn.view_as(parameter))
    return model


@torch.no_grad()
def _evidence(model: LatentSDE, observed: list[int]) -> Tensor:
    """Exact log evidence of the values at some of the instants, of the chain that the solver makes."""
    dynamics = model.dynamics
    assert isinstance(dynamics, ControlledDynamics)
    sde, grid = dynamics.equation(), make_grid(_TIMES, max_step=model.max_step)
    starts, sizes = grid.steps()
    unit = torch.eye(dynamics.state_dim, dtype=_F64)
    matrix = sde.drift(starts[0], unit).mT
    diffusion = sde.diffusion(starts[0], unit[:1]).reshape(dynamics.state_dim, 1)
    origin = dynamics.initial_state(torch.zeros(1, model.code_dim, dtype=_F64))[0]
    spread = dynamics.initial_state(torch.eye(model.code_dim, dtype=_F64)) - origin
    factors = sizes.sqrt()[:, None, None] * diffusion
    chain = GaussianChain(
        torch.cat((starts, _TIMES[-1:])),
        origin,
        spread.mT,
        unit + sizes[:, None, None] * matrix,
        factors @ factors.mT,
        factors,
        unit[:1].expand(len(starts) + 1, -1),
    )
    ends = [0, *torch.tensor(grid.counts).cumsum(0).tolist()]
    seen = Observations([ends[i] for i in observed], _VALUES[observed], 0.4)
    return log_evidence(chain, seen)[0]


def _series(observed: list[int]) -> Series:
    values = torch.full((1, len(_TIMES), 1), torch.nan, dtype=_F64)
    values[0, observed, 0] = _VALUES[observed]
    return Series(_TIMES, values)


@pytest.mark.parametrize("kind", ["Brownian", "I", "II"])
@pytest.mark.parametrize("observed", [[0, 1, 2, 3, 4, 5], [1, 4]])
def test_bound_is_below_the_exact_evidence_and_its_weights_average_to_it(
    kind: str, observed: list[int]
) -> None:
    model, series, paths = _disturb(_linear(kind)), _series(observed), 40_000
    evidence = _evidence(model, observed)
    with torch.no_grad():
        found = model.elbo(series, NoiseStream(1, 0, paths), paths=paths)
        measure, ratio = model.posterior(series, NoiseStream(1, 0, paths), paths=paths)
        weights = model.log_likelihood(measure.paths, series) + ratio + measure.log_ratio[:, -1] - evidence
    assert float(found.elbo) < float(evidence) - 5 * float(found.elbo_error)
    assert_mean(weights.exp(), 1.0, bias=0.2)


@pytest.mark.parametrize("kind", ["Brownian", "II"])
def test_training_closes_the_bound(kind: str) -> None:
    model, series = _linear(kind), _series([0, 1, 2, 3, 4, 5])
    parameters = [p for part in (*_networks(model), model.encoder) for p in part.parameters()]
    adam = torch.optim.Adam(parameters, lr=2e-2)
    for step in range(120):
        noise = NoiseStream(2, 64 * step, 64 * step + 64)
        loss = -model.elbo(series, noise, paths=64).elbo.mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
    evidence = float(_evidence(model, [0, 1, 2, 3, 4, 5]))
    with torch.no_grad():
        before = _linear(kind).elbo(series, NoiseStream(3, 0, 4000), paths=4000)
        after = model.elbo(series, NoiseStream(3, 0, 4000), paths=4000)
    assert float(before.elbo) < evidence - 1.0
    # A control that is held over steps of 0.05 cannot close it wholly.
    assert evidence - 0.3 < float(after.elbo) < evidence + 5 * float(after.elbo_error)


def test_posterior_starts_as_the_prior() -> None:
    model, series = _linear("I"), _series([0, 3])
    measure, ratio = model.posterior(series, NoiseStream(0, 0, 6), paths=6)
    assert not measure.divergence.any()
    assert not ratio.any()


@pytest.mark.parametrize("kind", ["Brownian", "I"])
def test_forecast_follows_the_prior(kind: str) -> None:
    model, series = _disturb(_linear(kind)), _series([0, 1, 5])
    times = torch.tensor([0.0, 0.33, 1.0, 1.2, 2.0], dtype=_F64)
    divergence = model.posterior(series, NoiseStream(0, 0, 6), paths=6, times=times).measure.divergence
    assert (divergence[:, 1:3].diff(dim=1) > 0).all()
    assert torch.equal(divergence[:, 2], divergence[:, 4])


def test_a_series_does_not_depend_on_its_neighbours() -> None:
    model = _disturb(latent_sde(2, 3, max_step=0.1, seed=0, dtype=_F64))
    values = NoiseStream(5, 0, 4).normals(12, dtype=_F64).view(4, 6, 2)
    noise = NoiseStream(1, 0, 12)
    whole = model.posterior(Series(_TIMES, values), noise, paths=3).measure.paths
    part = model.posterior(Series(_TIMES, values[2:3]), noise[6:9], paths=3).measure.paths
    torch.testing.assert_close(whole[6:9], part)


@pytest.mark.parametrize("make", [GRUEncoder, TemporalConvolution])
def test_encoders_read_what_was_observed(make: type[nn.Module]) -> None:
    encoder = make(2, 8, seed=0, dtype=_F64)
    values = NoiseStream(5, 0, 4).normals(12, dtype=_F64).view(4, 6, 2)
    plain = encoder(Series(_TIMES, values))
    holes = []
    for hole in (torch.nan, 0.0):
        changed = values.clone()
        changed[:, 2, 1] = hole
        holes.append(encoder(Series(_TIMES, changed)))
        assert (holes[-1][:, 2] - plain[:, 2]).abs().min() > 1e-7
        if make is GRUEncoder:  # it knows what is to come, not what was
            assert torch.equal(holes[-1][:, 3:], plain[:, 3:])
    assert (holes[0][:, 2] - holes[1][:, 2]).abs().min() > 1e-7  # missing is not zero
    stretched = encoder(Series(_TIMES**2, values))
    assert (stretched - plain)[:, 1:].abs().max() > 1e-3


def test_missing_values_leave_gradients_finite() -> None:
    model = latent_sde(2, 3, max_step=0.1, seed=0)
    values = NoiseStream(5, 0, 4).normals(12).view(4, 6, 2)
    values[0], values[1, 2:, 0] = torch.nan, torch.nan
    found = model.elbo(Series(_TIMES, values), NoiseStream(0, 0, 4))
    found.elbo.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert float(found.elbo[0].detach()) == 0.0  # nothing was observed, and the posterior is the prior


def test_series_with_instants_of_their_own_are_joined() -> None:
    times = [torch.tensor([0.0, 0.4]), torch.tensor([0.0, 0.1, 0.4])]
    series = Series.join(times, [torch.ones(2, 1), 2 * torch.ones(3, 1)])
    assert series.times.tolist() == pytest.approx([0.0, 0.1, 0.4])
    assert series.mask[..., 0].tolist() == [[True, False, True], [True, True, True]]
    assert series.filled[1, :, 0].tolist() == [2.0, 2.0, 2.0]
    assert len(series.select(slice(0, 1))) == 1


@pytest.mark.parametrize("solver", [EulerMaruyama(), Heun(), SRA1()])
def test_weights_of_a_control_are_exact_for_every_scheme(solver: Solver) -> None:
    n = 200_000
    structure = NoiseStructure.ADDITIVE if isinstance(solver, SRA1) else NoiseStructure.DIAGONAL
    additive = structure is NoiseStructure.ADDITIVE

    def diffusion(t: Tensor, x: Tensor) -> Tensor:
        return torch.full_like(x, 0.6) if additive else 0.6 + 0.2 * x.cos()

    prior = SDE(lambda t, x: -(x**3), diffusion, structure, solver.calculus)
    start, times = torch.full((n, 1), 0.5, dtype=_F64), torch.linspace(0, 1, 5, dtype=_F64)

    def run(size: float, seed: int):
        control = lambda t, x: size * (1 + x.sin())  # noqa: E731
        return solve_controlled(prior, control, start, times, NoiseStream(seed, 0, n), solver=solver)

    moved, plain = run(0.4, 1), run(0.0, 2)
    weights = moved.log_ratio[:, -1].exp()
    assert weights.std() > 0.3
    assert_mean(weights, 1.0, bias=0.02)
    # Steps are coarse: the scheme's own law is recovered, not that of the equation.
    assert_mean(moved.paths[:, -1, 0] * weights - plain.paths[:, -1, 0], 0.0, bias=0.03)


def test_state_dependent_diffusion_with_fractional_noise_is_stratonovich() -> None:
    noise = FractionalNoise(0.7, horizon=1.0, step=0.2, num_rates=4)
    parts = {"diffusion": DiagonalDiffusion(3, seed=1), "noise": noise, "max_step": 0.05, "seed": 0}
    with pytest.raises(ValueError, match="`sde` must be Stratonovich"):
        latent_sde(2, 3, **parts)
    model = _disturb(latent_sde(2, 3, solver=Heun(), **parts))
    found = model.elbo(Series(_TIMES, torch.ones(2, 6, 2)), NoiseStream(0, 0, 8), paths=4)
    found.weighted.sum().backward()
    assert found.elbo.isfinite().all()
    assert noise.raw.grad is not None
    assert float(noise.raw.grad.abs()) > 0


def test_hurst_index_stays_between_its_bounds() -> None:
    noise = FractionalNoise(0.5, horizon=1.0, step=0.05, num_rates=3, bounds=(0.1, 0.9))
    assert float(noise.hurst.detach()) == pytest.approx(0.5)
    for raw, limit in ((-1e3, 0.1), (1e3, 0.9)):
        with torch.no_grad():
            noise.raw.fill_(raw)
        assert float(noise.hurst.detach()) == pytest.approx(limit)


def test_likelihoods_have_the_densities_of_their_laws() -> None:
    raw = torch.linspace(-2, 2, 7, dtype=_F64)[:, None]
    gaussian = Gaussian(1, deviation=0.3, dtype=_F64)
    values, levels = raw.flip(0), torch.linspace(0.05, 0.95, 7, dtype=_F64)[:, None]
    normal = stats.norm(raw.numpy(), 0.3)
    assert gaussian.log_density(raw, values).detach().numpy() == pytest.approx(normal.logpdf(values.numpy()))
    assert gaussian.quantile(raw, levels).detach().numpy() == pytest.approx(normal.ppf(levels.numpy()))
    counts = torch.arange(7, dtype=_F64)[:, None]
    poisson = stats.poisson(raw.exp().numpy())
    assert Poisson().log_density(raw, counts).numpy() == pytest.approx(poisson.logpmf(counts.numpy()))
    assert Poisson().quantile(raw, levels).numpy() == pytest.approx(poisson.ppf(levels.numpy()))
    coin = stats.bernoulli(raw.sigmoid().numpy())
    bits = (counts % 2).to(_F64)
    assert Bernoulli().log_density(raw, bits).numpy() == pytest.approx(coin.logpmf(bits.numpy()))
    assert Bernoulli().quantile(raw, levels).numpy() == pytest.approx(coin.ppf(levels.numpy()))
    for law, mean in ((gaussian, normal.mean()), (Poisson(), poisson.mean()), (Bernoulli(), coin.mean())):
        assert law.mean(raw).detach().numpy() == pytest.approx(mean)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: Series(torch.tensor([0.0, 0.0]), torch.zeros(1, 2, 1)),
            "`times` must be at least 2 increasing",
        ),
        (lambda: Series(torch.tensor([0.0, 1.0]), torch.zeros(1, 3, 1)), "`values` must have shape"),
        (
            lambda: Series(torch.tensor([0.0, 1.0]), torch.full((1, 2, 1), math.inf)),
            "`values` must be finite, or NaN",
        ),
        (lambda: Series.join([], []), "`times` and `values` must hold the same number of series"),
        (lambda: Gaussian(1, deviation=0.0), "`deviation` must be positive"),
        (lambda: FractionalNoise(0.99, horizon=1.0, step=0.01), "`hurst` must lie between `bounds`"),
        (lambda: latent_sde(1, 1, max_step=0.0, seed=0), "`max_step` must be positive"),
        (
            lambda: latent_sde(
                1, 1, max_step=0.1, seed=0, noise=FractionalNoise(horizon=1.0, step=0.01), solver=Heun()
            ),
            "`max_step` must be at most 0.00375 for the rates",
        ),
        (lambda: _linear("II").posterior(_series([0]), NoiseStream(0, 0, 3), paths=2), "`noise` must hold"),
        (
            lambda: _linear("II").posterior(_series([0]), NoiseStream(0, 0, 1), times=_TIMES[1:]),
            "`times` must start at 0.0; got 0.1",
        ),
        (
            lambda: solve_controlled(
                SDE(lambda t, x: x, lambda t, x: x[..., None], NoiseStructure.GENERAL, noise_dim=1),
                lambda t, x: x,
                torch.zeros(2, 1),
                _TIMES,
                NoiseStream(0, 0, 2),
                solver=MilsteinLevy(),
            ),
            "`solver` must need Wiener increments",
        ),
    ],
)
def test_wrong_use_is_refused(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def _neural(noise: FractionalNoise | None = None) -> LatentSDE:
    return _disturb(latent_sde(2, 3, max_step=0.05, seed=0, noise=noise), size=0.05)


@pytest.mark.parametrize("kind", ["Brownian", "I", "II"])
def test_samplers_are_models_whose_rows_do_not_depend_on_the_batch(kind: str) -> None:
    model = _neural(_noise(kind))
    series = Series(_TIMES.float(), NoiseStream(5, 0, 1).normals(6, channels=2))
    times = torch.tensor([0.0, 0.3, 1.0, 1.4])
    for sampler in (PriorSampler(model, times, 2), PosteriorSampler(model, series, times)):
        assert isinstance(sampler, Model)
        noise = NoiseStream(4, 0, 70)
        whole = sampler(torch.zeros(70, 0), noise)
        assert whole.shape == (70, 4, 2)
        assert torch.equal(sampler(torch.zeros(10, 0), noise[60:]), whole[60:])
        assert whole.isfinite().all()


def test_prior_sampler_has_the_law_of_the_model() -> None:
    sampler = PriorSampler(_linear("Brownian"), torch.tensor([0.0, 0.5, 1.0], dtype=_F64), 1)
    drawn = sampler(torch.zeros(40_000, 0), NoiseStream(4, 0, 40_000))[..., 0]
    # Euler's chain: variance 1 at the start, factor (1 - 0.7 h)^2 and 0.64 h a step; then the noise, 0.16.
    variances, variance = [], 1.0
    for step in range(21):
        if step % 10 == 0:
            variances.append(variance + 0.16)
        variance = variance * (1 - 0.7 * 0.05) ** 2 + 0.64 * 0.05
    assert_mean(drawn, 0.0, bias=0.06)
    assert_mean(drawn.square(), torch.tensor(variances, dtype=_F64), bias=0.09)


def test_intervals_of_a_prediction_have_their_coverage() -> None:
    # With an untrained control the prediction is the prior's: its interval is known.
    series = _series([0, 5])
    paths = 20_000
    times = torch.tensor([0.25, 1.0, 2.0], dtype=_F64)
    found = predict(_linear("Brownian"), series, times, NoiseStream(2, 0, paths), paths=paths, coverage=0.8)
    variance, deviations = 1.0, []
    for step in range(41):
        if step in (5, 20, 40):
            deviations.append((variance + 0.16) ** 0.5)
        variance = variance * (1 - 0.7 * 0.05) ** 2 + 0.64 * 0.05
    wide = stats.norm.ppf(0.9) * torch.tensor(deviations, dtype=_F64)
    # The standard error of this quantile is 1.7 deviations over the root of the paths; false alarm
    # 1e-6 with 5.4 of them.
    bound = 5.4 * 1.71 / math.sqrt(paths) * max(deviations)
    assert (found.upper[0, :, 0] - wide).abs().max() < bound
    assert (found.lower[0, :, 0] + wide).abs().max() < bound
    assert found.mean.abs().max() < bound


def test_samplers_refuse() -> None:
    model, series = _linear("Brownian"), _series([0])
    with pytest.raises(ValueError, match="`coverage` must lie in"):
        predict(model, series, _TIMES, NoiseStream(0, 0, 4), paths=4, coverage=1.0)
    with pytest.raises(ValueError, match=r"`times` must not lie before 0\.0; got -1\.0"):
        predict(model, series, _TIMES - 1, NoiseStream(0, 0, 4), paths=4)
    with pytest.raises(ValueError, match="`series` must be one series; got 2"):
        PosteriorSampler(model, Series(_TIMES, torch.zeros(2, 6, 1, dtype=_F64)), _TIMES)
    with pytest.raises(ValueError, match="`inputs` must have shape"):
        PriorSampler(model, _TIMES, 1)(torch.zeros(4, 1), NoiseStream(0, 0, 4))
