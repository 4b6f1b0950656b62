"""Solves that are differentiated without keeping their graph."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from sde.gradients import Adjoint, Reversible
from sde.torchsde_api.integrate import (
    Results,
    Setup,
    check_constants,
    make_plan,
    prepare,
    results,
    warn_of_unused,
)
from sde.torchsde_api.methods import adjoint_method_of
from sde.torchsde_api.noise import Brownian
from sde.torchsde_api.settings import METHODS
from sde.torchsde_api.stepping import ErrorControl, Output, accepted_steps, locate, uniform_edges

__all__ = ["sdeint_adjoint"]


def sdeint_adjoint(
    sde: object,
    y0: Tensor,
    ts: Tensor | Sequence[float],
    bm: Brownian | None = None,
    method: str | None = None,
    adjoint_method: str | None = None,
    dt: float | Tensor = 1e-3,
    adaptive: bool = False,
    adjoint_adaptive: bool = False,
    rtol: float | Tensor = 1e-5,
    adjoint_rtol: float | Tensor = 1e-5,
    atol: float | Tensor = 1e-4,
    adjoint_atol: float | Tensor = 1e-4,
    dt_min: float | Tensor = 1e-5,
    options: Mapping[str, object] | None = None,
    adjoint_options: Mapping[str, object] | None = None,
    adjoint_params: Sequence[Tensor] | None = None,
    names: Mapping[str, str] | None = None,
    logqp: bool = False,
    extra: bool = False,
    extra_solver_state: Sequence[Tensor] | None = None,
    **unused_kwargs: object,
) -> Results:
    """Integrate as :func:`sdeint`, with gradients in memory that does not grow with the steps.

    States are kept at the instants or, where one lies inside a step, at the ends of that step.
    With ``reversible_heun`` the gradient is that of :func:`sdeint` to rounding, by undoing the steps.
    Otherwise the adjoint equation is integrated backwards over the steps of the forward pass, in
    Stratonovich form and by Heun's scheme whatever the names of the adjoint method; the gradient is then
    that of the exact solution up to both discretisations. Derivatives of the gradient are not available.

    Args:
        sde: As for :func:`sdeint`; a module unless ``adjoint_params`` is given.
        y0: As for :func:`sdeint`.
        ts: As for :func:`sdeint`.
        bm: As for :func:`sdeint`.
        method: As for :func:`sdeint`.
        adjoint_method: Checked against the equation; ``adjoint_reversible_heun``, the default for
            ``reversible_heun``, undoes the steps, and all others are the same.
        dt: As for :func:`sdeint`.
        adaptive: As for :func:`sdeint`; the backward pass takes the accepted steps.
        adjoint_adaptive: Kept for compatibility.
        rtol: As for :func:`sdeint`.
        adjoint_rtol: Kept for compatibility.
        atol: As for :func:`sdeint`.
        adjoint_atol: Kept for compatibility.
        dt_min: As for :func:`sdeint`.
        options: As for :func:`sdeint`.
        adjoint_options: Kept for compatibility.
        adjoint_params: Tensors that get a gradient beside ``y0``; the parameters of ``sde`` by default.
        names: As for :func:`sdeint`.
        logqp: As for :func:`sdeint`.
        extra: As for :func:`sdeint`; with ``reversible_heun`` the graph is then kept.
        extra_solver_state: As for :func:`sdeint`; likewise.
        **unused_kwargs: Ignored with a warning.

    Returns:
        As :func:`sdeint`.

    Raises:
        ValueError: As :func:`sdeint`, and if there is neither a module nor ``adjoint_params``.

    References:
        Li, Wong, Chen & Duvenaud (2020), section 3. arXiv:2001.01328
        Kidger, Foster, Li & Lyons (2021), algorithm 2. arXiv:2105.13493
    """
    warn_of_unused("sdeint_adjoint", unused_kwargs)
    check_constants(dt=dt, rtol=rtol, atol=atol, dt_min=dt_min)
    check_constants(adjoint_rtol=adjoint_rtol, adjoint_atol=adjoint_atol)
    if adjoint_params is None:
        if not isinstance(sde, nn.Module):
            raise ValueError(
                "`adjoint_params` must be given where `sde` is no module; pass () if there are no parameters."
            )
        adjoint_params = tuple(sde.parameters())
    setup = prepare(
        sde,
        y0,
        ts,
        bm,
        method,
        options=options,
        names=names,
        logqp=logqp,
        adaptive=adaptive,
        parameters=tuple(adjoint_params),
        products=False,
    )
    adjoint_method = adjoint_method_of(setup.problem, setup.method, adjoint_method)
    exact = adjoint_method == METHODS.adjoint_reversible_heun
    if setup.method == METHODS.reversible_heun and not exact:
        warnings.warn("`method` is 'reversible_heun' without 'adjoint_reversible_heun'.", stacklevel=2)
    control = ErrorControl(float(rtol), float(atol), float(dt_min)) if adaptive else None
    carries = setup.method == METHODS.reversible_heun and (extra or extra_solver_state is not None)
    if carries or len(setup.problem.times) == 1:
        states, state = setup.integrate(float(dt), control, extra_solver_state)
        return results(states, state, logqp=logqp, extra=extra)
    gradient = Reversible(allow_missing=True) if exact else Adjoint(allow_missing=True)
    return results(_integrate(setup, float(dt), control, gradient), (), logqp=logqp, extra=extra)


def _integrate(
    setup: Setup, dt: float, control: ErrorControl | None, gradient: Adjoint | Reversible
) -> Tensor:
    """States at the instants, ``(T, n, d)``, as one node of the graph."""
    problem = setup.problem
    if control is None:
        edges = uniform_edges(problem.times, dt)
        outputs = locate(problem.times, edges)
    else:
        setup = replace(setup, bm=setup.motion())
        edges, outputs = _accepted_edges(setup, dt, control)
    plan = make_plan(setup, edges, [end for output in outputs for end in (output.left, output.right)])
    place = {0: 0} | plan.grid.saves
    paths = gradient.run(plan, problem.initial.contiguous(), lambda count: None)
    states = [
        torch.lerp(paths[:, place[left]], paths[:, place[right]], share)
        if left < right
        else paths[:, place[right]]
        for left, right, share in outputs
    ]
    return torch.stack(states)


def _accepted_edges(setup: Setup, dt: float, control: ErrorControl) -> tuple[tuple[float, ...], list[Output]]:
    """The ends of all half steps that an adaptive solve accepts, and where the instants lie among them."""
    times, solver, bm = setup.problem.times, setup.solver, setup.motion()
    with torch.no_grad():
        steps = list(
            (step.start, step.middle, step.stop)
            for step in accepted_steps(setup.sde, solver, bm, setup.start(None), times, dt, control)
        )
    halves = (steps[0][0], *(end for _, middle, stop in steps for end in (middle, stop)))
    wholes = locate(times, halves[::2])
    return halves, [Output(2 * left, 2 * right, share) for left, right, share in wholes]
