r"""Milstein schemes: Euler and the iterated integrals of the diffusion, with and without derivatives."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.func import jvp

from sde.calculus import column_derivative, diffusion_along_itself
from sde.equation import SDE, Calculus, NoiseStructure
from sde.noise.increments import Areas, Increment
from sde.solvers.interface import OneStep, Orders, orders

__all__ = ["Milstein", "MilsteinLevy", "MilsteinStratonovich", "RungeKuttaMilstein"]

_COMMUTATIVE = orders(
    none=(1.0, 1.0),
    diagonal=(1.0, 1.0),
    scalar=(1.0, 1.0),
    additive=(1.0, 1.0),
    commutative=(1.0, 1.0),
)


@dataclass(frozen=True, slots=True)
class Milstein(OneStep):
    r"""Milstein's scheme for Ito equations with commutative noise.

    .. math:: X_{k+1} = X_k + f\,h + g\,\Delta W
              + \tfrac12 \sum_{i,j} (\partial g_j)\,g_i\,(\Delta W_i \Delta W_j - \delta_{ij} h)

    Strong order 1. The derivative of the diffusion is taken along the directions that are needed: one for
    diagonal and scalar noise, one for each process otherwise.

    References:
        Kloeden & Platen (1992), section 10.3. doi:10.1007/978-3-662-12616-5
    """

    calculus: ClassVar[Calculus] = Calculus.ITO
    orders: ClassVar[Mapping[NoiseStructure, Orders]] = _COMMUTATIVE

    def step(self, sde: SDE, time: Tensor, state: Tensor, dt: Tensor, increment: Increment) -> Tensor:
        """The state at ``time + dt``, shape ``(n, *shape)``."""
        return _milstein(sde, time, state, dt, increment.wiener, dt)


@dataclass(frozen=True, slots=True)
class MilsteinStratonovich(OneStep):
    r"""Milstein's scheme for Stratonovich equations with commutative noise.

    As :class:`Milstein` without the term :math:`\delta_{ij} h`.

    References:
        Kloeden & Platen (1992), section 10.3. doi:10.1007/978-3-662-12616-5
    """

    calculus: ClassVar[Calculus] = Calculus.STRATONOVICH
    orders: ClassVar[Mapping[NoiseStructure, Orders]] = _COMMUTATIVE

    def step(self, sde: SDE, time: Tensor, state: Tensor, dt: Tensor, increment: Increment) -> Tensor:
        """The state at ``time + dt``, shape ``(n, *shape)``."""
        return _milstein(sde, time, state, dt, increment.wiener, None)


def _milstein(
    sde: SDE, time: Tensor, state: Tensor, dt: Tensor, wiener: Tensor, ito: Tensor | None
) -> Tensor:
    """Step with the iterated integrals of commutative noise; ``ito`` is their mean on the diagonal."""
    moved = state + sde.drift(time, state) * dt
    if sde.structure in (NoiseStructure.DIAGONAL, NoiseStructure.SCALAR):
        squares = wiener * wiener if ito is None else wiener * wiener - ito
        diffusion, along = diffusion_along_itself(sde, time, state)
        return moved + diffusion * wiener + 0.5 * along * squares
    diffusion = sde.diffusion(time, state)
    result = moved + sde.product(diffusion, wiener)
    if sde.structure in (NoiseStructure.ADDITIVE, NoiseStructure.NONE):
        return result
    # The derivative along g W holds all products; the diagonal's mean is taken off one process at a time.
    total = sde.product(diffusion, wiener)
    result = result + 0.5 * jvp(lambda x: sde.product(sde.diffusion(time, x), wiener), (state,), (total,))[1]
    if ito is None:
        return result
    columns = diffusion.unbind(-1)
    own = [column_derivative(sde.diffusion, time, state, k, column) for k, column in enumerate(columns)]
    return result - 0.5 * ito * torch.stack(own).sum(0)


@dataclass(frozen=True, slots=True)
class MilsteinLevy(OneStep):
    r"""Milstein's scheme for Ito equations with noise that need not commute.

    .. math:: X_{k+1} = X_k + f\,h + g\,\Delta W + \sum_{i,j} (\partial g_j)\,g_i\,I_{ij}, \qquad
              I_{ij} = \tfrac12 (\Delta W_i \Delta W_j - \delta_{ij} h) + A_{ij}

    with the Levy areas :math:`A_{ij} = \tfrac12 \int (W_i\,\mathrm dW_j - W_j\,\mathrm dW_i)`. Strong order 1
    for exact areas; the sampled ones have the right conditional moments, not the right law given the path.
    One derivative for each process.

    References:
        Kloeden & Platen (1992), section 10.3. doi:10.1007/978-3-662-12616-5
    """

    calculus: ClassVar[Calculus] = Calculus.ITO
    areas: ClassVar[Areas] = Areas.LEVY
    orders: ClassVar[Mapping[NoiseStructure, Orders]] = orders(commutative=(1.0, 1.0), general=(1.0, 1.0))

    def step(self, sde: SDE, time: Tensor, state: Tensor, dt: Tensor, increment: Increment) -> Tensor:
        """The state at ``time + dt``, shape ``(n, *shape)``."""
        wiener, levy = increment.wiener, increment.levy
        assert levy is not None  # the solver asks for it
        diffusion = sde.diffusion(time, state)
        result = state + sde.drift(time, state) * dt + sde.product(diffusion, wiener)
        iterated = 0.5 * wiener.unsqueeze(-1) * wiener.unsqueeze(-2) + levy
        identity = torch.eye(wiener.shape[-1], dtype=wiener.dtype, device=wiener.device)
        iterated = iterated - 0.5 * dt.reshape(-1, 1, 1) * identity
        for j in range(wiener.shape[-1]):
            direction = sde.product(diffusion, iterated[..., j])  # sum of g_i I_ij over i
            result = result + column_derivative(sde.diffusion, time, state, j, direction)
        return result


@dataclass(frozen=True, slots=True)
class RungeKuttaMilstein(OneStep):
    r"""Milstein's scheme for Ito equations with diagonal or scalar noise, without derivatives.

    .. math:: \hat X = X_k + f\,h + g\,\sqrt h, \qquad X_{k+1} = X_k + f\,h + g\,\Delta W
              + \frac{g(t_k, \hat X) - g(t_k, X_k)}{2 \sqrt h} (\Delta W^2 - h)

    Strong order 1. In a Stratonovich equation the same difference times :math:`\Delta W^2` would be
    :math:`\tfrac14 g'' g^2 h^{3/2}` too large in the mean, which leaves order 1/2;
    :class:`sde.solvers.EulerHeun` is the scheme of order 1 without derivatives there.

    References:
        Kloeden & Platen (1992), section 11.1, equation 1.3. doi:10.1007/978-3-662-12616-5
    """

    calculus: ClassVar[Calculus] = Calculus.ITO
    orders: ClassVar[Mapping[NoiseStructure, Orders]] = orders(
        none=(1.0, 1.0), diagonal=(1.0, 1.0), scalar=(1.0, 1.0)
    )

    def step(self, sde: SDE, time: Tensor, state: Tensor, dt: Tensor, increment: Increment) -> Tensor:
        """The state at ``time + dt``, shape ``(n, *shape)``."""
        drift, diffusion = sde.drift(time, state) * dt, sde.diffusion(time, state)
        root, wiener = dt.sqrt(), increment.wiener
        result = state + drift + sde.product(diffusion, wiener)
        if sde.structure is NoiseStructure.NONE:
            return result
        support = sde.diffusion(time, state + drift + diffusion * root)
        return result + (support - diffusion) * ((wiener * wiener - dt) / (2 * root))
