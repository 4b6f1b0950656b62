r"""Stochastic Runge--Kutta schemes of strong order 3/2 for additive, diagonal and scalar noise (Ito).

With :math:`I_{10} = h (W/2 + H)`, :math:`I_{11} = (W^2 - h)/2` and :math:`I_{111} = (W^3 - 3 h W)/6`. One
function steps all schemes of a family; the coefficients stand in tables.

References:
    Roessler (2010), Runge--Kutta methods for the strong approximation of solutions of stochastic differential
    equations, sections 5 and 6. doi:10.1137/09076636X
    Rackauckas & Nie (2020), Stability-optimized high order methods and stiffness detection for pathwise stiff
    stochastic differential equations. doi:10.1109/HPEC43674.2020.9286178
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from sde.equation import SDE, Calculus, NoiseStructure
from sde.noise.increments import Areas, Increment
from sde.solvers.interface import OneStep, Orders, orders

__all__ = ["SOSRA", "SOSRI", "SRA1", "SRA2", "SRA3", "SRIW1", "SRIW2", "TableauSRA", "TableauSRI"]

Row = tuple[float, ...]
Matrix = tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class TableauSRA:
    r"""Coefficients of a scheme for additive noise.

    .. math::

        H_i &= X + h \sum_j A_{ij} f(t + c^0_j h, H_j) + \tfrac{I_{10}}{h} \sum_j B_{ij} g(t + c^1_j h) \\
        X_{k+1} &= X + h \sum_i \alpha_i f(t + c^0_i h, H_i)
                 + \sum_i \bigl(\beta^1_i W + \beta^2_i \tfrac{I_{10}}{h}\bigr) g(t + c^1_i h)

    References:
        Roessler (2010), section 5.1. doi:10.1137/09076636X
    """

    a: Matrix
    b: Matrix
    c0: Row
    c1: Row
    alpha: Row
    beta1: Row
    beta2: Row


@dataclass(frozen=True, slots=True)
class TableauSRI:
    r"""Coefficients of a scheme for diagonal and scalar noise.

    .. math::

        H^0_i &= X + h \sum_j A^0_{ij} F_j + \tfrac{I_{10}}{h} \sum_j B^0_{ij} G_j, \qquad
        H^1_i = X + h \sum_j A^1_{ij} F_j + \sqrt h \sum_j B^1_{ij} G_j \\
        X_{k+1} &= X + h \sum_i \alpha_i F_i + \sum_i \Bigl(\beta^1_i W + \beta^2_i \tfrac{I_{11}}{\sqrt h}
                 + \beta^3_i \tfrac{I_{10}}{h} + \beta^4_i \tfrac{I_{111}}{h}\Bigr) G_i

    with :math:`F_i = f(t + c^0_i h, H^0_i)` and :math:`G_i = g(t + c^1_i h, H^1_i)`.

    References:
        Roessler (2010), section 6.1. doi:10.1137/09076636X
    """

    a0: Matrix
    b0: Matrix
    a1: Matrix
    b1: Matrix
    c0: Row
    c1: Row
    alpha: Row
    beta1: Row
    beta2: Row
    beta3: Row
    beta4: Row


def _add(base: Tensor, row: Sequence[float], parts: Sequence[Tensor | None]) -> Tensor:
    """Base plus the parts times their coefficients; zero coefficients cost nothing."""
    for coefficient, part in zip(row, parts, strict=False):
        if coefficient and part is not None:
            base = base + (part if coefficient == 1 else coefficient * part)
    return base


def _weighs(index: int, *rows: Row) -> bool:
    """Whether a stage has a weight in any row."""
    return any(len(row) > index and row[index] != 0 for row in rows)


class _SRA(OneStep):
    """A scheme for additive noise, by its table."""

    __slots__ = ()
    tableau: ClassVar[TableauSRA]
    calculus: ClassVar[Calculus] = Calculus.ITO
    areas: ClassVar[Areas] = Areas.SPACE_TIME

    def step(self, sde: SDE, time: Tensor, state: Tensor, dt: Tensor, increment: Increment) -> Tensor:
        """The state at ``time + dt``, shape ``(n, *shape)``."""
        return self.step_with_error(sde, time, state, dt, increment)[0]

    def step_with_error(
        self, sde: SDE, time: Tensor, state: Tensor, dt: Tensor, increment: Increment
    ) -> tuple[Tensor, Tensor]:
        """The state at ``time + dt``, and its difference from the Euler step with the same noise."""
        table, wiener, area = self.tableau, increment.wiener, increment.space_time
        assert area is not None  # the solver asks for it
        average = 0.5 * wiener + area  # I10 / h
        diffusions = [
            sde.diffusion(time + c * dt, state) if _weighs(i, *table.b, table.beta1, table.beta2) else None
            for i, c in enumerate(table.c1)
        ]
        averages = [
            None if diffusion is None else sde.product(diffusion, average) for diffusion in diffusions
        ]
        drifts: list[Tensor] = []
        for i, c in enumerate(table.c0):
            stage = _add(_add(state, table.a[i], drifts), table.b[i], averages)
            drifts.append(sde.drift(time + c * dt, stage) * dt)
        plain = state
        for beta, diffusion in zip(table.beta1, diffusions, strict=True):
            if beta and diffusion is not None:
                plain = plain + beta * sde.product(diffusion, wiener)
        result = _add(_add(plain, table.alpha, drifts), table.beta2, averages)
        return result, result - plain - drifts[0]


class _SRI(OneStep):
    """A scheme for diagonal and scalar noise, by its table."""

    __slots__ = ()
    tableau: ClassVar[TableauSRI]
    calculus: ClassVar[Calculus] = Calculus.ITO
    areas: ClassVar[Areas] = Areas.SPACE_TIME

    def step(self, sde: SDE, time: Tensor, state: Tensor, dt: Tensor, increment: Increment) -> Tensor:
        """The state at ``time + dt``, shape ``(n, *shape)``."""
        drifts, diffusions, integrals = self._stages(sde, time, state, dt, increment)
        result = _add(state, self.tableau.alpha, drifts)
        for weights, diffusion in zip(self._weights(), diffusions, strict=True):
            result = result + sde.product(diffusion, _combine(weights, integrals))
        return result

    def step_with_error(
        self, sde: SDE, time: Tensor, state: Tensor, dt: Tensor, increment: Increment
    ) -> tuple[Tensor, Tensor]:
        """The state at ``time + dt``, and its difference from the part of strong order 1."""
        drifts, diffusions, integrals = self._stages(sde, time, state, dt, increment)
        euler = _add(0 * state, (1.0,), drifts)
        low, high = state + euler, _add(-euler, self.tableau.alpha, drifts)
        for weights, diffusion in zip(self._weights(), diffusions, strict=True):
            low = low + sde.product(diffusion, _combine(weights[:2], integrals[:2]))
            high = high + sde.product(diffusion, _combine(weights[2:], integrals[2:]))
        return low + high, high

    def _weights(self) -> Iterator[Row]:
        """The weights of each stage on W, I11 / sqrt(h), I10 / h and I111 / h."""
        table = self.tableau
        return zip(table.beta1, table.beta2, table.beta3, table.beta4, strict=True)

    def _stages(
        self, sde: SDE, time: Tensor, state: Tensor, dt: Tensor, increment: Increment
    ) -> tuple[list[Tensor | None], list[Tensor], tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Drifts times step, diffusions, and the integrals of the noise in the order of the weights."""
        table, wiener, area = self.tableau, increment.wiener, increment.space_time
        assert area is not None  # the solver asks for it
        if sde.structure is NoiseStructure.NONE:  # no channels: zeros that broadcast
            wiener = area = state.new_zeros(())
        root, average, square = dt.sqrt(), 0.5 * wiener + area, wiener * wiener
        drifts: list[Tensor | None] = []
        diffusions: list[Tensor] = []
        for i in range(len(table.alpha)):
            drift = None
            if _weighs(i, table.alpha, *table.a0, *table.a1):
                stage = _add_noise(_add(state, table.a0[i], drifts), table.b0[i], diffusions, average)
                drift = sde.drift(time + table.c0[i] * dt, stage) * dt
            drifts.append(drift)
            stage = _add_noise(_add(state, table.a1[i], drifts), table.b1[i], diffusions, root)
            diffusions.append(sde.diffusion(time + table.c1[i] * dt, stage))
        integrals = (wiener, (square - dt) / (2 * root), average, wiener * (square - 3 * dt) / (6 * dt))
        return drifts, diffusions, integrals


