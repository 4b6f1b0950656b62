"""How a solve is differentiated."""

from sde.gradients.adjoint import Adjoint
from sde.gradients.backprop import Backprop, Checkpointed, Gradient
from sde.gradients.reversible import Reversible
from sde.gradients.tableau import Symplectic

__all__ = ["Adjoint", "Backprop", "Checkpointed", "Gradient", "Reversible", "Symplectic"]
