// Kernels of PyramidFFMEF's pictures as __global__ functions, where their maps lie, and their launches.
// `nvcc -cubin -arch=sm_75 csrc/cuda/pyramid_pictures.cu` compiles it alone.
#include "lanes.cuh"
#include "launch.cuh"
#include "pyramid_pictures.cuh"
#include "pyramid_pictures.h"

#include <algorithm>
#include <cstddef>

namespace ffmef::cuda::pictures {
namespace {

constexpr int kSpreadThreads = 1024;
// A thread computes two or four cells of a grid of more tiles of 64 than this. On an H200, of 132 multiprocessors, two
// per thread were slower than one with 192 tiles and faster with 216; four were no faster than two with 255 tiles, and
// faster with 863.
constexpr int64_t kTilesForTwo = 200, kTilesForFour = 640;
// An octave of more cells takes one block more than a microsecond.
constexpr int64_t kSpreadCells = SpreadingShared::kMostCells;
// Brackets that run beside each other, until their samples fill the GPU: the launches of a small one have few blocks.
constexpr int64_t kMostLanes = 4, kPixelsThatFill = 1 << 22;

// ---- kernels --------------------------------------------------------------------------------------------------------

template <class D, bool Pairs> __global__ void __launch_bounds__(kThreads, 4)
    enter_kernel(const __grid_constant__ Entering p) {
  FFMEF_DYNAMIC_SHARED(shared);
  if (static_cast<int>(blockIdx.x) >= p.blocks) return pack(p);
  enter<D, Pairs>(p, *reinterpret_cast<EnteringShared*>(shared));
}

__global__ void __launch_bounds__(kThreads) arrange_kernel(const __grid_constant__ Arranging p) {
  FFMEF_DYNAMIC_SHARED(shared);
  wait_for_launch_before();
  arrange(p, *reinterpret_cast<ArrangingShared*>(shared));
}

__global__ void __launch_bounds__(kThreads, 3) meet_kernel(const __grid_constant__ Meeting p) {
  FFMEF_DYNAMIC_SHARED(shared);
  meet(p, *reinterpret_cast<MeetingShared*>(shared));
}

template <int C, int R, Next Kind> __global__ void __launch_bounds__(kThreads, 3)
    refine_kernel(const __grid_constant__ Refining p) {
  FFMEF_DYNAMIC_SHARED(shared);
  refine<C, R, Kind>(p, reinterpret_cast<float*>(shared));
}

template <int C> __global__ void __launch_bounds__(kThreads, 3) coarsest_kernel(const __grid_constant__ Coarsest p) {
  FFMEF_DYNAMIC_SHARED(shared);
  coarsest<C>(p, *reinterpret_cast<CoarsestShared<C>*>(shared));
}

__device__ __forceinline__ int64_t index_of_thread() {
  return static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
}

__global__ void __launch_bounds__(kThreads) share_kernel(const __grid_constant__ Sharing p) {
  wait_for_launch_before();
  if (index_of_thread() < p.cells * kPlanes) share(p, index_of_thread());
}

struct OctaveOf {
  Octaves all;
  int number;  // of an octave, or of tiles across
};

__global__ void __launch_bounds__(kThreads) descend_kernel(const __grid_constant__ OctaveOf p) {
  wait_for_launch_before();
  if (index_of_thread() < p.all.values(p.number)) descend(p.all, p.number, index_of_thread());
}

__global__ void __launch_bounds__(kSpreadThreads) spread_kernel(const __grid_constant__ Octaves p) {
  FFMEF_DYNAMIC_SHARED(shared);
  wait_for_launch_before();
  spread(p, *reinterpret_cast<SpreadingShared*>(shared), static_cast<int>(blockIdx.x), kSpreadThreads);
}

__global__ void __launch_bounds__(kThreads) blend_kernel(const __grid_constant__ OctaveOf p) {
  FFMEF_DYNAMIC_SHARED(shared);
  wait_for_launch_before();
  blend(p.all, *reinterpret_cast<BlendingShared*>(shared), p.number);
}

template <class D, bool Vectors> __global__ void __launch_bounds__(kThreads, 2)
    finish_kernel(const __grid_constant__ Finishing p) {
  FFMEF_DYNAMIC_SHARED(shared);
  wait_for_launch_before();
  finish<D, Vectors>(p, *reinterpret_cast<FinishingShared*>(shared));
}

// ---- layers ---------------------------------------------------------------------------------------------------------

// The layers in the order of the model's parameters, which begin with the prior.
struct Layers {
  Layer stem, enter, statistics, meet, down[FFMEF_MOST_GRIDS], encode[FFMEF_MOST_GRIDS], overall, meet_coarsest;
  Layer up[FFMEF_MOST_GRIDS], decode[FFMEF_MOST_GRIDS], head;
  const float* prior = nullptr;
  int64_t packed = 0;  // floats of all packed weights

