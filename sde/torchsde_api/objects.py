"""Objects that hold equations: base classes, checks, and the relative entropy of a posterior."""

from abc import ABC
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sde.adapters import Methods, kind
from sde.equation import Calculus, NoiseStructure
from sde.torchsde_api.settings import NOISE_TYPES, SDE_TYPES

__all__ = ["BaseSDE", "Problem", "SDEIto", "SDEStratonovich", "make_problem"]

_SMALLEST_DIFFUSION = 1e-7
_STATE = ("batch", "state")


class BaseSDE(ABC, nn.Module):
    """Base of equations: a module that knows its kind of noise and its calculus.

    Args:
        noise_type: ``"diagonal"``, ``"scalar"``, ``"additive"`` or ``"general"``.
        sde_type: ``"ito"`` or ``"stratonovich"``.

    Raises:
        ValueError: If one of them is something else.
    """

    def __init__(self, noise_type: str, sde_type: str) -> None:
        super().__init__()
        if noise_type not in NOISE_TYPES:
            raise ValueError(f"`noise_type` must be one of {NOISE_TYPES}; got {noise_type!r}.")
        if sde_type not in SDE_TYPES:
            raise ValueError(f"`sde_type` must be one of {SDE_TYPES}; got {sde_type!r}.")
        self.noise_type, self.sde_type = noise_type, sde_type


class SDEIto(BaseSDE):
    """Base of Ito equations.

    Args:
        noise_type: As for :class:`BaseSDE`.
    """

    def __init__(self, noise_type: str) -> None:
        super().__init__(noise_type, SDE_TYPES.ito)


class SDEStratonovich(BaseSDE):
    """Base of Stratonovich equations.

    Args:
        noise_type: As for :class:`BaseSDE`.
    """

    def __init__(self, noise_type: str) -> None:
        super().__init__(noise_type, SDE_TYPES.stratonovich)


@dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """An equation, its initial state and its instants, checked.

    Attributes:
        methods: Drift and diffusion.
        structure: How the noise enters.
        calculus: Ito or Stratonovich.
        initial: Shape ``(n, d)``, with a column for the relative entropy if it is asked for.
        times: Shape ``(T,)``.
        channels: Number of Wiener processes.
    """

    methods: Methods
    structure: NoiseStructure
    calculus: Calculus
    initial: Tensor
    times: Tensor
    channels: int

    @property
    def noise_dim(self) -> int | None:
        """Number of processes where the diffusion is a matrix."""
        matrix = self.structure in (NoiseStructure.ADDITIVE, NoiseStructure.GENERAL)
        return self.channels if matrix else None


def make_problem(
    sde: object,
    y0: Tensor,
    ts: Tensor | Sequence[float],
    noise_shape: Sequence[int] | None,
    *,
    names: Mapping[str, str] | None,
    logqp: bool,
) -> Problem:
    """Check an equation at its initial state.

    Args:
        sde: The object.
        y0: Initial state.
        ts: Instants.
        noise_shape: Shape of the increments, where a Brownian motion is given.
        names: Names of methods.
        logqp: Whether the relative entropy to the prior is integrated too.

    Returns:
        The problem.

    Raises:
        ValueError: If something is missing or sizes disagree.
        AttributeError: If drift, diffusion or prior drift is missing for the relative entropy.
    """
    structure, calculus = kind(sde)
    methods = Methods.of(sde, names)
    if not isinstance(y0, Tensor) or y0.dim() != 2:
        given = tuple(y0.shape) if isinstance(y0, Tensor) else type(y0).__name__
        raise ValueError(f"`y0` must be a tensor of shape (batch, channels); got {given}.")
    if logqp:
        methods = _with_entropy(methods, structure)
        y0 = torch.cat((y0, y0.new_zeros((len(y0), 1))), 1)
    times = _instants(ts, y0)
    if not methods.has_drift:
        raise ValueError("`sde` must have a drift: f, f_and_g or f_and_g_prod.")
    if not methods.has_diffusion:
        raise ValueError("`sde` must have a diffusion: g, f_and_g, g_prod or f_and_g_prod.")
    if noise_shape is not None and len(noise_shape) != 2:
        raise ValueError(f"`bm` must be of shape (batch, noise_channels); got {tuple(noise_shape)}.")
    channels = _check_values(methods, structure, times[0], y0, noise_shape)
    return Problem(methods, structure, calculus, y0, times, channels)


