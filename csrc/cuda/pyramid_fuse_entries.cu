// Plain entries to the kernels of pyramid_fuse: C linkage, raw pointers and integers, contiguous float32 tensors, up to
// three bands, static shared memory. For simulators, disassemblers and other languages;
// `nvcc -ptx -arch=sm_75 csrc/cuda/pyramid_fuse_entries.cu` needs nothing else.
//
// A launch needs ceil(width / w) * ceil(height / h) * planes blocks along x:
//   entry                                       threads   tile w x h   planes
//   ffmef_pyramid_fuse_f32                      64        32 x 32      batch * channels
//   ffmef_pyramid_fuse_f32_vectors              256       64 x 64      batch * channels, width a multiple of 4
//   ffmef_pyramid_fuse_weights_gradient_f32     128       64 x 32      batch
//   ffmef_pyramid_fuse_images_gradient_f32      128       64 x 32      batch * channels
//   ffmef_pyramid_fuse_sum_tiles_f32            256       a thread for each of batch * (bands + 1) * images * cells
// partials has tiles * batch * image_count * (bands + 1) * (64 / scale + 2) * (32 / scale + 2) elements.
#include "pyramid_fuse.cuh"

namespace ffmef::cuda::pyramid {
namespace {

using EntryTile = Tile<32, 64>;
using Entry = Problem<float, float>;
constexpr int kMostColumns = EntryTile::kColumns + 2;  // cells of a tile's row, where a cell is a pixel

__device__ __forceinline__ Entry entry(int batch, int image_count, int channels, int height, int width, int bands,
                                       int scale, int tile_rows, int tile_columns) {
  Entry p = {};
  const int64_t pixels = static_cast<int64_t>(height) * width;
  p.batch = batch;
  p.image_count = image_count;
  p.channels = channels;
  p.height = height;
  p.width = width;
  p.bands = bands;
  p.scale = scale;
  while ((1 << p.scale_shift) < scale) ++p.scale_shift;
  p.cells_down = (height + scale - 1) / scale;
  p.cells_across = (width + scale - 1) / scale;
  p.tiles_down = (height + tile_rows - 1) / tile_rows;
  p.tiles_across = (width + tile_columns - 1) / tile_columns;
  const int64_t cells = static_cast<int64_t>(p.cells_down) * p.cells_across;
  p.image_strides[0] = image_count * channels * pixels;
  p.image_strides[1] = channels * pixels;
  p.image_strides[2] = p.gradient_strides[1] = pixels;
  p.gradient_strides[0] = channels * pixels;
  p.image_strides[3] = p.gradient_strides[2] = width;
  p.image_strides[4] = p.gradient_strides[3] = p.weight_strides[4] = p.base_strides[3] = 1;
  p.weight_strides[0] = p.weights_gradient_batch = bands * image_count * cells;
  p.weight_strides[1] = p.base_strides[0] = image_count * cells;
  p.weight_strides[2] = p.base_strides[1] = cells;
  p.weight_strides[3] = p.base_strides[2] = p.cells_across;
  return p;
}

}  // namespace
}  // namespace ffmef::cuda::pyramid

#define FFMEF_PYRAMID_SIZES int batch, int image_count, int channels, int height, int width, int bands, int scale
#define FFMEF_PYRAMID_ENTRY(Shape) \
  ffmef::cuda::pyramid::entry(batch, image_count, channels, height, width, bands, scale, Shape::kRows, Shape::kColumns)

extern "C" __global__ void __launch_bounds__(64)
    ffmef_pyramid_fuse_f32(const float* images, const float* weights, const float* base, float* output,
                           FFMEF_PYRAMID_SIZES) {
  using namespace ffmef::cuda::pyramid;
  using Shape = Tile<32, 32>;
  __align__(16) __shared__ float shared[kFuseElements<Shape>];
  Entry p = FFMEF_PYRAMID_ENTRY(Shape);
  p.images = images, p.weights = weights, p.base = base, p.output = output;
  fuse<Shape, false>(p, shared);
}

extern "C" __global__ void __launch_bounds__(256)
    ffmef_pyramid_fuse_f32_vectors(const float* images, const float* weights, const float* base, float* output,
                                   FFMEF_PYRAMID_SIZES) {
  using namespace ffmef::cuda::pyramid;
  using Shape = Tile<64, 64>;
  __align__(16) __shared__ float shared[kFuseElements<Shape>];
  Entry p = FFMEF_PYRAMID_ENTRY(Shape);
  p.images = images, p.weights = weights, p.base = base, p.output = output;
  fuse<Shape, true>(p, shared);
}

extern "C" __global__ void __launch_bounds__(128)
    ffmef_pyramid_fuse_weights_gradient_f32(const float* gradient, const float* images, float* partials,
                                            FFMEF_PYRAMID_SIZES) {
  using namespace ffmef::cuda::pyramid;
  __align__(16) __shared__ float shared[EntryTile::size(0) + 2 * EntryTile::kLevels + EntryTile::kRows * kMostColumns];
  Entry p = FFMEF_PYRAMID_ENTRY(EntryTile);
  p.gradient = gradient, p.images = images, p.partials = partials;
  weights_gradient<EntryTile, false>(p, shared);
}

extern "C" __global__ void __launch_bounds__(256)
    ffmef_pyramid_fuse_sum_tiles_f32(float* partials, float* weights_gradient, float* base_gradient,
                                     FFMEF_PYRAMID_SIZES) {
  using namespace ffmef::cuda::pyramid;
  Entry p = FFMEF_PYRAMID_ENTRY(EntryTile);
  p.partials = partials, p.weights_gradient = weights_gradient, p.base_gradient = base_gradient;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  if (index < static_cast<int64_t>(p.cells_down) * p.cells_across * image_count * (bands + 1) * batch)
    sum_tiles<EntryTile>(p, index, true, true);
}

extern "C" __global__ void __launch_bounds__(128)
    ffmef_pyramid_fuse_images_gradient_f32(const float* gradient, const float* weights, const float* base,
                                           float* images_gradient_output, FFMEF_PYRAMID_SIZES) {
  using namespace ffmef::cuda::pyramid;
  __align__(16) __shared__ float shared[kImagesGradientElements<EntryTile>];
  Entry p = FFMEF_PYRAMID_ENTRY(EntryTile);
  p.gradient = gradient, p.weights = weights, p.base = base, p.images_gradient = images_gradient_output;
  images_gradient<EntryTile, false>(p, shared);
}
