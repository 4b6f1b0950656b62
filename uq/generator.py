r"""Wasserstein generator: a learned random vector or field, given as a model driven by latent codes.

.. math:: G(z, c) = \underbrace{\bar y + B\,(c - \bar c) + F z_{1:r}}_{\text{POD-Gaussian}}
          + S\,f_\theta(z, c)

The network :math:`f_\theta` starts at zero, so training starts from the Gaussian with the data's mean and
covariance and has only the non-Gaussian part to learn. :func:`uq.training.train_wasserstein` trains it.

References:
    Arjovsky, Chintala & Bottou (2017), Wasserstein generative adversarial networks. arXiv:1701.07875
    Gulrajani, Ahmed, Arjovsky, Dumoulin & Courville (2017), Improved training of Wasserstein GANs.
    arXiv:1704.00028
    Boukraichi, Akkari, Casenave & Ryckelynck (2021), Uncertainty quantification in a mechanical submodel
    driven by a Wasserstein-GAN. arXiv:2110.13680
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sde.networks import evaluate_in_blocks, perceptron
from sde.noise import NoiseStream, Purpose
from sde.samples import check_conditions, check_samples
from uq.baselines import PodGaussian

__all__ = ["WassersteinGenerator", "gradient_penalty"]


class WassersteinGenerator(nn.Module):
    r"""A POD-Gaussian plus a learned correction of the same latent codes.

    A new generator is the POD-Gaussian exactly. It is a :class:`uq.model.Model`: sample ``i`` is the same
    bits in every batch on one machine.

    Args:
        base: The POD-Gaussian to correct; fixed.
        scale: Unit of each component of the correction, shape ``(q,)``, positive; as a rule the data's
            standard deviations.
        condition_scale: Unit of each condition, shape ``(c,)``, positive.
        width: Width of the hidden layers, at least 1.
        depth: Number of hidden layers, at least 1.
        extra_latent: Latent codes that drive only the correction, at least 0.
        seed: Seed of the initial weights.

    Raises:
        ValueError: If a size is out of range or a scale has the wrong shape or is not positive.

    Example:
        >>> base = PodGaussian(torch.tensor([[0.0, 1.0], [2.0, 1.0], [1.0, 4.0]]))
        >>> generator = WassersteinGenerator(base, torch.ones(2), seed=0)
        >>> noise = NoiseStream(seed=1, start=0, stop=4)
        >>> torch.equal(generator(torch.zeros(4, 0), noise), base(torch.zeros(4, 0), noise))
        True
    """

    scale: Tensor
    condition_scale: Tensor
    centre: Tensor
    recolour: Tensor

    def __init__(
        self,
        base: PodGaussian,
        scale: Tensor,
        condition_scale: Tensor | None = None,
        *,
        width: int = 128,
        depth: int = 2,
        extra_latent: int = 0,
        seed: int,
    ) -> None:
        """Build the network with a last layer of zeros."""
        super().__init__()
        mean, conditions = base.mean, base.input_dim
        known_scale = mean.new_ones(conditions) if condition_scale is None else condition_scale
        for name, value, size in (
            ("scale", scale, len(mean)),
            ("condition_scale", known_scale, conditions),
        ):
            if value.shape != (size,) or not bool((value > 0).all()):
                raise ValueError(
                    f"`{name}` must be {size} positive numbers; got shape {tuple(value.shape)}, {value}."
                )
        if extra_latent < 0 or width < 1 or depth < 1:
            raise ValueError(
                "`width` and `depth` must be at least 1 and `extra_latent` at least 0; "
                f"got {width}, {depth} and {extra_latent}."
            )
        self.base = base
        self.calibrated = False
        self.register_load_state_dict_post_hook(_notice_calibration)
        self.register_buffer("centre", mean.clone())
        self.register_buffer("recolour", torch.eye(len(mean), dtype=mean.dtype, device=mean.device))
        self.register_buffer("scale", scale.detach().to(mean, copy=True))
        self.register_buffer("condition_scale", known_scale.detach().to(mean, copy=True))
        self.latent_dim = base.latent_dim + extra_latent
        sizes = (self.latent_dim + conditions, *[width] * depth, len(mean))
        self.network = perceptron(sizes, seed=seed, dtype=mean.dtype, device=mean.device, zero_last=True)

    @property
    def input_dim(self) -> int:
        """Number of conditions."""
        return self.base.input_dim

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return self.base.output_shape

    def transform(self, latent: Tensor, conditions: Tensor) -> Tensor:
        """Map latent codes ``(n, latent_dim)`` and conditions ``(n, c)`` to flat samples ``(n, q)``."""
        known = (conditions - self.base.condition_mean) / self.condition_scale
        correction = self.scale * self.network(torch.cat((latent, known), 1))
        flat = self.base.transform(latent[:, : self.base.latent_dim], conditions) + correction
        return self.base.mean + (flat - self.centre) @ self.recolour.T if self.calibrated else flat

    @torch.no_grad()
    def calibrate(
        self,
        data: Tensor,
        conditions: Tensor | None = None,
        *,
        weights: Tensor | None = None,
        seed: int,
        rounds: int = 8,
    ) -> None:
        r"""Give the generated law the mean and covariance of the data, by the least affine change.

        .. math:: y \mapsto \bar y + T\,(y - m_G), \qquad
                  T = C_G^{-1/2} \bigl(C_G^{1/2} C\, C_G^{1/2}\bigr)^{1/2} C_G^{-1/2}

        A Wasserstein generator trained on few samples is under-dispersed: shrinking towards the middle of the
        samples lowers its distance to them. This removes that bias from the second moments and leaves the
        shape alone. The change is least in the metric of the critic, components over their scales times
        weights: in any other, a component that the critic hardly sees, and the network left wrong, would be
        put right at the cost of those that matter.

        Args:
            data: The training samples, shape ``(n, *output_shape)``.
            conditions: Their conditions, shape ``(n, c)``; ``None`` without.
            weights: Weights of the components for the critic, shape ``(q,)``, positive; ``None`` for 1.
            seed: Seed of the generated samples that measure :math:`m_G` and :math:`C_G`.
            rounds: Generated samples per training sample.

        Raises:
            ValueError: If data or conditions do not fit the generator.

        References:
            Peyre & Cuturi (2019), Computational Optimal Transport, remark 2.31. doi:10.1561/2200000073
        """
        matrix, known = check_samples(data, conditions)
        if matrix.shape[1] != len(self.centre) or known.shape[1] != self.input_dim:
            raise ValueError(
                f"`data` must have {len(self.centre)} components and {self.input_dim} conditions; "
                f"got {matrix.shape[1]} and {known.shape[1]}."
            )
        self.calibrated = False
        inputs = known.repeat(rounds, 1).to(self.centre)
        made = self(inputs, NoiseStream(seed, 0, len(inputs)).fork("calibration")).flatten(1).double().cpu()
        mean, metric = made.mean(0), 1 / self.scale.double().cpu()
        metric = metric if weights is None else metric * weights.double().cpu()
        root, inverse_root = _roots(torch.cov((made * metric).T).reshape(len(mean), -1))
        middle, _ = _roots(root @ torch.cov((matrix * metric).T).reshape(len(mean), -1) @ root)
        self.centre.copy_(mean)
        self.recolour.copy_(inverse_root @ middle @ inverse_root * metric / metric.unsqueeze(1))
        self.calibrated = True

    def forward(self, inputs: Tensor, noise: NoiseStream) -> Tensor:
        """Generate: conditions ``(n, c)`` to samples ``(n, *output_shape)``, by the noise's latent codes."""
        check_conditions(inputs, noise, self.input_dim)
        mean = self.base.mean
        latent = noise.normals(self.latent_dim, purpose=Purpose.LATENT, dtype=mean.dtype, device=mean.device)
        return evaluate_in_blocks(self.transform, noise, latent, inputs.to(mean)).unflatten(
            1, self.output_shape
        )


