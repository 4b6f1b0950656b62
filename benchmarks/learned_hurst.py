"""Hurst indices learned by the evidence bound of latent equations, on data that no Markov model made."""

import math
from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn

from benchmarks.check import Figure, Section, at_most, main, reported
from inference.encoders import GRUEncoder
from inference.latent_noise import FractionalNoise, LatentNoise
from inference.latent_sde import ConstantDiffusion, LatentSDE, LinearDrift, latent_sde
from inference.latent_sites import DirectSites
from inference.latent_training import LatentTraining, train_latent
from inference.likelihoods import Gaussian
from inference.series import Series
from inference.training import FitSettings
from sde import EulerMaruyama, NoiseStream, Purpose
from sde.noise import MarkovFBM, fbm_covariance, fbm_path, fou_autocovariance, fou_path
from sde.noise.gaussian_path import low_rank_factors
from sde.noise.markov_weights import Kind
from sde.noise.ou_transition import slope_covariance

__all__ = ["SECTIONS", "SLOW"]

_F64 = torch.float64
_INDICES = (0.2, 0.35, 0.5, 0.65, 0.8)
_STEPS, _NOISE, _RATE = 32, 0.05, 1.0
_TIMES = torch.linspace(0, 1, _STEPS + 1, dtype=_F64)


class _PaperNoise(nn.Module):
    """The noise of the published method: five rates on [1/20, 20], variance of the kernel, H by a sigmoid."""

    kind: Kind = "I"
    num_rates = 5

    def __init__(self) -> None:
        super().__init__()
        self.raw = nn.Parameter(torch.zeros((), dtype=_F64))

    @property
    def hurst(self) -> Tensor:
        """The index."""
        return self.raw.sigmoid()

    def model(self) -> MarkovFBM:
        """The approximation."""
        return MarkovFBM(self.hurst, self.num_rates, grid="paper", normalize="kernel")

    def weights(self, times: Tensor) -> Tensor:
        """The same at all instants."""
        return self.model().omega().expand(len(times), -1)

    def past_factor(self) -> Tensor:
        """Factor of the stationary past."""
        return low_rank_factors(slope_covariance(self.model().rates))


def _automatic() -> FractionalNoise:
    """Twelve rates that resolve a sixteenth of a step, so that roughness is not mistaken for noise."""
    return FractionalNoise(0.5, horizon=1.0, step=1 / (16 * _STEPS), num_rates=12)


def _observed(hurst: float, series: int, reverting: bool) -> Series:
    """Exact paths of fractional Brownian motion, or of the stationary process it drives, with noise."""
    stream = NoiseStream(17, 0, series)
    make = {"dt": 1 / _STEPS, "dtype": _F64}
    paths = (
        fou_path(hurst, stream, _STEPS, rate=_RATE, **make)
        if reverting
        else fbm_path(hurst, stream, _STEPS, **make)
    )
    drawn = stream.fork("observations").normals(_STEPS + 1, purpose=Purpose.OBSERVATION, dtype=_F64)
    return Series(_TIMES, (paths + _NOISE * drawn)[..., None])


def _learn(series: Series, noise: LatentNoise, reverting: bool, rounds: int) -> LatentSDE:
    """Maximise the bound over index, scale, noise level, start and (if ``reverting``) reversion."""
    likelihood = Gaussian(1, deviation=0.1, dtype=_F64)
    model = LatentSDE(
        drift=LinearDrift(1, rate=0.5 if reverting else 0.0, learned=reverting, dtype=_F64),
        diffusion=ConstantDiffusion(1, start=1.5, dtype=_F64),
        decoder=nn.Identity(),
        likelihood=likelihood,
        encoder=GRUEncoder(1, 1, seed=0, dtype=_F64),
        latent_dim=1,
        max_step=1 / _STEPS,
        seed=0,
        width=0,
        noise=noise,
        sites=DirectSites(likelihood),
    )
    model.encoder.requires_grad_(False)  # the data themselves guide
    free = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.LBFGS(free, max_iter=rounds, line_search_fn="strong_wolfe", tolerance_change=1e-8)

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = -model.elbo(series, NoiseStream(0, 0, len(series))).elbo.mean()
        value.backward()
        return value

    optimiser.step(loss)  # pyright: ignore
    return model


