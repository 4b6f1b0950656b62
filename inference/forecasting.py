r"""Forecasts of a stochastic system, learned from pairs of states a lag apart.

A path leaves the present state and ends at the state a lag later,

.. math:: x_s = \alpha(s)\, x_0 + \beta(s)\, x_1 + \gamma(s)\, z, \qquad \gamma = \sigma(s) \sqrt s,

and one network learns the drift :math:`b(s, x, x_0)` of the diffusion that leaves a point as the path does.
The score follows from the drift, so that any other diffusivity is chosen after training: all of them end in
the law of the future given the present. The one that bounds the error best makes the diffusion a Foellmer
process.

References:
    Chen, Goldstein, Hua, Albergo, Boffi & Vanden-Eijnden (2024), Probabilistic forecasting with stochastic
    interpolants and Foellmer processes. arXiv:2403.13724
"""

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from inference.interpolants.amplitude import Fading
from inference.interpolants.draws import Draws
from inference.interpolants.flow import VelocityNetwork
from inference.interpolants.interpolant import Kind, TwoSided
from inference.interpolants.losses import matching_loss
from inference.interpolants.prediction import Prediction
from inference.interpolants.schedule import Quadratic
from inference.samplers.flows import Diffusivity, ProbabilityDiffusion, optimal_diffusivity
from inference.samplers.forecast import leave_point
from inference.samplers.grids import leaving_times
from inference.training import FitSettings, fit
from inference.training_log import History
from sde.checkpoint import digest
from sde.networks import evaluate_in_blocks
from sde.noise import NoiseStream
from sde.samples import check_conditions, check_samples, deviations

__all__ = ["ForecastSettings", "Forecaster", "train_forecaster"]

Drift = Callable[[Tensor, Tensor, Tensor], Tensor]
"""A network of points ``(n, q)``, times ``(n, 1)`` and what is known ``(n, q + c)``."""

_BLOCK = 256  # rows of one evaluation of the network, whatever the batch


@dataclass(frozen=True, slots=True)
class ForecastSettings:
    """How a forecaster is built and trained.

    Attributes:
        batch: Pairs per iteration, at least 1.
        width: Width of the hidden layers, at least 1.
        depth: Number of hidden layers, at least 1.
        steps: Steps of the sampler, at least 1; two evaluations of the network each.
        fit: The optimisation.
    """

    batch: int = 256
    width: int = 128
    depth: int = 3
    steps: int = 40
    fit: FitSettings = field(default_factory=FitSettings)

    def __post_init__(self) -> None:
        """Refuse sizes below 1."""
        for name in ("batch", "width", "depth", "steps"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"`{name}` must be a whole number of at least 1; got {value!r}.")


