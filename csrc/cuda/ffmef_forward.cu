// The FFMEF network's passes as __global__ functions, and the chain of their launches.
// `nvcc -cubin -arch=sm_90 csrc/cuda/ffmef_forward.cu` compiles it alone.
#include "ffmef_forward.h"

#include "ffmef_forward.cuh"
#include "launch.cuh"

#include <algorithm>
#include <initializer_list>

namespace ffmef::cuda::network {
namespace {

// Chosen by the registers that the kernels need: with 72, a GPU of 132 multiprocessors holds all tiles of a pair of
// 551 x 707 at once.
constexpr int kMost = resident_blocks(kThreads, 72), kMany = resident_blocks(kThreads, 80);
constexpr int kMostHeads = resident_blocks(kHeadThreads, 72), kFewerHeads = resident_blocks(kHeadThreads, 96);

template <Base B, int Mixes, unsigned StemSkips, bool Beside>
__global__ void __launch_bounds__(kThreads, Mixes > 1 || Beside ? kMany : kMost)
    entry_kernel(const __grid_constant__ EntryPass p) {
  FFMEF_DYNAMIC_SHARED(shared);
  entry<B, Mixes, StemSkips, Beside>(p, *reinterpret_cast<Shared*>(shared));
}

template <int Inputs, bool Point> __global__ void __launch_bounds__(kThreads, Point ? kMany : kMost)
    residual_kernel(const __grid_constant__ ResidualPass p) {
  FFMEF_DYNAMIC_SHARED(shared);
  residual<Inputs, Point>(p, *reinterpret_cast<Shared*>(shared));
}

template <int Mixes, unsigned StemSkips> __global__ void __launch_bounds__(kThreads, Mixes > 1 ? kMany : kMost)
    point_kernel(const __grid_constant__ PointPass p) {
  FFMEF_DYNAMIC_SHARED(shared);
  point<Mixes, StemSkips>(p, *reinterpret_cast<PointShared*>(shared));
}

__global__ void __launch_bounds__(kThreads, kMany) features_kernel(const __grid_constant__ FeaturePass p) {
  FFMEF_DYNAMIC_SHARED(shared);
  features(p, *reinterpret_cast<Shared*>(shared));
}

template <int Largest> __global__ void __launch_bounds__(kHeadThreads, Largest > 5 ? kFewerHeads : kMostHeads)
    heads_kernel(const __grid_constant__ HeadPass p) {
  FFMEF_DYNAMIC_SHARED(shared);
  heads<Largest>(p, shared);
}

// ---- parameters ----------------------------------------------------------------------------------------------------

struct MixParameters {
  const float *gain_body, *gain_skip;
  Convolution conv;
  const float *gamma, *beta;
};

struct ResidualParameters {
  const float *gain_body, *gain_skip;  // of the mix around it, in the two that merge
  Convolution identity, first, second;
  const float *gamma, *beta;
};

struct StepParameters {
  Convolution conv;
  const float *gamma, *beta;
};

struct HeadParameters {
  Convolution squeeze, excite, conv, expand, project;
};

// Walks through the parameters in the model's order. Without tensors it only counts.
class Walk {
 public:
  explicit Walk(const ffmef_network* network) : network_(network) {}
  int64_t values = 0;
  bool fits = true;

  const float* take(int64_t count) {
    values += count;
    if (network_ == nullptr) return nullptr;
    const int64_t* sizes = network_->parameter_sizes;
    while (tensor_ < network_->parameter_count && used_ == sizes[tensor_]) ++tensor_, used_ = 0;
    if (tensor_ == network_->parameter_count || sizes[tensor_] - used_ < count) {
      fits = false;
      return nullptr;
    }
    used_ += count;
    return network_->parameters[tensor_] + used_ - count;
  }
  bool at_end() const {
    int64_t held = 0;
    for (int64_t i = 0; i < network_->parameter_count; ++i) held += network_->parameter_sizes[i];
    return fits && held == values;
  }
  Convolution convolution(int outputs, int inputs, int size, bool transposed = false) {
    const float* weight = take(static_cast<int64_t>(outputs) * inputs * size * size);
    return {weight, take(outputs), transposed};
  }
  StepParameters step(bool transposed) {
    const Convolution conv = convolution(kChannels, kChannels, 3, transposed);
    const float* gamma = take(kChannels);
    return {conv, gamma, take(kChannels)};
  }
  MixParameters mix() {
    MixParameters m = {};
    m.gain_body = take(1);
    m.gain_skip = take(1);
    m.conv = convolution(kChannels, 2 * kChannels, 1);
    m.gamma = take(kChannels);
    m.beta = take(kChannels);
    return m;
  }
  ResidualParameters residual(int inputs) {
    ResidualParameters r = {};
    r.identity = convolution(kChannels, inputs, 1);
    r.first = convolution(kChannels, inputs, 3);
    r.gamma = take(kChannels / 2);
    r.beta = take(kChannels / 2);
    r.second = convolution(kChannels, kChannels, 3);
    return r;
  }
  ResidualParameters merge() {
    const float *gain_body = take(1), *gain_skip = take(1);
    ResidualParameters r = residual(2 * kChannels);
    r.gain_body = gain_body;
    r.gain_skip = gain_skip;
    return r;
  }

