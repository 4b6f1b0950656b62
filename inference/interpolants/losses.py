r"""Quadratic losses whose minimisers are the fields of an interpolant, each with its floor.

For a kind with sample values ``y`` (the velocity of the path, minus the latent variable over its amplitude,
and so on) the field is :math:`f^* = E[y | x_t]`, the only minimiser of

.. math:: L(f) = \int_0^1 E\Bigl[\tfrac12 |f(t, x_t)|^2 - f(t, x_t) \cdot y_t\Bigr] \mathrm dt,
          \qquad \min L = -\tfrac12 \int_0^1 E |f^*(t, x_t)|^2\, \mathrm dt .

Against the squared error this lacks a constant that can be infinite, and its least value is known wherever
the field is: what a network exceeds it by is its error.

References:
    Albergo, Boffi & Vanden-Eijnden (2023), Stochastic interpolants, sections 2.2, 4.3 and 6.1.
    arXiv:2303.08797
"""

import torch
from torch import Tensor

from inference.interpolants.interpolant import Interpolant, Kind, OneSided, TwoSided
from sde.equation import Coefficient
from sde.shapes import check_shapes

__all__ = ["kl_bound", "matching_loss"]


def matching_loss(
    field: Coefficient,
    kind: Kind,
    interpolant: Interpolant,
    t: Tensor,
    *,
    base: Tensor,
    target: Tensor,
    latent: Tensor,
    antithetic: bool = True,
) -> Tensor:
    r"""The integrand of the loss at sampled points, whose mean is the loss.

    With the antithetic pair :math:`I \pm c z` the parts that are divided by the amplitude appear as
    differences of the field, and the variance stays finite where the amplitude vanishes. Times are moved
    inside by the square root of the rounding unit, so that the value at exactly 0 or 1 is its limit.

    Args:
        field: The model: times ``(n, 1)`` and points ``(n, d)`` to ``(n, d)``.
        kind: What it predicts.
        interpolant: The path.
        t: Times in [0, 1], shape ``(n, 1)``. For times of density p, divide the result by p.
        base: Samples of the base, shape ``(n, d)``; not read by one-sided and mirror paths.
        target: Samples of the target, coupled with those of the base in any way, shape ``(n, d)``.
        latent: Standard normals, independent of both, shape ``(n, d)``; of a one-sided path it is the base.
        antithetic: Evaluate the field at both points of the pair; else at one.

    Returns:
        The integrand for each sample, shape ``(n,)``.

    Raises:
        ValueError: If shapes disagree or the interpolant has no such kind.

    Example:
        >>> one = torch.ones(4, 2)
        >>> path, t = OneSided(), one[:, :1] / 2
        >>> ends = {"base": one, "target": 3 * one, "latent": one}
        >>> matching_loss(lambda t, x: 3 + 0 * x, Kind.VELOCITY, path, t, **ends)
        tensor([-9., -9., -9., -9.])

    References:
        Albergo, Boffi & Vanden-Eijnden (2023), Stochastic interpolants, section 6.1. arXiv:2303.08797
    """
    check_shapes(base=(base, "n d"), target=(target, "n d"), latent=(latent, "n d"), t=(t, "n 1"))
    margin = torch.finfo(t.dtype).eps ** 0.5
    t = t.clamp(margin, 1 - margin)
    even, odd = _regressand(kind, interpolant, t, base, target)
    centre, amplitude = interpolant.centre(t, base, target), interpolant.variance(t)[0].sqrt()
    plus = field(t, centre + amplitude * latent)
    if not antithetic:
        return (0.5 * plus**2 - plus * (even + odd * latent)).sum(-1)
    minus = field(t, centre - amplitude * latent)
    quadratic = 0.25 * (plus**2 + minus**2) - 0.5 * (plus + minus) * even
    return (quadratic - 0.5 * odd * latent * (plus - minus)).sum(-1)


def kl_bound(excess_velocity: float, excess_score: float, eps: float) -> float:
    r"""A bound on the divergence of the target from what a sampler with learned fields generates.

    .. math:: \mathrm{KL}(\rho_1 \| \hat\rho_1) \le \frac1\epsilon\,(L_b - \min L_b)
              + \epsilon\,(L_s - \min L_s)

    for the forward equation with a constant :math:`\epsilon`, solved exactly. The losses carry the factor 1/2
    of :func:`matching_loss`; the theorem is printed with 1/2 in front of both terms, which is too small by
    two for such losses.

    Args:
        excess_velocity: Loss of the velocity above its floor.
        excess_score: Loss of the score above its floor.
        eps: Diffusivity, positive; ``sqrt(excess_velocity / excess_score)`` gives the least bound.

    Returns:
        The bound in nats.

    Raises:
        ValueError: If an excess is negative or ``eps`` is not positive.

    Example:
        >>> kl_bound(0.5, 0.5, 1.0)
        1.0

    References:
        Albergo, Boffi & Vanden-Eijnden (2023), Stochastic interpolants, lemma 2.4 and theorem 2.3.
        arXiv:2303.08797
    """
    if min(excess_velocity, excess_score) < 0 or not eps > 0:
        raise ValueError(
            f"`excess_velocity` and `excess_score` must be at least 0 and `eps` positive; got "
            f"{excess_velocity}, {excess_score} and {eps}."
        )
    return excess_velocity / eps + eps * excess_score


def _regressand(
    kind: Kind, interpolant: Interpolant, t: Tensor, base: Tensor, target: Tensor
) -> tuple[Tensor, Tensor]:
    """What the field of a kind is the mean of: a part without the latent variable, and its factor."""
    square, half_rate = interpolant.variance(t)
    amplitude, zero = square.sqrt(), torch.zeros_like(t)
    if kind not in interpolant.rows(t):
        raise ValueError(f"`kind` must be one of {type(interpolant).__name__}'s; got {kind.value}.")
    if kind is Kind.VELOCITY:
        return interpolant.centre_rate(t, base, target), half_rate / amplitude
    if kind is Kind.TRANSPORT:
        return interpolant.centre_rate(t, base, target), zero
    if kind is Kind.DRIFT and isinstance(interpolant, TwoSided):
        factor = (half_rate - interpolant.leaving(t)) / amplitude
        return interpolant.centre_rate(t, base, target), factor
    if kind is Kind.ROTATION and isinstance(interpolant, OneSided):
        return -amplitude * target, interpolant.schedule.coefficients(t)[1]
    plain = {
        Kind.SCORE: (zero, -1 / amplitude),
        Kind.NOISE: (zero, torch.ones_like(t)),
        Kind.TARGET: (target, zero),
        Kind.BASE: (base, zero),
    }
    return plain[kind]