class Forecaster(nn.Module):
    """The law of a state a lag after a known one, as a model to draw from.

    It satisfies the protocol of models: a deterministic map of the present state, the conditions and noise,
    whose row for a sample is the same bits in every batch on one machine. The sampler works in double
    precision around a network of any.

    Args:
        drift: Network of :attr:`Kind.DRIFT`: points, times and present state with conditions, in standardised
            units.
        interpolant: The path that it was trained on.
        mean: Mean of the states, shape ``(q,)``.
        scale: Unit of each component, shape ``(q,)``.
        condition_mean: Mean of the conditions, shape ``(c,)``; ``None`` is no conditions.
        condition_scale: Unit of each condition, shape ``(c,)``.
        diffusivity: In standardised units; ``None`` is the Foellmer process.
        steps: Number of steps of the sampler, at least 1.
        first: Time of the path at which the sampler starts, in (0, 1): what it neglects is of the order of
            beta there.

    Raises:
        ValueError: If sizes disagree or there are no steps.

    Example:
        >>> still = lambda points, s, known: torch.zeros_like(points)
        >>> forecaster = Forecaster(still, TwoSided(Quadratic(), Fading()), torch.zeros(2), torch.ones(2))
        >>> forecaster(torch.zeros(5, 2), NoiseStream(seed=0, start=0, stop=5)).shape
        torch.Size([5, 2])
    """

    mean: Tensor
    scale: Tensor
    condition_mean: Tensor
    condition_scale: Tensor

    def __init__(
        self,
        drift: Drift,
        interpolant: TwoSided,
        mean: Tensor,
        scale: Tensor,
        *,
        condition_mean: Tensor | None = None,
        condition_scale: Tensor | None = None,
        diffusivity: Diffusivity | None = None,
        steps: int = 40,
        first: float = 0.01,
    ) -> None:
        """Keep the network and the units."""
        super().__init__()
        self.drift, self.interpolant, self.diffusivity = drift, interpolant, diffusivity
        self.times = leaving_times(steps, first=first)
        known = mean[:0] if condition_mean is None else condition_mean
        spread = mean[:0] if condition_scale is None else condition_scale
        if mean.shape != scale.shape or known.shape != spread.shape:
            raise ValueError(
                f"`scale` and `condition_scale` must have the sizes of the means, {tuple(mean.shape)} and "
                f"{tuple(known.shape)}; got {tuple(scale.shape)} and {tuple(spread.shape)}."
            )
        for name, value in (
            ("mean", mean),
            ("scale", scale),
            ("condition_mean", known),
            ("condition_scale", spread),
        ):
            self.register_buffer(name, value.detach().clone())

    @property
    def input_dim(self) -> int:
        """Size of the state and number of conditions."""
        return len(self.mean) + len(self.condition_mean)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of one forecast."""
        return (len(self.mean),)

    def with_diffusivity(self, diffusivity: Diffusivity | None, *, steps: int | None = None) -> Self:
        """The same network with another diffusivity, chosen after training, and number of steps.

        Args:
            diffusivity: Of the path's time, in standardised units; 0 is the flow, ``None`` the Foellmer
                process.
            steps: ``None`` keeps the number.

        Returns:
            A forecaster that shares the network.
        """
        other = copy.copy(self)
        other.diffusivity = diffusivity
        if steps is not None:
            other.times = leaving_times(steps, first=float(self.times[0]))
        return other

    def prediction(self, inputs: Tensor, noise: NoiseStream) -> Prediction:
        """What the network knows of the paths from some states, in standardised units.

        Args:
            inputs: States and conditions, shape ``(n, q + c)``.
            noise: One sample for each; it decides the blocks of evaluation, nothing is drawn.

        Returns:
            A prediction for points ``(n, q)``, with a known start.
        """
        start, given = self._standardised(inputs)
        known, dtype = torch.cat((start, given), 1).to(self.mean.dtype), self.mean.dtype

        def network(s: Tensor, x: Tensor) -> Tensor:
            times = s.to(x).expand(len(x), 1).to(dtype)
            return evaluate_in_blocks(self.drift, noise, x.to(dtype), times, known, block=_BLOCK).to(x)

        return Prediction.from_start(self.interpolant, start, Kind.DRIFT, network)

    def forward(self, inputs: Tensor, noise: NoiseStream) -> Tensor:
        """Draw a forecast from each state.

        Args:
            inputs: States and conditions, shape ``(n, q + c)``.
            noise: One sample for each.

        Returns:
            States a lag later, shape ``(n, q)``.

        Raises:
            ValueError: If shapes disagree.
            TypeError: If the inputs are no tensor.
        """
        check_conditions(inputs, noise, self.input_dim)
        start, prediction = self._standardised(inputs)[0], self.prediction(inputs, noise)
        times = self.times.to(start)
        eps = optimal_diffusivity(self.interpolant) if self.diffusivity is None else self.diffusivity
        first = leave_point(prediction, start, times[0], noise)
        end = ProbabilityDiffusion(eps)(prediction, first, times, noise)
        return (self.mean + self.scale * end).to(self.mean.dtype)

    def ensemble(self, inputs: Tensor, members: int, noise: NoiseStream) -> Tensor:
        """Several forecasts from each state.

        Args:
            inputs: States and conditions, shape ``(n, q + c)``.
            members: Of each ensemble, at least 1.
            noise: ``n * members`` samples: those of a state follow each other.

        Returns:
            Shape ``(n, members, q)``.

        Raises:
            ValueError: If the number of samples is another.
        """
        if members < 1 or len(noise) != members * len(inputs):
            raise ValueError(
                f"`noise` must hold members * n samples, {members} * {len(inputs)}; got {len(noise)}."
            )
        return self(inputs.repeat_interleave(members, 0), noise).unflatten(0, (len(inputs), members))

    def rollout(self, inputs: Tensor, lags: int, noise: NoiseStream) -> Tensor:
        """Forecasts over several lags, each from the one before; conditions stay.

        Args:
            inputs: States and conditions, shape ``(n, q + c)``.
            lags: Number of lags, at least 1.
            noise: One sample for each; every lag has its own fork.

        Returns:
            States at lags 0 to ``lags``, shape ``(n, lags + 1, q)``.

        Raises:
            ValueError: If shapes disagree or there are no lags.
        """
        if lags < 1:
            raise ValueError(f"`lags` must be at least 1; got {lags}.")
        size = len(self.mean)
        states, given = [inputs[:, :size].to(self.mean.dtype)], inputs[:, size:]
        for lag in range(lags):
            now = torch.cat((states[-1], given.to(states[-1])), 1)
            states.append(self(now, noise.fork(f"lag {lag}")))
        return torch.stack(states, 1)

    def _standardised(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """States and conditions in standardised units, in double precision."""
        size = len(self.mean)
        inputs = inputs.to(self.mean.device, torch.float64)
        start = (inputs[:, :size] - self.mean) / self.scale
        return start, (inputs[:, size:] - self.condition_mean) / self.condition_scale


def train_forecaster(
    present: Tensor,
    future: Tensor,
    *,
    conditions: Tensor | None = None,
    seed: int,
    settings: ForecastSettings | None = None,
    interpolant: TwoSided | None = None,
    checkpoint: str | Path | None = None,
    progress: bool = True,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> tuple[Forecaster, History]:
    r"""Train a forecaster from pairs of states a lag apart.

    Present and future are standardised by the mean and deviation of both together. Mini-batches, latent
    variables and times are addressed by the iteration: training is a function of data, seed and settings, and
    resumes bit for bit.

    Args:
        present: States, shape ``(n, q)``, n at least 2.
        future: States a lag later, shape ``(n, q)``.
        conditions: What else is known of each pair, shape ``(n, c)``.
        seed: Seed of everything random.
        settings: Network sizes, sampler steps and optimisation.
        interpolant: Path from the present to the future, with an amplitude that grows like the root of the
            time; ``None`` is :math:`(1 - s) x_0 + s^2 x_1 + (1 - s) \sqrt s\, z`.
        checkpoint: File that holds the state of the training; where it exists and is of this training,
            training goes on from it.
        progress: Show a bar.
        dtype: Dtype of the network.
        device: Where to train.

    Returns:
        The forecaster (moving average of the weights, frozen) and the history: lists ``iteration``, ``loss``
        and ``seconds``.

    Raises:
        ValueError: If data are unfit, or the checkpoint is unreadable or another training's.
        TypeError: If data are not floating-point tensors.
        RuntimeError: If the loss stops being finite.

    Example:
        >>> rows = NoiseStream(seed=0, start=0, stop=64).normals(2)
        >>> settings = ForecastSettings(batch=16, fit=FitSettings(iterations=2))
        >>> forecaster, _ = train_forecaster(rows, 0.5 * rows, seed=0, settings=settings, progress=False)
        >>> forecaster.ensemble(rows[:3], 4, NoiseStream(seed=1, start=0, stop=12)).shape
        torch.Size([3, 4, 2])

    References:
        Chen, Goldstein, Hua, Albergo, Boffi & Vanden-Eijnden (2024), section 3. arXiv:2403.13724
    """
    settings = ForecastSettings() if settings is None else settings
    path = TwoSided(Quadratic(), Fading()) if interpolant is None else interpolant
    data = _standardised(present, future, conditions, dtype, device)
    draw = Draws(seed, settings.batch, data.start.shape, dtype, torch.device(device))

    def loss(network: nn.Module, iteration: int) -> Tensor:
        rows, latent, s = draw(iteration)
        return matching_loss(
            lambda t, points: network(points, t, data.known[rows]),
            Kind.DRIFT,
            path,
            s,
            base=data.start[rows],
            target=data.end[rows],
            latent=latent,
            antithetic=False,
        ).mean()

    network = VelocityNetwork(
        data.start.shape[1],
        data.known.shape[1],
        width=settings.width,
        depth=settings.depth,
        seed=NoiseStream(seed, 0, 1).fork("drift").seed,
        dtype=dtype,
        device=device,
    )
    identity = {name: value for name, value in asdict(settings).items() if name not in ("fit", "steps")}
    identity |= {"seed": seed, "data": digest(present, future, conditions), "dtype": str(dtype)}
    identity |= {"interpolant": repr(path)}
    trained, history = fit(
        network,
        loss,
        settings=settings.fit,
        identity=identity,
        checkpoint=checkpoint,
        progress=progress,
        label="forecaster",
    )
    mean, scale, centre, unit = data.units
    forecaster = Forecaster(
        trained, path, mean, scale, condition_mean=centre, condition_scale=unit, steps=settings.steps
    )
    return forecaster.eval(), history


class _Data(NamedTuple):
    """Pairs in standardised units, and the units."""

    start: Tensor  # (n, q)
    end: Tensor  # (n, q)
    known: Tensor  # present states and conditions, (n, q + c)
    units: tuple[Tensor, Tensor, Tensor, Tensor]  # mean and scale of states, and of conditions


def _standardised(
    present: Tensor,
    future: Tensor,
    conditions: Tensor | None,
    dtype: torch.dtype,
    device: torch.device | str,
) -> _Data:
    """Checked pairs, standardised by the moments of present and future together."""
    first, given = check_samples(present, conditions)
    last, _ = check_samples(future)
    if first.shape != last.shape or present.ndim != 2:
        raise ValueError(
            f"`present` and `future` must have one shape (n, q); got {tuple(present.shape)} and "
            f"{tuple(future.shape)}."
        )
    both = torch.cat((first, last))
    columns = (both.mean(0), deviations(both), given.mean(0), deviations(given))
    mean, scale, centre, unit = (part.to(device=device, dtype=dtype) for part in columns)
    start, end = ((part.to(mean) - mean) / scale for part in (first, last))
    known = torch.cat((start, (given.to(mean) - centre) / unit), 1)
    return _Data(start, end, known, (mean, scale, centre, unit))
