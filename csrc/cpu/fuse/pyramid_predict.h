// What the binding of the coarse predictor hands to its kernel.
#pragma once
#include <cstdint>

#include "../base/isa.h"

namespace ffmef {

constexpr int kMaxGrids = 8;
// Channels of every grid are a multiple of it; the stem has at most as many.
constexpr int kChannelBlock = 16;

// Weights as torch keeps them, (outputs, inputs, size, size) and (outputs,); contiguous float32.
struct PredictConv {
  const float* weight;
  const float* bias;
  int outputs, inputs, size;
};

struct PredictNetwork {
  int grids, bands;
  PredictConv stem, enter, meet;
  PredictConv down[kMaxGrids], encode[kMaxGrids], up[kMaxGrids], decode[kMaxGrids];  // grids - 1 of each
  PredictConv overall, meet_coarsest, head;
};

// Runs body(context, begin, end) over parts of [0, rows), on as many threads as there are.
struct ParallelRows {
  void* threads;
  void (*run)(void* threads, int64_t rows, int64_t row_cost, void* context,
              void (*body)(void* context, int64_t begin, int64_t end));
};

struct PyramidPredictKernels {
  // half (count, height, width) -> weights (bands, count, h, w) and base (count, h, w), h = ceil(height / 4).
  void (*predict)(const PredictNetwork&, const float* half, int64_t count, int64_t height, int64_t width,
                  float* weights, float* base, ParallelRows parallel);
};

FFMEF_DECLARE_KERNELS(PyramidPredictKernels, pyramid_predict_kernels)

}  // namespace ffmef