def _instants(ts: Tensor | Sequence[float], y0: Tensor) -> Tensor:
    """The instants as a tensor, checked."""
    if not isinstance(ts, Tensor):
        if not isinstance(ts, tuple | list) or not all(isinstance(t, float | int) for t in ts):
            raise ValueError("`ts` must be a 1-D tensor or a list or tuple of floats.")
        ts = torch.tensor(ts, dtype=y0.dtype, device=y0.device)
    if ts.dim() != 1 or not len(ts):
        raise ValueError(f"`ts` must be of shape (T,) with T of at least 1; got {tuple(ts.shape)}.")
    if ts.requires_grad:
        raise ValueError("`ts` must not require a gradient.")
    if not bool((ts.diff() > 0).all()):
        raise ValueError("`ts` must increase strictly.")
    return ts if ts.is_floating_point() else ts.to(y0.dtype)


class _Sizes:
    """Sizes that must agree: batch, state and noise."""

    def __init__(self, y0: Tensor, noise_shape: Sequence[int] | None) -> None:
        self.known = {"batch": len(y0), "state": y0.shape[1]}
        if noise_shape is not None:
            self.add("bm", noise_shape, ("batch", "noise"))

    def add(self, name: str, shape: Sequence[int], axes: tuple[str, ...]) -> None:
        """Compare the shape of a value."""
        if len(shape) != len(axes):
            raise ValueError(f"`{name}` must be of shape ({', '.join(axes)}); got {tuple(shape)}.")
        for axis, size in zip(axes, shape, strict=True):
            if self.known.setdefault(axis, size) != size:
                raise ValueError(f"`{name}` must have {axis} size {self.known[axis]}; got {tuple(shape)}.")


def _check_values(
    methods: Methods,
    structure: NoiseStructure,
    time: Tensor,
    y0: Tensor,
    noise_shape: Sequence[int] | None,
) -> int:
    """Compare the shapes of what the methods return; the number of processes."""
    sizes = _Sizes(y0, noise_shape)
    if structure is NoiseStructure.DIAGONAL:
        sizes.add("y0", y0.shape, ("batch", "noise"))
    matrix = _STATE if structure is NoiseStructure.DIAGONAL else (*_STATE, "noise")
    with torch.no_grad():
        if methods.f is not None:
            sizes.add("f", methods.f(time, y0).shape, _STATE)
        if methods.g is not None:
            sizes.add("g", methods.g(time, y0).shape, matrix)
        if methods.f_and_g is not None:
            drift, diffusion = methods.f_and_g(time, y0)
            sizes.add("f_and_g", drift.shape, _STATE)
            sizes.add("f_and_g", diffusion.shape, matrix)
        if structure is NoiseStructure.SCALAR:
            sizes.known.setdefault("noise", 1)
        _check_products(methods, time, y0, sizes)
    channels = sizes.known["noise"]
    if structure is NoiseStructure.SCALAR and channels != 1:
        raise ValueError(f"`sde` must have one noise channel where its noise is scalar; got {channels}.")
    return channels


def _check_products(methods: Methods, time: Tensor, y0: Tensor, sizes: _Sizes) -> None:
    """Compare the shapes of products of the diffusion."""
    if "noise" not in sizes.known:
        raise ValueError("`bm`, or a method g or f_and_g, must be given to count the noise channels.")
    vector = torch.ones((len(y0), sizes.known["noise"]), dtype=y0.dtype, device=y0.device)
    if methods.g_prod is not None:
        sizes.add("g_prod", methods.g_prod(time, y0, vector).shape, _STATE)
    if methods.f_and_g_prod is not None:
        for value in methods.f_and_g_prod(time, y0, vector):
            sizes.add("f_and_g_prod", value.shape, _STATE)


def _with_entropy(methods: Methods, structure: NoiseStructure) -> Methods:
    r"""Methods for a state with one more component, :math:`\int \tfrac12 |g^{-1}(f - h)|^2\,\mathrm dt`."""
    f, g, h = methods.f, methods.g, methods.h
    if f is None or g is None or h is None:
        raise AttributeError("`sde` must have drift, diffusion and prior drift for `logqp`: f, g and h.")
    diagonal = structure is NoiseStructure.DIAGONAL

    def diffusion(time: Tensor, state: Tensor) -> Tensor:
        noise = g(time, state[:, :-1])
        return torch.cat((noise, torch.zeros_like(noise[:, :1])), 1)

    def both(time: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        state = state[:, :-1]
        drift, noise = f(time, state), g(time, state)
        gap = drift - h(time, state)
        if diagonal:
            small = noise.detach().abs() <= _SMALLEST_DIFFUSION
            least = torch.where(noise.detach() < 0, -_SMALLEST_DIFFUSION, _SMALLEST_DIFFUSION)
            ratio = gap / torch.where(small, least, noise)
        else:
            ratio = (torch.linalg.pinv(noise) @ gap.unsqueeze(-1)).squeeze(-1)
        rate = 0.5 * ratio.square().sum(1, keepdim=True)
        return torch.cat((drift, rate), 1), torch.cat((noise, torch.zeros_like(noise[:, :1])), 1)

    return Methods(f=lambda time, state: both(time, state)[0], g=diffusion, f_and_g=both)
