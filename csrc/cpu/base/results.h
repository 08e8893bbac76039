// Memory of large results, which later results of the same size reuse.
//
// A training step makes gradients of the same sizes as the previous step, whose gradients are free by then. If large
// blocks went back to the system, they would return as fresh pages. Clearing those takes several times longer than
// computing their contents.
#pragma once
#include <cstdint>
#include <utility>

namespace ffmef {

// Results of this size and more are separate blocks.
constexpr int64_t kLargeResult = int64_t(2) << 20;

// Owns memory that begins at a large page. It may be destroyed on any thread, even while the process ends.
struct ResultBlock {
  void* data = nullptr;
  int64_t bytes = 0;
  bool repeated = false;  // results of this size were requested recently; otherwise nothing is kept

  // At least `wanted` uninitialised bytes. Throws std::bad_alloc.
  explicit ResultBlock(int64_t wanted);
  ~ResultBlock();
  ResultBlock(ResultBlock&& other) noexcept
      : data(std::exchange(other.data, nullptr)), bytes(other.bytes), repeated(other.repeated) {}
  ResultBlock& operator=(ResultBlock&&) = delete;
};

}  // namespace ffmef