 private:
  const ffmef_network* network_;
  int64_t tensor_ = 0, used_ = 0;
};

struct Parameters {
  Convolution stem;
  ResidualParameters encode_1, encode_2, bottom, decode_2, merge_2, decode_1, merge_1;
  StepParameters down_1, down_2, up_2, up_1;
  MixParameters skip_1, skip_2, skip_3, skip_4, skip_5, skip_6;
  HeadParameters heads[kLevels];
  const float* alphas;

  Parameters(Walk& walk, int level_count, const int* sizes) {
    stem = walk.convolution(kChannels, 1, 1);
    encode_1 = walk.residual(kChannels);
    down_1 = walk.step(false);
    skip_1 = walk.mix();
    encode_2 = walk.residual(kChannels);
    down_2 = walk.step(false);
    skip_2 = walk.mix();
    skip_3 = walk.mix();
    bottom = walk.residual(kChannels);
    up_2 = walk.step(true);
    skip_4 = walk.mix();
    decode_2 = walk.residual(kChannels);
    merge_2 = walk.merge();
    up_1 = walk.step(true);
    skip_5 = walk.mix();
    decode_1 = walk.residual(kChannels);
    skip_6 = walk.mix();
    merge_1 = walk.merge();
    for (int l = 0; l < level_count; ++l) {
      heads[l].squeeze = walk.convolution(kChannels, kImages * kChannels, 1);
      heads[l].excite = walk.convolution(kImages, kChannels, 1);
    }
    for (int l = 0; l < level_count; ++l) {
      const int taps = sizes[l] * sizes[l];
      heads[l].conv = walk.convolution(kChannels, kChannels, 3);
      heads[l].expand = walk.convolution(taps, kChannels, sizes[l]);
      heads[l].project = walk.convolution(taps, taps, 1);
    }
    alphas = walk.take(level_count);
  }
};

// ---- memory --------------------------------------------------------------------------------------------------------

enum Map { kRawA, kRawB, kEncoded1, kBottom, kEncoded2, kUp2, kDecoded, kMaps };
constexpr int kNorms = 17;

// Where everything lies in the workspace; without a workspace, how large it has to be.
struct Workspace {
  unsigned* counters;  // of every norm
  float2* norms;
  float2* strips;
  double2* rows;
  Pixel* maps[kMaps];
  int64_t bytes = 0, counters_of_norm, norms_of_norm;

  Workspace(const ffmef_network& n, const Frame& f, void* workspace) : base_(static_cast<unsigned char*>(workspace)) {
    const int64_t planes = n.batch * kImages, strips_down = f.strips_down;
    counters_of_norm = planes * (strips_down + 1);
    norms_of_norm = planes * kChannels;
    counters = take<unsigned>(kNorms * counters_of_norm);
    norms = take<float2>(kNorms * norms_of_norm);
    strips = take<float2>(planes * strips_down * f.tiles_across * kChannels);
    rows = take<double2>(planes * strips_down * kChannels);
    for (Pixel*& map : maps) map = take<Pixel>(planes * n.height * n.width);
  }

