// The trial on the engine and the fake device: forward and backward are work on the device's
// compute stream, nothing waits for anything except through the engine. Gradients lose their
// content as soon as the engine lets go of them; weights and gradients that are read too early are
// NaN.
#ifndef OUTBOARD_TESTS_OFFLOAD_SUPPORT_OVERLAPPED_TRAINER_H_
#define OUTBOARD_TESTS_OFFLOAD_SUPPORT_OVERLAPPED_TRAINER_H_

#include <atomic>
#include <cstddef>
#include <cstring>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include "outboard/device.h"
#include "outboard/engine.h"
#include "tests/offload/support/outcome.h"
#include "tests/offload/support/trial.h"

namespace outboard::testing {

class OverlappedTrainer {
 public:
  /// `device` is what the engine gets (it may wrap `fake`); `stream` one of the fake's, or null.
  OverlappedTrainer(const Trial& trial, std::shared_ptr<SimulatedDevice> fake,
                    const std::shared_ptr<Device>& device, ComputeStream stream)
      : trial_(trial),
        fake_(std::move(fake)),
        stream_(stream),
        loss_scale_(zeroed_memory(sizeof(float))),
        engine_(options_of(trial), device) {
    std::vector<ParameterSpec> specs;
    weights_.reserve(trial.parameters.size());  // the stream reads it while it grows
    for (size_t p = 0; p < trial.parameters.size(); ++p) {
      const TrialParameter& kind = trial.parameters[p];
      weights_.push_back(aligned_memory(kind.weight_bytes()));
      std::memset(weights_[p].get(), 0xFF, kind.weight_bytes());
      compute(p, [this, p] { initialise(p); });
      specs.push_back(spec_of(trial, p, weights_[p].get()));
    }
    engine_.add_parameters(std::move(specs), stream_);
  }
  ~OverlappedTrainer() { fake_->record(stream_)->synchronize(); }
  OverlappedTrainer(const OverlappedTrainer&) = delete;
  OverlappedTrainer& operator=(const OverlappedTrainer&) = delete;

  static EngineOptions options_of(const Trial& trial) {
    return {.offload_gradients = trial.offload_gradients,
            .skip_nonfinite = trial.skips_nonfinite,
            .schedule = trial.schedule,
            .threads = trial.threads,
            .seed = trial.seed,
            .chunk_elements = kTrialChunkElements,
            .slot_bytes = kNormSegmentElements * sizeof(float),
            .slots = trial.slots,
            .stream_elements = kTrialChunkElements,
            .stream_slots = 2,
            .poison_in_flight = trial.poisons_in_flight};
  }

  Outcome run() {
    if (trial_.schedule != Schedule::kAtStep) {
      std::vector<size_t> order;
      for (size_t p = 0; p < trial_.parameters.size(); ++p) order.push_back(p);
      engine_.set_use_order(order);
    }
    for (int step = 0; step < trial_.steps; ++step) train(step);
    return outcome();
  }

  void train(int step) {
    if (trial_.moves) engine_.set_placements(changes(step), stream_);
    for (int micro_batch = 0; micro_batch < trial_.accumulation; ++micro_batch) {
      run_forward(step);
      run_micro_batch(step, micro_batch);
    }
    begin(step);
    engine_.finish_step(stream_);
  }

  /// Each weight is used after it was waited for, in the order of registration, as layers would.
  void run_forward(int step) {
    if (trial_.schedule == Schedule::kAtStep) return;
    engine_.announce_step(request_of(step), stream_);
    for (size_t p = 0; p < trial_.parameters.size(); ++p) {
      engine_.wait_weights(std::vector<size_t>{p}, stream_);
    }
  }

  void run_micro_batch(int step, int micro_batch) {
    auto seen = std::make_shared<std::vector<Bytes>>(trial_.parameters.size());
    const bool looks = !trial_.updates_for_good();
    if (looks) fake_->submit(stream_, [this, seen] { look(*seen); });
    for (size_t p = trial_.parameters.size(); p-- > 0;) {
      if (trial_.is_used(step, micro_batch, p)) send_gradient(step, micro_batch, p);
    }
    if (!looks) return;
    fake_->submit(stream_, [this, seen] {
      // Backward reads weights also after their gradients have gone out.
      std::vector<Bytes> still(trial_.parameters.size());
      look(still);
      if (still != *seen) weights_changed_in_backward_ = true;
    });
  }

