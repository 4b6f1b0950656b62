"""Variational inference against exact evidence: fractional linear models, controls, matched marginals."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from benchmarks import (
    fractional_matching,
    latent_training,
    latent_video,
    learned_hurst,
    lorenz,
    pyro_calibration,
)
from benchmarks.check import Figure, Section, at_least, at_most, main, reported, within
from inference.elbo import bound
from inference.fractional import (
    GaussianChain,
    GuidedPosterior,
    HeldControl,
    Observations,
    fractional_chain,
    held_control,
    log_evidence,
    smoothed,
)
from inference.girsanov import solve_measure
from inference.matching import marginal_drift
from sde import SDE, NoiseStream, NoiseStructure
from sde.fractional import augmented, augmented_state
from sde.networks import perceptron
from sde.noise import MarkovFBM

__all__ = ["SECTIONS", "SLOW"]

_F64 = torch.float64
_EVIDENCE = {
    (0.2, 0.1): -1.279873,
    (0.5, 0.1): -1.166487,
    (0.8, 0.1): -1.109830,
    (0.2, 0.5): -1.331966,
    (0.5, 0.5): -1.226509,
    (0.8, 0.5): -1.170123,
}
_HELD = {  # bounds of the best held control at 100, 400, 1600 and 6400 steps
    (0.2, 0.5): (-1.416276, -1.351830, -1.336819, -1.333171),
    (0.5, 0.5): (-1.234573, -1.228513, -1.227010, -1.226634),
    (0.8, 0.5): (-1.175342, -1.171418, -1.170446, -1.170204),
    (0.2, 0.1): (-6.948155, -2.591702, -1.550483, -1.340735),
    (0.5, 0.1): (-1.452617, -1.230957, -1.182120, -1.170365),
    (0.8, 0.1): (-1.183199, -1.127693, -1.114266, -1.110937),
}


def _model(hurst: float) -> MarkovFBM:
    """The noise of the reference values: five rates, no past, the variance of the kernel."""
    return MarkovFBM(hurst, K=5, type="II", grid="paper", normalize="kernel")


def _problem(hurst: float, steps: int, deviation: float) -> tuple[GaussianChain, Observations]:
    """The noise itself, observed as 0.7 at time 1."""
    chain = fractional_chain(_model(hurst), torch.linspace(0, 1, steps + 1, dtype=_F64))
    return chain, Observations([steps], torch.tensor([0.7], dtype=_F64), deviation)


def evidence_and_bounds(smoke: bool) -> Iterator[Figure]:
    """Evidence and the bounds of the best held control, beside reference values."""
    counts = (100, 400) if smoke else (100, 400, 1600, 6400)
    for (hurst, deviation), exact in _EVIDENCE.items():
        name = f"H = {hurst}, deviation {deviation}"
        gaps, evidence = [], math.nan
        for steps, reference in zip(counts, _HELD[hurst, deviation], strict=False):
            chain, seen = _problem(hurst, steps, deviation)
            control = held_control(chain, _model(hurst), seen)
            if steps == counts[0]:  # it does not depend on the steps
                evidence = float(log_evidence(chain, seen))
            gaps.append(evidence - float(control.bound))
            error = abs(float(control.bound) - reference)
            yield at_most(f"{name}: bound of the held control, {steps} steps: error", error, 1e-5)
            if steps == counts[0]:
                yield at_most(f"{name}: error of the evidence", abs(evidence - exact), 1e-6)
                yield from _sampled(name, chain, control, seen, 4_000 if smoke else 40_000)
        if deviation == 0.5:
            for k in range(len(gaps) - 1):
                label = f"{name}: gap at {counts[k]} over {counts[k + 1]} steps"
                yield within(label, gaps[k] / gaps[k + 1], 3.6, 4.4)


def _sampled(
    name: str, chain: GaussianChain, control: HeldControl, seen: Observations, n: int
) -> Iterator[Figure]:
    """The same bound from simulated paths of the controlled chain."""
    noise = NoiseStream(5, 0, n)
    state, cost = chain.mean.expand(n, -1), torch.zeros(n, dtype=_F64)
    span = float(chain.times[1] - chain.times[0])
    normals = noise.normals(chain.num_steps, channels=chain.factors.shape[2], dtype=_F64)
    for k in range(chain.num_steps):
        u = control.offsets[k] - state @ control.gains[k]
        cost = cost + 0.5 * span * u.square()
        state = state @ chain.transitions[k].mT + u[:, None] * control.push
        state = state + normals[:, k] @ chain.factors[k].mT
    values = seen.log_density(chain.num_steps, state @ chain.rows[-1]) - cost
    gap = (float(values.mean()) - float(control.bound)) / (float(values.std()) / math.sqrt(n))
    yield within(f"{name}: simulated bound, standard errors from the recursion", gap, -4, 4, f"{n} paths")
    over = (float(values.mean()) - float(log_evidence(chain, seen))) / (float(values.std()) / math.sqrt(n))
    yield at_most(f"{name}: simulated bound above the evidence, standard errors", over, 4)


def exact_posterior(smoke: bool) -> Iterator[Figure]:
    """Ten steps, two observations: every path of the guided posterior returns the evidence."""
    for hurst, exact in ((0.2, -2.12964233), (0.5, -1.42207213), (0.8, -0.91783339)):
        chain = fractional_chain(_model(hurst), torch.linspace(0, 1, 11, dtype=_F64))
        seen = Observations([5, 10], torch.tensor([0.4, 0.7], dtype=_F64), 0.1)
        paths = GuidedPosterior(chain, seen).sample(NoiseStream(1, 0, 1000))
        evidence = float(log_evidence(chain, seen))
        yield at_most(f"H = {hurst}: error of the evidence", abs(evidence - exact), 2e-8)
        gap = abs(float(paths.log_weights.mean()) - evidence)
        yield at_most(f"H = {hurst}: mean path log-weight, difference from the evidence", gap, 1e-8)
        spread = float(paths.log_weights.std())
        yield at_most(f"H = {hurst}: standard deviation of path log-weights", spread, 1e-8)


def euler_control(smoke: bool) -> Iterator[Figure]:
    """The optimal control of the continuous equation with Euler steps: how path log-weights narrow."""
    n = 250 if smoke else 1000
    for hurst in (0.2, 0.5, 0.8):
        model, spreads = _model(hurst), []
        still = SDE(lambda t, x: 0 * x, lambda t, x: torch.ones_like(x), NoiseStructure.ADDITIVE)
        prior = augmented(still, model, dim=1)
        guide = _Guide(model, 0.7, 0.1)

        def drift(t: Tensor, z: Tensor, prior: SDE = prior, guide: _Guide = guide) -> Tensor:
            return prior.drift(t, z) + prior.product(prior.diffusion(t, z), guide.control(t, z))

        posterior = SDE(drift, prior.diffusion, prior.structure, prior.calculus, prior.noise_dim)
        for steps in (200, 800, 3200):
            noise = NoiseStream(2, 0, n)
            start = augmented_state(model, torch.zeros(n, 1, dtype=_F64), noise, channels=1)
            times = torch.tensor([0.0, 1.0], dtype=_F64)
            done = solve_measure(prior, posterior, start, times, noise, substeps=steps)
            gaps = (0.7 - done.paths[:, -1, 0]) / 0.1
            weights = done.log_ratio[:, -1] - 0.5 * gaps.square()
            spreads.append(float(weights.std()))
        for k, (coarse, fine) in enumerate(((200, 800), (800, 3200))):
            label = f"H = {hurst}: spread of path log-weights, {coarse} over {fine} steps"
            detail = f"{spreads[k]:.3g} and {spreads[k + 1]:.3g}"
            ratio = spreads[k] / spreads[k + 1]
            if hurst < 0.5:  # rough noise: the spread still falls faster than by the root of the step
                yield at_least(label, ratio, 1.7, detail)
            else:
                yield within(label, ratio, 1.7, 2.9, detail)


class _Guide:
    """The optimal control for one observation at time 1, in closed form."""

    def __init__(self, model: MarkovFBM, value: float, deviation: float) -> None:
        self.rates, self.omega = model.rates, model.omega()
        self.value, self.variance = value, deviation**2

    def control(self, time: Tensor, state: Tensor) -> Tensor:
        """Of the Wiener process, shape ``(n, 1)``."""
        left = 1 - time
        decay = torch.exp(-self.rates * left)
        kernel = (self.omega * decay).sum()
        total = self.rates[:, None] + self.rates
        spread = -torch.expm1(-total * left) / total
        variance = self.omega @ spread @ self.omega
        mean = state[:, 0] + state[:, 1:] @ (self.omega * (decay - 1))
        return (kernel * (self.value - mean) / (variance + self.variance)).unsqueeze(1)


def trained_control(smoke: bool) -> Iterator[Figure]:
    """A network trained as control, without the guide: its bound and the evidence."""
    model, steps, batch = _model(0.5), 100, 128
    iterations = 30 if smoke else 400
    still = SDE(lambda t, x: 0 * x, lambda t, x: torch.ones_like(x), NoiseStructure.ADDITIVE)
    prior = augmented(still, model, dim=1)
    field = perceptron((8, 64, 1), seed=3, activation=nn.Tanh(), dtype=_F64, zero_last=True)

    def drift(t: Tensor, z: Tensor) -> Tensor:
        time = t.expand(len(z), 1)
        u = field(torch.cat((z, time, 1 / (1.25 - time)), 1))
        return prior.drift(t, z) + prior.product(prior.diffusion(t, z), u)

    posterior = SDE(
        drift, prior.diffusion, prior.structure, prior.calculus, prior.noise_dim, tuple(field.parameters())
    )
    optimiser = torch.optim.Adam(field.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, iterations)

    def estimate(noise: NoiseStream) -> Tensor:
        start = augmented_state(model, torch.zeros(len(noise), 1, dtype=_F64), noise, channels=1)
        times = torch.tensor([0.0, 1.0], dtype=_F64)
        done = solve_measure(prior, posterior, start, times, noise, substeps=steps)
        end = done.paths[:, -1, 0]
        likelihood = -0.5 * (((0.7 - end) / 0.5) ** 2 + math.log(2 * math.pi * 0.25))
        return bound(done, likelihood).elbo.mean()

    for k in range(iterations):
        optimiser.zero_grad()
        (-estimate(NoiseStream(7, batch * k, batch * (k + 1)))).backward()
        optimiser.step()
        schedule.step()
    with torch.no_grad():
        found = float(estimate(NoiseStream(8, 0, 20_000)))
    gap = _EVIDENCE[0.5, 0.5] - found
    yield at_most(
        "trained control, H = 0.5, deviation 0.5, 100 steps: gap [nat]", gap, 0.1, f"bound {found:.4f}"
    )


def matched_marginals(smoke: bool) -> Iterator[Figure]:
    """The drift of SDE matching and that of the amortised reparametrisation, written out."""

    def marginals(t: Tensor) -> tuple[Tensor, Tensor]:
        t = t.unsqueeze(-1)
        return torch.cat((t.sin(), t * t), -1), torch.cat((0.5 + 0.2 * t, 0.3 + 0.1 * t.cos()), -1)

    times = torch.tensor([0.1, 0.4, 0.9], dtype=_F64)
    states = NoiseStream(0, 0, 1000).normals(3, channels=2, dtype=_F64)
    g = torch.tensor([0.7, 0.4], dtype=_F64)
    drift, mean, deviation = marginal_drift(marginals, g, times, states)
    velocity = torch.stack((times.cos(), 2 * times), -1)
    slope = torch.stack((torch.full_like(times, 0.2), -0.1 * times.sin()), -1)
    a = 0.5 * ((g / deviation) ** 2 - 2 * slope / deviation)
    reparametrised = a * (mean - states) + velocity
    eps = (states - mean) / deviation
    matched = velocity + slope * eps - 0.5 * g**2 * eps / deviation
    yield at_most(
        "reparametrised drift, largest difference", float((drift - reparametrised).abs().max()), 1e-12
    )
    yield at_most("matched drift, largest difference", float((drift - matched).abs().max()), 1e-12)


def bridges(smoke: bool) -> Iterator[Figure]:
    """Standard deviations of the bridge of unit fractional Brownian motion, H = 0.7, observed at time 2."""
    times = torch.linspace(0, 2, 9, dtype=_F64)
    exact = _bridge(0.7, times)
    for name, model in (
        ("library's grid", MarkovFBM(0.7, T=2.0)),
        ("paper's grid", MarkovFBM(0.7, K=5, T=6.0, grid="paper")),  # the paper's horizon
    ):
        seen = Observations([8], torch.zeros(1, dtype=_F64), 0.1)
        found = smoothed(fractional_chain(model, times), seen).variance.sqrt()
        for k in (2, 4, 6):
            error = float(found[k] / exact[k] - 1)
            label = f"bridge, {name}, t = {float(times[k]):g}: relative error"
            detail = f"{float(found[k]):.4f}, exact {float(exact[k]):.4f}"
            if name == "library's grid":
                yield at_most(label, abs(error), 0.01, detail)
            else:
                yield reported(label, error, detail)


def _bridge(hurst: float, times: Tensor) -> Tensor:
    """Exact standard deviations, by Gaussian regression on the last instant."""
    s, t = times[:, None], times[None, :]
    covariance = 0.5 * (s ** (2 * hurst) + t ** (2 * hurst) - (s - t).abs() ** (2 * hurst))
    return (covariance.diagonal() - covariance[:, -1] ** 2 / (covariance[-1, -1] + 0.01)).clamp(min=0).sqrt()


SECTIONS: list[Section] = [
    evidence_and_bounds,
    exact_posterior,
    euler_control,
    trained_control,
    matched_marginals,
    bridges,
    *fractional_matching.SECTIONS,
    *latent_training.SECTIONS,
    *learned_hurst.SECTIONS,
    *lorenz.SECTIONS,
]

SLOW: list[Section] = [  # run by --slow
    *lorenz.SLOW,
    *latent_training.SLOW,
    *learned_hurst.SLOW,
    *fractional_matching.SLOW,
    *pyro_calibration.SLOW,
    *latent_video.SLOW,
]

if __name__ == "__main__":
    raise SystemExit(main("variational", SECTIONS, SLOW))
