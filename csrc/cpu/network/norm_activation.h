// What the binding of norm_activation hands to its kernels. Everything is contiguous float32.
#pragma once
#include <cstdint>

#include "../base/isa.h"

namespace ffmef {

// InstanceNorm of the first `normed` channels, then an activation of all channels: x if positive, otherwise slope * x.
struct NormActivationArgs {
  const float* input;          // (B, channels, pixels)
  const float *weight, *bias;  // (normed)
  int64_t batch, channels, normed, pixels;
  float slope;
  int64_t planes() const { return batch * channels; }
};

struct NormActivationKernels {
  // out (B, channels, pixels); statistics (B, normed, 2), mean and reciprocal deviation. Planes [begin, end).
  void (*forward)(const NormActivationArgs&, float eps, float* out, float* statistics, int64_t begin, int64_t end);

  // input_grad (B, channels, pixels); affine_grad (B, normed, 2), each element's share of the gradients of weight and
  // bias.
  void (*backward)(const NormActivationArgs&, const float* grad, const float* statistics, float* input_grad,
                   float* affine_grad, int64_t begin, int64_t end);
};

FFMEF_DECLARE_KERNELS(NormActivationKernels, norm_activation_kernels)

}  // namespace ffmef