def _standard_error(hurst: float, series: int, reverting: bool) -> float:
    """Smallest standard error of an unbiased estimate with all parameters free, by Fisher's information."""
    start = (hurst, 0.0, math.log(_NOISE), math.log(_RATE))
    count, step = (4 if reverting else 3), 1e-4

    def covariance(point: list[float]) -> Tensor:
        h, scale, noise, rate = point[0], *(math.exp(part) for part in point[1:])
        if reverting:
            lags = fou_autocovariance(h, _TIMES, rate=rate, scale=scale)
            place = torch.arange(_STEPS + 1)
            matrix = lags[(place[:, None] - place).abs()]
        else:
            matrix = scale**2 * fbm_covariance(h, _TIMES, _TIMES)
        return matrix + noise**2 * torch.eye(_STEPS + 1, dtype=_F64)

    inverse, parts = torch.linalg.inv(covariance(list(start))), []
    for k in range(count):
        ends = [[v + sign * step * (j == k) for j, v in enumerate(start)] for sign in (1, -1)]
        parts.append(inverse @ (covariance(ends[0]) - covariance(ends[1])) / (2 * step))
    information = torch.tensor([[0.5 * float((a @ b).trace()) for b in parts] for a in parts], dtype=_F64)
    return math.sqrt(float(torch.linalg.inv(series * information)[0, 0]))


def _table(name: str, reverting: bool, series: int, smoke: bool) -> Iterator[Figure]:
    """The learned index for each true one: the library's grid against its bar, the paper's beside it."""
    for hurst in _INDICES[1:2] if smoke else _INDICES:
        data = _observed(hurst, 64 if smoke else series, reverting)
        error = _standard_error(hurst, len(data), reverting)
        for grid, noise in (("automatic grid", _automatic()), ("paper's grid", _PaperNoise())):
            model = _learn(data, noise, reverting, 5 if smoke else 100)
            found = float(noise.hurst.detach())  # pyright: ignore
            scale = float(model.diffusion(*_ANY).detach())
            level = float(cast(Gaussian, model.likelihood).deviation.detach())
            detail = f"learned {found:.3f}, scale {scale:.3f}, noise {level:.3f}"
            if reverting:
                detail += f", reversion {float(cast(LinearDrift, model.drift).rate.detach()):.2f}"
            label = f"{name}, H = {hurst}, {grid}: error of the learned index"
            if grid == "automatic grid" and not smoke:
                yield at_most(
                    f"{label}, absolute", abs(found - hurst), 0.03, f"{detail}; standard error {error:.3f}"
                )
            else:
                yield reported(label, found - hurst, detail)


_ANY = (torch.zeros((), dtype=_F64), torch.zeros(1, 1, dtype=_F64))


def fractional_motion(smoke: bool) -> Iterator[Figure]:
    """Exact fractional Brownian motion with noise; free: H, scale, noise, start."""
    yield from _table("fBM", False, 512, smoke)


def fractional_reversion(smoke: bool) -> Iterator[Figure]:
    """Exact stationary fractional Ornstein--Uhlenbeck paths with noise; free: those and the reversion."""
    yield from _table("fOU", True, 4096, smoke)


def amortised(smoke: bool) -> Iterator[Figure]:
    """Everything learned: drift, decoder, encoder, noise and index; guided beside a held control."""
    for name in ("guided", "held control"):
        for hurst in (0.3, 0.7):
            stream = NoiseStream(23, 0, 256)
            paths = fbm_path(hurst, stream, _STEPS, dt=1 / _STEPS)
            drawn = stream.fork("observations").normals(_STEPS + 1, purpose=Purpose.OBSERVATION)
            series = Series(_TIMES.float(), (paths + 0.1 * drawn)[..., None])
            learned, value = _amortised(series, name == "guided", 3 if smoke else 300)
            label = f"amortised, {name}, H = {hurst}: error of the learned index"
            yield reported(label, learned - hurst, f"learned {learned:.3f}, bound {value:.2f} a series")


def _amortised(series: Series, guided: bool, iterations: int) -> tuple[float, float]:
    """The learned index and the bound of a series."""
    # An explicit scheme resolves the rates: they end lower, and its steps are shorter.
    substeps, step = (1, 1 / (8 * _STEPS)) if guided else (2, 2 / _STEPS)
    noise = FractionalNoise(0.5, horizon=1.0, step=step, num_rates=8)
    solver = None if guided else EulerMaruyama()
    max_step = 1 / (substeps * _STEPS)
    model = latent_sde(1, 1, max_step=max_step, seed=0, width=32, noise=noise, solver=solver)
    fit = FitSettings(iterations, rate=1e-2, clip=100.0, average=0.98)
    settings = LatentTraining(batch=64, annealing=iterations // 8, fit=fit)
    model, _ = train_latent(model, series, seed=0, settings=settings, progress=False)
    with torch.no_grad():
        bound = model.elbo(series, NoiseStream(1, 0, 4 * len(series)), paths=4).elbo
    return float(cast(FractionalNoise, model.noise).hurst.detach()), float(bound.mean())


SECTIONS: list[Section] = [fractional_motion]

SLOW: list[Section] = [fractional_reversion, amortised]

if __name__ == "__main__":
    raise SystemExit(main("learned_hurst", SECTIONS, SLOW))
