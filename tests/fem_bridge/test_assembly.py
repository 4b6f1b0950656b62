"""Meshes, operators of both assemblers, and files of operators."""

import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from benchmarks.dynamics import operator_differences, random_modulus, relative
from fem_bridge.assembly import (
    Assembler,
    Mesh,
    default_assembler,
    load_operators,
    plane_strain_elasticity,
    rectangle,
    save_operators,
)
from fem_bridge.assembly.skfem import SkfemAssembler

MESH = rectangle((0.0, 0.0), (2.0, 1.0), divisions=(8, 4))
MODULUS = random_modulus(1, MESH.num_cells)[0].numpy()


def dolfinx_assembler() -> Assembler:
    """The DOLFINx assembler, or a skip."""
    module = pytest.importorskip("fem_bridge.assembly.dolfinx")
    try:
        return module.DolfinxAssembler()
    except ImportError:
        pytest.skip("DOLFINx is not installed")


ASSEMBLERS = [
    pytest.param(SkfemAssembler, id="scikit-fem"),
    pytest.param(dolfinx_assembler, id="dolfinx", marks=pytest.mark.fem),
]


def test_rectangle_has_the_area_the_boundaries_and_no_node_twice() -> None:
    assert MESH.areas.sum() == pytest.approx(2.0, rel=1e-14)
    assert {name: len(facets) for name, facets in MESH.boundaries.items()} == {
        "left": 4,
        "right": 4,
        "bottom": 8,
        "top": 8,
    }
    assert len(np.unique(MESH.points, axis=0)) == MESH.num_nodes == 9 * 5 + 32
    assert (MESH.points[MESH.boundary_nodes("right"), 0] == 2.0).all()


