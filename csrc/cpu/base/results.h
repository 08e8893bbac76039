// Memory of large results, which the next results of their size reuse.
//
// A training step makes gradients of the same sizes as the step before, by then freed. Large blocks that went back to
// the system would come back as fresh pages, and clearing those takes several times longer than computing what is
// written into them.
#pragma once
#include <cstdint>
#include <utility>

namespace ffmef {

// From here on results are blocks of their own.
constexpr int64_t kLargeResult = int64_t(2) << 20;

// Owns memory from a large page's boundary on. Its end may come on any thread, also while the process ends.
struct ResultBlock {
  void* data = nullptr;
  int64_t bytes = 0;
  bool repeated = false;  // results of this size were asked for before, lately: otherwise nothing is kept

  // At least `wanted` bytes; what they hold is undefined. Throws std::bad_alloc.
  explicit ResultBlock(int64_t wanted);
  ~ResultBlock();
  ResultBlock(ResultBlock&& other) noexcept
      : data(std::exchange(other.data, nullptr)), bytes(other.bytes), repeated(other.repeated) {}
  ResultBlock& operator=(ResultBlock&&) = delete;
};

}  // namespace ffmef
