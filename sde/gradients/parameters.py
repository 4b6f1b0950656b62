"""What an equation is differentiated with respect to when the graph of its solve is not kept."""

from collections.abc import Callable

import torch
from torch import Tensor

from sde.march import Plan

__all__ = ["check_parameters", "trainable"]


def trainable(plan: Plan) -> tuple[Tensor, ...]:
    """The parameters of the equation that require a gradient."""
    return tuple(p for p in plan.sde.parameters or () if p.requires_grad)


def check_parameters(
    plan: Plan, initial: Tensor, functions: tuple[Callable[[Tensor, Tensor], Tensor], ...]
) -> None:
    """Raise if drift or diffusion use tensors with a gradient that the equation does not name.

    One evaluation is recorded and its graph walked: a tensor that is missing would get no gradient silently.

    Raises:
        ValueError: If such a tensor is found.
    """
    with torch.enable_grad():
        values = [function(plan.starts[0].detach(), initial.detach()) for function in functions]
    known = trainable(plan)
    roots = [value.grad_fn for value in values if value.grad_fn is not None]
    named = [parameter.grad_fn for parameter in known if parameter.grad_fn is not None]
    unknown = [leaf for leaf in _leaves(roots, named) if all(leaf is not parameter for parameter in known)]
    if unknown:
        raise ValueError(
            f"`parameters` of the equation must name all tensors with gradients; {len(unknown)} are missing, "
            f"one of shape {tuple(unknown[0].shape)}. Pass them as SDE(..., parameters=...), "
            "or use gradient=Checkpointed()."
        )


def _leaves(roots: list, ends: list) -> list[Tensor]:
    """Leaf tensors below the nodes of a graph, without going below some nodes."""
    seen, stack, leaves = set(ends), list(roots), []
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves.append(node.variable)
        stack.extend(parent for parent, _ in node.next_functions)
    return leaves
