// What exposures have recorded, octaves of the coarse grid, and the finest level from and to pictures of any depth.
#include "exposures.h"

#include <type_traits>

#include "../cpu/base/buffer.h"
#include "../cpu/fuse/pyramid_rows.h"
#include "samples.h"

namespace ffmef {
namespace FFMEF_ISA {
namespace {

constexpr int kScale = 8;        // pixels along a side of a cell
constexpr float kLeast = 1e-6f;  // validity counts as no less

// --- statistics of cells ----------------------------------------------------------------------------------------------

// Sums of `rows` rows, by column, with the last column repeated until there are whole cells -> means of cells.
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

// --- octaves ----------------------------------------------------------------------------------------------------------

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

// --- the finest level -------------------------------------------------------------------------------------------------

// Chroma of one exposure on a run of pixels, and what it counts: its mass.
struct Chroma {
  alignas(64) float mass[kColumns], blue[kColumns], red[kColumns];
};

// Sums over the exposures of one run of pixels.
struct Run {
  alignas(64) float luminance[kColumns];
  Chroma total;  // blue and red are sums of mass times chroma
};

// How far colour is recorded, from luminance and the largest and smallest of R, G and B on the scale 0..255.
inline float recorded_colour(float y, float top, float bottom) {
  return unit((232.0f - y) * (1.0f / 24)) * unit((y - 16.0f) * (1.0f / 32)) *
         (0.2f + 0.8f * unit((252.0f - top) * (1.0f / 24))) * (0.1f + 0.9f * unit(bottom * (1.0f / 24)));
}

// Sample type and what luminance on the scale 0..1 is of a grey sample.
template <class S> struct Depth {
  using type = S;
  static constexpr bool converted = true;
  static constexpr float scale = (kRed + kGreen + kBlue) * kToByte<S>, offset = kBlack;
  static void store(float luminance, S& out) { to_sample(1.164383f * luminance, out); }
};
struct Luminance {
  using type = float;
  static constexpr bool converted = false;
  static constexpr float scale = 1.0f, offset = 0.0f;
  static void store(float luminance, float& out) { out = luminance; }
};

// Where an exposure's rows lie that go with a run of pixels.
struct Beside {
  const float *weight, *below, *share;
  const uint8_t* validity;  // or null
};

template <class D, class S> void add_luminance(float* __restrict sum, const S* grey, const Beside& at, int64_t n) {
  const float* __restrict weight = at.weight, * __restrict below = at.below;
  for (int64_t x = 0; x < n; ++x) sum[x] += weight[x] * (D::scale * float(grey[x]) + D::offset - below[x]);
}

// Luminance is added; so is chroma, unless it is to be stored apart.
template <bool STORED, class S>
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
    const float mass = share[x] * (recorded_colour(y, top, bottom) + 0.02f);
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
    apart.mass[x] *= v > kLeast ? v : kLeast;
  }
}

void add_stored(Chroma& total, const Chroma& apart, int64_t n) {
  for (int64_t x = 0; x < n; ++x) {
    total.mass[x] += apart.mass[x];
    total.blue[x] += apart.mass[x] * apart.blue[x];
    total.red[x] += apart.mass[x] * apart.red[x];
  }
}

// Reduces an exposure's mass the more its colour differs from that of all others.
void distrust(Chroma& apart, const Chroma& total, int64_t n) {
  for (int64_t x = 0; x < n; ++x) {
    const float mass = apart.mass[x], cb = apart.blue[x], cr = apart.red[x];
    const float share = 1.0f / (total.mass[x] - mass + 1e-9f);
    const float off_blue = __builtin_fabsf(cb - (total.blue[x] - mass * cb) * share);
    const float off_red = __builtin_fabsf(cr - (total.red[x] - mass * cr) * share);
    const float distance = (off_blue > off_red ? off_blue : off_red) * (1.0f / 16), half = 1.0f + distance * distance;
    const float trust = half * half;
    apart.mass[x] = mass / (trust * trust);
  }
}

// Luminance above black on the scale 0..219 and, with adjustments, the factor of it and of chroma.
template <bool ADJUSTED> struct Tone {
  float above, gain;
  Tone(float luminance, float brightness) : above(255.0f * unit(luminance) - 16.0f), gain(1.0f) {
    if (!ADJUSTED) return;
    gain = brightness / (1.0f + (brightness - 1.0f) * unit(above * (1.0f / 219)));
    above *= gain;
  }
};

template <class D, bool ADJUSTED, class S>
void finish_grey(const Run& run, const ExposureLevel& level, S* __restrict out, int64_t n) {
  for (int64_t x = 0; x < n; ++x)
    D::store(D::converted ? Tone<ADJUSTED>(run.luminance[x], level.brightness).above : run.luminance[x], out[x]);
}

// Converts to RGB. Chroma beyond the gamut moves towards grey at constant hue.
template <bool ADJUSTED, class S>
void finish_colour(const Run& run, const ExposureLevel& level, Planes<S>& planes, S* out, int64_t n) {
  for (int64_t x = 0; x < n; ++x) {
    const Tone<ADJUSTED> tone(run.luminance[x], level.brightness);
    float grey = 1.164383f * tone.above, share = 1.0f / (run.total.mass[x] + 1e-12f);
    if (ADJUSTED) share *= tone.gain * level.saturation;
    const float cb = run.total.blue[x] * share, cr = run.total.red[x] * share;
    const float r = 1.596027f * cr, g = -0.391762f * cb - 0.812969f * cr, b = 2.017230f * cb;
    const float larger = r > g ? r : g, smaller = r < g ? r : g;
    float above = larger > b ? larger : b, below = smaller < b ? -smaller : -b;
    above = above > 1e-6f ? above : 1e-6f;
    below = below > 1e-6f ? below : 1e-6f;
    grey = grey < 0.0f ? 0.0f : grey > 255.0f ? 255.0f : grey;
    const float up = (255.0f - grey) / above, down = grey / below, least = up < down ? up : down;
    const float scale = least < 1.0f ? least : 1.0f;
    to_sample(grey + scale * r, planes.stored[0][x]);
    to_sample(grey + scale * g, planes.stored[1][x]);
    to_sample(grey + scale * b, planes.stored[2][x]);
  }
  join(out, n, planes.stored[0], planes.stored[1], planes.stored[2]);
}

// Rows of weights, shares and the level of half size for each exposure, at full size.
class LevelRows {
 public:
  explicit LevelRows(const ExposureLevel& l)
      : level_(l),
        down_(half_of(l.height)),
        across_(half_of(l.width)),
        cells_size_(expanded_size(l.cells_across, kScale)),
        below_size_(expanded_size(across_, 2)),
        weights_(l.count * cells_size_),
        shares_(l.coloured ? l.count * cells_size_ : 0),
        below_(l.count * below_size_),
        mixed_(most_of(l.cells_across, across_) + 2) {}

