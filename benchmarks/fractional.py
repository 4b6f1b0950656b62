"""Fractional noise: weights, gradients, covariances, recovery of the Hurst index, intervals, and speed."""

import importlib
import math
import warnings
from collections.abc import Callable, Iterator
from types import ModuleType

import numpy as np
import torch
from torch import Tensor
from torch.utils.benchmark import Timer

from benchmarks.check import Figure, Section, at_least, at_most, equal, main, reported, within
from sde import NoiseStream
from sde.hurst import (
    dfa,
    maximum_likelihood,
    quadratic_variations,
    rescaled_range,
    variogram,
    whittle,
)
from sde.hurst.profile import Profile, indices
from sde.noise import MarkovFBM, condition, fbm_covariance, fbm_path, fgn, fgn_sampler
from sde.noise.markov_grid import paper_rates
from sde.noise.markov_weights import cross_moments, relative_error, weights

__all__ = [
    "SECTIONS",
    "bridge",
    "certificates",
    "coverage",
    "derivatives",
    "estimators",
    "recovery",
    "samples",
    "speed",
    "weights_of_the_paper",
]

_INDICES = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
_ESTIMATORS = (quadratic_variations, variogram, dfa, rescaled_range, whittle, maximum_likelihood)

# 50 digits of mpmath, horizon 1, geometric grid on [1/20, 20], five rates: relative errors and weights
_GOLDEN = {
    ("I", 0.3): (
        0.01659808463,
        (0.804407690506, -0.111518979269, 0.48741450975, 0.084505755395, 1.18733240436),
    ),
    ("I", 0.7): (
        0.09786292574,
        (2.26196624578, -1.42063606079, 0.0197880067353, -0.310697813139, -0.177009420887),
    ),
    ("II", 0.3): (
        0.007761810678,
        (28.1741218048, -38.351106558, 13.2624729608, -2.29150608289, 1.77234642995),
    ),
    ("II", 0.7): (
        0.0001341208945,
        (-0.934840807622, 3.26804960848, -1.77131087112, 0.115631402058, -0.315467837114),
    ),
}
_GOLDEN_DERIVATIVE = (2.15033, -0.64413, -2.27841, 0.24545, -10.05386)  # type I, H = 0.3
# Relative Frobenius error of the covariance on 100 instants, type I, five rates of the paper
_PAPER_ERRORS = (0.275, 0.0667, 0.0152, 0.00521, 0.0120, 0.0381, 0.102, 0.244, 0.521)
# Relative mean-square error of {0} and a geometric sequence on [1e-6, 4 / dt], T / dt = 1000
_DEFAULT_ERRORS = (0.11, 0.010, 8.2e-4, 7.1e-5, 0.0, 5.0e-5, 1.9e-4, 8.8e-4, 0.026)
# Bias and deviation on 1024 steps, H = 0.1, 0.3, 0.5, 0.7, 0.9, and the repetitions they come from
_TABLE = {
    quadratic_variations: (400, (0.005, -0.001, 0.0, 0.001, 0.002), (0.045, 0.045, 0.043, 0.039, 0.035)),
    variogram: (400, (0.0, -0.001, -0.001, -0.002, -0.017), (0.013, 0.022, 0.025, 0.026, 0.037)),
    whittle: (100, (0.002, -0.001, -0.002, 0.002, 0.005), (0.012, 0.019, 0.021, 0.020, 0.021)),
    maximum_likelihood: (20, (0.0, -0.004, -0.003, 0.0, 0.001), (0.010, 0.016, 0.020, 0.019, 0.021)),
}


