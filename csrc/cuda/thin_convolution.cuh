// Convolutions of maps with four channels, and the tiles of pixels that they read from shared memory.
//
// A map is [plane][row][column] of four channels, so that a pixel is one 16-byte access whatever the width. A warp
// works on 32 columns of 8 rows and a thread on one of these columns: a thread uses a pixel that it reads from shared
// memory for the outputs of up to k rows, and a weight, which all threads read from the same place, for 8 pixels.
// A tile keeps two channels of all its pixels, then the other two: a thread holds half of a pixel at a time, and the
// registers that this saves make room for more blocks.
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
// From a map that no thread of this launch writes. The compiler may move such a load past barriers.
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

// Two channels of a pixel in shared memory.
struct alignas(8) Pair {
  float at[2];
};

// What every pass knows of the planes that it works on; blocks are [plane][row of tiles][column of tiles]. A strip is
// what a warp works on.
struct Frame {
  int height, width, tiles_across, tiles_down, strips_down;
};

// A value of which the compiler does not know that it had it before: it computes again what depends on it, and does not
// keep that in registers meanwhile.
__device__ __forceinline__ int afresh(int value) {
#if defined(__CUDA_ARCH__)
  asm volatile("" : "+r"(value));
#endif
  return value;
}

// Where a block's tile is.
struct TilePlace {
  int plane, tile_row, tile_column;
};

// Where a block's tile and a thread's strip of pixels are. Larger blocks have several groups of kThreads on one tile.
struct Place : TilePlace {
  int first_row, first_column, thread, warp, strip, column;

  __device__ __forceinline__ explicit Place(const Frame& f) : Place(place_of_block(f)) {}
  __device__ __forceinline__ explicit Place(const TilePlace& tile) : TilePlace(tile) {
    first_row = tile_row * kTileRows;
    first_column = tile_column * kColumns;
    thread = afresh(static_cast<int>(threadIdx.x)) % kThreads;
    warp = thread / kColumns;
    strip = warp * kRows;  // first row within the tile
    column = thread % kColumns;
  }
  __device__ __forceinline__ static TilePlace place_of_block(const Frame& f) {
    const unsigned across = static_cast<unsigned>(f.tiles_across), down = static_cast<unsigned>(f.tiles_down);
    const unsigned block = static_cast<unsigned>(afresh(static_cast<int>(blockIdx.x)));
    TilePlace tile;
    tile.tile_column = static_cast<int>(block % across);
    tile.tile_row = static_cast<int>(block / across % down);
    tile.plane = static_cast<int>(block / across / down);
    return tile;
  }
  // For the time after a barrier, so that registers need not keep it until then.
  __device__ __forceinline__ void keep(TilePlace* shared) const {
    if (threadIdx.x == 0) *shared = *this;
  }
  __device__ __forceinline__ int row(int p) const { return first_row + strip + p; }
  __device__ __forceinline__ bool shows(const Frame& f, int p) const {
    return row(p) < f.height && first_column + column < f.width;
  }
  // A pixel's number in its plane.
  __device__ __forceinline__ int pixel(const Frame& f, int p) const { return row(p) * f.width + first_column + column; }
  // The same for a pixel that may be hidden: then the first, which exists.
  __device__ __forceinline__ int safe_pixel(const Frame& f, int p) const { return shows(f, p) ? pixel(f, p) : 0; }
};

template <int Halo> constexpr int kPitch = kColumns + 2 * Halo;
template <int Halo> constexpr int kTileDown = kTileRows + 2 * Halo;
template <int Halo> constexpr int kTilePixels = kPitch<Halo> * kTileDown<Halo>;

// ---- filling a tile ------------------------------------------------------------------------------------------------

// One of the pixels that a thread stages.
struct Spot {
  int pixel, place;  // in the plane (0 if not shown), in the tile
  bool exists, shown, own;
};

// A warp takes every second row of the tile, 32 columns of it; after that, the columns left over are shared out.
template <int Halo> constexpr int kStagedRows = kTileDown<Halo> / kWarps;
template <int Halo> constexpr int kStaged = kStagedRows<Halo> + (2 * Halo * kTileDown<Halo> + kThreads - 1) / kThreads;

