// What drivers of emulated kernels share: tensors read from a file, each in separate memory, in which everything but
// the tensor is NaN: the space between its elements and, unless the address sanitizer watches, a red zone on both
// sides. The red zones of what kernels write hold a finite sentinel instead: what is read outside an input is NaN, and
// a NaN stored over a NaN would go unseen.
#pragma once

#include "cuda_emulator.hpp"

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>

inline constexpr size_t kElementBytes[] = {4, 2, 2, 8};

#ifdef __SANITIZE_ADDRESS__
constexpr size_t kRedZone = 0;
#else
constexpr size_t kRedZone = 4096;
#endif
constexpr size_t kSparseAbove = size_t(1) << 30;  // such a tensor is mostly untouched pages
constexpr int kNan = 0xff;
constexpr int kSentinel = 0x3b;  // in every dtype a finite number that no case's result consists of

class Memory {
 public:
  explicit Memory(size_t bytes, int zone = kNan) : bytes_(bytes), zone_(zone) {
    if (bytes > kSparseAbove) {
      base_ = static_cast<unsigned char*>(
          mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
      if (base_ == MAP_FAILED) emulator::fail("no address space for a sparse tensor");
    } else {
      if (posix_memalign(reinterpret_cast<void**>(&base_), 64, bytes + 2 * kRedZone) != 0) emulator::fail("no memory");
      std::memset(base_, zone_, bytes + 2 * kRedZone);
      std::memset(base_ + kRedZone, kNan, bytes);
    }
  }
  ~Memory() {
    if (sparse())
      munmap(base_, bytes_);
    else
      std::free(base_);
  }
  Memory(const Memory&) = delete;

  unsigned char* data() { return sparse() ? base_ : base_ + kRedZone; }
  size_t bytes() const { return bytes_; }
  void check_red_zones() const {
    if (sparse()) return;
    for (size_t i = 0; i < kRedZone; ++i)
      if (base_[i] != zone_ || base_[kRedZone + bytes_ + i] != zone_) emulator::fail("a write outside an output");
  }

 private:
  bool sparse() const { return bytes_ > kSparseAbove; }
  size_t bytes_;
  int zone_;
  unsigned char* base_ = nullptr;
};

class Reader {
 public:
  explicit Reader(const char* path) : file_(path, std::ios::binary) {}
  int64_t number() {
    int64_t value = 0;
    bytes(&value, sizeof(value));
    return value;
  }
  template <size_t Count> void numbers(int64_t (&values)[Count]) {
    for (int64_t& value : values) value = number();
  }
  void bytes(void* target, size_t count) {
    if (count != 0 && !file_.read(static_cast<char*>(target), static_cast<std::streamsize>(count)))
      emulator::fail("the file of cases ends too early");
  }

 private:
  std::ifstream file_;
};

// A tensor laid out by its strides and first offset; the file holds its elements in row-major order.
template <size_t Rank> struct Input {
  int64_t shape[Rank], strides[Rank], offset;
  std::unique_ptr<Memory> memory;
  const void* pointer = nullptr;

  void read(Reader& reader, size_t element) {
    reader.numbers(shape);
    reader.numbers(strides);
    offset = reader.number();
    int64_t last = offset, count = 1;
    for (size_t axis = 0; axis < Rank; ++axis) {
      last += (shape[axis] - 1) * strides[axis];
      count *= shape[axis];
    }
    memory = std::make_unique<Memory>(count == 0 ? 0 : (last + 1) * element);
    for (int64_t i = 0; i < count; ++i) {
      int64_t place = offset, rest = i;
      for (size_t axis = Rank; axis-- > 0; rest /= shape[axis]) place += rest % shape[axis] * strides[axis];
      reader.bytes(memory->data() + place * element, element);
    }
    pointer = memory->data() + offset * element;
  }
};

// Starts as NaN, and may start off a 16-byte boundary, as a view of a larger tensor does.
class Output {
 public:
  Output(int64_t count, size_t element, int64_t offset)
      : offset_(static_cast<size_t>(offset) * element),
        memory_(std::make_unique<Memory>(offset_ + static_cast<size_t>(count) * element, kSentinel)) {}
  void* data() { return memory_->data() + offset_; }
  void write(std::ofstream& results) {
    memory_->check_red_zones();
    results.write(reinterpret_cast<const char*>(data()), static_cast<std::streamsize>(memory_->bytes() - offset_));
  }

 private:
  size_t offset_;
  std::unique_ptr<Memory> memory_;
};

// The body of a driver's main: a file holds the number of cases, then the cases; run(reader, results) runs one.
template <class Run> int run_cases(char** arguments, Run run) {
  Reader reader(arguments[1]);
  std::ofstream results(arguments[2], std::ios::binary);
  for (int64_t left = reader.number(); left > 0; --left) run(reader, results);
  return results.good() ? 0 : 1;
}
