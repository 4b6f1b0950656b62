"""Training that is killed again and again ends at the same weights, by the same losses."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.check import Figure, at_least, equal, main
from sde.noise import NoiseStream

__all__ = ["SECTIONS", "killed", "killed_training"]

ROOT = Path(__file__).parent.parent
_KILLS = 10
_LONGEST = 0.6  # seconds that a training lives before it is killed, at most


def killed(name: str, kills: int) -> Iterator[Figure]:
    """A training of :mod:`benchmarks.training_run` with and without kills, and with another seed."""
    with tempfile.TemporaryDirectory() as folder:
        whole = _finish(_start(name, 0, Path(folder, "whole.pt")))
        other = _finish(_start(name, 1, Path(folder, "other.pt")))
        landed = _kill(name, Path(folder, "broken.pt"), kills)
        broken = _finish(_start(name, 0, Path(folder, "broken.pt")))
    yield at_least(f"{name}: SIGKILLs that hit the running training", landed, kills)
    detail = "of weights and losses"
    yield equal(f"{name}: digest after them", broken[:16], whole[:16], detail)
    yield at_least(f"{name}: another seed gives another (1 yes)", float(other != whole), 1)


def killed_training(smoke: bool) -> Iterator[Figure]:
    """WGAN-GP and flow matching, killed at random times."""
    for name in ("WGAN-GP", "flow matching"):
        yield from killed(name, 2 if smoke else _KILLS)


def _kill(name: str, checkpoint: Path, kills: int) -> int:
    """Start and kill a training at random times; how many kills found it running."""
    delays = NoiseStream(seed=5, start=0, stop=1).fork(name).uniforms(kills)[0] * _LONGEST
    landed = 0
    for delay in delays.tolist():
        process = _start(name, 0, checkpoint)
        time.sleep(delay)
        landed += process.poll() is None
        process.kill()
        process.communicate()
    return landed


def _start(name: str, seed: int, checkpoint: Path) -> subprocess.Popen[str]:
    """A training in a process of its own, past its imports."""
    command = [sys.executable, "-m", "benchmarks.training_run", "--training", name, "--seed", str(seed)]
    process = subprocess.Popen(
        [*command, "--checkpoint", str(checkpoint)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None  # of the pipe above
    if process.stdout.readline().strip() != "ready":
        raise RuntimeError(f"The training of {name} did not start; see its message above.")
    return process


def _finish(process: subprocess.Popen[str]) -> str:
    """Wait for a training and read the digest of its weights."""
    output, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(
            f"The training ended with exit status {process.returncode}; see its message above."
        )
    return output.split()[-1]


SECTIONS = [killed_training]

if __name__ == "__main__":
    raise SystemExit(main("training", SECTIONS))
