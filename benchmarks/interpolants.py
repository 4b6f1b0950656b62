"""Interpolants and their samplers against closed forms, quadrature and a bare loop."""

import math
import time
from collections.abc import Iterator

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from benchmarks import bridges, checkerboard, few_steps, forecasting, mixture_128, sampling
from benchmarks.check import Figure, Section, at_least, at_most, main, within
from benchmarks.few_steps import three_modes
from inference import FitSettings, fit
from inference.interpolants import (
    BrownianBridge,
    Diffusion,
    EncodingDecoding,
    Fading,
    Interpolant,
    Kind,
    Matching,
    Mirror,
    Normalised,
    OneSided,
    Prediction,
    Quadratic,
    SineSquared,
    Trigonometric,
    TwoSided,
    VariancePreserving,
    independent,
    kl_bound,
)
from inference.interpolants.field_network import FieldNetwork
from inference.likelihood import (
    diffusion_log_density,
    flow_log_density,
    reversal_log_density,
    sampler_log_density,
)
from inference.reference_problems import Mixture, MixtureProblem
from inference.samplers import (
    BDIA,
    DPMSolver,
    ProbabilityFlow,
    Sampler,
    StudentNoise,
    diffusion_equation,
    geometric_times,
    log_snr_times,
    straightness,
)
from sde.noise import GivenIncrements, NoiseStream
from sde.solve import solve
from sde.solvers import EulerMaruyama, Heun, Solver

__all__ = ["SECTIONS", "SLOW"]

_F64 = torch.float64
_NO_NOISE = NoiseStream(0, 0, 0)


def _gaussian(mean: float, variance: float) -> Mixture:
    return Mixture.gaussian(torch.tensor([mean], dtype=_F64), torch.tensor([[variance]], dtype=_F64))


_G1 = MixtureProblem(TwoSided(), _gaussian(-1, 0.5), _gaussian(2, 2))
_ONE = torch.tensor([[1.0]], dtype=_F64)

REFERENCES: list[tuple[Interpolant, float, tuple[float, float]]] = [
    (TwoSided(), 0.3, (3.5669291339, -1.2598425197)),
    (TwoSided(amplitude=BrownianBridge(2.0)), 0.3, (3.6153846154, -0.9467455621)),
    (TwoSided(Trigonometric()), 0.3, (4.2850958944, -0.6701840867)),
    (TwoSided(Normalised()), 0.3, (3.7560252993, -0.8065034430)),
    (TwoSided(EncodingDecoding(), SineSquared()), 0.3, (6.0712581908, -2.1421216085)),
    (TwoSided(EncodingDecoding(), SineSquared()), 0.7, (5.9771373538, -0.0135165005)),
    (OneSided(), 0.3, (1.9850746269, -0.1492537313)),
    (OneSided(Trigonometric()), 0.3, (2.6896111773, 0.1724398706)),
    (OneSided(VariancePreserving()), 0.3, (2.0275229358, -0.0917431193)),
    (Mirror(), 0.3, (-0.1176470588, 0.5882352941)),
]
"""Velocity and score of N(-1, 1/2) to N(2, 2) at x = 0.7, by interpolant and time."""


def fields(smoke: bool) -> Iterator[Figure]:
    """Exact fields at reference points, conversions at drawn points, and losses at their floors."""
    worst, x = 0.0, torch.tensor([[0.7]], dtype=_F64)
    for path, instant, values in REFERENCES:
        exact, t = MixtureProblem(path, _G1.base, _G1.target), torch.tensor(instant, dtype=_F64)
        for kind, value in zip((Kind.VELOCITY, Kind.SCORE), values, strict=True):
            worst = max(worst, abs(exact.field(kind)(t, x).item() - value))
    yield at_most("fields of ten interpolants, largest error", worst, 1e-9)
    rng, worst = np.random.default_rng(0), 0.0
    for path in (OneSided(), OneSided(Trigonometric()), OneSided(VariancePreserving()), Mirror()):
        exact = MixtureProblem(path, _G1.base, three_modes(path).target)
        points, t = torch.tensor(rng.standard_normal((50, 2))), torch.tensor(rng.uniform(0.05, 0.95, (50, 1)))
        kinds = list(path.rows(t))
        for given in kinds:
            for kind in kinds:
                found = exact.prediction(given).to(kind)(t, points)
                expected = exact.field(kind)(t, points)
                worst = max(worst, ((found - expected).abs() / (1 + expected.abs())).max().item())
    yield at_most("any kind from any kind, largest relative error", worst, 1e-9, "50 drawn points")
    for kind, floor in ((Kind.VELOCITY, -4.7965501589), (Kind.NOISE, -0.0992489895)):
        yield from _trained(kind, floor, 100 if smoke else 600)


