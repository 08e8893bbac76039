// The FFMEF network as passes between instance norms, for four channels in float32; docs/engine.md has the picture.
//
//   entry     a mixture (a normalised map, mixed with up to two others by 1x1 convolutions), computed on the way into
//             shared memory, then a 3x3 convolution; leaves a map that is not normalised yet, with its statistics
//   residual  the second 3x3 of a residual block, and what the block adds
//   point     the statistics of a 1x1 mix; its values are cheaper to compute again than to store
//   features  attention between the images and a head's 3x3, all levels in one launch
//   heads     k x k to the hidden maps, their responses to luminance, and the fusion, all levels in one launch
#pragma once

#include "norm_activation.cuh"

namespace ffmef::cuda::network {

constexpr int kImages = 2, kLevels = 4;

// Luminance, and the first 1x1 convolution of it, which is never stored.
struct Stem {
  const float *luminance, *weight, *bias;  // [plane][row][column]
};

struct StemValues {
  const float* luminance;
  float weight[kChannels], bias[kChannels];

  __device__ __forceinline__ StemValues(const Stem& stem, const Frame& f, int plane)
      : luminance(stem.luminance + static_cast<int64_t>(plane) * f.height * f.width) {
#pragma unroll
    for (int c = 0; c < kChannels; ++c) weight[c] = __ldg(stem.weight + c), bias[c] = __ldg(stem.bias + c);
  }
  __device__ __forceinline__ Pixel at(int pixel) const {
    const float value = __ldg(luminance + pixel);
    Pixel result;
#pragma unroll
    for (int c = 0; c < kChannels; ++c) result.at[c] = weight[c] * value + bias[c];
    return result;
  }
};

__device__ __forceinline__ const Pixel* plane_of(const Pixel* map, const Frame& f, int plane) {
  return map + static_cast<int64_t>(plane) * f.height * f.width;
}
__device__ __forceinline__ Pixel* plane_of(Pixel* map, const Frame& f, int plane) {
  return map + static_cast<int64_t>(plane) * f.height * f.width;
}

// ---- mixtures ------------------------------------------------------------------------------------------------------

// gain_body * relu(norm(conv([skip, y]))) + gain_skip * y
struct PointMix {
  const Pixel* skip;  // null: the stem
  const float *weight, *bias, *gain_body, *gain_skip;
  const float2* norms;
};

enum class Base { kStem, kMap, kNormed };  // kNormed: normalised, ReLU

struct Mixture {
  const Pixel* base;
  const float2* norms;  // of a base that is kNormed
  PointMix mixes[2];
};

// The 1x1 convolution of a mix in registers, with its norm folded in where that is known.
struct PointWeights {
  float skip[kChannels][kChannels], base[kChannels][kChannels], bias[kChannels];  // [output][input]

  __device__ __forceinline__ void load(const PointMix& mix) {
#pragma unroll
    for (int o = 0; o < kChannels; ++o) {
      bias[o] = __ldg(mix.bias + o);
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        skip[o][c] = __ldg(mix.weight + o * 2 * kChannels + c);
        base[o][c] = __ldg(mix.weight + o * 2 * kChannels + kChannels + c);
      }
    }
  }
  __device__ __forceinline__ void put_in(const Norm& norm) {
#pragma unroll
    for (int o = 0; o < kChannels; ++o) {
      bias[o] = norm.scale[o] * bias[o] + norm.shift[o];
#pragma unroll
      for (int c = 0; c < kChannels; ++c) skip[o][c] *= norm.scale[o], base[o][c] *= norm.scale[o];
    }
  }
  __device__ __forceinline__ Pixel of(const Pixel& beside, const Pixel& y) const {
    Pixel result;
#pragma unroll
    for (int o = 0; o < kChannels; ++o) {
      float sum = bias[o];
#pragma unroll
      for (int c = 0; c < kChannels; ++c) sum += skip[o][c] * beside.at[c] + base[o][c] * y.at[c];
      result.at[o] = sum;
    }
    return result;
  }
};