  explicit Layers(const ffmef_pictures& f, int64_t* sizes = nullptr) : f_(f), sizes_(sizes) {
    if (f.parameters != nullptr) prior = f.parameters[0];
    if (sizes != nullptr) sizes[0] = kPlanes;
    const int *c = f.channels, last = f.grids - 1;
    stem = next(f.stem, 1, 4, false);
    enter = next(c[0], f.stem, 4, false);
    statistics = next(c[0], 3, 1, false);
    meet = next(c[0], 2 * c[0], 1);
    for (int g = 0; g < last; ++g) down[g] = next(c[g + 1], c[g], 4);
    for (int g = 0; g < last; ++g) encode[g] = next(c[g + 1], c[g + 1], 9);
    overall = next(c[last], c[last], 1);
    meet_coarsest = next(c[last], 2 * c[last], 1);
    for (int g = 0; g < last; ++g) up[g] = next(c[g], c[g + 1], 1);
    for (int g = 0; g < last; ++g) decode[g] = next(c[g], c[g], 9);
    head = next(2 * kPlanes, c[0], 1);
  }
  int parameters() const { return parameters_; }

  int copy(Layer* target) const {
    int count = 0;
    const int steps = f_.grids - 1;
    target[count++] = meet;
    for (const Layer* several : {down, encode})
      for (int g = 0; g < steps; ++g) target[count++] = several[g];
    target[count++] = overall;
    target[count++] = meet_coarsest;
    for (const Layer* several : {up, decode})
      for (int g = 0; g < steps; ++g) target[count++] = several[g];
    target[count++] = head;
    return count;
  }

 private:
  Layer next(int outputs, int inputs, int taps, bool is_packed = true) {
    Layer layer = {nullptr, nullptr, outputs, inputs, taps, (outputs + 3) / 4 * 4, packed};
    if (f_.parameters != nullptr) {
      layer.weight = f_.parameters[parameters_];
      layer.bias = f_.parameters[parameters_ + 1];
    }
    if (sizes_ != nullptr) {
      sizes_[parameters_] = int64_t(outputs) * inputs * taps;
      sizes_[parameters_ + 1] = outputs;
    }
    parameters_ += 2;
    if (is_packed) packed += layer.weights() + layer.padded;
    return layer;
  }

  const ffmef_pictures& f_;
  int64_t* sizes_;
  int parameters_ = 1;
};

// ---- maps -----------------------------------------------------------------------------------------------------------

Size half_of(Size size) { return {(size.height + 1) / 2, (size.width + 1) / 2}; }

// Where everything lies in the workspace.
struct Maps {
  Size levels[4], grids[FFMEF_MOST_GRIDS];  // the finest grid is level 3
  float *half, *quarter, *eighth, *high, *low, *apart, *valid, *entered, *packed, *preference;
  Hash *hashes, *sums;
  int* order;
  float *skips[FFMEF_MOST_GRIDS], *below[FFMEF_MOST_GRIDS], *thin[FFMEF_MOST_GRIDS];
  float *planes, *weights, *base, *shares, *fine_shares, *fine_gains, *octave_shares, *octave_gains;
  Octaves octaves;
  int blocks_across, blocks;
  int64_t bytes = 0;

