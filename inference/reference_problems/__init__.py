"""Laws whose interpolants are known exactly: velocity, score, densities, flow maps and divergences."""

from inference.reference_problems.coupled import CoupledGaussian, PointGaussian
from inference.reference_problems.linear import LinearProcess
from inference.reference_problems.mixture import Mixture, MixtureProblem, gaussian_flow_map, gaussian_kl

__all__ = [
    "CoupledGaussian",
    "LinearProcess",
    "Mixture",
    "MixtureProblem",
    "PointGaussian",
    "gaussian_flow_map",
    "gaussian_kl",
]
