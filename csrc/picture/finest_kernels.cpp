// Luminance at half size from pictures of any depth.
#include "finest.h"

#include <type_traits>

#include "../cpu/fuse/pyramid_rows.h"
#include "pixels.h"
#include "samples.h"

namespace ffmef {
namespace FFMEF_ISA {
namespace {

// Turns two rows of n 8-bit pixels into means of 2 x 2. Two 16-bit neighbours form one 32-bit number, so adding them
// needs no shuffle.
void halve_run(const Planes<uint8_t>& upper, const Planes<uint8_t>& lower, int64_t n, float* __restrict out) {
  alignas(64) uint16_t sums[3][kColumns];
  const uint8_t* const rows[3][2] = {{upper.r, lower.r}, {upper.g, lower.g}, {upper.b, lower.b}};
  for (int c = 0; c < 3; ++c) {
    for (int64_t x = 0; x < n; ++x) sums[c][x] = uint16_t(rows[c][0][x] + rows[c][1][x]);
    if (n % 2) sums[c][n] = sums[c][n - 1];
  }
  for (int64_t i = 0; i < half_of(n); ++i) {
    uint32_t pair[3];
    for (int c = 0; c < 3; ++c) std::memcpy(&pair[c], &sums[c][2 * i], 4);
    const float r = float(int32_t((pair[0] & 0xffffu) + (pair[0] >> 16)));
    const float g = float(int32_t((pair[1] & 0xffffu) + (pair[1] >> 16)));
    const float b = float(int32_t((pair[2] & 0xffffu) + (pair[2] >> 16)));
    out[i] = kRed / 4 * r + kGreen / 4 * g + kBlue / 4 * b + kBlack;
  }
}

// The same for deeper samples.
template <class S> void halve_run(const Planes<S>& upper, const Planes<S>& lower, int64_t n, float* __restrict out) {
  constexpr float red = kRed * kToByte<S> / 4, green = kGreen * kToByte<S> / 4, blue = kBlue * kToByte<S> / 4;
  alignas(64) float sums[kColumns];
  for (int64_t x = 0; x < n; ++x)
    sums[x] = red * (float(upper.r[x]) + float(lower.r[x])) + green * (float(upper.g[x]) + float(lower.g[x])) +
              blue * (float(upper.b[x]) + float(lower.b[x]));
  if (n % 2) sums[n] = sums[n - 1];
  for (int64_t i = 0; i < half_of(n); ++i) out[i] = sums[2 * i] + sums[2 * i + 1] + kBlack;
}

#if defined(__AVX512BW__)

// Sums of 2 x 2 of two rows of 16 pixels. Each 128 bits have two sums of 16 bits for red, green, blue and nothing.
inline __m512i sums_of(const uint8_t* upper, const uint8_t* lower) {
  const __m512i numbers = _mm512_setr_epi32(0, 1, 2, 2, 3, 4, 5, 5, 6, 7, 8, 8, 9, 10, 11, 11);
  const __m512i bytes = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11, -1, -1, -1, -1));
  const auto pairs = [&](const uint8_t* p) {
    const __m512i pixels = _mm512_permutexvar_epi32(numbers, _mm512_maskz_loadu_epi32(0x0fff, p));
    return _mm512_maddubs_epi16(_mm512_shuffle_epi8(pixels, bytes), _mm512_set1_epi8(1));
  };
  return _mm512_add_epi16(pairs(upper), pairs(lower));
}

// Means of 2 x 2 for two rows of interleaved pixels, in whole runs of 32 pixels. Returns the number of pixels done, and
// says if some sample of theirs may be invalid.
int64_t halve_interleaved(const uint8_t* upper, const uint8_t* lower, int64_t n, float* out, bool&) {
  alignas(64) static constexpr auto places = [] {
    struct {
      uint16_t of[3][32];
    } t{};
    for (int c = 0; c < 3; ++c)
      for (int i = 0; i < 16; ++i) {
        t.of[c][2 * i] = uint16_t(i / 8 * 32 + i % 8 / 2 * 8 + 2 * c + i % 2);
        t.of[c][2 * i + 1] = 6;  // nothing
      }
    return t;
  }();
  int64_t x = 0;
  for (; x + 32 <= n; x += 32) {
    const __m512i a = sums_of(upper + 3 * x, lower + 3 * x), b = sums_of(upper + 3 * x + 48, lower + 3 * x + 48);
    const auto channel = [&](int c) {
      return (FloatVec)_mm512_cvtepi32_ps(_mm512_permutex2var_epi16(a, _mm512_load_si512(places.of[c]), b));
    };
    store(out + x / 2, channel(0) * (kRed / 4) + (channel(1) * (kGreen / 4) + (channel(2) * (kBlue / 4) + kBlack)));
  }
  return x;
}

// 16 samples of each of two rows, added.
inline FloatVec added(const uint16_t* upper, const uint16_t* lower, UIntVec&) {
  const auto wide = [](const uint16_t* p) { return _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)); };
  return (FloatVec)_mm512_cvtepi32_ps(_mm512_add_epi32(wide(upper), wide(lower)));
}
inline FloatVec added(const float* upper, const float* lower, UIntVec& most) {
  const FloatVec u = load(upper), l = load(lower);
  most = (UIntVec)_mm512_max_epu32((__m512i)most, _mm512_max_epu32((__m512i)u, (__m512i)l));
  return u + l;
}

