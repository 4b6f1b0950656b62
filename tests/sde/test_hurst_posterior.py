"""The posterior of the Hurst index against dense Gaussian algebra on a fine grid."""

import math

import pytest
import torch
from torch import Tensor

from sde import NoiseStream
from sde.hurst import HurstEstimate, HurstPosterior, markov_likelihood, markov_posterior, whittle
from sde.hurst.kalman import markov_model
from sde.noise import fbm_path

_F64 = torch.float64
_TIMES = torch.arange(49, dtype=_F64)


def _data(seed: int, noise: float = 0.5) -> Tensor:
    stream = NoiseStream(seed, 0, 1)
    path = fbm_path(0.4, stream, 48, dtype=_F64)[0]
    return 2.0 * path + noise * stream.normals(49, dtype=_F64)[0] + 3.0


def _dense(values: Tensor, indices: Tensor) -> Tensor:
    """Posterior density by differences (the level is free), the scale integrated, a sum over the noise."""
    model = markov_model(_TIMES, values, 6).model
    ratios = torch.linspace(math.log(1e-3), math.log(1e3), 120, dtype=_F64).exp()
    differences, unit = values.diff(), torch.eye(49, dtype=_F64)
    logs = []
    for h in indices.tolist():
        covariance = model.covariance(_TIMES, _TIMES, h)
        whole = covariance + ratios.square()[:, None, None] * unit
        free = whole.diff(dim=1).diff(dim=2)
        factor = torch.linalg.cholesky(free)
        white = torch.linalg.solve_triangular(
            factor, differences.expand(len(ratios), -1)[..., None], upper=False
        )
        log_det = 2 * factor.diagonal(dim1=1, dim2=2).log().sum(1)
        logs.append((-0.5 * log_det - 0.5 * 48 * white.square().sum((1, 2)).log()).logsumexp(0))
    curve = torch.stack(logs)
    density = (curve - curve.max()).exp()
    return density / torch.trapezoid(density, indices)


@pytest.fixture(scope="module")
def found() -> tuple[Tensor, HurstEstimate, HurstPosterior]:
    values = _data(1)
    estimate = markov_likelihood(_TIMES, values, num_rates=6)
    return values, estimate, markov_posterior(_TIMES, values, estimate, num_rates=6)


def test_posterior_is_that_of_dense_algebra(found: tuple[Tensor, HurstEstimate, HurstPosterior]) -> None:
    values, _, law = found
    indices = law.index[::40]
    dense = HurstPosterior(indices, _dense(values, indices))
    assert float(torch.trapezoid(law.density, law.index)) == pytest.approx(1.0, abs=1e-9)
    # The grid of the noise is coarse: a twentieth of a posterior deviation is what it may cost.
    deviation = float(dense.deviation)
    assert abs(float(law.mean - dense.mean)) < 0.05 * deviation
    assert abs(float(law.deviation) / deviation - 1) < 0.05
    for level in (0.5, 0.95):
        for one, other in zip(law.interval(level), dense.interval(level), strict=True):
            assert abs(float(one - other)) < 0.1 * deviation + 0.02  # the spacing of the dense grid


def test_a_prior_moves_the_posterior(found: tuple[Tensor, HurstEstimate, HurstPosterior]) -> None:
    values, estimate, law = found
    low = markov_posterior(_TIMES, values, estimate, log_prior=lambda h: -60 * h, num_rates=6)
    assert float(low.mean) < float(law.mean) - 0.2 * float(law.deviation)
    reweighted = law.density * (-60 * law.index).exp()
    mean = torch.trapezoid(law.index * reweighted, law.index) / torch.trapezoid(reweighted, law.index)
    assert float(low.mean) == pytest.approx(float(mean), abs=1e-6)


def test_wrong_use_is_refused(found: tuple[Tensor, HurstEstimate, HurstPosterior]) -> None:
    values, _, law = found
    with pytest.raises(ValueError, match="`estimate` must hold a scale and a noise level"):
        markov_posterior(_TIMES, values, whittle(values))
    with pytest.raises(ValueError, match="`level` must lie in"):
        law.interval(1.0)
