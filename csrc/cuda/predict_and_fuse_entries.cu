// Plain entries to the kernels of predict_and_fuse: C linkage, raw pointers and integers, contiguous float32 tensors, up to
// four levels (size 0 for those left out at the end), static shared memory. For simulators, disassemblers and other languages;
// `nvcc -ptx -arch=sm_75 csrc/cuda/predict_and_fuse_entries.cu` needs nothing else.
//
// Blocks have 256 threads. A launch needs ceil(width / w) * ceil(height / h) * planes blocks along x:
//   entry                              tile w x h   planes                        sizes
//   ffmef_predict_and_fuse_f32         32 x 32      batch * channels              1, 3, 5, 7
//   ffmef_predict_and_fuse_f32_vectors 64 x 16      batch * channels              1, 3, 5, 7; width a multiple of 4
//   ffmef_predict_and_fuse_f32_direct  32 x 8       batch * ceil(channels / 4)    any odd
#include "predict_and_fuse.cuh"

namespace ffmef::cuda {
namespace {

constexpr int kHeadEntryLevels = 4, kHeadEntryRadius = 3;

struct HeadEntryLevels {
  const float *hidden[kHeadEntryLevels], *weight[kHeadEntryLevels], *bias[kHeadEntryLevels];
  int sizes[kHeadEntryLevels], maps[kHeadEntryLevels];
};

// The table of levels is indexed at run time, so it goes to shared memory rather than to each thread's own.
__device__ __forceinline__ void fill_prediction(Prediction<float>& p, const float* images,
                                                const HeadEntryLevels& levels, const float* alphas, float* output,
                                                int batch, int image_count, int channels, int height, int width,
                                                int padding, int tile_width, int tile_height) {
  if (threadIdx.x == 0) {
    const int64_t pixels = static_cast<int64_t>(height) * width;
    p.images = {images, image_count * channels * pixels, channels * pixels, pixels, width, 1};
    p.level_count = p.halo_rows = 0;
    int place = 0;
#pragma unroll
    for (int l = 0; l < kHeadEntryLevels; ++l) {
      if (levels.sizes[l] == 0) continue;
      const int64_t image = levels.maps[l] * pixels;
      p.levels[p.level_count++] = {levels.hidden[l], image_count * image, image,           pixels,         width, 1,
                                   levels.weight[l], levels.bias[l],      levels.sizes[l], levels.maps[l], place};
      place += weights_elements(levels.sizes[l], levels.maps[l], 4);
      p.halo_rows = p.halo_rows > levels.sizes[l] / 2 ? p.halo_rows : levels.sizes[l] / 2;
    }
    p.alphas = alphas;
    p.alpha_stride = 1;
    p.output = output;
    p.batch = batch;
    p.image_count = image_count;
    p.channels = channels;
    p.height = height;
    p.width = width;
    p.padding = static_cast<Padding>(padding);
    p.tiles_across = (width + tile_width - 1) / tile_width;
    p.tiles_down = (height + tile_height - 1) / tile_height;
    p.add_result = false;
    p.keeps_weights = place * 4 <= kWeightsBytes;
  }
  __syncthreads();
}

template <int V> constexpr int kHeadEntryFloats =
    (HeadTile<float, V>::kHeight + 2 * kHeadEntryRadius) * HeadTile<float, V>::kPitch + kWeightsBytes / 4;

}  // namespace
}  // namespace ffmef::cuda

#define FFMEF_HEAD_ARGUMENTS                                                                                           \
  const float *images, const float *hidden_0, const float *hidden_1, const float *hidden_2, const float *hidden_3,     \
      const float *weight_0, const float *weight_1, const float *weight_2, const float *weight_3, const float *bias_0, \
      const float *bias_1, const float *bias_2, const float *bias_3, int size_0, int size_1, int size_2, int size_3,   \
      int maps_0, int maps_1, int maps_2, int maps_3, const float *alphas, float *output, int batch, int image_count,  \
      int channels, int height, int width, int padding
#define FFMEF_FILL_PREDICTION(SHAPE)                                                                                  \
  __shared__ Prediction<float> prediction;                                                                        \
  fill_prediction(prediction, images,                                                                             \
                  {{hidden_0, hidden_1, hidden_2, hidden_3}, {weight_0, weight_1, weight_2, weight_3},            \
                   {bias_0, bias_1, bias_2, bias_3}, {size_0, size_1, size_2, size_3}, {maps_0, maps_1, maps_2, maps_3}}, \
                  alphas, output, batch, image_count, channels, height, width, padding, SHAPE::kWidth, SHAPE::kHeight)

extern "C" __global__ void __launch_bounds__(256, 2) ffmef_predict_and_fuse_f32(FFMEF_HEAD_ARGUMENTS) {
  using namespace ffmef::cuda;
  using Shape = HeadTile<float, 1>;
  __align__(16) __shared__ float shared[kHeadEntryFloats<1>];
  FFMEF_FILL_PREDICTION(Shape);
  predict_and_fuse_tiled<float, 1>(prediction, shared);
}

extern "C" __global__ void __launch_bounds__(256, 2) ffmef_predict_and_fuse_f32_vectors(FFMEF_HEAD_ARGUMENTS) {
  using namespace ffmef::cuda;
  using Shape = HeadTile<float, 4>;
  __align__(16) __shared__ float shared[kHeadEntryFloats<4>];
  FFMEF_FILL_PREDICTION(Shape);
  predict_and_fuse_tiled<float, 4>(prediction, shared);
}

extern "C" __global__ void __launch_bounds__(256, 2) ffmef_predict_and_fuse_f32_direct(FFMEF_HEAD_ARGUMENTS) {
  using namespace ffmef::cuda;
  using Shape = Tile<float, 1>;
  FFMEF_FILL_PREDICTION(Shape);
  predict_and_fuse_direct<float>(prediction);
}
