// Memory of one kernel call, given back at its end.
#pragma once
#include <cstdint>
#include <cstdlib>

namespace ffmef {
namespace FFMEF_ISA {
namespace {

template <class T> struct Buffer {
  T* data;
  // On a cache line's boundary, so that vectors at multiples of their length lie in one line.
  explicit Buffer(int64_t n)
      : data(static_cast<T*>(std::aligned_alloc(64, (size_t(n > 0 ? n : 1) * sizeof(T) + 63) / 64 * 64))) {
    if (data == nullptr) std::abort();  // a few hundred kilobytes: nothing else on the machine would work either
  }
  ~Buffer() { std::free(data); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
};

}  // namespace
}  // namespace FFMEF_ISA
}  // namespace ffmef
