# %% [markdown]
# # An ensemble of SDE paths with uncertain parameters
#
# A damped quantity under noise, whose rate $\lambda$ is not well known:
#
# $$ \mathrm{d}X_t = -\lambda X_t\,\mathrm{d}t + \sigma\,\mathrm{d}W_t, \qquad X_0 = 1, \qquad \ln\lambda \sim
# \mathcal N(0, 0.4^2). $$
#
# Two kinds of randomness meet: one $\lambda$ per sample (an *input*), and the path of $W$ (the *noise*).
# Sample $i$ is a function of the seed and of $i$ alone, so the run may be cut into batches, spread and
# resumed at will. #
# The mean path is wanted to within 0.01 at every instant, with 95 % confidence. The run stops by itself when
# that is so. Here the answer is known: $\mathrm E X_t = \mathrm E\, e^{-\lambda t}$, and
# $\mathrm{Var}\,(X_t \mid \lambda) = \sigma^2 (1 - e^{-2 \lambda t}) / 2 \lambda$.

# %%
"""Monte Carlo on an ensemble of Ornstein-Uhlenbeck paths with an uncertain rate."""

from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy import stats
from torch import Tensor

from sde import SDE, Calculus, Ensemble, Heun, NoiseStream, NoiseStructure
from uq import Input, Inputs, MonteCarloResult, Tolerance, monte_carlo

SIGMA, SPREAD = 0.5, 0.4
TIMES = torch.linspace(0, 3, 31, dtype=torch.float64)


# %% [markdown]
# The equation is made from the inputs of a batch; the quantity of interest is the path itself.


# %%
def equation(inputs: Tensor) -> SDE:
    """The equation whose rates are the rows of ``inputs``, shape ``(n, 1)``."""
    return SDE(
        drift=lambda t, x: -inputs * x,
        diffusion=lambda t, x: torch.full_like(x, SIGMA),
        structure=NoiseStructure.DIAGONAL,
        calculus=Calculus.STRATONOVICH,
    )


def component(paths: Tensor) -> Tensor:
    """The only component of the paths, shape ``(n, T)``."""
    return paths[..., 0]


MODEL = Ensemble(
    equation,
    initial=torch.ones(1, dtype=torch.float64),
    times=TIMES,
    qoi=component,
    input_dim=1,
    output_shape=(len(TIMES),),
    solver=Heun(),
    substeps=4,
)
INPUTS = Inputs([Input("rate", stats.lognorm(SPREAD), "1/s")])


# %%
def exact_mean_and_std() -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of the path, by quadrature over the rate."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    weights = weights / weights.sum()
    rate, t = np.exp(SPREAD * nodes)[:, None], TIMES.numpy()
    decay = np.exp(-rate * t)
    mean = weights @ decay
    second = weights @ (decay**2 + SIGMA**2 * (1 - decay**2) / (2 * rate))
    return mean, np.sqrt(second - mean**2)


def plot(result: MonteCarloResult, paths: Tensor) -> Figure:
    """Some paths, and the error of the mean beside its confidence band."""
    figure = Figure(figsize=(8.4, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    t, (mean, std) = TIMES.numpy(), exact_mean_and_std()
    left.plot(t, paths.T.numpy(), color="#8a97a3", linewidth=0.6, alpha=0.7)
    left.fill_between(
        t, mean - std, mean + std, color="#1f5f8b", alpha=0.2, linewidth=0, label="mean ± std, exact"
    )
    left.plot(t, result.mean.numpy(), color="#1f5f8b", linewidth=2, label="mean, Monte Carlo")
    left.set(xlabel="time [s]", ylabel="$X_t$")
    left.legend(frameon=False)
    half = result.half_width.numpy()
    right.fill_between(t, -half, half, color="#1f5f8b", alpha=0.2, linewidth=0, label="95 % interval")
    right.plot(t, result.mean.numpy() - mean, color="#1f5f8b", label="mean - exact mean")
    right.axhline(0, color="#1b2733", linewidth=0.8)
    right.set(xlabel="time [s]", ylabel="error of the mean", title=f"{result.num_samples} paths")
    right.set_ylim(-1.7 * half.max(), 1.4 * half.max())  # room for the legend below the band
    right.legend(frameon=False, loc="lower right")
    return figure


def main(folder: Path = Path("out/sde_monte_carlo"), accuracy: float = 0.01) -> dict[str, float]:
    """Run to the wanted accuracy, compare with the exact answer, draw.

    Args:
        folder: Where the figure goes.
        accuracy: Half width of the confidence interval of the mean, at every instant.

    Returns:
        ``num_samples``, ``half_width`` (the largest), ``mean_error`` and ``std_error`` (of the standard
        deviation, relative): the largest differences from the exact answer over all instants, and
        ``worst_z``: the largest error of the mean in standard errors.
    """
    result = monte_carlo(MODEL, INPUTS, seed=2024, tolerance=Tolerance(absolute=accuracy), progress=False)
    mean, std = (torch.from_numpy(part) for part in exact_mean_and_std())
    folder.mkdir(parents=True, exist_ok=True)
    # The paths of any samples can be had again: here the first 25 of the run.
    paths = MODEL(result.inputs[:25], NoiseStream(result.seed, 0, 25))
    plot(result, paths).savefig(folder / "figure.png", dpi=150)
    return {
        "num_samples": result.num_samples,
        "half_width": float(result.half_width.max()),
        "mean_error": float((result.mean - mean).abs().max()),
        "std_error": float((result.std[1:] / std[1:] - 1).abs().max()),
        "worst_z": float(((result.mean - mean).abs()[1:] / result.std_error[1:]).max()),
    }


if __name__ == "__main__":
    print(main())
