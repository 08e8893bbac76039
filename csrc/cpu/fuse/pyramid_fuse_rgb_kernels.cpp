// The finest level of a fused pyramid from and to 8-bit RGB: luminance, fusion, merged chroma and RGB in one pass.
#include "pyramid_fuse_rgb.h"

#include <utility>

#include "pyramid_rows.h"

namespace ffmef {
namespace FFMEF_ISA {
namespace {

typedef uint8_t Bytes __attribute__((vector_size(16), may_alias));

inline Bytes load_bytes(const uint8_t* p) {
  Bytes v;
  std::memcpy(&v, p, 16);
  return v;
}
inline void store_bytes(uint8_t* p, Bytes v) { std::memcpy(p, &v, 16); }

// Channel C of 16 pixels in three vectors.
template <int C, size_t... I> inline Bytes channel(Bytes a, Bytes b, Bytes c, std::index_sequence<I...>) {
  const Bytes most = __builtin_shufflevector(a, b, (3 * I + C < 32 ? int(3 * I + C) : 0)...);
  return __builtin_shufflevector(most, c, (3 * I + C < 32 ? int(I) : int(16 + 3 * I + C - 32))...);
}

// Vector V of 16 interleaved pixels.
template <int V, size_t... I> inline Bytes interleaved(Bytes r, Bytes g, Bytes b, std::index_sequence<I...>) {
  const Bytes two = __builtin_shufflevector(r, g,
                                            ((16 * V + I) % 3 == 0   ? int((16 * V + I) / 3)
                                             : (16 * V + I) % 3 == 1 ? int(16 + (16 * V + I) / 3)
                                                                     : 0)...);
  return __builtin_shufflevector(two, b, ((16 * V + I) % 3 < 2 ? int(I) : int(16 + (16 * V + I) / 3))...);
}

void split(const uint8_t* rgb, int64_t n, uint8_t* r, uint8_t* g, uint8_t* b) {
  using Lanes = std::make_index_sequence<16>;
  int64_t x = 0;
  for (; x + 16 <= n; x += 16) {
    const Bytes v0 = load_bytes(rgb + 3 * x), v1 = load_bytes(rgb + 3 * x + 16), v2 = load_bytes(rgb + 3 * x + 32);
    store_bytes(r + x, channel<0>(v0, v1, v2, Lanes()));
    store_bytes(g + x, channel<1>(v0, v1, v2, Lanes()));
    store_bytes(b + x, channel<2>(v0, v1, v2, Lanes()));
  }
  for (; x < n; ++x) r[x] = rgb[3 * x], g[x] = rgb[3 * x + 1], b[x] = rgb[3 * x + 2];
}

void join(uint8_t* rgb, int64_t n, const uint8_t* r, const uint8_t* g, const uint8_t* b) {
  using Lanes = std::make_index_sequence<16>;
  int64_t x = 0;
  for (; x + 16 <= n; x += 16) {
    const Bytes vr = load_bytes(r + x), vg = load_bytes(g + x), vb = load_bytes(b + x);
    store_bytes(rgb + 3 * x, interleaved<0>(vr, vg, vb, Lanes()));
    store_bytes(rgb + 3 * x + 16, interleaved<1>(vr, vg, vb, Lanes()));
    store_bytes(rgb + 3 * x + 32, interleaved<2>(vr, vg, vb, Lanes()));
  }
  for (; x < n; ++x) rgb[3 * x] = r[x], rgb[3 * x + 1] = g[x], rgb[3 * x + 2] = b[x];
}

// Columns that are worked on at a time: their rows stay in the first-level cache.
constexpr int64_t kColumns = 512;

constexpr float kRed = 0.256789f / 255, kGreen = 0.504129f / 255, kBlue = 0.097906f / 255, kBlack = 16.0f / 255;

void halve(const uint8_t* picture, int64_t height, int64_t width, float* half, int64_t begin, int64_t end) {
  alignas(64) uint8_t upper[3][kColumns], lower[3][kColumns];
  alignas(64) uint16_t sums[3][kColumns];
  const int64_t across = half_of(width);
  for (int64_t y = begin; y < end; ++y) {
    const uint8_t* first = picture + 2 * y * 3 * width;
    const uint8_t* second = 2 * y + 1 < height ? first + 3 * width : first;
    for (int64_t x0 = 0; x0 < width; x0 += kColumns) {
      const int64_t n = width - x0 < kColumns ? width - x0 : kColumns;
      split(first + 3 * x0, n, upper[0], upper[1], upper[2]);
      split(second + 3 * x0, n, lower[0], lower[1], lower[2]);
      for (int c = 0; c < 3; ++c) {
        for (int64_t x = 0; x < n; ++x) sums[c][x] = uint16_t(upper[c][x] + lower[c][x]);
        if (n % 2) sums[c][n] = sums[c][n - 1];
      }
      float* __restrict out = half + y * across + x0 / 2;
      for (int64_t i = 0; i < half_of(n); ++i) {
        // Two neighbours of 16 bits are one number of 32: no shuffle is needed to add them.
        uint32_t pair[3];
        for (int c = 0; c < 3; ++c) std::memcpy(&pair[c], &sums[c][2 * i], 4);
        const float r = float(int32_t((pair[0] & 0xffffu) + (pair[0] >> 16)));
        const float g = float(int32_t((pair[1] & 0xffffu) + (pair[1] >> 16)));
        const float b = float(int32_t((pair[2] & 0xffffu) + (pair[2] >> 16)));
        out[i] = kRed / 4 * r + kGreen / 4 * g + kBlue / 4 * b + kBlack;
      }
    }
  }
}

inline uint8_t to_byte(float x) {
  x = x < 0.0f ? 0.0f : x > 255.0f ? 255.0f : x;
  return uint8_t(int32_t(x + 0.5f));
}

void fuse(const RgbLevel& level, uint8_t* out, int64_t begin, int64_t end) {
  const int64_t width = level.width, down = half_of(level.height), across = half_of(width);
  const int64_t cells = level.cells_down * level.cells_across;
  alignas(64) uint8_t bytes[3][kColumns];
  alignas(64) float sum[kColumns], blue[kColumns], blue_weight[kColumns], red[kColumns], red_weight[kColumns];
  Expander<float> fused_row(across, 2);
  // A row of weights and one of the level below for each image.
  const int64_t weight_size = expanded_size(level.cells_across, level.factor), below_size = expanded_size(across, 2);
  Row<float> weight_rows(level.count * weight_size), below_rows(level.count * below_size);
  Row<float> mixed(most_of(level.cells_across, across) + 2);
  for (int64_t y = begin; y < end; ++y) {
    const float* fused = fused_row(level.half_fused, down, across, 2, y);
    const RowTap weight_tap = tap_of(y, level.factor, level.cells_down), below_tap = tap_of(y, 2, down);
    for (int64_t n = 0; n < level.count; ++n) {
      const float* weights = level.weights + n * cells;
      const float* half = level.half + n * down * across;
      between(mixed.data + 1, weights + weight_tap.first * level.cells_across,
              weights + weight_tap.second * level.cells_across, float(weight_tap.share), level.cells_across);
      expand_row(weight_rows.data + n * weight_size, mixed.data + 1, level.cells_across, level.factor);
      between(mixed.data + 1, half + below_tap.first * across, half + below_tap.second * across, float(below_tap.share),
              across);
      expand_row(below_rows.data + n * below_size, mixed.data + 1, across, 2);
    }
    for (int64_t x0 = 0; x0 < width; x0 += kColumns) {
      const int64_t m = width - x0 < kColumns ? width - x0 : kColumns;
      std::memcpy(sum, fused + x0, size_t(m) * sizeof(float));
      for (float* row : {blue, blue_weight, red, red_weight}) std::memset(row, 0, size_t(m) * sizeof(float));
      for (int64_t n = 0; n < level.count; ++n) {
        split(level.pictures[n] + (y * width + x0) * 3, m, bytes[0], bytes[1], bytes[2]);
        const float* __restrict weight = weight_rows.data + n * weight_size + level.factor / 2 + x0;
        const float* __restrict below = below_rows.data + n * below_size + 1 + x0;
        for (int64_t x = 0; x < m; ++x) {
          const float r = bytes[0][x], g = bytes[1][x], b = bytes[2][x];
          const float luminance = kRed * r + kGreen * g + kBlue * b + kBlack;
          sum[x] += weight[x] * (luminance - below[x]);
          const float cb = -0.148223f * r - 0.290992f * g + 0.439215f * b;
          const float cr = 0.439215f * r - 0.367789f * g - 0.071426f * b;
          const float cb_weight = __builtin_fabsf(cb), cr_weight = __builtin_fabsf(cr);
          blue[x] += cb * cb_weight;
          blue_weight[x] += cb_weight;
          red[x] += cr * cr_weight;
          red_weight[x] += cr_weight;
        }
      }
      for (int64_t x = 0; x < m; ++x) {
        float luminance = sum[x];
        luminance = luminance < 0.0f ? 0.0f : luminance > 1.0f ? 1.0f : luminance;
        const float grey = 1.164383f * 255 * luminance - 1.164383f * 16;
        // Where all pictures are grey the sums are 0, and so is the quotient.
        const float cb = blue[x] / (blue_weight[x] + 1e-30f), cr = red[x] / (red_weight[x] + 1e-30f);
        bytes[0][x] = to_byte(grey + 1.596027f * cr);
        bytes[1][x] = to_byte(grey - 0.391762f * cb - 0.812969f * cr);
        bytes[2][x] = to_byte(grey + 2.017230f * cb);
      }
      join(out + (y * width + x0) * 3, m, bytes[0], bytes[1], bytes[2]);
    }
  }
}

}  // namespace

extern const PyramidFuseRgbKernels pyramid_fuse_rgb_kernels;
const PyramidFuseRgbKernels pyramid_fuse_rgb_kernels = {halve, fuse};

}  // namespace FFMEF_ISA
}  // namespace ffmef