 private:
  template <class T> T* take(int64_t count) {
    const int64_t at = bytes;
    bytes += divide_up(count * static_cast<int64_t>(sizeof(T)), 256) * 256;
    return reinterpret_cast<T*>(base_ + at);
  }
  unsigned char* base_;
};

Frame frame_of(const ffmef_network& n) {
  const int height = static_cast<int>(n.height), width = static_cast<int>(n.width);
  return {height, width, static_cast<int>(divide_up(width, kColumns)), static_cast<int>(divide_up(height, kTileRows)),
          static_cast<int>(divide_up(height, kRows))};
}

// ---- the chain of launches -----------------------------------------------------------------------------------------

struct Mixed {
  const MixParameters* parameters;
  const Pixel* skip;  // null: the stem
  const float2* norms;
};

class Chain {
 public:
  Chain(const ffmef_network& network, const Parameters& parameters, float* output, void* workspace, cudaStream_t stream)
      : network_(network),
        w_(parameters),
        frame_(frame_of(network)),
        memory_(network, frame_, workspace),
        output_(output),
        stream_(stream),
        stem_{network.luminance, parameters.stem.weight, parameters.stem.bias},
        planes_(network.batch * kImages),
        tiles_(static_cast<int64_t>(frame_.tiles_across) * frame_.tiles_down),
        early_(network.early_launches && can_launch_early(features_kernel)) {}

  cudaError_t run() {
    error_ = cudaMemsetAsync(memory_.counters, 0, kNorms * memory_.counters_of_norm * sizeof(unsigned), stream_);
    extract();
    predict_features();
    predict_and_fuse();
    return error_;
  }

 private:
  void extract() {
    Pixel *raw_a = memory_.maps[kRawA], *raw_b = memory_.maps[kRawB], *e1 = memory_.maps[kEncoded1];
    Pixel *bottom = memory_.maps[kBottom], *e2 = memory_.maps[kEncoded2], *up2 = memory_.maps[kUp2];
    Pixel* decoded = memory_.maps[kDecoded];

    const float2* norms = entry<Base::kStem, 0, 0u, false>(nullptr, nullptr, {}, nullptr, nullptr, w_.encode_1, raw_a);
    residual<0>(w_.encode_1, raw_a, norms, nullptr, nullptr, e1);

    norms = step(w_.down_1, e1, raw_a);
    const float2* mix = point<1, 1u>(raw_a, norms, {{&w_.skip_1, nullptr, nullptr}}, w_.skip_1);
    Pixel* d1 = bottom;
    const float2* half =
        entry<Base::kNormed, 1, 1u, false>(raw_a, norms, {{&w_.skip_1, nullptr, mix}}, d1, nullptr, w_.encode_2, raw_b);
    residual<1>(w_.encode_2, raw_b, half, d1, nullptr, e2);

    norms = step(w_.down_2, e2, raw_a);
    mix = point<1, 0u>(raw_a, norms, {{&w_.skip_2, d1, nullptr}}, w_.skip_2);
    const float2* second =
        point<2, 2u>(raw_a, norms, {{&w_.skip_2, d1, mix}, {&w_.skip_3, nullptr, nullptr}}, w_.skip_3);
    Pixel* d2 = up2;
    half = entry<Base::kNormed, 2, 2u, false>(raw_a, norms, {{&w_.skip_2, d1, mix}, {&w_.skip_3, nullptr, second}}, d2,
                                              nullptr, w_.bottom, raw_b);
    residual<1>(w_.bottom, raw_b, half, d2, nullptr, bottom);  // d1 has been read for the last time

    norms = step(w_.up_2, bottom, raw_a);
    mix = point<1, 0u>(raw_a, norms, {{&w_.skip_4, bottom, nullptr}}, w_.skip_4);
    Pixel* u2 = d2;
    half =
        entry<Base::kNormed, 1, 0u, false>(raw_a, norms, {{&w_.skip_4, bottom, mix}}, u2, nullptr, w_.decode_2, raw_b);
    residual<1>(w_.decode_2, raw_b, half, u2, nullptr, decoded);
    half = entry<Base::kMap, 0, 0u, true>(decoded, nullptr, {}, nullptr, e2, w_.merge_2, raw_a);
    residual<2>(w_.merge_2, raw_a, half, e2, decoded, up2);

    norms = step(w_.up_1, up2, raw_a);
    mix = point<1, 0u>(raw_a, norms, {{&w_.skip_5, up2, nullptr}}, w_.skip_5);
    Pixel* u1 = e2;
    half = entry<Base::kNormed, 1, 0u, false>(raw_a, norms, {{&w_.skip_5, up2, mix}}, u1, nullptr, w_.decode_1, raw_b);
    mix = residual_point(w_.decode_1, raw_b, half, u1, decoded, w_.skip_6, bottom);
    half = entry<Base::kMap, 1, 0u, true>(decoded, nullptr, {{&w_.skip_6, bottom, mix}}, u1, e1, w_.merge_1, raw_a);
    residual<2>(w_.merge_1, raw_a, half, e1, u1, decoded);
  }