def _combine(weights: Sequence[float], parts: Sequence[Tensor]) -> Tensor:
    """Sum of the parts times their weights."""
    return _add(weights[0] * parts[0], weights[1:], parts[1:])


def _add_noise(base: Tensor, row: Row, diffusions: Sequence[Tensor], noise: Tensor) -> Tensor:
    """Base plus the diffusions times their coefficients and a noise that they share."""
    used = [(coefficient, part) for coefficient, part in zip(row, diffusions, strict=False) if coefficient]
    if not used:
        return base
    return base + _combine([weight for weight, _ in used], [part for _, part in used]) * noise


@dataclass(frozen=True, slots=True)
class SRA1(_SRA):
    """Two drifts and two diffusions in a step; for additive noise.

    References:
        Roessler (2010), table 6.3. doi:10.1137/09076636X
    """

    orders: ClassVar[Mapping[NoiseStructure, Orders]] = orders(none=(2.0, 2.0), additive=(1.5, 2.0))
    tableau: ClassVar[TableauSRA] = TableauSRA(
        a=((), (3 / 4,)),
        b=((), (3 / 2,)),
        c0=(0, 3 / 4),
        c1=(1, 0),
        alpha=(1 / 3, 2 / 3),
        beta1=(1, 0),
        beta2=(-1, 1),
    )


