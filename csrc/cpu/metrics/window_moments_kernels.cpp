// Weighted means of maps and of their products in separable, symmetric windows: rows first, then columns.
#include "window_moments.h"

#include <algorithm>
#include <vector>

#include "../base/vec.h"

namespace ffmef {
namespace FFMEF_ISA {
namespace {

constexpr int64_t kLanes = lanes<double>;
constexpr int64_t kRows = 48;  // at a time, few enough to stay in cache
constexpr int kVectors = 4;    // sums at a time, so that none waits for the previous one

inline DoubleVec fused(DoubleVec a, double b, DoubleVec sum) {
#if defined(__AVX512F__)
  return (DoubleVec)_mm512_fmadd_pd((__m512d)a, _mm512_set1_pd(b), (__m512d)sum);
#elif defined(__FMA__)
  return (DoubleVec)_mm256_fmadd_pd((__m256d)a, _mm256_set1_pd(b), (__m256d)sum);
#elif defined(__ARM_NEON)
  return (DoubleVec)vfmaq_n_f64((float64x2_t)sum, (float64x2_t)a, b);
#else
  return sum + a * b;
#endif
}

// to[x..] = term(x..) of every count columns.
template <class Term> void each_column(int64_t count, double* to, const Term& term) {
  constexpr int64_t kBlock = kVectors * kLanes;
  int64_t x = 0;
  for (; x < count && count >= kBlock; x += kBlock) {
    x = std::min(x, count - kBlock);  // the last block may repeat part of the previous one
    DoubleVec sums[kVectors];
    term(x, sums, [](const double* from, int v) { return load(from + v * kLanes); });
    for (int v = 0; v < kVectors; ++v) store(to + x + v * kLanes, sums[v]);
  }
  for (; x < count; x += kLanes) {
    const int64_t rest = std::min(kLanes, count - x);
    DoubleVec sums[kVectors];
    term(x, sums, [&](const double* from, int v) { return v == 0 ? load_part(from, rest) : DoubleVec{}; });
    store_part(to + x, sums[0], rest);
  }
}

// The order and rounding of the sums match OpenCV's to the last bit. In constant channels they decide QC and QY, whose
// medians were compared with the toolkit's. Rows use fused multiply-adds, columns do not.
void weigh_row(const double* from, const double* taps, int64_t size, double* to, int64_t count) {
  each_column(count, to, [&](int64_t x, DoubleVec* sums, const auto& part) {
    for (int v = 0; v < kVectors; ++v) sums[v] = part(from + x, v) * taps[0];
    for (int64_t tap = 1; tap < size; ++tap)
      for (int v = 0; v < kVectors; ++v) sums[v] = fused(part(from + x + tap, v), taps[tap], sums[v]);
  });
}

void weigh_column(const double* from, int64_t step, const double* taps, int64_t size, double* to, int64_t count) {
  const int64_t reach = size / 2;
  const double *middle = from + reach * step, *half = taps + reach;
  each_column(count, to, [&](int64_t x, DoubleVec* sums, const auto& part) {
    for (int v = 0; v < kVectors; ++v) sums[v] = part(middle + x, v) * half[0];
    for (int64_t k = 1; k <= reach; ++k)
      for (int v = 0; v < kVectors; ++v)
        sums[v] += (part(middle + x + k * step, v) + part(middle + x - k * step, v)) * half[k];
  });
}

void moments(const WindowMomentsArgs& args, double* result) {
  const int64_t pixels = args.height * args.width, rows = args.height - args.size + 1;
  const int64_t columns = args.width - args.size + 1, kept = rows * columns;
  std::vector<double> weighed(size_t((kRows + args.size - 1) * columns)), product(size_t(args.width));
  const auto multiply = [&](const double* a, const double* b) {
    for (int64_t i = 0; i < args.width; ++i) product[size_t(i)] = a[i] * b[i];
    return product.data();
  };
  for (int64_t top = 0; top < rows; top += kRows)
    for (int64_t of = 0; of < args.count + args.pairs; ++of) {
      const int64_t pair = of - args.count, count = std::min(kRows, rows - top);
      for (int64_t y = 0; y < count + args.size - 1; ++y) {
        const double* row = args.maps + (top + y) * args.width;
        const double* values =
            pair < 0 ? row + of * pixels : multiply(row + args.first[pair] * pixels, row + args.second[pair] * pixels);
        weigh_row(values, args.taps, args.size, &weighed[size_t(y * columns)], columns);
      }
      for (int64_t y = 0; y < count; ++y) {
        double* const to = result + of * kept + (top + y) * columns;
        weigh_column(&weighed[size_t(y * columns)], columns, args.taps, args.size, to, columns);
        if (pair < 0) continue;
        const double* mean = result + (top + y) * columns;
        const double *a = mean + args.first[pair] * kept, *b = mean + args.second[pair] * kept;
        for (int64_t x = 0; x < columns; ++x) to[x] -= a[x] * b[x];
      }
    }
}

}  // namespace

extern const WindowMomentsKernels window_moments_kernels;
const WindowMomentsKernels window_moments_kernels = {.moments = moments};

}  // namespace FFMEF_ISA
}  // namespace ffmef
