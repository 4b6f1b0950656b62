"""How a solve is differentiated."""

from sde.gradients.backprop import Backprop, Checkpointed, Gradient

__all__ = ["Backprop", "Checkpointed", "Gradient"]
