// What the binding of the thin convolution hands to its kernels. Everything is contiguous float32.
#pragma once
#include <cstdint>

#include "../base/isa.h"

namespace ffmef {

constexpr int kMaxThinSize = 7;

struct ThinConvolutionArgs {
  int64_t batch, inputs, outputs, height, width;
  int size;     // k, odd
  float slope;  // of the activation after the convolution, for negative values; 1: no activation
};

struct ThinConvolutionKernels {
  // Floats of scratch that one batch element needs, forward and backward alike.
  int64_t (*scratch)(const ThinConvolutionArgs&);

  // input (B, inputs, H, W); weight (outputs, inputs, k, k); bias (outputs) or null; out (B, outputs, H, W). Elements
  // [begin, end) of the batch.
  void (*forward)(const ThinConvolutionArgs&, const float* input, const float* weight, const float* bias, float* out,
                  float* scratch, int64_t begin, int64_t end);

  // grad and out (B, outputs, H, W), with out null if slope is 1. turned (inputs, outputs, k, k) is the weight of the
  // adjoint. input_grad (B, inputs, H, W) or null; weight_grad (B, outputs, inputs, k, k) and bias_grad (B, outputs) or
  // both null. Both hold one share per element, so threads never write to the same place.
  void (*backward)(const ThinConvolutionArgs&, const float* grad, const float* input, const float* turned,
                   const float* out, float* input_grad, float* weight_grad, float* bias_grad, float* scratch,
                   int64_t begin, int64_t end);
};

FFMEF_DECLARE_KERNELS(ThinConvolutionKernels, thin_convolution_kernels)

}  // namespace ffmef