def _trained(kind: Kind, floor: float, iterations: int) -> Iterator[Figure]:
    """Excess of a trained network's loss over the floor."""
    loss = Matching(TwoSided(), kind, independent(_G1.base.sample, _G1.target.sample), batch=512, seed=0)
    network = FieldNetwork(1, width=48, depth=2, seed=0, dtype=_F64)
    settings = FitSettings(iterations=iterations, rate=5e-3, average=0.99)
    trained, _ = fit(network, loss, settings=settings, identity={}, progress=False)
    fresh = NoiseStream(99, 0, 100_000)
    excess = loss.losses(trained, fresh) - loss.losses(_G1.field(kind), fresh)
    error = excess.std().item() / math.sqrt(len(excess))
    detail = f"floor {floor}, standard error {error:.1e}"
    yield within(
        f"{kind.value} loss above its floor", excess.mean().item(), -3 * error, 0.01 + 3 * error, detail
    )


def flows(smoke: bool) -> Iterator[Figure]:
    """Maps between Gaussians that do not commute, their densities, and the errors of probes."""
    maps = {
        1.0: [[0.54967024, -0.49672906], [-0.59399670, 2.16081188]],
        2.0: [[0.55017840, -0.50179207], [-0.58940872, 2.16009783]],
    }
    for scale, expected in maps.items():
        exact, steps = _plane(scale, centred=True), 100 if smoke else 800
        ends = [
            ProbabilityFlow()(
                exact.prediction(),
                torch.eye(2, dtype=_F64),
                torch.linspace(0, 1, k + 1, dtype=_F64),
                _NO_NOISE,
            )
            for k in (steps, 2 * steps)
        ]
        matrix = ((4 * ends[1] - ends[0]) / 3).T
        error = (matrix - torch.tensor(expected, dtype=_F64)).abs().max().item()
        carried = (matrix @ exact.base.covariance @ matrix.T - exact.target.covariance).abs().max().item()
        yield at_most(f"flow map, gamma^2 = {scale:g} t (1 - t): error", error, 1e-7)
        yield at_most("covariance that it carries: error", carried, 1e-7)
    exact, points = _plane(1.0), torch.ones(1, 2, dtype=_F64)
    values = [
        flow_log_density(
            exact.prediction(), points, exact.base.log_density, torch.linspace(0, 1, k + 1, dtype=_F64)
        ).value.item()
        for k in (200, 400)
    ]
    yield at_most("log-density of the flow: error", abs((4 * values[1] - values[0]) / 3 + 4.0257145937), 1e-7)
    seeds = 400
    for probes in (1, 32):
        found = flow_log_density(
            exact.prediction(),
            points.expand(seeds * (10 if probes == 1 else 1), -1),
            exact.base.log_density,
            torch.linspace(0, 1, 81, dtype=_F64),
            noise=NoiseStream(1, 0, seeds * (10 if probes == 1 else 1)),
            num_probes=probes,
        )
        if probes == 1:
            ratio = found.value.std().item() / 1.0130020953
            yield within("deviation of one probe over its closed form", ratio, 0.9, 1.1)
        else:
            covered = ((found.value + 4.0257145937).abs() < 2.04 * found.standard_error).double().mean()
            yield within("coverage of 95% intervals of 32 probes", covered.item(), 0.92, 0.98, "400 cases")


def diffusions(smoke: bool) -> Iterator[Figure]:
    """Weak orders by exact moments, and the correlation that the diffusivity leaves."""
    sizes = (20, 40, 80) if smoke else (20, 40, 80, 160)
    for solver, low, high, largest in ((Heun(), 1.9, 2.1, 1e-3), (EulerMaruyama(), 0.9, 1.1, 6e-2)):
        name = type(solver).__name__
        errors = [abs(_moments(1.0, steps, solver)[0] - 2) for steps in sizes]
        yield within(f"{name}: weak order", _slope(sizes, errors), low, high)
        yield at_most(f"{name}: error of the variance at 20 steps", errors[0], largest)
    for eps, expected in ((0.5, 0.5462930159), (1.0, 0.2984360592), (2.0, 0.0890640814)):
        error = abs(_moments(eps, 200 if smoke else 800, Heun())[1] - expected)
        yield at_most(f"correlation of the ends at eps = {eps:g}: error", error, 1e-3)
    start = _G1.base.sample(NoiseStream(0, 0, 100))
    grid = torch.linspace(0, 1, 21, dtype=_F64)
    still = solve(
        diffusion_equation(_G1.prediction(), 0.0), start, grid, NoiseStream(0, 0, 100), solver=Heun()
    )
    flow = ProbabilityFlow()(_G1.prediction(), start, grid, _NO_NOISE)
    yield at_most(
        "without diffusivity, distance from the flow", (still[:, -1] - flow).abs().max().item(), 0.0
    )


