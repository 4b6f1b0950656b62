"""Generators as models: contract, POD-Gaussian, bootstrap, residual start, calibration, gradient penalty."""

import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch

from sde import NoiseStream
from sde.networks import perceptron
from tests.statistics import assert_mean
from uq.baselines import Bootstrap, PodGaussian
from uq.generator import WassersteinGenerator, gradient_penalty
from uq.model import Model


def correlated(n: int, seed: int = 0) -> torch.Tensor:
    """Rows of a correlated, skewed vector in three dimensions."""
    z = np.random.default_rng(seed).standard_normal((n, 3))
    mixed = z @ np.array([[1.0, 0.5, 0.0], [0.0, 1.0, -0.3], [0.0, 0.0, 0.2]]) + np.array([1.0, 0.0, -2.0])
    return torch.tensor(mixed + 0.2 * z**2)


def loads(n: int, seed: int = 1) -> torch.Tensor:
    """Conditions."""
    return torch.tensor(np.random.default_rng(seed).uniform(-1, 1, (n, 2)))


def with_random_weights(base: PodGaussian, **sizes: int) -> WassersteinGenerator:
    """A generator whose last layer is not zero."""
    generator = WassersteinGenerator(base, torch.ones(len(base.mean)), width=16, seed=3, **sizes)
    last = generator.network[-1]
    with torch.no_grad():
        last.weight.copy_(
            NoiseStream(4, 0, len(last.weight)).normals(last.weight.shape[1], dtype=torch.float32)
        )
    return generator.requires_grad_(False)


def calibrated() -> WassersteinGenerator:
    """A generator with random weights and the moments of its data."""
    generator = with_random_weights(PodGaussian(correlated(50)))
    generator.calibrate(correlated(50), seed=0)
    return generator


GENERATORS: dict[str, Callable[[], torch.nn.Module]] = {
    "POD-Gaussian": lambda: PodGaussian(correlated(50)),
    "conditional Gaussian": lambda: PodGaussian(correlated(50), loads(50)),
    "bootstrap": lambda: Bootstrap(correlated(50)),
    "conditional bootstrap": lambda: Bootstrap(correlated(50), loads(50)),
    "Wasserstein": lambda: with_random_weights(PodGaussian(correlated(50)), extra_latent=2),
    "conditional Wasserstein": lambda: with_random_weights(PodGaussian(correlated(50), loads(50))),
    "calibrated Wasserstein": calibrated,
    "field": lambda: PodGaussian(correlated(60).reshape(30, 2, 3)),
}


@pytest.mark.parametrize("name", GENERATORS)
def test_generator_is_a_model_whose_rows_do_not_depend_on_the_batch(name: str) -> None:
    generator = GENERATORS[name]()
    assert isinstance(generator, Model)
    noise = NoiseStream(7, 0, 300)
    inputs = loads(300)[:, : generator.input_dim]
    whole = generator(inputs, noise)
    assert whole.shape == (300, *generator.output_shape)
    for start, stop in ((0, 1), (17, 18), (60, 70), (5, 299)):
        assert torch.equal(generator(inputs[start:stop], noise[start:stop]), whole[start:stop])
    order = torch.tensor(np.random.default_rng(2).permutation(300)[:40])
    assert torch.equal(generator(inputs[order], noise.select(order)), whole[order])


@pytest.mark.parametrize("name", GENERATORS)
def test_generator_survives_pickling_and_its_state(name: str) -> None:
    generator = GENERATORS[name]()
    noise, inputs = NoiseStream(7, 0, 20), loads(20)[:, : generator.input_dim]
    assert torch.equal(pickle.loads(pickle.dumps(generator))(inputs, noise), generator(inputs, noise))
    if isinstance(generator, WassersteinGenerator) and generator.latent_dim == 3 and not generator.input_dim:
        fresh = WassersteinGenerator(PodGaussian(correlated(50)), torch.ones(3), width=16, seed=9)
        fresh.load_state_dict(generator.state_dict())
        assert torch.equal(fresh(inputs, noise), generator(inputs, noise))


