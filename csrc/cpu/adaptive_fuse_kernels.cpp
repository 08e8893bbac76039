// Spatially varying filtering of several images by several levels, and its two gradients, row by row.
//
// The filters are far larger than anything else (k*k values a pixel and image), so every kernel reads or writes each
// filter value exactly once, a row of one tap at a time, and keeps the rest (padded image rows, sums) in cache.
// Filters on a coarser grid are small: their rows are interpolated where they are used.
#include <memory>
#include <vector>

#include "adaptive_fuse.h"
#include "buffer.h"
#include "coarse_rows.h"
#include "vec.h"

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
  for (int l = 0; l < args.level_count; ++l) radius = args.levels[l].size / 2 > radius ? args.levels[l].size / 2 : radius;
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
template <class T>
void fill_row(Acc<T>* out, const T* plane, const ImagesView& im, Padding padding, int64_t y, int64_t x0, int64_t x1,
              int64_t radius, int64_t pitch) {
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
      : radius(largest_radius(args)), pitch(pitch_of(t, radius)), rows(kBandRows + 2 * radius),
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

template <class T>
void add_tap_row(Acc<T>* sum, const T* const* filters, const Acc<T>* image, int size, int64_t n) {
  switch (size) {
    case 1: return add_taps<T, 1>(sum, filters, image, size, n);
    case 3: return add_taps<T, 3>(sum, filters, image, size, n);
    case 5: return add_taps<T, 5>(sum, filters, image, size, n);
    case 7: return add_taps<T, 7>(sum, filters, image, size, n);
    default: return add_taps<T, 0>(sum, filters, image, size, n);
  }
}

template <class T>
const T* tap_row(const LevelView& level, int64_t b, int64_t n, int64_t tap, int64_t y, int64_t x) {
  return static_cast<const T*>(level.data) + b * level.stride[0] + n * level.stride[1] + tap * level.stride[2] +
         y * level.stride[3] + x * level.stride[4];
}

// One coarse row of cells of one tap, from column x0 of the image on, to columns [x0, x1) at sums' precision.
template <class T>
void expand_cells(Acc<T>* out, const LevelView& level, const CoarseColumns<T>& columns, Acc<T>* cells, int64_t b, int64_t n,
                  int64_t tap, int64_t row, int64_t x0, int64_t x1) {
  const int64_t first = columns.begin(x0), count = columns.end(x1) - first;
  load_row(cells, tap_row<T>(level, b, n, tap, row, first), level.stride[4], count);
  CoarseColumns<T>::close(cells, count);
  columns.expand(out, cells, x0, x1);
}

// The two rows of cells around the image row in turn, expanded to its columns, for the k taps of one row of a filter.
// Image rows come in order, so that each row of cells is expanded once for all image rows around it.
template <class T> struct ExpandedTaps {
  using A = Acc<T>;
  const LevelView& level;
  const CoarseColumns<T>& columns;
  int64_t pitch;
  Buffer<A> rows, cells;
  int64_t held[2] = {-1, -1};

  ExpandedTaps(const LevelView& level_, const CoarseColumns<T>& columns_, int64_t tile_columns)
      : level(level_), columns(columns_), pitch(tile_columns + lanes<T>), rows(2 * level_.size * pitch),
        cells(columns_.cells + CoarseColumns<T>::kSlack) {}

  void start() { held[0] = held[1] = -1; }

  // The k rows of cells, pitch apart.
  const A* row_of(int64_t b, int64_t n, int64_t first_tap, int64_t row, int64_t x0, int64_t x1) {
    A* out = rows.data + row % 2 * level.size * pitch;
    if (held[row % 2] == row) return out;
    held[row % 2] = row;
    for (int j = 0; j < level.size; ++j) expand_cells(out + j * pitch, level, columns, cells.data, b, n, first_tap + j, row, x0, x1);
    return out;
  }
};

// sum[x] += sum_j (upper_j[x] * (1 - share) + lower_j[x] * share) * image[x + j], whole vectors.
template <class T, int K>
void add_taps_between(Acc<T>* sum, const Acc<T>* upper, const Acc<T>* lower, int64_t pitch, Acc<T> share,
                      const Acc<T>* image, int size, int64_t n) {
  const int k = K ? K : size;
  const Vec<T> below = splat(share), above = splat(Acc<T>(1) - share);
  for (int64_t x = 0; x < n; x += lanes<T>) {
    Vec<T> s = load(sum + x);
    for (int j = 0; j < k; ++j)
      s += (load(upper + j * pitch + x) * above + load(lower + j * pitch + x) * below) * load(image + x + j);
    store(sum + x, s);
  }
}

// sums[j][x] += sum over rows of share * grad[x] * image[x + j], whole vectors; rows are grad_pitch and image_pitch apart.
template <class T, int K>
void reduce_taps(Acc<T>* sums, int64_t pitch, const Acc<T>* shares, int64_t rows, const Acc<T>* grad, int64_t grad_pitch,
                 const Acc<T>* image, int64_t image_pitch, int size, int64_t n) {
  if (K == 0) {  // any size: one tap at a time
    for (int j = 0; j < size; ++j) reduce_taps<T, 1>(sums + j * pitch, pitch, shares, rows, grad, grad_pitch, image + j, image_pitch, 1, n);
    return;
  }
  for (int64_t x = 0; x < n; x += lanes<T>) {
    Vec<T> s[K ? K : 1];
    for (int j = 0; j < K; ++j) s[j] = load(sums + j * pitch + x);
    for (int64_t y = 0; y < rows; ++y) {
      const Vec<T> g = load(grad + y * grad_pitch + x) * splat(shares[y]);
      for (int j = 0; j < K; ++j) s[j] += g * load(image + y * image_pitch + x + j);
    }
    for (int j = 0; j < K; ++j) store(sums + j * pitch + x, s[j]);
  }
}

// The sizes with code of their own; CALL names one as K.
#define FFMEF_BY_SIZE(size, CALL)         \
  switch (size) {                         \
    case 1: { constexpr int K = 1; CALL; break; } \
    case 3: { constexpr int K = 3; CALL; break; } \
    case 5: { constexpr int K = 5; CALL; break; } \
    case 7: { constexpr int K = 7; CALL; break; } \
    default: { constexpr int K = 0; CALL; break; } \
  }

// What each coarse level of a call keeps between rows; null for the others.
template <class T> struct CoarseLevels {
  struct Level {
    CoarseColumns<T> columns;
    ExpandedTaps<T> taps;
    Level(const LevelView& view, int64_t width, int64_t tile_columns)
        : columns(view.width, width), taps(view, columns, tile_columns) {}
  };
  std::vector<std::unique_ptr<Level>> levels;

  CoarseLevels(const AdaptiveFuseArgs& args, int64_t tile_columns) : levels(size_t(args.level_count)) {
    for (int l = 0; l < args.level_count; ++l)
      if (args.levels[l].coarse) levels[size_t(l)] = std::make_unique<Level>(args.levels[l], args.images.width, tile_columns);
  }
  Level& operator[](int l) const { return *levels[size_t(l)]; }
};

// What a coarse level adds to sums of image rows [y0, y1) of an item, all channels; sums of a row are row_values apart.
template <class T>
void add_coarse_level(const AdaptiveFuseArgs& args, const LevelView& level, ExpandedTaps<T>& expanded,
                      const PaddedRows<T>& padded, const Item& item, int64_t y0, int64_t y1, Acc<T>* sums,
                      int64_t row_values, int64_t columns) {
  using A = Acc<T>;
  const ImagesView& im = args.images;
  const int size = level.size, radius = size / 2;
  const int64_t width = item.x1 - item.x0;
  const Interpolation<int64_t> axis = spanning(level.height, im.height);
  for (int64_t n = 0; n < im.count; ++n)
    for (int i = 0; i < size; ++i) {
      expanded.start();
      for (int64_t y = y0; y < y1; ++y) {
        const Tap<int64_t, A> tap = tap_of<A>(axis, y);
        const A* upper = expanded.row_of(item.b, n, i * size, tap.first, item.x0, item.x1);
        const A* lower = expanded.row_of(item.b, n, i * size, tap.second, item.x0, item.x1);
        for (int64_t c = 0; c < im.channels; ++c) {
          A* sum = sums + (y - y0) * row_values + c * columns;
          const A* image = padded.row(item, n * im.channels + c, y + i - radius) + padded.radius - radius;
          FFMEF_BY_SIZE(size, (add_taps_between<T, K>(sum, upper, lower, expanded.pitch, tap.share, image, size, width)))
        }
      }
    }
}

template <class T>
void forward_typed(const AdaptiveFuseArgs& args, T* out, Acc<T>* responses, int64_t begin, int64_t end) {
  using A = Acc<T>;
  const ImagesView& im = args.images;
  const Tiling tiling = tiling_of<T>(args);
  PaddedRows<T> padded(args, tiling);
  const int64_t row_values = im.channels * tiling.columns, strip_values = kStripRows * row_values;
  Buffer<A> sums(strip_values), totals(strip_values);
  Buffer<T> scratch(int64_t(kMaxFilterSize) * tiling.columns);
  CoarseLevels<T> coarse(args, tiling.columns);
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
        if (level.coarse)
          add_coarse_level(args, level, coarse[l].taps, padded, item, y0, y1, sums.data, row_values, tiling.columns);
        // Rows inside taps, so that each tap's plane is read in runs that the hardware foresees.
        for (int64_t n = 0; !level.coarse && n < im.count; ++n)
          for (int i = 0; i < size; ++i)
            for (int64_t y = y0; y < y1; ++y) {
              const T* filters[kMaxFilterSize];
              for (int j = 0; j < size; ++j)
                filters[j] = contiguous_row(tap_row<T>(level, item.b, n, i * size + j, y, item.x0), level.stride[4],
                                            width, scratch.data + j * tiling.columns);
              for (int64_t c = 0; c < im.channels; ++c)
                add_tap_row(sums.data + (y - y0) * row_values + c * tiling.columns, filters,
                            padded.row(item, n * im.channels + c, y + i - radius) + padded.radius - radius, size, width);
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

// gradient_j[x] = alpha * sum_c grad_c[x] * image_c[x + j]; returns sum_jx filter_j[x] * gradient_j[x] / alpha.
template <class T, int K, bool kWrite, bool kSum>
double tap_gradients(T* const* gradients, const T* const* filters, const Acc<T>* grad, int64_t grad_pitch,
                     const Acc<T>* image, int64_t image_pitch, int64_t channels, Acc<T> alpha, int size, int64_t n) {
  const int k = K ? K : size;
  Vec<T> total = splat(Acc<T>(0));
  for (int64_t x = 0; x < n; x += lanes<T>) {
    const int64_t rest = n - x;
    const bool whole = rest >= lanes<T>;
    for (int j = 0; j < k; ++j) {
      Vec<T> g = splat(Acc<T>(0));
      for (int64_t c = 0; c < channels; ++c) g += load(grad + c * grad_pitch + x) * load(image + c * image_pitch + x + j);
      if (kSum) total += g * (whole ? load(filters[j] + x) : load_part(filters[j] + x, rest));
      if (kWrite) {
        if (whole) store(gradients[j] + x, g * alpha);
        else store_part(gradients[j] + x, g * alpha, rest);
      }
    }
  }
  return kSum ? sum_lanes(total) : 0;
}

template <class T, bool kWrite, bool kSum>
double tap_row_gradients(T* const* gradients, const T* const* filters, const Acc<T>* grad, int64_t grad_pitch,
                         const Acc<T>* image, int64_t image_pitch, int64_t channels, Acc<T> alpha, int size,
                         int64_t n) {
  switch (size) {
#define FFMEF_CASE(K) \
  case K:             \
    return tap_gradients<T, K, kWrite, kSum>(gradients, filters, grad, grad_pitch, image, image_pitch, channels, alpha, size, n);
    FFMEF_CASE(1)
    FFMEF_CASE(3)
    FFMEF_CASE(5)
    FFMEF_CASE(7)
#undef FFMEF_CASE
    default:
      return tap_gradients<T, 0, kWrite, kSum>(gradients, filters, grad, grad_pitch, image, image_pitch, channels, alpha, size, n);
  }
}

template <class T>
void backward_filters_typed(const AdaptiveFuseArgs& args, const GradView& grad, void* const* filter_grads,
                            double* alpha_sums, int64_t begin, int64_t end) {
  using A = Acc<T>;
  const ImagesView& im = args.images;
  const Tiling tiling = tiling_of<T>(args);
  PaddedRows<T> padded(args, tiling);
  const int64_t pitch = tiling.columns + lanes<T>;
  Buffer<A> grads(kBandRows * im.channels * pitch);
  Buffer<T> scratch(int64_t(kMaxFilterSize) * tiling.columns);
  for (int64_t index = begin; index < end; ++index) {
    const Item item = item_at(args, tiling, index);
    const int64_t width = item.x1 - item.x0;
    padded.fill(args, item);
    double* sums = alpha_sums ? alpha_sums + index * args.level_count : nullptr;
    if (sums)
      for (int l = 0; l < args.level_count; ++l) sums[l] = 0;
    for (int64_t y = item.y0; y < item.y1; ++y)
      for (int64_t c = 0; c < im.channels; ++c) {
        A* row = grads.data + ((y - item.y0) * im.channels + c) * pitch;
        load_row(row,
                 static_cast<const T*>(grad.data) + item.b * grad.stride[0] + c * grad.stride[1] + y * grad.stride[2] +
                     item.x0 * grad.stride[3],
                 grad.stride[3], width);
        // Lanes past the row's end multiply whatever lies there: zeros keep the sums right.
        for (int64_t x = width; x < pitch; ++x) row[x] = A(0);
      }
    for (int l = 0; l < args.level_count; ++l) {
      const LevelView& level = args.levels[l];
      T* gradient = static_cast<T*>(filter_grads[l]);
      if (level.coarse || (gradient == nullptr && sums == nullptr)) continue;
      const int size = level.size, radius = size / 2;
      const A alpha = A(level.alpha);
      const auto kernel = gradient && sums ? tap_row_gradients<T, true, true>
                          : gradient       ? tap_row_gradients<T, true, false>
                                           : tap_row_gradients<T, false, true>;
      for (int64_t n = 0; n < im.count; ++n)
        for (int i = 0; i < size; ++i)
          for (int64_t y = item.y0; y < item.y1; ++y) {
            T* gradients[kMaxFilterSize];
            const T* filters[kMaxFilterSize];
            for (int j = 0; j < size; ++j) {
              const int64_t tap = i * size + j;
              if (gradient)
                gradients[j] = gradient + (((item.b * im.count + n) * size * size + tap) * im.height + y) * im.width + item.x0;
              if (sums)
                filters[j] = contiguous_row(tap_row<T>(level, item.b, n, tap, y, item.x0), level.stride[4], width,
                                            scratch.data + j * tiling.columns);
            }
            const double sum = kernel(gradients, filters, grads.data + (y - item.y0) * im.channels * pitch, pitch,
                                      padded.row(item, n * im.channels, y + i - radius) + padded.radius - radius,
                                      padded.rows * padded.pitch, im.channels, alpha, size, width);
            if (sums) sums[l] += sum;
          }
    }
  }
}

// Sums over image rows and columns of grad * image are the gradient of a coarse filter value, the adjoint of its
// interpolation: every item gathers them for a band of rows of cells of one image.
constexpr int64_t kCoarseColumns = 512;  // image columns at a time
constexpr int64_t kCoarseRows = 32;      // image rows at a time

int64_t coarse_band(const AdaptiveFuseArgs& args, const LevelView& level) {
  return most(1, kBandRows * level.height / args.images.height);
}

template <class T>
void backward_coarse_filters_typed(const AdaptiveFuseArgs& args, const GradView& grad, const LevelView& level,
                                   T* filter_grad, double* alpha_sums, int64_t begin, int64_t end) {
  using A = Acc<T>;
  const ImagesView& im = args.images;
  const int size = level.size, radius = size / 2, taps = size * size;
  const int64_t band = coarse_band(args, level), bands = (level.height + band - 1) / band;
  const Interpolation<int64_t> axis = spanning(level.height, im.height);
  const CoarseColumns<T> columns(level.width, im.width);
  // Columns at a time: few enough for the sums, or the rows of images and gradients, to stay cached.
  const int64_t column_bytes = most(band * taps, im.channels * (2 * kCoarseRows + 2 * radius)) * int64_t(sizeof(A));
  const int64_t tile = least(most(64, least(kCoarseColumns, kImageBufferBytes / column_bytes) / 16 * 16), (im.width + 15) / 16 * 16);
  const int64_t pitch = tile + lanes<T>, image_pitch = tile + 2 * radius + lanes<T>;
  const int64_t image_plane = (kCoarseRows + 2 * radius) * image_pitch, grad_plane = kCoarseRows * pitch;
  Buffer<A> images(im.channels * image_plane), grads(im.channels * grad_plane), shares(kCoarseRows);
  Buffer<A> sums(band * taps * pitch), cells(band * taps * (level.width + 1));
  for (int64_t index = begin; index < end; ++index) {
    const int64_t first_cell = index % bands * band, last_cell = least(first_cell + band, level.height);
    const int64_t n = index / bands % im.count, b = index / bands / im.count;
    const int64_t first = span_of(axis, first_cell, im.height).first, last = span_of(axis, last_cell - 1, im.height).last;
    std::memset(cells.data, 0, size_t(band * taps * (level.width + 1)) * sizeof(A));
    for (int64_t x0 = 0; x0 < im.width; x0 += tile) {
      const int64_t x1 = least(x0 + tile, im.width);
      std::memset(sums.data, 0, size_t(band * taps * pitch) * sizeof(A));
      for (int64_t y0 = first; y0 < last; y0 += kCoarseRows) {
        const int64_t y1 = least(y0 + kCoarseRows, last);
        for (int64_t c = 0; c < im.channels; ++c) {
          const T* plane = static_cast<const T*>(im.data) + b * im.stride[0] + n * im.stride[1] + c * im.stride[2];
          for (int64_t y = y0 - radius; y < y1 + radius; ++y)
            fill_row(images.data + c * image_plane + (y - y0 + radius) * image_pitch, plane, im, args.padding, y, x0, x1,
                     radius, image_pitch);
          for (int64_t y = y0; y < y1; ++y) {
            A* row = grads.data + c * grad_plane + (y - y0) * pitch;
            load_row(row, static_cast<const T*>(grad.data) + b * grad.stride[0] + c * grad.stride[1] +
                              y * grad.stride[2] + x0 * grad.stride[3],
                     grad.stride[3], x1 - x0);
            for (int64_t x = x1 - x0; x < pitch; ++x) row[x] = A(0);
          }
        }
        for (int64_t cell = first_cell; cell < last_cell; ++cell) {
          const Span<int64_t> span = span_of(axis, cell, im.height);
          const int64_t from = most(span.first, y0), to = least(span.last, y1);
          for (int64_t y = from; y < to; ++y) shares.data[y - from] = share_of<A>(axis, cell, y);
          for (int i = 0; from < to && i < size; ++i)
            for (int64_t c = 0; c < im.channels; ++c) {
              A* sum = sums.data + ((cell - first_cell) * taps + i * size) * pitch;
              const A* g = grads.data + c * grad_plane + (from - y0) * pitch;
              const A* image = images.data + c * image_plane + (from - y0 + i) * image_pitch;
              FFMEF_BY_SIZE(size, (reduce_taps<T, K>(sum, pitch, shares.data, to - from, g, pitch, image, image_pitch, size, x1 - x0)))
            }
        }
      }
      for (int64_t t = 0; t < band * taps; ++t) columns.collect(cells.data + t * (level.width + 1), sums.data + t * pitch, x0, x1);
    }
    double alpha_sum = 0;
    for (int64_t cell = first_cell; cell < last_cell; ++cell)
      for (int tap = 0; tap < taps; ++tap) {
        const A* values = cells.data + ((cell - first_cell) * taps + tap) * (level.width + 1);
        // Interpolation is linear: what its adjoint sums, against the cells, is the sum over all pixels.
        const T* filter = tap_row<T>(level, b, n, tap, cell, 0);
        if (alpha_sums)
          for (int64_t x = 0; x < level.width; ++x) alpha_sum += double(values[x]) * double(to_acc(filter[x * level.stride[4]]));
        if (filter_grad) {
          T* row = filter_grad + (((b * im.count + n) * taps + tap) * level.height + cell) * level.width;
          for (int64_t x = 0; x < level.width; ++x) from_acc(A(level.alpha) * values[x], row[x]);
        }
      }
    if (alpha_sums) alpha_sums[index] = alpha_sum;
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

// Rows of coarse filters at an image row: cells mixed down, then along the row.
template <class T> struct CoarseRows {
  using A = Acc<T>;
  std::vector<std::unique_ptr<CoarseColumns<T>>> columns;
  int64_t pitch;
  Buffer<A> fine, cells;
  std::vector<const A*> pointers;

  explicit CoarseRows(const AdaptiveFuseArgs& args)
      : columns(size_t(args.level_count)), pitch(args.images.width + 2 * lanes<T>), fine(any(args) ? kMaxFilterSize * pitch : 0),
        cells(2 * (args.images.width + CoarseColumns<T>::kSlack)) {
    for (int l = 0; l < args.level_count; ++l)
      if (args.levels[l].coarse) columns[size_t(l)] = std::make_unique<CoarseColumns<T>>(args.levels[l].width, args.images.width);
    for (int j = 0; j < kMaxFilterSize; ++j) pointers.push_back(fine.data + j * pitch);
  }
  static bool any(const AdaptiveFuseArgs& args) {
    for (int l = 0; l < args.level_count; ++l)
      if (args.levels[l].coarse) return true;
    return false;
  }

  // The k rows of taps from first_tap on, at image row y.
  const A* const* rows(const AdaptiveFuseArgs& args, int l, int64_t b, int64_t n, int64_t first_tap, int64_t y) const {
    const LevelView& level = args.levels[l];
    const Tap<int64_t, A> tap = tap_of<A>(spanning(level.height, args.images.height), y);
    A *upper = cells.data, *lower = upper + args.images.width + CoarseColumns<T>::kSlack;
    for (int j = 0; j < level.size; ++j) {
      load_row(upper, tap_row<T>(level, b, n, first_tap + j, tap.first, 0), level.stride[4], level.width);
      if (tap.second != tap.first) {
        load_row(lower, tap_row<T>(level, b, n, first_tap + j, tap.second, 0), level.stride[4], level.width);
        for (int64_t x = 0; x < level.width; ++x) upper[x] = upper[x] * (A(1) - tap.share) + lower[x] * tap.share;
      }
      CoarseColumns<T>::close(upper, level.width);
      columns[size_t(l)]->expand(fine.data + j * pitch, upper, 0, args.images.width);
    }
    return pointers.data();
  }
};

template <class T>
void backward_images_typed(const AdaptiveFuseArgs& args, const GradView& grad, T* image_grad, int64_t begin,
                           int64_t end) {
  using A = Acc<T>;
  const ImagesView& im = args.images;
  const int64_t radius = largest_radius(args), bands = (im.height + kBandRows - 1) / kBandRows;
  Buffer<A> padded(im.channels * (im.width + 2 * radius)), total(im.channels * im.width), scaled(im.width);
  Buffer<T> scratch(int64_t(kMaxFilterSize) * im.width);
  const CoarseRows<T> coarse(args);
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
            for (int j = 0; !level.coarse && j < size; ++j)
              filters[j] = contiguous_row(tap_row<T>(level, b, n, i * size + j, q, 0), level.stride[4], im.width,
                                          scratch.data + j * im.width);
            const A* const* expanded = level.coarse ? coarse.rows(args, l, b, n, i * size, q) : nullptr;
            for (int64_t c = 0; c < im.channels; ++c) {
              load_row(scaled.data,
                       static_cast<const T*>(grad.data) + b * grad.stride[0] + c * grad.stride[1] + q * grad.stride[2],
                       grad.stride[3], im.width);
              for (int64_t x = 0; x < im.width; ++x) scaled.data[x] *= A(level.alpha);
              A* to = padded.data + c * (im.width + 2 * radius) + radius - level_radius;
              if (level.coarse) gather_tap_row<A>(to, scaled.data, expanded, size, im.width);
              else gather_tap_row<T>(to, scaled.data, filters, size, im.width);
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

int64_t forward_items(const AdaptiveFuseArgs& args) {
  const Tiling t = args.scalar == Scalar::f64 ? tiling_of<double>(args) : tiling_of<float>(args);
  return args.images.batch * t.tiles * t.bands;
}

int64_t image_items(const AdaptiveFuseArgs& args) {
  return args.images.batch * args.images.count * ((args.images.height + kBandRows - 1) / kBandRows);
}

int64_t coarse_items(const AdaptiveFuseArgs& args, int level) {
  const int64_t band = coarse_band(args, args.levels[level]);
  return args.images.batch * args.images.count * ((args.levels[level].height + band - 1) / band);
}

void forward(const AdaptiveFuseArgs& args, void* out, void* responses, int64_t begin, int64_t end) {
  FFMEF_BY_SCALAR(args.scalar, forward_typed(args, static_cast<T*>(out), static_cast<Acc<T>*>(responses), begin, end))
}

void backward_filters(const AdaptiveFuseArgs& args, const GradView& grad, void* const* filter_grads,
                      double* alpha_sums, int64_t begin, int64_t end) {
  FFMEF_BY_SCALAR(args.scalar, backward_filters_typed<T>(args, grad, filter_grads, alpha_sums, begin, end))
}

void backward_coarse_filters(const AdaptiveFuseArgs& args, const GradView& grad, int level, void* filter_grad,
                             double* alpha_sums, int64_t begin, int64_t end) {
  FFMEF_BY_SCALAR(args.scalar, backward_coarse_filters_typed(args, grad, args.levels[level], static_cast<T*>(filter_grad),
                                                             alpha_sums, begin, end))
}

void backward_images(const AdaptiveFuseArgs& args, const GradView& grad, void* image_grad, int64_t begin, int64_t end) {
  FFMEF_BY_SCALAR(args.scalar, backward_images_typed(args, grad, static_cast<T*>(image_grad), begin, end))
}

}  // namespace

extern const AdaptiveFuseKernels adaptive_fuse_kernels;
const AdaptiveFuseKernels adaptive_fuse_kernels = {forward_items,           forward,     backward_filters, coarse_items,
                                                   backward_coarse_filters, image_items, backward_images};

}  // namespace FFMEF_ISA
}  // namespace ffmef
