// The coarse predictor of PyramidFFMEF (ffmef/models/pyramid.py): maps with channels last, a block of channels in the
// vectors' lanes, several cells in registers.
//
// With channels last the taps of a convolution that lie in one row are one run of memory, so every layer (2x2 with stride
// 2, 3x3, 1x1) is the same loop over runs.
#include "pyramid_predict.h"

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
            weights[((size_t(o / kChannelBlock) * runs + ky) * length + kx * conv.inputs + i) * kChannelBlock +
                    o % kChannelBlock] = conv.weight[((int64_t(o) * conv.inputs + i) * runs + ky) * conv.size + kx];
    }
  }
};

template <int CELLS> inline void convolve_cells(const Packed& conv, const float* const* runs, int64_t step, float* out,
                                                int64_t out_step, Finish finish, const float* own) {
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

// The last cells of a row, fewer than kCells, at the same time: a single cell would wait for its own sums.
template <int CELLS> inline void convolve_rest(int64_t cells, const Packed& conv, const float* const* runs,
                                               int64_t step, float* out, int64_t out_step, Finish finish,
                                               const float* own) {
  if constexpr (CELLS > 0) {
    if (cells == CELLS) return convolve_cells<CELLS>(conv, runs, step, out, out_step, finish, own);
    convolve_rest<CELLS - 1>(cells, conv, runs, step, out, out_step, finish, own);
  }
}

// `cells` outputs along a row. A last block of channels that is not full writes zeros into the next cell, which is
// written after it; `out` has room for one block more.
void convolve(const Packed& conv, const float* const* rows, int64_t step, int64_t cells, float* out, int64_t out_step,
              Finish finish, const float* own = nullptr) {
  const float* runs[4] = {};
  for (int r = 0; r < conv.runs; ++r) runs[r] = rows[r];
  int64_t x = 0;
  for (; x + kCells <= cells; x += kCells) {
    convolve_cells<kCells>(conv, runs, step, out, out_step, finish, own);
    for (int r = 0; r < conv.runs; ++r) runs[r] += kCells * step;
    out += kCells * out_step;
    if (own != nullptr) own += kCells * out_step;
  }
  convolve_rest<kCells - 1>(cells - x, conv, runs, step, out, out_step, finish, own);
}

// A map (height, width, channels) with a border of one zero cell around it.
struct Map {
  int64_t height = 0, width = 0, channels = 0;
  Buffer<float> data;

  Map() = default;
  Map(int64_t h, int64_t w, int64_t c) : height(h), width(w), channels(c), data((h + 2) * (w + 2) * c) {
    std::memset(row(-1) - c, 0, size_t(w + 2) * c * sizeof(float));
    std::memset(row(h) - c, 0, size_t(w + 2) * c * sizeof(float));
    for (int64_t y = 0; y < h; ++y) {
      std::memset(row(y) - c, 0, size_t(c) * sizeof(float));
      std::memset(row(y) + w * c, 0, size_t(c) * sizeof(float));
    }
  }
  float* row(int64_t y) const { return data.get() + ((y + 1) * (width + 2) + 1) * channels; }
  float* repeated_row(int64_t y) const { return row(y < 0 ? 0 : y < height ? y : height - 1); }
  void repeat_ends(int64_t y) const {
    std::memcpy(row(y) - channels, row(y), size_t(channels) * sizeof(float));
    std::memcpy(row(y) + width * channels, row(y) + (width - 1) * channels, size_t(channels) * sizeof(float));
  }
};

using Maps = std::vector<Map>;  // one for each image, of one size

template <class F> void over_rows(ParallelRows parallel, int64_t rows, int64_t row_cost, const F& body) {
  parallel.run(parallel.threads, rows, row_cost, const_cast<F*>(&body),
               [](void* f, int64_t begin, int64_t end) { (*static_cast<const F*>(f))(begin, end); });
}

// Rows of all images, one after the other: threads meet once per layer, not once per image.
struct ImageRow {
  int64_t image, y;
  ImageRow(int64_t row, int64_t height) : image(row / height), y(row % height) {}
};

void rectify_row(float* row, const float* added, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const float y = row[i] + added[i];
    row[i] = y > 0.0f ? y : 0.0f;
  }
}

