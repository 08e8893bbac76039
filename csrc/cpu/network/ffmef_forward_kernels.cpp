// The passes of the whole network: each row is read, normalised, activated and mixed on its way into a small ring of
// rows, convolved from there, and written once.
#include "ffmef_forward.h"
#include "ffmef_forward_convolution.h"
#include "ffmef_forward_rows.h"

namespace ffmef {
namespace FFMEF_ISA {
namespace {

template <int C> struct Pixels {
  FloatVec at[C];
};

inline float* map_row(float* map, const Geometry& g, int64_t y, int channels) { return map + y * channels * g.pitch; }
inline const float* map_row(const float* map, const Geometry& g, int64_t y, int channels) {
  return map + y * channels * g.pitch;
}

template <int C> FFMEF_INLINE Pixels<C> load_pixels(const float* row, int64_t plane) {
  Pixels<C> p;
#pragma GCC unroll 16
  for (int c = 0; c < C; ++c) p.at[c] = load(row + c * plane);
  return p;
}

template <int C> FFMEF_INLINE void store_pixels(float* row, int64_t plane, const Pixels<C>& p) {
#pragma GCC unroll 16
  for (int c = 0; c < C; ++c) store(row + c * plane, p.at[c]);
}

template <int C> FFMEF_INLINE Pixels<C> normalised(Pixels<C> p, const Norm& norm) {
#pragma GCC unroll 16
  for (int c = 0; c < C; ++c) p.at[c] = rectify(p.at[c] * norm.scale[c] + norm.shift[c]);
  return p;
}

// A map at one vector of pixels of row y, or the stem of luminance if the map is null.
template <int C> FFMEF_INLINE Pixels<C> map_pixels(const ImageView& image, const float* map, int64_t y, int64_t x) {
  const Geometry& g = image.geometry;
  if (map != nullptr) return load_pixels<C>(map_row(map, g, y, C) + x, g.pitch);
  const FloatVec luminance = load(image.luminance + y * g.pitch + x);
  Pixels<C> p;
  convolve_point<1, C>(p.at, &luminance, image.stem);
  return p;
}

// The convolution of [skip, y] inside a point mix.
template <int C>
FFMEF_INLINE Pixels<C> mix_body(const PointMixWeights& weights, const Pixels<C>& skip, const Pixels<C>& y) {
  FloatVec both[2 * C];
#pragma GCC unroll 16
  for (int c = 0; c < C; ++c) {
    both[c] = skip.at[c];
    both[C + c] = y.at[c];
  }
  Pixels<C> z;
  convolve_point<2 * C, C>(z.at, both, weights.conv);
  return z;
}

// The mixture at one vector of pixels. kLast stops inside the last mix, before its norm.
template <int C, bool kLast>
FFMEF_INLINE Pixels<C> mixture_pixels(const ImageView& image, const Mixture& mixture, int64_t y, int64_t x) {
  Pixels<C> p = map_pixels<C>(image, mixture.base, y, x);
  if (mixture.norm != nullptr) p = normalised(p, *mixture.norm);
  for (int m = 0; m < mixture.mixes; ++m) {
    const PointMix& mix = mixture.mix[m];
    Pixels<C> body = mix_body(*mix.weights, map_pixels<C>(image, mix.skip, y, x), p);
    if (kLast && m + 1 == mixture.mixes) return body;
    body = normalised(body, *mix.norm);
#pragma GCC unroll 16
    for (int c = 0; c < C; ++c) p.at[c] = body.at[c] * mix.weights->gain_body + p.at[c] * mix.weights->gain_skip;
  }
  return p;
}

// Copies columns [left, right) of C planes from a map to a ring.
template <int C>
void copy_row(float* to, int64_t to_plane, const float* from, int64_t from_plane, int64_t left, int64_t right) {
  for (int c = 0; c < C; ++c)
    std::memcpy(to + c * to_plane + left, from + c * from_plane + left, size_t(right - left) * sizeof(float));
}

// Rows of maps that are needed soon. A convolution prefetches them while it computes, because the short loops that read
// and write maps cannot hide memory latency.
struct Upcoming {
  const float* rows[8];
  int count = 0;
  void add(const float* row) { rows[count++] = row; }
  template <int C, int V> FFMEF_INLINE void prefetch(int64_t plane, int64_t x) const {
    for (int r = 0; r < count; ++r)
#pragma GCC unroll 16
      for (int c = 0; c < C; ++c)
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) __builtin_prefetch(rows[r] + c * plane + x + v * kLanes, 0, 2);
  }
};

// One row of a 3x3 convolution from a ring to a map or a ring.
template <int C, int IN> void convolve_row(float* to, int64_t to_plane, const Ring& ring, int64_t y,
                                           const Convolution& conv, int64_t left, int64_t right,
                                           const Upcoming& upcoming = {}, int64_t upcoming_plane = 0) {
  constexpr int kBlock = output_block(C);
  const float* rows[3] = {ring.row(y - 1), ring.row(y), ring.row(y + 1)};
  for (int block = 0; block < C / kBlock; ++block) {
    const float* weights = conv.weights + block * kBlock * IN * 9;
    const float* bias = conv.bias + block * kBlock;
    float* planes = to + block * kBlock * to_plane;
    along_row<vectors_for(kBlock)>(left, right, [&]<int V>(int64_t x) __attribute__((always_inline)) {
      if (block == 0) upcoming.prefetch<C, V>(upcoming_plane, x);
      const Sums<kBlock, V> sums = convolve<3, kBlock, V>(rows, x, IN, ring.plane, weights, bias);
#pragma GCC unroll 8
      for (int o = 0; o < kBlock; ++o)
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) store(planes + o * to_plane + x + v * kLanes, sums.at[o][v]);
    });
  }
}

template <int C>
void point_pass(const ImageView& image, const PointPass& pass, Moments* moments, int64_t begin, int64_t end) {
  const Geometry& g = image.geometry;
  Ring scratch(g, 1, C);
  for (int64_t item = begin, last; item < end; item = last) {
    last = next_tile(g, item, end);
    const Tile tile = tile_at(g, item, last);
    scratch.start(tile);
    TileMoments<C> sums(g, tile, moments);
    for (int64_t y = tile.y0; y < tile.y1; ++y) {
      float* row = scratch.row(y);
      Upcoming upcoming;
      const float* const wanted[] = {pass.mixture.base, pass.mixture.mix[0].skip, pass.mixture.mix[1].skip};
      for (const float* map : wanted)
        if (map != nullptr) upcoming.add(map_row(map, g, y + 1, C));
      for (int64_t x = tile.x0; x < tile.x1; x += kLanes) {
        upcoming.prefetch<C, 1>(g.pitch, x);
        store_pixels(row + x, scratch.plane, mixture_pixels<C, true>(image, pass.mixture, y, x));
      }
      sums.add(row, scratch.plane, y);
    }
  }
}

template <int C, bool kBeside>
void entry_items(const ImageView& image, const EntryPass& pass, Moments* moments, int64_t begin, int64_t end) {
  const Geometry& g = image.geometry;
  constexpr int kInputs = kBeside ? 2 * C : C;
  Ring inputs(g, 3, kInputs);
  for (int64_t item = begin, last; item < end; item = last) {
    last = next_tile(g, item, end);
    const Tile tile = tile_at(g, item, last);
    inputs.start(tile);
    TileMoments<C / 2> sums(g, tile, moments);
    for (int64_t r = tile.y0 - 1; r <= tile.y1; ++r) {
      if (inputs.outside(r)) {
        inputs.clear(r);
      } else {
        float* row = inputs.row(r);
        if (kBeside) copy_row<C>(row, inputs.plane, map_row(pass.beside, g, r, C), g.pitch, tile.left, tile.right);
        float *mixed = row + (kInputs - C) * inputs.plane,
              *map = pass.mixed == nullptr ? nullptr : map_row(pass.mixed, g, r, C);
        for (const Span& span : tile.spans(r).at)
          for (int64_t x = span.begin; x < span.end; x += kLanes) {
            const Pixels<C> p = mixture_pixels<C, false>(image, pass.mixture, r, x);
            store_pixels(mixed + x, inputs.plane, p);
            if (span.own && map != nullptr) store_pixels(map + x, g.pitch, p);
          }
        inputs.close(r);
      }
      const int64_t y = r - 1;
      if (y < tile.y0) continue;
      Upcoming upcoming;
      const float* const wanted[] = {pass.mixture.base, pass.mixture.mix[0].skip, pass.mixture.mix[1].skip, pass.beside,
                                     pass.mixed};
      for (const float* map : wanted)
        if (map != nullptr) upcoming.add(map_row(map, g, r + 1, C));
      upcoming.add(map_row(pass.raw, g, y + 1, C));
      float* raw = map_row(pass.raw, g, y, C);
      convolve_row<C, kInputs>(raw, g.pitch, inputs, y, pass.conv, tile.x0, tile.x1, upcoming, g.pitch);
      sums.add(raw, g.pitch, y);
    }
  }
}

template <int C>
void entry_pass(const ImageView& image, const EntryPass& pass, Moments* moments, int64_t begin, int64_t end) {
  if (pass.beside != nullptr) return entry_items<C, true>(image, pass, moments, begin, end);
  entry_items<C, false>(image, pass, moments, begin, end);
}

// Prepares conv_1's row for conv_2: normalises half of the channels and applies the leaky activation to all.
template <int C>
void activate_row(const Ring& ring, const ImageView& image, const ResidualPass& pass, const Tile& tile, int64_t y) {
  if (ring.outside(y)) return ring.clear(y);
  const Geometry& g = image.geometry;
  const float* from = map_row(pass.raw, g, y, C);
  float* to = ring.row(y);
  for (int64_t x = tile.left; x < tile.right; x += kLanes) {
    Pixels<C> p = load_pixels<C>(from + x, g.pitch);
#pragma GCC unroll 16
    for (int c = 0; c < C; ++c) {
      if (c < C / 2) p.at[c] = p.at[c] * pass.norm->scale[c] + pass.norm->shift[c];
      p.at[c] = leaky(p.at[c]);
    }
    store_pixels(to + x, ring.plane, p);
  }
  ring.close(y);
}

// leaky(conv_2) + identity(inputs of the block), then the mix around a merging block.
template <int C> void residual_row(float* to, int64_t to_plane, const Ring& activated, const ImageView& image,
                                   const ResidualPass& pass, const Tile& tile, int64_t y, const Upcoming& upcoming) {
  constexpr int kBlock = output_block(C);
  const Geometry& g = image.geometry;
  const ResidualWeights& w = *pass.weights;
  const float* inputs[2 * C];
  int count = 0;
  if (pass.inputs[0] == nullptr) inputs[count++] = image.luminance + y * g.pitch;
  for (const float* map : pass.inputs)
    for (int c = 0; map != nullptr && c < C; ++c) inputs[count++] = map_row(map, g, y, C) + c * g.pitch;
  const float* rows[3] = {activated.row(y - 1), activated.row(y), activated.row(y + 1)};
  float* map = map_row(pass.result, g, y, C);
  for (const Span& span : tile.spans(y).at)
    for (int block = 0; block < C / kBlock; ++block) {
      const int first = block * kBlock;
      along_row<vectors_for(kBlock)>(span.begin, span.end, [&]<int V>(int64_t x) __attribute__((always_inline)) {
        if (block == 0) upcoming.prefetch<C, V>(g.pitch, x);
        Sums<kBlock, V> sums = convolve<3, kBlock, V>(rows, x, C, activated.plane, w.conv_2.weights + first * C * 9,
                                                      w.conv_2.bias + first);
#pragma GCC unroll 8
        for (int o = 0; o < kBlock; ++o)
#pragma GCC unroll 8
          for (int v = 0; v < V; ++v) sums.at[o][v] = leaky(sums.at[o][v]) + w.identity.bias[first + o];
        const float* weights = w.identity.weights + first * count;
        for (int i = 0; i < count; ++i) {
          FloatVec pixels[V];
#pragma GCC unroll 8
          for (int v = 0; v < V; ++v) pixels[v] = load(inputs[i] + x + v * kLanes);
#pragma GCC unroll 8
          for (int o = 0; o < kBlock; ++o)
#pragma GCC unroll 8
            for (int v = 0; v < V; ++v) sums.at[o][v] += splat(weights[i * kBlock + o]) * pixels[v];
        }
#pragma GCC unroll 8
        for (int o = 0; o < kBlock; ++o)
#pragma GCC unroll 8
          for (int v = 0; v < V; ++v) {
            const int64_t at = x + v * kLanes;
            FloatVec r = sums.at[o][v];
            if (pass.mixed) r = r * w.gain_body + load(inputs[C + first + o] + at) * w.gain_skip;
            store(to + (first + o) * to_plane + at, r);
            if (span.own) store(map + (first + o) * g.pitch + at, r);
          }
      });
    }
}

template <int C, Tail kTail>
void residual_items(const ImageView& image, const ResidualPass& pass, Moments* moments, int64_t begin, int64_t end) {
  const Geometry& g = image.geometry;
  constexpr int kInputs = kTail == Tail::entry ? 2 * C : C;
  constexpr int kSummed = kTail == Tail::entry ? C / 2 : C;
  // Rows of the result beyond the item that the next convolution needs.
  constexpr int kReach = kTail == Tail::step || kTail == Tail::entry ? 1 : 0;
  Ring activated(g, 3, C), results(g, 3, kInputs), scratch(g, 1, C);
  for (int64_t item = begin, last; item < end; item = last) {
    last = next_tile(g, item, end);
    const Tile tile = tile_at(g, item, last);
    activated.start(tile);
    results.start(tile);
    scratch.start(tile);
    TileMoments<kSummed> sums(g, tile, moments);
    for (int64_t r = tile.y0 - kReach - 1; r <= tile.y1 + kReach; ++r) {
      activate_row<C>(activated, image, pass, tile, r);
      const int64_t q = r - 1;
      const float* const wanted[] = {pass.inputs[0], pass.inputs[1], pass.beside, pass.result};
      auto add_inputs = [&](Upcoming& upcoming) {
        for (const float* map : wanted)
          if (map != nullptr) upcoming.add(map_row(map, g, q + 1, C));
      };
      if (q < tile.y0 - kReach) continue;
      if (results.outside(q)) {
        results.clear(q);
      } else {
        float* row = results.row(q);
        if (kTail == Tail::entry)
          copy_row<C>(row, results.plane, map_row(pass.beside, g, q, C), g.pitch, tile.left, tile.right);
        float* result = row + (kInputs - C) * results.plane;
        Upcoming upcoming;
        upcoming.add(map_row(pass.raw, g, r + 1, C));
        if (kReach == 0) add_inputs(upcoming);
        residual_row<C>(result, results.plane, activated, image, pass, tile, q, upcoming);
        results.close(q);
      }
      const int64_t y = q - kReach;
      if (y < tile.y0) continue;
      if constexpr (kReach == 1) {
        Upcoming upcoming;
        add_inputs(upcoming);
        upcoming.add(map_row(pass.tail_raw, g, y + 1, C));
        float* raw = map_row(pass.tail_raw, g, y, C);
        convolve_row<C, kInputs>(raw, g.pitch, results, y, pass.conv, tile.x0, tile.x1, upcoming, g.pitch);
        sums.add(raw, g.pitch, y);
      } else if constexpr (kTail == Tail::point) {
        const float *result = results.row(y), *beside = map_row(pass.beside, g, y, C);
        float* body = scratch.row(y);
        for (int64_t x = tile.x0; x < tile.x1; x += kLanes)
          store_pixels(
              body + x, scratch.plane,
              mix_body(*pass.point, load_pixels<C>(beside + x, g.pitch), load_pixels<C>(result + x, results.plane)));
        sums.add(body, scratch.plane, y);
      }
    }
  }
}

template <int C>
void residual_pass(const ImageView& image, const ResidualPass& pass, Moments* moments, int64_t begin, int64_t end) {
  switch (pass.tail) {
    case Tail::none: return residual_items<C, Tail::none>(image, pass, moments, begin, end);
    case Tail::step: return residual_items<C, Tail::step>(image, pass, moments, begin, end);
    case Tail::entry: return residual_items<C, Tail::entry>(image, pass, moments, begin, end);
    case Tail::point: return residual_items<C, Tail::point>(image, pass, moments, begin, end);
  }
}

// Both images' maps, each times its image's attention.
template <int C> void attend_row(const Ring* attended, const HeadPass& pass, const Tile& tile, int64_t y) {
  if (attended[0].outside(y)) {
    for (int n = 0; n < kImages; ++n) attended[n].clear(y);
    return;
  }
  const Geometry& g = pass.images[0].geometry;
  const float* maps[kImages] = {map_row(pass.maps[0], g, y, C), map_row(pass.maps[1], g, y, C)};
  float* to[kImages] = {attended[0].row(y), attended[1].row(y)};
  Upcoming upcoming;
  for (const float* map : pass.maps) upcoming.add(map_row(map, g, y + 1, C));
  for (int64_t x = tile.left; x < tile.right; x += kLanes) {
    upcoming.prefetch<C, 1>(g.pitch, x);
    Pixels<2 * C> both;
    for (int n = 0; n < kImages; ++n)
#pragma GCC unroll 16
      for (int c = 0; c < C; ++c) both.at[n * C + c] = load(maps[n] + c * g.pitch + x);
    Pixels<C> squeezed;
    convolve_point<2 * C, C>(squeezed.at, both.at, pass.weights->squeeze);
#pragma GCC unroll 16
    for (int c = 0; c < C; ++c) squeezed.at[c] = rectify(squeezed.at[c]);
    Pixels<kImages> gates;
    convolve_point<C, kImages>(gates.at, squeezed.at, pass.weights->excite);
    for (int n = 0; n < kImages; ++n) {
      const FloatVec gate = sigmoid(gates.at[n]);
#pragma GCC unroll 16
      for (int c = 0; c < C; ++c) store(to[n] + c * attended[n].plane + x, both.at[n * C + c] * gate);
    }
  }
  for (int n = 0; n < kImages; ++n) attended[n].close(y);
}

// relu(conv(attended))
template <int C>
void hidden_row(const Ring& hidden, const Ring& attended, const Convolution& conv, const Tile& tile, int64_t y) {
  if (hidden.outside(y)) return hidden.clear(y);
  float* row = hidden.row(y);
  convolve_row<C, C>(row, hidden.plane, attended, y, conv, tile.left, tile.right);
  for (int c = 0; c < C; ++c)
    for (int64_t x = tile.left; x < tile.right; x += kLanes)
      store(row + c * hidden.plane + x, rectify(load(row + c * hidden.plane + x)));
  hidden.close(y);
}

// totals += sum_i relu(expand_i(hidden)) * responses_i(luminance) + offset(luminance): the filters and their k*k hidden
// maps exist only in registers.
template <int C, int K> void predict_and_fuse_row(float* totals, const Ring& hidden, const Ring& luminance,
                                                  const HeadWeights& w, const Tile& tile, int64_t y) {
  constexpr int kTaps = K * K, kBlock = output_block(kTaps);
  const float *hidden_rows[K], *luminance_rows[K];
  for (int dy = 0; dy < K; ++dy) {
    hidden_rows[dy] = hidden.row(y + dy - K / 2);
    luminance_rows[dy] = luminance.row(y + dy - K / 2);
  }
  along_row<vectors_for(kBlock)>(tile.x0, tile.x1, [&]<int V>(int64_t x) __attribute__((always_inline)) {
    FloatVec total[V];
    const Sums<1, V> offset = convolve<K, 1, V>(luminance_rows, x, 1, 0, w.offset.weights, w.offset.bias);
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) total[v] = load(totals + x + v * kLanes) + offset.at[0][v];
    for (int first = 0; first < kTaps; first += kBlock) {
      const Sums<kBlock, V> h = convolve<K, kBlock, V>(hidden_rows, x, C, hidden.plane,
                                                       w.expand.weights + first * C * kTaps, w.expand.bias + first);
      const Sums<kBlock, V> t = convolve<K, kBlock, V>(luminance_rows, x, 1, 0, w.responses.weights + first * kTaps,
                                                       w.responses.bias + first);
#pragma GCC unroll 8
      for (int o = 0; o < kBlock; ++o)
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) total[v] += rectify(h.at[o][v]) * t.at[o][v];
    }
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) store(totals + x + v * kLanes, total[v]);
  });
}

