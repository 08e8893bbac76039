#include "memory.h"

#include <cstdio>
#include <cstdlib>
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

void* allocate(int64_t bytes) {
  constexpr int64_t kLine = 64;
  const int64_t whole = (bytes > 0 ? bytes + kLine - 1 : kLine) / kLine * kLine;
  void* data = std::aligned_alloc(size_t(kLine), size_t(whole));
  if (data == nullptr) out_of_memory(bytes);
  return data;
}

void release(void* data) { std::free(data); }

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
  // More than wanted, so that a large page's boundary is inside; what lies outside it is given back at once.
  const int64_t mapped = bytes + kLargePage;
  void* at = mmap(nullptr, size_t(mapped), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (at == MAP_FAILED) out_of_memory(bytes);
  char* begin = static_cast<char*>(at);
  const int64_t before = -reinterpret_cast<intptr_t>(begin) & (kLargePage - 1);
  if (before > 0) unmap_large(begin, before);
  if (before < kLargePage) unmap_large(begin + before + bytes, kLargePage - before);
  (void)madvise(begin + before, size_t(bytes), MADV_HUGEPAGE);  // a refusal costs time only
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
