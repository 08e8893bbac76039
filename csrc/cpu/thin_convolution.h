// What the binding of the thin convolution hands to its kernels. Everything is contiguous float32.
#pragma once
#include <cstdint>

#include "isa.h"

namespace ffmef {

constexpr int kMaxThinSize = 7;

struct ThinConvolutionArgs {
  const float* input;  // (B, inputs, H, W)
  int64_t batch, inputs, outputs, height, width;
  int size;            // k, odd
};

struct ThinConvolutionKernels {
  // Floats of scratch that one batch element needs, forward and weight_grad alike.
  int64_t (*scratch)(const ThinConvolutionArgs&);

  // weight (outputs, inputs, k, k); bias (outputs) or null; out (B, outputs, H, W). Elements [begin, end) of the batch.
  void (*forward)(const ThinConvolutionArgs&, const float* weight, const float* bias, float* out, float* scratch,
                  int64_t begin, int64_t end);

  // grad (B, outputs, H, W); sums (B, outputs, inputs, k, k), one element's share each, so that threads never meet.
  void (*weight_grad)(const ThinConvolutionArgs&, const float* grad, float* sums, float* scratch, int64_t begin,
                      int64_t end);
};

FFMEF_DECLARE_KERNELS(ThinConvolutionKernels, thin_convolution_kernels)

}  // namespace ffmef
