// Kernels of PyramidFFMEF (ffmef/models/pyramid.py) from pictures to a picture. Bodies are device functions,
// each over its own problem; pyramid_pictures.cu wraps them in kernels and launches them.
//
//   enter     pictures -> levels 1 to 3 of luminance, what each cell has recorded, the finest grid's maps; packs
//             weights
//   arrange   the order of the exposures, which depends on their samples alone
//   meet      joins the images of the finest grid, and goes down to the next
//   refine    a 3x3 convolution of a grid with what follows it: the step down, or a 1x1 convolution
//   coarsest  the last grid's 1x1 convolutions and meeting
//   share     shares and gains of every cell
//   descend, spread, blend  the base over octaves
//   finish    bands, base, chroma, gamut and rounding: a tile's fused levels live in shared memory
//
// Maps have their channels last. What `enter` writes is in the order in which the exposures were given; everything
// after `arrange` is in the order that it found, so sums do not depend on the order given. There are no atomics.
#pragma once

#include "../common/finish.h"
#include "../common/gains.h"
#include "../common/interpolation.h"
#include "common.cuh"
#include "pyramid_pictures.h"

#include <cmath>

namespace ffmef::cuda::pictures {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kBands = 3, kPlanes = kBands + 3;  // the bands, the base, the fine octaves, the others
constexpr int kFine = 2;                         // the finest octaves, each with its own plane: only they are halved
constexpr int kScaleShift = 3;                   // cells of 8 x 8 pixels
constexpr int kFinest = 16;                      // channels of the finest grid
constexpr int kMostStem = 16;
using Hash = unsigned long long;

struct Size {
  int height, width;
  __host__ __device__ __forceinline__ int64_t cells() const { return static_cast<int64_t>(height) * width; }
};

struct Exposures {
  const void* pictures[FFMEF_MOST_EXPOSURES];
  const uint8_t* validity[FFMEF_MOST_EXPOSURES];  // null means all of a picture
  int count;
  bool masked;  // some validity is given
  Size size;
};

// Weights as torch keeps them, and as kernels read them: by tap, input and output, the outputs padded; then the biases.
struct Layer {
  const float *weight, *bias;
  int outputs, inputs, taps, padded;
  int64_t place;  // in the packed weights

  __host__ __device__ __forceinline__ int64_t weights() const { return int64_t(taps) * inputs * padded; }
};

struct Packed {
  const float *weights, *bias;
};

__device__ __forceinline__ int clamped(int i, int size) { return i < 0 ? 0 : i < size ? i : size - 1; }
__device__ __forceinline__ float unit(float x) {  // as part of the instruction before it
#ifdef __CUDA_ARCH__
  return __saturatef(x);
#else
  return x > 0.0f ? x < 1.0f ? x : 1.0f : 0.0f;
#endif
}
// A division takes a dozen instructions and a branch, for a last bit that nothing here needs.
__device__ __forceinline__ float reciprocal(float x) {
#ifdef __CUDA_ARCH__
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
#else
  return 1.0f / x;
#endif
}
__device__ __forceinline__ float rectified(float x) { return x > 0.0f ? x : 0.0f; }
__device__ __forceinline__ float mix(float a, float b, float share) { return a + (b - a) * share; }

// ---- samples --------------------------------------------------------------------------------------------------------

// Luminance on the scale 0..1 of RGB on the scale 0..255.
constexpr float kRed = 0.256789f / 255, kGreen = 0.504129f / 255, kBlue = 0.097906f / 255, kBlack = 16.0f / 255;

// Samples times to_byte lie on the scale 0..255, in which the colour equations are written. What is not a number
// becomes 0 as an integer, and stays so as floating point.
struct Luminance {
  using type = float;
  static constexpr int channels = 1;
};
struct Rgb8 {
  using type = uint8_t;
  static constexpr int channels = 3;
  static constexpr float to_byte = 1.0f;
  static __device__ __forceinline__ uint8_t rounded(float x) {
    return static_cast<uint8_t>(static_cast<int>(fminf(fmaxf(x, 0.0f), 255.0f) + 0.5f));
  }
};
struct Rgb16 {
  using type = uint16_t;
  static constexpr int channels = 3;
  static constexpr float to_byte = 1.0f / 257;
  static __device__ __forceinline__ uint16_t rounded(float x) {
    return static_cast<uint16_t>(static_cast<int>(fminf(fmaxf(x, 0.0f), 255.0f) * 257.0f + 0.5f));
  }
};
struct RgbFloat {
  using type = float;
  static constexpr int channels = 3;
  static constexpr float to_byte = 255.0f;
  static __device__ __forceinline__ float rounded(float x) {
    return (x < 0.0f ? 0.0f : x > 255.0f ? 255.0f : x) * (1.0f / 255);
  }
};

// Adds a word times the `number`th of odd numbers without a pattern: one instruction.
__device__ __forceinline__ void hash_word(Hash& hash, int number, unsigned word) {
  constexpr unsigned odd[] = {0x9e3779b1, 0x85ebca77, 0xc2b2ae3d, 0x27d4eb2f, 0x165667b1, 0xd3a2646d, 0xfd7046c5,
                              0xb55a4f09, 0x7feb352d, 0x846ca68b, 0x68e31da5, 0xa2e3f4c7, 0x5bd1e995};
  hash += static_cast<Hash>(word) * odd[number];
}
constexpr int kOddOfValidity = 12;

// Adds the `number`th four of a thread's samples.
__device__ __forceinline__ void hash_four(Hash& hash, int number, uint8_t a, uint8_t b, uint8_t c, uint8_t d) {
  hash_word(hash, number,
            a | static_cast<unsigned>(b) << 8 | static_cast<unsigned>(c) << 16 | static_cast<unsigned>(d) << 24);
}
__device__ __forceinline__ void hash_four(Hash& hash, int number, uint16_t a, uint16_t b, uint16_t c, uint16_t d) {
  hash_word(hash, 2 * number, a | static_cast<unsigned>(b) << 16);
  hash_word(hash, 2 * number + 1, c | static_cast<unsigned>(d) << 16);
}
__device__ __forceinline__ void hash_four(Hash& hash, int number, float a, float b, float c, float d) {
  const float values[4] = {a, b, c, d};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    unsigned bits;
    memcpy(&bits, &values[i], sizeof(bits));
    hash_word(hash, 4 * number + i, bits);
  }
}

// The sum of a warp's hashes, in lane 0: the sums of their two halves.
__device__ __forceinline__ Hash sum_of_warp(Hash hash) {
  unsigned low = static_cast<unsigned>(hash), high = static_cast<unsigned>(hash >> 32);
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  low = __reduce_add_sync(0xffffffffu, low);
  high = __reduce_add_sync(0xffffffffu, high);
#else
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    low += __shfl_down_sync(0xffffffffu, low, distance);
    high += __shfl_down_sync(0xffffffffu, high, distance);
  }
#endif
  return static_cast<Hash>(high) << 32 | low;
}

// ---- enter ----------------------------------------------------------------------------------------------------------

constexpr int kMostLayers = 4 * FFMEF_MOST_GRIDS;

struct Entering {
  Exposures exposures;
  Size half_size, quarter_size, grid;
  Layer stem, enter, statistics;
  bool preferring;                 // sums of luminance are needed
  float *half, *quarter, *eighth;  // (count, rows, columns)
  float *high, *low, *apart;       // (count, grid), the last (grid)
  float* valid;                    // (count, grid); null where all is
  float* maps;                     // (count, grid, kFinest)
  Hash *hashes, *sums;             // (count, blocks): of the samples, of luminance
  int blocks_across, blocks;       // that read pictures; those after them pack weights
  Layer layers[kMostLayers];
  int layer_count;
  int64_t packed_count;
  float* packed;
};

constexpr int kCellsOfBlock = kThreads / 16;  // in a row of cells: a thread for each pixel of half size
constexpr int kPackedOfBlock = 4 * kThreads;

struct EnteringShared {
  float half[4][4 * kCellsOfBlock], valid[4][4 * kCellsOfBlock], apart[4][4 * kCellsOfBlock];
  float stem_weights[4 * kMostStem], stem_bias[kMostStem];
  // By place, stem and output. Four threads that read those of the four places touch the banks twice, not four times.
  float weights[4][kMostStem + 1][kFinest];
  float white[kFinest], black[kFinest], bias[kFinest];  // of what cells have recorded
  float known[kCellsOfBlock][2];
  Hash hashes[FFMEF_MOST_EXPOSURES][kWarps], sums[FFMEF_MOST_EXPOSURES][kWarps];
};

__device__ __forceinline__ void pack(const Entering& p) {
  const int64_t first = static_cast<int64_t>(blockIdx.x - p.blocks) * kPackedOfBlock;
#pragma unroll 1
  for (int64_t i = first + threadIdx.x; i < first + kPackedOfBlock && i < p.packed_count; i += kThreads) {
    int number = 0;
    while (number + 1 < p.layer_count && i >= p.layers[number + 1].place) ++number;
    const Layer& layer = p.layers[number];
    const int64_t inside = i - layer.place, bias = inside - layer.weights();
    const int output = static_cast<int>(inside % layer.padded), line = static_cast<int>(inside / layer.padded);
    const int input = line % layer.inputs, tap = line / layer.inputs;
    float value = 0.0f;
    if (bias >= 0)
      value = bias < layer.outputs ? layer.bias[bias] : 0.0f;
    else if (output < layer.outputs)
      value = layer.weight[(static_cast<int64_t>(output) * layer.inputs + input) * layer.taps + tap];
    p.packed[i] = value;
  }
}

// Two pixels that one access of their alignment moves, or a few.
template <class D> constexpr int kPairAlignment = 2 * static_cast<int>(sizeof(typename D::type));
template <class D> struct alignas(kPairAlignment<D>) Pair {
  typename D::type samples[2 * D::channels];
};

