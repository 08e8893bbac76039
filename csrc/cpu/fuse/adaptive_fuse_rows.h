// What the kernels of adaptive_fuse share, row by row: the cut into items, padded image rows, products with rows of taps.
//
// The filters are far larger than anything else (k*k values a pixel and image), so every kernel reads or writes each
// filter value exactly once, a row of one tap at a time, and keeps the rest (padded image rows, sums) in cache.
// Only *_kernels.cpp files include it, like vec.h; calls with and without coarse levels are compiled apart, so that the
// loops of the one are laid out as if the other did not exist.
#pragma once
#include "../base/buffer.h"
#include "../base/vec.h"
#include "adaptive_fuse.h"

namespace ffmef {
namespace FFMEF_ISA {
namespace {

constexpr int64_t kBandRows = 16;
// Elements ahead of the read: several streams at once are more than the hardware foresees alone.
constexpr int64_t kPrefetch = 256;
// Rows that one tap is applied to before the next, so that its plane is read in long runs.
constexpr int64_t kStripRows = 16;
constexpr int64_t kTileColumns = 1024;
constexpr int64_t kImageBufferBytes = 512 * 1024;

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

int largest_radius(const AdaptiveFuseArgs& args) {
  int radius = 0;
  for (int l = 0; l < args.level_count; ++l)
    radius = args.levels[l].size / 2 > radius ? args.levels[l].size / 2 : radius;
  return radius;
}

// How the output is cut into items: bands of rows, tiles of columns narrow enough for their image rows to stay cached.
struct Tiling {
  int64_t columns, tiles, bands;
};

template <class T> Tiling tiling_of(const AdaptiveFuseArgs& args) {
  const ImagesView& im = args.images;
  const int64_t halo = 2 * largest_radius(args);
  const int64_t column_bytes = im.count * im.channels * (kBandRows + halo) * int64_t(sizeof(Acc<T>));
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

// n elements, any stride, to sums' precision.
template <class T> void load_row(Acc<T>* out, const T* row, int64_t stride, int64_t n) {
  int64_t x = 0;
  if (stride == 1)
    for (; x + lanes<T> <= n; x += lanes<T>) store(out + x, load(row + x));
  for (; x < n; ++x) out[x] = to_acc(row[x * stride]);
}

// Rows of filters or gradients that can be read where they are, or a copy of them that can.
template <class T> inline const T* contiguous_row(const T* row, int64_t stride, int64_t n, T* scratch) {
  if (stride == 1) return row;
  for (int64_t x = 0; x < n; ++x) scratch[x] = row[x * stride];
  return scratch;
}

// Row y of one plane at sums' precision, columns [x0 - radius, x1 + radius), padding resolved, and zeros up to pitch:
// vectors at the right end read past the halo; their lanes are dropped, but must not be NaN traps.
template <class T> void fill_row(Acc<T>* out, const T* plane, const ImagesView& im, Padding padding, int64_t y,
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

// The padded image rows of one item, all images and channels, at sums' precision.
template <class T> struct PaddedRows {
  int64_t radius, pitch, rows;
  Buffer<Acc<T>> buffer;

  static int64_t pitch_of(const Tiling& t, int64_t radius) { return t.columns + 2 * radius + lanes<T>; }
  PaddedRows(const AdaptiveFuseArgs& args, const Tiling& t)
      : radius(largest_radius(args)),
        pitch(pitch_of(t, radius)),
        rows(kBandRows + 2 * radius),
        buffer(args.images.count * args.images.channels * rows * pitch) {}

  // Row y (of the image, from y0 - radius on) so that element [x - x0] is column x - radius.
  const Acc<T>* row(const Item& item, int64_t plane, int64_t y) const {
    return buffer.data + (plane * rows + (y - item.y0 + radius)) * pitch;
  }

  void fill(const AdaptiveFuseArgs& args, const Item& item) {
    const ImagesView& im = args.images;
    for (int64_t n = 0; n < im.count; ++n)
      for (int64_t c = 0; c < im.channels; ++c) {
        const T* plane = static_cast<const T*>(im.data) + item.b * im.stride[0] + n * im.stride[1] + c * im.stride[2];
        Acc<T>* out = buffer.data + (n * im.channels + c) * rows * pitch;
        for (int64_t y = item.y0 - radius; y < item.y1 + radius; ++y, out += pitch) {
          fill_row(out, plane, im, args.padding, y, item.x0, item.x1, radius, pitch);
        }
      }
  }
};

// sum[x] += sum_j filter_j[x] * image[x + j], one row of k taps at a time. K = 0: the size is known at run time only.
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

template <class T> const T* tap_row(const LevelView& level, int64_t b, int64_t n, int64_t tap, int64_t y, int64_t x) {
  return static_cast<const T*>(level.data) + b * level.stride[0] + n * level.stride[1] + tap * level.stride[2] +
         y * level.stride[3] + x * level.stride[4];
}

// A call without coarse levels.
struct NoCoarseLevels {
  static constexpr bool kAny = false;
  NoCoarseLevels(const AdaptiveFuseArgs&, int64_t) {}
};

// Coarse adds what levels on a coarser grid give to sums: NoCoarseLevels for calls without any.
template <class Coarse, class T>
void forward_typed(const AdaptiveFuseArgs& args, T* out, Acc<T>* responses, int64_t begin, int64_t end) {
  using A = Acc<T>;
  const ImagesView& im = args.images;
  const Tiling tiling = tiling_of<T>(args);
  PaddedRows<T> padded(args, tiling);
  const int64_t row_values = im.channels * tiling.columns, strip_values = kStripRows * row_values;
  Buffer<A> sums(strip_values), totals(strip_values);
  Buffer<T> scratch(int64_t(kMaxFilterSize) * tiling.columns);
  Coarse coarse(args, tiling.columns);
  for (int64_t index = begin; index < end; ++index) {
    const Item item = item_at(args, tiling, index);
    const int64_t width = item.x1 - item.x0;
    padded.fill(args, item);
    for (int64_t y0 = item.y0; y0 < item.y1; y0 += kStripRows) {
      const int64_t y1 = least(y0 + kStripRows, item.y1);
      for (int l = 0; l < args.level_count; ++l) {
        const LevelView& level = args.levels[l];
        const int size = level.size, radius = size / 2;
        std::memset(sums.data, 0, size_t(strip_values) * sizeof(A));
        if constexpr (Coarse::kAny)
          if (level.coarse) coarse.add(args, l, padded, item, y0, y1, sums.data, row_values, tiling.columns);
        // Rows inside taps, so that each tap's plane is read in runs that the hardware foresees.
        for (int64_t n = 0; !(Coarse::kAny && level.coarse) && n < im.count; ++n)
          for (int i = 0; i < size; ++i)
            for (int64_t y = y0; y < y1; ++y) {
              const T* filters[kMaxFilterSize];
              for (int j = 0; j < size; ++j)
                filters[j] = contiguous_row(tap_row<T>(level, item.b, n, i * size + j, y, item.x0), level.stride[4],
                                            width, scratch.data + j * tiling.columns);
              for (int64_t c = 0; c < im.channels; ++c)
                add_tap_row(sums.data + (y - y0) * row_values + c * tiling.columns, filters,
                            padded.row(item, n * im.channels + c, y + i - radius) + padded.radius - radius, size,
                            width);
            }
        const A alpha = A(level.alpha);
        for (int64_t x = 0; x < (y1 - y0) * row_values; ++x)
          totals.data[x] = (l ? totals.data[x] : A(0)) + alpha * sums.data[x];
        for (int64_t y = y0; responses != nullptr && y < y1; ++y)
          for (int64_t c = 0; c < im.channels; ++c)
            std::memcpy(responses + (((l * im.batch + item.b) * im.channels + c) * im.height + y) * im.width + item.x0,
                        sums.data + (y - y0) * row_values + c * tiling.columns, size_t(width) * sizeof(A));
      }
      for (int64_t y = y0; y < y1; ++y)
        for (int64_t c = 0; c < im.channels; ++c) {
          T* row = out + ((item.b * im.channels + c) * im.height + y) * im.width + item.x0;
          const A* total = totals.data + (y - y0) * row_values + c * tiling.columns;
          int64_t x = 0;
          for (; x + lanes<T> <= width; x += lanes<T>) store(row + x, load(total + x));
          for (; x < width; ++x) from_acc(total[x], row[x]);
        }
    }
  }
}

// padded[u] += sum_j grad[u - j] * filter_j[u - j]: what the outputs of one row give back to the padded row they read.
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

// Coarse makes rows of filters that are given on a coarser grid.
template <class Coarse, class T> void backward_images_typed(const AdaptiveFuseArgs& args, const GradView& grad,
                                                            T* image_grad, int64_t begin, int64_t end) {
  using A = Acc<T>;
  const ImagesView& im = args.images;
  const int64_t radius = largest_radius(args), bands = (im.height + kBandRows - 1) / kBandRows;
  Buffer<A> padded(im.channels * (im.width + 2 * radius)), total(im.channels * im.width), scaled(im.width);
  Buffer<T> scratch(int64_t(kMaxFilterSize) * im.width);
  const Coarse coarse(args, im.width);
  for (int64_t index = begin; index < end; ++index) {
    const int64_t band = index % bands, n = index / bands % im.count, b = index / bands / im.count;
    for (int64_t p = band * kBandRows; p < least((band + 1) * kBandRows, im.height); ++p) {
      std::memset(total.data, 0, size_t(im.channels * im.width) * sizeof(A));
      // Every padded row that reads image row p; away from the borders that is p alone.
      const bool inside = p > radius && p < im.height - 1 - radius;
      for (int64_t r = inside ? p : -radius; r < (inside ? p + 1 : im.height + radius); ++r) {
        if (padded_index(r, im.height, args.padding) != p) continue;
        std::memset(padded.data, 0, size_t(im.channels * (im.width + 2 * radius)) * sizeof(A));
        for (int l = 0; l < args.level_count; ++l) {
          const LevelView& level = args.levels[l];
          const int size = level.size, level_radius = size / 2;
          for (int i = 0; i < size; ++i) {
            const int64_t q = r - i + level_radius;  // the output row whose tap row i reads padded row r
            if (q < 0 || q >= im.height) continue;
            const T* filters[kMaxFilterSize];
            const A* const* expanded = nullptr;
            if constexpr (Coarse::kAny)
              if (level.coarse) expanded = coarse.rows(args, l, b, n, i * size, q);
            for (int j = 0; !(Coarse::kAny && level.coarse) && j < size; ++j)
              filters[j] = contiguous_row(tap_row<T>(level, b, n, i * size + j, q, 0), level.stride[4], im.width,
                                          scratch.data + j * im.width);
            for (int64_t c = 0; c < im.channels; ++c) {
              load_row(scaled.data,
                       static_cast<const T*>(grad.data) + b * grad.stride[0] + c * grad.stride[1] + q * grad.stride[2],
                       grad.stride[3], im.width);
              for (int64_t x = 0; x < im.width; ++x) scaled.data[x] *= A(level.alpha);
              A* to = padded.data + c * (im.width + 2 * radius) + radius - level_radius;
              if (Coarse::kAny && level.coarse)
                gather_tap_row<A>(to, scaled.data, expanded, size, im.width);
              else
                gather_tap_row<T>(to, scaled.data, filters, size, im.width);
            }
          }
        }
        for (int64_t c = 0; c < im.channels; ++c) {
          const A* from = padded.data + c * (im.width + 2 * radius) + radius;
          A* to = total.data + c * im.width;
          for (int64_t x = 0; x < im.width; ++x) to[x] += from[x];
          if (args.padding == Padding::zeros) continue;
          for (int64_t x = -radius; x < 0; ++x) to[padded_index(x, im.width, args.padding)] += from[x];
          for (int64_t x = im.width; x < im.width + radius; ++x) to[padded_index(x, im.width, args.padding)] += from[x];
        }
      }
      for (int64_t c = 0; c < im.channels; ++c) {
        T* row = image_grad + (((b * im.count + n) * im.channels + c) * im.height + p) * im.width;
        for (int64_t x = 0; x < im.width; ++x) from_acc(total.data[c * im.width + x], row[x]);
      }
    }
  }
}

}  // namespace
}  // namespace FFMEF_ISA
}  // namespace ffmef
