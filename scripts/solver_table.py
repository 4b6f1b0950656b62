"""Write ``docs/solvers.md``: every solver with what it promises, what was measured and what a step costs."""

import json
import math
from pathlib import Path

import torch
from torch import Tensor

from sde import SDE, Calculus, Langevin, NoiseStream, NoiseStructure, solve, solvers
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
  is a matrix; for Langevin schemes, gradients;
- *areas*: what a step needs of the path beside W;
- torchsde 0.2.6 and diffrax 0.7 have the schemes that the last columns name.

| solver | calculus | orders | measured | cost | areas | torchsde | diffrax |
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


def cost(kind: type) -> str:
    """Evaluations of drift and diffusion, or of the gradient, in a second step."""
    counts = {"drift": 0, "diffusion": 0}

    def count(name: str, value: Tensor) -> Tensor:
        counts[name] += 1
        return value

    def run(steps: int) -> tuple[int, int]:
        counts.update(drift=0, diffusion=0)
        times = torch.linspace(0, 1, steps + 1)
        shape = (2, 2, 1) if kind.equation is Langevin else (2, 2)
        solve(equation, torch.ones(shape), times, NoiseStream(0, 0, 2), solver=kind())
        return counts["drift"], counts["diffusion"]

    structure = next(s for s in kind.orders if s is not NoiseStructure.NONE)
    if NoiseStructure.DIAGONAL in kind.orders:
        structure = NoiseStructure.DIAGONAL
    matrix = structure in (NoiseStructure.GENERAL, NoiseStructure.COMMUTATIVE)
    calculus = Calculus.ITO if structure is NoiseStructure.ADDITIVE else kind.calculus
    if kind.equation is Langevin:
        equation = Langevin(lambda x: count("drift", x))
    else:
        equation = SDE(
            lambda t, x: count("drift", -x),
            lambda t, x: count("diffusion", torch.stack((x, x), -1) if matrix else x.cos()),
            structure,
            calculus,
            2 if matrix else None,
        )
    one, two = run(4), run(5)
    drift, diffusion = two[0] - one[0], two[1] - one[1]
    return f"{drift} gradient{'s' * (drift > 1)}" if kind.equation is Langevin else f"{drift} + {diffusion}"


def table() -> str:
    """The page."""
    sections = json.loads(RESULTS.read_text())["sections"]
    figures = [figure for section in sections for figure in section["figures"]]
    rows = []
    for name, kind in every_solver().items():
        calculus = "Langevin" if kind.equation is Langevin else kind.calculus.value
        cells = [f"`{name}`", calculus, orders(kind), measured(name, figures), cost(kind)]
        cells += [AREAS.get(kind.areas, "-"), TORCHSDE.get(name, "-"), DIFFRAX.get(name, "-")]
        rows.append(f"| {' | '.join(cells)} |\n")
    return HEAD + "".join(rows)


if __name__ == "__main__":
    PAGE.write_text(table())
    print(f"Written: {PAGE}")
