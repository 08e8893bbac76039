/* C interface of PyramidFFMEF's CUDA kernels, from pictures to a picture or from luminance to luminance: raw device
 * pointers and sizes; no torch, no validation. Launches on `stream` of the current device, never synchronises and
 * allocates nothing. ffmef/models/pyramid.py is the definition. */
#pragma once

#include "types.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { FFMEF_MOST_EXPOSURES = 64, FFMEF_MOST_GRIDS = 8, FFMEF_MOST_OCTAVES = 16 };

/* Samples: luminance on the scale 0..1 (height, width), or RGB (height, width, 3). */
enum { FFMEF_LUMINANCE = 0, FFMEF_RGB8 = 1, FFMEF_RGB16 = 2, FFMEF_RGB_FLOAT = 3 };

typedef struct {
  int sample;
  int64_t count, height, width;
  const void* const* pictures;    /* contiguous */
  const uint8_t* const* validity; /* (height, width) each, null for all of a picture; null where none is given */
  int grids;                      /* at least 2 */
  const int* channels;            /* of each grid: 16, then 16 or 32 */
  int stem, octaves;              /* at most 16 */
  const float* const* parameters; /* contiguous, in the order of the model's own parameters() */
  float brightness, contrast, saturation; /* factors, 1 for no change */
  float prefer;                           /* 0 for no change */
  int early_launches; /* 1: a launch may start while the one before it ends; compute capability 9.0 and later */
} ffmef_pictures;

/* The elements of each parameter; returns how many parameters there are. `sizes` may be null. */
int ffmef_cuda_pyramid_pictures_parameters(const ffmef_pictures* pictures, int64_t* sizes);

/* Bytes of `workspace`. */
int64_t ffmef_cuda_pyramid_pictures_workspace(const ffmef_pictures* pictures);

/* `out` has the pictures' sample type and size. Returns a cudaError_t as an int: 0 when all launches were accepted. */
int ffmef_cuda_pyramid_pictures(const ffmef_pictures* pictures, void* out, void* workspace, void* stream);

/* Several brackets, which differ in `pictures` and `validity` alone, each with its own `outs`. Small ones run beside
 * each other, on further streams that wait for `stream`, and for which `stream` waits. */
int64_t ffmef_cuda_pyramid_brackets_workspace(const ffmef_pictures* brackets, int64_t count);
int ffmef_cuda_pyramid_brackets(const ffmef_pictures* brackets, int64_t count, void* const* outs, void* workspace,
                                void* stream);

#ifdef __cplusplus
}
#endif
