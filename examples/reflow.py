# %% [markdown]
# # Straight paths: a flow that one step solves
#
# The flow of independent pairs $x_0 \sim N(0, 1)$, $x_1 \sim \rho_1$ carries one law to the other along
# curved paths. One step of Euler's method from the base,
#
# $$ x_0 + b(0, x_0) = \mathbb E[x_1], $$
#
# sends every point to the mean of the target: useless. Rectification takes the pairs $(x_0, X_1(x_0))$ that
# the flow itself makes and learns again from them. The map stays, the paths straighten, and one step does
# what a hundred did. How straight a flow is, is a number,
#
# $$ S = \int_0^1 \mathbb E\,\bigl|(X_1 - X_0) - b(t, X_t)\bigr|^2\,\mathrm dt, $$
#
# zero where one step is exact. Here the first flow is known in closed form (three Gaussian modes), so that
# all that is seen to be wrong comes from learning.

# %%
"""Rectified flow: straightness and one-step samples before and after learning from the flow's own pairs."""

import argparse
import math
from pathlib import Path

import torch
from matplotlib.figure import Figure
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from inference.interpolants import Kind, Matching, OneSided, Prediction
from inference.interpolants.field_network import FieldNetwork
from inference.reference_problems import Mixture, MixtureProblem
from inference.samplers import ProbabilityFlow, flow_equation, reflow, straightness
from inference.training import FitSettings, fit
from sde import EulerMaruyama, Heun, NoiseStream, solve

TIMES = torch.linspace(0, 1, 101)
PAIRS, POINTS = 20_000, 2000  # pairs to learn from; points that the numbers are of
_NO_NOISE = NoiseStream(0, 0, 0)


def problem() -> MixtureProblem:
    """Straight lines from the standard normal law to three modes."""
    means = torch.tensor([[2.0, 0.0], [-1.0, 1.5], [-1.0, -2.0]])
    spreads = torch.tensor([0.3, 0.5, 0.4])
    covariances = spreads[:, None, None] ** 2 * torch.eye(2)
    target = Mixture(torch.tensor([0.5, 0.3, 0.2]), means, covariances)
    return MixtureProblem(OneSided(), Mixture.standard(2, dtype=torch.float32), target)


def distance(first: Tensor, second: Tensor) -> float:
    """Wasserstein-2 distance of two samples of the same size, by the best assignment."""
    cost = torch.cdist(first.double(), second.double()).square().numpy()
    return math.sqrt(cost[linear_sum_assignment(cost)].mean())


# %% [markdown]
# Learning again is the same loss, with the flow's own pairs in place of independent ones.


# %%
def rectify(first: Prediction, iterations: int, seed: int, checkpoint: Path) -> Prediction:
    """A flow learned from the pairs that another makes."""
    start = NoiseStream(seed, 0, PAIRS).fork("pairs").normals(2)
    loss = Matching(
        OneSided(), Kind.VELOCITY, reflow(first, start, TIMES), batch=512, seed=seed, antithetic=False
    )
    network, _ = fit(
        FieldNetwork(2, width=128, depth=3, seed=seed),
        loss,
        settings=FitSettings(iterations, rate=2e-3),
        identity={"seed": seed, "pairs": PAIRS},
        checkpoint=checkpoint,
        label="reflow",
    )
    return Prediction(OneSided(), {Kind.VELOCITY: network})


def one_step(prediction: Prediction, start: Tensor) -> Tensor:
    """Ends of a single step of Euler's method."""
    return ProbabilityFlow(EulerMaruyama())(prediction, start, torch.tensor([0.0, 1.0]), _NO_NOISE)


def plot(flows: dict[str, Prediction], start: Tensor, target: Tensor) -> Figure:
    """Paths of each flow above, and where one step brings the points below, with the target behind."""
    figure = Figure(figsize=(8.4, 8.2), layout="constrained")
    axes = figure.subplots(2, 2, sharex=True, sharey=True)
    for column, (name, prediction) in enumerate(flows.items()):
        paths = solve(flow_equation(prediction), start[:60], TIMES, None, solver=Heun())
        above, below = axes[:, column]
        above.plot(*target[:1000].T, ".", color="#c9d3dc", markersize=3, label="target")
        for row, path in enumerate(paths):
            above.plot(*path.T, color="#1f5f8b", linewidth=0.7, label="" if row else "path")
        above.plot(*paths[:, 0].T, "o", color="#1b2733", markersize=3, label="base point")
        above.plot(*paths[:, -1].T, "o", color="#b5562b", markersize=3, label="its image")
        above.set_title(f"{name}: paths")
        below.plot(*target[:1000].T, ".", color="#c9d3dc", markersize=3, label="target")
        below.plot(
            *one_step(prediction, start[:1000]).T, ".", color="#b5562b", markersize=3, label="one step"
        )
        below.set_title(f"{name}: one Euler step")
        below.set_xlabel("first coordinate")
    for row in axes:
        row[0].set_ylabel("second coordinate")
        row[0].legend(frameon=False, fontsize=8, loc="upper right")
    return figure


def main(
    folder: Path = Path("out/reflow"), iterations: int = 6000, seed: int = 0, points: int = POINTS
) -> dict[str, float]:
    """Learn the straight flow, compare, draw.

    Args:
        folder: Where the figure and the checkpoint go; a run that was killed goes on.
        iterations: Steps of the training.
        seed: Of pairs, weights and points.
        points: Number of points that the numbers are of.

    Returns:
        ``straightness_before`` and ``straightness``; ``one_step_before`` and ``one_step``: Wasserstein-2
        distance of one step of Euler's method from a sample of the target; ``floor``: that of a fine solve of
        the exact flow from the same base points; ``mean_only``: what one step must give before, the root of
        the trace of the target's covariance; ``map_change``: root-mean-square distance of where the two flows
        carry a point.
    """
    exact = problem()
    before = exact.prediction()
    after = rectify(before, iterations, seed, folder / "checkpoint.pt")
    fresh = NoiseStream(seed, 0, points).fork("test")
    start, target = fresh.normals(2), exact.target.sample(fresh.fork("target"))
    fine = [ProbabilityFlow()(flow, start, TIMES, _NO_NOISE) for flow in (before, after)]
    folder.mkdir(parents=True, exist_ok=True)
    flows = {"independent pairs": before, "the flow's own pairs": after}
    plot(flows, start, target).savefig(folder / "figure.png", dpi=120)
    return {
        "straightness_before": straightness(before, start, TIMES).item(),
        "straightness": straightness(after, start, TIMES).item(),
        "one_step_before": distance(one_step(before, start), target),
        "one_step": distance(one_step(after, start), target),
        "floor": distance(fine[0], target),
        "mean_only": exact.target.covariance.trace().sqrt().item(),
        "map_change": (fine[1] - fine[0]).square().sum(1).mean().sqrt().item(),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--iterations", type=int, default=6000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out/reflow"))
    options = parser.parse_args()
    print(main(options.out, options.iterations, options.seed))
