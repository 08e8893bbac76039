// Statistics of instance norms, taken where a map is computed: each warp leaves the mean and the sum of squared
// deviations of its strip, the last warp of a row of strips merges that row, and the last row merges the plane. Integer
// counters tell who comes last; sums are always taken in the strips' order, so they do not depend on it. No warp waits
// for another.
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
  float2* strips;      // [plane][row of strips][column of strips][channel]
  double2* rows;       // [plane][row of strips][channel]
  unsigned* counters;  // [plane][row of strips, and one for the rows], zero
  float2* norms;       // [plane][channel]: scale, shift
  const float *gamma, *beta;
  int normed;  // channels from this one on are left as they are
};

constexpr unsigned kAllLanes = 0xffffffffu;

__device__ __forceinline__ int smaller(int a, int b) { return a < b ? a : b; }

// Sums over a warp: lane l gets that of channel l / 8. Lanes give away half of their channels at each step.
__device__ __forceinline__ float sum_of_warp(const float (&values)[kChannels]) {
  static_assert(kChannels == 4);
  const int lane = static_cast<int>(threadIdx.x) % kColumns;
  const bool upper = (lane & 16) != 0, odd = (lane & 8) != 0;
  float halves[2];
#pragma unroll
  for (int c = 0; c < 2; ++c)
    halves[c] = (upper ? values[c + 2] : values[c]) + __shfl_xor_sync(kAllLanes, upper ? values[c] : values[c + 2], 16);
  float sum = (odd ? halves[1] : halves[0]) + __shfl_xor_sync(kAllLanes, odd ? halves[0] : halves[1], 8);
#pragma unroll
  for (int distance = 4; distance > 0; distance /= 2) sum += __shfl_xor_sync(kAllLanes, sum, distance);
  return sum;
}

// Adds one to a counter; what the warp wrote before is there for whoever sees the sum and acquires. A release alone, as
// a full fence would also empty the first-level cache.
__device__ __forceinline__ unsigned add_one(unsigned* counter) {
#if defined(__CUDA_ARCH__)
  unsigned before;
  asm volatile("atom.add.release.gpu.global.u32 %0, [%1], 1;" : "=r"(before) : "l"(counter) : "memory");
  return before;
#else
  return atomicAdd(counter, 1u);
#endif
}

// Counts a warp, and returns how many came before it in lane 0. What the warps before it wrote until then is readable
// once came_last() is true.
__device__ __forceinline__ unsigned count_warp(unsigned* counter) {
  __syncwarp();  // the release then counts for what all lanes wrote
  return threadIdx.x % kColumns == 0 ? add_one(counter) : 0;
}
__device__ __forceinline__ bool came_last(unsigned before, int count) {
  const bool last = __shfl_sync(kAllLanes, before, 0) + 1 == static_cast<unsigned>(count);
  if (last) __threadfence();
  return last;
}

// Merges `parts` of `count` groups, with `first` pixels in each but the last, which has `final`. Lanes 0 to 3 get one
// channel each.
template <class Part>
__device__ __forceinline__ double2 merged(const Part* parts, int count, double first, double final) {
  constexpr int kTogether = kColumns / kChannels, kAhead = 4;
  const int lane = static_cast<int>(threadIdx.x) % kColumns, channel = lane % kChannels;
  const double pivot = __ldcg(parts + channel).x;
  double sum = 0, squares = 0;
#pragma unroll 1
  for (int start = lane / kChannels; start < count; start += kTogether * kAhead) {
    Part some[kAhead];
#pragma unroll
    for (int n = 0; n < kAhead; ++n)
      some[n] = __ldcg(parts + static_cast<int64_t>(smaller(start + n * kTogether, count - 1)) * kChannels + channel);
#pragma unroll
    for (int n = 0; n < kAhead; ++n) {
      const int i = start + n * kTogether;
      if (i >= count) continue;
      const double pixels = i + 1 < count ? first : final, apart = some[n].x - pivot;
      sum += pixels * apart;
      squares += some[n].y + pixels * apart * apart;
    }
  }
#pragma unroll
  for (int distance = 16; distance >= kChannels; distance /= 2) {
    sum += __shfl_down_sync(kAllLanes, sum, distance);
    squares += __shfl_down_sync(kAllLanes, squares, distance);
  }
  const double pixels = first * (count - 1) + final, mean = sum / pixels;
  double2 result;
  result.x = pivot + mean;
  result.y = squares - sum * mean;
  return result;
}

// A thread's pixels before a norm, all in registers. Those outside the image are overwritten.
struct StripValues {
  const Frame& f;
  const Place& at;
  float (&values)[kRows][kChannels];

