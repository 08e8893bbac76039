// The interface between fuse.cpp and the kernels of PyramidFFMEF (ffmef/models/pyramid.py): statistics of what each
// exposure recorded, the halving of octaves, and the finest level, which merges colour by shares and validity. The
// halving of pictures is in finest.h.
#pragma once
#include <cstdint>

#include "finest.h"

namespace ffmef {

// How far each cell of a picture is usable. There are h x w cells, each of 4 x 4 pixels at half size.
struct Statistics {
  float *high, *low;  // (count, h, w): mean distance of luminance from white and from black
  float* apart;       // (h, w): mean difference between the brightest and the darkest picture
  float* validity;    // (count, h, w): mean of the given validity; null if none is given
};

// The finest level. All planes are contiguous; luminance is on the scale 0..1, studio swing.
struct ExposureLevel {
  Sample sample;
  int64_t count, height, width;
  const PictureView* pictures;
  // Per picture (height, width), or null if all of its pixels are valid. Null as a whole if no validity is given.
  const uint8_t* const* validity;
  bool coloured;            // whether any picture is; then the result has 3 channels, otherwise 1
  const float* half;        // (count, ceil(height / 2), ceil(width / 2)), luminance at half size
  const float* half_fused;  // the fused level of half size
  const float* weights;     // (count, cells_down, cells_across), of the finest band
  const float* shares;      // the same shape, of the base
  int64_t cells_down, cells_across;
  float brightness, saturation;  // factors on shadows and on chroma; 1 changes nothing
};

struct ExposureKernels {
  // Computes rows [begin, end) of cells from half (count, height, width) and from validity at full size, as above.
  void (*statistics)(const float* half, const uint8_t* const* validity, int64_t count, int64_t full_height,
                     int64_t full_width, const Statistics&, int64_t begin, int64_t end);
  // Computes rows [begin, end) of out (ceil(height / 2), ceil(width / 2)): `in`, filtered by [1 3 3 1] / 8 along both
  // sides.
  void (*shrink)(const float* in, int64_t height, int64_t width, float* out, int64_t begin, int64_t end);
  // Computes rows [begin, end) of the fused picture, in the type of the samples.
  void (*fuse)(const ExposureLevel&, void* out, int64_t begin, int64_t end);
};

FFMEF_DECLARE_KERNELS(ExposureKernels, exposure_kernels)

}  // namespace ffmef
