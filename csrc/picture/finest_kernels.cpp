// The finest level of a fused pyramid from and to pictures: luminance, fusion, merged chroma and RGB in one pass.
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

// Sums over the pictures of one run of pixels.
struct Run {
  alignas(64) float sum[kColumns], blue[kColumns], blue_weight[kColumns], red[kColumns], red_weight[kColumns];
};

template <class S>
void add_grey(Run& run, const S* grey, const float* __restrict weight, const float* __restrict below, int64_t n) {
  constexpr float scale = (kRed + kGreen + kBlue) * kToByte<S>;
  for (int64_t x = 0; x < n; ++x) run.sum[x] += weight[x] * (scale * float(grey[x]) + kBlack - below[x]);
}

template <class S> void add_colour(Run& run, const Planes<S>& planes, const float* __restrict weight,
                                   const float* __restrict below, int64_t n) {
  for (int64_t x = 0; x < n; ++x) {
    const float r = float(planes.r[x]) * kToByte<S>, g = float(planes.g[x]) * kToByte<S>,
                b = float(planes.b[x]) * kToByte<S>;
    const float luminance = kRed * r + kGreen * g + kBlue * b + kBlack;
    run.sum[x] += weight[x] * (luminance - below[x]);
    const float cb = -0.148223f * r - 0.290992f * g + 0.439215f * b;
    const float cr = 0.439215f * r - 0.367789f * g - 0.071426f * b;
    const float cb_weight = __builtin_fabsf(cb), cr_weight = __builtin_fabsf(cr);
    run.blue[x] += cb * cb_weight;
    run.blue_weight[x] += cb_weight;
    run.red[x] += cr * cr_weight;
    run.red_weight[x] += cr_weight;
  }
}

template <class S> void finish_grey(const Run& run, S* __restrict out, int64_t n) {
  for (int64_t x = 0; x < n; ++x) to_sample(1.164383f * 255 * unit(run.sum[x]) - 1.164383f * 16, out[x]);
}

template <class S> void finish_colour(const Run& run, Planes<S>& planes, S* out, int64_t n) {
  for (int64_t x = 0; x < n; ++x) {
    const float grey = 1.164383f * 255 * unit(run.sum[x]) - 1.164383f * 16;
    // Where all pictures are grey the sums are 0, and so is the quotient.
    const float cb = run.blue[x] / (run.blue_weight[x] + 1e-30f), cr = run.red[x] / (run.red_weight[x] + 1e-30f);
    to_sample(grey + 1.596027f * cr, planes.stored[0][x]);
    to_sample(grey - 0.391762f * cb - 0.812969f * cr, planes.stored[1][x]);
    to_sample(grey + 2.017230f * cb, planes.stored[2][x]);
  }
  join(out, n, planes.stored[0], planes.stored[1], planes.stored[2]);
}

// Rows of weights and of the level of half size for each image, at full size.
struct FinestRows {
  const FinestLevel& level;
  const int64_t down, across, weight_size, below_size;
  Row<float> weights, below, mixed;

  explicit FinestRows(const FinestLevel& l)
      : level(l),
        down(half_of(l.height)),
        across(half_of(l.width)),
        weight_size(expanded_size(l.cells_across, l.factor)),
        below_size(expanded_size(across, 2)),
        weights(l.count * weight_size),
        below(l.count * below_size),
        mixed(most_of(l.cells_across, across) + 2) {}

  void move_to(int64_t y) {
    const int64_t cells = level.cells_down * level.cells_across;
    const RowTap weight_tap = tap_of(y, level.factor, level.cells_down), below_tap = tap_of(y, 2, down);
    for (int64_t n = 0; n < level.count; ++n) {
      const float* plane = level.weights + n * cells;
      const float* half = level.half + n * down * across;
      between(mixed.data + 1, plane + weight_tap.first * level.cells_across,
              plane + weight_tap.second * level.cells_across, float(weight_tap.share), level.cells_across);
      expand_row(weights.data + n * weight_size, mixed.data + 1, level.cells_across, level.factor);
      between(mixed.data + 1, half + below_tap.first * across, half + below_tap.second * across, float(below_tap.share),
              across);
      expand_row(below.data + n * below_size, mixed.data + 1, across, 2);
    }
  }
  const float* weight(int64_t n) const { return weights.data + n * weight_size + level.factor / 2; }
  const float* half(int64_t n) const { return below.data + n * below_size + 1; }
};

template <class S> void fuse_rows(const FinestLevel& level, S* out, int64_t begin, int64_t end) {
  const int64_t width = level.width;
  Planes<S> planes;
  Run run;
  FinestRows rows(level);
  Expander<float> fused_row(rows.across, 2);
  for (int64_t y = begin; y < end; ++y) {
    const float* fused = fused_row(level.half_fused, rows.down, rows.across, 2, y);
    rows.move_to(y);
    for (int64_t x0 = 0; x0 < width; x0 += kColumns) {
      const int64_t m = width - x0 < kColumns ? width - x0 : kColumns, pixel = y * width + x0;
      std::memcpy(run.sum, fused + x0, size_t(m) * sizeof(float));
      if (level.coloured)
        for (float* row : {run.blue, run.blue_weight, run.red, run.red_weight})
          std::memset(row, 0, size_t(m) * sizeof(float));
      for (int64_t n = 0; n < level.count; ++n) {
        planes.read(level.pictures[n].data, level.pictures[n].channels, pixel, m);
        // A grey picture has no chroma and so no weight in the merge.
        if (level.pictures[n].channels == 1)
          add_grey(run, planes.r, rows.weight(n) + x0, rows.half(n) + x0, m);
        else
          add_colour(run, planes, rows.weight(n) + x0, rows.half(n) + x0, m);
      }
      if (level.coloured)
        finish_colour(run, planes, out + 3 * pixel, m);
      else
        finish_grey(run, out + pixel, m);
    }
  }
}

void fuse(const FinestLevel& level, void* out, int64_t begin, int64_t end) {
  switch (level.sample) {
    case Sample::u8: return fuse_rows(level, static_cast<uint8_t*>(out), begin, end);
    case Sample::u16: return fuse_rows(level, static_cast<uint16_t*>(out), begin, end);
    case Sample::f32: return fuse_rows(level, static_cast<float*>(out), begin, end);
    case Sample::luminance: return;  // pyramid_fuse does that
  }
}

}  // namespace

extern const FinestKernels finest_kernels;
const FinestKernels finest_kernels = {halve, fuse};

}  // namespace FFMEF_ISA
}  // namespace ffmef
