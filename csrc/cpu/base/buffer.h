// Memory for the duration of a call or part of one.
#pragma once
#include <cstdint>
#include <type_traits>
#include <utility>

#include "memory.h"

namespace ffmef {
namespace {  // kernel files are compiled once per instruction set and must share no code

enum class Pages { usual, large };

// `n` uninitialised values.
template <class T> class Buffer {
  static_assert(std::is_trivially_destructible_v<T> && alignof(T) <= 64);

 public:
  T* data = nullptr;

  Buffer() = default;
  explicit Buffer(int64_t n, Pages pages = Pages::usual) : data(static_cast<T*>(allocate(n * int64_t(sizeof(T))))) {
    if (pages == Pages::large) hint_huge_pages(data, n * int64_t(sizeof(T)));
  }
  Buffer(Buffer&& other) noexcept : data(std::exchange(other.data, nullptr)) {}
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(data, other.data);
    return *this;
  }
  ~Buffer() { release(data); }

  T* get() const { return data; }
  operator T*() const { return data; }
};

}  // namespace
}  // namespace ffmef
