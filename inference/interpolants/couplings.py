r"""Couplings: which base point goes with which target point.

Any coupling may be learned from; the laws at the ends are the same, the flow between them is not. A velocity
that is a function of time and point alone reproduces the laws, not the pairs: to keep pairs, give the network
the base point (:class:`~inference.interpolants.Matching`, ``given_base``).

A source of pairs is a function of a noise stream that returns base and target points, one row for each sample
of the stream, and then whatever is known of each target: conditions, labels. What is known follows its target
through every coupling.

A coupling within mini-batches may bias a conditional model. Left to itself it prefers some base points for
the targets of a condition, while a sampler is given all: :func:`coupled` with a weight of the conditions
keeps the base points of every condition as they are.

References:
    Tong, Fatras, Malkin, Huguet, Zhang, Rector-Brooks, Wolf & Bengio (2024), Improving and generalizing
    flow-based generative models with minibatch optimal transport. arXiv:2302.00482
    Albergo, Goldstein, Boffi, Ranganath & Vanden-Eijnden (2024), Stochastic interpolants with data-dependent
    couplings. arXiv:2310.03725
    Cheng & Schwing (2025), The curse of conditions: analyzing and improving optimal transport for conditional
    flow-based generation. arXiv:2503.10636
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from sde.noise import NoiseStream, Purpose
from sde.shapes import check_shapes

__all__ = [
    "Coupling",
    "Entropic",
    "OptimalTransport",
    "Pairs",
    "coupled",
    "dependent",
    "independent",
    "paired",
]

Pairs = Callable[[NoiseStream], tuple[Tensor, ...]]
"""A source of pairs: base and target points ``(n, d)``, and what is known of each target ``(n, c)``."""


class Coupling(Protocol):
    """A rule that pairs the rows of a mini-batch."""

    def __call__(self, base: Tensor, target: Tensor, noise: NoiseStream, /) -> Tensor:
        """For each row of ``base`` the row of ``target`` that goes with it, int64, shape ``(n,)``."""
        ...


@dataclass(frozen=True, slots=True)
class OptimalTransport:
    """The assignment of least squared distance within a mini-batch; every row is used once.

    A finite batch biases the coupling towards the independent one. Base and target must have as many rows.

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
        iterations: Most Sinkhorn iterations; fewer are made where the marginals agree before.

    Raises:
        ValueError: If the regularisation is not positive.
        ImportError: If POT is not installed (at the first call).

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
        try:
            from ot.bregman import sinkhorn_log
        except ImportError as error:
            raise ImportError("Entropic needs POT. Install it by pip install 'sdeuq[ot]'.") from error
        cost = _cost(base, target).detach()
        first, second = (cost.new_full((size,), 1 / size) for size in cost.shape)
        plan = sinkhorn_log(first, second, cost, self.regularisation, numItermax=self.iterations, warn=False)
        return cast(Tensor, plan)  # without a log nothing else comes


Targets = Callable[[NoiseStream], Tensor | tuple[Tensor, ...]]
"""A source of target points, or of them and what is known of each."""


def independent(base: Callable[[NoiseStream], Tensor], target: Targets) -> Pairs:
    """Pairs of independent draws from two sources, such as :meth:`Mixture.sample`."""
    return lambda noise: (base(noise.fork("base")), *_columns(target(noise.fork("target"))))


def dependent(target: Targets, base: Callable[[Tensor, NoiseStream], Tensor]) -> Pairs:
    r"""Pairs whose base is made from the target: masked, coarsened, with noise added.

    .. math:: x_0 = m(x_1) + \sigma \zeta

    A network that is given the base (:class:`~inference.interpolants.Matching`, ``given_base``) learns to
    undo it.

    Args:
        target: Source of target points.
        base: Maps target points ``(n, d)`` and a noise stream of as many samples to base points ``(n, d)``.

    Returns:
        A source of pairs.

    Example:
        >>> rows = lambda noise: noise.normals(2)
        >>> pairs = dependent(rows, lambda target, noise: target * torch.tensor([1.0, 0.0]))
        >>> base, target = pairs(NoiseStream(0, 0, 5))
        >>> torch.equal(base[:, 0], target[:, 0]), base[:, 1].abs().max().item()
        (True, 0.0)

    References:
        Albergo, Goldstein, Boffi, Ranganath & Vanden-Eijnden (2024), section 3. arXiv:2310.03725
    """

    def draw(noise: NoiseStream) -> tuple[Tensor, ...]:
        points, *known = _columns(target(noise.fork("target")))
        return base(points, noise.fork("base")), points, *known

    return draw


