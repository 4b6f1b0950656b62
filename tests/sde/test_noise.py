"""Addressed noise: known answers, equality of all implementations, laws, refusals."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from scipy import stats
from torch import Tensor

from sde import NoiseStream, Purpose
from sde.noise import cpp, philox
from sde.noise.philox import Address, Kind
from tests.statistics import assert_mean

# Random123, known-answer file: counter, key, rounds, words
_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), 10, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, 10, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        10,
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
    ((0, 0, 0, 0), (0, 0), 7, "5f6fb709 0d893f64 4f121f81 4f730a48"),
]
needs_compiler = pytest.mark.skipif(cpp.load().handle is None, reason="no C++ compiler is installed")


def _reference(counter: tuple[int, ...], key: tuple[int, int], rounds: int) -> tuple[int, ...]:
    c0, c1, c2, c3 = (torch.tensor(word) for word in counter)
    return tuple(int(word) for word in philox.philox4x32((c0, c1, c2, c3), key, rounds))


@pytest.mark.parametrize(("counter", "key", "rounds", "words"), _ANSWERS)
@pytest.mark.parametrize(
    "implementation",
    [pytest.param(_reference, id="pytorch"), pytest.param(cpp.philox4x32, id="cpp", marks=needs_compiler)],
)
def test_generator_gives_the_published_words(
    implementation: Callable[..., tuple[int, ...]],
    counter: tuple[int, int, int, int],
    key: tuple[int, int],
    rounds: int,
    words: str,
) -> None:
    assert " ".join(f"{word:08x}" for word in implementation(counter, key, rounds)) == words


def _fill(fill: Callable[..., None], kind: Kind, address: Address, dtype: torch.dtype) -> Tensor:
    out = torch.empty(address.num_samples, address.count, address.channels, dtype=dtype)
    fill(kind, address, out)
    return out


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("first", [0, 3, 4, 1001])
@pytest.mark.parametrize(("count", "channels"), [(1, 1), (7, 3), (33, 1), (5, 8)])
def test_kernel_equals_reference(dtype: torch.dtype, first: int, count: int, channels: int) -> None:
    ids = torch.tensor([0, 5, 2**40 + 3, 123_456_789, 2**62])
    cells = torch.tensor([4, 0, 2**31, 7, 12345])
    for chosen, own in ((None, None), (ids, None), (None, cells), (ids, cells)):
        address = Address(2**63 + 17, 9_999_999_999, 5, 3, first, count, channels, ids=chosen, cells=own)
        for kind, limit in ((Kind.WORDS, 0.0), (Kind.UNIFORMS, 0.0), (Kind.NORMALS, 2e-6)):
            kept = torch.int64 if kind is Kind.WORDS else dtype
            ours, exact = (_fill(fill, kind, address, kept) for fill in (cpp.fill, philox.fill))
            gap = float((ours.double() - exact.double()).abs().max())
            assert gap <= (1e-14 if dtype == torch.float64 and limit else limit), kind


_INTERPRETED = """
import torch
from sde.noise import philox, triton_kernel
from sde.noise.philox import Address, Kind
counter, key = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0)
words = triton_kernel.philox4x32(counter, key, device="cpu")
assert " ".join(f"{w:08x}" for w in words) == "d16cfe09 94fdcceb 5001e420 24126ea1", words
for dtype in (torch.float32, torch.float64):
    for cells in (None, torch.tensor([4, 0, 2**31, 7, 12345, 1])):
        address = Address(2**63 + 17, 9_999_999_999, 6, 3, 3, 9, 2, cells=cells)
        for kind, limit in ((Kind.WORDS, 0.0), (Kind.UNIFORMS, 0.0), (Kind.NORMALS, 2e-6)):
            parts = []
            for fill in (triton_kernel.fill, philox.fill):
                out = torch.empty(6, 9, 2, dtype=torch.int64 if kind is Kind.WORDS else dtype)
                fill(kind, address, out)
                parts.append(out.double())
            assert float((parts[0] - parts[1]).abs().max()) <= limit, (dtype, kind)
