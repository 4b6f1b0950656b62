"""The submodel against the restricted full model, its negative controls, and what a sample of each costs."""

import time
from collections.abc import Callable, Iterator
from itertools import product

import torch
from torch import Tensor

from benchmarks.check import Figure, at_least, at_most, main, reported
from fem_bridge.assembly import Assembler, default_assembler
from fem_bridge.assembly.skfem import SkfemAssembler
from fem_bridge.dynamics import CentralDifference, GeneralizedAlpha, Integrator, Newmark
from fem_bridge.problems import FullModel, ImpactProblem, ImpactRuns, Output
from fem_bridge.submodel import Submodel
from sde.noise import NoiseStream

__all__ = ["SECTIONS", "cost", "equality"]

_SCHEMES: tuple[tuple[Integrator, float], ...] = (
    (CentralDifference(), 1e-12),
    (Newmark(), 1e-11),
    (GeneralizedAlpha(rho_inf=0.8), 1e-11),
)


class _Given:
    """A model of histories that are handed to `drive` directly."""

    def __init__(self, traces: Tensor) -> None:
        self.traces, self.input_dim, self.output_shape = traces, 0, tuple(traces.shape[1:])

    def __call__(self, inputs: Tensor, noise: NoiseStream) -> Tensor:
        return self.traces[noise.start : noise.stop]


def _problem(smoke: bool, window_width: float = 0.2) -> ImpactProblem:
    return ImpactProblem(divisions=(20, 10) if smoke else (60, 30), window_width=window_width)


def _runs(
    problem: ImpactProblem, assembler: Assembler, count: int, integrator: Integrator
) -> tuple[Submodel, ImpactRuns, NoiseStream]:
    noise = NoiseStream(seed=21, start=0, stop=count)
    model = FullModel(problem, assembler, integrator=integrator)
    runs = model.run(model.draw(noise), noise)
    submodel = Submodel(problem, _Given(runs.traces), assembler, output=Output.ZONE, integrator=integrator)
    return submodel, runs, noise


def _error(submodel: Submodel, traces: Tensor, material: Tensor, runs: ImpactRuns) -> float:
    """Largest error away from the driven nodes over the largest displacement there, worst sample."""
    free = torch.ones(runs.zone.shape[-1], dtype=torch.bool)
    free[torch.from_numpy(submodel.assembled.zone.interface_dofs)] = False
    zone, exact = submodel.drive(traces, material)[..., free], runs.zone[..., free]
    return float(((zone - exact).abs().amax((1, 2)) / exact.abs().amax((1, 2))).max())


def equality(smoke: bool) -> Iterator[Figure]:
    """Submodel with the full model's interface histories, and both negative controls."""
    fenics = default_assembler()
    assemblers = [SkfemAssembler()] if fenics == SkfemAssembler() else [fenics, SkfemAssembler()]
    for assembler, (integrator, limit) in product(assemblers, _SCHEMES):
        submodel, runs, noise = _runs(_problem(smoke), assembler, 2, integrator)
        material = submodel.assembled.zone_modulus(noise)
        name = f"{type(integrator).__name__}, {assembler.name}"
        yield at_most(f"{name}: error / max u", _error(submodel, runs.traces, material, runs), limit)
        wrong = runs.traces.clone()
        wrong[:, :, ::7] *= 1.01
        yield at_least(f"{name}: control, 1 % on 1/7", _error(submodel, wrong, material, runs), 1e-3)
    submodel, runs, noise = _runs(_problem(smoke, window_width=0.0), SkfemAssembler(), 4, CentralDifference())
    other = submodel.assembled.zone_modulus(noise.fork("other material"))
    yield at_least("control, zone material redrawn", _error(submodel, runs.traces, other, runs), 5e-2)


def _seconds(run: Callable[[], object], repeats: int) -> float:
    """Median time of a call after one to warm up."""
    run()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return sorted(times)[repeats // 2]


def cost(smoke: bool) -> Iterator[Figure]:
    """Seconds per sample of full model and submodel, by batch, in one run."""
    problem = _problem(smoke)
    model = FullModel(problem)
    for batch in (1, 8) if smoke else (1, 8, 32):
        noise = NoiseStream(seed=21, start=0, stop=batch)
        inputs = model.draw(noise)
        runs = model.run(inputs, noise)
        submodel = Submodel(problem, _Given(runs.traces))
        nothing = torch.zeros(batch, 0)
        with torch.no_grad():
            full = _seconds(lambda x=inputs, s=noise: model(x, s), 3) / batch
            zone = _seconds(lambda m=submodel, x=nothing, s=noise: m(x, s), 3) / batch
        yield reported(f"batch {batch}: full model [s per sample]", full)
        yield reported(f"batch {batch}: submodel [s per sample]", zone, f"{full / zone:.1f} times less")


SECTIONS = [equality, cost]

if __name__ == "__main__":
    raise SystemExit(main("submodel", SECTIONS))
