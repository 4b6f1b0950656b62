"""Simulation-based calibration of posteriors that Pyro finds for an Ornstein--Uhlenbeck process.

Parameters are drawn from the prior and data from the parameters; the rank of the truth among draws of the
posterior is then uniform, whatever the posterior looks like (Talts, Betancourt, Simpson, Vehtari & Gelman
2018, arXiv:1804.06788). The data sets share a program, a plate: one run of NUTS or SVI finds all posteriors,
which are independent of each other.
"""

import time
from collections.abc import Iterator
from statistics import NormalDist
from typing import cast

import torch
from scipy import stats
from torch import Tensor

from benchmarks.check import Figure, Section, at_least, at_most, main, reported
from sde import SDE

__all__ = [
    "SLOW",
    "chi_squared",
    "hamiltonian_draws",
    "limit",
    "narrowed",
    "power",
    "prior_and_data",
    "ranks",
    "variational_draws",
]

BINS, DRAWS, SETS = 20, 99, 400
FALSE_ALARM = 1e-6
_F64 = torch.float64
_TIMES = torch.linspace(0, 3, 13, dtype=_F64)
_PRIOR = torch.tensor([[0.0, -0.7], [0.5, 0.4]], dtype=_F64)  # logarithms of rate and noise: mean, deviation


def program(paths: Tensor | None, count: int) -> Tensor:
    """Independent data sets, one path each, that start at 2."""
    import pyro
    from pyro import distributions as dist

    from inference.pyro_bridge import EulerPaths

    with pyro.plate("series", count):
        theta = pyro.sample("theta", dist.Normal(*_PRIOR).expand([count, 2]).to_event(1))  # pyright: ignore
        rate, sigma = theta.exp().unsqueeze(-1).unbind(-2)
        equation = SDE(lambda t, x: -rate * x, lambda t, x: sigma.expand_as(x))
        law = EulerPaths(equation, torch.full((count, 1), 2.0, dtype=_F64), _TIMES)
        return pyro.sample("paths", law, obs=paths)