print("equal")
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_triton_kernel_equals_reference_in_the_interpreter() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", _INTERPRETED], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "equal", done.stderr[-2000:]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gpu_gives_the_numbers_of_the_cpu(dtype: torch.dtype) -> None:
    noise = NoiseStream(5, 10**12, 10**12 + 4096)
    here, there = (noise.normals(37, channels=3, dtype=dtype, device=d) for d in ("cpu", "cuda"))
    assert torch.equal(noise.words(37), noise.words(37, device="cuda").cpu())
    assert float((here - there.cpu()).abs().max()) < 2e-6


def test_sample_is_the_same_in_every_batch_order_shard_and_chunk() -> None:
    whole = NoiseStream(11, 0, 4096)
    for draw in (NoiseStream.words, NoiseStream.normals, NoiseStream.uniforms):
        full = draw(whole, 12)
        for size in (1, 7, 1024):  # batches and, with 1024, four shards
            parts = [draw(whole[a : a + size], 12) for a in range(0, 4096 if size == 1024 else 70, size)]
            joined = torch.cat(parts)
            assert torch.equal(joined, full[: len(joined)])
        order = torch.argsort(draw(whole, 1).flatten().double())
        assert torch.equal(draw(whole.select(order), 12), full[order])
        chunks = [draw(whole, 1, first=0), draw(whole, 4, first=1), draw(whole, 7, first=5)]
        assert torch.equal(torch.cat(chunks, 1), full)


def test_float64_refines_float32() -> None:
    noise = NoiseStream(3, 0, 50_000)
    gap = (noise.uniforms(4, dtype=torch.float64) - noise.uniforms(4, dtype=torch.float32)).abs().max()
    assert float(gap) <= 2.0**-23
    fine, coarse = (noise.normals(4, dtype=dtype) for dtype in (torch.float64, torch.float32))
    assert float((fine - coarse).abs().max()) < 1e-4  # near radius 0 the rounding of log counts


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normals_and_uniforms_have_their_laws(dtype: torch.dtype) -> None:
    noise = NoiseStream(1, 0, 100_000)
    z, u = noise.normals(8, dtype=dtype).double(), noise.uniforms(8, dtype=dtype).double()
    assert_mean(z.flatten()[:, None], 0.0, bias=0.02)
    assert_mean(z.flatten()[:, None] ** 2, 1.0, bias=0.02)
    assert_mean(z.flatten()[:, None] ** 4, 3.0, bias=0.15)
    assert stats.kstest(z[:, 0].numpy(), "norm").pvalue > 1e-6
    assert stats.kstest(u[:, 0].numpy(), "uniform").pvalue > 1e-6
    assert 0 < float(u.min()) < float(u.max()) < 1


def test_neighbouring_addresses_are_uncorrelated() -> None:
    noise = NoiseStream(2, 0, 200_000)
    z = noise.normals(8, channels=2, dtype=torch.float64)
    other = noise.normals(8, channels=2, purpose=Purpose.LATENT, dtype=torch.float64)
    forked = noise.fork("other").normals(8, channels=2, dtype=torch.float64)
    products = [z[1:] * z[:-1], z[:, 1:] * z[:, :-1], z[..., 1:] * z[..., :-1], z * other, z * forked]
    for product in products:
        assert_mean(product.flatten()[:, None], 0.0, bias=0.02)


def test_torch_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    NoiseStream(0, 0, 10).normals(3)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: NoiseStream(-1, 0, 1), ValueError, r"`seed` must lie in \[0, 2\*\*64\)"),
        (lambda: NoiseStream(0, 2, 1), ValueError, "0 <= start <= stop"),
        (lambda: NoiseStream(0.5, 0, 1), TypeError, "`seed` must be an integer"),
        (lambda: NoiseStream(0, 0, 4)[::2], ValueError, "step 1"),
        (lambda: NoiseStream(0, 0, 4).normals(-1), ValueError, "`count`"),
        (lambda: NoiseStream(0, 0, 4).normals(1, channels=0), ValueError, "`channels`"),
        (lambda: NoiseStream(0, 0, 4).normals(1, first=-1), ValueError, "`first`"),
        (lambda: NoiseStream(0, 0, 4).normals(1, dtype=torch.float16), ValueError, "`dtype`"),
        (lambda: NoiseStream(0, 0, 4).select(torch.tensor([4])), ValueError, "`positions`"),
    ],
)
def test_wrong_call_is_refused(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
