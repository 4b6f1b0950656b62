"""Random inputs of a model: named distributions with units, independent or joined by a Gaussian copula."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from scipy.optimize import brentq
from torch import Tensor
from torch.distributions import Distribution

from sde.shapes import check_shapes

__all__ = ["Input", "Inputs", "QuantileFunction", "nataf_correlation"]


@runtime_checkable
class QuantileFunction(Protocol):
    """A frozen distribution of ``scipy.stats``, such as ``scipy.stats.gamma(2.0, scale=3.0)``."""

    def ppf(self, q: np.ndarray) -> np.ndarray:
        """Quantiles at probabilities ``q``."""
        ...


@dataclass(frozen=True, slots=True)
class Input:
    """One random input: a name, a distribution, a unit.

    Attributes:
        name: Name, for tables and stores.
        distribution: A scalar distribution of ``torch.distributions`` that has ``icdf``, or a frozen one of
            ``scipy.stats``. Give torch float64 parameters where they must be exact: its default is float32.
        unit: Unit of the values; empty for pure numbers.

    Raises:
        TypeError: If the distribution has no inverse CDF.
        ValueError: If the name is empty or the distribution is not scalar.

    Example:
        >>> from torch.distributions import Normal
        >>> load = Input("load", Normal(torch.tensor(5.0), torch.tensor(2.0)), "kN")
        >>> load.quantile(torch.tensor([0.5], dtype=torch.float64))
        tensor([5.], dtype=torch.float64)
    """

    name: str
    distribution: Distribution | QuantileFunction
    unit: str = ""

    def __post_init__(self) -> None:
        """Check the fields, with one evaluation of the quantile."""
        if not self.name:
            raise ValueError("`name` must not be empty; got an empty string.")
        law = self.distribution
        if not isinstance(law, Distribution | QuantileFunction):
            raise TypeError(
                "`distribution` must be a torch distribution or a frozen one of scipy.stats; got "
                f"{type(law).__name__}."
            )
        if isinstance(law, Distribution) and (law.batch_shape or law.event_shape):
            raise ValueError(
                f"`distribution` of '{self.name}' must be scalar; got batch shape {tuple(law.batch_shape)} "
                f"and event shape {tuple(law.event_shape)}. Give one Input per component."
            )
        try:
            median = self.quantile(torch.full((1,), 0.5, dtype=torch.float64))
        except NotImplementedError:
            raise TypeError(
                f"`distribution` must have an inverse CDF; got torch's {type(law).__name__}, which has none. "
                "Use the distribution of scipy.stats instead."
            ) from None
        if not bool(median.isfinite().all()):
            raise ValueError(
                f"`distribution` of '{self.name}' must have a finite median; got {median.item()}."
            )

    def quantile(self, probabilities: Tensor) -> Tensor:
        """Quantiles, in ``unit``, at probabilities in (0, 1); same shape, float64."""
        if isinstance(self.distribution, Distribution):
            return self.distribution.icdf(probabilities.double()).double()
        return torch.as_tensor(np.asarray(self.distribution.ppf(probabilities.numpy()), dtype=np.float64))

    @property
    def mean(self) -> float:
        """Mean, in ``unit``."""
        law = self.distribution
        return float(law.mean if isinstance(law, Distribution) else getattr(law, "mean")())  # noqa: B009

    @property
    def std(self) -> float:
        """Standard deviation, in ``unit``."""
        law = self.distribution
        return float(law.stddev if isinstance(law, Distribution) else getattr(law, "std")())  # noqa: B009

    @property
    def law(self) -> str:
        """The distribution in words, such as ``Normal(loc=5, scale=2)``."""
        law = self.distribution
        if isinstance(law, Distribution):
            names = [name for name in law.arg_constraints if name in law.__dict__ or hasattr(law, name)]
            values = ((name, getattr(law, name)) for name in names)
            return (
                f"{type(law).__name__}({', '.join(f'{name}={float(value):.6g}' for name, value in values)})"
            )
        family = getattr(getattr(law, "dist", None), "name", type(law).__name__)
        given = [f"{value:.6g}" for value in getattr(law, "args", ())]
        given += [f"{name}={value:.6g}" for name, value in getattr(law, "kwds", {}).items()]
        return f"{family}({', '.join(given)})"


class Inputs:
    r"""The joint law of the inputs of a model, as a map from the unit cube.

    Independent: :math:`x_j = F_j^{-1}(u_j)`. Correlated, by a Gaussian copula (the NORTA or Nataf
    construction):

    .. math:: z = L\,\Phi^{-1}(u), \qquad x_j = F_j^{-1}(\Phi(z_j)), \qquad L L^T = R.

    ``correlation`` is :math:`R`, the correlation matrix **of the underlying normals** ``z``. The Pearson
    correlation of the ``x`` is somewhat smaller in absolute value unless they are normal;
    :func:`nataf_correlation` finds the ``R`` that gives a wanted one.

    Args:
        inputs: The inputs, in the order of the columns of the model's input.
        correlation: Correlation matrix of the underlying normals, shape ``(d, d)``; independent where not
            given.

    Raises:
        TypeError: If an entry is not an :class:`Input`.
        ValueError: If there is none, two have one name, or the correlation is not a positive definite
            correlation matrix of the right size.

    Example:
        >>> from torch.distributions import Normal
        >>> inputs = Inputs([Input("load", Normal(5.0, 2.0), "kN"), Input("width", Normal(1.0, 0.1), "m")])
        >>> inputs.transform(torch.full((1, 2), 0.5))
        tensor([[5., 1.]], dtype=torch.float64)

    References:
        Liu & Der Kiureghian (1986). doi:10.1016/0266-8920(86)90033-0
    """

    def __init__(self, inputs: Sequence[Input], correlation: Tensor | None = None) -> None:
        """Check and factor the correlation; see the class."""
        self.inputs = tuple(inputs)
        for entry in self.inputs:
            if not isinstance(entry, Input):
                raise TypeError(f"`inputs` must hold Input objects; got {type(entry).__name__}.")
        if not self.inputs:
            raise ValueError("`inputs` must hold at least one input; got none.")
        repeated = sorted({name for name in self.names if self.names.count(name) > 1})
        if repeated:
            raise ValueError(f"`inputs` must have different names; got {', '.join(repeated)} more than once.")
        self.correlation = None if correlation is None else correlation.detach().double()
        self._factor = None if self.correlation is None else _factor(self.correlation, len(self.inputs))

    @property
    def dimension(self) -> int:
        """Number of inputs ``d``."""
        return len(self.inputs)

    @property
    def names(self) -> tuple[str, ...]:
        """Names, in order."""
        return tuple(entry.name for entry in self.inputs)

    @property
    def units(self) -> tuple[str, ...]:
        """Units, in order."""
        return tuple(entry.unit for entry in self.inputs)

    def transform(self, points: Tensor) -> Tensor:
        """Map points of the unit cube to physical values.

        Args:
            points: Shape ``(n, d)``, in the open interval (0, 1).

        Returns:
            Values in the units of the inputs, shape ``(n, d)``, float64.

        Raises:
            ValueError: If the shape is wrong or a point is not inside the cube.
            TypeError: If the points are not real floating numbers.
        """
        if not points.is_floating_point():
            raise TypeError(f"`points` must be floating-point numbers; got {points.dtype}.")
        check_shapes(points=(points, f"n {self.dimension}"))
        if not bool(((points > 0) & (points < 1)).all()):
            bad = points[~((points > 0) & (points < 1))][0].item()
            raise ValueError(f"`points` must lie in the open interval (0, 1); got {bad}.")
        points = points.double()
        if self._factor is not None:
            normals = torch.special.ndtri(points) @ self._factor.mT
            # Beyond 8.2 standard deviations the CDF rounds to 0 or 1.
            points = torch.special.ndtr(normals).clamp(2.0**-53, 1 - 2.0**-53)
        columns = [entry.quantile(points[:, j]) for j, entry in enumerate(self.inputs)]
        return torch.stack(columns, dim=-1)

    def table(self) -> tuple[list[str], list[list[object]]]:
        """Columns and rows of a summary, to be given to :meth:`uq.report.Report.table`."""
        rows: list[list[object]] = [
            [entry.name, entry.unit or "-", entry.law, entry.mean, entry.std] for entry in self.inputs
        ]
        return ["input", "unit", "distribution", "mean", "standard deviation"], rows

    def __repr__(self) -> str:
        """Names, laws and units; equal for inputs that are the same law."""
        body = ", ".join(f"{entry.name} ~ {entry.law} [{entry.unit}]" for entry in self.inputs)
        joint = "" if self.correlation is None else f", correlation={self.correlation.tolist()}"
        return f"Inputs({body}{joint})"


def nataf_correlation(inputs: Sequence[Input], pearson: Tensor) -> Tensor:
    r"""Correlation of the underlying normals that gives the inputs a wanted Pearson correlation.

    Solves, pair by pair, :math:`\rho_{ij} = \mathrm{E}[g_i(z_i)\, g_j(z_j)]` with
    :math:`g = (F^{-1} \circ \Phi - \mu) / \sigma`, by Gauss--Hermite quadrature. Valid for marginals with
    finite variance; about four digits for smooth ones, two for bounded ones such as the uniform.

    Args:
        inputs: The inputs.
        pearson: Wanted correlation matrix of the inputs, shape ``(d, d)``.

    Returns:
        Correlation of the normals, shape ``(d, d)``, float64, to be given to :class:`Inputs`.

    Raises:
        ValueError: If the matrix is not a correlation matrix, or a pair of marginals cannot reach its entry.

    Example:
        >>> from torch.distributions import Normal
        >>> a, b = Input("a", Normal(0.0, 1.0)), Input("b", Normal(2.0, 3.0))
        >>> r = nataf_correlation([a, b], torch.tensor([[1.0, 0.6], [0.6, 1.0]]))
        >>> round(r[0, 1].item(), 4)
        0.6

    References:
        Liu & Der Kiureghian (1986), equation 12. doi:10.1016/0266-8920(86)90033-0
    """
    wanted = pearson.detach().double()
    _factor(wanted, len(inputs), name="pearson")
    nodes, weights = np.polynomial.hermite_e.hermegauss(64)
    weights = weights / weights.sum()
    result = torch.eye(len(inputs), dtype=torch.float64)
    for i, j in combinations(range(len(inputs)), 2):
        target = wanted[i, j].item()
        value = _solve_pair(inputs[i], inputs[j], target, nodes, weights)
        result[i, j] = result[j, i] = value
    return result


def _solve_pair(a: Input, b: Input, target: float, nodes: np.ndarray, weights: np.ndarray) -> float:
    """Normal correlation that gives two inputs the Pearson correlation ``target``."""
    if target == 0:
        return 0.0

    def standardised(entry: Input, normals: np.ndarray) -> np.ndarray:
        uniforms = torch.special.ndtr(torch.from_numpy(normals)).clamp(2.0**-53, 1 - 2.0**-53)
        values = entry.quantile(uniforms.reshape(-1)).numpy().reshape(normals.shape)
        return (values - entry.mean) / entry.std

    first = standardised(a, nodes) * weights

    def gap(rho: float) -> float:
        other = rho * nodes[:, None] + np.sqrt(1 - rho * rho) * nodes[None, :]
        return float(first @ standardised(b, other) @ weights) - target

    low, high = gap(-1.0), gap(1.0)
    if low * high > 0:
        raise ValueError(
            f"`pearson` must be reachable by the marginals; got {target} for '{a.name}' and '{b.name}', "
            f"which can reach {low + target:.4f} to {high + target:.4f}."
        )
    return float(np.asarray(brentq(gap, -1.0, 1.0, xtol=1e-10)))


def _factor(matrix: Tensor, size: int, name: str = "correlation") -> Tensor:
    """Cholesky factor of a correlation matrix, or a sentence that says what is wrong with it."""
    if tuple(matrix.shape) != (size, size):
        raise ValueError(f"`{name}` must have shape ({size}, {size}); got {tuple(matrix.shape)}.")
    if not bool(matrix.isfinite().all()):
        raise ValueError(f"`{name}` must be finite; got NaN or infinity.")
    if not torch.allclose(matrix.diagonal(), torch.ones(size, dtype=matrix.dtype), rtol=0, atol=1e-6):
        raise ValueError(f"`{name}` must have ones on its diagonal; got {matrix.diagonal().tolist()}.")
    if not torch.allclose(matrix, matrix.mT, rtol=0, atol=1e-6):
        raise ValueError(f"`{name}` must be symmetric; got asymmetric entries.")
    factor, info = torch.linalg.cholesky_ex(matrix)
    if int(info):
        smallest = torch.linalg.eigvalsh(matrix)[0].item()
        raise ValueError(f"`{name}` must be positive definite; got a smallest eigenvalue of {smallest:.3g}.")
    return factor
