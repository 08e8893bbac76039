// The coarse predictor of PyramidFFMEF (ffmef/models/pyramid.py): maps with channels last, a block of channels in the
// vectors' lanes, several cells in registers.
//
// With channels last the taps of a convolution that lie in one row are one run of memory, so every layer (2x2 with stride
// 2, 3x3, 1x1) is the same loop over runs.
#include "pyramid_predict.h"

#include <cmath>
#include <memory>
#include <vector>

#include "pyramid_rows.h"

namespace ffmef {
namespace FFMEF_ISA {
namespace {

constexpr int kVectors = kChannelBlock / lanes<float>;  // of one block
constexpr int kCells = kVectors >= 8 ? 1 : 8 / kVectors;

enum class Finish { plain, rectify, rectify_add };  // y, max(y, 0), max(y, 0) + the layer's own input

// A convolution's weights by block of outputs, run and place in the run.
struct Packed {
  int runs, length, outputs;
  std::vector<float> weights, bias;

  explicit Packed(const PredictConv& conv) : runs(conv.size), length(conv.size * conv.inputs), outputs(conv.outputs) {
    const int blocks = (outputs + kChannelBlock - 1) / kChannelBlock;
    weights.assign(size_t(blocks) * runs * length * kChannelBlock, 0.0f);
    bias.assign(size_t(blocks) * kChannelBlock, 0.0f);
    for (int o = 0; o < outputs; ++o) {
      bias[o] = conv.bias[o];
      for (int ky = 0; ky < runs; ++ky)
        for (int kx = 0; kx < conv.size; ++kx)
          for (int i = 0; i < conv.inputs; ++i)
            weights[((size_t(o / kChannelBlock) * runs + ky) * length + kx * conv.inputs + i) * kChannelBlock + o % kChannelBlock] =
                conv.weight[((int64_t(o) * conv.inputs + i) * runs + ky) * conv.size + kx];
    }
  }
};

template <int CELLS>
inline void convolve_cells(const Packed& conv, const float* const* runs, int64_t step, float* out, int64_t out_step,
                           Finish finish, const float* own) {
  for (int block = 0; block * kChannelBlock < conv.outputs; ++block) {
    const float* weights = conv.weights.data() + size_t(block) * conv.runs * conv.length * kChannelBlock;
    FloatVec sums[CELLS][kVectors];
    for (int v = 0; v < kVectors; ++v) {
      const FloatVec bias = load(conv.bias.data() + block * kChannelBlock + v * lanes<float>);
      for (int c = 0; c < CELLS; ++c) sums[c][v] = bias;
    }
    for (int r = 0; r < conv.runs; ++r) {
      const float* run = runs[r];
      for (int k = 0; k < conv.length; ++k) {
        FloatVec w[kVectors];
        for (int v = 0; v < kVectors; ++v) w[v] = load(weights + v * lanes<float>);
        for (int c = 0; c < CELLS; ++c) {
          const FloatVec value = splat(run[c * step + k]);
          for (int v = 0; v < kVectors; ++v) sums[c][v] += w[v] * value;
        }
        weights += kChannelBlock;
      }
    }
    for (int c = 0; c < CELLS; ++c)
      for (int v = 0; v < kVectors; ++v) {
        FloatVec y = sums[c][v];
        const int64_t place = block * kChannelBlock + v * lanes<float>;
        if (finish != Finish::plain) y = y > FloatVec{} ? y : FloatVec{};
        if (finish == Finish::rectify_add) y += load(own + c * out_step + place);
        store(out + c * out_step + place, y);
      }
  }
}

// `cells` outputs along a row. A last block of channels that is not full writes zeros into the next cell, which is
// written after it; `out` has room for one block more.
void convolve(const Packed& conv, const float* const* rows, int64_t step, int64_t cells, float* out, int64_t out_step,
              Finish finish, const float* own = nullptr) {
  const float* runs[4] = {};
  for (int r = 0; r < conv.runs; ++r) runs[r] = rows[r];
  int64_t x = 0;
  const auto advance = [&](int64_t by) {
    for (int r = 0; r < conv.runs; ++r) runs[r] += by * step;
    out += by * out_step;
    if (own != nullptr) own += by * out_step;
    x += by;
  };
  while (x + kCells <= cells) {
    convolve_cells<kCells>(conv, runs, step, out, out_step, finish, own);
    advance(kCells);
  }
  while (x < cells) {
    convolve_cells<1>(conv, runs, step, out, out_step, finish, own);
    advance(1);
  }
}

// A map (height, width, channels) with a border of one zero cell around it.
struct Map {
  int64_t height = 0, width = 0, channels = 0;
  std::unique_ptr<float[]> data;