// Reads a mixture's pixels. Bit i of StemSkips: mix i takes the stem as its skip.
// With Last, the last mix stops at its convolution.
template <Base B, int Mixes, unsigned StemSkips, bool Last = false> struct MixtureReader {
  static constexpr int kKept = Mixes > 0 ? Mixes : 1;
  StemValues stem;
  const Pixel *base, *skips[kKept];
  Norm norm;
  PointWeights weights[kKept];
  float gain_body[kKept], gain_skip[kKept];

  __device__ __forceinline__ MixtureReader(const Mixture& m, const Stem& s, const Frame& f, int plane)
      : stem(s, f, plane) {
    if constexpr (B != Base::kStem) base = plane_of(m.base, f, plane);
    if constexpr (B == Base::kNormed) norm = load_norm(m.norms, plane);
#pragma unroll
    for (int i = 0; i < Mixes; ++i) {
      const PointMix& mix = m.mixes[i];
      if (!(StemSkips >> i & 1u)) skips[i] = plane_of(mix.skip, f, plane);
      weights[i].load(mix);
      if (Last && i + 1 == Mixes) continue;
      weights[i].put_in(load_norm(mix.norms, plane));
      gain_body[i] = __ldg(mix.gain_body);
      gain_skip[i] = __ldg(mix.gain_skip);
    }
  }
  __device__ __forceinline__ Pixel at(int pixel) const {
    Pixel y;
    if constexpr (B == Base::kStem) y = stem.at(pixel);
    if constexpr (B != Base::kStem) y = fetch_pixel(base + pixel);
    if constexpr (B == Base::kNormed) y = normalised(y, norm, 0.0f);
#pragma unroll
    for (int i = 0; i < Mixes; ++i) {
      const Pixel beside = StemSkips >> i & 1u ? stem.at(pixel) : fetch_pixel(skips[i] + pixel);
      const Pixel body = weights[i].of(beside, y);
      if (Last && i + 1 == Mixes) return body;
#pragma unroll
      for (int c = 0; c < kChannels; ++c) y.at[c] = gain_body[i] * activated(body.at[c], 0.0f) + gain_skip[i] * y.at[c];
    }
    return y;
  }
};

// ---- what passes share ---------------------------------------------------------------------------------------------

struct Convolution {
  const float *weight, *bias;
  bool transposed;
};

__device__ __forceinline__ void start_from_bias(const float* bias, float (&sums)[kRows][kChannels]) {
#pragma unroll
  for (int c = 0; c < kChannels; ++c) {
    const float value = __ldg(bias + c);
#pragma unroll
    for (int p = 0; p < kRows; ++p) sums[p][c] = value;
  }
}

__device__ __forceinline__ void store_strip(const Frame& f, const Place& at, Pixel* map,
                                            const float (&values)[kRows][kChannels]) {
  Pixel* plane = plane_of(map, f, at.plane);
#pragma unroll
  for (int p = 0; p < kRows; ++p) {
    if (!at.shows(f, p)) continue;
    Pixel pixel;
#pragma unroll
    for (int c = 0; c < kChannels; ++c) pixel.at[c] = values[p][c];
    store_pixel(plane + at.pixel(f, p), pixel);
  }
}

// The parts of a block's shared memory.
struct Shared {
  MomentScratch moments;
  alignas(16) float weights[2 * kWeights];
  Pixel tile[kTilePixels<1>];
};

__device__ __forceinline__ const Pixel* first_tap(const Pixel* tile, const Place& at) {
  return tile + at.strip * kPitch<1> + at.column;
}

// ---- entry: also a step, whose mixture is a map --------------------------------------------------------------------

