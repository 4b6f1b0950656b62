"""Equations from objects with methods ``f`` and ``g``, the protocol of torchsde."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sde.equation import SDE, Calculus, NoiseStructure

__all__ = ["Methods", "ObjectSDE", "from_object"]

_Pair = tuple[Tensor, Tensor]
_PRODUCT = "diffusion_prod"
_DEFAULTS = {
    "drift": "f",
    "diffusion": "g",
    "prior_drift": "h",
    _PRODUCT: "g_prod",
    "drift_and_diffusion": "f_and_g",
    "drift_and_diffusion_prod": "f_and_g_prod",
}


@dataclass(frozen=True, slots=True)
class Methods:
    """The methods of an object that holds an equation; those that it does not have are ``None``.

    Attributes:
        f: Drift.
        g: Diffusion: ``(n, d)`` for diagonal noise, ``(n, d, m)`` otherwise.
        h: Drift of a prior.
        g_prod: Diffusion times a vector ``(n, m)``.
        f_and_g: Both at once.
        f_and_g_prod: Both at once.
    """

    f: Callable[[Tensor, Tensor], Tensor] | None = None
    g: Callable[[Tensor, Tensor], Tensor] | None = None
    h: Callable[[Tensor, Tensor], Tensor] | None = None
    g_prod: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
    f_and_g: Callable[[Tensor, Tensor], _Pair] | None = None
    f_and_g_prod: Callable[[Tensor, Tensor, Tensor], _Pair] | None = None

    @classmethod
    def of(cls, source: object, names: Mapping[str, str] | None = None) -> "Methods":
        """The methods of an object under their usual or given names.

        A joint method under its usual name gives way where its drift or diffusion was renamed.

        Args:
            source: The object.
            names: Names of methods by the keys ``drift``, ``diffusion``, ``prior_drift``, ``diffusion_prod``,
                ``drift_and_diffusion`` and ``drift_and_diffusion_prod``; other keys are ignored.
        """
        names = {} if names is None else names
        found = {usual: getattr(source, names.get(key, usual), None) for key, usual in _DEFAULTS.items()}
        drift, diffusion = "drift" in names, "diffusion" in names
        superseded = {
            _PRODUCT: diffusion,
            "drift_and_diffusion": drift or diffusion,
            "drift_and_diffusion_prod": drift or diffusion or _PRODUCT in names,
        }
        for key, stale in superseded.items():
            if stale and key not in names:
                found[_DEFAULTS[key]] = None
        return cls(**found)

    @property
    def has_drift(self) -> bool:
        """Whether there is a drift."""
        return not self.f is self.f_and_g is self.f_and_g_prod is None

    @property
    def has_diffusion(self) -> bool:
        """Whether there is a diffusion."""
        return not self.g is self.f_and_g is self.g_prod is self.f_and_g_prod is None


def from_object(
    source: object, state: Tensor | None = None, *, names: Mapping[str, str] | None = None
) -> SDE:
    """An equation from an object with methods ``f`` and ``g``, for :func:`sde.solve`.

    Args:
        source: An object with ``noise_type`` (``"diagonal"``, ``"scalar"``, ``"additive"`` or
            ``"general"``), ``sde_type`` (``"ito"`` or ``"stratonovich"``) and methods of time, a 0-d tensor,
            and state ``(n, d)``: ``f`` and ``g``, or ``f_and_g``, ``g_prod(t, y, v)``,
            ``f_and_g_prod(t, y, v)``. The diffusion is ``(n, d)`` for diagonal noise and ``(n, d, m)``
            otherwise. It may be a module.
        state: A state at which the diffusion is evaluated, at time 0, to count the processes; needed for
            additive and general noise.
        names: Names of methods that are not the usual ones, as in :class:`Methods`.

    Returns:
        The equation; its parameters are those of the object if it is a module.

    Raises:
        ValueError: If an attribute is missing or unknown, a method is missing, or the number of processes
            cannot be found.

    Example:
        >>> class Decay:
        ...     noise_type, sde_type = "diagonal", "ito"
        ...
        ...     def f(self, t, y):
        ...         return -y
        ...
        ...     def g(self, t, y):
        ...         return 0.1 * torch.ones_like(y)
        >>> from_object(Decay()).calculus
        <Calculus.ITO: 'Ito'>
    """
    methods = Methods.of(source, names)
    if not methods.has_drift or not methods.has_diffusion:
        raise ValueError(
            f"`source` must have methods for drift and diffusion, such as f and g; got {source!r}."
        )
    structure, calculus = kind(source)
    noise_dim = None
    if structure in (NoiseStructure.ADDITIVE, NoiseStructure.GENERAL):
        if state is None:
            raise ValueError(f"`state` must be given for {structure.value} noise, to count the processes.")
        noise_dim = _count(methods, state)
    parameters = tuple(source.parameters()) if isinstance(source, nn.Module) else ()
    return ObjectSDE.of(methods, structure, calculus, noise_dim, parameters=parameters)


def kind(source: object) -> tuple[NoiseStructure, Calculus]:
    """The noise structure and the calculus that an object names."""
    allowed = {
        "noise_type": {s.value: s for s in (NoiseStructure.DIAGONAL, NoiseStructure.SCALAR)}
        | {s.value: s for s in (NoiseStructure.ADDITIVE, NoiseStructure.GENERAL)},
        "sde_type": {"ito": Calculus.ITO, "stratonovich": Calculus.STRATONOVICH},
    }
    for name, values in allowed.items():
        if not hasattr(source, name):
            raise ValueError(f"`sde` must have the attribute {name}, one of {[*values]}.")
        if getattr(source, name) not in values:
            raise ValueError(f"`{name}` must be one of {[*values]}; got {getattr(source, name)!r}.")
    noise, calculus = (values[str(getattr(source, name))] for name, values in allowed.items())
    return noise, calculus  # type: ignore[return-value]


def _count(methods: Methods, state: Tensor) -> int:
    """Number of processes, from the shape of the diffusion."""
    time = state.new_zeros(())
    if methods.g is not None:
        shape = methods.g(time, state).shape
    elif methods.f_and_g is not None:
        shape = methods.f_and_g(time, state)[1].shape
    else:
        raise ValueError("`source` must have a method g or f_and_g, to count the processes.")
    if len(shape) != 3:
        raise ValueError(f"`g` must return shape (n, d, m) for this noise; got {tuple(shape)}.")
    return shape[-1]


@dataclass(frozen=True, slots=True, eq=False)
class _Deferred:
    """A diffusion that is only ever multiplied."""

    product: Callable[[Tensor], Tensor]


class _Joint:
    """A method for drift and diffusion at once: asked for both at one state, it is called once.

    What one of the two leaves for the other is handed out once, so that nothing is kept that may go stale.
    """

    def __init__(self, method: Callable[[Tensor, Tensor], _Pair]) -> None:
        self._method = method
        self._left: tuple[int, Tensor, Tensor, bool, Tensor] | None = None

    def part(self, index: int, time: Tensor, state: Tensor) -> Tensor:
        """The drift (0) or the diffusion (1)."""
        left, self._left = self._left, None
        grad = torch.is_grad_enabled()
        same = left is not None and left[0] == index and left[2] is state and left[3] is grad
        if left is not None and same and (left[1] is time or torch.equal(left[1], time)):
            return left[4]
        values = self._method(time, state)
        self._left = (1 - index, time, state, grad, values[1 - index])
        return values[index]


@dataclass(frozen=True, slots=True)
class ObjectSDE(SDE):
    """An equation whose diffusion may be known by its products only; made by :meth:`of`."""

    @classmethod
    def of(
        cls,
        methods: Methods,
        structure: NoiseStructure,
        calculus: Calculus,
        noise_dim: int | None,
        *,
        parameters: tuple[Tensor, ...] = (),
        products: bool = False,
    ) -> "ObjectSDE":
        """The equation of some methods.

        Args:
            methods: Those of the object.
            structure: How the noise enters.
            calculus: Ito or Stratonovich.
            noise_dim: Number of processes where the diffusion is a matrix.
            parameters: What gradients are taken with respect to.
            products: Whether all that is asked of the diffusion is its product with increments.
        """
        scalar = structure is NoiseStructure.SCALAR
        joint = None if methods.f_and_g is None else _Joint(methods.f_and_g)
        diffusion = _diffusion(methods, joint, noise_dim, scalar=scalar, products=products)
        return cls(
            _drift(methods, joint, noise_dim, scalar=scalar),
            diffusion,  # type: ignore[arg-type]
            structure,
            calculus,
            noise_dim,
            parameters,
        )

    def product(self, diffusion: Tensor, increment: Tensor) -> Tensor:
        """Diffusion times an increment or area of the Wiener processes: ``(n, d)``."""
        if isinstance(diffusion, _Deferred):
            return diffusion.product(increment)
        if self.noise_dim is None:
            return diffusion * increment
        return torch.bmm(diffusion, increment.unsqueeze(-1)).squeeze(-1)

    def checked(self) -> SDE:
        """The equation itself: what the methods return is checked where the object is taken in."""
        return self


def _drift(
    methods: Methods, joint: _Joint | None, noise_dim: int | None, *, scalar: bool
) -> Callable[[Tensor, Tensor], Tensor]:
    """The drift, by the cheapest method that there is."""
    if joint is not None:
        return lambda time, state: joint.part(0, time, state)
    if methods.f is not None:
        return methods.f
    both = methods.f_and_g_prod
    assert both is not None  # checked when the object was taken in

    def drift(time: Tensor, state: Tensor) -> Tensor:
        return both(time, state, _vector(state, noise_dim, scalar=scalar, value=0.0))[0]

    return drift


def _diffusion(
    methods: Methods, joint: _Joint | None, noise_dim: int | None, *, scalar: bool, products: bool
) -> Callable[[Tensor, Tensor], Tensor | _Deferred]:
    """The diffusion, or what multiplies as it where products are all that is asked of it."""
    matrix = methods.g if joint is None else lambda time, state: joint.part(1, time, state)
    times, both = methods.g_prod, methods.f_and_g_prod
    if times is None and both is not None and matrix is None:
        times = lambda time, state, vector: both(time, state, vector)[1]  # noqa: E731
    if times is None or (matrix is not None and not products):
        assert matrix is not None  # checked when the object was taken in
        return (lambda time, state: matrix(time, state).squeeze(-1)) if scalar else matrix

    def deferred(time: Tensor, state: Tensor) -> _Deferred:
        return _Deferred(lambda vector: times(time, state, vector))

    def columns(time: Tensor, state: Tensor) -> Tensor:
        ones = _vector(state, noise_dim, scalar=scalar, value=1.0)
        if noise_dim is None:
            return times(time, state, ones)
        unit = torch.eye(noise_dim, dtype=state.dtype, device=state.device)
        return torch.stack([times(time, state, ones * unit[k]) for k in range(noise_dim)], -1)

    return deferred if products else columns


def _vector(state: Tensor, noise_dim: int | None, *, scalar: bool, value: float) -> Tensor:
    """A constant of the shape of an increment."""
    channels = noise_dim if noise_dim is not None else 1 if scalar else state.shape[-1]
    return torch.full((len(state), channels), value, dtype=state.dtype, device=state.device)
