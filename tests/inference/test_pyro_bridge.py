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

from inference.elbo import bound  # noqa: E402
from inference.girsanov import solve_measure  # noqa: E402
from inference.pyro_bridge import EulerPaths, controlled_paths  # noqa: E402
from sde import SDE, NoiseStream, NoiseStructure, solve  # noqa: E402
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
