r"""Paths of Markov approximations, a block of steps at a time.

Over a block of ``m`` steps the values of the path are a linear map of the state ``(Z, D)`` at its start and
of the normals of its steps, so that ``m`` small updates become two matrix products, for many blocks at once:

.. math::

    \hat B(t_j) = \sum_k w_{jk} \Bigl[ e^{-\gamma_k (t_j - t_0)} Z_k
        - \frac{1 - e^{-\gamma_k (t_j - t_0)}}{\gamma_k} D_k
        + \sum_{i \le j} e^{-\gamma_k (t_j - t_i)} (L_i \varepsilon_i)_k \Bigr].

The maps are assembled in float64, where the large weights of opposite signs cancel, and the state is carried
in float64; normals and values have the dtype that is asked for.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sde.noise.gaussian_path import low_rank_factors
from sde.noise.ou_transition import decays, noise_covariance, slope_covariance
from sde.noise.stream import NoiseStream, Purpose

__all__ = ["MarkovSampler"]

_BLOCK = 32  # steps joined in one product; a step then costs about 16 multiplications for each normal
_CHUNK_BYTES = 1 << 26  # normals held at once: 64 MiB


class _Factors(NamedTuple):
    """Factors of the noise of a step."""

    steps: Tensor  #: of the different lengths of steps, shape ``(u, K, r)``
    which: Tensor  #: which step has which, shape ``(num_steps,)``


class _Maps(NamedTuple):
    """Linear maps of a block."""

    state_to_values: Tensor  #: shape ``(s, m)``
    normals_to_values: Tensor  #: shape ``(m r, m)``
    state_to_state: Tensor  #: shape ``(s, s)``
    normals_to_state: Tensor  #: shape ``(m r, s)``


def stationary_slopes(rates: Tensor, noise: NoiseStream, channels: int, device: torch.device) -> Tensor:
    """Slopes ``D`` of stationary processes: float64, shape ``(n, channels, K)``."""
    factor = low_rank_factors(slope_covariance(rates)).to(device)
    normals = noise.normals(
        factor.shape[1], purpose=Purpose.INITIAL_STATE, channels=channels, dtype=torch.float64, device=device
    )
    return normals.mT @ factor.mT


@dataclass(frozen=True, slots=True, eq=False)
class MarkovSampler:
    """Sampler of a weighted sum of Ornstein--Uhlenbeck processes on a grid of times.

    Args:
        rates: Shape ``(K,)``, float64.
        edges: Increasing instants, the first 0, shape ``(num_steps + 1,)``, float64.
        weights_at: Instants ``(m,)`` to weights ``(m, K)``.
        constant: Whether the weights are the same at all instants.
        stationary: Whether the processes start stationary (type I) or at zero (type II).
        dtype: Type of the values.
        device: Where they are computed.
    """

    rates: Tensor
    edges: Tensor
    weights_at: Callable[[Tensor], Tensor]
    constant: bool
    stationary: bool
    dtype: torch.dtype
    device: torch.device

    def run(self, noise: NoiseStream, channels: int | None, *, increments: bool) -> Tensor:
        """Values at ``edges[1:]``, or the increments up to them; ``(n, num_steps)``, channels last if any."""
        rows, factors = channels or 1, self._factors()
        at_once = max(1, _CHUNK_BYTES // (8 * rows * _BLOCK * (factors.steps.shape[-1] + 1)))
        parts = [
            torch.cat(list(self._runs(noise[a : a + at_once], rows, factors, increments, _BLOCK)), -1)
            for a in range(0, max(1, len(noise)), at_once)
        ]
        values = torch.cat(parts)
        return values[:, 0] if channels is None else values.mT

    def stream(self, noise: NoiseStream) -> Iterator[Tensor]:
        """Values at ``edges[1:]``, one at a time, each ``(n,)``: the same to rounding."""
        for values in self._runs(noise, 1, self._factors(), increments=False, block=1, longest=1):
            yield values[:, 0, 0]

    def _runs(
        self,
        noise: NoiseStream,
        channels: int,
        factors: _Factors,
        increments: bool,
        block: int,
        longest: int | None = None,
    ) -> Iterator[Tensor]:
        """Values of runs of blocks, each of shape ``(n, channels, steps)``."""
        stream = noise.fork("markov-fbm")
        state, rank = self._start(stream, channels), factors.steps.shape[-1]
        fits = max(1, _CHUNK_BYTES // (8 * max(1, len(noise)) * channels * block * (rank + 1)))
        maps, known = None, None
        for first, count, blocks in self._plan(factors, block, min(fits, longest or fits)):
            same = count if self._uniform(factors) else -first  # what blocks with the same maps share
            if maps is None or same != known:
                maps, known = self._maps(factors, first, count, increments), same
            normals = self._normals(stream, channels, first, count * blocks, rank)
            normals = normals.unflatten(-1, (blocks, count * rank))
            pushes = (normals @ maps.normals_to_state.to(self.dtype)).double()
            states = []
            for push in pushes.unbind(-2):
                states.append(state)
                state = state @ maps.state_to_state + push
            from_state = torch.stack(states, -2) @ maps.state_to_values
            values = from_state.to(self.dtype) + normals @ maps.normals_to_values.to(self.dtype)
            yield values.flatten(-2)

    def _plan(self, factors: _Factors, block: int, longest: int) -> Iterator[tuple[int, int, int]]:
        """First step, steps in a block, and blocks of each run: runs share one set of maps."""
        num_steps = len(self.edges) - 1
        equal, first = self._uniform(factors), 0
        while first < num_steps:
            count = min(block, num_steps - first)
            blocks = min(longest, (num_steps - first) // count) if equal else 1
            yield first, count, blocks
            first += count * blocks

    def _uniform(self, factors: _Factors) -> bool:
        """Whether all steps are alike."""
        return self.constant and len(factors.steps) == 1

    def _normals(self, stream: NoiseStream, channels: int, first: int, count: int, rank: int) -> Tensor:
        """Normals of the steps ``first .. first + count - 1``, shape ``(n, channels, count * rank)``."""
        normals = stream.normals(
            count,
            purpose=Purpose.WIENER,
            channels=rank * channels,
            first=first,
            dtype=self.dtype,
            device=self.device,
        )
        # Directions vary slowest among the channels: the rank of the grid then moves no address.
        return normals.unflatten(-1, (rank, channels)).movedim(-1, 1).flatten(2)

    def _start(self, stream: NoiseStream, channels: int) -> Tensor:
        """State at time 0: ``Z = 0``, and slopes ``D`` from the stationary law; ``(n, channels, s)``."""
        num = len(self.rates)
        state = torch.zeros(
            len(stream), channels, num * (1 + self.stationary), dtype=torch.float64, device=self.device
        )
        if self.stationary:
            state[..., num:] = stationary_slopes(self.rates, stream, channels, self.device)
        return state

    def _factors(self) -> _Factors:
        """Noise factors of the different lengths of steps."""
        # Steps that differ by rounding of the instants share a factor.
        sizes = self.edges.diff()
        digits = torch.exp2(torch.log2(sizes).floor()) * 2.0**-36
        rounded = torch.round(sizes / digits) * digits
        different, index = torch.unique(rounded, return_inverse=True)
        return _Factors(low_rank_factors(noise_covariance(self.rates, different)), index)

    def _maps(self, factors: _Factors, first: int, count: int, increments: bool) -> _Maps:
        """The maps of the steps ``first .. first + count - 1``."""
        times = self.edges[first : first + count + 1]
        weights = self.weights_at(times)
        keep, lose = decays(self.rates, times - times[0])  # (m + 1, K) each
        after, _ = decays(self.rates, (times[1:, None] - times[1:]).clamp(min=0))  # (m, m, K): j, i
        causal = torch.ones(count, count, dtype=torch.float64).tril()
        noise = factors.steps[factors.which[first : first + count]]  # (m, K, r)
        from_noise = torch.einsum("jk,jik,ikr,ji->irj", weights[1:], after, noise, causal).flatten(0, 1)
        from_state = torch.cat((weights * keep, -weights * lose), 1) if self.stationary else weights * keep
        from_state = from_state.mT  # (s, m + 1)
        if increments:
            start = torch.zeros_like(from_noise[:, :1])
            from_noise = torch.cat((start, from_noise), 1).diff(dim=1)
            from_state = from_state.diff(dim=1)
        else:
            from_state = from_state[:, 1:]
        forward, carried = self._transfer(keep[-1], lose[-1]), (after[-1][..., None] * noise).mT.flatten(0, 1)
        if self.stationary:
            carried = torch.cat((carried, torch.zeros_like(carried)), 1)
        return _Maps(*(part.to(self.device) for part in (from_state, from_noise, forward, carried)))

    def _transfer(self, keep: Tensor, lose: Tensor) -> Tensor:
        """The map of the state over the block, shape ``(s, s)``."""
        if not self.stationary:
            return torch.diag(keep)
        one = torch.eye(len(keep), dtype=keep.dtype)
        return torch.cat(
            (torch.cat((torch.diag(keep), torch.zeros_like(one)), 1), torch.cat((-torch.diag(lose), one), 1))
        )
