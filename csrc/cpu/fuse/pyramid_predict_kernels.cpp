// The coarse predictor of PyramidFFMEF (ffmef/models/pyramid.py): maps have channels last, a block of channels fills
// the vectors' lanes, and several cells stay in registers.
//
// With channels last, the taps in one row of a convolution form one run of memory, so every layer (2x2 with stride 2,
// 3x3, 1x1) is the same loop over runs.
#include "pyramid_predict.h"

#include <memory>
#include <utility>
#include <vector>

#include "../../common/gains.h"
#include "../base/buffer.h"
#include "pyramid_rows.h"

namespace ffmef {
namespace FFMEF_ISA {
namespace {

constexpr int kVectors = kChannelBlock / lanes<float>;  // of one block
constexpr int kCells = kVectors >= 8 ? 1 : 8 / kVectors;

enum class Finish { plain, rectify, rectify_add };  // y, max(y, 0), max(y, 0) + the layer's input

// A convolution's weights, ordered by block of outputs, run and place in the run.
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

// Computes the last cells of a row, fewer than kCells, together: a single cell would wait for its own sums.
template <int CELLS> inline void convolve_rest(int64_t cells, const Packed& conv, const float* const* runs,
                                               int64_t step, float* out, int64_t out_step, Finish finish,
                                               const float* own) {
  if constexpr (CELLS > 0) {
    if (cells == CELLS) return convolve_cells<CELLS>(conv, runs, step, out, out_step, finish, own);
    convolve_rest<CELLS - 1>(cells, conv, runs, step, out, out_step, finish, own);
  }
}

// Computes `cells` outputs along a row. A partial last block of channels writes zeros into the next cell, which is
// written afterwards. `out` has room for one more block.
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

// The same for a 2x2 convolution with stride 2 over rows of `width` cells with `channels`, whose last cell is repeated
// as far as the outputs need. Rows are read in place; `ends` has room for what the repeated cells are read by.
void convolve_halving(const Packed& conv, const float* const* rows, int64_t width, int64_t channels, int64_t cells,
                      float* out, float* ends, Finish finish) {
  const int64_t inside = width / 2, rest = cells - inside, step = 2 * channels;
  convolve(conv, rows, step, inside, out, conv.outputs, finish);
  if (rest == 0) return;
  const float* repeated[2];
  for (int r = 0; r < 2; ++r) {
    float* copy = ends + r * rest * step;
    for (int64_t i = 0; i < 2 * rest; ++i) {
      const int64_t x = 2 * inside + i < width ? 2 * inside + i : width - 1;
      std::memcpy(copy + i * channels, rows[r] + x * channels, size_t(channels) * sizeof(float));
    }
    repeated[r] = copy;
  }
  convolve(conv, repeated, step, rest, out + inside * conv.outputs, conv.outputs, finish);
}

// A 3x3 convolution with as many outputs as inputs. Four neighbours in a row are computed together from six transformed
// values (Winograd's F(4, 3), along rows only). This halves the multiplications and adds a few rounding errors.
struct Repeating {
  static constexpr int kTogether = 4, kValues = 6;
  // More vectors per block would leave no registers for the sums of a group.
  static constexpr bool kTransformed = kVectors <= 2;
  static constexpr int kGroups = kVectors == 1 ? 4 : 1;  // at a time

  int channels;
  Packed plain;
  std::vector<float> weights;  // by block of outputs, row, input and value

  explicit Repeating(const PredictConv& conv) : channels(conv.outputs), plain(conv) {
    if (!kTransformed) return;
    weights.resize(size_t(channels) * channels * 3 * kValues);
    for (int o = 0; o < channels; ++o)
      for (int i = 0; i < channels; ++i)
        for (int r = 0; r < 3; ++r) {
          const float* taps = conv.weight + ((int64_t(o) * channels + i) * 3 + r) * 3;
          const double a = taps[0], b = taps[1], c = taps[2];
          const double values[kValues] = {
              a / 4, -(a + b + c) / 6, -(a - b + c) / 6, (a + 2 * b + 4 * c) / 24, (a - 2 * b + 4 * c) / 24, c};
          for (int p = 0; p < kValues; ++p)
            weights[(((size_t(o / kChannelBlock) * 3 + r) * channels + i) * kValues + p) * kChannelBlock +
                    o % kChannelBlock] = float(values[p]);
        }
  }

