"""Stochastic interpolants: schedules, paths, losses and samplers. Time 0 is the base, time 1 the target."""

from inference.interpolants.flow import FlowSampler, FlowSettings, VelocityNetwork, train_flow
from inference.interpolants.interpolant import Interpolant, velocity_loss
from inference.interpolants.schedule import Linear, Schedule, Trigonometric

__all__ = [
    "FlowSampler",
    "FlowSettings",
    "Interpolant",
    "Linear",
    "Schedule",
    "Trigonometric",
    "VelocityNetwork",
    "train_flow",
    "velocity_loss",
]
