// Phase congruency and its moments from the spectrum of one channel.
//
// For each orientation the filtered spectra of all scales go through the columns, are kept in bands of rows with
// the values of a column side by side, and go through the rows; a band's energy is summed while it is in cache.
#include "phase_congruency.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>
#include <vector>

#include "fourier.h"

namespace ffmef {
namespace FFMEF_ISA {
namespace {

constexpr double kEpsilon = 1e-4;
constexpr double kNoiseDeviations = 2.0, kNoiseDivisor = 1.7;
constexpr double kSpreadCutoff = 0.5, kSpreadSlope = 10.0;
constexpr double kHalfPi = kTau / 4;
constexpr int64_t kRowsAhead = 12;

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
  using Bits = uint64_t;
  using Sum = HalfFloatVec;  // sums over the orientations are kept in float
  static constexpr double to_whole = 6755399441055744.0;  // adding it rounds to whole numbers
  static constexpr double ln2_high = 6.93147180369123816490e-01, ln2_low = 1.90821492927058770002e-10;
  static constexpr int terms = 13, mantissa = 52, bias = 1023;
};
template <> struct Format<float> {
  using Integers = IntVec;
  using Bits = uint32_t;
  using Sum = FloatVec;
  static constexpr float to_whole = 12582912.0f;
  static constexpr float ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
  static constexpr int terms = 7, mantissa = 23, bias = 127;
};

// exp where neither it nor its inverse overflows: 2^k times a polynomial of the rest, to about the last place.
template <class T> Vec<T> exponential(Vec<T> v) {
  using F = Format<T>;
  using Integers = typename F::Integers;
  const Vec<T> shifted = v * T(1.4426950408889634074) + F::to_whole;
  const Vec<T> k = shifted - F::to_whole;
  const Vec<T> r = (v - k * F::ln2_high) - k * F::ln2_low;
  constexpr double kInverseFactorials[] = {1.0,         1.0,          0.5,           1.0 / 6,        1.0 / 24,
                                           1.0 / 120,   1.0 / 720,    1.0 / 5040,    1.0 / 40320,    1.0 / 362880,
                                           1.0 / 3628800, 1.0 / 39916800, 1.0 / 479001600, 1.0 / 6227020800.0};
  Vec<T> sum{};
  for (int i = F::terms; i >= 0; --i) sum = sum * r + T(kInverseFactorials[i]);
  // The low bits of shifted hold k; the constant's own low bits are zero.
  using Integer = std::remove_reference_t<decltype(Integers{}[0])>;
  const Integers exponent = ((Integers)shifted << F::mantissa) + (Integer(F::bias) << F::mantissa);
  return sum * (Vec<T>)exponent;
}

// `count` numbers as T, zeros behind.
template <class T> Vec<T> load_as(const double* from, int64_t count) {
  T buffer[lanes<T>] = {};
  if (count == lanes<T>)
    for (int i = 0; i < lanes<T>; ++i) buffer[i] = T(from[i]);
  else
    for (int64_t i = 0; i < count; ++i) buffer[i] = T(from[i]);
  return load(buffer);
}

template <class T> struct Work {
  using V = Vec<T>;
  using Sum = typename Format<T>::Sum;
  static constexpr int64_t kLanes = lanes<T>;

  const PhaseCongruencyArgs& args;
  const int64_t height, width, bands;
  InverseTransform<T> columns, rows;
  struct Radial { V gain, ratio; };  // factor of the scale at hand, and from scale to scale
  struct Sums { Sum congruency, amplitude, xx, yy, xy; };  // over the orientations

  std::vector<Complex<T>> partial, column;        // [H]: before and after the radial factor
  std::vector<Radial> radial;                     // [H]
  std::vector<Complex<T>> filtered[kMostScales];  // [band][x], after the columns' transform
  std::vector<Sums> sums;                         // [band][x]
  std::vector<T> bin;
  std::vector<uint32_t> counts;

  explicit Work(const PhaseCongruencyArgs& a)
      : args(a), height(a.height), width(a.width), bands((a.height + kLanes - 1) / kLanes), columns(a.height),
        rows(a.width), partial(size_t(a.height)), column(size_t(a.height)), radial(size_t(a.height)),
        sums(size_t(bands * width), Sums{}) {
    for (int s = 0; s < std::max(2, a.scales); ++s) filtered[s].resize(sums.size());
  }

  // What a band holds once its energy is known takes the place of the transforms that it came from.
  V& energy(size_t at) { return filtered[0][at].re; }
  V& spread(size_t at) { return filtered[0][at].im; }
  V& amplitude(size_t at) { return filtered[1][at].re; }
  V& smallest(size_t at) { return filtered[1][at].im; }  // squared amplitude of the smallest scale

  // Frequencies x0 to x0 + count - 1 of a row of the picture's spectrum.
  Complex<T> spectrum(int64_t y, int64_t x0, int64_t count) const {
    const int64_t stored = width / 2 + 1, mirrored_y = y > 0 ? height - y : 0;
    const double* re = args.spectrum_re + y * stored;
    const double* im = args.spectrum_im + y * stored;
    if (x0 + count <= stored) {
      const int64_t next = std::min(kRowsAhead, height - 1 - y) * stored + x0;
      ahead(re + next);
      ahead(im + next);
      return {load_as<T>(re + x0, count), load_as<T>(im + x0, count)};
    }
    const double* mirrored_re = args.spectrum_re + mirrored_y * stored;
    const double* mirrored_im = args.spectrum_im + mirrored_y * stored;
    T real[kLanes] = {}, imaginary[kLanes] = {};
    if (count == kLanes && x0 >= stored) {
      const int64_t next = width - x0 - kLanes + 1 - std::min(kRowsAhead, mirrored_y) * stored;
      ahead(mirrored_re + next);
      ahead(mirrored_im + next);
      for (int64_t i = 0; i < kLanes; ++i) {
        real[i] = T(mirrored_re[width - x0 - i]);
        imaginary[i] = T(-mirrored_im[width - x0 - i]);
      }
    } else {
      for (int64_t i = 0; i < count; ++i) {
        const int64_t x = x0 + i;
        real[i] = T(x < stored ? re[x] : mirrored_re[width - x]);
        imaginary[i] = T(x < stored ? im[x] : -mirrored_im[width - x]);
      }
    }
    return {load(real), load(imaginary)};
  }

  // Each row is another page, which no processor foresees.
  static void ahead(const double* from) {
    for (int64_t i = 0; i < kLanes; i += 8) __builtin_prefetch(from + i);
  }

  void transform_columns(double angle) {
    const T sharpness = T(-0.5 / (args.angular_deviation * args.angular_deviation));
    for (int64_t x0 = 0; x0 < width; x0 += kLanes) {
      const int64_t count = std::min(kLanes, width - x0);
      const auto load = [&](const double* plane, int64_t y) {
        const double* from = plane + y * width + x0;
        ahead(plane + std::min(y + kRowsAhead, height - 1) * width + x0);
        return load_as<T>(from, count);
      };
      for (int64_t y = 0; y < height; ++y) {
        V distance = magnitude(load(args.direction, y) - T(angle));
        distance = distance > T(kTau / 2) ? T(kTau) - distance : distance;
        const V angular = exponential<T>(distance * distance * sharpness);
        const Complex<T> value = spectrum(y, x0, count);
        partial[size_t(y)] = {value.re * angular, value.im * angular};
        radial[size_t(y)] = {load(args.first, y), load(args.ratio, y)};
      }
      for (int s = 0; s < args.scales; ++s) {
        const T decay = T(args.decay[s]);
        for (int64_t y = 0; y < height; ++y) {
          if (s > 0) radial[size_t(y)].gain *= radial[size_t(y)].ratio;
          const V gain = radial[size_t(y)].gain * decay;
          column[size_t(y)] = {partial[size_t(y)].re * gain, partial[size_t(y)].im * gain};
        }
        columns.run(column.data());
        turn(x0, count, filtered[s]);
      }
    }
  }

  // From columns side by side to rows side by side.
  void turn(int64_t x0, int64_t count, std::vector<Complex<T>>& result) {
    for (int64_t band = 0; band < bands; ++band) {
      const int64_t y0 = band * kLanes, used = std::min(kLanes, height - y0);
      V re[kLanes], im[kLanes];
      for (int64_t y = 0; y < kLanes; ++y) {
        const Complex<T>& row = column[size_t(y0 + std::min(y, used - 1))];  // beyond the picture: anything finite
        re[y] = row.re;
        im[y] = row.im;
      }
      transpose<T>(re);
      transpose<T>(im);
      Complex<T>* to = &result[size_t(band * width + x0)];
      for (int64_t x = 0; x < count; ++x) to[x] = {re[x], im[x]};
    }
  }

  // Local energy, spread of frequencies and amplitude of one band.
  void sum_band(int64_t band) {
    const T scaling = T(1.0 / (double(height) * double(width)));
    for (int s = 0; s < args.scales; ++s) rows.run(&filtered[s][size_t(band * width)]);
    for (int64_t x = 0; x < width; ++x) {
      const size_t at = size_t(band * width + x);
      Complex<T> response[kMostScales];
      V even{}, odd{}, sum{}, peak{}, square_of_first{};
      for (int s = 0; s < args.scales; ++s) {
        response[s] = {filtered[s][at].re * scaling, filtered[s][at].im * scaling};
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
        total += response[s].re * even + response[s].im * odd -
                 magnitude(response[s].re * odd - response[s].im * even);
      const V extent = sum / ((peak + T(kEpsilon)) * T(args.scales));
      energy(at) = total;
      spread(at) = T(1) + exponential<T>(T(kSpreadSlope) * (T(kSpreadCutoff) - extent));
      amplitude(at) = sum;
      smallest(at) = square_of_first;
    }
  }

  // Calls visit with each squared amplitude of the smallest scale.
  template <class Visit> void each_smallest(const Visit& visit) {
    for (int64_t band = 0; band < bands; ++band) {
      const int64_t used = std::min(kLanes, height - band * kLanes);
      for (int64_t x = 0; x < width; ++x) {
        const V v = smallest(size_t(band * width + x));
        for (int64_t y = 0; y < used; ++y) visit(v[y]);
      }
    }
  }

  // The median of positive numbers; even counts take the mean of the middle two. The leading bits of a positive number
  // order it, so that all but one narrow bin need only be counted.
  double median_of_smallest() {
    const auto key = [](T v) {
      typename Format<T>::Bits bits;
      std::memcpy(&bits, &v, sizeof bits);
      return size_t(bits >> (8 * sizeof bits - 17));
    };
    counts.assign(size_t(1) << 17, 0);  // the sign, the exponent and five bits or more of the fraction
    each_smallest([&](T v) { ++counts[key(v)]; });
    const size_t total = size_t(height * width), upper = total / 2;
    size_t below = 0, place = 0;
    while (below + counts[place] <= upper) below += counts[place++];
    bin.clear();
    each_smallest([&](T v) {
      if (key(v) == place) bin.push_back(v);
    });
    const auto middle = bin.begin() + std::ptrdiff_t(upper - below);
    std::nth_element(bin.begin(), middle, bin.end());
    const double high = double(*middle);
    if (total % 2 == 1) return high;
    T low = 0;
    if (middle != bin.begin()) low = *std::max_element(bin.begin(), middle);
    else each_smallest([&](T v) { low = key(v) < place ? std::max(low, v) : low; });
    return (double(low) + high) / 2;
  }

  static void add(Sum& sum, V value) { sum += __builtin_convertvector(value, Sum); }

  // False if the threshold of noise is too low for the rounding of T.
  bool add_orientation(int orientation) {
    const double angle = kTau / 2 * orientation / args.orientations;
    transform_columns(angle);
    for (int64_t band = 0; band < bands; ++band) sum_band(band);
    const double deviation = std::sqrt(args.noise_gains[orientation] * median_of_smallest() / 2);
    const double threshold =
        deviation * (std::sqrt(kHalfPi) + kNoiseDeviations * std::sqrt(2 - kHalfPi)) / kNoiseDivisor;
    if (sizeof(T) < sizeof(double) && !(threshold > kLeastThreshold)) return false;
    const T cosine = T(std::cos(angle)), sine = T(std::sin(angle));
    for (size_t at = 0; at < sums.size(); ++at) {
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
        const size_t at = size_t(band * width + x);
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

template <class T> PhaseCongruencyResult maps(const PhaseCongruencyArgs& args, float* result) {
  try {
    Work<T> work(args);
    for (int orientation = 0; orientation < args.orientations; ++orientation)
      if (!work.add_orientation(orientation)) return PhaseCongruencyResult::rounding_shows;
    work.write(result);
    return PhaseCongruencyResult::done;
  } catch (const std::bad_alloc&) {
    return PhaseCongruencyResult::out_of_memory;
  }
}

}  // namespace

extern const PhaseCongruencyKernels phase_congruency_kernels;
const PhaseCongruencyKernels phase_congruency_kernels = {maps<float>, maps<double>};

}  // namespace FFMEF_ISA
}  // namespace ffmef
