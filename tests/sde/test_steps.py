"""What every scheme promises: any state shape, transforms, deterministic order, estimates, exact reversal."""

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.func import jvp, vmap

from sde import SDE, Calculus, NoiseStream, NoiseStructure, ode, solve, solvers
from sde.grid import make_grid
from sde.march import Plan
from sde.noise import WienerIncrements
from sde.noise.increments import Areas, Increment, Law
from sde.solvers import EmbeddedSolver, LogODE, MilsteinLevy, ReversibleHeun, Solver

_SCHEMES = [
    kind
    for kind in vars(solvers).values()
    if getattr(kind, "equation", None) is SDE and kind is not solvers.OneStep
]
_ORDINARY = [
    kind for kind in _SCHEMES if NoiseStructure.NONE in kind.orders and kind is not solvers.ThetaEuler
]
_SHAPED = [kind for kind in _SCHEMES if NoiseStructure.DIAGONAL in kind.orders]
_PAIRS = [
    pytest.param(kind(), structure, id=f"{kind.__name__}, {structure.value}")
    for kind in _SCHEMES
    for structure in kind.orders
    if kind.law is Law.NORMAL and kind is not solvers.ThetaEuler
]
_ADDITIVE = [
    kind() for kind in _SCHEMES if kind.areas is Areas.SPACE_TIME and NoiseStructure.ADDITIVE in kind.orders
]
_ESTIMATES = [
    pytest.param(scheme, structure, id=pair.id)
    for pair in _PAIRS
    for scheme, structure in [pair.values]
    if hasattr(scheme, "step_with_error")
]


def _equation(scheme: Solver, structure: NoiseStructure) -> SDE:
    """A nonlinear equation of a structure, whose coefficients depend on time."""
    if structure is NoiseStructure.NONE:
        return ode(lambda t, x: -(1 + t) * x.sin())
    diffusion = {
        NoiseStructure.ADDITIVE: lambda t, x: (0.3 * (1 + t)).expand_as(x),
        NoiseStructure.DIAGONAL: lambda t, x: 0.3 * (1 + t) * x.cos(),
        NoiseStructure.SCALAR: lambda t, x: 0.3 * (1 + t) * x.cos(),
        NoiseStructure.COMMUTATIVE: lambda t, x: torch.stack((0.3 * x, 0.1 * (1 + t) * x), -1),
        NoiseStructure.GENERAL: lambda t, x: torch.stack((0.3 * x.cos(), 0.1 * (1 + t) * x), -1),
    }[structure]
    matrix = structure in (NoiseStructure.COMMUTATIVE, NoiseStructure.GENERAL)
    drift = lambda t, x: -(1 + t) * x.sin()  # noqa: E731
    return SDE(drift, diffusion, structure, scheme.calculus, 2 if matrix else None)


@dataclass(frozen=True)
class _Step:
    """One step of a scheme, with its noise fixed up to the size of the step."""

    scheme: Solver
    sde: SDE
    shape: tuple[int, ...] = (2, 3)

    def noise(self, dt: Tensor) -> Increment:
        """Increment and areas of four samples."""
        channels = self.sde.channels(self.shape)
        normals = NoiseStream(7, 0, 4).normals(3 * max(1, channels), dtype=torch.float64)
        normals = normals.view(4, 3, -1)[..., :channels]
        wiener, area, other = normals.unbind(1)
        levy = 0.2 * (wiener.unsqueeze(-1) * other.unsqueeze(-2) - other.unsqueeze(-1) * wiener.unsqueeze(-2))
        size = dt.reshape(-1)[0]
        wiener, area = wiener * size.sqrt(), area * (size / 12).sqrt()
        if channels:
            wiener, area = (self.sde.arrange(part, self.shape) for part in (wiener, area))
        return Increment(wiener, area, None, levy * size)

    def __call__(self, state: Tensor, time: Tensor, dt: Tensor) -> Tensor:
        """The state after the step."""
        carry = self.scheme.start(self.sde, time, state)
        return self.scheme.read(self.scheme.step(self.sde, time, carry, dt, self.noise(dt)))


