// Binds pyramid_fuse's CPU kernels to torch: unpacks tensors, allocates the coarser levels, spreads rows over threads.
#include "pyramid_fuse.h"
#include "../base/buffer.h"
#include "../base/tensors.h"
#include "../base/torch_crew.h"

#include <torch/csrc/stable/library.h>

#include <vector>

namespace ffmef {
namespace {

// Rows that justify a separate thread: some tens of thousands of pixels.
int64_t grain_of(int64_t width) { return 1 + (1 << 15) / (width + 1); }

template <class F> void parallel_rows(int64_t rows, int64_t width, const F& f) {
  parallel_for(rows, grain_of(width), f);
}

int64_t half_of(int64_t size) { return (size + 1) / 2; }

// The arguments of both directions, checked, and the pyramids of one batch element and channel.
struct Call {
  const PyramidFuseKernels& kernels = FFMEF_KERNELS(pyramid_fuse_kernels);
  Scalar scalar;
  ScalarType wide;
  int64_t item;  // bytes of a sum
  Tensor images, weights, base;
  int64_t batch, count, channels, height, width, bands, down, across;
  int scale;
  std::vector<int64_t> heights, widths;
  std::vector<Buffer<char>> coarse;            // the pyramids' coarser levels, with the images one after another
  std::vector<std::vector<PlaneView>> planes;  // by level and image

  // The public function explains mistakes. These checks only keep memory safe when the dispatcher is called directly.
  Call(const Tensor& images_, const Tensor& weights_, const Tensor& base_, int64_t scale_)
      : scalar(scalar_of(images_)),
        wide(wide_of(scalar)),
        item(scalar == Scalar::f64 ? 8 : 4),
        images(images_),
        weights(weights_),
        base(base_),
        scale(int(scale_)) {
    STD_TORCH_CHECK(images.dim() == 5 && weights.dim() == 5 && base.dim() == 4,
                    "images must be (B, N, C, H, W), weights (B, L, N, h, w) and base (B, N, h, w)");
    STD_TORCH_CHECK(weights.scalar_type() == images.scalar_type() && base.scalar_type() == images.scalar_type(),
                    "weights and base must have the images' dtype");
    batch = images.size(0), count = images.size(1), channels = images.size(2), height = images.size(3),
    width = images.size(4);
    bands = weights.size(1);
    STD_TORCH_CHECK(
        scale_ >= 1 && scale_ <= kMaxExpansion && (scale_ & (scale_ - 1)) == 0 && bands < 7 && (1 << bands) <= scale_,
        "scale must be a power of two from 2^L to 64, got ", scale_);
    STD_TORCH_CHECK(count > 0 && channels > 0 && height > 0 && width > 0, "images must not be empty");
    down = (height + scale - 1) / scale, across = (width + scale - 1) / scale;
    STD_TORCH_CHECK(
        weights.size(0) == batch && weights.size(2) == count && weights.size(3) == down && weights.size(4) == across,
        "weights must be (B, L, N, ceil(H / scale), ceil(W / scale))");
    STD_TORCH_CHECK(base.size(0) == batch && base.size(1) == count && base.size(2) == down && base.size(3) == across,
                    "base must be (B, N, ceil(H / scale), ceil(W / scale))");
    weights = torch::stable::contiguous(torch::stable::to(weights, wide));
    base = torch::stable::contiguous(torch::stable::to(base, wide));
    for (int64_t level = 0, h = height, w = width; level <= bands; ++level, h = half_of(h), w = half_of(w)) {
      heights.push_back(h);
      widths.push_back(w);
      coarse.push_back(level > 0 ? buffer(count * h * w) : Buffer<char>());
    }
  }

  Buffer<char> buffer(int64_t elements) const { return Buffer<char>(elements * item); }

  char* plane(char* all, int64_t level, int64_t n) const { return all + n * heights[level] * widths[level] * item; }
  PlaneView plane_view(const void* data, int64_t level) const { return {data, widths[level], 1, false}; }

