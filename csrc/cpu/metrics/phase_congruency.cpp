// Binds the kernel of phase congruency to torch: checks what memory safety needs, allocates the result.
#include "phase_congruency.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

namespace ffmef {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

const double* data_of(const Tensor& tensor, const char* name) {
  STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Double && tensor.is_contiguous(), name,
                  " must be contiguous float64");
  return static_cast<const double*>(tensor.data_ptr());
}

Tensor phase_congruency_cpu(const Tensor& levels, const Tensor& tables, const Tensor& decay, double angular_deviation,
                            const Tensor& noise_gains, bool always_double) {
  STD_TORCH_CHECK(
      levels.dim() == 3 && levels.numel() > 0 && levels.scalar_type() == ScalarType::Byte && levels.is_contiguous(),
      "levels must be contiguous uint8 (P, H, W)");
  const int64_t pictures = levels.size(0), height = levels.size(1), width = levels.size(2);
  STD_TORCH_CHECK(tables.dim() == 5 && tables.size(0) == 3 && tables.size(1) == 2 &&
                      tables.size(2) == phase_congruency_tiles(width) && tables.size(3) == height &&
                      tables.size(4) == kPhaseCongruencyTile,
                  "tables must be (3, 2, W // 32 + 1, H, 16): first, ratio and direction of columns and mirrored ones");
  STD_TORCH_CHECK(decay.dim() == 1 && decay.size(0) >= 1 && decay.size(0) <= kMostScales,
                  "decay must have one value for each of 1 to ", kMostScales, " scales");
  STD_TORCH_CHECK(noise_gains.dim() == 1, "noise_gains must have one value for each orientation");
  const PhaseCongruencyArgs args{height,
                                 width,
                                 data_of(tables, "tables"),
                                 data_of(decay, "decay"),
                                 angular_deviation,
                                 data_of(noise_gains, "noise_gains"),
                                 int(decay.size(0)),
                                 int(noise_gains.size(0))};
  Tensor maps = torch::stable::new_empty(levels, {pictures, 3, height, width}, ScalarType::Float);
  const PhaseCongruencyKernels& kernels = FFMEF_KERNELS(phase_congruency_kernels);
  for (int64_t picture = 0; picture < pictures; ++picture) {
    const uint8_t* from = static_cast<const uint8_t*>(levels.data_ptr()) + picture * height * width;
    float* to = static_cast<float*>(maps.data_ptr()) + picture * 3 * height * width;
    if (always_double || !kernels.in_float(args, from, to)) kernels.in_double(args, from, to);
  }
  return maps;
}

}  // namespace
}  // namespace ffmef

STABLE_TORCH_LIBRARY_IMPL(ffmef, CPU, m) { m.impl("phase_congruency", TORCH_BOX(&ffmef::phase_congruency_cpu)); }