template <class D, bool Pairs> __device__ __forceinline__ void load_pair(const typename D::type* picture, unsigned left,
                                                                         unsigned right,
                                                                         typename D::type (&samples)[2 * D::channels]) {
  if constexpr (Pairs) {
    const Pair<D> pair = *reinterpret_cast<const Pair<D>*>(picture + left);
#pragma unroll
    for (int c = 0; c < 2 * D::channels; ++c) samples[c] = pair.samples[c];
  } else {
#pragma unroll
    for (int c = 0; c < D::channels; ++c) samples[c] = picture[left + c], samples[D::channels + c] = picture[right + c];
  }
}

// The mean luminance of 2 x 2 pixels; adds their samples to the hash.
template <class D> __device__ __forceinline__ float mean_of_four(const typename D::type (&upper)[2 * D::channels],
                                                                 const typename D::type (&lower)[2 * D::channels],
                                                                 Hash& hash) {
  float sums[D::channels];
#pragma unroll
  for (int c = 0; c < D::channels; ++c) {
    sums[c] = (static_cast<float>(upper[c]) + static_cast<float>(upper[D::channels + c])) +
              (static_cast<float>(lower[c]) + static_cast<float>(lower[D::channels + c]));
    hash_four(hash, c, upper[2 * c], upper[2 * c + 1], lower[2 * c], lower[2 * c + 1]);
  }
  if constexpr (D::channels == 1)
    return sums[0] * 0.25f;
  else
    return kRed * D::to_byte / 4 * sums[0] + kGreen * D::to_byte / 4 * sums[1] + kBlue * D::to_byte / 4 * sums[2] +
           kBlack;
}

// What one thread sees of one exposure, a pixel of half size: its luminance. Offsets have 32 bits, because a picture
// has fewer than 2^29 pixels.
template <class D, bool Pairs> __device__ __forceinline__ float look(const Entering& p, EnteringShared& s, int n,
                                                                     int row, int column, int line, int place) {
  using S = typename D::type;
  const Size size = p.exposures.size;
  const int r = clamped(row, p.half_size.height), c = clamped(column, p.half_size.width);
  const bool inside = r == row && c == column;
  const int upper = 2 * r, lower = 2 * r + 1 < size.height ? 2 * r + 1 : 2 * r;
  const int left = 2 * c, right = Pairs || 2 * c + 1 < size.width ? 2 * c + 1 : 2 * c;
  const S* picture = static_cast<const S*>(p.exposures.pictures[n]);
  const unsigned pixel = static_cast<unsigned>(r) * p.half_size.width + c;
  Hash hash = static_cast<Hash>(pixel + 1) * 0xd6e8feb86659fd93ull;
  S first[2 * D::channels], second[2 * D::channels];
  const unsigned above = static_cast<unsigned>(upper) * size.width, below = static_cast<unsigned>(lower) * size.width;
  load_pair<D, Pairs>(picture, (above + left) * D::channels, (above + right) * D::channels, first);
  load_pair<D, Pairs>(picture, (below + left) * D::channels, (below + right) * D::channels, second);
  const float half = mean_of_four<D>(first, second, hash);
  s.half[line][place] = half;
  if (p.exposures.masked) {
    float sum = 4.0f;
    if (const uint8_t* validity = p.exposures.validity[n]) {
      const int64_t first = clamped(2 * row, size.height), second = clamped(2 * row + 1, size.height);
      const int near = clamped(2 * column, size.width), next = clamped(2 * column + 1, size.width);
      const uint8_t a = validity[first * size.width + near], b = validity[first * size.width + next];
      const uint8_t d = validity[second * size.width + near], e = validity[second * size.width + next];
      hash_word(hash, kOddOfValidity,
                a | static_cast<unsigned>(b) << 8 | static_cast<unsigned>(d) << 16 | static_cast<unsigned>(e) << 24);
      sum = static_cast<float>(a + b + d + e) * (1.0f / 255);
    }
    s.valid[line][place] = sum;
  }
  hash ^= hash >> 32;
  hash *= 0xff51afd7ed558ccdull;
  hash ^= hash >> 31;
  if (inside) p.half[n * p.half_size.cells() + pixel] = half;
  hash = sum_of_warp(inside ? hash : 0);
  if (threadIdx.x % 32 == 0) s.hashes[n][threadIdx.x / 32] = hash;
  if (p.preferring) {
    // A pixel of half size stands for four pixels, at an odd border for two or one.
    const int pixels = (lower - upper + 1) * (right - left + 1);
    const Hash sum = sum_of_warp(inside ? static_cast<Hash>(half * 16777216.0f) * static_cast<Hash>(pixels) : 0);
    if (threadIdx.x % 32 == 0) s.sums[n][threadIdx.x / 32] = sum;
  }
  return half;
}

__device__ __forceinline__ float mean_of_half(const EnteringShared& s, int cell, int down, int across) {
  const int row = 2 * down, column = 4 * cell + 2 * across;
  return ((s.half[row][column] + s.half[row][column + 1]) + (s.half[row + 1][column] + s.half[row + 1][column + 1])) *
         0.25f;
}

__device__ __forceinline__ float mean_of_cell(const float (&values)[4][4 * kCellsOfBlock], int cell) {
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < 16; ++i) sum += values[i / 4][4 * cell + i % 4];
  return sum * (1.0f / 16);
}

// What the cells of this block have recorded, levels 2 and 3, and the stem: a few threads each.
__device__ __forceinline__ void measure_cells(const Entering& p, EnteringShared& s, int n, int row, int first) {
  const int thread = static_cast<int>(threadIdx.x), width = p.grid.width;
  const int64_t line = n * p.grid.cells() + static_cast<int64_t>(row) * width;
  if (thread < 2 * kCellsOfBlock) {
    const int cell = thread / 2, low = thread % 2;
    const float slope = low ? 1.0f / 0.05f : -1.0f / 0.06f, start = low ? -0.065f / 0.05f : 0.915f / 0.06f;
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < 16; ++i) sum += unit(start + slope * s.half[i / 4][4 * cell + i % 4]);
    s.known[cell][low] = sum * (1.0f / 16);
    if (first + cell < width) (low ? p.low : p.high)[line + first + cell] = sum * (1.0f / 16);
  } else if (thread < 3 * kCellsOfBlock) {
    const int cell = thread - 2 * kCellsOfBlock;
    if (first + cell < width) {
      // An odd border repeats level 2 itself.
      const int down = 2 * row + 1 < p.quarter_size.height ? 1 : 0;
      const int across = 2 * (first + cell) + 1 < p.quarter_size.width ? 1 : 0;
      const float upper = mean_of_half(s, cell, 0, 0) + mean_of_half(s, cell, 0, across);
      const float lower = mean_of_half(s, cell, down, 0) + mean_of_half(s, cell, down, across);
      p.eighth[line + first + cell] = (upper + lower) * 0.25f;
      if (p.valid != nullptr) p.valid[line + first + cell] = mean_of_cell(s.valid, cell) * 0.25f;
    }
  } else if (thread >= 64 && thread < 64 + 4 * kCellsOfBlock) {
    const int cell = (thread - 64) / 4, down = thread / 2 % 2, across = thread % 2;
    const int64_t r = 2 * row + down, c = 2 * (first + cell) + across;
    if (r < p.quarter_size.height && c < p.quarter_size.width)
      p.quarter[n * p.quarter_size.cells() + r * p.quarter_size.width + c] = mean_of_half(s, cell, down, across);
  }
}

// Four outputs at a cell of what one of its 2 x 2 places gives: the stem's channels times their weights.
__device__ __forceinline__ void enter_grid(const EnteringShared& s, int stems, int cell, int k, int channel,
                                           float (&sums)[4]) {
  const int row = k / 2 * 2, column = 4 * cell + k % 2 * 2;
  const float a = s.half[row][column], b = s.half[row][column + 1];
  const float c = s.half[row + 1][column], d = s.half[row + 1][column + 1];
#pragma unroll 4
  for (int i = 0; i < stems; ++i) {
    const float4 w = *reinterpret_cast<const float4*>(s.stem_weights + 4 * i);
    const float x = rectified(s.stem_bias[i] + w.x * a + w.y * b + w.z * c + w.w * d);
    const float4 v = *reinterpret_cast<const float4*>(s.weights[k][i] + channel);
    sums[0] += v.x * x;
    sums[1] += v.y * x;
    sums[2] += v.z * x;
    sums[3] += v.w * x;
  }
}

// Over the four places, which threads four apart have; in the first of them.
__device__ __forceinline__ void add_places(float (&sums)[4]) {
#pragma unroll
  for (int distance = 8; distance >= 4; distance /= 2)
#pragma unroll
    for (float& sum : sums) sum += __shfl_down_sync(0xffffffffu, sum, distance);
}

