"""Learning of stochastic models and samplers from data."""

from inference.latent_samplers import PosteriorSampler, Prediction, PriorSampler, predict
from inference.latent_sde import LatentSDE, latent_sde
from inference.latent_training import LatentTraining, train_latent
from inference.series import Series
from inference.training import FitSettings, fit

__all__ = [
    "FitSettings",
    "LatentSDE",
    "LatentTraining",
    "PosteriorSampler",
    "Prediction",
    "PriorSampler",
    "Series",
    "fit",
    "latent_sde",
    "predict",
    "train_latent",
]
