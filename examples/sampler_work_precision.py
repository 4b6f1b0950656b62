# %% [markdown]
# # What a sampler gets for its evaluations
#
# A network that knows the flow from noise to data is expensive to call; a sampler should need few calls.
# Here the flow is known exactly: three Gaussian modes in the plane, noised by the variance-preserving
# diffusion with linear rates. Every method starts from the same noise, and its error is the distance from
# where the flow carries that noise.
#
# - **Solvers** take the field as it is: DPM-Solver of orders 1 to 3 and BDIA integrate the linear part
#   exactly, Heun's method does not. Their errors fall like a power of the evaluations: the slopes are their
#   orders.
# - **Learned solvers** (S4S) keep a multistep method but fit its few coefficients, and its times, to some
#   hundred solved paths.
# - **Learned flows** are other networks: a *rectified flow* is learned again from the pairs that the flow
#   makes, so that its paths are straight, and a *flow map* jumps between any two times. Their errors do not
#   fall with the evaluations but stop at what the networks have learned.
#
# On the right the samples are compared with others of the target: the distance of the exact flow's is that of
# two samples of so many points, and what lies below it is luck.

# %%
"""Error against network evaluations, for solvers, learned solvers and learned flows."""

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from inference import FitSettings, fit
from inference.interpolants import (
    Diffusion,
    FieldNetwork,
    Kind,
    Linear,
    Matching,
    OneSided,
    Prediction,
    independent,
    paired,
)
from inference.reference_problems import Mixture, MixtureProblem
from inference.samplers import (
    BDIA,
    AdaptiveDPMSolver,
    DPMSolver,
    FlowMapLoss,
    FlowMapNetwork,
    FlowMapSampler,
    ProbabilityFlow,
    Sampler,
    fit_solver,
    log_snr_times,
)
from inference.samplers.flow_map import Lagrangian
from sde import NoiseStream
from sde.solvers import EulerMaruyama

F64 = torch.float64
LAST = 1 - 1e-3
FEW, MANY = (3, 4, 5, 6, 8, 10), (3, 4, 5, 6, 8, 10, 16, 32, 64, 128)
NOTHING = NoiseStream(0, 0, 0)
Curve = dict[int, float]


def three_modes(path: OneSided) -> MixtureProblem:
    """Weights 0.5, 0.3 and 0.2, deviations 0.3, 0.5 and 0.4."""
    means = torch.tensor([[2.0, 0.0], [-1.0, 1.5], [-1.0, -2.0]], dtype=F64)
    spreads = torch.tensor([0.3, 0.5, 0.4], dtype=F64)
    covariances = spreads[:, None, None] ** 2 * torch.eye(2, dtype=F64)
    target = Mixture(torch.tensor([0.5, 0.3, 0.2], dtype=F64), means, covariances)
    return MixtureProblem(path, Mixture.standard(2), target)


PROBLEM = three_modes(OneSided(Diffusion()))
PREDICTION = PROBLEM.prediction(Kind.TARGET)


def times(num_steps: int) -> Tensor:
    """Equal steps of the log signal-to-noise ratio."""
    return log_snr_times(Diffusion(), num_steps, first=0.0, last=LAST)


def carried(start: Tensor) -> Tensor:
    """Where the flow carries points, to six digits."""
    return DPMSolver(3)(PREDICTION, start, times(600), NOTHING)


# %%
def rectified(start: Tensor, end: Tensor, iterations: int) -> Prediction:
    """The straight flow between the pairs."""
    loss = Matching(OneSided(), Kind.VELOCITY, paired(start, end), batch=256, seed=1, antithetic=False)
    network = FieldNetwork(2, width=96, depth=3, seed=2, dtype=F64)
    settings = FitSettings(iterations=iterations, rate=2e-3, average=0.998)
    identity = {"network": "rectified"}
    trained, _ = fit(network, loss, settings=settings, identity=identity, label="rectified flow")
    return Prediction(OneSided(), {Kind.VELOCITY: trained})


