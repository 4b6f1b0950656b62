"""Gaussian and lognormal random fields whose coefficients are noise or inputs."""

from uq.random_fields.covariance import Covariance, Exponential, Matern, SquaredExponential
from uq.random_fields.fourier import FixedFourierFeatures, RandomFourierFeatures
from uq.random_fields.karhunen_loeve import Coefficients, KarhunenLoeve
from uq.random_fields.transforms import GaussianField, Lognormal, Windowed, box_window

__all__ = [
    "Coefficients",
    "Covariance",
    "Exponential",
    "FixedFourierFeatures",
    "GaussianField",
    "KarhunenLoeve",
    "Lognormal",
    "Matern",
    "RandomFourierFeatures",
    "SquaredExponential",
    "Windowed",
    "box_window",
]