  Maps(const ffmef_pictures& f, const Layers& layers, void* workspace)
      : memory_(static_cast<unsigned char*>(workspace)), count_(f.count) {
    levels[0] = {static_cast<int>(f.height), static_cast<int>(f.width)};
    for (int l = 1; l < 4; ++l) levels[l] = half_of(levels[l - 1]);
    half = planes_of(levels[1]);
    quarter = planes_of(levels[2]);
    eighth = planes_of(levels[3]);
    high = planes_of(levels[3]);
    low = planes_of(levels[3]);
    apart = take<float>(levels[3].cells());
    valid = f.validity != nullptr ? planes_of(levels[3]) : nullptr;
    entered = planes_of(levels[3], kFinest);
    packed = take<float>(layers.packed);
    blocks_across = static_cast<int>(divide_up(levels[3].width, kCellsOfBlock));
    blocks = blocks_across * levels[3].height;
    hashes = take<Hash>(f.count * blocks);
    sums = take<Hash>(f.count * blocks);
    order = take<int>(f.count);
    preference = take<float>(f.count);
    grids[0] = levels[3];
    for (int g = 0; g < f.grids; ++g) {
      if (g > 0) grids[g] = half_of(grids[g - 1]);
      if (g > 0) below[g] = planes_of(grids[g], f.channels[g]);
      skips[g] = planes_of(grids[g], f.channels[g]);  // of the last grid, what `coarsest` reads
      thin[g] = g > 0 ? planes_of(grids[g], f.channels[g - 1]) : nullptr;
    }
    planes = planes_of(levels[3], 2 * kPlanes);
    weights = planes_of(levels[3], kBands);
    base = planes_of(levels[3]);
    shares = planes_of(levels[3]);
    fine_shares = planes_of(levels[3]);
    fine_gains = planes_of(levels[3]);
    octave_shares = planes_of(levels[3]);
    octave_gains = planes_of(levels[3]);
    octaves = {};
    octaves.order = order;
    octaves.count = static_cast<int>(f.count);
    octaves.last = f.octaves;
    octaves.contrast = f.contrast;
    octaves.octaves[0] = {{eighth, octave_shares, octave_gains, fine_shares, fine_gains}, nullptr, levels[3]};
    for (int j = 1; j <= f.octaves; ++j) {
      Octave& octave = octaves.octaves[j];
      octave.size = octaves.octaves[j - 1].size;
      if (j <= kFine) octave.size = half_of(octave.size);
      for (int m = 0; m < (octaves.is_fine(j) ? kMostMaps : kFineShares); ++m) octave.maps[m] = planes_of(octave.size);
      if (j == 1) octave.fused = take<float>(octave.size.cells());
    }
  }

 private:
  float* planes_of(Size size, int channels = 1) { return take<float>(count_ * size.cells() * channels); }
  template <class T> T* take(int64_t count) {
    T* data = reinterpret_cast<T*>(memory_ + bytes);
    bytes += divide_up(count * static_cast<int64_t>(sizeof(T)), 256) * 256;
    return data;
  }

  unsigned char* memory_;
  int64_t count_;
};

// ---- launches -------------------------------------------------------------------------------------------------------

// Launches one kernel after another until one is refused. A launch may start early once every block of the one before
// it has waited for its own predecessor. This is safe, because
//   - the first launch of a call, `enter`, is an ordinary one: it starts when all earlier work on the stream is done,
//     such as a call before that used the same workspace, and its blocks neither wait nor let others start early;
//   - every other kernel waits before it writes to a map, or reads one;
//   - the packed weights alone are read before that, by `meet`, `refine` and `coarsest`. Blocks of `enter` write them,
//     no other launch does, and `arrange` lies between: its blocks waited for all of `enter` before `meet` could start;
//   - a launch ends after it has waited, so when the last one has ended, all have: what comes next on the stream, or
//     waits for an event there, finds everything.
struct Launches {
  cudaStream_t stream;
  bool early;
  int number = 0;
  cudaError_t error = cudaSuccess;

