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

inline Lanes root(Lanes v) {
  Lanes r;
  for (int i = 0; i < kLanes; ++i) r[i] = std::sqrt(v[i]);
  return r;
}
inline Lanes magnitude(Lanes v) { return v < 0 ? -v : v; }
inline Lanes larger(Lanes a, Lanes b) { return a > b ? a : b; }

// exp for |v| <= 700: 2^k times a polynomial of the rest, to one unit in the last place.
inline Lanes exponential(Lanes v) {
  typedef int64_t Integers __attribute__((vector_size(FFMEF_VECTOR_BYTES), may_alias));
  constexpr double kMagic = 6755399441055744.0;  // adding it rounds to whole numbers
  const Lanes shifted = v * 1.4426950408889634074 + kMagic;
  const Lanes k = shifted - kMagic;
  const Lanes r = (v - k * 6.93147180369123816490e-01) - k * 1.90821492927058770002e-10;
  Lanes sum = Lanes{} + 1.0 / 6227020800.0;
  constexpr double kInverseFactorials[] = {1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320,
                                           1.0 / 5040,      1.0 / 720,      1.0 / 120,     1.0 / 24,     1.0 / 6,
                                           0.5,             1.0,            1.0};
  for (double coefficient : kInverseFactorials) sum = sum * r + coefficient;
  const Integers exponent = ((Integers)shifted << 52) + (int64_t(1023) << 52);
  // The low bits of shifted hold k; the constant's own low bits are zero.
  return sum * (Lanes)exponent;
}

struct Work {
  const PhaseCongruencyArgs& args;
  const int64_t height, width, bands;
  InverseTransform columns, rows;
  std::vector<Complex> partial, column;        // [H]: before and after the radial factor
  std::vector<Lanes> gains;                    // [H]: radial factor of the scale at hand
  std::vector<Complex> filtered[kMostScales];  // [band][x], after the columns' transform
  std::vector<Lanes> congruency, amplitudes, xx, yy, xy;  // [band][x], over the orientations
  std::vector<double> bin;
  std::vector<uint32_t> counts;

  explicit Work(const PhaseCongruencyArgs& a)
      : args(a), height(a.height), width(a.width), bands((a.height + kLanes - 1) / kLanes), columns(a.height),
        rows(a.width), partial(size_t(a.height)), column(size_t(a.height)), gains(size_t(a.height)) {
    const size_t lanes = size_t(bands * width);
    for (int s = 0; s < std::max(2, a.scales); ++s) filtered[s].resize(lanes);
    for (std::vector<Lanes>* plane : {&congruency, &amplitudes, &xx, &yy, &xy}) plane->assign(lanes, Lanes{});
  }

  // What a band holds once its energy is known takes the place of the transforms that it came from.
  Lanes& energy(size_t at) { return filtered[0][at].re; }
  Lanes& spread(size_t at) { return filtered[0][at].im; }
  Lanes& amplitude(size_t at) { return filtered[1][at].re; }
  Lanes& smallest(size_t at) { return filtered[1][at].im; }  // squared amplitude of the smallest scale

  void transform_columns(double angle) {
    const double sharpness = -0.5 / (args.angular_deviation * args.angular_deviation);
    for (int64_t x0 = 0; x0 < width; x0 += kLanes) {
      const int64_t count = std::min(kLanes, width - x0);
      const auto load = [&](const double* plane, int64_t y) {
        const double* from = plane + y * width + x0;
        __builtin_prefetch(plane + std::min(y + kRowsAhead, height - 1) * width + x0);  // each row is another page
        return count == kLanes ? ffmef::FFMEF_ISA::load(from) : load_part(from, count);
      };
      for (int64_t y = 0; y < height; ++y) {
        Lanes distance = magnitude(load(args.direction, y) - angle);
        distance = distance > kTau / 2 ? kTau - distance : distance;
        const Lanes angular = exponential(distance * distance * sharpness);
        partial[size_t(y)] = {load(args.spectrum_re, y) * angular, load(args.spectrum_im, y) * angular};
        gains[size_t(y)] = load(args.first, y);
      }
      for (int s = 0; s < args.scales; ++s) {
        for (int64_t y = 0; y < height; ++y) {
          if (s > 0) gains[size_t(y)] *= load(args.ratio, y);
          const Lanes gain = gains[size_t(y)] * args.decay[s];
          column[size_t(y)] = {partial[size_t(y)].re * gain, partial[size_t(y)].im * gain};
        }
        columns.run(column.data());
        turn(x0, count, filtered[s]);
      }
    }
  }

  // From columns side by side to rows side by side.
  void turn(int64_t x0, int64_t count, std::vector<Complex>& result) {
    for (int64_t band = 0; band < bands; ++band) {
      const int64_t y0 = band * kLanes, used = std::min(kLanes, height - y0);
      Lanes re[kLanes], im[kLanes];
      for (int64_t y = 0; y < kLanes; ++y) {
        const Complex& row = column[size_t(y0 + std::min(y, used - 1))];  // beyond the picture: anything finite
        re[y] = row.re;
        im[y] = row.im;
      }
      transpose(re);
      transpose(im);
      Complex* to = &result[size_t(band * width + x0)];
      for (int64_t x = 0; x < count; ++x) to[x] = {re[x], im[x]};
    }
  }

