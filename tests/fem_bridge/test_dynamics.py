"""Time stepping: batches, sub-steps, kernels, gradients and refusals."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.linalg import eigh
from torch import Tensor

from benchmarks.dynamics import DENSITY, POISSON, SCHEMES, Race, gradient_error, random_modulus
from fem_bridge.assembly import rectangle
from fem_bridge.assembly.skfem import SkfemAssembler
from fem_bridge.dynamics import (
    CentralDifference,
    ElasticSystem,
    GeneralizedAlpha,
    Integrator,
    Newmark,
    SeparableLoad,
    SineSquaredPulse,
    Trajectory,
    kernel,
    simulate,
    substeps_for,
)
from sde.native import Library
from sde.noise import NoiseStream

MESH = rectangle((0.0, 0.0), (2.0, 1.0), divisions=(8, 4))
OPERATORS = SkfemAssembler().elastic(MESH, poisson=POISSON, density=DENSITY)
TOP = MESH.dofs(MESH.boundary_nodes("top"))[2:]
SYSTEM = ElasticSystem.from_operators(OPERATORS, fixed=("left",), driven=TOP)
FREE_SYSTEM = ElasticSystem.from_operators(OPERATORS, fixed=("left",))
MODULUS = random_modulus(5, MESH.num_cells, spread=0.2)
TIMES = torch.linspace(0, 2, 61, dtype=torch.float64)
SUBSTEPS = torch.tensor([1, 2, 1, 3, 2])
ALL_SCHEMES = [*SCHEMES, CentralDifference(compiled=False), GeneralizedAlpha(0.0)]


def _arguments(
    rows: slice = slice(None),
    dtype: torch.dtype = torch.float64,
    **changes: Any,
) -> dict[str, Any]:
    """Arguments of a simulation of five samples, or some of them."""
    noise = NoiseStream(4, 0, 5)
    spatial = 0.01 * noise.fork("load").normals(SYSTEM.num_dofs, dtype=torch.float64)
    shape = 0.01 * noise.fork("motion").normals(len(TOP), dtype=torch.float64)
    duration = torch.linspace(0.5, 1.5, 5, dtype=torch.float64)
    return {
        "modulus": MODULUS[rows].to(dtype),
        "times": TIMES,
        "load": SeparableLoad(spatial, SineSquaredPulse(duration)).select(torch.arange(5)[rows]),
        "motion": (shape[:, None, :] * torch.sin(3 * TIMES)[:, None] ** 2)[rows].to(dtype),
        "substeps": SUBSTEPS[rows],
        "velocity": 0.01 * noise.fork("velocity").normals(SYSTEM.num_dofs, dtype=torch.float64)[rows],
    } | changes


def _run(scheme: Integrator, system: ElasticSystem = SYSTEM, **changes: Any) -> Trajectory:
    return simulate(system, integrator=scheme, **_arguments(**changes))


@pytest.mark.parametrize("scheme", ALL_SCHEMES, ids=repr)
def test_a_sample_has_the_same_bits_in_every_batch(scheme: Integrator) -> None:
    together = _run(scheme).displacement
    for rows in (slice(0, 1), slice(1, 4), slice(3, 5)):
        alone = simulate(SYSTEM, integrator=scheme, **_arguments(rows)).displacement
        assert torch.equal(alone, together[rows])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.skipif(kernel.load().handle is None, reason="there is no C++ compiler")
def test_kernel_agrees_with_torch(dtype: torch.dtype, shared: bool) -> None:
    system = ElasticSystem.from_operators(OPERATORS, fixed=("left",), driven=TOP, dtype=dtype)
    changes = {"modulus": MODULUS[0]} if shared else {}
    ours = _run(CentralDifference(), system, **changes).displacement
    torchs = _run(CentralDifference(compiled=False), system, **changes).displacement
    # rounding of about 200 steps, each of a few ulp
    limit = 1000 * torch.finfo(dtype).eps
    assert ours.dtype == dtype
    assert float((ours - torchs).abs().max() / torchs.abs().max()) <= limit


def test_kernel_does_not_depend_on_threads() -> None:
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(_run(CentralDifference()).displacement)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("make", [Race.full, Race.zone])
@pytest.mark.parametrize("compiled", [True, False])
def test_stepping_agrees_with_a_scipy_loop(make: Callable[[int, int, int], Race], compiled: bool) -> None:
    race = make(2, 20, 100)
    exact = race.scipy(1)()
    found = race.torch(compiled=compiled)[1].numpy()
    assert abs(found - exact).max() <= 1e-12 * abs(exact).max()


def test_single_precision_is_near_double() -> None:
    system = ElasticSystem.from_operators(OPERATORS, fixed=("left",), driven=TOP, dtype=torch.float32)
    single, double = _run(CentralDifference(), system).displacement, _run(CentralDifference()).displacement
    assert float((single - double).abs().max() / double.abs().max()) <= 1e-5


@pytest.mark.parametrize("scheme", SCHEMES, ids=repr)
def test_shared_moduli_are_those_of_each_sample(scheme: Integrator) -> None:
    shared = _run(scheme, modulus=MODULUS[0]).displacement
    own = _run(scheme, modulus=MODULUS[:1].expand(5, -1)).displacement
    assert float((shared - own).abs().max() / own.abs().max()) <= 1e-12


@pytest.mark.parametrize("scheme", SCHEMES, ids=repr)
def test_prescribed_motion_is_followed_and_fixed_nodes_stay(scheme: Integrator) -> None:
    result = _run(scheme)
    motion = _arguments()["motion"]
    assert isinstance(motion, Tensor)
    # implicit schemes recompute the driven displacement from its acceleration
    torch.testing.assert_close(result.displacement[:, :, SYSTEM.driven], motion, rtol=0, atol=1e-15)
    assert float(result.displacement[:, :, SYSTEM.fixed].abs().max()) == 0


def test_observed_rows_are_those_of_the_whole() -> None:
    rows = torch.tensor([7, 3, 40])
    some = _run(CentralDifference(), observe=rows)
    assert torch.equal(some.displacement, _run(CentralDifference()).displacement[:, :, rows])


def test_substeps_of_a_finer_grid_are_its_steps() -> None:
    fine = torch.linspace(0, 2, 181, dtype=torch.float64)
    arguments = _arguments() | {"motion": None, "substeps": 3}
    coarse = simulate(FREE_SYSTEM, integrator=CentralDifference(), **arguments)
    arguments |= {"times": fine, "substeps": 1}
    full = simulate(FREE_SYSTEM, integrator=CentralDifference(), **arguments)
    scale = float(full.displacement.abs().max())
    assert float((coarse.displacement - full.displacement[:, ::3]).abs().max()) <= 1e-13 * scale


def test_critical_step_is_sharp_and_the_free_bound_is_below_it() -> None:
    exact = []
    free = FREE_SYSTEM.free.numpy()
    for modulus in MODULUS:
        stiffness = OPERATORS.stiffness(modulus.numpy()).toarray()[np.ix_(free, free)]
        exact.append(2 / eigh(stiffness, np.diag(OPERATORS.lumped_mass[free]), eigvals_only=True)[-1] ** 0.5)
    found, bound = FREE_SYSTEM.critical_step(MODULUS).numpy(), FREE_SYSTEM.safe_step(MODULUS).numpy()
    assert (found <= np.array(exact) * (1 + 1e-12)).all()
    assert (found >= np.array(exact) * (1 - 1e-4)).all()
    assert (bound <= exact).all()
    assert (bound >= 0.4 * np.array(exact)).all()


def test_substeps_follow_each_samples_stiffness() -> None:
    dt = 0.9 * float(FREE_SYSTEM.critical_step(MODULUS).min())
    stiffer = torch.cat([MODULUS, 9.5 * MODULUS])
    counts = substeps_for(FREE_SYSTEM, stiffer, dt, safety=0.95)
    assert counts[:5].tolist() == [1] * 5
    assert set(counts[5:].tolist()) <= {3, 4}
    assert (dt / counts <= 0.95 * FREE_SYSTEM.critical_step(stiffer)).all()
    assert (
        (dt / (counts - 1).clamp_min(1) > 0.95 * FREE_SYSTEM.critical_step(stiffer)) | (counts == 1)
    ).all()


def test_diverged_samples_are_nan_and_the_others_are_not() -> None:
    times = 1.2 * float(FREE_SYSTEM.critical_step(MODULUS[0])) * torch.arange(2001, dtype=torch.float64)
    substeps = torch.tensor([1, 2])
    start = NoiseStream(1, 0, 2).normals(SYSTEM.num_dofs, dtype=torch.float64)
    for compiled in (True, False):
        result = simulate(
            FREE_SYSTEM,
            modulus=MODULUS[0],
            times=times,
            integrator=CentralDifference(compiled),
            displacement=start,
            substeps=substeps,
            check_stability=False,
        )
        assert result.failed.tolist() == [True, False]
        assert bool(result.displacement[0].isnan().all())
        assert bool(result.displacement[1].isfinite().all())


def test_energy_is_that_of_the_matrices() -> None:
    u = NoiseStream(2, 0, 5).normals(SYSTEM.num_dofs, dtype=torch.float64)
    v = NoiseStream(3, 0, 5).normals(SYSTEM.num_dofs, dtype=torch.float64)
    expected = [
        (a @ (OPERATORS.stiffness(e) @ a) + b @ (OPERATORS.lumped_mass * b)) / 2
        for a, b, e in zip(u.numpy(), v.numpy(), MODULUS.numpy(), strict=True)
    ]
    torch.testing.assert_close(SYSTEM.energy(u, v, MODULUS), torch.tensor(expected), rtol=1e-12, atol=0)


def test_internal_force_passes_gradcheck() -> None:
    small = ElasticSystem.from_operators(
        SkfemAssembler().elastic(rectangle((0, 0), (1, 1), divisions=(1, 1)), poisson=0.3, density=1.0)
    )
    u = NoiseStream(2, 0, 3).normals(small.num_dofs, dtype=torch.float64).requires_grad_()
    for modulus in (random_modulus(3, 4), random_modulus(1, 4)[0]):
        assert torch.autograd.gradcheck(small.internal_force, (u, modulus.requires_grad_()))


@pytest.mark.parametrize("scheme", SCHEMES, ids=repr)
def test_gradients_agree_with_differences(scheme: Integrator) -> None:
    errors = gradient_error(scheme, steps=100, samples=2)
    assert max(errors.values()) <= 1e-7, errors


def test_gradient_in_shared_moduli_is_the_sum_over_samples() -> None:
    def slope(modulus: Tensor) -> Tensor:
        leaf = modulus.clone().requires_grad_()
        for_all = [
            _run(scheme, modulus=leaf).displacement.square().sum()
            for scheme in (CentralDifference(), Newmark())
        ]
        return torch.autograd.grad(torch.stack(for_all).sum(), leaf)[0]

    each = slope(MODULUS[:1].expand(5, -1).contiguous())
    torch.testing.assert_close(
        slope(MODULUS[0]), each.sum(0), rtol=1e-9, atol=1e-12 * float(each.abs().max())
    )


def test_progress_changes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    shown = _run(CentralDifference(), progress=True).displacement
    assert "time steps" in capsys.readouterr().err
    assert torch.equal(shown, _run(CentralDifference()).displacement)


def test_pulse_is_zero_outside_and_smooth_inside() -> None:
    pulse = SineSquaredPulse(torch.tensor([0.5, 1.0], dtype=torch.float64))
    table = pulse.table(torch.tensor([-0.1, 0.0, 0.25, 0.5, 2.0], dtype=torch.float64))
    expected = [[0, 0], [0, 0], [1, 0.5], [0, 1], [0, 0]]
    torch.testing.assert_close(table, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-15)
    assert all(torch.equal(pulse(t), row) for t, row in zip((-0.1, 0.0, 0.25, 0.5, 2.0), table, strict=True))


BAD: list[tuple[Mapping[str, Any], type[Exception], str]] = [
    ({"integrator": "central"}, TypeError, r"such as CentralDifference\(\); got 'central'"),
    (
        {"modulus": MODULUS[:, :5]},
        ValueError,
        r"`modulus` must have shape \(n, 128\) or \(128,\); got \(5, 5\)",
    ),
    ({"modulus": -MODULUS}, ValueError, r"`modulus` must be positive and finite; .* at index \[0, 0\]"),
    ({"modulus": MODULUS * float("nan")}, ValueError, "`modulus` must be positive and finite; got nan"),
    ({"modulus": MODULUS[:3]}, ValueError, "same number of samples; got modulus: 3, load: 5"),
    ({"times": TIMES[:1]}, ValueError, "`times` must hold at least 2 instants"),
    ({"times": TIMES.flip(0)}, ValueError, "`times` must be finite and increase"),
    ({"times": TIMES**2}, ValueError, "`times` must increase by equal intervals"),
    ({"motion": None}, ValueError, "`motion` must be given: the system has 16 driven"),
    (
        {"motion": torch.zeros(5, 3, 16)},
        ValueError,
        r"`motion` must have shape \(n, 61, 16\); got \(5, 3, 16\)",
    ),
    ({"motion": torch.full((5, 61, 16), float("inf"))}, ValueError, "`motion` must be finite; got 4880"),
    ({"velocity": torch.zeros(5, 3)}, ValueError, r"`velocity` must have shape \(n, 154\); got \(5, 3\)"),
    ({"substeps": 0}, ValueError, "`substeps` must be at least 1; got 0"),
    ({"substeps": 1.5}, TypeError, "`substeps` must be integers; got torch.float32"),
    (
        {"substeps": torch.ones(3, dtype=torch.int64)},
        ValueError,
        r"one integer or have shape \(5,\); got \(3,\)",
    ),
    ({"observe": torch.tensor([500])}, ValueError, "`observe` must lie from 0 to 153; got 500 to 500"),
    ({"observe": torch.tensor([0.5])}, TypeError, "`observe` must be a list of integers"),
    (
        {"times": 10 * TIMES},
        ValueError,
        r"below the critical one; got 0.\d+ s for sample 0, .* Use substeps=",
    ),
]


@pytest.mark.parametrize(("changes", "error", "message"), BAD)
def test_bad_calls_are_refused_in_one_sentence(
    changes: Mapping[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        simulate(SYSTEM, **_arguments(**({"integrator": CentralDifference(), **changes})))


BAD_OBJECTS: list[tuple[Callable[[], object], type[Exception], str]] = [
    (
        lambda: ElasticSystem.from_operators(OPERATORS, dtype=torch.float16),
        TypeError,
        "float32 or torch.float64",
    ),
    (
        lambda: ElasticSystem.from_operators(OPERATORS, fixed="left"),
        TypeError,
        r"a sequence; .* Use \('left',\)",
    ),
    (
        lambda: ElasticSystem.from_operators(OPERATORS, fixed=("west",)),
        ValueError,
        "got 'west'. It has: bottom",
    ),
    (lambda: ElasticSystem.from_operators(OPERATORS, fixed=[0.5]), TypeError, "boundary names or integers"),  # pyright: ignore[reportArgumentType]
    (
        lambda: ElasticSystem.from_operators(OPERATORS, fixed=[-1]),
        ValueError,
        "must lie from 0 to 153; got -1",
    ),
    (lambda: ElasticSystem.from_operators(OPERATORS, driven=[3, 3]), ValueError, "once; got 3 again"),
    (
        lambda: ElasticSystem.from_operators(OPERATORS, fixed=[3], driven=[3]),
        ValueError,
        "not be fixed as well",
    ),
    (
        lambda: ElasticSystem.from_operators(OPERATORS, fixed=range(154)),
        ValueError,
        "leave a degree of freedom free",
    ),
    (
        lambda: simulate(FREE_SYSTEM, **_arguments(integrator=Newmark())),
        ValueError,
        "`motion` must be None",
    ),
    (
        lambda: SYSTEM.internal_force(torch.zeros(2, 3), MODULUS),
        ValueError,
        r"`displacement` must have shape \(n, 154",
    ),
    (lambda: substeps_for(SYSTEM, MODULUS, 0.0), ValueError, "`dt` must be positive; got 0.0"),
    (
        lambda: substeps_for(SYSTEM, MODULUS, 0.1, safety=1.5),
        ValueError,
        r"`safety` must lie in \(0, 1\]; got 1.5",
    ),
    (lambda: Newmark(beta=0.1), ValueError, "2 beta >= gamma >= 1/2; got 0.1 and 0.5"),
    (lambda: GeneralizedAlpha(1.5), ValueError, r"`rho_inf` must lie in \[0, 1\]; got 1.5"),
    (lambda: SineSquaredPulse(torch.tensor([0.0])), ValueError, "`duration` must be positive"),
    (
        lambda: SeparableLoad(torch.zeros(3), SineSquaredPulse(torch.ones(3))),
        ValueError,
        r"must have shape \(n, D\)",
    ),
    (
        lambda: SeparableLoad(torch.full((1, 2), float("nan")), SineSquaredPulse(torch.ones(1))),
        ValueError,
        "finite",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD_OBJECTS)
def test_bad_objects_are_refused_in_one_sentence(
    call: Callable[[], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call()


def test_load_of_another_body_is_refused() -> None:
    load = SeparableLoad(torch.zeros(5, 4), SineSquaredPulse(torch.ones(5)))
    with pytest.raises(ValueError, match=r"`load` must give forces of shape \(n, 154\); got 4"):
        simulate(SYSTEM, integrator=Newmark(), **_arguments(load=load))


def test_kernel_without_compiler_falls_back_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = _run(CentralDifference(compiled=False)).displacement
    monkeypatch.setattr(kernel, "load", lambda: Library(None, "no compiler"))
    assert torch.equal(_run(CentralDifference()).displacement, expected)


def test_critical_step_grows_with_the_root_of_the_mass() -> None:
    heavier = ElasticSystem.from_operators(
        replace(OPERATORS, lumped_mass=2 * OPERATORS.lumped_mass), fixed=("left",)
    )
    ratio = heavier.critical_step(MODULUS) / FREE_SYSTEM.critical_step(MODULUS)
    torch.testing.assert_close(ratio, torch.full_like(ratio, 2**0.5), rtol=1e-4, atol=0)
