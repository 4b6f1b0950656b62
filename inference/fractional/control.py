r"""The best control that is held over steps, and the evidence bound that it reaches.

A control ``u`` moves the Wiener process, :math:`\mathrm dW \to \mathrm dW + u\,\mathrm dt`, at the cost
:math:`\tfrac12 \int u^2\,\mathrm dt`. For a linear equation and Gaussian observations the best one that is
held over each step, as a function of the state at its start, comes from a quadratic recursion. Its bound is
what a perfectly trained network on that grid would reach.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from inference.fractional.chain import GaussianChain, Observations
from sde.noise.markov_fbm import MarkovFBM

__all__ = ["HeldControl", "held_control"]


@dataclass(frozen=True, slots=True, eq=False)
class HeldControl:
    """The best control that is held over steps.

    Attributes:
        bound: Its evidence lower bound, 0-d.
        gains: ``u = offsets[n] - gains[n] @ z`` over step ``n``, shape ``(N, D)``.
        offsets: Shape ``(N,)``.
        push: What a unit control adds to the state over a step, shape ``(D,)``.
    """

    bound: Tensor
    gains: Tensor
    offsets: Tensor
    push: Tensor


def held_control(
    chain: GaussianChain, model: MarkovFBM, observations: Observations, *, scale: float = 1.0
) -> HeldControl:
    """The best held control of fractional Brownian motion times a scale, on equal steps.

    Args:
        chain: The process, made by :func:`fractional_chain` without reversion, of type II.
        model: The noise that it was made of.
        observations: One series.
        scale: The scale that it was made with.

    Returns:
        The control and its bound.

    Raises:
        ValueError: If the steps differ, the model is of type I, or there are several series.

    References:
        Bertsekas (2017), Dynamic Programming and Optimal Control, volume 1, section 3.1.
    """
    spans = chain.times.diff()
    if not torch.allclose(spans, spans[:1].expand_as(spans), rtol=1e-6, atol=0):
        raise ValueError("`chain` must have equal steps; got different ones.")
    if model.type != "II" or callable(model.H) or observations.values.dim() != 1:
        raise ValueError("`model` must be of type II with a constant index, and `observations` one series.")
    span = spans[0]
    push = _push(model, span, scale)
    size = len(chain.mean)
    # The cost to go is z'Az/2 - b'z + c.
    a, b, c = torch.zeros(size, size).double(), torch.zeros(size).double(), torch.zeros(()).double()
    gains, offsets = [], []
    for n in range(chain.num_steps, -1, -1):
        seen = observations.at(n)
        if seen is not None:
            values, variance, row = *seen, chain.rows[n]
            a = a + torch.outer(row, row) / variance
            b = b + values[0] * row / variance
            c = c + 0.5 * (values[0] ** 2 / variance + torch.log(2 * math.pi * variance))
        if n:
            factor, transition = chain.factors[n - 1], chain.transitions[n - 1]
            c = c + 0.5 * (factor.mT @ a @ factor).diagonal().sum()
            weight, gain = span + push @ a @ push, transition.mT @ a @ push
            offset = b @ push
            gains.append(gain / weight)
            offsets.append(offset / weight)
            c = c - 0.5 * offset**2 / weight
            b = transition.mT @ b - gain * offset / weight
            a = transition.mT @ a @ transition - torch.outer(gain, gain) / weight
    start = chain.start
    mean = chain.mean
    cost = 0.5 * mean @ a @ mean - b @ mean + c + 0.5 * (start.mT @ a @ start).diagonal().sum()
    return HeldControl(-cost, torch.stack(gains[::-1]), torch.stack(offsets[::-1]), push)


def _push(model: MarkovFBM, span: Tensor, scale: float) -> Tensor:
    """What a unit control adds to ``(X, Z)`` over a step."""
    rates = model.rates
    safe = torch.where(rates > 0, rates, 1.0)
    moved = torch.where(rates > 0, -torch.expm1(-rates * span) / safe, span)
    return torch.cat(((scale * model.omega() @ moved).reshape(1), moved))
