#include "pool.h"

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#include <unistd.h>
#endif

namespace ffmef {
namespace {

class Pool {
 public:
  void run(int threads, void* context, void (*job)(void*, int)) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      while (workers_ + 1 < threads && hire()) {}
      job_ = job;
      context_ = context;
      next_ = 1;
      threads_ = threads;
    }
    begun_.notify_all();
    const End end{*this};  // also if the job throws
    job(context, 0);
  }

  std::mutex calls;  // held by the call that uses the pool

 private:
  // About 50 microseconds. Other threads mostly leave the job within one, but waking the caller would take as long.
  static constexpr int kSpins = 2000;

  struct End {
    Pool& pool;
    ~End() {
      std::unique_lock<std::mutex> lock(pool.mutex_);
      pool.threads_ = 0;  // no further thread may begin
      lock.unlock();
      for (int spin = 0; spin < kSpins; ++spin) {
        if (pool.inside_.load(std::memory_order_acquire) == 0) return;
        pause_briefly();
      }
      lock.lock();
      pool.ended_.wait(lock, [&] { return pool.inside_.load(std::memory_order_acquire) == 0; });
    }
  };

  bool hire() {
    try {
      std::thread([this] { work(); }).detach();
    } catch (const std::system_error&) {
      return false;  // fewer threads do the same work
    }
    ++workers_;
    return true;
  }

  void work() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      begun_.wait(lock, [&] { return next_ < threads_; });
      const int thread = next_++;
      inside_.fetch_add(1, std::memory_order_relaxed);
      void (*job)(void*, int) = job_;
      void* context = context_;
      lock.unlock();
      job(context, thread);
      lock.lock();
      if (inside_.fetch_sub(1, std::memory_order_release) == 1) ended_.notify_one();
    }
  }

  std::mutex mutex_;
  std::condition_variable begun_, ended_;
  void (*job_)(void*, int) = nullptr;
  void* context_ = nullptr;
  int workers_ = 0, next_ = 0, threads_ = 0;
  std::atomic<int> inside_{0};  // changes only while the mutex is held
};

// Never destroyed: its threads wait on it until the process ends. A forked process abandons its parent's pool too: the
// fork leaves it without threads, perhaps in the middle of a call.
Pool& pool() {
#if defined(__unix__) || defined(__APPLE__)
  static std::mutex mutex;
  static const bool unlocks = pthread_atfork([] { mutex.lock(); }, [] { mutex.unlock(); }, [] { mutex.unlock(); }) == 0;
  (void)unlocks;
  static Pool* kept = nullptr;
  static pid_t owner = 0;
  const std::lock_guard<std::mutex> lock(mutex);
  if (kept == nullptr || owner != getpid()) kept = new Pool, owner = getpid();
  return *kept;
#else
  static Pool* const kept = new Pool;
  return *kept;
#endif
}

void run(int threads, void* context, void (*job)(void*, int)) {
  Pool& p = pool();
  const std::unique_lock<std::mutex> lock(p.calls, std::try_to_lock);
  if (lock.owns_lock()) return p.run(threads, context, job);
  job(context, 0);
}

}  // namespace

Crew pool_crew(int threads) { return {threads, run}; }

int processors() {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) > 0) return CPU_COUNT(&set);
#endif
  const int all = int(std::thread::hardware_concurrency());
  return all > 0 ? all : 1;
}

}  // namespace ffmef
