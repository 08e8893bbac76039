// Scratch memory of a whole call, in large pages, that the next call may reuse. A single call leaves nothing behind.
#pragma once
#include <cstdint>

namespace ffmef {

class Scratch {
 public:
  // At least `bytes` from a large page's boundary on; what they hold is undefined. Throws std::bad_alloc.
  explicit Scratch(int64_t bytes);
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  float* floats() const { return static_cast<float*>(data_); }

 private:
  void* data_;
  int64_t bytes_;  // of the memory held
  const int64_t wanted_;
};

}  // namespace ffmef