  // Local energy, spread of frequencies and amplitude of one band.
  void sum_band(int64_t band) {
    const double scaling = 1.0 / (double(height) * double(width));
    for (int s = 0; s < args.scales; ++s) rows.run(&filtered[s][size_t(band * width)]);
    for (int64_t x = 0; x < width; ++x) {
      const size_t at = size_t(band * width + x);
      Complex response[kMostScales];
      Lanes even{}, odd{}, sum{}, peak{}, square_of_first{};
      for (int s = 0; s < args.scales; ++s) {
        response[s] = {filtered[s][at].re * scaling, filtered[s][at].im * scaling};
        const Lanes square = response[s].re * response[s].re + response[s].im * response[s].im;
        if (s == 0) square_of_first = square;
        const Lanes modulus = root(square);
        even += response[s].re;
        odd += response[s].im;
        sum += modulus;
        peak = larger(peak, modulus);
      }
      const Lanes norm = root(even * even + odd * odd) + kEpsilon;
      even /= norm;
      odd /= norm;
      Lanes total{};
      for (int s = 0; s < args.scales; ++s)
        total += response[s].re * even + response[s].im * odd -
                 magnitude(response[s].re * odd - response[s].im * even);
      const Lanes extent = sum / (peak + kEpsilon) / double(args.scales);
      energy(at) = total;
      spread(at) = 1 + exponential(kSpreadSlope * (kSpreadCutoff - extent));
      amplitude(at) = sum;
      smallest(at) = square_of_first;
    }
  }

  // Calls visit with each squared amplitude of the smallest scale.
  template <class Visit> void each_smallest(const Visit& visit) {
    for (int64_t band = 0; band < bands; ++band) {
      const int64_t used = std::min(kLanes, height - band * kLanes);
      for (int64_t x = 0; x < width; ++x) {
        const Lanes v = smallest(size_t(band * width + x));
        for (int64_t y = 0; y < used; ++y) visit(v[y]);
      }
    }
  }

  // The median of positive numbers; even counts take the mean of the middle two. The leading bits of a positive number
  // order it, so that all but one narrow bin need only be counted.
  double median_of_smallest() {
    const auto key = [](double v) {
      uint64_t bits;
      std::memcpy(&bits, &v, 8);
      return size_t(bits >> 47);
    };
    counts.assign(size_t(1) << 17, 0);
    each_smallest([&](double v) { ++counts[key(v)]; });
    const size_t total = size_t(height * width), upper = total / 2;
    size_t below = 0, place = 0;
    while (below + counts[place] <= upper) below += counts[place++];
    bin.clear();
    double under = 0;
    each_smallest([&](double v) {
      if (key(v) == place) bin.push_back(v);
      else if (key(v) < place) under = std::max(under, v);
    });
    const auto middle = bin.begin() + std::ptrdiff_t(upper - below);
    std::nth_element(bin.begin(), middle, bin.end());
    const double high = *middle;
    if (total % 2 == 1) return high;
    const double low = middle == bin.begin() ? under : *std::max_element(bin.begin(), middle);
    return (low + high) / 2;
  }

  void add_orientation(int orientation) {
    const double angle = kTau / 2 * orientation / args.orientations;
    transform_columns(angle);
    for (int64_t band = 0; band < bands; ++band) sum_band(band);
    const double deviation = std::sqrt(args.noise_gains[orientation] * median_of_smallest() / 2);
    const double threshold =
        deviation * (std::sqrt(kHalfPi) + kNoiseDeviations * std::sqrt(2 - kHalfPi)) / kNoiseDivisor;
    const double cosine = std::cos(angle), sine = std::sin(angle);
    for (size_t at = 0; at < congruency.size(); ++at) {
      const Lanes kept = larger(energy(at) - threshold, Lanes{}) / spread(at), sum = amplitude(at);
      congruency[at] += kept;
      amplitudes[at] += sum;
      const Lanes oriented = sum > 0 ? kept / sum : Lanes{};
      const Lanes x = oriented * cosine, y = oriented * sine;
      xx[at] += x * x;
      yy[at] += y * y;
      xy[at] += x * y;
    }
  }

  void write(double* maps) {
    const int64_t pixels = height * width;
    const double half = args.orientations / 2.0;
    for (int64_t band = 0; band < bands; ++band)
      for (int64_t x = 0; x < width; ++x) {
        const size_t at = size_t(band * width + x);
        const Lanes a = xx[at] / half, b = yy[at] / half, c = xy[at] / double(args.orientations);
        const Lanes difference = root(c * c + (a - b) * (a - b)) + kEpsilon;
        const Lanes value = congruency[at] / (amplitudes[at] + kEpsilon);
        const Lanes most = (a + b + difference) / 2, least = (a + b - difference) / 2;
        for (int64_t y = band * kLanes, i = 0; i < kLanes && y < height; ++y, ++i) {
          maps[y * width + x] = value[i];
          maps[pixels + y * width + x] = most[i];
          maps[2 * pixels + y * width + x] = least[i];
        }
      }
  }
};

bool maps(const PhaseCongruencyArgs& args, double* result) {
  try {
    Work work(args);
    for (int orientation = 0; orientation < args.orientations; ++orientation) work.add_orientation(orientation);
    work.write(result);
    return true;
  } catch (const std::bad_alloc&) {
    return false;
  }
}

}  // namespace

extern const PhaseCongruencyKernels phase_congruency_kernels;
const PhaseCongruencyKernels phase_congruency_kernels = {maps};

}  // namespace FFMEF_ISA
}  // namespace ffmef