template <class D, bool Pairs> __device__ __forceinline__ void enter(const Entering& p, EnteringShared& s) {
  const int thread = static_cast<int>(threadIdx.x), stems = p.stem.outputs;
  const int row = static_cast<int>(blockIdx.x) / p.blocks_across;
  const int first = static_cast<int>(blockIdx.x) % p.blocks_across * kCellsOfBlock;
  const int line = thread / (4 * kCellsOfBlock), place = thread % (4 * kCellsOfBlock);
  for (int i = thread; i < 4 * stems; i += kThreads) s.stem_weights[i] = p.stem.weight[i];
  for (int i = thread; i < stems; i += kThreads) s.stem_bias[i] = p.stem.bias[i];
  for (int i = thread / (4 * kFinest), output = thread / 4 % kFinest; i < stems; i += kThreads / (4 * kFinest))
    s.weights[thread % 4][i][output] = p.enter.weight[4 * (output * stems + i) + thread % 4];
  if (thread < kFinest) {
    s.white[thread] = p.statistics.weight[3 * thread];
    s.black[thread] = p.statistics.weight[3 * thread + 1];
    s.bias[thread] = p.enter.bias[thread] + p.statistics.bias[thread];
  }
  const int cell = thread / 16, k = thread / 4 % 4, channel = thread % 4 * 4;
  float least = 0.0f, most = 0.0f;
#pragma unroll 1
  for (int n = 0; n < p.exposures.count; ++n) {
    // Nothing that this writes is read after the previous exposure's second barrier.
    const float luminance = look<D, Pairs>(p, s, n, 4 * row + line, 4 * first + place, line, place);
    least = n == 0 || luminance < least ? luminance : least;
    most = n == 0 || luminance > most ? luminance : most;
    __syncthreads();
    measure_cells(p, s, n, row, first);
    float sums[4] = {};
    enter_grid(s, stems, cell, k, channel, sums);
    add_places(sums);
    __syncthreads();
    if (k == 0 && first + cell < p.grid.width) {
      const float white = 1.0f - s.known[cell][0], black = 1.0f - s.known[cell][1];
#pragma unroll
      for (int c = 0; c < 4; ++c)
        sums[c] += s.bias[channel + c] + white * s.white[channel + c] + black * s.black[channel + c];
      const int64_t at = n * p.grid.cells() + static_cast<int64_t>(row) * p.grid.width + first + cell;
      *reinterpret_cast<float4*>(p.maps + at * kFinest + channel) = make_float4(sums[0], sums[1], sums[2], sums[3]);
    }
  }
  s.apart[line][place] = most - least;
  __syncthreads();
  if (thread < kCellsOfBlock && first + thread < p.grid.width)
    p.apart[static_cast<int64_t>(row) * p.grid.width + first + thread] = mean_of_cell(s.apart, thread);
  if (thread < p.exposures.count) {
    Hash hash = 0, sum = 0;
    for (int w = 0; w < kWarps; ++w) hash += s.hashes[thread][w], sum += p.preferring ? s.sums[thread][w] : 0;
    p.hashes[static_cast<int64_t>(thread) * p.blocks + blockIdx.x] = hash;
    p.sums[static_cast<int64_t>(thread) * p.blocks + blockIdx.x] = sum;
  }
}

// ---- arrange --------------------------------------------------------------------------------------------------------

struct Arranging {
  const Hash *hashes, *sums;  // (count, blocks)
  int count, blocks;
  float prefer;
  int* order;         // which exposure comes first, second, ...
  float* preference;  // of the first, the second, ...: added to logits
};

struct ArrangingShared {
  Hash partial[2][kWarps];
  Hash totals[2][FFMEF_MOST_EXPOSURES];
};

// Exposures are taken in the order of the hashes of their samples; equal ones are the same picture. The order of
// brightness matters only for the preference.
__device__ __forceinline__ void arrange(const Arranging& p, ArrangingShared& s) {
  const int thread = static_cast<int>(threadIdx.x);
#pragma unroll 1
  for (int n = 0; n < p.count; ++n) {
    Hash hash = 0, sum = 0;
    for (int b = thread; b < p.blocks; b += kThreads) {
      hash += p.hashes[static_cast<int64_t>(n) * p.blocks + b];
      sum += p.sums[static_cast<int64_t>(n) * p.blocks + b];
    }
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
      hash += __shfl_down_sync(0xffffffffu, hash, distance);
      sum += __shfl_down_sync(0xffffffffu, sum, distance);
    }
    if (thread % 32 == 0) s.partial[0][thread / 32] = hash, s.partial[1][thread / 32] = sum;
    __syncthreads();
    if (thread < 2) {
      Hash total = 0;
      for (int w = 0; w < kWarps; ++w) total += s.partial[thread][w];
      s.totals[thread][n] = total;
    }
    __syncthreads();
  }
  if (thread >= p.count) return;
  int place = 0, rank = 0;
  for (int m = 0; m < p.count; ++m) {
    const Hash other = s.totals[0][m], own = s.totals[0][thread];
    const bool before = other < own || (other == own && m < thread);
    place += before;
    rank += s.totals[1][m] < s.totals[1][thread] || (s.totals[1][m] == s.totals[1][thread] && before);
  }
  p.order[place] = thread;
  p.preference[place] =
      p.count > 1 ? p.prefer * (2.0f * static_cast<float>(rank) / static_cast<float>(p.count - 1) - 1.0f) : 0.0f;
}

// ---- layers of the grids --------------------------------------------------------------------------------------------

__device__ __forceinline__ float4 load_four(const float* source) { return *reinterpret_cast<const float4*>(source); }
__device__ __forceinline__ void store_four(float* target, const float (&v)[4]) {
  *reinterpret_cast<float4*>(target) = make_float4(v[0], v[1], v[2], v[3]);
}

// Packed weights to shared memory; numbers of floats are multiples of four.
__device__ __forceinline__ void copy_weights(float* target, const float* source, int floats) {
  for (int i = 4 * static_cast<int>(threadIdx.x); i < floats; i += 4 * kThreads)
    *reinterpret_cast<float4*>(target + i) = load_four(source + i);
}

// Adds inputs times weights (input, output) to the sums of four outputs of each of R cells, `apart` floats apart.
template <int Inputs, int R> __device__ __forceinline__ void multiply(const float* inputs, int apart,
                                                                      const float* weights, int outputs,
                                                                      float (&sums)[R][4]) {
#pragma unroll
  for (int i = 0; i < Inputs; i += 4) {
    float4 values[R];
#pragma unroll
    for (int r = 0; r < R; ++r) values[r] = load_four(inputs + r * apart + i);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const float4 w = load_four(weights + (i + k) * outputs);
#pragma unroll
      for (int r = 0; r < R; ++r) {
        const float x = k == 0 ? values[r].x : k == 1 ? values[r].y : k == 2 ? values[r].z : values[r].w;
        sums[r][0] += w.x * x;
        sums[r][1] += w.y * x;
        sums[r][2] += w.z * x;
        sums[r][3] += w.w * x;
      }
    }
  }
}

__device__ __forceinline__ void load_sums(float (&sums)[4], const float* bias) {
  const float4 b = load_four(bias);
  sums[0] = b.x, sums[1] = b.y, sums[2] = b.z, sums[3] = b.w;
}

// Cells in shared memory are four floats further apart than they have channels, so neighbours lie in different banks.
template <int C> constexpr int kApart = C + 4;

// A 2x2 convolution with stride 2 of a tile whose first cell is (row, column); an odd border is repeated. Rectified.
template <int C> __device__ __forceinline__ void step_down(const float* tile, int across, int down, int row, int column,
                                                           Size size, const float* weights, const float* bias,
                                                           int outputs, Size lower, float* out) {
  const int quads = outputs / 4;
  for (int i = static_cast<int>(threadIdx.x); i < across / 2 * (down / 2) * quads; i += kThreads) {
    const int quad = i % quads, x = i / quads % (across / 2), y = i / quads / (across / 2);
    if (row / 2 + y >= lower.height || column / 2 + x >= lower.width) continue;
    float sums[1][4];
    load_sums(sums[0], bias + 4 * quad);
    for (int tap = 0; tap < 4; ++tap) {
      const int r = 2 * y + (row + 2 * y + 1 < size.height ? tap / 2 : 0);
      const int c = 2 * x + (column + 2 * x + 1 < size.width ? tap % 2 : 0);
      multiply<C>(tile + (r * across + c) * kApart<C>, 0, weights + tap * C * outputs + 4 * quad, outputs, sums);
    }
    for (float& sum : sums[0]) sum = rectified(sum);
    store_four(out + ((static_cast<int64_t>(row / 2) + y) * lower.width + column / 2 + x) * outputs + 4 * quad,
               sums[0]);
  }
}

// ---- meet -----------------------------------------------------------------------------------------------------------

struct Meeting {
  const float *maps, *apart;  // of `enter`
  const int* order;
  const float* apart_weights;  // of the statistics, every third
  Packed join, down;
  int count, outputs, tiles_across;
  Size size, lower;
  float *skips, *below;  // (count, size, kFinest), (count, lower, outputs)
};

constexpr int kMeetSide = 8;  // cells

// Four channels of all images at one cell: their sums, then means, and their greatest values.
struct Met {
  float mean[4], most[4];

  __device__ __forceinline__ void add(const float (&v)[4], bool first) {
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      mean[c] = first ? v[c] : mean[c] + v[c];
      most[c] = first || v[c] > most[c] ? v[c] : most[c];
    }
  }
};

// What the images have in common gives each of a thread's four channels: a 1x1 convolution of the means and the
// greatest values of all C channels, which the threads of a cell share in `both`.
template <int C, int kCells>
__device__ __forceinline__ void join(Met& met, int count, int cell, int channel, const float* weights,
                                     float (&both)[kCells][kApart<2 * C>], float (&joined)[1][4]) {
#pragma unroll
  for (int c = 0; c < 4; ++c) met.mean[c] *= 1.0f / static_cast<float>(count);
  store_four(&both[cell][channel], met.mean);
  store_four(&both[cell][C + channel], met.most);
  __syncthreads();
  load_sums(joined[0], weights + 2 * C * C + channel);
  multiply<2 * C>(both[cell], 0, weights + channel, C, joined);
}

struct MeetingShared {
  float both[kMeetSide * kMeetSide][kApart<2 * kFinest>];
  float tile[kMeetSide * kMeetSide][kApart<kFinest>];
  float join[(2 * kFinest + 1) * kFinest];
  float down[(4 * kFinest + 1) * 32];
};

