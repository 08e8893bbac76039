// Runs cases of adaptive_fuse through its C interface in the emulator.
//
// adaptive_fuse_driver CASES RESULTS [entries] reads and writes int64 and raw elements as test_adaptive_fuse_cuda.py has them.
// With `entries` the plain entries run instead, with 16-byte loads wherever the width allows.
// Every tensor gets memory of its own in which all that is not the tensor is NaN: the space between its elements and,
// unless the address sanitizer watches, a red zone on both sides. Outputs start as NaN; writes outside them abort.
#include "cuda_emulator.hpp"

#include "../../csrc/cuda/adaptive_fuse.cu"
#include "../../csrc/cuda/adaptive_fuse_entries.cu"

#include <cmath>
#include <fstream>
#include <string>

namespace {

const size_t kElementBytes[] = {4, 2, 2, 8};

#ifdef __SANITIZE_ADDRESS__
constexpr size_t kRedZone = 0;
#else
constexpr size_t kRedZone = 4096;
#endif
constexpr size_t kSparseAbove = size_t(1) << 30;  // such a tensor is mostly untouched pages
constexpr int kNan = 0xff;

class Memory {
 public:
  explicit Memory(size_t bytes) : bytes_(bytes) {
    if (bytes > kSparseAbove) {
      base_ = static_cast<unsigned char*>(
          mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
      if (base_ == MAP_FAILED) emulator::fail("no address space for a sparse tensor");
    } else {
      if (posix_memalign(reinterpret_cast<void**>(&base_), 64, bytes + 2 * kRedZone) != 0) emulator::fail("no memory");
      std::memset(base_, kNan, bytes + 2 * kRedZone);
    }
  }
  ~Memory() {
    if (sparse()) munmap(base_, bytes_);
    else std::free(base_);
  }
  Memory(const Memory&) = delete;

  unsigned char* data() { return sparse() ? base_ : base_ + kRedZone; }
  size_t bytes() const { return bytes_; }
  void check_red_zones() const {
    if (sparse()) return;
    for (size_t i = 0; i < kRedZone; ++i)
      if (base_[i] != kNan || base_[kRedZone + bytes_ + i] != kNan) emulator::fail("a write outside an output");
  }

 private:
  bool sparse() const { return bytes_ > kSparseAbove; }
  size_t bytes_;
  unsigned char* base_ = nullptr;
};

class Reader {
 public:
  explicit Reader(const char* path) : file_(path, std::ios::binary) {}
  int64_t number() {
    int64_t value = 0;
    bytes(&value, sizeof(value));
    return value;
  }
  template <size_t Count> void numbers(int64_t (&values)[Count]) {
    for (int64_t& value : values) value = number();
  }
  void bytes(void* target, size_t count) {
    if (count != 0 && !file_.read(static_cast<char*>(target), static_cast<std::streamsize>(count)))
      emulator::fail("the file of cases ends too early");
  }

