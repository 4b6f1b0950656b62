"""Uncertainty quantification: inputs, designs, Monte Carlo, random fields, generators, metrics, reports."""

from uq.baselines import Bootstrap, PodGaussian
from uq.comparison import Comparison, compare, compare_quantities
from uq.designs import Design, Halton, Iid, LatinHypercube, Sobol
from uq.execution import process_pool
from uq.generator import WassersteinGenerator
from uq.histograms import Histogram
from uq.inputs import Input, Inputs
from uq.model import FunctionModel, Model, RowModel
from uq.moments import Moments
from uq.monte_carlo import monte_carlo
from uq.quantiles import EmpiricalCDF, quantile
from uq.reading import Failures, Tolerance
from uq.report import Report
from uq.results import MonteCarloResult
from uq.storage import RunStore
from uq.training import WassersteinSettings, plot_training, train_wasserstein

__all__ = [
    "Bootstrap",
    "Comparison",
    "Design",
    "EmpiricalCDF",
    "Failures",
    "FunctionModel",
    "Halton",
    "Histogram",
    "Iid",
    "Input",
    "Inputs",
    "LatinHypercube",
    "Model",
    "Moments",
    "MonteCarloResult",
    "PodGaussian",
    "Report",
    "RowModel",
    "RunStore",
    "Sobol",
    "Tolerance",
    "WassersteinGenerator",
    "WassersteinSettings",
    "compare",
    "compare_quantities",
    "monte_carlo",
    "plot_training",
    "process_pool",
    "quantile",
    "train_wasserstein",
]
