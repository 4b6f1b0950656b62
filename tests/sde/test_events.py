"""First passage with the crossings between steps."""

import math
from statistics import NormalDist

import pytest
import torch

from sde import CIR, SDE, NoiseStream, NoiseStructure, first_passage
from tests.statistics import assert_mean

_F64 = torch.float64
_WALK = SDE(lambda t, x: 0.5 + 0 * x, lambda t, x: torch.ones_like(x))


def _law(t: float) -> float:
    """Probability that Brownian motion with drift 1/2 reaches 1 by time t."""
    normal = NormalDist().cdf
    return normal((0.5 * t - 1) / math.sqrt(t)) + math.e * normal((-1 - 0.5 * t) / math.sqrt(t))


@pytest.mark.parametrize("steps", [1, 2, 10])
def test_passage_has_its_law_for_any_step(steps: int) -> None:
    n = 200_000
    times = torch.linspace(0, 1, steps + 1, dtype=_F64)
    found = first_passage(_WALK, torch.zeros(n, 1, dtype=_F64), times, NoiseStream(5, 0, n), level=1.0)
    for t in (0.25, 0.33, 0.5, 0.77, 1.0):
        assert_mean((found.times <= t).double(), _law(t), bias=0.02)
    assert bool(found.final.isnan().all(1).eq(found.times.isfinite()).all())


def test_looking_at_the_ends_alone_misses_crossings() -> None:
    n = 200_000
    arguments = (torch.zeros(n, 1, dtype=_F64), torch.linspace(0, 1, 11, dtype=_F64), NoiseStream(5, 0, n))
    naive = first_passage(_WALK, *arguments, level=1.0, bridge=False)
    # The continuity correction of Broadie, Glasserman and Kou: a level higher by 0.5826 sqrt(h)
    shifted = 1 + 0.5826 * math.sqrt(0.1)
    normal = NormalDist().cdf
    corrected = normal(0.5 - shifted) + math.exp(shifted) * normal(-shifted - 0.5)
    assert abs(naive.probability - corrected) < 0.02  # the correction is asymptotic in the step
    assert naive.probability < _law(1.0) - 0.05


def test_level_below_and_other_component_and_batches() -> None:
    noise = NoiseStream(2, 0, 500)
    start, times = torch.tensor([[5.0, 0.0]]).repeat(500, 1), torch.linspace(0, 1, 9)
    down = SDE(lambda t, x: 0 * x, lambda t, x: torch.ones_like(x), NoiseStructure.ADDITIVE)
    whole = first_passage(down, start, times, noise, level=-0.5, component=1)
    assert 0.4 < whole.probability < 0.8  # 2 Phi(-1/2) = 0.617
    part = first_passage(down, start[:20], times, noise[100:120], level=-0.5, component=1)
    assert torch.equal(part.times, whole.times[100:120])


def test_matrix_noise_is_refused() -> None:
    sde = SDE(lambda t, x: x, lambda t, x: x.unsqueeze(-1), NoiseStructure.GENERAL, noise_dim=1)
    with pytest.raises(ValueError, match="`sde` must have noise of one process per component"):
        first_passage(sde, torch.zeros(3, 1), torch.linspace(0, 1, 3), NoiseStream(0, 0, 3), level=1.0)


def test_equation_of_another_form_is_refused() -> None:
    cir = CIR(2.0, 0.09, 0.3)
    with pytest.raises(ValueError, match=r"`sde` must be an SDE; got CIR. Take its as_sde\(\)"):
        first_passage(cir, torch.ones(3, 1), torch.linspace(0, 1, 3), NoiseStream(0, 0, 3), level=0.5)  # type: ignore[arg-type]
