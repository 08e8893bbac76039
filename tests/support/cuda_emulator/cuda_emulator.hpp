// Runs CUDA kernels on the CPU, where tests can watch them as a debugger would: every CUDA thread is a fiber, blocks
// run one after another, and the threads of a block in an order that is shuffled after every barrier.
//
// Include it before the kernels and compile with a plain C++20 compiler and the headers of a CUDA toolkit.
// What the emulator finds unaided (it prints one line and aborts):
//   - a barrier that some threads never reach, or that threads reach at different places in the program
//   - a warp operation in which a lane of the warp does not take part
//   - a launch that no GPU would accept (threads, blocks, shared memory), a write past the shared memory
//   - streams that wait for each other
// Launches on the default stream run at once. Those on others wait until synchronize() runs what a stream depends on,
// in any order that streams and events permit.
// With -fsanitize=address: accesses outside a buffer, shared memory included (a fresh block of the exact size for
// every CUDA block, filled with NaN). With -fsanitize=thread: missing barriers, and blocks that write the same place,
// as data races: two threads are ordered only by the barriers that both of them pass, two blocks by nothing.
// Atomics order threads as they do on a GPU whose threads fence before and after (is_last in norm_activation.cuh).
// Not covered: textures, atomics other than atomicAdd, missing fences, cp.async, tensor cores,
// cooperative groups, warp operations on part of a warp.
#pragma once

#include <cuda_runtime.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <random>
#include <vector>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef __SANITIZE_THREAD__
#include <sanitizer/tsan_interface.h>
#endif

// The scheduler switches fibers behind the thread sanitizer's back.
#define EMULATOR_UNSEEN __attribute__((no_sanitize_thread, noinline))

