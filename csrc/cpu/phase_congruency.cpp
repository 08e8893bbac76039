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

Tensor phase_congruency_cpu(const Tensor& spectrum, const Tensor& radial, const Tensor& decay, const Tensor& direction,
                            double angular_deviation, const Tensor& noise_gains, bool always_double) {
  STD_TORCH_CHECK(direction.dim() == 2 && direction.numel() > 0, "direction must be (H, W)");
  const int64_t height = direction.size(0), width = direction.size(1);
  STD_TORCH_CHECK(spectrum.dim() == 3 && spectrum.size(0) == 2 && spectrum.size(1) == height &&
                      spectrum.size(2) == width / 2 + 1,
                  "spectrum must be (2, H, W // 2 + 1), real and imaginary part");
  STD_TORCH_CHECK(radial.dim() == 3 && radial.size(0) == 2 && radial.size(1) == height && radial.size(2) == width,
                  "radial must be (2, H, W) like direction: the first scale's factor and the ratio of the next");
  STD_TORCH_CHECK(decay.dim() == 1 && decay.size(0) >= 1 && decay.size(0) <= kMostScales,
                  "decay must have one value for each of 1 to ", kMostScales, " scales");
  STD_TORCH_CHECK(noise_gains.dim() == 1, "noise_gains must have one value for each orientation");
  const double* re = data_of(spectrum, "spectrum");
  const double* first = data_of(radial, "radial");
  const int64_t pixels = height * width;
  const PhaseCongruencyArgs args{height,
                                 width,
                                 re,
                                 re + height * (width / 2 + 1),
                                 first,
                                 first + pixels,
                                 data_of(decay, "decay"),
                                 data_of(direction, "direction"),
                                 angular_deviation,
                                 data_of(noise_gains, "noise_gains"),
                                 int(decay.size(0)),
                                 int(noise_gains.size(0))};
  Tensor maps = torch::stable::new_empty(spectrum, {3, height, width}, ScalarType::Float);
  float* to = static_cast<float*>(maps.data_ptr());
  const PhaseCongruencyKernels& kernels = FFMEF_KERNELS(phase_congruency_kernels);
  PhaseCongruencyResult result = PhaseCongruencyResult::rounding_shows;
  if (!always_double) result = kernels.in_float(args, to);
  if (result == PhaseCongruencyResult::rounding_shows) result = kernels.in_double(args, to);
  STD_TORCH_CHECK(result == PhaseCongruencyResult::done, "phase_congruency: out of memory");
  return maps;
}

}  // namespace
}  // namespace ffmef

STABLE_TORCH_LIBRARY_IMPL(ffmef, CPU, m) { m.impl("phase_congruency", TORCH_BOX(&ffmef::phase_congruency_cpu)); }
