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

// Sums of two rows of 16 pixels: red and blue as the halves of 32 bits, and green.
struct RowSums {
  __m512i red_blue, green;
  RowSums(const uint8_t* upper, const uint8_t* lower) {
    const __m512i halves = _mm512_set1_epi32(0x00ff00ff), byte = _mm512_set1_epi32(255);
    const __m512i u = spread(_mm512_maskz_loadu_epi32(0x0fff, upper)),
                  l = spread(_mm512_maskz_loadu_epi32(0x0fff, lower));
    red_blue = _mm512_add_epi32(_mm512_and_si512(u, halves), _mm512_and_si512(l, halves));
    green = _mm512_add_epi32(_mm512_and_si512(_mm512_srli_epi32(u, 8), byte),
                             _mm512_and_si512(_mm512_srli_epi32(l, 8), byte));
  }
};

// Means of 2 x 2 for two rows of interleaved pixels, in whole runs of 32 pixels. Returns the number of pixels done.
int64_t halve_interleaved(const uint8_t* upper, const uint8_t* lower, int64_t n, float* out) {
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
  const auto pairs = [&](__m512i a, __m512i b) {
    return _mm512_add_epi32(_mm512_permutex2var_epi32(a, even, b), _mm512_permutex2var_epi32(a, odd, b));
  };
  int64_t x = 0;
  for (; x + 32 <= n; x += 32) {
    const RowSums a(upper + 3 * x, lower + 3 * x), b(upper + 3 * x + 48, lower + 3 * x + 48);
    const __m512i red_blue = pairs(a.red_blue, b.red_blue), green = pairs(a.green, b.green);
    const FloatVec r = (FloatVec)_mm512_cvtepi32_ps(_mm512_and_si512(red_blue, _mm512_set1_epi32(0xffff)));
    const FloatVec g = (FloatVec)_mm512_cvtepi32_ps(green);
    const FloatVec bl = (FloatVec)_mm512_cvtepi32_ps(_mm512_srli_epi32(red_blue, 16));
    store(out + x / 2, r * (kRed / 4) + (g * (kGreen / 4) + (bl * (kBlue / 4) + kBlack)));
  }
  return x;
}

#else

int64_t halve_interleaved(const uint8_t*, const uint8_t*, int64_t, float*) { return 0; }

#endif

template <class S> int64_t halve_interleaved(const S*, const S*, int64_t, float*) { return 0; }

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
    int64_t x0 = picture.channels == 3 ? halve_interleaved(samples + 3 * first, samples + 3 * second, width, out) : 0;
    for (; x0 < width; x0 += kColumns) {
      const int64_t n = width - x0 < kColumns ? width - x0 : kColumns;
      upper.read(picture.data, picture.channels, first + x0, n);
      lower.read(picture.data, picture.channels, second + x0, n);
      halve_run(upper, lower, n, out + x0 / 2);
    }
    const int64_t line = picture.channels * width;
    valid &=
        all_valid(samples + picture.channels * first, line) && all_valid(samples + picture.channels * second, line);
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
