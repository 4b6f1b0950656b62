"""The log-ODE scheme: the flow of a frozen vector field that knows the Levy area."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from sde.calculus import column_derivative
from sde.equation import SDE, Calculus, NoiseStructure
from sde.noise.increments import Areas, Increment
from sde.solvers.interface import OneStep, Orders, orders

__all__ = ["LogODE"]


@dataclass(frozen=True, slots=True)
class LogODE(OneStep):
    r"""Log-ODE scheme for Stratonovich equations with noise of any structure.

    .. math:: X_{k+1} = \Phi_1(X_k), \qquad \dot\Phi = f(\Phi)\,h + \sum_i g_i(\Phi)\,W_i
              + \sum_{i<j} A_{ij}\,[g_i, g_j](\Phi), \qquad
              [g_i, g_j] = (\partial g_j) g_i - (\partial g_i) g_j

    The flow is approximated by one midpoint step, the bracket by its value at the start, so brackets are
    evaluated once. Strong order 1 for exact areas; the sampled ones have the right conditional moments, not
    the right law given the path. Derivatives are forward-mode products.

    References:
        Castell & Gaines (1995), An efficient approximation method for stochastic differential equations by
        means of the exponential Lie series. doi:10.1016/0378-4754(93)E0062-A
        Foster, Lyons & Oberhauser (2020), section 4. doi:10.1137/19M1261912
    """

    calculus: ClassVar[Calculus] = Calculus.STRATONOVICH
    areas: ClassVar[Areas] = Areas.LEVY
    orders: ClassVar[Mapping[NoiseStructure, Orders]] = orders(
        none=(2.0, 2.0), additive=(1.0, 2.0), commutative=(1.0, 1.0), general=(1.0, 1.0)
    )

    def step(self, sde: SDE, time: Tensor, state: Tensor, dt: Tensor, increment: Increment) -> Tensor:
        """The state at ``time + dt``, shape ``(n, *shape)``."""
        wiener = increment.wiener
        bend = self._bracket(sde, time, state, increment)
        first = sde.drift(time, state) * dt + sde.product(sde.diffusion(time, state), wiener)
        middle, at = state + 0.5 * (first + bend), time + 0.5 * dt
        return state + sde.drift(at, middle) * dt + sde.product(sde.diffusion(at, middle), wiener) + bend

    def _bracket(self, sde: SDE, time: Tensor, state: Tensor, increment: Increment) -> Tensor:
        r"""Sum of the brackets times the areas: :math:`\sum_j (\partial g_j) \sum_i A_{ij} g_i`."""
        levy, total = increment.levy, 0 * state
        if sde.noise_dim is None or levy is None or sde.structure is NoiseStructure.ADDITIVE:
            return total
        diffusion = sde.diffusion(time, state)
        for j in range(sde.noise_dim):
            direction = sde.product(diffusion, levy[..., j])
            total = total + column_derivative(sde.diffusion, time, state, j, direction)
        return total
