// Binds the kernel of filters in the Fourier domain to torch: checks what memory safety needs, allocates the result.
#include "spectral_filter.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

namespace ffmef {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

Tensor spectral_filter_cpu(const Tensor& planes, const Tensor& response) {
  STD_TORCH_CHECK(
      planes.dim() == 3 && planes.numel() > 0 && planes.scalar_type() == ScalarType::Double && planes.is_contiguous(),
      "planes must be contiguous float64 (P, H, W)");
  const int64_t height = planes.size(1), width = planes.size(2);
  STD_TORCH_CHECK(response.dim() == 2 && response.size(0) == height && response.size(1) == width / 2 + 1 &&
                      response.scalar_type() == ScalarType::Double && response.is_contiguous(),
                  "response must be contiguous float64 (H, W // 2 + 1)");
  const SpectralFilterArgs args{planes.size(0), height, width, static_cast<const double*>(planes.data_ptr()),
                                static_cast<const double*>(response.data_ptr())};
  Tensor result = torch::stable::new_empty(planes, {args.count, height, width});
  FFMEF_KERNELS(spectral_filter_kernels).filter(args, static_cast<double*>(result.data_ptr()));
  return result;
}

}  // namespace
}  // namespace ffmef

STABLE_TORCH_LIBRARY_IMPL(ffmef, CPU, m) { m.impl("spectral_filter", TORCH_BOX(&ffmef::spectral_filter_cpu)); }
