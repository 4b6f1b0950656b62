# %% [markdown]
# # Sobol' points against independent points
#
# The mean of a function over the cube, $\mu = \int_{(0,1)^d} g(x)\,\mathrm{d}x$, by the average over $n$
# points. Independent points have the error $\sigma / \sqrt n$ whatever the function. The points of a
# scrambled Sobol' sequence are still uniform one by one, so the average stays unbiased, but they fill the
# cube evenly: for smooth functions the error falls nearly as $1/n$.
#
# Such points are not independent, so their spread says nothing of the error. Independent randomisations
# ("replications") do: the spread of their $R$ averages, over $\sqrt R$. Here, for Sobol's function
#
# $$ g(x) = \prod_{i=1}^{6} \frac{|4 x_i - 2| + a_i}{1 + a_i}, \qquad a = (0, 1, 4.5, 9, 99, 99), \qquad \mu
# = 1. $$

# %%
"""Error of the mean of Sobol's function: independent points, Latin hypercubes, Sobol' points."""

from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.distributions import Uniform

from uq import FunctionModel, Iid, Input, Inputs, LatinHypercube, Sobol, monte_carlo

COEFFICIENTS = torch.tensor([0.0, 1.0, 4.5, 9.0, 99.0, 99.0], dtype=torch.float64)
REPLICATIONS = 32


def g(x: Tensor) -> Tensor:
    """Sobol's function; its mean over the cube is 1."""
    return (((4 * x - 2).abs() + COEFFICIENTS) / (1 + COEFFICIENTS)).prod(-1)


# %% [markdown]
# The function is plain Python on tensors. Inputs have names and laws; the design says where to look.


# %%
def root_mean_square_errors(sizes: list[int]) -> dict[str, list[float]]:
    """Error of the mean from ``n`` points, over the replications, for each ``n`` and design."""
    model = FunctionModel(g, input_dim=6)
    inputs = Inputs([Input(f"x{i + 1}", Uniform(0.0, 1.0)) for i in range(6)])
    errors: dict[str, list[float]] = {"independent": [], "Latin hypercube": [], "Sobol'": []}
    for n in sizes:
        designs = (Iid(6, seed=1), LatinHypercube(6, size=n, seed=1), Sobol(6, seed=1))
        for name, design in zip(errors, designs, strict=True):
            result = monte_carlo(
                model,
                inputs,
                seed=1,
                num_samples=n * REPLICATIONS,
                design=design,
                replications=REPLICATIONS,
                batch_size=8192,
                progress=False,
            )
            errors[name].append(float((result.replication_means - 1).square().mean().sqrt()))
    return errors


# %%
def plot(sizes: list[int], errors: dict[str, list[float]]) -> Figure:
    """Errors against numbers of points, with the two theoretical slopes."""
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    styles = {
        "independent": ("#8a97a3", "o"),
        "Latin hypercube": ("#c77b30", "s"),
        "Sobol'": ("#1f5f8b", "D"),
    }
    for name, values in errors.items():
        color, marker = styles[name]
        axes.loglog(sizes, values, color=color, marker=marker, markersize=4, label=name)
    n = np.array(sizes, dtype=float)
    for power, start, words in (
        (0.5, errors["independent"][0], "$n^{-1/2}$"),
        (1, errors["Sobol'"][0], "$n^{-1}$"),
    ):
        line = start * (n / n[0]) ** -power
        axes.loglog(n, line, color="#1b2733", linestyle=":", linewidth=1)
        axes.annotate(words, (n[-1], line[-1]), xytext=(4, -2), textcoords="offset points")
    axes.set(xlabel="points $n$", ylabel="root-mean-square error of the mean", xlim=(n[0] / 1.2, n[-1] * 1.9))
    axes.set_title("Mean of Sobol's function in 6 dimensions, 32 replications", fontsize=10)
    axes.legend(frameon=False)
    return figure


def main(folder: Path = Path("out/sobol_function"), largest: int = 12) -> dict[str, float]:
    """Measure, draw, and return slopes and the last ratio of errors.

    Args:
        folder: Where the figure goes.
        largest: Binary logarithm of the largest number of points.

    Returns:
        ``slope_<design>`` of the error in ``n``, and ``gain``: the error of independent points over that of
        Sobol'
        points at the largest ``n``.
    """
    sizes = [2**k for k in range(4, largest + 1)]
    errors = root_mean_square_errors(sizes)
    folder.mkdir(parents=True, exist_ok=True)
    plot(sizes, errors).savefig(folder / "figure.png", dpi=150)
    slopes = {name: float(np.polyfit(np.log(sizes), np.log(values), 1)[0]) for name, values in errors.items()}
    return {
        "slope_independent": slopes["independent"],
        "slope_latin_hypercube": slopes["Latin hypercube"],
        "slope_sobol": slopes["Sobol'"],
        "gain": errors["independent"][-1] / errors["Sobol'"][-1],
    }


if __name__ == "__main__":
    print(main())
