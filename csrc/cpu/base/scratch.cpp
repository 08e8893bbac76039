#include "scratch.h"

#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#endif

#include "memory.h"

namespace ffmef {

constexpr int64_t kLargePage = int64_t(2) << 20;

#if defined(__linux__)

namespace {

struct Block {
  void* data;
  int64_t bytes;
};

// The one block that no call uses at the moment, or null.
std::atomic<Block*> kept{nullptr};
// What the call before asked for: a process that fuses one picture, or each larger than the last, keeps nothing.
std::atomic<int64_t> wanted_before{0};

void unmap(void* data, int64_t bytes) { munmap(data, size_t(bytes)); }

// A quarter of the machine's memory at most.
int64_t most_to_keep() { return int64_t(sysconf(_SC_PHYS_PAGES)) / 4 * int64_t(sysconf(_SC_PAGESIZE)); }

void* fresh(int64_t bytes) {
  // More than wanted, so that a large page's boundary is inside; what lies outside it is given back at once.
  const int64_t mapped = bytes + kLargePage;
  void* at = mmap(nullptr, size_t(mapped), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (at == MAP_FAILED) out_of_memory(bytes);
  char* begin = static_cast<char*>(at);
  const int64_t before = -reinterpret_cast<intptr_t>(begin) & (kLargePage - 1);
  if (before > 0) unmap(begin, before);
  if (before < kLargePage) unmap(begin + before + bytes, kLargePage - before);
  (void)madvise(begin + before, size_t(bytes), MADV_HUGEPAGE);  // a refusal costs time only
  return begin + before;
}

}  // namespace

Scratch::Scratch(int64_t bytes)
    : data_(nullptr), bytes_((bytes + kLargePage - 1) / kLargePage * kLargePage), wanted_(bytes) {
  if (Block* block = kept.exchange(nullptr, std::memory_order_acq_rel)) {
    const Block old = *block;
    delete block;
    if (old.bytes >= bytes_) {
      data_ = old.data;
      bytes_ = old.bytes;
      return;
    }
    unmap(old.data, old.bytes);
  }
  data_ = fresh(bytes_);
}

Scratch::~Scratch() {
  const bool repeated = wanted_ <= wanted_before.exchange(wanted_, std::memory_order_relaxed);
  if (repeated && bytes_ <= most_to_keep() && madvise(data_, size_t(bytes_), MADV_FREE) == 0)
    if (Block* block = new (std::nothrow) Block{data_, bytes_}) {
      block = kept.exchange(block, std::memory_order_acq_rel);
      if (block == nullptr) return;
      // Another call has left one at the same time.
      data_ = block->data;
      bytes_ = block->bytes;
      delete block;
    }
  unmap(data_, bytes_);
}

#else

Scratch::Scratch(int64_t bytes) : data_(allocate(bytes)), bytes_(bytes), wanted_(bytes) {}
Scratch::~Scratch() { release(data_); }

#endif

}  // namespace ffmef
