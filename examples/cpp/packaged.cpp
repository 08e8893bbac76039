// Runs a network that AOTInductor compiled: packaged FILE.pt2, with luminance of two exposures in [0, 1].
#include <ATen/ATen.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <cstdio>
#include <vector>

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: packaged FILE.pt2, from: ffmef export --aot --weights mef -o FILE.pt2\n");
    return 2;
  }
  // Linking ffmef::cpu has registered the operators that the package calls.
  torch::inductor::AOTIModelPackageLoader network(argv[1]);
  const at::Tensor luminance = at::rand({1, 2, 123, 157});  // (1, N, H, W), any height and width
  const std::vector<at::Tensor> outputs = network.run({luminance});
  const at::Tensor& fused = outputs.at(0);
  std::printf("fused %lld x %lld, from %.3f to %.3f\n", static_cast<long long>(fused.size(2)),
              static_cast<long long>(fused.size(3)), fused.min().item<double>(), fused.max().item<double>());
  return fused.sizes() == at::IntArrayRef({1, 1, 123, 157}) && at::isfinite(fused).all().item<bool>() ? 0 : 1;
}
