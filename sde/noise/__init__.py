"""Noise that is addressed, not consumed."""

from sde.noise.backends import Backend, backend
from sde.noise.brownian import WienerIncrements
from sde.noise.stream import NoiseStream, Purpose

__all__ = ["Backend", "NoiseStream", "Purpose", "WienerIncrements", "backend"]