def likelihoods(smoke: bool) -> Iterator[Figure]:
    """Densities of diffusions by three estimators, that of the sampler by quadrature, and the bound."""
    paths = 20_000 if smoke else 200_000
    grid = torch.linspace(0, 1, 201, dtype=_F64)
    found = diffusion_log_density(
        _G1.prediction(), _ONE, _G1.base.log_density, grid, NoiseStream(2, 0, 1), eps=1.0, num_paths=paths
    )
    gap = abs(found.value.item() + 1.5155121235) / found.standard_error.item()
    yield at_most("Feynman-Kac: gap in standard errors", gap, 3, f"error {found.standard_error.item():.1e}")
    for steps, expected in ((50, 0.263), (200, 0.131), (800, 0.065)):
        reverse = reversal_log_density(
            _G1.prediction(),
            _ONE,
            _G1.base.log_density,
            torch.linspace(0, 1, steps + 1, dtype=_F64),
            NoiseStream(3, 0, 1),
            eps=1.0,
            num_paths=4000,
        )
        spread = reverse.standard_error.item() * math.sqrt(4000)
        yield within(f"deviation of a path with its martingale, {steps} steps", spread / expected, 0.9, 1.1)
    values = (-0.77703, -3.17570, -1.63208, -6.61580)
    target = _two_modes()
    points = torch.tensor([[-2.0], [0.0], [1.5], [4.0]], dtype=_F64)
    sampled = sampler_log_density(
        target.prediction(),
        points,
        target.base.log_density,
        torch.linspace(0, 1, 26, dtype=_F64),
        NoiseStream(4, 0, 4),
        eps=0.5,
        num_paths=paths,
    )
    gaps = (sampled.value - torch.tensor(values, dtype=_F64)).abs() / sampled.standard_error
    yield at_most("density of the sampler: largest gap in standard errors", gaps.max().item(), 4)
    wrong = (target.target.log_density(points)[2] - sampled.value[2]).abs() / sampled.standard_error[2]
    yield at_least("the target's density at 1.5 is told apart, in errors", wrong.item(), 1 if smoke else 4)
    for eps, divergence in ((0.25, 1.56573), (1.0, 0.79915), (4.0, 0.12046)):
        yield at_least(
            f"bound over divergence, eps = {eps:g}", kl_bound(0.5, 0.5 / eps**2, eps) / divergence, 1
        )


def exponential_integrators(smoke: bool) -> Iterator[Figure]:
    """Orders of DPM-Solver in both forms, single and multistep, and of BDIA, on three modes."""
    start, end, prediction = _toy()
    sizes = (40, 80) if smoke else (80, 160, 320)
    for order, low, high in ((1, 0.9, 1.1), (2, 1.9, 2.1), (3, 2.8, 3.3)):
        for form in (Kind.TARGET, Kind.NOISE):
            for multistep in (True, False):
                method = DPMSolver(order, form, multistep)
                errors = _errors(method, prediction, start, end, sizes)
                name = f"DPM-Solver {order}{'M' if multistep else 'S'} ({form.value})"
                yield within(f"{name}: order", _slope(sizes, errors), low, high, f"error {errors[-1]:.1e}")
    published = _errors(DPMSolver(3, legacy=True), prediction, start, end, (80, 320))
    yield within(
        "3M as published: order", _slope((80, 320), published), 1.8, 2.2, f"error {published[1]:.1e}"
    )
    yield at_most("3M: error at 320 steps", _errors(DPMSolver(3), prediction, start, end, (320,))[0], 3e-6)
    for weight, low, high in ((1.0, 1.9, 2.1), (0.5, 0.9, 1.1), (0.0, 0.9, 1.1)):
        errors = _errors(BDIA(weight), prediction, start, end, sizes)
        yield within(f"BDIA {weight:g}: order", _slope(sizes, errors), low, high, f"error {errors[-1]:.1e}")
    for steps in (10, 100):
        times = log_snr_times(Diffusion(), steps, first=0.0, last=1 - 1e-3)
        back = BDIA().invert(prediction, BDIA().pair(prediction, start, times), times)
        yield at_most(f"BDIA 1: round trip of {steps} steps", (back - start).abs().max().item(), 1e-12)