def test_generator_of_no_samples_is_empty() -> None:
    assert GENERATORS["Wasserstein"]()(torch.zeros(0, 0), NoiseStream(0, 5, 5)).shape == (0, 3)


def test_pod_gaussian_has_the_mean_and_covariance_of_the_data() -> None:
    data = correlated(200)
    gaussian = PodGaussian(data, dtype=torch.float64)
    torch.testing.assert_close(gaussian.mean, data.mean(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gaussian.factor @ gaussian.factor.T, torch.cov(data.T), rtol=1e-10, atol=1e-12)
    made = gaussian(torch.zeros(40000, 0), NoiseStream(3, 0, 40000))
    assert_mean(made, data.mean(0), bias=0.1)
    centred = made - data.mean(0)
    products = (centred[:, :, None] * centred[:, None, :]).flatten(1)
    assert_mean(products, torch.cov(data.T).flatten(), bias=0.2)


def test_pod_gaussian_of_few_samples_keeps_their_span() -> None:
    gaussian = PodGaussian(correlated(3), dtype=torch.float64)
    assert gaussian.latent_dim == 2


def test_pod_gaussian_regresses_on_its_conditions_exactly() -> None:
    known = loads(40)
    data = 2 + known @ torch.tensor([[1.0, 2.0, 3.0], [0.0, -1.0, 1.0]], dtype=torch.float64)
    gaussian = PodGaussian(data, known, dtype=torch.float64)
    made = gaussian(known, NoiseStream(0, 0, 40))
    torch.testing.assert_close(made, data, rtol=0, atol=1e-10)


def test_bootstrap_replays_rows_with_equal_probability() -> None:
    rows = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    made = Bootstrap(rows)(torch.zeros(40000, 0), NoiseStream(0, 0, 40000))
    assert_mean((made == rows.T).double(), 0.25, bias=0.03)


def test_conditional_bootstrap_draws_among_the_nearest() -> None:
    known = torch.arange(10.0)[:, None]
    made = Bootstrap(known, known, neighbours=3)(torch.full((200, 1), 4.1), NoiseStream(0, 0, 200))
    assert set(made.flatten().tolist()) == {3.0, 4.0, 5.0}


def test_new_generator_is_the_pod_gaussian() -> None:
    base = PodGaussian(correlated(50), loads(50))
    generator = WassersteinGenerator(base, torch.ones(3), extra_latent=4, seed=0)
    noise, inputs = NoiseStream(1, 0, 100), loads(100)
    assert torch.equal(generator(inputs, noise), base(inputs, noise))


def test_calibration_gives_the_moments_of_the_data() -> None:
    data = correlated(400)
    generator = with_random_weights(PodGaussian(data, dtype=torch.float64))
    raw = generator(torch.zeros(3200, 0), NoiseStream(0, 0, 3200).fork("calibration"))
    assert (raw.std(0) / data.std(0)).max() > 1.5
    generator.calibrate(data, seed=0)
    made = generator(torch.zeros(3200, 0), NoiseStream(0, 0, 3200).fork("calibration"))
    torch.testing.assert_close(made.mean(0), data.mean(0), rtol=0, atol=1e-8)
    torch.testing.assert_close(torch.cov(made.T), torch.cov(data.T), rtol=1e-6, atol=1e-8)


def test_gradient_penalty_of_a_linear_critic_is_known() -> None:
    slope = torch.tensor([[2.0], [-1.0], [2.0]], dtype=torch.float64)
    real, fake = correlated(20), correlated(20, seed=5)
    penalty, norm = gradient_penalty(
        lambda x: x @ slope, real, fake, torch.full((20, 1), 0.3, dtype=torch.float64)
    )
    torch.testing.assert_close(penalty.item(), 4.0, rtol=1e-12, atol=0)
    torch.testing.assert_close(norm.item(), 3.0, rtol=1e-12, atol=0)


def test_gradient_penalty_of_a_constant_critic_has_a_finite_derivative() -> None:
    critic = perceptron((3, 8, 1), seed=0, dtype=torch.float64, zero_last=True)
    mix = torch.full((20, 1), 0.5, dtype=torch.float64)
    penalty, _ = gradient_penalty(critic, correlated(20), correlated(20, seed=5), mix)
    penalty.backward()
    torch.testing.assert_close(penalty.item(), 1.0, rtol=0, atol=1e-5)
    assert all(torch.isfinite(p.grad).all() for p in critic.parameters() if p.grad is not None)


def test_gradient_penalty_has_the_derivative_of_finite_differences() -> None:
    critic = perceptron((3, 16, 16, 1), seed=1, dtype=torch.float64)
    real, fake = correlated(20), correlated(20, seed=5)
    mix = torch.tensor(np.random.default_rng(0).uniform(size=(20, 1)))
    gradient_penalty(critic, real, fake, mix)[0].backward()
    for parameter in (critic[0].weight, critic[2].bias, critic[4].weight):
        assert parameter.grad is not None
        direction = NoiseStream(2, 0, 1).normals(parameter.numel(), dtype=torch.float64).view_as(parameter)
        step = 1e-5
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.add_(sign * step * direction)
            values.append(gradient_penalty(critic, real, fake, mix)[0].item())
            with torch.no_grad():
                parameter.sub_(sign * step * direction)
        slope = (values[0] - values[1]) / (2 * step)
        # Central differences: truncation of order step^2, rounding of order 1e-16 / step.
        torch.testing.assert_close(float((parameter.grad * direction).sum()), slope, rtol=1e-7, atol=1e-9)


def nan_row() -> torch.Tensor:
    data = correlated(5)
    data[3, 1] = torch.nan
    return data


BAD = [
    (lambda: PodGaussian([1.0, 2.0]), TypeError, r"`data` must be a floating-point tensor; got list"),  # type: ignore[arg-type]
    (lambda: PodGaussian(torch.ones(4, 2, dtype=torch.int64)), TypeError, r"got torch.int64"),
    (lambda: PodGaussian(torch.ones(4)), ValueError, r"one row per sample, shape \(n, ...\); got \(4,\)"),
    (lambda: PodGaussian(torch.ones(1, 3)), ValueError, r"at least two samples; got shape \(1, 3\)"),
    (lambda: PodGaussian(torch.ones(0, 3)), ValueError, r"at least two samples"),
    (lambda: PodGaussian(nan_row()), ValueError, r"`data` must be finite; row 3 is not"),
    (lambda: PodGaussian(correlated(5), loads(4)), ValueError, r"`conditions` must have shape \(5, c\)"),
    (lambda: PodGaussian(correlated(3), loads(3)), ValueError, r"at least 4 samples for 2 conditions"),
    (
        lambda: Bootstrap(correlated(5), loads(5), neighbours=6),
        ValueError,
        r"`neighbours` must lie in \[1, 5\]",
    ),
    (
        lambda: PodGaussian(correlated(5))(torch.zeros(4, 1), NoiseStream(0, 0, 4)),
        ValueError,
        r"`inputs` must have shape \(4, 0\).*got \(4, 1\)",
    ),
    (
        lambda: Bootstrap(correlated(5))(torch.zeros(3, 0), NoiseStream(0, 0, 4)),
        ValueError,
        r"`inputs` must have shape \(4, 0\)",
    ),
    (
        lambda: PodGaussian(correlated(5))(None, NoiseStream(0, 0, 4)),  # type: ignore[arg-type]
        TypeError,
        r"`inputs` must be a tensor; got NoneType",
    ),
    (
        lambda: WassersteinGenerator(PodGaussian(correlated(5)), torch.ones(2), seed=0),
        ValueError,
        r"`scale` must be 3 positive numbers; got shape \(2,\)",
    ),
    (
        lambda: WassersteinGenerator(PodGaussian(correlated(5)), torch.zeros(3), seed=0),
        ValueError,
        r"`scale` must be 3 positive numbers",
    ),
    (
        lambda: WassersteinGenerator(PodGaussian(correlated(5)), torch.ones(3), width=0, seed=0),
        ValueError,
        r"`width` and `depth` must be at least 1",
    ),
    (
        lambda: with_random_weights(PodGaussian(correlated(5))).calibrate(torch.ones(5, 2), seed=0),
        ValueError,
        r"`data` must have 3 components and 0 conditions; got 2 and 0",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_generator_refuses(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
