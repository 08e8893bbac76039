// What the pyramid operators' bindings hand to their kernels: plain pointers, sizes and strides (in elements).
#pragma once
#include <cstdint>

#include "../base/isa.h"
#include "../base/scalar.h"

namespace ffmef {

// Largest factor between a level of the pyramid and the grid of weights.
constexpr int kMaxExpansion = 64;

// A picture with any strides, in the images' dtype or (stored = false) in the dtype of sums.
struct PlaneView {
  const void* data;
  int64_t row_stride, column_stride;
  bool stored;
};

// One level of the pyramids of one batch element and channel. Everything except `fine` and `grad` is contiguous and in
// the dtype of sums: float for float, float16 and bfloat16, otherwise double.
struct PyramidLevel {
  Scalar scalar;
  int64_t count;             // images
  int64_t height, width;     // of this level
  const PlaneView* fine;     // one plane per image
  const void* coarse;        // (count, ceil(height / 2), ceil(width / 2)), or null at the lowest level
  const void* coarse_fused;  // the fused level below, or null at the lowest level
  const void* weights;       // (count, cells_down, cells_across)
  int64_t cells_down, cells_across;
  int factor;      // pixels of this level along a side of a cell
  PlaneView grad;  // of the fused level; backward only
};

struct PyramidFuseKernels {
  // Rows [begin, end) of the result; one thread computes each, so results do not depend on the number of threads.

  // coarse (contiguous, in the dtype of sums) = means of 2 x 2 pixels of fine (height, width). Rows refer to coarse.
  void (*halve)(Scalar, const PlaneView& fine, int64_t height, int64_t width, void* coarse, int64_t begin, int64_t end);

  // The fused level, in the images' dtype (stored) or in the dtype of sums.
  void (*fuse)(const PyramidLevel&, void* out, bool stored, int64_t begin, int64_t end);

  // coarse (height, width) = adjoint of the expansion by 2, applied to the sum over images of scale[n] * fine[n]. scale
  // holds the expanded weights. If level.weights is null, count is 1 and scale is 1. Rows refer to coarse.
  void (*expand_adjoint)(const PyramidLevel& level, int64_t image, void* coarse, int64_t height, int64_t width,
                         int64_t begin, int64_t end);

  // Adds the gradient of one level's weights, (count, cells_down, cells_across), from grad and the level's bands. Rows
  // are rows of cells.
  void (*weights_gradient)(const PyramidLevel&, void* out, int64_t begin, int64_t end);

  // Gradient of image n at this level: weights * grad - above + spread(below). `above` (the adjoint expansion of the
  // finer band's gradient) and `below` (gradient of the coarser level) may be null.
  void (*image_gradient)(const PyramidLevel&, int64_t image, const void* above, const void* below, void* out,
                         bool stored, int64_t begin, int64_t end);
};

FFMEF_DECLARE_KERNELS(PyramidFuseKernels, pyramid_fuse_kernels)

}  // namespace ffmef
