"""Equations in Pyro programs: densities, SVI and NUTS against exact posteriors, predictive draws."""

import functools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

pyro = pytest.importorskip("pyro", reason="needs the extra pyro")

from pyro import distributions as dist  # noqa: E402
from pyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO  # noqa: E402
from pyro.infer.autoguide import AutoNormal  # noqa: E402

from benchmarks.pyro_calibration import (  # noqa: E402
    SETS,
    chi_squared,
    hamiltonian_draws,
    limit,
    narrowed,
    power,
    prior_and_data,
    ranks,
    variational_draws,
)
from inference.elbo import bound  # noqa: E402
from inference.fractional import Observations, fractional_chain, log_evidence  # noqa: E402
from inference.girsanov import solve_measure  # noqa: E402
from inference.pyro_bridge import EulerPaths, ObservedChain, controlled_paths  # noqa: E402
from sde import SDE, NoiseStream, NoiseStructure, solve  # noqa: E402
from sde.noise import MarkovFBM, fbm_path  # noqa: E402
from sde.noise.fractional import fbm_covariance  # noqa: E402
from tests.statistics import assert_mean  # noqa: E402

_F64 = torch.float64
_TIMES = torch.linspace(0, 2, 21, dtype=_F64)
_SIGMA = 0.5


def _seeded(test: Callable[[], None]) -> Callable[[], None]:
    """Pyro draws from torch's generator: seed it for a test, and put it back."""

    @functools.wraps(test)
    def run() -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            pyro.clear_param_store()
            test()
            pyro.clear_param_store()

    return run


def _equation(rate: Tensor | float) -> SDE:
    return SDE(lambda t, x: -rate * x, lambda t, x: torch.full_like(x, _SIGMA))


def _data() -> Tensor:
    start = torch.ones(6, 1, dtype=_F64)
    return solve(_equation(1.5), start, _TIMES, NoiseStream(1, 0, 6))


def _program(paths: Tensor | None) -> Tensor:
    rate = pyro.sample("rate", dist.Normal(torch.ones((), dtype=_F64), 1.0))
    with pyro.plate("series", 6):
        law = EulerPaths(_equation(rate), torch.ones(6, 1, dtype=_F64), _TIMES)
        return pyro.sample("paths", law, obs=paths)


def _exact(paths: Tensor) -> tuple[float, float]:
    """Posterior mean and deviation of the rate: the Euler likelihood is Gaussian in it."""
    before, moved, dt = paths[:, :-1, 0], paths.diff(dim=1)[..., 0], _TIMES.diff()
    precision = 1 + float((before.square() * dt).sum()) / _SIGMA**2
    return (1 - float((before * moved).sum()) / _SIGMA**2) / precision, precision**-0.5


def test_ratio_of_densities_is_the_path_weight() -> None:
    start = torch.ones(5, 1, dtype=_F64)
    prior, posterior = _equation(0.3), _equation(1.5)
    measure = solve_measure(prior, posterior, start, _TIMES, NoiseStream(0, 0, 5))
    ratio = EulerPaths(prior, start, _TIMES).log_prob(measure.paths) - EulerPaths(
        posterior, start, _TIMES
    ).log_prob(measure.paths)
    torch.testing.assert_close(ratio, measure.log_ratio[:, -1])


@_seeded
def test_variational_inference_finds_the_posterior_of_the_drift() -> None:
    paths = _data()
    mean, deviation = _exact(paths)
    guide = AutoNormal(_program, init_scale=0.3)
    adam = pyro.optim.ClippedAdam({"lr": 0.03, "lrd": 0.994})
    svi = SVI(_program, guide, adam, Trace_ELBO(num_particles=4))
    for _ in range(400):
        svi.step(paths)
    found = guide.quantiles([0.5, 0.5 * math.erfc(-(0.5**0.5))])["rate"].detach()
    assert abs(float(found[0]) - mean) < 0.15 * deviation
    assert abs(float(found[1] - found[0]) / deviation - 1) < 0.15


