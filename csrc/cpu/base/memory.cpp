#include "memory.h"

#include <cstdio>
#include <cstdlib>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
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

}  // namespace ffmef
