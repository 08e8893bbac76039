// Binds the fusion of 8-bit RGB pictures to torch: checks, the levels of half size and below, rows over threads.
#include "pyramid_fuse_rgb.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "../base/memory.h"
#include "../base/team.h"
#include "pyramid_fuse.h"

namespace ffmef {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

int64_t half_of(int64_t size) { return (size + 1) / 2; }

// Parts of some ten thousand pixels.
template <class F> void parallel_rows(Team& team, int64_t rows, int64_t width, const F& f) {
  team.over(rows, 1 + (1 << 14) / (width + 1), f);
}

// Rows of all planes, one after the other: threads meet once, not once a plane.
template <class F> void parallel_rows_of_planes(Team& team, int64_t planes, int64_t rows, int64_t width, const F& f) {
  parallel_rows(team, planes * rows, width, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin / rows; n * rows < end; ++n)
      f(n, begin > n * rows ? begin - n * rows : 0, end < (n + 1) * rows ? end - n * rows : rows);
  });
}

// A result in large pages: touching small ones for the first time is a tenth of the time.
Tensor new_result(const Tensor& like, const std::vector<int64_t>& sizes, ScalarType dtype) {
  Tensor result = torch::stable::new_empty(like, sizes, dtype);
  hint_huge_pages(result.data_ptr(), result.numel() * result.element_size());
  return result;
}

std::unique_ptr<float[]> new_plane(int64_t size) {
  std::unique_ptr<float[]> plane(new float[size_t(size)]);
  hint_huge_pages(plane.get(), size * int64_t(sizeof(float)));
  return plane;
}

// Contiguous pictures of one size; the public function explains mistakes.
struct Pictures {
  std::vector<Tensor> tensors;
  std::vector<const uint8_t*> data;
  int64_t height, width;

  explicit Pictures(const std::vector<Tensor>& pictures) {
    STD_TORCH_CHECK(!pictures.empty(), "pictures must hold at least one picture");
    for (const Tensor& picture : pictures) {
      STD_TORCH_CHECK(picture.dim() == 3 && picture.size(2) == 3 && picture.scalar_type() == ScalarType::Byte &&
                          picture.size(0) == pictures[0].size(0) && picture.size(1) == pictures[0].size(1) &&
                          picture.size(0) > 0 && picture.size(1) > 0,
                      "pictures must be uint8 (H, W, 3) of one size");
      tensors.push_back(torch::stable::contiguous(picture));
      data.push_back(static_cast<const uint8_t*>(tensors.back().data_ptr()));
    }
    height = pictures[0].size(0);
    width = pictures[0].size(1);
  }
  int64_t count() const { return int64_t(data.size()); }
};

Tensor half_luminance_cpu(const std::vector<Tensor>& pictures_) {
  const Pictures pictures(pictures_);
  const int64_t down = half_of(pictures.height), across = half_of(pictures.width);
  Tensor half = new_result(pictures_[0], {pictures.count(), down, across}, ScalarType::Float);
  const PyramidFuseRgbKernels& kernels = FFMEF_KERNELS(pyramid_fuse_rgb_kernels);
  float* out = static_cast<float*>(half.data_ptr());
  Team::run([&](Team& team) {
    parallel_rows_of_planes(
        team, pictures.count(), down, 2 * pictures.width, [&](int64_t n, int64_t begin, int64_t end) {
          kernels.halve(pictures.data[n], pictures.height, pictures.width, out + n * down * across, begin, end);
        });
  });
  return half;
}

