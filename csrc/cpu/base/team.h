// The threads of an operator call that is a chain of short steps. Each step needs the whole result of the previous one.
//
// A parallel region of the runtime ends when its last thread does. With one region per step, that costs microseconds on
// an idle machine. On a busy one, a step may wait milliseconds for a preempted thread. A team is a single region:
// threads claim parts of a step, idle threads take over parts from others, and the caller never waits for a thread that
// has claimed nothing.
#pragma once
#include <atomic>
#include <cstdint>
#include <memory>

#include "first_error.h"

namespace ffmef {

// Where a team's threads come from: torch (torch_crew.h) or a pool of our own (picture/pool.h).
struct Crew {
  int threads;
  // Calls job(context, 0) on the calling thread, and job(context, t) on others for some or all t from 1 to threads - 1.
  // Returns when all jobs that began have ended. Jobs on other threads may begin late or never.
  void (*run)(int threads, void* context, void (*job)(void* context, int thread));
};

// Waits for some nanoseconds, leaving the core's units to another thread.
inline void pause_briefly() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

class Team {
 public:
  // Calls body(team) on the calling thread, with the crew's other threads helping.
  template <class F> static void run(const Crew& crew, const F& body) {
    Team team(crew.threads);
    if (team.threads_ == 1) return body(team);
    struct Call {
      Team& team;
      const F& body;
    } call{team, body};
    crew.run(team.threads_, &call, [](void* context, int thread) {
      Call& c = *static_cast<Call*>(context);
      if (thread != 0) return c.team.serve(thread);
      const Dismissal at_the_end{c.team};
      c.body(c.team);
    });
  }

  // Calls f(begin, end) for parts of [0, items) that are multiples of `grain`. Neighbouring parts mostly go to the same
  // thread. Only body itself may call it. Rethrows what a part throws.
  template <class F> void over(int64_t items, int64_t grain, const F& f) {
    grain = grain > 1 ? grain : 1;
    if (threads_ == 1 || items <= grain) {
      if (items > 0) f(0, items);
      return;
    }
    const int64_t least_grain = items / int64_t(UINT32_MAX) + 1;
    items_ = items;
    grain_ = grain > least_grain ? grain : least_grain;
    context_ = const_cast<F*>(&f);
    task_ = [](void* context, int64_t begin, int64_t end) { (*static_cast<const F*>(context))(begin, end); };
    const uint64_t parts = uint64_t((items + grain_ - 1) / grain_), threads = uint64_t(threads_);
    left_.store(uint32_t(parts), std::memory_order_relaxed);
    // Release: a thread that claims from a share sees everything written above.
    for (uint64_t t = 0; t < threads; ++t)
      shares_[t].range.store(packed(parts * t / threads, parts * (t + 1) / threads), std::memory_order_release);
    step_.fetch_add(1, std::memory_order_release);
    step_.notify_all();
    work(0);
    wait_while(left_, [](uint32_t left) { return left != 0; });
    error_.rethrow();
  }

 private:
  static constexpr uint32_t kOver = UINT32_MAX;
  static constexpr uint64_t kFew = 6;   // parts that a thread takes all at once from its own share
  static constexpr int kSpins = 20000;  // half a millisecond: waking a thread takes a good part of that

  // Parts [begin, end) that no thread has claimed yet, alone in a cache line.
  struct alignas(128) Share {
    std::atomic<uint64_t> range{0};
  };
  struct Dismissal {
    Team& team;
    ~Dismissal() {
      team.step_.store(kOver, std::memory_order_release);
      team.step_.notify_all();
    }
  };

  explicit Team(int threads) : threads_(threads > 1 ? threads : 1), shares_(new Share[size_t(threads_)]) {}

  static uint64_t packed(uint64_t begin, uint64_t end) { return begin << 32 | end; }

  template <class F> static void wait_while(std::atomic<uint32_t>& value, const F& unwanted) {
    for (int spin = 0;; ++spin) {
      const uint32_t now = value.load(std::memory_order_acquire);
      if (!unwanted(now)) return;
      if (spin >= kSpins)
        value.wait(now, std::memory_order_acquire);
      else
        pause_briefly();
    }
  }

  void serve(int thread) {
    uint32_t seen = 0;
    for (;;) {
      wait_while(step_, [&](uint32_t step) { return step == seen; });
      seen = step_.load(std::memory_order_acquire);
      if (seen == kOver) return;
      work(thread);
    }
  }

  // Claims parts until none are left: first most of its own share, then ever smaller pieces, then the ends of others'.
  void work(int thread) {
    for (int t = 0; t < threads_; ++t) {
      const bool own = t == 0;
      Share& share = shares_[size_t((thread + t) % threads_)];
      uint64_t range = share.range.load(std::memory_order_acquire);
      uint32_t done = 0;
      for (;;) {
        const uint64_t begin = range >> 32, end = range & UINT32_MAX;
        if (begin >= end) break;
        const uint64_t count = own ? (3 * (end - begin) + 3) / 4 : (end - begin + 1) / 2;
        const uint64_t rest = own ? packed(begin + count, end) : packed(begin, end - count);
        if (!share.range.compare_exchange_weak(range, rest, std::memory_order_acq_rel, std::memory_order_acquire))
          continue;
        const int64_t first = int64_t(own ? begin : end - count) * grain_, last = first + int64_t(count) * grain_;
        if (!error_.thrown()) error_.guard([&] { task_(context_, first, last < items_ ? last : items_); });
        done += uint32_t(count);
        range = share.range.load(std::memory_order_acquire);
      }
      // Once per share, not per part: `left_` travels between the processors' caches, which takes up to 0.3 us.
      if (done > 0 && left_.fetch_sub(done, std::memory_order_acq_rel) == done) left_.notify_all();
    }
  }

  const int threads_;
  const std::unique_ptr<Share[]> shares_;
  FirstError error_;
  alignas(128) std::atomic<uint32_t> left_{0};
  // The current step. Changes only while no thread works on a part. Its number is in the same cache line: a thread that
  // waits for the number gets all of it at once.
  alignas(128) std::atomic<uint32_t> step_{0};
  void (*task_)(void*, int64_t, int64_t) = nullptr;
  void* context_ = nullptr;
  int64_t items_ = 0, grain_ = 1;
};

}  // namespace ffmef