def jumping(iterations: int) -> FlowMapSampler:
    """A flow map, distilled from the same flow along the straight schedule."""
    straight = three_modes(OneSided())
    pairs = independent(straight.base.sample, straight.target.sample)
    loss = FlowMapLoss(Lagrangian(), OneSided(), pairs, 256, 3, velocity=straight.field(Kind.VELOCITY))
    network = FlowMapNetwork(2, width=96, depth=3, seed=4, dtype=F64)
    settings = FitSettings(iterations=iterations, rate=2e-3, average=0.998)
    trained, _ = fit(network, loss, settings=settings, identity={"network": "map"}, label="flow map")
    return FlowMapSampler(trained)  # type: ignore[arg-type]


def jumps(sampler: FlowMapSampler, start: Tensor, count: int) -> Tensor:
    """Jumps at equal times of the straight schedule, whose points are multiples of the others."""
    ends = Linear().time(Diffusion().log_snr(torch.tensor([0.0, LAST], dtype=F64)))
    scale = torch.hypot(*Linear().coefficients(ends))  # and 1 for the variance-preserving schedule
    grid = torch.linspace(float(ends[0]), float(ends[1]), count + 1, dtype=F64)
    return sampler(PREDICTION, start * scale[0], grid, NOTHING) / scale[1]


# %%
def error(found: Tensor, end: Tensor) -> float:
    """Median distance: points at a boundary of basins would spoil a mean."""
    return (found - end).norm(dim=1).median().item()


def distance(points: Tensor, law: Tensor) -> float:
    """W2 between two sets of as many points, exactly."""
    cost = torch.cdist(points, law).square().numpy()
    return math.sqrt(cost[linear_sum_assignment(cost)].mean())


