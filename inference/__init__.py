"""Learning of stochastic models and samplers from data."""

from inference.training import FitSettings, fit

__all__ = ["FitSettings", "fit"]
