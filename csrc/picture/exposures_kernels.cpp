// What exposures have recorded, octaves of the coarse grid, and the finest level, which reads and writes pictures of
// any depth.
#include "exposures.h"

#include <type_traits>

#include "../common/finish.h"
#include "../cpu/base/buffer.h"
#include "../cpu/fuse/pyramid_rows.h"
#include "pixels.h"
#include "samples.h"

namespace ffmef {
namespace FFMEF_ISA {
namespace {

constexpr int kScale = 8;  // pixels along a side of a cell

// --- statistics of cells ---------------------------------------------------------------------------------------------

// Turns sums of `rows` rows, one per column, into means of cells. The last column is repeated to fill the last cell.
void means_of_cells(float* columns, int64_t width, int64_t cells, int side, int rows, float* out) {
  for (int64_t x = width; x < cells * side; ++x) columns[x] = columns[width - 1];
  const float share = 1.0f / float(side * rows);
  for (int64_t i = 0; i < cells; ++i) {
    float sum = 0.0f;
    for (int k = 0; k < side; ++k) sum += columns[i * side + k];
    out[i] = sum * share;
  }
}

void statistics(const float* half, const uint8_t* const* validity, int64_t count, int64_t full_height,
                int64_t full_width, const Statistics& out, int64_t begin, int64_t end) {
  const int64_t height = half_of(full_height), width = half_of(full_width);
  const int64_t down = (height + 3) / 4, across = (width + 3) / 4;
  Row<float> high(4 * across), low(4 * across), least(width), most(width), apart(4 * across), valid(8 * across);
  for (int64_t c = begin; c < end; ++c) {
    std::memset(apart.data, 0, size_t(width) * sizeof(float));
    for (int r = 0; r < 4; ++r) {
      const int64_t y = 4 * c + r < height ? 4 * c + r : height - 1;
      for (int64_t n = 0; n < count; ++n) {
        const float* __restrict row = half + (n * height + y) * width;
        for (int64_t x = 0; x < width; ++x) {
          least[x] = n == 0 || row[x] < least[x] ? row[x] : least[x];
          most[x] = n == 0 || row[x] > most[x] ? row[x] : most[x];
        }
      }
      for (int64_t x = 0; x < width; ++x) apart[x] += most[x] - least[x];
    }
    means_of_cells(apart, width, across, 4, 4, out.apart + c * across);
    for (int64_t n = 0; n < count; ++n) {
      std::memset(high.data, 0, size_t(width) * sizeof(float));
      std::memset(low.data, 0, size_t(width) * sizeof(float));
      for (int r = 0; r < 4; ++r) {
        const float* __restrict row = half + (n * height + (4 * c + r < height ? 4 * c + r : height - 1)) * width;
        for (int64_t x = 0; x < width; ++x) {
          high[x] += unit((0.915f - row[x]) * (1.0f / 0.06f));
          low[x] += unit((row[x] - 0.065f) * (1.0f / 0.05f));
        }
      }
      means_of_cells(high, width, across, 4, 4, out.high + (n * down + c) * across);
      means_of_cells(low, width, across, 4, 4, out.low + (n * down + c) * across);
      if (out.validity == nullptr) continue;
      float* means = out.validity + (n * down + c) * across;
      for (int64_t i = 0; i < across; ++i) means[i] = 1.0f;
      if (validity[n] == nullptr) continue;
      std::memset(valid.data, 0, size_t(full_width) * sizeof(float));
      for (int r = 0; r < 8; ++r) {
        const uint8_t* row = validity[n] + (8 * c + r < full_height ? 8 * c + r : full_height - 1) * full_width;
        for (int64_t x = 0; x < full_width; ++x) valid[x] += float(row[x]) * (1.0f / 255);
      }
      means_of_cells(valid, full_width, across, 8, 8, means);
    }
  }
}

// --- octaves ---------------------------------------------------------------------------------------------------------

void shrink(const float* in, int64_t height, int64_t width, float* out, int64_t begin, int64_t end) {
  const int64_t across = half_of(width);
  Row<float> mixed(2 * across + 2);
  float* row = mixed.data + 1;
  const auto at = [&](int64_t y) { return in + (y < 0 ? 0 : y < height ? y : height - 1) * width; };
  for (int64_t y = begin; y < end; ++y) {
    const float *a = at(2 * y - 1), *b = at(2 * y), *c = at(2 * y + 1), *d = at(2 * y + 2);
    for (int64_t x = 0; x < width; ++x) row[x] = (a[x] + d[x] + 3.0f * (b[x] + c[x])) * 0.125f;
    row[-1] = row[0];
    for (int64_t x = width; x <= 2 * across; ++x) row[x] = row[width - 1];
    for (int64_t x = 0; x < across; ++x)
      out[y * across + x] = (row[2 * x - 1] + row[2 * x + 2] + 3.0f * (row[2 * x] + row[2 * x + 1])) * 0.125f;
  }
}

// --- the finest level ------------------------------------------------------------------------------------------------

// Chroma of one exposure on a run of pixels, and its weight there: its mass.
struct Chroma {
  alignas(64) float mass[kColumns], blue[kColumns], red[kColumns];
};

// What is known of all exposures on one run of pixels.
struct Run {
  alignas(64) float luminance[kColumns];
  Chroma total;                                                      // blue and red are sums of mass times chroma
  alignas(64) float least[kColumns], most[kColumns], top[kColumns];  // of greys; top: least of largest channels