namespace emulator {

[[noreturn]] inline void fail(const char* message) {
  std::fprintf(stderr, "cuda emulator: %s\n", message);
  std::abort();
}

enum class State { kReady, kAtBarrier, kAtWarpOperation, kFinished };

// A copy to shared memory that is carried out when it is waited for, and not before: a thread that waits for too little
// finds the old contents.
constexpr unsigned kMostLateCopies = 64;
struct LateCopy {
  void* target;
  const void* source;
  unsigned bytes, group;
};

struct Thread {
  ucontext_t context;
  void* stack;
  dim3 index;
  unsigned rank, warp;
  State state;
  const void* place;            // of the barrier it waits at
  unsigned barriers_passed[2];  // of its block, of its warp
  uint64_t exchange;            // what it offers to its warp
  void* sanitizer_fiber;
  void* sanitizer_stack;
  LateCopy late_copies[kMostLateCopies];  // used in turn; no vector, as the thread sanitizer would watch its functions
  unsigned copies_asked, copies_done;
  unsigned copy_group;  // that the next copy belongs to
};

#ifdef __SANITIZE_ADDRESS__
constexpr size_t kStackBytes = 256 << 10, kRedZoneBytes = 0;
#else
constexpr size_t kStackBytes = 64 << 10, kRedZoneBytes = 256;
#endif
constexpr unsigned kWarpSize = 32, kMaxThreads = 1024, kMaxSharedBytes = 48 << 10;

// Addresses that stand for the barriers of a block and of its warps, for the thread sanitizer.
struct BlockTokens {
  char block[2], warps[kMaxThreads / kWarpSize][2];
};

struct Device {
  std::vector<Thread> threads;
  Thread* running = nullptr;
  ucontext_t scheduler;
  std::function<void()> kernel;
  dim3 block_index, block_size, grid_size;
  unsigned char* shared = nullptr;
  BlockTokens* tokens = nullptr;
  // Kept until the launch ends: freeing one, or using it again, would order two blocks.
  std::vector<std::unique_ptr<unsigned char[]>> shared_of_blocks;
  std::vector<std::unique_ptr<BlockTokens>> tokens_of_blocks;
  std::vector<unsigned char*> stacks;  // kStacks each
  unsigned seed = 1;
  // Addresses that stand for the start and the end of a launch, for the thread sanitizer.
  char launch_token, finish_token;
  void* main_fiber = nullptr;
  void* main_sanitizer_stack = nullptr;
  const void* main_stack_bottom = nullptr;
  size_t main_stack_bytes = 0;
};

inline Device device;

inline void happens_before([[maybe_unused]] void* token) {
#ifdef __SANITIZE_THREAD__
  __tsan_release(token);
#endif
}

inline void happens_after([[maybe_unused]] void* token) {
#ifdef __SANITIZE_THREAD__
  __tsan_acquire(token);
#endif
}

EMULATOR_UNSEEN inline void switch_to_scheduler(bool finished) {
  Thread& self = *device.running;
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(finished ? nullptr : &self.sanitizer_stack, device.main_stack_bottom,
                                 device.main_stack_bytes);
#endif
#ifdef __SANITIZE_THREAD__
  __tsan_switch_to_fiber(device.main_fiber, __tsan_switch_to_fiber_no_sync);
#endif
  (void)finished;
  swapcontext(&self.context, &device.scheduler);
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(self.sanitizer_stack, &device.main_stack_bottom, &device.main_stack_bytes);
#endif
}

EMULATOR_UNSEEN inline void switch_to_thread(Thread& thread) {
  device.running = &thread;
#ifdef __SANITIZE_THREAD__
  __tsan_switch_to_fiber(thread.sanitizer_fiber, __tsan_switch_to_fiber_no_sync);
#endif
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(&device.main_sanitizer_stack, thread.stack, kStackBytes);
#endif
  swapcontext(&device.scheduler, &thread.context);
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(device.main_sanitizer_stack, nullptr, nullptr);
#endif
}

EMULATOR_UNSEEN inline void run_thread() {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(nullptr, &device.main_stack_bottom, &device.main_stack_bytes);
#endif
  happens_after(&device.launch_token);
  device.kernel();
  happens_before(&device.finish_token);
  device.running->state = State::kFinished;
  switch_to_scheduler(true);
}

EMULATOR_UNSEEN inline void wait(State reason, const void* place) {
  Thread& self = *device.running;
  const bool of_warp = reason == State::kAtWarpOperation;
  // Consecutive barriers need different tokens, or a thread could seem ordered by one that it has yet to pass.
  const unsigned parity = self.barriers_passed[of_warp]++ % 2;
  BlockTokens& tokens = *device.tokens;
  void* token = of_warp ? &tokens.warps[self.warp][parity] : &tokens.block[parity];
  happens_before(token);
  self.state = reason;
  self.place = place;
  switch_to_scheduler(false);
  happens_after(token);
}

inline unsigned char* new_stacks() {
  void* stacks = mmap(nullptr, kMaxThreads * kStackBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (stacks == MAP_FAILED) fail("no memory for the stacks of threads");
  return static_cast<unsigned char*>(stacks);
}

EMULATOR_UNSEEN inline void prepare(Thread& thread, unsigned rank) {
#ifdef __SANITIZE_THREAD__
  // Reusing a stack in another block of the same launch would look like a race.
  const size_t set = device.tokens_of_blocks.size() - 1;
#else
  const size_t set = 0;
#endif
  while (device.stacks.size() <= set) device.stacks.push_back(new_stacks());
  thread.stack = device.stacks[set] + rank * kStackBytes;
  const dim3 size = device.block_size;
  thread.rank = rank;
  thread.warp = rank / kWarpSize;
  thread.index = dim3(rank % size.x, rank / size.x % size.y, rank / size.x / size.y);
  thread.state = State::kReady;
  thread.barriers_passed[0] = thread.barriers_passed[1] = 0;
  thread.copies_asked = thread.copies_done = thread.copy_group = 0;
  getcontext(&thread.context);
  thread.context.uc_stack.ss_sp = thread.stack;
  thread.context.uc_stack.ss_size = kStackBytes;
  thread.context.uc_link = nullptr;
  makecontext(&thread.context, run_thread, 0);
#ifdef __SANITIZE_THREAD__
  thread.sanitizer_fiber = __tsan_create_fiber(0);
#endif
}

// Lets a warp go on once all its lanes wait at the same kind of operation; true if any warp did.
EMULATOR_UNSEEN inline bool release_warps(unsigned count) {
  bool released = false;
  for (unsigned first = 0; first < count; first += kWarpSize) {
    const unsigned end = std::min(count, first + kWarpSize);
    unsigned waiting = 0;
    for (unsigned i = first; i < end; ++i) waiting += device.threads[i].state == State::kAtWarpOperation;
    if (waiting == 0) continue;
    if (waiting != end - first) fail("a warp operation lacks a lane of its warp");
    for (unsigned i = first; i < end; ++i) device.threads[i].state = State::kReady;
    released = true;
  }
  return released;
}

// Lets the block pass its barrier; false once every thread has finished.
EMULATOR_UNSEEN inline bool release_block(unsigned count) {
  unsigned finished = 0;
  const void* place = nullptr;
  for (unsigned i = 0; i < count; ++i) {
    const Thread& thread = device.threads[i];
    finished += thread.state == State::kFinished;
    if (thread.state != State::kAtBarrier) continue;
    if (place != nullptr && place != thread.place) fail("threads of a block wait at different barriers");
    place = thread.place;
  }
  if (finished == count) return false;
  if (finished > 0) fail("a barrier waits for threads that have finished");
  for (unsigned i = 0; i < count; ++i) device.threads[i].state = State::kReady;
  return true;
}

EMULATOR_UNSEEN inline void run_block(unsigned count, std::vector<unsigned>& order, std::mt19937& random) {
  for (unsigned i = 0; i < count; ++i) prepare(device.threads[i], i);
  do {
    do {
      std::shuffle(order.begin(), order.end(), random);
      for (unsigned i : order)
        if (device.threads[i].state == State::kReady) switch_to_thread(device.threads[i]);
    } while (release_warps(count));
  } while (release_block(count));
#ifdef __SANITIZE_THREAD__
  for (unsigned i = 0; i < count; ++i) __tsan_destroy_fiber(device.threads[i].sanitizer_fiber);
#endif
}

template <class Kernel> EMULATOR_UNSEEN void launch(dim3 grid, dim3 block, size_t shared_bytes, Kernel&& kernel) {
  const unsigned count = block.x * block.y * block.z;
  if (count == 0 || count > kMaxThreads) fail("a block must have 1 to 1024 threads");
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.y > 65535 || grid.z > 65535) fail("no GPU takes this grid");
  if (shared_bytes > kMaxSharedBytes) fail("more than 48 KiB of shared memory");
  device.kernel = kernel;
  device.grid_size = grid;
  device.block_size = block;
  if (device.threads.size() < count) device.threads.resize(count);
#ifdef __SANITIZE_THREAD__
  device.main_fiber = __tsan_get_current_fiber();
#endif
  std::vector<unsigned> order(count);
  for (unsigned i = 0; i < count; ++i) order[i] = i;
  std::mt19937 random(device.seed++);
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; ++x) {
        device.block_index = dim3(x, y, z);
        device.shared_of_blocks.emplace_back(device.shared = new unsigned char[shared_bytes + kRedZoneBytes]);
        device.tokens_of_blocks.emplace_back(device.tokens = new BlockTokens);
        std::memset(device.shared, 0xff, shared_bytes + kRedZoneBytes);
        happens_before(&device.launch_token);
        run_block(count, order, random);
        for (size_t i = 0; i < kRedZoneBytes; ++i)
          if (device.shared[shared_bytes + i] != 0xff) fail("a write past the shared memory of a block");
      }
  happens_after(&device.finish_token);
  device.shared_of_blocks.clear();
  device.tokens_of_blocks.clear();
}

