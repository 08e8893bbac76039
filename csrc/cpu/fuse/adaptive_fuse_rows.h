// What the kernels of adaptive_fuse share: the division into items, padded image rows, products with rows of taps.
//
// The filters are far larger than anything else (k*k values per pixel and image), so every kernel reads or writes each
// filter value exactly once, a row of one tap at a time, and keeps the rest (padded image rows, sums) in cache. As with
// vec.h, only *_kernels.cpp files include this header. Calls with and without coarse levels are compiled separately,
// because the loops of one would otherwise change the code layout of the other.
#pragma once
#include "../base/buffer.h"
#include "../base/vec.h"
#include "adaptive_fuse.h"

namespace ffmef {
namespace FFMEF_ISA {
namespace {

constexpr int64_t kBandRows = 16;
// Elements to prefetch ahead of the read: the hardware does not follow so many streams at once.
constexpr int64_t kPrefetch = 256;
// Rows to which one tap is applied before the next, so that its plane is read in long runs.
constexpr int64_t kStripRows = 16;
constexpr int64_t kTileColumns = 1024;
constexpr int64_t kImageBufferBytes = 512 * 1024;

// Picks lanes of a and b by index; b's lanes are numbered after a's.
template <class V> inline V pick_of_two(V a, V b, V index) {
#if defined(__clang__)
  V out;
  constexpr int kLanes = int(sizeof(V) / sizeof(a[0]));
  for (int l = 0; l < kLanes; ++l) out[l] = int(index[l]) < kLanes ? a[int(index[l])] : b[int(index[l]) - kLanes];
  return out;
#else
  return __builtin_shuffle(a, b, index);
#endif
}

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

int largest_radius(const AdaptiveFuseArgs& args) {
  int radius = 0;
  for (int l = 0; l < args.level_count; ++l)
    radius = args.levels[l].size / 2 > radius ? args.levels[l].size / 2 : radius;
  return radius;
}

// How the output is cut into items: bands of rows, and tiles of columns narrow enough to keep their image rows cached.
struct Tiling {
  int64_t columns, tiles, bands;
};

template <class A> Tiling tiling_of(const AdaptiveFuseArgs& args) {
  const ImagesView& im = args.images;
  const int64_t halo = 2 * largest_radius(args);
  const int64_t column_bytes = im.count * im.channels * (kBandRows + halo) * int64_t(sizeof(A));
  Tiling t;
  t.columns = most(64, least(kTileColumns, kImageBufferBytes / column_bytes));
  t.tiles = (im.width + t.columns - 1) / t.columns;
  // Tiles of equal width (in whole vectors) instead of a sliver at the right.
  t.columns = ((im.width + t.tiles - 1) / t.tiles + 15) / 16 * 16;
  t.tiles = (im.width + t.columns - 1) / t.columns;
  t.bands = (im.height + kBandRows - 1) / kBandRows;
  return t;
}

struct Item {
  int64_t b, x0, x1, y0, y1;
};

inline Item item_at(const AdaptiveFuseArgs& args, const Tiling& t, int64_t index) {
  Item item;
  const int64_t band = index % t.bands;
  const int64_t tile = index / t.bands % t.tiles;
  item.b = index / t.bands / t.tiles;
  item.x0 = tile * t.columns;
  item.x1 = least(item.x0 + t.columns, args.images.width);
  item.y0 = band * kBandRows;
  item.y1 = least(item.y0 + kBandRows, args.images.height);
  return item;
}

// Loads n elements, at any stride, in the precision of sums.
template <class T> void load_row(Acc<T>* out, const T* row, int64_t stride, int64_t n) {
  int64_t x = 0;
  if (stride == 1)
    for (; x + lanes<T> <= n; x += lanes<T>) store(out + x, load(row + x));
  for (; x < n; ++x) out[x] = to_acc(row[x * stride]);
}

// Runs `call` with T as the storage type among those whose sums are kept in A.
#define FFMEF_STORED_AS(A, scalar, ...)                              \
  if constexpr (sizeof(A) == sizeof(double)) {                       \
    using T = double;                                                \
    __VA_ARGS__;                                                     \
  } else {                                                           \
    switch (scalar) {                                                \
      case Scalar::f16: { using T = Half; __VA_ARGS__; break; }      \
      case Scalar::bf16: { using T = BFloat16; __VA_ARGS__; break; } \
      default: { using T = float; __VA_ARGS__; break; }              \
    }                                                                \
  }

template <class T> inline T* at(void* data, int64_t offset) { return static_cast<T*>(data) + offset; }
template <class T> inline const T* at(const void* data, int64_t offset) { return static_cast<const T*>(data) + offset; }

// The same for a tensor, from element `offset` on.
template <class A>
void load_stored(A* out, const void* data, Scalar scalar, int64_t offset, int64_t stride, int64_t n) {
  FFMEF_STORED_AS(A, scalar, load_row(out, at<T>(data, offset), stride, n))
}

template <class A> void store_stored(void* data, Scalar scalar, int64_t offset, const A* row, int64_t n) {
  FFMEF_STORED_AS(A, scalar, {
    T* out = at<T>(data, offset);
    int64_t x = 0;
    for (; x + lanes<A> <= n; x += lanes<A>) store(out + x, load(row + x));
    for (; x < n; ++x) from_acc(row[x], out[x]);
  })
}

template <size_t Bytes> struct BitsOf {
  typedef uint16_t type __attribute__((may_alias));
};
template <> struct BitsOf<4> {
  typedef uint32_t type __attribute__((may_alias));
};
template <> struct BitsOf<8> {
  typedef uint64_t type __attribute__((may_alias));
};

// Taps that turn_block transposes at once.
template <class Bits> constexpr int kTurned = sizeof(Bits) == 2 ? 8 : 4;

// out[t * pitch + x] = in[x * stride + t] for kTurned taps. Returns the number of pixels.
template <class Bits> inline int turn_block(Bits* out, int64_t pitch, const Bits* in, int64_t stride) {
  constexpr int kSide = kTurned<Bits>;
  typedef Bits Side __attribute__((vector_size(kSide * sizeof(Bits)), may_alias));
#if defined(__AVX512F__)
  if constexpr (sizeof(Bits) == 4) {
    __m512 rows[4];
    const float* row = reinterpret_cast<const float*>(in);
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r, row += stride) {
      rows[r] = _mm512_castps128_ps512(_mm_loadu_ps(row));
      rows[r] = _mm512_insertf32x4(rows[r], _mm_loadu_ps(row + 4 * stride), 1);
      rows[r] = _mm512_insertf32x4(rows[r], _mm_loadu_ps(row + 8 * stride), 2);
      rows[r] = _mm512_insertf32x4(rows[r], _mm_loadu_ps(row + 12 * stride), 3);
    }
    const __m512d a = _mm512_castps_pd(_mm512_unpacklo_ps(rows[0], rows[1]));
    const __m512d b = _mm512_castps_pd(_mm512_unpackhi_ps(rows[0], rows[1]));
    const __m512d c = _mm512_castps_pd(_mm512_unpacklo_ps(rows[2], rows[3]));
    const __m512d d = _mm512_castps_pd(_mm512_unpackhi_ps(rows[2], rows[3]));
    _mm512_storeu_pd(out, _mm512_unpacklo_pd(a, c));
    _mm512_storeu_pd(out + pitch, _mm512_unpackhi_pd(a, c));
    _mm512_storeu_pd(out + 2 * pitch, _mm512_unpacklo_pd(b, d));
    _mm512_storeu_pd(out + 3 * pitch, _mm512_unpackhi_pd(b, d));
    return 16;
  }
#endif
  Side rows[kSide];
  for (int r = 0; r < kSide; ++r) std::memcpy(&rows[r], in + r * stride, sizeof(Side));
  Side low, high;
  if constexpr (kSide == 8) {
    low = Side{0, 8, 1, 9, 2, 10, 3, 11};
    high = Side{4, 12, 5, 13, 6, 14, 7, 15};
  } else {
    low = Side{0, 4, 1, 5};
    high = Side{2, 6, 3, 7};
  }
  // Each round interleaves every row of the first half with its counterpart in the second.
#pragma GCC unroll 3
  for (int round = 1; round < kSide; round *= 2) {
    Side next[kSide];
#pragma GCC unroll 4
    for (int r = 0; r < kSide / 2; ++r) {
      next[2 * r] = pick_of_two(rows[r], rows[r + kSide / 2], low);
      next[2 * r + 1] = pick_of_two(rows[r], rows[r + kSide / 2], high);
    }
    std::memcpy(rows, next, sizeof rows);
  }
  for (int r = 0; r < kSide; ++r) std::memcpy(out + r * pitch, &rows[r], sizeof(Side));
  return kSide;
}

// Pixels that turn_block transposes at once.
template <class Bits> constexpr int64_t kTurnedPixels =
    sizeof(Bits) == 4 && FFMEF_VECTOR_BYTES == 64 ? 16 : kTurned<Bits>;

// out[t][x] = in[x][t], with rows of `out` pitch apart and those of `in` stride apart. For a convolution's filters in
// channels_last, whose taps are adjacent in memory.
template <class Bits>
void transpose_taps(Bits* out, int64_t pitch, const Bits* in, int64_t stride, int64_t taps, int64_t n) {
  constexpr int64_t kPixels = kTurnedPixels<Bits>;
  // Prefetches far enough ahead for memory to answer in time: pixels are too far apart for the hardware prefetcher.
  constexpr int64_t kLine = 64, kAhead = 8192;
  const int64_t ahead = most(kAhead / (most(stride, 1) * int64_t(sizeof(Bits))), kPixels) * stride;
  int64_t x = 0;
  for (; x + kPixels <= n; x += kPixels, in += kPixels * stride) {
    for (int64_t r = 0; r < kPixels; ++r) {
      const char* next = reinterpret_cast<const char*>(in + r * stride + ahead);
      for (int64_t byte = 0; byte < taps * int64_t(sizeof(Bits)); byte += kLine) __builtin_prefetch(next + byte);
    }
    int64_t t = 0;
    for (; t + kTurned<Bits> <= taps; t += kTurned<Bits>) turn_block(out + t * pitch + x, pitch, in + t, stride);
    if (t > 0 && t < taps) {  // overlaps the last block: whole vectors are read back at once
      turn_block(out + (taps - kTurned<Bits>)*pitch + x, pitch, in + taps - kTurned<Bits>, stride);
      continue;
    }
    for (; t < taps; ++t)
      for (int64_t r = 0; r < kPixels; ++r) out[t * pitch + x + r] = in[r * stride + t];
  }
  for (; x < n; ++x, in += stride)
    for (int64_t t = 0; t < taps; ++t) out[t * pitch + x] = in[t];
}

// Row y of one plane in the precision of sums: columns [x0 - radius, x1 + radius) with padding resolved, then zeros up
// to pitch. Vectors at the right end read past the halo. Their lanes are dropped but must not trap on NaN.
template <class T> void fill_row_typed(Acc<T>* out, const T* plane, const ImagesView& im, Padding padding, int64_t y,
                                       int64_t x0, int64_t x1, int64_t radius, int64_t pitch) {
  const int64_t sy = padded_index(y, im.height, padding);
  if (sy < 0) {
    std::memset(out, 0, size_t(pitch) * sizeof(Acc<T>));
    return;
  }
  const T* source = plane + sy * im.stride[3];
  const int64_t first = most(x0 - radius, 0), last = least(x1 + radius, im.width);
  load_row(out + (first - x0 + radius), source + first * im.stride[4], im.stride[4], last - first);
  for (int64_t x = x0 - radius; x < first; ++x) {
    const int64_t sx = padded_index(x, im.width, padding);
    out[x - x0 + radius] = sx < 0 ? Acc<T>(0) : to_acc(source[sx * im.stride[4]]);
  }
  for (int64_t x = last; x < x1 + radius; ++x) {
    const int64_t sx = padded_index(x, im.width, padding);
    out[x - x0 + radius] = sx < 0 ? Acc<T>(0) : to_acc(source[sx * im.stride[4]]);
  }
  for (int64_t x = x1 - x0 + 2 * radius; x < pitch; ++x) out[x] = Acc<T>(0);
}

// The same for the plane at `offset` in the images.
template <class A> void fill_row(A* out, const ImagesView& im, int64_t offset, Padding padding, int64_t y, int64_t x0,
                                 int64_t x1, int64_t radius, int64_t pitch) {
  FFMEF_STORED_AS(A, im.scalar, fill_row_typed(out, at<T>(im.data, offset), im, padding, y, x0, x1, radius, pitch))
}

inline int64_t plane_of(const ImagesView& im, int64_t b, int64_t n, int64_t c) {
  return b * im.stride[0] + n * im.stride[1] + c * im.stride[2];
}

// The padded image rows of one item, for all images and channels, in the precision of sums.
template <class A> struct PaddedRows {
  int64_t radius, pitch, rows;
  Buffer<A> buffer;

  static int64_t pitch_of(const Tiling& t, int64_t radius) { return t.columns + 2 * radius + lanes<A>; }
  PaddedRows(const AdaptiveFuseArgs& args, const Tiling& t)
      : radius(largest_radius(args)),
        pitch(pitch_of(t, radius)),
        rows(kBandRows + 2 * radius),
        buffer(args.images.count * args.images.channels * rows * pitch) {}

  // Row y of the image (from y0 - radius on). Its element [x - x0] is column x - radius.
  const A* row(const Item& item, int64_t plane, int64_t y) const {
    return buffer.data + (plane * rows + (y - item.y0 + radius)) * pitch;
  }

  void fill(const AdaptiveFuseArgs& args, const Item& item) {
    const ImagesView& im = args.images;
    for (int64_t n = 0; n < im.count; ++n)
      for (int64_t c = 0; c < im.channels; ++c) {
        A* out = buffer.data + (n * im.channels + c) * rows * pitch;
        for (int64_t y = item.y0 - radius; y < item.y1 + radius; ++y, out += pitch)
          fill_row(out, im, plane_of(im, item.b, n, c), args.padding, y, item.x0, item.x1, radius, pitch);
      }
  }
};

// sum[x] += sum_j filter_j[x] * image[x + j], one row of k taps at a time. K = 0: the size is known only at run time.
template <class T, int K>
void add_taps(Acc<T>* sum, const T* const* filters, const Acc<T>* image, int size, int64_t n) {
  const int k = K ? K : size;
  int64_t x = 0;
  for (; x + lanes<T> <= n; x += lanes<T>) {
    Vec<T> s = load(sum + x);
    for (int j = 0; j < k; ++j) {
      __builtin_prefetch(filters[j] + x + kPrefetch);
      s += load(filters[j] + x) * load(image + x + j);
    }
    store(sum + x, s);
  }
  if (x < n) {
    Vec<T> s = load_part(sum + x, n - x);
    for (int j = 0; j < k; ++j) s += load_part(filters[j] + x, n - x) * load(image + x + j);
    store_part(sum + x, s, n - x);
  }
}

template <class T> void add_tap_row(Acc<T>* sum, const T* const* filters, const Acc<T>* image, int size, int64_t n) {
  switch (size) {
    case 1: return add_taps<T, 1>(sum, filters, image, size, n);
    case 3: return add_taps<T, 3>(sum, filters, image, size, n);
    case 5: return add_taps<T, 5>(sum, filters, image, size, n);
    case 7: return add_taps<T, 7>(sum, filters, image, size, n);
    default: return add_taps<T, 0>(sum, filters, image, size, n);
  }
}

inline int64_t tap_offset(const LevelView& level, int64_t b, int64_t n, int64_t tap, int64_t y, int64_t x) {
  return b * level.stride[0] + n * level.stride[1] + tap * level.stride[2] + y * level.stride[3] + x * level.stride[4];
}

// Whether rows of taps can be read in place.
inline bool in_rows(const LevelView& level) { return level.stride[4] == 1; }

// Columns of filters rearranged into rows at a time: few enough for the first-level cache.
constexpr int64_t kTurnedColumns = 64;

// Rearranges `taps` taps, from `first` on, into rows of `out`, which are pitch apart.
template <class T> void turn_taps(T* out, int64_t pitch, const LevelView& level, int64_t b, int64_t n, int64_t first,
                                  int64_t taps, int64_t y, int64_t x, int64_t count) {
  const T* in = at<T>(level.data, tap_offset(level, b, n, first, y, x));
  const int64_t across = level.stride[4], to_next = level.stride[2];
  if (to_next == 1) {
    using Bits = typename BitsOf<sizeof(T)>::type;
    return transpose_taps(reinterpret_cast<Bits*>(out), pitch, reinterpret_cast<const Bits*>(in), across, taps, count);
  }
  for (int64_t t = 0; t < taps; ++t)
    for (int64_t i = 0; i < count; ++i) out[t * pitch + i] = in[t * to_next + i * across];
}

// Calls work(i, x, count, filters) for every row i of taps at image row y and columns [x0, x0 + width), in order of i
// at each column. filters[j] is the row of tap i * k + j from column x0 + x on.
template <class T, class Work> void over_tap_rows(const LevelView& level, int64_t b, int64_t n, int64_t y, int64_t x0,
                                                  int64_t width, T* scratch, const Work& work) {
  const int size = level.size;
  const T* filters[kMaxFilterSize];
  if (in_rows(level)) {
    for (int i = 0; i < size; ++i) {
      for (int j = 0; j < size; ++j) filters[j] = at<T>(level.data, tap_offset(level, b, n, i * size + j, y, x0));
      work(i, int64_t(0), width, filters);
    }
    return;
  }
  for (int64_t x = 0; x < width; x += kTurnedColumns) {
    const int64_t count = least(kTurnedColumns, width - x);
    turn_taps(scratch, kTurnedColumns, level, b, n, 0, int64_t(size) * size, y, x0 + x, count);
    for (int i = 0; i < size; ++i) {
      for (int j = 0; j < size; ++j) filters[j] = scratch + (i * size + j) * kTurnedColumns;
      work(i, x, count, filters);
    }
  }
}

// Elements needed to rearrange the taps of the largest level that is not in rows.
inline int64_t turned_values(const AdaptiveFuseArgs& args) {
  int64_t values = 0;
  for (int l = 0; l < args.level_count; ++l)
    if (!in_rows(args.levels[l]))
      values = most(values, int64_t(args.levels[l].size) * args.levels[l].size * kTurnedColumns);
  return values;
}

// A call without coarse levels.
struct NoCoarseLevels {
  static constexpr bool kAny = false;
  NoCoarseLevels(const AdaptiveFuseArgs&, int64_t) {}
};

// Adds a full-resolution level to the sums of image rows [y0, y1) of an item, all channels.
template <class T, class A> void add_level(const AdaptiveFuseArgs& args, const LevelView& level,
                                           const PaddedRows<A>& padded, const Item& item, int64_t y0, int64_t y1,
                                           A* sums, int64_t row_values, int64_t columns, T* scratch) {
  const ImagesView& im = args.images;
  const int64_t width = item.x1 - item.x0;
  const int size = level.size, radius = size / 2;
  auto add_row = [&](int64_t n, int64_t y, int i, int64_t x, int64_t count, const T* const* filters) {
    for (int64_t c = 0; c < im.channels; ++c)
      add_tap_row<T>(sums + (y - y0) * row_values + c * columns + x, filters,
                     padded.row(item, n * im.channels + c, y + i - radius) + padded.radius - radius + x, size, count);
  };
  for (int64_t n = 0; n < im.count; ++n) {
    if (!in_rows(level)) {
      for (int64_t y = y0; y < y1; ++y)
        over_tap_rows(
            level, item.b, n, y, item.x0, width, scratch,
            [&](int i, int64_t x, int64_t count, const T* const* filters) { add_row(n, y, i, x, count, filters); });
      continue;
    }
    // Rows are the inner loop, so each tap's plane is read in runs that the hardware prefetches.
    for (int i = 0; i < size; ++i)
      for (int64_t y = y0; y < y1; ++y) {
        const T* filters[kMaxFilterSize];
        for (int j = 0; j < size; ++j)
          filters[j] = at<T>(level.data, tap_offset(level, item.b, n, i * size + j, y, item.x0));
        add_row(n, y, i, 0, width, filters);
      }
  }
}

// total += alpha * sum, or total = alpha * sum for the first. Written in vectors, because a compiler that unrolls or
// peels a loop may round some of its elements differently.
template <class A> inline void add_scaled(A* total, const A* sum, A alpha, bool first, int64_t n) {
  const auto at = [&](auto read, int64_t x) __attribute__((always_inline)) {
    return (first ? splat(A(0)) : read(total + x)) + splat(alpha) * read(sum + x);
  };
  int64_t x = 0;
  for (; x + lanes<A> <= n; x += lanes<A>) store(total + x, at([](const A* p) { return load(p); }, x));
  if (x < n) store_part(total + x, at([&](const A* p) { return load_part(p, n - x); }, x), n - x);
}

// totals += alpha * sums in rows [y0, y1) of an item. Also writes the sums to responses.
template <class A> void add_response(const AdaptiveFuseArgs& args, int l, const Item& item, int64_t y0, int64_t y1,
                                     int64_t columns, const A* sums, A* totals, A* responses) {
  const ImagesView& im = args.images;
  const int64_t width = item.x1 - item.x0;
  const A alpha = A(args.levels[l].alpha);
  for (int64_t y = y0; y < y1; ++y)
    for (int64_t c = 0; c < im.channels; ++c) {
      const int64_t row = ((y - y0) * im.channels + c) * columns;
      add_scaled(totals + row, sums + row, alpha, l == 0, width);
      if (responses != nullptr)
        std::memcpy(responses + (((l * im.batch + item.b) * im.channels + c) * im.height + y) * im.width + item.x0,
                    sums + row, size_t(width) * sizeof(A));
    }
}

// Coarse adds levels on a coarser grid to the sums; it is NoCoarseLevels for calls without any.
template <class Coarse, class A>
void forward_typed(const AdaptiveFuseArgs& args, void* out, A* responses, int64_t begin, int64_t end) {
  const ImagesView& im = args.images;
  const Tiling tiling = tiling_of<A>(args);
  PaddedRows<A> padded(args, tiling);
  const int64_t turned = turned_values(args);
  // Adjacent taps share cache lines with those of other levels and images: one row at a time keeps them cached.
  const int64_t strip_rows = turned > 0 ? 1 : kStripRows;
  const int64_t row_values = im.channels * tiling.columns, strip_values = strip_rows * row_values;
  Buffer<A> sums(strip_values), totals(strip_values), scratch(turned);
  Coarse coarse(args, tiling.columns);
  for (int64_t index = begin; index < end; ++index) {
    const Item item = item_at(args, tiling, index);
    const int64_t width = item.x1 - item.x0;
    padded.fill(args, item);
    for (int64_t y0 = item.y0; y0 < item.y1; y0 += strip_rows) {
      const int64_t y1 = least(y0 + strip_rows, item.y1);
      for (int l = 0; l < args.level_count; ++l) {
        const LevelView& level = args.levels[l];
        std::memset(sums.data, 0, size_t((y1 - y0) * row_values) * sizeof(A));
        if constexpr (Coarse::kAny)
          if (level.coarse) coarse.add(args, l, padded, item, y0, y1, sums.data, row_values, tiling.columns);
        if (!(Coarse::kAny && level.coarse)) {
          FFMEF_STORED_AS(A, level.scalar,
                          add_level(args, level, padded, item, y0, y1, sums.data, row_values, tiling.columns,
                                    reinterpret_cast<T*>(scratch.data)))
        }
        add_response(args, l, item, y0, y1, tiling.columns, sums.data, totals.data, responses);
      }
      for (int64_t y = y0; y < y1; ++y)
        for (int64_t c = 0; c < im.channels; ++c)
          store_stored(out, args.result, ((item.b * im.channels + c) * im.height + y) * im.width + item.x0,
                       totals.data + (y - y0) * row_values + c * tiling.columns, width);
    }
  }
}

// padded[u] += sum_j grad[u - j] * filter_j[u - j]: the gradient that one row of outputs passes back to the padded row
// it read.
template <class T, int K>
void gather_taps(Acc<T>* padded, const Acc<T>* grad, const T* const* filters, int size, int64_t n) {
  const int k = K ? K : size;
  int64_t u = 0;
  auto one = [&](int64_t at) {
    Acc<T> s = padded[at];
    for (int j = 0; j < k; ++j)
      if (at - j >= 0 && at - j < n) s += grad[at - j] * to_acc(filters[j][at - j]);
    padded[at] = s;
  };
  for (; u < least(k - 1, n + k - 1); ++u) one(u);
  for (; u + lanes<T> <= n; u += lanes<T>) {
    Vec<T> s = load(padded + u);
    for (int j = 0; j < k; ++j) s += load(grad + u - j) * load(filters[j] + u - j);
    store(padded + u, s);
  }
  for (; u < n + k - 1; ++u) one(u);
}

template <class T>
void gather_tap_row(Acc<T>* padded, const Acc<T>* grad, const T* const* filters, int size, int64_t n) {
  switch (size) {
    case 1: return gather_taps<T, 1>(padded, grad, filters, size, n);
    case 3: return gather_taps<T, 3>(padded, grad, filters, size, n);
    case 5: return gather_taps<T, 5>(padded, grad, filters, size, n);
    case 7: return gather_taps<T, 7>(padded, grad, filters, size, n);
    default: return gather_taps<T, 0>(padded, grad, filters, size, n);
  }
}

// Adds the gradient of a padded row, which begins at from - radius, to that of the image's row.
template <class A> void fold_row(A* to, const A* from, int64_t width, int64_t radius, Padding padding) {
  for (int64_t x = 0; x < width; ++x) to[x] += from[x];
  if (padding == Padding::zeros) return;
  for (int64_t x = -radius; x < 0; ++x) to[padded_index(x, width, padding)] += from[x];
  for (int64_t x = width; x < width + radius; ++x) to[padded_index(x, width, padding)] += from[x];
}

// Coarse expands filters on a coarser grid to rows.
template <class Coarse, class A> void backward_images_typed(const AdaptiveFuseArgs& args, const GradView& grad,
                                                            void* image_grad, int64_t begin, int64_t end) {
  const ImagesView& im = args.images;
  const int64_t radius = largest_radius(args), bands = (im.height + kBandRows - 1) / kBandRows;
  Buffer<A> padded(im.channels * (im.width + 2 * radius)), total(im.channels * im.width), scaled(im.width);
  Buffer<A> scratch(kMaxFilterSize * im.width);
  const Coarse coarse(args, im.width);
  for (int64_t index = begin; index < end; ++index) {
    const int64_t band = index % bands, n = index / bands % im.count, b = index / bands / im.count;
    for (int64_t p = band * kBandRows; p < least((band + 1) * kBandRows, im.height); ++p) {
      std::memset(total.data, 0, size_t(im.channels * im.width) * sizeof(A));
      // Every padded row that reads image row p. Away from the borders that is only p.
      const bool inside = p > radius && p < im.height - 1 - radius;
      for (int64_t r = inside ? p : -radius; r < (inside ? p + 1 : im.height + radius); ++r) {
        if (padded_index(r, im.height, args.padding) != p) continue;
        std::memset(padded.data, 0, size_t(im.channels * (im.width + 2 * radius)) * sizeof(A));
        // Output rows q whose taps read padded row r, in order, as adjoining_taps.h must visit them.
        for (int64_t q = most(r - radius, 0); q < least(r + radius + 1, im.height); ++q) {
          for (int l = 0; l < args.level_count; ++l) {
            const LevelView& level = args.levels[l];
            const int size = level.size, level_radius = size / 2;
            const int i = int(r - q) + level_radius;
            if (i < 0 || i >= size) continue;
            const A* const* expanded = nullptr;
            if constexpr (Coarse::kAny)
              if (level.coarse) expanded = coarse.rows(args, l, b, n, i * size, q);
            for (int64_t c = 0; c < im.channels; ++c) {
              load_stored(scaled.data, grad.data, args.result,
                          b * grad.stride[0] + c * grad.stride[1] + q * grad.stride[2], grad.stride[3], im.width);
              for (int64_t x = 0; x < im.width; ++x) scaled.data[x] *= A(level.alpha);
              A* to = padded.data + c * (im.width + 2 * radius) + radius - level_radius;
              if (Coarse::kAny && level.coarse) {
                gather_tap_row<A>(to, scaled.data, expanded, size, im.width);
                continue;
              }
              FFMEF_STORED_AS(A, level.scalar, {
                T* turned = reinterpret_cast<T*>(scratch.data);
                const T* filters[kMaxFilterSize];
                if (!in_rows(level) && c == 0) turn_taps(turned, im.width, level, b, n, i * size, size, q, 0, im.width);
                for (int j = 0; j < size; ++j)
                  filters[j] = in_rows(level) ? at<T>(level.data, tap_offset(level, b, n, i * size + j, q, 0))
                                              : turned + j * im.width;
                gather_tap_row<T>(to, scaled.data, filters, size, im.width);
              })
            }
          }
        }
        for (int64_t c = 0; c < im.channels; ++c)
          fold_row(total.data + c * im.width, padded.data + c * (im.width + 2 * radius) + radius, im.width, radius,
                   args.padding);
      }
      for (int64_t c = 0; c < im.channels; ++c) {
        store_stored(image_grad, im.scalar, (((b * im.count + n) * im.channels + c) * im.height + p) * im.width,
                     total.data + c * im.width, im.width);
      }
    }
  }
}

}  // namespace
}  // namespace FFMEF_ISA
}  // namespace ffmef
