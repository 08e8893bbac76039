// Runs cases of pyramid_pictures through its C interface in the emulator.
//
// pyramid_pictures_driver CASES RESULTS reads and writes int64 and raw elements as test_pyramid_pictures_cuda.py has
// them.
#include "tensors.hpp"

#include "../../../csrc/cuda/pyramid_pictures.cu"

#include <vector>

namespace {

constexpr size_t kSampleBytes[] = {4, 1, 2, 4};

// A block of memory with its red zones, filled from the file.
struct Plain {
  std::unique_ptr<Memory> memory;
  size_t offset;

  Plain(Reader& reader, size_t bytes, size_t off) : memory(std::make_unique<Memory>(bytes + off)), offset(off) {
    reader.bytes(memory->data() + offset, bytes);
  }
  const void* data() const { return memory->data() + offset; }
};

int fuse_one(const ffmef_pictures& f, Output& out) {
  Memory workspace(static_cast<size_t>(ffmef_cuda_pyramid_pictures_workspace(&f)), kSentinel);
  const int status = ffmef_cuda_pyramid_pictures(&f, out.data(), workspace.data(), nullptr);
  workspace.check_red_zones();
  return status;
}

// On a stream that first fills the pictures, in both orders that `synchronize` knows; the second result stays.
int fuse_several(const std::vector<ffmef_pictures>& all, std::vector<std::unique_ptr<Output>>& outs,
                 const std::vector<Plain>& pictures) {
  static std::mt19937 random(1);
  static cudaStream_t stream = nullptr;
  if (stream == nullptr) cudaStreamCreateWithFlags(&stream, 0);
  const auto count = static_cast<int64_t>(all.size());
  std::vector<void*> targets;
  for (const auto& out : outs) targets.push_back(out->data());
  std::vector<std::vector<unsigned char>> given;
  for (const Plain& p : pictures) {
    const auto* data = static_cast<const unsigned char*>(p.data());
    given.emplace_back(data, data + p.memory->bytes() - p.offset);
  }
  for (const bool comes_first : {true, false}) {
    for (const Plain& p : pictures) std::memset(p.memory->data() + p.offset, 0, p.memory->bytes() - p.offset);
    emulator::enqueue(stream, [&] {
      for (size_t n = 0; n < given.size(); ++n)
        std::memcpy(pictures[n].memory->data() + pictures[n].offset, given[n].data(), given[n].size());
    });
    Memory workspace(static_cast<size_t>(ffmef_cuda_pyramid_brackets_workspace(all.data(), count)), kSentinel);
    const int status = ffmef_cuda_pyramid_brackets(all.data(), count, targets.data(), workspace.data(), stream);
    if (status != 0) return status;
    emulator::synchronize(stream, comes_first, random);
    for (const auto& other : emulator::streams)
      if (!other->entries.empty()) emulator::fail("a stream is not waited for");
    workspace.check_red_zones();
  }
  return 0;
}

void run(Reader& reader, std::ofstream& results) {
  ffmef_pictures f = {};
  f.sample = static_cast<int>(reader.number());
  f.count = reader.number();
  f.height = reader.number();
  f.width = reader.number();
  const bool masked = reader.number() != 0;
  const int64_t brackets = reader.number();
  const size_t offset = static_cast<size_t>(reader.number()) * kSampleBytes[f.sample];
  f.grids = static_cast<int>(reader.number());
  int channels[FFMEF_MOST_GRIDS];
  for (int g = 0; g < f.grids; ++g) channels[g] = static_cast<int>(reader.number());
  f.channels = channels;
  f.stem = static_cast<int>(reader.number());
  f.octaves = static_cast<int>(reader.number());
  float changes[4];
  reader.bytes(changes, sizeof(changes));
  f.brightness = changes[0], f.contrast = changes[1], f.saturation = changes[2], f.prefer = changes[3];

  std::vector<int64_t> sizes(static_cast<size_t>(ffmef_cuda_pyramid_pictures_parameters(&f, nullptr)));
  ffmef_cuda_pyramid_pictures_parameters(&f, sizes.data());
  std::vector<Plain> parameters, pictures, masks;
  std::vector<const float*> parameter_data;
  for (const int64_t size : sizes) parameters.emplace_back(reader, static_cast<size_t>(size) * 4, 0);
  for (const Plain& p : parameters) parameter_data.push_back(static_cast<const float*>(p.data()));
  f.parameters = parameter_data.data();

  const int64_t elements = f.height * f.width * (f.sample == FFMEF_LUMINANCE ? 1 : 3);
  const size_t bytes = static_cast<size_t>(elements) * kSampleBytes[f.sample];
  const int64_t exposures = f.count * brackets;
  std::vector<const void*> picture_data;
  std::vector<const uint8_t*> mask_data;
  for (int64_t n = 0; n < exposures; ++n) pictures.emplace_back(reader, bytes, offset);
  for (const Plain& p : pictures) picture_data.push_back(p.data());
  if (masked)
    for (int64_t n = 0; n < exposures; ++n) masks.emplace_back(reader, static_cast<size_t>(f.height * f.width), 0);
  for (const Plain& p : masks) mask_data.push_back(static_cast<const uint8_t*>(p.data()));
  std::vector<ffmef_pictures> all;
  std::vector<std::unique_ptr<Output>> outs;
  for (int64_t b = 0; b < brackets; ++b) {
    f.pictures = picture_data.data() + b * f.count;
    f.validity = masked ? mask_data.data() + b * f.count : nullptr;
    all.push_back(f);
    const auto element = static_cast<int64_t>(kSampleBytes[f.sample]);
    outs.push_back(std::make_unique<Output>(elements, element, static_cast<int64_t>(offset) / element));
  }
  const int status = brackets == 1 ? fuse_one(f, *outs[0]) : fuse_several(all, outs, pictures);
  results.write(reinterpret_cast<const char*>(&status), sizeof(status));
  for (const auto& out : outs) out->write(results);
}

}  // namespace

int main(int, char** arguments) { return run_cases(arguments, run); }
