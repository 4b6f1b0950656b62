"""Stochastic interpolants: schedules, paths, losses and samplers. Time 0 is the base, time 1 the target."""

from inference.interpolants.amplitude import (
    Amplitude,
    BrownianBridge,
    Fading,
    Parabola,
    Sigmoids,
    SineSquared,
)
from inference.interpolants.couplings import (
    Coupling,
    Entropic,
    OptimalTransport,
    coupled,
    dependent,
    independent,
    paired,
)
from inference.interpolants.field_network import FieldNetwork
from inference.interpolants.flow import FlowSampler, FlowSettings, VelocityNetwork, train_flow
from inference.interpolants.interpolant import Interpolant, Kind, Mirror, OneSided, TwoSided
from inference.interpolants.losses import kl_bound, matching_loss
from inference.interpolants.matching import Matching
from inference.interpolants.prediction import Prediction, reschedule
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
    "Coupling",
    "Diffusion",
    "EncodingDecoding",
    "Entropic",
    "Fading",
    "FieldNetwork",
    "FlowSampler",
    "FlowSettings",
    "Interpolant",
    "Kind",
    "Linear",
    "Matching",
    "Mirror",
    "Normalised",
    "OneSided",
    "OptimalTransport",
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
    "coupled",
    "dependent",
    "independent",
    "kl_bound",
    "matching_loss",
    "paired",
    "reschedule",
    "train_flow",
]
