"""Jump processes: their laws, the same jumps everywhere, jump-diffusions against closed forms."""

import math

import pytest
import torch
from torch import Tensor

from sde import SDE, JumpDiffusion, NoiseStream, NoiseStructure, Purpose, solve, solve_jumps
from sde.noise import CompoundPoisson
from sde.solvers import SRIW1, EulerMaruyama, Milstein, OneStep, ReversibleHeun
from tests.statistics import assert_mean

_F64 = torch.float64
_TIMES = torch.linspace(0, 1, 5, dtype=_F64)
_MU, _SIGMA, _RATE, _MEAN, _SPREAD = 0.05, 0.2, 0.5, -0.1, 0.15
_COMPENSATOR = _RATE * math.expm1(_MEAN + _SPREAD**2 / 2)
_JUMPS = CompoundPoisson(_RATE, mark=lambda z: _MEAN + _SPREAD * z[..., 0])


def _relative(t: Tensor, x: Tensor, mark: Tensor) -> Tensor:
    return x * torch.expm1(mark).unsqueeze(-1)


_MERTON = JumpDiffusion(
    SDE(lambda t, x: (_MU - _COMPENSATOR) * x, lambda t, x: _SIGMA * x), _JUMPS, _relative
)


def test_number_and_times_of_jumps_have_their_laws() -> None:
    n, rate, span = 40_000, 1.5, 2.0
    jumps = CompoundPoisson(rate).draw(NoiseStream(1, 0, n), 1.0, 1.0 + span)
    counts = jumps.counts.double()
    assert_mean(counts, rate * span, bias=0.1)
    assert_mean((counts - rate * span).square(), rate * span, bias=0.3)
    shares = ((jumps.times - 1.0) / span)[jumps.times.isfinite()]  # uniform, given how many there are
    assert_mean(torch.stack((shares, shares**2), 1), torch.tensor([1 / 2, 1 / 3], dtype=_F64), bias=0.02)
    marks = jumps.marks[jumps.times.isfinite()]
    assert_mean(torch.stack((marks, marks**2), 1), torch.tensor([0.0, 1.0], dtype=_F64), bias=0.06)


def test_jumps_are_the_same_in_every_batch_and_every_interval() -> None:
    process = CompoundPoisson(4.0, mark=lambda z: z, mark_dim=3)
    noise = NoiseStream(2, 50, 114)
    whole = process.draw(noise, 0.0, 3.0)
    part = process.draw(noise.select(torch.tensor([40, 3])), 0.0, 3.0)
    width = part.times.shape[1]
    for row, position in enumerate((40, 3)):
        assert torch.equal(part.times[row], whole.times[position, :width])
        assert torch.equal(part.marks[row], whole.marks[position, :width])
    short = process.draw(noise, 0.0, 1.0)
    width = short.times.shape[1]
    inside = whole.times[:, :width] <= 1.0
    assert torch.equal(short.times.isfinite(), inside)
    assert torch.equal(short.times[inside], whole.times[:, :width][inside])
    assert torch.equal(short.marks, whole.marks[:, :width])
    assert whole.marks.shape[2] == 3


def test_merton_model_has_its_moments() -> None:
    n = 40_000
    start, noise = torch.ones(n, 1, dtype=_F64), NoiseStream(3, 0, n)
    # In logarithms Euler is exact: what is tested are jumps and noise.
    logs = JumpDiffusion(
        SDE(
            lambda t, x: (_MU - _COMPENSATOR - _SIGMA**2 / 2) + 0 * x,
            lambda t, x: _SIGMA + 0 * x,
            NoiseStructure.ADDITIVE,
        ),
        _JUMPS,
        lambda t, x, mark: mark.unsqueeze(-1),
    )
    end = solve_jumps(logs, 0 * start, _TIMES, noise).states[:, -1, 0]
    assert_mean(end, 0.0224628432, bias=0.015)
    assert_mean((end - 0.0224628432).square(), 0.05625, bias=0.006)
    price = solve_jumps(_MERTON, start, _TIMES, noise, solver=Milstein()).states[:, -1, 0]
    assert_mean(price, math.exp(_MU), bias=0.015)


def _gap(solver: OneStep, substeps: int) -> float:
    """Root mean square error against the solution, a function of Wiener path and jumps."""
    n = 2000
    growth = torch.tensor([0.3, 0.0], dtype=_F64)  # the second component is the Wiener process itself

    def diffusion(t: Tensor, x: Tensor) -> Tensor:
        return torch.stack((0.5 * x[:, 0], torch.ones_like(x[:, 1])), 1)

    def size(t: Tensor, x: Tensor, mark: Tensor) -> Tensor:
        return torch.stack((x[:, 0] * torch.expm1(mark), torch.zeros_like(mark)), 1)

    sde = SDE(lambda t, x: growth * x, diffusion, NoiseStructure.SCALAR)
    equation = JumpDiffusion(sde, CompoundPoisson(2.0, mark=lambda z: 0.3 * z[..., 0]), size)
    start = torch.tensor([1.0, 0.0], dtype=_F64).expand(n, 2)
    done = solve_jumps(
        equation, start, _TIMES[[0, 4]], NoiseStream(4, 0, n), solver=solver, substeps=substeps
    )
    marks = torch.where(done.jumps.times.isfinite(), done.jumps.marks, 0.0).sum(1)
    end = done.states[:, -1]
    exact = torch.exp(0.3 - 0.125 + 0.5 * end[:, 1] + marks)
    return float((end[:, 0] - exact).square().mean().sqrt())


