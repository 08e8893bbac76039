// The operator with filters on a coarser grid than the images, alone or beside levels at full resolution.
//
// Such filters are small. Their rows are interpolated where they are used, and only two rows of cells are kept.
#include <memory>
#include <vector>

#include "adaptive_fuse_rows.h"
#include "coarse_rows.h"

namespace ffmef {
namespace FFMEF_ISA {
namespace {

// Expands one row of cells of one tap to the image's columns [x0, x1), in the precision of sums.
template <class A> void expand_cells(A* out, const LevelView& level, const CoarseColumns<A>& columns, A* cells,
                                     int64_t b, int64_t n, int64_t tap, int64_t row, int64_t x0, int64_t x1) {
  const int64_t first = columns.begin(x0), count = columns.end(x1) - first;
  load_stored(cells, level.data, level.scalar, tap_offset(level, b, n, tap, row, first), level.stride[4], count);
  CoarseColumns<A>::close(cells, count);
  columns.expand(out, cells, x0, x1);
}

// The two rows of cells around the current image row, expanded to its columns, for the k taps of one row of a filter.
// Image rows come in order, so each row of cells is expanded only once.
template <class T> struct ExpandedTaps {
  using A = Acc<T>;
  const LevelView& level;
  const CoarseColumns<T>& columns;
  int64_t pitch;
  Buffer<A> rows, cells;
  int64_t held[2] = {-1, -1};

  ExpandedTaps(const LevelView& level_, const CoarseColumns<T>& columns_, int64_t tile_columns)
      : level(level_),
        columns(columns_),
        pitch(tile_columns + lanes<T>),
        rows(2 * level_.size * pitch),
        cells(columns_.cells + CoarseColumns<T>::kSlack) {}

  void start() { held[0] = held[1] = -1; }

  // The k rows of cells, pitch apart.
  const A* row_of(int64_t b, int64_t n, int64_t first_tap, int64_t row, int64_t x0, int64_t x1) {
    A* out = rows.data + row % 2 * level.size * pitch;
    if (held[row % 2] == row) return out;
    held[row % 2] = row;
    for (int j = 0; j < level.size; ++j)
      expand_cells(out + j * pitch, level, columns, cells.data, b, n, first_tap + j, row, x0, x1);
    return out;
  }
};

// sum[x] += sum_j (upper_j[x] * (1 - share) + lower_j[x] * share) * image[x + j], whole vectors.
template <class T, int K> void add_taps_between(Acc<T>* sum, const Acc<T>* upper, const Acc<T>* lower, int64_t pitch,
                                                Acc<T> share, const Acc<T>* image, int size, int64_t n) {
  const int k = K ? K : size;
  const Vec<T> below = splat(share), above = splat(Acc<T>(1) - share);
  for (int64_t x = 0; x < n; x += lanes<T>) {
    Vec<T> s = load(sum + x);
    for (int j = 0; j < k; ++j)
      s += (load(upper + j * pitch + x) * above + load(lower + j * pitch + x) * below) * load(image + x + j);
    store(sum + x, s);
  }
}

// sums[j][x] += sum over rows of share * grad[x] * image[x + j], whole vectors;
// rows are grad_pitch and image_pitch apart.
template <class T, int K> void reduce_taps(Acc<T>* sums, int64_t pitch, const Acc<T>* shares, int64_t rows,
                                           const Acc<T>* grad, int64_t grad_pitch, const Acc<T>* image,
                                           int64_t image_pitch, int size, int64_t n) {
  if (K == 0) {  // any size: one tap at a time
    for (int j = 0; j < size; ++j)
      reduce_taps<T, 1>(sums + j * pitch, pitch, shares, rows, grad, grad_pitch, image + j, image_pitch, 1, n);
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

// The sizes that have their own code. CALL refers to the size as K.
#define FFMEF_BY_SIZE(size, CALL)         \
  switch (size) {                         \
    case 1: { constexpr int K = 1; CALL; break; } \
    case 3: { constexpr int K = 3; CALL; break; } \
    case 5: { constexpr int K = 5; CALL; break; } \
    case 7: { constexpr int K = 7; CALL; break; } \
    default: { constexpr int K = 0; CALL; break; } \
  }

// Adds a coarse level to the sums of image rows [y0, y1) of an item, all channels. Rows of sums are row_values apart.
template <class T> void add_coarse_level(const AdaptiveFuseArgs& args, const LevelView& level,
                                         ExpandedTaps<T>& expanded, const PaddedRows<T>& padded, const Item& item,
                                         int64_t y0, int64_t y1, Acc<T>* sums, int64_t row_values, int64_t columns) {
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
          FFMEF_BY_SIZE(size,
                        (add_taps_between<T, K>(sum, upper, lower, expanded.pitch, tap.share, image, size, width)))
        }
      }
    }
}

// What each coarse level of a call keeps between rows; null for other levels.
template <class T> struct CoarseLevels {
  static constexpr bool kAny = true;
  struct Level {
    CoarseColumns<T> columns;
    ExpandedTaps<T> taps;
    Level(const LevelView& view, int64_t width, int64_t tile_columns)
        : columns(view.width, width), taps(view, columns, tile_columns) {}
  };
  std::vector<std::unique_ptr<Level>> levels;

  CoarseLevels(const AdaptiveFuseArgs& args, int64_t tile_columns) : levels(size_t(args.level_count)) {
    for (int l = 0; l < args.level_count; ++l)
      if (args.levels[l].coarse)
        levels[size_t(l)] = std::make_unique<Level>(args.levels[l], args.images.width, tile_columns);
  }

  void add(const AdaptiveFuseArgs& args, int l, const PaddedRows<T>& padded, const Item& item, int64_t y0, int64_t y1,
           Acc<T>* sums, int64_t row_values, int64_t tile_columns) {
    add_coarse_level(args, args.levels[l], levels[size_t(l)]->taps, padded, item, y0, y1, sums, row_values,
                     tile_columns);
  }
};

// The gradient of a coarse filter value is the adjoint of its interpolation: a weighted sum of grad * image over rows
// and columns. Each item gathers these sums for a band of rows of cells of one image.
constexpr int64_t kCoarseColumns = 512;  // image columns at a time
constexpr int64_t kCoarseRows = 32;      // image rows at a time

int64_t coarse_band(const AdaptiveFuseArgs& args, const LevelView& level) {
  return most(1, kBandRows * level.height / args.images.height);
}

template <class A> void backward_coarse_filters_typed(const AdaptiveFuseArgs& args, const GradView& grad,
                                                      const LevelView& level, void* filter_grad, double* alpha_sums,
                                                      int64_t begin, int64_t end) {
  const ImagesView& im = args.images;
  const int size = level.size, radius = size / 2, taps = size * size;
  const int64_t band = coarse_band(args, level), bands = (level.height + band - 1) / band;
  const Interpolation<int64_t> axis = spanning(level.height, im.height);
  const CoarseColumns<A> columns(level.width, im.width);
  // Columns at a time: few enough for the sums, or the rows of images and gradients, to stay cached.
  const int64_t column_bytes = most(band * taps, im.channels * (2 * kCoarseRows + 2 * radius)) * int64_t(sizeof(A));
  const int64_t tile =
      least(most(64, least(kCoarseColumns, kImageBufferBytes / column_bytes) / 16 * 16), (im.width + 15) / 16 * 16);
  const int64_t pitch = tile + lanes<A>, image_pitch = tile + 2 * radius + lanes<A>;
  const int64_t image_plane = (kCoarseRows + 2 * radius) * image_pitch, grad_plane = kCoarseRows * pitch;
  Buffer<A> images(im.channels * image_plane), grads(im.channels * grad_plane), shares(kCoarseRows);
  Buffer<A> sums(band * taps * pitch), cells(band * taps * (level.width + 1)), row(level.width);
  for (int64_t index = begin; index < end; ++index) {
    const int64_t first_cell = index % bands * band, last_cell = least(first_cell + band, level.height);
    const int64_t n = index / bands % im.count, b = index / bands / im.count;
    const int64_t first = span_of(axis, first_cell, im.height).first,
                  last = span_of(axis, last_cell - 1, im.height).last;
    std::memset(cells.data, 0, size_t(band * taps * (level.width + 1)) * sizeof(A));
    for (int64_t x0 = 0; x0 < im.width; x0 += tile) {
      const int64_t x1 = least(x0 + tile, im.width);
      std::memset(sums.data, 0, size_t(band * taps * pitch) * sizeof(A));
      for (int64_t y0 = first; y0 < last; y0 += kCoarseRows) {
        const int64_t y1 = least(y0 + kCoarseRows, last);
        for (int64_t c = 0; c < im.channels; ++c) {
          for (int64_t y = y0 - radius; y < y1 + radius; ++y)
            fill_row(images.data + c * image_plane + (y - y0 + radius) * image_pitch, im, plane_of(im, b, n, c),
                     args.padding, y, x0, x1, radius, image_pitch);
          for (int64_t y = y0; y < y1; ++y) {
            A* row = grads.data + c * grad_plane + (y - y0) * pitch;
            load_stored(row, grad.data, args.result,
                        b * grad.stride[0] + c * grad.stride[1] + y * grad.stride[2] + x0 * grad.stride[3],
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
              FFMEF_BY_SIZE(size, (reduce_taps<A, K>(sum, pitch, shares.data, to - from, g, pitch, image, image_pitch,
                                                     size, x1 - x0)))
            }
        }
      }
      for (int64_t t = 0; t < band * taps; ++t)
        columns.collect(cells.data + t * (level.width + 1), sums.data + t * pitch, x0, x1);
    }
    double alpha_sum = 0;
    for (int64_t cell = first_cell; cell < last_cell; ++cell)
      for (int tap = 0; tap < taps; ++tap) {
        const A* values = cells.data + ((cell - first_cell) * taps + tap) * (level.width + 1);
        // Interpolation is linear, so the adjoint's sums times the cells give the sum over all pixels.
        if (alpha_sums) {
          load_stored(row.data, level.data, level.scalar, tap_offset(level, b, n, tap, cell, 0), level.stride[4],
                      level.width);
          for (int64_t x = 0; x < level.width; ++x) alpha_sum += double(values[x]) * double(row.data[x]);
        }
        if (filter_grad) {
          for (int64_t x = 0; x < level.width; ++x) row.data[x] = A(level.alpha) * values[x];
          store_stored(filter_grad, level.scalar,
                       (((b * im.count + n) * taps + tap) * level.height + cell) * level.width, row.data, level.width);
        }
      }
    if (alpha_sums) alpha_sums[index] = alpha_sum;
  }
}

// Rows of coarse filters at an image row: cells are interpolated vertically, then along the row.
template <class T> struct CoarseRows {
  static constexpr bool kAny = true;
  using A = Acc<T>;
  std::vector<std::unique_ptr<CoarseColumns<T>>> columns;
  int64_t pitch;
  Buffer<A> fine, cells;
  std::vector<const A*> pointers;

  CoarseRows(const AdaptiveFuseArgs& args, int64_t width)
      : columns(size_t(args.level_count)),
        pitch(width + 2 * lanes<T>),
        fine(kMaxFilterSize * pitch),
        cells(2 * (width + CoarseColumns<T>::kSlack)) {
    for (int l = 0; l < args.level_count; ++l)
      if (args.levels[l].coarse) columns[size_t(l)] = std::make_unique<CoarseColumns<T>>(args.levels[l].width, width);
    for (int j = 0; j < kMaxFilterSize; ++j) pointers.push_back(fine.data + j * pitch);
  }
  // The k rows of taps from first_tap on, at image row y.
  const A* const* rows(const AdaptiveFuseArgs& args, int l, int64_t b, int64_t n, int64_t first_tap, int64_t y) const {
    const LevelView& level = args.levels[l];
    const Tap<int64_t, A> tap = tap_of<A>(spanning(level.height, args.images.height), y);
    A *upper = cells.data, *lower = upper + args.images.width + CoarseColumns<T>::kSlack;
    for (int j = 0; j < level.size; ++j) {
      load_stored(upper, level.data, level.scalar, tap_offset(level, b, n, first_tap + j, tap.first, 0),
                  level.stride[4], level.width);
      if (tap.second != tap.first) {
        load_stored(lower, level.data, level.scalar, tap_offset(level, b, n, first_tap + j, tap.second, 0),
                    level.stride[4], level.width);
        for (int64_t x = 0; x < level.width; ++x) upper[x] = upper[x] * (A(1) - tap.share) + lower[x] * tap.share;
      }
      CoarseColumns<T>::close(upper, level.width);
      columns[size_t(l)]->expand(fine.data + j * pitch, upper, 0, args.images.width);
    }
    return pointers.data();
  }
};

int64_t items(const AdaptiveFuseArgs& args, int level) {
  const int64_t band = coarse_band(args, args.levels[level]);
  return args.images.batch * args.images.count * ((args.levels[level].height + band - 1) / band);
}

void forward(const AdaptiveFuseArgs& args, void* out, void* responses, int64_t begin, int64_t end) {
  FFMEF_BY_SUMS(args.result, (forward_typed<CoarseLevels<A>>(args, out, static_cast<A*>(responses), begin, end)))
}

void backward_filters(const AdaptiveFuseArgs& args, const GradView& grad, int level, void* filter_grad,
                      double* alpha_sums, int64_t begin, int64_t end) {
  FFMEF_BY_SUMS(args.result,
                backward_coarse_filters_typed<A>(args, grad, args.levels[level], filter_grad, alpha_sums, begin, end))
}

void backward_images(const AdaptiveFuseArgs& args, const GradView& grad, void* image_grad, int64_t begin, int64_t end) {
  FFMEF_BY_SUMS(args.result, (backward_images_typed<CoarseRows<A>, A>(args, grad, image_grad, begin, end)))
}

}  // namespace

extern const AdaptiveFuseCoarseKernels adaptive_fuse_coarse_kernels;
const AdaptiveFuseCoarseKernels adaptive_fuse_coarse_kernels = {.forward = forward,
                                                                .filter_items = items,
                                                                .backward_filters = backward_filters,
                                                                .backward_images = backward_images};

}  // namespace FFMEF_ISA
}  // namespace ffmef
