// Fuses Laplacian pyramids band by band with weights from a coarse grid, and computes the gradients, row by row.
//
// Nothing is stored at full resolution: rows of weights, of the level below and of gradients are computed where they
// are used.
#include "pyramid_rows.h"

namespace ffmef {
namespace FFMEF_ISA {
namespace {

// A row in the precision of sums: in place if it is stored that way, otherwise a copy.
template <class T> const Acc<T>* read_row(const PlaneView& plane, int64_t y, int64_t width, Acc<T>* copy) {
  using A = Acc<T>;
  if (!plane.stored || std::is_same_v<T, A>) {
    const A* row = static_cast<const A*>(plane.data) + y * plane.row_stride;
    if (plane.column_stride == 1) return row;
    for (int64_t x = 0; x < width; ++x) copy[x] = row[x * plane.column_stride];
    return copy;
  }
  const T* row = static_cast<const T*>(plane.data) + y * plane.row_stride;
  int64_t x = 0;
  if (plane.column_stride == 1)
    for (; x + lanes<T> <= width; x += lanes<T>) store(copy + x, load(row + x));
  for (; x < width; ++x) copy[x] = to_acc(row[x * plane.column_stride]);
  return copy;
}

template <class T> void write_row(void* plane, bool stored, int64_t y, const Acc<T>* row, int64_t width) {
  if (!stored) {
    std::memcpy(static_cast<Acc<T>*>(plane) + y * width, row, size_t(width) * sizeof(Acc<T>));
    return;
  }
  T* out = static_cast<T*>(plane) + y * width;
  int64_t x = 0;
  for (; x + lanes<T> <= width; x += lanes<T>) store(out + x, load(row + x));
  for (; x < width; ++x) from_acc(row[x], out[x]);
}

template <class T>
void halve_typed(const PlaneView& fine, int64_t height, int64_t width, void* coarse, int64_t begin, int64_t end) {
  using A = Acc<T>;
  const int64_t half = half_of(width);
  Row<A> first(width), second(width), sum(2 * half);
  for (int64_t y = begin; y < end; ++y) {
    const A* upper = read_row<T>(fine, 2 * y, width, first);
    const A* lower = read_row<T>(fine, 2 * y + 1 < height ? 2 * y + 1 : 2 * y, width, second);
    A* s = sum;
    for (int64_t x = 0; x < width; ++x) s[x] = upper[x] + lower[x];
    if (width % 2) s[width] = s[width - 1];
    A* out = static_cast<A*>(coarse) + y * half;
    for (int64_t x = 0; x < half; ++x) out[x] = (s[2 * x] + s[2 * x + 1]) * A(0.25);
  }
}

template <class T> void fuse_typed(const PyramidLevel& level, void* out, bool stored, int64_t begin, int64_t end) {
  using A = Acc<T>;
  const int64_t width = level.width, down = half_of(level.height), across = half_of(width);
  const int64_t cells = level.cells_down * level.cells_across;
  Row<A> sum(width), copy(width);
  Expander<A> weight_row(level.cells_across, level.factor), below_row(across, 2);
  for (int64_t y = begin; y < end; ++y) {
    A* __restrict total = sum;
    if (level.coarse_fused != nullptr)
      std::memcpy(total, below_row(static_cast<const A*>(level.coarse_fused), down, across, 2, y),
                  size_t(width) * sizeof(A));
    else
      std::memset(total, 0, size_t(width) * sizeof(A));
    for (int64_t n = 0; n < level.count; ++n) {
      const A* __restrict image = read_row<T>(level.fine[n], y, width, copy);
      const A* __restrict weight = weight_row(static_cast<const A*>(level.weights) + n * cells, level.cells_down,
                                              level.cells_across, level.factor, y);
      if (level.coarse == nullptr) {
        for (int64_t x = 0; x < width; ++x) total[x] += weight[x] * image[x];
        continue;
      }
      const A* __restrict below =
          below_row(static_cast<const A*>(level.coarse) + n * down * across, down, across, 2, y);
      for (int64_t x = 0; x < width; ++x) total[x] += weight[x] * (image[x] - below[x]);
    }
    write_row<T>(out, stored, y, sum, width);
  }
}

template <class T> void expand_adjoint_typed(const PyramidLevel& level, int64_t image, void* coarse, int64_t height,
                                             int64_t width, int64_t begin, int64_t end) {
  using A = Acc<T>;
  Row<A> copy(level.width), product(level.width), padded(expanded_size(width, 2));
  Expander<A> weight_row(level.cells_across, level.factor);
  for (int64_t i = begin; i < end; ++i) {
    A* out = static_cast<A*>(coarse) + i * width;
    std::memset(out, 0, size_t(width) * sizeof(A));
    int64_t first, last;
    support_of(i, 2, height, level.height, first, last);
    for (int64_t y = first; y < last; ++y) {
      const A* row = read_row<T>(level.grad, y, level.width, copy);
      if (level.weights != nullptr) {
        const A* weight =
            weight_row(static_cast<const A*>(level.weights) + image * level.cells_down * level.cells_across,
                       level.cells_down, level.cells_across, level.factor, y);
        A* p = product;
        for (int64_t x = 0; x < level.width; ++x) p[x] = row[x] * weight[x];
        row = p;
      }
      collect_row(out, row, level.width, width, 2, A(share_of(i, y, 2, height)), padded.data);
    }
  }
}

template <class T> void weights_gradient_typed(const PyramidLevel& level, void* out, int64_t begin, int64_t end) {
  using A = Acc<T>;
  const int64_t width = level.width, down = half_of(level.height), across = half_of(width);
  Row<A> grad_copy(width), copy(width), product(width), padded(expanded_size(level.cells_across, level.factor));
  Expander<A> below_row(across, 2);
  for (int64_t i = begin; i < end; ++i) {
    int64_t first, last;
    support_of(i, level.factor, level.cells_down, level.height, first, last);
    for (int64_t y = first; y < last; ++y) {
      const A gain = A(share_of(i, y, level.factor, level.cells_down));
      const A* grad = read_row<T>(level.grad, y, width, grad_copy);
      for (int64_t n = 0; n < level.count; ++n) {
        const A* image = read_row<T>(level.fine[n], y, width, copy);
        A* p = product;
        if (level.coarse == nullptr) {
          for (int64_t x = 0; x < width; ++x) p[x] = grad[x] * image[x];
        } else {
          const A* below = below_row(static_cast<const A*>(level.coarse) + n * down * across, down, across, 2, y);
          for (int64_t x = 0; x < width; ++x) p[x] = grad[x] * (image[x] - below[x]);
        }
        A* row = static_cast<A*>(out) + (n * level.cells_down + i) * level.cells_across;
        collect_row(row, p, width, level.cells_across, level.factor, gain, padded.data);
      }
    }
  }
}

template <class T> void image_gradient_typed(const PyramidLevel& level, int64_t image, const void* above,
                                             const void* below, void* out, bool stored, int64_t begin, int64_t end) {
  using A = Acc<T>;
  const int64_t width = level.width, across = half_of(width);
  Row<A> copy(width), sum(width);
  Expander<A> weight_row(level.cells_across, level.factor);
  for (int64_t y = begin; y < end; ++y) {
    const A* grad = read_row<T>(level.grad, y, width, copy);
    const A* weight = weight_row(static_cast<const A*>(level.weights) + image * level.cells_down * level.cells_across,
                                 level.cells_down, level.cells_across, level.factor, y);
    A* s = sum;
    for (int64_t x = 0; x < width; ++x) s[x] = grad[x] * weight[x];
    if (above != nullptr) {
      const A* row = static_cast<const A*>(above) + y * width;
      for (int64_t x = 0; x < width; ++x) s[x] -= row[x];
    }
    if (below != nullptr) {
      // Halving the level read an odd border twice.
      const A* row = static_cast<const A*>(below) + y / 2 * across;
      const A quarter = y == level.height - 1 && level.height % 2 ? A(0.5) : A(0.25);
      for (int64_t x = 0; x < width; ++x) s[x] += quarter * row[x / 2];
      if (width % 2) s[width - 1] += quarter * row[across - 1];
    }
    write_row<T>(out, stored, y, sum, width);
  }
}

// --- the dtype, chosen at run time --------------------------------------------------------------------------------

void halve(Scalar scalar, const PlaneView& fine, int64_t height, int64_t width, void* coarse, int64_t begin,
           int64_t end) {
  FFMEF_BY_SCALAR(scalar, halve_typed<T>(fine, height, width, coarse, begin, end))
}
void fuse(const PyramidLevel& level, void* out, bool stored, int64_t begin, int64_t end) {
  FFMEF_BY_SCALAR(level.scalar, fuse_typed<T>(level, out, stored, begin, end))
}
void expand_adjoint(const PyramidLevel& level, int64_t image, void* coarse, int64_t height, int64_t width,
                    int64_t begin, int64_t end) {
  FFMEF_BY_SCALAR(level.scalar, expand_adjoint_typed<T>(level, image, coarse, height, width, begin, end))
}
void weights_gradient(const PyramidLevel& level, void* out, int64_t begin, int64_t end) {
  FFMEF_BY_SCALAR(level.scalar, weights_gradient_typed<T>(level, out, begin, end))
}
void image_gradient(const PyramidLevel& level, int64_t image, const void* above, const void* below, void* out,
                    bool stored, int64_t begin, int64_t end) {
  FFMEF_BY_SCALAR(level.scalar, image_gradient_typed<T>(level, image, above, below, out, stored, begin, end))
}

}  // namespace

extern const PyramidFuseKernels pyramid_fuse_kernels;
const PyramidFuseKernels pyramid_fuse_kernels = {.halve = halve,
                                                 .fuse = fuse,
                                                 .expand_adjoint = expand_adjoint,
                                                 .weights_gradient = weights_gradient,
                                                 .image_gradient = image_gradient};

}  // namespace FFMEF_ISA
}  // namespace ffmef
