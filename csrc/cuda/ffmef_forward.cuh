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

__device__ __forceinline__ const float* plane_of(const float* luminance, const Frame& f, int plane) {
  return luminance + static_cast<int64_t>(plane) * f.height * f.width;
}
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

// What the pixels of a mix need, in shared memory.
struct SharedMix {
  alignas(16) float weights[kChannels][2 * kChannels], bias[kChannels];  // [output][skip, then base]
  float scale[kChannels], shift[kChannels], gain_body, gain_skip, unused[2];

  // Applies the 1x1 convolution to several pixels.
  template <int N>
  __device__ __forceinline__ void convolve(const Pixel (&skip)[N], const Pixel (&base)[N], Pixel (&sums)[N]) const {
    const Pixel biases = load_four(bias);
#pragma unroll
    for (int o = 0; o < kChannels; ++o) {
      const Pixel of_skip = load_four(weights[o]), of_base = load_four(weights[o] + kChannels);
#pragma unroll
      for (int n = 0; n < N; ++n) {
        float sum = biases.at[o];
#pragma unroll
        for (int c = 0; c < kChannels; ++c) sum += of_skip.at[c] * skip[n].at[c] + of_base.at[c] * base[n].at[c];
        sums[n].at[o] = sum;
      }
    }
  }
};

struct SharedMixture {
  SharedMix mixes[2];
  alignas(16) float stem_weight[kChannels], stem_bias[kChannels], base_scale[kChannels], base_shift[kChannels];

  __device__ __forceinline__ Pixel stem(float luminance) const {
    const Pixel weight = load_four(stem_weight), bias = load_four(stem_bias);
    Pixel result;
#pragma unroll
    for (int c = 0; c < kChannels; ++c) result.at[c] = weight.at[c] * luminance + bias.at[c];
    return result;
  }
};

constexpr int kMixValues = 46, kMixFloats = sizeof(SharedMix) / sizeof(float), kStemAndBase = kThreads - kMixFloats;
static_assert(kMixFloats == 48 && sizeof(SharedMixture) == (2 * kMixFloats + kStemAndBase) * sizeof(float));

// A mixture's weights and norms in flight: a thread has up to one value of each mix, or one of the stem or the base.
template <Base B, int Mixes, bool Last> struct MixtureValues {
  float values[2];

  __device__ __forceinline__ static float of_mix(const PointMix& mix, bool norm_known, int plane, int i) {
    constexpr int kBias = 2 * kChannels * kChannels, kScale = kBias + kChannels, kShift = kScale + kChannels;
    constexpr int kGains = kShift + kChannels;
    const float* from = mix.weight + i;
    if (i >= kBias) from = mix.bias + (i - kBias);
    if (i >= kScale) {
      if (!norm_known || i >= kMixValues) return 0.0f;
      const float* const norms = reinterpret_cast<const float*>(mix.norms + plane * kChannels);
      from = norms + 2 * ((i - kScale) % kChannels) + (i >= kShift ? 1 : 0);
    }
    if (i >= kGains) from = i == kGains ? mix.gain_body : mix.gain_skip;
    return __ldg(from);
  }
  __device__ __forceinline__ MixtureValues(const Mixture& m, const Stem& stem, int plane) : values{0, 0} {
    const int i = static_cast<int>(threadIdx.x), rest = i - kMixFloats, c = rest % kChannels;
    if (rest < 0) {
#pragma unroll
      for (int n = 0; n < Mixes; ++n) values[n] = of_mix(m.mixes[n], !(Last && n + 1 == Mixes), plane, i);
    } else if (rest < 2 * kChannels) {
      values[0] = __ldg((rest < kChannels ? stem.weight : stem.bias) + c);
    } else if (B == Base::kNormed) {
      const float* const norms = reinterpret_cast<const float*>(m.norms + plane * kChannels);
      values[0] = __ldg(norms + 2 * c + (rest < 3 * kChannels ? 0 : 1));
    }
  }
  __device__ __forceinline__ void store(SharedMixture& shared) const {
    float* const all = reinterpret_cast<float*>(&shared);
    const int i = static_cast<int>(threadIdx.x);
    all[i < kMixFloats ? i : i + kMixFloats] = values[0];
    if (Mixes > 1 && i < kMixFloats) all[kMixFloats + i] = values[1];
  }
};

