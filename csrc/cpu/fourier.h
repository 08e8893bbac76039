// Inverse Fourier transforms of several sequences at once, of any length with small prime factors.
// Only *_kernels.cpp files include it, as vec.h.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "vec.h"

namespace ffmef {
namespace FFMEF_ISA {
namespace {

// One element of as many sequences as a register holds.
typedef double Lanes __attribute__((vector_size(FFMEF_VECTOR_BYTES), may_alias));
constexpr int64_t kLanes = FFMEF_VECTOR_BYTES / 8;

struct Complex {
  Lanes re, im;
};

// Exchanges blocks of a square of sequences: elements of row r and column c with bit `distance` set in c alone.
template <int distance, std::size_t... i> void exchange(Lanes& a, Lanes& b, std::index_sequence<i...>) {
  constexpr int n = int(kLanes);
  const Lanes upper = __builtin_shufflevector(a, b, (int(i) & distance ? n + int(i) - distance : int(i))...);
  b = __builtin_shufflevector(a, b, (int(i) & distance ? n + int(i) : int(i) + distance)...);
  a = upper;
}
template <int distance> void transpose_from(Lanes* square) {
  if constexpr (distance < int(kLanes)) {
    for (int r = 0; r < int(kLanes); ++r)
      if (!(r & distance)) exchange<distance>(square[r], square[r + distance], std::make_index_sequence<kLanes>());
    transpose_from<2 * distance>(square);
  }
}
// Rows of a square become its columns.
inline void transpose(Lanes* square) { transpose_from<1>(square); }

constexpr double kTau = 6.283185307179586476925286766559;

// Self-sorting passes (Stockham): a pass of radix p reads x[i + m (j + p k)] and writes y[i + m (k + l q)], with l the
// product of the radices before it and m the rest. Factors 4 and 2 are written out, odd ones are evaluated directly
// with the symmetry of cosine and sine.
class InverseTransform {
 public:
  explicit InverseTransform(int64_t length) : length_(length), scratch_(size_t(length)) {
    int64_t rest = length, before = 1;
    while (rest > 1) {
      int64_t radix = rest % 4 == 0 ? 4 : rest % 2 == 0 ? 2 : 3;
      while (rest % radix != 0) radix += 2;
      rest /= radix;
      passes_.push_back(Pass{radix, before, rest, {}, {}});
      Pass& pass = passes_.back();
      for (int64_t q = 0; q < radix; ++q)
        for (int64_t i = 0; i < rest; ++i) {
          const double angle = kTau * double(before * q * i % length) / double(length);
          pass.twiddles.push_back(std::cos(angle));
          pass.twiddles.push_back(std::sin(angle));
        }
      const int64_t half = radix / 2;
      if (radix % 2 == 1)
        for (int64_t q = 1; q <= half; ++q)
          for (int64_t j = 1; j <= half; ++j) {
            const double angle = kTau * double(q * j % radix) / double(radix);
            pass.rotations.push_back(std::cos(angle));
            pass.rotations.push_back(std::sin(angle));
          }
      before *= radix;
      sums_.resize(size_t(half) > sums_.size() ? size_t(half) : sums_.size());
    }
    differences_.resize(sums_.size());
  }

  // Transforms data[0..length) in place, without dividing by the length.
  void run(Complex* data) {
    Complex* from = data;
    Complex* to = scratch_.data();
    for (const Pass& pass : passes_) {
      if (pass.radix == 4) quartets(pass, from, to);
      else if (pass.radix == 2) couples(pass, from, to);
      else direct(pass, from, to);
      Complex* swap = from;
      from = to;
      to = swap;
    }
    if (from != data)
      for (int64_t i = 0; i < length_; ++i) data[i] = from[i];
  }

 private:
  struct Pass {
    int64_t radix, before, rest;
    std::vector<double> twiddles;   // [q][i] cosine and sine
    std::vector<double> rotations;  // [q][j] cosine and sine, for odd radices
  };

  static void put(Complex& to, const Complex& value, const double* twiddle) {
    to.re = value.re * twiddle[0] - value.im * twiddle[1];
    to.im = value.re * twiddle[1] + value.im * twiddle[0];
  }

  static void couples(const Pass& p, const Complex* x, Complex* y) {
    for (int64_t k = 0; k < p.before; ++k)
      for (int64_t i = 0; i < p.rest; ++i) {
        const Complex a = x[i + p.rest * 2 * k], b = x[i + p.rest * (1 + 2 * k)];
        y[i + p.rest * k] = {a.re + b.re, a.im + b.im};
        put(y[i + p.rest * (k + p.before)], {a.re - b.re, a.im - b.im}, &p.twiddles[size_t(2 * (p.rest + i))]);
      }
  }

