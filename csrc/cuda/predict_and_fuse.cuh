// Kernels of predict_and_fuse: filters are predicted from hidden maps by a 1x1 convolution and applied to the images,
// without ever being stored:
//   sum_j I_j (sum_m w_jm h_m + b_j)  =  sum_m h_m (sum_j w_jm I_j) + sum_j b_j I_j
// Bodies are device functions over a Prediction; predict_and_fuse.cu wraps them into kernels and chooses among them.
//
//   predict_and_fuse_tiled   k in {1, 3, 5, 7}, any M: the right-hand side, so that every hidden value is read once and
//                            used once; the pixels that a filter sees are in registers, weights in shared memory
//   predict_and_fuse_direct  any odd k, any size: the left-hand side, one tap at a time, shared by four channels
#pragma once

#include "adaptive_fuse.cuh"  // tiles, windows, views of images

namespace ffmef::cuda {

template <class T> struct HeadView {
  const T* hidden;
  int64_t batch, image, map, row, column;  // strides of hidden in elements
  const T *weight, *bias;                  // (k * k, maps) and (k * k,), contiguous
  int size, maps;                          // k, M
};

// All that a launch needs; passed by value.
template <class T> struct Prediction {
  ImageView<T> images;
  HeadView<T> levels[kLevelsPerLaunch];
  const Accumulate<T>* alphas;
  int64_t alpha_stride;
  T* output;  // (B, C, H, W), contiguous
  int level_count, batch, image_count, channels, height, width;
  Padding padding;
  int halo_rows;  // largest k / 2
  int tiles_across, tiles_down;
  bool add_result;  // a further launch of a problem with more than kLevelsPerLaunch levels
};

// Pixels of a thread: no more than let the window of a 5 x 5 filter stay in registers.
template <class T> constexpr int kHeadVector = sizeof(Accumulate<T>) == 4 ? 4 : 1;
template <int K, int V, class A> constexpr bool kKeepsWindow = K * (V + K - 1) * sizeof(A) <= 200;

// Taps of one hidden map's filter in shared memory, padded so that 16 bytes are read at once.
template <int K, class A> constexpr int kTapPitch = K == 1 ? 1 : (K * K * sizeof(A) + 15) / 16 * 16 / sizeof(A);

constexpr int kWeightsBytes = 8 << 10;  // of shared memory: more maps than fit are taken in turns
template <int K, class A> constexpr int kMapsAtOnce = kWeightsBytes / static_cast<int>(sizeof(A)) / kTapPitch<K, A>;

// Fills shared memory with the weights of maps [first, first + count), times alpha; map M is the bias.
template <int K, int Threads, class T> __device__ __forceinline__ void load_weights(const HeadView<T>& level,
                                                                                    Accumulate<T> alpha, int first,
                                                                                    int count, Accumulate<T>* weights) {
  for (int i = static_cast<int>(threadIdx.x); i < count * K * K; i += Threads) {
    const int tap = i / count, m = i % count;
    const bool is_bias = first + m == level.maps;
    const T* value = is_bias ? level.bias + tap : level.weight + (static_cast<int64_t>(tap) * level.maps + first + m);
    weights[m * kTapPitch<K, Accumulate<T>> + tap] = alpha * widen(*value);
  }
}

template <int Group, class A> __device__ __forceinline__ void load_taps(const A* weights, A (&taps)[Group]) {
  if constexpr (Group == 1) {
    taps[0] = weights[0];
  } else {
    const uint4 raw = *reinterpret_cast<const uint4*>(weights);
    memcpy(taps, &raw, sizeof(raw));
  }
}

// Adds what `count` maps contribute to V pixels: each map's value times its filter's response to the tile at `origin`.
template <int K, int V, class T> __device__ __forceinline__ void add_maps(const Accumulate<T>* origin, int pitch,
                                                                          const Accumulate<T>* weights, const T* hidden,
                                                                          int64_t map_stride, int count, bool with_bias,
                                                                          Accumulate<T> (&result)[V]) {
  using A = Accumulate<T>;
  constexpr bool kKept = kKeepsWindow<K, V, A>;
  A window[kKept ? K : 1][V + K - 1];
#pragma unroll
  for (int i = 0; kKept && i < K; ++i) load_window<K / 2, V>(origin + i * pitch, window[i]);
  A value[V];
#pragma unroll
  for (int v = 0; v < V; ++v) value[v] = A(1);
  const int maps = with_bias ? count - 1 : count;
  if (maps > 0) load_once<V>(hidden, value);
#pragma unroll 1
  for (int m = 0; m < count; ++m) {
    // The next map's values travel while this one's are used.
    A next[V];
#pragma unroll
    for (int v = 0; v < V; ++v) next[v] = A(1);
    if (m + 1 < maps) load_once<V>(hidden + (m + 1) * map_stride, next);
    A response[V] = {};
    constexpr int kGroup = K == 1 ? 1 : 16 / static_cast<int>(sizeof(A));
#pragma unroll
    for (int first = 0; first < K * K; first += kGroup) {
      A taps[kGroup];
      load_taps(weights + m * kTapPitch<K, A> + first, taps);
#pragma unroll
      for (int i = 0; i < kGroup; ++i) {
        const int t = first + i;
        if (t >= K * K) break;
        if (!kKept && t % K == 0) load_window<K / 2, V>(origin + t / K * pitch, window[0]);
#pragma unroll
        for (int v = 0; v < V; ++v) response[v] += taps[i] * window[kKept ? t / K : 0][t % K + v];
      }
    }
#pragma unroll
    for (int v = 0; v < V; ++v) {
      result[v] += value[v] * response[v];
      value[v] = next[v];
    }
  }
}

// `shared` holds the image's tile, then kWeightsBytes of weights. Blocks of a tile's channels follow each other, so
// that the second channel finds the hidden maps in the cache.
template <class T, int V>
__device__ __forceinline__ void predict_and_fuse_tiled(const Prediction<T>& p, Accumulate<T>* shared) {
  using A = Accumulate<T>;
  using Shape = Tile<T, V>;
  const unsigned channels = static_cast<unsigned>(p.channels), block = blockIdx.x / channels;
  const int channel = static_cast<int>(blockIdx.x % channels);
  const int batch = static_cast<int>(block / static_cast<unsigned>(p.tiles_across * p.tiles_down));
  const int tile_row = static_cast<int>(threadIdx.x) / Shape::kThreadsAcross;
  const int tile_column = static_cast<int>(threadIdx.x) % Shape::kThreadsAcross * V;
  const int first_row =
      static_cast<int>(block / static_cast<unsigned>(p.tiles_across) % static_cast<unsigned>(p.tiles_down)) *
      Shape::kHeight;
  const int first_column = static_cast<int>(block % static_cast<unsigned>(p.tiles_across)) * Shape::kWidth;
  const int row = first_row + tile_row, column = first_column + tile_column;
  const bool inside = row < p.height && column < p.width;
  A* const weights = shared + (Shape::kHeight + 2 * p.halo_rows) * Shape::kPitch;

  A result[V] = {};
  for (int n = 0; n < p.image_count; ++n) {
    __syncthreads();  // every thread is done with the previous image
    load_tile<Shape, 1>(p, shared, batch, n, channel, first_row, first_column);
    for (int l = 0; l < p.level_count; ++l) {
      const HeadView<T>& level = p.levels[l];
      const T* hidden = level.hidden + batch * level.batch + n * level.image +
                        (row * static_cast<int>(level.row) + column * static_cast<int>(level.column));
      const A alpha = p.alphas[l * p.alpha_stride];
      with_size<false>(level.size, [&](auto size) {
        constexpr int K = decltype(size)::value;
        for (int first = 0; first <= level.maps; first += kMapsAtOnce<K, A>) {
          const int left = level.maps + 1 - first, count = left < kMapsAtOnce<K, A> ? left : kMapsAtOnce<K, A>;
          __syncthreads();  // every thread is done with the previous weights
          load_weights<K, Shape::kThreads>(level, alpha, first, count, weights);
          __syncthreads();
          if (!inside) continue;
          const A* origin = shared + (tile_row + p.halo_rows - K / 2) * Shape::kPitch + tile_column;
          add_maps<K, V>(origin, Shape::kPitch, weights, hidden + first * level.map, level.map, count, count == left,
                         result);
        }
      });
    }
  }
  if (!inside) return;
  const int64_t plane = static_cast<int64_t>(batch) * p.channels + channel;
  store_result<V>(p.output + (plane * p.height + row) * p.width + column, p.add_result, result);
}

template <class T> __device__ __forceinline__ void predict_and_fuse_direct(const Prediction<T>& p) {
  using A = Accumulate<T>;
  constexpr int C = kChannelsAtOnce;
  const int groups = (p.channels + C - 1) / C;
  const Position at = position_of_thread<Tile<T, 1>, 1>(p);
  const int batch = at.plane / groups, first_channel = at.plane % groups * C;
  if (at.row >= p.height || at.column >= p.width) return;

  A result[C][1] = {};
  for (int n = 0; n < p.image_count; ++n) {
    const T* image = p.images.data + batch * p.images.batch + n * p.images.image + first_channel * p.images.channel;
    for (int l = 0; l < p.level_count; ++l) {
      const HeadView<T>& level = p.levels[l];
      const T* hidden =
          level.hidden + batch * level.batch + n * level.image + at.row * level.row + at.column * level.column;
      const int radius = level.size / 2;
      A sum[C] = {};
      int64_t tap = 0;
      for (int i = -radius; i <= radius; ++i) {
        const int row = padded_index(at.row + i, p.height, p.padding);
        for (int j = -radius; j <= radius; ++j, ++tap) {
          const int column = padded_index(at.column + j, p.width, p.padding);
          A filter = widen(level.bias[tap]);
          for (int m = 0; m < level.maps; ++m)
            filter += widen(level.weight[tap * level.maps + m]) * widen(hidden[m * level.map]);
          const bool shown = row >= 0 && column >= 0;
          const T* pixel = image + (shown ? row * p.images.row + column * p.images.column : 0);
#pragma unroll
          for (int c = 0; c < C; ++c) {
            // Zero padding is a value like others: a filter that is not finite must show.
            if (first_channel + c < p.channels) sum[c] += filter * (shown ? widen(pixel[c * p.images.channel]) : A(0));
          }
        }
      }
      const A alpha = p.alphas[l * p.alpha_stride];
#pragma unroll
      for (int c = 0; c < C; ++c) result[c][0] += alpha * sum[c];
    }
  }
#pragma unroll
  for (int c = 0; c < C; ++c) {
    if (first_channel + c >= p.channels) break;
    const int64_t row = (static_cast<int64_t>(batch) * p.channels + first_channel + c) * p.height + at.row;
    store_result<1>(p.output + row * p.width + at.column, p.add_result, result[c]);
  }
}

}  // namespace ffmef::cuda
