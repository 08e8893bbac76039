/* C interface of the CUDA kernels of adaptive_fuse: raw device pointers, sizes and strides; no torch, no validation.
 * Every function launches on `stream` of the current device, never synchronises and allocates nothing. It returns a
 * cudaError_t as an int: 0 when all launches were accepted. */
#pragma once

#include "types.h"

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* out[b,c,y,x] = sum_l alpha_l sum_n sum_(i,j) filters_l[b,n,i*k+j,y,x] * padded images[b,n,c,y+i-k/2,x+j-k/2].
 * Strides count elements. */
typedef struct {
  int dtype, padding; /* codes of types.h and of common/padding.h */
  int64_t batch, image_count, channels, height, width;
  const void* images;
  int64_t image_strides[5]; /* batch, image, channel, row, column */
  int level_count;
  const int* sizes;           /* k of each level, odd */
  const void* const* filters; /* (batch, image, k * k, row, column) each */
  const int64_t (*filter_strides)[5];
  const void* alphas; /* (levels,); float64 with float64 images, else float32 */
  int64_t alpha_stride;
  const int64_t (*filter_grids)[2]; /* rows and columns of each level's filters where some are on a coarser grid that
                                       spans the images, 1 to those of the images; null where none is */
} ffmef_fusion;

/* A result whose pointer is null is not computed. All tensors are contiguous. */
typedef struct {
  const void* output; /* gradient of the output, (batch, channels, row, column) */
  int64_t output_strides[4];
  void* images;
  void* const* filters; /* array of level_count pointers, or null */
  void* alphas;         /* (levels,), of the dtype of alphas */
  void* workspace;      /* ffmef_cuda_adaptive_fuse_workspace bytes, aligned to 8; needed for the gradient of alphas */
} ffmef_fusion_gradients;

int ffmef_cuda_adaptive_fuse(const ffmef_fusion* fusion, void* output, void* stream);
int64_t ffmef_cuda_adaptive_fuse_workspace(const ffmef_fusion* fusion, const ffmef_fusion_gradients* gradients);
int ffmef_cuda_adaptive_fuse_backward(const ffmef_fusion* fusion, const ffmef_fusion_gradients* gradients,
                                      void* stream);

#ifdef __cplusplus
}
#endif