struct EntryPass {
  Frame frame;
  Stem stem;
  Mixture mixture;
  Pixel* mixed;         // null: not needed again
  const Pixel* beside;  // the first half of the convolution's input channels, with Beside
  Convolution conv;
  Pixel* raw;
  Statistics statistics;
};

template <Base B, int Mixes, unsigned StemSkips, bool Beside>
__device__ __forceinline__ void entry(const EntryPass& p, Shared& shared) {
  const Frame& f = p.frame;
  const Place at(f);
  constexpr int kInputs = Beside ? 2 * kChannels : kChannels;
  const Weights weights(p.conv.weight, kInputs, 0, p.conv.transposed);
  float sums[kRows][kChannels];
  start_from_bias(p.conv.bias, sums);
  if constexpr (Beside) {
    const Pixel* beside = plane_of(p.beside, f, at.plane);
    fill_tile<1, 5>(f, at, shared.tile, [&](int pixel, bool) { return fetch_pixel(beside + pixel); });
    weights.store(shared.weights);
    Weights(p.conv.weight, kInputs, kChannels, p.conv.transposed).store(shared.weights + kWeights);
    __syncthreads();
    convolve<3, kChannels, kPitch<1>>(first_tap(shared.tile, at), shared.weights, sums);
    __syncthreads();  // every thread is done with the first map's tile
  }
  {
    const MixtureReader<B, Mixes, StemSkips> mixture(p.mixture, p.stem, f, at.plane);
    Pixel* mixed = Mixes > 0 ? plane_of(p.mixed, f, at.plane) : nullptr;
    fill_tile<1, Mixes == 0 ? 5 : 2>(f, at, shared.tile, [&](int pixel, bool keep) {
      const Pixel value = mixture.at(pixel);
      if (Mixes > 0 && keep) store_pixel(mixed + pixel, value);
      return value;
    });
  }
  if constexpr (!Beside) weights.store(shared.weights);
  __syncthreads();
  convolve<3, kChannels, kPitch<1>>(first_tap(shared.tile, at), shared.weights + (Beside ? kWeights : 0), sums);
  keep_statistics(f, at, p.statistics, sums, &shared.moments);
  store_strip(f, at, p.raw, sums);  // afterwards: the fences of the statistics would wait for it
}

// ---- residual ------------------------------------------------------------------------------------------------------

struct ResidualPass {
  Frame frame;
  Stem stem;
  const Pixel* raw;
  const float2* norms;
  Convolution conv, identity;
  const Pixel* inputs[2];  // of the block
  const float *gain_body, *gain_skip;
  Pixel* result;
  PointMix point;  // with Point: its convolution's statistics
  Statistics statistics;
};

// Inputs: 0 for the stem, 1 for a map, 2 for two maps and gain_body * block + gain_skip * inputs[1].
template <int Inputs> struct Identity {
  static constexpr int kMaps = Inputs == 2 ? 2 : 1;
  StemValues stem;
  const Pixel* maps[kMaps];
  float weights[kMaps][kChannels][kChannels], bias[kChannels];  // [input map][output][channel]
  float gain_body, gain_skip;

  __device__ __forceinline__ Identity(const ResidualPass& p, int plane) : stem(p.stem, p.frame, plane) {
    if constexpr (Inputs == 2) gain_body = __ldg(p.gain_body), gain_skip = __ldg(p.gain_skip);
#pragma unroll
    for (int n = 0; n < kMaps; ++n) {
      if constexpr (Inputs > 0) maps[n] = plane_of(p.inputs[n], p.frame, plane);
#pragma unroll
      for (int o = 0; o < kChannels; ++o) {
        bias[o] = __ldg(p.identity.bias + o);
#pragma unroll
        for (int c = 0; c < kChannels; ++c)
          weights[n][o][c] = __ldg(p.identity.weight + (o * kMaps + n) * kChannels + c);
      }
    }
  }
  // The block's values, computed from the sums of its second convolution.
  __device__ __forceinline__ void finish(int pixel, float (&values)[kChannels]) const {
    Pixel input[kMaps];
#pragma unroll
    for (int n = 0; n < kMaps; ++n) input[n] = Inputs == 0 ? stem.at(pixel) : fetch_pixel(maps[n] + pixel);
#pragma unroll
    for (int o = 0; o < kChannels; ++o) {
      float sum = bias[o];
#pragma unroll
      for (int n = 0; n < kMaps; ++n) {
#pragma unroll
        for (int c = 0; c < kChannels; ++c) sum += weights[n][o][c] * input[n].at[c];
      }
      values[o] = activated(values[o], kSlope) + sum;
      if constexpr (Inputs == 2) values[o] = gain_body * values[o] + gain_skip * input[1].at[o];
    }
  }
};