  // Resets the bounds to values that any sample between black and white replaces.
  void clear_range(int64_t n) {
    for (int64_t x = 0; x < n; ++x) least[x] = top[x] = 255.0f, most[x] = 0.0f;
  }
  void widen(int64_t x, float dark, float bright, float channel) {
    least[x] = dark < least[x] ? dark : least[x];
    most[x] = bright > most[x] ? bright : most[x];
    top[x] = channel < top[x] ? channel : top[x];
  }
};

// How far colour is recorded, from luminance and the largest and smallest of R, G and B on the scale 0..255. Ramps are
// not clipped at an end that no sample between black and white can pass. Two ramps that do not overlap are computed as
// one.
inline float recorded_colour(float y, float top, float bottom) {
  const float to_white = (232.0f - y) * (1.0f / 24), from_black = (y - 16.0f) * (1.0f / 32);
  const float clear = 8.6f - top * (0.8f / 24), lit = 0.1f + bottom * (0.9f / 24);
  const float middle = unit(to_white < from_black ? to_white : from_black);
  return middle * (clear < 0.2f ? 0.2f : clear > 1.0f ? 1.0f : clear) * (lit < 1.0f ? lit : 1.0f);
}

// A sample type, and the conversion of a grey sample to luminance on the scale 0..1.
template <class S> struct Depth {
  using type = S;
  static constexpr bool converted = true;
  static constexpr float scale = (kRed + kGreen + kBlue) * kToByte<S>, offset = kBlack;
  static void store(float grey, S& out) { to_sample(grey, out); }
};
struct Luminance {
  using type = float;
  static constexpr bool converted = false;
  static constexpr float scale = 1.0f, offset = 0.0f;
  static void store(float luminance, float& out) { out = luminance; }
};

// An exposure's rows that belong to a run of pixels.
struct Beside {
  const float *weight, *below, *share;
  const uint8_t* validity;  // or null
};

template <class D, class S> void add_luminance(float* __restrict sum, const S* grey, const Beside& at, int64_t n) {
  const float* __restrict weight = at.weight, * __restrict below = at.below;
  for (int64_t x = 0; x < n; ++x) sum[x] += weight[x] * (D::scale * float(grey[x]) + D::offset - below[x]);
}

// A pixel that is usable by v counts as closer to white in the minima and closer to black in the maximum.
inline void widen_masked(Run& run, int64_t x, float grey, float channel, uint8_t validity) {
  const float v = float(validity) * (1.0f / 255);
  run.widen(x, 255.0f - v * (255.0f - grey), v * grey, 255.0f - v * (255.0f - channel));
}

template <class S> void widen_by_grey(Run& run, const S* __restrict grey, const uint8_t* validity, int64_t n) {
  for (int64_t x = 0; x < n; ++x) {
    const float value = float(grey[x]) * kToByte<S>;
    if (validity == nullptr)
      run.widen(x, value, value, value);
    else
      widen_masked(run, x, value, value, validity[x]);
  }
}

// Adds luminance, and chroma too unless it is to be stored in `apart`.
template <bool STORED, bool MASKED, class S>
void add_colour(Run& run, Chroma& apart, const Planes<S>& planes, const Beside& at, int64_t n) {
  const S* __restrict red = planes.r, * __restrict green = planes.g, * __restrict blue = planes.b;
  const float* __restrict weight = at.weight, * __restrict below = at.below, * __restrict share = at.share;
  for (int64_t x = 0; x < n; ++x) {
    const float r = float(red[x]) * kToByte<S>, g = float(green[x]) * kToByte<S>, b = float(blue[x]) * kToByte<S>;
    const float y = 255 * kRed * r + 255 * kGreen * g + 255 * kBlue * b + 16.0f;
    run.luminance[x] += weight[x] * (y * (1.0f / 255) - below[x]);
    const float cb = -0.148223f * r - 0.290992f * g + 0.439215f * b;
    const float cr = 0.439215f * r - 0.367789f * g - 0.071426f * b;
    const float larger = r > g ? r : g, top = larger > b ? larger : b;
    const float smaller = r < g ? r : g, bottom = smaller < b ? smaller : b;
    const float mass = share[x] * (recorded_colour(y, top, bottom) + 0.02f), grey = kSwing * (y - 16.0f);
    if (MASKED)
      widen_masked(run, x, grey, top, at.validity[x]);
    else
      run.widen(x, grey, grey, top);
    if (STORED) {
      apart.mass[x] = mass;
      apart.blue[x] = cb;
      apart.red[x] = cr;
    } else {
      run.total.mass[x] += mass;
      run.total.blue[x] += mass * cb;
      run.total.red[x] += mass * cr;
    }
  }
}

void mask(Chroma& apart, const uint8_t* validity, int64_t n) {
  for (int64_t x = 0; x < n; ++x) {
    const float v = float(validity[x]) * (1.0f / 255);
    apart.mass[x] *= v > kLeastValidity ? v : kLeastValidity;
  }
}

void add_stored(Chroma& total, const Chroma& apart, int64_t n) {
  for (int64_t x = 0; x < n; ++x) {
    total.mass[x] += apart.mass[x];
    total.blue[x] += apart.mass[x] * apart.blue[x];
    total.red[x] += apart.mass[x] * apart.red[x];
  }
}

// Reduces an exposure's mass. The more its colour differs from the others', the less it counts.
void distrust(Chroma& apart, const Chroma& total, int64_t n) {
  for (int64_t x = 0; x < n; ++x) {
    const float mass = apart.mass[x], cb = apart.blue[x], cr = apart.red[x];
    const float all = total.mass[x], share = 1.0f / (all - mass + 1e-4f);
    const float off_blue = __builtin_fabsf(all * cb - total.blue[x]) * share;
    const float off_red = __builtin_fabsf(all * cr - total.red[x]) * share;
    const float distance = (off_blue > off_red ? off_blue : off_red) * (1.0f / 16), half = 1.0f + distance * distance;
    const float trust = half * half;
    apart.mass[x] = mass / (trust * trust);
  }
}

inline float within(float x) { return x > -kFar ? x < kFar ? x : kFar : -kFar; }

// Fused luminance as grey on 0..255, and the most that channels may reach. Grey is compressed near white and black
// unless the exposures go further. With adjustments, gain is the factor of both grey and chroma.
template <bool ADJUSTED> struct Tone {
  float grey, white, gain = 1.0f;

  Tone(const Run& run, int64_t x, float brightness) : white(run.top[x] > kWhite ? run.top[x] : kWhite) {
    const float knee = run.least[x] > kKnee ? run.least[x] : kKnee, toe = run.most[x] < kToe ? run.most[x] : kToe;
    const float given = kSwing * (255.0f * run.luminance[x] - 16.0f);
    const float inside = given > toe ? given < knee ? given : knee : toe;
    const float beyond = within(given - inside);
    float room = beyond > 0.0f ? white - knee : toe;
    room = room > 0.0f ? room : 0.0f;
    grey = inside + room * beyond / (room + __builtin_fabsf(beyond) + 1e-6f);
    if (!ADJUSTED) return;
    gain = brightness / (1.0f + (brightness - 1.0f) * unit(grey * (1.0f / (kSwing * 219))));
    grey *= gain;
  }
};

template <class D, bool ADJUSTED, class S>
void finish_grey(const Run& run, const ExposureLevel& level, S* __restrict out, int64_t n) {
  for (int64_t x = 0; x < n; ++x)
    D::store(D::converted ? Tone<ADJUSTED>(run, x, level.brightness).grey : run.luminance[x], out[x]);
}

// Turns sums into chroma, and brings each two pixels of a pair closer where exposures differ. The last pixel of an odd
// width is its own partner.
void smooth_chroma(Run& run, int64_t n) {
  float* __restrict blue = run.total.blue, * __restrict red = run.total.red;
  for (int64_t x = 0; x < n; ++x) {
    const float share = 1.0f / (run.total.mass[x] + 1e-12f);
    blue[x] *= share;
    red[x] *= share;
  }
  alignas(64) float blue_step[kColumns], red_step[kColumns], edge[kColumns];
  for (int64_t x = 0; x + 1 < n; x += 2) {
    blue_step[x] = 0.5f * (blue[x + 1] - blue[x]);
    blue_step[x + 1] = 0.5f * (blue[x] - blue[x + 1]);
    red_step[x] = 0.5f * (red[x + 1] - red[x]);
    red_step[x + 1] = 0.5f * (red[x] - red[x + 1]);
    edge[x] = edge[x + 1] = within(255.0f * run.luminance[x + 1]) - within(255.0f * run.luminance[x]);
  }
  if (n % 2) blue_step[n - 1] = red_step[n - 1] = edge[n - 1] = 0.0f;
  for (int64_t x = 0; x < n; ++x) {
    const float difference = run.most[x] - run.least[x], apart = difference > 0.0f ? difference : 0.0f;
    const float far = blue_step[x] * blue_step[x] + red_step[x] * red_step[x] + edge[x] * edge[x];
    const float closer = apart / ((apart + kHalfApart) * (1.0f + far * (1.0f / (kHalfStep * kHalfStep))));
    blue[x] += closer * blue_step[x];
    red[x] += closer * red_step[x];
  }
}

// Converts to RGB. Chroma beyond the gamut moves towards grey at constant hue.
template <bool ADJUSTED, class S>
void finish_colour(Run& run, const ExposureLevel& level, Planes<S>& planes, S* out, int64_t n) {
  smooth_chroma(run, n);
  for (int64_t x = 0; x < n; ++x) {
    const Tone<ADJUSTED> tone(run, x, level.brightness);
    float grey = tone.grey, cb = run.total.blue[x], cr = run.total.red[x];
    if (ADJUSTED) cb *= tone.gain * level.saturation, cr *= tone.gain * level.saturation;
    const float r = 1.596027f * cr, g = -0.391762f * cb - 0.812969f * cr, b = 2.017230f * cb;
    const float larger = r > g ? r : g, smaller = r < g ? r : g;
    float above = larger > b ? larger : b, below = smaller < b ? -smaller : -b;
    above = above > 1e-6f ? above : 1e-6f;
    below = below > 1e-6f ? below : 1e-6f;
    grey = grey < 0.0f ? 0.0f : grey > 255.0f ? 255.0f : grey;
    const float peak = tone.white + kSlack, room = peak > grey ? peak - grey : 0.0f;
    const float up = room / above, down = grey / below, least = up < down ? up : down;
    const float scale = least < 1.0f ? least : 1.0f;
    to_sample(grey + scale * r, planes.stored[0][x]);
    to_sample(grey + scale * g, planes.stored[1][x]);
    to_sample(grey + scale * b, planes.stored[2][x]);
  }
  join(out, n, planes.stored[0], planes.stored[1], planes.stored[2]);
}

// Rows of several planes on a coarser grid, at full width. Keeps the two coarse rows around the current row of pixels
// expanded, so each pixel costs one multiplication vertically and none along the row.
class Between {
 public:
  Between(const float* planes, int64_t count, int64_t rows, int64_t columns, int factor)
      : planes_(planes),
        count_(count),
        rows_(rows),
        columns_(columns),
        line_((expanded_size(columns, factor) + 2 * kMargin + 15) / 16 * 16),
        factor_(factor),
        kept_(2 * count * line_),
        ends_(columns + 2) {
    std::memset(kept_.data, 0, size_t(2 * count * line_) * sizeof(float));
  }