// Work of a stream, or an event that it waits for, or one that it completes.
struct Entry {
  std::function<void()> work;
  struct Event* event;
  unsigned version;
  bool waits;
};
struct Stream {
  std::deque<Entry> entries;
};
struct Event {
  unsigned recorded, completed;
};
inline std::vector<std::unique_ptr<Stream>> streams;
inline std::vector<std::unique_ptr<Event>> events;
#ifndef FFMEF_EMULATED_STREAMS
#define FFMEF_EMULATED_STREAMS 1000  // creating a further one fails
#endif

inline Stream* stream_of(cudaStream_t stream) { return reinterpret_cast<Stream*>(stream); }
inline Event* event_of(cudaEvent_t event) { return reinterpret_cast<Event*>(event); }

inline void enqueue(cudaStream_t stream, std::function<void()> work) {
  if (stream == nullptr)
    work();
  else
    stream_of(stream)->entries.push_back({std::move(work), nullptr, 0, false});
}

inline bool can_start(const Stream& stream) {
  if (stream.entries.empty()) return false;
  const Entry& first = stream.entries.front();
  return !first.waits || first.event->completed >= first.version;
}

inline void start_first(Stream& stream) {
  const Entry first = std::move(stream.entries.front());
  stream.entries.pop_front();
  if (first.work) first.work();
  if (first.event != nullptr && !first.waits) first.event->completed = std::max(first.event->completed, first.version);
}

