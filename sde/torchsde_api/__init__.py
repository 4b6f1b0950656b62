"""The calling convention of torchsde over the solvers of this package.

``from sde import torchsde_api as torchsde`` runs code that is written for torchsde 0.2. Differences:

- Levy areas have the variance of the true ones.
- A Brownian motion of the same entropy is another path. The order of queries does not change it; what may is
  the step, given as ``dt`` or taken from the first solve, unless ``halfway_tree`` is set.
- Queries that miss the interval by rounding are clipped without a warning.
- The adjoint equation is solved by Heun's scheme on the steps of the forward pass, whatever its method is,
  and its gradients have no derivatives.
- Milstein's scheme with ``grad_free`` is Euler--Heun in Stratonovich equations, where the scheme that
  torchsde takes loses its order. The log-ODE scheme evaluates its bracket at the start of the step.
"""

from sde.torchsde_api.adjoint import sdeint_adjoint
from sde.torchsde_api.brownian import BaseBrownian, BrownianInterval
from sde.torchsde_api.derived import (
    BrownianPath,
    BrownianTree,
    ReverseBrownian,
    brownian_interval_like,
)
from sde.torchsde_api.integrate import sdeint
from sde.torchsde_api.objects import BaseSDE, SDEIto, SDEStratonovich

__all__ = [
    "BaseBrownian",
    "BaseSDE",
    "BrownianInterval",
    "BrownianPath",
    "BrownianTree",
    "ReverseBrownian",
    "SDEIto",
    "SDEStratonovich",
    "brownian_interval_like",
    "sdeint",
    "sdeint_adjoint",
]