  void move_to(int64_t y) {
    const RowTap tap = tap_of(y, factor_, rows_);
    if (tap.first == second_ && tap.first != first_) {
      std::swap(upper_, lower_);
      first_ = second_;
      second_ = -1;
    }
    if (tap.first != first_) expand(first_ = tap.first, upper_);
    if (tap.second != second_) expand(second_ = tap.second, lower_);
    share = float(tap.share);
  }
  const float* upper(int64_t n) const { return row(n, upper_); }
  const float* lower(int64_t n) const { return row(n, lower_); }

  float share = 0;  // of the lower row

 private:
  static constexpr int64_t kMargin = 16;  // before the first pixel, which begins a cache line

  float* row(int64_t n, int which) const { return kept_.data + (2 * n + which) * line_ + kMargin; }
  void expand(int64_t y, int which) {
    for (int64_t n = 0; n < count_; ++n) {
      float* ends = ends_.data + 1;
      std::memcpy(ends, planes_ + (n * rows_ + y) * columns_, size_t(columns_) * sizeof(float));
      ends[-1] = ends[0];
      ends[columns_] = ends[columns_ - 1];
      expand_row(row(n, which) - factor_ / 2, ends, columns_, factor_);
    }
  }

  const float* const planes_;
  const int64_t count_, rows_, columns_, line_;
  const int factor_;
  Buffer<float> kept_;
  Row<float> ends_;
  int64_t first_ = -1, second_ = -1;
  int upper_ = 0, lower_ = 1;
};

// Rows at full size of the weights, shares and half-size level of each exposure, and of the fused half-size level.
class LevelRows {
 public:
  explicit LevelRows(const ExposureLevel& l)
      : level_(l),
        weights(l.weights, l.count, l.cells_down, l.cells_across, kScale),
        shares(l.shares, l.coloured ? l.count : 0, l.cells_down, l.cells_across, kScale),
        below(l.half, l.count, half_of(l.height), half_of(l.width), 2),
        fused(l.half_fused, 1, half_of(l.height), half_of(l.width), 2) {}