  template <class Kernel, class Problem>
  void operator()(Kernel kernel, int64_t blocks, int threads, size_t shared, const Problem& p) {
    if (error != cudaSuccess) return;
    error = early && number > 0 ? launch_early(kernel, blocks, threads, shared, stream, p)
                                : launch(kernel, blocks, threads, shared, stream, p);
    number += 1;
  }
};

Packed packed_of(const Maps& maps, const Layer& layer) {
  const float* weights = maps.packed + layer.place;
  return {weights, weights + layer.weights()};
}

Exposures exposures_of(const ffmef_pictures& f) {
  Exposures e = {};
  e.count = static_cast<int>(f.count);
  e.masked = f.validity != nullptr;
  e.size = {static_cast<int>(f.height), static_cast<int>(f.width)};
  for (int n = 0; n < e.count; ++n) {
    e.pictures[n] = f.pictures[n];
    if (e.masked) e.validity[n] = f.validity[n];
  }
  return e;
}

bool all_aligned(const ffmef_pictures& f, size_t bytes) {
  return std::all_of(f.pictures, f.pictures + f.count, [&](const void* p) { return aligned(p, bytes); });
}

template <class D> void launch_enter(const ffmef_pictures& f, const Layers& layers, const Maps& m, Launches& launches) {
  Entering p = {};
  p.exposures = exposures_of(f);
  p.half_size = m.levels[1];
  p.quarter_size = m.levels[2];
  p.grid = m.levels[3];
  p.stem = layers.stem;
  p.enter = layers.enter;
  p.statistics = layers.statistics;
  p.preferring = f.prefer != 0.0f;
  p.half = m.half, p.quarter = m.quarter, p.eighth = m.eighth;
  p.high = m.high, p.low = m.low, p.apart = m.apart, p.valid = m.valid;
  p.maps = m.entered;
  p.hashes = m.hashes, p.sums = m.sums;
  p.blocks_across = m.blocks_across;
  p.blocks = m.blocks;
  p.layer_count = layers.copy(p.layers);
  p.packed_count = layers.packed;
  p.packed = m.packed;
  const int64_t blocks = m.blocks + divide_up(layers.packed, kPackedOfBlock);
  if (f.width % 2 == 0 && all_aligned(f, kPairAlignment<D>))
    launches(enter_kernel<D, true>, blocks, kThreads, sizeof(EnteringShared), p);
  else
    launches(enter_kernel<D, false>, blocks, kThreads, sizeof(EnteringShared), p);
  const Arranging a = {m.hashes, m.sums, p.exposures.count, m.blocks, f.prefer, m.order, m.preference};
  launches(arrange_kernel, 1, kThreads, sizeof(ArrangingShared), a);
}

void launch_meet(const ffmef_pictures& f, const Layers& layers, const Maps& m, Launches& launches) {
  Meeting p = {};
  p.maps = m.entered;
  p.apart = m.apart;
  p.order = m.order;
  p.apart_weights = layers.statistics.weight;
  p.join = packed_of(m, layers.meet);
  p.down = packed_of(m, layers.down[0]);
  p.count = static_cast<int>(f.count);
  p.outputs = f.channels[1];
  p.size = m.grids[0];
  p.lower = m.grids[1];
  p.tiles_across = static_cast<int>(divide_up(p.size.width, kMeetSide));
  p.skips = m.skips[0];
  p.below = m.below[1];
  launches(meet_kernel, p.tiles_across * divide_up(p.size.height, kMeetSide), kThreads, sizeof(MeetingShared), p);
}

template <int C, int R, Next Kind> void launch_refining(Refining& p, int64_t count, Launches& launches) {
  using Shape = RefiningTile<C, R>;
  p.tiles_across = static_cast<int>(divide_up(p.size.width, Shape::kAcross));
  p.tiles_down = static_cast<int>(divide_up(p.size.height, Shape::kDown));
  launches(refine_kernel<C, R, Kind>, count * p.tiles_across * p.tiles_down, kThreads, Shape::kBytes, p);
}

// Reads of shared memory limit these kernels: a thread of R cells reads R + 4 times for 16 R multiply-adds.
template <Next Kind> void launch_refine(const ffmef_pictures& f, Refining& p, int channels, Launches& launches) {
  const int64_t tiles = f.count * p.size.cells() / 64;
  if (channels == 32)
    launch_refining<32, 1, Kind>(p, f.count, launches);
  else if (tiles > kTilesForFour)
    launch_refining<16, 4, Kind>(p, f.count, launches);
  else if (tiles > kTilesForTwo)
    launch_refining<16, 2, Kind>(p, f.count, launches);
  else
    launch_refining<16, 1, Kind>(p, f.count, launches);
}

template <int C> void launch_coarsest(const Coarsest& p, Launches& launches) {
  launches(coarsest_kernel<C>, divide_up(p.size.cells(), CoarsestShared<C>::kCells), kThreads,
           sizeof(CoarsestShared<C>), p);
}

void launch_grids(const ffmef_pictures& f, const Layers& layers, const Maps& m, Launches& launches) {
  const int last = f.grids - 1;
  for (int g = 1; g <= last; ++g) {
    Refining p = {};
    p.in = m.below[g];
    p.size = m.grids[g];
    p.conv = packed_of(m, layers.encode[g - 1]);
    p.out = m.skips[g];
    if (g == last) {
      launch_refine<Next::none>(f, p, f.channels[g], launches);
    } else {
      p.next = packed_of(m, layers.down[g]);
      p.next_outputs = f.channels[g + 1];
      p.lower = m.grids[g + 1];
      p.next_out = m.below[g + 1];
      launch_refine<Next::down>(f, p, f.channels[g], launches);
    }
  }
  const Coarsest c = {m.skips[last],
                      packed_of(m, layers.overall),
                      packed_of(m, layers.meet_coarsest),
                      packed_of(m, layers.up[last - 1]),
                      static_cast<int>(f.count),
                      f.channels[last - 1],
                      m.grids[last],
                      m.thin[last]};
  if (f.channels[last] == 32)
    launch_coarsest<32>(c, launches);
  else
    launch_coarsest<16>(c, launches);
  for (int g = last - 1; g >= 0; --g) {
    Refining p = {};
    p.in = m.skips[g];
    p.thin = m.thin[g + 1];
    p.size = m.grids[g];
    p.thin_size = m.grids[g + 1];
    p.conv = packed_of(m, layers.decode[g]);
    const Layer& next = g > 0 ? layers.up[g - 1] : layers.head;
    p.next = packed_of(m, next);
    p.next_outputs = next.padded;
    p.stored = next.outputs;
    p.next_out = g > 0 ? m.thin[g] : m.planes;
    launch_refine<Next::point>(f, p, f.channels[g], launches);
  }
}

void launch_cells(const ffmef_pictures& f, const Layers& layers, const Maps& m, Launches& launches) {
  const int64_t cells = m.levels[3].cells();
  const Sharing s = {m.planes, layers.prior, m.high,        m.low,        m.apart,         m.valid,
                     m.order,  m.preference, int(f.count),  cells,        f.contrast,      m.weights,
                     m.base,   m.shares,     m.fine_shares, m.fine_gains, m.octave_shares, m.octave_gains};
  launches(share_kernel, divide_up(cells * kPlanes, kThreads), kThreads, 0, s);
  if (f.octaves == 0) return;
  const Octaves& o = m.octaves;
  // All octaves from the second on have one size. Of a large picture, they are too much for a block each.
  const bool few = f.octaves >= kFine && o.octaves[kFine].size.cells() <= kSpreadCells;
  for (int number = 1; number <= (few ? kFine - 1 : f.octaves); ++number)
    launches(descend_kernel, divide_up(o.values(number), kThreads), kThreads, 0, OctaveOf{o, number});
  if (few) {
    const int64_t planes = o.values(kFine) / o.octaves[kFine].size.cells();
    launches(spread_kernel, planes, kSpreadThreads, sizeof(SpreadingShared), o);
  }
  const Size first = o.octaves[1].size;
  const int64_t across = divide_up(first.width, kBlendSide);
  launches(blend_kernel, across * divide_up(first.height, kBlendSide), kThreads, sizeof(BlendingShared),
           OctaveOf{o, static_cast<int>(across)});
}

template <class D> bool allows_vectors(const ffmef_pictures& f, const void* out) {
  return f.width % kPixels == 0 && aligned(out, kRunAlignment<D>) && all_aligned(f, kRunAlignment<D>);
}

template <class D> void launch_finish(const ffmef_pictures& f, const Maps& m, void* out, Launches& launches) {
  Finishing p = {};
  p.exposures = exposures_of(f);
  p.order = m.order;
  p.half = m.half, p.quarter = m.quarter, p.eighth = m.eighth;
  p.weights = m.weights;
  p.base = f.octaves > 0 ? m.base : m.shares;  // the lowest level has no gain
  p.shares = m.shares;
  if (f.octaves > 0) {
    p.octave_pictures = m.octaves.octaves[1].maps[kPictures];
    p.octave_fused = m.octaves.octaves[1].fused;
    p.octave = m.octaves.octaves[1].size;
  }
  std::copy(m.levels, m.levels + 4, p.sizes);
  p.brightness = f.brightness;
  p.saturation = f.saturation;
  p.tiles_across = static_cast<int>(divide_up(f.width, kTileAcross));
  p.out = out;
  const int64_t tiles = p.tiles_across * divide_up(f.height, kTileDown);
  if (allows_vectors<D>(f, out))
    launches(finish_kernel<D, true>, tiles, kThreads, sizeof(FinishingShared), p);
  else
    launches(finish_kernel<D, false>, tiles, kThreads, sizeof(FinishingShared), p);
}

template <class D> cudaError_t fuse(const ffmef_pictures& f, void* out, void* workspace, cudaStream_t stream) {
  const Layers layers(f);
  const Maps maps(f, layers, workspace);
  Launches launches{stream, f.early_launches != 0 && can_launch_early(arrange_kernel)};
  launch_enter<D>(f, layers, maps, launches);
  launch_meet(f, layers, maps, launches);
  launch_grids(f, layers, maps, launches);
  launch_cells(f, layers, maps, launches);
  launch_finish<D>(f, maps, out, launches);
  return launches.error;
}

cudaError_t fuse_any(const ffmef_pictures& f, void* out, void* workspace, cudaStream_t stream) {
  switch (f.sample) {
    case FFMEF_LUMINANCE: return fuse<Luminance>(f, out, workspace, stream);
    case FFMEF_RGB8: return fuse<Rgb8>(f, out, workspace, stream);
    case FFMEF_RGB16: return fuse<Rgb16>(f, out, workspace, stream);
    case FFMEF_RGB_FLOAT: return fuse<RgbFloat>(f, out, workspace, stream);
    default: return cudaErrorInvalidValue;
  }
}

int lanes_for(const ffmef_pictures& f, int64_t brackets) {
  const int64_t that_fit = kPixelsThatFill / (f.count * f.height * f.width);
  return static_cast<int>(std::max<int64_t>(1, std::min({kMostLanes, brackets, that_fit})));
}

int64_t workspace_of(const ffmef_pictures& f) { return Maps(f, Layers(f), nullptr).bytes; }

}  // namespace
}  // namespace ffmef::cuda::pictures

