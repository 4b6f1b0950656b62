r"""Predictions: what networks have learned of an interpolant, in whatever form, as any other form.

A field that is wanted, a network's output and the point itself are rows in one basis
(:mod:`inference.interpolants.interpolant`). The wanted row is a combination of the others,

.. math:: r_\text{wanted} = c_x\, r_\text{point} + \sum_k c_k\, r_k
          \quad\Longrightarrow\quad
          f_\text{wanted}(t, x) = c_x(t)\, x + \sum_k c_k(t)\, f_k(t, x),

so that a conversion, or the drift of a sampler, costs one evaluation of each network.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Self

import torch
from torch import Tensor

from inference.interpolants.interpolant import Interpolant, Kind, OneSided
from inference.interpolants.schedule import Schedule
from sde.equation import Coefficient

__all__ = ["Prediction", "reschedule"]

_PROBE = 0.37  # an instant at which kinds that determine an interpolant's fields are independent


@dataclass(frozen=True, slots=True)
class Prediction:
    r"""Learned or exact fields of an interpolant, from which all others follow.

    Some conversions are a limit at the ends: the noise says nothing of the target at time 0, nor the target
    of the score at time 1. There the networks and their coefficients are taken at the nearest time that is
    the cube root of the rounding unit inside, where the error of the limit is that of a rounded difference
    over the square of what remains. A kind that a network predicts is never moved.

    Attributes:
        interpolant: The path that the networks were trained on.
        networks: The kinds that are known: functions of time (0-d, or ``(n, 1)``) and points ``(n, *shape)``.
            One for one-sided and mirror interpolants, two for two-sided ones. More are allowed: a kind that
            is wanted is read directly where it is known, and otherwise made from the first ones.

    Raises:
        ValueError: If the interpolant has no such kind, or the kinds do not determine the fields.

    Example:
        >>> from inference.interpolants import OneSided
        >>> velocity = lambda t, x: -x * (1 - 2 * t) / ((1 - t) ** 2 + t**2)  # from N(0, 1) to itself
        >>> score = Prediction(OneSided(), {Kind.VELOCITY: velocity}).to(Kind.SCORE)
        >>> abs(score(torch.tensor(0.5), torch.tensor([[1.0]])) + 2).max() < 1e-6
        tensor(True)

    References:
        Albergo, Boffi & Vanden-Eijnden (2023), Stochastic interpolants, section 4. arXiv:2303.08797
    """

    interpolant: Interpolant
    networks: Mapping[Kind, Coefficient]

    def __post_init__(self) -> None:
        t = torch.tensor(_PROBE, dtype=torch.float64)
        rows, needed = self.interpolant.rows(t), self.interpolant.num_fields
        for kind in self.networks:
            if kind not in rows:
                known = ", ".join(k.value for k in rows)
                raise ValueError(
                    f"`networks` must predict kinds of {type(self.interpolant).__name__} ({known}); "
                    f"got {kind.value}."
                )
        kinds = self._basis()
        wanted = {Kind.VELOCITY: 1.0}, {Kind.SCORE: 1.0}
        if len(kinds) < needed or any(self._coefficients(w, t, t, kinds).isnan().any() for w in wanted):
            raise ValueError(
                f"`networks` must hold {needed} independent kinds; got {[k.value for k in self.networks]}."
            )
        object.__setattr__(self, "networks", MappingProxyType(dict(self.networks)))

    @classmethod
    def from_start(cls, interpolant: Interpolant, start: Tensor, kind: Kind, network: Coefficient) -> Self:
        """The prediction for samples whose base points ``start``, shape ``(n, *shape)``, are known."""
        return cls(interpolant, {kind: network, Kind.BASE: lambda t, x: start})

    def to(self, kind: Kind) -> Coefficient:
        """The field of a kind, a function of time and points."""
        return lambda t, x: self.combine({kind: 1.0}, t, x)

    def combine(self, weights: Mapping[Kind, Tensor | float], t: Tensor, x: Tensor) -> Tensor:
        """A weighted sum of fields, with one evaluation of each network that it takes.

        Args:
            weights: The kinds and their weights, which may depend on time.
            t: Time, 0-d or of a shape that broadcasts with ``x``, such as ``(n, 1)``.
            x: Points, shape ``(n, *shape)``.

        Returns:
            The sum, shape ``(n, *shape)``.

        Raises:
            ValueError: If the interpolant has no such kind.
        """
        if all(kind in self.networks for kind in weights):
            return _sum([(weight, self.networks[kind](t, x)) for kind, weight in weights.items()])
        margin = torch.finfo(x.dtype).eps ** (1 / 3)
        inside = t.clamp(margin, 1 - margin)
        kinds = self._basis()
        coefficients = self._coefficients(weights, t, inside, kinds).to(x).unbind(-1)
        parts = [(c, self.networks[kind](inside, x)) for c, kind in zip(coefficients[1:], kinds, strict=True)]
        return _sum([(coefficients[0], x), *parts])

    def _basis(self) -> list[Kind]:
        """The kinds that all others are made from."""
        return list(self.networks)[: self.interpolant.num_fields]

    def _coefficients(
        self, weights: Mapping[Kind, Tensor | float], t: Tensor, inside: Tensor, kinds: list[Kind]
    ) -> Tensor:
        """Coefficients of the point and of each kind, shape ``(*t.shape, k)``, in double precision."""
        at, near = t.double(), inside.double()
        rows = self.interpolant.rows(at)
        for kind in weights:
            if kind not in rows:
                raise ValueError(
                    f"`kind` must be one of {type(self.interpolant).__name__}'s; got {kind.value}."
                )
        wanted = _sum(
            [
                (torch.as_tensor(w, dtype=at.dtype, device=at.device)[..., None], rows[kind])
                for kind, w in weights.items()
            ]
        )
        known = self.interpolant.rows(near)
        basis = torch.stack([self.interpolant.relation(near), *(known[kind] for kind in kinds)], -1)
        found, singular = torch.linalg.solve_ex(basis, wanted[..., None])
        if bool(singular.any()):  # some field is not determined, others may be
            found = torch.linalg.pinv(basis) @ wanted[..., None]
        found = found[..., 0]
        # A field that the known ones do not determine, such as the base when the path has forgotten it.
        missed = (basis @ found[..., None])[..., 0] - wanted
        lost = missed.abs().amax(-1, keepdim=True) > 1e-3 * wanted.abs().amax(-1, keepdim=True)
        return torch.where(lost, torch.nan, found)


def reschedule(prediction: Prediction, schedule: Schedule) -> Prediction:
    r"""The same networks for another schedule of a one-sided path, without training.

    At equal signal-to-noise ratio the points of two schedules differ by a factor: with
    :math:`\lambda'(r) = \lambda(t_r)` and
    :math:`s_r^2 = (\alpha'^2 + \beta'^2)_r / (\alpha^2 + \beta^2)_{t_r}` the target predicted at r and x is
    that of the networks at :math:`t_r` and :math:`x / s_r`.

    Args:
        prediction: Of a one-sided interpolant.
        schedule: The schedule wanted; where its ratio leaves the range of the other, the end is taken.

    Returns:
        The prediction of the interpolant with that schedule.

    Raises:
        ValueError: If the interpolant is not one-sided.

    Example:
        >>> from inference.interpolants import Linear, OneSided, Trigonometric
        >>> known = Prediction(OneSided(Linear()), {Kind.TARGET: lambda t, x: 0 * x + t})
        >>> reschedule(known, Trigonometric()).to(Kind.TARGET)(torch.tensor(0.5), torch.zeros(1, 1))
        tensor([[0.5000]])
    """
    path = prediction.interpolant
    if not isinstance(path, OneSided):
        raise ValueError(f"`prediction` must be of a OneSided interpolant; got {type(path).__name__}.")

    def target(r: Tensor, x: Tensor) -> Tensor:
        ends = path.schedule.log_snr(torch.tensor([0.0, 1.0], dtype=r.dtype, device=r.device))
        t = path.schedule.time(schedule.log_snr(r).clamp(ends[0], ends[1]))
        ours, theirs = (
            torch.hypot(*pair) for pair in (schedule.coefficients(r), path.schedule.coefficients(t))
        )
        return prediction.to(Kind.TARGET)(t, x * (theirs / ours))

    return Prediction(OneSided(schedule), {Kind.TARGET: target})


def _sum(terms: list[tuple[Tensor | float, Tensor]]) -> Tensor:
    """Sum of weights times tensors; a weight of one is not multiplied."""
    total: Tensor | None = None
    for weight, value in terms:
        part = value if isinstance(weight, float) and weight == 1.0 else weight * value
        total = part if total is None else total + part
    assert total is not None
    return total