@pytest.mark.parametrize(("solver", "order"), [(EulerMaruyama(), 0.5), (Milstein(), 1.0), (SRIW1(), 1.5)])
def test_scheme_keeps_its_strong_order_between_jumps(solver: OneStep, order: float) -> None:
    slope = math.log2(_gap(solver, 8) / _gap(solver, 64)) / 3
    assert abs(slope - order) < 0.2


def test_path_with_jumps_is_the_same_in_every_batch() -> None:
    noise, start = NoiseStream(5, 10, 74), torch.ones(64, 1)
    equation = JumpDiffusion(_MERTON.sde, CompoundPoisson(6.0, mark=lambda z: 0.1 * z[..., 0]), _relative)
    whole = solve_jumps(equation, start, _TIMES, noise, substeps=3)
    part = solve_jumps(equation, start[:5], _TIMES, noise[30:35], substeps=3)
    assert torch.equal(part.states, whole.states[30:35])


def test_without_jumps_the_path_is_that_of_the_diffusion() -> None:
    noise, start = NoiseStream(6, 0, 16), torch.ones(16, 1, dtype=_F64)
    rare = JumpDiffusion(_MERTON.sde, CompoundPoisson(1e-9), lambda t, x, mark: 0 * x + math.nan)
    paths = solve(_MERTON.sde, start, _TIMES, noise, substeps=4)
    torch.testing.assert_close(solve_jumps(rare, start, _TIMES, noise, substeps=4).states, paths)


def test_intensity_depends_on_the_state() -> None:
    n = 40_000
    still = SDE(lambda t, x: 0 * x, lambda t, x: 0 * x)
    # A pure birth process: the rate of the next jump is the state, so the state has the mean exp(t).
    birth = JumpDiffusion(
        still,
        CompoundPoisson(40.0),
        size=lambda t, x, mark: torch.ones_like(x),
        intensity=lambda t, x: x[:, 0].clamp(max=40.0),
    )
    done = solve_jumps(birth, torch.ones(n, 1, dtype=_F64), _TIMES[[0, 4]], NoiseStream(7, 0, n))
    end = done.states[:, -1, 0]
    assert_mean(end, math.e, bias=0.2)
    assert_mean((end == 1).double(), math.exp(-1), bias=0.03)
    assert torch.equal(done.accepted.sum(1).double() + 1, end)
    cheat = JumpDiffusion(still, CompoundPoisson(0.5), lambda t, x, mark: x, lambda t, x: 1.0 + x[:, 0])
    with pytest.raises(ValueError, match="`intensity` must not exceed the rate"):
        solve_jumps(cheat, torch.ones(100, 1), _TIMES, NoiseStream(7, 0, 100))


def test_gradients_flow_through_jumps() -> None:
    theta = torch.tensor([0.3, 0.2, 0.1], dtype=_F64, requires_grad=True)
    noise, start = NoiseStream(8, 0, 6), torch.ones(6, 1, dtype=_F64, requires_grad=True)

    def end(theta: Tensor, start: Tensor) -> Tensor:
        sde = SDE(lambda t, x: theta[0] * x, lambda t, x: theta[1] * x)
        equation = JumpDiffusion(sde, CompoundPoisson(3.0), lambda t, x, z: x * (theta[2] * z).unsqueeze(-1))
        return solve_jumps(equation, start, _TIMES, noise).states[:, -1]

    assert torch.autograd.gradcheck(end, (theta, start))


def test_wrong_jumps_are_refused() -> None:
    noise, start = NoiseStream(0, 0, 4), torch.ones(4, 1)
    with pytest.raises(ValueError, match="`rate` must be positive"):
        CompoundPoisson(0.0)
    with pytest.raises(ValueError, match="`mark` must return shape"):
        CompoundPoisson(5.0, mark=lambda z: z[:, 0]).draw(noise, 0.0, 1.0)
    with pytest.raises(ValueError, match="`size` must return shape"):
        solve_jumps(JumpDiffusion(_MERTON.sde, _JUMPS, lambda t, x, m: m), start, _TIMES, noise)
    with pytest.raises(ValueError, match="`solver` must carry the state alone"):
        solve_jumps(_MERTON, start, _TIMES, noise, solver=ReversibleHeun())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`noise` must hold one sample per row"):
        solve_jumps(_MERTON, start, _TIMES, noise[:3])
    assert Purpose.JUMPS == 5  # the address of the jumps is part of what a seed means