// Reads a mixture's pixels. Bit i of StemSkips: mix i takes the stem as its skip.
// With Last, the last mix stops at its convolution.
template <Base B, int Mixes, unsigned StemSkips, bool Last = false> struct MixtureReader {
  static constexpr int kKept = Mixes > 0 ? Mixes : 1;
  static constexpr bool kStems = B == Base::kStem || StemSkips != 0;
  struct Raw {
    Pixel base, skips[kKept];
    float luminance;
  };
  const SharedMixture* shared;
  const float* luminance;
  const Pixel *base, *skips[kKept];

  __device__ __forceinline__ MixtureReader(const Mixture& m, const Stem& s, const Frame& f, int plane,
                                           const SharedMixture* values)
      : shared(values) {
    if constexpr (kStems) luminance = plane_of(s.luminance, f, plane);
    if constexpr (B != Base::kStem) base = plane_of(m.base, f, plane);
#pragma unroll
    for (int i = 0; i < Mixes; ++i)
      if (!(StemSkips >> i & 1u)) skips[i] = plane_of(m.mixes[i].skip, f, plane);
  }
  __device__ __forceinline__ Raw fetch(int pixel) const {
    Raw raw;
    if constexpr (kStems) raw.luminance = __ldg(luminance + pixel);
    if constexpr (B != Base::kStem) raw.base = fetch_pixel(base + pixel);
#pragma unroll
    for (int i = 0; i < Mixes; ++i)
      if (!(StemSkips >> i & 1u)) raw.skips[i] = fetch_pixel(skips[i] + pixel);
    return raw;
  }
  template <int N> __device__ __forceinline__ void values(const Raw (&raw)[N], Pixel (&y)[N]) const {
    if constexpr (B == Base::kStem) {
#pragma unroll
      for (int n = 0; n < N; ++n) y[n] = shared->stem(raw[n].luminance);
    } else if constexpr (B == Base::kMap) {
#pragma unroll
      for (int n = 0; n < N; ++n) y[n] = raw[n].base;
    } else {
      const Pixel scale = load_four(shared->base_scale), shift = load_four(shared->base_shift);
#pragma unroll
      for (int n = 0; n < N; ++n) {
#pragma unroll
        for (int c = 0; c < kChannels; ++c) y[n].at[c] = activated(scale.at[c] * raw[n].base.at[c] + shift.at[c], 0.0f);
      }
    }
#pragma unroll
    for (int i = 0; i < Mixes; ++i) {
      const SharedMix& mix = shared->mixes[i];
      Pixel beside[N], body[N];
#pragma unroll
      for (int n = 0; n < N; ++n) beside[n] = StemSkips >> i & 1u ? shared->stem(raw[n].luminance) : raw[n].skips[i];
      mix.convolve(beside, y, body);
      if (Last && i + 1 == Mixes) {
#pragma unroll
        for (int n = 0; n < N; ++n) y[n] = body[n];
        continue;
      }
      const Pixel scale = load_four(mix.scale), shift = load_four(mix.shift);
      const float gain_body = mix.gain_body, gain_skip = mix.gain_skip;
#pragma unroll
      for (int n = 0; n < N; ++n) {
#pragma unroll
        for (int c = 0; c < kChannels; ++c)
          y[n].at[c] = gain_body * activated(scale.at[c] * body[n].at[c] + shift.at[c], 0.0f) + gain_skip * y[n].at[c];
      }
    }
  }
};

// ---- what passes share ---------------------------------------------------------------------------------------------

struct Convolution {
  const float *weight, *bias;
  bool transposed;
};

