// Statistics of instance norms, taken where a map is computed: each block leaves the mean and the sum of squared
// deviations of its tile, the last block of a row of tiles merges that row, and the last row merges the plane. Integer
// counters tell who comes last; sums are always taken in the tiles' order, so they do not depend on it.
#pragma once

#include "thin_convolution.cuh"

namespace ffmef::cuda::network {

constexpr double kEpsilon = 1e-5;

// y = scale * x + shift
struct Norm {
  float scale[kChannels], shift[kChannels];
};

__device__ __forceinline__ Norm load_norm(const float2* norms, int plane) {
  Norm norm;
#pragma unroll
  for (int c = 0; c < kChannels; ++c) {
    const float2 values = __ldg(norms + plane * kChannels + c);
    norm.scale[c] = values.x;
    norm.shift[c] = values.y;
  }
  return norm;
}

__device__ __forceinline__ Pixel normalised(const Pixel& pixel, const Norm& norm, float slope) {
  Pixel result;
#pragma unroll
  for (int c = 0; c < kChannels; ++c) result.at[c] = activated(norm.scale[c] * pixel.at[c] + norm.shift[c], slope);
  return result;
}

// Where a pass leaves its statistics. x is a mean, y a sum of squared deviations.
struct Statistics {
  double2 *tiles, *rows;  // [plane][row of tiles][column of tiles][channel], [plane][row of tiles][channel]
  unsigned* counters;     // [plane][row of tiles, and one for the rows], zero
  float2* norms;          // [plane][channel]: scale, shift
  const float *gamma, *beta;
  int normed;  // channels from this one on are left as they are
};

struct MomentScratch {
  double2 sums[kWarps][kChannels];
  unsigned last;
};

__device__ __forceinline__ int smaller(int a, int b) { return a < b ? a : b; }

template <class T> __device__ __forceinline__ T sum_of_warp(T value) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) value += __shfl_down_sync(0xffffffffu, value, distance);
  return value;
}

// Returns whether this is the last of `count` blocks to get here; what threads 0 to 3 of the others wrote before is
// then readable. (Other threads need not wait for what they wrote.)
__device__ __forceinline__ bool is_last(unsigned* counter, int count, MomentScratch* scratch) {
  if (threadIdx.x < kChannels) __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) scratch->last = atomicAdd(counter, 1u) + 1 == static_cast<unsigned>(count);
  __syncthreads();
  const bool last = scratch->last != 0;
  if (last) __threadfence();
  return last;
}

// Merges `parts` of `count` groups, with `first` pixels in each but the last, which has `final`. Threads 0 to 3 get one
// channel each.
__device__ __forceinline__ double2 merged(const double2* parts, int count, double first, double final,
                                          MomentScratch* scratch) {
  const int channel = static_cast<int>(threadIdx.x) % kChannels;
  const double pivot = __ldcg(parts + channel).x;
  double sum = 0, squares = 0;
#pragma unroll 4
  for (int i = static_cast<int>(threadIdx.x) / kChannels; i < count; i += kThreads / kChannels) {
    const double2 part = __ldcg(parts + static_cast<int64_t>(i) * kChannels + channel);
    const double pixels = i + 1 < count ? first : final, apart = part.x - pivot;
    sum += pixels * apart;
    squares += part.y + pixels * apart * apart;
  }
#pragma unroll
  for (int distance = 16; distance >= kChannels; distance /= 2) {
    sum += __shfl_down_sync(0xffffffffu, sum, distance);
    squares += __shfl_down_sync(0xffffffffu, squares, distance);
  }
  if (threadIdx.x % kColumns < kChannels) {
    double2 result;
    result.x = sum, result.y = squares;
    scratch->sums[threadIdx.x / kColumns][channel] = result;
  }
  __syncthreads();
  double2 result = {};
  if (threadIdx.x < kChannels) {
    sum = squares = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) sum += scratch->sums[w][channel].x, squares += scratch->sums[w][channel].y;
    const double pixels = first * (count - 1) + final, mean = sum / pixels;
    result.x = pivot + mean;
    result.y = squares - sum * mean;
  }
  return result;
}