def _notice_calibration(generator: WassersteinGenerator, _: object) -> None:
    """After loading a state: whether it holds a calibration."""
    identity = torch.eye(len(generator.centre)).to(generator.recolour)
    generator.calibrated = not (
        torch.equal(generator.recolour, identity) and torch.equal(generator.centre, generator.base.mean)
    )


def _roots(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Square root of a covariance and its pseudo-inverse."""
    values, vectors = torch.linalg.eigh(covariance)
    root = values.clamp_min(0).sqrt()
    inverse = torch.where(root > 1e-7 * root.max(), 1 / root, 0.0)
    return (vectors * root) @ vectors.T, (vectors * inverse) @ vectors.T


def gradient_penalty(
    critic: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, mix: Tensor
) -> tuple[Tensor, Tensor]:
    r"""Gradient penalty of a Wasserstein critic between real and generated samples.

    .. math:: \frac1n \sum_i \bigl(\lVert \nabla D(\hat x_i) \rVert - 1\bigr)^2, \qquad
              \hat x_i = u_i x_i + (1 - u_i)\, G(z_i)

    The norm is over everything the critic sees of a sample: with conditions appended to the columns, this is
    the full penalty, which makes conditional laws converge too. A zero gradient has a finite derivative.

    Args:
        critic: Maps ``(n, q)`` to ``(n, 1)``, row by row (no batch normalisation).
        real: Data, shape ``(n, q)``.
        fake: Generated samples, shape ``(n, q)``.
        mix: Interpolation coefficients, one per sample, shape ``(n, 1)``, in [0, 1].

    Returns:
        The penalty and the mean gradient norm, both scalars; the first can be differentiated.

    Example:
        >>> critic = lambda x: x @ torch.tensor([[3.0], [4.0]])
        >>> real, fake, mix = torch.ones(5, 2), torch.zeros(5, 2), torch.full((5, 1), 0.5)
        >>> penalty, norm = gradient_penalty(critic, real, fake, mix)
        >>> penalty.item(), norm.item()
        (16.0, 5.0)

    References:
        Gulrajani et al. (2017), algorithm 1. arXiv:1704.00028
        Ray, Murgoitio-Esandi, Dasgupta & Oberai (2023), section 3. arXiv:2306.04895
    """
    points = torch.lerp(fake, real, mix).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(critic(points).sum(), points, create_graph=True)
    norm = (gradient.flatten(1).square().sum(1) + 1e-12).sqrt()
    return (norm - 1).square().mean(), norm.mean().detach()
