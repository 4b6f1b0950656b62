r"""Paths of Markov approximations, a block of steps at a time.

Over a block of ``m`` steps the values of the path are a linear map of the state ``(Z, D)`` at its start and
of the normals of its steps, so that a block costs two matrix products instead of ``m`` small updates:

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

from sde.noise.ou_transition import decays, low_rank_factors, noise_covariance, slope_covariance
from sde.noise.stream import NoiseStream, Purpose

__all__ = ["MarkovSampler"]

_BLOCK = 32  # steps joined in one product; a step then costs about 16 multiplications for each normal
_CHUNK_BYTES = 1 << 26  # normals held at once: 64 MiB


class _Maps(NamedTuple):
    """Linear maps of a block."""

    state_to_values: Tensor  #: shape ``(s, m)``
    normals_to_values: Tensor  #: shape ``(m r, m)``
    state_to_state: Tensor  #: shape ``(s, s)``
    normals_to_state: Tensor  #: shape ``(m r, s)``


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
        factors, index = self._factors()
        rows = max(1, channels or 1)
        bytes_per_sample = 8 * rows * _BLOCK * (factors.shape[-1] + 1)
        at_once = max(1, _CHUNK_BYTES // bytes_per_sample)
        parts = [
            torch.cat(list(self._blocks(noise[a : a + at_once], rows, factors, index, increments)), -1)
            for a in range(0, max(1, len(noise)), at_once)
        ]
        values = torch.cat(parts)
        return values[:, 0] if channels is None else values.mT

    def stream(self, noise: NoiseStream) -> Iterator[Tensor]:
        """Values at ``edges[1:]``, one at a time, each ``(n,)``: the same to rounding."""
        factors, index = self._factors()
        for values in self._blocks(noise, 1, factors, index, False, block=1):
            yield values[:, 0, 0]

    def _blocks(
        self,
        noise: NoiseStream,
        channels: int,
        factors: Tensor,
        index: Tensor,
        increments: bool,
        block: int = _BLOCK,
    ) -> Iterator[Tensor]:
        """Values of consecutive blocks, each of shape ``(n, channels, m)``."""
        stream, num_steps = noise.fork("markov-fbm"), len(self.edges) - 1
        state, maps, shape = self._start(stream, channels), None, (-1, None, None)
        for first in range(0, num_steps, block):
            count = min(block, num_steps - first)
            signature = (count, *self._signature(index, first, count))
            if maps is None or signature != shape:
                maps, shape = self._maps(factors, index, first, count, increments), signature
            normals = self._normals(stream, channels, first, count, factors.shape[-1])
            yield (state @ maps.state_to_values).to(self.dtype) + normals @ maps.normals_to_values.to(
                self.dtype
            )
            state = state @ maps.state_to_state + (normals @ maps.normals_to_state.to(self.dtype)).double()

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

    def _signature(self, index: Tensor, first: int, count: int) -> tuple[int | None, int | None]:
        """What blocks with the same maps share: one length of step where weights are constant."""
        steps = index[first : first + count]
        same = self.constant and bool((steps == steps[0]).all())
        return (int(steps[0]), None) if same else (None, first)

    def _start(self, stream: NoiseStream, channels: int) -> Tensor:
        """State at time 0: ``Z = 0``, and slopes ``D`` from the stationary law; ``(n, channels, s)``."""
        num = len(self.rates)
        state = torch.zeros(
            len(stream), channels, num * (1 + self.stationary), dtype=torch.float64, device=self.device
        )
        if self.stationary:
            factor = low_rank_factors(slope_covariance(self.rates)).to(self.device)
            normals = stream.normals(
                factor.shape[1],
                purpose=Purpose.INITIAL_STATE,
                channels=channels,
                dtype=torch.float64,
                device=self.device,
            )
            state[..., num:] = normals.mT @ factor.mT
        return state

    def _factors(self) -> tuple[Tensor, Tensor]:
        """Noise factors ``(u, K, r)`` of the different lengths of steps, and which step has which."""
        # Steps that differ by rounding of the instants share a factor.
        sizes = self.edges.diff()
        digits = torch.exp2(torch.log2(sizes).floor()) * 2.0**-36
        rounded = torch.round(sizes / digits) * digits
        different, index = torch.unique(rounded, return_inverse=True)
        return low_rank_factors(noise_covariance(self.rates, different)), index

    def _maps(self, factors: Tensor, index: Tensor, first: int, count: int, increments: bool) -> _Maps:
        """The maps of the steps ``first .. first + count - 1``."""
        times = self.edges[first : first + count + 1]
        weights = self.weights_at(times)
        keep, lose = decays(self.rates, times - times[0])  # (m + 1, K) each
        after, _ = decays(self.rates, (times[1:, None] - times[1:]).clamp(min=0))  # (m, m, K): j, i
        causal = torch.ones(count, count, dtype=torch.float64).tril()
        noise = factors[index[first : first + count]]  # (m, K, r)
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
