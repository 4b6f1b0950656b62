"""Noise that is addressed, not consumed."""

from sde.noise.backends import Backend, backend
from sde.noise.brownian import WienerIncrements
from sde.noise.circulant import StationarySampler, fbm_path, fgn, fgn_sampler
from sde.noise.fractional import (
    fbm_covariance,
    fgn_autocovariance,
    fou_autocovariance,
    multifractional_covariance,
    riemann_liouville_covariance,
)
from sde.noise.fractional_ou import fou_path, fou_sampler
from sde.noise.gaussian_path import Conditional, condition, gaussian_path, hosking
from sde.noise.increments import (
    Areas,
    CoarseIncrements,
    CorrelatedIncrements,
    GivenIncrements,
    Increment,
    Increments,
)
from sde.noise.jumps import CompoundPoisson, Jumps
from sde.noise.levy_area import LevyLaw
from sde.noise.markov_fbm import MarkovFBM
from sde.noise.stream import NoiseStream, Purpose
from sde.noise.tree import BrownianTree

__all__ = [
    "Areas",
    "Backend",
    "BrownianTree",
    "CoarseIncrements",
    "CompoundPoisson",
    "Conditional",
    "CorrelatedIncrements",
    "GivenIncrements",
    "Increment",
    "Increments",
    "Jumps",
    "LevyLaw",
    "MarkovFBM",
    "NoiseStream",
    "Purpose",
    "StationarySampler",
    "WienerIncrements",
    "backend",
    "condition",
    "fbm_covariance",
    "fbm_path",
    "fgn",
    "fgn_autocovariance",
    "fgn_sampler",
    "fou_autocovariance",
    "fou_path",
    "fou_sampler",
    "gaussian_path",
    "hosking",
    "multifractional_covariance",
    "riemann_liouville_covariance",
]
