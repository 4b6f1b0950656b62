"""Equations and Brownian motions that the tests of the convention share."""

import torch
from torch import Tensor, nn

from sde import NoiseStream
from sde import torchsde_api as torchsde

F64 = torch.float64
BATCH, STATE, NOISE = 4, 3, 2
TIMES = (0.0, 0.35, 0.5)


class Model(nn.Module):
    """A smooth equation with noise of any type."""

    def __init__(self, sde_type: str, noise_type: str) -> None:
        super().__init__()
        self.sde_type, self.noise_type = sde_type, noise_type
        self.channels = {"diagonal": STATE, "scalar": 1}.get(noise_type, NOISE)
        start = NoiseStream(2, 0, 3).normals(STATE * self.channels, dtype=F64).view(3, STATE, -1)
        self.a, self.c = nn.Parameter(0.3 * start[0]), nn.Parameter(0.3 * start[1])
        self.b = nn.Parameter(0.3 * start[2, :, 0])

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        return -self.b * y.sin() + 0.1 * t

    def h(self, t: Tensor, y: Tensor) -> Tensor:
        return -0.1 * y

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        if self.noise_type == "diagonal":
            return 0.3 + 0.2 * (self.b * y + t).cos()
        if self.noise_type == "additive":
            return (self.a * (1 + t)).expand(len(y), STATE, self.channels)
        return 0.5 * self.a + 0.3 * (self.c * y.unsqueeze(-1) + t).sin()


def state(requires_grad: bool = False) -> Tensor:
    return torch.ones(BATCH, STATE, dtype=F64, requires_grad=requires_grad)


def motion(model: Model, levy: str = "space-time", *, logqp: bool = False) -> torchsde.BrownianInterval:
    channels = model.channels + (logqp and model.noise_type == "diagonal")
    return torchsde.BrownianInterval(
        size=(BATCH, channels), dtype=F64, entropy=45678, levy_area_approximation=levy
    )


class Duck:
    """No more of a Brownian motion than solvers read."""

    levy_area_approximation = "none"

    def __init__(self, shape: tuple[int, int]) -> None:
        self.shape = shape

    def __call__(self, ta: Tensor, tb: Tensor) -> Tensor:
        assert ta.dim() == tb.dim() == 0
        return (tb - ta).sqrt() * NoiseStream(1, 0, self.shape[0]).normals(self.shape[1], dtype=F64)


def allowed(sde_type: str, noise_type: str, method: str, levy: str | None) -> bool:
    """Whether a method integrates an equation with a Brownian motion; ``None`` stands for none given."""
    calculi = {"euler": ["ito"], "srk": ["ito"], "milstein": ["ito", "stratonovich"]}
    if method == "adjoint_reversible_heun" or sde_type not in calculi.get(method, ["stratonovich"]):
        return False
    if noise_type == "general" and method in ("srk", "milstein"):
        return False
    needed = {"srk": ("space-time", "davie", "foster"), "log_ode": ("davie", "foster")}
    return levy is None or levy in needed.get(method, (levy,))