def weights_of_the_paper(smoke: bool) -> Iterator[Figure]:
    """Weights against fifty digits, and the series against the closed form in eighty."""
    for (kind, hurst), (error, omega) in _GOLDEN.items():
        model = MarkovFBM(hurst, 5, type=kind, normalize="kernel", grid="paper")  # pyright: ignore[reportArgumentType]
        gap = (model.omega() / torch.tensor(omega, dtype=torch.float64) - 1).abs().max()
        yield at_most(f"weights, type {kind}, H = {hurst}: relative error", float(gap), 1e-8)
        yield at_most(
            f"certificate, type {kind}, H = {hurst}: error", abs(float(model.error()) - error), 1e-9
        )
    mpmath = _optional("mpmath")
    if mpmath is None:
        yield reported("series against mpmath", "skipped", "mpmath is not installed")
        return
    x = torch.logspace(-12, 6, 19 if smoke else 73, dtype=torch.float64)
    for kind in ("I", "II"):
        worst = 0.0
        for hurst in (0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.98):
            values = cross_moments(torch.tensor(hurst, dtype=torch.float64), x, kind)
            exact = [_cross_moment(mpmath, kind, hurst, rate) for rate in x.tolist()]
            worst = max(worst, float((values / torch.tensor(exact, dtype=torch.float64) - 1).abs().max()))
        yield at_most(f"series, type {kind}: relative error for x in [1e-12, 1e6]", worst, 1e-10)
    many, hurst = torch.logspace(-4, 4, 20, dtype=torch.float64), torch.tensor(0.3, dtype=torch.float64)
    error = relative_error(hurst, many, weights(hurst, many, "I"), "I")
    yield within("20 rates on [1e-4, 1e4], H = 0.3: certificate", float(error), 3.325e-4, 3.675e-4)


def _cross_moment(mpmath: ModuleType, kind: str, hurst: float, rate: float) -> float:
    """The closed form with eighty digits."""
    with mpmath.workdps(80):
        alpha, x = mpmath.mpf(hurst) + mpmath.mpf(1) / 2, mpmath.mpf(rate)
        if kind == "I":
            upper = mpmath.gammainc(alpha, x, regularized=True)
            tail = (mpmath.e**-x - mpmath.e**x * upper) * x ** (-alpha - 1)
            return float(2 * x**-alpha - 1 / (x * mpmath.gamma(alpha + 1)) + tail)
        first, second = (mpmath.gammainc(a, 0, x, regularized=True) for a in (alpha, alpha + 1))
        return float(x**-alpha * first - alpha * x ** (-alpha - 1) * second)


def derivatives(smoke: bool) -> Iterator[Figure]:
    """Derivatives of the weights in H: against differences, and the golden one."""
    x = paper_rates(5)
    for kind, bar in (("I", 1e-8), ("II", 2e-6)):
        for hurst in (0.1, 0.3, 0.5, 0.7, 0.9):
            index = torch.tensor(hurst, dtype=torch.float64, requires_grad=True)

            def omega(h: Tensor, kind: str = kind) -> Tensor:
                return weights(h, x, kind)  # pyright: ignore[reportArgumentType]

            passed = torch.autograd.gradcheck(omega, index, raise_exception=False)
            yield equal(f"gradcheck of the weights, type {kind}, H = {hurst}", passed, True)
            exact = torch.autograd.functional.jacobian(omega, index)
            with torch.no_grad():
                difference = (omega(index + 1e-5) - omega(index - 1e-5)) / 2e-5
            gap = float((exact - difference).norm() / exact.norm())
            yield at_most(f"derivative against differences, type {kind}, H = {hurst}", gap, bar)
    index = torch.tensor(0.3, dtype=torch.float64)
    exact = torch.autograd.functional.jacobian(lambda h: weights(h, x, "I"), index)
    gap = float((exact - torch.tensor(_GOLDEN_DERIVATIVE, dtype=torch.float64)).abs().max())
    yield at_most("derivative, type I, H = 0.3: error of the golden one", gap, 1e-5)


def certificates(smoke: bool) -> Iterator[Figure]:
    """Covariance of the paper's grid, certificates of the default, and the law of the running sampler."""
    t = torch.linspace(0, 1, 101, dtype=torch.float64)[1:]
    default = MarkovFBM(0.5).error(_INDICES)
    for k, hurst in enumerate(_INDICES.tolist()):
        exact = fbm_covariance(hurst, t, t)
        gap = (MarkovFBM(hurst, 5, grid="paper").covariance(t, t) - exact).norm() / exact.norm()
        bar = _PAPER_ERRORS[k]
        yield within(f"paper's grid, H = {hurst:.1f}: covariance error", float(gap), 0.98 * bar, 1.02 * bar)
        limit = max(1.1 * _DEFAULT_ERRORS[k], 1e-12)
        yield at_most(f"default grid, H = {hurst:.1f}: certificate", float(default[k]), limit)
    samples, times = (2000 if smoke else 20_000), torch.linspace(0, 1, 101, dtype=torch.float64)
    for hurst in (0.2, 0.5, 0.8):
        model = MarkovFBM(hurst)
        paths = model.path(NoiseStream(1, 0, samples), times, dtype=torch.float64)
        exact = model.covariance(times, times)
        gap = float((paths.mT @ paths / samples - exact).abs().max() / exact[-1, -1])
        bar = 0.035 if not smoke else 0.12
        yield at_most(f"running sampler, H = {hurst}: covariance error", gap, bar, f"{samples} paths")


