// Phase congruency and its moments from the spectrum of one channel.
//
// The spectrum and the tables are stored in tiles of kTile columns, so that they are read in order. A picture's
// spectrum is kept up to the middle column: each later column is the conjugate mirror image of an earlier one. For each
// orientation, the filtered spectra of all scales are transformed along the columns, kept in bands of rows with the
// values of a column side by side, and transformed along the rows. A band's energy is summed while the band is in
// cache.
#include "phase_congruency.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "../base/buffer.h"
#include "fourier.h"

namespace ffmef {
namespace FFMEF_ISA {
namespace {

constexpr double kEpsilon = 1e-4;
constexpr double kNoiseDeviations = 2.0, kNoiseDivisor = 1.7;
constexpr double kSpreadCutoff = 0.5, kSpreadSlope = 10.0;
constexpr double kHalfPi = kTau / 4;
constexpr int64_t kTile = kPhaseCongruencyTile;

typedef int64_t LongVec __attribute__((vector_size(FFMEF_VECTOR_BYTES), may_alias));
typedef float HalfFloatVec __attribute__((vector_size(FFMEF_VECTOR_BYTES / 2), may_alias));

template <class V> inline V root(V v) {
  V r;
  for (int i = 0; i < int(sizeof(V) / sizeof(v[0])); ++i) r[i] = std::sqrt(v[i]);
  return r;
}
template <class V> inline V magnitude(V v) { return v < 0 ? -v : v; }
template <class V> inline V larger(V a, V b) { return a > b ? a : b; }

template <class T> struct Format;
template <> struct Format<double> {
  using Integers = LongVec;
  using Sum = HalfFloatVec;                               // sums over the orientations are kept in float
  static constexpr double to_whole = 6755399441055744.0;  // adding this rounds to whole numbers
  static constexpr double ln2_high = 6.93147180369123816490e-01, ln2_low = 1.90821492927058770002e-10;
  static constexpr int terms = 13, mantissa = 52, bias = 1023;
};
template <> struct Format<float> {
  using Integers = IntVec;
  using Sum = FloatVec;
  static constexpr float to_whole = 12582912.0f;
  static constexpr float ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
  static constexpr int terms = 7, mantissa = 23, bias = 127;
};

// exp, to about the last place, if neither it nor its inverse overflows: 2^k times a polynomial of the remainder.
template <class T> Vec<T> exponential(Vec<T> v) {
  using F = Format<T>;
  using Integers = typename F::Integers;
  const Vec<T> shifted = v * T(1.4426950408889634074) + F::to_whole;
  const Vec<T> k = shifted - F::to_whole;
  const Vec<T> r = (v - k * F::ln2_high) - k * F::ln2_low;
  constexpr double kInverseFactorials[] = {
      1.0,        1.0,         0.5,          1.0 / 6,       1.0 / 24,       1.0 / 120,       1.0 / 720,
      1.0 / 5040, 1.0 / 40320, 1.0 / 362880, 1.0 / 3628800, 1.0 / 39916800, 1.0 / 479001600, 1.0 / 6227020800.0};
  Vec<T> sum{};
  for (int i = F::terms; i >= 0; --i) sum = sum * r + T(kInverseFactorials[i]);
  // The low bits of shifted hold k, because the constant's low bits are zero.
  using Integer = std::remove_reference_t<decltype(Integers{}[0])>;
  const Integers exponent = ((Integers)shifted << F::mantissa) + (Integer(F::bias) << F::mantissa);
  return sum * (Vec<T>)exponent;
}

// Loads numbers of a table as T.
inline DoubleVec load_as(const double* from, DoubleVec) { return load(from); }
inline FloatVec load_as(const double* from, FloatVec) {
  const HalfFloatVec low = __builtin_convertvector(load(from), HalfFloatVec);
  const HalfFloatVec high = __builtin_convertvector(load(from + lanes<double>), HalfFloatVec);
  FloatVec both;
  std::memcpy(&both, &low, sizeof low);
  std::memcpy(reinterpret_cast<char*>(&both) + sizeof low, &high, sizeof high);
  return both;
}

template <class T> struct Work {
  using V = Vec<T>;
  using Sum = typename Format<T>::Sum;
  static constexpr int64_t kLanes = lanes<T>;

  const PhaseCongruencyArgs& args;
  const int64_t height, width, stored, bands, tiles;
  InverseTransform<T> columns, rows;
  struct Radial {
    V gain, ratio;
  };  // factor of the current scale, and from scale to scale
  struct Sums {
    Sum congruency, amplitude, xx, yy, xy;
  };  // over the orientations

  std::vector<Complex<T>> partial, column, other;  // [H]: before and after the radial factor
  std::vector<Radial> radial;                      // [H]
  std::vector<Complex<T>> row;                     // [1 + scales][W]
  std::vector<Buffer<Complex<T>>> filtered;        // [scale][band][x], after the columns' transform
  Buffer<Sums> sums;                               // [band][x]
  Buffer<T> spectrum;                              // [tile][y][part][kTile], of the columns up to the middle
  std::vector<T> middle;

  explicit Work(const PhaseCongruencyArgs& a)
      : args(a),
        height(a.height),
        width(a.width),
        stored(a.width / 2 + 1),
        bands((a.height + kLanes - 1) / kLanes),
        tiles(phase_congruency_tiles(a.width)),
        columns(a.height),
        rows(a.width),
        partial(size_t(a.height)),
        column(size_t(a.height)),
        other(size_t(a.height)),
        radial(size_t(a.height)),
        row(size_t((a.scales + 1) * a.width)),
        sums(bands * width, Pages::large),
        spectrum(tiles * height * 2 * kTile, Pages::large) {
    for (int s = 0; s < std::max(2, a.scales); ++s) filtered.emplace_back(bands * width, Pages::large);
  }

  // Once a band's energy is known, its results overwrite the transforms that they came from.
  V& energy(int64_t at) { return filtered[0][at].re; }
  V& spread(int64_t at) { return filtered[0][at].im; }
  V& amplitude(int64_t at) { return filtered[1][at].re; }
  V& smallest(int64_t at) { return filtered[1][at].im; }  // squared amplitude of the smallest scale

  // The spectrum of a picture, in double: first the rows, two bands as the parts of complex numbers, then the columns.
  void transform_picture(const uint8_t* levels) {
    constexpr int64_t n = lanes<double>;
    const int64_t pairs = (height + 2 * n - 1) / (2 * n);
    InverseTransform<double> along_rows(width), along_columns(height);
    std::vector<Complex<double>> row(size_t(width + 1)), tile_column(size_t(2 * n * pairs));
    Buffer<Complex<double>> of_rows(2 * pairs * stored, Pages::large);  // [band][x]
    for (int64_t pair = 0; pair < pairs; ++pair) {
      for (int64_t x = 0; x < width; ++x) row[size_t(x)] = {DoubleVec{}, DoubleVec{}};
      for (int64_t i = 0; i < 2 * n && 2 * n * pair + i < height; ++i) {
        const uint8_t* from = levels + (2 * n * pair + i) * width;
        double* to = reinterpret_cast<double*>(row.data()) + i;
        for (int64_t x = 0; x < width; ++x) to[2 * n * x] = from[x];
      }
      along_rows.run(row.data());
      row[size_t(width)] = row[0];
      Complex<double>*first = &of_rows[2 * pair * stored], *second = first + stored;
      for (int64_t x = 0; x < stored; ++x) {
        const Complex<double>&a = row[size_t(x)], &b = row[size_t(width - x)];
        first[x] = {(a.re + b.re) / 2, (a.im - b.im) / 2};
        second[x] = {(a.im + b.im) / 2, (b.re - a.re) / 2};
      }
    }
    for (int64_t x0 = 0; x0 < stored; x0 += n) {
      for (int64_t band = 0; band < 2 * pairs; ++band) {
        DoubleVec re[n], im[n];
        for (int64_t i = 0; i < n; ++i) {
          const Complex<double>& value = of_rows[band * stored + std::min(x0 + i, stored - 1)];
          re[i] = value.re;
          im[i] = value.im;
        }
        transpose<double>(re);
        transpose<double>(im);
        for (int64_t i = 0; i < n; ++i) tile_column[size_t(band * n + i)] = {re[i], im[i]};
      }
      along_columns.run(tile_column.data());
      T* to = &spectrum[x0 / kTile * height * 2 * kTile + x0 % kTile];
      for (int64_t y = 0; y < height; ++y, to += 2 * kTile)
        for (int64_t i = 0; i < n; ++i) {
          to[i] = T(tile_column[size_t(y)].re[i]);
          to[kTile + i] = T(-tile_column[size_t(y)].im[i]);  // both transforms were inverse ones
        }
    }
  }

  void transform_columns(double angle) {
    const T sharpness = T(-0.5 / (args.angular_deviation * args.angular_deviation));
    const int64_t plane = 2 * tiles * height * kTile;  // of a table
    for (int64_t x0 = 0; x0 < stored; x0 += kLanes)
      for (int mirrored = 0; mirrored < 2; ++mirrored) {
        const int64_t first = mirrored && x0 == 0 ? 1 : 0;
        const int64_t last = std::min(kLanes, (mirrored ? width - stored + 1 : stored) - x0);
        if (first >= last) continue;
        const int64_t tile = x0 / kTile, in_tile = x0 % kTile;
        const double* table = args.tables + (mirrored * tiles + tile) * height * kTile + in_tile;
        const T* const values = &spectrum[tile * height * 2 * kTile + in_tile];
        for (int64_t y = 0; y < height; ++y) {
          const double* from = table + y * kTile;
          V distance = magnitude(load_as(from + 2 * plane, V{}) - T(angle));
          distance = distance > T(kTau / 2) ? T(kTau) - distance : distance;
          const V angular = exponential<T>(distance * distance * sharpness);
          const T* value = values + (mirrored && y > 0 ? height - y : y) * 2 * kTile;
          const V im = load(value + kTile);
          partial[size_t(y)] = {load(value) * angular, (mirrored ? -im : im) * angular};
          radial[size_t(y)] = {load_as(from, V{}), load_as(from + plane, V{})};
        }
        for (int s = 0; s < args.scales; ++s) {
          const T decay = T(args.decay[s]);
          for (int64_t y = 0; y < height; ++y) {
            if (s > 0) radial[size_t(y)].gain *= radial[size_t(y)].ratio;
            const V gain = radial[size_t(y)].gain * decay;
            column[size_t(y)] = {partial[size_t(y)].re * gain, partial[size_t(y)].im * gain};
          }
          turn(columns.run(column.data(), other.data(), column.data()), mirrored ? width - x0 : x0, mirrored ? -1 : 1,
               first, last, filtered[size_t(s)]);
        }
      }
  }

  // Transposes columns side by side, starting at x0 in steps of 1 or -1, to rows side by side.
  void turn(const Complex<T>* from, int64_t x0, int64_t step, int64_t first, int64_t last, Buffer<Complex<T>>& result) {
    for (int64_t band = 0; band < bands; ++band) {
      const int64_t y0 = band * kLanes, used = std::min(kLanes, height - y0);
      V re[kLanes], im[kLanes];
      for (int64_t y = 0; y < kLanes; ++y) {
        const Complex<T>& row = from[y0 + std::min(y, used - 1)];  // beyond the picture: any finite value
        re[y] = row.re;
        im[y] = row.im;
      }
      transpose<T>(re);
      transpose<T>(im);
      Complex<T>* to = &result[band * width + x0];
      for (int64_t i = first; i < last; ++i) to[step * i] = {re[i], im[i]};
    }
  }

  // Computes the local energy, frequency spread and amplitude of one band.
  void sum_band(int64_t band) {
    const T scaling = T(1.0 / (double(height) * double(width)));
    // Transforms out of place, so that the input need not be written back to memory.
    const Complex<T>* transformed[kMostScales];
    for (int s = 0; s < args.scales; ++s) {
      Complex<T>*shared = row.data(), *own = &row[size_t((s + 1) * width)];
      transformed[s] =
          rows.run(&filtered[size_t(s)][band * width], rows.odd() ? own : shared, rows.odd() ? shared : own);
    }
    for (int64_t x = 0; x < width; ++x) {
      const int64_t at = band * width + x;
      Complex<T> response[kMostScales];
      V even{}, odd{}, sum{}, peak{}, square_of_first{};
      for (int s = 0; s < args.scales; ++s) {
        response[s] = {transformed[s][x].re * scaling, transformed[s][x].im * scaling};
        const V square = response[s].re * response[s].re + response[s].im * response[s].im;
        if (s == 0) square_of_first = square;
        const V modulus = root(square);
        even += response[s].re;
        odd += response[s].im;
        sum += modulus;
        peak = larger(peak, modulus);
      }
      const V inverse_norm = T(1) / (root(even * even + odd * odd) + T(kEpsilon));
      even *= inverse_norm;
      odd *= inverse_norm;
      V total{};
      for (int s = 0; s < args.scales; ++s)
        total += response[s].re * even + response[s].im * odd - magnitude(response[s].re * odd - response[s].im * even);
      const V extent = sum / ((peak + T(kEpsilon)) * T(args.scales));
      energy(at) = total;
      spread(at) = T(1) + exponential<T>(T(kSpreadSlope) * (T(kSpreadCutoff) - extent));
      amplitude(at) = sum;
      smallest(at) = square_of_first;
    }
  }

  // The median of the squared amplitudes at the smallest scale; for even counts, the mean of the middle two. A sample
  // narrows it down, so that all but a few numbers need only be counted.
  double median_of_smallest() {
    const int64_t total = height * width, upper = total / 2, vectors = bands * width;
    const int64_t step = std::max(int64_t(1), vectors / 8192);
    middle.clear();
    for (int64_t at = 0; at < vectors; at += step) {
      const int64_t used = std::min(kLanes, height - at / width * kLanes);
      middle.push_back(smallest(at)[at / step % used]);
    }
    const auto of_sample = [&](double share) {
      const auto place = middle.begin() + std::ptrdiff_t(share * double(middle.size() - 1));
      std::nth_element(middle.begin(), place, middle.end());
      return *place;
    };
    T low = of_sample(0.46), high = of_sample(0.54);
    int64_t below = 0, count = 0;
    for (bool all = false;; all = true, low = 0, high = std::numeric_limits<T>::max()) {
      below = count = 0;
      for (int64_t band = 0; band < bands; ++band) {
        const int64_t used = std::min(kLanes, height - band * kLanes);
        if (int64_t(middle.size()) < count + width * kLanes) middle.resize(size_t(count + 8 * width * kLanes));
        T* const to = middle.data();
        for (int64_t x = 0; x < width; ++x) {
          const V v = smallest(band * width + x);
          if (used == kLanes) {
            select(v, low, high, to, below, count);
            continue;
          }
          for (int64_t y = 0; y < used; ++y) {
            to[count] = v[y];
            below += v[y] < low;
            count += v[y] >= low && v[y] <= high;
          }
        }
      }
      if (all || (below < upper && upper < below + count)) break;  // both middle numbers are in range
    }
    const auto place = middle.begin() + std::ptrdiff_t(upper - below);
    std::nth_element(middle.begin(), place, middle.begin() + count);
    if (total % 2 == 1) return double(*place);
    return (double(*std::max_element(middle.begin(), place)) + double(*place)) / 2;
  }

  // Appends the numbers between low and high, and counts those below.
  static void select(V v, T low, T high, T* to, int64_t& below, int64_t& count) {
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == sizeof(float)) {
      const __m512 values = (__m512)v;
      const __mmask16 less = _mm512_cmp_ps_mask(values, _mm512_set1_ps(low), _CMP_LT_OQ);
      const __mmask16 here = _mm512_cmp_ps_mask(values, _mm512_set1_ps(high), _CMP_LE_OQ) & ~less;
      _mm512_storeu_ps(to + count, _mm512_maskz_compress_ps(here, values));
      below += __builtin_popcount(less);
      count += __builtin_popcount(here);
      return;
    }
#endif
    for (int64_t y = 0; y < kLanes; ++y) {
      to[count] = v[y];
      below += v[y] < low;
      count += v[y] >= low && v[y] <= high;
    }
  }

