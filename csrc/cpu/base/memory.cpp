#include "memory.h"

#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace ffmef {
namespace {

class OutOfMemory final : public std::bad_alloc {
 public:
  explicit OutOfMemory(int64_t bytes) {
    std::snprintf(text_, sizeof text_, "out of memory: cannot allocate %lld bytes", static_cast<long long>(bytes));
  }
  const char* what() const noexcept override { return text_; }

 private:
  char text_[80];
};

}  // namespace

void out_of_memory(int64_t bytes) { throw OutOfMemory(bytes); }

namespace {

constexpr int64_t kLine = 64;

// Medium-sized blocks that no call uses at the moment. The most recent is reused first.
class KeptBlocks {
 public:
  static bool suits(int64_t bytes) { return bytes >= kLeast && bytes <= kMost; }

  void* take(int64_t bytes) {
    for (int i = count_ - 1; i >= 0; --i)
      if (blocks_[i].bytes == bytes) {
        void* data = blocks_[i].data;
        remove(i);
        return data;
      }
    return nullptr;
  }
  void give(void* data, int64_t bytes) {
    while (count_ == kBlocks || total_ + bytes > kTotal) {
      std::free(blocks_[0].data);
      remove(0);
    }
    blocks_[count_++] = {data, bytes};
    total_ += bytes;
  }

 private:
  static constexpr int64_t kLeast = int64_t(1) << 15, kMost = int64_t(4) << 20, kTotal = int64_t(16) << 20;
  static constexpr int kBlocks = 64;
  struct Block {
    void* data;
    int64_t bytes;
  };

  void remove(int i) {
    total_ -= blocks_[i].bytes;
    --count_;
    for (; i < count_; ++i) blocks_[i] = blocks_[i + 1];
  }

  Block blocks_[kBlocks];
  int count_ = 0;
  int64_t total_ = 0;
};

// Never destroyed: arrays and threads may outlive everything else in the process. A thread that finds the lock taken
// does without kept blocks: waiting would never end in a process forked while the lock was held.
struct Keeper {
  std::mutex mutex;
  KeptBlocks blocks;
};
Keeper& keeper() {
  static Keeper* const all = new Keeper;
  return *all;
}

}  // namespace

// The cache line before the data holds their size.
void* allocate(int64_t bytes) {
  const int64_t whole = kLine + (bytes > 0 ? bytes + kLine - 1 : kLine) / kLine * kLine;
  char* data = nullptr;
  if (KeptBlocks::suits(whole))
    if (const std::unique_lock lock(keeper().mutex, std::try_to_lock); lock.owns_lock())
      data = static_cast<char*>(keeper().blocks.take(whole));
  if (data == nullptr) data = static_cast<char*>(std::aligned_alloc(size_t(kLine), size_t(whole)));
  if (data == nullptr) out_of_memory(bytes);
  *reinterpret_cast<int64_t*>(data) = whole;
  return data + kLine;
}

void release(void* given) {
  if (given == nullptr) return;
  char* data = static_cast<char*>(given) - kLine;
  const int64_t whole = *reinterpret_cast<int64_t*>(data);
  if (KeptBlocks::suits(whole))
    if (const std::unique_lock lock(keeper().mutex, std::try_to_lock); lock.owns_lock())
      return keeper().blocks.give(data, whole);
  std::free(data);
}

void hint_huge_pages(void* data, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kHuge = uintptr_t(2) << 20;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + kHuge - 1) & ~(kHuge - 1);
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + uintptr_t(bytes)) & ~(kHuge - 1);
  if (bytes >= int64_t(2 * kHuge) && end > begin)
    (void)madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)data;
  (void)bytes;
#endif
}

#if defined(__linux__)

void* map_large(int64_t bytes) {
  // Maps more than wanted, so that the range can begin at a large page, and gives the excess back at once.
  const int64_t mapped = bytes + kLargePage;
  void* at = mmap(nullptr, size_t(mapped), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (at == MAP_FAILED) out_of_memory(bytes);
  char* begin = static_cast<char*>(at);
  const int64_t before = -reinterpret_cast<intptr_t>(begin) & (kLargePage - 1);
  if (before > 0) unmap_large(begin, before);
  if (before < kLargePage) unmap_large(begin + before + bytes, kLargePage - before);
  (void)madvise(begin + before, size_t(bytes), MADV_HUGEPAGE);  // a refusal only costs time
  return begin + before;
}

void unmap_large(void* data, int64_t bytes) { munmap(data, size_t(bytes)); }

bool lend_large(void* data, int64_t bytes) { return madvise(data, size_t(bytes), MADV_FREE) == 0; }

int64_t most_to_lend() { return int64_t(sysconf(_SC_PHYS_PAGES)) / 4 * int64_t(sysconf(_SC_PAGESIZE)); }

#else

void* map_large(int64_t bytes) { return allocate(bytes); }
void unmap_large(void* data, int64_t) { release(data); }
bool lend_large(void*, int64_t) { return false; }
int64_t most_to_lend() { return 0; }

#endif

}  // namespace ffmef
