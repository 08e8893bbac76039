#include "fuse.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <numeric>
#include <stdexcept>
#include <string>

#include "../cpu/base/buffer.h"
#include "../cpu/fuse/pyramid_fuse.h"

namespace ffmef {
namespace {

int64_t half_of(int64_t size) { return (size + 1) / 2; }

// Each part has about four thousand pixels and takes a few microseconds. One thread alone takes up to four parts:
// another would need as long to begin, and to fetch what the first has written.
template <class F> void parallel_rows(Team& team, int64_t rows, int64_t width, const F& f) {
  const int64_t part = 1 + (1 << 12) / (width + 1);
  team.over(rows, rows <= 4 * part ? rows : part, f);
}

// Rows of all planes. Threads synchronise once, not once per plane, and each keeps the same rows of all planes.
template <class F> void parallel_rows_of_planes(Team& team, int64_t planes, int64_t rows, int64_t width, const F& f) {
  parallel_rows(team, rows, planes * width, [&](int64_t begin, int64_t end) {
    for (int64_t n = 0; n < planes; ++n) f(n, begin, end);
  });
}

// Uses large pages: touching small pages for the first time would take a tenth of the whole time.
Buffer<float> new_plane(int64_t size) { return Buffer<float>(size, Pages::large); }

// Takes the weight and bias of one layer after another.
struct Reader {
  const std::vector<Parameter>& parameters;
  size_t next = 0;

  const float* vector(int64_t size) {
    if (next >= parameters.size() || parameters[next].size != size)
      throw std::invalid_argument("parameters[" + std::to_string(next) + "] must be float32 with " +
                                  std::to_string(size) + " elements");
    return parameters[next++].data;
  }

