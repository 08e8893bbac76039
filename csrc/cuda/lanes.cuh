// Streams beside the caller's, on which independent parts of one call run at the same time. Host code alone.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <mutex>
#include <vector>

namespace ffmef::cuda {

// Lane 0 is the caller's stream. The others wait for what that stream was given before, and join() makes it wait for
// them, so to the caller the call is one piece of work, also inside a CUDA graph. If CUDA refuses further streams,
// there are fewer lanes.
class Lanes {
 public:
  Lanes(cudaStream_t stream, int count) : stream_(stream) {
    int device = 0;
    if (count < 2 || cudaGetDevice(&device) != cudaSuccess) return;
    borrow(device, count - 1);
    if (others_.empty()) return;
    const cudaEvent_t start = others_[0].done;  // recorded again at the end: waits keep what they were given
    error_ = cudaEventRecord(start, stream_);
    for (const Lane& lane : others_)
      if (error_ == cudaSuccess) error_ = cudaStreamWaitEvent(lane.stream, start, 0);
  }
  ~Lanes() {
    const std::lock_guard<std::mutex> lock(mutex());
    pool().insert(pool().end(), others_.begin(), others_.end());
  }
  Lanes(const Lanes&) = delete;

  int count() const { return 1 + static_cast<int>(others_.size()); }
  cudaStream_t stream(int64_t part) const {
    const auto lane = static_cast<size_t>(part % count());
    return lane == 0 ? stream_ : others_[lane - 1].stream;
  }
  cudaError_t error() const { return error_; }

  // Joins even what failed: a lane left alone would spoil a capture.
  cudaError_t join() {
    for (const Lane& lane : others_) {
      cudaError_t error = cudaEventRecord(lane.done, lane.stream);
      if (error == cudaSuccess) error = cudaStreamWaitEvent(stream_, lane.done, 0);
      if (error_ == cudaSuccess) error_ = error;
    }
    return error_;
  }

 private:
  struct Lane {
    int device;
    cudaStream_t stream;
    cudaEvent_t done;
  };

  // Kept for ever: at the end of a process, CUDA may be gone before they are.
  static std::vector<Lane>& pool() {
    static auto* const lanes = new std::vector<Lane>;
    return *lanes;
  }
  static std::mutex& mutex() {
    static auto* const one = new std::mutex;
    return *one;
  }

  void borrow(int device, int count) {
    const std::lock_guard<std::mutex> lock(mutex());
    std::vector<Lane>& lanes = pool();
    for (size_t i = 0; i < lanes.size() && static_cast<int>(others_.size()) < count;) {
      // A lane belongs to a capture until that ends.
      cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
      const bool usable = lanes[i].device == device && cudaStreamIsCapturing(lanes[i].stream, &status) == cudaSuccess &&
                          status == cudaStreamCaptureStatusNone;
      if (usable) {
        others_.push_back(lanes[i]);
        lanes.erase(lanes.begin() + static_cast<std::ptrdiff_t>(i));
      } else {
        ++i;
      }
    }
    // Creating a stream does not touch those that some thread is capturing.
    cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
    if (cudaThreadExchangeStreamCaptureMode(&mode) != cudaSuccess) return;
    Lane lane = {device, nullptr, nullptr};
    while (static_cast<int>(others_.size()) < count && create(lane)) others_.push_back(lane);
    cudaThreadExchangeStreamCaptureMode(&mode);
  }

  static bool create(Lane& lane) {
    if (cudaStreamCreateWithFlags(&lane.stream, cudaStreamNonBlocking) != cudaSuccess) return forget();
    if (cudaEventCreateWithFlags(&lane.done, cudaEventDisableTiming) == cudaSuccess) return true;
    cudaStreamDestroy(lane.stream);
    return forget();
  }
  static bool forget() {
    cudaGetLastError();  // a launch would report it as its own
    return false;
  }

  cudaStream_t stream_;
  std::vector<Lane> others_;
  cudaError_t error_ = cudaSuccess;
};

}  // namespace ffmef::cuda
