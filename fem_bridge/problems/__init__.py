"""Physical problems, one file each, and their full models."""

from fem_bridge.problems.elastodynamics import AssembledImpact, ImpactProblem, assemble
from fem_bridge.problems.full_model import FullModel, ImpactRuns, Output

__all__ = ["AssembledImpact", "FullModel", "ImpactProblem", "ImpactRuns", "Output", "assemble"]