  PredictConv conv(int64_t outputs, int64_t inputs, int64_t size) {
    if (next + 2 > parameters.size()) throw std::invalid_argument("parameters must hold two tensors for each layer");
    const Parameter &weight = parameters[next], &bias = parameters[next + 1];
    if (weight.size != outputs * inputs * size * size || bias.size != outputs)
      throw std::invalid_argument("parameters[" + std::to_string(next) + "] must be float32 with " +
                                  std::to_string(outputs * inputs * size * size) + " elements and its bias with " +
                                  std::to_string(outputs));
    next += 2;
    return {weight.data, bias.data, int(outputs), int(inputs), int(size)};
  }
};

// Each part takes a few microseconds.
void over_rows(void* team, int64_t rows, int64_t row_cost, void* context, void (*body)(void*, int64_t, int64_t)) {
  static_cast<Team*>(team)->over(rows, 1 + (1 << 15) / (row_cost + 1),
                                 [&](int64_t begin, int64_t end) { body(context, begin, end); });
}

// The levels of the pyramid, finest first. The finest has no planes here: its kernel reads the pictures.
struct Levels {
  std::vector<int64_t> heights, widths;
  std::vector<Buffer<float>> stored, fused;
  std::vector<std::vector<PlaneView>> planes;
};

Levels halve_all(const Pictures& pictures, const float* half, int bands, Team& team) {
  const PyramidFuseKernels& kernels = FFMEF_KERNELS(pyramid_fuse_kernels);
  const int64_t count = pictures.count();
  Levels levels{{pictures.height}, {pictures.width}, {}, {}, {}};
  levels.stored.resize(size_t(bands) + 1);
  levels.fused.resize(size_t(bands) + 1);
  levels.planes.resize(size_t(bands) + 1);
  for (int level = 1; level <= bands; ++level) {
    const int64_t above = levels.heights.back(), left = levels.widths.back(), h = half_of(above), w = half_of(left);
    levels.heights.push_back(h);
    levels.widths.push_back(w);
    levels.fused[level] = new_plane(h * w);
    if (level > 1) {
      levels.stored[level] = new_plane(count * h * w);
      float* out = levels.stored[level].get();
      parallel_rows_of_planes(team, count, h, 2 * left, [&](int64_t n, int64_t begin, int64_t end) {
        kernels.halve(Scalar::f32, levels.planes[level - 1][n], above, left, out + n * h * w, begin, end);
      });
    }
    const float* plane = level > 1 ? levels.stored[level].get() : half;
    for (int64_t n = 0; n < count; ++n) levels.planes[level].push_back({plane + n * h * w, w, 1, false});
  }
  return levels;
}

}  // namespace

bool Pictures::coloured() const {
  return std::any_of(views.begin(), views.end(), [](const PictureView& view) { return view.channels == 3; });
}

PredictNetwork network_of(const std::vector<Parameter>& parameters, const std::vector<int64_t>& channels, int64_t stem,
                          int64_t bands) {
  const int grids = int(channels.size());
  if (grids < 1 || grids > kMaxGrids || stem < 1 || stem > kChannelBlock || bands < 0 || bands > 3)
    throw std::invalid_argument("channels must have 1 to " + std::to_string(kMaxGrids) + " grids, stem at most " +
                                std::to_string(kChannelBlock) + " channels, bands at most 3");
  for (int64_t c : channels)
    if (c <= 0 || c % kChannelBlock != 0 || c > 1 << 12)
      throw std::invalid_argument("channels must be multiples of " + std::to_string(kChannelBlock));
  Reader reader{parameters};
  PredictNetwork net{};
  net.prior = reader.vector(bands + kFurtherPlanes);
  net.grids = grids;
  net.bands = int(bands);
  net.stem = reader.conv(stem, 1, 2);
  net.enter = reader.conv(channels[0], stem, 2);
  net.statistics = reader.conv(channels[0], 3, 1);
  net.meet = reader.conv(channels[0], 2 * channels[0], 1);
  for (int g = 0; g + 1 < grids; ++g) net.down[g] = reader.conv(channels[g + 1], channels[g], 2);
  for (int g = 0; g + 1 < grids; ++g) net.encode[g] = reader.conv(channels[g + 1], channels[g + 1], 3);
  net.overall = reader.conv(channels[grids - 1], channels[grids - 1], 1);
  net.meet_coarsest = reader.conv(channels[grids - 1], 2 * channels[grids - 1], 1);
  for (int g = 0; g + 1 < grids; ++g) net.up[g] = reader.conv(channels[g], channels[g + 1], 1);
  for (int g = 0; g + 1 < grids; ++g) net.decode[g] = reader.conv(channels[g], channels[g], 3);
  net.head = reader.conv(2 * (bands + kFurtherPlanes), channels[0], 1);
  if (reader.next != parameters.size())
    throw std::invalid_argument("parameters must hold " + std::to_string(reader.next) + " tensors, got " +
                                std::to_string(parameters.size()));
  const PyramidPredictKernels& kernels = FFMEF_KERNELS(pyramid_predict_kernels);
  net.prepared = {kernels.prepare(net), kernels.forget};
  return net;
}

namespace {

// Sorts exposures by their samples, because floating-point sums depend on order. Equal exposures may be swapped.
Exposures in_order(const Exposures& given) {
  const Pictures& pictures = given.pictures;
  const size_t pixels = size_t(pictures.height * pictures.width);
  const size_t bytes = pictures.sample == Sample::u8 ? 1 : pictures.sample == Sample::u16 ? 2 : 4;
  const auto before = [&](size_t a, size_t b) {
    const PictureView &first = pictures.views[a], &second = pictures.views[b];
    if (first.channels != second.channels) return first.channels < second.channels;
    const int samples = std::memcmp(first.data, second.data, pixels * bytes * size_t(first.channels));
    if (samples != 0 || given.validity.empty()) return samples < 0;
    const uint8_t *one = given.validity[a], *other = given.validity[b];
    if (one == nullptr || other == nullptr) return one == nullptr && other != nullptr;
    return std::memcmp(one, other, pixels) < 0;
  };
  std::vector<size_t> order(pictures.views.size());
  std::iota(order.begin(), order.end(), size_t(0));
  std::stable_sort(order.begin(), order.end(), before);
  Exposures sorted{{pictures.sample, pictures.height, pictures.width, {}}, {}};
  for (size_t n : order) {
    sorted.pictures.views.push_back(pictures.views[n]);
    if (!given.validity.empty()) sorted.validity.push_back(given.validity[n]);
  }
  return sorted;
}

constexpr int kBands = 3;  // of the exposures' pyramid
constexpr int kScale = 8;  // pixels along a side of a cell
constexpr int kFine = 2;   // the finest octaves: only they have their own predicted planes and are halved in size

// The predictions for the cells of a call.
struct Predicted {
  int64_t count, down, across;
  Buffer<float> weights, base, shares, fine_shares, fine_gains, octave_shares, octave_gains;