__device__ __forceinline__ void meet(const Meeting& p, MeetingShared& s) {
  constexpr int kQuads = kFinest / 4;
  const int thread = static_cast<int>(threadIdx.x), cell = thread / kQuads, channel = thread % kQuads * 4;
  const int first_row = static_cast<int>(blockIdx.x) / p.tiles_across * kMeetSide;
  const int first_column = static_cast<int>(blockIdx.x) % p.tiles_across * kMeetSide;
  const int row = first_row + cell / kMeetSide, column = first_column + cell % kMeetSide;
  const bool inside = row < p.size.height && column < p.size.width;
  const int64_t at = inside ? static_cast<int64_t>(row) * p.size.width + column : 0;
  copy_weights(s.join, p.join.weights, 2 * kFinest * kFinest);
  copy_weights(s.join + 2 * kFinest * kFinest, p.join.bias, kFinest);
  copy_weights(s.down, p.down.weights, 4 * kFinest * p.outputs);
  copy_weights(s.down + 4 * kFinest * p.outputs, p.down.bias, p.outputs);
  wait_for_launch_before();  // weights are older: `enter` has ended
  float added[4];
#pragma unroll
  for (int c = 0; c < 4; ++c) added[c] = p.apart_weights[3 * (channel + c) + 2] * p.apart[at];
  const auto load = [&](int n, float (&v)[4]) {
    const float4 x = load_four(p.maps + (p.order[n] * p.size.cells() + at) * kFinest + channel);
    v[0] = x.x + added[0], v[1] = x.y + added[1], v[2] = x.z + added[2], v[3] = x.w + added[3];
  };
  Met met;
  float v[4], joined[1][4];
#pragma unroll 1
  for (int n = 0; n < p.count; ++n) {
    load(n, v);
    met.add(v, n == 0);
  }
  join<kFinest>(met, p.count, cell, channel, s.join, s.both, joined);
#pragma unroll 1
  for (int n = 0; n < p.count; ++n) {
    load(n, v);
#pragma unroll
    for (int c = 0; c < 4; ++c) v[c] = rectified(v[c] + joined[0][c]);
    __syncthreads();  // every thread is done with the previous image
    store_four(&s.tile[cell][channel], v);
    if (inside) store_four(p.skips + (n * p.size.cells() + at) * kFinest + channel, v);
    __syncthreads();
    step_down<kFinest>(s.tile[0], kMeetSide, kMeetSide, first_row, first_column, p.size, s.down,
                       s.down + 4 * kFinest * p.outputs, p.outputs, p.lower, p.below + n * p.lower.cells() * p.outputs);
  }
}

// ---- refine ---------------------------------------------------------------------------------------------------------

struct Refining {
  const float* in;    // (count, size, channels)
  const float* thin;  // (count, thin_size, channels): interpolated and added to `in` first, rectified; or null
  Size size, thin_size, lower;
  Packed conv, next;
  int next_outputs;  // padded
  int stored;        // outputs of a 1x1 convolution that are kept
  int tiles_across, tiles_down;
  float* out;       // (count, size, channels), or null
  float* next_out;  // of a step down (count, lower, next_outputs), of a 1x1 convolution (count, size, stored)
};

enum class Next { none, down, point };

// R cells of a thread lie eight columns apart.
template <int C, int R> struct RefiningTile {
  static constexpr int kQuads = C / 4, kDown = kThreads / kQuads / 8, kAcross = 8 * R;
  static constexpr int kTile = (kDown + 2) * (kAcross + 2) * kApart<C>;
  static constexpr int kWeights = (9 * C + 1) * C;  // no less than what follows needs
  static constexpr int kBytes = (kTile + kWeights) * 4;
};

// The value of a grid of half the size, four channels.
template <int C>
__device__ __forceinline__ void expand_four_channels(const float* thin, Size size, int row, int column, float (&v)[4]) {
  const int r = row >> 1, c = column >> 1;
  const int64_t far_r = clamped(row & 1 ? r + 1 : r - 1, size.height);
  const int far_c = clamped(column & 1 ? c + 1 : c - 1, size.width);
  const float4 a = load_four(thin + (static_cast<int64_t>(r) * size.width + c) * C);
  const float4 b = load_four(thin + (static_cast<int64_t>(r) * size.width + far_c) * C);
  const float4 d = load_four(thin + (far_r * size.width + c) * C);
  const float4 e = load_four(thin + (far_r * size.width + far_c) * C);
  const auto between = [](float near, float near_far, float far, float far_far) {
    return 0.75f * (0.75f * near + 0.25f * near_far) + 0.25f * (0.75f * far + 0.25f * far_far);
  };
  v[0] = between(a.x, b.x, d.x, e.x);
  v[1] = between(a.y, b.y, d.y, e.y);
  v[2] = between(a.z, b.z, d.z, e.z);
  v[3] = between(a.w, b.w, d.w, e.w);
}

// Long, because its two halves share the tile, the weights' memory and what each thread holds in registers.
template <int C, int R, Next Kind> __device__ __forceinline__ void refine(const Refining& p, float* shared) {
  using Shape = RefiningTile<C, R>;
  constexpr int kAcross = Shape::kAcross, kDown = Shape::kDown, kPitch = kAcross + 2;
  float *tile = shared, *weights = shared + Shape::kTile;
  const int thread = static_cast<int>(threadIdx.x), channel = thread % Shape::kQuads * 4;
  const int block = static_cast<int>(blockIdx.x), n = block / (p.tiles_across * p.tiles_down);
  const int first_row = block / p.tiles_across % p.tiles_down * kDown, first_column = block % p.tiles_across * kAcross;
  const float* in = p.in + n * p.size.cells() * C;
  const float* thin = p.thin != nullptr ? p.thin + n * p.thin_size.cells() * C : nullptr;
  copy_weights(weights, p.conv.weights, 9 * C * C);
  copy_weights(weights + 9 * C * C, p.conv.bias, C);
  wait_for_launch_before();  // weights are older
  for (int i = thread; i < (kDown + 2) * kPitch * Shape::kQuads; i += kThreads) {
    const int c = i % Shape::kQuads * 4, place = i / Shape::kQuads;
    const int row = clamped(first_row - 1 + place / kPitch, p.size.height);
    const int column = clamped(first_column - 1 + place % kPitch, p.size.width);
    const float4 x = load_four(in + (static_cast<int64_t>(row) * p.size.width + column) * C + c);
    float v[4] = {x.x, x.y, x.z, x.w};
    if (thin != nullptr) {
      float raised[4];
      expand_four_channels<C>(thin + c, p.thin_size, row, column, raised);
#pragma unroll
      for (int k = 0; k < 4; ++k) v[k] = rectified(v[k] + raised[k]);
    }
    store_four(tile + place * kApart<C> + c, v);
  }
  __syncthreads();
  const int row = thread / Shape::kQuads / 8, column = thread / Shape::kQuads % 8;
  float sums[R][4];
#pragma unroll
  for (int r = 0; r < R; ++r) load_sums(sums[r], weights + 9 * C * C + channel);
#pragma unroll 1
  for (int tap = 0; tap < 9; ++tap)
    multiply<C>(tile + ((row + tap / 3) * kPitch + column + tap % 3) * kApart<C>, 8 * kApart<C>,
                weights + tap * C * C + channel, C, sums);
#pragma unroll
  for (int r = 0; r < R; ++r) {
    const float4 own = load_four(tile + ((row + 1) * kPitch + column + 8 * r + 1) * kApart<C> + channel);
    sums[r][0] = rectified(sums[r][0]) + own.x;
    sums[r][1] = rectified(sums[r][1]) + own.y;
    sums[r][2] = rectified(sums[r][2]) + own.z;
    sums[r][3] = rectified(sums[r][3]) + own.w;
    const int y = first_row + row, x = first_column + column + 8 * r;
    if (p.out != nullptr && y < p.size.height && x < p.size.width)
      store_four(p.out + (n * p.size.cells() + static_cast<int64_t>(y) * p.size.width + x) * C + channel, sums[r]);
  }
  if constexpr (Kind == Next::none) return;
  __syncthreads();  // every thread is done with the tile and the weights
  const int inputs = Kind == Next::down ? 4 * C : C;
  copy_weights(weights, p.next.weights, inputs * p.next_outputs);
  copy_weights(weights + inputs * p.next_outputs, p.next.bias, p.next_outputs);
#pragma unroll
  for (int r = 0; r < R; ++r) store_four(tile + (row * kAcross + column + 8 * r) * kApart<C> + channel, sums[r]);
  __syncthreads();
  const float* bias = weights + inputs * p.next_outputs;
  if constexpr (Kind == Next::down) {
    step_down<C>(tile, kAcross, kDown, first_row, first_column, p.size, weights, bias, p.next_outputs, p.lower,
                 p.next_out + n * p.lower.cells() * p.next_outputs);
  } else {
    const int quads = p.next_outputs / 4;
    for (int i = thread; i < kDown * kAcross * quads; i += kThreads) {
      const int output = i % quads * 4, cell = i / quads;
      const int y = first_row + cell / kAcross, x = first_column + cell % kAcross;
      if (y >= p.size.height || x >= p.size.width) continue;
      float results[1][4];
      load_sums(results[0], bias + output);
      multiply<C>(tile + cell * kApart<C>, 0, weights + output, p.next_outputs, results);
      float* out = p.next_out + (n * p.size.cells() + static_cast<int64_t>(y) * p.size.width + x) * p.stored + output;
#pragma unroll
      for (int k = 0; k < 4; ++k)
        if (output + k < p.stored) out[k] = results[0][k];
    }
  }
}

// ---- coarsest -------------------------------------------------------------------------------------------------------

struct Coarsest {
  float* maps;  // (count, size, C); written over
  Packed overall, join, up;
  int count, outputs;
  Size size;
  float* thin;  // (count, size, outputs)
};

template <int C> struct CoarsestShared {
  static constexpr int kCells = kThreads / (C / 4);
  float both[kCells][kApart<2 * C>];
  float cells[kCells][kApart<C>];
  float overall[(C + 1) * C], join[(2 * C + 1) * C], up[(C + 1) * 32];
};