  bool begin(int step) {
    // Only now: stats() waits for the copies of the last step, which the forward must do by itself.
    if (step > 0) collect();
    StepRequest request = request_of(step);
    if (trial_.loss_scale == 1) return engine_.begin_step(request, stream_);
    auto* const scale = static_cast<float*>(loss_scale_.get());
    fake_->submit(stream_, [scale, value = trial_.loss_scale] { *scale = value; });
    request.loss_scale = scale;
    const bool is_taken = engine_.begin_step(request, stream_);
    fake_->submit(stream_, [scale] { *scale = std::numeric_limits<float>::quiet_NaN(); });
    return is_taken;
  }

  /// Of every parameter that can change its placement at all.
  [[nodiscard]] std::vector<PlacementChange> changes(int step) const {
    std::vector<PlacementChange> changes;
    for (size_t p = 0; p < trial_.parameters.size(); ++p) {
      const bool is_host = trial_.parameters[p].memory == Memory::kHost;
      const Placement placement = trial_.placement(step, p);
      if (!is_host && placement != Placement::kResident) changes.push_back({p, placement});
    }
    return changes;
  }

  [[nodiscard]] StepRequest request_of(int step) const {
    StepRequest request;
    for (uint32_t group = 0; group < kTrialGroups; ++group) {
      request.hyper.push_back(trial_.hyper(step, group));
    }
    for (size_t p = 0; p < trial_.parameters.size(); ++p) {
      request.group_of.push_back(trial_.group_of(p));
    }
    request.max_gradient_norm = trial_.max_gradient_norm();
    return request;
  }

  /// Waits for everything and reads it.
  Outcome outcome() {
    engine_.synchronize();
    std::vector<Bytes> weights(trial_.parameters.size());
    fake_->submit(stream_, [&] { look(weights); });
    fake_->record(stream_)->synchronize();
    collect();
    Outcome outcome = outcome_;
    for (size_t p = 0; p < trial_.parameters.size(); ++p) {
      const ParameterView view = engine_.view(p);
      const ParameterSpec& spec = *view.spec;
      const size_t weight_bytes = trial_.parameters[p].weight_bytes();
      ParameterOutcome result{
          .weight =
              spec.memory == Memory::kHost ? bytes_at(weights_[p].get(), weight_bytes) : weights[p],
          .master = bytes_at(view.master, spec.elements * bytes_of(spec.master_format)),
          .states = {},
          .step = view.step};
      for (size_t k = 0; k < kMaxStates; ++k) {
        result.states[k] = state_bytes(spec, k, view.states[k]);
      }
      outcome.parameters.push_back(std::move(result));
    }
    return outcome;
  }

  /// For trials that fail: an exception lets go of gradients that backward has yet to write, and a
  /// wait that fails of gradients that a copy still reads.
  void keep_gradients() { keeps_gradients_ = true; }
  /// Lets go of gradients that were not sent, after a failure.
  void forget() {
    fake_->record(stream_)->synchronize();
    for (size_t p = 0; p < gradients_.size(); ++p) {
      gradients_[p] = nullptr;
      has_gradient_[p] = false;
      is_sent_[p] = false;
    }
  }

  /// A weight changed while a backward that uses it was running.
  [[nodiscard]] bool weights_changed_in_backward() const { return weights_changed_in_backward_; }
  [[nodiscard]] Engine& engine() { return engine_; }
  [[nodiscard]] ComputeStream stream() const { return stream_; }
  [[nodiscard]] void* weight(size_t parameter) { return weights_[parameter].get(); }

