// Luminance at half size from pictures of any depth.
#include "finest.h"

#include <type_traits>

#include "../cpu/fuse/pyramid_rows.h"
#include "samples.h"

namespace ffmef {
namespace FFMEF_ISA {
namespace {

// Two rows of n 8-bit pixels -> means of 2 x 2. Two neighbours of 16 bits are one number of 32: no shuffle is needed to
// add them.
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

// The same of deeper samples.
template <class S> void halve_run(const Planes<S>& upper, const Planes<S>& lower, int64_t n, float* __restrict out) {
  constexpr float red = kRed * kToByte<S> / 4, green = kGreen * kToByte<S> / 4, blue = kBlue * kToByte<S> / 4;
  alignas(64) float sums[kColumns];
  for (int64_t x = 0; x < n; ++x)
    sums[x] = red * (float(upper.r[x]) + float(lower.r[x])) + green * (float(upper.g[x]) + float(lower.g[x])) +
              blue * (float(upper.b[x]) + float(lower.b[x]));
  if (n % 2) sums[n] = sums[n - 1];
  for (int64_t i = 0; i < half_of(n); ++i) out[i] = sums[2 * i] + sums[2 * i + 1] + kBlack;
}

template <class S>
void halve_rows(PictureView picture, int64_t height, int64_t width, float* half, int64_t begin, int64_t end) {
  Planes<S> upper, lower;
  const int64_t across = half_of(width);
  for (int64_t y = begin; y < end; ++y)
    for (int64_t x0 = 0; x0 < width; x0 += kColumns) {
      const int64_t n = width - x0 < kColumns ? width - x0 : kColumns;
      upper.read(picture.data, picture.channels, 2 * y * width + x0, n);
      lower.read(picture.data, picture.channels, (2 * y + 1 < height ? 2 * y + 1 : 2 * y) * width + x0, n);
      halve_run(upper, lower, n, half + y * across + x0 / 2);
    }
}

void halve(Sample sample, PictureView picture, int64_t height, int64_t width, float* half, int64_t begin, int64_t end) {
  switch (sample) {
    case Sample::u8: return halve_rows<uint8_t>(picture, height, width, half, begin, end);
    case Sample::u16: return halve_rows<uint16_t>(picture, height, width, half, begin, end);
    case Sample::f32: return halve_rows<float>(picture, height, width, half, begin, end);
    case Sample::luminance: {
      const PyramidFuseKernels& kernels = pyramid_fuse_kernels;
      return kernels.halve(Scalar::f32, {picture.data, width, 1, false}, height, width, half, begin, end);
    }
  }
}

}  // namespace

extern const FinestKernels finest_kernels;
const FinestKernels finest_kernels = {.halve = halve};

}  // namespace FFMEF_ISA
}  // namespace ffmef
