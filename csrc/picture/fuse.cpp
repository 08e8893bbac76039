#include "fuse.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "../cpu/base/memory.h"
#include "../cpu/fuse/pyramid_fuse.h"

namespace ffmef {
namespace {

int64_t half_of(int64_t size) { return (size + 1) / 2; }

// Parts of some ten thousand pixels.
template <class F> void parallel_rows(Team& team, int64_t rows, int64_t width, const F& f) {
  team.over(rows, 1 + (1 << 14) / (width + 1), f);
}

// Rows of all planes, one after the other: threads meet once, not once a plane.
template <class F> void parallel_rows_of_planes(Team& team, int64_t planes, int64_t rows, int64_t width, const F& f) {
  parallel_rows(team, planes * rows, width, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin / rows; n * rows < end; ++n)
      f(n, begin > n * rows ? begin - n * rows : 0, end < (n + 1) * rows ? end - n * rows : rows);
  });
}

// In large pages: touching small ones for the first time is a tenth of the time.
std::unique_ptr<float[]> new_plane(int64_t size) {
  std::unique_ptr<float[]> plane(new float[size_t(size)]);
  hint_huge_pages(plane.get(), size * int64_t(sizeof(float)));
  return plane;
}

// Takes weight and bias of one layer after the other.
struct Reader {
  const std::vector<Parameter>& parameters;
  size_t next = 0;

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

// Parts of some ten microseconds.
void over_rows(void* team, int64_t rows, int64_t row_cost, void* context, void (*body)(void*, int64_t, int64_t)) {
  static_cast<Team*>(team)->over(rows, 1 + (1 << 18) / (row_cost + 1),
                                 [&](int64_t begin, int64_t end) { body(context, begin, end); });
}

// The levels of the pyramid, finest first; planes of the finest are the pictures.
struct Levels {
  std::vector<int64_t> heights, widths;
  std::vector<std::unique_ptr<float[]>> stored, fused;
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
  net.grids = grids;
  net.bands = int(bands);
  net.stem = reader.conv(stem, 1, 2);
  net.enter = reader.conv(channels[0], stem, 2);
  net.meet = reader.conv(channels[0], 2 * channels[0], 1);
  for (int g = 0; g + 1 < grids; ++g) net.down[g] = reader.conv(channels[g + 1], channels[g], 2);
  for (int g = 0; g + 1 < grids; ++g) net.encode[g] = reader.conv(channels[g + 1], channels[g + 1], 3);
  net.overall = reader.conv(channels[grids - 1], channels[grids - 1], 1);
  net.meet_coarsest = reader.conv(channels[grids - 1], 2 * channels[grids - 1], 1);
  for (int g = 0; g + 1 < grids; ++g) net.up[g] = reader.conv(channels[g], channels[g + 1], 1);
  for (int g = 0; g + 1 < grids; ++g) net.decode[g] = reader.conv(channels[g], channels[g], 3);
  net.head = reader.conv(2 * (bands + 1), channels[0], 1);
  if (reader.next != parameters.size())
    throw std::invalid_argument("parameters must hold " + std::to_string(reader.next) + " tensors, got " +
                                std::to_string(parameters.size()));
  return net;
}

void half_luminance(const Pictures& pictures, float* half, Team& team) {
  const FinestKernels& kernels = FFMEF_KERNELS(finest_kernels);
  const int64_t down = pictures.down(), across = pictures.across();
  parallel_rows_of_planes(team, pictures.count(), down, 2 * pictures.width, [&](int64_t n, int64_t begin, int64_t end) {
    kernels.halve(pictures.sample, pictures.views[n], pictures.height, pictures.width, half + n * down * across, begin,
                  end);
  });
}

void predict(const PredictNetwork& net, const float* half, int64_t count, int64_t height, int64_t width, float* weights,
             float* base, Team& team) {
  FFMEF_KERNELS(pyramid_predict_kernels).predict(net, half, count, height, width, weights, base, {&team, over_rows});
}

void fuse_bands(const Pictures& pictures, const float* half, const float* weights, const float* base, int bands,
                int scale, void* out, Team& team) {
  const PyramidFuseKernels& kernels = FFMEF_KERNELS(pyramid_fuse_kernels);
  const int64_t count = pictures.count(), down = (pictures.height + scale - 1) / scale,
                across = (pictures.width + scale - 1) / scale;
  Levels levels = halve_all(pictures, half, bands, team);
  for (int level = bands; level >= 1; --level) {
    const bool lowest = level == bands;
    PyramidLevel l{};
    l.scalar = Scalar::f32;
    l.count = count;
    l.height = levels.heights[level];
    l.width = levels.widths[level];
    l.fine = levels.planes[level].data();
    l.coarse = lowest ? nullptr : levels.stored[level + 1].get();
    l.coarse_fused = lowest ? nullptr : levels.fused[level + 1].get();
    l.weights = lowest ? base : weights + level * count * down * across;
    l.cells_down = down;
    l.cells_across = across;
    l.factor = scale >> level;
    parallel_rows(team, l.height, l.width * count,
                  [&](int64_t begin, int64_t end) { kernels.fuse(l, levels.fused[level].get(), false, begin, end); });
  }
  const FinestLevel finest{pictures.sample,
                           count,
                           pictures.height,
                           pictures.width,
                           pictures.views.data(),
                           pictures.coloured(),
                           half,
                           levels.fused[1].get(),
                           weights,
                           down,
                           across,
                           scale};
  const FinestKernels& rows = FFMEF_KERNELS(finest_kernels);
  parallel_rows(team, pictures.height, 2 * pictures.width * count,
                [&](int64_t begin, int64_t end) { rows.fuse(finest, out, begin, end); });
}

void fuse_pictures(const PredictNetwork& net, const Pictures& pictures, void* out, Team& team) {
  constexpr int kScale = 8;
  const int64_t count = pictures.count(), down = pictures.down(), across = pictures.across();
  const int64_t cells = (down + 3) / 4 * ((across + 3) / 4);
  const std::unique_ptr<float[]> half = new_plane(count * down * across);
  const std::unique_ptr<float[]> weights = new_plane(net.bands * count * cells), base = new_plane(count * cells);
  half_luminance(pictures, half.get(), team);
  predict(net, half.get(), count, down, across, weights.get(), base.get(), team);
  fuse_bands(pictures, half.get(), weights.get(), base.get(), net.bands, kScale, out, team);
}

}  // namespace ffmef