  static void quartets(const Pass& p, const Complex* x, Complex* y) {
    const int64_t m = p.rest, l = p.before;
    for (int64_t k = 0; k < l; ++k)
      for (int64_t i = 0; i < m; ++i) {
        const Complex a = x[i + m * 4 * k], b = x[i + m * (1 + 4 * k)];
        const Complex c = x[i + m * (2 + 4 * k)], d = x[i + m * (3 + 4 * k)];
        const Complex ac = {a.re + c.re, a.im + c.im}, a_c = {a.re - c.re, a.im - c.im};
        const Complex bd = {b.re + d.re, b.im + d.im}, b_d = {d.im - b.im, b.re - d.re};  // i (b - d)
        y[i + m * k] = {ac.re + bd.re, ac.im + bd.im};
        put(y[i + m * (k + l)], {a_c.re + b_d.re, a_c.im + b_d.im}, &p.twiddles[size_t(2 * (m + i))]);
        put(y[i + m * (k + 2 * l)], {ac.re - bd.re, ac.im - bd.im}, &p.twiddles[size_t(2 * (2 * m + i))]);
        put(y[i + m * (k + 3 * l)], {a_c.re - b_d.re, a_c.im - b_d.im}, &p.twiddles[size_t(2 * (3 * m + i))]);
      }
  }

  void direct(const Pass& p, const Complex* x, Complex* y) {
    const int64_t m = p.rest, l = p.before, radix = p.radix, half = radix / 2;
    Complex* sums = sums_.data();
    Complex* differences = differences_.data();
    for (int64_t k = 0; k < l; ++k)
      for (int64_t i = 0; i < m; ++i) {
        const Complex first = x[i + m * radix * k];
        Complex total = first;
        for (int64_t j = 1; j <= half; ++j) {
          const Complex a = x[i + m * (j + radix * k)], b = x[i + m * (radix - j + radix * k)];
          sums[j - 1] = {a.re + b.re, a.im + b.im};
          differences[j - 1] = {a.re - b.re, a.im - b.im};
          total = {total.re + sums[j - 1].re, total.im + sums[j - 1].im};
        }
        y[i + m * k] = total;
        int64_t q = 1;
        for (; q + kOutputs - 1 <= half; q += kOutputs) outputs<kOutputs>(p, i, k, q, first, y);
        for (; q <= half; ++q) outputs<1>(p, i, k, q, first, y);
      }
  }

  // As many outputs at once as the registers hold, so that each sum is loaded once for all of them.
#if defined(__AVX512F__)
  static constexpr int kOutputs = 4;
#else
  static constexpr int kOutputs = 2;
#endif

  template <int count>
  void outputs(const Pass& p, int64_t i, int64_t k, int64_t q, const Complex& first, Complex* y) {
    const int64_t m = p.rest, l = p.before, half = p.radix / 2;
    const double* rotation[count];
    Complex even[count], odd[count];
    for (int o = 0; o < count; ++o) {
      rotation[o] = &p.rotations[size_t(2 * (q + o - 1) * half)];
      even[o] = first;
      odd[o] = {Lanes{}, Lanes{}};
    }
    for (int64_t j = 0; j < half; ++j) {
      const Complex sum = sums_[size_t(j)], difference = differences_[size_t(j)];
      for (int o = 0; o < count; ++o) {
        const double cosine = rotation[o][2 * j], sine = rotation[o][2 * j + 1];
        even[o].re += sum.re * cosine;
        even[o].im += sum.im * cosine;
        odd[o].re += difference.re * sine;
        odd[o].im += difference.im * sine;
      }
    }
    for (int o = 0; o < count; ++o) {
      const int64_t up = q + o, down = p.radix - up;
      put(y[i + m * (k + l * up)], {even[o].re - odd[o].im, even[o].im + odd[o].re},
          &p.twiddles[size_t(2 * (m * up + i))]);
      put(y[i + m * (k + l * down)], {even[o].re + odd[o].im, even[o].im - odd[o].re},
          &p.twiddles[size_t(2 * (m * down + i))]);
    }
  }

  int64_t length_;
  std::vector<Pass> passes_;
  std::vector<Complex> scratch_, sums_, differences_;
};

}  // namespace
}  // namespace FFMEF_ISA
}  // namespace ffmef