  static int64_t groups_of(int64_t width) { return (width + kTogether - 1) / kTogether; }
  int64_t transformed_size(int64_t width) const { return groups_of(width) * kValues * channels; }

  // Transforms a row with a border of one cell. Beyond the border its last cell is repeated.
  void transform(const float* row, int64_t width, float* out) const {
    for (int64_t x = 0; x < width; x += kTogether)
      for (int v = 0; v < channels; v += lanes<float>, out += lanes<float>) {
        FloatVec d[kValues];
        for (int p = 0; p < kValues; ++p) d[p] = load(row + (x - 1 + p < width ? x - 1 + p : width) * channels + v);
        const FloatVec even = d[4] - 4.0f * d[2], odd = d[3] - 4.0f * d[1], far = d[4] - d[2], near = d[3] - d[1];
        const FloatVec values[kValues] = {
            4.0f * d[0] - 5.0f * d[2] + d[4], even + odd, even - odd, far + 2.0f * near, far - 2.0f * near,
            4.0f * d[1] - 5.0f * d[3] + d[5]};
        for (int p = 0; p < kValues; ++p) store(out + p * channels, values[p]);
        if (v + lanes<float> == channels) out += (kValues - 1) * channels;
      }
  }

  // Computes groups from `first` on: rectifies them and adds the layer's input. CHANNELS is fixed if there are few,
  // because addresses then need no registers; 0 stands for any number.
  template <int GROUPS, int CHANNELS>
  void multiply(const float* const* rows, int64_t first, int64_t width, float* out, const float* own) const {
    const int64_t channels = CHANNELS > 0 ? CHANNELS : this->channels;
    for (int block = 0; block * kChannelBlock < channels; ++block) {
      const float* w = weights.data() + size_t(block) * 3 * channels * kValues * kChannelBlock;
      FloatVec sums[GROUPS][kValues][kVectors] = {};
      for (int r = 0; r < 3; ++r) {
        const float* in = rows[r] + first * kValues * channels;
        for (int k = 0; k < channels; ++k)
          for (int p = 0; p < kValues; ++p, w += kChannelBlock)
            for (int v = 0; v < kVectors; ++v) {
              const FloatVec weight = load(w + v * lanes<float>);
              for (int g = 0; g < GROUPS; ++g) sums[g][p][v] += weight * splat(in[(g * kValues + p) * channels + k]);
            }
      }
      for (int g = 0; g < GROUPS; ++g)
        for (int v = 0; v < kVectors; ++v) {
          const int64_t x = (first + g) * kTogether, lane = block * kChannelBlock + v * lanes<float>;
          const FloatVec bias = load(plain.bias.data() + lane), m0 = sums[g][0][v], m5 = sums[g][5][v];
          const FloatVec sum = sums[g][1][v] + sums[g][2][v], difference = sums[g][1][v] - sums[g][2][v];
          const FloatVec far_sum = sums[g][3][v] + sums[g][4][v], far_difference = sums[g][3][v] - sums[g][4][v];
          const FloatVec results[kTogether] = {m0 + sum + far_sum + bias, difference + 2.0f * far_difference + bias,
                                               sum + 4.0f * far_sum + bias,
                                               difference + 8.0f * far_difference + m5 + bias};
          for (int64_t i = 0; i < kTogether && x + i < width; ++i) {
            const FloatVec y = results[i] > FloatVec{} ? results[i] : FloatVec{};
            store(out + (x + i) * channels + lane, y + load(own + (x + i) * channels + lane));
          }
        }
    }
  }

  template <int GROUPS, int CHANNELS>
  void rest(int64_t left, const float* const* rows, int64_t first, int64_t width, float* out, const float* own) const {
    if constexpr (GROUPS > 0) {
      if (left == GROUPS) return multiply<GROUPS, CHANNELS>(rows, first, width, out, own);
      rest<GROUPS - 1, CHANNELS>(left, rows, first, width, out, own);
    }
  }

