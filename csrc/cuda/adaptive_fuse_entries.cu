// Plain entries to the kernels of adaptive_fuse: C linkage, raw pointers and integers, contiguous float32 tensors, up to
// four levels of size 1, 3, 5 or 7 (0 for those left out at the end), static shared memory. For simulators, disassemblers and other languages;
// `nvcc -ptx -arch=sm_75 csrc/cuda/adaptive_fuse_entries.cu` needs nothing else.
//
// Blocks have 256 threads. A launch needs ceil(width / w) * ceil(height / h) * planes blocks along x:
//   entry                                           tile w x h   planes
//   ffmef_adaptive_fuse_f32                         32 x 16      batch * channels
//   ffmef_adaptive_fuse_f32_vectors                 64 x 16      batch * channels     width a multiple of 4
//   ffmef_adaptive_fuse_f32_direct                  32 x 8       batch * ceil(channels / 4)
//   ffmef_adaptive_fuse_filters_gradient_f32        32 x 8       batch * image_count
//   ffmef_adaptive_fuse_filters_gradient_f32_vectors 64 x 16     batch                one channel, width a multiple of 4
//   ffmef_adaptive_fuse_images_gradient_f32         32 x 8       batch * image_count * ceil(channels / 4)
//   ffmef_adaptive_fuse_sum_partials_f32            one block a level
// The gradient kernels write one partial sum a level and block to `partials`, (levels, blocks), unless it is null.
#include "adaptive_fuse.cuh"

namespace ffmef::cuda {
namespace {

constexpr int kEntryLevels = 4, kEntryRadius = 3;

struct EntryLevels {
  const float* filters[kEntryLevels];
  float* gradients[kEntryLevels];
  int sizes[kEntryLevels];
};

struct EntrySizes {
  int batch, image_count, channels, height, width;
};

// The table of levels is indexed at run time, so it goes to shared memory rather than to each thread's own.
__device__ __forceinline__ void fill(Problem<float>& p, const EntryLevels& levels, const EntrySizes& n, int padding,
                                     const float* images, const float* gradient, const float* alphas, float* output,
                                     float* images_gradient, float* partials, int tile_width, int tile_height) {
  if (threadIdx.x == 0) {
    const int64_t pixels = static_cast<int64_t>(n.height) * n.width, columns = n.width;
    p.images = {images, n.image_count * n.channels * pixels, n.channels * pixels, pixels, columns, 1};
    p.gradient = {gradient, n.channels * pixels, 0, pixels, columns, 1};
    p.level_count = p.halo_rows = 0;
#pragma unroll
    for (int l = 0; l < kEntryLevels; ++l) {
      const int size = levels.sizes[l];
      if (size == 0) continue;
      const int64_t image = static_cast<int64_t>(size) * size * pixels;
      p.levels[p.level_count++] = {
          levels.filters[l], levels.gradients[l], n.image_count * image, image, pixels, columns, 1, size};
      p.halo_rows = p.halo_rows > size / 2 ? p.halo_rows : size / 2;
    }
    p.alphas = alphas;
    p.alpha_stride = 1;
    p.output = output;
    p.images_gradient = images_gradient;
    p.partials = partials;
    p.batch = n.batch;
    p.image_count = n.image_count;
    p.channels = n.channels;
    p.height = n.height;
    p.width = n.width;
    p.padding = static_cast<Padding>(padding);
    p.tiles_across = (n.width + tile_width - 1) / tile_width;
    p.tiles_down = (n.height + tile_height - 1) / tile_height;
    p.add_result = false;
  }
  __syncthreads();
}

template <int V> using EntryTile = Tile<float, V, kRowsOfThread<float, V, 1>>;
template <int V> constexpr int kTileFloats =
    kBuffers<1> * (EntryTile<V>::kHeight + 2 * kEntryRadius) * EntryTile<V>::kPitch;
constexpr int kSumFloats = kEntryLevels * 256 / kWarp;

}  // namespace
}  // namespace ffmef::cuda

#define FFMEF_LEVELS                                                                                          \
  const float *filters_0, const float *filters_1, const float *filters_2, const float *filters_3, int size_0, \
      int size_1, int size_2, int size_3
#define FFMEF_SIZES int batch, int image_count, int channels, int height, int width, int padding

extern "C" __global__ void __launch_bounds__(256, 2)
    ffmef_adaptive_fuse_f32(const float* images, FFMEF_LEVELS, const float* alphas, float* output, FFMEF_SIZES) {
  using namespace ffmef::cuda;
  __shared__ Problem<float> problem;
  __align__(16) __shared__ float tile[kTileFloats<1>];
  fill(problem, {{filters_0, filters_1, filters_2, filters_3}, {}, {size_0, size_1, size_2, size_3}},
       {batch, image_count, channels, height, width}, padding, images, nullptr, alphas, output, nullptr, nullptr,
       EntryTile<1>::kWidth, EntryTile<1>::kHeight);
  fuse_tiled<float, 1, 1>(problem, tile);
}

