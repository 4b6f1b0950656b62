"""One-step methods, one file per family."""

from sde.solvers.euler import EulerMaruyama, TamedEuler
from sde.solvers.exponential import ExponentialEuler, ExponentialSRA1
from sde.solvers.foster import GeneralShARK, ShARK, ShiftedEuler, SlowRK, SPaRK
from sde.solvers.heun import EulerHeun, Heun, Midpoint, Ralston
from sde.solvers.implicit import ThetaEuler
from sde.solvers.interface import EmbeddedSolver, OneStep, Orders, Solver, check_pairing
from sde.solvers.langevin import ALIGN, BAOAB, QUICSORT, UBU, ShOULD
from sde.solvers.log_ode import LogODE
from sde.solvers.milstein import Milstein, MilsteinLevy, MilsteinStratonovich, RungeKuttaMilstein
from sde.solvers.reversible import ReversibleHeun
from sde.solvers.runge_kutta import SOSRA, SOSRI, SRA1, SRA2, SRA3, SRIW1, SRIW2
from sde.solvers.splitting import LieTrotter, Strang
from sde.solvers.square_root import (
    FullTruncationEuler,
    HestonQuadraticExponential,
    ImplicitSquareRoot,
    QuadraticExponential,
)
from sde.solvers.weak import DRI1, PlatenWeak2

__all__ = [
    "ALIGN",
    "BAOAB",
    "DRI1",
    "QUICSORT",
    "SOSRA",
    "SOSRI",
    "SRA1",
    "SRA2",
    "SRA3",
    "SRIW1",
    "SRIW2",
    "UBU",
    "EmbeddedSolver",
    "EulerHeun",
    "EulerMaruyama",
    "ExponentialEuler",
    "ExponentialSRA1",
    "FullTruncationEuler",
    "GeneralShARK",
    "HestonQuadraticExponential",
    "Heun",
    "ImplicitSquareRoot",
    "LieTrotter",
    "LogODE",
    "Midpoint",
    "Milstein",
    "MilsteinLevy",
    "MilsteinStratonovich",
    "OneStep",
    "Orders",
    "PlatenWeak2",
    "QuadraticExponential",
    "Ralston",
    "ReversibleHeun",
    "RungeKuttaMilstein",
    "SPaRK",
    "ShARK",
    "ShOULD",
    "ShiftedEuler",
    "SlowRK",
    "Solver",
    "Strang",
    "TamedEuler",
    "ThetaEuler",
    "check_pairing",
]
