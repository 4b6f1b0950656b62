"""One-step methods, one file per family."""

from sde.solvers.euler import EulerMaruyama
from sde.solvers.heun import Heun
from sde.solvers.interface import Increment, Orders, Solver, check_pairing

__all__ = ["EulerMaruyama", "Heun", "Increment", "Orders", "Solver", "check_pairing"]
