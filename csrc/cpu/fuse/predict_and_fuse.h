// What the binding of predict_and_fuse hands to its CPU kernels: one level, images of one channel, already padded.
#pragma once
#include <cstdint>

#include "../base/isa.h"

namespace ffmef {

constexpr int kMaxPredictedSize = 7;

// out = sum_n (sum_i hidden_i * response_i + response_M), where response_i is the correlation of the padded image with
// kernel i. Everything is contiguous float32.
struct PredictAndFuseArgs {
  const float* hidden;   // (B, N, M, H, W)
  const float* kernels;  // (M + 1, k, k); the last kernel's map is 1 everywhere
  const float* padded;   // (B, N, H + k - 1, W + k - 1)
  int64_t batch, images, maps, height, width;
  int size;  // k, odd

  // Bands of rows of one batch element, the same for any number of threads.
  static constexpr int64_t kBandRows = 32;
  int64_t bands() const { return (height + kBandRows - 1) / kBandRows; }
  int64_t items() const { return batch * bands(); }
};

struct PredictAndFuseKernels {
  // Floats of scratch that one thread needs, forward and backward alike.
  int64_t (*scratch)(const PredictAndFuseArgs&);

  // out (B, H, W). Items [begin, end).
  void (*forward)(const PredictAndFuseArgs&, float* out, float* scratch, int64_t begin, int64_t end);

  // grad (B, H, W); hidden_grad (B, N, M, H, W) or null; kernel_grad (items, M + 1, k, k), one share per item, or null.
  void (*backward)(const PredictAndFuseArgs&, const float* grad, float* hidden_grad, float* kernel_grad, float* scratch,
                   int64_t begin, int64_t end);
};

FFMEF_DECLARE_KERNELS(PredictAndFuseKernels, predict_and_fuse_kernels)

}  // namespace ffmef