// One half of a mix's 1x1 convolution: over the values themselves, which its sums then replace, or over its skip,
// whose sums are added to them.
template <bool OfValues> __device__ __forceinline__ void mix_in(const Frame& f, const Place& at, const PointMix& mix,
                                                                float (&values)[kRows][kChannels]) {
  float weights[kChannels][kChannels], bias[kChannels];
#pragma unroll
  for (int o = 0; o < kChannels; ++o) {
    bias[o] = __ldg(mix.bias + o);
#pragma unroll
    for (int c = 0; c < kChannels; ++c)
      weights[o][c] = __ldg(mix.weight + (2 * o + (OfValues ? 1 : 0)) * kChannels + c);
  }
  const Pixel* skip = plane_of(mix.skip, f, at.plane);
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    Pixel input;
    if constexpr (OfValues) {
#pragma unroll
      for (int c = 0; c < kChannels; ++c) input.at[c] = values[i][c];
    } else {
      input = load_pixel(skip + (at.shows(f, i) ? at.pixel(f, i) : 0));
    }
#pragma unroll
    for (int o = 0; o < kChannels; ++o) {
      float sum = OfValues ? bias[o] : values[i][o];
#pragma unroll
      for (int c = 0; c < kChannels; ++c) sum += weights[o][c] * input.at[c];
      values[i][o] = sum;
    }
  }
}

template <int Inputs, bool Point> __device__ __forceinline__ void residual(const ResidualPass& p, Shared& shared) {
  const Frame& f = p.frame;
  const Place at(f);
  const Weights weights(p.conv.weight, kChannels, 0, false);
  {
    const Norm norm = load_norm(p.norms, at.plane);
    const Pixel* raw = plane_of(p.raw, f, at.plane);
    fill_tile<1, 5>(f, at, shared.tile,
                    [&](int pixel, bool) { return normalised(fetch_pixel(raw + pixel), norm, kSlope); });
  }
  weights.store(shared.weights);
  float sums[kRows][kChannels];
  start_from_bias(p.conv.bias, sums);
  __syncthreads();
  convolve<3, kChannels, kPitch<1>>(first_tap(shared.tile, at), shared.weights, sums);
  {
    const Identity<Inputs> identity(p, at.plane);
#pragma unroll
    for (int i = 0; i < kRows; ++i) identity.finish(at.shows(f, i) ? at.pixel(f, i) : 0, sums[i]);
  }
  store_strip(f, at, p.result, sums);
  if constexpr (Point) {
    mix_in<true>(f, at, p.point, sums);
    __syncthreads();  // keeps the compiler from loading the skip before its turn: too many registers
    mix_in<false>(f, at, p.point, sums);
    keep_statistics(f, at, p.statistics, sums, &shared.moments);
  }
}

// ---- point ---------------------------------------------------------------------------------------------------------

struct PointPass {
  Frame frame;
  Stem stem;
  Mixture mixture;
  Statistics statistics;
};

