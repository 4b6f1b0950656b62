// The CPU kernel of the counter generator that philox.py defines: same words, same uniforms, normals to a few ulp.
//
// Plain C++17 and a C interface, so that no header of PyTorch is needed. Counters are worked on in blocks: integer
// rounds, then logarithms and sines by polynomials, each a branch-free loop over the lanes of a block that compilers
// turn into vector code. The polynomials interpolate at Chebyshev nodes; the relative error of each fit is stated.

#include <cmath>
#include <cstdint>
#include <cstring>
#ifdef _OPENMP
#include <omp.h>
#endif
#ifdef __AVX2__
#include <immintrin.h>
#endif

namespace {

constexpr int kBlock = 64;  // counters per block: 4 KiB of words and numbers stay in the first-level cache

enum Kind : int32_t { kWords = 0, kUniforms = 1, kNormals = 2, kLowWords = 3 };

template <class To, class From>
inline To bits(From value) {
  static_assert(sizeof(To) == sizeof(From));
  To result;
  std::memcpy(&result, &value, sizeof(To));
  return result;
}

struct Axis {
  int64_t size, stride;  // in cells, samples or channels; the stride in elements of the output
  int part;              // 0 sample, 1 cell, 2 channel
};

struct Box {
  uint64_t seed;
  int64_t start;
  const int64_t* ids;  // null where the ids are start, start + 1, ...
  const int64_t* cells;  // first cell of each sample; null where it is that of element `first` for all
  uint32_t purpose;
  int64_t first, count, first_channel;
  int64_t element_stride;
  int pair_begin, pair_end;  // lanes 0 and 1 are pair 0; a box of one cell may need one pair only
  Axis axes[3];  // from the largest stride to the smallest
};

struct Counters {  // the parts of the counters of one block
  alignas(64) uint32_t id_low[kBlock], id_high[kBlock], cell[kBlock], stream[kBlock];
  alignas(64) uint32_t place[kBlock];  // the cell, counted from that of element 0 of the box's samples
};
struct Words {
  alignas(64) uint32_t lane[4][kBlock];
};
template <class Number>
struct Numbers {
  alignas(64) Number lane[4][kBlock];
};

// ------------------------------------------------------------------ words

#ifdef __AVX2__
// Eight counters as two vectors of 64-bit lanes, even and odd ones. The multiplication reads the low half of a lane
// and ignores the rest, so a low product needs no masking and no lane ever moves: 8 instructions a round.
template <int kRounds>
inline void philox(const Counters& counters, uint32_t stream_bits, uint64_t seed, Words& words) {
  const __m256i multiplier0 = _mm256_set1_epi64x(0xD2511F53), multiplier1 = _mm256_set1_epi64x(0xCD9E8D57);
  __m256i keys[kRounds][2];
  for (uint32_t round = 0; round < kRounds; ++round) {
    keys[round][0] = _mm256_set1_epi64x(static_cast<uint32_t>(seed) + round * 0x9E3779B9u);
    keys[round][1] = _mm256_set1_epi64x(static_cast<uint32_t>(seed >> 32) + round * 0xBB67AE85u);
  }
  const __m256i bits_to_set = _mm256_set1_epi32(static_cast<int>(stream_bits));
  const uint32_t* parts[4] = {counters.id_low, counters.id_high, counters.cell, counters.stream};
  for (int j = 0; j < kBlock; j += 8) {
    __m256i state[2][4];  // [even, odd]
    for (int word = 0; word < 4; ++word) {
      state[0][word] = _mm256_load_si256(reinterpret_cast<const __m256i*>(parts[word] + j));
      if (word == 3) state[0][3] = _mm256_or_si256(state[0][3], bits_to_set);
      state[1][word] = _mm256_srli_epi64(state[0][word], 32);
    }
#pragma GCC unroll 10
    for (int round = 0; round < kRounds; ++round) {
#pragma GCC unroll 2
      for (auto& c : state) {
        const __m256i product0 = _mm256_mul_epu32(c[0], multiplier0), product1 = _mm256_mul_epu32(c[2], multiplier1);
        c[0] = _mm256_xor_si256(_mm256_srli_epi64(product1, 32), _mm256_xor_si256(c[1], keys[round][0]));
        c[2] = _mm256_xor_si256(_mm256_srli_epi64(product0, 32), _mm256_xor_si256(c[3], keys[round][1]));
        c[1] = product1;
        c[3] = product0;
      }
    }
    for (int word = 0; word < 4; ++word) {
      const __m256i odd = _mm256_slli_epi64(state[1][word], 32);
      const __m256i both = _mm256_blend_epi32(state[0][word], odd, 0xAA);
      _mm256_store_si256(reinterpret_cast<__m256i*>(words.lane[word] + j), both);
    }
  }
}
#else
template <int kRounds>
inline void philox(const Counters& counters, uint32_t stream_bits, uint64_t seed, Words& words) {
  const uint32_t key_low = static_cast<uint32_t>(seed), key_high = static_cast<uint32_t>(seed >> 32);
#pragma omp simd
  for (int j = 0; j < kBlock; ++j) {
    uint32_t c0 = counters.id_low[j], c1 = counters.id_high[j], c2 = counters.cell[j];
    uint32_t c3 = counters.stream[j] | stream_bits;
#pragma GCC unroll 10
    for (uint32_t round = 0; round < kRounds; ++round) {
      const uint64_t product0 = uint64_t{0xD2511F53u} * c0, product1 = uint64_t{0xCD9E8D57u} * c2;
      c0 = static_cast<uint32_t>(product1 >> 32) ^ c1 ^ (key_low + round * 0x9E3779B9u);
      c1 = static_cast<uint32_t>(product1);
      c2 = static_cast<uint32_t>(product0 >> 32) ^ c3 ^ (key_high + round * 0xBB67AE85u);
      c3 = static_cast<uint32_t>(product0);
    }
    words.lane[0][j] = c0;
    words.lane[1][j] = c1;
    words.lane[2][j] = c2;
    words.lane[3][j] = c3;
  }
}
#endif

// ------------------------------------------------------------------ float32

inline float log_of(float x) {  // x > 0 and normal
  const uint32_t shifted = bits<uint32_t>(x) - 0x3F3504F3u;  // bits of sqrt(1/2): the mantissa ends in [sqrt(1/2), sqrt 2)
  const int32_t exponent = static_cast<int32_t>(shifted) >> 23;
  const float f = bits<float>(bits<uint32_t>(x) - (static_cast<uint32_t>(exponent) << 23)) - 1.0f;
  const float power = static_cast<float>(exponent);
  float p = -0.07902743772f;  // (log(1 + f) - f + f^2/2) / f^3, error 2e-8 of log(1 + f)
  p = p * f + 0.1262231985f;
  p = p * f - 0.1299818376f;
  p = p * f + 0.1421449592f;
  p = p * f - 0.1664128146f;
  p = p * f + 0.2000104509f;
  p = p * f - 0.2500030642f;
  p = p * f + 0.3333333073f;
  const float square = f * f;
  return power * 0.693359375f + (f + (power * -2.12194440e-4f + square * (p * f - 0.5f)));  // log 2 in two parts
}

inline void box_muller(uint32_t first, uint32_t second, float& cosine, float& sine) {
  const float radius = std::sqrt(-2.0f * log_of(static_cast<float>(first) * 0x1p-32f + 0x1p-33f));
  const uint32_t quadrant = (second + 0x20000000u) >> 30;  // nearest; the rest is exact on the integers
  const float angle = static_cast<float>(static_cast<int32_t>(second - (quadrant << 30))) * 0x1.921fb6p-30f;
  const float z = angle * angle;
  float s = -0.000195878908804f;  // (sin a / a - 1) / a^2, error 1.3e-8
  s = s * z + 0.00833274827063f;
  s = s * z - 0.166666646623f;
  s = angle + angle * (z * s);
  float c = 0.0000245479420851f;  // (cos a - 1 + a^2/2) / a^4, error 8e-10
  c = c * z - 0.00138883030359f;
  c = c * z + 0.0416666646595f;
  c = 1.0f + z * (z * c - 0.5f);
  const bool swap = quadrant & 1u;
  const uint32_t turned_cos = bits<uint32_t>(swap ? s : c) ^ (((quadrant + 1u) & 2u) << 30);
  const uint32_t turned_sin = bits<uint32_t>(swap ? c : s) ^ ((quadrant & 2u) << 30);
  cosine = radius * bits<float>(turned_cos);
  sine = radius * bits<float>(turned_sin);
}

void numbers_of(const Box& box, int32_t kind, const Words& high, const Words&, Numbers<float>& numbers) {
  if (kind == kUniforms) {
    for (int lane = 0; lane < 4; ++lane)
      for (int j = 0; j < kBlock; ++j)
        numbers.lane[lane][j] = (static_cast<float>(static_cast<int32_t>(high.lane[lane][j] >> 9)) + 0.5f) * 0x1p-23f;
    return;
  }
  for (int lane = 2 * box.pair_begin; lane < 2 * box.pair_end; lane += 2) {
#pragma omp simd
    for (int j = 0; j < kBlock; ++j)
      box_muller(high.lane[lane][j], high.lane[lane + 1][j], numbers.lane[lane][j], numbers.lane[lane + 1][j]);
  }
}

// ------------------------------------------------------------------ float64

// Integers below 2^52 to double by the bits of 2^52 + n: the conversion instruction is missing before AVX-512.
inline double small_to_double(uint64_t n) { return bits<double>(n | 0x4330000000000000u) - 0x1p52; }

inline double log_of(double x) {  // x > 0 and normal
  const uint64_t biased = (bits<uint64_t>(x) - 0x3FE6A09E667F3BCDu + (uint64_t{1024} << 52)) >> 52;  // exponent + 1024
  const double f = bits<double>(bits<uint64_t>(x) - ((biased - 1024) << 52)) - 1.0;
  const double power = small_to_double(biased) - 1024.0;
  const double s = f / (2.0 + f), z = s * s;
  double p = 0.146164496850434514;  // (log((1 + s) / (1 - s)) - 2 s) / s^3, error 5e-18 of the logarithm
  p = p * z + 0.153317216005560369;
  p = p * z + 0.181828891252617222;
  p = p * z + 0.222222111347950799;
  p = p * z + 0.285714286259754849;
  p = p * z + 0.399999999998995045;
  p = p * z + 0.666666666666666969;
  const double half_square = 0.5 * f * f;
  const double correction = half_square - s * (half_square + z * p);  // log(1 + f) = f - correction
  return power * 0x1.62e42feep-1 + (f - (correction - power * 0x1.a39ef35793c76p-33));  // log 2 in two parts
}

inline void box_muller(uint64_t first_high, uint64_t first_low, uint64_t second_high, uint64_t second_low,
                       double& cosine, double& sine) {
  const double turns = small_to_double(first_high) * 0x1p-32 + small_to_double(first_low >> 11) * 0x1p-53;
  const double radius = std::sqrt(-2.0 * log_of(turns + 0x1p-54));
  const uint64_t second = (second_high << 21) | (second_low >> 11);
  const uint64_t quadrant = (second + (uint64_t{1} << 50)) >> 51;
  const double rest = bits<double>(second - (quadrant << 51) + 0x4338000000000000u) - 0x1.8p52;  // signed, exact
  const double angle = rest * 0x1.921fb54442d18p-51, z = angle * angle;
  double s = 1.59181292948663809e-10;  // (sin a / a - 1) / a^2, error 1.3e-17
  s = s * z - 2.50511318450036206e-8;
  s = s * z + 2.75573161025524401e-6;
  s = s * z - 0.000198412698367585743;
  s = s * z + 0.00833333333333094849;
  s = s * z - 0.166666666666666646;
  s = angle + angle * (z * s);
  double c = -1.13826324255215756e-11;  // (cos a - 1 + a^2/2) / a^4, error 5e-19
  c = c * z + 2.08761462684031955e-9;
  c = c * z - 2.75573172717297929e-7;
  c = c * z + 0.0000248015872987656879;
  c = c * z - 0.00138888888888873972;
  c = c * z + 0.0416666666666666654;
  c = 1.0 + z * (z * c - 0.5);
  const uint64_t swap = uint64_t{0} - (quadrant & 1u);  // all bits or none
  const uint64_t c_bits = bits<uint64_t>(c), s_bits = bits<uint64_t>(s), exchange = (c_bits ^ s_bits) & swap;
  cosine = radius * bits<double>((c_bits ^ exchange) ^ (((quadrant + 1u) & 2u) << 62));
  sine = radius * bits<double>((s_bits ^ exchange) ^ ((quadrant & 2u) << 62));
}

void numbers_of(const Box& box, int32_t kind, const Words& high, const Words& low, Numbers<double>& numbers) {
  if (kind == kUniforms) {
    for (int lane = 0; lane < 4; ++lane)
#pragma omp simd
      for (int j = 0; j < kBlock; ++j) {
        const uint64_t word = (uint64_t{high.lane[lane][j]} << 20) | (low.lane[lane][j] >> 12);
        numbers.lane[lane][j] = (small_to_double(word) + 0.5) * 0x1p-52;
      }
    return;
  }
  for (int lane = 2 * box.pair_begin; lane < 2 * box.pair_end; lane += 2) {
#pragma omp simd
    for (int j = 0; j < kBlock; ++j)
      box_muller(high.lane[lane][j], low.lane[lane][j], high.lane[lane + 1][j], low.lane[lane + 1][j],
                 numbers.lane[lane][j], numbers.lane[lane + 1][j]);
  }
}

void numbers_of(const Box&, int32_t, const Words& high, const Words&, Numbers<int64_t>& numbers) {
  for (int lane = 0; lane < 4; ++lane)
    for (int j = 0; j < kBlock; ++j) numbers.lane[lane][j] = high.lane[lane][j];
}

// ------------------------------------------------------------------ places in the output

inline void set_counter(const Box& box, const int64_t* index, Counters& counters, int j) {
  const uint64_t id = static_cast<uint64_t>(box.ids ? box.ids[index[0]] : box.start + index[0]);
  counters.id_low[j] = static_cast<uint32_t>(id);
  counters.id_high[j] = static_cast<uint32_t>(id >> 32);
  counters.place[j] = static_cast<uint32_t>(box.first / 4 + index[1]);
  counters.cell[j] = counters.place[j] + (box.cells ? static_cast<uint32_t>(box.cells[index[0]]) : 0u);
  counters.stream[j] = box.purpose + 16u * static_cast<uint32_t>(box.first_channel + index[2]);
}

// `locate` for a block along the inner axis only, in loops that vectorise.
void locate_run(const Box& box, const int64_t* index, int size, Counters& counters, int64_t* offsets) {
  set_counter(box, index, counters, 0);
  const uint32_t id_low = counters.id_low[0], id_high = counters.id_high[0];
  const uint32_t cell = counters.cell[0], place = counters.place[0], stream = counters.stream[0];
  const int part = box.axes[2].part;
  const int64_t stride = box.axes[2].stride;
  int64_t base = 0;
  for (const Axis& axis : box.axes) base += index[axis.part] * axis.stride;
  for (int j = 0; j < size; ++j) offsets[j] = base + j * stride;
  const uint32_t next_cell = part == 1, next_stream = part == 2 ? 16 : 0;
  for (int j = 0; j < size; ++j) counters.cell[j] = cell + static_cast<uint32_t>(j) * next_cell;
  for (int j = 0; j < size; ++j) counters.place[j] = place + static_cast<uint32_t>(j) * next_cell;
  for (int j = 0; j < size; ++j) counters.stream[j] = stream + static_cast<uint32_t>(j) * next_stream;
  if (part != 0) {
    for (int j = 0; j < size; ++j) counters.id_low[j] = id_low;
    for (int j = 0; j < size; ++j) counters.id_high[j] = id_high;
    return;
  }
  for (int j = 0; j < size; ++j) {
    const uint64_t id = static_cast<uint64_t>(box.ids ? box.ids[index[0] + j] : box.start + index[0] + j);
    counters.id_low[j] = static_cast<uint32_t>(id);
    counters.id_high[j] = static_cast<uint32_t>(id >> 32);
  }
  if (box.cells)
    for (int j = 0; j < size; ++j) counters.cell[j] = place + static_cast<uint32_t>(box.cells[index[0] + j]);
}

// Fill the counters of `size` consecutive positions from `position` on, and where the lanes 0 of their cells belong.
void locate(const Box& box, int64_t position, int size, Counters& counters, int64_t* offsets) {
  const Axis &outer = box.axes[0], &middle = box.axes[1], &inner = box.axes[2];
  int64_t index[3];
  int64_t& at_inner = index[inner.part];
  int64_t& at_middle = index[middle.part];
  int64_t& at_outer = index[outer.part];
  at_inner = position % inner.size;
  at_middle = position / inner.size % middle.size;
  at_outer = position / inner.size / middle.size;
  if (at_inner + size <= inner.size) {
    locate_run(box, index, size, counters, offsets);
    return;
  }
  for (int j = 0; j < size; ++j) {
    offsets[j] = at_outer * outer.stride + at_middle * middle.stride + at_inner * inner.stride;
    set_counter(box, index, counters, j);
    if (++at_inner == inner.size) {
      at_inner = 0;
      if (++at_middle == middle.size) {
        at_middle = 0;
        ++at_outer;
      }
    }
  }
}

// The lanes [begin, end) of a cell that belong to the box.
inline void lanes_of(const Box& box, uint32_t cell, int& begin, int& end) {
  const int64_t element = int64_t{4} * cell - box.first;  // index in the box of the cell's lane 0
  begin = element < 0 ? static_cast<int>(-element) : 0;
  end = box.count - element < 4 ? static_cast<int>(box.count - element) : 4;
}

template <class Number>
void store(const Box& box, const Counters& counters, const int64_t* offsets, int size, const Numbers<Number>& numbers,
           Number* out) {
  int64_t gap_one = 0, gap_four = 0, cell_change = 0;  // zero where the block lies regularly in the output
  for (int j = 0; j < size; ++j) {
    gap_one |= offsets[j] ^ (offsets[0] + j);
    gap_four |= offsets[j] ^ (offsets[0] + 4 * j);
    cell_change |= counters.place[j] ^ counters.place[0];
  }
  int begin, end, begin_last, end_last;
  lanes_of(box, counters.place[0], begin, end);
  lanes_of(box, counters.place[size - 1], begin_last, end_last);
  const bool whole = begin == 0 && end == 4 && begin_last == 0 && end_last == 4;
  if (!gap_one && !cell_change) {  // one row of the output per lane
    for (int lane = begin; lane < end; ++lane)
      std::memcpy(out + offsets[0] + lane * box.element_stride, numbers.lane[lane], size * sizeof(Number));
  } else if (!gap_four && whole && box.element_stride == 1 && box.axes[2].part == 1 && box.count % 4 == 0) {
    Number* target = out + offsets[0];
    for (int j = 0; j < size; ++j)
      for (int lane = 0; lane < 4; ++lane) target[4 * j + lane] = numbers.lane[lane][j];
  } else {
    for (int j = 0; j < size; ++j) {
      lanes_of(box, counters.place[j], begin, end);
      for (int lane = begin; lane < end; ++lane) out[offsets[j] + lane * box.element_stride] = numbers.lane[lane][j];
    }
  }
}

template <class Number>
void fill(const Box& box, int32_t kind, int64_t position, int64_t stop, Number* out) {
  Counters counters{};
  Words high, low{};
  Numbers<Number> numbers;
  int64_t offsets[kBlock];
  for (; position < stop; position += kBlock) {
    const int size = static_cast<int>(stop - position < kBlock ? stop - position : kBlock);
    locate(box, position, size, counters, offsets);
    philox<10>(counters, kind == kLowWords ? 0x80000000u : 0u, box.seed, high);
    if (sizeof(Number) == 8 && (kind == kUniforms || kind == kNormals)) philox<10>(counters, 0x80000000u, box.seed, low);
    numbers_of(box, kind, high, low, numbers);
    store(box, counters, offsets, size, numbers, out);
  }
}

template <class Number>
void fill_in_threads(const Box& box, int32_t kind, int threads, Number* out) {
  const int64_t total = box.axes[0].size * box.axes[1].size * box.axes[2].size;
  const int64_t blocks = (total + kBlock - 1) / kBlock;
#ifdef _OPENMP
  if (threads > 1) {
#pragma omp parallel num_threads(threads)
    {
      const int64_t workers = omp_get_num_threads(), worker = omp_get_thread_num();
      const int64_t begin = blocks * worker / workers * kBlock, end = blocks * (worker + 1) / workers * kBlock;
      fill(box, kind, begin, end < total ? end : total, out);
    }
    return;
  }
#endif
  fill(box, kind, 0, total, out);
}

}  // namespace

