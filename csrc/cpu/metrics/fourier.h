// Inverse Fourier transforms of several sequences at once, of any length, in float or double. As with vec.h, only
// *_kernels.cpp files include this header.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "../base/vec.h"

namespace ffmef {
namespace FFMEF_ISA {
namespace {

// One element from each of as many sequences as a register holds.
template <class T> struct Complex {
  Vec<T> re, im;
};

// Exchanges blocks of a square of sequences: the elements of row r and column c with bit `distance` set only in c.
template <int distance, class V, std::size_t... i> void exchange(V& a, V& b, std::index_sequence<i...>) {
  constexpr int n = int(sizeof...(i));
  const V upper = __builtin_shufflevector(a, b, (int(i) & distance ? n + int(i) - distance : int(i))...);
  b = __builtin_shufflevector(a, b, (int(i) & distance ? n + int(i) : int(i) + distance)...);
  a = upper;
}
template <int distance, int n, class V> void transpose_from(V* square) {
  if constexpr (distance < n) {
    for (int r = 0; r < n; ++r)
      if (!(r & distance)) exchange<distance>(square[r], square[r + distance], std::make_index_sequence<n>());
    transpose_from<2 * distance, n>(square);
  }
}
// Rows of a square become its columns.
template <class T> void transpose(Vec<T>* square) { transpose_from<1, lanes<T>>(square); }

constexpr double kTau = 6.283185307179586476925286766559;

inline int64_t next_radix(int64_t length) {
  if (length % 2 == 0) return length % 4 == 0 ? 4 : 2;
  for (int64_t factor = 3; factor * factor <= length; factor += 2)
    if (length % factor == 0) return factor;
  return length;
}

// How a prime radix is evaluated: directly if convolution is 0, otherwise by a circular convolution of that length.
struct Evaluation {
  int64_t convolution;
  double cost;  // multiply-adds per output, roughly: only for choosing
};
inline double transform_cost(int64_t length);

// Rader's method: apart from its first element, a transform of prime length is a circular convolution whose length is
// one less. Zeros inserted in between allow any length from about twice that on.
inline Evaluation evaluation(int64_t radix) {
  Evaluation best{0, double(radix + 4)};
  if (radix <= 13) return best;
  const auto consider = [&](int64_t length) {
    const double cost = (2 * transform_cost(length) + 6) * double(length) / double(radix);
    if (cost < best.cost) best = {length, cost};
  };
  consider(radix - 1);
  int64_t smooth = 2 * (radix - 1) - 1;
  for (int64_t rest;; ++smooth) {
    rest = smooth;
    for (int64_t factor : {2, 3, 5})
      while (rest % factor == 0) rest /= factor;
    if (rest == 1) break;
  }
  consider(smooth);
  return best;
}

inline double transform_cost(int64_t length) {
  double cost = 0;
  while (length > 1) {
    const int64_t radix = next_radix(length);
    cost += evaluation(radix).cost;
    length /= radix;
  }
  return cost;
}

// Self-sorting passes (Stockham): a pass of radix p reads x[i + m (j + p k)] and writes y[i + m (k + l q)], with l the
// product of the radices before it and m the rest. Factors 4 and 2 are written out; odd ones are evaluated directly,
// using the symmetry of cosine and sine, or by a convolution if that is less work.
template <class T> class InverseTransform {
 public:
  explicit InverseTransform(int64_t length) : length_(length), scratch_(size_t(length)) {
    int64_t rest = length, before = 1;
    while (rest > 1) {
      const int64_t radix = next_radix(rest), half = radix / 2;
      rest /= radix;
      passes_.push_back(Pass{radix, before, rest, {}, {}, nullptr});
      Pass& pass = passes_.back();
      for (int64_t q = 0; q < radix; ++q)
        for (int64_t i = 0; i < rest; ++i) push_rotation(pass.twiddles, before * q * i % length, length);
      if (const int64_t convolution = evaluation(radix).convolution) {
        pass.convolution = std::make_unique<Convolution>(radix, convolution);
      } else if (radix % 2 == 1) {
        for (int64_t q = 1; q <= half; ++q)
          for (int64_t j = 1; j <= half; ++j) push_rotation(pass.rotations, q * j % radix, radix);
        sums_.resize(std::max(size_t(half), sums_.size()));
      }
      before *= radix;
    }
    differences_.resize(sums_.size());
  }

  // Transforms data[0..length) in place, without dividing by the length.
  void run(Complex<T>* data) {
    const Complex<T>* result = run(data, scratch_.data(), data);
    if (result != data) std::copy(result, result + length_, data);
  }

  // The same, with the result in one of two places: the first if the number of passes is odd. `from` may be the second.
  Complex<T>* run(const Complex<T>* from, Complex<T>* to, Complex<T>* other) {
    if (passes_.empty()) other[0] = from[0];
    for (const Pass& pass : passes_) {
      if (pass.convolution)
        convolve(pass, from, to);
      else if (pass.radix == 4)
        quartets(pass, from, to);
      else if (pass.radix == 2)
        couples(pass, from, to);
      else if (pass.radix == 3)
        few<3>(pass, from, to);
      else if (pass.radix == 5)
        few<5>(pass, from, to);
      else if (pass.radix == 7)
        few<7>(pass, from, to);
      else
        many(pass, from, to);
      from = to;
      std::swap(to, other);
    }
    return other;
  }
  bool odd() const { return passes_.size() % 2 == 1; }

 private:
  using V = Vec<T>;
  using C = Complex<T>;

  static void push_rotation(std::vector<T>& list, int64_t part, int64_t whole) {
    const double angle = kTau * double(part) / double(whole);
    list.push_back(T(std::cos(angle)));
    list.push_back(T(std::sin(angle)));
  }

  struct Convolution {
    std::vector<int64_t> powers;  // of a generator g of the numbers modulo the prime
    InverseTransform transform;
    std::vector<T> response;  // transform of the rotations in the order of the powers, divided by the length
    std::vector<C> values, others;

    Convolution(int64_t prime, int64_t length) : transform(length), values(size_t(length)), others(size_t(length)) {
      const int64_t count = prime - 1;
      for (int64_t generator = 2; int64_t(powers.size()) < count; ++generator) {
        powers.clear();
        int64_t power = 1;
        do {
          powers.push_back(power);
          power = power * generator % prime;
        } while (power != 1);
      }
      // Element t is the rotation by g^-t. If the length leaves room, element -t lies at the end, after the zeros.
      std::vector<double> cosines(size_t(length), 0.0), sines(size_t(length), 0.0);
      for (int64_t t = 0; t < count; ++t) {
        const double angle = kTau * double(powers[size_t((count - t) % count)]) / double(prime);
        for (int64_t at : {t, length - count + t})
          if (at == t || t > 0) {
            cosines[size_t(at)] = std::cos(angle);
            sines[size_t(at)] = std::sin(angle);
          }
      }
      std::vector<Complex<double>> spectrum(size_t(length), Complex<double>{});
      for (int64_t t = 0; t < length; ++t) {
        spectrum[size_t(t)].re += cosines[size_t(t)];
        spectrum[size_t(t)].im += sines[size_t(t)];
      }
      InverseTransform<double>(length).run(spectrum.data());
      for (const Complex<double>& value : spectrum) {
        response.push_back(T(value.re[0] / double(length)));
        response.push_back(T(value.im[0] / double(length)));
      }
    }
  };

  struct Pass {
    int64_t radix, before, rest;
    std::vector<T> twiddles;   // [q][i] cosine and sine
    std::vector<T> rotations;  // [q][j] cosine and sine, for odd radices that are evaluated directly
    std::unique_ptr<Convolution> convolution;
  };

  static void put(C& to, const C& value, const T* twiddle) {
    to.re = value.re * twiddle[0] - value.im * twiddle[1];
    to.im = value.re * twiddle[1] + value.im * twiddle[0];
  }

  static void couples(const Pass& p, const C* x, C* y) {
    for (int64_t k = 0; k < p.before; ++k)
      for (int64_t i = 0; i < p.rest; ++i) {
        const C a = x[i + p.rest * 2 * k], b = x[i + p.rest * (1 + 2 * k)];
        y[i + p.rest * k] = {a.re + b.re, a.im + b.im};
        put(y[i + p.rest * (k + p.before)], {a.re - b.re, a.im - b.im}, &p.twiddles[size_t(2 * (p.rest + i))]);
      }
  }

  static void quartets(const Pass& p, const C* x, C* y) {
    const int64_t m = p.rest, l = p.before;
    for (int64_t k = 0; k < l; ++k)
      for (int64_t i = 0; i < m; ++i) {
        const C a = x[i + m * 4 * k], b = x[i + m * (1 + 4 * k)];
        const C c = x[i + m * (2 + 4 * k)], d = x[i + m * (3 + 4 * k)];
        const C ac = {a.re + c.re, a.im + c.im}, a_c = {a.re - c.re, a.im - c.im};
        const C bd = {b.re + d.re, b.im + d.im}, b_d = {d.im - b.im, b.re - d.re};  // i (b - d)
        y[i + m * k] = {ac.re + bd.re, ac.im + bd.im};
        put(y[i + m * (k + l)], {a_c.re + b_d.re, a_c.im + b_d.im}, &p.twiddles[size_t(2 * (m + i))]);
        put(y[i + m * (k + 2 * l)], {ac.re - bd.re, ac.im - bd.im}, &p.twiddles[size_t(2 * (2 * m + i))]);
        put(y[i + m * (k + 3 * l)], {a_c.re - b_d.re, a_c.im - b_d.im}, &p.twiddles[size_t(2 * (3 * m + i))]);
      }
  }

  // An odd radix whose sums and differences fit in registers.
  template <int radix> static void few(const Pass& p, const C* x, C* y) {
    const int64_t m = p.rest, l = p.before;
    constexpr int half = radix / 2;
    for (int64_t k = 0; k < l; ++k)
      for (int64_t i = 0; i < m; ++i) {
        const C first = x[i + m * radix * k];
        C sums[half], differences[half], total = first;
        for (int j = 1; j <= half; ++j) {
          const C a = x[i + m * (j + radix * k)], b = x[i + m * (radix - j + radix * k)];
          sums[j - 1] = {a.re + b.re, a.im + b.im};
          differences[j - 1] = {a.re - b.re, a.im - b.im};
          total = {total.re + sums[j - 1].re, total.im + sums[j - 1].im};
        }
        y[i + m * k] = total;
        for (int q = 1; q <= half; ++q) outputs<1, half>(p, i, k, q, first, sums, differences, y);
      }
  }

  void many(const Pass& p, const C* x, C* y) {
    const int64_t m = p.rest, l = p.before, radix = p.radix, half = radix / 2;
    C* sums = sums_.data();
    C* differences = differences_.data();
    for (int64_t k = 0; k < l; ++k)
      for (int64_t i = 0; i < m; ++i) {
        const C first = x[i + m * radix * k];
        C total = first;
        for (int64_t j = 1; j <= half; ++j) {
          const C a = x[i + m * (j + radix * k)], b = x[i + m * (radix - j + radix * k)];
          sums[j - 1] = {a.re + b.re, a.im + b.im};
          differences[j - 1] = {a.re - b.re, a.im - b.im};
          total = {total.re + sums[j - 1].re, total.im + sums[j - 1].im};
        }
        y[i + m * k] = total;
        // Groups have nearly equal sizes, because a single output would load as much as a group.
        int64_t q = 1, groups = (half + kOutputs - 1) / kOutputs;
        for (; groups > 0; --groups) {
          const int64_t group = (half + 1 - q + groups - 1) / groups;
          if (group == 5)
            outputs<5, 0>(p, i, k, q, first, sums, differences, y);
          else if (group == 4)
            outputs<4, 0>(p, i, k, q, first, sums, differences, y);
          else if (group == 3)
            outputs<3, 0>(p, i, k, q, first, sums, differences, y);
          else if (group == 2)
            outputs<2, 0>(p, i, k, q, first, sums, differences, y);
          else
            outputs<1, 0>(p, i, k, q, first, sums, differences, y);
          q += group;
        }
      }
  }

  // Computes as many outputs at once as the registers hold: each sum is then loaded once for all of them.
#if defined(__AVX512F__)
  static constexpr int kOutputs = 5;
#else
  static constexpr int kOutputs = 2;
#endif

  // Outputs q to q + count - 1 and their mirror images. half is known_half unless that is 0.
  template <int count, int known_half> static void outputs(const Pass& p, int64_t i, int64_t k, int64_t q,
                                                           const C& first, const C* sums, const C* differences, C* y) {
    const int64_t m = p.rest, l = p.before, half = known_half ? known_half : p.radix / 2;
    const T* rotation[count];
    C even[count], odd[count];
    for (int o = 0; o < count; ++o) {
      rotation[o] = &p.rotations[size_t(2 * (q + o - 1) * half)];
      even[o] = first;
      odd[o] = {V{}, V{}};
    }
    for (int64_t j = 0; j < half; ++j)
      for (int o = 0; o < count; ++o) {
        const T cosine = rotation[o][2 * j], sine = rotation[o][2 * j + 1];
        even[o].re += sums[j].re * cosine;
        even[o].im += sums[j].im * cosine;
        odd[o].re += differences[j].re * sine;
        odd[o].im += differences[j].im * sine;
      }
    for (int o = 0; o < count; ++o) {
      const int64_t up = q + o, down = p.radix - up;
      put(y[i + m * (k + l * up)], {even[o].re - odd[o].im, even[o].im + odd[o].re},
          &p.twiddles[size_t(2 * (m * up + i))]);
      put(y[i + m * (k + l * down)], {even[o].re + odd[o].im, even[o].im - odd[o].re},
          &p.twiddles[size_t(2 * (m * down + i))]);
    }
  }

  static void convolve(const Pass& p, const C* x, C* y) {
    const int64_t m = p.rest, l = p.before, count = p.radix - 1;
    Convolution& c = *p.convolution;
    const int64_t length = int64_t(c.values.size());
    for (int64_t k = 0; k < l; ++k)
      for (int64_t i = 0; i < m; ++i) {
        const C first = x[i + m * p.radix * k];
        C *values = c.values.data(), *others = c.others.data();
        for (int64_t v = 0; v < count; ++v) values[v] = x[i + m * (c.powers[size_t(v)] + p.radix * k)];
        std::fill(values + count, values + length, C{});
        if (c.transform.run(values, others, values) == others) std::swap(values, others);
        y[i + m * k] = {first.re + values[0].re, first.im + values[0].im};
        for (int64_t t = 0; t < length; ++t) put(values[t], C(values[t]), &c.response[size_t(2 * t)]);
        values[0].re += first.re;  // reaches every output
        values[0].im += first.im;
        // A second inverse transform leaves the elements in the reverse order of a forward one.
        if (c.transform.run(values, others, values) == others) std::swap(values, others);
        for (int64_t v = 0; v < count; ++v) {
          const int64_t q = c.powers[size_t((count - v) % count)];
          put(y[i + m * (k + l * q)], values[(length - v) % length], &p.twiddles[size_t(2 * (m * q + i))]);
        }
      }
  }

  int64_t length_;
  std::vector<Pass> passes_;
  std::vector<C> scratch_, sums_, differences_;
};

}  // namespace
}  // namespace FFMEF_ISA
}  // namespace ffmef
