// Preloaded into a process: makes one allocation of a library fail, the one whose turn it is.
#include <dlfcn.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <new>

namespace {

std::atomic<long> turns{0};  // allocations left up to the one that fails; 0: none fails
std::atomic<long> seen{0};
char library[64];

bool fails(void* caller) {
  Dl_info info;
  if (library[0] == 0 || dladdr(caller, &info) == 0 || std::strstr(info.dli_fname, library) == nullptr) return false;
  seen.fetch_add(1);
  return turns.load() > 0 && turns.fetch_sub(1) == 1;
}

}  // namespace

extern "C" {

void fail_in(const char* name, long turn) {
  std::strncpy(library, name, sizeof library - 1);
  turns = turn;
  seen = 0;
}
long allocations() { return seen; }

void* aligned_alloc(size_t alignment, size_t bytes) {
  if (fails(__builtin_return_address(0))) return nullptr;
  void* data = nullptr;
  return posix_memalign(&data, alignment, bytes) == 0 ? data : nullptr;
}
}

void* operator new(size_t bytes) {
  void* const data = fails(__builtin_return_address(0)) ? nullptr : std::malloc(bytes > 0 ? bytes : 1);
  if (data == nullptr) throw std::bad_alloc();
  return data;
}
void* operator new[](size_t bytes) { return operator new(bytes); }