extern "C" {

// Write a box of noise, shape (num_samples, count, channels) with the given strides in elements, to `out`: int64 for
// words, float or double (`wide`) for numbers. `ids` and `own_cells` may be null.
void sdeuq_fill(int32_t kind, int32_t wide, uint64_t seed, int64_t start, const int64_t* ids, const int64_t* own_cells,
                int64_t num_samples,
                uint32_t purpose, int64_t first, int64_t count, int64_t first_channel, int64_t channels, void* out,
                int64_t sample_stride, int64_t element_stride, int64_t channel_stride, int32_t threads) {
  if (num_samples <= 0 || count <= 0 || channels <= 0) return;
  Box box{seed, start, ids, own_cells, purpose, first, count, first_channel, element_stride, 0, 2, {}};
  const int64_t cells = (first + count + 3) / 4 - first / 4;
  if (cells == 1) {
    box.pair_begin = first % 4 / 2;
    box.pair_end = (first % 4 + count + 1) / 2;
  }
  box.axes[0] = {num_samples, sample_stride, 0};
  box.axes[1] = {cells, 4 * element_stride, 1};
  box.axes[2] = {channels, channel_stride, 2};
  for (int pass = 0; pass < 2; ++pass)
    for (int a = 0; a < 2; ++a) {
      const bool later = box.axes[a].size == 1 ? false
                         : box.axes[a + 1].size == 1 ? true
                                                     : box.axes[a].stride < box.axes[a + 1].stride;
      if (later) {
        const Axis held = box.axes[a];
        box.axes[a] = box.axes[a + 1];
        box.axes[a + 1] = held;
      }
    }
  // Offsets count from lane 0 of the first cell, which may lie before the first element asked for.
  const int64_t lead = (first % 4) * element_stride;
  if (kind == kWords || kind == kLowWords) {
    fill_in_threads(box, kind, threads, static_cast<int64_t*>(out) - lead);
  } else if (wide) {
    fill_in_threads(box, kind, threads, static_cast<double*>(out) - lead);
  } else {
    fill_in_threads(box, kind, threads, static_cast<float*>(out) - lead);
  }
}

// One block of Philox4x32 with 7 or 10 rounds, for the published known answers.
void sdeuq_philox(const uint32_t* counter, const uint32_t* key, int32_t rounds, uint32_t* out) {
  Counters counters{};
  counters.id_low[0] = counter[0];
  counters.id_high[0] = counter[1];
  counters.cell[0] = counter[2];
  counters.stream[0] = counter[3];
  const uint64_t seed = key[0] | (uint64_t{key[1]} << 32);
  Words words;
  if (rounds == 7) {
    philox<7>(counters, 0, seed, words);
  } else {
    philox<10>(counters, 0, seed, words);
  }
  for (int lane = 0; lane < 4; ++lane) out[lane] = words.lane[lane][0];
}
}