  void move_to(int64_t y) {
    for (int64_t n = 0; n < level_.count; ++n) {
      expand(level_.weights, n, level_.cells_down, level_.cells_across, kScale, y, weights_.data + n * cells_size_);
      expand(level_.half, n, down_, across_, 2, y, below_.data + n * below_size_);
      if (level_.coloured)
        expand(level_.shares, n, level_.cells_down, level_.cells_across, kScale, y, shares_.data + n * cells_size_);
    }
    y_ = y;
  }
  Beside at(int64_t n, int64_t x) const {
    const int64_t cell = n * cells_size_ + kScale / 2 + x;
    const uint8_t* validity = level_.validity != nullptr ? level_.validity[n] : nullptr;
    return {weights_.data + cell, below_.data + n * below_size_ + 1 + x,
            level_.coloured ? shares_.data + cell : nullptr,
            validity != nullptr ? validity + y_ * level_.width + x : nullptr};
  }

 private:
  void expand(const float* planes, int64_t n, int64_t rows, int64_t columns, int factor, int64_t y, float* out) {
    const RowTap tap = tap_of(y, factor, rows);
    const float* plane = planes + n * rows * columns;
    between(mixed_.data + 1, plane + tap.first * columns, plane + tap.second * columns, float(tap.share), columns);
    expand_row(out, mixed_.data + 1, columns, factor);
  }

  const ExposureLevel& level_;
  const int64_t down_, across_, cells_size_, below_size_;
  Row<float> weights_, shares_, below_, mixed_;
  int64_t y_ = 0;
};

// A run of pixels of all exposures. `apart` holds the chroma of each where more than sums are needed.
template <class S> void add_all(const ExposureLevel& level, const LevelRows& rows, int64_t x0, int64_t pixel, int64_t n,
                                Planes<S>& planes, Run& run, Chroma* apart) {
  for (float* row : {run.total.mass, run.total.blue, run.total.red}) std::memset(row, 0, size_t(n) * sizeof(float));
  for (int64_t i = 0; i < level.count; ++i) {
    const Beside at = rows.at(i, x0);
    planes.read(level.pictures[i].data, level.pictures[i].channels, pixel, n);
    if (apart == nullptr) {
      add_colour<false>(run, run.total, planes, at, n);
      continue;
    }
    add_colour<true>(run, apart[i], planes, at, n);
    if (at.validity != nullptr) mask(apart[i], at.validity, n);
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

template <class D> void fuse_rows(const ExposureLevel& level, typename D::type* out, int64_t begin, int64_t end) {
  using S = typename D::type;
  const int64_t width = level.width, down = half_of(level.height), across = half_of(width);
  Planes<S> planes;
  Run run;
  const bool adjusted = level.brightness != 1.0f || level.saturation != 1.0f;
  const bool stored = level.coloured && (level.count > 2 || level.validity != nullptr);
  Buffer<Chroma> apart(stored ? level.count : 0);
  LevelRows rows(level);
  Expander<float> fused_row(across, 2);
  for (int64_t y = begin; y < end; ++y) {
    const float* fused = fused_row(level.half_fused, down, across, 2, y);
    rows.move_to(y);
    for (int64_t x0 = 0; x0 < width; x0 += kColumns) {
      const int64_t n = width - x0 < kColumns ? width - x0 : kColumns, pixel = y * width + x0;
      std::memcpy(run.luminance, fused + x0, size_t(n) * sizeof(float));
      if (level.coloured) {
        add_all(level, rows, x0, pixel, n, planes, run, stored ? apart.data : nullptr);
        if (adjusted)
          finish_colour<true>(run, level, planes, out + 3 * pixel, n);
        else
          finish_colour<false>(run, level, planes, out + 3 * pixel, n);
        continue;
      }
      for (int64_t i = 0; i < level.count; ++i)
        add_luminance<D>(run.luminance, static_cast<const S*>(level.pictures[i].data) + pixel, rows.at(i, x0), n);
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
