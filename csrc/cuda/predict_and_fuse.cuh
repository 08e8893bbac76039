// Kernels of predict_and_fuse: filters are predicted from hidden maps by a 1x1 convolution and applied to the images,
// without ever being stored:
//   sum_j I_j (sum_m w_jm h_m + b_j)  =  sum_m h_m (sum_j w_jm I_j) + sum_j b_j I_j
// Bodies are device functions over a Prediction; predict_and_fuse.cu wraps them in kernels and chooses among them.
//
//   predict_and_fuse_tiled   k in {1, 3, 5, 7}, any M: the right-hand side, so that every hidden value is read once and
//                            used once; the pixels that a filter sees are in registers, weights in shared memory
//   predict_and_fuse_direct  any odd k, any size: the left-hand side, one tap at a time, shared by four channels
#pragma once

#include "adaptive_fuse.cuh"  // tiles, windows, views of images

#include <type_traits>

namespace ffmef::cuda {

template <class T> struct HeadView {
  const T* hidden;
  int64_t batch, image, map, row, column;  // strides of hidden in elements
  const T *weight, *bias;                  // (k * k, maps) and (k * k,), contiguous
  int size, maps;                          // k, M
  int place;                               // of the weights in shared memory, where they stay
};

// Everything a launch needs, passed by value.
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
  bool add_result;     // a further launch of a problem with more than kLevelsPerLaunch levels
  bool keeps_weights;  // of all levels, from the start on
};

// Pixels per thread, side by side, or below each other where each is loaded alone: few enough for the window of a 5 x 5
// filter to stay in registers.
template <class T> constexpr int kHeadVector = sizeof(Accumulate<T>) == 4 ? 4 : 1;
template <class T, int V> constexpr int kHeadRows = V > 1 || sizeof(T) == 8 ? 1 : sizeof(T) == 4 ? 4 : 3;
template <class T, int V> using HeadTile = Tile<T, V, kHeadRows<T, V>>;
template <int K, int V, int R, class A> constexpr bool kKeepsWindow = (R + K - 1) * (V + K - 1) * sizeof(A) <= 200;

// Hidden maps in flight while one is used. They arrive in shared memory, each thread's in its own places. Where a copy
// would move fewer than four bytes, or the GPU has no asynchronous copies, they arrive in registers instead.
template <class T, int V> constexpr bool kMapsInShared = V * sizeof(T) >= 4;
constexpr int kMapsAhead = 4;
template <class T, int V> constexpr int kMapsBytes =
    kMapsInShared<T, V> ? kMapsAhead * HeadTile<T, V>::kThreads * kHeadRows<T, V> * V * static_cast<int>(sizeof(T)) : 0;
// A window that does not stay in registers is read again for each map, which takes about as long as a load.
template <class T, int V, bool KeptWindow> constexpr int kMapsAheadInRegisters = !KeptWindow || V * sizeof(T) < 4 ? 1
                                                                                 : V > 1                          ? 3
                                                                                                                  : 2;

// Taps of one hidden map's filter in shared memory, padded so that 16 bytes are read at once.
template <int K, class A> constexpr int kTapPitch = K == 1 ? 1 : (K * K * sizeof(A) + 15) / 16 * 16 / sizeof(A);

constexpr int kWeightsBytes = 8 << 10;  // of shared memory: more maps than fit are taken in turn
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

// Elements of shared memory that a level's weights take: whole groups of 16 bytes, so the next level's are aligned too.
__host__ __device__ inline int64_t weights_elements(int size, int64_t maps, int element) {
  const int64_t group = 16 / element, taps = static_cast<int64_t>(size) * size;
  const int64_t pitch = size == 1 ? 1 : (taps + group - 1) / group * group;
  return ((maps + 1) * pitch + group - 1) / group * group;
}

// Maps in flight to a thread: `ask` for one, `close` after each, asked for or not, and `take` them in the same order.
template <class T, int V, int R, int Ahead> struct MapsInRegisters {
  static constexpr int kAhead = Ahead;
  Accumulate<T> values[Ahead][R][V];

  __device__ __forceinline__ explicit MapsInRegisters(unsigned char*) {}
  __device__ __forceinline__ void ask(int place, const T* hidden, const Rows<R>& rows) {
#pragma unroll
    for (int r = 0; r < R; ++r) load_once<V>(hidden + static_cast<unsigned>(rows.offsets[r]), values[place][r]);
  }
  __device__ __forceinline__ void close() {}
  __device__ __forceinline__ void take(int place, Accumulate<T> (&value)[R][V]) {
#pragma unroll
    for (int r = 0; r < R; ++r)
#pragma unroll
      for (int v = 0; v < V; ++v) value[r][v] = values[place][r][v];
  }
};