  const void* weights_of(int64_t b, int64_t level) const {
    if (level == bands) return static_cast<const char*>(base.data_ptr()) + b * count * down * across * item;
    return static_cast<const char*>(weights.data_ptr()) + (b * bands + level) * count * down * across * item;
  }

  // Views a picture (.., H, W) of the images' dtype at an offset.
  PlaneView stored_view(const Tensor& tensor, int64_t offset) const {
    const int64_t bytes = bytes_of(scalar);
    const int64_t d = tensor.dim();
    return {static_cast<const char*>(tensor.data_ptr()) + offset * bytes, tensor.stride(d - 2), tensor.stride(d - 1),
            true};
  }

  void build_pyramids(int64_t b, int64_t c) {
    planes.assign(size_t(bands + 1), {});
    for (int64_t n = 0; n < count; ++n)
      planes[0].push_back(stored_view(images, b * images.stride(0) + n * images.stride(1) + c * images.stride(2)));
    for (int64_t level = 1; level <= bands; ++level)
      for (int64_t n = 0; n < count; ++n) {
        char* out = plane(coarse[level].get(), level, n);
        parallel_rows(heights[level], widths[level - 1], [&](int64_t begin, int64_t end) {
          kernels.halve(scalar, planes[level - 1][n], heights[level - 1], widths[level - 1], out, begin, end);
        });
        planes[level].push_back(plane_view(out, level));
      }
  }

