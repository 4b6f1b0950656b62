r"""BDIA: sampling by bi-directional steps, which can be undone exactly.

With D the increment of a DDIM step from :math:`z_k`,

.. math:: z_{k+1} = z_{k-1} - (1 - g)(z_{k-1} - z_k) - g\, D(t_k \to t_{k-1} | z_k)
          + D(t_k \to t_{k+1} | z_k),

with one evaluation of the network for a step. Given :math:`z_k` and :math:`z_{k+1}` this is linear in
:math:`z_{k-1}`, so the pair of the last two states gives all earlier ones without a further approximation.
Undoing a step divides by g, and so multiplies rounding errors by :math:`1/g`.

References:
    Zhang, Lewis & Kleijn (2023), Exact diffusion inversion via bi-directional integration approximation,
    section 4. arXiv:2307.10829
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from inference.interpolants.interpolant import Kind
from inference.interpolants.prediction import Prediction
from inference.samplers.dpm_solver import Node, ddim_step, nodes
from sde.noise import NoiseStream

__all__ = ["BDIA"]

_LOST = 1e-3  # relative error by rounding above which an inversion is refused


@dataclass(frozen=True, slots=True)
class BDIA:
    """Sampling by bi-directional DDIM steps.

    Attributes:
        weight: ``g`` in [0, 1]. 1 is of order 2, and the only choice that can be inverted over many steps;
            0 is DDIM; between, order 1.

    Raises:
        ValueError: If the weight is outside [0, 1].

    Example:
        >>> from inference.interpolants import OneSided
        >>> path = Prediction(OneSided(), {Kind.TARGET: lambda t, x: x.tanh()})
        >>> start, times = torch.tensor([[0.3]], dtype=torch.float64), torch.linspace(0.1, 0.9, 9)
        >>> pair = BDIA().pair(path, start, times)
        >>> (BDIA().invert(path, pair, times) - start).abs().item() < 1e-13
        True
    """

    weight: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= 1:
            raise ValueError(f"`weight` must lie in [0, 1]; got {self.weight}.")

    def __call__(self, prediction: Prediction, initial: Tensor, times: Tensor, noise: NoiseStream) -> Tensor:
        """Points at ``times[-1]`` from those at ``times[0]``; arguments as :class:`Sampler`."""
        return self.pair(prediction, initial, times)[0]

    def pair(self, prediction: Prediction, initial: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
        """Points at the last and the last but one of ``times``, from which :meth:`invert` returns.

        Raises:
            ValueError: If the interpolant is not one-sided.
        """
        grid = nodes(prediction, times, "BDIA")
        before, here = initial, initial + _increment(prediction, grid[0], initial, grid[1])[0]
        for k in range(1, len(grid) - 1):
            back, ahead = _increment(prediction, grid[k], here, grid[k - 1], grid[k + 1])
            step = before - (1 - self.weight) * (before - here) - self.weight * back + ahead
            before, here = here, step
        return here, before

    def invert(self, prediction: Prediction, pair: tuple[Tensor, Tensor], times: Tensor) -> Tensor:
        """Points at ``times[0]`` from those at the last two times, with the same times as :meth:`pair`.

        Raises:
            ValueError: If rounding would be amplified beyond use, or the interpolant is not one-sided.
        """
        grid = nodes(prediction, times, "BDIA")
        here, before = pair
        lost = self._amplification(len(grid) - 2) * torch.finfo(here.dtype).eps
        if not lost <= _LOST:
            raise ValueError(
                f"`weight` must not amplify rounding beyond use; {self.weight} over {len(grid) - 1} steps in "
                f"{here.dtype} loses a relative {lost:.1g}. Take weight 1 or fewer steps."
            )
        for k in range(len(grid) - 2, 0, -1):
            back, ahead = _increment(prediction, grid[k], before, grid[k - 1], grid[k + 1])
            earlier = (here - (1 - self.weight) * before + self.weight * back - ahead) / self.weight
            here, before = before, earlier
        return before

    def _amplification(self, num_steps: int) -> float:
        """What undoing steps multiplies a rounding error by."""
        return float("inf") if self.weight == 0 else self.weight ** -float(num_steps)


def _increment(prediction: Prediction, source: Node, x: Tensor, *ends: Node) -> list[Tensor]:
    """Increments of DDIM steps from one node to others, by one evaluation."""
    target = prediction.combine({Kind.TARGET: 1.0}, source.time.to(x), x)
    return [ddim_step(source, end, x, target) - x for end in ends]
