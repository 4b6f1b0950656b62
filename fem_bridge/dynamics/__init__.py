"""Time integration in torch of assembled operators: batched over samples, on CPU or GPU, differentiable."""

from fem_bridge.dynamics.batch import Batch, Integrator
from fem_bridge.dynamics.explicit import CentralDifference
from fem_bridge.dynamics.implicit import GeneralizedAlpha, Newmark
from fem_bridge.dynamics.loads import Load, Pulse, SeparableLoad, SineSquaredPulse
from fem_bridge.dynamics.simulation import Trajectory, simulate, substeps_for
from fem_bridge.dynamics.system import DofChoice, ElasticSystem

__all__ = [
    "Batch",
    "CentralDifference",
    "DofChoice",
    "ElasticSystem",
    "GeneralizedAlpha",
    "Integrator",
    "Load",
    "Newmark",
    "Pulse",
    "SeparableLoad",
    "SineSquaredPulse",
    "Trajectory",
    "simulate",
    "substeps_for",
]
