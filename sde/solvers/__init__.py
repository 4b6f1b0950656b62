"""One-step methods, one file per family."""

from sde.solvers.euler import EulerMaruyama
from sde.solvers.heun import Heun
from sde.solvers.interface import EmbeddedSolver, OneStep, Orders, Solver, check_pairing

__all__ = ["EmbeddedSolver", "EulerMaruyama", "Heun", "OneStep", "Orders", "Solver", "check_pairing"]
