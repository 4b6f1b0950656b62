"""Boundary traces: histories of displacement on an interface, and their compression in time and in modes."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.interpolate import CubicSpline
from torch import Tensor

from sde.shapes import check_shapes

__all__ = ["TimeCompression", "TraceCompression", "TraceErrors", "TraceSpace", "relative_error"]

_FORMAT = "sdeuq trace compression 1"


@dataclass(frozen=True, slots=True)
class TraceSpace:
    """Where and when traces live: the instants, the interface nodes and the components at each of them.

    A trace is an array ``(T, D)`` with ``D = P * c``: degree of freedom ``c * p + j`` is component ``j`` of
    node ``p``.

    Attributes:
        times: Instants, shape ``(T,)`` [time].
        points: Coordinates of the interface nodes, shape ``(P, dim)`` [length].
        components: Names of the components at a node.
        unit: Unit of the values.

    Example:
        >>> space = TraceSpace(torch.linspace(0, 1, 11), torch.zeros(4, 2))
        >>> space.num_times, space.num_dofs
        (11, 8)
    """

    times: Tensor
    points: Tensor
    components: tuple[str, ...] = ("u_x", "u_y")
    unit: str = "1"

    @property
    def num_times(self) -> int:
        """Number of instants ``T``."""
        return len(self.times)

    @property
    def num_dofs(self) -> int:
        """Number of interface degrees of freedom ``D``."""
        return len(self.points) * len(self.components)


@dataclass(frozen=True, slots=True)
class TimeCompression:
    r"""Histories stored at every ``stride``-th instant and given back by a cubic spline.

    .. math:: u(t_j) \approx \sum_s B_{js}\, u(t_{ks}),

    with ``B`` the not-a-knot cubic spline through the stored instants (the last instant is always stored).
    Valid while several stored instants fall into the shortest pulse: six of them leave an error of about 4e-4
    and three leave 2 %.

    Args:
        times: Strictly increasing instants, shape ``(T,)`` with ``T >= 4``.
        stride: Instants per stored instant, at least 1; at least 4 instants must be stored.

    Raises:
        ValueError: If the instants do not increase or too few would be stored.

    Example:
        >>> compression = TimeCompression(torch.linspace(0, 1, 41, dtype=torch.float64), stride=4)
        >>> cubic = compression.times.pow(3).reshape(1, -1, 1)
        >>> compression.encode(cubic).shape
        torch.Size([1, 11, 1])
        >>> bool((compression.decode(compression.encode(cubic)) - cubic).abs().max() < 1e-14)
        True

    References:
        de Boor (2001), A Practical Guide to Splines, chapter IV.
    """

    times: Tensor
    stride: int

    def __post_init__(self) -> None:
        """Check instants and stride."""
        check_shapes(times=(self.times, "T"))
        if not bool((self.times.diff() > 0).all()):
            raise ValueError("`times` must increase strictly. Sort the instants and remove repeated ones.")
        if self.stride < 1:
            raise ValueError(f"`stride` must be at least 1; got {self.stride}.")
        if len(self.kept) < 4:
            raise ValueError(
                f"`stride` must leave at least 4 stored instants; {self.stride} leaves {len(self.kept)} "
                f"of {len(self.times)}. Use a smaller stride."
            )

    @property
    def kept(self) -> Tensor:
        """Indices of the stored instants, shape ``(S,)``."""
        steps = torch.arange(0, len(self.times), self.stride)
        last = torch.tensor([len(self.times) - 1])
        return steps if int(steps[-1]) == int(last) else torch.cat((steps, last))

    def encode(self, traces: Tensor) -> Tensor:
        """Stored values ``(n, S, D)`` of histories ``(n, T, D)``."""
        check_shapes(traces=(traces, f"n {len(self.times)} D"))
        return traces[:, self.kept.to(traces.device)]

    def decode(self, stored: Tensor) -> Tensor:
        """Histories ``(n, T, D)`` through stored values ``(n, S, D)``; linear, hence differentiable."""
        check_shapes(stored=(stored, f"n {len(self.kept)} D"))
        if self.stride == 1:
            return stored
        return self.spline().to(stored) @ stored

    def spline(self) -> Tensor:
        """The matrix ``B`` of the spline, shape ``(T, S)``, float64."""
        times = self.times.double().cpu().numpy()
        knots = times[self.kept.numpy()]
        return torch.from_numpy(CubicSpline(knots, np.eye(len(knots)), axis=0)(times))


@dataclass(frozen=True, slots=True)
class TraceErrors:
    """Relative L2 errors of a compression over a set of histories.

    Attributes:
        time: Of storing every few steps and the spline back.
        modes: Of the projection on the modes, within the stored values.
        total: Of both together.
        median: Median over the histories of the total error of each.
    """

    time: float
    modes: float
    total: float
    median: float


@dataclass(frozen=True, slots=True)
class TraceCompression:
    r"""Time compression followed by proper orthogonal decomposition, with whitened coefficients.

    .. math:: u \approx B\Bigl(\bar u + \sum_{k=1}^{q} \sigma_k \xi_k \phi_k\Bigr),

    where :math:`\phi_k` are the singular vectors of the centred training histories (stored instants), and
    :math:`\sigma_k` the standard deviation of the coefficient of mode ``k``: the :math:`\xi_k` have zero
    mean, unit variance and no correlation over the training set. Waves compress badly: ask :meth:`errors` on
    held-out histories before trusting a truncation.

    Attributes:
        time: Compression in time.
        mean: Mean of the stored values, shape ``(S, D)``.
        modes: Orthonormal modes, shape ``(q, S, D)``.
        scales: Standard deviation of each coefficient, shape ``(q,)``.
        energies: Share of the variance in each mode of the full decomposition, largest first.

    Example:
        >>> times = torch.linspace(0, 1, 9, dtype=torch.float64)
        >>> amplitudes = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)
        >>> traces = amplitudes[:, None, None] * times[None, :, None].expand(3, 9, 2)
        >>> compression = TraceCompression.fit(traces, times, stride=2, num_modes=1)
        >>> [round(abs(float(x)), 12) for x in compression.encode(traces)[:, 0]]
        [1.0, 0.0, 1.0]
        >>> compression.errors(traces).total < 1e-12
        True

    References:
        Sirovich (1987), Turbulence and the dynamics of coherent structures I. doi:10.1090/qam/910462
    """

    time: TimeCompression
    mean: Tensor
    modes: Tensor
    scales: Tensor
    energies: Tensor

    @classmethod
    def fit(
        cls,
        traces: Tensor,
        times: Tensor,
        *,
        stride: int = 4,
        num_modes: int | None = None,
        energy: float = 0.999,
    ) -> "TraceCompression":
        """Decompose training histories.

        Args:
            traces: Histories, shape ``(n, T, D)`` with ``n >= 2``, finite.
            times: Their instants, shape ``(T,)``.
            stride: Instants per stored instant.
            num_modes: Number of modes ``q``, below ``n``; ``None`` takes as many as ``energy`` asks for.
            energy: Share of the variance to keep, in (0, 1]; used where ``num_modes`` is ``None``.

        Raises:
            ValueError: If a shape, a value, the number of modes or the share is out of range.
        """
        size = check_shapes(traces=(traces, "n T D"), times=(times, "T"))
        if size["n"] < 2:
            raise ValueError(f"`traces` must hold at least 2 histories; got {size['n']}.")
        if not bool(traces.isfinite().all()):
            raise ValueError("`traces` must be finite. Remove the failed samples first.")
        if not 0 < energy <= 1:
            raise ValueError(f"`energy` must lie in (0, 1]; got {energy}.")
        time = TimeCompression(times, stride)
        stored = time.encode(traces).double().flatten(1)
        mean = stored.mean(0)
        modes, scales, energies = _decompose(stored - mean, num_modes, energy)
        return cls(
            time, mean.unflatten(0, (-1, size["D"])), modes.unflatten(1, (-1, size["D"])), scales, energies
        )

    @property
    def num_modes(self) -> int:
        """Number of coefficients ``q``."""
        return len(self.scales)

    def encode(self, traces: Tensor) -> Tensor:
        """Whitened coefficients ``(n, q)`` of histories ``(n, T, D)``, in the dtype of the histories."""
        stored = self.time.encode(traces)
        centred = (stored.double() - self.mean.to(stored.device)).flatten(1)
        coefficients = centred @ self.modes.to(stored.device).flatten(1).T
        return (coefficients / self.scales.to(stored.device)).to(traces.dtype)

    def decode(self, coefficients: Tensor) -> Tensor:
        """Histories ``(n, T, D)`` of whitened coefficients ``(n, q)``; linear, hence differentiable."""
        check_shapes(coefficients=(coefficients, f"n {self.num_modes}"))
        return self.time.decode(self._stored(coefficients))

    def errors(self, traces: Tensor) -> TraceErrors:
        """Errors of the round trip of histories ``(n, T, D)``: training ones, or better, held-out ones."""
        exact = traces.double()
        stored = self.time.encode(exact)
        projected = self._stored(self.encode(exact))
        restored = self.time.decode(projected)
        each = (restored - exact).flatten(1).norm(dim=1) / exact.flatten(1).norm(dim=1)
        return TraceErrors(
            time=relative_error(self.time.decode(stored), exact),
            modes=relative_error(projected, stored),
            total=relative_error(restored, exact),
            median=float(each.median()),
        )

    def save(self, path: Path | str) -> None:
        """Write to a file of plain tensors, which :meth:`load` reads without running code."""
        torch.save(self.state(), path)

    @classmethod
    def load(cls, path: Path | str) -> "TraceCompression":
        """Read what :meth:`save` wrote; ``ValueError`` if the file holds something else."""
        return cls.from_state(torch.load(path, weights_only=True, map_location="cpu"))

    def state(self) -> dict[str, object]:
        """The content as a dictionary of tensors and numbers."""
        return {
            "format": _FORMAT,
            "times": self.time.times,
            "stride": self.time.stride,
            "mean": self.mean,
            "modes": self.modes,
            "scales": self.scales,
            "energies": self.energies,
        }

    @classmethod
    def from_state(cls, state: object) -> "TraceCompression":
        """The inverse of :meth:`state`."""
        if not isinstance(state, dict) or state.get("format") != _FORMAT:
            raise ValueError(
                "`state` must come from a saved TraceCompression; this file holds something else."
            )
        time = TimeCompression(state["times"], state["stride"])
        return cls(time, state["mean"], state["modes"], state["scales"], state["energies"])

    def _stored(self, coefficients: Tensor) -> Tensor:
        """Stored values ``(n, S, D)`` of whitened coefficients."""
        scaled = coefficients * self.scales.to(coefficients)
        return torch.tensordot(scaled, self.modes.to(coefficients), dims=1) + self.mean.to(coefficients)


def relative_error(approximation: Tensor, exact: Tensor) -> float:
    """Relative L2 error over all entries, ``|a - e| / |e|``, computed in float64."""
    return float((approximation.double() - exact.double()).norm() / exact.double().norm())


def _decompose(centred: Tensor, num_modes: int | None, energy: float) -> tuple[Tensor, Tensor, Tensor]:
    """Modes ``(q, m)``, standard deviations of their coefficients, and shares of the variance of all modes.

    By snapshots: eigenvectors of the ``n`` by ``n`` Gram matrix, then one QR that makes the modes orthonormal
    to rounding. Ten times quicker than an SVD; modes below 1e-7 of the first count as rank deficiency.
    """
    values, vectors = torch.linalg.eigh(centred @ centred.T)
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    if not float(values[0]) > 0:
        raise ValueError("`traces` must differ from each other; got copies of one history.")
    energies = values / values.sum()
    count = _count_modes(energies, int((energies > energies[0] * 1e-14).sum()), num_modes, energy)
    basis, triangle = torch.linalg.qr(centred.T @ vectors[:, :count])
    modes = (basis * triangle.diagonal().sign()).T.contiguous()
    return modes, (centred @ modes.T).std(0), energies


def _count_modes(energies: Tensor, rank: int, num_modes: int | None, energy: float) -> int:
    """The number of modes asked for, or as many as hold the share ``energy``."""
    if num_modes is None:
        enough = energies.cumsum(0) >= energy - 1e-14
        return min(rank, int(enough.int().argmax()) + 1)
    if not 1 <= num_modes <= rank:
        raise ValueError(
            f"`num_modes` must lie between 1 and the rank {rank} of the histories; got {num_modes}."
        )
    return num_modes