  Predicted(int64_t n, int64_t h, int64_t w)
      : count(n),
        down(h),
        across(w),
        weights(new_plane(kBands * n * h * w)),
        base(new_plane(n * h * w)),
        shares(new_plane(n * h * w)),
        fine_shares(new_plane(n * h * w)),
        fine_gains(new_plane(n * h * w)),
        octave_shares(new_plane(n * h * w)),
        octave_gains(new_plane(n * h * w)) {}
  void scale_weights(float factor) const {
    for (int64_t i = 0; i < kBands * count * down * across; ++i) weights[i] *= factor;
    for (int64_t i = 0; i < count * down * across; ++i) base[i] *= factor;
  }
  const float* weights_of(int level) const { return weights.get() + level * count * down * across; }
};

// Preferences in even steps from -1 for the darkest mean luminance to 1 for the brightest, times `prefer`.
std::vector<float> preferences(const Pictures& pictures, const float* half, double prefer, Team& team) {
  const int64_t count = pictures.count(), height = pictures.down(), width = pictures.across();
  std::vector<double> sums(size_t(count * height));
  // A half-size pixel stands for four pixels, at an odd border for two.
  parallel_rows(team, count * height, width, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const float* row = half + i * width;
      double sum = pictures.width % 2 ? -0.5 * row[width - 1] : 0.0;
      for (int64_t x = 0; x < width; ++x) sum += row[x];
      sums[i] = pictures.height % 2 && i % height == height - 1 ? 0.5 * sum : sum;
    }
  });
  std::vector<double> means(size_t(count), 0.0);
  for (int64_t i = 0; i < count * height; ++i) means[i / height] += sums[i];
  std::vector<size_t> order(means.size());
  std::iota(order.begin(), order.end(), size_t(0));
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return means[a] < means[b]; });
  std::vector<float> preferred(means.size(), 0.0f);
  for (size_t rank = 0; rank < order.size() && count > 1; ++rank)
    preferred[order[rank]] = float(prefer * (2.0 * double(rank) / double(count - 1) - 1.0));
  return preferred;
}

Predicted predict_cells(const PredictNetwork& net, const Exposures& exposures, double prefer, float* half, Team& team) {
  const Pictures& pictures = exposures.pictures;
  const FinestKernels& finest = FFMEF_KERNELS(finest_kernels);
  const ExposureKernels& kernels = FFMEF_KERNELS(exposure_kernels);
  const int64_t count = pictures.count(), height = pictures.down(), width = pictures.across(), down = (height + 3) / 4,
                across = (width + 3) / 4, cells = down * across;
  Predicted predicted(count, down, across);
  const bool masked = !exposures.validity.empty();
  const Buffer<float> known = new_plane((3 * count + 1) * cells);
  const Statistics statistics{known.get(), known.get() + count * cells, known.get() + 2 * count * cells,
                              masked ? known.get() + (2 * count + 1) * cells : nullptr};
  std::atomic<bool> valid{true};
  parallel_rows(team, down, 8 * pictures.width * count, [&](int64_t begin, int64_t end) {
    // One row of cells at a time, so that halved pixels are still cached when their statistics are taken.
    for (int64_t row = begin; row < end; ++row) {
      const int64_t last = 4 * row + 4 < height ? 4 * row + 4 : height;
      for (int64_t n = 0; n < count; ++n)
        if (!finest.halve(pictures.sample, pictures.views[n], pictures.height, pictures.width,
                          half + n * height * width, 4 * row, last))
          valid.store(false, std::memory_order_relaxed);
      kernels.statistics(half, masked ? exposures.validity.data() : nullptr, count, pictures.height, pictures.width,
                         statistics, row, row + 1);
    }
  });
  if (!valid) throw OutOfRange();
  std::vector<float> preferred;
  if (prefer != 0) preferred = preferences(pictures, half, prefer, team);
  FFMEF_KERNELS(pyramid_predict_kernels)
      .predict(net, half, count, height, width,
               {statistics.high, statistics.low, statistics.apart, statistics.validity,
                preferred.empty() ? nullptr : preferred.data()},
               {predicted.weights.get(), predicted.base.get(), predicted.shares.get(), predicted.fine_shares.get(),
                predicted.fine_gains.get(), predicted.octave_shares.get(), predicted.octave_gains.get()},
               {&team, over_rows});
  return predicted;
}