Tensor pyramid_fuse_rgb_cpu(const std::vector<Tensor>& pictures_, const Tensor& half_, const Tensor& weights_,
                            const Tensor& base_, int64_t scale) {
  const Pictures pictures(pictures_);
  const int64_t count = pictures.count(), height = pictures.height, width = pictures.width;
  const Tensor half = torch::stable::contiguous(half_), weights = torch::stable::contiguous(weights_),
               base = torch::stable::contiguous(base_);
  STD_TORCH_CHECK(half.scalar_type() == ScalarType::Float && weights.scalar_type() == ScalarType::Float &&
                      base.scalar_type() == ScalarType::Float,
                  "half, weights and base must be float32");
  STD_TORCH_CHECK(
      half.dim() == 3 && half.size(0) == count && half.size(1) == half_of(height) && half.size(2) == half_of(width),
      "half must be (N, ceil(H / 2), ceil(W / 2))");
  const int64_t bands = weights.dim() == 4 ? weights.size(0) : 0;
  STD_TORCH_CHECK(
      bands >= 1 && bands < 7 && scale <= kMaxExpansion && (scale & (scale - 1)) == 0 && (1 << bands) <= scale,
      "weights must be (L, N, h, w) with 1 <= L, and scale a power of two from 2^L to 64");
  const int64_t down = (height + scale - 1) / scale, across = (width + scale - 1) / scale, cells = down * across;
  STD_TORCH_CHECK(weights.size(1) == count && weights.size(2) == down && weights.size(3) == across && base.dim() == 3 &&
                      base.size(0) == count && base.size(1) == down && base.size(2) == across,
                  "weights must be (L, N, ceil(H / scale), ceil(W / scale)) and base the same without L");
  Tensor out = new_result(pictures_[0], {height, width, 3}, ScalarType::Byte);
  uint8_t* data = static_cast<uint8_t*>(out.data_ptr());

  Team::run([&](Team& team) {
    const PyramidFuseKernels& kernels = FFMEF_KERNELS(pyramid_fuse_kernels);
    std::vector<int64_t> heights{height}, widths{width};
    std::vector<std::unique_ptr<float[]>> coarse(size_t(bands + 1)), fused(size_t(bands + 1));
    std::vector<std::vector<PlaneView>> planes(size_t(bands + 1));
    for (int64_t level = 1; level <= bands; ++level) {
      const int64_t h = half_of(heights.back()), w = half_of(widths.back());
      heights.push_back(h);
      widths.push_back(w);
      fused[level] = new_plane(h * w);
      if (level > 1) coarse[level] = new_plane(count * h * w);
      float* plane = level > 1 ? coarse[level].get() : static_cast<float*>(half.data_ptr());
      if (level > 1)
        parallel_rows_of_planes(team, count, h, 2 * widths[level - 1], [&](int64_t n, int64_t begin, int64_t end) {
          kernels.halve(Scalar::f32, planes[level - 1][n], heights[level - 1], widths[level - 1], plane + n * h * w,
                        begin, end);
        });
      for (int64_t n = 0; n < count; ++n) planes[level].push_back({plane + n * h * w, w, 1, false});
    }
    for (int64_t level = bands; level >= 1; --level) {
      PyramidLevel l{};
      l.scalar = Scalar::f32;
      l.count = count;
      l.height = heights[level];
      l.width = widths[level];
      l.fine = planes[level].data();
      l.coarse = level < bands ? coarse[level + 1].get() : nullptr;
      l.coarse_fused = level < bands ? fused[level + 1].get() : nullptr;
      l.weights =
          level < bands ? static_cast<const float*>(weights.data_ptr()) + level * count * cells : base.data_ptr();
      l.cells_down = down;
      l.cells_across = across;
      l.factor = int(scale >> level);
      parallel_rows(team, l.height, l.width * count,
                    [&](int64_t begin, int64_t end) { kernels.fuse(l, fused[level].get(), false, begin, end); });
    }
    const RgbLevel finest{count,
                          height,
                          width,
                          pictures.data.data(),
                          static_cast<const float*>(half.data_ptr()),
                          fused[1].get(),
                          static_cast<const float*>(weights.data_ptr()),
                          down,
                          across,
                          int(scale)};
    const PyramidFuseRgbKernels& rgb = FFMEF_KERNELS(pyramid_fuse_rgb_kernels);
    parallel_rows(team, height, 2 * width * count,
                  [&](int64_t begin, int64_t end) { rgb.fuse(finest, data, begin, end); });
  });
  return out;
}

}  // namespace
}  // namespace ffmef

STABLE_TORCH_LIBRARY_IMPL(ffmef, CPU, m) {
  m.impl("half_luminance", TORCH_BOX(&ffmef::half_luminance_cpu));
  m.impl("pyramid_fuse_rgb", TORCH_BOX(&ffmef::pyramid_fuse_rgb_cpu));
}
