"""Exact answers: plane wave, manufactured solution, eigenmode, energy; with controls that must fail."""

from collections.abc import Callable

import numpy as np
import pytest

from benchmarks.dynamics import (
    SCHEMES,
    Mode,
    energy_history,
    growth,
    manufactured,
    mode_errors,
    orders,
    own_amplitude,
    plane_stress,
    wave,
)
from fem_bridge.assembly import Assembler
from fem_bridge.dynamics import CentralDifference, GeneralizedAlpha, Integrator, Newmark
from tests.fem_bridge.test_assembly import ASSEMBLERS


@pytest.mark.parametrize("make", ASSEMBLERS)
def test_plane_wave_converges_at_second_order_to_dalembert(make: Callable[[], Assembler]) -> None:
    assembler = make()
    errors, speeds = zip(*(wave(assembler, n) for n in (40, 80, 160)), strict=True)
    assert orders(list(errors)) == pytest.approx([2.0, 2.0], abs=0.1)
    # measured -2.1e-3 at n = 80, and second order
    assert abs(speeds[1]) < 3e-3
    assert orders([abs(s) for s in speeds]) == pytest.approx([2.0, 2.0], abs=0.1)


def test_plane_stress_is_seen_by_the_plane_wave() -> None:
    assert abs(wave(ASSEMBLERS[0].values[0](), 40, plane_stress)[1]) > 5e-2  # pyright: ignore[reportCallIssue]


@pytest.mark.slow
@pytest.mark.parametrize("make", ASSEMBLERS)
def test_wave_speed_is_within_three_in_ten_thousand(make: Callable[[], Assembler]) -> None:
    assert abs(wave(make(), 320)[1]) <= 3e-4


@pytest.mark.parametrize("scheme", SCHEMES, ids=repr)
@pytest.mark.parametrize("make", ASSEMBLERS)
def test_manufactured_solution_has_the_orders_of_linear_elements(
    make: Callable[[], Assembler], scheme: Integrator
) -> None:
    second, first = zip(*(manufactured(make(), scheme, n) for n in (10, 20, 40)), strict=True)
    assert orders(list(second)) == pytest.approx([2.0, 2.0], abs=0.2)
    assert orders(list(first)) == pytest.approx([1.0, 1.0], abs=0.1)


@pytest.mark.parametrize("scheme", [*SCHEMES, GeneralizedAlpha(0.0), GeneralizedAlpha(1.0)], ids=repr)
@pytest.mark.parametrize("make", ASSEMBLERS)
def test_mode_follows_the_schemes_own_dispersion_and_is_of_second_order(
    make: Callable[[], Assembler], scheme: Integrator
) -> None:
    own, exact = mode_errors(Mode.of(make(), scheme), scheme, [100, 200, 400])
    assert max(own) <= 1e-11
    # the sharpest damping reaches its order latest
    wide = isinstance(scheme, GeneralizedAlpha) and scheme.rho_inf == 0
    assert orders(exact) == pytest.approx([2.0, 2.0], abs=0.1 if wide else 0.02)


def test_dispersions_of_the_schemes_differ() -> None:
    amplitudes = [
        own_amplitude(scheme, 3.0, 0.01, 200)
        for scheme in (CentralDifference(), Newmark(), GeneralizedAlpha())
    ]
    gaps = [abs(a - b).max() for k, a in enumerate(amplitudes) for b in amplitudes[:k]]
    assert min(gaps) > 1e-5
    undamped = own_amplitude(GeneralizedAlpha(1.0), 3.0, 0.01, 200)
    np.testing.assert_allclose(undamped, amplitudes[1], atol=1e-12)  # rho = 1: the trapezoidal rule


@pytest.mark.parametrize("make", ASSEMBLERS)
def test_energy_is_conserved_below_the_critical_step_and_grows_above(make: Callable[[], Assembler]) -> None:
    assembler = make()
    assert abs(energy_history(assembler, 0.9, 5000, divisions=12) - 1).max() <= 1e-12
    assert growth(assembler, 0.999) < 1e3
    assert growth(assembler, 1.01) > 1e6
