// Runs cases of adaptive_fuse through its C interface in the emulator.
//
// adaptive_fuse_driver CASES RESULTS [entries] reads and writes int64 and raw elements as test_adaptive_fuse_cuda.py has them.
// With `entries` the plain entries run instead, with 16-byte loads wherever the width allows.
// Every tensor gets memory of its own in which all that is not the tensor is NaN: the space between its elements and,
// unless the address sanitizer watches, a red zone on both sides. Outputs start as NaN; writes outside them abort.
#include "tensors.hpp"

#include "../../../csrc/cuda/adaptive_fuse.cu"
#include "../../../csrc/cuda/adaptive_fuse_entries.cu"

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

int blocks_of_entry(const ffmef_fusion& f, int tile_width, int tile_height, int64_t planes) {
  const int64_t across = (f.width + tile_width - 1) / tile_width, down = (f.height + tile_height - 1) / tile_height;
  return static_cast<int>(across * down * planes);
}

// What a caller of the plain entries has to do: see the table at the top of adaptive_fuse_entries.cu.
int run_entries(const ffmef_fusion& f, const ffmef_fusion_gradients* g, void* output) {
  const float* filters[4] = {};
  float* gradients[4] = {};
  int sizes[4] = {};
  for (int l = 0; l < f.level_count; ++l) {
    filters[l] = static_cast<const float*>(f.filters[l]);
    sizes[l] = f.sizes[l];
    if (g != nullptr) gradients[l] = static_cast<float*>(g->filters[l]);
  }
  const float *images = static_cast<const float*>(f.images), *alphas = static_cast<const float*>(f.alphas);
  const int batch = static_cast<int>(f.batch), count = static_cast<int>(f.image_count);
  const int channels = static_cast<int>(f.channels), height = static_cast<int>(f.height);
  const int width = static_cast<int>(f.width), padding = f.padding, groups = (channels + 3) / 4;
  const bool vectors = width % 4 == 0;
#define LEVELS filters[0], filters[1], filters[2], filters[3], sizes[0], sizes[1], sizes[2], sizes[3]
#define SIZES batch, count, channels, height, width, padding
  if (g == nullptr) {
    float* out = static_cast<float*>(output);
    if (vectors) {
      FFMEF_LAUNCH(ffmef_adaptive_fuse_f32_vectors, blocks_of_entry(f, 64, 16, batch * channels), 256, 0, nullptr,
                   images, LEVELS, alphas, out, SIZES);
    } else if (channels == 1) {
      FFMEF_LAUNCH(ffmef_adaptive_fuse_f32, blocks_of_entry(f, 32, 16, batch), 256, 0, nullptr, images, LEVELS, alphas,
                   out, SIZES);
    } else {
      FFMEF_LAUNCH(ffmef_adaptive_fuse_f32_direct, blocks_of_entry(f, 32, 8, batch * groups), 256, 0, nullptr, images,
                   LEVELS, alphas, out, SIZES);
    }
    return 0;
  }
  const float* gradient = static_cast<const float*>(g->output);
  float* images_gradient = static_cast<float*>(g->images);
  const bool tiled = vectors && channels == 1;
  const int blocks = tiled ? blocks_of_entry(f, 64, 16, batch) : blocks_of_entry(f, 32, 8, batch * count);
  std::vector<float> storage(static_cast<size_t>(blocks) * f.level_count, NAN);
  float* partials = storage.data();
  if (tiled) {
    FFMEF_LAUNCH(ffmef_adaptive_fuse_filters_gradient_f32_vectors, blocks, 256, 0, nullptr, gradient, images, LEVELS,
                 alphas, gradients[0], gradients[1], gradients[2], gradients[3], partials, SIZES);
  } else {
    FFMEF_LAUNCH(ffmef_adaptive_fuse_filters_gradient_f32, blocks, 256, 0, nullptr, gradient, images, LEVELS, alphas,
                 gradients[0], gradients[1], gradients[2], gradients[3], partials, SIZES);
  }
  float* alphas_gradient = static_cast<float*>(g->alphas);
  FFMEF_LAUNCH(ffmef_adaptive_fuse_sum_partials_f32, f.level_count, 256, 0, nullptr, partials, blocks, alphas_gradient);
  float* none = nullptr;
  FFMEF_LAUNCH(ffmef_adaptive_fuse_images_gradient_f32, blocks_of_entry(f, 32, 8, batch * count * groups), 256, 0,
               nullptr, gradient, images, LEVELS, alphas, images_gradient, none, SIZES);
#undef LEVELS
#undef SIZES
  return 0;
}

void run(Case& c, std::ofstream& results, bool entries) {
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
    status = entries ? run_entries(fusion, nullptr, output) : ffmef_cuda_adaptive_fuse(&fusion, output, nullptr);
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
    status = entries ? run_entries(fusion, &gradients, nullptr)
                     : ffmef_cuda_adaptive_fuse_backward(&fusion, &gradients, nullptr);
    workspace.check_red_zones();
  }
  results.write(reinterpret_cast<const char*>(&status), sizeof(status));
  for (auto& output : outputs) output.write(results);
}

}  // namespace

int main(int count, char** arguments) {
  Reader reader(arguments[1]);
  std::ofstream results(arguments[2], std::ios::binary);
  for (int64_t left = reader.number(); left > 0; --left) {
    Case next(reader);
    run(next, results, count > 3);
  }
  std::printf("%llu launches, %llu blocks\n", static_cast<unsigned long long>(emulator::device.launches),
              static_cast<unsigned long long>(emulator::device.blocks));
  return results.good() ? 0 : 1;
}
