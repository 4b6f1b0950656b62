"""Compression of interface histories."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fem_bridge.traces import TimeCompression, TraceCompression, TraceSpace, relative_error
from sde.noise import NoiseStream

TIMES = torch.linspace(0, 1, 41, dtype=torch.float64)


def _traces(num: int = 40, start: int = 0) -> Tensor:
    """Histories of six random harmonics, at five degrees of freedom."""
    normals = NoiseStream(5, start, start + num).normals(6, channels=5, dtype=torch.float64)
    waves = torch.sin(math.pi * torch.arange(1, 7, dtype=torch.float64)[:, None] * TIMES)
    return torch.einsum("nkd,kt->ntd", normals, waves)


def test_time_compression_has_fourth_order() -> None:
    wave = torch.sin(2 * math.pi * TIMES).reshape(1, -1, 1)
    strides = (1, 2, 4)
    errors = [relative_error((c := TimeCompression(TIMES, k)).decode(c.encode(wave)), wave) for k in strides]
    assert errors[0] == 0
    assert 3.5 < math.log2(errors[2] / errors[1]) < 5.5


def test_last_instant_is_always_stored() -> None:
    assert TimeCompression(TIMES[:39], 4).kept.tolist()[-2:] == [36, 38]


def test_coefficients_are_white_over_the_training_set() -> None:
    traces = _traces()
    compression = TraceCompression.fit(traces, TIMES, stride=2, num_modes=7)
    coefficients = compression.encode(traces)
    assert coefficients.mean(0).abs().max() < 1e-12
    torch.testing.assert_close(coefficients.T.cov(), torch.eye(7, dtype=torch.float64), rtol=0, atol=1e-10)
    modes = compression.modes.flatten(1)
    torch.testing.assert_close(modes @ modes.T, torch.eye(7, dtype=torch.float64), rtol=0, atol=1e-13)


def test_errors_are_those_of_the_round_trip_and_fall_with_modes() -> None:
    train, held_out = _traces(), _traces(20, start=100)
    totals = []
    for count in (5, 15, 25):
        compression = TraceCompression.fit(train, TIMES, stride=2, num_modes=count)
        errors = compression.errors(held_out)
        restored = compression.decode(compression.encode(held_out))
        assert errors.total == pytest.approx(relative_error(restored, held_out), rel=1e-12)
        assert compression.errors(train).modes < errors.modes
        totals.append(errors.total)
    assert totals[0] > totals[1] > totals[2]


def test_energy_chooses_the_number_of_modes() -> None:
    compression = TraceCompression.fit(_traces(), TIMES, stride=1, energy=0.9)
    count = compression.num_modes
    assert compression.energies[:count].sum() >= 0.9 > compression.energies[: count - 1].sum()


def test_decoding_is_differentiable() -> None:
    compression = TraceCompression.fit(_traces(), TIMES, stride=4, num_modes=3)
    coefficients = torch.ones(2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(compression.decode, coefficients)


def test_saved_compression_is_the_same(tmp_path: Path) -> None:
    compression = TraceCompression.fit(_traces(), TIMES, num_modes=3)
    compression.save(tmp_path / "compression.pt")
    loaded = TraceCompression.load(tmp_path / "compression.pt")
    assert torch.equal(loaded.encode(_traces()), compression.encode(_traces()))
    torch.save({"a": 1}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="must come from a saved TraceCompression"):
        TraceCompression.load(tmp_path / "other.pt")


def test_trace_space_counts() -> None:
    space = TraceSpace(TIMES, torch.zeros(3, 2))
    assert (space.num_times, space.num_dofs) == (41, 6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: TimeCompression(TIMES, 0), "`stride` must be at least 1; got 0"),
        (lambda: TimeCompression(TIMES, 20), "`stride` must leave at least 4 stored instants; 20 leaves 3"),
        (lambda: TimeCompression(TIMES.flip(0), 2), "`times` must increase strictly"),
        (lambda: TraceCompression.fit(_traces()[:1], TIMES), "must hold at least 2 histories; got 1"),
        (lambda: TraceCompression.fit(_traces() * torch.nan, TIMES), "`traces` must be finite"),
        (lambda: TraceCompression.fit(_traces(), TIMES, num_modes=99), "`num_modes` must lie between 1 and"),
        (
            lambda: TraceCompression.fit(_traces(), TIMES, energy=1.5),
            r"`energy` must lie in \(0, 1\]; got 1.5",
        ),
        (lambda: TraceCompression.fit(torch.ones(5, 41, 2), TIMES), "must differ from each other"),
        (lambda: TraceCompression.fit(_traces(), TIMES[:-1]), "`times` must have shape"),
    ],
)
def test_bad_compressions_are_refused(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