def samples(smoke: bool) -> Iterator[Figure]:
    """Variance and correlation of exact noise in float32, beside torchfbm."""
    count, num = 65536, 100 if smoke else 1000
    theirs = _optional("torchfbm.generators")
    for hurst in (0.3, 0.7, 0.9):
        total, lagged = 0.0, 0.0
        for first in range(0, num, 100):
            values = fgn(hurst, NoiseStream(2, first, first + 100), count, dtype=torch.float32).double()
            total += float(values.square().mean()) * 100 / num
            lagged += float((values[:, 1:] * values[:, :-1]).mean()) * 100 / num
        expected = 2 ** (2 * hurst - 1) - 1
        yield within(f"float32 noise, H = {hurst}: variance", total, 0.98, 1.02, f"{num} paths")
        name = f"float32 noise, H = {hurst}: lag-one covariance"
        yield within(name, lagged, expected - 0.02, expected + 0.02)
        if theirs is not None:
            values = theirs.generate_davies_harte(count, hurst, size=(20,), seed=0)
            yield reported(f"torchfbm in its default float32, H = {hurst}: variance", float(values.var()))
    if theirs is None:
        yield reported("torchfbm", "skipped", "torchfbm is not installed")


def recovery(smoke: bool) -> Iterator[Figure]:
    """Maximum likelihood with the exact and the approximate law, on data that are exact."""
    steps, repetitions = 256, 50 if smoke else 200
    times = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    laws: dict[str, Callable[[float], Tensor]] = {
        "exact": lambda h: fbm_covariance(h, times, times),
        "default": lambda h: MarkovFBM(h, dt=1 / steps).covariance(times, times),
        "paper": lambda h: MarkovFBM(h, 5, grid="paper").covariance(times, times),
    }
    data = {
        hurst: fbm_path(hurst, NoiseStream(7, 0, repetitions), steps, dt=1 / steps, dtype=torch.float64)
        for hurst in (0.2, 0.35, 0.5, 0.65, 0.8)
    }
    # The default's certificate exceeds 0.3 for H < 0.05, where its likelihood is no guide.
    low, high = 0.05, 0.95
    for name, law in laws.items():
        factors = [torch.linalg.cholesky(law(h)[1:, 1:]) for h in indices().tolist()]
        for hurst, paths in data.items():
            for known in (True, False):
                h, error = _fit(factors, paths[:, 1:], known).maximum(low, high)
                yield from _judged(name, hurst, known, h, error)


def _fit(factors: list[Tensor], values: Tensor, known: bool) -> Profile:
    """Profile likelihood of paths under a Gaussian law for every index."""
    white = [torch.linalg.solve_triangular(factor, values.mT, upper=False) for factor in factors]
    forms = torch.stack([part.square().sum(0) for part in white], -1)
    log_det = torch.stack([2 * factor.diagonal().log().sum() for factor in factors])
    return Profile.of(log_det, forms, None if known else values.shape[1])


def _judged(name: str, hurst: float, known: bool, h: Tensor, error: Tensor) -> Iterator[Figure]:
    """Bias, deviation and coverage of a fit, with their bars."""
    bias, deviation = float(h.mean()) - hurst, float(h.std())
    covered = float(((h - hurst).abs() < 1.6449 * error).double().mean())
    what = f"{name} law, H = {hurst}, scale {'known' if known else 'free'}"
    detail = f"deviation {deviation:.4f}, 90 % intervals cover {100 * covered:.0f} %"
    if name == "paper":
        wrong = known and hurst != 0.5
        make = at_least(f"{what}: |bias|", abs(bias), 0.012, detail) if wrong else None
        yield make or reported(f"{what}: bias", bias, detail)
        return
    yield at_most(f"{what}: |bias|", abs(bias), 0.012 if known else 0.025, detail)
    yield at_most(f"{what}: deviation", deviation, 0.012 if known else 0.055)
    yield within(f"{what}: coverage of 90 %", covered, 0.84, 0.96)