  // From the second launch on, blocks may start early: once every block of the launch before has passed its
  // wait_for_launch_before(). This is safe, because
  //   - the first launch is an ordinary one: it starts when all earlier work on the stream is done, also what cleared
  //     the counters, wrote the parameters and luminance, or used the same workspace before;
  //   - before its wait a block reads parameters alone, which no launch of the chain writes, and writes to its own
  //     shared memory alone; tests look for other loads in the compiled code;
  //   - every kernel waits, so a launch ends after all launches before it, and what comes next on the stream finds
  //     everything: the next call's first launch too.
  template <class Kernel, class Pass>
  void start(Kernel kernel, int64_t planes, size_t shared_bytes, const Pass& pass, int threads = kThreads) {
    if (error_ != cudaSuccess) return;
    const int64_t blocks = planes * tiles_;
    error_ = early_ && launches_ > 0 ? launch_early(kernel, blocks, threads, shared_bytes, stream_, pass)
                                     : launch(kernel, blocks, threads, shared_bytes, stream_, pass);
    launches_ += 1;
  }
  Statistics statistics(const float* gamma, const float* beta, int normed) {
    const int norm = norms_used_++;
    return {memory_.strips,
            memory_.rows,
            memory_.counters + norm * memory_.counters_of_norm,
            memory_.norms + norm * memory_.norms_of_norm,
            gamma,
            beta,
            normed};
  }
  static PointMix point_of(const Mixed& m) {
    const MixParameters& w = *m.parameters;
    return {m.skip, w.conv.weight, w.conv.bias, w.gain_body, w.gain_skip, m.norms};
  }
  static Mixture mixture_of(const Pixel* base, const float2* norms, std::initializer_list<Mixed> mixes) {
    Mixture m = {base, norms, {}};
    std::transform(mixes.begin(), mixes.end(), m.mixes, point_of);
    return m;
  }

  template <Base B, int Mixes, unsigned StemSkips, bool Beside>
  const float2* entry(const Pixel* base, const float2* norms, std::initializer_list<Mixed> mixes, Pixel* mixed,
                      const Pixel* beside, const ResidualParameters& block, Pixel* raw) {
    const EntryPass pass = {frame_,
                            stem_,
                            mixture_of(base, norms, mixes),
                            mixed,
                            beside,
                            block.first,
                            raw,
                            statistics(block.gamma, block.beta, kChannels / 2)};
    start(entry_kernel<B, Mixes, StemSkips, Beside>, planes_, sizeof(Shared), pass);
    return pass.statistics.norms;
  }
  const float2* step(const StepParameters& w, const Pixel* map, Pixel* raw) {
    const EntryPass pass = {frame_, stem_, mixture_of(map, nullptr, {}),          nullptr, nullptr,
                            w.conv, raw,   statistics(w.gamma, w.beta, kChannels)};
    start(entry_kernel<Base::kMap, 0, 0u, false>, planes_, sizeof(Shared), pass);
    return pass.statistics.norms;
  }
  template <int Mixes, unsigned StemSkips> const float2* point(const Pixel* base, const float2* norms,
                                                               std::initializer_list<Mixed> mixes,
                                                               const MixParameters& w) {
    const PointPass pass = {frame_, stem_, mixture_of(base, norms, mixes), statistics(w.gamma, w.beta, kChannels)};
    start(point_kernel<Mixes, StemSkips>, planes_, sizeof(PointShared), pass);
    return pass.statistics.norms;
  }
  ResidualPass rest_of(const ResidualParameters& w, const Pixel* raw, const float2* norms, const Pixel* first,
                       const Pixel* second, Pixel* result) const {
    return {frame_, stem_, raw, norms, w.second, w.identity, {first, second}, w.gain_body, w.gain_skip, result, {}, {}};
  }
  template <int Inputs> void residual(const ResidualParameters& w, const Pixel* raw, const float2* norms,
                                      const Pixel* first, const Pixel* second, Pixel* result) {
    start(residual_kernel<Inputs, false>, planes_, sizeof(Shared), rest_of(w, raw, norms, first, second, result));
  }
  const float2* residual_point(const ResidualParameters& w, const Pixel* raw, const float2* norms, const Pixel* input,
                               Pixel* result, const MixParameters& mix, const Pixel* skip) {
    ResidualPass pass = rest_of(w, raw, norms, input, nullptr, result);
    pass.point = point_of({&mix, skip, nullptr});
    pass.statistics = statistics(mix.gamma, mix.beta, kChannels);
    start(residual_kernel<1, true>, planes_, sizeof(Shared), pass);
    return pass.statistics.norms;
  }