@dataclass(frozen=True, slots=True)
class SRA2(_SRA):
    """Two drifts and two diffusions in a step; for additive noise.

    References:
        Roessler (2010), table 6.3. doi:10.1137/09076636X
    """

    orders: ClassVar[Mapping[NoiseStructure, Orders]] = orders(none=(2.0, 2.0), additive=(1.5, 2.0))
    tableau: ClassVar[TableauSRA] = TableauSRA(
        a=((), (3 / 4,)),
        b=((), (3 / 2,)),
        c0=(0, 3 / 4),
        c1=(1 / 3, 1),
        alpha=(1 / 3, 2 / 3),
        beta1=(0, 1),
        beta2=(3 / 2, -3 / 2),
    )


@dataclass(frozen=True, slots=True)
class SRA3(_SRA):
    """Three drifts in a step, of deterministic order 3; for additive noise.

    References:
        Roessler (2010), table 6.3. doi:10.1137/09076636X
    """

    orders: ClassVar[Mapping[NoiseStructure, Orders]] = orders(none=(3.0, 3.0), additive=(1.5, 2.0))
    tableau: ClassVar[TableauSRA] = TableauSRA(
        a=((), (1,), (1 / 4, 1 / 4)),
        b=((), (), (1, 1 / 2)),
        c0=(0, 1, 1 / 2),
        c1=(1, 0, 0),
        alpha=(1 / 6, 1 / 6, 2 / 3),
        beta1=(1, 0, 0),
        beta2=(-1, 1, 0),
    )


@dataclass(frozen=True, slots=True)
class SOSRA(_SRA):
    """Three drifts in a step, with the largest region of stability; for additive noise.

    References:
        Rackauckas & Nie (2020), section III. doi:10.1109/HPEC43674.2020.9286178
    """

    orders: ClassVar[Mapping[NoiseStructure, Orders]] = orders(none=(2.0, 2.0), additive=(1.5, 2.0))
    tableau: ClassVar[TableauSRA] = TableauSRA(
        a=((), (0.6923962376159507,), (-3.1609142252828395, 4.1609142252828395)),
        b=((), (1.3371632704399763,), (1.442371048468624, 1.8632741501139225)),
        c0=(0, 0.6923962376159507, 1),
        c1=(0, 0.041248171110700504, 1),
        alpha=(0.2889874966892885, 0.6859880440839937, 0.025024459226717772),
        beta1=(-16.792534242221663, 17.514995785380226, 0.27753845684143835),
        beta2=(0.4237535769069274, 0.6010381474428539, -1.0247917243497813),
    )


_BETA1 = (-1, 4 / 3, 2 / 3, 0)
_BETA3 = (2, -4 / 3, -2 / 3, 0)
_BETA4 = (-2, 5 / 3, -2 / 3, 1)


