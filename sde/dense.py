"""States between the instants of a solve, with their conditional law."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sde.equation import SDE
from sde.noise.stream import NoiseStream
from sde.noise.tree import BrownianTree
from sde.shapes import check_shapes

__all__ = ["DensePaths"]


@dataclass(frozen=True, slots=True, eq=False)
class DensePaths:
    r"""Paths between the instants where they are known, as Brownian bridges with local coefficients.

    Between neighbouring instants, :math:`t_k \le t \le t_{k+1}` with :math:`h = t_{k+1} - t_k`,

    .. math::

        X_t \mid X_{t_k}, X_{t_{k+1}} \sim \mathcal N\Bigl(X_{t_k} + \tfrac{t - t_k}{h}
        (X_{t_{k+1}} - X_{t_k}),\ \tfrac{(t - t_k)(t_{k+1} - t)}{h}\, g g^{\mathsf T}(t_k, X_{t_k})\Bigr).

    It is the law of the process for constant diffusion and drift, and its leading term for small h otherwise.
    A straight line between the states, which other libraries return, is its mean: it misses the roughness of
    the path. Solves on a :class:`BrownianTree` can instead be repeated with more instants, on the same path.

    Args:
        sde: The equation that was solved.
        times: Instants, shape ``(T,)``.
        states: States there, shape ``(n, T, *shape)``; as :func:`sde.solve` returns them.
        noise: The samples. Draws are forks of it: the same for any instants that are asked for together, and
            independent of the solve.

    Raises:
        ValueError: If shapes disagree.

    Example:
        >>> from sde import solve
        >>> walk = SDE(lambda t, x: 0 * x, lambda t, x: torch.ones_like(x))
        >>> noise, times = NoiseStream(0, 0, 100), torch.linspace(0, 1, 5)
        >>> dense = DensePaths(walk, times, solve(walk, torch.zeros(100, 1), times, noise), noise)
        >>> dense.sample(torch.tensor([0.1, 0.5, 0.6])).shape
        torch.Size([100, 3, 1])

    References:
        Karatzas & Shreve (1998), section 5.6.B. doi:10.1007/978-1-4612-0949-2
    """

    sde: SDE
    times: Tensor
    states: Tensor
    noise: NoiseStream

    def __post_init__(self) -> None:
        check_shapes(times=(self.times, "T"))
        if self.states.dim() < 3 or self.states.shape[1] != len(self.times):
            raise ValueError(
                f"`states` must have shape (n, T, ...) with T = {len(self.times)}; "
                f"got {tuple(self.states.shape)}."
            )
        if len(self.noise) != len(self.states):
            raise ValueError(f"`noise` must hold {len(self.states)} samples; got {len(self.noise)}.")

    def mean(self, at: Tensor) -> Tensor:
        """Conditional means: states on the straight lines, shape ``(n, len(at), *shape)``.

        Args:
            at: Instants within those of the solve, shape ``(k,)``.

        Raises:
            ValueError: If one lies outside.
        """
        left, share = self._place(at)
        share = share.to(self.states).view(-1, *(1,) * (self.states.dim() - 2))
        return torch.lerp(self.states[:, left], self.states[:, left + 1], share)

    def variance(self, at: Tensor) -> Tensor:
        """Conditional variances of the components, shape ``(n, len(at), *shape)``; zero at the instants."""
        left, share = self._place(at)
        spans = self.times.diff()[left]
        weights = (spans * share * (1 - share)).to(self.states)
        columns = []
        for k, weight in zip(left.tolist(), weights, strict=True):
            state = self.states[:, k]
            square = self.sde.diffusion(self.times[k].to(state), state).square()
            square = square if self.sde.noise_dim is None else square.sum(-1)
            columns.append(weight * square.expand_as(state))
        return torch.stack(columns, 1)

    def sample(self, at: Tensor) -> Tensor:
        """Draw the states at some instants jointly, shape ``(n, len(at), *shape)``.

        A draw belongs to the sample and the instant: asked for again, with others or alone, it is the same.

        Args:
            at: Instants within those of the solve, in any order, shape ``(k,)``.

        Raises:
            ValueError: If one lies outside.
        """
        left, share = self._place(at)
        mean, bridges = self.mean(at), self._bridges(at, left, share)
        moves = []
        for k, bridge in zip(left.tolist(), bridges, strict=True):
            state = self.states[:, k]
            arranged = self.sde.arrange(bridge, tuple(state.shape[1:]))
            diffusion = self.sde.diffusion(self.times[k].to(state), state)
            moves.append(self.sde.product(diffusion, arranged).expand_as(state))
        return mean + torch.stack(moves, 1)

    def _place(self, at: Tensor) -> tuple[Tensor, Tensor]:
        """The interval of each instant, and the share of it that has passed."""
        check_shapes(at=(at, "k"))
        times, at = self.times.double(), at.double().to(self.times.device)
        if not bool(((at >= times[0]) & (at <= times[-1])).all()):
            raise ValueError(
                f"`at` must lie in [{float(times[0]):g}, {float(times[-1]):g}]; "
                f"got {float(at.min()):g} to {float(at.max()):g}."
            )
        left = (torch.searchsorted(times, at, right=True) - 1).clamp(0, len(times) - 2)
        return left, (at - times[left]) / times.diff()[left]

    def _bridges(self, at: Tensor, left: Tensor, share: Tensor) -> Tensor:
        """Brownian bridges of the intervals at the instants, shape ``(len(at), n, channels)``."""
        times = self.times.double()
        ends = torch.cat((times[left], times[left + 1]))
        edges = torch.cat((times[:1], ends, at.double().to(times.device), times[-1:])).unique()
        tree = BrownianTree(self.noise.fork("dense output"), float(times[0]), float(times[-1]))
        channels = self.sde.channels(tuple(self.states.shape[2:]))
        steps = tree.steps(edges, channels, dtype=self.states.dtype, device=self.states.device)
        wiener = steps.chunk(0, len(edges) - 1).wiener
        path = torch.cat((wiener.new_zeros((1, *wiener.shape[1:])), wiener.cumsum(0)))
        here, begin, end = (
            path[torch.searchsorted(edges, when)]
            for when in (at.double().to(times.device), times[left], times[left + 1])
        )
        return here - begin - share.to(path)[:, None, None] * (end - begin)