_TIME, _DT = torch.tensor(0.1, dtype=torch.float64), torch.tensor(0.05, dtype=torch.float64)
_STATE = torch.linspace(0.2, 1.5, 24, dtype=torch.float64).view(4, 2, 3)


@pytest.mark.parametrize(("scheme", "structure"), _PAIRS)
def test_step_can_be_transformed(scheme: Solver, structure: NoiseStructure) -> None:
    step = _Step(scheme, _equation(scheme, structure))
    result = step(_STATE, _TIME, _DT)
    assert result.shape == _STATE.shape
    column = torch.ones(4, 1, 1, dtype=torch.float64)  # time and step of each sample's own
    torch.testing.assert_close(step(_STATE, _TIME * column, _DT * column), result)
    shifted = torch.stack((_STATE, _STATE + 0.1))
    mapped = vmap(lambda x: step(x, _TIME, _DT))(shifted)
    torch.testing.assert_close(mapped, torch.stack([step(x, _TIME, _DT) for x in shifted]))
    direction = torch.ones_like(_STATE)
    forward = jvp(lambda x: step(x, _TIME, _DT), (_STATE,), (direction,))[1]
    ahead, behind = (step(_STATE + sign * 1e-6, _TIME, _DT) for sign in (1, -1))
    torch.testing.assert_close(forward, (ahead - behind) / 2e-6, rtol=1e-7, atol=1e-8)
    leaf = _STATE.clone().requires_grad_()
    (backward,) = torch.autograd.grad(step(leaf, _TIME, _DT).sum(), leaf)
    torch.testing.assert_close(backward.sum(), forward.sum())


@pytest.mark.parametrize("solver", _SHAPED, ids=lambda solver: solver.__name__)
def test_state_of_any_shape_gives_the_path_of_the_flat_state(solver: type) -> None:
    sde = SDE(lambda t, x: -x, lambda t, x: 0.3 * x.cos(), calculus=solver.calculus)
    times, noise = torch.linspace(0, 1, 5), NoiseStream(3, 0, 6)
    flat = solve(sde, torch.ones(6, 6), times, noise, solver=solver())
    shaped = solve(sde, torch.ones(6, 2, 3), times, noise, solver=solver())
    assert torch.equal(shaped.flatten(2), flat)
    scalar = SDE(sde.drift, sde.diffusion, NoiseStructure.SCALAR, solver.calculus)
    assert solve(scalar, torch.ones(6, 2, 3), times, noise, solver=solver()).shape == (6, 5, 2, 3)


@pytest.mark.parametrize("kind", _ORDINARY, ids=lambda kind: kind.__name__)
def test_scheme_has_its_deterministic_order(kind: type) -> None:
    scheme, sde = kind(), ode(lambda t, x: -(1 + t) * x * x)  # from 1 to 2/5 at time 1
    none = Increment(torch.zeros(4, 0, dtype=torch.float64), torch.zeros(4, 0, dtype=torch.float64))
    errors = []
    for level in range(4, 9):
        dt = torch.tensor(2.0**-level, dtype=torch.float64)
        carry = scheme.start(sde, 0 * dt, torch.ones(4, 2, 3, dtype=torch.float64))
        for k in range(2**level):
            carry = scheme.step(sde, k * dt, carry, dt, none)
        errors.append(math.log2(abs(float(scheme.read(carry)[0, 0, 0]) - 0.4)))
    slope = sum((2 - k) * error for k, error in enumerate(errors)) / 10
    assert abs(slope - kind.orders[NoiseStructure.NONE].strong) < 0.1


@pytest.mark.parametrize(("scheme", "structure"), _ESTIMATES)
def test_estimate_of_the_error_comes_with_the_step_and_falls_with_its_size(
    scheme: EmbeddedSolver, structure: NoiseStructure
) -> None:
    step = _Step(scheme, _equation(scheme, structure))
    carry = scheme.start(step.sde, _TIME, _STATE)
    sizes = []
    for power in (10, 14):
        dt = _DT.new_tensor(2.0**-power)
        end, estimate = scheme.step_with_error(step.sde, _TIME, carry, dt, step.noise(dt))
        assert estimate.shape == _STATE.shape
        torch.testing.assert_close(scheme.read(end), step(_STATE, _TIME, dt), rtol=1e-14, atol=1e-14)
        sizes.append(float(estimate.square().mean().sqrt()))
    assert abs(math.log2(sizes[0] / sizes[1]) / 4 - _estimate_order(type(scheme).__name__, structure)) < 0.1


