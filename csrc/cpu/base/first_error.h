// What a thread threw, for the call that it worked for.
#pragma once
#include <atomic>
#include <exception>
#include <utility>

namespace ffmef {

class FirstError {
 public:
  // Calls f and keeps what it throws, if nothing has been thrown before.
  template <class F> void guard(const F& f) noexcept {
    try {
      f();
    } catch (...) {
      if (!thrown_.exchange(true, std::memory_order_relaxed)) error_ = std::current_exception();
    }
  }
  bool thrown() const { return thrown_.load(std::memory_order_relaxed); }
  // Throws what was kept. Only after all threads have ended or have been waited for.
  void rethrow() {
    if (!thrown()) return;
    thrown_.store(false, std::memory_order_relaxed);
    std::rethrow_exception(std::exchange(error_, nullptr));
  }

 private:
  std::atomic<bool> thrown_{false};
  std::exception_ptr error_;
};

}  // namespace ffmef
