"""Samplers that carry a base to a target along what networks have learned of an interpolant."""

from inference.samplers.adaptive import AdaptiveDPMSolver, AdaptiveFlow
from inference.samplers.bdia import BDIA
from inference.samplers.dpm_solver import DPMSolver, StochasticDPMSolver
from inference.samplers.flow_map import FlowMapLoss, FlowMapNetwork, FlowMapSampler
from inference.samplers.flows import (
    ProbabilityDiffusion,
    ProbabilityFlow,
    capped_diffusivity,
    diffusion_equation,
    flow_equation,
    leaving_diffusivity,
    optimal_diffusivity,
)
from inference.samplers.forecast import leave_point
from inference.samplers.generator import Generator
from inference.samplers.grids import geometric_times, leaving_times, log_snr_times
from inference.samplers.guidance import guided
from inference.samplers.interface import Sampler
from inference.samplers.learned import LearnedSolver, fit_solver
from inference.samplers.poisson import StudentNoise, denoising_flow
from inference.samplers.posterior import Observation, classified, observed
from inference.samplers.rectified import reflow, straightness
from inference.samplers.rescaled import RescaledFlow

__all__ = [
    "BDIA",
    "AdaptiveDPMSolver",
    "AdaptiveFlow",
    "DPMSolver",
    "FlowMapLoss",
    "FlowMapNetwork",
    "FlowMapSampler",
    "Generator",
    "LearnedSolver",
    "Observation",
    "ProbabilityDiffusion",
    "ProbabilityFlow",
    "RescaledFlow",
    "Sampler",
    "StochasticDPMSolver",
    "StudentNoise",
    "capped_diffusivity",
    "classified",
    "denoising_flow",
    "diffusion_equation",
    "fit_solver",
    "flow_equation",
    "geometric_times",
    "guided",
    "leave_point",
    "leaving_diffusivity",
    "leaving_times",
    "log_snr_times",
    "observed",
    "optimal_diffusivity",
    "reflow",
    "straightness",
]
