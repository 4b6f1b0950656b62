"""Weak order without Monte Carlo: the tree of all three-point increments is enumerated."""

import itertools
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.check import Figure, main, within
from sde.equation import SDE, NoiseStructure
from sde.noise import GivenIncrements
from sde.solve import solve
from sde.solvers import DRI1, PlatenWeak2, Solver

__all__ = ["REFERENCES", "SECTIONS", "asinh_error", "moment_error"]

_ASINH = SDE(lambda t, x: x / 2 + (x * x + 1).sqrt(), lambda t, x: (x * x + 1).sqrt())
REFERENCES = (
    (PlatenWeak2(), {2: 1.599e-2, 4: 1.765e-3, 6: 5.285e-4, 8: 2.521e-4}),
    (DRI1(), {2: 1.561e-2, 4: 2.529e-3, 6: 9.767e-4, 8: 5.269e-4}),
)
"""Errors of the asinh problem by number of steps."""


def asinh_error(solver: Solver, steps: int) -> float:
    r"""Error of :math:`E[Y^3 - 6 Y^2 + 8 Y]`, ``Y = asinh X``, at time 1/2; exactly 3/8.

    The equation is :math:`\mathrm dX = (X/2 + \sqrt{X^2 + 1})\,\mathrm dt + \sqrt{X^2 + 1}\,\mathrm dW` from
    0, with the solution ``sinh(t + W)``.

    Args:
        solver: A scheme driven by three-point increments.
        steps: Number of steps; ``3**steps`` paths are solved.

    Returns:
        The absolute error.
    """
    leaves = torch.tensor(list(itertools.product((-1.0, 0.0, 1.0), repeat=steps)), dtype=torch.float64)
    weights = (1 / 6 + 0.5 * (leaves == 0).double()).prod(1)
    wiener = math.sqrt(3 * 0.5 / steps) * leaves.unsqueeze(-1)
    noise = GivenIncrements(wiener, signs=-torch.ones((*wiener.shape, 1), dtype=torch.float64))
    times = torch.linspace(0, 0.5, steps + 1, dtype=torch.float64)
    with torch.no_grad():
        end = solve(_ASINH, torch.zeros(len(leaves), 1, dtype=torch.float64), times, noise, solver=solver)
    y = end[:, -1, 0].asinh()
    return abs(float(weights @ (y**3 - 6 * y**2 + 8 * y)) - 0.375)


_A = torch.tensor([[-0.5, 0.3], [0.2, -0.4]], dtype=torch.float64)
_B = torch.tensor([[[0.3, 0.1], [-0.2, 0.4]], [[0.2, -0.3], [0.5, 0.1]]], dtype=torch.float64)
_LINEAR = SDE(
    lambda t, x: x @ _A.T,
    lambda t, x: torch.stack([x @ b.T for b in _B], -1),
    NoiseStructure.GENERAL,
    noise_dim=2,
)


def moment_error(solver: Solver, step: float, *, sign: float = 1.0) -> float:
    """Largest error of the second moments after one step of a linear equation whose noise does not commute.

    Args:
        solver: A scheme driven by three-point increments.
        step: Its length.
        sign: Factor of the two-point variable; another than 1 spoils the order.

    Returns:
        The absolute error against the matrix exponential of the moment equation.
    """
    cases = list(itertools.product((-1, 0, 1), (-1, 0, 1), (-1, 1)))
    wiener = torch.tensor([case[:2] for case in cases], dtype=torch.float64)
    weights = (1 / 6 + 0.5 * (wiener == 0).double()).prod(1) / 2
    v = sign * torch.tensor([case[2] for case in cases], dtype=torch.float64)
    one = torch.ones_like(v)
    signs = torch.stack((torch.stack((-one, v), 1), torch.stack((-v, -one), 1)), 1)
    noise = GivenIncrements(math.sqrt(3 * step) * wiener[:, None], signs=signs[:, None])
    start = torch.tensor([1.0, 0.7], dtype=torch.float64)
    times = torch.tensor([0.0, step], dtype=torch.float64)
    end = solve(_LINEAR, start.expand(len(cases), -1), times, noise, solver=solver)[:, -1]
    moments = torch.einsum("n,ni,nj->ij", weights, end, end)
    eye = torch.eye(2, dtype=torch.float64)
    generator = torch.kron(_A, eye) + torch.kron(eye, _A) + sum(torch.kron(b, b) for b in _B)
    exact: Tensor = torch.linalg.matrix_exp(step * generator) @ torch.kron(start, start)
    return float((moments.flatten() - exact).abs().max())


def enumerated(smoke: bool) -> Iterator[Figure]:
    """Errors on the asinh problem beside reference values, and orders of one step."""
    for solver, references in REFERENCES:
        name = type(solver).__name__
        for steps, reference in references.items():
            if steps <= (4 if smoke else 8):
                error = asinh_error(solver, steps)
                yield within(
                    f"{name}: weak error, {steps} steps", error, 0.999 * reference, 1.001 * reference
                )
        slope = math.log2(moment_error(solver, 0.025) / moment_error(solver, 0.0125))
        yield within(f"{name}: order of one step, noise that does not commute", slope, 2.8, 3.2)
        wrong = math.log2(
            moment_error(solver, 0.025, sign=0.025**-0.5) / moment_error(solver, 0.0125, sign=0.0125**-0.5)
        )
        yield within(f"{name}: the same with a wrong two-point variable (must fail)", wrong, 0.8, 1.2)


SECTIONS = [enumerated]

if __name__ == "__main__":
    raise SystemExit(main("weak_order", SECTIONS))
