"""Write ``docs/solvers.md``: every solver with what it promises, what was measured and what a step costs."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from sde import (
    CIR,
    SDE,
    Calculus,
    Heston,
    Langevin,
    NoiseStream,
    NoiseStructure,
    Semilinear,
    Split,
    solve,
    solvers,
)
from sde.equation import Equation
from sde.noise import Areas

ROOT = Path(__file__).resolve().parent.parent
RESULTS, PAGE = ROOT / "benchmarks/results/solvers.json", ROOT / "docs/solvers.md"

TORCHSDE = {
    "EulerMaruyama": "euler",
    "Milstein": "milstein",
    "MilsteinStratonovich": "milstein",
    "RungeKuttaMilstein": "milstein, grad_free",
    "SRIW1": "srk",
    "SRA1": "srk",
    "Heun": "heun",
    "Midpoint": "midpoint",
    "EulerHeun": "euler_heun",
    "ReversibleHeun": "reversible_heun",
    "LogODE": "log_ode",
}
DIFFRAX = {
    "EulerMaruyama": "Euler",
    "Milstein": "ItoMilstein",
    "MilsteinStratonovich": "StratonovichMilstein",
    "ShiftedEuler": "SEA",
    "SRA1": "SRA1",
    "GeneralShARK": "GeneralShARK",
}
SAME = "EulerHeun Heun Midpoint Ralston ReversibleHeun ShARK SPaRK SlowRK ALIGN ShOULD QUICSORT"
DIFFRAX |= {name: name for name in SAME.split()}
AREAS = {Areas.SPACE_TIME: "H", Areas.SPACE_TIME_TIME: "H, K", Areas.LEVY: "H, A"}
HEAD = """# Solvers

Written by `make solver-table` from the solvers themselves and from `benchmarks/results/solvers.json`, which
`python -m benchmarks.solvers --check` writes.

- *orders*: strong / weak, by the structure of the noise;
- *measured*: slopes of the root mean square error on problems with that structure; a drift that is linear in
  the state ("additive") shows order 2 for schemes of order 3/2;
- *cost*: evaluations of drift + diffusion in a step after the first, with two processes where the diffusion
  is a matrix; gradients or flows where the equation has those;
- *areas*: what a step needs of the path beside W;
- torchsde 0.2.6 and diffrax 0.7 have the schemes that the last columns name.

| solver | calculus or equation | orders | measured | cost | areas | torchsde | diffrax |
|---|---|---|---|---|---|---|---|
"""


def every_solver() -> dict[str, type]:
    """The solvers by name."""
    found = {name: getattr(solvers, name) for name in solvers.__all__}
    return {name: kind for name, kind in found.items() if hasattr(kind, "step") and hasattr(kind, "orders")
            and kind.__name__ not in ("Solver", "EmbeddedSolver")}  # fmt: skip


def orders(kind: type) -> str:
    """Strong and weak orders by noise structure."""
    groups: dict[str, list[str]] = {}
    for structure, order in kind.orders.items():
        if structure is not NoiseStructure.NONE:
            strong = "-" if math.isnan(order.strong) else f"{order.strong:g}"
            groups.setdefault(f"{strong} / {order.weak:g}", []).append(structure.value)
    return "; ".join(f"{', '.join(names)}: {order}" for order, names in groups.items())


def measured(name: str, figures: list[dict]) -> str:
    """Slopes that the benchmark found."""
    start = f"strong order, {name}, "
    found = [f for f in figures if f["name"].startswith(start)]
    return "; ".join(f"{f['name'].removeprefix(start)} {float(f['value']):.2f}" for f in found) or "-"


Count = Callable[[str, Tensor], Tensor]


def sample_equation(kind: type, count: Count) -> tuple[Equation, tuple[int, ...], tuple[str, ...]]:
    """An equation for a solver, the shape of its states, and the names under which it counts evaluations."""
    if kind.equation is Langevin:
        return Langevin(lambda x: count("gradient", x)), (2, 2, 1), ("gradient",)
    if kind.equation is Split:
        split = Split((lambda t, x, h: count("flow", x),), lambda t, x, h, w: count("noise flow", x))
        return split, (2, 2), ("flow", "noise flow")
    if kind.equation is CIR:
        return CIR(1.0, 1.0, 1.0), (2, 2), ()
    if kind.equation is Heston:
        return Heston(CIR(1.0, 1.0, 1.0), correlation=-0.5), (2, 2), ()
    sde = _sample_sde(kind, count)
    equation = Semilinear(torch.ones(2), sde) if kind.equation is Semilinear else sde
    return equation, (2, 2), ("drift", "diffusion")


def _sample_sde(kind: type, count: Count) -> SDE:
    """A general equation with noise that the solver can integrate, diagonal if it can."""
    structure = next(s for s in kind.orders if s is not NoiseStructure.NONE)
    if NoiseStructure.DIAGONAL in kind.orders:
        structure = NoiseStructure.DIAGONAL
    matrix = structure in (NoiseStructure.GENERAL, NoiseStructure.COMMUTATIVE)
    return SDE(
        lambda t, x: count("drift", -x),
        lambda t, x: count("diffusion", torch.stack((x, x), -1) if matrix else x.cos()),
        structure,
        Calculus.ITO if structure is NoiseStructure.ADDITIVE else kind.calculus,
        2 if matrix else None,
    )


def cost(kind: type) -> str:
    """Evaluations of the functions of the equation in a second step; none where it has no functions."""
    counts: dict[str, int] = {}

    def count(name: str, value: Tensor) -> Tensor:
        counts[name] = counts.get(name, 0) + 1
        return value

    equation, shape, names = sample_equation(kind, count)

    def run(steps: int) -> list[int]:
        counts.clear()
        times = torch.linspace(0, 1, steps + 1)
        solve(equation, torch.ones(shape), times, NoiseStream(0, 0, 2), solver=kind())
        return [counts.get(name, 0) for name in names]

    found = [two - one for one, two in zip(run(4), run(5), strict=True)]
    if names in (("gradient",), ("flow", "noise flow")):
        return " + ".join(f"{n} {name}{'s' * (n > 1)}" for n, name in zip(found, names, strict=True))
    return " + ".join(map(str, found)) or "-"


def table() -> str:
    """The page."""
    sections = json.loads(RESULTS.read_text())["sections"]
    figures = [figure for section in sections for figure in section["figures"]]
    rows = []
    for name, kind in every_solver().items():
        calculus = kind.calculus.value if kind.equation is SDE else kind.equation.__name__
        cells = [f"`{name}`", calculus, orders(kind), measured(name, figures), cost(kind)]
        cells += [AREAS.get(kind.areas, "-"), TORCHSDE.get(name, "-"), DIFFRAX.get(name, "-")]
        rows.append(f"| {' | '.join(cells)} |\n")
    return HEAD + "".join(rows)


if __name__ == "__main__":
    PAGE.write_text(table())
    print(f"Written: {PAGE}")