// Long, because its three steps share each thread's mean, maximum and joined values, which stay in registers.
template <int C> __device__ __forceinline__ void coarsest(const Coarsest& p, CoarsestShared<C>& s) {
  constexpr int kCells = CoarsestShared<C>::kCells, kQuads = C / 4;
  const int thread = static_cast<int>(threadIdx.x), cell = thread / kQuads, channel = thread % kQuads * 4;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kCells, at = first + cell;
  const bool inside = at < p.size.cells();
  const int64_t place = inside ? at : p.size.cells() - 1;
  copy_weights(s.overall, p.overall.weights, C * C);
  copy_weights(s.overall + C * C, p.overall.bias, C);
  copy_weights(s.join, p.join.weights, 2 * C * C);
  copy_weights(s.join + 2 * C * C, p.join.bias, C);
  copy_weights(s.up, p.up.weights, C * p.outputs);
  copy_weights(s.up + C * p.outputs, p.up.bias, p.outputs);
  wait_for_launch_before();  // weights are older
  Met common;
  float v[1][4], joined[1][4];
#pragma unroll 1
  for (int n = 0; n < p.count; ++n) {
    float* source = p.maps + (n * p.size.cells() + place) * C + channel;
    const float4 x = load_four(source);
    const float own[4] = {x.x, x.y, x.z, x.w};
    __syncthreads();
    store_four(&s.cells[cell][channel], own);
    __syncthreads();
    load_sums(v[0], s.overall + C * C + channel);
    multiply<C>(s.cells[cell], 0, s.overall + channel, C, v);
#pragma unroll
    for (int c = 0; c < 4; ++c) v[0][c] += own[c];
    common.add(v[0], n == 0);
    if (inside) store_four(source, v[0]);
  }
  join<C>(common, p.count, cell, channel, s.join, s.both, joined);
#pragma unroll 1
  for (int n = 0; n < p.count; ++n) {
    float met[4] = {};
    if (inside) {  // this thread's own four
      const float4 x = load_four(p.maps + (n * p.size.cells() + at) * C + channel);
      met[0] = rectified(x.x + joined[0][0]), met[1] = rectified(x.y + joined[0][1]);
      met[2] = rectified(x.z + joined[0][2]), met[3] = rectified(x.w + joined[0][3]);
    }
    __syncthreads();  // every thread is done with the previous image
    store_four(&s.cells[cell][channel], met);
    __syncthreads();
    const int quads = p.outputs / 4;
    for (int i = thread; i < kCells * quads; i += kThreads) {
      const int output = i % quads * 4, other = i / quads;
      if (first + other >= p.size.cells()) continue;
      float results[1][4];
      load_sums(results[0], s.up + C * p.outputs + output);
      multiply<C>(s.cells[other], 0, s.up + output, p.outputs, results);
      store_four(p.thin + (n * p.size.cells() + first + other) * p.outputs + output, results[0]);
    }
  }
}

// ---- share ----------------------------------------------------------------------------------------------------------

struct Sharing {
  const float* planes;  // (count, cells, 2 * kPlanes): logits, gains
  const float* prior;
  const float *high, *low, *apart, *valid;  // of `enter`
  const int* order;
  const float* preference;
  int count;
  int64_t cells;
  float contrast;
  float *weights, *base;  // (kBands, count, cells), (count, cells): share (1 + gain) contrast
  float* shares;          // (count, cells), of the base
  float *fine_shares, *fine_gains, *octave_shares, *octave_gains;
};

// One cell and one plane.
__device__ __forceinline__ void share(const Sharing& p, int64_t index) {
  const int64_t cell = index / kPlanes;
  const int plane = static_cast<int>(index % kPlanes);
  const float prior = p.prior[plane], apart = p.apart[cell];
  const float gate = apart / (apart + 0.04f) * gain_with_count(plane, kBands, p.count);
  const auto logit = [&](int n) {
    const int64_t known = p.order[n] * p.cells + cell;
    float z = p.planes[(n * p.cells + cell) * (2 * kPlanes) + plane] +
              prior * logf(p.high[known] * (0.1f + 0.9f * p.low[known]) + 0.02f);
    if (p.valid != nullptr) z += logf(p.valid[known] > kLeastValidity ? p.valid[known] : kLeastValidity);
    return z + p.preference[n];
  };
  float largest = logit(0), total = 0.0f;
#pragma unroll 1
  for (int n = 1; n < p.count; ++n) {
    const float z = logit(n);
    largest = z > largest ? z : largest;
  }
#pragma unroll 1
  for (int n = 0; n < p.count; ++n) total += expf(logit(n) - largest);
#pragma unroll 1
  for (int n = 0; n < p.count; ++n) {
    const int64_t at = n * p.cells + cell;
    const float part = expf(logit(n) - largest) / total;
    const float gain = p.planes[at * (2 * kPlanes) + kPlanes + plane] * gate;
    const float weight = part * (1.0f + gain) * p.contrast;
    if (plane < kBands) {
      p.weights[plane * p.count * p.cells + at] = weight;
    } else if (plane == kBands) {
      p.base[at] = weight;
      p.shares[at] = part;
    } else {
      const bool fine = plane == kBands + 1;
      (fine ? p.fine_shares : p.octave_shares)[at] = part;
      (fine ? p.fine_gains : p.octave_gains)[at] = gain;
    }
  }
}

// ---- octaves --------------------------------------------------------------------------------------------------------

// Maps of each exposure on one octave, (count, size) each, and the fused octave. Shares and gains are those of the
// octaves from here on; those of the fine ones follow where another fine one takes its weights from them.
enum { kPictures, kShares, kGains, kFineShares, kFineGains, kMostMaps };
struct Octave {
  float* maps[kMostMaps];
  float* fused;  // of the first octave below the grid alone
  Size size;
};

struct Octaves {
  Octave octaves[FFMEF_MOST_OCTAVES + 1];  // the first is the grid of cells
  const int* order;                        // of the first one's pictures
  int count, last;
  float contrast;

  // The last octave has no bands.
  __host__ __device__ __forceinline__ bool is_fine(int number) const { return number <= kFine && number < last; }
  __host__ __device__ __forceinline__ int64_t values(int number) const {
    return (is_fine(number) ? kMostMaps : kFineShares) * count * octaves[number].size.cells();
  }
};

// A cell of the next octave: [1 3 3 1] / 8 along both sides.
__device__ __forceinline__ float shrunk_at(const float* plane, Size size, int row, int column) {
  float lines[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float* line = plane + static_cast<int64_t>(clamped(2 * row - 1 + i, size.height)) * size.width;
    lines[i] = (line[clamped(2 * column - 1, size.width)] + line[clamped(2 * column + 2, size.width)] +
                3.0f * (line[2 * column] + line[clamped(2 * column + 1, size.width)])) *
               0.125f;
  }
  return (lines[0] + lines[3] + 3.0f * (lines[1] + lines[2])) * 0.125f;
}

// A cell of the next octave of the same size: [1 2 1] / 4 along both sides, taps `step` cells apart.
__device__ __forceinline__ float spread_at(const float* plane, Size size, int step, int row, int column) {
  const int left = clamped(column - step, size.width), right = clamped(column + step, size.width);
  float lines[3];
#pragma unroll
  for (int i = 0; i < 3; ++i) {
    const float* line = plane + static_cast<int64_t>(clamped(row + (i - 1) * step, size.height)) * size.width;
    lines[i] = (line[left] + line[right] + 2.0f * line[column]) * 0.25f;
  }
  return (lines[0] + lines[2] + 2.0f * lines[1]) * 0.25f;
}

// One value of an octave's maps. The fine octaves are halved in size.
__device__ __forceinline__ void descend(const Octaves& p, int number, int64_t index) {
  const Octave &finer = p.octaves[number - 1], &octave = p.octaves[number];
  const int64_t cells = octave.size.cells();
  const int cell = static_cast<int>(index % cells), plane = static_cast<int>(index / cells);
  const int map = plane / p.count, n = plane % p.count;
  const int64_t from = map == kPictures && number == 1 ? p.order[n] : n;
  const float* values = finer.maps[map] + from * finer.size.cells();
  const int row = cell / octave.size.width, column = cell % octave.size.width;
  octave.maps[map][n * cells + cell] = number <= kFine
                                           ? shrunk_at(values, finer.size, row, column)
                                           : spread_at(values, finer.size, 1 << (number - kFine - 1), row, column);
}

// The value of a plane of half the size, interpolated.
__device__ __forceinline__ float expanded_at(const float* plane, Size size, int row, int column) {
  const int r = row >> 1, c = column >> 1;
  const int far_r = clamped(row & 1 ? r + 1 : r - 1, size.height);
  const int far_c = clamped(column & 1 ? c + 1 : c - 1, size.width);
  const float* near_line = plane + static_cast<int64_t>(r) * size.width;
  const float* far_line = plane + static_cast<int64_t>(far_r) * size.width;
  return 0.75f * (0.75f * near_line[c] + 0.25f * near_line[far_c]) +
         0.25f * (0.75f * far_line[c] + 0.25f * far_line[far_c]);
}

// One block: all octaves after the finest two of one map of one exposure. The map passes from one half of shared memory
// to the other.
struct SpreadingShared {
  static constexpr int kMostCells = 6144;
  float halves[2][kMostCells];
};

__device__ __forceinline__ void spread(const Octaves& p, SpreadingShared& s, int plane, int threads) {
  const int map = plane / p.count, n = plane % p.count;
  const Octave &finer = p.octaves[kFine - 1], &first = p.octaves[kFine];
  const Size size = first.size;
  const int cells = static_cast<int>(size.cells());
  const float* values = finer.maps[map] + n * finer.size.cells();
  float* stored = first.maps[map] + static_cast<int64_t>(n) * cells;
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < cells; i += threads)
    stored[i] = s.halves[0][i] = shrunk_at(values, finer.size, i / size.width, i % size.width);
  if (map >= kFineShares) return;
#pragma unroll 1
  for (int number = kFine + 1; number <= p.last; ++number) {
    __syncthreads();
    const float* from = s.halves[(number - kFine + 1) % 2];
    float* to = s.halves[(number - kFine) % 2];
    stored = p.octaves[number].maps[map] + static_cast<int64_t>(n) * cells;
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x); i < cells; i += threads)
      stored[i] = to[i] = spread_at(from, size, 1 << (number - kFine - 1), i / size.width, i % size.width);
  }
}