template <class T, int V, int R, int Threads> struct MapsInShared {
  static constexpr int kAhead = kMapsAhead, kBytes = V * static_cast<int>(sizeof(T));
  unsigned char* memory;

  __device__ __forceinline__ explicit MapsInShared(unsigned char* shared) : memory(shared + threadIdx.x * kBytes) {}
  __device__ __forceinline__ unsigned char* place_of(int place, int row) const {
    return memory + (place * R + row) * Threads * kBytes;
  }
  __device__ __forceinline__ void ask(int place, const T* hidden, const Rows<R>& rows) {
#pragma unroll
    for (int r = 0; r < R; ++r) copy_later<kBytes>(place_of(place, r), hidden + static_cast<unsigned>(rows.offsets[r]));
  }
  __device__ __forceinline__ void close() { end_group_of_copies(); }
  __device__ __forceinline__ void take(int place, Accumulate<T> (&value)[R][V]) {
    wait_for_copies<kAhead - 1>();
#pragma unroll
    for (int r = 0; r < R; ++r) {
      T elements[V];
      if constexpr (V == 1) {
        elements[0] = *reinterpret_cast<const T*>(place_of(place, r));
      } else {
        using Raw = typename RawBytes<kBytes>::type;
        const Raw raw = *reinterpret_cast<const Raw*>(place_of(place, r));
        memcpy(static_cast<void*>(elements), &raw, sizeof(raw));
      }
#pragma unroll
      for (int v = 0; v < V; ++v) value[r][v] = widen(elements[v]);
    }
  }
};

// One map: its value times its filter's response to the tile at `origin`.
template <int K, int V, int R, class A, int Down, int Across>
__device__ __forceinline__ void add_map(const A* origin, int pitch, const A* weights, const A (&value)[R][V],
                                        A (&window)[Down][Across], A (&result)[R][V]) {
  constexpr bool kKept = kKeepsWindow<K, V, R, A>;
  constexpr int kGroup = K == 1 ? 1 : 16 / static_cast<int>(sizeof(A));
  A response[R][V] = {};
#pragma unroll
  for (int first = 0; first < K * K; first += kGroup) {
    A taps[kGroup];
    load_taps(weights + first, taps);
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
      const int t = first + i;
      if (t >= K * K) break;
#pragma unroll
      for (int r = 0; r < R; ++r) {
        if (!kKept && t % K == 0) load_window<K / 2, V>(origin + (t / K + r) * pitch, window[r]);
#pragma unroll
        for (int v = 0; v < V; ++v) response[r][v] += taps[i] * window[(kKept ? t / K : 0) + r][t % K + v];
      }
    }
  }
#pragma unroll
  for (int r = 0; r < R; ++r)
#pragma unroll
    for (int v = 0; v < V; ++v) result[r][v] += value[r][v] * response[r][v];
}

// Adds what `count` maps contribute to a thread's pixels; the last of them is the bias where `with_bias`.
template <int K, int V, int R, int Threads, class T>
__device__ __forceinline__ void add_maps(const Accumulate<T>* origin, int pitch, const Accumulate<T>* weights,
                                         const T* hidden, const Rows<R>& rows, int64_t map_stride, int count,
                                         bool with_bias, unsigned char* shared, Accumulate<T> (&result)[R][V]) {
  using A = Accumulate<T>;
  constexpr bool kKept = kKeepsWindow<K, V, R, A>;
  using Maps = std::conditional_t<kMapsInShared<T, V> && kCopiesLater, MapsInShared<T, V, R, Threads>,
                                  MapsInRegisters<T, V, R, kMapsAheadInRegisters<T, V, kKept>>>;
  constexpr int kAhead = Maps::kAhead;
  const int maps = with_bias ? count - 1 : count;
  Maps under_way(shared);
#pragma unroll
  for (int d = 0; d < kAhead; ++d) {
    if (d < maps) under_way.ask(d, hidden + d * map_stride, rows);
    under_way.close();
  }
  const T* next = hidden + kAhead * map_stride;
  A window[kKept ? K + R - 1 : R][V + K - 1];
#pragma unroll
  for (int i = 0; kKept && i < K + R - 1; ++i) load_window<K / 2, V>(origin + i * pitch, window[i]);
#pragma unroll 1
  for (int first = 0; first < maps; first += kAhead) {
#pragma unroll
    for (int d = 0; d < kAhead; ++d) {
      const int m = first + d;
      if (m >= maps) continue;
      A value[R][V];
      under_way.take(d, value);
      add_map<K>(origin, pitch, weights, value, window, result);
      weights += kTapPitch<K, A>;
      // A map's place goes to the next one that is not in flight yet. Not before the map is used: in registers, the
      // next one would need a separate place, and moving it would mean waiting for it.
      if (m + kAhead < maps) under_way.ask(d, next, rows);
      under_way.close();
      next += map_stride;
    }
  }
  if (!with_bias) return;
  A one[R][V];
#pragma unroll
  for (int r = 0; r < R; ++r)
#pragma unroll
    for (int v = 0; v < V; ++v) one[r][v] = A(1);
  add_map<K>(origin, pitch, weights, one, window, result);
}