  void move_to(int64_t y) {
    for (Between* rows : {&weights, &shares, &below, &fused}) rows->move_to(y);
    y_ = y;
  }
  // The rows of exposure i, from pixel x on. The next call overwrites them.
  Beside at(int64_t i, int64_t x, int64_t n) {
    mix(weights, i, x, n, weight_);
    mix(below, i, x, n, below_);
    if (level_.coloured) mix(shares, i, x, n, share_);
    const uint8_t* validity = level_.validity != nullptr ? level_.validity[i] : nullptr;
    return {weight_, below_, level_.coloured ? share_ : nullptr,
            validity != nullptr ? validity + y_ * level_.width + x : nullptr};
  }
  static void mix(const Between& rows, int64_t i, int64_t x, int64_t n, float* __restrict out) {
    const float* __restrict a = rows.upper(i) + x, * __restrict b = rows.lower(i) + x;
    const float share = rows.share;
    for (int64_t k = 0; k < n; ++k) out[k] = a[k] + (b[k] - a[k]) * share;
  }

 private:
  const ExposureLevel& level_;
  int64_t y_ = 0;
  alignas(64) float weight_[kColumns], below_[kColumns], share_[kColumns];

 public:
  Between weights, shares, below, fused;
};

// Adds a run of pixels of all exposures. `apart` holds the chroma of each if more than sums are needed.
template <class S> void add_all(const ExposureLevel& level, LevelRows& rows, int64_t x0, int64_t pixel, int64_t n,
                                Planes<S>& planes, Run& run, Chroma* apart) {
  for (float* row : {run.total.mass, run.total.blue, run.total.red}) std::memset(row, 0, size_t(n) * sizeof(float));
  for (int64_t i = 0; i < level.count; ++i) {
    const Beside at = rows.at(i, x0, n);
    planes.read(level.pictures[i].data, level.pictures[i].channels, pixel, n);
    if (apart == nullptr) {
      add_colour<false, false>(run, run.total, planes, at, n);
      continue;
    }
    if (at.validity != nullptr) {
      add_colour<true, true>(run, apart[i], planes, at, n);
      mask(apart[i], at.validity, n);
    } else {
      add_colour<true, false>(run, apart[i], planes, at, n);
    }
    add_stored(run.total, apart[i], n);
  }
  if (apart == nullptr || level.count == 2) return;
  const Chroma before = run.total;
  for (float* row : {run.total.mass, run.total.blue, run.total.red}) std::memset(row, 0, size_t(n) * sizeof(float));
  for (int64_t i = 0; i < level.count; ++i) {
    distrust(apart[i], before, n);
    add_stored(run.total, apart[i], n);
  }
}

// --- two exposures in colour: sums stay in registers -----------------------------------------------------------------

struct Sums {
  FloatVec luminance, mass{}, red{}, green{}, blue{};  // colours times mass
  // As in Run, but least and most are luminance, not grey.
  FloatVec least = splat(255.0f / kSwing + 16.0f), most = splat(16.0f), top = splat(255.0f);
};

inline FloatVec mixed(const float* upper, const float* lower, int64_t x, FloatVec share) {
  const FloatVec a = load(upper + x);
  return a + (load(lower + x) - a) * share;
}

// Like add_colour, but sums colours. Chroma follows at the end, as their difference from their grey.
template <class S>
inline void add_pixels(Sums& sums, const Rgb& samples, FloatVec weight, FloatVec below, FloatVec share) {
  const FloatVec r = samples.r * kToByte<S>, g = samples.g * kToByte<S>, b = samples.b * kToByte<S>;
  const FloatVec y = r * (255 * kRed) + (g * (255 * kGreen) + (b * (255 * kBlue) + 16.0f));
  sums.luminance += weight * (y * (1.0f / 255) - below);
  const FloatVec top = larger(larger(r, g), b), bottom = smaller(smaller(r, g), b);
  const FloatVec middle = unit(smaller(y * (-1.0f / 24) + 232.0f / 24, y * (1.0f / 32) - 0.5f));
  const FloatVec clear = smaller(larger(top * (-0.8f / 24) + 8.6f, splat(0.2f)), splat(1.0f));
  const FloatVec lit = smaller(bottom * (0.9f / 24) + 0.1f, splat(1.0f));
  const FloatVec mass = share * (middle * clear * lit + 0.02f);
  sums.least = smaller(sums.least, y);
  sums.most = larger(sums.most, y);
  sums.top = smaller(sums.top, top);
  sums.mass += mass;
  sums.red += mass * r;
  sums.green += mass * g;
  sums.blue += mass * b;
}

inline FloatVec within(FloatVec x) { return smaller(larger(x, splat(-kFar)), splat(kFar)); }

template <size_t... I> inline FloatVec swapped(FloatVec v, std::index_sequence<I...>) {
  return __builtin_shufflevector(v, v, (int(I) ^ 1)...);
}

// Half the step from each pixel of a vector to the other of its pair; `there` of them lie within the picture.
inline FloatVec half_step(FloatVec v, int64_t there) {
  FloatVec step = (swapped(v, std::make_index_sequence<kLanes>()) - v) * 0.5f;
  if (there % 2) step[there - 1] = 0.0f;
  return step;
}

// Like finish_colour, but skips divisions that change none of a vector's pixels: most pixels lie between toe and knee
// and within the gamut. Luminance is compressed in its own units. Both scales of chroma share one denominator.
template <bool ADJUSTED> inline Rgb finished(const Sums& sums, const ExposureLevel& level, int64_t there) {
  const FloatVec white = larger(sums.top, splat(kWhite)), knee = larger(sums.least, splat(kKnee / kSwing + 16.0f)),
                 toe = smaller(sums.most, splat(kToe / kSwing + 16.0f)), none{};
  const FloatVec given = sums.luminance * 255.0f, inside = smaller(larger(given, toe), knee);
  FloatVec above = inside - 16.0f;
  if (any_differ(given, inside)) {
    const FloatVec beyond = within(given - inside);
    const FloatVec room = larger(beyond > none ? white * (1.0f / kSwing) + 16.0f - knee : toe - 16.0f, none);
    above += room * beyond / (room + larger(beyond, -beyond) + 1e-6f);
  }
  const FloatVec share = 1.0f / (sums.mass + 1e-12f), least = splat(1e-6f);
  const FloatVec own =
      sums.red * (kSwing * 255 * kRed) + (sums.green * (kSwing * 255 * kGreen) + sums.blue * (kSwing * 255 * kBlue));
  FloatVec r = (sums.red - own) * share, g = (sums.green - own) * share, b = (sums.blue - own) * share;
  const FloatVec red_step = half_step(r, there), green_step = half_step(g, there), blue_step = half_step(b, there);
  const FloatVec limited = within(given), edge = swapped(limited, std::make_index_sequence<kLanes>()) - limited;
  const FloatVec far = red_step * red_step * (1.0f / (1.596027f * 1.596027f)) +
                       blue_step * blue_step * (1.0f / (2.017230f * 2.017230f)) + edge * edge;
  const FloatVec apart = (sums.most - sums.least) * kSwing;
  const FloatVec closer = apart / ((apart + kHalfApart) * (1.0f + far * (1.0f / (kHalfStep * kHalfStep))));
  r += closer * red_step, g += closer * green_step, b += closer * blue_step;
  if (ADJUSTED) {
    const FloatVec gain = level.brightness / (1.0f + (level.brightness - 1.0f) * unit(above * (1.0f / 219)));
    const FloatVec chroma = gain * level.saturation;
    above *= gain;
    r *= chroma, g *= chroma, b *= chroma;
  }
  FloatVec grey = above * kSwing;
  const FloatVec up = larger(larger(larger(r, g), b), least), down = larger(-smaller(smaller(r, g), b), least);
  FloatVec to_white = white + kSlack - grey;
  if (ADJUSTED) grey = smaller(grey, splat(255.0f)), to_white = larger(to_white, none);
  const FloatVec least_room = smaller(to_white * down, grey * up), whole = up * down;
  if (!any_less(least_room, whole)) return {grey + r, grey + g, grey + b};
  const FloatVec scale = smaller(least_room / whole, splat(1.0f));
  return {grey + scale * r, grey + scale * g, grey + scale * b};
}

template <class S, bool ADJUSTED> void fuse_pair(const ExposureLevel& level, S* out, int64_t begin, int64_t end) {
  const int64_t width = level.width;
  LevelRows rows(level);
  PixelRun<S> one, two;
  PixelSink<S> sink;
  for (int64_t y = begin; y < end; ++y) {
    rows.move_to(y);
    const FloatVec cell = splat(rows.weights.share), half = splat(rows.below.share);
    for (int64_t x0 = 0; x0 < width; x0 += kColumns) {
      const int64_t n = width - x0 < kColumns ? width - x0 : kColumns, pixel = y * width + x0;
      one.read(static_cast<const S*>(level.pictures[0].data) + 3 * pixel, n);
      two.read(static_cast<const S*>(level.pictures[1].data) + 3 * pixel, n);
      sink.begin(out + 3 * pixel);
      for (int64_t i = 0; i < n; i += kLanes) {
        const int64_t x = x0 + i, there = n - i < kLanes ? n - i : kLanes;
        const auto at = [&](const Between& map, int64_t image, FloatVec share) {
          return mixed(map.upper(image), map.lower(image), x, share);
        };
        Sums sums{at(rows.fused, 0, half)};
        add_pixels<S>(sums, one.at(i, there), at(rows.weights, 0, cell), at(rows.below, 0, half),
                      at(rows.shares, 0, cell));
        add_pixels<S>(sums, two.at(i, there), at(rows.weights, 1, cell), at(rows.below, 1, half),
                      at(rows.shares, 1, cell));
        const Rgb rgb = finished<ADJUSTED>(sums, level, there);
        sink.put(i, there, {scaled_sample(rgb.r, S()), scaled_sample(rgb.g, S()), scaled_sample(rgb.b, S())});
      }
      sink.end(n);
    }
  }
}

template <class D> void fuse_rows(const ExposureLevel& level, typename D::type* out, int64_t begin, int64_t end) {
  using S = typename D::type;
  const int64_t width = level.width;
  const bool adjusted = level.brightness != 1.0f || level.saturation != 1.0f;
  const bool stored = level.coloured && (level.count > 2 || level.validity != nullptr);
  if (D::converted && level.count == 2 && !stored && level.pictures[0].channels == 3 && level.pictures[1].channels == 3)
    return adjusted ? fuse_pair<S, true>(level, out, begin, end) : fuse_pair<S, false>(level, out, begin, end);
  Planes<S> planes;
  Run run;
  Buffer<Chroma> apart(stored ? level.count : 0);
  LevelRows rows(level);
  for (int64_t y = begin; y < end; ++y) {
    rows.move_to(y);
    for (int64_t x0 = 0; x0 < width; x0 += kColumns) {
      const int64_t n = width - x0 < kColumns ? width - x0 : kColumns, pixel = y * width + x0;
      LevelRows::mix(rows.fused, 0, x0, n, run.luminance);
      run.clear_range(n);
      if (level.coloured) {
        add_all(level, rows, x0, pixel, n, planes, run, stored ? apart.data : nullptr);
        if (adjusted)
          finish_colour<true>(run, level, planes, out + 3 * pixel, n);
        else
          finish_colour<false>(run, level, planes, out + 3 * pixel, n);
        continue;
      }
      for (int64_t i = 0; i < level.count; ++i) {
        const S* grey = static_cast<const S*>(level.pictures[i].data) + pixel;
        const Beside at = rows.at(i, x0, n);
        add_luminance<D>(run.luminance, grey, at, n);
        if (D::converted) widen_by_grey(run, grey, at.validity, n);
      }
      if (adjusted)
        finish_grey<D, true>(run, level, out + pixel, n);
      else
        finish_grey<D, false>(run, level, out + pixel, n);
    }
  }
}

void fuse(const ExposureLevel& level, void* out, int64_t begin, int64_t end) {
  switch (level.sample) {
    case Sample::u8: return fuse_rows<Depth<uint8_t>>(level, static_cast<uint8_t*>(out), begin, end);
    case Sample::u16: return fuse_rows<Depth<uint16_t>>(level, static_cast<uint16_t*>(out), begin, end);
    case Sample::f32: return fuse_rows<Depth<float>>(level, static_cast<float*>(out), begin, end);
    case Sample::luminance: return fuse_rows<Luminance>(level, static_cast<float*>(out), begin, end);
  }
}

}  // namespace

extern const ExposureKernels exposure_kernels;
const ExposureKernels exposure_kernels = {.statistics = statistics, .shrink = shrink, .fuse = fuse};

}  // namespace FFMEF_ISA
}  // namespace ffmef