  /// Backward of one parameter: the gradient goes to the engine, all of it or this micro-batch's.
  void send_gradient(int step, int micro_batch, size_t p) {
    const bool sends_each = trial_.sends_each(step, p);
    if (sends_each || gradients_[p] == nullptr) gradients_[p] = gradient_memory(p);
    const bool is_first = sends_each || !std::exchange(has_gradient_[p], true);
    const bool was_sent = std::exchange(is_sent_[p], false);
    compute(p, [this, step, micro_batch, is_first, was_sent, p, target = gradients_[p].get()] {
      if (was_sent) return backward_into_a_sent_gradient(step, micro_batch, p, target);
      trial_.backward(step, micro_batch, is_first, p, weights_[p].get(), target);
    });
    // Without saying so, an accumulation whose backwards use different parameters is refused when
    // an update was made for good.
    const bool says_last = trial_.has_unused && trial_.updates_for_good();
    GradientSource source{.data = gradients_[p].get(),
                          .owner = gradients_[p],
                          .is_last = !says_last || micro_batch + 1 == trial_.accumulation};
    if (!sends_each && micro_batch != trial_.last_use(step, p)) {
      // The next backward adds to the same memory.
      const bool is_streamed = trial_.placement(step, p) == Placement::kStreamed;
      if (!trial_.sends_every_backward || !is_streamed) return;
      is_sent_[p] = true;
    } else {
      has_gradient_[p] = false;
      gradients_[p] = nullptr;
    }
    engine_.gradient_ready(p, std::move(source), stream_);
  }

 private:
  /// Has a name of its own for cmake/tsan.supp.
  [[gnu::noinline]] void backward_into_a_sent_gradient(int step, int micro_batch, size_t p,
                                                       void* target) const {
    trial_.backward(step, micro_batch, false, p, weights_[p].get(), target);
  }

  /// On the compute stream, or at once for a parameter in host memory.
  template <class Work>
  void compute(size_t p, Work work) {
    fake_->submit(trial_.parameters[p].memory == Memory::kHost ? nullptr : stream_, work);
  }

  void collect() {
    const StepStats stats = engine_.stats();
    outcome_.norms.push_back(stats.gradient_norm);
    outcome_.clip_factors.push_back(stats.clip_factor);
    outcome_.skipped_steps = stats.skipped_steps;
  }

  void initialise(size_t p) {
    const TrialParameter& kind = trial_.parameters[p];
    for (size_t i = 0; i < kind.elements; ++i) {
      store(kind.type, weights_[p].get(), i, trial_.first_weight(p, i));
    }
  }

  void look(std::vector<Bytes>& into) {
    for (size_t p = 0; p < trial_.parameters.size(); ++p) {
      if (trial_.parameters[p].memory == Memory::kHost) continue;
      into[p] = bytes_at(weights_[p].get(), trial_.parameters[p].weight_bytes());
    }
  }

  // Like memory of a caching allocator: once released, the compute stream may write to it. Of an
  // offloaded gradient that may happen at once, of a resident one in the stream's order.
  std::shared_ptr<void> gradient_memory(size_t p) {
    const TrialParameter& kind = trial_.parameters[p];
    const size_t bytes = kind.weight_bytes();
    auto memory = aligned_memory(bytes);
    std::memset(memory.get(), 0xFF, bytes);
    const bool is_ordered = kind.placement == Placement::kResident;
    void* const data = memory.get();
    if (keeps_gradients_) return kept_.emplace_back(memory);
    return {data, [memory, bytes, is_ordered, fake = fake_, stream = stream_](void*) {
              if (!is_ordered) {
                std::memset(memory.get(), 0xFF, bytes);
              } else {
                fake->submit(stream, [memory, bytes] { std::memset(memory.get(), 0xFF, bytes); });
              }
            }};
  }

  const Trial& trial_;
  std::shared_ptr<SimulatedDevice> fake_;
  ComputeStream stream_;
  std::vector<std::shared_ptr<void>> weights_;
  std::shared_ptr<void> loss_scale_;
  std::vector<std::shared_ptr<void>> gradients_ =
      std::vector<std::shared_ptr<void>>(trial_.parameters.size());
  std::vector<char> has_gradient_ = std::vector<char>(trial_.parameters.size());
  std::vector<char> is_sent_ = std::vector<char>(trial_.parameters.size());
  bool keeps_gradients_ = false;
  std::vector<std::shared_ptr<void>> kept_;
  std::atomic<bool> weights_changed_in_backward_ = false;
  Outcome outcome_;
  Engine engine_;  // last: it reads and writes what is above
};

}  // namespace outboard::testing

#endif  // OUTBOARD_TESTS_OFFLOAD_SUPPORT_OVERLAPPED_TRAINER_H_
