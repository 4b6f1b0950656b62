r"""From one calculus to the other, and tests of what an equation promises about its noise.

.. math:: f_{\text{Ito}} = f_{\text{Stratonovich}} + \tfrac12 \sum_k (\partial g_k)\,g_k

with the columns :math:`g_k` of the diffusion. The derivatives are products with the Jacobian, which is not
formed, and gradients flow through them.

References:
    Kloeden & Platen (1992), section 4.9. doi:10.1007/978-3-662-12616-5
"""

from dataclasses import replace

import torch
from torch import Tensor
from torch.func import jvp, vjp

from sde.equation import SDE, Calculus, Coefficient, NoiseStructure

__all__ = ["check_structure", "correction", "diffusion_along_itself", "to_ito", "to_stratonovich"]


def to_ito(sde: SDE) -> SDE:
    """The same process as an Ito equation.

    Args:
        sde: An equation in either calculus.

    Returns:
        The equation whose drift holds the correction; ``sde`` itself where nothing changes.

    Example:
        >>> growth = SDE(lambda t, x: 0 * x, lambda t, x: x, calculus=Calculus.STRATONOVICH)
        >>> to_ito(growth).drift(torch.zeros(()), torch.ones(1, 1))
        tensor([[0.5000]])
    """
    return _convert(sde, Calculus.ITO, 1.0)


def to_stratonovich(sde: SDE) -> SDE:
    """The same process as a Stratonovich equation; see :func:`to_ito`."""
    return _convert(sde, Calculus.STRATONOVICH, -1.0)


def _convert(sde: SDE, calculus: Calculus, sign: float) -> SDE:
    """The equation in a calculus, its drift corrected with a sign."""
    if sde.calculus is calculus:
        return sde
    if sde.structure in (NoiseStructure.ADDITIVE, NoiseStructure.NONE):
        return replace(sde, calculus=calculus)

    def drift(time: Tensor, state: Tensor) -> Tensor:
        return sde.drift(time, state) + sign * correction(sde, time, state)

    return replace(sde, drift=drift, calculus=calculus)


def correction(sde: SDE, time: Tensor, state: Tensor) -> Tensor:
    """Half the sum over the processes of the derivative of the diffusion along itself, ``(n, *shape)``.

    Args:
        sde: An equation whose noise depends on the state.
        time: 0-d.
        state: Shape ``(n, *shape)``.

    Returns:
        What the Ito drift has more than the Stratonovich drift.
    """
    if sde.noise_dim is None:
        return 0.5 * diffusion_along_itself(sde, time, state)[1]
    columns = sde.diffusion(time, state).unbind(-1)
    along = [column_derivative(sde.diffusion, time, state, k, columns[k]) for k in range(len(columns))]
    return 0.5 * torch.stack(along).sum(0)


def diffusion_along_itself(sde: SDE, time: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The diffusion of noise without a matrix and its derivative along itself, each ``(n, *shape)``."""

    def diffusion(x: Tensor) -> Tensor:
        return sde.diffusion(time, x).expand_as(x)

    if sde.structure is NoiseStructure.DIAGONAL:
        # The Jacobian is diagonal, hence its own transpose: reverse mode, which costs less here.
        value, pull = vjp(diffusion, state)[:2]
        return value, pull(value)[0]
    value = diffusion(state)
    return value, jvp(diffusion, (state,), (value,))[1]


def column_derivative(
    diffusion: Coefficient, time: Tensor, state: Tensor, k: int, direction: Tensor
) -> Tensor:
    """Derivative of column ``k`` of a diffusion ``(n, *shape, m)`` along a direction ``(n, *shape)``."""
    return jvp(lambda x: diffusion(time, x)[..., k], (state,), (direction.expand_as(state),))[1]


def check_structure(sde: SDE, time: Tensor, state: Tensor, *, tolerance: float = 1e-5) -> None:
    r"""Test at some states what the equation promises about its noise.

    Additive noise must not depend on the state, diagonal noise couple no components, and the columns of
    commutative noise satisfy :math:`(\partial g_j) g_k = (\partial g_k) g_j`. It costs as many derivatives as
    there are pairs of processes, or components, and proves nothing away from the given states.

    Args:
        sde: The equation.
        time: 0-d.
        state: Where to test, shape ``(n, *shape)``.
        tolerance: Largest violation allowed, relative to the largest derivative or diffusion.

    Raises:
        ValueError: If the promise does not hold.

    Example:
        >>> rotation = lambda t, x: torch.stack((x.flip(-1), x), -1)
        >>> sde = SDE(lambda t, x: -x, rotation, NoiseStructure.COMMUTATIVE, noise_dim=2)
        >>> check_structure(sde, torch.zeros(()), torch.ones(1, 2))
    """
    tests = {
        NoiseStructure.ADDITIVE: _state_dependence,
        NoiseStructure.DIAGONAL: _coupling,
        NoiseStructure.COMMUTATIVE: _commutator,
    }
    if sde.structure not in tests:
        return
    violation, scale, what = tests[sde.structure](sde, time, state)
    if not violation <= tolerance * scale:
        raise ValueError(
            f"`sde` must have {sde.structure.value} noise, as it says; {what} of its diffusion is "
            f"{violation:.2g} at the given states (scale {scale:.2g})."
        )


def _state_dependence(sde: SDE, time: Tensor, state: Tensor) -> tuple[float, float, str]:
    """Largest derivative of the diffusion in a direction that no symmetry singles out."""
    signs = torch.where(torch.arange(state[0].numel(), device=state.device) % 3 == 0, -1.0, 0.7)
    direction = signs.to(state).view(state.shape[1:]).expand_as(state)
    value, derivative = jvp(lambda x: sde.diffusion(time, x) + 0 * x.sum(), (state,), (direction,))[:2]
    return float(derivative.abs().max()), max(1.0, float(value.abs().max())), "the derivative"


def _coupling(sde: SDE, time: Tensor, state: Tensor) -> tuple[float, float, str]:
    """Largest derivative of the diffusion of one component in the direction of another."""
    flat, worst, scale = state[0].numel(), 0.0, 1.0
    for j in range(flat):
        direction = torch.zeros_like(state).flatten(1)
        direction[:, j] = 1
        derivative = jvp(lambda x: sde.diffusion(time, x), (state,), (direction.view_as(state),))[1].flatten(
            1
        )
        scale = max(scale, float(derivative.abs().max()))
        worst = max(worst, float(derivative[:, [i for i in range(flat) if i != j]].abs().sum()))
    return worst, scale, "the derivative by another component"


def _commutator(sde: SDE, time: Tensor, state: Tensor) -> tuple[float, float, str]:
    """Largest commutator of two columns."""
    columns, worst, scale = sde.diffusion(time, state).unbind(-1), 0.0, 1.0
    for j in range(len(columns)):
        for k in range(j):
            one = column_derivative(sde.diffusion, time, state, j, columns[k])
            other = column_derivative(sde.diffusion, time, state, k, columns[j])
            scale = max(scale, float(one.abs().max()))
            worst = max(worst, float((one - other).abs().max()))
    return worst, scale, "the commutator"
