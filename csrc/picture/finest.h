// The interface between fuse.cpp and the kernel that halves pictures of any depth.
#pragma once
#include <cstdint>

#include "../cpu/base/isa.h"

namespace ffmef {

// The type of samples. Luminance is float with one channel and is neither converted nor clipped.
enum class Sample { u8, u16, f32, luminance };

// A contiguous picture (height, width, channels) with 1 or 3 channels.
struct PictureView {
  const void* data;
  int channels;
};

struct FinestKernels {
  // Computes rows [begin, end) of half, the mean luminance of 2 x 2 pixels; an odd border is repeated. Returns whether
  // all samples read are valid: those of floating-point pictures must lie in [0, 1].
  bool (*halve)(Sample, PictureView, int64_t height, int64_t width, float* half, int64_t begin, int64_t end);
};

FFMEF_DECLARE_KERNELS(FinestKernels, finest_kernels)

}  // namespace ffmef