 private:
  std::ifstream file_;
};

// A tensor laid out as its strides and first offset say; the file holds its elements in row-major order.
template <size_t Rank> struct Input {
  int64_t shape[Rank], strides[Rank], offset;
  std::unique_ptr<Memory> memory;
  const void* pointer = nullptr;

  void read(Reader& reader, size_t element) {
    reader.numbers(shape);
    reader.numbers(strides);
    offset = reader.number();
    int64_t last = offset, count = 1;
    for (size_t axis = 0; axis < Rank; ++axis) {
      last += (shape[axis] - 1) * strides[axis];
      count *= shape[axis];
    }
    memory = std::make_unique<Memory>(count == 0 ? 0 : (last + 1) * element);
    for (int64_t i = 0; i < count; ++i) {
      int64_t place = offset, rest = i;
      for (size_t axis = Rank; axis-- > 0; rest /= shape[axis]) place += rest % shape[axis] * strides[axis];
      reader.bytes(memory->data() + place * element, element);
    }
    pointer = memory->data() + offset * element;
  }
};

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
      FFMEF_LAUNCH(ffmef_adaptive_fuse_f32_vectors, blocks_of_entry(f, 64, 16, batch * channels), 256, 0, nullptr, images,
                   LEVELS, alphas, out, SIZES);
    } else if (channels == 1) {
      FFMEF_LAUNCH(ffmef_adaptive_fuse_f32, blocks_of_entry(f, 32, 8, batch), 256, 0, nullptr, images, LEVELS, alphas, out,
                   SIZES);
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
    FFMEF_LAUNCH(ffmef_adaptive_fuse_filters_gradient_f32_vectors, blocks, 256, 0, nullptr, gradient, images, LEVELS, alphas,
                 gradients[0], gradients[1], gradients[2], gradients[3], partials, SIZES);
  } else {
    FFMEF_LAUNCH(ffmef_adaptive_fuse_filters_gradient_f32, blocks, 256, 0, nullptr, gradient, images, LEVELS, alphas,
                 gradients[0], gradients[1], gradients[2], gradients[3], partials, SIZES);
  }
  float* alphas_gradient = static_cast<float*>(g->alphas);
  FFMEF_LAUNCH(ffmef_adaptive_fuse_sum_partials_f32, f.level_count, 256, 0, nullptr, partials, blocks, alphas_gradient);
  float* none = nullptr;
  FFMEF_LAUNCH(ffmef_adaptive_fuse_images_gradient_f32, blocks_of_entry(f, 32, 8, batch * count * groups), 256, 0, nullptr,
               gradient, images, LEVELS, alphas, images_gradient, none, SIZES);
#undef LEVELS
#undef SIZES
  return 0;
}

void run(Case& c, std::ofstream& results, bool entries) {
  const size_t element = kElementBytes[c.dtype];
  const int64_t* shape = c.images.shape;
  std::vector<int> sizes;
  std::vector<const void*> filters;
  std::vector<int64_t> strides;
  for (auto& level : c.filters) {
    int size = 1;
    while (size * size < level.shape[2]) ++size;
    sizes.push_back(size);
    filters.push_back(level.pointer);
    strides.insert(strides.end(), level.strides, level.strides + 5);
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
  fusion.filter_strides = reinterpret_cast<const int64_t(*)[5]>(strides.data());
  fusion.alphas = c.alphas.pointer;
  fusion.alpha_stride = c.alphas.strides[0];

  // An output may start off a 16-byte boundary, as a view of a larger tensor does.
  struct Output {
    std::unique_ptr<Memory> memory;
    size_t offset;
  };
  std::vector<Output> outputs;
  auto new_output = [&](int64_t count, size_t size) -> void* {
    const size_t offset = static_cast<size_t>(c.output_offset) * size;
    outputs.push_back({std::make_unique<Memory>(offset + static_cast<size_t>(count) * size), offset});
    return outputs.back().memory->data() + offset;
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
        filter_gradients[l] = new_output(shape[0] * shape[1] * sizes[l] * sizes[l] * shape[3] * shape[4], element);
    gradients.filters = filter_gradients.data();
    if (c.need_alphas) gradients.alphas = new_output(fusion.level_count, c.dtype == FFMEF_FLOAT64 ? 8 : 4);
    Memory workspace(static_cast<size_t>(ffmef_cuda_adaptive_fuse_workspace(&fusion, &gradients)));
    gradients.workspace = workspace.data();
    status = entries ? run_entries(fusion, &gradients, nullptr)
                     : ffmef_cuda_adaptive_fuse_backward(&fusion, &gradients, nullptr);
    workspace.check_red_zones();
  }
  results.write(reinterpret_cast<const char*>(&status), sizeof(status));
  for (auto& output : outputs) {
    output.memory->check_red_zones();
    results.write(reinterpret_cast<const char*>(output.memory->data() + output.offset),
                  static_cast<std::streamsize>(output.memory->bytes() - output.offset));
  }
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
