"""The GPU kernel of the counter generator of :mod:`sde.noise.philox`; this file alone imports Triton.

Logarithm, sine and cosine are the polynomials of ``philox.cpp``: the fast hardware logarithm has an absolute
error only, which spoils the small radii of uniforms near 1. With ``TRITON_INTERPRET=1`` the kernel runs on
the CPU.

References:
    Tillet, Kung & Cox (2019), Triton: an intermediate language and compiler. doi:10.1145/3315508.3329973
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sde.noise.philox import Address, Kind

__all__ = ["fill", "philox4x32"]

_BLOCK = 256


@triton.jit
def _philox(c0, c1, c2, c3, k0, k1, ROUNDS: tl.constexpr):  # noqa: ANN001, ANN202
    """Encrypt counters of uint32 words."""
    for _ in tl.static_range(ROUNDS):
        high0, low0 = tl.umulhi(c0, 0xD2511F53), c0 * 0xD2511F53
        high1, low1 = tl.umulhi(c2, 0xCD9E8D57), c2 * 0xCD9E8D57
        c0, c1 = high1 ^ c1 ^ k0, low1
        c2, c3 = high0 ^ c3 ^ k1, low0
        k0, k1 = k0 + 0x9E3779B9, k1 + 0xBB67AE85
    return c0, c1, c2, c3


@triton.jit
def _log(x):  # noqa: ANN001, ANN202
    """Logarithm of a positive float32; see philox.cpp."""
    exponent = (x.to(tl.int32, bitcast=True) - 0x3F3504F3) >> 23
    f = (x.to(tl.int32, bitcast=True) - (exponent << 23)).to(tl.float32, bitcast=True) - 1.0
    power = exponent.to(tl.float32)
    p = -0.07902743772 * f + 0.1262231985
    p = p * f - 0.1299818376
    p = p * f + 0.1421449592
    p = p * f - 0.1664128146
    p = p * f + 0.2000104509
    p = p * f - 0.2500030642
    p = p * f + 0.3333333073
    return power * 0.693359375 + (f + (power * -2.12194440e-4 + f * f * (p * f - 0.5)))


@triton.jit
def _log_wide(x):  # noqa: ANN001, ANN202
    """Logarithm of a positive float64; see philox.cpp."""
    exponent = (x.to(tl.int64, bitcast=True) - 0x3FE6A09E667F3BCD) >> 52
    f = (x.to(tl.int64, bitcast=True) - (exponent << 52)).to(tl.float64, bitcast=True) - 1.0
    power = exponent.to(tl.float64)
    s = f / (2.0 + f)
    z = s * s
    p = 0.146164496850434514 * z + 0.153317216005560369
    p = p * z + 0.181828891252617222
    p = p * z + 0.222222111347950799
    p = p * z + 0.285714286259754849
    p = p * z + 0.399999999998995045
    p = p * z + 0.666666666666666969
    half_square = 0.5 * f * f
    correction = half_square - s * (half_square + z * p)
    return power * 6.93147180369123816490e-01 + (f - (correction - power * 1.90821492927058770002e-10))


@triton.jit
def _turn(quadrant, cosine, sine):  # noqa: ANN001, ANN202
    """Turn by quarters."""
    odd = (quadrant & 1) == 1
    turned_cosine = tl.where(odd, sine, cosine)
    turned_sine = tl.where(odd, cosine, sine)
    turned_cosine = tl.where(((quadrant + 1) & 2) == 2, -turned_cosine, turned_cosine)
    turned_sine = tl.where((quadrant & 2) == 2, -turned_sine, turned_sine)
    return turned_cosine, turned_sine


@triton.jit
def _box_muller(first, second):  # noqa: ANN001, ANN202
    """Two float32 normals of two words; see philox.cpp."""
    uniform = first.to(tl.float32) * 2.3283064365386963e-10 + 1.1641532182693481e-10  # 2^-32 and 2^-33
    radius = tl.sqrt_rn(-2.0 * _log(uniform))
    quadrant = (second + 0x20000000) >> 30
    rest = (second - (quadrant << 30)).to(tl.int32, bitcast=True)
    angle = rest.to(tl.float32) * 1.4629180792671596e-09  # 2 pi / 2^32
    z = angle * angle
    s = -0.000195878908804 * z + 0.00833274827063
    s = s * z - 0.166666646623
    c = 0.0000245479420851 * z - 0.00138883030359
    c = c * z + 0.0416666646595
    cosine, sine = _turn(quadrant, 1.0 + z * (z * c - 0.5), angle + angle * (z * s))
    return radius * cosine, radius * sine


@triton.jit
def _box_muller_wide(first, second):  # noqa: ANN001, ANN202
    """Two float64 normals of two 53-bit integers; see philox.cpp."""
    uniform = first.to(tl.float64) * 1.1102230246251565e-16 + 5.551115123125783e-17  # 2^-53 and 2^-54
    radius = tl.sqrt(-2.0 * _log_wide(uniform))  # exact in float64
    quadrant = (second + 0x4000000000000) >> 51
    angle = (second - (quadrant << 51)).to(tl.float64) * 6.97573699601725626e-16  # 2 pi / 2^53
    z = angle * angle
    s = 1.59181292948663809e-10 * z - 2.50511318450036206e-8
    s = s * z + 2.75573161025524401e-6
    s = s * z - 0.000198412698367585743
    s = s * z + 0.00833333333333094849
    s = s * z - 0.166666666666666646
    c = -1.13826324255215756e-11 * z + 2.08761462684031955e-9
    c = c * z - 2.75573172717297929e-7
    c = c * z + 0.0000248015872987656879
    c = c * z - 0.00138888888888873972
    c = c * z + 0.0416666666666666654
    cosine, sine = _turn(quadrant, 1.0 + z * (z * c - 0.5), angle + angle * (z * s))
    return radius * cosine, radius * sine


@triton.jit
def _join(high, low, DROPPED: tl.constexpr):  # noqa: ANN001, ANN202
    """The leading ``64 - DROPPED`` bits of two words, as int64."""
    return (high.to(tl.int64) << (32 - DROPPED)) | (low.to(tl.int64) >> DROPPED)


@triton.jit
def _uniform(word):  # noqa: ANN001, ANN202
    return ((word >> 9).to(tl.float32) + 0.5) * 1.1920928955078125e-07  # 2^-23


@triton.jit
def _uniform_wide(high, low):  # noqa: ANN001, ANN202
    return (_join(high, low, 12).to(tl.float64) + 0.5) * 2.220446049250313e-16  # 2^-52


@triton.jit(
    do_not_specialize=[
        *("start", "key_low", "key_high", "purpose", "first", "count", "first_channel"),
        *("total", "size1", "size2", "stride0", "stride1", "stride2", "element_stride"),
    ]
)
def _fill_kernel(  # noqa: ANN202
    out,  # noqa: ANN001
    ids,  # noqa: ANN001
    own_cells,  # noqa: ANN001
    start,  # noqa: ANN001
    key_low,  # noqa: ANN001
    key_high,  # noqa: ANN001
    purpose,  # noqa: ANN001
    first,  # noqa: ANN001
    count,  # noqa: ANN001
    first_channel,  # noqa: ANN001
    total,  # noqa: ANN001
    size1,  # noqa: ANN001
    size2,  # noqa: ANN001
    stride0,  # noqa: ANN001
    stride1,  # noqa: ANN001
    stride2,  # noqa: ANN001
    element_stride,  # noqa: ANN001
    HAS_IDS: tl.constexpr,
    HAS_CELLS: tl.constexpr,
    KIND: tl.constexpr,
    WIDE: tl.constexpr,
    SAMPLE_AXIS: tl.constexpr,
    CELL_AXIS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write one block of counters: axes from the largest stride (0) to the smallest (2)."""
    position = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK).to(tl.int64)
    inside = position < total
    at2 = position % size2
    at1 = position // size2 % size1
    at0 = position // size2 // size1
    offset = at0 * stride0 + at1 * stride1 + at2 * stride2
    sample = at0 if SAMPLE_AXIS == 0 else (at1 if SAMPLE_AXIS == 1 else at2)
    index = at0 if CELL_AXIS == 0 else (at1 if CELL_AXIS == 1 else at2)
    remaining: tl.constexpr = 3 - SAMPLE_AXIS - CELL_AXIS
    channel = at0 if remaining == 0 else (at1 if remaining == 1 else at2)
    if HAS_IDS:  # noqa: SIM108
        sample_id = tl.load(ids + sample, mask=inside, other=0)
    else:
        sample_id = start + sample
    cell = first // 4 + index
    c0, c1 = (sample_id & 0xFFFFFFFF).to(tl.uint32), ((sample_id >> 32) & 0xFFFFFFFF).to(tl.uint32)
    address_cell = cell
    if HAS_CELLS:
        address_cell += tl.load(own_cells + sample, mask=inside, other=0)
    c2, c3 = address_cell.to(tl.uint32), (purpose + 16 * (first_channel + channel)).to(tl.uint32)
    k0, k1 = (c2 ^ c2) + key_low.to(tl.uint32), (c2 ^ c2) + key_high.to(tl.uint32)
    h0, h1, h2, h3 = _philox(c0, c1, c2, c3, k0, k1, 10)
    if (WIDE and KIND != 0) or KIND == 3:
        l0, l1, l2, l3 = _philox(c0, c1, c2, c3 | 0x80000000, k0, k1, 10)
    if KIND == 0:
        n0, n1, n2, n3 = h0.to(tl.int64), h1.to(tl.int64), h2.to(tl.int64), h3.to(tl.int64)
    elif KIND == 3:
        n0, n1, n2, n3 = l0.to(tl.int64), l1.to(tl.int64), l2.to(tl.int64), l3.to(tl.int64)
    elif KIND == 1:
        if WIDE:
            n0, n1 = _uniform_wide(h0, l0), _uniform_wide(h1, l1)
            n2, n3 = _uniform_wide(h2, l2), _uniform_wide(h3, l3)
        else:
            n0, n1, n2, n3 = _uniform(h0), _uniform(h1), _uniform(h2), _uniform(h3)
    else:
        if WIDE:
            n0, n1 = _box_muller_wide(_join(h0, l0, 11), _join(h1, l1, 11))
            n2, n3 = _box_muller_wide(_join(h2, l2, 11), _join(h3, l3, 11))
        else:
            n0, n1 = _box_muller(h0, h1)
            n2, n3 = _box_muller(h2, h3)
    element = 4 * cell - first
    target = out + offset + (element - 4 * index) * element_stride  # of lane 0
    tl.store(target, n0, mask=inside & (element >= 0) & (element < count))
    tl.store(target + element_stride, n1, mask=inside & (element >= -1) & (element + 1 < count))
    tl.store(target + 2 * element_stride, n2, mask=inside & (element >= -2) & (element + 2 < count))
    tl.store(target + 3 * element_stride, n3, mask=inside & (element >= -3) & (element + 3 < count))