template <int Mixes, unsigned StemSkips>
__device__ __forceinline__ void point(const PointPass& p, MomentScratch* scratch) {
  const Frame& f = p.frame;
  const Place at(f);
  const MixtureReader<Base::kNormed, Mixes, StemSkips, true> mixture(p.mixture, p.stem, f, at.plane);
  float values[kRows][kChannels];
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const Pixel body = mixture.at(at.shows(f, i) ? at.pixel(f, i) : 0);
#pragma unroll
    for (int c = 0; c < kChannels; ++c) values[i][c] = body.at[c];
  }
  keep_statistics(f, at, p.statistics, values, scratch);
}

// ---- features ------------------------------------------------------------------------------------------------------

struct FeatureLevel {
  const Pixel* maps;  // the planes of a batch's images follow each other
  Convolution squeeze, excite, conv;
  Pixel* features;
};

struct FeaturePass {
  Frame frame;
  int planes;
  FeatureLevel levels[kLevels];
};

// One image's maps times its weight, which is computed from all images' maps.
struct Attention {
  const Pixel* maps[kImages];
  int image;
  float squeeze[kChannels][kImages * kChannels], squeeze_bias[kChannels], excite[kChannels], excite_bias;

  __device__ __forceinline__ Attention(const FeatureLevel& level, const Frame& f, int plane) : image(plane % kImages) {
    excite_bias = __ldg(level.excite.bias + image);
#pragma unroll
    for (int n = 0; n < kImages; ++n) maps[n] = plane_of(level.maps, f, plane - image + n);
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      excite[c] = __ldg(level.excite.weight + image * kChannels + c);
      squeeze_bias[c] = __ldg(level.squeeze.bias + c);
#pragma unroll
      for (int i = 0; i < kImages * kChannels; ++i)
        squeeze[c][i] = __ldg(level.squeeze.weight + c * kImages * kChannels + i);
    }
  }
  __device__ __forceinline__ Pixel at(int pixel) const {
    const Pixel first = fetch_pixel(maps[0] + pixel), second = fetch_pixel(maps[1] + pixel);
    float excited = excite_bias;
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      float sum = squeeze_bias[c];
#pragma unroll
      for (int i = 0; i < kChannels; ++i) sum += squeeze[c][i] * first.at[i] + squeeze[c][kChannels + i] * second.at[i];
      excited += excite[c] * activated(sum, 0.0f);
    }
    const float gate = 1.0f / (1.0f + expf(-excited));
    Pixel result;
#pragma unroll
    for (int c = 0; c < kChannels; ++c) result.at[c] = gate * (image == 0 ? first.at[c] : second.at[c]);
    return result;
  }
};

__device__ __forceinline__ void features(const FeaturePass& p, Shared& shared) {
  const Frame& f = p.frame;
  Place at(f);
  const FeatureLevel& level = p.levels[at.plane / p.planes];  // a level's planes follow those of the level before
  at.plane %= p.planes;
  const Weights weights(level.conv.weight, kChannels, 0, false);
  {
    const Attention attention(level, f, at.plane);
    fill_tile<1, 2>(f, at, shared.tile, [&](int pixel, bool) { return attention.at(pixel); });
  }
  weights.store(shared.weights);
  float sums[kRows][kChannels];
  start_from_bias(level.conv.bias, sums);
  __syncthreads();
  convolve<3, kChannels, kPitch<1>>(first_tap(shared.tile, at), shared.weights, sums);
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
#pragma unroll
    for (int c = 0; c < kChannels; ++c) sums[i][c] = activated(sums[i][c], 0.0f);
  }
  store_strip(f, at, level.features, sums);
}

// ---- heads ---------------------------------------------------------------------------------------------------------

// sum_j I_j (sum_m w_jm h_m + b_j)  =  sum_m h_m (sum_j w_jm I_j) + sum_j b_j I_j, with alpha in w and b: the
// right-hand side needs no filters. Hidden maps are computed four at a time; of the k * k, one is left over and goes
// with the bias.
struct HeadLevel {
  int size;
  const Pixel* features;
  const float *expand, *expand_bias;    // (k * k, 4, k, k)
  const float *project, *project_bias;  // (k * k, k * k)
  const float* alpha;
};

