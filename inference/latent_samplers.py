"""Samples and predictions of latent equations: from the prior, and from the posterior of a series."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor

from inference.latent_sde import LatentSDE
from inference.likelihoods import Likelihood
from inference.series import Series
from sde.networks import evaluate_in_blocks
from sde.noise import NoiseStream, Purpose
from sde.samples import check_conditions

__all__ = ["PosteriorSampler", "Prediction", "PriorSampler", "predict", "summarise"]


class Prediction(NamedTuple):
    """What observations at some instants would be."""

    mean: Tensor  #: shape ``(B, T, p)``
    lower: Tensor  #: lower end of the interval, noise of the observations included
    upper: Tensor  #: upper end


@torch.no_grad()
def predict(
    model: LatentSDE,
    series: Series,
    times: Tensor,
    noise: NoiseStream,
    *,
    paths: int = 100,
    coverage: float = 0.9,
) -> Prediction:
    """Impute what is missing and forecast what is to come, with intervals.

    Args:
        model: The latent equation.
        series: What was observed, ``B`` series.
        times: Increasing instants of the prediction, none before the first of the series, shape ``(T,)``.
        noise: ``B * paths`` samples.
        paths: Posterior paths of each series.
        coverage: Probability of the intervals, in (0, 1).

    Returns:
        Means and central intervals of new observations at ``times``.

    Raises:
        ValueError: If an instant lies before the series, ``coverage`` is out of range, or as
            :meth:`LatentSDE.posterior`.

    Example:
        >>> from inference.latent_sde import latent_sde
        >>> model = latent_sde(2, 3, max_step=0.1, seed=0)
        >>> series = Series(torch.tensor([0.0, 0.3, 1.0]), torch.zeros(4, 3, 2))
        >>> predict(model, series, torch.tensor([0.5, 1.5]), NoiseStream(0, 0, 40), paths=10).upper.shape
        torch.Size([4, 2, 2])
    """
    grid, index = _with_observed(series, times)
    states = model.posterior(series, noise, paths=paths, times=grid).measure.paths[:, index]
    return summarise(model, states, noise, paths=paths, coverage=coverage)


@torch.no_grad()
def summarise(
    model: LatentSDE, states: Tensor, noise: NoiseStream, *, paths: int, coverage: float = 0.9
) -> Prediction:
    """Means and intervals of the observations of states, however these were drawn.

    Args:
        model: Decoder and likelihood.
        states: Those of a series follow one another, shape ``(B * paths, T, state_dim)``.
        noise: ``B * paths`` samples, for the noise of the observations.
        paths: Samples of each series.
        coverage: Probability of the intervals, in (0, 1).

    Returns:
        Means and central intervals of new observations.

    Raises:
        ValueError: If ``coverage`` is out of range.
    """
    if not 0 < coverage < 1:
        raise ValueError(f"`coverage` must lie in (0, 1); got {coverage}.")
    raw, law = model.decode(states), cast(Likelihood, model.likelihood)
    drawn = law.quantile(raw, _levels(model, noise, *raw.shape[1:]))
    tail = (1 - coverage) / 2
    levels = torch.tensor([tail, 1 - tail], dtype=raw.dtype, device=raw.device)
    lower, upper = drawn.unflatten(0, (-1, paths)).quantile(levels, 1)
    return Prediction(law.mean(raw).unflatten(0, (-1, paths)).mean(1), lower, upper)


def _with_observed(series: Series, times: Tensor) -> tuple[Tensor, Tensor]:
    """The instants with those observed before the last, and where the former are among them."""
    observed = series.times.to(times)
    if float(times.min()) < float(observed[0]):
        raise ValueError(f"`times` must not lie before {float(observed[0])}; got {float(times.min())}.")
    # A solve needs a second instant, even for a prediction at the first alone.
    grid = torch.cat((observed[observed <= times.max()], observed[:2], times)).unique()
    return grid, torch.searchsorted(grid, times)


def _levels(model: LatentSDE, noise: NoiseStream, instants: int, components: int) -> Tensor:
    """Uniforms that make observations, shape ``(n, T, p)``."""
    like = model.dynamics.initial_mean
    return noise.uniforms(
        instants, purpose=Purpose.OBSERVATION, channels=components, dtype=like.dtype, device=like.device
    )


@dataclass(frozen=True, slots=True, eq=False)
class PriorSampler:
    """Series from the prior, as a model of uncertainty quantification: no inputs, addressed noise.

    Row ``i`` of a call is a function of the seed and of sample ``i`` alone, to the bit, whatever the batch.

    Args:
        model: The latent equation.
        times: Increasing instants, at least 2; the process starts at the first.
        components: Number ``p`` of observed components.

    Example:
        >>> from inference.latent_sde import latent_sde
        >>> sampler = PriorSampler(latent_sde(2, 3, max_step=0.1, seed=0), torch.tensor([0.0, 1.0]), 2)
        >>> sampler(torch.zeros(5, 0), NoiseStream(0, 0, 5)).shape
        torch.Size([5, 2, 2])
    """

    model: LatentSDE
    times: Tensor
    components: int

    @property
    def input_dim(self) -> int:
        """No inputs."""
        return 0

    @property
    def output_shape(self) -> tuple[int, ...]:
        """``(T, p)``."""
        return len(self.times), self.components

    @torch.no_grad()
    def __call__(self, inputs: Tensor, noise: NoiseStream) -> Tensor:
        """Draw observations, shape ``(n, T, p)``."""
        check_conditions(inputs, noise, 0)
        model = self.model

        def states(normals: Tensor, drive: tuple[Tensor, ...]) -> Tensor:
            return model.prior(normals, self.times, drive)

        return _observe(model, noise, self.times, slice(None), self.output_shape, states)


@dataclass(frozen=True, slots=True, eq=False)
class PosteriorSampler:
    """New observations given a series, as a model of uncertainty quantification.

    Rows are addressed as those of :class:`PriorSampler`.

    Args:
        model: The latent equation.
        series: One series.
        times: Increasing instants, none before the first of the series.

    Raises:
        ValueError: If ``series`` holds more than one, or an instant lies before it.
    """

    model: LatentSDE
    series: Series
    times: Tensor

    def __post_init__(self) -> None:
        if len(self.series) != 1:
            raise ValueError(f"`series` must be one series; got {len(self.series)}.")
        _with_observed(self.series, self.times)

    @property
    def input_dim(self) -> int:
        """No inputs."""
        return 0

    @property
    def output_shape(self) -> tuple[int, ...]:
        """``(T, p)``."""
        return len(self.times), self.series.values.shape[-1]

    @torch.no_grad()
    def __call__(self, inputs: Tensor, noise: NoiseStream) -> Tensor:
        """Draw observations, shape ``(n, T, p)``."""
        check_conditions(inputs, noise, 0)
        model = self.model
        grid, index = _with_observed(self.series, self.times)
        context = model.encoder(self.series)

        def states(normals: Tensor, drive: tuple[Tensor, ...]) -> Tensor:
            return model.posterior_given(context, self.series, normals, drive, grid).measure.paths

        return _observe(model, noise, grid, index, self.output_shape, states)


def _observe(
    model: LatentSDE,
    noise: NoiseStream,
    grid: Tensor,
    index: Tensor | slice,
    shape: tuple[int, ...],
    states: Callable[[Tensor, tuple[Tensor, ...]], Tensor],
) -> Tensor:
    """Observations of paths that are made in blocks of rows, so that no row depends on its neighbours."""
    law, parts = cast(Likelihood, model.likelihood), model.dynamics.draw(noise, grid)

    def block(normals: Tensor, levels: Tensor, *drive: Tensor) -> Tensor:
        raw = model.decode(states(normals, drive)[:, index])
        return law.quantile(raw, levels)

    return evaluate_in_blocks(block, noise, model.codes(noise), _levels(model, noise, *shape), *parts)
