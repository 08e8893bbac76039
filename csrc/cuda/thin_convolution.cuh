// Convolutions of maps with four channels, and the tiles of pixels that they read from shared memory.
//
// A map is [plane][row][column] of four channels, so that a pixel is one 16-byte access whatever the width. A warp
// works on 32 columns of 8 rows and a thread on one of these columns: a thread uses a pixel that it reads from shared
// memory for the outputs of up to k rows, and a weight, which all threads read from the same place, for 8 pixels.
#pragma once

#include "common.cuh"

namespace ffmef::cuda::network {

constexpr int kChannels = 4;
constexpr int kRows = 8, kColumns = 32, kWarps = 2;  // pixels of a thread, columns and warps of a block
constexpr int kTileRows = kRows * kWarps, kThreads = kColumns * kWarps;
constexpr float kSlope = 0.2f;

struct alignas(16) Pixel {
  float at[kChannels];
};

__device__ __forceinline__ Pixel load_pixel(const Pixel* source) {
  const float4 raw = *reinterpret_cast<const float4*>(source);
  return {{raw.x, raw.y, raw.z, raw.w}};
}
// From a map that no thread of this launch writes.
__device__ __forceinline__ Pixel fetch_pixel(const Pixel* source) {
  const float4 raw = __ldg(reinterpret_cast<const float4*>(source));
  return {{raw.x, raw.y, raw.z, raw.w}};
}
__device__ __forceinline__ void store_pixel(Pixel* target, const Pixel& pixel) {
  float4 raw;
  raw.x = pixel.at[0], raw.y = pixel.at[1], raw.z = pixel.at[2], raw.w = pixel.at[3];
  *reinterpret_cast<float4*>(target) = raw;
}

// Written so that a NaN stays one.
__device__ __forceinline__ float activated(float value, float slope) { return value < 0 ? slope * value : value; }

// What every pass knows of the planes that it works on; blocks are [plane][row of tiles][column of tiles].
struct Frame {
  int height, width, tiles_across, tiles_down;
};

// Where a block's tile and a thread's strip of pixels are.
struct Place {
  int plane, tile_row, tile_column, first_row, first_column, strip, column;

  __device__ __forceinline__ explicit Place(const Frame& f) {
    const unsigned across = static_cast<unsigned>(f.tiles_across), down = static_cast<unsigned>(f.tiles_down);
    tile_column = static_cast<int>(blockIdx.x % across);
    tile_row = static_cast<int>(blockIdx.x / across % down);
    plane = static_cast<int>(blockIdx.x / across / down);
    first_row = tile_row * kTileRows;
    first_column = tile_column * kColumns;
    strip = static_cast<int>(threadIdx.x) / kColumns * kRows;  // first row within the tile
    column = static_cast<int>(threadIdx.x) % kColumns;
  }
  __device__ __forceinline__ int row(int p) const { return first_row + strip + p; }
  __device__ __forceinline__ bool shows(const Frame& f, int p) const {
    return row(p) < f.height && first_column + column < f.width;
  }
  // A pixel's number in its plane.
  __device__ __forceinline__ int pixel(const Frame& f, int p) const { return row(p) * f.width + first_column + column; }
};

template <int Halo> constexpr int kPitch = kColumns + 2 * Halo;
template <int Halo> constexpr int kTilePixels = kPitch<Halo> * (kTileRows + 2 * Halo);

// Fills shared memory with read(pixel, keep) around the block's tile, zero outside the image; `keep` is true for the
// pixels that are the tile's own. Reads of several pixels are in flight at once.
template <int Halo, int Unroll, class Value, class Read>
__device__ __forceinline__ void fill_tile(const Frame& f, const Place& at, Value* tile, const Read& read) {
  constexpr unsigned kCount = kTilePixels<Halo>;
#pragma unroll Unroll
  for (unsigned start = 0; start < kCount; start += kThreads) {
    const unsigned i = start + threadIdx.x;
    const int tile_row = static_cast<int>(i / kPitch<Halo>) - Halo,
              tile_column = static_cast<int>(i % kPitch<Halo>) - Halo;
    const int row = at.first_row + tile_row, column = at.first_column + tile_column;
    const bool shown = row >= 0 && row < f.height && column >= 0 && column < f.width && i < kCount;
    const bool own = tile_row >= 0 && tile_row < kTileRows && tile_column >= 0 && tile_column < kColumns;
    Value value = read(shown ? row * f.width + column : 0, shown && own);
    if (!shown) value = Value{};
    if (i < kCount) tile[i] = value;
  }
}

// Weights in shared memory are [column of taps][row of taps][channel][output].

constexpr int kWeights = 9 * kChannels * kChannels;

// A 3x3 convolution's weights in flight: other loads start before they arrive.
struct Weights {
  float values[(kWeights + kThreads - 1) / kThreads];

