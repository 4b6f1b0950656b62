"""The impact problem and its full model."""

import pickle
from pathlib import Path

import pytest
import torch

from fem_bridge.assembly.skfem import SkfemAssembler
from fem_bridge.datasets import build_ensemble
from fem_bridge.problems import FullModel, ImpactProblem, Output
from sde.noise import NoiseStream
from uq.model import Model

PROBLEM = ImpactProblem(divisions=(20, 10), num_steps=40)
MODEL = FullModel(PROBLEM, SkfemAssembler())


def test_full_model_is_a_model_and_does_not_depend_on_the_batch() -> None:
    assert isinstance(MODEL, Model)
    noise = NoiseStream(2, 0, 9)
    whole = MODEL(MODEL.draw(noise), noise)
    assert whole.shape == (9, *MODEL.output_shape)
    for rows in (slice(0, 1), slice(3, 5), slice(4, 9)):
        part = noise[rows]
        assert torch.equal(MODEL(MODEL.draw(part), part), whole[rows])
    assert MODEL(torch.zeros(0, 3), noise[:0]).shape == (0, 4)


def test_inputs_follow_their_laws() -> None:
    for problem, low, high in ((ImpactProblem.easy(), 0.35, 0.55), (ImpactProblem.hard(), 0.1, 0.25)):
        place, amplitude, duration = problem.draw(NoiseStream(0, 0, 4000)).unbind(1)
        assert 0.2 < place.min() < 0.21
        assert 0.79 < place.max() < 0.8
        assert low < duration.min() < duration.max() < high
        # 4.9 standard errors of the median and of the spread of 4000 normals: false alarm 1e-6
        assert abs(amplitude.log().median()) < 4.9 * 1.26 * 0.2 / 4000**0.5
        assert abs(amplitude.log().std() / 0.2 - 1) < 4.9 / 8000**0.5


def test_material_is_certain_in_the_zone_only() -> None:
    parts = MODEL.assembled
    modulus = parts.modulus(NoiseStream(0, 0, 20))
    inside = torch.from_numpy(parts.zone.sub.cells)
    assert torch.equal(modulus[:, inside], torch.ones(20, len(inside), dtype=torch.float64))
    assert modulus.std(0).max() > 0.1
    free = FullModel(ImpactProblem(divisions=(20, 10), num_steps=4, window_width=0.0), SkfemAssembler())
    assert free.assembled.zone_modulus(NoiseStream(0, 0, 20)).std(0).min() > 0.05


def test_total_impulse_is_that_of_the_traction() -> None:
    load = MODEL.assembled.load(torch.tensor([[0.5, 2.0, 0.4]], dtype=torch.float64))
    y = torch.linspace(0, 1, 100_001, dtype=torch.float64)
    exact = 2.0 * torch.trapezoid(torch.exp(-(((y - 0.5) / 0.15) ** 2)), y)
    assert abs(float(load.force(0.2).sum() / exact) - 1) < 1e-2  # ten facets resolve the bump to one percent
    assert float(load.force(0.41).abs().max()) == 0.0


def test_histories_start_at_rest_and_traces_are_rows_of_the_zone() -> None:
    noise = NoiseStream(2, 0, 2)
    runs = MODEL.run(MODEL.draw(noise), noise)
    assert float(runs.zone[:, 0].abs().max()) == 0.0
    interface = torch.from_numpy(MODEL.assembled.zone.interface_dofs)
    assert torch.equal(runs.traces, runs.zone[:, :, interface])
    assert FullModel(PROBLEM, SkfemAssembler(), Output.TRACES).output_shape == tuple(runs.traces.shape[1:])


def test_full_model_pickles_and_fills_an_ensemble(tmp_path: Path) -> None:
    model = pickle.loads(pickle.dumps(MODEL))
    assert model == MODEL
    assert model.fingerprint == MODEL.fingerprint
    ensemble = build_ensemble(model, tmp_path, num_samples=3, seed=0, batch=2, progress=False)
    noise = NoiseStream(0, 0, 3)
    torch.testing.assert_close(
        ensemble.load("responses"), MODEL(MODEL.draw(noise), noise), rtol=1e-12, atol=0
    )
    assert ensemble.description["responses"] == dict(zip(MODEL.output_names, MODEL.output_units, strict=True))


def test_bad_inputs_are_refused() -> None:
    noise = NoiseStream(0, 0, 2)
    with pytest.raises(ValueError, match=r"`inputs` must have shape \(2, 3\)"):
        MODEL(torch.zeros(2, 2), noise)
    with pytest.raises(ValueError, match="`inputs` must be finite; row 1"):
        MODEL(torch.tensor([[0.5, 1.0, 0.4], [0.5, torch.nan, 0.4]]), noise)
    with pytest.raises(ValueError, match="`duration` must be positive"):
        MODEL(torch.tensor([[0.5, 1.0, 0.4], [0.5, 1.0, -0.4]]), noise)
