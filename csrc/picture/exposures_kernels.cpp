// What exposures have recorded, octaves of the coarse grid, and the finest level, which reads and writes pictures of
// any depth.
#include "exposures.h"

#include <type_traits>
#include <vector>

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
  Row<float> high(4 * across), low(4 * across), least(4 * width), most(4 * width), apart(4 * across), valid(8 * across);
  for (int64_t c = begin; c < end; ++c) {
    for (int64_t n = 0; n < count; ++n) {
      const float* rows[4];
      for (int r = 0; r < 4; ++r) rows[r] = half + (n * height + (4 * c + r < height ? 4 * c + r : height - 1)) * width;
      const float* __restrict a = rows[0], * __restrict b = rows[1], * __restrict d = rows[2], * __restrict e = rows[3];
      const auto to_white = [](float y) { return unit((0.915f - y) * (1.0f / 0.06f)); };
      const auto to_black = [](float y) { return unit((y - 0.065f) * (1.0f / 0.05f)); };
      for (int64_t x = 0; x < width; ++x) {
        high[x] = to_white(a[x]) + to_white(b[x]) + to_white(d[x]) + to_white(e[x]);
        low[x] = to_black(a[x]) + to_black(b[x]) + to_black(d[x]) + to_black(e[x]);
      }
      for (int r = 0; r < 4; ++r) {
        float* __restrict lower = least + r * width, * __restrict upper = most + r * width;
        const float* __restrict row = rows[r];
        for (int64_t x = 0; x < width; ++x) {
          lower[x] = n == 0 || row[x] < lower[x] ? row[x] : lower[x];
          upper[x] = n == 0 || row[x] > upper[x] ? row[x] : upper[x];
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
    std::memset(apart.data, 0, size_t(width) * sizeof(float));
    for (int r = 0; r < 4; ++r)
      for (int64_t x = 0; x < width; ++x) apart[x] += most[r * width + x] - least[r * width + x];
    means_of_cells(apart, width, across, 4, 4, out.apart + c * across);
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
        kept_(2 * count * line_) {
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
    for (int64_t n = 0; n < count_; ++n)
      expand_row(row(n, which) - factor_ / 2, planes_ + (n * rows_ + y) * columns_, columns_, factor_);
  }

  const float* const planes_;
  const int64_t count_, rows_, columns_, line_;
  const int factor_;
  Buffer<float> kept_;
  int64_t first_ = -1, second_ = -1;
  int upper_ = 0, lower_ = 1;
};

// Rows at full size of the weights, shares and half-size level of each exposure, and of the fused half-size level.
class LevelRows {
 public:
  explicit LevelRows(const ExposureLevel& l)
      : weights_(l.weights, l.count, l.cells_down, l.cells_across, kScale),
        shares_(l.shares, l.coloured ? l.count : 0, l.cells_down, l.cells_across, kScale),
        below_(l.half, l.count, half_of(l.height), half_of(l.width), 2),
        fused_(l.half_fused, 1, half_of(l.height), half_of(l.width), 2) {}

  void move_to(int64_t y) {
    for (Between* rows : {&weights_, &shares_, &below_, &fused_}) rows->move_to(y);
    cell_ = splat(weights_.share);
    half_ = splat(below_.share);
  }
  // Vectors of exposure i from pixel x on.
  FloatVec weight(int64_t i, int64_t x) const { return mixed(weights_, i, x, cell_); }
  FloatVec share(int64_t i, int64_t x) const { return mixed(shares_, i, x, cell_); }
  FloatVec below(int64_t i, int64_t x) const { return mixed(below_, i, x, half_); }
  FloatVec fused(int64_t x) const { return mixed(fused_, 0, x, half_); }

 private:
  static FloatVec mixed(const Between& rows, int64_t i, int64_t x, FloatVec share) {
    const FloatVec a = load(rows.upper(i) + x);
    return a + (load(rows.lower(i) + x) - a) * share;
  }

  Between weights_, shares_, below_, fused_;
  FloatVec cell_{}, half_{};
};

// Luminance on 0..255 of a grey.
constexpr float luminance_of(float grey) { return grey / kSwing + 16.0f; }

// What is known of all exposures on a vector of pixels. The bounds begin as values that any sample between black and
// white replaces.
struct Sums {
  FloatVec luminance;  // on the scale 0..1
  // The least and the greatest luminance of the exposures, and the least of their largest channels, on 0..255.
  FloatVec least = splat(luminance_of(255.0f)), most = splat(luminance_of(0.0f)), top = splat(255.0f);

  void widen(FloatVec dark, FloatVec bright, FloatVec channel) {
    least = smaller(least, dark);
    most = larger(most, bright);
    top = smaller(top, channel);
  }
  // A pixel that is usable by v counts as closer to white in the minima and closer to black in the maximum.
  void widen_masked(FloatVec y, FloatVec channel, FloatVec v) {
    const float white = luminance_of(255.0f), black = luminance_of(0.0f);
    widen(white - v * (white - y), v * (y - black) + black, 255.0f - v * (255.0f - channel));
  }
};

// The colour of an exposure, as R and B minus its grey, and its weight there: its mass. Or sums over the exposures of
// mass, and of mass times colour.
struct Colour {
  FloatVec mass, red, blue;

  void add(const Colour& other) {
    mass += other.mass;
    red += other.mass * other.red;
    blue += other.mass * other.blue;
  }
};

// Adds the luminance of an exposure and returns its colour. How far colour is recorded follows from luminance and the
// largest and smallest of R, G and B. Ramps are not clipped at an end that no sample between black and white can pass.
// Two ramps that do not overlap are computed as one.
template <class S> inline Colour add_pixels(Sums& sums, const LevelRows& rows, int64_t i, int64_t x, const Rgb& samples,
                                            const FloatVec* usable = nullptr) {
  const FloatVec r = samples.r * kToByte<S>, g = samples.g * kToByte<S>, b = samples.b * kToByte<S>;
  const FloatVec y = r * (255 * kRed) + (g * (255 * kGreen) + (b * (255 * kBlue) + 16.0f));
  sums.luminance += rows.weight(i, x) * (y * (1.0f / 255) - rows.below(i, x));
  const FloatVec top = larger(larger(r, g), b), bottom = smaller(smaller(r, g), b);
  const FloatVec middle = unit(smaller(y * (-1.0f / 24) + 232.0f / 24, y * (1.0f / 32) - 0.5f));
  const FloatVec clear = smaller(larger(top * (-0.8f / 24) + 8.6f, splat(0.2f)), splat(1.0f));
  const FloatVec lit = smaller(bottom * (0.9f / 24) + 0.1f, splat(1.0f));
  FloatVec mass = rows.share(i, x) * (middle * clear * lit + 0.02f);
  if (usable == nullptr) {
    sums.widen(y, y, top);
  } else {
    sums.widen_masked(y, top, *usable);
    mass *= larger(*usable, splat(kLeastValidity));
  }
  const FloatVec grey = y * kSwing - 16.0f * kSwing;
  return {mass, r - grey, b - grey};
}

constexpr float kRedOfCr = 1.596027f, kBlueOfCb = 2.017230f;

// The mass of an exposure, reduced: the more its colour differs from the others', the less it counts.
inline FloatVec distrusted(const Colour& own, const Colour& total) {
  const FloatVec off_red = (total.mass * own.red - total.red) * (1.0f / (16 * kRedOfCr));
  const FloatVec off_blue = (total.mass * own.blue - total.blue) * (1.0f / (16 * kBlueOfCb));
  const FloatVec off = larger(larger(off_red, -off_red), larger(off_blue, -off_blue));
  const FloatVec others = total.mass - own.mass + 1e-4f, square = others * others;
  const FloatVec trust = square / (square + off * off), trusted = trust * trust;  // 1 / (1 + (off / others)^2)
  return own.mass * (trusted * trusted);
}

inline FloatVec within(FloatVec x) { return smaller(larger(x, splat(-kFar)), splat(kFar)); }

template <size_t... I> inline FloatVec swapped(FloatVec v, std::index_sequence<I...>) {
  return __builtin_shufflevector(v, v, (int(I) ^ 1)...);
}

// The step from each pixel of a vector to the other of its pair; `there` of them lie within the picture. The last pixel
// of an odd width is its own partner.
inline FloatVec step_of(FloatVec v, int64_t there) {
  FloatVec step = swapped(v, std::make_index_sequence<kLanes>()) - v;
  if (there % 2) step[there - 1] = 0.0f;
  return step;
}

// Fused luminance above black, and the most that channels may reach. Luminance is compressed near white and black
// unless the exposures go further. Divides only where some pixel lies beyond knee or toe: most do not.
struct Tone {
  FloatVec white, above;

  explicit Tone(const Sums& sums) : white(larger(sums.top, splat(kWhite))) {
    const FloatVec knee = larger(sums.least, splat(luminance_of(kKnee))),
                   toe = smaller(sums.most, splat(luminance_of(kToe))), none{};
    const FloatVec given = sums.luminance * 255.0f, inside = smaller(larger(given, toe), knee);
    above = inside - 16.0f;
    if (!any_differ(given, inside)) return;
    const FloatVec beyond = within(given - inside);
    const FloatVec room = larger(beyond > none ? white * (1.0f / kSwing) + 16.0f - knee : toe - 16.0f, none);
    above += room * beyond / (room + larger(beyond, -beyond) + 1e-6f);
  }

  // Brightens shadows, and returns by how much.
  FloatVec brighten(float brightness) {
    const FloatVec gain = brightness / (1.0f + (brightness - 1.0f) * unit(above * (1.0f / 219)));
    above *= gain;
    return gain;
  }
};

// Merged colour. Where exposures differ, the pixels of each pair come closer.
template <bool MASKED> inline Colour smoothed(const Sums& sums, const Colour& total, int64_t there) {
  const FloatVec share = 1.0f / (total.mass + 1e-12f);
  const FloatVec red = total.red * share, blue = total.blue * share;
  const FloatVec red_step = step_of(red, there), blue_step = step_of(blue, there);
  const FloatVec limited = within(sums.luminance * 255.0f);
  const FloatVec edge = swapped(limited, std::make_index_sequence<kLanes>()) - limited;
  // Twice 1 + far / kHalfStep^2, because half a step is what pixels may move.
  constexpr float scale = 2.0f / (kHalfStep * kHalfStep);
  const FloatVec far =
      red_step * (red_step * (scale / (4 * kRedOfCr * kRedOfCr))) +
      (blue_step * (blue_step * (scale / (4 * kBlueOfCb * kBlueOfCb))) + (edge * (edge * scale) + 2.0f));
  FloatVec apart = sums.most - sums.least;
  if (MASKED) apart = larger(apart, FloatVec{});
  const FloatVec closer = apart / ((apart + kHalfApart / kSwing) * far);
  return {total.mass, red + closer * red_step, blue + closer * blue_step};
}

// Returns RGB on the samples' scale, ready for conversion. Chroma beyond the gamut moves towards grey at constant hue.
template <class S, bool ADJUSTED, bool MASKED>
inline Rgb finished(const Sums& sums, const Colour& total, const ExposureLevel& level, int64_t there) {
  const Colour colour = smoothed<MASKED>(sums, total, there);
  Tone tone(sums);
  FloatVec r = colour.red, b = colour.blue;
  if (ADJUSTED) {
    const FloatVec chroma = tone.brighten(level.brightness) * level.saturation;
    r *= chroma, b *= chroma;
  }
  FloatVec g = r * (-kRed / kGreen) + b * (-kBlue / kGreen), grey = tone.above * kSwing;
  const FloatVec up = larger(larger(r, g), b), low = smaller(smaller(r, g), b), none{};
  FloatVec to_white = tone.white + kSlack - grey;
  if (ADJUSTED) grey = smaller(grey, splat(255.0f)), to_white = larger(to_white, none);
  if (any_less(to_white, up) || any_less(grey, -low)) {
    const FloatVec least = splat(1e-6f), above = larger(up, least), below = larger(-low, least);
    const FloatVec scale = smaller(smaller(to_white * below, grey * above) / (above * below), splat(1.0f));
    r *= scale, g *= scale, b *= scale;
  }
  const FloatVec base = grey * kOfByte<S> + kRounding<S>;
  return {in_range<S>(base + r * kOfByte<S>), in_range<S>(base + g * kOfByte<S>), in_range<S>(base + b * kOfByte<S>)};
}

// Fuses in colour. Of a pair without validity nothing but sums is needed; they stay in registers.
template <class S, bool ADJUSTED, bool PAIR>
void fuse_colour(const ExposureLevel& level, S* out, int64_t begin, int64_t end) {
  const int64_t width = level.width, count = PAIR ? 2 : level.count;
  LevelRows rows(level);
  std::vector<PixelRun<S>> runs(static_cast<size_t>(count));
  std::vector<PixelRun<uint8_t>> masks(static_cast<size_t>(level.validity != nullptr ? count : 0));
  const Buffer<Colour> colours(PAIR ? 0 : count);
  PixelSink<S> sink;
  for (int64_t y = begin; y < end; ++y) {
    rows.move_to(y);
    for (int64_t x0 = 0; x0 < width; x0 += kColumns) {
      const int64_t n = width - x0 < kColumns ? width - x0 : kColumns, pixel = y * width + x0;
      for (int64_t i = 0; i < count; ++i) {
        const PictureView& picture = level.pictures[i];
        runs[i].read(static_cast<const S*>(picture.data) + picture.channels * pixel, PAIR ? 3 : picture.channels, n);
        if (!masks.empty() && level.validity[i] != nullptr) masks[i].read(level.validity[i] + pixel, 1, n);
      }
      sink.begin(out + 3 * pixel);
      for (int64_t k = 0; k < n; k += kLanes) {
        const int64_t x = x0 + k, there = n - k < kLanes ? n - k : kLanes;
        Sums sums{rows.fused(x)};
        Colour total{};
        if constexpr (PAIR) {
          for (int64_t i = 0; i < 2; ++i) total.add(add_pixels<S>(sums, rows, i, x, runs[i].rgb(k, there)));
        } else {
          for (int64_t i = 0; i < count; ++i) {
            const Rgb samples = runs[i].pixels(k, there);
            if (masks.empty() || level.validity[i] == nullptr) {
              colours[i] = add_pixels<S>(sums, rows, i, x, samples);
            } else {
              const FloatVec usable = masks[i].grey(k, there) * (1.0f / 255);
              colours[i] = add_pixels<S>(sums, rows, i, x, samples, &usable);
            }
            total.add(colours[i]);
          }
          if (count > 2) {
            Colour trusted{};
            for (int64_t i = 0; i < count; ++i)
              trusted.add({distrusted(colours[i], total), colours[i].red, colours[i].blue});
            total = trusted;
          }
        }
        sink.put(k, there, finished<S, ADJUSTED, !PAIR>(sums, total, level, there));
      }
      sink.end(n);
    }
  }
}

// Fuses in grey, or luminance, which is neither converted nor compressed.
template <class S, bool ADJUSTED, bool CONVERTED>
void fuse_grey(const ExposureLevel& level, S* out, int64_t begin, int64_t end) {
  constexpr float scale = CONVERTED ? (kRed + kGreen + kBlue) * kToByte<S> : 1.0f, offset = CONVERTED ? kBlack : 0.0f;
  const int64_t width = level.width;
  LevelRows rows(level);
  std::vector<PixelRun<S>> runs(static_cast<size_t>(level.count));
  std::vector<PixelRun<uint8_t>> masks(static_cast<size_t>(level.validity != nullptr ? level.count : 0));
  PixelSink<S> sink;
  for (int64_t y = begin; y < end; ++y) {
    rows.move_to(y);
    for (int64_t x0 = 0; x0 < width; x0 += kColumns) {
      const int64_t n = width - x0 < kColumns ? width - x0 : kColumns, pixel = y * width + x0;
      for (int64_t i = 0; i < level.count; ++i) {
        runs[i].read(static_cast<const S*>(level.pictures[i].data) + pixel, 1, n);
        if (!masks.empty() && level.validity[i] != nullptr) masks[i].read(level.validity[i] + pixel, 1, n);
      }
      sink.begin(out + pixel);
      for (int64_t k = 0; k < n; k += kLanes) {
        const int64_t x = x0 + k, there = n - k < kLanes ? n - k : kLanes;
        Sums sums{rows.fused(x)};
        for (int64_t i = 0; i < level.count; ++i) {
          const FloatVec grey = runs[i].grey(k, there), y01 = grey * scale + offset;
          sums.luminance += rows.weight(i, x) * (y01 - rows.below(i, x));
          if (!CONVERTED) continue;
          const FloatVec value = grey * kToByte<S>, luminance = y01 * 255.0f;
          if (masks.empty() || level.validity[i] == nullptr)
            sums.widen(luminance, luminance, value);
          else
            sums.widen_masked(luminance, value, masks[i].grey(k, there) * (1.0f / 255));
        }
        if (!CONVERTED) {
          sink.put_grey(k, there, sums.luminance);
          continue;
        }
        Tone tone(sums);
        if (ADJUSTED) tone.brighten(level.brightness);
        sink.put_grey(k, there, in_range<S>(smaller(tone.above * kSwing, splat(255.0f)) * kOfByte<S> + kRounding<S>));
      }
      sink.end_grey(n);
    }
  }
}

template <class S, bool CONVERTED = true>
void fuse_rows(const ExposureLevel& level, void* out, int64_t begin, int64_t end) {
  S* samples = static_cast<S*>(out);
  const bool adjusted = level.brightness != 1.0f || level.saturation != 1.0f;
  if (!level.coloured)
    return adjusted ? fuse_grey<S, true, CONVERTED>(level, samples, begin, end)
                    : fuse_grey<S, false, CONVERTED>(level, samples, begin, end);
  if (level.count == 2 && level.validity == nullptr && level.pictures[0].channels == 3 &&
      level.pictures[1].channels == 3)
    return adjusted ? fuse_colour<S, true, true>(level, samples, begin, end)
                    : fuse_colour<S, false, true>(level, samples, begin, end);
  return adjusted ? fuse_colour<S, true, false>(level, samples, begin, end)
                  : fuse_colour<S, false, false>(level, samples, begin, end);
}

void fuse(const ExposureLevel& level, void* out, int64_t begin, int64_t end) {
  switch (level.sample) {
    case Sample::u8: return fuse_rows<uint8_t>(level, out, begin, end);
    case Sample::u16: return fuse_rows<uint16_t>(level, out, begin, end);
    case Sample::f32: return fuse_rows<float>(level, out, begin, end);
    case Sample::luminance: return fuse_rows<float, false>(level, out, begin, end);
  }
}

}  // namespace

extern const ExposureKernels exposure_kernels;
const ExposureKernels exposure_kernels = {.statistics = statistics, .shrink = shrink, .fuse = fuse};

}  // namespace FFMEF_ISA
}  // namespace ffmef
