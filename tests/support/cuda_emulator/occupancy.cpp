// occupancy ARCHITECTURE REGISTERS SHARED_BYTES THREADS: prints the share of a multiprocessor's threads that can be
// resident, from the toolkit's cuda_occupancy.h with the limits of the CUDA programming guide; asks no driver.
#include <cuda_occupancy.h>
#include <cuda_runtime.h>

#include <cstdio>
#include <cstdlib>

struct Limits {
  int architecture, shared_kb, shared_kb_of_block, threads;
};

static const Limits kLimits[] = {
    {75, 64, 64, 1024},   {80, 164, 163, 2048},  {86, 100, 99, 1536},  {89, 100, 99, 1536},
    {90, 228, 227, 2048}, {100, 228, 227, 2048}, {120, 100, 99, 1536},
};

int main(int count, char** arguments) {
  if (count != 5) return 2;
  for (const Limits& limits : kLimits) {
    if (limits.architecture != std::atoi(arguments[1])) continue;
    cudaOccDeviceProp device = {};
    device.computeMajor = limits.architecture / 10;
    device.computeMinor = limits.architecture % 10;
    device.maxThreadsPerBlock = 1024;
    device.maxThreadsPerMultiprocessor = limits.threads;
    device.regsPerBlock = device.regsPerMultiprocessor = 65536;
    device.warpSize = 32;
    device.sharedMemPerBlock = 48 << 10;
    device.sharedMemPerMultiprocessor = limits.shared_kb << 10;
    device.sharedMemPerBlockOptin = limits.shared_kb_of_block << 10;
    device.reservedSharedMemPerBlock = device.computeMajor >= 8 ? 1024 : 0;
    device.numSms = 1;
    cudaOccFuncAttributes kernel = {};
    kernel.maxThreadsPerBlock = 1024;
    kernel.numRegs = std::atoi(arguments[2]);
    kernel.partitionedGCConfig = PARTITIONED_GC_OFF;
    kernel.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
    kernel.maxDynamicSharedSizeBytes = device.sharedMemPerBlockOptin;
    const cudaOccDeviceState state = {};
    const int threads = std::atoi(arguments[4]);
    cudaOccResult result = {};
    if (cudaOccMaxActiveBlocksPerMultiprocessor(&result, &device, &kernel, &state, threads, std::atoi(arguments[3])) !=
        CUDA_OCC_SUCCESS)
      return 1;
    std::printf("%.3f\n", double(result.activeBlocksPerMultiprocessor) * threads / limits.threads);
    return 0;
  }
  return 2;
}