// The tile's own moments: threads 0 to 3 get one channel each.
__device__ __forceinline__ double2 moments_of_tile(const Frame& f, const Place& at,
                                                   const float (&values)[kRows][kChannels], MomentScratch* scratch) {
  const int columns = smaller(kColumns, f.width - at.first_column), warp = static_cast<int>(threadIdx.x) / kColumns;
  const int rows = smaller(kRows, f.height - at.row(0));
  const float pixels = static_cast<float>(columns * (rows < 0 ? 0 : rows));
#pragma unroll
  for (int c = 0; c < kChannels; ++c) {
    float sum = 0, squares = 0;
#pragma unroll
    for (int p = 0; p < kRows; ++p) sum += at.shows(f, p) ? values[p][c] : 0.0f;
    const float mean = __shfl_sync(0xffffffffu, sum_of_warp(sum), 0) / (pixels > 0 ? pixels : 1.0f);
#pragma unroll
    for (int p = 0; p < kRows; ++p) {
      const float apart = at.shows(f, p) ? values[p][c] - mean : 0.0f;
      squares += apart * apart;
    }
    squares = sum_of_warp(squares);
    if (threadIdx.x % kColumns == 0) {
      double2 result;
      result.x = mean, result.y = squares;
      scratch->sums[warp][c] = result;
    }
  }
  __syncthreads();
  double2 all = {};
  double counted = 0;
  if (threadIdx.x < kChannels) {
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      const double2 part = scratch->sums[w][threadIdx.x];
      const int left = smaller(kRows, f.height - at.first_row - w * kRows);
      if (left <= 0) continue;
      const double own = columns * left, apart = part.x - all.x, together = counted + own;
      all.y += part.y + apart * apart * counted * own / together;
      all.x += apart * own / together;
      counted = together;
    }
  }
  return all;
}

// Every thread of every block of the launch calls this once, with its pixels' values before the norm.
__device__ __forceinline__ void keep_statistics(const Frame& f, const Place& at, const Statistics& s,
                                                const float (&values)[kRows][kChannels], MomentScratch* scratch) {
  const int channel = static_cast<int>(threadIdx.x);
  const int64_t row = static_cast<int64_t>(at.plane) * f.tiles_down + at.tile_row;
  double2* tiles = s.tiles + row * f.tiles_across * kChannels;
  double2* rows = s.rows + static_cast<int64_t>(at.plane) * f.tiles_down * kChannels;
  unsigned* counters = s.counters + static_cast<int64_t>(at.plane) * (f.tiles_down + 1);

  const double2 own = moments_of_tile(f, at, values, scratch);
  if (channel < kChannels) tiles[at.tile_column * kChannels + channel] = own;
  if (!is_last(counters + at.tile_row, f.tiles_across, scratch)) return;

  const double rows_of_tile = smaller(kTileRows, f.height - at.first_row);
  const double last_columns = f.width - (f.tiles_across - 1) * kColumns;
  const double2 band = merged(tiles, f.tiles_across, rows_of_tile * kColumns, rows_of_tile * last_columns, scratch);
  if (channel < kChannels) rows[at.tile_row * kChannels + channel] = band;
  if (!is_last(counters + f.tiles_down, f.tiles_down, scratch)) return;

  const double width = f.width, last_rows = f.height - (f.tiles_down - 1) * kTileRows;
  const double2 all = merged(rows, f.tiles_down, width * kTileRows, width * last_rows, scratch);
  if (channel >= kChannels) return;
  float2 norm;
  norm.x = 1, norm.y = 0;
  if (channel < s.normed) {
    const double scale = __ldg(s.gamma + channel) / sqrt(all.y / (width * f.height) + kEpsilon);
    norm.x = static_cast<float>(scale);
    norm.y = static_cast<float>(__ldg(s.beta + channel) - all.x * scale);
  }
  s.norms[at.plane * kChannels + channel] = norm;
}

}  // namespace ffmef::cuda::network