@pytest.mark.slow
@_seeded
def test_hamiltonian_sampling_finds_the_posterior_of_the_drift() -> None:
    paths = _data()
    mean, deviation = _exact(paths)
    chain = MCMC(NUTS(_program), num_samples=1000, warmup_steps=200, disable_progbar=True)
    chain.run(paths)
    rates = chain.get_samples()["rate"]
    # Every tenth draw is nearly independent of the one before.
    assert_mean((rates[::10] - mean) / deviation, 0.0, bias=1.2)
    assert abs(float(rates.std()) / deviation - 1) < 0.2


@_seeded
def test_predictive_draws_new_paths() -> None:
    rates = torch.tensor([0.5, 2.0], dtype=_F64)
    drawn = Predictive(_program, {"rate": rates})(None)["paths"]
    assert drawn.shape == (2, 6, 21, 1)
    assert (drawn[:, :, 0] == 1).all()
    assert drawn[:, :, -1].flatten().unique().numel() == 12
    torch.manual_seed(0)
    again = Predictive(_program, {"rate": rates})(None)["paths"]
    assert torch.equal(again, drawn)


@_seeded
def test_loss_of_a_program_with_a_hidden_path_is_the_bound() -> None:
    n, seen = 4000, 0.7
    walk = SDE(lambda t, x: 0 * x, lambda t, x: torch.ones_like(x))
    evidence = -0.5 * (seen**2 / 1.25 + math.log(2 * math.pi * 1.25))
    kept = []

    def program() -> None:
        pull = pyro.param("pull", torch.tensor(0.5, dtype=_F64))
        with pyro.plate("paths", n):
            measure = controlled_paths(
                "x", walk, lambda t, x: pull * (seen - x), torch.zeros(n, 1, dtype=_F64), _TIMES[:11]
            )
            kept.append(measure)
            end = measure.paths[:, -1, 0]
            pyro.sample("o", dist.Normal(end, 0.5), obs=torch.full((n,), seen, dtype=_F64))

    loss = Trace_ELBO().loss_and_grads(program, lambda: None)
    likelihood = dist.Normal(kept[0].paths[:, -1, 0], 0.5).log_prob(torch.tensor(seen, dtype=_F64))
    found = bound(kept[0], likelihood)
    assert -loss / n == pytest.approx(float(found.elbo.detach()))
    assert float(found.elbo.detach()) < evidence
    assert pyro.param("pull").grad.abs() > 0


def test_matrix_noise_is_refused() -> None:
    sde = SDE(lambda t, x: x, lambda t, x: x[..., None], NoiseStructure.GENERAL, noise_dim=1)
    with pytest.raises(ValueError, match="`sde` must have a Wiener process for each component"):
        EulerPaths(sde, torch.zeros(2, 1), _TIMES)
    with pytest.raises(ValueError, match="`value` must have shape"):
        EulerPaths(_equation(1.0), torch.zeros(2, 1), _TIMES).log_prob(torch.zeros(2, 3, 1))


_STEPS = 48
_ERROR = 0.05
_GRID = torch.linspace(0, 1, _STEPS + 1, dtype=_F64)


def _hurst_program(values: Tensor | None) -> Tensor:
    """Fractional Brownian motion of an unknown index, seen with noise at every instant."""
    index = pyro.sample("H", dist.Uniform(torch.tensor(0.05, dtype=_F64), 0.95))
    chain = fractional_chain(MarkovFBM(index, K=8, dt=1 / _STEPS), _GRID)
    with pyro.plate("series", 1):
        return pyro.sample("o", ObservedChain(chain, range(1, _STEPS + 1), _ERROR), obs=values)


def _exact_index(values: Tensor) -> tuple[float, float]:
    """Mean and deviation of the index by quadrature, with the covariance of the process itself."""
    indices = torch.linspace(0.06, 0.94, 177, dtype=_F64)
    eye = _ERROR**2 * torch.eye(_STEPS, dtype=_F64)
    log_density = torch.stack(
        [
            torch.distributions.MultivariateNormal(
                torch.zeros(_STEPS, dtype=_F64), fbm_covariance(float(h), _GRID[1:], _GRID[1:]) + eye
            ).log_prob(values[0])
            for h in indices
        ]
    )
    weights = log_density.softmax(0)
    mean = float((weights * indices).sum())
    return mean, float((weights * (indices - mean).square()).sum().sqrt())