struct HeadPass {
  Frame frame;
  const float* luminance;
  HeadLevel levels[kLevels];
  int level_count;
  float* output;
};

template <int K> constexpr int kGroups = (K * K - 1) / 4;
// Groups whose weights are in shared memory at a time: all of them for k up to 5.
template <int K> constexpr int kGroupsAtOnce = K > 5 ? 3 : kGroups<K>;
template <int K> constexpr int kGroupWeights = 4 * K * K * (kChannels + 1);  // of four maps and their responses
// Four maps' weights in groups, then the last map's, its response's, and the bias's.
template <int K> constexpr int kHeadWeights = kGroupsAtOnce<K> * kGroupWeights<K> + K * K * (kChannels + 2);
template <int K> constexpr int kHeadBytes =
    kTilePixels<K / 2> * (sizeof(Pixel) + sizeof(float)) + (kHeadWeights<K> + 3) / 4 * 4 * sizeof(float);

// Reads the taps of a filter of `size` in the order of shared memory, columns first.
template <int K> __device__ __forceinline__ unsigned turned(unsigned tap) { return tap % K * K + tap / K; }

template <int K> __device__ __forceinline__ void load_head(const HeadLevel& level, unsigned first, unsigned count,
                                                           bool last, float* weights) {
  constexpr unsigned kTaps = K * K, kMaps = kTaps;
  const float alpha = __ldg(level.alpha);
#pragma unroll 8
  for (unsigned i = threadIdx.x; i < count * 4 * kTaps * kChannels; i += kThreads) {
    const unsigned m = i % 4, channel = i / 4 % kChannels, tap = i / 4 / kChannels % kTaps,
                   group = i / 4 / kChannels / kTaps;
    weights[group * kGroupWeights<K> + i % (4 * kTaps * kChannels)] =
        __ldg(level.expand + (((first + group) * 4 + m) * kChannels + channel) * kTaps + turned<K>(tap));
  }
  for (unsigned i = threadIdx.x; i < count * 4 * kTaps; i += kThreads) {
    const unsigned m = i % 4, tap = i / 4 % kTaps, group = i / 4 / kTaps;
    weights[group * kGroupWeights<K> + 4 * kTaps * kChannels + i % (4 * kTaps)] =
        alpha * __ldg(level.project + turned<K>(tap) * kMaps + (first + group) * 4 + m);
  }
  if (!last) return;
  weights += kGroupsAtOnce<K> * kGroupWeights<K>;
  for (unsigned i = threadIdx.x; i < kTaps * (kChannels + 2); i += kThreads) {
    const unsigned kind = i / kTaps, tap = turned<K>(i % kTaps);
    if (kind == kChannels)
      weights[i] = alpha * __ldg(level.project + tap * kMaps + kMaps - 1);
    else if (kind > kChannels)
      weights[i] = alpha * __ldg(level.project_bias + tap);
    else
      weights[i % kTaps * kChannels + kind] = __ldg(level.expand + ((kMaps - 1) * kChannels + kind) * kTaps + tap);
  }
}

// Adds M hidden maps times their responses.
template <int K, int M> __device__ __forceinline__ void add_maps(const Pixel* tile, const float* luminance,
                                                                 const float* bias, const float* weights,
                                                                 const float* responses, float (&totals)[kRows]) {
  constexpr int kPitchHere = kPitch<K / 2>;
  float hidden[kRows][M], response[kRows][M];
#pragma unroll
  for (int m = 0; m < M; ++m) {
    const float value = __ldg(bias + m);
#pragma unroll
    for (int p = 0; p < kRows; ++p) hidden[p][m] = value, response[p][m] = 0;
  }
  convolve<K, M, kPitchHere>(tile, weights, hidden);
  convolve<K, M, kPitchHere>(luminance, responses, response);
#pragma unroll
  for (int p = 0; p < kRows; ++p) {
#pragma unroll
    for (int m = 0; m < M; ++m) totals[p] += activated(hidden[p][m], 0.0f) * response[p][m];
  }
}