template <int C, int K> void head_items(const HeadPass& pass, int64_t begin, int64_t end) {
  const Geometry& g = pass.images[0].geometry;
  constexpr int kRadius = K / 2;
  Ring attended[kImages] = {{g, 3, C}, {g, 3, C}}, hidden[kImages] = {{g, K, C}, {g, K, C}};
  Ring luminance[kImages] = {{g, K, 1}, {g, K, 1}};
  Ring totals(g, 1, 1);
  for (int64_t item = begin, last; item < end; item = last) {
    last = next_tile(g, item, end);
    const Tile tile = tile_at(g, item, last);
    for (int n = 0; n < kImages; ++n) {
      attended[n].start(tile);
      hidden[n].start(tile);
      luminance[n].start(tile);
    }
    totals.start(tile);
    for (int64_t r = tile.y0 - kRadius - 1; r <= tile.y1 + kRadius; ++r) {
      attend_row<C>(attended, pass, tile, r);
      const int64_t q = r - 1;
      if (q < tile.y0 - kRadius) continue;
      for (int n = 0; n < kImages; ++n) {
        hidden_row<C>(hidden[n], attended[n], pass.weights->conv, tile, q);
        if (luminance[n].outside(q)) {
          luminance[n].clear(q);
        } else {
          copy_row<1>(luminance[n].row(q), 0, pass.images[n].luminance + q * g.pitch, 0, tile.left, tile.right);
          luminance[n].close(q);
        }
      }
      const int64_t y = q - kRadius;
      if (y < tile.y0) continue;
      float *row = totals.row(y), *out = pass.out + y * g.width;
      const size_t bytes = size_t(least(tile.x1, g.width) - tile.x0) * sizeof(float);
      if (pass.add)
        std::memcpy(row + tile.x0, out + tile.x0, bytes);
      else
        totals.clear(y);
      for (int n = 0; n < kImages; ++n)
        predict_and_fuse_row<C, K>(row, hidden[n], luminance[n], *pass.weights, tile, y);
      std::memcpy(out + tile.x0, row + tile.x0, bytes);
    }
  }
}

template <int C> void head_pass(const HeadPass& pass, int kernel_size, int64_t begin, int64_t end) {
  switch (kernel_size) {
    case 1: return head_items<C, 1>(pass, begin, end);
    case 3: return head_items<C, 3>(pass, begin, end);
    case 5: return head_items<C, 5>(pass, begin, end);
    case 7: return head_items<C, 7>(pass, begin, end);
  }
}

}  // namespace

#define FFMEF_DEFINE_KERNELS(C)                                 \
  extern const FfmefForwardKernels ffmef_forward_kernels_##C;   \
  const FfmefForwardKernels ffmef_forward_kernels_##C = {       \
      .point = point_pass<C>, .entry = entry_pass<C>, .residual = residual_pass<C>, .head = head_pass<C>};
FFMEF_DEFINE_KERNELS(4)
FFMEF_DEFINE_KERNELS(8)
FFMEF_DEFINE_KERNELS(16)
#undef FFMEF_DEFINE_KERNELS

}  // namespace FFMEF_ISA
}  // namespace ffmef
