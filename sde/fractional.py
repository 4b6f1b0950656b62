r"""Equations driven by fractional Brownian motion.

.. math:: \mathrm{d}X_t = f(t, X_t)\,\mathrm{d}t + g(t, X_t)\,\mathrm{d}B^H_t

**Reading of the integral.** For :math:`H > 1/2` it is Young's pathwise integral: Ito and Stratonovich sums
have the same limit, and Euler's scheme converges with order ``2 H - 1``. For :math:`H \le 1/2` Ito sums
diverge; the equation is read in the sense of Stratonovich (the limit of smooth approximations, the
Doss--Sussmann solution where the noise commutes), and schemes must be symmetric, such as :class:`sde.Heun`.
Additive noise needs no reading.

**Noise.** Exact increments of any Hurst index on equal steps, or those of a Markov approximation
(:class:`sde.noise.MarkovFBM`) on any steps; the latter also as an ordinary SDE with an augmented state
(:func:`augmented`), for filters and for changes of measure.

References:
    Young (1936), An inequality of the Hoelder type, connected with Stieltjes integration.
    doi:10.1007/BF02401743
    Neuenkirch & Nourdin (2007), Exact rate of convergence of some approximation schemes associated to SDEs
    driven by a fractional Brownian motion, theorems 1 and 2. doi:10.1007/s10959-007-0083-0
    Doss (1977), Liens entre equations differentielles stochastiques et ordinaires. Annales de l'IHP B 13.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sde.equation import SDE, Calculus, NoiseStructure
from sde.grid import make_grid
from sde.noise.circulant import fgn
from sde.noise.fractional import check_hurst
from sde.noise.increments import GivenIncrements
from sde.noise.markov_fbm import MarkovFBM
from sde.noise.markov_sampler import stationary_slopes
from sde.noise.stream import NoiseStream
from sde.shapes import check_shapes
from sde.solve import solve
from sde.solvers.interface import Solver

__all__ = ["augmented", "augmented_state", "fractional_increments", "solve_fractional"]

_ROUGHEST = 1 / 3  # below, third-order terms of the increments do not vanish path by path
_COMMUTING = (NoiseStructure.DIAGONAL, NoiseStructure.SCALAR, NoiseStructure.COMMUTATIVE)


def fractional_increments(
    law: float | Tensor | MarkovFBM,
    noise: NoiseStream,
    times: Tensor,
    channels: int,
    *,
    substeps: int = 1,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> GivenIncrements:
    """The increments of fractional Brownian motions over the steps of a solve.

    Wrapped in :class:`sde.noise.CoarseIncrements` they drive a coarser solve by the same path, which couples
    the levels of a multilevel estimator.

    Args:
        law: A Hurst index, for exact increments over equal steps; or a Markov approximation, for any steps.
        noise: Source of the normals; the noise starts at ``times[0]``.
        times: Instants of the solve, shape ``(T,)``.
        channels: Number of independent fractional Brownian motions, at least 1.
        substeps: Equal steps between consecutive instants.
        dtype: ``torch.float32`` or ``torch.float64``; ``None`` is torch's default dtype.
        device: Where they are computed.

    Returns:
        Increments for :func:`sde.solve`, of shape ``((T - 1) * substeps, n, channels)``.

    Raises:
        ValueError: If exact increments are asked for on unequal steps, or an argument is out of range.

    Example:
        >>> noise = NoiseStream(seed=0, start=0, stop=8)
        >>> fractional_increments(0.7, noise, torch.linspace(0, 1, 11), channels=2).shape
        (10, 8, 2)
    """
    starts, sizes = (part.detach().cpu() for part in make_grid(times, substeps).steps())
    if isinstance(law, MarkovFBM):
        edges = torch.cat((starts, starts[-1:] + sizes[-1:])) - starts[0]
        wiener = law.increments(noise, edges, channels=channels, dtype=dtype, device=device)
        return GivenIncrements(wiener)
    if not torch.allclose(sizes, sizes[:1], rtol=1e-5, atol=0):
        raise ValueError(
            f"`times` must have equal steps for exact fractional noise; got {float(sizes.min()):g} to "
            f"{float(sizes.max()):g}. Use a MarkovFBM."
        )
    dt = float(sizes.mean())
    return GivenIncrements(fgn(law, noise, len(sizes), dt=dt, channels=channels, dtype=dtype, device=device))


def solve_fractional(
    sde: SDE,
    initial: Tensor,
    times: Tensor,
    noise: NoiseStream,
    law: float | Tensor | MarkovFBM,
    *,
    solver: Solver,
    substeps: int = 1,
) -> Tensor:
    """Integrate an equation driven by fractional Brownian motion.

    Checks that the reading of the integral makes sense, draws the increments and calls :func:`sde.solve`.

    Args:
        sde: Drift and diffusion. With noise that is not additive: of either calculus for ``H > 1/2`` and
            exact noise, else of Stratonovich's, and commuting with ``H > 1/3``.
        initial: State at ``times[0]``, shape ``(n, *shape)``.
        times: Strictly increasing instants, shape ``(T,)``.
        noise: ``n`` samples.
        law: A Hurst index, for exact noise on equal steps; or a Markov approximation.
        solver: One-step method that needs increments alone, such as :class:`sde.EulerMaruyama` for
            ``H > 1/2`` and :class:`sde.Heun` for any reading.
        substeps: Equal steps taken between consecutive ``times``.

    Returns:
        States at ``times``, shape ``(n, T, *shape)``.

    Raises:
        ValueError: If the reading makes no sense, or as :func:`sde.solve`.

    Example:
        >>> from sde.solvers import Heun
        >>> sde = SDE(lambda t, x: -x, lambda t, x: x, calculus=Calculus.STRATONOVICH)
        >>> noise = NoiseStream(seed=0, start=0, stop=8)
        >>> solve_fractional(sde, torch.ones(8, 1), torch.linspace(0, 1, 65), noise, 0.4, solver=Heun()).shape
        torch.Size([8, 65, 1])

    References:
        Neuenkirch & Nourdin (2007). doi:10.1007/s10959-007-0083-0
    """
    sde = _readable(sde, law, solver)
    increments = fractional_increments(
        law,
        noise,
        times,
        sde.channels(tuple(initial.shape[1:])),
        substeps=substeps,
        dtype=initial.dtype,
        device=initial.device,
    )
    return solve(sde, initial, times, increments, solver=solver, substeps=substeps)


def augmented(sde: SDE, model: MarkovFBM, dim: int) -> SDE:
    r"""The equation driven by a Markov approximation, as an ordinary SDE with an augmented state.

    .. math::

        \mathrm{d}X &= f\,\mathrm{d}t + g \sum_k \omega_k\,\mathrm{d}Z_k, \\
        \mathrm{d}Z_k &= -(\gamma_k Z_k + D_k)\,\mathrm{d}t + \mathrm{d}W, \qquad \mathrm{d}D_k = 0,

    for each of the ``m`` channels: one Wiener process moves ``X`` and all its ``Z_k``. The state is ``X``,
    then ``Z`` of all channels, then (type I) ``D``. An explicit solver needs steps below ``2 / max(rates)``:
    give the model rates to match. Where only paths are wanted, :func:`solve_fractional` has no such limit.

    Args:
        sde: Equation of states ``(n, dim)``; Stratonovich, or with additive noise.
        model: The approximation, with an index that does not depend on time.
        dim: Number of components of ``X``.

    Returns:
        Equation of states ``(n, dim + m K)`` (type II) or ``(n, dim + 2 m K)`` (type I), with noise of
        dimension ``m``, in the calculus of ``sde``.

    Raises:
        ValueError: If the noise of ``sde`` is not additive and its calculus is Ito's, or it has none.

    Example:
        >>> model = MarkovFBM(0.3, K=3, grid="paper")
        >>> noise = NoiseStream(seed=0, start=0, stop=8)
        >>> state = augmented_state(model, torch.zeros(8, 1), noise, channels=1)
        >>> ou = SDE(lambda t, x: -x, lambda t, x: 0 * x + 1, NoiseStructure.ADDITIVE)
        >>> solve(augmented(ou, model, dim=1), state, torch.linspace(0, 1, 101), noise)[..., :1].shape
        torch.Size([8, 101, 1])

    References:
        Daems, Opper, Crevecoeur & Birdal (2024), section 4. arXiv:2310.12975
    """
    additive = sde.structure is NoiseStructure.ADDITIVE
    _check_stratonovich(sde)
    channels = sde.channels((dim,))
    system = _Augmented(sde, model.omega(), model.rates, dim, channels, model.type == "I")
    structure = NoiseStructure.ADDITIVE if additive else NoiseStructure.GENERAL
    return SDE(system.drift, system.diffusion, structure, sde.calculus, channels, sde.parameters)


def augmented_state(model: MarkovFBM, initial: Tensor, noise: NoiseStream, channels: int) -> Tensor:
    """The state of :func:`augmented` at the start: ``Z = 0``, and slopes ``D`` from their stationary law.

    Args:
        model: The approximation.
        initial: State of ``X``, shape ``(n, d)``.
        noise: ``n`` samples; the slopes use the purpose of initial states.
        channels: Number of fractional Brownian motions.

    Returns:
        Shape ``(n, d + m K)`` or ``(n, d + 2 m K)``.

    Raises:
        ValueError: If ``initial`` and ``noise`` hold different numbers of samples.
    """
    check_shapes(initial=(initial, f"{len(noise)} d"))
    size = len(model.rates) * channels
    state = torch.cat((initial, initial.new_zeros(len(initial), size)), 1)
    if model.type == "II":
        return state
    slopes = stationary_slopes(model.rates, noise, channels, initial.device)
    return torch.cat((state, slopes.flatten(1).to(initial)), 1)


@dataclass(frozen=True, slots=True, eq=False)
class _Augmented:
    """Drift and diffusion of the augmented equation."""

    sde: SDE
    omega: Tensor
    rates: Tensor
    dim: int
    channels: int
    past: bool

    def drift(self, time: Tensor, state: Tensor) -> Tensor:
        """Drift, shape ``(n, dim + ...)``."""
        x, rest = state[:, : self.dim], state[:, self.dim :]
        rest = rest.unflatten(1, (-1, self.channels, len(self.rates)))  # Z, then D
        pull = rest[:, 0] * self.rates.to(rest)
        if self.past:
            pull = pull + rest[:, 1]
        push = -(pull * self.omega.to(rest)).sum(-1)
        first = self.sde.drift(time, x) + self.sde.product(self.sde.diffusion(time, x), push)
        still = torch.zeros_like(pull) if self.past else pull[:, :0]
        return torch.cat((first, -pull.flatten(1), still.flatten(1)), 1)

    def diffusion(self, time: Tensor, state: Tensor) -> Tensor:
        """Diffusion matrix, shape ``(n, dim + ..., m)``: of rank one for each channel."""
        x = state[:, : self.dim]
        g = self.sde.diffusion(time, x)
        g = g.expand(len(x), *g.shape[1:])
        if self.sde.structure is NoiseStructure.SCALAR:
            g = g[..., None]
        elif self.sde.noise_dim is None:
            g = torch.diag_embed(g)
        shared = torch.eye(self.channels, dtype=x.dtype, device=x.device)
        shared = shared.repeat_interleave(len(self.rates), 0)
        rest = torch.cat((shared, torch.zeros_like(shared))) if self.past else shared
        return torch.cat((g * self.omega.sum().to(x), rest.expand(len(x), -1, -1)), 1)


def _readable(sde: SDE, law: float | Tensor | MarkovFBM, solver: Solver) -> SDE:
    """The equation in the calculus of the solver, checked to make sense."""
    if sde.structure is NoiseStructure.ADDITIVE:
        return sde
    if not isinstance(law, MarkovFBM) and float(check_hurst(law).detach()) > 0.5:
        return replace(sde, calculus=solver.calculus)  # Young: both sums have the same limit
    _check_stratonovich(sde)
    if sde.structure not in _COMMUTING:
        raise ValueError(
            f"`sde` must have commuting noise for H <= 1/2; got {sde.structure.value} noise, which needs "
            "Levy areas of the path."
        )
    lowest = law.H if isinstance(law, MarkovFBM) else law
    if not callable(lowest) and float(check_hurst(lowest).detach()) <= _ROUGHEST:
        raise ValueError(f"`law` must have H > 1/3 unless the noise is additive; got {float(lowest):g}.")
    return sde


def _check_stratonovich(sde: SDE) -> None:
    """Raise unless the equation has additive noise or is Stratonovich."""
    if sde.structure is NoiseStructure.NONE:
        raise ValueError("`sde` must have noise; got an ordinary differential equation.")
    if sde.structure is not NoiseStructure.ADDITIVE and sde.calculus is not Calculus.STRATONOVICH:
        raise ValueError(
            "`sde` must be Stratonovich where fractional noise is multiplicative and H <= 1/2 or Markov: Ito "
            "sums have no limit; got an Ito equation."
        )
