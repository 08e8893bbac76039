// Kernels of predict_and_fuse as __global__ functions, the choice between them, and their launches.
// `nvcc -cubin -arch=sm_75 csrc/cuda/predict_and_fuse.cu` compiles it alone.
#include "launch.cuh"
#include "predict_and_fuse.cuh"
#include "predict_and_fuse.h"

#include <algorithm>
#include <cstddef>

namespace ffmef::cuda {
namespace {

// Two blocks per multiprocessor: arithmetic bounds these kernels, and registers hold what a filter sees.
template <class T, int V> __global__ void __launch_bounds__(HeadTile<T, V>::kThreads, 2)
    predict_and_fuse_tiled_kernel(const __grid_constant__ Prediction<T> p) {
  FFMEF_DYNAMIC_SHARED(shared);
  predict_and_fuse_tiled<T, V>(p, reinterpret_cast<Accumulate<T>*>(shared));
}

template <class T> __global__ void __launch_bounds__(Tile<T, 1>::kThreads, 2)
    predict_and_fuse_direct_kernel(const __grid_constant__ Prediction<T> p) {
  predict_and_fuse_direct<T>(p);
}

template <class T> Prediction<T> make_prediction(const ffmef_prediction& f, int first_level, int level_count) {
  Prediction<T> p = {};
  const int64_t* s = f.image_strides;
  p.images = {static_cast<const T*>(f.images), s[0], s[1], s[2], s[3], s[4]};
  for (int i = 0; i < level_count; ++i) {
    const int l = first_level + i;
    const int64_t* t = f.hidden_strides[l];
    p.levels[i] = {
        static_cast<const T*>(f.hidden[l]), t[0],       t[1],      t[2], t[3], t[4], static_cast<const T*>(f.weight[l]),
        static_cast<const T*>(f.bias[l]),   f.sizes[l], f.maps[l], 0};
    p.halo_rows = std::max(p.halo_rows, f.sizes[l] / 2);
  }
  p.alphas = static_cast<const Accumulate<T>*>(f.alphas) + first_level * f.alpha_stride;
  p.alpha_stride = f.alpha_stride;
  p.level_count = level_count;
  p.batch = static_cast<int>(f.batch);
  p.image_count = static_cast<int>(f.image_count);
  p.channels = static_cast<int>(f.channels);
  p.height = static_cast<int>(f.height);
  p.width = static_cast<int>(f.width);
  p.padding = static_cast<Padding>(f.padding);
  p.add_result = first_level > 0;
  int64_t place = 0;
  for (int i = 0; i < level_count; ++i) {
    p.levels[i].place = static_cast<int>(std::min<int64_t>(place, INT_MAX));
    place += weights_elements(p.levels[i].size, p.levels[i].maps, sizeof(Accumulate<T>));
  }
  p.keeps_weights = place * static_cast<int64_t>(sizeof(Accumulate<T>)) <= kWeightsBytes;
  return p;
}

bool plane_fits_32_bits(int64_t height, int64_t width, int64_t row_stride, int64_t column_stride) {
  return fits_32_bits((height - 1) * row_stride + (width - 1) * column_stride);
}

// Offsets inside one plane; every kernel finds batches, images, channels and maps in 64 bits.
bool has_tiled_kernel(const ffmef_prediction& f) {
  for (int l = 0; l < f.level_count; ++l) {
    const int64_t* s = f.hidden_strides[l];
    if (f.sizes[l] > 7 || !plane_fits_32_bits(f.height, f.width, s[3], s[4])) return false;
  }
  return plane_fits_32_bits(f.height, f.width, f.image_strides[3], f.image_strides[4]);
}

bool allows_vectors(const ffmef_prediction& f, const void* output, int vector, size_t element) {
  const size_t bytes = vector * element;
  if (f.width % vector != 0 || !aligned(output, bytes)) return false;
  for (int l = 0; l < f.level_count; ++l) {
    const int64_t* s = f.hidden_strides[l];
    if (!aligned(f.hidden[l], bytes) || s[4] != 1) return false;
    for (int axis = 0; axis < 4; ++axis)
      if (s[axis] % vector != 0) return false;
  }
  return true;
}

template <class Shape, class T> int64_t set_tiles(Prediction<T>& p) {
  p.tiles_across = static_cast<int>(divide_up(p.width, Shape::kWidth));
  p.tiles_down = static_cast<int>(divide_up(p.height, Shape::kHeight));
  return static_cast<int64_t>(p.tiles_across) * p.tiles_down;
}

template <class T, int V> cudaError_t launch_tiled(Prediction<T>& p, cudaStream_t stream) {
  using Shape = HeadTile<T, V>;
  const size_t tile = sizeof(Accumulate<T>) * (Shape::kHeight + 2 * p.halo_rows) * Shape::kPitch;
  return launch(predict_and_fuse_tiled_kernel<T, V>, set_tiles<Shape>(p) * p.batch * p.channels, Shape::kThreads,
                tile + kWeightsBytes + kMapsBytes<T, V>, stream, p);
}

template <class T> cudaError_t predict(const ffmef_prediction& f, void* output, cudaStream_t stream) {
  constexpr int V = kHeadVector<T>;
  const bool tiled = has_tiled_kernel(f), vectors = allows_vectors(f, output, V, sizeof(T));
  cudaError_t error = cudaSuccess;
  // Launched without levels too: the output is then zero, and still has to be written.
  for (int first = 0; error == cudaSuccess && (first == 0 || first < f.level_count); first += kLevelsPerLaunch) {
    Prediction<T> p = make_prediction<T>(f, first, std::min(kLevelsPerLaunch, f.level_count - first));
    p.output = static_cast<T*>(output);
    if (tiled) {
      error = V > 1 && vectors ? launch_tiled<T, V>(p, stream) : launch_tiled<T, 1>(p, stream);
    } else {
      using Shape = Tile<T, 1>;
      const int64_t planes = f.batch * divide_up(f.channels, kChannelsAtOnce);
      error = launch(predict_and_fuse_direct_kernel<T>, set_tiles<Shape>(p) * planes, Shape::kThreads, 0, stream, p);
    }
  }
  return error;
}

}  // namespace
}  // namespace ffmef::cuda

extern "C" int ffmef_cuda_predict_and_fuse(const ffmef_prediction* prediction, void* output, void* stream) {
  return ffmef::cuda::with_dtype(prediction->dtype, [&](auto zero) -> int {
    return ffmef::cuda::predict<decltype(zero)>(*prediction, output, static_cast<cudaStream_t>(stream));
  });
}