extern "C" int ffmef_cuda_pyramid_pictures_parameters(const ffmef_pictures* pictures, int64_t* sizes) {
  return ffmef::cuda::pictures::Layers(*pictures, sizes).parameters();
}

extern "C" int64_t ffmef_cuda_pyramid_pictures_workspace(const ffmef_pictures* pictures) {
  return ffmef::cuda::pictures::workspace_of(*pictures);
}

extern "C" int ffmef_cuda_pyramid_pictures(const ffmef_pictures* pictures, void* out, void* workspace, void* stream) {
  return ffmef::cuda::pictures::fuse_any(*pictures, out, workspace, static_cast<cudaStream_t>(stream));
}

extern "C" int64_t ffmef_cuda_pyramid_brackets_workspace(const ffmef_pictures* brackets, int64_t count) {
  using namespace ffmef::cuda::pictures;
  return count == 0 ? 0 : lanes_for(*brackets, count) * workspace_of(*brackets);
}

extern "C" int ffmef_cuda_pyramid_brackets(const ffmef_pictures* brackets, int64_t count, void* const* outs,
                                           void* workspace, void* stream) {
  using namespace ffmef::cuda::pictures;
  if (count == 0) return cudaSuccess;
  ffmef::cuda::Lanes lanes(static_cast<cudaStream_t>(stream), lanes_for(*brackets, count));
  const int64_t bytes = workspace_of(*brackets);
  cudaError_t error = lanes.error();
  for (int64_t b = 0; error == cudaSuccess && b < count; ++b) {
    // Brackets of one lane run one after another, so they can share its workspace.
    unsigned char* const own = static_cast<unsigned char*>(workspace) + b % lanes.count() * bytes;
    error = fuse_any(brackets[b], outs[b], own, lanes.stream(b));
  }
  const cudaError_t joined = lanes.join();
  return error != cudaSuccess ? error : joined;
}