// Every image's map plus a 1x1 convolution of their mean and maximum, rectified.
void meet(const PredictConv& conv, Maps& maps, ParallelRows parallel) {
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

Maps maps_of(size_t count, int64_t height, int64_t width, int64_t channels) {
  Maps maps;
  for (size_t n = 0; n < count; ++n) maps.emplace_back(height, width, channels);
  return maps;
}

// relu(3x3(x)) + x into other maps; borders are repeated.
Maps refine(const PredictConv& conv, const Maps& in, ParallelRows parallel) {
  const Packed packed(conv);
  const int64_t height = in[0].height, width = in[0].width, channels = in[0].channels;
  Maps out = maps_of(in.size(), height, width, channels);
  over_rows(parallel, int64_t(in.size()) * height, width * channels * channels * 9, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const ImageRow at(i, height);
      const Map& map = in[at.image];
      const float* rows[3];
      for (int r = 0; r < 3; ++r) rows[r] = map.repeated_row(at.y - 1 + r) - channels;
      convolve(packed, rows, channels, width, out[at.image].row(at.y), channels, Finish::rectify_add, map.row(at.y));
    }
  });
  return out;
}

// relu of a 2x2 convolution with stride 2; an odd border is repeated, and so are the ends of the result.
Maps shrink(const PredictConv& conv, const Maps& in, ParallelRows parallel) {
  const Packed packed(conv);
  const int64_t c = in[0].channels, width = in[0].width, height = half_of(in[0].height), across = half_of(width);
  Maps out = maps_of(in.size(), height, across, conv.outputs);
  over_rows(parallel, int64_t(in.size()) * height, across * c * conv.outputs * 4, [&](int64_t begin, int64_t end) {
    Row<float> upper(2 * across * c), lower(2 * across * c);
    for (int64_t i = begin; i < end; ++i) {
      const ImageRow at(i, height);
      const Map& map = in[at.image];
      const float* rows[2] = {map.row(2 * at.y), map.row(2 * at.y + 1 < map.height ? 2 * at.y + 1 : 2 * at.y)};
      if (width % 2) {
        float* copies[2] = {upper.data, lower.data};
        for (int r = 0; r < 2; ++r) {
          std::memcpy(copies[r], rows[r], size_t(width * c) * sizeof(float));
          std::memcpy(copies[r] + width * c, rows[r] + (width - 1) * c, size_t(c) * sizeof(float));
          rows[r] = copies[r];
        }
      }
      convolve(packed, rows, 2 * c, across, out[at.image].row(at.y), conv.outputs, Finish::rectify);
      out[at.image].repeat_ends(at.y);
    }
  });
  return out;
}

// Adds a 1x1 convolution of 1 - high, 1 - low and apart to a row of cells.
void add_statistics(const PredictConv& conv, const float* high, const float* low, const float* apart, int64_t cells,
                    float* row) {
  const int channels = conv.outputs;
  std::vector<float> taps(size_t(3) * channels);
  for (int o = 0; o < channels; ++o)
    for (int i = 0; i < 3; ++i) taps[i * channels + o] = conv.weight[3 * o + i];
  const float *first = taps.data(), *second = first + channels, *third = second + channels;
  for (int64_t x = 0; x < cells; ++x) {
    const float white = 1.0f - high[x], black = 1.0f - low[x];
    float* __restrict out = row + x * channels;
    for (int c = 0; c < channels; ++c)
      out[c] += conv.bias[c] + first[c] * white + second[c] * black + third[c] * apart[x];
  }
}

// The stem and the step to the finest grid, two rows of the stem at a time.
Maps enter(const PredictNetwork& net, const float* half, int64_t count, int64_t height, int64_t width,
           const PredictCells& cells, ParallelRows parallel) {
  const Packed stem(net.stem), step(net.enter);
  const int64_t down = (height + 3) / 4, across = (width + 3) / 4, channels = net.stem.outputs, padded = 4 * across;
  Maps out = maps_of(size_t(count), down, across, net.enter.outputs);
  over_rows(parallel, count * down, across * (16 * kChannelBlock + 4 * channels * net.enter.outputs),
            [&](int64_t begin, int64_t end) {
              Row<float> pixels(2 * padded), stem_rows(2 * (2 * across * channels + kChannelBlock));
              float* stems[2] = {stem_rows.data, stem_rows.data + 2 * across * channels + kChannelBlock};
              for (int64_t i = begin; i < end; ++i) {
                const ImageRow at(i, down);
                for (int s = 0; s < 2; ++s) {
                  const float* rows[2];
                  for (int r = 0; r < 2; ++r) {
                    const int64_t y = 4 * at.y + 2 * s + r;
                    rows[r] = half + (at.image * height + (y < height ? y : height - 1)) * width;
                    if (padded == width) continue;
                    float* copy = pixels.data + r * padded;
                    std::memcpy(copy, rows[r], size_t(width) * sizeof(float));
                    for (int64_t x = width; x < padded; ++x) copy[x] = rows[r][width - 1];
                    rows[r] = copy;
                  }
                  convolve(stem, rows, 2, 2 * across, stems[s], channels, Finish::rectify);
                }
                convolve(step, stems, 2 * channels, across, out[at.image].row(at.y), net.enter.outputs, Finish::plain);
                const int64_t row = i * across;
                add_statistics(net.statistics, cells.high + row, cells.low + row, cells.apart + at.y * across, across,
                               out[at.image].row(at.y));
              }
            });
  return out;
}

