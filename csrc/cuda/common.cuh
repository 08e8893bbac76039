// What every kernel of this folder shares: element types, 16-byte accesses, launches.
// Read by nvcc and, for the tests, by a plain C++ compiler (tests/support/cuda_emulator); no torch header here.
#pragma once

#include "../common/padding.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define FFMEF_LAUNCH(kernel, blocks, threads, shared_bytes, stream, ...) \
  kernel<<<(blocks), (threads), (shared_bytes), (stream)>>>(__VA_ARGS__)
#define FFMEF_DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#endif

namespace ffmef::cuda {

// For kernels that may be launched early: once this returns, everything that earlier launches wrote is there, and the
// next launch may start.
__device__ __forceinline__ void wait_for_launch_before() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();
  cudaTriggerProgrammaticLaunchCompletion();
#endif
}

// Half precision is accumulated in float32, float64 in float64.
template <class T> struct AccumulateIn {
  using type = float;
};
template <> struct AccumulateIn<double> {
  using type = double;
};
template <class T> using Accumulate = typename AccumulateIn<T>::type;

__device__ __forceinline__ float widen(float value) { return value; }
__device__ __forceinline__ double widen(double value) { return value; }
__device__ __forceinline__ float widen(__half value) { return __half2float(value); }
__device__ __forceinline__ float widen(__nv_bfloat16 value) { return __bfloat162float(value); }

template <class T> __device__ __forceinline__ T narrow(Accumulate<T> value);
template <> __device__ __forceinline__ float narrow<float>(float value) { return value; }
template <> __device__ __forceinline__ double narrow<double>(double value) { return value; }
template <> __device__ __forceinline__ __half narrow<__half>(float value) { return __float2half_rn(value); }
template <> __device__ __forceinline__ __nv_bfloat16 narrow<__nv_bfloat16>(float value) {
  return __float2bfloat16_rn(value);
}

// Pixels per thread: as many as fill 16 bytes.
template <class T> constexpr int kVector = 16 / static_cast<int>(sizeof(T));

// What one load or store of this many bytes moves.
template <size_t Bytes> struct RawBytes;
template <> struct RawBytes<8> {
  using type = uint2;
};
template <> struct RawBytes<16> {
  using type = uint4;
};

// Reads V neighbouring values that will not be used again (they should not push the images out of the cache).
template <int V, class T> __device__ __forceinline__ void load_once(const T* source, Accumulate<T> (&values)[V]) {
  if constexpr (V == 1) {
    values[0] = widen(__ldcs(source));
  } else {
    using Raw = typename RawBytes<V * sizeof(T)>::type;
    const Raw raw = __ldcs(reinterpret_cast<const Raw*>(source));
    T elements[V];
    memcpy(static_cast<void*>(elements), &raw, sizeof(raw));
#pragma unroll
    for (int v = 0; v < V; ++v) values[v] = widen(elements[v]);
  }
}

// Copies to shared memory that go on while the thread does other work (cp.async, from compute capability 8.0 on). Loads
// to registers cannot do this: a warp has six counters for everything it waits for, and loads that share one are waited
// for until the last arrives. Groups end in order, so a thread can wait for its oldest alone. After that it sees its
// own copies; other threads see them after a barrier.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
constexpr bool kCopiesLater = true;
#else
constexpr bool kCopiesLater = false;
#endif

template <int Bytes> __device__ __forceinline__ void copy_later(void* target, const void* source) {
  static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16);
#if !defined(__CUDACC__)
  emulated_copy_later(target, source, Bytes);
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  const unsigned place = static_cast<unsigned>(__cvta_generic_to_shared(target));
  if constexpr (Bytes == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(place), "l"(source) : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(place), "l"(source), "n"(Bytes) : "memory");
#endif
}

__device__ __forceinline__ void end_group_of_copies() {
#if !defined(__CUDACC__)
  emulated_end_group_of_copies();
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until all groups but the latest `Left` have arrived.
template <int Left> __device__ __forceinline__ void wait_for_copies() {
#if !defined(__CUDACC__)
  emulated_wait_for_copies(Left);
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(Left) : "memory");
#endif
}

// `Streaming`: the caches should give the values up first.
template <int V, bool Streaming = false, class T>
__device__ __forceinline__ void store(T* target, const Accumulate<T> (&values)[V]) {
  if constexpr (V == 1) {
    target[0] = narrow<T>(values[0]);
  } else {
    using Raw = typename RawBytes<V * sizeof(T)>::type;
    T elements[V];
#pragma unroll
    for (int v = 0; v < V; ++v) elements[v] = narrow<T>(values[v]);
    Raw raw;
    memcpy(&raw, elements, sizeof(raw));
    if constexpr (Streaming)
      __stcs(reinterpret_cast<Raw*>(target), raw);
    else
      *reinterpret_cast<Raw*>(target) = raw;
  }
}

}  // namespace ffmef::cuda