template <int Halo> __device__ __forceinline__ Spot spot_of(const Frame& f, const Place& at, int n) {
  int row = n * kWarps + at.warp, column = at.column;
  bool exists = n < kStagedRows<Halo>;
  if constexpr (Halo > 0) {
    if (!exists) {
      const int left = (n - kStagedRows<Halo>)*kThreads + at.thread;
      row = left / (2 * Halo);
      column = kColumns + left % (2 * Halo);
      exists = row < kTileDown<Halo>;
    }
  }
  const int image_row = at.first_row + row - Halo, image_column = at.first_column + column - Halo;
  Spot spot;
  spot.exists = exists;
  spot.shown = exists && image_row >= 0 && image_row < f.height && image_column >= 0 && image_column < f.width;
  spot.own = spot.shown && row >= Halo && row < kTileRows + Halo && column >= Halo && column < kColumns + Halo;
  spot.pixel = spot.shown ? image_row * f.width + image_column : 0;
  spot.place = row * kPitch<Halo> + column;
  return spot;
}

template <int Halo, int Batch, class Source>
__device__ __forceinline__ void fetch_pixels(const Frame& f, const Place& at, const Source& source, int start,
                                             Spot (&spots)[Batch], typename Source::Raw (&raw)[Batch]) {
#pragma unroll
  for (int n = 0; n < Batch; ++n) {
    spots[n] = spot_of<Halo>(f, at, start + n);
    raw[n] = source.fetch(spots[n].pixel);
  }
}

// Fills shared memory around the block's tile. A source fetches what a pixel is made of, and puts several pixels into
// the tile, zero outside the image; the reads of `Batch` pixels are in flight at once. `meanwhile` runs after the first
// ones have started. With several groups of kThreads, each takes its share.
template <int Halo, int Batch, int Groups = 1, class Source, class Meanwhile>
__device__ __forceinline__ void fill_tile(const Frame& f, const Place& at, const Source& source,
                                          const Meanwhile& meanwhile) {
  const int group = Groups > 1 ? static_cast<int>(threadIdx.x) / kThreads : 0;
  Spot spots[Batch];
  typename Source::Raw raw[Batch];
  fetch_pixels<Halo>(f, at, source, group * Batch, spots, raw);
  meanwhile();
  source.put(raw, spots);
#pragma unroll 1
  for (int start = (group + Groups) * Batch; start < kStaged<Halo>; start += Groups * Batch) {
    fetch_pixels<Halo>(f, at, source, start, spots, raw);
    source.put(raw, spots);
  }
}

template <int Halo> __device__ __forceinline__ void put_pixel(Pair* tile, const Spot& spot, const Pixel& pixel) {
  Pair halves[2];
#pragma unroll
  for (int c = 0; c < kChannels; ++c) halves[c / 2].at[c % 2] = spot.shown ? pixel.at[c] : 0.0f;
  if (!spot.exists) return;
#pragma unroll
  for (int h = 0; h < 2; ++h) tile[h * kTilePixels<Halo> + spot.place] = halves[h];
}

// ---- convolutions --------------------------------------------------------------------------------------------------

// Weights in shared memory are [two channels][column of taps][row of taps][channel][output].

constexpr int kWeights = 9 * kChannels * kChannels, kWeightsAndBias = kWeights + kChannels;

// A 3x3 convolution's weights and bias in flight: other loads start before they arrive.
struct Weights {
  static constexpr int kEach = (kWeightsAndBias + kThreads - 1) / kThreads;
  float values[kEach];

