"""States between instants: the conditional law, consistent between questions."""

import pytest
import torch

from sde import SDE, DensePaths, NoiseStream, NoiseStructure, solve
from tests.statistics import assert_mean

_F64 = torch.float64
_TIMES = torch.linspace(0, 1, 5, dtype=_F64)
_AT = torch.tensor([0.05, 0.2, 0.25, 0.6, 0.7, 1.0], dtype=_F64)


def _dense(sde: SDE, n: int, d: int = 1) -> DensePaths:
    noise = NoiseStream(7, 0, n)
    paths = solve(sde, torch.zeros(n, d, dtype=_F64), _TIMES, noise, substeps=2)
    return DensePaths(sde, _TIMES, paths, noise)


def test_brownian_motion_between_instants_is_brownian_motion() -> None:
    n = 100_000
    dense = _dense(SDE(lambda t, x: 0 * x, lambda t, x: torch.ones_like(x)), n)
    drawn = dense.sample(_AT)[:, :, 0]
    products = drawn.unsqueeze(2) * drawn.unsqueeze(1)
    assert_mean(products, torch.minimum(_AT[:, None], _AT[None, :]), bias=0.06)
    gaps = drawn - dense.mean(_AT)[:, :, 0]
    between = [0, 1, 3, 4]
    assert_mean(gaps[:, between].square(), dense.variance(_AT)[0, between, 0], bias=0.02)
    ends = dense.states[:, :, 0]
    products = gaps[:, between].unsqueeze(2) * ends[:, 1:].unsqueeze(1)
    assert_mean(products, 0.0, bias=0.02)  # independent of the states


def test_draws_meet_the_states_and_do_not_depend_on_the_question() -> None:
    sde = SDE(
        lambda t, x: -x,
        lambda t, x: torch.stack((x.cos(), 0.3 * torch.ones_like(x), x), -1),
        NoiseStructure.GENERAL,
        noise_dim=3,
    )
    dense = _dense(sde, 6, 2)
    torch.testing.assert_close(dense.sample(_TIMES), dense.states)
    torch.testing.assert_close(dense.mean(_TIMES), dense.states)
    assert not dense.variance(_TIMES).any()
    together = dense.sample(_AT.flip(0)).flip(1)
    assert together.shape == (6, 6, 2)
    torch.testing.assert_close(dense.sample(_AT[3:4]), together[:, 3:4])
    part = DensePaths(sde, _TIMES, dense.states[2:4], NoiseStream(7, 2, 4))
    torch.testing.assert_close(part.sample(_AT), together[2:4])


def test_matrix_noise_has_the_variance_of_its_rows() -> None:
    matrix = torch.tensor([[1.0, 0.5], [0.0, 2.0]], dtype=_F64)
    sde = SDE(lambda t, x: 0 * x, lambda t, x: matrix.unsqueeze(0), NoiseStructure.ADDITIVE, noise_dim=2)
    dense = _dense(sde, 50_000, 2)
    at = torch.tensor([0.1], dtype=_F64)
    exact = 0.1 * 0.15 / 0.25 * torch.tensor([1.25, 4.0], dtype=_F64)
    torch.testing.assert_close(dense.variance(at)[0, 0], exact)
    gap = (dense.sample(at) - dense.mean(at))[:, 0]
    covariance = 0.1 * 0.15 / 0.25 * (matrix @ matrix.T)
    assert_mean(gap.unsqueeze(2) * gap.unsqueeze(1), covariance, bias=0.03)


def test_wrong_questions_are_refused() -> None:
    dense = _dense(SDE(lambda t, x: -x, lambda t, x: torch.ones_like(x)), 3)
    with pytest.raises(ValueError, match=r"`at` must lie in \[0, 1\]; got 0.5 to 1.5"):
        dense.mean(torch.tensor([0.5, 1.5]))
    with pytest.raises(ValueError, match="`states` must have shape"):
        DensePaths(dense.sde, _TIMES, dense.states[:, :3], dense.noise)
    with pytest.raises(ValueError, match="`noise` must hold 3 samples"):
        DensePaths(dense.sde, _TIMES, dense.states, NoiseStream(0, 0, 4))
