"""Schemes of weak order 2 for Ito equations, driven by three-point increments."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sde.equation import SDE, Calculus, NoiseStructure
from sde.noise.increments import Increment, Law
from sde.solvers.interface import OneStep, Orders, orders

__all__ = ["DRI1", "PlatenWeak2"]

_NAN = math.nan
_ORDERS = orders(
    none=(2.0, 2.0),
    diagonal=(_NAN, 2.0),
    scalar=(_NAN, 2.0),
    additive=(_NAN, 2.0),
    commutative=(_NAN, 2.0),
    general=(_NAN, 2.0),
)


class _WeakScheme(OneStep):
    """Base of the schemes of this file."""

    __slots__ = ()
    calculus: ClassVar[Calculus] = Calculus.ITO
    orders: ClassVar[Mapping[NoiseStructure, Orders]] = _ORDERS
    law: ClassVar[Law] = Law.THREE_POINT


@dataclass(frozen=True, slots=True)
class _Columns:
    """The diffusion as columns, one for each process; diagonal noise is one column, times by component."""

    sde: SDE
    increment: Increment

    @property
    def count(self) -> int:
        """Number of columns."""
        return 1 if self.sde.noise_dim is None else self.sde.noise_dim

    def at(self, time: Tensor, state: Tensor) -> list[Tensor]:
        """All columns at a state, each ``(n, *shape)``."""
        diffusion = self.sde.diffusion(time, state)
        return [diffusion] if self.sde.noise_dim is None else list(diffusion.unbind(-1))

    def wiener(self, j: int, like: Tensor) -> Tensor:
        """Increment of column ``j``, broadcastable with a state."""
        wiener = self.increment.wiener
        return wiener if self.sde.noise_dim is None else wiener[:, j].view(-1, *(1,) * (like.dim() - 1))

    def sign(self, i: int, j: int, like: Tensor) -> Tensor:
        """Two-point variable of two columns, broadcastable with a state."""
        assert self.increment.signs is not None  # three-point increments have them
        return self.increment.signs[:, i, j].view(-1, *(1,) * (like.dim() - 1))


@dataclass(frozen=True, slots=True)
class PlatenWeak2(_WeakScheme):
    r"""Platen's explicit scheme of weak order 2.

    With :math:`\Upsilon = X + a h + \sum_j b_j \hat W_j`, :math:`R^\pm_j = X + a h \pm b_j \sqrt h` and
    :math:`U^\pm_j = X \pm b_j \sqrt h`:

    .. math::

        X_{k+1} = X &+ \tfrac h2 \bigl(a(\Upsilon) + a\bigr)
        + \tfrac14 \sum_j \Bigl[\bigl(b_j(R^+_j) + b_j(R^-_j) + 2 b_j\bigr) \hat W_j
        + \sum_{r \ne j} \bigl(b_j(U^+_r) + b_j(U^-_r) - 2 b_j\bigr) \hat W_j\Bigr] \\
        &+ \tfrac1{4 \sqrt h} \sum_j \Bigl[\bigl(b_j(R^+_j) - b_j(R^-_j)\bigr) (\hat W_j^2 - h)
        + \sum_{r \ne j} \bigl(b_j(U^+_r) - b_j(U^-_r)\bigr) (\hat W_j \hat W_r + h V_{rj})\Bigr]

    References:
        Kloeden & Platen (1992), section 15.1, equation 3. doi:10.1007/978-3-662-12616-5
    """

    def step(self, sde: SDE, time: Tensor, state: Tensor, dt: Tensor, increment: Increment) -> Tensor:
        """The state at ``time + dt``, shape ``(n, *shape)``."""
        drift, diffusion = sde.drift(time, state) * dt, sde.diffusion(time, state)
        predicted = state + drift + sde.product(diffusion, increment.wiener)
        result = state + 0.5 * (sde.drift(time + dt, predicted) * dt + drift)
        if sde.structure is NoiseStructure.NONE:
            return result
        columns, root, end = _Columns(sde, increment), dt.sqrt(), time + dt
        start = columns.at(time, state)
        for j, column in enumerate(start):
            wiener = columns.wiener(j, state)
            up, down = (columns.at(end, state + drift + sign * column * root)[j] for sign in (1, -1))
            result = result + 0.25 * (up + down + 2 * column) * wiener
            result = result + 0.25 / root * (up - down) * (wiener * wiener - dt)
        for r, column in enumerate(start if columns.count > 1 else []):
            ups, downs = (columns.at(time, state + sign * column * root) for sign in (1, -1))
            for j in range(columns.count):
                if j != r:
                    wiener = columns.wiener(j, state)
                    cross = wiener * columns.wiener(r, state) + dt * columns.sign(r, j, state)
                    result = result + 0.25 * (ups[j] + downs[j] - 2 * start[j]) * wiener
                    result = result + 0.25 / root * (ups[j] - downs[j]) * cross
        return result


_B1 = 3 * math.sqrt(38 / 491)
_B2 = (214 / 513 * math.sqrt(1105 / 991), 491 / 513 * math.sqrt(221 / 4955))


@dataclass(frozen=True, slots=True)
class DRI1(_WeakScheme):
    r"""Runge--Kutta scheme of weak order 2 with minimised error constants, deterministic order 3.

    Three drifts, and for ``m`` processes ``4 m + 1`` diffusions, in a step.

    References:
        Debrabant & Roessler (2009), Families of efficient second order Runge--Kutta methods for the weak
        approximation of Ito stochastic differential equations, table 4.2. doi:10.1016/j.apnum.2008.03.012
    """

    orders: ClassVar[Mapping[NoiseStructure, Orders]] = orders(
        none=(3.0, 3.0),
        diagonal=(_NAN, 2.0),
        scalar=(_NAN, 2.0),
        additive=(_NAN, 2.0),
        commutative=(_NAN, 2.0),
        general=(_NAN, 2.0),
    )

    a0: ClassVar[tuple[tuple[float, ...], ...]] = ((), (1 / 2,), (-1, 2))
    b0: ClassVar[tuple[float, ...]] = (0, (6 - math.sqrt(6)) / 10, (3 + 2 * math.sqrt(6)) / 5)
    a1: ClassVar[float] = 342 / 491
    b1: ClassVar[tuple[float, ...]] = (_B1, -_B1)
    b2: ClassVar[tuple[float, ...]] = (-_B2[0], -_B2[1], -_B2[1])
    alpha: ClassVar[tuple[float, ...]] = (1 / 6, 2 / 3, 1 / 6)
    c0: ClassVar[tuple[float, ...]] = (0, 1 / 2, 1)
    beta1: ClassVar[tuple[float, ...]] = (193 / 684, 491 / 1368, 491 / 1368)
    beta2: ClassVar[tuple[float, ...]] = (0, math.sqrt(491 / 38) / 6, -math.sqrt(491 / 38) / 6)
    beta3: ClassVar[tuple[float, ...]] = (-4955 / 7072, 4955 / 14144, 4955 / 14144)
    beta4: ClassVar[tuple[float, ...]] = (0, -math.sqrt(4955 / 221) / 8, math.sqrt(4955 / 221) / 8)

    def step(self, sde: SDE, time: Tensor, state: Tensor, dt: Tensor, increment: Increment) -> Tensor:
        """The state at ``time + dt``, shape ``(n, *shape)``."""
        noise = sde.product(sde.diffusion(time, state), increment.wiener)
        drifts: list[Tensor] = []
        for row, weight, c in zip(self.a0, self.b0, self.c0, strict=True):
            stage = state + weight * noise
            for coefficient, drift in zip(row, drifts, strict=True):
                stage = stage + coefficient * drift
            drifts.append(sde.drift(time + c * dt, stage) * dt)
        result = state
        for weight, drift in zip(self.alpha, drifts, strict=True):
            result = result + weight * drift
        if sde.structure is NoiseStructure.NONE:
            return result
        return result + self._noise(_Columns(sde, increment), time, state, dt, drifts[0])

    def _noise(self, columns: _Columns, time: Tensor, state: Tensor, dt: Tensor, drift: Tensor) -> Tensor:
        """The part of the diffusion."""
        root, at = dt.sqrt(), time + self.a1 * dt
        start = columns.at(time, state)
        stages = []  # for each process, its column at the three stages
        for k, column in enumerate(start):
            points = (state + self.a1 * drift + b * root * column for b in self.b1)
            stages.append([column, *(columns.at(at, point)[k] for point in points)])
        total = torch.zeros_like(state)
        for k, values in enumerate(stages):
            wiener = columns.wiener(k, state)
            iterated = (wiener * wiener - dt) / (2 * root)
            for i, value in enumerate(values):
                total = total + (self.beta1[i] * wiener + self.beta2[i] * iterated) * value
        if columns.count == 1:
            return total  # the weights of the crossed stages sum to zero
        return total + self._crossed(columns, time, state, dt, stages)

    def _crossed(
        self, columns: _Columns, time: Tensor, state: Tensor, dt: Tensor, stages: list[list[Tensor]]
    ) -> Tensor:
        """The stages that cross the processes."""
        root, total = dt.sqrt(), torch.zeros_like(state)
        for k, values in enumerate(stages):
            shift = torch.zeros_like(state)
            for other, along in enumerate(stages):
                if other != k:
                    mixed = sum((b * value for b, value in zip(self.b2, along, strict=True)), shift * 0)
                    shift = shift + mixed * (self._iterated(columns, k, other, state, dt) / root)
            wiener = columns.wiener(k, state)
            crossed = [values[0], *(columns.at(time, state + sign * shift)[k] for sign in (1, -1))]
            for i, value in enumerate(crossed):
                total = total + (self.beta3[i] * wiener + self.beta4[i] * root) * value
        return total

    def _iterated(self, columns: _Columns, k: int, other: int, state: Tensor, dt: Tensor) -> Tensor:
        """Two-fold integral of two processes, by a two-point variable of the smaller index."""
        product = columns.wiener(k, state) * columns.wiener(other, state)
        low, last = min(k, other), columns.count - 1
        sign = columns.sign(low, last, state)
        return 0.5 * (product - dt * sign if k < other else product + dt * sign)
