// The three stages without the pipeline around them: each waits for what the stage before it and
// the way back have under way. A stream is held by a gate that opens only once somebody waits.
#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "offload/gradient_intake.h"
#include "offload/host_update.h"
#include "offload/state_store.h"
#include "offload/weight_reader.h"
#include "offload/weight_return.h"
#include "tests/offload/support/watched_device.h"

namespace outboard {
namespace {

using testing::Call;
using testing::Gate;
using testing::happens_soon;
using testing::WatchedDevice;

constexpr size_t kChunk = kNormSegmentElements;
constexpr size_t kElements = 2 * kChunk + 77;

// One fp32 parameter under plain SGD with learning rate 1: each update subtracts the gradient.
class StageOrder : public ::testing::Test {
 protected:
  StageOrder() {
    auto parameter = std::make_unique<Parameter>();
    const RuleInfo& sgd = rule_named("SGD");
    for (const HyperParameter& hyper : sgd.hyper_parameters) {
      hyper_.push_back(hyper.key == "lr" ? 1 : hyper.default_value);
    }
    parameter->spec = {.name = "weight",
                       .weight = weight_.data(),
                       .elements = kElements,
                       .rule = sgd.id,
                       .hyper = hyper_};
    parameter->returned.resize(3);
    parameter->step = 1;
    parameters_.push_back(std::move(parameter));
    sums_ = store_.add(parameters_);
    read();
  }
  ~StageOrder() override {
    gate_.open();
    fake_->record(held_)->synchronize();
  }

  void read() {
    Parameter* const parameter = &weight();
    read_weights({&parameter, 1}, device_.get(), intake_.queue(), stream_, arena_);
  }
  Parameter& weight() { return *parameters_[0]; }

  // From now on: work on the stream `held_` waits, until somebody waits for it.
  void hold() {
    is_holding_ = true;
    fake_->submit(held_, [this] { gate_.wait(); });
  }
  // What a device call sees: a thread that waits for an event gets the gate opened, after wrong
  // code had its time.
  void see(Call call, const Event* event) {
    if (call != Call::kSynchronize || !is_holding_) return;
    if (!happens_soon([event] { return event->is_done(); })) gate_.open();
  }

  std::vector<PieceUpdate> pieces() {
    std::vector<PieceUpdate> pieces;
    weight().scalars = rule_info(*weight().spec.rule).scalars(hyper_, 1, 1.0);
    for (size_t i = 0; i < 3; ++i) {
      const size_t first = i * kChunk;
      pieces.push_back({.parameter = &weight(),
                        .index = i,
                        .first = first,
                        .last = std::min(first + kChunk, kElements),
                        .arrival = intake_.piece(weight(), first),
                        .gradient = weight().gradient(),
                        .gradient_type = weight().gradient_type(),
                        .step = 1,
                        .weight_is_free = nullptr});
    }
    return pieces;
  }
  [[nodiscard]] std::vector<float> image() {
    const auto* const begin = static_cast<const float*>(weight().host_weight);
    return {begin, begin + kElements};
  }
  static std::vector<float> all(float value) { return std::vector<float>(kElements, value); }

  Gate gate_;
  std::atomic<bool> is_holding_ = false;
  std::vector<double> hyper_;
  std::vector<float> weight_ = all(10);
  std::vector<float> gradient_ = all(1);
  std::shared_ptr<SimulatedDevice> fake_ = make_simulated_device({.poison_targets = true});
  ComputeStream stream_ = fake_->make_stream();
  ComputeStream held_ = fake_->make_stream();
  std::shared_ptr<WatchedDevice> device_ = std::make_shared<WatchedDevice>(
      fake_, [this](Call call, const Event* event) { see(call, event); });
  StateStore store_{{}, device_, {}};
  std::vector<ParameterPtr> parameters_;
  SegmentSums sums_;
  cpu::Arena arena_{2};
  GradientIntake intake_{device_, kChunk};
  HostUpdate update_{arena_};
  WeightReturn return_{device_.get()};
};

TEST_F(StageOrder, UpdateWaitsForItsGradients) {
  hold();
  (void)intake_.store(weight(), gradient_.data(), held_);
  const UpdatedWeight updated = update_.update(pieces());
  EXPECT_EQ(image(), all(9));
  EXPECT_EQ(updated.pieces().size(), 3u);
}

TEST_F(StageOrder, UpdateWaitsForTheLastReturnOfItsImage) {
  hold();
  intake_.store(weight(), gradient_.data(), stream_)->synchronize();
  return_.begin(device_->record(held_));
  return_.send(update_.update(pieces()));
  const EventPtr first_return = return_.finish();
  (void)update_.update(pieces());
  gate_.open();
  first_return->synchronize();
  EXPECT_EQ(weight_, all(9)) << "the first return sent values of the second update";
  EXPECT_EQ(image(), all(8));
}

TEST_F(StageOrder, ReturnWaitsForBackward) {
  hold();
  intake_.store(weight(), gradient_.data(), stream_)->synchronize();
  return_.begin(device_->record(held_));
  return_.send(update_.update(pieces()));
  const EventPtr returned = return_.finish();
  EXPECT_FALSE(happens_soon([&] { return returned->is_done(); }));
  EXPECT_EQ(weight_, all(10));
  gate_.open();
  returned->synchronize();
  EXPECT_EQ(weight_, all(9));
}

TEST_F(StageOrder, ReaderWaitsForTheLastReturn) {
  hold();
  intake_.store(weight(), gradient_.data(), stream_)->synchronize();
  return_.begin(device_->record(held_));
  return_.send(update_.update(pieces()));
  read();  // of a weight whose new value is still on its way
  EXPECT_EQ(image(), all(9));
}

TEST_F(StageOrder, AccumulationWaitsForItsSlot) {
  const std::unique_ptr<StagingRing> ring = store_.make_ring(8, kChunk * sizeof(float));
  (void)intake_.store(weight(), gradient_.data(), stream_);
  hold();
  std::vector<GradientInSlot> staged;
  std::vector<float> second = all(2);
  intake_.stage(weight(), second.data(), held_, *ring,
                [&](GradientInSlot slot) { staged.push_back(std::move(slot)); });
  weight().contributions_added = 1;
  weight().is_accumulated = true;
  for (const GradientInSlot& slot : staged) update_.accumulate(slot);
  const auto* const sum = static_cast<const float*>(weight().gradient());
  EXPECT_EQ(std::vector<float>(sum, sum + kElements), all(3));
  EXPECT_EQ(weight().contributions_added, 2);
  EXPECT_EQ(weight().sums()[2], 9.0f * 77);
}

}  // namespace
}  // namespace outboard
