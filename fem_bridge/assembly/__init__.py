"""Assembly: a mesh goes in, arrays come out; DOLFINx and scikit-fem behind one interface."""

from fem_bridge.assembly.interface import (
    Assembler,
    ElasticOperators,
    default_assembler,
    load_operators,
    plane_strain_elasticity,
    save_operators,
)
from fem_bridge.assembly.mesh import Mesh, SubMesh, rectangle

__all__ = [
    "Assembler",
    "ElasticOperators",
    "Mesh",
    "SubMesh",
    "default_assembler",
    "load_operators",
    "plane_strain_elasticity",
    "rectangle",
    "save_operators",
]