// One cell of the fused octave `first`, all octaves after which have its size.
__device__ __forceinline__ float blend_lowest(const Octaves& p, int first, int64_t cell) {
  const int64_t cells = p.octaves[first].size.cells();
  const Octave& last = p.octaves[p.last];
  float sum = 0.0f;
#pragma unroll 1
  for (int n = 0; n < p.count; ++n) {
    const int64_t at = n * cells + cell;
    float below = last.maps[kPictures][at];
    sum += last.maps[kShares][at] * below;
#pragma unroll 4
    for (int number = p.last - 1; number >= first; --number) {
      const Octave& o = p.octaves[number];
      const int fine = p.is_fine(number) ? kFineShares - kShares : 0;
      const float picture = o.maps[kPictures][at];
      sum += p.contrast * o.maps[kShares + fine][at] * (1.0f + o.maps[kGains + fine][at]) * (picture - below);
      below = picture;
    }
  }
  return sum;
}

constexpr int kBlendSide = 16;  // cells of the first octave below the grid

struct BlendingShared {
  float below[kBlendSide / 2 + 2][kBlendSide / 2 + 2];  // the second octave, fused, and one cell around it
};

// A tile of the first octave below the grid of cells, fused.
__device__ __forceinline__ void blend(const Octaves& p, BlendingShared& s, int tiles_across) {
  constexpr int kSide = kBlendSide / 2 + 2;
  const int thread = static_cast<int>(threadIdx.x), tile = static_cast<int>(blockIdx.x);
  const int first_row = tile / tiles_across * kBlendSide, first_column = tile % tiles_across * kBlendSide;
  const Octave& o = p.octaves[1];
  const bool halved = p.last > 1;
  if (halved && thread < kSide * kSide) {
    const Size size = p.octaves[2].size;
    const int row = clamped(first_row / 2 - 1 + thread / kSide, size.height);
    const int column = clamped(first_column / 2 - 1 + thread % kSide, size.width);
    s.below[thread / kSide][thread % kSide] = blend_lowest(p, 2, static_cast<int64_t>(row) * size.width + column);
  }
  __syncthreads();
  const int y = thread / kBlendSide, x = thread % kBlendSide, row = first_row + y, column = first_column + x;
  if (row >= o.size.height || column >= o.size.width) return;
  const int64_t cell = static_cast<int64_t>(row) * o.size.width + column;
  if (!halved) {
    o.fused[cell] = blend_lowest(p, 1, cell);
    return;
  }
  const Octave& below = p.octaves[2];
  const int near_y = y / 2 + 1, far_y = y % 2 == 0 ? near_y - 1 : near_y + 1;
  const int near_x = x / 2 + 1, far_x = x % 2 == 0 ? near_x - 1 : near_x + 1;
  float sum = 0.75f * (0.75f * s.below[near_y][near_x] + 0.25f * s.below[near_y][far_x]) +
              0.25f * (0.75f * s.below[far_y][near_x] + 0.25f * s.below[far_y][far_x]);
#pragma unroll 2
  for (int n = 0; n < p.count; ++n) {
    const int64_t at = n * o.size.cells() + cell;
    const float band =
        o.maps[kPictures][at] - expanded_at(below.maps[kPictures] + n * below.size.cells(), below.size, row, column);
    sum += p.contrast * o.maps[kFineShares][at] * (1.0f + o.maps[kFineGains][at]) * band;
  }
  o.fused[cell] = sum;
}

// ---- finish ---------------------------------------------------------------------------------------------------------

struct Finishing {
  Exposures exposures;
  const int* order;
  const float *half, *quarter, *eighth;         // of `enter`
  const float* weights;                         // (kBands, count, cells)
  const float *base, *shares;                   // (count, cells)
  const float *octave_pictures, *octave_fused;  // below the cells; null where there is none
  Size sizes[4], octave;                        // of the levels; of the octave
  float brightness, saturation;
  int tiles_across;
  void* out;
};

constexpr int kTileDown = 32, kTileAcross = 64, kPixels = 4;  // of a thread, in each of two rows

// The part of a fused level that a tile needs: its own and one place around it. Places are those of the whole picture.
template <int Number> struct FusedLevel {
  static constexpr int kDown = (kTileDown >> Number) + 2, kAcross = (kTileAcross >> Number) + 2;
  float values[kDown * kAcross];
};

struct FinishingShared {
  FusedLevel<1> half;
  FusedLevel<2> quarter;
  FusedLevel<3> eighth;
};

struct Tile {
  int row, column;  // first pixel
};

// The index of a place among the level's values.
template <int Number> __device__ __forceinline__ int index_of(const Tile& tile, int row, int column) {
  return (row - (tile.row >> Number) + 1) * FusedLevel<Number>::kAcross + column - (tile.column >> Number) + 1;
}

template <int Number> __device__ __forceinline__ float expanded_of_fused(const FusedLevel<Number>& level,
                                                                         const Tile& tile, int row, int column) {
  constexpr int kAcross = FusedLevel<Number>::kAcross;
  const float* near = level.values + index_of<Number>(tile, row >> 1, column >> 1);
  const int far = column & 1 ? 1 : -1, far_line = row & 1 ? kAcross : -kAcross;
  return 0.75f * (0.75f * near[0] + 0.25f * near[far]) +
         0.25f * (0.75f * near[far_line] + 0.25f * near[far_line + far]);
}

// Beyond the picture, a level repeats its border.
template <int Number>
__device__ __forceinline__ void repeat_border(FusedLevel<Number>& level, const Tile& tile, Size size) {
  using Level = FusedLevel<Number>;
  const int first_row = (tile.row >> Number) - 1, first_column = (tile.column >> Number) - 1;
  __syncthreads();
  if (first_row >= 0 && first_column >= 0 && first_row + Level::kDown <= size.height &&
      first_column + Level::kAcross <= size.width)
    return;
  for (int i = static_cast<int>(threadIdx.x); i < Level::kDown * Level::kAcross; i += kThreads) {
    const int row = first_row + i / Level::kAcross, column = first_column + i % Level::kAcross;
    const int r = clamped(row, size.height), c = clamped(column, size.width);
    if (r != row || c != column) level.values[i] = level.values[index_of<Number>(tile, r, c)];
  }
  __syncthreads();
}

// Fuses level Number of the tile; value(row, column) gives one place.
template <int Number, class Value>
__device__ __forceinline__ void fuse_level(FusedLevel<Number>& level, const Tile& tile, Size size, const Value& value) {
  using Level = FusedLevel<Number>;
  for (int i = static_cast<int>(threadIdx.x); i < Level::kDown * Level::kAcross; i += kThreads) {
    const int row = (tile.row >> Number) - 1 + i / Level::kAcross,
              column = (tile.column >> Number) - 1 + i % Level::kAcross;
    if (row >= 0 && row < size.height && column >= 0 && column < size.width) level.values[i] = value(row, column);
  }
  repeat_border(level, tile, size);
}

// Three rows and columns around a place -> the 2 x 2 places of twice the size under it. at(i) gives a row's three.
template <class Row> __device__ __forceinline__ void expand_quad(const Row& at, float (&quad)[4]) {
  float rows[2][3];
  {
    float values[3][3];
#pragma unroll
    for (int i = 0; i < 3; ++i) at(i, values[i]);
#pragma unroll
    for (int j = 0; j < 3; ++j) {
      rows[0][j] = 0.25f * values[0][j] + 0.75f * values[1][j];
      rows[1][j] = 0.75f * values[1][j] + 0.25f * values[2][j];
    }
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    quad[2 * i] = 0.25f * rows[i][0] + 0.75f * rows[i][1];
    quad[2 * i + 1] = 0.75f * rows[i][1] + 0.25f * rows[i][2];
  }
}

// Weights of cells of 2^shift pixels.
__device__ __forceinline__ float weight_at(const float* cells, Size grid, int shift, int row, int column) {
  const Tap<int, float> r = tap_of_power<float>(grid.height, shift, row),
                        c = tap_of_power<float>(grid.width, shift, column);
  const float* first = cells + static_cast<int64_t>(r.first) * grid.width;
  const float* second = cells + static_cast<int64_t>(r.second) * grid.width;
  return mix(mix(first[c.first], first[c.second], c.share), mix(second[c.first], second[c.second], c.share), r.share);
}