def heavy_and_straight(_: bool) -> Iterator[Figure]:
    """PFGM++ near its limit, and one Euler step."""
    points, sizes = 2 * NoiseStream(6, 0, 50).normals(2, dtype=_F64), (128, 1024, 8192, 65536)
    x, one = points.repeat(4, 1) + NoiseStream(7, 0, 200).normals(2, dtype=_F64), torch.ones((), dtype=_F64)
    limit = StudentNoise(math.inf).denoiser(points)(one, x)
    errors = [(StudentNoise(float(d)).denoiser(points)(one, x) - limit).norm().item() for d in sizes]
    yield within("PFGM++: slope in its degrees of freedom", -_slope(sizes, errors), -1.03, -0.97)
    independent_pairs, fresh = three_modes(OneSided()), NoiseStream(9, 0, 4000).normals(2, dtype=_F64)
    step = ProbabilityFlow(EulerMaruyama())(
        independent_pairs.prediction(), fresh, torch.tensor([0.0, 1.0], dtype=_F64), _NO_NOISE
    )
    gap = (step - independent_pairs.target.mean).abs().max().item()
    yield at_most("one Euler step of independent pairs, distance from the mean", gap, 1e-12)
    straight = straightness(independent_pairs.prediction(), fresh, torch.linspace(0, 1, 101, dtype=_F64))
    yield within("straightness of that flow", straight.item(), 1.25, 1.45, "1.36 in the reference")


def forecasts(smoke: bool) -> Iterator[Figure]:
    """Mean and variance of a forecast from a point, for three diffusivities."""
    steps = 100 if smoke else 400
    for name, share in (
        ("own", lambda t: 0 * t + 1),
        ("Foellmer", lambda t: (3 - t) / (1 - t)),
        ("0.3 of own", lambda t: 0 * t + 0.09),
    ):
        mean, variance = _forecast(share, geometric_times(steps))
        yield within(f"forecast, {name} diffusivity: mean", mean, 1.188, 1.212, "1.2")
        yield within(f"forecast, {name} diffusivity: variance", variance, 0.298, 0.302, "0.3")


def overhead(_: bool) -> Iterator[Figure]:
    """Time of a step against a loop that calls the same network, in single precision."""
    field = FieldNetwork(2, width=256, depth=4, seed=0)
    x, times = torch.zeros(4000, 2), torch.linspace(0, 1, 11)
    sampler, noise = ProbabilityFlow(EulerMaruyama()), NoiseStream(0, 0, len(x))

    def bare() -> None:
        y = x
        for k in range(10):
            y = y + 0.1 * field(times[k], y)

    names = ("the network's own kind", "another kind")
    kinds = (Kind.VELOCITY, Kind.NOISE)
    for name, kind in zip(names, kinds, strict=True):
        prediction, ratios = Prediction(OneSided(), {kind: field}), []
        with torch.no_grad():
            for _repeat in range(7):
                began = time.perf_counter()
                bare()
                middle = time.perf_counter()
                sampler(prediction, x, times, noise)
                ratios.append((time.perf_counter() - middle) / (middle - began))
        yield at_most(f"flow sampler over a bare loop, {name}: median time", float(np.median(ratios)), 1.1)


def _plane(scale: float, *, centred: bool = False) -> MixtureProblem:
    first = torch.tensor([[2.0, 0.6], [0.6, 0.5]], dtype=_F64)
    second = torch.tensor([[0.4, -0.3], [-0.3, 1.5]], dtype=_F64)
    mean = torch.tensor([0.5, -1.0], dtype=_F64)
    target = Mixture.gaussian(0 * mean if centred else mean, second)
    return MixtureProblem(
        TwoSided(amplitude=BrownianBridge(scale)), Mixture.gaussian(0 * mean, first), target
    )


def _two_modes() -> MixtureProblem:
    means = torch.tensor([[-2.0], [1.5]], dtype=_F64)
    covariances = torch.tensor([[[0.25]], [[0.64]]], dtype=_F64)
    target = Mixture(torch.tensor([0.6, 0.4], dtype=_F64), means, covariances)
    return MixtureProblem(TwoSided(), Mixture.standard(1), target)