// Runs all that a stream holds, and of other streams what it waits for; what it does not wait for may stay undone. It
// comes first or last: one shows whether it waits for the others, the other whether they wait for it.
inline void synchronize(cudaStream_t stream, bool comes_first, std::mt19937& random) {
  while (!stream_of(stream)->entries.empty()) {
    Stream& own = *stream_of(stream);
    std::vector<Stream*> others;
    for (const auto& other : streams)
      if (other.get() != &own && can_start(*other)) others.push_back(other.get());
    if (can_start(own) && (comes_first || others.empty()))
      start_first(own);
    else if (!others.empty())
      start_first(*others[random() % others.size()]);
    else
      fail("streams wait for each other");
  }
}

EMULATOR_UNSEEN inline const dim3& thread_index() { return device.running->index; }
EMULATOR_UNSEEN inline const dim3& block_index() { return device.block_index; }
EMULATOR_UNSEEN inline const dim3& block_size() { return device.block_size; }
EMULATOR_UNSEEN inline const dim3& grid_size() { return device.grid_size; }
EMULATOR_UNSEEN inline unsigned char* shared_memory() { return device.shared; }

EMULATOR_UNSEEN inline void block_barrier() { wait(State::kAtBarrier, __builtin_return_address(0)); }

EMULATOR_UNSEEN inline uint64_t shuffle_from(uint64_t value, unsigned lane) {
  Thread& self = *device.running;
  self.exchange = value;
  wait(State::kAtWarpOperation, nullptr);
  const uint64_t received = device.threads[self.rank - self.rank % kWarpSize + lane].exchange;
  wait(State::kAtWarpOperation, nullptr);  // all have read before any lane offers the next value
  return received;
}

EMULATOR_UNSEEN inline void add_late_copy(void* target, const void* source, unsigned bytes) {
  Thread& self = *device.running;
  if (self.copies_asked - self.copies_done == kMostLateCopies) fail("more copies are under way than are emulated");
  LateCopy& copy = self.late_copies[self.copies_asked++ % kMostLateCopies];
  copy.target = target;
  copy.source = source;
  copy.bytes = bytes;
  copy.group = self.copy_group;
}

// Takes the oldest copy that belongs to a group before the `left` latest; false if there is none.
EMULATOR_UNSEEN inline bool take_late_copy(unsigned left, LateCopy& copy) {
  Thread& self = *device.running;
  if (self.copies_done == self.copies_asked) return false;
  const LateCopy& oldest = self.late_copies[self.copies_done % kMostLateCopies];
  if (oldest.group + left >= self.copy_group) return false;
  copy = oldest;
  self.copies_done += 1;
  return true;
}

EMULATOR_UNSEEN inline void end_group_of_copies() { device.running->copy_group += 1; }

EMULATOR_UNSEEN inline uint64_t shuffle_down(uint64_t value, unsigned distance) {
  const unsigned lane = device.running->rank % kWarpSize;
  return shuffle_from(value, lane + distance < kWarpSize ? lane + distance : lane);
}

EMULATOR_UNSEEN inline uint64_t shuffle_xor(uint64_t value, unsigned mask) {
  return shuffle_from(value, device.running->rank % kWarpSize ^ mask);
}

}  // namespace emulator

#undef __global__
#undef __device__
#undef __host__
#undef __shared__
#undef __forceinline__
#undef __launch_bounds__
#undef __grid_constant__
#undef __align__
#define __shared__ static  // blocks run one after another; dynamic shared memory is watched more closely
#define __align__(bytes) alignas(bytes)
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__

#define threadIdx (emulator::thread_index())
#define blockIdx (emulator::block_index())
#define blockDim (emulator::block_size())
#define gridDim (emulator::grid_size())
#define __syncthreads emulator::block_barrier

#define FFMEF_DYNAMIC_SHARED(name) unsigned char* const name = emulator::shared_memory()
#define FFMEF_LAUNCH(kernel, blocks, threads, shared_bytes, stream, ...) \
  emulator::enqueue(stream, [=] {                                        \
    emulator::launch(dim3(blocks), dim3(threads), (shared_bytes), [=] { kernel(__VA_ARGS__); }); \
  })

