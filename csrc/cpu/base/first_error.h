// Keeps the first exception that a call's threads throw, for the call to rethrow.
#pragma once
#include <atomic>
#include <exception>
#include <utility>

namespace ffmef {

class FirstError {
 public:
  // Calls f and keeps its exception unless an earlier one is kept.
  template <class F> void guard(const F& f) noexcept {
    try {
      f();
    } catch (...) {
      if (!thrown_.exchange(true, std::memory_order_relaxed)) error_ = std::current_exception();
    }
  }
  bool thrown() const { return thrown_.load(std::memory_order_relaxed); }
  // Rethrows the exception. Call it only after all threads have finished.
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
