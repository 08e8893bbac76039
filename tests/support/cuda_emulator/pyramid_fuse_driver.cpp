// Runs cases of pyramid_fuse through its C interface in the emulator.
//
// pyramid_fuse_driver CASES RESULTS [entries] reads and writes int64 and raw elements as test_pyramid_fuse_cuda.py has them.
// With `entries` the plain entries run instead.
#include "tensors.hpp"

#include "../../../csrc/cuda/pyramid_fuse.cu"
#include "../../../csrc/cuda/pyramid_fuse_entries.cu"

#include <vector>

namespace {

struct Case {
  int64_t dtype, backward, output_offset, scale;
  Input<5> images, weights;
  Input<4> base, gradient;
  int64_t needed[3] = {};

  explicit Case(Reader& reader) {
    dtype = reader.number();
    backward = reader.number();
    output_offset = reader.number();
    scale = reader.number();
    const size_t element = kElementBytes[dtype];
    images.read(reader, element);
    weights.read(reader, element);
    base.read(reader, element);
    if (!backward) return;
    gradient.read(reader, element);
    reader.numbers(needed);
  }
};

template <class Rank> int64_t elements(const Rank& input) {
  int64_t count = 1;
  for (const int64_t size : input.shape) count *= size;
  return count;
}

// What a caller of the plain entries has to do: see the table at the top of pyramid_fuse_entries.cu.
int run_entries(const ffmef_pyramid& f, const ffmef_pyramid_gradients* g, void* output) {
  const int batch = static_cast<int>(f.batch), count = static_cast<int>(f.image_count);
  const int channels = static_cast<int>(f.channels), height = static_cast<int>(f.height);
  const int width = static_cast<int>(f.width), bands = f.bands, scale = f.scale;
  const float *images = static_cast<const float*>(f.images), *weights = static_cast<const float*>(f.weights);
  const float* base = static_cast<const float*>(f.base);
  const auto blocks = [&](int tile_width, int tile_height, int planes) {
    return (width + tile_width - 1) / tile_width * ((height + tile_height - 1) / tile_height) * planes;
  };
#define SIZES batch, count, channels, height, width, bands, scale
  if (g == nullptr) {
    float* out = static_cast<float*>(output);
    if (width % 4 == 0) {
      FFMEF_LAUNCH(ffmef_pyramid_fuse_f32_vectors, blocks(64, 64, batch * channels), 256, 0, nullptr, images, weights,
                   base, out, SIZES);
    } else {
      FFMEF_LAUNCH(ffmef_pyramid_fuse_f32, blocks(32, 32, batch * channels), 64, 0, nullptr, images, weights, base, out,
                   SIZES);
    }
    return 0;
  }
  const float* gradient = static_cast<const float*>(g->output);
  std::vector<float> storage(static_cast<size_t>(blocks(64, 32, batch)) * count * (bands + 1) * (64 / scale + 2) *
                             (32 / scale + 2));
  float *partials = storage.data(), *weights_gradient = static_cast<float*>(g->weights);
  float *base_gradient = static_cast<float*>(g->base), *images_gradient = static_cast<float*>(g->images);
  const int cells = (height + scale - 1) / scale * ((width + scale - 1) / scale) * count * (bands + 1) * batch;
  FFMEF_LAUNCH(ffmef_pyramid_fuse_weights_gradient_f32, blocks(64, 32, batch), 128, 0, nullptr, gradient, images,
               partials, SIZES);
  FFMEF_LAUNCH(ffmef_pyramid_fuse_sum_tiles_f32, (cells + 255) / 256, 256, 0, nullptr, partials, weights_gradient,
               base_gradient, SIZES);
  FFMEF_LAUNCH(ffmef_pyramid_fuse_images_gradient_f32, blocks(64, 32, batch * channels), 128, 0, nullptr, gradient,
               weights, base, images_gradient, SIZES);
#undef SIZES
  return 0;
}

void run(Case& c, std::ofstream& results, bool entries) {
  const size_t element = kElementBytes[c.dtype];
  const int64_t* shape = c.images.shape;
  ffmef_pyramid pyramid = {};
  pyramid.dtype = static_cast<int>(c.dtype);
  pyramid.batch = shape[0];
  pyramid.image_count = shape[1];
  pyramid.channels = shape[2];
  pyramid.height = shape[3];
  pyramid.width = shape[4];
  pyramid.images = c.images.pointer;
  std::copy(c.images.strides, c.images.strides + 5, pyramid.image_strides);
  pyramid.bands = static_cast<int>(c.weights.shape[1]);
  pyramid.scale = static_cast<int>(c.scale);
  pyramid.weights = c.weights.pointer;
  std::copy(c.weights.strides, c.weights.strides + 5, pyramid.weight_strides);
  pyramid.base = c.base.pointer;
  std::copy(c.base.strides, c.base.strides + 4, pyramid.base_strides);

  std::vector<Output> outputs;
  const auto new_output = [&](int64_t count) -> void* {
    outputs.emplace_back(count, element, c.output_offset);
    return outputs.back().data();
  };
  int status = 0;
  if (!c.backward) {
    void* output = new_output(shape[0] * shape[2] * shape[3] * shape[4]);
    Memory workspace(static_cast<size_t>(ffmef_cuda_pyramid_fuse_workspace(&pyramid)), kSentinel);
    status = entries ? run_entries(pyramid, nullptr, output)
                     : ffmef_cuda_pyramid_fuse(&pyramid, output, workspace.data(), nullptr);
    workspace.check_red_zones();
  } else {
    ffmef_pyramid_gradients gradients = {};
    gradients.output = c.gradient.pointer;
    std::copy(c.gradient.strides, c.gradient.strides + 4, gradients.output_strides);
    if (c.needed[0]) gradients.images = new_output(elements(c.images));
    if (c.needed[1]) gradients.weights = new_output(elements(c.weights));
    if (c.needed[2]) gradients.base = new_output(elements(c.base));
    Memory workspace(static_cast<size_t>(ffmef_cuda_pyramid_fuse_backward_workspace(&pyramid, &gradients)), kSentinel);
    status = entries ? run_entries(pyramid, &gradients, nullptr)
                     : ffmef_cuda_pyramid_fuse_backward(&pyramid, &gradients, workspace.data(), nullptr);
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
  return results.good() ? 0 : 1;
}