  static void add(Sum& sum, V value) { sum += __builtin_convertvector(value, Sum); }

  // Returns false if the noise threshold is too low for the rounding of T.
  bool add_orientation(int orientation) {
    const double angle = kTau / 2 * orientation / args.orientations;
    transform_columns(angle);
    for (int64_t band = 0; band < bands; ++band) sum_band(band);
    const double deviation = std::sqrt(args.noise_gains[orientation] * median_of_smallest() / 2);
    const double threshold =
        deviation * (std::sqrt(kHalfPi) + kNoiseDeviations * std::sqrt(2 - kHalfPi)) / kNoiseDivisor;
    if (sizeof(T) < sizeof(double) && !(threshold > kLeastThreshold)) return false;
    const T cosine = T(std::cos(angle)), sine = T(std::sin(angle));
    for (int64_t at = 0; at < bands * width; ++at) {
      if (orientation == 0) sums[at] = Sums{};
      const V kept = larger(energy(at) - T(threshold), V{}) / spread(at), sum = amplitude(at);
      const V oriented = sum > 0 ? kept / sum : V{};
      const V x = oriented * cosine, y = oriented * sine;
      add(sums[at].congruency, kept);
      add(sums[at].amplitude, sum);
      add(sums[at].xx, x * x);
      add(sums[at].yy, y * y);
      add(sums[at].xy, x * y);
    }
    return true;
  }

