"""Files for ParaView and plots."""

import base64
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from fem_bridge.assembly import Mesh
from fem_bridge.output import write_series, write_vtu
from fem_bridge.problems import ImpactProblem
from fem_bridge.zones import cut_zone

MESH = Mesh([[0, 0], [1, 0], [0, 1], [1, 1]], [[0, 1, 2], [1, 3, 2]])


def _decode(element: ElementTree.Element) -> np.ndarray:
    raw = base64.b64decode(element.text or "")
    kinds = {"Float64": "<f8", "Int64": "<i8", "UInt8": "<u1"}
    values = np.frombuffer(raw[8:], kinds[element.attrib["type"]])
    assert int.from_bytes(raw[:8], "little") == len(raw) - 8
    return values.reshape(-1, int(element.attrib["NumberOfComponents"]))


def test_vtu_holds_mesh_and_fields(tmp_path: Path) -> None:
    displacement = np.arange(8.0)
    path = write_vtu(tmp_path / "a.vtu", MESH, point_data={"u": displacement}, cell_data={"E": [1.0, 2.0]})
    arrays = {e.attrib["Name"]: _decode(e) for e in ElementTree.parse(path).iter("DataArray")}
    assert np.array_equal(arrays["points"][:, :2], MESH.points)
    assert np.array_equal(arrays["connectivity"].reshape(-1, 3), MESH.cells)
    assert np.array_equal(arrays["u"], np.c_[displacement.reshape(4, 2), np.zeros(4)])
    assert arrays["E"].ravel().tolist() == [1.0, 2.0]
    assert set(arrays["types"].ravel()) == {5}


def test_series_lists_its_instants(tmp_path: Path) -> None:
    times = torch.tensor([0.0, 0.5], dtype=torch.float64)
    index = write_series(tmp_path, MESH, torch.ones(2, 8), times)
    sets = list(ElementTree.parse(index).iter("DataSet"))
    assert [float(s.attrib["timestep"]) for s in sets] == [0.0, 0.5]
    assert all((tmp_path / s.attrib["file"]).exists() for s in sets)


def test_fields_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"`u` must have shape \(4,\) or \(4, 2\); got \(3,\)"):
        write_vtu(tmp_path / "a.vtu", MESH, point_data={"u": [1.0, 2.0, 3.0]})
    with pytest.raises(ValueError, match=r"`displacement` must have shape \(2, 8\)"):
        write_series(tmp_path, MESH, torch.ones(3, 8), torch.zeros(2))


def test_plots_draw(tmp_path: Path) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    from fem_bridge.plots import plot_deformed, plot_histories, plot_snapshots, plot_zone

    mesh = ImpactProblem(divisions=(20, 10)).mesh()
    zone = cut_zone(mesh, (1.0, 0.5), (1.6, 1.0))
    moves = torch.from_numpy(np.sin(mesh.points).reshape(-1))
    times = torch.linspace(0, 1, 5)
    figures = [
        plot_zone(zone, modulus=torch.ones(mesh.num_cells)),
        plot_deformed(mesh, moves),
        plot_snapshots(mesh, moves * times[:, None], times, steps=(1, 4)),
        plot_histories({"a": torch.ones(9, 5, 2), "b": torch.zeros(9, 5, 2)}, times, dof=1),
    ]
    for index, figure in enumerate(figures):
        figure.savefig(tmp_path / f"{index}.png")
        pyplot.close(figure)