def prior_and_data(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Parameters ``(n, 2)`` from the prior and a path of each, ``(n, T, 1)``, by ``Predictive``'s program."""
    import pyro
    from pyro import poutine

    with torch.random.fork_rng():
        pyro.set_rng_seed(seed)
        trace = poutine.trace(program).get_trace(None, count)
    theta, paths = (trace.nodes[name]["value"] for name in ("theta", "paths"))  # pyright: ignore
    return cast(Tensor, theta), cast(Tensor, paths)


def hamiltonian_draws(paths: Tensor, seed: int, *, warmup: int = 200, thin: int = 3) -> Tensor:
    """Draws ``(L, n, 2)`` by NUTS."""
    import pyro
    from pyro.infer import MCMC, NUTS

    with torch.random.fork_rng():
        pyro.set_rng_seed(seed)
        chain = MCMC(NUTS(program), num_samples=thin * DRAWS, warmup_steps=warmup, disable_progbar=True)
        chain.run(paths, len(paths))
    return chain.get_samples()["theta"][::thin]


def variational_draws(paths: Tensor, seed: int, *, steps: int = 1500) -> Tensor:
    """Draws ``(L, n, 2)`` from normal guides with full covariance, one for each data set, by SVI."""
    import pyro
    from pyro import distributions as dist
    from pyro.distributions import constraints
    from pyro.infer import SVI, Trace_ELBO
    from pyro.optim import ClippedAdam

    count = len(paths)

    def guide(paths: Tensor | None, count: int) -> None:
        mean = pyro.param("mean", _PRIOR[0].expand(count, 2).clone())
        start = 0.2 * torch.eye(2, dtype=_F64).repeat(count, 1, 1)
        root = pyro.param("root", start, constraint=constraints.lower_cholesky)
        with pyro.plate("series", count):
            pyro.sample("theta", dist.MultivariateNormal(mean, scale_tril=root))

    with torch.random.fork_rng():
        pyro.set_rng_seed(seed)
        pyro.clear_param_store()
        adam = ClippedAdam({"lr": 0.03, "lrd": 0.02 ** (1 / steps)})
        svi = SVI(program, guide, adam, Trace_ELBO())
        for _ in range(steps):
            svi.step(paths, count)
        law = dist.MultivariateNormal(pyro.param("mean").detach(), scale_tril=pyro.param("root").detach())
        drawn = law.sample(torch.Size((DRAWS,)))
        pyro.clear_param_store()
    return drawn


def ranks(truth: Tensor, draws: Tensor) -> Tensor:
    """How many draws lie below the truth, ``(n, 2)``."""
    return (draws < truth).sum(0)


def chi_squared(found: Tensor) -> float:
    """Pearson's statistic of the ranks of a parameter, ``(n,)``, in equal bins."""
    counts = torch.bincount(found * BINS // (DRAWS + 1), minlength=BINS).double()
    expected = len(found) / BINS
    return float(((counts - expected).square() / expected).sum())


def limit() -> float:
    """The statistic that chance exceeds with the probability of a false alarm."""
    return float(stats.chi2.ppf(1 - FALSE_ALARM, BINS - 1))


def power(factor: float, count: int) -> float:
    """Probability that normal posteriors, too narrow by a factor, exceed the limit."""
    normal = NormalDist()
    edges = [factor * normal.inv_cdf(k / BINS) for k in range(1, BINS)]
    below = [0.0, *(normal.cdf(edge) for edge in edges), 1.0]
    shares = torch.tensor(below, dtype=_F64).diff()
    shift = count * BINS * float((shares - 1 / BINS).square().sum())
    return float(stats.ncx2.sf(limit(), BINS - 1, shift))


def narrowed(draws: Tensor, factor: float) -> Tensor:
    """Draws that are drawn together: a posterior that is too sure."""
    return draws.mean(0) + factor * (draws - draws.mean(0))


def _calibration(name: str, truth: Tensor, draws: Tensor, seconds: float) -> Iterator[Figure]:
    """Ranks of both parameters, and of a posterior that is too narrow."""
    found, narrow = ranks(truth, draws), ranks(truth, narrowed(draws, 0.6))
    for k, parameter in enumerate(("rate", "noise")):
        detail = f"{len(truth)} data sets, {seconds:.0f} s"
        yield at_most(
            f"{name}, {parameter}: chi-square of the ranks", chi_squared(found[:, k]), limit(), detail
        )
        yield at_least(
            f"{name}, {parameter}: the same, posterior 0.6 as wide", chi_squared(narrow[:, k]), limit()
        )
    error = (draws.mean(0) - truth).square().mean(0).sqrt() / truth.std(0)
    yield reported(f"{name}: error of the means over the spread of the prior, rate", float(error[0]))
    yield reported(f"{name}: error of the means over the spread of the prior, noise", float(error[1]))


def hamiltonian(smoke: bool) -> Iterator[Figure]:
    """Ranks of NUTS."""
    count = 20 if smoke else SETS
    yield at_least("chance to see posteriors 0.6 as wide", power(0.6, count), 0.99)
    truth, paths = prior_and_data(count, seed=1)
    began = time.perf_counter()
    draws = hamiltonian_draws(paths, seed=2, warmup=20 if smoke else 200, thin=1 if smoke else 3)
    yield from _calibration("NUTS", truth, draws, time.perf_counter() - began)


def variational(smoke: bool) -> Iterator[Figure]:
    """Ranks of SVI."""
    count = 20 if smoke else SETS
    truth, paths = prior_and_data(count, seed=3)
    began = time.perf_counter()
    draws = variational_draws(paths, seed=4, steps=50 if smoke else 1500)
    yield from _calibration("SVI, normal guides", truth, draws, time.perf_counter() - began)


SLOW: list[Section] = [hamiltonian, variational]

if __name__ == "__main__":
    raise SystemExit(main("pyro_calibration", SLOW))