// Fills shared memory with the weights of all levels.
template <int Threads, class T>
__device__ __forceinline__ void load_all_weights(const Prediction<T>& p, Accumulate<T>* weights) {
  for (int l = 0; l < p.level_count; ++l) {
    const HeadView<T>& level = p.levels[l];
    with_size<false>(level.size, [&](auto size) {
      load_weights<decltype(size)::value, Threads>(level, p.alphas[l * p.alpha_stride], 0, level.maps + 1,
                                                   weights + level.place);
    });
  }
}

// `shared` holds the image's tile, then kWeightsBytes of weights, then kMapsBytes for maps in flight. The blocks of a
// tile's channels follow each other, so that later channels find the hidden maps in the cache.
template <class T, int V>
__device__ __forceinline__ void predict_and_fuse_tiled(const Prediction<T>& p, Accumulate<T>* shared) {
  using A = Accumulate<T>;
  using Shape = HeadTile<T, V>;
  constexpr int R = Shape::kRows;
  const unsigned channels = static_cast<unsigned>(p.channels), block = blockIdx.x / channels;
  const int channel = static_cast<int>(blockIdx.x % channels);
  const int batch = static_cast<int>(block / static_cast<unsigned>(p.tiles_across * p.tiles_down));
  const int tile_row = static_cast<int>(threadIdx.x) / Shape::kThreadsAcross * R;
  const int tile_column = static_cast<int>(threadIdx.x) % Shape::kThreadsAcross * V;
  const int first_row =
      static_cast<int>(block / static_cast<unsigned>(p.tiles_across) % static_cast<unsigned>(p.tiles_down)) *
      Shape::kHeight;
  const int first_column = static_cast<int>(block % static_cast<unsigned>(p.tiles_across)) * Shape::kWidth;
  const int row = first_row + tile_row, column = first_column + tile_column;
  const bool inside = row < p.height && column < p.width;
  A* const weights = shared + (Shape::kHeight + 2 * p.halo_rows) * Shape::kPitch;

  if (p.keeps_weights) load_all_weights<Shape::kThreads>(p, weights);
  A result[R][V] = {};
  for (int n = 0; n < p.image_count; ++n) {
    if (n > 0) __syncthreads();  // every thread is done with the previous image
    load_tile<Shape, 1>(p, shared, batch, n, channel, first_row, first_column);
    __syncthreads();
    for (int l = 0; l < p.level_count; ++l) {
      const HeadView<T>& level = p.levels[l];
      const T* hidden = level.hidden + batch * level.batch + n * level.image +
                        (row * static_cast<int>(level.row) + column * static_cast<int>(level.column));
      const Rows<R> rows(row, p.height, static_cast<int>(level.row));
      const A alpha = p.alphas[l * p.alpha_stride];
      with_size<false>(level.size, [&](auto size) {
        constexpr int K = decltype(size)::value;
        const A* origin = shared + (tile_row + p.halo_rows - K / 2) * Shape::kPitch + tile_column;
        for (int first = 0, count = 0; first <= level.maps; first += count) {
          const int left = level.maps + 1 - first;
          count = p.keeps_weights || left < kMapsAtOnce<K, A> ? left : kMapsAtOnce<K, A>;
          if (!p.keeps_weights) {
            __syncthreads();  // every thread is done with the previous weights
            load_weights<K, Shape::kThreads>(level, alpha, first, count, weights);
            __syncthreads();
          }
          if (!inside) continue;
          add_maps<K, V, R, Shape::kThreads>(origin, Shape::kPitch, weights + (p.keeps_weights ? level.place : 0),
                                             hidden + first * level.map, rows, level.map, count, count == left,
                                             reinterpret_cast<unsigned char*>(weights) + kWeightsBytes, result);
        }
      });
    }
  }
  if (!inside) return;
  const int64_t plane = static_cast<int64_t>(batch) * p.channels + channel;
#pragma unroll
  for (int r = 0; r < R; ++r)
    if (row + r < p.height)
      store_result<V>(p.output + (plane * p.height + row + r) * p.width + column, p.add_result, result[r]);
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
            // Zero padding is a value like any other: a filter that is not finite must show.
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
