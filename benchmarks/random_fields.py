"""Random fields: eigenvalues against the transcendental equation, empirical covariance, kurtosis."""

import math
from collections.abc import Iterator

import numpy as np
import torch
from scipy import optimize
from torch import Tensor

from benchmarks.check import Figure, Section, at_most, main, within
from sde.noise import NoiseStream, Purpose
from uq.random_fields import (
    Coefficients,
    Exponential,
    KarhunenLoeve,
    RandomFourierFeatures,
    SquaredExponential,
)

__all__ = ["SECTIONS", "covariances", "eigenvalues", "exponential_eigenvalues"]

MODES = 12


def exponential_eigenvalues(half: float, length: float, count: int) -> np.ndarray:
    r"""Eigenvalues of :math:`\exp(-|x - y| / \ell)` on ``[-half, half]``, decreasing.

    .. math:: \lambda = \frac{2 c}{w^2 + c^2}, \quad c = 1/\ell, \qquad
        c = w \tan(w a) \text{ or } w = -c \tan(w a).

    References:
        Ghanem & Spanos (1991), section 2.3.3. doi:10.1007/978-1-4612-3094-6
    """
    rate = 1 / length

    def even(w: float) -> float:
        return rate * math.cos(w * half) - w * math.sin(w * half)

    def odd(w: float) -> float:
        return w * math.cos(w * half) + rate * math.sin(w * half)

    step = math.pi / (2 * half)
    frequencies = [
        optimize.brentq(odd if index % 2 else even, index * step + 1e-12, (index + 1) * step, xtol=1e-14)
        for index in range(count)
    ]
    return 2 * rate / (np.array(frequencies) ** 2 + rate**2)


def _errors(half: float, length: float, size: int) -> np.ndarray:
    """Relative errors of the first eigenvalues on ``size`` cells."""
    width = 2 * half / size
    points = -half + width * (torch.arange(size, dtype=torch.float64).unsqueeze(-1) + 0.5)
    weights = torch.full((size,), width, dtype=torch.float64)
    field = KarhunenLoeve.from_covariance(
        Exponential(length), points, weights, coefficients=Coefficients.NOISE, num_modes=MODES
    )
    return np.abs(field.eigenvalues.numpy() / exponential_eigenvalues(half, length, MODES) - 1)


def eigenvalues(smoke: bool = False) -> Iterator[Figure]:
    """Eigenvalues of the exponential covariance, for the published interval and random ones."""
    sizes = (100, 200, 400) if smoke else (100, 200, 400, 800, 1600)
    errors = np.array([_errors(0.5, 0.25, size)[:3].max() for size in sizes])
    yield at_most(
        "12 eigenvalues, a = 0.5, l = 0.25, 400 cells, relative", _errors(0.5, 0.25, 400).max(), 2e-3
    )
    order = -float(np.polyfit(np.log(sizes), np.log(errors), 1)[0])
    yield within("order in the mesh size", order, 1.9, 2.1, "first 3 eigenvalues")
    count = 2 if smoke else 10
    draws = NoiseStream(11, 0, count).uniforms(2, purpose=Purpose.INPUTS, dtype=torch.float64).tolist()
    worst = max(_errors(0.3 + half, 0.2 + 0.5 * length, 400).max() for half, length in draws)
    yield at_most("12 eigenvalues, random a and l, 400 cells, relative", worst, 2e-3, f"{count} draws")


def _square(size: int) -> tuple[Tensor, Tensor]:
    ticks = (torch.arange(size, dtype=torch.float64) + 0.5) / size
    return torch.cartesian_prod(ticks, ticks), torch.full((size**2,), size**-2.0, dtype=torch.float64)


def covariances(smoke: bool = False) -> Iterator[Figure]:
    """Covariance of samples against its expected error, and the kurtosis of Fourier features."""
    count, repeats = (500, 4) if smoke else (2000, 20)
    covariance = SquaredExponential(0.3)
    points, weights = _square(15)
    exact = covariance(points, points)
    norm = torch.linalg.norm(exact)
    theory = math.sqrt((1 + float(exact.trace() / norm) ** 2) / count)
    fields = {
        "Karhunen-Loeve": KarhunenLoeve.from_covariance(
            covariance, points, weights, coefficients=Coefficients.NOISE, energy=0.9999
        ),
        "Fourier features": RandomFourierFeatures(covariance, points, 100),
    }
    for name, field in fields.items():
        samples = field(torch.zeros(count * repeats, 0), NoiseStream(2, 0, count * repeats))
        groups = samples.unflatten(0, (repeats, count))
        errors = torch.linalg.matrix_norm(groups.mT @ groups / count - exact) / norm
        error = float(
            errors.square().mean().sqrt()
        )  # one error alone scatters by 20 %: few modes carry the field
        detail = f"error {error:.4f}, expected {theory:.4f}, {repeats} times {count} samples"
        yield within(f"{name}: covariance error over expected", error / theory, 0.85, 1.15, detail)
    field = RandomFourierFeatures(covariance, points[:1], 100)
    values = field(torch.zeros((100 * count), 0), NoiseStream(3, 0, (100 * count)))[:, 0]
    fourth = values**4
    gap = abs(float(fourth.mean()) - field.kurtosis) / float(fourth.std() / math.sqrt(len(values)))
    detail = f"{float(fourth.mean()):.3f}, stated {field.kurtosis}"
    yield at_most("Fourier features: kurtosis, gap in standard errors", gap, 4.9, detail)


SECTIONS: list[Section] = [eigenvalues, covariances]

if __name__ == "__main__":
    raise SystemExit(main("random_fields", SECTIONS))
