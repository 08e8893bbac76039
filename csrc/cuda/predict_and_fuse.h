/* C interface of the CUDA kernels of predict_and_fuse: raw device pointers, sizes and strides; no torch, no validation.
 * Launches on `stream` of the current device, never synchronises and allocates nothing. */
#pragma once

#include "adaptive_fuse.h" /* padding modes */
#include "types.h"

#ifdef __cplusplus
extern "C" {
#endif

/* out[b,c,y,x] = sum_l alpha_l sum_n sum_(i,j) (sum_m weight_l[i*k+j,m] * hidden_l[b,n,m,y,x] + bias_l[i*k+j])
 *                                              * padded images[b,n,c,y+i-k/2,x+j-k/2].
 * Strides count elements. */
typedef struct {
  int dtype, padding;
  int64_t batch, image_count, channels, height, width;
  const void* images;
  int64_t image_strides[5]; /* batch, image, channel, row, column */
  int level_count;
  const int* sizes;          /* k of each level, odd */
  const int* maps;           /* M of each level */
  const void* const* hidden; /* (batch, image, M, row, column) each */
  const int64_t (*hidden_strides)[5];
  const void* const* weight; /* (k * k, M) each, contiguous */
  const void* const* bias;   /* (k * k,) each, contiguous */
  const void* alphas;        /* (levels,); float64 with float64 images, else float32 */
  int64_t alpha_stride;
} ffmef_prediction;

/* Returns a cudaError_t as an int: 0 when all launches were accepted. */
int ffmef_cuda_predict_and_fuse(const ffmef_prediction* prediction, void* output, void* stream);

#ifdef __cplusplus
}
#endif
