// The Device on CUDA: its events and copy queues. Handles live in cuda_handle.h, kernels in
// gpu_kernels/.
#ifndef OUTBOARD_OFFLOAD_DEVICES_CUDA_DEVICE_H_
#define OUTBOARD_OFFLOAD_DEVICES_CUDA_DEVICE_H_

#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "gpu_kernels/step.h"
#include "offload/devices/cuda_handle.h"
#include "outboard/device.h"

namespace outboard {

/// A pooled cudaEvent. Outlives queue and device: it shares the context. Thread safe.
class CudaEvent final : public Event {
 public:
  /// The point after everything that `stream` was given so far. The context must be current.
  CudaEvent(std::shared_ptr<CudaContext> context, cudaStream_t stream);
  ~CudaEvent() override;
  CudaEvent(const CudaEvent&) = delete;
  CudaEvent& operator=(const CudaEvent&) = delete;
  void synchronize() const override;
  [[nodiscard]] bool is_done() const override;
  [[nodiscard]] cudaEvent_t get() const { return event_; }

 private:
  std::shared_ptr<CudaContext> context_;
  cudaEvent_t event_;
};

/// A CudaStream of copies.
class CudaQueue final : public CopyQueue {
 public:
  explicit CudaQueue(std::shared_ptr<CudaContext> context) : stream_(std::move(context)) {}
  void wait(const EventPtr& event) override;
  void copy_to_host(void* host, const void* device, size_t bytes) override;
  void copy_to_device(void* device, const void* host, size_t bytes) override;
  [[nodiscard]] EventPtr record() override;

 private:
  void copy(void* target, const void* source, size_t bytes, cudaMemcpyKind kind);
  CudaStream stream_;
};

/// See Device. Every call makes the device current for its duration, so any thread may call.
class CudaDevice final : public Device {
 public:
  /// Throws Error(kDevice) if device `index` does not exist.
  explicit CudaDevice(int index);
  ~CudaDevice() override;
  CudaDevice(const CudaDevice&) = delete;
  CudaDevice& operator=(const CudaDevice&) = delete;

  [[nodiscard]] std::unique_ptr<CopyQueue> make_copy_queue() override;
  [[nodiscard]] EventPtr record(ComputeStream stream) override;
  void wait(ComputeStream stream, const EventPtr& event) override;
  [[nodiscard]] double seconds_between(const Event& first, const Event& second) const override;
  void sum_of_squares(ComputeStream stream, const void* gradient, DType type, size_t elements,
                      float* device_sums) override;
  void update_resident(ComputeStream stream, std::span<const ResidentUpdate> updates) override;
  [[nodiscard]] bool is_capturing(ComputeStream stream) const override;
  [[nodiscard]] ComputeStream make_stream() override;
  void copy_on_device(ComputeStream stream, void* target, const void* source,
                      size_t bytes) override;
  void write_to_host(ComputeStream stream, float* host, const float* device, size_t count) override;
  void poison(ComputeStream stream, void* target, size_t bytes) override;
  [[nodiscard]] std::shared_ptr<void> allocate(size_t bytes) override;
  [[nodiscard]] bool pin(void* host, size_t bytes) override;
  void unpin(void* host, size_t bytes) noexcept override;

 private:
  gpu::StepLauncher& launcher_of(ComputeStream stream);

  std::shared_ptr<CudaContext> context_;
  CudaStream zeroing_;  // fills fresh allocations
  std::mutex mutex_;    // guards the two below
  std::vector<std::unique_ptr<CudaStream>> streams_;
  // One for each stream that updates were enqueued on: threads do not share their launch tables.
  std::map<ComputeStream, gpu::StepLauncher> launchers_;
};

}  // namespace outboard

#endif  // OUTBOARD_OFFLOAD_DEVICES_CUDA_DEVICE_H_