def _toy() -> tuple[Tensor, Tensor, Prediction]:
    """Base points, where the flow of three modes carries them, and the exact noise prediction."""
    exact = three_modes(OneSided(Diffusion()))
    start = NoiseStream(5, 0, 64).normals(2, dtype=_F64)
    velocity = exact.field(Kind.VELOCITY)

    def rate(t: float, x: np.ndarray) -> np.ndarray:
        return velocity(torch.tensor(t, dtype=_F64), torch.tensor(x).view(-1, 2)).numpy().ravel()

    end = solve_ivp(rate, (0.0, 1 - 1e-3), start.numpy().ravel(), method="DOP853", rtol=1e-11, atol=1e-11)
    return start, torch.tensor(end.y[:, -1]).view(-1, 2), exact.prediction(Kind.NOISE)


def _errors(
    sampler: Sampler, prediction: Prediction, start: Tensor, end: Tensor, sizes: tuple[int, ...]
) -> list[float]:
    """Median errors: points at a boundary of basins would spoil a mean."""
    grids = [log_snr_times(Diffusion(), steps, first=0.0, last=1 - 1e-3) for steps in sizes]
    found = [sampler(prediction, start, times, _NO_NOISE) for times in grids]
    return [(points - end).norm(dim=1).median().item() for points in found]


def _slope(sizes: tuple[int, ...], errors: list[float]) -> float:
    return -float(np.polyfit(np.log(sizes), np.log(errors), 1)[0])


def _moments(eps: float, steps: int, solver: Solver) -> tuple[float, float]:
    """Variance at time 1 and correlation of the ends of a linear scheme, from its response."""
    wiener = torch.zeros(steps + 2, steps, 1, dtype=_F64)
    wiener[torch.arange(steps), torch.arange(steps), 0] = 1.0
    start = torch.zeros(steps + 2, 1, dtype=_F64)
    start[steps] = 1.0
    times, equation = torch.linspace(0, 1, steps + 1, dtype=_F64), diffusion_equation(_G1.prediction(), eps)
    ends = solve(equation, start, times, GivenIncrements(wiener), solver=solver)[:, -1, 0]
    response, carried = ends[:steps] - ends[-1], ends[steps] - ends[-1]
    variance = carried**2 * 0.5 + response.square().sum() / steps
    return variance.item(), (carried * math.sqrt(0.5) / variance.sqrt()).item()


def _forecast(share, times: Tensor) -> tuple[float, float]:  # noqa: ANN001
    """Moments of a forecast of N(1.2, 0.3) from 1.5, with a share of the path's own diffusivity."""
    steps, path = len(times) - 1, TwoSided(Quadratic(), Fading())
    exact = MixtureProblem(path, _gaussian(1.5, 1e-14), _gaussian(1.2, 0.3))
    start = torch.full((steps + 2, 1), 1.5, dtype=_F64)
    prediction = Prediction.from_start(path, start, Kind.VELOCITY, exact.field(Kind.VELOCITY))
    normal = torch.zeros_like(start)
    normal[-1] = 1.0
    first = path.point(times[0], start, prediction.to(Kind.TARGET)(times[0], start), normal)
    wiener = torch.zeros(steps + 2, steps, 1, dtype=_F64)
    wiener[torch.arange(steps), torch.arange(steps), 0] = times.diff().sqrt()
    equation = diffusion_equation(prediction, lambda t: 0.5 * (1 - t) ** 2 * share(t.clamp(max=1 - 1e-12)))
    ends = solve(equation, first, times, GivenIncrements(wiener), solver=Heun())[:, -1, 0]
    return ends[-2].item(), (ends - ends[-2]).square().sum().item()


SECTIONS: list[Section] = [
    fields,
    flows,
    diffusions,
    likelihoods,
    exponential_integrators,
    heavy_and_straight,
    forecasts,
    overhead,
    *bridges.SECTIONS,
    *few_steps.SECTIONS,
    *forecasting.SECTIONS,
    *mixture_128.SECTIONS,
    *sampling.SECTIONS,
]

SLOW: list[Section] = [  # run by --slow
    *checkerboard.SLOW,
    *mixture_128.SLOW,
    *sampling.SLOW,
    *bridges.SLOW,
]

if __name__ == "__main__":
    raise SystemExit(main("interpolants", SECTIONS, SLOW))