  // Small filters are predicted from the shallow maps, large ones from the deep one.
  const Pixel* maps_of(int size) const { return memory_.maps[size == 1 ? kDecoded : size == 3 ? kUp2 : kBottom]; }
  // These go into maps that are no longer needed.
  Pixel* features_of(int level) const {
    constexpr Map kFree[kLevels] = {kRawA, kRawB, kEncoded1, kEncoded2};
    return memory_.maps[kFree[level]];
  }
  void predict_features() {
    FeaturePass pass = {};
    pass.frame = frame_;
    pass.planes = static_cast<int>(planes_);
    for (int l = 0; l < network_.level_count; ++l) {
      const HeadParameters& w = w_.heads[l];
      pass.levels[l] = {maps_of(network_.sizes[l]), w.squeeze, w.excite, w.conv, features_of(l)};
    }
    start(features_kernel, planes_ * network_.level_count, sizeof(Shared), pass);
  }
  void predict_and_fuse() {
    HeadPass pass = {};
    pass.frame = frame_;
    pass.luminance = network_.luminance;
    pass.level_count = network_.level_count;
    pass.output = output_;
    size_t bytes = 0;
    for (int l = 0; l < network_.level_count; ++l) {
      const HeadParameters& w = w_.heads[l];
      const int size = network_.sizes[l];
      pass.levels[l] = {size,           features_of(l), w.expand.weight, w.expand.bias, w.project.weight,
                        w.project.bias, w_.alphas + l};
      const size_t needed = size == 1   ? kHeadBytes<1>
                            : size == 3 ? kHeadBytes<3>
                            : size == 5 ? kHeadBytes<5>
                                        : kHeadBytes<7>;
      bytes = std::max(bytes, needed);
    }
    if (bytes > kHeadBytes<5>)
      start(heads_kernel<7>, network_.batch, bytes, pass, kHeadThreads);
    else
      start(heads_kernel<5>, network_.batch, bytes, pass, kHeadThreads);
  }

  const ffmef_network& network_;
  const Parameters& w_;
  const Frame frame_;
  const Workspace memory_;
  float* output_;
  cudaStream_t stream_;
  const Stem stem_;
  const int64_t planes_, tiles_;
  const bool early_;
  int norms_used_ = 0, launches_ = 0;
  cudaError_t error_ = cudaSuccess;
};

}  // namespace
}  // namespace ffmef::cuda::network

// ---- C interface ---------------------------------------------------------------------------------------------------

extern "C" int64_t ffmef_cuda_ffmef_forward_values(int level_count, const int* sizes) {
  ffmef::cuda::network::Walk walk(nullptr);
  ffmef::cuda::network::Parameters(walk, level_count, sizes);
  return walk.values;
}

extern "C" int ffmef_cuda_ffmef_forward_fits(const ffmef_network* network) {
  ffmef::cuda::network::Walk walk(network);
  ffmef::cuda::network::Parameters(walk, network->level_count, network->sizes);
  return walk.at_end();
}

extern "C" int64_t ffmef_cuda_ffmef_forward_workspace(const ffmef_network* network) {
  using namespace ffmef::cuda::network;
  return Workspace(*network, frame_of(*network), nullptr).bytes;
}

extern "C" int ffmef_cuda_ffmef_forward(const ffmef_network* network, float* output, void* workspace, void* stream) {
  using namespace ffmef::cuda::network;
  if (network->batch == 0) return cudaSuccess;
  Walk walk(network);
  const Parameters parameters(walk, network->level_count, network->sizes);
  if (!walk.fits) return cudaErrorInvalidValue;
  return Chain(*network, parameters, output, workspace, static_cast<cudaStream_t>(stream)).run();
}