// Fuses one level of the pyramid, given the fused level below. Weights are for cells of `factor` pixels.
void fuse_level(int64_t count, int64_t height, int64_t width, const PlaneView* fine, const float* coarse,
                const float* coarse_fused, const float* weights, int64_t down, int64_t across, int factor, float* out,
                Team& team) {
  PyramidLevel l{};
  l.scalar = Scalar::f32;
  l.count = count;
  l.height = height;
  l.width = width;
  l.fine = fine;
  l.coarse = coarse;
  l.coarse_fused = coarse_fused;
  l.weights = weights;
  l.cells_down = down;
  l.cells_across = across;
  l.factor = factor;
  parallel_rows(team, height, width * count, [&](int64_t begin, int64_t end) {
    FFMEF_KERNELS(pyramid_fuse_kernels).fuse(l, out, false, begin, end);
  });
}

// Smooths rows of a map by [1 2 1] / 4 in both directions, with taps `step` cells apart. Borders are repeated.
void spread(const float* in, int64_t height, int64_t width, int64_t step, float* out, int64_t begin, int64_t end) {
  std::vector<float> mixed(size_t(width), 0.0f);
  for (int64_t y = begin; y < end; ++y) {
    const float* above = in + std::max(y - step, int64_t(0)) * width;
    const float* below = in + std::min(y + step, height - 1) * width;
    const float* here = in + y * width;
    for (int64_t x = 0; x < width; ++x) mixed[x] = (above[x] + below[x] + 2.0f * here[x]) * 0.25f;
    for (int64_t x = 0; x < width; ++x) {
      const float left = mixed[std::max(x - step, int64_t(0))], right = mixed[std::min(x + step, width - 1)];
      out[y * width + x] = (left + right + 2.0f * mixed[x]) * 0.25f;
    }
  }
}

// Fuses an octave of the same size as the one below: adds each picture's weighted band to the fused octave below.
void add_band(int64_t count, int64_t size, const float* pictures, const float* below, const float* fused_below,
              const float* weights, float* out) {
  std::copy_n(fused_below, size, out);
  for (int64_t n = 0; n < count; ++n)
    for (int64_t i = n * size; i < (n + 1) * size; ++i) out[i - n * size] += weights[i] * (pictures[i] - below[i]);
}