// The level of half size: the 2 x 2 places under each one of the level below.
__device__ __forceinline__ void fuse_half(const Finishing& p, const Tile& tile, FinishingShared& s) {
  using Level = FusedLevel<1>;
  constexpr int kQuadsDown = Level::kDown / 2 + 1, kQuadsAcross = Level::kAcross / 2 + 1;
  const Size half = p.sizes[1], quarter = p.sizes[2], grid = p.sizes[3];
  const int count = p.exposures.count;
  for (int i = static_cast<int>(threadIdx.x); i < kQuadsDown * kQuadsAcross; i += kThreads) {
    const int y = i / kQuadsAcross, x = i % kQuadsAcross;
    const int r = (tile.row >> 2) - 1 + y, c = (tile.column >> 2) - 1 + x;
    if (r < 0 || c < 0 || r >= quarter.height || c >= quarter.width) continue;
    float sums[4];
    // Of the outermost quads, only the places next to the tile count.
    const float* centre = s.quarter.values + index_of<2>(tile, r, c);
    const int up = y > 0 ? 1 : 0, down = y < kQuadsDown - 1 ? 1 : 0, before = x > 0 ? 1 : 0;
    const int after = x < kQuadsAcross - 1 ? 1 : 0;
    expand_quad(
        [&](int line, float (&values)[3]) {
          const float* at = centre + (line == 0 ? -up : line == 1 ? 0 : down) * FusedLevel<2>::kAcross;
          values[0] = at[-before], values[1] = at[0], values[2] = at[after];
        },
        sums);
    const int columns[3] = {c > 0 ? c - 1 : 0, c, c + 1 < quarter.width ? c + 1 : c};
    const int rows[3] = {r > 0 ? r - 1 : 0, r, r + 1 < quarter.height ? r + 1 : r};
    const int next_row = 2 * r + 1 < half.height ? 2 * r + 1 : 2 * r;
    const int next_column = 2 * c + 1 < half.width ? 2 * c + 1 : 2 * c;
    // No centre of a cell lies among the four, so they lie between the same cells.
    const Tap<int, float> cell_row = tap_of_power<float>(grid.height, 2, 2 * r),
                          cell_column = tap_of_power<float>(grid.width, 2, 2 * c);
#pragma unroll 1
    for (int n = 0; n < count; ++n) {
      const int own = p.order[n];
      const float* plane = p.quarter + own * quarter.cells();
      float below[4];
      expand_quad(
          [&](int line, float (&values)[3]) {
            const float* at = plane + static_cast<int64_t>(rows[line]) * quarter.width;
            values[0] = at[columns[0]], values[1] = at[columns[1]], values[2] = at[columns[2]];
          },
          below);
      const float* weights = p.weights + (count + n) * grid.cells();
      const float* upper = weights + static_cast<int64_t>(cell_row.first) * grid.width;
      const float* lower = weights + static_cast<int64_t>(cell_row.second) * grid.width;
      const float left = upper[cell_column.first], left_step = lower[cell_column.first] - left;
      const float right = upper[cell_column.second], right_step = lower[cell_column.second] - right;
      const float* first = p.half + own * half.cells() + static_cast<int64_t>(2 * r) * half.width;
      const float* second = p.half + own * half.cells() + static_cast<int64_t>(next_row) * half.width;
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const float share = cell_row.share + 0.25f * static_cast<float>(k / 2);
        const float from = left + left_step * share, to = right + right_step * share;
        const float weight = mix(from, to, cell_column.share + 0.25f * static_cast<float>(k % 2));
        const float* line = k < 2 ? first : second;  // an index of the choice itself trips gcc's sanitizer
        sums[k] += weight * (line[k % 2 ? next_column : 2 * c] - below[k]);
      }
    }
    float* target = s.half.values + index_of<1>(tile, 2 * r, 2 * c);
    const bool top = 2 * r >= (tile.row >> 1) - 1, left = 2 * c >= (tile.column >> 1) - 1;
    const bool bottom = 2 * r < (tile.row >> 1) + Level::kDown - 2,
               right = 2 * c < (tile.column >> 1) + Level::kAcross - 2;
    if (top && left) target[0] = sums[0];
    if (top && right) target[1] = sums[1];
    if (bottom && left) target[Level::kAcross] = sums[2];
    if (bottom && right) target[Level::kAcross + 1] = sums[3];
  }
  repeat_border(s.half, tile, half);
}

__device__ __forceinline__ void fuse_coarse_levels(const Finishing& p, const Tile& tile, FinishingShared& s) {
  const Size grid = p.sizes[3];
  const int64_t cells = grid.cells();
  const int count = p.exposures.count;
  fuse_level<3>(s.eighth, tile, grid, [&](int row, int column) {
    const int64_t cell = static_cast<int64_t>(row) * grid.width + column;
    float sum = p.octave_fused != nullptr ? expanded_at(p.octave_fused, p.octave, row, column) : 0.0f;
    for (int n = 0; n < count; ++n) {
      float band = p.eighth[p.order[n] * cells + cell];
      if (p.octave_fused != nullptr)
        band -= expanded_at(p.octave_pictures + n * p.octave.cells(), p.octave, row, column);
      sum += p.base[n * cells + cell] * band;
    }
    return sum;
  });
  fuse_level<2>(s.quarter, tile, p.sizes[2], [&](int row, int column) {
    float sum = expanded_of_fused(s.eighth, tile, row, column);
    for (int n = 0; n < count; ++n) {
      const int own = p.order[n];
      const float band = p.quarter[own * p.sizes[2].cells() + static_cast<int64_t>(row) * p.sizes[2].width + column] -
                         expanded_at(p.eighth + own * cells, grid, row, column);
      sum += weight_at(p.weights + (2 * count + n) * cells, grid, 1, row, column) * band;
    }
    return sum;
  });
  fuse_half(p, tile, s);
}

// Four values between which two places lie -> four places.
__device__ __forceinline__ void expand_run(const float (&coarse)[4], float (&fine)[kPixels]) {
  fine[0] = 0.25f * coarse[0] + 0.75f * coarse[1];
  fine[1] = 0.75f * coarse[1] + 0.25f * coarse[2];
  fine[2] = 0.25f * coarse[1] + 0.75f * coarse[2];
  fine[3] = 0.75f * coarse[2] + 0.25f * coarse[3];
}

// Where the level of half size and the cells lie that a run of four pixels lies between. Offsets have 32 bits, because
// a picture has fewer than 2^29 pixels: addresses are then one instruction each.
struct Around {
  unsigned near[4], far[4];  // of half size, in the two rows
  unsigned upper[2], lower[2];
  float down, across;  // shares of the lower and the right cells

  __device__ __forceinline__ Around(const Finishing& p, int row, int column) {
    const Size half = p.sizes[1], grid = p.sizes[3];
    const int far_row = clamped(row & 1 ? (row >> 1) + 1 : (row >> 1) - 1, half.height);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int place = clamped((column >> 1) - 1 + j, half.width);
      near[j] = static_cast<unsigned>((row >> 1) * half.width + place);
      far[j] = static_cast<unsigned>(far_row * half.width + place);
    }
    const Tap<int, float> cell_row = tap_of_power<float>(grid.height, kScaleShift, row);
    // No centre of a cell lies inside the run.
    const Tap<int, float> cell_column = tap_of_power<float>(grid.width, kScaleShift, column);
    down = cell_row.share;
    across = cell_column.share;
    upper[0] = static_cast<unsigned>(cell_row.first * grid.width + cell_column.first);
    upper[1] = static_cast<unsigned>(cell_row.first * grid.width + cell_column.second);
    lower[0] = static_cast<unsigned>(cell_row.second * grid.width + cell_column.first);
    lower[1] = static_cast<unsigned>(cell_row.second * grid.width + cell_column.second);
  }

  __device__ __forceinline__ void expand(const float* plane, float (&fine)[kPixels]) const {
    float mixed[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) mixed[j] = 0.75f * plane[near[j]] + 0.25f * plane[far[j]];
    expand_run(mixed, fine);
  }
  // Of the cells: the value at the first pixel, and the step to the next.
  __device__ __forceinline__ void cells(const float* plane, float& start, float& step) const {
    const float left = mix(plane[upper[0]], plane[lower[0]], down);
    const float right = mix(plane[upper[1]], plane[lower[1]], down);
    start = mix(left, right, across);
    step = (right - left) * (1.0f / (1 << kScaleShift));
  }
};

template <class D> constexpr int kRunAlignment = kPixels * static_cast<int>(sizeof(typename D::type));

// Four pixels that one load or store of whole words moves.
template <class D> struct alignas(kRunAlignment<D>) Run {
  typename D::type samples[kPixels * D::channels];
};

// Four pixels, in few accesses where their address is known to be aligned. The last pixel repeats beyond the border.
template <class D, bool Vectors>
__device__ __forceinline__ void load_run(const typename D::type* line, int column, int width,
                                         typename D::type (&samples)[4 * D::channels]) {
  if constexpr (Vectors) {
    const Run<D> run = *reinterpret_cast<const Run<D>*>(line + static_cast<int64_t>(column) * D::channels);
#pragma unroll
    for (int i = 0; i < kPixels * D::channels; ++i) samples[i] = run.samples[i];
  } else {
#pragma unroll
    for (int j = 0; j < kPixels; ++j)
#pragma unroll
      for (int c = 0; c < D::channels; ++c)
        samples[j * D::channels + c] = line[static_cast<int64_t>(clamped(column + j, width)) * D::channels + c];
  }
}

template <class D, bool Vectors>
__device__ __forceinline__ void store_run(typename D::type* line, int column, int width,
                                          const typename D::type (&samples)[4 * D::channels]) {
  if constexpr (Vectors) {
    Run<D> run;
#pragma unroll
    for (int i = 0; i < kPixels * D::channels; ++i) run.samples[i] = samples[i];
    *reinterpret_cast<Run<D>*>(line + static_cast<int64_t>(column) * D::channels) = run;
  } else {
#pragma unroll
    for (int j = 0; j < kPixels; ++j)
      if (column + j < width) {
#pragma unroll
        for (int c = 0; c < D::channels; ++c)
          line[static_cast<int64_t>(column + j) * D::channels + c] = samples[j * D::channels + c];
      }
  }
}

// How far colour is recorded, from luminance above black and the largest and smallest of R, G and B on 0..255.
__device__ __forceinline__ float recorded_colour(float y, float top, float bottom) {
  return unit(9.0f - y * (1.0f / 24)) * unit(y * (1.0f / 32)) * (0.2f + 0.8f * unit(10.5f - top * (1.0f / 24))) *
         (0.1f + 0.9f * unit(bottom * (1.0f / 24)));
}

// `mask` makes a colour count by its validity: in sums by its mass, in the Range of all exposures by the rest.
struct Colour {
  float y;  // on the scale 0..1, unlike the others
  float blue, red, mass, dark, bright, top;

  __device__ __forceinline__ void mask(float v) {
    mass *= v > kLeastValidity ? v : kLeastValidity;
    dark = 255.0f - v * (255.0f - dark);
    bright *= v;
    top = 255.0f - v * (255.0f - top);
  }
};

template <class D> __device__ __forceinline__ Colour colour_of(const typename D::type* rgb, float share) {
  const float r = static_cast<float>(rgb[0]) * D::to_byte, g = static_cast<float>(rgb[1]) * D::to_byte;
  const float b = static_cast<float>(rgb[2]) * D::to_byte;
  const float y = 255 * kRed * r + 255 * kGreen * g + 255 * kBlue * b;
  const float top = fmaxf(fmaxf(r, g), b), bottom = fminf(fminf(r, g), b), grey = kSwing * y;
  return {y * (1.0f / 255) + kBlack,
          -0.148223f * r - 0.290992f * g + 0.439215f * b,
          0.439215f * r - 0.367789f * g - 0.071426f * b,
          share * (recorded_colour(y, top, bottom) + 0.02f),
          grey,
          grey,
          top};
}

