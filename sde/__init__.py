"""Stochastic differential equations in PyTorch."""

from sde import hurst
from sde.adaptive import Control, solve_adaptive
from sde.boundaries import Boundary, solve_absorbed, solve_reflected
from sde.calculus import check_structure, to_ito, to_stratonovich
from sde.dense import DensePaths
from sde.ensemble import Ensemble
from sde.equation import SDE, Calculus, NoiseStructure, ode
from sde.events import first_passage
from sde.gradients import Adjoint, Backprop, Checkpointed, Reversible
from sde.heuristics import solve_with_heuristics
from sde.jump_diffusion import JumpDiffusion, solve_jumps
from sde.langevin import Langevin
from sde.noise import BrownianTree, NoiseStream, Purpose, WienerIncrements
from sde.semilinear import Semilinear
from sde.sensitivities import Estimator, gradient_of_expectation
from sde.shapes import check_shapes
from sde.solve import solve
from sde.solvers import EulerMaruyama, Heun, Solver
from sde.split import Split
from sde.square_root import CIR, Heston
from sde.statistics import solve_statistics

__all__ = [
    "CIR",
    "SDE",
    "Adjoint",
    "Backprop",
    "Boundary",
    "BrownianTree",
    "Calculus",
    "Checkpointed",
    "Control",
    "DensePaths",
    "Ensemble",
    "Estimator",
    "EulerMaruyama",
    "Heston",
    "Heun",
    "JumpDiffusion",
    "Langevin",
    "NoiseStream",
    "NoiseStructure",
    "Purpose",
    "Reversible",
    "Semilinear",
    "Solver",
    "Split",
    "WienerIncrements",
    "check_shapes",
    "check_structure",
    "first_passage",
    "gradient_of_expectation",
    "hurst",
    "ode",
    "solve",
    "solve_absorbed",
    "solve_adaptive",
    "solve_jumps",
    "solve_reflected",
    "solve_statistics",
    "solve_with_heuristics",
    "to_ito",
    "to_stratonovich",
]
