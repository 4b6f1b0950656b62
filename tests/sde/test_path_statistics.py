"""Statistics in the loop are those of the kept paths."""

import pytest
import torch

from sde import SDE, BrownianTree, NoiseStream, solve, solve_statistics

_F64 = torch.float64
_TIMES = torch.linspace(0, 1, 4, dtype=_F64)
_OU = SDE(lambda t, x: -x, lambda t, x: 0.5 + 0.1 * x.cos())


@pytest.mark.parametrize("tree", [False, True])
def test_statistics_are_those_of_the_paths(tree: bool) -> None:
    stream, start = NoiseStream(1, 5, 1005), torch.tensor([[0.0, 1.0, 2.0]], dtype=_F64)
    noise = BrownianTree(stream, 0.0, 1.0) if tree else stream
    edges = torch.linspace(-1, 2, 31, dtype=_F64)
    done = solve_statistics(_OU, start, _TIMES, noise, histogram=edges, batch=300, substeps=3)
    paths = solve(_OU, start.expand(1000, 1, 3), _TIMES, noise, substeps=3)
    torch.testing.assert_close(done.mean, paths.mean(0))
    torch.testing.assert_close(done.variance[1:], paths.var(0)[1:])
    assert done.count == 1000
    assert torch.equal(done.minimum, paths.amin(0))
    assert torch.equal(done.maximum, paths.amax(0))
    assert done.histogram is not None
    assert done.histogram.shape == (4, 1, 3, 32)
    for k in (1, 3):
        for component in range(3):
            values = paths[:, k, 0, component]
            counts = torch.histogram(values, edges)[0]
            assert torch.equal(done.histogram[k, 0, component, 1:-1].double(), counts)
            assert int(done.histogram[k, 0, component, 0]) == int((values < edges[0]).sum())
    assert (done.histogram.sum(-1) == 1000).all()
    torch.testing.assert_close(done.standard_error, (paths.var(0) / 1000).sqrt())
    for probability in (0.1, 0.5, 0.9):
        inside = done.quantile(probability)[1:, 0, 0]
        assert (inside - torch.quantile(paths[:, 1:, 0, 0], probability, dim=0)).abs().max() < 0.1
    assert float((done.density[3, 0, 1] * edges.diff()).sum()) == pytest.approx(1.0, abs=0.05)


def test_initial_states_may_be_random() -> None:
    def initial(noise: NoiseStream) -> torch.Tensor:
        return noise.normals(2, dtype=_F64)

    noise = NoiseStream(2, 0, 500)
    done = solve_statistics(_OU, initial, _TIMES, noise, batch=64)
    paths = solve(_OU, initial(noise), _TIMES, noise)
    torch.testing.assert_close(done.mean, paths.mean(0))
    torch.testing.assert_close(done.variance, paths.var(0))


def test_wrong_statistics_are_refused() -> None:
    noise, start = NoiseStream(0, 0, 4), torch.zeros(1)
    with pytest.raises(ValueError, match="`histogram` must be at least 2 increasing edges"):
        solve_statistics(_OU, start, _TIMES, noise, histogram=torch.tensor([1.0, 0.0]))
    with pytest.raises(ValueError, match="`noise` must hold at least 2 samples"):
        solve_statistics(_OU, start, _TIMES, noise[:1])
    with pytest.raises(ValueError, match="`batch` must be"):
        solve_statistics(_OU, start, _TIMES, noise, batch=0)
    with pytest.raises(ValueError, match="`histogram` must have been given"):
        solve_statistics(_OU, start, _TIMES, noise).quantile(0.5)
    with pytest.raises(RuntimeError, match="4 of 4 paths of a batch diverged"):
        solve_statistics(SDE(lambda t, x: 1e9 * x**3, lambda t, x: x), start + 1, _TIMES, noise, substeps=9)