  template <int CHANNELS> void row_of(const float* const* rows, int64_t width, float* out, const float* own) const {
    const int64_t groups = groups_of(width);
    int64_t first = 0;
    for (; first + kGroups <= groups; first += kGroups) multiply<kGroups, CHANNELS>(rows, first, width, out, own);
    rest<kGroups - 1, CHANNELS>(groups - first, rows, first, width, out, own);
  }

  void row(const float* const* rows, int64_t width, float* out, const float* own) const {
    switch (channels) {
      case kChannelBlock: return row_of<kChannelBlock>(rows, width, out, own);
      case 2 * kChannelBlock: return row_of<2 * kChannelBlock>(rows, width, out, own);
      default: return row_of<0>(rows, width, out, own);
    }
  }
};

// A network's weights in the order in which the kernels read them.
struct Prepared {
  Packed stem, enter, meet, overall, meet_coarsest, head;
  std::vector<Packed> down, up;
  std::vector<Repeating> encode, decode;

  explicit Prepared(const PredictNetwork& net)
      : stem(net.stem),
        enter(net.enter),
        meet(net.meet),
        overall(net.overall),
        meet_coarsest(net.meet_coarsest),
        head(net.head) {
    for (int g = 0; g + 1 < net.grids; ++g) {
      down.emplace_back(net.down[g]);
      up.emplace_back(net.up[g]);
      encode.emplace_back(net.encode[g]);
      decode.emplace_back(net.decode[g]);
    }
  }
};

// A map (height, width, channels) with room for one more cell at both ends of each row.
struct Map {
  int64_t height = 0, width = 0, channels = 0;
  Buffer<float> data;