__device__ __forceinline__ void start_from_bias(const float* weights, float (&sums)[kRows][kChannels]) {
  const Pixel bias = load_four(weights + kWeights);
#pragma unroll
  for (int p = 0; p < kRows; ++p) {
#pragma unroll
    for (int c = 0; c < kChannels; ++c) sums[p][c] = bias.at[c];
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
  alignas(16) float weights[2][kWeightsAndBias];
  SharedMixture mixture;
  TilePlace place;
  Pair tile[2 * kTilePixels<1>];
};

template <int Halo> __device__ __forceinline__ int first_tap(int thread) {
  return thread % kThreads / kColumns * kRows * kPitch<Halo> + thread % kColumns;
}

// Convolves the tile, which all threads have filled.
__device__ __forceinline__ void convolve_tile(const Shared& shared, const float* weights,
                                              float (&sums)[kRows][kChannels]) {
  convolve<3>(shared.tile + first_tap<1>(static_cast<int>(threadIdx.x)), weights, sums);
  __syncthreads();  // every thread is done with the tile
}

// A map as it is, or normalised and activated.
template <bool Normed> struct MapSource {
  using Raw = Pixel;
  const Pixel* map;
  Pair* tile;
  Norm norm;
  float slope;

  __device__ __forceinline__ Raw fetch(int pixel) const { return fetch_pixel(map + pixel); }
  template <int N> __device__ __forceinline__ void put(const Raw (&raw)[N], const Spot (&spots)[N]) const {
#pragma unroll
    for (int n = 0; n < N; ++n) put_pixel<1>(tile, spots[n], Normed ? normalised(raw[n], norm, slope) : raw[n]);
  }
};

// A mixture, whose own pixels are stored.
template <class Reader, bool Stored> struct MixtureSource {
  using Raw = typename Reader::Raw;
  Reader reader;
  Pair* tile;
  Pixel* mixed;

  __device__ __forceinline__ Raw fetch(int pixel) const { return reader.fetch(pixel); }
  template <int N> __device__ __forceinline__ void put(const Raw (&raw)[N], const Spot (&spots)[N]) const {
    Pixel values[N];
    reader.values(raw, values);
#pragma unroll
    for (int n = 0; n < N; ++n) {
      if (Stored && spots[n].own) store_pixel(mixed + spots[n].pixel, values[n]);
      put_pixel<1>(tile, spots[n], values[n]);
    }
  }
};

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

// Pixels that are staged at a time: all of a map's, fewer of several maps or while sums are kept.
template <Base B, int Mixes> constexpr int kEntryBatch = B == Base::kStem || Mixes == 0 ? kStaged<1> : 2;

template <Base B, int Mixes, unsigned StemSkips>
__device__ __forceinline__ void stage_mixture(const EntryPass& p, const Weights& weights, Shared& shared) {
  const Frame& f = p.frame;
  const Place at(f);
  using Reader = MixtureReader<B, Mixes, StemSkips>;
  const MixtureSource<Reader, (Mixes > 0)> mixture = {Reader(p.mixture, p.stem, f, at.plane, &shared.mixture),
                                                      shared.tile,
                                                      Mixes > 0 ? plane_of(p.mixed, f, at.plane) : nullptr};
  const MixtureValues<B, Mixes, false> values(p.mixture, p.stem, at.plane);
  fill_tile<1, kEntryBatch<B, Mixes>>(f, at, mixture, [&] {
    weights.store(shared.weights[0]);
    at.keep(&shared.place);
    if constexpr (B != Base::kMap || Mixes > 0) {
      values.store(shared.mixture);
      __syncthreads();  // its values are there for all threads
    }
  });
}

template <Base B, int Mixes, unsigned StemSkips, bool Beside>
__device__ __forceinline__ void entry(const EntryPass& p, Shared& shared) {
  constexpr int kInputs = Beside ? 2 * kChannels : kChannels;
  const Weights weights(p.conv.weight, p.conv.bias, kInputs, kInputs - kChannels, p.conv.transposed);
  wait_for_launch_before();
  stage_mixture<B, Mixes, StemSkips>(p, weights, shared);
  float sums[kRows][kChannels];
  __syncthreads();
  start_from_bias(shared.weights[0], sums);
  convolve_tile(shared, shared.weights[0], sums);
  if constexpr (Beside) {
    const Place at(shared.place);
    const Weights others(p.conv.weight, p.conv.bias, kInputs, 0, p.conv.transposed);
    const MapSource<false> beside = {plane_of(p.beside, p.frame, at.plane), shared.tile, {}, 0.0f};
    fill_tile<1, 4>(p.frame, at, beside, [&] { others.store(shared.weights[1]); });
    __syncthreads();
    convolve_tile(shared, shared.weights[1], sums);
  }
  const Place at(shared.place);
  keep_statistics(p.frame, at, p.statistics, StripValues{p.frame, at, sums},
                  [&] { store_strip(p.frame, at, p.raw, sums); });
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

// The identity's 1x1 convolution in flight. Inputs: 0 for the stem, 1 for a map, 2 for two maps and
// gain_body * block + gain_skip * inputs[1]. In shared memory, a single input takes the place of a mix's base.
template <int Inputs> struct IdentityValues {
  float value;

  __device__ __forceinline__ explicit IdentityValues(const ResidualPass& p) : value(0) {
    constexpr int kMaps = Inputs == 2 ? 2 : 1, kBias = 2 * kChannels * kChannels;
    const int i = static_cast<int>(threadIdx.x), rest = i - kMixFloats;
    if (i < kBias) {
      const int o = i / (2 * kChannels), c = i % (2 * kChannels) - (2 - kMaps) * kChannels;
      if (c >= 0) value = __ldg(p.identity.weight + o * kMaps * kChannels + c);
    } else if (i < kBias + kChannels) {
      value = __ldg(p.identity.bias + i - kBias);
    } else if (Inputs == 2 && (i == kMixValues - 2 || i == kMixValues - 1)) {
      value = __ldg(i == kMixValues - 2 ? p.gain_body : p.gain_skip);
    } else if (Inputs == 0 && rest >= 0 && rest < 2 * kChannels) {
      value = __ldg((rest < kChannels ? p.stem.weight : p.stem.bias) + rest % kChannels);
    }
  }
  __device__ __forceinline__ void store(SharedMixture& shared) const {
    float* const all = reinterpret_cast<float*>(&shared);
    const int i = static_cast<int>(threadIdx.x);
    all[i < kMixFloats ? i : i + kMixFloats] = value;
  }
};

// What is read of a pixel after the block's second convolution.
template <int Inputs, bool Point> struct ResidualRaw {
  Pixel first, input, skip;
  float luminance;

  __device__ __forceinline__ void fetch(const ResidualPass& p, int plane, int pixel) {
    if constexpr (Inputs == 0) luminance = __ldg(plane_of(p.stem.luminance, p.frame, plane) + pixel);
    if constexpr (Inputs == 2) first = fetch_pixel(plane_of(p.inputs[0], p.frame, plane) + pixel);
    if constexpr (Inputs > 0) input = fetch_pixel(plane_of(p.inputs[Inputs - 1], p.frame, plane) + pixel);
    if constexpr (Point) skip = fetch_pixel(plane_of(p.point.skip, p.frame, plane) + pixel);
  }
};

// The block's values, computed from the sums of its second convolution.
template <int Inputs, bool Point, int N>
__device__ __forceinline__ void add_identity(const SharedMixture& shared, const ResidualRaw<Inputs, Point> (&raw)[N],
                                             Pixel (&values)[N]) {
  const SharedMix& mix = shared.mixes[0];
  Pixel inputs[N];
#pragma unroll
  for (int n = 0; n < N; ++n) inputs[n] = Inputs == 0 ? shared.stem(raw[n].luminance) : raw[n].input;
  const Pixel bias = load_four(mix.bias);
#pragma unroll
  for (int o = 0; o < kChannels; ++o) {
    const Pixel last = load_four(mix.weights[o] + kChannels), before = load_four(mix.weights[o]);
#pragma unroll
    for (int n = 0; n < N; ++n) {
      float& value = values[n].at[o];
      float sum = bias.at[o];
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        if constexpr (Inputs == 2) sum += before.at[c] * raw[n].first.at[c];
        sum += last.at[c] * inputs[n].at[c];
      }
      value = activated(value, kSlope) + sum;
      if constexpr (Inputs == 2) value = mix.gain_body * value + mix.gain_skip * inputs[n].at[o];
    }
  }
}

template <int Inputs, bool Point>
__device__ __forceinline__ void stage_normalised(const ResidualPass& p, const Weights& weights,
                                                 const IdentityValues<Inputs>& identity, Shared& shared) {
  const Frame& f = p.frame;
  const Place at(f);
  const MapSource<true> raw = {plane_of(p.raw, f, at.plane), shared.tile, load_norm(p.norms, at.plane), kSlope};
  fill_tile<1, kStaged<1>>(f, at, raw, [&] {
    weights.store(shared.weights[0]);
    at.keep(&shared.place);
    identity.store(shared.mixture);
    if constexpr (Point) {
      const int i = static_cast<int>(threadIdx.x);
      using Values = MixtureValues<Base::kMap, 1, true>;
      if (i < kMixFloats)
        reinterpret_cast<float*>(shared.mixture.mixes + 1)[i] = Values::of_mix(p.point, false, at.plane, i);
    }
  });
}

template <int Inputs, bool Point> __device__ __forceinline__ void residual(const ResidualPass& p, Shared& shared) {
  constexpr int kAtOnce = Inputs > 1 || Point ? 2 : 4;
  static_assert(sizeof(Shared::tile) >= kRows * kThreads * sizeof(Pixel));
  const Weights weights(p.conv.weight, p.conv.bias, kChannels, 0, false);
  const IdentityValues<Inputs> identity(p);
  wait_for_launch_before();
  stage_normalised<Inputs, Point>(p, weights, identity, shared);
  Pixel* const own = reinterpret_cast<Pixel*>(shared.tile) + threadIdx.x;
  {
    float sums[kRows][kChannels];
    __syncthreads();
    start_from_bias(shared.weights[0], sums);
    convolve_tile(shared, shared.weights[0], sums);
#pragma unroll
    for (int i = 0; i < kRows; ++i) own[i * kThreads] = {{sums[i][0], sums[i][1], sums[i][2], sums[i][3]}};
  }
  const Place at(shared.place);
  RunningValues moments;
  // A loop, with the sums in shared memory: unrolled, it would need too many registers.
#pragma unroll 1
  for (int start = 0; start < kRows; start += kAtOnce) {
    ResidualRaw<Inputs, Point> raw[kAtOnce];
    Pixel values[kAtOnce];
#pragma unroll
    for (int n = 0; n < kAtOnce; ++n) {
      raw[n].fetch(p, at.plane, at.safe_pixel(p.frame, start + n));
      values[n] = own[(start + n) * kThreads];
    }
    add_identity<Inputs, Point>(shared.mixture, raw, values);
#pragma unroll
    for (int n = 0; n < kAtOnce; ++n)
      if (at.shows(p.frame, start + n))
        store_pixel(plane_of(p.result, p.frame, at.plane) + at.pixel(p.frame, start + n), values[n]);
    if constexpr (Point) {
      Pixel skips[kAtOnce], mixed[kAtOnce];
#pragma unroll
      for (int n = 0; n < kAtOnce; ++n) skips[n] = raw[n].skip;
      shared.mixture.mixes[1].convolve(skips, values, mixed);
#pragma unroll
      for (int n = 0; n < kAtOnce; ++n) moments.add(mixed[n], start + n, at.shows(p.frame, start + n));
    }
  }
  if constexpr (Point) {
    moments.finish(p.frame, at);
    keep_statistics(p.frame, at, p.statistics, moments, [] {});
  }
}

// ---- point ---------------------------------------------------------------------------------------------------------

struct PointPass {
  Frame frame;
  Stem stem;
  Mixture mixture;
  Statistics statistics;
};

struct PointShared {
  SharedMixture mixture;
  TilePlace place;
};

template <int Mixes, unsigned StemSkips>
__device__ __forceinline__ RunningValues point_values(const PointPass& p, PointShared& shared) {
  constexpr int kAtOnce = 2;
  const Frame& f = p.frame;
  const Place at(f);
  using Reader = MixtureReader<Base::kNormed, Mixes, StemSkips, true>;
  const Reader mixture(p.mixture, p.stem, f, at.plane, &shared.mixture);
  MixtureValues<Base::kNormed, Mixes, true>(p.mixture, p.stem, at.plane).store(shared.mixture);
  at.keep(&shared.place);
  __syncthreads();
  RunningValues moments;
#pragma unroll 1
  for (int start = 0; start < kRows; start += kAtOnce) {
    typename Reader::Raw raw[kAtOnce];
    Pixel values[kAtOnce];
#pragma unroll
    for (int n = 0; n < kAtOnce; ++n) raw[n] = mixture.fetch(at.safe_pixel(f, start + n));
    mixture.values(raw, values);
#pragma unroll
    for (int n = 0; n < kAtOnce; ++n) moments.add(values[n], start + n, at.shows(f, start + n));
  }
  return moments;
}

template <int Mixes, unsigned StemSkips>
__device__ __forceinline__ void point(const PointPass& p, PointShared& shared) {
  wait_for_launch_before();
  RunningValues moments = point_values<Mixes, StemSkips>(p, shared);
  const Place at(shared.place);
  moments.finish(p.frame, at);
  keep_statistics(p.frame, at, p.statistics, moments, [] {});
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
  struct Raw {
    Pixel maps[kImages];
  };
  const Pixel* maps[kImages];
  int image;
  Pair* tile;
  const SharedMix* mix;  // its weights are the squeeze's, its scale and first shift the excitation's

  __device__ __forceinline__ Attention(const FeatureLevel& level, const Frame& f, int plane, Shared& shared)
      : image(plane % kImages), tile(shared.tile), mix(shared.mixture.mixes) {
#pragma unroll
    for (int n = 0; n < kImages; ++n) maps[n] = plane_of(level.maps, f, plane - image + n);
  }
  __device__ __forceinline__ static float value(const FeatureLevel& level, int image) {
    constexpr int kBias = kImages * kChannels * kChannels, kScale = kBias + kChannels, kShift = kScale + kChannels;
    static_assert(kImages == 2);
    const int i = static_cast<int>(threadIdx.x);
    if (i < kBias) return __ldg(level.squeeze.weight + i);
    if (i < kScale) return __ldg(level.squeeze.bias + (i - kBias));
    if (i < kShift) return __ldg(level.excite.weight + image * kChannels + (i - kScale));
    return __ldg(level.excite.bias + image);
  }
  __device__ __forceinline__ Raw fetch(int pixel) const {
    Raw raw;
#pragma unroll
    for (int n = 0; n < kImages; ++n) raw.maps[n] = fetch_pixel(maps[n] + pixel);
    return raw;
  }
  template <int N> __device__ __forceinline__ void put(const Raw (&raw)[N], const Spot (&spots)[N]) const {
    Pixel first[N], second[N], squeezed[N];
#pragma unroll
    for (int n = 0; n < N; ++n) first[n] = raw[n].maps[0], second[n] = raw[n].maps[1];
    mix->convolve(first, second, squeezed);
    const Pixel excite = load_four(mix->scale);
#pragma unroll
    for (int n = 0; n < N; ++n) {
      float excited = mix->shift[0];
      Pixel result;
#pragma unroll
      for (int c = 0; c < kChannels; ++c) excited += excite.at[c] * activated(squeezed[n].at[c], 0.0f);
      const float gate = 1.0f / (1.0f + expf(-excited));
#pragma unroll
      for (int c = 0; c < kChannels; ++c) result.at[c] = gate * (image == 0 ? first[n].at[c] : second[n].at[c]);
      put_pixel<1>(tile, spots[n], result);
    }
  }
};

__device__ __forceinline__ void features(const FeaturePass& p, Shared& shared) {
  const Frame& f = p.frame;
  Place at(f);
  const FeatureLevel& level = p.levels[at.plane / p.planes];  // a level's planes follow those of the level before
  at.plane %= p.planes;
  const Weights weights(level.conv.weight, level.conv.bias, kChannels, 0, false);
  const float value = Attention::value(level, at.plane % kImages);
  wait_for_launch_before();
  at.first_row = afresh(at.first_row);  // addresses in the maps depend on it, so no load of one moves before the wait
  fill_tile<1, 2>(f, at, Attention(level, f, at.plane, shared), [&] {
    weights.store(shared.weights[0]);
    at.keep(&shared.place);
    if (threadIdx.x < kMixFloats) reinterpret_cast<float*>(shared.mixture.mixes)[threadIdx.x] = value;
    __syncthreads();
  });
  float sums[kRows][kChannels];
  __syncthreads();
  start_from_bias(shared.weights[0], sums);
  convolve_tile(shared, shared.weights[0], sums);
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
#pragma unroll
    for (int c = 0; c < kChannels; ++c) sums[i][c] = activated(sums[i][c], 0.0f);
  }
  const Place again(shared.place);
  store_strip(f, again, level.features, sums);
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
template <int K> constexpr int kGroupsAtOnce = K > 5 ? 4 : kGroups<K>;
template <int K> constexpr int kGroupWeights = 4 * K * K * (kChannels + 1);  // of four maps and their responses
// Four maps' weights in groups, then the last map's, its response's, and the bias's.
template <int K> constexpr int kHeadWeights = kGroupsAtOnce<K> * kGroupWeights<K> + K * K * (kChannels + 2);
// Two teams of warps share a tile: each computes every second group, and the second computes what is left over. Totals
// are kept in shared memory, as registers decide how many blocks a multiprocessor holds.
constexpr int kTeams = 2, kHeadThreads = kThreads * kTeams, kTotalBytes = kHeadThreads * kRows * 4;
template <int K> constexpr int kHeadBytes = kTotalBytes + (kHeadWeights<K> + 3) / 4 * 4 * 4 +
                                            kTilePixels<K / 2> * static_cast<int>(sizeof(Pixel) + sizeof(float));

// Reads the taps of a filter of `size` in the order of shared memory, columns first.
template <int K> __device__ __forceinline__ unsigned turned(unsigned tap) { return tap % K * K + tap / K; }

template <int K> __device__ __forceinline__ void load_head(const HeadLevel& level, unsigned first, unsigned count,
                                                           bool last, float* weights) {
  constexpr unsigned kTaps = K * K, kMaps = kTaps;
  const float alpha = __ldg(level.alpha);
  const unsigned thread = static_cast<unsigned>(afresh(static_cast<int>(threadIdx.x)));
#pragma unroll 8
  for (unsigned i = thread; i < count * 4 * kTaps * kChannels; i += kHeadThreads) {
    const unsigned m = i % 4, tap = i / 8 % kTaps, channel = i / 4 % 2 + i / (8 * kTaps) % 2 * 2;
    const unsigned group = i / 4 / kChannels / kTaps;
    weights[group * kGroupWeights<K> + i % (4 * kTaps * kChannels)] =
        __ldg(level.expand + (((first + group) * 4 + m) * kChannels + channel) * kTaps + turned<K>(tap));
  }
  for (unsigned i = thread; i < count * 4 * kTaps; i += kHeadThreads) {
    const unsigned m = i % 2 + i / (2 * kTaps) % 2 * 2, tap = i / 2 % kTaps, group = i / 4 / kTaps;
    weights[group * kGroupWeights<K> + 4 * kTaps * kChannels + i % (4 * kTaps)] =
        alpha * __ldg(level.project + turned<K>(tap) * kMaps + (first + group) * 4 + m);
  }
  if (!last) return;
  weights += kGroupsAtOnce<K> * kGroupWeights<K>;
  for (unsigned i = thread; i < kTaps * (kChannels + 2); i += kHeadThreads) {
    const unsigned kind = i / kTaps, tap = turned<K>(i % kTaps);
    if (kind == kChannels)
      weights[i] = alpha * __ldg(level.project + tap * kMaps + kMaps - 1);
    else if (kind > kChannels)
      weights[i] = alpha * __ldg(level.project_bias + tap);
    else
      weights[(kind / 2 * kTaps + i % kTaps) * 2 + kind % 2] =
          __ldg(level.expand + ((kMaps - 1) * kChannels + kind) * kTaps + tap);
  }
}

// Adds M hidden maps times their responses, which are computed for two maps at a time.
template <int K, int M> __device__ __forceinline__ void add_maps(const Pair* tile, const float* luminance,
                                                                 const float* bias, const float* weights,
                                                                 const float* responses, float* totals) {
  constexpr int kPart = M < 2 ? M : 2;
  float hidden[kRows][M];
#pragma unroll
  for (int m = 0; m < M; ++m) {
    const float value = __ldg(bias + m);
#pragma unroll
    for (int p = 0; p < kRows; ++p) hidden[p][m] = value;
  }
  convolve<K>(tile, weights, hidden);
#pragma unroll
  for (int part = 0; part < M; part += kPart) {
    float response[kRows][kPart] = {};
    convolve<K>(luminance, responses + part * K * K, response);
#pragma unroll
    for (int p = 0; p < kRows; ++p) {
      float total = totals[p * kHeadThreads];
#pragma unroll
      for (int m = 0; m < kPart; ++m) total += activated(hidden[p][part + m], 0.0f) * response[p][m];
      totals[p * kHeadThreads] = total;
    }
  }
}

// An image's features and luminance.
template <int K> struct HeadSource {
  struct Raw {
    Pixel features;
    float luminance;
  };
  const Pixel* features;
  const float* picture;
  Pair* tile;
  float* luminance;

  __device__ __forceinline__ Raw fetch(int pixel) const {
    return {fetch_pixel(features + pixel), __ldg(picture + pixel)};
  }
  template <int N> __device__ __forceinline__ void put(const Raw (&raw)[N], const Spot (&spots)[N]) const {
#pragma unroll
    for (int n = 0; n < N; ++n) {
      put_pixel<K / 2>(tile, spots[n], raw[n].features);
      if (spots[n].exists) luminance[spots[n].place] = spots[n].shown ? raw[n].luminance : 0.0f;
    }
  }
};

template <int K>
__device__ __forceinline__ void add_level(const HeadPass& p, const HeadLevel& level, unsigned char* shared) {
  constexpr int kHalo = K / 2, kTaps = K * K, kAtOnce = kGroupsAtOnce<K> > 0 ? kGroupsAtOnce<K> : 1;
  const int thread = afresh(static_cast<int>(threadIdx.x)), team = thread / kThreads;
  float* const totals = reinterpret_cast<float*>(shared) + thread;
  float* const weights = reinterpret_cast<float*>(shared + kTotalBytes);
  Pair* const tile = reinterpret_cast<Pair*>(weights + (kHeadWeights<K> + 3) / 4 * 4);
  float* const luminance = reinterpret_cast<float*>(tile + 2 * kTilePixels<kHalo>);
  const int own = first_tap<kHalo>(thread);
  for (int first = 0; first == 0 || first < kGroups<K>; first += kAtOnce) {
    const int count = smaller(kGroupsAtOnce<K>, kGroups<K> - first);
    const bool last = first + kAtOnce >= kGroups<K>;
    __syncthreads();  // every thread is done with the previous weights
    load_head<K>(level, first, count, last, weights);
#pragma unroll 1
    for (int n = 0; n < kImages; ++n) {
      const Place at(p.frame);
      const int plane = at.plane * kImages + n;
      const HeadSource<K> source = {plane_of(level.features, p.frame, plane), plane_of(p.luminance, p.frame, plane),
                                    tile, luminance};
      if (n > 0) __syncthreads();  // every thread is done with the previous image
      fill_tile<kHalo, 2, kTeams>(p.frame, at, source, [] {});
      __syncthreads();
#pragma unroll 1
      for (int g = team; g < count; g += kTeams) {
        const float* group = weights + g * kGroupWeights<K>;
        add_maps<K, 4>(tile + own, luminance + own, level.expand_bias + (first + g) * 4, group,
                       group + 4 * kTaps * kChannels, totals);
      }
      if (!last || team + 1 < kTeams) continue;
      const float* rest = weights + kGroupsAtOnce<K> * kGroupWeights<K>;
      add_maps<K, 1>(tile + own, luminance + own, level.expand_bias + kTaps - 1, rest, rest + kTaps * kChannels,
                     totals);
      float offset[kRows][1] = {};
      convolve<K>(luminance + own, rest + kTaps * (kChannels + 1), offset);
#pragma unroll
      for (int i = 0; i < kRows; ++i) totals[i * kHeadThreads] += offset[i][0];
    }
  }
}

// Levels are no larger than Largest.
template <int Largest> __device__ __forceinline__ void heads(const HeadPass& p, unsigned char* shared) {
  const Frame& f = p.frame;
  float* const totals = reinterpret_cast<float*>(shared) + threadIdx.x;
#pragma unroll
  for (int i = 0; i < kRows; ++i) totals[i * kHeadThreads] = 0;
  wait_for_launch_before();
  for (int l = 0; l < p.level_count; ++l) {
    const HeadLevel& level = p.levels[l];
    switch (level.size) {
      case 1: add_level<1>(p, level, shared); break;
      case 3: add_level<3>(p, level, shared); break;
      case 5: add_level<5>(p, level, shared); break;
      default:
        if constexpr (Largest >= 7) add_level<7>(p, level, shared);
        break;
    }
  }
  __syncthreads();
  if (threadIdx.x >= kThreads) return;
  const Place at(f);  // its plane is a batch's
  float* const output = p.output + static_cast<int64_t>(at.plane) * f.height * f.width;
#pragma unroll
  for (int i = 0; i < kRows; ++i)
    if (at.shows(f, i)) output[at.pixel(f, i)] = totals[i * kHeadThreads] + totals[i * kHeadThreads + kThreads];
}

}  // namespace ffmef::cuda::network
