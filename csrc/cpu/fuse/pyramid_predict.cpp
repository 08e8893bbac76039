// Binds the coarse predictor's CPU kernel to torch: unpacks its parameters, allocates results, lends threads.
#include "pyramid_predict.h"

#include "../base/team.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <tuple>
#include <vector>

namespace ffmef {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Takes weight and bias of one layer after the other from the parameters, in the order of the module's own.
struct Reader {
  std::vector<Tensor> kept;
  const std::vector<Tensor>& parameters;
  size_t next = 0;

  PredictConv conv(int64_t outputs, int64_t inputs, int64_t size) {
    STD_TORCH_CHECK(next + 2 <= parameters.size(), "parameters must hold two tensors for each layer");
    const Tensor& w = parameters[next];
    const Tensor& b = parameters[next + 1];
    STD_TORCH_CHECK(w.scalar_type() == ScalarType::Float && b.scalar_type() == ScalarType::Float &&
                        w.numel() == outputs * inputs * size * size && b.numel() == outputs,
                    "parameters[", next, "] must be float32 with ", outputs * inputs * size * size,
                    " elements and its bias with ", outputs);
    kept.push_back(torch::stable::contiguous(w));
    kept.push_back(torch::stable::contiguous(b));
    next += 2;
    return {static_cast<const float*>(kept[kept.size() - 2].data_ptr()),
            static_cast<const float*>(kept.back().data_ptr()), int(outputs), int(inputs), int(size)};
  }
};

// Parts of some ten microseconds.
void parallel_rows(void* team, int64_t rows, int64_t row_cost, void* context, void (*body)(void*, int64_t, int64_t)) {
  static_cast<Team*>(team)->over(rows, 1 + (1 << 18) / (row_cost + 1),
                                 [&](int64_t begin, int64_t end) { body(context, begin, end); });
}

std::tuple<Tensor, Tensor> pyramid_predict_cpu(const Tensor& half_, const std::vector<Tensor>& parameters,
                                               const std::vector<int64_t>& channels, int64_t stem, int64_t bands) {
  STD_TORCH_CHECK(half_.dim() == 3 && half_.scalar_type() == ScalarType::Float && half_.numel() > 0,
                  "half must be (N, H, W), float32");
  const int grids = int(channels.size());
  STD_TORCH_CHECK(grids >= 1 && grids <= kMaxGrids && stem >= 1 && stem <= kChannelBlock && bands >= 0 && bands <= 3,
                  "channels must have 1 to ", kMaxGrids, " grids, stem at most ", kChannelBlock,
                  " channels, bands at most 3");
  for (int64_t c : channels)
    STD_TORCH_CHECK(c > 0 && c % kChannelBlock == 0, "channels must be multiples of ", kChannelBlock);
  const Tensor half = torch::stable::contiguous(half_);

  Reader reader{{}, parameters};
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
  STD_TORCH_CHECK(reader.next == parameters.size(), "parameters must hold ", reader.next, " tensors, got ",
                  parameters.size());

  const int64_t count = half.size(0), height = half.size(1), width = half.size(2);
  const int64_t down = (height + 3) / 4, across = (width + 3) / 4;
  Tensor weights = torch::stable::new_empty(half, {bands, count, down, across});
  Tensor base = torch::stable::new_empty(half, {count, down, across});
  Team::run([&](Team& team) {
    FFMEF_KERNELS(pyramid_predict_kernels)
        .predict(net, static_cast<const float*>(half.data_ptr()), count, height, width,
                 static_cast<float*>(weights.data_ptr()), static_cast<float*>(base.data_ptr()), {&team, parallel_rows});
  });
  return {weights, base};
}

}  // namespace
}  // namespace ffmef

STABLE_TORCH_LIBRARY_IMPL(ffmef, CPU, m) { m.impl("pyramid_predict", TORCH_BOX(&ffmef::pyramid_predict_cpu)); }
