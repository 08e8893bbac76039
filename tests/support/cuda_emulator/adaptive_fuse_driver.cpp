// Runs cases of adaptive_fuse through its C interface in the emulator.
//
// adaptive_fuse_driver CASES RESULTS reads and writes int64 and raw elements as test_adaptive_fuse_cuda.py has them.
// Every tensor gets separate memory, in which everything but the tensor is NaN: the space between its elements and,
// unless the address sanitizer watches, a red zone on both sides. Outputs start as NaN; writes outside them abort.
#include "tensors.hpp"

// Wide tiles are for large pictures, which would take long here: 17 x 292 pixels have them, 37 x 132 do not.
#define FFMEF_CUDA_WIDE_FROM 4900
#include "../../../csrc/cuda/adaptive_fuse.cu"

#include <cmath>
#include <fstream>
#include <string>

namespace {

struct Case {
  int64_t dtype, padding, backward;
  Input<5> images;
  std::vector<Input<5>> filters;
  Input<1> alphas;
  Input<4> gradient;
  int64_t need_images = 0, need_alphas = 0, output_offset = 0;
  std::vector<int64_t> need_filters;

  explicit Case(Reader& reader) {
    dtype = reader.number();
    padding = reader.number();
    backward = reader.number();
    output_offset = reader.number();
    const size_t element = kElementBytes[dtype];
    images.read(reader, element);
    filters.resize(static_cast<size_t>(reader.number()));
    for (auto& level : filters) level.read(reader, element);
    alphas.read(reader, dtype == FFMEF_FLOAT64 ? 8 : 4);
    if (!backward) return;
    gradient.read(reader, element);
    need_images = reader.number();
    need_alphas = reader.number();
    for (size_t l = 0; l < filters.size(); ++l) need_filters.push_back(reader.number());
  }
};

void run(Case&& c, std::ofstream& results) {
  const size_t element = kElementBytes[c.dtype];
  const int64_t* shape = c.images.shape;
  std::vector<int> sizes;
  std::vector<const void*> filters;
  std::vector<int64_t> strides, grids;
  for (auto& level : c.filters) {
    int size = 1;
    while (size * size < level.shape[2]) ++size;
    sizes.push_back(size);
    filters.push_back(level.pointer);
    strides.insert(strides.end(), level.strides, level.strides + 5);
    grids.insert(grids.end(), level.shape + 3, level.shape + 5);
  }
  ffmef_fusion fusion = {};
  fusion.dtype = static_cast<int>(c.dtype);
  fusion.padding = static_cast<int>(c.padding);
  fusion.batch = shape[0];
  fusion.image_count = shape[1];
  fusion.channels = shape[2];
  fusion.height = shape[3];
  fusion.width = shape[4];
  fusion.images = c.images.pointer;
  std::copy(c.images.strides, c.images.strides + 5, fusion.image_strides);
  fusion.level_count = static_cast<int>(c.filters.size());
  fusion.sizes = sizes.data();
  fusion.filters = filters.data();
  fusion.filter_strides = reinterpret_cast<const int64_t (*)[5]>(strides.data());
  fusion.filter_grids = reinterpret_cast<const int64_t (*)[2]>(grids.data());
  fusion.alphas = c.alphas.pointer;
  fusion.alpha_stride = c.alphas.strides[0];

  std::vector<Output> outputs;
  auto new_output = [&](int64_t count, size_t size) -> void* {
    outputs.emplace_back(count, size, c.output_offset);
    return outputs.back().data();
  };
  int status = 0;
  if (!c.backward) {
    void* output = new_output(shape[0] * shape[2] * shape[3] * shape[4], element);
    status = ffmef_cuda_adaptive_fuse(&fusion, output, nullptr);
  } else {
    ffmef_fusion_gradients gradients = {};
    gradients.output = c.gradient.pointer;
    std::copy(c.gradient.strides, c.gradient.strides + 4, gradients.output_strides);
    if (c.need_images) gradients.images = new_output(shape[0] * shape[1] * shape[2] * shape[3] * shape[4], element);
    std::vector<void*> filter_gradients(c.filters.size(), nullptr);
    for (size_t l = 0; l < c.filters.size(); ++l)
      if (c.need_filters[l])
        filter_gradients[l] =
            new_output(shape[0] * shape[1] * sizes[l] * sizes[l] * grids[2 * l] * grids[2 * l + 1], element);
    gradients.filters = filter_gradients.data();
    if (c.need_alphas) gradients.alphas = new_output(fusion.level_count, c.dtype == FFMEF_FLOAT64 ? 8 : 4);
    Memory workspace(static_cast<size_t>(ffmef_cuda_adaptive_fuse_workspace(&fusion, &gradients)), kSentinel);
    gradients.workspace = workspace.data();
    status = ffmef_cuda_adaptive_fuse_backward(&fusion, &gradients, nullptr);
    workspace.check_red_zones();
  }
  results.write(reinterpret_cast<const char*>(&status), sizeof(status));
  for (auto& output : outputs) output.write(results);
}

}  // namespace

int main(int, char** arguments) {
  return run_cases(arguments, [](Reader& reader, std::ofstream& results) { run(Case(reader), results); });
}
