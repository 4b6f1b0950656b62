"""Against torchsde itself, on one path and in law."""

import warnings

import pytest
import torch
from torch import Tensor, nn

from sde import NoiseStream
from sde import torchsde_api as torchsde
from sde.torchsde_api.settings import METHODS
from tests.sde.torchsde_api.models import BATCH, F64, TIMES, Model, allowed, state
from tests.statistics import assert_mean


class _LatentPosterior(nn.Module):
    """A posterior process that is steered by a context, against a prior: drift f, prior drift h."""

    noise_type, sde_type = "diagonal", "ito"

    def __init__(self) -> None:
        super().__init__()
        self.posterior = nn.Sequential(nn.Linear(3 + 2, 16), nn.Softplus(), nn.Linear(16, 3))
        self.prior = nn.Sequential(nn.Linear(3, 16), nn.Softplus(), nn.Linear(16, 3))
        self.scale = nn.Parameter(torch.full((3,), 0.4))
        self.context = torch.zeros(8, 2)

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        return self.posterior(torch.cat((y, self.context), -1))

    def h(self, t: Tensor, y: Tensor) -> Tensor:
        return self.prior(y)

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        return torch.sigmoid(self.scale * y) + 0.1


class _Generator(nn.Module):
    """A neural equation with general noise, drift and diffusion given together."""

    noise_type, sde_type = "general", "stratonovich"

    def __init__(self) -> None:
        super().__init__()
        self.drift = nn.Sequential(nn.Linear(1 + 4, 16), nn.SiLU(), nn.Linear(16, 4), nn.Tanh())
        self.diffusion = nn.Sequential(nn.Linear(1 + 4, 16), nn.SiLU(), nn.Linear(16, 4 * 3), nn.Tanh())

    def f_and_g(self, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        ty = torch.cat((t.expand(len(y), 1), y), 1)
        return self.drift(ty), self.diffusion(ty).view(len(y), 4, 3)


def _seeded(kind: type[nn.Module]) -> nn.Module:
    """Parameters by their number, so that both libraries see the same model."""
    with torch.random.fork_rng():
        module = kind()
    for k, parameter in enumerate(module.parameters()):
        values = NoiseStream(9, k, k + 1).normals(parameter.numel(), dtype=F64)
        parameter.data = 0.4 * values.view(parameter.shape)
    return module.double()


def _through(library: object, kind: str, bm: object, adjoint: bool) -> tuple[list[Tensor], Tensor]:
    """States, relative entropy and gradient of a model through a library."""
    way = library.sdeint_adjoint if adjoint else library.sdeint  # type: ignore[attr-defined]
    ts = torch.linspace(0, 1, 5, dtype=F64)
    if kind == "latent":
        model = _seeded(_LatentPosterior)
        context = torch.linspace(-1, 1, 16, dtype=F64).view(8, 2).requires_grad_()
        model.context = context * 1.0
        named = {"adjoint_params": (model.context, *model.parameters())} if adjoint else {}
        start = torch.ones(8, 3, dtype=F64)
        states, entropy = way(model, start, ts, bm=bm, dt=2**-7, method="milstein", logqp=True, **named)
        results, loss, inputs = [states, entropy], states.square().mean() + entropy.sum(0).mean(), context
    else:
        model = _seeded(_Generator)
        inputs = torch.ones(8, 4, dtype=F64, requires_grad=True)
        states = way(model, inputs, ts, bm=bm, dt=2**-7, method="reversible_heun")
        results, loss = [states], states[-1].sin().sum()
    bars = torch.autograd.grad(loss, (inputs, *model.parameters()))
    return [result.detach() for result in results], torch.cat([bar.flatten() for bar in bars])


@pytest.mark.parametrize("adjoint", [False, True])
@pytest.mark.parametrize("kind", ["latent", "generator"])
def test_models_agree_with_torchsde_on_one_path(kind: str, adjoint: bool) -> None:
    original = pytest.importorskip("torchsde", reason="torchsde is the oracle of this test")
    channels = 4 if kind == "latent" else 3
    outcomes = []
    for library in (torchsde, original):
        bm = original.BrownianInterval(0.0, 1.0, size=(8, channels), dtype=F64, entropy=3, dt=2**-7)
        outcomes.append(_through(library, kind, bm, adjoint))
    (ours, gradient), (theirs, reference) = outcomes
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)
    exact = kind == "generator" or not adjoint
    assert (gradient - reference).norm() < (1e-8 if exact else 1e-2) * reference.norm()


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("noise_type", ["diagonal", "scalar", "additive", "general"])
@pytest.mark.parametrize("sde_type", ["ito", "stratonovich"])
def test_methods_agree_with_torchsde_on_one_path(sde_type: str, noise_type: str, adaptive: bool) -> None:
    original = pytest.importorskip("torchsde", reason="torchsde is the oracle of this test")
    model = Model(sde_type, noise_type)
    for method in METHODS.all():
        if method == "log_ode" or not allowed(sde_type, noise_type, method, "foster"):
            continue  # the bracket of log_ode is taken at another point of the step
        results = []
        for library in (torchsde, original):
            bm = original.BrownianInterval(size=(BATCH, model.channels), dtype=F64, entropy=5, tol=1e-9,
                                           halfway_tree=True, levy_area_approximation="foster")  # fmt: skip
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                results.append(library.sdeint(model, state(), TIMES, bm=bm, dt=0.1, method=method,
                                              adaptive=adaptive, rtol=1e-2, atol=1e-2))  # fmt: skip
        torch.testing.assert_close(*results, rtol=1e-10, atol=1e-12)


