// Spatially varying filtering of several images at several levels, and its gradients, with full-resolution filters.
#include "adaptive_fuse_rows.h"
#include "adjoining_taps.h"

namespace ffmef {
namespace FFMEF_ISA {
namespace {

// Gradients of this many bytes do not stay cached until they are read.
constexpr int64_t kStreamedBytes = int64_t(2) << 20;

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
      for (int64_t c = 0; c < channels; ++c)
        g += load(grad + c * grad_pitch + x) * load(image + c * image_pitch + x + j);
      if (kSum) total += g * (whole ? load(filters[j] + x) : load_part(filters[j] + x, rest));
      if (kWrite) {
        if (whole)
          store(gradients[j] + x, g * alpha);
        else
          store_part(gradients[j] + x, g * alpha, rest);
      }
    }
  }
  return kSum ? sum_lanes(total) : 0;
}

// The same without the sum, written past the caches: one tap's row at a time, from its first aligned address.
template <class T> void stream_tap_gradients(T* const* gradients, const Acc<T>* grad, int64_t grad_pitch,
                                             const Acc<T>* image, int64_t image_pitch, int64_t channels, Acc<T> alpha,
                                             int size, int64_t n) {
  constexpr int64_t kLanes = lanes<T>, kBytes = kLanes * int64_t(sizeof(T));
  for (int j = 0; j < size; ++j) {
    T* out = gradients[j];
    auto gradient = [&](int64_t x) __attribute__((always_inline)) {
      Vec<T> g = splat(T(0));
      for (int64_t c = 0; c < channels; ++c)
        g += load(grad + c * grad_pitch + x) * load(image + c * image_pitch + x + j);
      return g * alpha;
    };
    int64_t x = least((kBytes - int64_t(reinterpret_cast<uintptr_t>(out) % kBytes)) % kBytes / int64_t(sizeof(T)), n);
    if (x > 0) store_part(out, gradient(0), x);
    for (; x + kLanes <= n; x += kLanes) stream(out + x, gradient(x));
    if (x < n) store_part(out + x, gradient(x), n - x);
  }
}

template <class T, bool kWrite, bool kSum>
double tap_row_gradients(T* const* gradients, const T* const* filters, const Acc<T>* grad, int64_t grad_pitch,
                         const Acc<T>* image, int64_t image_pitch, int64_t channels, Acc<T> alpha, int size,
                         int64_t n) {
  switch (size) {
#define FFMEF_CASE(K) \
  case K:             \
    return tap_gradients<T, K, kWrite, kSum>(gradients, filters, grad, grad_pitch, image, image_pitch, channels, \
                                             alpha, size, n);
    FFMEF_CASE(1)
    FFMEF_CASE(3)
    FFMEF_CASE(5)
    FFMEF_CASE(7)
#undef FFMEF_CASE
    default:
      return tap_gradients<T, 0, kWrite, kSum>(gradients, filters, grad, grad_pitch, image, image_pitch, channels,
                                               alpha, size, n);
  }
}

// Gradients of one level's filters at rows [item.y0, item.y1). Returns what the item adds to alpha's gradient.
template <class T, class A> double backward_level(const AdaptiveFuseArgs& args, const LevelView& level,
                                                  const PaddedRows<A>& padded, const Item& item, const A* grads,
                                                  int64_t pitch, T* gradient, bool sum, T* scratch) {
  const ImagesView& im = args.images;
  const int size = level.size, radius = size / 2;
  const A alpha = A(level.alpha);
  const auto kernel = gradient && sum ? tap_row_gradients<T, true, true>
                      : gradient      ? tap_row_gradients<T, true, false>
                                      : tap_row_gradients<T, false, true>;
  const int64_t bytes = im.batch * im.count * size * size * im.height * im.width * int64_t(sizeof(T));
  const bool past_caches = !sum && bytes >= kStreamedBytes;
  double total = 0;
  auto one_row = [&](int64_t n, int64_t y, int i, int64_t x, int64_t count, const T* const* filters) {
    T* gradients[kMaxFilterSize];
    for (int j = 0; gradient && j < size; ++j)
      gradients[j] =
          gradient + (((item.b * im.count + n) * size * size + i * size + j) * im.height + y) * im.width + item.x0 + x;
    const A* grad_row = grads + (y - item.y0) * im.channels * pitch + x;
    const A* image_row = padded.row(item, n * im.channels, y + i - radius) + padded.radius - radius + x;
    const int64_t to_channel = padded.rows * padded.pitch;
    if constexpr (sizeof(T) == sizeof(A))
      if (past_caches)
        return stream_tap_gradients(gradients, grad_row, pitch, image_row, to_channel, im.channels, alpha, size, count);
    total += kernel(gradients, filters, grad_row, pitch, image_row, to_channel, im.channels, alpha, size, count);
  };
  for (int64_t n = 0; n < im.count; ++n) {
    if (sum && !in_rows(level)) {
      for (int64_t y = item.y0; y < item.y1; ++y)
        over_tap_rows(
            level, item.b, n, y, item.x0, item.x1 - item.x0, scratch,
            [&](int i, int64_t x, int64_t count, const T* const* filters) { one_row(n, y, i, x, count, filters); });
      continue;
    }
    for (int i = 0; i < size; ++i)
      for (int64_t y = item.y0; y < item.y1; ++y) {
        const T* filters[kMaxFilterSize];
        for (int j = 0; sum && j < size; ++j)
          filters[j] = at<T>(level.data, tap_offset(level, item.b, n, i * size + j, y, item.x0));
        one_row(n, y, i, 0, item.x1 - item.x0, filters);
      }
  }
  return total;
}

