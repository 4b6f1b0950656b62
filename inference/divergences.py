r"""How far a learned law is from the target: divergences with standard errors, and bounds from losses.

A bound by Girsanov's theorem holds for the forward diffusion of a model, solved exactly, with any
diffusivity:

.. math:: \mathrm{KL}(\rho_1 \| \hat\rho_1) \le \int_0^1 \frac{1}{4 \epsilon(t)}\, E|\hat b_F - b_F|^2\,
\mathrm dt
          = \int_0^1 \frac{1}{2 \epsilon(t)} \bigl( L_F(t) - \min L_F(t) \bigr)\, \mathrm dt,

with :math:`b_F = b + \epsilon s` and the loss of its sample value
:math:`R = \partial_t I + (\dot\gamma - \epsilon / \gamma) z`. The loss is an average over data; its least
value is not, since it asks how much of R the point does not tell. Where it is known, of a reference problem,
the bound is a number with a standard error. Where it is not, no bound follows from data. What does follow is
the difference of the bounds of two models, in which the floor cancels.

References:
    Albergo, Boffi & Vanden-Eijnden (2023), Stochastic interpolants, lemma 2.4 and section 7.2.
    arXiv:2303.08797
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from inference.interpolants.interpolant import Interpolant, Kind
from inference.interpolants.prediction import Prediction
from inference.interpolants.times import TimeLaw, UniformTimes
from inference.likelihood import LogDensity
from inference.samplers.flows import Diffusivity
from sde.noise import NoiseStream, Purpose
from sde.shapes import check_shapes

__all__ = ["Certificate", "Divergence", "bound_difference", "certificate", "kl_divergence"]

_UNIFORM = UniformTimes()


class Divergence(NamedTuple):
    """An estimate of a divergence, with what is uncertain about it."""

    value: float  #: in nats
    data_error: float  #: standard error for want of data
    estimate_error: float  #: standard error for want of probes or paths


class Certificate(NamedTuple):
    """A bound on the divergence of a target from the law that a diffusion generates."""

    bound: float  #: in nats
    standard_error: float  #: of the bound, over pairs, latent variables and times


def kl_divergence(target: Tensor, model: LogDensity, *, controlled: bool = True) -> Divergence:
    r"""Divergence of a known target from a model, from log-densities at points of the target.

    .. math:: \mathrm{KL}(\rho \| \hat\rho) = E_\rho \Bigl[ \log \frac{\rho}{\hat\rho}
              + \Bigl( \frac{\hat\rho}{\rho} - 1 \Bigr) \Bigr]

    The control variate has mean zero where the target has all the mass of the model, and makes every term
    positive: the estimate of a small divergence is then small, and not the difference of large ones. It is
        printed with the
    other sign, which makes the terms neither. It needs densities: a model that is known by noisy estimates
    has :math:`E \hat\rho` in place of :math:`\hat\rho`, with the estimates that are averages of weights.

    Args:
        target: Log-densities of the target at points drawn from it, shape ``(n,)``, n at least 2.
        model: Log-densities of the model at the same points.
        controlled: Add the control variate.

    Returns:
        The estimate and its errors, over the points and over the estimates at each.

    Raises:
        ValueError: If shapes disagree.

    Example:
        >>> zero, one = torch.zeros(4), torch.ones(4)
        >>> kl_divergence(zero, LogDensity(zero, zero, one, zero)).value
        0.0

    References:
        Albergo, Boffi & Vanden-Eijnden (2023), Stochastic interpolants, section 7.2. arXiv:2303.08797
    """
    check_shapes(target=(target, "n"), model=(model.value, "n"))
    ratio = (model.value - target).double()
    terms = -ratio + torch.expm1(ratio) if controlled else -ratio
    slope = torch.expm1(ratio).abs() if controlled else torch.ones_like(ratio)
    n = len(terms)
    estimate = (slope * model.standard_error).square().mean().sqrt()
    return Divergence(float(terms.mean()), float(terms.std()) / math.sqrt(n), float(estimate) / math.sqrt(n))


def certificate(
    prediction: Prediction,
    exact: Prediction,
    eps: Diffusivity,
    *,
    base: Tensor,
    target: Tensor,
    noise: NoiseStream,
    times: TimeLaw = _UNIFORM,
) -> Certificate:
    r"""The bound of a model of a problem whose fields are known.

    .. math:: \mathrm{KL}(\rho_1 \| \hat\rho_1) \le \int_0^1 \frac{1}{4 \epsilon}\, E|\hat b_F - b_F|^2\,
    \mathrm dt

    Args:
        prediction: The model.
        exact: The exact fields of the same interpolant.
        eps: Diffusivity of the sampler, positive at all times.
        base: Samples of the base, coupled with those of the target as in training, shape ``(n, d)``; not read
            by one-sided and mirror paths.
        target: Samples of the target, shape ``(n, d)``.
        noise: One sample for each pair.
        times: Law of the times at which the integrand is taken.

    Returns:
        The bound and its standard error.

    Raises:
        ValueError: If shapes or interpolants disagree.

    Example:
        >>> from inference.interpolants import OneSided
        >>> from inference.reference_problems import Mixture, MixtureProblem
        >>> law = Mixture.standard(2)
        >>> exact = MixtureProblem(OneSided(), law, law).prediction()
        >>> noise = NoiseStream(0, 0, 50)
        >>> rows = law.sample(noise)
        >>> certificate(exact, exact, 1.0, base=rows, target=rows, noise=noise).bound
        0.0
    """
    if prediction.interpolant != exact.interpolant:
        raise ValueError(f"`exact` must be of {prediction.interpolant}; got {exact.interpolant}.")
    draw = _Draw(prediction.interpolant, eps, base, target, noise, times)
    gap = _drift(prediction, draw) - _drift(exact, draw)
    return _mean(gap.square().sum(1) / (4 * draw.eps * draw.density)[:, 0])


def bound_difference(
    first: Prediction,
    second: Prediction,
    eps: Diffusivity,
    *,
    base: Tensor,
    target: Tensor,
    noise: NoiseStream,
    times: TimeLaw = _UNIFORM,
) -> Certificate:
    """By how much the bound of one model exceeds that of another, from data alone.

    The floor of the loss, which data do not tell, cancels. Since no bound is negative, a positive difference
    is also less than what the first model's bound can be.

    Args:
        first: A model.
        second: Another one, of the same interpolant.
        eps: Diffusivity of both samplers, positive at all times.
        base: Samples of the base, coupled with those of the target as in training, shape ``(n, d)``.
        target: Samples of the target that training has not seen, shape ``(n, d)``.
        noise: One sample for each pair.
        times: Law of the times at which the integrand is taken.

    Returns:
        The difference, of either sign, and its standard error.

    Raises:
        ValueError: If shapes or interpolants disagree.
    """
    if first.interpolant != second.interpolant:
        raise ValueError(f"`second` must be of {first.interpolant}; got {second.interpolant}.")
    draw = _Draw(first.interpolant, eps, base, target, noise, times)
    ours, theirs = _drift(first, draw), _drift(second, draw)
    # |a - R|^2 - |b - R|^2, as a product of differences.
    terms = ((ours - theirs) * (ours + theirs - 2 * draw.sample_value)).sum(1)
    return _mean(terms / (4 * draw.eps * draw.density)[:, 0])


class _Draw:
    """Points of a path at drawn times, the sample value of the drift there, diffusivity and density."""

    def __init__(
        self,
        path: Interpolant,
        eps: Diffusivity,
        base: Tensor,
        target: Tensor,
        noise: NoiseStream,
        times: TimeLaw,
    ) -> None:
        check_shapes(base=(base, "n d"), target=(target, "n d"))
        if len(noise) != len(base):
            raise ValueError(f"`noise` must hold one sample per pair, {len(base)}; got {len(noise)}.")
        like = {"purpose": Purpose.TRAINING, "dtype": base.dtype, "device": base.device}
        latent = noise.fork("latent").normals(base.shape[1], **like)
        self.t = times.times(noise.fork("time").uniforms(1, **like))
        self.density = times.density(self.t)
        self.eps = torch.as_tensor(eps(self.t) if callable(eps) else eps).to(self.t).expand_as(self.t)
        square, half_rate = path.variance(self.t)
        self.point = path.point(self.t, base, target, latent)
        moved = path.centre_rate(self.t, base, target)
        self.sample_value = moved + (half_rate - self.eps) / square.sqrt() * latent


def _drift(prediction: Prediction, draw: _Draw) -> Tensor:
    """The drift of the forward diffusion."""
    return prediction.combine({Kind.VELOCITY: 1.0, Kind.SCORE: draw.eps}, draw.t, draw.point)


def _mean(terms: Tensor) -> Certificate:
    """Mean and standard error."""
    return Certificate(float(terms.mean()), float(terms.std()) / math.sqrt(len(terms)))
