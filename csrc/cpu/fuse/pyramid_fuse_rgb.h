// What the binding of pyramid_fuse for 8-bit RGB pictures hands to its kernels.
#pragma once
#include <cstdint>

#include "../base/isa.h"

namespace ffmef {

// The finest level, colour included. All planes are contiguous; luminance is on the scale 0..1, studio swing.
struct RgbLevel {
  int64_t count, height, width;
  const uint8_t* const* pictures;  // count pictures (height, width, 3)
  const float* half;               // (count, ceil(height / 2), ceil(width / 2)), luminance at half size
  const float* half_fused;         // the fused level of half size
  const float* weights;            // (count, cells_down, cells_across)
  int64_t cells_down, cells_across;
  int factor;  // pixels along a side of a cell
};

struct PyramidFuseRgbKernels {
  // Rows [begin, end) of half: the mean luminance of 2 x 2 pixels, an odd border repeated.
  void (*halve)(const uint8_t* picture, int64_t height, int64_t width, float* half, int64_t begin, int64_t end);
  // Rows [begin, end) of the fused picture (height, width, 3).
  void (*fuse)(const RgbLevel&, uint8_t* out, int64_t begin, int64_t end);
};

FFMEF_DECLARE_KERNELS(PyramidFuseRgbKernels, pyramid_fuse_rgb_kernels)

}  // namespace ffmef
