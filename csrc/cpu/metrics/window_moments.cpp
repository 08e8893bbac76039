// Binds the kernel of windowed statistics to torch: checks what memory safety needs, allocates the result.
#include "window_moments.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <vector>

namespace ffmef {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

Tensor window_moments_cpu(const Tensor& maps, const Tensor& taps, std::vector<int64_t> first,
                          std::vector<int64_t> second) {
  STD_TORCH_CHECK(maps.dim() == 3 && maps.scalar_type() == ScalarType::Double && maps.is_contiguous(),
                  "maps must be contiguous float64 (M, H, W)");
  STD_TORCH_CHECK(
      taps.dim() == 1 && taps.size(0) % 2 == 1 && taps.scalar_type() == ScalarType::Double && taps.is_contiguous(),
      "taps must be contiguous float64 (K,), K odd");
  const int64_t count = maps.size(0), height = maps.size(1), width = maps.size(2), size = taps.size(0);
  STD_TORCH_CHECK(size <= height && size <= width, "maps must have at least as many rows and columns as taps");
  STD_TORCH_CHECK(first.size() == second.size(), "first and second must have the same length");
  for (const auto& list : {first, second})
    for (int64_t map : list) STD_TORCH_CHECK(map >= 0 && map < count, "first and second must be numbers of maps");
  const WindowMomentsArgs args{height,
                               width,
                               static_cast<const double*>(maps.data_ptr()),
                               static_cast<const double*>(taps.data_ptr()),
                               first.data(),
                               second.data(),
                               count,
                               int64_t(first.size()),
                               size};
  Tensor result = torch::stable::new_empty(maps, {count + args.pairs, height - size + 1, width - size + 1});
  FFMEF_KERNELS(window_moments_kernels).moments(args, static_cast<double*>(result.data_ptr()));
  return result;
}

}  // namespace
}  // namespace ffmef

STABLE_TORCH_LIBRARY_IMPL(ffmef, CPU, m) { m.impl("window_moments", TORCH_BOX(&ffmef::window_moments_cpu)); }
