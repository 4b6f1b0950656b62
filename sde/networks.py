"""Dense networks whose weights and evaluation are addressed, for every package that learns.

Initial weights come from a :class:`~sde.noise.NoiseStream` (torch's own layers would consume its global
generator), and :func:`evaluate_in_blocks` makes a network's output for a sample independent of the batch it
is asked in.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from sde.noise import NoiseStream, Purpose

__all__ = ["BLOCK", "ema_decay", "evaluate_in_blocks", "perceptron", "update_average"]

# Rows per network call: 1.4 times the cost per row of blocks of 256, and little waste in a call for one row.
BLOCK = 64


def perceptron(
    sizes: Sequence[int],
    *,
    seed: int,
    activation: nn.Module | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    zero_last: bool = False,
) -> nn.Sequential:
    r"""A dense network: linear layers of ``sizes`` with an activation between them.

    Weights of a layer with ``k`` inputs are uniform on :math:`\pm\sqrt{6/k}`, biases on
    :math:`\pm 1/\sqrt{k}`; layer ``l`` reads sample ``l`` of the seed, purpose ``INITIALISATION``.

    Args:
        sizes: Widths from input to output, at least two, each at least 1.
        seed: Seed of the initial weights.
        activation: Elementwise module between the layers; ``None`` is SiLU.
        dtype: Floating dtype of the weights.
        device: Where the weights live.
        zero_last: Start the last layer at zero, so that the network starts as the zero map.

    Returns:
        The network, in training mode.

    Raises:
        ValueError: If ``sizes`` holds fewer than two widths or one below 1.

    Example:
        >>> perceptron((2, 8, 3), seed=0)(torch.zeros(5, 2)).shape
        torch.Size([5, 3])

    References:
        He, Zhang, Ren & Sun (2015), Delving deep into rectifiers, section 2.2. doi:10.1109/ICCV.2015.123
    """
    if len(sizes) < 2 or min(sizes) < 1:
        raise ValueError(f"`sizes` must hold at least two widths of at least 1; got {tuple(sizes)}.")
    activation = nn.SiLU() if activation is None else activation
    layers: list[nn.Module] = []
    for index, (fan_in, fan_out) in enumerate(pairwise(sizes)):
        layer = nn.utils.skip_init(nn.Linear, fan_in, fan_out, dtype=dtype, device=device)
        weights = _initial_weights(seed, index, fan_in, fan_out)
        if zero_last and index == len(sizes) - 2:
            weights = torch.zeros_like(weights)
        with torch.no_grad():
            for parameter, value in zip(
                layer.parameters(), (weights[:, :fan_in], weights[:, fan_in]), strict=True
            ):
                parameter.copy_(value)  # weight, then bias
        layers += [layer, activation]
    return nn.Sequential(*layers[:-1])


def _initial_weights(seed: int, layer: int, fan_in: int, fan_out: int) -> Tensor:
    """Weights and, as last column, biases of a layer, float64."""
    stream = NoiseStream(seed, layer, layer + 1)
    uniforms = stream.uniforms(fan_out * (fan_in + 1), purpose=Purpose.INITIALISATION, dtype=torch.float64)
    signed = (2 * uniforms.view(fan_out, fan_in + 1) - 1) / fan_in**0.5
    signed[:, :fan_in] *= 6**0.5
    return signed


def evaluate_in_blocks(
    function: Callable[..., Tensor], noise: NoiseStream, *columns: Tensor, block: int = BLOCK
) -> Tensor:
    """Evaluate a row-wise function so that the row of a sample has the same bits in every batch.

    Matrix products round differently for different numbers of rows. Here sample ``i`` always sits in row
    ``i % block`` of a call with exactly ``block`` rows, whoever its neighbours are; absent ones are zeros.

    Args:
        function: Maps tensors ``(block, ...)`` to a tensor ``(block, ...)``, row by row.
        noise: The samples, one for each row of the columns.
        *columns: Tensors of shape ``(n, ...)`` with ``n = len(noise)``; at least one.
        block: Rows of one call.

    Returns:
        The function's rows, shape ``(n, ...)``; gradients pass.

    Example:
        >>> samples = NoiseStream(seed=0, start=0, stop=100)
        >>> evaluate_in_blocks(lambda x: 2 * x, samples, torch.ones(100, 3)).shape
        torch.Size([100, 3])
    """
    ids = torch.arange(noise.start, noise.stop) if noise.ids is None else noise.ids.cpu()
    if len(ids) == 0:
        return function(*(column.new_zeros(block, *column.shape[1:]) for column in columns))[:0]
    blocks, owner = torch.unique(ids // block, return_inverse=True)
    owner = owner + len(blocks) * _occurrence(ids)
    _, owner = torch.unique(owner, return_inverse=True)
    slots = (owner * block + ids % block).to(columns[0].device)
    num_blocks = int(owner.max()) + 1
    padded = [
        column.new_zeros(num_blocks * block, *column.shape[1:]).index_copy(0, slots, column)
        for column in columns
    ]
    parts = [function(*(column[k * block : (k + 1) * block] for column in padded)) for k in range(num_blocks)]
    return torch.cat(parts)[slots]


def _occurrence(ids: Tensor) -> Tensor:
    """How often each id has appeared before: a sample asked twice needs two rows."""
    ordered, order = torch.sort(ids, stable=True)
    position = torch.arange(len(ids))
    first = torch.cat((torch.ones(1, dtype=torch.bool), ordered[1:] != ordered[:-1]))
    start = torch.cummax(torch.where(first, position, 0), 0).values
    return torch.empty_like(position).scatter(0, order, position - start)


def ema_decay(iteration: int, limit: float = 0.995) -> float:
    """Decay of the moving average of weights after ``iteration`` steps: ``min(limit, (1 + it) / (10 + it))``.

    The warm-up forgets the initial weights: with a constant decay of 0.999 they would still weigh a quarter
    after 1400 steps.

    Example:
        >>> ema_decay(0), ema_decay(8), ema_decay(10**6)
        (0.1, 0.5, 0.995)
    """
    return min(limit, (1 + iteration) / (10 + iteration))


@torch.no_grad()
def update_average(average: nn.Module, current: nn.Module, decay: float) -> None:
    """Replace the parameters of ``average`` by ``decay * average + (1 - decay) * current``."""
    for mean, value in zip(average.parameters(), current.parameters(), strict=True):
        mean.lerp_(value, 1 - decay)