def estimators(smoke: bool) -> Iterator[Figure]:
    """Bias and deviation of the estimators on 1024 steps, beside a table made by other code."""
    repetitions = 100 if smoke else 1000
    for k, hurst in enumerate((0.1, 0.3, 0.5, 0.7, 0.9)):
        paths = fbm_path(hurst, NoiseStream(3, 0, repetitions), 1024, dtype=torch.float64)
        for estimator in _ESTIMATORS:
            found = estimator(paths)
            bias, deviation = float(found.H.mean()) - hurst, float(found.H.std())
            name = f"{estimator.__name__.replace('_', ' ')}, H = {hurst}"
            error = float(found.std_error.mean())
            detail = (
                f"deviation {deviation:.4f}, stated error {error:.4f}, raw {found.raw.mean() - hurst:+.4f}"
            )
            if estimator not in _TABLE:
                yield reported(f"{name}: bias", bias, detail)
                continue
            theirs, biases, deviations = _TABLE[estimator]
            # The table has three digits.
            width = 3 * deviation * math.sqrt(1 / repetitions + 1 / theirs) + 5e-4
            low, high = biases[k] - width, biases[k] + width
            yield within(f"{name}: bias", bias, low, high, detail)
            width = 3 * deviation * math.sqrt(0.5 / repetitions + 0.5 / theirs) + 5e-4
            low, high = deviations[k] - width, deviations[k] + width
            yield within(f"{name}: deviation", deviation, low, high)


def coverage(smoke: bool) -> Iterator[Figure]:
    """Share of 95 % intervals that hold the true index."""
    repetitions, steps = (200 if smoke else 2000), 512
    for hurst in (0.1, 0.3, 0.5, 0.7, 0.9):
        paths = fbm_path(hurst, NoiseStream(4, 0, repetitions), steps, dtype=torch.float64)
        for estimator in _ESTIMATORS:
            low, high = estimator(paths).interval()
            share = float(((low <= hurst) & (hurst <= high)).double().mean())
            name = f"{estimator.__name__.replace('_', ' ')}, H = {hurst}: coverage of 95 %"
            yield within(name, share, 0.93, 0.97, f"{repetitions} paths of {steps} steps")


def bridge(smoke: bool) -> Iterator[Figure]:
    """Deviation of a path given one noisy value at its end, H = 0.7."""
    end, times = torch.tensor([2.0], dtype=torch.float64), torch.tensor([0.5, 1.0, 1.5], dtype=torch.float64)
    laws = {
        "exact": lambda s, t: fbm_covariance(0.7, s, t),
        "default": MarkovFBM(0.7, T=2.0, dt=0.01).covariance,
        "paper": MarkovFBM(0.7, 5, T=6.0, grid="paper").covariance,
    }
    for name, law in laws.items():
        given = condition(law(times, times), law(times, end), law(end, end) + 0.01)
        for k, exact in enumerate((0.480, 0.585, 0.486)):
            value = float(given.covariance[k, k].sqrt())
            what = f"bridge, {name} law, t = {float(times[k])}: deviation"
            bar = within(what, value, 0.99 * exact, 1.01 * exact)
            yield reported(what, value, f"exact {exact}") if name == "paper" else bar


