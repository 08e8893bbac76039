// What the launchers of this folder share: how many blocks, which element type, whether 16-byte accesses are allowed.
#pragma once

#include "common.cuh"
#include "types.h"

#include <atomic>
#include <climits>

namespace ffmef::cuda {

// Blocks that a multiprocessor should hold at once. They tell the compiler how many registers a thread may use;
// otherwise it may spill some to hold more blocks than these kernels need.
constexpr int resident_blocks(int threads, int registers) { return 65536 / registers / threads; }

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline bool fits_32_bits(int64_t largest_offset) { return largest_offset <= INT_MAX; }

inline bool aligned(const void* pointer, size_t bytes = 16) {
  return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}

template <class Kernel, class Problem> cudaError_t launch(Kernel kernel, int64_t blocks, int threads,
                                                          size_t shared_bytes, cudaStream_t stream, const Problem& p) {
  if (blocks == 0) return cudaSuccess;
  if (blocks > INT_MAX) return cudaErrorInvalidConfiguration;
  FFMEF_LAUNCH(kernel, static_cast<unsigned>(blocks), threads, shared_bytes, stream, p);
  return cudaGetLastError();
}

// Whether this kernel has the wait that an early launch needs, on the current device. Only code for compute capability
// 9.0 or later has it: a GPU that translates PTX of an earlier one may be newer than its code.
template <class Kernel> bool can_launch_early([[maybe_unused]] Kernel kernel) {
#ifdef __CUDACC__
  constexpr int devices = 64;
  static std::atomic<int> known[devices];  // 0: not asked yet, 1: no, 2: yes
  int device = 0;
  if (cudaGetDevice(&device) != cudaSuccess || device >= devices) return false;
  if (known[device] == 0) {
    cudaFuncAttributes code = {};
    const bool asked = cudaFuncGetAttributes(&code, kernel) == cudaSuccess;
    if (!asked) cudaGetLastError();  // a launch would report it as its own
    known[device] = asked && code.ptxVersion >= 90 ? 2 : 1;
  }
  return known[device] == 2;
#else
  return true;
#endif
}

// The same, but the kernel's blocks may start once every block of the launch before it has passed its
// wait_for_launch_before(). The kernel waits too; can_launch_early() says whether it does.
template <class Kernel, class Problem> cudaError_t launch_early(Kernel kernel, int64_t blocks, int threads,
                                                                size_t shared_bytes, cudaStream_t stream,
                                                                const Problem& p) {
#ifdef __CUDACC__
  if (blocks == 0) return cudaSuccess;
  if (blocks > INT_MAX) return cudaErrorInvalidConfiguration;
  cudaLaunchAttribute early = {};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &early;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, kernel, p);
#else
  return launch(kernel, blocks, threads, shared_bytes, stream, p);
#endif
}

// Calls `call` with a zero of the type that the code names.
// FFMEF_CUDA_ONLY_FLOAT32 leaves the other types out, for checks that compile a file many times.
template <class Call> auto with_dtype(int dtype, const Call& call) -> decltype(call(float())) {
  switch (dtype) {
#ifndef FFMEF_CUDA_ONLY_FLOAT32
    case FFMEF_FLOAT16: return call(__half());
    case FFMEF_BFLOAT16: return call(__nv_bfloat16());
    case FFMEF_FLOAT64: return call(double());
#endif
    case FFMEF_FLOAT32: return call(float());
    default: return decltype(call(float()))(-1);
  }
}

}  // namespace ffmef::cuda
