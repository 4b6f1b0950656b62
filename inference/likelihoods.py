"""Laws of observations given what a decoder says of them."""

import math
from typing import Protocol, cast

import torch
from scipy import stats
from torch import Tensor, nn

__all__ = ["Bernoulli", "Gaussian", "Likelihood", "Poisson"]


class Likelihood(Protocol):
    """The law of independent observations, each given one number of the decoder."""

    def log_density(self, raw: Tensor, values: Tensor) -> Tensor:
        """Log density or probability of each value, of the shape of ``raw``, ``(..., p)``."""
        ...

    def mean(self, raw: Tensor) -> Tensor:
        """Mean of each observation."""
        ...

    def quantile(self, raw: Tensor, level: Tensor) -> Tensor:
        """Quantile of each observation at levels in (0, 1); uniform levels make samples."""
        ...


class Gaussian(nn.Module):
    """Normal noise around the decoder's number, with a deviation for each component that may be learned.

    Args:
        dim: Number of components ``p``.
        deviation: Standard deviation at the start, positive, in the unit of the observations.
        learned: Train it.
        dtype: Floating dtype.

    Raises:
        ValueError: If the deviation is not positive.

    Example:
        >>> Gaussian(2, deviation=1.0).log_density(torch.zeros(2), torch.zeros(2))
        tensor([-0.9189, -0.9189], grad_fn=<SubBackward0>)
    """

    def __init__(
        self,
        dim: int,
        *,
        deviation: float = 0.1,
        learned: bool = True,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        if not 0 < deviation < math.inf:
            raise ValueError(f"`deviation` must be positive; got {deviation}.")
        self.log_deviation = nn.Parameter(torch.full((dim,), math.log(deviation), dtype=dtype), learned)

    @property
    def deviation(self) -> Tensor:
        """Standard deviation of each component, shape ``(p,)``."""
        return self.log_deviation.exp()

    def log_density(self, raw: Tensor, values: Tensor) -> Tensor:
        """Log density of each value."""
        gap = (values - raw) / self.deviation
        return -0.5 * gap.square() - self.log_deviation - 0.5 * math.log(2 * math.pi)

    def mean(self, raw: Tensor) -> Tensor:
        """The number itself."""
        return raw

    def quantile(self, raw: Tensor, level: Tensor) -> Tensor:
        """Quantiles at levels in (0, 1)."""
        return raw + self.deviation * torch.special.ndtri(level)


class Bernoulli(nn.Module):
    """Values 0 and 1; the decoder's number is the logit of 1.

    Example:
        >>> Bernoulli().mean(torch.zeros(1))
        tensor([0.5000])
    """

    def log_density(self, raw: Tensor, values: Tensor) -> Tensor:
        """Log probability of each value."""
        return values * raw - nn.functional.softplus(raw)

    def mean(self, raw: Tensor) -> Tensor:
        """Probability of 1."""
        return raw.sigmoid()

    def quantile(self, raw: Tensor, level: Tensor) -> Tensor:
        """0 or 1."""
        return (level > 1 - raw.sigmoid()).to(raw)


class Poisson(nn.Module):
    """Counts; the decoder's number is the logarithm of their mean.

    Example:
        >>> Poisson().log_density(torch.zeros(1), torch.tensor([2.0]))
        tensor([-1.6931])
    """

    def log_density(self, raw: Tensor, values: Tensor) -> Tensor:
        """Log probability of each count."""
        return values * raw - raw.exp() - torch.lgamma(values + 1)

    def mean(self, raw: Tensor) -> Tensor:
        """Mean count."""
        return raw.exp()

    def quantile(self, raw: Tensor, level: Tensor) -> Tensor:
        """Counts; without a gradient."""
        rate = raw.detach().exp().cpu().double().numpy()
        counts = cast("object", stats.poisson.ppf(level.detach().cpu().double().numpy(), rate))
        return torch.as_tensor(counts).to(raw)
