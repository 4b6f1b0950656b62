"""The submodel against the restricted full model, with negative controls."""

import pytest
import torch
from torch import Tensor

from fem_bridge.assembly import Assembler
from fem_bridge.assembly.skfem import SkfemAssembler
from fem_bridge.problems import FullModel, ImpactProblem, ImpactRuns, Output
from fem_bridge.submodel import Submodel
from fem_bridge.zones import ZoneResponse, cut_zone, interface_nodes
from sde.noise import NoiseStream

PROBLEM = ImpactProblem(divisions=(20, 10), num_steps=240)
NOISE = NoiseStream(seed=11, start=3, stop=6)


class _Replay:
    """A model that gives stored histories, sample by sample."""

    def __init__(self, traces: Tensor, first: int) -> None:
        self.traces, self.first = traces, first
        self.input_dim, self.output_shape = 0, tuple(traces.shape[1:])

    def __call__(self, inputs: Tensor, noise: NoiseStream) -> Tensor:
        return self.traces[noise.start - self.first : noise.stop - self.first]


def _assemblers() -> list[object]:
    try:
        from fem_bridge.assembly.dolfinx import DolfinxAssembler

        return [SkfemAssembler(), pytest.param(DolfinxAssembler(), marks=pytest.mark.fem)]
    except ImportError:
        skip = pytest.mark.skip(reason="DOLFINx is not installed")
        return [SkfemAssembler(), pytest.param(None, marks=[pytest.mark.fem, skip])]


def _full(assembler: Assembler, problem: ImpactProblem = PROBLEM) -> tuple[FullModel, ImpactRuns]:
    model = FullModel(problem, assembler)
    return model, model.run(model.draw(NOISE), NOISE)


def _error(zone: Tensor, runs: ImpactRuns) -> float:
    """Largest error away from the driven nodes over the largest displacement there, worst sample."""
    driven = cut_zone(PROBLEM.mesh(), PROBLEM.zone_lower, PROBLEM.zone_upper).interface_dofs
    free = torch.ones(zone.shape[-1], dtype=torch.bool)
    free[torch.from_numpy(driven)] = False
    zone, exact = zone[..., free], runs.zone[..., free]
    return float(((zone - exact).abs().amax((1, 2)) / exact.abs().amax((1, 2))).max())


@pytest.mark.parametrize("assembler", _assemblers())
def test_submodel_equals_the_restricted_full_model(assembler: Assembler) -> None:
    _, runs = _full(assembler)
    submodel = Submodel(PROBLEM, _Replay(runs.traces, 3), assembler, output=Output.ZONE)
    assert _error(submodel(torch.zeros(3, 0), NOISE), runs) <= 1e-12
    assert torch.allclose(submodel.respond(runs.traces), runs.responses, rtol=1e-11, atol=0)


@pytest.mark.parametrize("assembler", _assemblers())
def test_one_percent_error_on_a_seventh_of_the_interface_is_seen(assembler: Assembler) -> None:
    _, runs = _full(assembler)
    submodel = Submodel(PROBLEM, _Replay(runs.traces, 3), assembler)
    wrong = runs.traces.clone()
    wrong[:, :, ::7] *= 1.01
    assert _error(submodel.drive(wrong, submodel.assembled.zone_modulus(NOISE)), runs) >= 1e-3


def test_old_interface_histories_are_wrong_for_a_new_zone_material() -> None:
    problem = ImpactProblem(divisions=(20, 10), num_steps=240, window_width=0.0)
    model, runs = _full(SkfemAssembler(), problem)
    submodel = Submodel(problem, _Replay(runs.traces, 3), model.assembler)
    own = submodel.assembled.zone_modulus(NOISE)
    other = submodel.assembled.zone_modulus(NOISE.fork("other material"))
    assert _error(submodel.drive(runs.traces, own), runs) <= 1e-12
    assert _error(submodel.drive(runs.traces, other), runs) >= 5e-2


def test_other_time_steps_are_seen() -> None:
    model, runs = _full(SkfemAssembler())
    submodel = Submodel(PROBLEM, _Replay(runs.traces, 3), model.assembler)
    zone = submodel.drive(runs.traces, submodel.assembled.zone_modulus(NOISE), substeps=2)
    assert 1e-6 < _error(zone, runs) < 1e-1


def test_zone_has_the_known_sizes_and_no_interface_on_the_free_edge() -> None:
    zone = cut_zone(ImpactProblem.easy().mesh(), (1.0, 0.5), (1.6, 1.0))
    assert (zone.mesh.num_cells, zone.mesh.num_dofs, len(zone.interface_dofs)) == (1080, 1148, 98)
    x, y = zone.points.T
    assert (((abs(x - 1.0) < 1e-9) | (abs(x - 1.6) < 1e-9)) | (abs(y - 0.5) < 1e-9)).all()
    assert (zone.parent.points[zone.sub.nodes] == zone.mesh.points).all()


def test_bad_zones_and_boundaries_are_refused() -> None:
    mesh = PROBLEM.mesh()
    with pytest.raises(ValueError, match="the box holds no cell"):
        cut_zone(mesh, (5.0, 5.0), (6.0, 6.0))
    with pytest.raises(ValueError, match="the box holds all cells"):
        cut_zone(mesh, (-1.0, -1.0), (6.0, 6.0))
    with pytest.raises(ValueError, match="`upper` must exceed `lower`"):
        cut_zone(mesh, (1.0, 1.0), (0.5, 2.0))
    with pytest.raises(ValueError, match="`cells` must be 800 booleans"):
        interface_nodes(mesh, torch.ones(3, dtype=torch.bool).numpy())
    with pytest.raises(ValueError, match="`points` must lie in the mesh"):
        ZoneResponse(mesh, [(3.0, 0.5)])
    with pytest.raises(ValueError, match=r"`boundary` must give histories of shape \(241, "):
        Submodel(PROBLEM, _Replay(torch.zeros(1, 5, 4), 0), SkfemAssembler())