// Blends the pictures on the grid of cells over the octaves below it, into `out`.
void blend_octaves(const float* cells, const Predicted& predicted, int octaves, float contrast, float* out,
                   Team& team) {
  const ExposureKernels& kernels = FFMEF_KERNELS(exposure_kernels);
  const int64_t count = predicted.count;
  // Pictures, then shares and gains of the octaves from here on, then those of the fine octaves while one follows.
  enum Map { pictures, shares, gains, fine_shares, fine_gains, kMaps };
  struct Octave {
    int64_t height = 0, width = 0;
    Buffer<float> stored, weights, fused;  // stored: the maps, one after another
    const float* maps[kMaps] = {};
    std::vector<PlaneView> planes;
  };
  std::vector<Octave> all(size_t(octaves) + 1);
  all[0].height = predicted.down;
  all[0].width = predicted.across;
  const float* const given[kMaps] = {cells, predicted.octave_shares.get(), predicted.octave_gains.get(),
                                     predicted.fine_shares.get(), predicted.fine_gains.get()};
  std::copy_n(given, int(kMaps), all[0].maps);
  for (int j = 0; j <= octaves; ++j) {
    Octave& octave = all[j];
    if (j > 0) {
      const Octave& finer = all[j - 1];
      octave.height = j <= kFine ? half_of(finer.height) : finer.height;
      octave.width = j <= kFine ? half_of(finer.width) : finer.width;
      const bool fine = j <= kFine && j < octaves;
      const int64_t size = octave.height * octave.width, before = finer.height * finer.width;
      const int maps = fine ? kMaps : fine_shares;
      octave.stored = new_plane(maps * count * size);
      octave.fused = new_plane(size);
      for (int m = 0; m < maps; ++m) octave.maps[m] = octave.stored.get() + m * count * size;
      parallel_rows_of_planes(
          team, maps * count, octave.height, 4 * octave.width, [&](int64_t n, int64_t begin, int64_t end) {
            const float* map = finer.maps[n / count] + n % count * before;
            float* next = octave.stored.get() + n * size;
            if (j <= kFine)
              kernels.shrink(map, finer.height, finer.width, next, begin, end);
            else
              spread(map, finer.height, finer.width, int64_t(1) << (j - kFine - 1), next, begin, end);
          });
      if (j < octaves) {
        const float *share = octave.maps[fine ? fine_shares : shares], *gain = octave.maps[fine ? fine_gains : gains];
        octave.weights = new_plane(count * size);
        for (int64_t i = 0; i < count * size; ++i) octave.weights[i] = contrast * share[i] * (1.0f + gain[i]);
      }
    }
    const int64_t size = octave.height * octave.width;
    for (int64_t n = 0; n < count; ++n)
      octave.planes.push_back({octave.maps[pictures] + n * size, octave.width, 1, false});
  }
  for (int j = octaves; j >= 0; --j) {
    Octave& octave = all[j];
    const bool lowest = j == octaves;
    // The finest octave uses the shares and gains of the base.
    const float* weights = lowest   ? (j == 0 ? predicted.shares.get() : octave.maps[shares])
                           : j == 0 ? predicted.base.get()
                                    : octave.weights.get();
    if (j >= kFine && !lowest)
      add_band(count, octave.height * octave.width, octave.maps[pictures], all[j + 1].maps[pictures],
               all[j + 1].fused.get(), weights, octave.fused.get());
    else
      fuse_level(count, octave.height, octave.width, octave.planes.data(), lowest ? nullptr : all[j + 1].maps[pictures],
                 lowest ? nullptr : all[j + 1].fused.get(), weights, octave.height, octave.width, 1,
                 j == 0 ? out : octave.fused.get(), team);
  }
}

}  // namespace

void fuse_exposures(const PredictNetwork& net, const Exposures& given, int octaves, const Adjustments& adjust,
                    void* out, Team& team) {
  const Exposures exposures = in_order(given);
  const Pictures& pictures = exposures.pictures;
  const int64_t count = pictures.count();
  const Buffer<float> half = new_plane(count * pictures.down() * pictures.across());
  const Predicted predicted = predict_cells(net, exposures, adjust.prefer, half.get(), team);
  const float contrast = float(1 + adjust.contrast);
  if (contrast != 1.0f) predicted.scale_weights(contrast);
  Levels levels = halve_all(pictures, half.get(), kBands, team);
  blend_octaves(levels.stored[kBands].get(), predicted, octaves, contrast, levels.fused[kBands].get(), team);
  for (int level = kBands - 1; level >= 1; --level)
    fuse_level(count, levels.heights[level], levels.widths[level], levels.planes[level].data(),
               levels.stored[level + 1].get(), levels.fused[level + 1].get(), predicted.weights_of(level),
               predicted.down, predicted.across, kScale >> level, levels.fused[level].get(), team);
  const ExposureLevel finest{pictures.sample,
                             count,
                             pictures.height,
                             pictures.width,
                             pictures.views.data(),
                             exposures.validity.empty() ? nullptr : exposures.validity.data(),
                             pictures.coloured(),
                             half.get(),
                             levels.fused[1].get(),
                             predicted.weights_of(0),
                             predicted.shares.get(),
                             predicted.down,
                             predicted.across,
                             float(std::exp2(adjust.brightness)),
                             float(1 + adjust.saturation)};
  const ExposureKernels& kernels = FFMEF_KERNELS(exposure_kernels);
  parallel_rows(team, pictures.height, 2 * pictures.width * count,
                [&](int64_t begin, int64_t end) { kernels.fuse(finest, out, begin, end); });
}

}  // namespace ffmef
