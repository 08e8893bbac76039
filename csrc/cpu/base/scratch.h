// Scratch memory for a whole call, in large pages. The next call may reuse it; a single call leaves nothing behind.
#pragma once
#include <cstdint>

namespace ffmef {

class Scratch {
 public:
  // At least `bytes` of uninitialised memory that begins at a large page. Throws std::bad_alloc.
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