  PyramidLevel level_of(int64_t b, int64_t level) const {
    PyramidLevel l{};
    l.scalar = scalar;
    l.count = count;
    l.height = heights[level];
    l.width = widths[level];
    l.fine = planes[level].data();
    l.coarse = level < bands ? coarse[level + 1].get() : nullptr;
    l.weights = weights_of(b, level);
    l.cells_down = down;
    l.cells_across = across;
    l.factor = scale >> level;
    return l;
  }
};

Tensor pyramid_fuse_cpu(const Tensor& images, const Tensor& weights, const Tensor& base, int64_t scale) {
  Call call(images, weights, base, scale);
  Tensor out = result_like(images, {call.batch, call.channels, call.height, call.width});
  const int64_t bytes = bytes_of(call.scalar);
  std::vector<Buffer<char>> fused(size_t(call.bands + 1));
  for (int64_t level = 1; level <= call.bands; ++level)
    fused[level] = call.buffer(call.heights[level] * call.widths[level]);
  for (int64_t b = 0; b < call.batch; ++b)
    for (int64_t c = 0; c < call.channels; ++c) {
      call.build_pyramids(b, c);
      for (int64_t level = call.bands; level >= 0; --level) {
        PyramidLevel l = call.level_of(b, level);
        l.coarse_fused = level < call.bands ? fused[level + 1].get() : nullptr;
        void* data =
            level > 0 ? static_cast<void*>(fused[level].get())
                      : static_cast<char*>(out.data_ptr()) + (b * call.channels + c) * call.height * call.width * bytes;
        parallel_rows(l.height, l.width * call.count,
                      [&](int64_t begin, int64_t end) { call.kernels.fuse(l, data, level == 0, begin, end); });
      }
    }
  return out;
}

// The gradients of images, weights and base.
std::vector<Tensor> pyramid_fuse_backward_cpu(const Tensor& grad, const Tensor& images, const Tensor& weights,
                                              const Tensor& base, int64_t scale, bool need_images, bool need_weights,
                                              bool need_base) {
  Call call(images, weights, base, scale);
  STD_TORCH_CHECK(grad.dim() == 4 && grad.scalar_type() == images.scalar_type() && grad.size(0) == call.batch &&
                      grad.size(1) == call.channels && grad.size(2) == call.height && grad.size(3) == call.width,
                  "grad must be (B, C, H, W) of the images' sizes and dtype");
  const int64_t bands = call.bands;
  Tensor image_grad = need_images
                          ? result_like(images, {call.batch, call.count, call.channels, call.height, call.width})
                          : torch::stable::new_empty(images, {0});
  // Sums over channels keep the wide dtype until the end.
  Tensor weight_grad = torch::stable::new_zeros(call.weights, {call.batch, bands, call.count, call.down, call.across});
  Tensor base_grad = torch::stable::new_zeros(call.base, {call.batch, call.count, call.down, call.across});
  const int64_t bytes = bytes_of(call.scalar);
  const int64_t cells = call.count * call.down * call.across * call.item;

  std::vector<Buffer<char>> grads(size_t(bands + 1)), above(size_t(bands + 1)), inner(size_t(bands + 1));
  for (int64_t level = 1; level <= bands; ++level) {
    const int64_t size = call.heights[level] * call.widths[level];
    grads[level] = call.buffer(size);
    if (need_images) above[level] = call.buffer(size), inner[level] = call.buffer(size);
  }
  for (int64_t b = 0; b < call.batch; ++b)
    for (int64_t c = 0; c < call.channels; ++c) {
      call.build_pyramids(b, c);
      std::vector<PlaneView> grad_views{call.stored_view(grad, b * grad.stride(0) + c * grad.stride(1))};
      for (int64_t level = 1; level <= bands; ++level) {
        PyramidLevel l = call.level_of(b, level - 1);
        l.weights = nullptr;
        l.grad = grad_views[level - 1];
        const int64_t h = call.heights[level], w = call.widths[level];
        parallel_rows(h, 4 * l.width, [&](int64_t begin, int64_t end) {
          call.kernels.expand_adjoint(l, 0, grads[level].get(), h, w, begin, end);
        });
        grad_views.push_back(call.plane_view(grads[level].get(), level));
      }
      for (int64_t level = 0; level <= bands; ++level) {
        if (level < bands ? !need_weights : !need_base) continue;
        PyramidLevel l = call.level_of(b, level);
        l.grad = grad_views[level];
        char* out = level < bands ? static_cast<char*>(weight_grad.data_ptr()) + (b * bands + level) * cells
                                  : static_cast<char*>(base_grad.data_ptr()) + b * cells;
        parallel_for(call.down, 1,
                     [&](int64_t begin, int64_t end) { call.kernels.weights_gradient(l, out, begin, end); });
      }
      if (!need_images) continue;
      for (int64_t n = 0; n < call.count; ++n)
        for (int64_t level = bands; level >= 0; --level) {
          PyramidLevel l = call.level_of(b, level);
          l.grad = grad_views[level];
          if (level > 0) {
            PyramidLevel finer = call.level_of(b, level - 1);
            finer.grad = grad_views[level - 1];
            parallel_rows(l.height, 4 * finer.width, [&](int64_t begin, int64_t end) {
              call.kernels.expand_adjoint(finer, n, above[level].get(), l.height, l.width, begin, end);
            });
          }
          void* out = level > 0 ? static_cast<void*>(inner[level].get())
                                : static_cast<char*>(image_grad.data_ptr()) +
                                      ((b * call.count + n) * call.channels + c) * call.height * call.width * bytes;
          parallel_rows(l.height, l.width, [&](int64_t begin, int64_t end) {
            call.kernels.image_gradient(l, n, level > 0 ? above[level].get() : nullptr,
                                        level < bands ? inner[level + 1].get() : nullptr, out, level == 0, begin, end);
          });
        }
    }
  return {image_grad,
          need_weights ? torch::stable::to(weight_grad, weights.scalar_type()) : torch::stable::new_empty(weights, {0}),
          need_base ? torch::stable::to(base_grad, base.scalar_type()) : torch::stable::new_empty(base, {0})};
}

}  // namespace
}  // namespace ffmef

STABLE_TORCH_LIBRARY_IMPL(ffmef, CPU, m) {
  m.impl("pyramid_fuse", TORCH_BOX(&ffmef::pyramid_fuse_cpu));
  m.impl("pyramid_fuse_backward", TORCH_BOX(&ffmef::pyramid_fuse_backward_cpu));
}
