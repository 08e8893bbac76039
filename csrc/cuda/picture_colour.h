/* C interface of the kernels before and after a model of luminance: samples to luminance, fused luminance to samples.
 * Raw device pointers and sizes; no torch, no validation. Launches on `stream` of the current device, never
 * synchronises and allocates nothing. ffmef/imaging/colour.py is the definition, to the bit. */
#pragma once

#include "types.h"

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { FFMEF_UINT8_SAMPLES = 0, FFMEF_UINT16_SAMPLES = 1, FFMEF_FLOAT32_SAMPLES = 2, FFMEF_FLOAT64_SAMPLES = 3 };
enum { FFMEF_MOST_SOURCES = 64 };

/* `samples` (pixels, channels) with 1 or 3 channels, contiguous; `luminance` (pixels,) on the scale 0..1. Returns a
 * cudaError_t as an int. */
int ffmef_cuda_sample_luminance(const void* samples, int sample, int channels, int64_t pixels, float* luminance,
                                void* stream);

/* `fused` (pixels,) on the scale 0..1 and the chroma of 1 to 64 sources (pixels, 3) to `out` (pixels, 3). */
int ffmef_cuda_recoloured(const float* fused, const void* const* sources, int count, int sample, int64_t pixels,
                          void* out, void* stream);

#ifdef __cplusplus
}
#endif
