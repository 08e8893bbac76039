/* C interface of the CUDA kernels of pyramid_fuse: raw device pointers, sizes and strides; no torch, no validation.
 * Every function launches on `stream` of the current device, never synchronises and allocates nothing. It returns a
 * cudaError_t as an int: 0 when all launches were accepted. */
#pragma once

#include "types.h"

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The arguments of ffmef.ops.pyramid_fuse. Strides count elements. The grid has ceil(height / scale) x
 * ceil(width / scale) cells; scale is a power of two from 2^bands to 64. */
typedef struct {
  int dtype;
  int64_t batch, image_count, channels, height, width;
  const void* images;
  int64_t image_strides[5]; /* batch, image, channel, row, column */
  int bands, scale;
  const void* weights;
  int64_t weight_strides[5]; /* batch, band, image, row, column */
  const void* base;
  int64_t base_strides[4]; /* batch, image, row, column */
} ffmef_pyramid;

/* A result whose pointer is null is not computed. All tensors but `output` are contiguous. */
typedef struct {
  const void* output; /* gradient of the output, (batch, channels, row, column) */
  int64_t output_strides[4];
  void* images;
  void* weights;
  void* base;
} ffmef_pyramid_gradients;

/* Bytes of workspace that a call needs, aligned to 16. Forward calls need it only for more than three bands. */
int64_t ffmef_cuda_pyramid_fuse_workspace(const ffmef_pyramid* pyramid);
int64_t ffmef_cuda_pyramid_fuse_backward_workspace(const ffmef_pyramid* pyramid,
                                                   const ffmef_pyramid_gradients* gradients);

/* output is (batch, channels, row, column), contiguous. */
int ffmef_cuda_pyramid_fuse(const ffmef_pyramid* pyramid, void* output, void* workspace, void* stream);
int ffmef_cuda_pyramid_fuse_backward(const ffmef_pyramid* pyramid, const ffmef_pyramid_gradients* gradients,
                                     void* workspace, void* stream);

#ifdef __cplusplus
}
#endif
