// What the operator's binding hands to its kernels: plain pointers, sizes and strides (in elements).
#pragma once
#include <cstdint>

#include "../../common/padding.h"
#include "../base/isa.h"
#include "../base/scalar.h"

namespace ffmef {

// images (B, N, C, H, W)
struct ImagesView {
  const void* data;
  Scalar scalar;
  int64_t batch, count, channels, height, width;
  int64_t stride[5];
};

// one level's filters (B, N, k*k, height, width), on the images' grid or a coarser one that spans it
struct LevelView {
  const void* data;
  Scalar scalar;
  int64_t stride[5];
  int64_t height, width;
  int size;  // k
  double alpha;
  bool coarse;
};

// grad (B, C, H, W)
struct GradView {
  const void* data;
  int64_t stride[4];
};

// The images and each level have their own dtypes, all float64 or none. The result and its gradient have dtype
// `result`.
struct AdaptiveFuseArgs {
  Scalar result;
  Padding padding;
  ImagesView images;
  const LevelView* levels;
  int level_count;
};

struct AdaptiveFuseKernels {
  // The work is cut into items: bands of rows of a batch element, or of a tile of its columns. One thread computes each
  // item, so results do not depend on the number of threads.
  int64_t (*forward_items)(const AdaptiveFuseArgs&);
  // responses (levels, B, C, H, W): what each level adds, before alpha, in the dtype of sums; or null.
  void (*forward)(const AdaptiveFuseArgs&, void* out, void* responses, int64_t begin, int64_t end);

  // filter_grads[l] is contiguous or null; alpha_sums is [item][level] or null. Coarse levels are left out.
  void (*backward_filters)(const AdaptiveFuseArgs&, const GradView&, void* const* filter_grads, double* alpha_sums,
                           int64_t begin, int64_t end);

  // Writes what an item adds to the alphas' gradient, [item][level], from the forward pass's responses.
  void (*backward_alphas)(const AdaptiveFuseArgs&, const GradView&, const void* responses, double* alpha_sums,
                          int64_t begin, int64_t end);

  int64_t (*image_items)(const AdaptiveFuseArgs&);
  void (*backward_images)(const AdaptiveFuseArgs&, const GradView&, void* image_grad, int64_t begin, int64_t end);
};

FFMEF_DECLARE_KERNELS(AdaptiveFuseKernels, adaptive_fuse_kernels)

// For calls in which some level is coarse. The kernels above give the gradients of the other levels' filters.
struct AdaptiveFuseCoarseKernels {
  void (*forward)(const AdaptiveFuseArgs&, void* out, void* responses, int64_t begin,
                  int64_t end);  // items as for the kernels above

  // One coarse level's filters; items are bands of its rows, alpha_sums is [item] or null.
  int64_t (*filter_items)(const AdaptiveFuseArgs&, int level);
  void (*backward_filters)(const AdaptiveFuseArgs&, const GradView&, int level, void* filter_grad, double* alpha_sums,
                           int64_t begin, int64_t end);

  void (*backward_images)(const AdaptiveFuseArgs&, const GradView&, void* image_grad, int64_t begin, int64_t end);
};

FFMEF_DECLARE_KERNELS(AdaptiveFuseCoarseKernels, adaptive_fuse_coarse_kernels)

}  // namespace ffmef