def paired(base: Tensor, target: Tensor, *known: Tensor) -> Pairs:
    """Pairs that are rows of two data sets, drawn with replacement.

    Args:
        base: Shape ``(n, d)``.
        target: What goes with each row, shape ``(n, d)``.
        *known: What else is known of each pair, shapes ``(n, c)``.

    Raises:
        ValueError: If shapes disagree.

    Example:
        >>> column = torch.arange(5.0)[:, None]
        >>> first, second = paired(column, 10 * column)(NoiseStream(seed=0, start=0, stop=3))
        >>> torch.equal(10 * first, second)
        True
    """
    check_shapes(base=(base, "n d"), target=(target, "n d"))
    for values in known:
        check_shapes(target=(target, "n d"), known=(values, "n c"))

    def draw(noise: NoiseStream) -> tuple[Tensor, ...]:
        uniform = noise.uniforms(1, purpose=Purpose.TRAINING, dtype=torch.float64)[:, 0]
        rows = (uniform * len(base)).long().to(base.device)
        return tuple(column[rows] for column in (base, target, *known))

    return draw


def coupled(pairs: Pairs, coupling: Coupling, *, condition_weight: float = 0.0) -> Pairs:
    r"""Pairs of a source, paired anew within each batch.

    With a weight w the coupling sees each base point with the condition that the source gave it, and each
    target with its own, so that the cost is

    .. math:: |x_0 - x_1|^2 + w\, |c - c'|^2

    and base points stay with targets of a condition near that which chance gave them.

    Args:
        pairs: Source; with a weight, its third column is the condition of each target, shape ``(n, c)``.
        coupling: How a batch is paired.
        condition_weight: ``w``, at least 0, in squared units of the points over those of the conditions;
            infinity couples among equal conditions only, for labels.

    Returns:
        A source of pairs, whose targets keep what is known of them.

    Raises:
        ValueError: If the weight is negative, or there is one but the source knows no condition.

    Example:
        >>> points, labels = torch.arange(4.0)[:, None], torch.tensor([[0.0], [0.0], [1.0], [1.0]])
        >>> source = lambda noise: (points.flip(0), points, labels)
        >>> base, target, kept = coupled(source, OptimalTransport())(NoiseStream(0, 0, 4))
        >>> target.flatten(), kept.flatten()
        (tensor([3., 2., 1., 0.]), tensor([1., 1., 0., 0.]))
        >>> coupled(source, OptimalTransport(), condition_weight=math.inf)(NoiseStream(0, 0, 4))[1].flatten()
        tensor([1., 0., 3., 2.])
    """
    if not condition_weight >= 0:
        raise ValueError(f"`condition_weight` must be at least 0; got {condition_weight}.")

    def draw(noise: NoiseStream) -> tuple[Tensor, ...]:
        base, *columns = pairs(noise)
        if condition_weight and len(columns) < 2:
            raise ValueError("`pairs` must give conditions to weigh; got base and target alone.")
        rows = _coupled_rows(base, columns, coupling, condition_weight, noise)
        return base, *(column[rows] for column in columns)

    return draw


def _coupled_rows(
    base: Tensor, columns: list[Tensor], coupling: Coupling, weight: float, noise: NoiseStream
) -> Tensor:
    """For each base point the row of its target."""
    target = columns[0]
    if weight == 0:
        return coupling(base, target, noise)
    conditions = columns[1].to(base).flatten(1)
    if math.isfinite(weight):
        seen = math.sqrt(weight) * conditions
        return coupling(torch.cat((base, seen), 1), torch.cat((target, seen), 1), noise)
    _, group = torch.unique(conditions, dim=0, return_inverse=True)
    rows = torch.empty_like(group)
    for label in range(int(group.max()) + 1):
        members = (group == label).nonzero()[:, 0]
        rows[members] = members[coupling(base[members], target[members], noise.select(members.cpu()))]
    return rows


def _columns(drawn: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """What a source of targets gives, as columns."""
    return drawn if isinstance(drawn, tuple) else (drawn,)


def _cost(base: Tensor, target: Tensor) -> Tensor:
    """Squared distances, ``(n, m)``."""
    return torch.cdist(base.flatten(1), target.flatten(1)).square()