  __device__ __forceinline__ void hide(const float (&hidden)[kChannels]) const {
    if (smaller(f.height - at.row(0), f.width - at.first_column - kColumns + kRows) >= kRows) return;
#pragma unroll
    for (int p = 0; p < kRows; ++p) {
#pragma unroll
      for (int c = 0; c < kChannels; ++c) values[p][c] = at.shows(f, p) ? values[p][c] : hidden[c];
    }
  }
  __device__ __forceinline__ void sums(float (&result)[kChannels]) const {
    hide({0, 0, 0, 0});
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      result[c] = 0;
#pragma unroll
      for (int p = 0; p < kRows; ++p) result[c] += values[p][c];
    }
  }
  __device__ __forceinline__ void squares(const float (&means)[kChannels], float (&result)[kChannels]) const {
    hide(means);
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      result[c] = 0;
#pragma unroll
      for (int p = 0; p < kRows; ++p) {
        const float apart = values[p][c] - means[c];
        result[c] += apart * apart;
      }
    }
  }
};

// The same when they pass one by one: sums of what they differ from the first by.
struct RunningValues {
  float count = 0, pivot[kChannels] = {}, sum[kChannels] = {}, square[kChannels] = {};

  __device__ __forceinline__ void add(const Pixel& pixel, int row, bool shown) {
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      pivot[c] = row == 0 ? pixel.at[c] : pivot[c];
      const float apart = shown ? pixel.at[c] - pivot[c] : 0.0f;
      sum[c] += apart;
      square[c] += apart * apart;
    }
  }
  __device__ __forceinline__ void finish(const Frame& f, const Place& at) {
    const int rows = smaller(kRows, f.height - at.row(0));
    count = at.shows(f, 0) ? static_cast<float>(rows) : 0.0f;
  }
  __device__ __forceinline__ void sums(float (&result)[kChannels]) const {
#pragma unroll
    for (int c = 0; c < kChannels; ++c) result[c] = count * pivot[c] + sum[c];
  }
  __device__ __forceinline__ void squares(const float (&means)[kChannels], float (&result)[kChannels]) const {
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      const float apart = means[c] - pivot[c];
      result[c] = square[c] + apart * (count * apart - 2 * sum[c]);
    }
  }
};

// The moments of a warp's strip: lane l gets those of channel l / 8.
template <class Values>
__device__ __forceinline__ float2 moments_of_strip(const Frame& f, const Place& at, const Values& values) {
  const int rows = smaller(kRows, f.height - at.row(0)), columns = smaller(kColumns, f.width - at.first_column);
  float sums[kChannels], means[kChannels];
  values.sums(sums);
  float2 result;
  result.x = sum_of_warp(sums) * (1.0f / static_cast<float>(rows * columns));
#pragma unroll
  for (int c = 0; c < kChannels; ++c) means[c] = __shfl_sync(kAllLanes, result.x, 8 * c);
  values.squares(means, sums);
  result.y = sum_of_warp(sums);
  return result;
}

// Every warp of every block of the launch calls this once, with its pixels' values before the norm. `meanwhile` runs
// while the warp waits for its number.
template <class Values, class Meanwhile>
__device__ __forceinline__ void keep_statistics(const Frame& f, const Place& at, const Statistics& s,
                                                const Values& values, const Meanwhile& meanwhile) {
  const int lane = at.column, strip_row = at.tile_row * kWarps + at.warp;
  if (strip_row >= f.strips_down) return;
  const int64_t row = static_cast<int64_t>(at.plane) * f.strips_down + strip_row;
  float2* strips = s.strips + row * f.tiles_across * kChannels;
  double2* rows = s.rows + static_cast<int64_t>(at.plane) * f.strips_down * kChannels;
  unsigned* counters = s.counters + static_cast<int64_t>(at.plane) * (f.strips_down + 1);

  const float2 own = moments_of_strip(f, at, values);
  if (lane % 8 == 0) strips[at.tile_column * kChannels + lane / 8] = own;
  unsigned before = count_warp(counters + strip_row);
  meanwhile();
  if (!came_last(before, f.tiles_across)) return;

  const double rows_of_strip = smaller(kRows, f.height - strip_row * kRows);
  const double last_columns = f.width - (f.tiles_across - 1) * kColumns;
  const double2 band = merged(strips, f.tiles_across, rows_of_strip * kColumns, rows_of_strip * last_columns);
  if (lane < kChannels) rows[strip_row * kChannels + lane] = band;
  before = count_warp(counters + f.strips_down);
  if (!came_last(before, f.strips_down)) return;

  const double width = f.width, last_rows = f.height - (f.strips_down - 1) * kRows;
  const double2 all = merged(rows, f.strips_down, width * kRows, width * last_rows);
  if (lane >= kChannels) return;
  float2 norm;
  norm.x = 1, norm.y = 0;
  if (lane < s.normed) {
    const double scale = __ldg(s.gamma + lane) / sqrt(all.y / (width * f.height) + kEpsilon);
    norm.x = static_cast<float>(scale);
    norm.y = static_cast<float>(__ldg(s.beta + lane) - all.x * scale);
  }
  s.norms[at.plane * kChannels + lane] = norm;
}

}  // namespace ffmef::cuda::network