def speed(smoke: bool) -> Iterator[Figure]:
    """Points per second, with the error of the variance beside them; cost of the approximation; scaling."""
    count, seconds = 65536, 0.2 if smoke else 1.0
    for hurst in (0.3, 0.9):
        for name, draw, paths in _samplers(hurst, count):
            if draw is None:
                yield reported(f"{name}, H = {hurst}", "skipped", "not installed")
                continue
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # theirs, about negative eigenvalues
                values = draw()
                time = _median(draw, seconds)
            rate = paths * count / time
            detail = f"{_variance_error(values, hurst):+.3f} relative error of the variance of differences"
            yield reported(f"{name}, H = {hurst}: points per second", rate, detail)
        step = torch.ones(1, dtype=torch.float64)
        exact = float(MarkovFBM(hurst, 16, T=float(count), dt=1.0).covariance(step, step))
        yield reported(f"Markov approximation, K = 16, H = {hurst}: error of the step's variance", exact - 1)
    times = torch.linspace(0, 1, 1001, dtype=torch.float64)
    for num in (5, 8, 12, 16, 24):
        model, noise = MarkovFBM(0.3, num), NoiseStream(0, 0, 256)
        time = _median(lambda m=model, z=noise: m.increments(z, times, dtype=torch.float32), seconds)
        detail = f"certificate {float(model.error()):.1e}"
        yield reported(f"Markov approximation, K = {num}: ns per step", 1e9 * time / 256_000, detail)
    for power in (10, 12, 14, 16, 18, 20):
        paths = 1 << max(0, 18 - power)
        time = _median(
            lambda n=1 << power, m=paths: fgn(0.7, NoiseStream(0, 0, m), n, dtype=torch.float32), seconds / 2
        )
        detail = f"with its spectrum, {_number(paths)}"
        yield reported(f"exact noise, n = 2^{power}: ns per point", 1e9 * time / (paths << power), detail)
    if not smoke:
        long = torch.linspace(0, 1, (1 << 20) + 1, dtype=torch.float64)
        model = MarkovFBM(0.7, dt=2.0**-20)
        time = _median(lambda: model.increments(NoiseStream(0, 0, 1), long, dtype=torch.float32), 0.1)
        yield reported("Markov approximation, n = 2^20, one path: ns per step", 1e9 * time / (1 << 20))


def _samplers(hurst: float, count: int) -> Iterator[tuple[str, Callable[[], Tensor] | None, int]]:
    """Names, samplers of fGn, and the paths that each draws; ``None`` for what is not installed."""
    sampler = fgn_sampler(hurst, count)
    for dtype in (torch.float32, torch.float64):
        for paths in (1, 16):
            name, noise = f"exact noise, {str(dtype)[6:]}, {_number(paths)}", NoiseStream(0, 0, paths)
            yield name, lambda z=noise, d=dtype: sampler.draw(z, dtype=d), paths
    times, model = torch.arange(count + 1).double(), MarkovFBM(hurst, 16, T=float(count), dt=1.0)

    def markov() -> Tensor:
        return model.increments(NoiseStream(0, 0, 16), times, dtype=torch.float32)

    yield "Markov approximation, K = 16, 16 paths", markov, 16
    fbm, stochastic, torchfbm = (
        _optional(name) for name in ("fbm", "stochastic.processes.noise", "torchfbm.generators")
    )
    theirs = fbm and fbm.FBM(n=count, hurst=hurst, length=count, method="daviesharte")
    yield "fbm 0.3", (lambda: torch.from_numpy(theirs.fgn())[None]) if theirs else None, 1
    process = stochastic and stochastic.FractionalGaussianNoise(hurst=hurst, t=count)
    sample = (lambda: torch.from_numpy(np.asarray(process.sample(count)))[None]) if process else None
    yield "stochastic", sample, 1
    draw = (lambda: torchfbm.generate_davies_harte(count, hurst, size=(16,))) if torchfbm else None
    yield "torchfbm, its default float32, 16 paths", draw, 16


def _number(paths: int) -> str:
    """A number of paths, in words."""
    return "one path" if paths == 1 else f"{paths} paths"


def _variance_error(values: Tensor, hurst: float) -> float:
    """Relative error of the mean square of second differences of the path, which one long path resolves."""
    expected = 2 - 2 * (2 ** (2 * hurst - 1) - 1)
    return float(values.double().diff(dim=-1).square().mean()) / expected - 1


def _median(run: Callable[[], object], seconds: float) -> float:
    """Median time of a call [s], one thread."""
    return Timer("run()", globals={"run": run}, num_threads=1).blocked_autorange(min_run_time=seconds).median


def _optional(name: str) -> ModuleType | None:
    """A package that is only compared with, or nothing where it is missing."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


SECTIONS: list[Section] = [
    weights_of_the_paper,
    derivatives,
    certificates,
    samples,
    recovery,
    estimators,
    coverage,
    bridge,
    speed,
]

if __name__ == "__main__":
    raise SystemExit(main("fractional", SECTIONS))