// relu(bilinear(1x1(coarse)) + skip), in the skips' places.
void raise(const PredictConv& conv, const Maps& coarse, Maps& skips, ParallelRows parallel) {
  const Packed packed(conv);
  const int64_t c = conv.outputs, below = coarse[0].height, across = coarse[0].width, inputs = coarse[0].channels;
  const int64_t height = skips[0].height, width = skips[0].width;
  Maps thin = maps_of(coarse.size(), below, across, c);
  over_rows(parallel, int64_t(coarse.size()) * below, across * c * conv.inputs, [&](int64_t begin, int64_t end) {
    Row<float> row((across + 1) * c);
    for (int64_t i = begin; i < end; ++i) {
      const ImageRow at(i, below);
      const float* rows[1] = {coarse[at.image].row(at.y)};
      convolve(packed, rows, inputs, across, row.data, c, Finish::plain);
      std::memcpy(thin[at.image].row(at.y), row.data, size_t(across * c) * sizeof(float));
    }
  });
  over_rows(parallel, int64_t(skips.size()) * height, width * c * 4, [&](int64_t begin, int64_t end) {
    Row<float> mixed((across + 2) * c);
    for (int64_t i = begin; i < end; ++i) {
      const ImageRow at(i, height);
      const RowTap tap = tap_of(at.y, 2, below);
      const float share = float(tap.share);
      const float *a = thin[at.image].row(tap.first), *b = thin[at.image].row(tap.second);
      float* m = mixed.data + c;
      for (int64_t k = 0; k < across * c; ++k) m[k] = a[k] + (b[k] - a[k]) * share;
      std::memcpy(m - c, m, size_t(c) * sizeof(float));
      std::memcpy(m + across * c, m + (across - 1) * c, size_t(c) * sizeof(float));
      float* out = skips[at.image].row(at.y);
      for (int64_t x = 0; x < width; ++x) {
        const float *near = m + x / 2 * c, *far = near + (x % 2 ? c : -c);
        for (int64_t k = 0; k < c; ++k) {
          const float value = 0.75f * near[k] + 0.25f * far[k] + out[x * c + k];
          out[x * c + k] = value > 0.0f ? value : 0.0f;
        }
      }
      skips[at.image].repeat_ends(at.y);
    }
  });
}

// Adds a 1x1 convolution of the map itself.
void add_overall(const PredictConv& conv, Maps& maps, ParallelRows parallel) {
  const Packed packed(conv);
  const int64_t height = maps[0].height, width = maps[0].width, channels = maps[0].channels;
  over_rows(parallel, int64_t(maps.size()) * height, width * channels * channels, [&](int64_t begin, int64_t end) {
    Row<float> added((width + 1) * channels);
    for (int64_t i = begin; i < end; ++i) {
      const ImageRow at(i, height);
      float* row = maps[at.image].row(at.y);
      const float* rows[1] = {row};
      convolve(packed, rows, channels, width, added.data, channels, Finish::plain);
      for (int64_t k = 0; k < width * channels; ++k) row[k] += added[k];
    }
  });
}

// One row of cells of the head's results, all images: lanes are planes, logits in the first half of those that are used,
// gains in the second.
struct HeadRow {
  const int64_t count, width, line;
  const int planes;
  Row<float> values, shares, totals;

  HeadRow(int64_t count_, int64_t width_, int planes_)
      : count(count_),
        width(width_),
        line((width_ + 1) * kChannelBlock),
        planes(planes_),
        values(count_ * line),
        shares(count_ * width_ * kChannelBlock),
        totals(width_ * kChannelBlock) {}

  // What an exposure has recorded, and whether it may be used at all, makes it likelier.
  void add_prior(const float* prior, const PredictCells& cells, int64_t y, int64_t height) {
    float weighed[kChannelBlock] = {}, all[kChannelBlock] = {};
    for (int p = 0; p < planes; ++p) weighed[p] = prior[p], all[p] = 1.0f;
    for (int64_t n = 0; n < count; ++n) {
      const int64_t row = (n * height + y) * width;
      for (int64_t x = 0; x < width; ++x) {
        const float recorded = __builtin_logf(cells.high[row + x] * (0.1f + 0.9f * cells.low[row + x]) + 0.02f);
        float usable = cells.preference != nullptr ? cells.preference[n] : 0.0f;
        if (cells.validity != nullptr)
          usable += __builtin_logf(cells.validity[row + x] > 1e-6f ? cells.validity[row + x] : 1e-6f);
        float* v = values.data + n * line + x * kChannelBlock;
        for (int p = 0; p < kChannelBlock; ++p) v[p] += weighed[p] * recorded + all[p] * usable;
      }
    }
  }

