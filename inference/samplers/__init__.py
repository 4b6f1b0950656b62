"""Samplers that carry a base to a target along what networks have learned of an interpolant."""

from inference.samplers.bdia import BDIA
from inference.samplers.dpm_solver import DPMSolver, StochasticDPMSolver
from inference.samplers.flows import (
    ProbabilityDiffusion,
    ProbabilityFlow,
    capped_diffusivity,
    diffusion_equation,
    flow_equation,
    optimal_diffusivity,
)
from inference.samplers.forecast import leave_point
from inference.samplers.grids import geometric_times, log_snr_times
from inference.samplers.guidance import guided
from inference.samplers.interface import Sampler
from inference.samplers.learned import LearnedSolver, fit_solver
from inference.samplers.poisson import StudentNoise, denoising_flow
from inference.samplers.rectified import reflow, straightness

__all__ = [
    "BDIA",
    "DPMSolver",
    "LearnedSolver",
    "ProbabilityDiffusion",
    "ProbabilityFlow",
    "Sampler",
    "StochasticDPMSolver",
    "StudentNoise",
    "capped_diffusivity",
    "denoising_flow",
    "diffusion_equation",
    "fit_solver",
    "flow_equation",
    "geometric_times",
    "guided",
    "leave_point",
    "log_snr_times",
    "optimal_diffusivity",
    "reflow",
    "straightness",
]
