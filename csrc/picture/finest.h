// What fuse.cpp hands to the kernels of the finest level, which read and write pictures of any depth.
#pragma once
#include <cstdint>

#include "../cpu/base/isa.h"

namespace ffmef {

// The samples of pictures. Luminance is float with one channel, and is neither converted nor clipped.
enum class Sample { u8, u16, f32, luminance };

// A picture (height, width, channels), contiguous, of 1 or 3 channels.
struct PictureView {
  const void* data;
  int channels;
};

struct FinestKernels {
  // Rows [begin, end) of half: the mean luminance of 2 x 2 pixels, an odd border repeated. Whether all samples that
  // were read are valid: floating-point ones of pictures lie in [0, 1].
  bool (*halve)(Sample, PictureView, int64_t height, int64_t width, float* half, int64_t begin, int64_t end);
};

FFMEF_DECLARE_KERNELS(FinestKernels, finest_kernels)

}  // namespace ffmef