template <class T> T emulated_shuffle(unsigned mask, T value, uint64_t (*shuffle)(uint64_t, unsigned), int lane) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  if (mask != 0xffffffffu) emulator::fail("warp operations on part of a warp are not emulated");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = shuffle(bits, static_cast<unsigned>(lane));
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}
template <class T> T __shfl_down_sync(unsigned mask, T value, int distance) {
  return emulated_shuffle(mask, value, emulator::shuffle_down, distance);
}
template <class T> T __shfl_xor_sync(unsigned mask, T value, int lanes) {
  return emulated_shuffle(mask, value, emulator::shuffle_xor, lanes);
}
inline void __syncwarp() { emulator::wait(emulator::State::kAtWarpOperation, nullptr); }
template <class T> T __shfl_sync(unsigned mask, T value, int lane) {
  return emulated_shuffle(mask, value, emulator::shuffle_from, lane);
}

inline void emulated_copy_later(void* target, const void* source, unsigned bytes) {
  if (reinterpret_cast<uintptr_t>(target) % bytes != 0 || reinterpret_cast<uintptr_t>(source) % bytes != 0)
    emulator::fail("a copy to shared memory is not aligned to its size");
  emulator::add_late_copy(target, source, bytes);
}
inline void emulated_end_group_of_copies() { emulator::end_group_of_copies(); }
inline void emulated_wait_for_copies(unsigned left) {
  for (emulator::LateCopy copy; emulator::take_late_copy(left, copy);)
    std::memcpy(copy.target, copy.source, copy.bytes);
}

template <class T> T __ldcs(const T* pointer) { return *pointer; }
template <class T> void __stcs(T* pointer, const T& value) { *pointer = value; }
template <class T> T __ldcg(const T* pointer) { return *pointer; }
template <class T> T __ldg(const T* pointer) { return *pointer; }
inline unsigned atomicAdd(unsigned* target, unsigned value) {
  return __atomic_fetch_add(target, value, __ATOMIC_ACQ_REL);
}
inline void __threadfence() {}

// The runtime functions that the launchers call.
inline cudaError_t emulated_last_error() { return cudaSuccess; }
#define cudaGetLastError emulated_last_error
inline cudaError_t emulated_memset(void* target, int value, size_t bytes, cudaStream_t) {
  std::memset(target, value, bytes);
  return cudaSuccess;
}
#define cudaMemsetAsync emulated_memset
inline const char* emulated_error_text(cudaError_t) { return "an error of the emulated device"; }
#define cudaGetErrorString emulated_error_text
inline cudaError_t emulated_device(int* device) { return *device = 0, cudaSuccess; }
#define cudaGetDevice emulated_device
inline cudaError_t emulated_create_stream(cudaStream_t* stream, unsigned) {
  if (emulator::streams.size() >= FFMEF_EMULATED_STREAMS) return cudaErrorMemoryAllocation;
  emulator::streams.push_back(std::make_unique<emulator::Stream>());
  *stream = reinterpret_cast<cudaStream_t>(emulator::streams.back().get());
  return cudaSuccess;
}
#define cudaStreamCreateWithFlags emulated_create_stream
inline cudaError_t emulated_destroy_stream(cudaStream_t) { return cudaSuccess; }
#define cudaStreamDestroy emulated_destroy_stream
inline cudaError_t emulated_create_event(cudaEvent_t* event, unsigned) {
  emulator::events.push_back(std::make_unique<emulator::Event>());
  *event = reinterpret_cast<cudaEvent_t>(emulator::events.back().get());
  return cudaSuccess;
}
#define cudaEventCreateWithFlags emulated_create_event
inline cudaError_t emulated_record(cudaEvent_t event, cudaStream_t stream) {
  emulator::Event* const own = emulator::event_of(event);
  emulator::stream_of(stream)->entries.push_back({{}, own, ++own->recorded, false});
  return cudaSuccess;
}
#define cudaEventRecord emulated_record
inline cudaError_t emulated_wait(cudaStream_t stream, cudaEvent_t event, unsigned) {
  emulator::Event* const own = emulator::event_of(event);
  emulator::stream_of(stream)->entries.push_back({{}, own, own->recorded, true});
  return cudaSuccess;
}
#define cudaStreamWaitEvent emulated_wait
inline cudaError_t emulated_capturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  return *status = cudaStreamCaptureStatusNone, cudaSuccess;
}
#define cudaStreamIsCapturing emulated_capturing
inline cudaError_t emulated_capture_mode(cudaStreamCaptureMode*) { return cudaSuccess; }
#define cudaThreadExchangeStreamCaptureMode emulated_capture_mode
