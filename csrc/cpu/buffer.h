// Memory of one kernel call, given back at its end.
#pragma once
#include <cstdint>
#include <cstdlib>

namespace ffmef {
namespace FFMEF_ISA {
namespace {

template <class T> struct Buffer {
  T* data;
  explicit Buffer(int64_t n) : data(static_cast<T*>(std::malloc(size_t(n > 0 ? n : 1) * sizeof(T)))) {
    if (data == nullptr) std::abort();  // a few hundred kilobytes: nothing else on the machine would work either
  }
  ~Buffer() { std::free(data); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
};

}  // namespace
}  // namespace FFMEF_ISA
}  // namespace ffmef
