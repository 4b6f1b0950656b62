"""Error and stiffness estimates as regularisers: right values, differentiable, and they do their work."""

import pytest
import torch
from torch import Tensor, nn

from sde import (
    SDE,
    BrownianTree,
    Calculus,
    Control,
    Langevin,
    NoiseStream,
    ode,
    solve,
    solve_adaptive,
    solve_with_heuristics,
)
from sde.gradients import Backprop, Checkpointed
from sde.networks import perceptron
from sde.solvers import ALIGN, SOSRI, EulerMaruyama, Heun, ReversibleHeun, Solver, SPaRK

_F64 = torch.float64
_TIMES = torch.linspace(0, 1, 5, dtype=_F64)


def _sde(rate: Tensor | float, calculus: Calculus = Calculus.STRATONOVICH) -> SDE:
    return SDE(lambda t, x: -rate * x, lambda t, x: 0.2 * x.cos(), calculus=calculus)


@pytest.mark.parametrize("solver", [Heun(), ReversibleHeun(), SPaRK(), SOSRI()])
def test_paths_are_those_of_the_solve_and_stiffness_is_the_rate(solver: Solver) -> None:
    noise, start = NoiseStream(0, 0, 6), torch.ones(6, 2, 3, dtype=_F64)
    sde = _sde(3.0, solver.calculus)
    done = solve_with_heuristics(sde, start, _TIMES, noise, solver=solver, substeps=4)
    plain = solve(sde, start, _TIMES, noise, solver=solver, substeps=4)
    torch.testing.assert_close(done.paths, plain, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(done.stiffness, 3.0 * _TIMES.expand(6, -1))
    assert (done.error.diff(dim=1) > 0).all()
    assert not done.error[:, 0].any()


def test_error_estimate_is_that_of_the_solver() -> None:
    # Heun for x' = -x: half the difference of the stages is h^2 x / 2.
    steps, start = 64, torch.ones(1, 1, dtype=_F64)
    done = solve_with_heuristics(
        ode(lambda t, x: -x), start, _TIMES[[0, 4]], None, solver=Heun(), substeps=steps
    )
    h = 1 / steps
    states = (1 - h + h * h / 2) ** torch.arange(steps, dtype=_F64)
    torch.testing.assert_close(done.error[0, -1], (h * h * h / 2 * states).sum())


@pytest.mark.parametrize("gradient", [Backprop(), Checkpointed()])
def test_estimates_are_differentiable(gradient: Backprop | Checkpointed) -> None:
    start = torch.ones(3, 2, dtype=_F64)

    def estimates(rate: Tensor) -> tuple[Tensor, Tensor]:
        done = solve_with_heuristics(
            _sde(rate), start, _TIMES, NoiseStream(1, 0, 3), solver=SPaRK(), gradient=gradient
        )
        return done.error.sum(), done.stiffness.sum()

    assert torch.autograd.gradcheck(estimates, torch.tensor([0.7, 2.0], dtype=_F64, requires_grad=True))


def test_adaptive_estimates_are_differentiable_and_those_of_the_accepted_steps() -> None:
    tree, start = BrownianTree(NoiseStream(2, 0, 4), 0.0, 1.0), torch.ones(4, 1, dtype=_F64)

    def estimates(rate: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        done = solve_adaptive(
            _sde(rate),
            start,
            _TIMES,
            tree,
            solver=SPaRK(),
            control=Control(rtol=1e-2),
            estimate_stiffness=True,
        )
        assert done.stiffness is not None
        return done.states[:, -1], done.error, done.stiffness

    rate = torch.tensor(2.0, dtype=_F64, requires_grad=True)
    states, error, stiff = estimates(rate)
    torch.testing.assert_close(stiff, torch.full_like(stiff, 2.0))
    assert (error > 0).all()
    assert torch.autograd.gradcheck(estimates, rate, atol=1e-6)
    assert states.requires_grad


def test_adaptive_estimate_weighs_errors_by_the_steps() -> None:
    # Steps that always pass go from instant to instant.
    tree, start = BrownianTree(NoiseStream(0, 0, 2), 0.0, 1.0), torch.ones(2, 1, dtype=_F64)
    equation, control = ode(lambda t, x: -x), Control(rtol=1e3, first=0.25)
    done = solve_adaptive(equation, start, _TIMES, tree, solver=Heun(), control=control)
    assert done.accepted.tolist() == [4, 4]
    fixed = solve_with_heuristics(equation, start, _TIMES, None, solver=Heun())
    torch.testing.assert_close(done.error, fixed.error[:, -1])


def test_adaptive_solve_of_an_ordinary_equation_counts_and_estimates() -> None:
    tree, start = BrownianTree(NoiseStream(0, 0, 2), 0.0, 1.0), torch.ones(2, 1, dtype=_F64)
    done = solve_adaptive(ode(lambda t, x: -5 * x), start, _TIMES, tree, solver=Heun())
    torch.testing.assert_close(
        done.states[:, :, 0], torch.exp(-5 * _TIMES).expand(2, -1), rtol=5e-3, atol=1e-3
    )
    assert (done.accepted >= 4).all()
    assert done.stiffness is None


@pytest.mark.slow
def test_regularised_training_gives_an_equation_that_is_cheaper_to_solve() -> None:
    # A neural ODE that carries 1 to 2: by any drift. The regulariser makes it choose a smooth one.
    def steps_after_training(weight: float) -> tuple[float, float]:
        field = perceptron((3, 32, 2), seed=1, activation=nn.Tanh(), dtype=_F64)
        equation = ode(lambda t, x: field(torch.cat((x, t.expand(len(x), 1) * 4), 1)))
        start = NoiseStream(9, 0, 64).normals(2, dtype=_F64)
        optimiser = torch.optim.Adam(field.parameters(), lr=1e-2)
        for _ in range(150):
            optimiser.zero_grad()
            done = solve_with_heuristics(equation, start, _TIMES[[0, 4]], None, solver=Heun(), substeps=8)
            fit = (done.paths[:, -1] - 2 * start).square().mean()
            (fit + weight * done.error[:, -1].mean()).backward()
            optimiser.step()
        tree = BrownianTree(NoiseStream(0, 0, 64), 0.0, 1.0)
        with torch.no_grad():
            count = solve_adaptive(
                equation,
                start,
                _TIMES[[0, 4]],
                tree,
                solver=Heun(),
                control=Control(rtol=1e-5, atol=1e-5, order=2.0),
            ).accepted
        return float(count.double().mean()), float(fit.detach())

    plain, regular = steps_after_training(0.0), steps_after_training(10.0)
    assert regular[0] < 0.8 * plain[0]
    assert regular[1] < 0.03


def test_wrong_calculus_is_refused_by_the_name_of_the_solver() -> None:
    arguments = (torch.ones(2, 1), torch.linspace(0, 1, 3), NoiseStream(0, 0, 2))
    with pytest.raises(ValueError, match="`solver` must integrate Ito equations; got Heun"):
        solve_with_heuristics(_sde(1.0, Calculus.ITO), *arguments, solver=Heun())
    with pytest.raises(ValueError, match="`sde` must be an SDE, whose drift is looked at; got Langevin"):
        solve_with_heuristics(Langevin(lambda x: x), *arguments, solver=ALIGN())  # type: ignore[arg-type]


def test_solver_without_estimate_is_refused() -> None:
    with pytest.raises(ValueError, match="`solver` must estimate its error; got EulerMaruyama"):
        solve_with_heuristics(
            _sde(1.0, Calculus.ITO),
            torch.ones(2, 1),
            torch.linspace(0, 1, 3),
            NoiseStream(0, 0, 2),
            solver=EulerMaruyama(),  # type: ignore[arg-type]
        )
