// What fuse.cpp hands to the kernels of PyramidFFMEF (ffmef/models/pyramid.py), beside those of finest.h: what each
// exposure has recorded, octaves, and the finest level with colour by shares and validity.
#pragma once
#include <cstdint>

#include "finest.h"

namespace ffmef {

// How far each cell of a picture can be used. There are h x w cells of 4 x 4 pixels at half size.
struct Statistics {
  float *high, *low;  // (count, h, w): means of how far luminance is from white and from black
  float* apart;       // (h, w): mean of the difference between the brightest and the darkest picture
  float* validity;    // (count, h, w): means of the given validity; null if none is given
};

// The finest level. All planes are contiguous; luminance is on the scale 0..1, studio swing.
struct ExposureLevel {
  Sample sample;
  int64_t count, height, width;
  const PictureView* pictures;
  const uint8_t* const* validity;  // of each picture (height, width), null for all of it; null if none is given
  bool coloured;                   // whether any picture is; then the result has 3 channels, otherwise 1
  const float* half;               // (count, ceil(height / 2), ceil(width / 2)), luminance at half size
  const float* half_fused;         // the fused level of half size
  const float* weights;            // (count, cells_down, cells_across), of the finest band
  const float* shares;             // the same, of the base
  int64_t cells_down, cells_across;
  float brightness, saturation;  // factors of shadows and of chroma; 1 for no change
};

struct ExposureKernels {
  // Rows [begin, end) of cells, from half (count, height, width) and validity of full size, as above.
  void (*statistics)(const float* half, const uint8_t* const* validity, int64_t count, int64_t full_height,
                     int64_t full_width, const Statistics&, int64_t begin, int64_t end);
  // Rows [begin, end) of out (ceil(height / 2), ceil(width / 2)): in filtered by [1 3 3 1] / 8 along both sides.
  void (*shrink)(const float* in, int64_t height, int64_t width, float* out, int64_t begin, int64_t end);
  // Rows [begin, end) of the fused picture, of the sample's type.
  void (*fuse)(const ExposureLevel&, void* out, int64_t begin, int64_t end);
};

FFMEF_DECLARE_KERNELS(ExposureKernels, exposure_kernels)

}  // namespace ffmef
