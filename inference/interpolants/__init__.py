"""Stochastic interpolants: schedules, paths, losses and samplers. Time 0 is the base, time 1 the target."""

from inference.interpolants.amplitude import (
    Amplitude,
    BrownianBridge,
    Fading,
    Parabola,
    Sigmoids,
    SineSquared,
)
from inference.interpolants.flow import FlowSampler, FlowSettings, VelocityNetwork, train_flow
from inference.interpolants.interpolant import Interpolant, Kind, Mirror, OneSided, TwoSided
from inference.interpolants.losses import kl_bound, matching_loss
from inference.interpolants.prediction import Prediction
from inference.interpolants.schedule import (
    Diffusion,
    EncodingDecoding,
    Linear,
    Normalised,
    Quadratic,
    Schedule,
    Trigonometric,
    VariancePreserving,
)

__all__ = [
    "Amplitude",
    "BrownianBridge",
    "Diffusion",
    "EncodingDecoding",
    "Fading",
    "FlowSampler",
    "FlowSettings",
    "Interpolant",
    "Kind",
    "Linear",
    "Mirror",
    "Normalised",
    "OneSided",
    "Parabola",
    "Prediction",
    "Quadratic",
    "Schedule",
    "Sigmoids",
    "SineSquared",
    "Trigonometric",
    "TwoSided",
    "VariancePreserving",
    "VelocityNetwork",
    "kl_bound",
    "matching_loss",
    "train_flow",
]
