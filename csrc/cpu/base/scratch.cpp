#include "scratch.h"

#include <atomic>
#include <new>

#include "memory.h"

namespace ffmef {
namespace {

struct Block {
  void* data;
  int64_t bytes;
};

// The one block that no call uses at the moment, or null.
std::atomic<Block*> kept{nullptr};
// What the previous call requested. A process that fuses one picture, or ever larger ones, keeps nothing.
std::atomic<int64_t> wanted_before{0};

}  // namespace

Scratch::Scratch(int64_t bytes) : data_(nullptr), bytes_(whole_large_pages(bytes)), wanted_(bytes) {
  if (Block* block = kept.exchange(nullptr, std::memory_order_acq_rel)) {
    const Block old = *block;
    delete block;
    if (old.bytes >= bytes_) {
      data_ = old.data;
      bytes_ = old.bytes;
      return;
    }
    unmap_large(old.data, old.bytes);
  }
  data_ = map_large(bytes_);
}

Scratch::~Scratch() {
  const bool repeated = wanted_ <= wanted_before.exchange(wanted_, std::memory_order_relaxed);
  if (repeated && bytes_ <= most_to_lend() && lend_large(data_, bytes_))
    if (Block* block = new (std::nothrow) Block{data_, bytes_}) {
      block = kept.exchange(block, std::memory_order_acq_rel);
      if (block == nullptr) return;
      // Another call left its block at the same time.
      data_ = block->data;
      bytes_ = block->bytes;
      delete block;
    }
  unmap_large(data_, bytes_);
}

}  // namespace ffmef
