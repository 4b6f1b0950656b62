r"""Fractional Brownian motion as a finite-dimensional Markov process, with a certificate of its error.

:class:`MarkovFBM` replaces :math:`B^H` by a weighted sum of ``K`` Ornstein--Uhlenbeck processes that share
one Brownian motion (:mod:`sde.noise.markov_weights`). It costs ``O(K)`` a step whatever the length, runs on
irregular grids and for ever, is differentiable in ``H``, and lets ``H`` depend on time. What is given up is
stated by :meth:`MarkovFBM.error`. The sampling itself is exact: the transitions are those of the joint
Gaussian law (:mod:`sde.noise.ou_transition`), not an Euler scheme.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from sde.noise import markov_weights
from sde.noise.fractional import check_hurst
from sde.noise.markov_grid import automatic_rates, paper_rates
from sde.noise.markov_sampler import MarkovSampler
from sde.noise.markov_weights import Kind
from sde.noise.ou_transition import decays, noise_covariance, slope_covariance
from sde.noise.stream import NoiseStream
from sde.shapes import check_shapes

__all__ = ["Hurst", "MarkovFBM"]

Hurst = float | Tensor | Callable[[Tensor], Tensor]
"""A Hurst index, a tensor ``()`` to differentiate, or a function of times ``(T,)`` to indices ``(T,)``."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class MarkovFBM:
    r"""Markov approximation of fractional Brownian motion on ``[0, T]``.

    .. math::

        \hat B_t = \sum_{k=1}^K \omega_k(H) \bigl(Y_k(t) - Y_k(0)\bigr), \qquad
        \mathrm{d}Y_k = -\gamma_k Y_k\,\mathrm{d}t + \mathrm{d}W

    with stationary :math:`Y_k` for type I (Mandelbrot--Van Ness) and :math:`Y_k(0) = 0` for type II
    (Riemann--Liouville). The weights are optimal in mean square on ``[0, T]``; a path may run on beyond,
    without the guarantee. With ``grid="auto"``, :math:`H = 1/2` is exact.

    :math:`\hat B` is a semimartingale with :math:`\mathrm{d}[\hat B] = (\sum_k \omega_k)^2\,\mathrm{d}t`: for
    steps far below ``dt`` it looks like a Brownian motion of that size.

    Args:
        H: Hurst index in (0, 1); or a function of time, for multifractional Brownian motion
            :math:`\sum_k \omega_k(H(t)) (Y_k(t) - Y_k(0))`.
        K: Number of Ornstein--Uhlenbeck processes, at least 1.
        T: Length of the interval on which the weights are optimal.
        dt: Length of a typical step; the automatic grid resolves it.
        type: ``"I"``: infinite past, stationary increments. ``"II"``: no past.
        normalize: ``"unit"``: the variance that is approximated is ``t**(2 H)``. ``"kernel"``: that of the
            kernel ``u**(H - 1/2) / Gamma(H + 1/2)``.
        grid: Rates of the processes: ``"auto"``, ``"paper"`` (geometric on [1/20, 20]), or increasing rates
            of at least 0, one over time, shape ``(K,)``.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> MarkovFBM(H=0.3)
        MarkovFBM(H=0.3, K=12, T=1, type I, unit variance; relative mean-square error 8.2e-04)
        >>> MarkovFBM(H=0.3, K=5, grid="paper")
        MarkovFBM(H=0.3, K=5, T=1, type I, unit variance; relative mean-square error 1.7e-02)
        >>> noise = NoiseStream(seed=0, start=0, stop=4)
        >>> MarkovFBM(H=0.7).path(noise, torch.linspace(0, 1, 101)).shape
        torch.Size([4, 101])

    References:
        Daems, Opper, Crevecoeur & Birdal (2024), section 3 and proposition 5. arXiv:2310.12975
        Harms & Stefanovits (2019). doi:10.1016/j.spa.2018.04.010
    """

    H: Hurst
    K: int = 12
    T: float = 1.0
    dt: float = 1e-3
    type: Kind = "I"
    normalize: Literal["unit", "kernel"] = "unit"
    grid: Literal["auto", "paper"] | Tensor = "auto"
    rates: Tensor = field(init=False)  #: the rates, float64, shape ``(K,)``

    def __post_init__(self) -> None:
        if not callable(self.H):
            check_hurst(self.H, "H")
        if isinstance(self.K, bool) or not isinstance(self.K, int) or self.K < 1:
            raise ValueError(f"`K` must be an integer of at least 1; got {self.K!r}.")
        if not 0 < self.dt <= self.T < float("inf"):
            raise ValueError(f"`dt` and `T` must satisfy 0 < dt <= T; got {self.dt} and {self.T}.")
        if self.type not in ("I", "II"):
            raise ValueError(f"`type` must be 'I' or 'II'; got {self.type!r}.")
        if self.normalize not in ("unit", "kernel"):
            raise ValueError(f"`normalize` must be 'unit' or 'kernel'; got {self.normalize!r}.")
        object.__setattr__(self, "rates", self._rates())

    def __repr__(self) -> str:
        variance = "unit variance" if self.normalize == "unit" else "variance of the kernel"
        start = f"K={self.K}, T={self.T:g}, type {self.type}, {variance}"
        if callable(self.H):
            return f"MarkovFBM(H=H(t), {start})"
        index = float(check_hurst(self.H).detach())
        error = float(self.error(index))
        return f"MarkovFBM(H={index:g}, {start}; relative mean-square error {error:.1e})"

    def omega(self, H: float | Tensor | None = None) -> Tensor:
        """The weights.

        Args:
            H: Hurst indices, shape ``(...)``; the model's own where none is given.

        Returns:
            Float64, shape ``(..., K)``, differentiable in ``H``.

        Raises:
            ValueError: If an index is out of range, or none is given and the model's depends on time.

        Example:
            >>> MarkovFBM(H=0.3).omega(0.5)[:3].abs().round(decimals=6).tolist()
            [1.0, 0.0, 0.0]
        """
        index = self._index(H)
        omega = markov_weights.weights(index, self.rates.to(index.device) * self.T, self.type)
        power = self.T ** (index - 0.5)
        if self.normalize == "unit":
            power = power * markov_weights.kernel_variance(index, self.type).rsqrt()
        return omega * power[..., None]

    def error(self, H: float | Tensor | None = None) -> Tensor:
        r"""The certificate: how far the approximation is from fractional Brownian motion.

        .. math::

            \int_0^T \mathrm{E}(B_t - \hat B_t)^2\,\mathrm{d}t \Big/ \int_0^T \mathrm{E} B_t^2\,\mathrm{d}t

        with both driven by the same Brownian motion; exact, not an estimate. It holds for values of the path
        on ``[0, T]``; increments over single steps have larger relative errors, which :meth:`covariance`
        gives.

        Args:
            H: As for :meth:`omega`.

        Returns:
            Relative mean-square error in [0, 1], float64, shape ``(...)``.
        """
        index, x = self._index(H), self.rates * self.T
        omega = markov_weights.weights(index, x, self.type)
        return markov_weights.relative_error(index, x, omega, self.type)

    def covariance(self, s: Tensor, t: Tensor, H: Hurst | None = None) -> Tensor:
        """Covariance of the approximation, exact.

        Args:
            s: Instants, at least 0, shape ``(m,)``.
            t: Instants, at least 0, shape ``(T,)``.
            H: As for :meth:`omega`, or a function of time; the model's own where none is given.

        Returns:
            Float64, shape ``(m, T)``, differentiable in ``H``.
        """
        check_shapes(s=(s, "m"), t=(t, "T"))
        if not bool((s >= 0).all() and (t >= 0).all()):
            raise ValueError("`s` and `t` must be at least 0; got a negative instant.")
        s, t, rates = s.double(), t.double(), self.rates.to(s.device)
        at_s, at_t = self._weights_at(s, H), self._weights_at(t, H)
        # What W did in common up to the earlier instant, and its decay until the later one.
        common_s = (noise_covariance(rates, s) @ at_s[..., None])[..., 0]
        common_t = (noise_covariance(rates, t) @ at_t[..., None])[..., 0]
        gaps = t - s[:, None]
        rows = [
            torch.where(
                gap >= 0,
                (torch.exp(-rates * gap.clamp(min=0)[:, None]) * at_t) @ common_s[i],
                (torch.exp(-rates * (-gap).clamp(min=0)[:, None]) * common_t) @ at_s[i],
            )
            for i, gap in enumerate(gaps)
        ]
        present = torch.stack(rows) if rows else s.new_zeros((0, len(t)))
        if self.type == "II":
            return present
        past = slope_covariance(rates)
        return present + (at_s * decays(rates, s)[1]) @ past @ (at_t * decays(rates, t)[1]).mT

    def path(
        self,
        noise: NoiseStream,
        times: Tensor,
        *,
        channels: int | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Exact samples of the approximation at any instants.

        Sample ``i`` depends on the seed, ``i`` and ``times``; memory beyond the result is bounded.
        Differentiable in a tensor ``H``.

        Args:
            noise: Source of the normals, forked with the tag ``"markov-fbm"``.
            times: Increasing instants of at least 0, shape ``(T,)``; the path is 0 at time 0.
            channels: Number of independent paths of each sample; ``None`` is one without a channel axis.
            dtype: ``torch.float32`` or ``torch.float64``; ``None`` is torch's default dtype. The state is
                carried in float64 in any case.
            device: Where the paths are computed.

        Returns:
            Shape ``(n, T)`` or ``(n, T, channels)``.

        Raises:
            ValueError: If ``times`` do not increase or are negative.
        """
        sampler, steps = self._sampler(times, dtype, device)
        values = sampler.run(noise, channels, increments=False)
        if steps < len(times):  # the first instant is 0
            values = torch.cat((torch.zeros_like(values[:, :1]), values), 1)
        return values

    def increments(
        self,
        noise: NoiseStream,
        times: Tensor,
        *,
        channels: int | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Increments of :meth:`path` between consecutive ``times``, without loss of digits in float32.

        Sums of consecutive increments are the increments of the same path on the coarser grid.

        Args:
            noise: As for :meth:`path`.
            times: As for :meth:`path`; the first must be 0.
            channels: As for :meth:`path`.
            dtype: As for :meth:`path`.
            device: As for :meth:`path`.

        Returns:
            Shape ``(n, T - 1)`` or ``(n, T - 1, channels)``.

        Raises:
            ValueError: If ``times`` do not start at 0 or do not increase.
        """
        sampler, steps = self._sampler(times, dtype, device)
        if steps == len(times):
            raise ValueError(f"`times` must start at 0 for increments; got {float(times[0])}.")
        return sampler.run(noise, channels, increments=True)

    def stream(
        self, noise: NoiseStream, times: Tensor, *, dtype: torch.dtype | None = None
    ) -> Iterator[Tensor]:
        """The values of :meth:`path`, one instant at a time: for use online, with memory ``O(n K)``.

        Args:
            noise: As for :meth:`path`.
            times: As for :meth:`path`.
            dtype: As for :meth:`path`.

        Yields:
            The path at the next instant, shape ``(n,)``.
        """
        sampler, steps = self._sampler(times, dtype, "cpu")
        if steps < len(times):
            yield torch.zeros(len(noise), dtype=sampler.dtype)
        yield from sampler.stream(noise)

    def _sampler(
        self, times: Tensor, dtype: torch.dtype | None, device: torch.device | str
    ) -> tuple[MarkovSampler, int]:
        """The sampler on a grid and its number of steps."""
        check_shapes(times=(times, "T"))
        instants = times.detach().to("cpu", torch.float64)
        if not len(instants) or not bool((instants[0] >= 0) & (instants.diff() > 0).all()):
            raise ValueError("`times` must increase strictly and be at least 0; got instants that do not.")
        edges = instants if instants[0] == 0 else torch.cat((instants.new_zeros(1), instants))
        dtype = torch.get_default_dtype() if dtype is None else dtype
        constant = not callable(self.H)
        weights_at = _constant(self.omega()) if constant else self._weights_at
        stationary, device = self.type == "I", torch.device(device)
        sampler = MarkovSampler(self.rates, edges, weights_at, constant, stationary, dtype, device)
        return sampler, len(edges) - 1

    def _weights_at(self, times: Tensor, H: Hurst | None = None) -> Tensor:
        """Weights at instants ``(T,)``, shape ``(T, K)``."""
        hurst = self.H if H is None else H
        if callable(hurst):
            return self.omega(hurst(times))
        return self.omega(hurst).expand(len(times), -1)

    def _index(self, H: float | Tensor | None) -> Tensor:
        """Hurst indices as a tensor."""
        hurst = self.H if H is None else H
        if callable(hurst):
            raise ValueError("`H` must be given where the index depends on time; got None.")
        return check_hurst(hurst, "H")

    def _rates(self) -> Tensor:
        """The rates that the grid names, checked."""
        if isinstance(self.grid, Tensor):
            check_shapes(grid=(self.grid, "K"))
            rates = self.grid.detach().to("cpu", torch.float64)
            valid = len(rates) == self.K and rates[0] >= 0 and bool((rates.diff() > 0).all())
            if not valid:
                raise ValueError(
                    f"`grid` must hold {self.K} increasing rates of at least 0; got {self.grid.tolist()}."
                )
            return rates
        if self.grid == "paper":
            return paper_rates(self.K)
        if self.grid == "auto":
            return automatic_rates(self.K, self.T, self.dt, self.type)
        raise ValueError(f"`grid` must be 'auto', 'paper' or a tensor of rates; got {self.grid!r}.")


def _constant(omega: Tensor) -> Callable[[Tensor], Tensor]:
    """Weights that do not depend on time."""
    return lambda times: omega.expand(len(times), -1)
