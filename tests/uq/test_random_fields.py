"""Random fields: covariances, Karhunen-Loeve expansions, Fourier features and transforms."""

import math
import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import optimize
from torch import Tensor

from sde.noise import NoiseStream
from tests.statistics import assert_mean
from uq.model import Model
from uq.random_fields import (
    Coefficients,
    Covariance,
    Exponential,
    FixedFourierFeatures,
    KarhunenLoeve,
    Lognormal,
    Matern,
    RandomFourierFeatures,
    SquaredExponential,
    Windowed,
    box_window,
)
from uq.random_fields import karhunen_loeve as expansion

COVARIANCES = [
    SquaredExponential((0.3, 0.5), 2.0),
    Exponential(0.4),
    Matern(0.3, 1.5, 0.5),
    Matern((0.3, 0.2), 2.7),
]


def interval(size: int, half: float = 0.5) -> tuple[Tensor, Tensor]:
    """Midpoints and lengths of equal cells of ``[-half, half]``."""
    width = 2 * half / size
    points = -half + width * (torch.arange(size, dtype=torch.float64) + 0.5)
    return points.unsqueeze(-1), torch.full((size,), width, dtype=torch.float64)


def square(size: int) -> tuple[Tensor, Tensor]:
    """Midpoints and areas of ``size**2`` equal cells of the unit square."""
    ticks = (torch.arange(size, dtype=torch.float64) + 0.5) / size
    return torch.cartesian_prod(ticks, ticks), torch.full((size**2,), size**-2.0, dtype=torch.float64)


def expand(size: int = 50, num_modes: float | None = 5, **options: object) -> KarhunenLoeve:
    """A small expansion on an interval."""
    options = {"coefficients": Coefficients.NOISE, "num_modes": num_modes} | options
    points, weights = interval(size)
    return KarhunenLoeve.from_covariance(SquaredExponential(0.3), points, weights, **options)  # pyright: ignore


def exponential_eigenvalues(half: float, length: float, count: int) -> np.ndarray:
    """Eigenvalues of ``exp(-|x - y| / length)`` on ``[-half, half]`` from its transcendental equation."""
    rate, frequencies = 1 / length, []
    for index in range(count):  # even modes: rate = w tan(w half); odd ones: w = -rate tan(w half)
        low, high = index * math.pi / (2 * half), (index + 1) * math.pi / (2 * half)
        even = index % 2 == 0
        equation = (
            (lambda w: rate * math.cos(w * half) - w * math.sin(w * half))
            if even
            else (lambda w: w * math.cos(w * half) + rate * math.sin(w * half))
        )
        frequencies.append(optimize.brentq(equation, low + 1e-12, high, xtol=1e-14))
    return 2 * rate / (np.array(frequencies) ** 2 + rate**2)


def eigenvalue_errors(half: float, length: float, size: int) -> np.ndarray:
    field = KarhunenLoeve.from_covariance(
        Exponential(length), *interval(size, half), coefficients=Coefficients.NOISE, num_modes=12
    )
    exact = exponential_eigenvalues(half, length, 12)
    return np.abs(field.eigenvalues.numpy() / exact - 1)


@pytest.mark.parametrize(
    ("smoothness", "formula"),
    [
        (0.5, lambda r: torch.exp(-r)),
        (1.5, lambda r: (1 + math.sqrt(3) * r) * torch.exp(-math.sqrt(3) * r)),
        (2.5, lambda r: (1 + math.sqrt(5) * r + 5 * r**2 / 3) * torch.exp(-math.sqrt(5) * r)),
    ],
)
def test_matern_equals_its_closed_form(smoothness: float, formula: Callable[[Tensor], Tensor]) -> None:
    distances = torch.cat([torch.zeros(1), torch.logspace(-9, 1.5, 50)]).to(torch.float64)
    values = Matern(0.5, smoothness, 3.0)(torch.zeros(1, 1), 0.5 * distances.unsqueeze(-1))[0]
    torch.testing.assert_close(values, 3.0 * formula(distances), rtol=1e-12, atol=1e-14)


def test_matern_tends_to_squared_exponential() -> None:
    x = torch.linspace(0, 3, 30, dtype=torch.float64).unsqueeze(-1)
    gaps = [(Matern(1.0, nu)(x, x) - SquaredExponential(1.0)(x, x)).abs().max() for nu in (12.5, 25.0, 50.0)]
    assert gaps[0] > 1.9 * gaps[1] > 3.6 * gaps[2]  # the gap falls like 1 / smoothness