template <class A> void backward_filters_typed(const AdaptiveFuseArgs& args, const GradView& grad,
                                               void* const* filter_grads, double* alpha_sums, int64_t begin,
                                               int64_t end) {
  const ImagesView& im = args.images;
  const Tiling tiling = tiling_of<A>(args);
  PaddedRows<A> padded(args, tiling);
  const int64_t pitch = tiling.columns + lanes<A>;
  Buffer<A> grads(kBandRows * im.channels * pitch), scratch(turned_values(args));
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
        load_stored(row, grad.data, args.result,
                    item.b * grad.stride[0] + c * grad.stride[1] + y * grad.stride[2] + item.x0 * grad.stride[3],
                    grad.stride[3], width);
        // Lanes past the row's end multiply whatever lies there, so zeros keep the sums right.
        for (int64_t x = width; x < pitch; ++x) row[x] = A(0);
      }
    for (int l = 0; l < args.level_count; ++l) {
      const LevelView& level = args.levels[l];
      if (level.coarse || (filter_grads[l] == nullptr && sums == nullptr)) continue;
      double sum = 0;
      FFMEF_STORED_AS(
          A, level.scalar,
          sum = backward_level(args, level, padded, item, grads.data, pitch, static_cast<T*>(filter_grads[l]),
                               sums != nullptr, reinterpret_cast<T*>(scratch.data)))
      if (sums) sums[l] = sum;
    }
  }
  end_streams();
}

// sum_x a[x] * b[x], rows in the precision of sums.
template <class A> double dot_row(const A* a, const A* b, int64_t n) {
  Vec<A> total = splat(A(0));
  int64_t x = 0;
  for (; x + lanes<A> <= n; x += lanes<A>) total += load(a + x) * load(b + x);
  if (x < n) total += load_part(a + x, n - x) * load_part(b + x, n - x);
  return sum_lanes(total);
}

template <class A> void backward_alphas_typed(const AdaptiveFuseArgs& args, const GradView& grad, const A* responses,
                                              double* alpha_sums, int64_t begin, int64_t end) {
  const ImagesView& im = args.images;
  const Tiling tiling = tiling_of<A>(args);
  Buffer<A> row(tiling.columns);
  for (int64_t index = begin; index < end; ++index) {
    const Item item = item_at(args, tiling, index);
    const int64_t width = item.x1 - item.x0;
    double* sums = alpha_sums + index * args.level_count;
    for (int l = 0; l < args.level_count; ++l) sums[l] = 0;
    for (int64_t c = 0; c < im.channels; ++c)
      for (int64_t y = item.y0; y < item.y1; ++y) {
        load_stored(row.data, grad.data, args.result,
                    item.b * grad.stride[0] + c * grad.stride[1] + y * grad.stride[2] + item.x0 * grad.stride[3],
                    grad.stride[3], width);
        for (int l = 0; l < args.level_count; ++l)
          sums[l] += dot_row(
              row.data, responses + (((l * im.batch + item.b) * im.channels + c) * im.height + y) * im.width + item.x0,
              width);
      }
  }
}

// --- one level of one tap: products of planes, read in place

bool is_one_point(const AdaptiveFuseArgs& args) {
  const ImagesView& im = args.images;
  if (args.level_count != 1 || im.stride[4] != 1 || im.scalar != args.result) return false;
  const LevelView& level = args.levels[0];
  return level.size == 1 && level.scalar == args.result && in_rows(level);
}

// out[x] = alpha * sum_i filter_i[x] * image_i[x], in the order of forward_typed. N = 0: the count is known only at run
// time.
template <class T, int N> void fuse_points(T* out, Acc<T>* sums, const T* filter, int64_t filter_step, const T* image,
                                           int64_t image_step, int64_t count, Acc<T> alpha, int64_t n) {
  const int64_t images = N ? N : count;
  auto sum_at = [&](int64_t x, auto read) __attribute__((always_inline)) {
    Vec<T> sum = splat(Acc<T>(0));
    for (int64_t i = 0; i < images; ++i) sum += read(filter + i * filter_step + x) * read(image + i * image_step + x);
    return sum;
  };
  int64_t x = 0;
  for (; x + lanes<T> <= n; x += lanes<T>) {
    const Vec<T> sum = sum_at(x, [](const T* p) { return load(p); });
    if (sums != nullptr) store(sums + x, sum);
    store(out + x, splat(Acc<T>(0)) + alpha * sum);
  }
  if (const int64_t rest = n - x; rest > 0) {
    const Vec<T> sum = sum_at(x, [&](const T* p) { return load_part(p, rest); });
    if (sums != nullptr) store_part(sums + x, sum, rest);
    store_part(out + x, splat(Acc<T>(0)) + alpha * sum, rest);
  }
}

