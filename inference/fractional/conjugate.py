r"""Simulation-free inference with fractional noise, for likelihoods of any form.

The posterior is the prior given *pseudo-observations*: Gaussian ones with values and deviations to be
learned. Its moments at the observed instants come from a filter over these instants alone, with exact
transitions between them, and its divergence from the prior in closed form,

.. math:: \mathrm{KL}(q \,\|\, p) = \sum_i \mathbb E_q \log \mathcal N(\tilde o_i; X_{t_i}, \tilde\sigma_i^2)
          - \log \tilde p(\tilde o),

so that a step of training costs the number of observations, whatever the number of time steps, and the bound
has no error of discretisation and no sampling noise. It moves the noise of the prior only: the divergence is
finite although the noise has rank one. For Gaussian likelihoods the best posterior of this form is exact.

References:
    Khan & Lin (2017), Conjugate-computation variational inference. arXiv:1703.04265
    Opper & Archambeau (2009), The variational Gaussian approximation revisited.
    doi:10.1162/neco.2008.08-07-592
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from inference.fractional.chain import GaussianChain, Observations
from inference.fractional.evidence import Smoothed, smoothed
from inference.fractional.guide import GuidedPosterior
from sde.noise.stream import NoiseStream

__all__ = ["ConjugatePosterior", "LogLikelihood"]

LogLikelihood = Callable[[Tensor], Tensor]
"""The process at the observed instants, ``(..., M)``, to log densities of the data, of the same shape."""


class ConjugatePosterior:
    """The prior given pseudo-observations.

    Args:
        chain: The prior.
        pseudo: Values, one series or several, and deviations: tensors that are learned, or outputs of an
            encoder.
        quadrature: Points of the Gauss--Hermite rule for expected likelihoods, at least 1.

    Example:
        >>> from sde.noise import MarkovFBM
        >>> from inference.fractional.chain import fractional_chain
        >>> model = MarkovFBM(0.7, K=5, type="II", grid="paper", normalize="kernel")
        >>> chain = fractional_chain(model, torch.tensor([0.0, 0.3, 1.0]))
        >>> seen = Observations([1, 2], torch.tensor([0.4, 0.7]), 0.1)
        >>> gaussian = lambda x: seen.log_density(1, x[..., :1]) * torch.tensor([1.0, 0.0]) + (
        ...     seen.log_density(2, x[..., 1:]) * torch.tensor([0.0, 1.0]))
        >>> from inference.fractional.evidence import log_evidence
        >>> bound = ConjugatePosterior(chain, seen).bound(gaussian)
        >>> torch.allclose(bound, log_evidence(chain, seen))
        True
    """

    def __init__(self, chain: GaussianChain, pseudo: Observations, *, quadrature: int = 20) -> None:
        if quadrature < 1:
            raise ValueError(f"`quadrature` must be at least 1; got {quadrature}.")
        self.chain, self.pseudo = chain, pseudo
        self.moments: Smoothed = smoothed(chain, pseudo)
        nodes, weights = np.polynomial.hermite_e.hermegauss(quadrature)
        self._nodes = torch.from_numpy(nodes)
        self._weights = torch.from_numpy(weights / math.sqrt(2 * math.pi))

    @property
    def mean(self) -> Tensor:
        """Means of the process at the pseudo-observed instants, shape ``(B, M)``."""
        return self.moments.mean[:, list(self.pseudo.steps)]

    @property
    def deviation(self) -> Tensor:
        """Standard deviations there, shape ``(M,)``."""
        return self.moments.variance[list(self.pseudo.steps)].clamp(min=1e-300).sqrt()

    def expected(self, log_likelihood: LogLikelihood) -> Tensor:
        """Expected log likelihood of every series, by quadrature, shape ``(B,)``."""
        nodes = self._nodes.view(-1, 1, 1)
        values = log_likelihood(self.mean + self.deviation * nodes)
        return (self._weights.view(-1, 1, 1) * values).sum(0).sum(-1)

    def divergence(self) -> Tensor:
        """Divergence of the posterior from the prior, in closed form, shape ``(B,)``."""
        variance = torch.as_tensor(self.pseudo.deviation, dtype=torch.float64).square()
        gaps = self.pseudo.values.double().reshape(-1, len(self.pseudo.steps)) - self.mean
        squares = (gaps.square() + self.deviation.square()) / variance
        agreement = -0.5 * (squares + torch.log(2 * math.pi * variance)).sum(-1)
        return agreement - self.moments.log_evidence

    def bound(self, log_likelihood: LogLikelihood) -> Tensor:
        """Evidence lower bound of every series, shape ``(B,)``; a number, not an estimate."""
        return self.expected(log_likelihood) - self.divergence()

    def weighted_bound(self, log_likelihood: LogLikelihood, noise: NoiseStream, *, series: int = 0) -> Tensor:
        """Importance-weighted bound of one series from posterior paths, 0-d: the evidence in the limit.

        Args:
            log_likelihood: As for :meth:`bound`.
            noise: One sample for each path.
            series: Which series.
        """
        paths = GuidedPosterior(self.chain, self.pseudo).sample(noise, series=series)
        process = self.chain.process(paths.states)[:, list(self.pseudo.steps)]
        pseudo = sum(
            (self._one(series).log_density(n, process[:, k]) for k, n in enumerate(self.pseudo.steps)),
            start=torch.zeros(len(process), dtype=torch.float64),
        )
        log_weights = paths.log_weights - pseudo + log_likelihood(process).sum(-1)
        return log_weights.logsumexp(0) - math.log(len(process))

    def _one(self, series: int) -> Observations:
        """The pseudo-observations of one series."""
        values = self.pseudo.values.reshape(-1, len(self.pseudo.steps))[series]
        return Observations(self.pseudo.steps, values, self.pseudo.deviation)