// Over all exposures of a pixel: the least and the greatest of their greys, and the least of their largest channels.
struct Range {
  float least = 255.0f, most = 0.0f, top = 255.0f;

  __device__ __forceinline__ void widen(const Colour& colour) {
    least = fminf(least, colour.dark);
    most = fmaxf(most, colour.bright);
    top = fminf(top, colour.top);
  }
};

__device__ __forceinline__ float within(float x) { return x > -kFar ? x < kFar ? x : kFar : -kFar; }

// Luminance as grey on 0..255, compressed near white and black as far as an exposure shows more there.
__device__ __forceinline__ float grey_in_range(float luminance, const Range& range, float white) {
  const float knee = fmaxf(range.least, kKnee), toe = fminf(range.most, kToe);
  const float given = kSwing * 255.0f * luminance - kSwing * 16.0f;
  const float inside = fmaxf(fminf(given, knee), toe), beyond = within(given - inside);
  const float room = fmaxf(beyond > 0.0f ? white - knee : toe, 0.0f);
  return inside + room * beyond * reciprocal(room + fabsf(beyond) + 1e-6f);
}

// By which part of half their step in chroma two pixels of a pair approach each other; `far` is the square of that half
// plus that of the step in luminance.
__device__ __forceinline__ float closer_by(const Range& range, float far) {
  const float apart = fmaxf(range.most - range.least, 0.0f);
  return apart * reciprocal((apart + kHalfApart) * (1.0f + far * (1.0f / (kHalfStep * kHalfStep))));
}

// RGB; chroma beyond it is brought in towards grey, hue kept.
template <class D> __device__ __forceinline__ void finish_colour(const Finishing& p, float luminance,
                                                                 const Range& range, float blue, float red,
                                                                 typename D::type* out) {
  const float most = fmaxf(range.top, kWhite);
  float grey = grey_in_range(luminance, range, most);
  if (p.brightness != 1.0f || p.saturation != 1.0f) {
    const float gain = p.brightness / (1.0f + (p.brightness - 1.0f) * unit(grey * (1.0f / (kSwing * 219))));
    grey *= gain;
    blue *= gain * p.saturation;
    red *= gain * p.saturation;
  }
  const float r = 1.596027f * red, g = -0.391762f * blue - 0.812969f * red, b = 2.017230f * blue;
  const float up = fmaxf(fmaxf(r, g), fmaxf(b, 1e-6f)), down = fmaxf(-fminf(fminf(r, g), b), 1e-6f);
  grey = grey < 0.0f ? 0.0f : grey > 255.0f ? 255.0f : grey;  // what is not a number stays so
  const float white = fmaxf(most + kSlack - grey, 0.0f) * reciprocal(up), black = grey * reciprocal(down);
  const float scale = fminf(fminf(white, black), 1.0f);
  const float rgb[3] = {grey + scale * r, grey + scale * g, grey + scale * b};
#pragma unroll
  for (int c = 0; c < 3; ++c) out[c] = D::rounded(rgb[c]);
}

// Calls visit(n, j, colour) for four pixels of every exposure.
template <class D, bool Vectors, class Visit>
__device__ __forceinline__ void each_colour(const Finishing& p, const Around& around, int row, int column,
                                            const Visit& visit) {
  using S = typename D::type;
  const Size size = p.sizes[0], grid = p.sizes[3];
#pragma unroll 1
  for (int n = 0; n < p.exposures.count; ++n) {
    const int own = p.order[n];
    S samples[4 * D::channels];
    load_run<D, Vectors>(static_cast<const S*>(p.exposures.pictures[own]) + static_cast<int64_t>(row) * size.width * 3,
                         column, size.width, samples);
    float share, step;
    around.cells(p.shares + n * grid.cells(), share, step);
    const auto each = [&](const auto& masked) {
#pragma unroll
      for (int j = 0; j < kPixels; ++j) {
        Colour colour = colour_of<D>(samples + 3 * j, share + static_cast<float>(j) * step);
        masked(j, colour);
        visit(n, j, colour);
      }
    };
    const uint8_t* validity = p.exposures.masked ? p.exposures.validity[own] : nullptr;
    if (validity == nullptr) {
      each([](int, const Colour&) {});
    } else {
      validity += static_cast<int64_t>(row) * size.width;
      each([&](int j, Colour& colour) {
        colour.mask(static_cast<float>(validity[clamped(column + j, size.width)]) * (1.0f / 255));
      });
    }
  }
}

// Four pixels of a row.
template <class D, bool Vectors> __device__ __forceinline__ void finish_run(const Finishing& p, const Tile& tile,
                                                                            const FinishingShared& s, int row,
                                                                            int column) {
  using S = typename D::type;
  const Size size = p.sizes[0], half = p.sizes[1], grid = p.sizes[3];
  const Around around(p, row, column);
  float sums[kPixels], below[kPixels], weight = 0.0f, step = 0.0f;
  {
    const float* near = s.half.values + index_of<1>(tile, row >> 1, (column >> 1) - 1);
    const float* far = near + (row & 1 ? FusedLevel<1>::kAcross : -FusedLevel<1>::kAcross);
    float mixed[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) mixed[j] = 0.75f * near[j] + 0.25f * far[j];
    expand_run(mixed, sums);
  }
  S out[4 * D::channels];
  S* line = static_cast<S*>(p.out) + static_cast<int64_t>(row) * size.width * D::channels;
  const auto next_exposure = [&](int n) {
    around.cells(p.weights + n * grid.cells(), weight, step);
    around.expand(p.half + p.order[n] * half.cells(), below);
  };
  if constexpr (D::channels == 1) {
#pragma unroll 1
    for (int n = 0; n < p.exposures.count; ++n) {
      S samples[4];
      load_run<D, Vectors>(
          static_cast<const S*>(p.exposures.pictures[p.order[n]]) + static_cast<int64_t>(row) * size.width, column,
          size.width, samples);
      next_exposure(n);
#pragma unroll
      for (int j = 0; j < kPixels; ++j) sums[j] += (weight + static_cast<float>(j) * step) * (samples[j] - below[j]);
    }
#pragma unroll
    for (int j = 0; j < kPixels; ++j) out[j] = sums[j];
  } else {
    float mass[kPixels] = {}, blue[kPixels] = {}, red[kPixels] = {};
    Range ranges[kPixels];
    each_colour<D, Vectors>(p, around, row, column, [&](int n, int j, const Colour& colour) {
      if (j == 0) next_exposure(n);
      sums[j] += (weight + static_cast<float>(j) * step) * (colour.y - below[j]);
      ranges[j].widen(colour);
      mass[j] += colour.mass;
      blue[j] += colour.mass * colour.blue;
      red[j] += colour.mass * colour.red;
    });
    float trusted[kPixels] = {}, trusted_blue[kPixels] = {}, trusted_red[kPixels] = {};
    if (p.exposures.count > 2) {
      // An exposure counts less the further its colour is from that of all others.
      each_colour<D, Vectors>(p, around, row, column, [&](int, int j, const Colour& colour) {
        const float others = reciprocal(mass[j] - colour.mass + 1e-4f);
        const float off_blue = fabsf(mass[j] * colour.blue - blue[j]) * others;
        const float off_red = fabsf(mass[j] * colour.red - red[j]) * others;
        const float distance = (off_blue > off_red ? off_blue : off_red) * (1.0f / 16);
        const float half = 1.0f + distance * distance, trust = half * half,
                    counts = colour.mass * reciprocal(trust * trust);
        trusted[j] += counts;
        trusted_blue[j] += counts * colour.blue;
        trusted_red[j] += counts * colour.red;
      });
#pragma unroll
      for (int j = 0; j < kPixels; ++j) mass[j] = trusted[j], blue[j] = trusted_blue[j], red[j] = trusted_red[j];
    }
#pragma unroll
    for (int j = 0; j < kPixels; ++j) {
      const float counts = reciprocal(mass[j] + 1e-12f);
      blue[j] *= counts;
      red[j] *= counts;
    }
#pragma unroll
    for (int j = 0; j < kPixels; ++j) {
      const bool paired = column + (j ^ 1) < size.width;
      const float blue_step = paired ? 0.5f * (blue[j ^ 1] - blue[j]) : 0.0f;
      const float red_step = paired ? 0.5f * (red[j ^ 1] - red[j]) : 0.0f;
      const float edge = within(255.0f * sums[j ^ 1]) - within(255.0f * sums[j]);
      const float closer = closer_by(ranges[j], blue_step * blue_step + red_step * red_step + edge * edge);
      finish_colour<D>(p, sums[j], ranges[j], blue[j] + closer * blue_step, red[j] + closer * red_step, out + 3 * j);
    }
  }
  store_run<D, Vectors>(line, column, size.width, out);
}

template <class D, bool Vectors> __device__ __forceinline__ void finish(const Finishing& p, FinishingShared& s) {
  const Tile tile = {static_cast<int>(blockIdx.x) / p.tiles_across * kTileDown,
                     static_cast<int>(blockIdx.x) % p.tiles_across * kTileAcross};
  fuse_coarse_levels(p, tile, s);
  constexpr int kRuns = kTileAcross / kPixels;
  const int thread = static_cast<int>(threadIdx.x), column = tile.column + thread % kRuns * kPixels;
  if (column >= p.sizes[0].width) return;
#pragma unroll 1
  for (int row = tile.row + thread / kRuns; row < tile.row + kTileDown && row < p.sizes[0].height;
       row += kThreads / kRuns)
    finish_run<D, Vectors>(p, tile, s, row, column);
}

}  // namespace ffmef::cuda::pictures