template <class T>
void forward_points(const AdaptiveFuseArgs& args, T* out, Acc<T>* responses, int64_t begin, int64_t end) {
  const ImagesView& im = args.images;
  const LevelView& level = args.levels[0];
  const Tiling tiling = tiling_of<Acc<T>>(args);
  // If rows are contiguous in every tensor, an item's rows form a single long one.
  const bool joined = tiling.tiles == 1 && im.stride[3] == im.width && level.stride[3] == im.width;
  const auto fuse = im.count == 2 ? fuse_points<T, 2> : fuse_points<T, 0>;
  for (int64_t index = begin; index < end; ++index) {
    const Item item = item_at(args, tiling, index);
    const int64_t rows = item.y1 - item.y0, width = item.x1 - item.x0;
    for (int64_t c = 0; c < im.channels; ++c)
      for (int64_t y = item.y0; y < item.y1; y += joined ? rows : 1) {
        const int64_t first = ((item.b * im.channels + c) * im.height + y) * im.width + item.x0;
        fuse(out + first, responses != nullptr ? responses + first : nullptr,
             at<T>(level.data, tap_offset(level, item.b, 0, 0, y, item.x0)), level.stride[1],
             at<T>(im.data, plane_of(im, item.b, 0, c) + y * im.stride[3] + item.x0), im.stride[1], im.count,
             Acc<T>(level.alpha), joined ? rows * width : width);
      }
  }
}

template <class A>
void forward_by_sums(const AdaptiveFuseArgs& args, void* out, A* responses, int64_t begin, int64_t end) {
  if (is_one_point(args)) {
    FFMEF_STORED_AS(A, args.result, forward_points(args, static_cast<T*>(out), responses, begin, end))
  } else if (all_taps_adjoin(args)) {
    forward_adjoining(args, out, responses, begin, end);
  } else {
    forward_typed<NoCoarseLevels>(args, out, responses, begin, end);
  }
}

int64_t forward_items(const AdaptiveFuseArgs& args) {
  const Tiling t = args.result == Scalar::f64 ? tiling_of<double>(args) : tiling_of<float>(args);
  return args.images.batch * t.tiles * t.bands;
}

int64_t image_items(const AdaptiveFuseArgs& args) {
  if (images_by_tiles(args)) return args.images.batch * AdjoiningImages<float>::bands(args);
  return args.images.batch * args.images.count * ((args.images.height + kBandRows - 1) / kBandRows);
}

void forward(const AdaptiveFuseArgs& args, void* out, void* responses, int64_t begin, int64_t end) {
  FFMEF_BY_SUMS(args.result, forward_by_sums(args, out, static_cast<A*>(responses), begin, end))
}

void backward_filters(const AdaptiveFuseArgs& args, const GradView& grad, void* const* filter_grads, double* alpha_sums,
                      int64_t begin, int64_t end) {
  FFMEF_BY_SUMS(args.result, backward_filters_typed<A>(args, grad, filter_grads, alpha_sums, begin, end))
}

void backward_alphas(const AdaptiveFuseArgs& args, const GradView& grad, const void* responses, double* alpha_sums,
                     int64_t begin, int64_t end) {
  FFMEF_BY_SUMS(args.result,
                backward_alphas_typed(args, grad, static_cast<const A*>(responses), alpha_sums, begin, end))
}

void backward_images(const AdaptiveFuseArgs& args, const GradView& grad, void* image_grad, int64_t begin, int64_t end) {
  if (images_by_tiles(args)) {
    FFMEF_BY_SUMS(args.result, backward_images_adjoining<A>(args, grad, image_grad, begin, end))
  } else {
    FFMEF_BY_SUMS(args.result, (backward_images_typed<NoCoarseLevels, A>(args, grad, image_grad, begin, end)))
  }
}

}  // namespace

extern const AdaptiveFuseKernels adaptive_fuse_kernels;
const AdaptiveFuseKernels adaptive_fuse_kernels = {.forward_items = forward_items,
                                                   .forward = forward,
                                                   .backward_filters = backward_filters,
                                                   .backward_alphas = backward_alphas,
                                                   .image_items = image_items,
                                                   .backward_images = backward_images};

}  // namespace FFMEF_ISA
}  // namespace ffmef