@pytest.mark.parametrize("covariance", COVARIANCES, ids=repr)
def test_covariance_is_symmetric_and_positive(covariance: Covariance) -> None:
    x = NoiseStream(3, 0, 60).uniforms(2, dtype=torch.float64)
    matrix = covariance(x, x)
    assert torch.equal(matrix, matrix.mT)
    assert torch.equal(matrix.diagonal(), torch.full((60,), covariance.variance, dtype=torch.float64))
    assert torch.linalg.eigvalsh(matrix).min() > -1e-12


@pytest.mark.parametrize("covariance", COVARIANCES, ids=repr)
def test_frequencies_have_the_spectral_measure(covariance: Covariance) -> None:
    lags = torch.tensor([[0.1, 0.0], [0.0, 0.3], [0.2, -0.4]], dtype=torch.float64)
    frequencies = covariance.frequencies(1, 2, NoiseStream(5, 0, 200_000))[:, 0]
    expected = covariance(torch.zeros(1, 2), lags)[0] / covariance.variance
    assert_mean(torch.cos(frequencies @ lags.mT), expected, bias=0.02)


def test_exponential_eigenvalues_agree_with_the_published_ones() -> None:
    published = [0.38762, 0.21647, 0.11577, 0.06694]
    np.testing.assert_allclose(exponential_eigenvalues(0.5, 0.25, 4), published, atol=6e-6)


def test_karhunen_loeve_eigenvalues_match_the_transcendental_equation() -> None:
    assert eigenvalue_errors(0.5, 0.25, 400).max() <= 2e-3


def test_karhunen_loeve_eigenvalues_have_order_two() -> None:
    sizes = np.array([50, 100, 200, 400, 800])
    errors = np.stack([eigenvalue_errors(0.5, 0.25, int(size))[:3] for size in sizes])
    slopes = np.polyfit(np.log(sizes), np.log(errors), 1)[0]
    np.testing.assert_allclose(slopes, -2.0, atol=0.1)


@pytest.mark.parametrize("sample", range(4))
def test_karhunen_loeve_eigenvalues_match_for_random_kernels(sample: int) -> None:
    draw = NoiseStream(11, sample, sample + 1).uniforms(2, dtype=torch.float64)[0]
    half, length = 0.3 + float(draw[0]), 0.2 + 0.5 * float(draw[1])
    # The midpoint rule multiplies eigenvalues by 1 + (w^2 + 1 / length^2) h^2 / 12: at most 8e-4 here,
    # whatever the interval, and the shift of the frequency w adds about as much.
    assert eigenvalue_errors(half, length, 400).max() <= 2e-3


def test_unweighted_eigenproblem_misses_the_eigenvalues() -> None:
    points, _ = interval(400)
    field = KarhunenLoeve.from_covariance(
        Exponential(0.25), points, torch.ones(400), coefficients=Coefficients.NOISE, num_modes=12
    )
    assert abs(float(field.eigenvalues[0]) / 0.38762 - 1) > 1


def test_full_expansion_reproduces_the_covariance() -> None:
    points, weights = square(7)
    weights = weights * (1 + torch.arange(49, dtype=torch.float64) / 49)  # unequal cells
    covariance = Exponential((0.4, 0.2), 1.7)
    field = KarhunenLoeve.from_covariance(
        covariance, points, weights, coefficients=Coefficients.INPUTS, num_modes=49
    )
    torch.testing.assert_close(field.modes @ field.modes.mT, covariance(points, points), rtol=0, atol=1e-12)
    assert field.energy == pytest.approx(1.0, abs=1e-13)


def test_modes_are_orthogonal_in_the_weighted_product() -> None:
    points, weights = square(8)
    weights = weights * torch.linspace(0.5, 2.0, 64, dtype=torch.float64)
    field = KarhunenLoeve.from_covariance(
        Matern(0.3, 1.5), points, weights, coefficients=Coefficients.NOISE, num_modes=10
    )
    gram = field.modes.mT @ (field.modes * weights.unsqueeze(-1))
    torch.testing.assert_close(gram, torch.diag(field.eigenvalues), rtol=0, atol=1e-14)


def test_energy_keeps_the_fewest_modes() -> None:
    points, weights = interval(100)
    field = expand(100, coefficients=Coefficients.NOISE, num_modes=None, energy=0.99)
    total = float(weights.sum())
    assert field.energy >= 0.99
    assert float(field.eigenvalues[:-1].sum()) / total < 0.99
    assert field.output_shape == (len(points),)


