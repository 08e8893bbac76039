// Runs cases of pyramid_fuse through its C interface in the emulator.
//
// pyramid_fuse_driver CASES RESULTS reads and writes int64 and raw elements as test_pyramid_fuse_cuda.py has them.
#include "tensors.hpp"

#include "../../../csrc/cuda/pyramid_fuse.cu"

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

void run(Case&& c, std::ofstream& results) {
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
    status = ffmef_cuda_pyramid_fuse(&pyramid, output, workspace.data(), nullptr);
    workspace.check_red_zones();
  } else {
    ffmef_pyramid_gradients gradients = {};
    gradients.output = c.gradient.pointer;
    std::copy(c.gradient.strides, c.gradient.strides + 4, gradients.output_strides);
    if (c.needed[0]) gradients.images = new_output(elements(c.images));
    if (c.needed[1]) gradients.weights = new_output(elements(c.weights));
    if (c.needed[2]) gradients.base = new_output(elements(c.base));
    Memory workspace(static_cast<size_t>(ffmef_cuda_pyramid_fuse_backward_workspace(&pyramid, &gradients)), kSentinel);
    status = ffmef_cuda_pyramid_fuse_backward(&pyramid, &gradients, workspace.data(), nullptr);
    workspace.check_red_zones();
  }
  results.write(reinterpret_cast<const char*>(&status), sizeof(status));
  for (auto& output : outputs) output.write(results);
}

}  // namespace

int main(int, char** arguments) {
  return run_cases(arguments, [](Reader& reader, std::ofstream& results) { run(Case(reader), results); });
}
