#include "results.h"

#include <mutex>
#include <utility>

#include "memory.h"

namespace ffmef {
namespace {

// The blocks that no tensor uses at the moment, and the sizes requested recently. Both lists are short: training steps
// request the same few sizes again and again.
class Kept {
 public:
  // Gives the block kept memory of its size, if there is any.
  void take(ResultBlock& block) {
    block.repeated = asked_lately(block.bytes);
    ++turn_;
    for (Slot& slot : slots_)
      if (slot.data != nullptr && slot.bytes == block.bytes && block.data == nullptr)
        block.data = std::exchange(slot.data, nullptr);
      else if (slot.data != nullptr && turn_ - slot.turn > kPatience)
        drop(slot);
  }

  // Returns whether the block's memory was kept.
  bool give(const ResultBlock& block) {
    if (!block.repeated || block.bytes > most_to_lend()) return false;
    int64_t total = block.bytes;
    for (const Slot& slot : slots_) total += slot.data != nullptr ? slot.bytes : 0;
    while (total > most_to_lend()) {
      total -= oldest().bytes;
      drop(oldest());
    }
    Slot& slot = place();
    if (slot.data != nullptr) drop(slot);
    if (!lend_large(block.data, block.bytes)) return false;
    slot = {block.data, block.bytes, turn_};
    return true;
  }

 private:
  static constexpr int kSlots = 64, kSizes = 32;
  static constexpr int64_t kPatience = 256;  // results made before an unused block goes back to the system

  struct Slot {
    void* data = nullptr;
    int64_t bytes = 0, turn = 0;  // when it was given back
  };

  bool asked_lately(int64_t bytes) {
    for (int64_t size : sizes_)
      if (size == bytes) return true;
    sizes_[next_size_++ % kSizes] = bytes;
    return false;
  }
  void drop(Slot& slot) { unmap_large(std::exchange(slot.data, nullptr), slot.bytes); }
  Slot& place() {
    for (Slot& slot : slots_)
      if (slot.data == nullptr) return slot;
    return oldest();
  }
  Slot& oldest() {
    Slot* first = nullptr;
    for (Slot& slot : slots_)
      if (slot.data != nullptr && (first == nullptr || slot.turn < first->turn)) first = &slot;
    return *first;
  }

  Slot slots_[kSlots];
  int64_t sizes_[kSizes] = {};
  int64_t turn_ = 0;
  unsigned next_size_ = 0;
};

std::mutex mutex;

// Never destroyed: tensors may outlive everything else in the process.
Kept& kept() {
  static Kept* const all = new Kept;
  return *all;
}

}  // namespace

// A thread that finds the lock taken does without kept blocks: waiting would never end in a process forked while the
// lock was held.

ResultBlock::ResultBlock(int64_t wanted) : bytes(whole_large_pages(wanted)) {
  if (const std::unique_lock lock(mutex, std::try_to_lock); lock.owns_lock()) kept().take(*this);
  if (data == nullptr) data = map_large(bytes);
}

ResultBlock::~ResultBlock() {
  if (data == nullptr) return;
  if (const std::unique_lock lock(mutex, std::try_to_lock); lock.owns_lock() && kept().give(*this)) return;
  unmap_large(data, bytes);
}

}  // namespace ffmef
