r"""Classifier-free guidance: a conditional model pushed away from the unconditional one.

.. math:: f_w = f_u + w\,(f_c - f_u)

for the field of any kind, since all are affine in the score with the same coefficients. With ``w = 1`` it is
the conditional model. Otherwise the fields at different times belong to no common path of laws: what is
sampled is sharper than the conditional law, but is not :math:`\rho_u (\rho_c / \rho_u)^w`.

References:
    Ho & Salimans (2022), Classifier-free diffusion guidance, section 3.2. arXiv:2207.12598
"""

from torch import Tensor

from inference.interpolants.interpolant import Kind
from inference.interpolants.prediction import Prediction
from sde.equation import Coefficient

__all__ = ["guided"]


def guided(conditional: Prediction, unconditional: Prediction, weight: float) -> Prediction:
    """The guided prediction, for any sampler; a stage evaluates the networks of both models.

    Args:
        conditional: Given what is known.
        unconditional: Of the same interpolant.
        weight: ``w``; 0 and 1 are the models themselves.

    Returns:
        A prediction of the kinds that the conditional model's networks predict.

    Raises:
        ValueError: If the interpolants differ.

    Example:
        >>> import torch
        >>> from inference.interpolants import OneSided
        >>> up, still = (Prediction(OneSided(), {Kind.TARGET: lambda t, x, k=k: x + k}) for k in (1, 0))
        >>> guided(up, still, 3.0).to(Kind.TARGET)(torch.tensor(0.5), torch.zeros(1, 1))
        tensor([[3.]])
    """
    if conditional.interpolant != unconditional.interpolant:
        raise ValueError(
            f"`unconditional` must predict {conditional.interpolant}; got {unconditional.interpolant}."
        )

    def mixed(kind: Kind) -> Coefficient:
        with_condition, without = conditional.to(kind), unconditional.to(kind)

        def field(t: Tensor, x: Tensor) -> Tensor:
            plain = without(t, x)
            return plain + weight * (with_condition(t, x) - plain)

        return field

    return Prediction(conditional.interpolant, {kind: mixed(kind) for kind in conditional.networks})
