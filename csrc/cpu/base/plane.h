// Memory of whole pictures for the duration of a kernel.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <new>
#include <utility>

#include "memory.h"

namespace ffmef {
namespace FFMEF_ISA {
namespace {

// In large pages where there are any; not cleared.
template <class T> class Plane {
 public:
  explicit Plane(int64_t count) {
    const size_t bytes = (size_t(count) * sizeof(T) + kHugePage - 1) / kHugePage * kHugePage;
    data_ = static_cast<T*>(std::aligned_alloc(kHugePage, bytes));
    if (data_ == nullptr) throw std::bad_alloc();
    hint_huge_pages(data_, int64_t(bytes));
  }
  Plane(Plane&& other) : data_(std::exchange(other.data_, nullptr)) {}
  ~Plane() { std::free(data_); }
  T& operator[](int64_t at) { return data_[at]; }
  const T& operator[](int64_t at) const { return data_[at]; }

 private:
  static constexpr size_t kHugePage = size_t(2) << 20;
  T* data_;
};

}  // namespace
}  // namespace FFMEF_ISA
}  // namespace ffmef