  // From torch's (outputs, channels, 3, 3) with `channels` inputs, taking four from `first` on; or from a transposed
  // convolution of stride 1, (channels, outputs, 3, 3), turned round.
  __device__ __forceinline__ Weights(const float* source, const float* bias, int channels, int first, bool transposed) {
    constexpr int kTaps = 9;
#pragma unroll
    for (int e = 0; e < kEach; ++e) {
      const unsigned i = static_cast<unsigned>(e) * kThreads + threadIdx.x;
      const unsigned output = i % kChannels, tap = i / kChannels / 2 % kTaps;
      const unsigned channel = i / kChannels % 2 + i / (2 * kChannels * kTaps) * 2;
      const unsigned turned = tap % 3 * 3 + tap / 3;
      const unsigned place = transposed ? (channel * kChannels + output) * kTaps + kTaps - 1 - turned
                                        : (output * channels + first + channel) * kTaps + turned;
      const float* const from = i < kWeights ? source + place : bias + output;
      values[e] = i < kWeightsAndBias ? __ldg(from) : 0.0f;
    }
  }
  __device__ __forceinline__ void store(float* weights) const {
#pragma unroll
    for (int e = 0; e < kEach; ++e) {
      const unsigned i = static_cast<unsigned>(e) * kThreads + threadIdx.x;
      if (i < kWeightsAndBias) weights[i] = values[e];
    }
  }
};

__device__ __forceinline__ Pixel load_four(const float* values) {
  return load_pixel(reinterpret_cast<const Pixel*>(values));
}

// The weights of two channels.
template <int M> __device__ __forceinline__ void load_taps(const float* weights, float (&taps)[2][M]) {
  static_assert(M == 1 || M == kChannels);
  if constexpr (M == 1) {
    const Pair raw = *reinterpret_cast<const Pair*>(weights);
    taps[0][0] = raw.at[0], taps[1][0] = raw.at[1];
  } else {
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const Pixel raw = load_four(weights + c * M);
#pragma unroll
      for (int m = 0; m < M; ++m) taps[c][m] = raw.at[m];
    }
  }
}

// Adds a k x k convolution at a thread's pixels; `tile` is what the first tap of its first pixel reads.
template <int K, int M>
__device__ __forceinline__ void convolve(const Pair* tile, const float* weights, float (&sums)[kRows][M]) {
  constexpr int kHalo = K / 2;
#pragma unroll 1
  for (int step = 0; step < 2 * K; ++step) {
    Pair strip[kRows + K - 1];
#pragma unroll
    for (int r = 0; r < kRows + K - 1; ++r) strip[r] = tile[r * kPitch<kHalo>];
#pragma unroll
    for (int i = 0; i < K; ++i) {
      float taps[2][M];
      load_taps<M>(weights + i * 2 * M, taps);
#pragma unroll
      for (int c = 0; c < 2; ++c) {
#pragma unroll
        for (int p = 0; p < kRows; ++p) {
#pragma unroll
          for (int m = 0; m < M; ++m) sums[p][m] += taps[c][m] * strip[p + i].at[c];
        }
      }
    }
    weights += 2 * K * M;
    tile += step + 1 == K ? kTilePixels<kHalo> - (K - 1) : 1;  // the other two channels
  }
}

// The same for one channel: [column of taps][row of taps][output].
template <int K, int M>
__device__ __forceinline__ void convolve(const float* tile, const float* weights, float (&sums)[kRows][M]) {
  static_assert(M == 1 || M == 2);
#pragma unroll 1
  for (int j = 0; j < K; ++j) {
    float strip[kRows + K - 1];
#pragma unroll
    for (int r = 0; r < kRows + K - 1; ++r) strip[r] = tile[r * kPitch<K / 2> + j];
#pragma unroll
    for (int i = 0; i < K; ++i) {
      float taps[M];
      if constexpr (M == 1) {
        taps[0] = weights[j * K + i];
      } else {
        const Pair raw = *reinterpret_cast<const Pair*>(weights + (j * K + i) * M);
        taps[0] = raw.at[0], taps[1] = raw.at[1];
      }
#pragma unroll
      for (int p = 0; p < kRows; ++p) {
#pragma unroll
        for (int m = 0; m < M; ++m) sums[p][m] += taps[m] * strip[p + i];
      }
    }
  }
}

}  // namespace ffmef::cuda::network
