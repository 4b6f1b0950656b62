"""Stochastic differential equations in PyTorch."""

from sde.adapters import from_object
from sde.adaptive import AdaptiveSolution, Control, solve_adaptive
from sde.calculus import check_structure, to_ito, to_stratonovich
from sde.ensemble import Ensemble
from sde.equation import SDE, Calculus, NoiseStructure, ode
from sde.events import FirstPassage, first_passage
from sde.gradients import Adjoint, Backprop, Checkpointed, Reversible
from sde.langevin import Langevin
from sde.noise import BrownianTree, NoiseStream, Purpose, WienerIncrements
from sde.shapes import check_shapes
from sde.solve import solve
from sde.solvers import EulerMaruyama, Heun, Solver

__all__ = [
    "SDE",
    "AdaptiveSolution",
    "Adjoint",
    "Backprop",
    "BrownianTree",
    "Calculus",
    "Checkpointed",
    "Control",
    "Ensemble",
    "EulerMaruyama",
    "FirstPassage",
    "Heun",
    "Langevin",
    "NoiseStream",
    "NoiseStructure",
    "Purpose",
    "Reversible",
    "Solver",
    "WienerIncrements",
    "check_shapes",
    "check_structure",
    "first_passage",
    "from_object",
    "ode",
    "solve",
    "solve_adaptive",
    "to_ito",
    "to_stratonovich",
]
