// Runs cases of predict_and_fuse through its C interface in the emulator.
//
// predict_and_fuse_driver CASES RESULTS reads and writes int64 and raw elements as predict_and_fuse_cases.py
// has them.
#include "tensors.hpp"

#include "../../../csrc/cuda/predict_and_fuse.cu"

#include <string>

namespace {

struct Case {
  int64_t dtype, padding, output_offset;
  Input<5> images;
  std::vector<Input<5>> hidden;
  std::vector<Input<2>> weight;
  std::vector<Input<1>> bias;
  Input<1> alphas;

  explicit Case(Reader& reader) {
    dtype = reader.number();
    padding = reader.number();
    output_offset = reader.number();
    const size_t element = kElementBytes[dtype], levels = static_cast<size_t>(reader.number());
    images.read(reader, element);
    hidden.resize(levels);
    weight.resize(levels);
    bias.resize(levels);
    for (size_t l = 0; l < levels; ++l) {
      hidden[l].read(reader, element);
      weight[l].read(reader, element);
      bias[l].read(reader, element);
    }
    alphas.read(reader, dtype == FFMEF_FLOAT64 ? 8 : 4);
  }
};

void run(Case&& c, std::ofstream& results) {
  const int64_t* shape = c.images.shape;
  std::vector<int> sizes, maps;
  std::vector<const void*> hidden, weight, bias;
  std::vector<int64_t> strides;
  for (size_t l = 0; l < c.hidden.size(); ++l) {
    int size = 1;
    while (size * size < c.bias[l].shape[0]) ++size;
    sizes.push_back(size);
    maps.push_back(static_cast<int>(c.hidden[l].shape[2]));
    hidden.push_back(c.hidden[l].pointer);
    weight.push_back(c.weight[l].pointer);
    bias.push_back(c.bias[l].pointer);
    strides.insert(strides.end(), c.hidden[l].strides, c.hidden[l].strides + 5);
  }
  ffmef_prediction prediction = {};
  prediction.dtype = static_cast<int>(c.dtype);
  prediction.padding = static_cast<int>(c.padding);
  prediction.batch = shape[0];
  prediction.image_count = shape[1];
  prediction.channels = shape[2];
  prediction.height = shape[3];
  prediction.width = shape[4];
  prediction.images = c.images.pointer;
  std::copy(c.images.strides, c.images.strides + 5, prediction.image_strides);
  prediction.level_count = static_cast<int>(c.hidden.size());
  prediction.sizes = sizes.data();
  prediction.maps = maps.data();
  prediction.hidden = hidden.data();
  prediction.hidden_strides = reinterpret_cast<const int64_t (*)[5]>(strides.data());
  prediction.weight = weight.data();
  prediction.bias = bias.data();
  prediction.alphas = c.alphas.pointer;
  prediction.alpha_stride = c.alphas.strides[0];

  Output output(shape[0] * shape[2] * shape[3] * shape[4], kElementBytes[c.dtype], c.output_offset);
  const int status = ffmef_cuda_predict_and_fuse(&prediction, output.data(), nullptr);
  results.write(reinterpret_cast<const char*>(&status), sizeof(status));
  output.write(results);
}

}  // namespace

int main(int, char** arguments) {
  return run_cases(arguments, [](Reader& reader, std::ofstream& results) { run(Case(reader), results); });
}
