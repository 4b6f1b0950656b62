"""Estimators of the Hurst index, with standard errors and diagnostic figures."""

from sde.hurst.estimate import Diagnostic, HurstEstimate
from sde.hurst.fluctuations import dfa, rescaled_range
from sde.hurst.kalman import markov_likelihood
from sde.hurst.likelihood import fgn_spectral_density, maximum_likelihood, whittle
from sde.hurst.posterior import HurstPosterior, markov_posterior
from sde.hurst.variations import LocalHurst, local_index, quadratic_variations, variogram

__all__ = [
    "Diagnostic",
    "HurstEstimate",
    "HurstPosterior",
    "LocalHurst",
    "dfa",
    "fgn_spectral_density",
    "local_index",
    "markov_likelihood",
    "markov_posterior",
    "maximum_likelihood",
    "quadratic_variations",
    "rescaled_range",
    "variogram",
    "whittle",
]
