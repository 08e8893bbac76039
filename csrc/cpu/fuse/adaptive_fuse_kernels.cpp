// Spatially varying filtering of several images by several levels, and its gradients, with filters at full resolution.
#include "adaptive_fuse_rows.h"

namespace ffmef {
namespace FFMEF_ISA {
namespace {

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
      return tap_gradients<T, 0, kWrite, kSum>(gradients, filters, grad, grad_pitch, image, image_pitch, channels,
                                               alpha, size, n);
  }
}

template <class T> void backward_filters_typed(const AdaptiveFuseArgs& args, const GradView& grad,
                                               void* const* filter_grads, double* alpha_sums, int64_t begin,
                                               int64_t end) {
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
                gradients[j] =
                    gradient + (((item.b * im.count + n) * size * size + tap) * im.height + y) * im.width + item.x0;
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

int64_t forward_items(const AdaptiveFuseArgs& args) {
  const Tiling t = args.scalar == Scalar::f64 ? tiling_of<double>(args) : tiling_of<float>(args);
  return args.images.batch * t.tiles * t.bands;
}

int64_t image_items(const AdaptiveFuseArgs& args) {
  return args.images.batch * args.images.count * ((args.images.height + kBandRows - 1) / kBandRows);
}

void forward(const AdaptiveFuseArgs& args, void* out, void* responses, int64_t begin, int64_t end) {
  FFMEF_BY_SCALAR(args.scalar, (forward_typed<NoCoarseLevels>(args, static_cast<T*>(out),
                                                              static_cast<Acc<T>*>(responses), begin, end)))
}

void backward_filters(const AdaptiveFuseArgs& args, const GradView& grad, void* const* filter_grads, double* alpha_sums,
                      int64_t begin, int64_t end) {
  FFMEF_BY_SCALAR(args.scalar, backward_filters_typed<T>(args, grad, filter_grads, alpha_sums, begin, end))
}

void backward_images(const AdaptiveFuseArgs& args, const GradView& grad, void* image_grad, int64_t begin, int64_t end) {
  FFMEF_BY_SCALAR(args.scalar,
                  (backward_images_typed<NoCoarseLevels>(args, grad, static_cast<T*>(image_grad), begin, end)))
}

}  // namespace

extern const AdaptiveFuseKernels adaptive_fuse_kernels;
const AdaptiveFuseKernels adaptive_fuse_kernels = {forward_items, forward, backward_filters, image_items,
                                                   backward_images};

}  // namespace FFMEF_ISA
}  // namespace ffmef
