// What the binding of the coarse predictor hands to its kernel.
#pragma once
#include <cstdint>
#include <memory>

#include "../base/isa.h"

namespace ffmef {

constexpr int kMaxGrids = 8;
// The channels of every grid are a multiple of this; the stem has at most this many.
constexpr int kChannelBlock = 16;

// Weights as torch keeps them, (outputs, inputs, size, size) and (outputs,); contiguous float32.
struct PredictConv {
  const float* weight;
  const float* bias;
  int outputs, inputs, size;
};

struct PredictNetwork {
  int grids, bands;
  PredictConv stem, enter, meet, statistics;
  PredictConv down[kMaxGrids], encode[kMaxGrids], up[kMaxGrids], decode[kMaxGrids];  // grids - 1 of each
  PredictConv overall, meet_coarsest, head;
  const float* prior;                    // for the bands, the base, the fine octaves and the others
  std::shared_ptr<const void> prepared;  // weights as the kernels read them
};

// What is known of each cell (csrc/picture/exposures.h).
struct PredictCells {
  const float *high, *low;  // (count, h, w)
  const float* apart;       // (h, w)
  const float* validity;    // (count, h, w), or null
  const float* preference;  // (count), added to the logits, or null
};

constexpr int kFurtherPlanes = 3;  // besides the bands' planes: base, fine octaves and other octaves

// Maps (count, h, w) with h = ceil(height / 4) rows.
struct PredictMaps {
  float *weights, *base;  // (bands, count, h, w) and (count, h, w): share (1 + gain)
  float* shares;          // of the base
  float *fine_shares, *fine_gains, *octave_shares, *octave_gains;
};

// Runs body(context, begin, end) over parts of [0, rows), on as many threads as there are.
struct ParallelRows {
  void* threads;
  void (*run)(void* threads, int64_t rows, int64_t row_cost, void* context,
              void (*body)(void* context, int64_t begin, int64_t end));
};

struct PyramidPredictKernels {
  // Arranges a network's weights for `predict`, once for many calls. `forget` releases them.
  const void* (*prepare)(const PredictNetwork&);
  void (*forget)(const void*);
  // half: (count, height, width).
  void (*predict)(const PredictNetwork&, const float* half, int64_t count, int64_t height, int64_t width,
                  const PredictCells&, const PredictMaps&, ParallelRows parallel);
};

FFMEF_DECLARE_KERNELS(PyramidPredictKernels, pyramid_predict_kernels)

}  // namespace ffmef
