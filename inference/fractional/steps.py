r"""Exact steps of additive fractional noise for latent equations, of all components at once.

.. math::

    Z' = e^{-\gamma h} Z - \tfrac{1 - e^{-\gamma h}}{\gamma} D + L e, \qquad
    X' = X + h f(t, X) + s\,(\omega' \cdot Z' - \omega \cdot Z)

What the noise does within a step is exact, whatever its rates; the drift is split off. :math:`\omega' \ne
\omega` where the Hurst index depends on time. The factor ``L`` depends on rates and step alone: gradients
reach index, scale and drift through the weights.

Rows are arranged in ``G`` groups of ``Q``; those of a group share whatever a guide shares.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from inference.latent_noise import LatentNoise
from sde.grid import make_grid
from sde.noise.gaussian_path import low_rank_factors
from sde.noise.ou_transition import decays, noise_covariance

__all__ = ["ExactSteps", "State", "exact_steps", "from_groups", "in_groups"]


class State(NamedTuple):
    """States of all rows, float64."""

    x: Tensor  #: shape ``(G, d, Q)``
    memory: Tensor  #: the processes ``Z``, shape ``(G, d, Q, K)``
    slopes: Tensor  #: the past ``D``, shape ``(G, d, Q, K)``; without columns where there is none

    def vector(self) -> Tensor:
        """All in one, shape ``(G, d, Q, D)``."""
        return torch.cat((self.x[..., None], self.memory, self.slopes), -1)


def in_groups(rows: Tensor, groups: int) -> Tensor:
    """Rows ``(n, d, ...)`` in the shape ``(G, d, Q, ...)``."""
    return rows.unflatten(0, (groups, -1)).transpose(1, 2)


def from_groups(values: Tensor) -> Tensor:
    """The inverse of :func:`in_groups`."""
    return values.transpose(1, 2).flatten(0, 1)


@dataclass(frozen=True, slots=True, eq=False)
class ExactSteps:
    """Steps of a grid; float64.

    Attributes:
        starts: Instants, shape ``(N,)``.
        sizes: Lengths, shape ``(N,)``.
        saves: Numbers of the steps that end at the instants of the grid; 0 is the start.
        decay: Of ``Z``, shape ``(N, K)``.
        slope: Of ``-D``, shape ``(N, K)``; no columns without a past.
        factors: ``L``, shape ``(N, K, r)``.
        weights: Of the processes at all instants, shape ``(N + 1, K)``.
        scales: ``s``, shape ``(N, d)``.
    """

    starts: Tensor
    sizes: Tensor
    saves: tuple[int, ...]
    decay: Tensor
    slope: Tensor
    factors: Tensor
    weights: Tensor
    scales: Tensor

    @property
    def count(self) -> int:
        """Number of steps."""
        return len(self.sizes)

    def linear(self, rate: Tensor, offset: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The chain of states ``(X, Z, D)`` under the drifts ``offset - rate * x``, each ``(d,)``.

        Returns:
            Transitions ``(N, d, D, D)``, factors ``(N, d, D, r)`` and offsets ``(N, d, D)``.
        """
        steps, kinds = self.decay.shape
        new, old, s = self.weights[1:], self.weights[:-1], self.scales[..., None]
        keep = 1 - self.sizes[:, None] * rate
        past = -s * (new[:, : self.slope.shape[1]] * self.slope)[:, None]
        first = torch.cat((keep[..., None], s * (new * self.decay - old)[:, None], past), 2)
        size = first.shape[2]
        rest = first.new_zeros(steps, size - 1, size)
        index = torch.arange(kinds, device=rest.device)
        rest[:, index, 1 + index] = self.decay
        if self.slope.shape[1]:
            rest[:, index, 1 + kinds + index] = -self.slope
            rest[:, kinds + index, 1 + kinds + index] = 1.0
        dims = first.shape[1]
        transitions = torch.cat((first[:, :, None], rest[:, None].expand(-1, dims, -1, -1)), 2)
        row = (s * (new[:, None] @ self.factors))[:, :, None]
        still = self.factors.new_zeros(steps, size - 1 - kinds, self.factors.shape[2])
        below = torch.cat((self.factors, still), 1)[:, None].expand(-1, dims, -1, -1)
        shift = (self.sizes[:, None] * offset)[..., None]
        offsets = torch.cat((shift, shift.new_zeros(steps, dims, size - 1)), 2)
        return transitions, torch.cat((row, below), 2), offsets

    def moved(self, n: int, state: State, drift: Tensor) -> State:
        """The mean of the next state, under a drift ``(G, d, Q)``."""
        memory = state.memory * self.decay[n]
        if self.slope.shape[1]:
            memory = memory - state.slopes * self.slope[n]
        change = memory @ self.weights[n + 1] - state.memory @ self.weights[n]
        x = state.x + self.sizes[n] * drift + self.scales[n][:, None] * change
        return State(x, memory, state.slopes)

    def push(self, n: int, noise: Tensor) -> Tensor:
        """What normals ``(G, d, Q, r)`` of a step add to ``X``, shape ``(G, d, Q)``."""
        return self.scales[n][:, None] * (noise @ (self.weights[n + 1] @ self.factors[n]))

    def shaken(self, n: int, moved: State, noise: Tensor) -> State:
        """The next state, of its mean and of the normals of the step."""
        memory = moved.memory + noise @ self.factors[n].mT
        return State(moved.x + self.push(n, noise), memory, moved.slopes)


def exact_steps(
    times: Tensor, noise: LatentNoise, diffusion: nn.Module, state: Tensor, *, max_step: float
) -> ExactSteps:
    """The steps of a grid.

    Args:
        times: Strictly increasing instants, shape ``(T,)``.
        noise: The noise, which starts at the first.
        diffusion: Module of time and state to scales ``(1, d)`` that do not depend on the state.
        state: Any state, shape ``(1, d)``, for its dtype.
        max_step: Length that no step exceeds.

    Returns:
        The steps.

    Example:
        >>> from inference.latent_coefficients import ConstantDiffusion
        >>> from inference.latent_noise import FractionalNoise
        >>> noise = FractionalNoise(0.7, horizon=1.0, step=0.1)
        >>> times, state = torch.tensor([0.0, 1.0]), torch.zeros(1, 2)
        >>> exact_steps(times, noise, ConstantDiffusion(2), state, max_step=0.1).count
        10
    """
    grid = make_grid(times, max_step=max_step)
    starts, sizes = grid.steps()
    rates = noise.model().rates.to(sizes.device)
    # Steps of equal length differ by rounding; they are factored once.
    keys = [f"{float(size):.12g}" for size in sizes]
    lengths = {key: k for k, key in enumerate(dict.fromkeys(keys))}
    place = [lengths[key] for key in keys]
    spans = torch.tensor([float(key) for key in lengths], dtype=torch.float64, device=sizes.device)
    factors = low_rank_factors(noise_covariance(rates, spans))
    # Eigenvectors have no sign; a network that moves them needs one.
    signs = torch.where(factors[:, -1:] < 0, -1.0, 1.0).to(factors)
    decay, slope = decays(rates, spans)
    scales = torch.cat([diffusion(time.to(state), state) for time in starts])
    return ExactSteps(
        starts,
        sizes,
        (0, *grid.saves),
        decay[place],
        (slope if noise.kind == "I" else slope[:, :0])[place],
        (factors * signs)[place],
        noise.weights(torch.cat((starts, times[-1:].double()))),
        scales.double(),
    )