@dataclass(frozen=True, slots=True)
class SRIW1(_SRI):
    """Two drifts and four diffusions in a step; for diagonal and scalar noise.

    References:
        Roessler (2010), table 6.1. doi:10.1137/09076636X
    """

    orders: ClassVar[Mapping[NoiseStructure, Orders]] = orders(
        none=(2.0, 2.0), diagonal=(1.5, 2.0), scalar=(1.5, 2.0)
    )
    tableau: ClassVar[TableauSRI] = TableauSRI(
        a0=((), (3 / 4,), (), ()),
        b0=((), (3 / 2,), (), ()),
        # The third drift of the published table is the first one again; its weight stands there.
        a1=((), (1 / 4,), (1,), (1 / 4,)),
        b1=((), (1 / 2,), (-1,), (-5, 3, 1 / 2)),
        c0=(0, 3 / 4, 0, 0),
        c1=(0, 1 / 4, 1, 1 / 4),
        alpha=(1 / 3, 2 / 3, 0, 0),
        beta1=_BETA1,
        beta2=(-1, 4 / 3, -1 / 3, 0),
        beta3=_BETA3,
        beta4=_BETA4,
    )


@dataclass(frozen=True, slots=True)
class SRIW2(_SRI):
    """Three drifts and four diffusions in a step, of deterministic order 3; for diagonal and scalar noise.

    References:
        Roessler (2010), table 6.2. doi:10.1137/09076636X
    """

    orders: ClassVar[Mapping[NoiseStructure, Orders]] = orders(
        none=(3.0, 3.0), diagonal=(1.5, 2.0), scalar=(1.5, 2.0)
    )
    tableau: ClassVar[TableauSRI] = TableauSRI(
        a0=((), (1,), (1 / 4, 1 / 4), ()),
        b0=((), (), (1, 1 / 2), ()),
        a1=((), (1 / 4,), (1,), (0, 0, 1 / 4)),
        b1=((), (-1 / 2,), (1,), (2, -1, 1 / 2)),
        c0=(0, 1, 1 / 2, 0),
        c1=(0, 1 / 4, 1, 1 / 4),
        alpha=(1 / 6, 1 / 6, 2 / 3, 0),
        beta1=_BETA1,
        beta2=(1, -4 / 3, 1 / 3, 0),
        beta3=_BETA3,
        beta4=_BETA4,
    )


@dataclass(frozen=True, slots=True)
class SOSRI(_SRI):
    """Four drifts and four diffusions, with a large region of stability; for diagonal and scalar noise.

    References:
        Rackauckas & Nie (2020), section III. doi:10.1109/HPEC43674.2020.9286178
    """

    orders: ClassVar[Mapping[NoiseStructure, Orders]] = orders(
        none=(2.0, 2.0), diagonal=(1.5, 2.0), scalar=(1.5, 2.0)
    )
    tableau: ClassVar[TableauSRI] = TableauSRI(
        a0=(
            (),
            (-0.04199224421316468,),
            (2.842612915017106, -2.0527723684000727),
            (4.338237071435815, -2.8895936137439793, 2.3017575594644466),
        ),
        b0=(
            (),
            (-0.21641093549612528,),
            (1.5336352863679572, 0.26066223492647056),
            (-1.0536037558179159, 1.7015284721089472, -0.20725685784180017),
        ),
        a1=(
            (),
            (0.26204282091330466,),
            (0.20903646383505375, -0.1502377115150361),
            (0.05836595312746999, 0.6149440396332373, 0.08535117634046772),
        ),
        b1=(
            (),
            (-0.5119011827621657,),
            (2.67767339866713, -4.9395031322250995),
            (0.15580956238299215, 3.2361551006624674, -1.4223118283355949),
        ),
        c0=(0, -0.04199224421316468, 0.7898405466170333, 3.7504010171562823),
        c1=(0, 0.26204282091330466, 0.05879875232001766, 0.758661169101175),
        alpha=(1.140099274172029, -0.6401334255743456, 0.4736296532772559, 0.026404498125060714),
        beta1=(-1.8453464565104432, 2.688764531100726, -0.2523866501071323, 0.40896857551684956),
        beta2=(0.4969658141589478, -0.5771202869753592, -0.12919702470322217, 0.2093514975196336),
        beta3=(2.8453464565104425, -2.688764531100725, 0.2523866501071322, -0.40896857551684945),
        beta4=(0.11522663875443433, -0.57877086147738, 0.2857851028163886, 0.17775911990655704),
    )
