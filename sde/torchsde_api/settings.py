"""Names that select methods and kinds of noise."""

from enum import EnumMeta, StrEnum

__all__ = ["LEVY_AREA_APPROXIMATIONS", "METHODS", "METHOD_OPTIONS", "NOISE_TYPES", "SDE_TYPES"]


class _Names(EnumMeta):
    """Enumerations that contain the strings that their members are, and print as a list of them."""

    def __contains__(cls, item: object) -> bool:
        return item in cls.all()

    def __str__(cls) -> str:
        return str(cls.all())

    def all(cls) -> list[str]:
        """All names, sorted."""
        return sorted(str(getattr(cls, name)) for name in cls.__members__)


class METHODS(StrEnum, metaclass=_Names):
    """Numerical methods."""

    euler = "euler"
    milstein = "milstein"
    srk = "srk"
    midpoint = "midpoint"
    heun = "heun"
    euler_heun = "euler_heun"
    log_ode_midpoint = "log_ode"
    reversible_heun = "reversible_heun"
    adjoint_reversible_heun = "adjoint_reversible_heun"


class NOISE_TYPES(StrEnum, metaclass=_Names):
    """How the noise enters."""

    general = "general"
    diagonal = "diagonal"
    scalar = "scalar"
    additive = "additive"


class SDE_TYPES(StrEnum, metaclass=_Names):
    """The calculus."""

    ito = "ito"
    stratonovich = "stratonovich"


class LEVY_AREA_APPROXIMATIONS(StrEnum, metaclass=_Names):
    """What a Brownian motion tells beside its increments."""

    none = "none"
    space_time = "space-time"
    davie = "davie"
    foster = "foster"


class METHOD_OPTIONS(StrEnum, metaclass=_Names):
    """Options of methods."""

    grad_free = "grad_free"
