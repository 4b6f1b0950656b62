"""Solves that are differentiated by their graph."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from sde.adapters import ObjectSDE
from sde.grid import Grid
from sde.march import Plan
from sde.solvers import ReversibleHeun, Solver
from sde.solvers.interface import Carry
from sde.solvers.reversible import ReversibleState
from sde.torchsde_api.brownian import BrownianInterval
from sde.torchsde_api.methods import PRODUCT_METHODS, check_levy_area, levy_area_of, method_of, solver_of
from sde.torchsde_api.noise import Brownian, increments_between
from sde.torchsde_api.objects import Problem, make_problem
from sde.torchsde_api.settings import METHODS, NOISE_TYPES
from sde.torchsde_api.stepping import ErrorControl, accepted_steps, sample, uniform_edges

__all__ = ["Setup", "check_constants", "make_plan", "prepare", "results", "sdeint", "warn_of_unused"]

State = tuple[Tensor, ...]
Results = Tensor | tuple[Tensor | State, ...]


def sdeint(
    sde: object,
    y0: Tensor,
    ts: Tensor | Sequence[float],
    bm: Brownian | None = None,
    method: str | None = None,
    dt: float | Tensor = 1e-3,
    adaptive: bool = False,
    rtol: float | Tensor = 1e-5,
    atol: float | Tensor = 1e-4,
    dt_min: float | Tensor = 1e-5,
    options: Mapping[str, object] | None = None,
    names: Mapping[str, str] | None = None,
    logqp: bool = False,
    extra: bool = False,
    extra_solver_state: Sequence[Tensor] | None = None,
    **unused_kwargs: object,
) -> Results:
    """Integrate an equation that an object holds, with the calling convention of torchsde.

    Args:
        sde: Object with drift and diffusion, as in :func:`sde.adapters.from_object`.
        y0: Initial state, shape ``(n, d)``.
        ts: Increasing instants, shape ``(T,)``, or a list or tuple of floats.
        bm: Brownian motion of shape ``(n, m)``: anything that can be called with the ends of an interval and
            has ``shape`` and ``levy_area_approximation``. Without one, increments are drawn from a seed that
            NumPy's global generator gives.
        method: A name of :class:`METHODS`; by default ``srk`` for Ito equations, ``euler`` where their noise
            is general, and ``midpoint`` for Stratonovich equations.
        dt: Step, or first step of an adaptive solve. States at ``ts`` are interpolated linearly between the
            ends of steps.
        adaptive: Whether steps are chosen by comparing each with its two halves.
        rtol: Relative tolerance of adaptive steps.
        atol: Absolute tolerance of adaptive steps.
        dt_min: Smallest adaptive step.
        options: ``grad_free`` for Milstein's scheme without derivatives.
        names: Names of the methods of ``sde``, as in :class:`sde.adapters.Methods`.
        logqp: Whether to return the relative entropy to the equation with drift ``h``.
        extra: Whether to return what the scheme carries beside the state: drift, diffusion and auxiliary
            state for ``reversible_heun``, nothing for the others.
        extra_solver_state: The same, to start from.
        **unused_kwargs: Ignored with a warning.

    Returns:
        States, shape ``(T, n, d)``; with ``logqp`` the increments of the relative entropy along the paths,
        shape ``(T - 1, n)``; with ``extra`` a tuple of tensors.

    Raises:
        ValueError: If an argument is wrong, or the method does not integrate the equation.
        AttributeError: If drift, diffusion or prior drift is missing for ``logqp``.
        RuntimeError: If the error estimate of an adaptive solve is not a number.

    Example:
        >>> class Decay(torch.nn.Module):
        ...     noise_type, sde_type = "diagonal", "ito"
        ...
        ...     def f(self, t, y):
        ...         return -y
        ...
        ...     def g(self, t, y):
        ...         return 0.1 * torch.ones_like(y)
        >>> bm = BrownianInterval(size=(4, 2), entropy=1)
        >>> sdeint(Decay(), torch.ones(4, 2), [0.0, 0.5, 1.0], bm=bm, dt=0.1, method="euler").shape
        torch.Size([3, 4, 2])
    """
    warn_of_unused("sdeint", unused_kwargs)
    check_constants(dt=dt, rtol=rtol, atol=atol, dt_min=dt_min)
    setup = prepare(sde, y0, ts, bm, method, options=options, names=names, logqp=logqp, adaptive=adaptive)
    control = ErrorControl(float(rtol), float(atol), float(dt_min)) if adaptive else None
    states, state = setup.integrate(float(dt), control, extra_solver_state)
    return results(states, state, logqp=logqp, extra=extra)


@dataclass(frozen=True, slots=True, eq=False)
class Setup:
    """What a solve needs, checked.

    Attributes:
        problem: Equation, initial state and instants.
        method: Name of the method.
        solver: Its scheme.
        sde: The equation as the scheme takes it.
        bm: The Brownian motion, or none for increments drawn on the grid.
    """

    problem: Problem
    method: str
    solver: Solver
    sde: ObjectSDE
    bm: Brownian | None

    def start(self, extra: Sequence[Tensor] | None) -> Carry:
        """What is carried into the first step, from what was carried out of another solve if given."""
        initial, times = self.problem.initial, self.problem.times
        if extra is None or not isinstance(self.solver, ReversibleHeun):
            return self.solver.start(self.sde, times[0], initial)
        drift, diffusion, auxiliary = extra
        scalar = self.problem.structure.value == NOISE_TYPES.scalar
        return ReversibleState(initial, auxiliary, drift, diffusion.squeeze(-1) if scalar else diffusion)

    def extra(self, carry: Carry) -> State:
        """What is carried beside the state: drift, diffusion and auxiliary state, or nothing."""
        if not isinstance(carry, ReversibleState):
            return ()
        scalar = self.problem.structure.value == NOISE_TYPES.scalar
        return carry.drift, carry.diffusion.unsqueeze(-1) if scalar else carry.diffusion, carry.z

    def motion(self) -> Brownian:
        """The Brownian motion, made where none was given."""
        problem = self.problem
        if self.bm is not None:
            return self.bm
        return BrownianInterval(
            float(problem.times[0]),
            float(problem.times[-1]),
            (len(problem.initial), problem.channels),
            problem.initial.dtype,
            problem.initial.device,
            levy_area_approximation=levy_area_of(self.method),
        )

    def integrate(
        self, dt: float, control: ErrorControl | None, extra: Sequence[Tensor] | None
    ) -> tuple[Tensor, State]:
        """States at the instants ``(T, n, d)``, and what is carried beside the state at the end."""
        times, initial, last = self.problem.times, self.problem.initial, [self.start(extra)]
        if len(times) == 1:
            return initial.unsqueeze(0), self.extra(last[0])

        def fixed() -> Iterator[tuple[float, float, Tensor]]:
            edges = uniform_edges(times, dt)
            plan, read = make_plan(self, edges), self.solver.read
            steps = plan.march(last[0], 0, plan.num_steps)
            for (start, stop), step in zip(pairwise(edges), steps, strict=True):
                last[0] = step.carry
                yield start, stop, read(step.carry)

        def adaptive(control: ErrorControl) -> Iterator[tuple[float, float, Tensor]]:
            arguments = (self.sde, self.solver, self.motion(), last[0], times, dt, control)
            for step in accepted_steps(*arguments):
                last[0] = step.carry
                yield step.start, step.stop, self.solver.read(step.carry)

        states = sample(times, initial, fixed() if control is None else adaptive(control))
        return states, self.extra(last[0])


def prepare(
    sde: object,
    y0: Tensor,
    ts: Tensor | Sequence[float],
    bm: Brownian | None,
    method: str | None,
    *,
    options: Mapping[str, object] | None,
    names: Mapping[str, str] | None,
    logqp: bool,
    adaptive: bool,
    parameters: tuple[Tensor, ...] = (),
    products: bool = True,
) -> Setup:
    """Check the arguments of a solve; they and the errors are those of :func:`sdeint`."""
    problem = make_problem(sde, y0, ts, None if bm is None else bm.shape, names=names, logqp=logqp)
    method = method_of(problem, method)
    if adaptive and method == METHODS.euler and problem.structure.value != NOISE_TYPES.additive:
        warnings.warn(
            "Adaptive steps of Euler-Maruyama may miss the solution unless the noise is additive.",
            stacklevel=3,
        )
    solver = solver_of(problem, method, options)
    if bm is not None:
        check_levy_area(method, bm.levy_area_approximation)
    methods = problem.methods
    if method == METHODS.srk and methods.f is not None and methods.g is not None:
        methods = replace(methods, f_and_g=None)  # its drifts and diffusions are at different states
    free = bool((options or {}).get("grad_free"))
    equation = ObjectSDE.of(
        methods,
        problem.structure,
        problem.calculus,
        problem.noise_dim,
        parameters=parameters,
        products=products and (method in PRODUCT_METHODS) and not free,
    )
    return Setup(problem, method, solver, equation, bm)


def make_plan(setup: Setup, edges: Sequence[float], saved: Sequence[int] | None = None) -> Plan:
    """The steps between some instants, and which of these are saved: the first and those of some numbers.

    States are saved where a gradient runs the plan; to march through it, no numbers need be given.
    """
    initial, times = setup.problem.initial, setup.problem.times
    ends = torch.tensor(edges, dtype=torch.float64)
    kept = [0, len(edges) - 1] if saved is None else sorted({0, *saved})
    grid = Grid(ends[kept].to(times), tuple(right - left for left, right in pairwise(kept)))
    increments = increments_between(setup.bm, edges, initial, setup.problem.channels)
    starts, sizes = ends[:-1].to(times), ends.diff().to(initial)
    return Plan(setup.sde, setup.solver, increments, grid, starts, sizes, tuple(initial.shape[1:]))


def results(states: Tensor, state: State, *, logqp: bool, extra: bool) -> Results:
    """What is returned: states, relative entropy, and what the scheme carries, as asked for."""
    if not logqp:
        return (states, state) if extra else states
    entropy = states[..., -1].diff(dim=0)
    return (states[..., :-1], entropy, state) if extra else (states[..., :-1], entropy)


def check_constants(**constants: float | Tensor) -> None:
    """Raise if a constant requires a gradient.

    Raises:
        ValueError: If one does.
    """
    for name, value in constants.items():
        if isinstance(value, Tensor) and value.requires_grad:
            raise ValueError(f"`{name}` must not require a gradient.")


def warn_of_unused(name: str, unused: Mapping[str, object]) -> None:
    """Warn of arguments that are ignored."""
    if unused:
        warnings.warn(f"`{name}` ignores unexpected arguments: {', '.join(unused)}.", stacklevel=3)
