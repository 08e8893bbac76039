// Filters two images at two filter sizes by ffmef::adaptive_fuse from C++, and checks the result by hand.
#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <cstdio>

int main() {
  // Linking ffmef::cpu has registered the operator with torch's dispatcher.
  const auto adaptive_fuse =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("ffmef::adaptive_fuse", "")
          .typed<at::Tensor(const at::Tensor&, at::TensorList, const at::Tensor&, std::string_view)>();

  const int64_t height = 240, width = 320;
  const at::Tensor images = at::rand({1, 2, 1, height, width});  // (B, N, C, H, W)
  const std::vector<at::Tensor> filters = {
      at::full({1, 2, 1, height, width}, 0.5),        // k = 1: the mean of both images
      at::full({1, 2, 9, height, width}, 0.5 / 9.0),  // k = 3: the same, blurred
  };
  const at::Tensor alphas = at::tensor({1.0, 0.0});
  const at::Tensor fused = adaptive_fuse.call(images, filters, alphas, "zeros");

  const double error = (fused - images.mean(1)).abs().max().item<double>();
  std::printf("fused %lld x %lld, largest error %.1e\n", static_cast<long long>(fused.size(2)),
              static_cast<long long>(fused.size(3)), error);
  return error < 1e-6 ? 0 : 1;
}
