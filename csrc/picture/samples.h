// Converts interleaved samples of any depth to planes and back. Only *_kernels.cpp files include it (vec.h).
#pragma once
#include <cstdint>
#include <cstring>
#include <utility>

namespace ffmef {
namespace FFMEF_ISA {
namespace {

// A vector of samples. With AVX-512, a shuffle of a whole 64-byte vector is one instruction for lanes of 16 and 32
// bits, but not for bytes.
#if defined(__AVX512BW__)
constexpr int kWide = 64;
#else
constexpr int kWide = 16;
#endif
template <class S> struct Chunk;
template <> struct Chunk<uint8_t> {
  typedef uint8_t type __attribute__((vector_size(16), may_alias));
};
template <> struct Chunk<uint16_t> {
  typedef uint16_t type __attribute__((vector_size(kWide), may_alias));
};
template <> struct Chunk<float> {
  typedef float type __attribute__((vector_size(kWide), may_alias));
};
template <class S> using ChunkOf = typename Chunk<S>::type;
template <class S> constexpr int kInChunk = int(sizeof(ChunkOf<S>) / sizeof(S));

// A sample times kToByte lies on the scale 0..255 of the colour equations.
template <class S> constexpr float kToByte = 1.0f;
template <> constexpr float kToByte<uint16_t> = 1.0f / 257;
template <> constexpr float kToByte<float> = 255.0f;

template <class S> inline ChunkOf<S> load_chunk(const S* p) {
  ChunkOf<S> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
template <class S> inline void store_chunk(S* p, ChunkOf<S> v) { std::memcpy(p, &v, sizeof v); }

// Returns channel C of the pixels that fill three chunks.
template <int C, class V, size_t... I> inline V channel(V a, V b, V c, std::index_sequence<I...>) {
  constexpr int n = int(sizeof...(I));
  const V most = __builtin_shufflevector(a, b, (3 * int(I) + C < 2 * n ? 3 * int(I) + C : 0)...);
  return __builtin_shufflevector(most, c, (3 * int(I) + C < 2 * n ? int(I) : 3 * int(I) + C - n)...);
}

// Returns chunk C of the three that interleaved pixels fill.
template <int C, class V, size_t... I> inline V interleaved(V r, V g, V b, std::index_sequence<I...>) {
  constexpr int n = int(sizeof...(I));
  const V two = __builtin_shufflevector(r, g,
                                        ((n * C + int(I)) % 3 == 0   ? (n * C + int(I)) / 3
                                         : (n * C + int(I)) % 3 == 1 ? n + (n * C + int(I)) / 3
                                                                     : 0)...);
  return __builtin_shufflevector(two, b, ((n * C + int(I)) % 3 < 2 ? int(I) : n + (n * C + int(I)) / 3)...);
}

template <class S> void split(const S* rgb, int64_t n, S* r, S* g, S* b) {
  constexpr int L = kInChunk<S>;
  using Lanes = std::make_index_sequence<L>;
  int64_t x = 0;
  for (; x + L <= n; x += L) {
    const ChunkOf<S> v0 = load_chunk(rgb + 3 * x), v1 = load_chunk(rgb + 3 * x + L),
                     v2 = load_chunk(rgb + 3 * x + 2 * L);
    store_chunk(r + x, channel<0>(v0, v1, v2, Lanes()));
    store_chunk(g + x, channel<1>(v0, v1, v2, Lanes()));
    store_chunk(b + x, channel<2>(v0, v1, v2, Lanes()));
  }
  for (; x < n; ++x) r[x] = rgb[3 * x], g[x] = rgb[3 * x + 1], b[x] = rgb[3 * x + 2];
}

template <class S> void join(S* rgb, int64_t n, const S* r, const S* g, const S* b) {
  constexpr int L = kInChunk<S>;
  using Lanes = std::make_index_sequence<L>;
  int64_t x = 0;
  for (; x + L <= n; x += L) {
    const ChunkOf<S> vr = load_chunk(r + x), vg = load_chunk(g + x), vb = load_chunk(b + x);
    store_chunk(rgb + 3 * x, interleaved<0>(vr, vg, vb, Lanes()));
    store_chunk(rgb + 3 * x + L, interleaved<1>(vr, vg, vb, Lanes()));
    store_chunk(rgb + 3 * x + 2 * L, interleaved<2>(vr, vg, vb, Lanes()));
  }
  for (; x < n; ++x) rgb[3 * x] = r[x], rgb[3 * x + 1] = g[x], rgb[3 * x + 2] = b[x];
}

// Luminance on the scale 0..1 is kRed r + kGreen g + kBlue b + kBlack, for RGB on the scale 0..255.
constexpr float kRed = 0.256789f / 255, kGreen = 0.504129f / 255, kBlue = 0.097906f / 255, kBlack = 16.0f / 255;

inline float unit(float x) { return x < 0.0f ? 0.0f : x > 1.0f ? 1.0f : x; }

// Columns processed at a time, few enough for their rows to stay in the first-level cache.
constexpr int64_t kColumns = 512;

// A run of pixels of one picture as planes. The three planes of a grey picture are one and the same.
template <class S> struct Planes {
  alignas(64) S stored[3][kColumns];
  const S *r, *g, *b;

  void read(const void* data, int channels, int64_t pixel, int64_t n) {
    const S* from = static_cast<const S*>(data) + channels * pixel;
    if (channels == 1) {
      r = g = b = from;
      return;
    }
    split(from, n, stored[0], stored[1], stored[2]);
    r = stored[0], g = stored[1], b = stored[2];
  }
};

}  // namespace
}  // namespace FFMEF_ISA
}  // namespace ffmef
