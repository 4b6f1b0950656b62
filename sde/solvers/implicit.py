"""Drift-implicit Euler schemes, for stiff drifts and drifts that grow faster than linearly."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sde.equation import SDE, Calculus, NoiseStructure
from sde.noise.increments import Increment
from sde.solvers.interface import OneStep, Orders, orders

__all__ = ["ThetaEuler"]


@dataclass(frozen=True, slots=True)
class ThetaEuler(OneStep):
    r"""Euler with an implicit drift, for Ito equations.

    .. math:: X_{k+1} = X_k + \bigl((1 - \theta) f(t_k, X_k) + \theta f(t_{k+1}, X_{k+1})\bigr) h
              + g(t_k, X_k)\,\Delta W_k

    solved for all samples at once by Newton's method with dense Jacobians, from the explicit step. The number
    of iterations is fixed, so that no step waits for the device; a sample that has not converged shows in
    ``f`` only, so take enough. The last iteration alone is differentiated: its derivative is that of the
    solution, by the implicit function theorem.

    Args:
        theta: Weight of the implicit part, in [0, 1]; 1 damps stiff components, 1/2 has the smallest error.
        iterations: Newton iterations, at least 1.

    Raises:
        ValueError: If an argument is out of range.

    References:
        Kloeden & Platen (1992), section 12.2. doi:10.1007/978-3-662-12616-5
        Higham, Mao & Stuart (2002), Strong convergence of Euler-type methods for nonlinear stochastic
        differential equations. doi:10.1137/S0036142901389530
    """

    theta: float = 1.0
    iterations: int = 4
    calculus: ClassVar[Calculus] = Calculus.ITO
    orders: ClassVar[Mapping[NoiseStructure, Orders]] = orders(
        none=(1.0, 1.0),
        diagonal=(0.5, 1.0),
        scalar=(0.5, 1.0),
        additive=(1.0, 1.0),
        commutative=(0.5, 1.0),
        general=(0.5, 1.0),
    )

    def __post_init__(self) -> None:
        if not 0 <= self.theta <= 1:
            raise ValueError(f"`theta` must lie in [0, 1]; got {self.theta}.")
        if isinstance(self.iterations, bool) or not isinstance(self.iterations, int) or self.iterations < 1:
            raise ValueError(f"`iterations` must be an integer of at least 1; got {self.iterations!r}.")

    def step(self, sde: SDE, time: Tensor, state: Tensor, dt: Tensor, increment: Increment) -> Tensor:
        """The state at ``time + dt``, shape ``(n, *shape)``."""
        drift = sde.drift(time, state) * dt
        known = state + (1 - self.theta) * drift + sde.product(sde.diffusion(time, state), increment.wiener)
        guess, end, weight = known + self.theta * drift, time + dt, self.theta * dt
        with torch.no_grad():
            for _ in range(self.iterations - 1):
                guess = self._newton(sde, end, known, weight, guess)
        return self._newton(sde, end, known, weight, guess.detach())

    def _newton(self, sde: SDE, time: Tensor, known: Tensor, weight: Tensor, guess: Tensor) -> Tensor:
        """One iteration for ``z - weight f(z) = known``."""
        flat, shape = guess.flatten(1), guess.shape
        n, size = flat.shape

        def drift(z: Tensor) -> Tensor:
            return sde.drift(time, z.view(shape)).expand(shape).reshape(n, size)

        # Samples are independent: the derivative along a component of all is a column of each Jacobian.
        eye = torch.eye(size, dtype=flat.dtype, device=flat.device)
        columns = [torch.func.jvp(drift, (flat,), (row.expand_as(flat),))[1] for row in eye]
        scale = weight.reshape(-1, 1)
        system = eye - scale.unsqueeze(-1) * torch.stack(columns, -1)
        residual = flat - scale * drift(flat) - known.flatten(1)
        return (flat - torch.linalg.solve(system, residual.unsqueeze(-1)).squeeze(-1)).view(shape)
