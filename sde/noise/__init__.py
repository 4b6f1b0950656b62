"""Noise that is addressed, not consumed."""

from sde.noise.backends import Backend, backend
from sde.noise.brownian import WienerIncrements
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
from sde.noise.stream import NoiseStream, Purpose
from sde.noise.tree import BrownianTree

__all__ = [
    "Areas",
    "Backend",
    "BrownianTree",
    "CoarseIncrements",
    "CompoundPoisson",
    "CorrelatedIncrements",
    "GivenIncrements",
    "Increment",
    "Increments",
    "Jumps",
    "LevyLaw",
    "NoiseStream",
    "Purpose",
    "WienerIncrements",
    "backend",
]