@pytest.mark.parametrize("truncation", [{"num_modes": 12}, {"num_modes": None, "energy": 0.97}])
@pytest.mark.parametrize("stored", [0, 10_000])
def test_lanczos_agrees_with_the_dense_solver(
    truncation: dict[str, float], stored: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense = expand(300, **truncation)
    monkeypatch.setattr(expansion, "DENSE_POINTS", 10)
    monkeypatch.setattr(expansion, "STORED_POINTS", stored)
    monkeypatch.setattr(expansion, "BLOCK_ENTRIES", 7000)
    lanczos = expand(300, **truncation)
    torch.testing.assert_close(lanczos.eigenvalues, dense.eigenvalues, rtol=1e-9, atol=1e-13)
    torch.testing.assert_close(lanczos.modes, dense.modes, rtol=0, atol=1e-6)


def test_restored_variance_is_that_of_the_covariance() -> None:
    field = expand(60, num_modes=3, restore_variance=True)
    torch.testing.assert_close(field.variance, torch.ones(60, dtype=torch.float64), rtol=1e-12, atol=0)
    assert expand(60, num_modes=3).variance.max() < 1


def test_empirical_covariance_has_the_error_of_its_sample_size() -> None:
    points, weights = square(12)
    covariance = SquaredExponential(0.3)
    field = KarhunenLoeve.from_covariance(
        covariance, points, weights, coefficients=Coefficients.NOISE, energy=0.9999
    )
    exact, count, repeats = covariance(points, points), 1000, 20
    samples = field(torch.zeros(count * repeats, 0), NoiseStream(2, 0, count * repeats))
    groups = samples.unflatten(0, (repeats, count))
    errors = torch.linalg.matrix_norm(groups.mT @ groups / count - exact) / torch.linalg.norm(exact)
    error = errors.square().mean().sqrt()  # one error alone scatters by 20 %: few modes carry the field
    theory = math.sqrt((1 + float(exact.trace()) ** 2 / float(exact.square().sum())) / count)
    assert abs(float(error) / theory - 1) <= 0.15


MODELS = [
    expand(),
    KarhunenLoeve.from_covariance(
        Exponential(0.3), *square(6), coefficients=Coefficients.INPUTS, num_modes=7
    ),
    RandomFourierFeatures(Matern(0.3, 1.5), square(5)[0], 20),
    RandomFourierFeatures(SquaredExponential(0.3), square(5)[0].float(), 20),
    FixedFourierFeatures(Exponential(0.3), square(5)[0], 20, seed=1, coefficients=Coefficients.NOISE),
    FixedFourierFeatures(Exponential(0.3), square(5)[0], 20, seed=1, coefficients=Coefficients.INPUTS),
    Lognormal(Windowed(expand(), torch.linspace(0, 1, 50)), mean=2.0, cov=0.3),
]


@pytest.mark.parametrize("model", MODELS, ids=lambda m: type(m).__name__)
def test_field_is_a_model_whose_samples_do_not_depend_on_the_batch(model: Model) -> None:
    assert isinstance(model, Model)
    noise = NoiseStream(9, 5, 105)
    inputs = NoiseStream(10, 0, 100).normals(model.input_dim, dtype=torch.float64)
    whole = model(inputs, noise)
    assert whole.shape == (100, *model.output_shape)
    parts = [model(inputs[rows], noise[rows]) for rows in (slice(0, 1), slice(1, 70), slice(70, 100))]
    assert torch.equal(torch.cat(parts), whole)
    assert model(inputs[:0], noise[:0]).shape == (0, *model.output_shape)


@pytest.mark.parametrize("model", MODELS, ids=lambda m: type(m).__name__)
def test_field_survives_pickling(model: Model) -> None:
    copy, noise = pickle.loads(pickle.dumps(model)), NoiseStream(9, 0, 3)
    inputs = torch.ones(3, model.input_dim, dtype=torch.float64)
    assert torch.equal(copy(inputs, noise), model(inputs, noise))


def test_field_is_differentiable_in_its_coefficients() -> None:
    field = expand(20, coefficients=Coefficients.INPUTS)
    modulus = Lognormal(field, mean=2.0, cov=0.3)
    inputs = NoiseStream(1, 0, 3).normals(5, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: modulus(x, NoiseStream(0, 0, 3)), inputs)


def test_field_follows_dtype() -> None:
    single = expand().to("cpu", torch.float32)
    noise = NoiseStream(4, 0, 10)
    values = single(torch.zeros(10, 0), noise)
    assert values.dtype == torch.float32
    torch.testing.assert_close(values, expand()(torch.zeros(10, 0), noise).float(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("num_features", [2, 30])
def test_fourier_features_have_the_exact_covariance_for_any_number(num_features: int) -> None:
    points, covariance = square(3)[0], Exponential((0.5, 0.3), 1.4)
    samples = RandomFourierFeatures(covariance, points, num_features)(
        torch.zeros(60_000, 0), NoiseStream(6, 0, 60_000)
    )
    assert_mean(samples, 0.0, bias=0.06)
    products = (samples.unsqueeze(2) * samples.unsqueeze(1)).flatten(1)
    assert_mean(products, covariance(points, points).flatten(), bias=0.12)


@pytest.mark.parametrize("num_features", [1, 4, 20])
def test_fourier_features_have_the_stated_kurtosis(num_features: int) -> None:
    field = RandomFourierFeatures(
        SquaredExponential(0.3), torch.zeros(1, 1, dtype=torch.float64), num_features
    )
    samples = field(torch.zeros(200_000, 0), NoiseStream(8, 0, 200_000))
    assert field.kurtosis == 3 - 1.5 / num_features
    assert_mean(samples**4, field.kurtosis, bias=0.25)


def test_fixed_fourier_features_are_gaussian_with_the_covariance_of_their_frequencies() -> None:
    points = interval(6)[0]
    field = FixedFourierFeatures(
        SquaredExponential(0.2), points, 2000, seed=3, coefficients=Coefficients.INPUTS
    )
    basis = field.field(torch.eye(4000, dtype=torch.float64))
    exact = SquaredExponential(0.2)(points, points)
    torch.testing.assert_close((basis**2).sum(0), exact.diagonal(), rtol=1e-12, atol=0)
    assert (basis.mT @ basis - exact).abs().max() < 6 / math.sqrt(2 * 2000)


def test_lognormal_field_has_its_mean_and_coefficient_of_variation() -> None:
    field = Lognormal(expand(5, restore_variance=True), mean=3.0, cov=0.4)
    samples = field(torch.zeros(200_000, 0), NoiseStream(12, 0, 200_000))
    assert_mean(samples, 3.0, bias=0.04)
    assert_mean((samples / 3.0 - 1) ** 2, 0.16, bias=0.02)


def test_lognormal_field_keeps_its_mean_under_truncation() -> None:
    gaussian = expand(5, num_modes=1)
    assert gaussian.variance.min() < 0.9
    samples = Lognormal(gaussian, mean=3.0, cov=0.4)(torch.zeros(200_000, 0), NoiseStream(13, 0, 200_000))
    assert_mean(samples, 3.0, bias=0.04)


def test_windowed_field_is_nominal_in_the_zone() -> None:
    points, weights = square(20)
    gaussian = KarhunenLoeve.from_covariance(
        SquaredExponential(0.5), points, weights, coefficients=Coefficients.NOISE, num_modes=10
    )
    window = box_window(points, (0.0, 0.5), (0.3, 1.0), 0.2)
    modulus = Lognormal(Windowed(gaussian, window), mean=2.0, cov=0.2)(
        torch.zeros(4, 0), NoiseStream(0, 0, 4)
    )
    zone = (points[:, 0] < 0.3) & (points[:, 1] > 0.5)
    far = (points[:, 0] > 0.5) | (points[:, 1] < 0.3)
    assert torch.equal(modulus[:, zone], torch.full_like(modulus[:, zone], 2.0))
    full = Lognormal(gaussian, mean=2.0, cov=0.2)(torch.zeros(4, 0), NoiseStream(0, 0, 4))
    torch.testing.assert_close(modulus[:, far], full[:, far], rtol=1e-12, atol=0)


def test_box_window_rises_smoothly() -> None:
    x = torch.linspace(1.0, 1.2, 201, dtype=torch.float64).unsqueeze(-1)
    window = box_window(x, (0.0,), (1.0,), 0.2)
    assert float(window[0]) == 0
    assert float(window[-1]) == pytest.approx(1.0, abs=1e-12)
    assert (window.diff() >= 0).all()
    assert window.diff()[[0, -1]].max() < 2e-4  # no kink at either end


POINTS, WEIGHTS = interval(10)
NAN = float("nan")


def build(**changes: object) -> KarhunenLoeve:
    arguments = {
        "points": POINTS, "weights": WEIGHTS, "coefficients": Coefficients.NOISE, "num_modes": 3,
    } | changes  # fmt: skip
    return KarhunenLoeve.from_covariance(SquaredExponential(0.3), **arguments)  # pyright: ignore[reportArgumentType]


BAD_CALLS: list[tuple[Callable[[], object], type[Exception], str]] = [
    (lambda: SquaredExponential(-1.0), ValueError, "`lengths` must be positive and finite; got -1.0"),
    (lambda: SquaredExponential(()), ValueError, "`lengths` must hold at least one"),
    (lambda: Exponential("long"), TypeError, "`lengths` must be a number; got str"),  # pyright: ignore[reportArgumentType]
    (lambda: Exponential(1.0, NAN), ValueError, "`variance` must be positive and finite; got nan"),
    (lambda: Matern(1.0, 60.0), ValueError, "`smoothness` must be at most 50; got 60.0. Use Squared"),
    (lambda: Exponential((1.0, 1.0, 1.0))(POINTS, POINTS), ValueError, "must hold 1 or 1 values"),
    (lambda: Exponential(1.0)(POINTS, torch.zeros(3, 2)), ValueError, r"got \(10, 1\) and \(3, 2\)"),
    (lambda: build(points=POINTS[:, 0]), ValueError, "`points` must have shape"),
    (lambda: build(points=POINTS * NAN), ValueError, "`points` must be finite"),
    (lambda: build(points=POINTS[:0], weights=WEIGHTS[:0]), ValueError, "at least one point; got none"),
    (lambda: build(weights=WEIGHTS[:4]), ValueError, "`weights` must have shape"),
    (lambda: build(weights=-WEIGHTS), ValueError, "`weights` must be positive and finite; got"),
    (lambda: build(num_modes=0), ValueError, r"`num_modes` must lie in \[1, 10\]"),
    (lambda: build(num_modes=None), ValueError, "Give one of `num_modes` and `energy`; got None and None"),
    (lambda: build(energy=0.5), ValueError, "Give one of `num_modes` and `energy`; got 3 and 0.5"),
    (lambda: build(num_modes=None, energy=1.5), ValueError, r"`energy` must lie in \(0, 1\); got 1.5"),
    (lambda: build(coefficients="noise"), TypeError, "`coefficients` must be Coefficients.NOISE or"),
    (lambda: build().field(torch.zeros(2, 4)), ValueError, "`coefficients` must have shape"),
    (lambda: build()(torch.zeros(2, 1), NoiseStream(0, 0, 2)), ValueError, "`inputs` must have shape"),
    (
        lambda: RandomFourierFeatures(Exponential(1.0), POINTS, 0),
        ValueError,
        "`num_features` must be at least 1",
    ),
    (lambda: RandomFourierFeatures(Exponential(1.0), POINTS * NAN, 5), ValueError, "`points` must be finite"),
    (lambda: box_window(POINTS, (1.0,), (0.0,), 0.1), ValueError, "`lower` must be at most `upper`"),
    (lambda: box_window(POINTS, (0.0,), (1.0,), 0.0), ValueError, "`width` must be positive; got 0.0"),
    (lambda: Windowed(build(), torch.ones(3)), ValueError, "`window` must have shape"),
    (lambda: Lognormal(build(), mean=-1.0, cov=0.1), ValueError, "`mean` must be positive and finite"),
    (lambda: Lognormal(build(), mean=1.0, cov=NAN), ValueError, "`cov` must be positive and finite; got nan"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD_CALLS, ids=[row[2][:40] for row in BAD_CALLS])
def test_bad_call_is_refused_in_one_sentence(
    call: Callable[[], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call()


def test_indefinite_covariance_is_refused() -> None:
    class Indefinite(SquaredExponential):
        def __call__(self, x: Tensor, y: Tensor) -> Tensor:
            return 1 - 4 * (x - y.mT) ** 2

    with pytest.raises(RuntimeError, match="must be positive semi-definite; got an eigenvalue of -"):
        KarhunenLoeve.from_covariance(
            Indefinite(1.0), POINTS, WEIGHTS, coefficients=Coefficients.NOISE, num_modes=10
        )