template <size_t... I> inline FloatVec pair_sums(FloatVec a, FloatVec b, std::index_sequence<I...>) {
  return __builtin_shufflevector(a, b, (2 * int(I))...) + __builtin_shufflevector(a, b, (2 * int(I) + 1)...);
}

// The same for deeper samples: sums of six neighbours, each times its channel's share of luminance.
template <class S> int64_t halve_interleaved(const S* upper, const S* lower, int64_t n, float* out, bool& doubtful) {
  using Places = std::make_index_sequence<16>;
  FloatVec shares[3];
  for (int k = 0; k < 48; ++k)
    shares[k / 16][k % 16] = (k % 3 == 0 ? kRed : k % 3 == 1 ? kGreen : kBlue) * kToByte<S> / 4;
  UIntVec most{};  // of the bits of floating-point samples: those beyond 1 or below 0, and NaN, exceed those of 1
  int64_t x = 0;
  for (; x + 32 <= n; x += 32) {
    const S *u = upper + 3 * x, *l = lower + 3 * x;
    FloatVec pairs[3];
    for (int k = 0; k < 3; ++k)
      pairs[k] = pair_sums(added(u + 32 * k, l + 32 * k, most) * shares[2 * k % 3],
                           added(u + 32 * k + 16, l + 32 * k + 16, most) * shares[(2 * k + 1) % 3], Places());
    const FloatVec first = channel<0>(pairs[0], pairs[1], pairs[2], Places()),
                   second = channel<1>(pairs[0], pairs[1], pairs[2], Places()),
                   third = channel<2>(pairs[0], pairs[1], pairs[2], Places());
    store(out + x / 2, first + second + third + kBlack);
  }
  doubtful = _mm512_cmpgt_epu32_mask((__m512i)most, _mm512_set1_epi32(0x3f800000)) != 0;
  return x;
}

#else

template <class S> int64_t halve_interleaved(const S*, const S*, int64_t, float*, bool&) { return 0; }

#endif

template <class S> bool all_valid(const S*, int64_t) { return true; }
bool all_valid(const float* samples, int64_t n) {
  int invalid = 0;
  for (int64_t i = 0; i < n; ++i) invalid |= !(samples[i] >= 0.0f) | !(samples[i] <= 1.0f);  // also catches NaN
  return invalid == 0;
}

template <class S>
bool halve_rows(PictureView picture, int64_t height, int64_t width, float* half, int64_t begin, int64_t end) {
  Planes<S> upper, lower;
  const int64_t across = half_of(width);
  const S* samples = static_cast<const S*>(picture.data);
  bool valid = true;
  for (int64_t y = begin; y < end; ++y) {
    const int64_t first = 2 * y * width, second = (2 * y + 1 < height ? 2 * y + 1 : 2 * y) * width;
    float* out = half + y * across;
    bool doubtful = false;
    int64_t x0 = 0;
    if (picture.channels == 3) x0 = halve_interleaved(samples + 3 * first, samples + 3 * second, width, out, doubtful);
    const int64_t checked = doubtful ? 0 : picture.channels * x0, rest = picture.channels * width - checked;
    for (; x0 < width; x0 += kColumns) {
      const int64_t n = width - x0 < kColumns ? width - x0 : kColumns;
      upper.read(picture.data, picture.channels, first + x0, n);
      lower.read(picture.data, picture.channels, second + x0, n);
      halve_run(upper, lower, n, out + x0 / 2);
    }
    valid &= all_valid(samples + picture.channels * first + checked, rest) &&
             all_valid(samples + picture.channels * second + checked, rest);
  }
  return valid;
}

bool halve(Sample sample, PictureView picture, int64_t height, int64_t width, float* half, int64_t begin, int64_t end) {
  switch (sample) {
    case Sample::u8: return halve_rows<uint8_t>(picture, height, width, half, begin, end);
    case Sample::u16: return halve_rows<uint16_t>(picture, height, width, half, begin, end);
    case Sample::f32: return halve_rows<float>(picture, height, width, half, begin, end);
    case Sample::luminance: {
      const PyramidFuseKernels& kernels = pyramid_fuse_kernels;
      kernels.halve(Scalar::f32, {picture.data, width, 1, false}, height, width, half, begin, end);
      return true;
    }
  }
  return true;
}

}  // namespace

extern const FinestKernels finest_kernels;
const FinestKernels finest_kernels = {.halve = halve};

}  // namespace FFMEF_ISA
}  // namespace ffmef
