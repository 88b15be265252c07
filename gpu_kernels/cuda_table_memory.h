// The memory of launch tables and the events that guard it; see cuda_step.cc. Included by that file
// alone.
#ifndef OUTBOARD_GPU_KERNELS_CUDA_TABLE_MEMORY_H_
#define OUTBOARD_GPU_KERNELS_CUDA_TABLE_MEMORY_H_

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <string_view>
#include <utility>

#include "gpu_kernels/cuda_check.h"

namespace outboard::gpu {

inline constexpr std::string_view kTableWho = "StepLauncher";

/// A CUDA event without timing. Destruction tolerates a runtime that is shutting down.
class TableEvent {
 public:
  TableEvent() = default;
  ~TableEvent() {
    if (event_ != nullptr) cudaEventDestroy(event_);
  }
  TableEvent(const TableEvent&) = delete;
  TableEvent& operator=(const TableEvent&) = delete;

  void record(cudaStream_t stream) {
    if (event_ == nullptr) {
      check_cuda(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), kTableWho,
                 "cudaEventCreateWithFlags");
    }
    check_cuda(cudaEventRecord(event_, stream), kTableWho, "cudaEventRecord");
  }
  /// An event that was never recorded counts as done.
  void block_stream(cudaStream_t stream) const {
    if (event_ == nullptr) return;
    check_cuda(cudaStreamWaitEvent(stream, event_, 0), kTableWho, "cudaStreamWaitEvent");
  }
  void block_host() const {
    if (event_ == nullptr) return;
    check_cuda(cudaEventSynchronize(event_), kTableWho, "cudaEventSynchronize");
  }

 private:
  cudaEvent_t event_ = nullptr;
};

/// Device memory, and the pinned image of what is uploaded to its beginning.
class TableMemory {
 public:
  TableMemory() = default;
  ~TableMemory() { release(); }
  TableMemory(const TableMemory&) = delete;
  TableMemory& operator=(const TableMemory&) = delete;

  /// Grows to `uploaded` bytes and `more` behind them on the device, at least. cudaFree waits for
  /// the kernels that read the old memory.
  void reserve(size_t uploaded, size_t more) {
    if (uploaded <= host_bytes_ && uploaded + more <= device_bytes_) return;
    release();
    const size_t host_bytes = std::max(uploaded + uploaded / 2, size_t{4096});
    const size_t device_bytes = host_bytes + more + more / 2;
    check_cuda(cudaMalloc(&device_, device_bytes), kTableWho, "cudaMalloc of a launch table");
    check_cuda(cudaMallocHost(&host_, host_bytes), kTableWho, "cudaMallocHost of a launch table");
    host_bytes_ = host_bytes;
    device_bytes_ = device_bytes;
  }
  [[nodiscard]] std::byte* device() const { return static_cast<std::byte*>(device_); }
  [[nodiscard]] std::byte* host() const { return static_cast<std::byte*>(host_); }

 private:
  void release() {
    host_bytes_ = device_bytes_ = 0;
    if (device_ != nullptr) cudaFree(std::exchange(device_, nullptr));
    if (host_ != nullptr) cudaFreeHost(std::exchange(host_, nullptr));
  }

  void* device_ = nullptr;
  void* host_ = nullptr;
  size_t host_bytes_ = 0;
  size_t device_bytes_ = 0;
};

/// Whether work that `stream` is given becomes part of a CUDA graph and does not run.
inline bool is_capturing(cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  check_cuda(cudaStreamIsCapturing(stream, &status), kTableWho, "cudaStreamIsCapturing");
  return status != cudaStreamCaptureStatusNone;
}

/// While it lives, this thread may allocate, load kernels and copy on other streams although some
/// stream captures.
class OutsideCapture {
 public:
  OutsideCapture() {
    check_cuda(cudaThreadExchangeStreamCaptureMode(&mode_), kTableWho,
               "cudaThreadExchangeStreamCaptureMode");
  }
  ~OutsideCapture() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  OutsideCapture(const OutsideCapture&) = delete;
  OutsideCapture& operator=(const OutsideCapture&) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

/// Copies to the device on a stream of its own, and waits for the copy alone.
inline void copy_aside(void* device, const void* pinned, size_t bytes) {
  cudaStream_t stream = nullptr;
  check_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), kTableWho,
             "cudaStreamCreateWithFlags");
  cudaError_t status = cudaMemcpyAsync(device, pinned, bytes, cudaMemcpyHostToDevice, stream);
  if (status == cudaSuccess) status = cudaStreamSynchronize(stream);
  cudaStreamDestroy(stream);
  check_cuda(status, kTableWho, "the copy of a launch table");
}

}  // namespace outboard::gpu

#endif  // OUTBOARD_GPU_KERNELS_CUDA_TABLE_MEMORY_H_