class _Closed(nn.Module):
    """The problems with a closed form of Rackauckas & Nie (2017), by noise: doi:10.3934/dcdsb.2017133."""

    sde_type = "ito"

    def __init__(self, noise_type: str) -> None:
        super().__init__()
        self.noise_type = noise_type
        self.scale = nn.Parameter(torch.linspace(0.2, 0.6, 3, dtype=F64))

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        if self.noise_type == "diagonal":
            return -self.scale * y
        if self.noise_type == "scalar":
            return -(self.scale**2) * y.sin() * y.cos() ** 3
        return 0.5 / (1 + t).sqrt() - y / (2 + 2 * t)

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        if self.noise_type == "diagonal":
            return self.scale * y
        if self.noise_type == "scalar":
            return (self.scale * y.cos() ** 2).unsqueeze(-1)
        return (self.scale / (1 + t).sqrt()).unsqueeze(-1).expand(len(y), 3, 2)


def _samples(library: object, kind: str, entropy: int) -> Tensor:
    """States, and the relative entropy of the latent model, of many paths: ``(n, numbers)``."""
    n, options = 50_000, {}
    if kind == "latent":
        model, size, channels, options = _seeded(_LatentPosterior), 3, 4, {"logqp": True}
        model.context = torch.tensor([[0.5, -0.5]], dtype=F64).expand(n, 2)
    elif kind == "generator":
        model, size, channels, options = _seeded(_Generator), 4, 3, {"method": "reversible_heun"}
    else:
        model, size, channels = _Closed(kind), 3, {"diagonal": 3, "scalar": 1, "additive": 2}[kind]
    start, dt = torch.ones(n, size, dtype=F64), 0.125
    bm = library.BrownianInterval(  # type: ignore[attr-defined]
        0.0, 1.0, size=(n, channels), dtype=F64, entropy=entropy, dt=dt, levy_area_approximation="space-time"
    )
    with torch.no_grad():
        answer = library.sdeint(model, start, [0.0, 0.5, 1.0], bm=bm, dt=dt, **options)  # type: ignore[attr-defined]
    states, *others = answer if isinstance(answer, tuple) else (answer,)
    return torch.cat((*states[1:].unbind(), *(other.mT for other in others)), 1)


@pytest.mark.parametrize("kind", ["latent", "generator", "diagonal", "scalar", "additive"])
def test_statistics_are_those_of_torchsde(kind: str) -> None:
    """Means and second moments of independent samples: false alarm 1e-6, biases of 0.1 deviations seen."""
    original = pytest.importorskip("torchsde", reason="torchsde is the oracle of this test")
    ours, theirs = _samples(torchsde, kind, 11), _samples(original, kind, 12)
    centre, deviation = theirs.mean(0), theirs.std(0)
    one, other = (ours - centre) / deviation, (theirs - centre) / deviation
    assert_mean(one - other, 0.0, bias=0.1)
    assert_mean(one.clamp(-4, 4).square() - other.clamp(-4, 4).square(), 0.0, bias=0.2)
