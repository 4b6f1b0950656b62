"""Statistics of many paths without keeping the paths."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sde.march import Plan
from sde.noise.stream import NoiseStream
from sde.noise.tree import BrownianTree
from sde.progress import Progress
from sde.solve import Equation, make_plan
from sde.solvers.euler import EulerMaruyama
from sde.solvers.interface import Solver

__all__ = ["PathStatistics", "solve_statistics"]

_DEFAULT_SOLVER = EulerMaruyama()


@dataclass(frozen=True, slots=True, eq=False)
class PathStatistics:
    """Statistics of the states at every instant, over samples.

    Attributes:
        times: Instants, shape ``(T,)``.
        count: Number of samples.
        mean: Means, float64, shape ``(T, *shape)``.
        variance: Variances with the divisor ``count - 1``, of the same shape.
        minimum: Smallest values, of the same shape.
        maximum: Largest values.
        edges: Edges of the histogram's bins, shape ``(b + 1,)``, or ``None``.
        histogram: Numbers of samples below the first edge, in each bin and above the last edge, int64, shape
            ``(T, *shape, b + 2)``, or ``None``.
    """

    times: Tensor
    count: int
    mean: Tensor
    variance: Tensor
    minimum: Tensor
    maximum: Tensor
    edges: Tensor | None = None
    histogram: Tensor | None = None

    @property
    def standard_error(self) -> Tensor:
        """Standard errors of the means, shape ``(T, *shape)``."""
        return (self.variance / self.count).sqrt()

    @property
    def density(self) -> Tensor:
        """Share of the samples in each bin over its width, shape ``(T, *shape, b)``.

        Raises:
            ValueError: If no histogram was asked for.
        """
        if self.histogram is None or self.edges is None:
            raise ValueError("`histogram` must have been given as edges to solve_statistics; got None.")
        return self.histogram[..., 1:-1] / (self.count * self.edges.diff())

    def quantile(self, probability: float) -> Tensor:
        """Quantiles, linear within the bins of the histogram, shape ``(T, *shape)``.

        Values are limited to the outer edges; the error is below the width of a bin within them.

        Args:
            probability: In (0, 1).

        Raises:
            ValueError: If the probability lies outside, or no histogram was asked for.
        """
        if not 0 < probability < 1:
            raise ValueError(f"`probability` must lie in (0, 1); got {probability}.")
        if self.histogram is None or self.edges is None:
            raise ValueError("`histogram` must have been given as edges to solve_statistics; got None.")
        below = self.histogram.cumsum(-1)[..., :-1].double() / self.count  # at each edge
        target = torch.full((*below.shape[:-1], 1), probability, dtype=below.dtype, device=below.device)
        right = torch.searchsorted(below, target).clamp(1, len(self.edges) - 1)
        low, high = below.gather(-1, right - 1), below.gather(-1, right)
        share = ((target - low) / (high - low).clamp(min=1e-300)).clamp(0, 1)
        left_edge, right_edge = self.edges[right - 1], self.edges[right]
        return (left_edge + share * (right_edge - left_edge)).squeeze(-1)


def solve_statistics(
    sde: Equation,
    initial: Tensor | Callable[[NoiseStream], Tensor],
    times: Tensor,
    noise: NoiseStream | BrownianTree,
    *,
    histogram: Tensor | None = None,
    batch: int = 16384,
    solver: Solver = _DEFAULT_SOLVER,
    substeps: int = 1,
    max_step: float | None = None,
    progress: bool = False,
) -> PathStatistics:
    """Integrate an equation for many samples and keep statistics of the states alone.

    Samples are solved in batches, and each state is forgotten when it has been counted: memory is that of one
    state of a batch, whatever the number of samples and instants.

    Args:
        sde: The equation.
        initial: State at ``times[0]``, one for all samples, shape ``shape``; or a function of the noise of a
            batch that returns ``(n, *shape)``.
        times: Strictly increasing instants, shape ``(T,)``.
        noise: The samples, in grid or in tree mode.
        histogram: Increasing edges of bins, shape ``(b + 1,)``, for histograms of every component.
        batch: Samples solved together. Results do not depend on it, but for the rounding of sums.
        solver: One-step method.
        substeps: Steps between instants.
        max_step: Instead of ``substeps``: the length that no step exceeds.
        progress: Show a bar.

    Returns:
        Statistics at every instant.

    Raises:
        ValueError: If an argument is wrong, as :func:`sde.solve`.
        RuntimeError: If a path diverged.

    Example:
        >>> from sde import SDE
        >>> ou = SDE(lambda t, x: -x, lambda t, x: torch.ones_like(x))
        >>> noise, times = NoiseStream(0, 0, 100_000), torch.linspace(0, 1, 11)
        >>> done = solve_statistics(ou, torch.zeros(1), times, noise, histogram=torch.linspace(-4, 4, 81))
        >>> done.mean.shape, done.histogram.shape
        (torch.Size([11, 1]), torch.Size([11, 1, 82]))

    References:
        Chan, Golub & LeVeque (1983), for the sums. doi:10.1080/00031305.1983.10483115
    """
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
        raise ValueError(f"`batch` must be an integer of at least 1; got {batch!r}.")
    edges = None if histogram is None else _checked_edges(histogram)
    stream = noise.noise if isinstance(noise, BrownianTree) else noise
    total = len(stream)
    if total < 2:
        raise ValueError(f"`noise` must hold at least 2 samples; got {total}.")
    sums = None
    with Progress(total, "statistics of paths", unit="path", show=progress) as bar, torch.no_grad():
        for first in range(0, total, batch):
            part = stream[first : first + batch]
            state = initial(part) if callable(initial) else initial.expand(len(part), *initial.shape)
            driving = part if isinstance(noise, NoiseStream) else _on(noise, part)
            plan = make_plan(sde, state, times, driving, solver, substeps, max_step)
            sums = sums or _Sums(len(times), state, edges)
            _count(plan, state, sums)
            bar.update(len(part))
    assert sums is not None  # there are samples
    return sums.statistics(times)


def _on(tree: BrownianTree, noise: NoiseStream) -> BrownianTree:
    """The same tree for other samples."""
    return BrownianTree(noise, tree.start, tree.stop, tree.depth)


def _checked_edges(edges: Tensor) -> Tensor:
    """Edges of bins in float64."""
    if edges.dim() != 1 or len(edges) < 2 or not bool((edges.diff() > 0).all()):
        raise ValueError(f"`histogram` must be at least 2 increasing edges; got shape {tuple(edges.shape)}.")
    return edges.double()


def _count(plan: Plan, state: Tensor, sums: "_Sums") -> None:
    """Take the states of a batch into account, instant by instant."""
    sums.add(0, state)
    last = state
    for step in plan.march(plan.start(state.contiguous()), 0, plan.num_steps):
        if instant := plan.grid.saves.get(step.number + 1):
            last = plan.solver.read(step.carry)
            sums.add(instant, last)
    diverged = ~last.flatten(1).isfinite().all(1)
    if bool(diverged.any()):
        raise RuntimeError(
            f"{int(diverged.sum())} of {len(last)} paths of a batch diverged. Take more substeps."
        )


class _Sums:
    """Statistics of the samples so far."""

    def __init__(self, num_times: int, state: Tensor, edges: Tensor | None) -> None:
        shape, device = (num_times, *state.shape[1:]), state.device
        self.counts = [0] * num_times
        self.mean = torch.zeros(shape, dtype=torch.float64, device=device)
        self.squares = torch.zeros_like(self.mean)
        self.minimum, self.maximum = (torch.full_like(self.mean, s * torch.inf) for s in (1, -1))
        self.edges = None if edges is None else edges.to(device)
        bins = 0 if edges is None else len(edges) + 1
        self.histogram = torch.zeros((*shape, bins), dtype=torch.int64, device=device)

    def add(self, instant: int, state: Tensor) -> None:
        """Add the states ``(n, *shape)`` of more samples at an instant."""
        values, n, m = state.double(), len(state), self.counts[instant]
        mean = values.mean(0)
        gap = mean - self.mean[instant]
        self.squares[instant] += (values - mean).square().sum(0) + gap.square() * (n * m / (n + m))
        self.mean[instant] += gap * (n / (n + m))
        self.minimum[instant] = torch.minimum(self.minimum[instant], values.amin(0))
        self.maximum[instant] = torch.maximum(self.maximum[instant], values.amax(0))
        self.counts[instant] = n + m
        if self.edges is not None:
            bins = torch.bucketize(values.contiguous(), self.edges, right=True)
            ones = torch.ones_like(bins)
            self.histogram[instant].movedim(-1, 0).scatter_add_(0, bins, ones)

    def statistics(self, times: Tensor) -> PathStatistics:
        """The statistics."""
        count = self.counts[-1]
        return PathStatistics(
            times,
            count,
            self.mean,
            self.squares / (count - 1),
            self.minimum,
            self.maximum,
            self.edges,
            None if self.edges is None else self.histogram,
        )