def _noisy(hurst: float) -> Tensor:
    path = fbm_path(hurst, NoiseStream(2, 0, 1), _STEPS, dt=1 / _STEPS, dtype=_F64)[:, -_STEPS:]
    return path + _ERROR * NoiseStream(3, 0, 1).normals(_STEPS, dtype=_F64)


@pytest.mark.slow
@pytest.mark.parametrize("hurst", [0.3, 0.7])
def test_hamiltonian_sampling_finds_the_posterior_of_the_hurst_index(hurst: float) -> None:
    values = _noisy(hurst)
    mean, deviation = _exact_index(values)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        chain = MCMC(NUTS(_hurst_program), num_samples=600, warmup_steps=100, disable_progbar=True)
        chain.run(values)
    found = chain.get_samples()["H"]
    # Every sixth draw is nearly independent; the Markov approximation has its share of the bias.
    assert_mean((found[::6] - mean) / deviation, 0.0, bias=1.5)
    assert abs(float(found.std()) / deviation - 1) < 0.35  # 4.9 standard errors of 100 draws
    assert abs(hurst - mean) < 4.9 * deviation


@_seeded
def test_noisy_values_of_a_chain_have_their_evidence_and_its_covariance() -> None:
    n, seen = 40_000, [1, 3]
    chain = fractional_chain(MarkovFBM(0.7, K=5, grid="paper"), _GRID[::12], initial_deviation=0.3)
    law = ObservedChain(chain, seen, torch.tensor([0.2, 0.4], dtype=_F64), series=n)
    values = law.sample()
    expected = log_evidence(chain, Observations(seen, values, law.deviation))
    assert torch.equal(law.log_prob(values), expected)
    # The entropy of the law: a wrong covariance of the draws moves the mean of their log density.
    covariance = MarkovFBM(0.7, K=5, grid="paper").covariance(_GRID[[12, 36]], _GRID[[12, 36]])
    covariance = covariance + 0.09 + torch.diag(torch.tensor([0.04, 0.16], dtype=_F64))
    normal = torch.distributions.MultivariateNormal(torch.zeros(2, dtype=_F64), covariance)
    torch.testing.assert_close(expected, normal.log_prob(values))
    assert_mean(expected, float(-normal.entropy()), bias=0.1)
    assert_mean(values[:, 0] * values[:, 1], float(covariance[0, 1]), bias=0.05)
    assert law.sample(torch.Size((2, 3))).shape == (2, 3, n, 2)


@_seeded
def test_predictive_draws_values_of_fractional_noise() -> None:
    drawn = Predictive(_hurst_program, {"H": torch.tensor([0.2, 0.8], dtype=_F64)})(None)["o"]
    assert drawn.shape == (2, 1, _STEPS)
    rough, smooth = drawn.diff(dim=-1).square().mean((1, 2))
    assert rough > 2 * smooth


@pytest.mark.slow
@pytest.mark.parametrize("draws_of", [hamiltonian_draws, variational_draws], ids=["nuts", "svi"])
def test_ranks_of_the_truth_are_uniform(draws_of: Callable[..., Tensor]) -> None:
    assert power(0.6, SETS) > 0.99
    truth, paths = prior_and_data(SETS, seed=1)
    draws = draws_of(paths, seed=2)
    for k in range(2):
        assert chi_squared(ranks(truth, draws)[:, k]) < limit()
        assert chi_squared(ranks(truth, narrowed(draws, 0.6))[:, k]) > limit()


def test_observed_instants_outside_the_chain_are_refused() -> None:
    chain = fractional_chain(MarkovFBM(0.5), _GRID)
    with pytest.raises(ValueError, match="`steps` must lie in"):
        ObservedChain(chain, [_STEPS + 1], 0.1)
    with pytest.raises(ValueError, match="`deviation` must be positive"):
        ObservedChain(chain, [1], -0.1)
    with pytest.raises(ValueError, match="`value` must have shape"):
        ObservedChain(chain, [1], 0.1).log_prob(torch.zeros(2, 1))
