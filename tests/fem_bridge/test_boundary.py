"""Generators of interface histories."""

import pytest
import torch
from torch import Tensor

from fem_bridge.boundary import BoundaryGenerator, WassersteinFit, train_boundary_generator
from fem_bridge.traces import TraceCompression
from sde.noise import NoiseStream
from uq.baselines import Bootstrap, PodGaussian
from uq.model import Model
from uq.training import WassersteinSettings

TIMES = torch.linspace(0, 1, 21, dtype=torch.float64)
NOTHING = torch.zeros(50, 0)


def _traces() -> Tensor:
    return NoiseStream(1, 0, 60).normals(21, channels=4, dtype=torch.float64).cumsum(1)


@pytest.mark.parametrize("fit", [PodGaussian, Bootstrap])
def test_histories_do_not_depend_on_the_batch(fit: type) -> None:
    boundary = train_boundary_generator(
        TraceCompression.fit(_traces(), TIMES, stride=2, num_modes=6), _traces(), fit
    )
    noise = NoiseStream(3, 0, 50)
    whole = boundary(NOTHING, noise)
    assert isinstance(boundary, Model)
    assert whole.shape == (50, 21, 4)
    for rows in (slice(0, 1), slice(7, 20)):
        part = noise[rows]
        assert torch.equal(boundary(torch.zeros(len(part), 0), part), whole[rows])


def test_bootstrap_gives_back_compressed_training_histories() -> None:
    traces = _traces()
    boundary = train_boundary_generator(
        TraceCompression.fit(traces, TIMES, stride=1, num_modes=59), traces, Bootstrap
    )
    drawn = boundary(NOTHING, NoiseStream(3, 0, 50))
    nearest = torch.cdist(drawn.flatten(1), traces.flatten(1)).min(1).values
    assert nearest.max() < 1e-4  # coefficients are float32


def test_conditions_reach_the_generator() -> None:
    loads = NoiseStream(9, 0, 60).normals(1, dtype=torch.float64)
    traces = loads[:, :, None] * TIMES[None, :, None] + 1e-3 * _traces()
    boundary = train_boundary_generator(
        TraceCompression.fit(traces, TIMES, stride=2, num_modes=3), traces, PodGaussian, conditions=loads
    )
    low, high = (boundary(torch.full((50, 1), x), NoiseStream(3, 0, 50))[:, -1, 0] for x in (-1.0, 1.0))
    assert boundary.input_dim == 1
    assert abs(float((high - low).mean()) - 2.0) < 0.05


def test_wasserstein_fit_gives_histories_and_its_diagnostics() -> None:
    fit = WassersteinFit(0, WassersteinSettings(iterations=2, batch=16, log_every=1), progress=False)
    boundary = train_boundary_generator(
        TraceCompression.fit(_traces(), TIMES, stride=2, num_modes=4), _traces(), fit
    )
    assert boundary(NOTHING, NoiseStream(3, 0, 50)).shape == (50, 21, 4)
    assert len(fit.history["critic_gap"]) == len(fit.history["iteration"]) > 0


def test_generators_that_do_not_fit_are_refused() -> None:
    compression = TraceCompression.fit(_traces(), TIMES, num_modes=5)
    with pytest.raises(ValueError, match="`generator` must give 5 coefficients, one per mode"):
        BoundaryGenerator(compression, PodGaussian(torch.eye(3)))
    boundary = train_boundary_generator(
        TraceCompression.fit(_traces(), TIMES, num_modes=5), _traces(), PodGaussian
    )
    with pytest.raises(ValueError, match=r"`inputs` must have shape \(50, 0\)"):
        boundary(torch.zeros(50, 2), NoiseStream(0, 0, 50))
