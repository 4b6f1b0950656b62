"""Stochastic differential equations in PyTorch."""

from sde.noise import NoiseStream, Purpose
from sde.shapes import check_shapes

__all__ = ["NoiseStream", "Purpose", "check_shapes"]