def _estimate_order(name: str, structure: NoiseStructure) -> float:
    """Order of the root mean square of an estimate: that of the local error of the worse scheme compared."""
    if structure is NoiseStructure.NONE:
        return 3.0 if name == "SPaRK" else 2.0  # two schemes of order 2; or of order 1 and higher
    if structure is NoiseStructure.ADDITIVE:
        return 1.5
    if structure is NoiseStructure.GENERAL or name in ("Heun", "ReversibleHeun", "GeneralShARK"):
        return 1.0
    return 1.5


@pytest.mark.parametrize("scheme", [MilsteinLevy(), LogODE()])
def test_levy_area_moves_the_third_coordinate_of_the_heisenberg_group(scheme: Solver) -> None:
    def fields(t: Tensor, x: Tensor) -> Tensor:
        one, zero = torch.ones_like(x[:, 0]), torch.zeros_like(x[:, 0])
        first = torch.stack((one, zero, -0.5 * x[:, 1]), 1)
        return torch.stack((first, torch.stack((zero, one, 0.5 * x[:, 0]), 1)), -1)

    sde = SDE(lambda t, x: 0 * x, fields, NoiseStructure.GENERAL, scheme.calculus, noise_dim=2)
    step = _Step(scheme, sde, (3,))
    noise, start = step.noise(_DT), _STATE.flatten(1)[:, :3]
    assert noise.levy is not None
    wiener, area = noise.wiener, noise.levy[:, 0, 1]
    turned = 0.5 * (start[:, 0] * wiener[:, 1] - start[:, 1] * wiener[:, 0])
    exact = torch.column_stack((start[:, :2] + wiener, start[:, 2] + turned + area))
    torch.testing.assert_close(step(start, _TIME, _DT), exact, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("scheme", _ADDITIVE, ids=lambda scheme: type(scheme).__name__)
def test_scheme_with_areas_integrates_additive_noise_through_a_linear_drift(scheme: Solver) -> None:
    sde = SDE(lambda t, x: x, lambda t, x: torch.ones_like(x), NoiseStructure.ADDITIVE)
    step, dt = _Step(scheme, sde), _DT.new_tensor(2.0**-20)
    noise = step.noise(dt)
    assert noise.space_time is not None
    integral = dt * (0.5 * noise.wiener + noise.space_time)  # of W over the step, of size dt^(3/2)
    gap = step(_STATE, _TIME, dt) - (_STATE * (1 + dt) + noise.wiener + integral)
    assert gap.abs().max() < 5 * dt**2


def test_reversible_steps_are_undone_to_rounding() -> None:
    sde = SDE(lambda t, x: (1 - x).tanh(), lambda t, x: 0.3 * x.cos(), calculus=Calculus.STRATONOVICH)
    scheme, steps = ReversibleHeun(), 2000
    dt = torch.tensor(1 / steps, dtype=torch.float64)
    sizes = torch.full((steps,), 1 / steps, dtype=torch.float64)
    increments = WienerIncrements(NoiseStream(5, 0, 16), sizes, 2, dtype=torch.float64)
    starts = torch.arange(steps, dtype=torch.float64) / steps
    plan = Plan(sde, scheme, increments, make_grid(starts), starts, sizes, (2,))
    first = last = plan.start(torch.ones(16, 2, dtype=torch.float64))
    for step in plan.march(first, 0, steps):
        last = step.carry
    noise = list(plan.noise(0, steps))
    for k in reversed(range(steps)):
        last = scheme.reverse(sde, starts[k], last, dt, noise[k])
    assert (last.y - first.y).abs().max() < 1e-13
    assert (last.z - first.z).abs().max() < 1e-13
