// Runs cases of predict_and_fuse through its C interface in the emulator.
//
// predict_and_fuse_driver CASES RESULTS [entries] reads and writes int64 and raw elements as predict_and_fuse_cases.py
// has them. With `entries` the plain entries run instead, with 16-byte loads wherever the width allows.
#include "tensors.hpp"

#include "../../../csrc/cuda/predict_and_fuse.cu"
#include "../../../csrc/cuda/predict_and_fuse_entries.cu"

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

// What a caller of the plain entries has to do: see the table at the top of predict_and_fuse_entries.cu.
int run_entries(const ffmef_prediction& f, float* output) {
  const float *hidden[4] = {}, *weight[4] = {}, *bias[4] = {};
  int sizes[4] = {}, maps[4] = {};
  bool tiled = true;
  for (int l = 0; l < f.level_count; ++l) {
    hidden[l] = static_cast<const float*>(f.hidden[l]);
    weight[l] = static_cast<const float*>(f.weight[l]);
    bias[l] = static_cast<const float*>(f.bias[l]);
    sizes[l] = f.sizes[l];
    maps[l] = f.maps[l];
    tiled = tiled && sizes[l] <= 7;
  }
  const float *images = static_cast<const float*>(f.images), *alphas = static_cast<const float*>(f.alphas);
  const int batch = static_cast<int>(f.batch), count = static_cast<int>(f.image_count), padding = f.padding;
  const int channels = static_cast<int>(f.channels), height = static_cast<int>(f.height),
            width = static_cast<int>(f.width);
  const bool vectors = tiled && width % 4 == 0;
  const int tile_width = vectors ? 64 : 32, tile_height = vectors ? 16 : tiled ? 32 : 8;
  const int tiles = (width + tile_width - 1) / tile_width * ((height + tile_height - 1) / tile_height);
#define ARGUMENTS                                                                                                 \
  images, hidden[0], hidden[1], hidden[2], hidden[3], weight[0], weight[1], weight[2], weight[3], bias[0], bias[1], \
      bias[2], bias[3], sizes[0], sizes[1], sizes[2], sizes[3], maps[0], maps[1], maps[2], maps[3], alphas, output, \
      batch, count, channels, height, width, padding
  if (vectors)
    FFMEF_LAUNCH(ffmef_predict_and_fuse_f32_vectors, tiles * batch * channels, 256, 0, nullptr, ARGUMENTS);
  else if (tiled)
    FFMEF_LAUNCH(ffmef_predict_and_fuse_f32, tiles * batch * channels, 256, 0, nullptr, ARGUMENTS);
  else
    FFMEF_LAUNCH(ffmef_predict_and_fuse_f32_direct, tiles * batch * ((channels + 3) / 4), 256, 0, nullptr, ARGUMENTS);
#undef ARGUMENTS
  return 0;
}

void run(Case& c, std::ofstream& results, bool entries) {
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
  const int status = entries ? run_entries(prediction, static_cast<float*>(output.data()))
                             : ffmef_cuda_predict_and_fuse(&prediction, output.data(), nullptr);
  results.write(reinterpret_cast<const char*>(&status), sizeof(status));
  output.write(results);
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
