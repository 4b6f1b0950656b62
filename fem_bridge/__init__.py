"""Finite elements for uncertainty quantification: assemblers, dynamics, submodels, boundary generators."""

from fem_bridge.assembly import Assembler, ElasticOperators, Mesh, default_assembler, rectangle
from fem_bridge.boundary import BoundaryGenerator, WassersteinFit, train_boundary_generator
from fem_bridge.datasets import Ensemble, Split, build_ensemble
from fem_bridge.problems import FullModel, ImpactProblem, Output
from fem_bridge.submodel import Submodel
from fem_bridge.traces import TimeCompression, TraceCompression, TraceErrors
from fem_bridge.zones import Zone, ZoneResponse, cut_zone

__all__ = [
    "Assembler",
    "BoundaryGenerator",
    "ElasticOperators",
    "Ensemble",
    "FullModel",
    "ImpactProblem",
    "Mesh",
    "Output",
    "Split",
    "Submodel",
    "TimeCompression",
    "TraceCompression",
    "TraceErrors",
    "WassersteinFit",
    "Zone",
    "ZoneResponse",
    "build_ensemble",
    "cut_zone",
    "default_assembler",
    "rectangle",
    "train_boundary_generator",
]