def test_restriction_keeps_points_cells_and_the_facets_of_kept_cells() -> None:
    zone = MESH.restrict(MESH.centroids[:, 0] < 0.5)
    assert (zone.mesh.points == MESH.points[zone.nodes]).all()
    assert (zone.nodes[zone.mesh.cells] == MESH.cells[zone.cells]).all()
    assert [len(zone.mesh.facets(name)) for name in ("left", "right", "bottom", "top")] == [4, 0, 2, 2]
    again = MESH.restrict(zone.cells)
    assert (again.cells == zone.cells).all()
    assert (zone.dofs.reshape(-1, 2) // 2 == zone.nodes[:, None]).all()


def test_nearest_node_and_dofs() -> None:
    node = MESH.nearest_node((1.99, 0.52))
    assert MESH.points[node].tolist() == [2.0, 0.5]
    assert MESH.dofs([3, 5]).tolist() == [6, 7, 10, 11]


def test_mesh_is_read_only() -> None:
    with pytest.raises(ValueError, match="read-only"):
        MESH.points[0] = 1.0


@pytest.mark.parametrize("make", ASSEMBLERS)
def test_rigid_motions_have_no_strain_and_stretching_has_the_exact_one(make: Callable[[], Assembler]) -> None:
    strain = make().elastic(MESH, poisson=0.3, density=1.0).strain
    x, y = MESH.points.T
    fields = {
        "translation": (np.stack([1 + 0 * x, -2 + 0 * x], 1), [0, 0, 0]),
        "rotation": (np.stack([-y, x], 1), [0, 0, 0]),
        "stretch": (np.stack([3 * x, 2 * y], 1), [3, 2, 0]),
        "shear": (np.stack([y, 0 * x], 1), [0, 0, 1]),
    }
    for field, expected in fields.values():
        np.testing.assert_allclose(
            (strain @ field.ravel()).reshape(-1, 3), [expected] * MESH.num_cells, atol=1e-13
        )


@pytest.mark.parametrize("make", ASSEMBLERS)
def test_masses_and_boundary_masses_sum_to_the_body(make: Callable[[], Assembler]) -> None:
    assembler = make()
    operators = assembler.elastic(MESH, poisson=0.3, density=1.7)
    assert operators.lumped_mass.sum() == pytest.approx(2 * 1.7 * 2.0, rel=1e-13)
    rows = np.asarray(operators.consistent_mass.sum(1)).ravel()
    np.testing.assert_allclose(rows, operators.lumped_mass, rtol=1e-13)
    lengths = {name: matrix.sum() / 2 for name, matrix in operators.boundary_mass.items()}
    assert lengths == pytest.approx({"left": 1.0, "right": 1.0, "bottom": 2.0, "top": 2.0}, rel=1e-13)
    assert assembler.scalar_mass(MESH).sum() == pytest.approx(2.0, rel=1e-13)


@pytest.mark.parametrize("make", ASSEMBLERS)
def test_stiffness_from_operators_is_the_assemblers_own(make: Callable[[], Assembler]) -> None:
    assembler = make()
    ours = assembler.elastic(MESH, poisson=0.3, density=1.0).stiffness(MODULUS)
    assert relative(ours, assembler.stiffness(MESH, MODULUS, poisson=0.3)) <= 1e-13
    assert relative(ours, assembler.stiffness(MESH, MODULUS, poisson=0.31)) >= 1e-3


@pytest.mark.fem
def test_dolfinx_and_scikit_fem_agree() -> None:
    theirs = dolfinx_assembler().elastic(MESH, poisson=0.3, density=1.7)
    ours = SkfemAssembler().elastic(MESH, poisson=0.3, density=1.7)
    errors = operator_differences(theirs, ours, MODULUS)
    assert max(errors.values()) <= 1e-13, errors
    assert len(errors) == 9
    mass = dolfinx_assembler().scalar_mass(MESH), SkfemAssembler().scalar_mass(MESH)
    assert relative(*mass) <= 1e-13


@pytest.mark.fem
def test_dolfinx_agrees_on_a_restricted_and_shuffled_mesh() -> None:
    zone = MESH.restrict((MESH.centroids[:, 0] > 0.5) & (MESH.centroids[:, 1] > 0.5)).mesh
    order = np.random.default_rng(0).permutation(zone.num_nodes)
    rank = np.argsort(order)
    shuffled = Mesh(
        zone.points[order],
        rank[zone.cells][::-1, [1, 2, 0]],
        {name: rank[facets][:, ::-1] for name, facets in zone.boundaries.items()},
    )
    arguments = {"poisson": 0.25, "density": 2.0}
    first = dolfinx_assembler().elastic(shuffled, **arguments)
    second = SkfemAssembler().elastic(shuffled, **arguments)
    errors = operator_differences(first, second, MODULUS[: zone.num_cells])
    assert max(errors.values()) <= 1e-13, errors


@pytest.mark.fem
def test_mesh_comes_back_from_dolfinx_with_its_boundaries() -> None:
    dolfinx_assembler()
    import dolfinx
    from mpi4py import MPI

    from fem_bridge.assembly.dolfinx import mesh_from_dolfinx

    theirs = dolfinx.mesh.create_unit_square(MPI.COMM_SELF, 4, 3)
    facets = dolfinx.mesh.locate_entities_boundary(theirs, 1, lambda x: np.isclose(x[0], 0.0))
    tags = dolfinx.mesh.meshtags(theirs, 1, np.sort(facets), np.full(len(facets), 7, dtype=np.int32))
    mesh = mesh_from_dolfinx(theirs, tags, names={7: "inlet"})
    assert mesh.areas.sum() == pytest.approx(1.0, rel=1e-13)
    assert (mesh.num_cells, len(mesh.facets("inlet"))) == (24, 3)
    assert (mesh.points[mesh.boundary_nodes("inlet"), 0] == 0).all()


def test_operators_come_back_from_a_file(tmp_path: Path) -> None:
    operators = SkfemAssembler().elastic(MESH, poisson=0.3, density=1.7)
    save_operators(operators, tmp_path / "plate.npz")
    again = load_operators(tmp_path / "plate.npz")
    assert max(operator_differences(again, operators, MODULUS).values()) == 0
    assert (again.poisson, again.density, again.assembler) == (0.3, 1.7, operators.assembler)


def test_damaged_file_of_operators_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "plate.npz"
    save_operators(SkfemAssembler().elastic(MESH, poisson=0.3, density=1.7), path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match="`path` must be a file of operators"):
        load_operators(path)
    with pytest.raises(FileNotFoundError):
        load_operators(tmp_path / "none.npz")


def test_default_assembler_falls_back_to_scikit_fem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dolfinx", None)
    monkeypatch.delitem(sys.modules, "fem_bridge.assembly.dolfinx", raising=False)
    assert default_assembler() == SkfemAssembler()


def test_missing_packages_say_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dolfinx", None)
    monkeypatch.setitem(sys.modules, "skfem", None)
    from fem_bridge.assembly.dolfinx import DolfinxAssembler

    with pytest.raises(ImportError, match="apt install python3-dolfinx"):
        DolfinxAssembler()
    with pytest.raises(ImportError, match=re.escape("pip install 'sdeuq[fem]'")):
        SkfemAssembler()


BAD: list[tuple[Callable[[], object], type[Exception], str]] = [
    (
        lambda: MESH.facets("inside"),
        ValueError,
        "must be a boundary of the mesh; got 'inside'. It has: bottom, left",
    ),
    (lambda: MESH.nearest_node((0.0, float("nan"))), ValueError, "`point` must be two finite coordinates"),
    (lambda: MESH.restrict(np.zeros(MESH.num_cells, bool)), ValueError, "must keep at least one cell"),
    (lambda: MESH.restrict(np.ones(3, bool)), ValueError, r"must have shape \(128,\); got \(3,\)"),
    (lambda: MESH.restrict([999]), ValueError, "must lie from 0 to 127; got 999"),
    (lambda: MESH.restrict([0.5]), TypeError, "must be booleans or integers; got float64"),
    (lambda: rectangle((0, 0), (1, 1), divisions=(0, 2)), ValueError, "two integers of at least 1"),
    (lambda: rectangle((0, 0), (0, 1), divisions=(2, 2)), ValueError, "must exceed `lower` along both axes"),
    (lambda: Mesh([[0, 0]], [[0, 0, 0]]), ValueError, "triangles of positive area; got 1 without"),
    (lambda: Mesh([[0, 0, 0]], [[0, 0, 0]]), ValueError, r"`points` must have shape \(N, 2\)"),
    (lambda: Mesh([[0, float("nan")]], [[0, 0, 0]]), ValueError, "`points` must be finite; .* at node 0"),
    (lambda: Mesh([[0, 0], [1, 0], [0, 1]], [[0, 1, 3]]), ValueError, "node numbers from 0 to 2; got 0 to 3"),
    (
        lambda: Mesh([[0, 0], [1, 0], [0, 1]], [[0.0, 1.0, 2.0]]),
        TypeError,
        "`cells` must hold integers; got float64",
    ),
    (lambda: Mesh(MESH.points, MESH.cells, {"cut": [[0, 76]]}), ValueError, "edges of exactly one cell"),
    (lambda: plane_strain_elasticity(0.5), ValueError, r"`poisson` must lie in \(-1, 0.5\); got 0.5"),
    (
        lambda: SkfemAssembler().elastic(MESH, poisson=0.3, density=0.0),
        ValueError,
        "`density` must be positive",
    ),
    (
        lambda: SkfemAssembler().stiffness(MESH, [1.0], poisson=0.3),
        ValueError,
        r"shape \(128,\), one per cell",
    ),
    (
        lambda: SkfemAssembler().stiffness(MESH, -MODULUS, poisson=0.3),
        ValueError,
        "positive and finite; .* at cell 0",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_bad_input_is_refused_in_one_sentence(
    call: Callable[[], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call()