template <int K> __device__ __forceinline__ void add_level(const HeadPass& p, const HeadLevel& level, const Place& at,
                                                           unsigned char* shared, float (&totals)[kRows]) {
  constexpr int kHalo = K / 2, kTaps = K * K, kAtOnce = kGroupsAtOnce<K> > 0 ? kGroupsAtOnce<K> : 1;
  Pixel* const tile = reinterpret_cast<Pixel*>(shared);
  float* const weights = reinterpret_cast<float*>(tile + kTilePixels<kHalo>);
  float* const luminance = weights + (kHeadWeights<K> + 3) / 4 * 4;
  const int own = at.strip * kPitch<kHalo> + at.column;
  for (int first = 0; first == 0 || first < kGroups<K>; first += kAtOnce) {
    const int count = smaller(kGroupsAtOnce<K>, kGroups<K> - first);
    const bool last = first + kAtOnce >= kGroups<K>;
    __syncthreads();  // every thread is done with the previous weights
    load_head<K>(level, first, count, last, weights);
    for (int n = 0; n < kImages; ++n) {
      const int plane = at.plane * kImages + n;
      const Pixel* features = plane_of(level.features, p.frame, plane);
      const float* picture = p.luminance + static_cast<int64_t>(plane) * p.frame.height * p.frame.width;
      if (n > 0) __syncthreads();  // every thread is done with the previous image
      fill_tile<kHalo, 4>(p.frame, at, tile, [&](int pixel, bool) { return fetch_pixel(features + pixel); });
      fill_tile<kHalo, 4>(p.frame, at, luminance, [&](int pixel, bool) { return __ldg(picture + pixel); });
      __syncthreads();
#pragma unroll 1
      for (int g = 0; g < count; ++g) {
        const float* group = weights + g * kGroupWeights<K>;
        add_maps<K, 4>(tile + own, luminance + own, level.expand_bias + (first + g) * 4, group,
                       group + 4 * kTaps * kChannels, totals);
      }
      if (!last) continue;
      const float* rest = weights + kGroupsAtOnce<K> * kGroupWeights<K>;
      add_maps<K, 1>(tile + own, luminance + own, level.expand_bias + kTaps - 1, rest, rest + kTaps * kChannels,
                     totals);
      float offset[kRows][1] = {};
      convolve<K, 1, kPitch<kHalo>>(luminance + own, rest + kTaps * (kChannels + 1), offset);
#pragma unroll
      for (int i = 0; i < kRows; ++i) totals[i] += offset[i][0];
    }
  }
}

// Levels are no larger than Largest.
template <int Largest> __device__ __forceinline__ void heads(const HeadPass& p, unsigned char* shared) {
  const Frame& f = p.frame;
  const Place at(f);  // its plane is a batch's
  float totals[kRows] = {};
  for (int l = 0; l < p.level_count; ++l) {
    const HeadLevel& level = p.levels[l];
    switch (level.size) {
      case 1: add_level<1>(p, level, at, shared, totals); break;
      case 3: add_level<3>(p, level, at, shared, totals); break;
      case 5: add_level<5>(p, level, at, shared, totals); break;
      default:
        if constexpr (Largest >= 7) add_level<7>(p, level, at, shared, totals);
        break;
    }
  }
  float* const output = p.output + static_cast<int64_t>(at.plane) * f.height * f.width;
#pragma unroll
  for (int i = 0; i < kRows; ++i)
    if (at.shows(f, i)) output[at.pixel(f, i)] = totals[i];
}

}  // namespace ffmef::cuda::network