  void write(float* maps) const {
    const int64_t pixels = height * width;
    const float half = float(args.orientations / 2.0), all = float(args.orientations);
    for (int64_t band = 0; band < bands; ++band)
      for (int64_t x = 0; x < width; ++x) {
        const int64_t at = band * width + x;
        const Sums& s = sums[at];
        const Sum a = s.xx / half, b = s.yy / half, c = s.xy / all;
        const Sum difference = root(c * c + (a - b) * (a - b)) + float(kEpsilon);
        const Sum value = s.congruency / (s.amplitude + float(kEpsilon));
        const Sum most = (a + b + difference) / 2, least = (a + b - difference) / 2;
        for (int64_t y = band * kLanes, i = 0; i < kLanes && y < height; ++y, ++i) {
          maps[y * width + x] = value[i];
          maps[pixels + y * width + x] = most[i];
          maps[2 * pixels + y * width + x] = least[i];
        }
      }
  }
};

template <class T> bool maps(const PhaseCongruencyArgs& args, const uint8_t* levels, float* result) {
  Work<T> work(args);
  work.transform_picture(levels);
  for (int orientation = 0; orientation < args.orientations; ++orientation)
    if (!work.add_orientation(orientation)) return false;
  work.write(result);
  return true;
}

}  // namespace

extern const PhaseCongruencyKernels phase_congruency_kernels;
const PhaseCongruencyKernels phase_congruency_kernels = {.in_float = maps<float>, .in_double = maps<double>};

}  // namespace FFMEF_ISA
}  // namespace ffmef