  void add_softmax() {
    for (int64_t x = 0; x < width; ++x)
      for (int64_t v = 0; v < kChannelBlock; v += lanes<float>) {
        const float* first = values.data + x * kChannelBlock + v;
        FloatVec largest = load(first), total{};
        for (int64_t n = 1; n < count; ++n) {
          const FloatVec other = load(first + n * line);
          largest = other > largest ? other : largest;
        }
        for (int64_t n = 0; n < count; ++n) {
          const FloatVec share = exponential(load(first + n * line) - largest);
          total += share;
          store(shares.data + (n * width + x) * kChannelBlock + v, share);
        }
        store(totals.data + x * kChannelBlock + v, total);
      }
  }

  float share(int64_t n, int64_t x, int plane) const {
    return shares.data[(n * width + x) * kChannelBlock + plane] / totals.data[x * kChannelBlock + plane];
  }
  float gain(int64_t n, int64_t x, int plane) const {
    return values.data[n * line + x * kChannelBlock + planes + plane];
  }
};

// Shares (softmax over the images) and gains.
void finish(const PredictNetwork& net, const Maps& maps, const PredictCells& cells, const PredictMaps& out,
            ParallelRows parallel) {
  const Packed head(net.head);
  const int64_t height = maps[0].height, width = maps[0].width, count = int64_t(maps.size());
  const int planes = net.bands + 2;
  const int64_t cost = width * count * (maps[0].channels * kChannelBlock + 64 * planes);
  over_rows(parallel, height, cost, [&](int64_t begin, int64_t end) {
    HeadRow row(count, width, planes);
    std::vector<float> gate(size_t(width), 1.0f);
    for (int64_t y = begin; y < end; ++y) {
      for (int64_t n = 0; n < count; ++n) {
        const float* in[1] = {maps[n].row(y)};
        convolve(head, in, maps[n].channels, width, row.values.data + n * row.line, kChannelBlock, Finish::plain);
      }
      row.add_prior(net.prior, cells, y, height);
      // Gains act where exposures differ, so that a picture fused with itself stays as it is.
      for (int64_t x = 0; x < width; ++x) gate[x] = cells.apart[y * width + x] / (cells.apart[y * width + x] + 0.04f);
      row.add_softmax();
      for (int64_t n = 0; n < count; ++n) {
        const int64_t place = (n * height + y) * width;
        for (int p = 0; p <= net.bands; ++p) {
          float* weights = (p < net.bands ? out.weights + p * count * height * width : out.base) + place;
          for (int64_t x = 0; x < width; ++x) weights[x] = row.share(n, x, p) * (1.0f + row.gain(n, x, p) * gate[x]);
        }
        for (int64_t x = 0; x < width; ++x) {
          out.shares[place + x] = row.share(n, x, net.bands);
          out.octave_shares[place + x] = row.share(n, x, net.bands + 1);
          out.octave_gains[place + x] = row.gain(n, x, net.bands + 1) * gate[x];
        }
      }
    }
  });
}

void predict(const PredictNetwork& net, const float* half, int64_t count, int64_t height, int64_t width,
             const PredictCells& cells, const PredictMaps& out, ParallelRows parallel) {
  Maps maps = enter(net, half, count, height, width, cells, parallel);
  meet(net.meet, maps, parallel);
  std::vector<Maps> skips(size_t(net.grids));
  for (int g = 0; g + 1 < net.grids; ++g) {
    skips[g] = std::move(maps);
    maps = refine(net.encode[g], shrink(net.down[g], skips[g], parallel), parallel);
  }
  add_overall(net.overall, maps, parallel);
  meet(net.meet_coarsest, maps, parallel);
  for (int g = net.grids - 2; g >= 0; --g) {
    raise(net.up[g], maps, skips[g], parallel);
    maps = refine(net.decode[g], skips[g], parallel);
    skips[g].clear();
  }
  finish(net, maps, cells, out, parallel);
}

}  // namespace

extern const PyramidPredictKernels pyramid_predict_kernels;
const PyramidPredictKernels pyramid_predict_kernels = {.predict = predict};

}  // namespace FFMEF_ISA
}  // namespace ffmef