  Map() = default;
  Map(int64_t h, int64_t w, int64_t c) : height(h), width(w), channels(c), data(h * (w + 2) * c) {}
  float* row(int64_t y) const { return data.get() + (y * (width + 2) + 1) * channels; }
  void repeat_ends(int64_t y) const {
    std::memcpy(row(y) - channels, row(y), size_t(channels) * sizeof(float));
    std::memcpy(row(y) + width * channels, row(y) + (width - 1) * channels, size_t(channels) * sizeof(float));
  }
};

using Maps = std::vector<Map>;  // one per image, all of one size

template <class F> void over_rows(ParallelRows parallel, int64_t rows, int64_t row_cost, const F& body) {
  parallel.run(parallel.threads, rows, row_cost, const_cast<F*>(&body),
               [](void* f, int64_t begin, int64_t end) { (*static_cast<const F*>(f))(begin, end); });
}

// Calls body(image, begin, end) for rows of all images. Threads synchronise once per layer, not once per image. Each
// keeps the same rows of all images from layer to layer, so what it reads is mostly in its own cache.
template <class F>
void over_rows_of_images(ParallelRows parallel, int64_t count, int64_t rows, int64_t row_cost, const F& body) {
  over_rows(parallel, rows, count * row_cost, [&](int64_t begin, int64_t end) {
    for (int64_t n = 0; n < count; ++n) body(n, begin, end);
  });
}

void rectify_row(float* row, const float* added, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const float y = row[i] + added[i];
    row[i] = y > 0.0f ? y : 0.0f;
  }
}

// Adds to every image's map a 1x1 convolution of the maps' mean and maximum, and rectifies the sum.
void meet(const Packed& packed, Maps& maps, ParallelRows parallel) {
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

// Returns relu(3x3(x)) + x in new maps. Borders are repeated.
Maps refine(const Repeating& conv, const Maps& in, ParallelRows parallel) {
  const int64_t height = in[0].height, width = in[0].width, channels = in[0].channels;
  Maps out = maps_of(in.size(), height, width, channels);
  over_rows_of_images(
      parallel, int64_t(in.size()), height, width * channels * channels * 6,
      [&](int64_t image, int64_t begin, int64_t end) {
        const Map& map = in[image];
        // The last three transformed rows, and their numbers.
        const int64_t size = Repeating::kTransformed ? conv.transformed_size(width) : 0;
        Buffer<float> transformed(3 * size);
        int64_t held[3] = {-1, -1, -1};
        for (int64_t i = begin; i < end; ++i) {
          const float* rows[3];
          for (int r = 0; r < 3; ++r) {
            const int64_t last = height - 1, y = i - 1 + r < 0 ? 0 : i - 1 + r < last ? i - 1 + r : last;
            if (!Repeating::kTransformed) {
              rows[r] = map.row(y) - channels;
              continue;
            }
            float* place = transformed.data + y % 3 * size;
            rows[r] = place;
            if (held[y % 3] == y) continue;
            held[y % 3] = y;
            conv.transform(map.row(y), width, place);
          }
          float* result = out[image].row(i);
          if (Repeating::kTransformed)
            conv.row(rows, width, result, map.row(i));
          else
            convolve(conv.plain, rows, channels, width, result, channels, Finish::rectify_add, map.row(i));
        }
      });
  return out;
}

// relu of a 2x2 convolution with stride 2. An odd border is repeated, and so are the ends of the result's rows.
Maps shrink(const Packed& packed, const Maps& in, ParallelRows parallel) {
  const int64_t c = in[0].channels, width = in[0].width, height = half_of(in[0].height), across = half_of(width);
  Maps out = maps_of(in.size(), height, across, packed.outputs);
  over_rows_of_images(parallel, int64_t(in.size()), height, across * c * packed.outputs * 4,
                      [&](int64_t image, int64_t begin, int64_t end) {
                        const Map& map = in[image];
                        Row<float> ends(4 * c);
                        for (int64_t y = begin; y < end; ++y) {
                          const float* rows[2] = {map.row(2 * y), map.row(2 * y + 1 < map.height ? 2 * y + 1 : 2 * y)};
                          convolve_halving(packed, rows, width, c, across, out[image].row(y), ends, Finish::rectify);
                          out[image].repeat_ends(y);
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
Maps enter(const Prepared& ready, const PredictNetwork& net, const float* half, int64_t count, int64_t height,
           int64_t width, const PredictCells& cells, ParallelRows parallel) {
  const Packed &stem = ready.stem, &step = ready.enter;
  const int64_t down = (height + 3) / 4, across = (width + 3) / 4, channels = net.stem.outputs;
  Maps out = maps_of(size_t(count), down, across, net.enter.outputs);
  over_rows_of_images(parallel, count, down, across * (16 * kChannelBlock + 4 * channels * net.enter.outputs),
                      [&](int64_t image, int64_t begin, int64_t end) {
                        Row<float> ends(16), stem_rows(2 * (2 * across * channels + kChannelBlock));
                        float* stems[2] = {stem_rows.data, stem_rows.data + 2 * across * channels + kChannelBlock};
                        for (int64_t i = begin; i < end; ++i) {
                          for (int s = 0; s < 2; ++s) {
                            const float* rows[2];
                            for (int r = 0; r < 2; ++r) {
                              const int64_t y = 4 * i + 2 * s + r;
                              rows[r] = half + (image * height + (y < height ? y : height - 1)) * width;
                            }
                            convolve_halving(stem, rows, width, 1, 2 * across, stems[s], ends, Finish::rectify);
                          }
                          convolve(step, stems, 2 * channels, across, out[image].row(i), net.enter.outputs,
                                   Finish::plain);
                          const int64_t row = (image * down + i) * across;
                          add_statistics(net.statistics, cells.high + row, cells.low + row, cells.apart + i * across,
                                         across, out[image].row(i));
                        }
                      });
  return out;
}

// relu(bilinear(1x1(coarse)) + skip), written over the skips.
void raise(const Packed& packed, const Maps& coarse, Maps& skips, ParallelRows parallel) {
  const int64_t c = packed.outputs, below = coarse[0].height, across = coarse[0].width, inputs = coarse[0].channels;
  const int64_t height = skips[0].height, width = skips[0].width;
  Maps thin = maps_of(coarse.size(), below, across, c);
  const int64_t count = int64_t(skips.size());
  over_rows_of_images(parallel, count, below, across * c * inputs, [&](int64_t image, int64_t begin, int64_t end) {
    for (int64_t y = begin; y < end; ++y) {
      const float* rows[1] = {coarse[image].row(y)};
      convolve(packed, rows, inputs, across, thin[image].row(y), c, Finish::plain);
    }
  });
  over_rows_of_images(parallel, count, height, width * c * 4, [&](int64_t image, int64_t begin, int64_t end) {
    Row<float> mixed((across + 2) * c);
    for (int64_t y = begin; y < end; ++y) {
      const RowTap tap = tap_of(y, 2, below);
      const float share = float(tap.share);
      const float *a = thin[image].row(tap.first), *b = thin[image].row(tap.second);
      float* m = mixed.data + c;
      for (int64_t k = 0; k < across * c; ++k) m[k] = a[k] + (b[k] - a[k]) * share;
      std::memcpy(m - c, m, size_t(c) * sizeof(float));
      std::memcpy(m + across * c, m + (across - 1) * c, size_t(c) * sizeof(float));
      float* out = skips[image].row(y);
      for (int64_t x = 0; x < width; ++x) {
        const float *near = m + x / 2 * c, *far = near + (x % 2 ? c : -c);
        for (int64_t k = 0; k < c; ++k) {
          const float value = 0.75f * near[k] + 0.25f * far[k] + out[x * c + k];
          out[x * c + k] = value > 0.0f ? value : 0.0f;
        }
      }
      skips[image].repeat_ends(y);
    }
  });
}

// Adds a 1x1 convolution of the map itself.
void add_overall(const Packed& packed, Maps& maps, ParallelRows parallel) {
  const int64_t height = maps[0].height, width = maps[0].width, channels = maps[0].channels;
  over_rows_of_images(parallel, int64_t(maps.size()), height, width * channels * channels,
                      [&](int64_t image, int64_t begin, int64_t end) {
                        Row<float> added((width + 1) * channels);
                        for (int64_t y = begin; y < end; ++y) {
                          float* row = maps[image].row(y);
                          const float* rows[1] = {row};
                          convolve(packed, rows, channels, width, added.data, channels, Finish::plain);
                          for (int64_t k = 0; k < width * channels; ++k) row[k] += added[k];
                        }
                      });
}

// The natural logarithm to about two units in the last place, for normal x > 0.
inline FloatVec logarithm(FloatVec x) {
  // x = 2^n m with m from sqrt(1/2) to sqrt(2); subtracting the bits of sqrt(1/2) carries into the exponent where m is
  // larger.
  const IntVec bits = (IntVec)x - 0x3f3504f3;
  const FloatVec n = __builtin_convertvector(bits >> 23, FloatVec);
  const FloatVec m = (FloatVec)((bits & 0x7fffff) + 0x3f3504f3) - 1.0f;
  FloatVec p = splat(7.0376836292e-2f);
  p = p * m - 1.1514610310e-1f;
  p = p * m + 1.1676998740e-1f;
  p = p * m - 1.2420140846e-1f;
  p = p * m + 1.4249322787e-1f;
  p = p * m - 1.6668057665e-1f;
  p = p * m + 2.0000714765e-1f;
  p = p * m - 2.4999993993e-1f;
  p = p * m + 3.3333331174e-1f;
  const FloatVec square = m * m;
  return (p * m * square - n * 2.12194440e-4f - square * 0.5f + m) + n * 0.693359375f;
}

// Every second element of two vectors beside each other, of their lower or upper halves.
template <bool UPPER, size_t... I> inline FloatVec zipped(FloatVec a, FloatVec b, std::index_sequence<I...>) {
  constexpr int half = int(sizeof...(I)) / 2;
  return __builtin_shufflevector(a, b, (int(I) / 2 + (UPPER ? half : 0) + (I % 2 ? 2 * half : 0))...);
}

// Exchanges the rows and columns of a square: halves are zipped until each element has moved.
inline void transpose(FloatVec (&rows)[lanes<float>]) {
  constexpr int n = lanes<float>;
  for (int step = 1; step < n; step *= 2) {
    FloatVec next[n];
    for (int i = 0; i < n / 2; ++i) {
      next[2 * i] = zipped<false>(rows[i], rows[i + n / 2], std::make_index_sequence<n>());
      next[2 * i + 1] = zipped<true>(rows[i], rows[i + n / 2], std::make_index_sequence<n>());
    }
    std::memcpy(rows, next, sizeof next);
  }
}

// One row of cells of the head's results, for all images: planes of logits, then as many of gains. Planes are as long
// as whole vectors.
struct HeadRow {
  const int64_t count, width, line;
  const int planes;
  Row<float> cells, values, gate, recorded, usable;  // cells: with channels last, of one image

  HeadRow(int64_t count_, int64_t width_, int planes_)
      : count(count_),
        width(width_),
        line((width_ + lanes<float> - 1) / lanes<float> * lanes<float>),
        planes(planes_),
        cells((line + 1) * kChannelBlock),
        values(count_ * 2 * planes_ * line),
        gate(line),
        recorded(count_ * line),
        usable(count_ * line) {
    std::memset(cells.data + width * kChannelBlock, 0, size_t(line + 1 - width) * kChannelBlock * sizeof(float));
    for (Row<float>* row : {&gate, &recorded, &usable})
      std::memset(row->data, 0, size_t(row == &gate ? line : count * line) * sizeof(float));
  }

  float* plane(int64_t n, int p) const { return values.data + (n * 2 * planes + p) * line; }

  // Splits an image's cells into planes.
  void split(int64_t n) const {
    for (int64_t x = 0; x < line; x += lanes<float>)
      for (int v = 0; v < 2 * planes; v += lanes<float>) {
        FloatVec square[lanes<float>];
        for (int i = 0; i < lanes<float>; ++i) square[i] = load(cells.data + (x + i) * kChannelBlock + v);
        transpose(square);
        for (int i = 0; i < lanes<float> && v + i < 2 * planes; ++i) store(plane(n, v + i) + x, square[i]);
      }
  }

  // What each exposure has recorded and how far it is usable, to be added to its logits; and the gate of gains, which
  // act only where exposures differ: a picture fused with itself must not change.
  void read(const PredictCells& given, int64_t y, int64_t height) const {
    const float* apart = given.apart + y * width;
    for (int64_t x = 0; x < width; ++x) gate[x] = apart[x] / (apart[x] + 0.04f);
    for (int64_t n = 0; n < count; ++n) {
      const int64_t row = (n * height + y) * width;
      const float *high = given.high + row, *low = given.low + row;
      const float preference = given.preference != nullptr ? given.preference[n] : 0.0f;
      float *known = recorded.data + n * line, *may = usable.data + n * line;
      for (int64_t x = 0; x < width; ++x) {
        known[x] = high[x] * (0.1f + 0.9f * low[x]) + 0.02f;
        may[x] = preference;
      }
      for (int64_t x = 0; x < line; x += lanes<float>) store(known + x, logarithm(load(known + x)));
      if (given.validity == nullptr) continue;
      const float* valid = given.validity + row;
      for (int64_t x = 0; x < width; ++x) may[x] += __builtin_logf(valid[x] > 1e-6f ? valid[x] : 1e-6f);
    }
  }

  FloatVec logit(int64_t n, int p, float prior, int64_t x) const {
    return load(plane(n, p) + x) + (prior * load(recorded.data + n * line + x) + load(usable.data + n * line + x));
  }

  // Softmax of a plane over the images. Calls put(n, x, share, gain) for vectors of cells.
  template <class F> void weigh(int p, float prior, const F& put) const {
    const float more = gain_with_count(p, planes - kFurtherPlanes, count);
    for (int64_t x = 0; x < line; x += lanes<float>) {
      const auto gain = [&](int64_t n) { return load(plane(n, planes + p) + x) * (more * load(gate.data + x)); };
      if (count == 2) {
        // The exponential of the larger logit is 1.
        const FloatVec ahead = logit(0, p, prior, x) - logit(1, p, prior, x), none{};
        const FloatVec less = exponential(ahead > none ? -ahead : ahead), scale = 1.0f / (less + 1.0f);
        put(0, x, ahead < none ? less * scale : scale, gain(0));
        put(1, x, ahead > none ? less * scale : scale, gain(1));
        continue;
      }
      FloatVec largest = logit(0, p, prior, x), total{};
      for (int64_t n = 1; n < count; ++n) {
        const FloatVec other = logit(n, p, prior, x);
        largest = other > largest ? other : largest;
      }
      for (int64_t n = 0; n < count; ++n) {
        const FloatVec share = exponential(logit(n, p, prior, x) - largest);
        total += share;
        store(plane(n, p) + x, share);
      }
      const FloatVec scale = 1.0f / total;
      for (int64_t n = 0; n < count; ++n) put(n, x, load(plane(n, p) + x) * scale, gain(n));
    }
  }
};

// Shares (softmax over the images) and gains.
void finish(const Packed& head, const PredictNetwork& net, const Maps& maps, const PredictCells& cells,
            const PredictMaps& out, ParallelRows parallel) {
  const int64_t height = maps[0].height, width = maps[0].width, count = int64_t(maps.size());
  const int planes = net.bands + kFurtherPlanes;
  const int64_t cost = width * count * (maps[0].channels * kChannelBlock + 64 * planes);
  over_rows(parallel, height, cost, [&](int64_t begin, int64_t end) {
    const HeadRow row(count, width, planes);
    for (int64_t y = begin; y < end; ++y) {
      for (int64_t n = 0; n < count; ++n) {
        const float* in[1] = {maps[n].row(y)};
        convolve(head, in, maps[n].channels, width, row.cells, kChannelBlock, Finish::plain);
        row.split(n);
      }
      row.read(cells, y, height);
      for (int p = 0; p < planes; ++p)
        row.weigh(p, net.prior[p], [&](int64_t n, int64_t x, FloatVec share, FloatVec gain) {
          const int64_t place = (n * height + y) * width + x, there = width - x;
          const auto write = [&](float* map, FloatVec v) {
            if (there >= lanes<float>)
              store(map + place, v);
            else
              store_part(map + place, v, there);
          };
          const int further = p - net.bands;  // as in PredictNetwork::prior
          if (further < 0) return write(out.weights + p * count * height * width, share * (1.0f + gain));
          if (further == 0) write(out.base, share * (1.0f + gain));
          write(further == 0 ? out.shares : further == 1 ? out.fine_shares : out.octave_shares, share);
          if (further > 0) write(further == 1 ? out.fine_gains : out.octave_gains, gain);
        });
    }
  });
}

void predict(const PredictNetwork& net, const float* half, int64_t count, int64_t height, int64_t width,
             const PredictCells& cells, const PredictMaps& out, ParallelRows parallel) {
  const Prepared& ready = *static_cast<const Prepared*>(net.prepared.get());
  Maps maps = enter(ready, net, half, count, height, width, cells, parallel);
  meet(ready.meet, maps, parallel);
  std::vector<Maps> skips(size_t(net.grids));
  for (int g = 0; g + 1 < net.grids; ++g) {
    skips[g] = std::move(maps);
    maps = refine(ready.encode[g], shrink(ready.down[g], skips[g], parallel), parallel);
  }
  add_overall(ready.overall, maps, parallel);
  meet(ready.meet_coarsest, maps, parallel);
  for (int g = net.grids - 2; g >= 0; --g) {
    raise(ready.up[g], maps, skips[g], parallel);
    maps = refine(ready.decode[g], skips[g], parallel);
    skips[g].clear();
  }
  finish(ready.head, net, maps, cells, out, parallel);
}

const void* prepare(const PredictNetwork& net) { return new Prepared(net); }

void forget(const void* prepared) { delete static_cast<const Prepared*>(prepared); }

}  // namespace

extern const PyramidPredictKernels pyramid_predict_kernels;
const PyramidPredictKernels pyramid_predict_kernels = {.prepare = prepare, .forget = forget, .predict = predict};

}  // namespace FFMEF_ISA
}  // namespace ffmef