def solved(start: Tensor) -> dict[str, dict[int, Tensor]]:
    """Ends of all classical methods, by evaluations."""
    methods: dict[str, tuple[Sampler, int]] = {
        "DPM-Solver 1 (DDIM)": (DPMSolver(1), 1),
        "DPM-Solver++ 2M": (DPMSolver(2), 1),
        "DPM-Solver++ 3M": (DPMSolver(3), 1),
        "BDIA, weight 1": (BDIA(), 1),
        "Heun's method": (ProbabilityFlow(), 2),
    }
    return {
        name: {
            count: method(PREDICTION, start, times(count // cost), NOTHING)
            for count in MANY
            if count % cost == 0 and count >= 2 * cost
        }
        for name, (method, cost) in methods.items()
    }


def learned(seen: tuple[Tensor, Tensor], start: Tensor, iterations: int) -> dict[str, dict[int, Tensor]]:
    """Ends of the learned methods, by evaluations."""
    found: dict[str, dict[int, Tensor]] = {"S4S": {}, "rectified flow": {}, "flow map": {}}
    flow, sampler = rectified(*seen, iterations), jumping(iterations)
    for count in FEW:
        solver = fit_solver(
            PREDICTION, seen[0][:300], seen[1][:300], times(count), learn_times=True, iterations=40
        )
        found["S4S"][count] = solver(PREDICTION, start, solver.times, NOTHING)
        grid = torch.linspace(0, 1, count + 1, dtype=F64)
        with torch.no_grad():
            euler = ProbabilityFlow(EulerMaruyama())
            found["rectified flow"][count] = euler(flow, start, grid, NOTHING)
            found["flow map"][count] = jumps(sampler, start, count)
    return found


COLOURS = ("#8a97a3", "#5c7fa3", "#1b2733", "#b98b2f", "#6b9e78", "#d1495b", "#3fa7d6", "#7b4fa3")


def plot(
    errors: dict[str, Curve], adaptive: list[tuple[float, float]], laws: dict[str, Curve], floor: float
) -> Figure:
    """Left: error against evaluations. Right: distance of the samples from the target's."""
    figure = Figure(figsize=(10.4, 5.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
    for colour, (name, curve) in zip(COLOURS, errors.items(), strict=True):
        style = {"color": colour, "marker": "o", "markersize": 3.5, "linewidth": 1.5}
        style |= {"linestyle": "--"} if name in ("rectified flow", "flow map") else {}
        left.loglog(list(curve), list(curve.values()), label=name, **style)
        right.semilogy(list(laws[name]), list(laws[name].values()), **style)
    left.loglog(
        *zip(*adaptive, strict=True), "k+", markersize=8, label="adaptive DPM-Solver, mean evaluations"
    )
    line = right.axhline(floor, color="#1b2733", linewidth=0.8, linestyle=":")
    right.set_yticks((0.2, 0.3, 0.5, 1.0, 2.0), ("0.2", "0.3", "0.5", "1", "2"))
    right.minorticks_off()
    left.set_ylabel("median distance from the end of the flow")
    right.set_ylabel("$W_2$ distance of the samples from the target")
    ticks = (3, 4, 6, 10, 16, 32, 64, 128)
    for axis, marks in ((left, ticks), (right, FEW)):
        axis.set_xlabel("network evaluations for a sample")
        axis.set_xticks(marks, [str(mark) for mark in marks])
        axis.tick_params(axis="x", which="minor", bottom=False)
        axis.grid(alpha=0.25, linewidth=0.5)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(
        [*handles, line],
        [*labels, "samples of the exact flow (right)"],
        loc="outside upper center",
        ncols=4,
        frameon=False,
        fontsize=9,
    )
    return figure


def main(
    folder: Path = Path("out/sampler_work_precision"), iterations: int = 1500, samples: int = 1000
) -> dict[str, float]:
    """Run all methods, draw, compare.

    Args:
        folder: Where the figure goes.
        iterations: Of the training of each of the two networks.
        samples: Starts that the methods are judged by.

    Returns:
        The errors of the learned methods at 3 and 5 evaluations, such as ``S4S 5``; ``fixed 3`` and
        ``fixed 5``, the least of the classical methods; ``slope 1`` to ``slope 3`` of DPM-Solver between 32
        and 128 evaluations.
    """
    noise = NoiseStream(seed=0, start=0, stop=3000 + samples)
    points = noise.normals(2, dtype=F64)
    ends = carried(points)
    seen, start, end = (points[:3000], ends[:3000]), points[3000:], ends[3000:]
    classical = solved(start)
    found = classical | learned(seen, start, iterations)
    errors = {name: {k: error(x, end) for k, x in curve.items()} for name, curve in found.items()}
    law = PROBLEM.target.sample(NoiseStream(1, 0, samples))
    laws = {
        name: {k: distance(x, law) for k, x in curve.items() if k in FEW} for name, curve in found.items()
    }
    floor = distance(end, law)
    adaptive = []
    for share in (1.0, 0.1, 0.01):
        walk = AdaptiveDPMSolver(3, atol=0.0078 * share, rtol=0.05 * share)
        result = walk.run(PREDICTION, start, times(1))
        adaptive.append(
            (3 * (result.accepted + result.rejected).double().mean().item(), error(result.points, end))
        )
    folder.mkdir(parents=True, exist_ok=True)
    plot(errors, adaptive, laws, floor).savefig(folder / "figure.png", dpi=150)
    numbers: dict[str, float] = {}
    for order, name in enumerate(("DPM-Solver 1 (DDIM)", "DPM-Solver++ 2M", "DPM-Solver++ 3M"), 1):
        logs = [math.log(errors[name][k]) for k in (32, 64, 128)]
        numbers[f"slope {order}"] = -float(np.polyfit(np.log((32, 64, 128)), logs, 1)[0])
    for count in (3, 5):
        numbers[f"fixed {count}"] = min(errors[name][count] for name in classical if count in errors[name])
        for name in ("S4S", "rectified flow", "flow map"):
            numbers[f"{name} {count}"] = errors[name][count]
    return numbers


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/sampler_work_precision"))
    parser.add_argument("--iterations", type=int, default=1500)
    parser.add_argument("--samples", type=int, default=1000)
    options = parser.parse_args()
    print(main(options.out, options.iterations, options.samples))