@triton.jit
def _block_kernel(words, ROUNDS: tl.constexpr):  # noqa: ANN001, ANN202
    """Philox of the counter and key in ``words[0:6]``, written to ``words[6:10]``."""
    c0, c1 = tl.load(words).to(tl.uint32), tl.load(words + 1).to(tl.uint32)
    c2, c3 = tl.load(words + 2).to(tl.uint32), tl.load(words + 3).to(tl.uint32)
    k0, k1 = tl.load(words + 4).to(tl.uint32), tl.load(words + 5).to(tl.uint32)
    c0, c1, c2, c3 = _philox(c0, c1, c2, c3, k0, k1, ROUNDS)
    tl.store(words + 6, c0.to(tl.int64))
    tl.store(words + 7, c1.to(tl.int64))
    tl.store(words + 8, c2.to(tl.int64))
    tl.store(words + 9, c3.to(tl.int64))


def fill(kind: Kind, address: Address, out: Tensor) -> None:
    """Write a box of noise to the CUDA tensor ``out``; see :func:`sde.noise.philox.fill`."""
    if not out.numel():
        return
    cells = -(-(address.first + address.count) // 4) - address.first // 4
    sample_stride, element_stride, channel_stride = out.stride()
    axes = (
        sorted(  # (size, stride, part) from the largest stride to the smallest: neighbours write side by side
            [
                (address.num_samples, sample_stride, 0),
                (cells, 4 * element_stride, 1),
                (address.channels, channel_stride, 2),
            ],
            key=lambda axis: (axis[0] == 1, axis[1]),
            reverse=True,
        )
    )
    parts = [part for _, _, part in axes]
    total = axes[0][0] * axes[1][0] * axes[2][0]
    ids = None if address.ids is None else address.ids.to(out.device, torch.int64).contiguous()
    own_cells = None if address.cells is None else address.cells.to(out.device, torch.int64).contiguous()
    _fill_kernel[(-(-total // _BLOCK),)](
        out,
        out if ids is None else ids,
        out if own_cells is None else own_cells,
        address.start,
        address.seed & 0xFFFFFFFF,
        address.seed >> 32,
        address.purpose,
        address.first,
        address.count,
        address.first_channel,
        total,
        axes[1][0],
        axes[2][0],
        axes[0][1],
        axes[1][1],
        axes[2][1],
        element_stride,
        HAS_IDS=ids is not None,
        HAS_CELLS=own_cells is not None,
        KIND=int(kind),
        WIDE=out.dtype == torch.float64,
        SAMPLE_AXIS=parts.index(0),
        CELL_AXIS=parts.index(1),
        BLOCK=_BLOCK,
        enable_fp_fusion=True,  # a few ulp; explicit, since versions of Triton differ in the default
    )


def philox4x32(
    counter: tuple[int, int, int, int], key: tuple[int, int], rounds: int = 10, device: str = "cuda"
) -> tuple[int, ...]:
    """One block of the kernel's generator, for comparison with published answers."""
    words = torch.tensor([*counter, *key, 0, 0, 0, 0], device=device)
    _block_kernel[(1,)](words, ROUNDS=rounds)
    return tuple(words[6:].tolist())