  // From torch's (outputs, channels, 3, 3) with `channels` inputs, taking four from `first` on; or from a transposed
  // convolution of stride 1, (channels, outputs, 3, 3), turned round.
  __device__ __forceinline__ Weights(const float* source, int channels, int first, bool transposed) {
    constexpr int kTaps = 9;
#pragma unroll
    for (unsigned e = 0; e < sizeof(values) / sizeof(values[0]); ++e) {
      const unsigned i = e * kThreads + threadIdx.x;
      const unsigned output = i % kChannels, channel = i / kChannels % kChannels, tap = i / kChannels / kChannels;
      const unsigned turned = tap % 3 * 3 + tap / 3;
      const unsigned place = transposed ? (channel * kChannels + output) * kTaps + kTaps - 1 - turned
                                        : (output * channels + first + channel) * kTaps + turned;
      values[e] = i < kWeights ? __ldg(source + place) : 0.0f;
    }
  }
  __device__ __forceinline__ void store(float* weights) const {
#pragma unroll
    for (unsigned e = 0; e < sizeof(values) / sizeof(values[0]); ++e) {
      const unsigned i = e * kThreads + threadIdx.x;
      if (i < kWeights) weights[i] = values[e];
    }
  }
};

template <int M> __device__ __forceinline__ void load_outputs(const float* weights, float (&taps)[M]) {
  static_assert(M == 1 || M == 4);
  if constexpr (M == 1) {
    taps[0] = weights[0];
  } else {
    const Pixel raw = load_pixel(reinterpret_cast<const Pixel*>(weights));
#pragma unroll
    for (int m = 0; m < M; ++m) taps[m] = raw.at[m];
  }
}

// Adds a k x k convolution at a thread's pixels; `tile` is what the first tap of its first pixel reads.
template <int K, int M, int Pitch>
__device__ __forceinline__ void convolve(const Pixel* tile, const float* weights, float (&sums)[kRows][M]) {
#pragma unroll 1
  for (int j = 0; j < K; ++j) {
    Pixel strip[kRows + K - 1];
#pragma unroll
    for (int r = 0; r < kRows + K - 1; ++r) strip[r] = load_pixel(tile + r * Pitch + j);
#pragma unroll
    for (int i = 0; i < K; ++i) {
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        float taps[M];
        load_outputs(weights + ((j * K + i) * kChannels + c) * M, taps);
#pragma unroll
        for (int p = 0; p < kRows; ++p) {
#pragma unroll
          for (int m = 0; m < M; ++m) sums[p][m] += taps[m] * strip[p + i].at[c];
        }
      }
    }
  }
}

// The same for one channel: [column of taps][row of taps][output].
template <int K, int M, int Pitch>
__device__ __forceinline__ void convolve(const float* tile, const float* weights, float (&sums)[kRows][M]) {
#pragma unroll 1
  for (int j = 0; j < K; ++j) {
    float strip[kRows + K - 1];
#pragma unroll
    for (int r = 0; r < kRows + K - 1; ++r) strip[r] = tile[r * Pitch + j];
#pragma unroll
    for (int i = 0; i < K; ++i) {
      float taps[M];
      load_outputs(weights + (j * K + i) * M, taps);
#pragma unroll
      for (int p = 0; p < kRows; ++p) {
#pragma unroll
        for (int m = 0; m < M; ++m) sums[p][m] += taps[m] * strip[p + i];
      }
    }
  }
}

}  // namespace ffmef::cuda::network
