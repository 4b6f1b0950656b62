"""Networks whose weights and evaluation are addressed; checkpoints; progress."""

import math
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from sde import NoiseStream
from sde.checkpoint import load_checkpoint, save_checkpoint
from sde.networks import ema_decay, evaluate_in_blocks, perceptron, update_average
from sde.progress import Progress


def test_perceptron_weights_are_a_function_of_the_seed() -> None:
    first, again, other = (perceptron((3, 8, 2), seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first[0].weight, again[0].weight)
    assert not torch.equal(first[0].weight, other[0].weight)


def test_perceptron_weights_have_the_stated_spread() -> None:
    layer = perceptron((400, 500), seed=0, dtype=torch.float64)[0]
    bound = math.sqrt(6 / 400)
    assert bound * 0.999 < layer.weight.abs().max() <= bound
    # The variance of a uniform law on (-b, b) is b^2 / 3; 2e5 weights see a relative error of 0.3 %.
    assert abs(layer.weight.var().item() / (bound**2 / 3) - 1) < 0.02
    assert layer.bias.abs().max() <= 1 / math.sqrt(400)


def test_perceptron_with_a_zero_last_layer_is_the_zero_map() -> None:
    network = perceptron((3, 8, 2), seed=0, zero_last=True)
    assert not network(torch.ones(4, 3)).any()


def test_blocks_make_rows_independent_of_the_batch() -> None:
    network = perceptron((30, 128, 128, 7), seed=0)
    noise = NoiseStream(3, 0, 500)
    points = noise.normals(30, dtype=torch.float32)
    whole = evaluate_in_blocks(network, noise, points)
    rng = np.random.default_rng(0)
    for size in (1, 2, 63, 64, 65, 300):
        rows = torch.tensor(rng.permutation(500)[:size])
        assert torch.equal(evaluate_in_blocks(network, noise.select(rows), points[rows]), whole[rows])


def test_blocks_tell_two_rows_of_one_sample_apart() -> None:
    noise = NoiseStream(0, 0, 10).select(torch.tensor([3, 3, 5, 3]))
    points = torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    assert torch.equal(evaluate_in_blocks(lambda x: 2 * x, noise, points), 2 * points)


def test_blocks_pass_gradients() -> None:
    points = torch.ones(5, 2, requires_grad=True)
    evaluate_in_blocks(lambda x: x**2, NoiseStream(0, 60, 65), points).sum().backward()
    assert torch.equal(points.grad, torch.full((5, 2), 2.0))  # type: ignore[arg-type]


def test_average_follows_the_weights() -> None:
    mean, current = perceptron((1, 1), seed=0), perceptron((1, 1), seed=1)
    expected = 0.9 * mean[0].weight + 0.1 * current[0].weight
    update_average(mean, current, 0.9)
    torch.testing.assert_close(mean[0].weight, expected, rtol=1e-6, atol=1e-7)


def test_warm_up_of_the_average_forgets_the_start() -> None:
    decays = [ema_decay(it) for it in range(1400)]
    assert decays[0] == 0.1
    assert ema_decay(2000) == 0.995
    assert math.prod(decays) < 1e-4
    assert math.prod([0.999] * 1400) > 0.24  # what a constant decay would keep of the initial weights


@pytest.mark.parametrize("sizes", [(3,), (), (3, 0, 1)])
def test_perceptron_refuses_sizes(sizes: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"`sizes` must hold at least two widths"):
        perceptron(sizes, seed=0)


def test_checkpoint_of_a_failed_write_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    save_checkpoint(path, "test", {"seed": 1}, {"step": 1})
    with pytest.raises((AttributeError, TypeError, RuntimeError, Exception), match="pickle"):
        save_checkpoint(path, "test", {"seed": 1}, {"step": lambda: None})
    assert load_checkpoint(path, "test", {"seed": 1}) == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["state.pt"]


def test_checkpoint_with_code_inside_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    torch.save({"format": 1, "kind": "test", "identity": {}, "state": Path("x")}, path)
    with pytest.raises(
        ValueError, match=r"`checkpoint` must be a file written by a training run; .* cannot be read"
    ):
        load_checkpoint(path, "test", {})


def test_checkpoint_that_is_not_there_is_none(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path / "state.pt", "test", {}) is None


def test_checkpoint_names_a_setting_that_only_one_side_has(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    save_checkpoint(path, "test", {"seed": 1, "extra": 2}, {})
    with pytest.raises(ValueError, match=r"has extra = 2, not None"):
        load_checkpoint(path, "test", {"seed": 1})


def test_progress_writes_little_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(400, "job") as bar:
        for _ in range(400):
            bar.update(1)
            time.sleep(0.001)
    written = capsys.readouterr().err
    assert "400/400" in written
    assert written.count("\r") <= 3


def test_progress_without_tqdm_prints_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tqdm.auto", None)
    with Progress(20, "training") as bar:
        for _ in range(20):
            bar.update(1, "loss 1")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 11
    assert lines[-1].startswith("training: 20/20 in 0 s loss 1")
