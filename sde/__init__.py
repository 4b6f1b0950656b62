"""Stochastic differential equations in PyTorch."""

from sde.ensemble import Ensemble
from sde.equation import SDE, Calculus, NoiseStructure
from sde.noise import NoiseStream, Purpose, WienerIncrements
from sde.shapes import check_shapes
from sde.solve import solve
from sde.solvers import EulerMaruyama, Heun, Solver

__all__ = [
    "SDE",
    "Calculus",
    "Ensemble",
    "EulerMaruyama",
    "Heun",
    "NoiseStream",
    "NoiseStructure",
    "Purpose",
    "Solver",
    "WienerIncrements",
    "check_shapes",
    "solve",
]
