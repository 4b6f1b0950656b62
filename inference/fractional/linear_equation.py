r"""A linear equation with Markov-approximate fractional noise, and the way back from its path to its noise.

References:
    Samko, Kilbas & Marichev (1993), Fractional Integrals and Derivatives, section 13, for the inverse kernel
    in the form of differences.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from inference.fractional.chain import GaussianChain, fractional_chain
from sde.noise.markov_fbm import MarkovFBM

__all__ = ["LinearEquation", "memory_kernel"]

_SMALLEST = 1e-2  # sum of the weights, below which the control of a drift is mostly cancellation


@dataclass(frozen=True, slots=True, eq=False)
class LinearEquation:
    r"""The linear equation behind a posterior.

    .. math:: \mathrm dX = -\theta X\,\mathrm dt + s\,\mathrm d\hat B^H

    Attributes:
        model: The noise, with an index that does not depend on time.
        reversion: Rate :math:`\theta`.
        scale: ``s``, not 0.
        initial: Mean of ``X`` at the start.
        initial_deviation: Its standard deviation.

    Raises:
        ValueError: If the index depends on time or carries a gradient, the scale is 0, or the weights of the
            noise nearly cancel, so that no control of moderate size moves the path.
    """

    model: MarkovFBM
    reversion: float = 0.0
    scale: float = 1.0
    initial: float = 0.0
    initial_deviation: float = 0.0

    def __post_init__(self) -> None:
        if callable(self.model.H) or torch.as_tensor(self.model.H).requires_grad:
            raise ValueError(
                "`model` must have a Hurst index that is constant and carries no gradient: paths are drawn "
                "with factors that have none. Learn the index by `log_evidence`."
            )
        if self.scale == 0:
            raise ValueError("`scale` must not be 0: without noise there is nothing to control.")
        if float(self.model.omega().sum()) < _SMALLEST:
            raise ValueError(
                f"`model` must have weights whose sum is at least {_SMALLEST:g}; got "
                f"{float(self.model.omega().sum()):.3g}. Raise `dt` or lower `K`."
            )

    def chain(self, times: Tensor) -> GaussianChain:
        """The equation at some instants, the first of which is its start."""
        return fractional_chain(
            self.model,
            times,
            reversion=self.reversion,
            scale=self.scale,
            initial=self.initial,
            initial_deviation=self.initial_deviation,
        )

    @property
    def push(self) -> Tensor:
        """What the Wiener process does to the state of the chain, ``G``, shape ``(D,)``."""
        ones = torch.ones(len(self.model.rates), dtype=torch.float64)
        past = torch.zeros_like(ones) if self.model.type == "I" else ones[:0]
        return torch.cat((self.strength.reshape(1), ones, past))

    @property
    def strength(self) -> Tensor:
        """What it does to ``X``, ``s`` times the sum of the weights, 0-d."""
        return self.scale * self.model.omega().sum()


def memory_kernel(model: MarkovFBM, lags: Tensor) -> tuple[Tensor, Tensor]:
    r"""The kernel :math:`\kappa` that recovers the Wiener process from a path, and its primitive.

    Args:
        model: The noise.
        lags: At least 0, shape ``(...)``, float64.

    Returns:
        :math:`\kappa(\tau)` and :math:`1 + \int_0^\tau \kappa`, each of the shape of the lags.

    Example:
        >>> kernel, primitive = memory_kernel(MarkovFBM(0.5), torch.tensor([0.5], dtype=torch.float64))
        >>> bool(kernel.abs() < 1e-8), bool((primitive - 1).abs() < 1e-8)  # Brownian motion remembers nothing
        (True, True)
    """
    omega, rates = model.omega().detach(), model.rates
    pull, size = omega * rates / omega.sum(), len(rates)
    system = torch.zeros(size + 1, size + 1, dtype=torch.float64)
    system[:size, :size] = pull - torch.diag(rates)
    system[:size, size] = 1
    moved = torch.linalg.matrix_exp(system * lags[..., None, None])[..., :size, size]
    primitive = moved @ pull
    return pull.sum() + (moved @ system[:size, :size].mT) @ pull, 1 + primitive
