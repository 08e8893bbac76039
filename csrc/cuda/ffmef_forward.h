/* C interface of the FFMEF network's inference in CUDA C++: raw device pointers and sizes; no torch, no validation.
 * Launches on `stream` of the current device, never synchronises and allocates nothing. */
#pragma once

#include <stdint.h>

#include "types.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A network of 4 channels, float32. `parameters` holds what the model's parameters() yields, in that order, each
 * contiguous. They may be split into tensors in any way that leaves each layer's weight and bias whole. */
typedef struct {
  int64_t batch, height, width; /* fewer than 2^31 pixels in a plane */
  const float* luminance;       /* (batch, 2, height, width), contiguous */
  int64_t parameter_count;
  const float* const* parameters;
  const int64_t* parameter_sizes; /* values of each */
  int level_count;                /* at most 4 */
  const int* sizes;               /* k of each level: 1, 3, 5 or 7 */
  int early_launches; /* let blocks start while the previous launch ends; compute capability 9.0 and later */
} ffmef_network;

/* The number of values in the parameters of a network with these filters. */
int64_t ffmef_cuda_ffmef_forward_values(int level_count, const int* sizes);

/* Whether the parameters hold that many values, each layer's weight and bias whole. */
int ffmef_cuda_ffmef_forward_fits(const ffmef_network* network);

/* Bytes of device memory that a call needs while it runs, aligned to 256. */
int64_t ffmef_cuda_ffmef_forward_workspace(const ffmef_network* network);

/* output: (batch, 1, height, width), contiguous. Returns a cudaError_t as an int: 0 when all launches were accepted. */
int ffmef_cuda_ffmef_forward(const ffmef_network* network, float* output, void* workspace, void* stream);

#ifdef __cplusplus
}
#endif
