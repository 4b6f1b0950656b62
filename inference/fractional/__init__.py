"""Inference with fractional noise: exact evidence, exact posteriors, controls and their bounds."""

from inference.fractional.chain import GaussianChain, Observations, fractional_chain, linear_transition
from inference.fractional.conjugate import ConjugatePosterior
from inference.fractional.control import HeldControl, held_control
from inference.fractional.evidence import Smoothed, log_evidence, smoothed
from inference.fractional.guide import GuidedPaths, GuidedPosterior
from inference.fractional.linear_equation import LinearEquation
from inference.fractional.matching import MatchedPosterior

__all__ = [
    "ConjugatePosterior",
    "GaussianChain",
    "GuidedPaths",
    "GuidedPosterior",
    "HeldControl",
    "LinearEquation",
    "MatchedPosterior",
    "Observations",
    "Smoothed",
    "fractional_chain",
    "held_control",
    "linear_transition",
    "log_evidence",
    "smoothed",
]
