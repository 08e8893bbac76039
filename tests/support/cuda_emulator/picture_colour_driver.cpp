// Runs cases of picture_colour through its C interface in the emulator.
//
// picture_colour_driver CASES RESULTS reads and writes int64 and raw elements as test_picture_colour_cuda.py has them.
#include "tensors.hpp"

#include "../../../csrc/cuda/picture_colour.cu"

#include <vector>

namespace {

constexpr size_t kSampleBytes[] = {1, 2, 4, 8};

struct Plain {
  std::unique_ptr<Memory> memory;
  size_t offset;

  Plain(Reader& reader, size_t bytes, size_t off) : memory(std::make_unique<Memory>(bytes + off)), offset(off) {
    reader.bytes(memory->data() + offset, bytes);
  }
  const void* data() const { return memory->data() + offset; }
};

void run(Reader& reader, std::ofstream& results) {
  const int sample = static_cast<int>(reader.number());
  const int64_t sources = reader.number(), channels = reader.number(), pixels = reader.number();
  const int64_t offset = reader.number();
  const size_t element = kSampleBytes[sample], count = static_cast<size_t>(pixels);
  std::vector<Plain> pictures;
  std::vector<const void*> data;
  for (int64_t n = 0; n < (sources == 0 ? 1 : sources); ++n)
    pictures.emplace_back(reader, count * static_cast<size_t>(channels) * element,
                          static_cast<size_t>(offset) * element);
  for (const Plain& picture : pictures) data.push_back(picture.data());
  int status = 0;
  Output out(pixels * (sources == 0 ? 1 : 3), sources == 0 ? sizeof(float) : element, offset);
  if (sources == 0) {
    status = ffmef_cuda_sample_luminance(data[0], sample, static_cast<int>(channels), pixels,
                                         static_cast<float*>(out.data()), nullptr);
  } else {
    const Plain fused(reader, count * sizeof(float), static_cast<size_t>(offset) * sizeof(float));
    status = ffmef_cuda_recoloured(static_cast<const float*>(fused.data()), data.data(), static_cast<int>(sources),
                                   sample, pixels, out.data(), nullptr);
  }
  results.write(reinterpret_cast<const char*>(&status), sizeof(status));
  out.write(results);
}

}  // namespace

int main(int, char** arguments) { return run_cases(arguments, run); }
