"""Noise that is addressed, not consumed."""

from sde.noise.stream import NoiseStream, Purpose

__all__ = ["NoiseStream", "Purpose"]