extern "C" __global__ void __launch_bounds__(256, 2)
    ffmef_adaptive_fuse_f32_vectors(const float* images, FFMEF_LEVELS, const float* alphas, float* output,
                                    FFMEF_SIZES) {
  using namespace ffmef::cuda;
  __shared__ Problem<float> problem;
  __align__(16) __shared__ float tile[kTileFloats<4>];
  fill(problem, {{filters_0, filters_1, filters_2, filters_3}, {}, {size_0, size_1, size_2, size_3}},
       {batch, image_count, channels, height, width}, padding, images, nullptr, alphas, output, nullptr, nullptr,
       Tile<float, 4>::kWidth, Tile<float, 4>::kHeight);
  fuse_tiled<float, 4, 1>(problem, tile);
}

extern "C" __global__ void __launch_bounds__(256, 2)
    ffmef_adaptive_fuse_f32_direct(const float* images, FFMEF_LEVELS, const float* alphas, float* output, FFMEF_SIZES) {
  using namespace ffmef::cuda;
  __shared__ Problem<float> problem;
  fill(problem, {{filters_0, filters_1, filters_2, filters_3}, {}, {size_0, size_1, size_2, size_3}},
       {batch, image_count, channels, height, width}, padding, images, nullptr, alphas, output, nullptr, nullptr,
       Tile<float, 1>::kWidth, Tile<float, 1>::kHeight);
  fuse_direct<float>(problem);
}

extern "C" __global__ void __launch_bounds__(256, 2)
    ffmef_adaptive_fuse_filters_gradient_f32(const float* gradient, const float* images, FFMEF_LEVELS,
                                             const float* alphas, float* gradient_0, float* gradient_1,
                                             float* gradient_2, float* gradient_3, float* partials, FFMEF_SIZES) {
  using namespace ffmef::cuda;
  __shared__ Problem<float> problem;
  __shared__ float sums[kSumFloats];
  fill(problem,
       {{filters_0, filters_1, filters_2, filters_3},
        {gradient_0, gradient_1, gradient_2, gradient_3},
        {size_0, size_1, size_2, size_3}},
       {batch, image_count, channels, height, width}, padding, images, gradient, alphas, nullptr, nullptr, partials,
       Tile<float, 1>::kWidth, Tile<float, 1>::kHeight);
  filters_gradient_direct<float>(problem, sums);
}

extern "C" __global__ void __launch_bounds__(256, 2)
    ffmef_adaptive_fuse_filters_gradient_f32_vectors(const float* gradient, const float* images, FFMEF_LEVELS,
                                                     const float* alphas, float* gradient_0, float* gradient_1,
                                                     float* gradient_2, float* gradient_3, float* partials,
                                                     FFMEF_SIZES) {
  using namespace ffmef::cuda;
  __shared__ Problem<float> problem;
  __align__(16) __shared__ float tile[kTileFloats<4> + kSumFloats];
  fill(problem,
       {{filters_0, filters_1, filters_2, filters_3},
        {gradient_0, gradient_1, gradient_2, gradient_3},
        {size_0, size_1, size_2, size_3}},
       {batch, image_count, channels, height, width}, padding, images, gradient, alphas, nullptr, nullptr, partials,
       Tile<float, 4>::kWidth, Tile<float, 4>::kHeight);
  filters_gradient_tiled<float, 4, 1>(problem, tile);
}

extern "C" __global__ void __launch_bounds__(256, 2)
    ffmef_adaptive_fuse_images_gradient_f32(const float* gradient, const float* images, FFMEF_LEVELS,
                                            const float* alphas, float* images_gradient_output, float* partials,
                                            FFMEF_SIZES) {
  using namespace ffmef::cuda;
  __shared__ Problem<float> problem;
  __shared__ float sums[kSumFloats];
  fill(problem, {{filters_0, filters_1, filters_2, filters_3}, {}, {size_0, size_1, size_2, size_3}},
       {batch, image_count, channels, height, width}, padding, images, gradient, alphas, nullptr,
       images_gradient_output, partials, Tile<float, 1>::kWidth, Tile<float, 1>::kHeight);
  images_gradient<float, int, kChannelsAtOnce>(problem, sums);
}

extern "C" __global__ void __launch_bounds__(256, 2)
    ffmef_adaptive_fuse_sum_partials_f32(const float* partials, int blocks, float* alphas_gradient) {
  using namespace ffmef::cuda;
  __shared__ double sums[kReduceThreads / kWarp];
  sum_level_partials<float>(partials, blocks, alphas_gradient, sums);
}
