// Filters planes in the Fourier domain, two at a time as real and imaginary parts: a real response keeps them apart.
// Rows are transformed in bands of as many as a register holds. Columns are then transformed, filtered and transformed
// back in one pass.
#include "spectral_filter.h"

#include <algorithm>
#include <vector>

#include "../base/buffer.h"
#include "fourier.h"

namespace ffmef {
namespace FFMEF_ISA {
namespace {

using Value = Complex<double>;
constexpr int64_t kLanes = lanes<double>;

struct Work {
  const SpectralFilterArgs& args;
  const int64_t height, width, bands, stored;
  InverseTransform<double> rows, columns;
  Buffer<Value> values;  // [band][x]
  std::vector<Value> column;

  explicit Work(const SpectralFilterArgs& a)
      : args(a),
        height(a.height),
        width(a.width),
        bands((a.height + kLanes - 1) / kLanes),
        stored(a.width / 2 + 1),
        rows(a.width),
        columns(a.height),
        values(bands * a.width, Pages::large),
        column(size_t(bands * kLanes)) {}

  // The second plane of a pair may be missing.
  void run(const double* first, const double* second, double* first_result, double* second_result) {
    for (int64_t band = 0; band < bands; ++band) {
      Value* row = &values[band * width];
      // With real and imaginary parts exchanged on both sides, the inverse transform is the forward one.
      read(first, band, row, &Value::im);
      read(second, band, row, &Value::re);
      rows.run(row);
    }
    for (int64_t x0 = 0; x0 < width; x0 += kLanes) filter_columns(x0);
    for (int64_t band = 0; band < bands; ++band) {
      Value* row = &values[band * width];
      rows.run(row);
      write(row, &Value::re, band, first_result);
      if (second) write(row, &Value::im, band, second_result);
    }
  }

  void read(const double* plane, int64_t band, Value* row, DoubleVec Value::* part) const {
    const int64_t used = std::min(kLanes, height - band * kLanes);
    for (int64_t x0 = 0; x0 < width; x0 += kLanes) {
      const int64_t count = std::min(kLanes, width - x0);
      DoubleVec square[kLanes] = {};
      for (int64_t i = 0; plane && i < used; ++i) {
        const double* from = plane + (band * kLanes + i) * width + x0;
        square[i] = count == kLanes ? load(from) : load_part(from, count);
      }
      transpose<double>(square);
      for (int64_t i = 0; i < count; ++i) row[x0 + i].*part = square[i];
    }
  }

  void write(const Value* row, DoubleVec Value::* part, int64_t band, double* plane) const {
    const int64_t used = std::min(kLanes, height - band * kLanes);
    const double scaling = 1 / (double(height) * double(width));
    for (int64_t x0 = 0; x0 < width; x0 += kLanes) {
      const int64_t count = std::min(kLanes, width - x0);
      DoubleVec square[kLanes] = {};
      for (int64_t i = 0; i < count; ++i) square[i] = row[x0 + i].*part * scaling;
      transpose<double>(square);
      for (int64_t i = 0; i < used; ++i) {
        double* to = plane + (band * kLanes + i) * width + x0;
        if (count == kLanes)
          store(to, square[i]);
        else
          store_part(to, square[i], count);
      }
    }
  }

  void filter_columns(int64_t x0) {
    const int64_t count = std::min(kLanes, width - x0);
    to_columns(x0, count);
    columns.run(column.data());
    for (int64_t y = 0; y < height; ++y) {
      DoubleVec response{};
      if (x0 + count <= stored) {
        const double* from = args.response + y * stored + x0;
        response = count == kLanes ? load(from) : load_part(from, count);
      } else {
        const int64_t mirrored_y = y > 0 ? height - y : 0;
        for (int64_t i = 0; i < count; ++i) {
          const int64_t x = x0 + i;
          response[i] = x < stored ? args.response[y * stored + x] : args.response[mirrored_y * stored + width - x];
        }
      }
      Value& value = column[size_t(y)];
      value = {value.im * response, value.re * response};
    }
    columns.run(column.data());
    to_rows(x0, count);
  }

  void to_columns(int64_t x0, int64_t count) {
    for (int64_t band = 0; band < bands; ++band) {
      const Value* from = &values[band * width + x0];
      DoubleVec re[kLanes] = {}, im[kLanes] = {};
      for (int64_t i = 0; i < count; ++i) re[i] = from[i].re, im[i] = from[i].im;
      transpose<double>(re);
      transpose<double>(im);
      for (int64_t i = 0; i < kLanes; ++i) column[size_t(band * kLanes + i)] = {re[i], im[i]};
    }
  }

  void to_rows(int64_t x0, int64_t count) {
    for (int64_t band = 0; band < bands; ++band) {
      const Value* from = &column[size_t(band * kLanes)];
      DoubleVec re[kLanes], im[kLanes];
      for (int64_t i = 0; i < kLanes; ++i) re[i] = from[i].re, im[i] = from[i].im;
      transpose<double>(re);
      transpose<double>(im);
      Value* to = &values[band * width + x0];
      for (int64_t i = 0; i < count; ++i) to[i] = {re[i], im[i]};
    }
  }
};

void filter(const SpectralFilterArgs& args, double* result) {
  Work work(args);
  const int64_t pixels = args.height * args.width;
  for (int64_t plane = 0; plane < args.count; plane += 2) {
    const double* first = args.planes + plane * pixels;
    double* to = result + plane * pixels;
    work.run(first, plane + 1 < args.count ? first + pixels : nullptr, to, to + pixels);
  }
}

}  // namespace

extern const SpectralFilterKernels spectral_filter_kernels;
const SpectralFilterKernels spectral_filter_kernels = {.filter = filter};

}  // namespace FFMEF_ISA
}  // namespace ffmef
