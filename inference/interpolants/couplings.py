r"""Couplings: which base point goes with which target point.

Any coupling may be learned from; the laws at the ends are the same, the flow between them is not. A velocity
that is a function of time and point alone reproduces the laws, not the pairs: to keep pairs, give the network
the base point (:class:`~inference.interpolants.Matching`, ``given_base``).

A source of pairs is a function of a noise stream that returns base and target points, one row for each sample
of the stream.

References:
    Tong, Fatras, Malkin, Huguet, Zhang, Rector-Brooks, Wolf & Bengio (2024), Improving and generalizing
    flow-based generative models with minibatch optimal transport. arXiv:2302.00482
    Albergo, Goldstein, Boffi, Ranganath & Vanden-Eijnden (2024), Stochastic interpolants with data-dependent
    couplings. arXiv:2310.03725
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from sde.noise import NoiseStream, Purpose
from sde.shapes import check_shapes

__all__ = ["Coupling", "Entropic", "OptimalTransport", "Pairs", "coupled", "independent", "paired"]

Pairs = Callable[[NoiseStream], tuple[Tensor, Tensor]]
"""A source of pairs: base and target points, each ``(n, d)``."""


class Coupling(Protocol):
    """A rule that pairs the rows of a mini-batch."""

    def __call__(self, base: Tensor, target: Tensor, noise: NoiseStream, /) -> Tensor:
        """For each row of ``base`` the row of ``target`` that goes with it, int64, shape ``(n,)``."""
        ...


@dataclass(frozen=True, slots=True)
class OptimalTransport:
    """The assignment of least squared distance within a mini-batch; every row is used once.

    A finite batch biases the coupling towards the independent one.

    Example:
        >>> column = torch.arange(3.0)[:, None]
        >>> OptimalTransport()(column, column.flip(0), NoiseStream(0, 0, 3))
        tensor([2, 1, 0])
    """

    def __call__(self, base: Tensor, target: Tensor, noise: NoiseStream) -> Tensor:
        """The row of ``target`` for each row of ``base``."""
        _, columns = linear_sum_assignment(_cost(base, target).cpu().numpy())
        return torch.from_numpy(columns).to(base.device)


@dataclass(frozen=True, slots=True)
class Entropic:
    r"""Pairs drawn from the entropic plan between the points of a mini-batch.

    The plan minimises :math:`\langle |x_0 - x_1|^2 \rangle + r\, \mathrm{KL}`; with :math:`r = 2 \sigma^2`
    it is the coupling of the Schroedinger bridge of a Wiener process of deviation :math:`\sigma`. Each base
    row is used once, and the row that goes with it is drawn from the plan.

    Attributes:
        regularisation: ``r``, positive, in squared units of the points.
        iterations: Sinkhorn iterations.

    Raises:
        ValueError: If the regularisation is not positive.

    References:
        Cuturi (2013), Sinkhorn distances, section 4. arXiv:1306.0895
    """

    regularisation: float
    iterations: int = 200

    def __post_init__(self) -> None:
        if not self.regularisation > 0:
            raise ValueError(f"`regularisation` must be positive; got {self.regularisation}.")

    def __call__(self, base: Tensor, target: Tensor, noise: NoiseStream) -> Tensor:
        """The row of ``target`` for each row of ``base``."""
        plan = self.plan(base, target)
        ends = plan.cumsum(1)
        uniform = noise.fork("entropic coupling").uniforms(
            1, purpose=Purpose.TRAINING, dtype=plan.dtype, device=plan.device
        )
        return torch.searchsorted(ends, uniform * ends[:, -1:])[:, 0].clamp(max=len(target) - 1)

    def plan(self, base: Tensor, target: Tensor) -> Tensor:
        """The plan, shape ``(n, m)``, with columns of sum ``1 / m`` and rows near ``1 / n``."""
        kernel = -_cost(base, target) / self.regularisation
        column = torch.zeros_like(kernel[0])
        row = torch.zeros_like(kernel[:, 0])
        for _ in range(self.iterations):
            row = -(kernel + column).logsumexp(1) - torch.log(kernel.new_tensor(len(base)))
            column = -(kernel + row[:, None]).logsumexp(0) - torch.log(kernel.new_tensor(len(target)))
        return (kernel + row[:, None] + column).exp()


def independent(base: Callable[[NoiseStream], Tensor], target: Callable[[NoiseStream], Tensor]) -> Pairs:
    """Pairs of independent draws from two sources, such as :meth:`Mixture.sample`."""
    return lambda noise: (base(noise.fork("base")), target(noise.fork("target")))


def paired(base: Tensor, target: Tensor) -> Pairs:
    """Pairs that are rows of two data sets, drawn with replacement.

    Args:
        base: Shape ``(n, d)``.
        target: What goes with each row, shape ``(n, d)``.

    Raises:
        ValueError: If shapes disagree.

    Example:
        >>> column = torch.arange(5.0)[:, None]
        >>> first, second = paired(column, 10 * column)(NoiseStream(seed=0, start=0, stop=3))
        >>> torch.equal(10 * first, second)
        True
    """
    check_shapes(base=(base, "n d"), target=(target, "n d"))

    def draw(noise: NoiseStream) -> tuple[Tensor, Tensor]:
        uniform = noise.uniforms(1, purpose=Purpose.TRAINING, dtype=torch.float64)[:, 0]
        rows = (uniform * len(base)).long().to(base.device)
        return base[rows], target[rows]

    return draw


def coupled(pairs: Pairs, coupling: Coupling) -> Pairs:
    """Pairs of a source, paired anew within each batch."""

    def draw(noise: NoiseStream) -> tuple[Tensor, Tensor]:
        base, target = pairs(noise)
        return base, target[coupling(base, target, noise)]

    return draw


def _cost(base: Tensor, target: Tensor) -> Tensor:
    """Squared distances, ``(n, m)``."""
    return torch.cdist(base.flatten(1), target.flatten(1)).square()
