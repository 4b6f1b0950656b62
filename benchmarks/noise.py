"""The counter generator: known answers, equality of implementations, and time beside ``torch.randn``."""

from collections.abc import Callable, Iterator

import torch
from scipy import stats
from torch import Tensor
from torch.utils.benchmark import Timer

from benchmarks.check import Figure, Section, at_least, at_most, equal, main, reported
from sde import NoiseStream
from sde.noise import backend, cpp, philox
from sde.noise.philox import Address, Kind

__all__ = ["SECTIONS", "equality", "known_answers", "laws", "speed"]

# Random123, known-answer file: counter, key, rounds, words
_ANSWERS = (
    ((0, 0, 0, 0), (0, 0), 10, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, 10, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        10,
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
    ((0, 0, 0, 0), (0, 0), 7, "5f6fb709 0d893f64 4f121f81 4f730a48"),
)


def _reference(counter: tuple[int, int, int, int], key: tuple[int, int], rounds: int) -> tuple[int, ...]:
    c0, c1, c2, c3 = (torch.tensor(word) for word in counter)
    return tuple(int(word) for word in philox.philox4x32((c0, c1, c2, c3), key, rounds))


def known_answers(smoke: bool) -> Iterator[Figure]:
    """The published words, by every implementation of this machine."""
    implementations: dict[str, Callable[..., tuple[int, ...]]] = {"PyTorch": _reference}
    if cpp.load().handle is not None:
        implementations["C++"] = cpp.philox4x32
    if torch.cuda.is_available():
        from sde.noise import triton_kernel

        implementations["Triton"] = triton_kernel.philox4x32
    for name, philox4x32 in implementations.items():
        right = sum(" ".join(f"{w:08x}" for w in philox4x32(c, k, r)) == words for c, k, r, words in _ANSWERS)
        yield equal(f"known answers, {name}", right, len(_ANSWERS))
    yield reported("implementation in use on the CPU", backend().name, backend().reason)


def equality(smoke: bool) -> Iterator[Figure]:
    """Words bit-equal over batches, permutations and shards; normals of the implementations."""
    noise = NoiseStream(seed=11, start=0, stop=8192)
    words = noise.words(64)
    for size in (1, 7, 4096, 2048):
        joined = torch.cat([noise[a : a + size].words(64) for a in range(0, 8192, size)])
        shards = " (4 shards)" if size == 2048 else ""
        yield equal(f"words in batches of {size}{shards}", torch.equal(joined, words), True)
    for size in (1, 4, 32):
        joined = torch.cat([noise.words(size, first=k) for k in range(0, 64, size)], 1)
        yield equal(f"words in chunks of {size} elements", torch.equal(joined, words), True)
    order = torch.argsort(noise.words(1).flatten())
    yield equal("words of permuted ids", torch.equal(noise.select(order).words(64), words[order]), True)
    yield _compiled()
    address = Address(seed=5, start=10**12, num_samples=1000, purpose=0, first=3, count=33, channels=3)
    if cpp.load().handle is None:
        return
    for dtype in (torch.float32, torch.float64):
        for kind, limit in ((Kind.UNIFORMS, 0.0), (Kind.NORMALS, 2e-6)):
            ours, exact = (_filled(fill, kind, address, dtype) for fill in (cpp.fill, philox.fill))
            gap = float((ours - exact).abs().max())
            yield at_most(f"{kind.name.lower()} of C++ against PyTorch, {dtype}", gap, limit)


def _compiled() -> Figure:
    """Words of the generator under ``torch.compile``."""
    counter = tuple(NoiseStream(k, 0, 1).words(4099)[0] for k in range(4))

    def generate(*words: Tensor) -> Tensor:
        return torch.stack(philox.philox4x32(words, (0xA4093822, 0x299F31D0)))  # type: ignore[arg-type]

    name = "words of the compiled generator equal those of the eager one"
    try:
        compiled = torch.compile(generate, dynamic=False)(*counter)
    except Exception as error:  # without a compiler, or the headers of Python
        return reported(name, f"not compiled: {type(error).__name__}")
    return equal(name, torch.equal(compiled, generate(*counter)), True)


def _filled(fill: Callable[..., None], kind: Kind, address: Address, dtype: torch.dtype) -> Tensor:
    out = torch.empty(address.num_samples, address.count, address.channels, dtype=dtype)
    fill(kind, address, out)
    return out


def laws(smoke: bool) -> Iterator[Figure]:
    """Moments of many normals and the Kolmogorov-Smirnov test of some."""
    chunks, size = (4 if smoke else 25), 1_000_000
    sums = torch.zeros(3, dtype=torch.float64)
    for chunk in range(chunks):
        z = NoiseStream(2, chunk * size, (chunk + 1) * size).normals(4, dtype=torch.float32).double()
        sums += torch.stack([z.sum(), z.square().sum(), z.pow(4).sum()])
    count = 4 * chunks * size
    mean, square, fourth = (float(value) for value in sums / count)
    detail = f"{count:.0e} draws"
    # Bars for 1e8 draws; five standard errors where there are fewer.
    mean_bar, variance_bar, kurtosis_bar = (
        (5 / count**0.5, 5 * (2 / count) ** 0.5, 5 * (24 / count) ** 0.5) if smoke else (3e-4, 5e-4, 3e-3)
    )
    yield at_most("|mean|", abs(mean), mean_bar, detail)
    yield at_most("|variance - 1|", abs(square - 1), variance_bar, detail)
    yield at_most("|kurtosis - 3|", abs(fourth / square**2 - 3), kurtosis_bar, detail)
    p_value = stats.kstest(NoiseStream(3, 0, 1_000_000).normals(1)[:, 0].numpy(), "norm").pvalue
    yield at_least("Kolmogorov-Smirnov p-value, 1e6 draws", float(p_value), 1e-6)


def speed(smoke: bool) -> Iterator[Figure]:
    """Time per normal over that of ``torch.randn``, in one run."""
    seconds = 0.2 if smoke else 2.0
    for threads in (1, 2):
        for dtype, bar in ((torch.float32, 1.0), (torch.float64, 1.0)):
            for n, count in ((65536, 32), (1000, 1000)):
                noise = NoiseStream(1, 0, n)
                ours = _median(lambda s=noise, k=count, d=dtype: s.normals(k, dtype=d), threads, seconds)
                theirs = _median(lambda a=n, k=count, d=dtype: torch.randn(a, k, dtype=d), threads, seconds)
                per = 1e9 / (n * count)
                detail = f"{ours * per:.2f} ns against {theirs * per:.2f} ns per normal"
                name = f"{dtype}, {n} x {count}, {threads} thread{'s' * (threads > 1)}"
                yield at_most(f"time over that of torch.randn: {name}", ours / theirs, bar, detail)


def _median(run: Callable[[], Tensor], threads: int, seconds: float) -> float:
    """Median time of a call [s]."""
    timer = Timer("run()", globals={"run": run}, num_threads=threads)
    return timer.blocked_autorange(min_run_time=seconds).median


SECTIONS: list[Section] = [known_answers, equality, laws, speed]

if __name__ == "__main__":
    raise SystemExit(main("noise", SECTIONS))