  Map() = default;
  Map(int64_t h, int64_t w, int64_t c) : height(h), width(w), channels(c), data(new float[size_t((h + 2) * (w + 2) * c)]) {
    std::memset(row(-1) - c, 0, size_t(w + 2) * c * sizeof(float));
    std::memset(row(h) - c, 0, size_t(w + 2) * c * sizeof(float));
    for (int64_t y = 0; y < h; ++y) {
      std::memset(row(y) - c, 0, size_t(c) * sizeof(float));
      std::memset(row(y) + w * c, 0, size_t(c) * sizeof(float));
    }
  }
  float* row(int64_t y) const { return data.get() + ((y + 1) * (width + 2) + 1) * channels; }
};

template <class F> void over_rows(ParallelRows parallel, int64_t rows, int64_t row_cost, const F& body) {
  parallel(rows, row_cost, const_cast<F*>(&body),
           [](void* f, int64_t begin, int64_t end) { (*static_cast<const F*>(f))(begin, end); });
}

void rectify_row(float* row, const float* added, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const float y = row[i] + added[i];
    row[i] = y > 0.0f ? y : 0.0f;
  }
}

// Every image's map plus a 1x1 convolution of their mean and maximum, rectified.
void meet(const PredictConv& conv, std::vector<Map>& maps, ParallelRows parallel) {
  const Packed packed(conv);
  const int64_t width = maps[0].width, channels = maps[0].channels;
  over_rows(parallel, maps[0].height, width * channels * (2 * channels + 8), [&](int64_t begin, int64_t end) {
    Row<float> both(width * 2 * channels), joined((width + 1) * channels);
    const float share = 1.0f / float(maps.size());
    for (int64_t y = begin; y < end; ++y) {
      for (int64_t x = 0; x < width; ++x) {
        float* mean = both.data + x * 2 * channels;
        float* most = mean + channels;
        const float* first = maps[0].row(y) + x * channels;
        for (int64_t c = 0; c < channels; ++c) mean[c] = most[c] = first[c];
        for (size_t n = 1; n < maps.size(); ++n) {
          const float* other = maps[n].row(y) + x * channels;
          for (int64_t c = 0; c < channels; ++c) {
            mean[c] += other[c];
            most[c] = other[c] > most[c] ? other[c] : most[c];
          }
        }
        for (int64_t c = 0; c < channels; ++c) mean[c] *= share;
      }
      const float* rows[1] = {both.data};
      convolve(packed, rows, 2 * channels, width, joined.data, channels, Finish::plain);
      for (Map& map : maps) rectify_row(map.row(y), joined.data, width * channels);
    }
  });
}

// relu(3x3(x)) + x into another map.
Map refine(const PredictConv& conv, const Map& in, ParallelRows parallel) {
  const Packed packed(conv);
  Map out(in.height, in.width, in.channels);
  over_rows(parallel, in.height, in.width * in.channels * in.channels * 9, [&](int64_t begin, int64_t end) {
    for (int64_t y = begin; y < end; ++y) {
      const float* rows[3];
      for (int r = 0; r < 3; ++r) rows[r] = in.row(y - 1 + r) - in.channels;
      convolve(packed, rows, in.channels, in.width, out.row(y), in.channels, Finish::rectify_add, in.row(y));
    }
  });
  return out;
}

// relu of a 2x2 convolution with stride 2; an odd border is repeated.
Map shrink(const PredictConv& conv, const Map& in, ParallelRows parallel) {
  const Packed packed(conv);
  Map out(half_of(in.height), half_of(in.width), conv.outputs);
  const int64_t c = in.channels;
  over_rows(parallel, out.height, out.width * c * conv.outputs * 4, [&](int64_t begin, int64_t end) {
    Row<float> upper(2 * out.width * c), lower(2 * out.width * c);
    for (int64_t y = begin; y < end; ++y) {
      const float* rows[2] = {in.row(2 * y), in.row(2 * y + 1 < in.height ? 2 * y + 1 : 2 * y)};
      if (in.width % 2) {
        float* copies[2] = {upper.data, lower.data};
        for (int r = 0; r < 2; ++r) {
          std::memcpy(copies[r], rows[r], size_t(in.width * c) * sizeof(float));
          std::memcpy(copies[r] + in.width * c, rows[r] + (in.width - 1) * c, size_t(c) * sizeof(float));
          rows[r] = copies[r];
        }
      }
      convolve(packed, rows, 2 * c, out.width, out.row(y), conv.outputs, Finish::rectify);
    }
  });
  return out;
}

// The stem and the step to the finest grid, two rows of the stem at a time.
Map enter(const PredictNetwork& net, const float* half, int64_t height, int64_t width, ParallelRows parallel) {
  const Packed stem(net.stem), step(net.enter);
  Map out((height + 3) / 4, (width + 3) / 4, net.enter.outputs);
  const int64_t channels = net.stem.outputs, padded = 4 * out.width;
  over_rows(parallel, out.height, out.width * (16 * kChannelBlock + 4 * channels * net.enter.outputs),
            [&](int64_t begin, int64_t end) {
    Row<float> pixels(2 * padded), stem_rows(2 * (2 * out.width * channels + kChannelBlock));
    float* stems[2] = {stem_rows.data, stem_rows.data + 2 * out.width * channels + kChannelBlock};
    for (int64_t y = begin; y < end; ++y) {
      for (int s = 0; s < 2; ++s) {
        const float* rows[2];
        for (int r = 0; r < 2; ++r) {
          const int64_t at = 4 * y + 2 * s + r;
          rows[r] = half + (at < height ? at : height - 1) * width;
          if (padded == width) continue;
          float* copy = pixels.data + r * padded;
          std::memcpy(copy, rows[r], size_t(width) * sizeof(float));
          for (int64_t x = width; x < padded; ++x) copy[x] = rows[r][width - 1];
          rows[r] = copy;
        }
        convolve(stem, rows, 2, 2 * out.width, stems[s], channels, Finish::rectify);
      }
      convolve(step, stems, 2 * channels, out.width, out.row(y), out.channels, Finish::plain);
    }
  });
  return out;
}

// relu(bilinear(1x1(coarse)) + skip), in the skip's place.
void raise(const PredictConv& conv, const Map& coarse, Map& skip, ParallelRows parallel) {
  const Packed packed(conv);
  const int64_t c = conv.outputs, across = coarse.width;
  Map thin(coarse.height, across, c);
  over_rows(parallel, coarse.height, across * c * conv.inputs, [&](int64_t begin, int64_t end) {
    Row<float> row((across + 1) * c);
    for (int64_t y = begin; y < end; ++y) {
      const float* rows[1] = {coarse.row(y)};
      convolve(packed, rows, coarse.channels, across, row.data, c, Finish::plain);
      std::memcpy(thin.row(y), row.data, size_t(across * c) * sizeof(float));
    }
  });
  over_rows(parallel, skip.height, skip.width * c * 4, [&](int64_t begin, int64_t end) {
    Row<float> mixed((across + 2) * c);
    for (int64_t y = begin; y < end; ++y) {
      const RowTap tap = tap_of(y, 2, coarse.height);
      const float share = float(tap.share);
      const float *a = thin.row(tap.first), *b = thin.row(tap.second);
      float* m = mixed.data + c;
      for (int64_t i = 0; i < across * c; ++i) m[i] = a[i] + (b[i] - a[i]) * share;
      std::memcpy(m - c, m, size_t(c) * sizeof(float));
      std::memcpy(m + across * c, m + (across - 1) * c, size_t(c) * sizeof(float));
      float* out = skip.row(y);
      for (int64_t x = 0; x < skip.width; ++x) {
        const float *near = m + x / 2 * c, *far = near + (x % 2 ? c : -c);
        for (int64_t i = 0; i < c; ++i) {
          const float value = 0.75f * near[i] + 0.25f * far[i] + out[x * c + i];
          out[x * c + i] = value > 0.0f ? value : 0.0f;
        }
      }
    }
  });
}

// Adds the linear map of the mean over all cells.
void add_overall(const PredictConv& linear, Map& map) {
  std::vector<double> mean(size_t(map.channels), 0.0);
  for (int64_t y = 0; y < map.height; ++y)
    for (int64_t x = 0; x < map.width; ++x)
      for (int64_t c = 0; c < map.channels; ++c) mean[c] += map.row(y)[x * map.channels + c];
  std::vector<float> added(size_t(map.channels));
  for (int64_t o = 0; o < map.channels; ++o) {
    double sum = linear.bias[o];
    for (int64_t c = 0; c < map.channels; ++c) sum += linear.weight[o * map.channels + c] * (mean[c] / double(map.height * map.width));
    added[o] = float(sum);
  }
  for (int64_t y = 0; y < map.height; ++y)
    for (int64_t x = 0; x < map.width; ++x)
      for (int64_t c = 0; c < map.channels; ++c) map.row(y)[x * map.channels + c] += added[c];
}

// Shares (softmax over the images) times gains.
void finish(const PredictNetwork& net, const std::vector<Map>& maps, float* weights, float* base, ParallelRows parallel) {
  const Packed head(net.head);
  const int64_t height = maps[0].height, width = maps[0].width, count = int64_t(maps.size()), planes = net.bands + 1;
  over_rows(parallel, height, width * count * (maps[0].channels * kChannelBlock + 32 * planes), [&](int64_t begin, int64_t end) {
    const int64_t line = (width + 1) * kChannelBlock;
    Row<float> rows(count * line);
    for (int64_t y = begin; y < end; ++y) {
      for (int64_t n = 0; n < count; ++n) {
        const float* in[1] = {maps[n].row(y)};
        convolve(head, in, maps[n].channels, width, rows.data + n * line, kChannelBlock, Finish::plain);
      }
      for (int64_t p = 0; p < planes; ++p) {
        float* out = (p < net.bands ? weights + p * count * height * width : base) + y * width;
        for (int64_t x = 0; x < width; ++x) {
          const float* values = rows.data + x * kChannelBlock;
          float largest = values[p], total = 0.0f;
          for (int64_t n = 1; n < count; ++n) largest = values[n * line + p] > largest ? values[n * line + p] : largest;
          for (int64_t n = 0; n < count; ++n) {
            const float share = std::exp(values[n * line + p] - largest);
            total += share;
            out[n * height * width + x] = share * (1.0f + values[n * line + planes + p]);
          }
          for (int64_t n = 0; n < count; ++n) out[n * height * width + x] /= total;
        }
      }
    }
  });
}

void predict(const PredictNetwork& net, const float* half, int64_t count, int64_t height, int64_t width, float* weights,
             float* base, ParallelRows parallel) {
  std::vector<Map> maps;
  for (int64_t n = 0; n < count; ++n) maps.push_back(enter(net, half + n * height * width, height, width, parallel));
  meet(net.meet, maps, parallel);
  std::vector<std::vector<Map>> skips(size_t(net.grids));
  for (int g = 0; g + 1 < net.grids; ++g) {
    std::vector<Map> coarser;
    for (Map& map : maps) coarser.push_back(refine(net.encode[g], shrink(net.down[g], map, parallel), parallel));
    skips[g] = std::move(maps);
    maps = std::move(coarser);
  }
  for (Map& map : maps) add_overall(net.overall, map);
  meet(net.meet_coarsest, maps, parallel);
  for (int g = net.grids - 2; g >= 0; --g)
    for (int64_t n = 0; n < count; ++n) {
      raise(net.up[g], maps[n], skips[g][n], parallel);
      maps[n] = refine(net.decode[g], skips[g][n], parallel);
      skips[g][n] = Map();
    }
  finish(net, maps, weights, base, parallel);
}

}  // namespace

extern const PyramidPredictKernels pyramid_predict_kernels;
const PyramidPredictKernels pyramid_predict_kernels = {predict};

}  // namespace FFMEF_ISA
}  // namespace ffmef
