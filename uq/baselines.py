"""Generators that need no training: the POD-Gaussian and the bootstrap of the training data.

They are the yardstick of every learned generator, and the first is also the linear part of the learned ones
(:mod:`uq.generator`). Rows of data are samples of a random vector or field; conditions are known inputs (a
load, a material parameter) that go with each row.
"""

import math

import torch
from torch import Tensor, nn

from sde.networks import evaluate_in_blocks
from sde.noise import NoiseStream, Purpose
from sde.samples import check_conditions, check_samples, deviations

__all__ = ["Bootstrap", "PodGaussian"]


class PodGaussian(nn.Module):
    r"""Gaussian law with the mean and covariance of the data, sampled through its principal components.

    .. math:: y = \bar y + B\,(c - \bar c) + F z, \qquad z \sim N(0, I_r), \qquad
              F F^\top = \operatorname{Cov}(y - B c)

    where :math:`B` is the least-squares regression of the data on the conditions (absent without them) and
    :math:`r \le \min(q, n - 1)`. Exact where the data are jointly Gaussian with the conditions; otherwise the
    best that means and covariances can do.

    Args:
        data: Samples, shape ``(n, *output_shape)``, n at least 2.
        conditions: Known inputs of each sample, shape ``(n, c)``; ``None`` makes an unconditional generator.
        dtype: Dtype of what is generated.
        device: Where it is generated.

    Raises:
        ValueError: If a value is not finite, shapes disagree, or the samples are too few for the conditions.
        TypeError: If data or conditions are not floating-point tensors.

    Example:
        >>> gaussian = PodGaussian(torch.tensor([[0.0, 1.0], [2.0, 1.0], [1.0, 4.0]]))
        >>> gaussian.mean
        tensor([1., 2.])
        >>> gaussian(torch.zeros(8, 0), NoiseStream(seed=0, start=0, stop=8)).shape
        torch.Size([8, 2])

    References:
        Soize (2017), Uncertainty Quantification, section 5.7. doi:10.1007/978-3-319-54339-0
    """

    mean: Tensor
    factor: Tensor
    regression: Tensor
    condition_mean: Tensor

    def __init__(
        self,
        data: Tensor,
        conditions: Tensor | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        """Fit the mean, the regression and the factor of the covariance, in float64."""
        super().__init__()
        matrix, known = check_samples(data, conditions)
        count, spare = len(matrix), len(matrix) - 1 - known.shape[1]
        if spare < 1:
            raise ValueError(
                f"`data` must hold at least {known.shape[1] + 2} samples for {known.shape[1]} conditions; "
                f"got {count}."
            )
        mean, condition_mean = matrix.mean(0), known.mean(0)
        centred, known = matrix - mean, known - condition_mean
        regression = (
            torch.linalg.lstsq(known, centred, driver="gelsd").solution.T
            if known.shape[1]
            else matrix.T[:, :0]
        )
        _, singular, modes = torch.linalg.svd(centred - known @ regression.T, full_matrices=False)
        rank = max(1, int((singular > singular[0] * count * torch.finfo(torch.float64).eps).sum()))
        factor = modes[:rank].T * (singular[:rank] / math.sqrt(spare))
        for name, value in (
            ("mean", mean),
            ("factor", factor),
            ("regression", regression),
            ("condition_mean", condition_mean),
        ):
            self.register_buffer(name, value.to(device=device, dtype=dtype).contiguous())
        self.output_shape = tuple(data.shape[1:])

    @property
    def input_dim(self) -> int:
        """Number of conditions."""
        return self.regression.shape[1]

    @property
    def latent_dim(self) -> int:
        """Rank of the covariance."""
        return self.factor.shape[1]

    def transform(self, latent: Tensor, conditions: Tensor) -> Tensor:
        """Map latent codes ``(n, latent_dim)`` and conditions ``(n, c)`` to flat samples ``(n, q)``."""
        return self.mean + (conditions - self.condition_mean) @ self.regression.T + latent @ self.factor.T

    def forward(self, inputs: Tensor, noise: NoiseStream) -> Tensor:
        """Generate: conditions ``(n, c)`` to samples ``(n, *output_shape)``, by the noise's latent codes."""
        check_conditions(inputs, noise, self.input_dim)
        mean = self.mean
        latent = noise.normals(self.latent_dim, purpose=Purpose.LATENT, dtype=mean.dtype, device=mean.device)
        flat = evaluate_in_blocks(self.transform, noise, latent, inputs.to(mean))
        return flat.unflatten(1, self.output_shape)


class Bootstrap(nn.Module):
    r"""Resampling of the training data themselves.

    Without conditions, each sample is a training row drawn with equal probability. With them, it is a row
    drawn among the ``neighbours`` training rows whose standardised conditions are nearest to those asked for.
    It cannot produce anything new, but its marginal laws are the data's: a generator of a scalar law that
    loses to it has learned nothing.

    Args:
        data: Samples, shape ``(n, *output_shape)``, n at least 2.
        conditions: Known inputs of each sample, shape ``(n, c)``, or ``None``.
        neighbours: Number of nearest rows to draw from, in ``[1, n]``; used with conditions only.
        dtype: Dtype of what is generated.
        device: Where it is generated.

    Raises:
        ValueError: If a value is not finite, shapes disagree, or ``neighbours`` is out of range.
        TypeError: If data or conditions are not floating-point tensors.

    Example:
        >>> rows = torch.tensor([[1.0], [2.0], [3.0]])
        >>> replay = Bootstrap(rows, conditions=rows, neighbours=1)
        >>> replay(torch.tensor([[2.9]]), NoiseStream(seed=0, start=5, stop=6))
        tensor([[3.]])

    References:
        Efron & Tibshirani (1993), An Introduction to the Bootstrap, chapter 6. doi:10.1201/9780429246593
    """

    rows: Tensor
    conditions: Tensor
    condition_mean: Tensor
    condition_scale: Tensor

    def __init__(
        self,
        data: Tensor,
        conditions: Tensor | None = None,
        *,
        neighbours: int = 5,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        """Keep the rows."""
        super().__init__()
        matrix, known = check_samples(data, conditions)
        if conditions is not None and not 1 <= neighbours <= len(matrix):
            raise ValueError(
                f"`neighbours` must lie in [1, {len(matrix)}], the number of samples; got {neighbours}."
            )
        scale = deviations(known)
        mean = known.mean(0)
        for name, value in (
            ("rows", matrix), ("conditions", (known - mean) / scale),
            ("condition_mean", mean), ("condition_scale", scale),
        ):  # fmt: skip
            self.register_buffer(name, value.to(device=device, dtype=dtype))
        self.neighbours = neighbours
        self.output_shape = tuple(data.shape[1:])

    @property
    def input_dim(self) -> int:
        """Number of conditions."""
        return self.conditions.shape[1]

    def forward(self, inputs: Tensor, noise: NoiseStream) -> Tensor:
        """Generate: conditions ``(n, c)`` to training rows ``(n, *output_shape)``, chosen by the noise."""
        check_conditions(inputs, noise, self.input_dim)
        device = self.rows.device
        choice = noise.uniforms(1, purpose=Purpose.LATENT, dtype=torch.float64, device=device)
        if self.input_dim == 0:
            index = (choice[:, 0] * len(self.rows)).long()
        else:
            asked = (inputs.to(self.conditions) - self.condition_mean) / self.condition_scale
            # The direct distance, not the expanded square: its bits do not depend on the batch.
            gap = torch.cdist(asked, self.conditions, compute_mode="donot_use_mm_for_euclid_dist")
            nearest = torch.argsort(gap, dim=1, stable=True)[:, : self.neighbours]
            index = nearest.gather(1, (choice * self.neighbours).long())[:, 0]
        return self.rows[index].unflatten(1, self.output_shape)
